//! Responses that the service has confirmed with a 304, or not.

use tokio::time::{advance, sleep};

use super::*;

/// Shows: W1
#[tokio::test(start_paused = true)]
async fn a_304_refreshes_the_response() {
    let answer = |n: usize, parts: request::Parts| async move {
        match n {
            1 => response(
                200,
                &["cache-control: max-age=10", "etag: \"a\"", "x: 1", "y: 1", "content-length: 4"],
                "body",
            ),
            _ => {
                assert_eq!(parts.headers["if-none-match"], "\"a\"");
                response(304, &["cache-control: max-age=20", "etag: \"a\"", "x: 2", "content-length: 0"], "")
            }
        }
    };
    let site = Site::new(CacheLayer::http(), answer);
    site.get("/", &[]).await;
    advance(10 * SECOND).await;
    for (validated, status) in [(1, "ziggurat; fwd=stale; fwd-status=304"), (1, "ziggurat; hit; ttl=20")] {
        let read = site.get("/", &[]).await;
        assert_eq!((read.status_and_body(), read.header("age")), ((200, "body"), "0"));
        assert_eq!([read.header("x"), read.header("y"), read.header("content-length")], ["2", "1", "4"]);
        assert_eq!((site.handle.stats().validated, read.header("cache-status")), (validated, status));
    }
    advance(19 * SECOND).await;
    assert_eq!(site.get("/", &[]).await.header("age"), "19");
    assert_eq!(site.calls(), 2);
}

/// Shows: W1
#[tokio::test(start_paused = true)]
async fn a_304_about_another_version_reaches_nobody() {
    let answer = |n: usize, _| async move {
        match n {
            2 => response(304, &["etag: \"b\""], ""),
            _ => response(200, &["cache-control: max-age=10", "etag: \"a\""], n.to_string()),
        }
    };
    let site = Site::new(CacheLayer::http(), answer);
    site.get("/", &[]).await;
    advance(10 * SECOND).await;
    assert_eq!(site.get("/", &[]).await.status_and_body(), (502, ""));
    assert!(!site.asked()[1].headers["if-none-match"].is_empty());
    assert_eq!(site.get("/", &[]).await.status_and_body(), (200, "3"));
    assert!(!site.asked()[2].headers.contains_key("if-none-match"));
}

/// Those who wait get it too, and the next request asks for the new version.
#[tokio::test(start_paused = true)]
async fn a_304_about_another_version_is_a_failure_that_a_stale_response_replaces() {
    let answer = |n: usize, _| async move {
        sleep(SECOND).await;
        match n {
            2 => response(304, &["etag: \"b\""], ""),
            _ => response(200, &["cache-control: max-age=10", "etag: \"a\""], n.to_string()),
        }
    };
    let site = Site::new(CacheLayer::http().stale_if_error(100 * SECOND), answer);
    site.get("/", &[]).await;
    advance(10 * SECOND).await;
    let (one, other) = tokio::join!(site.get("/", &[]), site.get("/", &[]));
    assert_eq!([one.status_and_body(), other.status_and_body()], [(200, "1"); 2]);
    assert_eq!(one.header("cache-status"), "ziggurat; fwd=stale; fwd-status=304");
    assert_eq!((site.handle.len(), site.handle.stats().stale_on_error), (0, 1));
    assert_eq!(site.get("/", &[]).await.status_and_body(), (200, "3"));
    assert!(!site.asked()[2].headers.contains_key("if-none-match"));
}

/// And no other caller.
#[tokio::test(start_paused = true)]
async fn the_caller_whose_request_was_validated_gets_what_the_304_says_to_it_alone() {
    for control in ["max-age=10, public", "max-age=10", "no-store"] {
        let answer = move |n: usize, _| async move {
            sleep(SECOND).await;
            match n {
                1 => response(200, &["cache-control: max-age=10", "etag: \"a\"", "cache-status: origin; hit"], "1"),
                _ => {
                    let control = format!("cache-control: {control}");
                    let cookies = ["set-cookie: a=1", "set-cookie: b=2"];
                    let said = ["cache-status: origin; hit; detail=1", "cache-status: middle; hit"];
                    response(304, &[&control, "etag: \"a\"", cookies[0], cookies[1], said[0], said[1]], "")
                }
            }
        };
        for conditions in [&[][..], &["if-none-match: \"a\""]] {
            let site = Site::new(CacheLayer::http(), answer);
            site.get("/", &[]).await;
            advance(10 * SECOND).await;
            let (one, other) = tokio::join!(site.get("/", conditions), async {
                settle().await;
                match control {
                    "no-store" => None,
                    _ => Some(site.get("/", &[]).await),
                }
            });
            let cookies: Vec<_> = one.headers.get_all("set-cookie").iter().collect();
            assert_eq!(cookies, ["a=1", "b=2"], "{control}");
            let before = "origin; hit; detail=1, middle; hit, ziggurat; fwd=stale; fwd-status=304";
            assert_eq!(one.header("cache-status"), before, "{control}");
            if let Some(other) = other {
                let expected = ("", "ziggurat; fwd=stale; collapsed");
                assert_eq!((other.header("set-cookie"), other.header("cache-status")), expected, "{control}");
                let hit = site.get("/", &[]).await;
                assert_eq!((hit.header("set-cookie"), hit.header("cache-status")), ("", "ziggurat; hit; ttl=9"));
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_304_that_forbids_storage_is_obeyed() {
    let answer = |n: usize, _| async move {
        match n {
            2 => response(304, &["etag: \"a\"", "cache-control: no-store"], ""),
            _ => response(200, &["cache-control: max-age=10", "etag: \"a\""], n.to_string()),
        }
    };
    let site = Site::new(CacheLayer::http(), answer);
    site.get("/", &[]).await;
    advance(10 * SECOND).await;
    assert_eq!(site.get("/", &[]).await.status_and_body(), (200, "1"));
    assert_eq!(site.handle.len(), 0);
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
