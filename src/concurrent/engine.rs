//! The engine: starts items while there is room, and returns each one that has ended.

use std::{
    future::Future,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use futures_core::Stream;
use futures_util::stream::FuturesUnordered;
use pin_project_lite::pin_project;

use super::{
    error::{Cause, ItemError},
    progress::{Batches, Progress, Summary},
    turns::{Heard, Turn, Turns},
};
use crate::{
    ambient::{
        Limit,
        limited::{Clock, Expired, Limited},
    },
    debug::impl_debug,
};

/// The number of steps without a pause, after which the run yields to other tasks and timers.
const UNBROKEN: u32 = 256;

/// The configuration of a run.
#[derive(Debug, Clone, Copy)]
pub(super) struct Settings {
    pub(super) max_concurrency: usize,
    /// The time limit of each item.
    pub(super) limit: Limit,
    pub(super) batches: Option<Batches>,
}

pin_project! {
    /// Pulls items from the source, and runs the futures that the handler returns.
    pub(super) struct Engine<S, F, Fut, P> {
        // `None` once it has ended.
        #[pin]
        source: Option<S>,
        handler: F,
        on_progress: P,
        settings: Settings,
        running: FuturesUnordered<Item<Fut>>,
        turns: Arc<Turns>,
        started: usize,
        // `None` before the first poll.
        progress: Option<Progress>,
        unbroken: u32,
    }
}

/// An item that has ended: its index and its result.
pub(super) type Ended<T, E> = (usize, Result<T, ItemError<E>>);

impl<S: Stream, F, Fut, P> Engine<S, F, Fut, P> {
    pub(super) fn new(source: S, handler: F, on_progress: P, settings: Settings) -> Self {
        let (source, running, turns) = (Some(source), FuturesUnordered::new(), Arc::default());
        Self { source, handler, on_progress, settings, running, turns, started: 0, progress: None, unbroken: 0 }
    }

    pub(super) fn settings(&self) -> Settings {
        self.settings
    }

    /// The counts so far, and the elapsed time. Zero before the first poll.
    pub(super) fn summary(&self) -> Summary {
        self.progress.as_ref().map_or_else(Summary::default, Progress::summary)
    }

    /// The number of results still to come, at least and at most. `held` results have come already and were not taken
    /// yet.
    pub(super) fn size_hint(&self, held: usize) -> (usize, Option<usize>) {
        let (least, most) = self.source.as_ref().map_or((0, Some(0)), Stream::size_hint);
        let more = self.running.len() + held;
        (least.saturating_add(more), most.and_then(|most| most.checked_add(more)))
    }
}

impl_debug!(Engine<S, F, Fut, P> { settings, started, in_flight = |this| this.running.len(), progress, .. });

impl<S, F, Fut, P, T, E> Engine<S, F, Fut, P>
where
    S: Stream,
    F: FnMut(S::Item) -> Fut,
    Fut: Future<Output = Result<T, E>>,
    P: FnMut(&Progress),
{
    /// Returns the next item that has ended, in whatever order. Starts an item only if its index is below `bound`.
    ///
    /// Running items come first: an item is pulled from the source only when all of them were polled and are pending.
    /// So the source is polled only for an item that can start now, and a failure is seen before another item starts.
    pub(super) fn poll_ended(self: Pin<&mut Self>, bound: usize, cx: &mut Context<'_>) -> Poll<Option<Ended<T, E>>> {
        let mut this = self.project();
        let Settings { max_concurrency, limit, batches } = *this.settings;
        let progress = this.progress.get_or_insert_with(|| {
            let total = this.source.as_ref().as_pin_ref().and_then(|source| match source.size_hint() {
                (least, Some(most)) if least == most => Some(least),
                _ => None,
            });
            Progress::start(total, batches)
        });
        let (index, outcome) = loop {
            if *this.unbroken == UNBROKEN {
                *this.unbroken = 0;
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            *this.unbroken += 1;
            if let Poll::Ready(Some(ended)) = Pin::new(&mut *this.running).poll_next(cx) {
                break ended;
            }
            match this.turns.heard(this.running.len()) {
                Heard::All => {}
                Heard::Some => continue,
                Heard::NotWithoutBudget => {
                    *this.unbroken = 0;
                    return Poll::Pending;
                }
            }
            let Some(source) = this.source.as_mut().as_pin_mut() else {
                *this.unbroken = 0;
                return if this.running.is_empty() { Poll::Ready(None) } else { Poll::Pending };
            };
            let waits_for_batch = batches.is_some_and(|batches| {
                batches.barrier && this.started.is_multiple_of(batches.size) && !this.running.is_empty()
            });
            if waits_for_batch || this.running.len() >= max_concurrency || *this.started >= bound {
                *this.unbroken = 0;
                return Poll::Pending;
            }
            let Poll::Ready(item) = source.poll_next(cx) else {
                *this.unbroken = 0;
                return Poll::Pending;
            };
            let Some(item) = item else {
                this.source.set(None);
                if progress.source_ended(*this.started) {
                    (this.on_progress)(progress);
                }
                continue;
            };
            let index = *this.started;
            *this.started += 1;
            this.turns.next_round();
            match catch_unwind(AssertUnwindSafe(|| (this.handler)(item))) {
                Ok(future) => {
                    let (future, turn) = (Some(Limited::new(future, Clock::new(limit, limit))), Turn::new(this.turns));
                    this.running.push(Item { index, future, turn });
                }
                Err(panic) => break (index, Err(ItemError { index, cause: Cause::panicked(panic) })),
            }
        };
        progress.count(&outcome);
        (this.on_progress)(progress);
        Poll::Ready(Some((index, outcome)))
    }
}

pin_project! {
    /// The future of one item, which catches its panics.
    struct Item<Fut> {
        index: usize,
        #[pin]
        future: Option<Limited<Fut>>,
        turn: Turn,
    }

    impl<Fut> PinnedDrop for Item<Fut> {
        fn drop(this: Pin<&mut Self>) {
            // When several items are dropped together, a panic of one must not leave the others, or hide why they are
            // dropped.
            let _ = catch_unwind(AssertUnwindSafe(|| this.project().future.set(None)));
        }
    }
}

impl<Fut, T, E> Future for Item<Fut>
where
    Fut: Future<Output = Result<T, E>>,
{
    type Output = Ended<T, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        let index = *this.index;
        if !this.turn.take(cx) {
            return Poll::Pending;
        }
        // Unwind safe: after a panic, only the future's own `Drop` sees it again.
        let polled = catch_unwind(AssertUnwindSafe(|| this.future.as_mut().as_pin_mut().map(|future| future.poll(cx))));
        let outcome = match polled {
            Ok(polled) => match ready!(polled.unwrap_or(Poll::Pending)) {
                Ok(outcome) => outcome.map_err(Cause::Failed),
                Err(Expired::Limit(limit)) => Err(Cause::TimedOut { limit }),
                Err(Expired::Deadline { after }) => Err(Cause::DeadlineExceeded { after: after.unwrap_or_default() }),
            },
            Err(panic) => {
                // A panic during this clean-up comes too late to be reported.
                let _ = catch_unwind(AssertUnwindSafe(|| this.future.set(None)));
                Err(Cause::panicked(panic))
            }
        };
        Poll::Ready((index, outcome.map_err(|cause| ItemError { index, cause })))
    }
}
