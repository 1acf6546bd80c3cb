//! The rate of a bucket that processes share.

use std::time::Duration;

use crate::bucket::Rate;

/// A bucket of tokens: how many it gains in which time, and how many it holds.
///
/// All processes that share a limit should have the same quota.
///
/// ```
/// use std::time::Duration;
/// use ziggurat::store::Quota;
///
/// let quota = Quota::new(100, Duration::from_secs(1)).burst(20);
/// assert_eq!((quota.capacity(), quota.time(5)), (20, Duration::from_millis(50)));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub struct Quota {
    rate: Rate,
}

impl Quota {
    /// Creates a bucket that gains `quantity` tokens in each `period`, one after another, and holds as many.
    ///
    /// # Panics
    ///
    /// Panics if `quantity` or `period` is zero.
    #[track_caller]
    pub fn new(quantity: u32, period: Duration) -> Self {
        Self { rate: Rate::new(quantity, period) }
    }

    /// Sets the number of tokens in a full bucket, which is the number of calls that can be made at once. The default
    /// is the quantity.
    ///
    /// # Panics
    ///
    /// Panics if `burst` is zero.
    #[track_caller]
    pub fn burst(mut self, burst: u32) -> Self {
        assert!(burst > 0, "`burst` must be at least 1: in an empty bucket nothing could ever pass");
        self.rate.burst = Some(burst);
        self
    }

    /// Returns the number of tokens that the bucket gains in each [`period`](Self::period).
    #[must_use]
    pub fn quantity(&self) -> u32 {
        self.rate.quantity
    }

    /// Returns the time in which the bucket gains [`quantity`](Self::quantity) tokens.
    #[must_use]
    pub fn period(&self) -> Duration {
        self.rate.period
    }

    /// Returns the number of tokens in a full bucket: the burst, but no more than the bucket gains in 2.3 years.
    #[must_use]
    pub fn capacity(&self) -> u32 {
        self.rate.burst()
    }

    /// Returns the time in which the bucket gains this number of tokens, rounded up to whole nanoseconds.
    #[must_use]
    pub fn time(&self, tokens: u32) -> Duration {
        self.rate.time(tokens)
    }

    /// Returns whether the other bucket gains tokens faster.
    pub(crate) fn is_slower_than(&self, other: &Self) -> bool {
        let product = |quantity: u32, period: Duration| u128::from(quantity) * period.as_nanos();
        product(self.quantity(), other.period()) < product(other.quantity(), self.period())
    }

    pub(crate) fn rate(&self) -> Rate {
        self.rate
    }
}
