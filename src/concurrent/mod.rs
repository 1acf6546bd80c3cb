//! Many items at once, but not too many: each is handed to an async function, or is a call of a service.
//!
//! ```
//! use std::time::Duration;
//! use ziggurat::concurrent::process_concurrently;
//!
//! # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() -> Result<(), Box<dyn std::error::Error>> {
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
//! Items come from anything that can be iterated over, or from a [`Stream`]. What is made of their results:
//!
//! | | answers | holds |
//! |---|---|---|
//! | `.await` | `Result<Vec<T>, ItemError<E>>`, in the order of the source; the first failure ends it | all values |
//! | [`.continue_on_error().await`](Process::continue_on_error) | `Vec<Result<T, ItemError<E>>>`, in the order of the source | all results |
//! | [`.unordered()`](Process::unordered) | a stream of results as they come | what is in flight |
//! | [`.ordered()`](Process::ordered) | a stream of results in the order of the source | what is in flight, and results that wait for an earlier one |
//!
//! **What it counts.** An item is in flight from when it is pulled from the source until its future has ended; never more are than
//! [`max_concurrency`](Process::max_concurrency). The source is asked for an item only when one may start and all that run are pending.
//! A failure is therefore noticed while the source is slow, and a source that never ends is no more than its items.
//!
//! **When its clocks start.** An item's limit when its future is first pending, so at its start and not when it was pulled; an item that
//! is ready in the same poll as its limit wins. A surrounding [`Deadline`](crate::Deadline) that is earlier is left to whoever set it.
//! [`Summary::elapsed`] from the first poll of the whole.
//!
//! **Failures.** An [`ItemError`] tells which item it was and holds the original error. The first failure ends a plain `.await`: all that
//! still runs is dropped, and the source too, before the error comes out. No item is started beside one that has
//! failed: all that are awake are polled first, across turns of the executor if the task's budget does not last. A
//! source that can fail hands its `Result`s to the handler, which passes them on with `item?`: an error comes out like
//! any other, with its place.
//!
//! **Panics.** A panic of the handler, of its future, or of that future's clean-up when it has ended, is that item's
//! [`Cause::Panicked`]; the panic hook has told of it before. The handler is called again for the items after it: one that keeps state of its
//! own has to leave it in order (it is taken as unwind safe). A panic of the source or of the progress hook is a panic of the whole.
//! That of a future which is dropped before its end goes to the panic hook alone: all others are dropped too.
//!
//! **Where it belongs.** In the caller's task: nothing is spawned, so items may borrow, and they run within the caller's scope and
//! deadline. A program that computes in its items has to spawn inside of the handler. Items are polled only while somebody waits for the
//! result, or polls the stream: who works long between two results of a stream lets all others wait, and their limits go on.
//! Over a service ([`call_concurrently`]) its layers see one call for each item; a limit for all callers together is a
//! [`ConcurrencyLimitLayer`](crate::concurrency_limit::ConcurrencyLimitLayer) there, this one is for a single run.
//!
//! **Cancellation.** Dropping the future or the stream drops the source and every item in flight.
//!
//! **Cost.** An allocation for each item, as futures-util's `buffer_unordered` has it, on which this is built. Each poll of an item takes one of
//! the task's budget (tokio's cooperative scheduling). When that is used up, or after 256 steps without a pause, the
//! executor gets its turn.

mod engine;
mod error;
mod gather;
mod progress;
mod results;
mod source;
mod turns;

use std::{
    any::type_name,
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
    error::{Cause, ItemError, split},
    gather::{ContinueOnError, Gather, Processing, StopOnError, Summarized},
    progress::{BatchProgress, Progress, Summary},
    results::{Ordered, Unordered},
    source::{Items, Iterated, Source, Streamed},
};
use crate::ambient::Limit;
pub use crate::call::Call;

/// So many as resilience4j's bulkhead lets be in flight.
const MAX_CONCURRENCY: usize = 25;

/// Hands each item to `handler`, some at a time: see the [module](self).
///
/// `items` is anything that can be iterated over, or a [`Stream`]. The handler makes a future for each item, and is called when that is to
/// start; one that cannot fail answers `Ok::<_, Infallible>(..)`. Nothing happens before the result is awaited, or the stream polled.
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
    Fut: Future<Output = Result<T, E>>,
{
    let settings = Settings { max_concurrency: MAX_CONCURRENCY, limit: Limit::NONE, batches: None };
    let on_progress: fn(&Progress) = |_| ();
    Process { source: items.into_stream(), handler, settings, on_progress, gather: StopOnError::default() }
}

/// Calls `service` with each request, some at a time: see the [module](self).
///
/// Each call waits for the readiness of its own clone, in its own future: within its limit, and without holding up others.
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

/// A run that has not begun: say how, then `.await` it or take its results as a stream.
#[must_use = "nothing is processed before it is awaited, or the stream polled"]
pub struct Process<S, F, G, P = fn(&Progress)> {
    source: S,
    handler: F,
    settings: Settings,
    on_progress: P,
    gather: G,
}

impl<S, F, G, P> Process<S, F, G, P> {
    /// So many items may be in flight at once. 25 if it is not said, as in resilience4j's bulkhead.
    ///
    /// # Panics
    ///
    /// If `max_concurrency` is zero: nothing could ever start.
    #[track_caller]
    pub fn max_concurrency(mut self, max_concurrency: usize) -> Self {
        assert!(max_concurrency > 0, "max_concurrency must be at least 1, not 0");
        self.settings.max_concurrency = max_concurrency;
        self
    }

    /// An item that takes longer is dropped, and fails with [`Cause::TimedOut`]. Its clock starts when it does, and is
    /// the [`Deadline`](crate::Deadline) of all that the item calls: it also runs while nothing polls the stream of
    /// results.
    ///
    /// Every duration is good: with zero an item has to be ready at once, and [`Duration::MAX`] never ends.
    pub fn timeout_per_item(mut self, limit: Duration) -> Self {
        self.settings.limit = Limit::after(limit);
        self
    }

    /// The items fall into batches of so many, and a batch starts when the one before it is complete.
    ///
    /// [`Progress::batch`] tells of each that is. Where nothing hangs on the barrier, [`in_sliding_batches`](Self::in_sliding_batches)
    /// is quicker: here the slowest item of each batch is waited for.
    ///
    /// # Panics
    ///
    /// If `size` is zero.
    #[track_caller]
    pub fn in_batches(self, size: usize) -> Self {
        self.batches(size, true)
    }

    /// The items are counted in batches of so many, and nothing waits for the end of a batch: batch 3 is complete when as many items
    /// have ended as three batches have.
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

    /// Calls `hook` after each item that has ended. One that was attached before is called no more.
    ///
    /// With batches it is called once more if the source, which did not know its length, turns out to have ended in the middle of one.
    pub fn on_progress<Q: FnMut(&Progress)>(self, hook: Q) -> Process<S, F, G, Q> {
        let Self { source, handler, settings, on_progress: _, gather } = self;
        Process { source, handler, settings, on_progress: hook, gather }
    }

    /// The answer comes with a [`Summary`]: a pair, also where it is an error. It is said after [`continue_on_error`](Process::continue_on_error).
    pub fn with_summary(self) -> Process<S, F, Summarized<G>, P> {
        let Self { source, handler, settings, on_progress, gather } = self;
        Process { source, handler, settings, on_progress, gather: Summarized { inner: gather } }
    }
}

impl<S, F, P, T, E> Process<S, F, StopOnError<T, E>, P> {
    /// Works on every item, whatever becomes of others: answers each one's result in its place. [`split`] sets failures apart.
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
    /// The results as they come, as a stream. It holds no more than what is in flight, and a failure ends nothing.
    ///
    /// ```
    /// use tokio_stream::StreamExt;
    /// # use ziggurat::concurrent::process_concurrently;
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() {
    /// // Without an end: it is asked for no more than what is needed.
    /// let mut squares = process_concurrently(1_u64.., |number: u64| async move { Ok::<_, ()>(number * number) }).unordered();
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

    /// The results in the order of the source, as a stream, and a failure ends nothing.
    ///
    /// An item that has ended and waits for an earlier one takes a place of [`max_concurrency`](Self::max_concurrency): so that no
    /// more is held than that. One slow item therefore holds up those that come so many places after it.
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

impl<S, F, G: fmt::Debug, P> fmt::Debug for Process<S, F, G, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Process")
            .field("source", &type_name::<S>())
            .field("handler", &type_name::<F>())
            .field("settings", &self.settings)
            .field("gather", &self.gather)
            .finish_non_exhaustive()
    }
}
