//! The mark of a stale response.

use std::time::Duration;

use http::{Extensions, Response};

use crate::outcome::Degraded;

/// Returns whether these are the extensions of a response that a layer inside has made in place of the service's.
#[cfg(feature = "http-cache")]
pub(super) fn is_substitute(extensions: &Extensions) -> bool {
    extensions.get::<Degraded>().is_some() || extensions.get::<Stale>().is_some()
}

/// Marks a response that had expired when a cache served it.
///
/// Over HTTP, [`mark`](Self::mark) puts it into the extensions of the response, where layers outside can find it.
/// [`HttpStorable`](super::HttpStorable) in a cache outside does not store such a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stale {
    pub(super) expired_for: Duration,
}

impl Stale {
    /// Returns how long ago the response expired.
    #[must_use]
    pub fn expired_for(&self) -> Duration {
        self.expired_for
    }

    /// Puts the mark into the extensions of `response`. Use it with
    /// [`CacheLayer::mark_stale`](super::CacheLayer::mark_stale).
    pub fn mark<B>(response: &mut Response<B>, stale: Self) {
        response.extensions_mut().insert(stale);
    }
}
