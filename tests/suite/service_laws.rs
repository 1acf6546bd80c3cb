//! Every layer keeps to the laws of a service, and so does the recommended stack.

use std::time::Duration;

use http::Request;
use ziggurat::{
    Scope,
    circuit_breaker::CircuitBreakerLayer,
    concurrency_limit::ConcurrencyLimitLayer,
    context::ContextLayer,
    retry::{Budget, RetryLayer},
    testing::{laws, laws_with_gauges},
    timeout::TimeoutLayer,
};

const SECOND: Duration = Duration::from_secs(1);

/// A test for each layer: a line that makes a layer value as tight as it can be, with the gauges that its handle has.
macro_rules! these_keep_to_the_laws {
    ($($name:ident: $laws:expr;)*) => {$(
        #[test]
        fn $name() {
            $laws.check();
        }
    )*};
}

these_keep_to_the_laws! {
    timeout: laws(|| TimeoutLayer::new(SECOND));
    timeout_without_a_limit: laws(|| TimeoutLayer::new(|_: &Request<String>| None));
    retry: laws(|| RetryLayer::http().budget(budget())).stateful();
    retry_without_a_pause: laws(|| RetryLayer::new().max_attempts(5).backoff(Duration::ZERO));
    retry_of_what_is_sent_once: laws(|| RetryLayer::new().copy(|_: &Request<String>| None));
    concurrency_limit: laws_with_gauges(|| limited(ConcurrencyLimitLayer::new(1))).stateful();
    concurrency_limit_that_waits_a_second: laws_with_gauges(|| limited(ConcurrencyLimitLayer::new(1).max_wait(SECOND))).stateful();
    concurrency_limit_that_sheds: laws_with_gauges(|| limited(ConcurrencyLimitLayer::new(1).max_waiting(0))).stateful();
    circuit_breaker: laws(|| CircuitBreakerLayer::consecutive(1)).stateful();
    circuit_breaker_by_rate: laws(|| CircuitBreakerLayer::http().over_calls(1).slow_calls(SECOND, 1.0)).stateful();
    context: laws(|| ContextLayer::new(around()).state(|req: &Request<String>| req.uri().clone()));
    context_without_http: laws(|| ContextLayer::ambient(around())).over(|n| n, |n| n, |answer: &u64| *answer);
}

/// A first failure earns a retry for the second one.
fn budget() -> Budget {
    Budget::new(1.0).min_per_second(0)
}

fn limited(limit: ConcurrencyLimitLayer) -> (ConcurrencyLimitLayer, impl Fn() -> (usize, usize)) {
    let gate = limit.handle();
    (limit, move || (gate.in_flight(), gate.waiting()))
}

fn around() -> Scope {
    Scope::current().unwrap()
}
