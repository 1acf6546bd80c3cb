//! The memory of all bodies that are arriving at a cache.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::Relaxed},
};

/// The number of bytes that bodies may take while they arrive, together.
pub(in super::super) struct Room {
    limit: usize,
    taken: AtomicUsize,
}

impl Room {
    pub(in super::super) fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { limit, taken: AtomicUsize::new(0) })
    }
}

/// The bytes that one body has taken. Dropped, it releases them.
pub(super) struct Share {
    room: Arc<Room>,
    taken: AtomicUsize,
}

impl Share {
    pub(super) fn of(room: &Arc<Room>) -> Self {
        Self { room: Arc::clone(room), taken: AtomicUsize::new(0) }
    }

    /// Takes this number of bytes, if there are as many.
    pub(super) fn take(&self, bytes: usize) -> bool {
        let add = |taken: usize| taken.checked_add(bytes).filter(|taken| *taken <= self.room.limit);
        let is_taken = self.room.taken.fetch_update(Relaxed, Relaxed, add).is_ok();
        if is_taken {
            self.taken.fetch_add(bytes, Relaxed);
        }
        is_taken
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.room.taken.fetch_sub(*self.taken.get_mut(), Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_share_the_room_and_give_it_back() {
        let room = Room::new(10);
        let (one, other) = (Share::of(&room), Share::of(&room));
        assert!(one.take(4) && other.take(6) && !one.take(1) && other.take(0));
        drop(other);
        assert!(one.take(6) && !one.take(usize::MAX));
        drop(one);
        assert!(Share::of(&room).take(10));
    }
}
