use proptest::{collection::vec, prelude::*};

use super::*;
use crate::clock;

const MILLI: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

#[test]
fn as_long_as_nothing_is_known_a_call_lasts_100_ms() {
    let now = clock::now();
    assert_eq!(Pace::default().look(now, 77, 1), 100 * MILLI);
    assert_eq!(Pace::default().look(now, 77, 50), 2 * MILLI);
    assert_eq!(Pace::default().look(now, 77, 0), 100 * MILLI);
}

#[test]
fn while_nobody_leaves_it_is_at_least_as_long_as_that_lasts() {
    let (mut pace, start) = (Pace::default(), clock::now());
    pace.look(start, 7, 1);
    for seconds in [1, 2, 20, 21] {
        let lasts = seconds * SECOND;
        let said = pace.look(start + lasts, 7, 1);
        assert!((lasts..=lasts + SECOND).contains(&said), "{said:?} after {lasts:?}");
    }
}

#[test]
fn a_steady_pace_is_measured() {
    let (mut pace, start) = (Pace::default(), clock::now());
    for second in 0..5 {
        pace.look(start + second * SECOND, second * 200, 10);
    }
    let said = pace.look(start + 5 * SECOND, 1000, 10);
    assert!((4990..=5010).contains(&said.as_micros()), "{said:?}");
}

#[test]
fn a_quiet_time_does_not_make_it_slower() {
    let (mut pace, start) = (Pace::default(), clock::now());
    for second in 0..5 {
        pace.look(start + second * SECOND, second * 200, 10);
    }
    // A day later, a call is rejected again. In between, hardly any calls arrived.
    let said = pace.look(start + 86_400 * SECOND, 850, 10);
    assert!((4990..=5010).contains(&said.as_micros()), "{said:?}");
}

#[test]
fn the_count_may_wrap_around() {
    let (mut pace, start) = (Pace::default(), clock::now());
    pace.look(start, (1 << LEFT_BITS) - 5, 1);
    let said = pace.look(start + SECOND, 4, 1);
    assert_eq!(said, (SECOND + 100 * MILLI) / 10);
}

#[test]
fn after_an_hour_of_nothing_it_is_itself_again_within_seconds() {
    let (mut pace, start) = (Pace::default(), clock::now());
    for second in 0..3600 {
        pace.look(start + second * SECOND, 0, 1);
    }
    pace.look(start + 3600 * SECOND, 1000, 1);
    let said = pace.look(start + 3601 * SECOND, 2000, 1);
    assert!(said < 2 * MILLI, "{said:?}");
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
            let said = pace.look(now, left, limit);
            prop_assert!(pace.known.is_none_or(|known| known <= LONGEST));
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
            said = pace.look(at(micros), left, limit);
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
            pace.look(start, 0, 1);
            pace.look(start + Duration::from_micros(micros), left, 1)
        };
        prop_assert!(said(some + more) <= said(some));
    }
}
