//! The number of the attempt that a call is.

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

/// The number of the attempt that the caller runs in: 1 for the first, and outside of any retry.
///
/// Every layer and service inside a [`RetryLayer`](crate::retry::RetryLayer) can ask, in `poll_ready`, `call`, and while its
/// response future is polled. Of nested retries the innermost answers. A spawned task starts at 1 again.
///
/// ```
/// assert_eq!(ziggurat::attempt(), 1);
/// ```
#[must_use]
pub fn attempt() -> u32 {
    get::<Attempt>().0
}
