//! The retry layer, on a paused clock.

use std::{
    convert::Infallible,
    panic::AssertUnwindSafe,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use futures_util::FutureExt;
use http::{Request, Response, StatusCode};
use http_body::Body;
use tokio::time::{Instant, sleep};
use tower::{Layer, Service, ServiceBuilder, ServiceExt, service_fn};
use ziggurat::{
    Backoff, Budget, Class, Error, HttpStatus, Jitter, LayerEvent, LayerInfo, Reason, Reject,
    circuit_breaker::CircuitBreakerLayer,
    concurrency_limit::ConcurrencyLimitLayer,
    retry::{RetryLayer, Wait},
    testing::{Strict, TestTask},
    timeout::TimeoutLayer,
};

const SECOND: Duration = Duration::from_secs(1);

/// Counts its calls, and responds with the result of `answer` for their number (from 1).
fn counting<A, R, E>(
    calls: &Arc<AtomicU32>,
    answer: A,
) -> impl Service<&'static str, Response = R, Error = E, Future: Send> + Clone + Send + use<A, R, E>
where
    A: Fn(u32) -> Result<R, E> + Clone + Send,
    R: Send,
    E: Send,
{
    let calls = Arc::clone(calls);
    Strict::new(service_fn(move |_: &'static str| {
        let outcome = answer(calls.fetch_add(1, Ordering::SeqCst) + 1);
        async move { outcome }
    }))
}

type Failed = Error<String>;

fn failing(number: u32) -> Result<&'static str, Failed> {
    Err(Error::Service(format!("failure {number}")))
}

fn own(outcome: Result<&'static str, Failed>) -> String {
    match outcome {
        Err(Error::Service(error)) => error,
        other => panic!("not the service's own error: {other:?}"),
    }
}

/// Shows: R1
#[tokio::test(start_paused = true)]
async fn the_last_error_comes_back_after_so_many_tries() {
    for attempts in [1, 2, 3, 7] {
        let calls = Arc::default();
        let service =
            ServiceBuilder::new().layer(RetryLayer::new().max_attempts(attempts)).service(counting(&calls, failing));
        assert_eq!(own(service.oneshot("").await), format!("failure {attempts}"));
        assert_eq!(calls.load(Ordering::SeqCst), attempts);
    }
}

/// Shows: R1
#[tokio::test(start_paused = true)]
async fn a_success_ends_it() {
    let calls = Arc::default();
    let second = |number| if number == 2 { Ok("second") } else { failing(number) };
    let service = ServiceBuilder::new().layer(RetryLayer::new()).service(counting(&calls, second));
    assert_eq!(service.oneshot("").await.unwrap(), "second");
    assert_eq!(calls.load(Ordering::SeqCst), 2);
}

/// Shows: R1
#[tokio::test(start_paused = true)]
async fn with_one_attempt_nothing_is_copied() {
    let layer = RetryLayer::new().max_attempts(1).copy(|_: &&str| -> Option<&str> { panic!("copied") });
    let service = ServiceBuilder::new().layer(layer).service(counting(&Arc::default(), failing));
    assert_eq!(own(service.oneshot("").await), "failure 1");
}

/// Shows: R2
#[tokio::test(start_paused = true)]
async fn it_waits_before_each_retry_and_neither_before_the_first_nor_after_the_last() {
    let started = Arc::new(Mutex::new(Vec::new()));
    let start = Instant::now();
    let service = ServiceBuilder::new().layer(RetryLayer::new().backoff(Backoff::fixed(SECOND))).service({
        let started = Arc::clone(&started);
        service_fn(move |()| {
            started.lock().unwrap().push(start.elapsed());
            async { Err::<(), _>(Error::Service("no")) }
        })
    });
    assert!(service.oneshot(()).await.is_err());
    assert_eq!(*started.lock().unwrap(), [Duration::ZERO, SECOND, 2 * SECOND]);
    assert_eq!(start.elapsed(), 2 * SECOND);
}

/// Shows: R3
#[tokio::test(start_paused = true)]
async fn exponential_waits_two_and_four_seconds() {
    let layer = RetryLayer::new().backoff(Backoff::exponential(2 * SECOND).factor(2.0).jitter(Jitter::None));
    let service = ServiceBuilder::new().layer(layer).service(counting(&Arc::default(), failing));
    let start = Instant::now();
    assert!(service.oneshot("").await.is_err());
    assert_eq!(start.elapsed(), 6 * SECOND);
}

/// Shows: R3
#[tokio::test(start_paused = true)]
async fn the_wait_can_be_a_function_of_attempt_and_outcome() {
    let layer = RetryLayer::new().backoff(|attempt: u32, outcome: Result<&&str, &Failed>| {
        assert_eq!(outcome.unwrap_err().to_string(), format!("failure {attempt}"));
        attempt * 10 * SECOND
    });
    let service = ServiceBuilder::new().layer(layer).service(counting(&Arc::default(), failing));
    let start = Instant::now();
    assert!(service.oneshot("").await.is_err());
    assert_eq!(start.elapsed(), 30 * SECOND);
}

/// tower's jitter is the same for every request: its backoff maker clones a generator that never advances.
///
/// Shows: R3
#[tokio::test(start_paused = true)]
async fn two_requests_that_fail_together_do_not_retry_together() {
    let layer = RetryLayer::new().max_attempts(2).backoff(Backoff::exponential(1000 * SECOND)).budget(None);
    let service = ServiceBuilder::new().layer(layer).service(counting(&Arc::default(), failing));
    let start = Instant::now();
    let ended = async |service| {
        let _: Result<_, Failed> = ServiceExt::oneshot(service, "").await;
        start.elapsed()
    };
    let (first, second) = tokio::join!(ended(service.clone()), ended(service));
    assert_ne!(first, second);
}

/// Shows: R4
#[tokio::test(start_paused = true)]
async fn only_what_is_classed_as_transient_is_retried() {
    for (class, expected) in [(Class::TRANSIENT, 3), (Class::PERMANENT, 1), (Class::Ignored, 1), (Class::Success, 1)] {
        let calls = Arc::default();
        let layer = RetryLayer::new().classify(move |_: Result<&&str, &Failed>| class);
        let service = ServiceBuilder::new().layer(layer).service(counting(&calls, failing));
        assert_eq!(own(service.oneshot("").await), format!("failure {expected}"));
        assert_eq!(calls.load(Ordering::SeqCst), expected);
    }
}

/// Shows: R4
#[tokio::test(start_paused = true)]
async fn a_response_can_be_a_failure_and_the_last_one_comes_back() {
    let layer = RetryLayer::new().classify(|outcome: Result<&u32, &Failed>| match outcome {
        Ok(_) => Class::TRANSIENT,
        Err(_) => Class::PERMANENT,
    });
    let service = ServiceBuilder::new().layer(layer).service(counting(&Arc::default(), Ok));
    assert_eq!(service.oneshot("").await.unwrap(), 3);
}

/// Sends `request` through `RetryLayer::http()` to a service with this constant response. Returns the number of calls
/// and the last status.
async fn over_http(
    request: http::request::Builder,
    status: u16,
    retry_after: Option<&'static str>,
) -> (u32, StatusCode, Duration) {
    let calls = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&calls);
    let service = ServiceBuilder::new().layer(RetryLayer::http().backoff(SECOND)).service(service_fn(
        move |request: Request<_>| {
            assert_eq!(request.body(), &"body", "a retry has to carry the body");
            counted.fetch_add(1, Ordering::SeqCst);
            let response = Response::builder().status(status);
            let response = match retry_after {
                Some(value) => response.header("retry-after", value),
                None => response,
            };
            async { Ok::<_, Infallible>(response.body(String::new()).unwrap()) }
        },
    ));
    let start = Instant::now();
    let response = service.oneshot(request.body("body").unwrap()).await.unwrap();
    (calls.load(Ordering::SeqCst), response.status(), start.elapsed())
}

/// A retried POST is an order that is billed twice.
///
/// Shows: R5
#[tokio::test(start_paused = true)]
async fn over_http_idempotent_requests_are_retried_on_the_statuses_that_pass() {
    for status in [408, 429, 502, 503, 504, 520, 521, 522, 523, 524, 529] {
        assert_eq!(over_http(Request::get("/"), status, None).await.0, 3, "{status}");
        assert_eq!(over_http(Request::post("/"), status, None).await.0, 1, "{status}");
        let with_key = Request::post("/").header("idempotency-key", "7");
        assert_eq!(over_http(with_key, status, None).await.0, 3, "{status}");
    }
    for status in [200, 404, 500, 501, 525] {
        assert_eq!(over_http(Request::get("/"), status, None).await.0, 1, "{status}");
    }
    // A response with `Retry-After` expects to succeed then.
    assert_eq!(over_http(Request::get("/"), 500, Some("1")).await.0, 3);
    assert_eq!(over_http(Request::post("/"), 500, Some("1")).await.0, 1);
}

/// A layer outside this crate says whether its rejection came before the request was sent, and how long to wait.
///
/// Shows: F4
#[tokio::test(start_paused = true)]
async fn a_post_that_a_custom_layer_rejected_before_it_was_sent_is_sent_again() {
    for (unprocessed, expected) in [(true, 2), (false, 1)] {
        let calls = Arc::new(AtomicU32::new(0));
        let counted = Arc::clone(&calls);
        let service = ServiceBuilder::new().layer(RetryLayer::http()).service(service_fn(move |_: Request<String>| {
            let reason = Reason::Custom {
                name: "quota",
                status: StatusCode::TOO_MANY_REQUESTS,
                class: Class::DECLINED,
                unprocessed,
                public_message: "the quota is used up".into(),
            };
            let is_first = counted.fetch_add(1, Ordering::SeqCst) == 0;
            let rejection = is_first.then(|| LayerInfo::new("quota").reject_with_retry_after(reason, 5 * SECOND));
            async { rejection.map_or(Ok(Response::new(String::new())), Error::<String>::reject) }
        }));
        let start = Instant::now();
        let outcome = service.oneshot(Request::post("/").body(String::new()).unwrap()).await;
        assert_eq!((outcome.is_ok(), calls.load(Ordering::SeqCst)), (unprocessed, expected));
        assert_eq!(start.elapsed(), if unprocessed { 5 * SECOND } else { Duration::ZERO });
    }
}

/// A custom reason may say in its class how long to wait.
///
/// Shows: R5
#[tokio::test(start_paused = true)]
async fn the_wait_of_a_custom_reasons_class_is_waited_for() {
    let service = ServiceBuilder::new().layer(RetryLayer::new()).service(service_fn(|()| async {
        let class = Class::Declined { retry_after: Some(30 * SECOND) };
        let (name, status, public_message) = ("quota", StatusCode::TOO_MANY_REQUESTS, "the quota is used up".into());
        let reason = Reason::Custom { name, status, class, unprocessed: true, public_message };
        match ziggurat::attempt() {
            1 => Error::<String>::reject(LayerInfo::new("quota").reject_with_retry_after(reason, SECOND)),
            _ => Ok(()),
        }
    }));
    let start = Instant::now();
    service.oneshot(()).await.unwrap();
    assert_eq!(start.elapsed(), 30 * SECOND);
}

/// Shows: R5
#[tokio::test(start_paused = true)]
async fn retry_after_is_obeyed_up_to_300_seconds() {
    for (asked, calls, took) in [
        ("0", 3, 2 * SECOND),
        ("10", 3, 20 * SECOND),
        ("1.5", 3, 4 * SECOND),
        ("9.001", 3, 20 * SECOND),
        ("300", 3, 600 * SECOND),
        ("301", 1, Duration::ZERO),
        ("999999999999999", 1, Duration::ZERO),
        ("junk", 3, 2 * SECOND),
    ] {
        let (called, status, time) = over_http(Request::get("/"), 503, Some(asked)).await;
        assert_eq!((called, time), (calls, took), "{asked}");
        assert_eq!(status, 503);
    }
}

/// Shows: R5
#[tokio::test(start_paused = true)]
async fn transport_errors_are_retried_over_http() {
    let calls = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&calls);
    let service = ServiceBuilder::new().layer(RetryLayer::http()).service(service_fn(move |_: Request<()>| {
        counted.fetch_add(1, Ordering::SeqCst);
        async { Err::<Response<String>, _>(Error::Service("connection refused")) }
    }));
    assert!(service.oneshot(Request::get("/").body(()).unwrap()).await.is_err());
    assert_eq!(calls.load(Ordering::SeqCst), 3);
}

/// A layer that rejects in place of the service knows whether the call reached the service.
///
/// Shows: F4
#[tokio::test(start_paused = true)]
async fn a_post_that_a_layer_did_not_let_through_is_sent_again() {
    for (reason, calls) in [
        (Reason::Unavailable { message: "no connection".into() }, 3),
        (Reason::TimedOut { limit: SECOND }, 1),
        (Reason::Injected, 1),
    ] {
        let called = Arc::new(AtomicU32::new(0));
        let counted = Arc::clone(&called);
        let service = ServiceBuilder::new().layer(RetryLayer::http()).service(service_fn(move |_: Request<()>| {
            counted.fetch_add(1, Ordering::SeqCst);
            let rejection = LayerInfo::new("pool").reject(reason.clone());
            std::future::ready(<Failed as Reject<Response<String>>>::reject(rejection))
        }));
        assert!(service.oneshot(Request::post("/").body(()).unwrap()).await.is_err());
        assert_eq!(called.load(Ordering::SeqCst), calls);
    }
}

/// Shows: R5
#[tokio::test(start_paused = true)]
async fn a_retry_that_cannot_start_before_the_deadline_is_not_made() {
    for (limit, calls) in [(SECOND, 1), (SECOND * 3 / 2, 2), (3 * SECOND, 3)] {
        let called = Arc::default();
        let service = ServiceBuilder::new()
            .layer(TimeoutLayer::new(limit))
            .layer(RetryLayer::new().backoff(SECOND))
            .service(counting(&called, failing));
        let start = Instant::now();
        // The last outcome, at once: not a timeout after the pause.
        assert_eq!(own(service.oneshot("").await), format!("failure {calls}"));
        assert_eq!(called.load(Ordering::SeqCst), calls);
        assert_eq!(start.elapsed(), (calls - 1) * SECOND);
    }
}

/// Shows: T4
#[tokio::test(start_paused = true)]
async fn the_timeout_of_an_attempt_is_retried_and_the_total_is_not() {
    let calls = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&calls);
    let service = ServiceBuilder::new()
        .layer(TimeoutLayer::new(5 * SECOND).named("total"))
        .layer(RetryLayer::new().max_attempts(10).backoff(SECOND))
        .layer(TimeoutLayer::new(SECOND).named("attempt"))
        .service(service_fn(move |()| {
            counted.fetch_add(1, Ordering::SeqCst);
            async {
                sleep(60 * SECOND).await;
                Ok::<_, Failed>(())
            }
        }));
    let start = Instant::now();
    let outcome = service.oneshot(()).await;
    // Attempts begin at 0, 2 and 4 s. The third would end with the total, which ends the whole call.
    assert_eq!(ziggurat::rejection(&outcome).unwrap().name(), Some("total"));
    assert_eq!(calls.load(Ordering::SeqCst), 3);
    assert_eq!(start.elapsed(), 5 * SECOND);
}

/// A deadline that was carried over is enforced by the total, not by the attempt. A call without time left is not
/// retried.
///
/// Shows: T4
#[tokio::test(start_paused = true)]
async fn a_deadline_that_was_carried_over_ends_the_total_and_not_an_attempt() {
    let calls = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&calls);
    let service = ServiceBuilder::new()
        .layer(TimeoutLayer::new(30 * SECOND).named("total"))
        .layer(RetryLayer::new().backoff(Duration::ZERO))
        .layer(TimeoutLayer::new(10 * SECOND).named("attempt"))
        .service(service_fn(move |()| {
            counted.fetch_add(1, Ordering::SeqCst);
            std::future::pending::<Result<(), Failed>>()
        }));
    let start = Instant::now();
    let outcome = ziggurat::Deadline::after(2 * SECOND).within(service.oneshot(())).await;
    assert_eq!(ziggurat::rejection(&outcome).unwrap().name(), Some("total"));
    assert_eq!((calls.load(Ordering::SeqCst), start.elapsed()), (1, 2 * SECOND));
}

/// A total covers the wait for readiness if a clone is made ready inside it.
#[tokio::test(start_paused = true)]
async fn a_total_around_a_retry_covers_the_wait_for_readiness() {
    #[derive(Clone)]
    struct NeverReady;
    impl Service<()> for NeverReady {
        type Response = ();
        type Error = Failed;
        type Future = std::future::Ready<Result<(), Failed>>;
        fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> std::task::Poll<Result<(), Failed>> {
            std::task::Poll::Pending
        }
        fn call(&mut self, (): ()) -> Self::Future {
            unreachable!("never ready")
        }
    }
    let service = ServiceBuilder::new().layer(TimeoutLayer::new(SECOND)).layer(RetryLayer::new()).service(NeverReady);
    let start = Instant::now();
    assert!(ziggurat::rejection(&service.oneshot(()).await).unwrap().is_timed_out());
    assert_eq!(start.elapsed(), SECOND);
}

/// Shows: R6, X8
#[tokio::test(start_paused = true)]
async fn each_attempt_is_told_and_knows_its_number() {
    let log = Arc::new(Mutex::new(Vec::new()));
    let heard = Arc::clone(&log);
    let layer =
        RetryLayer::new().backoff(SECOND).named("orders").observer(move |info: &LayerInfo, event: &LayerEvent<'_>| {
            assert_eq!((info.layer(), info.name()), ("retry", Some("orders")));
            heard.lock().unwrap().push(match event {
                LayerEvent::Retrying { attempt, delay, cause } => {
                    format!("attempt {attempt} failed ({cause}), next in {delay:?}")
                }
                LayerEvent::GaveUp { attempt, reason, cause } => {
                    format!("attempt {attempt} failed ({cause}), no more {reason}")
                }
                _ => panic!("{event:?}"),
            });
        });
    let called = Arc::clone(&log);
    let service = ServiceBuilder::new().layer(layer).service(service_fn(move |()| {
        let number = ziggurat::attempt();
        let called = Arc::clone(&called);
        async move {
            sleep(SECOND).await;
            assert_eq!(ziggurat::attempt(), number);
            called.lock().unwrap().push(format!("in attempt {number}"));
            Err::<(), _>(Error::Service("no"))
        }
    }));
    assert!(service.oneshot(()).await.is_err());
    assert_eq!(ziggurat::attempt(), 1);
    assert_eq!(
        *log.lock().unwrap(),
        [
            "in attempt 1",
            "attempt 1 failed (no), next in 1s",
            "in attempt 2",
            "attempt 2 failed (no), next in 1s",
            "in attempt 3",
            "attempt 3 failed (no), no more attempts",
        ]
    );
}

type Told = Arc<Mutex<Vec<String>>>;

/// Records the events of a retry, as text.
fn telling() -> (Told, impl Fn(&LayerInfo, &LayerEvent<'_>) + Send + Sync + Clone) {
    let told = Told::default();
    let notes = Arc::clone(&told);
    let observer = move |_: &LayerInfo, event: &LayerEvent<'_>| {
        notes.lock().unwrap().push(match event {
            LayerEvent::Retrying { attempt, cause, .. } => format!("retrying after attempt {attempt} ({cause})"),
            LayerEvent::Recovered { attempt } => format!("recovered in attempt {attempt}"),
            LayerEvent::GaveUp { attempt, reason, cause } => {
                format!("gave up after attempt {attempt}: {reason} ({cause})")
            }
            LayerEvent::NotRetried { attempt, reason, cause } => {
                format!("attempt {attempt} not retried: {reason} ({cause})")
            }
            _ => panic!("{event:?}"),
        });
    };
    (told, observer)
}

/// A log has to say why.
///
/// Shows: R6
#[tokio::test(start_paused = true)]
async fn an_event_says_why_an_attempt_failed_and_that_a_later_one_succeeded() {
    let (told, observer) = telling();
    let layer = RetryLayer::http().observer(observer).backoff(SECOND);
    let service = ServiceBuilder::new().layer(layer).layer(TimeoutLayer::new(SECOND)).service(service_fn(
        |request: Request<&'static [u16]>| async move {
            match request.body()[ziggurat::attempt() as usize - 1] {
                0 => Err(Error::Service("connection reset")),
                1 => std::future::pending().await,
                status => Ok(Response::builder().status(status).body(String::new()).unwrap()),
            }
        },
    ));
    for (answers, expected) in [
        (&[200][..], &[][..]),
        (&[404], &[]),
        (
            &[0, 503, 200],
            &[
                "retrying after attempt 1 (connection reset)",
                "retrying after attempt 2 (503 Service Unavailable)",
                "recovered in attempt 3",
            ],
        ),
        (&[1, 404], &["retrying after attempt 1 (timed_out)", "recovered in attempt 2"]),
        (&[500], &["attempt 1 not retried: permanent (500 Internal Server Error)"]),
        (
            &[429, 500],
            &[
                "retrying after attempt 1 (429 Too Many Requests)",
                "attempt 2 not retried: permanent (500 Internal Server Error)",
            ],
        ),
    ] {
        let _ = service.clone().oneshot(Request::new(answers)).await;
        assert_eq!(std::mem::take(&mut *told.lock().unwrap()), expected);
    }
    let post = Request::post("/").body(&[503][..]).unwrap();
    assert_eq!(service.oneshot(post).await.unwrap().status(), 503);
    assert_eq!(*told.lock().unwrap(), ["gave up after attempt 1: copy (503 Service Unavailable)"]);

    let (told, observer) = telling();
    let limited = ServiceBuilder::new()
        .layer(RetryLayer::new().observer(observer))
        .layer(ConcurrencyLimitLayer::new(1).max_waiting(0))
        .service(service_fn(|()| std::future::pending::<Result<(), Failed>>()));
    let mut first = TestTask::new(limited.clone().oneshot(()));
    assert!(first.poll().is_pending());
    assert!(limited.oneshot(()).await.is_err());
    assert_eq!(*told.lock().unwrap(), ["attempt 1 not retried: ignored (overloaded)"]);
}

/// The attempt that opens the circuit must not hide the cause.
///
/// Shows: F6
#[tokio::test(start_paused = true)]
async fn a_rejection_after_a_failure_tells_how_the_service_failed() {
    let service = ServiceBuilder::new()
        .layer(RetryLayer::new().backoff(SECOND))
        .layer(CircuitBreakerLayer::consecutive(1).open_for(5 * SECOND))
        .service(counting(&Arc::default(), failing));
    let rejected = service.oneshot("").await;
    let rejection = ziggurat::rejection(&rejected).unwrap();
    assert!(rejection.is_circuit_open());
    assert_eq!(rejection.previous(), Some("failure 1"));
    assert!(rejection.to_string().ends_with("; previous attempt: failure 1"), "{rejection}");

    // For a failed response it is the status.
    let over_http = |attempts| {
        let breaker = CircuitBreakerLayer::consecutive(5).classify(HttpStatus);
        let circuit = breaker.handle();
        ServiceBuilder::new()
            .layer(RetryLayer::http().backoff(SECOND).max_attempts(attempts))
            .layer(breaker)
            .layer(TimeoutLayer::new(SECOND))
            .service(service_fn(move |_: Request<()>| {
                let circuit = circuit.clone();
                async move {
                    if ziggurat::attempt() == 1 {
                        std::future::pending::<()>().await;
                    }
                    circuit.force_open();
                    Ok::<_, Failed>(Response::builder().status(503).body(String::new()).unwrap())
                }
            }))
    };
    let rejected = over_http(3).oneshot(Request::new(())).await;
    assert_eq!(ziggurat::rejection(&rejected).unwrap().previous(), Some("503 Service Unavailable"));
    // The last outcome is returned unchanged if it hides nothing.
    assert_eq!(over_http(2).oneshot(Request::new(())).await.unwrap().status(), 503);

    let hangs = ServiceBuilder::new()
        .layer(RetryLayer::new().backoff(SECOND))
        .layer(TimeoutLayer::new(SECOND))
        .service(service_fn(|()| std::future::pending::<Result<(), Failed>>()));
    let rejected = hangs.oneshot(()).await;
    assert_eq!(ziggurat::rejection(&rejected).unwrap().previous(), None, "the same once more says nothing");
}

/// Shows: F6, R1
#[tokio::test(start_paused = true)]
async fn a_service_that_does_not_become_ready_again_hides_no_error_of_the_service() {
    /// Ready for its first call alone.
    #[derive(Clone, Default)]
    struct ReadyOnce(Arc<AtomicU32>);
    impl Service<()> for ReadyOnce {
        type Response = ();
        type Error = Failed;
        type Future = std::future::Ready<Result<(), Failed>>;
        fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> std::task::Poll<Result<(), Failed>> {
            std::task::Poll::Ready(match self.0.load(Ordering::SeqCst) {
                0 => Ok(()),
                _ => Err(Error::Service("closed".into())),
            })
        }
        fn call(&mut self, (): ()) -> Self::Future {
            self.0.fetch_add(1, Ordering::SeqCst);
            std::future::ready(Err(Error::Service("connection refused".into())))
        }
    }
    let (told, observer) = telling();
    let service = ServiceBuilder::new().layer(RetryLayer::new().observer(observer)).service(ReadyOnce::default());
    let outcome = service.clone().oneshot(()).await;
    assert_eq!(outcome.unwrap_err().to_string(), "connection refused");
    assert_eq!(
        std::mem::take(&mut *told.lock().unwrap()),
        [
            "retrying after attempt 1 (connection refused)",
            "retrying after attempt 2 (closed)",
            "gave up after attempt 3: attempts (closed)",
        ]
    );
    assert_eq!(service.oneshot(()).await.unwrap_err().to_string(), "closed", "nothing was sent");
}

/// The service asked for a pause, and then the connection was reset. The pause still counts.
///
/// Shows: F3
#[tokio::test(start_paused = true)]
async fn a_connection_that_is_reset_does_not_forget_what_two_429s_asked_for() {
    for (deadline, took) in [(1000, 10 + 20 + 20), (45, 10 + 20 + 1)] {
        let service = ServiceBuilder::new()
            .layer(TimeoutLayer::new(deadline * SECOND))
            .layer(RetryLayer::http().max_attempts(4).backoff(SECOND))
            .service(service_fn(|_: Request<()>| async {
                let declined = |seconds: u32| Response::builder().status(429).header("retry-after", seconds);
                match ziggurat::attempt() {
                    1 => Ok(declined(10).body(String::new()).unwrap()),
                    2 => Ok(declined(20).body(String::new()).unwrap()),
                    3 => Err(Error::Service("connection reset")),
                    _ => Ok(Response::new(String::new())),
                }
            }));
        let start = Instant::now();
        assert_eq!(service.oneshot(Request::new(())).await.unwrap().status(), 200);
        // Without time for another pause: the requested pause was observed once.
        assert_eq!(start.elapsed(), took * SECOND);
    }
}

/// A service that asks for a minute must not make decorrelated jitter, which grows from the previous wait, wait for
/// three.
///
/// Shows: R3
#[tokio::test(start_paused = true)]
async fn a_backoff_grows_from_its_own_wait_and_not_from_what_the_service_asked_for() {
    #[derive(Clone)]
    struct Doubling(Told);
    impl<R, E> Wait<R, E> for Doubling {
        fn wait(&self, attempt: u32, last: Duration, _: Result<&R, &E>) -> Duration {
            self.0.lock().unwrap().push(format!("{attempt}: {last:?}"));
            (2 * last).max(SECOND)
        }
    }
    let lasts = Told::default();
    let layer = RetryLayer::new()
        .max_attempts(4)
        .backoff(Doubling(Arc::clone(&lasts)))
        .classify(|_: Result<&&str, &Failed>| Class::Failure { transient: true, retry_after: Some(60 * SECOND) });
    let start = Instant::now();
    assert!(layer.layer(counting(&Arc::default(), failing)).oneshot("").await.is_err());
    assert_eq!(*lasts.lock().unwrap(), ["1: 0ns", "2: 1s", "3: 2s"]);
    assert_eq!(start.elapsed(), 3 * 60 * SECOND);
}

/// Shows: R8
#[tokio::test(start_paused = true)]
async fn a_body_that_panics_while_it_is_drained_ends_the_draining_and_not_the_call() {
    #[derive(Debug, Clone, Copy, PartialEq)]
    enum Panics {
        WhenPolled,
        WhenAskedForItsEnd,
        WhenAskedForItsSize,
        WhenDropped,
        Never,
    }
    struct Bad(Panics);
    impl Bad {
        fn is_at(&self, place: Panics) {
            assert_ne!(self.0, place, "a panic of the body");
        }
    }
    impl Body for Bad {
        type Data = bytes::Bytes;
        type Error = Infallible;
        fn poll_frame(
            self: std::pin::Pin<&mut Self>,
            _: &mut std::task::Context<'_>,
        ) -> std::task::Poll<Option<Result<http_body::Frame<bytes::Bytes>, Infallible>>> {
            self.is_at(Panics::WhenPolled);
            std::task::Poll::Ready(None)
        }
        fn is_end_stream(&self) -> bool {
            self.is_at(Panics::WhenAskedForItsEnd);
            false
        }
        fn size_hint(&self) -> http_body::SizeHint {
            self.is_at(Panics::WhenAskedForItsSize);
            http_body::SizeHint::new()
        }
    }
    impl Drop for Bad {
        fn drop(&mut self) {
            self.is_at(Panics::WhenDropped);
        }
    }
    for panics in [Panics::WhenPolled, Panics::WhenAskedForItsEnd, Panics::WhenAskedForItsSize, Panics::WhenDropped] {
        let service =
            ServiceBuilder::new().layer(RetryLayer::http()).service(service_fn(move |_: Request<()>| async move {
                let (status, body) = match ziggurat::attempt() {
                    1 => (503, Bad(panics)),
                    _ => (200, Bad(Panics::Never)),
                };
                Ok::<_, Failed>(Response::builder().status(status).body(body).unwrap())
            }));
        assert_eq!(service.oneshot(Request::new(())).await.unwrap().status(), 200, "{panics:?}");
    }
}

/// Shows: R7
#[tokio::test(start_paused = true)]
async fn all_clones_share_one_budget_and_two_layers_do_not() {
    let budgeted = || RetryLayer::new().backoff(Duration::ZERO).budget(Budget::new(0.0).min_per_second(1));
    let retries = async |layer: RetryLayer<_, _, Duration>| {
        let calls = Arc::default();
        // Every other request goes through another service of the same layer value.
        for _ in 0..15 {
            for _ in 0..2 {
                let service = ServiceBuilder::new().layer(layer.clone()).service(counting(&calls, failing));
                assert!(service.oneshot("").await.is_err());
            }
        }
        calls.load(Ordering::SeqCst) - 30
    };
    let layer = budgeted();
    assert_eq!(retries(layer.clone()).await, 10);
    assert_eq!(retries(layer).await, 0);
    assert_eq!(retries(budgeted()).await, 10);
}

/// Shows: R8
#[tokio::test(start_paused = true)]
async fn dropped_during_the_pause_it_starts_no_other_attempt_and_gives_back_its_place_in_the_budget() {
    let calls = Arc::default();
    let layer = RetryLayer::new().max_attempts(2).backoff(SECOND).budget(Budget::new(0.0).min_per_second(1));
    let service = ServiceBuilder::new().layer(layer).service(counting(&calls, failing));
    for number in 1..=100 {
        let mut response = TestTask::new(service.clone().oneshot(""));
        assert!(response.poll().is_pending());
        drop(response);
        assert_eq!(calls.load(Ordering::SeqCst), number);
    }
    sleep(10 * SECOND).await;
    assert_eq!(calls.load(Ordering::SeqCst), 100);
    // The budget is whole: ten retries in ten seconds.
    for _ in 0..20 {
        assert!(service.clone().oneshot("").await.is_err());
    }
    assert!(calls.load(Ordering::SeqCst) >= 130);
}

/// Except its error, in case no other attempt reaches the service.
///
/// Shows: R8
#[tokio::test(start_paused = true)]
async fn nothing_of_a_failed_attempt_is_held_during_the_pause() {
    let held = Arc::new(());
    let calls = Arc::clone(&held);
    // The future of each call, and its response, hold a clone.
    let layer = RetryLayer::new().backoff(SECOND).classify(|_: Result<&Arc<()>, &Failed>| Class::TRANSIENT);
    let service = ServiceBuilder::new().layer(layer).service(service_fn(move |()| {
        let held = Arc::clone(&calls);
        async move { Ok::<_, Failed>(held) }
    }));
    let before = Arc::strong_count(&held);
    let mut response = TestTask::new(service.oneshot(()));
    assert!(response.poll().is_pending());
    // Only the service's clone in the response future is left in addition to the first.
    assert_eq!(Arc::strong_count(&held), before);
    assert!(response.poll().is_pending());
}

/// An error of `poll_ready` is an outcome like any other. The request was not sent, so it needs no copy.
///
/// Shows: R8, R9
#[tokio::test(start_paused = true)]
async fn each_attempt_waits_for_readiness_anew_and_a_request_that_was_not_sent_needs_no_copy() {
    #[derive(Clone)]
    struct SlowlyReady {
        polls: Arc<AtomicU32>,
    }
    impl Service<String> for SlowlyReady {
        type Response = String;
        type Error = Error<&'static str>;
        type Future = std::future::Ready<Result<String, Self::Error>>;
        fn poll_ready(&mut self, cx: &mut std::task::Context<'_>) -> std::task::Poll<Result<(), Self::Error>> {
            match self.polls.fetch_add(1, Ordering::SeqCst) {
                0 | 3 => {
                    cx.waker().wake_by_ref();
                    std::task::Poll::Pending
                }
                1 | 2 => std::task::Poll::Ready(Err(Error::Service("not ready"))),
                _ => std::task::Poll::Ready(Ok(())),
            }
        }
        fn call(&mut self, request: String) -> Self::Future {
            std::future::ready(Ok(request))
        }
    }
    let polls = Arc::new(AtomicU32::new(0));
    let layer = RetryLayer::new().copy(|_: &String| None);
    let service = ServiceBuilder::new().layer(layer).service(Strict::new(SlowlyReady { polls: Arc::clone(&polls) }));
    assert_eq!(service.oneshot("sent".to_owned()).await.unwrap(), "sent");
    assert_eq!(polls.load(Ordering::SeqCst), 5);
}

/// reqwest-middleware rejects a streaming request because it cannot be copied.
///
/// Shows: R9
#[tokio::test(start_paused = true)]
async fn a_request_that_cannot_be_copied_is_sent_once() {
    struct OnlyOnce;
    let calls = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&calls);
    let given_up = Arc::new(Mutex::new(None));
    let heard = Arc::clone(&given_up);
    let layer = RetryLayer::new().copy(|_: &OnlyOnce| None).observer(move |_: &LayerInfo, event: &LayerEvent<'_>| {
        if let LayerEvent::GaveUp { reason, .. } = event {
            *heard.lock().unwrap() = Some(*reason);
        }
    });
    let service = ServiceBuilder::new().layer(layer).service(service_fn(move |OnlyOnce| {
        counted.fetch_add(1, Ordering::SeqCst);
        async { Err::<(), _>(Error::Service("once")) }
    }));
    assert!(matches!(service.oneshot(OnlyOnce).await, Err(Error::Service("once"))));
    assert_eq!(calls.load(Ordering::SeqCst), 1);
    assert_eq!(*given_up.lock().unwrap(), Some("copy"));
}

/// A retry over a single future would be spent after the first attempt. Here each attempt has its own request.
///
/// Shows: R9
#[tokio::test(start_paused = true)]
async fn each_attempt_has_a_request_of_its_own() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&seen);
    let service = ServiceBuilder::new().layer(RetryLayer::new()).service(service_fn(move |mut request: String| {
        request.push_str(&format!(" at attempt {}", ziggurat::attempt()));
        log.lock().unwrap().push(request);
        async { Err::<(), _>(Error::Service("no")) }
    }));
    assert!(service.oneshot("sent".to_owned()).await.is_err());
    assert_eq!(*seen.lock().unwrap(), ["sent at attempt 1", "sent at attempt 2", "sent at attempt 3"]);
}

/// Bad input: an attempt without end does not starve the task, and the longest waits do not overflow.
#[tokio::test(start_paused = true)]
async fn endless_attempts_without_a_pause_leave_others_their_turn() {
    let layer = RetryLayer::new().max_attempts(u32::MAX).backoff(Duration::ZERO).budget(None);
    let service = ServiceBuilder::new().layer(layer).service(counting(&Arc::default(), failing));
    tokio::select! {
        biased;
        _ = service.oneshot("") => panic!("it never ends"),
        () = async { for _ in 0..100 { tokio::task::yield_now().await } } => {}
    }
}

#[tokio::test(start_paused = true)]
async fn the_longest_wait_is_a_wait() {
    let layer = RetryLayer::new().backoff(Duration::MAX);
    let service = ServiceBuilder::new().layer(layer).service(counting(&Arc::default(), failing));
    let mut response = TestTask::new(service.oneshot(""));
    assert!(response.poll().is_pending());
    assert!(response.poll().is_pending());
}

#[test]
fn zero_attempts_are_refused_by_name() {
    let panic = std::panic::catch_unwind(|| RetryLayer::new().max_attempts(0)).unwrap_err();
    assert_eq!(*panic.downcast::<&str>().unwrap(), "attempts must be at least 1: the first attempt counts");
}

/// Bad input: a backoff function that panics ends the retries but not the call, and leaves the layer intact.
#[tokio::test(start_paused = true)]
async fn after_a_backoff_function_that_panics_the_outcome_of_the_attempt_comes_back() {
    let calls = Arc::default();
    let (told, observer) = telling();
    let layer = RetryLayer::new()
        .observer(observer)
        .budget(Budget::new(0.0).min_per_second(1))
        .backoff(|_: u32, _: Result<&&str, &Failed>| -> Duration { panic!("no idea how long") });
    let service = ServiceBuilder::new().layer(layer).service(counting(&calls, failing));
    for number in 1..=50 {
        assert_eq!(own(service.clone().oneshot("").await), format!("failure {number}"));
        assert_eq!(calls.load(Ordering::SeqCst), number);
        let gave_up = format!("gave up after attempt 1: backoff (failure {number})");
        assert_eq!(std::mem::take(&mut *told.lock().unwrap()), [gave_up]);
    }
}

/// Shows: R7, R8
#[tokio::test(start_paused = true)]
async fn a_retry_that_waits_for_readiness_and_is_dropped_goes_back_into_the_budget() {
    /// Ready for one call in all, through any clone.
    #[derive(Clone, Default)]
    struct ReadyOnce(Arc<AtomicU32>);
    impl Service<()> for ReadyOnce {
        type Response = ();
        type Error = Failed;
        type Future = std::future::Ready<Result<(), Failed>>;
        fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> std::task::Poll<Result<(), Failed>> {
            match self.0.load(Ordering::SeqCst) {
                0 => std::task::Poll::Ready(Ok(())),
                _ => std::task::Poll::Pending,
            }
        }
        fn call(&mut self, (): ()) -> Self::Future {
            self.0.fetch_add(1, Ordering::SeqCst);
            std::future::ready(Err(Error::Service("no".into())))
        }
    }
    let layer = RetryLayer::new().backoff(SECOND).budget(Budget::new(0.0).min_per_second(1));
    for _ in 0..100 {
        let mut call =
            TestTask::new(ServiceBuilder::new().layer(layer.clone()).service(ReadyOnce::default()).oneshot(()));
        assert!(call.poll().is_pending());
        tokio::time::advance(SECOND).await;
        // The pause is over, but the service is not ready.
        assert!(call.poll().is_pending());
    }
    let calls = Arc::default();
    let service = ServiceBuilder::new().layer(layer.max_attempts(2)).service(counting(&calls, failing));
    for _ in 0..20 {
        assert!(service.clone().oneshot("").await.is_err());
    }
    assert!(calls.load(Ordering::SeqCst) >= 30);
}

/// In tower a service whose readiness failed must not be used again, so each attempt uses another clone.
///
/// Shows: R8
#[tokio::test(start_paused = true)]
async fn a_service_whose_readiness_failed_is_not_asked_again() {
    #[derive(Default)]
    struct FailsOnce {
        failed: bool,
        clones: Arc<AtomicU32>,
    }
    impl Clone for FailsOnce {
        fn clone(&self) -> Self {
            self.clones.fetch_add(1, Ordering::SeqCst);
            Self { failed: false, clones: Arc::clone(&self.clones) }
        }
    }
    impl Service<()> for FailsOnce {
        type Response = ();
        type Error = Failed;
        type Future = std::future::Ready<Result<(), Failed>>;
        fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> std::task::Poll<Result<(), Failed>> {
            assert!(!self.failed, "asked again after it failed");
            self.failed = true;
            std::task::Poll::Ready(Err(Error::Service("not ready".into())))
        }
        fn call(&mut self, (): ()) -> Self::Future {
            unreachable!("never ready")
        }
    }
    let service = FailsOnce::default();
    let clones = Arc::clone(&service.clones);
    let outcome = ServiceBuilder::new().layer(RetryLayer::new()).service(service).oneshot(()).await;
    assert!(matches!(outcome, Err(Error::Service(error)) if error == "not ready"));
    assert!(clones.load(Ordering::SeqCst) >= 3);
}

/// Shows: R1, R2
#[tokio::test(start_paused = true)]
async fn attempts_and_waits_can_be_changed_while_a_call_is_under_way() {
    let layer = RetryLayer::new().max_attempts(9).backoff(SECOND);
    let retries = layer.handle();
    let calls = Arc::default();
    let service = ServiceBuilder::new().layer(layer).service(counting(&calls, move |number| {
        match number {
            1 => retries.set_backoff(10 * SECOND),
            3 => retries.set_max_attempts(3),
            _ => {}
        }
        failing(number)
    }));
    let start = Instant::now();
    assert_eq!(own(service.clone().oneshot("").await), "failure 3");
    assert_eq!(start.elapsed(), 20 * SECOND);
    assert_eq!(own(service.oneshot("").await), "failure 6");
}

/// Shows: R7
#[tokio::test(start_paused = true)]
async fn another_budget_counts_what_was_spent_before_it() {
    let layer = RetryLayer::new().max_attempts(2).backoff(Duration::ZERO).budget(Budget::new(0.0).min_per_second(1));
    let retries = layer.handle();
    let calls = Arc::default();
    let service = ServiceBuilder::new().layer(layer).service(counting(&calls, failing));
    let sent = async |requests: u32| {
        let before = calls.load(Ordering::SeqCst);
        for _ in 0..requests {
            assert!(service.clone().oneshot("").await.is_err());
        }
        calls.load(Ordering::SeqCst) - before - requests
    };
    assert_eq!(sent(20).await, 10);
    retries.set_budget(Budget::new(0.0).min_per_second(2));
    assert_eq!(sent(20).await, 10, "twenty in all");
    retries.set_budget(Budget::new(0.0).min_per_second(1));
    assert_eq!(sent(20).await, 0);

    let unbounded = RetryLayer::new().max_attempts(2).backoff(Duration::ZERO).budget(None);
    unbounded.handle().set_budget(Budget::new(0.0).min_per_second(0));
    let calls = Arc::default();
    assert!(unbounded.layer(counting(&calls, failing)).oneshot("").await.is_err());
    assert_eq!(calls.load(Ordering::SeqCst), 1);
}

/// Two values share nothing, and later configuration of one does not reach its clones.
#[tokio::test(start_paused = true)]
async fn a_layer_that_is_set_up_further_leaves_its_clones_alone() {
    let layer = RetryLayer::new().max_attempts(2);
    let other = layer.clone().max_attempts(5);
    assert_eq!((layer.handle().max_attempts(), other.handle().max_attempts()), (2, 5));
    layer.handle().set_max_attempts(7);
    assert_eq!((layer.clone().handle().max_attempts(), other.handle().max_attempts()), (7, 5));
    let zero = std::panic::catch_unwind(|| RetryLayer::new().handle().set_max_attempts(0));
    assert_eq!(
        zero.unwrap_err().downcast_ref::<&str>(),
        Some(&"attempts must be at least 1: the first attempt counts")
    );
}

/// Fails while `failures` are left, and counts its clones. The clone with the number `panics` panics.
#[derive(Debug)]
struct CountsClones {
    clones: Arc<AtomicU32>,
    panics: u32,
    failures: Arc<AtomicU32>,
    answer: &'static str,
}

impl CountsClones {
    fn new(panics: u32) -> Self {
        Self { clones: Arc::default(), panics, failures: Arc::default(), answer: "first" }
    }
}

impl Clone for CountsClones {
    fn clone(&self) -> Self {
        assert_ne!(self.clones.fetch_add(1, Ordering::SeqCst) + 1, self.panics, "on purpose");
        let (clones, failures) = (Arc::clone(&self.clones), Arc::clone(&self.failures));
        Self { clones, panics: self.panics, failures, answer: self.answer }
    }
}

impl Service<()> for CountsClones {
    type Response = &'static str;
    type Error = Failed;
    type Future = std::future::Ready<Result<&'static str, Failed>>;
    fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> std::task::Poll<Result<(), Failed>> {
        std::task::Poll::Ready(Ok(()))
    }
    fn call(&mut self, (): ()) -> Self::Future {
        let failed = self.failures.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok();
        std::future::ready(if failed { failing(1) } else { Ok(self.answer) })
    }
}

/// Shows: R1
#[tokio::test(start_paused = true)]
async fn a_clone_of_the_service_is_made_for_a_later_attempt_only() {
    let service = CountsClones::new(0);
    let (clones, failures) = (Arc::clone(&service.clones), Arc::clone(&service.failures));
    let mut retry = RetryLayer::new().backoff(Duration::ZERO).layer(service);
    assert_eq!(retry.call(()).await.unwrap(), "first");
    let once = clones.load(Ordering::SeqCst);
    for _ in 0..10 {
        retry.call(()).await.unwrap();
    }
    assert_eq!(clones.load(Ordering::SeqCst), once);
    failures.store(2, Ordering::SeqCst);
    retry.call(()).await.unwrap();
    assert_eq!(clones.load(Ordering::SeqCst), once + 2);
}

#[tokio::test(start_paused = true)]
async fn later_attempts_use_the_service_as_it_was_changed() {
    let service = CountsClones::new(0);
    let failures = Arc::clone(&service.failures);
    let mut retry = RetryLayer::new().backoff(Duration::ZERO).layer(service);
    retry.call(()).await.unwrap();
    let mut unchanged = retry.clone();
    retry.get_mut().answer = "changed";
    for (retry, answer) in [(&mut retry, "changed"), (&mut unchanged, "first")] {
        failures.store(1, Ordering::SeqCst);
        assert_eq!(retry.call(()).await.unwrap(), answer);
    }
}

/// Shows: R8
#[tokio::test(start_paused = true)]
async fn a_clone_that_panics_leaves_the_retry_usable() {
    // The first clone is kept, and the second one is made for a later attempt.
    for panics in [1, 2] {
        let service = CountsClones::new(panics);
        let failures = Arc::clone(&service.failures);
        let mut retry = RetryLayer::new().backoff(Duration::ZERO).layer(service);
        let mut panicked = 0;
        for _ in 0..3 {
            failures.store(1, Ordering::SeqCst);
            let call = AssertUnwindSafe(async { retry.call(()).await }).catch_unwind();
            match call.await {
                Ok(outcome) => assert_eq!(outcome.unwrap(), "first"),
                Err(_) => panicked += 1,
            }
        }
        assert_eq!(panicked, 1);
    }
}

/// Shows: R8
#[tokio::test(start_paused = true)]
async fn a_retry_yields_while_another_call_clones_the_service() {
    type Meanwhile = Arc<Mutex<Option<Box<dyn FnOnce() + Send>>>>;
    struct Meets(Meanwhile, Arc<AtomicU32>);
    impl Clone for Meets {
        fn clone(&self) -> Self {
            let meanwhile = self.0.lock().unwrap().take();
            meanwhile.into_iter().for_each(|meanwhile| meanwhile());
            Self(Arc::clone(&self.0), Arc::clone(&self.1))
        }
    }
    impl Service<()> for Meets {
        type Response = &'static str;
        type Error = Failed;
        type Future = std::future::Ready<Result<&'static str, Failed>>;
        fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> std::task::Poll<Result<(), Failed>> {
            std::task::Poll::Ready(Ok(()))
        }
        fn call(&mut self, (): ()) -> Self::Future {
            std::future::ready(failing(self.1.fetch_add(1, Ordering::SeqCst)))
        }
    }
    let (meanwhile, calls) = (Meanwhile::default(), Arc::<AtomicU32>::default());
    let mut retry = RetryLayer::new().backoff(Duration::ZERO).layer(Meets(Arc::clone(&meanwhile), Arc::clone(&calls)));
    let (mut first, second) = (TestTask::new(retry.call(())), Arc::new(Mutex::new(TestTask::new(retry.call(())))));
    let other = Arc::clone(&second);
    *meanwhile.lock().unwrap() = Some(Box::new(move || {
        let mut other = other.lock().unwrap();
        assert!(other.poll().is_pending());
        assert_eq!(other.times_woken(), 1);
    }));
    assert!(first.poll().is_ready());
    assert!(meanwhile.lock().unwrap().is_none());
    assert!(second.lock().unwrap().poll().is_ready());
    assert_eq!(calls.load(Ordering::SeqCst), 2 * 3);
}
