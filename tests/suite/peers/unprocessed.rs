//! Requests that were provably not processed are sent again whatever their method. Others are not.

use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use ::hyper::{Method, Request, Response, body::Incoming};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use tokio::{net::TcpSocket, sync::mpsc};
use tower::{Layer, Service, ServiceBuilder, ServiceExt, service_fn};
use ziggurat::{
    Error, LayerEvent, LayerInfo,
    replay::ReplayLayer,
    retry::{CopyIf, RetryLayer},
};

use super::{
    AnyBody, BOTH, BoxError, Version, answer, any, nobody, pooled,
    raw::{GOAWAY, RST_STREAM, RawServer, SETTINGS, frame},
    serve, serve_on, soon, stack, streamed,
};

/// The requests that a server received: method and body of each.
type Orders = mpsc::UnboundedReceiver<(Method, Bytes)>;

/// Returns a service that records its requests.
fn taking_orders() -> (
    impl Service<Request<Incoming>, Response = Response<AnyBody>, Error = Infallible, Future: Send> + Clone + Send + 'static,
    Orders,
) {
    let (order, orders) = mpsc::unbounded_channel();
    let service = service_fn(move |request: Request<Incoming>| {
        let order = order.clone();
        async move {
            let method = request.method().clone();
            let body = request.into_body().collect().await.unwrap().to_bytes();
            order.send((method, body)).unwrap();
            Ok(answer("hello"))
        }
    });
    (service, orders)
}

/// Returns an address on which nothing listens until a retry is announced. Then a server does.
fn opening_late() -> (SocketAddr, impl Fn(&LayerInfo, &LayerEvent<'_>) + Send + Sync + Clone, Orders) {
    // Bound, so that the port is not reused, but not listening.
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = socket.local_addr().unwrap();
    let socket = Arc::new(Mutex::new(Some(socket)));
    let (service, orders) = taking_orders();
    let open = move |_: &LayerInfo, event: &LayerEvent<'_>| {
        if let LayerEvent::Retrying { .. } = event
            && let Some(socket) = socket.lock().unwrap().take()
        {
            serve_on(socket.listen(16).unwrap(), service.clone());
        }
    };
    (address, open, orders)
}

fn order(to: SocketAddr) -> Request<Full<Bytes>> {
    Request::post(format!("http://{to}/orders")).body(Full::from("order")).unwrap()
}

/// Shows: F4
#[tokio::test]
async fn a_post_whose_connection_was_refused_is_sent_again() {
    for version in BOTH {
        let (address, open, mut orders) = opening_late();
        let service = ServiceBuilder::new()
            .layer(RetryLayer::http().observer(open))
            .map_err(Error::Service)
            .service(pooled(version));
        let response = soon(service.oneshot(order(address))).await.unwrap();
        assert_eq!(response.status(), 200);
        assert_eq!(orders.try_recv().unwrap(), (Method::POST, Bytes::from_static(b"order")));
        assert!(orders.try_recv().is_err(), "it came once");
    }
}

/// Whatever form the client's error has by then.
///
/// Shows: F4
#[tokio::test]
async fn a_refused_connection_is_seen_in_boxed_errors_too() {
    let (address, open, mut orders) = opening_late();
    let service = ServiceBuilder::new()
        .layer(RetryLayer::http().observer(open))
        .map_err(ziggurat::boxed)
        .service(pooled(Version::Http1));
    soon(service.oneshot(order(address))).await.unwrap();
    orders.try_recv().unwrap();

    let (address, open, mut orders) = opening_late();
    let service = ServiceBuilder::new()
        .layer(RetryLayer::http().observer(open))
        .map_err(|error: hyper_util::client::legacy::Error| Error::Service(BoxError::from(error)))
        .service(pooled(Version::Http1));
    soon(service.oneshot(order(address))).await.unwrap();
    orders.try_recv().unwrap();
}

/// Shows: F4
#[tokio::test]
async fn a_post_of_reqwest_whose_connection_was_refused_is_sent_again() {
    let (address, open, mut orders) = opening_late();
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let service =
        ServiceBuilder::new().layer(RetryLayer::http().observer(open)).map_err(Error::Service).service(client.clone());
    let request = client.post(format!("http://{address}/orders")).body("order").build().unwrap();
    assert_eq!(soon(service.oneshot(request)).await.unwrap().status(), 200);
    assert_eq!(orders.try_recv().unwrap(), (Method::POST, Bytes::from_static(b"order")));
    assert!(orders.try_recv().is_err(), "it came once");
}

/// The body was not read, so nothing is recorded.
///
/// Shows: F4, R9
#[tokio::test]
async fn a_streamed_post_whose_connection_was_refused_is_sent_again_and_costs_no_memory() {
    for copy_some in [false, true] {
        let (address, open, mut orders) = opening_late();
        let replay = ReplayLayer::new().max_bytes(0);
        let (frames, body) = streamed();
        for part in ["or", "der"] {
            frames.send(Ok(Bytes::from_static(part.as_bytes()))).unwrap();
        }
        drop(frames);
        let request = Request::post(format!("http://{address}/orders")).body(any(body)).unwrap();
        let retry = RetryLayer::http().observer(open);
        let client = ServiceBuilder::new().map_err(Error::Service).service(pooled(Version::Http1));
        let response = if copy_some {
            let retry = retry.copy(CopyIf(|request: &Request<_>| request.method() == Method::GET));
            soon(replay.layer(retry.layer(client)).oneshot(request)).await
        } else {
            soon(replay.layer(retry.layer(client)).oneshot(request)).await
        };
        assert_eq!(response.unwrap().status(), 200);
        assert_eq!(orders.try_recv().unwrap(), (Method::POST, Bytes::from_static(b"order")));
        assert_eq!(replay.bytes(), 0);
    }
}

/// If nothing ever listens, the attempts end as for a GET.
///
/// Shows: F4
#[tokio::test]
async fn the_last_refusal_comes_back() {
    let retried = Arc::new(Mutex::new(0));
    let counted = Arc::clone(&retried);
    let count = move |_: &LayerInfo, event: &LayerEvent<'_>| {
        if let LayerEvent::Retrying { .. } = event {
            *counted.lock().unwrap() += 1;
        }
    };
    let service = ServiceBuilder::new()
        .layer(RetryLayer::http().observer(count))
        .map_err(Error::Service)
        .service(pooled(Version::Http1));
    let outcome = soon(service.oneshot(order(nobody().await))).await;
    assert!(matches!(outcome, Err(Error::Service(error)) if error.is_connect()));
    assert_eq!(*retried.lock().unwrap(), 2);
}

/// Returns how often a POST reaches a server that sends these bytes first, and proper responses after that.
async fn sent(version: Version, first_answer: Vec<u8>) -> usize {
    let (service, _orders) = taking_orders();
    let well = serve(service).await;
    let server = RawServer::start(vec![first_answer], well.address).await;
    let (client, watch) = stack(3, pooled(version));
    let outcome = soon(client.oneshot(order(server.address))).await;
    assert_eq!(outcome.is_ok(), server.accepted() == 2);
    drop(outcome);
    watch.all_back().await;
    server.accepted()
}

/// Shows: F4
#[tokio::test]
async fn a_post_whose_stream_was_refused_is_sent_again() {
    let settings = frame(SETTINGS, 0, 0, &[]);
    let reset = |reason: u8| [settings.clone(), frame(RST_STREAM, 0, 1, &[0, 0, 0, reason])].concat();
    let goaway =
        |last: u8, reason: u8| [settings.clone(), frame(GOAWAY, 0, 0, &[0, 0, 0, last, 0, 0, 0, reason])].concat();
    for (what, answer, times) in [
        ("REFUSED_STREAM", reset(7), 2),
        ("beyond the last stream", goaway(0, 0), 2),
        ("beyond the last stream, with an error", goaway(0, 11), 2),
        // These may have been processed.
        ("INTERNAL_ERROR", reset(2), 1),
        ("CANCEL", reset(8), 1),
        ("the last stream", goaway(1, 0), 1),
        ("the last stream, with an error", goaway(1, 11), 1),
        ("closed", settings.clone(), 1),
    ] {
        let came = sent(Version::Http2, answer).await;
        assert_eq!(came, times, "{what}");
    }
}

/// A connection that ends before the response proves nothing: the order may be on its way.
///
/// Shows: F4, R5
#[tokio::test]
async fn a_post_that_may_have_been_processed_is_sent_once() {
    for answer in [&b""[..], b"HTTP/1.1 200 OK\r\nContent-Le", b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n"] {
        let (service, mut orders) = taking_orders();
        let well = serve(service).await;
        let server = RawServer::start(vec![answer.to_vec()], well.address).await;
        let (client, watch) = stack(3, pooled(Version::Http1));
        let outcome = soon(client.oneshot(order(server.address))).await;
        assert!(outcome.is_err() || answer.starts_with(b"HTTP/1.1 503"));
        assert_eq!(server.accepted(), 1);
        assert!(orders.try_recv().is_err());
        drop(outcome);
        watch.all_back().await;
    }
}
