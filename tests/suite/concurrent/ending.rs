//! How a run ends: failures, panics, and being dropped.

use std::{
    cell::{Cell, RefCell},
    convert::Infallible,
    error::Error as StdError,
    future::{IntoFuture, pending, poll_fn},
    mem,
    panic::{AssertUnwindSafe, catch_unwind},
    rc::Rc,
    task::{Poll, Waker},
    time::Duration,
};

use tokio::time::{Instant, sleep};
use tokio_stream::{StreamExt, iter};
use ziggurat::{
    concurrent::{Cause, ItemError, process_concurrently, split},
    testing::TestTask,
};

use super::Alive;

const SECOND: Duration = Duration::from_secs(1);

/// Shows: P4
#[tokio::test(start_paused = true)]
async fn the_first_failure_ends_it_with_its_index_after_the_siblings_are_dropped() {
    let alive = Alive::default();
    let start = Instant::now();
    let source = (0..10).map(|item| (item, alive.ticket()));
    let outcome = process_concurrently(source, |(item, ticket)| {
        let handled = alive.ticket();
        async move {
            let _held = (ticket, handled);
            sleep(SECOND * (10 - item)).await;
            if item == 3 { Err(format!("cannot process {item}")) } else { Ok(item) }
        }
    })
    .max_concurrency(5)
    .await;
    assert_eq!(alive.count(), 0);
    assert_eq!(outcome, Err(ItemError { index: 3, cause: Cause::Failed("cannot process 3".to_owned()) }));
    assert_eq!(start.elapsed(), 7 * SECOND);
}

/// Shows: P4
#[tokio::test(start_paused = true)]
async fn a_failure_is_noticed_while_the_source_is_slow() {
    let start = Instant::now();
    let slow_source = iter([1, 2]).chain(tokio_stream::pending());
    let outcome = process_concurrently(slow_source, |item: u32| async move {
        sleep(SECOND).await;
        if item == 2 { Err("two") } else { Ok(item) }
    });
    assert_eq!(outcome.await, Err(ItemError { index: 1, cause: Cause::Failed("two") }));
    assert_eq!(start.elapsed(), SECOND);
}

/// No item starts beside one that has failed already.
///
/// Shows: P4
#[tokio::test(start_paused = true)]
async fn a_failure_at_once_is_seen_before_anything_else_is_started() {
    let started = Cell::new(0);
    let outcome = process_concurrently(0.., |_| {
        started.set(started.get() + 1);
        async { Err::<(), _>("at once") }
    });
    assert_eq!(outcome.await.unwrap_err().index, 0);
    assert_eq!(started.get(), 1);
}

/// All running items end at once, and the task's budget is too small for them: the last one has failed.
///
/// Shows: P4
#[tokio::test(start_paused = true)]
async fn no_item_is_started_beside_one_that_has_failed_though_the_budget_is_used_up() {
    let started = Cell::new(0);
    let outcome = process_concurrently(0..500, |item| {
        started.set(started.get() + 1);
        async move {
            sleep(SECOND).await;
            if item == 249 { Err("the last of the first 250") } else { Ok(()) }
        }
    });
    assert_eq!(outcome.max_concurrency(250).await.unwrap_err().index, 249);
    assert_eq!(started.get(), 250);
}

/// Items that wake themselves are always awake, and more than two of them make `FuturesUnordered` pause.
///
/// Shows: P4
#[test]
fn no_item_is_started_beside_one_that_has_failed_though_others_wake_themselves() {
    let (started, go, wakers) = (Cell::new(0), Cell::new(false), RefCell::new(Vec::<Waker>::new()));
    let (sender, receiver) = ziggurat::stream::channel(500);
    let send = async |items| {
        for item in items {
            sender.send(item).await.unwrap();
        }
    };
    let run = process_concurrently(receiver, |item| {
        started.set(started.get() + 1);
        let (go, wakers) = (&go, &wakers);
        poll_fn(move |cx| {
            if !go.get() {
                wakers.borrow_mut().push(cx.waker().clone());
                return Poll::Pending;
            }
            cx.waker().wake_by_ref();
            if item == 249 { Poll::Ready(Err::<(), _>("the last of the first 250")) } else { Poll::Pending }
        })
    });
    let mut run = TestTask::new(run.max_concurrency(500).into_future());
    assert!(TestTask::new(send(0..250)).poll().is_ready());
    while started.get() < 250 {
        assert!(run.poll().is_pending());
    }
    assert!(TestTask::new(send(250..500)).poll().is_ready());
    go.set(true);
    wakers.take().into_iter().for_each(Waker::wake);
    let outcome = (0..1_000).find_map(|_| match run.poll() {
        Poll::Ready(outcome) => Some(outcome),
        Poll::Pending => None,
    });
    assert_eq!(outcome.unwrap().unwrap_err().index, 249);
    assert_eq!(started.get(), 250);
}

/// Each of the first items goes on only when all are started: one kind wakes itself, the other uses up the task's
/// budget.
#[tokio::test(start_paused = true)]
async fn items_that_never_rest_do_not_keep_others_from_being_started() {
    const ALL: u32 = 25;
    for uses_budget in [false, true] {
        let started = Cell::new(0);
        let outcome = process_concurrently(0..ALL, |item| {
            let started = &started;
            started.set(started.get() + 1);
            async move {
                while item < 5 && started.get() < ALL {
                    if uses_budget {
                        tokio::task::consume_budget().await;
                    } else {
                        wake_itself().await;
                    }
                }
                Ok::<_, Infallible>(item)
            }
        });
        assert_eq!(outcome.await.unwrap().len(), ALL as usize);
    }
}

async fn wake_itself() {
    let mut is_awake = false;
    poll_fn(|cx| {
        cx.waker().wake_by_ref();
        if mem::replace(&mut is_awake, true) { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
}

/// Shows: P3
#[tokio::test(start_paused = true)]
async fn failures_stand_in_their_places_and_can_be_split_off() {
    let items = ["good1", "bad_item", "good2", "good3"];
    let results = process_concurrently(items, |item: &str| async move {
        if item == "bad_item" {
            return Err(format!("cannot process {item}"));
        }
        sleep(SECOND / 2).await;
        Ok(format!("processed-{item}"))
    })
    .max_concurrency(2)
    .continue_on_error()
    .await;
    let failed = ItemError { index: 1, cause: Cause::Failed("cannot process bad_item".to_owned()) };
    assert_eq!(results[1], Err(failed.clone()));
    let (done, failures) = split(results);
    assert_eq!(done, ["processed-good1", "processed-good2", "processed-good3"]);
    assert_eq!(failures, [failed]);
}

/// An error of a handler must come out as it is, and not as the cancellation of the other items.
///
/// Shows: P3, P4
#[tokio::test(start_paused = true)]
async fn a_handlers_error_that_turns_into_a_cancellation_stays_that_items_error() {
    // Even if the error is itself a cancellation: that of a task which the item awaits.
    let handler = |item: u32| async move {
        let task = tokio::spawn(sleep(SECOND));
        if item == 1 {
            task.abort();
        }
        task.await.map(|()| item)
    };
    let results = process_concurrently(0..3, handler).continue_on_error().await;
    assert!(
        matches!(&results[..], [Ok(0), Err(ItemError { index: 1, cause: Cause::Failed(error) }), Ok(2)] if error.is_cancelled())
    );

    let first = process_concurrently(0..3, handler).await.unwrap_err();
    assert!(first.index == 1 && first.error().unwrap().is_cancelled());
    // The awaited task runs on.
    sleep(SECOND).await;
}

#[test]
fn an_items_error_has_the_original_one_as_its_source() {
    let original: Result<u32, _> = "x".parse();
    let error = ItemError { index: 4, cause: Cause::Failed(original.unwrap_err()) };
    assert_eq!(error.to_string(), "item 4 failed");
    assert_eq!(error.source().unwrap().to_string(), "invalid digit found in string");
    let error: ItemError<std::io::Error> = ItemError { index: 4, cause: Cause::TimedOut { limit: SECOND } };
    assert_eq!((error.to_string().as_str(), error.source().is_none()), ("item 4 timed out after 1s", true));
}

#[tokio::test]
async fn an_items_boxed_error_passes_through_a_question_mark() {
    type BoxError = Box<dyn StdError + Send + Sync>;
    async fn run() -> Result<Vec<u32>, BoxError> {
        let handler = async |text: &str| Ok::<u32, BoxError>(text.parse()?);
        Ok(process_concurrently(["1", "x"], handler).await?)
    }
    let error = run().await.unwrap_err();
    assert_eq!(error.to_string(), "item 1 failed");
    assert!(error.source().unwrap().is::<std::num::ParseIntError>());
}

/// An error type that this crate does not know is shown by its message.
#[test]
fn an_items_error_of_any_type_shows_its_message_as_the_source() {
    #[derive(Debug)]
    struct Odd;
    impl std::fmt::Display for Odd {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("odd")
        }
    }
    let error = ItemError { index: 1, cause: Cause::Failed(Odd) };
    let source = error.source().unwrap();
    assert_eq!((error.to_string().as_str(), source.to_string().as_str()), ("item 1 failed", "odd"));
    assert!(matches!(source.downcast_ref(), Some(Cause::Failed(Odd))) && source.source().is_none());
    let known = ItemError { index: 1, cause: Cause::Failed(std::io::Error::other("broken")) };
    assert!(known.source().unwrap().is::<std::io::Error>());
}

/// Bad input: a handler that panics in the call, in its future, with or without a message, and during clean-up.
///
/// Shows: P3
#[tokio::test(start_paused = true)]
async fn a_panic_of_one_item_is_that_items_error() {
    struct PanicsWhenDropped;
    impl Drop for PanicsWhenDropped {
        fn drop(&mut self) {
            panic!("in the clean-up");
        }
    }
    let results = process_concurrently(0..8, |item: u32| {
        assert!(item != 1, "in the call of {item}");
        async move {
            match item {
                2 => panic!("in the future"),
                3 => std::panic::resume_unwind(Box::new(5)),
                4 => {
                    let _clean_up = PanicsWhenDropped;
                    sleep(SECOND).await;
                }
                5 => {
                    sleep(SECOND).await;
                    panic!("later, in {item}");
                }
                7 => std::panic::panic_any(PanicsWhenDropped),
                _ => sleep(SECOND).await,
            }
            Ok::<_, Infallible>(item)
        }
    })
    .continue_on_error()
    .await;
    let panicked =
        |index, message: &str| Err(ItemError { index, cause: Cause::Panicked { message: message.to_owned() } });
    assert_eq!(
        results,
        [
            Ok(0),
            panicked(1, "in the call of 1"),
            panicked(2, "in the future"),
            panicked(3, "no message"),
            panicked(4, "in the clean-up"),
            panicked(5, "later, in 5"),
            Ok(6),
            panicked(7, "no message"),
        ]
    );
    assert_eq!(results[1].as_ref().unwrap_err().to_string(), "item 1 panicked: in the call of 1");
}

/// Shows: P4
#[tokio::test(start_paused = true)]
async fn a_panic_is_a_first_failure_too_and_its_future_is_dropped() {
    let alive = Alive::default();
    let outcome = process_concurrently(0..3, |item: u32| {
        let ticket = alive.ticket();
        async move {
            let _ticket = ticket;
            assert!(item != 1, "one");
            pending::<Result<(), ()>>().await
        }
    });
    assert_eq!(outcome.await, Err(ItemError { index: 1, cause: Cause::Panicked { message: "one".to_owned() } }));
    assert_eq!(alive.count(), 0);
}

/// Bad input: a source that panics. The panic belongs to no item, so the whole run panics.
#[test]
fn a_panic_of_the_source_comes_out_and_drops_every_item() {
    let alive = Alive::default();
    let source = (0..5).inspect(|item| assert!(*item != 3, "no more"));
    let mut run = TestTask::new(
        process_concurrently(source, |_| {
            let ticket = alive.ticket();
            async move {
                let _ticket = ticket;
                pending::<Result<(), ()>>().await
            }
        })
        .into_future(),
    );
    let panic = catch_unwind(AssertUnwindSafe(|| run.poll())).unwrap_err();
    assert_eq!(panic.downcast_ref::<&str>(), Some(&"no more"));
    assert_eq!(alive.count(), 3);
    drop(run);
    assert_eq!(alive.count(), 0);
}

/// Is pending `times` times.
async fn steps(times: usize) {
    for _ in 0..times {
        tokio::task::yield_now().await;
    }
}

/// Shows: P1, P4
#[test]
fn dropping_it_at_any_poll_point_drops_the_source_and_every_item() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let _entered = runtime.enter();
    let alive = Alive::default();
    let source = || {
        let ticket = alive.ticket();
        iter(0..6).then(move |item| {
            let _ = &ticket;
            async move {
                steps(item % 2).await;
                item
            }
        })
    };
    let handler = |item: usize| {
        let ticket = alive.ticket();
        async move {
            let _ticket = ticket;
            steps(item).await;
            Ok::<_, Infallible>(item)
        }
    };
    let mut points = 0;
    for mode in 0..4 {
        for polls in 0.. {
            let process = process_concurrently(Box::pin(source()), handler).max_concurrency(3);
            let ended = Rc::new(Cell::new(false));
            let mark = Rc::clone(&ended);
            let results: std::pin::Pin<Box<dyn Future<Output = ()> + '_>> = match mode {
                0 => Box::pin(async { assert_eq!(process.await.unwrap().len(), 6) }),
                1 => Box::pin(async { assert_eq!(process.in_batches(2).continue_on_error().await.len(), 6) }),
                2 => Box::pin(async { assert_eq!(process.unordered().collect::<Vec<_>>().await.len(), 6) }),
                _ => Box::pin(async { assert_eq!(process.ordered().collect::<Vec<_>>().await.len(), 6) }),
            };
            let mut run = TestTask::new(async move {
                results.await;
                mark.set(true);
            });
            for _ in 0..polls {
                if run.poll().is_ready() {
                    break;
                }
            }
            if !ended.get() && polls > 0 {
                assert!(alive.count() > 0);
                points += 1;
            }
            drop(run);
            assert_eq!(alive.count(), 0, "mode {mode}, dropped after {polls} polls");
            if ended.get() {
                break;
            }
        }
    }
    assert!(points > 10, "{points}");
}

/// The clean-up of an item that timed out is done before its result is returned.
///
/// Shows: P2
#[tokio::test(start_paused = true)]
async fn what_times_out_is_dropped_before_its_error_comes_out() {
    struct CleanUp<'a>(&'a RefCell<Vec<&'static str>>);
    impl Drop for CleanUp<'_> {
        fn drop(&mut self) {
            self.0.borrow_mut().push("cleaned up");
        }
    }
    let log = RefCell::new(Vec::new());
    let mut results = process_concurrently([()], |()| async {
        let _clean_up = CleanUp(&log);
        pending::<Result<(), ()>>().await
    })
    .timeout_per_item(SECOND)
    .unordered();
    results.next().await.unwrap().unwrap_err();
    log.borrow_mut().push("told");
    assert_eq!(*log.borrow(), ["cleaned up", "told"]);
}

/// Bad input: an item that panics while it is dropped beside others. The others are still dropped, and the reason
/// stays.
///
/// Shows: P4
#[tokio::test(start_paused = true)]
async fn a_sibling_that_panics_when_it_is_dropped_loses_no_other_and_no_error() {
    struct PanicsWhenDropped(u32);
    impl Drop for PanicsWhenDropped {
        fn drop(&mut self) {
            assert!(self.0 != 2, "in the clean-up");
        }
    }
    let alive = Alive::default();
    let run = || {
        process_concurrently(0..6, |item: u32| {
            let ticket = alive.ticket();
            async move {
                let _held = (ticket, PanicsWhenDropped(item));
                sleep(SECOND * (10 - item)).await;
                Err::<(), _>("own")
            }
        })
    };
    assert_eq!(run().await, Err(ItemError { index: 5, cause: Cause::Failed("own") }));
    assert_eq!(alive.count(), 0);

    let mut stream = TestTask::new(run().unordered().collect::<Vec<_>>());
    assert!(stream.poll().is_pending() && alive.count() == 6);
    drop(stream);
    assert_eq!(alive.count(), 0);
}
