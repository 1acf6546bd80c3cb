//! Progress, batches and the summary.

use std::{convert::Infallible, time::Duration};

use tokio::time::{Instant, sleep};
use tokio_stream::{StreamExt, iter};
use ziggurat::{
    concurrent::{Progress, Summary, process_concurrently},
    stream::generate,
};

const SECOND: Duration = Duration::from_secs(1);

/// Ends in a different way for each item.
async fn various(item: u32) -> Result<u32, &'static str> {
    match item % 4 {
        1 => return Err("failed"),
        2 => sleep(60 * SECOND).await,
        3 => panic!("panicked"),
        _ => sleep(SECOND).await,
    }
    Ok(item)
}

fn counts(Summary { ok, failed, timed_out, panicked, elapsed, .. }: Summary) -> ([usize; 4], Duration) {
    ([ok, failed, timed_out, panicked], elapsed)
}

/// Shows: P5
#[tokio::test(start_paused = true)]
async fn a_summary_tells_what_became_of_the_items_and_how_long_it_took() {
    let run = || process_concurrently(0..9, various).timeout_per_item(2 * SECOND);
    let (results, summary) = run().continue_on_error().with_summary().await;
    assert_eq!(counts(summary), ([3, 2, 2, 2], 2 * SECOND));
    assert_eq!((summary.items(), results.len()), (9, 9));
    assert_eq!(summary.to_string(), "3 ok, 2 failed, 2 timed out, 2 panicked in 2s");

    let (first_failure, summary) = run().with_summary().await;
    assert_eq!(first_failure.unwrap_err().index, 1);
    assert_eq!(counts(summary), ([0, 1, 0, 0], Duration::ZERO));

    let mut stream = run().unordered();
    assert_eq!(counts(stream.summary()), ([0; 4], Duration::ZERO));
    while stream.next().await.is_some() {}
    assert_eq!(counts(stream.summary()), ([3, 2, 2, 2], 2 * SECOND));
}

/// The clock starts at the first poll.
///
/// Shows: P5
#[tokio::test(start_paused = true)]
async fn time_before_the_first_poll_does_not_count() {
    let run = process_concurrently([0], various).with_summary();
    sleep(10 * SECOND).await;
    assert_eq!(run.await.1.elapsed, SECOND);
}

/// Shows: P5
#[tokio::test(start_paused = true)]
async fn progress_is_told_after_each_item() {
    let mut told = Vec::new();
    process_concurrently(0..4, various)
        .timeout_per_item(2 * SECOND)
        .continue_on_error()
        .on_progress(|progress: &Progress| {
            told.push((progress.finished(), progress.total(), progress.batch(), progress.summary().elapsed));
        })
        .await;
    let zero = Duration::ZERO;
    let expected = [(1, zero), (2, zero), (3, SECOND), (4, 2 * SECOND)];
    assert_eq!(told, expected.map(|(finished, elapsed)| (finished, Some(4), None, elapsed)));
}

/// The reported batches, with the seconds at which they were reported.
async fn batches(
    source: impl tokio_stream::Stream<Item = u64> + Unpin,
    sliding: bool,
) -> (Vec<(String, u64)>, Vec<u64>) {
    let start = Instant::now();
    let mut told = Vec::new();
    let process = process_concurrently(source, |seconds: u64| async move {
        let started = start.elapsed().as_secs();
        sleep(SECOND * u32::try_from(seconds).unwrap()).await;
        Ok::<_, Infallible>(started)
    })
    .max_concurrency(2);
    let process = if sliding { process.in_sliding_batches(2) } else { process.in_batches(2) };
    let starts = process
        .on_progress(|progress: &Progress| {
            told.extend(progress.batch().map(|batch| (batch.to_string(), start.elapsed().as_secs())));
        })
        .await
        .unwrap();
    (told, starts)
}

/// Shows: P6
#[tokio::test(start_paused = true)]
async fn a_batch_waits_for_the_one_before() {
    let (told, starts) = batches(iter([3, 1, 1, 2, 1]), false).await;
    assert_eq!(starts, [0, 0, 3, 3, 5]);
    assert_eq!(
        told,
        [("batch 1 of 3", 3), ("batch 2 of 3", 5), ("batch 3 of 3", 6)].map(|(told, at)| (told.to_owned(), at))
    );
}

/// Shows: P6
#[tokio::test(start_paused = true)]
async fn sliding_batches_wait_for_nothing() {
    let (told, starts) = batches(iter([3, 1, 1, 2, 1]), true).await;
    assert_eq!(starts, [0, 0, 1, 2, 3]);
    assert_eq!(
        told,
        [("batch 1 of 3", 2), ("batch 2 of 3", 4), ("batch 3 of 3", 4)].map(|(told, at)| (told.to_owned(), at))
    );
}

/// Shows: P6
#[tokio::test(start_paused = true)]
async fn a_last_batch_of_a_source_of_unknown_length_is_told_when_that_ends() {
    let unknown = |items: Vec<u64>| iter(items).filter(|_| true);
    let (told, _) = batches(unknown(vec![1, 1, 1]), false).await;
    assert_eq!(told, [("batch 1", 1), ("batch 2 of 2", 2)].map(|(told, at)| (told.to_owned(), at)));
    let (told, _) = batches(unknown(vec![1, 1]), false).await;
    assert_eq!(told, [("batch 1", 1)].map(|(told, at)| (told.to_owned(), at)));

    // The items are done before the source reports its end.
    let slow_to_end = generate(|items| async move {
        for item in [0, 0, 0] {
            items.send(item).await.unwrap();
        }
        sleep(5 * SECOND).await;
    });
    let (told, _) = batches(Box::pin(slow_to_end), false).await;
    assert_eq!(told, [("batch 1", 0), ("batch 2 of 2", 5)].map(|(told, at)| (told.to_owned(), at)));
}
