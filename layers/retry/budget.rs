//! The budget: how many retries all calls together may make.

use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError,
    atomic::{AtomicU64, Ordering},
};

use crate::clock::Instant;

/// The window, in seconds, each of which is a slot.
const WINDOW: u64 = 10;

/// One slot more than the window is long: its oldest second began in it, and the newest one has not ended.
const SLOTS: u64 = WINDOW + 1;

/// How many retries all calls together may make, so that retries do not bring down a service that is struggling.
///
/// In any window of ten seconds: a share of the requests, but at least so many for each second. The default is 20 % and 10 for
/// each second, that is `max(20 % of the requests, 100)` (the figures of Finagle and tower).
///
/// It is exact: however many threads ask at once, never more is granted in any ten seconds. Time is counted in whole seconds, on the
/// safe side: a retry is held against the budget for up to eleven seconds, a request counts for it for nine to ten. A request counts from the last time that somebody asked
/// for a retry before it; so the requests of a time without failures earn nothing, and a failure after a quiet day cannot spend the
/// day's share at once. That is why the happy path needs no clock, only one atomic addition.
#[derive(Debug)]
#[must_use]
pub struct Budget {
    /// Requests since the last time that somebody asked for a retry.
    requests: AtomicU64,
    ledger: Mutex<Ledger>,
}

/// How much is granted.
#[derive(Debug, Clone, Copy)]
struct Share {
    ratio: f64,
    min_per_second: u32,
}

/// What happened in the last ten seconds.
#[derive(Debug)]
struct Ledger {
    share: Share,
    /// When the first retry was asked for: slots are counted from there.
    origin: Option<Instant>,
    /// The number of the newest slot. A slot stands at its number modulo `SLOTS`.
    newest: u64,
    slots: [Slot; SLOTS as usize],
}

#[derive(Debug, Default, Clone, Copy)]
struct Slot {
    requests: u64,
    retries: u64,
}

impl Budget {
    /// Retries may be this share of the requests, and at least 10 for each second.
    ///
    /// # Panics
    ///
    /// If `ratio` is not a number from 0 to 1.
    #[track_caller]
    pub fn new(ratio: f64) -> Self {
        assert!((0.0..=1.0).contains(&ratio), "ratio must be a number from 0 to 1, not {ratio}");
        let share = Share { ratio, min_per_second: 10 };
        let ledger = Ledger { share, origin: None, newest: 0, slots: Default::default() };
        Self { requests: AtomicU64::new(0), ledger: Mutex::new(ledger) }
    }

    /// So many retries for each second are always granted; zero leaves the share alone.
    pub fn min_per_second(self, retries: u32) -> Self {
        self.ledger().share.min_per_second = retries;
        self
    }

    /// Grants as `other` would from now on, and forgets nothing that happened.
    pub(super) fn follow(&self, other: &Self) {
        let share = other.ledger().share;
        self.ledger().share = share;
    }

    /// A request has come.
    pub(super) fn deposit(&self) {
        // Relaxed: the ledger's lock orders what is counted; a request that comes at the same time may count a retry later.
        self.requests.fetch_add(1, Ordering::Relaxed);
    }

    /// Takes one retry, if there is one to be had.
    pub(super) fn withdraw(self: &Arc<Self>, now: Instant) -> Option<Withdrawal> {
        let mut ledger = self.ledger();
        // They came after the last question, whose slot is still the newest one.
        let requests = self.requests.swap(0, Ordering::Relaxed);
        if ledger.origin.is_some() {
            ledger.newest_slot().requests += requests;
        }
        ledger.advance(now);
        let (requests, retries) = ledger.totals();
        let Share { ratio, min_per_second } = ledger.share;
        let minimum = u64::from(min_per_second) * WINDOW;
        if retries >= minimum.max((requests as f64 * ratio) as u64) {
            return None;
        }
        ledger.newest_slot().retries += 1;
        Some(Withdrawal { slot: ledger.newest, budget: Some(Arc::clone(self)) })
    }

    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for Budget {
    fn default() -> Self {
        Self::new(0.2)
    }
}

impl Ledger {
    /// Moves on to the slot of `now`, forgetting what is too old. Time that goes backwards stands still.
    fn advance(&mut self, now: Instant) {
        let origin = *self.origin.get_or_insert(now);
        let slot = now.saturating_duration_since(origin).as_secs();
        let passed = slot.saturating_sub(self.newest);
        for _ in 0..passed.min(SLOTS) {
            self.newest += 1;
            *self.newest_slot() = Slot::default();
        }
        self.newest = self.newest.max(slot);
    }

    fn newest_slot(&mut self) -> &mut Slot {
        self.slot(self.newest)
    }

    fn slot(&mut self, number: u64) -> &mut Slot {
        &mut self.slots[(number % SLOTS) as usize]
    }

    /// Requests of at most the last ten seconds, retries of at least those.
    fn totals(&self) -> (u64, u64) {
        let oldest = (self.newest + 1) % SLOTS;
        let requests =
            (0..).zip(&self.slots).filter(|(index, _)| *index != oldest).map(|(_, slot)| slot.requests).sum();
        (requests, self.slots.iter().map(|slot| slot.retries).sum())
    }
}

/// One retry that was granted. Dropped before it is [spent](Withdrawal::spend), it goes back.
#[derive(Debug)]
pub(super) struct Withdrawal {
    slot: u64,
    /// None: spent.
    budget: Option<Arc<Budget>>,
}

impl Withdrawal {
    /// The retry is made.
    pub(super) fn spend(mut self) {
        self.budget = None;
    }
}

impl Drop for Withdrawal {
    fn drop(&mut self) {
        if let Some(budget) = self.budget.take() {
            let mut ledger = budget.ledger();
            if ledger.newest - self.slot < SLOTS {
                ledger.slot(self.slot).retries -= 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Barrier, time::Duration};

    use proptest::prelude::*;

    use super::*;
    use crate::clock;

    const SECOND: Duration = Duration::from_secs(1);
    const LATER: Duration = Duration::from_secs(SLOTS);

    fn spend(budget: &Arc<Budget>, now: Instant) -> bool {
        budget.withdraw(now).map(Withdrawal::spend).is_some()
    }

    /// Shows: R7
    #[test]
    fn the_default_is_a_fifth_of_the_requests_and_at_least_a_hundred_in_ten_seconds() {
        let budget = Arc::new(Budget::default());
        let now = clock::now();
        assert!(spend(&budget, now));
        (0..1000).for_each(|_| budget.deposit());
        assert_eq!((0..1000).filter(|_| spend(&budget, now)).count(), 199);

        let budget = Arc::new(Budget::default());
        assert_eq!((0..1000).filter(|_| spend(&budget, now)).count(), 100);
        assert_eq!((0..1000).filter(|_| spend(&budget, now + LATER - SECOND)).count(), 0);
        assert_eq!((0..1000).filter(|_| spend(&budget, now + LATER)).count(), 100);
    }

    /// tower's budget grants more than its ratio (tower #857).
    ///
    /// Shows: R7
    #[test]
    fn never_more_is_granted_than_the_ratio_however_many_threads_ask() {
        const THREADS: usize = 8;
        let budget = Arc::new(Budget::new(0.1).min_per_second(0));
        let now = clock::now();
        assert!(!spend(&budget, now));
        let barrier = Barrier::new(THREADS);
        let granted: usize = std::thread::scope(|scope| {
            let ask = || {
                barrier.wait();
                (0..1000)
                    .filter(|_| {
                        budget.deposit();
                        spend(&budget, now)
                    })
                    .count()
            };
            let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(ask)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert_eq!(granted, THREADS * 100);
    }

    /// Whole seconds alone would forget the retries of 0.9 s at 10 s.
    ///
    /// Shows: R7
    #[test]
    fn no_ten_seconds_hold_more_than_allowed_wherever_they_begin() {
        let budget = Arc::new(Budget::default());
        let now = clock::now();
        assert!(spend(&budget, now));
        assert_eq!((0..1000).filter(|_| spend(&budget, now + 9 * SECOND / 10)).count(), 99);
        assert_eq!((0..1000).filter(|_| spend(&budget, now + 10 * SECOND)).count(), 0);
        assert_eq!((0..1000).filter(|_| spend(&budget, now + 11 * SECOND)).count(), 100);
    }

    /// Shows: R7
    #[test]
    fn a_quiet_time_earns_nothing() {
        let budget = Arc::new(Budget::new(1.0).min_per_second(0));
        let now = clock::now();
        assert!(!spend(&budget, now));
        (0..1000).for_each(|_| budget.deposit());
        assert!(!spend(&budget, now + 2 * LATER));
        budget.deposit();
        assert!(spend(&budget, now + 2 * LATER));
    }

    #[test]
    fn what_is_not_spent_goes_back() {
        let budget = Arc::new(Budget::new(0.0).min_per_second(1));
        let now = clock::now();
        for _ in 0..100 {
            assert!(budget.withdraw(now).is_some());
        }
        let late = budget.withdraw(now);
        // Its slot has gone by then, and another stands in its place.
        assert_eq!((0..20).filter(|_| spend(&budget, now + LATER)).count(), 10);
        drop(late);
        assert!(!spend(&budget, now + LATER));
    }

    #[test]
    fn a_bad_ratio_is_refused_with_its_name() {
        for (ratio, said) in [
            (-0.1, "ratio must be a number from 0 to 1, not -0.1"),
            (1.1, "ratio must be a number from 0 to 1, not 1.1"),
            (f64::NAN, "ratio must be a number from 0 to 1, not NaN"),
            (f64::INFINITY, "ratio must be a number from 0 to 1, not inf"),
        ] {
            let panic = std::panic::catch_unwind(|| Budget::new(ratio));
            assert_eq!(*panic.unwrap_err().downcast::<String>().unwrap(), said);
        }
    }

    #[derive(Debug, Clone)]
    enum Step {
        Request,
        Retry { dropped: bool },
        Pass(u64),
    }

    proptest! {
        /// Against a model that keeps every event with its time in milliseconds, and knows of no slots: in no ten seconds is more
        /// granted than allowed, and what is refused was not allowed by what is left when the oldest second is cut off.
        ///
        /// Shows: R7
        #[test]
        fn it_grants_what_the_list_of_all_events_allows(
            ratio in prop_oneof![Just(0.0), Just(0.25), Just(0.5), Just(1.0)], minimum in 0..2_u32,
            steps in proptest::collection::vec(
                prop_oneof![
                    4 => Just(Step::Request),
                    3 => any::<bool>().prop_map(|dropped| Step::Retry { dropped }),
                    1 => prop_oneof![0..12_000_u64, 0..900_u64].prop_map(Step::Pass),
                ],
                0..300,
            ),
        ) {
            let budget = Arc::new(Budget::new(ratio).min_per_second(minimum));
            let start = clock::now();
            let mut now = 0;
            // The times of granted retries, and of requests: that of the last question before each of them.
            let (mut requests, mut retries, mut asked) = (vec![], vec![], None);
            for step in steps {
                match step {
                    Step::Pass(time) => now += time,
                    Step::Request => {
                        budget.deposit();
                        requests.extend(asked);
                    }
                    Step::Retry { dropped } => {
                        asked = Some(now);
                        let within = |times: &[u64], millis| times.iter().filter(|time| now - **time < millis).count();
                        let allowed = |requests| ((ratio * requests as f64) as usize).max(10 * minimum as usize);
                        let granted = budget.withdraw(start + Duration::from_millis(now));
                        if granted.is_some() {
                            prop_assert!(within(&retries, 10_000) < allowed(within(&requests, 10_000)));
                        } else {
                            prop_assert!(within(&retries, 11_000) >= allowed(within(&requests, 9_001)));
                        }
                        if let (Some(granted), false) = (granted, dropped) {
                            granted.spend();
                            retries.push(now);
                        }
                    }
                }
            }
        }
    }
}
