//! A store in the memory of this process.

use std::{collections::HashMap, convert::Infallible, ops::RangeInclusive, sync::Arc, time::Duration};

use bytes::Bytes;

use super::{
    quota::Quota,
    tokens::{Taken, TokenStore, amounts},
    values::ValueStore,
};
use crate::{
    bucket::{Bucket, Denied},
    clock::{self, Instant},
    debug::impl_debug,
    mutex::Mutex,
};

mod expiring;
use expiring::Expiring;

/// The bound of all values, in bytes.
const MAX_BYTES: usize = 64 << 20;

/// From this number of buckets on, full buckets are forgotten.
const BUCKETS: usize = 1024;

/// A [`TokenStore`] and [`ValueStore`] in the memory of this process: for a single process, and for tests on tokio's
/// paused clock. Clones refer to the same data.
///
/// A rate limit of a single process needs no store: a [`RateLimitLayer`](crate::rate_limit::RateLimitLayer) decides
/// without a lock.
///
/// All values together have at most [`max_bytes`](Self::max_bytes), 64 MiB by default. If there is no room for another
/// one, those that have expired make room, and then the oldest. Buckets that are full again are forgotten from time to
/// time, so their number is bounded by the number of keys that take tokens within the time in which a bucket becomes
/// full.
#[derive(Clone)]
pub struct MemoryStore {
    shared: Arc<Shared>,
}

struct Shared {
    epoch: Instant,
    buckets: Mutex<Buckets>,
    values: Mutex<Expiring>,
}

struct Buckets {
    by_key: HashMap<String, (Quota, Bucket)>,
    /// The number of buckets at which full ones are forgotten next.
    sweep: usize,
}

impl MemoryStore {
    /// Creates a store of full buckets, and without values.
    #[must_use]
    pub fn new() -> Self {
        let buckets = Mutex::new(Buckets { by_key: HashMap::new(), sweep: BUCKETS });
        let values = Mutex::new(Expiring::new(MAX_BYTES));
        Self { shared: Arc::new(Shared { epoch: clock::now(), buckets, values }) }
    }

    /// Sets how many bytes all values may have together, in all clones. The default is 64 MiB.
    ///
    /// Each value counts with its key and 200 bytes for its administration. A value that is larger than all of it is
    /// forgotten at once.
    #[must_use]
    pub fn max_bytes(self, max_bytes: usize) -> Self {
        self.shared.values.lock().bound(clock::now(), max_bytes);
        self
    }

    /// Returns the number of bytes that count towards [`max_bytes`](Self::max_bytes), values included that have expired
    /// and still take up room.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.shared.values.lock().bytes()
    }

    fn with<T>(&self, key: &str, quota: &Quota, now: Instant, decide: impl FnOnce(&Bucket) -> T) -> T {
        let Buckets { by_key, sweep } = &mut *self.shared.buckets.lock();
        if by_key.len() >= *sweep {
            by_key.retain(|_, (_, bucket)| !bucket.is_full(now));
            *sweep = (2 * by_key.len()).max(BUCKETS);
        }
        let new = || (*quota, Bucket::new(quota.rate(), now));
        let (known, bucket) = by_key.entry(key.to_owned()).or_insert_with(new);
        if known != quota {
            *known = *quota;
            bucket.set(quota.rate(), now);
        }
        decide(bucket)
    }
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self::new()
    }
}

impl_debug!(MemoryStore {
    buckets = |this| this.shared.buckets.lock().by_key.len(),
    values = |this| this.shared.values.lock().len(),
    bytes = |this| this.bytes(),
});

impl TokenStore for MemoryStore {
    type Error = Infallible;

    async fn take(&self, key: &str, tokens: RangeInclusive<u32>, quota: &Quota) -> Result<Taken, Infallible> {
        let now = clock::now();
        let at = now.saturating_duration_since(self.shared.epoch).as_nanos() as u64;
        Ok(self.with(key, quota, now, |bucket| {
            let granted = amounts(&tokens).find(|tokens| bucket.take(now, *tokens).is_ok());
            match granted {
                Some(tokens) => Taken::Granted { tokens, at },
                None => match bucket.denied(now, *tokens.start(), 0) {
                    Denied::Wait(wait) => Taken::Denied { wait },
                    Denied::Never { .. } => Taken::Denied { wait: Duration::MAX },
                },
            }
        }))
    }

    async fn give_back(&self, key: &str, tokens: u32, at: u64, quota: &Quota) -> Result<(), Infallible> {
        let now = clock::now();
        let taken_at = self.shared.epoch + Duration::from_nanos(at);
        self.with(key, quota, now, |bucket| bucket.give_back(tokens, taken_at, now));
        Ok(())
    }
}

impl ValueStore for MemoryStore {
    type Error = Infallible;

    async fn get(&self, key: &str) -> Result<Option<Bytes>, Infallible> {
        Ok(self.shared.values.lock().get(clock::now(), key))
    }

    async fn put(&self, key: &str, value: Bytes, ttl: Duration) -> Result<(), Infallible> {
        self.shared.values.lock().put(clock::now(), key, &value, ttl);
        Ok(())
    }

    async fn put_new(&self, key: &str, value: Bytes, ttl: Duration) -> Result<Option<Bytes>, Infallible> {
        let (now, mut values) = (clock::now(), self.shared.values.lock());
        let present = values.get(now, key);
        if present.is_none() {
            values.put(now, key, &value, ttl);
        }
        Ok(present)
    }

    async fn replace(&self, key: &str, current: &[u8], new: Option<Bytes>, ttl: Duration) -> Result<bool, Infallible> {
        let (now, mut values) = (clock::now(), self.shared.values.lock());
        let is_current = values.get(now, key).is_some_and(|value| value == current);
        match new {
            _ if !is_current => {}
            Some(new) => values.put(now, key, &new, ttl),
            None => values.remove(key),
        }
        Ok(is_current)
    }

    async fn remove(&self, key: &str) -> Result<(), Infallible> {
        self.shared.values.lock().remove(key);
        Ok(())
    }
}
