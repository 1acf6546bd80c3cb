//! Streams: a generator that runs in a scope, batches by number and by time, and two streams as one.

use std::{error::Error as StdError, time::Duration};

use tokio::time::{Instant, sleep};
use tokio_stream::StreamExt as _;
use ziggurat::{
    Scope,
    stream::{Stream, StreamExt as _, generate, merge},
};

const MILLIS: Duration = Duration::from_millis(1);

/// An async generator. It runs while its stream is read, and is dropped with it.
fn data_stream(items: u32) -> impl Stream<Item = String> {
    generate(move |data| async move {
        for item in 0..items {
            sleep(100 * MILLIS).await;
            let scope = Scope::current().map_or_else(|| "no scope".to_owned(), |scope| scope.name().to_owned());
            if data.send(format!("data-{item} of {scope}")).await.is_err() {
                break; // the reader is gone
            }
        }
    })
}

// On a paused clock: the delays below take no time.
#[tokio::main(flavor = "current_thread", start_paused = true)]
async fn main() -> Result<(), Box<dyn StdError>> {
    // The generator runs in its scope, and its reader does not.
    let start = Instant::now();
    let scope = Scope::root("stream-processing");
    let mut stream = Box::pin(data_stream(10).within_scope(&scope));
    let mut read = 0;
    while let Some(item) = stream.next().await {
        assert_eq!(item, format!("data-{read} of stream-processing"));
        assert!(Scope::current().is_none());
        sleep(50 * MILLIS).await;
        read += 1;
    }
    assert_eq!(read, 10);
    println!("read {read} items in {:?}", start.elapsed());

    // Batches of three, and then the rest.
    let batches: Vec<_> = data_stream(10).batches(3).map(|batch| batch.len()).collect().await;
    assert_eq!(batches, [3, 3, 3, 1]);
    println!("batches by number: {batches:?}");

    // Batches of three, but no batch is held back for more than 150 ms after its first item.
    let start = Instant::now();
    let mut batches = Box::pin(data_stream(3)).batches_within(3, 150 * MILLIS);
    assert_eq!(batches.next().await.map(|batch| batch.len()), Some(2));
    assert_eq!(start.elapsed(), 250 * MILLIS);
    assert_eq!(batches.next().await.map(|batch| batch.len()), Some(1));
    println!("batches by time: two items, then the third");

    // An error follows the items before it, which are not lost.
    let rows = tokio_stream::iter([Ok(1), Ok(2), Ok(3), Err("the connection is gone")]);
    let batches: Vec<_> = rows.try_batches(2).collect().await;
    assert_eq!(batches, [Ok(vec![1, 2]), Ok(vec![3]), Err("the connection is gone")]);

    // Two streams as one, in order of arrival, until one of them ends.
    let ticks = generate(|ticks| async move {
        while ticks.send("tick".to_owned()).await.is_ok() {
            sleep(250 * MILLIS).await
        }
    });
    let mut merged = Box::pin(merge(data_stream(4), ticks).until_either_ends());
    let mut ticks = 0;
    while let Some(item) = merged.next().await {
        ticks += usize::from(item == "tick");
    }
    assert_eq!(ticks, 2); // at once, and after 250 ms: after 400 ms the data had ended
    println!("merged with a clock: {ticks} ticks beside four items");
    Ok(())
}
