//! The live state of a cache, for its services and for its owner.

use std::{
    any::type_name,
    fmt,
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
use crate::clock;

/// The live state of a [`CacheLayer`](super::CacheLayer), which all its services share: take it with
/// [`handle`](super::CacheLayer::handle).
///
/// A clone is the same cache, and cheap.
pub struct CacheHandle<K, R> {
    pub(super) state: Arc<State<K, R>>,
}

pub(super) struct State<K, R> {
    pub(super) capacity: usize,
    pub(super) store: Store<K, Landed<R>>,
    /// Locked before the store wherever both are.
    pub(super) flights: Arc<Flights<K, Landed<R>>>,
    pub(super) counts: Counts,
}

#[derive(Default)]
pub(super) struct Counts {
    /// Lookups that found an entry that was not fresh any more.
    pub(super) outdated: AtomicU64,
    /// Answers from memory that were not there at the first look.
    pub(super) found_late: AtomicU64,
    pub(super) misses: AtomicU64,
    pub(super) shared: AtomicU64,
    pub(super) stale: AtomicU64,
    pub(super) refreshes: AtomicU64,
    pub(super) stored: AtomicU64,
    pub(super) evicted: AtomicU64,
}

pub(super) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Relaxed);
}

/// What a cache has done so far.
///
/// The numbers are taken one after the other while others go on counting: they need not add up to the last one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Requests that were answered from memory with a fresh response.
    pub hits: u64,
    /// Requests that were sent on because there was no fresh response. Those without a key are not counted anywhere.
    pub misses: u64,
    /// Requests that were answered, well or badly, by the call of another one that had missed the same key.
    pub shared: u64,
    /// Requests that were answered from memory with a response that had expired.
    pub stale: u64,
    /// Calls that were made behind a stale answer, for a fresh one.
    pub refreshes: u64,
    /// Responses that were put into memory.
    pub stored: u64,
    /// Responses that had to make room for others.
    pub evicted: u64,
}

impl<K: Hash + Eq, R> CacheHandle<K, R> {
    pub(super) fn new(capacity: usize) -> Self {
        let store = Store::new(capacity);
        Self { state: Arc::new(State { capacity, store, flights: Flights::new(), counts: Counts::default() }) }
    }

    /// Forgets the response under `key`.
    ///
    /// A call for that key that is under way does not bring it back: those who wait for the call get its result, but it
    /// is not stored, and requests that come after this start a call of their own.
    pub fn invalidate(&self, key: &K) {
        let store = &self.state.store;
        let hash = store.hash(key);
        drop(self.state.flights.detach(hash, key, || store.remove(hash, key)));
    }

    /// Forgets all responses whose key `predicate` picks, such as those of one tenant, and returns their number.
    ///
    /// As in [`invalidate`](Self::invalidate), calls under way for such keys bring none of them back.
    ///
    /// It runs `predicate` once for every key, while no lock is held, so hits and misses go on meanwhile; a response
    /// that is stored after it began, by a call that started after that too, may stay or go. Its cost is in proportion
    /// to what is stored.
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

    /// Forgets all responses, and those that calls under way will bring, as in [`invalidate`](Self::invalidate).
    ///
    /// Its cost is in proportion to what is stored; meanwhile hits go on, and misses wait.
    pub fn clear(&self) {
        drop(self.state.flights.detach_all(|| self.state.store.clear()));
    }

    /// How many responses are in memory and of use: fresh, or as stale as `.stale_if_error(..)` or
    /// `.stale_while_revalidate(..)` allow.
    ///
    /// It takes out all the others, so it also frees the memory of a cache that nothing is put into any more.
    #[must_use]
    pub fn len(&self) -> usize {
        self.state.store.len(clock::now())
    }

    /// Whether nothing of use is in memory. As [`len`](Self::len), it takes out what is of none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What this cache has done so far.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let Counts { outdated, found_late, misses, shared, stale, refreshes, stored, evicted } = &self.state.counts;
        // What is outdated was found before it was counted, so this order keeps the difference from falling below zero.
        let outdated = outdated.load(Relaxed);
        let found = self.state.store.times_found();
        Stats {
            hits: found.saturating_sub(outdated) + found_late.load(Relaxed),
            misses: misses.load(Relaxed),
            shared: shared.load(Relaxed),
            stale: stale.load(Relaxed),
            refreshes: refreshes.load(Relaxed),
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

impl<K, R> fmt::Debug for CacheHandle<K, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CacheHandle")
            .field("capacity", &self.state.capacity)
            .field("key", &type_name::<K>())
            .field("response", &type_name::<R>())
            .finish_non_exhaustive()
    }
}
