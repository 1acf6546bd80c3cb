//! The handle to the live state of an HTTP cache.

use std::sync::{
    Arc,
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
};
use crate::debug::impl_debug;

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
}

impl State {
    pub(super) fn new(capacity: usize) -> Self {
        let (flights, counts) = Default::default();
        let (pages, room) = (Pages::new(capacity), Room::new(capacity.saturating_mul(2)));
        Self { capacity: capacity.into(), pages, room, flights, counts }
    }

    pub(super) fn capacity(&self) -> usize {
        self.capacity.load(Relaxed)
    }

    pub(super) fn set_capacity(&self, capacity: usize) {
        self.capacity.store(capacity, Relaxed);
        self.room.set_limit(capacity.saturating_mul(2));
        drop(self.flights.detach(&[], || self.pages.resize(capacity)));
    }

    /// Removes what has expired.
    fn sweep(&self) {
        drop(self.flights.detach(&[], || self.pages.sweep()));
    }

    /// Removes the responses of a resource, however requests have named its scheme and port.
    pub(super) fn invalidate(&self, key: &HttpKey) {
        let keys = key.in_any_scheme();
        drop(self.flights.detach(&keys, || keys.iter().map(|key| self.pages.remove(key)).collect::<Vec<_>>()));
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
    pub fn invalidate(&self, uri: &Uri) {
        self.state.invalidate(&HttpKey::from(uri.clone()));
    }

    /// Removes the responses of all resources that match `predicate`, such as those below a path. Returns the number of
    /// responses.
    ///
    /// As with [`invalidate`](Self::invalidate), requests in flight for such resources do not bring them back.
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
        let keys: Vec<_> = flights.keys().into_iter().filter(&predicate).collect();
        flights.detach(&keys, || {});
        pages.remove_if(predicate)
    }

    /// Removes all responses. As with [`invalidate`](Self::invalidate), requests in flight do not bring any back.
    pub fn clear(&self) {
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

    /// Returns the statistics of this cache.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let mut stats = self.state.counts.stats();
        stats.evicted = self.state.pages.evicted.load(Relaxed);
        stats
    }
}

impl_debug!(HttpCacheHandle { capacity = |this| this.state.capacity(), .. });
