//! The responses of one resource: which of them is for whom, which is the newest, and what an invalidation reaches.

use tokio::time::{advance, sleep};

use super::*;

const FRESH: &str = "cache-control: max-age=100";

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
