//! Priorities of a concurrency limit: which calls are shed first, which permits are reserved, which calls are exempt.

use std::{
    convert::Infallible,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex, OnceLock},
    task::Poll,
    time::Duration,
};

use axum::{Router, body::Body, routing::get};
use futures_util::future::BoxFuture;
use http::{Request, StatusCode};
use tokio::{
    sync::Notify,
    task::{JoinSet, yield_now},
    time::sleep,
};
use tower::{Layer, Service, ServiceBuilder, ServiceExt, service_fn, util::BoxCloneSyncService};
use ziggurat::{
    Error, LayerEvent, LayerInfo, Reason,
    circuit_breaker::{CircuitBreakerLayer, State},
    concurrency_limit::{Adaptive, ConcurrencyLimitLayer, Priority},
    testing::TestTask,
    timeout::TimeoutLayer,
};

use crate::concurrency_limit::{counts, start};

const MILLI: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

type Failed = Error<&'static str>;

/// A call of this priority, which ends when the bell is rung.
#[derive(Clone)]
struct Call(Priority, Arc<Notify>);

fn call(priority: Priority) -> Call {
    Call(priority, Arc::default())
}

fn of_call(call: &Call) -> Priority {
    call.0
}

fn of_pair<T>(pair: &(Priority, T)) -> Priority {
    pair.0
}

fn until_rung() -> impl Service<Call, Response = Priority, Error = Failed, Future: Send> + Clone + Send + Sync {
    service_fn(|Call(priority, bell): Call| async move {
        bell.notified().await;
        Ok(priority)
    })
}

fn is_overloaded<R, E: 'static>(outcome: &Poll<Result<R, Error<E>>>) -> bool {
    matches!(outcome, Poll::Ready(outcome) if ziggurat::rejection(outcome).is_some_and(|it| it.is_overloaded()))
}

/// Health checks of a server that is full.
///
/// Shows: A4
#[tokio::test]
async fn exempt_calls_pass_a_full_limit_and_are_not_counted() {
    let limit = ConcurrencyLimitLayer::new(1)
        .max_waiting(0)
        .priority(|request: &Request<Body>| match request.uri().path() {
            "/health" => Priority::Exempt,
            _ => Priority::Normal,
        })
        .until_body_end();
    let gate = limit.handle();
    let app =
        Router::new().route("/", get(|| async { "hello" })).route("/health", get(|| async { "healthy" })).layer(limit);
    let request = |path: &str| app.clone().oneshot(Request::get(path).body(Body::empty()).unwrap());
    let unread = request("/").await.unwrap();
    assert_eq!(gate.in_flight(), 1);
    assert_eq!(request("/").await.unwrap().status(), StatusCode::SERVICE_UNAVAILABLE);
    let checks = [request("/health").await.unwrap(), request("/health").await.unwrap()];
    assert!(checks.iter().all(|response| response.status() == StatusCode::OK));
    assert_eq!(gate.in_flight(), 1);
    drop(checks);
    assert_eq!(gate.in_flight(), 1, "an exempt body released a permit that it did not have");
    drop(unread);
    assert_eq!(gate.in_flight(), 0);
}

/// Shows: A4
#[tokio::test(start_paused = true)]
async fn the_newest_of_the_lowest_priority_is_shed_at_once_for_a_higher_one() {
    let heard = Arc::new(Mutex::new(Vec::new()));
    let events = Arc::clone(&heard);
    let layer = ConcurrencyLimitLayer::new(1)
        .max_waiting(2)
        .priority(of_call)
        .observer(move |_: &LayerInfo, event: &LayerEvent<'_>| events.lock().unwrap().push(event.name()));
    let (gate, mut service) = (layer.handle(), layer.layer(until_rung()));
    let running = call(Priority::Low);
    let mut first = start(&mut service, running.clone());
    assert!(first.poll().is_pending());
    let mut waiting = [Priority::Low, Priority::Normal].map(|priority| start(&mut service, call(priority)));
    assert!(waiting.iter_mut().all(|call| call.poll().is_pending()));
    // A call of the same priority as the lowest is rejected itself.
    assert!(is_overloaded(&start(&mut service, call(Priority::Low)).poll()));

    let high = call(Priority::High);
    let mut admitted = start(&mut service, high.clone());
    assert!(admitted.poll().is_pending());
    assert_eq!(waiting.each_ref().map(TestTask::times_woken), [1, 0]);
    assert_eq!(counts(&gate), (1, 2));
    let Poll::Ready(shed) = waiting[0].poll() else { panic!("it still waits") };
    let rejection = ziggurat::rejection(&shed).unwrap();
    assert_eq!(rejection.reason(), &Reason::Overloaded { limit: 1 });
    // Calls are assumed to take 100 ms, and two come before another one like it.
    assert_eq!(rejection.retry_after(), Some(300 * MILLI));
    assert!(waiting[1].poll().is_pending());
    assert_eq!(*heard.lock().unwrap(), ["queued", "queued", "rejected", "queued", "rejected"]);

    running.1.notify_one();
    assert!(first.poll().is_ready());
    high.1.notify_one();
    assert!(matches!(admitted.poll(), Poll::Ready(Ok(Priority::High))), "it was not the first");
    assert_eq!(counts(&gate), (1, 0));
    drop(waiting);
    assert_eq!(counts(&gate), (0, 0));
}

/// Shows: A4
#[tokio::test]
async fn a_call_that_was_shed_and_is_dropped_or_polled_late_holds_nothing() {
    for polled in [false, true] {
        let layer = ConcurrencyLimitLayer::new(1).max_waiting(1).priority(of_call);
        let (gate, mut service) = (layer.handle(), layer.layer(until_rung()));
        let (mut running, mut low) =
            (start(&mut service, call(Priority::Low)), start(&mut service, call(Priority::Low)));
        assert!(running.poll().is_pending() && low.poll().is_pending());
        let mut high = start(&mut service, call(Priority::High));
        assert!(high.poll().is_pending());
        drop(running);
        assert_eq!((counts(&gate), high.times_woken()), ((1, 0), 1), "the permit is for the higher one");
        assert!(!polled || is_overloaded(&low.poll()));
        drop(low);
        assert_eq!(counts(&gate), (1, 0));
        drop(high);
        assert_eq!(counts(&gate), (0, 0));
        assert!(start(&mut service, call(Priority::Low)).poll().is_pending());
    }
}

/// Where no call may wait, there is none to shed: reserves take the place of the queue.
///
/// Shows: A4
#[tokio::test]
async fn without_a_queue_a_reserve_is_what_the_higher_priorities_have_left() {
    let layer = ConcurrencyLimitLayer::new(10)
        .max_waiting(0)
        .priority(of_call)
        .reserve(Priority::High, 0.2)
        .reserve(Priority::Normal, 0.3);
    let (gate, mut service) = (layer.handle(), layer.layer(until_rung()));
    let mut calls = Vec::new();
    for (priority, admitted) in [(Priority::Low, 5), (Priority::Normal, 3), (Priority::High, 2)] {
        for _ in 0..admitted {
            calls.push(start(&mut service, call(priority)));
            assert!(calls.last_mut().unwrap().poll().is_pending());
        }
        let Poll::Ready(rejected) = start(&mut service, call(priority)).poll() else { panic!("{priority:?} waits") };
        let limit = gate.in_flight();
        assert_eq!(ziggurat::rejection(&rejected).unwrap().reason(), &Reason::Overloaded { limit });
    }
    // A share of whatever the limit is.
    calls.clear();
    gate.set_limit(100);
    calls.extend((0..50).map(|_| start(&mut service, call(Priority::Low))));
    assert!(calls.iter_mut().all(|call| call.poll().is_pending()));
    assert!(is_overloaded(&start(&mut service, call(Priority::Low)).poll()));
    // One permit is for all.
    calls.clear();
    gate.set_limit(1);
    assert!(start(&mut service, call(Priority::Low)).poll().is_pending());
}

/// Shows: A4
#[tokio::test]
async fn a_call_that_waits_for_a_reserved_permit_lets_higher_ones_pass_and_none_like_it() {
    let layer = ConcurrencyLimitLayer::new(2).priority(of_call).reserve(Priority::High, 0.5);
    let (gate, mut service) = (layer.handle(), layer.layer(until_rung()));
    let running = call(Priority::Normal);
    let mut first = start(&mut service, running.clone());
    let mut waiting = [Priority::Low, Priority::Normal].map(|priority| start(&mut service, call(priority)));
    assert!(first.poll().is_pending() && waiting.iter_mut().all(|call| call.poll().is_pending()));
    assert_eq!(counts(&gate), (1, 2));
    let mut high = start(&mut service, call(Priority::High));
    assert!(high.poll().is_pending());
    assert_eq!(counts(&gate), (2, 2));
    drop(high);
    assert_eq!(waiting.each_ref().map(TestTask::times_woken), [0, 0], "the permit is reserved");
    running.1.notify_one();
    assert!(first.poll().is_ready());
    assert_eq!(waiting.each_ref().map(TestTask::times_woken), [0, 1]);
    gate.set_reserve(Priority::High, 0.0);
    assert_eq!(waiting.each_ref().map(TestTask::times_woken), [1, 1]);
}

/// A queue that does not end is kept short, and the newest of the lowest priority makes room in it.
///
/// Shows: A4
#[tokio::test(start_paused = true)]
async fn under_lasting_overload_calls_of_low_priority_are_shed_and_those_of_a_high_one_are_not() {
    let layer = ConcurrencyLimitLayer::new(2).priority(of_pair);
    let gate = layer.handle();
    let service = ServiceBuilder::new().layer(TimeoutLayer::new(60 * SECOND)).layer(layer).service(service_fn(
        async |call: (Priority, usize)| {
            sleep(100 * MILLI).await;
            Ok::<_, Failed>(call)
        },
    ));
    let mut calls = JoinSet::new();
    // 40 calls per second, of which 20 can be served: 10 high, 20 normal, 10 low.
    for number in 0..800 {
        let priority = [Priority::High, Priority::Normal, Priority::Low, Priority::Normal][number % 4];
        calls.spawn(service.clone().oneshot((priority, number)));
        sleep(25 * MILLI).await;
        assert!(number < 200 || gate.waiting() <= 18, "{}", gate.waiting());
    }
    let mut answered = [0; 3];
    while let Some(outcome) = calls.join_next().await {
        // Until the queue has lasted for a second, it may be a burst.
        if let Ok((priority, 200..)) = outcome.unwrap() {
            answered[priority as usize] += 1;
        }
    }
    let [low, normal, high] = answered;
    assert_eq!((high, low), (150, 0));
    assert!((150..=168).contains(&normal), "{normal} of 300, and those in the queue at the end");
}

/// A probe that is a call of low priority is admitted before all others, and may use reserved permits.
///
/// Shows: A4
#[tokio::test(start_paused = true)]
async fn a_probe_of_low_priority_waits_behind_nobody_and_is_not_shed() {
    let breaker = CircuitBreakerLayer::consecutive(1).open_for(SECOND);
    let circuit = breaker.handle();
    let layer = ConcurrencyLimitLayer::new(2).max_waiting(1).priority(of_call).reserve(Priority::High, 0.5);
    let gate = layer.handle();
    let mut limited = layer.layer(until_rung());
    let mut service = breaker.layer(limited.clone());
    let bells = [(); 2].map(|()| call(Priority::High));
    let mut running = bells.clone().map(|call| start(&mut limited, call));
    let mut waiting = start(&mut limited, call(Priority::High));
    assert!(running.iter_mut().all(|call| call.poll().is_pending()) && waiting.poll().is_pending());
    let failing = breaker.layer(service_fn(|_: Call| async { Err::<Priority, Failed>(Error::Service("down")) }));
    failing.oneshot(call(Priority::Low)).await.unwrap_err();
    sleep(SECOND).await;

    let mut probe = start(&mut service, call(Priority::Low));
    assert!(probe.poll().is_pending());
    assert_eq!((circuit.state(), counts(&gate)), (State::HalfOpen, (2, 2)));
    // The queue is full, and a probe is not what makes room in it.
    assert!(is_overloaded(&start(&mut limited, call(Priority::High)).poll()));
    bells[0].1.notify_one();
    assert!(running[0].poll().is_ready());
    assert_eq!((probe.times_woken(), waiting.times_woken()), (1, 0));
}

/// The service has not seen a call that was shed.
///
/// Shows: A4, F2
#[tokio::test]
async fn a_call_that_was_shed_says_nothing_about_the_service() {
    let breaker = CircuitBreakerLayer::consecutive(1);
    let circuit = breaker.handle();
    let layer = ConcurrencyLimitLayer::new(1).max_waiting(1).priority(of_call);
    let mut service = ServiceBuilder::new().layer(breaker).layer(layer).service(until_rung());
    let mut calls = [Priority::Low, Priority::Low, Priority::High].map(|priority| start(&mut service, call(priority)));
    assert!(calls.iter_mut().all(|call| call.poll().is_pending()));
    assert!(is_overloaded(&calls[1].poll()));
    assert_eq!(circuit.state(), State::Closed);
}

#[tokio::test]
async fn a_function_that_panics_takes_no_permit_along() {
    let layer = ConcurrencyLimitLayer::new(1).priority(|call: &Call| {
        assert!(call.0 != Priority::Low, "a low call");
        call.0
    });
    let (gate, mut service) = (layer.handle(), layer.layer(until_rung()));
    let panicked = catch_unwind(AssertUnwindSafe(|| service.call(call(Priority::Low))));
    assert!(panicked.is_err());
    assert_eq!(counts(&gate), (0, 0));
    let _high = start(&mut service, call(Priority::High));
    assert_eq!(counts(&gate), (1, 0));
}

/// Exempt calls fail, and an adaptive limit that took them for measurements would be lower.
///
/// Shows: A4
#[tokio::test(start_paused = true)]
async fn exempt_calls_are_no_measurements_and_those_that_they_make_are() {
    let layer = ConcurrencyLimitLayer::adaptive(Adaptive::aimd()).max_waiting(0).priority(of_pair);
    let (gate, full) = (layer.handle(), layer.layer(service_fn(|_| std::future::pending::<Result<(), Failed>>())));
    let fails = layer.layer(service_fn(|(_, nested): (Priority, bool)| async move {
        assert!(!nested);
        Err::<(), Failed>(Error::Service("down"))
    }));
    // A limit is lowered only while it is full.
    let mut full = [(); 20].map(|()| start(&mut full.clone(), (Priority::Normal, false)));
    assert!(full.iter_mut().all(|call| call.poll().is_pending()));
    for _ in 0..1000 {
        assert!(!is_overloaded(&Poll::Ready(fails.clone().oneshot((Priority::Exempt, false)).await)));
    }
    assert_eq!((gate.limit(), gate.in_flight()), (20, 20));

    // Within an exempt call, another call through the same limit is measured.
    drop(full);
    let inner = fails.clone();
    let outer = layer.layer(service_fn(move |_| {
        let mut inner = inner.clone();
        // Called, and not only polled, inside the exempt call.
        let inner = inner.call((Priority::Normal, false));
        async { inner.await.map(drop) }
    }));
    let hangs = layer.layer(service_fn(|_| std::future::pending::<Result<(), Failed>>()));
    let mut others: Vec<_> = (0..21).map(|_| start(&mut hangs.clone(), (Priority::Normal, false))).collect();
    assert!(is_overloaded(&others[20].poll()), "the limit was full");
    // All permits but one: most of them are in use, or the call would not be measured.
    others.truncate(19);
    for _ in 0..10 {
        outer.clone().oneshot((Priority::Exempt, false)).await.unwrap_err();
    }
    assert!(gate.limit() < 20, "{}", gate.limit());
}

/// A call inside another one that waited for a permit that is reserved would wait for itself.
///
/// Shows: A4
#[tokio::test(start_paused = true)]
async fn a_call_of_itself_for_which_the_rest_is_reserved_is_rejected() {
    type Handler = BoxCloneSyncService<(u32, Priority), u32, Failed>;
    let itself = Arc::new(OnceLock::<Handler>::new());
    let outermost = Arc::clone(&itself);
    let handler = service_fn(move |(more, priority): (u32, Priority)| -> BoxFuture<'static, Result<u32, Failed>> {
        let outermost = outermost.get().unwrap().clone();
        Box::pin(async move {
            yield_now().await;
            if more == 0 { Ok(0) } else { Ok(outermost.oneshot((more - 1, priority)).await? + 1) }
        })
    });
    let layer = ConcurrencyLimitLayer::new(3)
        .priority(|&(_, priority): &(u32, Priority)| priority)
        .reserve(Priority::High, 0.5);
    let handler = itself.get_or_init(|| BoxCloneSyncService::new(layer.layer(handler)));
    for (priority, depth) in [(Priority::Normal, 0), (Priority::High, 2)] {
        assert_eq!(handler.clone().oneshot((depth, priority)).await.unwrap(), depth);
        let outcome = tokio::time::timeout(SECOND, handler.clone().oneshot((depth + 1, priority))).await.unwrap();
        assert_eq!(ziggurat::rejection(&outcome).map(|it| it.reason().clone()), Some(Reason::Recursive));
    }
    assert_eq!(handler.clone().oneshot((9, Priority::Exempt)).await.unwrap(), 9);
    assert_eq!(counts(&layer.handle()), (0, 0));
}

/// Shows: A4
#[tokio::test]
async fn a_priority_may_be_a_value_and_a_clone_without_one_counts_as_high() {
    let plain = ConcurrencyLimitLayer::new(2).max_waiting(0);
    let low = plain.clone().priority(Priority::Low).reserve(Priority::High, 0.5);
    assert_eq!((low.handle().reserve(Priority::High), plain.handle().reserve(Priority::High)), (0.5, 0.5));
    let service = service_fn(|(): ()| std::future::pending::<Result<(), Error<Infallible>>>());
    let (mut plain, mut low) = (plain.layer(service), low.layer(service));
    let mut calls = [start(&mut low, ()), start(&mut low, ()), start(&mut plain, ()), start(&mut plain, ())];
    assert_eq!(calls.each_mut().map(|call| is_overloaded(&call.poll())), [false, true, false, true]);
    assert!(format!("{:?}", ConcurrencyLimitLayer::new(1).priority(Priority::Low)).contains("ByRequest<"));
}

#[test]
#[should_panic(expected = "the shares reserved for `Normal` (0.5) and `High` (0.6) must add up to at most 1")]
fn reserves_of_more_than_the_whole_are_refused() {
    let layer = ConcurrencyLimitLayer::new(10).priority(Priority::Low);
    let _ = layer.reserve(Priority::High, 0.6).reserve(Priority::Normal, 0.5);
}
