//! The handle of a drain, and its futures.

use std::{
    future::Future,
    pin::Pin,
    sync::{Arc, OnceLock},
    task::{Context, Poll, ready},
    time::Duration,
};

use super::{count::Count, wakers::Wakers};
use crate::{
    clock::{self, Instant, Sleep},
    debug::impl_debug,
    mutex::Mutex,
    signal::{Signal, Wait},
};

/// The default grace period.
///
/// Kubernetes kills a program 30 seconds after it asks it to stop. The default leaves 10 of them for the program's own
/// tear-down.
const GRACE: Duration = Duration::from_secs(20);

/// Starts a drain, and shows its progress. Clones refer to the same drain.
#[derive(Clone)]
pub struct DrainHandle {
    shared: Arc<Shared>,
}

pub(super) struct Shared {
    count: Count,
    wakers: Wakers,
    grace: Mutex<Duration>,
    /// Set before the count is closed.
    end: OnceLock<End>,
    begun: Arc<Signal>,
    /// Given when the last call has ended.
    ended: Arc<Signal>,
}

/// When the calls in flight are ended.
#[derive(Debug, Clone, Copy)]
pub(super) struct End {
    pub(super) grace: Duration,
    // None: never.
    at: Option<Instant>,
}

impl DrainHandle {
    pub(super) fn new() -> Self {
        let shared = Shared {
            count: Count::new(),
            wakers: Wakers::new(),
            grace: Mutex::new(GRACE),
            end: OnceLock::new(),
            begun: Arc::default(),
            ended: Arc::default(),
        };
        Self { shared: Arc::new(shared) }
    }

    /// Starts the drain: from now on, new calls are rejected, and the grace period of the calls in flight runs.
    ///
    /// The drain starts in this call, not in the first poll of the future, and goes on if the future is dropped. A
    /// second call changes nothing. A drain cannot be taken back: clients that were sent elsewhere do not return.
    ///
    /// The future completes when the last call in flight has ended, or when the grace period is over. See
    /// [`drained`](Self::drained).
    pub fn drain(&self) -> Drained {
        let shared = &self.shared;
        shared.end.get_or_init(|| {
            let grace = *shared.grace.lock();
            End { grace, at: clock::now().checked_add(grace) }
        });
        let closing = shared.count.close();
        if closing.is_first {
            shared.wakers.wake_all();
            shared.begun.give();
            if closing.is_empty {
                shared.ended.give();
            }
        }
        self.drained()
    }

    /// Returns a future that completes when the last call has ended after [`drain`](Self::drain) was called, or when
    /// the grace period is over. It does not start the drain.
    ///
    /// # Panics
    ///
    /// When it is polled during a drain outside a tokio runtime with a clock, if calls are in flight.
    #[must_use]
    pub fn drained(&self) -> Drained {
        let shared = Arc::clone(&self.shared);
        Drained { begun: shared.begun.wait(), ended: shared.ended.wait(), timer: None, shared }
    }

    /// Returns a future that completes when the drain begins. Use it to end a stream that would not end by itself.
    pub fn draining(&self) -> Draining {
        Draining { begun: Some(self.shared.begun.wait()) }
    }

    /// Returns whether the drain has begun. It stays so after the drain has ended.
    #[inline]
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.shared.count.is_closed()
    }

    /// Returns the number of calls in flight: those whose response's body has not ended.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.shared.count.in_flight()
    }

    /// Returns the grace period.
    #[must_use]
    pub fn grace(&self) -> Duration {
        self.shared.end.get().map_or_else(|| *self.shared.grace.lock(), |end| end.grace)
    }

    /// Changes the grace period, for all clones. See [`DrainLayer::grace`](super::DrainLayer::grace). It has no effect
    /// once the drain has begun.
    pub fn set_grace(&self, grace: Duration) {
        *self.shared.grace.lock() = grace;
    }

    pub(super) fn shared(&self) -> &Shared {
        &self.shared
    }
}

impl_debug!(DrainHandle {
    draining = |this| this.is_draining(),
    in_flight = |this| this.in_flight(),
    grace = |this| this.grace(),
});

impl Shared {
    /// Counts a call, unless the drain has begun.
    #[inline]
    pub(super) fn enter(&self) -> bool {
        if self.count.is_closed() {
            return false;
        }
        let admitted = self.count.enter();
        if !admitted {
            self.leave();
        }
        admitted
    }

    #[inline]
    pub(super) fn leave(&self) {
        if self.count.leave() {
            self.ended.give();
        }
    }

    /// The end of a drain that has begun.
    pub(super) fn end(&self) -> Option<End> {
        if self.count.is_closed() { self.end.get().copied() } else { None }
    }

    /// Sees to it that the drain wakes a call that is pending, unless it has begun. Returns the end of one that has.
    pub(super) fn end_or_wake(&self, place: &mut Option<u32>, cx: &mut Context<'_>) -> Option<End> {
        if !self.count.is_closed() {
            // A waker that panics leaves its place unusable, so the place is lost then.
            let taken = place.take().unwrap_or_else(|| self.wakers.take());
            self.wakers.register(taken, cx.waker());
            *place = Some(taken);
        }
        // A drain that has begun meanwhile may have missed the waker.
        self.end()
    }

    pub(super) fn forget_waker(&self, place: u32) {
        self.wakers.give_back(place);
    }
}

impl End {
    /// Ready when the grace period is over. A period of zero needs no timer.
    pub(super) fn poll(self, timer: &mut Option<Pin<Box<Sleep>>>, cx: &mut Context<'_>) -> Poll<()> {
        match self.at {
            _ if self.grace.is_zero() => Poll::Ready(()),
            Some(at) => timer.get_or_insert_with(|| Box::pin(clock::sleep_until(at))).as_mut().poll(cx),
            None => Poll::Pending,
        }
    }

    pub(super) fn is_over(self) -> bool {
        self.at.is_some_and(|at| at <= clock::now())
    }
}

/// The future of [`DrainHandle::drain`] and [`DrainHandle::drained`].
pub struct Drained {
    shared: Arc<Shared>,
    begun: Wait,
    ended: Wait,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Future for Drained {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        ready!(Pin::new(&mut this.begun).poll(cx));
        if Pin::new(&mut this.ended).poll(cx).is_ready() {
            return Poll::Ready(());
        }
        this.shared.end().map_or(Poll::Pending, |end| end.poll(&mut this.timer, cx))
    }
}

impl_debug!(Drained { begun = |this| this.shared.count.is_closed(), in_flight = |this| this.shared.count.in_flight() });

/// The future of [`draining`](super::draining), and of [`DrainHandle::draining`].
#[must_use = "futures do nothing unless polled"]
pub struct Draining {
    // None: there is no drain to wait for.
    begun: Option<Wait>,
}

impl Draining {
    pub(super) fn never() -> Self {
        Self { begun: None }
    }
}

impl Future for Draining {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        self.begun.as_mut().map_or(Poll::Pending, |begun| Pin::new(begun).poll(cx))
    }
}

impl_debug!(Draining { waits = |this| this.begun.is_some() });
