//! More calls than the service can serve, of different priorities: which of them are answered.

use std::{fmt, ops::RangeInclusive};

use tower::{ServiceBuilder, ServiceExt};
use ziggurat::{
    Error,
    circuit_breaker::CircuitBreakerLayer,
    concurrency_limit::{ConcurrencyLimitLayer, Priority},
    timeout::TimeoutLayer,
};

use crate::{
    load::{Arrivals, Load, boxed},
    report::{Call, PATIENCE, Report},
    seconds, seeds, simulate,
    upstream::{Plan, Request, Upstream, Work},
};

/// The service serves this number of random calls of 100 ms on average at a time.
const WORKERS: usize = 40;
const CAPACITY: f64 = 400.0;

/// The percentages of calls of high and of normal priority. The others are low, but for a health check each second.
#[derive(Clone, Copy, Debug)]
struct Mix {
    times_capacity: f64,
    high: u32,
    normal: u32,
}

impl Mix {
    fn priority(self, number: Request) -> Priority {
        let per_second = CAPACITY * self.times_capacity;
        if number.is_multiple_of(per_second as Request) {
            return Priority::Exempt;
        }
        // Independent of the arrivals, which the seed decides.
        match fastrand::Rng::with_seed(number).u32(0..100) {
            percent if percent < self.high => Priority::High,
            percent if percent < self.high + self.normal => Priority::Normal,
            _ => Priority::Low,
        }
    }

    fn run(self, seed: u64, limit: impl Fn(ConcurrencyLimitLayer) -> ConcurrencyLimitLayer, reserve: f64) -> Outcome {
        let work = Work::Random(seconds(0.1));
        let plan =
            Plan { workers: WORKERS, work, queue: 10_000, notices_callers_leaving: true, weather: Vec::new(), seed };
        let per_second = CAPACITY * self.times_capacity;
        let load = Load { per_second, arrivals: Arrivals::Poisson, length: seconds(8.0), seed };
        let report = simulate(seed, async |watch| {
            let upstream = Upstream::new(plan);
            let limit = limit(ConcurrencyLimitLayer::new(WORKERS))
                .priority(move |number: &Request| self.priority(*number))
                .reserve(Priority::High, reserve);
            let watched = watch.client(limit.handle(), WORKERS, 0);
            let holds_permit = move |number: &Request| self.priority(*number) != Priority::Exempt;
            let own = watched.inside(holds_permit, upstream.clone()).map_err(Error::Service);
            let stack = ServiceBuilder::new()
                .layer(TimeoutLayer::new(PATIENCE))
                .layer(CircuitBreakerLayer::failure_rate(0.5))
                .layer(limit);
            let calls = load.offer(&watched.outside(boxed(stack.service(own)))).await;
            Report { calls, received: upstream.received() }
        });
        Outcome { mix: self, seed, report }
    }
}

struct Outcome {
    mix: Mix,
    seed: u64,
    report: Report,
}

impl Outcome {
    /// Calls of this priority from the third second on: before, the overload might be a burst.
    fn calls(&self, priority: Priority) -> impl Iterator<Item = &Call> {
        let calls = self.report.calls.iter().enumerate();
        calls.filter_map(move |(number, call)| {
            (self.mix.priority(number as Request) == priority && call.sent >= seconds(2.0)).then_some(call)
        })
    }

    /// The percentage of calls of this priority that are answered.
    fn answered(&self, priority: Priority) -> f64 {
        let answered = self.calls(priority).filter(|call| call.error.is_none()).count();
        100.0 * answered as f64 / self.calls(priority).count() as f64
    }

    #[track_caller]
    fn check(&self, priority: Priority, expected: RangeInclusive<f64>) {
        let answered = self.answered(priority);
        assert!(expected.contains(&answered), "{answered} % of {priority:?} instead of {expected:?}: {self}");
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { mix, seed, report } = self;
        write!(f, "seed {seed:>3}  {mix:?}")?;
        for priority in [Priority::Exempt, Priority::High, Priority::Normal, Priority::Low] {
            write!(f, "  {priority:?} {:.1} %", self.answered(priority))?;
        }
        write!(f, "\n          {report}")
    }
}

/// Shows: A1, A4
#[test]
fn the_lowest_priority_is_shed_first_and_the_service_stays_busy() {
    for seed in seeds(1) {
        // At ten times the capacity, a fifth of the calls would be twice as many as can be served.
        for (times_capacity, high, normal) in [(2.0, 20, 60), (10.0, 5, 60), (10.0, 20, 60)] {
            let outcome = Mix { times_capacity, high, normal }.run(seed, |limit| limit, 0.0);
            println!("{outcome}");
            assert!(outcome.report.goodput(2.0..8.0) >= 0.9 * CAPACITY, "{outcome}");
            assert!(!outcome.report.errors().keys().any(|error| error.contains("circuit")), "{outcome}");
            outcome.check(Priority::Exempt, 100.0..=100.0);
            outcome.check(Priority::Low, 0.0..=0.5);
            // In percent of the capacity.
            let offered = |percent: u32| times_capacity * f64::from(percent);
            if offered(high) <= 90.0 {
                outcome.check(Priority::High, 99.0..=100.0);
                let left = 100.0 * (100.0 - offered(high)) / offered(normal);
                outcome.check(Priority::Normal, 0.85 * left..=1.1 * left);
            } else {
                outcome.check(Priority::High, 0.9 * 10_000.0 / offered(high)..=100.0);
                outcome.check(Priority::Normal, 0.0..=0.5);
            }
        }
    }
}

/// Without a queue, a permit that is free is taken by the next call, whatever its priority, unless it is reserved.
///
/// Shows: A4
#[test]
fn without_a_queue_a_reserve_protects_the_higher_priority() {
    for seed in seeds(1) {
        for (times_capacity, high) in [(2.0, 20), (10.0, 4)] {
            let mix = Mix { times_capacity, high, normal: 60 };
            let run = |reserve| mix.run(seed, |limit| limit.max_waiting(0), reserve);
            let [without, with] = [run(0.0), run(0.2)];
            println!("{without}\n{with}");
            without.check(Priority::High, 0.0..=60.0);
            with.check(Priority::High, 99.0..=100.0);
            with.check(Priority::Exempt, 100.0..=100.0);
            // The price: the reserve is idle but for bursts.
            let goodput = [&without, &with].map(|outcome| outcome.report.goodput(2.0..8.0) / CAPACITY);
            assert!(goodput[0] >= 0.9 && goodput[1] >= 0.77, "{goodput:?}: {with}");
        }
    }
}
