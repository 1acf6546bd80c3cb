//! Counts the calls that ended recently, and the bad ones among them, over a sliding window.
//!
//! The window is a ring of buckets. Each bucket is one word, `tag | calls | bad calls`, and belongs to a *slot* of time
//! (or of calls). The tag names the slot, so the first call that needs a bucket for a new slot resets it, and no sweep
//! is needed. Recording is one compare-and-swap. Summing is a pass over sixteen words for each ring.
//!
//! Two threads that record in the same bucket at once wait for each other's cache line. From then on a window of time
//! has a further ring for each stripe of threads, and is the sum of all of them: which ring a call is in makes no
//! difference. A window of calls cannot be divided so, because a bucket of it ends with the last call that has room.

#[cfg(all(test, ziggurat_loom))]
use loom::sync::atomic::{AtomicU64, Ordering, fence};
#[cfg(not(all(test, ziggurat_loom)))]
use std::sync::atomic::{AtomicU64, Ordering, fence};
use std::{fmt, iter, num::NonZeroU32, sync::OnceLock, time::Duration};

use crate::{
    clock::Instant,
    stripe::{self, Apart},
};

/// The number of steps in which a window moves, as in Polly.
const STEPS: u32 = 10;

/// The number of buckets in the ring: at least the slots of a window, and a power of two to make the divisions cheap.
const RING: u64 = 16;

/// The layout of a word is `tag: 24 | calls: 20 | bad: 20`.
const COUNT_BITS: u32 = 20;
const COUNT: u64 = (1 << COUNT_BITS) - 1;
const TAG_SHIFT: u32 = 2 * COUNT_BITS;
const TAG: u64 = u64::MAX >> TAG_SHIFT;

/// The number of laps of the ring by which a tag may be ahead and count as newer. Any other difference means a stale
/// bucket.
///
/// Tags wrap around after 2^24 laps: 25 years for a window of 30 s, three days for a window of 10 ms. 4,096 laps are
/// far more than a thread can lag, and few enough that an idle bucket is very unlikely to wrap into this range.
const AHEAD: u64 = 1 << 12;

/// The number of slots between one generation and the next.
///
/// A window's length would be enough. A multiple of the ring makes a late call find its bucket taken by the current
/// generation.
const APART: u64 = 64 * RING;

/// The logarithm of the likelihood ratio that separates evidence from chance: that of four standard deviations. There
/// are many looks at a window, so the usual two or three would be too few: at a rate of 0.5 and five calls per second
/// of which 45 % fail, a circuit opens 11 times in 100 minutes with 2.5, twice with 3, and once in 50 hours with 4.
const EVIDENCE: f64 = 8.0;

/// Fewer calls never distinguish a rate from chance. (The least number of Finagle and Polly.)
pub(super) const FEWEST: u32 = 20;

/// The largest window of calls. In a larger one, a bucket could overflow its count.
pub(super) const MOST_CALLS: u32 = 10_000_000;

/// The range that a window covers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Extent {
    /// The most recent calls within this duration, or within up to a tenth less.
    Time(Duration),
    /// This number of most recent calls, or up to a fifth more.
    Calls(u32),
}

impl Extent {
    /// Caps a number of calls at the size of the window.
    pub(super) fn at_most(self, calls: u32) -> u32 {
        match self {
            Self::Time(_) => calls,
            Self::Calls(all) => calls.min(all),
        }
    }

    /// Returns the number of calls that are enough to know a rate, or zero if it must be distinguished from chance: by
    /// default in a window of time. The user of a window of calls has chosen its size.
    pub(super) fn enough(self, min_calls: Option<NonZeroU32>) -> u32 {
        match (min_calls, self) {
            (Some(calls), _) => self.at_most(calls.get()),
            (None, Self::Calls(all)) => all.min(FEWEST),
            (None, Self::Time(_)) => 0,
        }
    }
}

/// Counts of the calls that ended within an [`Extent`], shared by all threads without a lock.
///
/// A bucket that exceeds 2^20 calls halves its counts. This keeps its rate (to one call in half a million), and gives
/// later calls twice the weight. In a divided window, they then have less weight than those of a ring that is not full.
pub(super) struct Window {
    pace: Pace,
    /// The number of slots that make up the window.
    slots: u64,
    ring: Apart<Ring>,
    /// The rings of the stripes, once threads have met.
    more: OnceLock<Box<[Apart<Ring>; stripe::MOST]>>,
    #[cfg(all(test, ziggurat_loom))]
    made_by: loom::thread::ThreadId,
}

type Ring = [AtomicU64; RING as usize];

/// The result of counting a call in a bucket.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Put {
    /// The first call in its bucket: an older slot has left the window.
    First,
    /// A later call in its bucket, or a call too late to count.
    Next,
    /// The bucket is full.
    Full,
}

/// What moves the window.
enum Pace {
    Time {
        since: Instant,
        nanos: u64,
    },
    /// The first slot with room, and the number of calls in each slot.
    Calls {
        open: AtomicU64,
        calls: u64,
    },
}

/// The sums over a window, or over the newest part of it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Tally {
    pub(super) calls: u32,
    pub(super) bad: u32,
}

impl Tally {
    /// Returns whether at least the fraction `rate` of the calls was bad.
    ///
    /// Divides, because the quotient is rounded like the literal in user code: 7 of 100 is 0.07, but 0.07 * 100 is more
    /// than 7.
    pub(super) fn reaches(self, rate: f64) -> bool {
        self.calls > 0 && f64::from(self.bad) / f64::from(self.calls) >= rate
    }

    /// Returns whether every call was bad, or too many for a service that fails less often than at `rate`: by the
    /// likelihood ratio of their own rate and that one, which is right at low and high rates too.
    pub(super) fn clearly_reaches(self, rate: f64) -> bool {
        let (calls, bad) = (f64::from(self.calls), f64::from(self.bad));
        let part = |seen: f64, expected: f64| if seen > 0.0 { seen * (seen / expected).ln() } else { 0.0 };
        let evidence = part(bad, calls * rate) + part(calls - bad, calls * (1.0 - rate));
        self.reaches(rate) && (evidence >= EVIDENCE || self.bad == self.calls)
    }
}

impl Window {
    /// Creates an empty window. `since` is any moment before the first call ends.
    pub(super) fn new(extent: Extent, since: Instant) -> Self {
        let (pace, slots) = match extent {
            Extent::Time(time) => {
                let nanos = nanos(time / STEPS).max(1);
                (Pace::Time { since, nanos }, STEPS)
            }
            // The newest slot may hold a single call, so the others must hold all but one.
            Extent::Calls(calls) => {
                let width = calls.div_ceil(STEPS).max(1);
                let open = AtomicU64::new(0);
                (Pace::Calls { open, calls: width.into() }, calls.saturating_sub(1).div_ceil(width) + 1)
            }
        };
        let window = Self {
            pace,
            slots: slots.into(),
            ring: Apart::default(),
            more: OnceLock::new(),
            #[cfg(all(test, ziggurat_loom))]
            made_by: loom::thread::current().id(),
        };
        // Loom does not see that the cell publishes the rings.
        if cfg!(all(test, ziggurat_loom)) {
            window.divide();
        }
        window
    }

    /// Records a call of this generation. Returns its slot, and whether the window moved with it.
    ///
    /// Reads the clock only if the window is one of time.
    ///
    /// Generations are far apart: a call that is recorded late, for an old generation, is outside the current window or
    /// finds its bucket taken.
    pub(super) fn record(&self, generation: u64, clock: impl FnOnce() -> Instant, bad: bool) -> (u64, bool) {
        let mut slot = self.slot(generation, clock);
        let Pace::Calls { open, calls } = &self.pace else {
            return (slot, self.put(slot, u64::MAX, bad) == Put::First);
        };
        let first = APART * generation + RING;
        loop {
            match self.put(slot, *calls, bad) {
                // The first thread that finds the slot full opens the next one, and the others see it.
                Put::Full => {
                    let position = slot - first;
                    let next = open.compare_exchange(position, position + 1, Ordering::Relaxed, Ordering::Relaxed);
                    slot = first + next.map_or_else(|newer| newer, |full| full + 1);
                }
                put => return (slot, put == Put::First),
            }
        }
    }

    /// Counts a call in the bucket of this slot.
    #[inline]
    fn put(&self, slot: u64, room: u64, bad: bool) -> Put {
        let bucket = &self.ring_here()[(slot % RING) as usize];
        let mut word = bucket.load(Ordering::Relaxed);
        loop {
            let next = match (word >> TAG_SHIFT).wrapping_sub(tag(slot)) & TAG {
                0 if (word >> COUNT_BITS) & COUNT >= room => return Put::Full,
                0 => add(word, bad),
                // Too late: the window has moved on.
                1..=AHEAD => return Put::Next,
                _ => add(tag(slot) << TAG_SHIFT, bad),
            };
            // Relaxed, because the counts are the only shared data. `parts` has the fence.
            match bucket.compare_exchange_weak(word, next, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return if word >> TAG_SHIFT == tag(slot) { Put::Next } else { Put::First },
                Err(newer) => {
                    word = newer;
                    self.divide();
                }
            }
        }
    }

    /// Returns the ring of this thread. Under loom, that of the thread which made the window, or of all others.
    #[inline]
    fn ring_here(&self) -> &Ring {
        #[cfg(all(test, ziggurat_loom))]
        if self.made_by == loom::thread::current().id() {
            return &self.ring.0;
        }
        match self.more.get() {
            None => &self.ring.0,
            Some(more) => &more[stripe::here() % stripe::MOST].0,
        }
    }

    /// Gives each stripe a ring of its own from now on, because two threads have met.
    #[cold]
    fn divide(&self) {
        if let Pace::Time { .. } = self.pace {
            self.more.get_or_init(Box::default);
        }
    }

    /// Sums the window of this generation at `now`.
    pub(super) fn held(&self, generation: u64, now: Instant) -> Tally {
        self.tally(self.slot(generation, || now))
    }

    /// Returns the current slot of this generation.
    fn slot(&self, generation: u64, clock: impl FnOnce() -> Instant) -> u64 {
        // The first lap stays empty, so that the window of the first slot does not start below zero.
        let first = APART * generation + RING;
        first
            + match &self.pace {
                Pace::Time { since, nanos: width } => nanos(clock().saturating_duration_since(*since)) / width,
                Pace::Calls { open, .. } => open.load(Ordering::Relaxed),
            }
    }

    /// Sums the window as seen from a slot in which this thread has just recorded a call.
    ///
    /// If two threads record at the same time and then sum, at least one of them sees both calls, even in different
    /// buckets: each records before the fence, reads after it, and also looks at slots newer than its own.
    pub(super) fn tally(&self, slot: u64) -> Tally {
        self.parts(slot).last().unwrap_or_default()
    }

    /// Sums the newest slot, the newest two, and so on up to the whole window, as [`tally`](Self::tally) does.
    pub(super) fn parts(&self, slot: u64) -> impl Iterator<Item = Tally> {
        fence(Ordering::SeqCst);
        // The slots after `slot - RING`, up to a lap after `slot`.
        let mut held = [Tally::default(); 2 * RING as usize];
        let place = move |held: u64| (held + RING - slot - 1) as usize;
        let mut newest = slot;
        let more = self.more.get().into_iter().flat_map(|more| more.iter().map(|ring| &ring.0));
        for ring in iter::once(&self.ring.0).chain(more) {
            for (index, bucket) in (0..).zip(ring) {
                let word = bucket.load(Ordering::Relaxed);
                if let Some(slot) = slot_of(index, word, slot) {
                    newest = newest.max(slot);
                    held[place(slot)].calls += count(word >> COUNT_BITS);
                    held[place(slot)].bad += count(word);
                }
            }
        }
        (0..self.slots).scan(Tally::default(), move |sum, age| {
            let Tally { calls, bad } = held[place(newest - age)];
            sum.calls += calls;
            sum.bad += bad;
            Some(*sum)
        })
    }
}

/// Returns the slot that a bucket holds, if it is less than a lap older than `slot`, or at most a lap newer.
fn slot_of(index: u64, word: u64, slot: u64) -> Option<u64> {
    let older = slot - (slot + RING - index) % RING;
    [older, older + RING].into_iter().find(|slot| tag(*slot) == word >> TAG_SHIFT)
}

fn tag(slot: u64) -> u64 {
    (slot / RING) & TAG
}

/// Adds a call to a word.
fn add(word: u64, bad: bool) -> u64 {
    let full = (word >> COUNT_BITS) & COUNT == COUNT;
    let word = if full {
        ((word >> TAG_SHIFT) << TAG_SHIFT) | ((COUNT / 2) << COUNT_BITS) | ((word & COUNT) / 2)
    } else {
        word
    };
    word + (1 << COUNT_BITS) + u64::from(bad)
}

/// Extracts the lowest count of a word. It has 20 bits, so it always fits.
fn count(word: u64) -> u32 {
    (word & COUNT) as u32
}

/// Converts to nanoseconds, capped at 292 years so that a slot has room for its generation.
fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX).min(u64::MAX / 2)
}

impl fmt::Debug for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Window").field("slots", &self.slots).finish_non_exhaustive()
    }
}

#[cfg(all(test, not(ziggurat_loom)))]
mod tests;
