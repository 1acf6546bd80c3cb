//! A brown-out on real HTTP: for two seconds a service takes ten times as long. Three clients call it, one after the
//! other: a bare one, one that retries naively, and the recommended stack.
//!
//! ```text
//! cargo run --release -p quickstart -- [SEED] [--load N] [--workers N] [--work MS] [--queue N] [--slower N]
//! ```
//!
//! Copy [`recommended`]; the rest is the service, the load and the report. The program fails unless every promise of
//! `report.rs` is kept, and exits with 75 if this machine was too busy for a fair run.

mod report;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::{error::Error as StdError, process::ExitCode, sync::Arc, time::Duration};

use axum::{Router, extract, http::StatusCode};
use bytes::Bytes;
use http_body_util::Empty;
use hyper::{Request, Response, body::Incoming};
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use tokio::{
    net::TcpListener,
    sync::{Semaphore, oneshot},
    task::JoinSet,
    time::{Instant, sleep, sleep_until},
};
use tower::{ServiceBuilder, ServiceExt, util::BoxCloneService};
use ziggurat::{
    Error,
    retry::RetryLayer,
    stack::{ClientSettings, ClientStack},
    timeout::TimeoutLayer,
};

type BoxError = Box<dyn StdError + Send + Sync>;
type Http = Client<hyper_util::client::legacy::connect::HttpConnector, Empty<Bytes>>;
type Caller = BoxCloneService<Request<Empty<Bytes>>, StatusCode, Error<hyper_util::client::legacy::Error>>;

/// A second of calm, the brown-out, and two seconds in which a client can show how it recovers.
const BEGIN: Duration = Duration::from_secs(1);
const END: Duration = Duration::from_secs(3);
const LENGTH: Duration = Duration::from_secs(5);
/// How long each caller waits: as long as most people do before they reload a page.
const PATIENCE: Duration = Duration::from_secs(1);

/// The parameters that a flag can change.
#[derive(Clone, Copy, PartialEq)]
struct Scene {
    seed: u64,
    load: f64,
    workers: usize,
    work: Duration,
    queue: usize,
    slower: u32,
}

const DEFAULT: Scene = Scene {
    seed: 1,
    // Requests per second: 60 % of the capacity, a usual utilization.
    load: 384.0,
    // 16 workers of 25 ms each are a capacity of 640 requests per second.
    workers: 16,
    work: Duration::from_millis(25),
    // Servers queue a thousand requests and more by default. The workers do not notice that a caller has left.
    queue: 1000,
    // How many times as long the work takes in the brown-out: a cold cache, a bad query plan, a noisy neighbour.
    slower: 10,
};

/// The client to copy: a total, retries within a budget, a circuit breaker, and a limit that adapts.
fn recommended(http: Http) -> Caller {
    let stack = ClientStack::http("upstream").settings(ClientSettings::default().timeout(PATIENCE));
    let client = ServiceBuilder::new().map_response(status).layer(stack).map_err(Error::Service).service(http);
    BoxCloneService::new(client)
}

/// One attempt.
fn bare(http: Http) -> Caller {
    let total = TimeoutLayer::new(PATIENCE);
    let client = ServiceBuilder::new().map_response(status).layer(total).map_err(Error::Service).service(http);
    BoxCloneService::new(client)
}

/// Three attempts without a pause or a budget, each with a third of the time.
fn naive(http: Http) -> Caller {
    let client = ServiceBuilder::new()
        .map_response(status)
        .layer(TimeoutLayer::new(PATIENCE))
        .layer(RetryLayer::http().max_attempts(3).backoff(Duration::ZERO).budget(None))
        .layer(TimeoutLayer::new(PATIENCE / 3))
        .map_err(Error::Service)
        .service(http);
    BoxCloneService::new(client)
}

fn status(response: Response<Incoming>) -> StatusCode {
    response.status()
}

#[tokio::main]
async fn main() -> Result<ExitCode, BoxError> {
    let mut flags = pico_args::Arguments::from_env();
    let scene = Scene {
        load: flags.opt_value_from_str("--load")?.unwrap_or(DEFAULT.load),
        workers: flags.opt_value_from_str("--workers")?.unwrap_or(DEFAULT.workers),
        work: flags.opt_value_from_str("--work")?.map_or(DEFAULT.work, Duration::from_millis),
        queue: flags.opt_value_from_str("--queue")?.unwrap_or(DEFAULT.queue),
        slower: flags.opt_value_from_str("--slower")?.unwrap_or(DEFAULT.slower),
        seed: flags.finish().first().map_or(Ok(DEFAULT.seed), |seed| {
            seed.to_string_lossy().parse().map_err(|_| "a seed is a number, and the flags are at the top of main.rs")
        })?,
    };
    println!("{}/s, to a service for {}/s\n", scene.load, scene.workers as f64 / scene.work.as_secs_f64());
    let mut runs = Vec::new();
    for (name, client) in [("bare", bare as fn(_) -> _), ("naive", naive), ("stack", recommended)] {
        runs.push(scene.run(name, client).await?);
    }
    report::print(&scene, &runs)
}

// === The service ===

struct Upstream {
    scene: Scene,
    start: Instant,
    workers: Semaphore,
    /// A permit for each call in the service.
    room: Arc<Semaphore>,
    calls: AtomicUsize,
}

async fn answer(extract::State(upstream): extract::State<Arc<Upstream>>) -> StatusCode {
    upstream.calls.fetch_add(1, Ordering::Relaxed);
    let Ok(place) = Arc::clone(&upstream.room).try_acquire_owned() else { return StatusCode::SERVICE_UNAVAILABLE };
    let (done, answered) = oneshot::channel();
    // A task of its own: it goes on working after its caller has left.
    tokio::spawn(async move {
        let _worker = upstream.workers.acquire().await;
        let is_slow = (BEGIN..END).contains(&upstream.start.elapsed());
        sleep(upstream.scene.work * if is_slow { upstream.scene.slower } else { 1 }).await;
        drop(place);
        let _ = done.send(());
    });
    if answered.await.is_ok() { StatusCode::OK } else { StatusCode::INTERNAL_SERVER_ERROR }
}

// === The load ===

/// How a client fared.
struct Run {
    name: &'static str,
    requests: Vec<Outcome>,
    /// The calls that arrived at the service.
    calls: usize,
    /// How late the load generator was at most.
    slip: Duration,
}

struct Outcome {
    sent: Duration,
    took: Duration,
    is_answered: bool,
}

impl Scene {
    /// Starts a service, and sends it requests at random times, however earlier ones fare.
    async fn run(self, name: &'static str, client: fn(Http) -> Caller) -> Result<Run, BoxError> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let start = Instant::now();
        let upstream = Arc::new(Upstream {
            scene: self,
            start,
            workers: Semaphore::new(self.workers),
            room: Arc::new(Semaphore::new(self.workers + self.queue)),
            calls: Default::default(),
        });
        let app = Router::new().fallback(answer).with_state(Arc::clone(&upstream));
        let server = tokio::spawn(async { axum::serve(listener, app).await });
        let client = client(Client::builder(TokioExecutor::new()).build_http());

        let (mut random, mut at, mut slip) = (fastrand::Rng::with_seed(self.seed), Duration::ZERO, Duration::ZERO);
        let mut under_way = JoinSet::new();
        while at < LENGTH {
            sleep_until(start + at).await;
            let sent = start.elapsed();
            slip = slip.max(sent - at);
            let call = client.clone().oneshot(Request::get(format!("http://{address}/")).body(Empty::new())?);
            under_way.spawn(async move {
                let is_answered = call.await.is_ok_and(|status| status.is_success());
                Outcome { sent, took: start.elapsed() - sent, is_answered }
            });
            at += Duration::from_secs_f64(-(1.0 - random.f64()).ln() / self.load);
        }
        let requests = under_way.join_all().await;
        server.abort();
        let calls = upstream.calls.load(Ordering::Relaxed);
        Ok(Run { name, requests, calls, slip })
    }
}
