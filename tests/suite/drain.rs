//! A server that drains: on a paused clock. `peers/draining.rs` has the same over real sockets.

use std::{
    convert::Infallible,
    error::Error as StdError,
    future::Future,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll, Wake, Waker},
    time::Duration,
};

use bytes::Bytes;
use futures_util::{FutureExt, StreamExt, stream};
use http::{Request, Response, StatusCode, Version, header::CONNECTION};
use http_body::{Body, Frame, SizeHint};
use http_body_util::{BodyExt, Empty, StreamBody};
use tokio::{
    sync::{
        mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
        oneshot,
    },
    task::yield_now,
    time::{Instant, advance},
};
use tower::{Layer, Service, ServiceBuilder, ServiceExt, service_fn};
use ziggurat::{
    Class, Error, LayerEvent, LayerInfo, Reason, Rejection, Scope,
    context::ContextLayer,
    drain::{DrainHandle, DrainLayer, draining},
    rejection_response::RejectionResponseLayer,
    testing::{Act, Script, TestTask},
};

const MILLI: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

type BoxError = Box<dyn StdError + Send + Sync>;

/// A body whose frames come from a channel. It ends with the sender.
#[derive(Debug, Default)]
struct Streamed(Option<UnboundedReceiver<&'static str>>);

impl Body for Streamed {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let Some(frames) = &mut self.0 else { return Poll::Ready(None) };
        frames.poll_recv(cx).map(|frame| frame.map(|frame| Ok(Frame::data(Bytes::from_static(frame.as_bytes())))))
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::new()
    }
}

fn streamed() -> (UnboundedSender<&'static str>, Streamed) {
    let (sender, frames) = unbounded_channel();
    (sender, Streamed(Some(frames)))
}

type Answer = oneshot::Sender<Response<Streamed>>;

/// Responds with the sent response. The request carries the receiver.
fn on_demand() -> impl Service<
    Request<oneshot::Receiver<Response<Streamed>>>,
    Response = Response<Streamed>,
    Error = Error<Infallible>,
    Future: Send,
> + Clone {
    service_fn(|request: Request<oneshot::Receiver<Response<Streamed>>>| async {
        request.into_body().await.map_or_else(|_| panic!("no answer"), Ok)
    })
}

fn request(version: Version) -> (Answer, Request<oneshot::Receiver<Response<Streamed>>>) {
    let (answer, body) = oneshot::channel();
    let mut request = Request::new(body);
    *request.version_mut() = version;
    (answer, request)
}

/// Returns the layer, and its handle.
fn grace(grace: Duration) -> (DrainLayer, DrainHandle) {
    let layer = DrainLayer::new().grace(grace);
    let handle = layer.handle();
    (layer, handle)
}

fn reason<R>(outcome: &Result<R, Error<Infallible>>) -> Option<&Reason> {
    match outcome {
        Err(Error::Rejected(rejection)) => Some(rejection.reason()),
        _ => None,
    }
}

fn has_drained(handle: &DrainHandle) -> bool {
    TestTask::new(handle.drained()).poll().is_ready()
}

/// Shows: D1
#[tokio::test(start_paused = true)]
async fn a_running_call_ends_with_its_body_and_then_the_drain_ends() {
    let (layer, handle) = grace(SECOND);
    let service = layer.layer(on_demand());
    let (answer, first) = request(Version::HTTP_11);
    let mut call = TestTask::new(service.clone().oneshot(first));
    assert!(call.poll().is_pending());
    assert_eq!((handle.in_flight(), handle.is_draining()), (1, false));

    let mut drain = TestTask::new(handle.drain());
    assert!(drain.poll().is_pending() && handle.is_draining());
    let (_, late) = request(Version::HTTP_11);
    let rejected = service.oneshot(late).await;
    assert_eq!(reason(&rejected), Some(&Reason::Draining { grace: None }));

    let (sender, body) = streamed();
    answer.send(Response::new(body)).unwrap();
    let Poll::Ready(Ok(response)) = call.poll() else { panic!("no response") };
    assert_eq!(response.headers()[CONNECTION], "close");
    let mut body = response.into_body();
    for frame in ["one", "two"] {
        sender.send(frame).unwrap();
        assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), frame);
        advance(400 * MILLI).await;
    }
    assert!(drain.poll().is_pending(), "the body goes on");
    drop(sender);
    assert!(body.frame().await.is_none());
    assert_eq!(handle.in_flight(), 0);
    assert!(drain.times_woken() == 1 && drain.poll().is_ready());
    assert!(has_drained(&handle));
}

/// Shows: D1
#[tokio::test(start_paused = true)]
async fn at_the_end_of_the_grace_period_a_call_is_rejected_and_a_body_ends_with_an_error() {
    let (layer, handle) = grace(SECOND);
    let service = layer.layer(on_demand());
    let (answer, first) = request(Version::HTTP_11);
    let call = tokio::spawn(service.clone().oneshot(first));
    let (answered, second) = request(Version::HTTP_11);
    let (_sender, body) = streamed();
    answered.send(Response::new(body)).unwrap();
    let mut body = service.oneshot(second).await.unwrap().into_body();
    let body = tokio::spawn(async move { (body.frame().await, Instant::now()) });
    yield_now().await;

    let start = Instant::now();
    advance(10 * SECOND).await; // Nothing ends before the drain.
    assert!(!answer.is_closed() && handle.in_flight() == 2);
    let mut drain = handle.drain();
    assert!((&mut drain).now_or_never().is_none());
    drain.await;
    assert_eq!(start.elapsed(), 11 * SECOND);

    let outcome = call.await.unwrap();
    assert_eq!(reason(&outcome), Some(&Reason::Draining { grace: Some(SECOND) }));
    assert!(answer.is_closed(), "the call was dropped");
    let (frame, ended) = body.await.unwrap();
    let error = frame.unwrap().unwrap_err();
    assert_eq!(Rejection::find(&*error).unwrap().reason(), &Reason::Draining { grace: Some(SECOND) });
    assert_eq!((ended - start, handle.in_flight()), (11 * SECOND, 0));
}

#[tokio::test(start_paused = true)]
async fn a_body_that_is_always_ready_ends_too_and_a_last_frame_still_arrives() {
    let (layer, handle) = grace(SECOND);
    let endless =
        || StreamBody::new(stream::repeat_with(|| Ok::<_, Infallible>(Frame::data(Bytes::from_static(b"x")))));
    let service = layer.layer(service_fn(move |_: Request<()>| {
        let body = endless();
        async { Ok::<_, Error<Infallible>>(Response::new(body)) }
    }));
    let mut body = service.oneshot(Request::new(())).await.unwrap().into_body();
    let drain = handle.drain();
    for _ in 0..3 {
        assert!(body.frame().await.unwrap().is_ok());
    }
    advance(SECOND).await;
    assert!(body.frame().await.unwrap().is_err());
    drain.await;

    let (layer, handle) = grace(SECOND);
    let service = layer
        .layer(service_fn(|_: Request<()>| async { Ok::<_, Error<Infallible>>(Response::new("whole".to_owned())) }));
    let response = service.oneshot(Request::new(())).await.unwrap();
    drop(handle.drain());
    advance(SECOND).await;
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "whole");
}

#[tokio::test(start_paused = true)]
async fn a_drain_goes_on_without_its_future_and_cannot_be_started_again() {
    let (layer, handle) = grace(SECOND);
    let service = layer.layer(on_demand());
    let (_answer, first) = request(Version::HTTP_11);
    let call = tokio::spawn(service.oneshot(first));
    let waits = tokio::spawn(handle.drained());
    yield_now().await;
    let start = Instant::now();
    drop(handle.drain());
    advance(900 * MILLI).await;
    handle.set_grace(10 * SECOND);
    assert_eq!(handle.grace(), SECOND, "it has begun");
    handle.drain().await;
    waits.await.unwrap();
    assert_eq!(reason(&call.await.unwrap()), Some(&Reason::Draining { grace: Some(SECOND) }));
    assert_eq!(start.elapsed(), SECOND);
}

#[tokio::test(start_paused = true)]
async fn a_grace_period_of_zero_ends_all_at_once_and_the_longest_never() {
    let (layer, handle) = grace(Duration::ZERO);
    let (_answer, first) = request(Version::HTTP_11);
    let mut call = TestTask::new(layer.layer(on_demand()).oneshot(first));
    assert!(call.poll().is_pending());
    assert!(TestTask::new(handle.drain()).poll().is_ready());
    assert_eq!(call.times_woken(), 1);
    assert!(matches!(call.poll(), Poll::Ready(Err(_))));

    let (layer, handle) = grace(Duration::MAX);
    let (answer, first) = request(Version::HTTP_11);
    let mut call = TestTask::new(layer.layer(on_demand()).oneshot(first));
    assert!(call.poll().is_pending());
    let mut drain = TestTask::new(handle.drain());
    assert!(drain.poll().is_pending());
    advance(1_000_000 * SECOND).await;
    assert!(call.poll().is_pending() && drain.poll().is_pending());
    answer.send(Response::new(Streamed::default())).unwrap();
    assert!(call.poll().is_ready() && drain.poll().is_ready());
}

#[tokio::test(start_paused = true)]
async fn a_server_without_calls_has_drained_at_once() {
    let (_, handle) = grace(SECOND);
    assert!(!has_drained(&handle), "it has not begun");
    assert!(TestTask::new(handle.drain()).poll().is_ready());
}

/// Shows: D1
#[tokio::test(start_paused = true)]
async fn an_endless_stream_ends_when_the_drain_begins_and_its_scope_with_it() {
    let (layer, handle) = grace(60 * SECOND);
    let (seen, mut scopes) = unbounded_channel();
    let service = ServiceBuilder::new().layer(layer).layer(ContextLayer::new(Scope::root("app"))).service(service_fn(
        move |request: Request<()>| {
            seen.send(request.extensions().get::<Scope>().unwrap().clone()).unwrap();
            let ticks = stream::pending::<Result<Frame<Bytes>, Infallible>>();
            // In the body, too.
            let late = stream::once(async { draining().await }).filter_map(async |()| None);
            let body = Box::pin(StreamBody::new(stream::select(ticks.take_until(draining()), late)));
            async { Ok::<_, Error<Infallible>>(Response::new(body)) }
        },
    ));
    let mut body = service.oneshot(Request::new(())).await.unwrap().into_body();
    let scope = scopes.recv().await.unwrap();
    let mut feeder = scope.spawn(scope.cancelled());
    let mut read = TestTask::new(async move { body.frame().await.is_none() });
    assert!(read.poll().is_pending());
    drop(handle.drain());
    assert!(!scope.is_cancelled(), "the call goes on");
    assert_eq!(read.poll(), Poll::Ready(true));
    (&mut feeder).await.unwrap();
    assert!(scope.is_cancelled() && has_drained(&handle));
}

#[tokio::test(start_paused = true)]
async fn outside_a_server_nothing_drains_and_the_nearest_one_counts() {
    assert!(TestTask::new(draining()).poll().is_pending());
    let ((outer, outer_handle), (inner, inner_handle)) = (grace(SECOND), grace(SECOND));
    let (sender, mut futures) = unbounded_channel();
    let service = ServiceBuilder::new().layer(outer).layer(inner).service(service_fn(move |_: Request<()>| {
        sender.send(draining()).unwrap();
        let sender = sender.clone();
        async move {
            sender.send(draining()).unwrap();
            Ok::<_, Error<Infallible>>(Response::new(Empty::<Bytes>::new()))
        }
    }));
    assert!(service.oneshot(Request::new(())).await.is_ok());
    assert!(TestTask::new(draining()).poll().is_pending());
    drop(outer_handle.drain());
    let mut told = [futures.recv().await.unwrap(), futures.recv().await.unwrap()].map(TestTask::new);
    assert!(told.iter_mut().all(|told| told.poll().is_pending()));
    drop(inner_handle.drain());
    assert!(told.iter_mut().all(|told| told.poll().is_ready()));
}

#[tokio::test(start_paused = true)]
async fn a_call_is_counted_out_however_it_ends() {
    struct Panics;
    impl Body for Panics {
        type Data = Bytes;
        type Error = Infallible;
        fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            panic!("in a body")
        }
    }
    impl Default for Panics {
        fn default() -> Self {
            Self
        }
    }
    let (layer, handle) = grace(SECOND);
    let service = layer.layer(service_fn(|request: Request<&'static str>| {
        let how = request.into_body();
        assert_ne!(how, "panics in call");
        async move {
            match how {
                "panics" => panic!("in a poll"),
                "fails" => Err(Error::Service("failed")),
                "hangs" => std::future::pending().await,
                _ => Ok(Response::new(Panics)),
            }
        }
    }));
    let call = |how| service.clone().oneshot(Request::new(how));
    assert!(call("fails").await.is_err());
    assert_eq!(handle.in_flight(), 0);
    for how in ["panics", "panics in call"] {
        assert!(tokio::spawn(call(how)).await.is_err(), "{how}");
        assert_eq!(handle.in_flight(), 0, "{how}");
    }
    let mut hangs = TestTask::new(call("hangs"));
    assert!(hangs.poll().is_pending());
    assert_eq!(handle.in_flight(), 1);
    drop(hangs);
    assert_eq!(handle.in_flight(), 0);
    let response = call("responds").await.unwrap();
    assert_eq!(handle.in_flight(), 1);
    drop(response);
    assert_eq!(handle.in_flight(), 0);
    let body = call("responds").await.unwrap().into_body();
    assert!(tokio::spawn(body.collect()).await.is_err());
    assert_eq!(handle.in_flight(), 0);
    drop(call("never polled"));
    assert!(TestTask::new(handle.drain()).poll().is_ready());
}

/// Where a waker panicked while another replaced it, no later call may miss the drain.
#[tokio::test(start_paused = true)]
async fn a_drain_wakes_the_calls_after_one_whose_waker_panicked_in_its_drop() {
    struct PanicsInDrop;
    impl Wake for PanicsInDrop {
        fn wake(self: Arc<Self>) {}
    }
    impl Drop for PanicsInDrop {
        fn drop(&mut self) {
            panic!("in the drop of a waker")
        }
    }
    let (layer, handle) = grace(SECOND);
    let service =
        layer.layer(service_fn(|_: Request<()>| std::future::pending::<Result<Response<String>, Infallible>>()));
    let mut call = Box::pin(service.clone().oneshot(Request::new(())));
    let waker = Waker::from(Arc::new(PanicsInDrop));
    assert!(call.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
    drop(waker);
    let replaced = AssertUnwindSafe(|| call.as_mut().poll(&mut Context::from_waker(Waker::noop())));
    assert!(catch_unwind(replaced).is_err());
    drop(call);

    let mut later = TestTask::new(service.oneshot(Request::new(())));
    assert!(later.poll().is_pending());
    let before = later.times_woken();
    drop(handle.drain());
    assert_eq!(later.times_woken(), before + 1);
}

#[tokio::test(start_paused = true)]
async fn while_it_drains_it_is_ready_and_holds_no_readiness() {
    let (layer, handle) = grace(SECOND);
    let script = Script::new();
    script.always(Act::answer());
    let mut service = layer.layer(script.service(|number: u64| Response::new(number.to_string())));
    ServiceExt::<Request<String>>::ready(&mut service).await.unwrap();
    assert_eq!(script.ready(), 1);
    drop(handle.drain());
    let rejected = service.call(Request::new("1".to_owned()));
    assert_eq!(script.ready(), 0, "released, although the future was not polled");
    assert!(rejected.await.is_err());
    script.always(Act::answer().pending_at_readiness(usize::MAX));
    assert!(TestTask::new(ServiceExt::<Request<String>>::ready(&mut service)).poll().is_ready());
    assert_eq!((script.ready(), script.calls()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_waits_for_readiness_is_rejected_when_the_drain_begins() {
    let (layer, handle) = grace(SECOND);
    let script = Script::new();
    script.always(Act::answer().pending_at_readiness(usize::MAX));
    let service = layer.layer(script.service(|number: u64| Response::new(number.to_string())));
    let mut call = TestTask::new(service.oneshot(Request::new("1".to_owned())));
    assert!(call.poll().is_pending());
    let before = call.times_woken();
    drop(handle.drain());
    assert_eq!(call.times_woken(), before + 1);
    assert!(matches!(call.poll(), Poll::Ready(Err(_))));
}

#[tokio::test(start_paused = true)]
async fn only_http_1_is_told_to_close_the_connection() {
    let (layer, handle) = grace(SECOND);
    let plain = layer.layer(service_fn(|_: Request<()>| async { Ok::<_, Infallible>(Response::new(String::new())) }));
    let problem = RejectionResponseLayer::problem_json().layer(plain.clone());
    let error = ServiceBuilder::new()
        .layer(RejectionResponseLayer::problem_json())
        .layer(layer)
        .service(service_fn(|_: Request<()>| async { Ok::<_, Error<BoxError>>(Response::new(String::new())) }));
    let before = plain.clone().oneshot(Request::new(())).await.unwrap();
    assert_eq!((before.status(), before.headers().get(CONNECTION)), (StatusCode::OK, None));
    drop(handle.drain());
    for (version, closes) in [
        (Version::HTTP_09, true),
        (Version::HTTP_10, true),
        (Version::HTTP_11, true),
        (Version::HTTP_2, false),
        (Version::HTTP_3, false),
    ] {
        let request = || Request::builder().version(version).body(()).unwrap();
        for (name, response) in [
            ("plain", plain.clone().oneshot(request()).await.unwrap()),
            ("problem", problem.clone().oneshot(request()).await.unwrap()),
            ("error", error.clone().oneshot(request()).await.unwrap()),
        ] {
            assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE, "{name} {version:?}");
            assert_eq!(response.headers()["retry-after"], "1", "{name} {version:?}");
            let sent = response.headers().get(CONNECTION);
            assert_eq!(sent.is_some_and(|sent| sent == "close"), closes, "{name} {version:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_response_keeps_its_own_connection_header() {
    for (status, own, sent) in [
        (200, None, vec!["close"]),
        (200, Some("close"), vec!["close"]),
        (426, Some("upgrade"), vec!["upgrade", "close"]),
        (101, Some("upgrade"), vec!["upgrade"]),
    ] {
        let (layer, handle) = grace(SECOND);
        let (answer, request) = request(Version::HTTP_11);
        let mut call = TestTask::new(layer.layer(on_demand()).oneshot(request));
        assert!(call.poll().is_pending());
        drop(handle.drain());
        let response = own.into_iter().fold(Response::builder().status(status), |it, own| it.header(CONNECTION, own));
        answer.send(response.body(Streamed::default()).unwrap()).unwrap();
        let Poll::Ready(Ok(response)) = call.poll() else { panic!("no response") };
        assert_eq!(response.headers().get_all(CONNECTION).iter().collect::<Vec<_>>(), sent, "{status}");
    }
}

/// A layer further out makes another response of an inner layer's rejection.
#[tokio::test(start_paused = true)]
async fn a_rejection_by_an_inner_layer_closes_the_connection_too() {
    let (layer, handle) = grace(SECOND);
    let limit = ziggurat::timeout::TimeoutLayer::new(SECOND / 2);
    let service = ServiceBuilder::new()
        .layer(RejectionResponseLayer::problem_json())
        .layer(layer)
        .layer(limit)
        .service(service_fn(|_: Request<()>| std::future::pending::<Result<Response<String>, Infallible>>()));
    let mut call = TestTask::new(service.oneshot(Request::new(())));
    assert!(call.poll().is_pending());
    drop(handle.drain());
    advance(SECOND / 2).await;
    let Poll::Ready(Ok(response)) = call.poll() else { panic!("no response") };
    assert_eq!((response.status().as_u16(), &response.headers()[CONNECTION]), (504, &"close".parse().unwrap()));
    assert_eq!(response.headers()["content-type"], "application/problem+json");
}

/// Shows: D1
#[tokio::test(start_paused = true)]
async fn a_grpc_client_learns_that_the_server_is_unavailable() {
    let (layer, handle) = grace(SECOND);
    let (_sender, body) = streamed();
    let body = Arc::new(Mutex::new(body));
    let mut service = ServiceBuilder::new()
        .layer(RejectionResponseLayer::grpc().until_body_end())
        .layer(layer)
        .service(service_fn(move |_: Request<()>| {
            let body = std::mem::take(&mut *body.lock().unwrap());
            async { Ok::<_, Infallible>(Response::new(body)) }
        }));
    let request = || Request::builder().version(Version::HTTP_2).body(()).unwrap();
    let running = service.ready().await.unwrap().call(request()).await.unwrap();
    drop(handle.drain());
    let rejected = service.ready().await.unwrap().call(request()).await.unwrap();
    assert_eq!((rejected.status().as_u16(), &rejected.headers()["grpc-status"]), (200, &"14".parse().unwrap()));
    let trailers = running.into_body().collect().await.unwrap().trailers().cloned().unwrap();
    assert_eq!(trailers["grpc-status"], "14");
}

/// Shows: D1
#[tokio::test(start_paused = true)]
async fn a_rejection_says_nothing_about_the_service_and_whether_the_call_was_sent() {
    let events = Arc::new(Mutex::new(Vec::new()));
    let heard = Arc::clone(&events);
    let layer = DrainLayer::new().named("api").observer(move |info: &LayerInfo, event: &LayerEvent<'_>| {
        if let LayerEvent::Rejected(rejection) = event {
            let name = info.name().map(str::to_owned);
            heard.lock().unwrap().push((name, rejection.reason().as_str(), rejection.is_unprocessed()));
        }
    });
    let handle = layer.handle();
    handle.set_grace(SECOND);
    let (_answer, first) = request(Version::HTTP_2);
    let (_, second) = request(Version::HTTP_2);
    let service = layer.layer(on_demand());
    let mut running = TestTask::new(service.clone().oneshot(first));
    assert!(running.poll().is_pending());
    drop(handle.drain());
    let rejected = service.oneshot(second).await;
    assert!(running.poll().is_pending());
    advance(SECOND).await;
    let Poll::Ready(ended) = running.poll() else { panic!("it goes on") };
    for (outcome, shown) in [
        (rejected, "drain `api`: the server is shutting down"),
        (ended, "drain `api`: the call did not end within 1s after the server began to shut down"),
    ] {
        let rejection = ziggurat::rejection(&outcome).unwrap();
        assert_eq!((rejection.to_string().as_str(), rejection.class()), (shown, Class::Ignored));
        assert_eq!(rejection.public_message(), "drain: the server is shutting down");
    }
    let name = || Some("api".to_owned());
    assert_eq!(*events.lock().unwrap(), [(name(), "draining", true), (name(), "draining", false)]);
}
