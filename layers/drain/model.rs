//! Every interleaving of the drain's atomics, as far as loom explores them.
//! `RUSTFLAGS="--cfg ziggurat_loom" cargo test --release --lib model`

use std::{
    future::{Future, poll_fn},
    pin::pin,
    task::{Context, Poll, Waker},
    time::Duration,
};

use loom::{
    future::block_on,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    thread,
};

use super::{DrainHandle, wakers::Wakers};

/// At most three preemptions of a runnable thread: this covers every known kind of race and finishes quickly.
fn explore(scenario: impl Fn() + Send + Sync + 'static) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(3);
    model.check(scenario);
}

fn handle() -> DrainHandle {
    let handle = DrainHandle::new();
    handle.set_grace(Duration::MAX);
    handle
}

fn has_drained(handle: &DrainHandle) -> bool {
    pin!(handle.drained()).poll(&mut Context::from_waker(Waker::noop())).is_ready()
}

#[test]
fn a_drain_does_not_end_before_a_call_that_was_admitted() {
    explore(|| {
        let (handle, inside) = (handle(), Arc::new(AtomicUsize::new(0)));
        let calls: Vec<_> = (0..2)
            .map(|_| {
                let (handle, inside) = (handle.clone(), Arc::clone(&inside));
                thread::spawn(move || {
                    if handle.shared().enter() {
                        inside.fetch_add(1, SeqCst);
                        inside.fetch_sub(1, SeqCst);
                        handle.shared().leave();
                    }
                })
            })
            .collect();
        drop(handle.drain());
        if has_drained(&handle) {
            // A call that comes later is not admitted.
            assert_eq!(inside.load(SeqCst), 0);
        }
        for call in calls {
            call.join().unwrap();
        }
        assert!(has_drained(&handle) && handle.in_flight() == 0, "the last call has ended");
    });
}

/// Loom reports a lost wakeup as a deadlock.
#[test]
fn every_call_that_is_pending_is_woken() {
    explore(|| {
        let handle = handle();
        let calls: Vec<_> = (0..2)
            .map(|_| {
                let handle = handle.clone();
                thread::spawn(move || {
                    let mut place = None;
                    block_on(poll_fn(|cx| match handle.shared().end_or_wake(&mut place, cx) {
                        Some(_) => Poll::Ready(()),
                        None => Poll::Pending,
                    }));
                    place.map(|place| handle.shared().forget_waker(place))
                })
            })
            .collect();
        drop(handle.drain());
        for call in calls {
            call.join().unwrap();
        }
    });
}

#[test]
fn a_place_belongs_to_one_call_at_a_time() {
    explore(|| {
        let wakers = Arc::new(Wakers::new());
        let places = [wakers.take(), wakers.take()];
        places.into_iter().for_each(|place| wakers.give_back(place));
        let other = Arc::clone(&wakers);
        // The first place is the last one returned again, while the place behind it is in use.
        let other = thread::spawn(move || {
            let (first, second) = (other.take(), other.take());
            other.give_back(first);
            (second, other.take())
        });
        let here = wakers.take();
        let (second, third) = other.join().unwrap();
        assert!(here != second && here != third && second != third, "{here} {second} {third}");
    });
}
