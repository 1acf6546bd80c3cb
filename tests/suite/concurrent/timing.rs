//! Scheduling: the limits of concurrency and of time.

use std::{
    cell::{Cell, RefCell},
    convert::Infallible,
    future::IntoFuture,
    task::Poll,
    time::Duration,
};

use tokio::time::{Instant, sleep};
use tokio_stream::{StreamExt, iter};
use tower::{Service, ServiceBuilder, service_fn};
use ziggurat::{
    Deadline, Error, Scope,
    concurrent::{Cause, ItemError, call_concurrently, process_concurrently},
    retry::RetryLayer,
    stream::Stream,
    testing::{Strict, TestTask},
    timeout::TimeoutLayer,
};

const SECOND: Duration = Duration::from_secs(1);

/// Shows: P1
#[tokio::test(start_paused = true)]
async fn five_items_of_a_second_three_at_a_time_take_two_seconds_and_keep_their_order() {
    let start = Instant::now();
    let items = ["item1", "item2", "item3", "item4", "item5"].map(String::from);
    let results = process_concurrently(items, |item: String| async move {
        sleep(SECOND).await;
        Ok::<_, Infallible>(format!("processed-{item}"))
    })
    .max_concurrency(3)
    .timeout_per_item(5 * SECOND)
    .await
    .unwrap();
    assert_eq!(results, [1, 2, 3, 4, 5].map(|number| format!("processed-item{number}")));
    assert_eq!(start.elapsed(), 2 * SECOND);
}

/// Shows: P1
#[tokio::test(start_paused = true)]
async fn items_come_from_iterators_and_streams_and_may_be_borrowed() {
    let double = |number: u32| async move { Ok::<_, Infallible>(2 * number) };
    assert_eq!(process_concurrently(1..=3, double).await.unwrap(), [2, 4, 6]);
    assert_eq!(process_concurrently(iter(1..=3), double).await.unwrap(), [2, 4, 6]);
    let mut borrowed = vec![1, 2, 3].into_iter();
    assert_eq!(process_concurrently(borrowed.by_ref().take(2), double).await.unwrap(), [2, 4]);
    assert_eq!(borrowed.next(), Some(3));

    let words = vec!["a".to_owned(), "few".to_owned()];
    let length = |word: &String| {
        let length = word.len();
        async move { Ok::<_, Infallible>(length) }
    };
    assert_eq!(process_concurrently(&words, length).await.unwrap(), [1, 3]);
}

/// Shows: P1
#[tokio::test(start_paused = true)]
async fn twenty_five_run_at_once_if_it_is_not_said() {
    let running = Cell::new(0);
    let most = Cell::new(0);
    let handler = |_| async {
        running.set(running.get() + 1);
        most.set(most.get().max(running.get()));
        sleep(SECOND).await;
        running.set(running.get() - 1);
        Ok::<_, Infallible>(())
    };
    assert_eq!(process_concurrently(0..100, handler).await.unwrap().len(), 100);
    assert_eq!(most.get(), 25);
}

/// Shows: P1
#[tokio::test(start_paused = true)]
async fn the_source_is_asked_for_no_more_than_can_be_worked_on() {
    let pulled = Cell::new(0);
    let source = || (0_u64..).inspect(|_| pulled.set(pulled.get() + 1));
    let slow = |item: u64| async move {
        sleep(SECOND * u32::try_from(item + 1).unwrap()).await;
        Ok::<_, Infallible>(item)
    };

    let mut results = process_concurrently(source(), slow).max_concurrency(4).unordered();
    assert_eq!(pulled.get(), 0);
    for expected in 0..3 {
        assert_eq!(results.next().await, Some(Ok(expected)));
        assert!(pulled.get() <= usize::try_from(expected).unwrap() + 4, "{pulled:?}");
    }

    // In order, an item that waits for an earlier one takes a place: only four start before the first has ended.
    pulled.set(0);
    let first_is_slowest = |item: u64| slow(10 - item.min(10));
    let mut results = process_concurrently(source(), first_is_slowest).max_concurrency(4).ordered();
    assert_eq!(results.next().await, Some(Ok(10)));
    assert_eq!(pulled.get(), 4);
}

/// Shows: P1
#[tokio::test(start_paused = true)]
async fn streams_give_results_as_they_come_or_in_order() {
    let slow = |seconds: u32| async move {
        sleep(SECOND * seconds).await;
        Ok::<_, Infallible>(seconds)
    };
    let as_they_come: Vec<_> = process_concurrently([3, 1, 2], slow).unordered().map(Result::unwrap).collect().await;
    assert_eq!(as_they_come, [1, 2, 3]);
    let in_order: Vec<_> = process_concurrently([3, 1, 2], slow).ordered().map(Result::unwrap).collect().await;
    assert_eq!(in_order, [3, 1, 2]);
    let mut results = process_concurrently([3, 1, 2], slow).max_concurrency(2).unordered();
    assert_eq!(results.size_hint(), (3, Some(3)));
    results.next().await;
    assert_eq!(results.size_hint(), (2, Some(2)));
}

/// Each call waits for its own clone to be ready, and calls only that one.
///
/// Shows: P1
#[tokio::test(start_paused = true)]
async fn over_a_service_each_call_waits_for_the_readiness_of_its_own_clone() {
    /// A clone takes a second to be ready.
    #[derive(Default)]
    struct Slow(Option<std::pin::Pin<Box<tokio::time::Sleep>>>);

    impl Clone for Slow {
        fn clone(&self) -> Self {
            Self(None)
        }
    }

    impl Service<u32> for Slow {
        type Response = u32;
        type Error = Infallible;
        type Future = std::future::Ready<Result<u32, Infallible>>;

        fn poll_ready(&mut self, cx: &mut std::task::Context<'_>) -> Poll<Result<(), Infallible>> {
            let slept = self.0.get_or_insert_with(|| Box::pin(sleep(SECOND)));
            slept.as_mut().poll(cx).map(Ok)
        }

        fn call(&mut self, request: u32) -> Self::Future {
            std::future::ready(Ok(request * 10))
        }
    }

    let start = Instant::now();
    let results = call_concurrently([1, 2, 3, 4], Strict::new(Slow::default())).max_concurrency(2).await.unwrap();
    assert_eq!(results, [10, 20, 30, 40]);
    assert_eq!(start.elapsed(), 2 * SECOND);

    // The wait counts towards the item's limit.
    let slow = call_concurrently([1], Slow::default()).timeout_per_item(SECOND / 2).await.unwrap_err();
    assert_eq!(slow.cause, Cause::TimedOut { limit: SECOND / 2 });
}

/// Shows: P1
#[tokio::test(start_paused = true)]
async fn a_stack_of_layers_sees_one_call_for_each_item() {
    let tries = RefCell::new(Vec::new());
    let stack =
        ServiceBuilder::new().layer(RetryLayer::new()).map_err(Error::Service).service(service_fn(|item: u32| {
            tries.borrow_mut().push(item);
            let tried = tries.borrow().iter().filter(|tried| **tried == item).count();
            async move { if item == 2 && tried < 3 { Err("not yet") } else { Ok(item) } }
        }));
    assert_eq!(call_concurrently([1, 2, 3], stack).await.unwrap(), [1, 2, 3]);
    tries.borrow_mut().sort_unstable();
    assert_eq!(*tries.borrow(), [1, 2, 2, 2, 3]);
}

/// The second item starts a second later than the first, and has its whole limit from then.
///
/// Shows: P2
#[tokio::test(start_paused = true)]
async fn an_items_limit_counts_from_its_own_start_and_ends_that_item_alone() {
    let start = Instant::now();
    let seconds = [1.0, 2.0, 9.0, 1.5];
    let results = process_concurrently(seconds, |seconds: f64| async move {
        sleep(Duration::from_secs_f64(seconds)).await;
        Ok::<_, Infallible>(seconds)
    })
    .max_concurrency(1)
    .timeout_per_item(2 * SECOND)
    .continue_on_error()
    .await;
    let timed_out = Err(ItemError { index: 2, cause: Cause::TimedOut { limit: 2 * SECOND } });
    assert_eq!(results, [Ok(1.0), Ok(2.0), timed_out, Ok(1.5)]);
    assert_eq!(start.elapsed(), Duration::from_secs_f64(1.0 + 2.0 + 2.0 + 1.5));
}

/// Shows: P2
#[tokio::test(start_paused = true)]
async fn with_a_limit_of_zero_an_item_has_to_be_ready_at_once() {
    let results = process_concurrently([0, 1], |seconds: u32| async move {
        if seconds > 0 {
            sleep(SECOND * seconds).await;
        }
        Ok::<_, Infallible>(seconds)
    })
    .timeout_per_item(Duration::ZERO)
    .continue_on_error()
    .await;
    assert_eq!(results, [Ok(0), Err(ItemError { index: 1, cause: Cause::TimedOut { limit: Duration::ZERO } })]);
}

/// Shows: P2
#[tokio::test(start_paused = true)]
async fn an_items_limit_is_the_deadline_of_what_runs_in_it_and_leaves_an_earlier_one_alone() {
    let remaining = |_| async { Ok::<_, Infallible>(Deadline::current().unwrap().remaining()) };
    assert_eq!(process_concurrently([()], remaining).timeout_per_item(SECOND).await.unwrap(), [SECOND]);

    // The run is inside a shorter limit, which ends the whole run, and not as a failure of an item.
    let service = ServiceBuilder::new().layer(TimeoutLayer::new(SECOND)).service(service_fn(|()| async {
        let items = process_concurrently([()], |()| sleep_for_ever()).timeout_per_item(SECOND).continue_on_error();
        Ok::<_, Error<Infallible>>(items.await)
    }));
    let outcome = tower::ServiceExt::oneshot(service, ()).await;
    assert!(ziggurat::rejection(&outcome).unwrap().is_timed_out());
}

async fn sleep_for_ever() -> Result<(), Infallible> {
    std::future::pending().await
}

/// Shows: P1
#[tokio::test(start_paused = true)]
async fn items_run_within_the_callers_scope() {
    let names = Scope::root("app").within(async {
        process_concurrently(0..3, |_| async {
            sleep(SECOND).await;
            Ok::<_, Infallible>(Scope::current().unwrap().name().to_owned())
        })
        .await
    });
    assert_eq!(names.await.unwrap(), ["app"; 3]);
}

/// Futures come from a function. A future that was created once could not be awaited again.
///
/// Shows: R9, P1
#[tokio::test(start_paused = true)]
async fn the_spent_coroutine_a_future_is_made_for_each_item() {
    let made = Cell::new(0);
    let results = process_concurrently([7, 7, 7], |item: u32| {
        made.set(made.get() + 1);
        let number = made.get();
        async move { Ok::<_, Infallible>((item, number)) }
    });
    assert_eq!(results.await.unwrap(), [(7, 1), (7, 2), (7, 3)]);
}

/// Shows: P1
#[tokio::test(start_paused = true)]
async fn a_run_can_be_spawned_and_so_can_its_streams() {
    let slow = |item: u32| async move {
        sleep(SECOND).await;
        Ok::<_, Infallible>(item)
    };
    let all = tokio::spawn(process_concurrently(vec![1, 2], slow).into_future());
    let stream = tokio::spawn(process_concurrently(vec![1, 2], slow).ordered().collect::<Vec<_>>());
    assert_eq!(all.await.unwrap(), Ok(vec![1, 2]));
    assert_eq!(stream.await.unwrap(), [Ok(1), Ok(2)]);
}

/// All items are ready at once, and other tasks still get their turn.
#[tokio::test]
async fn a_run_that_is_never_pending_does_not_keep_the_thread_for_itself() {
    let other = tokio::spawn(async {});
    let seen = Cell::new(None);
    process_concurrently(0..10_000, |item: u32| async move { Ok::<_, Infallible>(item) })
        .on_progress(|progress| {
            if other.is_finished() && seen.get().is_none() {
                seen.set(Some(progress.finished()));
            }
        })
        .await
        .unwrap();
    assert!(seen.get().unwrap() < 1_000, "{seen:?}");
}

/// Bad input: an endless source that is always ready, and no limit.
#[test]
fn without_a_limit_a_source_that_never_ends_is_not_read_for_ever_in_one_poll() {
    let mut run = TestTask::new(
        process_concurrently(0_u64.., |_| std::future::pending::<Result<(), ()>>())
            .max_concurrency(usize::MAX)
            .into_future(),
    );
    assert!(run.poll().is_pending());
    assert_eq!(run.times_woken(), 2);
}

/// An item that is ended by an inherited deadline reports that, and not its own limit.
#[tokio::test(start_paused = true)]
async fn an_item_that_the_surrounding_deadline_ends_names_it() {
    let run = process_concurrently([()], |()| std::future::pending::<Result<(), ()>>())
        .timeout_per_item(Duration::from_secs(10))
        .continue_on_error();
    let results = Deadline::after(Duration::from_secs(2)).within(run.into_future()).await;
    let cause = &results[0].as_ref().unwrap_err().cause;
    assert_eq!(*cause, Cause::DeadlineExceeded { after: Duration::from_secs(2) });
}
