//! Callers that send a request body slowly, stop, or break off: how that time and that failure count.

use std::{
    convert::Infallible,
    error::Error as StdError,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body::{Body, Frame};
use http_body_util::{BodyExt, Empty, Full};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::mpsc,
    time::{Instant, sleep},
};
use tower::{Service, ServiceBuilder, ServiceExt, service_fn};
use ziggurat::{
    Class, Error, LayerEvent, LayerInfo, Outcome, Reason, Reject, Rejection,
    circuit_breaker::{CircuitBreakerLayer, State},
    observe::ObserveLayer,
    replay::ReplayLayer,
    retry::RetryLayer,
    stack::ClientStack,
    timeout::TimeoutLayer,
    upload::{UploadBody, UploadLayer},
};

const SECOND: Duration = Duration::from_secs(1);

type BoxError = Box<dyn StdError + Send + Sync>;
type Step = Result<Frame<Bytes>, BoxError>;

/// A body whose frames come from a channel. It ends with the sender.
struct Sent(mpsc::UnboundedReceiver<Step>);

impl Body for Sent {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Step>> {
        self.0.poll_recv(cx)
    }
}

fn data() -> Step {
    Ok(Frame::data(Bytes::from_static(b"more")))
}

fn upload() -> (mpsc::UnboundedSender<Step>, Request<Sent>) {
    let (sender, receiver) = mpsc::unbounded_channel();
    (sender, Request::put("/").body(Sent(receiver)).unwrap())
}

/// Returns an upload with a frame after each of these pauses, and then its end.
fn with_pauses(pauses: impl IntoIterator<Item = Duration> + Send + 'static) -> Request<Sent>
where
    <Vec<Duration> as IntoIterator>::IntoIter: Send,
{
    let (sender, request) = upload();
    let pauses: Vec<_> = pauses.into_iter().collect();
    tokio::spawn(async move {
        for pause in pauses {
            sleep(pause).await;
            let _ = sender.send(data());
        }
    });
    request
}

/// The reader of the body in an HTTP client.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Reader {
    /// The call itself.
    Inline,
    /// A task of the connection.
    Task,
}

/// Reads the whole body, takes the given time, and responds with its number of bytes.
fn storage<B>(
    reader: Reader,
    thinks: Duration,
) -> impl Service<Request<B>, Response = Response<String>, Error = Error<BoxError>, Future: Send> + Clone
where
    B: Body<Data = Bytes, Error = BoxError> + Send + 'static,
{
    ServiceBuilder::new().map_err(Error::Service).service(service_fn(move |request: Request<B>| async move {
        let read = async { Ok::<_, BoxError>(request.into_body().collect().await?.to_bytes().len()) };
        let read = match reader {
            Reader::Inline => read.await?,
            Reader::Task => tokio::spawn(read).await??,
        };
        sleep(thinks).await;
        Ok::<_, BoxError>(Response::new(read.to_string()))
    }))
}

fn fragile() -> CircuitBreakerLayer {
    CircuitBreakerLayer::consecutive(1)
}

const READERS: [Reader; 2] = [Reader::Inline, Reader::Task];

#[tokio::test(start_paused = true)]
async fn an_upload_that_goes_on_is_never_cut_at_the_attempts_limit() {
    for reader in READERS {
        let breaker = fragile();
        let circuit = breaker.handle();
        let service = ServiceBuilder::new()
            .layer(UploadLayer::new(10 * SECOND))
            .layer(breaker)
            .layer(TimeoutLayer::new(5 * SECOND))
            .service(storage(reader, 4 * SECOND));
        let start = Instant::now();
        let response = service.oneshot(with_pauses([9 * SECOND; 20])).await.unwrap();
        assert_eq!((response.body().as_str(), start.elapsed()), ("80", 184 * SECOND), "{reader:?}");
        assert_eq!(circuit.state(), State::Closed);
    }
}

/// The service has its whole limit, less the time that it used before: 2 s here, while the caller's bytes were
/// available.
#[tokio::test(start_paused = true)]
async fn the_services_own_time_is_limited_as_before() {
    for reader in READERS {
        let breaker = fragile();
        let circuit = breaker.handle();
        let service = ServiceBuilder::new()
            .layer(UploadLayer::new(10 * SECOND))
            .layer(breaker)
            .layer(TimeoutLayer::new(5 * SECOND).named("attempt"))
            .map_err(Error::Service)
            .service(service_fn(move |request: Request<UploadBody<Sent>>| async move {
                let mut body = request.into_body();
                sleep(2 * SECOND).await;
                let read = async move { while let Some(Ok(_)) = body.frame().await {} };
                match reader {
                    Reader::Inline => read.await,
                    Reader::Task => tokio::spawn(read).await.unwrap(),
                }
                std::future::pending::<Result<Response<String>, Infallible>>().await
            }));
        let start = Instant::now();
        // The first frame is available when it is requested. Then the service waits for two of 7 s each.
        let outcome = service.oneshot(with_pauses([SECOND, 8 * SECOND, 7 * SECOND])).await;
        let rejection = ziggurat::rejection(&outcome).unwrap();
        assert_eq!((rejection.name(), rejection.is_timed_out()), (Some("attempt"), true));
        assert_eq!((start.elapsed(), circuit.state()), ((5 + 14) * SECOND, State::Open), "{reader:?}");
    }
}

/// Without a body, or while the body is not polled, the limit is not extended.
#[tokio::test(start_paused = true)]
async fn a_service_that_does_not_ask_for_the_body_uses_its_own_time() {
    let (sender, request) = upload();
    for request in [request, with_pauses([])] {
        let service = ServiceBuilder::new()
            .layer(UploadLayer::new(SECOND))
            .layer(TimeoutLayer::new(5 * SECOND))
            .map_err(Error::Service)
            .service(service_fn(|request: Request<UploadBody<Sent>>| async move {
                let _keeps = request;
                std::future::pending::<Result<Response<String>, Infallible>>().await
            }));
        let start = Instant::now();
        assert!(ziggurat::rejection(&service.oneshot(request).await).unwrap().is_timed_out());
        assert_eq!(start.elapsed(), 5 * SECOND);
    }
    assert!(sender.is_closed());
}

/// The wait ends with the frame or the body. The limit then ends the call without another poll from outside.
#[tokio::test(start_paused = true)]
async fn a_limit_runs_on_when_the_wait_is_over() {
    for (drops_at, ends) in [(None, 5 + 9), (Some(7 * SECOND), 5 + 7)] {
        let service = ServiceBuilder::new()
            .layer(UploadLayer::new(10 * SECOND))
            .layer(TimeoutLayer::new(5 * SECOND))
            .map_err(Error::Service)
            .service(service_fn(move |request: Request<UploadBody<Sent>>| {
                let mut body = request.into_body();
                tokio::spawn(async move {
                    match drops_at {
                        None => drop(body.frame().await),
                        Some(at) => drop(tokio::time::timeout(at, body.frame()).await),
                    }
                    if drops_at.is_none() {
                        std::future::pending::<()>().await;
                    }
                });
                std::future::pending::<Result<Response<String>, Infallible>>()
            }));
        let start = Instant::now();
        let request = with_pauses([9 * SECOND, 99 * SECOND]);
        let outcome = tokio::time::timeout(60 * SECOND, service.oneshot(request)).await.unwrap();
        assert!(ziggurat::rejection(&outcome).unwrap().is_timed_out());
        assert_eq!(start.elapsed(), ends * SECOND, "{drops_at:?}");
    }
}

/// A service that stops polling after one poll is not waiting for its caller: it hangs.
#[tokio::test(start_paused = true)]
async fn a_service_that_stops_asking_has_waited_no_longer_than_the_idle_limit() {
    let breaker = fragile();
    let circuit = breaker.handle();
    let service = ServiceBuilder::new()
        .layer(UploadLayer::new(3 * SECOND))
        .layer(breaker)
        .layer(TimeoutLayer::new(5 * SECOND))
        .map_err(Error::Service)
        .service(service_fn(move |request: Request<UploadBody<Sent>>| async move {
            let mut body = request.into_body();
            assert!(futures_util::poll!(body.frame()).is_pending());
            std::future::pending::<Result<Response<String>, Infallible>>().await
        }));
    let (_sender, request) = upload();
    let start = Instant::now();
    let outcome = tokio::time::timeout(60 * SECOND, service.oneshot(request)).await.unwrap();
    assert!(ziggurat::rejection(&outcome).unwrap().is_timed_out());
    assert_eq!((start.elapsed(), circuit.state()), ((5 + 3) * SECOND, State::Open));
}

/// The service may ignore the error of the body.
#[tokio::test(start_paused = true)]
async fn a_call_whose_body_fails_is_rejected_at_once() {
    let told = Arc::new(Mutex::new(Vec::new()));
    let heard = Arc::clone(&told);
    let observe = ObserveLayer::new().observer(move |_: &LayerInfo, event: &LayerEvent<'_>| {
        if let LayerEvent::Ended { outcome, .. } = event {
            heard.lock().unwrap().push(*outcome);
        }
    });
    for tells in [false, true] {
        let service = ServiceBuilder::new()
            .layer(UploadLayer::new(2 * SECOND))
            .layer(observe.clone())
            .map_err(Error::Service)
            .service(service_fn(move |request: Request<UploadBody<Sent>>| async move {
                let reader = tokio::spawn(request.into_body().collect());
                if tells {
                    let _ = reader.await;
                    return Err("broken");
                }
                std::future::pending::<Result<Response<String>, _>>().await
            }));
        let (_sender, request) = upload();
        let start = Instant::now();
        let outcome = tokio::time::timeout(60 * SECOND, service.oneshot(request)).await.unwrap();
        assert!(matches!(ziggurat::rejection(&outcome).unwrap().reason(), Reason::UploadStalled { .. }));
        assert_eq!(start.elapsed(), 2 * SECOND);
    }
    assert_eq!(*told.lock().unwrap(), [Outcome::Cancelled; 2], "the reaction of the service is not observed");
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_stops_sending_is_rejected_and_nobody_inside_counts_it() {
    for reader in READERS {
        let breaker = fragile();
        let (circuit, calls, events) = (breaker.handle(), Arc::new(AtomicUsize::new(0)), Arc::new(Mutex::new(vec![])));
        let (count, heard) = (Arc::clone(&calls), Arc::clone(&events));
        let observer = move |info: &LayerInfo, event: &LayerEvent<'_>| {
            if let LayerEvent::Rejected(rejection) = event {
                heard.lock().unwrap().push((info.layer(), rejection.to_string()));
            }
        };
        let service = ServiceBuilder::new()
            .layer(UploadLayer::new(2 * SECOND).named("callers").observer(observer))
            .layer(ReplayLayer::new())
            .layer(RetryLayer::http())
            .layer(breaker)
            .layer(TimeoutLayer::new(SECOND))
            .map_request(move |request: Request<_>| {
                count.fetch_add(1, Ordering::SeqCst);
                request
            })
            .service(storage(reader, Duration::ZERO));
        for _ in 0..10 {
            let (sender, request) = upload();
            sender.send(data()).unwrap();
            let start = Instant::now();
            let outcome = service.clone().oneshot(request).await;
            let rejection = ziggurat::rejection(&outcome).unwrap();
            assert_eq!(rejection.reason(), &Reason::UploadStalled { idle: 2 * SECOND });
            assert_eq!((rejection.status(), rejection.class()), (StatusCode::REQUEST_TIMEOUT, Class::Ignored));
            assert_eq!((start.elapsed(), circuit.state()), (2 * SECOND, State::Closed), "{reader:?}");
            tokio::task::yield_now().await;
            assert!(sender.is_closed(), "the body is dropped");
        }
        assert_eq!(calls.load(Ordering::SeqCst), 10, "nothing was tried again");
        let message = "upload `callers`: the caller sent no more of the request body for 2s";
        assert_eq!(*events.lock().unwrap(), vec![("upload", message.to_owned()); 10]);
    }
}

/// Each frame restarts the wait, and only waiting counts.
#[tokio::test(start_paused = true)]
async fn the_limit_of_a_callers_silence_is_for_each_frame() {
    for idle in [3 * SECOND, 2 * SECOND] {
        let service =
            ServiceBuilder::new().layer(UploadLayer::new(idle)).service(storage(Reader::Task, Duration::ZERO));
        let outcome = service.oneshot(with_pauses([2 * SECOND + SECOND / 2; 8])).await;
        assert_eq!(outcome.is_ok(), idle == 3 * SECOND, "{outcome:?}");
    }
}

/// The rejection contains the error's message, and the call is dropped before an inner layer can classify the service's
/// reaction.
#[tokio::test(start_paused = true)]
async fn a_caller_that_breaks_off_is_rejected_and_nobody_inside_counts_it() {
    for reader in READERS {
        let breaker = fragile();
        let (circuit, calls) = (breaker.handle(), Arc::new(AtomicUsize::new(0)));
        let count = Arc::clone(&calls);
        let service = ServiceBuilder::new()
            .layer(UploadLayer::new(2 * SECOND))
            .layer(ReplayLayer::new())
            .layer(RetryLayer::http())
            .layer(breaker)
            .layer(TimeoutLayer::new(SECOND))
            .map_request(move |request: Request<_>| {
                count.fetch_add(1, Ordering::SeqCst);
                request
            })
            .service(storage(reader, Duration::ZERO));
        let (sender, request) = upload();
        sender.send(data()).unwrap();
        let breaks_off = async {
            sleep(SECOND / 2).await;
            sender.send(Err("connection reset by peer".into())).unwrap();
        };
        let (outcome, ()) = tokio::join!(service.oneshot(request), breaks_off);
        let rejection = ziggurat::rejection(&outcome).unwrap();
        assert_eq!(rejection.reason(), &Reason::UploadFailed { message: "connection reset by peer".into() });
        assert_eq!((rejection.status(), rejection.class()), (StatusCode::BAD_REQUEST, Class::Ignored));
        assert!(!rejection.public_message().contains("reset"));
        assert_eq!((circuit.state(), calls.load(Ordering::SeqCst)), (State::Closed, 1), "{reader:?}");
    }
}

/// A total outside ends a long upload, and a breaker inside does not count the service's wait for its caller.
#[tokio::test(start_paused = true)]
async fn a_total_outside_stays_a_total_and_a_service_that_waits_for_its_caller_is_not_to_blame() {
    for (pause, state) in [(4 * SECOND, State::Closed), (Duration::ZERO, State::Open)] {
        let breaker = fragile();
        let circuit = breaker.handle();
        let service = ServiceBuilder::new()
            .layer(TimeoutLayer::new(30 * SECOND).named("total"))
            .layer(UploadLayer::new(10 * SECOND))
            .layer(breaker)
            .layer(TimeoutLayer::new(60 * SECOND))
            .service(storage(Reader::Task, 60 * SECOND));
        let start = Instant::now();
        let outcome = service.oneshot(with_pauses(vec![pause; 20])).await;
        assert_eq!(ziggurat::rejection(&outcome).unwrap().name(), Some("total"));
        assert_eq!((start.elapsed(), circuit.state()), (30 * SECOND, state));
    }
}

/// Each of several nested limits is extended, and the earliest still ends the call.
#[tokio::test(start_paused = true)]
async fn nested_limits_inside_are_put_off_together() {
    for (outer, inner, ends, name) in [(8, 5, 5, "inner"), (5, 8, 5, "outer"), (5, 5, 5, "outer")] {
        let service = ServiceBuilder::new()
            .layer(UploadLayer::new(10 * SECOND))
            .layer(TimeoutLayer::new(outer * SECOND).named("outer"))
            .layer(TimeoutLayer::new(inner * SECOND).named("inner"))
            .service(storage(Reader::Task, 60 * SECOND));
        let start = Instant::now();
        let outcome = service.oneshot(with_pauses([9 * SECOND, 9 * SECOND])).await;
        assert_eq!(ziggurat::rejection(&outcome).unwrap().name(), Some(name));
        assert_eq!(start.elapsed(), (18 + ends) * SECOND, "{outer} around {inner}");
    }
}

/// The time that a first attempt waited for the caller's bytes does not extend the second attempt, which has them.
#[tokio::test(start_paused = true)]
async fn a_wait_in_one_attempt_does_not_put_off_the_limit_of_the_next() {
    let calls = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&calls);
    let service = ServiceBuilder::new()
        .layer(UploadLayer::new(10 * SECOND))
        .layer(ReplayLayer::new())
        .layer(RetryLayer::http().max_attempts(2).backoff(Duration::ZERO))
        .layer(TimeoutLayer::new(5 * SECOND))
        .map_err(Error::Service)
        .service(service_fn(move |request: Request<_>| {
            let call = count.fetch_add(1, Ordering::SeqCst);
            async move {
                let body: ziggurat::body::ReplayBody<UploadBody<Sent>> = request.into_body();
                body.collect().await.map(drop).map_err(|_| "no body")?;
                if call == 0 { Err("broken") } else { std::future::pending::<Result<Response<String>, _>>().await }
            }
        }));
    let start = Instant::now();
    let outcome = service.oneshot(with_pauses([9 * SECOND, 9 * SECOND])).await;
    assert!(ziggurat::rejection(&outcome).unwrap().is_timed_out());
    assert_eq!((start.elapsed(), calls.load(Ordering::SeqCst)), ((18 + 5) * SECOND, 2));
}

/// A service may read on after its response: the limit ends the body, and the reader gets the reason.
#[tokio::test(start_paused = true)]
async fn a_body_that_is_read_after_the_answer_is_ended_too() {
    let bodies = Arc::new(Mutex::new(None));
    let kept = Arc::clone(&bodies);
    let service = ServiceBuilder::new().layer(UploadLayer::new(SECOND)).map_err(Error::Service).service(service_fn(
        move |request: Request<UploadBody<Sent>>| {
            *kept.lock().unwrap() = Some(request.into_body());
            std::future::ready(Ok::<_, Infallible>(Response::new(String::new())))
        },
    ));
    let (_sender, request) = upload();
    service.oneshot(request).await.unwrap();
    let body = bodies.lock().unwrap().take().unwrap();
    let error = body.collect().await.unwrap_err();
    assert!(matches!(Rejection::find(&*error).unwrap().reason(), Reason::UploadStalled { .. }));
}

/// A response of the service passes, although its body broke off.
#[tokio::test(start_paused = true)]
async fn an_answer_that_the_service_gives_to_a_body_that_broke_off_comes_back() {
    let service = ServiceBuilder::new().layer(UploadLayer::new(SECOND)).map_err(Error::Service).service(service_fn(
        |request: Request<UploadBody<Sent>>| async {
            let read = request.into_body().collect().await;
            Ok::<_, Infallible>(Response::new(if read.is_err() { "half of it is enough" } else { "all" }))
        },
    ));
    let (sender, request) = upload();
    sender.send(Err("reset".into())).unwrap();
    assert_eq!(*service.oneshot(request).await.unwrap().body(), "half of it is enough");
}

/// As in a reverse proxy: hyper on both sides, over in-memory sockets, so that the clock is the test's.
///
/// Ten clients stall a PUT. None of them opens the circuit, and each gets a response that says so.
#[tokio::test(start_paused = true)]
async fn clients_that_stall_an_upload_through_a_proxy_are_told_so_and_close_the_upstream_to_nobody() {
    let stack = ClientStack::http("upstream");
    let circuit = stack.circuit();
    let proxy = ServiceBuilder::new()
        .layer(UploadLayer::new(15 * SECOND))
        .layer(ReplayLayer::new())
        .layer(stack)
        .service(service_fn(to_upstream));
    let status = async |request: &'static [u8]| {
        let (mut client, server) = tokio::io::duplex(4096);
        let proxy = proxy.clone();
        let service = hyper::service::service_fn(move |request: Request<hyper::body::Incoming>| {
            let proxy = proxy.clone();
            async move {
                let outcome = proxy.oneshot(request).await;
                let status = match (ziggurat::rejection(&outcome), &outcome) {
                    (Some(rejection), _) => rejection.status(),
                    (None, Ok(response)) => response.status(),
                    (None, Err(_)) => StatusCode::BAD_GATEWAY,
                };
                Ok::<_, Infallible>(Response::builder().status(status).body(Empty::<Bytes>::new()).unwrap())
            }
        });
        tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(server), service));
        client.write_all(request).await.unwrap();
        let mut answer = [0; 12];
        client.read_exact(&mut answer).await.unwrap();
        String::from_utf8_lossy(&answer[9..]).into_owned()
    };
    for _ in 0..10 {
        let start = Instant::now();
        assert_eq!(status(b"PUT / HTTP/1.1\r\nhost: a\r\ncontent-length: 9\r\n\r\nhalf").await, "408");
        assert_eq!((start.elapsed(), circuit.state()), (15 * SECOND, State::Closed));
    }
    assert_eq!(status(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await, "200");
}

/// A hyper client, and a hyper server that reads everything and responds.
async fn to_upstream<B>(request: Request<B>) -> Result<Response<hyper::body::Incoming>, BoxError>
where
    B: Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
{
    let (client, server) = tokio::io::duplex(4096);
    let service = hyper::service::service_fn(|request: Request<hyper::body::Incoming>| async {
        request.into_body().collect().await?;
        Ok::<_, hyper::Error>(Response::new(Full::new(Bytes::from_static(b"stored"))))
    });
    tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(server), service));
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(client)).await?;
    tokio::spawn(connection);
    Ok(sender.send_request(request.map(BodyExt::boxed_unsync)).await?)
}

/// The rejection of another layer in the body's error, such as one around this layer, reaches the caller too.
#[tokio::test(start_paused = true)]
async fn a_rejection_that_ends_the_body_is_the_calls() {
    let service = ServiceBuilder::new().layer(UploadLayer::new(SECOND)).service(storage(Reader::Task, Duration::ZERO));
    let (sender, request) = upload();
    let rejected: Result<(), BoxError> = Reject::reject(LayerInfo::new("outside").reject(Reason::RateLimited));
    sender.send(Err(rejected.unwrap_err())).unwrap();
    let outcome = service.oneshot(request).await;
    assert_eq!(ziggurat::rejection(&outcome).unwrap().reason(), &Reason::RateLimited);
}
