//! A service whose readiness is part of each call.

use std::{
    future::Future,
    mem,
    pin::Pin,
    task::{Context, Poll, Waker},
};

use pin_project_lite::pin_project;
use tower_service::Service;

use crate::{accessors::inner_accessors, call::Call, caught::undisturbed, debug::impl_debug};

/// The innermost service of a recommended stack. It is always ready, and waits for its inner service's readiness in
/// each call.
///
/// A service that hangs before it is ready (a full buffer, a channel that reconnects) is therefore bounded by the
/// attempt's limit, counts as a call in flight, and is judged by the circuit breaker. The cost is one clone of the
/// service for each call that has to wait for it, and an allocation.
#[derive(Debug, Clone)]
pub /* not a Service? see ziggurat::docs::it_does_not_compile */ struct ReadyInCall<S> {
    inner: S,
}

impl<S> ReadyInCall<S> {
    inner_accessors!();
}

impl<S> ReadyInCall<S> {
    pub(super) fn new(inner: S) -> Self {
        Self { inner }
    }
}

impl<S, Req> Service<Req> for ReadyInCall<S>
where
    S: Service<Req> + Clone,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = InCall<S, Req>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        Poll::Ready(Ok(()))
    }

    #[inline]
    fn call(&mut self, request: Req) -> Self::Future {
        let polled = Polled(&mut self.inner);
        // Most services are ready at once. One that is pending is polled again, with the waker of the task, before the
        // response is.
        let state = match polled.0.poll_ready(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(Ok(())) => State::Calling { response: polled.call(request) },
            Poll::Pending => State::Readying { call: Box::pin(Call::new(polled.take(), request)) },
            Poll::Ready(Err(error)) => State::Failed { error: Some(Box::new(error)) },
        };
        InCall { state }
    }
}

/// A service that was polled. If it fails or panics, a clone takes its place.
struct Polled<'a, S: Clone>(&'a mut S);

impl<S: Clone> Polled<'_, S> {
    #[inline]
    fn call<Req>(self, request: Req) -> S::Future
    where
        S: Service<Req>,
    {
        let response = self.0.call(request);
        mem::forget(self);
        response
    }

    /// Returns the service, which may have a place in a queue, and leaves a clone.
    #[cold]
    fn take(self) -> S {
        let unpolled = self.0.clone();
        let polled = mem::replace(self.0, unpolled);
        mem::forget(self);
        polled
    }
}

impl<S: Clone> Drop for Polled<'_, S> {
    #[cold]
    fn drop(&mut self) {
        undisturbed(|| *self.0 = self.0.clone());
    }
}

pin_project! {
    /// The response future of [`ReadyInCall`].
    #[must_use = "futures do nothing unless polled"]
    pub struct InCall<S, Req>
    where
        S: Service<Req>,
    {
        #[pin]
        state: State<S, Req>,
    }
}

pin_project! {
    #[project = StateProj]
    enum State<S, Req>
    where
        S: Service<Req>,
    {
        Calling {
            #[pin]
            response: S::Future,
        },
        // Boxed, so that a call of a service that is ready does not move the space for a request and a service.
        Readying { call: Pin<Box<Call<S, Req>>> },
        // The service failed before it was ready.
        Failed { error: Option<Box<S::Error>> },
    }
}

impl<S: Service<Req>, Req> Future for InCall<S, Req> {
    type Output = Result<S::Response, S::Error>;

    #[inline]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project().state.project() {
            StateProj::Calling { response } => response.poll(cx),
            StateProj::Readying { call } => call.as_mut().poll(cx),
            StateProj::Failed { error } => match error.take() {
                Some(error) => Poll::Ready(Err(*error)),
                None => panic!("ReadyInCall polled after it was ready"),
            },
        }
    }
}

impl_debug!(InCall<S: Service<Req>, Req> {
    state = |this| match &this.state {
        State::Calling { .. } => "calling",
        State::Readying { .. } => "readying",
        State::Failed { .. } => "failed",
    },
});
