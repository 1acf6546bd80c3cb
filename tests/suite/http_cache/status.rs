//! `Cache-Status`: how the cache says what it has done.

use super::*;

#[tokio::test(start_paused = true)]
async fn what_is_larger_than_the_cache_is_not_called_stored() {
    let layer = CacheLayer::http().capacity(10_000);
    let site = Site::new(layer, |_, _| async {
        response(200, &["cache-control: max-age=100", "content-length: 100000"], vec![b'x'; 100_000])
    });
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
