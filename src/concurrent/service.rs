//! Items that are calls of a service.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
};

use pin_project_lite::pin_project;
use tower_service::Service;

pin_project! {
    /// One call of [`call_concurrently`](super::call_concurrently): it waits for the readiness of its own clone of the service, and calls that.
    #[must_use = "futures do nothing unless polled"]
    pub struct Call<S, Req>
    where
        S: Service<Req>,
    {
        // Both gone: it was called.
        waiting: Option<(S, Req)>,
        #[pin]
        response: Option<S::Future>,
    }
}

impl<S: Service<Req>, Req> Call<S, Req> {
    pub(super) fn new(service: S, request: Req) -> Self {
        Self { waiting: Some((service, request)), response: None }
    }
}

impl<S: Service<Req>, Req> Future for Call<S, Req> {
    type Output = Result<S::Response, S::Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        if let Some((service, _)) = this.waiting {
            ready!(service.poll_ready(cx))?;
        }
        if let Some((mut service, request)) = this.waiting.take() {
            this.response.set(Some(service.call(request)));
        }
        match this.response.as_pin_mut() {
            Some(response) => response.poll(cx),
            None => Poll::Pending,
        }
    }
}

impl<S: Service<Req>, Req> fmt::Debug for Call<S, Req> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("concurrent::Call").field("called", &self.response.is_some()).finish_non_exhaustive()
    }
}
