//! The wait before the next attempt.

use std::time::Duration;

use crate::backoff::Backoff;

/// Computes the wait before the next attempt: see [`RetryLayer::backoff`](super::RetryLayer::backoff).
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a backoff for a retry",
    note = "give a `Backoff`, a `Duration`, or a closure `|attempt: u32, outcome: Result<&_, &_>| -> Duration {{ .. }}`"
)]
pub trait Wait<R, E> {
    /// Returns the wait after attempt number `attempt` (from 1) ended with `outcome`. `last` is the previous wait.
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

// Never applies: see `Classify`.
#[doc(hidden)]
#[diagnostic::do_not_recommend]
impl<R, E, F> Wait<R, E> for F
where
    [R]: Sized,
{
    fn wait(&self, _: u32, _: Duration, _: Result<&R, &E>) -> Duration {
        Duration::ZERO
    }
}
