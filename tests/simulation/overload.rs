//! More calls than the service can serve: which queue in front of it keeps it useful.

use std::time::Duration;

use tower::{BoxError, ServiceBuilder, ServiceExt, util::BoxCloneService};
use ziggurat::{
    Error, circuit_breaker::CircuitBreakerLayer, concurrency_limit::ConcurrencyLimitLayer, timeout::TimeoutLayer,
};

use crate::{
    load::{Arrivals, Client, Load},
    report::{Call, PATIENCE, Report},
    seconds, seeds, simulate,
    upstream::{Plan, Upstream, Weather, Work},
    watch::Watch,
};

/// A service that serves `limit` calls at a time, as many as the limit in front of it, and a load for it.
#[derive(Clone, Copy, Debug)]
struct Scene {
    limit: usize,
    work: Work,
    notices_callers_leaving: bool,
    arrivals: Arrivals,
    times_capacity: f64,
    length: f64,
    /// From second 5 to second 8.
    weather: Option<Weather>,
}

const LONG: f64 = 40.0;

/// The most common case: ten random calls of 100 ms on average at a time, and random arrivals.
const SCENE: Scene = Scene {
    limit: 10,
    work: Work::Random(Duration::from_millis(100)),
    notices_callers_leaving: true,
    arrivals: Arrivals::Poisson,
    times_capacity: 1.0,
    length: 10.0,
    weather: None,
};

impl Scene {
    fn capacity(&self) -> f64 {
        self.limit as f64 / self.work.mean().as_secs_f64()
    }

    fn run(&self, seed: u64, client: impl FnOnce(&Watch, Upstream) -> Client) -> Report {
        let Self { limit, work, notices_callers_leaving, arrivals, times_capacity, length, weather } = *self;
        let weather = weather.into_iter().map(|weather| (5.0..8.0, weather)).collect();
        let plan = Plan { workers: limit, work, queue: 10_000, notices_callers_leaving, weather, seed };
        let load = Load { per_second: self.capacity() * times_capacity, arrivals, length: seconds(length), seed };
        simulate(seed, async |watch| {
            let upstream = Upstream::new(plan);
            let calls = load.offer(&client(watch, upstream.clone())).await;
            Report { calls, received: upstream.received() }
        })
    }
}

/// A total limit, a circuit breaker, and a limit.
fn stack(limit: ConcurrencyLimitLayer) -> impl FnOnce(&Watch, Upstream) -> Client {
    move |watch, upstream| {
        let gate = limit.handle();
        let stack = ServiceBuilder::new()
            .layer(TimeoutLayer::new(PATIENCE))
            .layer(CircuitBreakerLayer::failure_rate(0.5))
            .layer(limit);
        watch.client(gate.clone(), gate.limit(), 0).around(&stack, upstream.map_err(Error::Service))
    }
}

/// Tower's layers in that order: a queue without a bound.
fn tower_stack(limit: usize) -> impl FnOnce(&Watch, Upstream) -> Client {
    move |_, upstream| {
        let service = ServiceBuilder::new().timeout(PATIENCE).concurrency_limit(limit).service(upstream);
        BoxCloneService::new(service.map_err(BoxError::from))
    }
}

/// Shows: A1
#[test]
fn goodput_stays_at_90_percent_of_the_capacity_whatever_is_offered() {
    let (fixed, random) = (Work::Fixed(seconds(0.1)), Work::Random(seconds(0.1)));
    let scenes = [
        Scene { work: fixed, arrivals: Arrivals::Steady, ..SCENE },
        SCENE,
        Scene { work: random, arrivals: Arrivals::Bursts(7), notices_callers_leaving: false, ..SCENE },
        Scene { limit: 40, arrivals: Arrivals::Bursts(7), notices_callers_leaving: false, ..SCENE },
        Scene { limit: 1, work: Work::Random(seconds(0.01)), ..SCENE },
    ];
    for seed in seeds(1) {
        for scene in scenes {
            let Scene { limit, .. } = scene;
            // Long enough that chance makes no tenth of the work of a random service.
            let scene = Scene { times_capacity: 0.5, length: LONG, ..scene };
            let unloaded = scene.run(seed, stack(ConcurrencyLimitLayer::new(limit)));
            // One random call in 20,000 takes longer than ten times the average.
            assert!(unloaded.failed() * 1000 <= unloaded.calls.len(), "seed {seed}, {scene:?}: {unloaded}");
            for times_capacity in [1.05, 2.0, 10.0] {
                let scene = Scene { times_capacity, ..scene };
                let report = scene.run(seed, stack(ConcurrencyLimitLayer::new(limit)));
                println!("seed {seed:>3}  {scene:?}\n          {report}");
                let context = format!("seed {seed}, {scene:?}: {report}");
                assert!(report.goodput(1.0..LONG) >= 0.9 * scene.capacity(), "{context}");
                // The time until its turn of a call behind those that may wait, and three standard deviations of it.
                let waiting = limit as f64 + 16.0;
                let wait = 1000.0 * (waiting + 3.0 * waiting.sqrt()) / scene.capacity();
                let (p99, most) = (report.latency(0.99, 3.0..LONG), 2.0 * unloaded.latency(0.99, 0.0..LONG) + wait);
                assert!(p99 <= most, "the p99 is over {most} ms: {context}");
                assert!(!report.errors().keys().any(|error| error.contains("circuit")), "{context}");
            }
        }
    }
}

/// Shows: A2
#[test]
fn a_call_is_rejected_at_once_or_has_its_turn() {
    for seed in seeds(2) {
        for times_capacity in [1.05, 2.0, 10.0] {
            let scene = Scene { times_capacity, ..SCENE };
            let report = scene.run(seed, stack(ConcurrencyLimitLayer::new(10)));
            let late = |call: &&Call| call.error.is_some() && call.took > seconds(0.001);
            let (late, all) = (report.calls.iter().filter(late).count(), report.calls.len());
            println!("seed {seed:>3}  x{times_capacity:<5} {late} of {all} failed late");
            assert!(late * 100 <= all, "seed {seed}, {scene:?}: {late} of {all} failed late: {report}");
        }
    }
}

/// A pace that was measured in bad weather is no reason to reject calls afterwards.
///
/// Shows: A1
#[test]
fn after_a_slow_down_a_hang_or_an_outage_the_limit_is_itself_within_a_second() {
    for seed in seeds(2) {
        for weather in [Weather::Slow(10.0), Weather::Hangs, Weather::Refuses] {
            let scene = Scene { times_capacity: 1.5, length: 14.0, weather: Some(weather), ..SCENE };
            let report = scene.run(seed, |watch, upstream| {
                let limit = ConcurrencyLimitLayer::new(10);
                let stack = ServiceBuilder::new().layer(TimeoutLayer::new(PATIENCE)).layer(limit.clone());
                watch.client(limit.handle(), 10, 0).around(&stack, upstream.map_err(Error::Service))
            });
            println!("seed {seed:>3}  {weather:?} {report}");
            let after = report.goodput(9.0..14.0);
            assert!(after >= 0.9 * scene.capacity(), "seed {seed}, {weather:?}: {after}/s after it");
        }
    }
}

/// The comparison that decided for the queue as it is: no other answers more in time, or as much sooner.
///
/// Shows: A1
#[test]
fn a_short_queue_that_knows_the_deadline_is_the_best_of_those_compared() {
    let deadline_alone = || ConcurrencyLimitLayer::new(10).max_wait(Duration::MAX);
    for work in [Work::Fixed(seconds(0.1)), Work::Random(seconds(0.1))] {
        for times_capacity in [0.9, 1.05, 2.0, 10.0] {
            let scene = Scene { work, times_capacity, ..SCENE };
            let reports = [
                ("default", scene.run(0, stack(ConcurrencyLimitLayer::new(10)))),
                ("deadline alone", scene.run(0, stack(deadline_alone()))),
                ("no queue", scene.run(0, stack(ConcurrencyLimitLayer::new(10).max_waiting(0)))),
                ("tower's", scene.run(0, tower_stack(10))),
            ];
            for (name, report) in &reports {
                println!("{work:?} x{times_capacity:<5}{name:<15} {report}");
            }
            let best = reports.iter().map(|(_, report)| report.goodput(1.0..10.0)).fold(0.0, f64::max);
            assert!(reports[0].1.goodput(1.0..10.0) >= 0.97 * best, "{scene:?}");
            let [default, deadline_alone] = [0, 1].map(|nth: usize| reports[nth].1.latency(0.5, 1.0..10.0));
            assert!(times_capacity < 2.0 || default <= 0.7 * deadline_alone, "{scene:?}");
        }
    }
}
