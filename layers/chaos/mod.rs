//! Puts faults in on purpose, to see whether everything else holds.
//!
//! **It is off** until its [handle](ChaosLayer::handle) switches it on, and can be switched off at any time: then it costs one atomic
//! read for each call. A fault is an error ([`Reason::Injected`]), a delay, or a call that never ends: see [`Fault`]. Several kinds at
//! once are several layers.
//!
//! **Which calls.** The fault may be a function of the request, whose `None` leaves a call alone; of the others one in a thousand is struck
//! (the default of Polly), or so many as the [rate](ChaosLayer::rate) or a [function](ChaosLayer::rate_by) says, which may read the
//! [scope](crate::Scope::current); or those of a [`Schedule`]. **What it counts** are the calls since it was switched on that the fault
//! applies to, over all clones.
//!
//! **The same faults once more.** With a [seed](ChaosLayer::seed), whether a call is struck depends on nothing but its number: the first
//! call since the switch, the second, and so on. Callers that run at the same time share those numbers in whatever order they come, so
//! that among them as many are struck, but not always the same.
//!
//! **Where it belongs.** Innermost, next to the service: there it is the service that seems to fail, and timeout, retry, breaker and
//! fallback show what they do. Outside of a layer it shows what callers do if that layer rejects.
//!
//! **Cancellation.** Dropping the response future drops the delay, and what hangs; so a timeout outside ends both. A deadline that is only
//! told ([`Deadline::within`](crate::Deadline::within)) ends neither, as it ends no service.
//!
//! It needs `S: Clone`: a call that is struck gives back the readiness of the service that it was called on, so that it does not keep what
//! that service has reserved. After a delay it makes a clone ready. A call that is not struck clones nothing, allocates nothing, and calls
//! the service that was made ready.
//!
//! ```
//! use tower::{ServiceBuilder, ServiceExt, service_fn};
//! use ziggurat::{Error, Reason, chaos::{ChaosLayer, Fault, Schedule}};
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() {
//! let layer = ChaosLayer::new(|path: &&str| (*path != "/health").then_some(Fault::Error)).schedule(Schedule::every(2));
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
    any::type_name,
    fmt,
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
    clock::{self, Sleep},
    outcome::{Reason, Reject, Rejection},
    setting::Setting,
    telemetry::{LayerEvent, LayerInfo, layer_info, layer_setters},
};

mod plan;
mod switch;

/// The rate of a layer that was told none: that of Polly.
const DEFAULT_RATE: f64 = 0.001;

/// What is done to a call that is struck.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fault {
    /// It is rejected ([`Reason::Injected`]), a transient failure; the service is not called.
    Error,
    /// It has to wait this long before the service is called, from the first poll of its response future on.
    Delay(Duration),
    /// It never ends, and the service is not called.
    Hang,
}

impl<Req> Setting<Req, Fault> for Fault {
    fn get(&self, _: &Req) -> Option<Fault> {
        Some(*self)
    }
}

/// Puts faults in on purpose: see the [module](self).
///
/// Two layer values share nothing; clones of one value share everything.
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
    /// Puts in this fault: a [`Fault`], or a function of the request that returns one (or an `Option` of one, where `None` means that this
    /// call is left alone).
    pub fn new(fault: F) -> Self {
        let dice = Dice::new(fastrand::u64(..));
        Self { fault, when: Rate(DEFAULT_RATE), dice, chaos: ChaosHandle::default(), info: layer_info!("chaos") }
    }
}

impl<F, W> ChaosLayer<F, W> {
    /// So many of all calls are struck, from 0 to 1; 0.001 if it is not set.
    ///
    /// # Panics
    ///
    /// If `rate` is not between 0 and 1.
    #[track_caller]
    pub fn rate(self, rate: f64) -> ChaosLayer<F, Rate> {
        self.when(Rate(checked(rate)))
    }

    /// So many of the calls are struck as this function of the request says: `|req: &Request<_>| ..`, returning the rate, or an `Option` of
    /// one, where `None` means that this call is left alone.
    ///
    /// A rate below 0, or one that is no number, counts as 0, and one above 1 as 1.
    pub fn rate_by<G>(self, rate: G) -> ChaosLayer<F, RateBy<G>> {
        self.when(RateBy(rate))
    }

    /// The calls of this schedule are struck.
    pub fn schedule(self, schedule: Schedule) -> ChaosLayer<F, Schedule> {
        self.when(schedule)
    }

    fn when<W2>(self, when: W2) -> ChaosLayer<F, W2> {
        let Self { fault, when: _, dice, chaos, info } = self;
        ChaosLayer { fault, when, dice, chaos, info }
    }

    /// The same calls are struck each time that it is switched on: see the [module](self). Without it, others in every layer.
    ///
    /// It holds for one version of this crate; another one may strike others.
    pub fn seed(mut self, seed: u64) -> Self {
        self.dice = Dice::new(seed);
        self
    }

    layer_setters!();

    /// A handle to the live state, to switch it on.
    #[must_use]
    pub fn handle(&self) -> ChaosHandle {
        self.chaos.clone()
    }

    /// The fault of this call, if it is struck.
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

impl<F, W> fmt::Debug for ChaosLayer<F, W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChaosLayer")
            .field("fault", &type_name::<F>())
            .field("when", &type_name::<W>())
            .field("chaos", &self.chaos)
            .field("info", &self.info)
            .finish()
    }
}

/// When calls are struck: [`Rate`], [`RateBy`] or [`Schedule`].
#[diagnostic::on_unimplemented(
    message = "`{Self}` does not say which requests of type `{Req}` are struck",
    note = "give `.rate_by(..)` a closure that names its argument's type: `|req: &{Req}| ..`, returning `f64` or `Option<f64>`"
)]
pub trait When<Req> {
    /// What holds for this request; `None` if it is left alone.
    fn when(&self, request: &Req) -> Option<Strikes<'_>>;
}

/// Whether a call is struck: by chance, or by its number.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub enum Strikes<'a> {
    /// At this rate.
    At(f64),
    /// By this schedule.
    By(&'a Schedule),
}

/// A rate that is the same for every request: see [`ChaosLayer::rate`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rate(f64);

impl<Req> When<Req> for Rate {
    fn when(&self, _: &Req) -> Option<Strikes<'_>> {
        Some(Strikes::At(self.0))
    }
}

/// A rate that is a function of the request: see [`ChaosLayer::rate_by`].
#[derive(Clone, Copy)]
pub struct RateBy<G>(G);

#[diagnostic::do_not_recommend]
impl<Req, G: Setting<Req, f64>> When<Req> for RateBy<G> {
    fn when(&self, request: &Req) -> Option<Strikes<'_>> {
        self.0.get(request).map(Strikes::At)
    }
}

impl<G> fmt::Debug for RateBy<G> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("RateBy").field(&type_name::<G>()).finish()
    }
}

impl<Req> When<Req> for Schedule {
    fn when(&self, _: &Req) -> Option<Strikes<'_>> {
        Some(Strikes::By(self))
    }
}

/// The service of [`ChaosLayer`].
#[derive(Debug)]
pub struct Chaos<S, F = Fault, W = Rate> /* not a Service? see ziggurat::Reject, "It does not compile" */ {
    inner: S,
    // Shared by all clones: one counter is cheaper than a copy of it all.
    layer: Arc<ChaosLayer<F, W>>,
}

impl<S: Clone, F, W> Clone for Chaos<S, F, W> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone(), layer: Arc::clone(&self.layer) }
    }
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
        // The one that was made ready is dropped, and with it what it reserved for a call that it will not get.
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
        // It is rejected at the first poll.
        Refused { rejection: Option<Rejection> },
        // It never ends.
        Hanging,
        // It waits, and then for its own clone of the service to be ready.
        Delayed {
            wait: Wait,
            service: S,
            request: Option<Req>,
        },
        Calling {
            #[pin]
            response: S::Future,
        },
        // It was answered.
        Done,
    }
}

/// A delay. Boxed, so that a call that is not struck is not larger for it.
enum Wait {
    Unstarted(Duration),
    Started(Pin<Box<Sleep>>),
    Over,
}

impl Wait {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            match self {
                // A timer of zero may still be pending once.
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
            // The call is gone before anybody learns of its outcome.
            state.set(State::Done);
            return Poll::Ready(outcome);
        }
    }
}

impl<S: Service<Req>, Req> fmt::Debug for ResponseFuture<S, Req> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match &self.state {
            State::Refused { .. } => "refused",
            State::Hanging => "hanging",
            State::Delayed { .. } => "delayed",
            State::Calling { .. } => "calling",
            State::Done => "done",
        };
        f.debug_struct("chaos::ResponseFuture").field("state", &state).finish()
    }
}
