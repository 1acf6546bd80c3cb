//! A call of a service, including its readiness.

use std::{
    future::Future,
    mem,
    pin::Pin,
    task::{Context, Poll, Waker, ready},
};

use pin_project_lite::pin_project;
use tower_service::Service;

use crate::{caught::undisturbed, debug::impl_debug};

/// A service whose readiness is asked for within `call`, where no task can be woken. If it is pending, the service that
/// was asked waits on, and is asked again with the waker of the task.
///
/// A clone takes the place of a service that waits, fails or panics: what stays behind holds no reservation, and is not
/// broken.
pub(crate) struct Asked<'a, S: Clone>(&'a mut S);

impl<'a, S: Clone> Asked<'a, S> {
    #[inline]
    pub(crate) fn new(service: &'a mut S) -> Self {
        Self(service)
    }

    #[inline]
    pub(crate) fn poll_ready<Req>(&mut self) -> Poll<Result<(), S::Error>>
    where
        S: Service<Req>,
    {
        self.0.poll_ready(&mut Context::from_waker(Waker::noop()))
    }

    /// Calls the service, which has to be ready.
    #[inline]
    pub(crate) fn call<Req>(self, request: Req) -> S::Future
    where
        S: Service<Req>,
    {
        let response = self.0.call(request);
        mem::forget(self);
        response
    }

    /// Returns the service, which may have a place in a queue.
    #[cold]
    pub(crate) fn take(self) -> S {
        let unpolled = self.0.clone();
        let polled = mem::replace(self.0, unpolled);
        mem::forget(self);
        polled
    }
}

impl<S: Clone> Drop for Asked<'_, S> {
    #[cold]
    fn drop(&mut self) {
        undisturbed(|| *self.0 = self.0.clone());
    }
}

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
