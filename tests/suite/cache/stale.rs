//! Stale responses, and operations on the handle.

use http::{Request, Response};
use tokio::{task::yield_now, time::advance};
use tower::{Layer, ServiceBuilder};
use ziggurat::{
    Reason, Reject, Scope,
    cache::{CacheHandle, CacheLayer, HttpStorable, Stale, http_key},
    context::ContextLayer,
    timeout::TimeoutLayer,
};

use super::*;

const FAILED: Outcome = Err(Error::Service("down"));

/// Calls `service`, and lets `backend` respond to call number `call` with `outcome`.
fn fetch<S>(service: &S, backend: &Backend, call: usize, outcome: Outcome) -> Outcome
where
    S: Service<&'static str, Response = String, Error = Error<&'static str>> + Clone,
{
    let mut task = task(service, "a");
    assert!(task.poll().is_pending(), "the answer came from memory");
    backend.answer(call, outcome);
    answered(task.poll())
}

fn hit<S>(service: &S) -> String
where
    S: Service<&'static str, Response = String, Error = Error<&'static str>> + Clone,
{
    answered(task(service, "a").poll()).unwrap()
}

/// Shows: C6
#[tokio::test(start_paused = true)]
async fn a_stale_answer_stands_in_for_a_failure_until_its_window_ends() {
    let (backend, strict) = backend();
    let layer = CacheLayer::new(10, SECOND, itself).stale_if_error(5 * SECOND);
    let (cache, service) = (layer.handle(), layer.layer(strict));
    assert!(fetch(&service, &backend, 0, FAILED).is_err(), "there is nothing yet");
    assert_eq!(fetch(&service, &backend, 1, ok("first")).unwrap(), "first");
    advance(SECOND).await;
    assert_eq!(fetch(&service, &backend, 2, FAILED).unwrap(), "first");
    advance(5 * SECOND - INSTANT).await;
    assert_eq!(fetch(&service, &backend, 3, FAILED).unwrap(), "first");
    assert_eq!(cache.len(), 1);
    advance(INSTANT).await;
    assert!(fetch(&service, &backend, 4, FAILED).is_err());
    assert_eq!(cache.len(), 0);
    assert_eq!(cache.stats().stale, 2);
}

/// A request that gets a stale answer because its call failed is one request, although two counters have it.
///
/// Shows: C6
#[tokio::test(start_paused = true)]
async fn the_rate_counts_each_request_once() {
    let (backend, strict) = backend();
    let layer = CacheLayer::new(10, SECOND, itself).stale_if_error(5 * SECOND);
    let (cache, service) = (layer.handle(), layer.layer(strict));
    let mut joined = [(); 3].map(|()| task(&service, "a"));
    assert!(joined.iter_mut().all(|call| call.poll().is_pending()));
    backend.answer(0, ok("first"));
    for call in &mut joined {
        assert_eq!(answered(call.poll()).unwrap(), "first");
    }
    assert_eq!(hit(&service), "first");
    advance(SECOND).await;
    assert_eq!(fetch(&service, &backend, 1, FAILED).unwrap(), "first");

    let stats = cache.stats();
    assert_eq!((stats.hits, stats.misses, stats.shared, stats.stale, stats.stale_on_error), (1, 2, 2, 1, 1));
    assert_eq!(stats.hit_rate(), Some(2.0 / 5.0));
}

/// Shows: C6
#[tokio::test(start_paused = true)]
async fn those_who_wait_get_the_stale_answer_too_and_a_success_replaces_it() {
    let (backend, strict) = backend();
    let service = CacheLayer::new(10, SECOND, itself).stale_if_error(5 * SECOND).layer(strict);
    fetch(&service, &backend, 0, ok("first")).unwrap();
    advance(SECOND).await;
    let (mut leader, mut waiter) = (task(&service, "a"), task(&service, "a"));
    assert!(leader.poll().is_pending());
    assert!(waiter.poll().is_pending());
    backend.answer(1, FAILED);
    assert_eq!(answered(leader.poll()).unwrap(), "first");
    assert_eq!(answered(waiter.poll()).unwrap(), "first");
    assert_eq!(fetch(&service, &backend, 2, ok("second")).unwrap(), "second");
    assert_eq!(hit(&service), "second");
}

/// Shows: C6
#[tokio::test(start_paused = true)]
async fn a_stale_answer_stands_in_for_a_rejection_even_one_that_says_nothing_about_the_service() {
    let overloaded = || Reject::reject(LayerInfo::new("limit").reject(Reason::Overloaded { limit: 1 }));
    let (backend, strict) = backend();
    let service = CacheLayer::new(10, SECOND, itself).stale_if_error(Duration::MAX).layer(strict);
    fetch(&service, &backend, 0, ok("first")).unwrap();
    advance(1_000_000 * SECOND).await;
    assert_eq!(fetch(&service, &backend, 1, overloaded()).unwrap(), "first");
}

/// Shows: C6
#[tokio::test(start_paused = true)]
async fn an_error_of_readiness_is_a_failure_as_any_other() {
    #[derive(Clone)]
    struct Broken<S>(S, Arc<AtomicBool>);
    impl<S: Service<&'static str, Error = Error<&'static str>>> Service<&'static str> for Broken<S> {
        type Response = S::Response;
        type Error = S::Error;
        type Future = S::Future;
        fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
            if self.1.load(SeqCst) { Poll::Ready(Err(Error::Service("broken"))) } else { self.0.poll_ready(cx) }
        }
        fn call(&mut self, request: &'static str) -> S::Future {
            self.0.call(request)
        }
    }
    let (broken, (_, service)) = (Arc::new(AtomicBool::new(true)), counter());
    let layer = CacheLayer::new(10, SECOND, itself).stale_if_error(SECOND);
    let service = layer.layer(Broken(service, Arc::clone(&broken)));
    assert!(matches!(service.clone().oneshot("a").await, Err(Error::Service("broken"))));
    broken.store(false, SeqCst);
    assert_eq!(service.clone().oneshot("a").await.unwrap(), "a 1");
    broken.store(true, SeqCst);
    advance(SECOND).await;
    assert_eq!(service.clone().oneshot("a").await.unwrap(), "a 1");
}

/// Shows: C6
#[tokio::test(start_paused = true)]
async fn while_one_fetch_runs_behind_them_all_get_the_stale_answer_at_once() {
    let (backend, strict) = backend();
    let layer = CacheLayer::new(10, SECOND, itself).stale_while_revalidate(5 * SECOND);
    let (cache, service) = (layer.handle(), layer.layer(strict));
    fetch(&service, &backend, 0, ok("first")).unwrap();
    advance(SECOND).await;
    for _ in 0..10 {
        assert_eq!(hit(&service), "first");
        yield_now().await;
    }
    assert_eq!(backend.calls(), 2, "one fetch for all");
    assert_eq!(cache.len(), 1, "a stale entry is still useful");
    backend.answer(1, ok("second"));
    assert_eq!(hit(&service), "first");
    yield_now().await;
    assert_eq!(hit(&service), "second");
    let stats = cache.stats();
    assert_eq!((stats.stale, stats.refreshes, stats.hits, stats.misses, stats.stored), (11, 1, 1, 1, 2));
}

/// Shows: C6
#[tokio::test(start_paused = true)]
async fn past_its_window_a_stale_answer_is_given_to_nobody() {
    let (backend, strict) = backend();
    let service = CacheLayer::new(10, SECOND, itself).stale_while_revalidate(5 * SECOND).layer(strict);
    fetch(&service, &backend, 0, ok("first")).unwrap();
    advance(6 * SECOND - INSTANT).await;
    assert_eq!(hit(&service), "first");
    yield_now().await;
    // The fetch that this started hangs. A caller that arrives after the window waits for it.
    advance(INSTANT).await;
    let mut late = task(&service, "a");
    assert!(late.poll().is_pending());
    assert_eq!(backend.calls(), 2);
    backend.answer(1, ok("second"));
    yield_now().await;
    assert_eq!(answered(late.poll()).unwrap(), "second");
}

/// Shows: C6
#[tokio::test(start_paused = true)]
async fn a_fetch_that_fails_is_told_and_leaves_the_stale_answer_and_the_next_one_waits_a_second() {
    let (backend, strict) = backend();
    let (failures, observer) = failed_refreshes();
    let layer = CacheLayer::new(10, SECOND, itself).stale_while_revalidate(20 * SECOND).observer(observer);
    let (cache, service) = (layer.handle(), layer.layer(strict));
    fetch(&service, &backend, 0, ok("first")).unwrap();
    advance(SECOND).await;
    for call in 1..4 {
        assert_eq!(hit(&service), "first");
        yield_now().await;
        assert_eq!(backend.calls(), call + 1);
        backend.answer(call, FAILED);
        yield_now().await;
        advance(SECOND - INSTANT).await;
        assert_eq!(hit(&service), "first");
        yield_now().await;
        assert_eq!(backend.calls(), call + 1, "it pauses");
        advance(INSTANT).await;
    }
    let stats = cache.stats();
    assert_eq!((stats.stale, stats.refreshes), (6, 3), "a fetch is neither a hit nor a miss");
    assert_eq!(*failures.lock().unwrap(), ["error: down"; 3]);
}

/// Shows: C6, F3
#[tokio::test(start_paused = true)]
async fn a_fetch_that_failed_is_not_made_again_before_the_service_asked_for_it() {
    let (backend, strict) = backend();
    let later = |_: Result<&String, &Error<&'static str>>| ziggurat::Class::Failure {
        transient: true,
        retry_after: Some(7 * SECOND),
    };
    let classify = move |outcome: Result<&String, &Error<&'static str>>| match outcome {
        Ok(_) => ziggurat::Class::Success,
        failed => later(failed),
    };
    let layer = CacheLayer::new(10, SECOND, itself).classify(classify).stale_while_revalidate(20 * SECOND);
    let service = layer.layer(strict);
    fetch(&service, &backend, 0, ok("first")).unwrap();
    advance(SECOND).await;
    hit(&service);
    yield_now().await;
    backend.answer(1, FAILED);
    yield_now().await;
    for (wait, calls) in [(7 * SECOND - INSTANT, 2), (INSTANT, 3)] {
        advance(wait).await;
        hit(&service);
        yield_now().await;
        assert_eq!(backend.calls(), calls);
    }
}

/// A request's scope is cancelled when the request ends, so a service that observes it would never finish.
///
/// Shows: C6
#[tokio::test(start_paused = true)]
async fn a_fetch_behind_a_request_belongs_to_the_application() {
    struct Tenant(&'static str);
    let (backend, strict) = backend();
    let heeds = service_fn(move |request: &'static str| {
        let call: BoxFuture = Box::pin(strict.clone().oneshot(request));
        async move {
            let scope = Scope::current().unwrap();
            tokio::select! {
                biased;
                () = scope.cancelled() => Err(Error::Service("cancelled")),
                outcome = call => {
                    outcome.map(|answer| format!("{answer} of {}", scope.require::<Tenant>().unwrap().0))
                }
            }
        }
    });
    let app = Scope::root("app");
    let layer = CacheLayer::new(10, SECOND, itself).stale_while_revalidate(20 * SECOND);
    let service = ServiceBuilder::new()
        .layer(ContextLayer::ambient(app.clone()).state(|_: &&'static str| Tenant("acme")))
        .layer(layer)
        .service(heeds);
    assert_eq!(fetch(&service, &backend, 0, ok("first")).unwrap(), "first of acme");
    advance(SECOND).await;
    assert_eq!(hit(&service), "first of acme");
    yield_now().await;
    assert_eq!(backend.calls(), 2);
    advance(SECOND).await;
    backend.answer(1, ok("second"));
    yield_now().await;
    assert_eq!(hit(&service), "second of acme");

    // And is closed with it.
    advance(SECOND).await;
    assert_eq!(hit(&service), "second of acme");
    yield_now().await;
    assert_eq!(backend.calls(), 3);
    app.close().await.unwrap();
    assert!(backend.was_dropped(2));
}

/// Shows: C6
#[tokio::test(start_paused = true)]
async fn a_stale_answer_can_be_told_from_a_fresh_one() {
    let down = Arc::new(AtomicBool::new(false));
    let service = {
        let down = Arc::clone(&down);
        service_fn(move |_: Request<()>| {
            let status = if down.load(SeqCst) { 500 } else { 200 };
            ready(Ok::<_, Error<&'static str>>(Response::builder().status(status).body("body").unwrap()))
        })
    };
    let inner = CacheLayer::new(10, SECOND, http_key::<()>).classify(HttpStorable).stale_if_error(9 * SECOND);
    let outer = CacheLayer::new(10, SECOND, http_key::<()>).classify(HttpStorable);
    let cache = outer.handle();
    let service = ServiceBuilder::new().layer(outer).layer(inner.mark_stale(Stale::mark)).service(service);
    for (wait, is_down, stale) in [(SECOND, false, None), (2 * SECOND, true, Some(SECOND)), (SECOND, false, None)] {
        advance(wait).await;
        down.store(is_down, SeqCst);
        let response = service.clone().oneshot(Request::get("/").body(()).unwrap()).await.unwrap();
        assert_eq!(response.status(), 200);
        assert_eq!(response.extensions().get().map(Stale::expired_for), stale);
        assert_eq!(cache.is_empty(), stale.is_some(), "a cache outside does not keep it");
    }

    // A response of any other type, behind which a fresh one is fetched.
    let (_, service) = counter();
    let layer = CacheLayer::new(10, SECOND, itself).stale_while_revalidate(9 * SECOND);
    let layer =
        layer.mark_stale(|answer: &mut String, stale| answer.push_str(&format!(", {:?} old", stale.expired_for())));
    let service = layer.layer(service);
    assert_eq!(service.clone().oneshot("a").await.unwrap(), "a 1");
    advance(3 * SECOND).await;
    assert_eq!(service.clone().oneshot("a").await.unwrap(), "a 1, 2s old");
}

/// Shows: C6
#[tokio::test(start_paused = true)]
async fn a_failure_is_an_answer_for_a_time_of_its_own() {
    let (backend, strict) = backend();
    let layer = CacheLayer::new(10, 60 * SECOND, itself).failure_ttl(SECOND);
    let (cache, service) = (layer.handle(), layer.layer(strict));
    assert!(matches!(fetch(&service, &backend, 0, FAILED), Err(Error::Service("down"))));
    let again = answered(task(&service, "a").poll());
    assert!(
        matches!(ziggurat::rejection(&again).unwrap().reason(), Reason::Shared { message, .. } if &**message == "down")
    );
    assert_eq!((cache.stats().hits, backend.calls()), (1, 1));
    advance(SECOND).await;
    // A rejection concerns only this moment.
    let overloaded = Reject::reject(LayerInfo::new("limit").reject(Reason::Overloaded { limit: 1 }));
    assert!(fetch(&service, &backend, 1, overloaded).is_err());
    assert_eq!(fetch(&service, &backend, 2, ok("up")).unwrap(), "up");
    advance(60 * SECOND).await;
    assert!(fetch(&service, &backend, 3, FAILED).is_err());
    cache.invalidate(&"a");
    assert_eq!(fetch(&service, &backend, 4, ok("up")).unwrap(), "up");
}

/// Shows: C6
#[tokio::test(start_paused = true)]
async fn a_failure_with_a_ttl_does_not_displace_a_stale_answer_that_is_of_use() {
    let (backend, strict) = backend();
    let layer = CacheLayer::new(10, SECOND, itself).failure_ttl(60 * SECOND).stale_if_error(SECOND);
    let service = layer.clone_errors().layer(strict);
    fetch(&service, &backend, 0, ok("first")).unwrap();
    advance(SECOND).await;
    assert_eq!(fetch(&service, &backend, 1, FAILED).unwrap(), "first");
    advance(SECOND).await;
    assert!(matches!(fetch(&service, &backend, 2, FAILED), Err(Error::Service("down"))));
    assert!(matches!(answered(task(&service, "a").poll()), Err(Error::Service("down"))), "as it was");
}

/// Shows: C6
#[tokio::test(start_paused = true)]
async fn an_invalidation_by_predicate_beats_calls_under_way_too() {
    let (backend, strict) = backend();
    let layer = CacheLayer::new(1_000, 60 * SECOND, itself);
    let (cache, service) = (layer.handle(), layer.layer(strict));
    for (call, request) in ["acme/1", "acme/2", "globex/1"].into_iter().enumerate() {
        let mut stored = task(&service, request);
        assert!(stored.poll().is_pending());
        backend.answer(call, ok(request));
        answered(stored.poll()).unwrap();
    }
    let mut calls = ["acme/3", "globex/3"].map(|request| task(&service, request));
    for call in &mut calls {
        assert!(call.poll().is_pending());
    }
    let of_acme = |key: &&str| {
        // It may use the cache.
        assert!(!cache.is_empty());
        key.starts_with("acme/")
    };
    assert_eq!(cache.invalidate_if(of_acme), 2);
    for (call, task) in calls.iter_mut().enumerate() {
        backend.answer(3 + call, ok("late"));
        assert_eq!(answered(task.poll()).unwrap(), "late");
    }
    assert_eq!(cache.len(), 2, "both of globex");
    for request in ["globex/1", "globex/3"] {
        assert!(task(&service, request).poll().is_ready());
    }
    for request in ["acme/1", "acme/2", "acme/3"] {
        assert!(task(&service, request).poll().is_pending());
    }
}

/// The request that started the fetch is gone, with its deadline and the last handle of its scope, and the fetch
/// continues.
///
/// Shows: C6
#[tokio::test(start_paused = true)]
async fn a_fetch_has_a_scope_of_its_own_and_neither_the_deadline_nor_the_end_of_its_request() {
    let (backend, strict) = backend();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let spy = {
        let seen = Arc::clone(&seen);
        move |request: &'static str| {
            let scope = Scope::current().map(|scope| scope.name().to_owned());
            seen.lock().unwrap().push((scope, ziggurat::Deadline::current().is_some()));
            request
        }
    };
    let service = ServiceBuilder::new()
        .layer(TimeoutLayer::new(SECOND))
        .layer(CacheLayer::new(10, SECOND, itself).stale_while_revalidate(5 * SECOND))
        .map_request(spy)
        .service(strict);
    fetch(&service, &backend, 0, ok("first")).unwrap();
    advance(SECOND).await;
    let mut request = TestTask::new(Scope::root("request").within(service.clone().oneshot("a")));
    assert_eq!(answered(request.poll()).unwrap(), "first");
    drop(request);
    yield_now().await;
    advance(2 * SECOND).await;
    backend.answer(1, ok("second"));
    yield_now().await;
    assert_eq!(hit(&service), "second");
    assert_eq!(*seen.lock().unwrap(), [(None, true), (Some("refresh".to_owned()), false)]);
}

/// Without a runtime a background fetch is not possible.
#[test]
fn outside_of_a_runtime_who_finds_a_stale_answer_waits_for_a_fresh_one() {
    let (backend, strict) = backend();
    let service = CacheLayer::new(10, INSTANT, itself).stale_while_revalidate(Duration::MAX).layer(strict);
    fetch(&service, &backend, 0, ok("first")).unwrap();
    // Here the clock is the system's.
    let stored = std::time::Instant::now();
    while stored.elapsed() < INSTANT {}
    assert_eq!(fetch(&service, &backend, 1, ok("second")).unwrap(), "second");
}

/// Shows: C6
#[tokio::test(start_paused = true)]
async fn an_invalidation_beats_a_call_that_was_under_way() {
    let (backend, strict) = backend();
    let layer = CacheLayer::new(10, 10 * SECOND, itself).stale_if_error(SECOND);
    let (cache, service) = (layer.handle(), layer.layer(strict));
    let ways: [fn(&CacheHandle<_, _>); 2] = [|cache| cache.invalidate(&"a"), |cache| cache.clear()];
    for (round, forget) in ways.into_iter().enumerate() {
        let (mut old, mut waiter) = (task(&service, "a"), task(&service, "a"));
        assert!(old.poll().is_pending());
        assert!(waiter.poll().is_pending());
        forget(&cache);
        let mut new = task(&service, "a");
        assert!(new.poll().is_pending());
        assert_eq!(backend.calls(), 2 * round + 2, "a later caller starts a call");
        // Whichever of the two ends last, the older one is never stored.
        backend.answer(2 * round, ok("old"));
        assert_eq!(answered(old.poll()).unwrap(), "old");
        assert_eq!(answered(waiter.poll()).unwrap(), "old");
        assert!(cache.is_empty());
        backend.answer(2 * round + 1, ok("new"));
        assert_eq!(answered(new.poll()).unwrap(), "new");
        assert_eq!(hit(&service), "new");
        forget(&cache);
        assert!(cache.is_empty());
    }
}

/// Shows: C6
#[tokio::test(start_paused = true)]
async fn what_was_invalidated_during_a_call_does_not_stand_in_for_its_failure() {
    let (backend, strict) = backend();
    let layer = CacheLayer::new(10, SECOND, itself).stale_if_error(10 * SECOND);
    let (cache, service) = (layer.handle(), layer.layer(strict));
    fetch(&service, &backend, 0, ok("first")).unwrap();
    advance(SECOND).await;
    let mut call = task(&service, "a");
    assert!(call.poll().is_pending());
    cache.invalidate(&"a");
    backend.answer(1, FAILED);
    assert!(answered(call.poll()).is_err());
}

/// Shows: C6
#[tokio::test(start_paused = true)]
async fn the_statistics_count_each_request_for_what_it_got() {
    let (backend, strict) = backend();
    let layer = CacheLayer::new(10, SECOND, itself);
    let heard = Arc::new(Mutex::new(Vec::new()));
    let observer = {
        let heard = Arc::clone(&heard);
        move |info: &LayerInfo, event: &LayerEvent<'_>| {
            assert_eq!(info.name(), Some("users"));
            heard.lock().unwrap().push(format!("{event:?}"));
        }
    };
    let layer = layer.named("users").observer(observer).stale_while_revalidate(SECOND);
    let (cache, service) = (layer.handle(), layer.layer(strict));
    let (mut leader, mut waiter, mut late) = (task(&service, "a"), task(&service, "a"), looked_up(&service));
    assert!(leader.poll().is_pending());
    assert!(waiter.poll().is_pending());
    backend.answer(0, ok("first"));
    answered(leader.poll()).unwrap();
    answered(waiter.poll()).unwrap();
    answered(late.poll()).unwrap();
    hit(&service);
    advance(SECOND).await;
    hit(&service);
    let stats = cache.stats();
    assert_eq!((stats.hits, stats.misses, stats.shared, stats.stale), (2, 1, 1, 1));
    assert_eq!((stats.refreshes, stats.stored, stats.evicted), (1, 1, 0));
    assert_eq!(*heard.lock().unwrap(), ["Miss", "Stored", "Shared", "Hit", "Hit", "Stale { reason: \"revalidate\" }"]);
}

/// Returns a call that has already missed the cache, and is not polled yet.
fn looked_up<S>(service: &S) -> TestTask<S::Future>
where
    S: Service<&'static str, Response = String, Error = Error<&'static str>> + Clone,
{
    TestTask::new(service.clone().call("a"))
}
