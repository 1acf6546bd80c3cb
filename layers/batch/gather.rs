//! Assigns requests to batches. Pure logic without tasks, which is given the time.

use std::{
    collections::HashMap,
    hash::{BuildHasher, Hash, Hasher},
    sync::Arc,
    time::Duration,
};

use self::items::{Items, Number};
use crate::clock::Instant;

mod items;

/// The requests that are gathered and not sent: for each key at most one batch that is open to others, and full
/// batches.
///
/// `T` is a gathered item. `B` is stored with a batch for all who join it.
pub(super) struct Gather<K, T, B> {
    max_size: usize,
    max_delay: Duration,
    open: HashMap<Arc<Key<K>>, u64>,
    batches: HashMap<u64, Batch<K, T, B>>,
    /// Numbers batches and places in one sequence, so that no number is used twice.
    numbers: u64,
}

/// A key with its hash, so that user code computes the hash before any lock is taken.
///
/// Its `Eq` still runs under a lock, when two keys with equal hashes are compared.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Key<K> {
    hash: u64,
    key: K,
}

impl<K: Hash> Key<K> {
    pub(super) fn new(key: K, hasher: &impl BuildHasher) -> Self {
        Self { hash: hasher.hash_one(&key), key }
    }
}

impl<K> Hash for Key<K> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.hash);
    }
}

/// A batch. Drop it without holding a lock, because dropping its key and items runs user code.
#[derive(Debug)]
pub(super) struct Batch<K, T, B> {
    key: Arc<Key<K>>,
    items: Items<T>,
    kept: B,
    due: Due,
    /// The number of times that the batch was taken over.
    turn: u64,
}

impl<K, T, B> Batch<K, T, B> {
    pub(super) fn into_items(self) -> Vec<T> {
        self.items.into_vec()
    }
}

/// When a batch is to be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Due {
    Now,
    At(Instant),
    /// The delay is longer than the clock can represent.
    WhenFull,
}

impl Due {
    pub(super) fn has_come(self, now: impl FnOnce() -> Instant) -> bool {
        match self {
            Self::Now => true,
            Self::At(due) => due <= now(),
            Self::WhenFull => false,
        }
    }
}

/// The place of an item in a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) batch: u64,
    number: Number,
}

#[derive(Debug)]
pub(super) struct Joined<B> {
    pub(super) place: Place,
    pub(super) kept: B,
    /// Whether this item opened the batch.
    pub(super) is_first: bool,
    /// Whether the batch is now full, and due.
    pub(super) is_full: bool,
}

/// The item that left, and its batch if it was the last item. Drop both without holding a lock.
pub(super) type Left<K, T, B> = (T, Option<Batch<K, T, B>>);

impl<K: Hash + Eq, T, B: Clone> Gather<K, T, B> {
    pub(super) fn new(max_size: usize, max_delay: Duration) -> Self {
        Self { max_size, max_delay, open: HashMap::new(), batches: HashMap::new(), numbers: 0 }
    }

    /// Joins the open batch of this key, or opens one, whose delay starts now.
    ///
    /// `keep` makes the value that is stored with a new batch. Without it, no batch is opened.
    ///
    /// Takes the key and the item only if they are needed. The caller drops the rest, without holding a lock.
    pub(super) fn join(
        &mut self,
        key: &mut Option<Key<K>>,
        item: &mut Option<T>,
        now: impl FnOnce() -> Instant,
        keep: Option<impl FnOnce() -> B>,
    ) -> Option<Joined<B>> {
        let open = self.open.get(key.as_ref()?).copied();
        self.numbers += 1;
        let number = Number(self.numbers);
        if let Some((id, batch)) = open.and_then(|id| Some((id, self.batches.get_mut(&id)?))) {
            batch.items.push(number, item.take()?);
            let is_full = batch.items.len() >= self.max_size;
            if is_full {
                batch.due = Due::Now;
                self.open.remove(&batch.key);
            }
            let place = Place { batch: id, number };
            return Some(Joined { place, kept: batch.kept.clone(), is_first: false, is_full });
        }
        let (kept, is_full) = (keep?(), self.max_size <= 1);
        let (key, items, batch) = (Arc::new(key.take()?), Items::one(number, item.take()?), self.numbers);
        let due = match self.max_delay {
            _ if is_full => Due::Now,
            Duration::ZERO => Due::Now,
            delay => now().checked_add(delay).map_or(Due::WhenFull, Due::At),
        };
        if !is_full {
            self.open.insert(Arc::clone(&key), batch);
        }
        self.batches.insert(batch, Batch { key, items, kept: kept.clone(), due, turn: 0 });
        Some(Joined { place: Place { batch, number }, kept, is_first: true, is_full })
    }

    /// Returns when this batch is due.
    pub(super) fn due(&self, batch: u64) -> Due {
        self.batches.get(&batch).map_or(Due::Now, |batch| batch.due)
    }

    /// Returns the items in this batch so far.
    pub(super) fn items(&self, batch: u64) -> impl Iterator<Item = &T> {
        self.batches.get(&batch).into_iter().flat_map(|batch| batch.items.iter())
    }

    /// Removes the batch, to send it. Nothing can join or leave it any more.
    pub(super) fn take(&mut self, batch: u64) -> Option<Batch<K, T, B>> {
        let taken = self.batches.remove(&batch)?;
        if self.open.get(&taken.key) == Some(&batch) {
            self.open.remove(&taken.key);
        }
        Some(taken)
    }

    /// Removes the batch, to send it, if it is still in this turn.
    pub(super) fn take_in_turn(&mut self, batch: u64, turn: u64) -> Option<Batch<K, T, B>> {
        let is_its_turn = self.batches.get(&batch)?.turn == turn;
        is_its_turn.then(|| self.take(batch)).flatten()
    }

    /// Starts the next turn of this batch, so that the task of the previous turn no longer sends it.
    pub(super) fn next_turn(&mut self, batch: u64) -> Option<u64> {
        let batch = self.batches.get_mut(&batch)?;
        batch.turn += 1;
        Some(batch.turn)
    }

    /// Gives up a place in a batch that was not sent. The last item takes the batch with it.
    pub(super) fn leave(&mut self, place: Place) -> Option<Left<K, T, B>> {
        let batch = self.batches.get_mut(&place.batch)?;
        let item = batch.items.remove(place.number)?;
        let is_last = batch.items.len() == 0;
        Some((item, is_last.then(|| self.take(place.batch)).flatten()))
    }
}

impl<K, T, B> Gather<K, T, B> {
    /// Returns the number of items that wait to be sent.
    pub(super) fn len(&self) -> usize {
        self.batches.values().map(|batch| batch.items.len()).sum()
    }
}

#[cfg(test)]
mod tests;
