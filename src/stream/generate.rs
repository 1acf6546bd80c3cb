//! Async generators: a producer that lives inside its stream.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

use futures_core::Stream;
use pin_project_lite::pin_project;

use super::{
    Sender,
    handover::{Handover, Reader},
};

use crate::debug::impl_debug;

/// Creates a stream of the items that `producer` sends: an async generator.
///
/// The producer is part of the stream and never ahead of the reader. It runs while the stream is polled and has no
/// item, and its [`send`](Sender::send) completes when the reader asks for the next item. It is dropped with the
/// stream, with everything that it holds.
///
/// The stream ends when the producer has ended, after the items that were offered by then. Clones of the sender that
/// are still alive get an error from then on. A panic of the producer propagates to the reader.
///
/// The stream is `Unpin`, at the cost of one allocation for the producer. Sending takes an uncontended lock and does
/// not allocate. For a producer that can fail, see [`try_generate`].
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
    Generate::new(producer)
}

/// Creates a stream of the items that `producer` sends, and of the error that it may end with.
///
/// It behaves as [`generate`], but the producer can use `?`. Each item comes as `Ok`. An error of the producer is the
/// last item of the stream.
///
/// The producer is dropped with its stream, so inside the stream it never sees [`Closed`](super::Closed). If its error
/// type is not `From<Closed<T>>`, use `.await.ok()` on a `send`.
///
/// ```
/// use tokio_stream::StreamExt;
/// use ziggurat::stream::{Closed, try_generate};
///
/// #[derive(Debug, PartialEq)]
/// struct Unreadable(String);
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// let numbers = try_generate(|numbers| async move {
///     for line in ["1", "2", "three", "4"] {
///         let number: u32 = line.parse().map_err(|_| Unreadable(line.to_owned()))?;
///         numbers.send(number).await.ok();
///     }
///     Ok::<_, Unreadable>(())
/// });
/// assert_eq!(numbers.collect::<Vec<_>>().await, [Ok(1), Ok(2), Err(Unreadable("three".to_owned()))]);
/// # }
/// ```
#[doc(alias = "async_try_stream")]
pub fn try_generate<T, E, F, Fut>(producer: F) -> Generate<T, Fut>
where
    F: FnOnce(Sender<T>) -> Fut,
    Fut: Future<Output = Result<(), E>>,
{
    Generate::new(producer)
}

/// The output of a producer: `()`, or a `Result<(), E>`.
#[doc(hidden)] // `()` or `Result`, as `generate` and `try_generate` say
pub trait Produced<T> {
    /// The item type of the stream: `T`, or a `Result<T, E>`.
    type Item;

    #[doc(hidden)]
    fn sent(item: T) -> Self::Item;

    /// The item that comes after all that were sent.
    #[doc(hidden)]
    fn last(self) -> Option<Self::Item>;
}

impl<T> Produced<T> for () {
    type Item = T;

    fn sent(item: T) -> T {
        item
    }

    fn last(self) -> Option<T> {
        None
    }
}

impl<T, E> Produced<T> for Result<(), E> {
    type Item = Result<T, E>;

    fn sent(item: T) -> Self::Item {
        Ok(item)
    }

    fn last(self) -> Option<Self::Item> {
        self.err().map(Err)
    }
}

pin_project! {
    /// The stream of [`generate`] and [`try_generate`].
    #[must_use = "streams do nothing unless polled"]
    pub struct Generate<T, Fut>
    where
        Fut: Future,
    {
        // `None` once it has ended. Dropped before the reader, so that items which it sends while it is dropped are not
        // refused. Boxed, so that a reader need not pin the stream.
        producer: Option<Pin<Box<Fut>>>,
        ending: Option<Fut::Output>,
        reader: Reader<T>,
        // Whether the last item was taken without a poll of the producer.
        skipped: bool,
    }
}

impl<T, Fut: Future> Generate<T, Fut> {
    fn new(producer: impl FnOnce(Sender<T>) -> Fut) -> Self {
        let handover = Handover::new();
        let reader = Reader(handover);
        Self { producer: Some(Box::pin(producer(Sender::to(&reader.0)))), ending: None, reader, skipped: false }
    }
}

impl<T, Fut> Stream for Generate<T, Fut>
where
    Fut: Future<Output: Produced<T>>,
{
    type Item = <Fut::Output as Produced<T>>::Item;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.project();
        // A waiting item is taken before the producer goes on, but not twice in a row: other senders may never stop.
        if !*this.skipped
            && let Some(item) = this.reader.take()
        {
            *this.skipped = true;
            return Poll::Ready(Some(Fut::Output::sent(item)));
        }
        *this.skipped = false;
        // A producer that has dropped its sender is run to its end too: it may have to clean up.
        let ended = this.producer.as_mut().map(|producer| producer.as_mut().poll(cx));
        if let Some(Poll::Ready(ending)) = ended {
            *this.producer = None;
            this.reader.end();
            *this.ending = Some(ending);
        }
        let item = match this.producer {
            Some(_) => this.reader.take_or_wait(cx),
            None => this.reader.take(),
        };
        match item {
            Some(item) => Poll::Ready(Some(Fut::Output::sent(item))),
            None if this.producer.is_some() => Poll::Pending,
            None => Poll::Ready(this.ending.take().and_then(Produced::last)),
        }
    }
}

impl_debug!(Generate<T, Fut: Future> {
    producing = |this| this.producer.is_some(),
    waiting = |this| this.reader.0.len(),
    ..
});
