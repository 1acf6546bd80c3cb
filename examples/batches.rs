//! Processes a thousand items in batches of 50, ten at a time, with a progress bar: with a barrier after each batch,
//! and sliding.

use std::{convert::Infallible, error::Error as StdError, time::Duration};

use indicatif::{ProgressBar, ProgressStyle};
use tokio::time::{Instant, sleep};
use ziggurat::concurrent::{Progress, process_concurrently};

const ITEMS: u64 = 1_000;
const BATCH: usize = 50;

/// One item of each batch takes ten times as long as the others.
async fn process(item: u64) -> Result<u64, Infallible> {
    let slow = item.is_multiple_of(BATCH as u64);
    sleep(Duration::from_millis(if slow { 100 } else { 10 })).await;
    Ok(item * 2)
}

/// Draws nothing without a terminal.
fn progress_bar() -> Result<ProgressBar, Box<dyn StdError>> {
    let bar = ProgressBar::new(ITEMS);
    bar.set_style(ProgressStyle::with_template("{bar:40} {pos}/{len} {msg}")?);
    Ok(bar)
}

// On a paused clock: the delays below take no time.
#[tokio::main(flavor = "current_thread", start_paused = true)]
async fn main() -> Result<(), Box<dyn StdError>> {
    let mut took = Vec::new();
    for sliding in [false, true] {
        let (bar, start) = (progress_bar()?, Instant::now());
        let mut batches = Vec::new();

        let process = process_concurrently(0..ITEMS, process).max_concurrency(10);
        let process = if sliding { process.in_sliding_batches(BATCH) } else { process.in_batches(BATCH) };
        let results = process
            .on_progress(|progress: &Progress| {
                bar.set_position(progress.finished() as u64);
                if let Some(batch) = progress.batch() {
                    bar.set_message(batch.to_string());
                    batches.push(batch.to_string());
                }
            })
            .await?;
        bar.finish();

        assert_eq!(results.len(), 1_000);
        assert_eq!(results[999], 1_998);
        assert_eq!((batches.len(), batches.last().map(String::as_str)), (20, Some("batch 20 of 20")));
        took.push(start.elapsed());
    }

    // With a barrier, each batch takes as long as its slowest item.
    let [barrier, sliding] = took[..] else { unreachable!("two runs") };
    assert!(sliding < barrier);
    println!("20 batches: {barrier:?} with a barrier, {sliding:?} sliding");
    Ok(())
}
