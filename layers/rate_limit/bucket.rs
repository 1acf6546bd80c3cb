//! The decision of the rate limit: a bucket of tokens, as the *generic cell rate algorithm* (GCRA).
//!
//! A bucket that holds `burst` tokens and gains one each `interval` is described by a single number: the time at which
//! it will be full. Taking a token moves that time by one interval into the future. The bucket lacks as many tokens as
//! intervals remain until then, so a call is admitted while no more than `burst` intervals remain. One atomic word
//! therefore decides, and a call that is rejected changes nothing.
//!
//! The time is counted in ticks of 1/64 ns, because a limit may be one of bytes: at a billion tokens per second, an
//! interval is 64 ticks. An interval is rounded up to whole ticks, so that the rate is never exceeded.

#[cfg(all(test, ziggurat_loom))]
use loom::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
#[cfg(not(all(test, ziggurat_loom)))]
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use crate::clock::Instant;

const TICKS_PER_NANO: u64 = 64;

/// The longest time until a bucket is full, in ticks: 2.3 years.
const LONGEST: u64 = 1 << 62;

/// The count of ticks wraps around after 9.1 years. A bucket that will be full in more than half of that time was full
/// long ago.
const FUTURE: u64 = 1 << 63;

/// How many tokens a bucket holds, and how fast it gains them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Rate {
    pub(super) quantity: u32,
    pub(super) period: Duration,
    /// `None` if it is the quantity.
    pub(super) burst: Option<u32>,
}

/// A bucket of tokens, which starts full.
#[derive(Debug)]
pub(super) struct Bucket {
    epoch: Instant,
    /// When it is full, in ticks since the epoch. It wraps around.
    full_at: AtomicU64,
    /// The number of ticks in which it gains a token.
    interval: AtomicU64,
    burst: AtomicU32,
}

/// Why a call gets no tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Denied {
    /// It gets them after this time, if no other call does.
    Wait(Duration),
    /// It never gets them, because it needs more than the bucket can hold.
    Never { burst: u32 },
}

impl Rate {
    #[track_caller]
    pub(super) fn new(quantity: u32, period: Duration) -> Self {
        assert!(quantity > 0, "`quantity` must be at least 1: with no tokens nothing could ever pass");
        assert!(!period.is_zero(), "`period` must not be zero: without a limit, leave the layer out");
        Self { quantity, period, burst: None }
    }

    /// The number of tokens in a full bucket: at least 1, and no more than fit into [`LONGEST`].
    pub(super) fn burst(&self) -> u32 {
        let most = u32::try_from(LONGEST / self.interval()).unwrap_or(u32::MAX);
        self.burst.unwrap_or(self.quantity).min(most)
    }

    /// The time in which an empty bucket becomes full.
    pub(super) fn window(&self) -> Duration {
        let nanos = (self.period.as_nanos() * u128::from(self.burst())).div_ceil(self.quantity.into());
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }

    fn interval(&self) -> u64 {
        let exact = self.period.as_nanos().saturating_mul(TICKS_PER_NANO.into()).div_ceil(self.quantity.into());
        u64::try_from(exact).unwrap_or(u64::MAX).min(LONGEST)
    }
}

impl Bucket {
    pub(super) fn new(rate: Rate, now: Instant) -> Self {
        Self {
            epoch: now,
            full_at: AtomicU64::new(0),
            interval: AtomicU64::new(rate.interval()),
            burst: AtomicU32::new(rate.burst()),
        }
    }

    /// Takes `cost` tokens, or none.
    #[inline]
    pub(super) fn take(&self, now: Instant, cost: u32) -> Result<(), Denied> {
        let (now, interval, burst) = (self.ticks(now), self.interval.load(Relaxed), self.burst.load(Relaxed));
        if cost > burst {
            return Err(Denied::Never { burst });
        }
        let (need, room) = (time(interval, cost.into()), time(interval, burst.into()));
        let taken = self.full_at.fetch_update(Relaxed, Relaxed, |full_at| {
            let after = lacking(full_at, now) + need;
            (after <= room).then(|| now.wrapping_add(after))
        });
        match taken {
            Ok(_) => Ok(()),
            Err(full_at) => Err(Denied::Wait(duration(lacking(full_at, now) + need - room))),
        }
    }

    /// Returns why a call does not get `cost` tokens, if others first take tokens for `before`.
    pub(super) fn denied(&self, now: Instant, cost: u32, before: u64) -> Denied {
        match self.burst.load(Relaxed) {
            burst if cost > burst => Denied::Never { burst },
            _ => Denied::Wait(self.time_until(now, before.saturating_add(cost.into()))),
        }
    }

    /// Returns the time until this number of tokens can have been taken, by calls one after another.
    pub(super) fn time_until(&self, now: Instant, tokens: u64) -> Duration {
        let (interval, burst) = (self.interval.load(Relaxed), self.burst.load(Relaxed));
        let lacking = lacking(self.full_at.load(Relaxed), self.ticks(now));
        let time_of_all = interval.saturating_mul(tokens);
        duration(lacking.saturating_add(time_of_all).saturating_sub(time(interval, burst.into())))
    }

    /// Returns the number of tokens in the bucket.
    pub(super) fn available(&self, now: Instant) -> u32 {
        let (interval, burst) = (self.interval.load(Relaxed), self.burst.load(Relaxed));
        let room = time(interval, burst.into());
        let left = room.saturating_sub(lacking(self.full_at.load(Relaxed), self.ticks(now)));
        u32::try_from(left / interval).unwrap_or(u32::MAX)
    }

    /// Returns tokens that were taken for a call that was not made.
    ///
    /// Those that the bucket would not have had room for by now, because it gains tokens all the time, are lost: with
    /// them, the calls since then and those to come could exceed the rate.
    pub(super) fn give_back(&self, cost: u32, taken_at: Instant, now: Instant) {
        let elapsed = lacking(self.ticks(now), self.ticks(taken_at));
        let unused = time(self.interval.load(Relaxed), cost.into()).saturating_sub(elapsed);
        self.change(now, |lacking| lacking.saturating_sub(unused));
    }

    /// Corrects the cost of a call that has taken `taken` tokens, now that its true cost is known. Tokens
    /// that it costs beyond those are missing, even from an empty bucket. Tokens that it does not cost go back, up to a
    /// full bucket.
    pub(super) fn settle(&self, taken: u32, cost: u64, now: Instant) {
        let (interval, taken) = (self.interval.load(Relaxed), u64::from(taken));
        let more = interval.saturating_mul(cost.saturating_sub(taken));
        let less = interval.saturating_mul(taken.saturating_sub(cost));
        self.change(now, |lacking| lacking.saturating_add(more).saturating_sub(less));
    }

    /// Changes the rate. As many tokens are lacking as before, but no more than the bucket can hold, unless it lacked
    /// more before.
    pub(super) fn set(&self, rate: Rate, now: Instant) {
        let (interval, burst) = (rate.interval(), rate.burst());
        let before = self.interval.swap(interval, Relaxed);
        let burst_before = self.burst.swap(burst, Relaxed);
        self.change(now, |lacking| {
            let debt = lacking.saturating_sub(time(before, burst_before.into()));
            let kept = (u128::from(lacking - debt) * u128::from(interval)).div_ceil(before.into());
            let kept = u64::try_from(kept).unwrap_or(u64::MAX).min(time(interval, burst.into()));
            let debt = u128::from(debt) * u128::from(interval) / u128::from(before);
            kept.saturating_add(u64::try_from(debt).unwrap_or(u64::MAX))
        });
    }

    /// Replaces the time until the bucket is full.
    fn change(&self, now: Instant, change: impl Fn(u64) -> u64) {
        let now = self.ticks(now);
        let _ = self.full_at.fetch_update(Relaxed, Relaxed, |full_at| {
            let before = lacking(full_at, now);
            let after = change(before).min(LONGEST);
            (after != before).then(|| now.wrapping_add(after))
        });
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
    let ahead = full_at.wrapping_sub(now);
    if ahead < FUTURE { ahead } else { 0 }
}

/// The number of ticks in which the bucket gains these tokens. Never more than the bucket holds: the two numbers may be
/// of different rates while the rate changes.
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
