//! Wraps a hyper-util client that speaks HTTP/2: many concurrent calls over one connection, each with its own limit.
//!
//! Giving up a call resets only its stream: the server notices at once, and the connection stays usable. This stack
//! limits the calls in flight for all servers. Each server limits the streams of a connection, and calls beyond that
//! limit wait inside the client.

use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::{convert::Infallible, error::Error as StdError, net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Full};
use hyper::{Request, Response, Version, body::Incoming, server::conn::http2, service::service_fn};
use hyper_util::{
    client::legacy::Client,
    rt::{TokioExecutor, TokioIo},
};
use tokio::{
    net::TcpListener,
    sync::{Barrier, Notify},
    task::JoinSet,
};
use tower::{ServiceBuilder, ServiceExt};
use ziggurat::{Error, concurrency_limit::ConcurrencyLimitLayer, timeout::TimeoutLayer};

const CALLS: usize = 20;

struct Upstream {
    connections: AtomicUsize,
    given_up: Notify,
    together: Barrier,
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn StdError>> {
    let upstream =
        Arc::new(Upstream { connections: AtomicUsize::new(0), given_up: Notify::new(), together: Barrier::new(CALLS) });
    let address = start(Arc::clone(&upstream)).await?;

    let limit = ConcurrencyLimitLayer::new(CALLS).until_body_end();
    let gate = limit.handle();
    let client = ServiceBuilder::new()
        .layer(limit)
        .layer(TimeoutLayer::new(|req: &Request<_>| {
            Duration::from_millis(if req.uri().path() == "/hangs" { 100 } else { 10_000 })
        }))
        .map_err(Error::Service)
        .service(Client::builder(TokioExecutor::new()).http2_only(true).build_http::<Empty<Bytes>>());

    // The first call opens the connection. Concurrent first calls can open one each, if they look for it while another
    // one is being put into the pool.
    let response = client.clone().oneshot(request(address, "/")?).await?;
    assert_eq!(response.into_body().collect().await?.to_bytes(), "hello");

    // The server responds once all calls have arrived: they are in flight together, on one connection.
    let mut calls = JoinSet::new();
    for _ in 0..CALLS {
        calls.spawn(client.clone().oneshot(request(address, "/together")?));
    }
    while let Some(outcome) = calls.join_next().await {
        let response = outcome??;
        assert_eq!(response.version(), Version::HTTP_2);
        assert_eq!(response.into_body().collect().await?.to_bytes(), "together");
    }
    assert_eq!((upstream.connections.load(SeqCst), gate.in_flight()), (1, 0));

    // A call hangs and is given up, which the server notices.
    let outcome = client.clone().oneshot(request(address, "/hangs")?).await;
    assert!(ziggurat::rejection(&outcome).is_some_and(|rejection| rejection.is_timed_out()));
    upstream.given_up.notified().await;

    let response = client.oneshot(request(address, "/")?).await?;
    assert_eq!(response.into_body().collect().await?.to_bytes(), "hello");
    assert_eq!((upstream.connections.load(SeqCst), gate.in_flight()), (1, 0));

    println!("{CALLS} concurrent calls over one connection, which outlived a call that was given up");
    Ok(())
}

fn request(to: SocketAddr, path: &str) -> Result<Request<Empty<Bytes>>, hyper::http::Error> {
    Request::get(format!("http://{to}{path}")).body(Empty::new())
}

/// Notifies the server when a call is given up, because its future is dropped then.
struct GivenUp<'a>(&'a Notify);

impl Drop for GivenUp<'_> {
    fn drop(&mut self) {
        self.0.notify_one();
    }
}

async fn answer(upstream: Arc<Upstream>, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    match request.uri().path() {
        "/together" => {
            upstream.together.wait().await;
            Ok(Response::new("together".into()))
        }
        "/hangs" => {
            let _given_up = GivenUp(&upstream.given_up);
            std::future::pending().await
        }
        _ => Ok(Response::new("hello".into())),
    }
}

async fn start(upstream: Arc<Upstream>) -> Result<SocketAddr, std::io::Error> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            upstream.connections.fetch_add(1, SeqCst);
            let upstream = Arc::clone(&upstream);
            let service = service_fn(move |request| answer(Arc::clone(&upstream), request));
            tokio::spawn(http2::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service));
        }
    });
    Ok(address)
}
