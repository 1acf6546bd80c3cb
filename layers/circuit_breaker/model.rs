//! Explores the interleavings of the circuit breaker's atomics with loom:
//! `RUSTFLAGS="--cfg ziggurat_loom" cargo test --release --lib circuit_breaker`

use std::{
    num::NonZeroU32,
    sync::{Arc, Mutex},
    time::Duration,
};

use loom::thread;

use super::{
    CircuitBreakerLayer, State,
    machine::{Machine, Outcome, Policy, Refused},
    window::Extent,
};
use crate::{
    backoff::{Backoff, Jitter},
    clock::{self, Instant},
    telemetry::{LayerEvent, LayerInfo},
};

const SECOND: Duration = Duration::from_secs(1);

fn policy() -> Policy {
    Policy {
        consecutive: None,
        failure_rate: None,
        slow: None,
        extent: Extent::Time(30 * SECOND),
        min_calls: NonZeroU32::new(2),
        open_for: Backoff::exponential(5 * SECOND).jitter(Jitter::None),
        probes: 1,
        successes_to_close: 1,
        watch_only: false,
        timed: false,
    }
}

/// Runs two closures at the same time on a machine from `make`, and then checks the machine.
fn explore(
    make: impl Fn(Instant) -> Machine + Send + Sync + 'static,
    here: impl Fn(&Machine, Instant) + Send + Sync + 'static,
    there: impl Fn(&Machine, Instant) + Send + Sync + Copy + 'static,
    then: impl Fn(&Machine, Instant) + Send + Sync + 'static,
) {
    let now = clock::now();
    loom::model(move || {
        let machine = Arc::new(make(now));
        let other = Arc::clone(&machine);
        let thread = thread::spawn(move || there(&other, now));
        here(&machine, now);
        thread.join().unwrap();
        then(&machine, now);
    });
}

fn fail(machine: &Machine, now: Instant) {
    if let Ok(ticket) = machine.admit(|| now) {
        machine.record(&ticket, Outcome::Failure, || now);
    }
}

fn succeed(machine: &Machine, now: Instant) {
    if let Ok(ticket) = machine.admit(|| now) {
        machine.record(&ticket, Outcome::Success, || now);
    }
}

/// Returns a circuit that is open for the next five seconds.
fn opened(now: Instant) -> Machine {
    let machine = Machine::new(Policy { consecutive: Some(1), ..policy() }, now);
    fail(&machine, now);
    machine
}

fn is_open(machine: &Machine, now: Instant) {
    assert_eq!(machine.state(), State::Open);
    assert_eq!(machine.check(|| now), Err(Refused { retry_after: 5 * SECOND }), "opened once");
}

#[test]
fn two_failures_in_a_row_are_both_counted() {
    explore(|now| Machine::new(Policy { consecutive: Some(2), ..policy() }, now), fail, fail, is_open);
}

#[test]
fn two_failures_in_two_buckets_do_not_miss_each_other() {
    let by_calls = Policy { failure_rate: Some(1.0), extent: Extent::Calls(4), ..policy() };
    explore(move |now| Machine::new(by_calls.clone(), now), fail, fail, is_open);

    let by_time = Policy { failure_rate: Some(1.0), ..policy() };
    let later = |machine: &Machine, now| fail(machine, now + 3 * SECOND);
    let is_open = |machine: &Machine, _| assert_eq!(machine.state(), State::Open);
    explore(move |now| Machine::new(by_time.clone(), now), fail, later, is_open);
}

/// The success completes `min_calls`, and may not see yet that the failure awaits more calls.
#[test]
fn a_success_that_completes_the_fewest_calls_is_judged_by_the_next_call_at_the_latest() {
    let third = Policy { failure_rate: Some(0.3), ..policy() };
    let then = |machine: &Machine, now| {
        succeed(machine, now);
        assert_eq!(machine.state(), State::Open);
    };
    explore(move |now| Machine::new(third.clone(), now), succeed, fail, then);
}

/// The success sums before the failure is recorded, and stores its result afterwards.
#[test]
fn a_call_that_saw_no_failure_does_not_take_back_that_a_rate_awaits_more_calls() {
    let third = Policy { failure_rate: Some(0.3), min_calls: NonZeroU32::new(3), ..policy() };
    let then = |machine: &Machine, now| {
        succeed(machine, now);
        assert_eq!(machine.state(), State::Open);
    };
    explore(move |now| Machine::new(third.clone(), now), succeed, fail, then);
}

#[test]
fn one_failure_too_many_by_two_conditions_opens_once() {
    let both = Policy { consecutive: Some(1), failure_rate: Some(0.5), min_calls: NonZeroU32::new(1), ..policy() };
    explore(move |now| Machine::new(both.clone(), now), fail, fail, is_open);
}

/// Two failures would open the circuit, but they belong to two generations.
#[test]
fn a_failure_that_is_late_is_not_counted() {
    let row = Policy { consecutive: Some(2), ..policy() };
    let by_calls = Policy { failure_rate: Some(0.5), extent: Extent::Calls(4), ..policy() };
    for policy in [row, by_calls] {
        let now = clock::now();
        loom::model(move || {
            let machine = Arc::new(Machine::new(policy.clone(), now));
            let (late, other) = (machine.admit(|| now).unwrap(), Arc::clone(&machine));
            let thread = thread::spawn(move || other.record(&late, Outcome::Failure, || now));
            machine.close();
            fail(&machine, now);
            thread.join().unwrap();
            assert_eq!(machine.state(), State::Closed);
        });
    }
}

#[test]
fn two_calls_at_once_are_one_probe() {
    let now = clock::now();
    loom::model(move || {
        let machine = Arc::new(opened(now));
        let admitted = move |machine: &Machine| machine.admit(|| now + 5 * SECOND).is_ok();
        let other = Arc::clone(&machine);
        let thread = thread::spawn(move || admitted(&other));
        assert!(admitted(&machine) != thread.join().unwrap());
    });
}

#[test]
fn opened_by_hand_beats_whatever_a_probe_says() {
    let (now, later) = (clock::now(), clock::now() + 5 * SECOND);
    for outcome in [Outcome::Success, Outcome::Failure, Outcome::NoAnswer, Outcome::Abandoned, Outcome::Ignored] {
        loom::model(move || {
            let machine = Arc::new(opened(now));
            let (probe, other) = (machine.admit(|| later).unwrap(), Arc::clone(&machine));
            let thread = thread::spawn(move || other.record(&probe, outcome, || later));
            machine.force_open();
            thread.join().unwrap();
            assert_eq!(machine.check(|| later + 1000 * SECOND), Err(Refused { retry_after: 5 * SECOND }));
        });
    }
}

#[test]
fn transitions_of_two_threads_are_told_in_order_and_none_is_left_untold() {
    loom::model(|| {
        let told = Arc::new(Mutex::new(vec!["closed"]));
        let log = Arc::clone(&told);
        let observer = move |_: &LayerInfo, event: &LayerEvent<'_>| {
            let LayerEvent::Transition { from, to } = *event else { return };
            let mut log = log.lock().unwrap();
            assert_eq!(log.last(), Some(&from));
            log.push(to);
        };
        let circuit = CircuitBreakerLayer::consecutive(1).observer(observer).slot.live().clone();
        let other = circuit.clone();
        let thread = thread::spawn(move || other.turn(Machine::close));
        circuit.turn(Machine::force_open);
        thread.join().unwrap();
        assert_eq!(told.lock().unwrap().last(), Some(&circuit.state().as_str()));
    });
}
