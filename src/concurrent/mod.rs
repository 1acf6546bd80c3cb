//! Bounded concurrency: processes many items, each with an async function or as a call of a service.
//!
//! ```
//! use std::time::Duration;
//! use ziggurat::concurrent::process_concurrently;
//!
//! # #[tokio::main(flavor = "current_thread", start_paused = true)]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let results = process_concurrently(["one", "two", "three", "four"], |item: &str| async move {
//!     tokio::time::sleep(Duration::from_secs(1)).await;
//!     Ok::<_, std::io::Error>(format!("processed {item}"))
//! })
//! .max_concurrency(3)
//! .timeout_per_item(Duration::from_secs(5))
//! .await?;
//! assert_eq!(results, ["processed one", "processed two", "processed three", "processed four"]);
//! # Ok(())
//! # }
//! ```
//!
//! Items come from anything that can be iterated over, or from a [`Stream`]. Their results can be taken in four ways:
//!
//! | | returns | holds |
//! |---|---|---|
//! | `.await` | `Result<Vec<T>, ItemError<E>>`, in source order; the first failure ends the run | all values |
//! | [`.continue_on_error().await`][all] | `Vec<Result<T, ItemError<E>>>`, in source order | all results |
//! | [`.unordered()`](Process::unordered) | a stream of results as they come | the items in flight |
//! | [`.ordered()`](Process::ordered) | a stream of results in source order | the items in flight and waiting results |
//!
//! [all]: Process::continue_on_error
//!
//! # Concurrency
//!
//! An item is in flight from when it is pulled from the source until its future has ended. At most
//! [`max_concurrency`](Process::max_concurrency) items are in flight at any time. The source is polled for an item only
//! when one may start and all running items are pending. So a failure is noticed even while the source is slow, and the
//! source may be endless.
//!
//! # Timing
//!
//! An item's limit starts when its future is first pending. That is when the item starts, and not when it is pulled. If
//! an item is ready in the poll in which its limit passes, the item wins. If the surrounding
//! [`Deadline`](crate::Deadline) is earlier, the layer that set it enforces it. [`Summary::elapsed`] counts from the
//! first poll of the run.
//!
//! # Failures
//!
//! An [`ItemError`] holds the index of the item and the original error. Without `continue_on_error`, the first failure
//! ends an awaited run: the source and all running items are dropped before the error is returned.
//!
//! No item starts once another has failed. All items that are awake are polled first, over several turns of the
//! executor if the task's budget runs out.
//!
//! If the source can fail, let its items be `Result`s and use `item?` in the handler: an error of the source is then
//! reported like any other, with its index.
//!
//! # Panics
//!
//! If the handler panics, or its future, or the clean-up of a future that has ended, the item fails with
//! [`Cause::Panicked`]. The panic hook runs first. The handler is called again for later items and is assumed to be
//! unwind safe, so it has to keep its own state consistent.
//!
//! A panic of the source or of the progress hook propagates. A panic of a future that is dropped before its end goes
//! only to the panic hook, and the other items are still dropped.
//!
//! # Placement
//!
//! Items run in the caller's task. Nothing is spawned, so items may borrow, and they run within the caller's scope and
//! deadline. For CPU-bound items, spawn a task inside the handler.
//!
//! Items are polled only while the result is awaited or the stream is polled. If a reader works for long between two
//! results of a stream, the items stand still, while their limits keep running.
//!
//! With [`call_concurrently`], the layers of the service see one call for each item. Use a
//! [`ConcurrencyLimitLayer`](crate::concurrency_limit::ConcurrencyLimitLayer) there to limit all callers together: the
//! limit here applies to a single run.
//!
//! # Cancellation safety
//!
//! Dropping the future or the stream drops the source and every item in flight.
//!
//! # Cost
//!
//! One allocation for each item, as with futures-util's `buffer_unordered`, which this is built on. Each poll of an
//! item takes one unit of the task's budget (tokio's cooperative scheduling). A run yields to the executor when the
//! budget is used up, and after 256 steps without a pause.

mod engine;
mod error;
mod gather;
mod progress;
mod results;
mod source;
mod turns;

use std::{
    fmt,
    future::{Future, IntoFuture},
    time::Duration,
};

use futures_core::Stream;
use tower_service::Service;

use self::{
    engine::{Engine, Settings},
    progress::Batches,
};
pub use self::{
    error::{Cause, ItemError, ItemResult, split},
    gather::{ContinueOnError, Gather, Processing, StopOnError, Summarized},
    progress::{BatchProgress, Progress, Summary},
    results::{Ordered, Unordered},
    source::{Items, Iterated, Source, Streamed},
};
pub use crate::call::Call;
use crate::{ambient::Limit, debug::impl_debug};

/// The limit that resilience4j's bulkhead has by default.
const MAX_CONCURRENCY: usize = 25;

/// Processes each item with `handler`, with bounded concurrency: see the [module](self).
///
/// `items` is anything that can be iterated over, or a [`Stream`]. The handler returns a future for each item, and is
/// called when that is to start. A handler that cannot fail returns `Ok::<_, Infallible>(..)`. Nothing happens before
/// the result is awaited or the stream is polled.
///
/// ```
/// # use ziggurat::concurrent::{Cause, ItemError, process_concurrently};
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// let halves = process_concurrently([2, 3, 4], |number: u32| async move {
///     if number % 2 == 0 { Ok(number / 2) } else { Err("odd") }
/// });
/// assert_eq!(halves.await, Err(ItemError { index: 1, cause: Cause::Failed("odd") }));
/// # }
/// ```
#[doc(alias = "for_each_concurrent")]
#[doc(alias = "buffer_unordered")]
#[doc(alias = "gather")]
pub fn process_concurrently<I, Kind, F, Fut, T, E>(items: I, handler: F) -> Process<I::Stream, F, StopOnError<T, E>>
where
    I: Source<Kind>,
    F: FnMut(I::Item) -> Fut,
    Fut: Future<Output: ItemResult<Value = T, Error = E>>,
{
    let settings = Settings { max_concurrency: MAX_CONCURRENCY, limit: Limit::NONE, batches: None };
    let on_progress: fn(&Progress) = |_| ();
    Process { source: items.into_stream(), handler, settings, on_progress, gather: StopOnError::default() }
}

/// Calls `service` with each request, with bounded concurrency: see the [module](self).
///
/// Each call waits for the readiness of its own clone in its own future. So that wait counts towards the item's limit,
/// and does not hold up other items.
///
/// ```
/// use tower::{ServiceBuilder, service_fn};
/// use ziggurat::{Error, concurrent::call_concurrently, retry::RetryLayer};
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// let service = ServiceBuilder::new()
///     .layer(RetryLayer::new())
///     .map_err(Error::Service)
///     .service(service_fn(|word: &'static str| async move { Ok::<_, std::io::Error>(word.len()) }));
///
/// let lengths = call_concurrently(["a", "few", "words"], service).max_concurrency(2).await.unwrap();
/// assert_eq!(lengths, [1, 3, 5]);
/// # }
/// ```
#[expect(clippy::type_complexity, reason = "a closure has no name")]
pub fn call_concurrently<I, Kind, S>(
    requests: I,
    service: S,
) -> Process<I::Stream, impl FnMut(I::Item) -> Call<S, I::Item>, StopOnError<S::Response, S::Error>>
where
    I: Source<Kind>,
    S: Service<I::Item> + Clone,
{
    process_concurrently(requests, move |request| Call::new(service.clone(), request))
}

/// A run that has not started: configure it, then `.await` it or take its results as a stream.
#[must_use = "nothing is processed before it is awaited, or the stream polled"]
pub struct Process<S, F, G, P = fn(&Progress)> {
    source: S,
    handler: F,
    settings: Settings,
    on_progress: P,
    gather: G,
}

impl<S, F, G, P> Process<S, F, G, P> {
    /// Limits the number of items in flight. The default is 25, as in resilience4j's bulkhead.
    ///
    /// # Panics
    ///
    /// If `max_concurrency` is zero, because no item could ever start.
    #[track_caller]
    pub fn max_concurrency(mut self, max_concurrency: usize) -> Self {
        assert!(max_concurrency > 0, "max_concurrency must be at least 1, not 0");
        self.settings.max_concurrency = max_concurrency;
        self
    }

    /// Limits the time of each item. An item that takes longer than `limit` is dropped and fails with
    /// [`Cause::TimedOut`].
    ///
    /// The clock starts with the item, and is the [`Deadline`](crate::Deadline) of everything that the item calls. It
    /// also runs while the stream of results is not polled.
    ///
    /// Any duration is valid: with zero an item has to be ready at once, and [`Duration::MAX`] never expires.
    pub fn timeout_per_item(mut self, limit: Duration) -> Self {
        self.settings.limit = Limit::after(limit);
        self
    }

    /// Processes the items in batches of `size`: a batch starts when the one before is complete.
    ///
    /// [`Progress::batch`] reports each complete batch. If you do not need this barrier,
    /// [`in_sliding_batches`](Self::in_sliding_batches) is faster, because here the slowest item of each batch holds up
    /// the next one.
    ///
    /// # Panics
    ///
    /// If `size` is zero.
    #[track_caller]
    pub fn in_batches(self, size: usize) -> Self {
        self.batches(size, true)
    }

    /// Counts the items in batches of `size`, without waiting for the end of a batch.
    ///
    /// For example, batch 3 is complete when as many items have ended as fit into three batches.
    ///
    /// # Panics
    ///
    /// If `size` is zero.
    #[track_caller]
    pub fn in_sliding_batches(self, size: usize) -> Self {
        self.batches(size, false)
    }

    #[track_caller]
    fn batches(mut self, size: usize, barrier: bool) -> Self {
        assert!(size > 0, "size must be at least 1, not 0");
        self.settings.batches = Some(Batches { size, barrier });
        self
    }

    /// Calls `hook` after each item that has ended. It replaces any previous hook.
    ///
    /// With batches, `hook` is called once more if the source did not know its length and turns out to have ended in
    /// the middle of a batch.
    pub fn on_progress<Q: FnMut(&Progress)>(self, hook: Q) -> Process<S, F, G, Q> {
        let Self { source, handler, settings, on_progress: _, gather } = self;
        Process { source, handler, settings, on_progress: hook, gather }
    }

    /// Adds a [`Summary`] to the output, which becomes a pair, also if the run fails. Call it after
    /// [`continue_on_error`](Process::continue_on_error).
    pub fn with_summary(self) -> Process<S, F, Summarized<G>, P> {
        let Self { source, handler, settings, on_progress, gather } = self;
        Process { source, handler, settings, on_progress, gather: Summarized { inner: gather } }
    }
}

impl<S, F, P, T, E> Process<S, F, StopOnError<T, E>, P> {
    /// Processes every item, even if others fail, and returns each result in its place. [`split`] separates the
    /// failures.
    pub fn continue_on_error(self) -> Process<S, F, ContinueOnError<T, E>, P> {
        let Self { source, handler, settings, on_progress, gather: _ } = self;
        Process { source, handler, settings, on_progress, gather: ContinueOnError::default() }
    }
}

impl<S, F, Fut, G, P, T, E> Process<S, F, G, P>
where
    S: Stream,
    F: FnMut(S::Item) -> Fut,
    Fut: Future<Output = Result<T, E>>,
    P: FnMut(&Progress),
{
    /// Returns the results as a stream, as they come. It holds only the items in flight, and a failure does not end it.
    ///
    /// ```
    /// use tokio_stream::StreamExt;
    /// # use ziggurat::concurrent::process_concurrently;
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() {
    /// // Endless: the source is polled only for the items that are needed.
    /// let mut squares =
    ///     process_concurrently(1_u64.., |number: u64| async move { Ok::<_, ()>(number * number) }).unordered();
    /// let mut sum = 0;
    /// while sum < 100 {
    ///     sum += squares.next().await.unwrap().unwrap();
    /// }
    /// # }
    /// ```
    #[doc(alias = "stream")]
    pub fn unordered(self) -> Unordered<S, F, Fut, P> {
        Unordered::new(self.engine().0)
    }

    /// Returns the results as a stream, in source order. A failure does not end it.
    ///
    /// An item that has ended but waits for an earlier one counts towards [`max_concurrency`](Self::max_concurrency),
    /// so that the number of held results is bounded. One slow item can therefore hold up the start of later ones.
    #[doc(alias = "stream")]
    #[doc(alias = "buffered")]
    pub fn ordered(self) -> Ordered<S, F, Fut, P, T, E> {
        Ordered::new(self.engine().0)
    }

    fn engine(self) -> (Engine<S, F, Fut, P>, G) {
        let Self { source, handler, settings, on_progress, gather } = self;
        (Engine::new(source, handler, on_progress, settings), gather)
    }
}

impl<S, F, Fut, G, P, T, E> IntoFuture for Process<S, F, G, P>
where
    S: Stream,
    F: FnMut(S::Item) -> Fut,
    Fut: Future<Output = Result<T, E>>,
    G: Gather<T, E>,
    P: FnMut(&Progress),
{
    type Output = G::Output;
    type IntoFuture = Processing<S, F, Fut, G, P>;

    fn into_future(self) -> Self::IntoFuture {
        let (engine, gather) = self.engine();
        Processing::new(engine, gather)
    }
}

impl_debug!(Process<S, F, G: fmt::Debug, P> { source: S, handler: F, settings, gather, .. });
