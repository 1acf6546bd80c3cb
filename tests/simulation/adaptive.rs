//! A limit that adapts: it finds the capacity of a service that goes on working for callers who have left.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::time::Instant;
use tower::{ServiceBuilder, ServiceExt};
use ziggurat::{
    Error,
    concurrency_limit::{Adaptive, ConcurrencyLimitLayer},
    stack::{ClientSettings, ClientStack},
    timeout::TimeoutLayer,
};

use crate::{
    is_long,
    load::{Arrivals, Load},
    report::{PATIENCE, Report, quantile},
    seconds, seeds, simulate,
    upstream::{Plan, Upstream, Weather, Work},
};

#[derive(Clone, Copy, Debug)]
struct Scene {
    workers: usize,
    work: Work,
    queue: usize,
    times_capacity: f64,
    /// From second 30 on, work takes this many times as long.
    slower: f64,
    length: f64,
}

/// Twenty random calls of 50 ms on average at a time.
const SCENE: Scene = Scene {
    workers: 20,
    work: Work::Random(Duration::from_millis(50)),
    queue: 10_000,
    times_capacity: 1.5,
    slower: 1.0,
    length: 45.0,
};

struct Run {
    report: Report,
    /// When each call of the service ended, and how long it took.
    calls: Vec<(Duration, Duration)>,
}

impl Run {
    /// The time of calls in the service, as a quantile in milliseconds.
    fn latency(&self, part: f64, range: std::ops::Range<f64>) -> f64 {
        let within = self.calls.iter().filter(|(at, _)| range.contains(&at.as_secs_f64()));
        quantile(part, within.map(|(_, took)| *took).collect())
    }
}

impl Scene {
    /// The capacity from second 30 on.
    fn capacity(&self) -> f64 {
        self.workers as f64 / self.work.mean().as_secs_f64() / self.slower
    }

    /// The recommended client, with its own limit or with 25, in this weather.
    fn recommended(&self, seed: u64, is_fixed: bool, weather: Option<Weather>) -> Report {
        let Self { workers, work, queue, times_capacity, length, .. } = *self;
        let weather = weather.map(|weather| (0.0..f64::MAX, weather)).into_iter().collect();
        let plan = Plan { workers, work, queue, notices_callers_leaving: false, weather, seed };
        let per_second = self.capacity() * times_capacity;
        let load = Load { per_second, arrivals: Arrivals::Poisson, length: seconds(length), seed };
        simulate(seed, async |watch| {
            let upstream = Upstream::new(plan);
            let stack = ClientStack::new("upstream").settings(ClientSettings::default().timeout(PATIENCE));
            let own = upstream.clone().map_err(Error::Service);
            let client = if is_fixed {
                let stack = stack.with_concurrency_limit(ConcurrencyLimitLayer::new(25));
                watch.client(stack.gate(), 25, 1).around(&stack, own)
            } else {
                watch.stack(&stack).around(&stack, own)
            };
            Report { calls: load.offer(&client).await, received: upstream.received() }
        })
    }

    fn run(&self, seed: u64, adaptive: Adaptive) -> Run {
        let Self { workers, work, queue, times_capacity, slower, length } = *self;
        let weather = vec![(30.0..f64::MAX, Weather::Slow(slower))];
        let plan = Plan { workers, work, queue, notices_callers_leaving: false, weather, seed };
        let per_second = self.capacity() * times_capacity;
        let load = Load { per_second, arrivals: Arrivals::Poisson, length: seconds(length), seed };
        simulate(seed, async |watch| {
            let upstream = Upstream::new(plan);
            let (start, calls) = (Instant::now(), Arc::<Mutex<Vec<_>>>::default());
            let measured = Arc::clone(&calls);
            let limit = ConcurrencyLimitLayer::adaptive(adaptive);
            let own = upstream.clone().map_err(Error::Service).map_future(move |call| {
                let (measured, began) = (Arc::clone(&measured), Instant::now());
                async move {
                    let outcome = call.await;
                    measured.lock().unwrap().push((start.elapsed(), began.elapsed()));
                    outcome
                }
            });
            let client = watch
                .client(limit.handle(), 1_000, 0)
                .around(&ServiceBuilder::new().layer(TimeoutLayer::new(PATIENCE)).layer(limit), own);
            let report = Report { calls: load.offer(&client).await, received: upstream.received() };
            let calls = std::mem::take(&mut *calls.lock().unwrap());
            Run { report, calls }
        })
    }
}

/// Shows: A3
#[test]
fn an_adaptive_limit_finds_what_a_service_can_do_and_follows_it() {
    let follows = Scene { times_capacity: 2.0, length: 60.0, ..SCENE };
    for seed in seeds(1) {
        for scene in [
            SCENE,
            Scene { work: Work::Fixed(seconds(0.05)), ..SCENE },
            Scene { workers: 4, ..SCENE },
            Scene { workers: 60, ..SCENE },
            Scene { slower: 2.0, ..follows },
            Scene { slower: 0.5, ..follows },
        ] {
            let run = scene.run(seed, Adaptive::gradient());
            let end = scene.length - 15.0..scene.length;
            let (goodput, p99) = (run.report.goodput(end.clone()), run.latency(0.99, end));
            // The slowest of 100 random calls takes 4.6 times the average.
            let times = if let Work::Random(_) = scene.work { 4.6 } else { 1.0 };
            let unloaded = 1000.0 * times * scene.work.mean().as_secs_f64() * scene.slower;
            println!(
                "seed {seed:>3}  {scene:?}\n          {goodput:.0}/s of {}/s, p99 {p99:.0} ms of {unloaded:.0} ms",
                scene.capacity()
            );
            assert!(goodput >= 0.8 * scene.capacity(), "seed {seed}, {scene:?}: {goodput}/s");
            assert!(p99 <= 2.0 * unloaded, "seed {seed}, {scene:?}: {p99} ms");
        }
    }
}

/// A service that rejects the calls that it cannot queue.
///
/// Shows: A3
#[test]
fn an_adaptive_limit_follows_rejections() {
    for seed in seeds(1) {
        for adaptive in [Adaptive::gradient, Adaptive::aimd] {
            let scene = Scene { queue: 10, ..SCENE };
            let run = scene.run(seed, adaptive());
            let goodput = run.report.goodput(30.0..45.0);
            let full =
                run.report.errors().into_iter().filter(|(error, _)| error.contains("Full")).map(|(_, count)| count);
            let rejected = full.sum::<usize>() as f64 / run.report.received.len() as f64;
            println!("seed {seed:>3}  {goodput:.0}/s of {}/s, {rejected:.3} of the calls rejected", scene.capacity());
            assert!(goodput >= 0.8 * scene.capacity(), "seed {seed}: {goodput}/s");
            assert!(rejected <= 0.1, "seed {seed}: {rejected} of the calls");
        }
    }
}

/// With a fixed limit of 25, a service with 60 workers answers two fifths of its capacity, even at a lower load.
///
/// Shows: A1, A3
#[test]
fn the_limit_of_the_recommended_client_finds_the_capacity() {
    let workers = if is_long() { &[4, 16, 60, 200][..] } else { &[4, 16, 60] };
    for seed in seeds(1) {
        for &workers in workers {
            for times_capacity in [0.9, 2.0] {
                let scene = Scene { workers, times_capacity, length: 20.0, ..SCENE };
                let [fixed, adaptive] = [true, false].map(|is_fixed| scene.recommended(seed, is_fixed, None));
                let part = |report: &Report, when| report.goodput(when) / scene.capacity();
                println!(
                    "seed {seed:>3}  {workers} workers, {times_capacity} times the capacity: {:.2} at first, then {:.2}; \
                     with a fixed limit {:.2}",
                    part(&adaptive, 0.0..5.0),
                    part(&adaptive, 5.0..20.0),
                    part(&fixed, 5.0..20.0),
                );
                let found = part(&adaptive, 10.0..20.0);
                assert!(found >= 0.9 * times_capacity.min(1.0), "seed {seed}, {scene:?}: {adaptive}");
            }
        }
    }
}

/// Calls that fail whatever the load say nothing about the limit.
///
/// Shows: A3
#[test]
fn a_constant_part_of_failures_keeps_no_limit_low() {
    for seed in seeds(1) {
        for part in [0.08, 0.12, 0.2] {
            let scene = Scene { times_capacity: 1.2, length: 100.0, ..SCENE };
            let [fixed, adaptive] =
                [true, false].map(|is_fixed| scene.recommended(seed, is_fixed, Some(Weather::Fails(part))));
            let [fixed, adaptive] = [fixed, adaptive].map(|report| report.goodput(5.0..100.0));
            println!("seed {seed:>3}  {part} of the calls fail: {adaptive:.0}/s, with a fixed limit {fixed:.0}/s");
            assert!(adaptive >= 0.85 * fixed, "seed {seed}, {part}: {adaptive}/s, {fixed}/s");
        }
    }
}
