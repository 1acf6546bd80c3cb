//! A time limit in one word.

use std::time::Duration;

use super::slot;
use crate::clock::{self, Instant};

/// A time limit: none, a duration that has not started yet, or an instant.
///
/// It is one word because every call and every poll swaps it. Of two limits of the same kind, the smaller word is the
/// earlier one, and [`NONE`](Self::NONE) is the largest.
///
/// | word | meaning |
/// |---|---|
/// | below 2^62 | not started: a duration in nanoseconds (up to 146 years) |
/// | 2^62 to 2^63 | an instant: its offset in nanoseconds from this process's first clock read, which is 2^62 + 2^61 |
/// | the largest | none |
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Limit(u64);

const INSTANTS: u64 = 1 << 62;
const FIRST_ASKED: u64 = INSTANTS + (1 << 61);

slot!(Limit, Limit::NONE);

impl Default for Limit {
    #[inline]
    fn default() -> Self {
        Self::NONE
    }
}

impl Limit {
    pub(crate) const NONE: Self = Self(u64::MAX);
    pub(crate) const ZERO: Self = Self(0);

    /// Creates a limit that has not started. A duration that is too long for the word becomes [`NONE`](Self::NONE).
    #[inline]
    pub(crate) fn after(time: Duration) -> Self {
        match time.as_secs().checked_mul(1_000_000_000) {
            Some(nanos) if nanos < INSTANTS - 1_000_000_000 => Self(nanos + u64::from(time.subsec_nanos())),
            _ => Self::NONE,
        }
    }

    pub(crate) fn at(instant: Instant) -> Self {
        let origin = clock::first_asked();
        let word = match instant.checked_duration_since(origin) {
            Some(after) => Self::after(after).0.checked_add(FIRST_ASKED),
            None => FIRST_ASKED.checked_sub(Self::after(origin - instant).0),
        };
        Self(word.unwrap_or(u64::MAX)).or_none()
    }

    #[inline]
    pub(crate) fn is_unstarted(self) -> bool {
        self.0 < INSTANTS
    }

    /// Returns whether the limit has not started, or is [`NONE`](Self::NONE).
    #[inline]
    pub(super) fn is_pending(self) -> bool {
        self.is_unstarted() || self == Self::NONE
    }

    /// Returns the limit's duration, if it has not started.
    pub(crate) fn duration(self) -> Option<Duration> {
        self.is_unstarted().then(|| Duration::from_nanos(self.0))
    }

    /// Returns the limit's end, if it has started.
    pub(crate) fn instant(self) -> Option<Instant> {
        if self.is_pending() {
            return None;
        }
        let origin = clock::first_asked();
        match self.0.checked_sub(FIRST_ASKED) {
            Some(after) => origin.checked_add(Duration::from_nanos(after)),
            None => origin.checked_sub(Duration::from_nanos(FIRST_ASKED - self.0)),
        }
    }

    /// Returns the limit if it starts at `start`. A limit that has started stays the same.
    pub(crate) fn started(self, start: Self) -> Self {
        if self.is_unstarted() { Self(self.0.saturating_add(start.0)).or_none() } else { self }
    }

    /// Returns the duration from `start` to this instant, or the start of a limit of duration `start` that ends at it.
    pub(crate) fn since(self, start: Self) -> Self {
        Self(self.0.saturating_sub(start.0))
    }

    /// Returns the earlier of two limits. If only one of them has started, the other one starts now.
    #[inline]
    pub(crate) fn earlier(&mut self, other: &mut Self) -> Self {
        if *self != Self::NONE && *other != Self::NONE && self.is_unstarted() != other.is_unstarted() {
            let now = Self::at(clock::now());
            *self = self.started(now);
            *other = other.started(now);
        }
        (*self).min(*other)
    }

    /// Instants beyond the range of the word become [`NONE`](Self::NONE).
    fn or_none(self) -> Self {
        if self.0 < INSTANTS << 1 { self } else { Self::NONE }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_word_holds_times_and_instants_to_the_nanosecond() {
        let year = Duration::from_secs(365 * 24 * 60 * 60);
        for time in [Duration::ZERO, Duration::from_nanos(1), SECOND, 100 * year] {
            let limit = Limit::after(time);
            assert_eq!((limit.duration(), limit.instant()), (Some(time), None));
        }
        assert_eq!(Limit::after(200 * year), Limit::NONE);
        let now = clock::now();
        for instant in [now, now + Duration::from_nanos(1), now + 50 * year, now - SECOND] {
            let limit = Limit::at(instant);
            assert_eq!((limit.duration(), limit.instant()), (None, Some(instant)));
        }
        assert_eq!(Limit::at(now + 100 * year), Limit::NONE);
        assert_eq!((Limit::NONE.duration(), Limit::NONE.instant()), (None, None));
    }

    #[test]
    fn a_time_that_starts_is_an_instant() {
        let now = clock::now();
        let (start, second) = (Limit::at(now), Limit::after(SECOND));
        assert_eq!(second.started(start), Limit::at(now + SECOND));
        assert_eq!(start.started(start), start);
        assert_eq!(Limit::NONE.started(start), Limit::NONE);
        assert_eq!(second.started(start).since(second), start);
        assert_eq!(
            Limit::after(Duration::from_secs(1 << 31)).started(Limit::at(now + Duration::from_secs(1 << 31))),
            Limit::NONE
        );
    }

    #[test]
    fn the_earlier_one_counts_whatever_has_started() {
        let now = clock::now();
        let (mut hour, mut day) = (Limit::after(3600 * SECOND), Limit::after(86_400 * SECOND));
        assert_eq!(hour.earlier(&mut day), hour);
        assert!(day.is_unstarted());
        assert_eq!(hour.earlier(&mut Limit::NONE.clone()), hour);
        assert_eq!(Limit::NONE.clone().earlier(&mut hour), hour);
        // One has started, so the other one starts now.
        let mut soon = Limit::at(now + SECOND);
        assert_eq!(hour.earlier(&mut soon), Limit::at(now + SECOND));
        assert!(!hour.is_unstarted());
    }
}
