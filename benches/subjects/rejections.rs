//! Calls that a layer rejects. The rejections become responses.

use std::{
    fmt::Debug,
    future::pending,
    mem::forget,
    task::{Context, Waker},
};

use tower::{Layer, Service, ServiceBuilder};
use ziggurat::{
    Error, circuit_breaker::CircuitBreakerLayer, concurrency_limit::ConcurrencyLimitLayer, rate_limit::RateLimitLayer,
};
#[cfg(feature = "peers")]
use {
    governor::{Quota, RateLimiter},
    recloser::{AsyncRecloser, Recloser},
    std::{
        future::ready,
        sync::{
            Arc,
            atomic::{AtomicU32, Ordering::Relaxed},
        },
    },
    tower_resilience::circuitbreaker::CircuitBreakerLayer as PeerBreakerLayer,
};

use super::LIMIT;
#[cfg(feature = "peers")]
use crate::call;
use crate::{
    Echo, Failed, Word,
    subject::{Subject, subject},
};

const OPEN: &str = "breaker, a rejection";
const FULL: &str = "limit, a rejection";
const EMPTY: &str = "rate limit, a rejection";

pub(super) fn ours() -> Vec<Subject> {
    let service = || ServiceBuilder::new().map_err(Error::Service).service(Echo);
    let breaker = CircuitBreakerLayer::failure_rate(0.5).over_calls(100);
    breaker.handle().force_open();
    let mut rated = RateLimitLayer::new(1, LIMIT * 10_000).layer(service());
    // Its only token.
    drop(rated.call(0));
    let limit = ConcurrencyLimitLayer::new(1).max_waiting(0);
    vec![
        subject(OPEN, "ziggurat", rejecting(breaker.layer(service()))),
        subject(FULL, "ziggurat", {
            rejecting(full(ServiceBuilder::new().layer(limit).map_err(Error::Service).service_fn(first_never)))
        }),
        subject(EMPTY, "ziggurat", rejecting(rated)),
    ]
}

#[cfg(feature = "peers")]
pub(super) fn peers() -> Vec<Subject> {
    let breaker = PeerBreakerLayer::builder().failure_rate_threshold(0.5).sliding_window_size(100);
    let breaker = breaker.wait_duration_in_open(LIMIT * 10_000).build().expect("a breaker");
    let recloser = Recloser::custom().error_rate(0.5).closed_len(100).open_wait(LIMIT * 10_000).build();
    let recloser = AsyncRecloser::from(recloser);
    let guarded = move |future| {
        let recloser = recloser.clone();
        async move { recloser.call(future).await.map_err(|_| Failed) }
    };
    let calls = [(); 2].map(|()| Arc::new(AtomicU32::new(0)));
    let [fails, also_fails] = calls.map(|calls| move |_: Word| fails(Arc::clone(&calls)));
    let limiter = RateLimiter::direct(Quota::with_period(LIMIT * 10_000).expect("a period"));
    limiter.check().expect("the only token");
    let checked = move |word: Word| ready(limiter.check().map(|()| word).map_err(|_| Failed));
    vec![
        subject(OPEN, "tower-resilience", open(ServiceBuilder::new().layer(breaker).service_fn(fails))),
        subject(OPEN, "recloser", open(ServiceBuilder::new().map_future(guarded).service_fn(also_fails))),
        // The bulkhead of tower-resilience is missing: a full one that rejects waits for a timer of zero first, and
        // tokio's take a millisecond.
        subject(FULL, "tower, with load_shed", {
            rejecting(full(ServiceBuilder::new().load_shed().concurrency_limit(1).service_fn(first_never)))
        }),
        subject(EMPTY, "governor", rejecting(tower::service_fn(checked))),
    ]
}

/// Returns the service with responses in place of rejections.
fn rejecting<S>(service: S) -> impl Service<Word, Response = Word, Error = S::Error>
where
    S: Service<Word, Response = Word, Error: Debug>,
{
    let accept = |outcome: Result<Word, S::Error>| {
        assert!(outcome.is_err(), "not rejected");
        Ok::<Word, S::Error>(0)
    };
    ServiceBuilder::new().map_result(accept).service(service)
}

/// Takes the only permit for good.
fn full<S: Service<Word, Error: Debug>>(mut service: S) -> S {
    let mut cx = Context::from_waker(Waker::noop());
    assert!(service.poll_ready(&mut cx).is_ready());
    let mut first = Box::pin(service.call(0));
    assert!(first.as_mut().poll(&mut cx).is_pending());
    forget(first);
    service
}

async fn first_never(word: Word) -> Result<Word, Failed> {
    if word == 0 {
        pending::<()>().await;
    }
    Ok(word)
}

/// Opens the circuit.
#[cfg(feature = "peers")]
fn open<S>(service: S) -> impl Service<Word, Response = Word, Error = S::Error>
where
    S: Service<Word, Response = Word, Error: Debug>,
{
    let mut service = rejecting(service);
    for word in 0..500 {
        call(&mut service, word);
    }
    service
}

/// A service whose response fails while the circuit opens, and is not polled afterwards.
#[cfg(feature = "peers")]
async fn fails(calls: Arc<AtomicU32>) -> Result<Word, Failed> {
    assert!(calls.fetch_add(1, Relaxed) < 200, "the circuit is not open");
    Err(Failed)
}
