//! A service that is ten times slower for two seconds, and three clients in front of it: the scene of
//! `examples/quickstart`.

use std::time::Duration;

use tower::{Layer, ServiceExt};
use ziggurat::{
    Error,
    retry::RetryLayer,
    stack::{ClientSettings, ClientStack},
    timeout::TimeoutLayer,
};

use crate::{
    load::{Arrivals, Client, Load, boxed},
    report::{PATIENCE, Report},
    seconds, seeds, simulate,
    upstream::{Failed, Plan, Upstream, Weather, Work},
    watch::Watch,
};

const CAPACITY: f64 = 640.0;
const PER_SECOND: f64 = 384.0;
/// The brown-out.
const BEGIN: f64 = 1.0;
const END: f64 = 3.0;
const LENGTH: f64 = 6.0;

#[derive(Clone, Copy, Debug)]
enum Kind {
    Bare,
    Naive,
    Stack,
}

fn client(kind: Kind, watch: &Watch, upstream: Upstream) -> Client {
    let own = upstream.map_err(Error::<Failed>::Service);
    let settings = ClientSettings::default().timeout(PATIENCE);
    match kind {
        Kind::Bare => boxed(TimeoutLayer::new(PATIENCE).layer(own)),
        Kind::Naive => {
            let attempt = TimeoutLayer::new(PATIENCE / 3).layer(own);
            boxed(
                TimeoutLayer::new(PATIENCE)
                    .layer(RetryLayer::new().backoff(Duration::ZERO).budget(None).layer(attempt)),
            )
        }
        Kind::Stack => {
            let stack = ClientStack::new("upstream").settings(settings);
            watch.stack(&stack).around(&stack, own)
        }
    }
}

fn run(kind: Kind, seed: u64) -> Report {
    let plan = Plan {
        workers: 16,
        work: Work::Fixed(seconds(16.0 / CAPACITY)),
        queue: 1_000,
        notices_callers_leaving: false,
        weather: vec![(BEGIN..END, Weather::Slow(10.0))],
        seed,
    };
    let load = Load { per_second: PER_SECOND, arrivals: Arrivals::Poisson, length: seconds(LENGTH), seed };
    simulate(seed, async |watch| {
        let upstream = Upstream::new(plan);
        let calls = load.offer(&client(kind, watch, upstream.clone())).await;
        Report { calls, received: upstream.received() }
    })
}

/// Of the requests sent in each quarter of a second from a second after the brown-out on, the smallest part that was
/// answered.
fn answered_afterwards(report: &Report) -> f64 {
    let steps = ((END + 1.0) * 4.0) as u32..(LENGTH * 4.0) as u32;
    let part = |step| {
        let from = seconds(f64::from(step) / 4.0);
        let sent = || report.calls.iter().filter(|call| (from..from + seconds(0.25)).contains(&call.sent));
        sent().filter(|call| call.error.is_none()).count() as f64 / sent().count() as f64
    };
    steps.map(part).fold(1.0, f64::min)
}

/// Shows: A5
#[test]
fn after_a_brown_out_the_recommended_client_is_back_at_once_and_a_naive_one_never() {
    for seed in seeds(5) {
        let [bare, naive, stack] = [Kind::Bare, Kind::Naive, Kind::Stack].map(|kind| {
            let report = run(kind, seed);
            let curve = (0..26).map(|step| report.goodput(f64::from(step) / 4.0..f64::from(step + 1) / 4.0) as u32);
            println!("seed {seed:>3}  {kind:<5?} {report}\n          {:?}", curve.collect::<Vec<_>>());
            report
        });
        let [all, calls] = [stack.calls.len(), stack.received.len()].map(|count| count as f64);
        let answers = |report: &Report| report.answers() as f64;
        assert!(answered_afterwards(&stack) >= 0.95, "seed {seed}: {stack}");
        assert!(answered_afterwards(&naive) <= 0.05, "seed {seed}: {naive}");
        assert!(answers(&stack) >= 0.98 * answers(&bare), "seed {seed}: {stack} beside {bare}");
        assert!(answers(&naive) <= answers(&stack) * 2.0 / 3.0, "seed {seed}: {naive} beside {stack}");
        assert!(calls <= 1.25 * all, "seed {seed}: {stack}");
    }
}
