//! A one-time signal, and the tasks that wait for it.
//!
//! tokio's `Notify` wakes its waiters in a loop that a panicking waker ends early. This signal wakes all of them.

use std::{
    collections::BTreeMap,
    future::Future,
    mem,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Waker},
};

use crate::{caught::undisturbed, debug::impl_debug, mutex::Mutex};

#[derive(Default)]
pub(crate) struct Signal {
    is_given: AtomicBool,
    waiting: Mutex<Waiting>,
}

/// No user code runs while this is locked: wakers are cloned and dropped outside the lock.
#[derive(Default)]
struct Waiting {
    next: u64,
    wakers: BTreeMap<u64, Waker>,
}

impl Signal {
    pub(crate) fn is_given(&self) -> bool {
        self.is_given.load(Ordering::SeqCst)
    }

    /// Sets the signal, and wakes its waiters in the order of their arrival.
    pub(crate) fn give(&self) {
        self.set();
        self.wake();
    }

    /// Sets the signal without waking its waiters: call [`wake`](Self::wake) next. Returns whether this was the first
    /// time.
    pub(crate) fn set(&self) -> bool {
        !self.is_given.swap(true, Ordering::SeqCst)
    }

    pub(crate) fn wake(&self) {
        let waiting = mem::take(&mut self.waiting.lock().wakers);
        for waker in waiting.into_values() {
            undisturbed(|| waker.wake());
        }
    }

    /// Returns a future that completes when the signal is set.
    pub(crate) fn wait(self: &Arc<Self>) -> Wait {
        Wait { signal: Arc::clone(self), place: None }
    }
}

/// The future of [`Signal::wait`].
pub(crate) struct Wait {
    signal: Arc<Signal>,
    /// The key of its waker.
    place: Option<u64>,
}

impl Wait {
    /// Returns whether a waker is registered that wakes the same task.
    fn is_known(&self, waiting: &Waiting, waker: &Waker) -> bool {
        self.place.and_then(|place| waiting.wakers.get(&place)).is_some_and(|known| known.will_wake(waker))
    }
}

impl Future for Wait {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if self.signal.is_given() {
            return Poll::Ready(());
        }
        if self.is_known(&self.signal.waiting.lock(), cx.waker()) {
            return Poll::Pending;
        }
        let waker = cx.waker().clone();
        let signal = Arc::clone(&self.signal);
        let mut waiting = signal.waiting.lock();
        // A signal that is set after this finds the waker.
        if signal.is_given() {
            drop(waiting);
            return Poll::Ready(());
        }
        let place = *self.place.get_or_insert_with(|| {
            waiting.next += 1;
            waiting.next
        });
        let replaced = waiting.wakers.insert(place, waker);
        drop(waiting);
        drop(replaced);
        Poll::Pending
    }
}

impl Drop for Wait {
    fn drop(&mut self) {
        if let Some(place) = self.place {
            let waker = self.signal.waiting.lock().wakers.remove(&place);
            undisturbed(|| drop(waker));
        }
    }
}

impl_debug!(Signal { is_given = |this| this.is_given(), .. });

#[cfg(test)]
mod tests {
    use std::{pin::pin, sync::atomic::AtomicUsize, task::Wake};

    use super::*;

    /// Counts its wakes. With `panics`, each wake panics.
    struct Woken {
        times: AtomicUsize,
        panics: bool,
    }

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.times.fetch_add(1, Ordering::SeqCst);
            assert!(!self.panics, "woken");
        }
    }

    #[test]
    fn all_who_wait_are_woken_once_also_behind_a_waker_that_panics() {
        let signal = Arc::<Signal>::default();
        let woken = [true, false, true, false].map(|panics| Arc::new(Woken { times: AtomicUsize::new(0), panics }));
        let mut waiting: Vec<_> = woken.iter().map(|_| signal.wait()).collect();
        for _ in 0..2 {
            for (wait, woken) in waiting.iter_mut().zip(&woken) {
                let waker = Arc::clone(woken).into();
                assert!(Pin::new(wait).poll(&mut Context::from_waker(&waker)).is_pending());
            }
        }
        drop(waiting.pop());
        assert!(!signal.is_given());
        signal.give();
        signal.give();
        let times = woken.map(|woken| woken.times.load(Ordering::SeqCst));
        assert_eq!(times, [1, 1, 1, 0]);
        for wait in &mut waiting {
            assert!(Pin::new(wait).poll(&mut Context::from_waker(Waker::noop())).is_ready());
        }
        assert!(pin!(signal.wait()).poll(&mut Context::from_waker(Waker::noop())).is_ready());
        drop(waiting);
        assert!(signal.waiting.lock().wakers.is_empty());
    }

    #[test]
    fn who_goes_leaves_no_waker_and_another_task_replaces_it() {
        let signal = Arc::<Signal>::default();
        let woken = [false, false].map(|panics| Arc::new(Woken { times: AtomicUsize::new(0), panics }));
        let mut wait = signal.wait();
        for woken in &woken {
            let waker = Arc::clone(woken).into();
            assert!(Pin::new(&mut wait).poll(&mut Context::from_waker(&waker)).is_pending());
        }
        assert_eq!(woken.each_ref().map(Arc::strong_count), [1, 2]);
        signal.give();
        assert_eq!(woken.map(|woken| woken.times.load(Ordering::SeqCst)), [0, 1]);
        let mut gone = Arc::<Signal>::default().wait();
        assert!(Pin::new(&mut gone).poll(&mut Context::from_waker(Waker::noop())).is_pending());
        let signal = Arc::clone(&gone.signal);
        drop(gone);
        assert!(signal.waiting.lock().wakers.is_empty());
    }
}
