//! Composes a stack around a plain async function, no HTTP in sight, and keeps it in a struct.
//!
//! The type of a stack grows with each layer, so the struct names it as a `BoxCloneSyncService`: one allocation for each call,
//! and it can be shared by tasks and threads. A struct that is generic over its service would do without.

use std::{
    error::Error as StdError,
    fmt,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use tokio::time::sleep;
use tower::{ServiceBuilder, ServiceExt, service_fn, util::BoxCloneSyncService};
use ziggurat::{Class, Error, concurrency_limit::ConcurrencyLimitLayer, retry::RetryLayer, timeout::TimeoutLayer};

/// What the function below may answer besides a price.
#[derive(Debug, PartialEq)]
enum QuoteError {
    Busy,
    UnknownSymbol,
}

impl fmt::Display for QuoteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Busy => "the exchange is busy",
            Self::UnknownSymbol => "no such symbol",
        })
    }
}

impl StdError for QuoteError {}

static CALLS: AtomicU32 = AtomicU32::new(0);

/// The plain function: a price in cents, if all goes well.
async fn quote(symbol: String) -> Result<u64, QuoteError> {
    let call = CALLS.fetch_add(1, Ordering::Relaxed);
    sleep(Duration::from_millis(10)).await;
    match symbol.as_str() {
        "FLAKY" if call < 2 => Err(QuoteError::Busy),
        "FLAKY" => Ok(1_250),
        "STUCK" => std::future::pending().await,
        _ => Err(QuoteError::UnknownSymbol),
    }
}

/// Tells what may be gone at the next attempt from what will be the same. About rejections it is not asked.
fn class(outcome: Result<&u64, &Error<QuoteError>>) -> Class {
    match outcome {
        Ok(_) => Class::Success,
        Err(Error::Service(QuoteError::Busy)) => Class::TRANSIENT,
        Err(_) => Class::PERMANENT,
    }
}

/// A clone shares everything, the limit and the retry's budget too.
#[derive(Clone)]
struct Exchange {
    quotes: BoxCloneSyncService<String, u64, Error<QuoteError>>,
}

impl Exchange {
    fn new() -> Self {
        let stack = ServiceBuilder::new()
            .layer(TimeoutLayer::new(Duration::from_secs(1)))
            .layer(RetryLayer::new().classify(class))
            .layer(ConcurrencyLimitLayer::new(8))
            .map_err(Error::Service)
            .service(service_fn(quote));
        Self { quotes: BoxCloneSyncService::new(stack) }
    }

    async fn quote(&self, symbol: &str) -> Result<u64, Error<QuoteError>> {
        self.quotes.clone().oneshot(symbol.to_owned()).await
    }
}

// On a paused clock the example takes no time: it moves on whenever all tasks wait for it.
#[tokio::main(flavor = "current_thread", start_paused = true)]
async fn main() -> Result<(), Box<dyn StdError>> {
    let exchange = Exchange::new();

    assert_eq!(exchange.quote("FLAKY").await?, 1_250);
    assert_eq!(CALLS.load(Ordering::Relaxed), 3);

    let outcome = exchange.quote("NONE").await;
    assert!(matches!(outcome, Err(Error::Service(QuoteError::UnknownSymbol))));
    assert_eq!(CALLS.load(Ordering::Relaxed), 4);

    // From another task, through a clone.
    let outcome = tokio::spawn({
        let exchange = exchange.clone();
        async move { exchange.quote("STUCK").await }
    });
    let outcome = outcome.await?;
    assert!(ziggurat::rejection(&outcome).is_some_and(|rejection| rejection.is_timed_out()));

    println!("tried again what was busy, passed on what is wrong, and gave up what was stuck");
    Ok(())
}
