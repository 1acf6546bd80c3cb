//! The response future of the rate limit: it waits for tokens, and then makes the call.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use pin_project_lite::pin_project;
use tower_service::Service;

use super::{
    Settings,
    handle::Tokens,
    headers::{Announce, NoHeaders},
    settle::{Estimated, Kind, Settle},
    turn::Turn,
};
use crate::{
    bucket::Denied,
    outcome::{Ended, Reject},
};

pin_project! {
    /// The response future of [`RateLimit`](super::RateLimit).
    #[must_use = "futures do nothing unless polled"]
    pub struct ResponseFuture<S, Req, H = NoHeaders, T: Kind = Estimated>
    where
        S: Service<Req>,
    {
        #[pin]
        state: State<S, Req>,
        after: After<H, T>,
    }
}

/// The work that remains when the response is there.
pub(super) struct After<H, T: Kind> {
    pub(super) headers: H,
    pub(super) settle: T,
    pub(super) reserved: T::Reserved,
}

pin_project! {
    #[project = StateProjection]
    enum State<S, Req>
    where
        S: Service<Req>,
    {
        // Denied in `call`.
        Denied { settings: Arc<Settings>, denied: Denied, cost: u32 },
        // Waiting for tokens, or, with them, for its own clone of the service to become ready.
        Waiting {
            turn: Turn,
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

impl<S: Service<Req>, Req, H, T: Kind> ResponseFuture<S, Req, H, T> {
    #[inline]
    pub(super) fn running(response: S::Future, after: After<H, T>) -> Self {
        Self { state: State::Running { response }, after }
    }

    pub(super) fn denied(settings: Arc<Settings>, denied: Denied, cost: u32, after: After<H, T>) -> Self {
        Self { state: State::Denied { settings, denied, cost }, after }
    }

    pub(super) fn waiting(turn: Turn, service: S, request: Req, after: After<H, T>) -> Self {
        Self { state: State::Waiting { turn, tokens: None, service, request: Some(request) }, after }
    }
}

impl<S, Req, H, T> Future for ResponseFuture<S, Req, H, T>
where
    S: Service<Req>,
    S::Error: Reject<T::Response>,
    H: Announce<T::Response>,
    T: Settle<S::Response>,
{
    type Output = Result<T::Response, S::Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        let ended = ready!(this.state.as_mut().poll(cx));
        this.state.set(State::Done);
        let After { headers, settle, reserved } = this.after;
        Poll::Ready(match ended {
            Ok(outcome) => outcome.map(|response| {
                let mut response = settle.settle(response, reserved);
                headers.announce(&mut response);
                response
            }),
            Err(rejection) => S::Error::reject(headers.announce_rejection(rejection)),
        })
    }
}

impl<S: Service<Req>, Req> State<S, Req> {
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Ended<S::Response, S::Error>> {
        loop {
            let response = match self.as_mut().project() {
                StateProjection::Running { response } => return response.poll(cx).map(Ok),
                StateProjection::Denied { settings, denied, cost } => {
                    return Poll::Ready(Err(settings.reject(*denied, *cost)));
                }
                StateProjection::Waiting { turn, tokens, service, request } => {
                    if tokens.is_none() {
                        match ready!(turn.poll(cx)) {
                            Ok(taken) => *tokens = Some(taken),
                            Err(rejection) => return Poll::Ready(Err(rejection)),
                        }
                    }
                    if let Err(error) = ready!(service.poll_ready(cx)) {
                        return Poll::Ready(Ok(Err(error)));
                    }
                    tokens.take().into_iter().for_each(Tokens::spend);
                    request.take().map(|request| service.call(request))
                }
                StateProjection::Done => None,
            };
            let Some(response) = response else { panic!("rate_limit::ResponseFuture polled after it was ready") };
            self.set(State::Running { response });
        }
    }
}

impl<S: Service<Req>, Req, H, T: Kind> fmt::Debug for ResponseFuture<S, Req, H, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match self.state {
            State::Denied { .. } => "denied",
            State::Waiting { .. } => "waiting",
            State::Running { .. } => "running",
            State::Done => "done",
        };
        f.debug_struct("rate_limit::ResponseFuture").field("state", &state).finish()
    }
}
