//! Sends a batch: waits until it is due, makes the service ready, calls it, and gives each caller its result.

use std::{fmt, future::poll_fn, hash::Hash, sync::Arc, task::Poll};

use tokio::sync::oneshot;
use tower_service::Service;

use super::{
    around::Around,
    gather::{Batch, Due, Gather},
    ride::Ride,
    watch::Watch,
};
use crate::{
    caught::{caught, undisturbed},
    clock,
    mutex::Mutex,
    outcome::{Class, Classify, Reason, Reject, Rejection},
    pulse::Pulse,
    telemetry::LayerInfo,
};

/// The waiting requests of a service.
pub(super) type Waiting<Req, R, E, K> = Gather<K, Item<Req, R, E>, Arc<Ride>>;

type Gathered<Req, R, E, K> = Batch<K, Item<Req, R, E>, Arc<Ride>>;

/// The state that all clones of a service share.
pub(super) struct Shared<Req, R, E, K, C> {
    pub(super) gather: Mutex<Waiting<Req, R, E, K>>,
    pub(super) watch: Watch,
    pub(super) hasher: std::hash::RandomState,
    pub(super) classify: C,
    pub(super) info: LayerInfo,
}

/// A request that waits for its batch to be sent.
pub(super) struct Item<Req, R, E> {
    pub(super) request: Req,
    pub(super) around: Around,
    pub(super) reply: oneshot::Sender<Reply<R, E>>,
}

/// A caller's result: an outcome of its own, or the rejection that it shares with others.
pub(super) type Reply<R, E> = Result<Result<R, E>, Rejection>;

type Replies<R, E> = Vec<oneshot::Sender<Reply<R, E>>>;

impl<Req, R, E, K, C> Shared<Req, R, E, K, C> {
    /// Rejects a call that has no outcome and no error of the service.
    pub(super) fn without_an_answer(&self, why: impl Into<Arc<str>>) -> Rejection {
        self.info.reject(Reason::Shared { message: why.into(), class: Class::PERMANENT })
    }
}

/// A batch that this turn of its task is to send.
///
/// If it never sends the batch, because the task is dropped, no request can join the batch any more, and the waiting
/// callers are notified. After a takeover, the next turn is responsible for the batch, and dropping this one does
/// nothing.
pub(super) struct Open<Req, R, E, K: Hash + Eq, C> {
    pub(super) shared: Arc<Shared<Req, R, E, K, C>>,
    pub(super) batch: u64,
    pub(super) turn: u64,
}

impl<Req, R, E, K: Hash + Eq, C> Open<Req, R, E, K, C> {
    /// Returns the batch in its next turn, for a takeover, unless it was sent.
    pub(super) fn again(shared: &Arc<Shared<Req, R, E, K, C>>, batch: u64) -> Option<Self> {
        let turn = shared.gather.lock().next_turn(batch)?;
        Some(Self { shared: Arc::clone(shared), batch, turn })
    }

    fn take(&self) -> Option<Gathered<Req, R, E, K>> {
        self.shared.gather.lock().take_in_turn(self.batch, self.turn)
    }
}

impl<Req, R, E, K: Hash + Eq, C> Drop for Open<Req, R, E, K, C> {
    fn drop(&mut self) {
        // Each one separately: a request or a waker that panics in its drop must not keep other callers from being
        // notified.
        for item in self.take().into_iter().flat_map(Batch::into_items) {
            undisturbed(|| drop(item));
        }
    }
}

/// The work of a batch's task.
pub(super) async fn send<S, Req, R, I, K, C>(open: Open<Req, R, S::Error, K, C>, pulse: Arc<Pulse>, mut service: S)
where
    S: Service<Vec<Req>, Response = Vec<Result<R, I>>>,
    S::Error: Reject<R> + fmt::Display,
    I: Into<S::Error>,
    K: Hash + Eq,
    C: Classify<R, S::Error>,
{
    let (shared, batch) = (&open.shared, open.batch);
    until_due(shared, batch, &pulse).await;
    // Requests that arrive while the service is not ready still join.
    let around = Around::all(shared.gather.lock().items(batch).map(|item| &item.around));
    let ready = caught(around.within(poll_fn(|cx| service.poll_ready(cx)))).await;
    let taken = open.take();
    let items = taken.map(Batch::into_items).unwrap_or_default();
    let around = Around::all(items.iter().map(|item| &item.around));
    let (requests, replies): (Vec<_>, Replies<_, _>) = items.into_iter().map(|item| (item.request, item.reply)).unzip();
    let outcome = match ready {
        _ if requests.is_empty() => return,
        // Drops the service with its call, so that its resources are released before callers are notified.
        Ok(Ok(())) => caught(around.within(async move { service.call(requests).await })).await,
        Ok(Err(error)) => Ok(Err(error)),
        Err(panic) => Err(panic),
    };
    match outcome {
        Ok(Ok(answers)) if answers.len() == replies.len() => {
            for (reply, answer) in replies.into_iter().zip(answers) {
                let answer = caught(async { answer.map_err(Into::into) }).await;
                let answer = answer.map_err(|panic| shared.without_an_answer(panic));
                // The result of a caller that is gone is dropped.
                undisturbed(|| drop(give(reply, answer)));
            }
        }
        Ok(Ok(answers)) => {
            let (answers, requests) = (answers.len(), replies.len());
            let why =
                format!("{answers} results for {requests} requests: the service must return one for each, in order");
            tell_all(replies, &shared.without_an_answer(why));
        }
        Ok(Err(error)) => share(shared, replies, error),
        Err(panic) => tell_all(replies, &shared.without_an_answer(panic)),
    }
}

async fn until_due<Req, R, E, K, C>(shared: &Shared<Req, R, E, K, C>, batch: u64, pulse: &Pulse)
where
    K: Hash + Eq,
{
    // The call that fills the batch also wakes this.
    let until_full = poll_fn(|_| match shared.gather.lock().due(batch) {
        Due::Now => Poll::Ready(()),
        Due::At(_) | Due::WhenFull => Poll::Pending,
    });
    let due = shared.gather.lock().due(batch);
    match due {
        Due::Now => {}
        Due::WhenFull => until_full.await,
        Due::At(due) => {
            pulse.set_alarm(Some(due));
            clock::timeout_at(due, until_full).await;
            pulse.set_alarm(None);
        }
    }
}

/// Gives an error of the whole call to the first caller that still waits, and a copy of its message to the others.
fn share<Req, R, E, K, C>(shared: &Shared<Req, R, E, K, C>, replies: Replies<R, E>, error: E)
where
    E: Reject<R> + fmt::Display,
    C: Classify<R, E>,
{
    let failed: Result<R, E> = Err(error);
    let class = Class::of(&failed, &shared.classify);
    let rejection = (replies.len() > 1).then(|| shared.info.shared(&failed, class));
    let (mut whole, mut replies) = (Ok(failed), replies.into_iter());
    for reply in replies.by_ref() {
        match give(reply, whole) {
            Ok(()) => break,
            Err(back) => whole = back,
        }
    }
    if let Some(rejection) = rejection {
        tell_all(replies, &rejection);
    }
}

fn tell_all<R, E>(replies: impl IntoIterator<Item = oneshot::Sender<Reply<R, E>>>, rejection: &Rejection) {
    for reply in replies {
        let _ = give(reply, Err(rejection.clone()));
    }
}

/// Sends a caller its reply, or returns the reply if the caller is gone.
///
/// A waker that panics does not keep other callers from their replies.
fn give<R, E>(reply: oneshot::Sender<Reply<R, E>>, answer: Reply<R, E>) -> Result<(), Reply<R, E>> {
    let mut given = Ok(());
    undisturbed(|| given = reply.send(answer));
    given
}
