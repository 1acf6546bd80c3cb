//! Streams that are written to: the sender, and the channel.

use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use futures_core::Stream;
use tokio::sync::mpsc;

use super::{closed::Closed, handover::Handover};

use crate::debug::impl_debug;

/// Creates a channel of `capacity` items, whose receiver is a stream.
///
/// It wraps tokio's bounded channel, so a producer that is too fast waits. The stream ends when all senders are dropped
/// and the backlog is read.
///
/// # Panics
///
/// If `capacity` is zero, or more than tokio's semaphores can count (`usize::MAX >> 3`).
///
/// ```
/// use tokio_stream::StreamExt;
/// use ziggurat::stream::{Closed, channel};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// let (sender, mut stream) = channel(2);
/// let producer = tokio::spawn(async move {
///     for number in 1.. {
///         sender.send(number).await?; // waits while two items are unread; fails once the stream is dropped
///     }
///     Ok::<_, Closed<u32>>(())
/// });
/// assert_eq!(stream.next().await, Some(1));
/// assert_eq!(stream.next().await, Some(2));
/// drop(stream);
/// assert!(producer.await.unwrap().is_err());
/// # }
/// ```
#[track_caller]
pub fn channel<T>(capacity: usize) -> (Sender<T>, Receiver<T>) {
    assert!(capacity > 0, "capacity must be at least 1, not 0");
    let (sender, receiver) = mpsc::channel(capacity);
    (Sender { to: To::Channel(sender) }, Receiver { receiver })
}

/// The sender of a [`channel`] or of a [generated](super::generate()) stream. A clone sends to the same stream.
pub struct Sender<T> {
    to: To<T>,
}

enum To<T> {
    Channel(mpsc::Sender<T>),
    Reader(Arc<Handover<T>>),
}

impl<T> Sender<T> {
    pub(super) fn to(handover: &Arc<Handover<T>>) -> Self {
        Self { to: To::Reader(Arc::clone(handover)) }
    }

    /// Sends an item to the stream.
    ///
    /// A [`channel`] accepts the item once it has room, a [generated](super::generate()) stream once its reader takes
    /// it. Waiting senders are served in order.
    ///
    /// # Errors
    ///
    /// If the stream was dropped, or its producer has ended. The error returns the item.
    ///
    /// # Cancellation safety
    ///
    /// If the future is dropped before it completes, it loses its place and the item is not sent. There is one
    /// exception: the reader of a generated stream may have taken the item since the last poll of the future.
    pub async fn send(&self, item: T) -> Result<(), Closed<T>> {
        match &self.to {
            To::Channel(sender) => sender.send(item).await.map_err(|mpsc::error::SendError(item)| Closed { item }),
            To::Reader(handover) => handover.offer(item).await,
        }
    }

    /// Waits until the stream is dropped or its producer has ended, after which no item can be sent.
    ///
    /// A producer can use it to stop while it waits for anything other than a `send`.
    pub async fn closed(&self) {
        match &self.to {
            To::Channel(sender) => sender.closed().await,
            To::Reader(handover) => handover.closed().await,
        }
    }
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        let to = match &self.to {
            To::Channel(sender) => To::Channel(sender.clone()),
            To::Reader(handover) => To::Reader(Arc::clone(handover)),
        };
        Self { to }
    }
}

/// The stream of a [`channel`].
#[must_use = "streams do nothing unless polled"]
pub struct Receiver<T> {
    receiver: mpsc::Receiver<T>,
}

impl<T> Stream for Receiver<T> {
    type Item = T;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<T>> {
        self.receiver.poll_recv(cx)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.receiver.len(), None)
    }
}

impl<T> fmt::Debug for Sender<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut sender = f.debug_struct("Sender");
        match &self.to {
            To::Channel(channel) => sender.field("free", &channel.capacity()),
            To::Reader(handover) => sender.field("waiting", &handover.len()),
        };
        sender.finish_non_exhaustive()
    }
}

impl_debug!(Receiver<T> { waiting = |this| this.receiver.len(), .. });
