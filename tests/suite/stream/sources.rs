//! Streams that are written to, and two streams as one.

use std::{
    cell::Cell,
    panic::{AssertUnwindSafe, catch_unwind},
    time::Duration,
};

use proptest::{collection::vec, prelude::*};
use tokio::time::{Instant, sleep};
use tokio_stream::{StreamExt as _, iter, pending};
use ziggurat::{
    stream::{Closed, Sender, Stream, channel, generate, merge},
    testing::Task,
};

const SECOND: Duration = Duration::from_secs(1);

/// Shows: S4
#[tokio::test(start_paused = true)]
async fn a_producer_that_is_too_quick_waits_for_its_reader() {
    let (sender, mut stream) = channel(2);
    let mut third = {
        sender.send(1).await.unwrap();
        sender.send(2).await.unwrap();
        Task::new(async { sender.send(3).await })
    };
    assert!(third.poll().is_pending());
    assert_eq!(stream.next().await, Some(1));
    assert_eq!(third.times_woken(), 1);
    assert!(third.poll().is_ready());
    assert_eq!(stream.size_hint(), (2, None));
    drop(third);
    drop(sender);
    assert_eq!(stream.collect::<Vec<_>>().await, [2, 3]);
}

/// Shows: S4
#[tokio::test(start_paused = true)]
async fn to_send_after_the_stream_was_dropped_is_an_error_and_the_item_comes_back() {
    let (sender, stream) = channel(1);
    let second = sender.clone();
    sender.send("kept").await.unwrap();
    let mut waiting = Task::new(async { second.send("waiting").await });
    assert!(waiting.poll().is_pending());
    drop(stream);
    assert_eq!(waiting.poll(), std::task::Poll::Ready(Err(Closed { item: "waiting" })));
    assert_eq!(sender.send("late").await, Err(Closed { item: "late" }));
    sender.closed().await;
    assert_eq!(
        sender.send("late").await.unwrap_err().to_string(),
        "the stream was dropped, nobody reads what is sent to it"
    );
}

/// Bad input.
#[test]
fn a_channel_without_room_panics_with_its_name() {
    let panic = catch_unwind(|| channel::<u32>(0)).unwrap_err();
    assert_eq!(panic.downcast_ref::<&str>(), Some(&"capacity must be at least 1, not 0"));
}

/// Shows: S1, S4
#[tokio::test(start_paused = true)]
async fn a_generator_is_never_more_than_one_item_ahead_of_its_reader() {
    let made = Cell::new(0);
    let mut stream = Box::pin(generate(|numbers| {
        let made = &made;
        async move {
            for number in 0.. {
                made.set(number);
                if numbers.send(number).await.is_err() {
                    break;
                }
            }
        }
    }));
    sleep(SECOND).await;
    assert_eq!(made.get(), 0);
    for number in 0..5 {
        assert_eq!(stream.next().await, Some(number));
        assert!(made.get() <= number + 1, "{made:?} after {number}");
    }
}

/// Shows: S1
#[tokio::test(start_paused = true)]
async fn a_generator_ends_with_its_producer_after_the_backlog() {
    let start = Instant::now();
    let stream = generate(|numbers| async move {
        numbers.send(1).await.unwrap();
        // Moved elsewhere, it is written to from there.
        tokio::spawn(async move {
            sleep(SECOND).await;
            numbers.send(2).await.unwrap();
        });
    });
    assert_eq!(stream.collect::<Vec<_>>().await, [1, 2]);
    assert_eq!(start.elapsed(), SECOND);

    // Without its sender it can give nothing more, and still comes to its end.
    let ended = Cell::new(false);
    let silent = generate(|numbers: Sender<u32>| async {
        drop(numbers);
        sleep(SECOND).await;
        ended.set(true);
    });
    assert!(silent.collect::<Vec<_>>().await.is_empty());
    assert!(ended.get());

    let mut empty = Box::pin(generate(|_: Sender<u32>| async {}));
    assert_eq!((empty.next().await, empty.next().await), (None, None));
}

#[test]
fn a_panic_of_a_producer_is_one_of_the_stream() {
    let stream = generate(|_: Sender<u32>| async { panic!("no more") });
    let mut read = Task::new(stream.collect::<Vec<_>>());
    assert!(catch_unwind(AssertUnwindSafe(|| read.poll())).is_err());
}

/// Shows: S5
#[tokio::test(start_paused = true)]
async fn two_streams_are_merged_until_both_have_ended() {
    let slow = Box::pin(generate(|items| async move {
        for item in [10, 20] {
            sleep(SECOND).await;
            items.send(item).await.unwrap();
        }
    }));
    let merged = merge(slow, iter([1, 2, 3]));
    assert_eq!(merged.size_hint(), (3, None));
    assert_eq!(merged.collect::<Vec<_>>().await, [1, 2, 3, 10, 20]);
    assert_eq!(merge(iter(0..2), iter(0..0)).collect::<Vec<_>>().await, [0, 1]);
    assert_eq!(merge(iter(0..0), iter(0..0)).next().await, None);
}

/// Shows: S5
#[tokio::test(start_paused = true)]
async fn or_until_either_has_and_the_other_is_dropped() {
    struct Sets<'a>(&'a Cell<bool>);
    impl Drop for Sets<'_> {
        fn drop(&mut self) {
            self.0.set(true);
        }
    }
    for short_is_left in [true, false] {
        let dropped = Cell::new(false);
        let sets = Sets(&dropped);
        let endless = Box::pin(iter([10]).chain(pending()).map(move |item| {
            let _ = &sets;
            item
        }));
        let short = Box::pin(iter([1, 2]));
        type Numbers<'a> = std::pin::Pin<Box<dyn Stream<Item = i32> + 'a>>;
        let (left, right): (Numbers, Numbers) = if short_is_left { (short, endless) } else { (endless, short) };
        let mut merged = merge(left, right).until_either_ends();
        let mut all = Vec::new();
        while let Some(item) = merged.next().await {
            all.push(item);
        }
        all.sort_unstable();
        assert_eq!(all, [1, 2, 10]);
        assert!(dropped.get());
        assert_eq!(merged.next().await, None);
    }
}

/// Shows: S5
#[tokio::test(start_paused = true)]
async fn a_stream_that_always_has_something_leaves_the_other_its_turns() {
    let endless = |item: u32| iter(std::iter::repeat(item));
    let first: Vec<_> = merge(endless(1), endless(2)).take(6).collect().await;
    assert_eq!(first, [1, 2, 1, 2, 1, 2]);
}

proptest! {
    /// Shows: S5
    #[test]
    fn merging_keeps_the_order_of_each_and_loses_nothing(left in vec(0..100_u32, 0..20), right in vec(100..200_u32, 0..20)) {
        let mut read = Task::new(merge(iter(left.clone()), iter(right.clone())).collect::<Vec<_>>());
        let std::task::Poll::Ready(all) = read.poll() else { panic!("it is always ready") };
        let (from_left, from_right): (Vec<_>, Vec<_>) = all.into_iter().partition(|item| *item < 100);
        prop_assert_eq!((from_left, from_right), (left, right));
    }
}
