//! Whether a leader is alive: a call that was woken and is not polled will never end, and those who wait for it
//! neither.
//!
//! So it is with a task of a runtime that nobody drives any more, and with a future that its owner keeps and does not
//! poll.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Wake, Waker},
    time::Duration,
};

use crate::clock::{self, Instant};

/// How long a leader may take to be polled once it was woken. A runtime that is only busy is faster.
pub(super) const ABANDONED: Duration = Duration::from_secs(5);

/// Stands between the future of a leader and its waker, and notes when it was woken and has not been polled since.
pub(super) struct Pulse {
    beat: Mutex<Beat>,
}

struct Beat {
    state: State,
    waker: Option<Waker>,
}

#[derive(Clone, Copy)]
enum State {
    /// It waits to be woken.
    Asleep,
    /// It is being polled; and may have been woken meanwhile.
    Polled { woken: bool },
    /// It was woken at this time.
    Woken(Instant),
}

impl Pulse {
    /// The pulse of a leader that is about to be polled for the first time.
    pub(super) fn woken() -> Arc<Self> {
        Arc::new(Self { beat: Mutex::new(Beat { state: State::Woken(clock::now()), waker: None }) })
    }

    /// Polls: `poll` is given a context whose waker this notes.
    pub(super) fn poll<R>(self: &Arc<Self>, cx: &mut Context<'_>, poll: impl FnOnce(&mut Context<'_>) -> R) -> R {
        self.begin(cx.waker());
        let _end = End(self);
        poll(&mut Context::from_waker(&Waker::from(Arc::clone(self))))
    }

    fn begin(&self, waker: &Waker) {
        let is_kept = self.beat().waker.as_ref().is_some_and(|kept| kept.will_wake(waker));
        let waker = (!is_kept).then(|| waker.clone());
        let before = {
            let mut beat = self.beat();
            // Together: a wake that finds the poll begun and no waker would be taken for one that nothing follows.
            beat.state = State::Polled { woken: false };
            waker.and_then(|waker| beat.waker.replace(waker))
        };
        drop(before);
    }

    /// Whether it was woken long ago and is still not polled. Reads the clock only if it was woken.
    pub(super) fn is_abandoned(&self) -> bool {
        let state = self.beat().state;
        matches!(state, State::Woken(at) if clock::now().saturating_duration_since(at) >= ABANDONED)
    }

    /// Nobody is to be woken any more.
    pub(super) fn forget_waker(&self) {
        let waker = self.beat().waker.take();
        drop(waker);
    }

    /// Nothing of the user's runs under the lock, but `will_wake`, which compares.
    fn beat(&self) -> MutexGuard<'_, Beat> {
        self.beat.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Wake for Pulse {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        let waker = {
            let mut beat = self.beat();
            match &mut beat.state {
                State::Asleep => beat.state = State::Woken(clock::now()),
                State::Polled { woken } => *woken = true,
                State::Woken(_) => {}
            }
            beat.waker.take()
        };
        // It stands where it is until the next poll: one more would say nothing new.
        waker.into_iter().for_each(Waker::wake);
    }
}

/// The end of a poll, also by a panic.
struct End<'a>(&'a Pulse);

impl Drop for End<'_> {
    fn drop(&mut self) {
        let mut beat = self.0.beat();
        beat.state = match beat.state {
            State::Polled { woken: false } => State::Asleep,
            _ => State::Woken(clock::now()),
        };
    }
}

// What a test moves the clock with.
#[cfg(test)]
pub(super) use tokio::time::advance;

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

    use super::*;

    #[derive(Default)]
    struct Counter(AtomicUsize);

    impl Wake for Counter {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, SeqCst);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn only_a_leader_that_was_woken_and_is_not_polled_is_abandoned() {
        let counter = Arc::new(Counter::default());
        let waker = Waker::from(Arc::clone(&counter));
        let mut cx = Context::from_waker(&waker);
        let pulse = Pulse::woken();
        let mut inner = None;
        pulse.poll(&mut cx, |cx| inner = Some(cx.waker().clone()));
        let inner = inner.unwrap();
        advance(100 * ABANDONED).await;
        assert!(!pulse.is_abandoned(), "nobody woke it");

        inner.wake_by_ref();
        inner.wake_by_ref();
        assert_eq!(counter.0.load(SeqCst), 1, "once is enough until it is polled");
        advance(ABANDONED - Duration::from_millis(1)).await;
        assert!(!pulse.is_abandoned());
        advance(Duration::from_millis(1)).await;
        assert!(pulse.is_abandoned());

        pulse.poll(&mut cx, |cx| cx.waker().wake_by_ref());
        assert_eq!(counter.0.load(SeqCst), 2);
        assert!(!pulse.is_abandoned(), "its time begins anew");
        advance(ABANDONED).await;
        assert!(pulse.is_abandoned());
        pulse.poll(&mut cx, |_| assert!(!pulse.is_abandoned(), "it is being polled"));
    }
}
