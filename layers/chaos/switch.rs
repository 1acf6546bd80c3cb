//! The switch of a chaos layer: the live state behind its handle.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use crate::debug::impl_debug;

/// The highest bit of the word. The other bits count the calls since the layer was switched on.
const ON: u64 = 1 << 63;

/// No rate was set on the handle: the layer's own rule applies.
const AS_PLANNED: u64 = f64::NAN.to_bits();

/// The live state of a [`ChaosLayer`](super::ChaosLayer), which switches it on and off while the program runs.
///
/// Clones share the state.
#[derive(Clone, Default)]
pub struct ChaosHandle {
    state: Arc<State>,
}

struct State {
    // One word, so that no call is counted for another period of being on. Everything else is independent: hence
    // relaxed.
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
    /// Switches the layer on. A rate or a schedule starts from its beginning. Does nothing if the layer is on already.
    pub fn on(&self) {
        let begun = |word: u64| (word & ON == 0).then_some(ON);
        // An error means that it was on.
        let _ = self.state.word.fetch_update(Relaxed, Relaxed, begun);
    }

    /// Switches the layer off. A call that has its fault already keeps it: a delay runs to its end, and a call that
    /// hangs goes on hanging.
    pub fn off(&self) {
        self.state.word.fetch_and(!ON, Relaxed);
    }

    /// Returns whether the layer is on.
    #[must_use]
    #[inline]
    pub fn is_on(&self) -> bool {
        self.state.word.load(Relaxed) & ON != 0
    }

    /// Sets the fraction of calls that get the fault, in place of the layer's own rate, function or schedule.
    ///
    /// Does not switch the layer on.
    ///
    /// # Panics
    ///
    /// If `rate` is not between 0 and 1.
    #[track_caller]
    pub fn set_rate(&self, rate: f64) {
        self.state.rate.store(checked(rate).to_bits(), Relaxed);
    }

    /// Returns the number of faults injected so far.
    #[must_use]
    pub fn injected(&self) -> u64 {
        self.state.injected.load(Relaxed)
    }

    /// Returns the rate that was set on the handle.
    pub(super) fn rate(&self) -> Option<f64> {
        Some(f64::from_bits(self.state.rate.load(Relaxed))).filter(|rate| !rate.is_nan())
    }

    /// Takes the number of a call, from 0. Returns `None` if the layer was switched off in the meantime.
    pub(super) fn number(&self) -> Option<u64> {
        // Counts even while the layer is off, because switching it on resets the count.
        let word = self.state.word.fetch_add(1, Relaxed);
        (word & ON != 0).then_some(word & !ON)
    }

    pub(super) fn count_injected(&self) {
        self.state.injected.fetch_add(1, Relaxed);
    }
}

#[track_caller]
pub(super) fn checked(rate: f64) -> f64 {
    assert!((0.0..=1.0).contains(&rate), "rate must be between 0 and 1, not {rate}");
    rate
}

impl_debug!(ChaosHandle { on = |this| this.is_on(), rate = |this| this.rate(), injected = |this| this.injected() });

#[cfg(test)]
mod tests {
    use super::*;

    /// Between reading the switch and counting, the layer may be switched off, or off and on again.
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
