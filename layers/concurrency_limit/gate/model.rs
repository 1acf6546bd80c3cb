//! Every interleaving of the gate's atomics, as far as loom explores them.
//! `RUSTFLAGS="--cfg ziggurat_loom" cargo test --release --lib gate`

use std::{future::poll_fn, panic::AssertUnwindSafe, task::Poll, time::Duration};

use loom::{
    future::block_on,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    thread,
};

use super::{super::bodies::BodyPermit, ConcurrencyLimitHandle, Entry, Permit, Priority, Rank};
use crate::clock;

const SECOND: Duration = Duration::from_secs(1);

/// At most three preemptions of a runnable thread: this covers every known kind of race and finishes quickly.
fn explore(scenario: impl Fn() + Send + Sync + 'static) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(3);
    model.check(scenario);
}

/// Waits as the service does. Loom reports a lost wakeup as a deadlock.
fn enter(gate: &ConcurrencyLimitHandle) -> Permit {
    enter_as(gate, Rank::High, usize::MAX).expect("the queue has no bound")
}

/// Returns `None` if the queue is full, or if the waiter is shed.
fn enter_as(gate: &ConcurrencyLimitHandle, rank: Rank, max_waiting: usize) -> Option<Permit> {
    let mut place = None;
    block_on(poll_fn(|cx| {
        let waiter = match &mut place {
            None => match gate.enter(max_waiting, rank, cx.waker()) {
                Entry::Admitted(permit) => return Poll::Ready(Some(permit)),
                Entry::Queued(waiter) => place.insert(waiter),
                Entry::Full => return Poll::Ready(None),
            },
            Some(waiter) => waiter,
        };
        waiter.poll(cx.waker()).map(Result::ok)
    }))
}

#[test]
fn one_permit_is_never_held_twice_and_nobody_is_forgotten() {
    explore(|| {
        let gate = ConcurrencyLimitHandle::new(1);
        let inside = Arc::new(AtomicUsize::new(0));
        let work = |gate: ConcurrencyLimitHandle, inside: Arc<AtomicUsize>| {
            move || {
                let permit = gate.try_enter().unwrap_or_else(|| enter(&gate));
                assert_eq!(inside.fetch_add(1, SeqCst), 0);
                inside.fetch_sub(1, SeqCst);
                drop(permit);
            }
        };
        let other = thread::spawn(work(gate.clone(), inside.clone()));
        work(gate.clone(), inside)();
        other.join().unwrap();
        assert_eq!((gate.in_flight(), gate.waiting(), gate.state().left), (0, 0, 2));
    });
}

#[test]
fn who_is_turned_away_waits_for_nobody_and_is_told_within_bounds() {
    explore(|| {
        let (gate, now) = (ConcurrencyLimitHandle::new(1), clock::now());
        let permit = gate.try_enter();
        let asks = |gate: ConcurrencyLimitHandle, now| move || gate.retry_after(now, Rank::High);
        let other = thread::spawn(asks(gate.clone(), now + SECOND));
        let leaver = thread::spawn(move || drop(permit));
        let said = [asks(gate.clone(), now)(), other.join().unwrap()];
        leaver.join().unwrap();
        assert!(said.iter().all(|said| (SECOND / 1000..=2 * SECOND).contains(said)), "{said:?}");
        assert_eq!(gate.state().left, 1);
    });
}

#[test]
fn a_waiter_that_gives_up_while_it_is_admitted_loses_no_permit() {
    explore(|| {
        let gate = ConcurrencyLimitHandle::new(1);
        let permit = gate.try_enter();
        let quitter = {
            let gate = gate.clone();
            thread::spawn(move || drop(gate.enter(usize::MAX, Rank::High, std::task::Waker::noop())))
        };
        let waiter = {
            let gate = gate.clone();
            thread::spawn(move || drop(enter(&gate)))
        };
        drop(permit);
        quitter.join().unwrap();
        waiter.join().unwrap();
        assert_eq!((gate.in_flight(), gate.waiting()), (0, 0));
    });
}

#[test]
fn a_limit_that_changes_meanwhile_neither_underflows_nor_forgets_a_waiter() {
    explore(|| {
        let gate = ConcurrencyLimitHandle::new(1);
        let permit = gate.try_enter();
        let waiter = {
            let gate = gate.clone();
            thread::spawn(move || drop(enter(&gate)))
        };
        let changer = {
            let gate = gate.clone();
            thread::spawn(move || {
                gate.set_limit(2);
                gate.set_limit(1);
            })
        };
        drop(permit);
        waiter.join().unwrap();
        changer.join().unwrap();
        assert_eq!((gate.limit(), gate.in_flight(), gate.waiting()), (1, 0, 0));
        assert!(gate.try_enter().is_some());
    });
}

#[test]
fn a_full_queue_refuses_only_while_the_gate_is_full() {
    explore(|| {
        let gate = ConcurrencyLimitHandle::new(1);
        let permit = gate.try_enter();
        let leaver = thread::spawn(move || drop(permit));
        let refused = matches!(gate.enter(0, Rank::High, std::task::Waker::noop()), Entry::Full);
        leaver.join().unwrap();
        // Whether the call was refused or not, the gate has room afterwards.
        assert!(gate.try_enter().is_some(), "refused: {refused}");
    });
}

#[test]
fn a_waiter_is_shed_or_admitted_and_the_one_in_its_place_is_not_forgotten() {
    explore(|| {
        let gate = ConcurrencyLimitHandle::new(1);
        let permit = gate.try_enter();
        let low = {
            let gate = gate.clone();
            thread::spawn(move || enter_as(&gate, Rank::Low, 1).is_some())
        };
        let high = {
            let gate = gate.clone();
            thread::spawn(move || enter_as(&gate, Rank::High, 1).is_some())
        };
        drop(permit);
        let [low, high] = [low, high].map(|caller| caller.join().unwrap());
        assert!(high, "low was admitted: {low}");
        assert_eq!((gate.in_flight(), gate.waiting()), (0, 0));
    });
}

#[test]
fn a_waiter_that_gives_up_while_it_is_shed_or_admitted_leaves_nothing_behind() {
    explore(|| {
        let gate = ConcurrencyLimitHandle::new(1);
        let permit = gate.try_enter();
        let waker = std::task::Waker::noop();
        let Entry::Queued(quitter) = gate.enter(1, Rank::Low, waker) else { unreachable!("the gate is full") };
        let quitter = thread::spawn(move || drop(quitter));
        let high = {
            let gate = gate.clone();
            thread::spawn(move || drop(enter_as(&gate, Rank::High, 1).expect("a place")))
        };
        drop(permit);
        quitter.join().unwrap();
        high.join().unwrap();
        assert_eq!((gate.in_flight(), gate.waiting()), (0, 0));
        assert!(gate.try_enter().is_some());
    });
}

#[test]
fn a_waiter_for_which_a_permit_is_kept_back_has_it_once_the_reserve_is_smaller() {
    explore(|| {
        let gate = ConcurrencyLimitHandle::new(2);
        gate.set_reserve(Priority::High, 0.5);
        let permit = gate.try_enter_as(Rank::Normal);
        let normal = {
            let gate = gate.clone();
            thread::spawn(move || drop(enter_as(&gate, Rank::Normal, usize::MAX)))
        };
        let setter = {
            let gate = gate.clone();
            thread::spawn(move || gate.set_reserve(Priority::High, 0.0))
        };
        let high = gate.try_enter_as(Rank::High);
        setter.join().unwrap();
        drop(high);
        normal.join().unwrap();
        drop(permit);
        assert_eq!((gate.in_flight(), gate.waiting()), (0, 0));
    });
}

/// A call joins the queue while the last call in front of it becomes a body: one of the two makes room.
#[test]
fn a_waiter_does_not_stay_behind_bodies_that_hold_all_permits() {
    explore(|| {
        let gate = ConcurrencyLimitHandle::new(1);
        let made = Arc::new(AtomicUsize::new(0));
        let room = AssertUnwindSafe(made.clone());
        gate.watch_bodies(Box::new(move |permits| {
            let AssertUnwindSafe(room) = &room;
            room.store(permits, SeqCst);
        }));
        let permit = gate.try_enter().expect("a permit");
        let head = thread::spawn(move || BodyPermit::new(permit));
        let Entry::Queued(waiter) = gate.enter(1, Rank::High, std::task::Waker::noop()) else {
            unreachable!("the gate is full")
        };
        gate.make_room_for_waiters();
        let body = head.join().unwrap();
        assert_eq!(made.load(SeqCst), 1);
        drop((waiter, body));
    });
}
