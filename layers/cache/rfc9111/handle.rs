//! The handle to the live state of an HTTP cache.

use std::sync::{
    Arc, OnceLock,
    atomic::{AtomicUsize, Ordering::Relaxed},
};

use http::Uri;

use super::{
    super::{
        handle::{Counts, Stats},
        http::HttpKey,
    },
    fill::Room,
    flights::Flights,
    pages::Pages,
    second::Second,
};
use crate::{debug::impl_debug, store::Awaited};

/// The live state of a [`CacheLayer::http`](super::super::CacheLayer::http), which all its services share.
///
/// The layer returns it from [`handle`](super::HttpCacheLayer::handle). Clones are cheap and refer to the same cache.
#[derive(Clone)]
pub struct HttpCacheHandle {
    pub(super) state: Arc<State>,
}

pub(super) struct State {
    capacity: AtomicUsize,
    pub(super) pages: Pages,
    /// For all bodies in memory: twice the capacity, so that others than the stored ones have a place too.
    pub(super) room: Arc<Room>,
    pub(super) flights: Arc<Flights>,
    pub(super) counts: Counts,
    pub(super) second: OnceLock<Arc<Second>>,
}

impl State {
    pub(super) fn new(capacity: usize) -> Self {
        let (flights, counts, second) = Default::default();
        let (pages, room) = (Pages::new(capacity), Room::new(capacity.saturating_mul(2)));
        Self { capacity: capacity.into(), pages, room, flights, counts, second }
    }

    pub(super) fn capacity(&self) -> usize {
        self.capacity.load(Relaxed)
    }

    pub(super) fn set_capacity(&self, capacity: usize) {
        self.capacity.store(capacity, Relaxed);
        self.room.set_limit(capacity.saturating_mul(2));
        drop(self.flights.detach(&[], || self.pages.resize(capacity)));
    }

    /// Removes expired responses.
    fn sweep(&self) {
        drop(self.flights.detach(&[], || self.pages.sweep()));
    }

    /// Removes the responses of resources, however requests have named their scheme and port. Returns the wait for the
    /// second level, or `None` if there is nothing to wait for.
    pub(super) fn invalidate(&self, keys: &[HttpKey]) -> Option<Awaited<()>> {
        // From now on, no request takes one from there.
        let removal = self.forget(keys);
        let keys: Vec<_> = keys.iter().flat_map(HttpKey::in_any_scheme).collect();
        drop(self.flights.detach(&keys, || keys.iter().map(|key| self.pages.remove(key)).collect::<Vec<_>>()));
        removal
    }

    /// Removes the responses of resources from the second level.
    pub(super) fn forget(&self, keys: &[HttpKey]) -> Option<Awaited<()>> {
        self.second.get().and_then(|second| second.remove(keys))
    }

    fn forget_all(&self) {
        if let Some(second) = self.second.get() {
            second.ignore_all();
        }
    }
}

impl HttpCacheHandle {
    /// Removes all responses of the resource with this URI: for every method, range and `Vary`.
    ///
    /// A request in flight for the resource does not bring them back: its callers get the response, but it is not
    /// stored, and later requests start their own.
    ///
    /// The URI names the host that requests name, such as `http://shop.test/prices?page=1`. Its scheme does not matter,
    /// nor does the port that is the default.
    /// A URI without a host is that of requests without one.
    ///
    /// In a [second level](super::HttpCacheLayer::second_level), the responses are removed for all processes. This does
    /// not wait for that, but no request to this process gets one of them from now on, and a removal that fails is
    /// repeated until the store is back. The memory of other processes is not touched.
    pub fn invalidate(&self, uri: &Uri) {
        drop(self.state.invalidate(&[HttpKey::from(uri.clone())]));
    }

    /// Removes the responses of all resources that match `predicate`, such as those below a path. Returns the number of
    /// responses.
    ///
    /// As with [`invalidate`](Self::invalidate), requests in flight for such resources do not bring them back.
    ///
    /// From a [second level](super::HttpCacheLayer::second_level), nothing is removed, because a store cannot list its
    /// responses. This process ignores all that are there now.
    ///
    /// `predicate` may run several times for a resource. No lock is held while it runs. The cost is proportional to the
    /// number of responses.
    ///
    /// ```
    /// # use ziggurat::cache::CacheLayer;
    /// let cache = CacheLayer::http().handle();
    /// assert_eq!(cache.invalidate_if(|key| key.path().starts_with("/prices/")), 0);
    /// ```
    pub fn invalidate_if(&self, predicate: impl Fn(&HttpKey) -> bool) -> usize {
        let State { pages, flights, .. } = &*self.state;
        self.state.forget_all();
        let keys: Vec<_> = flights.keys().into_iter().filter(&predicate).collect();
        flights.detach(&keys, || {});
        pages.remove_if(predicate)
    }

    /// Removes all responses. As with [`invalidate`](Self::invalidate), requests in flight do not bring any back.
    ///
    /// From a [second level](super::HttpCacheLayer::second_level), nothing is removed, but this process uses no
    /// response that is there now. Other processes do: change the prefix of the store to forget all.
    pub fn clear(&self) {
        self.state.forget_all();
        drop(self.state.flights.detach_all(|| self.state.pages.clear()));
    }

    /// Returns the number of stored responses, and removes those that have expired. The cost is proportional to that
    /// number.
    #[must_use]
    pub fn len(&self) -> usize {
        self.state.sweep();
        self.state.pages.len()
    }

    /// Returns whether no response is stored.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the number of bytes that the stored responses take in memory, about. Removes those that have expired.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.state.sweep();
        self.state.pages.weight()
    }

    /// Returns whether the store of the [second level](super::HttpCacheLayer::second_level) is away, so that only the
    /// responses in memory are used. `false` without a second level.
    #[must_use]
    pub fn is_away(&self) -> bool {
        self.state.second.get().is_some_and(|second| second.is_away())
    }

    /// Returns the statistics of this cache.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let mut stats = self.state.counts.stats();
        stats.evicted = self.state.pages.evicted.load(Relaxed);
        stats
    }
}

impl_debug!(HttpCacheHandle { capacity = |this| this.state.capacity(), .. });
