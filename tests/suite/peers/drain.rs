//! Responses of failed attempts over HTTP/1, whose connection is only reused if they are read to the end.

use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{Request, StatusCode, body::Incoming};
use tower::{ServiceBuilder, ServiceExt, service_fn};
use ziggurat::{Error, retry::RetryLayer};

use super::{Server, Version, answer, get, pooled, serve, soon};

/// A pause in which the pool can take the connection back, which it does in a separate task.
const PAUSE: Duration = Duration::from_millis(10);

/// Responds twice with 503 and a body of this size, then with 200.
async fn busy(bytes: usize) -> Server {
    let calls = Arc::new(AtomicUsize::new(0));
    serve(service_fn(move |_: Request<Incoming>| {
        let mut response = answer(vec![b'x'; bytes]);
        if calls.fetch_add(1, Ordering::SeqCst) < 2 {
            *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
        }
        async { Ok::<_, Infallible>(response) }
    }))
    .await
}

/// Shows: R5
#[tokio::test]
async fn a_failed_response_is_read_to_its_end_and_the_connection_used_again() {
    for (bytes, connections) in [(0, 1), (10, 1), (60_000, 1), (10_000_000, 3)] {
        let server = busy(bytes).await;
        let client = ServiceBuilder::new()
            .layer(RetryLayer::http().backoff(PAUSE))
            .map_err(Error::Service)
            .service(pooled::<Full<Bytes>>(Version::Http1));
        let response = soon(client.oneshot(get(server.address, "/"))).await.unwrap();
        assert_eq!((response.status(), server.accepted()), (StatusCode::OK, connections), "{bytes}");
    }
}

/// Shows: R5
#[tokio::test]
async fn a_failed_response_to_reqwest_is_read_to_its_end_too() {
    for (bytes, connections) in [(0, 1), (10, 1), (60_000, 1), (10_000_000, 3)] {
        let server = busy(bytes).await;
        let client = ServiceBuilder::new()
            .layer(RetryLayer::http().backoff(PAUSE))
            .map_err(Error::Service)
            .service(reqwest::Client::new());
        let url = format!("http://{}/", server.address).parse().unwrap();
        let response = soon(client.oneshot(reqwest::Request::new(reqwest::Method::GET, url))).await.unwrap();
        assert_eq!((response.status(), server.accepted()), (StatusCode::OK, connections), "{bytes}");
    }
}
