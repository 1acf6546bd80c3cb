//! Stops calling a service that fails, and probes from time to time whether it has recovered.
//!
//! # States
//!
//! - A *closed* circuit admits every call and counts how the calls end. It *opens* when too many of them fail.
//! - An *open* circuit rejects every call at once with [`Reason::CircuitOpen`]. This spares the caller the wait and
//!   the service the load.
//! - When the open time is over, the circuit is *half-open*: it admits a few calls as probes. A probe that succeeds
//!   closes the circuit. A probe that fails opens it again, for longer.
//!
//! # What counts
//!
//! The circuit opens after a number of failures in a row ([`consecutive`](CircuitBreakerLayer::consecutive)), at a
//! rate of failures over a sliding window ([`failure_rate`](CircuitBreakerLayer::failure_rate)), at a rate of slow
//! calls ([`slow_calls`](CircuitBreakerLayer::slow_calls)), or at any combination of these. A classifier gives the
//! outcome of each call its [class](crate::Class):
//!
//! - Ignored outcomes are not counted: a local limit that is overloaded says nothing about the service.
//! - Neither are [declined](crate::Class::Declined) requests: a 429 speaks about its caller, and must not shut out
//!   all others.
//! - An error from the service's `poll_ready` counts like an error from a call.
//! - A call that began before the circuit last changed its state is late, and its result changes nothing.
//! - The failures of one request count once, by its first attempt: otherwise a few requests for one broken page, with
//!   three attempts each, would shut out all others. Later attempts that succeed count. Later attempts that fail count
//!   only while no other call ends in any way: three times the number of [unanswered calls](#timeouts) opens the
//!   circuit. As a probe, any attempt decides.
//! - An error counts against the service even if the body of the *request* broke off, unless an
//!   [`UploadLayer`](crate::upload::UploadLayer) outside tells the two apart. A proxy needs one, because its callers
//!   can hang up in the middle of an upload.
//!
//! A rate opens the circuit when at least 20 calls make it clear that it is not reached by chance: all of them fail, or
//! the likelihood of the failures at their own rate is `e^8` times that at the rate of the circuit, as with four
//! standard deviations. With a rate of 0.5 that is the case for 19 of 20 calls, 70 of 100, and 564 of 1,000. A service
//! that fails 45 % of its calls then keeps its circuit closed for days, also with few calls. So that many good calls
//! before an outage do not outweigh it, newer parts of the window are looked at too, down to the last fifth of it. With
//! a rate of 0.5 and a window of 30 s, a total outage opens the circuit within three seconds, or within some thirty
//! calls if that takes longer; a service that fails 60 % of five calls per second opens it after a minute. A shorter
//! outage passes without opening it. With [`min_calls`](CircuitBreakerLayer::min_calls) or
//! [`over_calls`](CircuitBreakerLayer::over_calls) your number of calls is enough, and the rate of the whole window
//! decides.
//!
//! Rates are evaluated at each call that can raise them: a call that fails, a call that completes the necessary number,
//! and the first call after the window has moved.
//!
//! A call ends with its response. With [`until_body_end`](CircuitBreakerLayer::until_body_end), a successful call ends
//! with the response's body, and a body that fails (a connection that is reset in the middle of a download) makes the
//! call a failure.
//!
//! # Timeouts
//!
//! A time limit counts against the service only if the service had all of that time: the whole limit of a
//! [`TimeoutLayer`](crate::timeout::TimeoutLayer) inside, or the duration of [`Cancelled::After`]. A call that a
//! surrounding deadline ended earlier is *abandoned*, which is neutral: a caller whose deadline is short, or was spent
//! in a local queue, does not open the circuit.
//!
//! There is one exception, because a service that hangs behind short deadlines would otherwise never open the circuit.
//! While nothing at all comes back from the service, abandoned calls count as unanswered calls. The number of
//! unanswered calls in a row that opens the circuit is the limit of failures in a row, or the necessary number of calls
//! of a rate: 20, or [`min_calls`](CircuitBreakerLayer::min_calls).
//!
//! A call that panics is a fault of the local program, and neutral.
//!
//! # Order
//!
//! - Inside the retry, so that the circuit breaker sees each attempt, and an attempt that finds the circuit open is
//!   not retried. Outside the retry it would see one failure for all attempts.
//! - Outside the attempt's timeout, so that an attempt that times out counts as a failure.
//! - Inside the cache, because it would otherwise reject hits too.
//!
//! Use one layer value for each upstream: all services that a layer value makes, and their clones, share one circuit.
//!
//! # Cancellation
//!
//! A call that is dropped without an outcome is a failure if the service had its full time, and abandoned if the call's
//! [`Deadline`](crate::Deadline) had passed when it was dropped. Otherwise it is ignored. A client that hangs up says
//! nothing about the service. Nor does a call that is still in the queue of a
//! [`ConcurrencyLimitLayer`](crate::concurrency_limit::ConcurrencyLimitLayer). (If the service calls several others at
//! once, this applies when any of these calls is in a queue.) [`Cancelled`] has the other choices.
//!
//! A probe that is dropped, is abandoned, or panics makes room for the next probe. So does a probe that runs for longer
//! than the circuit was open, but not before five seconds.
//!
//! # A concurrency limit inside
//!
//! A call that waits in the queue of a concurrency limit is checked again when it is next polled, at the latest when it
//! gets its permit. If the circuit is no longer closed by then, the call is rejected and not sent. A probe goes to the
//! front of the queue. (A service that calls several others at once counts as waiting while any of these calls waits,
//! and is dropped as a whole.)
//!
//! # Retry-After
//!
//! A rejection carries the exact time after which a call can be admitted: the rest of the open time or, in a half-open
//! circuit, the time until a probe loses its slot (most probes end sooner). A circuit that was opened by hand has no
//! end to report, so its rejections carry the first open time.
//!
//! # Readiness
//!
//! An open circuit is ready at once, in order to reject. It neither calls nor polls its service. A call for which
//! `poll_ready` returned ready in this way is rejected even if the circuit half-opens between `poll_ready` and `call`.
//! A caller that waits for the service's readiness while the circuit opens sees it at its next `poll_ready`.
//!
//! The service can be polled for readiness and then not be called, because the circuit opened in between or another
//! call became the probe. The circuit breaker then replaces the service with a clone and drops it: otherwise it would
//! keep its reservation (tower's limits make one) or its place in a queue. This is why the layer needs `S: Clone`.
//!
//! # Cost
//!
//! In a closed circuit, a call costs three atomic reads and a reference count, and with a rate also an atomic write.
//! It clones no service, takes no lock and, apart from the first call of a thread, does not allocate. It reads the
//! clock only if the window is one of time, if slow calls are counted, or with [`Cancelled::After`]. Successful calls
//! of different threads write to different cache lines, for up to eight threads. Only the counts of a window of calls
//! are the same for all.
//!
//! # Examples
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
    num::NonZeroU32,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

use self::{
    circuit::{Call, Circuit, Settings},
    handle::Slot,
    machine::{Policy, Refused},
    window::{Extent, MOST_CALLS},
};
use crate::{
    accessors::inner_accessors,
    ambient::{self, HadItsTime, Unsent, Urgent, caller},
    backoff::{Backoff, Jitter},
    body::{BodyEnd, ResponseEnd, Until, Verdict, without_trailers},
    clock,
    keep::keep_while,
    outcome::{Class, Classify, FailOnError, HttpStatus, Reason, Reject, Rejection},
    telemetry::{LayerInfo, Observer, layer_info},
};

mod circuit;
mod handle;
mod judge;
mod machine;
#[cfg(all(test, ziggurat_loom))]
mod model;
mod rate;
mod state;
mod window;

pub use self::{
    handle::{CircuitBreakerHandle, Transitions},
    judge::Judge,
    state::{CircuitStatus, State, Transition},
};

/// Stops calling a service that fails. See the [module documentation](self).
///
/// | setting | default | source of the default |
/// |---|---|---|
/// | [`over`](Self::over) | 30 s | Polly |
/// | [`min_calls`](Self::min_calls) | enough to distinguish the rate from chance | `tests/simulation` |
/// | [`open_for`](Self::open_for) | 0.5 s to 5 s, a twentieth of the outage, [`Jitter::Upward`] | `tests/simulation` |
/// | [`probes`](Self::probes), [`successes_to_close`](Self::successes_to_close) | 1 | Polly, Finagle, linkerd2 |
/// | [`cancelled`](Self::cancelled) | a failure if the service had its full time | |
#[must_use]
pub struct CircuitBreakerLayer<C = FailOnError, U = ResponseEnd> {
    slot: Arc<Slot>,
    classify: C,
    until: PhantomData<fn() -> U>,
}

/// How to count a call that is dropped before it ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Cancelled {
    /// A failure if the service had the whole limit of a [`TimeoutLayer`](crate::timeout::TimeoutLayer) inside, the
    /// attempt's timeout. If the surrounding [`Deadline`](crate::Deadline) passed earlier, the call was *abandoned*:
    /// this is a failure only while nothing at all comes back from the service. Otherwise the call is not counted.
    #[default]
    ByDeadline,
    /// A failure if the service had at least this duration, and otherwise as [`ByDeadline`](Self::ByDeadline).
    ///
    /// For attempts that are limited by something other than a layer of this crate. Each call reads the clock when it
    /// is admitted. (Together with [slow calls](CircuitBreakerLayer::slow_calls), the duration does not include the
    /// body.)
    After(Duration),
    /// Always a failure, for example if a foreign timeout is outside the circuit breaker.
    Failure,
    /// Never counted.
    Ignored,
}

/// The bounds of the open time by default.
pub(crate) const FIRST_OPEN_TIME: Duration = Duration::from_millis(500);
pub(crate) const LONGEST_OPEN_TIME: Duration = Duration::from_secs(5);

/// Open times that grow with the outage: with a factor of 1.05, each is about a twentieth of their sum so far. The end
/// of an outage is then noticed after a twentieth of it, and one probe in each open time is little load for a service
/// that is down. (`tests/simulation/recovery.rs` has the figures.)
pub(crate) fn open_times(first: Duration, longest: Duration) -> Backoff {
    Backoff::exponential(first).factor(1.05).max(longest).jitter(Jitter::Upward)
}

impl CircuitBreakerLayer {
    /// Opens when at least this fraction of the calls failed: 0.5, for example, is resilience4j's default.
    ///
    /// The rate is taken over the last 30 seconds, and must be [clear](self#what-counts). See [`over`](Self::over),
    /// [`over_calls`](Self::over_calls) and [`min_calls`](Self::min_calls).
    ///
    /// # Panics
    ///
    /// If `rate` is not above 0 and at most 1.
    #[track_caller]
    pub fn failure_rate(rate: f64) -> Self {
        Self::new(None, Some(part_of_one("rate", rate)))
    }

    /// Opens after this number of failures in a row.
    ///
    /// # Panics
    ///
    /// If `failures` is 0.
    #[track_caller]
    pub fn consecutive(failures: u32) -> Self {
        Self::new(Some(at_least_one("failures", failures)), None)
    }

    fn new(consecutive: Option<u32>, failure_rate: Option<f64>) -> Self {
        let open_for = open_times(FIRST_OPEN_TIME, LONGEST_OPEN_TIME);
        let policy = Policy {
            consecutive,
            failure_rate,
            slow: None,
            extent: Extent::Time(Duration::from_secs(30)),
            min_calls: None,
            open_for,
            probes: 1,
            successes_to_close: 1,
            timed: false,
            watch_only: false,
        };
        let settings = Settings { policy, cancelled: Cancelled::default(), info: layer_info!("circuit_breaker") };
        Self { slot: Slot::new(settings), classify: FailOnError, until: PhantomData }
    }
}

impl CircuitBreakerLayer<HttpStatus> {
    /// [`failure_rate(0.5)`](CircuitBreakerLayer::failure_rate) for HTTP, with [`HttpStatus`] as the classifier.
    pub fn http() -> Self {
        CircuitBreakerLayer::failure_rate(0.5).classify(HttpStatus)
    }
}

impl<C, U> CircuitBreakerLayer<C, U> {
    /// Also opens after this number of failures in a row, which reacts to an outage sooner than a rate.
    ///
    /// # Panics
    ///
    /// If `failures` is 0.
    #[track_caller]
    pub fn consecutive_failures(self, failures: u32) -> Self {
        at_least_one("failures", failures);
        self.set(|settings| settings.policy.consecutive = Some(failures))
    }

    /// Computes rates over a sliding time window.
    ///
    /// The window moves in ten steps, so it covers between nine tenths of `window` and all of it. Each call reads the
    /// clock when it ends.
    ///
    /// # Panics
    ///
    /// If `window` is zero.
    #[track_caller]
    pub fn over(self, window: Duration) -> Self {
        assert!(!window.is_zero(), "window must be longer than zero");
        self.set(|settings| settings.policy.extent = Extent::Time(window))
    }

    /// Computes rates over the last `calls` calls, however long ago they ended.
    ///
    /// If `calls` is above ten, the window moves in steps and holds at least `calls` and at most a fifth more.
    /// [`min_calls`](Self::min_calls) is capped at `calls`, and `calls` at ten million.
    ///
    /// # Panics
    ///
    /// If `calls` is 0.
    #[track_caller]
    pub fn over_calls(self, calls: u32) -> Self {
        at_least_one("calls", calls);
        self.set(|settings| settings.policy.extent = Extent::Calls(calls.min(MOST_CALLS)))
    }

    /// Sets the number of calls that are enough to know a rate: from then on, the circuit opens as soon as the fraction
    /// in the whole window is reached.
    ///
    /// The default is as many calls as it takes to [distinguish the rate from chance](self#what-counts), at least 20,
    /// and in a window [of calls](Self::over_calls) its size, at most 20. A number of your own opens the circuit
    /// sooner, but also by chance: with 20 calls and a rate of 0.5, a service that fails 45 % of its calls opens its
    /// circuit again and again.
    ///
    /// # Panics
    ///
    /// If `calls` is 0.
    #[track_caller]
    pub fn min_calls(self, calls: u32) -> Self {
        let min_calls = NonZeroU32::new(at_least_one("calls", calls));
        self.set(|settings| settings.policy.min_calls = min_calls)
    }

    /// Also opens when at least this fraction of the calls took longer than `longer_than`, successful or not.
    ///
    /// A probe that takes longer than `longer_than` fails. A call's time starts when the call is admitted. Each call
    /// reads the clock twice.
    ///
    /// # Panics
    ///
    /// If `rate` is not above 0 and at most 1.
    #[track_caller]
    pub fn slow_calls(self, longer_than: Duration, rate: f64) -> Self {
        part_of_one("rate", rate);
        self.set(|settings| settings.policy.slow = Some((longer_than, rate)))
    }

    /// Sets how long the circuit stays open: a [`Duration`], or a [`Backoff`] that grows each time the circuit opens
    /// again before it has closed.
    ///
    /// The failure that opens the circuit may carry a longer wait (a 503 with `Retry-After`). The circuit then stays
    /// open for that time, up to 300 s or the [maximum](Backoff::max) of the backoff if that is longer. A 429 to a
    /// single sender does not open the circuit at all.
    ///
    /// The minimum is one millisecond. A time that the clock cannot represent lasts until
    /// [`CircuitBreakerHandle::close`].
    #[track_caller]
    pub fn open_for(self, open_for: impl Into<Backoff>) -> Self {
        let open_for = open_for.into();
        self.set(|settings| settings.policy.open_for = open_for)
    }

    /// Sets the number of probes that a half-open circuit admits at the same time.
    ///
    /// # Panics
    ///
    /// If `probes` is 0.
    #[track_caller]
    pub fn probes(self, probes: usize) -> Self {
        assert!(probes > 0, "probes must be at least 1, not 0");
        self.set(|settings| settings.policy.probes = probes)
    }

    /// Sets the number of probes that must succeed to close the circuit.
    ///
    /// # Panics
    ///
    /// If `successes` is 0.
    #[track_caller]
    pub fn successes_to_close(self, successes: u32) -> Self {
        at_least_one("successes", successes);
        self.set(|settings| settings.policy.successes_to_close = successes)
    }

    /// Lets the circuit only watch: it counts calls and changes its state as always, but admits every call.
    ///
    /// Transitions, the metrics and [`status`](CircuitBreakerHandle::status) show what the circuit would do, for
    /// example before a new threshold applies to live traffic. The outcome of a call that would have been rejected
    /// changes nothing and emits no event, so a watched circuit changes state exactly as a rejecting circuit would. A
    /// circuit that is opened by hand admits every call too.
    /// [`set_watch_only`](CircuitBreakerHandle::set_watch_only) ends the watch.
    ///
    /// No event counts the calls that would have been rejected. The gauge of the state and the transitions are those of
    /// a rejecting circuit: [`CircuitStatus::is_watch_only`] separates the two.
    #[track_caller]
    pub fn watch_only(self) -> Self {
        self.set(|settings| settings.policy.watch_only = true)
    }

    /// Replaces the classifier [`FailOnError`], for example with [`HttpStatus`], a closure, or your own type.
    pub fn classify<D>(self, classify: D) -> CircuitBreakerLayer<D, U> {
        CircuitBreakerLayer { slot: self.slot, classify, until: PhantomData }
    }

    /// Ends a successful call with the end of its response's body, and makes it a failure if the body fails.
    ///
    /// - A body that is dropped while its reader waits for it was [cancelled](Self::cancelled).
    /// - A body that is dropped otherwise is a success, because the service had sent all that was asked for. A server
    ///   drops a body that it has sent completely, or does not need (HEAD). A reader that is slow or stops early is not
    ///   the service's fault. For the same reason, [slow calls](Self::slow_calls) are timed up to the response.
    /// - An error that contains a rejection is classified by the rejection. Any other error is a failure.
    /// - A body that panics does not count, however much of it was read.
    ///
    /// A response that is not a success is counted at once. The error type of the body becomes a boxed error.
    pub fn until_body_end(self) -> CircuitBreakerLayer<C, BodyEnd> {
        let Self { slot, classify, until: _ } = self;
        CircuitBreakerLayer { slot, classify, until: PhantomData }
    }

    /// Sets how to count a call that is dropped before it ends.
    #[track_caller]
    pub fn cancelled(self, cancelled: Cancelled) -> Self {
        self.set(|settings| {
            settings.cancelled = cancelled;
            settings.policy.timed = matches!(cancelled, Cancelled::After(_));
        })
    }

    /// Gives this layer a name, which its rejections and events carry.
    #[track_caller]
    pub fn named(self, name: impl Into<Cow<'static, str>>) -> Self {
        self.set(move |settings| settings.info = settings.info.clone().named(name))
    }

    /// Adds an observer of this layer's events. It is called after those that were added before.
    ///
    /// No lock is held while it runs, so it may open or close the circuit itself.
    #[track_caller]
    pub fn observer(self, observer: impl Observer) -> Self {
        self.set(|settings| settings.info = settings.info.clone().observer(observer))
    }

    /// Returns the handle to the circuit that all services of this layer share.
    ///
    /// A setting that is changed afterwards applies to the handle's circuit too, until the circuit is in use.
    ///
    /// # Panics
    ///
    /// The setters of a layer panic once the layer has a handle and its circuit is in use, by a service or by the
    /// handle. The handle's own setters apply at any time.
    #[must_use]
    pub fn handle(&self) -> CircuitBreakerHandle {
        self.slot.handle()
    }

    #[track_caller]
    fn set(self, change: impl FnOnce(&mut Settings)) -> Self {
        Self { slot: self.slot.set(change), ..self }
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

// By hand, here and for the service: a derive would require `U: Clone`.
impl<C: Clone, U> Clone for CircuitBreakerLayer<C, U> {
    #[inline]
    fn clone(&self) -> Self {
        Self { slot: Arc::clone(&self.slot), classify: self.classify.clone(), until: PhantomData }
    }
}

impl<S, C: Clone, U> Layer<S> for CircuitBreakerLayer<C, U> {
    type Service = CircuitBreaker<S, C, U>;

    fn layer(&self, inner: S) -> Self::Service {
        let (circuit, classify) = (self.slot.live().clone(), self.classify.clone());
        let kept = circuit.clone();
        keep_while(move || kept.machine().still_matters(clock::now));
        CircuitBreaker { inner, circuit, classify, asked: false, ready: false, until: PhantomData }
    }
}

impl<C, U> fmt::Debug for CircuitBreakerLayer<C, U> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CircuitBreakerLayer").field("circuit", &self.slot).field("classify", &type_name::<C>()).finish()
    }
}

/// The service of [`CircuitBreakerLayer`].
pub /* not a Service? see ziggurat::docs::it_does_not_compile */ struct CircuitBreaker<
    S,
    C = FailOnError,
    U = ResponseEnd,
> {
    inner: S,
    circuit: Circuit,
    classify: C,
    /// Whether `inner` was polled for readiness since its last call: it may hold a reservation.
    asked: bool,
    /// Whether that poll returned ready.
    ready: bool,
    until: PhantomData<fn() -> U>,
}

impl<S, C, U> CircuitBreaker<S, C, U> {
    inner_accessors!();
}

impl<S: Clone, C: Clone, U> Clone for CircuitBreaker<S, C, U> {
    #[inline]
    fn clone(&self) -> Self {
        Self {
            inner: self.inner.clone(),
            circuit: self.circuit.clone(),
            classify: self.classify.clone(),
            // The clone was not polled.
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

    #[inline]
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
        // Admitted only now, for a moment: an idle service that is ready must not hold a probe slot.
        let outcome: Result<S::Response, _> = Err(error);
        if let Ok(mut call) = self.circuit.admit() {
            call.ended(Class::of(&outcome, &self.classify), &outcome, Unsent(false));
        }
        Poll::Ready(outcome.map(drop))
    }

    #[inline]
    fn call(&mut self, request: Req) -> Self::Future {
        // The circuit was open when this service was polled, even if it no longer is.
        if !self.ready {
            let refused = self.circuit.check().err().unwrap_or(Refused { retry_after: Duration::ZERO });
            return self.refuse(refused);
        }
        self.ready = false;
        match self.circuit.admit() {
            // If the inner call panics, `call` is dropped, which records the panic.
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
    /// Replaces a service that was polled for readiness with a clone. Dropping it releases its reservation or its
    /// place in a queue, which would be held for a call that never comes.
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
    Refused(Circuit, Refused),
    // The call moved to the response's body, or was rejected while it waited.
    Passed,
}

pin_project! {
    /// The response future of [`CircuitBreaker`].
    #[must_use = "futures do nothing unless polled"]
    pub struct ResponseFuture<F, C, U = ResponseEnd> {
        // `None`: rejected or completed.
        #[pin]
        response: Option<F>,
        // Dropped after the response, whose cleanup is part of the call.
        admission: Admission,
        // Whether the call was in a local queue when it was last polled.
        waits: bool,
        // `true` while the response is polled, and after a poll that panicked.
        polling: bool,
        classify: C,
        until: PhantomData<fn() -> U>,
    }

    impl<F, C, U> PinnedDrop for ResponseFuture<F, C, U> {
        fn drop(this: Pin<&mut Self>) {
            let mut this = this.project();
            if let (true, Admission::Admitted(call)) = (this.response.is_some(), this.admission) {
                // A call that waited in a local queue says nothing about the service, however late it is.
                let (mut unsent, mut had_its_time) = (Unsent(false), HadItsTime(false));
                let entered = (ambient::enter(&mut unsent), ambient::enter(&mut had_its_time));
                this.response.set(None);
                drop(entered);
                if *this.polling {
                    call.panicked();
                }
                call.cancelled(Unsent(unsent.0 || caller::is_to_blame()), had_its_time);
                // For a circuit breaker outside this one.
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

    #[inline]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        let unsent;
        let outcome = match (this.response.as_mut().as_pin_mut(), &mut *this.admission) {
            (Some(response), Admission::Admitted(call)) => {
                if *this.waits
                    && let Err(refused) = call.admit_again()
                {
                    let rejection = rejected(call.info(), refused);
                    // Releases its place in the queue, or the permit that it has just acquired.
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
                return Poll::Ready(E::reject(rejected(circuit.info(), *refused)));
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
        // Without a body to follow, the call ends here. So does a call whose body is empty.
        if let Admission::Admitted(call) = this.admission {
            // Does nothing if the end is recorded already.
            call.body_ended(at_end);
        }
        Poll::Ready(outcome)
    }
}

#[cold]
fn rejected(info: &LayerInfo, Refused { retry_after }: Refused) -> Rejection {
    info.reject_with_retry_after(Reason::CircuitOpen, retry_after)
}

impl<F, C, U> fmt::Debug for ResponseFuture<F, C, U> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("circuit_breaker::ResponseFuture").field("admission", &self.admission).finish_non_exhaustive()
    }
}
