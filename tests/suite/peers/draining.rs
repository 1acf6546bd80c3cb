//! A server that drains: axum over HTTP/1, and hyper over both versions.

use std::{convert::Infallible, time::Duration};

use axum::{
    Router,
    response::sse::{Event, Sse},
    routing::get as route,
};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http_body_util::{BodyExt, Full};
use hyper::{Request, Response, StatusCode, body::Incoming, header::CONNECTION};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tower::{ServiceBuilder, service_fn};
use ziggurat::drain::{DrainLayer, draining};

use super::{BOTH, Door, FAR, Version, any, get, next, only, pooled, serve, soon, streamed};

/// Sends a request whose connection is to be kept open.
async fn send(to: std::net::SocketAddr, path: &str) -> TcpStream {
    let mut client = soon(TcpStream::connect(to)).await.unwrap();
    client.write_all(format!("GET {path} HTTP/1.1\r\nhost: test\r\n\r\n").as_bytes()).await.unwrap();
    client
}

/// Reads up to the end of the connection.
async fn all(mut client: TcpStream) -> String {
    let mut read = String::new();
    soon(client.read_to_string(&mut read)).await.unwrap();
    read.to_ascii_lowercase()
}

/// Shows: D1
#[tokio::test]
async fn axum_drains_and_then_stops() {
    let (drain, door) = (DrainLayer::new().grace(FAR), Door::default());
    let (handle, passed) = (drain.handle(), door.clone());
    let news = || async {
        let first = stream::iter([Ok::<_, Infallible>(Event::default().data("news"))]);
        Sse::new(first.chain(stream::pending()).take_until(draining()))
    };
    let router = Router::new()
        .route("/news", route(news))
        .route("/", route(move || async move { passed.pass().await }))
        .layer(drain)
        .route("/health", route(|| async { "alive" }));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let drained = handle.clone();
    let stopped = async move {
        stopped.await.unwrap();
        drained.drain().await;
    };
    let server = tokio::spawn(axum::serve(listener, router).with_graceful_shutdown(stopped).into_future());

    let mut news = send(address, "/news").await;
    let mut start = [0; 15];
    soon(news.read_exact(&mut start)).await.unwrap();
    assert_eq!(&start, b"HTTP/1.1 200 OK");
    let running = send(address, "/").await;
    door.entered.heard().await;
    assert_eq!(handle.in_flight(), 2);

    stop.send(()).unwrap();
    // The stream has a proper end. Its connection stays open until the drain has ended.
    let mut read = Vec::new();
    while !read.ends_with(b"\r\n0\r\n\r\n") {
        read.push(soon(news.read_u8()).await.unwrap());
    }
    let rejected = all(send(address, "/").await).await;
    assert!(rejected.starts_with("http/1.1 503"), "{rejected}");
    assert!(rejected.contains("\r\nconnection: close\r\n"), "{rejected}");
    let mut health = send(address, "/health").await;
    soon(health.read_exact(&mut start)).await.unwrap();
    assert_eq!(&start, b"HTTP/1.1 200 OK");

    assert!(!server.is_finished());
    door.leave.ring();
    let finished = all(running).await;
    assert!(finished.starts_with("http/1.1 200") && finished.contains("\r\nconnection: close\r\n"), "{finished}");
    soon(server).await.unwrap().unwrap();
    for idle in [news, health] {
        assert!(!all(idle).await.contains("connection: close"));
    }
}

/// Shows: D1
#[tokio::test]
async fn a_body_goes_on_during_the_drain_and_only_http_1_is_told_to_close() {
    for version in BOTH {
        let drain = DrainLayer::new().grace(FAR);
        let handle = drain.handle();
        let (frames, body) = streamed();
        let body = only(body);
        let service = service_fn(move |_: Request<Incoming>| {
            let response = Response::new(any(body()));
            async { Ok::<_, Infallible>(response) }
        });
        let stack =
            ServiceBuilder::new().map_response(|response: Response<_>| response.map(any)).layer(drain).service(service);
        let server = serve(stack).await;
        let client = pooled::<Full<Bytes>>(version);
        let mut running = soon(client.request(get(server.address, "/"))).await.unwrap();
        frames.send(Ok(Bytes::from("first"))).unwrap();
        assert_eq!(next(running.body_mut()).await.unwrap().unwrap(), "first");

        let drained = handle.drain();
        let rejected = soon(client.request(get(server.address, "/"))).await.unwrap();
        assert_eq!(rejected.status(), StatusCode::SERVICE_UNAVAILABLE);
        let closes = rejected.headers().get(CONNECTION).is_some_and(|value| value == "close");
        assert_eq!(closes, version == Version::Http1);

        frames.send(Ok(Bytes::from("last"))).unwrap();
        drop(frames);
        assert_eq!(soon(running.into_body().collect()).await.unwrap().to_bytes(), "last");
        soon(drained).await;
        assert_eq!(handle.in_flight(), 0);
    }
}

/// Shows: D1
#[tokio::test]
async fn at_the_end_of_the_grace_period_a_body_breaks_off() {
    for version in BOTH {
        let drain = DrainLayer::new().grace(Duration::from_millis(20));
        let handle = drain.handle();
        let (frames, body) = streamed();
        let body = only(body);
        let stack = ServiceBuilder::new().map_response(|response: Response<_>| response.map(any)).layer(drain).service(
            service_fn(move |_: Request<Incoming>| {
                let response = Response::new(any(body()));
                async { Ok::<_, Infallible>(response) }
            }),
        );
        let server = serve(stack).await;
        let mut running = soon(pooled::<Full<Bytes>>(version).request(get(server.address, "/"))).await.unwrap();
        frames.send(Ok(Bytes::from("first"))).unwrap();
        assert_eq!(next(running.body_mut()).await.unwrap().unwrap(), "first");
        soon(handle.drain()).await;
        assert!(next(running.body_mut()).await.unwrap().is_err());
        soon(frames.closed()).await;
    }
}
