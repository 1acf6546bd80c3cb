//! Sources of items: iterators and streams.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use futures_core::Stream;

use crate::debug::impl_debug;

/// A source of items: anything that can be iterated over, or a [`Stream`].
///
/// `Kind` is [`Iterated`] or [`Streamed`] and is inferred. A type that is both has to be converted to
/// one of them first, for example with `.into_iter()` in a block of its own.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a source of items: it is neither an iterator nor a `Stream`",
    note = "pass a collection, an iterator, or a `futures_core::Stream`"
)]
pub trait Source<Kind> {
    /// The type of its items.
    type Item;
    /// The stream that it converts to.
    type Stream: Stream<Item = Self::Item>;

    /// Converts it to a stream.
    fn into_stream(self) -> Self::Stream;
}

/// A [`Source`] that can be iterated over.
#[derive(Debug, Clone, Copy)]
#[doc(hidden)] // inferred
pub struct Iterated;

/// A [`Source`] that is a stream.
#[derive(Debug, Clone, Copy)]
#[doc(hidden)] // inferred
pub struct Streamed;

#[diagnostic::do_not_recommend]
impl<I: IntoIterator> Source<Iterated> for I {
    type Item = I::Item;
    type Stream = Items<I::IntoIter>;

    fn into_stream(self) -> Self::Stream {
        Items { items: self.into_iter() }
    }
}

#[diagnostic::do_not_recommend]
impl<S: Stream> Source<Streamed> for S {
    type Item = S::Item;
    type Stream = S;

    fn into_stream(self) -> S {
        self
    }
}

/// The stream of an iterator's items, which are always ready.
#[derive(Clone)]
#[doc(hidden)] // machinery that is public only because it is part of a public type
pub struct Items<I> {
    items: I,
}

// The iterator is never pinned.
impl<I> Unpin for Items<I> {}

impl<I: Iterator> Stream for Items<I> {
    type Item = I::Item;

    fn poll_next(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<I::Item>> {
        Poll::Ready(self.items.next())
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.items.size_hint()
    }
}

impl_debug!(Items<I> { items: I });
