//! The wakers of the readers that wait.
//!
//! This module is pure state. Its caller holds it under a lock, and clones, wakes and drops wakers without.

use std::{mem, task::Waker};

/// A reader takes a place when it first waits, and returns it when it leaves. Places are used again.
#[derive(Default)]
pub(super) struct Wakers {
    places: Vec<Place>,
    free: Vec<usize>,
    /// The places with a waker, in the order in which their readers began to wait. Some may have none any more.
    waiting: Vec<usize>,
}

#[derive(Default)]
struct Place {
    waker: Option<Waker>,
    is_listed: bool,
}

impl Wakers {
    /// Returns whether the reader waits already, with a waker of the same task.
    pub(super) fn is_known(&self, place: Option<usize>, waker: &Waker) -> bool {
        let known = place.and_then(|place| self.places[place].waker.as_ref());
        known.is_some_and(|known| known.will_wake(waker))
    }

    /// Sets the waker of a reader, and returns the one before it.
    pub(super) fn set(&mut self, place: &mut Option<usize>, waker: Waker) -> Option<Waker> {
        let index = *place.get_or_insert_with(|| {
            self.free.pop().unwrap_or_else(|| {
                self.places.push(Place::default());
                self.places.len() - 1
            })
        });
        let place = &mut self.places[index];
        if !mem::replace(&mut place.is_listed, true) {
            self.waiting.push(index);
        }
        place.waker.replace(waker)
    }

    /// Returns the place of a reader that leaves. Its waker is to be dropped.
    pub(super) fn give_back(&mut self, place: usize) -> Option<Waker> {
        self.free.push(place);
        self.places[place].waker.take()
    }

    /// Moves the wakers of all readers that wait.
    pub(super) fn drain(&mut self, into: &mut Vec<Waker>) {
        for index in self.waiting.drain(..) {
            let place = &mut self.places[index];
            place.is_listed = false;
            into.extend(place.waker.take());
        }
    }
}

#[cfg(test)]
impl Wakers {
    pub(super) fn len(&self) -> [usize; 2] {
        [self.places.len(), self.waiting.len()]
    }
}
