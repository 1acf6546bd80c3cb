//! A subscriber's end: the stream of its events.

use std::{
    any::type_name,
    fmt,
    future::poll_fn,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak, atomic::AtomicUsize},
    task::{Context, Poll, Waker},
};

use futures_core::Stream;
use tokio::sync::Notify;

use super::{
    Inner,
    joined::{Item, Receipt},
    queue::{Lag, Lagged, Next, Queue},
};
use crate::caught::undisturbed;

/// A place among those who hear of events of this type.
pub(super) struct Seat<E> {
    line: Mutex<Line<E>>,
    /// Told when there is room again that somebody may wait for.
    room: Arc<Notify>,
    bus: Weak<Inner>,
    /// Where it stands among those of its topic, so that who leaves need not look for it. Changed under the topic's lock.
    pub(super) place: AtomicUsize,
}

pub(super) struct Line<E> {
    pub(super) queue: Queue<Item<E>>,
    pub(super) waiting: Option<Waker>,
}

impl<E> Seat<E> {
    pub(super) fn new(capacity: usize, lag: Lag, room: Arc<Notify>, bus: Weak<Inner>) -> Arc<Self> {
        let line = Mutex::new(Line { queue: Queue::new(capacity, lag), waiting: None });
        Arc::new(Self { line, room, bus, place: AtomicUsize::new(0) })
    }

    pub(super) fn line(&self) -> MutexGuard<'_, Line<E>> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn wake(&self) {
        let waiting = self.line().waiting.take();
        if let Some(waker) = waiting {
            undisturbed(|| waker.wake());
        }
    }

    /// The next that is there. If nothing is, `waker` is left to be woken.
    fn next(&self, waker: Option<Waker>) -> Next<Item<E>> {
        let mut line = self.line();
        let blocked = line.queue.blocks();
        let next = line.queue.pop();
        let replaced = match (&next, waker) {
            (Next::Nothing, Some(waker)) => line.waiting.replace(waker),
            (_, waker) => waker,
        };
        let has_room = blocked && !line.queue.blocks();
        drop(line);
        drop(replaced);
        if has_room {
            undisturbed(|| self.room.notify_one());
        }
        next
    }
}

/// Leaves a seat, whatever its type of event.
pub(super) trait Leave: Send + Sync {
    fn leave(self: Arc<Self>);
}

impl<E: Send + Sync + 'static> Leave for Seat<E> {
    fn leave(self: Arc<Self>) {
        if let Some(bus) = self.bus.upgrade() {
            bus.leave(&self);
        }
        let waited = self.line().queue.abandon();
        self.wake();
        undisturbed(|| self.room.notify_one());
        // At last: an event that panics when it is dropped is nobody else's affair.
        drop(waited);
    }
}

/// The events of one type that were published since [`subscribe`](super::EventBus::subscribe): a [`Stream`].
///
/// They come in the order in which they were published. An item is an error where the subscriber was too slow, and says what that
/// cost: see [`Lag`]. The stream ends after its backlog when the bus is closed, or the last clone of it is gone.
///
/// A publisher that [waits until its event is handled](super::EventBus::publish_and_join) takes it for handled when
/// this subscriber asks for the next one, or is dropped.
///
/// Dropping it unsubscribes, and touches no other subscriber.
#[must_use = "a subscription that is dropped hears nothing"]
pub struct Subscription<E: Send + Sync + 'static> {
    pub(super) seat: Arc<Seat<E>>,
    /// Of the event that was taken last.
    receipt: Option<Receipt>,
}

impl<E: Send + Sync + 'static> Subscription<E> {
    pub(super) fn new(seat: Arc<Seat<E>>) -> Self {
        Self { seat, receipt: None }
    }

    /// Tells the publisher, if it waits, that the event which was taken last was not handled.
    pub(super) fn failed(&self, error: &str) {
        if let Some(receipt) = &self.receipt {
            receipt.failed(error);
        }
    }
}

impl<E: Clone + Send + Sync + 'static> Subscription<E> {
    /// The next event; `None` when there will be none. The same as with a `StreamExt`, for those who have none.
    ///
    /// Dropped before it answers, it takes nothing away.
    ///
    /// # Errors
    ///
    /// If the subscriber was too slow.
    pub async fn next(&mut self) -> Option<Result<E, Lagged>> {
        poll_fn(|cx| Pin::new(&mut *self).poll_next(cx)).await
    }
}

impl<E: Clone + Send + Sync + 'static> Stream for Subscription<E> {
    type Item = Result<E, Lagged>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.receipt = None;
        let next = match self.seat.next(None) {
            Next::Nothing => self.seat.next(Some(cx.waker().clone())),
            next => next,
        };
        match next {
            // The copy is made here, on the time of this subscriber; the last one gets the event itself.
            Next::LayerEvent(Item { event, receipt }) => {
                self.receipt = receipt;
                Poll::Ready(Some(Ok(Arc::unwrap_or_clone(event))))
            }
            Next::Lagged(lagged) => Poll::Ready(Some(Err(lagged))),
            Next::End => Poll::Ready(None),
            Next::Nothing => Poll::Pending,
        }
    }
}

impl<E: Send + Sync + 'static> Drop for Subscription<E> {
    fn drop(&mut self) {
        Arc::clone(&self.seat).leave();
    }
}

impl<E: Send + Sync + 'static> fmt::Debug for Subscription<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subscription").field("to", &type_name::<E>()).finish_non_exhaustive()
    }
}
