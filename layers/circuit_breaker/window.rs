//! What happened lately: how many calls ended, and how many of them badly, over a window that slides.
//!
//! The window is a ring of buckets, each one word of `tag | calls | bad calls`. A bucket belongs to a *slot* of time (or of
//! calls); the tag says to which, so that a bucket is emptied by the first call that needs it again and nobody has to
//! sweep. Recording is one compare-and-swap, summing is a pass over sixteen words.

#[cfg(all(test, ziggurat_loom))]
use loom::sync::atomic::{AtomicU64, Ordering, fence};
#[cfg(not(all(test, ziggurat_loom)))]
use std::sync::atomic::{AtomicU64, Ordering, fence};
use std::{fmt, time::Duration};

use crate::clock::Instant;

/// In how many steps a window slides: Polly's choice.
const STEPS: u32 = 10;

/// Buckets in the ring: no fewer than a window has slots, and a power of two, for the sake of the divisions.
const RING: u64 = 16;

/// A word is `tag: 24 | calls: 20 | bad: 20`.
const COUNT_BITS: u32 = 20;
const COUNT: u64 = (1 << COUNT_BITS) - 1;
const TAG_SHIFT: u32 = 2 * COUNT_BITS;
const TAG: u64 = u64::MAX >> TAG_SHIFT;

/// A tag that is ahead by at most this many laps of the ring is newer than ours; any other difference is a relic.
///
/// Tags wrap around after 2^24 laps (25 years of a window of 30 s, three days of one of 10 ms). The few laps that count as newer
/// are far more than a thread can be late, and so few that a bucket is hardly ever left alone for just as long as to look so.
const AHEAD: u64 = 1 << 12;

/// How many slots lie between a generation and the next.
///
/// More than a window would do; a multiple of the ring, so that a late call meets the bucket that its slot of today has taken.
const APART: u64 = 64 * RING;

/// A bucket of a window of more calls than this would have to hold more than its word can count.
pub(super) const MOST_CALLS: u32 = 10_000_000;

/// How far a window reaches back.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Extent {
    /// The last so much time: no more, and at most a tenth less.
    Time(Duration),
    /// The last so many calls: no fewer, and at most a fifth more.
    Calls(u32),
}

impl Extent {
    /// So many calls, or as many as it ever holds.
    pub(super) fn at_most(self, calls: u32) -> u32 {
        match self {
            Self::Time(_) => calls,
            Self::Calls(all) => calls.min(all),
        }
    }
}

/// Counts of the calls that ended within an [`Extent`], shared by all threads without a lock.
///
/// More than 2^20 calls in one bucket halve what it holds, which keeps its rate (to one call in half a million) and
/// lets what came later weigh twice as much.
pub(super) struct Window {
    pace: Pace,
    /// So many slots make the window.
    slots: u64,
    buckets: [AtomicU64; RING as usize],
}

/// What became of a call that was counted in a bucket.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Put {
    /// It is the first one there: an older slot has left the window.
    First,
    /// It came to others, or too late to count.
    Next,
    /// The bucket has no room.
    Full,
}

/// What moves the window on.
enum Pace {
    Time {
        since: Instant,
        nanos: u64,
    },
    /// The first slot that has room, for so many calls each.
    Calls {
        open: AtomicU64,
        calls: u64,
    },
}

/// What a window holds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Tally {
    pub(super) calls: u32,
    pub(super) bad: u32,
}

impl Tally {
    /// Whether at least this part of the calls was bad.
    ///
    /// A division, because it is rounded as the literal that the user wrote: 7 of 100 is 0.07, but 0.07 * 100 is more than 7.
    pub(super) fn reaches(self, rate: f64) -> bool {
        self.calls > 0 && f64::from(self.bad) / f64::from(self.calls) >= rate
    }
}

impl Window {
    /// An empty window; `since` is any moment before the first call ends.
    pub(super) fn new(extent: Extent, since: Instant) -> Self {
        let (pace, slots) = match extent {
            Extent::Time(time) => {
                let nanos = nanos(time / STEPS).max(1);
                (Pace::Time { since, nanos }, STEPS)
            }
            // The newest slot may hold a single call, so the others have to hold all but one.
            Extent::Calls(calls) => {
                let width = calls.div_ceil(STEPS).max(1);
                let open = AtomicU64::new(0);
                (Pace::Calls { open, calls: width.into() }, calls.saturating_sub(1).div_ceil(width) + 1)
            }
        };
        Self { pace, slots: slots.into(), buckets: Default::default() }
    }

    /// Records a call of this generation, and says into which slot, and whether the window slid on with it. Reads the clock only if the
    /// window is one of time.
    ///
    /// Generations lie far apart: whatever is recorded late for an old one lies outside the window of the current one, or
    /// finds its bucket taken.
    pub(super) fn record(&self, generation: u64, clock: impl FnOnce() -> Instant, bad: bool) -> (u64, bool) {
        // The first lap stays empty, so that the window of the first slot does not reach below zero.
        let first = APART * generation + RING;
        match &self.pace {
            Pace::Time { since, nanos: width } => {
                let slot = first + nanos(clock().saturating_duration_since(*since)) / width;
                (slot, self.put(slot, u64::MAX, bad) == Put::First)
            }
            Pace::Calls { open, calls } => {
                let mut position = open.load(Ordering::Relaxed);
                loop {
                    match self.put(first + position, *calls, bad) {
                        // Whoever finds it full opens the next one; who comes second sees that it is open.
                        Put::Full => {
                            let next =
                                open.compare_exchange(position, position + 1, Ordering::Relaxed, Ordering::Relaxed);
                            position = next.map_or_else(|newer| newer, |full| full + 1);
                        }
                        put => return (first + position, put == Put::First),
                    }
                }
            }
        }
    }

    /// Counts a call in the bucket of this slot.
    #[inline]
    fn put(&self, slot: u64, room: u64, bad: bool) -> Put {
        // The counts are all there is to see, so nothing has to be ordered here; see `tally`.
        let before = self.bucket(slot).fetch_update(Ordering::Relaxed, Ordering::Relaxed, |word| {
            match (word >> TAG_SHIFT).wrapping_sub(tag(slot)) & TAG {
                0 if (word >> COUNT_BITS) & COUNT >= room => None,
                0 => Some(add(word, bad)),
                1..=AHEAD => None, // too late: the window has moved on
                _ => Some(add(tag(slot) << TAG_SHIFT, bad)),
            }
        });
        match before {
            Ok(word) if word >> TAG_SHIFT != tag(slot) => Put::First,
            Ok(_) => Put::Next,
            Err(word) if word >> TAG_SHIFT == tag(slot) => Put::Full,
            // A bucket that is not this slot's any more takes nothing, and never will.
            Err(_) => Put::Next,
        }
    }

    /// What the window holds, seen from a slot into which this thread has just recorded.
    ///
    /// Of two threads that record at the same time and then ask, one at least sees both calls, whatever buckets they fell
    /// into: each records before the fence and reads after it, and looks at slots that are newer than its own as well.
    pub(super) fn tally(&self, slot: u64) -> Tally {
        fence(Ordering::SeqCst);
        let words: [u64; RING as usize] = std::array::from_fn(|index| self.buckets[index].load(Ordering::Relaxed));
        let held = || (0..).zip(words).filter_map(|(index, word)| Some((slot_of(index, word, slot)?, word)));
        let newest = held().map(|(slot, _)| slot).fold(slot, u64::max);
        held().filter(|(slot, _)| slot + self.slots > newest).fold(Tally::default(), |sum, (_, word)| Tally {
            calls: sum.calls + count(word >> COUNT_BITS),
            bad: sum.bad + count(word),
        })
    }

    fn bucket(&self, slot: u64) -> &AtomicU64 {
        &self.buckets[(slot % RING) as usize]
    }
}

/// The slot that a bucket holds, if it is less than a lap older than this one, or at most a lap newer.
fn slot_of(index: u64, word: u64, slot: u64) -> Option<u64> {
    let older = slot - (slot + RING - index) % RING;
    [older, older + RING].into_iter().find(|slot| tag(*slot) == word >> TAG_SHIFT)
}

fn tag(slot: u64) -> u64 {
    (slot / RING) & TAG
}

/// One call more, in a word that has room for it.
fn add(word: u64, bad: bool) -> u64 {
    let full = (word >> COUNT_BITS) & COUNT == COUNT;
    let word = if full {
        ((word >> TAG_SHIFT) << TAG_SHIFT) | ((COUNT / 2) << COUNT_BITS) | ((word & COUNT) / 2)
    } else {
        word
    };
    word + (1 << COUNT_BITS) + u64::from(bad)
}

/// The lowest count of a word: 20 bits, so it always fits.
fn count(word: u64) -> u32 {
    (word & COUNT) as u32
}

/// At most 292 years, so that a slot has room for its generation.
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
