//! The handle of a shared rate limit.

use std::sync::Arc;

use super::shared::Shared;
use crate::{clock, debug::impl_debug};

/// A handle to the live state of a shared rate limit in this process.
///
/// Clones refer to the same state.
#[derive(Clone)]
pub struct SharedRateLimitHandle {
    pub(super) shared: Arc<Shared>,
}

impl SharedRateLimitHandle {
    /// Returns whether the store is away, so that [`WhenAway`](super::WhenAway) decides.
    #[must_use]
    pub fn is_away(&self) -> bool {
        self.shared.link.is_away()
    }

    /// Returns the number of requests to the store so far, those that failed included.
    #[must_use]
    pub fn requests(&self) -> u64 {
        self.shared.link.requests()
    }

    /// Returns the number of tokens that this process has taken from the store, and not spent. Reads the clock, and
    /// looks at each key.
    #[must_use]
    pub fn leased(&self) -> u64 {
        let now = clock::now();
        self.shared.entries().iter().map(|entry| u64::from(entry.tokens(now))).sum()
    }

    /// Returns the number of calls that wait for the store. Looks at each key.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.shared.entries().iter().map(|entry| entry.waiting()).sum()
    }

    /// Returns the number of keys that are known, idle ones included.
    #[must_use]
    pub fn keys(&self) -> usize {
        self.shared.keys()
    }
}

impl_debug!(SharedRateLimitHandle {
    is_away = |this| this.is_away(),
    requests = |this| this.requests(),
    leased = |this| this.leased(),
    waiting = |this| this.waiting(),
    keys = |this| this.keys(),
});
