//! Requests that share one to the origin.

use http_body_util::Full;
use tokio::time::{Instant, sleep};
use ziggurat::{Reason, rejection};

use super::*;

const FRESH: &[&str] = &["cache-control: max-age=100"];

fn spawned(site: &Site, headers: &'static [&'static str]) -> tokio::task::JoinHandle<Result<Read, String>> {
    let site = site.clone();
    tokio::spawn(async move {
        match site.send(request(Method::GET, "/", headers)).await {
            Ok(response) => Ok(Read::of(response).await),
            Err(error) => Err(error.to_string()),
        }
    })
}

/// An origin that answers after a second.
fn slow(answer: impl Fn(usize, request::Parts) -> Answer + Clone + Send + Sync + 'static) -> Site {
    Site::new(CacheLayer::http(), move |n, parts| {
        let answer = answer.clone();
        async move {
            sleep(SECOND).await;
            answer(n, parts)
        }
    })
}

async fn bodies(callers: Vec<tokio::task::JoinHandle<Result<Read, String>>>) -> Vec<String> {
    let mut bodies = Vec::new();
    for caller in callers {
        bodies.push(caller.await.unwrap().unwrap().body);
    }
    bodies
}

/// Sends GETs at the same time, and returns how long they take together.
async fn together(site: &Site, requests: usize) -> Duration {
    let begun = Instant::now();
    bodies((0..requests).map(|_| spawned(site, &[])).collect()).await;
    begun.elapsed()
}

/// Shows: W3
#[tokio::test(start_paused = true)]
async fn concurrent_misses_share_a_request() {
    let site = slow(|n, _| response(200, &["cache-control: max-age=60"], n.to_string()));
    let callers: Vec<_> = (0..100).map(|_| spawned(&site, &[])).collect();
    assert_eq!(bodies(callers).await, ["1"; 100]);
    let stats = site.handle.stats();
    assert_eq!((site.calls(), stats.misses, stats.shared), (1, 1, 99));
}

#[tokio::test(start_paused = true)]
async fn those_who_want_another_variant_share_another_request() {
    let site = slow(|_, parts| {
        let language = parts.headers["accept-language"].to_str().unwrap().to_owned();
        response(200, &["cache-control: max-age=60", "vary: accept-language"], language)
    });
    let (de, fr) = (&["accept-language: de"], &["accept-language: fr"]);
    let callers: Vec<_> = (0..100).map(|n| if n % 2 == 0 { spawned(&site, de) } else { spawned(&site, fr) }).collect();
    assert_eq!(bodies(callers).await, ["de", "fr"].repeat(50));
    assert_eq!(site.calls(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_response_for_one_caller_holds_back_nobody_twice() {
    let site = slow(|n, _| response(200, &["cache-control: private"], n.to_string()));
    let begun = Instant::now();
    let mut all = bodies((0..100).map(|_| spawned(&site, &[])).collect()).await;
    all.sort_by_key(|body| body.parse::<u32>().unwrap());
    assert_eq!(all, (1..=100).map(|n| n.to_string()).collect::<Vec<_>>());
    assert_eq!(begun.elapsed().as_secs(), 2);
    // It is known now.
    bodies((0..100).map(|_| spawned(&site, &[])).collect()).await;
    assert_eq!(begun.elapsed().as_secs(), 3);
}

#[tokio::test(start_paused = true)]
async fn a_failure_is_shared_and_not_stored() {
    let site = slow(|n, _| if n <= 2 { Err(Error::Service("gone")) } else { response(200, &[], n.to_string()) });
    let callers: Vec<_> = (0..10).map(|_| spawned(&site, &[])).collect();
    let mut errors = Vec::new();
    for caller in callers {
        errors.push(caller.await.unwrap().unwrap_err());
    }
    assert_eq!(site.calls(), 2);
    // The first may have failed by its own fault, so another one tries.
    let (own, shared): (Vec<_>, Vec<_>) = errors.iter().partition(|error| *error == "gone");
    assert_eq!((own.len(), shared.len()), (2, 8));
    assert!(shared.iter().all(|error| error.contains("gone")), "{shared:?}");
    assert_eq!(spawned(&site, &[]).await.unwrap().unwrap().body, "3");
}

/// Each caller would ask at once otherwise, of a service that has too much to do.
#[tokio::test(start_paused = true)]
async fn those_who_wait_for_a_failing_response_ask_once_more_together() {
    for status in [500, 503, 429] {
        let site = slow(move |_, _| response(status, &["retry-after: 7"], "sorry"));
        for round in 1..3 {
            let callers: Vec<_> = (0..10).map(|_| spawned(&site, &[])).collect();
            let (mut own, mut shared) = (0, 0);
            for caller in callers {
                match caller.await.unwrap() {
                    Ok(read) => own += u32::from(read.status_and_body() == (status, "sorry")),
                    Err(error) => shared += u32::from(error.contains(&status.to_string())),
                }
            }
            // The next ones share again: the service may be back.
            assert_eq!((own, shared, site.calls()), (2, 8, 2 * round), "{status}");
        }
        let send = || site.send(request(Method::GET, "/", &[]));
        let (_, _, outcome) = tokio::join!(send(), send(), send());
        let rejection = rejection(&outcome).unwrap();
        assert_eq!((rejection.status().as_u16(), rejection.retry_after()), (502, Some(7 * SECOND)), "{status}");
    }
    let site = slow(|n, _| match n {
        1 => response(503, &[], "sorry"),
        _ => response(200, &["cache-control: max-age=60"], n.to_string()),
    });
    let all = bodies((0..10).map(|_| spawned(&site, &[])).collect()).await;
    assert_eq!((site.calls(), all.iter().filter(|body| *body == "2").count()), (2, 9));
}

#[tokio::test(start_paused = true)]
async fn a_panic_reaches_its_caller_and_the_others_go_on() {
    let site = slow(|n, _| {
        assert!(n > 1, "the first request");
        response(200, &["cache-control: max-age=60"], n.to_string())
    });
    let callers: Vec<_> = (0..3).map(|_| spawned(&site, &[])).collect();
    let mut outcomes = Vec::new();
    for caller in callers {
        outcomes.push(caller.await.ok().map(|read| read.unwrap().body));
    }
    outcomes.sort();
    assert_eq!(outcomes, [None, Some("2".to_owned()), Some("3".to_owned())]);
}

/// Shows: W3
#[tokio::test(start_paused = true)]
async fn a_caller_who_leaves_does_not_stop_the_request() {
    let site = slow(|n, _| response(200, &["cache-control: max-age=60"], n.to_string()));
    let first = spawned(&site, &[]);
    settle().await;
    let second = spawned(&site, &[]);
    settle().await;
    first.abort();
    assert_eq!(second.await.unwrap().unwrap().body, "1");
    // Nor do all together.
    site.handle.clear();
    let last = spawned(&site, &[]);
    settle().await;
    last.abort();
    sleep(2 * SECOND).await;
    assert_eq!((&*site.get("/", &[]).await.body, site.calls()), ("2", 2));
}

/// Shows: W3
#[tokio::test(start_paused = true)]
async fn without_callers_a_request_ends_in_time() {
    let (sender, receiver) = tokio::sync::oneshot::channel::<()>();
    let receiver = std::sync::Arc::new(Mutex::new(Some(receiver)));
    let answer = move |_, _| {
        let held = receiver.lock().unwrap().take();
        async move {
            let _held = held;
            std::future::pending::<Answer>().await
        }
    };
    let site = Site::new(CacheLayer::http().linger(5 * SECOND), answer);
    let first = spawned(&site, &[]);
    settle().await;
    sleep(5 * SECOND).await;
    first.abort();
    sleep(4 * SECOND).await;
    let second = spawned(&site, &[]);
    sleep(100 * SECOND).await;
    assert!(!sender.is_closed(), "a caller waits");
    second.abort();
    sleep(4 * SECOND).await;
    assert!(!sender.is_closed());
    sleep(2 * SECOND).await;
    assert!(sender.is_closed());
}

#[tokio::test(start_paused = true)]
async fn a_rejection_inside_reaches_all_who_wait() {
    let answer = |_, _| async {
        sleep(SECOND).await;
        let rejection = ziggurat::LayerInfo::new("test").reject(Reason::Overloaded { limit: 3 });
        Err(Error::Rejected(rejection))
    };
    let site = Site::new(CacheLayer::http(), answer);
    let send = || site.send(request(Method::GET, "/", &[]));
    let (one, other, third) = tokio::join!(send(), send(), send());
    for outcome in [one, other, third] {
        assert!(matches!(rejection(&outcome).unwrap().reason(), Reason::Overloaded { limit: 3 }));
    }
    assert_eq!(site.calls(), 2);
}

#[tokio::test(start_paused = true)]
async fn requests_wait_for_one_another_again_once_a_response_is_for_all() {
    let answer = |_, parts: request::Parts| async move {
        sleep(SECOND).await;
        let control = if parts.headers.contains_key("cookie") { "private" } else { "max-age=3" };
        response(200, &[&format!("cache-control: {control}"), "vary: cookie"], "")
    };
    let site = Site::new(CacheLayer::http(), answer);
    site.get("/", &["cookie: a"]).await;
    together(&site, 1).await;
    let before = site.calls();
    sleep(5 * SECOND).await;
    together(&site, 20).await;
    assert_eq!(site.calls() - before, 1);
}

/// A stale response that stays in the store must not make private requests wait in line.
#[tokio::test(start_paused = true)]
async fn requests_do_not_wait_for_one_another_where_a_response_has_become_private() {
    let answer = |n: usize, _| async move {
        sleep(SECOND).await;
        let headers =
            if n == 1 { ["cache-control: max-age=10", "etag: \"a\""] } else { ["cache-control: private", "x: y"] };
        response(200, &headers, "")
    };
    let site = Site::new(CacheLayer::http(), answer);
    site.get("/", &[]).await;
    sleep(20 * SECOND).await;
    assert_eq!(together(&site, 10).await, 2 * SECOND);
    assert_eq!(together(&site, 10).await, SECOND);
}

#[tokio::test(start_paused = true)]
async fn a_request_may_go_on_forever_after_its_caller() {
    let answer = |n: usize, _| async move {
        sleep(SECOND).await;
        response(200, FRESH, n.to_string())
    };
    let site = Site::new(CacheLayer::http().linger(Duration::MAX), answer);
    assert!(tokio::time::timeout(SECOND / 2, site.get("/", &[])).await.is_err());
    sleep(5 * SECOND).await;
    assert_eq!((site.handle.len(), site.calls()), (1, 1));
}

/// A runtime without a clock has no timers.
#[test]
fn a_request_goes_on_after_its_caller_on_a_runtime_without_a_clock() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let (ready, answered) = tokio::sync::oneshot::channel::<()>();
        let answered = Arc::new(Mutex::new(Some(answered)));
        let origin = service_fn(move |_: Request<Empty<Bytes>>| {
            let answered = answered.lock().unwrap().take().unwrap();
            async move {
                answered.await.unwrap();
                let response = Response::builder().header("cache-control", "max-age=60");
                Ok::<_, Failed>(response.body(Full::new(Bytes::from("1"))).unwrap())
            }
        });
        let layer = CacheLayer::http();
        let (handle, client) = (layer.handle(), layer.layer(origin));
        let caller = tokio::spawn(client.oneshot(request(Method::GET, "/", &[])));
        settle().await;
        caller.abort();
        settle().await;
        ready.send(()).unwrap();
        settle().await;
        assert_eq!(handle.len(), 1);
    });
}
