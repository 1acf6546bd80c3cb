//! The run of a handler, on a task of its own: it goes on if its caller leaves, because the next one with the same key
//! is to get its response.

use std::{
    any::Any,
    future::{Future, poll_fn},
    mem,
    pin::{Pin, pin},
    sync::Arc,
    task::Poll,
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use futures_util::future::{Either, select};
use http::{HeaderMap, Request, Response};
use http_body::Body;
use tokio::{sync::oneshot, task::consume_budget};
use tower_service::Service;

use super::{
    Settings,
    backlog::{Part, Sender, backlog},
    body::IdempotentBody,
    flight::{Lead, Outcome},
    key::Fingerprint,
    record::{Answer, Record, end_to_end},
};
use crate::{
    backoff::{Backoff, Jitter},
    body::{BoxError, poll_frame},
    call::Call,
    caught::{undisturbed, unwound},
    clock,
    outcome::{Reject, Rejection},
    scope::{Scope, behind},
    store::{Advice, ValueStore},
    telemetry::LayerEvent,
};

/// How long a claim lasts without being renewed. After a crash, its key is free after this time.
const LEASE: Duration = Duration::from_secs(30);

/// How often a claim is renewed.
const RENEWAL: Duration = Duration::from_secs(10);

/// How soon it is tried again if the store failed. With the longest timeout too, two requests may fail in a row.
const RETRY: Duration = Duration::from_secs(3);

/// How long a response is offered to a store that fails. If the store takes the renewals, the claim holds meanwhile.
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

/// The body of the response failed.
struct Broken;

pub(super) struct Run<St> {
    pub(super) settings: Arc<Settings<St>>,
    pub(super) lead: Lead,
    pub(super) print: Fingerprint,
}

impl<St: ValueStore> Run<St> {
    /// Runs the handler on a task, unless the store has the response.
    ///
    /// The task has the scope of the request, but neither its deadline nor its cancellation.
    pub(super) fn start<S, A, B>(self, service: S, request: Request<A>) -> oneshot::Receiver<Reply<B, S::Error>>
    where
        S: Service<Request<A>, Response = Response<B>, Error: Reject<Response<B>> + Send, Future: Send>
            + Send
            + 'static,
        A: Send + 'static,
        B: Body<Error: Into<BoxError>> + Send + 'static,
    {
        let (reply, receiver) = oneshot::channel();
        let run = async move { self.run(service, behind(request), reply).await };
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
            let (mut handler, upkeep) = (pin!(Some(self.handle(service, request, reply))), pin!(self.upkeep(&claim)));
            let handled = poll_fn(|cx| handler.as_mut().as_pin_mut().map_or(Poll::Pending, |handler| handler.poll(cx)));
            let ended = match select(handled, upkeep).await {
                Either::Left((ended, _)) => ended,
                Either::Right(_) => Ended::Open,
            };
            undisturbed(|| handler.set(None));
            ended
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
                // The handler has not begun, and no caller waits for it.
                Some((_, Record::Claim(_))) if self.lead.flight.is_alone() => return Err(Outcome::Open),
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
        // A layer inside may have turned it into a response, whatever the error type is.
        let of_response = || outcome.as_ref().ok().and_then(|response| response.extensions().get::<Rejection>());
        let is_rejected = S::Error::rejection(&outcome).or_else(of_response).is_some_and(Rejection::is_unprocessed);
        let response = match outcome {
            Ok(response) if !is_rejected => response,
            outcome => {
                let _ = reply.send(Reply::Ran(Box::new(outcome.map(|response| response.map(IdempotentBody::inner)))));
                return Ended::Open;
            }
        };
        let (parts, body) = response.into_parts();
        let (to, receiver) = backlog();
        let outside = if body.is_end_stream() {
            IdempotentBody::default()
        } else {
            IdempotentBody::recorded(receiver, body.size_hint(), self.lead.flight.interest())
        };
        let (status, headers, inside) = (parts.status, end_to_end(&parts.headers), Box::pin(body));
        let _ = reply.send(Reply::Ran(Box::new(Ok(Response::from_parts(parts, outside)))));
        match unwound(self.record(inside, &to)).await {
            Ok(Ok(Some((body, trailers)))) => Ended::Answer(Arc::new(Answer { status, headers, body, trailers })),
            Ok(Ok(None)) => Ended::TooLarge,
            Ok(Err(Broken)) | Err(_) => Ended::Open,
        }
    }

    /// Passes the frames of a body on, and returns them together, or `None` if they are too large.
    async fn record<B>(
        &self,
        mut body: Pin<Box<B>>,
        to: &Sender<B>,
    ) -> Result<Option<(Bytes, Option<HeaderMap>)>, Broken>
    where
        B: Body<Error: Into<BoxError>>,
    {
        let (mut data, mut trailers) = (BytesMut::new(), None::<HeaderMap>);
        loop {
            // A body that is always ready would keep the thread, and the upkeep waiting.
            consume_budget().await;
            let frame = match poll_fn(|cx| poll_frame(body.as_mut(), cx)).await {
                Some(Ok(frame)) => frame,
                Some(Err(error)) => {
                    to.send(Part::Failed(error));
                    return Err(Broken);
                }
                None => break,
            };
            let part = frame.data_ref().map_or(&[][..], |part| part);
            let is_too_large = part.len() > self.settings.max_response - data.len();
            if !is_too_large {
                data.extend_from_slice(part);
            }
            if let Some(end) = frame.trailers_ref() {
                trailers.get_or_insert_default().extend(end.clone());
            }
            to.send(Part::Frame(frame));
            if is_too_large {
                to.send(Part::Rest(body));
                return Ok(None);
            }
        }
        to.send(Part::End);
        Ok(Some((data.freeze(), trailers)))
    }

    /// Renews the claim. Ends once no caller has waited for long enough.
    async fn upkeep(&self, claim: &Bytes) {
        let (flight, linger) = (&self.lead.flight, self.settings.linger);
        let (mut pause, mut known, mut alone_since) = (RENEWAL, 0, None);
        loop {
            clock::sleep(pause).await;
            let (now, before) = (clock::now(), mem::replace(&mut known, flight.interests()));
            // A caller may have come and left since the last look.
            let since = alone_since.filter(|_| known == before).unwrap_or(now);
            alone_since = flight.is_alone().then_some(since);
            if alone_since.is_some_and(|since| now.saturating_duration_since(since) >= linger) {
                return;
            }
            pause = if self.renew(claim).await.is_ok() { RENEWAL } else { RETRY };
        }
    }

    async fn renew(&self, claim: &Bytes) -> Result<(), Arc<str>> {
        self.put_in_place(claim, claim, LEASE).await.map(drop)
    }

    async fn release(&self, claim: &Bytes) {
        let _ = self.replace(claim, None, Duration::ZERO).await;
    }

    /// Stores the response, however long that takes within bounds: a caller that comes again must not run the handler.
    async fn store(&self, claim: &Bytes, record: Bytes) {
        let (keep, end) = (self.settings.keep, clock::now() + OFFER);
        let pauses = Backoff::exponential(Duration::from_millis(100)).max(Duration::from_secs(5));
        for n in 1.. {
            match self.put_in_place(claim, &record, keep).await {
                Ok(true) => return self.settings.info.emit(LayerEvent::Stored),
                Ok(false) => return,
                Err(_) => {}
            }
            let pause = pauses.nth(n, Duration::ZERO);
            if clock::now() + pause > end {
                break;
            }
            let _ = self.renew(claim).await;
            clock::sleep(pause).await;
        }
        // The store may refuse a value of this size only.
        let _ = self.put_in_place(claim, &Record::TooLarge.encode(self.print), keep).await;
    }

    /// Puts a value in place of the claim, or of nothing if the store has forgotten the claim. Returns whether the key
    /// has this value: if the claim has expired, another process may have one of its own.
    async fn put_in_place(&self, claim: &Bytes, new: &Bytes, ttl: Duration) -> Result<bool, Arc<str>> {
        if self.replace(claim, Some(new.clone()), ttl).await? {
            return Ok(true);
        }
        let put = async { self.settings.store.put_new(&self.lead.key, new.clone(), ttl).await };
        let found = self.settings.ask(false, put).await?;
        Ok(found.is_none_or(|found| found == *new))
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
