//! What requests ask for: conditions, ranges, methods and directives.

use tokio::time::advance;

use super::*;

const FRESH: &[&str] = &["cache-control: max-age=60", "etag: \"a\"", "content-type: text/plain"];

/// Shows: W2
#[tokio::test(start_paused = true)]
async fn a_caller_who_has_the_response_gets_a_304() {
    let site = Site::numbered(FRESH);
    // The first one too: the cache asks for the whole response.
    for n in 0..2 {
        let read = site.get("/", &["if-none-match: \"x\", W/\"a\""]).await;
        assert_eq!((read.status_and_body(), read.header("etag")), ((304, ""), "\"a\""), "{n}");
        assert_eq!(read.header("content-type"), "");
        settle().await;
    }
    assert!(!site.asked()[0].headers.contains_key("if-none-match"));
    assert_eq!(site.get("/", &["if-none-match: \"x\""]).await.status_and_body(), (200, "1"));
    assert_eq!(site.calls(), 1);
}

#[tokio::test(start_paused = true)]
async fn the_condition_of_a_caller_is_judged_after_a_validation() {
    let answer = |n: usize, _| async move {
        if n == 1 { response(200, &["cache-control: max-age=1", "etag: \"a\""], "1") } else { response(304, FRESH, "") }
    };
    let site = Site::new(CacheLayer::http(), answer);
    site.get("/", &[]).await;
    advance(SECOND).await;
    let (new, same) = tokio::join!(site.get("/", &["if-none-match: \"x\""]), site.get("/", &["if-none-match: \"a\""]));
    assert_eq!((new.status_and_body(), same.status_and_body()), ((200, "1"), (304, "")));
    assert_eq!((site.calls(), &site.asked()[1].headers["if-none-match"]), (2, &"\"a\"".parse().unwrap()));
}

/// Shows: W2
#[tokio::test(start_paused = true)]
async fn ranges_are_parts_of_the_stored_response() {
    let answer = |n: usize, parts: request::Parts| async move {
        match parts.headers.contains_key("range") {
            true => response(206, &["cache-control: max-age=60", "content-range: bytes 0-1/10"], format!("p{n}")),
            false => response(200, &["cache-control: max-age=60", "etag: \"a\"", "content-length: 10"], "0123456789"),
        }
    };
    let site = Site::new(CacheLayer::http(), answer);
    // A part is not stored, and does not hold back anybody.
    assert_eq!(site.get("/", &["range: bytes=0-1"]).await.status_and_body(), (206, "p1"));
    assert_eq!(site.get("/", &[]).await.status_and_body(), (200, "0123456789"));
    settle().await;
    for (range, content, body) in
        [("0-1", "0-1", "01"), ("8-", "8-9", "89"), ("-3", "7-9", "789"), ("2-99", "2-9", "23456789")]
    {
        let read = site.get("/", &[&format!("range: bytes={range}")]).await;
        assert_eq!(read.status_and_body(), (206, body));
        assert_eq!(read.header("content-range"), format!("bytes {content}/10"));
        assert_eq!(read.header("content-length"), body.len().to_string());
    }
    let read = site.get("/", &["range: bytes=10-"]).await;
    assert_eq!((read.status_and_body(), read.header("content-range")), ((416, ""), "bytes */10"));
    let if_range = |etag| format!("if-range: {etag}");
    assert_eq!(site.get("/", &["range: bytes=0-1", &if_range("\"a\"")]).await.status_and_body(), (206, "01"));
    assert_eq!(site.get("/", &["range: bytes=0-1", &if_range("\"b\"")]).await.status_and_body(), (200, "0123456789"));
    assert_eq!(site.get("/", &["range: bytes=0-1", "if-none-match: \"a\""]).await.status_and_body(), (304, ""));
    assert_eq!(site.calls(), 2);
}

/// Shows: W2
#[tokio::test(start_paused = true)]
async fn a_head_is_answered_from_a_get_and_never_the_other_way() {
    let site = Site::numbered(FRESH);
    assert_eq!(site.ask(Method::HEAD, "/", &[]).await.header("cache-status"), "ziggurat; fwd=method");
    assert_eq!(site.get("/", &[]).await.body, "2");
    settle().await;
    let head = site.ask(Method::HEAD, "/", &[]).await;
    assert_eq!((head.status_and_body(), head.header("content-length"), head.header("etag")), ((200, ""), "1", "\"a\""));
    assert_eq!(site.calls(), 2);
}

#[tokio::test(start_paused = true)]
async fn the_answer_to_a_head_says_whether_the_stored_response_is_current() {
    for (etag, body) in [("a", "1"), ("b", "3")] {
        let answer = move |n: usize, parts: request::Parts| async move {
            let etag = if parts.method == Method::HEAD { etag } else { "a" };
            assert!(n < 3 || parts.headers.contains_key("if-none-match"), "it is stale, and not gone");
            response(200, &["cache-control: max-age=10", &format!("etag: \"{etag}\"")], n.to_string())
        };
        let site = Site::new(CacheLayer::http(), answer);
        site.get("/", &[]).await;
        advance(10 * SECOND).await;
        site.ask(Method::HEAD, "/", &[]).await;
        assert_eq!(site.get("/", &[]).await.body, body, "{etag}");
    }
}

/// Shows: W1
#[tokio::test(start_paused = true)]
async fn a_request_may_forbid_the_use_or_the_storage() {
    let site = Site::numbered(&["cache-control: max-age=60"]);
    assert_eq!(site.get("/", &["cache-control: no-store"]).await.body, "1");
    assert_eq!(site.get("/", &["cache-control: only-if-cached"]).await.status_and_body(), (504, ""));
    assert_eq!(site.get("/", &[]).await.body, "2");
    assert_eq!(site.get("/", &["cache-control: only-if-cached"]).await.status_and_body(), (200, "2"));
    assert_eq!(site.get("/", &["cache-control: no-cache"]).await.body, "3");
    assert_eq!(site.get("/", &["cache-control: max-age=0"]).await.body, "4");
    assert_eq!(site.get("/", &["pragma: no-cache"]).await.body, "5");
    assert_eq!(site.get("/", &["cache-control: no-store"]).await.body, "6");
    assert_eq!(site.get("/", &[]).await.body, "5");
}

#[tokio::test(start_paused = true)]
async fn what_the_cache_does_not_understand_passes() {
    let site = Site::numbered(&["cache-control: max-age=60"]);
    let twice_a_host = request(Method::GET, "/", &["host: other.test"]);
    let with_content = request(Method::GET, "/", &["content-length: 3"]);
    let upgrade = request(Method::GET, "/", &["upgrade: websocket"]);
    let precondition = request(Method::GET, "/", &["if-match: \"a\""]);
    for (n, request) in [twice_a_host, with_content, upgrade, precondition].into_iter().enumerate() {
        let read = Read::of(site.send(request).await.unwrap()).await;
        assert_eq!(
            (read.body, read.headers["cache-status"].to_str().unwrap()),
            ((n + 1).to_string(), "ziggurat; fwd=bypass")
        );
    }
    assert_eq!((site.handle.stats().bypassed, site.handle.len()), (4, 0));
}

#[tokio::test(start_paused = true)]
async fn only_if_cached_never_goes_upstream() {
    let site = Site::numbered(FRESH);
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
