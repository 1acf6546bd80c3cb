//! The layers of other crates, with the policies of ours.

use std::{num::NonZero, sync::Arc};

use governor::{Quota, RateLimiter};
use layered::Stack;
use tower::ServiceBuilder;
use tower_resilience::{
    bulkhead::BulkheadLayer, cache::CacheLayer as PeerCacheLayer,
    circuitbreaker::CircuitBreakerLayer as PeerBreakerLayer, retry::RetryLayer as PeerRetryLayer,
    timelimiter::TimeLimiterLayer,
};

use super::{
    LIMIT, PERMITS, SECOND,
    belt::{Belt, echo},
};
use crate::{
    Echo, Failed, Word,
    subject::{Subject, layered_subject, subject},
};

/// tower leaves the policy to its users, so this is the same rule as ours.
#[derive(Debug, Clone)]
struct ThreeTimes(u32);

impl<E> tower::retry::Policy<Word, Word, E> for ThreeTimes {
    type Future = std::future::Ready<()>;

    fn retry(&mut self, _: &mut Word, outcome: &mut Result<Word, E>) -> Option<Self::Future> {
        self.0 -= 1;
        (outcome.is_err() && self.0 > 0).then(|| std::future::ready(()))
    }

    fn clone_request(&mut self, request: &Word) -> Option<Word> {
        Some(*request)
    }
}

/// The subjects of other crates.
pub(super) fn subjects() -> Vec<Subject> {
    let tower = "tower";
    let peer = "tower-resilience";
    let seatbelt = "seatbelt";
    let belt = Belt::new();
    let peer_retry = || PeerRetryLayer::<Word, Word, Failed>::builder().max_attempts(3).fixed_backoff(LIMIT).build();
    let peer_limit = || BulkheadLayer::builder().max_concurrent_calls(PERMITS).build().expect("a limit");
    let peer_breaker =
        || PeerBreakerLayer::builder().failure_rate_threshold(0.5).sliding_window_size(100).build().expect("a breaker");
    let peer_cache = || {
        PeerCacheLayer::builder()
            .max_size(1_000)
            .ttl(LIMIT)
            .key_extractor(|word: &Word| *word)
            .build()
            .expect("a cache")
    };
    let peer_timeout = || TimeLimiterLayer::builder().timeout_duration(LIMIT).build();
    vec![
        subject("timeout", tower, ServiceBuilder::new().timeout(LIMIT).service(Echo)),
        subject("timeout", peer, ServiceBuilder::new().layer(peer_timeout()).service(Echo)),
        subject("timeout", seatbelt, ServiceBuilder::new().layer(belt.timeout(LIMIT)).service(Echo)),
        layered_subject("timeout", (belt.timeout(LIMIT), echo()).into_service()),
        subject("retry", tower, ServiceBuilder::new().retry(ThreeTimes(3)).service(Echo)),
        subject("retry", peer, ServiceBuilder::new().layer(peer_retry()).service(Echo)),
        subject("retry", seatbelt, ServiceBuilder::new().layer(belt.retry(LIMIT)).service(Echo)),
        layered_subject("retry", (belt.retry(LIMIT), echo()).into_service()),
        subject("limit", tower, ServiceBuilder::new().concurrency_limit(PERMITS).service(Echo)),
        subject("limit", peer, ServiceBuilder::new().layer(peer_limit()).service(Echo)),
        subject("rate limit", tower, ServiceBuilder::new().rate_limit(u64::MAX, SECOND).service(Echo)),
        // It is no layer: the check alone, before a call.
        subject("rate limit", "governor", {
            let limiter = Arc::new(RateLimiter::direct(Quota::per_second(NonZero::<u32>::MAX)));
            let check = move |word: Word| {
                limiter.check().expect("a token");
                word
            };
            ServiceBuilder::new().map_request(check).service(Echo)
        }),
        subject("rate limit, per key", "governor", {
            let limiter = Arc::new(RateLimiter::keyed(Quota::per_second(NonZero::<u32>::MAX)));
            let check = move |word: Word| {
                limiter.check_key(&word).expect("a token");
                word
            };
            ServiceBuilder::new().map_request(check).service(Echo)
        }),
        subject("breaker, of 100 calls", peer, ServiceBuilder::new().layer(peer_breaker()).service(Echo)),
        subject("breaker, of 30 s", seatbelt, ServiceBuilder::new().layer(belt.breaker()).service(Echo)),
        layered_subject("breaker, of 30 s", (belt.breaker(), echo()).into_service()),
        subject("cache, a hit", peer, ServiceBuilder::new().layer(peer_cache()).service(Echo)),
        subject(
            "stack of three",
            seatbelt,
            ServiceBuilder::new()
                .layer(belt.timeout(LIMIT))
                .layer(belt.retry(LIMIT))
                .layer(belt.breaker())
                .service(Echo),
        ),
        layered_subject(
            "stack of three",
            (belt.timeout(LIMIT), belt.retry(LIMIT), belt.breaker(), echo()).into_service(),
        ),
        subject(
            "stack of the four",
            tower,
            ServiceBuilder::new().timeout(LIMIT).retry(ThreeTimes(3)).concurrency_limit(PERMITS).service(Echo),
        ),
        subject(
            "stack of the four",
            peer,
            ServiceBuilder::new()
                .layer(peer_timeout())
                .layer(peer_retry())
                .map_err(|_| Failed)
                .layer(peer_breaker())
                .layer(peer_limit())
                .service(Echo),
        ),
    ]
}
