//! The entries of a cache, bounded by number or weight, and the orders in which they are removed.
//!
//! The store decides nothing beyond its bounds, and is given the time. A lookup uses only the [table](table), where it
//! rarely contends with lookups of other keys. The [order of eviction](eviction) and an index by expiry are behind a
//! lock that only writers take. The index finds expired entries without a walk over the table.

use std::{
    collections::BTreeMap,
    hash::Hash,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use self::{eviction::Eviction, table::Table};
use crate::{clock::Instant, mutex::Mutex};

mod eviction;
mod table;

/// The number of expired entries that an insertion removes.
///
/// It is more than the one that an insertion adds, so that a backlog shrinks, and small, so that no insertion pays for
/// a thousand others.
const SWEPT_PER_INSERT: usize = 8;

/// A key with its hash. The hash is computed once, when a request arrives, and no later step runs the key's `Hash`.
#[derive(Debug)]
pub(super) struct Hashed<K> {
    pub(super) hash: u64,
    pub(super) key: K,
}

impl<K: Eq> Hashed<K> {
    pub(super) fn is(&self, hash: u64, key: &K) -> bool {
        self.hash == hash && self.key == *key
    }
}

/// A response and its times. A time is `None` if it never comes.
#[derive(Debug)]
pub(super) struct Entry<K, R> {
    pub(super) response: R,
    key: Arc<Hashed<K>>,
    /// The first instant at which the response is no longer fresh.
    fresh_until: Option<Instant>,
    /// The first instant at which the response is of no use, not even as a stale one.
    kept_until: Option<Instant>,
    /// Distinguishes this entry from all others.
    stamp: u64,
    /// Its place in the order of eviction.
    place: u32,
    /// Whether it was looked up since the eviction last visited it.
    is_used: AtomicBool,
    /// When the next background call for a fresh response may start.
    paused_until: Mutex<Option<Instant>>,
}

impl<K, R> Entry<K, R> {
    /// Returns how long the response has been stale, or `None` while it is fresh. Reads the clock only if it matters.
    pub(super) fn stale_for(&self, now: impl FnOnce() -> Instant) -> Option<Duration> {
        let end = self.fresh_until?;
        now().checked_duration_since(end)
    }

    pub(super) fn key(&self) -> &K {
        &self.key.key
    }

    /// Suspends background calls for this response until `until`.
    pub(super) fn pause(&self, until: Option<Instant>) {
        *self.paused_until.lock() = until;
    }

    pub(super) fn is_paused(&self, now: Instant) -> bool {
        self.paused_until.lock().is_some_and(|until| now < until)
    }

    fn mark_used(&self) {
        // A hot entry is marked already. Then any number of cores only read its memory.
        if !self.is_used.load(Relaxed) {
            self.is_used.store(true, Relaxed);
        }
    }

    fn due(&self) -> Option<Due> {
        self.kept_until.map(|at| (at, self.stamp))
    }
}

/// A response to store. It is fresh for `ttl` from `now` on, and stale but of use for `stale` after that.
#[derive(Debug)]
pub(super) struct New<R> {
    pub(super) response: R,
    pub(super) now: Instant,
    pub(super) ttl: Duration,
    pub(super) stale: Duration,
    pub(super) weight: u64,
}

/// The place of an entry in the order of expiry.
type Due = (Instant, u64);

/// The result of changing the store.
#[must_use = "drop it without holding a lock: it may hold the last reference to user values"]
pub(super) struct Change<K, R> {
    /// Whether an entry was stored. One that is too heavy is not.
    pub(super) kept: bool,
    /// The number of other entries that were evicted for it.
    pub(super) evicted: u64,
    #[cfg_attr(not(feature = "http-cache"), expect(dead_code, reason = "held until no lock is"))]
    removed: Vec<Arc<Entry<K, R>>>,
    _refused: Option<New<R>>,
}

/// The entries of a cache, within their bounds.
pub(super) struct Store<K, R> {
    table: Table<K, R>,
    hasher: ahash::RandomState,
    /// Held while the table is written, so that table and orders agree. Lookups do not take it.
    orders: Mutex<Orders<K, R>>,
}

struct Orders<K, R> {
    /// The entries that can expire.
    expiry: BTreeMap<Due, Arc<Entry<K, R>>>,
    eviction: Eviction<Arc<Entry<K, R>>>,
    stamps: u64,
}

impl<K, R> Change<K, R> {
    /// Returns the entries that were evicted.
    #[cfg(feature = "http-cache")]
    pub(super) fn evicted_entries(&self) -> &[Arc<Entry<K, R>>] {
        &self.removed[self.removed.len().saturating_sub(self.evicted as usize)..]
    }

    #[cfg(feature = "http-cache")]
    pub(super) fn removed_entries(&self) -> &[Arc<Entry<K, R>>] {
        &self.removed
    }
}

impl<K, R> Store<K, R> {
    /// Creates a store for entries with a total weight of `capacity`.
    pub(super) fn new(capacity: usize) -> Self {
        let eviction = Eviction::new(capacity as u64);
        Self {
            table: Table::new(),
            hasher: ahash::RandomState::new(),
            orders: Mutex::new(Orders { expiry: BTreeMap::new(), eviction, stamps: 0 }),
        }
    }

    pub(super) fn hash(&self, key: &K) -> u64
    where
        K: Hash,
    {
        self.hasher.hash_one(key)
    }

    /// Returns the entry under `key`, whatever its age. Counts as a use, for the eviction and for
    /// [`times_found`](Self::times_found).
    pub(super) fn get(&self, key: &Hashed<K>) -> Option<Arc<Entry<K, R>>>
    where
        K: Eq,
    {
        self.table.get(key.hash, &key.key)
    }

    /// Returns the entry under `key` without counting a use.
    pub(super) fn peek(&self, key: &Hashed<K>) -> Option<Arc<Entry<K, R>>>
    where
        K: Eq,
    {
        self.table.peek(key.hash, &key.key)
    }

    /// Stores `new` under `key`, replacing any entry, and removes a few entries that are of no use any more.
    pub(super) fn insert(&self, key: Arc<Hashed<K>>, new: New<R>) -> Change<K, R>
    where
        K: Eq,
    {
        let mut orders = self.orders.lock();
        let before = self.table.peek(key.hash, &key.key);
        // No user code runs from here on.
        let mut removed = self.sweep(&mut orders, new.now, SWEPT_PER_INSERT);
        removed.extend(before.and_then(|before| self.take(&mut orders, &before)));
        // An entry without weight would never be evicted.
        let weight = new.weight.max(1);
        if !orders.eviction.has_room_for(weight) {
            return Change { kept: false, evicted: 0, removed, _refused: Some(new) };
        }
        let Orders { expiry, eviction, stamps } = &mut *orders;
        let others = removed.len();
        self.make_room(expiry, eviction, weight, &mut removed);
        *stamps += 1;
        let fresh_until = new.now.checked_add(new.ttl);
        let entry = eviction.insert(key.hash, weight, |place| {
            Arc::new(Entry {
                response: new.response,
                key,
                fresh_until,
                kept_until: fresh_until.and_then(|end| end.checked_add(new.stale)),
                stamp: *stamps,
                place,
                is_used: AtomicBool::new(false),
                paused_until: Mutex::new(None),
            })
        });
        if let Some(due) = entry.due() {
            expiry.insert(due, Arc::clone(entry));
        }
        self.table.insert(Arc::clone(entry));
        drop(orders);
        let evicted = (removed.len() - others) as u64;
        Change { kept: true, evicted, removed, _refused: None }
    }

    /// Evicts entries until there is room for `weight`.
    fn make_room(
        &self,
        expiry: &mut BTreeMap<Due, Arc<Entry<K, R>>>,
        eviction: &mut Eviction<Arc<Entry<K, R>>>,
        weight: u64,
        removed: &mut Vec<Arc<Entry<K, R>>>,
    ) {
        let others = removed.len();
        eviction.make_room(weight, |entry| entry.is_used.swap(false, Relaxed), |entry| removed.push(entry));
        for evicted in &removed[others..] {
            drop(self.table.remove(evicted));
            drop(evicted.due().and_then(|due| expiry.remove(&due)));
        }
    }

    /// Sets the total weight, and evicts the entries that have no place any more.
    #[cfg(feature = "http-cache")]
    pub(super) fn resize(&self, capacity: usize) -> Change<K, R> {
        let (mut orders, mut removed) = (self.orders.lock(), Vec::new());
        let Orders { expiry, eviction, .. } = &mut *orders;
        eviction.set_capacity(capacity as u64);
        self.make_room(expiry, eviction, 0, &mut removed);
        drop(orders);
        Change { kept: false, evicted: removed.len() as u64, removed, _refused: None }
    }

    /// Removes all entries that are of no use any more.
    #[cfg(feature = "http-cache")]
    pub(super) fn remove_expired(&self, now: Instant) -> Change<K, R> {
        let removed = self.sweep(&mut self.orders.lock(), now, usize::MAX);
        Change { kept: false, evicted: 0, removed, _refused: None }
    }

    pub(super) fn remove(&self, hash: u64, key: &K) -> Change<K, R>
    where
        K: Eq,
    {
        let mut orders = self.orders.lock();
        let found = self.table.peek(hash, key);
        let removed = found.and_then(|entry| self.take(&mut orders, &entry));
        Change { kept: false, evicted: 0, removed: removed.into_iter().collect(), _refused: None }
    }

    /// Removes exactly this entry. Returns whether it was there.
    pub(super) fn remove_this(&self, entry: &Arc<Entry<K, R>>) -> bool {
        let removed = self.take(&mut self.orders.lock(), entry);
        removed.is_some()
    }

    /// Returns all entries, part by part. No lock is held while the caller looks at a part.
    pub(super) fn parts(&self) -> impl Iterator<Item = Vec<Arc<Entry<K, R>>>> {
        self.table.parts()
    }

    pub(super) fn clear(&self) -> Change<K, R> {
        let mut orders = self.orders.lock();
        let Orders { expiry, eviction, .. } = &mut *orders;
        let emptied = eviction.emptied();
        let removed = self.table.drain();
        // All of these references are to entries in `removed`.
        expiry.clear();
        drop(std::mem::replace(eviction, emptied));
        Change { kept: false, evicted: 0, removed, _refused: None }
    }

    /// Returns the number of entries that are still of use, and removes all others.
    pub(super) fn len(&self, now: Instant) -> usize {
        let mut orders = self.orders.lock();
        let swept = self.sweep(&mut orders, now, usize::MAX);
        let len = orders.eviction.len();
        drop(orders);
        drop(swept);
        len
    }

    /// Returns the weight of all entries.
    #[cfg(any(test, feature = "http-cache"))]
    pub(super) fn weight(&self) -> u64 {
        self.orders.lock().eviction.weight()
    }

    /// Returns how often [`get`](Self::get) has found an entry.
    pub(super) fn times_found(&self) -> u64 {
        self.table.times_found()
    }

    /// Removes exactly this entry, if it is there.
    fn take(&self, orders: &mut Orders<K, R>, entry: &Arc<Entry<K, R>>) -> Option<Arc<Entry<K, R>>> {
        let taken = self.table.remove(entry)?;
        drop(taken.due().and_then(|due| orders.expiry.remove(&due)));
        orders.eviction.remove(taken.place, taken.is_used.load(Relaxed))
    }

    fn sweep(&self, orders: &mut Orders<K, R>, now: Instant, most: usize) -> Vec<Arc<Entry<K, R>>> {
        let mut swept = Vec::new();
        for _ in 0..most {
            let Some(first) = orders.expiry.first_entry().filter(|first| first.key().0 <= now) else { break };
            let first = first.remove();
            swept.extend(self.take(orders, &first));
        }
        swept
    }
}

#[cfg(test)]
mod tests;
