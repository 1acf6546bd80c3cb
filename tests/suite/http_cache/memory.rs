//! The bounds of the memory, and what counts.

use super::*;

const FRESH: &str = "cache-control: max-age=100";

/// Shows: W2
#[tokio::test(start_paused = true)]
async fn memory_is_bounded_by_bytes() {
    let answer = |_, _| async { response(200, &["cache-control: max-age=60"], vec![b'x'; 10_000]) };
    let site = Site::new(CacheLayer::http().capacity(100_000), answer);
    for n in 0..100 {
        site.get(&format!("/{n}"), &[]).await;
        settle().await;
        assert!(site.handle.bytes() <= 100_000);
    }
    let stats = site.handle.stats();
    assert_eq!((stats.stored, stats.stored - stats.evicted), (100, site.handle.len() as u64));
    assert!((5..10).contains(&site.handle.len()), "{}", site.handle.len());
}

/// Responses that were evicted take memory while callers read them, however slowly.
#[tokio::test(start_paused = true)]
async fn bodies_that_callers_have_yet_to_read_are_bounded_too() {
    let answer = |_, _| async { response(200, &[FRESH], vec![b'x'; 10_000]) };
    let site = Site::new(CacheLayer::http().capacity(100_000), answer);
    let mut unread = Vec::new();
    for n in 0..50 {
        let path = format!("/{n}");
        site.get(&path, &[]).await;
        settle().await;
        // Most are hits.
        unread.push(site.send(request(Method::GET, &path, &[])).await.unwrap());
        settle().await;
    }
    let stored = site.handle.stats().stored;
    assert!((15..=20).contains(&stored), "{stored}");
    for response in unread {
        assert_eq!(Read::of(response).await.body.len(), 10_000);
    }
    site.get("/new", &[]).await;
    settle().await;
    assert_eq!(site.handle.stats().stored, stored + 1);
}

/// Bodies that never end would take any memory, each one within its limit.
#[tokio::test(start_paused = true)]
async fn bodies_that_are_arriving_are_bounded_together() {
    let senders = Arc::new(Mutex::new(Vec::new()));
    let sent = Arc::clone(&senders);
    let answer = move |_, _| {
        let (sender, body) = streamed();
        sender.send(data(vec![b'x'; 10_000])).unwrap();
        sent.lock().unwrap().push(sender);
        async move { streams(200, &["cache-control: max-age=60"], body) }
    };
    let site = Site::new(CacheLayer::http().capacity(100_000), answer);
    let mut responses = Vec::new();
    for n in 0..30 {
        responses.push(site.send(request(Method::GET, &format!("/{n}"), &[])).await.unwrap());
        settle().await;
    }
    senders.lock().unwrap().clear();
    settle().await;
    // The first twenty were kept, and the others reach their callers all the same.
    assert_eq!(site.handle.stats().stored, 20);
    for response in responses {
        assert_eq!(Read::of(response).await.body.len(), 10_000);
    }
    site.send(request(Method::GET, "/new", &[])).await.unwrap();
    settle().await;
    assert_eq!(site.handle.stats().stored, 20, "its body has not ended");
    senders.lock().unwrap().clear();
    settle().await;
    assert_eq!(site.handle.stats().stored, 21, "the room is free again");
}

/// The parts of a request are slices of a buffer of the connection, which a stored response must not keep.
#[tokio::test(start_paused = true)]
async fn a_stored_response_keeps_no_buffer_of_a_connection() {
    let buffer = Bytes::from(vec![b'x'; 1_000_000]);
    let shared = buffer.clone();
    let answer = move |_, _| {
        let mut response = Response::new(whole(shared.slice(10..20)));
        let value = http::HeaderValue::from_maybe_shared(shared.slice(20..30)).unwrap();
        response.headers_mut().insert("x", value);
        response.headers_mut().insert("cache-control", http::HeaderValue::from_static("max-age=60"));
        response.headers_mut().insert("vary", http::HeaderValue::from_static("y"));
        async move { Ok(response) }
    };
    let site = Site::new(CacheLayer::http(), answer);
    let mut ask = request(Method::GET, "/", &[]);
    let path = [b"/", &buffer.slice(..50)[..]].concat();
    let path = Bytes::from(path);
    *ask.uri_mut() = http::Uri::from_maybe_shared(path.clone()).unwrap();
    ask.headers_mut().insert("y", http::HeaderValue::from_maybe_shared(buffer.slice(30..40)).unwrap());
    Read::of(site.send(ask).await.unwrap()).await;
    settle().await;
    site.asked().clear();
    assert_eq!(site.handle.len(), 1);
    drop(site.client);
    assert!(path.is_unique());
    assert!(buffer.is_unique());
}

/// A name may be as long as the body.
#[tokio::test(start_paused = true)]
async fn long_names_count() {
    let site = Site::numbered(&[FRESH, "vary: x", "cache-status: a; detail=1"]);
    let path = format!("/{}", "y".repeat(50_000));
    for n in 1..=20 {
        site.get(&path, &[&format!("x: {n}")]).await;
        settle().await;
        // Its variants share it.
        let bytes = site.handle.bytes();
        assert!((50_000..55_000 + n * 1500).contains(&bytes), "{n}: {bytes}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_other_caches_have_said_counts() {
    let said = format!("cache-status: a; detail={}", "x".repeat(50_000));
    let answer = move |_, _| {
        let said = said.clone();
        async move { response(200, &[FRESH, &said], "") }
    };
    let site = Site::new(CacheLayer::http(), answer);
    site.get("/", &[]).await;
    settle().await;
    assert!(site.handle.bytes() > 50_000);
}

#[tokio::test(start_paused = true)]
async fn what_has_expired_takes_no_room() {
    let vary = Site::numbered(&[FRESH, "vary: x"]);
    let mut sites = vec![Site::numbered(&[FRESH]), vary];
    // Its validation fails.
    let answer = |n: usize, _| async move {
        match n {
            1 => response(200, &[FRESH, "vary: x", "etag: \"a\""], ""),
            _ => response(304, &["etag: \"b\""], ""),
        }
    };
    sites.push(Site::new(CacheLayer::http(), answer));
    for (number, site) in sites.iter().enumerate() {
        site.get("/", &["x: 1"]).await;
        settle().await;
        assert!(site.handle.bytes() > 0);
        tokio::time::advance(101 * SECOND).await;
        if number == 2 {
            assert!(site.handle.bytes() > 0, "it can be validated");
            site.get("/", &["x: 1"]).await;
        }
        assert_eq!(site.handle.bytes(), 0, "{number}");
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
