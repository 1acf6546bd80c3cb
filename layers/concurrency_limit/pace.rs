//! How often permits come free: the estimate alone, told the time and how many have been given back.
//!
//! It is asked only when somebody is turned away, so all it knows of the time in between is how many left. It takes the mean, together
//! with one more permit at the pace that it knew before: so it has an answer before anybody left, a single call that is fast or slow
//! by chance does not turn it around, and while nobody leaves the answer grows with the time that this lasts.

use std::time::Duration;

use crate::clock::Instant;

/// As long as nothing is known, a call is taken to last so long: the first wait of gRPC's backoff, and of the retry's.
pub(super) const UNKNOWN: Duration = Duration::from_millis(100);

/// Nobody is told to come back sooner than this, or later than that.
pub(super) const SHORTEST: Duration = Duration::from_millis(1);
pub(super) const LONGEST: Duration = Duration::from_secs(60);

/// After so long a measurement is whole, and what comes out of it is what the next one knows.
const WHOLE: Duration = Duration::from_secs(1);

/// After so long without a question the gate may have been empty in between: that few left says nothing then.
const QUIET: Duration = Duration::from_secs(10);

/// Those who left are counted modulo two to the power of this. Should more than that leave during a measurement, the pace is taken to
/// be slower than it is.
pub(super) const LEFT_BITS: u32 = 20;

/// How often permits come free.
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// When the measurement began, and the count of those who had left by then.
    since: Option<(Instant, u32)>,
    /// The time from one permit to the next, as it was measured before.
    known: Option<Duration>,
}

impl Pace {
    /// The time from one permit that comes free to the next, of which none is free now and `limit` are in use.
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
