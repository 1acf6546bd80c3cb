//! The state that all services of a shared limit use: its keys, and its link to the store.

use std::sync::{Arc, OnceLock};

use super::entry::Entry;
use crate::{
    bucket::Bucket,
    clock::{self, Instant},
    keys::{Keys, LOOKS},
    mutex::Mutex,
    store::Link,
};

pub(super) struct Shared {
    entries: Mutex<Keys<Arc<str>, Arc<Entry>>>,
    // Keys may come from strangers.
    hasher: ahash::RandomState,
    pub(super) link: Link,
    /// The share of all keys that have no place.
    overflow: Arc<OnceLock<Bucket>>,
}

impl Shared {
    pub(super) fn new() -> Self {
        Self {
            entries: Mutex::new(Keys::new()),
            hasher: ahash::RandomState::new(),
            link: Link::default(),
            overflow: Arc::default(),
        }
    }

    /// Returns the entry of a key.
    ///
    /// If all places are taken, it is one for this call alone: the call asks the store by itself, for its own tokens.
    pub(super) fn entry(&self, key: &str, max_keys: usize) -> Arc<Entry> {
        let hash = self.hasher.hash_one(key);
        let mut entries = self.entries.lock();
        if let Some(entry) = entries.get(hash, key) {
            return Arc::clone(entry);
        }
        let key: Arc<str> = key.into();
        let evicted = if entries.len() < max_keys { None } else { evict(&mut entries) };
        if entries.len() >= max_keys {
            return Arc::new(Entry::new(key, Arc::clone(&self.overflow)));
        }
        let entry = Arc::new(Entry::new(Arc::clone(&key), Arc::default()));
        entries.insert(hash, key, Arc::clone(&entry));
        drop(entries);
        drop(evicted);
        entry
    }

    /// Returns the number of keys that have a place.
    pub(super) fn keys(&self) -> usize {
        self.entries.lock().len()
    }

    /// Returns the entries of all keys that have a place.
    pub(super) fn entries(&self) -> Vec<Arc<Entry>> {
        self.entries.lock().iter().map(|(_, entry)| Arc::clone(entry)).collect()
    }

    /// Returns whether a new state would be as good as this.
    pub(super) fn is_idle(&self) -> bool {
        let now = clock::now();
        self.entries.lock().iter().all(|(_, entry)| is_idle(entry, now))
    }
}

fn evict(entries: &mut Keys<Arc<str>, Arc<Entry>>) -> Option<(Arc<str>, Arc<Entry>)> {
    let now = clock::now();
    let mut looks = LOOKS;
    entries.evict(&mut looks, |entry| is_idle(entry, now))
}

/// Returns whether nothing is lost if an entry is dropped: no call uses it, and no state of it matters any more.
fn is_idle(entry: &Arc<Entry>, now: Instant) -> bool {
    Arc::strong_count(entry) == 1 && entry.is_idle(now)
}
