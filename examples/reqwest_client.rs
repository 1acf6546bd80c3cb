//! Wraps a `reqwest::Client`, which is a service with its own request and response types (feature `reqwest`).
//!
//! A request whose body is a stream is sent once. The retry's rules apply to all others. Redirects that reqwest follows
//! belong to one attempt.

use std::{
    error::Error as StdError,
    net::SocketAddr,
    sync::atomic::{AtomicU32, Ordering::Relaxed},
    time::Duration,
};

use axum::{
    Router,
    http::StatusCode,
    routing::{get, post},
};
use reqwest::{Method, Request};
use tokio::net::TcpListener;
use tower::{ServiceBuilder, ServiceExt};
use ziggurat::{
    Error, Scope, circuit_breaker::CircuitBreakerLayer, concurrency_limit::ConcurrencyLimitLayer,
    context::ContextLayer, retry::RetryLayer, timeout::TimeoutLayer,
};

static FLAKY: AtomicU32 = AtomicU32::new(0);
static HANGS: AtomicU32 = AtomicU32::new(0);
static ORDERS: AtomicU32 = AtomicU32::new(0);

#[tokio::main]
async fn main() -> Result<(), Box<dyn StdError>> {
    let upstream = start_upstream().await?;

    let breaker = CircuitBreakerLayer::http().consecutive_failures(3);
    let limit = ConcurrencyLimitLayer::new(25).until_body_end();
    let gate = limit.handle();
    let client = ServiceBuilder::new()
        .layer(ContextLayer::ambient(Scope::root("shop")))
        .layer(TimeoutLayer::new(Duration::from_secs(10)).until_body_end().named("total"))
        .layer(RetryLayer::http().max_attempts(3).backoff(Duration::from_millis(10)))
        .layer(breaker)
        .layer(limit)
        .layer(TimeoutLayer::new(Duration::from_millis(500)).named("attempt"))
        .map_err(Error::Service)
        .service(reqwest::Client::new());

    // Two responses of 503, and then it works: the caller sees only the last response. Its body holds the permit until
    // it is read.
    let response = client.clone().oneshot(request(Method::GET, upstream, "/flaky")?).await?;
    assert_eq!(gate.in_flight(), 1);
    assert_eq!(response.text().await?, "third time lucky");
    assert_eq!((FLAKY.load(Relaxed), gate.in_flight()), (3, 0));

    // A POST may have done its work, so it is sent once. With an `Idempotency-Key` it would be retried.
    let response = client.clone().oneshot(request(Method::POST, upstream, "/orders")?).await?;
    assert_eq!((response.status(), ORDERS.load(Relaxed)), (StatusCode::SERVICE_UNAVAILABLE, 1));
    let response = client.clone().oneshot(request(Method::GET, upstream, "/hello")?).await?;
    assert_eq!(response.text().await?, "hello");

    // Each attempt hangs and is given up. The caller gets the outcome of the last one.
    let outcome = client.clone().oneshot(request(Method::GET, upstream, "/hangs")?).await;
    let rejection = ziggurat::rejection(&outcome).ok_or("a call that hangs is rejected")?;
    assert!(rejection.is_timed_out() && rejection.name() == Some("attempt"));

    // The failed attempts of one request weigh little more than one: the next request opens the circuit, which rejects
    // its last attempt.
    let outcome = client.oneshot(request(Method::GET, upstream, "/hangs")?).await;
    let rejection = ziggurat::rejection(&outcome).ok_or("an open circuit rejects")?;
    assert!(rejection.is_circuit_open() && rejection.retry_after().is_some());
    assert_eq!(HANGS.load(Relaxed), 5);

    println!("retried repeatable requests, gave up a call that hangs, and stopped calling a failing server");
    Ok(())
}

fn request(method: Method, to: SocketAddr, path: &str) -> Result<Request, Box<dyn StdError>> {
    Ok(Request::new(method, format!("http://{to}{path}").parse()?))
}

async fn start_upstream() -> Result<SocketAddr, std::io::Error> {
    let flaky = || async {
        match FLAKY.fetch_add(1, Relaxed) {
            0 | 1 => (StatusCode::SERVICE_UNAVAILABLE, ""),
            _ => (StatusCode::OK, "third time lucky"),
        }
    };
    let order = || async {
        ORDERS.fetch_add(1, Relaxed);
        StatusCode::SERVICE_UNAVAILABLE
    };
    let hangs = || async {
        HANGS.fetch_add(1, Relaxed);
        std::future::pending::<StatusCode>().await
    };
    let app = Router::new()
        .route("/hello", get(|| async { "hello" }))
        .route("/flaky", get(flaky))
        .route("/orders", post(order))
        .route("/hangs", get(hangs));
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(async { axum::serve(listener, app).await });
    Ok(address)
}
