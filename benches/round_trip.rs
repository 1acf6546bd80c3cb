//! Counts the instructions of one HTTP/1 request on a connection that is kept alive, of the client and the server
//! together, with callgrind: nearly the same on every run of one binary. The connection is a pipe in memory, so that
//! the figures are those of the crates and not of the kernel. `cargo bench -p ziggurat-benches --bench round_trip`
//! (needs valgrind; a word after `--` selects the subjects that contain it)

use std::{
    convert::Infallible,
    error::Error as StdError,
    fmt::Debug,
    future::{Ready, poll_fn, ready},
    hint::black_box,
    io::{self, IoSlice},
    pin::{Pin, pin},
    process::{Command, ExitCode},
    sync::{Arc, Mutex},
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response, Uri};
use http_body::Body;
use http_body_util::Full;
use hyper::{
    body::Incoming,
    rt::{Read, ReadBufCursor, Write},
    server::conn::http1::Builder as Server,
};
use hyper_util::{
    client::legacy::{
        Client,
        connect::{Connected, Connection},
    },
    rt::{TokioExecutor, TokioIo},
    service::TowerToHyperService,
};
use tokio::{
    io::{DuplexStream, duplex},
    runtime::{Builder, Runtime},
};
use tower::{Layer, Service, ServiceBuilder};
use tower_resilience::{
    bulkhead::BulkheadLayer, circuitbreaker::CircuitBreakerLayer as PeerBreakerLayer,
    retry::RetryLayer as PeerRetryLayer, timelimiter::TimeLimiterLayer,
};
use ziggurat::{
    Error, Scope,
    circuit_breaker::CircuitBreakerLayer,
    concurrency_limit::ConcurrencyLimitLayer,
    context::ContextLayer,
    observe::ObserveLayer,
    propagate::PropagateLayer,
    request_id::RequestIdLayer,
    retry::RetryLayer,
    stack::{ClientStack, ServerStack},
    timeout::TimeoutLayer,
};
use ziggurat_benches::Failed;

const CALLS: u32 = 200;
const LIMIT: Duration = Duration::from_secs(30);
const PERMITS: usize = 100;

type Sent = Request<Full<Bytes>>;

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1).filter(|argument| argument != "--bench");
    match (arguments.next().as_deref(), arguments.next(), arguments.next()) {
        (Some("--run"), Some(index), Some(calls)) => {
            let calls = calls.parse().expect("a number");
            (subjects().swap_remove(index.parse().expect("an index")).run)(calls);
            ExitCode::SUCCESS
        }
        (Some("--test"), ..) => ExitCode::SUCCESS,
        (word, ..) => table(word.unwrap_or_default()),
    }
}

/// A client, a server, and the size of the client's response future.
struct Subject {
    what: &'static str,
    size: usize,
    run: Box<dyn FnOnce(u32)>,
}

fn subjects() -> Vec<Subject> {
    let retry = || RetryLayer::http().backoff(LIMIT).budget(None);
    let breaker = || CircuitBreakerLayer::http().over_calls(100);
    let peer_retry =
        PeerRetryLayer::<Sent, Response<Incoming>, Failed>::builder().max_attempts(3).fixed_backoff(LIMIT).build();
    let peer_breaker =
        PeerBreakerLayer::builder().failure_rate_threshold(0.5).sliding_window_size(100).build().expect("a breaker");
    let peer_limit = BulkheadLayer::builder().max_concurrent_calls(PERMITS).build().expect("a limit");
    let app = Scope::root("app");
    vec![
        client("bare", ServiceBuilder::new()),
        client("tower's three", ServiceBuilder::new().timeout(LIMIT).retry(ThreeTimes(3)).concurrency_limit(PERMITS)),
        client(
            "our four",
            ServiceBuilder::new()
                .layer(TimeoutLayer::new(LIMIT))
                .layer(retry())
                .layer(breaker())
                .layer(ConcurrencyLimitLayer::new(PERMITS))
                .map_err(Error::Service),
        ),
        client(
            "tower-resilience's four",
            ServiceBuilder::new()
                .layer(TimeLimiterLayer::builder().timeout_duration(LIMIT).build())
                .layer(peer_retry)
                .map_err(|_| Failed)
                .layer(peer_breaker)
                .layer(peer_limit)
                .map_err(|_| Failed),
        ),
        client("timeout", ServiceBuilder::new().layer(TimeoutLayer::new(LIMIT)).map_err(Error::Service)),
        client("retry", ServiceBuilder::new().layer(retry()).map_err(Error::Service)),
        client("breaker", ServiceBuilder::new().layer(breaker()).map_err(Error::Service)),
        client("limit", ServiceBuilder::new().layer(ConcurrencyLimitLayer::new(PERMITS)).map_err(Error::Service)),
        client("recommended client", ServiceBuilder::new().layer(ClientStack::http("bench")).map_err(Error::Service)),
        client(
            "recommended client, to the body's end",
            ServiceBuilder::new().layer(ClientStack::http("bench").until_body_end()).map_err(Error::Service),
        ),
        client(
            "full client stack",
            ServiceBuilder::new()
                .layer(ContextLayer::new(app.clone()))
                .layer(RequestIdLayer::new())
                .layer(ObserveLayer::http().until_body_end())
                .layer(ClientStack::http("bench").until_body_end())
                .layer(PropagateLayer::new())
                .map_err(Error::Service),
        ),
        subject(
            "recommended server",
            ServiceBuilder::new(),
            ServiceBuilder::new().layer(ServerStack::new(&app)).service_fn(answer),
        ),
    ]
}

type Bare = Client<Pipes, Full<Bytes>>;

/// A client in its layers, of a server without any.
fn client<L, B>(what: &'static str, layers: L) -> Subject
where
    L: Layer<Bare> + 'static,
    L::Service: Service<Sent, Response = Response<B>, Error: Debug>,
    B: Body<Data = Bytes, Error: Debug>,
{
    subject(what, layers, tower::service_fn(answer))
}

fn subject<L, B, S, A>(what: &'static str, layers: L, server: S) -> Subject
where
    L: Layer<Bare> + 'static,
    L::Service: Service<Sent, Response = Response<B>, Error: Debug>,
    B: Body<Data = Bytes, Error: Debug>,
    S: Service<Request<Incoming>, Response = Response<A>, Error = Infallible, Future: Send>,
    S: Clone + Send + 'static,
    A: Body<Data: Send, Error: Into<Box<dyn StdError + Send + Sync>>> + Send + 'static,
{
    let size = size_of::<<L::Service as Service<Sent>>::Future>();
    let run = move |calls| {
        let runtime = Builder::new_current_thread().enable_time().build().expect("a runtime");
        let _entered = runtime.enter();
        let (near, far) = duplex(64 * 1024);
        runtime.spawn(Server::new().serve_connection(TokioIo::new(far), TowerToHyperService::new(server)));
        let client = Client::builder(TokioExecutor::new()).build(Pipes(Arc::new(Mutex::new(Some(near)))));
        let mut service = layers.layer(client);
        the_uncounted_part(&runtime, &mut service);
        the_counted_part(&runtime, &mut service, calls);
    };
    Subject { what, size, run: Box::new(run) }
}

/// Connects, and fills the buffers and the lists of what is used again.
#[inline(never)]
fn the_uncounted_part<S, B>(runtime: &Runtime, service: &mut S)
where
    S: Service<Sent, Response = Response<B>, Error: Debug>,
    B: Body<Data = Bytes, Error: Debug>,
{
    runtime.block_on(round_trips(service, 100));
}

/// Callgrind counts only what this function does.
#[inline(never)]
fn the_counted_part<S, B>(runtime: &Runtime, service: &mut S, calls: u32)
where
    S: Service<Sent, Response = Response<B>, Error: Debug>,
    B: Body<Data = Bytes, Error: Debug>,
{
    runtime.block_on(round_trips(service, calls));
}

async fn round_trips<S, B>(service: &mut S, calls: u32)
where
    S: Service<Sent, Response = Response<B>, Error: Debug>,
    B: Body<Data = Bytes, Error: Debug>,
{
    for _ in 0..calls {
        let mut request = Request::new(Full::default());
        *request.uri_mut() = Uri::from_static("http://bench.test/prices");
        poll_fn(|cx| service.poll_ready(cx)).await.expect("a service that is ready");
        let response = service.call(black_box(request)).await.expect("a response");
        let mut body = pin!(response.into_body());
        while let Some(frame) = poll_fn(|cx| body.as_mut().poll_frame(cx)).await {
            black_box(frame.expect("a frame"));
        }
    }
}

async fn answer(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    black_box(request);
    Ok(Response::new(Full::new(Bytes::from_static(b"ok"))))
}

/// Connects once, to the client's end of a pipe, and is the connection.
#[derive(Clone)]
struct Pipes(Arc<Mutex<Option<DuplexStream>>>);

impl Service<Uri> for Pipes {
    type Response = Pipe;
    type Error = io::Error;
    type Future = Ready<io::Result<Pipe>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let pipe = self.0.lock().ok().and_then(|mut pipe| pipe.take());
        ready(pipe.map(|pipe| Pipe(TokioIo::new(pipe))).ok_or_else(|| io::ErrorKind::NotConnected.into()))
    }
}

/// tower leaves the policy to its users, so this is what most of them write. Ours asks more of a request.
#[derive(Debug, Clone)]
struct ThreeTimes(u32);

impl<B, E> tower::retry::Policy<Sent, Response<B>, E> for ThreeTimes {
    type Future = Ready<()>;

    fn retry(&mut self, _: &mut Sent, outcome: &mut Result<Response<B>, E>) -> Option<Self::Future> {
        self.0 -= 1;
        (outcome.is_err() && self.0 > 0).then(|| ready(()))
    }

    fn clone_request(&mut self, request: &Sent) -> Option<Sent> {
        Some(request.clone())
    }
}

struct Pipe(TokioIo<DuplexStream>);

impl Connection for Pipe {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl Read for Pipe {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl Write for Pipe {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write_vectored(cx, bufs)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

/// Subtracts a run of `CALLS` calls from one of twice as many, so that one-time costs cancel out.
fn table(word: &str) -> ExitCode {
    let subjects = subjects();
    let Some(bare) = per_call(0) else {
        eprintln!("valgrind is missing, or cannot count instructions here");
        return ExitCode::FAILURE;
    };
    println!("{:<40}{:>14}{:>10}{:>24}", "", "instructions", "more", "size of the future");
    for (index, subject) in subjects.iter().enumerate().filter(|(_, subject)| subject.what.contains(word)) {
        let count = per_call(index).unwrap_or(f64::NAN);
        let (more, size) = (count - bare, subject.size);
        println!("{:<40}{count:>14.0}{more:>+10.0}{size:>12}{:>+12}", subject.what, size - subjects[0].size);
    }
    ExitCode::SUCCESS
}

fn per_call(index: usize) -> Option<f64> {
    let [once, twice] = [CALLS, 2 * CALLS].map(|calls| counted(index, calls));
    Some((twice? as f64 - once? as f64) / f64::from(CALLS))
}

fn counted(index: usize, calls: u32) -> Option<u64> {
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null", "--toggle-collect=*the_counted_part*"])
        .arg(std::env::current_exe().ok()?)
        .args(["--run", &index.to_string(), &calls.to_string()])
        .output()
        .ok()?;
    let report = String::from_utf8(output.stderr).ok()?;
    report.lines().find_map(|line| line.split_once("Collected :")?.1.trim().parse().ok())
}
