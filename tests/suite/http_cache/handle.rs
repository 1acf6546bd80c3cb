//! The handle, and the bounds of the memory.

use super::*;

/// Shows: W4
#[tokio::test(start_paused = true)]
async fn an_invalidation_beats_a_response_that_is_on_its_way() {
    type Invalidate = fn(&HttpCacheHandle);
    let ways: [(&str, Invalidate); 3] = [
        ("uri", |handle| handle.invalidate(&"https://shop.test/a".parse().unwrap())),
        ("predicate", |handle| assert!(handle.invalidate_if(|key| key.path() == "/a") <= 1)),
        ("clear", HttpCacheHandle::clear),
    ];
    for (name, invalidate) in ways {
        let answer = |n: usize, _| async move {
            tokio::time::sleep(SECOND).await;
            response(200, &["cache-control: max-age=60"], n.to_string())
        };
        let site = Site::new(CacheLayer::http(), answer);
        let (slow, ()) = tokio::join!(site.get("/a", &[]), async {
            settle().await;
            invalidate(&site.handle);
        });
        assert_eq!((&*slow.body, site.handle.len()), ("1", 0), "{name}");
        assert_eq!(site.get("/a", &[]).await.body, "2", "{name}");
        settle().await;
        assert_eq!(site.get("/a", &[]).await.body, "2", "{name}");
        invalidate(&site.handle);
        assert_eq!(site.get("/a", &[]).await.body, "3", "{name}");
    }
}

/// Shows: W4
#[tokio::test(start_paused = true)]
async fn a_predicate_picks_resources_with_all_their_variants() {
    let site = Site::numbered(&["cache-control: max-age=60", "vary: x"]);
    for (path, x) in [("/a/1", "x: 1"), ("/a/1", "x: 2"), ("/a/2", "x: 1"), ("/b", "x: 1")] {
        site.get(path, &[x]).await;
    }
    settle().await;
    assert_eq!((site.handle.len(), site.handle.invalidate_if(|key| key.path().starts_with("/a/"))), (4, 3));
    assert_eq!((site.handle.len(), &*site.get("/b", &["x: 1"]).await.body), (1, "4"));
    assert_eq!(site.get("/a/1", &["x: 2"]).await.body, "5");
    assert!(!site.handle.is_empty());
}

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
    for n in 0..20 {
        responses.push(site.send(request(Method::GET, &format!("/{n}"), &[])).await.unwrap());
        settle().await;
    }
    senders.lock().unwrap().clear();
    settle().await;
    // The first ten were kept, and the others reach their callers all the same.
    assert_eq!(site.handle.stats().stored, 10);
    for response in responses {
        assert_eq!(Read::of(response).await.body.len(), 10_000);
    }
    site.send(request(Method::GET, "/new", &[])).await.unwrap();
    settle().await;
    assert_eq!(site.handle.stats().stored, 10, "its body has not ended");
    senders.lock().unwrap().clear();
    settle().await;
    assert_eq!(site.handle.stats().stored, 11, "the room is free again");
}
