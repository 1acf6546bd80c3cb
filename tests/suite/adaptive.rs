//! Which calls an adaptive limit takes for measurements.

use std::{
    convert::Infallible,
    future::Future,
    ops::RangeInclusive,
    panic::AssertUnwindSafe,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    task::{Context, Wake},
    time::Duration,
};

use bytes::Bytes;
use futures_util::FutureExt;
use http_body_util::{BodyExt, StreamBody, combinators::BoxBody};
use tokio::{
    sync::Semaphore,
    task::JoinSet,
    time::{sleep, timeout},
};
use tower::{Layer, Service, ServiceExt, service_fn};
use ziggurat::{
    Error,
    concurrency_limit::{Adaptive, ConcurrencyLimitLayer, Priority},
    timeout::TimeoutLayer,
};

const MILLI: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

/// Fails at once if asked to, and otherwise takes ten milliseconds.
fn worker() -> impl Service<bool, Response = (), Error = Error<&'static str>, Future: Send> + Clone + Send + 'static {
    service_fn(|works: bool| async move {
        if !works {
            return Err(Error::Service("full"));
        }
        sleep(10 * MILLI).await;
        Ok(())
    })
}

/// Offers more calls than the limit admits, for as long as it takes to serve 1,000.
async fn overload<S>(service: &S, works: bool, patience: Duration)
where
    S: Service<bool, Response = (), Error = Error<&'static str>, Future: Send> + Clone + Send + 'static,
{
    let mut calls = JoinSet::new();
    for _ in 0..100 {
        let service = service.clone();
        calls.spawn(async move {
            for _ in 0..50 {
                let _given_up = tokio::time::timeout(patience, service.clone().oneshot(works)).await;
            }
        });
    }
    while calls.join_next().await.is_some() {}
}

/// Shows: A3
#[tokio::test(start_paused = true)]
async fn served_calls_raise_it_and_it_stays_within_its_bounds() {
    let layer = ConcurrencyLimitLayer::adaptive(Adaptive::aimd().between(15..=25));
    let (gate, service) = (layer.handle(), layer.layer(worker()));
    assert_eq!(gate.limit(), 20);
    overload(&service, true, Duration::MAX).await;
    assert_eq!(gate.limit(), 25);
    let fails = layer.layer(service_fn(|_: bool| async {
        sleep(MILLI).await;
        Err::<(), _>(Error::Service("full"))
    }));
    for _ in 0..3 {
        overload(&fails, true, Duration::MAX).await;
        assert!((15..=25).contains(&gate.limit()), "{}", gate.limit());
    }
}

/// Shows: A3
#[tokio::test(start_paused = true)]
async fn calls_that_their_callers_cancel_say_nothing() {
    let layer = ConcurrencyLimitLayer::adaptive(Adaptive::aimd());
    let (gate, service) = (layer.handle(), layer.layer(worker()));
    overload(&service, true, 5 * MILLI).await;
    assert_eq!(gate.limit(), 20);
    assert_eq!((gate.in_flight(), gate.waiting()), (0, 0));
}

/// A service that hangs until every caller's deadline is too slow for its load.
///
/// Shows: A3
#[tokio::test(start_paused = true)]
async fn calls_that_their_deadline_ends_are_dropped() {
    let layer = ConcurrencyLimitLayer::adaptive(Adaptive::gradient());
    let gate = layer.handle();
    let service = TimeoutLayer::new(5 * MILLI).layer(layer.layer(worker()));
    let mut calls = JoinSet::new();
    for _ in 0..30 {
        calls.spawn(service.clone().oneshot(true));
    }
    while calls.join_next().await.is_some() {}
    assert_eq!(gate.limit(), 18, "a tenth lower");
}

#[test]
fn bounds_that_no_limit_can_keep_are_refused() {
    for (bounds, said) in [
        (0..=5, "the lowest limit must be at least 1: with no permits nothing could ever pass"),
        (RangeInclusive::new(7, 5), "the lowest limit must not be above the highest, as in 7..=5"),
    ] {
        let refused = std::panic::catch_unwind(|| Adaptive::http().between(bounds)).expect_err(said);
        let text = refused.downcast_ref::<String>().cloned();
        let text = text.or_else(|| refused.downcast_ref::<&str>().map(ToString::to_string));
        assert_eq!(text.as_deref(), Some(said));
    }
    let near = ConcurrencyLimitLayer::adaptive(Adaptive::http().between(30..=60));
    assert_eq!(near.handle().limit(), 30);
    let shown = format!("{near:?}");
    assert!(shown.contains("Steered<ziggurat"), "{shown}");
}

/// A body that nothing but its drop ends, such as a stream of events.
fn endless() -> http::Response<BoxBody<Bytes, Infallible>> {
    http::Response::new(BodyExt::boxed(StreamBody::new(futures_util::stream::pending())))
}

/// Endless streams hold every permit. No call ends any more, so no step would ever raise the limit.
///
/// Shows: A3
#[tokio::test(start_paused = true)]
async fn a_limit_grows_beyond_the_bodies_that_hold_all_of_its_permits() {
    for max_waiting in [0, 10] {
        let layer = ConcurrencyLimitLayer::adaptive(Adaptive::http().between(1..=200)).until_body_end();
        let layer = layer.max_waiting(max_waiting);
        let gate = layer.handle();
        let service = layer.layer(service_fn(async |()| {
            sleep(MILLI).await;
            Ok::<_, Infallible>(endless())
        }));
        let ask = || timeout(SECOND, service.clone().oneshot(()));
        let mut streams = Vec::new();
        for nth in 0..200 {
            let response = ask().await.expect("the limit is stuck").unwrap();
            assert_eq!(response.status(), 200, "of stream {nth}");
            streams.push(response);
        }
        // It is the highest limit.
        assert_eq!((gate.limit(), gate.in_flight()), (200, 200));
        assert!(ask().await.is_err() || max_waiting == 0);

        // It has fallen, as in a brown-out, far below the streams that are left.
        streams.truncate(100);
        gate.set_limit(5);
        assert_eq!(ask().await.expect("the limit is stuck").unwrap().status(), 200);
    }
}

/// The last call to the service's head is the last one that can make room for those that wait.
///
/// Shows: A3
#[tokio::test(start_paused = true)]
async fn waiters_are_admitted_when_the_last_permit_becomes_that_of_a_body() {
    let layer = ConcurrencyLimitLayer::adaptive(Adaptive::http()).until_body_end();
    let service = layer.layer(service_fn(async |()| {
        sleep(MILLI).await;
        Ok::<_, Infallible>(endless())
    }));
    let calls: JoinSet<_> = (0..50).map(|_| timeout(SECOND, service.clone().oneshot(()))).collect();
    let streams = calls.join_all().await;
    assert_eq!(streams.iter().filter(|stream| stream.is_ok()).count(), 50);
}

/// A stream, or an error after a millisecond.
fn streams_or_fails() -> impl Service<
    bool,
    Response = http::Response<BoxBody<Bytes, Infallible>>,
    Error = Error<&'static str>,
    Future: Send + Unpin,
> + Clone {
    service_fn(|streams: bool| {
        Box::pin(async move {
            sleep(MILLI).await;
            if streams { Ok(endless()) } else { Err(Error::Service("failed")) }
        })
    })
}

/// A call may join the queue only after the last permit has become that of a body.
///
/// Shows: A3
#[tokio::test(start_paused = true)]
async fn a_call_that_is_polled_late_finds_room_too() {
    let service = ConcurrencyLimitLayer::adaptive(Adaptive::http()).until_body_end().layer(streams_or_fails());
    let calls: Vec<_> = (0..20).map(|_| service.clone().call(true)).collect();
    let late = service.clone().call(true);
    let streams = futures_util::future::join_all(calls).await;
    let late = timeout(SECOND, late).await.expect("the limit is stuck");
    assert!(late.is_ok() && streams.iter().all(Result::is_ok));
}

/// The permit of the last call is handed to no waiter, because the limit has fallen.
///
/// Shows: A3
#[tokio::test(start_paused = true)]
async fn waiters_are_admitted_when_the_last_call_beside_the_bodies_fails() {
    let layer = ConcurrencyLimitLayer::adaptive(Adaptive::http()).until_body_end();
    let (gate, service) = (layer.handle(), layer.layer(streams_or_fails()));
    let streams = futures_util::future::join_all((0..19).map(|_| service.clone().call(true))).await;
    let last = tokio::spawn(service.clone().call(false));
    let waiter = tokio::spawn(timeout(SECOND, service.clone().call(true)));
    tokio::task::yield_now().await;
    assert_eq!((gate.in_flight(), gate.waiting()), (20, 1));
    gate.set_limit(19);
    assert!(last.await.unwrap().is_err());
    assert!(waiter.await.unwrap().expect("the limit is stuck").is_ok());
    drop(streams);
}

/// Permits are free, but not for calls of this priority.
///
/// Shows: A3
#[tokio::test(start_paused = true)]
async fn a_limit_grows_beyond_the_bodies_that_hold_all_that_a_priority_may_use() {
    for max_waiting in [0, 10] {
        let layer = ConcurrencyLimitLayer::adaptive(Adaptive::http()).until_body_end().max_waiting(max_waiting);
        let layer = layer.priority(|_: &bool| Priority::Normal).reserve(Priority::High, 0.2);
        let service = layer.layer(streams_or_fails());
        let mut streams = Vec::new();
        for nth in 0..60 {
            let stream = timeout(SECOND, service.clone().oneshot(true)).await.expect("the limit is stuck");
            assert!(stream.is_ok(), "stream {nth}: {stream:?}");
            streams.push(stream);
        }
    }
}

/// Wakers are foreign code.
#[tokio::test(start_paused = true)]
async fn a_waker_that_panics_while_room_is_made_costs_no_permit() {
    struct Panics;
    impl Wake for Panics {
        fn wake(self: Arc<Self>) {
            panic!("a waker");
        }
    }
    let layer = ConcurrencyLimitLayer::adaptive(Adaptive::http()).until_body_end();
    let (gate, service) = (layer.handle(), layer.layer(streams_or_fails()));
    let streams = futures_util::future::join_all((0..19).map(|_| service.clone().call(true))).await;
    let mut last = Box::pin(service.clone().call(true));
    let mut waiter = Box::pin(service.clone().call(true));
    assert!(waiter.as_mut().poll(&mut Context::from_waker(&Arc::new(Panics).into())).is_pending());
    assert!(last.as_mut().now_or_never().is_none());
    sleep(MILLI).await;
    let panicked = std::panic::catch_unwind(AssertUnwindSafe(|| last.as_mut().now_or_never()));
    assert_eq!(panicked.expect_err("a panic").downcast_ref(), Some(&"a waker"));
    drop((streams, last, waiter));
    assert_eq!(gate.in_flight(), 0);
}

/// A service of four workers, each of which needs ten milliseconds for a call.
fn four_workers()
-> impl Service<bool, Response = (), Error = Error<&'static str>, Future: Send> + Clone + Send + 'static {
    let workers = Arc::new(Semaphore::new(4));
    service_fn(move |_: bool| {
        let workers = Arc::clone(&workers);
        async move {
            let _worker = workers.acquire().await;
            sleep(10 * MILLI).await;
            Ok(())
        }
    })
}

/// Under light load, its calls show the latency of the service without a queue.
///
/// Shows: A3
#[tokio::test(start_paused = true)]
async fn light_load_shows_the_latency_without_a_queue() {
    let layer = ConcurrencyLimitLayer::adaptive(Adaptive::gradient());
    let (gate, service) = (layer.handle(), layer.layer(four_workers()));
    for _ in 0..30 {
        service.clone().oneshot(true).await.unwrap();
    }
    let highest = Arc::new(AtomicU32::new(0));
    let seen = Arc::clone(&highest);
    tokio::spawn(async move {
        loop {
            seen.fetch_max(gate.limit() as u32, Ordering::Relaxed);
            sleep(MILLI).await;
        }
    });
    overload(&service, true, Duration::MAX).await;
    assert_eq!(highest.load(Ordering::Relaxed), 20, "a queue was taken for the service");
}
