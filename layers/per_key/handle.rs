//! The handle to the instances.

use std::{borrow::Borrow, fmt, hash::Hash, sync::Arc};

use super::{instance::PerKeyInstance, registry::Registry};

/// Lists the keys and their instances, and changes the maximum number of keys. Clones share all of it.
pub struct PerKeyHandle<K, L> {
    pub(super) registry: Arc<Registry<K, L>>,
}

impl<K, L> PerKeyHandle<K, L> {
    /// Returns the number of keys that have an instance.
    #[must_use]
    pub fn key_count(&self) -> usize {
        self.registry.len()
    }

    /// Returns the maximum number of keys.
    #[must_use]
    pub fn max_keys(&self) -> usize {
        self.registry.max_keys()
    }

    /// Changes the maximum number of keys. While there are more, each new key makes room for a few others to go, as far
    /// as they are not needed.
    ///
    /// # Panics
    ///
    /// Panics if `max_keys` is zero.
    #[track_caller]
    pub fn set_max_keys(&self, max_keys: usize) {
        assert!(max_keys > 0, "the maximum number of keys must be at least 1");
        self.registry.set_max_keys(max_keys);
    }

    /// Returns how many requests had a key beyond the maximum.
    #[must_use]
    pub fn overflowed(&self) -> u64 {
        self.registry.overflowed()
    }

    /// Describes the instance of each key, in no particular order.
    ///
    /// Locks one part of the keys after another, so calls may begin and end meanwhile. It costs a clone of each key.
    #[must_use]
    pub fn instances(&self) -> Vec<PerKeyInstance<K, L>>
    where
        K: Clone,
    {
        self.registry.describe()
    }

    /// Describes the instance of one key, if it has one. It is no use of the key.
    #[must_use]
    pub fn instance<Q>(&self, key: &Q) -> Option<PerKeyInstance<K, L>>
    where
        K: Borrow<Q> + Clone,
        Q: Hash + Eq + ?Sized,
    {
        self.registry.describe_key(key)
    }

    /// Describes the instance of the requests that have none of their own ([`Unkeyed::Share`](super::Unkeyed::Share)),
    /// once there was one.
    #[must_use]
    pub fn shared(&self) -> Option<PerKeyInstance<(), L>> {
        self.registry.describe_shared()
    }
}

impl<K, L> Clone for PerKeyHandle<K, L> {
    fn clone(&self) -> Self {
        Self { registry: Arc::clone(&self.registry) }
    }
}

impl<K, L> fmt::Debug for PerKeyHandle<K, L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PerKeyHandle")
            .field("keys", &self.key_count())
            .field("max_keys", &self.max_keys())
            .finish_non_exhaustive()
    }
}
