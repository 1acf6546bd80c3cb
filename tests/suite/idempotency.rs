//! A handler runs once for each key: over a store whose behaviour can be changed, on a paused clock.

use std::{
    convert::Infallible,
    future::{Future, pending, poll_fn},
    pin::{Pin, pin},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering::SeqCst},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http::{Method, Request, Response, StatusCode};
use http_body::{Body, Frame};
use http_body_util::{BodyExt, Full, StreamBody};
use tokio::{
    sync::mpsc,
    time::{Instant, advance, sleep},
};
use tower::{Layer, Service, ServiceBuilder, ServiceExt, service_fn, util::BoxCloneService};
use ziggurat::{
    Error, LayerEvent, LayerInfo, Reason, Scope,
    concurrency_limit::ConcurrencyLimitLayer,
    context::ContextLayer,
    idempotency::{IdempotencyLayer, IdempotentBody},
    rejection,
    rejection_response::RejectionResponseLayer,
    store::{MemoryStore, ValueStore},
    timeout::TimeoutLayer,
};

const MILLI: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

type BoxError = Box<dyn std::error::Error + Send + Sync>;
type Failed = Error<&'static str>;
/// A body that tests send frame by frame.
type Streamed = StreamBody<Frames>;
type Inside = IdempotentBody<Streamed>;
type Client = BoxCloneService<Request<Streamed>, Response<Inside>, Failed>;

/// The frames of a body, which ends when the sender is dropped.
#[derive(Debug)]
struct Frames(mpsc::UnboundedReceiver<Result<Frame<Bytes>, BoxError>>);

impl futures_util::Stream for Frames {
    type Item = Result<Frame<Bytes>, BoxError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_recv(cx)
    }
}

type Sender = mpsc::UnboundedSender<Result<Frame<Bytes>, BoxError>>;

fn streamed() -> (Sender, Streamed) {
    let (sender, receiver) = mpsc::unbounded_channel();
    (sender, StreamBody::new(Frames(receiver)))
}

fn data(text: &'static str) -> Result<Frame<Bytes>, BoxError> {
    Ok(Frame::data(Bytes::from_static(text.as_bytes())))
}

fn whole(text: &'static str) -> Streamed {
    let (sender, body) = streamed();
    sender.send(data(text)).unwrap();
    body
}

/// How a store behaves.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Behaviour {
    Answers,
    Fails,
    Panics,
    Hangs,
    /// Carries out each request, but its answer is lost.
    LosesAnswers,
    /// Takes only small values.
    RefusesLarge,
}

/// A store of the test. Clones are the connections of several processes to one server.
#[derive(Clone)]
struct Server {
    memory: Arc<MemoryStore>,
    behaviour: Arc<Mutex<Behaviour>>,
    requests: Arc<AtomicU32>,
}

impl Server {
    fn new() -> Self {
        let behaviour = Arc::new(Mutex::new(Behaviour::Answers));
        Self { memory: Arc::new(MemoryStore::new()), behaviour, requests: Arc::default() }
    }

    fn set(&self, behaviour: Behaviour) {
        *self.behaviour.lock().unwrap() = behaviour;
    }

    async fn answer<T>(&self, answer: impl Future<Output = Result<T, Infallible>>) -> Result<T, &'static str> {
        self.answer_to(0, answer).await
    }

    async fn answer_to<T>(
        &self,
        bytes: usize,
        answer: impl Future<Output = Result<T, Infallible>>,
    ) -> Result<T, &'static str> {
        self.requests.fetch_add(1, SeqCst);
        let behaviour = *self.behaviour.lock().unwrap();
        match behaviour {
            Behaviour::RefusesLarge if bytes > 50 => Err("too large"),
            Behaviour::Answers | Behaviour::RefusesLarge => answer.await.map_err(|never| match never {}),
            Behaviour::Fails => Err("down"),
            Behaviour::Panics => panic!("the store panics"),
            Behaviour::Hangs => pending().await,
            Behaviour::LosesAnswers => {
                let _ = answer.await;
                pending().await
            }
        }
    }
}

impl ValueStore for Server {
    type Error = &'static str;

    async fn get(&self, key: &str) -> Result<Option<Bytes>, &'static str> {
        self.answer(self.memory.get(key)).await
    }

    async fn put(&self, key: &str, value: Bytes, ttl: Duration) -> Result<(), &'static str> {
        self.answer(self.memory.put(key, value, ttl)).await
    }

    async fn put_new(&self, key: &str, value: Bytes, ttl: Duration) -> Result<Option<Bytes>, &'static str> {
        self.answer_to(value.len(), self.memory.put_new(key, value, ttl)).await
    }

    async fn replace(&self, key: &str, now: &[u8], new: Option<Bytes>, ttl: Duration) -> Result<bool, &'static str> {
        self.answer_to(new.as_ref().map_or(0, Bytes::len), self.memory.replace(key, now, new, ttl)).await
    }

    async fn remove(&self, key: &str) -> Result<(), &'static str> {
        self.answer(self.memory.remove(key)).await
    }
}

fn layer<B>(server: &Server) -> IdempotencyLayer<Server, impl Fn(&Request<B>) -> Option<String> + Clone + use<B>> {
    let caller = |request: &Request<B>| Some(request.headers().get("x-account")?.to_str().ok()?.to_owned());
    IdempotencyLayer::new(server.clone(), caller)
}

fn request(key: &str, body: Streamed) -> Request<Streamed> {
    Request::post("/orders").header("x-account", "eve").header("idempotency-key", key).body(body).unwrap()
}

fn book() -> Request<Streamed> {
    request("1", whole("a book"))
}

/// A handler that counts its runs. Its response has the number of the run and the request body.
#[derive(Clone, Default)]
struct Shop {
    runs: Arc<AtomicU32>,
    ended: Arc<AtomicU32>,
}

impl Shop {
    fn runs(&self) -> u32 {
        self.runs.load(SeqCst)
    }

    /// Each run takes `time`.
    fn taking(
        &self,
        time: Duration,
    ) -> impl Service<
        Request<Inside>,
        Response = Response<Streamed>,
        Error = Failed,
        Future = BoxFuture<'static, Result<Response<Streamed>, Failed>>,
    > + Clone
    + Send
    + use<> {
        let shop = self.clone();
        service_fn(move |request: Request<Inside>| {
            let (shop, run) = (shop.clone(), shop.runs.fetch_add(1, SeqCst) + 1);
            let handle = async move {
                sleep(time).await;
                let ordered = request.into_body().collect().await.unwrap().to_bytes();
                let (sender, body) = streamed();
                sender.send(Ok(Frame::data(format!("{run}: ").into()))).unwrap();
                sender.send(Ok(Frame::data(ordered))).unwrap();
                sender
                    .send(Ok(Frame::trailers(
                        [("x-end".parse().unwrap(), "yes".parse().unwrap())].into_iter().collect(),
                    )))
                    .unwrap();
                shop.ended.fetch_add(1, SeqCst);
                Ok(Response::builder().status(500).header("x-run", run).body(body).unwrap())
            };
            Box::pin(handle) as BoxFuture<'static, _>
        })
    }
}

/// Returns the status of a response, whether it was replayed, and its text.
async fn got(response: Result<Response<Inside>, Failed>) -> (u16, bool, String) {
    let response = match response {
        Ok(response) => response,
        Err(Error::Rejected(rejection)) => {
            return (rejection.status().as_u16(), false, rejection.reason().as_str().into());
        }
        Err(Error::Service(error)) => return (0, false, error.into()),
    };
    let (status, replayed) = (response.status().as_u16(), response.headers().contains_key("idempotent-replayed"));
    match response.into_body().collect().await {
        Ok(body) => {
            let trailers = body.trailers().map_or(0, |trailers| trailers.len());
            let text = String::from_utf8(body.to_bytes().into()).unwrap();
            (status, replayed, if trailers == 0 { text } else { format!("{text}, {trailers} trailer") })
        }
        Err(error) => (status, replayed, format!("broken: {error}")),
    }
}

fn client<S>(server: &Server, service: S) -> Client
where
    S: Service<Request<Inside>, Response = Response<Streamed>, Error = Failed, Future: Send> + Clone + Send + 'static,
{
    BoxCloneService::new(layer(server).layer(service))
}

fn call(client: &Client, request: Request<Streamed>) -> impl Future<Output = (u16, bool, String)> + Send + 'static {
    let call = client.clone().oneshot(request);
    async { got(call.await).await }
}

fn run_1() -> (u16, bool, String) {
    (500, false, "1: a book, 1 trailer".into())
}

fn replay_of_1() -> (u16, bool, String) {
    (500, true, "1: a book, 1 trailer".into())
}

/// Shows: Y2
#[tokio::test(start_paused = true)]
async fn a_repeated_request_gets_the_stored_response_whatever_its_status() {
    let (server, shop) = (Server::new(), Shop::default());
    let here = client(&server, shop.taking(SECOND));
    assert_eq!(call(&here, book()).await, run_1());
    assert_eq!(call(&here, book()).await, replay_of_1());
    // And from another process.
    let there = client(&server, shop.taking(SECOND));
    let replay = there.oneshot(book()).await.unwrap();
    assert_eq!(replay.headers()["x-run"], "1");
    assert_eq!(replay.body().size_hint().lower(), 9);
    assert_eq!(got(Ok(replay)).await, replay_of_1());
    advance(DAY - SECOND).await;
    assert_eq!(call(&here, book()).await, replay_of_1());
    advance(2 * SECOND).await;
    assert_eq!(call(&here, book()).await.2, "2: a book, 1 trailer");
    assert_eq!(shop.runs(), 2);
}

/// Shows: Y2
#[tokio::test(start_paused = true)]
async fn concurrent_requests_share_one_run_in_one_process_and_in_several() {
    let (server, shop) = (Server::new(), Shop::default());
    let [here, there] = [(); 2].map(|()| client(&server, shop.taking(3 * SECOND)));
    let first = tokio::spawn(call(&here, book()));
    sleep(SECOND).await;
    let (second, third) = tokio::join!(call(&here, book()), call(&there, book()));
    assert_eq!((first.await.unwrap(), second, third), (run_1(), replay_of_1(), replay_of_1()));
    assert_eq!(shop.runs(), 1);
}

/// Shows: Y2
#[tokio::test(start_paused = true)]
async fn a_key_belongs_to_one_request_of_one_caller() {
    let (server, shop) = (Server::new(), Shop::default());
    let [here, there] = [(); 2].map(|()| client(&server, shop.taking(3 * SECOND)));
    let first = tokio::spawn(call(&here, book()));
    sleep(SECOND).await;
    let reused = (422, false, "key_reused".to_owned());
    for _while_and_after in 0..2 {
        for client in [&here, &there] {
            assert_eq!(call(client, request("1", whole("a pen"))).await, reused);
            let mut other = book();
            *other.uri_mut() = "/returns".parse().unwrap();
            assert_eq!(call(client, other).await, reused);
        }
        sleep(3 * SECOND).await;
    }
    assert_eq!(first.await.unwrap(), run_1());
    let mut other = book();
    other.headers_mut().insert("x-account", "adam".parse().unwrap());
    assert_eq!(call(&here, other).await.2, "2: a book, 1 trailer");
    assert_eq!(call(&here, request("2", whole("a book"))).await.2, "3: a book, 1 trailer");
}

/// Shows: Y2
#[tokio::test(start_paused = true)]
async fn a_request_that_is_rejected_before_its_handler_runs_may_come_again() {
    let (server, shop) = (Server::new(), Shop::default());
    let limit = ConcurrencyLimitLayer::new(1).max_waiting(0);
    let here = client(&server, limit.layer(shop.taking(SECOND)));
    let other = tokio::spawn(call(&here, request("2", whole("a pen"))));
    sleep(MILLI).await;
    assert_eq!(call(&here, book()).await, (503, false, "overloaded".into()));
    assert_eq!(other.await.unwrap().2, "1: a pen, 1 trailer");
    assert_eq!(call(&here, book()).await.2, "2: a book, 1 trailer");
}

/// Shows: Y2
#[tokio::test(start_paused = true)]
async fn a_rejection_that_a_layer_inside_made_a_response_is_not_stored_either() {
    let (server, runs) = (Server::new(), Arc::new(AtomicU32::new(0)));
    let counted = Arc::clone(&runs);
    let layers = ServiceBuilder::new()
        .layer(layer(&server))
        .layer(RejectionResponseLayer::problem_json())
        .layer(ConcurrencyLimitLayer::new(1).max_waiting(0));
    let here = layers.service(service_fn(move |_: Request<IdempotentBody<Full<Bytes>>>| {
        let run = counted.fetch_add(1, SeqCst) + 1;
        async move {
            sleep(SECOND).await;
            Ok::<_, Failed>(Response::new(Full::<Bytes>::from(run.to_string())))
        }
    }));
    let status = |key: &str| {
        let request = Request::post("/").header("x-account", "eve").header("idempotency-key", key);
        let call = here.clone().oneshot(request.body(Full::<Bytes>::from("")).unwrap());
        async { call.await.unwrap().status().as_u16() }
    };
    let (first, second) = tokio::join!(status("1"), status("2"));
    assert_eq!((first, second), (200, 503));
    assert_eq!(status("2").await, 200);
    assert_eq!(runs.load(SeqCst), 2);
}

/// Shows: Y2
#[tokio::test(start_paused = true)]
async fn a_handler_without_a_response_runs_again_for_the_next_who_waits() {
    #[derive(Clone, Copy)]
    enum How {
        Fails,
        Panics,
        Breaks,
    }
    for how in [How::Fails, How::Panics, How::Breaks] {
        let (server, shop) = (Server::new(), Shop::default());
        let (works, runs) = (shop.taking(SECOND), Arc::new(AtomicU32::new(0)));
        let handler = service_fn(move |request: Request<Inside>| {
            let (mut works, run) = (works.clone(), runs.fetch_add(1, SeqCst));
            async move {
                if run > 0 {
                    return works.call(request).await;
                }
                sleep(SECOND).await;
                match how {
                    How::Fails => Err(Error::Service("failed")),
                    How::Panics => panic!("the handler panics"),
                    How::Breaks => {
                        let (sender, body) = streamed();
                        sender.send(data("half")).unwrap();
                        sender.send(Err("cut".into())).unwrap();
                        Ok(Response::new(body))
                    }
                }
            }
        });
        let here = client(&server, handler);
        let first = tokio::spawn(call(&here, book()));
        sleep(MILLI).await;
        let (second, third) = tokio::join!(call(&here, book()), call(&here, book()));
        match (how, first.await) {
            (How::Fails, Ok(first)) => assert_eq!(first, (0, false, "failed".into())),
            (How::Panics, Err(error)) => assert!(error.is_panic()),
            (How::Breaks, Ok(first)) => assert_eq!(first, (200, false, "broken: cut".into())),
            (_, other) => panic!("{other:?}"),
        }
        let mut both = [second, third];
        both.sort();
        assert_eq!(both, [run_1(), replay_of_1()]);
        assert_eq!(call(&here, book()).await, replay_of_1());
    }
}

/// Shows: Y2
#[tokio::test(start_paused = true)]
async fn a_handler_goes_on_when_its_callers_leave() {
    for polls in 0..12 {
        let (server, shop) = (Server::new(), Shop::default());
        let here = client(&server, shop.taking(SECOND));
        {
            let mut call = pin!(here.clone().oneshot(book()));
            for _ in 0..polls {
                let polled = poll_fn(|cx| Poll::Ready(call.as_mut().poll(cx).is_ready())).await;
                if polled {
                    break;
                }
                sleep(MILLI * 100).await;
            }
        }
        sleep(2 * SECOND).await;
        // Polled once, the body was read, and the handler started.
        let expected = if polls == 0 { run_1() } else { replay_of_1() };
        assert_eq!(call(&here, book()).await, expected, "after {polls} polls");
        assert_eq!(shop.runs(), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_leaves_while_it_sends_its_body_has_started_nothing() {
    let (server, shop) = (Server::new(), Shop::default());
    let here = client(&server, shop.taking(SECOND));
    let (sender, body) = streamed();
    sender.send(data("half")).unwrap();
    let uploading = tokio::spawn(call(&here, request("1", body)));
    sleep(SECOND).await;
    uploading.abort();
    assert!(uploading.await.is_err());
    assert_eq!((shop.runs(), server.requests.load(SeqCst)), (0, 0));
    assert_eq!(call(&here, book()).await, run_1());
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_hangs_is_dropped_once_its_callers_have_left() {
    let (server, runs) = (Server::new(), Arc::new(AtomicU32::new(0)));
    let (shop, counted) = (Shop::default(), Arc::clone(&runs));
    let works = shop.taking(SECOND);
    let handler = service_fn(move |request| {
        let (run, mut works) = (counted.fetch_add(1, SeqCst), works.clone());
        async move { if run == 0 { pending().await } else { works.call(request).await } }
    });
    let here = client(&server, handler);
    // As long as one of them waits, it goes on.
    let limited = |time| TimeoutLayer::new(time).layer(here.clone());
    for _ in 0..5 {
        let outcome = limited(50 * SECOND).oneshot(book()).await;
        assert!(rejection(&outcome).unwrap().is_timed_out());
    }
    assert_eq!(runs.load(SeqCst), 1);
    sleep(50 * SECOND).await;
    let outcome = limited(SECOND).oneshot(book()).await;
    assert!(rejection(&outcome).unwrap().is_timed_out());
    sleep(71 * SECOND).await;
    assert_eq!(call(&here, book()).await, run_1());
    assert_eq!(runs.load(SeqCst), 2);
}

/// A handler whose response streams from here.
fn streams(
    body: Streamed,
) -> impl Service<Request<Inside>, Response = Response<Streamed>, Error = Failed, Future: Send> + Clone {
    let body = Arc::new(Mutex::new(Some(body)));
    service_fn(move |_| {
        let body = body.lock().unwrap().take().unwrap();
        async { Ok(Response::new(body)) }
    })
}

/// Shows: Y2
#[tokio::test(start_paused = true)]
async fn the_first_caller_gets_a_response_while_it_streams_and_the_others_when_it_is_whole() {
    let server = Server::new();
    let (sender, body) = streamed();
    let here = client(&server, streams(body));
    let mut first = here.clone().oneshot(book()).await.unwrap().into_body();
    let mut second = tokio::spawn(call(&here, book()));
    for text in ["one ", "two "] {
        sender.send(data(text)).unwrap();
        assert_eq!(first.frame().await.unwrap().unwrap().into_data().unwrap(), text);
    }
    sleep(SECOND).await;
    assert!(poll_fn(|cx| Poll::Ready(Pin::new(&mut second).poll(cx).is_pending())).await);
    // The first caller leaves in the middle, and the response is recorded all the same.
    drop(first);
    sender.send(data("three")).unwrap();
    drop(sender);
    assert_eq!(second.await.unwrap(), (200, true, "one two three".into()));
    assert_eq!(call(&here, book()).await, (200, true, "one two three".into()));
}

#[tokio::test(start_paused = true)]
async fn a_response_that_is_too_large_reaches_its_caller_and_no_other() {
    let server = Server::new();
    let (sender, body) = streamed();
    let here = BoxCloneService::new(layer(&server).max_response(5).layer(streams(body)));
    let first = here.clone().oneshot(book()).await.unwrap();
    let second = tokio::spawn(call(&here, book()));
    for text in ["one ", "two ", "three"] {
        sender.send(data(text)).unwrap();
        sleep(SECOND).await;
    }
    drop(sender);
    assert_eq!(got(Ok(first)).await, (200, false, "one two three".into()));
    let duplicate = (409, false, "duplicate".into());
    assert_eq!((second.await.unwrap(), call(&here, book()).await), (duplicate.clone(), duplicate));
}

#[tokio::test(start_paused = true)]
async fn no_handler_runs_while_the_store_is_away() {
    for behaviour in [Behaviour::Fails, Behaviour::Panics, Behaviour::Hangs, Behaviour::LosesAnswers] {
        let (server, shop, events) = (Server::new(), Shop::default(), Arc::new(AtomicU32::new(0)));
        let counted = Arc::clone(&events);
        let count = move |_: &LayerInfo, event: &LayerEvent<'_>| {
            if let LayerEvent::StoreFailed { .. } = event {
                counted.fetch_add(1, SeqCst);
            }
        };
        let here = BoxCloneService::new(layer(&server).observer(count).layer(shop.taking(SECOND)));
        server.set(behaviour);
        let start = Instant::now();
        assert_eq!(call(&here, book()).await, (503, false, "store_unavailable".into()), "{behaviour:?}");
        assert!(start.elapsed() <= 101 * MILLI);
        // A claim whose answer was lost is given up.
        server.set(Behaviour::Answers);
        sleep(SECOND).await;
        assert!(events.load(SeqCst) >= 1);
        assert_eq!(call(&here, book()).await, run_1(), "{behaviour:?}");
    }
}

/// Shows: Y2
#[tokio::test(start_paused = true)]
async fn a_response_waits_for_a_store_that_is_away() {
    for behaviour in [Behaviour::Fails, Behaviour::Hangs, Behaviour::LosesAnswers] {
        let (server, shop) = (Server::new(), Shop::default());
        let [here, there] = [(); 2].map(|()| client(&server, shop.taking(SECOND)));
        let first = tokio::spawn(call(&here, book()));
        sleep(SECOND / 2).await;
        server.set(behaviour);
        let start = Instant::now();
        assert_eq!(first.await.unwrap(), run_1());
        assert_eq!(start.elapsed().as_millis(), 500, "the caller does not wait for the store");
        assert_eq!(call(&here, book()).await, replay_of_1());
        sleep(40 * SECOND).await;
        server.set(Behaviour::Answers);
        sleep(6 * SECOND).await;
        assert_eq!(call(&there, book()).await, replay_of_1(), "{behaviour:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_process_keeps_its_claim_while_the_handler_runs() {
    let (server, shop) = (Server::new(), Shop::default());
    let here = client(&server, shop.taking(300 * SECOND));
    let there = BoxCloneService::new(layer(&server).max_wait(5 * SECOND).layer(shop.taking(SECOND)));
    let first = tokio::spawn(call(&here, book()));
    sleep(MILLI).await;
    for _ in 0..9 {
        let start = Instant::now();
        assert_eq!(call(&there, book()).await, (409, false, "duplicate".into()));
        assert!((4 * SECOND..=5 * SECOND).contains(&start.elapsed()));
        sleep(20 * SECOND).await;
    }
    assert_eq!(first.await.unwrap(), run_1());
    assert_eq!(call(&there, book()).await, replay_of_1());
}

#[test]
fn the_key_of_a_process_that_ends_is_free_after_its_lease() {
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    let (server, shop) = (Server::new(), Shop::default());
    let here = client(&server, shop.taking(SECOND));
    let gone = runtime();
    gone.block_on(async {
        tokio::spawn(call(&here, book()));
        sleep(MILLI).await;
    });
    drop(gone);
    let there = BoxCloneService::new(layer(&server).max_wait(DAY).layer(shop.taking(SECOND)));
    let (start, got) = runtime().block_on(async {
        let start = Instant::now();
        let got = call(&there, book()).await;
        (start.elapsed(), got)
    });
    assert_eq!(got.2, "2: a book, 1 trailer");
    assert!(start < 33 * SECOND, "{start:?}");
}

#[tokio::test(start_paused = true)]
async fn requests_that_cannot_be_bound_to_a_key_are_rejected_or_passed() {
    let (server, shop) = (Server::new(), Shop::default());
    let strict = layer(&server).required().max_request(6);
    let strict = BoxCloneService::new(strict.layer(shop.taking(Duration::ZERO)));
    let plain = client(&server, shop.taking(Duration::ZERO));
    let with = |method: Method, change: fn(&mut http::HeaderMap)| {
        let mut request = book();
        *request.method_mut() = method;
        change(request.headers_mut());
        request
    };
    let no_key = |headers: &mut http::HeaderMap| drop(headers.remove("idempotency-key"));
    let rejected = |status, reason: &str| (status, false, reason.to_owned());
    assert_eq!(call(&strict, with(Method::POST, no_key)).await, rejected(400, "no_key"));
    assert_eq!(call(&strict, with(Method::PATCH, no_key)).await, rejected(400, "no_key"));
    for client in [&strict, &plain] {
        let two = |headers: &mut http::HeaderMap| {
            headers.append("idempotency-key", "2".parse().unwrap());
        };
        assert_eq!(call(client, with(Method::POST, two)).await, rejected(400, "no_key"));
        let (sender, body) = streamed();
        sender.send(Err("reset".into())).unwrap();
        assert_eq!(call(client, request("1", body)).await, rejected(400, "upload_failed"));
    }
    assert_eq!(call(&strict, request("1", whole("a book!"))).await, rejected(413, "body_too_large"));
    let declared = strict.clone().oneshot(book().map(|_| whole("7 bytes"))).await;
    assert_eq!(rejection(&declared).unwrap().reason(), &Reason::BodyTooLarge { max: 6 });
    assert_eq!((shop.runs(), server.requests.load(SeqCst)), (0, 0));

    // These pass, again and again.
    let no_caller = |headers: &mut http::HeaderMap| drop(headers.remove("x-account"));
    for _ in 0..2 {
        for (client, request) in [
            (&strict, with(Method::GET, |_| {})),
            (&strict, with(Method::PUT, no_key)),
            (&plain, with(Method::POST, no_key)),
            (&plain, with(Method::POST, no_caller)),
        ] {
            let (_, replayed, text) = call(client, request).await;
            assert!(!replayed && text.ends_with(": a book, 1 trailer"));
        }
    }
    assert_eq!((shop.runs(), server.requests.load(SeqCst)), (8, 0));
}

#[tokio::test(start_paused = true)]
async fn handlers_without_callers_are_limited_too() {
    let (server, shop) = (Server::new(), Shop::default());
    let limited = layer(&server).max_running(2);
    let gauge = limited.clone();
    let here = BoxCloneService::new(limited.layer(shop.taking(SECOND)));
    for key in ["1", "2"] {
        let call = tokio::spawn(call(&here, request(key, whole("a book"))));
        sleep(MILLI).await;
        call.abort();
    }
    assert_eq!(gauge.running(), 2);
    assert_eq!(call(&here, request("3", whole("a book"))).await, (503, false, "overloaded".into()));
    assert_eq!(call(&here, book()).await, replay_of_1());
    sleep(SECOND).await;
    assert_eq!(gauge.running(), 0);
    assert_eq!(call(&here, request("3", whole("a book"))).await.2, "3: a book, 1 trailer");
}

#[tokio::test(start_paused = true)]
async fn a_value_of_another_program_runs_no_handler() {
    let (server, shop) = (Server::new(), Shop::default());
    server.memory.put("idempotency:3:eve:1", Bytes::from_static(b"x"), DAY).await.unwrap();
    let here = client(&server, shop.taking(SECOND));
    assert_eq!(call(&here, book()).await, (503, false, "store_unavailable".into()));
    assert_eq!(shop.runs(), 0);
}

/// The scope of a request ends with its caller, and its values reach the handler all the same.
#[tokio::test(start_paused = true)]
async fn the_handler_has_the_scope_of_its_request() {
    let (server, (sender, mut seen)) = (Server::new(), mpsc::unbounded_channel());
    let handler = service_fn(move |request: Request<Inside>| {
        let sender = sender.clone();
        async move {
            sleep(SECOND).await;
            let of_request = request.extensions().get::<Scope>().cloned().unwrap();
            for scope in [Scope::current().unwrap(), of_request] {
                sender.send((scope.get::<u32>().map(|value| *value), scope.is_cancelled())).unwrap();
            }
            Ok::<_, Failed>(Response::new(whole("done")))
        }
    });
    let app = Scope::root("app");
    let here = ServiceBuilder::new()
        .layer(ContextLayer::new(app.clone()).state(|_: &Request<Streamed>| 7_u32))
        .layer(layer(&server))
        .service(handler);
    let call = tokio::spawn(here.oneshot(book()));
    sleep(MILLI).await;
    call.abort();
    for _ in 0..2 {
        assert_eq!(seen.recv().await, Some((Some(7), false)));
    }
    app.close().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn the_service_of_an_axum_router_needs_no_error_type() {
    let server = Server::new();
    let service = layer(&server).layer(service_fn(|_: Request<IdempotentBody<Full<Bytes>>>| async {
        Ok::<_, Infallible>(Response::new(Full::<Bytes>::from("hello")))
    }));
    let request = Request::post("/").header("x-account", "eve").header("idempotency-key", "");
    let response = service.oneshot(request.body(Full::from("")).unwrap()).await.unwrap();
    assert_eq!(response.status(), StatusCode::BAD_REQUEST);
}

#[tokio::test(start_paused = true)]
async fn a_request_without_a_caller_passes_whatever_its_key_is() {
    let (server, shop) = (Server::new(), Shop::default());
    let strict = BoxCloneService::new(layer(&server).required().layer(shop.taking(Duration::ZERO)));
    let keys = [&[][..], &[""], &["1", "2"], &["1"]];
    for keys in keys {
        let mut request = book();
        request.headers_mut().clear();
        for key in keys {
            request.headers_mut().append("idempotency-key", key.parse().unwrap());
        }
        assert_eq!(call(&strict, request).await.0, 500, "{keys:?}");
    }
    assert_eq!((shop.runs() as usize, server.requests.load(SeqCst)), (keys.len(), 0));
}

/// Counts events by their names.
#[derive(Clone, Default)]
struct Events(Arc<Mutex<Vec<&'static str>>>);

impl Events {
    fn observer(&self) -> impl Fn(&LayerInfo, &LayerEvent<'_>) + Send + Sync + 'static {
        let events = self.clone();
        move |_, event| events.0.lock().unwrap().push(event.name())
    }

    fn take(&self) -> Vec<&'static str> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

#[tokio::test(start_paused = true)]
async fn an_event_says_once_where_a_response_comes_from() {
    let (server, shop, events) = (Server::new(), Shop::default(), Events::default());
    let here = BoxCloneService::new(layer(&server).observer(events.observer()).layer(shop.taking(SECOND)));
    tokio::join!(call(&here, book()), call(&here, book()));
    assert_eq!(events.take(), ["shared", "stored"]);
    call(&here, book()).await;
    assert_eq!(events.take(), ["hit"]);
}

#[tokio::test(start_paused = true)]
async fn a_response_whose_claim_another_process_took_over_is_not_stored() {
    let (server, shop, events) = (Server::new(), Shop::default(), Events::default());
    let here = BoxCloneService::new(layer(&server).observer(events.observer()).layer(shop.taking(5 * SECOND)));
    let there = client(&server, shop.taking(SECOND));
    let first = tokio::spawn(call(&here, book()));
    sleep(SECOND).await;
    server.memory.remove("idempotency:3:eve:1").await.unwrap();
    assert_eq!(call(&there, book()).await.2, "2: a book, 1 trailer");
    assert_eq!(first.await.unwrap(), run_1());
    sleep(SECOND).await;
    assert_eq!(call(&here, book()).await.2, "2: a book, 1 trailer");
    assert_eq!(events.take(), ["hit"]);
}

#[tokio::test(start_paused = true)]
async fn a_claim_that_the_store_forgets_is_made_again() {
    let (server, shop) = (Server::new(), Shop::default());
    let here = client(&server, shop.taking(60 * SECOND));
    let there = BoxCloneService::new(layer(&server).max_wait(Duration::ZERO).layer(shop.taking(SECOND)));
    let first = tokio::spawn(call(&here, book()));
    sleep(SECOND).await;
    server.memory.remove("idempotency:3:eve:1").await.unwrap();
    sleep(10 * SECOND).await;
    assert_eq!(call(&there, book()).await, (409, false, "duplicate".into()));
    assert_eq!(first.await.unwrap(), run_1());
    assert_eq!(call(&there, book()).await, replay_of_1());
}

#[tokio::test(start_paused = true)]
async fn a_claim_outlasts_renewals_that_fail() {
    for (behaviour, timeout) in [(Behaviour::Hangs, SECOND / 10), (Behaviour::Fails, SECOND), (Behaviour::Hangs, DAY)] {
        let (server, shop) = (Server::new(), Shop::default());
        let here = BoxCloneService::new(layer(&server).timeout(timeout).layer(shop.taking(60 * SECOND)));
        let there = BoxCloneService::new(layer(&server).max_wait(Duration::ZERO).layer(shop.taking(SECOND)));
        let first = tokio::spawn(call(&here, book()));
        sleep(5 * SECOND).await;
        server.set(behaviour);
        sleep(20 * SECOND).await;
        server.set(Behaviour::Answers);
        sleep(5 * SECOND + 50 * MILLI).await;
        assert_eq!(call(&there, book()).await, (409, false, "duplicate".into()), "{behaviour:?}");
        assert_eq!(first.await.unwrap(), run_1());
    }
}

#[tokio::test(start_paused = true)]
async fn a_handler_goes_on_for_the_whole_time_after_its_last_caller() {
    // Its caller leaves just before the layer looks whether there is one.
    let (server, shop) = (Server::new(), Shop::default());
    let here = BoxCloneService::new(layer(&server).linger(5 * SECOND).layer(shop.taking(14 * SECOND)));
    let outcome = TimeoutLayer::new(9900 * MILLI).layer(here.clone()).oneshot(book()).await;
    assert!(rejection(&outcome).unwrap().is_timed_out());
    sleep(2 * SECOND).await;
    assert_eq!(call(&here, book()).await, replay_of_1());
}

/// Callers come and leave between two looks.
#[tokio::test(start_paused = true)]
async fn a_caller_that_comes_and_leaves_prolongs_its_handler() {
    let (server, shop) = (Server::new(), Shop::default());
    let here = BoxCloneService::new(layer(&server).linger(20 * SECOND).layer(shop.taking(95 * SECOND)));
    for n in 0..10 {
        let outcome = TimeoutLayer::new(SECOND).layer(here.clone()).oneshot(book()).await;
        assert!(rejection(&outcome).unwrap().is_timed_out());
        sleep(if n == 0 { SECOND } else { 9 * SECOND }).await;
    }
    assert_eq!(call(&here, book()).await, replay_of_1());
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_panics_when_it_is_dropped_frees_its_key() {
    struct Bomb;
    impl Drop for Bomb {
        fn drop(&mut self) {
            panic!("dropped");
        }
    }
    let (server, shop, runs) = (Server::new(), Shop::default(), Arc::new(AtomicU32::new(0)));
    let works = shop.taking(SECOND);
    let handler = service_fn(move |request| {
        let (run, mut works) = (runs.fetch_add(1, SeqCst), works.clone());
        async move {
            if run > 0 {
                return works.call(request).await;
            }
            let _bomb = Bomb;
            pending().await
        }
    });
    let here = BoxCloneService::new(layer(&server).linger(Duration::ZERO).layer(handler));
    let first = TimeoutLayer::new(SECOND).layer(here.clone()).oneshot(book()).await;
    assert!(rejection(&first).unwrap().is_timed_out());
    sleep(10 * SECOND).await;
    assert_eq!(call(&here, book()).await, run_1());
}

#[tokio::test(start_paused = true)]
async fn no_request_waits_for_another_process_without_its_caller() {
    let (server, shop) = (Server::new(), Shop::default());
    let here = client(&server, shop.taking(60 * SECOND));
    let waiting = layer(&server).max_wait(DAY);
    let gauge = waiting.clone();
    let there = BoxCloneService::new(waiting.layer(shop.taking(SECOND)));
    let first = tokio::spawn(call(&here, book()));
    sleep(MILLI).await;
    let outcome = TimeoutLayer::new(5 * SECOND).layer(there).oneshot(book()).await;
    assert!(rejection(&outcome).unwrap().is_timed_out());
    sleep(2 * SECOND).await;
    assert_eq!(gauge.running(), 0);
    assert_eq!(first.await.unwrap(), run_1());
}

#[tokio::test(start_paused = true)]
async fn a_response_that_the_store_refuses_is_not_made_twice() {
    let (server, shop) = (Server::new(), Shop::default());
    let [here, there] = [(); 2].map(|()| client(&server, shop.taking(SECOND)));
    server.set(Behaviour::RefusesLarge);
    assert_eq!(call(&here, book()).await, run_1());
    for _ in 0..5 {
        assert_eq!(call(&there, book()).await, (409, false, "duplicate".into()));
        sleep(30 * SECOND).await;
    }
    assert_eq!(call(&here, book()).await, (409, false, "duplicate".into()));
    assert_eq!(shop.runs(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_response_of_exactly_the_largest_size_is_stored() {
    for (text, is_stored) in [("", true), ("12345", true), ("123456", false)] {
        let server = Server::new();
        let here = BoxCloneService::new(layer(&server).max_response(5).layer(streams(whole(text))));
        assert_eq!(call(&here, book()).await, (200, false, text.into()));
        let second = call(&here, book()).await;
        assert_eq!(second, if is_stored { (200, true, text.into()) } else { (409, false, "duplicate".into()) });
    }
}

#[tokio::test(start_paused = true)]
async fn frames_that_wait_for_a_slow_reader_are_joined() {
    let server = Server::new();
    let (sender, body) = streamed();
    let here = client(&server, streams(body));
    let mut first = here.clone().oneshot(book()).await.unwrap().into_body();
    for _ in 0..10_000 {
        sender.send(data("x")).unwrap();
        sender.send(data("")).unwrap();
    }
    sender
        .send(Ok(Frame::trailers([("x-end".parse().unwrap(), "yes".parse().unwrap())].into_iter().collect())))
        .unwrap();
    drop(sender);
    sleep(SECOND).await;
    let (mut frames, mut bytes, mut trailers) = (0, 0, 0);
    while let Some(frame) = first.frame().await {
        let frame = frame.unwrap();
        (frames, bytes) = (frames + 1, bytes + frame.data_ref().map_or(0, Bytes::len));
        trailers += u32::from(frame.is_trailers());
    }
    assert!(frames < 100, "{frames} frames");
    assert_eq!((bytes, trailers), (10_000, 1));
    assert_eq!(call(&here, book()).await.2.len(), 10_000 + ", 1 trailer".len());
}

#[tokio::test(start_paused = true)]
async fn a_body_that_is_always_ready_leaves_the_thread_to_others() {
    let server = Server::new();
    let service = layer(&server).layer(service_fn(|_: Request<IdempotentBody<Full<Bytes>>>| async {
        let endless = futures_util::stream::repeat_with(|| Ok::<_, Infallible>(Frame::data(Bytes::new())));
        Ok::<_, Failed>(Response::new(StreamBody::new(endless)))
    }));
    let request = Request::post("/").header("x-account", "eve").header("idempotency-key", "1");
    let call = tokio::spawn(service.oneshot(request.body(Full::from("")).unwrap()));
    for _ in 0..20 {
        tokio::task::yield_now().await;
    }
    call.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_response_without_a_body_has_ended_for_the_first_caller_too() {
    let server = Server::new();
    let service = layer(&server).layer(service_fn(|_: Request<IdempotentBody<Full<Bytes>>>| async {
        Ok::<_, Failed>(Response::new(Full::<Bytes>::default()))
    }));
    for _ in 0..2 {
        let request = Request::post("/").header("x-account", "eve").header("idempotency-key", "1");
        let response = service.clone().oneshot(request.body(Full::from("")).unwrap()).await.unwrap();
        assert!(response.body().is_end_stream());
    }
}

/// With a known size, hyper sends no trailers over HTTP/1.
#[tokio::test(start_paused = true)]
async fn trailers_are_replayed_as_they_came() {
    let server = Server::new();
    let (sender, body) = streamed();
    for name in ["x-sum", "x-end"] {
        let trailers = [(name.parse().unwrap(), "1".parse().unwrap())].into_iter().collect();
        sender.send(Ok(Frame::trailers(trailers))).unwrap();
    }
    drop(sender);
    let here = client(&server, streams(body));
    assert_eq!(call(&here, book()).await, (200, false, ", 2 trailer".into()));
    let replay = here.clone().oneshot(book()).await.unwrap();
    assert_eq!(replay.body().size_hint().exact(), None);
    assert_eq!(got(Ok(replay)).await, (200, true, ", 2 trailer".into()));
}

#[tokio::test(start_paused = true)]
async fn headers_of_a_connection_are_not_replayed_and_extensions_are_not_kept() {
    let (server, guard) = (Server::new(), Arc::new(()));
    let (sender, body) = streamed();
    let (held, body) = (Arc::clone(&guard), Mutex::new(Some(body)));
    let body = Arc::new(body);
    let handler = service_fn(move |_: Request<Inside>| {
        let response = Response::builder()
            .header("connection", "close, x-hop")
            .header("connection", "x-hop-2")
            .header("x-hop", "1")
            .header("x-hop-2", "1")
            .header("transfer-encoding", "chunked")
            .header("set-cookie", "a")
            .header("set-cookie", "b")
            .extension(Arc::clone(&held))
            .body(body.lock().unwrap().take().unwrap());
        async { Ok::<_, Failed>(response.unwrap()) }
    });
    let here = client(&server, handler);
    let mut first = here.clone().oneshot(book()).await.unwrap();
    assert_eq!(first.headers().len(), 7);
    first.extensions_mut().clear();
    // Here and in the handler, and no longer in the run.
    assert_eq!(Arc::strong_count(&guard), 2);
    drop((sender, first));
    sleep(SECOND).await;
    let replay = here.clone().oneshot(book()).await.unwrap();
    let names = Vec::from_iter(replay.headers().keys().map(http::HeaderName::as_str));
    assert_eq!(names, ["set-cookie", "idempotent-replayed"]);
    assert_eq!(replay.headers().get_all("set-cookie").iter().count(), 2);
}

/// As an error, it is no response that could be stored.
#[tokio::test(start_paused = true)]
async fn the_rejection_of_a_timeout_inside_is_stored_if_it_is_a_response() {
    let (server, shop) = (Server::new(), Shop::default());
    let here = client(&server, TimeoutLayer::new(SECOND).layer(shop.taking(60 * SECOND)));
    for _ in 0..2 {
        assert_eq!(call(&here, book()).await, (504, false, "timed_out".into()));
    }
    assert_eq!(shop.runs(), 2);

    let (server, runs) = (Server::new(), Arc::new(AtomicU32::new(0)));
    let counted = Arc::clone(&runs);
    let service = layer(&server).layer(TimeoutLayer::new(SECOND).layer(service_fn(move |_| {
        counted.fetch_add(1, SeqCst);
        pending::<Result<Response<Full<Bytes>>, Infallible>>()
    })));
    for is_replay in [false, true] {
        let request = Request::post("/").header("x-account", "eve").header("idempotency-key", "1");
        let response = service.clone().oneshot(request.body(Full::<Bytes>::from("")).unwrap()).await.unwrap();
        assert_eq!(response.status(), StatusCode::GATEWAY_TIMEOUT);
        assert_eq!(response.headers().contains_key("idempotent-replayed"), is_replay);
    }
    assert_eq!(runs.load(SeqCst), 1);
}

#[tokio::test(start_paused = true)]
async fn a_closed_scope_runs_no_handler_and_keeps_no_caller_waiting() {
    let (server, shop) = (Server::new(), Shop::default());
    let settings = layer(&server);
    let gauge = settings.clone();
    let app = Scope::root("app").grace(SECOND);
    let here = BoxCloneService::new(settings.layer(shop.taking(60 * SECOND)));
    let inside = |request| app.within(call(&here, request));
    let running = tokio::spawn(inside(book()));
    let joined = tokio::spawn(inside(book()));
    sleep(SECOND).await;
    let _ = app.close().await;
    let draining = (503, false, "draining".to_owned());
    assert_eq!((running.await.unwrap(), joined.await.unwrap()), (draining.clone(), draining.clone()));
    assert_eq!(inside(request("2", whole("a book"))).await, draining);
    assert_eq!((gauge.running(), shop.ended.load(SeqCst)), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_panic_anywhere_in_a_handler_frees_its_key() {
    #[derive(Clone, Copy, Debug, PartialEq)]
    enum Where {
        Call,
        BodyPoll,
        BodyDrop,
    }
    struct Panics(Where);
    impl Body for Panics {
        type Data = Bytes;
        type Error = Infallible;
        fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            assert_ne!(self.0, Where::BodyPoll, "polled");
            Poll::Ready(None)
        }
    }
    impl Drop for Panics {
        fn drop(&mut self) {
            assert_ne!(self.0, Where::BodyDrop, "dropped");
        }
    }
    for place in [Where::Call, Where::BodyPoll, Where::BodyDrop] {
        let (server, runs) = (Server::new(), Arc::new(AtomicU32::new(0)));
        let counted = Arc::clone(&runs);
        let settings = layer(&server);
        let gauge = settings.clone();
        let service = settings.layer(service_fn(move |_: Request<IdempotentBody<Full<Bytes>>>| {
            counted.fetch_add(1, SeqCst);
            assert_ne!(place, Where::Call, "called");
            async move { Ok::<_, Failed>(Response::new(Panics(place))) }
        }));
        for _ in 0..2 {
            let request = Request::post("/").header("x-account", "eve").header("idempotency-key", "1");
            let call = tokio::spawn(service.clone().oneshot(request.body(Full::from("")).unwrap()));
            let outcome = call.await;
            assert_eq!(outcome.is_err(), place == Where::Call);
            drop(outcome);
            sleep(MILLI).await;
            assert_eq!(gauge.running(), 0, "{place:?}");
        }
        assert_eq!(runs.load(SeqCst), 2, "{place:?}");
    }
}
