//! The place where processes share buckets of tokens.

use std::{fmt, future::Future, iter::successors, ops::RangeInclusive};

use super::quota::Quota;

/// A place where processes share buckets of tokens: a `RedisStore` (feature `redis`), a
/// [`MemoryStore`](super::MemoryStore), or one of your own.
///
/// A store has one bucket for each key. It measures the time with a single clock, for all processes, and decides about
/// each request at once. A bucket that it has never seen, or has forgotten, is full.
///
/// The layer bounds the time of each request and observes errors, panics included, so a store needs no timeout of its
/// own.
pub trait TokenStore: Send + Sync + 'static {
    /// Why the store could not decide.
    type Error: fmt::Display;

    /// Takes tokens from the bucket `key`: as many of the range as there are, or none if there are fewer than its
    /// start.
    ///
    /// [`amounts`] has a sequence of numbers to try. The future may be dropped. If the tokens were taken nevertheless,
    /// they are lost, which never exceeds the quota.
    fn take(
        &self,
        key: &str,
        tokens: RangeInclusive<u32>,
        quota: &Quota,
    ) -> impl Future<Output = Result<Taken, Self::Error>> + Send;

    /// Gives tokens back to the bucket `key` that no call has used. `at` is the time at which they were taken, as
    /// [`Taken::Granted`] had it.
    ///
    /// Tokens that the bucket has gained since that time have to be subtracted from them: without the tokens that were
    /// taken, it might have been full. The default gives nothing back, which never exceeds the quota.
    fn give_back(
        &self,
        key: &str,
        tokens: u32,
        at: u64,
        quota: &Quota,
    ) -> impl Future<Output = Result<(), Self::Error>> + Send {
        let _ = (key, tokens, at, quota);
        async { Ok(()) }
    }
}

/// The decision of a [`TokenStore`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Taken {
    /// The tokens were taken.
    Granted {
        /// The number of tokens.
        tokens: u32,
        /// The time at which they were taken, by the store's clock and in a unit of its own.
        at: u64,
    },
    /// The bucket has fewer tokens than the range starts with.
    Denied {
        /// The time after which it has that many, if no other process takes any.
        wait: std::time::Duration,
    },
}

/// Returns the numbers of tokens that a store should try to take, in this order: the end of the range, half of it, and
/// so on, and at last its start.
///
/// A store that takes the first number that the bucket has grants at least half of the possible number, and needs no
/// division.
///
/// ```
/// use ziggurat::store::amounts;
///
/// assert_eq!(Vec::from_iter(amounts(&(2..=20))), [20, 10, 5, 2]);
/// assert_eq!(Vec::from_iter(amounts(&(3..=3))), [3]);
/// ```
pub fn amounts(range: &RangeInclusive<u32>) -> impl Iterator<Item = u32> + use<> {
    let (start, end) = (*range.start(), *range.end());
    successors((end > start).then_some(end), move |tokens| Some(tokens / 2).filter(|half| *half > start)).chain([start])
}
