//! Compares the machine with a naive model, which recomputes the circuit from the list of all events.

use proptest::prelude::*;

use super::*;

#[derive(Clone, Copy, Debug)]
enum Happened {
    Asked,
    /// The call that the event at this index asked for has ended.
    Ended(usize, Outcome),
    ForcedOpen,
    Closed,
    /// The rate and the minimum of calls were changed.
    Rated(f64, usize),
    /// The number of failures in a row was changed, possibly to zero.
    Rowed(u32),
}

#[derive(Clone, Copy, Debug)]
enum Phase {
    Closed,
    Open { until: Option<u64> },
    HalfOpen,
}

/// The settings of a policy, with times in milliseconds.
#[derive(Clone, Copy, Debug)]
struct Rules {
    /// Zero: failures in a row are not counted and do not open the circuit.
    consecutive: u32,
    rate: Option<f64>,
    slow: Option<(u64, f64)>,
    window: u64,
    by_calls: bool,
    /// Zero: as many as distinguish the rate from chance.
    min_calls: usize,
    open_for: u64,
    probes: usize,
    successes: usize,
}

/// A call that ended in its own generation while the circuit was closed.
struct Counted {
    phase: usize,
    at: u64,
    failed: bool,
    /// Whether failures in a row were counted at that time.
    in_a_row: bool,
    slow: bool,
}

struct Admitted {
    phase: usize,
    event: usize,
    at: u64,
    ended: Option<Outcome>,
}

type Answer = Result<(), Option<u64>>;

/// Returns the state after all these events, and the admission if the last event asks for one.
fn replay(mut rules: Rules, events: &[(u64, Happened)]) -> (State, Option<Answer>) {
    let mut phases = vec![Phase::Closed];
    let mut counted: Vec<Counted> = Vec::new();
    let mut admitted: Vec<Admitted> = Vec::new();
    let mut endings = Vec::new();
    let mut answer = None;
    for (event, &(now, happened)) in events.iter().enumerate() {
        let current = phases.len() - 1;
        let opened = || Some(Phase::Open { until: Some(now + open_time(rules, openings(&phases) + 1)) });
        answer = None;
        let next = match happened {
            Happened::Rated(rate, min_calls) => {
                (rules.rate, rules.min_calls) = (Some(rate), min_calls);
                None
            }
            Happened::Rowed(failures) => {
                rules.consecutive = failures;
                None
            }
            Happened::Closed => Some(Phase::Closed),
            Happened::ForcedOpen => Some(Phase::Open { until: None }),
            Happened::Asked => {
                let (result, next) = match phases[current] {
                    Phase::Closed => (Ok(()), None),
                    Phase::Open { until: Some(until) } if until <= now => (Ok(()), Some(Phase::HalfOpen)),
                    Phase::Open { until } => (Err(until.map(|until| until - now)), None),
                    Phase::HalfOpen => {
                        let time = open_time(rules, openings(&phases)).max(5_000);
                        let held = admitted.iter().filter(|call| call.phase == current && call.ended.is_none());
                        let left: Vec<_> = held
                            .filter_map(|call| (call.at + time).checked_sub(now))
                            .filter(|left| *left > 0)
                            .collect();
                        (if left.len() < rules.probes { Ok(()) } else { Err(left.into_iter().min()) }, None)
                    }
                };
                if result.is_ok() {
                    let phase = current + usize::from(next.is_some());
                    admitted.push(Admitted { phase, event, at: now, ended: None });
                }
                answer = Some(result);
                next
            }
            Happened::Ended(asked, outcome) => {
                let call = admitted.iter_mut().find(|call| call.event == asked).unwrap();
                call.ended = Some(outcome);
                let (phase, began) = (call.phase, call.at);
                if phase == current {
                    endings.push((phase, outcome));
                }
                let failed = matches!(outcome, Outcome::Failure | Outcome::NoAnswer);
                let counts = failed || outcome == Outcome::Success;
                let slow = counts && rules.slow.is_some_and(|(limit, _)| now - began > limit);
                if phase != current || outcome == Outcome::Ignored {
                    None
                } else if let Phase::Closed = phases[current] {
                    if counts {
                        counted.push(Counted { phase, at: now, failed, in_a_row: rules.consecutive > 0, slow });
                    }
                    let opens = nothing_comes_back(rules, &endings) || (counts && opens(rules, &counted));
                    if opens { opened() } else { None }
                } else if failed || slow || nothing_comes_back(rules, &endings) {
                    opened()
                } else {
                    let successes = admitted.iter().filter(|c| c.phase == current && c.ended == Some(Outcome::Success));
                    (successes.count() >= rules.successes).then_some(Phase::Closed)
                }
            }
        };
        phases.extend(next);
    }
    let state = match phases.last() {
        Some(Phase::Closed) => State::Closed,
        Some(Phase::Open { .. }) => State::Open,
        _ => State::HalfOpen,
    };
    (state, answer)
}

/// Returns how often the circuit opened by itself since it was last closed.
fn openings(phases: &[Phase]) -> u32 {
    let since = phases.iter().rev().take_while(|phase| !matches!(phase, Phase::Closed));
    since.filter(|phase| matches!(phase, Phase::Open { until: Some(_) })).count() as u32
}

fn open_time(rules: Rules, openings: u32) -> u64 {
    (rules.open_for << (openings - 1).min(20)).min(LONGEST)
}

fn enough(min_calls: usize) -> usize {
    if min_calls == 0 { 20 } else { min_calls }
}

/// Returns whether the last call completes a row of unanswered calls that opens the circuit.
fn nothing_comes_back(rules: Rules, endings: &[(usize, Outcome)]) -> bool {
    let unanswered = |outcome: &Outcome| matches!(outcome, Outcome::NoAnswer | Outcome::Abandoned);
    let &(phase, last) = endings.last().unwrap();
    let of_this_phase = endings.iter().rev().take_while(|(other, _)| *other == phase).map(|(_, outcome)| outcome);
    let in_a_row =
        of_this_phase.filter(|outcome| **outcome != Outcome::Ignored).take_while(|outcome| unanswered(outcome));
    let most = if rules.by_calls { rules.window as usize } else { usize::MAX };
    let by_row = if rules.consecutive > 0 { rules.consecutive as usize } else { usize::MAX };
    let by_rate = if rules.rate.is_some() { enough(rules.min_calls).min(most) } else { usize::MAX };
    unanswered(&last) && in_a_row.count() >= by_row.min(by_rate)
}

/// Returns whether the last of these calls opens the circuit.
fn opens(rules: Rules, counted: &[Counted]) -> bool {
    let last = counted.last().unwrap();
    let row = counted.iter().rev().take_while(|call| call.phase == last.phase && call.failed);
    let in_a_row = row.filter(|call| call.in_a_row).count();

    // A window moves in steps, so all calls of a step leave it together.
    let width = if rules.by_calls { rules.window.div_ceil(10) } else { rules.window / 10 };
    let steps = if rules.by_calls { (rules.window - 1).div_ceil(width) + 1 } else { 10 };
    // A window of calls starts with the first call of its phase.
    let first = counted.iter().position(|call| call.phase == last.phase).unwrap();
    let step = |index: usize, call: &Counted| if rules.by_calls { (index - first) as u64 } else { call.at } / width;
    let newest = step(counted.len() - 1, last);
    // The calls, and the bad ones, of this many newest steps.
    let held = |steps: u64, bad: fn(&Counted) -> bool| {
        let recent =
            |(index, call): &(usize, &Counted)| call.phase == last.phase && step(*index, call) + steps > newest;
        let held = || counted.iter().enumerate().filter(recent).map(|(_, call)| call);
        (held().count(), held().filter(|call| bad(call)).count() as f64)
    };
    let most = if rules.by_calls { rules.window as usize } else { usize::MAX };
    let reached = |bad: fn(&Counted) -> bool, limit: f64| match rules.min_calls {
        0 if !rules.by_calls => (2..=steps).any(|part| {
            let (calls, bad) = held(part, bad);
            let n = calls as f64;
            let part = |seen: f64, expected: f64| if seen > 0.0 { seen * (seen / expected).ln() } else { 0.0 };
            let evidence = part(bad, n * limit) + part(n - bad, n * (1.0 - limit));
            calls >= 20 && bad / n >= limit && (evidence >= 8.0 || bad == n)
        }),
        min_calls => {
            let (calls, bad) = held(steps, bad);
            calls >= enough(min_calls).min(most) && bad / calls as f64 >= limit
        }
    };

    (last.failed && last.in_a_row && in_a_row >= rules.consecutive as usize)
        || rules.rate.is_some_and(|limit| reached(|call| call.failed, limit))
        || rules.slow.is_some_and(|(_, limit)| reached(|call| call.slow, limit))
}

/// The longest open time, in milliseconds.
const LONGEST: u64 = 2_000;

fn rules() -> impl Strategy<Value = Rules> {
    let conditions =
        (prop_oneof![Just(0), 1..6_u32], prop::option::of(0.1..=1.0), prop::option::of((1..400_u64, 0.1..=1.0)));
    let windows = (
        prop_oneof![(1..200_u64).prop_map(|ms| (10 * ms, false)), (1..40_u64).prop_map(|calls| (calls, true))],
        prop_oneof![2 => 1..10_usize, 1 => Just(0)],
    );
    (conditions, windows, (1..500_u64, 1..4_usize, 1..4_usize)).prop_map(
        |((consecutive, rate, slow), ((window, by_calls), min_calls), (open_for, probes, successes))| Rules {
            consecutive,
            rate,
            slow,
            window,
            by_calls,
            min_calls,
            open_for,
            probes,
            successes,
        },
    )
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Pass(u64),
    Ask,
    /// A call in flight ends, if there is one.
    End(prop::sample::Index, Outcome),
    ForceOpen,
    Close,
    /// Changes a rate that exists: a new one would start its window later than the model.
    Rate(f64, usize),
    Row(u32),
}

fn step() -> impl Strategy<Value = Step> {
    let outcome = prop_oneof![
        4 => Just(Outcome::Success),
        3 => Just(Outcome::Failure),
        2 => Just(Outcome::NoAnswer),
        2 => Just(Outcome::Abandoned),
        1 => Just(Outcome::Answered),
        1 => Just(Outcome::Ignored),
    ];
    prop_oneof![
        200 => prop_oneof![16 => 1..20_u64, 4 => 1..600_u64, 1 => 4_000..6_000_u64].prop_map(Step::Pass),
        400 => Just(Step::Ask),
        400 => (any::<prop::sample::Index>(), outcome).prop_map(|(which, outcome)| Step::End(which, outcome)),
        4 => Just(Step::ForceOpen),
        16 => Just(Step::Close),
        16 => (0.1..=1.0, 0..10_usize).prop_map(|(rate, min_calls)| Step::Rate(rate, min_calls)),
        16 => (0..6_u32).prop_map(Step::Row),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_000, ..ProptestConfig::default() })]

    /// Shows: B1, B2, B3, B4, B5, B7
    #[test]
    fn a_circuit_agrees_with_one_that_is_computed_from_all_events(
        rules in rules(),
        steps in prop::collection::vec(step(), 1..150),
    ) {
        let start = Instant::now();
        let millis = Duration::from_millis;
        let machine = Machine::new(
            Policy {
                consecutive: (rules.consecutive > 0).then_some(rules.consecutive),
                failure_rate: rules.rate,
                slow: rules.slow.map(|(limit, rate)| (millis(limit), rate)),
                extent: if rules.by_calls { Extent::Calls(rules.window as u32) } else { Extent::Time(millis(rules.window)) },
                min_calls: NonZeroU32::new(rules.min_calls as u32),
                open_for: Backoff::exponential(millis(rules.open_for)).max(millis(LONGEST)).jitter(Jitter::None),
                probes: rules.probes,
                successes_to_close: rules.successes as u32,
                timed: false,
                watch_only: false,
            },
            start,
        );
        let (mut now, mut events, mut under_way) = (0, Vec::new(), Vec::new());
        for step in steps {
            let clock = at(start + millis(now));
            match step {
                Step::Pass(time) => now += time,
                Step::Ask => {
                    events.push((now, Happened::Asked));
                    let expected = replay(rules, &events).1.unwrap();
                    let expected = expected.map_err(|left| Refused { retry_after: millis(left.unwrap_or(open_time(rules, 1))) });
                    prop_assert_eq!(machine.check(clock), expected);
                    let admitted = machine.admit(clock);
                    prop_assert_eq!(admitted.as_ref().map(drop), expected.as_ref().map(drop), "{:?}", events);
                    under_way.extend(admitted.map(|ticket| (events.len() - 1, ticket)));
                }
                Step::End(which, outcome) if !under_way.is_empty() => {
                    let (asked, ticket) = under_way.swap_remove(which.index(under_way.len()));
                    events.push((now, Happened::Ended(asked, outcome)));
                    let before = machine.state();
                    let turned = machine.record(&ticket, outcome, clock);
                    prop_assert_eq!(turned == Some(true), machine.state() != before);
                }
                Step::End(..) => {}
                Step::ForceOpen => {
                    events.push((now, Happened::ForcedOpen));
                    machine.force_open();
                }
                Step::Close => {
                    events.push((now, Happened::Closed));
                    machine.close();
                }
                Step::Rate(rate, min_calls) if rules.rate.is_some() => {
                    events.push((now, Happened::Rated(rate, min_calls)));
                    machine.set_failure_rate(rate, start + millis(now));
                    machine.set_min_calls(NonZeroU32::new(min_calls as u32));
                }
                Step::Rate(..) => {}
                Step::Row(failures) => {
                    events.push((now, Happened::Rowed(failures)));
                    machine.set_consecutive_failures(failures);
                }
            }
            prop_assert_eq!(machine.state(), replay(rules, &events).0, "{:?}", events);
        }
    }
}
