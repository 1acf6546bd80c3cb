//! A rejection among the causes of the service's own error: the service calls another one through its own stack.

use std::{
    error::Error as StdError,
    fmt,
    future::{pending, ready},
    io,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    task::Poll,
    time::Duration,
};

use http::{Method, Request, Response};
use tower::{Layer, Service, ServiceBuilder, ServiceExt, service_fn};
use ziggurat::{
    Class, Deadline, Error, FailOnError, LayerEvent, LayerInfo, Outcome, Reason, Reject, Rejection,
    cache::CacheLayer,
    circuit_breaker::{CircuitBreakerLayer, State},
    fallback::{Failed, FallbackLayer},
    observe::ObserveLayer,
    retry::RetryLayer,
    testing::TestTask,
    timeout::TimeoutLayer,
    with_rejections,
};

const SECOND: Duration = Duration::from_secs(1);

type BoxError = Box<dyn StdError + Send + Sync>;
type Answer = Result<&'static str, Error<BoxError>>;

/// The error of a service whose client failed.
#[derive(Debug)]
struct Own(Error<io::Error>);

impl fmt::Display for Own {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the bill could not be written")
    }
}

impl StdError for Own {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        Some(&self.0)
    }
}

fn rejection(reason: Reason) -> Rejection {
    LayerInfo::new("inside").reject(reason)
}

fn failed(reason: Reason) -> Error<BoxError> {
    Error::Service(ziggurat::boxed(Own(Error::Rejected(rejection(reason)))))
}

fn timed_out() -> Answer {
    Err(failed(Reason::TimedOut { limit: SECOND }))
}

fn late() -> Answer {
    Err(failed(Reason::DeadlineExceeded { after: Some(SECOND) }))
}

fn overloaded() -> Answer {
    Err(failed(Reason::Overloaded { limit: 1 }))
}

fn circuit_open() -> Answer {
    Err(failed(Reason::CircuitOpen))
}

fn reset() -> Answer {
    Err(Error::Service(ziggurat::boxed(Own(Error::Service(io::ErrorKind::ConnectionReset.into())))))
}

/// Returns a service with that outcome, and the number of its calls.
fn always(
    outcome: fn() -> Answer,
) -> (
    impl Service<u8, Response = &'static str, Error = Error<BoxError>, Future: Send> + Clone + Send + 'static,
    Arc<AtomicUsize>,
) {
    let calls = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&calls);
    let service = service_fn(move |_: u8| {
        count.fetch_add(1, Ordering::SeqCst);
        ready(outcome())
    });
    (service, calls)
}

/// A retry repeats neither a call that hit a full limit nor one that an open circuit kept from the service's own
/// client.
#[tokio::test(start_paused = true)]
async fn a_retry_judges_the_rejection_and_leaves_the_error_as_it_is() {
    for (outcome, made) in [(overloaded as fn() -> Answer, 1), (circuit_open, 1), (late, 1), (timed_out, 3), (reset, 3)]
    {
        let (service, calls) = always(outcome);
        let answer = RetryLayer::new().layer(service).oneshot(1).await;
        assert_eq!(calls.load(Ordering::SeqCst), made, "{answer:?}");
        assert!(matches!(answer, Err(Error::Service(error)) if error.is::<Own>()));
    }
    let again = with_rejections(FailOnError, |rejection| match rejection.reason() {
        Reason::Overloaded { .. } => Class::TRANSIENT,
        _ => Class::PERMANENT,
    });
    for (outcome, made) in [(overloaded as fn() -> Answer, 3), (timed_out, 1)] {
        let (service, calls) = always(outcome);
        RetryLayer::new().classify(again).layer(service).oneshot(1).await.unwrap_err();
        assert_eq!(calls.load(Ordering::SeqCst), made);
    }
}

/// The service may have acted before it called, so an unsent request of its own client proves nothing.
#[tokio::test(start_paused = true)]
async fn a_rejection_further_in_does_not_prove_that_the_request_was_not_processed() {
    for (method, made) in [(Method::POST, 1), (Method::GET, 3)] {
        let calls = AtomicUsize::new(0);
        let service = RetryLayer::http().layer(service_fn(|_: Request<&'static str>| {
            calls.fetch_add(1, Ordering::SeqCst);
            ready(Err::<Response<String>, _>(failed(Reason::Unavailable { message: "no connection".into() })))
        }));
        let request = Request::builder().method(method).body("an order").unwrap();
        service.oneshot(request).await.unwrap_err();
        assert_eq!(calls.load(Ordering::SeqCst), made);
    }
}

#[tokio::test(start_paused = true)]
async fn a_breaker_counts_what_speaks_against_the_service() {
    for (outcome, state) in [
        (overloaded as fn() -> Answer, State::Closed),
        (late, State::Closed),
        (circuit_open, State::Open),
        (timed_out, State::Open),
        (reset, State::Open),
    ] {
        let layer = CircuitBreakerLayer::failure_rate(0.5).min_calls(2);
        let circuit = layer.handle();
        let service = layer.layer(service_fn(|answers: bool| ready(if answers { Ok("fine") } else { outcome() })));
        for answers in [true, false] {
            assert_eq!(service.clone().oneshot(answers).await.is_ok(), answers);
        }
        assert_eq!(circuit.state(), state, "{:?}", outcome());
    }
}

/// End to end: the service's own client ends its call by the deadline of the service's caller.
#[tokio::test(start_paused = true)]
async fn callers_without_patience_open_no_circuit_through_a_client_of_the_services() {
    let client = ServiceBuilder::new()
        .layer(TimeoutLayer::new(10 * SECOND))
        .map_err(Error::Service)
        .service_fn(|()| pending::<io::Result<&'static str>>());
    let breaker = CircuitBreakerLayer::failure_rate(0.5).min_calls(2);
    let circuit = breaker.handle();
    let service =
        ServiceBuilder::new().layer(breaker).map_err(Error::Service).service_fn(move |hangs: bool| {
            let client = client.clone();
            async move {
                if hangs { client.oneshot(()).await.map_err(|error| ziggurat::boxed(Own(error))) } else { Ok("fine") }
            }
        });
    for hangs in [false, true, false, true, false, true] {
        let call = service.clone().oneshot(hangs);
        let outcome = Deadline::after(SECOND / 1000).within(call).await;
        assert_eq!(outcome.is_err(), hangs);
    }
    assert_eq!(circuit.state(), State::Closed);
}

#[tokio::test(start_paused = true)]
async fn a_fallback_stands_in_for_it() {
    for outcome in [overloaded as fn() -> Answer, late, circuit_open, timed_out, reset] {
        let answer = FallbackLayer::value("usual").layer(always(outcome).0).oneshot(1).await;
        assert_eq!(answer.ok(), Some("usual"), "{:?}", outcome());
    }
    let layer = FallbackLayer::value("usual").classify(with_rejections(FailOnError, |_| Class::Success));
    let answer = layer.layer(always(overloaded).0).oneshot(1).await;
    assert!(answer.is_err());
}

#[tokio::test(start_paused = true)]
async fn a_cache_has_something_stale_for_it_and_does_not_keep_it() {
    for (outcome, calls_of_two) in [(overloaded as fn() -> Answer, 2), (circuit_open, 2), (reset, 1)] {
        let calls = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&calls);
        let answers = move |key: u8| {
            let first = count.fetch_add(1, Ordering::SeqCst) == 0 && key == 1;
            ready(if first { Ok("first") } else { outcome() })
        };
        let layer =
            CacheLayer::new(10, SECOND, |key: &u8| Some(*key)).stale_if_error(60 * SECOND).failure_ttl(60 * SECOND);
        let service = layer.layer(service_fn(answers));
        assert_eq!(service.clone().oneshot(1).await.unwrap(), "first");
        tokio::time::advance(2 * SECOND).await;
        assert_eq!(service.clone().oneshot(1).await.unwrap(), "first", "{:?}", outcome());
        let before = calls.load(Ordering::SeqCst);
        for _ in 0..2 {
            assert!(service.clone().oneshot(2).await.is_err());
        }
        assert_eq!(calls.load(Ordering::SeqCst) - before, calls_of_two, "{:?}", outcome());
    }
}

/// The caller that leads a shared call had no more time. The waiters have, and call for themselves.
#[tokio::test(start_paused = true)]
async fn a_deadline_that_passed_further_in_is_nothing_to_those_who_share_the_call() {
    let calls = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&calls);
    let service = CacheLayer::new(10, SECOND, |key: &u8| Some(*key)).layer(service_fn(move |_: u8| {
        let first = count.fetch_add(1, Ordering::SeqCst) == 0;
        async move {
            tokio::task::yield_now().await;
            if first { late() } else { Ok("in time") }
        }
    }));
    let mut leads = TestTask::new(service.clone().oneshot(1));
    let mut waits = TestTask::new(service.oneshot(1));
    assert!(leads.poll().is_pending() && waits.poll().is_pending());
    assert!(matches!(leads.poll(), Poll::Ready(Err(Error::Service(_)))));
    assert!(waits.poll().is_pending());
    assert_eq!(waits.poll().map(Result::unwrap), Poll::Ready("in time"));
}

#[tokio::test(start_paused = true)]
async fn what_is_measured_has_its_reason() {
    for (outcome, expected) in [
        (overloaded as fn() -> Answer, (Outcome::Rejected, Some("overloaded"))),
        (circuit_open, (Outcome::Rejected, Some("circuit_open"))),
        (reset, (Outcome::Failure, None)),
    ] {
        let ended = Arc::new(Mutex::new(None));
        let heard = Arc::clone(&ended);
        let layer = ObserveLayer::new().observer(move |_: &LayerInfo, event: &LayerEvent<'_>| {
            if let LayerEvent::Ended { outcome, reason, .. } = event {
                *heard.lock().unwrap() = Some((*outcome, *reason));
            }
        });
        layer.layer(always(outcome).0).oneshot(1).await.unwrap_err();
        assert_eq!(*ended.lock().unwrap(), Some(expected));
    }
}

/// An unknown error type is left to the classifier, and a type that exposes itself is inspected.
#[tokio::test(start_paused = true)]
async fn an_error_type_of_ones_own_says_whether_it_is_looked_into() {
    #[derive(Debug)]
    struct Open(Own);
    impl fmt::Display for Open {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            self.0.fmt(f)
        }
    }
    impl Reject<()> for Open {
        fn reject(rejection: Rejection) -> Result<(), Self> {
            Err(Self(Own(Error::Rejected(rejection))))
        }
        fn rejection(_: &Result<(), Self>) -> Option<&Rejection> {
            None
        }
        fn cause(outcome: &Result<(), Self>) -> Option<&(dyn StdError + 'static)> {
            outcome.as_ref().err().map(|Self(own)| own as _)
        }
    }
    let own = || Own(Error::Rejected(rejection(Reason::Overloaded { limit: 1 })));
    assert_eq!(Class::of(&Err::<(), _>(Open(own())), &FailOnError), Class::Ignored);
    assert_eq!(Class::of(&Err::<(), _>(Error::Service(own())), &FailOnError), Class::TRANSIENT);
}

/// The error inside an `io::Error` is not among its sources.
#[test]
fn it_is_found_in_what_an_io_error_was_made_of() {
    let made_of = io::Error::other(io::Error::other(rejection(Reason::CircuitOpen)));
    assert!(Rejection::find(&made_of).unwrap().is_circuit_open());
    assert!(Rejection::find(&io::Error::other("the circuit is open")).is_none());
}

/// In a stack of boxed errors, an error of the service's own is not the rejection of a layer either.
#[tokio::test(start_paused = true)]
async fn a_boxed_error_with_a_rejection_among_its_causes_stays_the_services_own() {
    let own = || -> BoxError {
        Box::new(Own(Error::Rejected(rejection(Reason::Unavailable { message: "no connection".into() }))))
    };
    for (method, made) in [(Method::POST, 1), (Method::GET, 3)] {
        let calls = AtomicUsize::new(0);
        let service = RetryLayer::http().layer(service_fn(|_: Request<&'static str>| {
            calls.fetch_add(1, Ordering::SeqCst);
            ready(Err::<Response<String>, _>(own()))
        }));
        let request = Request::builder().method(method).body("an order").unwrap();
        let error = service.oneshot(request).await.unwrap_err();
        assert!(error.is::<Own>(), "{error:?}");
        assert_eq!(calls.load(Ordering::SeqCst), made);
    }
    let layer = FallbackLayer::future(|_: Failed<'_, _, _>| ready(Err::<&'static str, _>("no backup".into())));
    let answer = layer.layer(service_fn(|_: u8| ready(Err::<&'static str, _>(own())))).oneshot(1).await;
    assert!(answer.unwrap_err().is::<Own>());
    let overloaded: BoxError = Box::new(Own(Error::Rejected(rejection(Reason::Overloaded { limit: 1 }))));
    assert_eq!(Class::of(&Err::<(), _>(overloaded), &FailOnError), Class::Ignored);
}
