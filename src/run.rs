//! A layer around a plain operation.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
};

use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

use crate::{call::Call, debug::impl_debug, outcome::Error};

/// Runs an operation through a layer, or through a `tower::ServiceBuilder` of several.
///
/// Each attempt calls `operation` anew. State that calls share, such as a budget, a circuit or permits, belongs to the
/// layer value: keep it, and pass a reference for each call. Dropping the returned future drops the call.
///
/// For a service that is called often, make the stack once instead (`tower::service_fn`).
///
/// # Errors
///
/// The operation's error as [`Error::Service`], or a layer's rejection as [`Error::Rejected`].
///
/// ```
/// use std::{cell::Cell, io, time::Duration};
/// use ziggurat::{retry::RetryLayer, run};
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() {
/// let retry = RetryLayer::new().max_attempts(3);
/// let attempts = Cell::new(0);
/// let read = || async {
///     attempts.set(attempts.get() + 1);
///     if attempts.get() < 3 { Err(io::Error::from(io::ErrorKind::TimedOut)) } else { Ok("contents") }
/// };
/// assert_eq!(run(&retry, read).await.unwrap(), "contents");
/// # }
/// ```
pub fn run<L, F, Fut, T, E>(layer: &L, operation: F) -> Call<L::Service, ()>
where
    L: Layer<Operation<F>>,
    L::Service: Service<(), Response = T, Error = Error<E>>,
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<T, E>>,
{
    Call::new(layer.layer(Operation { operation }), ())
}

/// The service of an operation: see [`run`].
#[derive(Clone, Copy)]
pub struct Operation<F> {
    operation: F,
}

impl<F, Fut, T, E> Service<()> for Operation<F>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<T, E>>,
{
    type Response = T;
    type Error = Error<E>;
    type Future = Running<Fut>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, (): ()) -> Self::Future {
        Running { future: (self.operation)() }
    }
}

impl_debug!(Operation<F>(F));

pin_project! {
    /// The future of an [`Operation`].
    #[derive(Debug)]
    #[must_use = "futures do nothing unless polled"]
    #[doc(hidden)] // machinery that is public only because it is part of a public type
    pub struct Running<F> {
        #[pin]
        future: F,
    }
}

impl<F, T, E> Future for Running<F>
where
    F: Future<Output = Result<T, E>>,
{
    type Output = Result<T, Error<E>>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Poll::Ready(ready!(self.project().future.poll(cx)).map_err(Error::Service))
    }
}
