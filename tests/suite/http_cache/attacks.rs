//! What callers, services and time may do to the cache, and to each other through it.

use tokio::time::{advance, sleep};

use super::*;

fn spawned(site: &Site, headers: &'static [&'static str]) -> tokio::task::JoinHandle<Read> {
    let site = site.clone();
    tokio::spawn(async move { site.get("/", headers).await })
}

#[tokio::test(start_paused = true)]
async fn the_answer_to_a_bad_range_is_for_its_caller() {
    let answer = |_, parts: request::Parts| async move {
        match parts.headers.contains_key("range") {
            true => response(416, &["cache-control: max-age=3600"], ""),
            false => response(200, &["cache-control: max-age=3600"], "good"),
        }
    };
    let site = Site::new(CacheLayer::http(), answer);
    assert_eq!(site.get("/", &["range: bytes=99-"]).await.status, 416);
    settle().await;
    assert_eq!(site.get("/", &[]).await.status_and_body(), (200, "good"));
}

#[tokio::test(start_paused = true)]
async fn a_head_without_validators_proves_nothing() {
    let answer = |n: usize, parts: request::Parts| async move {
        let length = if parts.method == Method::HEAD { "x: y" } else { "content-length: 1" };
        response(
            200,
            &["cache-control: max-age=10", length],
            if parts.method == Method::HEAD { String::new() } else { n.to_string() },
        )
    };
    let site = Site::new(CacheLayer::http(), answer);
    site.get("/", &[]).await;
    advance(9 * SECOND).await;
    site.ask(Method::HEAD, "/", &["cache-control: no-cache"]).await;
    advance(2 * SECOND).await;
    assert_eq!(site.get("/", &[]).await.body, "3");
}

/// The origin tells its callers apart by a header of its own, and says nothing about it.
#[tokio::test(start_paused = true)]
async fn what_needs_a_validation_is_shared_with_no_caller_who_waits() {
    for control in ["x: y", "cache-control: no-cache", "cache-control: max-age=0"] {
        let answer = move |_, parts: request::Parts| async move {
            sleep(SECOND).await;
            let key = parts.headers["x-api-key"].to_str().unwrap().to_owned();
            if parts.headers.get("if-none-match").is_some_and(|etag| etag.to_str().unwrap() == format!("\"{key}\"")) {
                return response(304, &[&format!("etag: \"{key}\""), control], "");
            }
            response(200, &[&format!("etag: \"{key}\""), control], key)
        };
        let site = Site::new(CacheLayer::http(), answer);
        for n in 0..3 {
            let begun = tokio::time::Instant::now();
            let (one, other) = tokio::join!(site.get("/", &["x-api-key: one"]), site.get("/", &["x-api-key: other"]));
            assert_eq!([&*one.body, &*other.body], ["one", "other"], "{control}");
            assert_eq!(begun.elapsed().as_secs(), if n == 0 { 2 } else { 1 }, "{control}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_stranger_makes_no_response_stale() {
    let answer = |n: usize, parts: request::Parts| async move {
        let etag = if parts.headers.contains_key("authorization") { "etag: \"b\"" } else { "etag: \"a\"" };
        response(200, &["cache-control: max-age=60", etag], n.to_string())
    };
    let site = Site::new(CacheLayer::http(), answer);
    site.get("/", &[]).await;
    settle().await;
    site.ask(Method::HEAD, "/", &["authorization: x", "cache-control: no-cache"]).await;
    assert_eq!((site.get("/", &[]).await.body, site.calls()), ("1".to_owned(), 2));
}

#[tokio::test(start_paused = true)]
async fn an_answer_about_one_request_supersedes_nothing() {
    let answer = |n: usize, _| async move {
        match n {
            1 => response(200, &["cache-control: max-age=1, stale-if-error=1000"], "old"),
            2 => response(429, &[], "too many"),
            _ => Err(Error::Service("gone")),
        }
    };
    let site = Site::new(CacheLayer::http(), answer);
    site.get("/", &[]).await;
    advance(2 * SECOND).await;
    assert_eq!(site.get("/", &[]).await.status, 429);
    assert_eq!(site.get("/", &[]).await.body, "old");
}

/// Those who wait go on together, and not one after the other.
#[tokio::test(start_paused = true)]
async fn what_cannot_be_shared_makes_nobody_queue() {
    type Answers = fn(usize, bool) -> Answer;
    let kinds: [(&str, Answers); 3] = [
        ("a 304 for one caller", |_, is_conditional| {
            response(if is_conditional { 304 } else { 200 }, &["etag: \"a\"", "cache-control: no-store"], "")
        }),
        ("a 304 about another version", |n, _| {
            if n == 2 { response(304, &["etag: \"b\""], "") } else { response(200, &["cache-control: no-store"], "") }
        }),
        ("a panic", |n, _| {
            assert_ne!(n, 2, "in the service");
            response(200, &["cache-control: no-store"], "")
        }),
    ];
    for (name, answers) in kinds {
        let answer = move |n: usize, parts: request::Parts| async move {
            if n == 1 {
                return response(200, &["cache-control: max-age=1", "etag: \"a\""], "old");
            }
            sleep(SECOND).await;
            answers(n, parts.headers.contains_key("if-none-match"))
        };
        let site = Site::new(CacheLayer::http(), answer);
        site.get("/", &[]).await;
        advance(SECOND).await;
        let begun = tokio::time::Instant::now();
        let callers: Vec<_> = (0..20).map(|_| spawned(&site, &[])).collect();
        let mut statuses = Vec::new();
        for caller in callers {
            statuses.extend(caller.await.map(|read| read.status.as_u16()));
        }
        assert!(begun.elapsed().as_secs() <= 3, "{name}: {:?}", begun.elapsed());
        assert!(statuses.iter().filter(|status| **status == 200).count() >= 19, "{name}: {statuses:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_response_that_is_arriving_is_joined_only_while_it_is_fresh() {
    for (control, after) in [("no-cache", 1), ("max-age=10", 10)] {
        let (sender, body) = streamed();
        let body = Mutex::new(Some(body));
        let body = Arc::new(body);
        let line: &'static str = Box::leak(format!("cache-control: {control}").into_boxed_str());
        let answer = move |n: usize, _| {
            let body = body.lock().unwrap().take().unwrap_or_else(|| whole(n.to_string()));
            async move { streams(200, &[line, "etag: \"a\""], body) }
        };
        let site = Site::new(CacheLayer::http(), answer);
        let first = site.send(request(Method::GET, "/", &[])).await.unwrap();
        advance(after * SECOND).await;
        let second = site.send(request(Method::GET, "/", &[])).await.unwrap();
        assert_eq!((site.calls(), second.headers().get("age")), (2, None), "{control}");
        drop((sender, first));
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_from_inside_its_own_flight_is_rejected() {
    let own: Arc<Mutex<Option<Site>>> = Arc::default();
    let inner = Arc::clone(&own);
    let answer = move |n: usize, _| {
        let site = inner.lock().unwrap().clone();
        async move {
            let outcome = match site {
                Some(site) if n == 1 => site.send(request(Method::GET, "/", &[])).await.map(|_| ()),
                _ => Ok(()),
            };
            let text = outcome.err().map_or("fine".to_owned(), |error| error.to_string());
            response(200, &["cache-control: max-age=60"], text)
        }
    };
    let site = Site::new(CacheLayer::http(), answer);
    *own.lock().unwrap() = Some(site.clone());
    let read = tokio::time::timeout(60 * SECOND, site.get("/", &[])).await.expect("it does not wait for itself");
    assert_ne!(read.body, "fine");
    assert_eq!(site.calls(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_request_that_hangs_holds_up_others_for_a_while_only() {
    let answer = |n: usize, _| async move {
        if n == 1 {
            std::future::pending::<()>().await;
        }
        response(200, &["cache-control: max-age=60"], n.to_string())
    };
    let site = Site::new(CacheLayer::http(), answer);
    let hung = spawned(&site, &[]);
    settle().await;
    let mut served = 0;
    for _ in 0..5 {
        served += usize::from(tokio::time::timeout(5 * SECOND, site.get("/", &[])).await.is_ok());
    }
    assert_eq!((served, site.calls()), (3, 2));
    hung.abort();
}

#[tokio::test(start_paused = true)]
async fn a_slow_service_does_not_end_the_sharing() {
    let answer = |n: usize, _| async move {
        sleep(2 * SECOND).await;
        response(200, &["cache-control: max-age=1"], n.to_string())
    };
    let site = Site::new(CacheLayer::http(), answer);
    let callers: Vec<_> = (0..100).map(|_| spawned(&site, &[])).collect();
    for caller in callers {
        assert_eq!(caller.await.unwrap().body, "1");
    }
    assert_eq!((site.calls(), site.handle.len()), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn one_caller_does_not_end_the_sharing_of_others() {
    let answer = |n: usize, parts: request::Parts| async move {
        sleep(SECOND).await;
        match () {
            () if parts.headers.contains_key("bad") => response(400, &[], "bad"),
            () if parts.headers.contains_key("cookie") => response(200, &["cache-control: private"], "mine"),
            () => response(200, &["cache-control: max-age=1, stale-if-error=0"], n.to_string()),
        }
    };
    let site = Site::new(CacheLayer::http(), answer);
    for headers in [&["bad: 1"][..], &["cookie: a=b"], &["authorization: x"]] {
        site.get("/", headers).await;
        let before = site.calls();
        let callers: Vec<_> = (0..20).map(|_| spawned(&site, &[])).collect();
        for caller in callers {
            caller.await.unwrap();
        }
        assert_eq!(site.calls() - before, 1, "{headers:?}");
    }
}

/// Pages of callers who are logged in.
#[tokio::test(start_paused = true)]
async fn callers_with_a_cookie_wait_for_one_another_once() {
    let answer = |_, parts: request::Parts| async move {
        sleep(SECOND).await;
        let cookie = parts.headers.get("cookie").map_or("none", |cookie| cookie.to_str().unwrap()).to_owned();
        response(200, &["cache-control: private"], cookie)
    };
    let site = Site::new(CacheLayer::http(), answer);
    let begun = tokio::time::Instant::now();
    for seconds in [2, 3, 4] {
        let (one, other) = tokio::join!(site.get("/", &["cookie: a=1"]), site.get("/", &["cookie: a=2"]));
        assert_eq!([one.body, other.body], ["a=1", "a=2"]);
        assert_eq!(begun.elapsed().as_secs(), seconds);
    }
}

#[tokio::test(start_paused = true)]
async fn a_stale_response_in_place_of_a_failure_is_for_those_who_may_have_it() {
    let answer = |n: usize, _| async move {
        sleep(SECOND).await;
        if n == 1 { response(200, &["cache-control: max-age=10"], "old") } else { response(503, &[], "failed") }
    };
    let site = Site::new(CacheLayer::http(), answer);
    site.get("/", &[]).await;
    advance(1000 * SECOND).await;
    let tolerant = spawned(&site, &["cache-control: stale-if-error=99999"]);
    settle().await;
    let strict = spawned(&site, &[]);
    assert_eq!([tolerant.await.unwrap().body, strict.await.unwrap().body], ["old", "failed"]);
    // Nor does one that was invalidated in the meantime come back.
    site.handle.clear();
    let site = Site::new(CacheLayer::http().stale_if_error(9999 * SECOND), answer);
    site.get("/", &[]).await;
    advance(100 * SECOND).await;
    let waits = spawned(&site, &[]);
    settle().await;
    site.handle.clear();
    assert_eq!(waits.await.unwrap().status, 503);
}

#[tokio::test(start_paused = true)]
async fn what_a_newer_answer_has_superseded_is_gone() {
    let answer = |n: usize, _| async move {
        match n {
            1 => response(200, &["cache-control: max-age=1, stale-while-revalidate=1000"], "secret"),
            _ => response(410, &["cache-control: no-store"], "gone"),
        }
    };
    let site = Site::new(CacheLayer::http(), answer);
    site.get("/", &[]).await;
    advance(2 * SECOND).await;
    assert_eq!(site.get("/", &[]).await.body, "secret");
    settle().await;
    assert_eq!(site.get("/", &["cache-control: max-stale"]).await.body, "gone");
}

#[tokio::test(start_paused = true)]
async fn a_refresh_that_fails_is_not_repeated_at_once() {
    let answer = |n: usize, _| async move {
        match n {
            1 => response(200, &["cache-control: max-age=1, stale-while-revalidate=1000"], "old"),
            2 => response(503, &["retry-after: 30"], ""),
            _ => Err(Error::Service("gone")),
        }
    };
    let site = Site::new(CacheLayer::http(), answer);
    site.get("/", &[]).await;
    advance(2 * SECOND).await;
    for _ in 0..100 {
        assert_eq!(site.get("/", &[]).await.body, "old");
        settle().await;
    }
    assert_eq!(site.calls(), 2);
    advance(30 * SECOND).await;
    for _ in 0..100 {
        site.get("/", &[]).await;
        settle().await;
    }
    assert_eq!(site.calls(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_refresh_needs_no_caller() {
    let answer = |n: usize, _| async move {
        sleep(SECOND).await;
        response(200, &["cache-control: max-age=10, stale-while-revalidate=1000"], n.to_string())
    };
    let site = Site::new(CacheLayer::http().linger(Duration::ZERO), answer);
    site.get("/", &[]).await;
    settle().await;
    advance(20 * SECOND).await;
    assert_eq!(site.get("/", &[]).await.body, "1");
    sleep(2 * SECOND).await;
    assert_eq!(site.get("/", &[]).await.body, "2");
}

#[tokio::test(start_paused = true)]
async fn a_head_that_lies_about_its_content_is_not_stored() {
    for headers in [
        &["cache-control: max-age=60", "content-length: 100"][..],
        &["cache-control: max-age=60", "content-length: 1", "content-length: 2"],
        &["cache-control: max-age=60, private", "connection: cache-control"],
    ] {
        let answer = move |n: usize, _| async move {
            let (sender, body) = streamed();
            if n > 1 || headers.len() != 2 || headers[1].starts_with("connection") {
                sender.send(data(n.to_string())).unwrap();
            }
            streams(200, headers, body)
        };
        let site = Site::new(CacheLayer::http().default_ttl(60 * SECOND), answer);
        drop(site.send(request(Method::GET, "/", &[])).await.unwrap());
        settle().await;
        assert_eq!(site.handle.len(), 0, "{headers:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_condition_hides_nothing_of_a_response_that_is_not_stored() {
    let site = Site::numbered(&["cache-control: private", "etag: \"a\"", "set-cookie: a=b"]);
    let read = site.get("/", &["if-none-match: \"a\""]).await;
    assert_eq!((read.status_and_body(), read.header("set-cookie")), ((200, "1"), "a=b"));
}

/// Shows: C8, W1
#[tokio::test(start_paused = true)]
async fn a_condition_hides_no_cookie_of_a_response_that_is_stored() {
    let site = Site::numbered(&["cache-control: public, max-age=60", "etag: \"a\"", "set-cookie: a=b"]);
    let read = site.get("/", &["if-none-match: \"a\""]).await;
    assert_eq!((read.status_and_body(), read.header("set-cookie")), ((304, ""), "a=b"));
}
