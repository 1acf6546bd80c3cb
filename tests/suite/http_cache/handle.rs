//! The handle to the live state.

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

/// Rule of all handles: a setter reaches the state of a handle that was taken before.
#[tokio::test(start_paused = true)]
async fn there_is_one_cache_however_its_capacity_is_set() {
    let layer = CacheLayer::http();
    let early = layer.handle();
    let answer = |_, _| async { response(200, &["cache-control: max-age=60"], vec![b'x'; 10_000]) };
    let site = Site::new(layer.clone().capacity(100_000), answer);
    for n in 0..100 {
        site.get(&format!("/{n}"), &[]).await;
        settle().await;
        assert!(early.bytes() <= 100_000);
    }
    let (len, evicted) = (early.len(), early.stats().evicted);
    assert_eq!(len as u64 + evicted, 100);
    // It may be in use already.
    drop(layer.capacity(50_000));
    assert!((1..len).contains(&early.len()) && early.bytes() <= 50_000, "{early:?}");
    assert_eq!(early.len() as u64 + early.stats().evicted, 100);
}
