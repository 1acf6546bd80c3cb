//! Streams that are written to, and merged streams.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    future::poll_fn,
    num::ParseIntError,
    panic::{AssertUnwindSafe, catch_unwind},
    task::Poll,
    time::Duration,
};

use proptest::{collection::vec, prelude::*};
use tokio::{
    task::yield_now,
    time::{Instant, advance, sleep},
};
use tokio_stream::{StreamExt as _, empty, iter, pending};
use ziggurat::{
    stream::{Closed, Sender, Stream, channel, generate, merge, try_generate},
    testing::TestTask,
};

const SECOND: Duration = Duration::from_secs(1);

/// Shows: S4
#[tokio::test(start_paused = true)]
async fn a_producer_that_is_too_quick_waits_for_its_reader() {
    let (sender, mut stream) = channel(2);
    let mut third = {
        sender.send(1).await.unwrap();
        sender.send(2).await.unwrap();
        TestTask::new(async { sender.send(3).await })
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
    let mut waiting = TestTask::new(async { second.send("waiting").await });
    assert!(waiting.poll().is_pending());
    drop(stream);
    assert_eq!(waiting.poll(), Poll::Ready(Err(Closed { item: "waiting" })));
    assert_eq!(sender.send("late").await, Err(Closed { item: "late" }));
    sender.closed().await;
    assert_eq!(
        sender.send("late").await.unwrap_err().to_string(),
        "the stream was dropped or has ended: the item will not be read"
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
async fn a_generator_is_never_ahead_of_its_reader() {
    let (made, sent) = (Cell::new(0), Cell::new(0));
    let mut stream = Box::pin(generate(|numbers| {
        let (made, sent) = (&made, &sent);
        async move {
            for number in 1.. {
                made.set(number);
                if numbers.send(number).await.is_err() {
                    break;
                }
                sent.set(number);
            }
        }
    }));
    sleep(SECOND).await;
    assert_eq!((made.get(), sent.get()), (0, 0));
    for number in 1..5 {
        assert_eq!(stream.next().await, Some(number));
        assert_eq!((made.get(), sent.get()), (number, number - 1));
    }
}

/// Shows: S1, S4
#[tokio::test(start_paused = true)]
async fn items_that_no_reader_took_are_still_in_the_queue_of_a_generator() {
    let queue = RefCell::new(VecDeque::from([1, 2, 3]));
    let stream = generate(|items| {
        let queue = &queue;
        async move {
            let next = || queue.borrow_mut().pop_front();
            while let Some(item) = next() {
                items.send(item).await.unwrap();
            }
        }
    });
    assert_eq!(stream.take(1).collect::<Vec<_>>().await, [1]);
    assert_eq!(*queue.borrow(), [2, 3]);
}

/// Shows: S1
#[tokio::test(start_paused = true)]
async fn a_generator_ends_with_its_producer_though_a_sender_is_alive_elsewhere() {
    let elsewhere = RefCell::new(None);
    let mut stream = Box::pin(generate(|numbers| {
        elsewhere.replace(Some(numbers.clone()));
        async move {
            numbers.send(1).await.unwrap();
            sleep(SECOND).await;
        }
    }));
    let elsewhere = elsewhere.take().unwrap();
    assert_eq!(stream.next().await, Some(1));
    let mut closed = TestTask::new(elsewhere.closed());
    assert!(closed.poll().is_pending());
    // The item is offered before the producer ends, and taken after it.
    let mut last = TestTask::new(elsewhere.send(2));
    assert!(last.poll().is_pending());
    assert_eq!(stream.next().await, Some(2));
    let mut backlog = TestTask::new(elsewhere.send(3));
    let start = Instant::now();
    let mut next = TestTask::new(stream.next());
    assert!(next.poll().is_pending());
    advance(SECOND).await;
    assert!(backlog.poll().is_pending());
    assert_eq!(next.poll(), Poll::Ready(Some(3)));
    drop(next);
    assert_eq!((stream.next().await, start.elapsed()), (None, SECOND));
    assert_eq!((last.poll(), backlog.poll()), (Poll::Ready(Ok(())), Poll::Ready(Ok(()))));
    assert_eq!((closed.times_woken(), closed.poll()), (1, Poll::Ready(())));
    assert_eq!(elsewhere.send(4).await, Err(Closed { item: 4 }));
    assert_eq!(stream.next().await, None);
}

/// Shows: S1, S4
#[tokio::test(start_paused = true)]
async fn to_send_after_a_generated_stream_was_dropped_is_an_error_and_the_item_comes_back() {
    let elsewhere = RefCell::new(None);
    let mut stream = Box::pin(generate(|items: Sender<&str>| {
        elsewhere.replace(Some(items.clone()));
        async move { items.closed().await }
    }));
    let elsewhere = elsewhere.take().unwrap();
    assert!(TestTask::new(stream.next()).poll().is_pending());
    let mut waiting = TestTask::new(elsewhere.send("waiting"));
    assert!(waiting.poll().is_pending());
    drop(stream);
    assert_eq!((waiting.times_woken(), waiting.poll()), (1, Poll::Ready(Err(Closed { item: "waiting" }))));
    assert_eq!(elsewhere.send("late").await, Err(Closed { item: "late" }));
    elsewhere.closed().await;
}

/// Shows: S1
#[tokio::test(start_paused = true)]
async fn a_send_that_is_dropped_before_its_item_was_taken_takes_it_back() {
    let stream = generate(|items| async move {
        for item in 1..=3 {
            let mut dropped = Box::pin(items.send(-item));
            let mut kept = Box::pin(items.send(item));
            poll_fn(|cx| {
                assert!(dropped.as_mut().poll(cx).is_pending() && kept.as_mut().poll(cx).is_pending());
                Poll::Ready(())
            })
            .await;
            drop(dropped);
            kept.await.unwrap();
        }
    });
    assert_eq!(stream.collect::<Vec<_>>().await, [1, 2, 3]);
}

/// Shows: S1
#[tokio::test(start_paused = true)]
async fn an_error_of_a_producer_is_the_last_item_after_those_before_it() {
    let lines = |lines: [&'static str; 3]| {
        try_generate(|numbers| async move {
            for line in lines {
                numbers.send(line.parse::<u32>()?).await.unwrap();
            }
            Ok::<_, ParseIntError>(())
        })
    };
    assert_eq!(lines(["1", "2", "3"]).collect::<Vec<_>>().await, [Ok(1), Ok(2), Ok(3)]);
    let error = "two".parse::<u32>().unwrap_err();
    assert_eq!(lines(["1", "two", "3"]).collect::<Vec<_>>().await, [Ok(1), Err(error.clone())]);

    // Also after an item that was offered elsewhere by then; nothing follows the error.
    let elsewhere = RefCell::new(None);
    let mut stream = Box::pin(try_generate(|numbers| {
        elsewhere.replace(Some(numbers));
        async { "two".parse::<u32>().map(drop) }
    }));
    let elsewhere = elsewhere.take().unwrap();
    let mut offered = TestTask::new(elsewhere.send(7_u32));
    assert!(offered.poll().is_pending());
    let items = [stream.next().await, stream.next().await, stream.next().await, stream.next().await];
    assert_eq!(items, [Some(Ok(7)), Some(Err(error)), None, None]);
}

/// Shows: S1, S4
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn senders_on_many_threads_hand_over_every_item_once_and_in_order() {
    let stream = Box::pin(generate(|items| async move {
        let mut senders = tokio::task::JoinSet::new();
        for sender in 0..4_usize {
            let items = items.clone();
            senders.spawn(async move {
                for number in 0..250_usize {
                    items.send((sender, number)).await.unwrap();
                }
            });
        }
        senders.join_all().await;
    }));
    let mut next = [0; 4];
    let all: Vec<_> = stream.collect().await;
    for (sender, number) in all {
        assert_eq!(number, next[sender]);
        next[sender] += 1;
    }
    assert_eq!(next, [250; 4]);
}

/// A sender that always has an item does not keep the producer from ending.
///
/// Shows: S1
#[tokio::test(start_paused = true)]
async fn a_producer_gets_its_turn_beside_a_sender_that_always_has_something() {
    let elsewhere = RefCell::new(None);
    let mut stream = Box::pin(generate(|numbers| {
        elsewhere.replace(Some(numbers));
        async { yield_now().await }
    }));
    let elsewhere = elsewhere.take().unwrap();
    let mut taken = 0;
    let mut waiting = TestTask::new(elsewhere.send(0));
    while waiting.poll().is_pending() && taken < 100 {
        assert_eq!(stream.next().await, Some(taken));
        taken += 1;
        assert_eq!(waiting.poll(), Poll::Ready(Ok(())));
        waiting = TestTask::new(elsewhere.send(taken));
    }
    assert!(taken < 100, "the producer has ended");
}

/// Shows: S1
#[tokio::test(start_paused = true)]
async fn a_producer_without_its_sender_is_run_to_its_end() {
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
    let mut read = TestTask::new(stream.collect::<Vec<_>>());
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
async fn until_either_has_ended_there_is_no_item_beside_an_empty_stream() {
    assert_eq!(merge(iter([1, 2]), empty()).until_either_ends().next().await, None);
    assert_eq!(merge(empty(), iter([1, 2])).until_either_ends().next().await, None);
    // Nor after the last item of a stream that knows it was the last.
    let both = merge(iter([1, 3]), iter([2, 4, 6])).until_either_ends();
    assert_eq!(both.collect::<Vec<_>>().await, [1, 2, 3]);
    // A stream that does not know is polled in its turn.
    let silent = merge(generate(|_: Sender<u32>| async {}), iter([1, 2])).until_either_ends();
    let mut silent = std::pin::pin!(silent);
    assert_eq!(silent.next().await, None);
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
        let mut read = TestTask::new(merge(iter(left.clone()), iter(right.clone())).collect::<Vec<_>>());
        let Poll::Ready(all) = read.poll() else { panic!("it is always ready") };
        let (from_left, from_right): (Vec<_>, Vec<_>) = all.into_iter().partition(|item| *item < 100);
        prop_assert_eq!((from_left, from_right), (left, right));
    }
}
