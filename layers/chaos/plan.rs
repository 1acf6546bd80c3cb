//! Decides which calls get a fault: pure functions of a call's number, from 0.

use std::{fmt, num::NonZeroU64, sync::Arc};

use fastrand::Rng;

/// Decides by chance. With the same seed, a number always gets the same decision, in whatever order numbers are asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Dice {
    seed: u64,
}

impl Dice {
    pub(super) fn new(seed: u64) -> Self {
        Self { seed }
    }

    /// Returns whether this call gets a fault. A rate of 0 (or less, or NaN) selects no call, and 1 (or more) every
    /// call.
    pub(super) fn strikes(self, rate: f64, number: u64) -> bool {
        // Consecutive numbers must be mixed first, or neighbours would get similar decisions.
        let stirred = Rng::with_seed(number).u64(..);
        Rng::with_seed(self.seed ^ stirred).f64() < rate
    }
}

/// Selects calls by their number: the first, the second and so on since the layer was switched on.
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
    /// Selects every `nth` call: with 3 the third, the sixth and so on, and with 1 every call.
    ///
    /// # Panics
    ///
    /// If `nth` is zero.
    #[track_caller]
    pub fn every(nth: u64) -> Self {
        let nth = NonZeroU64::new(nth);
        assert!(nth.is_some(), "nth must be at least 1, not 0");
        Self { plan: nth.map_or(Plan::First(0), Plan::Every) }
    }

    /// Selects the first `calls` calls and none after them, like a service that is down at first and recovers.
    pub fn first(calls: u64) -> Self {
        Self { plan: Plan::First(calls) }
    }

    /// Selects the calls for which `list` holds `true`, call by call, and starts over at the end of the list.
    ///
    /// # Panics
    ///
    /// If `list` is empty.
    #[track_caller]
    pub fn repeat(list: impl Into<Arc<[bool]>>) -> Self {
        let list = list.into();
        assert!(!list.is_empty(), "list must not be empty");
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
