//! Over real sockets: an axum router and a hyper-util client under the layers. The clock is the real one, so every
//! limit that is not meant to pass is far away, and tests synchronize by channels.

use std::{
    convert::Infallible,
    error::Error as StdError,
    fmt, io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{
    Extension, Router,
    body::Body,
    extract::{Request, State},
    http::{HeaderMap, Method, Response, StatusCode, header::RETRY_AFTER},
    routing::get,
};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use tokio::{net::TcpListener, sync::Notify};
use tower::{ServiceBuilder, ServiceExt, service_fn};
use ziggurat::{
    Error, HttpStatus, Reason, Reject, Rejection, Scope,
    cache::CacheLayer,
    circuit_breaker::CircuitBreakerLayer,
    concurrency_limit::{ConcurrencyLimitHandle, ConcurrencyLimitLayer},
    context::ContextLayer,
    retry::RetryLayer,
    timeout::TimeoutLayer,
};

use super::peers::{FAR, Frames, nobody, only, streamed};

/// Shared by the handlers below and their test.
#[derive(Default)]
struct Door {
    calls: AtomicUsize,
    entered: Notify,
    leave: Notify,
}

fn router(door: &Arc<Door>) -> Router {
    async fn flaky(State(door): State<Arc<Door>>) -> StatusCode {
        match door.calls.fetch_add(1, Ordering::SeqCst) {
            0 | 1 => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::OK,
        }
    }
    async fn second(headers: HeaderMap) -> StatusCode {
        if headers["x-attempt"] == "2" { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }
    }
    async fn waits(State(door): State<Arc<Door>>) -> &'static str {
        door.entered.notify_one();
        door.leave.notified().await;
        "waited"
    }
    Router::new()
        .route("/hello", get(|| async { "hello" }))
        .route("/scope", get(|Extension(scope): Extension<Scope>| async move { scope.name().to_owned() }))
        .route("/second", get(second))
        .route("/flaky", get(flaky))
        .route("/waits", get(waits))
        .route("/fails", get(|| async { StatusCode::INTERNAL_SERVER_ERROR }))
        .route("/hangs", get(std::future::pending::<StatusCode>))
        .with_state(Arc::clone(door))
}

/// Limits calls that hang, and no others.
fn limit<B>(request: &Request<B>) -> Duration {
    if request.uri().path() == "/hangs" { Duration::from_millis(10) } else { FAR }
}

async fn serve(router: Router) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async { axum::serve(listener, router).await.unwrap() });
    address
}

fn request(to: SocketAddr, path: &str) -> Request<Full<Bytes>> {
    Request::get(format!("http://{to}{path}")).body(Full::default()).unwrap()
}

/// Calls on a separate connection.
async fn ask(to: SocketAddr, path: &str) -> Response<Bytes> {
    let client = Client::builder(TokioExecutor::new()).build_http();
    let (head, body) = client.request(request(to, path)).await.unwrap().into_parts();
    Response::from_parts(head, body.collect().await.unwrap().to_bytes())
}

/// Shows: T1
#[tokio::test]
async fn a_router_answers_504_where_a_handler_hangs() {
    let router = router(&Arc::default()).layer(TimeoutLayer::new(|req: &Request<_>| limit(req)));
    let address = serve(router).await;
    assert_eq!(ask(address, "/hangs").await.status(), StatusCode::GATEWAY_TIMEOUT);
    assert_eq!(ask(address, "/hello").await.body(), "hello");
}

/// A limit of one until the end of the body, over a router that streams the sender's frames.
async fn streaming() -> (SocketAddr, ConcurrencyLimitHandle, Frames) {
    let (sender, body) = streamed();
    let body = only(Body::new(body));
    let layer = ConcurrencyLimitLayer::new(1).max_waiting(0).until_body_end();
    let gate = layer.handle();
    let router = Router::new()
        .route("/streams", get(move || async move { body() }))
        .route("/hello", get(|| async { "hello" }))
        .layer(layer);
    (serve(router).await, gate, sender)
}

/// tower's and tower-http's limits release the permit at the headers, while the body still streams (tower-http PR
/// #447).
///
/// Shows: L2
#[tokio::test]
async fn a_permit_can_be_held_until_the_body_has_streamed() {
    let (address, gate, sender) = streaming().await;
    let client = Client::builder(TokioExecutor::new()).build_http();
    let mut response = client.request(request(address, "/streams")).await.unwrap();
    sender.send(Ok(Bytes::from_static(b"first"))).unwrap();
    assert_eq!(response.frame().await.unwrap().unwrap().into_data().unwrap(), "first");
    assert_eq!(gate.in_flight(), 1);
    assert_eq!(ask(address, "/hello").await.status(), StatusCode::SERVICE_UNAVAILABLE);
    drop(sender);
    assert!(response.frame().await.is_none());
    assert_eq!(gate.in_flight(), 0);
    assert_eq!(ask(address, "/hello").await.body(), "hello");
    assert_eq!(gate.in_flight(), 0);
}

/// Shows: L2
#[tokio::test]
async fn a_client_that_hangs_up_in_the_middle_of_a_body_gives_the_permit_back() {
    let (address, gate, sender) = streaming().await;
    let client = Client::builder(TokioExecutor::new()).build_http();
    let mut response = client.request(request(address, "/streams")).await.unwrap();
    sender.send(Ok(Bytes::from_static(b"first"))).unwrap();
    assert!(response.frame().await.unwrap().is_ok());
    assert_eq!(gate.in_flight(), 1);
    drop((response, client));
    sender.closed().await;
    assert_eq!(gate.in_flight(), 0);
}

/// axum clones a route's service for every request, and hyper a router for every connection.
///
/// Shows: L1
#[tokio::test]
async fn a_router_answers_503_where_its_limit_is_reached_on_any_route_and_connection() {
    let door = Arc::<Door>::default();
    let layer = ConcurrencyLimitLayer::new(1).max_waiting(0);
    let gate = layer.handle();
    let address = serve(router(&door).layer(layer)).await;

    let waiting = tokio::spawn(async move { ask(address, "/waits").await });
    door.entered.notified().await;
    assert_eq!(gate.in_flight(), 1);
    assert_eq!(ask(address, "/hello").await.status(), StatusCode::SERVICE_UNAVAILABLE);
    door.leave.notify_one();
    assert_eq!(waiting.await.unwrap().body(), "waited");
    assert_eq!(ask(address, "/hello").await.body(), "hello");
    assert_eq!(gate.in_flight(), 0);
}

/// Shows: B3
#[tokio::test]
async fn a_router_whose_circuit_is_open_answers_503_and_when_to_come_back() {
    let layer = CircuitBreakerLayer::consecutive(1).classify(HttpStatus).open_for(FAR);
    let address = serve(router(&Arc::default()).layer(layer)).await;
    assert_eq!(ask(address, "/fails").await.status(), StatusCode::INTERNAL_SERVER_ERROR);
    let rejected = ask(address, "/hello").await;
    assert_eq!(rejected.status(), StatusCode::SERVICE_UNAVAILABLE);
    let seconds: u64 = rejected.headers()[RETRY_AFTER].to_str().unwrap().parse().unwrap();
    assert!((1..=FAR.as_secs()).contains(&seconds), "{seconds}");
}

/// An axum request is not `Clone`. Without a body it can be rebuilt, with everything that the outer layers put into it.
fn copy_get(request: &Request) -> Option<Request> {
    let mut copy = Request::new(Body::empty());
    *copy.uri_mut() = request.uri().clone();
    *copy.headers_mut() = request.headers().clone();
    *copy.extensions_mut() = request.extensions().clone();
    (request.method() == Method::GET).then_some(copy)
}

/// An axum response is not `Clone`, but a collected one is.
async fn collect(response: Response<Body>) -> Result<Response<Full<Bytes>>, Infallible> {
    let (head, body) = response.into_parts();
    Ok(Response::from_parts(head, Full::new(body.collect().await.unwrap().to_bytes())))
}

/// Shows: C1, R5, T4, X8
#[tokio::test]
async fn a_router_takes_every_layer_without_a_handle_error_layer() {
    let door = Arc::<Door>::default();
    let layers = ServiceBuilder::new()
        .layer(ContextLayer::new(Scope::root("app")).named("of this request"))
        .layer(CacheLayer::new(100, FAR, |req: &Request| Some(req.uri().path().to_owned())).classify(HttpStatus))
        .layer(TimeoutLayer::new(|req: &Request| limit(req)))
        .layer(RetryLayer::http().copy(copy_get).backoff(Duration::ZERO))
        .layer(CircuitBreakerLayer::http())
        .layer(ConcurrencyLimitLayer::new(16))
        .layer(TimeoutLayer::new(FAR))
        .and_then(collect);
    let address = serve(router(&door).layer(layers)).await;

    assert_eq!(ask(address, "/scope").await.body(), "of this request");
    assert_eq!(ask(address, "/hangs").await.status(), StatusCode::GATEWAY_TIMEOUT);
    // Two failures are retried, and the third response is cached.
    for _ in 0..2 {
        assert_eq!(ask(address, "/flaky").await.status(), StatusCode::OK);
        assert_eq!(door.calls.load(Ordering::SeqCst), 3);
    }
}

/// The rejection is in the response, so outer layers can distinguish it from a response of the service.
#[tokio::test]
async fn what_stands_outside_recognises_a_rejection_in_a_response() {
    let layers = ServiceBuilder::new()
        .map_response(|mut response: Response<Body>| {
            let reason = response.extensions().get().map(Rejection::to_string).unwrap_or_default();
            response.headers_mut().insert("x-rejected", reason.parse().unwrap());
            response
        })
        .layer(TimeoutLayer::new(|req: &Request| limit(req)).named("total"));
    let address = serve(router(&Arc::default()).layer(layers)).await;
    assert_eq!(ask(address, "/hangs").await.headers()["x-rejected"], "timeout `total`: no response within 10ms");
    assert_eq!(ask(address, "/hello").await.headers()["x-rejected"], "");
}

/// A client whose responses are `Clone`, and which reports the number of its attempt.
async fn send(mut request: Request<Full<Bytes>>) -> io::Result<Response<Full<Bytes>>> {
    request.headers_mut().insert("x-attempt", ziggurat::attempt().into());
    let client = Client::builder(TokioExecutor::new()).build_http();
    let (head, body) = client.request(request).await.map_err(io::Error::other)?.into_parts();
    let body = body.collect().await.map_err(io::Error::other)?;
    Ok(Response::from_parts(head, Full::new(body.to_bytes())))
}

/// The whole recommended stack. It is not boxed, because a box would hide from `tokio::spawn` what the tests check.
macro_rules! stack {
    ($client:expr) => {
        ServiceBuilder::new()
            .layer(ContextLayer::new(Scope::root("app")))
            .layer(CacheLayer::new(100, FAR, |req: &Request<_>| Some(req.uri().clone())).classify(HttpStatus))
            .layer(TimeoutLayer::new(|req: &Request<_>| limit(req)))
            .layer(RetryLayer::http().backoff(Duration::ZERO))
            .layer(CircuitBreakerLayer::http())
            .layer(ConcurrencyLimitLayer::new(16))
            .layer(TimeoutLayer::new(FAR))
            .service($client)
    };
}

/// Calls from inside `tokio::spawn`, where a bound that holds for a single lifetime is "not general enough".
macro_rules! spawned {
    ($client:expr, $request:expr) => {{
        let (client, request) = ($client.clone(), $request);
        tokio::spawn(async move { client.oneshot(request).await }).await.unwrap()
    }};
}

/// Shows: C1, R5, R6, T4
#[tokio::test]
async fn a_client_takes_every_layer_behind_one_map_err() {
    let door = Arc::<Door>::default();
    let address = serve(router(&door)).await;
    let client = stack!(ServiceBuilder::new().map_err(Error::Service).service_fn(send));

    for _ in 0..2 {
        assert_eq!(spawned!(client, request(address, "/flaky")).unwrap().status(), StatusCode::OK);
        assert_eq!(door.calls.load(Ordering::SeqCst), 3);
    }
    // The innermost service sees the number of its attempt.
    assert_eq!(spawned!(client, request(address, "/second")).unwrap().status(), StatusCode::OK);
    let outcome = spawned!(client, request(address, "/hangs"));
    assert!(ziggurat::rejection(&outcome).unwrap().is_timed_out());

    let outcome = spawned!(client, request(nobody().await, "/"));
    assert!(matches!(outcome, Err(Error::Service(_))), "{outcome:?}");
}

#[tokio::test]
async fn a_client_takes_every_layer_with_a_boxed_error() {
    let address = serve(router(&Arc::default())).await;
    let client = stack!(ServiceBuilder::new().map_err(ziggurat::boxed).service_fn(send));

    assert_eq!(spawned!(client, request(address, "/hello")).unwrap().status(), StatusCode::OK);
    let outcome = spawned!(client, request(address, "/hangs"));
    assert!(ziggurat::rejection(&outcome).unwrap().is_timed_out());
    let outcome = spawned!(client, request(nobody().await, "/"));
    assert!(outcome.is_err() && ziggurat::rejection(&outcome).is_none());
}

/// A client whose error is boxed already needs no `map_err` at all.
#[tokio::test]
async fn a_client_whose_error_is_boxed_takes_every_layer_as_it_is() {
    async fn send_boxed(
        request: Request<Full<Bytes>>,
    ) -> Result<Response<Full<Bytes>>, Box<dyn StdError + Send + Sync>> {
        Ok(send(request).await?)
    }
    let address = serve(router(&Arc::default())).await;
    let client = stack!(service_fn(send_boxed));

    assert_eq!(spawned!(client, request(address, "/hello")).unwrap().status(), StatusCode::OK);
    let outcome = spawned!(client, request(address, "/hangs"));
    assert!(ziggurat::rejection(&outcome).unwrap().is_timed_out());
}

/// A custom error type that carries rejections.
#[derive(Debug)]
enum ShopError {
    Closed(Rejection),
    Network(io::Error),
}

impl fmt::Display for ShopError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Closed(rejection) => write!(f, "{rejection}"),
            Self::Network(error) => write!(f, "{error}"),
        }
    }
}

impl StdError for ShopError {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        match self {
            Self::Closed(rejection) => Some(rejection),
            Self::Network(error) => error.source(),
        }
    }
}

impl<R> Reject<R> for ShopError {
    fn reject(rejection: Rejection) -> Result<R, Self> {
        Err(Self::Closed(rejection))
    }

    fn rejection(outcome: &Result<R, Self>) -> Option<&Rejection> {
        match outcome {
            Err(Self::Closed(rejection)) => Some(rejection),
            _ => None,
        }
    }
}

#[tokio::test]
async fn a_client_takes_every_layer_with_a_users_own_error() {
    let address = serve(router(&Arc::default())).await;
    let client = stack!(ServiceBuilder::new().map_err(ShopError::Network).service_fn(send));

    assert_eq!(spawned!(client, request(address, "/hello")).unwrap().status(), StatusCode::OK);
    let outcome = spawned!(client, request(address, "/hangs"));
    let Err(ShopError::Closed(rejection)) = &outcome else { panic!("{outcome:?}") };
    assert_eq!(rejection.reason(), &Reason::TimedOut { limit: Duration::from_millis(10) });
    assert!(Rejection::find(&outcome.unwrap_err()).is_some());
    let outcome = spawned!(client, request(nobody().await, "/"));
    assert!(matches!(outcome, Err(ShopError::Network(_))), "{outcome:?}");
}
