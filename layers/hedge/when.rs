//! When a hedge starts: after a delay, or at a percentile of the latencies seen.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

use super::latencies::Latencies;
use crate::{
    clock::{self, Instant},
    debug::impl_debug,
    mutex::Mutex,
    setting::Setting,
};

/// Decides when a hedge starts: [`After`] a delay, or at a [`Percentile`].
#[diagnostic::on_unimplemented(
    message = "`{Self}` does not say when a request of type `{Req}` is hedged",
    note = "`HedgeLayer::after(..)` takes a `Duration`, or a closure that names its argument's type: `|req: &{Req}| ..`, returning `Duration` or `Option<Duration>`"
)]
pub trait When<Req> {
    /// The clock of one call.
    #[doc(hidden)]
    type Clock: HedgeClock;

    /// Returns the clock of this request, or `None` if the layer does not apply to it.
    #[doc(hidden)]
    fn clock(&self, request: &Req) -> Option<Self::Clock>;
}

/// The clock of one call. If it is dropped, the first attempt has ended without success, or was dropped.
#[doc(hidden)] // machinery that is public only because it is part of a public trait
pub trait HedgeClock {
    /// Starts, as the first attempt is pending for the first time. Returns the time until the hedge, or `None` if it
    /// has no time.
    fn start(&mut self) -> Option<Duration>;

    /// Records that the hedge was due.
    fn is_due(&mut self);

    /// Records that the first attempt succeeded.
    fn answered(self);
}

/// Hedges after a delay: see [`HedgeLayer::after`](super::HedgeLayer::after).
#[derive(Clone)]
pub struct After<D>(pub(super) D);

impl<D, Req> When<Req> for After<D>
where
    D: Setting<Req, Duration>,
{
    type Clock = Delay;

    fn clock(&self, request: &Req) -> Option<Delay> {
        self.0.get(request).map(Delay)
    }
}

impl_debug!(After<D>(D));

/// A fixed delay.
#[derive(Debug)]
#[doc(hidden)] // machinery that is public only because it is part of a public trait
pub struct Delay(Duration);

impl HedgeClock for Delay {
    fn start(&mut self) -> Option<Duration> {
        Some(self.0)
    }

    fn is_due(&mut self) {}

    fn answered(self) {}
}

/// Hedges at a percentile of the latencies seen: see [`HedgeLayer::at_percentile`](super::HedgeLayer::at_percentile).
#[derive(Clone)]
pub struct Percentile {
    shared: Arc<Shared>,
}

/// Finagle's figure. The timer is no more precise.
const MIN_DELAY: Duration = Duration::from_millis(1);

/// The number of calls beyond the percentile that have to be expected among those seen.
const ENOUGH_SLOW_CALLS: f64 = 5.0;

/// No percentile yet.
const UNKNOWN: u64 = u64::MAX;

struct Shared {
    latencies: Mutex<Latencies>,
    /// The percentile of the latencies in nanoseconds, or `UNKNOWN`. A copy, to be read without the lock.
    known: AtomicU64,
    min_delay: AtomicU64,
    /// Zero: it follows the percentile.
    min_calls: AtomicU32,
    /// The bits of the percentile, changed under the lock of `latencies`.
    percentile: AtomicU64,
    /// Whether a user holds a handle. If so, setters of the layer apply to this state instead of starting a new one.
    is_held: AtomicBool,
}

impl Percentile {
    #[track_caller]
    pub(super) fn new(percentile: f64) -> Self {
        Self::with(checked(percentile), MIN_DELAY, 0)
    }

    fn with(percentile: f64, min_delay: Duration, min_calls: u32) -> Self {
        let shared = Shared {
            latencies: Mutex::new(Latencies::new(percentile, enough(percentile, min_calls))),
            known: AtomicU64::new(UNKNOWN),
            min_delay: AtomicU64::new(nanos(min_delay)),
            min_calls: AtomicU32::new(min_calls),
            percentile: AtomicU64::new(percentile.to_bits()),
            is_held: AtomicBool::new(false),
        };
        Self { shared: Arc::new(shared) }
    }

    // Changing a layer that has no handle starts a new state, so that the layer's clones keep theirs.

    pub(super) fn but_min_delay(self, min_delay: Duration) -> Self {
        let shared = &self.shared;
        if !shared.is_held.load(Ordering::Relaxed) {
            return Self::with(shared.percentile(), min_delay, shared.min_calls.load(Ordering::Relaxed));
        }
        shared.min_delay.store(nanos(min_delay), Ordering::Relaxed);
        self
    }

    #[track_caller]
    pub(super) fn but_min_calls(self, min_calls: u32) -> Self {
        assert!(min_calls > 0, "min_calls must be at least 1: without a call there is no percentile");
        let shared = &self.shared;
        if !shared.is_held.load(Ordering::Relaxed) {
            return Self::with(shared.percentile(), shared.min_delay(), min_calls);
        }
        shared.change(|_, calls| *calls = min_calls);
        self
    }

    /// Returns a handle for a user, and marks the state as shared with it.
    pub(super) fn held(&self) -> HedgeHandle {
        self.shared.is_held.store(true, Ordering::Relaxed);
        HedgeHandle { shared: Arc::clone(&self.shared) }
    }
}

impl Shared {
    fn percentile(&self) -> f64 {
        f64::from_bits(self.percentile.load(Ordering::Relaxed))
    }

    fn min_delay(&self) -> Duration {
        Duration::from_nanos(self.min_delay.load(Ordering::Relaxed))
    }

    /// Returns the delay of a call that starts now, if enough calls were seen.
    fn delay(&self) -> Option<Duration> {
        let known = self.known.load(Ordering::Relaxed);
        (known != UNKNOWN).then(|| Duration::from_nanos(known).max(self.min_delay()))
    }

    fn change(&self, change: impl FnOnce(&mut f64, &mut u32)) {
        let mut latencies = self.latencies.lock();
        let (mut percentile, mut calls) = (self.percentile(), self.min_calls.load(Ordering::Relaxed));
        change(&mut percentile, &mut calls);
        self.percentile.store(percentile.to_bits(), Ordering::Relaxed);
        self.min_calls.store(calls, Ordering::Relaxed);
        latencies.set_percentile(percentile, enough(percentile, calls));
        self.publish(&latencies);
    }

    /// Records a latency. While another thread records one, this one is left out, so that no call waits for the lock.
    fn record(&self, record: impl FnOnce(&mut Latencies)) {
        if let Some(mut latencies) = self.latencies.try_lock() {
            record(&mut latencies);
            self.publish(&latencies);
        }
    }

    fn publish(&self, latencies: &Latencies) {
        self.known.store(latencies.percentile().map_or(UNKNOWN, nanos), Ordering::Relaxed);
    }
}

impl<Req> When<Req> for Percentile {
    type Clock = Latency;

    fn clock(&self, _: &Req) -> Option<Latency> {
        Some(Latency { shared: Some(Arc::clone(&self.shared)), start: None, is_due: false })
    }
}

impl_debug!(Percentile {
    percentile = |this| this.shared.percentile(),
    delay = |this| this.shared.delay(),
});

/// Measures the latency of a first attempt.
#[doc(hidden)] // machinery that is public only because it is part of a public trait
pub struct Latency {
    // None: the latency was recorded.
    shared: Option<Arc<Shared>>,
    // None: the attempt was not pending yet.
    start: Option<Instant>,
    is_due: bool,
}

impl HedgeClock for Latency {
    fn start(&mut self) -> Option<Duration> {
        self.start.get_or_insert_with(clock::now);
        self.shared.as_ref()?.delay()
    }

    fn is_due(&mut self) {
        self.is_due = true;
    }

    fn answered(mut self) {
        let Some(shared) = self.shared.take() else { return };
        match self.start {
            Some(start) => {
                let now = clock::now();
                shared.record(|latencies| latencies.answered(now.saturating_duration_since(start), now));
            }
            None => shared.record(Latencies::answered_at_once),
        }
    }
}

impl Drop for Latency {
    fn drop(&mut self) {
        if let (Some(shared), Some(start)) = (&self.shared, self.start) {
            let now = clock::now();
            let age = now.saturating_duration_since(start);
            shared.record(|latencies| latencies.lasted(age, self.is_due, now));
        }
    }
}

impl_debug!(Latency { start, is_due, .. });

/// A handle to the live state of a [`HedgeLayer`](super::HedgeLayer) that hedges at a percentile.
///
/// Clones refer to the same state. A change takes effect with the next call.
#[derive(Clone)]
pub struct HedgeHandle {
    shared: Arc<Shared>,
}

impl HedgeHandle {
    /// Returns the delay after which a call that starts now would be hedged, or `None` if too few calls were seen.
    #[must_use]
    pub fn delay(&self) -> Option<Duration> {
        self.shared.delay()
    }

    /// Returns the percentile, from 0 to 1.
    #[must_use]
    pub fn percentile(&self) -> f64 {
        self.shared.percentile()
    }

    /// Changes the percentile. The latencies seen so far still count.
    ///
    /// # Panics
    ///
    /// Panics if `percentile` is not between 0 and 1.
    #[track_caller]
    pub fn set_percentile(&self, percentile: f64) {
        let percentile = checked(percentile);
        self.shared.change(|current, _| *current = percentile);
    }

    /// Changes the minimum delay: see [`HedgeLayer::min_delay`](super::HedgeLayer::min_delay).
    pub fn set_min_delay(&self, min_delay: Duration) {
        self.shared.min_delay.store(nanos(min_delay), Ordering::Relaxed);
    }
}

impl_debug!(HedgeHandle {
    percentile = |this| this.percentile(),
    min_delay = |this| this.shared.min_delay(),
    delay = |this| this.delay(),
});

#[track_caller]
fn checked(percentile: f64) -> f64 {
    assert!(percentile > 0.0 && percentile < 1.0, "percentile must be between 0 and 1, not {percentile}: 0.95 for p95");
    percentile
}

fn enough(percentile: f64, min_calls: u32) -> u32 {
    match min_calls {
        0 => (ENOUGH_SLOW_CALLS / (1.0 - percentile)).round() as u32,
        calls => calls,
    }
}

fn nanos(time: Duration) -> u64 {
    // Below `UNKNOWN`.
    u64::try_from(time.as_nanos()).unwrap_or(UNKNOWN).min(UNKNOWN - 1)
}
