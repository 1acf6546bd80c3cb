//! The subjects of the benchmarks: each of our layers and a stack of four, beside peers with equal policies.

use std::{
    future::{poll_fn, ready},
    hint::black_box,
    pin::pin,
    task::Poll,
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use http_body_util::Full;
use tower::{Layer, Service, ServiceBuilder};
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
    subject::{Subject, http_subject, subject},
};

#[cfg(feature = "peers")]
mod belt;
pub mod http_cache;
#[cfg(feature = "peers")]
mod peers;
pub mod round_trip;

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

/// All subjects. The first is the bare service. Those of other crates follow ours of the same policy.
pub fn subjects() -> Vec<Subject> {
    #[cfg(not(feature = "peers"))]
    let mut peers = Vec::<Subject>::new();
    #[cfg(feature = "peers")]
    let mut peers = peers::subjects();
    let mut all = Vec::new();
    for ours in ours() {
        let what = ours.what;
        all.push(ours);
        all.extend(peers.extract_if(.., |peer| peer.what == what));
    }
    all
}

/// The subjects of this crate, and the bare service.
fn ours() -> Vec<Subject> {
    let ours = "ziggurat";
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
        subject("retry", ours, ServiceBuilder::new().layer(retry()).service(service())),
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
        // One hot key. Its cost beside that of its layer: the difference to the row of the rate limit.
        subject("rate limit, per key", ours, {
            let key = |word: &Word| Ok(*word);
            let layer = PerKeyLayer::new(key, |_| RateLimitLayer::new(u32::MAX, SECOND));
            ServiceBuilder::new().layer(layer).service(service())
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
        subject(
            "cache, a hit",
            ours,
            ServiceBuilder::new().layer(CacheLayer::new(1_000, LIMIT, |word: &Word| Some(*word))).service(service()),
        ),
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
            "stack of the four",
            ours,
            ServiceBuilder::new()
                .layer(TimeoutLayer::new(LIMIT))
                .layer(retry())
                .layer(breaker())
                .layer(ConcurrencyLimitLayer::new(PERMITS))
                .service(service()),
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
