//! Real peers, on both sides of a loopback socket. The clock is the real one, so every limit that is not meant to pass
//! is far away, and tests synchronize by channels and bells.

use std::{
    convert::Infallible,
    error::Error as StdError,
    io,
    net::SocketAddr,
    panic::Location,
    pin::{Pin, pin},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use ::hyper::{
    Request, Response, StatusCode,
    body::{Body, Frame, Incoming},
};
use bytes::Bytes;
use http_body_util::{BodyExt, Full, combinators::UnsyncBoxBody};
use hyper_util::{
    client::legacy::{Client as Pooled, connect::HttpConnector},
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
    service::TowerToHyperService,
};
use tokio::{
    net::TcpListener,
    sync::{Notify, Semaphore, mpsc},
};
use tower::{Service, ServiceBuilder, ServiceExt, util::BoxCloneSyncService};
use ziggurat::{
    Error, Scope,
    circuit_breaker::CircuitBreakerLayer,
    concurrency_limit::{ConcurrencyLimitHandle, ConcurrencyLimitLayer},
    context::ContextLayer,
    retry::RetryLayer,
    timeout::TimeoutLayer,
};

mod bad;
mod body_end;
mod drain;
mod draining;
mod hyper;
mod outage;
mod proxy;
mod raw;
mod reqwest;
mod server;
mod unprocessed;

/// A limit that no test reaches.
pub(crate) const FAR: Duration = Duration::from_secs(3600);

type BoxError = Box<dyn StdError + Send + Sync>;
pub(crate) type AnyBody = UnsyncBoxBody<Bytes, BoxError>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Version {
    Http1,
    Http2,
}

const BOTH: [Version; 2] = [Version::Http1, Version::Http2];

/// Fails the test, with its location, if the event does not happen soon.
#[track_caller]
fn soon<F: Future>(event: F) -> impl Future<Output = F::Output> {
    let place = Location::caller();
    async move {
        let happened = tokio::time::timeout(Duration::from_secs(60), event).await;
        happened.unwrap_or_else(|_| panic!("it did not happen, at {place}"))
    }
}

/// Each ring is received once, also by a later listener.
#[derive(Debug, Clone)]
struct Bell(Arc<Semaphore>);

impl Default for Bell {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(0)))
    }
}

impl Bell {
    fn ring(&self) {
        self.0.add_permits(1);
    }

    /// Returns whether it has rung, without waiting.
    fn rang(&self) -> bool {
        self.0.try_acquire().is_ok_and(|ring| {
            ring.forget();
            true
        })
    }

    #[track_caller]
    fn heard(&self) -> impl Future<Output = ()> {
        soon(async { self.0.acquire().await.unwrap().forget() })
    }
}

/// Rings on drop.
#[derive(Debug)]
struct OnDrop(Bell);

impl Drop for OnDrop {
    fn drop(&mut self) {
        self.0.ring();
    }
}

/// Shared by a handler that holds its callers and by its test.
#[derive(Debug, Clone, Default)]
struct Door {
    entered: Bell,
    leave: Bell,
    /// Rings when a call has left, or was dropped inside.
    left: Bell,
}

impl Door {
    async fn pass(&self) {
        let _left = OnDrop(self.left.clone());
        self.entered.ring();
        self.leave.0.acquire().await.unwrap().forget();
    }
}

/// A body whose frames come from a channel. It ends with the sender. The default has ended.
#[derive(Debug, Default)]
pub(crate) struct Streamed(Option<mpsc::UnboundedReceiver<io::Result<Bytes>>>);

pub(crate) type Frames = mpsc::UnboundedSender<io::Result<Bytes>>;

pub(crate) fn streamed() -> (Frames, Streamed) {
    let (sender, receiver) = mpsc::unbounded_channel();
    (sender, Streamed(Some(receiver)))
}

impl Body for Streamed {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let Some(frames) = &mut self.0 else { return Poll::Ready(None) };
        frames.poll_recv(cx).map(|frame| frame.map(|frame| frame.map(Frame::data)))
    }
}

fn any<B>(body: B) -> AnyBody
where
    B: Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
{
    body.map_err(Into::into).boxed_unsync()
}

fn answer(body: impl Into<Bytes>) -> Response<AnyBody> {
    Response::new(any(Full::new(body.into())))
}

/// A place from which a handler takes a value that exists only once.
pub(crate) fn only<T>(value: T) -> impl Fn() -> T + Clone {
    let place = Arc::new(Mutex::new(Some(value)));
    move || place.lock().unwrap().take().unwrap()
}

/// Observes whether everything that a stack's calls acquire is released.
#[derive(Debug, Clone)]
struct Watch {
    gate: ConcurrencyLimitHandle,
    scopes: Arc<Semaphore>,
}

impl Watch {
    const SCOPES: u32 = 1 << 20;

    fn new(gate: ConcurrencyLimitHandle) -> Self {
        Self { gate, scopes: Arc::new(Semaphore::new(Self::SCOPES as usize)) }
    }

    /// The permit that the scope of each request holds until it ends.
    fn held_by_a_scope<R>(&self) -> impl Fn(&R) -> tokio::sync::OwnedSemaphorePermit + Clone + use<R> {
        let scopes = Arc::clone(&self.scopes);
        move |_| Arc::clone(&scopes).try_acquire_owned().unwrap()
    }

    /// Waits until every scope has ended, and no permit is held or awaited.
    #[track_caller]
    fn all_back(&self) -> impl Future<Output = ()> {
        soon(async {
            let _all = self.scopes.acquire_many(Self::SCOPES).await.unwrap();
            assert_eq!((self.gate.in_flight(), self.gate.waiting()), (0, 0));
        })
    }
}

/// Limits calls of `/hangs`, and no others.
fn limit<B>(request: &Request<B>) -> Duration {
    if request.uri().path() == "/hangs" { Duration::from_millis(10) } else { FAR }
}

type Outcome = Result<Response<AnyBody>, Error<BoxError>>;
type Client = BoxCloneSyncService<Request<Full<Bytes>>, Response<AnyBody>, Error<BoxError>>;

/// Returns a client in its stack. Each call holds one permit to the end of the body.
fn stack<S, B>(attempts: u32, client: S) -> (Client, Watch)
where
    S: Service<Request<Full<Bytes>>, Response = Response<B>> + Clone + Send + Sync + 'static,
    S::Error: Into<BoxError>,
    S::Future: Send,
    B: Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
{
    let permits = ConcurrencyLimitLayer::new(8).until_body_end();
    let watch = Watch::new(permits.handle());
    let stack = ServiceBuilder::new()
        .map_response(|response: Response<_>| response.map(any))
        .layer(ContextLayer::new(Scope::root("client")).state(watch.held_by_a_scope()))
        .layer(TimeoutLayer::new(|req: &Request<_>| limit(req)).named("total"))
        .layer(RetryLayer::http().max_attempts(attempts).backoff(Duration::ZERO))
        .layer(CircuitBreakerLayer::http())
        .layer(permits)
        .layer(TimeoutLayer::new(FAR).named("attempt"))
        .map_err(|error: S::Error| Error::Service(error.into()))
        .service(client);
    (BoxCloneSyncService::new(stack), watch)
}

/// Returns a hyper-util client with its own pool.
fn pooled<B>(version: Version) -> Pooled<HttpConnector, B>
where
    B: Body<Data: Send> + Send,
{
    Pooled::builder(TokioExecutor::new()).http2_only(version == Version::Http2).build_http()
}

fn get(to: SocketAddr, path: &str) -> Request<Full<Bytes>> {
    Request::get(format!("http://{to}{path}")).body(Full::default()).unwrap()
}

#[track_caller]
fn call(client: &Client, request: Request<Full<Bytes>>) -> impl Future<Output = Outcome> + use<> {
    soon(client.clone().oneshot(request))
}

/// Returns the next data of a body.
#[track_caller]
fn next<B: Body<Data = Bytes> + Unpin>(body: &mut B) -> impl Future<Output = Option<Result<Bytes, B::Error>>> {
    let frame = soon(body.frame());
    async { frame.await.map(|frame| frame.map(|frame| frame.into_data().unwrap())) }
}

/// Expects "hello" as the response, and reads it.
async fn hello(client: &Client, to: SocketAddr) {
    let response = call(client, get(to, "/hello")).await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(soon(response.collect()).await.unwrap().to_bytes(), "hello");
    settle().await;
}

/// Lets all tasks run as far as they can without the network: a pool takes an HTTP/1 connection back in a separate
/// task.
async fn settle() {
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
}

/// Returns an address on which nothing listens any more.
pub(crate) async fn nobody() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
}

/// A bare hyper server for both versions.
struct Server {
    address: SocketAddr,
    accepted: Arc<AtomicUsize>,
    goodbye: Arc<Notify>,
    broken: Arc<Notify>,
}

impl Server {
    /// Returns the number of accepted connections.
    fn accepted(&self) -> usize {
        self.accepted.load(Ordering::SeqCst)
    }

    /// Each connection finishes its calls, and accepts no more.
    fn say_goodbye(&self) {
        self.goodbye.notify_waiters();
    }

    /// Each connection breaks off.
    fn break_off(&self) {
        self.broken.notify_waiters();
    }
}

async fn serve<S>(service: S) -> Server
where
    S: Service<Request<Incoming>, Response = Response<AnyBody>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
{
    serve_on(TcpListener::bind("127.0.0.1:0").await.unwrap(), service)
}

fn serve_on<S>(listener: TcpListener, service: S) -> Server
where
    S: Service<Request<Incoming>, Response = Response<AnyBody>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send,
{
    let server = Server {
        address: listener.local_addr().unwrap(),
        accepted: Arc::default(),
        goodbye: Arc::default(),
        broken: Arc::default(),
    };
    let (accepted, goodbye, broken) = (server.accepted.clone(), server.goodbye.clone(), server.broken.clone());
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            accepted.fetch_add(1, Ordering::SeqCst);
            let (service, goodbye, broken) = (service.clone(), goodbye.clone(), broken.clone());
            tokio::spawn(async move {
                let mut builder = auto::Builder::new(TokioExecutor::new());
                builder.http2().max_concurrent_streams(2);
                let service = TowerToHyperService::new(service);
                let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
                tokio::select! {
                    // A peer's error is not a failure of the server.
                    _ = connection.as_mut() => return,
                    () = broken.notified() => return,
                    () = goodbye.notified() => connection.as_mut().graceful_shutdown(),
                }
                connection.await.unwrap_or_default();
            });
        }
    });
    server
}
