//! The path of one request: into a batch, and back with its result.

use std::{
    fmt,
    future::Future,
    hash::Hash,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use tokio::{runtime::Handle, sync::oneshot};
use tower_service::Service;

use super::{
    around::Around,
    gather::{Key, Place},
    ride::Ride,
    send::{Item, Open, Reply, Shared, send},
    take_over::take_over,
};
use crate::{
    ambient::{self, Deadline, Unsent},
    clock,
    debug::impl_debug,
    outcome::{Classify, Reject},
    pulse::Pulse,
    scope::Scope,
    telemetry::LayerEvent,
};

const NO_RUNTIME: &str = "no tokio runtime to send a batch on: poll the call inside a runtime";

/// The response future of [`Batch`](super::Batch).
#[must_use = "futures do nothing unless polled"]
pub struct ResponseFuture<S, Req, R, K, C>
where
    S: Service<Vec<Req>>,
    K: Hash + Eq,
{
    state: State<S, Req, R, K, C>,
}

enum State<S, Req, R, K, C>
where
    S: Service<Vec<Req>>,
    K: Hash + Eq,
{
    /// Not polled yet.
    Arriving(Arriving<S, Req, R, K, C>),
    /// In a batch.
    Waiting(Seat<Req, R, S::Error, K, C>, oneshot::Receiver<Reply<R, S::Error>>),
    /// Found no batch to join and no runtime to start one on.
    Refused(Arc<Shared<Req, R, S::Error, K, C>>),
    Done,
}

pub(super) struct Arriving<S: Service<Vec<Req>>, Req, R, K, C> {
    pub(super) service: S,
    pub(super) request: Req,
    pub(super) key: K,
    pub(super) scope: Option<Scope>,
    pub(super) shared: Arc<Shared<Req, R, S::Error, K, C>>,
}

/// A place in a batch. Dropping it before the batch is sent removes the request. If it was the last one, dropping it
/// also drops the call.
struct Seat<Req, R, E, K: Hash + Eq, C> {
    shared: Arc<Shared<Req, R, E, K, C>>,
    place: Place,
    ride: Arc<Ride>,
}

impl<Req, R, E, K: Hash + Eq, C> Drop for Seat<Req, R, E, K, C> {
    fn drop(&mut self) {
        let mut gather = self.shared.gather.lock();
        let due = gather.due(self.place.batch);
        let left = gather.leave(self.place);
        drop(gather);
        // If the whole call is dropped too, it waited locally until now. A batch that is due waits for the service.
        if left.is_some() && !due.has_come(clock::now) {
            ambient::set(Unsent(true));
        }
        drop(left);
    }
}

impl<S, Req, R, K, C> ResponseFuture<S, Req, R, K, C>
where
    S: Service<Vec<Req>>,
    K: Hash + Eq,
{
    pub(super) fn new(arriving: Arriving<S, Req, R, K, C>) -> Self {
        Self { state: State::Arriving(arriving) }
    }
}

// No field is structurally pinned.
impl<S, Req, R, K, C> Unpin for ResponseFuture<S, Req, R, K, C>
where
    S: Service<Vec<Req>>,
    K: Hash + Eq,
{
}

impl<S, Req, R, I, K, C> Future for ResponseFuture<S, Req, R, K, C>
where
    S: Service<Vec<Req>, Response = Vec<Result<R, I>>> + Clone + Send + 'static,
    S::Error: Reject<R> + fmt::Display + Send + 'static,
    S::Future: Send + 'static,
    Req: Send + 'static,
    R: Send + 'static,
    I: Into<S::Error> + Send + 'static,
    K: Hash + Eq + Send + Sync + 'static,
    C: Classify<R, S::Error> + Send + Sync + 'static,
{
    type Output = Result<R, S::Error>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if let State::Arriving(_) = self.state
            && let State::Arriving(arriving) = std::mem::replace(&mut self.state, State::Done)
        {
            self.state = arriving.join(send);
        }
        let reply = match &mut self.state {
            State::Waiting(seat, reply) => {
                let reply = ready!(Pin::new(reply).poll(cx))
                    .unwrap_or_else(|_| Err(seat.shared.without_an_answer(seat.ride.end())));
                if reply.is_err() {
                    seat.shared.info.emit(LayerEvent::Shared);
                }
                reply
            }
            State::Refused(shared) => Err(shared.without_an_answer(NO_RUNTIME)),
            State::Arriving(_) | State::Done => panic!("batch::ResponseFuture polled after it was ready"),
        };
        self.state = State::Done;
        Poll::Ready(reply.unwrap_or_else(S::Error::reject))
    }
}

impl<S, Req, R, K, C> Arriving<S, Req, R, K, C>
where
    S: Service<Vec<Req>> + Clone,
    K: Hash + Eq,
{
    /// Joins a batch, or starts one: `send` sends it.
    fn join<F>(self, send: impl Fn(Open<Req, R, S::Error, K, C>, Arc<Pulse>, S) -> F) -> State<S, Req, R, K, C>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let Self { service, request, key, scope, shared } = self;
        let (reply, answer) = oneshot::channel();
        let around = Around { scope, deadline: Deadline::current() };
        // Declared before the lock is taken, so that on every return they are dropped after it is released.
        let (mut key, mut item) = (Some(Key::new(key, &shared.hasher)), Some(Item { request, around, reply }));
        let runtime = Handle::try_current().ok();
        if let Some(runtime) = &runtime {
            take_over(&shared, &service, runtime, &send);
        }
        let keep = runtime.is_some().then_some(Ride::new);
        let joined = shared.gather.lock().join(&mut key, &mut item, clock::now, keep);
        let Some(joined) = joined else { return State::Refused(shared) };
        let ride = joined.kept;
        let seat = Seat { shared, place: joined.place, ride: Arc::clone(&ride) };
        if joined.is_first
            && let Some(runtime) = &runtime
        {
            let (shared, batch) = (Arc::clone(&seat.shared), joined.place.batch);
            shared.watch.add(batch, &ride);
            let open = Open { shared, batch, turn: 0 };
            ride.start(runtime, send(open, Arc::clone(ride.pulse()), service));
        }
        if joined.is_full {
            ride.ring();
        }
        State::Waiting(seat, answer)
    }
}

impl_debug!(ResponseFuture<S, Req, R, K, C> in batch where [S: Service<Vec<Req>>, K: Hash + Eq] {
    state = |this| match &this.state {
        State::Arriving(_) => "arriving",
        State::Waiting(..) => "waiting",
        State::Refused(_) => "refused",
        State::Done => "done",
    },
    ..
});
