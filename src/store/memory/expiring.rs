//! Values by key, each for a time, and of a bounded size in all.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;

use crate::clock::Instant;

/// The size of an entry without its key and its value: its places in the three maps.
pub(super) const ENTRY: usize = 200;

/// The number of expired values that each new one removes, so that memory returns also below the bound.
const REMOVALS: usize = 8;

#[derive(Debug)]
pub(super) struct Expiring {
    max_bytes: usize,
    bytes: usize,
    values: HashMap<Arc<str>, Value>,
    /// In the order in which the values were put.
    by_age: BTreeMap<u64, Arc<str>>,
    /// The values that expire, by time and number.
    by_expiry: BTreeSet<(Instant, u64)>,
    /// The number of values so far.
    puts: u64,
}

#[derive(Debug)]
struct Value {
    bytes: Bytes,
    number: u64,
    /// `None` if it never expires.
    until: Option<Instant>,
}

impl Expiring {
    pub(super) fn new(max_bytes: usize) -> Self {
        Self {
            max_bytes,
            bytes: 0,
            values: HashMap::new(),
            by_age: BTreeMap::new(),
            by_expiry: BTreeSet::new(),
            puts: 0,
        }
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn len(&self) -> usize {
        self.values.len()
    }

    /// Sets the bound, and removes values until the others fit.
    pub(super) fn bound(&mut self, now: Instant, max_bytes: usize) {
        self.max_bytes = max_bytes;
        self.make_room(now, 0);
    }

    pub(super) fn get(&mut self, now: Instant, key: &str) -> Option<Bytes> {
        let value = self.values.get(key)?;
        if value.until.is_some_and(|until| until <= now) {
            self.remove(key);
            return None;
        }
        Some(value.bytes.clone())
    }

    pub(super) fn put(&mut self, now: Instant, key: &str, value: &[u8], ttl: Duration) {
        self.remove(key);
        for _ in 0..REMOVALS {
            if !self.remove_expired(now) {
                break;
            }
        }
        let size = size(key, value);
        if ttl.is_zero() || size > self.max_bytes {
            return;
        }
        self.make_room(now, size);
        let (key, number, until) = (Arc::<str>::from(key), self.puts, now.checked_add(ttl));
        self.puts += 1;
        self.bytes += size;
        self.by_age.insert(number, Arc::clone(&key));
        self.by_expiry.extend(until.map(|until| (until, number)));
        // A copy: the given one may be a small part of a large buffer.
        self.values.insert(key, Value { bytes: Bytes::copy_from_slice(value), number, until });
    }

    pub(super) fn remove(&mut self, key: &str) {
        let Some(Value { bytes, number, until }) = self.values.remove(key) else { return };
        self.bytes -= size(key, &bytes);
        self.by_age.remove(&number);
        if let Some(until) = until {
            self.by_expiry.remove(&(until, number));
        }
    }

    /// Makes room for a value: expired ones go first, and then the oldest.
    fn make_room(&mut self, now: Instant, size: usize) {
        while self.bytes + size > self.max_bytes && (self.remove_expired(now) || self.remove_oldest()) {}
    }

    fn remove_expired(&mut self, now: Instant) -> bool {
        let first = self.by_expiry.first().filter(|(until, _)| *until <= now);
        let key = first.and_then(|(_, number)| self.by_age.get(number)).cloned();
        key.inspect(|key| self.remove(key)).is_some()
    }

    fn remove_oldest(&mut self) -> bool {
        let key = self.by_age.first_key_value().map(|(_, key)| Arc::clone(key));
        key.inspect(|key| self.remove(key)).is_some()
    }
}

fn size(key: &str, value: &[u8]) -> usize {
    key.len() + value.len() + ENTRY
}

#[cfg(all(test, not(ziggurat_loom)))]
mod tests;
