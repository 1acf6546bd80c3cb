//! What the cache holds: a bounded number or weight of entries, and the orders in which they go.
//!
//! The store decides nothing but bounds and is told the time. A lookup goes to the [table](table) alone, where it meets
//! lookups of few other keys. Beside it stand, under a lock that only writers take, the [order of eviction](eviction)
//! and an index by time, which finds what has expired without a walk over the table.

use std::{
    collections::BTreeMap,
    hash::Hash,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use self::{eviction::Eviction, table::Table};
use crate::clock::Instant;

mod eviction;
mod table;

/// How many expired entries an insertion takes out. More than the one it adds, so that a backlog shrinks; few, so that
/// no insertion pays for a thousand others.
const SWEPT_PER_INSERT: usize = 8;

/// A key with its hash, which is taken once, when a request arrives: no later step runs the key's `Hash`.
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

/// A response, and how long it is of use. Times are `None` if they never come.
#[derive(Debug)]
pub(super) struct Entry<K, R> {
    pub(super) response: R,
    key: Arc<Hashed<K>>,
    /// The first instant at which the response is no longer fresh.
    fresh_until: Option<Instant>,
    /// The first instant at which it is of no use, not even as a stale answer.
    kept_until: Option<Instant>,
    /// Tells this entry from any other one.
    stamp: u64,
    /// Where it stands in the order of eviction.
    place: u32,
    /// Whether it was looked up since the eviction last passed it.
    is_used: AtomicBool,
    /// When the next call for a fresh response may be made behind this one.
    paused_until: Mutex<Option<Instant>>,
}

impl<K, R> Entry<K, R> {
    /// For how long the response has been stale; `None` while it is fresh. The time is asked for only if it matters.
    pub(super) fn stale_for(&self, now: impl FnOnce() -> Instant) -> Option<Duration> {
        let end = self.fresh_until?;
        now().checked_duration_since(end)
    }

    pub(super) fn key(&self) -> &K {
        &self.key.key
    }

    /// Asks for no call behind this response before `until`.
    pub(super) fn pause(&self, until: Option<Instant>) {
        *self.paused_until.lock().unwrap_or_else(PoisonError::into_inner) = until;
    }

    pub(super) fn is_paused(&self, now: Instant) -> bool {
        self.paused_until.lock().unwrap_or_else(PoisonError::into_inner).is_some_and(|until| now < until)
    }

    fn mark_used(&self) {
        // A hot entry is marked already; then its memory is only read, by as many cores as like.
        if !self.is_used.load(Relaxed) {
            self.is_used.store(true, Relaxed);
        }
    }

    fn due(&self) -> Option<Due> {
        self.kept_until.map(|at| (at, self.stamp))
    }
}

/// What is to be stored: a response that is fresh for a time from `now` on, and of some use for another time after
/// that.
#[derive(Debug)]
pub(super) struct New<R> {
    pub(super) response: R,
    pub(super) now: Instant,
    pub(super) ttl: Duration,
    pub(super) stale: Duration,
    pub(super) weight: u64,
}

/// Where an entry stands in the order of expiry.
type Due = (Instant, u64);

/// What a change of the store came to.
#[must_use = "drop it where no lock is held: it may hold the last reference to responses of the user's"]
pub(super) struct Change<K, R> {
    /// Whether an entry was taken in; one that is too heavy is not.
    pub(super) kept: bool,
    /// How many others had to make room for it.
    pub(super) evicted: u64,
    _removed: Vec<Arc<Entry<K, R>>>,
    _refused: Option<New<R>>,
}

/// The entries, within their bounds.
pub(super) struct Store<K, R> {
    table: Table<K, R>,
    hasher: ahash::RandomState,
    /// Who writes to the table holds this, so that all agree. Lookups do not.
    orders: Mutex<Orders<K, R>>,
}

struct Orders<K, R> {
    /// The entries that expire, and no others.
    expiry: BTreeMap<Due, Arc<Entry<K, R>>>,
    eviction: Eviction<Arc<Entry<K, R>>>,
    stamps: u64,
}

impl<K, R> Store<K, R> {
    /// A store for entries that weigh `capacity` together.
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

    /// The entry under `key`, whatever its age. Counts as a use, for the eviction and in
    /// [`times_found`](Self::times_found).
    pub(super) fn get(&self, key: &Hashed<K>) -> Option<Arc<Entry<K, R>>>
    where
        K: Eq,
    {
        self.table.get(key.hash, &key.key)
    }

    /// The entry under `key`, without counting.
    pub(super) fn peek(&self, key: &Hashed<K>) -> Option<Arc<Entry<K, R>>>
    where
        K: Eq,
    {
        self.table.peek(key.hash, &key.key)
    }

    /// Puts `new` in the place of what is under `key`, and takes out a few entries that are of no use any more.
    pub(super) fn insert(&self, key: Arc<Hashed<K>>, new: New<R>) -> Change<K, R>
    where
        K: Eq,
    {
        let mut orders = self.orders();
        let before = self.table.peek(key.hash, &key.key);
        // From here on no code of the user's runs.
        let mut removed = self.sweep(&mut orders, new.now, SWEPT_PER_INSERT);
        removed.extend(before.and_then(|before| self.take(&mut orders, &before)));
        // What weighs nothing would never have to go.
        let weight = new.weight.max(1);
        if !orders.eviction.has_room_for(weight) {
            return Change { kept: false, evicted: 0, _removed: removed, _refused: Some(new) };
        }
        let Orders { expiry, eviction, stamps } = &mut *orders;
        let others = removed.len();
        eviction.make_room(weight, |entry| entry.is_used.swap(false, Relaxed), |entry| removed.push(entry));
        for evicted in &removed[others..] {
            drop(self.table.remove(evicted));
            drop(evicted.due().and_then(|due| expiry.remove(&due)));
        }
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
        Change { kept: true, evicted, _removed: removed, _refused: None }
    }

    pub(super) fn remove(&self, hash: u64, key: &K) -> Change<K, R>
    where
        K: Eq,
    {
        let mut orders = self.orders();
        let found = self.table.peek(hash, key);
        let removed = found.and_then(|entry| self.take(&mut orders, &entry));
        Change { kept: false, evicted: 0, _removed: removed.into_iter().collect(), _refused: None }
    }

    /// Takes out this very entry; whether it was there.
    pub(super) fn remove_this(&self, entry: &Arc<Entry<K, R>>) -> bool {
        let removed = self.take(&mut self.orders(), entry);
        removed.is_some()
    }

    /// All entries, part by part. No lock is held while the caller looks at them.
    pub(super) fn parts(&self) -> impl Iterator<Item = Vec<Arc<Entry<K, R>>>> {
        self.table.parts()
    }

    pub(super) fn clear(&self) -> Change<K, R> {
        let mut orders = self.orders();
        let Orders { expiry, eviction, .. } = &mut *orders;
        let emptied = eviction.emptied();
        let removed = self.table.drain();
        // References to what is in `removed`, all of them.
        expiry.clear();
        drop(std::mem::replace(eviction, emptied));
        Change { kept: false, evicted: 0, _removed: removed, _refused: None }
    }

    /// How many entries are still of use. Takes out all the others.
    pub(super) fn len(&self, now: Instant) -> usize {
        let mut orders = self.orders();
        let swept = self.sweep(&mut orders, now, usize::MAX);
        let len = orders.eviction.len();
        drop(orders);
        drop(swept);
        len
    }

    /// How often [`get`](Self::get) found an entry.
    pub(super) fn times_found(&self) -> u64 {
        self.table.times_found()
    }

    fn orders(&self) -> MutexGuard<'_, Orders<K, R>> {
        self.orders.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes out this very entry, if it is there.
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
