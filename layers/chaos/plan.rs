//! When a fault is put in: pure decisions over the number of a call, from 0.

use std::{fmt, num::NonZeroU64, sync::Arc};

use fastrand::Rng;

/// Decides by chance. The same seed gives each number the same luck, whoever asks, and in which order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Dice {
    seed: u64,
}

impl Dice {
    pub(super) fn new(seed: u64) -> Self {
        Self { seed }
    }

    /// Whether it strikes this call, at this rate. At 0 (or less, or NaN) it never does, at 1 (or more) always.
    pub(super) fn strikes(self, rate: f64, number: u64) -> bool {
        // One number after the other has to be stirred, or neighbours would have neighbouring luck.
        let stirred = Rng::with_seed(number).u64(..);
        Rng::with_seed(self.seed ^ stirred).f64() < rate
    }
}

/// Which calls are struck, by their number: the first, second and so on since the chaos was switched on.
#[derive(Clone)]
#[must_use]
pub struct Schedule {
    plan: Plan,
}

#[derive(Clone)]
enum Plan {
    Every(NonZeroU64),
    First(u64),
    Repeated(Arc<[bool]>),
}

impl Schedule {
    /// Every `nth` call: with 3 the third, the sixth, and so on; with 1 each of them.
    ///
    /// # Panics
    ///
    /// If `nth` is zero.
    #[track_caller]
    pub fn every(nth: u64) -> Self {
        let nth = NonZeroU64::new(nth);
        assert!(nth.is_some(), "nth must be at least 1: with 1 every call is struck");
        Self { plan: nth.map_or(Plan::First(0), Plan::Every) }
    }

    /// The first `calls`, and none after them: what is down at first, and recovers.
    pub fn first(calls: u64) -> Self {
        Self { plan: Plan::First(calls) }
    }

    /// Those that the list says, call by call, and then from its beginning again.
    ///
    /// # Panics
    ///
    /// If `list` is empty.
    #[track_caller]
    pub fn repeat(list: impl Into<Arc<[bool]>>) -> Self {
        let list = list.into();
        assert!(!list.is_empty(), "list must say something of at least one call");
        Self { plan: Plan::Repeated(list) }
    }

    pub(super) fn strikes(&self, number: u64) -> bool {
        match &self.plan {
            Plan::Every(nth) => number % nth.get() == nth.get() - 1,
            Plan::First(calls) => number < *calls,
            // The remainder is less than the length.
            Plan::Repeated(list) => list.get((number % list.len() as u64) as usize).is_some_and(|strikes| *strikes),
        }
    }
}

impl fmt::Debug for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.plan {
            Plan::Every(nth) => write!(f, "Schedule::every({nth})"),
            Plan::First(calls) => write!(f, "Schedule::first({calls})"),
            Plan::Repeated(list) => write!(f, "Schedule::repeat({list:?})"),
        }
    }
}

#[cfg(test)]
mod tests;
