//! A bare hyper server with a service in a stack, over HTTP/1 and HTTP/2.

use std::{
    convert::Infallible,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Body, Frame, Incoming},
    header::{CONTENT_LENGTH, DATE, RETRY_AFTER},
};
use hyper_util::client::legacy::{Client, connect::HttpConnector};
use tower::{Service, ServiceBuilder, service_fn, util::BoxCloneSyncService};
use ziggurat::{
    HttpStatus, Scope,
    circuit_breaker::{CircuitBreakerHandle, CircuitBreakerLayer, State},
    concurrency_limit::ConcurrencyLimitLayer,
    context::ContextLayer,
    rejection_response::RejectionResponseLayer,
    timeout::TimeoutLayer,
};

use super::{
    AnyBody, BOTH, BoxError, Door, FAR, OnDrop, Version, Watch, answer, any, get, limit, next, only, pooled, serve,
    settle, soon, streamed,
};

pub(super) type Stack = BoxCloneSyncService<Request<Incoming>, Response<AnyBody>, Infallible>;

/// Returns a server's stack that allows one call in flight to the end of its body, and opens its circuit at the first
/// failure.
pub(super) fn guarded<S>(service: S) -> (Stack, Watch, CircuitBreakerHandle)
where
    S: Service<Request<Incoming>, Response = Response<AnyBody>, Error = Infallible> + Clone + Send + Sync + 'static,
    S::Future: Send,
{
    let permits = ConcurrencyLimitLayer::new(1).max_waiting(0).until_body_end();
    let breaker = CircuitBreakerLayer::consecutive(1).classify(HttpStatus).open_for(FAR);
    let (watch, circuit) = (Watch::new(permits.handle()), breaker.handle());
    let stack = ServiceBuilder::new()
        .map_response(|response: Response<_>| response.map(any))
        .layer(ContextLayer::new(Scope::root("server")).state(watch.held_by_a_scope()))
        .layer(permits)
        .layer(breaker)
        .layer(TimeoutLayer::new(|req: &Request<_>| limit(req)))
        .service(service);
    (BoxCloneSyncService::new(stack), watch, circuit)
}

async fn ask<B>(client: &Client<HttpConnector, B>, request: Request<B>) -> Response<Bytes>
where
    B: Body<Data: Send, Error: Into<BoxError>> + Send + Unpin + 'static,
{
    let (head, body) = soon(client.request(request)).await.unwrap().into_parts();
    let body = soon(body.collect()).await.unwrap().to_bytes();
    settle().await;
    Response::from_parts(head, body)
}

fn post(to: SocketAddr, path: &str, bytes: usize) -> Request<Full<Bytes>> {
    let (mut head, _) = get(to, path).into_parts();
    head.method = Method::POST;
    Request::from_parts(head, Full::from(vec![b'x'; bytes]))
}

/// Shows: T1, L1, B3
#[tokio::test]
async fn rejections_are_answers_after_which_the_connection_is_used_again() {
    for version in BOTH {
        let door = Door::default();
        let at_door = door.clone();
        let (stack, watch, circuit) = guarded(service_fn(move |request: Request<Incoming>| {
            let door = at_door.clone();
            async move {
                let mut response = answer("hello");
                match request.uri().path() {
                    "/hangs" => std::future::pending().await,
                    "/waits" => door.pass().await,
                    "/fails" => *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR,
                    _ => {}
                }
                Ok(response)
            }
        }));
        let server = serve(stack).await;
        let (client, to) = (pooled(version), server.address);

        assert_eq!(ask(&client, get(to, "/hello")).await.body(), "hello");
        let response = ask(&client, post(to, "/hangs", 1024)).await;
        assert_eq!((response.status(), response.headers().get(RETRY_AFTER)), (StatusCode::GATEWAY_TIMEOUT, None));
        circuit.close();
        assert_eq!(ask(&client, get(to, "/fails")).await.status(), StatusCode::INTERNAL_SERVER_ERROR);
        let response = ask(&client, post(to, "/hello", 1024)).await;
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
        let seconds: u64 = response.headers()[RETRY_AFTER].to_str().unwrap().parse().unwrap();
        assert!((1..=FAR.as_secs()).contains(&seconds), "{seconds}");
        circuit.close();
        assert_eq!(ask(&client, get(to, "/hello")).await.body(), "hello");
        assert_eq!(server.accepted(), 1, "{version:?}");

        let waiting = tokio::spawn(client.request(get(to, "/waits")));
        door.entered.heard().await;
        assert_eq!(ask(&client, post(to, "/hello", 1024)).await.status(), StatusCode::SERVICE_UNAVAILABLE);
        door.leave.ring();
        assert_eq!(soon(waiting).await.unwrap().unwrap().collect().await.unwrap().to_bytes(), "hello");
        for _ in 0..3 {
            assert_eq!(ask(&client, get(to, "/hello")).await.body(), "hello");
        }
        // The call that was shed came on another connection if a connection carries only one call.
        assert_eq!(server.accepted(), if version == Version::Http1 { 2 } else { 1 });
        watch.all_back().await;
    }
}

/// A body of large frames, which counts the frames that it has yielded.
struct Large {
    left: usize,
    given: Arc<AtomicUsize>,
}

const FRAME: &[u8] = &[b'x'; 64 * 1024];

impl Body for Large {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let Some(left) = self.left.checked_sub(1) else { return Poll::Ready(None) };
        self.left = left;
        self.given.fetch_add(1, Ordering::SeqCst);
        Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(FRAME)))))
    }
}

/// If the client does not read, the server does not poll the body, and the call lasts.
///
/// Shows: L2
#[tokio::test]
async fn a_client_that_reads_slowly_holds_its_permit_to_the_last_byte() {
    const FRAMES: usize = 1024;
    for version in BOTH {
        let given = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&given);
        let (stack, watch, _) = guarded(service_fn(move |_| {
            let body = Large { left: FRAMES, given: Arc::clone(&count) };
            async { Ok(Response::new(any(body))) }
        }));
        let server = serve(stack).await;
        let client = pooled(version);
        let mut response = soon(client.request(get(server.address, "/"))).await.unwrap();
        let mut read = next(response.body_mut()).await.unwrap().unwrap().len();
        // This is more than both ends of the connection can buffer.
        assert!(given.load(Ordering::SeqCst) < FRAMES);
        assert_eq!(watch.gate.in_flight(), 1);
        assert_eq!(ask(&client, get(server.address, "/")).await.status(), StatusCode::SERVICE_UNAVAILABLE);
        while let Some(data) = next(response.body_mut()).await {
            read += data.unwrap().len();
        }
        assert_eq!((read, given.load(Ordering::SeqCst)), (FRAMES * FRAME.len(), FRAMES));
        watch.all_back().await;
    }
}

/// Shows: L2
#[tokio::test]
async fn a_client_that_hangs_up_in_the_middle_of_its_upload_gives_everything_back() {
    for version in BOTH {
        let door = Door::default();
        let at_door = door.clone();
        let (stack, watch, circuit) = guarded(service_fn(move |request: Request<Incoming>| {
            let door = at_door.clone();
            async move {
                let _left = OnDrop(door.left.clone());
                let mut upload = request.into_body();
                while let Some(Ok(_)) = upload.frame().await {
                    door.entered.ring();
                }
                Ok(answer("hello"))
            }
        }));
        let server = serve(stack).await;
        let (frames, upload) = streamed();
        let (client, request) = (pooled(version), Request::post(format!("http://{}/", server.address)).body(upload));
        let calling = tokio::spawn(client.request(request.unwrap()));
        frames.send(Ok(Bytes::from_static(b"first"))).unwrap();
        door.entered.heard().await;
        assert_eq!(watch.gate.in_flight(), 1);
        calling.abort();
        door.left.heard().await;
        watch.all_back().await;
        soon(frames.closed()).await;
        assert_eq!(circuit.state(), State::Closed);

        assert_eq!(ask(&pooled(version), get(server.address, "/")).await.body(), "hello");
        watch.all_back().await;
    }
}

/// Shows: L2
#[tokio::test]
async fn a_client_that_hangs_up_in_the_middle_of_its_download_gives_everything_back() {
    for version in BOTH {
        let (frames, body) = streamed();
        let body = only(body);
        let (stack, watch, circuit) = guarded(service_fn(move |request: Request<Incoming>| {
            let body = if request.uri().path() == "/streams" { any(body()) } else { any(Full::from("hello")) };
            async { Ok(Response::new(body)) }
        }));
        let server = serve(stack).await;
        let client = pooled(version);
        let mut response = soon(client.request(get(server.address, "/streams"))).await.unwrap();
        frames.send(Ok(Bytes::from_static(b"first"))).unwrap();
        assert_eq!(next(response.body_mut()).await.unwrap().unwrap(), "first");
        assert_eq!(watch.gate.in_flight(), 1);
        drop((response, client));
        soon(frames.closed()).await;
        watch.all_back().await;
        assert_eq!(circuit.state(), State::Closed);

        assert_eq!(ask(&pooled(version), get(server.address, "/")).await.body(), "hello");
        watch.all_back().await;
    }
}

/// Over HTTP/1 hyper drops a body that a response cannot have, and never polls it. Over HTTP/2 it trusts the service
/// and polls the body, until the client resets the stream.
///
/// Shows: L2
#[tokio::test]
async fn an_answer_without_a_body_gives_everything_back() {
    for version in BOTH {
        for (method, status) in [("HEAD", 200), ("GET", 204), ("GET", 304)] {
            let (frames, body) = streamed();
            let body = only(body);
            let (stack, watch, _) = guarded(service_fn(move |_| {
                let response = Response::builder().status(status).body(any(body())).unwrap();
                async { Ok(response) }
            }));
            let server = serve(stack).await;
            let mut request = get(server.address, "/");
            *request.method_mut() = method.parse().unwrap();
            let client = pooled(version);
            let response = soon(client.request(request)).await.unwrap();
            assert_eq!(response.status(), status);
            if version == Version::Http2 {
                drop(response);
                soon(frames.closed()).await;
            }
            watch.all_back().await;
            assert!(frames.is_closed());
        }
    }
}

#[tokio::test]
async fn a_problem_has_the_same_head_for_head_as_for_get() {
    for version in BOTH {
        let layer = ServiceBuilder::new()
            .map_response(|response: Response<Full<Bytes>>| response.map(any))
            .layer(RejectionResponseLayer::problem_json())
            .layer(TimeoutLayer::new(Duration::ZERO));
        let never =
            service_fn(|_: Request<Incoming>| std::future::pending::<Result<Response<Full<Bytes>>, Infallible>>());
        let server = serve(layer.service(never)).await;
        let client = pooled(version);
        let problem = async |method| {
            let (mut head, body) = get(server.address, "/").into_parts();
            head.method = method;
            let mut answer = ask(&client, Request::from_parts(head, body)).await;
            answer.headers_mut().remove(DATE);
            answer
        };
        let (get, head) = (problem(Method::GET).await, problem(Method::HEAD).await);
        assert_eq!(get.headers()[CONTENT_LENGTH], get.body().len().to_string());
        assert!(!get.body().is_empty() && head.body().is_empty());
        assert_eq!((get.status(), get.headers()), (head.status(), head.headers()), "{version:?}");
        assert_eq!(server.accepted(), 1);
    }
}
