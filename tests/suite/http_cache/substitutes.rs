//! Responses that a layer inside has made in place of the service's: they are nobody's last word.

use ziggurat::Degraded;

use super::*;

/// A site whose service fails after its first response, and has a fallback inside the cache.
fn degrading(cache: HttpCacheLayer, headers: &'static [&'static str]) -> Site {
    Site::new(cache, move |n, asked| async move {
        if n == 1 {
            return response(200, headers, "1");
        }
        substitute(if asked.method == Method::HEAD { "" } else { "sorry" })
    })
}

/// A response in place of a failure.
fn substitute(text: &'static str) -> Answer {
    let failure: Result<Response<()>, Failed> = Err(Error::Service("down"));
    let mut response = response(200, &["cache-control: max-age=60"], text)?;
    response.extensions_mut().insert(Degraded::new(&failure));
    Ok(response)
}

/// Shows: C8, W3
#[tokio::test(start_paused = true)]
async fn a_substitute_removes_no_stored_response() {
    let site = degrading(CacheLayer::http(), &["cache-control: max-age=1, stale-while-revalidate=60", "etag: \"v\""]);
    site.get("/", &[]).await;
    for _ in 0..3 {
        tokio::time::advance(2 * SECOND).await;
        assert_eq!(site.get("/", &[]).await.body, "1");
        settle().await;
    }
    assert!(site.calls() > 1, "refreshed behind");
    // Neither does the answer to a HEAD.
    site.ask(Method::HEAD, "/", &["cache-control: no-cache"]).await;
    settle().await;
    assert_eq!(site.get("/", &[]).await.body, "1");
}

/// Shows: C8, W3
#[tokio::test(start_paused = true)]
async fn requests_are_shared_again_after_a_substitute() {
    let site = Site::new(CacheLayer::http(), |_, _| async {
        tokio::time::sleep(SECOND).await;
        substitute("sorry")
    });
    site.get("/", &[]).await;
    let get = || {
        let site = site.clone();
        tokio::spawn(async move { site.get("/", &[]).await.body })
    };
    let (one, other) = (get(), get());
    settle().await;
    assert_eq!(site.calls(), 2, "one of them waits");
    assert_eq!((one.await.unwrap(), other.await.unwrap()), ("sorry".into(), "sorry".into()));
}
