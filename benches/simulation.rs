//! Other libraries in the scenes of `tests/simulation`, beside a bare client and ours: the table of `docs/overload.md`.
//!
//! ```text
//! cargo test -p ziggurat-benches --test simulation -- --nocapture
//! ```
//!
//! A policy has the same figures in every library that has it. A figure that only a peer needs is one that we found to
//! suit these scenes. The assertions are about our layers alone: they answer no fewer requests than the best peer, but
//! for [`MARGIN`]. Where a peer is better, the page says so.

#![cfg(target_os = "linux")]

use std::{fmt, ops::Range, pin::Pin, sync::Arc, time::Duration};

use tokio::time::{Sleep, sleep};
use tower::{
    BoxError, Service, ServiceBuilder, ServiceExt,
    load_shed::error::Overloaded,
    retry::budget::{Budget, TpsBudget},
    util::BoxCloneService,
};
use tower_resilience::{
    adaptive::{AdaptiveError, AdaptiveLimiterLayer, Aimd},
    bulkhead::{BulkheadLayer, BulkheadServiceError},
    circuitbreaker::{CircuitBreakerError, CircuitBreakerLayer as PeerBreakerLayer, SlidingWindowType},
    retry::{FnInterval, RetryBudgetBuilder, RetryLayer as PeerRetryLayer},
    timelimiter::TimeLimiterLayer,
};
use ziggurat::{
    Error,
    circuit_breaker::CircuitBreakerLayer,
    concurrency_limit::ConcurrencyLimitLayer,
    retry::RetryLayer,
    stack::{ClientSettings, ClientStack},
    timeout::TimeoutLayer,
};

#[path = "../tests/simulation/load.rs"]
#[allow(dead_code)]
mod load;
#[path = "../tests/simulation/report.rs"]
#[allow(dead_code)]
mod report;
#[path = "simulated_clock.rs"]
mod simulated_clock;
#[path = "../tests/simulation/upstream.rs"]
#[allow(dead_code)]
mod upstream;
#[path = "../tests/simulation/watch.rs"]
#[allow(dead_code)]
mod watch;

use load::{Arrivals, Client, Load};
use report::{PATIENCE, Report};
use upstream::{Failed, Plan, Request, Upstream, Weather, Work};
use watch::{Watch, simulate};

/// Our layers answer at least this part of the requests that the best peer answers.
const MARGIN: f64 = 0.95;

// The figures of our defaults. A circuit of ours opens for longer the longer an outage lasts, up to 5 s.
const ATTEMPTS: u32 = 3;
const BACKOFF: Duration = Duration::from_millis(100);
const RATE: f64 = 0.5;
const WINDOW: Duration = Duration::from_secs(30);
const OPEN_FOR: Duration = Duration::from_millis(500);
const MIN_RETRIES_PER_SECOND: u32 = 10;
const RETRY_RATIO: f32 = 0.2;

/// How long a call waits for a permit of the bulkhead: a quarter of what its caller does. Without a wait, fewer
/// requests are answered; with a longer one, more of them in the brown-out, and all of them later.
const BULKHEAD_WAIT: Duration = Duration::from_millis(250);

/// Calls that take this long lower the adaptive limit of tower-resilience: five times as long as the service does. With
/// half of that, or with its other algorithm, fewer requests are answered: random times look like a queue.
const SLOW: Duration = Duration::from_millis(500);

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    /// A timeout, as all the others have it.
    Bare,
    /// Retry, load shedding and a limit.
    Tower,
    /// Retry, a circuit breaker and a bulkhead, in which calls wait for as long as it takes.
    Resilience,
    /// A bulkhead in which calls wait for a time that was chosen for these scenes.
    ResilienceTuned,
    /// An adaptive limit in place of the bulkhead, and load shedding by its readiness.
    ResilienceAdaptive,
    /// Retry, a circuit breaker and a fixed limit.
    HandMade,
    Stack,
}

impl Kind {
    const ALL: [Self; 7] = [
        Self::Bare,
        Self::Tower,
        Self::Resilience,
        Self::ResilienceTuned,
        Self::ResilienceAdaptive,
        Self::HandMade,
        Self::Stack,
    ];

    /// Creates a client whose limit, where it is fixed, is the number of calls that the service serves at a time.
    fn client(self, watch: &Watch, limit: usize, upstream: Upstream) -> Client {
        match self {
            Self::Bare => boxed(ServiceBuilder::new().timeout(PATIENCE).service(upstream)),
            Self::Tower => {
                let budget = Arc::new(TpsBudget::new(Duration::from_secs(10), MIN_RETRIES_PER_SECOND, RETRY_RATIO));
                let layers = ServiceBuilder::new().timeout(PATIENCE).retry(TowerRetry { budget, attempt: 1 });
                boxed(layers.load_shed().concurrency_limit(limit).service(upstream))
            }
            Self::Resilience | Self::ResilienceTuned => {
                let bulkhead = BulkheadLayer::builder().max_concurrent_calls(limit);
                let is_tuned = self == Self::ResilienceTuned;
                let bulkhead = if is_tuned { bulkhead.max_wait_duration(BULKHEAD_WAIT) } else { bulkhead };
                let limited = ServiceBuilder::new().layer(bulkhead.build().expect("a bulkhead")).service(upstream);
                resilience(limited.map_err(|error| match error {
                    BulkheadServiceError::Inner(failed) => Problem::Upstream(failed),
                    BulkheadServiceError::Bulkhead(full) => Problem::Rejected(full.to_string()),
                }))
            }
            Self::ResilienceAdaptive => {
                let aimd = Aimd::builder().max_limit(1_000).latency_threshold(SLOW).build().expect("a limit");
                let limited = ServiceBuilder::new().layer(AdaptiveLimiterLayer::new(aimd)).service(upstream);
                let limited = limited.map_err(|error| match error {
                    AdaptiveError::Service(failed) => Problem::Upstream(failed),
                    AdaptiveError::LimitReached => Problem::Rejected("the limit is reached".into()),
                });
                let shed = ServiceBuilder::new().load_shed().service(limited);
                resilience(shed.map_err(|error| match error.downcast::<Problem>() {
                    Ok(problem) => *problem,
                    Err(shed) => Problem::Rejected(shed.to_string()),
                }))
            }
            Self::HandMade => {
                let limit_layer = ConcurrencyLimitLayer::new(limit);
                let layers = ServiceBuilder::new()
                    .layer(TimeoutLayer::new(PATIENCE))
                    .layer(RetryLayer::new())
                    .layer(CircuitBreakerLayer::failure_rate(RATE))
                    .layer(limit_layer.clone());
                watch.client(limit_layer.handle(), limit, 1).around(&layers, upstream.map_err(Error::Service))
            }
            Self::Stack => {
                let stack = ClientStack::new("upstream").settings(ClientSettings::default().timeout(PATIENCE));
                watch.stack(&stack).around(&stack, upstream.map_err(Error::Service))
            }
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Bare => "a timeout alone",
            Self::Tower => "tower",
            Self::Resilience => "tower-resilience",
            Self::ResilienceTuned => "tower-resilience, tuned",
            Self::ResilienceAdaptive => "tower-resilience, adaptive",
            Self::HandMade => "our layers",
            Self::Stack => "`ClientStack`",
        })
    }
}

fn boxed<S>(service: S) -> Client
where
    S: Service<Request, Response = (), Error: Into<BoxError>, Future: Send> + Clone + Send + 'static,
{
    BoxCloneService::new(service.map_err(Into::into))
}

/// A wait between two attempts, as ours: exponential, with full jitter.
fn backoff(retry: u32) -> Duration {
    BACKOFF.mul_f64(f64::from(1 << retry.min(16)) * fastrand::f64())
}

/// tower leaves the policy to its users.
#[derive(Clone)]
struct TowerRetry {
    budget: Arc<TpsBudget>,
    attempt: u32,
}

impl tower::retry::Policy<Request, (), BoxError> for TowerRetry {
    type Future = Pin<Box<Sleep>>;

    fn retry(&mut self, _: &mut Request, outcome: &mut Result<(), BoxError>) -> Option<Self::Future> {
        let Err(error) = outcome else {
            self.budget.deposit();
            return None;
        };
        if error.is::<Overloaded>() || self.attempt == ATTEMPTS || !self.budget.withdraw() {
            return None;
        }
        self.attempt += 1;
        Some(Box::pin(sleep(backoff(self.attempt - 2))))
    }

    fn clone_request(&mut self, request: &Request) -> Option<Request> {
        Some(*request)
    }
}

/// An error of a stack of tower-resilience.
#[derive(Clone, Debug)]
enum Problem {
    Upstream(Failed),
    Rejected(String),
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Upstream(failed) => write!(f, "{failed}"),
            Self::Rejected(why) => f.write_str(why),
        }
    }
}

impl std::error::Error for Problem {}

/// The layers of tower-resilience around a limited service. Rejections are neither retried nor counted as failures.
fn resilience<S>(limited: S) -> Client
where
    S: Service<Request, Response = (), Error = Problem, Future: Send + 'static> + Clone + Send + 'static,
{
    let breaker = PeerBreakerLayer::builder()
        .failure_rate_threshold(RATE)
        .sliding_window_type(SlidingWindowType::TimeBased)
        .sliding_window_duration(WINDOW)
        .wait_duration_in_open(OPEN_FOR)
        .failure_classifier(|outcome: &Result<(), Problem>| matches!(outcome, Err(Problem::Upstream(_))))
        .build()
        .expect("a breaker");
    let budget = RetryBudgetBuilder::new()
        .token_bucket()
        .tokens_per_second(f64::from(MIN_RETRIES_PER_SECOND))
        .build()
        .expect("a budget");
    let retry = PeerRetryLayer::<Request, (), Problem>::builder()
        .max_attempts(ATTEMPTS as usize)
        .backoff(FnInterval::new(|attempt| backoff(attempt as u32)))
        .retry_on(|problem| matches!(problem, Problem::Upstream(_)))
        .budget(budget)
        .build();
    let layers = ServiceBuilder::new()
        .layer(TimeLimiterLayer::builder().timeout_duration(PATIENCE).build())
        .layer(retry)
        .map_err(|error| match error {
            CircuitBreakerError::Inner(problem) => problem,
            CircuitBreakerError::OpenCircuit => Problem::Rejected("the circuit is open".into()),
        })
        .layer(breaker);
    boxed(layers.service(limited))
}

struct Scene {
    name: &'static str,
    workers: usize,
    work: Work,
    queue: usize,
    notices_callers_leaving: bool,
    weather: Option<(Range<f64>, Weather)>,
    per_second: f64,
    length: f64,
    /// Answers are counted in these seconds.
    counted: Range<f64>,
}

impl Scene {
    fn run(&self, kind: Kind, seed: u64) -> Report {
        let plan = Plan {
            workers: self.workers,
            work: self.work,
            queue: self.queue,
            notices_callers_leaving: self.notices_callers_leaving,
            weather: self.weather.clone().into_iter().collect(),
            seed,
        };
        let length = Duration::from_secs_f64(self.length);
        let load = Load { per_second: self.per_second, arrivals: Arrivals::Poisson, length, seed };
        simulate(seed, async |watch| {
            let _clock = simulated_clock::follow();
            let upstream = Upstream::new(plan);
            let calls = load.offer(&kind.client(watch, self.workers, upstream.clone())).await;
            Report { calls, received: upstream.received() }
        })
    }

    /// The seconds from the end of the trouble until half a second in which 95 % of the load is answered.
    fn recovery(&self, report: &Report) -> Option<f64> {
        let end = self.weather.as_ref().map(|(when, _)| when.end).filter(|end| end.is_finite())?;
        let back = |after: &f64| report.goodput(end + after..end + after + 0.5) >= 0.95 * self.per_second;
        (0..).map(|step| f64::from(step) / 20.0).take_while(|after| end + after + 0.5 < self.length).find(back)
    }
}

fn scenes() -> Vec<Scene> {
    let overload = |name, times: f64| Scene {
        name,
        workers: 10,
        work: Work::Random(Duration::from_millis(100)),
        queue: 10_000,
        notices_callers_leaving: true,
        weather: None,
        per_second: 100.0 * times,
        length: 10.0,
        counted: 1.0..10.0,
    };
    vec![
        overload("1.05 times the capacity of 100/s", 1.05),
        overload("2 times the capacity of 100/s", 2.0),
        overload("10 times the capacity of 100/s", 10.0),
        Scene {
            name: "384/s, and for two seconds everything takes ten times as long",
            workers: 16,
            work: Work::Fixed(Duration::from_millis(25)),
            queue: 1_000,
            notices_callers_leaving: false,
            weather: Some((1.0..3.0, Weather::Slow(10.0))),
            per_second: 384.0,
            length: 6.0,
            counted: 0.0..6.0,
        },
        Scene {
            name: "100/s, and an outage of ten seconds",
            workers: 10,
            work: Work::Random(Duration::from_millis(80)),
            queue: 1_000,
            notices_callers_leaving: true,
            weather: Some((5.0..15.0, Weather::Refuses)),
            per_second: 100.0,
            length: 35.0,
            counted: 0.0..35.0,
        },
        Scene {
            name: "5/s, of which 45 % of the calls fail, for 20 minutes",
            workers: 100,
            work: Work::Fixed(Duration::from_millis(20)),
            queue: 1_000,
            notices_callers_leaving: true,
            weather: Some((0.0..f64::INFINITY, Weather::Fails(0.45))),
            per_second: 5.0,
            length: 1_200.0,
            counted: 0.0..1_200.0,
        },
    ]
}

/// The recommended client has no limit at first and is not compared: it looks for one while the others have theirs.
#[test]
fn our_layers_answer_no_fewer_requests_than_the_best_peer() {
    for scene in scenes() {
        println!("\n{}\n", scene.name);
        println!("| client | answers | p50 | p99 | calls a request | failed | back after | reasons |");
        println!("|---|---:|---:|---:|---:|---:|---:|---|");
        let (mut ours, mut best_peer) = (0.0, 0.0);
        for kind in Kind::ALL {
            let report = scene.run(kind, 0);
            let goodput = report.goodput(scene.counted.clone());
            match kind {
                Kind::HandMade => ours = goodput,
                Kind::Stack => {}
                _ => best_peer = goodput.max(best_peer),
            }
            let [p50, p99] = [0.5, 0.99].map(|part| report.latency(part, scene.counted.clone()));
            println!(
                "| {kind} | {goodput:.1}/s | {p50:.0} ms | {p99:.0} ms | {:.2} | {:.0} % | {} | {:?} |",
                report.amplification(),
                100.0 * report.failed() as f64 / report.calls.len() as f64,
                scene.recovery(&report).map_or("-".into(), |after| format!("{after:.1} s")),
                report.errors(),
            );
        }
        assert!(ours >= MARGIN * best_peer, "{}: {ours}/s of ours, {best_peer}/s of a peer", scene.name);
    }
}
