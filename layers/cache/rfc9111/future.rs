//! The response future.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
};

use http::{Request, Response};
use pin_project_lite::pin_project;
use tower_service::Service;

use super::{after::After, body::CacheBody};
use crate::{
    ambient::{self, Unsent},
    call::Call,
    outcome::{Reject, was_unprocessed},
    store::Awaited,
};

type Missed<B, E> = Pin<Box<dyn Future<Output = Result<Response<CacheBody<B>>, E>> + Send>>;

pin_project! {
    /// The response future of [`HttpCache`](super::HttpCache).
    #[must_use = "futures do nothing unless polled"]
    pub struct HttpResponseFuture<S, A, B>
    where
        S: Service<Request<A>>,
    {
        #[pin]
        state: State<S, A, B>,
    }

    impl<S, A, B> PinnedDrop for HttpResponseFuture<S, A, B>
    where
        S: Service<Request<A>>,
    {
        fn drop(this: Pin<&mut Self>) {
            let mut state = this.project().state;
            let StateProjection::Passing { call, after } = state.as_mut().project() else { return };
            let (has_begun, after) = (call.has_begun(), after.take());
            ambient::set(Unsent(false));
            state.set(State::Answered { response: None });
            let is_unsent = !has_begun || ambient::get::<Unsent>().0;
            if let Some(after) = after.filter(|_| is_unsent) {
                after.was_unsent();
            }
        }
    }
}

pin_project! {
    #[project = StateProjection]
    enum State<S, A, B>
    where
        S: Service<Request<A>>,
    {
        // `None` after the end.
        Answered { response: Option<Response<CacheBody<B>>> },
        Passing { #[pin] call: Call<S, Request<A>>, after: Option<After> },
        // The response is there, but the second level may still have those that it has outdated.
        Removing { response: Option<Response<CacheBody<B>>>, removal: Awaited<()> },
        Missed { missed: Missed<B, S::Error> },
    }
}

impl<S: Service<Request<A>>, A, B> HttpResponseFuture<S, A, B> {
    pub(super) fn answered(response: Response<CacheBody<B>>) -> Self {
        Self { state: State::Answered { response: Some(response) } }
    }

    pub(super) fn passing(service: S, request: Request<A>, after: After) -> Self {
        Self { state: State::Passing { call: Call::new(service, request), after: Some(after) } }
    }

    pub(super) fn missed(missed: Missed<B, S::Error>) -> Self {
        Self { state: State::Missed { missed } }
    }
}

impl<S, A, B> Future for HttpResponseFuture<S, A, B>
where
    S: Service<Request<A>, Response = Response<B>, Error: Reject<Response<B>>>,
{
    type Output = Result<Response<CacheBody<B>>, S::Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = self.project().state;
        loop {
            let outcome = match state.as_mut().project() {
                StateProjection::Answered { response } => match response.take() {
                    Some(response) => Ok(response),
                    None => panic!("cache::HttpResponseFuture polled after it was ready"),
                },
                StateProjection::Passing { mut call, after } => {
                    let outcome = ready!(call.as_mut().poll(cx));
                    let is_unsent = !call.has_begun() || was_unprocessed(&outcome);
                    match (outcome, after.take()) {
                        (Ok(response), Some(after)) => {
                            let (response, removal) = after.apply(response.map(CacheBody::inner), is_unsent);
                            if let Some(removal) = removal {
                                state.set(State::Removing { response: Some(response), removal });
                                continue;
                            }
                            Ok(response)
                        }
                        (Err(error), Some(after)) if is_unsent => {
                            after.was_unsent();
                            Err(error)
                        }
                        (outcome, _) => outcome.map(|response| response.map(CacheBody::inner)),
                    }
                }
                StateProjection::Removing { response, removal } => {
                    ready!(removal.poll(cx));
                    let response = response.take();
                    state.set(State::Answered { response });
                    continue;
                }
                StateProjection::Missed { missed } => ready!(missed.as_mut().poll(cx)),
            };
            state.set(State::Answered { response: None });
            return Poll::Ready(outcome);
        }
    }
}

impl<S: Service<Request<A>>, A, B> fmt::Debug for HttpResponseFuture<S, A, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match &self.state {
            State::Answered { response: Some(_) } => "answered",
            State::Answered { response: None } => "done",
            State::Passing { .. } => "passing",
            State::Removing { .. } => "removing",
            State::Missed { .. } => "missed",
        };
        f.debug_struct("cache::HttpResponseFuture").field("state", &state).finish()
    }
}
