//! Subjects that hold many keys, waiting callers, calls or scopes.

use std::{
    fmt::Debug,
    future::{Future, pending},
    hint::black_box,
    num::NonZero,
    task::{Context, Waker},
    time::Duration,
};

use futures_util::{StreamExt, stream::FuturesUnordered};
use governor::{Quota, RateLimiter};
use tokio::runtime::Builder;
use tower::{Service, ServiceBuilder, ServiceExt, service_fn};
use tower_resilience::{bulkhead::BulkheadLayer, cache::CacheLayer as PeerCacheLayer, timelimiter::TimeLimiterLayer};
use ziggurat::{
    Error, Scope, cache::CacheLayer, concurrency_limit::ConcurrencyLimitLayer, context::ContextLayer,
    per_key::PerKeyLayer, rate_limit::RateLimitLayer, timeout::TimeoutLayer,
};

use super::{
    LIMIT, SECOND,
    pending::{Driver, Pending, Polled},
    stores::{moka, quick_cache},
};
use crate::{
    Echo, Failed, Word, call,
    subject::{Subject, subject},
};

/// Longer than the benchmark runs.
const TTL: Duration = Duration::from_secs(3_600);

/// A service or a store, as a function of the key.
type Get = Box<dyn FnMut(Word) -> Word>;

/// Subjects that hold a number of things.
pub struct Growing {
    pub of: &'static str,
    pub numbers: &'static [u32],
    pub subjects: fn(u32) -> Vec<Subject>,
    /// A round makes one call for each thing, or else a fixed number.
    pub one_for_each: bool,
}

pub fn all() -> Vec<Growing> {
    let growing = |of, numbers, subjects, one_for_each| Growing { of, numbers, subjects, one_for_each };
    vec![
        growing("keys of a cache", &[100, 10_000, 100_000, 1_000_000], |keys| caches(keys, hits), false),
        growing("keys of a cache", &[100, 10_000, 100_000, 1_000_000], |keys| caches(keys, misses), false),
        growing("keys of a policy", &[1, 100, 10_000, 100_000, 1_000_000], keys, false),
        growing("waiting callers", &[1, 100, 10_000, 100_000], waiting, true),
        growing("calls in flight", &[1, 100, 10_000, 100_000], in_flight, false),
        growing("open scopes", &[1, 100, 10_000, 100_000], scopes, false),
    ]
}

/// Caches with room for this number of keys. `make` fills each of them.
fn caches(keys: u32, make: fn(&'static str, u32, Get) -> Subject) -> Vec<Subject> {
    let capacity = keys as usize;
    let ours = CacheLayer::new(capacity, TTL, |word: &Word| Some(*word));
    let mut ours = ServiceBuilder::new().layer(ours).map_err(Error::Service).service(Echo);
    let theirs = PeerCacheLayer::builder().max_size(capacity).ttl(TTL).key_extractor(|word: &Word| *word);
    let mut theirs = ServiceBuilder::new().layer(theirs.build().expect("a cache")).service(Echo);
    vec![
        make("ziggurat", keys, Box::new(move |word| call(&mut ours, word))),
        make("tower-resilience", keys, Box::new(move |word| call(&mut theirs, word))),
        make("moka, the store", keys, Box::new(moka(capacity, TTL))),
        make("quick_cache, the store", keys, Box::new(quick_cache(capacity))),
    ]
}

/// Keys that are all stored, in an order without a pattern.
fn hits(whose: &'static str, keys: u32, mut get: Get) -> Subject {
    // Twice: a store may keep for good what was used again.
    for key in (0..keys).chain(0..keys) {
        get(key.into());
    }
    let mut next = without_a_pattern(keys);
    let run = move |calls| {
        for _ in 0..calls {
            black_box(get(black_box(next())));
        }
    };
    Subject { what: "cache, a hit", whose, run: Box::new(run) }
}

/// Keys that were never stored. Each evicts another one.
fn misses(whose: &'static str, keys: u32, mut get: Get) -> Subject {
    let mut fresh = 0;
    let mut run = move |calls| {
        for _ in 0..calls {
            fresh += 1;
            black_box(get(black_box(fresh)));
        }
    };
    run(keys + keys / 2);
    Subject { what: "cache, a miss that evicts", whose, run: Box::new(run) }
}

fn keys(keys: u32) -> Vec<Subject> {
    let layer = PerKeyLayer::new(|word: &Word| Ok(*word), |_| RateLimitLayer::new(u32::MAX, SECOND));
    let layer = layer.max_keys(keys as usize);
    let mut ours = ServiceBuilder::new().layer(layer).map_err(Error::Service).service(Echo);
    let limiter = RateLimiter::keyed(Quota::per_second(NonZero::<u32>::MAX));
    let theirs = move |word| limiter.check_key(&word).map(|()| word).expect("a token");
    let subject = |whose, get| Subject { what: "rate limit, per key", ..hits(whose, keys, get) };
    vec![subject("ziggurat", Box::new(move |word| call(&mut ours, word)) as Get), subject("governor", Box::new(theirs))]
}

fn without_a_pattern(below: u32) -> impl FnMut() -> Word {
    let mut number = 1_u64;
    move || {
        number = number.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (number >> 33) % u64::from(below)
    }
}

/// All callers but the first wait for its permit, and then for each other's.
fn waiting(callers: u32) -> Vec<Subject> {
    let what = "limit of one, each caller's turn";
    // The others wait for as long as it takes.
    let ours = ConcurrencyLimitLayer::new(1).max_waiting(callers as usize).max_wait(Duration::MAX);
    vec![
        queue(what, "ziggurat", callers, {
            ServiceBuilder::new().layer(ours).map_err(Error::Service).service(Pending(1))
        }),
        queue(what, "tower", callers, ServiceBuilder::new().concurrency_limit(1).service(Pending(1))),
        queue(what, "tower-resilience", callers, {
            let limit = BulkheadLayer::builder().max_concurrent_calls(1).build().expect("a limit");
            ServiceBuilder::new().layer(limit).service(Pending(1))
        }),
    ]
}

fn queue<S>(what: &'static str, whose: &'static str, callers: u32, service: S) -> Subject
where
    S: Service<Word, Response = Word, Error: Debug> + Clone + 'static,
{
    let runtime = Builder::new_current_thread().enable_time().build().expect("a runtime");
    let run = move |_| {
        runtime.block_on(async {
            let turns: FuturesUnordered<_> = (0..callers).map(|word| service.clone().oneshot(word.into())).collect();
            assert!(turns.all(|turn| async move { turn.is_ok() }).await, "a rejection");
        });
    };
    Subject { what, whose, run: Box::new(run) }
}

/// A call that is pending once, while others are pending for good.
fn in_flight(calls: u32) -> Vec<Subject> {
    let service = || service_fn(first_never);
    let what = "timeout, pending once";
    vec![
        among(what, "ziggurat", calls, {
            ServiceBuilder::new().layer(TimeoutLayer::new(LIMIT)).map_err(Error::Service).service(service())
        }),
        among(what, "tower", calls, ServiceBuilder::new().timeout(LIMIT).service(service())),
        among(what, "tower-resilience", calls, {
            let limit = TimeLimiterLayer::builder().timeout_duration(LIMIT).build();
            ServiceBuilder::new().layer(limit).service(service())
        }),
    ]
}

async fn first_never(word: Word) -> Result<Word, Failed> {
    if word == 0 {
        pending::<()>().await;
    }
    Pending(1).call(word).await
}

fn among<S>(what: &'static str, whose: &'static str, calls: u32, mut service: S) -> Subject
where
    S: Service<Word, Response = Word, Error: Debug, Future: Send> + 'static,
{
    let mut cx = Context::from_waker(Waker::noop());
    let mut others = Vec::new();
    for _ in 1..calls {
        assert!(service.poll_ready(&mut cx).is_ready());
        let mut response = Box::pin(service.call(0));
        assert!(response.as_mut().poll(&mut cx).is_pending());
        others.push(response);
    }
    let mut run = Polled::drive(service);
    let run = move |calls| {
        black_box(&others);
        run(calls);
    };
    Subject { what, whose, run: Box::new(run) }
}

/// A request's scope, while its parent has others.
fn scopes(scopes: u32) -> Vec<Subject> {
    let app = Scope::root("app");
    let open: Vec<_> = (1..scopes).map(|_| app.child("request")).collect();
    let layers = ServiceBuilder::new().layer(ContextLayer::ambient(app)).map_err(Error::Service);
    let Subject { what, whose, mut run } = subject("context, ambient", "ziggurat", layers.service(Echo));
    let run = move |calls| {
        black_box(&open);
        run(calls);
    };
    vec![Subject { what, whose, run: Box::new(run) }]
}
