//! HTTP's rules about shared responses.

use std::convert::Infallible;

use http::{
    HeaderName, HeaderValue, Method, Request, Response,
    header::{
        AUTHORIZATION, CACHE_CONTROL, CONTENT_LENGTH, COOKIE, EXPIRES, HOST, IF_NONE_MATCH, IF_RANGE, PRAGMA, RANGE,
        SET_COOKIE, TRANSFER_ENCODING, UPGRADE, VARY,
    },
};
use tokio::task::yield_now;
use tower::{Layer, util::BoxCloneSyncService};
use ziggurat::cache::{CacheHandle, CacheLayer, HttpKey, HttpStorable, http_key};

use super::*;

type Answer = Response<String>;
type Cache = BoxCloneSyncService<Request<()>, Answer, Error<Infallible>>;

/// Returns the service and its cache, over an inner service that builds its response from the request and the number of
/// the call.
fn cached(
    answer: impl Fn(&Request<()>, usize) -> Answer + Clone + Send + Sync + 'static,
) -> (Cache, CacheHandle<HttpKey, Answer>) {
    let calls = Arc::new(AtomicUsize::new(0));
    let service = service_fn(move |request: Request<()>| {
        let (answer, calls) = (answer.clone(), Arc::clone(&calls));
        async move {
            yield_now().await;
            Ok::<_, Error<Infallible>>(answer(&request, calls.fetch_add(1, SeqCst) + 1))
        }
    });
    let layer = CacheLayer::new(100, SECOND, http_key).classify(HttpStorable);
    let cache = layer.handle();
    (BoxCloneSyncService::new(layer.layer(service)), cache)
}

fn get(uri: &str, headers: &[(HeaderName, &'static str)]) -> Request<()> {
    let mut request = Request::get(uri).body(()).unwrap();
    for (name, value) in headers {
        request.headers_mut().append(name, HeaderValue::from_static(value));
    }
    request
}

/// On an HTTP/1 server the URI is a path, and the host is in a header.
#[tokio::test(start_paused = true)]
async fn virtual_hosts_share_nothing() {
    let whose = |request: &Request<()>, call: usize| {
        let host = request.headers().get(HOST).map(|host| host.to_str().unwrap().to_ascii_lowercase());
        Response::new(format!("{}{} {call}", host.as_deref().unwrap_or_default(), request.uri()))
    };
    let (service, _) = cached(whose);
    for _ in 0..2 {
        for (uri, host, answer) in [
            ("/", Some("a.example"), "a.example/ 1"),
            ("/", Some("b.example"), "b.example/ 2"),
            ("/", Some("A.EXAMPLE"), "a.example/ 1"),
            ("/", Some("a.example:8080"), "a.example:8080/ 3"),
            ("/?page=2", Some("a.example"), "a.example/?page=2 4"),
            ("/", None, "/ 5"),
            ("http://c.example/", None, "http://c.example/ 6"),
            ("https://c.example/", None, "https://c.example/ 7"),
        ] {
            let headers = host.map(|host| (HOST, host));
            let response = service.clone().oneshot(get(uri, headers.as_slice())).await.unwrap();
            assert_eq!(response.body(), answer);
        }
    }
}

/// Their responses are private, partial, or not to be stored.
#[tokio::test(start_paused = true)]
async fn requests_whose_answer_is_not_for_everybody_go_past_the_cache() {
    let (service, cache) = cached(|_, call| Response::new(call.to_string()));
    let mut calls = 0_usize;
    for request in [
        get("/", &[(AUTHORIZATION, "Bearer token")]),
        get("/", &[(COOKIE, "session=1")]),
        get("/", &[(RANGE, "bytes=0-9")]),
        get("/", &[(IF_RANGE, "\"tag\"")]),
        get("/", &[(IF_NONE_MATCH, "\"tag\"")]),
        get("/", &[(CACHE_CONTROL, "no-store")]),
        get("/", &[(PRAGMA, "no-cache")]),
        get("/", &[(UPGRADE, "websocket")]),
        get("/", &[(CONTENT_LENGTH, "1")]),
        get("/", &[(TRANSFER_ENCODING, "chunked")]),
        get("/", &[(HOST, "a.example"), (HOST, "b.example")]),
        get("http://a.example/", &[(HOST, "b.example")]),
        get("/", &[(HOST, "user@a.example")]),
        get("/", &[(HOST, "a.example/path")]),
        get("/", &[(HOST, "a.example?query")]),
        get("/", &[(HOST, "a.example\\path")]),
        get("http://user:secret@a.example/", &[]),
        Request::head("/").body(()).unwrap(),
        Request::post("/").body(()).unwrap(),
        Request::builder().method(Method::DELETE).uri("/").body(()).unwrap(),
    ] {
        assert_eq!(http_key(&request), None, "{request:?}");
        let [first, second] = [(); 2].map(|()| service.clone().oneshot(request.clone()));
        // Concurrent calls: they do not even share a call.
        let (first, second) = tokio::join!(first, second);
        calls += 2;
        let mut bodies = [first, second].map(|answer| answer.unwrap().into_body().parse::<usize>().unwrap());
        bodies.sort();
        assert_eq!(bodies, [calls - 1, calls]);
    }
    assert!(cache.is_empty());
    let stats = cache.stats();
    assert_eq!((stats.bypassed, stats.hits, stats.misses, stats.hit_rate()), (calls as u64, 0, 0, None));
    let one = http_key(&get("http://a.example/", &[(HOST, "A.example"), (CONTENT_LENGTH, "0")])).unwrap();
    assert_eq!(
        (one.authority(), one.path(), one.query(), &*one.to_string()),
        ("a.example", "/", None, "http://a.example/")
    );
}

/// A private response is not stored, nor given to a waiter for the same call.
#[tokio::test(start_paused = true)]
async fn responses_that_are_not_for_everybody_are_neither_stored_nor_shared() {
    for (status, header, is_shared, is_stored) in [
        (200, None, true, true),
        (200, Some((CACHE_CONTROL, "public, max-age=60")), true, true),
        (301, None, true, true),
        (404, None, true, true),
        (500, None, true, false),
        (503, None, true, false),
        (206, None, false, false),
        (302, None, false, false),
        (304, None, false, false),
        (401, None, false, false),
        (200, Some((SET_COOKIE, "session=1")), false, false),
        // As a compressing layer sets it.
        (200, Some((VARY, "accept-encoding")), false, false),
        (200, Some((CACHE_CONTROL, "no-store")), false, false),
        (200, Some((CACHE_CONTROL, "max-age=60, Private")), false, false),
        (200, Some((CACHE_CONTROL, "no-cache=\"x\"")), false, false),
        (200, Some((CACHE_CONTROL, "max-age=0")), false, false),
        (200, Some((PRAGMA, "no-cache")), false, false),
        (200, Some((EXPIRES, "0")), false, false),
        (200, Some((EXPIRES, "Thu, 01 Jan 1970 00:00:00 GMT")), false, false),
        (200, Some((EXPIRES, "Fri, 31 Dec 9999 23:59:59 GMT")), true, true),
    ] {
        let sent = header.clone();
        let (service, cache) = cached(move |_, call| {
            let mut response = Response::builder().status(status).body(call.to_string()).unwrap();
            response.headers_mut().extend(sent.clone().map(|(name, value)| (name, HeaderValue::from_static(value))));
            response
        });
        let [one, two, three] = [(); 3].map(|()| service.clone().oneshot(get("/", &[])));
        let (one, two, three) = tokio::join!(one, two, three);
        let mut bodies = [one, two, three].map(|answer| answer.unwrap().into_body());
        bodies.sort();
        let expected = if is_shared { ["1"; 3] } else { ["1", "2", "3"] };
        assert_eq!(bodies, expected, "{status} {header:?}");
        assert_eq!(cache.len(), usize::from(is_stored), "{status} {header:?}");
    }
}

/// All waiters for a response that is not theirs call at the same time, not one after the other.
#[tokio::test(start_paused = true)]
async fn those_who_waited_for_an_answer_of_anothers_call_at_once() {
    let (backend, strict) = backend();
    let layer = CacheLayer::new(10, SECOND, itself)
        .classify(|_: Result<&String, &Error<&'static str>>| ziggurat::Class::Ignored);
    let (cache, service) = (layer.handle(), layer.layer(strict));
    let mut calls = [(); 4].map(|()| task(&service, "a"));
    for call in &mut calls {
        assert!(call.poll().is_pending());
    }
    backend.answer(0, ok("for the first"));
    assert_eq!(answered(calls[0].poll()).unwrap(), "for the first");
    for call in &mut calls[1..] {
        assert!(call.poll().is_pending());
    }
    assert_eq!(backend.calls(), 4);
    assert_eq!((cache.stats().misses, cache.stats().shared), (4, 0));
}

/// The parts of a request are slices of the buffer of a connection.
#[tokio::test(start_paused = true)]
async fn a_compact_key_keeps_no_buffer_of_a_connection() {
    let buffer = bytes::Bytes::from([&b"/prices?page=1shop.test"[..], &[b'x'; 100_000]].concat());
    let request = |buffer: &bytes::Bytes| {
        let uri = http::Uri::from_maybe_shared(buffer.slice(..14)).unwrap();
        let host = HeaderValue::from_maybe_shared(buffer.slice(14..23)).unwrap();
        Request::get(uri).header(HOST, host).body(()).unwrap()
    };
    let key = |request: &Request<()>| Some(http_key(request)?.compact());
    let layer = CacheLayer::new(100, SECOND, key).classify(HttpStorable);
    let cache = layer.handle();
    let hello = service_fn(async |_| Ok::<_, Error<Infallible>>(Response::new("hello".to_owned())));
    layer.layer(hello).oneshot(request(&buffer)).await.unwrap();
    assert!(cache.len() == 1 && buffer.is_unique());
    let key = http_key(&request(&buffer)).unwrap();
    assert_eq!((key.compact(), key.compact().to_string().as_str()), (key.clone(), "//shop.test/prices?page=1"));
    drop(key);
    cache.invalidate(&http_key(&request(&buffer)).unwrap());
    assert!(cache.is_empty());
}
