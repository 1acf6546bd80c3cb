//! The only place that names tokio's time: everything else is told the time, or asks here. So it is the only place that polls a timer.
//!
//! It follows the runtime's clock, so a test on a paused clock moves every layer.

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

/// The time of the runtime that this is called in; outside of a runtime, the system's monotonic clock.
pub(crate) fn now() -> Instant {
    Instant::now()
}

/// When this was called for the first time: an origin to count from. Times before it exist too, on a clock that was paused earlier.
pub(crate) fn first_asked() -> Instant {
    static FIRST: OnceLock<Instant> = OnceLock::new();
    *FIRST.get_or_init(now)
}

pin_project! {
    /// A timer, which is ready once its time has come, whatever else was polled before it.
    ///
    /// tokio's own timer is pending while the task has no cooperative budget left. A future that spends all of it in every poll, as one
    /// that copies without a pause does, would keep a limit that is looked at afterwards from ever ending it.
    pub(crate) struct Sleep {
        #[pin]
        timer: time::Sleep,
    }
}

/// A timer that is ready after this time. Panics outside of a runtime with a clock.
#[track_caller]
pub(crate) fn sleep(time: Duration) -> Sleep {
    Sleep { timer: time::sleep(time) }
}

/// A timer that is ready at this time. Panics outside of a runtime with a clock.
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

/// What `future` answers, unless it is still pending at `end`. If it is ready at once, or `end` has passed, there is no timer.
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

/// As [`timeout_at`], and on a runtime without time too, where a thread of its blocking pool measures it.
pub(crate) async fn within<F: Future>(end: Instant, future: F) -> Option<F::Output> {
    // A timer panics where the runtime has no time, and there is no other way to know.
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
