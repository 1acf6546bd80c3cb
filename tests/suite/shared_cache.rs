//! The shared cache over a store whose behaviour can be changed, on a paused clock. `tests/redis.rs` has a real server.

use std::{
    future::pending,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering::SeqCst},
    },
    task::Poll,
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Request, Response, header};
use http_body_util::{BodyExt, Full};
use tokio::{
    task::{JoinSet, yield_now},
    time::{Instant, advance, sleep},
};
use tower::{Layer, Service, ServiceBuilder, ServiceExt, service_fn, util::BoxCloneSyncService};
use ziggurat::{
    Class, Error, LayerEvent, LayerInfo,
    cache::{CacheLayer, HttpStorable, http_key},
    circuit_breaker::{CircuitBreakerLayer, State},
    shared_cache::{HttpCodec, SharedCacheLayer},
    store::{MemoryStore, ValueStore},
    testing::{Strict, TestTask},
    timeout::TimeoutLayer,
};

use crate::store::server::{Behaviour, Server};

const MILLI: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
/// The default.
const TIMEOUT: Duration = Duration::from_millis(100);

type Failed = Error<&'static str>;

/// A request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Word(&'static str);

type Key = fn(&Word) -> Option<String>;
type Codec = (fn(&String) -> Option<Bytes>, fn(Bytes) -> Result<String, std::string::FromUtf8Error>);

/// Requests that begin with a dash have no key.
fn key(Word(request): &Word) -> Option<String> {
    (!request.starts_with('-')).then(|| (*request).to_owned())
}

/// Responses that begin with a dash cannot be stored.
fn codec() -> Codec {
    (|response| (!response.starts_with('-')).then(|| response.clone().into()), |bytes| String::from_utf8(bytes.into()))
}

fn layer(server: &Server) -> SharedCacheLayer<Server, Key, Codec> {
    SharedCacheLayer::new(server.clone(), MINUTE, key as Key, codec())
}

/// Returns a service that responds with its request and the number of the call, and this number.
fn counter() -> (Arc<AtomicU32>, impl Service<Word, Response = String, Error = Failed, Future: Send> + Clone + Send) {
    let calls = Arc::new(AtomicU32::new(0));
    let service = {
        let calls = Arc::clone(&calls);
        service_fn(move |Word(request)| {
            let call = calls.fetch_add(1, SeqCst) + 1;
            async move { Ok(format!("{request} {call}")) }
        })
    };
    (calls, Strict::new(service))
}

async fn call<S>(service: &S, request: &'static str) -> String
where
    S: Service<Word, Response = String, Error = Failed> + Clone,
{
    service.clone().oneshot(Word(request)).await.unwrap()
}

/// Shows: M2
#[tokio::test(start_paused = true)]
async fn processes_share_responses_until_they_expire() {
    let server = Server::new(Behaviour::Answers);
    let (calls, service) = counter();
    let layers = [(); 3].map(|()| layer(&server));
    for layer in layers.iter().cycle().take(6) {
        assert_eq!(call(&layer.layer(service.clone()), "a").await, "a 1");
    }
    assert_eq!(call(&layers[0].layer(service.clone()), "b").await, "b 2");
    let counts = |layer: &SharedCacheLayer<_, _, _>| (layer.handle().hits(), layer.handle().misses());
    assert_eq!(layers.each_ref().map(counts), [(1, 2), (2, 0), (2, 0)]);
    assert_eq!(layers[0].handle().requests(), 5, "three lookups, and two responses");
    advance(MINUTE - Duration::from_nanos(1)).await;
    assert_eq!(call(&layers[1].layer(service.clone()), "a").await, "a 1");
    advance(Duration::from_nanos(1)).await;
    assert_eq!(call(&layers[1].layer(service.clone()), "a").await, "a 3");
    assert_eq!(calls.load(SeqCst), 3);
}

/// Shows: M2
#[tokio::test(start_paused = true)]
async fn only_a_success_that_can_be_encoded_is_stored() {
    let server = Server::new(Behaviour::Answers);
    let stored = async |key| server.memory.get(key).await.unwrap().is_some();
    let (_, service) = counter();
    // The response begins with a dash, and the request has a key.
    let negative = service_fn(|_: Word| async { Ok::<_, Failed>("-".to_owned()) });
    assert_eq!(call(&layer(&server).layer(negative), "a").await, "-");
    assert!(!stored("a").await);
    let failing = service_fn(|_: Word| async { Err::<String, _>(Failed::Service("down")) });
    assert!(layer(&server).layer(failing).oneshot(Word("a")).await.is_err());
    let rejecting = TimeoutLayer::new(SECOND).layer(service_fn(|_: Word| pending::<Result<String, Failed>>()));
    assert!(layer(&server).layer(rejecting).oneshot(Word("a")).await.is_err());
    assert!(!stored("a").await);
    let ignoring = layer(&server).classify(|_: Result<&String, &Failed>| Class::Ignored);
    call(&ignoring.layer(service.clone()), "a").await;
    assert!(!stored("a").await);
    let unkeyed = layer(&server);
    call(&unkeyed.layer(service.clone()), "-a").await;
    assert_eq!((unkeyed.handle().requests(), unkeyed.handle().misses()), (0, 0));
    // The ttl may be a function of the request.
    let ttl = |request: &Word| match request.0 {
        "none" => None,
        "zero" => Some(Duration::ZERO),
        _ => Some(Duration::MAX),
    };
    let by_request = SharedCacheLayer::new(server.clone(), ttl, key as Key, codec());
    for request in ["none", "zero", "max"] {
        call(&by_request.layer(service.clone()), request).await;
        assert_eq!(stored(request).await, request == "max", "{request}");
    }
    assert_eq!((by_request.handle().misses(), by_request.handle().requests()), (2, 3));
}

/// Shows: M2
#[tokio::test(start_paused = true)]
async fn bytes_that_cannot_be_decoded_are_a_miss_and_are_replaced() {
    let server = Server::new(Behaviour::Answers);
    let heard = Arc::new(Mutex::new(Vec::new()));
    let observer = {
        let heard = Arc::clone(&heard);
        move |_: &LayerInfo, event: &LayerEvent<'_>| {
            heard.lock().unwrap().push(match event {
                LayerEvent::NotDecoded { error } => format!("not_decoded: {error}"),
                event => event.name().to_owned(),
            });
        }
    };
    let layer = layer(&server).observer(observer);
    let (calls, service) = counter();
    let unknown = "not_decoded: this is not a value of a shared cache";
    let invalid = "not_decoded: invalid utf-8 sequence of 1 bytes from index 0";
    for (value, error) in [(&b""[..], unknown), (b"a 7", unknown), (b"\x01\xff", invalid)] {
        server.memory.put("a", value.into(), MINUTE).await.unwrap();
        let response = call(&layer.layer(service.clone()), "a").await;
        assert_eq!(call(&layer.layer(service.clone()), "a").await, response);
        assert_eq!(std::mem::take(&mut *heard.lock().unwrap()), [error, "miss", "stored", "hit"]);
    }
    assert_eq!(calls.load(SeqCst), 3);
    call(&layer.layer(service.clone()), "-a").await;
    assert_eq!(std::mem::take(&mut *heard.lock().unwrap()), ["bypassed"]);
}

/// Shows: M2
#[tokio::test(start_paused = true)]
async fn a_codec_that_panics_costs_no_call() {
    let server = Server::new(Behaviour::Answers);
    let (calls, service) = counter();
    let panics = (|_: &String| -> Option<Bytes> { panic!("at the disco") }, codec().1);
    let encoder = SharedCacheLayer::new(server.clone(), MINUTE, key as Key, panics).layer(service.clone());
    assert_eq!((call(&encoder, "a").await, call(&encoder, "a").await), ("a 1".to_owned(), "a 2".to_owned()));
    call(&layer(&server).layer(service.clone()), "a").await;
    let panics = (codec().0, |_: Bytes| -> Result<String, &str> { panic!("at the disco") });
    let decoder = SharedCacheLayer::new(server.clone(), MINUTE, key as Key, panics).layer(service);
    assert_eq!((call(&decoder, "a").await, call(&decoder, "a").await), ("a 4".to_owned(), "a 5".to_owned()));
    assert_eq!(calls.load(SeqCst), 5);
}

/// Shows: M2
#[tokio::test(start_paused = true)]
async fn a_store_that_fails_costs_no_call_and_its_return_is_noticed() {
    for behaviour in [Behaviour::Fails, Behaviour::Panics] {
        let server = Server::new(Behaviour::Answers);
        let (layer, (calls, service), begin) = (layer(&server), counter(), Instant::now());
        let service = layer.layer(service);
        assert_eq!(call(&service, "a").await, "a 1");
        server.becomes(behaviour);
        for number in 2..100 {
            assert_eq!(call(&service, "a").await, format!("a {number}"));
        }
        assert!(layer.handle().is_away());
        assert_eq!(layer.handle().requests(), 3, "a lookup and a response, and the lookup that failed");
        assert_eq!(begin.elapsed(), Duration::ZERO);
        server.becomes(Behaviour::Answers);
        advance(100 * MILLI).await;
        // This call sends a request that it does not wait for.
        assert_eq!(call(&service, "a").await, "a 100");
        assert!(!layer.handle().is_away());
        assert_eq!(call(&service, "a").await, "a 1");
        assert_eq!(calls.load(SeqCst), 100);
    }
}

/// Shows: M2
#[tokio::test(start_paused = true)]
async fn a_store_that_hangs_delays_calls_by_no_more_than_the_timeout_and_then_by_nothing() {
    let server = Server::new(Behaviour::Hangs);
    let (layer, (_, service), begin) = (layer(&server), counter(), Instant::now());
    let service = layer.layer(service);
    let mut calls = JoinSet::new();
    for _ in 0..10 {
        let service = service.clone();
        calls.spawn(async move { call(&service, "a").await });
    }
    calls.join_all().await;
    assert_eq!(begin.elapsed(), TIMEOUT);
    for _ in 0..10 {
        call(&service, "a").await;
    }
    assert_eq!(begin.elapsed(), TIMEOUT);
    assert!(layer.handle().is_away());
    // A lookup that no call waits for, one at a time.
    let requests = layer.handle().requests();
    advance(2 * SECOND).await;
    for _ in 0..10 {
        call(&service, "a").await;
    }
    assert_eq!((begin.elapsed(), layer.handle().requests()), (TIMEOUT + 2 * SECOND, requests + 1));
}

/// Shows: M2
#[tokio::test(start_paused = true)]
async fn no_call_waits_until_its_response_is_stored() {
    let server = Server::new(Behaviour::PutsHang);
    let (layer, (_, service), begin) = (layer(&server), counter(), Instant::now());
    let service = layer.layer(service);
    assert_eq!(call(&service, "a").await, "a 1");
    assert_eq!(begin.elapsed(), Duration::ZERO);
    advance(TIMEOUT).await;
    yield_now().await;
    assert!(!layer.handle().is_away(), "it can be read");
}

/// Shows: M2
#[tokio::test(start_paused = true)]
async fn a_removal_is_for_all_processes_and_for_calls_that_began_before_it() {
    let server = Server::new(Behaviour::Answers);
    let (layer, other) = (layer(&server), layer(&server));
    let (_, quick) = counter();
    assert_eq!(call(&layer.layer(quick.clone()), "a").await, "a 1");
    other.handle().remove("a").await.unwrap();
    assert_eq!(call(&layer.layer(quick.clone()), "a").await, "a 2");
    assert_eq!(call(&other.layer(quick.clone()), "a").await, "a 2");

    // One call begins before each of two removals, one after them.
    let slow = service_fn(async |Word(response)| {
        sleep(SECOND).await;
        Ok::<_, Failed>(response.to_owned())
    });
    let same_key = SharedCacheLayer::new(server.clone(), MINUTE, |_: &Word| "b".to_owned(), codec());
    let slow = same_key.layer(slow);
    let mut calls = ["first", "second", "third"].map(|response| TestTask::new(slow.clone().oneshot(Word(response))));
    for (number, call) in calls.iter_mut().enumerate() {
        assert!(call.poll().is_pending());
        if number < 2 {
            other.handle().remove("b").await.unwrap();
        }
    }
    advance(SECOND).await;
    for call in &mut calls {
        assert!(matches!(call.poll(), Poll::Ready(Ok(_))));
    }
    assert_eq!(call(&same_key.layer(quick), "b").await, "third");
}

/// Shows: M2
#[tokio::test(start_paused = true)]
async fn a_removal_that_fails_says_so() {
    let server = Server::new(Behaviour::Fails);
    let (handle, begin) = (layer(&server).handle(), Instant::now());
    assert_eq!(handle.remove("a").await.unwrap_err().to_string(), "refused");
    server.becomes(Behaviour::Panics);
    assert_eq!(handle.remove("a").await.unwrap_err().to_string(), "panicked: at the disco");
    server.becomes(Behaviour::Hangs);
    assert_eq!(handle.remove("a").await.unwrap_err().to_string(), "no answer within 1s");
    assert_eq!(begin.elapsed(), SECOND);
}

/// Readers and writers of several processes over a store with random delays. A reader that begins after a removal has
/// returned never gets an older response.
///
/// Shows: M2
#[tokio::test(start_paused = true)]
async fn no_response_outlives_its_removal_in_random_programs() {
    for seed in 0..50 {
        fastrand::seed(seed);
        let server = Server::new(Behaviour::Delays(20 * MILLI));
        let ttl = if seed % 2 == 0 { MINUTE } else { 250 * MILLI };
        let (version, removed) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
        let (mut tasks, mut hits) = (JoinSet::new(), Vec::new());
        for _ in 0..3 {
            let source = {
                let version = Arc::clone(&version);
                service_fn(move |_: Word| {
                    let version = Arc::clone(&version);
                    async move {
                        sleep(MILLI * fastrand::u32(0..50)).await;
                        let read = version.load(SeqCst).to_string();
                        sleep(MILLI * fastrand::u32(0..50)).await;
                        Ok::<_, Failed>(read)
                    }
                })
            };
            let layer = SharedCacheLayer::new(server.clone(), ttl, key as Key, codec());
            hits.push(layer.handle());
            for _ in 0..4 {
                let service = BoxCloneSyncService::new(layer.layer(source.clone()));
                let removed = Arc::clone(&removed);
                tasks.spawn(async move {
                    for _ in 0..50 {
                        sleep(MILLI * fastrand::u32(0..50)).await;
                        let at_least = removed.load(SeqCst);
                        let read: u32 = call(&service, "a").await.parse().unwrap();
                        assert!(read >= at_least, "{read} after the removal of {at_least}, with seed {seed}");
                    }
                });
            }
        }
        let (handle, version) = (layer(&server).handle(), Arc::clone(&version));
        tasks.spawn(async move {
            for _ in 0..20 {
                sleep(MILLI * fastrand::u32(0..300)).await;
                let new = version.fetch_add(1, SeqCst) + 1;
                handle.remove("a").await.unwrap();
                removed.store(new, SeqCst);
            }
        });
        tasks.join_all().await;
        assert!(hits.iter().all(|handle| handle.hits() > 0 && !handle.is_away()), "{hits:?}");
    }
}

/// Shows: M2
#[tokio::test(start_paused = true)]
async fn with_a_first_level_concurrent_calls_share_one_lookup_and_one_call() {
    let server = Server::new(Behaviour::Delays(10 * MILLI));
    let (calls, service) = counter();
    let shared = layer(&server);
    let memory = CacheLayer::new(10, 10 * SECOND, |request: &Word| Some(*request));
    let first_level = memory.handle();
    let service = ServiceBuilder::new().layer(memory).layer(shared.clone()).service(service);
    let mut callers = JoinSet::new();
    for _ in 0..100 {
        let service = service.clone();
        callers.spawn(async move { call(&service, "a").await });
    }
    assert!(callers.join_all().await.iter().all(|response| response == "a 1"));
    assert_eq!((calls.load(SeqCst), server.requests.load(SeqCst)), (1, 2), "a lookup, and the response");
    sleep(20 * MILLI).await;

    // The first level serves a response that another process has removed, until its own ttl ends.
    layer(&server).handle().remove("a").await.unwrap();
    assert_eq!(call(&service, "a").await, "a 1");
    first_level.invalidate(&Word("a"));
    assert_eq!(call(&service, "a").await, "a 2");
}

/// Shows: M2
#[tokio::test(start_paused = true)]
async fn a_call_that_is_dropped_during_its_lookup_says_nothing_about_the_service() {
    let server = Server::new(Behaviour::Hangs);
    let (calls, service) = counter();
    let breaker = CircuitBreakerLayer::consecutive(1);
    let (circuit, shared) = (breaker.handle(), layer(&server));
    let service = ServiceBuilder::new().layer(breaker).layer(shared.clone()).service(service);
    for drops_whole_call in [false, true] {
        let call = service.clone().oneshot(Word("a"));
        if drops_whole_call {
            let mut call = TestTask::new(call);
            assert!(call.poll().is_pending());
        } else {
            assert!(TimeoutLayer::new(10 * MILLI).layer(service.clone()).oneshot(Word("a")).await.is_err());
        }
    }
    assert_eq!((circuit.state(), calls.load(SeqCst)), (State::Closed, 0));
    // Its lookup ran on, and has found out that the store is away.
    sleep(TIMEOUT).await;
    assert!(shared.handle().is_away());
}

/// Shows: M2
#[test]
fn a_lookup_whose_runtime_has_ended_holds_up_no_call() {
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let (first, second) = (runtime(), runtime());
    let server = Server::new(Behaviour::Hangs);
    let (_, service) = counter();
    let mut call = TestTask::new(layer(&server).timeout(MINUTE).layer(service).oneshot(Word("a")));
    {
        let _first = first.enter();
        assert!(call.poll().is_pending());
    }
    drop(first);
    let _second = second.enter();
    assert!(matches!(call.poll(), Poll::Ready(Ok(response)) if response == "a 1"));
}

type HttpRequest = Request<Full<Bytes>>;

fn get(uri: &'static str, header: Option<(HeaderName, &'static str)>) -> HttpRequest {
    let mut request = Request::get(uri).body(Full::default()).unwrap();
    request.headers_mut().extend(header.map(|(name, value)| (name, HeaderValue::from_static(value))));
    request
}

/// Shows: M2
#[tokio::test(start_paused = true)]
async fn over_http_no_caller_gets_the_response_of_another() {
    let calls = Arc::new(AtomicU32::new(0));
    let service = {
        let calls = Arc::clone(&calls);
        service_fn(move |request: HttpRequest| {
            let number = calls.fetch_add(1, SeqCst) + 1;
            let mut response = Response::new(Full::new(Bytes::from(number.to_string())));
            for (name, value) in request.headers() {
                if let Some(name) = name.as_str().strip_prefix("respond-") {
                    response.headers_mut().insert(HeaderName::from_bytes(name.as_bytes()).unwrap(), value.clone());
                }
            }
            async { Ok::<_, Failed>(response) }
        })
    };
    let key = |request: &HttpRequest| Some(http_key(request)?.to_string());
    let shared = SharedCacheLayer::new(MemoryStore::new(), MINUTE, key, HttpCodec).classify(HttpStorable);
    let body = async |request| {
        let response = shared.layer(service.clone()).oneshot(request).await.unwrap();
        response.into_body().collect().await.unwrap().to_bytes()
    };
    for number in ["1", "1"] {
        assert_eq!(body(get("/a", Some((header::HOST, "a.example")))).await, number);
    }
    assert_eq!(body(get("/a?b", Some((header::HOST, "a.example")))).await, "2");
    assert_eq!(body(get("/a", Some((header::HOST, "b.example")))).await, "3");
    // Its text would be that of another host and path.
    for number in ["4", "5"] {
        assert_eq!(body(get("/c", Some((header::HOST, "a.example/b")))).await, number);
    }
    assert_eq!(body(get("/b/c", Some((header::HOST, "a.example")))).await, "6");
    let mut number = 6;
    for header in [
        (header::AUTHORIZATION, "Bearer token"),
        (header::COOKIE, "session=1"),
        (HeaderName::from_static("respond-set-cookie"), "session=1"),
        (HeaderName::from_static("respond-cache-control"), "private"),
        (HeaderName::from_static("respond-vary"), "accept"),
    ] {
        for _ in 0..2 {
            number += 1;
            assert_eq!(body(get("/private", Some(header.clone()))).await, number.to_string(), "{header:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_that_outlasts_the_ttl_stores_nothing_from_before_a_removal() {
    let server = Server::new(Behaviour::Answers);
    let short = SharedCacheLayer::new(server.clone(), 5 * SECOND, key as Key, codec());
    let after = |time, text: &'static str| {
        short.layer(service_fn(move |_: Word| async move {
            sleep(time).await;
            Ok::<_, Failed>(text.to_owned())
        }))
    };
    let slow = tokio::spawn(after(8 * SECOND, "before the removal").oneshot(Word("a")));
    sleep(SECOND).await;
    short.handle().remove("a").await.unwrap();
    // This response takes the place of the removal's mark, and has expired when the slow call ends.
    assert_eq!(call(&after(Duration::ZERO, "fresh"), "a").await, "fresh");
    assert_eq!(slow.await.unwrap().unwrap(), "before the removal");
    yield_now().await;
    assert_eq!(server.memory.get("a").await.unwrap(), None);
    assert_eq!(call(&after(Duration::ZERO, "after the removal"), "a").await, "after the removal");
}

#[tokio::test(start_paused = true)]
async fn a_store_that_takes_no_responses_is_still_read() {
    let server = Server::new(Behaviour::Answers);
    let (calls, service) = counter();
    let service = layer(&server).layer(service);
    assert_eq!(call(&service, "a").await, "a 1");
    server.becomes(Behaviour::PutsHang);
    for number in 2..20 {
        call(&service, "b").await;
        sleep(2 * TIMEOUT).await;
        assert_eq!((call(&service, "a").await.as_str(), calls.load(SeqCst)), ("a 1", number));
    }
    server.becomes(Behaviour::Answers);
    sleep(3 * SECOND).await;
    call(&service, "c").await;
    assert_eq!(call(&service, "c").await, "c 20");
}

#[tokio::test(start_paused = true)]
async fn a_response_that_is_too_large_is_not_stored() {
    let server = Server::new(Behaviour::Answers);
    let (_, service) = counter();
    let service = layer(&server).max_bytes(3).layer(service);
    assert_eq!([call(&service, "a").await, call(&service, "a").await], ["a 1", "a 1"]);
    assert_eq!([call(&service, "bb").await, call(&service, "bb").await], ["bb 2", "bb 3"]);
}

#[tokio::test(start_paused = true)]
async fn http_responses_for_one_caller_are_not_encoded_whatever_the_classifier_says() {
    use ziggurat::store::Codec as _;
    let response = |status: u16, name: HeaderName, value: HeaderValue| {
        Response::builder().status(status).header(name, value).body(Full::new(Bytes::from("secret"))).unwrap()
    };
    let mut sensitive = HeaderValue::from_static("key");
    sensitive.set_sensitive(true);
    for (status, name, value) in [
        (200, header::SET_COOKIE, "id=7".parse().unwrap()),
        (200, header::CACHE_CONTROL, "max-age=60, Private".parse().unwrap()),
        (200, header::CACHE_CONTROL, "no-store".parse().unwrap()),
        (200, header::ETAG, sensitive),
        (500, header::ETAG, "a".parse().unwrap()),
    ] {
        assert!(HttpCodec.encode(&response(status, name.clone(), value)).is_none(), "{status} {name}");
    }
    assert!(HttpCodec.encode(&response(404, header::ETAG, "a".parse().unwrap())).is_some());
}
