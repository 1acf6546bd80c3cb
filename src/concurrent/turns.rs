//! Tracks which items had a turn, so that none starts after another has failed.
//!
//! Even if all running items are reported as pending, one of them may have ended: `FuturesUnordered` pauses after two
//! items that woke themselves, and every tokio future is pending once the task has used up its budget. So items record
//! when they are polled. A round begins when an item starts. The next item starts when the round is over: when
//! each item that was awake had a turn with a budget.

use std::{
    future::Future,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    task::Context,
};

/// The records of a run. Only the task that polls the run writes to them.
#[derive(Debug, Default)]
pub(super) struct Turns {
    round: AtomicU64,
    /// The number of items polled since the last call of `heard`.
    polled: AtomicUsize,
    /// The number of items that had a turn without a budget, and no other turn since.
    unheard: AtomicUsize,
    /// Whether an item had a second turn. Items take turns in order, so all that were awake had one before.
    is_second: AtomicBool,
}

/// Whether another item may start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Heard {
    All,
    /// Items may be awake that were not polled.
    Some,
    /// Some items wait for the task's next budget, at the executor's next turn. They wake the task.
    NotWithoutBudget,
}

impl Turns {
    /// Called when all `running` items were reported as pending.
    pub(super) fn heard(&self, running: usize) -> Heard {
        let polled = self.polled.swap(0, Relaxed);
        if self.unheard.load(Relaxed) > 0 {
            return Heard::NotWithoutBudget;
        }
        // `FuturesUnordered` does not pause after a single item, unless it is the only one.
        let is_paused = polled > 1 || (polled == 1 && running == 1);
        if is_paused && !self.is_second.load(Relaxed) { Heard::Some } else { Heard::All }
    }

    /// Starts a new round, with a new item.
    pub(super) fn next_round(&self) {
        self.round.fetch_add(1, Relaxed);
        self.is_second.store(false, Relaxed);
    }
}

/// The turns of one item.
#[derive(Debug)]
pub(super) struct Turn {
    turns: Arc<Turns>,
    /// The last round in which it had a turn with a budget, and without one.
    heard: Option<u64>,
    unheard: Option<u64>,
}

impl Turn {
    pub(super) fn new(turns: &Arc<Turns>) -> Self {
        Self { turns: Arc::clone(turns), heard: None, unheard: None }
    }

    fn is_awaited(&self, round: Option<u64>) -> bool {
        self.unheard == round && self.heard != round
    }

    /// Returns whether to poll the item now. Takes one unit of the task's budget.
    ///
    /// An item that had its turn with a budget in this round yields to those that wait for one. Otherwise the first
    /// item in the queue could use up the budget in every turn of the executor.
    pub(super) fn take(&mut self, cx: &mut Context<'_>) -> bool {
        let turns = &*self.turns;
        let round = Some(turns.round.load(Relaxed));
        turns.polled.fetch_add(1, Relaxed);
        let is_first = self.heard != round && self.unheard != round;
        if !is_first {
            turns.is_second.store(true, Relaxed);
        }
        if self.heard == round && turns.unheard.load(Relaxed) > 0 {
            cx.waker().wake_by_ref();
            return false;
        }
        // Without a budget, this wakes the task again.
        let has_budget = pin!(tokio::task::consume_budget()).poll(cx).is_ready();
        if has_budget {
            if self.is_awaited(round) {
                turns.unheard.fetch_sub(1, Relaxed);
            }
            self.heard = round;
        } else if is_first {
            turns.unheard.fetch_add(1, Relaxed);
            self.unheard = round;
        }
        true
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        // The item ended without a budget.
        if self.is_awaited(Some(self.turns.round.load(Relaxed))) {
            self.turns.unheard.fetch_sub(1, Relaxed);
        }
    }
}
