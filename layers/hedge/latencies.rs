//! The latencies of recent first attempts, and a percentile of them.

use std::time::Duration;

use crate::clock::Instant;

/// Each power of two is divided into this many buckets, so a bucket is at most an eighth wide.
const PER_DOUBLING: u64 = 8;

/// The width of the first buckets in nanoseconds, as a power of two: 8 µs.
const UNIT: u32 = 13;

/// The last bucket ends at 9 minutes, and holds everything above.
const BUCKETS: usize = 192;

/// The weight of a new call. It can be halved sixteen times without rounding.
const ONE: u64 = 1 << 16;

/// All weights are halved when this time has passed.
const HALF_LIFE: Duration = Duration::from_secs(10);

/// A histogram of latencies with logarithmic buckets and weights that decay, and the bucket of one percentile.
///
/// Each request counts once, by its first attempt. The latency of a second attempt is known only if it was the faster
/// one, and would be a biased sample. If the first attempt was dropped, its latency is at least its age.
#[derive(Debug, Clone)]
pub(super) struct Latencies {
    percentile: f64,
    /// The weight that must have been recorded before there is a percentile.
    enough: u64,
    counts: [u64; BUCKETS],
    total: u64,
    /// The bucket of the percentile, and the weight of all buckets below it.
    at: usize,
    below: u64,
    /// The time of the last halving.
    halved: Option<Instant>,
}

impl Latencies {
    pub(super) fn new(percentile: f64, min_calls: u32) -> Self {
        let enough = u64::from(min_calls) * ONE;
        Self { percentile, enough, counts: [0; BUCKETS], total: 0, at: 0, below: 0, halved: None }
    }

    /// Records a call that succeeded.
    pub(super) fn answered(&mut self, latency: Duration, now: Instant) {
        self.decay(now);
        self.record(bucket(latency));
    }

    /// Records a call that succeeded in its first poll, without a clock read.
    pub(super) fn answered_at_once(&mut self) {
        self.record(0);
    }

    /// Records a call that ended at this age without success, and would have taken longer.
    ///
    /// If it is younger than the percentile, its latency may be on either side of it, and it does not count. Callers
    /// that are impatient, or failures that are fast, would otherwise lower the percentile. A call that was `hedged`
    /// has reached the percentile, so it always counts, in the bucket above its age: then the percentile rises until
    /// no more calls reach it than should.
    pub(super) fn lasted(&mut self, age: Duration, hedged: bool, now: Instant) {
        self.decay(now);
        let bucket = bucket(age);
        if hedged || (self.is_known() && bucket >= self.at) {
            self.record((bucket + 1).min(BUCKETS - 1));
        }
    }

    /// Returns the percentile, or `None` before enough calls were recorded. It is rounded up to the end of a bucket.
    pub(super) fn percentile(&self) -> Option<Duration> {
        self.is_known().then(|| end(self.at))
    }

    /// Changes the percentile.
    pub(super) fn set_percentile(&mut self, percentile: f64, min_calls: u32) {
        (self.percentile, self.enough) = (percentile, u64::from(min_calls) * ONE);
        self.settle();
    }

    fn is_known(&self) -> bool {
        self.total > 0 && self.total >= self.enough
    }

    fn record(&mut self, bucket: usize) {
        self.counts[bucket] += ONE;
        self.total += ONE;
        if bucket < self.at {
            self.below += ONE;
        }
        self.settle();
    }

    /// Moves to the first bucket that ends at or above the percentile. It is rarely more than one bucket away.
    fn settle(&mut self) {
        let needed = ((self.percentile * self.total as f64).ceil() as u64).clamp(1, self.total.max(1));
        while self.at > 0 && self.below >= needed {
            self.at -= 1;
            self.below -= self.counts[self.at];
        }
        while self.at < BUCKETS - 1 && self.below + self.counts[self.at] < needed {
            self.below += self.counts[self.at];
            self.at += 1;
        }
    }

    /// Halves all weights, once for each time that has passed, while enough remains. With few calls, the percentile of
    /// older ones is better than none.
    fn decay(&mut self, now: Instant) {
        let halved = *self.halved.get_or_insert(now);
        let times = now.saturating_duration_since(halved).as_secs() / HALF_LIFE.as_secs();
        if times == 0 {
            return;
        }
        self.halved = Some(halved + HALF_LIFE.saturating_mul(u32::try_from(times).unwrap_or(u32::MAX)));
        for _ in 0..times {
            if self.total == 0 || self.total / 2 < self.enough {
                break;
            }
            self.counts.iter_mut().for_each(|count| *count /= 2);
            self.total = self.counts.iter().sum();
        }
        (self.at, self.below) = (0, 0);
        self.settle();
    }
}

fn bucket(latency: Duration) -> usize {
    let units = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX) >> UNIT;
    if units < PER_DOUBLING {
        return units as usize;
    }
    // Eight buckets for the numbers of units below 8, eight from 8 to 15, eight from 16 to 31, and so on.
    let doublings = u64::from(units.ilog2() - PER_DOUBLING.ilog2());
    let bucket = doublings * PER_DOUBLING + (units >> doublings);
    (bucket as usize).min(BUCKETS - 1)
}

/// Returns the latency at which a bucket ends.
fn end(bucket: usize) -> Duration {
    let bucket = bucket as u64;
    let doublings = (bucket / PER_DOUBLING).saturating_sub(1);
    let units = bucket - doublings * PER_DOUBLING + 1;
    Duration::from_nanos((units << doublings) << UNIT)
}

#[cfg(test)]
mod tests {
    use fastrand::Rng;
    use proptest::prelude::*;

    use super::*;
    use crate::clock;

    const MILLI: Duration = Duration::from_millis(1);
    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_bucket_holds_what_is_below_its_end_and_is_at_most_an_eighth_wide() {
        for at in 0..BUCKETS - 1 {
            let just_below = end(at) - Duration::from_nanos(1);
            assert_eq!((bucket(just_below), bucket(end(at))), (at, at + 1));
            let width = end(at + 1) - end(at);
            assert!(at < 8 || width <= end(at) / 8, "{at}");
        }
        assert_eq!((bucket(Duration::ZERO), bucket(Duration::MAX)), (0, BUCKETS - 1));
        assert!((540 * SECOND..560 * SECOND).contains(&end(BUCKETS - 1)));
    }

    #[test]
    fn there_is_no_percentile_before_enough_calls() {
        let (mut latencies, now) = (Latencies::new(0.95, 100), clock::now());
        for _ in 0..99 {
            latencies.answered(MILLI, now);
            assert_eq!(latencies.percentile(), None);
        }
        latencies.answered_at_once();
        assert_eq!(latencies.percentile(), Some(end(bucket(MILLI))));
        assert_eq!(Latencies::new(0.5, 0).percentile(), None, "nothing was recorded");
    }

    #[test]
    fn old_calls_are_forgotten_by_halves_but_not_below_what_is_enough() {
        let (mut latencies, now) = (Latencies::new(0.5, 10), clock::now());
        (0..100).for_each(|_| latencies.answered(SECOND, now));
        (0..60).for_each(|_| latencies.answered(MILLI, now));
        assert_eq!(latencies.percentile(), Some(end(bucket(SECOND))));
        // The hundred now weigh fifty, and the sixty weigh thirty.
        (0..21).for_each(|_| latencies.answered(MILLI, now + HALF_LIFE));
        assert_eq!(latencies.percentile(), Some(end(bucket(MILLI))));
        // However long it is quiet.
        latencies.answered(SECOND, now + 1_000_000 * HALF_LIFE);
        assert!(latencies.percentile().is_some());
        assert!((10 * ONE..22 * ONE).contains(&latencies.total), "{}", latencies.total);
    }

    #[test]
    fn fast_failures_and_impatient_callers_do_not_lower_it() {
        let (mut latencies, now) = (Latencies::new(0.9, 10), clock::now());
        (0..100).for_each(|_| latencies.lasted(MILLI, false, now));
        assert_eq!(latencies.percentile(), None, "they do not count as calls either");
        (0..100).for_each(|_| latencies.answered(100 * MILLI, now));
        let before = latencies.percentile();
        (0..1_000).for_each(|_| latencies.lasted(MILLI, false, now));
        assert_eq!(latencies.percentile(), before);
        (0..100).for_each(|_| latencies.lasted(SECOND, false, now));
        assert!(latencies.percentile() >= Some(SECOND), "calls that end late without success count as slow");
    }

    #[derive(Debug, Clone)]
    enum Step {
        Answered(u64),
        AtOnce,
        Lasted(u64, bool),
        Pass(u64),
        Percentile(f64),
    }

    fn step() -> impl Strategy<Value = Step> {
        let nanos = || prop_oneof![0..100_000_u64, 0..100_000_000_u64, 0..2_000_000_000_000_u64];
        prop_oneof![
            8 => nanos().prop_map(Step::Answered),
            1 => Just(Step::AtOnce),
            4 => (nanos(), any::<bool>()).prop_map(|(nanos, hedged)| Step::Lasted(nanos, hedged)),
            1 => (0..25_u64).prop_map(Step::Pass),
            1 => (0.01..0.999).prop_map(Step::Percentile),
        ]
    }

    proptest! {
        /// Compares the histogram with the list of all calls, each with the end of its bucket and its weight.
        #[test]
        fn it_agrees_with_the_list_of_all_calls(
            percentile in 0.01..0.999, min_calls in 0..20_u32, steps in prop::collection::vec(step(), 0..200),
        ) {
            let (mut latencies, start) = (Latencies::new(percentile, min_calls), clock::now());
            let (mut percentile, mut calls, mut now) = (percentile, Vec::<(Duration, f64)>::new(), 0);
            // When the weights were last halved.
            let mut halved = None;
            let total = |calls: &[(Duration, f64)]| calls.iter().map(|(_, weight)| weight).sum::<f64>();
            let expected = |calls: &[(Duration, f64)], percentile: f64| {
                let mut sorted = calls.to_vec();
                sorted.sort_by_key(|(end, _)| *end);
                let total = total(&sorted);
                let mut weight = 0.0;
                let reached = sorted.iter().find(|(_, more)| {
                    weight += more;
                    weight >= percentile * total
                });
                reached.map(|(end, _)| *end).filter(|_| total >= f64::from(min_calls))
            };
            for step in steps {
                let at = start + Duration::from_secs(now);
                if let Step::Answered(_) | Step::Lasted(..) = step {
                    let since = halved.get_or_insert(now);
                    for _ in 0..(now - *since) / 10 {
                        *since += 10;
                        if total(&calls) / 2.0 >= f64::from(min_calls) {
                            calls.iter_mut().for_each(|(_, weight)| *weight /= 2.0);
                            // The fixed-point weights of the histogram vanish in the end.
                            calls.retain(|(_, weight)| *weight * ONE as f64 >= 1.0);
                        }
                    }
                }
                match step {
                    Step::Answered(nanos) => {
                        latencies.answered(Duration::from_nanos(nanos), at);
                        calls.push((end(bucket(Duration::from_nanos(nanos))), 1.0));
                    }
                    Step::AtOnce => {
                        latencies.answered_at_once();
                        calls.push((end(0), 1.0));
                    }
                    Step::Lasted(nanos, hedged) => {
                        let age = Duration::from_nanos(nanos);
                        latencies.lasted(age, hedged, at);
                        let is_above = expected(&calls, percentile).is_some_and(|percentile| end(bucket(age)) >= percentile);
                        if hedged || is_above {
                            calls.push((end((bucket(age) + 1).min(BUCKETS - 1)), 1.0));
                        }
                    }
                    Step::Pass(seconds) => now += seconds,
                    Step::Percentile(new) => {
                        percentile = new;
                        latencies.set_percentile(new, min_calls);
                    }
                }
                prop_assert_eq!(latencies.percentile(), expected(&calls, percentile));
            }
        }

        /// A call that is hedged at the percentile, and whose hedge wins, is dropped: its latency is never known. The
        /// percentile must not fall below the truth for that, or more and more calls would be hedged.
        ///
        /// Shows: H1
        #[test]
        fn the_share_of_hedged_calls_is_what_the_percentile_says_although_slow_calls_are_dropped(
            seed in any::<u64>(), percentile in prop_oneof![Just(0.5), Just(0.9), Just(0.95), Just(0.99)],
            spread in 1.0..12.0_f64, independent in any::<bool>(),
        ) {
            let mut random = Rng::with_seed(seed);
            let (mut latencies, mut now) = (Latencies::new(percentile, 100), clock::now());
            // From 1 ms to e^spread times as much, with a long tail.
            let mut latency = || MILLI.mul_f64((random.f64().powi(3) * spread).exp());
            let (mut hedged, calls) = (0, 10_000);
            for call in 0..2 * calls {
                now += 10 * MILLI;
                let (first, second) = (latency(), latency());
                // A slow request may be slow on any server.
                let second = if independent { second } else { first };
                let Some(delay) = latencies.percentile().filter(|delay| first > *delay) else {
                    latencies.answered(first, now);
                    continue;
                };
                hedged += u32::from(call >= calls);
                match first <= delay + second {
                    true => latencies.answered(first, now),
                    false => latencies.lasted(delay + second, true, now),
                }
            }
            let (share, expected) = (f64::from(hedged) / f64::from(calls), 1.0 - percentile);
            // Five standard deviations, and a quarter for the time in which the percentile follows its own noise. If
            // losers were left out, the share would be up to ten times as high.
            let chance = 5.0 * (2.0 * expected * percentile / f64::from(calls)).sqrt();
            prop_assert!(share <= 1.25 * expected + chance, "{share} of the calls were hedged");
        }
    }
}
