//! The lookup table of the store: hash tables in parts, each behind its own lock, to reduce contention between keys.
//!
//! A lookup compares keys, which is the only user code that runs here.

use std::{
    sync::{
        Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    thread::available_parallelism,
};

use hashbrown::HashTable;

use super::Entry;

/// The largest number of parts. More would not be used at the same time on any machine.
const MOST_PARTS: usize = 64;

pub(super) struct Table<K, R> {
    parts: Box<[Part<K, R>]>,
}

// On its own cache line, or two, because readers also write to the lock.
#[repr(align(128))]
struct Part<K, R> {
    entries: RwLock<HashTable<Arc<Entry<K, R>>>>,
    found: AtomicU64,
}

impl<K, R> Part<K, R> {
    // Poisoning is harmless: a key's `Eq` can only panic before anything has changed.
    fn read(&self) -> RwLockReadGuard<'_, HashTable<Arc<Entry<K, R>>>> {
        self.entries.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, HashTable<Arc<Entry<K, R>>>> {
        self.entries.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K, R> Table<K, R> {
    pub(super) fn new() -> Self {
        let cores = available_parallelism().map_or(1, |cores| cores.get());
        let parts = (4 * cores).next_power_of_two().min(MOST_PARTS);
        let part = || Part { entries: RwLock::new(HashTable::new()), found: AtomicU64::new(0) };
        Self { parts: std::iter::repeat_with(part).take(parts).collect() }
    }

    fn part(&self, hash: u64) -> &Part<K, R> {
        // Other bits than those of the hash table, which uses the lowest and the seven highest.
        &self.parts[(hash >> 32) as usize & (self.parts.len() - 1)]
    }

    /// Returns the entry under `key` without counting a use.
    pub(super) fn peek(&self, hash: u64, key: &K) -> Option<Arc<Entry<K, R>>>
    where
        K: Eq,
    {
        self.part(hash).read().find(hash, |entry| entry.key.is(hash, key)).map(Arc::clone)
    }

    /// Returns the entry under `key` and marks it as used.
    pub(super) fn get(&self, hash: u64, key: &K) -> Option<Arc<Entry<K, R>>>
    where
        K: Eq,
    {
        let part = self.part(hash);
        let found = part.read().find(hash, |entry| entry.key.is(hash, key)).map(Arc::clone)?;
        part.found.fetch_add(1, Relaxed);
        found.mark_used();
        Some(found)
    }

    pub(super) fn insert(&self, entry: Arc<Entry<K, R>>) {
        let hash = entry.key.hash;
        self.part(hash).write().insert_unique(hash, entry, |entry| entry.key.hash);
    }

    /// Removes exactly this entry, if it is there.
    pub(super) fn remove(&self, entry: &Arc<Entry<K, R>>) -> Option<Arc<Entry<K, R>>> {
        let hash = entry.key.hash;
        let mut entries = self.part(hash).write();
        Some(entries.find_entry(hash, |other| Arc::ptr_eq(entry, other)).ok()?.remove().0)
    }

    /// Removes all entries.
    pub(super) fn drain(&self) -> Vec<Arc<Entry<K, R>>> {
        self.parts.iter().flat_map(|part| std::mem::take(&mut *part.write())).collect()
    }

    /// Returns how often [`get`](Self::get) has found an entry.
    pub(super) fn times_found(&self) -> u64 {
        self.parts.iter().map(|part| part.found.load(Relaxed)).sum()
    }

    /// Returns the entries of each part, as they are when the part is reached.
    pub(super) fn parts(&self) -> impl Iterator<Item = Vec<Arc<Entry<K, R>>>> {
        self.parts.iter().map(|part| part.read().iter().cloned().collect())
    }
}
