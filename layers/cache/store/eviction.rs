//! The eviction policy of the store. It knows nothing of keys, time or locks.
//!
//! The policy is close to S3-FIFO. A new entry is on *probation*, in a queue for a tenth of the capacity. When it
//! leaves this queue, it is *kept* if it was used in the meantime, in a queue for the rest of the capacity. Otherwise
//! it is evicted and its hash is remembered. An entry that comes back while its hash is remembered is kept at once. A
//! scan of keys that are never used again therefore passes through the tenth, and a working set that fits has evicted
//! all others by its second round. A kept entry gets a second chance each time it is found in use (CLOCK).
//!
//! The policy remembers as many hashes as there are entries. A working set as large as the cache needs that many, and
//! no fixed number would do for weighted entries.

use std::collections::{HashMap, VecDeque};

/// Entries on probation may take this fraction of the capacity before they are evicted: one in ten.
const PROBATION: u64 = 10;

/// The number of second chances that one eviction gives.
///
/// Enough to clear the bits of all entries in time, and few enough that no insertion pays for a thousand others.
const SECOND_CHANCES: usize = 16;

/// The number of hashes that one eviction forgets when there are fewer entries than before.
const FORGOTTEN_AT_ONCE: usize = 2;

/// The entries in the order of their eviction. `T` is an entry.
pub(super) struct Eviction<T> {
    capacity: u64,
    nodes: Vec<Node<T>>,
    /// The first vacant node.
    vacant: u32,
    probation: Queue,
    kept: Queue,
    len: usize,
    remembered: Remembered,
}

struct Node<T> {
    /// `None` if the node is vacant. Then `next` is the next vacant one.
    item: Option<T>,
    hash: u64,
    weight: u64,
    is_kept: bool,
    before: u32,
    next: u32,
}

/// The index of no node.
const NONE: u32 = u32::MAX;

/// A queue through the nodes, oldest first.
struct Queue {
    first: u32,
    last: u32,
    weight: u64,
}

impl Queue {
    const EMPTY: Self = Self { first: NONE, last: NONE, weight: 0 };
}

impl<T> Eviction<T> {
    pub(super) fn new(capacity: u64) -> Self {
        Self {
            capacity,
            nodes: Vec::new(),
            vacant: NONE,
            probation: Queue::EMPTY,
            kept: Queue::EMPTY,
            len: 0,
            remembered: Remembered::default(),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    #[cfg(any(test, feature = "http-cache"))]
    pub(super) fn weight(&self) -> u64 {
        self.probation.weight + self.kept.weight
    }

    #[cfg(feature = "http-cache")]
    pub(super) fn set_capacity(&mut self, capacity: u64) {
        self.capacity = capacity;
    }

    /// Returns an empty one of the same capacity.
    pub(super) fn emptied(&self) -> Self {
        Self::new(self.capacity)
    }

    /// Returns whether an entry of this weight fits after evicting all others.
    pub(super) fn has_room_for(&self, weight: u64) -> bool {
        weight <= self.capacity
    }

    /// Evicts entries until there is room for `weight`, or nothing is left.
    ///
    /// `was_used` returns whether an entry was used since the last time it was asked about it.
    pub(super) fn make_room(&mut self, weight: u64, was_used: impl Fn(&T) -> bool, mut evicted: impl FnMut(T)) {
        let most = self.capacity.saturating_sub(weight);
        while self.len > 0 && self.probation.weight.saturating_add(self.kept.weight) > most {
            self.evict(&was_used).into_iter().for_each(&mut evicted);
        }
    }

    fn evict(&mut self, was_used: &impl Fn(&T) -> bool) -> Option<T> {
        let mut chances = SECOND_CHANCES;
        loop {
            let is_full = self.probation.weight > self.capacity / PROBATION || self.kept.first == NONE;
            let at = if is_full { self.probation.first } else { self.kept.first };
            let node = self.nodes.get(at as usize)?;
            if chances > 0 && node.item.as_ref().is_some_and(was_used) {
                chances -= 1;
                self.unlink(at);
                self.link(at, true);
                continue;
            }
            let (hash, was_kept) = (node.hash, node.is_kept);
            let item = self.take(at);
            if !was_kept {
                self.remembered.insert(hash, self.len);
            }
            return item;
        }
    }

    /// Adds an entry, which `make` makes from its place.
    pub(super) fn insert(&mut self, hash: u64, weight: u64, make: impl FnOnce(u32) -> T) -> &T {
        let is_kept = self.remembered.remove(hash);
        let vacant = Node { item: None, hash, weight, is_kept, before: NONE, next: NONE };
        let at = match self.vacant {
            NONE => {
                self.nodes.push(vacant);
                (self.nodes.len() - 1) as u32
            }
            at => {
                self.vacant = std::mem::replace(&mut self.nodes[at as usize], vacant).next;
                at
            }
        };
        self.link(at, is_kept);
        self.len += 1;
        self.nodes[at as usize].item.insert(make(at))
    }

    /// Removes the entry at this place. If the entry was used or kept, it will be kept at once if it comes back soon.
    pub(super) fn remove(&mut self, at: u32, was_used: bool) -> Option<T> {
        let node = self.nodes.get(at as usize)?;
        let (hash, is_proven) = (node.hash, was_used || node.is_kept);
        let item = self.take(at);
        if is_proven {
            self.remembered.insert(hash, self.len);
        }
        item
    }

    fn take(&mut self, at: u32) -> Option<T> {
        let item = self.nodes[at as usize].item.take()?;
        self.unlink(at);
        self.nodes[at as usize].next = self.vacant;
        self.vacant = at;
        self.len -= 1;
        Some(item)
    }

    fn queue(&mut self, is_kept: bool) -> &mut Queue {
        if is_kept { &mut self.kept } else { &mut self.probation }
    }

    fn unlink(&mut self, at: u32) {
        let Node { is_kept, weight, before, next, .. } = self.nodes[at as usize];
        if let Some(before) = self.nodes.get_mut(before as usize) {
            before.next = next;
        }
        if let Some(next) = self.nodes.get_mut(next as usize) {
            next.before = before;
        }
        let queue = self.queue(is_kept);
        queue.weight -= weight;
        if queue.first == at {
            queue.first = next;
        }
        if queue.last == at {
            queue.last = before;
        }
    }

    /// Appends a node to a queue.
    fn link(&mut self, at: u32, is_kept: bool) {
        let weight = self.nodes[at as usize].weight;
        let queue = self.queue(is_kept);
        queue.weight += weight;
        let before = std::mem::replace(&mut queue.last, at);
        if before == NONE {
            queue.first = at;
        } else {
            self.nodes[before as usize].next = at;
        }
        let node = &mut self.nodes[at as usize];
        (node.is_kept, node.before, node.next) = (is_kept, before, NONE);
    }
}

/// The hashes of entries that are gone, oldest first.
#[derive(Default)]
struct Remembered {
    hashes: HashMap<u64, u64, ahash::RandomState>,
    order: VecDeque<(u64, u64)>,
    numbers: u64,
}

impl Remembered {
    /// Remembers `hash`, and forgets the oldest beyond `most` others.
    fn insert(&mut self, hash: u64, most: usize) {
        self.numbers += 1;
        self.hashes.insert(hash, self.numbers);
        self.order.push_back((hash, self.numbers));
        for _ in 0..FORGOTTEN_AT_ONCE {
            if self.order.len() > most.saturating_add(1)
                && let Some((hash, number)) = self.order.pop_front()
                && self.hashes.get(&hash) == Some(&number)
            {
                self.hashes.remove(&hash);
            }
        }
    }

    /// Forgets `hash`. Returns whether it was remembered.
    fn remove(&mut self, hash: u64) -> bool {
        self.hashes.remove(&hash).is_some()
    }
}

#[cfg(test)]
mod tests;
