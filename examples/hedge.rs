//! Hedged reads over HTTP/1: every twentieth answer of the server takes seconds, and the reads do not.

use std::{
    convert::Infallible,
    error::Error as StdError,
    net::SocketAddr,
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{Method, Request, Response, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::{
    client::legacy::Client,
    rt::{TokioExecutor, TokioIo},
};
use tokio::{net::TcpListener, time::sleep};
use tower::{ServiceBuilder, ServiceExt};
use ziggurat::{Budget, Error, LayerEvent, LayerInfo, hedge::HedgeLayer, timeout::TimeoutLayer};

/// How long a slow answer takes, and after what time a read is sent again.
const SLOW: Duration = Duration::from_secs(3);
const DELAY: Duration = Duration::from_millis(200);

const READS: u32 = 100;

static CALLS: AtomicU32 = AtomicU32::new(0);
static WON: AtomicU32 = AtomicU32::new(0);

/// Slow for every twentieth call, unless the call is for `/fast`.
async fn answer(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    if request.uri().path() != "/fast" && (CALLS.fetch_add(1, Ordering::Relaxed) + 1).is_multiple_of(20) {
        sleep(SLOW).await;
    }
    Ok(Response::new(Full::from("answer")))
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn StdError>> {
    let server = start_server().await?;
    let http = Client::builder(TokioExecutor::new()).build_http::<Full<Bytes>>();

    // A layer of each kind. Both take their hedges from one budget: a retry could share it too.
    let budget = Budget::default();
    let count = |_: &LayerInfo, event: &LayerEvent<'_>| {
        if let LayerEvent::HedgeWon = event {
            WON.fetch_add(1, Ordering::Relaxed);
        }
    };
    let after = HedgeLayer::after(DELAY).http().budget(&budget).observer(count);
    // The budget grants ten hedges a second. With this delay there are not more of them, also on a machine that stalls.
    let at_p95 = HedgeLayer::at_percentile(0.95).http().min_delay(DELAY / 2).budget(&budget).observer(count);
    let handle = at_p95.handle();

    // The hedge is outside the limit of an attempt, so each of its attempts has one.
    let attempt = ServiceBuilder::new().layer(TimeoutLayer::new(10 * SLOW)).map_err(Error::Service).service(http);
    let after = ServiceBuilder::new().layer(after).service(attempt.clone());
    let at_p95 = ServiceBuilder::new().layer(at_p95).service(attempt);
    let request = |method: Method, path: &str| {
        Request::builder().method(method).uri(format!("http://{server}{path}")).body(Full::default())
    };

    // Five of these reads meet a slow answer. A second call overtakes it.
    let mut slowest = Duration::ZERO;
    for _ in 0..READS {
        let start = Instant::now();
        let response = after.clone().oneshot(request(Method::GET, "/")?).await?;
        assert_eq!(response.into_body().collect().await?.to_bytes(), "answer");
        slowest = slowest.max(start.elapsed());
    }
    let (calls, won) = (CALLS.swap(0, Ordering::Relaxed), WON.swap(0, Ordering::Relaxed));
    println!("after {DELAY:?}: {READS} reads with {calls} calls, the slowest in {slowest:.1?}");
    // A few more on a machine that is busy.
    assert!(won >= 5 && (READS + won..READS + 20).contains(&calls), "{won} {calls}");
    assert!(slowest < SLOW);

    // A write is never sent twice at the same time, so it waits for the slow answer.
    CALLS.store(19, Ordering::Relaxed);
    let start = Instant::now();
    after.oneshot(request(Method::POST, "/")?).await?;
    assert!(start.elapsed() >= SLOW);
    assert_eq!(CALLS.swap(0, Ordering::Relaxed), 20);

    // The other layer measures latencies, and hedges nothing before it has seen 100 calls.
    assert_eq!(handle.delay(), None);
    for _ in 0..READS {
        at_p95.clone().oneshot(request(Method::GET, "/fast")?).await?;
    }
    let delay = handle.delay().ok_or("a hundred calls were seen")?;
    for _ in 0..READS {
        let start = Instant::now();
        at_p95.clone().oneshot(request(Method::GET, "/")?).await?;
        assert!(start.elapsed() < SLOW);
    }
    let (calls, won) = (CALLS.load(Ordering::Relaxed), WON.load(Ordering::Relaxed));
    println!("at the 95th percentile, {delay:.1?}: {READS} reads with {calls} calls, {won} answered by the second one");
    assert!(won >= 5);
    Ok(())
}

async fn start_server() -> Result<SocketAddr, std::io::Error> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service_fn(answer)));
        }
    });
    Ok(address)
}
