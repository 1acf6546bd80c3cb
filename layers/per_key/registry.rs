//! All instances of a layer value, by key, within their bound.

use std::{
    borrow::Borrow,
    hash::Hash,
    sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    thread::available_parallelism,
};

use super::instance::{Instance, PerKeyInstance};
use crate::{
    keys::{Keys, LOOKS},
    mutex::Mutex,
};

/// The largest number of parts. More would not be used at the same time on any machine.
const MOST_PARTS: usize = 64;

/// The number of instances that are looked at to find one that makes room. It bounds the work of one call.
const ALL_LOOKS: usize = 2 * LOOKS;

/// The number of keys that are dropped for a new one while there are more than the maximum, which was lowered.
const EVICTIONS: usize = 4;

pub(super) struct Registry<K, L> {
    parts: Box<[Part<K, L>]>,
    hasher: ahash::RandomState,
    /// The number of keys, with those that are being made.
    len: AtomicUsize,
    max_keys: AtomicUsize,
    /// The instance of the requests that have none of their own.
    shared: Mutex<Option<Instance<L>>>,
    /// The number of requests whose key was beyond the maximum.
    overflowed: AtomicU64,
    /// The next part to look for room in.
    next: AtomicUsize,
    families: Mutex<Families>,
}

// On its own cache line, or two, because every call writes to the lock.
#[repr(align(128))]
struct Part<K, L>(Mutex<Keys<K, Instance<L>>>);

/// The numbers of the families: the services with their clones that the layer has made.
#[derive(Default)]
struct Families {
    free: Vec<usize>,
    most: usize,
}

/// Where an instance is.
pub(super) enum Place<'a, Q: ?Sized> {
    Key(u64, &'a Q),
    Shared,
}

/// The right to add a key.
pub(super) struct Room<'a, K, L> {
    registry: &'a Registry<K, L>,
    is_used: bool,
}

impl<K, L> Registry<K, L> {
    pub(super) fn new(max_keys: usize) -> Self {
        let cores = available_parallelism().map_or(1, |cores| cores.get());
        let parts = (4 * cores).next_power_of_two().min(MOST_PARTS);
        Self {
            parts: std::iter::repeat_with(|| Part(Mutex::new(Keys::new()))).take(parts).collect(),
            hasher: ahash::RandomState::new(),
            len: AtomicUsize::new(0),
            max_keys: AtomicUsize::new(max_keys),
            shared: Mutex::new(None),
            overflowed: AtomicU64::new(0),
            next: AtomicUsize::new(0),
            families: Mutex::new(Families::default()),
        }
    }

    #[inline]
    pub(super) fn hash<Q: Hash + ?Sized>(&self, key: &Q) -> u64 {
        self.hasher.hash_one(key)
    }

    fn part(&self, hash: u64) -> &Mutex<Keys<K, Instance<L>>> {
        // Other bits than those of the hash table, which uses the lowest and the seven highest.
        &self.parts[(hash >> 32) as usize & (self.parts.len() - 1)].0
    }

    pub(super) fn len(&self) -> usize {
        self.len.load(Relaxed)
    }

    pub(super) fn max_keys(&self) -> usize {
        self.max_keys.load(Relaxed)
    }

    pub(super) fn set_max_keys(&self, max_keys: usize) {
        self.max_keys.store(max_keys, Relaxed);
    }

    pub(super) fn overflowed(&self) -> u64 {
        self.overflowed.load(Relaxed)
    }

    /// Counts a request whose key is beyond the maximum.
    pub(super) fn note_overflow(&self) {
        self.overflowed.fetch_add(1, Relaxed);
    }

    /// Runs `look` on the instance at a place, under the lock of the place.
    #[inline]
    pub(super) fn at<Q, T>(&self, place: &Place<'_, Q>, look: impl FnOnce(Option<&mut Instance<L>>) -> T) -> T
    where
        K: Borrow<Q>,
        Q: Eq + ?Sized,
    {
        match *place {
            Place::Key(hash, key) => look(self.part(hash).lock().get(hash, key)),
            Place::Shared => look(self.shared.lock().as_mut()),
        }
    }

    /// Makes room for a key with this hash, unless it is beyond the maximum.
    pub(super) fn room(&self, hash: u64) -> Option<Room<'_, K, L>> {
        let is_free = |len| (len < self.max_keys()).then_some(len + 1);
        if self.len.fetch_update(Relaxed, Relaxed, is_free).is_ok() {
            return Some(Room { registry: self, is_used: false });
        }
        for _ in 0..EVICTIONS {
            let Some(room) = self.evict(hash) else { break };
            if self.len() <= self.max_keys() {
                return Some(room);
            }
        }
        None
    }

    /// Drops a key that is not needed. Its place is taken over.
    fn evict(&self, hash: u64) -> Option<Room<'_, K, L>> {
        let (next, mut looks) = (self.next.fetch_add(1, Relaxed), ALL_LOOKS);
        let others = (0..self.parts.len()).map(|part| &self.parts[next.wrapping_add(part) % self.parts.len()].0);
        for part in std::iter::once(self.part(hash)).chain(others) {
            // Dropped after the lock is released.
            let evicted = part.lock().evict(&mut looks, Instance::is_idle);
            if evicted.is_some() {
                return Some(Room { registry: self, is_used: false });
            }
            // Not before: a part may be empty.
            if looks == 0 {
                break;
            }
        }
        None
    }

    /// Adds the instance of the requests that share one, unless another call has added it meanwhile. Runs `look` on the
    /// one that is there.
    pub(super) fn share<T>(&self, instance: Instance<L>, look: impl FnOnce(&Instance<L>) -> T) -> T {
        // An instance that is not needed is dropped after the lock is released.
        let mut shared = self.shared.lock();
        match &*shared {
            Some(other) => look(other),
            None => look(shared.insert(instance)),
        }
    }

    /// Returns a number for a new family.
    pub(super) fn add_family(&self) -> usize {
        let mut families = self.families.lock();
        families.free.pop().unwrap_or_else(|| {
            families.most += 1;
            families.most - 1
        })
    }

    /// Drops all services of a family.
    pub(super) fn remove_family(&self, family: usize) {
        // Dropped after the locks are released.
        let mut services = Vec::new();
        for part in &self.parts {
            services.extend(part.0.lock().values_mut().filter_map(|instance| instance.remove_service(family)));
        }
        services.extend(self.shared.lock().as_mut().and_then(|instance| instance.remove_service(family)));
        self.families.lock().free.push(family);
    }

    /// Describes the instances, part by part, as they are when the part is reached.
    pub(super) fn describe(&self) -> Vec<PerKeyInstance<K, L>>
    where
        K: Clone,
    {
        let describe = |part: &Part<K, L>| -> Vec<_> {
            part.0.lock().iter().map(|(key, instance)| instance.describe(key.clone())).collect()
        };
        self.parts.iter().flat_map(describe).collect()
    }

    pub(super) fn describe_key<Q>(&self, key: &Q) -> Option<PerKeyInstance<K, L>>
    where
        K: Borrow<Q> + Clone,
        Q: Hash + Eq + ?Sized,
    {
        let hash = self.hash(key);
        self.part(hash).lock().peek(hash, key).map(|(key, instance)| instance.describe(key.clone()))
    }

    pub(super) fn describe_shared(&self) -> Option<PerKeyInstance<(), L>> {
        self.shared.lock().as_ref().map(|instance| instance.describe(()))
    }

    /// Returns whether any instance is not idle.
    pub(super) fn still_matters(&self) -> bool {
        let matters = |part: &Part<K, L>| part.0.lock().values_mut().any(|instance| !instance.is_idle());
        self.parts.iter().any(matters) || self.shared.lock().as_mut().is_some_and(|instance| !instance.is_idle())
    }
}

impl<K: Eq, L> Room<'_, K, L> {
    /// Adds a key with its instance, unless another call has added it meanwhile. Runs `look` on the one that is there.
    pub(super) fn fill<T>(
        mut self,
        hash: u64,
        key: K,
        instance: Instance<L>,
        look: impl FnOnce(&Instance<L>) -> T,
    ) -> T {
        // An instance that is not needed is dropped after the lock is released.
        let mut keys = self.registry.part(hash).lock();
        if let Some(other) = keys.get(hash, &key) {
            return look(other);
        }
        self.is_used = true;
        look(keys.insert(hash, key, instance))
    }
}

impl<K, L> Drop for Room<'_, K, L> {
    fn drop(&mut self) {
        if !self.is_used {
            self.registry.len.fetch_sub(1, Relaxed);
        }
    }
}
