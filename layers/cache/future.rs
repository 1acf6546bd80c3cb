//! The path of one request through the cache.

use std::{
    fmt,
    future::Future,
    hash::Hash,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use pin_project_lite::pin_project;
use tokio::sync::oneshot;
use tower_service::Service;

use super::{
    flight::{Arrival, Lead, Message, Patience},
    handle::count,
    leads::Leads,
    policy::{Policy, Ttl},
    share::{Landed, Outcomes, ShareErrors},
    store::Hashed,
};
use crate::{
    clock,
    debug::impl_debug,
    outcome::{Classify, Reason, Reject, Rejection},
    telemetry::LayerEvent,
};

pin_project! {
    /// The response future of [`Cache`](super::Cache).
    #[must_use = "futures do nothing unless polled"]
    pub struct ResponseFuture<S, Req, K, T, C>
    where
        S: Service<Req>,
    {
        #[pin]
        state: State<S, Req, K, T, C>,
    }
}

pin_project! {
    #[project = StateProj]
    enum State<S, Req, K, T, C>
    where
        S: Service<Req>,
    {
        // `None` after the end.
        Before { before: Option<Before<S, Req, K, T, C, S::Response>> },
        // The call is dropped before the duty, so that its cleanup is done before another request makes a call.
        Calling { #[pin] response: S::Future, duty: Option<Duty<K, S::Response, T, C>> },
    }
}

/// The states before the call, or without one.
enum Before<S, Req, K, T, C, R> {
    /// Found a response in memory.
    Answered(R),
    /// Found a failure in memory.
    Failed(Landed<R>, Arc<Policy<K, R, T, C>>),
    /// Found nothing. The first poll decides which call leads and which waits: no request may wait for a future that is
    /// not polled.
    Arriving(Missed<S, Req, K, T, C, R>),
    /// Waits for the call of another request.
    Waiting(Missed<S, Req, K, T, C, R>, oneshot::Receiver<Message<K, Landed<R>>>),
    /// Calls as soon as the service is ready.
    Readying(Call<S, Req>, Option<Duty<K, R, T, C>>),
}

struct Missed<S, Req, K, T, C, R> {
    call: Call<S, Req>,
    key: Arc<Hashed<K>>,
    policy: Arc<Policy<K, R, T, C>>,
}

/// A call that has not been made yet.
pub(super) struct Call<S, Req> {
    pub(super) service: S,
    pub(super) request: Req,
}

/// The duty of a leader when its call completes. A request without a key has none.
pub(super) struct Duty<K, R, T, C> {
    pub(super) policy: Arc<Policy<K, R, T, C>>,
    pub(super) lead: Lead<K, Landed<R>>,
    /// Whether a request waits for the outcome. None does if a stale response was served.
    pub(super) is_awaited: bool,
    /// The surrounding calls for keys, and this one.
    leads: Leads,
}

impl<K, R, T, C> Duty<K, R, T, C> {
    /// Makes the duty for a call that a request waits for, inside any surrounding calls.
    fn awaited(policy: Arc<Policy<K, R, T, C>>, lead: Lead<K, Landed<R>>) -> Self {
        let leads = Leads::current().and(lead.name());
        Self { policy, lead, is_awaited: true, leads }
    }

    /// Makes the duty for a background call.
    pub(super) fn behind(policy: Arc<Policy<K, R, T, C>>, lead: Lead<K, Landed<R>>) -> Self {
        let leads = Leads::default().and(lead.name());
        Self { policy, lead, is_awaited: false, leads }
    }
}

/// Polls a part of a call, with its leads in the surroundings and its pulse recorded.
fn polled<K, R, T, C, P>(
    duty: &mut Option<Duty<K, R, T, C>>,
    cx: &mut Context<'_>,
    poll: impl FnOnce(&mut Context<'_>) -> P,
) -> P {
    match duty {
        Some(duty) => {
            let _entered = duty.leads.enter();
            duty.lead.pulse().poll(cx, poll)
        }
        None => poll(cx),
    }
}

impl<S: Service<Req>, Req, K, T, C> ResponseFuture<S, Req, K, T, C> {
    fn new(before: Before<S, Req, K, T, C, S::Response>) -> Self {
        Self { state: State::Before { before: Some(before) } }
    }

    pub(super) fn answered(response: S::Response) -> Self {
        Self::new(Before::Answered(response))
    }

    pub(super) fn failed(landed: Landed<S::Response>, policy: Arc<Policy<K, S::Response, T, C>>) -> Self {
        Self::new(Before::Failed(landed, policy))
    }

    pub(super) fn missed(call: Call<S, Req>, key: Hashed<K>, policy: Arc<Policy<K, S::Response, T, C>>) -> Self {
        Self::new(Before::Arriving(Missed { call, key: Arc::new(key), policy }))
    }

    pub(super) fn calling(call: Call<S, Req>, duty: Option<Duty<K, S::Response, T, C>>) -> Self {
        Self::new(Before::Readying(call, duty))
    }
}

impl<S, Req, K, T, C, H> Future for ResponseFuture<S, Req, K, T, Outcomes<C, H>>
where
    S: Service<Req>,
    S::Response: Clone,
    S::Error: Reject<S::Response> + fmt::Display,
    K: Hash + Eq,
    T: Ttl<K, S::Response>,
    C: Classify<S::Response, S::Error>,
    H: ShareErrors<S::Error>,
{
    type Output = Result<S::Response, S::Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = self.project().state;
        let (outcome, duty) = loop {
            // The duty is taken out while user code runs: if that panics, the lead passes to the next waiter at once.
            let before = match state.as_mut().project() {
                StateProj::Before { before } => before,
                StateProj::Calling { response, duty } => {
                    let mut owed = duty.take();
                    match polled(&mut owed, cx, |cx| response.poll(cx)) {
                        Poll::Ready(outcome) => break (outcome, owed),
                        Poll::Pending => *duty = owed,
                    }
                    return Poll::Pending;
                }
            };
            let next = match before.take() {
                Some(Before::Answered(response)) => return Poll::Ready(Ok(response)),
                Some(Before::Failed(landed, policy)) => return Poll::Ready(landed.outcome(&policy.outcomes)),
                Some(Before::Arriving(missed)) => match missed.arrive() {
                    Ok(next) => next,
                    Err(rejection) => return Poll::Ready(S::Error::reject(rejection)),
                },
                Some(Before::Waiting(missed, mut told)) => match Pin::new(&mut told).poll(cx) {
                    Poll::Ready(Ok(Message::Lead(lead))) => missed.lead(lead),
                    Poll::Ready(Ok(Message::Alone)) => missed.alone(),
                    Poll::Ready(Ok(Message::Landed(landed))) => return Poll::Ready(missed.share(landed)),
                    // The leader panicked while it notified the waiters.
                    Poll::Ready(Err(_)) => Before::Arriving(missed),
                    Poll::Pending => {
                        *before = Some(Before::Waiting(missed, told));
                        return Poll::Pending;
                    }
                },
                Some(Before::Readying(mut call, mut duty)) => {
                    match polled(&mut duty, cx, |cx| call.service.poll_ready(cx)) {
                        Poll::Ready(Ok(())) => {
                            let response = polled(&mut duty, cx, |_| call.service.call(call.request));
                            state.set(State::Calling { response, duty });
                            continue;
                        }
                        Poll::Ready(Err(error)) => break (Err(error), duty),
                        Poll::Pending => {
                            *before = Some(Before::Readying(call, duty));
                            return Poll::Pending;
                        }
                    }
                }
                None => panic!("cache::ResponseFuture polled after it was ready"),
            };
            *before = Some(next);
        };
        // Drops the call before its outcome is visible, so that its resources are released.
        state.set(State::Before { before: None });
        Poll::Ready(match duty {
            Some(Duty { policy, lead, is_awaited, .. }) => policy.land(lead, outcome, is_awaited),
            None => outcome,
        })
    }
}

impl<S, Req, K, T, C, R> Missed<S, Req, K, T, C, R>
where
    K: Hash + Eq,
    R: Clone,
{
    /// Decides how the request continues. Returns an error if it would wait for itself.
    fn arrive(self) -> Result<Before<S, Req, K, T, C, R>, Rejection> {
        let state = &self.policy.cache.state;
        let mut outdated = None;
        let fresh = || match state.store.peek(&self.key) {
            Some(entry) if entry.stale_for(clock::now).is_none() => Some(entry),
            // Possibly the last reference, which must not be dropped under the lock of the flights.
            found => {
                outdated = found;
                None
            }
        };
        let arrival = state.flights.join(&self.key, Patience::current, fresh);
        drop(outdated);
        Ok(match arrival {
            Arrival::Leader(lead) => self.lead(lead),
            Arrival::Waiter(told) => Before::Waiting(self, told),
            Arrival::Found(entry) => {
                count(&state.counts.hits);
                self.policy.info.emit(LayerEvent::Hit);
                match &entry.response {
                    Landed::Answered(response) => Before::Answered(response.clone()),
                    failed => Before::Failed(failed.clone(), self.policy),
                }
            }
            Arrival::Itself => {
                return Err(self.policy.info.reject(Reason::Recursive));
            }
        })
    }

    fn lead(self, lead: Lead<K, Landed<R>>) -> Before<S, Req, K, T, C, R> {
        self.note_miss();
        Before::Readying(self.call, Some(Duty::awaited(self.policy, lead)))
    }

    /// Makes a call for this request alone, because the outcome that it waited for was for another caller alone.
    fn alone(self) -> Before<S, Req, K, T, C, R> {
        self.note_miss();
        Before::Readying(self.call, None)
    }

    fn note_miss(&self) {
        count(&self.policy.cache.state.counts.misses);
        self.policy.info.emit(LayerEvent::Miss);
    }
}

impl<S, Req, K, T, C, H, R> Missed<S, Req, K, T, Outcomes<C, H>, R> {
    fn share<E>(self, landed: Landed<R>) -> Result<R, E>
    where
        E: Reject<R>,
        H: ShareErrors<E>,
    {
        count(&self.policy.cache.state.counts.shared);
        self.policy.info.emit(LayerEvent::Shared);
        landed.outcome(&self.policy.outcomes)
    }
}

impl_debug!(ResponseFuture<S: Service<Req>, Req, K, T, C> in cache {
    state = |this| match &this.state {
        State::Before { before: Some(Before::Answered(_) | Before::Failed(..)) } => "answered",
        State::Before { before: Some(Before::Arriving(_)) } => "arriving",
        State::Before { before: Some(Before::Waiting(..)) } => "waiting",
        State::Before { before: Some(Before::Readying(..)) } => "readying",
        State::Before { before: None } => "done",
        State::Calling { .. } => "calling",
    },
    ..
});
