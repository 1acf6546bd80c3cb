//! The switch of a chaos layer: live state behind a handle.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

/// The highest bit of the word; the others count the calls since it was set.
const ON: u64 = 1 << 63;

/// No rate: the layer's own plan holds.
const AS_PLANNED: u64 = f64::NAN.to_bits();

/// The live state of a [`ChaosLayer`](super::ChaosLayer): to switch it on and off while the program runs. A clone is another handle
/// to the same.
#[derive(Clone, Default)]
pub struct ChaosHandle {
    state: Arc<State>,
}

struct State {
    // One word, so that no call counts towards a time when the switch stood otherwise. All else is independent of it: hence relaxed.
    word: AtomicU64,
    rate: AtomicU64,
    injected: AtomicU64,
}

impl Default for State {
    fn default() -> Self {
        Self { word: AtomicU64::new(0), rate: AtomicU64::new(AS_PLANNED), injected: AtomicU64::new(0) }
    }
}

impl ChaosHandle {
    /// From now on calls are struck, as rate or schedule say, from their beginning. Nothing changes if it is on already.
    pub fn on(&self) {
        let begun = |word: u64| (word & ON == 0).then_some(ON);
        // An error says that it was on.
        let _ = self.state.word.fetch_update(Relaxed, Relaxed, begun);
    }

    /// From now on no call is struck. One that was struck already keeps its fault: a delay is waited for, and what hangs hangs.
    pub fn off(&self) {
        self.state.word.fetch_and(!ON, Relaxed);
    }

    /// Whether it is on.
    #[must_use]
    #[inline]
    pub fn is_on(&self) -> bool {
        self.state.word.load(Relaxed) & ON != 0
    }

    /// From now on so many of all calls are struck, in place of what the layer was told: a rate, a function or a schedule.
    ///
    /// It does not switch it on.
    ///
    /// # Panics
    ///
    /// If `rate` is not between 0 and 1.
    #[track_caller]
    pub fn set_rate(&self, rate: f64) {
        self.state.rate.store(checked(rate).to_bits(), Relaxed);
    }

    /// How many faults were put in so far.
    #[must_use]
    pub fn injected(&self) -> u64 {
        self.state.injected.load(Relaxed)
    }

    /// The rate that was set here.
    pub(super) fn rate(&self) -> Option<f64> {
        Some(f64::from_bits(self.state.rate.load(Relaxed))).filter(|rate| !rate.is_nan())
    }

    /// The number of a call, from 0; `None` if it was switched off meanwhile.
    pub(super) fn number(&self) -> Option<u64> {
        // Counted although it may be off: switching it on begins anew in any case.
        let word = self.state.word.fetch_add(1, Relaxed);
        (word & ON != 0).then_some(word & !ON)
    }

    pub(super) fn count_injected(&self) {
        self.state.injected.fetch_add(1, Relaxed);
    }
}

#[track_caller]
pub(super) fn checked(rate: f64) -> f64 {
    assert!((0.0..=1.0).contains(&rate), "rate must be between 0 and 1, and is {rate}");
    rate
}

impl fmt::Debug for ChaosHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChaosHandle")
            .field("on", &self.is_on())
            .field("rate", &self.rate())
            .field("injected", &self.injected())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Between the look at the switch and the count it may have been switched off, or off and on again.
    #[test]
    fn a_call_counts_towards_the_time_that_it_is_counted_in() {
        let chaos = ChaosHandle::default();
        chaos.on();
        assert_eq!([chaos.number(), chaos.number()], [Some(0), Some(1)]);
        chaos.off();
        assert_eq!(chaos.number(), None);
        assert!(!chaos.is_on());
        chaos.on();
        assert_eq!(chaos.number(), Some(0));
    }
}
