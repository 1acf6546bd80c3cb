//! The responses that are stored, and their callers.

use tokio::time::advance;

use super::*;

/// Shows: C8, W1, W4
#[tokio::test(start_paused = true)]
async fn a_fresh_response_is_served_with_its_age() {
    let site = Site::numbered(&["cache-control: max-age=10", "x: 1"]);
    let first = site.get("/", &[]).await;
    assert_eq!((first.status_and_body(), first.header("age")), ((200, "1"), ""));
    assert_eq!(first.header("cache-status"), "ziggurat; fwd=uri-miss; stored");
    advance(9 * SECOND).await;
    let hit = site.get("/", &[]).await;
    assert_eq!((hit.status_and_body(), hit.header("age"), hit.header("x")), ((200, "1"), "9", "1"));
    assert_eq!(hit.header("cache-status"), "ziggurat; hit; ttl=1");
    assert!(!hit.header("date").is_empty());
    advance(SECOND).await;
    let second = site.get("/", &[]).await;
    assert_eq!((second.status_and_body(), second.header("cache-status")), ((200, "2"), "ziggurat; fwd=stale; stored"));
}

#[tokio::test(start_paused = true)]
async fn hosts_paths_and_queries_are_different_resources() {
    let site = Site::numbered(&["cache-control: max-age=10"]);
    for (n, path) in ["/a", "/b", "/a?b", "/a?c", "http://other.test/a", "https://other.test/a"].iter().enumerate() {
        let request = || Request::get(*path).body(Empty::new()).unwrap();
        for _ in 0..2 {
            assert_eq!(Read::of(site.send(request()).await.unwrap()).await.body, (n + 1).to_string(), "{path}");
        }
    }
    assert_eq!(site.get("/a", &[]).await.body, "7");
}

/// Shows: C8, W1
#[tokio::test(start_paused = true)]
async fn tenants_with_credentials_never_see_each_others_responses() {
    let answer = |_, parts: request::Parts| async move {
        let who = parts.headers.get("authorization").map_or("nobody", |who| who.to_str().unwrap()).to_owned();
        let control = if parts.uri.path() == "/public" {
            "cache-control: public, max-age=60"
        } else {
            "cache-control: max-age=60"
        };
        response(200, &[control], who)
    };
    let site = Site::new(CacheLayer::http(), answer);
    let (one, other) = (&["authorization: one"][..], &["authorization: other"][..]);
    for _ in 0..3 {
        let together = tokio::join!(site.get("/", one), site.get("/", other), site.get("/", &[]));
        assert_eq!([&together.0.body, &together.1.body, &together.2.body], ["one", "other", "nobody"]);
        assert_eq!(site.get("/", other).await.body, "other");
        assert_eq!(site.get("/", one).await.body, "one");
    }
    assert_eq!(site.get("/public", one).await.body, "one");
    assert_eq!(site.get("/public", other).await.body, "one");
}

/// Shows: C8
#[tokio::test(start_paused = true)]
async fn a_response_that_sets_a_cookie_is_for_one_caller() {
    let site = Site::numbered(&["cache-control: max-age=60", "set-cookie: a=b"]);
    for n in 1..4 {
        assert_eq!(site.get("/", &[]).await.body, n.to_string());
    }
    let site = Site::numbered(&["cache-control: max-age=60, public", "set-cookie: a=b"]);
    for _ in 0..2 {
        let read = site.get("/", &[]).await;
        assert_eq!((&*read.body, read.header("set-cookie")), ("1", "a=b"));
    }
}

/// Shows: W1
#[tokio::test(start_paused = true)]
async fn variants_are_stored_side_by_side() {
    let answer = |n: usize, parts: request::Parts| async move {
        let language = parts.headers.get("accept-language").map_or("none", |value| value.to_str().unwrap()).to_owned();
        response(200, &["cache-control: max-age=60", "vary: accept-language"], format!("{language} {n}"))
    };
    let site = Site::new(CacheLayer::http(), answer);
    for _ in 0..2 {
        assert_eq!(site.get("/", &["accept-language: de, en"]).await.body, "de, en 1");
        assert_eq!(site.get("/", &["accept-language: fr"]).await.body, "fr 2");
        assert_eq!(site.get("/", &[]).await.body, "none 3");
        assert_eq!(site.get("/", &["accept-language: DE ,en", "x: y"]).await.body, "de, en 1");
    }
    assert_eq!(site.handle.len(), 3);
    site.handle.invalidate(&"http://shop.test/".parse().unwrap());
    assert_eq!(site.get("/", &["accept-language: fr"]).await.body, "fr 4");
    assert_eq!(site.get("/", &[]).await.body, "none 5");
}

/// Shows: W1
#[tokio::test(start_paused = true)]
async fn a_compressed_response_is_for_those_who_asked_for_it() {
    let answer = |_, parts: request::Parts| async move {
        match parts.headers.contains_key("accept-encoding") {
            true => response(200, &["cache-control: max-age=60", "content-encoding: gzip"], "gzip"),
            false => response(200, &["cache-control: max-age=60"], "plain"),
        }
    };
    let site = Site::new(CacheLayer::http(), answer);
    assert_eq!(site.get("/", &["accept-encoding: gzip"]).await.body, "gzip");
    assert_eq!(site.get("/", &[]).await.body, "plain");
}

/// The origin responds to the first request late: its response is the older one.
#[tokio::test(start_paused = true)]
async fn an_older_response_does_not_replace_a_newer_one() {
    let answer = |n: usize, _| async move {
        if n == 1 {
            tokio::time::sleep(5 * SECOND).await;
        }
        response(200, &["cache-control: max-age=100"], n.to_string())
    };
    let site = Site::new(CacheLayer::http(), answer);
    let slow = tokio::spawn({
        let site = site.clone();
        async move { site.get("/", &[]).await.body }
    });
    settle().await;
    advance(SECOND).await;
    assert_eq!(site.get("/", &["cache-control: no-cache"]).await.body, "2");
    assert_eq!(slow.await.unwrap(), "1");
    settle().await;
    assert_eq!(site.get("/", &[]).await.body, "2");
}

/// Shows: W1
#[tokio::test(start_paused = true)]
async fn a_default_ttl_is_for_responses_that_say_nothing() {
    let layer = CacheLayer::http().default_ttl(5 * SECOND);
    let answer = |n: usize, parts: request::Parts| async move {
        let status = if parts.uri.path() == "/202" { 202 } else { 200 };
        response(status, if parts.uri.path() == "/1" { &["cache-control: max-age=1"] } else { &[] }, n.to_string())
    };
    let site = Site::new(layer, answer);
    for (path, is_stored) in [("/", true), ("/1", false), ("/202", false)] {
        let first = site.get(path, &[]).await.body;
        advance(2 * SECOND).await;
        assert_eq!(site.get(path, &[]).await.body == first, is_stored, "{path}");
    }
    let cookie = site.get("/cookie", &["cookie: a=b"]).await.body;
    assert_ne!(site.get("/cookie", &[]).await.body, cookie);
}

#[tokio::test(start_paused = true)]
async fn a_targeted_field_decides() {
    let headers = &["cdn-cache-control: max-age=10", "cache-control: no-store"];
    let answer = move |n: usize, _| async move { response(200, headers, n.to_string()) };
    let site = Site::new(CacheLayer::http().targeted("cdn-cache-control".parse().unwrap()), answer);
    assert_eq!([site.get("/", &[]).await.body, site.get("/", &[]).await.body], ["1", "1"]);
    assert_eq!(site.get("/", &[]).await.header("cdn-cache-control"), "max-age=10");
    let site = Site::new(CacheLayer::http(), answer);
    assert_eq!([site.get("/", &[]).await.body, site.get("/", &[]).await.body], ["1", "2"]);
}
