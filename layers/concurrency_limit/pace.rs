//! Estimates how often permits are released, given the time and the number of permits released so far.
//!
//! The estimate needs no clock read where a permit is released. It is updated when a call finds no permit free: when it
//! is rejected, joins the queue, or reaches its turn. Between two of these moments the gate was full, and this number
//! of permits were released, unless the queue was empty in between. Such a gap is left out: few permits released in it
//! say nothing.

use std::time::Duration;

use crate::clock::Instant;

/// The assumed duration of a call before the first measurement: the initial wait of gRPC's backoff, and of the
/// retry's.
pub(super) const UNKNOWN: Duration = Duration::from_millis(100);

/// The bounds of the estimate that a rejection reports.
pub(super) const SHORTEST: Duration = Duration::from_millis(1);
pub(super) const LONGEST: Duration = Duration::from_secs(60);

/// A measurement is complete after this time, or after four times as many released permits as there are, at least
/// [`ENOUGH`]: calls that started together end together, and half as many would be measured twice as fast if the
/// measurement begins just before they end. Its result is the previous pace of the next measurement.
const WHOLE: Duration = Duration::from_secs(1);
const ENOUGH: u32 = 16;

/// After this time without an update, the gate may have been empty in between. An older estimate is no reason to
/// reject a call any more.
const QUIET: Duration = Duration::from_secs(10);

/// Longer times than this are forgotten by half, and no pace is slower.
const LONG: Duration = Duration::from_secs(3600);

/// The state of the gate since the previous update.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Gate {
    /// No permit was free.
    Full,
    /// The queue was empty for a part of that time.
    Gap,
    /// No permit is free now.
    Unknown,
}

/// Released permits are counted modulo two to the power of this. If more are released between two updates, the pace
/// is estimated slower than it is.
pub(super) const LEFT_BITS: u32 = 20;

/// The estimated pace at which permits are released.
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// The previous update, and the number of permits released by then.
    last: Option<(Instant, u32)>,
    /// The time of this measurement, and the number of permits released in it.
    time: Duration,
    released: u32,
    /// The time since an update last found that a permit was released.
    still: Duration,
    /// The interval between two released permits, from the previous measurements.
    known: Option<Duration>,
    /// Whether `known` is from before a quiet time.
    is_old: bool,
    /// Since when the queue has not been empty.
    busy_since: Option<Instant>,
}

impl Pace {
    /// Updates the estimate, while no permit is free and `limit` are in use.
    pub(super) fn look(&mut self, now: Instant, left: u32, limit: u32, gate: Gate) {
        let Some((before, left_before)) = self.last.replace((now, left)) else { return };
        let passed = now.saturating_duration_since(before);
        let released = left.wrapping_sub(left_before) & ((1 << LEFT_BITS) - 1);
        // If no permit was released, those in use are the same as before.
        let gap = gate == Gate::Gap || gate == Gate::Unknown && released > 0 && passed > QUIET;
        if released > 0 || gap {
            self.still = Duration::ZERO;
        }
        if gap && passed > WHOLE {
            (self.time, self.released, self.is_old) = (Duration::ZERO, 0, true);
        } else if !gap {
            self.time = self.time.saturating_add(passed);
            self.released = self.released.saturating_add(released);
            if released == 0 {
                self.still = self.still.saturating_add(passed);
            }
        }
        let limit = limit.max(1);
        let is_whole = self.time >= WHOLE || self.released >= limit.saturating_mul(4).max(ENOUGH);
        if is_whole && (self.is_trusted() || self.released >= limit) {
            // The first measurement has nothing to blend with, and so counts as many permits as there are.
            let known = self.blend(self.trusted(), if self.is_trusted() { limit } else { 0 });
            (self.known, self.is_old) = (Some(known.min(LONG)), false);
            (self.time, self.released) = (Duration::ZERO, 0);
        } else if self.time > LONG {
            (self.time, self.released) = (self.time / 2, self.released / 2);
        }
    }

    /// Updates the estimate for a call that joins the queue. Returns for how long the queue has not been empty.
    pub(super) fn join(&mut self, now: Instant, left: u32, limit: u32, was_empty: bool) -> Duration {
        self.look(now, left, limit, if was_empty { Gate::Gap } else { Gate::Full });
        let since = self.busy_since.filter(|_| !was_empty).unwrap_or(now);
        self.busy_since = Some(since);
        now.saturating_duration_since(since)
    }

    /// Returns the interval between two released permits, as if one more had been released at the previous pace. It
    /// is at least the time since a permit was last released, so it promises a caller nothing too good.
    pub(super) fn cautious(&self, limit: u32) -> Duration {
        self.blend(self.known.unwrap_or(UNKNOWN / limit.max(1)), 1).max(self.still)
    }

    /// Returns the interval between two released permits, as if `limit` more had been released at the previous pace,
    /// or at once before the first measurement. While no permit is released, the calls in flight explain that for as
    /// long as a call lasts, so a call is not rejected for it.
    pub(super) fn hopeful(&self, limit: u32) -> Duration {
        self.blend(self.trusted(), limit.max(1))
    }

    fn is_trusted(&self) -> bool {
        self.known.is_some() && !self.is_old
    }

    fn trusted(&self) -> Duration {
        self.known.filter(|_| !self.is_old).unwrap_or_default()
    }

    fn blend(&self, known: Duration, weight: u32) -> Duration {
        self.time.saturating_add(known.saturating_mul(weight)) / self.released.saturating_add(weight).max(1)
    }
}

#[cfg(all(test, not(ziggurat_loom)))]
mod tests;
