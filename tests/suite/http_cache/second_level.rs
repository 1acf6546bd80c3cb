//! The second level: caches of several processes over one store, whose behaviour can be changed. `tests/redis.rs` has a
//! real server.

use std::sync::atomic::{AtomicU32, Ordering::SeqCst};

use tokio::{
    task::JoinHandle,
    time::{Instant, advance, sleep},
};
use ziggurat::{LayerEvent, LayerInfo, store::ValueStore};

use super::*;
use crate::store::server::{Behaviour, Server};

mod removals;

const MILLI: Duration = Duration::from_millis(1);
/// How long a request waits for the store.
const TIMEOUT: Duration = Duration::from_millis(100);

fn layer(server: &Server) -> HttpCacheLayer {
    CacheLayer::http().second_level(server.clone())
}

/// Processes whose origins answer with these headers, and with the number of their request as the body.
fn processes<const N: usize>(server: &Server, headers: &'static [&'static str]) -> [Site; N] {
    std::array::from_fn(|_| Site::new(layer(server), move |n, _| async move { response(200, headers, n.to_string()) }))
}

/// A process whose origin takes a second for a response.
fn slow_process(server: &Server) -> Site {
    Site::new(layer(server), |_, _| async {
        sleep(SECOND).await;
        response(200, &["cache-control: max-age=60"], "old")
    })
}

/// Starts a GET, and lets it come as far as it can.
async fn sent(site: &Site, path: &str, headers: &'static [&'static str]) -> JoinHandle<Read> {
    let (site, path) = (site.clone(), path.to_owned());
    let call = tokio::spawn(async move { site.get(&path, headers).await });
    settle().await;
    call
}

/// Shows: C8
#[tokio::test(start_paused = true)]
async fn a_process_serves_what_another_one_has_stored() {
    let server = Server::new(Behaviour::Answers);
    let [first, second] = processes(&server, &["cache-control: max-age=60", "x-a: b"]);
    assert_eq!(first.get("/", &[]).await.header("cache-status"), "ziggurat; fwd=uri-miss; stored");
    let read = second.get("/", &[]).await;
    assert_eq!((read.status_and_body(), read.header("x-a"), second.calls()), ((200, "1"), "b", 0));
    assert!(read.header("cache-status").starts_with("ziggurat; hit; ttl="), "{read:?}");

    // From memory.
    let asked = server.requests.load(SeqCst);
    assert_eq!(second.get("/", &["range: bytes=0-0"]).await.status_and_body(), (206, "1"));
    let stats = second.handle.stats();
    assert_eq!((stats.hits, stats.second_level, stats.misses, stats.stored), (1, 1, 0, 1));
    assert_eq!(server.requests.load(SeqCst), asked);
    assert_eq!(second.handle.len(), 1);
}

/// Shows: C8
#[tokio::test(start_paused = true)]
async fn the_whole_response_comes_back() {
    let server = Server::new(Behaviour::Answers);
    let origin = |_, _| async {
        let (sender, body) = streamed();
        for frame in [
            data("ab"),
            data("cd"),
            Ok(Frame::trailers(HeaderMap::from_iter([("x-t".parse().unwrap(), "1".parse().unwrap())]))),
        ] {
            sender.send(frame).unwrap();
        }
        streams(404, &["cache-control: max-age=60", "cache-status: origin; hit", "age: 7"], body)
    };
    let [first, second] = std::array::from_fn(|_| Site::new(layer(&server), origin));
    first.get("/", &[]).await;
    let response = second.send(request(Method::GET, "/", &[])).await.unwrap();
    let status = response.headers()["cache-status"].to_str().unwrap();
    assert!(status.starts_with("origin; hit, ziggurat; hit; ttl=5"), "{status}");
    assert_eq!(
        (response.status().as_u16(), &response.headers()["age"]),
        (404, &"7".parse::<http::HeaderValue>().unwrap())
    );
    let body = response.into_body().collect().await.unwrap();
    assert_eq!(body.trailers().unwrap()["x-t"], "1");
    assert_eq!((body.to_bytes(), second.calls()), ("abcd".into(), 0));
}

/// Shows: C8, W1
#[tokio::test(start_paused = true)]
async fn each_variant_is_for_its_own_requests() {
    let server = Server::new(Behaviour::Answers);
    let origin = |_, asked: request::Parts| async move {
        let language = asked.headers.get("accept-language").map_or("none", |value| value.to_str().unwrap()).to_owned();
        response(200, &["cache-control: max-age=60", "vary: accept-language"], language)
    };
    let [first, second] = std::array::from_fn(|_| Site::new(layer(&server), origin));
    for language in ["de", "en"] {
        first.get("/", &[&format!("accept-language: {language}")]).await;
    }
    for (language, calls) in [("en", 0), ("de", 0), ("en", 0), ("fr", 1), ("fr", 1)] {
        let read = second.get("/", &[&format!("accept-language: {language}")]).await;
        assert_eq!((&*read.body, second.calls()), (language, calls));
    }
    assert_eq!(first.get("/", &["accept-language: fr"]).await.body, "fr");
    assert_eq!(first.calls(), 2);
    // The scheme distinguishes responses too.
    assert_eq!(second.get("http://shop.test/", &["accept-language: de"]).await.body, "de");
    assert_eq!(second.calls(), 2);
}

/// Shows: C8, W1
#[tokio::test(start_paused = true)]
async fn two_tenants_never_see_each_others_responses() {
    let server = Server::new(Behaviour::Answers);
    for headers in [
        &["cache-control: max-age=60"][..],
        &["cache-control: private, max-age=60"],
        &["cache-control: max-age=60", "set-cookie: a=b"],
    ] {
        let [first, second] = processes(&server, headers);
        let path = format!("/{}", headers.len() + headers[0].len());
        let (one, other) = (["authorization: one"], ["authorization: other"]);
        first.get(&path, &one).await;
        second.get(&path, &other).await;
        second.get(&path, &one).await;
        assert_eq!((first.calls(), second.calls()), (1, 2), "{headers:?}");
    }
    // A response to a request without credentials is not for one with them.
    let [first, second] = processes(&server, &["cache-control: max-age=60"]);
    first.get("/plain", &[]).await;
    second.get("/plain", &["authorization: one"]).await;
    assert_eq!(second.calls(), 1);
    second.get("/plain", &[]).await;
    assert_eq!(second.calls(), 1);
}

/// Shows: C8, W2
#[tokio::test(start_paused = true)]
async fn a_stale_response_of_the_store_is_validated() {
    let server = Server::new(Behaviour::Answers);
    let origin = |_, asked: request::Parts| async move {
        match asked.headers.get("if-none-match") {
            Some(_) => response(304, &["cache-control: max-age=60", "etag: \"v\""], ""),
            None => response(200, &["cache-control: max-age=0", "etag: \"v\""], "v"),
        }
    };
    let [first, second, third] = std::array::from_fn(|_| Site::new(layer(&server), origin));
    first.get("/", &[]).await;
    let read = second.get("/", &[]).await;
    assert_eq!(
        (read.status_and_body(), read.header("cache-status")),
        ((200, "v"), "ziggurat; fwd=stale; fwd-status=304")
    );
    assert_eq!(second.asked()[0].headers["if-none-match"], "\"v\"");
    // The confirmed one is in the store.
    assert_eq!((third.get("/", &[]).await.body, third.calls()), ("v".into(), 0));
}

/// Shows: C8, W3
#[tokio::test(start_paused = true)]
async fn a_response_of_the_store_replaces_a_failure() {
    let server = Server::new(Behaviour::Answers);
    let [first] = processes(&server, &["cache-control: max-age=0, stale-if-error=60", "etag: \"v\""]);
    first.get("/", &[]).await;
    let second = Site::new(layer(&server), |_, _| async { Err(Error::Service("down")) });
    assert_eq!(second.get("/", &[]).await.status_and_body(), (200, "1"));
    assert_eq!(second.calls(), 1);
}

/// Shows: C8
#[tokio::test(start_paused = true)]
async fn requests_at_the_same_time_ask_the_store_once() {
    let server = Server::new(Behaviour::Answers);
    let [first, second] = processes(&server, &["cache-control: max-age=60"]);
    first.get("/", &[]).await;
    let before = server.requests.load(SeqCst);
    server.becomes(Behaviour::Delays(20 * MILLI));
    let reads = futures_util::future::join_all((0..100).map(|_| second.get("/", &[]))).await;
    assert!(
        reads.iter().all(|read| read.body == "1" && read.header("cache-status").starts_with("ziggurat; hit; ttl="))
    );
    assert_eq!((second.calls(), server.requests.load(SeqCst) - before), (0, 2), "a record and a copy");
    let stats = second.handle.stats();
    assert_eq!((stats.second_level, stats.shared, stats.misses), (1, 99, 0));
}

/// Shows: C8
#[tokio::test(start_paused = true)]
async fn requests_go_on_while_the_store_is_away() {
    let events = Arc::new(Mutex::new(Vec::new()));
    let log = {
        let events = Arc::clone(&events);
        move |info: &LayerInfo, event: &LayerEvent<'_>| {
            if let LayerEvent::StoreFailed { error } = event {
                events.lock().unwrap().push(format!("{}: {error}", info.name().unwrap()));
            }
        }
    };
    for (behaviour, error) in [
        (Behaviour::Hangs, "no answer within 100ms"),
        (Behaviour::Fails, "refused"),
        (Behaviour::Panics, "at the disco"),
    ] {
        let server = Server::new(behaviour);
        let layer = layer(&server).named("pages").observer(log.clone());
        let site = Site::new(layer, |n, _| async move { response(200, &["cache-control: max-age=60"], n.to_string()) });
        let begin = Instant::now();
        for path in ["/a", "/b", "/c", "/a"] {
            site.get(path, &[]).await;
        }
        assert!(begin.elapsed() <= TIMEOUT, "{behaviour:?}");
        assert_eq!((site.calls(), site.handle.is_away()), (3, true), "{behaviour:?}");
        let heard = std::mem::take(&mut *events.lock().unwrap());
        assert!(heard[0].starts_with("pages: ") && heard[0].contains(error), "{heard:?}");

        server.becomes(Behaviour::Answers);
        sleep(5 * SECOND).await;
        site.get("/d", &[]).await;
        settle().await;
        assert!(!site.handle.is_away(), "{behaviour:?}");
        site.get("/e", &[]).await;
        let [other] = processes(&server, &[]);
        assert_eq!((other.get("/e", &[]).await.body, other.calls()), ("5".into(), 0), "{behaviour:?}");
        events.lock().unwrap().clear();
    }
}

/// Shows: C8
#[tokio::test(start_paused = true)]
async fn a_caller_who_leaves_during_the_lookup_holds_up_nobody() {
    let server = Server::new(Behaviour::Hangs);
    let [site] = processes(&server, &["cache-control: max-age=60"]);
    let (first, second) = (sent(&site, "/", &[]).await, sent(&site, "/", &[]).await);
    first.abort();
    let begin = Instant::now();
    assert_eq!(second.await.unwrap().body, "1");
    assert_eq!((site.calls(), begin.elapsed() <= TIMEOUT), (1, true));
}

/// Shows: C8
#[tokio::test(start_paused = true)]
async fn an_older_copy_that_is_fresh_for_longer_replaces_no_newer_response() {
    let server = Server::new(Behaviour::Answers);
    let origin = |n, _| async move {
        match n {
            1 => response(200, &["cache-control: max-age=3600"], "first"),
            // Too large for the store.
            _ => response(200, &["cache-control: max-age=0", "etag: \"v\""], "a".repeat((1 << 20) + 1)),
        }
    };
    let site = Site::new(layer(&server), origin);
    site.get("/", &[]).await;
    assert_ne!(site.get("/", &["cache-control: no-cache"]).await.body, "first");
    assert_ne!(site.get("/", &[]).await.body, "first");
    assert_eq!(site.calls(), 3);
}

/// Shows: C8, W1
#[tokio::test(start_paused = true)]
async fn credentials_are_not_written_to_the_store() {
    let server = Server::new(Behaviour::Answers);
    for name in ["cookie", "authorization"] {
        let [first, second] = std::array::from_fn(|_| {
            Site::new(layer(&server), move |_, _| async move {
                response(200, &["cache-control: public, max-age=60", &format!("vary: {name}")], "a")
            })
        });
        for site in [&first, &first, &second] {
            site.get(&format!("/{name}"), &[&format!("{name}: secret")]).await;
        }
        assert_eq!((first.calls(), second.calls()), (1, 1), "{name}");
    }
}

/// Shows: C8
#[tokio::test(start_paused = true)]
async fn a_large_response_and_one_with_a_secret_stay_in_memory() {
    let server = Server::new(Behaviour::Answers);
    let origin = |_, asked: request::Parts| async move {
        let size = if asked.uri.path() == "/large" { (1 << 20) + 1 } else { 1 << 20 };
        let mut response = response(200, &["cache-control: max-age=60", "x-a: b"], "a".repeat(size))?;
        response.headers_mut().get_mut("x-a").unwrap().set_sensitive(asked.uri.path() == "/secret");
        Ok(response)
    };
    for (path, calls) in [("/small", 0), ("/large", 1), ("/secret", 1)] {
        let [first, second] = std::array::from_fn(|_| Site::new(layer(&server), origin));
        for _ in 0..2 {
            first.get(path, &[]).await;
        }
        second.get(path, &[]).await;
        assert_eq!((first.calls(), second.calls()), (1, calls), "{path}");
    }
}

/// Shows: C8
#[tokio::test(start_paused = true)]
async fn values_of_others_are_ignored_and_replaced() {
    let server = Server::new(Behaviour::Answers);
    let forever = Duration::MAX;
    server.memory.put("//shop.test/", "{}".into(), forever).await.unwrap();
    let [first, second] = processes(&server, &["cache-control: max-age=60"]);
    first.get("/", &[]).await;
    assert_eq!((second.get("/", &[]).await.body, second.calls()), ("1".into(), 0));
}

/// Shows: C8
#[tokio::test(start_paused = true)]
async fn responses_do_not_stay_in_the_store_for_ever() {
    let server = Server::new(Behaviour::Answers);
    let [site] = processes(&server, &["cache-control: max-age=31536000", "etag: \"v\""]);
    site.get("/", &[]).await;
    assert!(server.memory.bytes() > 0);
    advance(8 * 24 * 60 * 60 * SECOND).await;
    site.get("/other", &[]).await;
    let [other] = processes(&server, &["cache-control: max-age=60"]);
    other.get("/", &[]).await;
    assert_eq!(other.calls(), 1);
}

/// Shows: C8
#[test]
#[should_panic(expected = "this cache has a second level already")]
fn there_is_one_second_level() {
    let server = Server::new(Behaviour::Answers);
    let _ = layer(&server).second_level(server);
}

/// Shows: C8
#[tokio::test(start_paused = true)]
async fn the_response_to_an_older_request_replaces_no_newer_one() {
    for headers in [&["cache-control: max-age=60"][..], &["cache-control: max-age=60", "vary: x-a"]] {
        let server = Server::new(Behaviour::Answers);
        let [first, cold] = processes(&server, headers);
        let slow = Site::new(layer(&server), move |_, _| async move {
            sleep(SECOND).await;
            response(200, headers, "old")
        });
        assert_eq!(first.get("/", &[]).await.body, "1");
        let call = sent(&slow, "/", &["cache-control: no-cache"]).await;
        // A newer one replaces the first.
        assert_eq!(first.get("/", &["cache-control: no-cache"]).await.body, "2");
        assert_eq!(call.await.unwrap().body, "old");
        settle().await;
        assert_eq!((cold.get("/", &[]).await.body, cold.calls()), ("2".into(), 0), "{headers:?}");
    }
}

/// Shows: C8
#[tokio::test(start_paused = true)]
async fn a_lookup_waits_for_the_store_once() {
    let server = Server::new(Behaviour::Answers);
    let [first, second] = processes(&server, &["cache-control: max-age=60"]);
    first.get("/", &[]).await;
    server.becomes(Behaviour::Takes(60 * MILLI));
    let begin = Instant::now();
    second.get("/", &[]).await;
    assert_eq!((second.calls(), begin.elapsed()), (1, TIMEOUT));
}

/// Shows: C8, W4
#[tokio::test(start_paused = true)]
async fn the_status_says_that_a_stale_response_of_the_store_was_replaced() {
    let server = Server::new(Behaviour::Answers);
    let [first, second] = processes(&server, &["cache-control: max-age=0, stale-if-error=60", "etag: \"v\""]);
    first.get("/", &[]).await;
    assert_eq!(second.get("/", &[]).await.header("cache-status"), "ziggurat; fwd=stale; stored");
    let failing = Site::new(layer(&server), |_, _| async { response(503, &[], "") });
    assert_eq!(failing.get("/", &[]).await.header("cache-status"), "ziggurat; fwd=stale; fwd-status=503");
}

/// Shows: C8
#[tokio::test(start_paused = true)]
async fn responses_of_the_store_count_as_memory_while_they_are_read() {
    let server = Server::new(Behaviour::Answers);
    let origin = |_, _| async { response(200, &["cache-control: max-age=60"], "a".repeat(100_000)) };
    let paths: [_; 10] = std::array::from_fn(|n| format!("/{n}"));
    let first = Site::new(layer(&server), origin);
    for path in &paths {
        first.get(path, &[]).await;
    }
    let second = Site::new(layer(&server).capacity(150_000), origin);
    let mut unread = Vec::new();
    for path in &paths {
        unread.push(second.send(request(Method::GET, path, &[])).await.unwrap());
    }
    assert_eq!((second.calls(), second.handle.stats().second_level), (7, 3), "twice the capacity");
    drop(unread);
    assert!(second.handle.bytes() <= 150_000);
    second.get("/9", &[]).await;
    assert_eq!(second.calls(), 7, "there is room again");
}

/// Shows: C8, W1
#[tokio::test(start_paused = true)]
async fn a_response_of_the_store_keeps_its_conditions() {
    for (n, (headers, calls)) in [
        (&["cache-control: max-age=60", "vary: x-a", "connection: vary"][..], 1),
        (&["cache-control: max-age=60, no-cache=\"vary\"", "vary: x-a"], 2),
        (&["cache-control: no-cache", "connection: cache-control", "last-modified: Sat, 03 Nov 2018 08:00:00 GMT"], 2),
    ]
    .into_iter()
    .enumerate()
    {
        let (server, path) = (Server::new(Behaviour::Answers), format!("/{n}"));
        let [first, second] = processes(&server, headers);
        first.get(&path, &["x-a: 1"]).await;
        second.get(&path, &["x-a: 1"]).await;
        second.get(&path, &["x-a: 2"]).await;
        assert_eq!(second.calls(), calls, "{headers:?}");
    }
}

/// Shows: C8
#[tokio::test(start_paused = true)]
async fn the_newest_response_is_served_whatever_it_depends_on() {
    let server = Server::new(Behaviour::Answers);
    let vary = &["cache-control: max-age=60", "vary: x-a"][..];
    let none = &["cache-control: max-age=60"][..];
    let site =
        Site::new(
            layer(&server),
            move |n, _| async move { response(200, if n == 1 { vary } else { none }, n.to_string()) },
        );
    let slow = Site::new(layer(&server), move |_, _| async move {
        sleep(SECOND).await;
        response(200, vary, "old")
    });
    site.get("/", &[]).await;
    site.get("/", &["cache-control: no-cache"]).await;
    let call = sent(&slow, "/", &["cache-control: no-cache"]).await;
    site.get("/", &["cache-control: no-cache"]).await;
    call.await.unwrap();
    settle().await;
    let [cold] = processes(&server, none);
    assert_eq!((cold.get("/", &[]).await.body, cold.calls()), ("3".into(), 0));
}

/// Shows: C8, W1
#[tokio::test(start_paused = true)]
async fn a_secret_that_selects_a_response_is_not_written() {
    let server = Server::new(Behaviour::Answers);
    for (is_secret, calls) in [(true, 1), (false, 0)] {
        let [first, second] = processes(&server, &["cache-control: max-age=60", "vary: x-key"]);
        for site in [first, second.clone()] {
            let mut request = request(Method::GET, "/", &["x-key: k"]);
            request.headers_mut().get_mut("x-key").unwrap().set_sensitive(is_secret);
            Read::of(site.send(request).await.unwrap()).await;
        }
        assert_eq!(second.calls(), calls, "{is_secret}");
    }
}
