//! The budget: a limit on the extra load of all calls together.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use crate::{
    ambient::{self, Entered, slot},
    clock::{self, Instant},
    debug::impl_debug,
    mutex::Mutex,
};

/// The length of the window in seconds. Each second is a slot.
const WINDOW: u64 = 10;

/// One slot more than the window, because the window begins in the middle of the oldest slot and the newest slot has
/// not ended.
const SLOTS: u64 = WINDOW + 1;

/// The stride, the number of requests for each clock read, is adapted so that this is the time between two reads. It
/// never exceeds `LONGEST_STRIDE`.
const TICK: Duration = Duration::from_millis(125);
const LONGEST_STRIDE: u64 = 1 << 16;

/// Limits the extra load of all calls together, so that retries and fallbacks cannot overload a service that is
/// struggling.
///
/// In any window of ten seconds, the budget grants a share of the number of requests, but at least a fixed number of
/// calls per second. The default is 20 % of the requests and at least 10 calls per second, that is
/// `max(20 % of the requests, 100)` (the figures of Finagle and tower).
///
/// # Sharing
///
/// A clone is the same budget. Layers share one if each is given a clone, or a reference. Then a retry and a fallback
/// to another service ([`FallbackLayer::budget`]) add a fifth of the requests together, and not a fifth each:
///
/// ```
/// use ziggurat::{Budget, fallback::FallbackLayer, retry::RetryLayer};
///
/// # let other_zone = ();
/// let budget = Budget::default();
/// let retry = RetryLayer::http().budget(&budget);
/// let fallback = FallbackLayer::service(other_zone).http().budget(&budget);
/// # let _ = (retry, fallback);
/// ```
///
/// [`RetryHandle::budget`] and [`ClientStack::budget`] return a budget that is in use already. A share that is set at
/// run time ([`RetryHandle::set_budget`], or the settings of a stack) applies to all layers that share the budget.
///
/// If a request passes several layers with the same budget, one inside the other, it counts once, at the outermost of
/// them, with all of its attempts. A cache between two of them therefore counts its hits too. A layer between them that
/// moves the call to another task, such as tower's `Buffer`, hides the outer one: the request then counts twice.
///
/// # Worst case
///
/// The default adds at most 20 % to the load from 50 requests per second on. Below that, the minimum of 10 calls per
/// second is more: up to 5 requests per second, each request may make all of three attempts. Many small clients of one
/// service each have that minimum, so set a lower one for them.
///
/// Calls of the service for each request, over a minute, with three attempts and without a circuit breaker:
///
/// | calls that fail | bound at 100/s | measured | bound at 5/s | measured |
/// |---:|---:|---:|---:|---:|
/// | none | 1.20 | 1.00 | 3.00 | 1.00 |
/// | 10 % | 1.20 | 1.12 | 3.00 | 1.17 |
/// | 50 % | 1.20 | 1.18 | 3.00 | 1.75 |
/// | all | 1.20 | 1.18 | 3.00 | 2.83 |
///
/// `cargo test --all-features --test simulation budget -- --nocapture` prints the figures.
///
/// # Precision
///
/// The limit is exact: regardless of the number of threads, no window of ten seconds ever exceeds it. Time is counted
/// in whole seconds and rounded to the safe side: an extra call counts for up to eleven seconds, and a request for nine
/// to ten. After a quiet day, a failure cannot spend the day's share at once. A call that was granted and not made,
/// because its caller left, is returned.
///
/// # Cost
///
/// A request costs one atomic addition, and in a shared budget a mark in a thread-local for each poll. The clock is
/// read about eight times a second, regardless of the number of requests; requests between two reads count from the
/// earlier one. Therefore the budget grants slightly less than it could for a moment after the request rate has
/// dropped.
///
/// [`FallbackLayer::budget`]: crate::fallback::FallbackLayer::budget
/// [`RetryHandle::budget`]: crate::retry::RetryHandle::budget
/// [`RetryHandle::set_budget`]: crate::retry::RetryHandle::set_budget
/// [`ClientStack::budget`]: crate::stack::ClientStack::budget
#[derive(Clone)]
#[must_use]
pub struct Budget {
    shared: Arc<Shared>,
}

struct Shared {
    /// The number of requests since the clock was last read.
    requests: AtomicU64,
    /// The number of requests at which the clock is read again.
    stride: AtomicU64,
    ledger: Mutex<Ledger>,
}

/// The share that is granted.
#[derive(Debug, Clone, Copy)]
struct Share {
    ratio: f64,
    min_per_second: u32,
}

/// The requests and the extra calls of the last ten seconds.
struct Ledger {
    share: Share,
    /// The time of the first clock read. Slots are counted from there.
    origin: Option<Instant>,
    /// The time of the last clock read.
    read: Option<Instant>,
    /// The number of the newest slot. A slot is stored at its number modulo `SLOTS`.
    newest: u64,
    slots: [Slot; SLOTS as usize],
}

#[derive(Debug, Default, Clone, Copy)]
struct Slot {
    requests: u64,
    extra: u64,
}

impl Budget {
    /// Grants extra calls for `ratio` of the requests, and at least 10 per second.
    ///
    /// # Panics
    ///
    /// Panics if `ratio` is not a number from 0 to 1.
    #[track_caller]
    pub fn new(ratio: f64) -> Self {
        assert!((0.0..=1.0).contains(&ratio), "ratio must be a number from 0 to 1, not {ratio}");
        let share = Share { ratio, min_per_second: 10 };
        let ledger = Ledger { share, origin: None, read: None, newest: 0, slots: Default::default() };
        let (requests, stride) = (AtomicU64::new(0), AtomicU64::new(1));
        Self { shared: Arc::new(Shared { requests, stride, ledger: Mutex::new(ledger) }) }
    }

    /// Sets the number of extra calls per second that are always granted, for all clones. With zero, only the ratio
    /// applies.
    pub fn min_per_second(self, calls: u32) -> Self {
        self.shared.ledger.lock().share.min_per_second = calls;
        self
    }

    /// Grants every call.
    pub(crate) fn unlimited() -> Self {
        Self::new(1.0).min_per_second(u32::MAX)
    }

    /// Adopts the share of `other`, and keeps all recorded calls.
    pub(crate) fn follow(&self, other: &Self) {
        let share = other.share();
        self.shared.ledger.lock().share = share;
    }

    /// Returns whether `other` is a clone of this budget.
    pub(crate) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.shared, &other.shared)
    }

    fn share(&self) -> Share {
        self.shared.ledger.lock().share
    }

    /// Returns whether there is another clone.
    #[inline]
    pub(crate) fn is_shared(&self) -> bool {
        Arc::strong_count(&self.shared) > 1
    }

    /// Counts the running call as a request, unless a layer around this one has counted it in the same budget. The
    /// result is to be [entered](Counted::enter) for each poll of the call.
    #[inline]
    pub(crate) fn count(&self) -> Counted {
        // A layer that shares its budget with none needs no mark.
        let counted = Counted(if self.is_shared() { Arc::as_ptr(&self.shared).addr() } else { 0 });
        if counted.0 == 0 || ambient::get::<Counted>().0 != counted.0 {
            self.deposit(clock::now);
        }
        counted
    }

    /// Records a request.
    #[inline]
    fn deposit(&self, now: impl FnOnce() -> Instant) {
        // Relaxed: the ledger's lock orders the counts. A concurrent request may be counted a moment later.
        let requests = self.shared.requests.fetch_add(1, Ordering::Relaxed) + 1;
        if requests >= self.shared.stride.load(Ordering::Relaxed) {
            self.shared.tick(now);
        }
    }

    /// Takes one call from the budget, if it grants one.
    pub(crate) fn withdraw(&self, now: Instant) -> Option<Withdrawal> {
        let mut ledger = self.shared.ledger.lock();
        let requests = self.shared.requests.swap(0, Ordering::Relaxed);
        self.shared.note(&mut ledger, requests, now);
        let (requests, extra) = ledger.totals();
        let Share { ratio, min_per_second } = ledger.share;
        let minimum = u64::from(min_per_second) * WINDOW;
        if extra >= minimum.max((requests as f64 * ratio) as u64) {
            return None;
        }
        ledger.newest_slot().extra += 1;
        Some(Withdrawal { slot: ledger.newest, budget: Some(self.clone()) })
    }
}

impl Shared {
    #[cold]
    fn tick(&self, now: impl FnOnce() -> Instant) {
        // Otherwise another thread is already reading the clock.
        let Some(mut ledger) = self.ledger.try_lock() else { return };
        let requests = self.requests.swap(0, Ordering::Relaxed);
        // The request that triggers the read arrives now. Those before it arrived at any time since the last read.
        let before = requests.saturating_sub(1);
        self.note(&mut ledger, before, now());
        ledger.newest_slot().requests += requests - before;
    }

    /// Records the requests since the last clock read, and sets that read to `now`.
    fn note(&self, ledger: &mut Ledger, requests: u64, now: Instant) {
        if ledger.origin.is_some() {
            ledger.newest_slot().requests += requests;
        }
        if let Some(read) = ledger.read {
            let stride = self.stride.load(Ordering::Relaxed);
            // The stride may double if it was reached, but not because of an early withdrawal.
            let most = if requests + 1 >= stride { 2 * stride } else { stride };
            let ticks = now.saturating_duration_since(read).as_secs_f64() / TICK.as_secs_f64();
            // If no time has passed, this would be infinite.
            let in_a_tick = (requests + 1) as f64 / ticks;
            self.stride.store((in_a_tick.min(most as f64) as u64).clamp(1, LONGEST_STRIDE), Ordering::Relaxed);
        }
        ledger.read = Some(now);
        ledger.advance(now);
    }
}

impl Default for Budget {
    fn default() -> Self {
        Self::new(0.2)
    }
}

/// The same budget, not a copy: for a layer's setter, which takes `None` for no budget too.
impl From<&Budget> for Option<Budget> {
    fn from(budget: &Budget) -> Self {
        Some(budget.clone())
    }
}

impl_debug!(Budget {
    ratio = |this| this.share().ratio,
    min_per_second = |this| this.share().min_per_second,
});

/// Marks a call as counted in a budget: the address of that budget, or zero.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Counted(usize);

slot!(Counted, Counted(0));

impl Counted {
    /// Makes the mark current for a poll.
    #[inline]
    pub(crate) fn enter(&mut self) -> Option<Entered<'_, Self>> {
        (self.0 != 0).then(|| ambient::enter(self))
    }
}

impl Ledger {
    /// Advances to the slot of `now` and clears expired slots. If time goes backwards, nothing changes.
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

    /// Returns the number of requests in at most the last ten seconds, and of extra calls in at least the last ten
    /// seconds.
    fn totals(&self) -> (u64, u64) {
        let oldest = (self.newest + 1) % SLOTS;
        let requests =
            (0..).zip(&self.slots).filter(|(index, _)| *index != oldest).map(|(_, slot)| slot.requests).sum();
        (requests, self.slots.iter().map(|slot| slot.extra).sum())
    }
}

/// A granted call. If it is dropped before it is [spent](Withdrawal::spend), it is returned to the budget.
#[derive(Debug)]
pub(crate) struct Withdrawal {
    slot: u64,
    /// None: it was spent.
    budget: Option<Budget>,
}

impl Withdrawal {
    /// Marks the call as made.
    pub(crate) fn spend(mut self) {
        self.budget = None;
    }
}

impl Drop for Withdrawal {
    fn drop(&mut self) {
        if let Some(budget) = self.budget.take() {
            let mut ledger = budget.shared.ledger.lock();
            if ledger.newest - self.slot < SLOTS {
                ledger.slot(self.slot).extra -= 1;
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

    fn spend(budget: &Budget, now: Instant) -> bool {
        budget.withdraw(now).map(Withdrawal::spend).is_some()
    }

    /// Shows: R7
    #[test]
    fn the_default_is_a_fifth_of_the_requests_and_at_least_a_hundred_in_ten_seconds() {
        let budget = Budget::default();
        let now = clock::now();
        assert!(spend(&budget, now));
        (0..1000).for_each(|_| budget.deposit(|| now));
        assert_eq!((0..1000).filter(|_| spend(&budget, now)).count(), 199);

        let budget = Budget::default();
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
        let budget = Budget::new(0.1).min_per_second(0);
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

    /// With whole seconds alone, the retries at 0.9 s would no longer count at 10 s.
    ///
    /// Shows: R7
    #[test]
    fn no_ten_seconds_hold_more_than_allowed_wherever_they_begin() {
        let budget = Budget::default();
        let now = clock::now();
        assert!(spend(&budget, now));
        assert_eq!((0..1000).filter(|_| spend(&budget, now + 9 * SECOND / 10)).count(), 99);
        assert_eq!((0..1000).filter(|_| spend(&budget, now + 10 * SECOND)).count(), 0);
        assert_eq!((0..1000).filter(|_| spend(&budget, now + 11 * SECOND)).count(), 100);
    }

    /// Shows: R7
    #[test]
    fn a_quiet_time_earns_nothing() {
        let budget = Budget::new(1.0).min_per_second(0);
        let now = clock::now();
        assert!(!spend(&budget, now));
        (0..1000).for_each(|_| budget.deposit(|| now));
        assert!(!spend(&budget, now + 2 * LATER));
        budget.deposit(|| now + 2 * LATER);
        assert!(spend(&budget, now + 2 * LATER));
    }

    /// Requests count from their arrival, not from the last withdrawal.
    ///
    /// Shows: R7
    #[test]
    fn a_caller_that_rarely_fails_has_the_share_of_its_requests() {
        for per_second in [1, 5, 100, 10_000] {
            let budget = Budget::new(0.2).min_per_second(0);
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
                    // A fifth of the requests of the last nine to ten seconds.
                    assert!(
                        (2 * per_second - per_second / 3 - 1..=2 * per_second).contains(&granted),
                        "{granted} of {per_second}/s"
                    );
                }
            }
        }
    }

    /// A thousand requests per second cost eight clock reads.
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
        let budget = Budget::new(0.0).min_per_second(1);
        let now = clock::now();
        for _ in 0..100 {
            assert!(budget.withdraw(now).is_some());
        }
        let late = budget.withdraw(now);
        // The slot of the late withdrawal has been replaced by then.
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
        /// Compares the budget with a model that stores every event with its time in milliseconds and has no slots.
        /// No ten seconds exceed the limit. A withdrawal is refused only if the limit is exhausted when the oldest
        /// second is cut off and requests count from the clock read before them.
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
            let budget = Budget::new(ratio).min_per_second(minimum);
            let start = clock::now();
            let mut now = 0;
            // The requests by their time of arrival, and by the time of the last clock read before.
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
