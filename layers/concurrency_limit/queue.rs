//! The calls that wait for a permit: the higher rank first, and in order of arrival within a rank.

use std::{
    collections::{BTreeMap, BTreeSet},
    task::Waker,
};

use super::priority::{Counts, Rank};

/// A place in the queue. The first is admitted next, and the last is shed first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Ticket {
    rank: Rank,
    number: u64,
}

#[derive(Default)]
pub(super) struct Queue {
    /// The number of waiters that have joined so far.
    joined: u64,
    waiting: BTreeMap<Ticket, Waker>,
    /// The waiters that were shed and are not dropped yet. One that is neither here nor waiting was admitted.
    shed: BTreeSet<Ticket>,
}

/// The state of a waiter.
pub(super) enum Place<W> {
    Waiting(W),
    Admitted,
    Shed,
}

impl Queue {
    pub(super) fn push(&mut self, counts: &Counts, rank: Rank, waker: Waker) -> Ticket {
        self.joined += 1;
        let ticket = Ticket { rank, number: self.joined };
        self.waiting.insert(ticket, waker);
        counts.add(rank);
        ticket
    }

    /// Admits the first waiter.
    pub(super) fn pop(&mut self, counts: &Counts) -> Option<Waker> {
        let (ticket, waker) = self.waiting.pop_first()?;
        counts.remove(ticket.rank);
        Some(waker)
    }

    /// Sheds the newest waiter of the lowest rank, if that is below `rank`.
    pub(super) fn shed_below(&mut self, counts: &Counts, rank: Rank) -> Option<Waker> {
        let last = self.waiting.last_entry().filter(|last| last.key().rank > rank)?;
        let (ticket, waker) = last.remove_entry();
        counts.remove(ticket.rank);
        self.shed.insert(ticket);
        Some(waker)
    }

    pub(super) fn place(&mut self, ticket: Ticket) -> Place<&mut Waker> {
        match self.waiting.get_mut(&ticket) {
            Some(waker) => Place::Waiting(waker),
            None if self.shed.contains(&ticket) => Place::Shed,
            None => Place::Admitted,
        }
    }

    /// Forgets a waiter.
    pub(super) fn remove(&mut self, counts: &Counts, ticket: Ticket) -> Place<Waker> {
        match self.waiting.remove(&ticket) {
            Some(waker) => {
                counts.remove(ticket.rank);
                Place::Waiting(waker)
            }
            None if self.shed.remove(&ticket) => Place::Shed,
            None => Place::Admitted,
        }
    }
}

/// Wakers of waiters. If one of them panics, the others are still woken.
pub(super) struct Wakers(Vec<Waker>);

impl FromIterator<Waker> for Wakers {
    fn from_iter<I: IntoIterator<Item = Waker>>(wakers: I) -> Self {
        Self(wakers.into_iter().collect())
    }
}

impl Wakers {
    pub(super) fn wake(mut self) {
        // Reversed, so that `pop` wakes them in order. After a panic, `drop` wakes the rest.
        self.0.reverse();
        while let Some(waker) = self.0.pop() {
            waker.wake();
        }
    }
}

impl Drop for Wakers {
    fn drop(&mut self) {
        self.0.drain(..).rev().for_each(Waker::wake);
    }
}

#[cfg(all(test, not(ziggurat_loom)))]
mod tests;
