//! Batches: by number, by time, and of streams that fail.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    time::Duration,
};

use proptest::{collection::vec, option, prelude::*};
use tokio::time::{Instant, sleep, timeout};
use tokio_stream::{StreamExt as _, iter, pending};
use ziggurat::stream::{Stream, StreamExt as _, generate};

const SECOND: Duration = Duration::from_secs(1);

/// Returns each item after the pause before it, and ends after the last pause.
fn paced<T>(items: Vec<(u64, T)>, last: u64) -> impl Stream<Item = T> + Unpin {
    Box::pin(generate(move |sender| async move {
        for (pause, item) in items {
            pause_of(pause).await;
            if sender.send(item).await.is_err() {
                return;
            }
        }
        pause_of(last).await;
    }))
}

async fn pause_of(millis: u64) {
    if millis > 0 {
        sleep(Duration::from_millis(millis)).await;
    }
}

/// Shows: S2
#[tokio::test(start_paused = true)]
async fn batches_are_lists_of_exactly_n_and_then_the_rest() {
    let batches = |items| iter(0..items).batches(3).collect::<Vec<_>>();
    assert_eq!(batches(7).await, [vec![0, 1, 2], vec![3, 4, 5], vec![6]]);
    assert_eq!(batches(6).await, [vec![0, 1, 2], vec![3, 4, 5]]);
    assert!(batches(0).await.is_empty());
    assert_eq!(iter(0..3).batches(usize::MAX).next().await, Some(vec![0, 1, 2]));
}

/// Shows: S2
#[tokio::test(start_paused = true)]
async fn the_timer_of_a_batch_starts_at_its_first_item() {
    let start = Instant::now();
    let source = paced(vec![(5_000, 1), (900, 2), (900, 3), (0, 4)], 100_000);
    let mut batches = source.batches_within(3, SECOND);
    assert_eq!(batches.next().await, Some(vec![1, 2]));
    assert_eq!(start.elapsed(), 6 * SECOND);
    // The next batch's first item came at 6.8 s, and that batch is not full.
    assert_eq!(batches.next().await, Some(vec![3, 4]));
    assert_eq!(start.elapsed(), Duration::from_millis(7_800));
    assert_eq!(batches.next().await, None);
}

/// Shows: S2
#[tokio::test(start_paused = true)]
async fn with_no_time_a_batch_is_what_is_ready() {
    let source = paced(vec![(0, 1), (1, 2)], 0);
    let batches: Vec<_> = source.batches_within(10, Duration::ZERO).collect().await;
    assert_eq!(batches, [[1], [2]]);
    let all: Vec<_> = iter(0..5).batches_within(10, Duration::ZERO).collect().await;
    assert_eq!(all, [vec![0, 1, 2, 3, 4]]);
}

/// Bad input: any duration is valid.
#[tokio::test(start_paused = true)]
async fn the_longest_time_never_ends_a_batch() {
    let source = paced(vec![(0, 1), (1_000_000_000, 2)], 0);
    assert_eq!(source.batches_within(10, Duration::MAX).next().await, Some(vec![1, 2]));
}

/// Shows: S2
#[tokio::test(start_paused = true)]
async fn an_error_of_the_source_comes_after_the_items_before_it() {
    let source = || iter([Ok(1), Ok(2), Ok(3), Err("lost"), Err("again"), Ok(4)]);
    let expected = [Ok(vec![1, 2]), Ok(vec![3]), Err("lost"), Err("again"), Ok(vec![4])];
    assert_eq!(source().try_batches(2).collect::<Vec<_>>().await, expected);
    assert_eq!(source().try_batches_within(2, SECOND).collect::<Vec<_>>().await, expected);
    // A plain batch holds the error in its place.
    assert_eq!(source().batches(4).next().await, Some(vec![Ok(1), Ok(2), Ok(3), Err("lost")]));
}

/// At once: a batch that is ended by an error does not wait for its time.
///
/// Shows: S2
#[tokio::test(start_paused = true)]
async fn an_error_ends_a_batch_before_its_time() {
    let start = Instant::now();
    let mut batches = iter([Ok(1), Err("lost")]).chain(pending()).try_batches_within(9, SECOND);
    assert_eq!(batches.next().await, Some(Ok(vec![1])));
    assert_eq!(batches.next().await, Some(Err("lost")));
    assert_eq!(start.elapsed(), Duration::ZERO);
}

/// A reader may stop waiting and come back.
///
/// Shows: S2
#[tokio::test(start_paused = true)]
async fn a_wait_that_is_given_up_loses_no_item_and_no_time() {
    let start = Instant::now();
    let mut batches = iter([1, 2]).chain(pending()).batches_within(3, SECOND);
    assert!(timeout(SECOND / 2, batches.next()).await.is_err());
    assert_eq!(batches.next().await, Some(vec![1, 2]));
    assert_eq!(start.elapsed(), SECOND);
}

/// Bad input: an endless source that is always ready, and a batch that is never full.
///
/// Shows: S2
#[tokio::test]
async fn a_source_that_is_always_ready_does_not_keep_a_batch_from_its_time() {
    let source = iter(0_u64..);
    let batch = source.batches_within(usize::MAX, Duration::from_millis(1)).next().await.unwrap();
    assert_eq!(batch.last().map(|last| last + 1), u64::try_from(batch.len()).ok());
}

#[test]
fn a_size_of_zero_panics_with_its_name() {
    let panics: [fn(); 3] = [
        || drop(iter(0..1).batches(0)),
        || drop(iter(0..1).batches_within(0, SECOND)),
        || drop(iter([Ok::<_, ()>(1)]).try_batches(0)),
    ];
    for panics in panics {
        let panic = catch_unwind(AssertUnwindSafe(panics)).unwrap_err();
        assert_eq!(panic.downcast_ref::<&str>(), Some(&"size must be at least 1, not 0"));
    }
}

#[test]
fn how_many_batches_there_will_be_is_known_where_the_source_knows_its_length() {
    assert_eq!(iter(0..7).batches(3).size_hint(), (3, Some(3)));
    assert_eq!(iter(0..6).batches(3).size_hint(), (2, Some(2)));
    assert_eq!(iter(0..7).batches_within(3, SECOND).size_hint(), (0, Some(8)));
    assert_eq!(iter(0_u64..).batches(3).size_hint().1, None);
}

/// A batch: when it came, and its values.
type Came = (u64, Result<Vec<usize>, usize>);

/// The batches of a source whose items come at these times, recomputed from the list.
fn model(items: &[(u64, bool)], last: u64, size: usize, within: Option<u64>) -> Vec<Came> {
    let mut came: Vec<Came> = Vec::new();
    let mut begun: Vec<(u64, usize)> = Vec::new();
    let mut now = 0;
    let due = |begun: &[(u64, usize)]| within.and_then(|within| begun.first().map(|(first, _)| first + within));
    let indices = |begun: &mut Vec<(u64, usize)>| begun.drain(..).map(|(_, index)| index).collect::<Vec<_>>();
    for (index, (pause, is_error)) in items.iter().enumerate() {
        now += pause;
        // An item that comes in the moment in which the batch's time ends is still in it, if there was no wait.
        if let Some(due) = due(&begun)
            && (due < now || (due == now && *pause > 0))
        {
            came.push((due, Ok(indices(&mut begun))));
        }
        if *is_error {
            if !begun.is_empty() {
                came.push((now, Ok(indices(&mut begun))));
            }
            came.push((now, Err(index)));
        } else {
            begun.push((now, index));
            if begun.len() == size {
                came.push((now, Ok(indices(&mut begun))));
            }
        }
    }
    now += last;
    if !begun.is_empty() {
        let due = due(&begun).map_or(now, |due| due.min(now));
        came.push((due, Ok(indices(&mut begun))));
    }
    came
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    /// Shows: S2
    #[test]
    fn batches_are_what_the_model_says_and_together_they_are_the_source(
        // Odd pauses and even times, so that no item comes in the moment in which a time ends.
        pauses in vec((prop_oneof![2 => Just(0), 3 => (0..20_u64).prop_map(|half| half * 40 + 1)], prop::bool::weighted(0.1)), 0..30),
        last in 0..500_u64,
        size in 1..6_usize,
        within in option::of((1..20_u64).prop_map(|half| half * 40)),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        let came = runtime.block_on(async {
            let start = Instant::now();
            let items = pauses.iter().enumerate().map(|(index, (pause, is_error))| {
                (*pause, if *is_error { Err(index) } else { Ok(index) })
            });
            let source = paced(items.collect(), last);
            let within = within.map(Duration::from_millis);
            let mut batches = match within {
                Some(within) => source.try_batches_within(size, within),
                None => source.try_batches(size),
            };
            let mut came = Vec::new();
            while let Some(batch) = batches.next().await {
                came.push((u64::try_from(start.elapsed().as_millis()).unwrap(), batch));
            }
            came
        });
        prop_assert!(came.iter().all(|(_, batch)| batch.as_ref().map_or(true, |batch| (1..=size).contains(&batch.len()))));
        let all: Vec<_> = came.iter().flat_map(|(_, batch)| batch.clone().unwrap_or_else(|index| vec![index])).collect();
        prop_assert_eq!(all, (0..pauses.len()).collect::<Vec<_>>());
        prop_assert_eq!(came, model(&pauses, last, size, within));
    }
}
