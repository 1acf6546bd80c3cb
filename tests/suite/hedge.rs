//! The hedge layer, on a paused clock.

use std::{
    convert::Infallible,
    future::{pending, ready},
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures_util::poll;
use http::{Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody};
use tokio::time::{Instant, sleep};
use tokio_stream::StreamExt as _;
use tower::{Layer, Service, ServiceBuilder, ServiceExt, service_fn};
use ziggurat::{
    Budget, Class, CopyIf, Error, HttpStatus, Idempotent, LayerEvent, LayerInfo, Reason,
    body::ReplayBody,
    circuit_breaker::{CircuitBreakerLayer, State},
    concurrency_limit::{ConcurrencyLimitLayer, Priority},
    hedge::HedgeLayer,
    rate_limit::RateLimitLayer,
    replay::ReplayLayer,
    retry::RetryLayer,
    testing::{Act, Script, Strict, TestTask},
    timeout::TimeoutLayer,
    with_rejections,
};

mod edges;

const SECOND: Duration = Duration::from_secs(1);
const MILLI: Duration = Duration::from_millis(1);
const DELAY: Duration = Duration::from_millis(50);

type Outcome = Result<&'static str, Error<&'static str>>;

fn broken(error: &'static str) -> Outcome {
    Err(Error::Service(error))
}

/// An attempt: how long it takes, and how it ends.
#[derive(Debug, Clone, Copy)]
struct Attempt(Duration, Result<&'static str, &'static str>);

/// A service whose first attempts take the first of the two ways, and their hedges the second. Records when each call
/// began, and how many are in flight.
#[derive(Clone, Default)]
struct Log {
    calls: Arc<Mutex<Vec<(Duration, u32)>>>,
    in_flight: Arc<AtomicUsize>,
}

struct InFlight(Arc<AtomicUsize>);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Log {
    /// The times at which the attempts began, and their numbers.
    fn calls(&self) -> Vec<(Duration, u32)> {
        self.calls.lock().unwrap().clone()
    }

    fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::SeqCst)
    }

    fn service<Req: Send + 'static>(
        &self,
        first: Attempt,
        second: Attempt,
    ) -> impl Service<Req, Response = &'static str, Error = Error<&'static str>, Future: Send> + Clone + Send + use<Req>
    {
        let (log, start) = (self.clone(), Instant::now());
        Strict::new(service_fn(move |_: Req| {
            log.calls.lock().unwrap().push((start.elapsed(), ziggurat::attempt()));
            log.in_flight.fetch_add(1, Ordering::SeqCst);
            let in_flight = InFlight(Arc::clone(&log.in_flight));
            let Attempt(time, outcome) = if ziggurat::attempt() == 1 { first } else { second };
            async move {
                let _in_flight = in_flight;
                if !time.is_zero() {
                    sleep(time).await;
                }
                outcome.map_err(Error::Service)
            }
        }))
    }
}

type Names = Arc<Mutex<Vec<String>>>;

/// Returns an observer, and the names and reasons of the events that it saw.
fn events() -> (impl Fn(&LayerInfo, &LayerEvent<'_>) + Send + Sync + 'static, Names) {
    let names = Names::default();
    (observer_of(&names), names)
}

fn observer_of(names: &Names) -> impl Fn(&LayerInfo, &LayerEvent<'_>) + Send + Sync + use<> {
    let seen = Arc::clone(names);
    move |_: &LayerInfo, event: &LayerEvent<'_>| {
        let reason = match event {
            LayerEvent::Hedged { reason } | LayerEvent::HedgeRefused { reason } => reason,
            _ => "",
        };
        seen.lock().unwrap().push(format!("{} {reason}", event.name()).trim_end().to_owned());
    }
}

fn seen(names: &Names) -> Vec<String> {
    std::mem::take(&mut names.lock().unwrap())
}

/// Calls once through `HedgeLayer::after(DELAY)`. Returns the outcome, its time, the attempts and the events.
async fn hedged(first: Attempt, second: Attempt) -> (Outcome, Duration, Vec<(Duration, u32)>, Vec<String>) {
    let (observer, names) = events();
    let log = Log::default();
    let service = HedgeLayer::after(DELAY).observer(observer).layer(log.service(first, second));
    let start = Instant::now();
    let outcome = service.oneshot(()).await;
    assert_eq!(log.in_flight(), 0, "the loser is gone");
    (outcome, start.elapsed(), log.calls(), seen(&names))
}

/// Shows: H1, H2
#[tokio::test(start_paused = true)]
async fn a_slow_attempt_is_joined_by_a_second_one_after_the_delay_and_the_first_success_wins() {
    let fast = Attempt(10 * MILLI, Ok("fast"));
    let (outcome, time, calls, events) = hedged(Attempt(49 * MILLI, Ok("first")), fast).await;
    assert_eq!((outcome.unwrap(), time, calls.len()), ("first", 49 * MILLI, 1));
    assert!(events.is_empty());

    let (outcome, time, calls, events) = hedged(Attempt(SECOND, Ok("slow")), fast).await;
    assert_eq!((outcome.unwrap(), time), ("fast", 60 * MILLI));
    assert_eq!(calls, [(Duration::ZERO, 1), (DELAY, 2)]);
    assert_eq!(events, ["hedged delay", "hedge_won"]);

    let (outcome, time, calls, events) = hedged(Attempt(55 * MILLI, Ok("first")), fast).await;
    assert_eq!((outcome.unwrap(), time, calls.len()), ("first", 55 * MILLI, 2));
    assert_eq!(events, ["hedged delay"]);
}

/// Shows: H2
#[tokio::test(start_paused = true)]
async fn if_both_are_ready_in_the_same_poll_the_first_attempt_wins() {
    let script = Script::new();
    script.always(Act::answer().held());
    let service = HedgeLayer::after(Duration::ZERO).layer(script.service(|number: u64| number));
    let mut call = TestTask::new(service.oneshot(7_u64));
    assert!(call.poll().is_pending());
    assert_eq!(script.in_flight(), 2);
    script.release();
    let Poll::Ready(Ok(1)) = call.poll() else { panic!("not the first attempt") };
    assert_eq!(script.in_flight(), 0);
}

/// Shows: H2
#[tokio::test(start_paused = true)]
async fn a_failure_starts_the_second_attempt_at_once() {
    let failed = Attempt(10 * MILLI, Err("first"));
    let (outcome, time, calls, events) = hedged(failed, Attempt(10 * MILLI, Ok("second"))).await;
    assert_eq!((outcome.unwrap(), time), ("second", 20 * MILLI));
    assert_eq!(calls, [(Duration::ZERO, 1), (10 * MILLI, 2)]);
    assert_eq!(events, ["hedged error", "hedge_won"]);

    // The failure of either is not the end of the other.
    let (outcome, time, ..) = hedged(Attempt(55 * MILLI, Err("first")), Attempt(10 * MILLI, Ok("second"))).await;
    assert_eq!((outcome.unwrap(), time), ("second", 60 * MILLI));
    let (outcome, time, _, events) = hedged(Attempt(SECOND, Ok("first")), Attempt(MILLI, Err("second"))).await;
    assert_eq!((outcome.unwrap(), time), ("first", SECOND));
    assert_eq!(events, ["hedged delay"]);
}

/// Shows: H2
#[tokio::test(start_paused = true)]
async fn if_all_fail_the_first_error_comes_back_and_there_is_no_third_attempt() {
    for (first, second, expected) in [(10, 10, "first"), (55, 10, "first"), (SECOND.as_millis() as u64, 10, "second")] {
        let first = Attempt(Duration::from_millis(first), Err("first"));
        let (outcome, _, calls, events) = hedged(first, Attempt(Duration::from_millis(second), Err("second"))).await;
        assert_eq!(outcome.unwrap_err().into_service().unwrap(), expected);
        assert_eq!((calls.len(), events.len()), (2, 1), "{events:?}");
    }
}

/// Shows: H2
#[tokio::test(start_paused = true)]
async fn a_failure_that_asks_to_wait_or_would_come_again_starts_no_second_attempt() {
    let asks = Class::Failure { transient: true, retry_after: Some(SECOND) };
    let soon = Class::Failure { transient: true, retry_after: Some(Duration::ZERO) };
    for (class, attempts) in [
        (Class::TRANSIENT, 2),
        (soon, 2),
        (asks, 1),
        (Class::PERMANENT, 1),
        (Class::DECLINED, 1),
        (Class::Ignored, 1),
        (Class::Success, 1),
    ] {
        let log = Log::default();
        let layer = HedgeLayer::after(DELAY).classify(move |_: Result<&&str, &Error<&str>>| class);
        let failed = Attempt(MILLI, Err("failed"));
        let service = layer.layer(log.service(failed, failed));
        assert_eq!(service.oneshot(()).await.unwrap_err().into_service().unwrap(), "failed");
        assert_eq!(log.calls().len(), attempts, "{class:?}");
    }
}

/// An attempt that was sent goes on. One that waits on this side must not be sent any more.
///
/// Shows: H2
#[tokio::test(start_paused = true)]
async fn a_failure_that_asks_to_wait_is_what_the_caller_gets_if_the_other_attempt_fails_too() {
    let classify = |outcome: Result<&&str, &Error<&str>>| match outcome {
        Ok(_) => Class::Success,
        Err(Error::Service("wait")) => Class::Failure { transient: true, retry_after: Some(SECOND) },
        Err(_) => Class::TRANSIENT,
    };
    let slow = |outcome| Attempt(100 * MILLI, outcome);
    for (first, second, expected) in [
        (Attempt(60 * MILLI, Err("wait")), slow(Err("failed")), Err("wait")),
        (Attempt(60 * MILLI, Err("wait")), slow(Ok("answer")), Ok("answer")),
        (Attempt(60 * MILLI, Err("failed")), slow(Err("wait")), Err("wait")),
        (slow(Err("failed")), Attempt(MILLI, Err("wait")), Err("wait")),
    ] {
        let service = HedgeLayer::after(DELAY).classify(classify).layer(Log::default().service(first, second));
        let outcome = service.oneshot(()).await.map_err(|error| error.into_service().unwrap());
        assert_eq!(outcome, expected, "{first:?} {second:?}");
    }

    // The first attempt fails while the service is not ready for the second.
    let calls = AtomicU32::new(0);
    let ready_once = service_fn(|()| {
        calls.fetch_add(1, Ordering::SeqCst);
        async {
            sleep(2 * DELAY).await;
            broken("wait")
        }
    });
    let service = HedgeLayer::after(DELAY).classify(classify).layer(tower::limit::ConcurrencyLimit::new(ready_once, 1));
    assert_eq!(service.oneshot(()).await.unwrap_err().into_service().unwrap(), "wait");
    assert_eq!(calls.load(Ordering::SeqCst), 1);
}

/// A retry outside must not come back too soon.
///
/// Shows: H2, F3
#[tokio::test(start_paused = true)]
async fn a_response_that_asks_to_wait_is_kept_while_the_other_attempt_goes_on() {
    let service = HedgeLayer::after(DELAY).http().layer(service_fn(async |_: Request<()>| {
        sleep(100 * MILLI).await;
        match ziggurat::attempt() {
            1 => Ok(Response::builder().status(503).header("retry-after", "7").body(()).unwrap()),
            _ => Err(Error::Service(io::Error::from(io::ErrorKind::ConnectionReset))),
        }
    }));
    let response = service.oneshot(Request::new(())).await.unwrap();
    assert_eq!((response.status().as_u16(), &response.headers()["retry-after"]), (503, &"7".parse().unwrap()));
}

/// Shows: H2
#[tokio::test(start_paused = true)]
async fn a_service_that_does_not_become_ready_again_does_not_end_the_first_attempt() {
    let names = Names::default();
    let budget = Budget::new(0.0).min_per_second(1);
    for _ in 0..20 {
        let script = Script::new();
        script.always(Act::error().at_readiness());
        script.push(Act::answer().pending(2));
        let layer = HedgeLayer::after(Duration::ZERO).budget(&budget).observer(observer_of(&names));
        assert_eq!(layer.layer(script.service(|number: u64| number)).oneshot(7).await.unwrap(), 2);
        assert_eq!(seen(&names), ["hedge_refused error"], "the budget has enough for twenty calls that are not made");
    }

    // If the first one fails then, its own error is the one to know.
    let script = Script::new();
    script.always(Act::error().at_readiness());
    script.push(Act::error().pending(2));
    let service = HedgeLayer::after(Duration::ZERO).layer(script.service(|number: u64| number));
    let error = service.oneshot(7).await.unwrap_err().into_service().unwrap();
    assert_eq!((error.0, script.last_outcome()), (2, 2));
}

/// Shows: H1
#[tokio::test(start_paused = true)]
async fn the_delay_can_be_a_function_of_the_request_and_none_is_not_hedged() {
    for (millis, expected) in [(Some(20), Some(20 * MILLI)), (Some(70), Some(70 * MILLI)), (None, None)] {
        let log = Log::default();
        let layer = HedgeLayer::after(|millis: &Option<u64>| millis.map(Duration::from_millis));
        let service = layer.layer(log.service(Attempt(200 * MILLI, Err("slow")), Attempt(SECOND, Err("slower"))));
        assert!(service.oneshot(millis).await.is_err());
        assert_eq!(log.calls().get(1).map(|(time, _)| *time), expected);
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_to_which_it_does_not_apply_is_not_repeated_if_its_service_does_not_become_ready() {
    for (delay, attempts) in [(None, 1), (Some(DELAY), 2)] {
        let script = Script::new();
        script.always(Act::error().at_readiness());
        let layer = HedgeLayer::after(move |_: &u64| delay);
        assert!(layer.layer(script.service(|number: u64| number)).oneshot(7).await.is_err());
        assert_eq!(script.last_outcome(), attempts);
    }
}

/// Shows: H1
#[tokio::test(start_paused = true)]
async fn without_a_delay_both_are_sent_at_once_unless_the_first_is_ready_and_the_longest_delay_never_passes() {
    for (delay, time, attempts) in
        [(Duration::ZERO, Duration::ZERO, 1), (Duration::ZERO, SECOND, 2), (Duration::MAX, 1_000_000 * SECOND, 1)]
    {
        let log = Log::default();
        let attempt = Attempt(time, Ok("answer"));
        let service = HedgeLayer::after(delay).layer(log.service(attempt, attempt));
        assert!(service.oneshot(()).await.is_ok());
        assert_eq!(log.calls().len(), attempts, "{delay:?} {time:?}");
    }
}

/// Shows: H1
#[tokio::test(start_paused = true)]
async fn over_http_only_requests_that_may_be_repeated_are_hedged() {
    let calls = async |request: Request<&'static str>, error: io::ErrorKind| {
        let calls = AtomicU32::new(0);
        let service = HedgeLayer::after(DELAY).http().layer(service_fn(|request: Request<_>| {
            assert_eq!(request.body(), &"body");
            calls.fetch_add(1, Ordering::SeqCst);
            async move {
                sleep(2 * DELAY).await;
                Err::<Response<()>, _>(Error::Service(io::Error::from(error)))
            }
        }));
        assert!(service.oneshot(request).await.is_err());
        calls.load(Ordering::SeqCst)
    };
    let reset = io::ErrorKind::ConnectionReset;
    assert_eq!(calls(Request::get("/").body("body").unwrap(), reset).await, 2);
    assert_eq!(calls(Request::post("/").body("body").unwrap(), reset).await, 1);
    assert_eq!(calls(Request::post("/").header("idempotency-key", "7").body("body").unwrap(), reset).await, 2);
    // No server has seen it.
    assert_eq!(calls(Request::post("/").body("body").unwrap(), io::ErrorKind::ConnectionRefused).await, 2);

    let search = CopyIf(|req: &Request<&str>| req.uri().path() == "/search");
    for (path, expected) in [("/search", 2), ("/order", 1)] {
        let calls = AtomicU32::new(0);
        let service = HedgeLayer::after(DELAY).http().copy(search).layer(service_fn(|_: Request<&str>| {
            calls.fetch_add(1, Ordering::SeqCst);
            async {
                sleep(2 * DELAY).await;
                Ok::<_, Infallible>(Response::new(String::new()))
            }
        }));
        assert!(service.oneshot(Request::post(path).body("body").unwrap()).await.is_ok());
        assert_eq!(calls.load(Ordering::SeqCst), expected);
    }
}

/// Shows: H2
#[tokio::test(start_paused = true)]
async fn a_response_that_is_a_failure_is_dropped_with_its_permit_before_the_second_attempt() {
    let limit = ConcurrencyLimitLayer::new(1).until_body_end();
    let service = ServiceBuilder::new().layer(HedgeLayer::after(DELAY).http()).layer(limit.clone()).service(
        service_fn(async |_: Request<()>| {
            let status = if ziggurat::attempt() == 1 { 503 } else { 200 };
            Ok::<_, Infallible>(Response::builder().status(status).body(Full::<Bytes>::from("body")).unwrap())
        }),
    );
    let response = service.oneshot(Request::new(())).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(limit.handle().in_flight(), 1);
    drop(response);
    assert_eq!(limit.handle().in_flight(), 0);
}

/// Shows: H2
#[tokio::test(start_paused = true)]
async fn a_rejection_of_the_second_attempt_does_not_hide_the_response_that_failed() {
    let breaker = CircuitBreakerLayer::http().consecutive_failures(1);
    let service = ServiceBuilder::new().layer(HedgeLayer::after(DELAY).http()).layer(breaker).service(service_fn(
        async |_: Request<()>| Ok::<_, Error<io::Error>>(Response::builder().status(503).body(()).unwrap()),
    ));
    let outcome = service.oneshot(Request::new(())).await;
    let rejection = ziggurat::rejection(&outcome).unwrap();
    assert!(rejection.is_circuit_open());
    assert_eq!(rejection.previous(), Some("503 Service Unavailable"));
}

/// Shows: H2
#[tokio::test(start_paused = true)]
async fn a_rejection_on_this_side_starts_no_second_attempt_and_ends_no_first_one() {
    let limit = ConcurrencyLimitLayer::new(1).max_waiting(0);
    let (observer, names) = events();
    let log = Log::default();
    let service = ServiceBuilder::new()
        .layer(HedgeLayer::after(DELAY).observer(observer))
        .layer(limit)
        .service(log.service(Attempt(SECOND, Ok("first")), Attempt(MILLI, Ok("second"))));
    let mut running = pin!(service.clone().oneshot(()));
    assert!(poll!(&mut running).is_pending());
    assert!(service.oneshot(()).await.unwrap_err().is_overloaded());
    assert_eq!(seen(&names), Vec::<String>::new());
    // The only permit is taken by the first attempt itself.
    assert_eq!(running.await.unwrap(), "first");
    assert_eq!(seen(&names), ["hedge_refused overloaded"]);
    assert_eq!(log.calls().len(), 1);
}

/// A class that calls a rejection a success returns it, as in a fallback.
#[tokio::test(start_paused = true)]
async fn a_rejection_that_is_classified_as_a_success_ends_the_call() {
    let classify = with_rejections(ziggurat::FailOnError, |_| Class::Success);
    let service = ServiceBuilder::new()
        .layer(HedgeLayer::after(10 * DELAY).classify(classify))
        .layer(TimeoutLayer::new(DELAY))
        .service(service_fn(|()| pending::<Outcome>()));
    assert!(service.oneshot(()).await.unwrap_err().is_timed_out());
}

/// Shows: H1
#[tokio::test(start_paused = true)]
async fn each_attempt_has_a_permit_and_a_time_limit_of_its_own() {
    let limit = ConcurrencyLimitLayer::new(2);
    let gate = limit.handle();
    let service = ServiceBuilder::new()
        .layer(HedgeLayer::after(DELAY))
        .layer(limit)
        .layer(TimeoutLayer::new(SECOND))
        .service(service_fn(|()| pending::<Outcome>()));
    let start = Instant::now();
    let mut call = pin!(service.oneshot(()));
    assert!(poll!(&mut call).is_pending());
    assert_eq!(gate.in_flight(), 1);
    sleep(DELAY).await;
    assert!(poll!(&mut call).is_pending());
    assert_eq!(gate.in_flight(), 2);
    assert!(call.await.unwrap_err().is_timed_out());
    assert_eq!((gate.in_flight(), start.elapsed()), (0, DELAY + SECOND));
}

/// Neither does a hedge wait, nor does it shed a waiter, and a call that waits has no hedge.
///
/// Shows: H1
#[tokio::test(start_paused = true)]
async fn a_hedge_never_takes_the_place_of_a_first_attempt_in_a_full_limit() {
    let (observer, names) = events();
    let by_rank = |high: &bool| if *high { Priority::High } else { Priority::Low };
    let limit = ConcurrencyLimitLayer::new(1).max_waiting(1).priority(by_rank);
    let gate = limit.handle();
    let log = Log::default();
    let service = ServiceBuilder::new()
        .layer(HedgeLayer::after(DELAY).observer(observer))
        .layer(limit)
        .service(log.service(Attempt(SECOND, Ok("first")), Attempt(MILLI, Ok("second"))));
    let (mut high, mut low) = (pin!(service.clone().oneshot(true)), pin!(service.oneshot(false)));
    assert!(poll!(&mut high).is_pending() && poll!(&mut low).is_pending());
    for _ in 0..10 {
        sleep(DELAY).await;
        assert!(poll!(&mut high).is_pending() && poll!(&mut low).is_pending());
        assert_eq!((gate.in_flight(), gate.waiting()), (1, 1));
    }
    assert_eq!(seen(&names), ["hedge_refused overloaded"], "once, and none for the call that waits");
    // The delay of a call that waited counts from when it was sent, a second after the other one.
    assert_eq!((high.await.unwrap(), low.await.unwrap()), ("first", "first"));
    assert_eq!(log.calls(), [(Duration::ZERO, 1), (SECOND, 1)]);
}

/// Shows: H1
#[tokio::test(start_paused = true)]
async fn a_call_that_waited_for_its_permit_is_hedged_when_it_was_in_flight_for_the_delay() {
    let limit = ConcurrencyLimitLayer::new(2);
    let log = Log::default();
    let service = ServiceBuilder::new()
        .layer(HedgeLayer::after(DELAY))
        .layer(limit.clone())
        .service(log.service(Attempt(SECOND, Ok("slow")), Attempt(MILLI, Ok("fast"))));
    let hog = || {
        limit
            .layer(service_fn(|()| async {
                sleep(2 * SECOND).await;
                Ok::<_, Error<&'static str>>("hog")
            }))
            .oneshot(())
    };
    let (first, second, call) = tokio::join!(hog(), hog(), async {
        tokio::task::yield_now().await;
        service.oneshot(()).await
    });
    assert!(first.is_ok() && second.is_ok());
    assert_eq!(call.unwrap(), "fast");
    assert_eq!(log.calls(), [(2 * SECOND, 1), (2 * SECOND + DELAY, 2)]);
}

/// Shows: H1
#[tokio::test(start_paused = true)]
async fn a_hedge_that_would_wait_in_any_other_queue_is_given_up_and_its_share_of_the_budget_comes_back() {
    let (observer, names) = events();
    let budget = Budget::new(0.0).min_per_second(1);
    let rate = RateLimitLayer::new(1, 10 * SECOND).max_wait(100 * SECOND);
    let bucket = rate.handle();
    let log = Log::default();
    let service = ServiceBuilder::new()
        .layer(HedgeLayer::after(DELAY).budget(&budget).observer(observer))
        .layer(rate)
        .service(log.service(Attempt(SECOND, Ok("first")), Attempt(MILLI, Ok("second"))));
    for _ in 0..20 {
        assert_eq!(service.clone().oneshot(()).await.unwrap(), "first");
        assert_eq!(bucket.waiting(), 0);
        sleep(10 * SECOND).await;
    }
    let refused = seen(&names);
    assert!(refused.len() == 20 && refused.iter().all(|event| event == "hedge_refused queue"), "{refused:?}");
    assert_eq!(log.calls().len(), 20);
}

/// After a failure, the second attempt is the only one, and may wait as a retry may.
///
/// Shows: H2
#[tokio::test(start_paused = true)]
async fn a_second_attempt_after_a_failure_waits_for_its_turn() {
    let (observer, names) = events();
    let log = Log::default();
    let service = ServiceBuilder::new()
        .layer(HedgeLayer::after(DELAY).observer(observer))
        .layer(RateLimitLayer::new(1, SECOND).max_wait(SECOND))
        .service(log.service(Attempt(MILLI, Err("first")), Attempt(MILLI, Ok("second"))));
    assert_eq!(service.oneshot(()).await.unwrap(), "second");
    assert_eq!(log.calls(), [(Duration::ZERO, 1), (SECOND, 2)]);
    assert_eq!(seen(&names), ["hedged error", "hedge_won"]);
}

/// Shows: H1, H3
#[tokio::test(start_paused = true)]
async fn all_calls_together_are_hedged_within_the_budget_which_a_retry_can_share() {
    let (observer, names) = events();
    let budget = Budget::new(0.0).min_per_second(1);
    let log = Log::default();
    let layer = HedgeLayer::after(DELAY).budget(&budget).observer(observer);
    let service = layer.layer(log.service(Attempt(10 * DELAY, Ok("first")), Attempt(DELAY, Ok("second"))));
    for call in 0..20 {
        assert_eq!(service.clone().oneshot(()).await.unwrap(), if call < 10 { "second" } else { "first" });
    }
    assert_eq!(log.calls().len(), 30);
    assert_eq!(seen(&names).iter().filter(|event| *event == "hedge_refused budget").count(), 10);

    // Eleven seconds later the hedges take ten, and nothing is left for the retries.
    sleep(11 * SECOND).await;
    let log = Log::default();
    let service = ServiceBuilder::new()
        .layer(RetryLayer::new().backoff(MILLI).budget(&budget))
        .layer(HedgeLayer::after(DELAY).budget(&budget))
        .service(log.service(Attempt(MILLI, Err("failed")), Attempt(MILLI, Err("failed"))));
    for _ in 0..20 {
        assert!(service.clone().oneshot(()).await.is_err());
    }
    assert_eq!(log.calls().len(), 30);
    // Without a budget, every call is hedged.
    let log = Log::default();
    let service =
        HedgeLayer::after(DELAY).budget(None).layer(log.service(Attempt(SECOND, Ok("")), Attempt(MILLI, Ok(""))));
    for _ in 0..200 {
        assert!(service.clone().oneshot(()).await.is_ok());
    }
    assert_eq!(log.calls().len(), 400);
}

/// Shows: H1
#[tokio::test(start_paused = true)]
async fn a_hedge_that_is_dropped_before_it_is_sent_goes_back_into_the_budget() {
    let budget = Budget::new(0.0).min_per_second(1);
    for _ in 0..50 {
        let script = Script::new();
        script.always(Act::hang().at_readiness());
        script.push(Act::hang());
        let service = HedgeLayer::after(Duration::ZERO).budget(&budget).layer(script.service(|number: u64| number));
        let mut call = TestTask::new(service.oneshot(7));
        assert!(call.poll().is_pending());
        assert_eq!(script.in_flight(), 1);
        drop(call);
        assert_eq!(script.in_flight(), 0);
    }
    let (observer, names) = events();
    let log = Log::default();
    let layer = HedgeLayer::after(DELAY).budget(&budget).observer(observer);
    let service = layer.layer(log.service(Attempt(SECOND, Ok("first")), Attempt(MILLI, Ok("second"))));
    assert_eq!(service.oneshot(()).await.unwrap(), "second");
    assert_eq!(seen(&names), ["hedged delay", "hedge_won"]);
}

/// Inside a retry, the attempts of each pair go on from the number of the retry.
///
/// Shows: X8
#[tokio::test(start_paused = true)]
async fn the_second_attempt_has_the_next_number_also_inside_a_retry() {
    let log = Log::default();
    let service = ServiceBuilder::new()
        .layer(RetryLayer::new().backoff(SECOND).max_attempts(2))
        .layer(HedgeLayer::after(DELAY))
        .service(log.service(Attempt(MILLI, Err("failed")), Attempt(MILLI, Err("failed"))));
    assert!(service.oneshot(()).await.is_err());
    assert_eq!(log.calls().iter().map(|(_, number)| *number).collect::<Vec<_>>(), [1, 2, 2, 3]);
    assert_eq!(ziggurat::attempt(), 1);
}

/// Shows: H1
#[tokio::test(start_paused = true)]
async fn the_recommended_order_answers_fast_and_the_breaker_sees_each_attempt() {
    let budget = Budget::new(1.0);
    let (breaker, limit) = (CircuitBreakerLayer::consecutive(3), ConcurrencyLimitLayer::new(2));
    let (circuit, gate) = (breaker.handle(), limit.handle());
    let calls = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&calls);
    // One of two replicas hangs.
    let service = ServiceBuilder::new()
        .layer(TimeoutLayer::new(10 * SECOND))
        .layer(RetryLayer::new().budget(&budget))
        .layer(HedgeLayer::after(DELAY).budget(&budget))
        .layer(breaker)
        .layer(limit)
        .layer(TimeoutLayer::new(SECOND))
        .map_err(Error::Service)
        .service(service_fn(move |()| {
            let hangs = counted.fetch_add(1, Ordering::SeqCst).is_multiple_of(2);
            async move {
                sleep(if hangs { 1_000 * SECOND } else { MILLI }).await;
                Ok::<_, Infallible>("answer")
            }
        }));
    let start = Instant::now();
    for _ in 0..20 {
        assert_eq!(service.clone().oneshot(()).await.unwrap(), "answer");
    }
    assert_eq!((start.elapsed(), gate.in_flight()), (20 * (DELAY + MILLI), 0));
    assert_eq!((calls.load(Ordering::SeqCst), circuit.state()), (40, State::Closed), "a loser is no failure");

    // A rejection of the breaker is neither hedged nor retried.
    circuit.force_open();
    assert!(service.oneshot(()).await.unwrap_err().is_circuit_open());
    assert_eq!(calls.load(Ordering::SeqCst), 40);
}

/// A breaker outside does not count a call that still waits on this side, and counts one that was sent.
///
/// Shows: F2
#[tokio::test(start_paused = true)]
async fn a_breaker_outside_is_told_whether_any_attempt_was_sent() {
    for (waits, expected) in [(true, State::Closed), (false, State::Open)] {
        let (breaker, limit) = (CircuitBreakerLayer::consecutive(1), ConcurrencyLimitLayer::new(2));
        let circuit = breaker.handle();
        let hog = limit.layer(service_fn(|()| pending::<Outcome>()));
        let mut hogs = [pin!(hog.clone().oneshot(())), pin!(hog.oneshot(()))];
        for hog in hogs.iter_mut().filter(|_| waits) {
            assert!(poll!(hog).is_pending());
        }
        let service = ServiceBuilder::new()
            .layer(breaker)
            .layer(HedgeLayer::after(DELAY))
            .layer(limit)
            .layer(TimeoutLayer::new(SECOND))
            .service(service_fn(|()| pending::<Outcome>()));
        let mut call = Box::pin(service.oneshot(()));
        for _ in 0..10 {
            assert!(poll!(&mut call).is_pending());
            sleep(99 * MILLI).await;
        }
        sleep(SECOND).await;
        drop(call);
        assert_eq!(circuit.state(), expected);
    }
}

/// Over the body of one request, only one attempt at a time can read.
///
/// Shows: H1, R9
#[tokio::test(start_paused = true)]
async fn a_streamed_body_is_hedged_once_it_was_sent_completely() {
    let received = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&received);
    let service = ServiceBuilder::new().layer(ReplayLayer::new()).layer(HedgeLayer::after(DELAY).http()).service(
        service_fn(move |request: Request<ReplayBody<_>>| {
            let (log, number, start) = (Arc::clone(&log), ziggurat::attempt(), Instant::now());
            async move {
                let body = request.into_body().collect().await.expect("no attempt loses its body").to_bytes();
                log.lock().unwrap().push((number, body));
                sleep(if number == 1 { 100 * SECOND } else { SECOND }).await;
                Ok::<_, Error<io::Error>>(Response::new(start))
            }
        }),
    );
    let start = Instant::now();
    let parts = tokio_stream::iter(["a", "b", "c"]).then(async |part| {
        sleep(100 * MILLI).await;
        Ok::<_, io::Error>(Frame::data(Bytes::from(part)))
    });
    let response = service.oneshot(Request::put("/").body(StreamBody::new(parts)).unwrap()).await;
    // It is sent after 300 ms. Asked after 50 ms, 100 ms more, and 200 ms more.
    assert_eq!(response.unwrap().into_body() - start, 350 * MILLI);
    let all = Bytes::from("abc");
    assert_eq!(*received.lock().unwrap(), [(1, all.clone()), (2, all)]);
}

/// Shows: H1
#[tokio::test(start_paused = true)]
async fn at_a_percentile_nothing_is_hedged_before_enough_calls_and_then_the_slow_ones_are() {
    let layer = HedgeLayer::at_percentile(0.9).min_calls(20);
    let handle = layer.handle();
    let calls = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&calls);
    let service = layer.layer(service_fn(move |time: Duration| {
        counted.fetch_add(1, Ordering::SeqCst);
        async move {
            sleep(if ziggurat::attempt() == 1 { time } else { MILLI }).await;
            Ok::<_, Error<Infallible>>(ziggurat::attempt())
        }
    }));
    for call in 0..20 {
        assert_eq!(handle.delay(), None, "{call}");
        assert_eq!(service.clone().oneshot(if call == 7 { SECOND } else { 10 * MILLI }).await.unwrap(), 1);
    }
    let delay = handle.delay().unwrap();
    assert!((10 * MILLI..12 * MILLI).contains(&delay), "{delay:?}");
    assert_eq!(calls.load(Ordering::SeqCst), 20);

    let start = Instant::now();
    assert_eq!(service.clone().oneshot(SECOND).await.unwrap(), 2);
    assert!((delay..delay + 3 * MILLI).contains(&start.elapsed()), "{:?}", start.elapsed());
    assert_eq!(service.clone().oneshot(10 * MILLI).await.unwrap(), 1);
    assert_eq!(calls.load(Ordering::SeqCst), 23);

    // The losers count as slow: if all calls take a second, the percentile follows. Callers that leave do not lower it.
    for _ in 0..200 {
        drop(tokio::time::timeout(MILLI, service.clone().oneshot(10 * MILLI)).await);
    }
    assert_eq!(handle.delay(), Some(delay));
    for _ in 0..200 {
        assert!(service.clone().oneshot(SECOND).await.is_ok());
    }
    assert!(handle.delay().unwrap() >= SECOND, "{:?}", handle.delay());
}

/// Shows: H1
#[tokio::test(start_paused = true)]
async fn a_percentile_near_zero_has_a_minimum_and_time_in_a_queue_is_no_latency() {
    let layer = HedgeLayer::at_percentile(0.5).min_calls(1);
    let handle = layer.handle();
    let service = layer.clone().layer(service_fn(|()| ready(Ok::<_, Error<Infallible>>(()))));
    assert!(service.oneshot(()).await.is_ok());
    assert_eq!(handle.delay(), Some(MILLI));
    let layer = layer.min_delay(5 * MILLI);
    assert_eq!(handle.delay(), Some(5 * MILLI));
    handle.set_min_delay(Duration::ZERO);
    assert!(handle.delay().unwrap() < MILLI);
    assert_eq!(layer.min_calls(100).handle().delay(), None, "one call was seen");
    assert_eq!(handle.delay(), None, "it is the handle of that layer");

    // Without a handle, a changed clone is a layer of its own.
    let layer = HedgeLayer::at_percentile(0.5).min_calls(1);
    let other = layer.clone().min_delay(SECOND);
    let service = layer.layer(service_fn(|()| ready(Ok::<_, Error<Infallible>>(()))));
    assert!(service.oneshot(()).await.is_ok());
    assert_eq!((layer.handle().delay(), other.handle().delay()), (Some(MILLI), None));

    let layer = HedgeLayer::at_percentile(0.5).min_calls(3);
    let handle = layer.handle();
    let service =
        ServiceBuilder::new().layer(layer).layer(ConcurrencyLimitLayer::new(1)).service(service_fn(|()| async {
            sleep(100 * MILLI).await;
            Ok::<_, Error<Infallible>>(())
        }));
    let call = || service.clone().oneshot(());
    let (first, second, third) = tokio::join!(call(), call(), call());
    assert!(first.is_ok() && second.is_ok() && third.is_ok());
    assert!((100 * MILLI..115 * MILLI).contains(&handle.delay().unwrap()), "{:?}", handle.delay());
}

/// A request that is never hedged says nothing about those that are.
#[tokio::test(start_paused = true)]
async fn the_latency_of_a_request_that_may_not_be_repeated_does_not_count() {
    let layer = HedgeLayer::at_percentile(0.5).min_calls(1);
    let handle = layer.handle();
    let service =
        layer.http().layer(service_fn(|_: Request<()>| ready(Ok::<_, Infallible>(Response::new(String::new())))));
    assert!(service.clone().oneshot(Request::post("/").body(()).unwrap()).await.is_ok());
    assert_eq!(handle.delay(), None);
    assert!(service.oneshot(Request::get("/").body(()).unwrap()).await.is_ok());
    assert!(handle.delay().is_some());
}

#[tokio::test(start_paused = true)]
async fn a_failure_is_no_latency_unless_it_is_late() {
    let layer = HedgeLayer::at_percentile(0.5).min_calls(1);
    let handle = layer.handle();
    let service = layer.layer(service_fn(async |(time, works): (Duration, bool)| {
        sleep(time).await;
        if works { Ok("answer") } else { broken("failed") }
    }));
    assert!(service.clone().oneshot((MILLI, false)).await.is_err());
    assert_eq!(handle.delay(), None);
    assert!(service.clone().oneshot((100 * MILLI, true)).await.is_ok());
    let delay = handle.delay();
    for _ in 0..10 {
        assert!(service.clone().oneshot((MILLI, false)).await.is_err());
        assert_eq!(handle.delay(), delay);
    }
    for _ in 0..10 {
        assert!(service.clone().oneshot((SECOND, false)).await.is_err());
    }
    assert!(handle.delay() > Some(SECOND));
}

#[tokio::test(start_paused = true)]
async fn a_call_that_panics_in_its_second_attempt_releases_everything() {
    for act in [Act::panic().at_readiness(), Act::panic().in_call(), Act::panic()] {
        let script = Script::new();
        script.push(Act::hang());
        script.push(act);
        let limit = ConcurrencyLimitLayer::new(2);
        let gate = limit.handle();
        let service = ServiceBuilder::new()
            .layer(HedgeLayer::after(Duration::ZERO))
            .layer(limit)
            .service(script.service(|number: u64| number));
        let mut call = TestTask::new(service.clone().oneshot(7));
        assert!(catch_unwind(AssertUnwindSafe(|| call.poll())).is_err(), "{act:?}");
        drop(call);
        assert_eq!((gate.in_flight(), script.in_flight()), (0, 0));
        script.always(Act::answer());
        assert!(service.oneshot(7).await.is_ok());
        assert_eq!(ziggurat::attempt(), 1);
    }
}

/// The first attempt hangs, and panics when it is dropped.
#[tokio::test(start_paused = true)]
async fn a_loser_that_panics_in_its_drop_does_not_cost_the_winner() {
    struct Loser;
    impl Drop for Loser {
        fn drop(&mut self) {
            panic!("in drop");
        }
    }
    let service = HedgeLayer::after(DELAY).layer(service_fn(async |()| {
        if ziggurat::attempt() == 1 {
            let _loser = Loser;
            pending::<()>().await;
        }
        Ok::<_, Error<Infallible>>("winner")
    }));
    assert_eq!(service.oneshot(()).await.unwrap(), "winner");
}

#[tokio::test(start_paused = true)]
async fn a_call_can_be_dropped_at_every_await_with_both_attempts_in_any_state() {
    for readiness in 0..3 {
        for polls in 0..8 {
            let script = Script::new();
            script.push(Act::hang().pending_at_readiness(readiness));
            script.always(Act::hang().pending_at_readiness(readiness));
            let limit = ConcurrencyLimitLayer::new(2);
            let gate = limit.handle();
            let service = ServiceBuilder::new()
                .layer(HedgeLayer::at_percentile(0.5).min_calls(1).min_delay(Duration::ZERO))
                .layer(limit)
                .service(script.service(|number: u64| number));
            let mut call = TestTask::new(service.oneshot(7));
            for _ in 0..polls {
                assert!(call.poll().is_pending());
            }
            drop(call);
            assert_eq!((gate.in_flight(), gate.waiting(), script.in_flight(), script.ready()), (0, 0, 0, 0));
        }
    }
}

/// A service that uses up tokio's cooperative budget in every poll.
///
/// Shows: F1
#[tokio::test(start_paused = true)]
async fn a_first_attempt_that_never_yields_its_budget_is_hedged() {
    let service = HedgeLayer::after(DELAY).layer(service_fn(async |()| {
        if ziggurat::attempt() > 1 {
            return Ok::<_, Error<Infallible>>("second");
        }
        loop {
            tokio::task::consume_budget().await;
            std::future::poll_fn(|cx: &mut Context<'_>| {
                while tokio::task::coop::has_budget_remaining() {
                    let Poll::Ready(()) = pin!(tokio::task::consume_budget()).poll(cx) else { break };
                }
                Poll::Ready(())
            })
            .await;
            tokio::time::advance(MILLI).await;
        }
    }));
    assert_eq!(service.oneshot(()).await.unwrap(), "second");
}

#[tokio::test(start_paused = true)]
async fn a_call_whose_deadline_has_passed_is_not_hedged() {
    let log = Log::default();
    let deadline = ziggurat::Deadline::after(DELAY);
    let service = HedgeLayer::after(2 * DELAY).layer(log.service(Attempt(SECOND, Err("slow")), Attempt(MILLI, Ok(""))));
    assert!(deadline.within(service.oneshot(())).await.is_err());
    assert_eq!(log.calls().len(), 1);
}

#[test]
fn a_value_that_can_never_be_valid_is_refused_with_its_name() {
    for (percentile, said) in [
        (0.0, "percentile must be between 0 and 1, not 0: 0.95 for p95"),
        (1.0, "percentile must be between 0 and 1, not 1: 0.95 for p95"),
        (95.0, "percentile must be between 0 and 1, not 95: 0.95 for p95"),
        (f64::NAN, "percentile must be between 0 and 1, not NaN: 0.95 for p95"),
    ] {
        let panic = catch_unwind(|| HedgeLayer::at_percentile(percentile)).unwrap_err();
        assert_eq!(*panic.downcast::<String>().unwrap(), said);
        let handle = HedgeLayer::at_percentile(0.5).handle();
        assert!(catch_unwind(AssertUnwindSafe(|| handle.set_percentile(percentile))).is_err());
        assert_eq!(handle.percentile().to_bits(), 0.5_f64.to_bits());
    }
    let panic = catch_unwind(|| HedgeLayer::at_percentile(0.5).min_calls(0)).unwrap_err();
    assert_eq!(
        *panic.downcast::<&str>().unwrap(),
        "min_calls must be at least 1: without a call there is no percentile"
    );
}

#[test]
fn what_it_is_shows_in_its_debug_form() {
    let layer = HedgeLayer::at_percentile(0.9).classify(HttpStatus).copy(Idempotent).named("reads");
    assert!(format!("{layer:?}").contains("percentile: 0.9"), "{layer:?}");
    assert!(format!("{:?}", layer.handle()).contains("delay: None"));
    let mut service = HedgeLayer::after(Duration::ZERO).layer(service_fn(|()| pending::<Outcome>()));
    let mut call = Box::pin(service.call(()));
    assert_eq!(format!("{call:?}"), "hedge::ResponseFuture { state: \"readying\" }");
    assert!(TestTask::new(call.as_mut()).poll().is_pending());
    assert_eq!(format!("{call:?}"), "hedge::ResponseFuture { state: \"calling and hedging\" }");
    assert!(format!("{:?}", HedgeLayer::after(SECOND)).contains("After"));
}

/// A rejection of an attempt's own time limit is a failure of the service.
#[tokio::test(start_paused = true)]
async fn an_attempt_that_timed_out_is_followed_by_another() {
    let service = ServiceBuilder::new()
        .layer(HedgeLayer::after(Duration::MAX))
        .layer(TimeoutLayer::new(SECOND))
        .service(service_fn(|()| pending::<Outcome>()));
    let start = Instant::now();
    let outcome = service.oneshot(()).await;
    assert_eq!(ziggurat::rejection(&outcome).unwrap().reason(), &Reason::TimedOut { limit: SECOND });
    assert_eq!(start.elapsed(), 2 * SECOND);
}
