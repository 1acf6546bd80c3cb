//! Each call that starts is reported to end exactly once, with its outcome.

use std::{
    convert::Infallible,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, StreamBody};
use tokio::time::sleep;
use tower::{ServiceBuilder, ServiceExt, service_fn};
use ziggurat::{
    Class, Error, LayerEvent, LayerInfo, Outcome,
    observe::ObserveLayer,
    testing::{Act, Script, TestTask},
    timeout::TimeoutLayer,
};

const SECOND: Duration = Duration::from_secs(1);

/// The reported calls: `None` for the start of each, and then how it ended.
type Log = Arc<Mutex<Vec<Option<(Outcome, Option<&'static str>, Duration)>>>>;

fn observer(log: &Log) -> impl Fn(&LayerInfo, &LayerEvent<'_>) + Send + Sync + use<> {
    let log = Arc::clone(log);
    move |info: &LayerInfo, event: &LayerEvent<'_>| {
        assert_eq!((info.layer(), info.name()), ("observe", Some("orders")));
        log.lock().unwrap().push(match *event {
            LayerEvent::Started => None,
            LayerEvent::Ended { outcome, reason, elapsed } => Some((outcome, reason, elapsed)),
            ref other => panic!("{other:?}"),
        });
    }
}

fn taken(log: &Log) -> Vec<Option<(Outcome, Option<&'static str>, Duration)>> {
    std::mem::take(&mut log.lock().unwrap())
}

/// Shows: G1
#[tokio::test(start_paused = true)]
async fn a_call_is_told_to_begin_and_to_end_with_its_outcome_and_its_time() {
    let log = Log::default();
    let judge = |outcome: Result<&&str, &Error<&str>>| match outcome {
        Ok(_) => Class::Success,
        Err(Error::Service("not mine")) => Class::Ignored,
        Err(_) => Class::PERMANENT,
    };
    let service = ServiceBuilder::new()
        .layer(ObserveLayer::new().classify(judge).named("orders").observer(observer(&log)))
        .layer(TimeoutLayer::new(5 * SECOND))
        .map_err(Error::Service)
        .service(service_fn(|(seconds, outcome): (u32, Result<&'static str, &'static str>)| async move {
            sleep(seconds * SECOND).await;
            outcome
        }));
    for (seconds, answer, outcome, reason, elapsed) in [
        (0, Ok("done"), Outcome::Success, None, 0),
        (2, Ok("done"), Outcome::Success, None, 2),
        (1, Err("broken"), Outcome::Failure, None, 1),
        (1, Err("not mine"), Outcome::Ignored, None, 1),
        (9, Ok("done"), Outcome::Rejected, Some("timed_out"), 5),
    ] {
        let _ = service.clone().oneshot((seconds, answer)).await;
        assert_eq!(taken(&log), [None, Some((outcome, reason, elapsed * SECOND))]);
    }
}

/// Shows: G1
#[tokio::test(start_paused = true)]
async fn a_call_that_is_given_up_or_panics_was_cancelled() {
    let log = Log::default();
    let service = ServiceBuilder::new()
        .layer(ObserveLayer::new().named("orders").observer(observer(&log)))
        .map_err(Error::Service)
        .service(service_fn(|panics: bool| async move {
            sleep(SECOND).await;
            assert!(!panics);
            Ok::<_, Infallible>(())
        }));
    drop(service.clone().oneshot(false));
    assert_eq!(taken(&log), [], "it never began");
    assert!(tokio::time::timeout(SECOND / 2, service.clone().oneshot(false)).await.is_err());
    assert_eq!(taken(&log), [None, Some((Outcome::Cancelled, None, SECOND / 2))]);
    assert!(tokio::spawn(service.oneshot(true)).await.unwrap_err().is_panic());
    assert_eq!(taken(&log), [None, Some((Outcome::Cancelled, None, SECOND))]);
}

/// Shows: G1
#[tokio::test(start_paused = true)]
async fn a_call_can_last_to_the_end_of_the_body() {
    let log = Log::default();
    let service = ServiceBuilder::new()
        .layer(ObserveLayer::http().until_body_end().named("orders").observer(observer(&log)))
        .map_err(Error::Service)
        .service(service_fn(|status: StatusCode| async move {
            let frames = futures_util::stream::once(async {
                sleep(SECOND).await;
                Err::<http_body::Frame<Bytes>, _>("reset")
            });
            let mut response = Response::new(StreamBody::new(Box::pin(frames)));
            *response.status_mut() = status;
            Ok::<_, Infallible>(response)
        }));
    let mut body = service.clone().oneshot(StatusCode::OK).await.unwrap().into_body();
    assert_eq!(taken(&log), [None]);
    assert!(body.frame().await.unwrap().is_err());
    assert_eq!(taken(&log), [Some((Outcome::Failure, None, SECOND))]);

    let mut body = service.clone().oneshot(StatusCode::OK).await.unwrap().into_body();
    assert!(futures_util::poll!(body.frame()).is_pending());
    drop(body);
    assert_eq!(taken(&log), [None, Some((Outcome::Cancelled, None, Duration::ZERO))], "its reader was waiting");

    drop(service.clone().oneshot(StatusCode::OK).await.unwrap());
    assert_eq!(taken(&log), [None, Some((Outcome::Success, None, Duration::ZERO))], "no reader was waiting");

    let _body = service.oneshot(StatusCode::BAD_GATEWAY).await.unwrap().into_body();
    assert_eq!(taken(&log), [None, Some((Outcome::Failure, None, Duration::ZERO))], "judged before its body");
}

#[tokio::test]
async fn an_empty_body_ends_with_its_response() {
    let log = Log::default();
    let service = ServiceBuilder::new()
        .layer(ObserveLayer::http().until_body_end().named("orders").observer(observer(&log)))
        .map_err(Error::Service)
        .service(service_fn(|_: Request<()>| async { Ok::<_, Infallible>(Response::new(Full::<Bytes>::default())) }));
    let _response = service.oneshot(Request::new(())).await.unwrap();
    assert!(matches!(taken(&log)[..], [None, Some((Outcome::Success, None, _))]));
}

/// Shows: G1
#[tokio::test]
async fn an_error_of_readiness_is_a_call_that_failed() {
    let log = Log::default();
    let service = |act: Act| {
        ServiceBuilder::new()
            .layer(ObserveLayer::new().named("orders").observer(observer(&log)))
            .service(Script::new().then(act).service(|n| n))
    };
    assert!(service(Act::error().at_readiness()).oneshot(1).await.is_err());
    assert!(matches!(taken(&log)[..], [None, Some((Outcome::Failure, None, _))]));
    assert!(service(Act::answer()).oneshot(1).await.is_ok());
    assert!(matches!(taken(&log)[..], [None, Some((Outcome::Success, None, _))]), "once");
}

/// The call is dropped before its end is reported, so an observer can take its place.
#[test]
fn the_call_is_gone_when_its_end_is_told() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let _entered = runtime.enter();
    let script = Script::new().then(Act::answer().pending(1));
    let gone = Arc::new(Mutex::new(Vec::new()));
    let (told, calls) = (Arc::clone(&gone), script.clone());
    let service = ServiceBuilder::new()
        .layer(ObserveLayer::new().observer(move |_: &LayerInfo, event: &LayerEvent<'_>| {
            if let LayerEvent::Ended { .. } = event {
                told.lock().unwrap().push(calls.in_flight());
            }
        }))
        .service(script.service(|n| n));
    let mut call = TestTask::new(service.clone().oneshot(1));
    assert!(call.poll().is_pending());
    drop(call);
    assert!(TestTask::new(service.oneshot(1)).poll().is_ready());
    assert_eq!(*gone.lock().unwrap(), [0, 0]);
}

/// Shows: G1
#[test]
fn every_observer_receives_every_event_in_the_order_in_which_they_were_added() {
    let received = Arc::new(Mutex::new(Vec::new()));
    let observer = |number: u8| {
        let received = Arc::clone(&received);
        move |info: &LayerInfo, event: &LayerEvent<'_>| {
            received.lock().unwrap().push((number, info.name().unwrap().to_owned(), event.name()));
        }
    };
    let info = LayerInfo::new("mine").observer(observer(1)).named(String::from("late")).observer(observer(2));
    info.observer(observer(3)).emit(LayerEvent::Hit);
    let expected = [1, 2, 3].map(|number| (number, "late".to_owned(), "hit"));
    assert_eq!(*received.lock().unwrap(), expected);
}
