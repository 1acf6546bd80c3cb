//! The only place that names tokio's time: everything else is told the time, or asks here.
//!
//! It follows the runtime's clock, so a test on a paused clock moves every layer.

use std::sync::OnceLock;

pub(crate) use tokio::time::{Instant, Sleep, sleep, sleep_until, timeout_at};

/// The time of the runtime that this is called in; outside of a runtime, the system's monotonic clock.
pub(crate) fn now() -> Instant {
    Instant::now()
}

/// When this was called for the first time: an origin to count from. Times before it exist too, on a clock that was paused earlier.
pub(crate) fn first_asked() -> Instant {
    static FIRST: OnceLock<Instant> = OnceLock::new();
    *FIRST.get_or_init(now)
}
