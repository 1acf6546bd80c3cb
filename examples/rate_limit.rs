//! Limits the rate of each API key at an axum router: 5 calls in each second. A call beyond that gets 429, with the
//! time to come back.
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
use ziggurat::{
    per_key::{PerKeyLayer, Unkeyed},
    rate_limit::RateLimitLayer,
    rejection_response::RejectionResponseLayer,
};

const RATE: u32 = 5;
const SECOND: Duration = Duration::from_secs(1);

/// A request without a key is rejected with 400.
fn api_key(request: &Request) -> Result<&str, Unkeyed> {
    let header = request.headers().get("x-api-key").ok_or(Unkeyed::Reject)?;
    header.to_str().map_err(|_| Unkeyed::Reject)
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let listen = listen::address()?;
    let limits = PerKeyLayer::borrowed(api_key, |_| RateLimitLayer::new(RATE, SECOND).named("api")).max_keys(10_000);
    let keys = limits.handle();
    let router = Router::new()
        .route("/", get(|| async { "hello" }))
        // The limits inside, so that their rejections get a body.
        .layer(ServiceBuilder::new().layer(RejectionResponseLayer::problem_json()).layer(limits))
        .route("/health", get(|| async { "ok" })); // added after the layers, and so outside them

    let listener = TcpListener::bind(listen.unwrap_or(([127, 0, 0, 1], 0).into())).await?;
    let address = listener.local_addr()?;
    if listen.is_some() {
        println!("listening on http://{address}");
        return Ok(axum::serve(listener, router).await?);
    }
    tokio::spawn(async move { axum::serve(listener, router).await });

    let client = Client::builder(TokioExecutor::new()).build_http();
    let call = async |path, key| get_path(&client, address, path, key).await;
    let mut calls = 0;
    let response = loop {
        let response = call("/", Some("adam")).await?;
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

    // The others have rates of their own.
    assert_eq!(call("/", Some("eve")).await?.status(), StatusCode::OK);
    assert_eq!(call("/", None).await?.status(), StatusCode::BAD_REQUEST);
    assert_eq!(call("/health", None).await?.status(), StatusCode::OK);

    sleep(Duration::from_secs(seconds)).await;
    assert_eq!(call("/", Some("adam")).await?.status(), StatusCode::OK);

    // The rate of a key can change while the program runs. An instance that is made anew has the one above again.
    let adam = keys.instance("adam").ok_or("no such key")?;
    adam.layer.handle().set_rate(100, SECOND);
    for _ in 0..2 * RATE {
        assert_eq!(call("/", Some("adam")).await?.status(), StatusCode::OK);
    }
    for key in keys.instances() {
        println!("{}: {:?}", key.key, key.layer.handle());
    }
    Ok(())
}

async fn get_path(
    client: &Client<HttpConnector, Body>,
    address: SocketAddr,
    path: &str,
    key: Option<&str>,
) -> Result<Response<hyper::body::Incoming>, Box<dyn Error>> {
    let mut request = Request::get(format!("http://{address}{path}"));
    if let Some(key) = key {
        request = request.header("x-api-key", key);
    }
    Ok(client.request(request.body(Body::empty())?).await?)
}
