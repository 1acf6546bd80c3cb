//! The budget: how many retries all calls together may make.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, TryLockError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use crate::clock::Instant;

/// The window, in seconds, each of which is a slot.
const WINDOW: u64 = 10;

/// One slot more than the window is long: its oldest second began in it, and the newest one has not ended.
const SLOTS: u64 = WINDOW + 1;

/// The clock is read for one request in so many that this is the time between two of them, and for one in this many at
/// most.
const TICK: Duration = Duration::from_millis(125);
const LONGEST_STRIDE: u64 = 1 << 16;

/// How many retries all calls together may make, so that retries do not bring down a service that is struggling.
///
/// In any window of ten seconds: a share of the requests, but at least so many for each second. The default is 20 % and 10 for
/// each second, that is `max(20 % of the requests, 100)` (the figures of Finagle and tower).
///
/// It is exact: however many threads ask at once, never more is granted in any ten seconds. Time is counted in whole
/// seconds, on the safe side: a retry is held against the budget for up to eleven seconds, a request counts for it for
/// nine to ten. A failure after a quiet day cannot spend the day's share at once.
///
/// A request costs one atomic addition. The clock is read about eight times a second, however many requests there are;
/// requests between two of these count from the earlier one. So for a moment after the rate of requests has dropped,
/// less is granted than could be.
#[derive(Debug)]
#[must_use]
pub struct Budget {
    /// Requests since the clock was last read.
    requests: AtomicU64,
    /// It is read again when there are this many.
    stride: AtomicU64,
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
    /// When the clock was first read: slots are counted from there.
    origin: Option<Instant>,
    /// When it was last read.
    read: Option<Instant>,
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
        let ledger = Ledger { share, origin: None, read: None, newest: 0, slots: Default::default() };
        Self { requests: AtomicU64::new(0), stride: AtomicU64::new(1), ledger: Mutex::new(ledger) }
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
    #[inline]
    pub(super) fn deposit(&self, now: impl FnOnce() -> Instant) {
        // Relaxed: the ledger's lock orders what is counted; a request that comes at the same time may count a moment
        // later.
        let requests = self.requests.fetch_add(1, Ordering::Relaxed) + 1;
        if requests >= self.stride.load(Ordering::Relaxed) {
            self.tick(now);
        }
    }

    #[cold]
    fn tick(&self, now: impl FnOnce() -> Instant) {
        let mut ledger = match self.ledger.try_lock() {
            Ok(ledger) => ledger,
            Err(TryLockError::Poisoned(ledger)) => ledger.into_inner(),
            // Somebody else is just doing it.
            Err(TryLockError::WouldBlock) => return,
        };
        let requests = self.requests.swap(0, Ordering::Relaxed);
        // The one that brings this here comes now; those before it came at any time since.
        let before = requests.saturating_sub(1);
        self.note(&mut ledger, before, now());
        ledger.newest_slot().requests += requests - before;
    }

    /// Takes over requests that came since the clock was last read, which is `now` again.
    fn note(&self, ledger: &mut Ledger, requests: u64, now: Instant) {
        if ledger.origin.is_some() {
            ledger.newest_slot().requests += requests;
        }
        if let Some(read) = ledger.read {
            let stride = self.stride.load(Ordering::Relaxed);
            // It may double when it was reached, and not because a retry was asked for early.
            let most = if requests + 1 >= stride { 2 * stride } else { stride };
            let ticks = now.saturating_duration_since(read).as_secs_f64() / TICK.as_secs_f64();
            // Without any time in between it would be infinite.
            let in_a_tick = (requests + 1) as f64 / ticks;
            self.stride.store((in_a_tick.min(most as f64) as u64).clamp(1, LONGEST_STRIDE), Ordering::Relaxed);
        }
        ledger.read = Some(now);
        ledger.advance(now);
    }

    /// Takes one retry, if there is one to be had.
    pub(super) fn withdraw(self: &Arc<Self>, now: Instant) -> Option<Withdrawal> {
        let mut ledger = self.ledger();
        let requests = self.requests.swap(0, Ordering::Relaxed);
        self.note(&mut ledger, requests, now);
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
        (0..1000).for_each(|_| budget.deposit(|| now));
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
                        budget.deposit(|| now);
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
        (0..1000).for_each(|_| budget.deposit(|| now));
        assert!(!spend(&budget, now + 2 * LATER));
        budget.deposit(|| now + 2 * LATER);
        assert!(spend(&budget, now + 2 * LATER));
    }

    /// Requests count from when they came, and not from when a retry was last asked for.
    ///
    /// Shows: R7
    #[test]
    fn a_caller_that_rarely_fails_has_the_share_of_its_requests() {
        for per_second in [1, 5, 100, 10_000] {
            let budget = Arc::new(Budget::new(0.2).min_per_second(0));
            let start = clock::now();
            let mut requests = 0;
            for second in 1..=120 {
                for part in 0..per_second {
                    budget.deposit(|| start + Duration::from_secs(second) + SECOND * part / per_second);
                }
                requests += per_second;
                if second % 12 == 0 {
                    let now = start + Duration::from_secs(second) + SECOND;
                    let granted = (0..=requests).take_while(|_| spend(&budget, now)).count() as u32;
                    // A fifth of those of the last nine to ten seconds.
                    assert!(
                        (2 * per_second - per_second / 3 - 1..=2 * per_second).contains(&granted),
                        "{granted} of {per_second}/s"
                    );
                }
            }
        }
    }

    /// A thousand requests a second cost eight readings of the clock.
    #[test]
    fn the_clock_is_read_some_times_a_second_however_many_requests_there_are() {
        let reads = std::cell::Cell::new(0);
        for (per_second, most) in [(1, 1), (10, 10), (1000, 16), (100_000, 16)] {
            let budget = Budget::default();
            let start = clock::now();
            for second in 0..20 {
                if second == 10 {
                    reads.set(0);
                }
                for part in 0..per_second {
                    budget.deposit(|| {
                        reads.set(reads.get() + 1);
                        start + SECOND * second + SECOND * part / per_second
                    });
                }
            }
            assert!((1..=10 * most).contains(&reads.get()), "{} for {per_second}/s", reads.get());
        }
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
        /// Against a model that keeps every event with its time in milliseconds, and knows of no slots: in no ten
        /// seconds is more granted than allowed, and what is refused was not allowed by what is left when the oldest
        /// second is cut off, if requests count from the reading of the clock before them.
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
            // Requests by when they came, and by when the clock was read last before.
            let (mut requests, mut counted, mut retries) = (vec![], vec![], vec![]);
            let read = std::cell::Cell::new(0);
            for step in steps {
                match step {
                    Step::Pass(time) => now += time,
                    Step::Request => {
                        budget.deposit(|| {
                            read.set(now);
                            start + Duration::from_millis(now)
                        });
                        requests.push(now);
                        counted.push(read.get());
                    }
                    Step::Retry { dropped } => {
                        let within = |times: &[u64], millis| times.iter().filter(|time| now - **time < millis).count();
                        let allowed = |requests| ((ratio * requests as f64) as usize).max(10 * minimum as usize);
                        read.set(now);
                        let granted = budget.withdraw(start + Duration::from_millis(now));
                        if granted.is_some() {
                            prop_assert!(within(&retries, 10_000) < allowed(within(&requests, 10_000)));
                        } else {
                            prop_assert!(within(&retries, 11_000) >= allowed(within(&counted, 9_001)));
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
