//! The cache for the upstream's responses.

use std::time::Duration;

use http::HeaderName;
use ziggurat::cache::{CacheLayer, HttpCacheLayer};

/// How the proxy caches, if it does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Caching {
    /// The memory for stored responses, in bytes. Without any, the proxy does not cache.
    pub(crate) capacity: usize,
    /// For a stored response after its expiry, to be used while the upstream fails.
    pub(crate) stale_if_error: Duration,
    /// The header by which the upstream addresses this cache, in place of `Cache-Control` (RFC 9213).
    pub(crate) targeted: Option<HeaderName>,
}

impl Default for Caching {
    fn default() -> Self {
        Self { capacity: 0, stale_if_error: Duration::from_secs(3600), targeted: None }
    }
}

impl Caching {
    pub(crate) fn layer(self) -> Option<HttpCacheLayer> {
        let Self { capacity, stale_if_error, targeted } = self;
        let layer = || CacheLayer::http().capacity(capacity).stale_if_error(stale_if_error);
        let layer = (capacity > 0).then(layer)?;
        Some(match targeted {
            Some(header) => layer.targeted(header),
            None => layer,
        })
    }
}
