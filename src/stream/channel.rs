//! Streams that somebody writes to: a channel, and a generator that lives inside of its stream.

use std::{
    error::Error,
    fmt,
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

use futures_core::Stream;
use pin_project_lite::pin_project;
use tokio::sync::mpsc;

/// A channel that holds at most `capacity` items, whose receiving end is a stream.
///
/// It is tokio's, with a stream at its end: it has a bound, so a producer that is too quick waits. The stream ends when all senders
/// are dropped and the backlog is read.
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
///         sender.send(number).await?; // waits while two are not read yet; an error when nobody will read it
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
    (Sender { sender }, Receiver { receiver })
}

/// The end of a [`channel`] or of a [`generate`]d stream that is written to. A clone writes to the same.
pub struct Sender<T> {
    sender: mpsc::Sender<T>,
}

impl<T> Sender<T> {
    /// Waits until there is room, and puts an item there. Senders get their turns in order.
    ///
    /// # Errors
    ///
    /// If the stream was dropped: the item comes back.
    ///
    /// # Cancellation
    ///
    /// If this is dropped before it has ended, the item was not sent, and its turn is lost.
    pub async fn send(&self, item: T) -> Result<(), Closed<T>> {
        self.sender.send(item).await.map_err(|mpsc::error::SendError(item)| Closed { item })
    }

    /// Waits until the stream was dropped: for a producer that waits for something else meanwhile.
    pub async fn closed(&self) {
        self.sender.closed().await;
    }
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        Self { sender: self.sender.clone() }
    }
}

/// The stream was dropped: nobody will read this.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Closed<T> {
    /// What was to be sent.
    pub item: T,
}

impl<T> fmt::Display for Closed<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the stream was dropped, nobody reads what is sent to it")
    }
}

impl<T> fmt::Debug for Closed<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Closed").finish_non_exhaustive()
    }
}

impl<T> Error for Closed<T> {}

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

/// A stream of what `producer` sends: an async generator.
///
/// The producer is part of the stream. It runs while the stream is polled and has nothing to give, so it is never more than one item
/// ahead of who reads; it is dropped with the stream, with all that it holds; and the stream ends when it has. A panic of it
/// is one of the stream.
///
/// ```
/// use tokio_stream::StreamExt;
/// use ziggurat::stream::generate;
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() {
/// let lines = generate(|lines| async move {
///     for number in 0..3 {
///         tokio::time::sleep(std::time::Duration::from_secs(1)).await;
///         if lines.send(format!("line {number}")).await.is_err() {
///             break;
///         }
///     }
/// });
/// assert_eq!(lines.collect::<Vec<_>>().await, ["line 0", "line 1", "line 2"]);
/// # }
/// ```
#[doc(alias = "async_stream")]
#[doc(alias = "yield")]
pub fn generate<T, F, Fut>(producer: F) -> Generate<T, Fut>
where
    F: FnOnce(Sender<T>) -> Fut,
    Fut: Future<Output = ()>,
{
    let (sender, receiver) = channel(1);
    Generate { producer: Some(producer(sender)), receiver }
}

pin_project! {
    /// The stream of [`generate`].
    #[must_use = "streams do nothing unless polled"]
    pub struct Generate<T, Fut> {
        // None: it has ended. Dropped before the receiver, so that nothing it sends meanwhile is refused.
        #[pin]
        producer: Option<Fut>,
        receiver: Receiver<T>,
    }
}

impl<T, Fut: Future<Output = ()>> Stream for Generate<T, Fut> {
    type Item = T;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<T>> {
        let mut this = self.project();
        let mut receiver = Pin::new(this.receiver);
        if let Poll::Ready(Some(item)) = receiver.as_mut().poll_next(cx) {
            return Poll::Ready(Some(item));
        }
        // Also one that has dropped its sender is run to its end: it may have to clean up.
        if let Some(producer) = this.producer.as_mut().as_pin_mut() {
            if producer.poll(cx).is_pending() {
                return match receiver.poll_next(cx) {
                    Poll::Ready(Some(item)) => Poll::Ready(Some(item)),
                    _ => Poll::Pending,
                };
            }
            this.producer.set(None);
        }
        receiver.poll_next(cx)
    }
}

impl<T> fmt::Debug for Sender<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sender").field("free", &self.sender.capacity()).finish_non_exhaustive()
    }
}

impl<T> fmt::Debug for Receiver<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Receiver").field("waiting", &self.receiver.len()).finish_non_exhaustive()
    }
}

impl<T, Fut> fmt::Debug for Generate<T, Fut> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Generate")
            .field("producing", &self.producer.is_some())
            .field("receiver", &self.receiver)
            .finish()
    }
}
