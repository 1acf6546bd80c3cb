//! Bad input: sizes of zero, and sources that end at once, fail, or never end.

use std::{
    convert::Infallible,
    panic::{AssertUnwindSafe, catch_unwind},
    time::Duration,
};

use tokio_stream::{StreamExt, iter};
use ziggurat::concurrent::{Cause, ItemError, process_concurrently};

fn nothing() -> impl FnMut(u32) -> std::future::Ready<Result<u32, Infallible>> {
    |item| std::future::ready(Ok(item))
}

#[test]
fn a_size_of_zero_panics_with_its_name() {
    let message = |f: &dyn Fn()| {
        let panic = catch_unwind(AssertUnwindSafe(f)).unwrap_err();
        (*panic.downcast_ref::<&str>().unwrap()).to_owned()
    };
    let process = || process_concurrently([1], nothing());
    assert_eq!(message(&|| drop(process().max_concurrency(0))), "max_concurrency must be at least 1, not 0");
    assert_eq!(message(&|| drop(process().in_batches(0))), "size must be at least 1, not 0");
    assert_eq!(message(&|| drop(process().in_sliding_batches(0))), "size must be at least 1, not 0");
}

/// Shows: P1
#[tokio::test(start_paused = true)]
async fn a_source_that_ends_at_once_answers_nothing() {
    assert_eq!(process_concurrently([], nothing()).await, Ok(vec![]));
    assert_eq!(process_concurrently([], nothing()).in_batches(3).continue_on_error().await, []);
    assert_eq!(process_concurrently(iter([]), nothing()).unordered().next().await, None);
    let mut ordered = process_concurrently([], nothing()).ordered();
    assert_eq!(ordered.next().await, None);
    assert_eq!(ordered.next().await, None);
}

/// A source that can fail passes its results to the handler.
///
/// Shows: P4
#[tokio::test(start_paused = true)]
async fn a_source_that_fails_is_the_failure_of_the_item_in_its_place() {
    let rows = || iter([Ok(1), Err("lost"), Ok(3)]);
    let handler = |row: Result<u32, &'static str>| async move { Ok(row? * 10) };
    let lost = ItemError { index: 1, cause: Cause::Failed("lost") };
    assert_eq!(process_concurrently(rows(), handler).await, Err(lost.clone()));
    assert_eq!(process_concurrently(rows(), handler).continue_on_error().await, [Ok(10), Err(lost), Ok(30)]);
}

/// Shows: P4
#[tokio::test(start_paused = true)]
async fn a_source_that_never_ends_ends_with_the_first_failure() {
    let outcome = process_concurrently(0_u32.., |item: u32| async move {
        tokio::time::sleep(Duration::from_secs(1)).await;
        if item < 100 { Ok(()) } else { Err("enough") }
    })
    .max_concurrency(7);
    assert_eq!(outcome.await, Err(ItemError { index: 100, cause: Cause::Failed("enough") }));
}

/// A wrong length of a source is believed only until it ends.
#[tokio::test(start_paused = true)]
async fn a_source_that_lies_about_its_length_loses_nothing() {
    struct Liar(std::ops::Range<u32>);
    impl Iterator for Liar {
        type Item = u32;
        fn next(&mut self) -> Option<u32> {
            self.0.next()
        }
        fn size_hint(&self) -> (usize, Option<usize>) {
            (100, Some(100))
        }
    }
    let mut last = None;
    let results = process_concurrently(Liar(0..5), nothing())
        .in_batches(2)
        .on_progress(|progress| {
            last = Some((progress.finished(), progress.total(), progress.batch().map(|batch| batch.number)))
        })
        .await;
    assert_eq!(results.unwrap(), [0, 1, 2, 3, 4]);
    assert_eq!(last, Some((5, Some(5), Some(3))));
}
