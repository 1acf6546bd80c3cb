//! Processes five items of a second each, three at a time, with an async function, a stream, and a service with its
//! layers.

use std::{cell::Cell, error::Error as StdError, io, time::Duration};

use tokio::time::{Instant, sleep};
use tower::{ServiceBuilder, service_fn};
use ziggurat::{
    Error, Scope,
    concurrent::{call_concurrently, process_concurrently},
    retry::RetryLayer,
    stream::channel,
};

const SECOND: Duration = Duration::from_secs(1);

async fn process(item: String) -> Result<String, io::Error> {
    sleep(SECOND).await;
    let scope = Scope::current().map_or_else(String::new, |scope| scope.name().to_owned());
    Ok(format!("processed-{item} in {scope}"))
}

// On a paused clock: the seconds below take no time.
#[tokio::main(flavor = "current_thread", start_paused = true)]
async fn main() -> Result<(), Box<dyn StdError>> {
    let items = ["item1", "item2", "item3", "item4", "item5"].map(String::from);
    let start = Instant::now();

    // The items run in the caller's task, and so in its scope.
    let run =
        async { process_concurrently(items.clone(), process).max_concurrency(3).timeout_per_item(5 * SECOND).await };
    let results = Scope::root("batch-processing").within(run).await?;
    assert_eq!(start.elapsed(), 2 * SECOND);
    assert_eq!(results.len(), 5);
    assert_eq!(results[4], "processed-item5 in batch-processing");
    println!("{results:#?}");

    // From a stream: the sender waits while there is no room for another item.
    let (sender, stream) = channel(1);
    let producer = tokio::spawn(async move {
        for item in items {
            sender.send(item).await?;
        }
        Ok::<_, ziggurat::stream::Closed<String>>(())
    });
    let (results, summary) = process_concurrently(stream, process).max_concurrency(3).with_summary().await;
    producer.await??;
    assert_eq!(results?.len(), 5);
    println!("from a stream: {summary}");

    // With a service, each call goes through all of its layers. This one fails at first, and is retried.
    let calls = Cell::new(0);
    let service =
        ServiceBuilder::new().layer(RetryLayer::new()).map_err(Error::Service).service(service_fn(|item: u32| {
            calls.set(calls.get() + 1);
            let fails = calls.get() == 2;
            async move { if fails { Err(io::Error::other("busy")) } else { Ok(item * item) } }
        }));
    let squares = call_concurrently(1..=4, service).max_concurrency(2).await?;
    assert_eq!(squares, [1, 4, 9, 16]);
    println!("over a service: {squares:?}");
    Ok(())
}
