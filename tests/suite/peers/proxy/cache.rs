//! The proxy with a cache. How the cache decides is tested with the layer, and against the suite by `.ci/cache-tests`.

use super::*;

fn small() -> Caching {
    Caching { capacity: 1 << 20, ..Caching::default() }
}

/// A proxy with a cache in front of an upstream that responds with its number of calls and the host that it was told,
/// and with `headers`.
async fn caching(headers: &'static [(&'static str, &'static str)]) -> (Proxy, Server, Arc<AtomicUsize>) {
    let calls = Arc::<AtomicUsize>::default();
    let counted = Arc::clone(&calls);
    let upstream = serve(tower::service_fn(move |request: Request<Incoming>| {
        let call = counted.fetch_add(1, Ordering::SeqCst) + 1;
        async move {
            let host = request.headers()["x-forwarded-host"].to_str().unwrap();
            let mut response = answer(format!("call {call} for {host}"));
            for (name, value) in headers {
                response.headers_mut().append(*name, value.parse().unwrap());
            }
            Ok::<_, Infallible>(response)
        }
    }))
    .await;
    let proxy = proxy_with(upstream.address, patient(), small()).await;
    (proxy, upstream, calls)
}

fn get_of(host: &str) -> String {
    format!("GET /path HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n")
}

#[tokio::test]
async fn a_stored_response_needs_no_call_and_has_an_age() {
    let (proxy, _upstream, calls) = caching(&[("cache-control", "max-age=3600"), ("x-end", "1")]).await;
    let first = exchange(&proxy, get_of("a")).await;
    assert!(first.ends_with("call 1 for a") && !first.contains("\r\nage: "), "{first}");
    let second = exchange(&proxy, get_of("a")).await;
    assert!(second.ends_with("call 1 for a"), "{second}");
    assert!(second.contains("\r\nage: ") && second.contains("\r\nx-end: 1\r\n"), "{second}");
    assert_eq!(calls.load(Ordering::SeqCst), 1);
}

/// The upstream is told the host, so its response may depend on it.
#[tokio::test]
async fn a_host_never_gets_the_response_of_another_host() {
    let (proxy, _upstream, _) = caching(&[("cache-control", "max-age=3600")]).await;
    for host in ["a", "b", "a:81"] {
        let response = exchange(&proxy, get_of(host)).await;
        assert!(response.ends_with(&format!(" for {host}")), "{response}");
    }
    let by_target = "GET http://b/path HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
    assert!(exchange(&proxy, by_target).await.ends_with("call 2 for b"));
}

#[tokio::test]
async fn headers_for_one_connection_are_not_stored() {
    let headers = &[("cache-control", "max-age=3600"), ("connection", "x-hop"), ("x-hop", "1"), ("keep-alive", "1")];
    let (proxy, _upstream, calls) = caching(headers).await;
    for _ in 0..2 {
        let response = exchange(&proxy, get_of("a")).await;
        assert!(!response.contains("x-hop") && !response.contains("keep-alive"), "{response}");
    }
    assert_eq!(calls.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn while_the_upstream_fails_a_stale_response_is_served() {
    let calls = Arc::<AtomicUsize>::default();
    let upstream = serve(tower::service_fn(move |_: Request<Incoming>| {
        let mut response = answer("stored");
        match calls.fetch_add(1, Ordering::SeqCst) {
            0 => drop(response.headers_mut().insert("cache-control", "max-age=0".parse().unwrap())),
            _ => *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE,
        }
        async move { Ok::<_, Infallible>(response) }
    }))
    .await;
    let proxy = proxy_with(upstream.address, Limits { bare: true, ..patient() }, small()).await;
    for _ in 0..2 {
        assert_eq!(status_of(&proxy, get_of("a")).await, 200);
    }
    // Nothing is stored for it.
    assert_eq!(status_of(&proxy, get_of("b")).await, 503);
}

#[tokio::test]
async fn a_bare_proxy_passes_every_failure_on() {
    let calls = Arc::<AtomicUsize>::default();
    let counted = Arc::clone(&calls);
    let upstream = serve(tower::service_fn(move |_: Request<Incoming>| {
        counted.fetch_add(1, Ordering::SeqCst);
        async { Ok::<_, Infallible>(Response::builder().status(503).body(any(Full::<Bytes>::default())).unwrap()) }
    }))
    .await;
    let proxy = proxy_within(upstream.address, Limits { bare: true, ..patient() }).await;
    for _ in 0..30 {
        assert_eq!(status_of(&proxy, get_of("a")).await, 503);
    }
    assert_eq!(calls.load(Ordering::SeqCst), 30);
}
