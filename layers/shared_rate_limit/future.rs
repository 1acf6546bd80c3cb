//! The response future of a shared rate limit: it waits for the store, and then makes the call.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use pin_project_lite::pin_project;
use tower_service::Service;

use super::{entry::Tokens, limit::Settings, wait::Wait};
use crate::{
    bucket::Denied,
    outcome::{Ended, Reject},
    store::TokenStore,
};

pin_project! {
    /// The response future of [`SharedRateLimit`](super::SharedRateLimit).
    #[must_use = "futures do nothing unless polled"]
    pub struct ResponseFuture<S, Req, St>
    where
        S: Service<Req>,
        St: TokenStore,
    {
        #[pin]
        state: State<S, Req, St>,
    }
}

pin_project! {
    #[project = StateProjection]
    enum State<S, Req, St>
    where
        S: Service<Req>,
        St: TokenStore,
    {
        // Denied in `call`.
        Denied { settings: Arc<Settings<St>>, denied: Denied, cost: u32 },
        // Waiting for the store, or, once admitted, for its own clone of the service to become ready.
        Waiting {
            wait: Wait<St>,
            admitted: bool,
            tokens: Option<Tokens>,
            service: S,
            request: Option<Req>,
        },
        // The call is in flight.
        Running {
            #[pin]
            response: S::Future,
        },
        // The outcome was returned.
        Done,
    }
}

impl<S: Service<Req>, Req, St: TokenStore> ResponseFuture<S, Req, St> {
    #[inline]
    pub(super) fn running(response: S::Future) -> Self {
        Self { state: State::Running { response } }
    }

    pub(super) fn denied(settings: Arc<Settings<St>>, denied: Denied, cost: u32) -> Self {
        Self { state: State::Denied { settings, denied, cost } }
    }

    pub(super) fn waiting(wait: Wait<St>, service: S, request: Req) -> Self {
        Self { state: State::Waiting { wait, admitted: false, tokens: None, service, request: Some(request) } }
    }
}

impl<S, Req, St> Future for ResponseFuture<S, Req, St>
where
    S: Service<Req>,
    S::Error: Reject<S::Response>,
    St: TokenStore,
{
    type Output = Result<S::Response, S::Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        let ended = ready!(this.state.as_mut().poll(cx));
        this.state.set(State::Done);
        Poll::Ready(ended.unwrap_or_else(S::Error::reject))
    }
}

impl<S: Service<Req>, Req, St: TokenStore> State<S, Req, St> {
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Ended<S::Response, S::Error>> {
        loop {
            let response = match self.as_mut().project() {
                StateProjection::Running { response } => return response.poll(cx).map(Ok),
                StateProjection::Denied { settings, denied, cost } => {
                    return Poll::Ready(Err(settings.denied(*denied, *cost)));
                }
                StateProjection::Waiting { wait, admitted, tokens, service, request } => {
                    if !*admitted {
                        match ready!(wait.poll(cx)) {
                            Ok(granted) => *tokens = granted,
                            Err(rejection) => return Poll::Ready(Err(rejection)),
                        }
                        *admitted = true;
                    }
                    if let Err(error) = ready!(service.poll_ready(cx)) {
                        return Poll::Ready(Ok(Err(error)));
                    }
                    tokens.take().into_iter().for_each(Tokens::spend);
                    request.take().map(|request| service.call(request))
                }
                StateProjection::Done => None,
            };
            let Some(response) = response else {
                panic!("shared_rate_limit::ResponseFuture polled after it was ready")
            };
            self.set(State::Running { response });
        }
    }
}

impl<S: Service<Req>, Req, St: TokenStore> fmt::Debug for ResponseFuture<S, Req, St> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match self.state {
            State::Denied { .. } => "denied",
            State::Waiting { .. } => "waiting",
            State::Running { .. } => "running",
            State::Done => "done",
        };
        f.debug_struct("shared_rate_limit::ResponseFuture").field("state", &state).finish()
    }
}
