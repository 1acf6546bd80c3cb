//! Retries over HTTP, against a real server: which responses are retried and when, which requests are not, and how many
//! in all.

use std::{
    collections::HashMap,
    error::Error as StdError,
    net::SocketAddr,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use axum::{
    Router,
    http::{HeaderValue, StatusCode, Uri},
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use futures_util::future::try_join_all;
use http_body_util::Full;
use hyper::{Method, Request};
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use tokio::net::TcpListener;
use tower::{ServiceBuilder, ServiceExt};
use ziggurat::{Backoff, Budget, Error, LayerEvent, LayerInfo, retry::RetryLayer, timeout::TimeoutLayer};

/// How often each path was requested, and each reason not to retry was given.
static COUNTS: Mutex<Option<HashMap<String, u32>>> = Mutex::new(None);

fn count(what: &str, more: u32) -> u32 {
    let mut counts = COUNTS.lock().unwrap_or_else(PoisonError::into_inner);
    let count = counts.get_or_insert_default().entry(what.to_owned()).or_default();
    *count += more;
    *count
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn StdError>> {
    let upstream = start_upstream().await?;

    let retry = RetryLayer::http()
        .max_attempts(3)
        .backoff(Backoff::exponential(Duration::from_millis(10)).max(Duration::from_secs(1)))
        // The retries of all calls together in ten seconds: a tenth of the calls, or ten.
        .budget(Budget::new(0.1).min_per_second(1))
        .observer(|_: &LayerInfo, event: &LayerEvent<'_>| match event {
            LayerEvent::Retrying { attempt, delay, cause } => {
                println!("attempt {attempt} failed ({cause}), the next one in {delay:.1?}")
            }
            LayerEvent::GaveUp { reason, .. } => _ = count(reason, 1),
            _ => {}
        });
    let client = ServiceBuilder::new()
        .layer(TimeoutLayer::new(Duration::from_secs(10)))
        .layer(retry)
        .map_err(Error::Service)
        .service(Client::builder(TokioExecutor::new()).build_http::<Full<Bytes>>());
    // Returns the status, and how often the server was called.
    let ask = async |method: Method, path: &str, headers: &[(&'static str, &str)]| {
        let mut request = Request::builder().method(method).uri(format!("http://{upstream}{path}"));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = client.clone().oneshot(request.body(Full::default())?).await?;
        Ok::<_, Box<dyn StdError>>((response.status().as_u16(), count(path, 0)))
    };

    // A 503 may pass by the next attempt, and here it has at the third. After a 500, the work may have been done.
    assert_eq!(ask(Method::GET, "/flaky", &[]).await?, (200, 3));
    assert_eq!(ask(Method::GET, "/broken", &[]).await?, (500, 1));

    // A server's `Retry-After` is obeyed. But no caller waits for an hour: it gets that response at once.
    let start = Instant::now();
    assert_eq!(ask(Method::GET, "/busy", &[]).await?, (200, 2));
    assert!(start.elapsed() >= Duration::from_secs(1));
    assert_eq!(ask(Method::GET, "/closed", &[]).await?, (503, 1));
    assert_eq!(count("retry_after", 0), 1);

    // A POST is sent once, unless the server can recognize a repeated one.
    assert_eq!(ask(Method::POST, "/orders", &[]).await?, (503, 1));
    assert_eq!(count("copy", 0), 1);
    assert_eq!(ask(Method::POST, "/payments", &[("idempotency-key", "4711")]).await?, (503, 3));

    // An outage. Five retries were made so far, and five more are left for all of these calls (ten, if ten seconds have
    // passed), not two for each of them.
    let calls = (0..40).map(|_| ask(Method::GET, "/down", &[]));
    assert!(try_join_all(calls).await?.iter().all(|(status, _)| *status == 503));
    let retries = count("/down", 0) - 40;
    assert!((5..=10).contains(&retries));
    println!("an outage: 40 calls, {retries} retries, {} denied by the budget", count("budget", 0));
    Ok(())
}

async fn start_upstream() -> Result<SocketAddr, std::io::Error> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(async { axum::serve(listener, Router::new().fallback(upstream)).await });
    Ok(address)
}

async fn upstream(uri: Uri) -> Response {
    let retry_after = |seconds| [("retry-after", HeaderValue::from_static(seconds))];
    match (uri.path(), count(uri.path(), 1)) {
        ("/flaky", 3) | ("/busy", 2) => StatusCode::OK.into_response(),
        ("/broken", _) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
        ("/busy", _) => (StatusCode::TOO_MANY_REQUESTS, retry_after("1")).into_response(),
        ("/closed", _) => (StatusCode::SERVICE_UNAVAILABLE, retry_after("3600")).into_response(),
        _ => StatusCode::SERVICE_UNAVAILABLE.into_response(),
    }
}
