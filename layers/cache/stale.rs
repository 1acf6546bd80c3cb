//! What tells a stale answer from a fresh one.

use std::time::Duration;

use http::Response;

/// Says that an answer had expired when a cache gave it.
///
/// Over HTTP, [`mark`](Self::mark) puts it into the extensions of the response, where whatever stands outside can find
/// it, and [`HttpStorable`](super::HttpStorable) in a cache outside does not store such a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stale {
    pub(super) expired_for: Duration,
}

impl Stale {
    /// How long ago the answer expired.
    #[must_use]
    pub fn expired_for(&self) -> Duration {
        self.expired_for
    }

    /// Puts it into the extensions of `response`: for [`CacheLayer::mark_stale`](super::CacheLayer::mark_stale).
    pub fn mark<B>(response: &mut Response<B>, stale: Self) {
        response.extensions_mut().insert(stale);
    }
}
