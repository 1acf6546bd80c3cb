//! A store in the memory of this process.

use std::{collections::HashMap, convert::Infallible, ops::RangeInclusive, time::Duration};

use super::{
    quota::Quota,
    store::{Store, Taken, amounts},
};
use crate::{
    bucket::{Bucket, Denied},
    clock::{self, Instant},
    debug::impl_debug,
    mutex::Mutex,
};

/// A [`Store`] in the memory of this process, for tests on tokio's paused clock. It never forgets a key.
///
/// A program of a single process needs no store: a [`RateLimitLayer`](crate::rate_limit::RateLimitLayer) decides
/// without a lock.
pub struct MemoryStore {
    epoch: Instant,
    buckets: Mutex<HashMap<String, (Quota, Bucket)>>,
}

impl MemoryStore {
    /// Creates a store of full buckets.
    #[must_use]
    pub fn new() -> Self {
        Self { epoch: clock::now(), buckets: Mutex::default() }
    }

    fn with<T>(&self, key: &str, quota: &Quota, now: Instant, decide: impl FnOnce(&Bucket) -> T) -> T {
        let mut buckets = self.buckets.lock();
        let new = || (*quota, Bucket::new(quota.rate(), now));
        let (known, bucket) = buckets.entry(key.to_owned()).or_insert_with(new);
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

impl_debug!(MemoryStore { buckets = |this| this.buckets.lock().len() });

impl Store for MemoryStore {
    type Error = Infallible;

    async fn take(&self, key: &str, tokens: RangeInclusive<u32>, quota: &Quota) -> Result<Taken, Infallible> {
        let now = clock::now();
        let at = now.saturating_duration_since(self.epoch).as_nanos() as u64;
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
        self.with(key, quota, now, |bucket| bucket.give_back(tokens, self.epoch + Duration::from_nanos(at), now));
        Ok(())
    }
}
