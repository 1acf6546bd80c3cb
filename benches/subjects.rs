//! The subjects of the benchmarks: each of our layers and a stack of four, beside peers with equal policies.

use std::{
    future::{poll_fn, ready},
    hint::black_box,
    num::NonZero,
    pin::pin,
    sync::Arc,
    task::Poll,
    time::Duration,
};

use bytes::Bytes;
use governor::{Quota, RateLimiter};
use http::{Request, Response};
use http_body::Body;
use http_body_util::Full;
use layered::Stack;
use tower::{Layer, Service, ServiceBuilder};
use tower_resilience::{
    bulkhead::BulkheadLayer, cache::CacheLayer as PeerCacheLayer,
    circuitbreaker::CircuitBreakerLayer as PeerBreakerLayer, retry::RetryLayer as PeerRetryLayer,
    timelimiter::TimeLimiterLayer,
};
use ziggurat::{
    Error, LayerEvent, LayerInfo, Scope,
    cache::CacheLayer,
    chaos::{ChaosLayer, Fault},
    circuit_breaker::CircuitBreakerLayer,
    concurrency_limit::{Adaptive, ConcurrencyLimitLayer, Priority},
    drain::DrainLayer,
    fallback::FallbackLayer,
    hedge::HedgeLayer,
    idempotency::IdempotencyLayer,
    observe::ObserveLayer,
    per_key::PerKeyLayer,
    rate_limit::RateLimitLayer,
    rejection_response::RejectionResponseLayer,
    resource::ResourceLayer,
    retry::RetryLayer,
    shared_rate_limit::{SharedRateLimitLayer, WhenAway},
    stack::{ClientSettings, ClientStack},
    store::{MemoryStore, Quota as SharedQuota},
    timeout::TimeoutLayer,
    upload::UploadLayer,
};

use crate::{
    Echo, Failed, Word,
    belt::{Belt, echo},
    subject::{Subject, http_subject, layered_subject, subject},
};

const LIMIT: Duration = Duration::from_secs(30);
const SECOND: Duration = Duration::from_secs(1);
const PERMITS: usize = 100;

const SMALL: &[u8] = b"a small response";

/// Reads the request's body to its end, and responds.
async fn reads<B: Body<Data = Bytes>>(request: Request<B>) -> Result<Response<Full<Bytes>>, Failed> {
    let mut body = pin!(request.into_body());
    while let Some(Ok(frame)) = poll_fn(|cx| body.as_mut().poll_frame(cx)).await {
        black_box(frame);
    }
    Ok(Response::new(Full::new(Bytes::from_static(SMALL))))
}

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

/// All subjects. The first is the bare service.
pub fn subjects() -> Vec<Subject> {
    let ours = "ziggurat";
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
    let retry = || RetryLayer::new().backoff(LIMIT).budget(None);
    let breaker = || CircuitBreakerLayer::failure_rate(0.5).over_calls(100);
    let service = || ServiceBuilder::new().map_err(Error::Service).service(Echo);
    let small = || ready(Ok::<_, Failed>(Response::new(Full::new(Bytes::from_static(SMALL)))));
    let http = || ServiceBuilder::new().map_err(Error::Service).service_fn(move |_: Word| small());
    let asked = || ServiceBuilder::new().map_err(Error::Service).service_fn(move |_: Request<Word>| small());
    let uploaded = |_| Request::new(Full::new(Bytes::from_static(b"a small request")));
    let app = Scope::root("app").with(ClientSettings::default());
    vec![
        subject("bare", "", Echo),
        subject("timeout", ours, ServiceBuilder::new().layer(TimeoutLayer::new(LIMIT)).service(service())),
        subject("timeout", tower, ServiceBuilder::new().timeout(LIMIT).service(Echo)),
        subject("timeout", peer, ServiceBuilder::new().layer(peer_timeout()).service(Echo)),
        subject("timeout", seatbelt, ServiceBuilder::new().layer(belt.timeout(LIMIT)).service(Echo)),
        layered_subject("timeout", (belt.timeout(LIMIT), echo()).into_service()),
        subject("retry", ours, ServiceBuilder::new().layer(retry()).service(service())),
        subject("retry", tower, ServiceBuilder::new().retry(ThreeTimes(3)).service(Echo)),
        subject("retry", peer, ServiceBuilder::new().layer(peer_retry()).service(Echo)),
        subject("retry", seatbelt, ServiceBuilder::new().layer(belt.retry(LIMIT)).service(Echo)),
        layered_subject("retry", (belt.retry(LIMIT), echo()).into_service()),
        subject(
            "retry with its budget",
            ours,
            ServiceBuilder::new().layer(RetryLayer::new().backoff(LIMIT)).service(service()),
        ),
        // Not fired: the response is ready at once.
        subject(
            "hedge, after a delay",
            ours,
            ServiceBuilder::new().layer(HedgeLayer::after(LIMIT).budget(None)).service(service()),
        ),
        subject(
            "hedge, at a percentile",
            ours,
            ServiceBuilder::new().layer(HedgeLayer::at_percentile(0.95).budget(None)).service(service()),
        ),
        subject("limit", ours, ServiceBuilder::new().layer(ConcurrencyLimitLayer::new(PERMITS)).service(service())),
        // Its only permit is taken for good. The rejections become responses.
        subject("limit, a rejection", ours, {
            let mut limited = ConcurrencyLimitLayer::new(1).max_waiting(0).layer(service());
            std::mem::forget(limited.call(0));
            let accept = |rejected: Result<Word, Error<Failed>>| Ok::<_, Error<Failed>>(rejected.unwrap_or(0));
            ServiceBuilder::new().map_result(accept).service(limited)
        }),
        // The cost of a rejected call if it were admitted: it waits until the call before it ends. Both are counted.
        subject("limit, a call and a waiter", ours, {
            let limited = ConcurrencyLimitLayer::new(1).layer(service());
            tower::service_fn(move |word| {
                let (mut first, mut second) = (limited.clone(), limited.clone());
                async move {
                    let (running, mut waiting) = (first.call(word), pin!(second.call(word)));
                    let waits = poll_fn(|cx| Poll::Ready(waiting.as_mut().poll(cx).is_pending())).await;
                    assert!(waits, "no permit is free");
                    running.await?;
                    waiting.await
                }
            })
        }),
        subject("limit, by priority", ours, {
            let priority = |word: &Word| if *word == 0 { Priority::Low } else { Priority::Normal };
            ServiceBuilder::new().layer(ConcurrencyLimitLayer::new(PERMITS).priority(priority)).service(service())
        }),
        subject("limit, adaptive", ours, {
            ServiceBuilder::new().layer(ConcurrencyLimitLayer::adaptive(Adaptive::gradient())).service(service())
        }),
        subject("limit", tower, ServiceBuilder::new().concurrency_limit(PERMITS).service(Echo)),
        subject("limit", peer, ServiceBuilder::new().layer(peer_limit()).service(Echo)),
        subject("rate limit", ours, {
            ServiceBuilder::new().layer(RateLimitLayer::new(u32::MAX, SECOND)).service(service())
        }),
        // Its only token is taken for good. The rejections become responses.
        subject("rate limit, a rejection", ours, {
            let mut limited = RateLimitLayer::new(1, LIMIT * 10_000).layer(service());
            drop(limited.call(0));
            let accept = |rejected: Result<Word, Error<Failed>>| Ok::<_, Error<Failed>>(rejected.unwrap_or(0));
            ServiceBuilder::new().map_result(accept).service(limited)
        }),
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
        // One hot key. Its cost beside that of its layer: the difference to the row of the rate limit.
        subject("rate limit, per key", ours, {
            let key = |word: &Word| Ok(*word);
            let layer = PerKeyLayer::new(key, |_| RateLimitLayer::new(u32::MAX, SECOND));
            ServiceBuilder::new().layer(layer).service(service())
        }),
        subject("rate limit, per key", "governor", {
            let limiter = Arc::new(RateLimiter::keyed(Quota::per_second(NonZero::<u32>::MAX)));
            let check = move |word: Word| {
                limiter.check_key(&word).expect("a token");
                word
            };
            ServiceBuilder::new().map_request(check).service(Echo)
        }),
        // With a lease that lasts: no request to the store.
        subject("shared rate limit, of a lease", ours, {
            let quota = SharedQuota::new(u32::MAX, SECOND);
            let layer = SharedRateLimitLayer::new(MemoryStore::new(), "api", quota, WhenAway::Reject);
            ServiceBuilder::new().layer(layer.lease(u32::MAX, LIMIT * 10_000)).service(service())
        }),
        subject("timeout, per key", ours, {
            let layer = PerKeyLayer::borrowed(|_: &Word| Ok("a key"), |_| TimeoutLayer::new(LIMIT));
            ServiceBuilder::new().layer(layer).service(service())
        }),
        subject("breaker, of 100 calls", ours, ServiceBuilder::new().layer(breaker()).service(service())),
        subject("breaker, of 100 calls", peer, ServiceBuilder::new().layer(peer_breaker()).service(Echo)),
        subject(
            "breaker, consecutive",
            ours,
            ServiceBuilder::new().layer(CircuitBreakerLayer::consecutive(5)).service(service()),
        ),
        subject(
            "breaker, of 30 s",
            ours,
            ServiceBuilder::new().layer(CircuitBreakerLayer::failure_rate(0.5)).service(service()),
        ),
        subject("breaker, of 30 s", seatbelt, ServiceBuilder::new().layer(belt.breaker()).service(Echo)),
        layered_subject("breaker, of 30 s", (belt.breaker(), echo()).into_service()),
        subject(
            "cache, a hit",
            ours,
            ServiceBuilder::new().layer(CacheLayer::new(1_000, LIMIT, |word: &Word| Some(*word))).service(service()),
        ),
        subject("cache, a hit", peer, ServiceBuilder::new().layer(peer_cache()).service(Echo)),
        subject("fallback, a value", ours, ServiceBuilder::new().layer(FallbackLayer::value(7)).service(service())),
        subject(
            "fallback, a service",
            ours,
            ServiceBuilder::new().layer(FallbackLayer::service(service())).service(service()),
        ),
        subject("chaos, off", ours, ServiceBuilder::new().layer(ChaosLayer::new(Fault::Error)).service(service())),
        subject("observe, unheard", ours, ServiceBuilder::new().layer(ObserveLayer::new()).service(service())),
        subject(
            "observe, heard",
            ours,
            ServiceBuilder::new()
                .layer(ObserveLayer::new().observer(|_: &LayerInfo, _: &LayerEvent<'_>| ()))
                .service(service()),
        ),
        subject(
            "resource",
            ours,
            ServiceBuilder::new().layer(ResourceLayer::new(|| ready(Ok::<Word, Failed>(7)))).service(service()),
        ),
        subject(
            "stack of three",
            ours,
            ServiceBuilder::new()
                .layer(TimeoutLayer::new(LIMIT))
                .layer(retry())
                .layer(CircuitBreakerLayer::failure_rate(0.5))
                .service(service()),
        ),
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
            ours,
            ServiceBuilder::new()
                .layer(TimeoutLayer::new(LIMIT))
                .layer(retry())
                .layer(breaker())
                .layer(ConcurrencyLimitLayer::new(PERMITS))
                .service(service()),
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
        subject("recommended client", ours, ServiceBuilder::new().layer(ClientStack::new("bench")).service(service())),
        subject(
            "recommended client, settings of a scope",
            ours,
            ServiceBuilder::new().layer(ClientStack::new("bench").settings_from(&app)).service(service()),
        ),
        http_subject("http, bare", http()),
        http_subject("http, a request", ServiceBuilder::new().map_request(Request::new).service(asked())),
        http_subject(
            "http, answer",
            ServiceBuilder::new()
                .map_request(Request::new)
                .layer(RejectionResponseLayer::problem_json())
                .service(asked()),
        ),
        http_subject(
            "http, drain",
            ServiceBuilder::new().map_request(Request::new).layer(DrainLayer::new()).service(asked()),
        ),
        http_subject(
            "http, an upload",
            ServiceBuilder::new().map_request(uploaded).map_err(Error::Service).service_fn(reads),
        ),
        http_subject(
            "http, an upload, idempotency without a key",
            ServiceBuilder::new()
                .map_request(uploaded)
                .layer(IdempotencyLayer::new(MemoryStore::new(), |_: &Request<Full<Bytes>>| None))
                .map_err(Error::Service)
                .service_fn(reads),
        ),
        http_subject(
            "http, upload",
            ServiceBuilder::new()
                .map_request(uploaded)
                .layer(UploadLayer::new(LIMIT))
                .map_err(Error::Service)
                .service_fn(reads),
        ),
        http_subject(
            "http, the four",
            ServiceBuilder::new()
                .layer(TimeoutLayer::new(LIMIT))
                .layer(retry())
                .layer(breaker())
                .layer(ConcurrencyLimitLayer::new(PERMITS))
                .service(http()),
        ),
        http_subject(
            "http, to the body's end",
            ServiceBuilder::new()
                .layer(TimeoutLayer::new(LIMIT).until_body_end())
                .layer(retry())
                .layer(breaker().until_body_end())
                .layer(ConcurrencyLimitLayer::new(PERMITS).until_body_end())
                .service(http()),
        ),
    ]
}
