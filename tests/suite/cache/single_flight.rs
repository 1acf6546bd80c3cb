//! Of all who miss a key at once, one calls.

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
use tower::{Layer, ServiceBuilder};
use ziggurat::{
    Class, HttpStatus, Reason, Reject, Rejection, Scope, Site,
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
        // The first one is chosen, and gone before it noticed.
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

/// Whether it ends or is dropped, a call is over, with its clean-up, before anybody else is told.
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
        let mut leader = Task::new(service.clone().oneshot(()));
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
    // Told at once: the future that panicked is still there.
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

/// A failure that is a response goes to all as it is, and is not stored: with an error of its own, and where rejections
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
                    "/rejected" => Reject::reject(Rejection::new(&Site::new("limit"), Reason::Overloaded { limit: 1 })),
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

/// Nobody waits for a response future that was made and never polled.
#[tokio::test(start_paused = true)]
async fn a_call_that_is_never_polled_leads_nobody() {
    let (backend, strict) = backend();
    let mut service = CacheLayer::new(10, SECOND, itself).layer(strict);
    let idle = service.call("a");
    let mut call = task(&service, "a");
    assert!(call.poll().is_pending());
    backend.answer(0, ok("done"));
    assert_eq!(answered(call.poll()).unwrap(), "done");
    // By now the answer is in memory.
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

/// With a ttl of zero requests share calls that are under way, and nothing is stored.
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

/// Each of those who share a call runs in its own surroundings; the call runs in those of who makes it.
#[tokio::test(start_paused = true)]
async fn a_call_runs_in_the_scope_of_who_makes_it() {
    let service = service_fn(|()| async {
        yield_now().await;
        Ok::<_, Error<Infallible>>(Scope::current().unwrap().name().to_owned())
    });
    let service = CacheLayer::new(10, SECOND, |()| Some(())).layer(service);
    let [mut first, mut second] =
        ["first", "second"].map(|name| Task::new(Scope::root(name).within(service.clone().oneshot(()))));
    assert!(first.poll().is_pending());
    assert!(second.poll().is_pending());
    drop(first);
    assert!(second.poll().is_pending());
    assert_eq!(answered(second.poll()).unwrap(), "second");
}

/// Nor do two tenants share an entry that is not there yet, as in the guide they would.
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
        Task::new(request.within(service.clone().oneshot("/bill")))
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

/// Whoever gives up leaves neither key nor request behind, on a hot key or on one of its own.
#[tokio::test(start_paused = true)]
async fn calls_that_are_given_up_leave_nothing_behind() {
    let service = service_fn(|_: Arc<str>| std::future::pending::<Result<(), Error<Infallible>>>());
    let service = CacheLayer::new(10, SECOND, |key: &Arc<str>| Some(Arc::clone(key))).layer(service);
    let hot: Arc<str> = "hot".into();
    let mut leader = Task::new(service.clone().oneshot(Arc::clone(&hot)));
    assert!(leader.poll().is_pending());
    let led = Arc::strong_count(&hot);
    for _ in 0..1_000 {
        let own: Arc<str> = "own".into();
        for key in [&hot, &own] {
            assert!(Task::new(service.clone().oneshot(Arc::clone(key))).poll().is_pending());
        }
        assert_eq!((Arc::strong_count(&hot), Arc::strong_count(&own)), (led, 1));
    }
    drop(leader);
    assert_eq!(Arc::strong_count(&hot), 1);
}

/// Bad input: the waker of a waiter panics. The leader and the other waiters get the answer.
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
