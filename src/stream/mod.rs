//! Streams: batches, scopes, merging, channels and async generators.
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
//! | [`batches(n)`](StreamExt::batches), [`try_batches(n)`](StreamExt::try_batches) | lists of n items, then the rest |
//! | [`batches_within(n, t)`][within], [`try_batches_within(n, t)`][try_within] | lists of fewer items after time t |
//! | [`within_scope(&scope)`](StreamExt::within_scope) | runs the stream in a scope, but not its reader |
//! | [`merge(left, right)`](merge()) | the items of both as they come, until both or either have ended |
//! | [`channel(capacity)`](channel()) | a bounded channel, in which a fast producer waits |
//! | [`generate(producer)`](generate()), [`try_generate(producer)`](try_generate) | an async generator |
//!
//! [within]: StreamExt::batches_within
//! [try_within]: StreamExt::try_batches_within
//!
//! To process the items of a stream concurrently, use [`concurrent`](crate::concurrent). The extension trait works
//! beside the combinators of futures-util and tokio-stream: import it as `_`.
//!
//! # Timing
//!
//! The clock of a batch starts with its first item. So a source without items produces no empty batch.
//!
//! # Backpressure
//!
//! No stream here reads ahead: a source is polled when its reader asks. At most one batch, or the capacity of a
//! channel, is held.
//!
//! # Order
//!
//! The part of a pipeline before `within_scope` runs in the scope, and the part after it does not. With batches before
//! [`process_concurrently`](crate::concurrent::process_concurrently), each call processes a list.
//!
//! # Cancellation safety
//!
//! Dropping a stream drops its source and a batch that is not full. Dropping the future that waits for the next item
//! loses nothing: a batch that is begun is kept, and its clock keeps running.

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

/// Adds batches and scopes to every [`Stream`]: see the [module](self).
pub trait StreamExt: Stream {
    /// Groups items into lists of exactly `size` items, followed by the rest.
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

    /// Groups items into lists of exactly `size` items, or of fewer if `time` has passed since the first of them.
    ///
    /// The rest follows. Any duration is valid: with zero, a batch is whatever the source has ready, and with
    /// [`Duration::MAX`] there is no limit. A batch costs a clock read and a timer.
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

    /// Groups the values of a stream of results into lists of exactly `size` items, as [`batches`](Self::batches) does.
    ///
    /// An error ends the current batch and comes after it. Then the stream goes on.
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

    /// Groups the values of a stream of results, as [`batches_within`](Self::batches_within) does.
    ///
    /// For errors, see [`try_batches`](Self::try_batches).
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

    /// Runs the stream in a scope, which is current whenever the stream is polled, and when it is dropped.
    ///
    /// The reader's own scope is not changed. The stream is dropped as soon as it has ended, and its handle of the
    /// scope after that, which closes the scope if it was the last. To create the stream within the scope too, use
    /// [`Scope::enter`].
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
