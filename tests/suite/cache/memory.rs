//! Storage: for whom, for how long, and how much.

use std::convert::Infallible;

use http::{Request, Response, StatusCode};
use tokio::time::{advance, sleep};
use tower::{Layer, util::BoxCloneSyncService};
use ziggurat::{
    Class, HttpStatus, Scope,
    cache::{CacheLayer, scoped_key},
};

use super::*;

/// Shows: C1
#[tokio::test(start_paused = true)]
async fn a_second_request_is_answered_from_memory_and_another_key_computes() {
    let (calls, service) = counter();
    let service = CacheLayer::new(10, 300 * SECOND, itself).layer(service);
    assert_eq!(service.clone().oneshot("a").await.unwrap(), "a 1");
    assert_eq!(service.clone().oneshot("a").await.unwrap(), "a 1");
    assert_eq!(service.clone().oneshot("b").await.unwrap(), "b 2");
    assert_eq!(service.clone().oneshot("a").await.unwrap(), "a 1");
    assert_eq!(calls.load(SeqCst), 2);
}

/// Shows: C1
#[tokio::test(start_paused = true)]
async fn a_response_expires_exactly_at_the_ttl_after_it_arrived() {
    let (_, service) = counter();
    let slow = service_fn(move |request| {
        let service = service.clone();
        async move {
            sleep(SECOND).await;
            service.oneshot(request).await
        }
    });
    let service = CacheLayer::new(10, 5 * SECOND, itself).layer(slow);
    assert_eq!(service.clone().oneshot("a").await.unwrap(), "a 1");
    advance(5 * SECOND - INSTANT).await;
    assert_eq!(service.clone().oneshot("a").await.unwrap(), "a 1");
    advance(INSTANT).await;
    assert_eq!(service.clone().oneshot("a").await.unwrap(), "a 2");
}

/// Shows: C1
#[tokio::test(start_paused = true)]
async fn a_request_without_a_key_goes_past_the_cache() {
    let (_, service) = counter();
    let layer = CacheLayer::new(10, SECOND, |request: &&'static str| request.strip_prefix('/'));
    let (cache, service) = (layer.handle(), layer.layer(Strict::new(service)));
    assert_eq!(service.clone().oneshot("a").await.unwrap(), "a 1");
    assert_eq!(service.clone().oneshot("a").await.unwrap(), "a 2");
    let stats = cache.stats();
    assert_eq!((cache.len(), stats.bypassed, stats.hits, stats.misses, stats.stored), (0, 2, 0, 0, 0));
    assert_eq!(service.clone().oneshot("/a").await.unwrap(), "/a 3");
    assert_eq!(service.clone().oneshot("/a").await.unwrap(), "/a 3");
}

/// Shows: C2
#[tokio::test(start_paused = true)]
async fn the_ttl_can_be_a_function_of_key_and_response() {
    let (_, service) = counter();
    let ttl = |key: &&'static str, response: &String| match (*key, &**response) {
        ("never", _) => None,
        (_, "a 1") => Some(SECOND),
        _ => Some(Duration::MAX),
    };
    let service = CacheLayer::new(10, ttl, itself).layer(service);
    let get = |key| service.clone().oneshot(key);
    assert_eq!(get("a").await.unwrap(), "a 1");
    assert_eq!(get("never").await.unwrap(), "never 2");
    assert_eq!(get("never").await.unwrap(), "never 3");
    assert_eq!(get("a").await.unwrap(), "a 1");
    advance(SECOND).await;
    assert_eq!(get("a").await.unwrap(), "a 4");
    advance(1_000_000 * SECOND).await;
    assert_eq!(get("a").await.unwrap(), "a 4");
}

/// Shows: C2
#[tokio::test(start_paused = true)]
async fn the_ttl_can_come_from_scoped_state_and_change_while_the_program_runs() {
    struct CacheConfig {
        ttl: Duration,
    }
    let app = Scope::root("app").with(CacheConfig { ttl: SECOND });
    let (_, service) = counter();
    let ttl = |_: &_, _: &_| Some(Scope::current()?.get::<CacheConfig>()?.ttl);
    let service = CacheLayer::new(10, ttl, itself).layer(service);
    let get = || app.within(service.clone().oneshot("a"));
    assert_eq!(get().await.unwrap(), "a 1");
    advance(SECOND).await;
    app.update(|_: &CacheConfig| CacheConfig { ttl: 600 * SECOND }).unwrap();
    assert_eq!(get().await.unwrap(), "a 2");
    advance(599 * SECOND).await;
    assert_eq!(get().await.unwrap(), "a 2");
    advance(SECOND).await;
    assert_eq!(get().await.unwrap(), "a 3");
    // Outside any scope this function gives no ttl: the response is not stored, and the old one is gone.
    advance(600 * SECOND).await;
    assert_eq!(service.clone().oneshot("a").await.unwrap(), "a 4");
    assert_eq!(get().await.unwrap(), "a 5");
}

/// Shows: C3
#[tokio::test(start_paused = true)]
async fn it_holds_no_more_than_its_capacity_and_keeps_what_is_used() {
    let service = service_fn(|number: u32| ready(Ok::<_, Error<Infallible>>(number)));
    let layer = CacheLayer::new(100, Duration::MAX, |number: &u32| Some(*number));
    let (cache, service) = (layer.handle(), layer.layer(service));
    for number in 1..10_000 {
        service.clone().oneshot(0).await.unwrap();
        service.clone().oneshot(number).await.unwrap();
        assert!(cache.len() <= 100);
    }
    let stats = cache.stats();
    assert_eq!((stats.hits, stats.misses), (9_998, 10_000));
    assert_eq!(stats.stored - stats.evicted, cache.len() as u64);
    assert!(cache.len() >= 90, "{}", cache.len());
}

/// Shows: C3
#[tokio::test(start_paused = true)]
async fn a_capacity_can_be_a_weight() {
    let service = service_fn(|size: usize| ready(Ok::<_, Error<Infallible>>("x".repeat(size))));
    let layer = CacheLayer::new(1_000, SECOND, |size: &usize| Some(*size)).weigh(|key: &usize, response: &String| {
        assert_eq!(*key, response.len());
        response.len() as u64
    });
    let (cache, service) = (layer.handle(), layer.layer(service));
    for size in 1..=100 {
        service.clone().oneshot(size).await.unwrap();
    }
    assert!(cache.len() <= 44, "1 + 2 + .. + 44 is 990, and these are the lightest of all: {}", cache.len());
    service.clone().oneshot(5_000).await.unwrap();
    service.clone().oneshot(5_000).await.unwrap();
    assert_eq!(cache.stats().hits, 0, "an entry that is too heavy is not stored");
}

/// Shows: C3
#[tokio::test(start_paused = true)]
async fn what_has_expired_does_not_count_and_is_freed() {
    #[derive(Clone)]
    struct Answer(#[expect(dead_code, reason = "counted")] Arc<()>);
    let alive = Arc::new(());
    let service = {
        let alive = Arc::clone(&alive);
        service_fn(move |_: u32| ready(Ok::<_, Error<Infallible>>(Answer(Arc::clone(&alive)))))
    };
    let layer = CacheLayer::new(1_000_000, SECOND, |number: &u32| Some(*number));
    let (cache, service) = (layer.handle(), layer.layer(service));
    let unused = Arc::strong_count(&alive);
    for number in 0..1_000 {
        service.clone().oneshot(number).await.unwrap();
    }
    assert_eq!(cache.len(), 1_000);
    advance(SECOND).await;
    assert_eq!(cache.len(), 0);
    assert_eq!(Arc::strong_count(&alive), unused, "`len` frees all that has expired");

    for number in 0..10_000 {
        service.clone().oneshot(number).await.unwrap();
        advance(SECOND).await;
        assert!(Arc::strong_count(&alive) <= unused + 2, "unique keys that expire do not pile up");
    }
}

/// Shows: C5
#[tokio::test(start_paused = true)]
async fn a_hit_needs_neither_readiness_nor_a_healthy_backend() {
    let (backend, strict) = backend();
    let service = CacheLayer::new(10, SECOND, itself).layer(strict);
    let mut first = task(&service, "a");
    assert!(first.poll().is_pending());
    backend.answer(0, ok("done"));
    assert_eq!(answered(first.poll()).unwrap(), "done");

    backend.is_busy.store(true, SeqCst);
    assert_eq!(answered(task(&service, "a").poll()).unwrap(), "done");
    // A miss waits for readiness, in its response future.
    let mut miss = task(&service, "b");
    assert!(miss.poll().is_pending());
    assert_eq!(backend.calls(), 1);
    backend.is_busy.store(false, SeqCst);
    assert!(miss.poll().is_pending());
    backend.answer(1, ok("ready"));
    assert_eq!(answered(miss.poll()).unwrap(), "ready");
}

/// Without the tenant in the key, two tenants would share a cache entry.
///
/// Shows: C7
#[tokio::test(start_paused = true)]
async fn a_scoped_key_never_answers_one_tenant_with_what_is_anothers() {
    #[derive(PartialEq, Eq, Hash)]
    struct Tenant(&'static str);
    let service = service_fn(|request: &'static str| {
        let tenant = Scope::current().and_then(|scope| scope.get::<Tenant>());
        let name = tenant.map_or("nobody", |tenant| tenant.0);
        ready(Ok::<_, Error<Infallible>>(format!("{request} of {name}")))
    });
    let layer = CacheLayer::new(10, SECOND, scoped_key(|_: &Tenant, request: &&'static str| Some(*request)));
    let (cache, service) = (layer.handle(), layer.layer(service));
    let app = Scope::root("app");
    for _ in 0..2 {
        for name in ["acme", "globex"] {
            // Equal, but a new value each time, as a layer creates it from each request.
            let request = app.child("request").with(Tenant(name));
            let answer = request.within(service.clone().oneshot("/bill")).await.unwrap();
            assert_eq!(answer, format!("/bill of {name}"));
        }
    }
    assert_eq!((cache.stats().misses, cache.stats().hits), (2, 2));

    // Without a tenant nothing is shared, with a scope or without.
    assert_eq!(app.within(service.clone().oneshot("/bill")).await.unwrap(), "/bill of nobody");
    assert_eq!(service.clone().oneshot("/bill").await.unwrap(), "/bill of nobody");
    assert_eq!((cache.stats().misses, cache.stats().hits, cache.len()), (2, 2, 2));
    cache.invalidate(&(Arc::new(Tenant("acme")), "/bill"));
    assert_eq!(cache.len(), 1);
}

/// The classifier distinguishes statuses, and a response that it calls a failure is not stored.
#[tokio::test(start_paused = true)]
async fn with_http_status_a_500_is_not_stored_and_a_404_is() {
    let calls = Arc::new(AtomicUsize::new(0));
    let service = {
        let calls = Arc::clone(&calls);
        service_fn(move |request: Request<()>| {
            calls.fetch_add(1, SeqCst);
            let status = request.uri().path()[1..].parse::<StatusCode>().unwrap();
            ready(Ok::<_, Error<Infallible>>(Response::builder().status(status).body("body").unwrap()))
        })
    };
    let key = |request: &Request<()>| Some(request.uri().clone());
    // Boxed, as a struct keeps a stack.
    let service = BoxCloneSyncService::new(CacheLayer::new(10, SECOND, key).classify(HttpStatus).layer(service));
    for (status, made) in [(200, 1), (404, 1), (500, 2), (503, 2), (429, 2)] {
        calls.store(0, SeqCst);
        for _ in 0..2 {
            let request = Request::get(format!("/{status}")).body(()).unwrap();
            assert_eq!(service.clone().oneshot(request).await.unwrap().status(), status);
        }
        assert_eq!(calls.load(SeqCst), made, "{status}");
    }
}

/// A response that is neither success nor failure is not stored, and no stale one takes its place.
#[tokio::test(start_paused = true)]
async fn what_the_classifier_ignores_passes_through() {
    let (_, service) = counter();
    let classify = |outcome: Result<&String, &Error<&'static str>>| match outcome {
        Ok(first) if first == "a 1" => Class::Success,
        _ => Class::Ignored,
    };
    let layer = CacheLayer::new(10, SECOND, itself).classify(classify).stale_if_error(SECOND);
    let service = layer.layer(service);
    assert_eq!(service.clone().oneshot("a").await.unwrap(), "a 1");
    assert_eq!(service.clone().oneshot("a").await.unwrap(), "a 1");
    advance(SECOND).await;
    assert_eq!(service.clone().oneshot("a").await.unwrap(), "a 2");
    assert_eq!(service.clone().oneshot("a").await.unwrap(), "a 3");
}

/// All services and clones of one layer are one cache. Another layer is another cache.
#[tokio::test(start_paused = true)]
async fn the_memory_belongs_to_the_layer() {
    let (_, service) = counter();
    let layer = CacheLayer::new(10, SECOND, itself);
    let other = CacheLayer::new(10, SECOND, itself).layer(service.clone());
    assert_eq!(layer.layer(service.clone()).oneshot("a").await.unwrap(), "a 1");
    assert_eq!(layer.layer(service.clone()).oneshot("a").await.unwrap(), "a 1");
    assert_eq!(layer.clone().named("again").layer(service.clone()).oneshot("a").await.unwrap(), "a 1");
    assert_eq!(other.oneshot("a").await.unwrap(), "a 2");
}

/// Only a background refresh requires `Send`.
#[tokio::test(start_paused = true)]
async fn a_service_that_is_not_send_will_do() {
    use std::rc::Rc;
    let service = service_fn(|request: Rc<str>| ready(Ok::<_, Error<Infallible>>(request)));
    let service = CacheLayer::new(10, SECOND, |request: &Rc<str>| Some(Rc::clone(request))).layer(service);
    let request: Rc<str> = "a".into();
    let answer = service.clone().oneshot(Rc::clone(&request)).await.unwrap();
    assert!(Rc::ptr_eq(&answer, &request));
    assert!(Rc::ptr_eq(&service.oneshot("a".into()).await.unwrap(), &request));
}
