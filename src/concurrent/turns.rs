//! Whether all items that have something to say were heard: nothing is started beside an item that has failed already.
//!
//! That running items are pending does not mean that none of them has ended. `FuturesUnordered` makes a pause after two
//! items that woke themselves, and every future of tokio's is pending once the task has used up its budget. So the
//! items take notes when they are polled. A round begins when an item is started, and the next one is started when the
//! round is over: each item that was awake had its turn, and a budget for it.

use std::{
    future::Future,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    task::Context,
};

/// The notes of a run. Only the task that polls the run writes to them.
#[derive(Debug, Default)]
pub(super) struct Turns {
    round: AtomicU64,
    /// The number of items that were polled since it was last asked.
    polled: AtomicUsize,
    /// The number of items whose turn came without a budget, and which had no other turn since.
    unheard: AtomicUsize,
    /// Whether an item's turn came for the second time. They take their turns in order, so all that were awake had one.
    is_second: AtomicBool,
}

/// What remains to be done before another item is started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Heard {
    All,
    /// Items may be awake that were not polled.
    Some,
    /// Some wait for the task's next budget, which it gets at the executor's next turn. They wake it.
    NotWithoutBudget,
}

impl Turns {
    /// After all of `running` items were said to be pending.
    pub(super) fn heard(&self, running: usize) -> Heard {
        let polled = self.polled.swap(0, Relaxed);
        if self.unheard.load(Relaxed) > 0 {
            return Heard::NotWithoutBudget;
        }
        // There is no pause after a single item, unless that is the only one.
        let is_paused = polled > 1 || (polled == 1 && running == 1);
        if is_paused && !self.is_second.load(Relaxed) { Heard::Some } else { Heard::All }
    }

    /// An item is started.
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

    /// Whether the item is to be polled now. Takes one of the task's budget.
    ///
    /// One that was heard in this round lets those go first that wait for a budget: otherwise the first in the queue
    /// could use it up in every turn of the executor.
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
        // If there is none, it sees to it that the item is polled again.
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
        // It ended without a budget.
        if self.is_awaited(Some(self.turns.round.load(Relaxed))) {
            self.turns.unheard.fetch_sub(1, Relaxed);
        }
    }
}
