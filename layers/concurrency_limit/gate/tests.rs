use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Poll, Wake, Waker},
    time::Duration,
};

use proptest::{collection::vec, prelude::*};

use super::{
    AVAILABLE_BITS, ConcurrencyLimitHandle, Entry, LEFT_BITS, MOST, MOST_WAITING, Permit, Priority, Rank, Shed, State,
    Waiter,
};
use crate::clock;

/// Counts its wakeups.
#[derive(Default)]
struct Bell(AtomicUsize);

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

impl Bell {
    fn rung(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

fn bell() -> (Arc<Bell>, Waker) {
    let bell = Arc::new(Bell::default());
    let waker = Waker::from(Arc::clone(&bell));
    (bell, waker)
}

fn queue(gate: &ConcurrencyLimitHandle, waker: &Waker) -> Waiter {
    match gate.enter(usize::MAX, Rank::High, waker) {
        Entry::Queued(waiter) => waiter,
        other => panic!("expected a place in the queue, got {other:?}"),
    }
}

fn enter(gate: &ConcurrencyLimitHandle) -> Permit {
    gate.try_enter().expect("a free permit")
}

fn counts(gate: &ConcurrencyLimitHandle) -> (usize, usize) {
    (gate.in_flight(), gate.waiting())
}

/// Shows: L1
#[test]
fn admits_as_many_as_the_limit_and_no_more() {
    let gate = ConcurrencyLimitHandle::new(2);
    let (first, _second) = (enter(&gate), enter(&gate));
    assert!(gate.try_enter().is_none());
    drop(first);
    assert_eq!(counts(&gate), (1, 0));
    assert!(gate.try_enter().is_some());
}

/// Shows: L1
#[test]
fn permits_are_handed_over_in_the_order_of_arrival() {
    let gate = ConcurrencyLimitHandle::new(1);
    let (_, waker) = bell();
    let permit = enter(&gate);
    let (mut first, mut second) = (queue(&gate, &waker), queue(&gate, &waker));
    drop(permit);
    assert!(second.poll(&waker).is_pending());
    let Poll::Ready(Ok(permit)) = first.poll(&waker) else { panic!("the first was not admitted") };
    drop(permit);
    assert!(second.poll(&waker).is_ready());
}

/// Shows: L1
#[test]
fn a_newcomer_never_overtakes_somebody_who_was_admitted_but_has_not_noticed() {
    let gate = ConcurrencyLimitHandle::new(1);
    let (_, waker) = bell();
    let permit = enter(&gate);
    let mut waiter = queue(&gate, &waker);
    drop(permit);
    assert_eq!(counts(&gate), (1, 0));
    assert!(gate.try_enter().is_none());
    assert!(waiter.poll(&waker).is_ready());
}

/// Shows: L1
#[test]
fn a_queue_that_is_full_refuses_and_a_queue_without_places_always_does() {
    let gate = ConcurrencyLimitHandle::new(1);
    let (_, waker) = bell();
    assert!(!gate.is_full(0, Rank::High));
    let permit = enter(&gate);
    assert!(matches!(gate.enter(0, Rank::High, &waker), Entry::Full));
    assert!(gate.is_full(0, Rank::High));
    assert!(!gate.is_full(1, Rank::High));
    let Entry::Queued(_waiter) = gate.enter(1, Rank::High, &waker) else { panic!("the queue had a place") };
    assert!(matches!(gate.enter(1, Rank::High, &waker), Entry::Full));
    assert!(gate.is_full(1, Rank::High));
    drop(permit);
    assert!(matches!(gate.enter(1, Rank::High, &waker), Entry::Queued(_)));
}

#[test]
fn asking_to_wait_at_a_gate_with_room_admits_at_once() {
    let gate = ConcurrencyLimitHandle::new(1);
    let (bell, waker) = bell();
    let Entry::Admitted(_permit) = gate.enter(0, Rank::High, &waker) else { panic!("there was room") };
    assert_eq!(counts(&gate), (1, 0));
    assert_eq!(bell.rung(), 0);
}

/// Shows: L2
#[test]
fn a_waiter_that_gives_up_leaves_no_trace() {
    let gate = ConcurrencyLimitHandle::new(1);
    let (bells, wakers): (Vec<_>, Vec<_>) = (0..3).map(|_| bell()).unzip();
    let permit = enter(&gate);
    let mut waiters: Vec<_> = wakers.iter().map(|waker| queue(&gate, waker)).collect();
    drop(waiters.remove(1));
    assert_eq!(counts(&gate), (1, 2));
    assert_eq!(Arc::strong_count(&bells[1]), 2, "the gate still holds the waker of one who left");
    drop(permit);
    drop(waiters.remove(0));
    assert!(waiters[0].poll(&wakers[2]).is_ready());
    assert_eq!(bells.iter().map(|bell| bell.rung()).collect::<Vec<_>>(), [1, 0, 1]);
    assert_eq!(counts(&gate), (0, 0));
}

/// Shows: L2
#[test]
fn a_waiter_that_was_admitted_and_gives_up_passes_the_permit_on() {
    let gate = ConcurrencyLimitHandle::new(1);
    let (_, waker) = bell();
    let (next_bell, next_waker) = bell();
    let permit = enter(&gate);
    let (admitted, mut next) = (queue(&gate, &waker), queue(&gate, &next_waker));
    drop(permit);
    assert_eq!(next_bell.rung(), 0);
    drop(admitted);
    assert_eq!(next_bell.rung(), 1);
    assert!(next.poll(&next_waker).is_ready());
    assert_eq!(counts(&gate), (0, 0));
}

#[test]
fn only_the_waker_of_the_latest_poll_is_woken_and_only_once() {
    let gate = ConcurrencyLimitHandle::new(1);
    let ((old, old_waker), (new, new_waker)) = (bell(), bell());
    let permit = enter(&gate);
    let mut waiter = queue(&gate, &old_waker);
    assert!(waiter.poll(&new_waker).is_pending());
    drop(permit);
    assert_eq!((old.rung(), new.rung()), (0, 1));
    let Poll::Ready(Ok(permit)) = waiter.poll(&new_waker) else { panic!("it was admitted") };
    assert!(waiter.poll(&new_waker).is_pending(), "one place gave two permits");
    drop((waiter, permit));
    assert_eq!((old.rung(), new.rung()), (0, 1));
    assert_eq!(counts(&gate), (0, 0));
}

/// Shows: L3
#[test]
fn a_higher_limit_admits_those_who_wait_at_once() {
    let gate = ConcurrencyLimitHandle::new(1);
    let (bells, wakers): (Vec<_>, Vec<_>) = (0..3).map(|_| bell()).unzip();
    let _permit = enter(&gate);
    let mut waiters: Vec<_> = wakers.iter().map(|waker| queue(&gate, waker)).collect();
    gate.set_limit(3);
    assert_eq!(bells.iter().map(|bell| bell.rung()).collect::<Vec<_>>(), [1, 1, 0]);
    assert_eq!(counts(&gate), (3, 1));
    assert!(waiters[2].poll(&wakers[2]).is_pending());
    assert!(waiters[0].poll(&wakers[0]).is_ready());
}

/// Shows: L3
#[test]
fn a_lower_limit_lets_nobody_in_until_enough_have_left() {
    let gate = ConcurrencyLimitHandle::new(3);
    let (bell, waker) = bell();
    let mut permits: Vec<_> = (0..3).map(|_| enter(&gate)).collect();
    gate.set_limit(1);
    let mut waiter = queue(&gate, &waker);
    assert_eq!((gate.limit(), gate.in_flight()), (1, 3));
    permits.truncate(1);
    assert_eq!((gate.in_flight(), bell.rung()), (1, 0));
    assert!(waiter.poll(&waker).is_pending());
    permits.clear();
    assert_eq!(bell.rung(), 1);
    assert_eq!(counts(&gate), (1, 0));
    drop(waiter);
    assert_eq!(counts(&gate), (0, 0));
    assert!(gate.try_enter().is_some());
}

/// Shows: L3
#[test]
fn the_largest_limit_is_a_limit_and_can_be_lowered_again() {
    let gate = ConcurrencyLimitHandle::new(usize::MAX);
    assert_eq!(gate.limit(), MOST);
    let permits = [enter(&gate), enter(&gate)];
    gate.set_limit(1);
    gate.set_limit(usize::MAX);
    gate.set_limit(1);
    assert_eq!(counts(&gate), (2, 0));
    drop(permits);
    let _last = enter(&gate);
    assert!(gate.try_enter().is_none());
}

/// Shows: L1
#[test]
fn a_queue_that_holds_as_many_as_can_be_counted_is_full() {
    let gate = ConcurrencyLimitHandle::new(1);
    let (_, waker) = bell();
    let _permit = enter(&gate);
    let full = State { available: 0, waiting: MOST_WAITING, left: 7 };
    gate.update(|_| Some(full)).unwrap();
    assert!(matches!(gate.enter(usize::MAX, Rank::High, &waker), Entry::Full));
    assert_eq!(gate.waiting(), MOST_WAITING as usize);
    gate.update(|state| Some(State { waiting: 0, ..state })).unwrap();
}

const MILLI: Duration = Duration::from_millis(1);

#[test]
fn who_is_turned_away_is_told_when_it_would_be_their_turn() {
    let (start, (_, waker)) = (clock::now(), bell());
    let gate = ConcurrencyLimitHandle::new(2);
    let mut inside = vec![enter(&gate), enter(&gate)];
    // Before the first measurement, a call is assumed to take 100 ms, and two are in flight.
    assert_eq!(gate.retry_after(start, Rank::High), 50 * MILLI);
    let _places = [queue(&gate, &waker), queue(&gate, &waker)];
    assert_eq!(gate.retry_after(start, Rank::High), 150 * MILLI, "two come before");
    gate.set_limit(1);
    assert_eq!(
        gate.retry_after(start, Rank::High),
        400 * MILLI,
        "so does one that is too many inside, and there is one place now"
    );
    // No permit was released during that time.
    assert!(gate.retry_after(start + 500 * MILLI, Rank::High) >= 4 * 500 * MILLI);
    assert_eq!(gate.retry_after(start + 1_000_000_000 * MILLI, Rank::High), 60_000 * MILLI);
    inside.clear();
}

#[test]
fn who_is_turned_away_where_many_come_and_go_may_come_back_soon() {
    let (start, gate) = (clock::now(), ConcurrencyLimitHandle::new(1));
    gate.retry_after(start, Rank::High);
    (0..999).for_each(|_| drop(enter(&gate)));
    let _inside = enter(&gate);
    assert_eq!(
        gate.retry_after(start + 500 * MILLI, Rank::High),
        MILLI,
        "every half millisecond, but that is the least"
    );
    // Then one call lasts, and no fast one before it makes that better.
    assert!(gate.retry_after(start + 5000 * MILLI, Rank::High) >= 4500 * MILLI);
}

proptest! {
    #[test]
    fn a_word_holds_all_of_its_numbers(available in -(MOST as i32) - 1..=MOST as i32, waiting in 0..=MOST_WAITING, left: u32) {
        let state = State::unpack(State { available, waiting, left }.pack());
        prop_assert_eq!((state.available, state.waiting), (available, waiting));
        prop_assert_eq!(state.left, left % (1 << LEFT_BITS));
        prop_assert_eq!(AVAILABLE_BITS + MOST_WAITING.count_ones() + LEFT_BITS, 64);
    }
}

#[test]
#[should_panic(expected = "`limit` must be at least 1: with no permits nothing could ever pass")]
fn a_limit_of_zero_is_refused() {
    let _ = ConcurrencyLimitHandle::new(0);
}

#[test]
fn a_change_to_zero_is_refused_and_changes_nothing() {
    let gate = ConcurrencyLimitHandle::new(2);
    let refused = std::panic::catch_unwind(|| gate.set_limit(0));
    assert!(refused.is_err());
    assert_eq!(gate.limit(), 2);
    assert!(gate.try_enter().is_some());
}

#[test]
fn a_clone_is_the_same_gate() {
    let gate = ConcurrencyLimitHandle::new(1);
    let _permit = enter(&gate);
    assert!(gate.clone().try_enter().is_none());
    assert_eq!(format!("{gate:?}"), "ConcurrencyLimitHandle { limit: 1, in_flight: 1, waiting: 0 }");
}

/// Threads that enter, wait, give up, and change the limit never see more calls in flight than the highest limit so
/// far, and leave the gate unchanged.
///
/// Shows: L1, L2
#[test]
fn threads_never_exceed_the_limit_and_leave_nothing_behind() {
    const LIMIT: usize = 3;
    let gate = ConcurrencyLimitHandle::new(LIMIT);
    let (inside, peak) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let work = |permit: Permit| {
        peak.fetch_max(inside.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        std::thread::yield_now();
        inside.fetch_sub(1, Ordering::SeqCst);
        drop(permit);
    };
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let (gate, work) = (gate.clone(), &work);
            scope.spawn(move || {
                let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
                for turn in 0..500 {
                    match gate.enter(4, Rank::High, &waker) {
                        Entry::Admitted(permit) => work(permit),
                        Entry::Full => std::thread::yield_now(),
                        Entry::Queued(waiter) if (thread + turn) % 3 == 0 => drop(waiter),
                        Entry::Queued(mut waiter) => loop {
                            match waiter.poll(&waker) {
                                Poll::Ready(permit) => break work(permit.unwrap()),
                                Poll::Pending => std::thread::park(),
                            }
                        },
                    }
                    if turn % 16 == 0 {
                        gate.set_limit(turn / 16 % LIMIT + 1);
                    }
                }
            });
        }
    });
    let peak = peak.into_inner();
    assert!(peak <= LIMIT, "{peak} at once");
    assert_eq!(counts(&gate), (0, 0));
}

struct Unpark(std::thread::Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

// === Ranks ===

fn queue_as(gate: &ConcurrencyLimitHandle, rank: Rank, max_waiting: usize, waker: &Waker) -> Waiter {
    match gate.enter(max_waiting, rank, waker) {
        Entry::Queued(waiter) => waiter,
        other => panic!("expected a place in the queue, got {other:?}"),
    }
}

/// Shows: A4
#[test]
fn the_highest_rank_is_admitted_first_and_within_a_rank_the_oldest() {
    let gate = ConcurrencyLimitHandle::new(1);
    let (_, waker) = bell();
    let mut permit = enter(&gate);
    let ranks = [Rank::Low, Rank::Normal, Rank::High, Rank::Normal, Rank::Urgent, Rank::Low, Rank::High];
    let mut waiters = ranks.map(|rank| queue_as(&gate, rank, usize::MAX, &waker));
    for next in [4, 2, 6, 1, 3, 0, 5] {
        drop(permit);
        let Poll::Ready(Ok(admitted)) = waiters[next].poll(&waker) else { panic!("not the turn of {next}") };
        permit = admitted;
    }
}

/// Shows: A4
#[test]
fn the_newest_of_the_lowest_rank_makes_room_and_is_told_at_once() {
    let gate = ConcurrencyLimitHandle::new(1);
    let (bells, wakers): (Vec<_>, Vec<_>) = (0..4).map(|_| bell()).unzip();
    let (_, waker) = bell();
    let permit = enter(&gate);
    let ranks = [Rank::Low, Rank::Low, Rank::Normal, Rank::High];
    let mut waiters: Vec<_> = ranks.iter().zip(&wakers).map(|(&rank, waker)| queue_as(&gate, rank, 4, waker)).collect();
    assert!(gate.is_full(4, Rank::Low) && matches!(gate.enter(4, Rank::Low, &waker), Entry::Full), "none is lower");
    assert!(!gate.is_full(4, Rank::Normal));

    let mut high = queue_as(&gate, Rank::High, 4, &waker);
    assert_eq!(bells.iter().map(|bell| bell.rung()).collect::<Vec<_>>(), [0, 1, 0, 0]);
    assert!(matches!(waiters[1].poll(&waker), Poll::Ready(Err(Shed))));
    assert_eq!(counts(&gate), (1, 4));
    let _normal = queue_as(&gate, Rank::Normal, 4, &waker);
    let mut urgent = queue_as(&gate, Rank::Urgent, 4, &waker);
    assert_eq!(bells.iter().map(|bell| bell.rung()).collect::<Vec<_>>(), [1, 1, 0, 0]);
    assert_eq!(counts(&gate), (1, 4), "another `Normal` one made room for the urgent one");
    assert!(waiters[2].poll(&waker).is_pending());

    // A queue without places admits no waiter, and a waiter that was shed holds nothing.
    assert!(matches!(gate.enter(0, Rank::Urgent, &waker), Entry::Full));
    waiters.truncate(3);
    assert_eq!(counts(&gate), (1, 3));
    drop(permit);
    let Poll::Ready(Ok(permit)) = urgent.poll(&waker) else { panic!("the urgent one is first") };
    drop(permit);
    assert!(high.poll(&waker).is_ready());
    drop((waiters, high, urgent));
    assert_eq!(counts(&gate), (0, 0));
}

/// Shows: A4
#[test]
fn a_waker_of_one_who_is_shed_may_panic() {
    struct Panics;
    impl Wake for Panics {
        fn wake(self: Arc<Self>) {
            panic!("woken");
        }
    }
    let gate = ConcurrencyLimitHandle::new(1);
    let (_, waker) = bell();
    let permit = enter(&gate);
    let mut low = queue_as(&gate, Rank::Low, 1, &Waker::from(Arc::new(Panics)));
    let entered = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| gate.enter(1, Rank::High, &waker)));
    assert!(entered.is_err());
    assert_eq!(counts(&gate), (1, 0), "the newcomer has left");
    assert!(matches!(low.poll(&waker), Poll::Ready(Err(Shed))));
    drop((low, permit));
    assert_eq!(counts(&gate), (0, 0));
}

/// Shows: A4
#[test]
fn reserved_permits_are_for_the_ranks_above_and_follow_the_limit() {
    let gate = ConcurrencyLimitHandle::new(10);
    gate.set_reserve(Priority::High, 0.2);
    gate.set_reserve(Priority::Normal, 0.3);
    assert_eq!(
        [Priority::High, Priority::Normal, Priority::Low].map(|priority| gate.reserve(priority)),
        [0.2, 0.3, 0.0]
    );
    let all = |rank: Rank| std::iter::from_fn(|| gate.try_enter_as(rank)).collect::<Vec<_>>();
    let (low, normal, high) = (all(Rank::Low), all(Rank::Normal), all(Rank::High));
    assert_eq!([low.len(), normal.len(), high.len()], [5, 3, 2]);
    drop((low, normal, high));
    gate.set_limit(100);
    assert_eq!(all(Rank::Low).len(), 50);
    // Rounded up, but one permit is for all.
    gate.set_limit(3);
    assert_eq!([all(Rank::Low).len(), all(Rank::Normal).len(), all(Rank::High).len()], [1, 1, 1]);
    gate.set_limit(1);
    assert_eq!(all(Rank::Low).len(), 1);
}

/// Shows: A4
#[test]
fn a_smaller_reserve_admits_those_who_wait_for_it() {
    let gate = ConcurrencyLimitHandle::new(4);
    gate.set_reserve(Priority::High, 0.5);
    let (ring, waker) = bell();
    let _inside = [gate.try_enter_as(Rank::Normal), gate.try_enter_as(Rank::Low)];
    let mut waiter = queue_as(&gate, Rank::Normal, usize::MAX, &waker);
    assert!(waiter.poll(&waker).is_pending());
    assert_eq!(counts(&gate), (2, 1));
    // No call waits in front of a `High` one.
    drop(gate.try_enter_as(Rank::High).expect("a reserved permit"));
    assert_eq!(ring.rung(), 0);
    gate.set_reserve(Priority::High, 0.25);
    assert_eq!(ring.rung(), 1);
    assert!(waiter.poll(&waker).is_ready());
}

#[test]
fn a_caller_is_told_of_those_before_it_and_of_the_permits_kept_from_it() {
    let (start, (_, waker)) = (clock::now(), bell());
    let gate = ConcurrencyLimitHandle::new(2);
    let _inside = [enter(&gate), enter(&gate)];
    let _places = [Rank::Low, Rank::Low, Rank::High].map(|rank| queue_as(&gate, rank, usize::MAX, &waker));
    // 50 ms for each permit.
    let told = |rank| gate.retry_after(start, rank);
    assert_eq!([Rank::High, Rank::Normal, Rank::Low].map(told), [100 * MILLI, 100 * MILLI, 200 * MILLI]);
    let forecast = |rank| gate.forecast(start, rank).before;
    assert_eq!([Rank::Urgent, Rank::High, Rank::Normal, Rank::Low].map(forecast), [0, 1, 1, 3]);
    gate.set_reserve(Priority::High, 0.5);
    assert_eq!([Rank::High, Rank::Normal, Rank::Low].map(told), [100 * MILLI, 150 * MILLI, 250 * MILLI]);
}

// === The naive model ===

#[derive(Clone, Debug)]
enum Event {
    TryEnter { rank: Rank },
    Enter { rank: Rank, max_waiting: usize },
    Poll { caller: usize },
    Drop { caller: usize },
    SetLimit(usize),
    Reserve(Priority, f64),
}

fn event() -> impl Strategy<Value = Event> {
    let caller = 0..40_usize;
    let rank = prop_oneof![Just(Rank::Urgent), Just(Rank::High), Just(Rank::Normal), Just(Rank::Low)];
    let places = prop_oneof![0..6_usize, Just(usize::MAX)];
    let reserve = (prop_oneof![Just(Priority::High), Just(Priority::Normal)], 0..=4_u8);
    prop_oneof![
        2 => rank.clone().prop_map(|rank| Event::TryEnter { rank }),
        6 => (rank, places).prop_map(|(rank, max_waiting)| Event::Enter { rank, max_waiting }),
        3 => caller.clone().prop_map(|caller| Event::Poll { caller }),
        6 => caller.prop_map(|caller| Event::Drop { caller }),
        1 => prop_oneof![1..6_usize, Just(usize::MAX)].prop_map(Event::SetLimit),
        1 => reserve.prop_map(|(priority, eighths)| Event::Reserve(priority, f64::from(eighths) / 8.0)),
    ]
}

/// The state after the given events: the callers inside and waiting, in order, and those that do not know yet that they
/// are inside, or shed.
#[derive(Debug, Default, PartialEq)]
struct Hall {
    limit: usize,
    reserves: [f64; 2],
    inside: Vec<usize>,
    waiting: Vec<(Rank, usize)>,
    unaware: Vec<usize>,
    shed: Vec<usize>,
    /// The number of callers that have left. One that never knew that it was inside does not count.
    left: u32,
}

impl Hall {
    fn after(limit: usize, events: &[Event]) -> Self {
        let mut hall = Hall { limit, ..Hall::default() };
        for (caller, event) in events.iter().enumerate() {
            match *event {
                Event::TryEnter { rank } => hall.arrives(caller, rank, 0),
                Event::Enter { rank, max_waiting } => hall.arrives(caller, rank, max_waiting),
                Event::SetLimit(limit) => hall.limit = limit.min(MOST),
                Event::Reserve(priority, share) => hall.reserves[usize::from(priority == Priority::Normal)] = share,
                Event::Drop { caller } => {
                    hall.left += u32::from(hall.inside.contains(&caller) && !hall.unaware.contains(&caller));
                    hall.inside.retain(|other| *other != caller);
                    hall.waiting.retain(|(_, other)| *other != caller);
                    hall.shed.retain(|other| *other != caller);
                }
                Event::Poll { caller } => {
                    hall.unaware.retain(|other| *other != caller);
                    hall.shed.retain(|other| *other != caller);
                }
            }
            while let Some(&(rank, first)) = hall.waiting.iter().min()
                && hall.has_room(rank)
            {
                hall.waiting.retain(|(_, other)| *other != first);
                hall.inside.push(first);
                hall.unaware.push(first);
            }
        }
        hall
    }

    fn has_room(&self, rank: Rank) -> bool {
        let reserved = match rank {
            Rank::Urgent | Rank::High => 0.0,
            Rank::Normal => self.reserves[0],
            Rank::Low => self.reserves[0] + self.reserves[1],
        };
        let kept = (self.limit as f64 * reserved).ceil() as usize;
        self.inside.len() < self.limit - kept.min(self.limit - 1)
    }

    fn arrives(&mut self, caller: usize, rank: Rank, places: usize) {
        if self.has_room(rank) {
            assert!(self.waiting.iter().all(|(other, _)| *other > rank), "{caller} overtakes in {self:?}");
            self.inside.push(caller);
            return;
        }
        if self.waiting.len() >= places {
            let Some(&(lowest, newest)) = self.waiting.iter().max().filter(|_| places > 0) else { return };
            if lowest <= rank {
                return;
            }
            self.waiting.retain(|(_, other)| *other != newest);
            self.shed.push(newest);
        }
        self.waiting.push((rank, caller));
    }
}

enum Caller {
    Inside {
        _permit: Permit,
    },
    /// A place in the queue, with the bell of its latest poll and the maximum number of times that the bell may have
    /// rung.
    Place {
        waiter: Waiter,
        bell: Arc<Bell>,
    },
}

proptest! {
    /// Shows: A4, L1, L2, L3
    #[test]
    fn does_what_a_naive_model_of_all_events_does(limit in 1..5_usize, events in vec(event(), 1..80)) {
        let gate = ConcurrencyLimitHandle::new(limit);
        let mut callers: Vec<Option<Caller>> = Vec::new();
        for (now, event) in events.iter().enumerate() {
            let (ring, waker) = bell();
            callers.push(None);
            match *event {
                Event::TryEnter { rank } => {
                    callers[now] = gate.try_enter_as(rank).map(|permit| Caller::Inside { _permit: permit });
                }
                Event::Enter { rank, max_waiting } => {
                    let full = gate.is_full(max_waiting, rank);
                    callers[now] = match gate.enter(max_waiting, rank, &waker) {
                        Entry::Admitted(permit) => Some(Caller::Inside { _permit: permit }),
                        Entry::Queued(waiter) => Some(Caller::Place { waiter, bell: ring }),
                        Entry::Full => None,
                    };
                    prop_assert_eq!(full, callers[now].is_none());
                }
                Event::Poll { caller } => {
                    if let Some(place @ Some(Caller::Place { .. })) = callers.get_mut(caller)
                        && let Some(Caller::Place { mut waiter, .. }) = place.take()
                    {
                        *place = match waiter.poll(&waker) {
                            Poll::Ready(Ok(permit)) => Some(Caller::Inside { _permit: permit }),
                            Poll::Ready(Err(Shed)) => None,
                            Poll::Pending => Some(Caller::Place { waiter, bell: ring }),
                        };
                    }
                }
                Event::Drop { caller } => drop(callers.get_mut(caller).and_then(Option::take)),
                Event::SetLimit(limit) => gate.set_limit(limit),
                Event::Reserve(priority, share) => gate.set_reserve(priority, share),
            }

            let hall = Hall::after(limit, &events[..=now]);
            prop_assert_eq!(gate.limit(), hall.limit);
            prop_assert_eq!(counts(&gate), (hall.inside.len(), hall.waiting.len()));
            prop_assert_eq!(gate.state().left, hall.left);
            for (id, caller) in callers.iter().enumerate() {
                let waiting = hall.waiting.iter().any(|(_, waiter)| *waiter == id);
                let (inside, shed) = (hall.inside.contains(&id), hall.shed.contains(&id));
                match caller {
                    None => prop_assert!(!inside && !waiting && !shed, "{} is gone", id),
                    Some(Caller::Inside { .. }) => prop_assert!(inside, "{} should not be inside", id),
                    Some(Caller::Place { bell, .. }) => {
                        prop_assert!(inside || waiting || shed, "{} has lost its place", id);
                        prop_assert_eq!(bell.rung(), usize::from(inside || shed), "the bell of {}", id);
                    }
                }
            }
        }
    }
}
