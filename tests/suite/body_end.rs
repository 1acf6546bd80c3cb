//! Layers that last to the end of the response's body: timeout, breaker, limit and context, alone and together.

use std::{
    convert::Infallible,
    error::Error as StdError,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures_util::FutureExt;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use http_body::{Body, Frame};
use http_body_util::{BodyExt, Empty, Full, StreamBody};
use hyper_util::rt::TokioIo;
use tokio::{
    sync::mpsc,
    time::{Instant, advance},
};
use tower::{Layer, Service, ServiceBuilder, ServiceExt, service_fn};
use ziggurat::{
    Class, Classify, Deadline, Error, GrpcStatus, HttpStatus, LayerEvent, LayerInfo, Outcome, Reason, Reject,
    Rejection, Scope,
    circuit_breaker::{CircuitBreakerLayer, State},
    concurrency_limit::ConcurrencyLimitLayer,
    context::ContextLayer,
    observe::ObserveLayer,
    testing::TestTask,
    timeout::TimeoutLayer,
};

const SECOND: Duration = Duration::from_secs(1);

type BoxError = Box<dyn StdError + Send + Sync>;

type Step = Result<Frame<Bytes>, BoxError>;

/// A body whose frames come from a channel. It ends with the sender.
#[derive(Default)]
struct Streamed(Option<mpsc::UnboundedReceiver<Step>>);

impl Body for Streamed {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Step>> {
        self.0.as_mut().map_or(Poll::Ready(None), |frames| frames.poll_recv(cx))
    }
}

fn data(text: &'static str) -> Step {
    Ok(Frame::data(Bytes::from_static(text.as_bytes())))
}

fn trailers(status: &'static str) -> Step {
    Ok(Frame::trailers(HeaderMap::from_iter([(
        http::HeaderName::from_static("grpc-status"),
        HeaderValue::from_static(status),
    )])))
}

/// A service that responds to each request with the next of its bodies.
#[derive(Clone, Default)]
struct Origin(Arc<Mutex<Vec<(StatusCode, Streamed)>>>);

impl Origin {
    /// Adds the next response, and returns the sender of its frames.
    fn answers(&self, status: u16) -> mpsc::UnboundedSender<Step> {
        let (sender, receiver) = mpsc::unbounded_channel();
        self.0.lock().unwrap().push((StatusCode::from_u16(status).unwrap(), Streamed(Some(receiver))));
        sender
    }

    fn service(
        &self,
    ) -> impl Service<(), Response = Response<Streamed>, Error = Error<Infallible>, Future: Send> + Clone + use<> {
        let origin = self.clone();
        ServiceBuilder::new().map_err(Error::Service).service_fn(move |()| {
            let (status, body) = origin.0.lock().unwrap().remove(0);
            async move {
                let mut response = Response::new(body);
                *response.status_mut() = status;
                Ok::<_, Infallible>(response)
            }
        })
    }
}

/// Returns the text of the next frame, or the rejection that ended the body.
async fn next(body: &mut (impl Body<Data = Bytes, Error = BoxError> + Unpin)) -> Option<Result<Bytes, Rejection>> {
    match body.frame().await? {
        Ok(frame) => Some(Ok(frame.into_data().unwrap_or_default())),
        Err(error) => Some(Err(Rejection::find(&*error).unwrap().clone())),
    }
}

/// Shows: T1, T4
#[tokio::test(start_paused = true)]
async fn a_total_covers_the_body_and_ends_it_at_exactly_its_limit() {
    let origin = Origin::default();
    let service = ServiceBuilder::new()
        .layer(TimeoutLayer::new(3 * SECOND).until_body_end().named("total"))
        .service(origin.service());
    let sender = origin.answers(200);
    let start = Instant::now();
    let mut body = service.oneshot(()).await.unwrap().into_body();
    advance(SECOND).await;
    sender.send(data("one")).unwrap();
    assert_eq!(next(&mut body).await.unwrap().unwrap(), "one");
    let rejection = next(&mut body).await.unwrap().unwrap_err();
    assert_eq!(start.elapsed(), 3 * SECOND);
    assert_eq!(rejection.to_string(), "timeout `total`: no response within 3s");
    assert!(sender.is_closed(), "the body is dropped before its reader learns of it");
    assert!(next(&mut body).await.is_none());
}

/// The clock does not start again with the body.
#[tokio::test(start_paused = true)]
async fn the_time_that_the_response_took_counts() {
    let origin = Origin::default();
    let inner = origin.service();
    let slow = service_fn(move |()| {
        let response = inner.clone().oneshot(());
        async move {
            tokio::time::sleep(2 * SECOND).await;
            response.await
        }
    });
    let service = ServiceBuilder::new().layer(TimeoutLayer::new(3 * SECOND).until_body_end()).service(slow);
    let _sender = origin.answers(200);
    let start = Instant::now();
    let mut body = service.oneshot(()).await.unwrap().into_body();
    assert!(next(&mut body).await.unwrap().is_err());
    assert_eq!(start.elapsed(), 3 * SECOND);
}

/// A body that always has a frame is never pending, so its limit would never be checked.
#[tokio::test(start_paused = true)]
async fn a_body_that_never_ends_is_ended_though_it_is_always_ready() {
    let origin = Origin::default();
    let service = ServiceBuilder::new().layer(TimeoutLayer::new(3 * SECOND).until_body_end()).service(origin.service());
    let sender = origin.answers(200);
    let mut body = service.oneshot(()).await.unwrap().into_body();
    let mut passed = 0;
    let rejection = loop {
        sender.send(data("more")).unwrap();
        match next(&mut body).await.unwrap() {
            Ok(_) => passed += 1,
            Err(rejection) => break rejection,
        }
        advance(SECOND).await;
    };
    // At 0, 1 and 2 s, and the one that was ready when the limit had passed.
    assert_eq!(passed, 4);
    assert!(rejection.is_timed_out());
}

/// Shows: T2
#[tokio::test(start_paused = true)]
async fn a_zero_limit_lets_a_body_through_that_is_ready_at_once() {
    let origin = Origin::default();
    let layer = TimeoutLayer::new(Duration::ZERO).until_body_end().idle(Duration::ZERO);
    let service = ServiceBuilder::new().layer(layer).service(origin.service());
    let sender = origin.answers(200);
    sender.send(data("all")).unwrap();
    sender.send(trailers("0")).unwrap();
    drop(sender);
    let body = service.oneshot(()).await.unwrap().into_body().collect().await.unwrap();
    assert!(body.trailers().is_some());
    assert_eq!(body.to_bytes(), "all");
}

/// A body that works in steps of this length when it is polled, and then yields a frame.
struct InSteps(Vec<Pin<Box<tokio::time::Sleep>>>, Duration);

impl Body for InSteps {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Step>> {
        let Self(steps, step) = &mut *self;
        while let Some(current) = steps.last_mut() {
            std::task::ready!(current.as_mut().poll(cx));
            steps.pop();
            if let Some(next) = steps.last_mut() {
                next.as_mut().reset(Instant::now() + *step);
            }
        }
        Poll::Ready(Some(data("done")))
    }
}

fn in_steps(steps: usize, step: Duration) -> impl Body<Data = Bytes, Error = BoxError> {
    let service = TimeoutLayer::new(60 * SECOND).idle(SECOND).layer(service_fn(move |()| async move {
        let steps = (0..steps).map(|_| Box::pin(tokio::time::sleep(step))).collect();
        Ok::<_, Error<Infallible>>(Response::new(InSteps(steps, step)))
    }));
    service.oneshot(()).now_or_never().unwrap().unwrap().into_body()
}

/// Shows: F1
#[tokio::test(start_paused = true)]
async fn an_idle_limit_counts_the_time_in_which_the_reader_waits_and_no_other() {
    let step = Duration::from_millis(200);
    // It needs 400 ms. The reader polls once, is woken after 200 ms, and polls again five seconds later.
    let mut body = in_steps(2, step);
    let mut reader = TestTask::new(body.frame());
    assert!(reader.poll().is_pending());
    advance(step).await;
    assert_eq!(reader.times_woken(), 1);
    advance(5 * SECOND).await;
    assert!(reader.poll().is_pending(), "the time in which the reader did not ask has counted");
    advance(step).await;
    assert!(reader.poll().ready_and(|frame| frame.unwrap().is_ok()));

    // A reader that polls as soon as it is woken waits all the time, however often it is woken without a frame.
    let mut body = in_steps(7, step);
    let start = Instant::now();
    let error = body.frame().await.unwrap().unwrap_err();
    assert!(Rejection::find(&*error).unwrap().is_timed_out());
    assert_eq!(start.elapsed(), SECOND);

    // A reader that polls without being woken waits too.
    let mut body = in_steps(1, 5 * SECOND);
    let mut reader = TestTask::new(body.frame());
    for _ in 0..5 {
        assert!(reader.poll().is_pending());
        advance(step).await;
    }
    assert!(reader.poll().ready_and(|frame| frame.unwrap().is_err()));

    // The time before the body woke its reader counts, even if the reader comes late.
    let mut body = in_steps(2, 2 * SECOND);
    let mut reader = TestTask::new(body.frame());
    assert!(reader.poll().is_pending());
    advance(2 * SECOND).await;
    advance(5 * SECOND).await;
    assert!(reader.poll().ready_and(|frame| frame.unwrap().is_err()));
}

trait ReadyAnd<T> {
    fn ready_and(self, holds: impl FnOnce(T) -> bool) -> bool;
}

impl<T> ReadyAnd<T> for Poll<T> {
    fn ready_and(self, holds: impl FnOnce(T) -> bool) -> bool {
        match self {
            Poll::Ready(value) => holds(value),
            Poll::Pending => false,
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_idle_limit_is_for_each_frame_and_does_not_count_a_slow_reader() {
    let origin = Origin::default();
    let service = ServiceBuilder::new().layer(TimeoutLayer::new(SECOND).idle(2 * SECOND)).service(origin.service());
    let sender = origin.answers(200);
    let mut body = service.oneshot(()).await.unwrap().into_body();
    for _ in 0..5 {
        // The reader takes its time. Then each frame comes a second after it was requested.
        advance(10 * SECOND).await;
        let sender = sender.clone();
        tokio::spawn(async move {
            tokio::time::sleep(SECOND).await;
            sender.send(data("more")).unwrap();
        });
        assert!(next(&mut body).await.unwrap().is_ok());
    }
    let asked = Instant::now();
    let rejection = next(&mut body).await.unwrap().unwrap_err();
    assert_eq!(asked.elapsed(), 2 * SECOND);
    assert_eq!(rejection.to_string(), "timeout: no response within 2s");
}

/// Shows: T4
#[tokio::test(start_paused = true)]
async fn of_nested_limits_the_earlier_one_ends_the_body() {
    for (outer, inner, ends, name) in [(5, 3, 3, "inner"), (3, 5, 3, "outer"), (3, 3, 3, "outer")] {
        let origin = Origin::default();
        let service = ServiceBuilder::new()
            .layer(TimeoutLayer::new(outer * SECOND).until_body_end().named("outer"))
            .layer(TimeoutLayer::new(inner * SECOND).until_body_end().named("inner"))
            .service(origin.service());
        let _sender = origin.answers(200);
        let start = Instant::now();
        let mut body = service.oneshot(()).await.unwrap().into_body();
        let rejection = next(&mut body).await.unwrap().unwrap_err();
        assert_eq!((start.elapsed(), rejection.name()), (ends * SECOND, Some(name)));
    }
}

#[tokio::test(start_paused = true)]
async fn a_limit_that_stops_at_the_response_leaves_the_body_alone() {
    let origin = Origin::default();
    let service = ServiceBuilder::new().layer(TimeoutLayer::new(SECOND)).service(origin.service());
    let sender = origin.answers(200);
    let mut body = service.oneshot(()).await.unwrap().into_body();
    advance(60 * SECOND).await;
    sender.send(data("late")).unwrap();
    assert!(next(&mut body).await.unwrap().is_ok());
}

/// A frame's producer can read the remaining time, and clean-up code can see whether the deadline has passed.
#[tokio::test(start_paused = true)]
async fn the_deadline_is_in_place_while_the_body_is_polled_and_dropped() {
    #[derive(Default)]
    struct Asks(Arc<Mutex<Vec<Option<Duration>>>>);
    impl Asks {
        fn ask(&self) {
            self.0.lock().unwrap().push(Deadline::current().map(|deadline| deadline.remaining()));
        }
    }
    impl Body for Asks {
        type Data = Bytes;
        type Error = BoxError;
        fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Step>> {
            self.ask();
            Poll::Pending
        }
    }
    impl Drop for Asks {
        fn drop(&mut self) {
            self.ask();
        }
    }
    let log: Arc<Mutex<Vec<_>>> = Arc::default();
    let asks = Asks(Arc::clone(&log));
    let mut asks = Some(asks);
    let mut service = ServiceBuilder::new()
        .layer(TimeoutLayer::new(3 * SECOND).until_body_end())
        .map_err(Error::Service)
        .service_fn(move |()| std::future::ready(Ok::<_, Infallible>(Response::new(asks.take().unwrap()))));
    let mut body = service.ready().await.unwrap().call(()).await.unwrap().into_body();
    assert!(body.frame().await.unwrap().is_err());
    assert_eq!(*log.lock().unwrap(), [Some(3 * SECOND), Some(Duration::ZERO), Some(Duration::ZERO)]);
}

fn breaker() -> CircuitBreakerLayer<HttpStatus> {
    CircuitBreakerLayer::consecutive(1).classify(HttpStatus)
}

/// Shows: B1
#[tokio::test]
async fn a_body_that_breaks_off_after_a_200_is_a_failure() {
    let origin = Origin::default();
    let layer = breaker().until_body_end();
    let circuit = layer.handle();
    let service = ServiceBuilder::new().layer(layer).service(origin.service());
    let sender = origin.answers(200);
    let mut body = service.oneshot(()).await.unwrap().into_body();
    sender.send(data("one")).unwrap();
    assert!(body.frame().await.unwrap().is_ok());
    assert_eq!(circuit.state(), State::Closed);
    sender.send(Err("connection reset".into())).unwrap();
    assert!(body.frame().await.unwrap().is_err());
    assert_eq!(circuit.state(), State::Open);
}

#[tokio::test]
async fn a_response_that_is_a_failure_is_judged_before_its_body() {
    let origin = Origin::default();
    let layer = breaker().until_body_end();
    let circuit = layer.handle();
    let service = ServiceBuilder::new().layer(layer).service(origin.service());
    let _sender = origin.answers(500);
    let _body = service.oneshot(()).await.unwrap().into_body();
    assert_eq!(circuit.state(), State::Open);
}

/// gRPC reports the status of a call in the trailers.
#[tokio::test]
async fn trailers_are_judged() {
    #[derive(Clone)]
    struct ByTrailers;
    impl<R, E> Classify<R, E> for ByTrailers {
        fn classify(&self, _: Result<&R, &E>) -> Class {
            Class::Success
        }
        fn classify_trailers(&self, trailers: &HeaderMap) -> Class {
            if trailers["grpc-status"] == "0" { Class::Success } else { Class::TRANSIENT }
        }
    }
    for (status, to_the_end, state) in
        [("0", true, State::Closed), ("14", true, State::Open), ("14", false, State::Open)]
    {
        let origin = Origin::default();
        let layer = CircuitBreakerLayer::consecutive(1).classify(ByTrailers).until_body_end();
        let circuit = layer.handle();
        let service = ServiceBuilder::new().layer(layer).service(origin.service());
        let sender = origin.answers(200);
        let mut body = service.oneshot(()).await.unwrap().into_body();
        sender.send(trailers(status)).unwrap();
        drop(sender);
        assert!(body.frame().await.unwrap().is_ok());
        if to_the_end {
            assert!(body.frame().await.is_none());
        }
        drop(body);
        assert_eq!(circuit.state(), state, "{status}");
    }
}

/// Shows: B4, B5
#[tokio::test(start_paused = true)]
async fn a_probe_lasts_to_the_end_of_its_body_and_gives_its_place_back_after_every_end() {
    #[derive(Debug, Clone, Copy, PartialEq)]
    enum By {
        End,
        Error,
        HangUp,
        Enough,
    }
    for (by, state) in
        [(By::End, State::Closed), (By::Error, State::Open), (By::HangUp, State::HalfOpen), (By::Enough, State::Closed)]
    {
        let origin = Origin::default();
        let layer = breaker().open_for(SECOND).until_body_end();
        let circuit = layer.handle();
        let service = ServiceBuilder::new().layer(layer).service(origin.service());
        drop(origin.answers(500));
        service.clone().oneshot(()).await.unwrap();
        advance(SECOND).await;

        let sender = origin.answers(200);
        let mut body = service.clone().oneshot(()).await.unwrap().into_body();
        assert_eq!(circuit.state(), State::HalfOpen);
        let refused = service.clone().oneshot(()).await;
        assert!(ziggurat::rejection(&refused).unwrap().is_circuit_open(), "{by:?}: the probe goes on with its body");
        match by {
            By::End => {
                drop(sender);
                assert!(body.frame().await.is_none());
            }
            By::Error => {
                sender.send(Err("reset".into())).unwrap();
                assert!(body.frame().await.unwrap().is_err());
            }
            By::HangUp => {
                assert!(futures_util::poll!(body.frame()).is_pending());
                drop(body);
            }
            By::Enough => {
                sender.send(data("one")).unwrap();
                assert!(body.frame().await.unwrap().is_ok());
                drop(body);
            }
        }
        assert_eq!(circuit.state(), state, "{by:?}");
        if by == By::HangUp {
            // The probe's place is free: another call is the probe now.
            drop(origin.answers(200));
            service.oneshot(()).await.unwrap().into_body().collect().await.unwrap();
            assert_eq!(circuit.state(), State::Closed);
        }
    }
}

/// A backend that responds and then hangs opens the circuit, wherever the timeout is. A client that hangs up does not.
///
/// Shows: B6
#[tokio::test(start_paused = true)]
async fn a_body_that_hangs_until_the_time_is_over_is_a_failure() {
    for (name, total) in
        [("total", TimeoutLayer::new(SECOND).until_body_end()), ("idle", TimeoutLayer::new(60 * SECOND).idle(SECOND))]
    {
        let origin = Origin::default();
        let layer = breaker().until_body_end();
        let circuit = layer.handle();
        let service = ServiceBuilder::new().layer(total).layer(layer).service(origin.service());

        let sender = origin.answers(200);
        sender.send(data("one")).unwrap();
        let mut body = service.clone().oneshot(()).await.unwrap().into_body();
        assert!(next(&mut body).await.unwrap().is_ok());
        assert!(futures_util::poll!(body.frame()).is_pending());
        drop(body);
        assert_eq!(circuit.state(), State::Closed, "{name}: the client hung up");

        let _sender = origin.answers(200);
        let mut body = service.oneshot(()).await.unwrap().into_body();
        assert!(next(&mut body).await.unwrap().unwrap_err().is_timed_out());
        assert_eq!(circuit.state(), State::Open, "{name}");
    }
}

/// A body that always has a frame at once.
#[derive(Default)]
struct Ready;

impl Body for Ready {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Step>> {
        Poll::Ready(Some(data("more")))
    }
}

/// Otherwise a few clients that do not read could open the circuit for all others.
///
/// Shows: B6
#[tokio::test(start_paused = true)]
async fn a_reader_who_is_slow_says_nothing_about_the_service() {
    for goes_on in [false, true] {
        let layer = breaker().slow_calls(SECOND, 0.5).min_calls(1).until_body_end();
        let circuit = layer.handle();
        let service = ServiceBuilder::new()
            .layer(TimeoutLayer::new(10 * SECOND).until_body_end())
            .layer(layer)
            .map_err(Error::Service)
            .service(service_fn(|()| async { Ok::<_, Infallible>(Response::new(Ready)) }));
        let mut body = service.oneshot(()).await.unwrap().into_body();
        assert!(next(&mut body).await.unwrap().is_ok());
        advance(11 * SECOND).await;
        if goes_on {
            assert!(next(&mut body).await.unwrap().is_ok());
            assert!(next(&mut body).await.unwrap().is_err());
        }
        drop(body);
        assert_eq!(circuit.state(), State::Closed, "goes on: {goes_on}");
    }
}

/// The time counts until the response's head.
#[tokio::test(start_paused = true)]
async fn a_slow_call_is_one_whose_response_is_slow() {
    let layer = CircuitBreakerLayer::failure_rate(0.5).min_calls(1).slow_calls(SECOND, 0.5).until_body_end();
    let circuit = layer.handle();
    let service = ServiceBuilder::new().layer(layer).map_err(Error::Service).service(service_fn(|()| async {
        tokio::time::sleep(2 * SECOND).await;
        Ok::<_, Infallible>(Response::new(Full::new(Bytes::from_static(b"all"))))
    }));
    service.oneshot(()).await.unwrap().into_body().collect().await.unwrap();
    assert_eq!(circuit.state(), State::Open);
}

/// An HTTP/1 server drops a body that it has sent completely, and never polls that of a HEAD. A body whose end comes
/// separately (as in HTTP/2) has not reported its end by then.
#[tokio::test]
async fn what_a_server_sent_whole_is_a_success() {
    struct Sized(Option<Bytes>);
    impl Body for Sized {
        type Data = Bytes;
        type Error = BoxError;
        fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Step>> {
            Poll::Ready(self.0.take().map(|data| Ok(Frame::data(data))))
        }
    }
    for method in [http::Method::GET, http::Method::HEAD] {
        let layer = breaker().open_for(Duration::from_millis(1)).until_body_end();
        let circuit = layer.handle();
        let service =
            ServiceBuilder::new().layer(layer).map_err(Error::Service).service(service_fn(|works| async move {
                let response = Response::builder().header("content-length", "5");
                let response = response.status(if works { StatusCode::OK } else { StatusCode::BAD_GATEWAY });
                Ok::<_, Infallible>(response.body(Sized(works.then(|| Bytes::from_static(b"hello")))).unwrap())
            }));
        service.clone().oneshot(false).await.unwrap();
        assert_eq!(circuit.state(), State::Open);
        // The clock is the real one: the circuit stays open for a millisecond, and then until the next call.
        let service = tower::service_fn(move |_: Request<hyper::body::Incoming>| {
            let service = service.clone();
            async move {
                loop {
                    let outcome = service.clone().oneshot(true).await;
                    if ziggurat::rejection(&outcome).is_none() {
                        break outcome.map_err(|error| format!("{error:?}"));
                    }
                    tokio::task::yield_now().await;
                }
            }
        });
        let (client, server) = tokio::io::duplex(4096);
        let service = hyper_util::service::TowerToHyperService::new(service);
        let server = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(server), service);
        let server = tokio::spawn(server);
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(client)).await.unwrap();
        let connection = tokio::spawn(connection);
        let request = Request::builder().method(&method).uri("/").body(Empty::<Bytes>::new()).unwrap();
        let response = sender.send_request(request).await.unwrap();
        let text = response.into_body().collect().await.unwrap().to_bytes();
        assert_eq!(text, if method == http::Method::GET { "hello" } else { "" });
        drop(sender);
        connection.await.unwrap().unwrap();
        server.await.unwrap().unwrap();
        assert_eq!(circuit.state(), State::Closed, "{method}");
    }
}

/// A rejection by an inner layer that ends a body counts like a rejection in place of a response.
#[tokio::test]
async fn a_rejection_that_ends_a_body_has_its_own_class() {
    let (limit, second) = (7, SECOND);
    for (reason, state) in
        [(Reason::Overloaded { limit }, State::Closed), (Reason::TimedOut { limit: second }, State::Open)]
    {
        let origin = Origin::default();
        let layer = breaker().until_body_end();
        let circuit = layer.handle();
        let service = ServiceBuilder::new().layer(layer).service(origin.service());
        let sender = origin.answers(200);
        let rejected: Result<(), BoxError> = Reject::reject(LayerInfo::new("inside").reject(reason));
        sender.send(Err(rejected.unwrap_err())).unwrap();
        let mut body = service.oneshot(()).await.unwrap().into_body();
        assert!(next(&mut body).await.unwrap().is_err());
        assert_eq!(circuit.state(), state);
    }
}

/// Where a body panics.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Panics {
    InItsFirstPoll,
    LaterInAPoll,
    InADropAfterItsEnd,
    InADropBeforeItsEnd,
    InItsTrailers,
}

struct Panicking {
    panics: Panics,
    polls: usize,
}

impl Body for Panicking {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Step>> {
        self.polls += 1;
        match (self.panics, self.polls) {
            (Panics::InItsFirstPoll, 1) | (Panics::LaterInAPoll, 2) => panic!("in a poll"),
            (Panics::InItsTrailers, 2) => Poll::Ready(Some(trailers("0"))),
            (_, 1) => Poll::Ready(Some(data("one"))),
            _ => Poll::Ready(None),
        }
    }
}

impl Drop for Panicking {
    fn drop(&mut self) {
        if matches!(self.panics, Panics::InADropAfterItsEnd | Panics::InADropBeforeItsEnd) {
            panic!("in its drop");
        }
    }
}

/// A panic says nothing about the service: it is neither a failure nor a success that closes a circuit.
///
/// Shows: B1, G1
#[tokio::test(start_paused = true)]
async fn a_body_that_panics_is_neither_a_success_nor_a_failure() {
    /// Panics in user code, at the trailers.
    #[derive(Clone)]
    struct PanicsAtTrailers;
    impl<B, E> Classify<Response<B>, E> for PanicsAtTrailers {
        fn classify(&self, outcome: Result<&Response<B>, &E>) -> Class {
            HttpStatus.classify(outcome)
        }
        fn classify_trailers(&self, _: &HeaderMap) -> Class {
            panic!("at the trailers")
        }
    }
    for panics in [
        Panics::InItsFirstPoll,
        Panics::LaterInAPoll,
        Panics::InADropAfterItsEnd,
        Panics::InADropBeforeItsEnd,
        Panics::InItsTrailers,
    ] {
        for late in [false, true] {
            let breaker = breaker().classify(PanicsAtTrailers).open_for(SECOND).until_body_end();
            let (circuit, ended) = (breaker.handle(), Arc::new(Mutex::new(Vec::new())));
            let heard = Arc::clone(&ended);
            let observe = ObserveLayer::new().classify(PanicsAtTrailers).until_body_end().observer(
                move |_: &LayerInfo, event: &LayerEvent<'_>| {
                    if let LayerEvent::Ended { outcome, .. } = event {
                        heard.lock().unwrap().push(*outcome);
                    }
                },
            );
            let service = ServiceBuilder::new()
                .layer(TimeoutLayer::new(SECOND).until_body_end())
                .layer(observe)
                .layer(breaker)
                .map_err(Error::Service)
                .service_fn(move |works: bool| {
                    let status = if works { StatusCode::OK } else { StatusCode::BAD_GATEWAY };
                    let mut response = Response::new(match works {
                        true => Panicking { panics, polls: 0 }.boxed_unsync(),
                        false => Empty::new().map_err(|never| match never {}).boxed_unsync(),
                    });
                    *response.status_mut() = status;
                    std::future::ready(Ok::<_, Infallible>(response))
                });
            service.clone().oneshot(false).await.unwrap();
            ended.lock().unwrap().clear();
            assert_eq!(circuit.state(), State::Open);
            advance(SECOND).await;

            let mut body = service.clone().oneshot(true).await.unwrap().into_body();
            let task = tokio::spawn(async move {
                if late {
                    advance(2 * SECOND).await;
                }
                while panics != Panics::InADropBeforeItsEnd
                    && let Some(Ok(_)) = body.frame().await
                {}
            });
            assert!(task.await.unwrap_err().is_panic(), "{panics:?}");
            assert_eq!(circuit.state(), State::HalfOpen, "{panics:?}, late: {late}");
            assert_eq!(*ended.lock().unwrap(), [Outcome::Cancelled], "{panics:?}, late: {late}");
            // The probe's place is free.
            assert!(ziggurat::rejection(&service.clone().oneshot(false).await).is_none(), "{panics:?}");
        }
    }
}

/// A gRPC call ends with a status, but a load balancer's error page has none.
#[tokio::test]
async fn a_grpc_response_without_a_status_is_a_failure() {
    let (grpc, html) = ("application/grpc", "text/html");
    for (kind, status, frames, read, class) in [
        (html, None, vec![data("<html>")], true, Class::PERMANENT),
        (grpc, None, vec![data("message")], true, Class::PERMANENT),
        (grpc, None, vec![], true, Class::PERMANENT),
        (grpc, None, vec![data("message"), Ok(Frame::trailers(HeaderMap::new()))], true, Class::PERMANENT),
        (grpc, None, vec![data("message"), trailers("0")], true, Class::Success),
        (grpc, None, vec![data("message")], false, Class::Success),
        (grpc, Some("0"), vec![], true, Class::Success),
        (grpc, Some("0"), vec![data("message")], true, Class::Success),
    ] {
        let case = format!("{kind}, {status:?}, {} frames, read: {read}", frames.len());
        let breaker = CircuitBreakerLayer::consecutive(1).classify(GrpcStatus).until_body_end();
        let (circuit, ended) = (breaker.handle(), Arc::new(Mutex::new(None)));
        let heard = Arc::clone(&ended);
        let observe = ObserveLayer::new().classify(GrpcStatus).until_body_end().observer(
            move |_: &LayerInfo, event: &LayerEvent<'_>| {
                if let LayerEvent::Ended { outcome, .. } = event {
                    *heard.lock().unwrap() = Some(*outcome);
                }
            },
        );
        let frames = Arc::new(Mutex::new(Some(frames)));
        let service =
            ServiceBuilder::new().layer(observe).layer(breaker).map_err(Error::Service).service_fn(move |()| {
                let frames = frames.lock().unwrap().take().unwrap();
                // Without frames it has ended from the start.
                let body = match frames.is_empty() {
                    true => Empty::new().map_err(|never| match never {}).boxed_unsync(),
                    false => StreamBody::new(tokio_stream::iter(frames)).boxed_unsync(),
                };
                let response = Response::builder().header("content-type", kind);
                let response =
                    status.into_iter().fold(response, |response, status| response.header("grpc-status", status));
                std::future::ready(Ok::<_, Infallible>(response.body(body).unwrap()))
            });
        let mut body = service.oneshot(()).await.unwrap().into_body();
        if read {
            body.collect().await.unwrap();
        } else {
            assert!(body.frame().await.unwrap().is_ok());
            drop(body);
        }
        let (state, outcome) =
            if class == Class::Success { (State::Closed, Outcome::Success) } else { (State::Open, Outcome::Failure) };
        assert_eq!((circuit.state(), *ended.lock().unwrap()), (state, Some(outcome)), "{case}");
    }
}

/// Shows: T4
#[tokio::test(start_paused = true)]
async fn a_deadline_that_was_carried_over_ends_a_body_too() {
    for wait in [Duration::ZERO, SECOND / 2] {
        let origin = Origin::default();
        let (inner, _sender) = (origin.service(), origin.answers(200));
        let service = ServiceBuilder::new().layer(TimeoutLayer::new(30 * SECOND).until_body_end()).service(service_fn(
            move |()| {
                let response = inner.clone().oneshot(());
                async move {
                    tokio::time::sleep(wait).await;
                    response.await
                }
            },
        ));
        let start = Instant::now();
        let read = async { service.oneshot(()).await.unwrap().into_body().collect().await.map(drop) };
        assert!(Deadline::after(SECOND).within(read).await.is_err());
        assert_eq!(start.elapsed(), SECOND);
    }
}

/// Every other frame is pending first. There are a million frames, each with its number.
struct Counting {
    next: u32,
    pends: bool,
}

impl Body for Counting {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Step>> {
        self.pends = !self.pends && self.next.is_multiple_of(2);
        if self.pends {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        self.next += 1;
        let frame = Frame::data(Bytes::copy_from_slice(&self.next.to_be_bytes()));
        Poll::Ready((self.next <= 1_000_000).then_some(Ok(frame)))
    }
}

/// Shows: L2, X7
#[tokio::test]
async fn a_million_frames_pass_all_guards_in_their_order_and_everything_is_back_after_them() {
    let far = Duration::from_secs(3600);
    let (limit, breaker) = (ConcurrencyLimitLayer::new(1).until_body_end(), breaker().until_body_end());
    let gate = limit.handle();
    let held = Arc::new(());
    let holds = Arc::clone(&held);
    let service = ServiceBuilder::new()
        .layer(ContextLayer::new(Scope::root("app")).state(move |_: &Request<()>| Arc::clone(&holds)))
        .layer(TimeoutLayer::new(far).until_body_end().idle(far))
        .layer(breaker)
        .layer(limit)
        .layer(TimeoutLayer::new(far).idle(far))
        .map_err(Error::Service)
        .service_fn(|_: Request<()>| {
            std::future::ready(Ok::<_, Infallible>(Response::new(Counting { next: 0, pends: false })))
        });
    let mut body = service.clone().oneshot(Request::new(())).await.unwrap().into_body();
    let while_it_streams = Arc::strong_count(&held);
    let mut expected = 0_u32;
    while let Some(frame) = body.frame().await {
        expected += 1;
        assert_eq!(*frame.unwrap().into_data().unwrap(), expected.to_be_bytes());
        assert_eq!(gate.in_flight(), 1);
    }
    assert_eq!(expected, 1_000_000);
    assert_eq!(gate.in_flight(), 0);
    assert_eq!(Arc::strong_count(&held), while_it_streams - 1, "the scope is gone");
}

/// Shows: L2
#[tokio::test(start_paused = true)]
async fn an_empty_body_ends_with_its_response() {
    let (limit, breaker) =
        (ConcurrencyLimitLayer::new(1).until_body_end(), breaker().open_for(SECOND).until_body_end());
    let (gate, circuit) = (limit.handle(), breaker.handle());
    let service = ServiceBuilder::new()
        .layer(TimeoutLayer::new(SECOND).until_body_end())
        .layer(breaker)
        .layer(limit)
        .map_err(Error::Service)
        .service_fn(|works: bool| {
            let mut response = Response::new(Empty::<Bytes>::new());
            *response.status_mut() = if works { StatusCode::OK } else { StatusCode::INTERNAL_SERVER_ERROR };
            std::future::ready(Ok::<_, Infallible>(response))
        });
    service.clone().oneshot(false).await.unwrap();
    advance(SECOND).await;
    let response = service.oneshot(true).await.unwrap();
    assert_eq!((gate.in_flight(), circuit.state()), (0, State::Closed), "the probe is over");
    assert!(response.body().is_end_stream());
}

/// The layer emits an event when a body ends.
#[tokio::test(start_paused = true)]
async fn the_end_of_a_body_by_its_limit_is_an_event() {
    let events: Arc<Mutex<Vec<String>>> = Arc::default();
    let heard = Arc::clone(&events);
    let origin = Origin::default();
    let layer = TimeoutLayer::new(SECOND).idle(SECOND).observer(move |_: &LayerInfo, event: &LayerEvent<'_>| {
        if let LayerEvent::Rejected(rejection) = event {
            heard.lock().unwrap().push(rejection.to_string());
        }
    });
    let service = ServiceBuilder::new().layer(layer).service(origin.service());
    let _sender = origin.answers(200);
    let mut body = service.oneshot(()).await.unwrap().into_body();
    assert!(next(&mut body).await.unwrap().is_err());
    assert_eq!(*events.lock().unwrap(), ["timeout: no response within 1s"]);
}
