//! The wakers of the pending calls, so that the beginning of a drain reaches all of them.
//!
//! A pending call takes a place, and returns it at its end. Neither takes a lock, and places are used again, so a
//! server allocates only when more calls are pending than ever before.

#[cfg(all(test, ziggurat_loom))]
use loom::{
    future::AtomicWaker,
    sync::atomic::{AtomicU32, AtomicU64, Ordering},
};
#[cfg(not(all(test, ziggurat_loom)))]
use {
    futures_util::task::AtomicWaker,
    std::sync::atomic::{AtomicU32, AtomicU64, Ordering},
};

use std::{sync::OnceLock, task::Waker};

use crate::caught::undisturbed;

/// The first chunk has 2 to this power of places, and each further one twice as many as the one before it.
const FIRST_BITS: u32 = if cfg!(all(test, ziggurat_loom)) { 0 } else { 5 };
const CHUNKS: usize = (u32::BITS - FIRST_BITS) as usize;

/// No place is free. Any other value is a place plus one.
const NONE: u32 = 0;

pub(super) struct Wakers {
    chunks: [OnceLock<Box<[Place]>>; CHUNKS],
    /// The number of places that were ever taken.
    taken: AtomicU32,
    /// The place that was returned last, in the lower half. The upper half counts the places taken from this list: a
    /// list that has changed meanwhile is not mistaken for the one that was read.
    returned: AtomicU64,
}

#[derive(Default)]
struct Place {
    waker: AtomicWaker,
    /// The place that was returned before this one, while this one is not in use.
    next: AtomicU32,
}

fn unpacked(returned: u64) -> (u64, u32) {
    (returned >> u32::BITS, returned as u32)
}

fn packed(version: u64, place: u32) -> u64 {
    version << u32::BITS | u64::from(place)
}

impl Wakers {
    pub(super) fn new() -> Self {
        let chunks = [const { OnceLock::new() }; CHUNKS];
        Self { chunks, taken: AtomicU32::new(0), returned: AtomicU64::new(0) }
    }

    /// Takes a place for a call.
    pub(super) fn take(&self) -> u32 {
        let mut returned = self.returned.load(Ordering::Acquire);
        loop {
            let (version, first) = unpacked(returned);
            if first == NONE {
                return self.taken.fetch_add(1, Ordering::AcqRel);
            }
            let place = first - 1;
            let rest = packed(version.wrapping_add(1), self.place(place).next.load(Ordering::Relaxed));
            match self.returned.compare_exchange_weak(returned, rest, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return place,
                Err(now) => returned = now,
            }
        }
    }

    /// Sets the waker of a call. A waker that was set after [`wake_all`](Self::wake_all) is not woken: the caller looks
    /// afterwards for what that call announces.
    pub(super) fn register(&self, place: u32, waker: &Waker) {
        #[cfg(all(test, ziggurat_loom))]
        self.place(place).waker.register_by_ref(waker);
        #[cfg(not(all(test, ziggurat_loom)))]
        self.place(place).waker.register(waker);
    }

    /// Returns the place of a call, and drops its waker.
    pub(super) fn give_back(&self, place: u32) {
        let given_back = self.place(place);
        #[cfg(all(test, ziggurat_loom))]
        let waker = given_back.waker.take_waker();
        #[cfg(not(all(test, ziggurat_loom)))]
        let waker = given_back.waker.take();
        undisturbed(|| drop(waker));
        let mut returned = self.returned.load(Ordering::Relaxed);
        loop {
            let (version, first) = unpacked(returned);
            given_back.next.store(first, Ordering::Relaxed);
            let now = packed(version, place + 1);
            match self.returned.compare_exchange_weak(returned, now, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => return,
                Err(now) => returned = now,
            }
        }
    }

    /// Wakes all calls.
    pub(super) fn wake_all(&self) {
        // A read that writes: a call that takes a new place after it sees what this one announces.
        let taken = self.taken.fetch_add(0, Ordering::AcqRel);
        for place in 0..taken {
            undisturbed(|| self.place(place).waker.wake());
        }
    }

    fn place(&self, place: u32) -> &Place {
        let (chunk, offset) = position(place);
        let places = || (0..1_usize << (chunk + FIRST_BITS)).map(|_| Place::default()).collect();
        &self.chunks[chunk as usize].get_or_init(places)[offset]
    }
}

/// The chunk of a place, and its offset there.
fn position(place: u32) -> (u32, usize) {
    let from_first = u64::from(place) + (1 << FIRST_BITS);
    let chunk = from_first.ilog2() - FIRST_BITS;
    (chunk, (from_first - (1 << (chunk + FIRST_BITS))) as usize)
}

#[cfg(all(test, not(ziggurat_loom)))]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn each_place_is_in_one_chunk() {
        let mut positions = HashSet::new();
        for place in (0..5_000).chain([u32::MAX - 1, u32::MAX]) {
            let (chunk, offset) = position(place);
            assert!((chunk as usize) <= CHUNKS && offset < 1 << (chunk + FIRST_BITS), "{place}");
            assert!(positions.insert((chunk, offset)), "{place}");
        }
    }

    #[test]
    fn places_are_used_again() {
        let wakers = Wakers::new();
        let places: HashSet<_> = (0..100).map(|_| wakers.take()).collect();
        assert_eq!(places, (0..100).collect());
        for place in &places {
            wakers.give_back(*place);
        }
        let again: HashSet<_> = (0..100).map(|_| wakers.take()).collect();
        assert_eq!(again, places);
        assert_eq!(wakers.take(), 100);
    }
}
