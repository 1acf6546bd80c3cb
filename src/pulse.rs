//! Detects futures that are woken but no longer polled. Such a future never completes, and neither does any waiter that
//! depends on it.
//!
//! This happens to a task whose runtime is no longer driven, and to a future whose owner keeps it without polling it.

use std::{
    sync::Arc,
    task::{Context, Wake, Waker},
    time::Duration,
};

use crate::{
    clock::{self, Instant},
    mutex::Mutex,
};

/// How long a woken future may go unpolled before it counts as abandoned. A runtime that is merely busy is faster.
pub(crate) const ABANDONED: Duration = Duration::from_secs(5);

/// Sits between a future and its waker, and records when the future was woken without being polled since.
pub(crate) struct Pulse {
    // No user code runs under the lock except `will_wake`, which only compares.
    beat: Mutex<Beat>,
}

struct Beat {
    state: State,
    waker: Option<Waker>,
    /// When a timer of the future's own runtime is due to wake it.
    alarm: Option<Instant>,
}

impl Beat {
    /// Returns the state before the first poll.
    fn first() -> Self {
        Self { state: State::Woken(clock::now()), waker: None, alarm: None }
    }
}

#[derive(Clone, Copy)]
enum State {
    /// The future is waiting to be woken.
    Asleep,
    /// The future is being polled, and may have been woken during the poll.
    Polled { woken: bool },
    /// The future was woken at this time, and not polled since.
    Woken(Instant),
}

impl Pulse {
    /// Creates the pulse of a future that is about to be polled for the first time.
    pub(crate) fn woken() -> Arc<Self> {
        Arc::new(Self { beat: Mutex::new(Beat::first()) })
    }

    /// Resets this to the pulse of another future that is about to be polled for the first time.
    pub(crate) fn restart(&self) {
        let first = Beat::first();
        let before = std::mem::replace(&mut *self.beat.lock(), first);
        drop(before);
    }

    /// Calls `poll` with a context whose waker records wakes.
    pub(crate) fn poll<R>(self: &Arc<Self>, cx: &mut Context<'_>, poll: impl FnOnce(&mut Context<'_>) -> R) -> R {
        self.begin(cx.waker());
        let _end = End(self);
        poll(&mut Context::from_waker(&Waker::from(Arc::clone(self))))
    }

    fn begin(&self, waker: &Waker) {
        let is_kept = self.beat.lock().waker.as_ref().is_some_and(|kept| kept.will_wake(waker));
        let waker = (!is_kept).then(|| waker.clone());
        let before = {
            let mut beat = self.beat.lock();
            // Both under one lock: a wake between them would find the poll begun and no waker, and would be lost.
            beat.state = State::Polled { woken: false };
            waker.and_then(|waker| beat.waker.replace(waker))
        };
        drop(before);
    }

    /// Records that the future sleeps until `alarm` at the latest, or without a limit if `None`.
    ///
    /// A timer does not fire in a runtime that is no longer driven, so the future counts as woken at that time.
    pub(crate) fn set_alarm(&self, alarm: Option<Instant>) {
        self.beat.lock().alarm = alarm;
    }

    /// Returns whether the future was woken long ago and not polled since. Reads the clock only if it was woken.
    pub(crate) fn is_abandoned(&self) -> bool {
        self.abandoned_from().is_some_and(|from| from <= clock::now())
    }

    /// Returns the time from which the future counts as abandoned unless it is polled earlier. `None` while it is being
    /// polled, and while it sleeps without an alarm.
    pub(crate) fn abandoned_from(&self) -> Option<Instant> {
        let beat = self.beat.lock();
        let woken = match beat.state {
            State::Woken(at) => Some(at),
            State::Asleep => beat.alarm,
            State::Polled { .. } => None,
        };
        woken?.checked_add(ABANDONED)
    }

    /// Drops the waker, so that later wakes have no effect.
    pub(crate) fn forget_waker(&self) {
        let waker = self.beat.lock().waker.take();
        drop(waker);
    }
}

impl Wake for Pulse {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        let waker = {
            let mut beat = self.beat.lock();
            match &mut beat.state {
                State::Asleep => beat.state = State::Woken(clock::now()),
                State::Polled { woken } => *woken = true,
                State::Woken(_) => {}
            }
            beat.waker.take()
        };
        // The state stays the same until the next poll, so one wake is enough.
        waker.into_iter().for_each(Waker::wake);
    }
}

/// Ends a poll, even if it panics.
struct End<'a>(&'a Pulse);

impl Drop for End<'_> {
    fn drop(&mut self) {
        let mut beat = self.0.beat.lock();
        beat.state = match beat.state {
            State::Polled { woken: false } => State::Asleep,
            _ => State::Woken(clock::now()),
        };
    }
}

// Tests use it to advance the clock.
#[cfg(test)]
pub(crate) use tokio::time::advance;

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

    use super::*;

    const MILLI: Duration = Duration::from_millis(1);

    #[derive(Default)]
    struct Counter(AtomicUsize);

    impl Wake for Counter {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, SeqCst);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn only_a_future_that_was_woken_and_is_not_polled_is_abandoned() {
        let counter = Arc::new(Counter::default());
        let waker = Waker::from(Arc::clone(&counter));
        let mut cx = Context::from_waker(&waker);
        let pulse = Pulse::woken();
        let mut inner = None;
        pulse.poll(&mut cx, |cx| inner = Some(cx.waker().clone()));
        let inner = inner.unwrap();
        advance(100 * ABANDONED).await;
        assert!(!pulse.is_abandoned(), "it was not woken");

        inner.wake_by_ref();
        inner.wake_by_ref();
        assert_eq!(counter.0.load(SeqCst), 1, "one wake per poll");
        advance(ABANDONED - MILLI).await;
        assert!(!pulse.is_abandoned());
        advance(MILLI).await;
        assert!(pulse.is_abandoned());

        pulse.poll(&mut cx, |cx| cx.waker().wake_by_ref());
        assert_eq!(counter.0.load(SeqCst), 2);
        assert!(!pulse.is_abandoned(), "its time starts again");
        advance(ABANDONED).await;
        assert!(pulse.is_abandoned());
        pulse.poll(&mut cx, |_| assert!(!pulse.is_abandoned(), "it is being polled"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_future_that_sleeps_until_its_alarm_counts_as_woken_then() {
        let mut cx = Context::from_waker(Waker::noop());
        let pulse = Pulse::woken();
        let alarm = clock::now() + ABANDONED;
        pulse.poll(&mut cx, |_| pulse.set_alarm(Some(alarm)));
        assert_eq!(pulse.abandoned_from(), Some(alarm + ABANDONED));
        advance(2 * ABANDONED - MILLI).await;
        assert!(!pulse.is_abandoned());
        advance(MILLI).await;
        assert!(pulse.is_abandoned());
        pulse.poll(&mut cx, |_| pulse.set_alarm(None));
        assert!(!pulse.is_abandoned(), "it was polled, and sleeps");
    }

    #[tokio::test(start_paused = true)]
    async fn a_pulse_that_restarts_is_that_of_a_future_to_be_polled_for_the_first_time() {
        let counter = Arc::new(Counter::default());
        let waker = Waker::from(Arc::clone(&counter));
        let mut cx = Context::from_waker(&waker);
        let pulse = Pulse::woken();
        pulse.poll(&mut cx, |_| pulse.set_alarm(Some(clock::now())));
        advance(ABANDONED).await;
        assert!(pulse.is_abandoned());
        pulse.restart();
        assert_eq!(pulse.abandoned_from(), Some(clock::now() + ABANDONED));
        pulse.wake_by_ref();
        assert_eq!(counter.0.load(SeqCst), 0, "the waker belonged to the previous future");
        pulse.poll(&mut cx, |_| ());
        advance(ABANDONED).await;
        assert!(!pulse.is_abandoned(), "the alarm belonged to the previous future");
    }
}
