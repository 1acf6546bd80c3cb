//! The attempt number of a call.

use super::{get, slot};

/// The number of an attempt, from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Attempt(pub(crate) u32);

impl Default for Attempt {
    fn default() -> Self {
        Self(1)
    }
}

slot!(Attempt, Attempt(1));

/// Returns the number of the current attempt: 1 for the first, and outside any retry or hedge.
///
/// Every layer and service inside a [`RetryLayer`](crate::retry::RetryLayer) can call it in `poll_ready`, in `call`,
/// and while its response future is polled. With nested retries, the innermost counts. The second attempt of a
/// [`HedgeLayer`](crate::hedge::HedgeLayer) has the next number after the first. A spawned task starts at 1 again.
///
/// ```
/// assert_eq!(ziggurat::attempt(), 1);
/// ```
#[must_use]
pub fn attempt() -> u32 {
    get::<Attempt>().0
}
