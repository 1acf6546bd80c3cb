//! The response future.

use std::{
    fmt,
    future::{Future, poll_fn},
    panic::resume_unwind,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::BytesMut;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body::Body;
use pin_project_lite::pin_project;
use tower_service::Service;

use super::{
    Settings,
    body::IdempotentBody,
    flight::{Outcome, Place},
    key::Fingerprint,
    record::Answer,
    run::{Reply, Run},
};
use crate::{
    body::{BoxError, poll_frame},
    call::Call,
    outcome::{Ended, Reason, Reject, Rejection},
    store::ValueStore,
    telemetry::LayerEvent,
};

/// Marks a stored response, as Stripe does.
const REPLAYED: &str = "idempotent-replayed";

type Keyed<B, E> = Pin<Box<dyn Future<Output = Ended<Response<IdempotentBody<B>>, E>> + Send>>;

pin_project! {
    /// The response future of [`Idempotency`](super::Idempotency).
    #[must_use = "futures do nothing unless polled"]
    pub struct ResponseFuture<S, B, B2>
    where
        S: Service<Request<IdempotentBody<B>>>,
    {
        #[pin]
        state: State<S, B, B2>,
    }
}

pin_project! {
    #[project = StateProjection]
    enum State<S, B, B2>
    where
        S: Service<Request<IdempotentBody<B>>>,
    {
        // The layer does not apply.
        Passing { #[pin] call: Call<S, Request<IdempotentBody<B>>> },
        Keyed { keyed: Keyed<B2, S::Error> },
        Rejected { rejection: Rejection },
        Done,
    }
}

impl<S, B, B2> ResponseFuture<S, B, B2>
where
    S: Service<Request<IdempotentBody<B>>>,
{
    pub(super) fn passing(service: S, request: Request<B>) -> Self {
        Self { state: State::Passing { call: Call::new(service, request.map(IdempotentBody::inner)) } }
    }

    pub(super) fn keyed(keyed: Keyed<B2, S::Error>) -> Self {
        Self { state: State::Keyed { keyed } }
    }

    pub(super) fn rejected(rejection: Rejection) -> Self {
        Self { state: State::Rejected { rejection } }
    }
}

impl<S, B, B2> Future for ResponseFuture<S, B, B2>
where
    S: Service<Request<IdempotentBody<B>>, Response = Response<B2>, Error: Reject<Response<B2>>>,
{
    type Output = Result<Response<IdempotentBody<B2>>, S::Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = self.project().state;
        let reject = |rejection| S::Error::reject(rejection).map(inner);
        let outcome = match state.as_mut().project() {
            StateProjection::Passing { call } => ready!(call.poll(cx)).map(inner),
            StateProjection::Keyed { keyed } => ready!(keyed.as_mut().poll(cx)).unwrap_or_else(reject),
            StateProjection::Rejected { rejection } => reject(rejection.clone()),
            StateProjection::Done => panic!("idempotency::ResponseFuture polled after it was ready"),
        };
        state.set(State::Done);
        Poll::Ready(outcome)
    }
}

fn inner<B>(response: Response<B>) -> Response<IdempotentBody<B>> {
    response.map(IdempotentBody::inner)
}

impl<S, B, B2> fmt::Debug for ResponseFuture<S, B, B2>
where
    S: Service<Request<IdempotentBody<B>>>,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match self.state {
            State::Passing { .. } => "passing",
            State::Keyed { .. } => "keyed",
            State::Rejected { .. } => "rejected",
            State::Done => "done",
        };
        f.debug_struct("idempotency::ResponseFuture").field("state", &state).finish()
    }
}

impl<St: ValueStore> Settings<St> {
    /// Makes the call of a request with a key.
    pub(super) async fn call<S, B, B2>(
        self: Arc<Self>,
        key: String,
        service: S,
        request: Request<B>,
    ) -> Ended<Response<IdempotentBody<B2>>, S::Error>
    where
        S: Service<
                Request<IdempotentBody<B>>,
                Response = Response<B2>,
                Error: Reject<Response<B2>> + Send,
                Future: Send,
            > + Send
            + 'static,
        B: Body<Error: Into<BoxError>> + Send + 'static,
        B2: Body<Error: Into<BoxError>> + Send + 'static,
    {
        let (parts, body) = request.into_parts();
        let (data, trailers) = read(body, self.max_request).await.map_err(|reason| self.info.reject(reason))?;
        let print = Fingerprint::of(&parts, &data);
        loop {
            let (settings, max) = (Arc::clone(&self), self.max_running);
            let outcome = match self.flights.place(&key, print, max) {
                Place::Lead(lead) => {
                    let _interest = lead.flight.interest();
                    let request = Request::from_parts(parts, IdempotentBody::known(data, trailers));
                    match (Run { settings, lead, print }).start(service, request).await {
                        Ok(Reply::Ran(outcome)) => return Ok(*outcome),
                        Ok(Reply::Panicked(panic)) => resume_unwind(panic),
                        Ok(Reply::Known(outcome)) => {
                            if let Outcome::Answer(_) = outcome {
                                self.info.emit(LayerEvent::Hit);
                            }
                            outcome
                        }
                        // The runtime of the task, or its scope, has ended.
                        Err(_) => return Err(self.info.reject(Reason::Draining { grace: None })),
                    }
                }
                Place::Join(flight) => {
                    self.info.emit(LayerEvent::Shared);
                    let _interest = flight.interest();
                    match flight.outcome().await {
                        Outcome::Open => continue,
                        outcome => outcome,
                    }
                }
                Place::Reused => Outcome::Reused,
                Place::Full => return Err(self.info.reject(Reason::Overloaded { limit: max })),
            };
            return self.replay(outcome).map(Ok);
        }
    }

    fn replay<B>(&self, outcome: Outcome) -> Result<Response<IdempotentBody<B>>, Rejection> {
        let reason = match outcome {
            Outcome::Answer(answer) => {
                let Answer { status, mut headers, body, trailers } = Answer::clone(&answer);
                headers.insert(REPLAYED, HeaderValue::from_static("true"));
                let mut response = Response::new(IdempotentBody::known(body, trailers));
                *response.status_mut() = status;
                *response.headers_mut() = headers;
                return Ok(response);
            }
            Outcome::Reused => Reason::KeyReused,
            Outcome::TooLarge | Outcome::Busy | Outcome::Open => Reason::Duplicate,
            Outcome::Away(message) => Reason::StoreUnavailable { message },
        };
        Err(self.info.reject(reason))
    }
}

/// Reads a request's body to its end.
async fn read<B>(body: B, max: usize) -> Result<(bytes::Bytes, Option<HeaderMap>), Reason>
where
    B: Body<Error: Into<BoxError>>,
{
    if body.size_hint().lower() > max as u64 {
        return Err(Reason::BodyTooLarge { max });
    }
    let (mut body, mut data, mut trailers) = (pin!(body), BytesMut::new(), None);
    while let Some(frame) = poll_fn(|cx| poll_frame(body.as_mut(), cx)).await {
        let frame = frame.map_err(|error| Reason::UploadFailed { message: error.to_string().into() })?;
        match frame.into_data() {
            Ok(part) if part.len() > max - data.len() => return Err(Reason::BodyTooLarge { max }),
            Ok(part) => data.extend_from_slice(&part),
            Err(frame) => trailers = frame.into_trailers().ok(),
        }
    }
    Ok((data.freeze(), trailers))
}
