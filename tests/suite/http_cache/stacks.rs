//! In the recommended stacks, on real sockets: a cache in the client's and one behind the server's.

use std::sync::atomic::{AtomicU32, Ordering::SeqCst};

use axum::{Router, http::header::CACHE_CONTROL, response::IntoResponse, routing::get};
use http_body_util::Full;
use hyper_util::{client::legacy::Client as HttpClient, rt::TokioExecutor};
use tower::ServiceBuilder;
use ziggurat::{
    Scope,
    stack::{ClientStack, ServerStack},
};

use super::*;

static CALLS: AtomicU32 = AtomicU32::new(0);

async fn prices() -> impl IntoResponse {
    let body = format!("prices {}", CALLS.fetch_add(1, SeqCst) + 1);
    ([(CACHE_CONTROL, "max-age=3600")], body)
}

/// Shows: C8
#[tokio::test]
async fn a_client_and_a_server_cache() {
    let app = Scope::root("app");
    let cache = CacheLayer::http().named("server");
    let at_server = cache.handle();
    let router = Router::new().route("/prices", get(prices)).layer(cache).layer(ServerStack::new(&app));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = tokio::spawn(async move { axum::serve(listener, router).await });

    let cache = CacheLayer::http().named("client");
    let at_client = cache.handle();
    let client = ServiceBuilder::new()
        .layer(cache)
        .layer(ClientStack::http("prices").settings_from(&app))
        .map_err(ziggurat::Error::Service)
        .service(HttpClient::builder(TokioExecutor::new()).build_http::<Full<Bytes>>());
    let read = || async {
        let request = Request::get(format!("http://{address}/prices")).body(Full::default()).unwrap();
        let (head, body) = client.clone().oneshot(request).await.unwrap().into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        let status = head.headers["cache-status"].to_str().unwrap().to_owned();
        (String::from_utf8(body.into()).unwrap(), status.replace("3599", "3600"))
    };

    let prices = || "prices 1".to_owned();
    let first = "server; fwd=uri-miss; stored, client; fwd=uri-miss; stored";
    assert_eq!(read().await, (prices(), first.to_owned()));
    // The body has ended for its caller a moment before it is stored.
    while at_client.is_empty() || at_server.is_empty() {
        tokio::task::yield_now().await;
    }
    assert_eq!(read().await, (prices(), "server; fwd=uri-miss; stored, client; hit; ttl=3600".to_owned()));
    at_client.clear();
    let (body, status) = read().await;
    assert_eq!((body, &*status), (prices(), "server; hit; ttl=3600, client; fwd=uri-miss; stored"));
    assert_eq!((CALLS.load(SeqCst), at_server.stats().hits, at_client.stats().hits), (1, 1, 1));
    server.abort();
}
