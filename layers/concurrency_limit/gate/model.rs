//! Every interleaving of the gate's atomics, as far as loom explores them.
//! `RUSTFLAGS="--cfg ziggurat_loom" cargo test --release --lib gate`

use std::{future::poll_fn, task::Poll, time::Duration};

use loom::{
    future::block_on,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    thread,
};

use super::{ConcurrencyLimitHandle, Entry, Permit};
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
    let mut place = None;
    block_on(poll_fn(|cx| match &mut place {
        None => match gate.enter(usize::MAX, false, cx.waker()) {
            Entry::Admitted(permit) => Poll::Ready(permit),
            Entry::Queued(waiter) => place.insert(waiter).poll(cx.waker()),
            Entry::Full => unreachable!("the queue has no bound"),
        },
        Some(waiter) => waiter.poll(cx.waker()),
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
        let asks = |gate: ConcurrencyLimitHandle, now| move || gate.retry_after(now);
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
            thread::spawn(move || drop(gate.enter(usize::MAX, false, std::task::Waker::noop())))
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
        let refused = matches!(gate.enter(0, false, std::task::Waker::noop()), Entry::Full);
        leaver.join().unwrap();
        // Whether the call was refused or not, the gate has room afterwards.
        assert!(gate.try_enter().is_some(), "refused: {refused}");
    });
}
