//! The client's stack, on a paused clock: with its defaults, and without each of its parts.

use std::{
    convert::Infallible,
    future::pending,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body::{Body, Frame};
use http_body_util::BodyExt;
use tokio::time::Instant;
use tower::{Layer, Service, ServiceBuilder, ServiceExt, service_fn};
use ziggurat::{
    Class, Error, Reason, Scope,
    body::ReplayBody,
    circuit_breaker::{CircuitBreakerLayer, State},
    concurrency_limit::ConcurrencyLimitLayer,
    replay::ReplayLayer,
    retry::RetryLayer,
    stack::{ClientSettings, ClientStack},
    timeout::TimeoutLayer,
};

type Failed = Error<&'static str>;

/// The service's reaction to a call.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Behaviour {
    Answers,
    Fails,
    Hangs,
}
use Behaviour::{Answers, Fails, Hangs};

fn service(
    calls: &Arc<AtomicU32>,
) -> impl Service<Behaviour, Response = (), Error = Failed, Future: Send> + Clone + Send + use<> {
    let calls = Arc::clone(calls);
    service_fn(move |behaviour| {
        calls.fetch_add(1, Ordering::SeqCst);
        async move {
            match behaviour {
                Answers => Ok(()),
                Fails => Err(Error::Service("failed")),
                Hangs => pending().await,
            }
        }
    })
}

/// Returns the number of calls to the service, the time in seconds, and the reason of the rejection.
async fn one_call<S>(calls: &AtomicU32, stack: S, behaviour: Behaviour) -> (u32, u64, Option<&'static str>)
where
    S: Service<Behaviour, Response = (), Error = Failed>,
{
    let (start, before) = (Instant::now(), calls.load(Ordering::SeqCst));
    let outcome = stack.oneshot(behaviour).await;
    assert_eq!(outcome.is_ok(), behaviour == Answers);
    let reason = ziggurat::rejection(&outcome).map(|rejection| rejection.reason().as_str());
    (calls.load(Ordering::SeqCst) - before, start.elapsed().as_secs(), reason)
}

/// Lets other tasks run until the condition holds.
async fn until(reached: impl Fn() -> bool) {
    for _ in 0..10_000 {
        if reached() {
            return;
        }
        tokio::task::yield_now().await;
    }
    panic!("it never came to that");
}

/// Shows: G4
#[tokio::test(start_paused = true)]
async fn by_default_there_are_three_attempts_of_ten_seconds_in_thirty() {
    let calls = Arc::default();
    let stack = ClientStack::new("test").layer(service(&calls));
    assert_eq!(one_call(&calls, stack.clone(), Answers).await, (1, 0, None));
    assert_eq!(one_call(&calls, stack.clone(), Fails).await.0, 3);
    let (attempts, seconds, reason) = one_call(&calls, stack, Hangs).await;
    assert_eq!((attempts, seconds, reason), (3, 30, Some("timed_out")), "the pauses take from the last attempt");
}

/// Shows: G4
#[tokio::test(start_paused = true)]
async fn by_default_nineteen_of_twenty_calls_open_the_circuit_for_at_least_half_a_second() {
    let calls = Arc::default();
    let layer = ClientStack::new("test").without_retry();
    let circuit = layer.circuit();
    let stack = layer.layer(service(&calls));
    assert_eq!(one_call(&calls, stack.clone(), Answers).await, (1, 0, None));
    for _ in 0..19 {
        assert_eq!(circuit.state(), State::Closed);
        assert_eq!(one_call(&calls, stack.clone(), Fails).await, (1, 0, None));
    }
    assert_eq!(circuit.state(), State::Open);
    assert_eq!(one_call(&calls, stack.clone(), Fails).await, (0, 0, Some("circuit_open")));
    // Jitter only adds, up to half as much again.
    tokio::time::advance(Duration::from_millis(499)).await;
    assert_eq!(one_call(&calls, stack.clone(), Fails).await, (0, 0, Some("circuit_open")));
    tokio::time::advance(Duration::from_millis(251)).await;
    assert_eq!(one_call(&calls, stack, Answers).await, (1, 0, None));
    assert_eq!(circuit.state(), State::Closed);
}

/// Shows: G4
#[tokio::test(start_paused = true)]
async fn at_first_twenty_are_in_flight_and_the_settings_say_how_many_wait() {
    let calls = Arc::default();
    let layer = ClientStack::new("test").settings(ClientSettings::default().max_waiting(50)).without_retry();
    let (gate, circuit) = (layer.gate(), layer.circuit());
    let stack = layer.layer(service(&calls));
    let hanging: Vec<_> = (0..70).map(|_| tokio::spawn(stack.clone().oneshot(Hangs))).collect();
    until(|| gate.waiting() == 50).await;
    assert_eq!((gate.in_flight(), calls.load(Ordering::SeqCst)), (20, 20));
    let outcome = stack.oneshot(Answers).await;
    assert!(matches!(ziggurat::rejection(&outcome).unwrap().reason(), Reason::Overloaded { limit: 20 }));
    hanging.iter().for_each(|call| call.abort());
    for call in hanging {
        assert!(call.await.unwrap_err().is_cancelled());
    }
    assert_eq!((gate.in_flight(), gate.waiting()), (0, 0));
    assert_eq!(circuit.state(), State::Closed, "a call that was never sent says nothing about the service");
}

/// Leaves out each part, and checks the missing effect.
///
/// Shows: G4
#[tokio::test(start_paused = true)]
async fn every_part_can_be_left_out() {
    let calls = Arc::default();
    let stack = || ClientStack::new("test");
    let service = || service(&calls);

    let untimed = stack().without_timeout().layer(service());
    let (attempts, seconds, reason) = one_call(&calls, untimed, Hangs).await;
    assert_eq!((attempts, reason), (3, Some("timed_out")));
    assert!(seconds >= 30, "three whole attempts, and the pauses: {seconds} s");

    let once = stack().without_retry().layer(service());
    assert_eq!(one_call(&calls, once, Hangs).await, (1, 10, Some("timed_out")));

    let patient = stack().without_attempt_timeout().layer(service());
    assert_eq!(one_call(&calls, patient, Hangs).await, (1, 30, Some("timed_out")));

    let unbroken = stack().without_circuit_breaker().without_retry().layer(service());
    for _ in 0..100 {
        assert_eq!(one_call(&calls, unbroken.clone(), Fails).await, (1, 0, None));
    }

    let unlimited = stack().without_concurrency_limit().layer(service());
    let before = calls.load(Ordering::SeqCst);
    let hanging: Vec<_> = (0..1000).map(|_| tokio::spawn(unlimited.clone().oneshot(Hangs))).collect();
    until(|| calls.load(Ordering::SeqCst) - before == 1000).await;
    hanging.iter().for_each(|call| call.abort());

    let nothing = stack()
        .without_timeout()
        .without_retry()
        .without_circuit_breaker()
        .without_concurrency_limit()
        .without_attempt_timeout();
    assert_eq!(one_call(&calls, nothing.layer(service()), Fails).await, (1, 0, None));
}

/// Shows: G4
#[tokio::test(start_paused = true)]
async fn every_part_can_be_replaced_and_settings_leave_it_alone() {
    let calls = Arc::default();
    let breaker = CircuitBreakerLayer::consecutive(100);
    let circuit = breaker.handle();
    let layer = ClientStack::new("test")
        .with_timeout(TimeoutLayer::new(Duration::from_secs(100)))
        .with_retry(RetryLayer::new().max_attempts(5).backoff(Duration::ZERO))
        .with_circuit_breaker(breaker)
        .with_concurrency_limit(ConcurrencyLimitLayer::new(3))
        .with_attempt_timeout(TimeoutLayer::new(|_: &Behaviour| Some(Duration::from_secs(1))))
        .settings(ClientSettings::default().timeout(Duration::from_secs(2)).max_attempts(1).max_in_flight(1));
    assert_eq!(layer.gate().limit(), 3);
    let stack = layer.layer(service(&calls));
    assert_eq!(one_call(&calls, stack, Hangs).await, (5, 5, Some("timed_out")));
    circuit.force_open();
    assert_eq!(layer.circuit().state(), State::Open, "the handle is that of the part that was put in");
}

/// Shows: G4
#[tokio::test(start_paused = true)]
async fn over_http_a_503_is_retried_for_a_get_and_a_post_is_sent_once() {
    let calls = Arc::new(AtomicU32::new(0));
    let unavailable = service_fn(|request: Request<&'static str>| {
        calls.fetch_add(1, Ordering::SeqCst);
        assert_eq!(*request.body(), "body");
        async {
            Ok::<_, Failed>(Response::builder().status(StatusCode::SERVICE_UNAVAILABLE).body(String::new()).unwrap())
        }
    });
    let stack = ClientStack::http("test").layer(unavailable);
    for (method, attempts) in [("GET", 3), ("POST", 1)] {
        let before = calls.load(Ordering::SeqCst);
        let request = Request::builder().method(method).body("body").unwrap();
        assert_eq!(stack.clone().oneshot(request).await.unwrap().status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(calls.load(Ordering::SeqCst) - before, attempts, "{method}");
    }
}

/// A streamed body cannot be copied. A `ReplayLayer` just outside the stack records it.
#[tokio::test(start_paused = true)]
async fn with_a_replay_around_it_a_streamed_body_is_sent_again() {
    struct Streamed(Option<Bytes>);
    impl Body for Streamed {
        type Data = Bytes;
        type Error = Infallible;
        fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            Poll::Ready(self.0.take().map(|data| Ok(Frame::data(data))))
        }
    }
    let calls = Arc::new(AtomicU32::new(0));
    let service = ServiceBuilder::new()
        .layer(ReplayLayer::new())
        .layer(ClientStack::http("test"))
        .map_err(Error::Service)
        .service_fn(|request: Request<ReplayBody<Streamed>>| {
            let number = calls.fetch_add(1, Ordering::SeqCst);
            async move {
                assert_eq!(request.into_body().collect().await.unwrap().to_bytes(), "streamed");
                let status = if number == 0 { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK };
                Ok::<_, Infallible>(Response::builder().status(status).body(String::new()).unwrap())
            }
        });
    let request = Request::put("/").body(Streamed(Some(Bytes::from_static(b"streamed")))).unwrap();
    assert_eq!(service.oneshot(request).await.unwrap().status(), StatusCode::OK);
    assert_eq!(calls.load(Ordering::SeqCst), 2);
}

#[tokio::test(start_paused = true)]
async fn one_classifier_serves_the_retry_and_the_breaker() {
    let calls = Arc::default();
    let final_failure = |outcome: Result<&(), &Failed>| match outcome {
        Ok(()) => Class::Success,
        Err(_) => Class::Failure { transient: false, retry_after: None },
    };
    let layer = ClientStack::new("test").classify(final_failure).settings(ClientSettings::default().min_calls(1));
    let circuit = layer.circuit();
    assert_eq!(one_call(&calls, layer.layer(service(&calls)), Fails).await, (1, 0, None));
    assert_eq!(circuit.state(), State::Open, "the settings hold, whatever was chained when");
}

/// The state belongs to the layer value.
#[tokio::test(start_paused = true)]
async fn clones_share_their_state_and_two_values_share_nothing() {
    let calls = Arc::default();
    let (one, other) = (ClientStack::new("one"), ClientStack::new("other"));
    let clone = one.clone().without_retry();
    one.circuit().force_open();
    assert_eq!(one_call(&calls, clone.layer(service(&calls)), Fails).await, (0, 0, Some("circuit_open")));
    assert_eq!(one_call(&calls, other.layer(service(&calls)), Answers).await, (1, 0, None));
}

#[tokio::test(start_paused = true)]
async fn every_rejection_carries_the_name_of_the_stack() {
    let named = |outcome: Result<(), Failed>| {
        let rejection = ziggurat::rejection(&outcome).unwrap();
        format!("{} {}", rejection.layer(), rejection.name().unwrap())
    };
    let calls = Arc::default();
    let layer = ClientStack::new("billing");
    let stack = layer.layer(service(&calls));
    assert_eq!(named(stack.clone().oneshot(Hangs).await), "timeout billing");
    let attempt = ClientStack::new("billing").without_retry().layer(service(&calls));
    assert_eq!(named(attempt.oneshot(Hangs).await), "timeout billing-attempt");
    layer.circuit().force_open();
    assert_eq!(named(stack.oneshot(Fails).await), "circuit_breaker billing");
    let full =
        ClientStack::new("billing").settings(ClientSettings::default().max_in_flight(1).max_waiting(0)).without_retry();
    let stack = full.layer(service(&calls));
    let hanging = tokio::spawn(stack.clone().oneshot(Hangs));
    tokio::task::yield_now().await;
    assert_eq!(named(stack.oneshot(Fails).await), "concurrency_limit billing");
    hanging.abort();
}

#[test]
fn a_number_that_can_never_be_right_is_refused_by_its_name() {
    type Case = (&'static str, fn() -> ClientSettings);
    let cases: [Case; 8] = [
        ("`timeout` must be longer than zero, not 0ns", || ClientSettings::default().timeout(Duration::ZERO)),
        ("`max_attempts` must be at least 1, not 0", || ClientSettings::default().max_attempts(0)),
        ("`retry_ratio` must be a number from 0 to 1, not NaN", || ClientSettings::default().retry_ratio(f64::NAN)),
        ("`failure_rate` must be above 0 and at most 1, not 1.5", || ClientSettings::default().failure_rate(1.5)),
        ("`min_calls` must be at least 1, not 0", || ClientSettings::default().min_calls(0)),
        ("`min_in_flight` must be at least 1, not 0", || ClientSettings::default().min_in_flight(0)),
        ("`max_in_flight` must be at least 1, not 0", || ClientSettings::default().max_in_flight(0)),
        ("`attempt_timeout` must be longer than zero, not 0ns", || {
            ClientSettings::default().attempt_timeout(Duration::ZERO)
        }),
    ];
    for (said, make) in cases {
        assert_eq!(*catch_unwind(make).unwrap_err().downcast::<String>().unwrap(), said);
    }
}

/// Shows: F7
#[test]
fn settings_that_contradict_each_other_are_refused_with_both_whatever_the_order_of_setters() {
    let (millis, seconds) = (Duration::from_millis, Duration::from_secs);
    let settings = ClientSettings::default;
    for (contradicting, said) in [
        (settings().attempt_timeout(seconds(31)), "`attempt_timeout` must be at most `timeout`, which is 30s, not 31s"),
        (
            settings().attempt_timeout(seconds(5)).timeout(seconds(4)),
            "`attempt_timeout` must be at most `timeout`, which is 4s, not 5s",
        ),
        (settings().backoff(millis(1_001)), "`backoff` must be at most `max_backoff`, which is 1s, not 1.001s"),
        (
            settings().max_backoff(millis(5)).backoff(millis(6)),
            "`backoff` must be at most `max_backoff`, which is 5ms, not 6ms",
        ),
        (
            settings().open_for(seconds(2)).max_open_for(seconds(1)),
            "`open_for` must be at most `max_open_for`, which is 1s, not 2s",
        ),
        (
            settings().min_in_flight(30).max_in_flight(20),
            "`min_in_flight` must be at most `max_in_flight`, which is 20, not 30",
        ),
    ] {
        assert_eq!(contradicting.validate().unwrap_err().to_string(), said);
        let scope = Scope::root("app").with(contradicting);
        for panic in [
            catch_unwind(|| drop(ClientStack::new("test").settings(contradicting))),
            catch_unwind(AssertUnwindSafe(|| drop(ClientStack::new("test").settings_from(&scope)))),
        ] {
            assert_eq!(*panic.unwrap_err().downcast::<String>().unwrap(), said);
        }
    }
    for valid in [
        settings().attempt_timeout(seconds(60)).timeout(seconds(60)),
        settings().timeout(seconds(60)).attempt_timeout(seconds(60)),
        settings().backoff(seconds(2)).max_backoff(seconds(2)),
        settings().open_for(seconds(600)),
        settings().open_for(seconds(600)).max_open_for(seconds(600)),
        // A default follows a lower limit.
        settings().timeout(seconds(5)),
        settings().max_backoff(millis(50)),
        settings().max_open_for(seconds(1)),
    ] {
        assert_eq!(valid.validate(), Ok(()));
        drop(ClientStack::new("test").settings(valid));
    }
}

#[tokio::test(start_paused = true)]
async fn the_largest_numbers_are_good() {
    let calls = Arc::default();
    let most = ClientSettings::default()
        .timeout(Duration::MAX)
        .attempt_timeout(Duration::MAX)
        .max_attempts(u32::MAX)
        .backoff(Duration::ZERO)
        .max_backoff(Duration::MAX)
        .retry_ratio(1.0)
        .min_retries_per_second(u32::MAX)
        .min_calls(u32::MAX)
        .open_for(Duration::MAX)
        .max_open_for(Duration::MAX)
        .max_in_flight(usize::MAX)
        .max_waiting(usize::MAX);
    let stack = ServiceBuilder::new().layer(ClientStack::new("test").settings(most)).service(service(&calls));
    assert_eq!(one_call(&calls, stack, Answers).await, (1, 0, None));
}

/// A body that yields a frame after each pause.
fn trickles(pause: Duration, frames: u32) -> impl Body<Data = Bytes, Error = Infallible> + Default {
    Trickle { left: frames, pause, next: None }
}

#[derive(Default)]
struct Trickle {
    left: u32,
    pause: Duration,
    next: Option<Pin<Box<tokio::time::Sleep>>>,
}

impl Body for Trickle {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let Some(left) = self.left.checked_sub(1) else { return Poll::Ready(None) };
        let pause = self.pause;
        let next = self.next.get_or_insert_with(|| Box::pin(tokio::time::sleep(pause)));
        std::task::ready!(next.as_mut().poll(cx));
        (self.left, self.next) = (left, None);
        Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(b"drop")))))
    }
}

/// Shows: G4
#[tokio::test(start_paused = true)]
async fn until_the_body_ends_the_total_covers_it_and_the_attempts_limit_does_not() {
    let seconds = Duration::from_secs;
    let settings = ClientSettings::default().timeout(seconds(4)).attempt_timeout(seconds(1));
    for (frames, complete, elapsed) in [(6, true, seconds(3)), (60, false, seconds(4))] {
        let service = ServiceBuilder::new()
            .layer(ClientStack::http("billing").until_body_end().settings(settings))
            .map_err(Error::Service)
            .service(service_fn(move |_: Request<String>| async move {
                Ok::<_, Infallible>(Response::new(trickles(Duration::from_millis(500), frames)))
            }));
        let start = Instant::now();
        let response = service.oneshot(Request::new(String::new())).await.unwrap_or_else(|_| panic!("no answer"));
        assert_eq!(response.into_body().collect().await.is_ok(), complete);
        assert_eq!(start.elapsed(), elapsed);
    }
}
