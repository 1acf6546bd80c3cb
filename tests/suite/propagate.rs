//! A client forwards the identity of its request and the remaining time.

use std::{
    convert::Infallible,
    sync::{Arc, Mutex},
    time::Duration,
};

use http::{HeaderMap, HeaderName, HeaderValue, Request, Response};
use tower::{Layer, Service, ServiceBuilder, ServiceExt, service_fn};
use ziggurat::{
    Backoff, Deadline, Jitter, Scope,
    headers::{RequestIds, TimeoutHeader},
    propagate::PropagateLayer,
    retry::RetryLayer,
    testing::Strict,
    timeout::TimeoutLayer,
};

const SECOND: Duration = Duration::from_secs(1);
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const TRACE: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
const OTHER: &str = "00-11111111111111111111111111111111-2222222222222222-00";

type Header = (&'static str, &'static str);

fn headers(of: &[Header]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in of {
        headers.append(*name, HeaderValue::from_static(value));
    }
    headers
}

fn ids(of: &[Header]) -> RequestIds {
    RequestIds::read(&headers(of), REQUEST_ID)
}

fn request(of: &[Header]) -> Request<String> {
    let mut request = Request::get("/").body(String::new()).unwrap();
    *request.headers_mut() = headers(of);
    request
}

/// Returns the headers that the next hop receives for this request.
async fn sent(layer: &PropagateLayer, request: Request<String>) -> HeaderMap {
    let next_hop = Strict::new(service_fn(|request: Request<String>| async move {
        let mut response = Response::new(());
        *response.headers_mut() = request.headers().clone();
        Ok::<_, Infallible>(response)
    }));
    layer.layer(next_hop).oneshot(request).await.unwrap().headers().clone()
}

/// Returns the `of` headers that the next hop receives while a deadline is `left` away.
async fn sent_within(left: Duration, header: &TimeoutHeader, of: &[Header]) -> HeaderMap {
    let layer = PropagateLayer::new().deadline(header.clone());
    Deadline::after(left).within(sent(&layer, request(of))).await
}

/// Shows: X6
#[tokio::test]
async fn the_identity_of_the_request_that_is_served_is_passed_on() {
    let served = ids(&[("x-request-id", "order-17"), ("traceparent", TRACE), ("tracestate", "congo=t61")]);
    let of_request = Scope::root("app").child("request").with(served);
    // A scope that the client's own stack opened is nested in the request's scope.
    for scope in [of_request.clone(), of_request.child("call")] {
        let sent = scope.within(sent(&PropagateLayer::new(), request(&[("accept", "*/*")]))).await;
        let all =
            [("accept", "*/*"), ("x-request-id", "order-17"), ("traceparent", TRACE), ("tracestate", "congo=t61")];
        assert_eq!(sent, headers(&all));
    }
}

#[tokio::test]
async fn without_an_identity_nothing_is_added() {
    let layer = PropagateLayer::new().deadline(TimeoutHeader::grpc());
    assert_eq!(sent(&layer, request(&[])).await, HeaderMap::new());
    let of = &[("grpc-timeout", "junk"), ("x-request-id", "two words"), ("tracestate", "a=1")];
    assert_eq!(Scope::root("app").within(sent(&layer, request(of))).await, headers(of));
}

/// A proxy forwards the request that it received, including its extensions.
#[tokio::test]
async fn the_identity_in_the_request_comes_before_that_of_the_scope() {
    let scope = Scope::root("request").with(ids(&[("x-request-id", "of-the-scope"), ("traceparent", OTHER)]));
    let mut request = request(&[]);
    request.extensions_mut().insert(ids(&[("x-request-id", "of-the-request")]));
    let sent = scope.within(sent(&PropagateLayer::new(), request)).await;
    assert_eq!(sent, headers(&[("x-request-id", "of-the-request")]));
}

/// The span of a tracing client is the parent of the call, rather than the span that called this server.
#[tokio::test]
async fn what_the_request_says_already_stays() {
    let scope = Scope::root("request").with(ids(&[
        ("x-request-id", "order-17"),
        ("traceparent", TRACE),
        ("tracestate", "congo=t61"),
    ]));
    let of = &[("x-request-id", "own"), ("traceparent", OTHER)];
    assert_eq!(scope.within(sent(&PropagateLayer::new(), request(of))).await, headers(of));
    // A `tracestate` alone belongs to no trace.
    let sent = scope.within(sent(&PropagateLayer::new(), request(&[("tracestate", "stray=1")]))).await;
    assert_eq!(sent["tracestate"], "congo=t61");
    assert_eq!(sent.get_all("tracestate").iter().count(), 1);
}

#[tokio::test]
async fn an_id_is_passed_on_under_the_name_that_it_came_by() {
    let name = HeaderName::from_static("x-correlation-id");
    let scope = Scope::root("request").with(RequestIds::read(&headers(&[("x-correlation-id", "c1")]), name));
    let sent = scope.within(sent(&PropagateLayer::new(), request(&[]))).await;
    assert_eq!(sent, headers(&[("x-correlation-id", "c1")]));
}

#[tokio::test(start_paused = true)]
async fn the_time_that_is_left_is_written() {
    let own = TimeoutHeader::millis(HeaderName::from_static("x-request-timeout-ms"));
    for (left, grpc, millis) in [
        (2 * SECOND, "2000000u", "2000"),
        (Duration::from_micros(1500), "1500000n", "1"),
        (Duration::from_secs(3 * 24 * 3600), "259200S", "259200000"),
        // A deadline that has passed: the smallest value of the format, and never zero.
        (Duration::ZERO, "1n", "1"),
    ] {
        assert_eq!(sent_within(left, &TimeoutHeader::grpc(), &[]).await["grpc-timeout"], grpc);
        assert_eq!(sent_within(left, &own, &[]).await["x-request-timeout-ms"], millis);
    }
}

#[tokio::test(start_paused = true)]
async fn of_the_time_that_is_left_and_that_which_is_forwarded_the_smaller_wins() {
    let grpc = TimeoutHeader::grpc();
    for (forwarded, of) in [
        ("1000000u", [("grpc-timeout", "1S")].as_slice()),
        ("2000000u", &[("grpc-timeout", "1H")]),
        ("2000000u", &[("grpc-timeout", "123456789H")]),
        ("500000u", &[("grpc-timeout", "1H"), ("grpc-timeout", "500m")]),
    ] {
        let sent = sent_within(2 * SECOND, &grpc, of).await;
        assert_eq!(sent.get_all("grpc-timeout").iter().collect::<Vec<_>>(), [forwarded]);
    }
    // Without a deadline the header stays as it is.
    let layer = PropagateLayer::new().deadline(grpc);
    let of = &[("grpc-timeout", "1H")];
    assert_eq!(sent(&layer, request(of)).await, headers(of));
}

/// Shows: R6, T4
#[tokio::test(start_paused = true)]
async fn each_attempt_sends_what_is_left_for_it() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&seen);
    let client = ServiceBuilder::new()
        .layer(TimeoutLayer::new(10 * SECOND))
        .layer(RetryLayer::http().max_attempts(4).backoff(Backoff::fixed(3 * SECOND).jitter(Jitter::None)))
        .layer(TimeoutLayer::new(8 * SECOND))
        .layer(PropagateLayer::new().deadline(TimeoutHeader::grpc()))
        .service(service_fn(move |request: Request<String>| {
            log.lock().unwrap().push(request.headers()["grpc-timeout"].to_str().unwrap().to_owned());
            async { Ok::<_, Infallible>(Response::builder().status(503).body(String::new()).unwrap()) }
        }));
    client.oneshot(request(&[])).await.unwrap();
    assert_eq!(*seen.lock().unwrap(), ["8000000u", "7000000u", "4000000u", "1000000u"]);
}

/// The server's own limit is the time that its clients have left.
#[tokio::test(start_paused = true)]
async fn a_client_inside_a_server_sends_what_the_server_has_left() {
    let layer = PropagateLayer::new().deadline(TimeoutHeader::grpc());
    let mut server = ServiceBuilder::new()
        .layer(TimeoutLayer::new(TimeoutHeader::grpc().at_most(30 * SECOND)))
        .service(service_fn(move |_: Request<String>| {
            let layer = layer.clone();
            async move {
                tokio::time::sleep(SECOND).await;
                let sent = sent(&layer, request(&[])).await;
                Ok::<_, Infallible>(Response::new(sent["grpc-timeout"].to_str().unwrap().to_owned()))
            }
        }));
    for (incoming, left) in [
        ([].as_slice(), "29000000u"),
        (&[("grpc-timeout", "5S")], "4000000u"),
        (&[("grpc-timeout", "5H")], "29000000u"),
        (&[("grpc-timeout", "123456789H")], "29000000u"),
    ] {
        let answer = server.ready().await.unwrap().call(request(incoming)).await.unwrap();
        assert_eq!(answer.status(), 200);
        assert_eq!(answer.body(), left, "{incoming:?}");
    }
}
