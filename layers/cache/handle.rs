//! The live state of a cache, shared by its services and its handles.

use std::{
    hash::Hash,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use super::{
    flight::Flights,
    share::Landed,
    store::{Change, Store},
};
use crate::{clock, debug::impl_debug};

/// The live state of a [`CacheLayer`](super::CacheLayer), which all its services share.
///
/// The layer returns it from [`handle`](super::CacheLayer::handle). Clones are cheap and refer to the same cache.
pub struct CacheHandle<K, R> {
    pub(super) state: Arc<State<K, R>>,
}

pub(super) struct State<K, R> {
    pub(super) capacity: usize,
    pub(super) store: Store<K, Landed<R>>,
    /// Locked before the store if both are.
    pub(super) flights: Arc<Flights<K, Landed<R>>>,
    pub(super) counts: Counts,
}

#[derive(Default)]
pub(super) struct Counts {
    /// Lookups that found an entry that was no longer fresh.
    pub(super) outdated: AtomicU64,
    /// Hits that the store does not count.
    pub(super) hits: AtomicU64,
    pub(super) second_level: AtomicU64,
    pub(super) misses: AtomicU64,
    pub(super) shared: AtomicU64,
    pub(super) stale: AtomicU64,
    pub(super) stale_on_error: AtomicU64,
    pub(super) bypassed: AtomicU64,
    pub(super) refreshes: AtomicU64,
    pub(super) validated: AtomicU64,
    pub(super) stored: AtomicU64,
    pub(super) evicted: AtomicU64,
}

pub(super) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Relaxed);
}

/// Statistics of a cache since its start, over all services of the layer and all tenants.
///
/// A request that the cache handles is in one of `hits`, `second_level`, `misses`, `shared` and `stale`, or in both
/// `misses` and `stale` if it is in `stale_on_error`. It is in none of them if it would wait for itself
/// ([`Reason::Recursive`](crate::Reason::Recursive)), if it is dropped before it makes a call or gets an outcome, or if
/// it wants a stored response only (`only-if-cached`) and there is none.
///
/// `CacheLayer::http` handles the requests with `GET`, and those with `HEAD` that a stored response answers.
/// [`CacheLayer::new`](super::CacheLayer::new) handles those with a key.
///
/// The numbers are read one after another while the cache is in use, so they may be slightly inconsistent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Requests that were served a fresh response from memory, or a part of it, or a 304 for it.
    pub hits: u64,
    /// Requests that were served a fresh response from the second level of a `CacheLayer::http`, which had to be asked.
    pub second_level: u64,
    /// Requests that made a call, and waited for it, because there was no fresh response. This includes those in
    /// `stale_on_error`.
    pub misses: u64,
    /// Requests that got the outcome, good or bad, of a call by another request that had missed the same response.
    pub shared: u64,
    /// Requests that were served an expired response from memory: at once, while a fresh one was fetched, or in place
    /// of a failure, or because they allow that (`max-stale`). Those in place of a failure are in `stale_on_error` too.
    pub stale: u64,
    /// Requests whose call failed, and that were served an expired response in its place. They are in `misses` and in
    /// `stale`.
    pub stale_on_error: u64,
    /// Requests that the cache passed on, such as those without a key or with an unsafe method. They made their own
    /// call, and are in no other number.
    pub bypassed: u64,
    /// Background calls for a fresh response while a stale one was served.
    pub refreshes: u64,
    /// Requests whose stale response the service has confirmed with a 304. They are in `misses`. Zero unless the cache
    /// is a `CacheLayer::http`.
    pub validated: u64,
    /// Responses that were stored in memory: new ones, those of a second level, and those that a 304 has made fresh.
    pub stored: u64,
    /// Responses that were evicted to make room for others.
    pub evicted: u64,
}

impl Stats {
    /// Returns the fraction of the handled requests that were served from memory, fresh or stale, from 0 to 1. Returns
    /// `None` before the first of them.
    ///
    /// A request that shared the call of another one was not served from memory: it waited as long as a miss.
    #[must_use]
    pub fn hit_rate(&self) -> Option<f64> {
        let served = self.hits.saturating_add(self.stale);
        // The requests that are in both `misses` and `stale` count once.
        let stale_only = self.stale.saturating_sub(self.stale_on_error);
        let all = [self.hits, self.second_level, self.misses, self.shared, stale_only]
            .into_iter()
            .fold(0, u64::saturating_add);
        // At least `served`: a request that is in several numbers may have been counted while they were read.
        let all = all.max(served);
        (all > 0).then(|| served as f64 / all as f64)
    }
}

impl<K: Hash + Eq, R> CacheHandle<K, R> {
    pub(super) fn new(capacity: usize) -> Self {
        let store = Store::new(capacity);
        Self { state: Arc::new(State { capacity, store, flights: Flights::new(), counts: Counts::default() }) }
    }

    /// Removes the response under `key`.
    ///
    /// A call in flight for this key does not bring it back: waiters get the result of the call, but it is not stored,
    /// and later requests start their own call.
    pub fn invalidate(&self, key: &K) {
        let store = &self.state.store;
        let hash = store.hash(key);
        drop(self.state.flights.detach(hash, key, || store.remove(hash, key)));
    }

    /// Removes all responses whose key matches `predicate`, such as those of one tenant. Returns their number.
    ///
    /// As with [`invalidate`](Self::invalidate), calls in flight for such keys do not bring them back.
    ///
    /// `predicate` runs once for every key. No lock is held while it runs, so hits and misses continue. A response that
    /// is stored in the meantime, by a call that also started in the meantime, may stay or go. The cost is proportional
    /// to the number of entries.
    ///
    /// ```
    /// # use std::{sync::Arc, time::Duration};
    /// # use ziggurat::cache::{CacheLayer, scoped_key};
    /// #[derive(PartialEq, Eq, Hash)]
    /// struct Tenant(u32);
    ///
    /// let key = scoped_key(|_: &Tenant, path: &String| Some(path.clone()));
    /// let layer = CacheLayer::<(Arc<Tenant>, String), String, _>::new(1_000, Duration::from_secs(60), key);
    /// assert_eq!(layer.handle().invalidate_if(|(tenant, _)| tenant.0 == 7), 0);
    /// ```
    pub fn invalidate_if(&self, predicate: impl Fn(&K) -> bool) -> usize {
        let State { flights, store, .. } = &*self.state;
        for (key, number) in flights.current() {
            if predicate(&key.key) {
                flights.detach_this(key.hash, number);
            }
        }
        let picked = store.parts().flatten().filter(|entry| predicate(entry.key()));
        picked.filter(|entry| store.remove_this(entry)).count()
    }

    /// Removes all responses. As with [`invalidate`](Self::invalidate), calls in flight do not bring any back.
    ///
    /// The cost is proportional to the number of entries. In the meantime hits continue, and misses wait.
    pub fn clear(&self) {
        drop(self.state.flights.detach_all(|| self.state.store.clear()));
    }

    /// Returns the number of responses that can be served: fresh ones, and stale ones within the windows of
    /// `.stale_if_error(..)` and `.stale_while_revalidate(..)`.
    ///
    /// Removes all other responses, which also frees the memory of a cache that is no longer written to.
    #[must_use]
    pub fn len(&self) -> usize {
        self.state.store.len(clock::now())
    }

    /// Returns whether no response can be served. Like [`len`](Self::len), this removes all others.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the statistics of this cache.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let counts = &self.state.counts;
        // An outdated entry is found before it is counted. Loading in this order keeps the difference from
        // underflowing.
        let outdated = counts.outdated.load(Relaxed);
        let found = self.state.store.times_found().saturating_sub(outdated);
        let stats = counts.stats();
        Stats { hits: found + stats.hits, ..stats }
    }
}

impl Counts {
    pub(super) fn stats(&self) -> Stats {
        let Self {
            hits,
            second_level,
            misses,
            shared,
            stale,
            stale_on_error,
            bypassed,
            refreshes,
            validated,
            stored,
            evicted,
            ..
        } = self;
        Stats {
            hits: hits.load(Relaxed),
            second_level: second_level.load(Relaxed),
            misses: misses.load(Relaxed),
            shared: shared.load(Relaxed),
            stale: stale.load(Relaxed),
            stale_on_error: stale_on_error.load(Relaxed),
            bypassed: bypassed.load(Relaxed),
            refreshes: refreshes.load(Relaxed),
            validated: validated.load(Relaxed),
            stored: stored.load(Relaxed),
            evicted: evicted.load(Relaxed),
        }
    }
}

impl<K, R> State<K, R> {
    pub(super) fn note(&self, change: &Change<K, Landed<R>>) {
        self.counts.stored.fetch_add(u64::from(change.kept), Relaxed);
        self.counts.evicted.fetch_add(change.evicted, Relaxed);
    }
}

impl<K, R> Clone for CacheHandle<K, R> {
    fn clone(&self) -> Self {
        Self { state: Arc::clone(&self.state) }
    }
}

impl_debug!(CacheHandle<K, R> { capacity = |this| this.state.capacity, key: K, response: R, .. });

#[cfg(test)]
mod tests {
    use super::*;

    /// A request is in two numbers, which are read one after another.
    #[test]
    fn a_hit_rate_is_at_most_one_whatever_was_read_too_early() {
        for misses in [0, 1, 2] {
            let stats = Stats { hits: 1, stale: 1, stale_on_error: 1, misses, ..Stats::default() };
            assert_eq!(stats.hit_rate(), Some(if misses == 2 { 2.0 / 3.0 } else { 1.0 }), "{misses}");
        }
        assert_eq!(Stats { bypassed: 1, ..Stats::default() }.hit_rate(), None);
    }
}
