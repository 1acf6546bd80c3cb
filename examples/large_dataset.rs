//! Sends a million rows through a pipeline, a hundred at a time, in the memory of a few batches.
//!
//! A counting allocator measures and asserts the peak. The whole data would take 64 times as much.

use std::{error::Error as StdError, io, pin::pin, time::Instant};

use tokio_stream::StreamExt as _;
use ziggurat::{
    concurrent::{Progress, process_concurrently},
    stream::{Stream, StreamExt as _, generate},
};

const ROWS: u64 = 1_000_000;
const BATCH: u64 = 100;

struct Row {
    id: u64,
    #[expect(dead_code, reason = "padding")]
    payload: Vec<u8>,
}

/// Yields rows like a database cursor: on demand, one by one.
fn rows() -> impl Stream<Item = Row> {
    generate(|rows| async move {
        for id in 0..ROWS {
            if rows.send(Row { id, payload: vec![0; 256] }).await.is_err() {
                break;
            }
        }
    })
}

/// Simulates an insert of all rows at once.
async fn process_batch(batch: Vec<Row>) -> Result<(usize, u64), io::Error> {
    tokio::task::yield_now().await;
    Ok((batch.len(), batch.iter().map(|row| row.id).sum()))
}

async fn run() -> Result<(u64, u64), Box<dyn StdError>> {
    let start = Instant::now();
    let mut results = pin!(
        process_concurrently(Box::pin(rows().batches(BATCH as usize)), process_batch)
            .max_concurrency(4)
            .on_progress(|progress: &Progress| {
                if (progress.finished() as u64 * BATCH).is_multiple_of(100_000) {
                    println!("processed {} rows", progress.finished() as u64 * BATCH);
                }
            })
            .unordered()
    );
    let (mut processed, mut sum) = (0, 0);
    while let Some(result) = results.next().await {
        let (rows, ids) = result?;
        processed += rows as u64;
        sum += ids;
    }
    println!("{} batches in {:?}", results.summary().ok, start.elapsed());
    Ok((processed, sum))
}

fn main() -> Result<(), Box<dyn StdError>> {
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    let mut outcome = None;
    let memory = allocation_counter::measure(|| outcome = Some(runtime.block_on(run())));

    let (processed, sum) = outcome.ok_or("it ran")??;
    assert_eq!((processed, sum), (ROWS, ROWS * (ROWS - 1) / 2));

    // Four batches in flight, one that is being filled, and their overhead, not the 288 MB of all rows.
    println!("peak memory: {} KiB", memory.bytes_max / 1024);
    assert!(memory.bytes_max < 512 * 1024, "{} bytes", memory.bytes_max);
    Ok(())
}
