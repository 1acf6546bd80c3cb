//! A limit for a single future.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use pin_project_lite::pin_project;

use super::reject;
use crate::{
    ambient::{
        Limit,
        limited::{Clock, Limited},
    },
    outcome::Rejection,
    telemetry::layer_info,
};

/// Runs a future for at most `limit`.
///
/// The limit behaves as that of a [`TimeoutLayer`](super::TimeoutLayer): its clock starts when the future is first
/// pending, it becomes the [`Deadline`](crate::Deadline) inside, and an earlier surrounding deadline ends the future
/// too. At the limit, the future is dropped before the rejection is returned. Dropping the returned future drops it as
/// well.
///
/// # Errors
///
/// [`Reason::TimedOut`](crate::Reason::TimedOut) at the limit, and
/// [`Reason::DeadlineExceeded`](crate::Reason::DeadlineExceeded) at an advisory deadline
/// ([`Deadline::within`](crate::Deadline::within)).
///
/// # Panics
///
/// When it is polled, if the future is pending outside a tokio runtime with a clock.
///
/// ```
/// use std::time::Duration;
/// use ziggurat::timeout::timeout;
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() {
/// let work = async {
///     tokio::time::sleep(Duration::from_secs(5)).await;
///     "done"
/// };
/// let outcome = timeout(Duration::from_secs(1), work).await;
/// assert!(outcome.unwrap_err().is_timed_out());
/// # }
/// ```
pub fn timeout<F: Future>(limit: Duration, future: F) -> Timed<F> {
    let limit = Limit::after(limit);
    Timed { limited: Limited::new(future, Clock::new(limit, limit)) }
}

pin_project! {
    /// The future of [`timeout`].
    #[must_use = "futures do nothing unless polled"]
    pub struct Timed<F> {
        #[pin]
        limited: Limited<F>,
    }
}

impl<F: Future> Future for Timed<F> {
    type Output = Result<F::Output, Rejection>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let outcome = ready!(self.project().limited.poll(cx));
        Poll::Ready(outcome.map_err(|expired| reject(&layer_info!("timeout"), expired)))
    }
}

impl<F> fmt::Debug for Timed<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Timed").field("limit", &self.limited.clock().limit.duration()).finish()
    }
}
