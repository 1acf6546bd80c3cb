//! A call of a service, including its readiness.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
};

use pin_project_lite::pin_project;
use tower_service::Service;

use crate::debug::impl_debug;

pin_project! {
    /// Waits until the service is ready, then calls it. An error of `poll_ready` is the call's error.
    #[must_use = "futures do nothing unless polled"]
    pub struct Call<S, Req>
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
        Readying {
            service: S,
            request: Option<Req>,
        },
        Calling {
            #[pin]
            response: S::Future,
        },
    }
}

impl<S: Service<Req>, Req> Call<S, Req> {
    pub(crate) fn new(service: S, request: Req) -> Self {
        Self { state: State::Readying { service, request: Some(request) } }
    }

    /// Returns whether the service was called.
    #[cfg(feature = "http-cache")]
    pub(crate) fn has_begun(&self) -> bool {
        matches!(self.state, State::Calling { .. })
    }
}

impl<S: Service<Req>, Req> Future for Call<S, Req> {
    type Output = Result<S::Response, S::Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = self.project().state;
        if let StateProj::Readying { service, request } = state.as_mut().project() {
            ready!(service.poll_ready(cx))?;
            let Some(request) = request.take() else { panic!("Call polled after it panicked") };
            let response = service.call(request);
            state.set(State::Calling { response });
        }
        match state.project() {
            StateProj::Calling { response } => response.poll(cx),
            StateProj::Readying { .. } => Poll::Pending,
        }
    }
}

impl_debug!(Call<S: Service<Req>, Req> {
    state = |this| match &this.state {
        State::Readying { .. } => "readying",
        State::Calling { .. } => "calling",
    },
});
