//! The concurrency limit, with calls that end on demand.

use std::{
    convert::Infallible,
    future::{Future, poll_fn},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use axum::{Router, body::Body, routing::get};
use http::{Request, StatusCode};
use tokio::{
    sync::{Barrier, Notify},
    time::{Instant, sleep},
};
use tower::{Layer, Service, ServiceBuilder, ServiceExt, limit::ConcurrencyLimitLayer as TowerLimitLayer, service_fn};
use ziggurat::{
    Error, LayerEvent, LayerInfo, Reason,
    concurrency_limit::{ConcurrencyLimit, ConcurrencyLimitHandle, ConcurrencyLimitLayer},
    testing::{Strict, TestTask},
    timeout::TimeoutLayer,
};

const SECOND: Duration = Duration::from_secs(1);

/// Calls end when their request, a bell, is rung.
type Bell = Arc<Notify>;

fn until_rung() -> impl Service<Bell, Response = (), Error = Error<&'static str>, Future: Send> + Clone + Send {
    service_fn(|bell: Bell| async move {
        bell.notified().await;
        Ok(())
    })
}

/// Calls the service, which is ready, as a task to be polled by hand.
pub(crate) fn start<S: Service<Req>, Req>(service: &mut S, request: Req) -> TestTask<S::Future> {
    let ready = TestTask::new(poll_fn(|cx| service.poll_ready(cx))).poll();
    assert!(matches!(ready, Poll::Ready(Ok(()))), "the service was not ready");
    TestTask::new(service.call(request))
}

pub(crate) fn counts(gate: &ConcurrencyLimitHandle) -> (usize, usize) {
    (gate.in_flight(), gate.waiting())
}

fn overloaded<R>(outcome: &Result<R, Error<&'static str>>) -> Option<usize> {
    match ziggurat::rejection(outcome)?.reason() {
        Reason::Overloaded { limit } => Some(*limit),
        other => panic!("{other:?}"),
    }
}

/// Shows: L1
#[tokio::test]
async fn all_services_and_clones_of_one_layer_value_share_its_permits() {
    let layer = ConcurrencyLimitLayer::new(2);
    let gate = layer.handle();
    let (mut first, mut other) = (layer.layer(until_rung()), layer.clone().layer(until_rung()));
    let mut clone = first.clone();
    let bell = Bell::default();
    let mut calls = [&mut first, &mut clone].map(|service| start(service, Arc::clone(&bell)));
    assert!(calls.iter_mut().all(|call| call.poll().is_pending()));
    let mut late = start(&mut other, Arc::clone(&bell));
    assert!(late.poll().is_pending());
    assert_eq!(counts(&gate), (2, 1));

    let elsewhere = ConcurrencyLimitLayer::new(2);
    let _call = start(&mut elsewhere.layer(until_rung()), bell);
    assert_eq!(counts(&gate), (2, 1));
    assert_eq!(counts(&elsewhere.handle()), (1, 0));
}

/// The router clones its service for each request, and each route has its own.
///
/// Shows: L1
#[tokio::test]
async fn all_routes_of_a_router_share_the_limit_and_who_finds_no_room_is_told_503() {
    let bell = Bell::default();
    let handler = {
        let bell = Arc::clone(&bell);
        move || async move { bell.notified().await }
    };
    let layer = ConcurrencyLimitLayer::new(1).max_waiting(0);
    let gate = layer.handle();
    let app = Router::new().route("/a", get(handler.clone())).route("/b", get(handler)).layer(layer);
    let request = |path: &str| app.clone().oneshot(Request::get(path).body(Body::empty()).unwrap());

    let mut first = TestTask::new(request("/a"));
    assert!(first.poll().is_pending());
    let refused = request("/b").await;
    assert!(ziggurat::rejection(&refused).unwrap().is_overloaded());
    assert_eq!(refused.unwrap().status(), StatusCode::SERVICE_UNAVAILABLE);

    bell.notify_one();
    let Poll::Ready(Ok(answer)) = first.poll() else { panic!("the first call has no response") };
    assert_eq!((answer.status(), counts(&gate)), (StatusCode::OK, (0, 0)));
}

/// A barrier of the limit's size opens only if exactly as many calls are inside at once.
///
/// Shows: L1, L2
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn on_many_threads_as_many_as_the_limit_are_in_flight_and_never_more() {
    const LIMIT: usize = 5;
    let (inside, barrier) = (Arc::new(AtomicUsize::new(0)), Arc::new(Barrier::new(LIMIT)));
    let layer = ConcurrencyLimitLayer::new(LIMIT);
    let gate = layer.handle();
    let service = ServiceBuilder::new().layer(layer).service(Strict::new(service_fn(move |()| {
        let (inside, barrier) = (Arc::clone(&inside), Arc::clone(&barrier));
        async move {
            assert!(inside.fetch_add(1, Ordering::SeqCst) < LIMIT);
            barrier.wait().await;
            inside.fetch_sub(1, Ordering::SeqCst);
            Ok::<_, Error<Infallible>>(())
        }
    })));
    let calls: Vec<_> = (0..200 * LIMIT).map(|_| tokio::spawn(service.clone().oneshot(()))).collect();
    for call in calls {
        call.await.unwrap().unwrap();
    }
    assert_eq!(counts(&gate), (0, 0));
}

/// Shows: L1
#[tokio::test]
async fn those_who_wait_are_admitted_in_the_order_of_their_first_polls() {
    let bells: Vec<_> = (0..4).map(|_| Bell::default()).collect();
    let layer = ConcurrencyLimitLayer::new(1);
    let mut service = layer.layer(Strict::new(until_rung()));
    let mut calls: Vec<_> = bells.iter().map(|bell| start(&mut service, Arc::clone(bell))).collect();
    for caller in [0, 2, 1, 3] {
        assert!(calls[caller].poll().is_pending());
    }
    bells.iter().for_each(|bell| bell.notify_one());
    for caller in [0, 2, 1, 3] {
        let woken: Vec<_> = (0..4).filter(|other| calls[*other].times_woken() > 0).collect();
        assert!(woken.contains(&caller));
        let before: Vec<_> = calls.iter_mut().map(|call| call.times_woken()).collect();
        assert!(calls[caller].poll().is_ready());
        let newly = (0..4).filter(|other| calls[*other].times_woken() > before[*other]).count();
        assert_eq!(newly, usize::from(caller != 3), "one permit wakes one caller");
    }
}

/// Shows: L1
#[tokio::test]
async fn a_newcomer_does_not_overtake_those_who_wait() {
    let bell = Bell::default();
    let layer = ConcurrencyLimitLayer::new(1);
    let mut service = layer.layer(until_rung());
    let first = start(&mut service, Arc::clone(&bell));
    let mut second = start(&mut service, Arc::clone(&bell));
    assert!(second.poll().is_pending());
    drop(first);
    // The permit belongs to the second caller, although it has not noticed yet.
    let mut newcomer = start(&mut service, Arc::clone(&bell));
    bell.notify_one();
    assert!(newcomer.poll().is_pending());
    assert!(second.poll().is_ready());
}

/// Shows: L1
#[tokio::test(start_paused = true)]
async fn the_surrounding_deadline_ends_the_wait() {
    let limit = ConcurrencyLimitLayer::new(1);
    let gate = limit.handle();
    let mut service = limit.layer(until_rung());
    let _running = start(&mut service, Bell::default());
    let begin = Instant::now();
    let outcome = TimeoutLayer::new(2 * SECOND).layer(service).oneshot(Bell::default()).await;
    assert!(ziggurat::rejection(&outcome).unwrap().is_timed_out());
    assert_eq!(begin.elapsed(), 2 * SECOND);
    assert_eq!(counts(&gate), (1, 0));
}

/// Shows: L1
#[tokio::test]
async fn a_full_queue_rejects_at_once_and_says_how_many_are_allowed() {
    let layer = ConcurrencyLimitLayer::new(2).max_waiting(1).named("payments");
    let mut service = layer.layer(until_rung());
    let _running = [(); 2].map(|()| start(&mut service, Bell::default()));
    // Both are called while there is a place. The first to be polled takes it.
    let [mut waiting, too_late] = [(); 2].map(|()| start(&mut service, Bell::default()));
    assert!(waiting.poll().is_pending());
    for mut call in [too_late, start(&mut service, Bell::default())] {
        let Poll::Ready(refused) = call.poll() else { panic!("not at once") };
        let rejection = ziggurat::rejection(&refused).unwrap();
        assert_eq!(rejection.reason(), &Reason::Overloaded { limit: 2 });
        assert_eq!((rejection.layer(), rejection.name()), ("concurrency_limit", Some("payments")));
    }
    assert_eq!(counts(&layer.handle()), (2, 1));
    drop(waiting);
    assert!(start(&mut service, Bell::default()).poll().is_pending());
}

/// A call that does not wait does not copy the service.
///
/// Shows: L1
#[tokio::test]
async fn a_call_that_is_admitted_at_once_clones_nothing() {
    struct NoClone;
    impl Clone for NoClone {
        fn clone(&self) -> Self {
            panic!("cloned")
        }
    }
    impl Service<Bell> for NoClone {
        type Response = ();
        type Error = Error<&'static str>;
        type Future = std::future::Pending<Result<(), Self::Error>>;
        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
            Poll::Ready(Ok(()))
        }
        fn call(&mut self, _: Bell) -> Self::Future {
            std::future::pending()
        }
    }
    let layer = ConcurrencyLimitLayer::new(1);
    let mut service = layer.layer(NoClone);
    let _running = start(&mut service, Bell::default());
    assert_eq!(counts(&layer.handle()), (1, 0));
}

/// The clock of the wait starts when the call takes its place in the queue.
///
/// Shows: L1
#[tokio::test(start_paused = true)]
async fn a_wait_ends_exactly_at_its_limit() {
    let layer = ConcurrencyLimitLayer::new(1).max_wait(2 * SECOND);
    let mut service = layer.layer(until_rung());
    let _running = start(&mut service, Bell::default());
    let waiting = service.ready().await.unwrap().call(Bell::default());
    sleep(10 * SECOND).await;
    let begin = Instant::now();
    assert_eq!(overloaded(&waiting.await), Some(1));
    assert_eq!(begin.elapsed(), 2 * SECOND);
    assert_eq!(counts(&layer.handle()), (1, 0));
}

/// A permit that has arrived wins over a limit that passed in the same poll.
///
/// Shows: L1
#[tokio::test(start_paused = true)]
async fn only_the_wait_for_the_permit_is_limited_and_not_what_follows() {
    let inner = Moody::default();
    let busy = Arc::clone(&inner.busy);
    let layer = ConcurrencyLimitLayer::new(1).max_wait(2 * SECOND);
    let mut service = layer.layer(inner);
    let running = start(&mut service, ());
    let [mut first, mut second] = [(); 2].map(|()| start(&mut service, ()));
    assert!(first.poll().is_pending() && second.poll().is_pending());
    sleep(SECOND).await;
    drop(running);
    busy.store(true, Ordering::SeqCst);
    assert!(first.poll().is_pending());
    assert_eq!(first.times_woken(), 1);
    sleep(SECOND).await;
    assert_eq!((first.times_woken(), second.times_woken()), (1, 1), "the first one's clock still runs");
    assert!(first.poll().is_pending());
    drop(first);
    assert!(second.poll().is_pending());
    assert_eq!(counts(&layer.handle()), (1, 0));
}

/// Shows: L2
#[tokio::test]
async fn an_answer_an_error_and_a_panic_give_the_permit_back() {
    let layer = ConcurrencyLimitLayer::new(1);
    let gate = layer.handle();
    let mut service = layer.layer(service_fn(|what: &'static str| {
        assert_ne!(what, "panic in call");
        async move {
            assert_ne!(what, "panic in poll");
            if what == "error" { Err(Error::Service(what)) } else { Ok(what) }
        }
    }));
    assert_eq!(service.ready().await.unwrap().call("answer").await.unwrap(), "answer");
    assert_eq!(counts(&gate), (0, 0));
    assert!(matches!(service.ready().await.unwrap().call("error").await, Err(Error::Service("error"))));
    assert_eq!(counts(&gate), (0, 0));
    assert!(catch_unwind(AssertUnwindSafe(|| start(&mut service, "panic in call"))).is_err());
    assert_eq!(counts(&gate), (0, 0));
    let mut call = start(&mut service, "panic in poll");
    assert!(catch_unwind(AssertUnwindSafe(move || call.poll().is_ready())).is_err());
    assert_eq!(counts(&gate), (0, 0));

    // Again, admitted from the queue.
    for what in ["panic in call", "panic in poll"] {
        let running = start(&mut service, "answer");
        let mut queued = start(&mut service, what);
        assert!(queued.poll().is_pending());
        drop(running);
        assert!(catch_unwind(AssertUnwindSafe(move || queued.poll().is_ready())).is_err());
        assert_eq!(counts(&gate), (0, 0), "{what}");
    }
}

/// Shows: L2
#[tokio::test]
async fn the_permit_is_back_after_the_call_is_gone_and_before_the_caller_is_answered() {
    struct Probe(ConcurrencyLimitHandle, Arc<Mutex<Vec<usize>>>);
    impl Drop for Probe {
        fn drop(&mut self) {
            self.1.lock().unwrap().push(self.0.in_flight());
        }
    }
    let layer = ConcurrencyLimitLayer::new(3);
    let (gate, seen) = (layer.handle(), Arc::default());
    let mut service = layer.layer(service_fn(|(probe, bell): (Probe, Bell)| {
        // The future's drop releases it, not its code.
        let mut probe = Some(probe);
        poll_fn(move |cx| {
            let rung = std::pin::pin!(bell.notified()).poll(cx);
            assert!(probe.as_mut().is_some());
            rung.map(Ok::<_, Error<&str>>)
        })
    }));
    let bell = Bell::default();
    let mut call = start(&mut service, (Probe(gate.clone(), Arc::clone(&seen)), Arc::clone(&bell)));
    bell.notify_one();
    assert!(call.poll().is_ready());
    assert_eq!(gate.in_flight(), 0, "the caller has the answer, and the permit is not back");
    drop(start(&mut service, (Probe(gate.clone(), Arc::clone(&seen)), bell)));
    assert_eq!(gate.in_flight(), 0);
    assert_eq!(*seen.lock().unwrap(), [1, 1], "the permit was back before the call was gone");
}

/// Is ready unless it is busy. Then it is pending, or returns its error if it has one. Its calls never end.
#[derive(Clone, Default)]
struct Moody {
    busy: Arc<AtomicBool>,
    error: Option<&'static str>,
}

impl Service<()> for Moody {
    type Response = ();
    type Error = Error<&'static str>;
    type Future = std::future::Pending<Result<(), Self::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        if !self.busy.load(Ordering::SeqCst) {
            return Poll::Ready(Ok(()));
        }
        match self.error {
            Some(error) => Poll::Ready(Err(Error::Service(error))),
            None => Poll::Pending,
        }
    }

    fn call(&mut self, (): ()) -> Self::Future {
        std::future::pending()
    }
}

/// Shows: L2
#[tokio::test]
async fn a_call_dropped_in_any_state_leaves_no_trace() {
    let layer = ConcurrencyLimitLayer::new(1);
    let gate = layer.handle();
    let inner = Moody::default();
    let busy = Arc::clone(&inner.busy);
    let mut service = layer.layer(Strict::new(inner));
    for state in ["unpolled", "queued", "granted", "waits for readiness", "runs after waiting"] {
        let running = start(&mut service, ());
        let mut call = start(&mut service, ());
        let mut next = start(&mut service, ());
        if state != "unpolled" {
            assert!(call.poll().is_pending());
            assert_eq!(counts(&gate), (1, 1));
        }
        assert!(next.poll().is_pending());
        if !matches!(state, "unpolled" | "queued") {
            drop(running);
            assert_eq!((counts(&gate), call.times_woken(), next.times_woken()), ((1, 1), 1, 0));
        } else {
            assert_eq!(call.times_woken(), 0);
        }
        busy.store(state == "waits for readiness", Ordering::SeqCst);
        if matches!(state, "waits for readiness" | "runs after waiting") {
            assert!(call.poll().is_pending());
        }
        assert_eq!(gate.in_flight(), 1, "{state}");
        drop(call);
        busy.store(false, Ordering::SeqCst);
        // The next caller has its permit at once, or it had none.
        assert_eq!(gate.waiting(), usize::from(matches!(state, "unpolled" | "queued")), "{state}");
        assert_eq!(next.times_woken(), 1 - gate.waiting(), "{state}");
        drop(next);
    }
    assert_eq!(counts(&gate), (0, 0));
}

/// Shows: L2
#[tokio::test]
async fn an_error_of_the_readiness_after_the_wait_is_the_answer_and_gives_the_permit_back() {
    let layer = ConcurrencyLimitLayer::new(1);
    let gate = layer.handle();
    let inner = Moody { error: Some("broken"), ..Moody::default() };
    let broken = Arc::clone(&inner.busy);
    let mut service = layer.layer(inner);
    let running = start(&mut service, ());
    let mut queued = start(&mut service, ());
    assert!(queued.poll().is_pending());
    broken.store(true, Ordering::SeqCst);
    assert!(queued.poll().is_pending(), "the service is not asked before the call is admitted");
    drop(running);
    assert!(matches!(queued.poll(), Poll::Ready(Err(Error::Service("broken")))));
    assert_eq!(counts(&gate), (0, 0));
}

/// Shows: L3
#[tokio::test]
async fn a_higher_limit_wakes_those_who_wait_and_a_lower_one_lets_nobody_in_until_it_holds() {
    let bells: Vec<_> = (0..5).map(|_| Bell::default()).collect();
    let layer = ConcurrencyLimitLayer::new(1);
    let gate = layer.handle();
    let mut service = layer.layer(until_rung());
    let mut calls: Vec<_> = bells.iter().map(|bell| start(&mut service, Arc::clone(bell))).collect();
    assert!(calls.iter_mut().all(|call| call.poll().is_pending()));
    assert_eq!((gate.limit(), counts(&gate)), (1, (1, 4)));

    gate.set_limit(3);
    assert_eq!(counts(&gate), (3, 2));
    assert_eq!(calls.iter().map(TestTask::times_woken).collect::<Vec<_>>(), [0, 1, 1, 0, 0]);
    assert!(calls.iter_mut().all(|call| call.poll().is_pending()));

    gate.set_limit(1);
    for (finished, left) in [(0, (2, 2)), (1, (1, 2)), (2, (1, 1)), (3, (1, 0)), (4, (0, 0))] {
        bells[finished].notify_one();
        assert!(calls[finished].poll().is_ready());
        assert_eq!(counts(&gate), left);
        assert!(calls[finished + 1..].iter_mut().all(|call| call.poll().is_pending()));
    }
    let mut refused = start(&mut service, Bell::default());
    assert!(refused.poll().is_pending());
    assert_eq!(counts(&gate), (1, 0));
}

/// Shows: L3
#[tokio::test]
async fn the_queue_can_be_made_shorter_and_longer_and_nobody_in_it_is_sent_away() {
    let layer = ConcurrencyLimitLayer::new(1).max_waiting(2);
    let gate = layer.handle();
    let mut service = layer.layer(until_rung());
    let mut calls: Vec<_> = (0..3).map(|_| start(&mut service, Bell::default())).collect();
    assert!(calls.iter_mut().all(|call| call.poll().is_pending()));

    gate.set_max_waiting(1);
    assert_eq!((gate.max_waiting(), counts(&gate)), (1, (1, 2)));
    assert!(start(&mut service, Bell::default()).poll().is_ready());
    gate.set_max_waiting(3);
    let mut fourth = start(&mut service, Bell::default());
    assert!(fourth.poll().is_pending());
    assert_eq!(counts(&gate), (1, 3));
}

/// The flaw of tower's limit, whose clones keep a permit or a place in the queue from `poll_ready` on.
///
/// Shows: L4
#[tokio::test]
async fn an_idle_clone_that_was_polled_ready_holds_nothing() {
    let layer = ConcurrencyLimitLayer::new(1);
    let gate = layer.handle();
    let mut busy = layer.layer(until_rung());
    let mut idle = [busy.clone(), busy.clone()];
    idle[0].ready().await.unwrap();
    assert_eq!(counts(&gate), (0, 0));
    let mut call = start(&mut busy, Bell::default());
    idle[1].ready().await.unwrap();
    assert_eq!(counts(&gate), (1, 0));
    assert!(call.poll().is_pending());
    drop(call);
    let bell = Bell::default();
    bell.notify_one();
    assert!(busy.ready().await.unwrap().call(bell).await.is_ok());
}

/// The flaw of tower's load shedding, which treats every pending service as full.
///
/// Shows: L1, L4
#[tokio::test]
async fn load_is_shed_only_when_the_limit_is_reached_and_not_because_something_else_is_pending() {
    let inner = Moody::default();
    let busy = Arc::clone(&inner.busy);
    busy.store(true, Ordering::SeqCst);
    let layer = ConcurrencyLimitLayer::new(1).max_waiting(0);
    let mut service = layer.layer(inner);
    let mut call = TestTask::new(service.clone().oneshot(()));
    assert!(call.poll().is_pending(), "not ready is not full");
    assert_eq!(counts(&layer.handle()), (0, 0));
    busy.store(false, Ordering::SeqCst);
    assert!(call.poll().is_pending());
    assert_eq!(counts(&layer.handle()), (1, 0));
    assert!(matches!(start(&mut service, ()).poll(), Poll::Ready(outcome) if overloaded(&outcome) == Some(1)));
    drop(call);
    assert!(start(&mut service, ()).poll().is_pending());
}

/// tower's limit stands for every inner service that reserves something when it is made ready.
///
/// Shows: L4
#[tokio::test]
async fn a_call_that_waits_does_not_hoard_what_the_inner_service_reserved() {
    let bell = Bell::default();
    let inner = TowerLimitLayer::new(2).layer(until_rung());
    let layer = ConcurrencyLimitLayer::new(1);
    let mut service = layer.layer(inner.clone());
    let running = start(&mut service, Arc::clone(&bell));
    // It makes the inner service ready, which takes the second inner permit, and then waits at our limit.
    let mut waiting = start(&mut service, Arc::clone(&bell));
    assert!(waiting.poll().is_pending());

    let mut other = inner.clone();
    let mut elsewhere = start(&mut other, Arc::clone(&bell));
    assert!(elsewhere.poll().is_pending());

    // Once admitted, it waits for its own readiness: pending while the inner limit is reached, and then it runs.
    let mut another = TestTask::new(inner.clone().oneshot(Arc::clone(&bell)));
    drop(running);
    assert!(another.poll().is_pending());
    assert!(waiting.poll().is_pending());
    drop((elsewhere, another));
    assert_eq!(counts(&layer.handle()), (1, 0));
    bell.notify_one();
    assert!(waiting.poll().is_ready());
}

#[tokio::test(start_paused = true)]
async fn an_observer_hears_of_a_wait_and_of_a_rejection() {
    let heard = Arc::new(Mutex::new(Vec::new()));
    let observer = {
        let heard = Arc::clone(&heard);
        move |info: &LayerInfo, event: &LayerEvent<'_>| {
            heard.lock().unwrap().push(match event {
                LayerEvent::Queued => "queued".to_owned(),
                LayerEvent::Rejected(rejection) => rejection.to_string(),
                other => panic!("{}: {other:?}", info.layer()),
            });
        }
    };
    let layer = ConcurrencyLimitLayer::new(1).max_waiting(1).named("db").observer(observer);
    let impatient = layer.clone().max_wait(Duration::ZERO);
    let mut service = layer.layer(until_rung());
    let _running = start(&mut service, Bell::default());
    assert!(heard.lock().unwrap().is_empty());
    let mut waiting = start(&mut service, Bell::default());
    assert!(waiting.poll().is_pending() && waiting.poll().is_pending());
    assert!(start(&mut service, Bell::default()).poll().is_ready());
    let rejected =
        |when| format!("concurrency_limit `db`: 1 calls are in flight, which is the limit; try again in {when}");
    assert_eq!(*heard.lock().unwrap(), ["queued", &rejected("200ms")]);
    // A caller without time to wait takes no place.
    drop(waiting);
    assert!(start(&mut impatient.layer(until_rung()), Bell::default()).poll().is_ready());
    assert_eq!(*heard.lock().unwrap(), ["queued", &rejected("200ms"), &rejected("100ms")]);
}

fn stays_what_its_inner_service_is<S>(_: &S)
where
    S: Service<Bell, Future: Send + 'static> + Clone + Send + Sync + 'static,
{
}

#[test]
fn it_is_send_sync_and_clone_over_services_that_are_and_shows_its_state() {
    let layer = ConcurrencyLimitLayer::new(4).max_waiting(2);
    stays_what_its_inner_service_is(&ConcurrencyLimit::clone(
        &layer.layer(service_fn(|_: Bell| async { Ok::<_, Error<()>>(()) })),
    ));
    let shown = format!("{layer:?}");
    assert!(shown.contains("ConcurrencyLimitHandle { limit: 4, in_flight: 0, waiting: 0 }"), "{shown}");
    let mut service = layer.layer(Moody::default());
    let shown = format!("{:?}", service.call(()));
    assert_eq!(shown, "concurrency_limit::ResponseFuture { state: \"running\", admitted: true }");
}

/// Bad input, and valid edge cases.
#[tokio::test(start_paused = true)]
async fn zero_permits_are_refused_and_every_other_value_works() {
    let refused: [(&str, fn()); 2] = [
        ("ConcurrencyLimitLayer::new(0)", || drop(ConcurrencyLimitLayer::new(0))),
        ("ConcurrencyLimitHandle::set_limit(0)", || ConcurrencyLimitLayer::new(1).handle().set_limit(0)),
    ];
    for (what, make) in refused {
        let panicked = catch_unwind(make).expect_err(what);
        let said = panicked.downcast_ref::<&str>().copied();
        assert_eq!(said, Some("`limit` must be at least 1: with no permits nothing could ever pass"), "{what}");
    }

    let most = ConcurrencyLimitLayer::new(usize::MAX);
    assert_eq!(most.handle().limit(), 8_388_607);
    most.handle().set_limit(usize::MAX);
    assert!(start(&mut most.layer(until_rung()), Bell::default()).poll().is_pending());

    // A call that finds no permit is rejected at once, or still waits after a year.
    let one = || ConcurrencyLimitLayer::new(1);
    for (layer, waits) in [
        (one().max_waiting(0), false),
        (one().max_waiting(usize::MAX).max_wait(Duration::MAX), true),
        (one().max_wait(Duration::ZERO), false),
        (one().max_wait(Duration::ZERO).max_waiting(9), false),
        (one().max_wait(Duration::MAX), true),
        (one().max_wait(Duration::MAX - Duration::from_nanos(1)), true),
        (one().max_wait(Duration::MAX).max_waiting(0), false),
    ] {
        let mut service = layer.layer(until_rung());
        let _running = start(&mut service, Bell::default());
        let mut call = start(&mut service, Bell::default());
        let at_once = call.poll();
        assert_eq!(at_once.is_pending(), waits, "{layer:?}");
        if waits {
            sleep(365 * 24 * 3600 * SECOND).await;
            assert!(call.poll().is_pending(), "{layer:?}");
        }
    }
}

/// Shows: L2
#[tokio::test(start_paused = true)]
async fn until_the_end_of_the_body_means_every_end_it_can_have() {
    let layer = ConcurrencyLimitLayer::new(1).max_waiting(0).until_body_end();
    let gate = layer.handle();
    let service = ServiceBuilder::new()
        .layer(layer)
        .service(service_fn(|body: Body| async { Ok::<_, Infallible>(http::Response::new(body)) }));
    let ask = |body| service.clone().oneshot(body);
    let streamed = || Body::new(Frames(0));

    // It ends, or is dropped.
    let mut response = ask(streamed()).await.unwrap();
    assert_eq!(gate.in_flight(), 1);
    let refused = ask(Body::empty()).await.unwrap();
    assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
    while http_body_util::BodyExt::frame(response.body_mut()).await.is_some() {}
    assert_eq!(gate.in_flight(), 0);
    let response = ask(streamed()).await.unwrap();
    assert_eq!(gate.in_flight(), 1);
    drop(response);
    assert_eq!(gate.in_flight(), 0);

    // It is empty, or a response of the layer itself: there is nothing to wait for.
    let response = ask(Body::empty()).await.unwrap();
    assert_eq!(gate.in_flight(), 0);
    drop((response, refused));
    assert_eq!(gate.in_flight(), 0);
}

/// Two frames, without announcing the end.
struct Frames(u8);

impl http_body::Body for Frames {
    type Data = bytes::Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<bytes::Bytes>, Infallible>>> {
        self.0 += 1;
        Poll::Ready((self.0 <= 2).then(|| Ok(http_body::Frame::data(bytes::Bytes::from_static(b"x")))))
    }
}
