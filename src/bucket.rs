//! The decision of a rate limit: a bucket of tokens, as the *generic cell rate algorithm* (GCRA).
//!
//! A bucket that holds `burst` tokens and gains one each `interval` is described by a single number: the time at which
//! it will be full. Taking a token moves that time by one interval into the future. The bucket lacks as many tokens as
//! intervals remain until then, so a call is admitted while no more than `burst` intervals remain. One atomic word
//! therefore decides, and a call that is rejected changes nothing.
//!
//! The time is counted in ticks of 1/64 ns, because a limit may be one of bytes: at a billion tokens per second, an
//! interval is 64 ticks. An interval is rounded up to an even number of ticks, so that the rate is never exceeded, and
//! the lowest bit of the word is free to say which of two rates the bucket has. A new rate thus takes effect together
//! with the time that the bucket needs at it, and a call never mixes the two.

#[cfg(all(test, ziggurat_loom))]
use loom::sync::atomic::{
    AtomicU32, AtomicU64,
    Ordering::{Acquire, Relaxed, Release},
};
#[cfg(not(all(test, ziggurat_loom)))]
use std::sync::atomic::{
    AtomicU32, AtomicU64,
    Ordering::{Acquire, Relaxed, Release},
};
use std::time::Duration;

use crate::clock::Instant;

const TICKS_PER_NANO: u64 = 64;

/// The longest time until a bucket is full, in ticks: 2.3 years.
const LONGEST: u64 = 1 << 62;

/// The count of ticks wraps around after 9.1 years. A bucket that will be full in more than half of that time was full
/// long ago.
const FUTURE: u64 = 1 << 63;

/// The bit of the word that selects the rate. All times are even.
const RATE: u64 = 1;

/// How many tokens a bucket holds, and how fast it gains them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Rate {
    pub(crate) quantity: u32,
    pub(crate) period: Duration,
    /// `None` if it is the quantity.
    pub(crate) burst: Option<u32>,
}

/// A bucket of tokens, which starts full.
#[derive(Debug)]
pub(crate) struct Bucket {
    epoch: Instant,
    /// When it is full, in ticks since the epoch, which wraps around, and in the lowest bit the index of its pace.
    full_at: AtomicU64,
    /// The present pace, and the one before or after it.
    paces: [Pace; 2],
}

#[derive(Debug)]
struct Pace {
    /// The number of ticks in which the bucket gains a token.
    interval: AtomicU64,
    burst: AtomicU32,
}

/// Why a call gets no tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Denied {
    /// It gets them after this time, if no other call does.
    Wait(Duration),
    /// It never gets them, because it needs more than the bucket can hold.
    Never { burst: u32 },
}

impl Rate {
    #[track_caller]
    pub(crate) fn new(quantity: u32, period: Duration) -> Self {
        assert!(quantity > 0, "`quantity` must be at least 1: with no tokens nothing could ever pass");
        assert!(!period.is_zero(), "`period` must not be zero: without a limit, leave the layer out");
        Self { quantity, period, burst: None }
    }

    /// The number of tokens in a full bucket: at least 1, and no more than fit into [`LONGEST`].
    pub(crate) fn burst(&self) -> u32 {
        let most = u32::try_from(LONGEST / self.interval()).unwrap_or(u32::MAX);
        self.burst.unwrap_or(self.quantity).min(most)
    }

    /// The time in which an empty bucket becomes full.
    pub(crate) fn window(&self) -> Duration {
        self.time(self.burst())
    }

    /// The time in which the bucket gains this number of tokens.
    pub(crate) fn time(&self, tokens: u32) -> Duration {
        let nanos = (self.period.as_nanos() * u128::from(tokens)).div_ceil(self.quantity.into());
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }

    fn interval(&self) -> u64 {
        let exact = self.period.as_nanos().saturating_mul(TICKS_PER_NANO.into()).div_ceil(self.quantity.into());
        u64::try_from(exact).unwrap_or(u64::MAX).min(LONGEST).next_multiple_of(2)
    }

    fn pace(&self) -> Pace {
        Pace { interval: AtomicU64::new(self.interval()), burst: AtomicU32::new(self.burst()) }
    }
}

impl Bucket {
    pub(crate) fn new(rate: Rate, now: Instant) -> Self {
        Self { epoch: now, full_at: AtomicU64::new(0), paces: [rate.pace(), rate.pace()] }
    }

    /// Takes `cost` tokens, or none.
    #[inline]
    pub(crate) fn take(&self, now: Instant, cost: u32) -> Result<(), Denied> {
        let now = self.ticks(now);
        let mut full_at = self.full_at.load(Acquire);
        loop {
            let (interval, burst) = self.pace(full_at);
            if cost > burst {
                return Err(Denied::Never { burst });
            }
            let (after, room) = (lacking(full_at, now) + time(interval, cost.into()), time(interval, burst.into()));
            if after > room {
                return Err(Denied::Wait(duration(after - room)));
            }
            let taken = now.wrapping_add(after) | full_at & RATE;
            match self.full_at.compare_exchange_weak(full_at, taken, Relaxed, Acquire) {
                Ok(_) => return Ok(()),
                Err(changed) => full_at = changed,
            }
        }
    }

    /// Returns why a call does not get `cost` tokens, if others first take tokens for `before`.
    pub(crate) fn denied(&self, now: Instant, cost: u32, before: u64) -> Denied {
        match self.pace(self.full_at.load(Acquire)) {
            (_, burst) if cost > burst => Denied::Never { burst },
            _ => Denied::Wait(self.time_until(now, before.saturating_add(cost.into()))),
        }
    }

    /// Returns the time until this number of tokens can have been taken, by calls one after another.
    pub(crate) fn time_until(&self, now: Instant, tokens: u64) -> Duration {
        let full_at = self.full_at.load(Acquire);
        let ((interval, burst), lacking) = (self.pace(full_at), lacking(full_at, self.ticks(now)));
        let time_of_all = interval.saturating_mul(tokens);
        duration(lacking.saturating_add(time_of_all).saturating_sub(time(interval, burst.into())))
    }

    /// Returns the number of tokens in the bucket.
    pub(crate) fn available(&self, now: Instant) -> u32 {
        let full_at = self.full_at.load(Acquire);
        let (interval, burst) = self.pace(full_at);
        let left = time(interval, burst.into()).saturating_sub(lacking(full_at, self.ticks(now)));
        u32::try_from(left / interval).unwrap_or(u32::MAX)
    }

    pub(crate) fn is_full(&self, now: Instant) -> bool {
        lacking(self.full_at.load(Acquire), self.ticks(now)) == 0
    }

    /// Returns tokens that were taken for a call that was not made.
    ///
    /// Those that the bucket would not have had room for by now, because it gains tokens all the time, are lost: with
    /// them, the calls since then and those to come could exceed the rate.
    pub(crate) fn give_back(&self, cost: u32, taken_at: Instant, now: Instant) {
        let elapsed = lacking(self.ticks(now), self.ticks(taken_at));
        self.change(now, |interval, lacking| {
            let unused = time(interval, cost.into()).saturating_sub(elapsed);
            lacking.saturating_sub(unused)
        });
    }

    /// Corrects the cost of a call that has taken `taken` tokens, now that its true cost is known. Tokens
    /// that it costs beyond those are missing, even from an empty bucket. Tokens that it does not cost go back, up to a
    /// full bucket.
    pub(crate) fn settle(&self, taken: u32, cost: u64, now: Instant) {
        let taken = u64::from(taken);
        self.change(now, |interval, lacking| {
            let more = interval.saturating_mul(cost.saturating_sub(taken));
            let less = interval.saturating_mul(taken.saturating_sub(cost));
            lacking.saturating_add(more).saturating_sub(less)
        });
    }

    /// Changes the rate. As many tokens are lacking as before, but no more than the bucket can hold, unless it lacked
    /// more before. Only one thread at a time may call it.
    pub(crate) fn set(&self, rate: Rate, now: Instant) {
        let (now, interval, burst) = (self.ticks(now), rate.interval(), rate.burst());
        let present = self.full_at.load(Relaxed);
        let (before, burst_before) = self.pace(present);
        let Pace { interval: next_interval, burst: next_burst } = &self.paces[((present & RATE) ^ RATE) as usize];
        next_interval.store(interval, Relaxed);
        next_burst.store(burst, Relaxed);
        let _ = self.full_at.fetch_update(Release, Relaxed, |full_at| {
            let lacking = lacking(full_at, now);
            let debt = lacking.saturating_sub(time(before, burst_before.into()));
            let kept = (u128::from(lacking - debt) * u128::from(interval)).div_ceil(before.into());
            let kept = u64::try_from(kept).unwrap_or(u64::MAX).min(time(interval, burst.into()));
            let debt = u128::from(debt) * u128::from(interval) / u128::from(before);
            let after = kept.saturating_add(u64::try_from(debt).unwrap_or(u64::MAX)).min(LONGEST);
            Some(now.wrapping_add(after.next_multiple_of(2)) | (full_at & RATE) ^ RATE)
        });
    }

    /// Replaces the time until the bucket is full, by a function of the interval and that time.
    fn change(&self, now: Instant, change: impl Fn(u64, u64) -> u64) {
        let now = self.ticks(now);
        let _ = self.full_at.fetch_update(Relaxed, Acquire, |full_at| {
            let (interval, _) = self.pace(full_at);
            let before = lacking(full_at, now);
            let after = change(interval, before).min(LONGEST);
            (after != before).then(|| now.wrapping_add(after) | full_at & RATE)
        });
    }

    /// The interval and the burst that a word selects.
    #[inline]
    fn pace(&self, full_at: u64) -> (u64, u32) {
        let Pace { interval, burst } = &self.paces[(full_at & RATE) as usize];
        (interval.load(Relaxed), burst.load(Relaxed))
    }

    #[inline]
    fn ticks(&self, at: Instant) -> u64 {
        let ticks = |time: Duration| (time.as_nanos() as u64).wrapping_mul(TICKS_PER_NANO);
        match at.checked_duration_since(self.epoch) {
            Some(since) => ticks(since),
            None => ticks(self.epoch.saturating_duration_since(at)).wrapping_neg(),
        }
    }
}

/// The number of ticks from `now` until the bucket is full.
#[inline]
fn lacking(full_at: u64, now: u64) -> u64 {
    let ahead = (full_at & !RATE).wrapping_sub(now);
    if ahead < FUTURE { ahead } else { 0 }
}

/// The number of ticks in which the bucket gains these tokens. Never more than the bucket holds: the tokens may have
/// been taken at an earlier rate.
#[inline]
fn time(interval: u64, tokens: u64) -> u64 {
    interval.saturating_mul(tokens).min(LONGEST)
}

fn duration(ticks: u64) -> Duration {
    Duration::from_nanos(ticks.div_ceil(TICKS_PER_NANO))
}

#[cfg(all(test, ziggurat_loom))]
mod model;
#[cfg(all(test, not(ziggurat_loom)))]
mod tests;
