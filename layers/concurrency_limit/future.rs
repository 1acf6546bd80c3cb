//! The response future of the limit: it waits for a permit, and holds it while the call is in flight.

use std::{
    fmt,
    future::Future,
    marker::PhantomData,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use pin_project_lite::pin_project;
use tower_service::Service;

use super::{
    Settings,
    bodies::BodyPermit,
    gate::{ConcurrencyLimitHandle, Permit},
    priority::Rank,
    turn::Turn,
};
use crate::{
    body::{ResponseEnd, Until},
    outcome::{Ended, Reject},
};

pin_project! {
    /// The response future of [`ConcurrencyLimit`](super::ConcurrencyLimit).
    #[must_use = "futures do nothing unless polled"]
    pub struct ResponseFuture<S, Req, U = ResponseEnd>
    where
        S: Service<Req>,
    {
        #[pin]
        state: State<S, Req>,
        // After the state, and therefore dropped after it: the permit is released once the call is gone.
        permit: Option<Permit>,
        until: PhantomData<fn() -> U>,
    }
}

impl<S: Service<Req>, Req, U> ResponseFuture<S, Req, U> {
    #[inline]
    pub(super) fn running(response: S::Future, permit: Option<Permit>) -> Self {
        Self { state: State::Running { response }, permit, until: PhantomData }
    }

    pub(super) fn refused(settings: Arc<Settings>, rank: Rank) -> Self {
        Self { state: State::Refused { settings, rank }, permit: None, until: PhantomData }
    }

    pub(super) fn waiting(turn: Turn, service: S, request: Req) -> Self {
        let waiting = Box::new(Waiting { turn, service, request: Some(request) });
        Self { state: State::Waiting { waiting }, permit: None, until: PhantomData }
    }
}

/// A call that waits for a permit, or, with a permit, for its own clone of the service to become ready.
struct Waiting<S, Req> {
    turn: Turn,
    service: S,
    request: Option<Req>,
}

pin_project! {
    #[project = StateProjection]
    enum State<S, Req>
    where
        S: Service<Req>,
    {
        // Neither a permit nor a place in the queue was free.
        Refused { settings: Arc<Settings>, rank: Rank },
        // Boxed, so that a call that is admitted at once does not move the space for a request and a service.
        Waiting { waiting: Box<Waiting<S, Req>> },
        // The call is in flight.
        Running {
            #[pin]
            response: S::Future,
        },
        // The outcome was returned.
        Done,
    }
}

impl<S, Req, U> Future for ResponseFuture<S, Req, U>
where
    S: Service<Req>,
    S::Error: Reject<U::Response>,
    U: Until<S::Response, BodyPermit>,
{
    type Output = Result<U::Response, S::Error>;

    #[inline]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        let ended = ready!(this.state.as_mut().poll(this.permit, cx));
        this.state.set(State::Done);
        let permit = this.permit.take();
        Poll::Ready(match ended {
            Ok(Ok(response)) => Ok(U::answer(response, move || permit.map(BodyPermit::new))),
            Ok(Err(error)) => {
                drop(permit);
                Err(error)
            }
            Err(rejection) => S::Error::reject(rejection),
        })
    }
}

impl<S, Req> State<S, Req>
where
    S: Service<Req>,
{
    #[inline]
    fn poll(
        mut self: Pin<&mut Self>,
        permit: &mut Option<Permit>,
        cx: &mut Context<'_>,
    ) -> Poll<Ended<S::Response, S::Error>> {
        loop {
            let response = match self.as_mut().project() {
                StateProjection::Running { response } => {
                    let _held = permit.as_ref().and_then(Permit::gate).map(ConcurrencyLimitHandle::hold);
                    return response.poll(cx).map(Ok);
                }
                StateProjection::Refused { settings, rank } => {
                    return Poll::Ready(Err(settings.reject(*rank)));
                }
                StateProjection::Waiting { waiting } => {
                    let Waiting { turn, service, request } = &mut **waiting;
                    if permit.is_none() {
                        match ready!(turn.poll(cx)) {
                            Ok(admitted) => *permit = Some(admitted),
                            Err(rejection) => return Poll::Ready(Err(rejection)),
                        }
                    }
                    if let Err(error) = ready!(service.poll_ready(cx)) {
                        return Poll::Ready(Ok(Err(error)));
                    }
                    request.take().map(|request| service.call(request))
                }
                StateProjection::Done => None,
            };
            let Some(response) = response else {
                panic!("concurrency_limit::ResponseFuture polled after it was ready")
            };
            self.set(State::Running { response });
        }
    }
}

impl<S: Service<Req>, Req, U> fmt::Debug for ResponseFuture<S, Req, U> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match self.state {
            State::Refused { .. } => "refused",
            State::Waiting { .. } => "waiting",
            State::Running { .. } => "running",
            State::Done => "done",
        };
        f.debug_struct("concurrency_limit::ResponseFuture")
            .field("state", &state)
            .field("admitted", &self.permit.is_some())
            .finish()
    }
}
