//! Goodput under overload on real sockets: a server that can answer 100 requests per second is offered 1.05, 2 and 10
//! times as many by a load generator in a process of its own.
//!
//! ```text
//! cargo bench -p ziggurat-benches --bench overload
//! ```
//!
//! It fails if fewer than 90 % of the measured capacity are answered, if the circuit opens on this healthy service, or
//! if the p99 is above twice the p99 without load and the allowed wait.

use std::{
    env, fs,
    io::Error as IoError,
    net::SocketAddr,
    process::{Command, Stdio},
    time::Duration,
};

use axum::{Router, routing::get};
use bytes::Bytes;
use http_body_util::Empty;
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use tokio::{
    net::TcpListener,
    task::{JoinSet, spawn_blocking},
    time::{Instant, sleep, sleep_until, timeout},
};
use tower::ServiceBuilder;
use ziggurat::{
    circuit_breaker::{CircuitBreakerLayer, State},
    concurrency_limit::ConcurrencyLimitLayer,
    timeout::TimeoutLayer,
};

const LIMIT: usize = 10;
const WORK: Duration = Duration::from_millis(100);
const PATIENCE: Duration = Duration::from_secs(1);
const LENGTH: Duration = Duration::from_secs(10);
/// In an overload that lasts for this long, as many calls wait as are in flight, and 16 more.
const SETTLED: Duration = Duration::from_secs(3);
const WAITING: f64 = (LIMIT + 16) as f64;

/// The figures of the load generator.
#[derive(Debug)]
struct Seen {
    /// Answers per second in time, without the first second.
    goodput: f64,
    /// In milliseconds, of the requests that were sent once the queue had settled.
    p99: f64,
    rejected: u32,
    late: u32,
    /// How late it sent a request at most, in milliseconds.
    slip: f64,
}

#[tokio::main]
async fn main() -> Result<(), IoError> {
    let arguments: Vec<_> = env::args().collect();
    if let Some(at) = arguments.iter().position(|argument| argument == "--load") {
        let (address, per_second) = (&arguments[at + 1], &arguments[at + 2]);
        let seen = load(address.parse().map_err(IoError::other)?, per_second.parse().map_err(IoError::other)?).await;
        println!("{} {} {} {} {}", seen.goodput, seen.p99, seen.rejected, seen.late, seen.slip);
        return Ok(());
    }

    let breaker = CircuitBreakerLayer::http();
    let circuit = breaker.handle();
    let stack = ServiceBuilder::new()
        .layer(TimeoutLayer::new(PATIENCE))
        .layer(breaker)
        .layer(ConcurrencyLimitLayer::new(LIMIT));
    let handler = || async {
        sleep(WORK).await;
        "answer"
    };
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move { axum::serve(listener, Router::new().route("/", get(handler)).layer(stack)).await });

    let calm = generate(address, 50.0).await?;
    // Slightly above the nominal capacity, so that every worker is always busy.
    let capacity = generate(address, 1.02 * LIMIT as f64 / WORK.as_secs_f64()).await?.goodput;
    println!("capacity {capacity:.1}/s; without load: p99 {:.0} ms; memory {} kB", calm.p99, memory());
    // The time until its turn of a call behind those that may wait, and three standard deviations of it.
    let most = 2.0 * calm.p99 + 1000.0 * (WAITING + 3.0 * WAITING.sqrt()) / capacity;
    for times in [1.05, 2.0, 10.0] {
        let seen = generate(address, times * capacity).await?;
        println!(
            "{times:>5} times: {:.1}/s, {:.2} of the capacity; p99 {:.0} ms; {} rejected, {} late; memory {} kB; the load \
             generator was {:.0} ms late at most",
            seen.goodput,
            seen.goodput / capacity,
            seen.p99,
            seen.rejected,
            seen.late,
            memory(),
            seen.slip,
        );
        assert!(seen.goodput >= 0.9 * capacity, "{seen:?}");
        assert!(seen.p99 <= most, "the p99 is above {most} ms: {seen:?}");
        assert_eq!(circuit.state(), State::Closed);
    }
    Ok(())
}

/// Runs a load generator in a process of its own.
async fn generate(address: SocketAddr, per_second: f64) -> Result<Seen, IoError> {
    let mut command = Command::new(env::current_exe()?);
    command.args(["--load", &address.to_string(), &per_second.to_string()]).stderr(Stdio::inherit());
    let output = spawn_blocking(move || command.output()).await.map_err(IoError::other)??;
    let numbers: Vec<f64> =
        String::from_utf8_lossy(&output.stdout).split_whitespace().filter_map(|number| number.parse().ok()).collect();
    let [goodput, p99, rejected, late, slip] = numbers[..] else {
        return Err(IoError::other("the load generator failed"));
    };
    Ok(Seen { goodput, p99, rejected: rejected as u32, late: late as u32, slip })
}

/// Sends requests at even intervals, however earlier ones fare.
async fn load(address: SocketAddr, per_second: f64) -> Seen {
    let client = Client::builder(TokioExecutor::new()).build_http::<Empty<Bytes>>();
    let (start, mut calls, mut number, mut slip) = (Instant::now(), JoinSet::new(), 0_u32, Duration::ZERO);
    while start.elapsed() < LENGTH {
        let at = start + Duration::from_secs_f64(f64::from(number) / per_second);
        sleep_until(at).await;
        slip = slip.max(at.elapsed());
        let call = client.get(format!("http://{address}/").parse().expect("a URI"));
        calls.spawn(async move {
            let sent = Instant::now();
            let status = timeout(PATIENCE, call).await.ok().and_then(Result::ok).map(|response| response.status());
            (start.elapsed(), sent.elapsed(), status)
        });
        number += 1;
    }
    let ended = calls.join_all().await;
    let answers = || ended.iter().filter(|(.., status)| status.is_some_and(|status| status.is_success()));
    let counted = answers().filter(|(at, ..)| (Duration::from_secs(1)..LENGTH).contains(at)).count();
    let settled = answers().filter(|(at, took, _)| *at - *took > SETTLED);
    let mut took: Vec<_> = settled.map(|(_, took, _)| took.as_secs_f64() * 1000.0).collect();
    took.sort_by(f64::total_cmp);
    let with =
        |code: Option<u16>| ended.iter().filter(|(.., status)| status.map(|it| it.as_u16()) == code).count() as u32;
    Seen {
        goodput: counted as f64 / (LENGTH.as_secs_f64() - 1.0),
        p99: took.get(took.len() * 99 / 100).copied().unwrap_or(f64::NAN),
        rejected: with(Some(503)),
        late: with(None) + with(Some(504)),
        slip: slip.as_secs_f64() * 1000.0,
    }
}

/// The most memory that this process has used, in kilobytes.
fn memory() -> String {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or("unknown");
    peak.trim().trim_end_matches(" kB").to_owned()
}
