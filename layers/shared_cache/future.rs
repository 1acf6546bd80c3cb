//! The response future of a shared cache: it looks a response up, and makes the call if there is none.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
};

use pin_project_lite::pin_project;
use tower_service::Service;

use super::lookup::{Looked, Lookup, Place, Ticket};
use crate::{
    call::Call,
    debug::impl_debug,
    outcome::{Classify, Reject},
    store::{Codec, ValueStore},
};

pin_project! {
    /// The response future of [`SharedCache`](super::SharedCache).
    #[must_use = "futures do nothing unless polled"]
    pub struct ResponseFuture<S, Req, St, D, C>
    where
        S: Service<Req>,
    {
        #[pin]
        state: State<S, Req, St, D, C>,
    }
}

pin_project! {
    #[project = StateProj]
    enum State<S, Req, St, D, C>
    where
        S: Service<Req>,
    {
        // `None` after the end.
        Looking { looking: Option<Looking<S, Req, St, D, C>> },
        // The call is in flight. Without a ticket, its response is not stored.
        Calling { #[pin] call: Call<S, Req>, ticket: Option<Ticket<St, D, C>> },
    }
}

struct Looking<S, Req, St, D, C> {
    lookup: Lookup,
    place: Place<St, D, C>,
    service: S,
    request: Req,
}

impl<S: Service<Req>, Req, St, D, C> ResponseFuture<S, Req, St, D, C> {
    pub(super) fn looking(place: Place<St, D, C>, service: S, request: Req) -> Self {
        Self { state: State::Looking { looking: Some(Looking { lookup: Lookup::New, place, service, request }) } }
    }

    pub(super) fn calling(service: S, request: Req) -> Self {
        Self { state: State::Calling { call: Call::new(service, request), ticket: None } }
    }
}

impl<S, Req, St, D, C> Future for ResponseFuture<S, Req, St, D, C>
where
    S: Service<Req>,
    S::Error: Reject<S::Response>,
    St: ValueStore,
    D: Codec<S::Response> + Send + Sync + 'static,
    C: Classify<S::Response, S::Error> + Send + Sync + 'static,
{
    type Output = Result<S::Response, S::Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = self.project().state;
        loop {
            match state.as_mut().project() {
                StateProj::Looking { looking } => {
                    let Some(Looking { lookup, place, .. }) = looking else {
                        panic!("shared_cache::ResponseFuture polled after it was ready")
                    };
                    let found = ready!(lookup.poll(cx, place));
                    let Some(Looking { place, service, request, .. }) = looking.take() else { continue };
                    match place.read(found) {
                        Looked::Hit(response) => return Poll::Ready(Ok(response)),
                        Looked::Miss(ticket) => {
                            state.set(State::Calling { call: Call::new(service, request), ticket });
                        }
                    }
                }
                StateProj::Calling { call, ticket } => {
                    let outcome = ready!(call.poll(cx));
                    let ticket = ticket.take();
                    // Drops the call before its outcome is visible, so that its resources are released.
                    state.set(State::Looking { looking: None });
                    if let Some(ticket) = ticket {
                        ticket.use_for(&outcome);
                    }
                    return Poll::Ready(outcome);
                }
            }
        }
    }
}

impl_debug!(ResponseFuture<S: Service<Req>, Req, St, D, C> in shared_cache {
    state = |this| match &this.state {
        State::Looking { looking: Some(_) } => "looking",
        State::Looking { looking: None } => "done",
        State::Calling { .. } => "calling",
    },
});
