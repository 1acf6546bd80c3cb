//! Wraps a hyper-util client: gives up calls that hang, retries requests that may be repeated, and keeps the error's
//! type.
//!
//! The body of the response is streamed as the client delivers it. The body of the requests can be copied
//! (`Full<Bytes>`), which is the retry's only requirement.

use std::{
    error::Error as StdError,
    net::SocketAddr,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use axum::{
    Router,
    http::StatusCode,
    routing::{get, post},
};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{Method, Request};
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use tokio::net::TcpListener;
use tower::{ServiceBuilder, ServiceExt};
use ziggurat::{Error, retry::RetryLayer, timeout::TimeoutLayer};

static FLAKY: AtomicU32 = AtomicU32::new(0);
static ORDERS: AtomicU32 = AtomicU32::new(0);

#[tokio::main]
async fn main() -> Result<(), Box<dyn StdError + Send + Sync>> {
    let upstream = start_upstream().await?;

    let client = ServiceBuilder::new()
        .layer(TimeoutLayer::new(Duration::from_secs(10)).until_body_end().named("total"))
        .layer(RetryLayer::http().max_attempts(3).backoff(Duration::from_millis(10)))
        .layer(TimeoutLayer::new(Duration::from_millis(500)).named("attempt"))
        .map_err(Error::Service)
        .service(Client::builder(TokioExecutor::new()).build_http::<Full<Bytes>>());

    // Two responses of 503, and then it works: the caller sees only the last response.
    let response = client.clone().oneshot(request(Method::GET, upstream, "/flaky")?).await?;
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(response.into_body().collect().await?.to_bytes(), "third time lucky");
    assert_eq!(FLAKY.load(Ordering::Relaxed), 3);

    // A POST may have done its work, so it is sent once. With an `Idempotency-Key` it would be retried.
    let response = client.clone().oneshot(request(Method::POST, upstream, "/orders")?).await?;
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(ORDERS.load(Ordering::Relaxed), 1);

    // Each attempt hangs and is given up. The caller gets the outcome of the last one.
    let outcome = client.clone().oneshot(request(Method::GET, upstream, "/hangs")?).await;
    let rejection = ziggurat::rejection(&outcome).ok_or("a call that hangs is rejected")?;
    assert!(rejection.is_timed_out());
    assert_eq!(rejection.name(), Some("attempt"));

    // Nothing listens there. The client's own error passes unchanged, with all its methods.
    let nobody = TcpListener::bind("127.0.0.1:0").await?.local_addr()?;
    match client.oneshot(request(Method::GET, nobody, "/")?).await {
        Err(Error::Service(error)) => assert!(error.is_connect()),
        outcome => panic!("a connection was refused, and yet: {outcome:?}"),
    }
    println!("retried repeatable requests, gave up a call that hangs, and kept the client's error");
    Ok(())
}

fn request(method: Method, to: SocketAddr, path: &str) -> Result<Request<Full<Bytes>>, hyper::http::Error> {
    Request::builder().method(method).uri(format!("http://{to}{path}")).body(Full::default())
}

async fn start_upstream() -> Result<SocketAddr, std::io::Error> {
    let flaky = || async {
        match FLAKY.fetch_add(1, Ordering::Relaxed) {
            0 | 1 => (StatusCode::SERVICE_UNAVAILABLE, ""),
            _ => (StatusCode::OK, "third time lucky"),
        }
    };
    let order = || async {
        ORDERS.fetch_add(1, Ordering::Relaxed);
        StatusCode::SERVICE_UNAVAILABLE
    };
    let app = Router::new()
        .route("/flaky", get(flaky))
        .route("/orders", post(order))
        .route("/hangs", get(std::future::pending::<StatusCode>));
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(async { axum::serve(listener, app).await });
    Ok(address)
}
