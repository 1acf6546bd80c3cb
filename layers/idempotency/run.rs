//! The run of a handler, on a task of its own: it goes on if its caller leaves, because the next one with the same key
//! is to get its response.

use std::{
    any::Any,
    future::{Future, poll_fn},
    pin::{Pin, pin},
    sync::Arc,
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use futures_util::future::{Either, select};
use http::{HeaderMap, Response, response::Parts};
use http_body::Body;
use tokio::sync::{mpsc, oneshot};
use tower_service::Service;

use super::{
    Settings,
    body::{IdempotentBody, Part, poll_frame},
    flight::{Lead, Outcome},
    key::Fingerprint,
    record::{Answer, Record},
};
use crate::{
    backoff::{Backoff, Jitter},
    body::BoxError,
    call::Call,
    caught::unwound,
    clock,
    outcome::Reject,
    scope::Scope,
    store::{Advice, ValueStore},
    telemetry::LayerEvent,
};

/// How long a claim lasts without being renewed. After a crash, its key is free after this time.
const LEASE: Duration = Duration::from_secs(30);

/// How often a claim is renewed. Two requests to the store may fail in a row.
const RENEWAL: Duration = Duration::from_secs(10);

/// How long a response is offered to a store that fails. Until then the claim holds.
const OFFER: Duration = Duration::from_secs(60);

/// The caller that a handler runs for gets its outcome as it is.
pub(super) enum Reply<B, E> {
    Ran(Box<Result<Response<IdempotentBody<B>>, E>>),
    Panicked(Box<dyn Any + Send>),
    /// The handler did not run.
    Known(Outcome),
}

/// The end of a handler.
enum Ended {
    Answer(Arc<Answer>),
    TooLarge,
    /// There is no response that others may have.
    Open,
}

pub(super) struct Run<St> {
    pub(super) settings: Arc<Settings<St>>,
    pub(super) lead: Lead,
    pub(super) print: Fingerprint,
}

impl<St: ValueStore> Run<St> {
    /// Runs the handler on a task, unless the store has the response.
    ///
    /// The task has the scope of the request, but neither its deadline nor its cancellation.
    pub(super) fn start<S, Req, B>(self, service: S, request: Req) -> oneshot::Receiver<Reply<B, S::Error>>
    where
        S: Service<Req, Response = Response<B>, Error: Reject<Response<B>> + Send, Future: Send> + Send + 'static,
        Req: Send + 'static,
        B: Body<Error: Into<BoxError>> + Send + 'static,
    {
        let (reply, receiver) = oneshot::channel();
        let run = self.run(service, request, reply);
        match Scope::current() {
            Some(scope) => scope.spawn_behind("idempotency", run),
            None => drop(tokio::spawn(run)),
        }
        receiver
    }

    async fn run<S, Req, B>(self, service: S, request: Req, reply: oneshot::Sender<Reply<B, S::Error>>)
    where
        S: Service<Req, Response = Response<B>, Error: Reject<Response<B>>>,
        B: Body<Error: Into<BoxError>>,
    {
        let claim = Record::Claim(fastrand::u128(..)).encode(self.print);
        if let Err(outcome) = self.claim(&claim).await {
            self.lead.end(outcome.clone());
            let _ = reply.send(Reply::Known(outcome.clone()));
            if let Outcome::Away(_) = outcome {
                // The store may have the claim nevertheless.
                self.release(&claim).await;
            }
            return;
        }
        let ended = {
            let (handler, upkeep) = (pin!(self.handle(service, request, reply)), pin!(self.upkeep(&claim)));
            match select(handler, upkeep).await {
                Either::Left((ended, _)) => ended,
                Either::Right(_) => Ended::Open,
            }
        };
        let record = match ended {
            Ended::Open => {
                self.release(&claim).await;
                return self.lead.end(Outcome::Open);
            }
            Ended::TooLarge => {
                self.lead.end(Outcome::TooLarge);
                Record::TooLarge
            }
            Ended::Answer(answer) => {
                self.lead.end(Outcome::Answer(Arc::clone(&answer)));
                Record::Answer(answer)
            }
        };
        self.store(&claim, record.encode(self.print)).await;
    }

    /// Claims the key, or returns the outcome of the run that had it before.
    async fn claim(&self, claim: &Bytes) -> Result<(), Outcome> {
        let (settings, end) = (&self.settings, clock::now() + self.settings.max_wait);
        let pauses = Backoff::exponential(Duration::from_millis(50)).max(Duration::from_secs(1)).jitter(Jitter::Equal);
        for n in 1.. {
            // While the store is away, one request at a time finds out whether it is back.
            let is_probe = match settings.link.advice(clock::now()) {
                Advice::Ask => false,
                Advice::Probe { .. } => true,
                Advice::Away { error, .. } => return Err(Outcome::Away(error)),
            };
            let put = async { settings.store.put_new(&self.lead.key, claim.clone(), LEASE).await };
            let Some(found) = settings.ask(is_probe, put).await.map_err(Outcome::Away)? else { return Ok(()) };
            match Record::decode(found) {
                None => {
                    let error = "the store has a value that this layer has not put there";
                    settings.info.emit(LayerEvent::StoreFailed { error });
                    return Err(Outcome::Away(error.into()));
                }
                Some((print, _)) if print != self.print => return Err(Outcome::Reused),
                Some((_, Record::Answer(answer))) => return Err(Outcome::Answer(answer)),
                Some((_, Record::TooLarge)) => return Err(Outcome::TooLarge),
                Some((_, Record::Claim(_))) => {}
            }
            let until = clock::now() + pauses.nth(n, Duration::ZERO);
            if until > end {
                break;
            }
            clock::sleep_until(until).await;
        }
        Err(Outcome::Busy)
    }

    /// Runs the handler and reads its response to the end.
    async fn handle<S, Req, B>(&self, service: S, request: Req, reply: oneshot::Sender<Reply<B, S::Error>>) -> Ended
    where
        S: Service<Req, Response = Response<B>, Error: Reject<Response<B>>>,
        B: Body<Error: Into<BoxError>>,
    {
        let outcome = match unwound(Call::new(service, request)).await {
            Ok(outcome) => outcome,
            Err(panic) => {
                let _ = reply.send(Reply::Panicked(panic));
                return Ended::Open;
            }
        };
        let is_rejected = S::Error::rejection(&outcome).is_some_and(|rejection| rejection.is_unprocessed());
        let response = match outcome {
            Ok(response) if !is_rejected => response,
            outcome => {
                let _ = reply.send(Reply::Ran(Box::new(outcome.map(|response| response.map(IdempotentBody::inner)))));
                return Ended::Open;
            }
        };
        let (parts, body) = response.into_parts();
        let (to, receiver) = mpsc::unbounded_channel();
        let outside = IdempotentBody::recorded(receiver, body.size_hint(), self.lead.flight.interest());
        let (head, inside) = (parts.clone(), Box::pin(body));
        let _ = reply.send(Reply::Ran(Box::new(Ok(Response::from_parts(parts, outside)))));
        match unwound(self.record(inside, head, &to)).await {
            Ok(ended) => ended,
            Err(_) => Ended::Open,
        }
    }

    /// Passes the frames of a body on, and keeps them.
    async fn record<B>(&self, mut body: Pin<Box<B>>, head: Parts, to: &mpsc::UnboundedSender<Part<B>>) -> Ended
    where
        B: Body<Error: Into<BoxError>>,
    {
        let (mut data, mut trailers) = (BytesMut::new(), None::<HeaderMap>);
        loop {
            let frame = match poll_fn(|cx| poll_frame(body.as_mut(), cx)).await {
                Some(Ok(frame)) => frame,
                Some(Err(error)) => {
                    let _ = to.send(Part::Failed(error));
                    return Ended::Open;
                }
                None => break,
            };
            if let Some(part) = frame.data_ref() {
                data.extend_from_slice(part);
            }
            if let Some(end) = frame.trailers_ref() {
                trailers = Some(end.clone());
            }
            let _ = to.send(Part::Frame(frame));
            if data.len() > self.settings.max_response {
                let _ = to.send(Part::Rest(body));
                return Ended::TooLarge;
            }
        }
        let _ = to.send(Part::End);
        Ended::Answer(Arc::new(Answer { status: head.status, headers: head.headers, body: data.freeze(), trailers }))
    }

    /// Renews the claim. Ends once no caller has waited for long enough.
    async fn upkeep(&self, claim: &Bytes) {
        let mut alone = Duration::ZERO;
        while alone <= self.settings.linger {
            clock::sleep(RENEWAL).await;
            alone = if self.lead.flight.is_alone() { alone + RENEWAL } else { Duration::ZERO };
            let _ = self.replace(claim, Some(claim.clone()), LEASE).await;
        }
    }

    async fn release(&self, claim: &Bytes) {
        let _ = self.replace(claim, None, Duration::ZERO).await;
    }

    /// Stores the response, however long that takes within bounds: a caller that comes again must not run the handler.
    async fn store(&self, claim: &Bytes, record: Bytes) {
        let (settings, end) = (&self.settings, clock::now() + OFFER);
        let pauses = Backoff::exponential(Duration::from_millis(100)).max(Duration::from_secs(5));
        for n in 1.. {
            let stored = match self.replace(claim, Some(record.clone()), settings.keep).await {
                // The claim has expired, because the store failed or forgot it. Another process may have its own.
                Ok(false) => {
                    let put = async { settings.store.put_new(&self.lead.key, record.clone(), settings.keep).await };
                    settings.ask(false, put).await.map(drop)
                }
                Ok(true) => Ok(()),
                Err(error) => Err(error),
            };
            let pause = pauses.nth(n, Duration::ZERO);
            match stored {
                Ok(()) => return settings.info.emit(LayerEvent::Stored),
                Err(_) if clock::now() + pause > end => return,
                Err(_) => clock::sleep(pause).await,
            }
        }
    }

    async fn replace(&self, claim: &Bytes, new: Option<Bytes>, ttl: Duration) -> Result<bool, Arc<str>> {
        let replace = async { self.settings.store.replace(&self.lead.key, claim, new, ttl).await };
        self.settings.ask(false, replace).await
    }
}

impl<St: ValueStore> Settings<St> {
    async fn ask<T>(&self, is_probe: bool, request: impl Future<Output = Result<T, St::Error>>) -> Result<T, Arc<str>> {
        self.link.ask(&self.info, self.timeout, is_probe, request).await
    }
}
