//! Time limits around work that never yields: it spends the whole cooperative budget of its task in every poll, and is
//! pending.

use std::{
    convert::Infallible,
    future::{Future, poll_fn},
    pin::{Pin, pin},
    sync::atomic::{AtomicU32, Ordering},
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures_util::{
    StreamExt as _,
    stream::{iter, once},
};
use http::{Request, Response, StatusCode};
use http_body::{Body, Frame};
use http_body_util::{BodyExt, Full};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy, repeat, sink},
    net::{TcpListener, TcpStream},
    task::{coop::consume_budget, yield_now},
    time::advance,
};
use tower::{Layer, Service, ServiceExt, service_fn};
use ziggurat::{
    Error, Reason, Rejection, Scope,
    batch::BatchLayer,
    chaos::{ChaosLayer, Fault},
    concurrency_limit::ConcurrencyLimitLayer,
    concurrent::{Cause, process_concurrently},
    drain::DrainLayer,
    rate_limit::RateLimitLayer,
    resource::ResourceLayer,
    retry::RetryLayer,
    stack::{ClientSettings, ClientStack, ServerSettings, ServerStack},
    stream::StreamExt as _,
    testing::TestTask,
    timeout::TimeoutLayer,
    upload::{UploadBody, UploadLayer},
};

const MILLI: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);

/// Spends the budget in every poll, and never ends.
async fn busy<T>() -> T {
    loop {
        consume_budget().await;
    }
}

/// A body that spends the budget in every poll.
#[derive(Default)]
struct BusyBody;

impl Body for BusyBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        pin!(busy()).poll(cx)
    }
}

type Failed = Error<Infallible>;
type Outcome = Result<Response<BusyBody>, Failed>;

/// Returns a service that never responds.
fn busy_service()
-> impl Service<Request<String>, Response = Response<BusyBody>, Error = Failed, Future: Send> + Clone + Send {
    service_fn(|_| busy::<Outcome>())
}

/// Returns a service that reads the body of its request, and never responds.
fn reads_all()
-> impl Service<Request<UploadBody<BusyBody>>, Response = Response<BusyBody>, Error = Failed, Future: Send> + Clone + Send
{
    service_fn(|request: Request<UploadBody<BusyBody>>| async {
        let _ = request.into_body().collect().await;
        busy::<Outcome>().await
    })
}

/// Returns whether the service rejects a request whose body yields no frame.
async fn stalls<S>(service: S) -> bool
where
    S: Service<Request<BusyBody>, Response = Response<BusyBody>, Error = Failed>,
{
    let outcome = service.oneshot(Request::new(BusyBody)).await;
    matches!(ziggurat::rejection(&outcome).map(Rejection::reason), Some(Reason::UploadStalled { .. }))
}

/// Returns a service whose response body never yields a frame.
fn busy_body()
-> impl Service<Request<String>, Response = Response<BusyBody>, Error = Failed, Future: Send> + Clone + Send {
    service_fn(|_| async { Outcome::Ok(Response::new(BusyBody)) })
}

async fn times_out<S>(service: S) -> bool
where
    S: Service<Request<String>, Error = Failed>,
{
    let outcome = service.oneshot(Request::new(String::new())).await;
    ziggurat::rejection(&outcome).unwrap().is_timed_out()
}

async fn is_overloaded<S>(service: S) -> bool
where
    S: Service<Request<String>, Error = Failed>,
{
    let outcome = service.oneshot(Request::new(String::new())).await;
    ziggurat::rejection(&outcome).unwrap().is_overloaded()
}

async fn body_times_out<S, B>(service: S) -> bool
where
    S: Service<Request<String>, Response = Response<B>, Error = Failed>,
    B: Body<Data = Bytes, Error = Box<dyn std::error::Error + Send + Sync>> + Unpin,
{
    let mut response = service.oneshot(Request::new(String::new())).await.unwrap_or_else(|_| panic!("no answer"));
    let error = response.body_mut().frame().await.unwrap().unwrap_err();
    Rejection::find(&*error).unwrap().is_timed_out()
}

/// Drains while a call is in flight, and returns whether it is rejected for that.
async fn is_drained(grace: Duration) -> bool {
    let layer = DrainLayer::new().grace(grace);
    let handle = layer.handle();
    let mut call = pin!(layer.layer(busy_service()).oneshot(Request::new(String::new())));
    assert!(futures_util::poll!(call.as_mut()).is_pending());
    drop(handle.drain());
    let outcome = call.await;
    ziggurat::rejection(&outcome).unwrap().reason() == &Reason::Draining { grace: Some(grace) }
}

/// Drains while a body goes on, and returns whether it ends for that.
async fn is_body_drained(grace: Duration) -> bool {
    let layer = DrainLayer::new().grace(grace);
    let handle = layer.handle();
    let mut response = layer.layer(busy_body()).oneshot(Request::new(String::new())).await.unwrap();
    drop(handle.drain());
    let error = response.body_mut().frame().await.unwrap().unwrap_err();
    Rejection::find(&*error).unwrap().reason() == &Reason::Draining { grace: Some(grace) }
}

/// Runs a future whose task has spent its budget already, in every poll.
async fn after_the_budget_is_spent<F: Future>(future: F) -> F::Output {
    let mut future = pin!(future);
    poll_fn(|cx| {
        assert!(pin!(busy::<()>()).poll(cx).is_pending());
        future.as_mut().poll(cx)
    })
    .await
}

/// Lets everything run that waits for the budget or for expired timers.
async fn settled() {
    for _ in 0..32 {
        yield_now().await;
    }
}

/// Asserts that the future ends in the first poll after its limit, and not before, even without any budget left.
async fn ends_at<F: Future<Output = bool>>(name: &str, limit: Duration, make: impl Fn() -> F) {
    async fn check(name: &str, limit: Duration, future: impl Future<Output = bool>) {
        let mut future = TestTask::new(future);
        assert!(future.poll().is_pending(), "{name} ended at once");
        for pause in [limit - MILLI, MILLI] {
            settled().await;
            assert!(future.poll().is_pending(), "{name} ended before its limit");
            advance(pause).await;
        }
        settled().await;
        assert_eq!(future.poll(), Poll::Ready(true), "{name} is still running after its limit");
    }
    check(name, limit, make()).await;
    check(&format!("{name}, without a budget"), limit, after_the_budget_is_spent(make())).await;
}

/// Shows: F1
#[tokio::test(start_paused = true)]
async fn every_limit_of_time_ends_what_never_yields() {
    ends_at("timeout", SECOND, || times_out(TimeoutLayer::new(SECOND).layer(busy_service()))).await;
    ends_at("timeout around a copy", SECOND, || {
        times_out(TimeoutLayer::new(SECOND).layer(service_fn(|_| async {
            let copied = copy(&mut repeat(0), &mut sink()).await;
            panic!("it ended: {copied:?}") as Outcome
        })))
    })
    .await;
    ends_at("until the body ends", SECOND, || {
        body_times_out(TimeoutLayer::new(SECOND).until_body_end().layer(busy_body()))
    })
    .await;
    ends_at("idle", SECOND, || body_times_out(TimeoutLayer::new(MINUTE).idle(SECOND).layer(busy_body()))).await;

    ends_at("the idle limit of an upload", SECOND, || stalls(UploadLayer::new(SECOND).layer(reads_all()))).await;

    ends_at("a drain", SECOND, || is_drained(SECOND)).await;
    ends_at("a drain of a body", SECOND, || is_body_drained(SECOND)).await;

    let client = || ClientStack::http("busy").without_retry();
    let settings = ClientSettings::default;
    ends_at("the client's total", SECOND, || {
        times_out(client().settings(settings().timeout(SECOND)).layer(busy_service()))
    })
    .await;
    ends_at("the client's attempt", SECOND, || {
        times_out(client().settings(settings().attempt_timeout(SECOND)).layer(busy_service()))
    })
    .await;
    ends_at("the server's total", SECOND, || {
        let app = Scope::root("app").with(ServerSettings::default().timeout(SECOND));
        times_out(ServerStack::new(&app).layer(busy_service()))
    })
    .await;
}

/// Shows: F1
#[tokio::test(start_paused = true)]
async fn every_wait_ends_beside_what_never_yields() {
    ends_at("a limit's wait", SECOND, || async {
        let service = ConcurrencyLimitLayer::new(1).max_wait(SECOND).layer(busy_service());
        let mut first = service.clone();
        let _running = first.ready().await.unwrap().call(Request::new(String::new()));
        is_overloaded(service).await
    })
    .await;
    ends_at("a rate limit's wait", SECOND, || async {
        let service = RateLimitLayer::new(1, SECOND).max_wait(SECOND).layer(busy_body());
        assert!(service.clone().oneshot(Request::new(String::new())).await.is_ok());
        service.oneshot(Request::new(String::new())).await.is_ok()
    })
    .await;
    ends_at("a resource's wait", SECOND, || async {
        let layer = ResourceLayer::new(busy::<Result<(), Infallible>>).max_wait(SECOND);
        let outcome = layer.layer(busy_service()).oneshot(Request::new(String::new())).await;
        ziggurat::rejection(&outcome).unwrap().reason().as_str() == "exhausted"
    })
    .await;
    // A failed response is drained for 100 ms if the pause is shorter.
    ends_at("the draining of a failed response", 100 * MILLI, || async {
        let attempts = AtomicU32::new(0);
        let service = service_fn(|_: Request<String>| {
            let first = attempts.fetch_add(1, Ordering::SeqCst) == 0;
            let mut response = Response::new(BusyBody);
            *response.status_mut() = if first { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK };
            async { Outcome::Ok(response) }
        });
        let retried = RetryLayer::http().backoff(MILLI).layer(service).oneshot(Request::new(String::new())).await;
        retried.is_ok_and(|response| response.status() == StatusCode::OK)
    })
    .await;
}

/// Shows: F1
#[tokio::test(start_paused = true)]
async fn every_limit_of_an_item_a_batch_and_a_task_ends_what_never_yields() {
    ends_at("an item's limit", SECOND, || async {
        let items = process_concurrently([1, 2], |_| busy::<Result<(), Infallible>>());
        let error = items.timeout_per_item(SECOND).await.unwrap_err();
        matches!(error.cause, Cause::TimedOut { .. })
    })
    .await;
    ends_at("a batch's time", SECOND, || async {
        let source = iter([1]).chain(once(busy()));
        let mut batches = pin!(source.batches_within(10, SECOND));
        batches.next().await == Some(vec![1])
    })
    .await;
    ends_at("a scope's grace period", SECOND, || async {
        let scope = Scope::root("busy").grace(SECOND);
        let task = scope.spawn(busy::<()>());
        scope.close().await.is_ok() && task.is_finished()
    })
    .await;
}

/// Fails every call.
fn failing()
-> impl Service<Request<String>, Response = Response<Full<Bytes>>, Error = Error<&'static str>, Future: Send> + Clone {
    service_fn(|_| async { Err(Error::Service("failed")) })
}

/// On a runtime without a timer, creating any timer panics.
///
/// Shows: F1
#[test]
fn no_duration_of_zero_makes_a_timer() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        let zero = Duration::ZERO;
        let request = || Request::new(String::new());
        let retry = || RetryLayer::new().max_attempts(200).budget(None).backoff(zero);
        assert!(retry().layer(failing()).oneshot(request()).await.is_err());

        let unavailable = service_fn(|_: Request<String>| async {
            let mut response = Response::new(Full::new(Bytes::from_static(b"busy")));
            *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
            Ok::<_, Failed>(response)
        });
        let response = RetryLayer::http().backoff(zero).layer(unavailable).oneshot(request()).await;
        assert_eq!(response.unwrap().status(), StatusCode::SERVICE_UNAVAILABLE);

        assert!(times_out(TimeoutLayer::new(zero).layer(busy_service())).await);
        assert!(body_times_out(TimeoutLayer::new(zero).until_body_end().layer(busy_body())).await);
        assert!(body_times_out(TimeoutLayer::new(Duration::MAX).idle(zero).layer(busy_body())).await);
        assert!(stalls(UploadLayer::new(zero).layer(reads_all())).await);
        assert!(is_drained(zero).await && is_body_drained(zero).await);

        let limit = ConcurrencyLimitLayer::new(1).max_wait(zero).layer(busy_service());
        let mut first = limit.clone();
        let _running = first.ready().await.unwrap().call(request());
        assert!(is_overloaded(limit).await);
        let resource = ResourceLayer::new(busy::<Result<(), Infallible>>).max_wait(zero).layer(busy_service());
        assert!(resource.oneshot(request()).await.is_err());

        let chaos = ChaosLayer::new(Fault::Delay(zero)).rate(1.0);
        chaos.handle().on();
        assert!(chaos.layer(busy_body()).oneshot(request()).await.is_ok());
        let batch = BatchLayer::new(10, zero).layer(service_fn(|numbers: Vec<u32>| async {
            Ok::<_, Error<Infallible>>(numbers.into_iter().map(Ok::<_, Infallible>).collect::<Vec<_>>())
        }));
        assert_eq!(batch.oneshot(1_u32).await.unwrap(), 1);

        let item = process_concurrently([1], |_| busy::<Result<(), Infallible>>()).timeout_per_item(zero).await;
        assert!(matches!(item.unwrap_err().cause, Cause::TimedOut { .. }));
        let mut batches = pin!(iter([1, 2]).chain(once(busy())).batches_within(10, zero));
        assert_eq!(batches.next().await, Some(vec![1, 2]));

        let scope = Scope::root("busy").grace(zero);
        let _task = scope.spawn(busy::<()>());
        scope.close().await.unwrap();
    });
}

/// A peer that sends without a pause, to a reader of 16 bytes at a time.
///
/// Shows: F1
#[tokio::test]
async fn a_limit_ends_small_reads_from_a_flooded_socket() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let flood = tokio::spawn(async move {
        let (mut peer, _) = listener.accept().await.unwrap();
        while peer.write_all(&[0; 65_536]).await.is_ok() {}
    });
    let service = service_fn(|_| async move {
        let mut socket = TcpStream::connect(address).await.unwrap();
        let mut buffer = [0; 16];
        while socket.read(&mut buffer).await.is_ok_and(|read| read > 0) {}
        panic!("the peer stopped") as Outcome
    });
    assert!(times_out(TimeoutLayer::new(50 * MILLI).layer(service)).await);
    flood.await.unwrap();
}
