//! Stops calling a service that fails, and tries from time to time whether it works again.
//!
//! A *closed* circuit lets every call through and counts how they end. If too many of them fail it *opens*: for a while every
//! call is rejected at once with [`Reason::CircuitOpen`], which spares its caller the wait and the service the load. Then it is
//! *half-open*: a few calls pass as probes. One that succeeds closes the circuit, one that fails opens it again, for longer.
//!
//! **What it counts.** How calls end, by [class](crate::Class): failures in a row
//! ([`consecutive`](CircuitBreakerLayer::consecutive)), the rate of failures over a window that slides
//! ([`failure_rate`](CircuitBreakerLayer::failure_rate)), of slow calls
//! ([`slow_calls`](CircuitBreakerLayer::slow_calls)), or any of these together. What is ignored is not counted: an
//! overload of a limit on this side says nothing about the service. Nor is what the service
//! [declined](crate::Class::Declined): a 429 speaks about its caller, and must not shut out all others. An error of the
//! service's `poll_ready` is counted like one of its answers. A call that began before the circuit last changed its
//! state is late, and its result changes nothing. An error is taken for the service's, also where the body of the
//! *request* broke off, unless an [`UploadLayer`](crate::upload::UploadLayer) outside tells the two apart: a proxy,
//! whose callers can hang up in the middle of an upload, needs one. Rates are judged whenever a call can raise them:
//! one that fails, one that completes [`min_calls`](CircuitBreakerLayer::min_calls), and the first after the window has
//! slid on.
//!
//! **Whose fault it is.** A limit of time counts against the service only if the service had that time: the whole limit of a
//! [`TimeoutLayer`](crate::timeout::TimeoutLayer) beneath, or the time that [`Cancelled::After`] names. A call that a surrounding deadline ended
//! earlier is *abandoned*, and neutral: a caller with a short deadline, or one that waited in a queue on this side, opens no circuit. The one
//! exception: while nothing at all comes back from the service, abandoned calls count as calls without an answer. As many of these in a row as
//! failures in a row (or [`min_calls`](CircuitBreakerLayer::min_calls) of a rate) open the circuit, or a service that hangs behind short
//! deadlines never would. A panic of the call is a fault of this program, and neutral.
//!
//! A call ends with its response; with [`until_body_end`](CircuitBreakerLayer::until_body_end) a success only with the response's
//! body, and one that fails (a connection that is reset in the middle of a download) is a failure.
//!
//! **Where it belongs.** Inside of the retry, so that it sees each attempt, and an attempt that finds it open is not retried;
//! outside of the attempt's timeout, so that it sees what timed out as a failure. Outside of the retry it would see one failure
//! for all attempts. Inside of the cache, or hits would be rejected too. For each upstream one layer value: all services
//! that a layer value makes, and their clones, share one circuit.
//!
//! **Cancellation.** A call that is dropped without an outcome is a failure if the service had its time, and abandoned if its
//! [`Deadline`](crate::Deadline) had passed when it was dropped: see above. Otherwise it is ignored: a client that hangs up says nothing about
//! the service, nor does a call that still waited in the queue of a
//! [`ConcurrencyLimitLayer`](crate::concurrency_limit::ConcurrencyLimitLayer) (of a service that calls several others at once, if any
//! of them did). [`Cancelled`] has the other choices. A probe that is dropped, abandoned, or panics, makes room for the next one; so does,
//! after as long as the circuit was open, one that does not end.
//!
//! **A queue beneath.** A call that waits for its turn in a concurrency limit is looked at again when it is next polled, at the latest when it
//! has its turn: if the circuit is not closed any more, it is rejected and not sent. A probe goes to the front of that queue. (A service that
//! calls several others at once waits as long as any of them does, and is dropped as a whole.)
//!
//! **When to come back.** A rejection says it exactly: the time that the circuit is still open, or, if it is half-open, that after
//! which a probe gives up its place (they mostly end sooner). How long a circuit that was opened by hand will be open nobody knows:
//! it says its first open time then.
//!
//! **Readiness.** An open circuit is ready at once, to reject; its service is neither called nor asked whether it is ready. A call
//! that was promised only that is rejected even if the circuit half-opens between `poll_ready` and `call`. A caller that waits
//! for the service's readiness when the circuit opens is told so when it next asks. A service that was asked whether it is ready and is then not
//! called, because the circuit opened in between or another call became the probe, is dropped and replaced by its clone: it would keep its
//! place in a queue, or what it reserved (tower's limits do), until it is used or dropped.
//!
//! It needs `S: Clone`, to give readiness back. A closed circuit clones nothing, and costs a call three atomic reads and a
//! reference count (with a rate, also an atomic write): no lock, no allocation, and no clock read unless its window is one of
//! time, it looks for slow calls, or [`Cancelled::After`] names a time.
//!
//! ```
//! use std::time::Duration;
//! use tower::{Service, ServiceBuilder, ServiceExt, service_fn};
//! use ziggurat::{Error, circuit_breaker::{CircuitBreakerLayer, State}};
//!
//! # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() {
//! let breaker = CircuitBreakerLayer::consecutive(5).open_for(Duration::from_secs(60));
//! let circuit = breaker.handle();
//! let mut service = ServiceBuilder::new()
//!     .layer(breaker)
//!     .map_err(Error::Service)
//!     .service(service_fn(|works: bool| async move { if works { Ok("success") } else { Err("unavailable") } }));
//!
//! for _ in 0..5 {
//!     service.ready().await.unwrap().call(false).await.unwrap_err();
//! }
//! assert_eq!(circuit.state(), State::Open);
//! let outcome = service.ready().await.unwrap().call(true).await;
//! assert!(ziggurat::rejection(&outcome).unwrap().is_circuit_open());
//!
//! tokio::time::sleep(Duration::from_secs(60)).await;
//! assert_eq!(service.ready().await.unwrap().call(true).await.unwrap(), "success");
//! assert_eq!(circuit.state(), State::Closed);
//! # }
//! ```

use std::{
    any::type_name,
    borrow::Cow,
    fmt,
    future::Future,
    marker::PhantomData,
    mem,
    pin::Pin,
    sync::{Arc, OnceLock},
    task::{Context, Poll, ready},
    time::Duration,
};

use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

use self::{
    circuit::Call,
    machine::{Policy, Refused},
    window::{Extent, MOST_CALLS},
};
use crate::{
    ambient::{self, HadItsTime, Unsent, Urgent, caller},
    backoff::{Backoff, Jitter},
    body::{BodyEnd, ResponseEnd, Until, Verdict, without_trailers},
    outcome::{Class, Classify, FailOnError, HttpStatus, Reason, Reject, Rejection},
    telemetry::{LayerInfo, Observer, layer_info},
};

mod circuit;
mod judge;
mod machine;
#[cfg(all(test, ziggurat_loom))]
mod model;
mod state;
mod window;

pub use self::{
    circuit::{CircuitBreakerHandle, Transitions},
    judge::Judge,
    state::{State, Transition},
};

/// Stops calling a service that fails: see the [module](self).
///
/// | setting | default | source of the default |
/// |---|---|---|
/// | [`over`](Self::over) | 30 s | Polly |
/// | [`min_calls`](Self::min_calls) | 20 | Finagle, Polly |
/// | [`open_for`](Self::open_for) | 5 s, doubling to 300 s, with [`Jitter::Upward`] | Polly, Finagle |
/// | [`probes`](Self::probes), [`successes_to_close`](Self::successes_to_close) | 1 | Polly, Finagle, linkerd2 |
/// | [`cancelled`](Self::cancelled) | a failure if the service had its time | |
#[must_use]
pub struct CircuitBreakerLayer<C = FailOnError, U = ResponseEnd> {
    settings: Settings,
    classify: C,
    /// Made when it is first asked for; a setting that is changed after that begins a new one.
    circuit: Arc<OnceLock<CircuitBreakerHandle>>,
    until: PhantomData<fn() -> U>,
}

#[derive(Clone, Debug)]
struct Settings {
    policy: Policy,
    cancelled: Cancelled,
    info: LayerInfo,
}

/// What a call says about the service if it is dropped before it ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Cancelled {
    /// A failure if the service had all the time of a [`TimeoutLayer`](crate::timeout::TimeoutLayer) beneath, the attempt's. If the
    /// surrounding [`Deadline`](crate::Deadline) passed earlier the call was *abandoned*: that is a failure only while nothing at all comes back
    /// from the service. Otherwise it says nothing.
    #[default]
    ByDeadline,
    /// A failure if the service had at least this long, and the same as [`ByDeadline`](Self::ByDeadline) if it had less: for attempts whose limit is
    /// not this crate's. Each call then reads the clock when it is admitted. (Beside [slow calls](CircuitBreakerLayer::slow_calls) it does
    /// not cover the body.)
    After(Duration),
    /// A failure, whoever dropped it and why: where a foreign timeout stands outside, say.
    Failure,
    /// Nothing.
    Ignored,
}

impl CircuitBreakerLayer {
    /// Opens when at least this part of the calls failed: 0.5 is half of them, the default of resilience4j.
    ///
    /// Counted over the last 30 seconds, if there were 20 calls in them: see [`over`](Self::over),
    /// [`over_calls`](Self::over_calls) and [`min_calls`](Self::min_calls).
    ///
    /// # Panics
    ///
    /// If `rate` is not above 0 and at most 1.
    #[track_caller]
    pub fn failure_rate(rate: f64) -> Self {
        Self::new(None, Some(part_of_one("rate", rate)))
    }

    /// Opens when so many calls in a row failed.
    ///
    /// # Panics
    ///
    /// If `failures` is 0.
    #[track_caller]
    pub fn consecutive(failures: u32) -> Self {
        Self::new(Some(at_least_one("failures", failures)), None)
    }

    fn new(consecutive: Option<u32>, failure_rate: Option<f64>) -> Self {
        let open_for =
            Backoff::exponential(Duration::from_secs(5)).max(Duration::from_secs(300)).jitter(Jitter::Upward);
        let policy = Policy {
            consecutive,
            failure_rate,
            slow: None,
            extent: Extent::Time(Duration::from_secs(30)),
            min_calls: 20,
            open_for,
            probes: 1,
            successes_to_close: 1,
            timed: false,
        };
        let settings = Settings { policy, cancelled: Cancelled::default(), info: layer_info!("circuit_breaker") };
        Self { settings, classify: FailOnError, circuit: Arc::default(), until: PhantomData }
    }
}

impl CircuitBreakerLayer<HttpStatus> {
    /// [`failure_rate(0.5)`](CircuitBreakerLayer::failure_rate) for HTTP: responses are judged by [`HttpStatus`].
    pub fn http() -> Self {
        CircuitBreakerLayer::failure_rate(0.5).classify(HttpStatus)
    }
}

impl<C, U> CircuitBreakerLayer<C, U> {
    /// Opens also when so many calls in a row failed: sooner than a rate can, at an outage.
    ///
    /// # Panics
    ///
    /// If `failures` is 0.
    #[track_caller]
    pub fn consecutive_failures(self, failures: u32) -> Self {
        at_least_one("failures", failures);
        self.set(|settings| settings.policy.consecutive = Some(failures))
    }

    /// Takes rates over the calls of the last so much time.
    ///
    /// The window slides in ten steps: it is never longer than this, and at most a tenth shorter. It costs each call a clock
    /// read, when it ends.
    ///
    /// # Panics
    ///
    /// If `window` is zero.
    #[track_caller]
    pub fn over(self, window: Duration) -> Self {
        assert!(!window.is_zero(), "window must be longer than zero");
        self.set(|settings| settings.policy.extent = Extent::Time(window))
    }

    /// Takes rates over the last so many calls, however long ago they were.
    ///
    /// Above ten calls the window slides in steps: it holds never less than this, and at most a fifth more. More
    /// [`min_calls`](Self::min_calls) than these count as these. More than ten million calls are taken as that.
    ///
    /// # Panics
    ///
    /// If `calls` is 0.
    #[track_caller]
    pub fn over_calls(self, calls: u32) -> Self {
        at_least_one("calls", calls);
        self.set(|settings| settings.policy.extent = Extent::Calls(calls.min(MOST_CALLS)))
    }

    /// While the window holds fewer calls than this, no rate opens the circuit.
    ///
    /// # Panics
    ///
    /// If `calls` is 0.
    #[track_caller]
    pub fn min_calls(self, calls: u32) -> Self {
        at_least_one("calls", calls);
        self.set(|settings| settings.policy.min_calls = calls)
    }

    /// Opens also when at least this part of the calls took longer than so long, whether they failed or not. A probe that takes
    /// longer fails.
    ///
    /// A call's time begins when it is admitted. It costs each call two clock reads.
    ///
    /// # Panics
    ///
    /// If `rate` is not above 0 and at most 1.
    #[track_caller]
    pub fn slow_calls(self, longer_than: Duration, rate: f64) -> Self {
        part_of_one("rate", rate);
        self.set(|settings| settings.policy.slow = Some((longer_than, rate)))
    }

    /// How long the circuit stays open: a [`Duration`], or a [`Backoff`] for each time that it opens again before it was closed.
    ///
    /// A failure that asks to be left alone for longer (a 503 with `Retry-After`) and opens the circuit keeps it open
    /// for that long, up to the [maximum](Backoff::max) of the backoff; a fixed time is its own maximum. One sender's
    /// 429 does not open it at all.
    ///
    /// Anything below a millisecond is a millisecond. What the clock cannot hold is until [`CircuitBreakerHandle::close`].
    pub fn open_for(self, open_for: impl Into<Backoff>) -> Self {
        let open_for = open_for.into();
        self.set(|settings| settings.policy.open_for = open_for)
    }

    /// How many calls a half-open circuit lets through at the same time.
    ///
    /// # Panics
    ///
    /// If `probes` is 0.
    #[track_caller]
    pub fn probes(self, probes: usize) -> Self {
        assert!(probes > 0, "probes must be at least 1, not 0");
        self.set(|settings| settings.policy.probes = probes)
    }

    /// How many probes must succeed to close the circuit.
    ///
    /// # Panics
    ///
    /// If `successes` is 0.
    #[track_caller]
    pub fn successes_to_close(self, successes: u32) -> Self {
        at_least_one("successes", successes);
        self.set(|settings| settings.policy.successes_to_close = successes)
    }

    /// Judges by another classifier than [`FailOnError`]: [`HttpStatus`], a closure, or your own.
    pub fn classify<D>(self, classify: D) -> CircuitBreakerLayer<D, U> {
        CircuitBreakerLayer { settings: self.settings, classify, circuit: self.circuit, until: PhantomData }
    }

    /// For HTTP: a call whose response is a success ends with the response's body, and is a failure if that fails.
    ///
    /// A body that is dropped while its reader waits for it is a call that was [`cancelled`](Self::cancelled). Dropped otherwise, the
    /// service had given all that it was asked for, and the call is a success: a server drops a body that it has sent whole, or that
    /// nobody wants (HEAD), and a reader who is slow, or has had enough, is not the service's fault. For the same reason
    /// [slow calls](Self::slow_calls) are timed to the response. An error in which a rejection lies is judged by that, any other one is
    /// a failure. A body that panics says nothing about the service, however far it had come. A response that is not a success is judged at once. The body's error becomes a boxed one.
    pub fn until_body_end(self) -> CircuitBreakerLayer<C, BodyEnd> {
        let Self { settings, classify, circuit, until: _ } = self;
        CircuitBreakerLayer { settings, classify, circuit, until: PhantomData }
    }

    /// What a call says about the service if it is dropped before it ended.
    pub fn cancelled(self, cancelled: Cancelled) -> Self {
        self.set(|settings| {
            settings.cancelled = cancelled;
            settings.policy.timed = matches!(cancelled, Cancelled::After(_));
        })
    }

    /// Gives this layer a name, which its rejections and events carry.
    pub fn named(self, name: impl Into<Cow<'static, str>>) -> Self {
        self.set(move |settings| settings.info = settings.info.clone().named(name))
    }

    /// Attaches somebody who hears this layer's events; one that was attached before hears them no more.
    ///
    /// It is called under no lock, so it may turn the circuit itself.
    pub fn observer(self, observer: impl Observer) -> Self {
        self.set(|settings| settings.info = settings.info.clone().observer(observer))
    }

    /// The circuit that all services of this layer share.
    ///
    /// Take it last: a setting that is changed later begins a new one.
    #[must_use]
    pub fn handle(&self) -> CircuitBreakerHandle {
        let made = self.circuit.get_or_init(|| {
            let Settings { policy, cancelled, info } = self.settings.clone();
            CircuitBreakerHandle::new(policy, cancelled, info)
        });
        made.clone()
    }

    fn set(mut self, change: impl FnOnce(&mut Settings)) -> Self {
        change(&mut self.settings);
        self.circuit = Arc::default();
        self
    }
}

#[track_caller]
fn at_least_one(name: &str, count: u32) -> u32 {
    assert!(count > 0, "{name} must be at least 1, not 0");
    count
}

#[track_caller]
fn part_of_one(name: &str, rate: f64) -> f64 {
    assert!(rate > 0.0 && rate <= 1.0, "{name} must be above 0 and at most 1, not {rate}");
    rate
}

// By hand, and so for the service: when a call ends need not be Clone for this.
impl<C: Clone, U> Clone for CircuitBreakerLayer<C, U> {
    fn clone(&self) -> Self {
        let (settings, classify) = (self.settings.clone(), self.classify.clone());
        Self { settings, classify, circuit: Arc::clone(&self.circuit), until: PhantomData }
    }
}

impl<S, C: Clone, U> Layer<S> for CircuitBreakerLayer<C, U> {
    type Service = CircuitBreaker<S, C, U>;

    fn layer(&self, inner: S) -> Self::Service {
        let (circuit, classify) = (self.handle(), self.classify.clone());
        CircuitBreaker { inner, circuit, classify, asked: false, ready: false, until: PhantomData }
    }
}

impl<C, U> fmt::Debug for CircuitBreakerLayer<C, U> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CircuitBreakerLayer")
            .field("settings", &self.settings)
            .field("classify", &type_name::<C>())
            .field("circuit", &self.circuit.get())
            .finish()
    }
}

/// The service of [`CircuitBreakerLayer`].
pub struct CircuitBreaker<S, C = FailOnError, U = ResponseEnd> /* not a Service? see ziggurat::Reject, "It does not compile" */
{
    inner: S,
    circuit: CircuitBreakerHandle,
    classify: C,
    /// Whether `inner` was asked whether it is ready, and not called since: it may have reserved something.
    asked: bool,
    /// Whether it was ready then.
    ready: bool,
    until: PhantomData<fn() -> U>,
}

impl<S: Clone, C: Clone, U> Clone for CircuitBreaker<S, C, U> {
    fn clone(&self) -> Self {
        Self {
            inner: self.inner.clone(),
            circuit: self.circuit.clone(),
            classify: self.classify.clone(),
            // Nothing asked this one.
            asked: false,
            ready: false,
            until: PhantomData,
        }
    }
}

impl<S: fmt::Debug, C, U> fmt::Debug for CircuitBreaker<S, C, U> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CircuitBreaker")
            .field("inner", &self.inner)
            .field("circuit", &self.circuit)
            .field("classify", &type_name::<C>())
            .field("ready", &self.ready)
            .finish()
    }
}

impl<S, C, U, Req> Service<Req> for CircuitBreaker<S, C, U>
where
    S: Service<Req> + Clone,
    S::Error: Reject<S::Response> + Reject<U::Response>,
    C: Classify<S::Response, S::Error> + Clone,
    U: Until<S::Response, Judge<C>>,
{
    type Response = U::Response;
    type Error = S::Error;
    type Future = ResponseFuture<S::Future, C, U>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.ready = false;
        if self.circuit.check().is_err() {
            self.give_readiness_back();
            return Poll::Ready(Ok(())); // to reject
        }
        self.asked = true;
        let readiness = ready!(self.inner.poll_ready(cx));
        self.ready = readiness.is_ok();
        let Err(error) = readiness else {
            return Poll::Ready(Ok(()));
        };
        // Admitted only now, for an instant: a service that is ready and idle holds no probe's place.
        let outcome: Result<S::Response, _> = Err(error);
        if let Ok(mut call) = self.circuit.admit() {
            call.ended(Class::of(&outcome, &self.classify), &outcome, Unsent(false));
        }
        Poll::Ready(outcome.map(drop))
    }

    fn call(&mut self, request: Req) -> Self::Future {
        // The circuit was open when this service was asked, even if that is over now.
        if !self.ready {
            let refused = self.circuit.check().err().unwrap_or(Refused { retry_after: Duration::ZERO });
            return self.refuse(refused);
        }
        self.ready = false;
        match self.circuit.admit() {
            // If the inner call panics, this one is dropped, and was cancelled.
            Ok(call) => {
                self.asked = false;
                let mut urgent = Urgent(true);
                let entered = call.is_probe().then(|| ambient::enter(&mut urgent));
                let response = self.inner.call(request);
                drop(entered);
                ResponseFuture {
                    admission: Admission::Admitted(call),
                    response: Some(response),
                    waits: false,
                    polling: false,
                    classify: self.classify.clone(),
                    until: PhantomData,
                }
            }
            Err(refused) => {
                self.give_readiness_back();
                self.refuse(refused)
            }
        }
    }
}

impl<S: Clone, C, U> CircuitBreaker<S, C, U> {
    /// The service that was asked whether it is ready is dropped, and with it what it reserved, or its place in a queue, for a call that it
    /// will not get.
    fn give_readiness_back(&mut self) {
        if self.asked {
            self.asked = false;
            self.inner = self.inner.clone();
        }
    }
}

impl<S, C: Clone, U> CircuitBreaker<S, C, U> {
    #[cold]
    fn refuse<F>(&self, refused: Refused) -> ResponseFuture<F, C, U> {
        let admission = Admission::Refused(self.circuit.clone(), refused);
        ResponseFuture {
            response: None,
            admission,
            waits: false,
            polling: false,
            classify: self.classify.clone(),
            until: PhantomData,
        }
    }
}

#[derive(Debug)]
enum Admission {
    Admitted(Call),
    Refused(CircuitBreakerHandle, Refused),
    // It goes on with the response's body.
    Passed,
}

pin_project! {
    /// The response future of [`CircuitBreaker`].
    #[must_use = "futures do nothing unless polled"]
    pub struct ResponseFuture<F, C, U = ResponseEnd> {
        // None: refused, or over.
        #[pin]
        response: Option<F>,
        // Dropped after the response: what that cleans up belongs to the call.
        admission: Admission,
        // Whether the call waited for its turn on this side when it was last polled.
        waits: bool,
        // While the response is polled, and after a poll that panicked.
        polling: bool,
        classify: C,
        until: PhantomData<fn() -> U>,
    }

    impl<F, C, U> PinnedDrop for ResponseFuture<F, C, U> {
        fn drop(this: Pin<&mut Self>) {
            let mut this = this.project();
            if let (true, Admission::Admitted(call)) = (this.response.is_some(), this.admission) {
                // A call that a limit kept waiting on this side says nothing about the service, however late it is.
                let (mut unsent, mut had_its_time) = (Unsent(false), HadItsTime(false));
                let entered = (ambient::enter(&mut unsent), ambient::enter(&mut had_its_time));
                this.response.set(None);
                drop(entered);
                if *this.polling {
                    call.panicked();
                }
                call.cancelled(Unsent(unsent.0 || caller::is_to_blame()), had_its_time);
                // A breaker around this one is to know it too.
                if unsent.0 {
                    ambient::set(unsent);
                }
                if had_its_time.0 {
                    ambient::set(had_its_time);
                }
            }
        }
    }
}

impl<F, C, U, R, E> Future for ResponseFuture<F, C, U>
where
    F: Future<Output = Result<R, E>>,
    E: Reject<R> + Reject<U::Response>,
    C: Classify<R, E> + Clone,
    U: Until<R, Judge<C>>,
{
    type Output = Result<U::Response, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        let unsent;
        let outcome = match (this.response.as_mut().as_pin_mut(), &mut *this.admission) {
            (Some(response), Admission::Admitted(call)) => {
                if *this.waits
                    && let Err(refused) = call.admit_again()
                {
                    let rejection = rejected(call.circuit(), refused);
                    // Gives its place in the queue to the next, or the permit that it has just got.
                    this.response.set(None);
                    *this.admission = Admission::Passed;
                    return Poll::Ready(E::reject(rejection));
                }
                let mut urgent = Urgent(true);
                let entered = call.is_probe().then(|| ambient::enter(&mut urgent));
                ambient::set(Unsent(false));
                *this.polling = true;
                let polled = response.poll(cx);
                *this.polling = false;
                drop(entered);
                unsent = ambient::get::<Unsent>();
                let waited = mem::replace(this.waits, unsent.0 && polled.is_pending());
                if waited && !unsent.0 {
                    call.sent();
                }
                ready!(polled)
            }
            (None, Admission::Refused(circuit, refused)) => {
                return Poll::Ready(E::reject(rejected(circuit, *refused)));
            }
            _ => panic!("circuit_breaker::ResponseFuture polled after it was ready"),
        };
        this.response.set(None);
        let class = Class::of(&outcome, this.classify);
        let at_end = without_trailers(class, &outcome, this.classify, U::WITH_BODY);
        if class != Class::Success
            && let Admission::Admitted(call) = this.admission
        {
            call.ended(class, &outcome, unsent);
        }
        let outcome = outcome.map(|response| {
            U::answer(response, || match (class, mem::replace(this.admission, Admission::Passed)) {
                (Class::Success, Admission::Admitted(call)) => {
                    Some(Judge::new(call, Verdict::new(this.classify.clone(), at_end)))
                }
                (_, judged) => {
                    *this.admission = judged;
                    None
                }
            })
        });
        // It ends here, and so does an empty body.
        if let Admission::Admitted(call) = this.admission {
            // Nothing, if that was recorded before.
            call.body_ended(at_end);
        }
        Poll::Ready(outcome)
    }
}

#[cold]
fn rejected(circuit: &CircuitBreakerHandle, Refused { retry_after }: Refused) -> Rejection {
    circuit.info().reject_with_retry_after(Reason::CircuitOpen, retry_after)
}

impl<F, C, U> fmt::Debug for ResponseFuture<F, C, U> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("circuit_breaker::ResponseFuture").field("admission", &self.admission).finish_non_exhaustive()
    }
}
