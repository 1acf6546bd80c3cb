use super::*;
use crate::clock;

const MILLI: Duration = Duration::from_millis(1);

fn within(millis: u32) -> Patience {
    let now = clock::now();
    Patience { now, deadline: Some(now + millis * MILLI), max_wait: None, outlasts_deadline: false }
}

fn forecast(wait: u32, call: u32) -> Forecast {
    Forecast { before: 5, wait: wait * MILLI, call: call * MILLI, busy: Duration::ZERO }
}

#[test]
fn a_call_must_have_time_for_two_or_wait_for_half_of_it_at_most() {
    for (whole, wait, call, joins) in [
        (1000, 800, 100, true),
        (1000, 801, 100, false),
        // Its deadline is too close for two.
        (150, 50, 100, true),
        (150, 51, 100, false),
        (300, 150, 100, true),
        // Calls lately took longer than it allows: others do.
        (1000, 500, 5000, true),
        (1000, 501, 5000, false),
        // Its deadline has passed.
        (0, 1, 0, false),
    ] {
        let patience = within(whole);
        assert_eq!(patience.joins(&forecast(wait, call)), joins, "{whole} {wait} {call}");
        assert_eq!(patience.starts(patience.now + wait * MILLI, call * MILLI), joins, "{whole} {wait} {call}");
    }
}

#[test]
fn a_call_that_lasts_until_the_end_of_a_body_must_only_have_its_turn_in_time() {
    let patience = Patience { outlasts_deadline: true, ..within(200) };
    assert!(patience.joins(&forecast(200, 5000)) && patience.starts(patience.now + 200 * MILLI, 5000 * MILLI));
    assert!(!patience.joins(&forecast(800, 10)) && !patience.starts(patience.now + 201 * MILLI, MILLI));
}

#[test]
fn the_first_in_the_queue_joins_and_a_lasting_queue_is_short() {
    let patience = within(60_000);
    assert!(within(10).joins(&Forecast { before: 0, ..forecast(5000, 5000) }));
    let lasting = |busy: u32| Forecast { busy: busy * MILLI, ..forecast(100, 100) };
    assert_eq!([1000, 1001].map(|busy| patience.places(10, &lasting(busy))), [usize::MAX, 26]);
    let waits = Patience { max_wait: Some(Duration::MAX), ..patience };
    assert_eq!(waits.places(10, &lasting(60_000)), usize::MAX);
}
