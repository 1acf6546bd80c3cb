//! Where a lookup finds an entry: hash tables in parts, each behind a lock of its own, so that lookups of different
//! keys do not meet.
//!
//! A lookup compares keys; nothing else here runs code of the user's.

use std::{
    sync::{
        Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    thread::available_parallelism,
};

use hashbrown::HashTable;

use super::Entry;

/// More would not be used at once on any machine.
const MOST_PARTS: usize = 64;

pub(super) struct Table<K, R> {
    parts: Box<[Part<K, R>]>,
}

// On a cache line, or two, of its own: a lock is written by those who only read.
#[repr(align(128))]
struct Part<K, R> {
    entries: RwLock<HashTable<Arc<Entry<K, R>>>>,
    found: AtomicU64,
}

impl<K, R> Part<K, R> {
    // Where a key's `Eq` panics nothing was changed yet.
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
        // The table inside takes the lowest bits and the seven highest.
        &self.parts[(hash >> 32) as usize & (self.parts.len() - 1)]
    }

    /// The entry under `key`. It is not counted.
    pub(super) fn peek(&self, hash: u64, key: &K) -> Option<Arc<Entry<K, R>>>
    where
        K: Eq,
    {
        self.part(hash).read().find(hash, |entry| entry.key.is(hash, key)).map(Arc::clone)
    }

    /// The entry under `key`, which is marked as used.
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

    /// Takes out this very entry, if it is there.
    pub(super) fn remove(&self, entry: &Arc<Entry<K, R>>) -> Option<Arc<Entry<K, R>>> {
        let hash = entry.key.hash;
        let mut entries = self.part(hash).write();
        Some(entries.find_entry(hash, |other| Arc::ptr_eq(entry, other)).ok()?.remove().0)
    }

    /// Takes out all entries.
    pub(super) fn drain(&self) -> Vec<Arc<Entry<K, R>>> {
        self.parts.iter().flat_map(|part| std::mem::take(&mut *part.write())).collect()
    }

    /// How often [`get`](Self::get) found an entry.
    pub(super) fn times_found(&self) -> u64 {
        self.parts.iter().map(|part| part.found.load(Relaxed)).sum()
    }

    /// The entries of each part, as they are when it is asked for.
    pub(super) fn parts(&self) -> impl Iterator<Item = Vec<Arc<Entry<K, R>>>> {
        self.parts.iter().map(|part| part.read().iter().cloned().collect())
    }
}
