//! The settings of an adaptive limit, and the service inside the limit that measures how long calls take.

use std::{
    fmt,
    future::Future,
    ops::RangeInclusive,
    pin::Pin,
    sync::{
        Arc, MutexGuard,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use pin_project_lite::pin_project;
use tower_service::Service;

use super::{
    gate::{ConcurrencyLimitHandle, MOST, nanos},
    limiter::{Algorithm, Limiter, Step},
};
use crate::{
    accessors::inner_accessors,
    ambient::deadline,
    clock::{self, Instant},
    mutex::Mutex,
    outcome::{Class, Classify, FailOnError, HttpStatus, Reject},
};

/// How a [`ConcurrencyLimitLayer::adaptive`](super::ConcurrencyLimitLayer::adaptive) limit follows the
/// capacity of the service.
///
/// | setting | default | source |
/// |---|---|---|
/// | start | 20 | Netflix's concurrency-limits |
/// | [`between`](Self::between) | 1 and 1000 | 1000 is its maximum too |
///
/// # Which calls count
///
/// A call counts from its admission to the response; the time in this layer's queue is not part of it. A call that the
/// [class](Class) says was served is a measurement. A transient failure counts as dropped, and so does a call that its
/// deadline ended after at least twice the time that calls lately took. A permanent failure, a declined request, an
/// ignored outcome, and a call that its caller cancelled say nothing. Calls lower or raise the limit only while some
/// call finds no permit free: otherwise nothing is known about another limit. While less than half of the permits are
/// in use, most calls are not measured, and cost no clock read. With
/// [`until_body_end`](super::ConcurrencyLimitLayer::until_body_end) a call is measured to the response's head, so the
/// limit does not see that bodies are slow. Whenever bodies hold all permits and another call arrives, the limit rises
/// by a quarter, because no call could end that would raise it. [Exempt](super::Priority::Exempt) calls do not count.
#[derive(Clone)]
#[must_use]
pub struct Adaptive<C = FailOnError> {
    algorithm: Algorithm,
    bounds: RangeInclusive<usize>,
    start: usize,
    classify: C,
}

impl Adaptive {
    /// Follows the latency: the limit is a quarter above the calls that the service serves at a time without a queue of
    /// its own.
    ///
    /// A step takes 100 calls, or twice as many as the limit. At first it takes 20, or as many as the limit, and the
    /// limit doubles with each step in which a fourth of the calls finds it full, until the latency shows a queue in
    /// the service. Then it changes by the quotient of the latency without a queue and the latency of the step, times
    /// 1.25, and falls by 30 % at most. Every twentieth step runs with half of the limit, and measures the latency
    /// without a queue: if the latency falls with the limit, a part of it was a queue's. If it falls further than a
    /// queue can explain, the service has recovered from being slow, and the limit returns to where it fell from.
    /// (Netflix's gradient; TCP's slow start; and TCP BBR's probes for the shortest round trip, which keep it from
    /// taking a lasting queue for the service.) Dropped calls lower the limit as in [`aimd`](Self::aimd).
    pub fn gradient() -> Self {
        Self::new(Algorithm::Gradient)
    }

    /// Follows dropped calls alone: additive increase, multiplicative decrease.
    ///
    /// A step of 100 calls raises the limit by a tenth, at least by one. If one in ten calls is dropped, the step ends,
    /// and the limit falls by the share of dropped calls, at least by a tenth and at most by half. If calls are dropped
    /// as often at a limit that is lower by more than that share, the limit is not the reason: it returns, and 200
    /// steps ignore dropped calls. Use it for a service that rejects calls early, and whose latency says little.
    pub fn aimd() -> Self {
        Self::new(Algorithm::Aimd)
    }

    fn new(algorithm: Algorithm) -> Self {
        Self { algorithm, bounds: 1..=1000, start: 20, classify: FailOnError }
    }
}

impl Adaptive<HttpStatus> {
    /// [`gradient`](Adaptive::gradient) for HTTP, with [`HttpStatus`] as the classifier.
    pub fn http() -> Self {
        Adaptive::gradient().classify(HttpStatus)
    }
}

impl<C> Adaptive<C> {
    /// Sets the lowest and the highest limit. The limit starts at 20, or at the nearer of the two. A limit above
    /// 8,388,607 is clamped to that value.
    ///
    /// # Panics
    ///
    /// Panics if the lowest limit is zero or above the highest.
    #[track_caller]
    pub fn between(mut self, bounds: RangeInclusive<usize>) -> Self {
        assert!(*bounds.start() > 0, "the lowest limit must be at least 1: with no permits nothing could ever pass");
        assert!(!bounds.is_empty(), "the lowest limit must not be above the highest, as in {bounds:?}");
        self.bounds = bounds;
        self
    }

    /// Replaces the classifier [`FailOnError`], for example with [`HttpStatus`].
    pub fn classify<D>(self, classify: D) -> Adaptive<D> {
        let Self { algorithm, bounds, start, classify: _ } = self;
        Adaptive { algorithm, bounds, start, classify }
    }

    /// Creates a gate, and the pilot that sets its limit.
    pub(super) fn gate(self) -> (ConcurrencyLimitHandle, Steered<C>) {
        let (lowest, highest) = self.bounds.into_inner();
        let limiter = Limiter::new(self.algorithm, lowest.min(MOST)..=highest.min(MOST), self.start);
        let gate = ConcurrencyLimitHandle::new(limiter.limit());
        let pilot = Pilot {
            gate: gate.clone(),
            needed: AtomicU32::new(limiter.calls_of_a_step()),
            enough_dropped: AtomicU32::new(limiter.drops_of_a_step()),
            measures_all: AtomicBool::new(limiter.measures_all()),
            number: AtomicU64::new(0),
            calls: AtomicU32::new(0),
            dropped: AtomicU32::new(0),
            nanos: AtomicU64::new(0),
            usual: AtomicU64::new(0),
            limiter: Mutex::new(limiter),
        };
        let pilot = Arc::new(pilot);
        let weak = Arc::downgrade(&pilot);
        gate.watch_bodies(Box::new(move |permits| {
            if let Some(pilot) = weak.upgrade() {
                pilot.exceed(permits);
            }
        }));
        (gate, Steered { pilot, classify: self.classify })
    }
}

/// The part of a layer that makes its limit adaptive. [`Fixed`] does not.
#[doc(hidden)] // machinery that is public only because it is part of a public type
#[derive(Debug, Clone)]
pub struct Steered<C> {
    pilot: Arc<Pilot>,
    classify: C,
}

/// A limit that changes only by its handle.
#[doc(hidden)] // machinery that is public only because it is part of a public type
#[derive(Debug, Clone, Copy)]
pub struct Fixed;

impl<C> Steered<C> {
    pub(super) fn classify<D>(self, classify: D) -> Steered<D> {
        Steered { pilot: self.pilot, classify }
    }

    pub(super) fn pilot(&self) -> Arc<Pilot> {
        Arc::clone(&self.pilot)
    }
}

impl<C: Clone> Steered<C> {
    /// Measures the calls of `inner`, which is inside the limit.
    pub(super) fn measure<S>(&self, inner: S) -> Measured<S, C> {
        Measured { inner, pilot: Arc::clone(&self.pilot), classify: self.classify.clone() }
    }
}

impl<C> fmt::Debug for Adaptive<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Adaptive")
            .field("algorithm", &self.algorithm)
            .field("between", &self.bounds)
            .field("start", &self.start)
            .finish_non_exhaustive()
    }
}

/// Gathers measurements into steps, and sets the limit after each.
pub(crate) struct Pilot {
    gate: ConcurrencyLimitHandle,
    /// The numbers of calls, and of dropped calls, that complete a step, and the number of steps so far.
    needed: AtomicU32,
    enough_dropped: AtomicU32,
    /// Whether calls count while less than half of the permits are in use. Most say nothing about the limit then, and
    /// without a measurement they cost less.
    measures_all: AtomicBool,
    number: AtomicU64,
    calls: AtomicU32,
    dropped: AtomicU32,
    nanos: AtomicU64,
    /// The mean latency of the last step, in nanoseconds.
    usual: AtomicU64,
    limiter: Mutex<Limiter>,
}

impl Pilot {
    /// Counts a call that began in step `number`. One that began in an earlier step ran with another limit, and does
    /// not count.
    fn count(&self, number: u64, latency: Option<Duration>) {
        if self.number.load(Ordering::Relaxed) != number {
            return;
        }
        if let Some(latency) = latency {
            self.nanos.fetch_add(nanos(latency), Ordering::Relaxed);
        }
        let counter = if latency.is_some() { &self.calls } else { &self.dropped };
        counter.fetch_add(1, Ordering::Relaxed);
        let dropped = self.dropped.load(Ordering::Relaxed);
        let counted = self.calls.load(Ordering::Relaxed).saturating_add(dropped);
        if counted >= self.needed.load(Ordering::Relaxed) || dropped >= self.enough_dropped.load(Ordering::Relaxed) {
            self.step(number);
        }
    }

    /// Changes the lowest and the highest limit.
    pub(crate) fn set_bounds(&self, lowest: usize, highest: usize) {
        let mut limiter = self.limiter.lock();
        limiter.set_bounds(lowest, highest.min(MOST));
        self.apply(limiter);
    }

    fn exceed(&self, permits: usize) {
        let mut limiter = self.limiter.lock();
        limiter.exceed(permits);
        self.apply(limiter);
    }

    #[cold]
    fn step(&self, number: u64) {
        let mut limiter = self.limiter.lock();
        if self.number.load(Ordering::Relaxed) != number {
            return;
        }
        // A call that ends right now may count for the next step: one in a hundred.
        let step = Step {
            calls: self.calls.swap(0, Ordering::Relaxed),
            latency: Duration::from_nanos(self.nanos.swap(0, Ordering::Relaxed)),
            dropped: self.dropped.swap(0, Ordering::Relaxed),
            found_full: self.gate.take_found_full(),
        };
        if let Some(mean) = step.latency.checked_div(step.calls) {
            self.usual.store(nanos(mean), Ordering::Relaxed);
        }
        limiter.step(step);
        self.number.store(number + 1, Ordering::Relaxed);
        self.apply(limiter);
    }

    fn apply(&self, limiter: MutexGuard<'_, Limiter>) {
        self.needed.store(limiter.calls_of_a_step(), Ordering::Relaxed);
        self.enough_dropped.store(limiter.drops_of_a_step(), Ordering::Relaxed);
        self.measures_all.store(limiter.measures_all(), Ordering::Relaxed);
        // `set_limit` wakes callers, whose wakers are foreign code, so it runs without the lock. Looks again, because
        // another step may have been faster.
        drop(limiter);
        loop {
            let limit = self.limiter.lock().limit();
            if limit == self.gate.limit() {
                return;
            }
            self.gate.set_limit(limit);
        }
    }
}

impl fmt::Debug for Pilot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pilot").field("gate", &self.gate).finish_non_exhaustive()
    }
}

/// The service inside an adaptive limit.
#[doc(hidden)] // machinery that is public only because it is part of a public type
#[derive(Debug, Clone)]
pub struct Measured<S, C = FailOnError> {
    inner: S,
    pilot: Arc<Pilot>,
    classify: C,
}

impl<S, C> Measured<S, C> {
    inner_accessors!();
}

impl<S, C, Req> Service<Req> for Measured<S, C>
where
    S: Service<Req>,
    S::Error: Reject<S::Response>,
    C: Classify<S::Response, S::Error> + Clone,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = MeasuredFuture<S::Future, C>;

    #[inline]
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    #[inline]
    fn call(&mut self, request: Req) -> Self::Future {
        let call = (!self.pilot.gate.take_exempt()).then(|| Call::begin(&self.pilot)).flatten();
        let response = self.inner.call(request);
        MeasuredFuture { response, call, classify: self.classify.clone() }
    }
}

/// A call that is measured.
#[derive(Debug)]
struct Call {
    pilot: Arc<Pilot>,
    /// The step in which it began.
    number: u64,
    began: Instant,
}

impl Call {
    fn begin(pilot: &Arc<Pilot>) -> Option<Self> {
        let counts = pilot.gate.is_half_full() || pilot.measures_all.load(Ordering::Relaxed);
        let number = || pilot.number.load(Ordering::Relaxed);
        counts.then(|| Self { pilot: Arc::clone(pilot), number: number(), began: clock::now() })
    }

    fn latency(&self) -> Duration {
        clock::now().saturating_duration_since(self.began)
    }

    /// Whether the service had more time for it than calls lately took.
    fn had_time(&self) -> bool {
        self.latency() >= Duration::from_nanos(self.pilot.usual.load(Ordering::Relaxed)).saturating_mul(2)
    }

    fn served(self) {
        self.pilot.count(self.number, Some(self.latency()));
    }

    fn dropped(self) {
        self.pilot.count(self.number, None);
    }
}

pin_project! {
    /// The response future of [`Measured`].
    #[doc(hidden)] // machinery that is public only because it is part of a public type
    #[derive(Debug)]
    #[must_use = "futures do nothing unless polled"]
    pub struct MeasuredFuture<F, C> {
        #[pin]
        response: F,
        // None: it has ended, or does not count.
        call: Option<Call>,
        classify: C,
    }

    impl<F, C> PinnedDrop for MeasuredFuture<F, C> {
        fn drop(this: Pin<&mut Self>) {
            // Not one that its caller cancelled.
            if let Some(call) = this.project().call.take() && deadline::has_passed() && call.had_time() {
                call.dropped();
            }
        }
    }
}

impl<F, C, R, E> Future for MeasuredFuture<F, C>
where
    F: Future<Output = Result<R, E>>,
    E: Reject<R>,
    C: Classify<R, E>,
{
    type Output = Result<R, E>;

    #[inline]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let outcome = ready!(this.response.poll(cx));
        if let Some(call) = this.call.take() {
            match Class::of(&outcome, this.classify) {
                Class::Success => call.served(),
                Class::Failure { transient: true, .. } => call.dropped(),
                _ => {}
            }
        }
        Poll::Ready(outcome)
    }
}

#[cfg(all(test, not(ziggurat_loom)))]
mod tests {
    use super::*;

    /// The gate would otherwise never have the limit that the pilot sets, again and again.
    #[test]
    fn a_limit_beyond_what_a_gate_can_count_is_clamped() {
        let (gate, steered) = Adaptive::gradient().between(MOST + 5..=usize::MAX).gate();
        assert_eq!(gate.limit(), MOST);
        steered.pilot().set_bounds(MOST + 1, MOST + 3);
        assert_eq!(gate.limit(), MOST);
    }
}
