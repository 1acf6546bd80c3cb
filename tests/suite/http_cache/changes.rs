//! Requests that may change a resource: which of them invalidate, and what.

use tokio::time::timeout;
use ziggurat::{LayerInfo, Reason, concurrency_limit::ConcurrencyLimitLayer};

use super::*;

/// Shows: C8, W1
#[tokio::test(start_paused = true)]
async fn a_request_that_changes_something_invalidates_what_it_names() {
    let answer = |n: usize, parts: request::Parts| async move {
        let status = if parts.uri.path() == "/fails" { 500 } else { 200 };
        match parts.method {
            Method::GET => response(200, &["cache-control: max-age=60"], n.to_string()),
            _ => response(status, &["location: b", "content-location: http://shop.test/c", "x: y"], ""),
        }
    };
    let site = Site::new(CacheLayer::http(), answer);
    let paths = ["/d/a", "/d/b", "/c", "/d/other", "/fails"];
    let bodies = || async {
        let mut bodies = Vec::new();
        for path in paths {
            bodies.push(site.get(path, &[]).await.body);
        }
        bodies
    };
    assert_eq!(bodies().await, ["1", "2", "3", "4", "5"]);
    site.ask(Method::POST, "/fails", &[]).await;
    assert_eq!(bodies().await, ["1", "2", "3", "4", "5"]);
    site.ask("M-SEARCH".parse().unwrap(), "/d/a", &[]).await;
    assert_eq!(bodies().await, ["8", "9", "10", "4", "5"]);
    // In whatever scheme the requests name it.
    let request = Request::put("https://SHOP.test/d/a").body(Empty::new()).unwrap();
    site.send(request).await.unwrap();
    assert_eq!(bodies().await, ["12", "13", "14", "4", "5"]);
}

#[tokio::test(start_paused = true)]
async fn a_change_whose_outcome_is_unknown_invalidates() {
    let answer = |n: usize, parts: request::Parts| async move {
        match parts.method {
            Method::GET => response(200, &["cache-control: max-age=60"], n.to_string()),
            Method::PUT => Err(Error::Service("no answer in time")),
            _ => std::future::pending().await,
        }
    };
    let site = Site::new(CacheLayer::http(), answer);
    assert_eq!(site.get("/", &[]).await.body, "1");
    let post = site.send(request(Method::POST, "/", &[]));
    assert!(timeout(SECOND, post).await.is_err());
    assert_eq!(site.get("/", &[]).await.body, "3");
    settle().await;
    assert!(site.send(request(Method::PUT, "/", &[])).await.is_err());
    assert_eq!(site.get("/", &[]).await.body, "5");
}

/// A request that no service has seen has changed nothing.
#[tokio::test(start_paused = true)]
async fn a_change_that_was_never_sent_invalidates_nothing() {
    let answer = |n: usize, parts: request::Parts| async move {
        match parts.headers.get("x").map(|x| x.to_str().unwrap().to_owned()).as_deref() {
            None => response(200, &["cache-control: max-age=1000"], n.to_string()),
            Some("circuit") => Err(Error::Rejected(LayerInfo::new("test").reject(Reason::CircuitOpen))),
            Some("late") => {
                let rejection = LayerInfo::new("test").reject(Reason::TimedOut { limit: SECOND });
                Err(Error::Rejected(rejection))
            }
            Some(_) => std::future::pending().await,
        }
    };
    let layer = CacheLayer::http();
    let site = Site::new(layer.clone(), answer);
    site.get("/", &[]).await;
    let post = |x| request(Method::POST, "/", &[x]);
    assert!(site.send(post("x: circuit")).await.is_err());
    assert_eq!(site.get("/", &[]).await.body, "1", "an open circuit");
    drop(site.send(post("x: circuit")));
    assert_eq!(site.get("/", &[]).await.body, "1", "it was never polled");
    assert!(site.send(post("x: late")).await.is_err());
    assert_ne!(site.get("/", &[]).await.body, "1", "it may have been sent");

    // It leaves the queue of a full limit, and then one leaves the service.
    let stored = site.get("/", &[]).await.body;
    let limit = ConcurrencyLimitLayer::new(1).max_wait(60 * SECOND);
    let hangs = service_fn(|_: Request<Empty<Bytes>>| std::future::pending::<Answer>());
    let limited = tower::ServiceBuilder::new().layer(layer.clone()).layer(limit).service(hangs);
    let send = || timeout(SECOND, limited.clone().oneshot(post("x: y")));
    let holds = tokio::spawn(limited.clone().oneshot(request(Method::POST, "/other", &[])));
    settle().await;
    assert!(send().await.is_err());
    assert_eq!(site.get("/", &[]).await.body, stored, "it was queued");
    holds.abort();
    settle().await;
    assert!(send().await.is_err());
    assert_ne!(site.get("/", &[]).await.body, stored, "it was sent");
}

#[tokio::test(start_paused = true)]
async fn an_invalidation_reaches_every_name_of_a_resource() {
    for (stored, changed) in [
        ("unix://sock.test/a", "unix://sock.test/a"),
        ("http://shop.test/a", "http://shop.test:80/a"),
        ("http://shop.test:80/a", "http://shop.test/a"),
        ("https://shop.test/a", "https://SHOP.test:443/a"),
        ("https://shop.test:443/a", "https://shop.test/a"),
    ] {
        let site = Site::numbered(&["cache-control: max-age=100"]);
        let ask = async |method| {
            let request = Request::builder().method(method).uri(stored).body(Empty::new()).unwrap();
            let read = Read::of(site.send(request).await.unwrap()).await;
            settle().await;
            read.body
        };
        assert_eq!((ask(Method::GET).await, ask(Method::GET).await), ("1".into(), "1".into()));
        let post = Request::post(changed).body(Empty::new()).unwrap();
        site.send(post).await.unwrap();
        assert_eq!(ask(Method::GET).await, "3", "{changed}");
        site.handle.invalidate(&changed.parse().unwrap());
        assert_eq!(ask(Method::GET).await, "4", "{changed}");
    }
}
