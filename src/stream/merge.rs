//! Merges two streams.

use std::{
    any::type_name,
    pin::Pin,
    task::{Context, Poll},
};

use futures_core::Stream;
use pin_project_lite::pin_project;

use crate::debug::impl_debug;

/// Merges two streams: returns the items of both as they come, until both have ended.
///
/// Merging is fair: while both streams have items, they take turns.
///
/// ```
/// use tokio_stream::{StreamExt, iter};
/// use ziggurat::stream::merge;
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// let both: Vec<_> = merge(iter([1, 3, 5, 7]), iter([2, 4])).collect().await;
/// assert_eq!(both, [1, 2, 3, 4, 5, 7]);
/// # }
/// ```
#[doc(alias = "select")]
pub fn merge<A, B>(left: A, right: B) -> Merge<A, B>
where
    A: Stream,
    B: Stream<Item = A::Item>,
{
    Merge { left: Some(left), right: Some(right), right_first: false, until_either_ends: false }
}

pin_project! {
    /// The stream of [`merge`].
    #[must_use = "streams do nothing unless polled"]
    pub struct Merge<A, B> {
        // `None` once it has ended.
        #[pin]
        left: Option<A>,
        #[pin]
        right: Option<B>,
        right_first: bool,
        until_either_ends: bool,
    }
}

impl<A, B> Merge<A, B> {
    /// Ends the merged stream as soon as one of the two ends. The other is then dropped, with its remaining items.
    ///
    /// A stream has ended when a poll says so, or earlier when its [`size_hint`](Stream::size_hint) does, as that of an
    /// empty stream. The hint is read before each item.
    ///
    /// ```
    /// use tokio_stream::{StreamExt, iter, pending};
    /// use ziggurat::stream::merge;
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() {
    /// let some: Vec<_> = merge(iter([1, 2]), pending()).until_either_ends().collect().await;
    /// assert_eq!(some, [1, 2]);
    /// # }
    /// ```
    pub fn until_either_ends(mut self) -> Self {
        self.until_either_ends = true;
        self
    }
}

/// Polls one of the two, and drops it if it has ended. `None` if it has no item now, or has ended.
fn poll_one<S: Stream>(mut stream: Pin<&mut Option<S>>, cx: &mut Context<'_>) -> Option<S::Item> {
    match stream.as_mut().as_pin_mut()?.poll_next(cx) {
        Poll::Ready(Some(item)) => Some(item),
        Poll::Ready(None) => {
            stream.set(None);
            None
        }
        Poll::Pending => None,
    }
}

impl<A, B> Stream for Merge<A, B>
where
    A: Stream,
    B: Stream<Item = A::Item>,
{
    type Item = A::Item;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<A::Item>> {
        let mut this = self.project();
        if *this.until_either_ends && [hint(&this.left).1, hint(&this.right).1].contains(&Some(0)) {
            this.left.set(None);
            this.right.set(None);
        }
        for _ in 0..2 {
            let right = *this.right_first;
            let item = if right { poll_one(this.right.as_mut(), cx) } else { poll_one(this.left.as_mut(), cx) };
            *this.right_first = !right;
            if item.is_some() {
                return Poll::Ready(item);
            }
            if *this.until_either_ends && (this.left.is_none() || this.right.is_none()) {
                this.left.set(None);
                this.right.set(None);
            }
        }
        if this.left.is_none() && this.right.is_none() { Poll::Ready(None) } else { Poll::Pending }
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let (left, right) = (hint(&self.left), hint(&self.right));
        let most = left.1.zip(right.1).and_then(|(left, right)| left.checked_add(right));
        (if self.until_either_ends { 0 } else { left.0.saturating_add(right.0) }, most)
    }
}

fn hint<S: Stream>(stream: &Option<S>) -> (usize, Option<usize>) {
    stream.as_ref().map_or((0, Some(0)), S::size_hint)
}

impl_debug!(Merge<A, B> {
    left = |this| this.left.as_ref().map(|_| type_name::<A>()),
    right = |this| this.right.as_ref().map(|_| type_name::<B>()),
    until_either_ends,
});
