//! Who is gathered for which call. It knows nothing of tasks, and is told the time.

use std::{collections::HashMap, hash::Hash, sync::Arc, time::Duration};

use crate::clock::Instant;

/// What is gathered and not sent: for each key at most one batch that others can still join, and those that are full.
///
/// `T` is what is gathered, and `B` is kept with a batch for all who join it.
pub(super) struct Gather<K, T, B> {
    max_size: usize,
    max_delay: Duration,
    open: HashMap<Arc<K>, u64>,
    batches: HashMap<u64, Batch<K, T, B>>,
    /// Of batches and places, so that none is ever taken for another.
    numbers: u64,
}

/// One batch. Whoever gets it drops it where no lock is held, for its key and what was gathered are the user's.
#[derive(Debug)]
pub(super) struct Batch<K, T, B> {
    key: Arc<K>,
    items: Vec<(u64, T)>,
    kept: B,
    due: Due,
}

impl<K, T, B> Batch<K, T, B> {
    pub(super) fn into_items(self) -> impl Iterator<Item = T> {
        self.items.into_iter().map(|(_, item)| item)
    }
}

/// When a batch is to be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Due {
    Now,
    At(Instant),
    /// Its delay is longer than the clock can count.
    WhenFull,
}

/// A place in a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) batch: u64,
    number: u64,
}

#[derive(Debug)]
pub(super) struct Joined<K, B> {
    pub(super) place: Place,
    pub(super) kept: B,
    /// The key, if there was a batch of it; otherwise the batch began with this one.
    pub(super) known: Option<K>,
    /// Whether it is full with this one, and is to be sent now.
    pub(super) is_full: bool,
}

/// What is to be dropped of somebody who left, outside of any lock: the item, and the batch if it was the last one in it.
pub(super) type Left<K, T, B> = (T, Option<Batch<K, T, B>>);

impl<K: Hash + Eq, T, B: Clone> Gather<K, T, B> {
    pub(super) fn new(max_size: usize, max_delay: Duration) -> Self {
        Self { max_size, max_delay, open: HashMap::new(), batches: HashMap::new(), numbers: 0 }
    }

    /// Joins the batch of this key, or begins one, whose clock starts now.
    pub(super) fn join(
        &mut self,
        key: K,
        item: T,
        now: impl FnOnce() -> Instant,
        keep: impl FnOnce() -> B,
    ) -> Joined<K, B> {
        self.numbers += 1;
        let number = self.numbers;
        let open = self.open.get(&key).copied();
        if let Some((id, batch)) = open.and_then(|id| Some((id, self.batches.get_mut(&id)?))) {
            batch.items.push((number, item));
            let is_full = batch.items.len() >= self.max_size;
            if is_full {
                batch.due = Due::Now;
                self.open.remove(&batch.key);
            }
            let place = Place { batch: id, number };
            return Joined { place, kept: batch.kept.clone(), known: Some(key), is_full };
        }
        let (kept, key, is_full) = (keep(), Arc::new(key), self.max_size <= 1);
        let due = match self.max_delay {
            _ if is_full => Due::Now,
            Duration::ZERO => Due::Now,
            delay => now().checked_add(delay).map_or(Due::WhenFull, Due::At),
        };
        if !is_full {
            self.open.insert(Arc::clone(&key), number);
        }
        self.batches.insert(number, Batch { key, items: vec![(number, item)], kept: kept.clone(), due });
        Joined { place: Place { batch: number, number }, kept, known: None, is_full }
    }

    /// When this batch is to be sent.
    pub(super) fn due(&self, batch: u64) -> Due {
        self.batches.get(&batch).map_or(Due::Now, |batch| batch.due)
    }

    /// What is in this batch so far.
    pub(super) fn items(&self, batch: u64) -> impl Iterator<Item = &T> {
        self.batches.get(&batch).into_iter().flat_map(|batch| &batch.items).map(|(_, item)| item)
    }

    /// The batch, to be sent: nobody joins or leaves it any more.
    pub(super) fn take(&mut self, batch: u64) -> Option<Batch<K, T, B>> {
        let taken = self.batches.remove(&batch)?;
        if self.open.get(&taken.key) == Some(&batch) {
            self.open.remove(&taken.key);
        }
        Some(taken)
    }

    /// Gives a place up, if the batch was not sent yet. With the last one the batch goes too.
    pub(super) fn leave(&mut self, place: Place) -> Option<Left<K, T, B>> {
        let batch = self.batches.get_mut(&place.batch)?;
        let index = batch.items.iter().position(|(number, _)| *number == place.number)?;
        let (_, item) = batch.items.remove(index);
        let is_last = batch.items.is_empty();
        Some((item, is_last.then(|| self.take(place.batch)).flatten()))
    }
}

impl<K, T, B> Gather<K, T, B> {
    /// How many wait for a batch to be sent.
    pub(super) fn len(&self) -> usize {
        self.batches.values().map(|batch| batch.items.len()).sum()
    }
}

#[cfg(test)]
mod tests;
