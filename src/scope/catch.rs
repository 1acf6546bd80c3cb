//! Turns panics of user code into errors.

use std::{
    future::Future,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    task::{Context, Poll, ready},
};

use super::error::{BoxError, Panic};

pub(super) type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// Polls the future and drops it once it has ended. A panic becomes its error. A future that has ended stays pending.
pub(super) fn poll<T>(
    future: &mut Option<BoxFuture<Result<T, BoxError>>>,
    cx: &mut Context<'_>,
) -> Poll<Result<T, BoxError>> {
    let Some(polled) = future else { return Poll::Pending };
    let polled = catch_unwind(AssertUnwindSafe(|| polled.as_mut().poll(cx)));
    let outcome = ready!(polled.unwrap_or_else(|panic| Poll::Ready(Err(Panic::new(panic).into()))));
    // The future has ended and holds nothing that could panic when it is dropped here.
    *future = None;
    Poll::Ready(outcome)
}

/// Drops `value`, and returns the panic of its drop, if there was one.
pub(super) fn discard<T>(value: T) -> Option<Panic> {
    run(|| drop(value))
}

/// Calls `f`, and returns the panic if it panicked.
pub(super) fn run(f: impl FnOnce()) -> Option<Panic> {
    catch_unwind(AssertUnwindSafe(f)).err().map(Panic::new)
}
