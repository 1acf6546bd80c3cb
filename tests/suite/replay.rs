//! Requests with a streamed body that are sent again: on a paused clock, and over real sockets.

use std::{
    convert::Infallible,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use axum::{Router, body::Body as AxumBody, extract::State, http::HeaderMap, routing::any};
use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, Uri, Version};
use http_body::{Body, Frame, SizeHint};
use http_body_util::{BodyExt, Full};
use hyper::{
    body::Incoming,
    server::conn::{http1, http2},
};
use hyper_util::{
    client::legacy::Client,
    rt::{TokioExecutor, TokioIo},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    sync::mpsc::{self, UnboundedReceiver, UnboundedSender},
};
use tower::{Layer, ServiceBuilder, ServiceExt};
use ziggurat::{
    Budget, Error, Idempotent, LayerEvent, LayerInfo,
    body::{CopyBody, ReplayBody},
    fallback::FallbackLayer,
    replay::ReplayLayer,
    retry::{CopyIf, RetryLayer},
};

/// A body whose frames come from a channel. It ends with the sender, and is not `Clone`.
struct Streamed {
    frames: UnboundedReceiver<Result<Frame<Bytes>, &'static str>>,
    size: SizeHint,
}

impl Body for Streamed {
    type Data = Bytes;
    type Error = &'static str;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, &'static str>>> {
        self.frames.poll_recv(cx)
    }

    fn size_hint(&self) -> SizeHint {
        self.size
    }
}

struct Sender(UnboundedSender<Result<Frame<Bytes>, &'static str>>);

impl Sender {
    fn send(&self, text: &'static str) {
        self.0.send(Ok(Frame::data(Bytes::from_static(text.as_bytes())))).unwrap();
    }
}

fn streaming() -> (Sender, Streamed) {
    let (sender, frames) = mpsc::unbounded_channel();
    (Sender(sender), Streamed { frames, size: SizeHint::new() })
}

/// Returns a body whose frames are all available.
fn streamed(texts: &[&'static str]) -> Streamed {
    let (sender, body) = streaming();
    texts.iter().for_each(|text| sender.send(text));
    body
}

/// The recorded events, as text.
#[derive(Clone, Default)]
struct Told(Arc<Mutex<Vec<String>>>);

impl Told {
    fn observer(&self) -> impl ziggurat::Observer {
        let told = Arc::clone(&self.0);
        move |info: &LayerInfo, event: &LayerEvent<'_>| {
            let words = match event {
                LayerEvent::NotRepeatable { reason } => format!("not repeatable: {reason}"),
                LayerEvent::Retrying { attempt, .. } => format!("retrying after {attempt}"),
                LayerEvent::GaveUp { reason, .. } => format!("gave up: {reason}"),
                other => panic!("{other:?}"),
            };
            told.lock().unwrap().push(format!("{}: {words}", info.layer()));
        }
    }

    fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

/// A request as a service saw it.
type Seen = (Method, Uri, Version, HeaderMap, Option<u8>, Bytes, Option<HeaderMap>);

/// Shows: R5, R9
#[tokio::test(start_paused = true)]
async fn each_attempt_has_the_same_request() {
    let seen = Arc::new(Mutex::new(Vec::<Seen>::new()));
    let sees = Arc::clone(&seen);
    let service = ServiceBuilder::new().layer(ReplayLayer::new()).layer(RetryLayer::http().max_attempts(4)).service_fn(
        move |request: Request<ReplayBody<Streamed>>| {
            let sees = Arc::clone(&sees);
            async move {
                let (head, body) = request.into_parts();
                let body = body.collect().await.unwrap();
                let number = head.extensions.get::<u8>().copied();
                let trailers = body.trailers().cloned();
                sees.lock().unwrap().push((
                    head.method,
                    head.uri,
                    head.version,
                    head.headers,
                    number,
                    body.to_bytes(),
                    trailers,
                ));
                Ok::<_, Infallible>(Response::builder().status(503).body(String::new()).unwrap())
            }
        },
    );
    let (sender, body) = streaming();
    sender.send("one, ");
    sender.send("two");
    let trailers = HeaderMap::from_iter([("sum".parse().unwrap(), HeaderValue::from_static("7"))]);
    sender.0.send(Ok(Frame::trailers(trailers.clone()))).unwrap();
    drop(sender);
    let request = Request::put("http://host/a?b").version(Version::HTTP_2).header("x", "1").header("x", "2");
    let request = request.extension(7_u8).body(body).unwrap();
    let expected = (
        Method::PUT,
        request.uri().clone(),
        Version::HTTP_2,
        request.headers().clone(),
        Some(7),
        Bytes::from_static(b"one, two"),
        Some(trailers),
    );
    assert_eq!(service.oneshot(request).await.unwrap().status(), 503);
    assert_eq!(*seen.lock().unwrap(), vec![expected; 4]);
}

/// Sends the request through replay and retry, to a service that fails after it has read `read` frames. Returns the
/// number of the last attempt and the events.
async fn attempts(layer: ReplayLayer, request: Request<Streamed>, read: usize) -> (u32, Vec<String>) {
    let told = Told::default();
    let service = ServiceBuilder::new()
        .layer(layer.observer(told.observer()))
        .layer(RetryLayer::http().observer(told.observer()))
        .service_fn(move |request: Request<ReplayBody<Streamed>>| async move {
            let mut body = request.into_body();
            for _ in 0..read {
                body.frame().await.unwrap().unwrap();
            }
            Err::<Response<String>, _>(Error::Service(ziggurat::attempt()))
        });
    let Err(Error::Service(attempt)) = service.oneshot(request).await else { panic!("not the service's error") };
    (attempt, told.take())
}

/// The failure of the only attempt is returned unchanged, and an event says why there was no other attempt.
///
/// Shows: R9
#[tokio::test(start_paused = true)]
async fn a_body_that_is_too_large_is_sent_once_and_an_event_says_why() {
    let put = |texts| Request::put("/").body(streamed(texts)).unwrap();
    let three = &["three", "three", "three"];
    let tried = ["retry: retrying after 1", "retry: retrying after 2", "retry: gave up: attempts"].map(str::to_owned);

    assert_eq!(attempts(ReplayLayer::new().max_bytes(10), put(three), 2).await, (3, tried.to_vec()));
    let once = (1, vec!["replay: not repeatable: size".to_owned(), "retry: gave up: copy".to_owned()]);
    assert_eq!(attempts(ReplayLayer::new().max_bytes(9), put(three), 2).await, once);
    let once = (1, vec!["replay: not repeatable: total".to_owned(), "retry: gave up: copy".to_owned()]);
    assert_eq!(attempts(ReplayLayer::new().max_total_bytes(9), put(three), 2).await, once);

    // Nothing was read of this one, for example because the connection failed.
    let mut huge = put(&["three"]);
    huge.body_mut().size = SizeHint::with_exact(1 << 40);
    assert_eq!(attempts(ReplayLayer::new(), huge, 0).await, (3, tried.to_vec()));
    // It is sent once, and not recorded.
    let post = Request::post("/").body(streamed(three)).unwrap();
    let once = (1, vec!["retry: gave up: copy".to_owned()]);
    assert_eq!(attempts(ReplayLayer::new().max_bytes(0), post, 3).await, once);
}

/// Shows: R9
#[tokio::test(start_paused = true)]
async fn an_error_of_the_requests_own_body_is_not_retried() {
    let (sender, body) = streaming();
    sender.send("one");
    sender.0.send(Err("hung up")).unwrap();
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&calls);
    let service = ServiceBuilder::new().layer(ReplayLayer::new()).layer(RetryLayer::http()).service_fn(
        move |request: Request<ReplayBody<Streamed>>| {
            counted.fetch_add(1, Ordering::SeqCst);
            async { request.into_body().collect().await.map(|_| Response::new(String::new())).map_err(Error::Service) }
        },
    );
    let Err(Error::Service(error)) = service.oneshot(Request::put("/").body(body).unwrap()).await else { panic!() };
    assert_eq!((error.to_string().as_str(), calls.load(Ordering::SeqCst)), ("hung up", 1));
}

/// A response that arrived while the request was being sent is final. The rest of the request is still sent.
///
/// Shows: R1
#[tokio::test(start_paused = true)]
async fn a_retry_that_is_not_granted_leaves_the_request_alone() {
    for retries in [0, 1] {
        let sent = Arc::new(Mutex::new(Vec::new()));
        let sends = Arc::clone(&sent);
        let retry = RetryLayer::http().max_attempts(2).budget(Budget::new(0.0).min_per_second(retries));
        let service = ServiceBuilder::new().layer(ReplayLayer::new()).layer(retry).service_fn(
            move |request: Request<ReplayBody<Streamed>>| {
                sends.lock().unwrap().push(request.into_body());
                async { Ok::<_, Infallible>(Response::builder().status(503).body(String::new()).unwrap()) }
            },
        );
        let put = Request::put("/").body(streamed(&["one"])).unwrap();
        assert_eq!(service.oneshot(put).await.unwrap().status(), 503);
        let mut sent = std::mem::take(&mut *sent.lock().unwrap());
        assert_eq!(sent.len(), 1 + retries as usize);
        let text = sent.remove(0).collect().await.map(|body| body.to_bytes());
        assert_eq!(text.ok(), (retries == 0).then(|| Bytes::from_static(b"one")));
    }
}

/// Every gRPC call is a POST.
#[tokio::test(start_paused = true)]
async fn any_method_can_be_retried_if_it_is_said() {
    let retry = RetryLayer::http().copy(CopyIf(|req: &Request<_>| req.uri().path() == "/")).max_attempts(5);
    let service = ServiceBuilder::new().layer(ReplayLayer::new()).layer(retry).service_fn(
        |request: Request<ReplayBody<Streamed>>| async {
            let text = request.into_body().collect().await.unwrap().to_bytes();
            assert_eq!(text, "order");
            let status = if ziggurat::attempt() == 5 { 200 } else { 503 };
            Ok::<_, Infallible>(Response::builder().status(status).body(String::new()).unwrap())
        },
    );
    let order = Request::post("/").body(streamed(&["or", "der"])).unwrap();
    assert_eq!(service.oneshot(order).await.unwrap().status(), 200);
}

/// It copies the request before the retry does, and is the last to need it.
///
/// Shows: G2, R9
#[tokio::test(start_paused = true)]
async fn a_backup_outside_of_a_retry_is_asked_with_the_whole_request() {
    async fn read(request: Request<ReplayBody<Streamed>>) -> Bytes {
        request.into_body().collect().await.unwrap().to_bytes()
    }
    for retries in [0, 2] {
        let calls = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&calls);
        let backup = tower::service_fn(async |request| {
            assert_eq!(read(request).await, "order");
            Ok::<_, Infallible>(Response::new("backup".to_owned()))
        });
        let service = ServiceBuilder::new()
            .layer(ReplayLayer::new())
            .layer(FallbackLayer::service(backup).copy(Idempotent).http())
            .layer(RetryLayer::http().max_attempts(1 + retries))
            .service_fn(move |request| {
                counted.fetch_add(1, Ordering::SeqCst);
                async {
                    assert_eq!(read(request).await, "order");
                    Ok(Response::builder().status(503).body(String::new()).unwrap())
                }
            });
        let put = Request::put("/").body(streamed(&["or", "der"])).unwrap();
        assert_eq!(service.oneshot(put).await.unwrap().into_body(), "backup");
        assert_eq!(calls.load(Ordering::SeqCst), 1 + retries as usize);
    }
}

/// Shows: R1, R9
#[tokio::test(start_paused = true)]
async fn a_retry_within_a_retry_sends_the_request_as_often_as_both_say() {
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&calls);
    let service = ServiceBuilder::new()
        .layer(ReplayLayer::new())
        .layer(RetryLayer::http().max_attempts(2))
        .layer(RetryLayer::http().max_attempts(2))
        .service_fn(move |request: Request<ReplayBody<Streamed>>| {
            counted.fetch_add(1, Ordering::SeqCst);
            async {
                assert_eq!(request.into_body().collect().await.unwrap().to_bytes(), "order");
                Ok::<_, Infallible>(Response::builder().status(503).body(String::new()).unwrap())
            }
        });
    let put = Request::put("/").body(streamed(&["or", "der"])).unwrap();
    assert_eq!(service.oneshot(put).await.unwrap().status(), 503);
    assert_eq!(calls.load(Ordering::SeqCst), 4);
}

/// The recorded bytes are counted over all services of one layer value, and released.
#[tokio::test]
async fn all_services_of_a_layer_share_what_may_be_kept_and_two_layers_do_not() {
    let layer = ReplayLayer::new().max_total_bytes(8);
    // The body as the inner service gets it, with a copy, after its first frame was read.
    let send = async |layer: &ReplayLayer| {
        let service = layer.layer(tower::service_fn(async |request: Request<ReplayBody<Streamed>>| {
            let mut body = request.into_body();
            let copy = body.copy_body().unwrap();
            body.frame().await.unwrap().unwrap();
            Ok::<_, Infallible>((body, copy))
        }));
        service.oneshot(Request::new(streamed(&["three", "three"]))).await.unwrap()
    };
    let first = send(&layer).await;
    assert_eq!(layer.bytes(), 5);
    let second = send(&layer.clone()).await;
    assert!(!second.1.claim_body());
    assert_eq!(layer.bytes(), 5);
    let other = ReplayLayer::new().max_total_bytes(8);
    let third = send(&other).await;
    assert!(third.1.claim_body());
    drop(first);
    assert_eq!((layer.bytes(), other.bytes()), (0, 5));
    assert!(send(&layer).await.1.claim_body());
    assert_eq!(layer.bytes(), 0);
}

/// A whole upload is sent again over real connections, byte for byte, unless it must not be repeated.
///
/// Shows: R5, R9
#[tokio::test]
async fn a_streamed_upload_is_retried_over_real_connections() {
    async fn third_time(State(uploads): State<Uploads>, method: Method, body: AxumBody) -> (StatusCode, Bytes) {
        let body = body.collect().await.unwrap().to_bytes();
        let mut uploads = uploads.lock().unwrap();
        uploads.push((method, body.clone()));
        (if uploads.len() % 3 == 0 { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }, body)
    }
    type Uploads = Arc<Mutex<Vec<(Method, Bytes)>>>;
    let uploads = Uploads::default();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let router = Router::new().route("/", any(third_time)).with_state(Arc::clone(&uploads));
    tokio::spawn(async { axum::serve(listener, router).await.unwrap() });

    let layer = ReplayLayer::new();
    let client = ServiceBuilder::new()
        .layer(layer.clone())
        .layer(RetryLayer::http().backoff(Duration::ZERO))
        .map_err(Error::Service)
        .service(Client::builder(TokioExecutor::new()).build_http());
    let request = |method: Method| Request::builder().method(method).uri(format!("http://{address}/"));

    // With a known length, and without.
    let text = "0123456789".repeat(6_000);
    for sized in [true, false] {
        let (sender, mut body) = streaming();
        for part in text.as_bytes().chunks(7_000) {
            sender.0.send(Ok(Frame::data(Bytes::copy_from_slice(part)))).unwrap();
        }
        drop(sender);
        if sized {
            body.size = SizeHint::with_exact(text.len() as u64);
        }
        let response = client.clone().oneshot(request(Method::PUT).body(body).unwrap()).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), text);
        assert_eq!(std::mem::take(&mut *uploads.lock().unwrap()), vec![(Method::PUT, text.clone().into()); 3]);
    }
    let post = request(Method::POST).body(streamed(&["order"])).unwrap();
    assert_eq!(client.oneshot(post).await.unwrap().status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(uploads.lock().unwrap().len(), 1);
}

/// The server responds before it has read the body, and reads no more of it. In linkerd2-proxy this was a panic
/// (#3216).
///
/// Shows: R5
#[tokio::test]
async fn an_early_answer_neither_hangs_nor_cuts_the_next_attempt() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (sender, body) = streaming();
    sender.send("first, ");
    let server = tokio::spawn(async move {
        let (mut refused, _) = listener.accept().await.unwrap();
        let mut head = Vec::new();
        while !head.windows(4).any(|end| end == b"\r\n\r\n") {
            assert!(refused.read_buf(&mut head).await.unwrap() > 0);
        }
        refused.write_all(b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n").await.unwrap();
        // The client ends the connection whose rest is never read. It does not wait until the request is sent.
        let mut rest = Vec::new();
        _ = refused.read_to_end(&mut rest).await;
        assert!(!rest.windows(4).any(|part| part == b"rest"));

        let (stream, _) = listener.accept().await.unwrap();
        // The rest arrives only now, long after the first attempt is over.
        sender.send("and the rest");
        drop(sender);
        let echo = hyper::service::service_fn(async |request: Request<Incoming>| {
            Ok::<_, Infallible>(Response::new(request.into_body()))
        });
        http1::Builder::new().serve_connection(TokioIo::new(stream), echo).await
    });
    let client = ServiceBuilder::new()
        .layer(ReplayLayer::new())
        .layer(RetryLayer::http().backoff(Duration::ZERO))
        .map_err(Error::Service)
        .service(Client::builder(TokioExecutor::new()).pool_max_idle_per_host(0).build_http());
    let put = Request::put(format!("http://{address}/")).body(body).unwrap();
    let response = client.oneshot(put).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "first, and the rest");
    server.await.unwrap().unwrap();
}

/// Over HTTP/2 a response does not end the request, and linkerd2-proxy panicked. Here the first stream ends before the
/// second gets the rest.
///
/// Shows: R5
#[tokio::test]
async fn an_attempt_that_is_still_being_sent_is_ended_when_the_next_one_begins() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (sender, body) = streaming();
    sender.send("first, ");
    let (ended, mut ends) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let calls = AtomicUsize::new(0);
        let answer = hyper::service::service_fn(move |request: Request<Incoming>| {
            let (number, ended) = (calls.fetch_add(1, Ordering::SeqCst), ended.clone());
            async move {
                let mut body = request.into_body();
                if number > 0 {
                    let text = body.collect().await.unwrap().to_bytes();
                    return Ok::<_, Infallible>(Response::new(Full::new(text)));
                }
                assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "first, ");
                // The response is sent, and the body is read further.
                tokio::spawn(async move { ended.send(body.frame().await.unwrap().is_err()).unwrap() });
                Ok(Response::builder().status(503).body(Full::default()).unwrap())
            }
        });
        http2::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), answer).await.unwrap();
    });
    let client = ServiceBuilder::new()
        .layer(ReplayLayer::new())
        .layer(RetryLayer::http().backoff(Duration::ZERO))
        .map_err(Error::Service)
        .service(Client::builder(TokioExecutor::new()).http2_only(true).build_http());
    let put = Request::put(format!("http://{address}/")).body(body).unwrap();
    let rest = async move {
        assert_eq!(ends.recv().await, Some(true));
        sender.send("and the rest");
    };
    let both = async { tokio::join!(client.oneshot(put), rest).0.unwrap() };
    let response = tokio::time::timeout(Duration::from_secs(60), both).await.expect("a deadlock");
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "first, and the rest");
}

/// A client that knows the last data frame sends no separate frame for the end.
#[tokio::test]
async fn a_replayed_body_says_that_it_ends_with_its_last_frame() {
    let mut body = ReplayBody::new(Full::new(Bytes::from_static(b"all")));
    assert!(body.frame().await.unwrap().is_ok());
    assert!(body.is_end_stream());
}

/// Shows: F7
#[test]
fn one_request_may_not_be_allowed_more_than_all_together() {
    let made = |layer: ReplayLayer| catch_unwind(AssertUnwindSafe(|| drop(layer.layer(()))));
    for layer in
        [ReplayLayer::new().max_bytes(10).max_total_bytes(9), ReplayLayer::new().max_total_bytes(9).max_bytes(10)]
    {
        let panic = made(layer).unwrap_err().downcast::<String>().unwrap();
        assert_eq!(*panic, "max_bytes must be at most max_total_bytes, which is 9, not 10");
    }
    // Without its own limit, a request may use the limit for all.
    assert!(made(ReplayLayer::new().max_total_bytes(9)).is_ok());
    assert!(made(ReplayLayer::new().max_bytes(usize::MAX).max_total_bytes(usize::MAX)).is_ok());
}
