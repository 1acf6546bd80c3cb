//! The decision about leases: tokens that this process has taken from the store ahead of its calls.
//!
//! A lease starts at a single token, the one of the call that asks. It doubles each time its tokens are used up within
//! half of the time for which they may be kept, and starts again at one when they were not used in that time. So a
//! process that makes few calls holds nothing, and one that makes many asks the store a few times in each such period.

use std::{ops::RangeInclusive, time::Duration};

use crate::{clock::Instant, store::Quota};

/// The longest time that a denial holds: a bucket is full after 2.3 years.
const LONGEST: Duration = Duration::from_secs(3 * 365 * 24 * 60 * 60);

/// The bounds of leases.
#[derive(Debug, Clone, Copy)]
pub(super) struct Terms {
    /// The greatest number of tokens that are held for one key.
    pub(super) most: u32,
    /// How long they are held.
    pub(super) keep: Duration,
}

/// The lease of one key.
#[derive(Debug, Default)]
pub(super) struct Lease {
    held: Option<Held>,
    /// The number of tokens to ask for.
    size: u32,
    denied: Option<Denied>,
}

#[derive(Debug, Clone, Copy)]
struct Held {
    tokens: u32,
    /// When the latest of them arrived.
    since: Instant,
    /// When they are forgotten.
    until: Instant,
    /// When the oldest of them were taken, by the store's clock.
    at: u64,
    /// The greatest number of them.
    most: u32,
}

/// The store has denied a request, and will deny others until then.
#[derive(Debug, Clone, Copy)]
struct Denied {
    tokens: u32,
    until: Instant,
}

impl Lease {
    /// Returns the number of tokens that are held.
    pub(super) fn tokens(&self, now: Instant) -> u32 {
        self.held.filter(|held| now < held.until).map_or(0, |held| held.tokens)
    }

    /// Takes `cost` tokens of those that are held, or none.
    pub(super) fn spend(&mut self, now: Instant, cost: u32) -> bool {
        let Some(left) = self.tokens(now).checked_sub(cost) else { return false };
        if let Some(held) = &mut self.held {
            held.tokens = left;
        }
        true
    }

    /// Returns when the oldest of the tokens that are held were taken, by the store's clock.
    pub(super) fn at(&self) -> u64 {
        self.held.map_or(0, |held| held.at)
    }

    /// Takes back tokens of a call that was not made, which were taken at `at`, unless they have been held for too
    /// long, or there are too many.
    pub(super) fn take_back(&mut self, now: Instant, tokens: u32, at: u64) {
        if let Some(held) = &mut self.held
            && now < held.until
        {
            held.tokens = held.tokens.saturating_add(tokens).min(held.most);
            held.at = held.at.min(at);
        }
    }

    /// Returns how long a call has to wait that the store would deny too.
    pub(super) fn wait(&self, now: Instant, cost: u32, quota: &Quota) -> Option<Duration> {
        let denied = self.denied.filter(|denied| now < denied.until)?;
        let more = cost.saturating_sub(self.tokens(now)).checked_sub(denied.tokens)?;
        Some((denied.until - now).saturating_add(quota.time(more)))
    }

    /// Returns how many tokens to ask the store for: at least those that are missing for a call of this cost, and at
    /// most as many as may be held, for the calls that wait or that are to come.
    pub(super) fn ask(&mut self, now: Instant, cost: u32, waiting: u64, terms: Terms) -> RangeInclusive<u32> {
        self.size = match self.held {
            Some(held) if now < held.since + terms.keep / 2 => self.size.saturating_mul(2).min(terms.most),
            Some(held) if now < held.until => self.size,
            _ => 1,
        };
        let held = self.tokens(now);
        let missing = cost.saturating_sub(held).max(1);
        let wanted = u32::try_from(waiting).unwrap_or(u32::MAX).max(self.size).min(terms.most);
        missing..=wanted.saturating_sub(held).max(missing)
    }

    /// Receives tokens from the store.
    pub(super) fn granted(&mut self, now: Instant, tokens: u32, at: u64, terms: Terms) {
        let rest = self.held.filter(|held| held.tokens > 0 && now < held.until);
        let before = rest.map_or((0, at), |rest| (rest.tokens, rest.at.min(at)));
        self.denied = None;
        let tokens = before.0.saturating_add(tokens);
        let most = tokens.max(terms.most);
        self.held = Some(Held { tokens, since: now, until: now + terms.keep, at: before.1, most });
    }

    /// Learns that the store has denied this number of tokens.
    pub(super) fn denied(&mut self, now: Instant, tokens: u32, wait: Duration) {
        // A wait of zero would ask again at once.
        let until = now + wait.clamp(Duration::from_nanos(1), LONGEST);
        self.denied = Some(Denied { tokens, until });
    }

    /// Returns the tokens that are held, and when they were taken.
    pub(super) fn end(&mut self, now: Instant) -> Option<(u32, u64)> {
        let held = self.held.take()?;
        (held.tokens > 0 && now < held.until).then_some((held.tokens, held.at))
    }

    /// Returns whether nothing is lost if this is forgotten.
    pub(super) fn is_idle(&self, now: Instant) -> bool {
        let passed = |until: Option<Instant>| until.is_none_or(|until| until <= now);
        passed(self.held.map(|held| held.until)) && passed(self.denied.map(|denied| denied.until))
    }
}

#[cfg(all(test, not(ziggurat_loom)))]
mod tests;
