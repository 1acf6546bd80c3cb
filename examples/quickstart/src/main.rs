//! All six layers at work on real HTTP: the same steady load on a flaky upstream, through a bare client and through a
//! stack.
//!
//! ```text
//! cargo run --release -p quickstart
//! ```
//!
//! The upstream takes 25 ms to respond. It fails 10 % of the calls with 503 and lets 2 % hang. In the second between 1
//! s and 2 s it responds to everything with 503. The dice depend only on a seed (`-- 7` takes another one), the
//! request's id and the attempt's number.
//!
//! Copy [`with_stack`] and [`send`]; the rest is the upstream, the load and the report. The program exits with an error
//! unless everything in [`promises`] is kept.

use std::{
    error::Error as StdError,
    hash::{DefaultHasher, Hash, Hasher},
    io,
    net::SocketAddr,
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{Router, extract};
use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Full};
use hyper::{HeaderMap, Request, Response, StatusCode};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use tokio::{
    net::TcpListener,
    task::{JoinHandle, JoinSet},
    time::{Instant, sleep, sleep_until, timeout},
};
use tower::{Service, ServiceBuilder, ServiceExt, service_fn};
use ziggurat::{
    Backoff, Error, Scope,
    cache::CacheLayer,
    circuit_breaker::{CircuitBreakerHandle, CircuitBreakerLayer, State},
    concurrency_limit::ConcurrencyLimitLayer,
    context::ContextLayer,
    retry::RetryLayer,
    timeout::TimeoutLayer,
};

type BoxError = Box<dyn StdError + Send + Sync>;
type HttpClient = Client<HttpConnector, Empty<Bytes>>;
type HttpRequest = Request<Empty<Bytes>>;

/// Chance decides which requests hang just before the outage and are retried during it, and whether the first probe
/// after the outage is among the 12 % that fail anyway, so that the circuit opens once more. With this seed that probe
/// succeeds.
const SEED: u64 = 374;
/// The load: 2,000 requests at 400/s, and then 200 of them again.
const REQUESTS: usize = 2_000;
const REPEATED: usize = 200;
const INTERVAL: Duration = Duration::from_micros(2_500);
/// The maximum number of calls in flight.
const LIMIT: usize = 16;
/// A hanging call is given up long after all others have ended, so that the bare client's run ends too.
const GUARD: Duration = Duration::from_secs(3);
const LONGEST: Duration = Duration::from_secs(20);

/// Runs the load through the whole stack: all requests once, then some of them again.
async fn with_stack(seed: u64) -> Result<(Run, Run, Timeline), BoxError> {
    let upstream = Upstream::start(seed).await?;
    let (http, ids, in_flight) = (http_client(), NumberedIds::default(), Arc::<InFlight>::default());
    let breaker = CircuitBreakerLayer::http().over(Duration::from_secs(1)).open_for(Duration::from_millis(500));
    let timeline = follow(&breaker.handle(), upstream.started);

    // The recommended order, outermost first. The docs of each layer say what changes elsewhere.
    let client = ServiceBuilder::new()
        // A scope for each request. Everything inside can read the values that are set here.
        .layer(ContextLayer::new(Scope::root("quickstart")).state(move |_: &HttpRequest| ids.next()))
        // A cache hit needs no permit and no healthy upstream, so the cache is outside all other layers.
        .layer(CacheLayer::http(10_000, Duration::from_secs(30)))
        // The total: the wait for a permit, all attempts and the pauses between them.
        .layer(TimeoutLayer::new(Duration::from_secs(2)).named("total"))
        // Most failures here are over a moment later, so the pauses are short. In an outage the budget keeps retries
        // few.
        .layer(RetryLayer::http().max_attempts(3).backoff(Backoff::exponential(Duration::from_millis(25))))
        // Inside the retry, so that it sees each attempt. An open circuit is not retried.
        .layer(breaker)
        // A permit is held only for the work, not while a retry pauses or the circuit is open.
        .layer(ConcurrencyLimitLayer::new(LIMIT).max_waiting(64))
        // Each attempt has its own limit: an attempt that hangs is given up and retried.
        .layer(TimeoutLayer::new(Duration::from_millis(250)).named("attempt"))
        // The error of the whole stack: a layer's rejection, or the client's own error.
        .map_err(Error::Service)
        .service(service_fn({
            let in_flight = in_flight.clone();
            move |request| send(http.clone(), in_flight.clone(), request)
        }));

    let outcomes = load(client.clone(), &upstream, upstream.started, 0..REQUESTS).await?;
    let stack = Run { outcomes, calls: upstream.calls(), peak: in_flight.peak() };

    let succeeded = stack.outcomes.iter().filter(|outcome| outcome.end == End::Succeeded);
    let keys: Vec<_> = succeeded.map(|outcome| outcome.key).take(REPEATED).collect();
    let outcomes = load(client, &upstream, Instant::now(), keys).await?;
    let again = Run { outcomes, calls: upstream.calls() - stack.calls, peak: in_flight.peak() };
    Ok((stack, again, timeline.await?))
}

/// The innermost service: sends the request with its id and attempt number. Collects the body, so that the cache can
/// copy it.
async fn send(
    http: HttpClient,
    in_flight: Arc<InFlight>,
    mut request: HttpRequest,
) -> io::Result<Response<Full<Bytes>>> {
    if let Some(id) = Scope::current().and_then(|scope| scope.get::<RequestIdHeader>()) {
        request.headers_mut().insert("x-request-id", id.0.into());
    }
    request.headers_mut().insert("x-attempt", ziggurat::attempt().into());
    let _counted = in_flight.count();
    let (head, body) = http.request(request).await.map_err(io::Error::other)?.into_parts();
    let body = body.collect().await.map_err(io::Error::other)?;
    Ok(Response::from_parts(head, Full::new(body.to_bytes())))
}

/// Runs the load through the same client without any layer, for comparison.
async fn with_bare_client(seed: u64) -> Result<Run, BoxError> {
    let upstream = Upstream::start(seed).await?;
    let (http, ids, in_flight) = (http_client(), NumberedIds::default(), Arc::<InFlight>::default());
    let client = ServiceBuilder::new().map_err(Error::Service).service(service_fn({
        let in_flight = in_flight.clone();
        move |mut request: HttpRequest| {
            request.headers_mut().insert("x-request-id", ids.next().0.into());
            send(http.clone(), in_flight.clone(), request)
        }
    }));
    let outcomes = load(client, &upstream, upstream.started, 0..REQUESTS).await?;
    Ok(Run { outcomes, calls: upstream.calls(), peak: in_flight.peak() })
}

#[tokio::main]
async fn main() -> Result<ExitCode, BoxError> {
    let seed = std::env::args().nth(1).map_or(Ok(SEED), |seed| seed.parse())?;
    let started = Instant::now();
    println!("{REQUESTS} requests at 400/s, through a bare client and then through the stack: about 14 s\n");
    let runs = async { Ok::<_, BoxError>((with_bare_client(seed).await?, with_stack(seed).await?)) };
    let (bare, (stack, again, timeline)) = timeout(LONGEST, runs).await??;

    print_table(&[("bare", &bare), ("stack", &stack), ("stack again", &again)]);
    println!("\nthe circuit:");
    timeline.iter().for_each(|(at, state)| println!("{:8.3} s  {state}", at.as_secs_f64()));

    println!("\npromises:");
    let promises = promises(&bare, &stack, &again, &timeline, started.elapsed());
    promises.iter().for_each(|(kept, promise)| println!("{}  {promise}", if *kept { "kept  " } else { "BROKEN" }));
    let all_kept = promises.iter().all(|(kept, _)| *kept);
    Ok(if all_kept { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn promises(bare: &Run, stack: &Run, again: &Run, timeline: &Timeline, took: Duration) -> [(bool, String); 7] {
    let (bare_percent, stack_percent) = (bare.percent_answered_in_calm(), stack.percent_answered_in_calm());
    let opened = timeline.iter().any(|(_, state)| *state == State::Open);
    let closed = timeline.last().is_some_and(|(_, state)| *state == State::Closed);
    let calls = stack.calls as f64 / REQUESTS as f64;
    let remembered = again.count(End::Succeeded);
    [
        (stack_percent >= 99.0, format!("the stack serves {stack_percent:.1} % away from the outage (at least 99 %)")),
        (bare_percent < 99.0, format!("the bare client serves {bare_percent:.1} % there (less)")),
        (opened && closed, "the circuit opens, and closes again".to_owned()),
        (stack.peak <= LIMIT, format!("{} calls are in flight at the peak (at most {LIMIT})", stack.peak)),
        (calls <= 1.25, format!("{calls:.2} calls reach the upstream for each request (at most 1.25)")),
        (
            remembered == REPEATED && again.calls == 0,
            format!("{remembered} of {REPEATED} repeated requests succeed, with {} calls (none)", again.calls),
        ),
        (took < LONGEST, format!("it takes {:.1} s (less than 20 s)", took.as_secs_f64())),
    ]
}

// === Request ids and calls in flight ===

struct RequestIdHeader(u64);

#[derive(Clone, Default)]
struct NumberedIds(Arc<AtomicU64>);

impl NumberedIds {
    fn next(&self) -> RequestIdHeader {
        RequestIdHeader(self.0.fetch_add(1, Ordering::Relaxed))
    }
}

/// Counts the client's calls in flight.
#[derive(Default)]
struct InFlight {
    now: AtomicUsize,
    peak: AtomicUsize,
}

struct Counted(Arc<InFlight>);

impl InFlight {
    fn count(self: &Arc<Self>) -> Counted {
        let now = self.now.fetch_add(1, Ordering::SeqCst) + 1;
        self.peak.fetch_max(now, Ordering::SeqCst);
        Counted(Arc::clone(self))
    }

    /// Returns the peak since the last call of this function.
    fn peak(&self) -> usize {
        self.peak.swap(0, Ordering::SeqCst)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.now.fetch_sub(1, Ordering::SeqCst);
    }
}

// === The upstream ===

struct Upstream {
    address: SocketAddr,
    seed: u64,
    started: Instant,
    calls: AtomicUsize,
}

impl Upstream {
    async fn start(seed: u64) -> Result<Arc<Self>, BoxError> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let upstream = Arc::new(Self { address, seed, started: Instant::now(), calls: AtomicUsize::new(0) });
        let app = Router::new().fallback(answer).with_state(Arc::clone(&upstream));
        tokio::spawn(async { axum::serve(listener, app).await });
        Ok(upstream)
    }

    fn calls(&self) -> usize {
        self.calls.load(Ordering::SeqCst)
    }
}

async fn answer(extract::State(upstream): extract::State<Arc<Upstream>>, headers: HeaderMap) -> StatusCode {
    upstream.calls.fetch_add(1, Ordering::SeqCst);
    let second = upstream.started.elapsed().as_secs();
    let (Some(id), Some(attempt)) = (number(&headers, "x-request-id"), number(&headers, "x-attempt")) else {
        return StatusCode::BAD_REQUEST;
    };
    let mut dice = DefaultHasher::new();
    (upstream.seed, id, attempt).hash(&mut dice);
    let percent = dice.finish() % 100;
    if percent < 2 {
        std::future::pending::<()>().await;
    }
    sleep(Duration::from_millis(25)).await;
    if percent < 12 || second == 1 { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK }
}

fn number(headers: &HeaderMap, name: &str) -> Option<u64> {
    headers.get(name)?.to_str().ok()?.parse().ok()
}

// === The load ===

fn http_client() -> HttpClient {
    Client::builder(TokioExecutor::new()).build_http()
}

/// Sends a GET for each key at a steady pace, without waiting for the responses to earlier ones.
async fn load<S, B>(
    service: S,
    upstream: &Upstream,
    started: Instant,
    keys: impl IntoIterator<Item = usize>,
) -> Result<Vec<Outcome>, BoxError>
where
    S: Service<HttpRequest, Response = Response<B>, Error = Error<io::Error>, Future: Send> + Clone + Send + 'static,
    B: Send + 'static,
{
    let mut calls = JoinSet::new();
    let mut at = started;
    for key in keys {
        sleep_until(at).await;
        let request = Request::get(format!("http://{}/{key}", upstream.address)).body(Empty::new())?;
        let service = service.clone();
        calls.spawn(async move {
            let sent = Instant::now();
            let answered = timeout(GUARD, service.oneshot(request)).await;
            let end = answered.map_or(End::TimedOut, |outcome| End::of(&outcome));
            Outcome { key, sent: sent - started, took: sent.elapsed(), end }
        });
        at += INTERVAL;
    }
    let mut outcomes = Vec::new();
    while let Some(outcome) = calls.join_next().await {
        outcomes.push(outcome?);
    }
    Ok(outcomes)
}

struct Outcome {
    key: usize,
    sent: Duration,
    took: Duration,
    end: End,
}

#[derive(Clone, Copy, PartialEq)]
enum End {
    Succeeded,
    Failed,
    TimedOut,
    Rejected,
}

impl End {
    fn of<B>(outcome: &Result<Response<B>, Error<io::Error>>) -> Self {
        match (ziggurat::rejection(outcome), outcome) {
            (Some(rejection), _) if rejection.is_timed_out() => Self::TimedOut,
            (Some(_), _) => Self::Rejected,
            (None, Ok(response)) if response.status().is_success() => Self::Succeeded,
            (None, _) => Self::Failed,
        }
    }
}

// === The report ===

/// The result of one load.
struct Run {
    outcomes: Vec<Outcome>,
    /// The calls that reached the upstream.
    calls: usize,
    /// The peak number of calls in flight.
    peak: usize,
}

impl Run {
    fn count(&self, end: End) -> usize {
        self.outcomes.iter().filter(|outcome| outcome.end == end).count()
    }

    /// The success rate, in percent, of the requests that were sent well before or after the outage.
    fn percent_answered_in_calm(&self) -> f64 {
        let outage = Duration::from_secs(1)..=Duration::from_millis(3_500);
        let calm = || self.outcomes.iter().filter(|outcome| !outage.contains(&outcome.sent));
        let succeeded = calm().filter(|outcome| outcome.end == End::Succeeded).count();
        100.0 * succeeded as f64 / calm().count() as f64
    }

    /// The time within which `percent` of the requests ended, successful or not.
    fn percentile(&self, percent: usize) -> Duration {
        let mut took: Vec<_> = self.outcomes.iter().map(|outcome| outcome.took).collect();
        took.sort();
        let rank = (took.len() * percent).div_ceil(100);
        took.get(rank.saturating_sub(1)).copied().unwrap_or_default()
    }
}

fn print_table(runs: &[(&str, &Run)]) {
    let row = |name: &str, cell: &dyn Fn(&Run) -> String| {
        print!("{name:24}");
        runs.iter().for_each(|(_, run)| print!("{:>12}", cell(run)));
        println!();
    };
    let millis = |time: Duration| format!("{:.1} ms", time.as_secs_f64() * 1000.0);
    print!("{:24}", "");
    runs.iter().for_each(|(name, _)| print!("{name:>12}"));
    println!();
    row("requests", &|run| run.outcomes.len().to_string());
    row("succeeded", &|run| run.count(End::Succeeded).to_string());
    row("  away from the outage", &|run| format!("{:.1} %", run.percent_answered_in_calm()));
    row("failed", &|run| run.count(End::Failed).to_string());
    row("timed out", &|run| run.count(End::TimedOut).to_string());
    row("rejected", &|run| run.count(End::Rejected).to_string());
    row("p50 of all", &|run| millis(run.percentile(50)));
    row("p99 of all", &|run| millis(run.percentile(99)));
    row("calls to the upstream", &|run| run.calls.to_string());
    row("peak in flight", &|run| run.peak.to_string());
}

/// The states of the circuit, and when each began.
type Timeline = Vec<(Duration, State)>;

/// Records transitions through the circuit's handle until the last service that shares the circuit is dropped.
fn follow(circuit: &CircuitBreakerHandle, started: Instant) -> JoinHandle<Timeline> {
    let mut timeline = vec![(Duration::ZERO, circuit.state())];
    let mut transitions = circuit.subscribe();
    tokio::spawn(async move {
        while let Some(transition) = transitions.next().await {
            timeline.push((started.elapsed(), transition.to));
        }
        timeline
    })
}
