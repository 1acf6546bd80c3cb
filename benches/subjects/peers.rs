//! The layers of other crates, with the policies of ours.

use std::{num::NonZero, sync::Arc};

use governor::{Quota, RateLimiter};
use layered::Stack;
use recloser::{AsyncRecloser, Recloser};
use tower::ServiceBuilder;
use tower_resilience::{
    bulkhead::BulkheadLayer, cache::CacheLayer as PeerCacheLayer,
    circuitbreaker::CircuitBreakerLayer as PeerBreakerLayer, hedge::HedgeLayer, retry::RetryLayer as PeerRetryLayer,
    timelimiter::TimeLimiterLayer,
};

use super::{
    LIMIT, PERMITS, SECOND,
    belt::{Belt, echo},
    misses,
    stores::{moka, quick_cache},
};
use crate::{
    Echo, Failed, Word,
    subject::{Collect, Inner, Subject, layered_subject, subject},
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

/// The subjects of other crates, around the service that responds at once.
pub(super) fn subjects() -> Vec<Subject> {
    let belt = Belt::new();
    let mut all = Vec::new();
    collect(&Echo, &mut all);
    all.extend([
        // Not fired: the response is ready at once.
        subject("hedge, after a delay", "tower-resilience", {
            ServiceBuilder::new().layer(HedgeLayer::builder().delay(LIMIT).build()).service(Echo)
        }),
        misses("tower-resilience", ServiceBuilder::new().layer(peer_cache()).service(Echo)),
        misses("moka, the store", ServiceBuilder::new().map_request(moka(1_000, LIMIT)).service(Echo)),
        misses("quick_cache, the store", ServiceBuilder::new().map_request(quick_cache(1_000)).service(Echo)),
        // No clone of it shares its state.
        subject("rate limit", "tower", ServiceBuilder::new().rate_limit(u64::MAX, SECOND).service(Echo)),
        layered_subject("timeout", (belt.timeout(LIMIT), echo()).into_service()),
        layered_subject("retry", (belt.retry(LIMIT), echo()).into_service()),
        layered_subject("breaker, of 30 s", (belt.breaker(), echo()).into_service()),
        layered_subject(
            "stack of three",
            (belt.timeout(LIMIT), belt.retry(LIMIT), belt.breaker(), echo()).into_service(),
        ),
    ]);
    all
}

fn peer_cache() -> PeerCacheLayer<Word, Word> {
    let cache = PeerCacheLayer::builder().max_size(1_000).ttl(LIMIT).key_extractor(|word: &Word| *word);
    cache.build().expect("a cache")
}

/// The policies of other crates, around any service.
pub(super) fn collect(inner: &impl Inner, all: &mut impl Collect) {
    let (tower, peer, seatbelt) = ("tower", "tower-resilience", "seatbelt");
    let belt = Belt::new();
    let peer_retry = || PeerRetryLayer::<Word, Word, Failed>::builder().max_attempts(3).fixed_backoff(LIMIT).build();
    let peer_limit = || BulkheadLayer::builder().max_concurrent_calls(PERMITS).build().expect("a limit");
    let peer_breaker =
        || PeerBreakerLayer::builder().failure_rate_threshold(0.5).sliding_window_size(100).build().expect("a breaker");
    let peer_timeout = || TimeLimiterLayer::builder().timeout_duration(LIMIT).build();
    let service = || inner.clone();
    all.add("timeout", tower, ServiceBuilder::new().timeout(LIMIT).service(service()));
    all.add("timeout", peer, ServiceBuilder::new().layer(peer_timeout()).service(service()));
    all.add("timeout", seatbelt, ServiceBuilder::new().layer(belt.timeout(LIMIT)).service(service()));
    // It is no layer, but a function of a future.
    all.add("timeout", "pingora-timeout", {
        let limited = |future| async move { pingora_timeout::timeout(LIMIT, future).await.map_err(|_| Failed)? };
        ServiceBuilder::new().map_future(limited).service(service())
    });
    all.add("retry", tower, ServiceBuilder::new().retry(ThreeTimes(3)).service(service()));
    all.add("retry", peer, ServiceBuilder::new().layer(peer_retry()).service(service()));
    all.add("retry", seatbelt, ServiceBuilder::new().layer(belt.retry(LIMIT)).service(service()));
    all.add("limit", tower, ServiceBuilder::new().concurrency_limit(PERMITS).service(service()));
    all.add("limit", peer, ServiceBuilder::new().layer(peer_limit()).service(service()));
    // It is no layer: the check alone, before a call.
    all.add("rate limit", "governor", {
        let limiter = Arc::new(RateLimiter::direct(Quota::per_second(NonZero::<u32>::MAX)));
        let check = move |word: Word| {
            limiter.check().expect("a token");
            word
        };
        ServiceBuilder::new().map_request(check).service(service())
    });
    all.add("rate limit, per key", "governor", {
        let limiter = Arc::new(RateLimiter::keyed(Quota::per_second(NonZero::<u32>::MAX)));
        let check = move |word: Word| {
            limiter.check_key(&word).expect("a token");
            word
        };
        ServiceBuilder::new().map_request(check).service(service())
    });
    all.add("breaker, of 100 calls", peer, ServiceBuilder::new().layer(peer_breaker()).service(service()));
    // It is no layer, but a function of a future.
    all.add("breaker, of 100 calls", "recloser", {
        let breaker = AsyncRecloser::from(Recloser::custom().error_rate(0.5).closed_len(100).build());
        let guarded = move |future| {
            let breaker = breaker.clone();
            async move { breaker.call(future).await.map_err(|_| Failed) }
        };
        ServiceBuilder::new().map_future(guarded).service(service())
    });
    all.add("breaker, of 30 s", seatbelt, ServiceBuilder::new().layer(belt.breaker()).service(service()));
    all.add("cache, a hit", peer, ServiceBuilder::new().layer(peer_cache()).service(service()));
    all.add("cache, a hit", "moka, the store", {
        ServiceBuilder::new().map_request(moka(1_000, LIMIT)).service(service())
    });
    all.add("cache, a hit", "quick_cache, the store", {
        ServiceBuilder::new().map_request(quick_cache(1_000)).service(service())
    });
    all.add(
        "timeout, retry, limit",
        tower,
        ServiceBuilder::new().timeout(LIMIT).retry(ThreeTimes(3)).concurrency_limit(PERMITS).service(service()),
    );
    all.add(
        "stack of three",
        seatbelt,
        ServiceBuilder::new()
            .layer(belt.timeout(LIMIT))
            .layer(belt.retry(LIMIT))
            .layer(belt.breaker())
            .service(service()),
    );
    all.add(
        "stack of the four",
        peer,
        ServiceBuilder::new()
            .layer(peer_timeout())
            .layer(peer_retry())
            .map_err(|_| Failed)
            .layer(peer_breaker())
            .layer(peer_limit())
            .service(service()),
    );
}
