//! Classifiers of rejections, in every layer that takes a classifier.

use std::{
    convert::Infallible,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use tower::{Layer, Service, ServiceBuilder, ServiceExt, service_fn};
use ziggurat::{
    Class, Error, FailOnError, HttpStatus, LayerEvent, LayerInfo, Outcome, Reason, Reject, Rejection,
    batch::BatchLayer,
    cache::CacheLayer,
    circuit_breaker::{CircuitBreakerLayer, State},
    fallback::FallbackLayer,
    observe::ObserveLayer,
    retry::RetryLayer,
    with_rejections,
};

const SECOND: Duration = Duration::from_secs(1);

type Answer = Result<&'static str, Error<&'static str>>;

fn rejected(reason: Reason) -> Answer {
    Reject::reject(LayerInfo::new("inside").reject(reason))
}

fn timed_out() -> Answer {
    rejected(Reason::TimedOut { limit: SECOND })
}

fn overloaded() -> Answer {
    rejected(Reason::Overloaded { limit: 1 })
}

/// Returns a service with that outcome, and the number of its calls.
fn always(
    outcome: fn() -> Answer,
) -> (impl Service<u8, Response = &'static str, Error = Error<&'static str>, Future: Send> + Clone, Arc<AtomicUsize>) {
    let calls = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&calls);
    let service = service_fn(move |_: u8| {
        count.fetch_add(1, Ordering::SeqCst);
        std::future::ready(outcome())
    });
    (service, calls)
}

/// Classifies a timeout as `class`, and other rejections by default.
fn timeouts_are(class: Class) -> impl Fn(&Rejection) -> Class + Clone {
    move |rejection: &Rejection| if rejection.is_timed_out() { class } else { rejection.class() }
}

#[tokio::test(start_paused = true)]
async fn a_retry_can_leave_timeouts_alone_and_retry_errors() {
    let layer = RetryLayer::new().classify(with_rejections(FailOnError, |rejection| match rejection.reason() {
        Reason::TimedOut { .. } => Class::PERMANENT,
        _ => rejection.class(),
    }));
    for (outcome, made) in [(timed_out as fn() -> Answer, 1), (|| Err(Error::Service("reset")), 3), (overloaded, 1)] {
        let (service, calls) = always(outcome);
        assert!(layer.layer(service).oneshot(1).await.is_err());
        assert_eq!(calls.load(Ordering::SeqCst), made, "{:?}", outcome());
    }
}

/// The closure that it wraps still classifies the service's own outcomes.
#[tokio::test(start_paused = true)]
async fn a_retry_can_try_an_overload_again() {
    let own = |outcome: Result<&&'static str, &Error<&'static str>>| match outcome {
        Ok(_) => Class::Success,
        Err(_) => Class::PERMANENT,
    };
    let layer = RetryLayer::new().classify(with_rejections(own, |_| Class::TRANSIENT));
    for (outcome, made) in [(overloaded as fn() -> Answer, 3), (|| Err(Error::Service("reset")), 1)] {
        let (service, calls) = always(outcome);
        assert!(layer.layer(service).oneshot(1).await.is_err());
        assert_eq!(calls.load(Ordering::SeqCst), made, "{:?}", outcome());
    }
}

#[tokio::test(start_paused = true)]
async fn a_breaker_counts_the_rejections_that_it_is_told_to_count() {
    for (outcome, class, state) in [
        (timed_out as fn() -> Answer, Class::Ignored, State::Closed),
        (timed_out, Class::PERMANENT, State::Open),
        (|| Err(Error::Service("reset")), Class::Ignored, State::Open),
    ] {
        let layer = CircuitBreakerLayer::consecutive(1).classify(with_rejections(FailOnError, timeouts_are(class)));
        let circuit = layer.handle();
        assert!(layer.layer(always(outcome).0).oneshot(1).await.is_err());
        assert_eq!(circuit.state(), state, "{:?} is {class:?}", outcome());
    }
}

/// The same holds for a rejection in the error that ends a response body.
#[tokio::test(start_paused = true)]
async fn a_rejection_that_ends_a_body_is_judged_as_one() {
    type Body = UnsyncBoxBody<Bytes, Box<dyn std::error::Error + Send + Sync>>;
    fn respond() -> Response<Body> {
        let error: Result<(), Box<dyn std::error::Error + Send + Sync>> =
            Reject::reject(LayerInfo::new("inside").reject(Reason::TimedOut { limit: SECOND }));
        let frames = tokio_stream::iter([Err(error.unwrap_err())]);
        Response::new(StreamBody::new(frames).boxed_unsync())
    }
    for (class, state, outcome) in
        [(Class::Ignored, State::Closed, Outcome::Ignored), (Class::PERMANENT, State::Open, Outcome::Failure)]
    {
        let judge = with_rejections(HttpStatus, timeouts_are(class));
        let breaker = CircuitBreakerLayer::consecutive(1).classify(judge.clone()).until_body_end();
        let (circuit, ended) = (breaker.handle(), Arc::new(Mutex::new(None)));
        let heard = Arc::clone(&ended);
        let observe = ObserveLayer::new().classify(judge).until_body_end().observer(
            move |_: &LayerInfo, event: &LayerEvent<'_>| {
                if let LayerEvent::Ended { outcome, .. } = event {
                    *heard.lock().unwrap() = Some(*outcome);
                }
            },
        );
        let service = ServiceBuilder::new()
            .layer(observe)
            .layer(breaker)
            .map_err(Error::Service)
            .service_fn(|()| std::future::ready(Ok::<_, Infallible>(respond())));
        assert!(service.oneshot(()).await.unwrap().into_body().collect().await.is_err());
        assert_eq!((circuit.state(), *ended.lock().unwrap()), (state, Some(outcome)));
    }
}

/// A success passes unchanged: nothing takes its place.
#[tokio::test(start_paused = true)]
async fn a_fallback_leaves_rejections_alone_that_are_called_a_success() {
    for (outcome, class, answer) in [
        (timed_out as fn() -> Answer, Class::Success, None),
        (timed_out, Class::Ignored, Some("usual")),
        (overloaded, Class::Success, Some("usual")),
        (|| Err(Error::Service("reset")), Class::Success, Some("usual")),
    ] {
        let layer = FallbackLayer::value("usual").classify(with_rejections(FailOnError, timeouts_are(class)));
        let answered = layer.layer(always(outcome).0).oneshot(1).await;
        assert_eq!(answered.ok(), answer, "{:?} is {class:?}", outcome());
    }
}

#[tokio::test(start_paused = true)]
async fn a_cache_gives_nothing_stale_for_a_rejection_that_is_called_a_success_and_stores_none() {
    for (class, second) in [(Class::Success, None), (Class::Ignored, Some("first")), (Class::TRANSIENT, Some("first"))]
    {
        let calls = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&calls);
        let layer = CacheLayer::new(10, SECOND, |req: &u8| Some(*req))
            .stale_if_error(60 * SECOND)
            .classify(with_rejections(FailOnError, timeouts_are(class)));
        let service = layer.layer(service_fn(move |_: u8| {
            let call = count.fetch_add(1, Ordering::SeqCst);
            std::future::ready(if call == 0 { Ok("first") } else { timed_out() })
        }));
        assert_eq!(service.clone().oneshot(1).await.unwrap(), "first");
        tokio::time::advance(2 * SECOND).await;
        assert_eq!(service.clone().oneshot(1).await.ok(), second, "{class:?}");
    }
    // If a rejection is a response, one that is classified as a success is still not stored.
    let calls = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&calls);
    let layer = CacheLayer::new(10, 60 * SECOND, |req: &Request<()>| Some(req.uri().clone()))
        .classify(with_rejections(HttpStatus, |_| Class::Success));
    let service = layer.layer(service_fn(move |_: Request<()>| {
        count.fetch_add(1, Ordering::SeqCst);
        let outcome: Result<Response<Full<Bytes>>, Infallible> =
            Reject::reject(LayerInfo::new("inside").reject(Reason::Injected));
        std::future::ready(outcome)
    }));
    for made in 1..3 {
        assert_eq!(service.clone().oneshot(Request::new(())).await.unwrap().status(), 503);
        assert_eq!(calls.load(Ordering::SeqCst), made);
    }
}

/// All callers of a shared call that was rejected get the rejection itself.
#[tokio::test(start_paused = true)]
async fn a_batch_takes_the_same_form() {
    let layer = BatchLayer::new(2, SECOND).classify(with_rejections(FailOnError, timeouts_are(Class::Ignored)));
    let service = layer.layer(service_fn(|_: Vec<u8>| async {
        let outcome: Result<Vec<Result<u8, Error<&'static str>>>, Error<&'static str>> =
            Reject::reject(LayerInfo::new("inside").reject(Reason::TimedOut { limit: SECOND }));
        outcome
    }));
    let (one, two) = tokio::join!(service.clone().oneshot(1), service.clone().oneshot(2));
    for outcome in [one, two] {
        assert!(ziggurat::rejection(&outcome).unwrap().is_timed_out());
    }
}
