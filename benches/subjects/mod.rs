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
    context::ContextLayer,
    drain::DrainLayer,
    fallback::FallbackLayer,
    hedge::HedgeLayer,
    idempotency::IdempotencyLayer,
    observe::ObserveLayer,
    per_key::PerKeyLayer,
    rejection_response::RejectionResponseLayer,
    resource::ResourceLayer,
    retry::RetryLayer,
    shared_rate_limit::{SharedRateLimitLayer, WhenAway},
    stack::{ClientSettings, ClientStack},
    store::{MemoryStore, Quota as SharedQuota},
    timeout::TimeoutLayer,
    upload::UploadLayer,
};

#[cfg(feature = "peers")]
use crate::subject::{Collect, Inner};
use crate::{
    Echo, Failed, Word,
    subject::{Subject, http_subject, subject},
};

#[cfg(feature = "peers")]
mod belt;
#[cfg(feature = "peers")]
pub mod growth;
pub mod http_cache;
mod link;
#[cfg(feature = "peers")]
mod peers;
#[cfg(feature = "peers")]
pub mod pending;
mod policies;
#[cfg(feature = "peers")]
mod proxy;
mod rejections;
pub mod round_trip;
#[cfg(feature = "peers")]
mod stores;

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
    let mut ours = vec![subject("bare", "", Echo)];
    policies::collect(&Echo, &mut ours);
    ours.extend(more_of_ours());
    #[cfg(not(feature = "peers"))]
    let peers = Vec::new();
    #[cfg(feature = "peers")]
    let peers = peers::subjects().into_iter().chain(rejections::peers());
    ours.extend(rejections::ours());
    beside(ours, peers, |subject| subject.what)
}

/// Collects each policy around this service: ours, followed by the same ones of other crates. Their services are clones
/// that share the policy's state.
#[cfg(feature = "peers")]
pub fn policies<C: Collect + Default + IntoIterator<Item = T>, T>(
    inner: &impl Inner,
    what: fn(&T) -> &'static str,
) -> Vec<T> {
    let (mut ours, mut theirs) = (C::default(), C::default());
    policies::collect(inner, &mut ours);
    peers::collect(inner, &mut theirs);
    beside(ours, theirs, what)
}

/// Puts the subjects of other crates behind ours of the same policy.
fn beside<T>(
    ours: impl IntoIterator<Item = T>,
    theirs: impl IntoIterator<Item = T>,
    what: fn(&T) -> &'static str,
) -> Vec<T> {
    let (mut all, mut theirs) = (Vec::new(), theirs.into_iter().collect::<Vec<_>>());
    for ours in ours {
        let policy = what(&ours);
        all.push(ours);
        all.extend(theirs.extract_if(.., |peer| what(peer) == policy));
    }
    assert!(theirs.is_empty(), "of other crates alone: {:?}", theirs.iter().map(what).collect::<Vec<_>>());
    all
}

/// A request's context, beside an insert into its extensions. The first subject is the bare request.
pub fn requests() -> Vec<Subject> {
    let small = |_: Request<Word>| ready(Ok::<_, Failed>(Response::new(Full::new(Bytes::from_static(SMALL)))));
    let context = ContextLayer::new(Scope::root("app"));
    let insert = |mut request: Request<Word>| {
        request.extensions_mut().insert(7_u64);
        request
    };
    vec![
        http_subject("a request", "", ServiceBuilder::new().map_request(Request::new).service_fn(small)),
        http_subject("context of a request", "ziggurat", {
            let layers = ServiceBuilder::new().map_request(Request::new).layer(context);
            layers.map_err(Error::Service).service_fn(small)
        }),
        http_subject("context of a request", "http, a first insert", {
            ServiceBuilder::new().map_request(Request::new).map_request(insert).service_fn(small)
        }),
    ]
}

/// Each call has another key than those before it, so that a store of 1,000 evicts one. Calls that fill it come first.
fn misses<S>(whose: &'static str, service: S) -> Subject
where
    S: Service<Word, Response = Word> + 'static,
{
    let mut key = 0;
    let fresh = move |_: Word| {
        key += 1;
        key
    };
    let mut subject =
        subject("cache, a miss that evicts", whose, ServiceBuilder::new().map_request(fresh).service(service));
    (subject.run)(5_000);
    subject
}

/// The subjects of this crate that no other crate has, or that make sense with this service alone.
fn more_of_ours() -> Vec<Subject> {
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
        subject(
            "breaker, consecutive",
            ours,
            ServiceBuilder::new().layer(CircuitBreakerLayer::consecutive(5)).service(service()),
        ),
        misses(
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
            "recommended client, settings of a scope",
            ours,
            ServiceBuilder::new().layer(ClientStack::new("bench").settings_from(&app)).service(service()),
        ),
        http_subject("http, bare", ours, http()),
        http_subject("http, a request", ours, ServiceBuilder::new().map_request(Request::new).service(asked())),
        http_subject(
            "http, answer",
            ours,
            ServiceBuilder::new()
                .map_request(Request::new)
                .layer(RejectionResponseLayer::problem_json())
                .service(asked()),
        ),
        http_subject(
            "http, drain",
            ours,
            ServiceBuilder::new().map_request(Request::new).layer(DrainLayer::new()).service(asked()),
        ),
        http_subject(
            "http, an upload",
            ours,
            ServiceBuilder::new().map_request(uploaded).map_err(Error::Service).service_fn(reads),
        ),
        http_subject(
            "http, an upload, idempotency without a key",
            ours,
            ServiceBuilder::new()
                .map_request(uploaded)
                .layer(IdempotencyLayer::new(MemoryStore::new(), |_: &Request<Full<Bytes>>| None))
                .map_err(Error::Service)
                .service_fn(reads),
        ),
        http_subject(
            "http, upload",
            ours,
            ServiceBuilder::new()
                .map_request(uploaded)
                .layer(UploadLayer::new(LIMIT))
                .map_err(Error::Service)
                .service_fn(reads),
        ),
        http_subject(
            "http, the four",
            ours,
            ServiceBuilder::new()
                .layer(TimeoutLayer::new(LIMIT))
                .layer(retry())
                .layer(breaker())
                .layer(ConcurrencyLimitLayer::new(PERMITS))
                .service(http()),
        ),
        http_subject(
            "http, to the body's end",
            ours,
            ServiceBuilder::new()
                .layer(TimeoutLayer::new(LIMIT).until_body_end())
                .layer(retry())
                .layer(breaker().until_body_end())
                .layer(ConcurrencyLimitLayer::new(PERMITS).until_body_end())
                .service(http()),
        ),
    ]
}
