//! Whether a wait is worthwhile: how long a call may wait, and how long the queue is expected to take.

use std::time::Duration;

use crate::clock::Instant;

/// How long a call without a deadline waits by default: as long as nginx and HAProxy are usually configured to wait for
/// a response, and longer than most callers do.
pub(super) const DEFAULT_MAX_WAIT: Duration = Duration::from_secs(30);

/// A queue that was not empty for this many times the duration of a call, within these bounds, is no burst any more:
/// more calls arrive than the service can serve.
const BURST: u32 = 10;
const SHORTEST_BURST: Duration = Duration::from_millis(100);
const LONGEST_BURST: Duration = Duration::from_secs(10);

/// Then as many calls wait as are in flight, and this many more. They keep the service busy, whatever the arrivals;
/// a longer queue would only make every answer later.
const SPARE: usize = 16;

/// The expectations of a call that joins the queue.
#[derive(Debug, Clone, Copy)]
pub(super) struct Forecast {
    /// The number of calls in front of it.
    pub(super) before: usize,
    /// The time until its turn.
    pub(super) wait: Duration,
    /// The time that a call has taken lately.
    pub(super) call: Duration,
    /// For how long the queue has not been empty.
    pub(super) busy: Duration,
}

/// How long a call may wait.
#[derive(Debug, Clone, Copy)]
pub(super) struct Patience {
    /// When it was called.
    pub(super) now: Instant,
    /// By when the call must have ended.
    pub(super) deadline: Option<Instant>,
    /// The time until its turn that the layer is set to allow.
    pub(super) max_wait: Option<Duration>,
    /// Whether it holds its permit for longer than until the deadline: until the end of a body.
    pub(super) outlasts_deadline: bool,
}

impl Patience {
    /// Returns when the wait ends, whether or not the call has its turn by then.
    pub(super) fn end(&self) -> Option<Instant> {
        let default = if self.deadline.is_none() { DEFAULT_MAX_WAIT } else { Duration::MAX };
        self.now.checked_add(self.max_wait.unwrap_or(default))
    }

    /// Whether to join the queue. The first in the queue always may: it finds out how fast the queue drains.
    pub(super) fn joins(&self, forecast: &Forecast) -> bool {
        let Forecast { before, wait, call, busy: _ } = *forecast;
        let has_its_turn = self.end().is_none_or(|end| wait <= end.saturating_duration_since(self.now));
        before == 0 || has_its_turn && self.has_time(wait, call)
    }

    /// Returns the number of calls that may wait.
    pub(super) fn places(&self, limit: usize, forecast: &Forecast) -> usize {
        let burst = forecast.call.saturating_mul(BURST).clamp(SHORTEST_BURST, LONGEST_BURST);
        let is_burst = self.max_wait.is_some() || forecast.busy <= burst;
        if is_burst { usize::MAX } else { limit.saturating_add(SPARE) }
    }

    /// Whether to start at `now`, when it is its turn.
    pub(super) fn starts(&self, now: Instant, call: Duration) -> bool {
        self.has_time(now.saturating_duration_since(self.now), call)
    }

    /// Whether enough time is left for a call after a wait: twice as long as calls lately took, because some take
    /// longer than others. A call whose deadline is too close for that may wait for half of its time, and so may one
    /// whose deadline is closer than calls lately took: it knows better how long it will take.
    fn has_time(&self, wait: Duration, call: Duration) -> bool {
        let Some(deadline) = self.deadline else { return true };
        let whole = deadline.saturating_duration_since(self.now);
        let needed = match () {
            () if self.outlasts_deadline => Duration::ZERO,
            () if call >= whole => whole / 2,
            () => call.saturating_mul(2).min(call.max(whole / 2)),
        };
        whole.checked_sub(wait).is_some_and(|left| left >= needed)
    }
}

#[cfg(all(test, not(ziggurat_loom)))]
mod tests;
