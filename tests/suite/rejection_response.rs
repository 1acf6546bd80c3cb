//! Responses to rejections.

use std::{
    collections::VecDeque,
    convert::Infallible,
    error::Error as StdError,
    future::pending,
    net::SocketAddr,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use axum::{Router, body::Body, routing::get};
use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode,
    header::{CONTENT_LENGTH, CONTENT_TYPE, RETRY_AFTER},
    request::Parts,
};
use http_body::Frame;
use http_body_util::{BodyExt, Empty, Full};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use tokio::net::TcpListener;
use tower::{BoxError, Service, ServiceBuilder, ServiceExt, service_fn};
use ziggurat::{
    Class, Error, HttpStatus, LayerInfo, Reason, Reject, Rejection, Scope,
    circuit_breaker::{CircuitBreakerLayer, State},
    concurrency_limit::ConcurrencyLimitLayer,
    context::ContextLayer,
    rejection_response::RejectionResponseLayer,
    testing::TestTask,
    timeout::TimeoutLayer,
};

const SECOND: Duration = Duration::from_secs(1);
const LIMIT: Reason = Reason::TimedOut { limit: SECOND };

type Answer = Response<String>;

/// Returns a service in whose place a layer rejects with this rejection.
fn rejecting<E: Reject<Answer>>(
    rejection: Rejection,
) -> impl Service<Request<()>, Response = Answer, Error = E> + Clone {
    service_fn(move |_| std::future::ready(E::reject(rejection.clone())))
}

fn rejection(reason: Reason) -> Rejection {
    LayerInfo::new("any").named("secret").reject(reason)
}

fn shared() -> Reason {
    Reason::Shared { message: "secret".into(), class: Class::PERMANENT }
}

fn too_costly() -> Reason {
    Reason::CostTooHigh { cost: 3, burst: 2 }
}

fn too_large() -> Reason {
    Reason::Custom {
        name: "too_large",
        status: StatusCode::PAYLOAD_TOO_LARGE,
        class: Class::Ignored,
        unprocessed: true,
        public_message: "more than 1 MiB".into(),
    }
}

fn no_limit() -> Reason {
    Reason::StoreUnavailable { message: "secret".into() }
}

fn unavailable() -> Reason {
    Reason::Unavailable { message: "secret".into() }
}

fn get_head(uri: &str) -> Request<()> {
    Request::get(uri).body(()).unwrap()
}

/// Builds a response that describes its request.
fn told(rejection: &Rejection, request: &Parts) -> Answer {
    let Parts { method, uri, version, headers, extensions, .. } = request;
    let text = format!(
        "{method} {uri} {version:?} {:?} {:?}: {:?}",
        headers.get("x"),
        extensions.get::<u8>(),
        rejection.reason()
    );
    let mut answer = Response::new(text);
    *answer.status_mut() = StatusCode::IM_A_TEAPOT;
    answer.extensions_mut().insert("of the answer");
    answer
}

#[tokio::test]
async fn the_answer_is_what_the_function_makes_of_the_rejection_and_of_the_requests_head() {
    let service = ServiceBuilder::new()
        .layer(RejectionResponseLayer::new(|rejection: &Rejection, request: &Parts| told(rejection, request)))
        .service(rejecting::<Infallible>(rejection(Reason::RateLimited)));
    let request =
        Request::put("/a?b").version(http::Version::HTTP_10).header("x", "y").extension(7_u8).body(()).unwrap();
    let Ok(answer) = service.oneshot(request).await;
    assert_eq!(answer.status(), StatusCode::IM_A_TEAPOT);
    assert_eq!(answer.body(), r#"PUT /a?b HTTP/1.0 Some("y") Some(7): RateLimited"#);
    // The rejection's own response is gone, but outer layers still find the rejection itself.
    assert_eq!(answer.headers(), &HeaderMap::new());
    assert_eq!(answer.extensions().get(), Some(&"of the answer"));
    assert_eq!(ziggurat::rejection(&Ok::<_, Infallible>(answer)).unwrap().reason(), &Reason::RateLimited);
}

#[tokio::test]
async fn what_is_no_rejection_passes_unchanged() {
    let own = service_fn(|status: Request<u16>| async move {
        match *status.body() {
            0 => Err(Error::Service("its own")),
            status => Ok(Response::builder().status(status).header("x", "y").body("its own".to_owned()).unwrap()),
        }
    });
    let service = ServiceBuilder::new().layer(RejectionResponseLayer::problem_json()).service(own);
    for status in [200, 429, 500, 503, 504] {
        let answer = service.clone().oneshot(Request::new(status)).await.unwrap();
        assert_eq!((answer.status().as_u16(), answer.body().as_str()), (status, "its own"));
        assert_eq!((answer.headers().len(), &answer.headers()["x"]), (1, &"y".parse().unwrap()));
    }
    let failed = service.oneshot(Request::new(0)).await;
    assert!(matches!(failed, Err(Error::Service("its own"))), "{failed:?}");
}

#[tokio::test]
async fn an_error_that_carries_a_rejection_becomes_a_response() {
    async fn check<E: Reject<Answer>>() -> Answer {
        let service =
            ServiceBuilder::new().layer(RejectionResponseLayer::grpc()).service(rejecting::<E>(rejection(LIMIT)));
        let Ok(answer) = service.oneshot(get_head("/")).await else { panic!("the error passed") };
        answer
    }
    for answer in [
        check::<Error<&str>>().await,
        check::<BoxError>().await,
        check::<tonic::Status>().await,
        check::<Infallible>().await,
    ] {
        assert_eq!(answer.headers()["grpc-status"], "4");
        assert!(answer.extensions().get::<Rejection>().unwrap().is_timed_out());
    }
}

/// Returns the problem, or the head alone.
async fn problem(method: Method, rejection: Rejection) -> Answer {
    let request = Request::builder().method(method).uri("/secret").body(()).unwrap();
    let layer = RejectionResponseLayer::problem_json();
    let Ok(answer) =
        ServiceBuilder::new().layer(layer).service(rejecting::<Infallible>(rejection)).oneshot(request).await;
    answer
}

#[tokio::test]
async fn a_problem_says_what_rfc_9457_asks_for_and_nothing_internal() {
    for (reason, status, title, detail) in [
        (LIMIT, 504, "Gateway Timeout", "any: no response in time"),
        (Reason::CircuitOpen, 503, "Service Unavailable", "any: the circuit is open"),
        (Reason::Overloaded { limit: 7 }, 503, "Service Unavailable", "any: too many calls are in flight"),
        (Reason::RateLimited, 429, "Too Many Requests", "any: the rate limit is exceeded"),
        (too_costly(), 413, "Payload Too Large", "any: the call is larger than the rate limit ever admits"),
        (no_limit(), 503, "Service Unavailable", "any: the store is unavailable"),
        (shared(), 502, "Bad Gateway", "any: the shared call failed"),
        (Reason::Recursive, 500, "Internal Server Error", "any: the call would wait for itself"),
        (Reason::Injected, 503, "Service Unavailable", "any: an injected fault"),
        (Reason::Exhausted { max_wait: SECOND }, 503, "Service Unavailable", "any: all resources are in use"),
        (unavailable(), 503, "Service Unavailable", "any: the resource is unavailable"),
        (too_large(), 413, "Payload Too Large", "any: more than 1 MiB"),
    ] {
        let rejection = rejection(reason).with_retry_after(SECOND * 5 / 2);
        let answer = problem(Method::GET, rejection.clone()).await;
        assert_eq!(answer.status(), status);
        assert_eq!(answer.headers()[CONTENT_TYPE], "application/problem+json");
        assert_eq!(answer.headers()[RETRY_AFTER], "3");
        let body = format!(r#"{{"type":"about:blank","title":"{title}","status":{status},"detail":"{detail}"}}"#);
        assert_eq!(answer.body(), &body);

        let mut head = problem(Method::HEAD, rejection).await;
        let length = head.headers_mut().remove(CONTENT_LENGTH).unwrap();
        assert_eq!(length, body.len().to_string());
        assert_eq!((head.status(), head.headers(), head.body().as_str()), (answer.status(), answer.headers(), ""));
    }
}

#[tokio::test]
async fn a_handler_of_axum_returns_a_rejection_as_its_response() {
    let rejection = rejection(Reason::CircuitOpen).with_retry_after(SECOND * 5 / 2);
    let response = axum::response::IntoResponse::into_response(rejection.clone());
    assert_eq!((response.status().as_u16(), response.headers()[RETRY_AFTER].to_str().unwrap()), (503, "3"));
    assert_eq!(response.headers()[CONTENT_TYPE], "text/plain; charset=utf-8");
    let outcome: Result<_, Infallible> = Ok(response);
    assert!(ziggurat::rejection(&outcome).unwrap().is_circuit_open());
    let Ok(response) = outcome;
    let body = axum::body::to_bytes(response.into_body(), 100).await.unwrap();
    assert_eq!(body, rejection.public_message());
}

#[test]
fn a_layer_outside_of_this_crate_says_everything_about_its_reason() {
    let rejection = rejection(too_large());
    assert_eq!(
        (rejection.reason().as_str(), rejection.status().as_u16(), rejection.grpc_code()),
        ("too_large", 413, 8)
    );
    assert_eq!((rejection.class(), rejection.is_unprocessed()), (Class::Ignored, true));
    assert!(!rejection.clone().with_previous("sent before").is_unprocessed());
    assert_eq!(rejection.to_string(), "any `secret`: more than 1 MiB");
}

/// An answer with such a status would pass for a success.
#[test]
#[should_panic(expected = "the status of the reason `too_large` must be 300 or above, not 200 OK")]
fn a_reason_with_the_status_of_a_success_is_a_mistake() {
    let mut reason = too_large();
    if let Reason::Custom { status, .. } = &mut reason {
        *status = StatusCode::OK;
    }
    let _ = rejection(reason);
}

#[tokio::test]
async fn a_layers_name_may_hold_anything() {
    let odd = LayerInfo::new("größe \"1\"\n100%").reject(Reason::CircuitOpen);
    let body = problem(Method::GET, odd.clone()).await.into_body();
    assert!(body.ends_with(r#""detail":"größe \"1\"\u000a100%: the circuit is open"}"#), "{body}");

    let service = ServiceBuilder::new().layer(RejectionResponseLayer::grpc()).service(rejecting::<Infallible>(odd));
    let Ok(answer) = service.oneshot(get_head("/")).await;
    assert_eq!(answer.headers()["grpc-message"], "gr%C3%B6%C3%9Fe \"1\"%0A100%25: the circuit is open");
    // tonic reads the same status.
    let status = tonic::Status::from_header_map(answer.headers()).unwrap();
    assert_eq!(status.message(), "größe \"1\"\n100%: the circuit is open");
}

#[tokio::test]
async fn a_grpc_answer_is_a_status_without_messages() {
    for (reason, code) in [
        (LIMIT, "4"),
        (Reason::Overloaded { limit: 7 }, "8"),
        (Reason::RateLimited, "8"),
        (too_costly(), "8"),
        (Reason::CircuitOpen, "14"),
        (shared(), "2"),
        (Reason::Recursive, "13"),
        (Reason::Injected, "14"),
        (Reason::Exhausted { max_wait: SECOND }, "8"),
        (unavailable(), "14"),
        (too_large(), "8"),
    ] {
        for (wait, pushback) in [(None, None), (Some(SECOND / 2), Some("500"))] {
            let rejection = wait.into_iter().fold(rejection(reason.clone()), Rejection::with_retry_after);
            let message = rejection.public_message();
            let service =
                ServiceBuilder::new().layer(RejectionResponseLayer::grpc()).service(rejecting::<Infallible>(rejection));
            let Ok(answer) = service.oneshot(get_head("/")).await;
            let headers = answer.headers();
            assert_eq!((answer.status(), answer.body().as_str()), (StatusCode::OK, ""));
            assert_eq!(
                (&headers["content-type"], &headers["grpc-status"]),
                (&"application/grpc".parse().unwrap(), &code.parse().unwrap())
            );
            assert_eq!(headers["grpc-message"], message);
            assert_eq!(headers.get("grpc-retry-pushback-ms").map(|value| value.to_str().unwrap()), pushback);
            assert!(!format!("{headers:?}").contains("secret"), "{headers:?}");
        }
    }
}

#[tokio::test]
async fn of_two_answers_the_inner_one_stays() {
    let service = ServiceBuilder::new()
        .layer(RejectionResponseLayer::problem_json())
        .layer(RejectionResponseLayer::new(|_: &Rejection, _: &Parts| Response::new("the inner one".to_owned())))
        .service(rejecting::<Infallible>(rejection(LIMIT)));
    let Ok(answer) = service.oneshot(get_head("/")).await;
    assert_eq!(answer.body(), "the inner one");
}

/// A breaker outside classifies the rejection and not the 200 that stands for it.
#[tokio::test(start_paused = true)]
async fn a_layer_outside_still_takes_the_answer_for_the_rejection() {
    let breaker = CircuitBreakerLayer::consecutive(1).classify(HttpStatus);
    let circuit = breaker.handle();
    let service = ServiceBuilder::new()
        .layer(breaker)
        .layer(RejectionResponseLayer::grpc())
        .layer(TimeoutLayer::new(SECOND))
        .service(service_fn(|_: Request<()>| pending::<Result<Answer, Infallible>>()));
    let Ok(answer) = service.oneshot(get_head("/")).await;
    assert_eq!(answer.status(), StatusCode::OK);
    assert_eq!(circuit.state(), State::Open);
}

#[tokio::test(start_paused = true)]
async fn the_scope_of_the_request_is_current_while_it_is_answered() {
    let service = ServiceBuilder::new()
        .layer(ContextLayer::new(Scope::root("app").with("of the app")))
        .layer(RejectionResponseLayer::new(|_: &Rejection, request: &Parts| {
            let current = Scope::current().unwrap();
            let carried = request.extensions.get::<Scope>().unwrap();
            assert_eq!(current.id(), carried.id());
            Response::new(current.get::<&str>().unwrap().to_string())
        }))
        .layer(TimeoutLayer::new(SECOND))
        .service(service_fn(|_: Request<()>| pending::<Result<Answer, Infallible>>()));
    let Ok(answer) = service.oneshot(get_head("/")).await;
    assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), "of the app");
}

#[test]
fn a_function_that_panics_wedges_nothing() {
    let limit = ConcurrencyLimitLayer::new(1).max_waiting(0);
    let gate = limit.handle();
    let service = ServiceBuilder::new()
        .layer(RejectionResponseLayer::new(|rejection: &Rejection, _: &Parts| -> Answer { panic!("{rejection}") }))
        .layer(limit)
        .service(service_fn(|_: Request<()>| pending::<Result<Answer, Infallible>>()));
    let mut inside = TestTask::new(service.clone().oneshot(get_head("/")));
    assert!(inside.poll().is_pending());
    for _ in 0..2 {
        let mut refused = TestTask::new(service.clone().oneshot(get_head("/")));
        let panicked = catch_unwind(AssertUnwindSafe(|| refused.poll()));
        assert!(panicked.is_err());
    }
    assert_eq!((gate.in_flight(), gate.waiting()), (1, 0));
    drop(inside);
    let Poll::Pending = TestTask::new(service.oneshot(get_head("/"))).poll() else { panic!("it was rejected") };
}

async fn serve(router: Router) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async { axum::serve(listener, router).await.unwrap() });
    address
}

async fn ask(client: &Client<HttpConnector, Empty<Bytes>>, method: Method, uri: String) -> Response<Bytes> {
    let request = Request::builder().method(method).uri(uri).body(Empty::new()).unwrap();
    let (head, body) = client.request(request).await.unwrap().into_parts();
    Response::from_parts(head, body.collect().await.unwrap().to_bytes())
}

/// On one connection, with any method.
#[tokio::test]
async fn a_router_answers_with_problems_over_a_socket() {
    let circuit = CircuitBreakerLayer::consecutive(1);
    circuit.handle().force_open();
    let router = Router::new()
        .route("/", get(|| async { "never" }))
        .layer(ServiceBuilder::new().layer(RejectionResponseLayer::problem_json()).layer(circuit));
    let address = serve(router).await;
    let client = Client::builder(TokioExecutor::new()).build_http();
    for method in [Method::HEAD, Method::GET, Method::HEAD, Method::POST] {
        let answer = ask(&client, method.clone(), format!("http://{address}/")).await;
        assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(answer.headers()[CONTENT_TYPE], "application/problem+json");
        assert!(answer.headers().contains_key(RETRY_AFTER));
        let detail = br#""detail":"circuit_breaker: the circuit is open"}"#;
        assert_eq!(answer.body().ends_with(detail), method != Method::HEAD);
    }
}

/// A body of these frames. After an error it would continue, but must not be polled.
#[derive(Default)]
struct Frames(VecDeque<Result<Frame<Bytes>, BoxError>>);

impl http_body::Body for Frames {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        Poll::Ready(self.0.pop_front())
    }
}

#[tokio::test]
async fn a_rejection_that_ends_a_grpc_body_comes_in_its_trailers_and_all_else_passes() {
    async fn ended(last: Result<Frame<Bytes>, BoxError>) -> Result<Frame<Bytes>, BoxError> {
        let data = || Ok(Frame::data(Bytes::from_static(b"message")));
        let mut frames = Some(Frames([data(), last, data()].into()));
        let mut service =
            ServiceBuilder::new().layer(RejectionResponseLayer::grpc().until_body_end()).service(service_fn(
                move |_: Request<()>| std::future::ready(Ok::<_, Infallible>(Response::new(frames.take().unwrap()))),
            ));
        let Ok(response) = service.ready().await.unwrap().call(get_head("/")).await;
        let mut body = response.into_body();
        assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "message");
        let last = body.frame().await.unwrap();
        // The body has ended, and is not polled again.
        if last.as_ref().map_or(true, |last| last.trailers_ref().is_some_and(|last| last.contains_key("grpc-status"))) {
            assert!(body.frame().await.is_none());
        }
        last
    }
    let trailers = HeaderMap::from_iter([(HeaderName::from_static("own"), HeaderValue::from_static("status"))]);
    let own = ended(Ok(Frame::trailers(trailers.clone()))).await.unwrap();
    assert_eq!(own.into_trailers().unwrap(), trailers);

    let own = ended(Err("reset".into())).await.unwrap_err();
    assert_eq!(own.to_string(), "reset");

    let rejected: Result<(), BoxError> = Reject::reject(rejection(LIMIT).with_retry_after(SECOND));
    let trailers = ended(Err(rejected.unwrap_err())).await.unwrap().into_trailers().unwrap();
    let held = ["grpc-status", "grpc-message", "grpc-retry-pushback-ms"].map(|name| trailers[name].to_str().unwrap());
    assert_eq!(held, ["4", "any: no response in time", "1000"]);
}

/// Every way in which a layer responds with 429 or 503: the response to a request that arrives at that moment.
macro_rules! every_refusal {
    ($answer:expr) => {{
        let hangs = || service_fn(|_: Request<()>| pending::<Result<Answer, Infallible>>());
        let fails = || {
            service_fn(|_: Request<()>| async {
                Ok::<_, Infallible>(Response::builder().status(500).body(String::new()).unwrap())
            })
        };
        let mut answers: Vec<(&str, Answer)> = Vec::new();

        let one = || ConcurrencyLimitLayer::new(1);
        for (name, limit, others) in [
            ("a limit without a queue", one().max_waiting(0), 1),
            ("a limit whose queue is full", one().max_waiting(2), 3),
            ("a limit with a longest wait", one().max_wait(SECOND), 1),
        ] {
            let service = ServiceBuilder::new().layer($answer).layer(limit).service(hangs());
            let mut before: Vec<_> =
                (0..others).map(|_| TestTask::new(service.clone().oneshot(get_head("/")))).collect();
            assert!(before.iter_mut().all(|call| call.poll().is_pending()));
            let Ok(answer) = service.oneshot(get_head("/")).await;
            answers.push((name, answer));
        }

        let breaker = || CircuitBreakerLayer::consecutive(1).classify(HttpStatus);
        for (name, breaker) in [
            ("an open circuit", breaker()),
            ("a circuit that was opened by hand", breaker()),
            ("a circuit whose probe is under way", breaker().open_for(SECOND)),
            ("a circuit that never closes by itself", breaker().open_for(Duration::MAX)),
        ] {
            let circuit = breaker.handle();
            let service = ServiceBuilder::new().layer($answer).layer(breaker.clone());
            let Ok(_) = service.clone().service(fails()).oneshot(get_head("/")).await;
            assert_eq!(circuit.state(), State::Open);
            if name.contains("by hand") {
                circuit.force_open();
            }
            let service = service.service(hangs());
            let mut probe = TestTask::new(service.clone().oneshot(get_head("/")));
            if name.contains("probe") {
                tokio::time::sleep(SECOND).await;
                probe = TestTask::new(service.clone().oneshot(get_head("/")));
                assert!(probe.poll().is_pending());
            }
            let Ok(answer) = service.oneshot(get_head("/")).await;
            answers.push((name, answer));
            drop(probe);
        }

        for (name, reason) in [
            ("somebody's own limit of a rate", Reason::RateLimited),
            ("somebody's own limit", Reason::Overloaded { limit: 1 }),
            ("a limit whose store is away", no_limit()),
            ("a fault that was put in", Reason::Injected),
            ("a server that shuts down", Reason::Draining { grace: None }),
            ("an empty pool", Reason::Exhausted { max_wait: SECOND }),
            ("a resource that is not to be had", unavailable()),
        ] {
            let service = ServiceBuilder::new().layer($answer).service(rejecting::<Infallible>(rejection(reason)));
            let Ok(answer) = service.oneshot(get_head("/")).await;
            answers.push((name, answer));
        }
        answers
    }};
}

fn number(answer: &Answer, header: &str) -> Option<u64> {
    Some(answer.headers().get(header)?.to_str().unwrap().parse().unwrap())
}

/// Shows: B3
#[tokio::test(start_paused = true)]
async fn every_429_and_503_says_when_to_come_back() {
    let plain = every_refusal!(tower::layer::util::Identity::new());
    let problems = every_refusal!(RejectionResponseLayer::problem_json());
    assert_eq!((plain.len(), problems.len()), (14, 14));
    for (name, answer) in plain.iter().chain(&problems) {
        let status = answer.status().as_u16();
        assert!([429, 503].contains(&status), "{name}: {status}");
        assert!(number(answer, "retry-after") >= Some(1), "{name}: {:?}", answer.headers());
    }
    // Known waits, and estimated ones.
    for (name, answer) in every_refusal!(RejectionResponseLayer::grpc()) {
        let known = !["somebody", "store", "put in", "pool", "not to be had", "shuts down"]
            .iter()
            .any(|word| name.contains(word));
        assert_eq!(number(&answer, "grpc-retry-pushback-ms").is_some(), known, "{name}: {:?}", answer.headers());
    }
}

/// Shows: B3
#[tokio::test]
async fn an_error_response_of_your_own_says_when_to_come_back_too() {
    /// Answers with the status in the path, and with a `Retry-After` if there is one in the query.
    fn own(_: &Rejection, request: &Parts) -> Answer {
        let mut answer = Response::builder().status(&request.uri.path()[1..]);
        if let Some(wait) = request.uri.query() {
            answer = answer.header(RETRY_AFTER, wait);
        }
        answer.body(String::new()).unwrap()
    }
    let known = rejection(Reason::CircuitOpen).with_retry_after(SECOND * 5 / 2);
    let unknown = rejection(LIMIT);
    for (rejection, target, expected) in [
        (&known, "/503", Some("3")),
        (&known, "/429", Some("3")),
        (&known, "/500", Some("3")),
        // The function's own value stays.
        (&known, "/503?120", Some("120")),
        // Without an error there is nothing to come back for.
        (&known, "/200", None),
        (&known, "/303", None),
        (&unknown, "/503", Some("1")),
        (&unknown, "/504", None),
    ] {
        let layer = RejectionResponseLayer::new(own as fn(&Rejection, &Parts) -> Answer);
        let service = ServiceBuilder::new().layer(layer).service(rejecting::<Infallible>(rejection.clone()));
        let Ok(answer) = service.oneshot(get_head(target)).await;
        let found = answer.headers().get(RETRY_AFTER).map(|wait| wait.to_str().unwrap());
        assert_eq!(found, expected, "{target} for {rejection}");
    }
}

#[tokio::test]
async fn bodies_of_the_usual_crates_can_be_answered_with() {
    async fn check<B: From<String> + http_body::Body<Error: StdError>>() {
        let service = ServiceBuilder::new()
            .layer(RejectionResponseLayer::problem_json())
            .service(service_fn(|_: Request<()>| async { Error::<Infallible>::reject(rejection(LIMIT)) }));
        let answer: Response<B> = service.oneshot(get_head("/")).await.unwrap();
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        assert!(body.starts_with(b"{") && body.ends_with(b"}"));
    }
    check::<Body>().await;
    check::<Full<Bytes>>().await;
    check::<String>().await;
}
