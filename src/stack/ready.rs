//! A service whose readiness is part of each call.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

use pin_project_lite::pin_project;
use tower_service::Service;

use crate::{
    accessors::inner_accessors,
    call::{Asked, Call},
    debug::impl_debug,
};

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
        let mut inner = Asked::new(&mut self.inner);
        // Most services are ready at once.
        let state = match inner.poll_ready() {
            Poll::Ready(Ok(())) => State::Calling { response: inner.call(request) },
            Poll::Pending => State::Readying { call: Box::pin(Call::new(inner.take(), request)) },
            Poll::Ready(Err(error)) => State::Failed { error: Some(Box::new(error)) },
        };
        InCall { state }
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
