//! What the cache holds: a bounded map, and the order in which its entries go.
//!
//! The store decides nothing but bounds and is told the time. The map is `quick_cache`'s: sharded, so that hits on
//! different keys do not meet, and with an eviction that keeps what is used (Clock-PRO, close to S3-FIFO). The expiry
//! lies in the entry, so a lookup needs nothing else. A second index, by time, finds what has expired without a walk
//! over the map; lookups never touch it.

use std::{
    collections::BTreeMap,
    hash::Hash,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread::available_parallelism,
    time::Duration,
};

use quick_cache::{DefaultHashBuilder, Lifecycle, OptionsBuilder, Weighter, sync::Cache as Map};

use crate::clock::Instant;

/// How many expired entries an insertion takes out. More than the one it adds, so that a backlog shrinks; few, so that
/// no insertion pays for a thousand others.
const SWEPT_PER_INSERT: usize = 8;

/// A shard holds at least this much, or a handful of keys that fall into one shard would push each other out.
const LEAST_SHARD: usize = 32;

/// Weighted stores have at most this many shards on every machine: an entry has to fit into one of them.
const WEIGHTED_SHARDS: usize = 8;

/// The number of entries that a weighted store is assumed to hold; it bounds the memory of what was evicted lately.
const WEIGHTED_ITEMS: usize = 4096;

/// A response, and how long it is of use. Times are `None` if they never come.
#[derive(Debug)]
pub(super) struct Entry<R> {
    pub(super) response: R,
    /// The first instant at which the response is no longer fresh.
    fresh_until: Option<Instant>,
    /// The first instant at which it is of no use, not even as a stale answer.
    kept_until: Option<Instant>,
    weight: u64,
    /// Tells this entry from any other one under the same key.
    stamp: u64,
}

impl<R> Entry<R> {
    /// A response that is fresh for `ttl` from `now` on, and of some use for `stale` after that.
    pub(super) fn new(response: R, now: Instant, ttl: Duration, stale: Duration, weight: u64) -> Self {
        let fresh_until = now.checked_add(ttl);
        Self {
            response,
            fresh_until,
            kept_until: fresh_until.and_then(|end| end.checked_add(stale)),
            // The map never evicts what weighs nothing.
            weight: weight.max(1),
            stamp: 0,
        }
    }

    /// For how long the response has been stale; `None` while it is fresh. The time is asked for only if it matters.
    pub(super) fn stale_for(&self, now: impl FnOnce() -> Instant) -> Option<Duration> {
        let end = self.fresh_until?;
        now().checked_duration_since(end)
    }

    fn due(&self) -> Option<Due> {
        self.kept_until.map(|at| (at, self.stamp))
    }
}

/// Where an entry stands in the order of expiry.
type Due = (Instant, u64);
type Item<K, R> = (Arc<K>, Arc<Entry<R>>);

/// What a change of the store came to.
#[must_use = "drop it where no lock is held: it may hold the last reference to responses of the user's"]
pub(super) struct Change<K, R> {
    /// Whether an entry was taken in; one that is too heavy is not.
    pub(super) kept: bool,
    /// How many others had to make room for it.
    pub(super) evicted: u64,
    _removed: Vec<Item<K, R>>,
}

/// The entries, within their bounds.
pub(super) struct Store<K, R> {
    map: Map<Arc<K>, Arc<Entry<R>>, Weigh, DefaultHashBuilder, Collect>,
    /// Who writes to the map holds this, so that the two agree. Lookups do not.
    expiry: Mutex<Expiry<K>>,
}

struct Expiry<K> {
    /// The entries of the map that expire, and no others.
    order: BTreeMap<Due, Arc<K>>,
    stamps: u64,
}

impl<K: Hash + Eq, R> Store<K, R> {
    /// A store for `capacity` entries or, if `weighted`, for entries that weigh `capacity` together.
    pub(super) fn new(capacity: usize, weighted: bool) -> Self {
        let cores = || available_parallelism().map_or(1, |cores| cores.get());
        let most = if weighted { WEIGHTED_SHARDS } else { cores().saturating_mul(4) };
        let mut shards = most.next_power_of_two();
        while shards > 1 && capacity / shards < LEAST_SHARD {
            shards /= 2;
        }
        // Shards are equal. What does not divide is given up, so that the bound holds for their sum.
        let bound = capacity - capacity % shards;
        let items = if weighted { bound.min(WEIGHTED_ITEMS) } else { bound };
        let options = OptionsBuilder::new()
            .shards(shards)
            .estimated_items_capacity(items)
            .weight_capacity(bound as u64)
            .build()
            .unwrap_or_else(|missing| unreachable!("{missing}"));
        Self {
            map: Map::with_options(options, Weigh, DefaultHashBuilder::default(), Collect),
            expiry: Mutex::new(Expiry { order: BTreeMap::new(), stamps: 0 }),
        }
    }

    /// The entry under `key`, whatever its age. Counts as a use, for the eviction and in [`times_found`](Self::times_found).
    pub(super) fn get(&self, key: &K) -> Option<Arc<Entry<R>>> {
        self.map.get(key)
    }

    /// The same, without counting.
    pub(super) fn peek(&self, key: &K) -> Option<Arc<Entry<R>>> {
        self.map.peek(key)
    }

    /// Puts `entry` in the place of what is under `key`, and takes out a few entries that are of no use any more.
    pub(super) fn insert(&self, key: Arc<K>, mut entry: Entry<R>, now: Instant) -> Change<K, R> {
        let mut expiry = self.expiry();
        let swept = self.sweep(&mut expiry, now, SWEPT_PER_INSERT);
        expiry.stamps += 1;
        let stamp = expiry.stamps;
        entry.stamp = stamp;
        let due = entry.due();
        let out = self.map.insert_with_lifecycle(Arc::clone(&key), Arc::new(entry));
        if let Some(due) = due {
            expiry.order.insert(due, Arc::clone(&key));
        }
        expiry.forget(&out);
        drop(expiry);

        let kept = out.iter().all(|(_, entry)| entry.stamp != stamp);
        let evicted = out.iter().filter(|(other, _)| *other != key).count() as u64;
        let mut removed = swept;
        removed.extend(out);
        Change { kept, evicted, _removed: removed }
    }

    pub(super) fn remove(&self, key: &K) -> Change<K, R> {
        let mut expiry = self.expiry();
        let out = Vec::from_iter(self.map.remove(key));
        expiry.forget(&out);
        Change { kept: false, evicted: 0, _removed: out }
    }

    pub(super) fn clear(&self) -> Change<K, R> {
        let mut expiry = self.expiry();
        expiry.order.clear();
        Change { kept: false, evicted: 0, _removed: self.map.drain().collect() }
    }

    /// How many entries are still of use. Takes out all the others.
    pub(super) fn len(&self, now: Instant) -> usize {
        let mut expiry = self.expiry();
        let swept = self.sweep(&mut expiry, now, usize::MAX);
        let len = self.map.len();
        drop(expiry);
        drop(swept);
        len
    }

    /// How often [`get`](Self::get) found an entry.
    pub(super) fn times_found(&self) -> u64 {
        self.map.hits()
    }

    fn expiry(&self) -> MutexGuard<'_, Expiry<K>> {
        self.expiry.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn sweep(&self, expiry: &mut Expiry<K>, now: Instant, most: usize) -> Vec<Item<K, R>> {
        let mut swept = Vec::new();
        for _ in 0..most {
            let Some(first) = expiry.order.first_entry().filter(|first| first.key().0 <= now) else { break };
            let ((_, stamp), key) = first.remove_entry();
            swept.extend(self.map.remove_if(&*key, |entry| entry.stamp == stamp));
        }
        swept
    }
}

impl<K> Expiry<K> {
    fn forget<R>(&mut self, removed: &[Item<K, R>]) {
        for due in removed.iter().filter_map(|(_, entry)| entry.due()) {
            self.order.remove(&due);
        }
    }
}

/// The weight was taken when the entry was made: the map asks for it often, and under its locks.
#[derive(Clone)]
struct Weigh;

impl<K, R> Weighter<K, Arc<Entry<R>>> for Weigh {
    fn weight(&self, _: &K, entry: &Arc<Entry<R>>) -> u64 {
        entry.weight
    }
}

/// Hands out what an insertion displaced, for the index and to be dropped outside the locks.
#[derive(Clone)]
struct Collect;

impl<K, R> Lifecycle<Arc<K>, Arc<Entry<R>>> for Collect {
    type RequestState = Vec<Item<K, R>>;

    fn begin_request(&self) -> Self::RequestState {
        Vec::new()
    }

    fn on_evict(&self, out: &mut Self::RequestState, key: Arc<K>, entry: Arc<Entry<R>>) {
        out.push((key, entry));
    }
}

#[cfg(test)]
mod tests;
