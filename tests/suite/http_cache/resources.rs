//! The responses of one resource: which of them is for whom, which is the newest, and what an invalidation reaches.

use std::ops::RangeInclusive;

use http_body_util::Full;
use tokio::time::{Instant, advance, sleep};

use super::*;

const FRESH: &str = "cache-control: max-age=100";

/// Sends GETs at the same time, and returns how long they take together.
async fn together(site: &Site, requests: RangeInclusive<usize>) -> Duration {
    let begun = Instant::now();
    let one = |_| {
        let site = site.clone();
        tokio::spawn(async move { site.get("/", &[]).await })
    };
    for caller in requests.map(one).collect::<Vec<_>>() {
        caller.await.unwrap();
    }
    begun.elapsed()
}

#[tokio::test(start_paused = true)]
async fn a_value_that_only_looks_like_a_list_selects_its_own_response() {
    for (field, poison, honest) in [
        ("x-tenant", ",a,", "a"),
        ("x-tenant", "a,,b", "a,b"),
        ("origin", "https://app.test,", "https://app.test"),
        ("cookie", "A=1", "a=1"),
        ("accept", "text/html;profile=A", "text/html;profile=a"),
    ] {
        let site = Site::new(CacheLayer::http(), move |_, parts: request::Parts| async move {
            let value = parts.headers[field].to_str().unwrap().to_owned();
            response(200, &[FRESH, &format!("vary: {field}")], value)
        });
        for value in [poison, honest] {
            assert_eq!(site.get("/", &[&format!("{field}: {value}")]).await.body, value);
            settle().await;
        }
    }
}

/// The first request takes five seconds. Another one, sent later, is answered at once.
async fn newest_of(slow: [&'static str; 2], fast: [&'static str; 2]) -> String {
    let answer = move |n: usize, _| async move {
        if n == 1 {
            sleep(5 * SECOND).await;
        }
        response(200, if n == 1 { &slow } else { &fast }, n.to_string())
    };
    let site = Site::new(CacheLayer::http(), answer);
    let (_, ()) = tokio::join!(site.get("/", &["x: 1"]), async {
        sleep(SECOND).await;
        assert_eq!(site.get("/", &["cache-control: no-cache", "x: 2"]).await.body, "2");
    });
    settle().await;
    site.get("/", &["x: 2"]).await.body
}

#[tokio::test(start_paused = true)]
async fn a_late_response_replaces_no_newer_one_whatever_they_depend_on() {
    assert_eq!(newest_of([FRESH, "vary: y"], [FRESH, "etag: \"a\""]).await, "2");
    assert_eq!(newest_of([FRESH, "etag: \"a\""], [FRESH, "vary: x"]).await, "2");
    assert_eq!(newest_of([FRESH, "vary: y"], [FRESH, "vary: x"]).await, "2");
    assert_eq!(newest_of([FRESH, "vary: x"], [FRESH, "vary: x"]).await, "2");
}

#[tokio::test(start_paused = true)]
async fn a_late_response_for_other_callers_is_stored() {
    let answer = |n: usize, _| async move {
        sleep(if n == 1 { 5 * SECOND } else { SECOND }).await;
        response(200, &[FRESH, "vary: x"], n.to_string())
    };
    let site = Site::new(CacheLayer::http(), answer);
    tokio::join!(site.get("/", &["x: 1"]), async {
        settle().await;
        advance(SECOND).await;
        site.get("/", &["x: 2"]).await;
    });
    settle().await;
    assert_eq!((site.get("/", &["x: 1"]).await.body, site.get("/", &["x: 2"]).await.body), ("1".into(), "2".into()));
}

#[tokio::test(start_paused = true)]
async fn no_caller_gets_the_cookie_that_a_304_sets_for_another() {
    let answer = |n: usize, parts: request::Parts| async move {
        let status = if n == 1 || parts.method == Method::HEAD { 200 } else { 304 };
        let cookie = ["set-cookie: sid=1", "x: y"][usize::from(n == 1)];
        response(status, &["cache-control: public, max-age=10", "etag: \"a\"", cookie], if n == 1 { "1" } else { "" })
    };
    let site = Site::new(CacheLayer::http(), answer);
    for method in [Method::HEAD, Method::GET] {
        site.get("/", &[]).await;
        settle().await;
        site.ask(method.clone(), "/", &["cache-control: no-cache"]).await;
        settle().await;
        let stored = site.get("/", &[]).await;
        assert_eq!((stored.header("set-cookie"), &*stored.body), ("", "1"), "{method}");
    }
}

#[tokio::test(start_paused = true)]
async fn responses_for_one_caller_alone_push_none_out() {
    let answer = |_, parts: request::Parts| async move {
        let is_good = parts.uri.path().starts_with("/good");
        if is_good { response(200, &[FRESH], vec![b'x'; 1000]) } else { response(404, &["cache-control: private"], "") }
    };
    let site = Site::new(CacheLayer::http().capacity(100_000), answer);
    for n in 0..30 {
        site.get(&format!("/good{n}"), &[]).await;
        settle().await;
    }
    let bytes = site.handle.bytes();
    for n in 0..2000 {
        site.get(&format!("/scan{n}"), &[]).await;
    }
    settle().await;
    assert_eq!((site.handle.len(), site.handle.bytes(), site.handle.stats().evicted), (30, bytes, 0));
}

#[tokio::test(start_paused = true)]
async fn requests_wait_for_one_another_again_once_a_response_is_for_all() {
    let answer = |_, parts: request::Parts| async move {
        sleep(SECOND).await;
        let control = if parts.headers.contains_key("cookie") { "private" } else { "max-age=3" };
        response(200, &[&format!("cache-control: {control}"), "vary: cookie"], "")
    };
    let site = Site::new(CacheLayer::http(), answer);
    site.get("/", &["cookie: a"]).await;
    together(&site, 1..=1).await;
    let before = site.calls();
    sleep(5 * SECOND).await;
    together(&site, 1..=20).await;
    assert_eq!(site.calls() - before, 1);
}

/// A stale response that stays in the store must not make private requests wait in line.
#[tokio::test(start_paused = true)]
async fn requests_do_not_wait_for_one_another_where_a_response_has_become_private() {
    let answer = |n: usize, _| async move {
        sleep(SECOND).await;
        let headers =
            if n == 1 { ["cache-control: max-age=10", "etag: \"a\""] } else { ["cache-control: private", "x: y"] };
        response(200, &headers, "")
    };
    let site = Site::new(CacheLayer::http(), answer);
    site.get("/", &[]).await;
    sleep(20 * SECOND).await;
    assert_eq!(together(&site, 1..=10).await, 2 * SECOND);
    assert_eq!(together(&site, 1..=10).await, SECOND);
}

#[tokio::test(start_paused = true)]
async fn variants_that_nothing_finds_are_not_counted() {
    type Change = fn(&HttpCacheHandle);
    let changes: [(&str, Change); 3] = [
        ("uri", |handle| handle.invalidate(&"http://shop.test/".parse().unwrap())),
        ("predicate", |handle| assert!(handle.invalidate_if(|key| key.path() == "/") >= 20)),
        ("clear", HttpCacheHandle::clear),
    ];
    for (name, change) in changes {
        let site = Site::numbered(&[FRESH, "vary: x", "etag: \"a\""]);
        for n in 0..20 {
            site.get("/", &[&format!("x: {n}")]).await;
            settle().await;
        }
        assert_eq!(site.handle.len(), 20);
        change(&site.handle);
        assert_eq!((site.handle.len(), site.handle.bytes()), (0, 0), "{name}");
    }
}

#[tokio::test(start_paused = true)]
async fn many_variants_stay_and_go_with_their_resource() {
    let site = Site::numbered(&[FRESH, "vary: x", "etag: \"a\""]);
    for n in 0..100 {
        site.get("/", &[&format!("x: {n}")]).await;
        settle().await;
    }
    assert_eq!((site.handle.len(), &*site.get("/", &["x: 0"]).await.body), (100, "1"));
    site.handle.invalidate(&"http://shop.test/".parse().unwrap());
    assert_eq!((site.handle.len(), site.handle.bytes()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_response_for_all_replaces_the_variants() {
    let answer = |n: usize, _| async move {
        let vary = if n <= 5 { "vary: x" } else { "y: z" };
        response(200, &[FRESH, "etag: \"a\"", vary], n.to_string())
    };
    let site = Site::new(CacheLayer::http(), answer);
    for n in 1..=6 {
        site.get("/", &[&format!("x: {n}")]).await;
        settle().await;
        advance(SECOND).await;
    }
    assert_eq!((site.handle.len(), &*site.get("/", &["x: 1"]).await.body), (1, "6"));
    assert!(site.handle.bytes() < 2000, "{}", site.handle.bytes());
}

#[tokio::test(start_paused = true)]
async fn statistics_agree_if_resources_are_evicted_with_their_variants() {
    let answer = |_, _| async { response(200, &[FRESH, "vary: x"], vec![b'x'; 2000]) };
    let site = Site::new(CacheLayer::http().capacity(100_000), answer);
    for n in 0..300 {
        site.get(&format!("/{}", n / 3), &[&format!("x: {n}")]).await;
        settle().await;
        let stats = site.handle.stats();
        assert_eq!(stats.stored - stats.evicted, site.handle.len() as u64, "{n}");
    }
    assert!((10..50).contains(&site.handle.len()), "{}", site.handle.len());
}

#[tokio::test(start_paused = true)]
async fn only_if_cached_never_goes_upstream() {
    let site = Site::numbered(&[FRESH]);
    let ask = async |more: &str| site.get("/", &["cache-control: only-if-cached", more]).await;
    let demands = ["cache-control: no-store", "if-match: \"x\"", "if-unmodified-since: Mon, 05 Jan 2026 10:00:00 GMT"];
    for more in demands {
        let missing = ask(more).await;
        assert_eq!(missing.status.as_u16(), 504, "{more}");
        assert_eq!(missing.header("cache-status"), "ziggurat; detail=only-if-cached", "{more}");
    }
    assert_eq!(site.calls(), 0);
    site.get("/", &[]).await;
    settle().await;
    // Nothing is stored for it.
    assert_eq!(ask(demands[0]).await.body, "1");
    assert_eq!((ask(demands[1]).await.status.as_u16(), site.calls()), (504, 1));
}

#[tokio::test(start_paused = true)]
async fn what_is_larger_than_the_cache_is_not_called_stored() {
    let layer = CacheLayer::http().capacity(10_000);
    let site =
        Site::new(layer, |_, _| async { response(200, &[FRESH, "content-length: 100000"], vec![b'x'; 100_000]) });
    assert_eq!(site.get("/", &[]).await.header("cache-status"), "ziggurat; fwd=uri-miss");
}

#[tokio::test(start_paused = true)]
async fn a_ttl_without_end_is_written_as_an_integer_that_parsers_read() {
    let layer = CacheLayer::http().default_ttl(Duration::MAX);
    let site = Site::new(layer, |_, _| async { response(200, &[], "") });
    site.get("/", &[]).await;
    settle().await;
    assert_eq!(site.get("/", &[]).await.header("cache-status"), "ziggurat; hit; ttl=999999999999999");
}

#[tokio::test(start_paused = true)]
async fn a_status_comes_after_all_those_of_a_response_that_passes() {
    let site = Site::new(CacheLayer::http(), |_, _| async {
        response(200, &["cache-status: origin; hit", "cache-status: middle; hit"], "")
    });
    let passed = site.ask(Method::POST, "/", &[]).await;
    let lines: Vec<_> = passed.headers.get_all("cache-status").iter().collect();
    assert_eq!(lines, ["origin; hit", "middle; hit", "ziggurat; fwd=method"]);
    for headers in [&[][..], &["if-none-match: *"]] {
        let missed = site.get("/", headers).await;
        assert_eq!(missed.header("cache-status"), "origin; hit, middle; hit, ziggurat; fwd=uri-miss", "{headers:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_may_go_on_forever_after_its_caller() {
    let answer = |n: usize, _| async move {
        sleep(SECOND).await;
        response(200, &[FRESH], n.to_string())
    };
    let site = Site::new(CacheLayer::http().linger(Duration::MAX), answer);
    assert!(tokio::time::timeout(SECOND / 2, site.get("/", &[])).await.is_err());
    sleep(5 * SECOND).await;
    assert_eq!((site.handle.len(), site.calls()), (1, 1));
}

/// A runtime without a clock has no timers.
#[test]
fn a_request_goes_on_after_its_caller_on_a_runtime_without_a_clock() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let (ready, answered) = tokio::sync::oneshot::channel::<()>();
        let answered = Arc::new(Mutex::new(Some(answered)));
        let origin = service_fn(move |_: Request<Empty<Bytes>>| {
            let answered = answered.lock().unwrap().take().unwrap();
            async move {
                answered.await.unwrap();
                let response = Response::builder().header("cache-control", "max-age=60");
                Ok::<_, Failed>(response.body(Full::new(Bytes::from("1"))).unwrap())
            }
        });
        let layer = CacheLayer::http();
        let (handle, client) = (layer.handle(), layer.layer(origin));
        let caller = tokio::spawn(client.oneshot(request(Method::GET, "/", &[])));
        settle().await;
        caller.abort();
        settle().await;
        ready.send(()).unwrap();
        settle().await;
        assert_eq!(handle.len(), 1);
    });
}
