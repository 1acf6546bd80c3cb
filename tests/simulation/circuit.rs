//! When a circuit opens: soon in an outage, and not by chance.

use std::sync::{Arc, Mutex};

use tokio::time::Instant;
use tower::{Layer, Service, service_fn};
use ziggurat::{
    Error,
    circuit_breaker::{CircuitBreakerHandle, CircuitBreakerLayer, State},
    stack::ClientStack,
};

use crate::{
    load::{Arrivals, Client, Load, boxed},
    seconds, seeds, simulate,
    upstream::{Failed, Request},
    watch::Watch,
};

/// A service that answers at once, and fails the fraction of calls that `fails` gives for a time in seconds.
fn service(
    seed: u64,
    fails: fn(f64) -> f64,
) -> impl Service<Request, Response = (), Error = Error<Failed>, Future: Send> + Clone + Send + 'static {
    let (start, random) = (Instant::now(), Arc::new(Mutex::new(fastrand::Rng::with_seed(seed))));
    service_fn(move |_| {
        let fails = random.lock().unwrap().f64() < fails(start.elapsed().as_secs_f64());
        async move { if fails { Err(Error::Service(Failed::Unavailable)) } else { Ok(()) } }
    })
}

/// Returns when the circuit opened, in seconds.
fn openings(seed: u64, load: Load, client: impl FnOnce(&Watch) -> (Client, CircuitBreakerHandle)) -> Vec<f64> {
    simulate(seed, async |watch| {
        let ((client, circuit), start) = (client(watch), Instant::now());
        let mut transitions = circuit.subscribe();
        let follow = tokio::spawn(async move {
            let mut openings = Vec::new();
            while let Some(transition) = transitions.next().await {
                if transition.to == State::Open && transition.from == State::Closed {
                    openings.push(start.elapsed().as_secs_f64());
                }
            }
            openings
        });
        load.offer(&client).await;
        drop((client, circuit));
        follow.await.unwrap()
    })
}

fn breaker(_: &Watch, seed: u64, fails: fn(f64) -> f64) -> (Client, CircuitBreakerHandle) {
    let layer = CircuitBreakerLayer::failure_rate(0.5);
    let circuit = layer.handle();
    (boxed(layer.layer(service(seed, fails))), circuit)
}

fn stack(watch: &Watch, seed: u64, fails: fn(f64) -> f64) -> (Client, CircuitBreakerHandle) {
    let stack = ClientStack::new("upstream");
    (watch.stack(&stack).around(&stack, service(seed, fails)), stack.circuit())
}

/// Shows: A5
#[test]
fn at_45_percent_of_failures_a_circuit_opens_at_most_once_in_100_minutes() {
    for seed in seeds(3) {
        let load = Load { per_second: 5.0, arrivals: Arrivals::Poisson, length: seconds(6_000.0), seed };
        for (name, client) in [("breaker", breaker as fn(&_, _, _) -> _), ("stack", stack)] {
            let openings = openings(seed, load, |watch| client(watch, seed, |_| 0.45));
            println!("seed {seed:>3}  {name}: opened {} times", openings.len());
            assert!(openings.len() <= 1, "seed {seed}, {name}: {openings:?}");
        }
    }
}

/// Shows: A5
#[test]
fn an_outage_opens_a_circuit_within_three_seconds_or_with_its_twentieth_call() {
    const BEGIN: f64 = 60.7;
    for seed in seeds(1) {
        // Twenty random calls at 5/s take four seconds, and three standard deviations of 0.9 s.
        for (per_second, most) in [(5.0, 7.0), (100.0, 3.0), (1_000.0, 3.0)] {
            for (failing, fails) in [
                ("all", (|at| if at < BEGIN { 0.01 } else { 1.0 }) as fn(f64) -> f64),
                ("80 %", |at| if at < BEGIN { 0.01 } else { 0.8 }),
            ] {
                let load = Load { per_second, arrivals: Arrivals::Poisson, length: seconds(BEGIN + 20.0), seed };
                // Retries turn a rate of 80 % into one of 62 %.
                let stack = (failing == "all").then_some(("stack", stack as fn(&_, _, _) -> _));
                for (name, client) in [("breaker", breaker as fn(&_, _, _) -> _)].into_iter().chain(stack) {
                    let opened = openings(seed, load, |watch| client(watch, seed, fails));
                    let after = opened.first().map_or(f64::INFINITY, |at| at - BEGIN);
                    println!("seed {seed:>3}  {name} at {per_second}/s, {failing} fail: opened after {after:.2} s");
                    // A few calls more show a rate that is close to that of the circuit.
                    let most = if failing == "all" { most } else { 3.0 * most };
                    assert!((0.0..=most).contains(&after), "seed {seed}, {name} at {per_second}/s: {opened:?}");
                }
            }
        }
    }
}

/// Shows: A5
#[test]
fn an_outage_of_half_a_second_opens_no_busy_circuit() {
    for seed in seeds(1) {
        let load = Load { per_second: 1_000.0, arrivals: Arrivals::Poisson, length: seconds(30.0), seed };
        let fails = |at| if (20.0..20.5).contains(&at) { 1.0 } else { 0.0 };
        let opened = openings(seed, load, |watch| breaker(watch, seed, fails));
        assert!(opened.is_empty(), "seed {seed}: {opened:?}");
    }
}
