//! What a user's code panics with, as an error.

use std::{
    future::Future,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    task::{Context, Poll, ready},
};

use super::error::{BoxError, Panic};

pub(super) type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// Polls it, and drops it when it has ended; if it panics, that is its error. One that has ended is pending for ever.
pub(super) fn poll<T>(
    future: &mut Option<BoxFuture<Result<T, BoxError>>>,
    cx: &mut Context<'_>,
) -> Poll<Result<T, BoxError>> {
    let Some(polled) = future else { return Poll::Pending };
    let polled = catch_unwind(AssertUnwindSafe(|| polled.as_mut().poll(cx)));
    let outcome = ready!(polled.unwrap_or_else(|panic| Poll::Ready(Err(Panic::new(panic).into()))));
    // It has ended, and holds nothing any more that could panic now.
    *future = None;
    Poll::Ready(outcome)
}

/// Drops it; what it panics with is answered.
pub(super) fn discard<T>(value: T) -> Option<Panic> {
    run(|| drop(value))
}

/// Calls it; what it panics with is answered.
pub(super) fn run(f: impl FnOnce()) -> Option<Panic> {
    catch_unwind(AssertUnwindSafe(f)).err().map(Panic::new)
}
