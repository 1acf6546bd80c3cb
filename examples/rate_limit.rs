//! Limits the rate of calls of an axum router: 5 in each second. A call beyond that gets 429, with the time to come
//! back.
//!
//! With `-- --listen 127.0.0.1:8080` it serves any client until it is stopped.

#[path = "shared/listen.rs"]
mod listen;

use std::{error::Error, net::SocketAddr, time::Duration};

use axum::{
    Router,
    body::Body,
    extract::Request,
    http::{Response, StatusCode, header::RETRY_AFTER},
    routing::get,
};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use tokio::{net::TcpListener, time::sleep};
use tower::ServiceBuilder;
use ziggurat::{rate_limit::RateLimitLayer, rejection_response::RejectionResponseLayer};

const RATE: u32 = 5;
const SECOND: Duration = Duration::from_secs(1);

/// Health checks are not limited.
fn cost(request: &Request) -> u32 {
    if request.uri().path() == "/health" { 0 } else { 1 }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let listen = listen::address()?;
    let limit = RateLimitLayer::new(RATE, SECOND).named("api").cost(cost);
    let bucket = limit.handle();
    let router = Router::new()
        .route("/", get(|| async { "hello" }))
        .route("/health", get(|| async { "ok" }))
        // The limit inside, so that its rejections get a body.
        .layer(ServiceBuilder::new().layer(RejectionResponseLayer::problem_json()).layer(limit));

    let listener = TcpListener::bind(listen.unwrap_or(([127, 0, 0, 1], 0).into())).await?;
    let address = listener.local_addr()?;
    if listen.is_some() {
        println!("listening on http://{address}");
        return Ok(axum::serve(listener, router).await?);
    }
    tokio::spawn(async move { axum::serve(listener, router).await });

    let client = Client::builder(TokioExecutor::new()).build_http();
    let mut calls = 0;
    let response = loop {
        let response = get_path(&client, address, "/").await?;
        calls += 1;
        println!("call {calls}: {}, Retry-After: {:?}", response.status(), response.headers().get(RETRY_AFTER));
        if response.status() != StatusCode::OK {
            break response;
        }
    };
    assert!(calls > RATE);
    assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(response.headers()["content-type"], "application/problem+json");
    // A token returns after 200 ms, and the header has whole seconds.
    let seconds: u64 = response.headers()[RETRY_AFTER].to_str()?.parse()?;
    assert_eq!(seconds, 1);

    assert_eq!(get_path(&client, address, "/health").await?.status(), StatusCode::OK);

    sleep(Duration::from_secs(seconds)).await;
    println!("after {seconds} s there are {} tokens", bucket.available());
    assert_eq!(get_path(&client, address, "/").await?.status(), StatusCode::OK);

    // The rate can change while the program runs.
    bucket.set_rate(100, SECOND);
    for _ in 0..2 * RATE {
        assert_eq!(get_path(&client, address, "/").await?.status(), StatusCode::OK);
    }
    println!("{bucket:?}");
    Ok(())
}

async fn get_path(
    client: &Client<HttpConnector, Body>,
    address: SocketAddr,
    path: &str,
) -> Result<Response<hyper::body::Incoming>, Box<dyn Error>> {
    Ok(client.request(Request::get(format!("http://{address}{path}")).body(Body::empty())?).await?)
}
