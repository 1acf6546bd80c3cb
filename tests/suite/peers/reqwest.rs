//! A stack around a `reqwest::Client`.

use std::{
    convert::Infallible,
    io,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::{
    Response, StatusCode,
    body::Incoming,
    header::{HeaderName, LOCATION},
};
use reqwest::{Body, Client, Method, Request};
use tower::{ServiceBuilder, ServiceExt, service_fn};
use ziggurat::{
    Error, HttpStatus, LayerEvent, LayerInfo, Rejection, Scope,
    circuit_breaker::{CircuitBreakerLayer, State},
    concurrency_limit::ConcurrencyLimitLayer,
    context::ContextLayer,
    headers::{RequestIds, TimeoutHeader},
    idempotency_key::IdempotencyKeyLayer,
    propagate::PropagateLayer,
    retry::RetryLayer,
    timeout::TimeoutLayer,
};

use super::{AnyBody, FAR, Server, answer, any, nobody, serve, soon, streamed};

/// A request as a server saw it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Seen {
    line: String,
    attempt: String,
    tenant: String,
    body: Bytes,
}

type Log = Arc<Mutex<Vec<Seen>>>;

/// Responds with the result of `respond` for a path and the number of the call, from 1, and records the requests.
async fn recorder(respond: impl Fn(&str, usize) -> Response<AnyBody> + Clone + Send + 'static) -> (Server, Log) {
    let log = Log::default();
    let seen = Arc::clone(&log);
    let server = serve(service_fn(move |request: hyper::Request<Incoming>| {
        let (seen, respond) = (Arc::clone(&seen), respond.clone());
        async move {
            let (head, body) = request.into_parts();
            let header =
                |name| head.headers.get(name).map(|value| value.to_str().unwrap().to_owned()).unwrap_or_default();
            let seen_now = Seen {
                line: format!("{} {}", head.method, head.uri.path()),
                attempt: header("x-attempt"),
                tenant: header("x-tenant"),
                body: body.collect().await.unwrap().to_bytes(),
            };
            let call = {
                let mut seen = seen.lock().unwrap();
                seen.push(seen_now);
                seen.len()
            };
            Ok::<_, Infallible>(respond(head.uri.path(), call))
        }
    }))
    .await;
    (server, log)
}

fn status(status: StatusCode) -> Response<AnyBody> {
    let mut response = answer("");
    *response.status_mut() = status;
    response
}

fn request(method: Method, to: SocketAddr, path: &str) -> Request {
    Request::new(method, format!("http://{to}{path}").parse().unwrap())
}

/// Marks a request with the number of its attempt and the tenant of its scope.
fn tagged(mut request: Request) -> Request {
    let tenant = Scope::current().and_then(|scope| scope.get::<String>()).unwrap();
    request.headers_mut().insert("x-attempt", ziggurat::attempt().into());
    request.headers_mut().insert("x-tenant", tenant.parse().unwrap());
    request
}

/// The whole stack around reqwest's client, whose response stays reqwest's own.
macro_rules! stack {
    ($retry:expr) => {
        ServiceBuilder::new()
            .layer(ContextLayer::ambient(Scope::root("shop")).state(|_: &Request| "acme".to_owned()))
            .layer(TimeoutLayer::new(FAR).named("total"))
            .layer($retry.backoff(Duration::ZERO))
            .layer(CircuitBreakerLayer::http())
            .layer(ConcurrencyLimitLayer::new(25))
            .layer(TimeoutLayer::new(
                |req: &Request| {
                    if req.url().path() == "/hangs" { Duration::from_millis(10) } else { FAR }
                },
            ))
            .map_request(tagged)
            .map_err(Error::Service)
            .service(Client::new())
    };
}

/// Shows: R5, R9, X7, X8
#[tokio::test]
async fn a_request_that_may_be_repeated_is_sent_again_with_all_that_it_carries() {
    let (server, log) =
        recorder(|_, call| if call < 3 { status(StatusCode::SERVICE_UNAVAILABLE) } else { answer("done") }).await;
    let client = stack!(RetryLayer::http());
    let mut put = request(Method::PUT, server.address, "/order");
    *put.body_mut() = Some(Body::from("two apples"));
    // In a task: the futures of the stack are `Send`.
    let response = tokio::spawn(async move { client.oneshot(put).await }).await.unwrap().unwrap();
    assert_eq!(response.url().path(), "/order");
    assert_eq!(soon(response.text()).await.unwrap(), "done");
    let expected = ["1", "2", "3"].map(|attempt| Seen {
        line: "PUT /order".into(),
        attempt: attempt.into(),
        tenant: "acme".into(),
        body: "two apples".into(),
    });
    assert_eq!(*log.lock().unwrap(), expected);
}

/// Shows: R5
#[tokio::test]
async fn a_post_is_repeated_only_with_an_idempotency_key() {
    for (key, attempts) in [(None, 1), (Some("7"), 3)] {
        let (server, log) = recorder(|_, _| status(StatusCode::SERVICE_UNAVAILABLE)).await;
        let mut post = request(Method::POST, server.address, "/order");
        if let Some(key) = key {
            post.headers_mut().insert("idempotency-key", key.parse().unwrap());
        }
        let response = soon(stack!(RetryLayer::http()).oneshot(post)).await.unwrap();
        assert_eq!((response.status(), log.lock().unwrap().len()), (StatusCode::SERVICE_UNAVAILABLE, attempts));
    }
}

/// Shows: Y1
#[tokio::test]
async fn a_layer_gives_each_post_its_key() {
    let (server, log) = recorder(|_, _| status(StatusCode::SERVICE_UNAVAILABLE)).await;
    let post = request(Method::POST, server.address, "/order");
    let client = ServiceBuilder::new().layer(IdempotencyKeyLayer::new()).service(stack!(RetryLayer::http()));
    soon(client.oneshot(post)).await.unwrap();
    assert_eq!(log.lock().unwrap().len(), 3);
}

/// It is not rejected because it cannot be copied, nor sent again with an empty body (reqwest-middleware #44, #214).
///
/// Shows: R5, R9
#[tokio::test]
async fn a_streamed_request_is_sent_once_and_an_event_says_why() {
    let (server, log) = recorder(|_, _| status(StatusCode::SERVICE_UNAVAILABLE)).await;
    let reasons = Arc::new(Mutex::new(Vec::new()));
    let heard = Arc::clone(&reasons);
    let retry = RetryLayer::http().observer(move |_: &LayerInfo, event: &LayerEvent<'_>| {
        if let LayerEvent::GaveUp { attempt, reason, .. } = event {
            heard.lock().unwrap().push((*attempt, *reason));
        }
    });
    let (frames, body) = streamed();
    let mut put = request(Method::PUT, server.address, "/upload");
    *put.body_mut() = Some(Body::wrap(body));
    for text in ["one ", "two"] {
        frames.send(Ok(Bytes::from(text))).unwrap();
    }
    drop(frames);
    let response = soon(stack!(retry).oneshot(put)).await.unwrap();
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(log.lock().unwrap().iter().map(|seen| seen.body.clone()).collect::<Vec<_>>(), ["one two"]);
    assert_eq!(*reasons.lock().unwrap(), [(1, "copy")]);
}

#[tokio::test]
async fn redirects_are_followed_inside_of_one_attempt() {
    let (server, log) = recorder(|path, call| match (path, call) {
        ("/old", _) => {
            let mut response = status(StatusCode::FOUND);
            response.headers_mut().insert(LOCATION, "/new".parse().unwrap());
            response
        }
        (_, 1..=2) => status(StatusCode::SERVICE_UNAVAILABLE),
        _ => answer("found"),
    })
    .await;
    let response =
        soon(stack!(RetryLayer::http()).oneshot(request(Method::GET, server.address, "/old"))).await.unwrap();
    assert_eq!((response.status(), response.url().path()), (StatusCode::OK, "/new"));
    let lines: Vec<_> = log.lock().unwrap().iter().map(|seen| format!("{} at {}", seen.line, seen.attempt)).collect();
    assert_eq!(lines, ["GET /old at 1", "GET /new at 1", "GET /old at 2", "GET /new at 2"]);
}

/// Shows: T1
#[tokio::test]
async fn a_rejection_and_the_clients_own_error_are_told_apart() {
    let server = serve(service_fn(|_| std::future::pending::<Result<_, Infallible>>())).await;
    let client = stack!(RetryLayer::http().max_attempts(1));
    let outcome = soon(client.clone().oneshot(request(Method::GET, server.address, "/hangs"))).await;
    assert!(ziggurat::rejection(&outcome).unwrap().is_timed_out());
    let outcome = soon(client.oneshot(request(Method::GET, nobody().await, "/"))).await;
    let Err(Error::Service(error)) = outcome else { panic!("{outcome:?}") };
    assert!(error.is_connect());
}

/// Timeout, breaker and limit last to the end of the body, and the response is still reqwest's.
///
/// Shows: L2, T1, B1
#[tokio::test]
async fn reqwests_own_response_can_be_guarded_to_the_end_of_its_body() {
    let (frames, bodies): (Vec<_>, Vec<_>) = (0..3).map(|_| streamed()).unzip();
    let bodies = Arc::new(Mutex::new(bodies.into_iter()));
    let server = serve(service_fn(move |_| {
        let body = bodies.lock().unwrap().next().unwrap();
        async { Ok::<_, Infallible>(Response::new(any(body))) }
    }))
    .await;
    let permits = ConcurrencyLimitLayer::new(25).until_body_end();
    let breaker = CircuitBreakerLayer::consecutive(2).classify(HttpStatus).until_body_end();
    let (gate, circuit) = (permits.handle(), breaker.handle());
    let get = |path, idle| {
        let client = ServiceBuilder::new()
            .layer(ContextLayer::ambient(Scope::root("shop")))
            .layer(RetryLayer::http())
            .layer(breaker.clone())
            .layer(permits.clone())
            .layer(TimeoutLayer::new(FAR).until_body_end().idle(idle))
            .map_err(Error::Service)
            .service(Client::new());
        soon(client.oneshot(request(Method::GET, server.address, path)))
    };

    let mut response = get("/works", FAR).await.unwrap();
    assert_eq!((response.url().path(), gate.in_flight()), ("/works", 1));
    for text in ["one", "two"] {
        frames[0].send(Ok(Bytes::from(text))).unwrap();
        assert_eq!(soon(response.chunk()).await.unwrap().unwrap(), text);
    }

    let mut broken = get("/breaks", FAR).await.unwrap();
    frames[1].send(Ok(Bytes::from("one"))).unwrap();
    assert_eq!(soon(broken.chunk()).await.unwrap().unwrap(), "one");
    assert_eq!(gate.in_flight(), 2);
    frames[1].send(Err(io::Error::other("disk full"))).unwrap();
    let error = soon(broken.chunk()).await.unwrap_err();
    assert!(Rejection::find(&error).is_none(), "{error:?}");
    assert_eq!((gate.in_flight(), circuit.state()), (1, State::Closed));

    let error = soon(get("/stalls", Duration::from_millis(10)).await.unwrap().text()).await.unwrap_err();
    assert!(Rejection::find(&error).unwrap().is_timed_out(), "{error:?}");
    assert_eq!((gate.in_flight(), circuit.state()), (1, State::Open));

    // A call that began before the circuit opened continues.
    drop(frames);
    assert_eq!(soon(response.chunk()).await.unwrap(), None);
    assert_eq!(gate.in_flight(), 0);
}

/// A body that has ended with the head holds nothing.
#[tokio::test]
async fn an_empty_body_gives_the_permit_back_at_once() {
    let (server, _) = recorder(|_, _| status(StatusCode::NO_CONTENT)).await;
    let permits = ConcurrencyLimitLayer::new(1).until_body_end();
    let gate = permits.handle();
    let client = ServiceBuilder::new().layer(permits).map_err(Error::Service).service(Client::new());
    let response = soon(client.oneshot(request(Method::GET, server.address, "/nothing"))).await.unwrap();
    assert_eq!((response.status(), response.url().path(), gate.in_flight()), (StatusCode::NO_CONTENT, "/nothing", 0));
}

/// Shows: X6, X7
#[tokio::test]
async fn identity_and_deadline_are_passed_on_to_the_next_hop() {
    const TRACE: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let seen = Arc::new(Mutex::new(Vec::new()));
    let heard = Arc::clone(&seen);
    let server = serve(service_fn(move |request: hyper::Request<Incoming>| {
        heard.lock().unwrap().push(request.headers().clone());
        async { Ok::<_, Infallible>(answer("hello")) }
    }))
    .await;
    let client = ServiceBuilder::new()
        .layer(TimeoutLayer::new(FAR))
        .layer(PropagateLayer::new().deadline(TimeoutHeader::grpc()))
        .map_err(Error::Service)
        .service(Client::new());
    let headers = [("x-request-id", "order-17"), ("traceparent", TRACE), ("tracestate", "congo=t61")];
    let headers = headers.map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).into_iter().collect();
    let identity = RequestIds::read(&headers, HeaderName::from_static("x-request-id"));
    let served = Scope::root("served").with(identity);
    let get = || request(Method::GET, server.address, "/");
    soon(served.within(client.clone().oneshot(get()))).await.unwrap();
    let mut own = get();
    own.headers_mut().insert("x-request-id", "own".parse().unwrap());
    soon(served.within(client.clone().oneshot(own))).await.unwrap();
    soon(client.oneshot(get())).await.unwrap();

    let seen = seen.lock().unwrap();
    assert!(headers.iter().all(|(name, value)| seen[0].get(name) == Some(value)), "{seen:?}");
    let left = TimeoutHeader::grpc().read(&seen[0]).unwrap();
    assert!(left <= FAR, "{left:?}");
    assert_eq!((&seen[1]["x-request-id"], &seen[1]["traceparent"]), (&"own".parse().unwrap(), &TRACE.parse().unwrap()));
    assert!(!seen[2].contains_key("x-request-id") && seen[2].contains_key("grpc-timeout"), "{seen:?}");
}
