use governor::{Quota, RateLimiter, clock::FakeRelativeClock};
use proptest::prelude::*;

use super::*;

const NANO: Duration = Duration::from_nanos(1);
const SECOND: Duration = Duration::from_secs(1);

fn bucket(quantity: u32, period: Duration, burst: Option<u32>) -> (Bucket, Instant) {
    let (rate, now) = (Rate { burst, ..Rate::new(quantity, period) }, Instant::now());
    (Bucket::new(rate, now), now)
}

fn wait(denied: Result<(), Denied>) -> Duration {
    let Err(Denied::Wait(wait)) = denied else { panic!("no wait: {denied:?}") };
    wait
}

/// Shows: Q1
#[test]
fn a_full_bucket_gives_its_burst_at_once_and_then_a_token_each_interval() {
    // A third of a second is no whole number of ticks.
    let (bucket, start) = bucket(3, SECOND, None);
    assert_eq!(bucket.available(start), 3);
    for left in (0..3).rev() {
        assert_eq!(bucket.take(start, 1), Ok(()));
        assert_eq!(bucket.available(start), left);
    }
    let third = SECOND / 3 + NANO;
    for calls in 0..100 {
        let now = start + calls * third;
        assert!(wait(bucket.take(now, 1)) <= third);
        assert_eq!(bucket.take(now + third, 1), Ok(()));
    }
}

/// Shows: Q2
#[test]
fn a_call_that_is_rejected_takes_nothing() {
    let (bucket, start) = bucket(2, SECOND, None);
    assert_eq!(bucket.take(start, 1), Ok(()));
    for _ in 0..1000 {
        assert_eq!(wait(bucket.take(start, 2)), SECOND / 2);
        assert_eq!(bucket.take(start, 3), Err(Denied::Never { burst: 2 }));
    }
    assert_eq!(bucket.take(start, 1), Ok(()));
}

#[test]
fn a_burst_may_be_smaller_or_larger_than_the_quantity() {
    for burst in [1, 7, 1_000_000] {
        let (bucket, now) = bucket(5, SECOND, Some(burst));
        assert_eq!(bucket.take(now, burst), Ok(()));
        assert_eq!(wait(bucket.take(now, 1)), SECOND / 5);
    }
}

#[test]
fn a_clock_that_stands_still_or_goes_back_gives_no_tokens() {
    let (bucket, start) = bucket(2, SECOND, None);
    let now = start + 10 * SECOND;
    assert_eq!(bucket.take(now, 2), Ok(()));
    assert_eq!(wait(bucket.take(now, 1)), SECOND / 2);
    assert_eq!(wait(bucket.take(now - SECOND, 1)), SECOND * 3 / 2);
    // Before the bucket was made, as on a clock that was paused.
    assert_eq!(wait(bucket.take(start - SECOND, 1)), SECOND * 23 / 2);
    assert_eq!(bucket.available(start), 0);
    assert_eq!(bucket.take(now + SECOND / 2, 1), Ok(()));
}

#[test]
fn extreme_rates_neither_overflow_nor_let_everything_through() {
    for quantity in [1, 5, u32::MAX] {
        for period in [NANO, SECOND, 365 * 24 * 3600 * SECOND, Duration::MAX] {
            for burst in [None, Some(1), Some(u32::MAX)] {
                let (bucket, start) = bucket(quantity, period, burst);
                let rate = Rate { burst, ..Rate::new(quantity, period) };
                let burst = rate.burst();
                assert!(burst > 0 && burst <= rate.burst.unwrap_or(quantity));
                assert_eq!(bucket.take(start, burst), Ok(()), "{quantity} in {period:?}, {burst} at once");
                assert_eq!(bucket.available(start), 0);
                let wait = wait(bucket.take(start, burst));
                assert!(!wait.is_zero());
                assert_eq!(bucket.take(start + wait, burst), Ok(()), "{quantity} in {period:?}, {burst} at once");
                assert!(!bucket.time_until(start, u64::MAX).is_zero());
                bucket.give_back(burst, start, start);
                bucket.settle(1, u64::MAX, start);
                bucket.settle(u32::MAX, 0, start);
                bucket.set(Rate::new(u32::MAX, NANO), start);
                bucket.set(Rate { burst: Some(u32::MAX), ..Rate::new(1, Duration::MAX) }, start);
            }
        }
    }
}

#[test]
fn a_bucket_works_beyond_the_range_of_its_count_of_ticks() {
    let (bucket, start) = bucket(2, SECOND, None);
    for years in (0..40).step_by(4) {
        let now = start + years * 365 * 24 * 3600 * SECOND;
        assert_eq!((bucket.take(now, 1), bucket.take(now, 1)), (Ok(()), Ok(())), "after {years} years");
        assert_eq!(wait(bucket.take(now, 1)), SECOND / 2);
    }
}

#[test]
fn a_new_rate_keeps_what_is_lacking_and_no_more_than_fits() {
    let (bucket, now) = bucket(10, SECOND, None);
    assert_eq!(bucket.take(now, 4), Ok(()));
    bucket.set(Rate::new(1000, SECOND), now);
    assert_eq!(bucket.available(now), 996);
    assert_eq!(bucket.take(now, 996), Ok(()));
    assert_eq!(wait(bucket.take(now, 1)), SECOND / 1000);
    // A bucket that is empty stays empty, and does not pay for a burst that it can no longer hold.
    bucket.set(Rate { burst: Some(5), ..Rate::new(1, SECOND) }, now);
    assert_eq!((bucket.available(now), wait(bucket.take(now, 1))), (0, SECOND));
    assert_eq!(bucket.take(now, 6), Err(Denied::Never { burst: 5 }));
}

/// Shows: Q2
#[test]
fn tokens_that_are_given_back_are_there_for_the_next_call_but_for_those_gained_meanwhile() {
    let (bucket, start) = bucket(10, SECOND, None);
    assert_eq!(bucket.take(start, 10), Ok(()));
    bucket.give_back(10, start, start);
    assert_eq!(bucket.available(start), 10);
    assert_eq!(bucket.take(start, 10), Ok(()));
    // Without the call, the bucket would have been full for half a second: it holds the burst, and no more.
    let later = start + SECOND / 2;
    assert_eq!(bucket.take(later, 5), Ok(()));
    bucket.give_back(10, start, later);
    assert_eq!(bucket.available(later), 5);
    bucket.give_back(10, start, start + 100 * SECOND);
    assert_eq!(bucket.available(later), 5);
}

#[derive(Debug, Clone, Copy)]
enum Step {
    Advance(u64),
    Take(u32),
    /// Takes tokens as soon as the wait is over.
    TakeAfterTheWait(u32),
    /// Gives the tokens of an earlier call back.
    GiveBack(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        (0u64..3_000_000_000).prop_map(Step::Advance),
        (0u64..100).prop_map(Step::Advance),
        (1u32..12).prop_map(Step::Take),
        (1u32..12).prop_map(Step::TakeAfterTheWait),
        (0usize..20).prop_map(Step::GiveBack),
    ];
    prop::collection::vec(step, 1..80)
}

/// All admissions: when, and for how many tokens.
#[derive(Default)]
struct Admitted(Vec<(u128, u128)>);

impl Admitted {
    /// Asserts that in no span `t` more than `burst + quantity * t / period` tokens were taken.
    fn keep_to(&self, quantity: u32, period: Duration, burst: u32) {
        let (quantity, period, burst) = (u128::from(quantity), period.as_nanos(), u128::from(burst));
        for (first, (start, _)) in self.0.iter().enumerate() {
            let mut taken = 0;
            for (end, tokens) in &self.0[first..] {
                taken += tokens;
                assert!(taken * period <= burst * period + quantity * (end - start), "{:?}", self.0);
            }
        }
    }
}

proptest! {
    /// Shows: Q1, Q2
    #[test]
    fn in_no_span_more_than_the_burst_and_the_rate_is_admitted_and_every_wait_is_exact(
        quantity in prop_oneof![1u32..20, 1u32..2_000_000_000],
        period in 1u64..3_000_000_000,
        burst in prop::option::of(1u32..30),
        steps in steps(),
    ) {
        let period = Duration::from_nanos(period);
        let (bucket, start) = bucket(quantity, period, burst);
        let burst = burst.unwrap_or(quantity);
        let (mut now, mut admitted) = (start, Admitted::default());
        for step in steps {
            let nanos = |now: Instant| now.duration_since(start).as_nanos();
            match step {
                Step::Advance(nanos) => now += Duration::from_nanos(nanos),
                Step::Take(cost) | Step::TakeAfterTheWait(cost) => match bucket.take(now, cost) {
                    Ok(()) => admitted.0.push((nanos(now), cost.into())),
                    Err(Denied::Never { .. }) => prop_assert!(cost > burst),
                    Err(Denied::Wait(wait)) => {
                        prop_assert_eq!(bucket.denied(now, cost, 0), Denied::Wait(wait));
                        if let Step::TakeAfterTheWait(_) = step {
                            prop_assert!(bucket.take(now + wait - NANO, cost).is_err());
                            now += wait;
                            prop_assert_eq!(bucket.take(now, cost), Ok(()));
                            admitted.0.push((nanos(now), cost.into()));
                        }
                    }
                },
                Step::GiveBack(index) if index < admitted.0.len() => {
                    let (at, cost) = admitted.0.remove(index);
                    bucket.give_back(cost as u32, start + Duration::from_nanos(at as u64), now);
                }
                Step::GiveBack(_) => {}
            }
        }
        admitted.keep_to(quantity, period, burst);
    }

    /// Shows: Q3
    #[test]
    fn true_costs_exceed_the_bound_by_no_more_than_came_back_and_was_underestimated(
        quantity in 1u32..20,
        period in 1u64..3_000_000_000,
        calls in prop::collection::vec((0u64..1_000_000_000, 1u32..10, 0u64..20, 0usize..4), 1..60),
    ) {
        let period = Duration::from_nanos(period);
        let (bucket, mut now) = bucket(quantity, period, Some(10));
        let start = now;
        // Each call: when it was admitted, its estimate, its true cost, and when that was known.
        let mut admitted: Vec<(u128, u128, u128, Option<u128>)> = Vec::new();
        for (pause, estimate, cost, settled) in calls {
            now += Duration::from_nanos(pause);
            let at = now.duration_since(start).as_nanos();
            if bucket.take(now, estimate).is_ok() {
                admitted.push((at, estimate.into(), cost.into(), None));
            }
            // One of the latest calls ends.
            let ended = admitted.iter_mut().rev().filter(|call| call.3.is_none()).nth(settled);
            if let Some((_, estimate, cost, known)) = ended {
                bucket.settle(*estimate as u32, *cost as u64, now);
                *known = Some(at);
            }
        }
        let (quantity, period) = (u128::from(quantity), period.as_nanos());
        for first in 0..admitted.len() {
            for last in first..admitted.len() {
                let (from, until) = (admitted[first].0, admitted[last].0);
                let costs = |(_, estimate, cost, known): &(u128, u128, u128, Option<u128>)| match known {
                    Some(_) => *cost,
                    None => *estimate,
                };
                let cost: u128 = admitted[first..=last].iter().map(costs).sum();
                let came_back = admitted[..first].iter().filter(|call| call.3.is_some_and(|at| at >= from));
                let came_back: u128 = came_back.map(|call| call.1.saturating_sub(call.2)).sum();
                let under: u128 = admitted[first..=last].iter().map(|call| costs(call).saturating_sub(call.1)).sum();
                let bound = (10 + came_back + under) * period + quantity * (until - from);
                prop_assert!(cost * period <= bound, "from {} until {}: {:?}", first, last, admitted);
            }
        }
    }

    #[test]
    fn it_decides_as_governor_does(
        interval in 1u64..2_000_000_000,
        burst in 1u32..12,
        steps in steps(),
    ) {
        let interval = Duration::from_nanos(interval);
        let (bucket, mut now) = bucket(1, interval, Some(burst));
        let clock = FakeRelativeClock::default();
        let quota = Quota::with_period(interval).unwrap().allow_burst(burst.try_into().unwrap());
        let governor = RateLimiter::direct_with_clock(quota, clock.clone());
        for step in steps {
            match step {
                Step::Advance(nanos) => {
                    now += Duration::from_nanos(nanos);
                    clock.advance(Duration::from_nanos(nanos));
                }
                Step::Take(cost) | Step::TakeAfterTheWait(cost) => {
                    let theirs = governor.check_n(cost.try_into().unwrap());
                    match bucket.take(now, cost) {
                        Ok(()) => prop_assert!(matches!(theirs, Ok(Ok(())))),
                        Err(Denied::Never { .. }) => prop_assert!(theirs.is_err()),
                        Err(Denied::Wait(wait)) => {
                            let not_until = theirs.unwrap().unwrap_err();
                            prop_assert_eq!(not_until.wait_time_from(governor::clock::Clock::now(&clock)), wait);
                        }
                    }
                }
                Step::GiveBack(_) => {}
            }
        }
    }
}
