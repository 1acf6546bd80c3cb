//! Stale responses: behind a validation, and in place of a failure.

use std::sync::atomic::{AtomicU32, Ordering::SeqCst};

use tokio::time::{advance, sleep};
use tower::ServiceBuilder;
use ziggurat::{LayerInfo, Reason, circuit_breaker::CircuitBreakerLayer};

use super::*;
use crate::cache::failed_refreshes;

/// Shows: W3
#[tokio::test(start_paused = true)]
async fn one_request_refreshes_while_a_stale_response_is_served() {
    let answer = |n: usize, _| async move {
        sleep(SECOND).await;
        response(200, &["cache-control: max-age=10, stale-while-revalidate=5"], n.to_string())
    };
    let site = Site::new(CacheLayer::http(), answer);
    site.get("/", &[]).await;
    advance(10 * SECOND).await;
    for _ in 0..3 {
        let stale = site.get("/", &[]).await;
        assert_eq!((&*stale.body, stale.header("cache-status")), ("1", "ziggurat; hit; ttl=-1"));
    }
    sleep(2 * SECOND).await;
    assert_eq!((site.calls(), &*site.get("/", &[]).await.body), (2, "2"));
    let stats = site.handle.stats();
    assert_eq!((stats.stale, stats.refreshes, stats.misses, stats.hits), (3, 1, 1, 1));
    // After the window a request waits.
    advance(16 * SECOND).await;
    assert_eq!(site.get("/", &[]).await.body, "3");
}

/// Shows: W3
#[tokio::test(start_paused = true)]
async fn a_stale_response_replaces_a_failure() {
    for failure in [|| Err(Error::Service("gone")), || response(503, &[], "sorry")] {
        let answer = move |n: usize, _| async move {
            if n == 1 { response(200, &["cache-control: max-age=10, stale-if-error=20"], "1") } else { failure() }
        };
        let site = Site::new(CacheLayer::http(), answer);
        site.get("/", &[]).await;
        advance(20 * SECOND).await;
        let (one, other) = tokio::join!(site.get("/", &[]), site.get("/", &[]));
        assert_eq!((&*one.body, &*other.body, site.calls()), ("1", "1", 2));
        assert_eq!((one.header("age"), site.handle.stats().stale_on_error), ("20", 1));
        advance(10 * SECOND).await;
        let late = site.send(request(Method::GET, "/", &[])).await;
        assert!(late.is_err() || late.unwrap().status() == 503);
    }
}

/// Shows: W3
#[tokio::test(start_paused = true)]
async fn an_open_circuit_is_a_failure_too() {
    let calls = std::sync::Arc::new(AtomicU32::new(0));
    let count = std::sync::Arc::clone(&calls);
    let origin = service_fn(move |_: Request<Empty<Bytes>>| {
        let n = count.fetch_add(1, SeqCst) + 1;
        async move { if n == 1 { response(200, &["cache-control: max-age=10"], "1") } else { Err(Error::Service("gone")) } }
    });
    let client = ServiceBuilder::new()
        .layer(CacheLayer::http().stale_if_error(3600 * SECOND))
        .layer(CircuitBreakerLayer::http().consecutive_failures(3))
        .service(origin);
    let get = || async { Read::of(client.clone().oneshot(request(Method::GET, "/", &[])).await.unwrap()).await.body };
    get().await;
    advance(10 * SECOND).await;
    for _ in 0..10 {
        assert_eq!(get().await, "1");
    }
    assert_eq!(calls.load(SeqCst), 4);
}

/// Shows: W1
#[tokio::test(start_paused = true)]
async fn a_response_that_must_be_revalidated_is_never_stale() {
    for control in
        ["max-age=10, must-revalidate", "max-age=10, proxy-revalidate", "s-maxage=10", "max-age=10, no-cache"]
    {
        let layer = CacheLayer::http().stale_if_error(100 * SECOND).stale_while_revalidate(100 * SECOND);
        let line = format!("cache-control: {control}");
        let answer = move |n: usize, _| {
            let line = line.clone();
            async move { if n == 1 { response(200, &[&line, "etag: \"a\""], "1") } else { Err(Error::Service("gone")) } }
        };
        let site = Site::new(layer, answer);
        site.get("/", &[]).await;
        advance(10 * SECOND).await;
        assert!(site.send(request(Method::GET, "/", &[])).await.is_err(), "{control}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_refresh_that_brings_nothing_is_reported() {
    type Refresh = fn() -> Answer;
    let failing = || {
        let (sender, body) = streamed();
        sender.send(Err("reset".into())).unwrap();
        streams(200, FRESH, body)
    };
    let refreshes: [(Refresh, Option<&str>); 7] = [
        (|| Err(Error::Service("gone")), Some("error: gone")),
        (|| Err(Error::Rejected(LayerInfo::new("test").reject(Reason::CircuitOpen))), Some("circuit_open: ")),
        (|| response(503, &[], ""), Some("response: the response may not be stored")),
        (|| response(200, &["cache-control: no-store"], ""), Some("response: the response may not be stored")),
        (|| response(304, &["etag: \"b\""], ""), Some("response: the response may not be stored")),
        (failing, Some("response: the body did not arrive whole, or is too large")),
        (|| response(304, &["etag: \"a\""], ""), None),
    ];
    for stale_if_error in [0, 1000] {
        for (number, (refresh, expected)) in refreshes.into_iter().enumerate() {
            let (failures, observer) = failed_refreshes();
            let layer = CacheLayer::http()
                .stale_while_revalidate(100 * SECOND)
                .stale_if_error(stale_if_error * SECOND)
                .observer(observer);
            let answer = move |n: usize, _| async move { if n == 1 { response(200, FRESH, "old") } else { refresh() } };
            let site = Site::new(layer, answer);
            site.get("/", &[]).await;
            advance(10 * SECOND).await;
            assert_eq!(site.get("/", &[]).await.body, "old");
            settle().await;
            assert_eq!(site.calls(), 2);
            let failures = failures.lock().unwrap();
            let is_right = match expected {
                Some(expected) => failures.len() == 1 && failures[0].starts_with(expected),
                None => failures.is_empty(),
            };
            assert!(is_right, "{number}: {failures:?}");
        }
    }
}

const FRESH: &[&str] = &["cache-control: max-age=10", "etag: \"a\""];

/// Shows: C8, W3
#[tokio::test(start_paused = true)]
async fn a_response_that_was_removed_before_a_request_began_replaces_no_failure() {
    let site = Site::new(CacheLayer::http(), |n, asked| async move {
        match (n, asked.method) {
            (1, _) => response(200, &["cache-control: max-age=0, stale-if-error=60", "etag: \"v\""], "removed"),
            (_, Method::POST) => response(200, &[], ""),
            _ => response(503, &[], "down"),
        }
    });
    site.get("/", &[]).await;
    let mut client = site.client.clone();
    let get = client.ready().await.unwrap().call(request(Method::GET, "/", &[]));
    site.ask(Method::POST, "/", &[]).await;
    assert_eq!(Read::of(get.await.unwrap()).await.status_and_body(), (503, "down"));
}
