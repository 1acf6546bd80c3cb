//! Of all callers that miss a key at once, one calls.

use std::{
    convert::Infallible,
    panic::{AssertUnwindSafe, catch_unwind},
    task::Wake,
};

use http::{Request, Response};
use tokio::{
    sync::Barrier,
    task::{JoinSet, yield_now},
    time::advance,
};
use tower::{Layer, ServiceBuilder, util::BoxCloneSyncService};
use ziggurat::{
    Class, HttpStatus, LayerInfo, Reason, Reject, Scope,
    cache::{CacheLayer, scoped_key},
    timeout::TimeoutLayer,
};

use super::*;

/// Shows: C4
#[tokio::test(start_paused = true)]
async fn a_hundred_misses_at_once_make_one_call() {
    let (backend, strict) = backend();
    let service = CacheLayer::new(10, SECOND, itself).layer(strict);
    let mut calls: Vec<_> = (0..100).map(|_| task(&service, "a")).collect();
    for call in &mut calls {
        assert!(call.poll().is_pending());
    }
    assert_eq!(backend.calls(), 1);
    backend.answer(0, ok("done"));
    for call in &mut calls {
        assert_eq!(answered(call.poll()).unwrap(), "done");
    }
    assert_eq!(backend.calls(), 1);
}

/// Shows: C4
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn misses_on_many_threads_make_one_call_for_each_key() {
    let calls = Arc::new(AtomicUsize::new(0));
    let service = {
        let calls = Arc::clone(&calls);
        service_fn(move |key: u32| {
            calls.fetch_add(1, SeqCst);
            async move {
                yield_now().await;
                Ok::<_, Error<Infallible>>(key)
            }
        })
    };
    let layer = CacheLayer::new(10_000, Duration::MAX, |key: &u32| Some(*key));
    let (cache, service) = (layer.handle(), layer.layer(service));
    let (start, mut tasks) = (Arc::new(Barrier::new(64)), JoinSet::new());
    for _ in 0..64 {
        let (service, start) = (service.clone(), Arc::clone(&start));
        tasks.spawn(async move {
            start.wait().await;
            for key in 0..200 {
                assert_eq!(service.clone().oneshot(key).await.unwrap(), key);
            }
        });
    }
    tasks.join_all().await;
    assert_eq!(calls.load(SeqCst), 200);
    let stats = cache.stats();
    assert_eq!((stats.misses, stats.hits + stats.shared), (200, 63 * 200));
}

/// Shows: C4
#[tokio::test(start_paused = true)]
async fn who_waits_is_polled_no_more_than_needed() {
    let (backend, strict) = backend();
    let service = CacheLayer::new(10, SECOND, itself).layer(strict);
    let (mut leader, mut waiter) = (task(&service, "a"), task(&service, "a"));
    assert!(leader.poll().is_pending());
    assert!(waiter.poll().is_pending());
    advance(1_000 * SECOND).await;
    assert!(leader.poll().is_pending());
    assert_eq!(waiter.times_woken(), 0, "nothing has happened");
    backend.answer(0, ok("done"));
    answered(leader.poll()).unwrap();
    assert_eq!(waiter.times_woken(), 1);
    assert_eq!(answered(waiter.poll()).unwrap(), "done");
}

/// Shows: C4
#[tokio::test(start_paused = true)]
async fn when_the_leader_is_dropped_the_first_waiter_takes_over() {
    for busy in [false, true] {
        let (backend, strict) = backend();
        backend.is_busy.store(busy, SeqCst);
        let service = CacheLayer::new(10, SECOND, itself).layer(strict);
        let mut calls = [(); 4].map(|()| task(&service, "a"));
        for call in &mut calls {
            assert!(call.poll().is_pending());
        }
        let [leader, first, mut second, mut third] = calls;
        // The first waiter is chosen, and dropped before it notices.
        drop(leader);
        assert_eq!((first.times_woken(), second.times_woken()), (1, 0));
        drop(first);
        assert_eq!((second.times_woken(), third.times_woken()), (1, 0));
        backend.is_busy.store(false, SeqCst);
        assert!(second.poll().is_pending());
        assert!(third.poll().is_pending());
        let call = backend.calls() - 1;
        assert_eq!(call, if busy { 0 } else { 1 });
        backend.answer(call, ok("done"));
        assert_eq!(answered(second.poll()).unwrap(), "done");
        assert_eq!(answered(third.poll()).unwrap(), "done");
    }
}

/// A call that ends or is dropped is over, with its clean-up, before a waiter is notified.
///
/// Shows: C4
#[tokio::test(start_paused = true)]
async fn the_leaders_call_is_over_before_another_one_is_told() {
    type Log = Arc<Mutex<Vec<&'static str>>>;
    /// A call that takes two polls.
    struct Calling(Log, bool);
    impl Future for Calling {
        type Output = Result<(), Error<Infallible>>;
        fn poll(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Self::Output> {
            if std::mem::replace(&mut self.1, true) { Poll::Ready(Ok(())) } else { Poll::Pending }
        }
    }
    impl Drop for Calling {
        fn drop(&mut self) {
            self.0.lock().unwrap().push("call over");
        }
    }
    struct Told(Log);
    impl Wake for Told {
        fn wake(self: Arc<Self>) {
            self.0.lock().unwrap().push("told");
        }
    }
    for ends in [true, false] {
        let log = Log::default();
        let service = {
            let log = Arc::clone(&log);
            service_fn(move |()| Calling(Arc::clone(&log), false))
        };
        let service = CacheLayer::new(10, SECOND, |()| Some(())).layer(service);
        let mut leader = TestTask::new(service.clone().oneshot(()));
        assert!(leader.poll().is_pending());
        let mut waiter = Box::pin(service.oneshot(()));
        let waker = Arc::new(Told(Arc::clone(&log))).into();
        assert!(waiter.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
        if ends {
            answered(leader.poll()).unwrap();
        } else {
            drop(leader);
        }
        assert_eq!(*log.lock().unwrap(), ["call over", "told"]);
    }
}

/// Shows: C4
#[tokio::test(start_paused = true)]
async fn when_the_leader_panics_a_waiter_takes_over() {
    let (calls, service) = (AtomicUsize::new(0), |answer: Outcome| async move {
        yield_now().await;
        answer
    });
    let calls = Arc::new(calls);
    let service = service_fn(move |request: &'static str| {
        let number = calls.fetch_add(1, SeqCst);
        let answer = service(ok(request));
        async move {
            let answer = answer.await;
            assert!(number > 0, "the first call panics");
            answer
        }
    });
    let service = CacheLayer::new(10, SECOND, itself).layer(service);
    let (mut leader, mut waiter) = (task(&service, "a"), task(&service, "a"));
    assert!(leader.poll().is_pending());
    assert!(waiter.poll().is_pending());
    assert!(catch_unwind(AssertUnwindSafe(|| leader.poll())).is_err());
    // Notified at once: the future that panicked still exists.
    assert_eq!(waiter.times_woken(), 1);
    assert!(waiter.poll().is_pending());
    assert_eq!(answered(waiter.poll()).unwrap(), "a");
    drop(leader);
}

/// Shows: C4
#[tokio::test(start_paused = true)]
async fn an_error_goes_whole_to_the_leader_and_as_its_message_to_the_others_and_is_not_stored() {
    let (backend, strict) = backend();
    let service = CacheLayer::new(10, SECOND, itself).named("users").layer(strict);
    let mut calls = [(); 3].map(|()| task(&service, "a"));
    for call in &mut calls {
        assert!(call.poll().is_pending());
    }
    backend.answer(0, Err(Error::Service("no such table")));
    let [mut leader, mut second, mut third] = calls;
    assert!(matches!(answered(leader.poll()), Err(Error::Service("no such table"))));
    for waiter in [&mut second, &mut third] {
        let outcome = answered(waiter.poll());
        let rejection = ziggurat::rejection(&outcome).unwrap();
        let shared = Reason::Shared { message: "no such table".into(), class: Class::TRANSIENT };
        assert_eq!((rejection.layer(), rejection.name(), rejection.reason()), ("cache", Some("users"), &shared));
    }
    assert!(task(&service, "a").poll().is_pending());
    assert_eq!(backend.calls(), 2);
}

/// Shows: C4
#[tokio::test(start_paused = true)]
async fn an_error_that_can_be_cloned_goes_to_all_if_they_are_to_get_it() {
    let (backend, strict) = backend();
    let service = CacheLayer::new(10, SECOND, itself).clone_errors().layer(strict);
    let mut calls = [(); 10].map(|()| task(&service, "a"));
    for call in &mut calls {
        assert!(call.poll().is_pending());
    }
    backend.answer(0, Err(Error::Service("not found")));
    for call in &mut calls {
        assert!(matches!(answered(call.poll()), Err(Error::Service("not found"))));
    }
    assert_eq!(backend.calls(), 1);
}

/// A server's stack may send it to strangers, so it has to be the failure's status and not that of an overload.
///
/// Shows: C4
#[tokio::test(start_paused = true)]
async fn a_shared_failure_has_the_status_of_the_original() {
    let overloaded = Reject::reject(LayerInfo::new("limit").reject(Reason::Overloaded { limit: 1 }));
    for (outcome, status, code) in [(Err(Error::Service("not found")), 502, 14), (overloaded, 503, 8)] {
        let (backend, strict) = backend();
        let service = CacheLayer::new(10, SECOND, itself).layer(strict);
        let (mut leader, mut waiter) = (task(&service, "a"), task(&service, "a"));
        assert!(leader.poll().is_pending());
        assert!(waiter.poll().is_pending());
        backend.answer(0, outcome);
        assert!(answered(leader.poll()).is_err());
        let shared = answered(waiter.poll());
        let rejection = ziggurat::rejection(&shared).unwrap();
        assert_eq!((rejection.status().as_u16(), rejection.grpc_code()), (status, code));
    }
}

/// A service that asks the cache in front of it for the key that it is asked for.
#[derive(Clone)]
struct AsksBack(Front, bool);

type Front = Arc<Mutex<Option<BoxCloneSyncService<&'static str, String, Error<&'static str>>>>>;

impl Service<&'static str> for AsksBack {
    type Response = String;
    type Error = Error<&'static str>;
    type Future = BoxFuture;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: &'static str) -> Self::Future {
        let call: BoxFuture = Box::pin(self.0.lock().unwrap().clone().unwrap().oneshot(request));
        let at_once = self.1;
        Box::pin(async move {
            if !at_once {
                yield_now().await;
            }
            call.await
        })
    }
}

/// Shows: C4
#[tokio::test(start_paused = true)]
async fn a_call_that_asks_for_its_own_key_is_told_so_at_once() {
    for at_once in [true, false] {
        let front = Front::default();
        let service = CacheLayer::new(10, SECOND, itself).named("users").layer(AsksBack(Arc::clone(&front), at_once));
        *front.lock().unwrap() = Some(BoxCloneSyncService::new(service.clone()));
        let outcome = service.oneshot("a").await;
        let rejection = ziggurat::rejection(&outcome).unwrap();
        assert_eq!(
            (rejection.reason(), rejection.name(), rejection.status().as_u16()),
            (&Reason::Recursive, Some("users"), 500)
        );
        assert!(rejection.to_string().contains("would wait for itself"));
    }
}

/// Shows: C4
#[tokio::test(start_paused = true)]
async fn a_key_whose_leader_is_woken_and_not_polled_for_five_seconds_is_taken_over() {
    let (backend, strict) = backend();
    let service = CacheLayer::new(10, SECOND, itself).layer(strict);
    // Its owner keeps it, and does not poll it again.
    let mut kept = task(&service, "a");
    assert!(kept.poll().is_pending());
    let mut waiter = task(&service, "a");
    assert!(waiter.poll().is_pending());
    advance(100 * SECOND).await;
    assert!(task(&service, "a").poll().is_pending());
    assert_eq!(backend.calls(), 1, "it was not woken: its call is slow");
    backend.answer(0, ok("done"));
    advance(5 * SECOND - INSTANT).await;
    assert!(task(&service, "a").poll().is_pending());
    advance(INSTANT).await;
    let mut next = task(&service, "a");
    assert!(next.poll().is_pending());
    assert_eq!(backend.calls(), 2);
    backend.answer(1, ok("done again"));
    assert_eq!(answered(next.poll()).unwrap(), "done again");
    assert_eq!(answered(waiter.poll()).unwrap(), "done again");
    assert_eq!(answered(kept.poll()).unwrap(), "done", "its own answer is still its own");
    assert_eq!(answered(task(&service, "a").poll()).unwrap(), "done again");
}

/// The runtime on which a stale value is refreshed is no longer driven.
///
/// Shows: C4
#[tokio::test(start_paused = true)]
async fn a_fetch_left_on_a_runtime_that_nobody_drives_is_taken_over() {
    let (backend, strict) = backend();
    let layer = CacheLayer::new(10, SECOND, itself).stale_while_revalidate(2 * SECOND);
    let (cache, service) = (layer.handle(), layer.layer(strict));
    let mut first = task(&service, "a");
    assert!(first.poll().is_pending());
    backend.answer(0, ok("first"));
    answered(first.poll()).unwrap();
    advance(SECOND).await;
    // It has its own clock.
    let idle = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    std::thread::scope(|threads| {
        threads.spawn(|| {
            idle.block_on(advance(SECOND));
            let _entered = idle.enter();
            assert_eq!(answered(task(&service, "a").poll()).unwrap(), "first");
        });
    });
    assert_eq!((cache.stats().refreshes, backend.calls()), (1, 1), "it was started and does not run");
    advance(20 * SECOND).await;
    let mut late = task(&service, "a");
    assert!(late.poll().is_pending());
    assert_eq!(backend.calls(), 2);
    backend.answer(1, ok("second"));
    assert_eq!(answered(late.poll()).unwrap(), "second");
    idle.shutdown_background();
}

/// The call is in flight, and waits for an event that only its own runtime could deliver.
///
/// Shows: C4
#[tokio::test(start_paused = true)]
async fn a_call_that_sleeps_on_a_runtime_that_nobody_drives_is_taken_over() {
    let (backend, strict) = backend();
    let service = CacheLayer::new(10, SECOND, itself).layer(strict);
    let idle = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    let call = idle.spawn(service.clone().oneshot("a"));
    std::thread::scope(|threads| threads.spawn(|| idle.block_on(yield_now())).join().unwrap());
    assert_eq!(backend.calls(), 1);
    let mut waiters = Vec::new();
    for _ in 0..2 {
        advance(20 * SECOND).await;
        waiters.push(task(&service, "a"));
        assert!(waiters.iter_mut().all(|waiter| waiter.poll().is_pending()));
    }
    assert_eq!(backend.calls(), 2, "the first waiter woke the call, and the second found it abandoned");
    backend.answer(1, ok("second"));
    for waiter in waiters.iter_mut().rev() {
        assert_eq!(answered(waiter.poll()).unwrap(), "second");
    }
    drop(call);
    idle.shutdown_background();
}

/// A call that takes long and is polled keeps its key, even if others arrive.
///
/// Shows: C4
#[tokio::test(start_paused = true)]
async fn a_call_that_is_only_slow_is_not_taken_over() {
    let (backend, strict) = backend();
    let service = CacheLayer::new(10, SECOND, itself).layer(strict);
    let call = tokio::spawn(service.clone().oneshot("a"));
    yield_now().await;
    let mut waiters = Vec::new();
    for _ in 0..10 {
        advance(20 * SECOND).await;
        waiters.push(task(&service, "a"));
        assert!(waiters.iter_mut().all(|waiter| waiter.poll().is_pending()));
        yield_now().await;
    }
    backend.answer(0, ok("first"));
    assert_eq!(call.await.unwrap().unwrap(), "first");
    assert!(waiters.iter_mut().all(|waiter| answered(waiter.poll()).unwrap() == "first"));
    assert_eq!(backend.calls(), 1);
}

/// The calling waiter has a second left, and an inner limit ends its call then. The other waiters have more time.
///
/// Shows: C4
#[tokio::test(start_paused = true)]
async fn a_failure_by_the_callers_own_deadline_is_not_shared_with_those_who_have_more_time() {
    let (backend, strict) = backend();
    let cached = ServiceBuilder::new()
        .layer(CacheLayer::new(10, SECOND, itself))
        .layer(TimeoutLayer::new(60 * SECOND).named("attempt"))
        .service(strict);
    let within = |limit| tokio::spawn(TimeoutLayer::new(limit).layer(cached.clone()).oneshot("a"));
    let short = within(SECOND);
    yield_now().await;
    let [medium, long, too_short] = [5 * SECOND, 30 * SECOND, SECOND].map(within);
    for short in [short, too_short] {
        assert!(ziggurat::rejection(&short.await.unwrap()).unwrap().is_timed_out());
    }
    advance(SECOND).await;
    yield_now().await;
    assert_eq!(backend.calls(), 2, "the waiter with the most time calls");
    assert!(ziggurat::rejection(&medium.await.unwrap()).unwrap().is_timed_out());
    assert!(!backend.was_dropped(1), "its call goes on");
    backend.answer(1, ok("done"));
    assert_eq!(long.await.unwrap().unwrap(), "done");
    assert_eq!(backend.calls(), 2);
}

/// A deadline that was carried over ends the call from within: the failure comes out of the call, and still goes to its
/// caller alone.
///
/// Shows: C4
#[tokio::test(start_paused = true)]
async fn a_failure_by_a_deadline_that_was_carried_over_is_not_shared_with_those_who_have_more_time() {
    let (backend, strict) = backend();
    let cached = ServiceBuilder::new()
        .layer(CacheLayer::new(10, SECOND, itself))
        .layer(TimeoutLayer::new(60 * SECOND).named("attempt"))
        .service(strict);
    let short = tokio::spawn(ziggurat::Deadline::after(SECOND).within(cached.clone().oneshot("a")));
    yield_now().await;
    let long = tokio::spawn(cached.oneshot("a"));
    let outcome = short.await.unwrap();
    let reason = ziggurat::rejection(&outcome).unwrap().reason();
    assert_eq!(reason, &Reason::DeadlineExceeded { after: Some(SECOND) });
    advance(Duration::ZERO).await;
    assert_eq!(backend.calls(), 2, "the waiter calls for itself");
    backend.answer(1, ok("done"));
    assert_eq!(long.await.unwrap().unwrap(), "done");
}

/// Shows: C4
#[tokio::test(start_paused = true)]
async fn a_rejection_goes_to_all_as_it_is() {
    let (_, strict) = backend();
    let service = ServiceBuilder::new()
        .layer(CacheLayer::new(10, SECOND, itself))
        .layer(TimeoutLayer::new(SECOND).named("total"))
        .service(strict);
    let (leader, waiter) = tokio::join!(service.clone().oneshot("a"), service.clone().oneshot("a"));
    for outcome in [leader, waiter] {
        let rejection = ziggurat::rejection(&outcome).unwrap();
        assert!(rejection.is_timed_out());
        assert_eq!(rejection.name(), Some("total"));
    }
}

/// A failed response goes to all waiters unchanged, and is not stored: with a separate error type, and where rejections
/// are responses.
///
/// Shows: C4
#[tokio::test(start_paused = true)]
async fn a_failure_that_is_a_response_goes_to_all_and_is_not_stored() {
    let calls = Arc::new(AtomicUsize::new(0));
    let service = {
        let calls = Arc::clone(&calls);
        service_fn(move |request: Request<()>| {
            calls.fetch_add(1, SeqCst);
            async move {
                yield_now().await;
                match request.uri().path() {
                    "/rejected" => Reject::reject(LayerInfo::new("limit").reject(Reason::Overloaded { limit: 1 })),
                    _ => Ok::<_, Infallible>(Response::builder().status(503).body(()).unwrap()),
                }
            }
        })
    };
    let key = |request: &Request<()>| Some(request.uri().clone());
    let service = CacheLayer::new(10, SECOND, key).classify(HttpStatus).layer(service);
    for path in ["/failed", "/rejected"] {
        calls.store(0, SeqCst);
        for made in 1..3 {
            let get = || service.clone().oneshot(Request::get(path).body(()).unwrap());
            let (leader, waiter) = tokio::join!(get(), get());
            for outcome in [leader, waiter] {
                assert_eq!(ziggurat::rejection(&outcome).is_some(), path == "/rejected");
                assert_eq!(outcome.unwrap().status(), 503);
            }
            assert_eq!(calls.load(SeqCst), made);
        }
    }
}

/// No caller waits for a response future that was created and never polled.
#[tokio::test(start_paused = true)]
async fn a_call_that_is_never_polled_leads_nobody() {
    let (backend, strict) = backend();
    let mut service = CacheLayer::new(10, SECOND, itself).layer(strict);
    let idle = service.call("a");
    let mut call = task(&service, "a");
    assert!(call.poll().is_pending());
    backend.answer(0, ok("done"));
    assert_eq!(answered(call.poll()).unwrap(), "done");
    // By now the response is stored.
    assert_eq!(idle.await.unwrap(), "done");
    assert_eq!(backend.calls(), 1);
}

/// Shows: C4
#[tokio::test(start_paused = true)]
async fn a_leader_that_times_out_leaves_the_call_to_those_who_have_time() {
    let (backend, strict) = backend();
    let cached = CacheLayer::new(10, SECOND, itself).layer(strict);
    let within = |limit| TimeoutLayer::new(limit).layer(cached.clone());
    let short = tokio::spawn(within(SECOND).oneshot("a"));
    yield_now().await;
    let long = tokio::spawn(within(10 * SECOND).oneshot("a"));
    let outcome = short.await.unwrap();
    assert!(ziggurat::rejection(&outcome).unwrap().is_timed_out());
    yield_now().await;
    assert_eq!(backend.calls(), 2);
    assert!(backend.was_dropped(0));
    backend.answer(1, ok("done"));
    assert_eq!(long.await.unwrap().unwrap(), "done");
}

/// With a ttl of zero requests share calls in flight, and nothing is stored.
///
/// Shows: C4
#[tokio::test(start_paused = true)]
async fn a_ttl_of_zero_stores_nothing_and_still_shares() {
    let (backend, strict) = backend();
    let layer = CacheLayer::new(10, Duration::ZERO, itself);
    let (cache, service) = (layer.handle(), layer.layer(strict));
    for call in 0..2 {
        let (mut leader, mut waiter) = (task(&service, "a"), task(&service, "a"));
        assert!(leader.poll().is_pending());
        assert!(waiter.poll().is_pending());
        assert_eq!(backend.calls(), call + 1);
        backend.answer(call, ok("done"));
        assert_eq!(answered(leader.poll()).unwrap(), "done");
        assert_eq!(answered(waiter.poll()).unwrap(), "done");
    }
    assert_eq!((cache.len(), cache.stats().stored, cache.stats().shared), (0, 0, 2));
}

/// Each caller of a shared call runs in its own ambient state, and the call in that of the caller that makes it.
#[tokio::test(start_paused = true)]
async fn a_call_runs_in_the_scope_of_who_makes_it() {
    let service = service_fn(|()| async {
        yield_now().await;
        Ok::<_, Error<Infallible>>(Scope::current().unwrap().name().to_owned())
    });
    let service = CacheLayer::new(10, SECOND, |()| Some(())).layer(service);
    let [mut first, mut second] =
        ["first", "second"].map(|name| TestTask::new(Scope::root(name).within(service.clone().oneshot(()))));
    assert!(first.poll().is_pending());
    assert!(second.poll().is_pending());
    drop(first);
    assert!(second.poll().is_pending());
    assert_eq!(answered(second.poll()).unwrap(), "second");
}

/// Two tenants do not share an entry that is still being fetched either.
///
/// Shows: C4, C7
#[tokio::test(start_paused = true)]
async fn two_tenants_that_ask_at_once_share_no_call() {
    #[derive(PartialEq, Eq, Hash)]
    struct Tenant(&'static str);
    let (backend, strict) = backend();
    let key = scoped_key(|_: &Tenant, request: &&'static str| Some(*request));
    let service = CacheLayer::new(10, SECOND, key).layer(strict);
    let mut calls = ["acme", "globex", "acme"].map(|name| {
        let request = Scope::root("request").with(Tenant(name));
        TestTask::new(request.within(service.clone().oneshot("/bill")))
    });
    for call in &mut calls {
        assert!(call.poll().is_pending());
    }
    assert_eq!(backend.calls(), 2);
    backend.answer(0, ok("the bill of acme"));
    backend.answer(1, ok("the bill of globex"));
    let answers = calls.map(|mut call| answered(call.poll()).unwrap());
    assert_eq!(answers, ["the bill of acme", "the bill of globex", "the bill of acme"]);
}

/// A dropped caller leaves neither key nor request behind, on a hot key or on one of its own.
#[tokio::test(start_paused = true)]
async fn calls_that_are_given_up_leave_nothing_behind() {
    let service = service_fn(|_: Arc<str>| std::future::pending::<Result<(), Error<Infallible>>>());
    let service = CacheLayer::new(10, SECOND, |key: &Arc<str>| Some(Arc::clone(key))).layer(service);
    let hot: Arc<str> = "hot".into();
    let mut leader = TestTask::new(service.clone().oneshot(Arc::clone(&hot)));
    assert!(leader.poll().is_pending());
    let led = Arc::strong_count(&hot);
    for _ in 0..1_000 {
        let own: Arc<str> = "own".into();
        for key in [&hot, &own] {
            assert!(TestTask::new(service.clone().oneshot(Arc::clone(key))).poll().is_pending());
        }
        assert_eq!((Arc::strong_count(&hot), Arc::strong_count(&own)), (led, 1));
    }
    drop(leader);
    assert_eq!(Arc::strong_count(&hot), 1);
}

/// Bad input: the waker of a waiter panics. The leader and the other waiters get the response.
///
/// Shows: C4
#[tokio::test(start_paused = true)]
async fn a_waker_that_panics_keeps_the_answer_from_nobody_else() {
    struct Bang;
    impl Wake for Bang {
        fn wake(self: Arc<Self>) {
            panic!("woken");
        }
    }
    let service = CacheLayer::new(10, SECOND, itself).layer(service_fn(|request: &'static str| async move {
        yield_now().await;
        ok(request)
    }));
    let mut leader = task(&service, "a");
    assert!(leader.poll().is_pending());
    let bang = Arc::new(Bang).into();
    let mut panics = [Box::pin(service.clone().oneshot("a")), Box::pin(service.clone().oneshot("a"))];
    for waiter in &mut panics {
        assert!(waiter.as_mut().poll(&mut Context::from_waker(&bang)).is_pending());
    }
    let mut waiter = task(&service, "a");
    assert!(waiter.poll().is_pending());
    assert!(leader.poll().is_ready());
    assert_eq!(waiter.times_woken(), 1);
    assert!(waiter.poll().is_ready());
    assert!(panics.iter_mut().all(|waiter| waiter.as_mut().poll(&mut Context::from_waker(&bang)).is_ready()));
}
