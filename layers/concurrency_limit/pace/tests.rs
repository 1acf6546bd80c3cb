use proptest::{collection::vec, prelude::*};

use super::*;
use crate::clock;

const MILLI: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

/// The wait that a call is given that is rejected now.
fn look(pace: &mut Pace, now: Instant, left: u32, limit: u32) -> Duration {
    pace.look(now, left, limit, Gate::Unknown);
    pace.cautious(limit)
}

#[test]
fn as_long_as_nothing_is_known_a_call_lasts_100_ms() {
    let now = clock::now();
    assert_eq!(look(&mut Pace::default(), now, 77, 1), 100 * MILLI);
    assert_eq!(look(&mut Pace::default(), now, 77, 50), 2 * MILLI);
    assert_eq!(look(&mut Pace::default(), now, 77, 0), 100 * MILLI);
}

#[test]
fn while_nobody_leaves_it_is_at_least_as_long_as_that_lasts() {
    let (mut pace, start) = (Pace::default(), clock::now());
    look(&mut pace, start, 7, 1);
    for seconds in [1, 2, 20, 21] {
        let lasts = seconds * SECOND;
        let said = look(&mut pace, start + lasts, 7, 1);
        assert!((lasts..=lasts + SECOND).contains(&said), "{said:?} after {lasts:?}");
    }
}

#[test]
fn a_steady_pace_is_measured() {
    let (mut pace, start) = (Pace::default(), clock::now());
    for second in 0..5 {
        look(&mut pace, start + second * SECOND, second * 200, 10);
    }
    let said = look(&mut pace, start + 5 * SECOND, 1000, 10);
    assert!((4990..=5010).contains(&said.as_micros()), "{said:?}");
}

#[test]
fn a_quiet_time_does_not_make_it_slower() {
    let (mut pace, start) = (Pace::default(), clock::now());
    for second in 0..5 {
        look(&mut pace, start + second * SECOND, second * 200, 10);
    }
    // A day later, a call is rejected again. In between, hardly any calls arrived.
    let said = look(&mut pace, start + 86_400 * SECOND, 850, 10);
    assert!((4990..=5010).contains(&said.as_micros()), "{said:?}");
}

#[test]
fn the_count_may_wrap_around() {
    let (mut pace, start) = (Pace::default(), clock::now());
    look(&mut pace, start, (1 << LEFT_BITS) - 5, 1);
    let said = look(&mut pace, start + SECOND, 4, 1);
    assert_eq!(said, SECOND / 9);
}

#[test]
fn after_an_hour_of_nothing_it_is_itself_again_within_seconds() {
    let (mut pace, start) = (Pace::default(), clock::now());
    for second in 0..3600 {
        look(&mut pace, start + second * SECOND, 0, 1);
    }
    look(&mut pace, start + 3600 * SECOND, 1000, 1);
    look(&mut pace, start + 3601 * SECOND, 2000, 1);
    let said = look(&mut pace, start + 3602 * SECOND, 3000, 1);
    assert!(said < 2 * MILLI, "{said:?}");
}

#[test]
fn a_slow_service_is_measured_although_it_is_rarely_looked_at() {
    let (mut pace, start) = (Pace::default(), clock::now());
    // Two calls of 300 s at a time, and a caller every 75 s.
    for nth in 0..100 {
        pace.join(start + nth * 75 * SECOND, nth / 2, 2, nth == 0);
    }
    let each = pace.hopeful(2);
    assert!((100 * SECOND..=200 * SECOND).contains(&each), "{each:?}");
}

#[test]
fn a_hang_that_ended_in_a_quiet_time_lengthens_no_wait() {
    let (mut pace, start) = (Pace::default(), clock::now());
    for second in 0..60 {
        look(&mut pace, start + second * SECOND, 0, 10);
    }
    let said = look(&mut pace, start + 86_400 * SECOND, 1000, 10);
    assert!(said <= 10 * SECOND, "{said:?}");
}

/// Bursts that end soon, after a time in which calls were slow.
#[test]
fn a_second_without_a_queue_makes_the_estimate_old() {
    let (mut pace, start) = (Pace::default(), clock::now());
    for second in 0..20 {
        pace.join(start + second * SECOND, 50 * second, 100, second == 0);
    }
    assert!(pace.hopeful(100) > 10 * MILLI);
    pace.join(start + 22 * SECOND, 1200, 100, true);
    assert_eq!(pace.hopeful(100), Duration::ZERO);
}

proptest! {
    /// For any input there is an estimate, and the stored pace stays within bounds.
    #[test]
    fn any_history_has_an_answer(looks in vec((any::<u64>(), any::<u32>(), any::<u32>()), 1..30)) {
        let (mut pace, start) = (Pace::default(), clock::now());
        for (nanos, left, limit) in looks {
            // Threads read the clock before they take the lock, so time may go backwards.
            let now = start.checked_add(Duration::from_nanos(nanos)).unwrap_or(start);
            let known = pace.known;
            let said = look(&mut pace, now, left, limit);
            prop_assert!(pace.known.is_none_or(|known| known <= LONG));
            prop_assert!(said <= Duration::from_nanos(u64::MAX) + known.unwrap_or(UNKNOWN));
        }
    }

    /// Compares the estimate with a model in which a permit is released at every multiple of `period`, counted from
    /// the list of all those moments. If it is updated often enough, the estimate is within a factor of three of the
    /// period and of the interval between updates.
    #[test]
    fn it_finds_the_period_of_a_full_gate(
        period in prop_oneof![100..100_000_u64, 100_000..5_000_000_u64],
        gaps in vec(1..2_000_000_u64, 60..120),
        limit in 1..100_u32,
    ) {
        let start = clock::now();
        let at = |micros| start + Duration::from_micros(micros);
        let moments: Vec<u64> = (1..).map(|nth| nth * period).take_while(|moment| *moment < 250_000_000).collect();
        let (mut pace, mut micros, mut said) = (Pace::default(), 0, Duration::ZERO);
        for gap in gaps {
            micros += gap;
            let left = moments.iter().filter(|moment| **moment <= micros).count() as u32;
            said = look(&mut pace, at(micros), left, limit);
        }
        prop_assume!(micros > 10 * period);
        let said = said.as_micros() as u64;
        prop_assert!(said >= period / 3, "{} for {}", said, period);
        prop_assert!(said <= 3 * period + 2_000_000, "{} for {}", said, period);
    }

    /// More permits released in the same time never make the pace slower.
    #[test]
    fn the_more_leave_the_faster(micros in 0..9_000_000_u64, some in 0..1000_u32, more in 0..1000_u32) {
        let start = clock::now();
        let said = |left| {
            let mut pace = Pace::default();
            look(&mut pace, start, 0, 1);
            look(&mut pace, start + Duration::from_micros(micros), left, 1)
        };
        prop_assert!(said(some + more) <= said(some));
    }
}

#[test]
fn calls_that_start_together_are_no_reason_to_expect_a_slow_queue() {
    let (mut pace, start) = (Pace::default(), clock::now());
    // Ten calls that take a second each, and a queue behind them.
    for milli in 0..1000 {
        pace.join(start + milli * MILLI, 0, 10, milli == 0);
        assert!(pace.hopeful(10) <= 100 * MILLI);
    }
    pace.join(start + SECOND, 10, 10, false);
    assert_eq!(pace.hopeful(10), 100 * MILLI);
}

/// The queue is empty for most of the time, and permits that are released then say nothing.
#[test]
fn only_the_time_with_a_queue_is_measured() {
    let (mut pace, start) = (Pace::default(), clock::now());
    for second in 0..9 {
        pace.join(start + second * SECOND, 4 * second, 2, true);
        pace.look(start + second * SECOND + 20 * MILLI, 4 * second + 2, 2, Gate::Full);
    }
    let each = pace.hopeful(2);
    assert!((9 * MILLI..=10 * MILLI).contains(&each), "{each:?}");
}

#[test]
fn a_queue_is_busy_since_it_was_last_empty() {
    let (mut pace, start) = (Pace::default(), clock::now());
    assert_eq!(pace.join(start, 0, 1, true), Duration::ZERO);
    assert_eq!(pace.join(start + 3 * SECOND, 1, 1, false), 3 * SECOND);
    assert_eq!(pace.join(start + 4 * SECOND, 2, 1, true), Duration::ZERO);
    assert_eq!(pace.join(start + 5 * SECOND, 3, 1, false), SECOND);
}

/// A hang of a minute is forgotten after twenty calls for each that is in flight.
#[test]
fn a_pace_that_was_bad_is_good_again_soon() {
    let (mut pace, start) = (Pace::default(), clock::now());
    for second in 0..60 {
        pace.join(start + second * SECOND, 0, 10, second == 0);
    }
    let (mut at, mut left) = (start + 60 * SECOND, 0);
    while pace.hopeful(10) > 15 * MILLI {
        (at, left) = (at + 10 * MILLI, left + 1);
        pace.join(at, left, 10, false);
        assert!(left <= 200, "{pace:?}");
    }
}

#[test]
fn what_was_known_before_a_quiet_time_is_no_reason_to_reject() {
    let (mut pace, start) = (Pace::default(), clock::now());
    for second in 0..5 {
        pace.join(start + second * SECOND, 2 * second, 2, second == 0);
    }
    assert!(pace.hopeful(2) > 400 * MILLI);
    let later = start + 60 * SECOND;
    pace.join(later, 10_000, 2, true);
    assert_eq!(pace.hopeful(2), Duration::ZERO);
}
