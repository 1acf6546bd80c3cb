use std::collections::VecDeque;

use proptest::prelude::*;

use super::*;

fn struck(dice: Dice, rate: f64, calls: u64) -> u64 {
    (0..calls).filter(|number| dice.strikes(rate, *number)).count() as u64
}

/// Returns the binomial distribution, term by term: the probability of each number of faults among `calls`.
fn distribution(calls: u64, rate: f64) -> Vec<f64> {
    let mut terms = vec![1.0_f64];
    for _ in 0..calls {
        let mut next = vec![0.0; terms.len() + 1];
        for (struck, term) in terms.iter().enumerate() {
            next[struck] += term * (1.0 - rate);
            next[struck + 1] += term * rate;
        }
        terms = next;
    }
    terms
}

/// Each seed stays within all but one in a million of the distribution, and so do all seeds together.
///
/// Shows: G3
#[test]
fn the_rate_is_met_within_the_bounds_of_the_binomial_distribution() {
    const CALLS: u64 = 500;
    for rate in [0.001, 0.1, 0.5, 0.9] {
        let distribution = distribution(CALLS, rate);
        for seed in 0..200 {
            let struck = struck(Dice::new(seed), rate, CALLS) as usize;
            let fewer: f64 = distribution[..=struck].iter().sum();
            let more: f64 = distribution[struck..].iter().sum();
            assert!(fewer.min(more) > 1e-6, "rate {rate}, seed {seed}: {struck}");
        }
    }
    // 100,000 calls over 200 seeds have a standard deviation of 95.
    let all: u64 = (0..200).map(|seed| struck(Dice::new(seed), 0.1, CALLS)).sum();
    assert!((9_620..=10_380).contains(&all), "{all}");
}

/// A test that sets a seed can rely on its faults.
///
/// Shows: G3
#[test]
fn a_seed_gives_the_same_faults_every_time() {
    let counted = [(0, 0.1), (7, 0.1), (42, 0.1), (42, 0.001), (42, 0.5)]
        .map(|(seed, rate)| struck(Dice::new(seed), rate, 10_000));
    assert_eq!(counted, [1037, 1032, 953, 9, 4909]);
    let first: Vec<u64> = (0..60).filter(|number| Dice::new(42).strikes(0.1, *number)).collect();
    assert_eq!(first, [8, 12, 22, 23, 48, 57]);
}

/// Shows: G3
#[test]
fn at_a_rate_of_zero_none_is_struck_and_at_one_all_are() {
    for rate in [0.0, -0.0, -1.0, f64::NEG_INFINITY, f64::NAN] {
        assert_eq!(struck(Dice::new(1), rate, 10_000), 0, "{rate}");
    }
    for rate in [1.0, 1.5, f64::INFINITY] {
        assert_eq!(struck(Dice::new(1), rate, 10_000), 10_000, "{rate}");
    }
}

#[test]
fn a_schedule_says_what_it_is() {
    let said =
        [Schedule::every(3), Schedule::first(2), Schedule::repeat([true, false])].map(|plan| format!("{plan:?}"));
    assert_eq!(said, ["Schedule::every(3)", "Schedule::first(2)", "Schedule::repeat([true, false])"]);
}

proptest! {
    /// A call that gets a fault at one rate gets it at every higher rate: raising the rate adds faults and moves none.
    #[test]
    fn a_higher_rate_strikes_the_same_calls_and_more(seed: u64, number: u64, rates in (0.0..=1.0_f64, 0.0..=1.0_f64)) {
        let (low, high) = (rates.0.min(rates.1), rates.0.max(rates.1));
        prop_assert!(!Dice::new(seed).strikes(low, number) || Dice::new(seed).strikes(high, number));
    }

    /// Shows: G3
    #[test]
    fn every_nth_call_is_struck(nth in 1_u64..50, calls in 0_u64..500) {
        let schedule = Schedule::every(nth);
        let (mut since, mut expected) = (0, Vec::new());
        for number in 0..calls {
            since += 1;
            if since == nth {
                since = 0;
                expected.push(number);
            }
        }
        let struck: Vec<u64> = (0..calls).filter(|number| schedule.strikes(*number)).collect();
        prop_assert_eq!(&struck, &expected);
        // The number of faults is exact.
        prop_assert_eq!(struck.len() as u64, calls / nth);
    }

    /// Shows: G3
    #[test]
    fn a_list_is_followed_and_begins_again(list in prop::collection::vec(any::<bool>(), 1..20), calls in 0_u64..100) {
        let schedule = Schedule::repeat(list.clone());
        let mut turning = VecDeque::from(list);
        for number in 0..calls {
            prop_assert_eq!(Some(schedule.strikes(number)), turning.front().copied());
            turning.rotate_left(1);
        }
    }

    #[test]
    fn the_first_calls_are_struck_and_no_other(first in 0_u64..50, calls in 0_u64..100) {
        let schedule = Schedule::first(first);
        let struck: Vec<u64> = (0..calls).filter(|number| schedule.strikes(*number)).collect();
        prop_assert_eq!(struck, (0..first.min(calls)).collect::<Vec<_>>());
    }

    #[test]
    fn no_number_is_too_large(number: u64, nth in 1_u64.., rate: f64, list in prop::collection::vec(any::<bool>(), 1..5)) {
        Schedule::every(nth).strikes(number);
        Schedule::first(nth).strikes(number);
        Schedule::repeat(list).strikes(number);
        Dice::new(nth).strikes(rate, number);
    }
}
