//! The estimates of the gate from its pace: when a retry is worthwhile, how long a wait is, and how long a call takes.

#[cfg(all(test, ziggurat_loom))]
use loom::sync::{MutexGuard, atomic::Ordering};
#[cfg(not(all(test, ziggurat_loom)))]
use std::sync::{MutexGuard, atomic::Ordering};
use std::sync::{PoisonError, TryLockError};
use std::time::Duration;

use super::{
    super::{
        pace::{Gate, LONGEST, Pace, SHORTEST},
        patience::Forecast,
        priority::Rank,
    },
    ConcurrencyLimitHandle, State, nanos,
};
use crate::clock::Instant;

impl ConcurrencyLimitHandle {
    /// Estimates, from the recent pace, how long it takes until a permit is released for a caller of this rank that
    /// joins the queue now. Called for a caller that was just rejected.
    #[cold]
    pub(crate) fn retry_after(&self, now: Instant, rank: Rank) -> Duration {
        let kept = self.kept(rank);
        // Read under the lock, so that the count never decreases from one holder of the lock to the next.
        let look = |pace: &mut Pace| {
            let state = self.state();
            let in_use = self.in_use(state, kept);
            pace.look(now, state.left, in_use, if state.waiting > 0 { Gate::Full } else { Gate::Unknown });
            pace.cautious(in_use)
        };
        let pace = match self.shared.pace.try_lock() {
            Ok(mut pace) => look(&mut pace),
            Err(TryLockError::Poisoned(pace)) => look(&mut pace.into_inner()),
            Err(TryLockError::WouldBlock) => Duration::from_nanos(self.shared.latest_pace.load(Ordering::Relaxed)),
        };
        self.shared.latest_pace.store(nanos(pace), Ordering::Relaxed);
        let before = self.shared.counts.before(rank);
        pace.saturating_mul(self.state().until_turn(before, kept)).clamp(SHORTEST, LONGEST)
    }

    /// Forecasts the wait of a call of this rank that joins the queue now.
    #[cold]
    pub(in super::super) fn forecast(&self, now: Instant, rank: Rank) -> Forecast {
        let (kept, before) = (self.kept(rank), self.shared.counts.before(rank));
        let mut pace = self.pace();
        let state = self.state();
        let in_use = self.in_use(state, kept);
        let busy = pace.join(now, state.left, in_use, state.waiting == 0);
        let each = pace.hopeful(in_use);
        let wait = each.saturating_mul(state.until_turn(before, kept));
        Forecast { before: before as usize, wait, call: each.saturating_mul(in_use), busy }
    }

    /// Returns the time that a call has taken lately, for a caller of this rank whose turn has come.
    #[cold]
    pub(in super::super) fn call_time(&self, now: Instant, rank: Rank) -> Duration {
        let kept = self.kept(rank);
        let mut pace = self.pace();
        let state = self.state();
        let in_use = self.in_use(state, kept);
        pace.look(now, state.left, in_use, Gate::Full);
        pace.hopeful(in_use).saturating_mul(in_use)
    }

    /// Returns the number of permits in use while a call of a rank that `kept` permits are kept from finds none: fewer
    /// than the limit only by those.
    fn in_use(&self, state: State, kept: i32) -> u32 {
        // At least one: the limit may have been lowered since the state was read.
        (self.limit() as i32 - state.available.clamp(0, kept)).max(1) as u32
    }

    fn pace(&self) -> MutexGuard<'_, Pace> {
        self.shared.pace.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Returns the number of permits to be released until a call behind `before` waiters has one that is not kept from
    /// it. While a lowered limit is exceeded, the excess calls leave without admitting a waiter.
    fn until_turn(self, before: u32, kept: i32) -> u32 {
        before.saturating_add(self.available.min(kept).abs_diff(kept)).saturating_add(1)
    }
}
