//! Processes items that fail: the first failure ends the run, or each failure takes its item's place. The same holds
//! for timeouts and panics.

use std::{error::Error as StdError, fmt, time::Duration};

use tokio::time::{Instant, sleep};
use tokio_stream::StreamExt;
use ziggurat::concurrent::{Cause, process_concurrently, split};

const SECOND: Duration = Duration::from_secs(1);

#[derive(Debug, PartialEq)]
struct CannotProcess(&'static str);

impl fmt::Display for CannotProcess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot process {}", self.0)
    }
}

impl StdError for CannotProcess {}

async fn risky(item: &'static str) -> Result<String, CannotProcess> {
    match item {
        "bad" => return Err(CannotProcess(item)),
        "stuck" => std::future::pending().await,
        "odd" => panic!("unexpected item: {item}"),
        _ => sleep(SECOND / 2).await,
    }
    Ok(format!("processed-{item}"))
}

// On a paused clock: the seconds below take no time.
#[tokio::main(flavor = "current_thread", start_paused = true)]
async fn main() -> Result<(), Box<dyn StdError>> {
    // By default the first failure ends the run, with the item's index and the original error, not its effect on other
    // items.
    let error = process_concurrently(["good1", "bad", "good2"], risky).max_concurrency(2).await.err();
    let error = error.ok_or("one of them failed")?;
    assert_eq!((error.index, error.error()), (1, Some(&CannotProcess("bad"))));
    println!("{error}: {}", error.source().ok_or("it has a source")?);

    // Or every item is processed, and the failures are among the results.
    let items = ["good1", "bad", "good2", "stuck", "odd", "good3"];
    let start = Instant::now();
    let (results, summary) = process_concurrently(items, risky)
        .max_concurrency(2)
        .timeout_per_item(5 * SECOND)
        .continue_on_error()
        .with_summary()
        .await;
    println!("{summary}");
    assert_eq!((summary.ok, summary.failed, summary.timed_out, summary.panicked), (3, 1, 1, 1));
    assert_eq!(start.elapsed(), Duration::from_millis(5_500)); // one was stuck while the others continued

    let (successful, failed) = split(results);
    assert_eq!(successful, ["processed-good1", "processed-good2", "processed-good3"]);
    for error in &failed {
        match &error.cause {
            Cause::Failed(original) => println!("{error}, try another input: {original}"),
            Cause::TimedOut { limit } => println!("{error}, it may work with more than {limit:?}"),
            _ => println!("{error}, and that is a bug in this program"),
        }
    }
    assert_eq!(failed.iter().map(|error| error.index).collect::<Vec<_>>(), [1, 3, 4]);

    // As a stream: results as they complete, and the reader decides when to stop.
    let mut results = process_concurrently(items, risky).max_concurrency(2).unordered();
    while let Some(result) = results.next().await {
        if result.is_err() {
            break;
        }
    }
    println!("as a stream, up to the first failure: {}", results.summary());
    Ok(())
}
