//! Request ids: in memory, and over real sockets from one server to the next. The sockets use the real clock, so every
//! limit that is not meant to pass is far away.

use std::{
    convert::Infallible,
    future::pending,
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    extract::{FromRequestParts, State},
    http::HeaderMap,
    routing::get,
};
use bytes::Bytes;
use http::{HeaderName, HeaderValue, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::{
    client::legacy::{self, Client},
    rt::TokioExecutor,
};
use tokio::{net::TcpListener, sync::Notify};
use tower::{Layer, ServiceBuilder, ServiceExt, service_fn, util::BoxCloneSyncService};
use ziggurat::{
    Deadline, Error, Scope,
    concurrency_limit::ConcurrencyLimitLayer,
    context::{ContextLayer, ScopeBody},
    headers::{RequestIds, TimeoutHeader},
    propagate::PropagateLayer,
    request_id::RequestIdLayer,
    retry::RetryLayer,
    testing::{Strict, TestTask},
    timeout::TimeoutLayer,
};

/// A limit that no test reaches.
const FAR: Duration = Duration::from_secs(3600);

const ID: &str = "x-request-id";
const TRACE_ID: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const TRACE: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

fn request(headers: &[(&'static str, &[u8])]) -> Request<String> {
    let mut request = Request::get("/").body(String::new()).unwrap();
    for (name, value) in headers {
        request.headers_mut().append(*name, HeaderValue::from_bytes(value).unwrap());
    }
    request
}

fn is_random(id: &HeaderValue) -> bool {
    id.len() == 32 && id.as_bytes().iter().all(u8::is_ascii_hexdigit)
}

/// Returns the id that a handler finds, which is the same wherever it looks.
fn found<B>(request: &Request<B>) -> String {
    let here = request.extensions().get::<RequestIds>().unwrap();
    let scope = Scope::current().unwrap();
    assert_eq!(*scope.require::<RequestIds>().unwrap(), *here);
    assert_eq!(request.headers().get_all(ID).iter().collect::<Vec<_>>(), [here.request_id().as_str()]);
    here.request_id().to_string()
}

#[tokio::test]
async fn an_id_that_can_be_taken_over_is_kept_and_any_other_replaced_and_sent_back() {
    let service = ServiceBuilder::new()
        .layer(ContextLayer::new(Scope::root("app")))
        .layer(RequestIdLayer::new())
        .service(Strict::new(service_fn(|req: Request<String>| async move {
            Ok::<_, Infallible>(Response::new(found(&req)))
        })));
    let answer = async |headers: &[(&'static str, &[u8])]| {
        let (head, body) = service.clone().oneshot(request(headers)).await.unwrap().into_parts();
        let [id] = head.headers.get_all(ID).iter().collect::<Vec<_>>()[..] else { panic!("{head:?}") };
        assert_eq!(body.collect().await.unwrap().to_bytes(), id.as_bytes());
        id.clone()
    };
    assert_eq!(answer(&[(ID, b"order-17")]).await, "order-17");
    assert_eq!(answer(&[(ID, b"order-17"), (ID, b"order-18")]).await, "order-17");
    for malformed in [b"".as_slice(), b"two words", b"caf\xc3\xa9", b"\xff\xfe", &[b'x'; 129]] {
        assert!(is_random(&answer(&[(ID, malformed)]).await), "{malformed:?}");
    }
    assert!(is_random(&answer(&[]).await));
    assert_ne!(answer(&[]).await, answer(&[]).await);
}

/// Shows: X6
#[tokio::test]
async fn a_valid_traceparent_is_taken_over_with_its_tracestate() {
    let service = RequestIdLayer::new().layer(service_fn(|req: Request<String>| async move {
        let ids = req.extensions().get::<RequestIds>().unwrap().clone();
        // The headers are unchanged, for a tracing library further in.
        let came = req.headers().get("traceparent").cloned();
        let mut response = Response::new(());
        response.extensions_mut().insert((ids, came));
        Ok::<_, Infallible>(response)
    }));
    let read = async |traceparent: &'static [u8]| {
        let request = request(&[("traceparent", traceparent), ("tracestate", b"congo=t61")]);
        let response = service.clone().oneshot(request).await.unwrap();
        let (ids, came) = response.extensions().get::<(RequestIds, Option<HeaderValue>)>().unwrap().clone();
        assert_eq!(came.unwrap().as_bytes(), traceparent);
        ids.trace().cloned()
    };
    let trace = read(TRACE.as_bytes()).await.unwrap();
    assert_eq!((trace.trace_id(), trace.header().to_str().unwrap()), (TRACE_ID, TRACE));
    assert_eq!(trace.state().unwrap(), "congo=t61");
    for malformed in [b"".as_slice(), b"junk", &TRACE.as_bytes()[1..], &[0xff; 55]] {
        assert_eq!(read(malformed).await, None);
    }
}

#[tokio::test]
async fn the_header_can_have_another_name() {
    let name = HeaderName::from_static("x-correlation-id");
    let service = RequestIdLayer::new().header(name).layer(service_fn(|req: Request<String>| async move {
        assert_eq!(req.headers()["x-correlation-id"], "c1");
        Ok::<_, Infallible>(Response::new(()))
    }));
    let response = service.oneshot(request(&[("x-correlation-id", b"c1"), (ID, b"other")])).await.unwrap();
    assert_eq!(response.headers()["x-correlation-id"], "c1");
    assert_eq!(response.headers().get(ID), None);
}

/// For example, the id of another service behind this one.
#[tokio::test]
async fn an_id_that_the_service_sends_stays() {
    let service = RequestIdLayer::new().layer(service_fn(|_: Request<String>| async {
        Ok::<_, Infallible>(Response::builder().header(ID, "own").body(()).unwrap())
    }));
    let response = service.oneshot(request(&[(ID, b"order-17")])).await.unwrap();
    assert_eq!(response.headers().get_all(ID).iter().collect::<Vec<_>>(), ["own"]);
}

#[tokio::test]
async fn an_error_passes_unchanged() {
    let service =
        RequestIdLayer::new().layer(service_fn(|_: Request<String>| async { Err::<Response<()>, _>("service's own") }));
    assert_eq!(service.oneshot(request(&[])).await.unwrap_err(), "service's own");
}

#[tokio::test(start_paused = true)]
async fn a_rejection_carries_the_id() {
    let service = ServiceBuilder::new()
        .layer(ContextLayer::new(Scope::root("app")))
        .layer(RequestIdLayer::new())
        .layer(TimeoutLayer::new(FAR))
        .service(service_fn(|_: Request<String>| pending::<Result<Response<String>, Infallible>>()));
    let response = service.oneshot(request(&[(ID, b"order-17")])).await.unwrap();
    assert_eq!(
        (response.status(), &response.headers()[ID]),
        (StatusCode::GATEWAY_TIMEOUT, &"order-17".parse().unwrap())
    );
}

/// A scope that surrounds many requests must not claim to be one of them.
///
/// Shows: X7
#[tokio::test]
async fn only_the_scope_of_the_request_itself_knows_its_identity() {
    let app = Scope::root("app");
    let without_context = RequestIdLayer::new()
        .layer(service_fn(|_: Request<String>| async { Ok::<_, Infallible>(Response::new(String::new())) }));
    app.within(without_context.clone().oneshot(request(&[]))).await.unwrap();
    assert_eq!(app.get::<RequestIds>(), None);

    let service = ServiceBuilder::new().layer(ContextLayer::new(app.clone())).layer(RequestIdLayer::new()).service(
        service_fn(|req: Request<String>| async move {
            let before = found(&req);
            for _ in 0..10 {
                tokio::task::yield_now().await;
                assert_eq!(found(&req), before);
            }
            Ok::<_, Infallible>(Response::new(before))
        }),
    );
    let (first, second) = tokio::join!(
        service.clone().oneshot(request(&[(ID, b"first")])),
        service.oneshot(request(&[(ID, b"second")])),
    );
    assert_eq!(
        (&first.unwrap().headers()[ID], &second.unwrap().headers()[ID]),
        (&"first".parse().unwrap(), &"second".parse().unwrap())
    );
    assert_eq!(app.get::<RequestIds>(), None);
}

#[tokio::test]
async fn of_two_such_layers_the_outer_one_decides() {
    let service = ServiceBuilder::new()
        .layer(ContextLayer::new(Scope::root("app")))
        .layer(RequestIdLayer::new())
        .layer(RequestIdLayer::new().header(HeaderName::from_static("x-other-id")))
        .service(service_fn(|req: Request<String>| async move { Ok::<_, Infallible>(Response::new(found(&req))) }));
    let response = service.oneshot(request(&[(ID, b"order-17"), ("x-other-id", b"other")])).await.unwrap();
    assert_eq!(response.headers()[ID], "order-17");
    assert_eq!(response.headers().get("x-other-id"), None);
}

#[test]
fn the_call_is_gone_before_its_answer_is_handed_out() {
    /// Holds a value until it is dropped, also after it has responded.
    struct Holds(#[expect(dead_code, reason = "kept for its drop")] Arc<()>);
    impl Future for Holds {
        type Output = Result<Response<()>, Infallible>;
        fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Self::Output> {
            Poll::Ready(Ok(Response::new(())))
        }
    }
    let held = Arc::new(());
    let holding = Arc::clone(&held);
    let mut service = RequestIdLayer::new().layer(service_fn(move |_: Request<String>| Holds(Arc::clone(&holding))));
    let mut call = TestTask::new(tower::Service::call(&mut service, request(&[])));
    assert_eq!(Arc::strong_count(&held), 3);
    assert!(call.poll().is_ready());
    assert_eq!(Arc::strong_count(&held), 2);
}

/// The observations of the servers and the client of a test.
#[derive(Default)]
struct Seen {
    /// The remaining time in the first server's handler, before it called.
    left: Mutex<Option<Duration>>,
    /// For each attempt: the scope that it runs in, the scope of the handler, and its number.
    attempts: Mutex<Vec<(u64, Option<u64>, u32)>>,
    /// The headers of each request at the second server.
    arrived: Mutex<Vec<HeaderMap>>,
    entered: Notify,
    leave: Notify,
}

type Upstream = BoxCloneSyncService<Request<Full<Bytes>>, Response<ScopeBody<Incoming>>, Error<legacy::Error>>;

#[derive(Clone)]
struct App {
    seen: Arc<Seen>,
    upstream: Upstream,
    second: SocketAddr,
}

/// The client of a handler, with the complete order of layers.
fn upstream(app: Scope, seen: Arc<Seen>) -> Upstream {
    let client = Client::builder(TokioExecutor::new()).build_http();
    let client = ServiceBuilder::new()
        .layer(ContextLayer::new(app).named("call"))
        .layer(RetryLayer::http().backoff(Duration::ZERO))
        .map_request(move |req: Request<Full<Bytes>>| {
            let scope = req.extensions().get::<Scope>().unwrap();
            assert_eq!(scope.id(), Scope::current().unwrap().id());
            let of_handler = scope.parent().map(Scope::id);
            seen.attempts.lock().unwrap().push((scope.id(), of_handler, ziggurat::attempt()));
            req
        })
        .layer(PropagateLayer::new().deadline(TimeoutHeader::grpc()))
        .map_err(Error::Service)
        .service(client);
    BoxCloneSyncService::new(client)
}

/// Calls the second server, and responds with its status and the id that it returned.
async fn relays(State(app): State<App>, scope: Scope, ids: RequestIds) -> String {
    assert_eq!(scope.id(), Scope::current().unwrap().id());
    assert_eq!(*scope.require::<RequestIds>().unwrap(), ids);
    *app.seen.left.lock().unwrap() = Deadline::current().map(|deadline| deadline.remaining());
    let request = Request::get(format!("http://{}/", app.second)).body(Full::default()).unwrap();
    let response = app.upstream.oneshot(request).await.unwrap();
    format!("{} {} in {}", response.status().as_u16(), response.headers()[ID].to_str().unwrap(), scope.id())
}

async fn waits(State(app): State<App>) {
    app.seen.entered.notify_one();
    app.seen.leave.notified().await;
}

/// Fails the first of two attempts.
async fn arrives(State(seen): State<Arc<Seen>>, headers: HeaderMap, ids: RequestIds) -> StatusCode {
    assert_eq!(headers[ID], ids.request_id().as_str());
    let mut arrived = seen.arrived.lock().unwrap();
    arrived.push(headers);
    if arrived.len() % 2 == 1 { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK }
}

async fn serve(router: Router) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async { axum::serve(listener, router).await.unwrap() });
    address
}

/// Two servers, the first of which calls the second.
async fn servers() -> (SocketAddr, Arc<Seen>) {
    let seen = Arc::<Seen>::default();
    let second = Router::new().route("/", get(arrives)).with_state(Arc::clone(&seen)).layer(RequestIdLayer::new());
    let second = serve(second).await;
    let scope = Scope::root("first");
    let layers = ServiceBuilder::new()
        .layer(ContextLayer::new(scope.clone()))
        .layer(RequestIdLayer::new())
        .layer(TimeoutLayer::new(TimeoutHeader::grpc().at_most(FAR)))
        .layer(ConcurrencyLimitLayer::new(1).max_waiting(0));
    let app = App { seen: Arc::clone(&seen), upstream: upstream(scope, Arc::clone(&seen)), second };
    let first = Router::new()
        .route("/", get(relays))
        .route("/hangs", get(pending::<()>))
        .route("/waits", get(waits))
        .with_state(app)
        .layer(layers);
    (serve(first).await, seen)
}

/// Calls on a separate connection.
async fn ask(to: SocketAddr, path: &str, headers: &[(&'static str, &[u8])]) -> Response<Bytes> {
    let mut request = request(headers).map(|_| Full::<Bytes>::default());
    *request.uri_mut() = format!("http://{to}{path}").parse().unwrap();
    let client = Client::builder(TokioExecutor::new()).build_http();
    let (head, body) = client.request(request).await.unwrap().into_parts();
    Response::from_parts(head, body.collect().await.unwrap().to_bytes())
}

/// Shows: X6, X8
#[tokio::test]
async fn scope_identity_and_deadline_reach_the_second_server_at_each_attempt() {
    let (first, seen) = servers().await;
    let sent: &[(&str, &[u8])] =
        &[(ID, b"order-17"), ("traceparent", TRACE.as_bytes()), ("tracestate", b"congo=t61"), ("grpc-timeout", b"20M")];
    let response = ask(first, "/", sent).await;
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(response.headers()[ID], "order-17");

    // One scope for both attempts, nested in the request's scope, and each attempt sees its number.
    let attempts = seen.attempts.lock().unwrap().clone();
    let [(scope, Some(handler), 1), (again, Some(handler_again), 2)] = attempts[..] else { panic!("{attempts:?}") };
    assert_eq!((scope, handler), (again, handler_again));
    assert_eq!(response.body(), &format!("200 order-17 in {handler}"));

    let left = seen.left.lock().unwrap().unwrap();
    assert!(left <= Duration::from_secs(20 * 60), "{left:?}");
    let arrived = seen.arrived.lock().unwrap().clone();
    assert_eq!(arrived.len(), 2);
    let mut before = left;
    for headers in arrived {
        assert_eq!(headers[ID], "order-17");
        assert_eq!(headers["traceparent"], TRACE);
        assert_eq!(headers["tracestate"], "congo=t61");
        let left = TimeoutHeader::grpc().read(&headers).unwrap();
        assert!(left > Duration::ZERO && left <= before, "{left:?} of {before:?}");
        before = left;
    }
}

#[tokio::test]
async fn a_504_and_a_503_carry_the_id_too() {
    let (first, seen) = servers().await;
    let response = ask(first, "/hangs", &[(ID, b"order-17"), ("grpc-timeout", b"1m")]).await;
    assert_eq!(
        (response.status(), response.headers()[ID].as_bytes()),
        (StatusCode::GATEWAY_TIMEOUT, b"order-17".as_slice())
    );

    let waiting = tokio::spawn(async move { ask(first, "/waits", &[(ID, b"order-18")]).await });
    seen.entered.notified().await;
    let response = ask(first, "/waits", &[(ID, b"order-19")]).await;
    assert_eq!(
        (response.status(), response.headers()[ID].as_bytes()),
        (StatusCode::SERVICE_UNAVAILABLE, b"order-19".as_slice())
    );
    let response = ask(first, "/waits", &[]).await;
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(is_random(&response.headers()[ID]));
    seen.leave.notify_one();
    assert_eq!(waiting.await.unwrap().headers()[ID], "order-18");
}

#[tokio::test]
async fn malformed_headers_are_ignored_and_the_request_is_served() {
    let (first, seen) = servers().await;
    for (id, timeout, trace) in [
        (b"caf\xc3\xa9".as_slice(), b"123456789H".as_slice(), &TRACE.as_bytes()[..54]),
        (b"two words", b"-1S", b"00-\xff"),
        (&[b'x'; 129], b"\xff\xff", b"00-00000000000000000000000000000000-00f067aa0ba902b7-01"),
        (b"", b"", b""),
    ] {
        let response = ask(first, "/", &[(ID, id), ("grpc-timeout", timeout), ("traceparent", trace)]).await;
        assert_eq!(response.status(), StatusCode::OK);
        let new = &response.headers()[ID];
        assert!(is_random(new), "{new:?}");
        let arrived = std::mem::take(&mut *seen.arrived.lock().unwrap());
        assert_eq!(arrived.len(), 2);
        for headers in arrived {
            assert_eq!(headers[ID], new);
            assert_eq!(headers.get("traceparent"), None);
            let left = TimeoutHeader::grpc().read(&headers).unwrap();
            assert!(left > FAR / 2 && left <= FAR, "{left:?}");
        }
    }
}

/// Shows: X8
#[tokio::test]
async fn an_extractor_without_its_layer_answers_500_and_its_error_says_what_to_add() {
    let app = Router::new()
        .route("/scope", get(|scope: Scope| async move { scope.name().to_owned() }))
        .route("/ids", get(|ids: RequestIds| async move { ids.request_id().to_string() }));
    let answer = async |app: Router, path: &str| {
        let request = Request::get(path).header(ID, "order-17").body(Body::empty()).unwrap();
        let response = app.oneshot(request).await.unwrap();
        let (head, body) = response.into_parts();
        (head.status.as_u16(), String::from_utf8(body.collect().await.unwrap().to_bytes().into()).unwrap())
    };
    // The response does not reveal internals.
    for path in ["/scope", "/ids"] {
        assert_eq!(answer(app.clone(), path).await, (500, String::new()));
    }
    let (mut parts, ()) = Request::new(()).into_parts();
    for (error, what, layer) in [
        (Scope::from_request_parts(&mut parts, &()).await.unwrap_err(), "scope", "ContextLayer"),
        (RequestIds::from_request_parts(&mut parts, &()).await.unwrap_err(), "ids", "RequestIdLayer"),
    ] {
        let said = format!(
            "the request has no {what}: put ziggurat's `{layer}` around the router, with `.layer({layer}::new(..))`"
        );
        assert_eq!(error.to_string(), said);
    }

    let app = app.layer(RequestIdLayer::new()).layer(ContextLayer::new(Scope::root("app")).named("of this request"));
    assert_eq!(answer(app.clone(), "/scope").await, (200, "of this request".to_owned()));
    assert_eq!(answer(app, "/ids").await, (200, "order-17".to_owned()));
}
