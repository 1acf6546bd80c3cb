//! Backoff: how long to wait before the next attempt.

use std::{ops::RangeInclusive, time::Duration};

/// How long to wait before each attempt: a rule for the first, second, and later waits, and its jitter.
///
/// A plain [`Duration`] converts to a fixed backoff. Arithmetic saturates: no base, factor or number of waits
/// overflows.
///
/// ```
/// use std::time::Duration;
/// use ziggurat::{Backoff, Jitter};
///
/// let backoff = Backoff::exponential(Duration::from_millis(100)).max(Duration::from_secs(1)).jitter(Jitter::None);
/// let waits: Vec<_> = backoff.waits().take(5).map(|wait| wait.as_millis()).collect();
/// assert_eq!(waits, [100, 200, 400, 800, 1000]);
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
#[must_use]
pub struct Backoff {
    base: Duration,
    factor: f64,
    max: Duration,
    jitter: Jitter,
}

/// How a [`Backoff`] randomizes its waits. Without jitter, callers that failed together retry together.
///
/// The formulas are those of "Exponential Backoff And Jitter" (Marc Brooker, AWS Architecture Blog, 2015).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Jitter {
    /// Exactly the wait of the rule.
    None,
    /// From zero to the wait of the rule. Spreads callers best, and is the default.
    #[default]
    Full,
    /// From half of the wait of the rule to all of it. Never immediate, unless the wait is zero.
    Equal,
    /// From the wait of the rule to one and a half times that, at most the maximum. Never shorter than the base.
    ///
    /// Near the maximum, the lower bound is two thirds of the maximum, or the base if that is longer. Callers whose
    /// waits have reached the maximum are therefore spread too. A fixed wait is its own maximum, and gets no jitter.
    Upward,
    /// From the base to three times the previous wait, at most the maximum. The factor is not used.
    Decorrelated,
}

impl Backoff {
    /// Creates a constant backoff without jitter.
    pub const fn fixed(wait: Duration) -> Self {
        Self { base: wait, factor: 1.0, max: wait, jitter: Jitter::None }
    }

    /// Creates a backoff that waits `base` first and doubles each time, without a maximum and with full jitter.
    pub const fn exponential(base: Duration) -> Self {
        Self { base, factor: 2.0, max: Duration::MAX, jitter: Jitter::Full }
    }

    /// Sets the ratio of each wait to the previous one. The default is 2.
    ///
    /// # Panics
    ///
    /// If `factor` is below 1, infinite or not a number.
    #[track_caller]
    pub fn factor(mut self, factor: f64) -> Self {
        assert!(factor.is_finite() && factor >= 1.0, "factor must be a number from 1 up, not {factor}");
        self.factor = factor;
        self
    }

    /// Sets the longest wait.
    ///
    /// # Panics
    ///
    /// If `max` is shorter than the base.
    #[track_caller]
    pub fn max(mut self, max: Duration) -> Self {
        let base = self.base;
        assert!(base <= max, "max must be at least the base of the backoff, which is {base:?}, not {max:?}");
        self.max = max;
        self
    }

    /// Sets how the waits are randomized.
    pub const fn jitter(mut self, jitter: Jitter) -> Self {
        self.jitter = jitter;
        self
    }

    /// Returns an endless iterator over the waits of one call. Each iterator draws its own random numbers.
    #[must_use]
    pub fn waits(&self) -> Waits {
        Waits { backoff: *self, number: 0, last: Duration::ZERO }
    }

    /// Returns the longest possible wait: the maximum, if one is set.
    pub(crate) fn longest(&self) -> Duration {
        self.max
    }

    /// Returns the wait with this number (from 1) without jitter.
    fn rule(&self, number: u32) -> Duration {
        if number <= 1 || self.base.is_zero() {
            return self.base.min(self.max);
        }
        // `powf` instead of `powi`, because the number may be as large as `u32::MAX`. A wait that is too long becomes
        // infinite, and then the maximum.
        let seconds = self.base.as_secs_f64() * self.factor.powf(f64::from(number - 1));
        Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX).min(self.max)
    }

    /// Returns the wait with this number (from 1), given the previous wait.
    pub(crate) fn nth(&self, number: u32, last: Duration) -> Duration {
        let wait = match self.jitter {
            Jitter::Decorrelated => last.max(self.base).saturating_mul(3),
            _ => self.rule(number),
        };
        match self.jitter {
            Jitter::None => wait,
            Jitter::Full => between(Duration::ZERO..=wait),
            Jitter::Equal => between(wait / 2..=wait),
            Jitter::Upward => {
                let least = wait.min((self.max / 3).saturating_mul(2)).max(self.base);
                between(least..=least.saturating_add(least / 2).min(self.max))
            }
            Jitter::Decorrelated => between(self.base..=wait).min(self.max),
        }
    }
}

impl From<Duration> for Backoff {
    fn from(wait: Duration) -> Self {
        Self::fixed(wait)
    }
}

fn between(range: RangeInclusive<Duration>) -> Duration {
    let (low, high) = range.into_inner();
    // Nanoseconds if the span fits into a `u64` (584 years), otherwise seconds.
    let span = high.saturating_sub(low);
    let part = match u64::try_from(span.as_nanos()) {
        Ok(nanos) => Duration::from_nanos(fastrand::u64(0..=nanos)),
        Err(_) => Duration::from_secs(fastrand::u64(0..=span.as_secs())),
    };
    low.saturating_add(part).min(high)
}

/// The waits of one call: see [`Backoff::waits`].
#[derive(Debug, Clone)]
pub struct Waits {
    backoff: Backoff,
    number: u32,
    last: Duration,
}

impl Waits {
    /// Continues with another rule, from the same number.
    pub(crate) fn follow(&mut self, backoff: Backoff) {
        self.backoff = backoff;
    }
}

impl Iterator for Waits {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        self.number = self.number.saturating_add(1);
        self.last = self.backoff.nth(self.number, self.last);
        Some(self.last)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const JITTERS: [Jitter; 5] = [Jitter::None, Jitter::Full, Jitter::Equal, Jitter::Upward, Jitter::Decorrelated];

    /// Shows: R2
    #[test]
    fn a_fixed_backoff_is_always_the_same() {
        let waits = Backoff::fixed(Duration::from_secs(1)).waits();
        assert!(waits.take(100).all(|wait| wait == Duration::from_secs(1)));
    }

    /// Shows: R3
    #[test]
    fn an_exponential_one_doubles() {
        let backoff = Backoff::exponential(Duration::from_secs(2)).jitter(Jitter::None);
        let waits: Vec<_> = backoff.waits().take(4).map(|wait| wait.as_secs()).collect();
        assert_eq!(waits, [2, 4, 8, 16]);
    }

    /// Shows: R3
    #[test]
    fn two_callers_that_fail_together_do_not_try_again_together() {
        let backoff = Backoff::exponential(Duration::from_secs(1));
        let first: Vec<_> = backoff.waits().take(3).collect();
        let second: Vec<_> = backoff.waits().take(3).collect();
        assert_ne!(first, second);
    }

    /// Shows: R3
    #[test]
    fn the_same_seed_gives_the_same_waits() {
        let waits = || {
            fastrand::seed(7);
            Backoff::exponential(Duration::from_secs(1)).waits().take(8).collect::<Vec<_>>()
        };
        assert_eq!(waits(), waits());
    }

    #[test]
    fn a_bad_factor_is_refused_with_its_name() {
        for (factor, said) in [
            (0.5, "factor must be a number from 1 up, not 0.5"),
            (-1.0, "factor must be a number from 1 up, not -1"),
            (f64::NAN, "factor must be a number from 1 up, not NaN"),
            (f64::INFINITY, "factor must be a number from 1 up, not inf"),
        ] {
            let panic = std::panic::catch_unwind(|| Backoff::exponential(Duration::ZERO).factor(factor));
            let message = *panic.unwrap_err().downcast::<String>().unwrap();
            assert_eq!(message, said);
        }
    }

    #[test]
    fn a_maximum_below_the_base_is_refused_with_both() {
        let bases: [fn() -> Backoff; 2] =
            [|| Backoff::exponential(Duration::from_secs(5)), || Backoff::fixed(Duration::from_secs(5))];
        for base in bases {
            let panic = std::panic::catch_unwind(|| base().max(Duration::from_millis(4_999)));
            let message = *panic.unwrap_err().downcast::<String>().unwrap();
            assert_eq!(message, "max must be at least the base of the backoff, which is 5s, not 4.999s");
            assert_eq!(
                base().jitter(Jitter::None).max(Duration::from_secs(5)).waits().nth(9),
                Some(Duration::from_secs(5))
            );
        }
    }

    /// Shows: B2
    #[test]
    fn upward_jitter_only_adds_and_spreads_callers_at_the_maximum_too() {
        let seconds = Duration::from_secs;
        let backoff = Backoff::exponential(seconds(5)).max(seconds(300)).jitter(Jitter::Upward);
        for (number, least, most) in [(1, 5, 7), (2, 10, 15), (6, 160, 240), (7, 200, 300), (100, 200, 300)] {
            let waits: Vec<_> = (0..1_000).map(|_| backoff.nth(number, Duration::ZERO)).collect();
            let (shortest, longest) = (waits.iter().min().unwrap(), waits.iter().max().unwrap());
            assert!(
                *shortest >= seconds(least) && *longest <= seconds(most) + seconds(1) / 2,
                "{shortest:?} {longest:?}"
            );
            assert!(*longest - *shortest > seconds(least) / 4, "{shortest:?} {longest:?}");
        }
        let exact = Backoff::exponential(seconds(5)).max(seconds(5)).jitter(Jitter::Upward);
        assert!(exact.waits().take(10).all(|wait| wait == seconds(5)));
    }

    fn any_duration() -> impl Strategy<Value = Duration> {
        prop_oneof![
            Just(Duration::ZERO),
            Just(Duration::MAX),
            (0..10_u64.pow(12)).prop_map(Duration::from_nanos),
            any::<u64>().prop_map(Duration::from_secs),
        ]
    }

    proptest! {
        /// Compares with a model that multiplies step by step in nanoseconds.
        ///
        /// Shows: R3
        #[test]
        fn every_wait_lies_in_the_bounds_of_its_jitter(
            base in 0..10_u64.pow(10), more in 0..10_u64.pow(12), number in 1..20_u32, jitter in 0..JITTERS.len(),
        ) {
            let (base, max) = (Duration::from_nanos(base), Duration::from_nanos(base + more));
            let mut grown = base.as_nanos();
            for _ in 1..number {
                grown *= 2;
            }
            let rule = grown.min(max.as_nanos());
            let last = base.min(max);
            let wait = Backoff::exponential(base).max(max).jitter(JITTERS[jitter]).nth(number, last).as_nanos();
            // An `f64` has 53 bits: the error for ten seconds times 2^19 is a few nanoseconds.
            let rounding = rule / (1 << 50) + 1;
            match JITTERS[jitter] {
                Jitter::None => prop_assert!(wait.abs_diff(rule) <= rounding),
                Jitter::Full => prop_assert!(wait <= rule + rounding),
                Jitter::Equal => prop_assert!(wait + rounding >= rule / 2 && wait <= rule + rounding),
                Jitter::Upward => {
                    prop_assert!(wait >= base.as_nanos() && wait <= max.as_nanos());
                    prop_assert!(wait + rounding >= rule.min(max.as_nanos() / 3 * 2));
                    prop_assert!(wait <= rule + rule / 2 + rounding);
                }
                Jitter::Decorrelated => {
                    prop_assert!(wait <= max.as_nanos());
                    prop_assert!(wait >= base.as_nanos());
                    prop_assert!(wait <= 3 * last.max(base).as_nanos());
                }
            }
        }

        /// Shows: R3
        #[test]
        fn nothing_overflows(
            base in any_duration(), max in any_duration(), last in any_duration(),
            factor in prop_oneof![Just(1.0), Just(f64::MAX), 1.0..1e9_f64],
            number in prop_oneof![Just(0), Just(1), Just(u32::MAX), any::<u32>()], jitter in 0..JITTERS.len(),
        ) {
            let max = base.max(max);
            let backoff = Backoff::exponential(base).factor(factor).max(max).jitter(JITTERS[jitter]);
            prop_assert!(backoff.nth(number, last) <= max);
        }
    }
}
