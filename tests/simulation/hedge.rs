//! A service of which a few calls are slow, and one that is slow or overloaded as a whole: the gain
//! and the cost of a second attempt.

use std::fmt;

use tower::ServiceExt;
use ziggurat::{
    Budget, Error,
    hedge::HedgeLayer,
    retry::RetryLayer,
    stack::{ClientSettings, ClientStack},
};

use crate::{
    load::{Arrivals, Load},
    report::{PATIENCE, Report},
    seconds, seeds, simulate,
    upstream::{Failed, Plan, Upstream, Weather, Work},
};

/// The recommended client, with and without a hedge that shares the budget of its retry.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Stack,
    Hedged,
}

#[derive(Clone, Copy, Debug)]
struct Scene {
    workers: usize,
    work: Work,
    per_second: f64,
    /// From second 8 to second 11.
    weather: Option<Weather>,
}

const LENGTH: f64 = 20.0;
const BEGIN: f64 = 8.0;
const END: f64 = 11.0;

impl Scene {
    fn run(&self, kind: Kind, seed: u64) -> Outcome {
        let Self { workers, work, per_second, weather } = *self;
        let weather = weather.into_iter().map(|weather| (BEGIN..END, weather)).collect();
        // The main cost of a hedge: the service goes on working for the attempt that lost.
        let plan = Plan { workers, work, queue: 1_000, notices_callers_leaving: false, weather, seed };
        let load = Load { per_second, arrivals: Arrivals::Poisson, length: seconds(LENGTH), seed };
        let report = simulate(seed, async |watch| {
            let upstream = Upstream::new(plan);
            let own = upstream.clone().map_err(Error::<Failed>::Service);
            let stack = ClientStack::new("upstream").settings(ClientSettings::default().timeout(PATIENCE));
            let client = match kind {
                Kind::Stack => watch.stack(&stack).around(&stack, own),
                Kind::Hedged => {
                    let budget = Budget::default();
                    let hedge = HedgeLayer::at_percentile(0.95).budget(&budget);
                    let stack = stack.with_retry((RetryLayer::new().budget(&budget), hedge));
                    // All extra calls together are within the one budget.
                    watch.client(stack.gate(), 1_000, 1).hedged().around(&stack, own)
                }
            };
            let calls = load.offer(&client).await;
            Report { calls, received: upstream.received() }
        });
        Outcome { kind, seed, report }
    }

    fn compare(&self, seed: u64) -> [Outcome; 2] {
        let outcomes = [Kind::Stack, Kind::Hedged].map(|kind| self.run(kind, seed));
        println!("{self:?}");
        outcomes.iter().for_each(|outcome| println!("{outcome}"));
        outcomes
    }
}

struct Outcome {
    kind: Kind,
    seed: u64,
    report: Report,
}

impl Outcome {
    /// Once the percentile is known, and the limit has adapted.
    fn goodput(&self) -> f64 {
        self.report.goodput(5.0..LENGTH)
    }

    fn p99(&self) -> f64 {
        self.report.latency(0.99, 5.0..LENGTH)
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, seed, report } = self;
        write!(f, "seed {seed:>3}  {kind:<6?} {report}\n            from second 5 on: {:.1}/s, ", self.goodput())?;
        write!(f, "p50 {:.0} ms, p99 {:.0} ms", report.latency(0.5, 5.0..LENGTH), self.p99())
    }
}

/// One call in fifty takes twenty times as long, whichever it is.
///
/// Shows: H1
#[test]
fn a_hedge_cuts_a_slow_tail_for_one_more_call_in_twenty() {
    let scene = Scene { workers: 32, work: Work::Tail(seconds(0.02)), per_second: 400.0, weather: None };
    for seed in seeds(1) {
        let [stack, hedged] = scene.compare(seed);
        assert!(stack.p99() >= 380.0, "{stack}");
        assert!(hedged.p99() <= 0.25 * stack.p99(), "{hedged}");
        assert!(hedged.report.amplification() <= 1.07, "{hedged}");
        assert!(hedged.report.failed() <= stack.report.failed(), "{hedged}");
    }
}

/// Every call is slow, so every call is due for a hedge, and none would help.
///
/// Shows: H1, H3, A1
#[test]
fn a_hedge_harms_no_service_that_is_slow_as_a_whole() {
    let usual = Scene { workers: 16, work: Work::Fixed(seconds(0.025)), per_second: 384.0, weather: None };
    for seed in seeds(1) {
        for weather in [Weather::Slow(10.0), Weather::Hangs] {
            let [stack, hedged] = Scene { weather: Some(weather), ..usual }.compare(seed);
            let [before, after] = [&stack, &hedged].map(|outcome| outcome.report.answers() as f64);
            assert!(after >= 0.97 * before, "{weather:?}: {hedged} beside {stack}");
            let [before, after] = [&stack, &hedged].map(|outcome| outcome.report.goodput(END + 1.0..LENGTH));
            assert!(after >= 0.98 * before, "{weather:?}, afterwards: {hedged} beside {stack}");
            assert!(hedged.report.amplification() <= 1.2, "{weather:?}: {hedged}");
        }
    }
}

/// Shows: H1, A1
#[test]
fn under_overload_a_hedged_client_answers_as_many_requests() {
    let scene = Scene { workers: 16, work: Work::Random(seconds(0.025)), per_second: 640.0, weather: None };
    for seed in seeds(1) {
        // Just below the capacity, one more call in twenty is an overload.
        for (times_capacity, part) in [(0.9, 0.92), (1.05, 0.97), (2.0, 0.97)] {
            let [stack, hedged] = Scene { per_second: 640.0 * times_capacity, ..scene }.compare(seed);
            assert!(hedged.goodput() >= part * stack.goodput(), "x{times_capacity}: {hedged} beside {stack}");
        }
    }
}
