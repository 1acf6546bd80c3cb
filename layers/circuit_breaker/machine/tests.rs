use std::{sync::Barrier, thread};

use super::*;
use crate::backoff::Jitter;

mod replay;

const SECOND: Duration = Duration::from_secs(1);

fn policy() -> Policy {
    Policy {
        consecutive: None,
        failure_rate: None,
        slow: None,
        extent: Extent::Time(30 * SECOND),
        min_calls: NonZeroU32::new(20),
        open_for: Backoff::exponential(5 * SECOND).jitter(Jitter::None),
        probes: 1,
        successes_to_close: 1,
        timed: false,
        watch_only: false,
    }
}

fn consecutive(failures: u32) -> Policy {
    Policy { consecutive: Some(failures), ..policy() }
}

fn at(now: Instant) -> impl Fn() -> Instant + Copy {
    move || now
}

fn never() -> Instant {
    unreachable!("the clock was read")
}

/// Admits a call and records its outcome at once.
fn call(machine: &Machine, now: Instant, outcome: Outcome) -> bool {
    let ticket = machine.admit(at(now)).unwrap();
    turned(machine.record(&ticket, outcome, at(now)))
}

/// Whether a call that is not late caused a transition.
fn turned(recorded: Option<bool>) -> bool {
    recorded.expect("the call is not late")
}

/// Returns a circuit that has just opened.
fn opened(policy: Policy, now: Instant) -> Machine {
    let machine = Machine::new(Policy { consecutive: Some(1), ..policy }, now);
    assert!(call(&machine, now, Outcome::Failure));
    assert_eq!(machine.state(), State::Open);
    machine
}

fn news(machine: &Machine) -> Vec<(State, State)> {
    std::iter::from_fn(|| machine.news()).map(|turn| (turn.from, turn.to)).collect()
}

/// Shows: B1
#[test]
fn failures_in_a_row_open_and_a_success_between_starts_the_row_anew() {
    let now = Instant::now();
    let machine = Machine::new(consecutive(3), now);
    for outcome in
        [Outcome::Failure, Outcome::Failure, Outcome::Success, Outcome::Failure, Outcome::Failure, Outcome::Ignored]
    {
        call(&machine, now, outcome);
        assert_eq!(machine.state(), State::Closed);
    }
    assert!(call(&machine, now, Outcome::Failure));
    assert_eq!(machine.state(), State::Open);
}

#[test]
fn the_clock_is_read_only_where_time_matters() {
    let now = Instant::now();
    let by_calls = Policy { failure_rate: Some(0.5), extent: Extent::Calls(100), ..consecutive(3) };
    for policy in [consecutive(3), by_calls] {
        let machine = Machine::new(policy, now);
        let ticket = machine.admit(never).unwrap();
        assert_eq!(machine.record(&ticket, Outcome::Failure, never), Some(false));
        let ticket = machine.admit(never).unwrap();
        assert_eq!(machine.record(&ticket, Outcome::Success, never), Some(false));
        assert_eq!(machine.check(never), Ok(()));
    }
    let by_time = Machine::new(Policy { failure_rate: Some(0.5), ..policy() }, now);
    let ticket = by_time.admit(never).unwrap();
    assert_eq!(by_time.record(&ticket, Outcome::Ignored, never), Some(false));
}

/// With a window that never moved, 100,000 successes took 100,000 failures to open the circuit.
///
/// Shows: B1
#[test]
fn after_a_hundred_thousand_successes_a_handful_of_failures_opens() {
    let start = Instant::now();
    let by_time = Policy { failure_rate: Some(0.5), ..policy() };
    let by_calls = Policy { extent: Extent::Calls(20), ..by_time.clone() };
    for (policy, later) in [(by_time, start + 30 * SECOND), (by_calls, start)] {
        let machine = Machine::new(policy, start);
        for _ in 0..100_000 {
            assert!(!call(&machine, start, Outcome::Success));
        }
        let failures = (1..).find(|_| call(&machine, later, Outcome::Failure));
        assert!(failures <= Some(20), "{failures:?}");
    }
}

/// Shows: B1
#[test]
fn a_rate_needs_its_minimum_of_calls() {
    let now = Instant::now();
    let machine = Machine::new(Policy { failure_rate: Some(0.5), min_calls: NonZeroU32::new(20), ..policy() }, now);
    for _ in 0..10 {
        assert!(!call(&machine, now, Outcome::Success));
    }
    for _ in 0..9 {
        assert!(!call(&machine, now, Outcome::Failure));
    }
    assert!(call(&machine, now, Outcome::Failure), "10 of 20");
}

/// Shows: B1
#[test]
fn slow_calls_open_though_they_succeed() {
    let start = Instant::now();
    let slow = Policy { slow: Some((SECOND, 1.0)), min_calls: NonZeroU32::new(2), ..policy() };
    let machine = Machine::new(slow, start);
    let take = |from: Instant, time: Duration| {
        let ticket = machine.admit(at(from)).unwrap();
        turned(machine.record(&ticket, Outcome::Success, at(from + time)))
    };
    for _ in 0..3 {
        assert!(!take(start, SECOND), "not longer than a second");
    }
    let now = start + 60 * SECOND;
    assert!(!take(now, SECOND + Duration::from_nanos(1)));
    assert!(take(now, 2 * SECOND));

    // A slow probe fails.
    assert!(take(now + 7 * SECOND, 2 * SECOND));
    assert_eq!(machine.state(), State::Open);
}

/// Shows: B2, B3
#[test]
fn open_until_exactly_the_time_is_over() {
    let now = Instant::now();
    let machine = opened(policy(), now);
    let refused = |left| Err(Refused { retry_after: left });
    assert_eq!(machine.check(at(now)), refused(5 * SECOND));
    assert_eq!(machine.admit(at(now + 2 * SECOND)).map(drop), refused(3 * SECOND));
    let nearly = 5 * SECOND - Duration::from_nanos(1);
    assert_eq!(machine.admit(at(now + nearly)).map(drop), refused(Duration::from_nanos(1)));
    assert_eq!(machine.check(at(now + 5 * SECOND)), Ok(()));
    assert_eq!(machine.state(), State::Open, "a check causes no transition");
    assert!(machine.admit(at(now + 5 * SECOND)).is_ok());
    assert_eq!(machine.state(), State::HalfOpen);
}

/// Shows: B2, B4
#[test]
fn a_failed_probe_reopens_for_longer_and_a_success_forgets_that() {
    let mut now = Instant::now();
    let machine = opened(policy(), now);
    for seconds in [5, 10, 20] {
        now += seconds * SECOND;
        assert!(call(&machine, now, Outcome::Failure));
        assert_eq!(machine.check(at(now)), Err(Refused { retry_after: 2 * seconds * SECOND }));
    }
    now += 40 * SECOND;
    assert!(call(&machine, now, Outcome::Success));
    assert_eq!(machine.state(), State::Closed);
    call(&machine, now, Outcome::Failure);
    assert_eq!(machine.check(at(now)), Err(Refused { retry_after: 5 * SECOND }));
    use State::{Closed, HalfOpen, Open};
    let again = [(Open, HalfOpen), (HalfOpen, Open)];
    let all =
        [[(Closed, Open)].as_slice(), &again, &again, &again, &[(Open, HalfOpen), (HalfOpen, Closed), (Closed, Open)]]
            .concat();
    assert_eq!(news(&machine), all);
}

/// Shows: B4
#[test]
fn half_open_admits_so_many_probes_at_once_and_closes_after_so_many_successes() {
    let start = Instant::now();
    let machine = opened(Policy { probes: 2, successes_to_close: 3, ..policy() }, start);
    let now = start + 5 * SECOND;
    let first = machine.admit(at(now)).unwrap();
    let second = machine.admit(at(now + SECOND)).unwrap();
    let refused = Err(Refused { retry_after: 3 * SECOND });
    assert_eq!(machine.admit(at(now + 2 * SECOND)).map(drop), refused);
    assert_eq!(machine.record(&first, Outcome::Success, at(now)), Some(false));
    let third = machine.admit(at(now)).unwrap();
    assert!(machine.admit(at(now)).is_err());
    assert_eq!(machine.record(&second, Outcome::Success, at(now)), Some(false));
    assert_eq!(machine.record(&third, Outcome::Success, at(now)), Some(true));
    assert_eq!(machine.state(), State::Closed);
}

/// Shows: B5
#[test]
fn a_late_result_decides_nothing() {
    let start = Instant::now();
    let machine = Machine::new(consecutive(1), start);
    let tickets: Vec<_> = (0..4).map(|_| machine.admit(at(start)).unwrap()).collect();
    call(&machine, start, Outcome::Failure);
    assert_eq!(machine.record(&tickets[0], Outcome::Success, at(start)), None, "while open");
    assert_eq!(machine.state(), State::Open);

    let now = start + 5 * SECOND;
    let probe = machine.admit(at(now)).unwrap();
    assert_eq!(machine.record(&tickets[1], Outcome::Success, at(now)), None, "while half-open");
    assert_eq!(machine.record(&tickets[2], Outcome::Failure, at(now)), None, "while half-open");
    assert_eq!(machine.state(), State::HalfOpen);

    assert_eq!(machine.record(&probe, Outcome::Success, at(now)), Some(true));
    assert_eq!(machine.record(&tickets[3], Outcome::Failure, at(now)), None, "after it closed");
    assert_eq!(machine.state(), State::Closed);
}

/// Shows: B5
#[test]
fn a_probe_that_says_nothing_frees_its_place() {
    let start = Instant::now();
    let machine = opened(policy(), start);
    let now = start + 5 * SECOND;
    for _ in 0..3 {
        assert!(!call(&machine, now, Outcome::Ignored));
        assert_eq!(machine.state(), State::HalfOpen);
    }
    assert!(call(&machine, now, Outcome::Success));
}

/// Shows: B5
#[test]
fn a_probe_that_never_ends_gives_up_its_place_after_the_open_time() {
    let start = Instant::now();
    let machine = opened(policy(), start);
    let now = start + 5 * SECOND;
    let hung = machine.admit(at(now)).unwrap();
    assert_eq!(machine.admit(at(now + 4 * SECOND)).map(drop), Err(Refused { retry_after: SECOND }));
    let next = machine.admit(at(now + 5 * SECOND)).unwrap();
    assert!(machine.admit(at(now + 5 * SECOND)).is_err(), "the slot is taken");
    assert_eq!(machine.record(&next, Outcome::Success, at(now + 6 * SECOND)), Some(true));
    assert_eq!(machine.record(&hung, Outcome::Failure, at(now + 7 * SECOND)), None, "the circuit closed without it");
    assert_eq!(machine.state(), State::Closed);
}

/// Shows: B5
#[test]
fn a_probe_of_an_older_opening_holds_no_place_in_a_newer_one() {
    let mut now = Instant::now();
    let machine = opened(Policy { probes: 2, ..policy() }, now);
    for seconds in [5, 10, 20, 40] {
        now += seconds * SECOND;
        call(&machine, now, Outcome::Failure);
    }
    now += 80 * SECOND;
    let _hung_for_80_seconds = machine.admit(at(now)).unwrap();
    machine.close();
    call(&machine, now, Outcome::Failure);
    for _ in 0..2 {
        assert!(machine.admit(at(now + 5 * SECOND)).is_ok());
    }
}

/// Otherwise a service whose calls take longer than the open time would never close the circuit.
///
/// Shows: B5
#[test]
fn a_probe_that_lost_its_place_still_decides_while_nothing_else_did() {
    let start = Instant::now();
    for (outcome, state) in [(Outcome::Success, State::Closed), (Outcome::Failure, State::Open)] {
        let machine = opened(policy(), start);
        let slow = machine.admit(at(start + 5 * SECOND)).unwrap();
        let next = machine.admit(at(start + 10 * SECOND)).unwrap();
        assert_eq!(machine.record(&slow, outcome, at(start + 11 * SECOND)), Some(true));
        assert_eq!(machine.state(), state);
        assert_eq!(machine.record(&next, Outcome::Failure, at(start + 12 * SECOND)), None);
    }
}

/// Shows: B7
#[test]
fn forced_open_stays_open_until_it_is_closed() {
    let start = Instant::now();
    let later = at(start + 1_000_000 * SECOND);
    let machine = Machine::new(policy(), start);
    machine.force_open();
    assert_eq!(machine.admit(later).map(drop), Err(Refused { retry_after: 5 * SECOND }));
    machine.close();
    assert!(machine.admit(later).is_ok());

    // From the other states too, and with a call in flight.
    let machine = opened(policy(), start);
    let probe = machine.admit(at(start + 5 * SECOND)).unwrap();
    machine.force_open();
    assert_eq!(machine.record(&probe, Outcome::Success, later), None);
    assert_eq!(machine.check(later), Err(Refused { retry_after: 5 * SECOND }));
    let machine = opened(policy(), start);
    machine.force_open();
    assert_eq!(machine.check(later), Err(Refused { retry_after: 5 * SECOND }));
    assert_eq!(news(&machine), [(State::Closed, State::Open)], "one transition");
}

/// Shows: B7
#[test]
fn closing_forgets_what_was_counted() {
    let now = Instant::now();
    let machine =
        Machine::new(Policy { failure_rate: Some(0.1), min_calls: NonZeroU32::new(3), ..consecutive(3) }, now);
    for _ in 0..4 {
        call(&machine, now, Outcome::Failure);
        call(&machine, now, Outcome::Failure);
        machine.close();
    }
    assert_eq!(machine.state(), State::Closed);
    assert_eq!(news(&machine), []);
}

/// Shows: F3
#[test]
fn it_stays_open_at_least_as_long_as_the_failure_that_opened_it_asked_for() {
    let open_for = Backoff::exponential(5 * SECOND).max(60 * SECOND).jitter(Jitter::Equal);
    for (open_for, asked, least, most) in [
        (open_for, 20, 20, 20),
        (open_for, 61, 61, 61),
        (open_for, 1_000_000, 300, 300),
        // Jitter applies only to the circuit's own open time.
        (open_for, 1, 2, 5),
        (Backoff::fixed(5 * SECOND), 20, 20, 20),
        (Backoff::exponential(5 * SECOND).max(600 * SECOND), 1_000_000, 600, 600),
        (Backoff::exponential(5 * SECOND), 1_000_000, 300, 300),
    ] {
        let start = Instant::now();
        let machine = Machine::new(Policy { open_for, ..consecutive(2) }, start);
        let asks = Outcome::LeaveAlone(asked * SECOND);
        // The wait of the first failure does not count: the second failure opens the circuit.
        call(&machine, start, Outcome::LeaveAlone(1_000 * SECOND));
        assert!(call(&machine, start, asks));
        let open = machine.check(at(start)).unwrap_err().retry_after;
        assert!((least * SECOND..=most * SECOND).contains(&open), "{open:?} for {asked}");
        // A failed probe does the same.
        let half_open = start + open;
        assert!(machine.check(at(half_open)).is_ok());
        assert!(call(&machine, half_open, asks));
        let open = machine.check(at(half_open)).unwrap_err().retry_after;
        assert!(open >= least * SECOND, "{open:?} for {asked}");
    }
}

#[test]
fn another_rate_is_taken_of_what_was_counted_before_it() {
    let now = Instant::now();
    let machine = Machine::new(Policy { failure_rate: Some(0.9), min_calls: NonZeroU32::new(20), ..policy() }, now);
    for _ in 0..10 {
        call(&machine, now, Outcome::Success);
        call(&machine, now, Outcome::Failure);
    }
    machine.set_failure_rate(0.5, now);
    assert!(!call(&machine, now, Outcome::Success), "10 of 21");
    assert!(call(&machine, now, Outcome::Failure), "11 of 22");

    let machine = Machine::new(Policy { failure_rate: Some(0.5), min_calls: NonZeroU32::new(20), ..policy() }, now);
    assert!((0..5).all(|_| !call(&machine, now, Outcome::Failure)));
    machine.set_min_calls(NonZeroU32::new(6));
    assert!(call(&machine, now, Outcome::Failure), "6 of 6");
}

/// Shows: B1
#[test]
fn another_number_of_failures_in_a_row_holds_from_the_next_failure_on_and_zero_is_none() {
    let now = Instant::now();
    let machine = Machine::new(policy(), now);
    assert!((0..100).all(|_| !call(&machine, now, Outcome::Failure)));
    machine.set_consecutive_failures(3);
    assert!((0..2).all(|_| !call(&machine, now, Outcome::Failure)), "the row starts with the first counted failure");
    machine.set_consecutive_failures(0);
    assert!((0..100).all(|_| !call(&machine, now, Outcome::Failure)));
    machine.set_consecutive_failures(4);
    assert!(!call(&machine, now, Outcome::Failure), "no success in between: the row continues");
    machine.set_consecutive_failures(0);
    assert!(!call(&machine, now, Outcome::Success));
    machine.set_consecutive_failures(4);
    assert!((0..3).all(|_| !call(&machine, now, Outcome::Failure)), "a success ends any row");
    machine.set_consecutive_failures(2);
    assert!(!call(&machine, now, Outcome::Ignored));
    assert!(call(&machine, now, Outcome::Failure), "4 failures, limit 2");
}

/// Shows: B1
#[test]
fn a_success_opens_where_it_completes_the_fewest_calls_that_have_a_rate_or_the_window_has_slid_on() {
    let start = Instant::now();
    let rated = Policy { failure_rate: Some(0.5), min_calls: NonZeroU32::new(25), ..policy() };
    let machine = Machine::new(rated.clone(), start);
    assert!((0..19).all(|_| !call(&machine, start, Outcome::Failure)));
    assert!((0..5).all(|_| !call(&machine, start, Outcome::Success)));
    assert!(call(&machine, start, Outcome::Success), "19 of 25");

    // 20 successes, then 15 failures, then the successes leave the window.
    let machine = Machine::new(Policy { min_calls: NonZeroU32::new(15), ..rated }, start);
    assert!((0..20).all(|_| !call(&machine, start, Outcome::Success)));
    assert!((0..15).all(|_| !call(&machine, start + 15 * SECOND, Outcome::Failure)));
    assert!(call(&machine, start + 31 * SECOND, Outcome::Success), "15 of 16");
}

/// Shows: F2
#[test]
fn calls_that_nothing_came_back_of_open_in_a_row_and_any_answer_ends_the_row() {
    let now = Instant::now();
    let machine = Machine::new(Policy { failure_rate: Some(0.5), min_calls: NonZeroU32::new(3), ..policy() }, now);
    for answer in [Outcome::Success, Outcome::Answered] {
        assert!((0..2).all(|_| !call(&machine, now, Outcome::Abandoned)));
        assert!(!call(&machine, now, answer), "{answer:?}");
    }
    assert!((0..2).all(|_| !call(&machine, now, Outcome::Abandoned)));
    assert!(!call(&machine, now, Outcome::Ignored), "an ignored call does not show that the service responds");
    assert!(call(&machine, now, Outcome::Abandoned));
}

#[test]
fn a_circuit_that_knew_no_rate_counts_from_when_it_is_given_one() {
    let now = Instant::now();
    let machine = Machine::new(Policy { extent: Extent::Calls(10), ..consecutive(100) }, now);
    assert!((0..50).all(|_| !call(&machine, now, Outcome::Failure)));
    machine.set_failure_rate(1.0, now);
    assert!((0..9).all(|_| !call(&machine, now, Outcome::Failure)));
    assert!(call(&machine, now, Outcome::Failure), "10 of 10: a full window");
}

#[test]
fn another_open_time_holds_from_the_next_opening_on_and_goes_on_doubling() {
    let start = Instant::now();
    let machine = opened(policy(), start);
    machine.set_open_for(Backoff::exponential(SECOND).jitter(Jitter::None));
    let refused = |seconds: u32| Err(Refused { retry_after: seconds * SECOND });
    assert_eq!(machine.check(at(start)), refused(5), "the current open time is unchanged");

    let half_open = start + 5 * SECOND;
    assert!(call(&machine, half_open, Outcome::Failure));
    assert_eq!(machine.check(at(half_open)), refused(2), "the second opening in a row");
    let half_open = half_open + 2 * SECOND;
    call(&machine, half_open, Outcome::Success);
    assert_eq!(machine.state(), State::Closed);
    call(&machine, half_open, Outcome::Failure);
    assert_eq!(machine.check(at(half_open)), refused(1));
}

/// Shows: B5
#[test]
fn failures_of_eight_threads_are_all_counted() {
    let now = Instant::now();
    let by_rate = Policy { failure_rate: Some(1.0), min_calls: NonZeroU32::new(8_001), ..policy() };
    for policy in [consecutive(8_001), by_rate] {
        let machine = Machine::new(policy, now);
        let barrier = Barrier::new(8);
        thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    barrier.wait();
                    (0..1_000).for_each(|_| assert!(!call(&machine, now, Outcome::Failure)));
                });
            }
        });
        assert!(call(&machine, now, Outcome::Failure), "one more than 8,000");
    }
}

/// Shows: B4, B5
#[test]
fn eight_threads_that_fail_or_probe_at_once_turn_the_circuit_once() {
    let mut now = Instant::now();
    let machine = Machine::new(consecutive(1), now);
    let barrier = Barrier::new(8);
    let at_once = |work: &(dyn Fn() -> bool + Sync)| {
        let one = || {
            barrier.wait();
            work()
        };
        thread::scope(|scope| {
            let all: Vec<_> = (0..8).map(|_| scope.spawn(one)).collect();
            all.into_iter().map(|thread| thread.join().unwrap()).filter(|done| *done).count()
        })
    };
    for _ in 0..500 {
        let fail = || {
            machine.admit(at(now)).is_ok_and(|ticket| machine.record(&ticket, Outcome::Failure, at(now)) == Some(true))
        };
        assert_eq!(at_once(&fail), 1, "one failure opens the circuit, the others are late");
        assert_eq!(machine.check(at(now)), Err(Refused { retry_after: 5 * SECOND }));
        now += 5 * SECOND;
        assert_eq!(at_once(&|| machine.admit(at(now)).is_ok()), 1, "one probe");
        machine.close();
    }
}

/// Shows: B2
#[test]
fn no_open_time_and_an_endless_one_do_no_harm() {
    let now = Instant::now();
    let machine = opened(Policy { open_for: Backoff::from(Duration::ZERO), ..policy() }, now);
    assert!(machine.check(at(now)).is_err());
    let _probe = machine.admit(at(now + SHORTEST)).unwrap();
    assert!(machine.admit(at(now + SHORTEST)).is_err());

    let machine = opened(Policy { open_for: Backoff::from(Duration::MAX), ..policy() }, now);
    assert_eq!(machine.check(at(now + 1_000_000 * SECOND)), Err(Refused { retry_after: Duration::MAX }));
    machine.close();
    assert!(machine.check(at(now)).is_ok());
}
