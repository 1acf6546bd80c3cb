//! A rate of bad calls over a window, and whether it is high enough to open a circuit.
//!
//! If the user sets how many calls are enough, the rate of the whole window decides. By default it must be clear that
//! the rate is not reached by chance, in the whole window or in a newer part of it.

#[cfg(all(test, ziggurat_loom))]
use loom::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
#[cfg(not(all(test, ziggurat_loom)))]
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use super::window::{Extent, FEWEST, Tally, Window};
use crate::clock::Instant;

/// The number of slots in the newest part of a window of time that is worth a look of its own. The newest slot alone
/// may have just begun.
const NEWEST_PART: usize = 2;

/// A rate that can open the circuit.
#[derive(Debug)]
pub(super) struct Rate {
    /// The threshold, as the bits of an `f64`.
    least: AtomicU64,
    window: Window,
    /// Whether a success may open the circuit, because it can complete `min_calls` or the threshold was changed.
    awaits_more: AtomicBool,
}

impl Rate {
    pub(super) fn new(least: f64, extent: Extent, now: Instant) -> Self {
        let (least, window) = (AtomicU64::new(least.to_bits()), Window::new(extent, now));
        Self { least, window, awaits_more: AtomicBool::new(false) }
    }

    /// Counts a call. Returns whether the circuit should open now.
    ///
    /// A call that is not bad can open the circuit in two ways only: good calls leave the window as it moves, or the
    /// call completes `min_calls`. In all other cases there is nothing to sum.
    ///
    /// A call can complete `min_calls` while a bad call is still summing, and miss `awaits_more`. Then the next call is
    /// evaluated instead, however it ends. Seeing it at once would cost every successful call a fence.
    #[inline]
    pub(super) fn count(&self, generation: u64, now: impl Fn() -> Instant, bad: bool, min_calls: &AtomicU32) -> bool {
        let (slot, slides) = self.window.record(generation, now, bad);
        (bad || slides || self.awaits_more.load(Ordering::Relaxed)) && self.is_over(slot, min_calls)
    }

    #[cold]
    fn is_over(&self, slot: u64, min_calls: &AtomicU32) -> bool {
        // Taken before the sum, and set again after it: a call that is summing at the same time may have seen less, and
        // another one may have changed the threshold.
        let awaited = self.awaits_more.load(Ordering::Relaxed) && self.awaits_more.swap(false, Ordering::Acquire);
        let least = f64::from_bits(self.least.load(Ordering::Relaxed));
        let (whole, enough, is_over) = match min_calls.load(Ordering::Relaxed) {
            0 => self.is_clearly_over(slot, least),
            min_calls => {
                let whole = self.window.tally(slot);
                let enough = whole.calls >= min_calls;
                (whole, enough, enough && whole.reaches(least))
            }
        };
        // A sum without a bad call proves nothing: another call may have failed since.
        if !enough && (awaited || whole.bad > 0) {
            self.look_again();
        }
        is_over
    }

    /// Looks at the newest part of the window, at longer ones, and at the whole window: in a long window, the good
    /// calls before an outage would outweigh the bad ones for a long time. Returns the whole, whether each part holds
    /// enough calls, and whether the rate is clearly reached in one of them.
    fn is_clearly_over(&self, slot: u64, least: f64) -> (Tally, bool, bool) {
        let looked_at = self.window.parts(slot).skip(NEWEST_PART - 1);
        looked_at.fold((Tally::default(), true, false), |(_, all_enough, is_over), part| {
            let enough = part.calls >= FEWEST;
            (part, all_enough && enough, is_over || enough && part.clearly_reaches(least))
        })
    }

    /// Sums the window of this generation at `now`.
    pub(super) fn held(&self, generation: u64, now: Instant) -> Tally {
        self.window.held(generation, now)
    }

    pub(super) fn set_least(&self, least: f64) {
        self.least.store(least.to_bits(), Ordering::Relaxed);
        self.look_again();
    }

    /// Lets the next call be evaluated however it ends.
    pub(super) fn look_again(&self) {
        self.awaits_more.store(true, Ordering::Release);
    }
}
