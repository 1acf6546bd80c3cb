//! Injects faults, to test how everything else copes with them.
//!
//! The layer is off until its [handle](ChaosLayer::handle) switches it on, and can be switched off at any time. A
//! [`Fault`] is an error ([`Reason::Injected`]), a delay, or a call that never ends. To inject several kinds of faults,
//! use several layers.
//!
//! # Which calls get a fault
//!
//! The fault may be a function of the request. Where the function returns `None`, the call passes. The other calls get
//! the fault at a rate of one in a thousand (Polly's default), at the rate of [`rate`](ChaosLayer::rate) or of the
//! function of [`rate_by`](ChaosLayer::rate_by), which may read the [scope](crate::Scope::current), or according to a
//! [`Schedule`].
//!
//! Calls are numbered across all clones, from the moment the layer was switched on. Calls that the fault does not apply
//! to have no number.
//!
//! # Reproducing a run
//!
//! With a [seed](ChaosLayer::seed), the number of a call alone decides whether the call gets a fault. Concurrent
//! callers take their numbers in the order of their arrival: the number of faults among them is reproducible, but not
//! which of them gets a fault.
//!
//! # Order
//!
//! Innermost, next to the service, where a fault looks like a fault of the service and exercises the timeout, the
//! retry, the circuit breaker and the fallback. Outside another layer, a fault shows how callers react if that layer
//! rejects.
//!
//! # Cancellation
//!
//! Dropping the response future cancels a delay and ends a call that hangs, so a timeout outside ends both. A deadline
//! that was only announced ([`Deadline::within`](crate::Deadline::within)) ends neither, just as it does not end the
//! call of a service.
//!
//! # Cost
//!
//! A layer that is off costs one atomic read for each call. A call without a fault clones nothing, allocates nothing,
//! and calls the service that is ready.
//!
//! The layer needs `S: Clone`. A call with a fault drops the service that is ready, in order to release any
//! reservation, and replaces it with a clone. After a delay, it makes another clone ready.
//!
//! # Examples
//!
//! ```
//! use tower::{ServiceBuilder, ServiceExt, service_fn};
//! use ziggurat::{Error, Reason, chaos::{ChaosLayer, Fault, Schedule}};
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() {
//! let layer = ChaosLayer::new(|path: &&str| (*path != "/health").then_some(Fault::Error))
//!     .schedule(Schedule::every(2));
//! let chaos = layer.handle();
//! let service = ServiceBuilder::new()
//!     .layer(layer)
//!     .map_err(Error::Service)
//!     .service(service_fn(|path: &'static str| async move { Ok::<_, std::io::Error>(path) }));
//!
//! chaos.on();
//! assert!(service.clone().oneshot("/orders").await.is_ok());
//! assert!(service.clone().oneshot("/health").await.is_ok());
//! let struck = service.clone().oneshot("/orders").await;
//! assert_eq!(ziggurat::rejection(&struck).unwrap().reason(), &Reason::Injected);
//!
//! chaos.off();
//! assert!(service.clone().oneshot("/orders").await.is_ok());
//! assert_eq!(chaos.injected(), 1);
//! # }
//! ```

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

use self::{plan::Dice, switch::checked};
pub use self::{plan::Schedule, switch::ChaosHandle};
use crate::{
    accessors::inner_accessors,
    clock::{self, Sleep},
    debug::impl_debug,
    outcome::{Reason, Reject, Rejection},
    setting::Setting,
    telemetry::{LayerEvent, LayerInfo, layer_info, layer_setters},
};

mod plan;
mod switch;

/// The default rate, as in Polly.
const DEFAULT_RATE: f64 = 0.001;

/// A fault that is injected into a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fault {
    /// Rejects the call with [`Reason::Injected`], a transient failure, without calling the service.
    Error,
    /// Waits this long before calling the service. The delay starts at the first poll of the response future.
    Delay(Duration),
    /// Never ends, and does not call the service.
    Hang,
}

impl<Req> Setting<Req, Fault> for Fault {
    fn get(&self, _: &Req) -> Option<Fault> {
        Some(*self)
    }
}

/// Injects faults. See the [module documentation](self).
///
/// Clones of a layer value share the switch, the numbering and the count. Two layer values share nothing.
#[derive(Clone)]
#[doc(alias = "fault injection")]
#[must_use]
pub struct ChaosLayer<F = Fault, W = Rate> {
    fault: F,
    when: W,
    dice: Dice,
    chaos: ChaosHandle,
    info: LayerInfo,
}

impl<F> ChaosLayer<F> {
    /// Injects `fault`: a [`Fault`], or a function of the request.
    ///
    /// The function returns a `Fault` or an `Option<Fault>`, where `None` lets the call pass.
    pub fn new(fault: F) -> Self {
        let dice = Dice::new(fastrand::u64(..));
        Self { fault, when: Rate(DEFAULT_RATE), dice, chaos: ChaosHandle::default(), info: layer_info!("chaos") }
    }
}

impl<F, W> ChaosLayer<F, W> {
    /// Sets the fraction of calls that get the fault, from 0 to 1. The default is 0.001.
    ///
    /// # Panics
    ///
    /// If `rate` is not between 0 and 1.
    #[track_caller]
    pub fn rate(self, rate: f64) -> ChaosLayer<F, Rate> {
        self.when(Rate(checked(rate)))
    }

    /// Sets a function of the request that returns the fraction of calls that get the fault.
    ///
    /// The function, `|req: &Request<_>| ..`, returns the rate, or an `Option` of it, where `None` lets the call pass.
    /// A rate below 0, or NaN, counts as 0, and a rate above 1 as 1.
    pub fn rate_by<G>(self, rate: G) -> ChaosLayer<F, RateBy<G>> {
        self.when(RateBy(rate))
    }

    /// Injects the fault into the calls that `schedule` selects.
    pub fn schedule(self, schedule: Schedule) -> ChaosLayer<F, Schedule> {
        self.when(schedule)
    }

    fn when<W2>(self, when: W2) -> ChaosLayer<F, W2> {
        let Self { fault, when: _, dice, chaos, info } = self;
        ChaosLayer { fault, when, dice, chaos, info }
    }

    /// Selects the same calls each time the layer is switched on. See the [module documentation](self).
    ///
    /// Without a seed, every layer selects other calls. The selection may change with the version of this crate.
    pub fn seed(mut self, seed: u64) -> Self {
        self.dice = Dice::new(seed);
        self
    }

    layer_setters!();

    /// Returns a handle to switch the layer on and off.
    #[must_use]
    pub fn handle(&self) -> ChaosHandle {
        self.chaos.clone()
    }

    /// Returns the fault of this call, if it gets one.
    #[cold]
    fn strike<Req>(&self, request: &Req) -> Option<Fault>
    where
        F: Setting<Req, Fault>,
        W: When<Req>,
    {
        let fault = self.fault.get(request)?;
        let when = self.when.when(request)?;
        let number = self.chaos.number()?;
        let struck = match (self.chaos.rate(), when) {
            (Some(rate), _) | (None, Strikes::At(rate)) => self.dice.strikes(rate, number),
            (None, Strikes::By(schedule)) => schedule.strikes(number),
        };
        struck.then_some(fault)
    }

    fn emit(&self, fault: LayerEvent<'_>) {
        self.chaos.count_injected();
        self.info.emit(fault);
    }
}

impl<S, F, W> Layer<S> for ChaosLayer<F, W>
where
    Self: Clone,
{
    type Service = Chaos<S, F, W>;

    fn layer(&self, inner: S) -> Self::Service {
        Chaos { inner, layer: Arc::new(self.clone()) }
    }
}

impl_debug!(ChaosLayer<F, W> { fault: F, when: W, chaos, info });

/// Decides when calls get a fault: [`Rate`], [`RateBy`] or [`Schedule`].
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot decide which requests of type `{Req}` get a fault",
    note = "give `.rate_by(..)` a closure that names its argument's type: `|req: &{Req}| ..`, returning `f64` or `Option<f64>`"
)]
pub trait When<Req> {
    /// Returns the rule for this request. `None` lets the call pass.
    fn when(&self, request: &Req) -> Option<Strikes<'_>>;
}

/// The rule by which a call gets a fault: by chance, or by its number.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub enum Strikes<'a> {
    /// With this probability.
    At(f64),
    /// According to this schedule.
    By(&'a Schedule),
}

/// One rate for every request, from [`ChaosLayer::rate`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rate(f64);

impl<Req> When<Req> for Rate {
    fn when(&self, _: &Req) -> Option<Strikes<'_>> {
        Some(Strikes::At(self.0))
    }
}

/// A rate that is a function of the request, from [`ChaosLayer::rate_by`].
#[derive(Clone, Copy)]
pub struct RateBy<G>(G);

#[diagnostic::do_not_recommend]
impl<Req, G: Setting<Req, f64>> When<Req> for RateBy<G> {
    fn when(&self, request: &Req) -> Option<Strikes<'_>> {
        self.0.get(request).map(Strikes::At)
    }
}

impl_debug!(RateBy<G>(G));

impl<Req> When<Req> for Schedule {
    fn when(&self, _: &Req) -> Option<Strikes<'_>> {
        Some(Strikes::By(self))
    }
}

/// The service of [`ChaosLayer`].
#[derive(Debug, Clone)]
pub /* not a Service? see ziggurat::docs::it_does_not_compile */ struct Chaos<S, F = Fault, W = Rate> {
    inner: S,
    // Shared by all clones: one reference count is cheaper than a copy of the layer.
    layer: Arc<ChaosLayer<F, W>>,
}

impl<S, F, W> Chaos<S, F, W> {
    inner_accessors!();
}

impl<S, F, W, Req> Service<Req> for Chaos<S, F, W>
where
    S: Service<Req> + Clone,
    S::Error: Reject<S::Response>,
    F: Setting<Req, Fault>,
    W: When<Req>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = ResponseFuture<S, Req>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Req) -> Self::Future {
        let fault = if self.layer.chaos.is_on() { self.layer.strike(&request) } else { None };
        let Some(fault) = fault else {
            let response = self.inner.call(request);
            return ResponseFuture { state: State::Calling { response } };
        };
        let service = self.inner.clone();
        // Drops the service that is ready, and with it the reservation for a call that it will not get.
        self.inner = self.inner.clone();
        let state = match fault {
            Fault::Error => {
                self.layer.chaos.count_injected();
                State::Refused { rejection: Some(self.layer.info.reject(Reason::Injected)) }
            }
            Fault::Delay(delay) => {
                self.layer.emit(LayerEvent::Injected { reason: "delay" });
                State::Delayed { wait: Wait::Unstarted(delay), service, request: Some(request) }
            }
            Fault::Hang => {
                self.layer.emit(LayerEvent::Injected { reason: "hang" });
                State::Hanging
            }
        };
        ResponseFuture { state }
    }
}

pin_project! {
    /// The response future of [`Chaos`].
    #[must_use = "futures do nothing unless polled"]
    pub struct ResponseFuture<S, Req>
    where
        S: Service<Req>,
    {
        #[pin]
        state: State<S, Req>,
    }
}

pin_project! {
    #[project = StateProj]
    enum State<S, Req>
    where
        S: Service<Req>,
    {
        // Rejects at the first poll.
        Refused { rejection: Option<Rejection> },
        // Never ends.
        Hanging,
        // Waits for the delay, and then for its own clone of the service to be ready.
        Delayed {
            wait: Wait,
            service: S,
            request: Option<Req>,
        },
        Calling {
            #[pin]
            response: S::Future,
        },
        // Completed.
        Done,
    }
}

/// A delay. The timer is boxed, so that it does not enlarge calls without a fault.
enum Wait {
    Unstarted(Duration),
    Started(Pin<Box<Sleep>>),
    Over,
}

impl Wait {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            match self {
                // Without a timer: even a timer of zero may be pending once.
                Self::Unstarted(Duration::ZERO) => *self = Self::Over,
                Self::Unstarted(delay) => *self = Self::Started(Box::pin(clock::sleep(*delay))),
                Self::Started(sleep) => {
                    ready!(sleep.as_mut().poll(cx));
                    *self = Self::Over;
                }
                Self::Over => return Poll::Ready(()),
            }
        }
    }
}

impl<S, Req> Future for ResponseFuture<S, Req>
where
    S: Service<Req>,
    S::Error: Reject<S::Response>,
{
    type Output = Result<S::Response, S::Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = self.project().state;
        loop {
            let outcome = match state.as_mut().project() {
                StateProj::Calling { response } => ready!(response.poll(cx)),
                StateProj::Refused { rejection } => match rejection.take() {
                    Some(rejection) => S::Error::reject(rejection),
                    None => return Poll::Pending,
                },
                StateProj::Hanging => return Poll::Pending,
                StateProj::Delayed { wait, service, request } => {
                    ready!(wait.poll(cx));
                    match (ready!(service.poll_ready(cx)), request.take()) {
                        (Err(error), _) => Err(error),
                        (Ok(()), Some(request)) => {
                            let response = service.call(request);
                            state.set(State::Calling { response });
                            continue;
                        }
                        (Ok(()), None) => return Poll::Pending,
                    }
                }
                StateProj::Done => panic!("chaos::ResponseFuture polled after it was ready"),
            };
            // Drop the call before its outcome is visible.
            state.set(State::Done);
            return Poll::Ready(outcome);
        }
    }
}

impl_debug!(ResponseFuture<S: Service<Req>, Req> in chaos {
    state = |this| match &this.state {
        State::Refused { .. } => "refused",
        State::Hanging => "hanging",
        State::Delayed { .. } => "delayed",
        State::Calling { .. } => "calling",
        State::Done => "done",
    },
});
