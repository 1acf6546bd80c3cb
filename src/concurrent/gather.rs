//! All results of a run: the ways to gather them, and the future that waits for them.

use std::{
    fmt,
    future::Future,
    marker::PhantomData,
    mem,
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

/// How the results of a run are gathered: [`StopOnError`] or [`ContinueOnError`], optionally [`Summarized`].
#[doc(hidden)] // implemented by `StopOnError`, `ContinueOnError` and `Summarized` alone
pub trait Gather<T, E> {
    /// The output of the run.
    type Output;

    /// Takes the result of an item. `Some` ends the run with that output.
    #[doc(hidden)]
    fn add(
        &mut self,
        index: usize,
        result: Result<T, ItemError<E>>,
        summary: &impl Fn() -> Summary,
    ) -> Option<Self::Output>;

    /// Called when all items have ended.
    #[doc(hidden)]
    fn finish(&mut self, summary: &impl Fn() -> Summary) -> Self::Output;
}

/// Ends the run at the first failure and returns its error. Otherwise returns all values in source order. The default.
pub struct StopOnError<T, E> {
    values: Slots<T>,
    error: PhantomData<fn() -> E>,
}

impl<T, E> Default for StopOnError<T, E> {
    fn default() -> Self {
        Self { values: Slots::default(), error: PhantomData }
    }
}

impl<T, E> Gather<T, E> for StopOnError<T, E> {
    type Output = Result<Vec<T>, ItemError<E>>;

    fn add(&mut self, index: usize, result: Result<T, ItemError<E>>, _: &impl Fn() -> Summary) -> Option<Self::Output> {
        match result {
            Ok(value) => {
                put(&mut self.values, index, value);
                None
            }
            Err(error) => Some(Err(error)),
        }
    }

    fn finish(&mut self, _: &impl Fn() -> Summary) -> Self::Output {
        Ok(take(&mut self.values))
    }
}

/// Processes every item and returns each result in its place.
pub struct ContinueOnError<T, E> {
    results: Slots<Result<T, ItemError<E>>>,
}

impl<T, E> Default for ContinueOnError<T, E> {
    fn default() -> Self {
        Self { results: Slots::default() }
    }
}

impl<T, E> Gather<T, E> for ContinueOnError<T, E> {
    type Output = Vec<Result<T, ItemError<E>>>;

    fn add(&mut self, index: usize, result: Result<T, ItemError<E>>, _: &impl Fn() -> Summary) -> Option<Self::Output> {
        put(&mut self.results, index, result);
        None
    }

    fn finish(&mut self, _: &impl Fn() -> Summary) -> Self::Output {
        take(&mut self.results)
    }
}

/// Adds a [`Summary`] to the output of `G`.
pub struct Summarized<G> {
    pub(super) inner: G,
}

impl<G: Gather<T, E>, T, E> Gather<T, E> for Summarized<G> {
    type Output = (G::Output, Summary);

    fn add(
        &mut self,
        index: usize,
        result: Result<T, ItemError<E>>,
        summary: &impl Fn() -> Summary,
    ) -> Option<Self::Output> {
        self.inner.add(index, result, summary).map(|output| (output, summary()))
    }

    fn finish(&mut self, summary: &impl Fn() -> Summary) -> Self::Output {
        (self.inner.finish(summary), summary())
    }
}

/// Values by index. Those of items in flight are still missing.
type Slots<T> = Vec<Option<T>>;

fn put<T>(slots: &mut Slots<T>, index: usize, value: T) {
    if slots.len() <= index {
        slots.resize_with(index + 1, || None);
    }
    if let Some(slot) = slots.get_mut(index) {
        *slot = Some(value);
    }
}

fn take<T>(slots: &mut Slots<T>) -> Vec<T> {
    mem::take(slots).into_iter().flatten().collect()
}

impl_debug!(StopOnError<T, E> { values: Vec<T> });

impl_debug!(ContinueOnError<T, E> { results: Vec<Result<T, E>> });

impl<G: fmt::Debug> fmt::Debug for Summarized<G> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Summarized").field(&self.inner).finish()
    }
}

pin_project! {
    /// The future of [`Process`](super::Process), which returns all results at once.
    ///
    /// When it is ready, it has dropped the source, the handler and every item that was still running.
    #[must_use = "futures do nothing unless polled"]
    pub struct Processing<S, F, Fut, G, P> {
        // `None` once it has ended.
        #[pin]
        engine: Option<Engine<S, F, Fut, P>>,
        gather: Option<G>,
    }
}

impl<S, F, Fut, G, P> Processing<S, F, Fut, G, P> {
    pub(super) fn new(engine: Engine<S, F, Fut, P>, gather: G) -> Self {
        Self { engine: Some(engine), gather: Some(gather) }
    }
}

impl<S, F, Fut, G, P, T, E> Future for Processing<S, F, Fut, G, P>
where
    S: Stream,
    F: FnMut(S::Item) -> Fut,
    Fut: Future<Output = Result<T, E>>,
    G: Gather<T, E>,
    P: FnMut(&Progress),
{
    type Output = G::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<G::Output> {
        let mut this = self.project();
        let (Some(mut engine), Some(gather)) = (this.engine.as_mut().as_pin_mut(), this.gather.as_mut()) else {
            panic!("polled after completion")
        };
        let output = loop {
            match ready!(engine.as_mut().poll_ended(usize::MAX, cx)) {
                Some((index, result)) => {
                    if let Some(output) = gather.add(index, result, &|| engine.summary()) {
                        break output;
                    }
                }
                None => break gather.finish(&|| engine.summary()),
            }
        };
        // Everything that is left is dropped before the output is returned.
        this.engine.set(None);
        *this.gather = None;
        Poll::Ready(output)
    }
}

impl_debug!(Processing<S, F, Fut, G: fmt::Debug, P> { gather, engine });
