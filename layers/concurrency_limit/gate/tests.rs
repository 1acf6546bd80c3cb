use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Poll, Wake, Waker},
    time::Duration,
};

use proptest::{collection::vec, prelude::*};

use super::{AVAILABLE_BITS, ConcurrencyLimitHandle, Entry, LEFT_BITS, MOST, MOST_WAITING, Permit, State, Waiter};
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
    match gate.enter(usize::MAX, false, waker) {
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
    let Poll::Ready(permit) = first.poll(&waker) else { panic!("the first was not admitted") };
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
    assert!(!gate.is_full(0));
    let permit = enter(&gate);
    assert!(matches!(gate.enter(0, false, &waker), Entry::Full));
    assert!(gate.is_full(0));
    assert!(!gate.is_full(1));
    let Entry::Queued(_waiter) = gate.enter(1, false, &waker) else { panic!("the queue had a place") };
    assert!(matches!(gate.enter(1, false, &waker), Entry::Full));
    assert!(gate.is_full(1));
    drop(permit);
    assert!(matches!(gate.enter(1, false, &waker), Entry::Queued(_)));
}

#[test]
fn asking_to_wait_at_a_gate_with_room_admits_at_once() {
    let gate = ConcurrencyLimitHandle::new(1);
    let (bell, waker) = bell();
    let Entry::Admitted(_permit) = gate.enter(0, false, &waker) else { panic!("there was room") };
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
    let Poll::Ready(permit) = waiter.poll(&new_waker) else { panic!("it was admitted") };
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
    assert!(matches!(gate.enter(usize::MAX, false, &waker), Entry::Full));
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
    assert_eq!(gate.retry_after(start), 50 * MILLI);
    let _places = [queue(&gate, &waker), queue(&gate, &waker)];
    assert_eq!(gate.retry_after(start), 150 * MILLI, "two come before");
    gate.set_limit(1);
    assert_eq!(gate.retry_after(start), 400 * MILLI, "so does one that is too many inside, and there is one place now");
    // No permit was released during that time.
    assert!(gate.retry_after(start + 500 * MILLI) >= 4 * 500 * MILLI);
    assert_eq!(gate.retry_after(start + 1_000_000_000 * MILLI), 60_000 * MILLI);
    inside.clear();
}

#[test]
fn who_is_turned_away_where_many_come_and_go_may_come_back_soon() {
    let (start, gate) = (clock::now(), ConcurrencyLimitHandle::new(1));
    gate.retry_after(start);
    (0..999).for_each(|_| drop(enter(&gate)));
    let _inside = enter(&gate);
    assert_eq!(gate.retry_after(start + 500 * MILLI), MILLI, "every half millisecond, but that is the least");
    // Then one call lasts, and no fast one before it makes that better.
    assert!(gate.retry_after(start + 5000 * MILLI) >= 4500 * MILLI);
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
                    match gate.enter(4, false, &waker) {
                        Entry::Admitted(permit) => work(permit),
                        Entry::Full => std::thread::yield_now(),
                        Entry::Queued(waiter) if (thread + turn) % 3 == 0 => drop(waiter),
                        Entry::Queued(mut waiter) => loop {
                            match waiter.poll(&waker) {
                                Poll::Ready(permit) => break work(permit),
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

// === The naive model ===

#[derive(Clone, Debug)]
enum Event {
    TryEnter,
    Enter { max_waiting: usize },
    Poll { caller: usize },
    Drop { caller: usize },
    SetLimit(usize),
}

fn event() -> impl Strategy<Value = Event> {
    let caller = 0..40_usize;
    prop_oneof![
        2 => Just(Event::TryEnter),
        6 => prop_oneof![0..6_usize, Just(usize::MAX)].prop_map(|max_waiting| Event::Enter { max_waiting }),
        3 => caller.clone().prop_map(|caller| Event::Poll { caller }),
        6 => caller.prop_map(|caller| Event::Drop { caller }),
        1 => prop_oneof![1..6_usize, Just(usize::MAX)].prop_map(Event::SetLimit),
    ]
}

/// The state after the given events: the callers inside and waiting, in order, and those inside that do not know it.
#[derive(Debug, Default, PartialEq)]
struct Hall {
    limit: usize,
    inside: Vec<usize>,
    waiting: Vec<usize>,
    unaware: Vec<usize>,
    /// The number of callers that have left. One that never knew that it was inside does not count.
    left: u32,
}

impl Hall {
    fn after(limit: usize, events: &[Event]) -> Self {
        let mut hall = Hall { limit, ..Hall::default() };
        for (caller, event) in events.iter().enumerate() {
            let places = match event {
                Event::TryEnter => 0,
                Event::Enter { max_waiting } => *max_waiting,
                Event::SetLimit(limit) => {
                    hall.limit = *limit;
                    0
                }
                Event::Drop { caller } => {
                    hall.left += u32::from(hall.inside.contains(caller) && !hall.unaware.contains(caller));
                    hall.inside.retain(|other| other != caller);
                    hall.waiting.retain(|other| other != caller);
                    0
                }
                Event::Poll { caller } => {
                    hall.unaware.retain(|other| other != caller);
                    0
                }
            };
            if matches!(event, Event::TryEnter | Event::Enter { .. }) {
                if hall.inside.len() < hall.limit {
                    hall.inside.push(caller);
                } else if hall.waiting.len() < places {
                    hall.waiting.push(caller);
                }
            }
            while hall.inside.len() < hall.limit && !hall.waiting.is_empty() {
                let first = hall.waiting.remove(0);
                hall.inside.push(first);
                hall.unaware.push(first);
            }
        }
        hall
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
    /// Shows: L1, L2, L3
    #[test]
    fn does_what_a_naive_model_of_all_events_does(limit in 1..5_usize, events in vec(event(), 1..80)) {
        let gate = ConcurrencyLimitHandle::new(limit);
        let mut callers: Vec<Option<Caller>> = Vec::new();
        for (now, event) in events.iter().enumerate() {
            let (ring, waker) = bell();
            callers.push(None);
            match *event {
                Event::TryEnter => {
                    callers[now] = gate.try_enter().map(|permit| Caller::Inside { _permit: permit });
                }
                Event::Enter { max_waiting } => {
                    let full = gate.is_full(max_waiting);
                    callers[now] = match gate.enter(max_waiting, false, &waker) {
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
                        *place = Some(match waiter.poll(&waker) {
                            Poll::Ready(permit) => Caller::Inside { _permit: permit },
                            Poll::Pending => Caller::Place { waiter, bell: ring },
                        });
                    }
                }
                Event::Drop { caller } => drop(callers.get_mut(caller).and_then(Option::take)),
                Event::SetLimit(limit) => gate.set_limit(limit),
            }

            let hall = Hall::after(limit, &events[..=now]);
            prop_assert_eq!(gate.limit(), hall.limit.min(MOST));
            prop_assert_eq!(counts(&gate), (hall.inside.len(), hall.waiting.len()));
            prop_assert_eq!(gate.state().left, hall.left);
            for (id, caller) in callers.iter().enumerate() {
                let (inside, waiting) = (hall.inside.contains(&id), hall.waiting.contains(&id));
                match caller {
                    None => prop_assert!(!inside && !waiting, "{} is gone", id),
                    Some(Caller::Inside { .. }) => prop_assert!(inside, "{} should not be inside", id),
                    Some(Caller::Place { bell, .. }) => {
                        prop_assert!(inside || waiting, "{} has lost its place", id);
                        prop_assert_eq!(bell.rung(), usize::from(inside), "the bell of {}", id);
                    }
                }
            }
        }
    }
}
