//! The response future: a call of the service of one key.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use pin_project_lite::pin_project;
use tower_service::Service;

use super::{PerKeyLayer, Refused, instance::InFlight};
use crate::{call::Call, debug::impl_debug, outcome::Reject};

pin_project! {
    /// The response future of [`PerKey`](super::PerKey).
    #[must_use = "futures do nothing unless polled"]
    pub struct ResponseFuture<S, Req, F, M, K, L>
    where
        S: Service<Req>,
    {
        #[pin]
        state: State<S, Req, F, M, K, L>,
        // After the state, and therefore dropped after it: the call is counted out once it is gone.
        in_flight: Option<InFlight>,
    }
}

pin_project! {
    #[project = StateProjection]
    enum State<S, Req, F, M, K, L>
    where
        S: Service<Req>,
    {
        Running {
            #[pin]
            call: Call<S, Req>,
        },
        // The request has no key, or one beyond the maximum.
        Refused { layer: Arc<PerKeyLayer<F, M, K, L>>, refused: Refused },
        // The outcome was returned.
        Done,
    }
}

impl<S: Service<Req>, Req, F, M, K, L> ResponseFuture<S, Req, F, M, K, L> {
    #[inline]
    pub(super) fn running(call: Call<S, Req>, in_flight: Option<InFlight>) -> Self {
        Self { state: State::Running { call }, in_flight }
    }

    pub(super) fn refused(layer: Arc<PerKeyLayer<F, M, K, L>>, refused: Refused) -> Self {
        Self { state: State::Refused { layer, refused }, in_flight: None }
    }
}

impl<S, Req, F, M, K, L> Future for ResponseFuture<S, Req, F, M, K, L>
where
    S: Service<Req>,
    S::Error: Reject<S::Response>,
{
    type Output = Result<S::Response, S::Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        let outcome = match this.state.as_mut().project() {
            StateProjection::Running { call } => ready!(call.poll(cx)),
            StateProjection::Refused { layer, refused } => S::Error::reject(layer.reject(refused)),
            StateProjection::Done => panic!("per_key::ResponseFuture polled after it was ready"),
        };
        this.state.set(State::Done);
        *this.in_flight = None;
        Poll::Ready(outcome)
    }
}

impl_debug!(ResponseFuture<S: Service<Req>, Req, F, M, K, L> in per_key {
    state = |this| match this.state {
        State::Running { .. } => "running",
        State::Refused { .. } => "refused",
        State::Done => "done",
    },
});
