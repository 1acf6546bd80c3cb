//! How long a retry waits before the next attempt.

use std::time::Duration;

use crate::backoff::Backoff;

/// How long to wait before the next attempt: see [`RetryLayer::backoff`](super::RetryLayer::backoff).
#[diagnostic::on_unimplemented(
    message = "`{Self}` does not say how long to wait before the next attempt",
    note = "give a `Backoff`, a `Duration`, or a closure `|attempt: u32, outcome: Result<&_, &_>| -> Duration {{ .. }}`"
)]
pub trait Wait<R, E> {
    /// How long to wait after the attempt with this number (from 1) had this outcome; `last` is how long it was the last time.
    fn wait(&self, attempt: u32, last: Duration, outcome: Result<&R, &E>) -> Duration;
}

impl<R, E> Wait<R, E> for Backoff {
    fn wait(&self, attempt: u32, last: Duration, _: Result<&R, &E>) -> Duration {
        self.nth(attempt, last)
    }
}

impl<R, E> Wait<R, E> for Duration {
    fn wait(&self, _: u32, _: Duration, _: Result<&R, &E>) -> Duration {
        *self
    }
}

#[diagnostic::do_not_recommend]
impl<R, E, F> Wait<R, E> for F
where
    F: Fn(u32, Result<&R, &E>) -> Duration,
{
    fn wait(&self, attempt: u32, _: Duration, outcome: Result<&R, &E>) -> Duration {
        self(attempt, outcome)
    }
}
