//! The results of a run as a stream: as they come, or in source order.

use std::{
    collections::VecDeque,
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
};

use futures_core::Stream;
use pin_project_lite::pin_project;

use super::{
    engine::Engine,
    error::ItemError,
    progress::{Progress, Summary},
};

use crate::debug::impl_debug;

pin_project! {
    /// The results of a run as they come: the stream of [`unordered`](super::Process::unordered).
    #[must_use = "streams do nothing unless polled"]
    pub struct Unordered<S, F, Fut, P> {
        #[pin]
        engine: Engine<S, F, Fut, P>,
    }
}

impl<S: Stream, F, Fut, P> Unordered<S, F, Fut, P> {
    pub(super) fn new(engine: Engine<S, F, Fut, P>) -> Self {
        Self { engine }
    }

    /// The counts of all items that have ended so far, and the time since the first poll. Reads the clock.
    #[must_use]
    pub fn summary(&self) -> Summary {
        self.engine.summary()
    }
}

impl<S, F, Fut, P, T, E> Stream for Unordered<S, F, Fut, P>
where
    S: Stream,
    F: FnMut(S::Item) -> Fut,
    Fut: Future<Output = Result<T, E>>,
    P: FnMut(&Progress),
{
    type Item = Result<T, ItemError<E>>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let ended = ready!(self.project().engine.poll_ended(usize::MAX, cx));
        Poll::Ready(ended.map(|(_, result)| result))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.engine.size_hint(0)
    }
}

pin_project! {
    /// The results of a run in source order: the stream of [`ordered`](super::Process::ordered).
    #[must_use = "streams do nothing unless polled"]
    pub struct Ordered<S, F, Fut, P, T, E> {
        #[pin]
        engine: Engine<S, F, Fut, P>,
        // The index of the next result to return, and the results from there on. `None`: not there yet.
        next: usize,
        waiting: VecDeque<Option<Result<T, ItemError<E>>>>,
    }
}

impl<S: Stream, F, Fut, P, T, E> Ordered<S, F, Fut, P, T, E> {
    pub(super) fn new(engine: Engine<S, F, Fut, P>) -> Self {
        Self { engine, next: 0, waiting: VecDeque::new() }
    }

    /// The counts of all items that have ended so far, returned or not, and the time since the first poll. Reads the
    /// clock.
    #[must_use]
    pub fn summary(&self) -> Summary {
        self.engine.summary()
    }
}

impl<S, F, Fut, P, T, E> Stream for Ordered<S, F, Fut, P, T, E>
where
    S: Stream,
    F: FnMut(S::Item) -> Fut,
    Fut: Future<Output = Result<T, E>>,
    P: FnMut(&Progress),
{
    type Item = Result<T, ItemError<E>>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let mut this = self.project();
        loop {
            if let Some(Some(_)) = this.waiting.front() {
                *this.next += 1;
                return Poll::Ready(this.waiting.pop_front().flatten());
            }
            // An item that has ended but waits behind an earlier one counts as in flight, which bounds the held
            // results.
            let bound = this.next.saturating_add(this.engine.settings().max_concurrency);
            let Some((index, result)) = ready!(this.engine.as_mut().poll_ended(bound, cx)) else {
                return Poll::Ready(None);
            };
            let place = index - *this.next;
            if this.waiting.len() <= place {
                this.waiting.resize_with(place + 1, || None);
            }
            if let Some(slot) = this.waiting.get_mut(place) {
                *slot = Some(result);
            }
        }
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.engine.size_hint(self.waiting.iter().flatten().count())
    }
}

impl_debug!(Unordered<S: Stream, F, Fut, P> { engine });

impl_debug!(Ordered<S: Stream, F, Fut, P, T, E> { engine, next });
