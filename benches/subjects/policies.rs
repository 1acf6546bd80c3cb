//! Our policies, around any service.

use tower::ServiceBuilder;
use ziggurat::{
    Error, Scope, cache::CacheLayer, circuit_breaker::CircuitBreakerLayer, concurrency_limit::ConcurrencyLimitLayer,
    context::ContextLayer, per_key::PerKeyLayer, rate_limit::RateLimitLayer, retry::RetryLayer, stack::ClientStack,
    timeout::TimeoutLayer,
};

use super::{LIMIT, PERMITS, SECOND};
use crate::{
    Word,
    subject::{Collect, Inner},
};

pub(super) fn collect(inner: &impl Inner, all: &mut impl Collect) {
    let ours = "ziggurat";
    let retry = || RetryLayer::new().backoff(LIMIT).budget(None);
    let breaker = || CircuitBreakerLayer::failure_rate(0.5).over_calls(100);
    let limit = || ConcurrencyLimitLayer::new(PERMITS);
    let service = || ServiceBuilder::new().map_err(Error::Service).service(inner.clone());
    all.add("timeout", ours, ServiceBuilder::new().layer(TimeoutLayer::new(LIMIT)).service(service()));
    all.add("retry", ours, ServiceBuilder::new().layer(retry()).service(service()));
    all.add(
        "retry with its budget",
        ours,
        ServiceBuilder::new().layer(RetryLayer::new().backoff(LIMIT)).service(service()),
    );
    all.add("limit", ours, ServiceBuilder::new().layer(limit()).service(service()));
    all.add("rate limit", ours, {
        ServiceBuilder::new().layer(RateLimitLayer::new(u32::MAX, SECOND)).service(service())
    });
    // One hot key. Its cost beside that of its layer: the difference to the row of the rate limit.
    all.add("rate limit, per key", ours, {
        let key = |word: &Word| Ok(*word);
        let layer = PerKeyLayer::new(key, |_| RateLimitLayer::new(u32::MAX, SECOND));
        ServiceBuilder::new().layer(layer).service(service())
    });
    all.add("breaker, of 100 calls", ours, ServiceBuilder::new().layer(breaker()).service(service()));
    all.add(
        "breaker, of 30 s",
        ours,
        ServiceBuilder::new().layer(CircuitBreakerLayer::failure_rate(0.5)).service(service()),
    );
    all.add(
        "cache, a hit",
        ours,
        ServiceBuilder::new().layer(CacheLayer::new(1_000, LIMIT, |word: &Word| Some(*word))).service(service()),
    );
    all.add(
        "context, ambient",
        ours,
        ServiceBuilder::new().layer(ContextLayer::ambient(Scope::root("app"))).service(service()),
    );
    all.add(
        "timeout, retry, limit",
        ours,
        ServiceBuilder::new().layer(TimeoutLayer::new(LIMIT)).layer(retry()).layer(limit()).service(service()),
    );
    all.add(
        "stack of three",
        ours,
        ServiceBuilder::new()
            .layer(TimeoutLayer::new(LIMIT))
            .layer(retry())
            .layer(CircuitBreakerLayer::failure_rate(0.5))
            .service(service()),
    );
    all.add(
        "stack of the four",
        ours,
        ServiceBuilder::new()
            .layer(TimeoutLayer::new(LIMIT))
            .layer(retry())
            .layer(breaker())
            .layer(limit())
            .service(service()),
    );
    all.add("recommended client", ours, ServiceBuilder::new().layer(ClientStack::new("bench")).service(service()));
}
