//! The fallback layer, on a paused clock.

use std::{
    convert::Infallible,
    fmt,
    future::{pending, poll_fn, ready},
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    task::Poll,
    time::Duration,
};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use tower::{Service, ServiceBuilder, ServiceExt, service_fn};
use ziggurat::{
    Class, Classify, Degraded, Error, HttpStatus, Idempotent, LayerEvent, LayerInfo, Reason, Reject, Rejection,
    body::ReplayBody,
    cache::CacheLayer,
    circuit_breaker::{CircuitBreakerLayer, State},
    concurrency_limit::ConcurrencyLimitLayer,
    fallback::{Failed, FallbackLayer, RejectionsOnly},
    replay::ReplayLayer,
    testing::{Act, Entry, Script, Strict, TestTask},
    timeout::TimeoutLayer,
};

const SECOND: Duration = Duration::from_secs(1);

/// Neither a response nor an error of these tests is `Clone`, unless a test needs it.
#[derive(Debug, PartialEq)]
struct Answer(String);

#[derive(Debug, PartialEq)]
struct Broken(&'static str);

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

type Outcome = Result<Answer, Error<Broken>>;

fn answer(text: impl Into<String>) -> Outcome {
    Ok(Answer(text.into()))
}

fn broken(why: &'static str) -> Outcome {
    Err(Error::Service(Broken(why)))
}

/// Responds to requests that ask for something, and fails for others.
fn primary() -> impl Service<&'static str, Response = Answer, Error = Error<Broken>, Future: Send> + Clone + Send {
    Strict::new(service_fn(|word: &'static str| ready(if word.is_empty() { broken("primary") } else { answer(word) })))
}

fn own(outcome: Outcome) -> &'static str {
    match outcome {
        Err(Error::Service(Broken(why))) => why,
        other => panic!("not the service's own error: {other:?}"),
    }
}

/// The recorded events, as text.
#[derive(Clone, Default)]
struct Told(Arc<Mutex<Vec<String>>>);

impl Told {
    fn observer(&self) -> impl Fn(&LayerInfo, &LayerEvent<'_>) + use<> {
        let told = Arc::clone(&self.0);
        move |info: &LayerInfo, event: &LayerEvent<'_>| {
            let said = match event {
                LayerEvent::FellBack { reason } => format!("{} fell back: {reason}", info.layer()),
                LayerEvent::FallbackFailed { reason, error } => format!("{} failed: {reason}, {error}", info.layer()),
                other => format!("{other:?}"),
            };
            told.lock().unwrap().push(said);
        }
    }

    fn all(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }
}

/// Shows: G2
#[tokio::test]
async fn a_value_answers_in_the_place_of_an_error() {
    let told = Told::default();
    let layer = FallbackLayer::value("fallback").observer(told.observer());
    let service = ServiceBuilder::new().layer(layer).service(service_fn(|word: &'static str| {
        ready(if word.is_empty() { Err(Error::Service(Broken(""))) } else { Ok(word) })
    }));
    assert_eq!(service.clone().oneshot("hello").await.unwrap(), "hello");
    assert!(told.all().is_empty());
    assert_eq!(service.oneshot("").await.unwrap(), "fallback");
    assert_eq!(told.all(), ["fallback fell back: error"]);
}

/// Shows: G2
#[tokio::test]
async fn a_function_gets_the_outcome_its_class_and_what_was_remembered_of_the_request() {
    let layer = FallbackLayer::new(|failed: Failed<'_, _, _, usize>| {
        let Err(error) = failed.outcome else { panic!("a response") };
        Answer(format!("{error}, {:?}, {}", failed.class, failed.remembered))
    })
    .remember(|word: &&str| word.len())
    .classify(|_: Result<&_, &_>| Class::PERMANENT);
    let service = ServiceBuilder::new().layer(layer).service(primary());
    let answered = service.oneshot("").await.unwrap();
    assert_eq!(answered.0, "primary, Failure { transient: false, retry_after: None }, 0");
}

/// Shows: G2
#[tokio::test]
async fn a_function_that_has_no_answer_leaves_the_outcome_as_it_is() {
    let told = Told::default();
    let layer = FallbackLayer::new(|_: Failed<'_, _, _>| None::<Answer>).observer(told.observer());
    let service = ServiceBuilder::new().layer(layer).service(primary());
    assert_eq!(own(service.oneshot("").await), "primary");
    assert!(told.all().is_empty());
}

/// Shows: G2
#[tokio::test(start_paused = true)]
async fn a_function_can_take_its_time() {
    let layer = FallbackLayer::future(|failed: Failed<'_, _, _, &'static str>| {
        let word = failed.remembered;
        async move {
            tokio::time::sleep(SECOND).await;
            answer(format!("later: {word:?}"))
        }
    })
    .remember(|word: &&'static str| *word);
    let start = tokio::time::Instant::now();
    let service = ServiceBuilder::new().layer(layer).service(primary());
    assert_eq!(service.clone().oneshot("").await.unwrap().0, "later: \"\"");
    assert_eq!(start.elapsed(), SECOND);
    assert_eq!(service.oneshot("at once").await.unwrap().0, "at once");
    assert_eq!(start.elapsed(), SECOND);
}

/// If both fail, the service's own error is returned, and the event has the other one.
///
/// Shows: G2
#[tokio::test]
async fn of_two_errors_the_services_own_comes_back_and_the_others_is_told() {
    let told = Told::default();
    let layer = FallbackLayer::future(|_: Failed<'_, _, _>| ready(broken("backup"))).observer(told.observer());
    let service = ServiceBuilder::new().layer(layer).service(primary());
    assert_eq!(own(service.oneshot("").await), "primary");
    assert_eq!(told.all(), ["fallback failed: error, backup"]);
}

/// Shows: G2
#[tokio::test(start_paused = true)]
async fn a_rejection_comes_back_with_the_fallbacks_error_in_it() {
    let told = Told::default();
    let service = ServiceBuilder::new()
        .layer(FallbackLayer::future(|_: Failed<'_, _, _>| ready(broken("backup"))).observer(told.observer()))
        .layer(TimeoutLayer::new(SECOND).named("total"))
        .service(service_fn(|()| pending::<Outcome>()));
    let outcome = service.oneshot(()).await;
    let rejection = ziggurat::rejection(&outcome).unwrap();
    assert_eq!(rejection.reason(), &Reason::TimedOut { limit: SECOND });
    assert_eq!(rejection.suppressed(), Some("backup"));
    assert_eq!(rejection.to_string(), "timeout `total`: no response within 1s; suppressed: backup");
    assert_eq!(rejection.public_message(), "timeout: no response in time");
    assert_eq!(told.all(), ["fallback failed: timed_out, backup"]);
}

/// A custom error with room for it also carries the fallback's error, without further configuration of the layer.
///
/// Shows: G2
#[tokio::test]
async fn an_error_with_a_place_for_it_comes_back_with_the_fallbacks_error_in_it() {
    #[derive(Debug)]
    struct Told {
        what: String,
        suppressed: Option<String>,
    }
    impl fmt::Display for Told {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(&self.what)
        }
    }
    impl<R> Reject<R> for Told {
        fn reject(rejection: Rejection) -> Result<R, Self> {
            Err(Self { what: rejection.to_string(), suppressed: None })
        }
        fn rejection(_: &Result<R, Self>) -> Option<&Rejection> {
            None
        }
        fn suppress(outcome: Result<R, Self>, error: &dyn fmt::Display) -> Result<R, Self> {
            outcome.map_err(|told| Self { suppressed: Some(error.to_string()), ..told })
        }
    }
    let fails = |what: &'static str| Err::<(), _>(Told { what: what.to_owned(), suppressed: None });
    let service = ServiceBuilder::new()
        .layer(FallbackLayer::future(move |_: Failed<'_, _, _>| ready(fails("backup"))))
        .service(service_fn(move |()| ready(fails("primary"))));
    let error = service.oneshot(()).await.unwrap_err();
    assert_eq!((&*error.what, error.suppressed.as_deref()), ("primary", Some("backup")));
}

/// A custom error can hold both whole.
///
/// Shows: G2
#[tokio::test]
async fn what_comes_of_both_errors_can_be_said() {
    #[derive(Debug, PartialEq)]
    enum MyError {
        Rejected(String),
        Down(&'static str),
        Both(Box<MyError>, Box<MyError>),
    }
    impl fmt::Display for MyError {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            fmt::Debug::fmt(self, f)
        }
    }
    impl<R> Reject<R> for MyError {
        fn reject(rejection: Rejection) -> Result<R, Self> {
            Err(Self::Rejected(rejection.to_string()))
        }
        fn rejection(_: &Result<R, Self>) -> Option<&Rejection> {
            None
        }
    }
    let layer = FallbackLayer::service(service_fn(|()| ready(Err::<(), _>(MyError::Down("backup"))))).on_failure(
        |primary: Option<Result<_, _>>, fallback: Result<_, _>| match (primary, fallback) {
            (Some(Err(primary)), Err(fallback)) => Err(MyError::Both(Box::new(primary), Box::new(fallback))),
            (_, fallback) => fallback,
        },
    );
    let service = ServiceBuilder::new().layer(layer).service(service_fn(|()| ready(Err(MyError::Down("primary")))));
    let both = MyError::Both(Box::new(MyError::Down("primary")), Box::new(MyError::Down("backup")));
    assert_eq!(service.oneshot(()).await, Err(both));
}

/// A custom error type sends every outcome of an inner layer to the fallback, including rejections for overload.
///
/// Shows: G2, B3, T4
#[tokio::test(start_paused = true)]
async fn an_open_circuit_a_timeout_and_an_overload_lead_to_it() {
    fn why(failed: &Failed<'_, Answer, Error<Broken>>) -> String {
        failed.rejection().map_or_else(|| "no rejection".into(), |rejection| format!("{:?}", rejection.reason()))
    }
    let fallback = || FallbackLayer::new(|failed: Failed<'_, _, _>| Answer(why(&failed)));

    let timeout = ServiceBuilder::new()
        .layer(fallback())
        .layer(TimeoutLayer::new(SECOND))
        .service(service_fn(|()| pending::<Outcome>()));
    assert_eq!(timeout.oneshot(()).await.unwrap().0, "TimedOut { limit: 1s }");

    let breaker = ServiceBuilder::new().layer(fallback()).layer(CircuitBreakerLayer::consecutive(1)).service(primary());
    assert_eq!(breaker.clone().oneshot("").await.unwrap().0, "no rejection");
    assert_eq!(breaker.oneshot("").await.unwrap().0, "CircuitOpen");

    let limit = ServiceBuilder::new()
        .layer(fallback())
        .layer(ConcurrencyLimitLayer::new(1).max_waiting(0))
        .service(service_fn(|()| pending::<Outcome>()));
    let mut first = TestTask::new(limit.clone().oneshot(()));
    assert!(first.poll().is_pending());
    assert_eq!(limit.oneshot(()).await.unwrap().0, "Overloaded { limit: 1 }");
}

#[tokio::test]
async fn what_the_classifier_ignores_goes_through() {
    let layer = FallbackLayer::new(|_: Failed<'_, _, _>| -> Answer { panic!("asked") })
        .classify(|_: Result<&_, &_>| Class::Ignored);
    let service = ServiceBuilder::new().layer(layer).service(primary());
    assert_eq!(own(service.oneshot("").await), "primary");
}

/// One caller gets the error itself, and the other its message. Both have the same class.
#[tokio::test(start_paused = true)]
async fn what_is_ignored_goes_through_to_all_who_shared_the_call() {
    let ignores = |_: Result<&u32, &Error<Broken>>| Class::Ignored;
    let service = ServiceBuilder::new()
        .layer(FallbackLayer::value(7).classify(ignores))
        .layer(CacheLayer::new(1, SECOND, |(): &()| Some(())).classify(ignores))
        .service(service_fn(async |()| {
            tokio::time::sleep(SECOND).await;
            Err::<u32, _>(Error::Service(Broken("not found")))
        }));
    let (one, other) = tokio::join!(service.clone().oneshot(()), service.oneshot(()));
    assert!(matches!(one, Err(Error::Service(Broken("not found")))), "{one:?}");
    assert_eq!(
        ziggurat::rejection(&other).map(Rejection::reason),
        Some(&Reason::Shared { message: "not found".into(), class: Class::Ignored })
    );
}

/// Shows: G2
#[tokio::test(start_paused = true)]
async fn it_can_be_for_rejections_only() {
    let service = ServiceBuilder::new()
        .layer(FallbackLayer::new(|_: Failed<'_, _, _>| Answer("fallback".into())).classify(RejectionsOnly))
        .layer(TimeoutLayer::new(SECOND))
        .service(service_fn(async |hangs: bool| if hangs { pending().await } else { broken("own") }));
    assert_eq!(own(service.clone().oneshot(false).await), "own");
    assert_eq!(service.oneshot(true).await.unwrap().0, "fallback");
}

/// The service is ready at once, whatever the state of the inner service and the backup, and makes each ready when
/// needed.
///
/// Shows: G2
#[tokio::test]
async fn the_readiness_of_service_and_backup_is_driven_inside_of_the_response() {
    let (script, backup) = (Script::new(), Script::new());
    script.always(Act::error().pending_at_readiness(1));
    backup.always(Act::answer().pending_at_readiness(2));
    let layer = FallbackLayer::service(backup.service(|number| number));
    let mut service = ServiceBuilder::new().layer(layer).service(script.service(|number| number));

    let ready = poll_fn(|cx| Poll::Ready(<_ as Service<()>>::poll_ready(&mut service, cx).is_ready())).await;
    assert!(ready);
    assert!(script.log().is_empty() && backup.log().is_empty());
    assert_eq!(service.call(()).await.unwrap(), 1);
    assert!(matches!(script.log()[..], [Entry::Ready(_), Entry::Called(1), Entry::Ended(1)]), "{:?}", script.log());
    assert!(matches!(backup.log()[..], [Entry::Ready(_), Entry::Called(1), Entry::Ended(1)]), "{:?}", backup.log());
}

/// Shows: G2
#[tokio::test]
async fn an_error_of_readiness_is_an_outcome_like_any_other() {
    for backup_is_broken in [false, true] {
        let (script, backup) = (Script::new(), Script::new());
        script.always(Act::error().at_readiness());
        backup.always(if backup_is_broken { Act::error().at_readiness() } else { Act::answer() });
        let service = ServiceBuilder::new()
            .layer(FallbackLayer::service(backup.service(|number| number)))
            .service(script.service(|number| number));
        match service.oneshot(()).await {
            Ok(_) => assert!(!backup_is_broken),
            Err(error) => assert_eq!((backup_is_broken, error.to_string().as_str()), (true, "failure 1")),
        }
        assert_eq!((script.calls(), backup.calls()), (0, u64::from(!backup_is_broken)));
    }
}

/// Shows: G2
#[tokio::test]
async fn a_slow_fallback_holds_up_nobody() {
    let (script, backup) = (Script::new().then(Act::error()), Script::new());
    backup.always(Act::hang().at_readiness());
    // One permit, which a waiting fallback must not hold.
    let limit = ConcurrencyLimitLayer::new(1).max_waiting(0);
    let gate = limit.handle();
    let service = ServiceBuilder::new()
        .layer(FallbackLayer::service(backup.service(|number: u64| number)))
        .layer(limit)
        .service(script.service(|number: u64| number));
    let mut slow = TestTask::new(service.clone().oneshot(()));
    assert!(slow.poll().is_pending());
    assert_eq!((script.calls(), gate.in_flight()), (1, 0));
    assert_eq!(service.oneshot(()).await.unwrap(), 2);
    drop(slow);
}

/// A response that was classified as a failure may hold a permit until its body ends.
#[tokio::test]
async fn a_response_that_failed_is_dropped_before_the_fallback_runs() {
    let limit = ConcurrencyLimitLayer::new(1).until_body_end();
    let gate = limit.handle();
    let service = ServiceBuilder::new()
        .layer(FallbackLayer::future(|_: Failed<'_, _, _>| pending()).http())
        .layer(limit)
        .service(service_fn(|_: ()| ready(Ok::<_, Error<Broken>>(status(503, "a long story".into())))));
    let mut call = TestTask::new(service.oneshot(()));
    assert!(call.poll().is_pending());
    assert_eq!(gate.in_flight(), 0);
}

#[tokio::test]
async fn dropping_the_call_drops_what_runs() {
    let (script, backup) = (Script::new(), Script::new());
    script.always(Act::error().pending(1));
    backup.always(Act::hang());
    let layer = FallbackLayer::service(backup.service(|number| number));
    let service = ServiceBuilder::new().layer(layer).service(script.service(|number| number));
    for polls in 0..=3 {
        let mut call = TestTask::new(service.clone().oneshot(()));
        for _ in 0..polls {
            assert!(call.poll().is_pending());
        }
        assert_eq!(script.in_flight() + backup.in_flight(), usize::from(polls > 0), "{polls}");
        drop(call);
        assert_eq!((script.in_flight(), script.ready(), backup.in_flight(), backup.ready()), (0, 0, 0, 0), "{polls}");
    }
    assert!(backup.calls() > 0);
}

#[tokio::test]
async fn a_function_that_panics_wedges_nothing() {
    let layer = FallbackLayer::new(|_: Failed<'_, _, _>| -> Answer { panic!("in the fallback") });
    let service = ServiceBuilder::new().layer(layer).service(primary());
    let mut call = TestTask::new(service.clone().oneshot(""));
    assert!(catch_unwind(AssertUnwindSafe(|| call.poll().is_ready())).is_err());
    assert_eq!(service.oneshot("hello").await.unwrap().0, "hello");
}

/// Shows: G2
#[tokio::test]
async fn only_what_is_copied_goes_to_the_backup() {
    /// It cannot be cloned.
    struct Upload(u8);
    let seen = Arc::new(AtomicU32::new(0));
    let backup = {
        let seen = Arc::clone(&seen);
        service_fn(move |Upload(number)| {
            seen.fetch_add(1, Ordering::SeqCst);
            ready(answer(format!("backup {number}")))
        })
    };
    let layer = FallbackLayer::service(backup).copy(|upload: &Upload| (upload.0 < 10).then_some(Upload(upload.0)));
    let service = ServiceBuilder::new().layer(layer).service(service_fn(|_: Upload| ready(broken("primary"))));
    assert_eq!(service.clone().oneshot(Upload(7)).await.unwrap().0, "backup 7");
    assert_eq!(own(service.oneshot(Upload(70)).await), "primary");
    assert_eq!(seen.load(Ordering::SeqCst), 1);
}

/// A `POST` that failed may have done its work, so it is not sent to another service that would do it again.
///
/// Shows: G2
#[tokio::test]
async fn over_http_the_backup_can_get_what_may_be_repeated_only() {
    let backup = service_fn(|_: Request<String>| ready(Ok(status(200, "backup".into()))));
    let service = ServiceBuilder::new()
        .layer(FallbackLayer::service(backup).copy(Idempotent).http())
        .service(service_fn(|_: Request<String>| ready(Ok::<_, Error<Broken>>(status(500, "primary".into())))));
    for (method, expected) in [(Method::GET, "backup"), (Method::PUT, "backup"), (Method::POST, "primary")] {
        let request = Request::builder().method(method).body(String::new()).unwrap();
        assert_eq!(service.clone().oneshot(request).await.unwrap().body(), expected);
    }
}

/// In that case no other service repeats the work.
///
/// Shows: F4, G2
#[tokio::test]
async fn over_http_the_backup_gets_a_post_that_nobody_processed() {
    let backup = service_fn(|request: Request<String>| ready(Ok(status(200, format!("backup: {}", request.body())))));
    for (kind, expected) in [
        (io::ErrorKind::ConnectionRefused, Some("backup: order")),
        (io::ErrorKind::ConnectionReset, None),
        (io::ErrorKind::TimedOut, None),
    ] {
        let breaker = CircuitBreakerLayer::consecutive(1);
        let circuit = breaker.handle();
        let service = ServiceBuilder::new()
            .layer(FallbackLayer::service(backup).copy(Idempotent).http())
            .layer(breaker)
            .service(service_fn(move |_: Request<String>| {
                ready(Err::<Response<String>, _>(Error::Service(io::Error::from(kind))))
            }));
        let order = || Request::post("/").body("order".to_owned()).unwrap();
        let answered = service.clone().oneshot(order()).await;
        assert_eq!(answered.ok().map(Response::into_body).as_deref(), expected, "{kind}");
        // It went no further than the circuit.
        assert_eq!(circuit.state(), State::Open);
        assert_eq!(service.oneshot(order()).await.unwrap().body(), "backup: order");
    }
}

fn status(status: u16, body: String) -> Response<String> {
    let mut response = Response::new(body);
    *response.status_mut() = StatusCode::from_u16(status).unwrap();
    response
}

/// A streamed body goes to the backup whole if all of it was recorded, and otherwise not at all.
///
/// Shows: G2, R9
#[tokio::test]
async fn a_body_that_was_sent_already_goes_to_the_backup_whole_or_not_at_all() {
    type Streamed = Request<ReplayBody<Full<Bytes>>>;
    async fn read(request: Streamed) -> String {
        String::from_utf8(request.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap()
    }
    for (max_bytes, expected) in [(100, "backup got hello"), (4, "primary")] {
        let backup = service_fn(async |request| Ok(Response::new(format!("backup got {}", read(request).await))));
        let service = ServiceBuilder::new()
            .layer(ReplayLayer::new().max_bytes(max_bytes))
            .layer(FallbackLayer::service(backup).copy(Idempotent).http())
            .service(service_fn(async |request: Streamed| {
                assert_eq!(read(request).await, "hello");
                Err(Error::Service(Broken("primary")))
            }));
        let request = Request::put("/").body(Full::from("hello")).unwrap();
        let said = match service.oneshot(request).await {
            Ok(response) => response.into_body(),
            Err(error) => error.to_string(),
        };
        assert_eq!(said, expected);
    }
}

#[tokio::test]
async fn a_response_of_reqwest_says_that_it_is_degraded_too() {
    let response = |code| reqwest::Response::from(status(code, String::new()));
    let service = ServiceBuilder::new()
        .layer(FallbackLayer::new(move |_: Failed<'_, _, _>| response(200)).http())
        .service(service_fn(move |()| ready(Ok::<_, Error<Broken>>(response(503)))));
    let answered = service.oneshot(()).await;
    let why = answered.as_ref().unwrap().extensions().get::<Degraded>().unwrap();
    assert_eq!(why.status(), Some(StatusCode::SERVICE_UNAVAILABLE));
    assert_eq!(HttpStatus.classify(answered.as_ref()), Class::Ignored);
}

/// Fails as requested: 0 hangs, 1 is an error, any other number is the status.
fn failing()
-> impl Service<u16, Response = Response<String>, Error = Error<io::Error>, Future: Send> + Clone + Send + Sync {
    service_fn(async |how: u16| match how {
        0 => pending().await,
        1 => Err(Error::Service(io::Error::other("down"))),
        code => Ok(status(code, "primary".into())),
    })
}

/// Shows: G2
#[tokio::test(start_paused = true)]
async fn over_http_the_answer_says_that_it_is_degraded_and_why() {
    let service = ServiceBuilder::new()
        .layer(FallbackLayer::value(status(200, "fallback".into())).http())
        .layer(TimeoutLayer::new(SECOND))
        .service(failing());
    for (how, why) in [
        (0, "timeout: no response within 1s"),
        (1, "down"),
        (503, "the service responded with 503 Service Unavailable"),
    ] {
        let response = service.clone().oneshot(how).await.unwrap();
        let degraded = response.extensions().get::<Degraded>().unwrap();
        assert_eq!((response.body().as_str(), degraded.to_string().as_str()), ("fallback", why));
        assert_eq!(degraded.rejection().is_some_and(Rejection::is_timed_out), how == 0);
        assert_eq!(degraded.status().map(|status| status.as_u16()), (how > 1).then_some(how));
        assert!(ziggurat::rejection(&Ok::<_, Infallible>(response)).is_none());
    }
    for how in [200, 404] {
        let response = service.clone().oneshot(how).await.unwrap();
        assert_eq!(response.body(), "primary");
        assert!(response.extensions().get::<Degraded>().is_none());
    }
}

/// If the fallback fails after a response, its own error is returned, because that response is gone.
#[tokio::test]
async fn after_a_response_that_failed_the_fallbacks_own_error_comes_back() {
    let told = Told::default();
    let service = ServiceBuilder::new()
        .layer(
            FallbackLayer::future(|_: Failed<'_, _, _>| ready(Err(Error::Service(io::Error::other("backup")))))
                .http()
                .observer(told.observer()),
        )
        .service(failing());
    assert_eq!(service.oneshot(503).await.unwrap_err().to_string(), "backup");
    assert_eq!(told.all(), ["fallback failed: response, backup"]);
}

/// If a rejection is a response, the service's rejection is returned too.
#[tokio::test(start_paused = true)]
async fn where_a_rejection_is_a_response_the_services_own_comes_back() {
    let hangs = service_fn(|()| pending::<Result<Response<String>, Infallible>>());
    let backup = ServiceBuilder::new().layer(TimeoutLayer::new(SECOND).named("backup")).service(hangs);
    let told = Told::default();
    let service = ServiceBuilder::new()
        .layer(FallbackLayer::service(backup).http().observer(told.observer()))
        .map_response(|response: Response<String>| response.map(|_| "worded by a layer".to_owned()))
        .layer(TimeoutLayer::new(2 * SECOND).named("primary"))
        .service(hangs);
    let Ok(response) = service.oneshot(()).await;
    assert_eq!((response.status(), &**response.body()), (StatusCode::GATEWAY_TIMEOUT, "worded by a layer"));
    let rejection = response.extensions().get::<Rejection>().unwrap();
    assert_eq!(rejection.name(), Some("primary"));
    assert_eq!(rejection.suppressed(), Some("timeout `backup`: no response within 1s"));
    assert_eq!(told.all(), ["fallback failed: timed_out, timeout `backup`: no response within 1s"]);
}

/// Otherwise a cache outside would serve a degraded response for a whole ttl.
///
/// Shows: G2
#[tokio::test]
async fn a_cache_outside_does_not_keep_a_degraded_answer() {
    let layer = CacheLayer::new(10, SECOND, |how: &u16| Some(*how)).classify(HttpStatus);
    let cache = layer.handle();
    let service = ServiceBuilder::new()
        .layer(layer)
        .layer(FallbackLayer::value(status(200, "fallback".into())).http())
        .service(failing());
    for how in [503, 200] {
        service.clone().oneshot(how).await.unwrap();
        assert_eq!(cache.len(), usize::from(how == 200));
    }
}

/// A circuit breaker outside does not count it as a success of the service either.
///
/// Shows: G2
#[tokio::test(start_paused = true)]
async fn a_breaker_outside_does_not_count_a_degraded_answer_as_a_success() {
    let breaker = CircuitBreakerLayer::consecutive(2).classify(HttpStatus).open_for(SECOND);
    let circuit = breaker.handle();
    let service = ServiceBuilder::new()
        .layer(breaker)
        .layer(
            FallbackLayer::new(|failed: Failed<'_, _, _>| failed.outcome.is_err().then(|| status(200, String::new())))
                .http(),
        )
        .service(failing());
    // Degraded between the two failures, which are still consecutive.
    for how in [500, 1, 500] {
        assert!(service.clone().oneshot(how).await.is_ok());
    }
    assert_eq!(circuit.state(), State::Open);
    // A probe whose response comes from the fallback does not close it either.
    tokio::time::advance(SECOND).await;
    assert!(service.clone().oneshot(1).await.is_ok());
    assert_eq!(circuit.state(), State::HalfOpen);
    assert!(service.oneshot(200).await.is_ok());
    assert_eq!(circuit.state(), State::Closed);
}

#[test]
fn what_holds_a_function_says_so() {
    let layer = FallbackLayer::new(|_: Failed<'_, (), ()>| ()).remember(|_: &()| ()).named("prices");
    let said = format!("{layer:?}");
    assert!(said.starts_with("FallbackLayer { alternative: Function { function: \""), "{said}");
    assert!(said.contains("name: Some(\"prices\")"), "{said}");
}
