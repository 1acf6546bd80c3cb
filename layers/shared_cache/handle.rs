//! The handle of a shared cache, and the state that its services share.

use std::{
    error::Error as StdError,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use super::entry;
use crate::{
    caught::caught,
    clock,
    debug::impl_debug,
    store::{Link, ValueStore},
};

/// How long a removal may take, and a call that began before it.
const REMOVAL: Duration = Duration::from_secs(1);
pub(super) const LONGEST_CALL: Duration = Duration::from_secs(60);

pub(super) struct Shared<St> {
    pub(super) store: St,
    pub(super) link: Link,
    /// The requests that put responses. A store that refuses them may still be read.
    pub(super) puts: Link,
    pub(super) hits: AtomicU64,
    pub(super) misses: AtomicU64,
}

impl<St> Shared<St> {
    pub(super) fn new(store: St) -> Self {
        Self { store, link: Link::default(), puts: Link::default(), hits: AtomicU64::new(0), misses: AtomicU64::new(0) }
    }
}

/// A handle to the live state of a shared cache.
///
/// Clones refer to the same state.
pub struct SharedCacheHandle<St> {
    pub(super) shared: Arc<Shared<St>>,
}

impl<St: ValueStore> SharedCacheHandle<St> {
    /// Removes the response of a key, for all processes.
    ///
    /// Once it has returned, no call that begins gets that response from the store, and no call that began before
    /// stores its response, if all responses of the key have the same ttl. A first level in front of the store still
    /// has the response, in each process: invalidate that of this process after the removal.
    ///
    /// # Errors
    ///
    /// If the store fails, or does not answer within a second. The response may still be there then.
    pub async fn remove(&self, key: &str) -> Result<(), Box<dyn StdError + Send + Sync>> {
        let put = async { self.shared.store.put(key, entry::removed(), LONGEST_CALL).await };
        match clock::timeout_at(clock::now() + REMOVAL, caught(put)).await {
            Some(Ok(Ok(()))) => Ok(()),
            Some(Ok(Err(error))) => Err(error.to_string().into()),
            Some(Err(panic)) => Err(panic.into()),
            None => Err(format!("no answer within {REMOVAL:?}").into()),
        }
    }

    /// Returns whether the store is away, so that each request makes its call.
    #[must_use]
    pub fn is_away(&self) -> bool {
        self.shared.link.is_away()
    }

    /// Returns the number of requests that this process has sent to the store, those that failed included. Removals do
    /// not count.
    #[must_use]
    pub fn requests(&self) -> u64 {
        self.shared.link.requests() + self.shared.puts.requests()
    }

    /// Returns the number of calls of this process whose response came from the store.
    #[must_use]
    pub fn hits(&self) -> u64 {
        self.shared.hits.load(Relaxed)
    }

    /// Returns the number of calls of this process whose response did not, although they had a key.
    #[must_use]
    pub fn misses(&self) -> u64 {
        self.shared.misses.load(Relaxed)
    }
}

// Manual: the store need not be `Clone`.
impl<St> Clone for SharedCacheHandle<St> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared) }
    }
}

impl<St> fmt::Debug for SharedCacheHandle<St> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.shared.fmt(f)
    }
}

impl_debug!(Shared<St> {
    is_away = |this| this.link.is_away(),
    requests = |this| this.link.requests(),
    hits = |this| this.hits.load(Relaxed),
    misses = |this| this.misses.load(Relaxed),
});
