//! Estimates how often permits are released, given the time and the number of permits released so far.
//!
//! The estimate is updated only when a call is rejected, so it sees nothing but the number of permits released in
//! between. It is the mean interval, as if one more permit had been released at the previous pace. This gives an
//! estimate before the first permit is released, keeps a single fast or slow call from dominating it, and lets it
//! grow while no permit is released.

use std::time::Duration;

use crate::clock::Instant;

/// The assumed duration of a call before the first measurement: the initial wait of gRPC's backoff, and of the
/// retry's.
pub(super) const UNKNOWN: Duration = Duration::from_millis(100);

/// The bounds of the estimate that a rejection reports.
pub(super) const SHORTEST: Duration = Duration::from_millis(1);
pub(super) const LONGEST: Duration = Duration::from_secs(60);

/// After this time a measurement is complete. Its result is the previous pace of the next measurement.
const WHOLE: Duration = Duration::from_secs(1);

/// After this time without a rejection, the gate may have been empty in between, so that few released permits say
/// nothing.
const QUIET: Duration = Duration::from_secs(10);

/// Released permits are counted modulo two to the power of this. If more are released during one measurement, the
/// pace is estimated slower than it is.
pub(super) const LEFT_BITS: u32 = 20;

/// The estimated pace at which permits are released.
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// The start of the measurement, and the number of permits released by then.
    since: Option<(Instant, u32)>,
    /// The interval between two released permits, from the previous measurement.
    known: Option<Duration>,
}

impl Pace {
    /// Returns the interval between two released permits, while none is free and `limit` are in use.
    pub(super) fn look(&mut self, now: Instant, left: u32, limit: u32) -> Duration {
        let known = self.known.unwrap_or(UNKNOWN / limit.max(1));
        let (began, before) = *self.since.get_or_insert((now, left));
        let passed = now.saturating_duration_since(began);
        let left_since = left.wrapping_sub(before) & ((1 << LEFT_BITS) - 1);
        let measured = passed.saturating_add(known) / (left_since + 1);
        if passed < WHOLE {
            return measured;
        }
        let pace = if passed > QUIET && left_since > 0 { measured.min(known) } else { measured };
        *self = Self { since: Some((now, left)), known: Some(pace.min(LONGEST)) };
        pace
    }
}

#[cfg(all(test, not(ziggurat_loom)))]
mod tests;
