//! The memory of all bodies in a cache: those that are arriving, that are stored, and that callers still read.

use std::{
    mem,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

/// The number of bytes that bodies may take in memory, together.
pub(in super::super) struct Room {
    limit: AtomicUsize,
    taken: AtomicUsize,
}

impl Room {
    pub(in super::super) fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { limit: limit.into(), taken: AtomicUsize::new(0) })
    }

    pub(in super::super) fn set_limit(&self, limit: usize) {
        self.limit.store(limit, Relaxed);
    }
}

/// The bytes that one body has taken. Dropped, it releases them.
pub(super) struct Share {
    room: Arc<Room>,
    taken: usize,
}

impl Share {
    pub(super) fn of(room: &Arc<Room>) -> Self {
        Self { room: Arc::clone(room), taken: 0 }
    }

    /// Takes this number of bytes, if there are as many.
    pub(super) fn take(&mut self, bytes: usize) -> bool {
        let limit = self.room.limit.load(Relaxed);
        let add = |taken: usize| taken.checked_add(bytes).filter(|taken| *taken <= limit);
        let is_taken = self.room.taken.fetch_update(Relaxed, Relaxed, add).is_ok();
        if is_taken {
            self.taken += bytes;
        }
        is_taken
    }

    /// Moves the bytes to another owner.
    pub(super) fn give(&mut self) -> Self {
        Self { room: Arc::clone(&self.room), taken: mem::take(&mut self.taken) }
    }

    /// Takes or releases bytes until it has this number, if there are as many. Returns the number that it has.
    pub(super) fn adjust(&mut self, to: usize) -> usize {
        match to.checked_sub(self.taken) {
            Some(more) => {
                self.take(more);
            }
            None => {
                self.room.taken.fetch_sub(self.taken - to, Relaxed);
                self.taken = to;
            }
        }
        self.taken
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.adjust(0);
    }
}

#[cfg(test)]
impl Room {
    pub(super) fn taken(&self) -> usize {
        self.taken.load(Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_share_the_room_and_give_it_back() {
        let room = Room::new(10);
        let (mut one, mut other) = (Share::of(&room), Share::of(&room));
        assert!(one.take(4) && other.take(6) && !one.take(1) && other.take(0));
        drop(other);
        assert!(one.take(6) && !one.take(usize::MAX));
        drop(one);
        let mut last = Share::of(&room);
        assert!(last.take(10) && last.give().taken == 10 && last.take(10));
        assert_eq!([last.adjust(3), last.adjust(11), last.adjust(9)], [3, 3, 9]);
        room.set_limit(20);
        assert!(last.take(11) && !last.take(1));
    }
}
