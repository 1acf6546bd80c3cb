//! Composes a stack around a plain async function, without HTTP, and keeps it in a struct.
//!
//! The type of a stack grows with each layer, so the struct names it as a `BoxCloneSyncService`. That costs one
//! allocation for each call, and tasks and threads can share it. A struct that is generic over its service would not
//! need the box.

use std::{
    error::Error as StdError,
    fmt,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use tokio::time::sleep;
use tower::{ServiceBuilder, ServiceExt, service_fn, util::BoxCloneSyncService};
use ziggurat::{Class, Error, concurrency_limit::ConcurrencyLimitLayer, retry::RetryLayer, timeout::TimeoutLayer};

/// The errors of the function below.
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

/// The plain function: returns a price in cents.
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

/// Distinguishes transient errors from permanent ones. It is never asked about rejections.
fn class(outcome: Result<&u64, &Error<QuoteError>>) -> Class {
    match outcome {
        Ok(_) => Class::Success,
        Err(Error::Service(QuoteError::Busy)) => Class::TRANSIENT,
        Err(_) => Class::PERMANENT,
    }
}

/// Clones share everything, including the limit and the retry budget.
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

// On a paused clock the example takes no time: the clock advances whenever all tasks wait for it.
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

    println!("retried a transient error, passed on a permanent one, and gave up a call that hangs");
    Ok(())
}
