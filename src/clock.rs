//! The clock, and the only module that uses `tokio::time`. All other modules read the time and poll timers through it.
//!
//! It follows the runtime's clock, so a test with a paused clock controls every layer.

use std::{
    future::{Future, poll_fn},
    panic::catch_unwind,
    pin::{Pin, pin},
    sync::{OnceLock, mpsc},
    task::{Context, Poll},
    time::Duration,
};

use pin_project_lite::pin_project;
use tokio::{
    task::{spawn_blocking, unconstrained},
    time,
};

pub(crate) use time::Instant;

/// Returns the current time of the runtime, or of the system's monotonic clock outside a runtime.
pub(crate) fn now() -> Instant {
    Instant::now()
}

/// Returns the time of the first call of this function, as an origin to count from.
///
/// Earlier times are possible, on a clock that was paused before.
pub(crate) fn first_asked() -> Instant {
    static FIRST: OnceLock<Instant> = OnceLock::new();
    *FIRST.get_or_init(now)
}

pin_project! {
    /// A timer that ignores the task's cooperative budget.
    ///
    /// tokio's own timer stays pending while the task has no budget left. A future that spends the whole budget in
    /// every poll, for example by copying without a pause, would then keep a limit that is polled after it from ever
    /// firing.
    pub(crate) struct Sleep {
        #[pin]
        timer: time::Sleep,
    }
}

/// Returns a timer that fires after `time`. Panics outside a runtime with a clock.
#[track_caller]
pub(crate) fn sleep(time: Duration) -> Sleep {
    Sleep { timer: time::sleep(time) }
}

/// Returns a timer that fires at `end`. Panics outside a runtime with a clock.
#[track_caller]
pub(crate) fn sleep_until(end: Instant) -> Sleep {
    Sleep { timer: time::sleep_until(end) }
}

impl Sleep {
    pub(crate) fn deadline(&self) -> Instant {
        self.timer.deadline()
    }

    pub(crate) fn reset(self: Pin<&mut Self>, end: Instant) {
        self.project().timer.reset(end);
    }
}

impl Future for Sleep {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        pin!(unconstrained(self.project().timer)).poll(cx)
    }
}

/// Returns the output of `future`, or `None` if it is still pending at `end`.
///
/// A future that is ready at once needs no timer, and neither does an `end` that has passed.
pub(crate) async fn timeout_at<F: Future>(end: Instant, future: F) -> Option<F::Output> {
    let (mut future, mut timer) = (pin!(future), pin!(None));
    poll_fn(|cx| {
        if let Poll::Ready(output) = future.as_mut().poll(cx) {
            return Poll::Ready(Some(output));
        }
        if timer.is_none() && now() < end {
            timer.set(Some(sleep_until(end)));
        }
        timer.as_mut().as_pin_mut().map_or(Poll::Ready(None), |timer| timer.poll(cx).map(|()| None))
    })
    .await
}

/// Works as [`timeout_at`], also on a runtime without a clock. There a thread of the blocking pool measures the time.
pub(crate) async fn within<F: Future>(end: Instant, future: F) -> Option<F::Output> {
    // A timer panics if the runtime has no clock, and there is no other way to find out.
    if now() >= end || catch_unwind(|| drop(sleep_until(end))).is_ok() {
        return timeout_at(end, future).await;
    }
    let (_until_here, over) = mpsc::channel::<()>();
    let left = end.saturating_duration_since(now());
    let (mut future, mut late) = (pin!(future), spawn_blocking(move || over.recv_timeout(left)));
    poll_fn(|cx| match future.as_mut().poll(cx) {
        Poll::Ready(output) => Poll::Ready(Some(output)),
        Poll::Pending => Pin::new(&mut late).poll(cx).map(|_| None),
    })
    .await
}
