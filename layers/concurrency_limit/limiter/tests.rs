use proptest::{collection::vec, prelude::*};

use super::*;

/// A service with a number of workers and a latency, as a function of the step: the mean of the limits from step
/// `from` on, as a multiple of its workers.
fn follow(from: usize, service: impl Fn(u32) -> (f64, f64)) -> f64 {
    let run = |seed| {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut limiter = Limiter::new(Algorithm::Gradient, 1..=1000, 20);
        let limits = (0..100).map(|nth| {
            let (workers, latency) = service(nth);
            let calls = limiter.calls_of_a_step();
            // Beyond its workers, calls wait in the service. The mean of exponential latencies varies.
            let waiting = (limiter.limit() as f64 / workers).max(1.0);
            let chance = (0..12).map(|_| random.f64()).sum::<f64>() - 6.0;
            let mean = latency * waiting * (1.0 + chance / f64::from(calls).sqrt());
            let latency = Duration::from_secs_f64(mean).saturating_mul(calls);
            limiter.step(Step { calls, latency, dropped: 0, found_full: u32::MAX });
            limiter.limit() as f64 / workers
        });
        mean(&limits.collect::<Vec<_>>()[from..])
    };
    mean(&(0..20).map(run).collect::<Vec<_>>())
}

fn mean(ratios: &[f64]) -> f64 {
    ratios.iter().sum::<f64>() / ratios.len() as f64
}

#[test]
fn the_gradient_finds_what_the_service_can_do_and_follows_it() {
    for workers in [2.0, 5.0, 20.0, 100.0, 400.0] {
        let found = follow(40, |_| (workers, 0.1));
        assert!((0.9..1.6).contains(&found), "{found} of {workers}");
    }
    let halves = follow(75, |nth| (if nth < 50 { 40.0 } else { 20.0 }, 0.1));
    let doubles = follow(75, |nth| (if nth < 50 { 20.0 } else { 40.0 }, 0.1));
    let slower = follow(75, |nth| (20.0, if nth < 50 { 0.1 } else { 0.3 }));
    let faster = follow(75, |nth| (20.0, if nth < 50 { 0.1 } else { 0.03 }));
    for (what, found) in [("halves", halves), ("doubles", doubles), ("slower", slower), ("faster", faster)] {
        assert!((0.9..1.7).contains(&found), "{found}: {what}");
    }
}

/// A service of long calls is not kept at the start for as long as many of them take.
#[test]
fn at_first_a_step_takes_as_many_calls_as_the_limit() {
    let mut limiter = Limiter::new(Algorithm::Gradient, 1..=1000, 20);
    for limit in [20, 40, 80, 160, 320] {
        assert_eq!((limiter.limit(), limiter.calls_of_a_step()), (limit, limit as u32));
        limiter.step(step_of(&limiter, 0));
    }
}

/// Two of twenty calls may fail by chance: they neither end a slow start, nor does it go on before more is known.
#[test]
fn a_few_dropped_calls_at_the_start_decide_nothing() {
    let start = || {
        let mut limiter = Limiter::new(Algorithm::Gradient, 1..=1000, 20);
        limiter.step(step_of(&limiter, 2));
        assert_eq!(limiter.limit(), 20);
        limiter
    };
    let mut chance = start();
    chance.step(step_of(&chance, 0));
    assert_eq!(chance.limit(), 40, "2 of 40 calls were dropped");
    let mut no_chance = start();
    no_chance.step(step_of(&no_chance, 8));
    assert_eq!(no_chance.limit(), 18, "10 of 40 calls were dropped");
}

fn step_of(limiter: &Limiter, dropped: u32) -> Step {
    let calls = limiter.calls_of_a_step().saturating_sub(dropped);
    Step { calls, latency: Duration::from_millis(1).saturating_mul(calls), dropped, found_full: u32::MAX }
}

#[test]
fn dropped_calls_lower_both_and_their_absence_raises_the_one_that_knows_nothing_else() {
    for algorithm in [Algorithm::Aimd, Algorithm::Gradient] {
        let mut limiter = Limiter::new(algorithm, 1..=1000, 100);
        for (dropped, limit) in [(20, 90), (54, 63), (126, 31), (10, 28)] {
            limiter.step(step_of(&limiter, dropped));
            assert_eq!(limiter.limit(), limit, "{algorithm:?}");
        }
        // A step that drops ended early is no worse for it.
        limiter.step(Step { calls: 0, latency: Duration::ZERO, dropped: 10, found_full: u32::MAX });
        assert_eq!(limiter.limit(), 26, "{algorithm:?}");
    }
    let mut limiter = Limiter::new(Algorithm::Aimd, 1..=39, 32);
    for limit in [35, 39, 39] {
        // Some calls fail for other reasons.
        limiter.step(step_of(&limiter, 9));
        assert_eq!(limiter.limit(), limit);
    }
}

/// A part of the calls fails at random, whatever the limit, and then none does any more.
#[test]
fn calls_that_a_lower_limit_does_not_save_do_not_keep_it_low() {
    for algorithm in [Algorithm::Aimd, Algorithm::Gradient] {
        for part in [0.03, 0.05, 0.08, 0.1, 0.15, 0.3, 0.6, 0.9] {
            let mut random = fastrand::Rng::with_seed(3);
            let mut limiter = Limiter::new(algorithm, 1..=1000, 40);
            let mut limits = Vec::new();
            for step in 0..3000 {
                let part = if step < 2000 { part } else { 0.0 };
                let (mut calls, mut dropped) = (0, 0);
                while calls + dropped < limiter.calls_of_a_step() && dropped < limiter.drops_of_a_step() {
                    if random.f64() < part { dropped += 1 } else { calls += 1 }
                }
                // A service with 40 workers, which queues the rest.
                let queue = (limiter.limit() as f64 / 40.0).max(1.0);
                let latency = Duration::from_secs_f64(0.05 * queue).saturating_mul(calls);
                limiter.step(Step { calls, latency, dropped, found_full: u32::MAX });
                limits.push((limiter.limit() as f64).min(40.0));
            }
            let [during, after] = [mean(&limits[1000..2000]), mean(&limits[2500..])];
            assert!(during >= 25.0 && after >= 32.0, "{algorithm:?}, {part}: {during} and {after} of 40");
        }
    }
}

/// A lower bound from which no probe is possible, and a service that becomes slower, and then has no queue at all.
#[test]
fn a_limit_at_its_lower_bound_leaves_it_again() {
    let mut limiter = Limiter::new(Algorithm::Gradient, 20..=200, 20);
    for step in 0..300 {
        let calls = limiter.calls_of_a_step();
        let latency = Duration::from_millis(if step == 0 { 10 } else { 20 }).saturating_mul(calls);
        limiter.step(Step { calls, latency, dropped: 0, found_full: u32::MAX });
    }
    assert!(limiter.limit() > 150, "{}", limiter.limit());
}

/// Otherwise a probe would last for as long as the load is light, and so would a limit that a brown-out left.
#[test]
fn a_limit_that_fell_is_measured_under_light_load_too() {
    let mut limiter = Limiter::new(Algorithm::Gradient, 1..=1000, 100);
    let step = |limiter: &mut Limiter, millis, found_full| {
        let calls = limiter.calls_of_a_step();
        let latency = Duration::from_millis(millis).saturating_mul(calls);
        limiter.step(Step { calls, latency, dropped: 0, found_full });
        (limiter.limit(), limiter.measures_all())
    };
    assert!(limiter.measures_all(), "it knows no latency");
    assert_eq!(step(&mut limiter, 10, 0), (100, false));
    assert_eq!(step(&mut limiter, 100, u32::MAX), (70, true), "the service is slow");
    assert_eq!(step(&mut limiter, 10, 0), (100, false), "it has recovered");
}

/// In an outage every call fails at once, and few are in flight.
#[test]
fn a_step_that_found_a_permit_for_every_call_changes_nothing() {
    for algorithm in [Algorithm::Aimd, Algorithm::Gradient] {
        let mut limiter = Limiter::new(algorithm, 1..=1000, 100);
        for (calls, dropped) in [(100, 0), (0, 100), (50, 50)] {
            limiter.step(Step { calls, latency: Duration::from_millis(1), dropped, found_full: 0 });
            assert_eq!(limiter.limit(), 100, "{algorithm:?}");
        }
    }
}

proptest! {
    /// Whatever happens, the limit stays within its bounds.
    #[test]
    fn any_history_leaves_a_limit_within_bounds(
        steps in vec((any::<u32>(), any::<u64>(), any::<u32>(), 0..3_u32), 1..60),
        gradient: bool,
        lowest in 1..50_usize,
        more in 0..5000_usize,
        start: usize,
    ) {
        let algorithm = if gradient { Algorithm::Gradient } else { Algorithm::Aimd };
        let mut limiter = Limiter::new(algorithm, lowest..=lowest + more, start);
        for (calls, nanos, dropped, found_full) in steps {
            limiter.step(Step { calls, latency: Duration::from_nanos(nanos), dropped, found_full });
            prop_assert!((lowest..=lowest + more).contains(&limiter.limit()));
            prop_assert!(limiter.calls_of_a_step() >= FEWEST_AT_FIRST);
        }
    }
}
