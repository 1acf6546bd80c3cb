//! How many calls of the upstream a request costs at the worst, when retries and fallbacks are limited by a budget.

use tower::{ServiceBuilder, ServiceExt};
use ziggurat::{
    Budget, Error,
    fallback::FallbackLayer,
    stack::{ClientSettings, ClientStack},
};

use crate::{
    load::{Arrivals, Client, Load},
    report::{PATIENCE, Report},
    seconds, seeds, simulate,
    upstream::{Failed, Plan, Upstream, Weather, Work},
    watch::Watch,
};

/// The recommended client: whole, without a part, or with a layer around it.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Whole,
    WithoutBreaker,
    /// A fallback to the same service, which shares the budget of the retry.
    FallbackShares,
    /// With a fallback that has a budget of its own.
    FallbackHasItsOwn,
}

const KINDS: [Kind; 4] = [Kind::Whole, Kind::WithoutBreaker, Kind::FallbackShares, Kind::FallbackHasItsOwn];

fn client(kind: Kind, watch: &Watch, upstream: Upstream) -> Client {
    let stack = ClientStack::new("upstream").settings(ClientSettings::default().timeout(PATIENCE));
    let own = upstream.map_err(Error::<Failed>::Service);
    let watched = watch.client(stack.gate(), 1_000, if kind == Kind::FallbackHasItsOwn { 2 } else { 1 });
    let budget = match kind {
        Kind::Whole => return watched.around(&stack, own),
        Kind::WithoutBreaker => return watched.around(&stack.without_circuit_breaker(), own),
        Kind::FallbackShares => stack.budget(),
        Kind::FallbackHasItsOwn => Some(Budget::default()),
    };
    let fallback = FallbackLayer::service(watched.inside(|_| false, own.clone())).budget(budget);
    watched.around(&ServiceBuilder::new().layer(fallback).layer(stack.without_circuit_breaker()), own)
}

/// Calls of the upstream for each request of a minute.
fn amplification(kind: Kind, per_second: f64, failing: f64, seed: u64) -> f64 {
    let plan = Plan {
        workers: 100,
        work: Work::Fixed(seconds(0.02)),
        queue: 1_000,
        notices_callers_leaving: true,
        weather: vec![(0.0..f64::MAX, Weather::Fails(failing))],
        seed,
    };
    let load = Load { per_second, arrivals: Arrivals::Steady, length: seconds(60.0), seed };
    simulate(seed, async |watch| {
        let upstream = Upstream::new(plan);
        let calls = load.offer(&client(kind, watch, upstream.clone())).await;
        Report { calls, received: upstream.received() }.amplification()
    })
}

/// The tables of `Budget` and of `docs/overload.md`.
///
/// Shows: R7, H3
#[test]
fn a_budget_bounds_the_calls_for_each_request_at_any_rate_of_failures() {
    for seed in seeds(1) {
        for kind in KINDS {
            for per_second in [5.0, 100.0] {
                let measured = [0.0, 0.1, 0.5, 1.0].map(|failing| amplification(kind, per_second, failing, seed));
                println!("seed {seed:>3}  {kind:<17?} {per_second:>3}/s  {measured:.2?}");
                // A fifth of the requests, and at least 10 per second, but no more than two retries of a request.
                let extra = f64::max(0.2, 10.0 / per_second);
                let bound = match kind {
                    Kind::Whole | Kind::WithoutBreaker => 1.0 + extra.min(2.0),
                    Kind::FallbackShares => 1.0 + extra.min(3.0),
                    Kind::FallbackHasItsOwn => 1.0 + extra.min(2.0) + extra.min(1.0),
                };
                let context = format!("seed {seed}, {kind:?}, {per_second}/s: {measured:?}");
                assert!(measured.iter().all(|calls| *calls <= bound), "more than {bound}: {context}");
                assert_eq!(measured[0], 1.0, "{context}");
                assert!(kind == Kind::Whole || measured[3] > 0.9 * bound, "less than {bound}: {context}");
                assert!(kind != Kind::Whole || measured[3] < 1.0, "the circuit is open: {context}");
            }
        }
    }
}
