//! The rate limit, on a paused clock.

use std::{
    convert::Infallible,
    future::ready,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    task::Poll,
    time::Duration,
};

use axum::{Router, body::Body, routing::get};
use bytes::Bytes;
use http::{Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use tokio::{
    task::JoinSet,
    time::{Instant, advance, sleep, timeout},
};
use tower::{Layer, Service, ServiceBuilder, ServiceExt, limit::ConcurrencyLimitLayer as TowerLimitLayer, service_fn};
use ziggurat::{
    Deadline, Error, LayerEvent, LayerInfo, Reason, Rejection,
    rate_limit::RateLimitLayer,
    rejection_response::RejectionResponseLayer,
    testing::{Strict, TestTask},
};

use super::concurrency_limit::start;

const MILLI: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

type Failed = Error<&'static str>;

/// Returns when it was called, in milliseconds. Its requests are their own cost.
fn clocked() -> impl Service<u32, Response = u64, Error = Failed, Future: Send> + Clone + Send + Sync {
    let start = Instant::now();
    Strict::new(service_fn(move |_: u32| {
        let at = start.elapsed().as_millis() as u64;
        async move { Ok(at) }
    }))
}

fn itself(cost: &u32) -> u32 {
    *cost
}

/// The time to come back of a call that exceeds the rate.
fn wait<R>(outcome: &Result<R, Failed>) -> Duration {
    let rejection = ziggurat::rejection(outcome).unwrap();
    assert!(rejection.is_rate_limited(), "{rejection}");
    rejection.retry_after().unwrap()
}

/// Shows: Q1
#[tokio::test(start_paused = true)]
async fn all_services_and_clones_of_one_layer_value_share_its_bucket() {
    let layer = RateLimitLayer::new(3, SECOND);
    let services = [layer.layer(clocked()), layer.layer(clocked()), layer.clone().layer(clocked())];
    for service in services.iter().cycle().take(3).cloned() {
        assert!(service.oneshot(1).await.is_ok());
    }
    for service in services {
        assert!(service.oneshot(1).await.unwrap_err().is_rate_limited());
    }
    assert!(RateLimitLayer::new(3, SECOND).layer(clocked()).oneshot(1).await.is_ok());
}

/// Shows: Q1
#[test]
fn threads_together_make_no_more_calls_than_the_bucket_has_tokens() {
    let (layer, made) = (RateLimitLayer::new(1, DAY).burst(500), AtomicU32::new(0));
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let mut service = layer.layer(service_fn(|()| async {
                    made.fetch_add(1, Ordering::Relaxed);
                    Ok::<_, Failed>(())
                }));
                for _ in 0..300 {
                    assert!(start(&mut service, ()).poll().is_ready());
                }
            });
        }
    });
    assert_eq!((made.into_inner(), layer.handle().available()), (500, 0));
}

/// Shows: Q2
#[tokio::test(start_paused = true)]
async fn a_rejection_takes_nothing_and_its_time_to_come_back_is_exact() {
    let layer = RateLimitLayer::new(10, SECOND).cost(itself);
    let service = layer.layer(clocked());
    assert!(service.clone().oneshot(8).await.is_ok());
    for _ in 0..100 {
        assert_eq!(wait(&service.clone().oneshot(5).await), 300 * MILLI);
    }
    assert_eq!(layer.handle().available(), 2);
    advance(300 * MILLI - Duration::from_nanos(1)).await;
    assert_eq!(wait(&service.clone().oneshot(5).await), Duration::from_nanos(1));
    advance(Duration::from_nanos(1)).await;
    assert!(service.oneshot(5).await.is_ok());
}

/// Shows: Q2
#[tokio::test(start_paused = true)]
async fn over_http_it_is_a_429_with_whole_seconds() {
    let layer = RateLimitLayer::new(2, Duration::from_secs(3)).named("api");
    let router: Router = Router::new().route("/", get(|| async { "hello" })).layer(layer);
    let call = async || router.clone().oneshot(Request::new(Body::empty())).await.unwrap();
    for _ in 0..2 {
        assert_eq!(call().await.status(), 200);
    }
    let rejected = call().await;
    assert_eq!((rejected.status().as_u16(), &rejected.headers()["retry-after"]), (429, &"2".parse().unwrap()));
    let outcome = Ok::<_, Infallible>(rejected);
    assert_eq!(
        ziggurat::rejection(&outcome).unwrap().to_string(),
        "rate_limit `api`: the rate limit is exceeded; try again in 1.5s"
    );
    advance(SECOND * 3 / 2).await;
    assert_eq!(call().await.status(), 200);
}

/// Shows: Q3
#[tokio::test(start_paused = true)]
async fn a_call_may_cost_nothing_or_more_than_is_ever_possible() {
    let layer = RateLimitLayer::new(5, SECOND).cost(|cost: &u32| (*cost != 99).then_some(*cost));
    let service = layer.layer(clocked());
    assert!(service.clone().oneshot(5).await.is_ok());
    for free in [0, 99] {
        assert!(service.clone().oneshot(free).await.is_ok());
    }
    for layer in [layer.clone(), layer.max_wait(DAY)] {
        let outcome = layer.layer(clocked()).oneshot(6).await;
        let rejection = ziggurat::rejection(&outcome).unwrap();
        assert_eq!(rejection.reason(), &Reason::CostTooHigh { cost: 6, burst: 5 });
        assert_eq!((rejection.status().as_u16(), rejection.retry_after()), (413, None));
        assert_eq!(rejection.to_string(), "rate_limit: the call costs 6, and the rate limit never admits more than 5");
        assert!(rejection.is_unprocessed() && !rejection.is_rate_limited());
    }
}

/// tower's limit stands for every inner service that reserves something when it is made ready.
#[tokio::test(start_paused = true)]
async fn a_call_that_waits_or_is_rejected_does_not_hoard_what_the_inner_service_reserved() {
    for layer in [RateLimitLayer::new(1, SECOND), RateLimitLayer::new(1, SECOND).max_wait(SECOND)] {
        let inner = TowerLimitLayer::new(1).layer(clocked());
        let mut service = layer.layer(inner.clone());
        assert!(start(&mut service, 1).poll().is_ready());
        let mut second = start(&mut service, 1);
        let polled = second.poll();
        assert!(start(&mut inner.clone(), 1).poll().is_ready(), "{polled:?}");
        drop(second);
        assert!(inner.clone().oneshot(1).await.is_ok());
    }
}

/// Shows: Q2
#[tokio::test(start_paused = true)]
async fn calls_wait_in_order_and_a_new_call_does_not_overtake_them() {
    let layer = RateLimitLayer::new(10, SECOND).cost(itself).max_wait(SECOND);
    let (service, handle) = (layer.layer(clocked()), layer.handle());
    assert_eq!(service.clone().oneshot(10).await.unwrap(), 0);
    let mut calls = JoinSet::new();
    for (number, cost) in [4, 1, 2].into_iter().enumerate() {
        let service = service.clone();
        calls.spawn(async move { (number, service.oneshot(cost).await.unwrap()) });
        tokio::task::yield_now().await;
    }
    assert_eq!(handle.waiting(), 3);
    // There would be a token for it, but the first call waits for four.
    advance(200 * MILLI).await;
    assert_eq!(handle.available(), 2);
    assert_eq!(wait(&layer.clone().max_wait(Duration::ZERO).layer(clocked()).oneshot(1).await), 600 * MILLI);
    calls.spawn(async move { (3, service.oneshot(1).await.unwrap()) });
    assert_eq!(calls.join_all().await, [(0, 400), (1, 500), (2, 700), (3, 800)]);
    assert_eq!((handle.waiting(), handle.available()), (0, 0));
}

/// Shows: Q2, A2
#[tokio::test(start_paused = true)]
async fn a_call_that_would_wait_too_long_is_rejected_at_once() {
    let layer = RateLimitLayer::new(1, SECOND).max_wait(2 * SECOND);
    let (mut service, handle) = (layer.layer(clocked()), layer.handle());
    assert!(start(&mut service, 1).poll().is_ready());
    let mut waiting = [start(&mut service, 1), start(&mut service, 1)];
    assert!(waiting.iter_mut().all(|call| call.poll().is_pending()));
    let Poll::Ready(rejected) = start(&mut service, 1).poll() else { panic!("it waits") };
    assert_eq!((wait(&rejected), handle.waiting()), (3 * SECOND, 2));

    let [first, second] = waiting;
    drop(second);
    let deadline = Deadline::after(2 * SECOND);
    let Poll::Ready(rejected) = TestTask::new(deadline.within(service.clone().oneshot(1))).poll() else {
        panic!("it waits until its deadline")
    };
    assert_eq!(wait(&rejected), 2 * SECOND);
    let deadline = Deadline::after(2 * SECOND + MILLI);
    assert!(TestTask::new(deadline.within(service.clone().oneshot(1))).poll().is_pending());
    drop(first);
}

/// Shows: Q2
#[tokio::test(start_paused = true)]
async fn a_waiter_that_is_dropped_leaves_its_tokens_to_the_next() {
    let layer = RateLimitLayer::new(1, SECOND).max_wait(DAY);
    let (mut service, handle) = (layer.layer(clocked()), layer.handle());
    assert!(start(&mut service, 1).poll().is_ready());
    let mut calls = Vec::from_iter((0..4).map(|_| start(&mut service, 1)));
    assert!(calls.iter_mut().all(|call| call.poll().is_pending()));
    // The first leaves, and then one in the middle.
    drop(calls.remove(0));
    drop(calls.remove(1));
    assert_eq!(handle.waiting(), 2);
    advance(SECOND).await;
    assert!(calls[0].times_woken() > 0);
    assert!(matches!(calls[0].poll(), Poll::Ready(Ok(1000))));
    assert!(calls[1].poll().is_pending());
    advance(SECOND).await;
    // Granted, but dropped before it knew.
    let mut service = layer.clone().max_wait(Duration::ZERO).layer(clocked());
    assert!(matches!(start(&mut service, 1).poll(), Poll::Ready(Err(_))));
    assert_eq!((handle.waiting(), handle.available()), (0, 0));
    calls.clear();
    assert_eq!(handle.available(), 1);
    assert!(matches!(start(&mut service, 1).poll(), Poll::Ready(Ok(_))));
}

/// Shows: Q2
#[tokio::test(start_paused = true)]
async fn the_calls_behind_a_waiter_that_leaves_move_up() {
    let service = RateLimitLayer::new(1, SECOND).max_wait(DAY).layer(clocked());
    assert_eq!(service.clone().oneshot(1).await.unwrap(), 0);
    let mut calls = Vec::new();
    for _ in 0..3 {
        calls.push(tokio::spawn(service.clone().oneshot(1)));
        tokio::task::yield_now().await;
    }
    calls.remove(1).abort();
    let last = calls.pop().unwrap();
    assert_eq!((calls.pop().unwrap().await.unwrap().unwrap(), last.await.unwrap().unwrap()), (1000, 2000));
}

/// A future that its owner keeps without polling it must not stop the others.
#[tokio::test(start_paused = true)]
async fn a_waiter_that_is_no_longer_polled_does_not_stop_the_others() {
    // With a burst of one, its turn passes unused, and the next one sees to it at its own turn.
    for (burst, turn) in [(2, 2000), (1, 3000)] {
        let layer = RateLimitLayer::new(1, SECOND).burst(burst).max_wait(DAY);
        let mut service = layer.layer(clocked());
        for _ in 0..burst {
            assert!(start(&mut service, 1).poll().is_ready());
        }
        let mut kept = start(&mut service, 1);
        assert!(kept.poll().is_pending());
        assert_eq!(service.oneshot(1).await.unwrap(), turn);
        assert!(matches!(kept.poll(), Poll::Ready(Ok(at)) if at == turn));
    }
}

/// Shows: Q2
#[tokio::test(start_paused = true)]
async fn a_waiter_whose_turn_has_come_gives_its_tokens_back_if_the_call_is_not_made() {
    let inner = TowerLimitLayer::new(1).layer(clocked());
    let layer = RateLimitLayer::new(1, SECOND).max_wait(DAY);
    let handle = layer.handle();
    let mut service = layer.layer(inner.clone());
    assert!(start(&mut service, 1).poll().is_ready());
    let mut waiting = start(&mut service, 1);
    assert!(waiting.poll().is_pending());
    let mut taken = inner.clone();
    let _ready = taken.ready().await.unwrap();
    advance(SECOND).await;
    // It has its token, and waits for the inner service.
    assert!(waiting.poll().is_pending());
    assert_eq!((handle.available(), handle.waiting()), (0, 0));
    drop(waiting);
    assert_eq!(handle.available(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_new_rate_reaches_those_who_wait() {
    let layer = RateLimitLayer::new(1, SECOND).max_wait(10 * SECOND);
    let (service, handle) = (layer.layer(clocked()), layer.handle());
    assert!(service.clone().oneshot(1).await.is_ok());
    let mut calls = JoinSet::new();
    for _ in 0..4 {
        let service = service.clone();
        calls.spawn(async move { service.oneshot(1).await });
        tokio::task::yield_now().await;
    }
    handle.set_rate(10, SECOND);
    assert_eq!((handle.quantity(), handle.period(), handle.burst()), (10, SECOND, 10));
    // The bucket may hold ten tokens now, of which one is missing.
    for outcome in calls.join_all().await {
        assert_eq!(outcome.unwrap(), 0);
    }
    assert_eq!(handle.available(), 5);

    handle.set_burst(1);
    handle.set_rate(1, SECOND);
    advance(SECOND).await;
    let mut calls = JoinSet::new();
    for _ in 0..2 {
        let service = service.clone();
        calls.spawn(async move { service.oneshot(1).await });
        tokio::task::yield_now().await;
    }
    handle.set_rate(1, 60 * SECOND);
    let outcomes = calls.join_all().await;
    // No longer than the wait allows, even if the turn moves away.
    assert_eq!(outcomes[0].as_ref().unwrap(), &1000);
    assert_eq!(wait(&outcomes[1]), 50 * SECOND);
    assert_eq!(handle.waiting(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_waiter_that_a_smaller_burst_has_no_room_for_is_rejected() {
    let layer = RateLimitLayer::new(10, SECOND).cost(itself).max_wait(DAY);
    let (mut service, handle) = (layer.layer(clocked()), layer.handle());
    assert!(start(&mut service, 10).poll().is_ready());
    let (mut large, mut small) = (start(&mut service, 8), start(&mut service, 2));
    assert!(large.poll().is_pending() && small.poll().is_pending());
    handle.set_burst(5);
    assert!(large.times_woken() > 0 && small.times_woken() > 0);
    let Poll::Ready(Err(error)) = large.poll() else { panic!("it waits") };
    assert_eq!(error.rejection().unwrap().reason(), &Reason::CostTooHigh { cost: 8, burst: 5 });
    assert!(small.poll().is_pending());
    advance(200 * MILLI).await;
    assert!(small.poll().is_ready());
}

#[tokio::test(start_paused = true)]
async fn an_observer_hears_of_a_wait_and_of_a_rejection() {
    let heard = Arc::new(Mutex::new(Vec::new()));
    let observer = {
        let heard = Arc::clone(&heard);
        move |info: &LayerInfo, event: &LayerEvent<'_>| {
            let event = match event {
                LayerEvent::Rejected(rejection) => rejection.to_string(),
                event => event.name().to_owned(),
            };
            heard.lock().unwrap().push(format!("{}: {event}", info.layer()));
        }
    };
    let layer = RateLimitLayer::new(1, SECOND).named("api").max_wait(SECOND).observer(observer);
    let mut service = layer.layer(clocked());
    assert!(start(&mut service, 1).poll().is_ready());
    let mut waiting = start(&mut service, 1);
    assert!(waiting.poll().is_pending() && waiting.poll().is_pending());
    drop(start(&mut service, 1));
    assert!(start(&mut service, 1).poll().is_ready());
    let rejected = "rate_limit: rate_limit `api`: the rate limit is exceeded; try again in 2s";
    assert_eq!(*heard.lock().unwrap(), ["rate_limit: queued", rejected]);
}

/// Shows: Q3
#[tokio::test(start_paused = true)]
async fn the_true_cost_of_a_response_goes_back_or_is_missing() {
    let layer = RateLimitLayer::new(100, SECOND).cost(10_u32).settle(|cost: &Option<u32>| *cost);
    let handle = layer.handle();
    let handler = service_fn(async |cost: Result<Option<u32>, &'static str>| cost.map_err(Error::Service));
    let call = async |cost| {
        let before = handle.available();
        let _outcome = layer.layer(handler).oneshot(cost).await;
        before - handle.available()
    };
    assert_eq!(call(Ok(Some(3))).await, 3);
    assert_eq!(call(Ok(Some(0))).await, 0);
    assert_eq!(call(Ok(Some(30))).await, 30);
    assert_eq!(call(Ok(None)).await, 10);
    assert_eq!(call(Err("failed")).await, 10);
    // It costs more than there is: later calls wait for the rest.
    assert_eq!(call(Ok(Some(97))).await, 47);
    let outcome: Result<_, Failed> = layer.layer(handler).oneshot(Ok(None)).await;
    assert_eq!(wait(&outcome), 600 * MILLI);
    advance(DAY).await;
    assert_eq!(handle.available(), 100);
}

/// Shows: Q3
#[tokio::test(start_paused = true)]
async fn the_true_cost_of_a_body_counts_when_it_ends_or_is_dropped() {
    let layer = RateLimitLayer::new(1_000, SECOND).cost(100_u32);
    let handle = layer.handle();
    let frames = |sizes: &'static [usize]| {
        let frames = sizes.iter().map(|size| Ok::<_, Infallible>(Frame::data(Bytes::from(vec![0; *size]))));
        StreamBody::new(tokio_stream::iter(frames))
    };
    let handler = service_fn(move |sizes: &'static [usize]| ready(Ok::<_, Failed>(Response::new(frames(sizes)))));
    let bytes = layer.clone().settle_bytes().layer(handler);
    let lacking = || 1_000 - handle.available();

    let response = bytes.clone().oneshot(&[5, 20][..]).await.unwrap();
    assert_eq!(lacking(), 100);
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes().len(), 25);
    assert_eq!(lacking(), 25);
    // Read in part, and then dropped.
    let mut response = bytes.clone().oneshot(&[400, 20][..]).await.unwrap();
    response.body_mut().frame().await.unwrap().unwrap();
    assert_eq!(lacking(), 125);
    drop(response);
    assert_eq!(lacking(), 425);
    // Never read.
    drop(bytes.oneshot(&[400][..]).await.unwrap());
    assert_eq!(lacking(), 425);

    // A usage that one of the frames contains, as language models do.
    let usage = |frame: &Frame<Bytes>| frame.data_ref().filter(|data| data.len() < 100).map(|data| data.len() as u32);
    let usage = layer.settle_body(usage).layer(handler);
    usage.clone().oneshot(&[700, 7, 700][..]).await.unwrap().into_body().collect().await.unwrap();
    assert_eq!(lacking(), 432);
    let mut response = usage.oneshot(&[700, 7, 700][..]).await.unwrap();
    response.body_mut().frame().await.unwrap().unwrap();
    drop(response);
    assert_eq!(lacking(), 532);
}

/// Shows: Q3
#[tokio::test(start_paused = true)]
async fn an_empty_body_costs_no_bytes() {
    let layer = RateLimitLayer::new(100, SECOND).cost(10_u32).settle_bytes().headers();
    let handle = layer.handle();
    let router = Router::new().route("/", get(|| async {})).layer(layer);
    let _response = router.oneshot(Request::new(Body::empty())).await.unwrap();
    assert_eq!(handle.available(), 100);
}

/// Shows: Q3
#[tokio::test(start_paused = true)]
async fn tokens_that_come_back_are_for_those_who_wait() {
    let layer = RateLimitLayer::new(10, SECOND).cost(itself).max_wait(SECOND);
    let settled = layer.clone().settle(|_: &u64| 0);
    assert_eq!(layer.layer(clocked()).oneshot(10).await.unwrap(), 0);
    advance(500 * MILLI).await;
    let mut first = start(&mut settled.layer(clocked()), 5);
    let mut waiting = start(&mut layer.layer(clocked()), 5);
    assert!(waiting.poll().is_pending());
    assert!(first.poll().is_ready());
    assert_eq!(waiting.times_woken(), 1);
    assert!(waiting.poll().is_ready());
}

/// Shows: Q4
#[tokio::test(start_paused = true)]
async fn http_responses_say_how_much_of_the_rate_is_left() {
    let minute = Duration::from_secs(60);
    let limits = || {
        ServiceBuilder::new()
            .layer(RateLimitLayer::new(2, minute).named("api").headers())
            .layer(RateLimitLayer::new(100, SECOND).burst(50).headers())
    };
    let routes = || Router::new().route("/", get(|| async { "hello" }));
    for router in [
        routes().layer(limits()),
        routes().layer(ServiceBuilder::new().layer(RejectionResponseLayer::problem_json()).layer(limits())),
    ] {
        let call = async || {
            let response = router.clone().oneshot(Request::new(Body::empty())).await.unwrap();
            let all = |name| {
                let values = response.headers().get_all(name).iter();
                Vec::from_iter(values.map(|value| value.to_str().unwrap().to_owned()))
            };
            (response.status().as_u16(), all("ratelimit-policy"), all("ratelimit"), all("retry-after"))
        };
        let both = [r#""default";q=50;w=1"#, r#""api";q=2;w=60"#].map(str::to_owned).to_vec();
        for (left, reset) in [(1, 30), (0, 60)] {
            let limit = [r#""default";r=49;t=1"#.to_owned(), format!(r#""api";r={left};t={reset}"#)].to_vec();
            assert_eq!(call().await, (200, both.clone(), limit, vec![]));
            advance(10 * MILLI).await;
        }
        advance(10 * SECOND).await;
        let limit = [r#""api";r=0;t=20"#.to_owned()].to_vec();
        assert_eq!(call().await, (429, both[1..].to_vec(), limit, vec!["20".to_owned()]));
    }
}

/// Where a rejection is an error, it has no headers, until it becomes a response.
///
/// Shows: Q4
#[tokio::test(start_paused = true)]
async fn a_rejection_that_is_an_error_keeps_its_headers_for_the_response() {
    let handler = service_fn(async |_: Request<()>| Ok::<_, Failed>(Response::new(String::new())));
    let limit = || RateLimitLayer::new(1, SECOND).cost(2_u32).headers();
    assert!(limit().layer(handler).oneshot(Request::new(())).await.is_err());
    let service = ServiceBuilder::new().layer(RejectionResponseLayer::problem_json()).layer(limit()).service(handler);
    let response = service.oneshot(Request::new(())).await.unwrap();
    assert_eq!(response.status(), 413);
    assert_eq!(response.headers()["ratelimit-policy"], r#""default";q=1;w=1"#);
    assert_eq!(response.headers()["ratelimit"], r#""default";r=1;t=0"#);
    assert!(!response.headers().contains_key("retry-after"));
}

#[test]
fn a_rate_that_admits_nothing_or_everything_is_a_mistake() {
    for (mistake, named) in [
        (Box::new(|| drop(RateLimitLayer::new(0, SECOND))) as Box<dyn Fn()>, "`quantity`"),
        (Box::new(|| drop(RateLimitLayer::new(1, Duration::ZERO))), "`period`"),
        (Box::new(|| drop(RateLimitLayer::new(1, SECOND).burst(0))), "`burst`"),
        (Box::new(|| RateLimitLayer::new(1, SECOND).handle().set_rate(0, SECOND)), "`quantity`"),
    ] {
        let panic = std::panic::catch_unwind(std::panic::AssertUnwindSafe(&mistake)).unwrap_err();
        assert!(panic.downcast::<&str>().unwrap().contains(named), "{named}");
    }
}

pub(crate) type Made = Arc<Mutex<Vec<(u64, u64)>>>;

/// Records when it was called, in milliseconds, and for how many tokens.
pub(crate) fn recording(
    begin: Instant,
    made: Made,
) -> impl Service<u32, Response = (), Error = Failed, Future: Send> + Clone + Send {
    service_fn(move |cost: u32| {
        made.lock().unwrap().push((begin.elapsed().as_millis() as u64, u64::from(cost)));
        async { Ok(()) }
    })
}

/// Callers come at random, wait, give up at random, and cost different numbers of tokens.
///
/// Shows: Q1, Q2
#[tokio::test(start_paused = true)]
async fn random_callers_never_exceed_the_rate_and_use_it_fully() {
    const BURST: u64 = 10;
    const PER_SECOND: u64 = 50;
    for seed in 0..20 {
        let made = Made::default();
        let layer = RateLimitLayer::new(PER_SECOND as u32, SECOND).burst(BURST as u32).cost(itself).max_wait(SECOND);
        let (handle, begin) = (layer.handle(), Instant::now());
        let service = layer.layer(recording(begin, Arc::clone(&made)));
        let mut random = fastrand::Rng::with_seed(seed);
        let mut callers = JoinSet::new();
        for _ in 0..1_000 {
            let (at, patience) = (random.u64(0..5_000), random.u64(0..1_500));
            let (cost, service) = (random.u32(1..4), service.clone());
            callers.spawn(async move {
                sleep(Duration::from_millis(at)).await;
                let _gave_up = timeout(Duration::from_millis(patience), service.oneshot(cost)).await;
            });
        }
        callers.join_all().await;
        let made = std::mem::take(&mut *made.lock().unwrap());
        for (first, (from, _)) in made.iter().enumerate() {
            let mut tokens = 0;
            for (until, cost) in &made[first..] {
                tokens += cost;
                assert!(tokens * 1_000 <= BURST * 1_000 + PER_SECOND * (until - from), "seed {seed}: {made:?}");
            }
        }
        // They ask for eight times as much. A timer may be late by a millisecond for each call.
        let tokens: u64 = made.iter().map(|(_, cost)| cost).sum();
        assert!(tokens >= 5 * PER_SECOND * 9 / 10, "seed {seed}: {tokens}");
        assert_eq!(handle.waiting(), 0);
    }
}

/// Shows: Q2
#[test]
fn a_rejection_says_that_nothing_was_processed() {
    let layer = RateLimitLayer::new(1, SECOND);
    let mut service = layer.layer(service_fn(|()| async { Ok::<_, Failed>(()) }));
    assert!(start(&mut service, ()).poll().is_ready());
    let Poll::Ready(Err(error)) = start(&mut service, ()).poll() else { panic!("it is admitted") };
    assert!(error.rejection().is_some_and(Rejection::is_unprocessed));
}
