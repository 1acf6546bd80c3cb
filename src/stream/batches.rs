//! Batches: lists of the items of a stream.

use std::{
    convert::Infallible,
    future::Future,
    marker::PhantomData,
    mem,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use futures_core::Stream;
use pin_project_lite::pin_project;

use crate::{
    clock::{self, Sleep},
    debug::impl_debug,
};

/// The number of items taken without a pause, before checking the timer and yielding to the executor.
const UNBROKEN: usize = 256;

/// Items of any kind, in batches of type `Vec<Item>`.
#[derive(Debug)]
#[doc(hidden)] // machinery that is public only because it is part of a public type
pub struct Plain;

/// Items that are results, in batches of type `Result<Vec<T>, E>`.
#[derive(Debug)]
#[doc(hidden)] // machinery that is public only because it is part of a public type
pub struct Fallible;

/// How items become batches: [`Plain`] or [`Fallible`].
#[doc(hidden)] // machinery that is public only because it is part of a public type
pub trait Kind<Item> {
    /// The type of the values in a batch.
    type Value;
    /// The error that ends a batch before it is full, and comes after it.
    type Error;
    /// The item type of the stream of batches.
    type Batch;

    /// Whether all batches but the last are full.
    #[doc(hidden)]
    const FULL: bool;

    #[doc(hidden)]
    fn sort(item: Item) -> Result<Self::Value, Self::Error>;

    #[doc(hidden)]
    fn batch(batch: Result<Vec<Self::Value>, Self::Error>) -> Self::Batch;
}

impl<Item> Kind<Item> for Plain {
    type Value = Item;
    type Error = Infallible;
    type Batch = Vec<Item>;

    const FULL: bool = true;

    fn sort(item: Item) -> Result<Item, Infallible> {
        Ok(item)
    }

    fn batch(batch: Result<Vec<Item>, Infallible>) -> Vec<Item> {
        match batch {
            Ok(batch) => batch,
            Err(never) => match never {},
        }
    }
}

impl<T, E> Kind<Result<T, E>> for Fallible {
    type Value = T;
    type Error = E;
    type Batch = Result<Vec<T>, E>;

    const FULL: bool = false;

    fn sort(item: Result<T, E>) -> Result<T, E> {
        item
    }

    fn batch(batch: Result<Vec<T>, E>) -> Result<Vec<T>, E> {
        batch
    }
}

pin_project! {
    /// The stream of [`batches`](super::StreamExt::batches) and its variants.
    #[must_use = "streams do nothing unless polled"]
    pub struct Batches<S, K>
    where
        S: Stream,
        K: Kind<S::Item>,
    {
        // `None` once it has ended. Boxed, so that a reader need not pin the stream.
        source: Option<Pin<Box<S>>>,
        size: usize,
        within: Option<Duration>,
        batch: Vec<K::Value>,
        // Comes after the batch.
        error: Option<K::Error>,
        // Runs while a batch is begun and not full. Boxed for the same reason.
        timer: Option<Pin<Box<Sleep>>>,
        // The length of the previous batch, so that a list rarely has to grow.
        capacity: usize,
        kind: PhantomData<fn() -> K>,
    }
}

impl<S: Stream, K: Kind<S::Item>> Batches<S, K> {
    #[track_caller]
    pub(super) fn new(source: S, size: usize, within: Option<Duration>) -> Self {
        assert!(size > 0, "size must be at least 1, not 0");
        let (batch, kind) = (Vec::new(), PhantomData);
        Self { source: Some(Box::pin(source)), size, within, batch, error: None, timer: None, capacity: 0, kind }
    }

    /// Takes items until the batch is complete or the source has ended.
    fn poll_fill(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.project();
        for _ in 0..UNBROKEN {
            let Some(source) = this.source.as_mut() else { return Poll::Ready(()) };
            match source.as_mut().poll_next(cx) {
                Poll::Ready(Some(item)) => match K::sort(item) {
                    Ok(value) => {
                        if this.batch.is_empty() {
                            this.batch.reserve(*this.capacity);
                            let within = this.within.filter(|within| !within.is_zero());
                            let end = within.and_then(|within| clock::now().checked_add(within));
                            *this.timer = end.map(|end| Box::pin(clock::sleep_until(end)));
                        }
                        this.batch.push(value);
                        if this.batch.len() == *this.size {
                            return Poll::Ready(());
                        }
                    }
                    Err(error) => {
                        *this.error = Some(error);
                        return Poll::Ready(());
                    }
                },
                Poll::Ready(None) => *this.source = None,
                Poll::Pending => {
                    // With a limit of zero, the batch is complete here and needs no timer.
                    if *this.within == Some(Duration::ZERO) && !this.batch.is_empty() {
                        return Poll::Ready(());
                    }
                    return this.timer.as_mut().map_or(Poll::Pending, |timer| timer.as_mut().poll(cx));
                }
            }
        }
        cx.waker().wake_by_ref();
        this.timer.as_mut().map_or(Poll::Pending, |timer| timer.as_mut().poll(cx))
    }
}

impl<S: Stream, K: Kind<S::Item>> Stream for Batches<S, K> {
    type Item = K::Batch;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<K::Batch>> {
        if self.error.is_none() {
            ready!(self.as_mut().poll_fill(cx));
        }
        let this = self.project();
        *this.timer = None;
        if this.batch.is_empty() {
            return Poll::Ready(this.error.take().map(|error| K::batch(Err(error))));
        }
        *this.capacity = this.batch.len();
        Poll::Ready(Some(K::batch(Ok(mem::take(this.batch)))))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let (least, most) = self.source.as_ref().map_or((0, Some(0)), Stream::size_hint);
        let held = self.batch.len();
        let most = most.and_then(|most| most.checked_add(held));
        if self.within.is_some() || !K::FULL {
            return (0, most.and_then(|most| most.checked_add(1)));
        }
        (least.saturating_add(held).div_ceil(self.size), most.map(|most| most.div_ceil(self.size)))
    }
}

impl_debug!(Batches<S: Stream, K: Kind<S::Item>> { source: S, size, within, begun = |this| this.batch.len() });
