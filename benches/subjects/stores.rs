//! The stores of other caches. They are no layers: each is a function that looks up a key, and inserts a missing one.

use std::{sync::Arc, time::Duration};

use moka::sync::Cache as Moka;
use quick_cache::sync::Cache as QuickCache;

use crate::Word;

pub(super) fn moka(capacity: usize, ttl: Duration) -> impl Fn(Word) -> Word + Clone + Send + Sync + 'static {
    let store = Moka::builder().max_capacity(capacity as u64).time_to_live(ttl).build();
    move |word| {
        store.get(&word).unwrap_or_else(|| {
            store.insert(word, word);
            word
        })
    }
}

/// It has no ttl.
pub(super) fn quick_cache(capacity: usize) -> impl Fn(Word) -> Word + Clone + Send + Sync + 'static {
    let store = Arc::new(QuickCache::new(capacity));
    move |word| {
        store.get(&word).unwrap_or_else(|| {
            store.insert(word, word);
            word
        })
    }
}
