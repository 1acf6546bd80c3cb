//! A service whose readiness is part of each call.

use std::task::{Context, Poll};

use tower_service::Service;

use crate::accessors::inner_accessors;
use crate::call::Call;

/// The innermost service of a recommended stack. It is always ready, and waits for its inner service's readiness in
/// each call.
///
/// A service that hangs before it is ready (a full buffer, a channel that reconnects) is therefore bounded by the
/// attempt's limit, counts as a call in flight, and is judged by the circuit breaker. The cost is one clone of the
/// service for each call.
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
    type Future = Call<S, Req>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Req) -> Self::Future {
        Call::new(self.inner.clone(), request)
    }
}
