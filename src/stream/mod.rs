//! Streams: batches, scopes, two as one, and streams that are written to.
//!
//! ```
//! use tokio_stream::{StreamExt as _, iter};
//! use ziggurat::stream::StreamExt as _;
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() {
//! let batches: Vec<_> = iter(1..=7).batches(3).collect().await;
//! assert_eq!(batches, [vec![1, 2, 3], vec![4, 5, 6], vec![7]]);
//! # }
//! ```
//!
//! | | |
//! |---|---|
//! | [`batches(n)`](StreamExt::batches), [`batches_within(n, time)`](StreamExt::batches_within), and both with `try_` | lists of exactly n, then the rest |
//! | [`within_scope(&scope)`](StreamExt::within_scope) | the stream runs in a scope, its reader does not |
//! | [`merge(left, right)`](merge()) | both as they come, until both or either has ended |
//! | [`channel(capacity)`](channel()) | a bounded channel; who sends too quickly waits |
//! | [`generate(producer)`](generate()), [`try_generate(producer)`](try_generate) | an async generator, which lives and ends with its stream |
//!
//! What works on each item of a stream, some at a time, is [`concurrent`](crate::concurrent); for all else there are the combinators of
//! futures-util and tokio-stream, beside which these can be used: import the trait as `_`.
//!
//! **When its clock starts.** That of a batch when its first item is there: a source that gives nothing gives no empty batch.
//!
//! **Backpressure.** Nothing here reads ahead: a source is polled when its reader asks, and what is held is at most one batch, or the
//! capacity of a channel.
//!
//! **Where it belongs.** A pipeline is read from its end, so what stands before `within_scope` runs in the scope and what stands after it does
//! not. Batches before [`process_concurrently`](crate::concurrent::process_concurrently) hand a list to each call.
//!
//! **Cancellation.** Dropping a stream drops its source, and a batch that is not full. Dropping the future that waits for the next item
//! loses nothing: a batch that is begun stays so, and its clock goes on.

use std::time::Duration;

pub use futures_core::Stream;

use crate::scope::Scope;

mod batches;
mod channel;
mod closed;
mod generate;
mod handover;
mod merge;
mod scoped;

pub use self::{
    batches::{Batches, Fallible, Kind, Plain},
    channel::{Receiver, Sender, channel},
    closed::Closed,
    generate::{Generate, Produced, generate, try_generate},
    merge::{Merge, merge},
    scoped::WithinScope,
};

/// What every [`Stream`] gets here: see the [module](self).
pub trait StreamExt: Stream {
    /// Lists of exactly `size` items, then the rest.
    ///
    /// # Panics
    ///
    /// If `size` is zero.
    #[doc(alias = "chunks")]
    #[track_caller]
    fn batches(self, size: usize) -> Batches<Self, Plain>
    where
        Self: Sized,
    {
        Batches::new(self, size, None)
    }

    /// Lists of exactly `size` items, or of fewer if `time` is over since the first of them came; then the rest.
    ///
    /// Every duration is good: with zero a batch is what the source has ready, and [`Duration::MAX`] never ends. It costs a clock read
    /// and a timer for each batch.
    ///
    /// ```
    /// use std::time::Duration;
    /// use tokio_stream::{StreamExt as _, iter, pending};
    /// use ziggurat::stream::StreamExt as _;
    ///
    /// # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() {
    /// let mut batches = iter(1..=5).chain(pending()).batches_within(3, Duration::from_millis(100));
    /// assert_eq!(batches.next().await, Some(vec![1, 2, 3]));
    /// assert_eq!(batches.next().await, Some(vec![4, 5])); // 100 ms later
    /// # }
    /// ```
    ///
    /// # Panics
    ///
    /// If `size` is zero.
    #[doc(alias = "chunks_timeout")]
    #[track_caller]
    fn batches_within(self, size: usize, time: Duration) -> Batches<Self, Plain>
    where
        Self: Sized,
    {
        Batches::new(self, size, Some(time))
    }

    /// [`batches`](Self::batches) of a stream of results. An error ends the batch that is begun, and comes after it; then it goes on
    /// with whatever the source gives.
    ///
    /// ```
    /// use tokio_stream::{StreamExt as _, iter};
    /// use ziggurat::stream::StreamExt as _;
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() {
    /// let rows = iter([Ok(1), Ok(2), Ok(3), Err("lost"), Ok(4)]);
    /// let batches: Vec<_> = rows.try_batches(2).collect().await;
    /// assert_eq!(batches, [Ok(vec![1, 2]), Ok(vec![3]), Err("lost"), Ok(vec![4])]);
    /// # }
    /// ```
    ///
    /// # Panics
    ///
    /// If `size` is zero.
    #[doc(alias = "try_chunks")]
    #[track_caller]
    fn try_batches<T, E>(self, size: usize) -> Batches<Self, Fallible>
    where
        Self: Stream<Item = Result<T, E>> + Sized,
    {
        Batches::new(self, size, None)
    }

    /// [`batches_within`](Self::batches_within) of a stream of results; about errors see [`try_batches`](Self::try_batches).
    ///
    /// # Panics
    ///
    /// If `size` is zero.
    #[track_caller]
    fn try_batches_within<T, E>(self, size: usize, time: Duration) -> Batches<Self, Fallible>
    where
        Self: Stream<Item = Result<T, E>> + Sized,
    {
        Batches::new(self, size, Some(time))
    }

    /// Runs the stream in a scope: it is the current one whenever the stream is polled, and when it is dropped. For who reads it the
    /// scope is what it was.
    ///
    /// The stream is dropped as soon as it has ended, and the scope is let go after it: where nobody else holds that, it is closed. What
    /// runs before its first poll, when the stream was made, runs in the scope with [`Scope::enter`].
    ///
    /// ```
    /// use tokio_stream::{StreamExt as _, once};
    /// use ziggurat::{Scope, stream::StreamExt as _};
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() {
    /// let name = || Scope::current().map(|scope| scope.name().to_owned());
    /// let mut names = once(()).map(|()| name()).within_scope(&Scope::root("report"));
    /// assert_eq!(names.next().await, Some(Some("report".into())));
    /// assert_eq!(name(), None);
    /// # }
    /// ```
    fn within_scope(self, scope: &Scope) -> WithinScope<Self>
    where
        Self: Sized,
    {
        WithinScope::new(self, scope.clone())
    }
}

impl<S: Stream + ?Sized> StreamExt for S {}
