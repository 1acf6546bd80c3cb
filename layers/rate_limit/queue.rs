//! The calls that wait for tokens, in order of arrival.

use std::{collections::BTreeMap, task::Waker};

use crate::clock::Instant;

#[derive(Default)]
pub(super) struct Queue {
    /// The number of waiters that have joined so far: the ticket of the latest.
    joined: u64,
    waiting: BTreeMap<u64, Waiting>,
    /// The decisions about waiters that have not seen theirs yet.
    decided: BTreeMap<u64, Decision>,
    /// The cost of all that wait.
    cost: u64,
}

struct Waiting {
    cost: u32,
    waker: Waker,
}

/// The end of a wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Decision {
    /// The tokens were taken for the waiter, at this time.
    Granted(Instant),
    /// The waiter costs more than the bucket can hold by now.
    Refused { burst: u32 },
}

/// The state of a waiter.
pub(super) enum Place<W> {
    Waiting(W),
    Decided(Decision),
}

impl Queue {
    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }

    pub(super) fn cost(&self) -> u64 {
        self.cost
    }

    /// The ticket and the cost of the first waiter.
    pub(super) fn first(&self) -> Option<(u64, u32)> {
        self.waiting.first_key_value().map(|(ticket, waiting)| (*ticket, waiting.cost))
    }

    /// The cost of all waiters up to this one.
    pub(super) fn cost_until(&self, ticket: u64) -> u64 {
        self.waiting.range(..=ticket).map(|(_, waiting)| u64::from(waiting.cost)).sum()
    }

    pub(super) fn push(&mut self, cost: u32, waker: Waker) -> u64 {
        self.joined += 1;
        self.cost += u64::from(cost);
        self.waiting.insert(self.joined, Waiting { cost, waker });
        self.joined
    }

    /// Ends the wait of the first waiter.
    pub(super) fn decide_first(&mut self, decision: Decision) -> Option<(u64, Waker)> {
        let (ticket, waiting) = self.waiting.pop_first()?;
        self.cost -= u64::from(waiting.cost);
        self.decided.insert(ticket, decision);
        Some((ticket, waiting.waker))
    }

    /// Returns the waker of the first waiter. A waiter that is woken leaves a new one when it is polled.
    pub(super) fn take_first_waker(&mut self) -> Option<Waker> {
        let mut first = self.waiting.first_entry()?;
        Some(std::mem::replace(&mut first.get_mut().waker, Waker::noop().clone()))
    }

    /// Returns the state of a waiter, and forgets the decision about it.
    pub(super) fn look(&mut self, ticket: u64) -> Option<Place<&mut Waker>> {
        match self.waiting.get_mut(&ticket) {
            Some(waiting) => Some(Place::Waiting(&mut waiting.waker)),
            None => self.decided.remove(&ticket).map(Place::Decided),
        }
    }

    /// Forgets a waiter.
    pub(super) fn remove(&mut self, ticket: u64) -> Option<Place<Waker>> {
        match self.waiting.remove(&ticket) {
            Some(waiting) => {
                self.cost -= u64::from(waiting.cost);
                Some(Place::Waiting(waiting.waker))
            }
            None => self.decided.remove(&ticket).map(Place::Decided),
        }
    }
}
