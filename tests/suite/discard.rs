//! A retry drains the response of a failed attempt: on a paused clock, and over real sockets.

use std::{
    convert::Infallible,
    net::SocketAddr,
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
use http_body::{Body, Frame, SizeHint};
use http_body_util::{BodyExt, Full};
use hyper::{body::Incoming, server::conn::http1};
use hyper_util::{
    client::legacy::Client,
    rt::{TokioExecutor, TokioIo},
};
use tokio::{
    net::TcpListener,
    sync::mpsc::{self, UnboundedReceiver, UnboundedSender},
    task::unconstrained,
    time::{Instant, sleep},
};
use tower::{ServiceBuilder, ServiceExt};
use ziggurat::{
    Error,
    retry::{Discard, Drained, Dropped, RetryLayer},
    testing::TestTask,
    timeout::TimeoutLayer,
};

const MILLISECOND: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

/// A body whose frames come from a channel. It ends with the sender.
struct Streamed {
    frames: UnboundedReceiver<Bytes>,
    size: SizeHint,
}

impl Body for Streamed {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.frames.poll_recv(cx).map(|data| data.map(|data| Ok(Frame::data(data))))
    }

    fn size_hint(&self) -> SizeHint {
        self.size
    }
}

fn streamed() -> (UnboundedSender<Bytes>, Streamed) {
    let (sender, frames) = mpsc::unbounded_channel();
    (sender, Streamed { frames, size: SizeHint::new() })
}

/// Fails once, with this body, and then succeeds. Returns the time between the two attempts.
async fn second_attempt(pause: Duration, limit: Duration, body: Streamed) -> Duration {
    let bodies = Arc::new(Mutex::new(vec![streamed().1, body]));
    let service = ServiceBuilder::new()
        .layer(TimeoutLayer::new(limit))
        .layer(RetryLayer::http().backoff(pause))
        .service_fn(move |_: Request<String>| {
            let status = [StatusCode::SERVICE_UNAVAILABLE, StatusCode::OK][ziggurat::attempt() as usize - 1];
            let response = Response::builder().status(status).body(bodies.lock().unwrap().pop().unwrap());
            std::future::ready(Ok::<_, Error<String>>(response.unwrap()))
        });
    let start = Instant::now();
    let response = service.oneshot(Request::get("/").body(String::new()).unwrap()).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    start.elapsed()
}

/// Sends a byte at regular intervals until it is dropped, and returns the time of the drop.
async fn trickle(sender: UnboundedSender<Bytes>) -> Duration {
    let start = Instant::now();
    while sender.send(Bytes::from_static(b"x")).is_ok() {
        tokio::select! {
            () = sleep(7 * MILLISECOND) => {}
            () = sender.closed() => {}
        }
    }
    start.elapsed()
}

/// Shows: R2
#[tokio::test(start_paused = true)]
async fn a_body_that_never_ends_holds_up_the_retry_by_100_milliseconds_at_most() {
    for (pause, limit, retried, dropped) in [
        (Duration::ZERO, 60 * SECOND, 100, 100),
        (30 * MILLISECOND, 60 * SECOND, 100, 100),
        (500 * MILLISECOND, 60 * SECOND, 500, 500),
        // It is not kept, with the resources that it holds, for as long as `Retry-After` asks.
        (30 * SECOND, 60 * SECOND, 30_000, 1000),
        // A tenth of the remaining time.
        (Duration::ZERO, 500 * MILLISECOND, 50, 50),
        (60 * MILLISECOND, 500 * MILLISECOND, 60, 60),
    ] {
        let (sender, body) = streamed();
        let times = tokio::join!(second_attempt(pause, limit, body), trickle(sender));
        assert_eq!(times, (retried * MILLISECOND, dropped * MILLISECOND), "{pause:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_retry_begins_when_the_pause_is_over_and_the_body_has_ended() {
    for (pause, ends, retried) in [(0, 40, 40), (20, 40, 40), (40, 20, 40), (300, 20, 300)] {
        let (sender, body) = streamed();
        let end = async {
            sender.send(Bytes::from_static(b"busy")).unwrap();
            sleep(ends * MILLISECOND).await;
            drop(sender);
        };
        let (retried_after, ()) = tokio::join!(second_attempt(pause * MILLISECOND, 60 * SECOND, body), end);
        assert_eq!(retried_after, retried * MILLISECOND, "{pause} {ends}");
    }
}

/// Returns whether a body is still held after its available frames were read.
async fn is_read_on(frames: impl IntoIterator<Item = usize>, size: Option<u64>) -> bool {
    let (sender, mut body) = streamed();
    body.size = size.map_or(SizeHint::new(), SizeHint::with_exact);
    for bytes in frames {
        sender.send(vec![7; bytes].into()).unwrap();
    }
    // Otherwise the channel would yield to other tasks first.
    let mut call = TestTask::new(unconstrained(second_attempt(10 * SECOND, 60 * SECOND, body)));
    assert!(call.poll().is_pending());
    !sender.is_closed()
}

#[tokio::test(start_paused = true)]
async fn a_body_that_is_too_large_is_dropped() {
    const MOST: usize = 64 * 1024;
    assert!(is_read_on([MOST], None).await);
    assert!(!is_read_on([MOST, 1], None).await);
    assert!(is_read_on([], Some(MOST as u64)).await);
    assert!(!is_read_on([], Some(MOST as u64 + 1)).await);
    // Without data it would continue forever.
    assert!(is_read_on([0; MOST / 64], None).await);
    assert!(!is_read_on([0; MOST / 64 + 1], None).await);
}

#[tokio::test(start_paused = true)]
async fn it_is_dropped_with_the_call() {
    let (sender, body) = streamed();
    let mut call = TestTask::new(second_attempt(10 * SECOND, 60 * SECOND, body));
    assert!(call.poll().is_pending());
    assert!(!sender.is_closed());
    drop(call);
    assert!(sender.is_closed());
}

/// Shows: R1
#[tokio::test(start_paused = true)]
async fn the_last_response_comes_back_with_its_body() {
    let service = ServiceBuilder::new().layer(RetryLayer::http()).service_fn(|_: Request<String>| async {
        let body = format!("busy {}", ziggurat::attempt());
        Ok::<_, Infallible>(Response::builder().status(503).body(body).unwrap())
    });
    let response = service.oneshot(Request::get("/").body(String::new()).unwrap()).await.unwrap();
    assert_eq!(response.into_body(), "busy 3");
}

/// Responds with 503 and a body larger than one read of the connection, and then with 200. Returns the number of
/// connections used.
async fn connections(discard: impl Discard<Response<Incoming>> + Clone) -> usize {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address: SocketAddr = listener.local_addr().unwrap();
    let (accepts, calls) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let accepted = Arc::clone(&accepts);
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            accepted.fetch_add(1, Ordering::SeqCst);
            let calls = Arc::clone(&calls);
            let answer = hyper::service::service_fn(move |_: Request<Incoming>| {
                let (status, bytes) =
                    if calls.fetch_add(1, Ordering::SeqCst) == 0 { (503, 60 * 1024) } else { (200, 2) };
                let response = Response::builder().status(status).body(Full::new(Bytes::from(vec![b'x'; bytes])));
                std::future::ready(Ok::<_, Infallible>(response.unwrap()))
            });
            tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), answer));
        }
    });
    let service = ServiceBuilder::new()
        .layer(RetryLayer::http().backoff(PAUSE).discard(discard))
        .map_err(Error::Service)
        .service(Client::builder(TokioExecutor::new()).build_http());
    let request = Request::get(format!("http://{address}/")).body(Full::<Bytes>::default()).unwrap();
    let response = service.oneshot(request).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "xx");
    accepts.load(Ordering::SeqCst)
}

/// Time for the client to return the connection to its pool, which it does in a separate task.
const PAUSE: Duration = Duration::from_millis(500);

/// Shows: R5
#[tokio::test]
async fn a_connection_is_used_again_because_the_response_was_drained() {
    assert_eq!(connections(Drained).await, 1);
}

#[tokio::test]
async fn a_connection_whose_response_was_dropped_is_not() {
    assert_eq!(connections(Dropped).await, 2);
}
