//! The receiving end of a subscription: a stream of events.

use std::{
    future::poll_fn,
    pin::Pin,
    sync::{Arc, Weak, atomic::AtomicUsize},
    task::{Context, Poll, Waker},
};

use futures_core::Stream;
use tokio::sync::Notify;

use super::{
    Inner,
    joined::{Item, Receipt},
    queue::{Lag, Lagged, Next, Queue},
};
use crate::{caught::undisturbed, debug::impl_debug, mutex::Mutex};

/// A subscriber's place in a topic.
pub(super) struct Seat<E> {
    pub(super) line: Mutex<Line<E>>,
    /// Notified when a publisher that waits for room may find some.
    room: Arc<Notify>,
    bus: Weak<Inner>,
    /// Its index in the topic, so that leaving needs no search. Changed under the topic's lock.
    pub(super) place: AtomicUsize,
    /// Whether it takes no events from other processes.
    pub(super) is_relay: bool,
}

pub(super) struct Line<E> {
    pub(super) queue: Queue<Item<E>>,
    pub(super) waiting: Option<Waker>,
}

impl<E> Seat<E> {
    pub(super) fn new(capacity: usize, lag: Lag, room: Arc<Notify>, bus: Weak<Inner>, is_relay: bool) -> Arc<Self> {
        let line = Mutex::new(Line { queue: Queue::new(capacity, lag), waiting: None });
        Arc::new(Self { line, room, bus, place: AtomicUsize::new(0), is_relay })
    }

    pub(super) fn wake(&self) {
        let waiting = self.line.lock().waiting.take();
        if let Some(waker) = waiting {
            undisturbed(|| waker.wake());
        }
    }

    /// Returns the next event. If there is none, stores `waker`.
    fn next(&self, waker: Option<Waker>) -> Next<Item<E>> {
        let mut line = self.line.lock();
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
        let waited = self.line.lock().queue.abandon();
        self.wake();
        undisturbed(|| self.room.notify_one());
        // Last, because dropping an event may panic, which must not affect other subscribers.
        drop(waited);
    }
}

/// A [`Stream`] of the events of one type, from [`subscribe`](super::EventBus::subscribe) on.
///
/// Events come in the order in which they were published. An item is an error where the subscriber was too slow and
/// missed events: see [`Lag`]. When the bus is closed, or its last clone is dropped, the stream ends after its backlog.
///
/// To a publisher that [waits until its event is handled](super::EventBus::publish_and_join), this subscriber has
/// handled the event when it asks for the next one, or when it is dropped.
///
/// Dropping a subscription unsubscribes it and affects no other subscriber.
#[must_use = "a subscription that is dropped receives nothing"]
pub struct Subscription<E: Send + Sync + 'static> {
    pub(super) seat: Arc<Seat<E>>,
    /// Of the event that was taken last.
    receipt: Option<Receipt>,
}

impl<E: Send + Sync + 'static> Subscription<E> {
    pub(super) fn new(seat: Arc<Seat<E>>) -> Self {
        Self { seat, receipt: None }
    }

    /// Reports to a publisher that waits that handling the event taken last has failed.
    pub(super) fn failed(&self, error: &str) {
        if let Some(receipt) = &self.receipt {
            receipt.failed(error);
        }
    }
}

#[cfg(feature = "redis")]
impl<E: Send + Sync + 'static> Subscription<E> {
    /// Ends the stream after its backlog.
    pub(crate) fn end(&self) {
        self.seat.line.lock().queue.close();
    }
}

impl<E: Clone + Send + Sync + 'static> Subscription<E> {
    /// Returns the next event, or `None` at the end of the stream. It needs no `StreamExt`.
    ///
    /// Dropping the future before it is ready loses no event.
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
            // The subscriber makes the copy, in its own time. The last one gets the event itself.
            Next::LayerEvent(Item { event, receipt, .. }) => {
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

impl_debug!(Subscription<E> where [E: Send + Sync + 'static] { to: E, .. });
