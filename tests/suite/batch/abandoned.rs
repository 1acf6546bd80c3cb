//! Batches on a runtime that is no longer driven.

use tokio::{runtime::Runtime, sync::Notify};
use tower::util::Oneshot;

use super::*;

/// A current-thread runtime with its own clock. It runs only while a test drives it.
struct Idle(Option<Runtime>);

impl Idle {
    fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
        Self(Some(runtime.unwrap()))
    }

    /// Starts calls that begin a batch on this runtime.
    fn start<S>(&self, service: &S, numbers: impl IntoIterator<Item = u32>) -> Vec<TestTask<Oneshot<S, u32>>>
    where
        S: Service<u32> + Clone,
    {
        let _entered = self.0.as_ref().unwrap().enter();
        start(service, numbers)
    }

    /// On a separate thread, because a runtime cannot be driven from within another one.
    fn drive(&self) {
        self.drive_for(Duration::ZERO);
    }

    fn drive_for(&self, time: Duration) {
        let runtime = self.0.as_ref().unwrap();
        let run = async {
            settle().await;
            sleep(time).await;
        };
        std::thread::scope(|threads| threads.spawn(|| runtime.block_on(run)).join().unwrap());
    }
}

impl Drop for Idle {
    fn drop(&mut self) {
        // A runtime cannot be dropped within another one either.
        let runtime = self.0.take();
        std::thread::spawn(|| drop(runtime)).join().unwrap();
    }
}

fn answers<S: Service<u32, Response = u32, Error: std::fmt::Debug>>(
    tasks: &mut [TestTask<Oneshot<S, u32>>],
) -> Vec<u32> {
    tasks.iter_mut().map(|task| finished(task).unwrap()).collect()
}

/// Runs a case on its own runtime, whose clock is not ahead of an idle runtime that is created later.
fn paused(case: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap().block_on(case);
}

/// Longer than a task may stay unpolled after a wake-up, so that the clocks of two runtimes need not agree.
const LONG: Duration = Duration::from_secs(60);

/// The task of the batch waits for its first poll, for its delay, or for a wake-up that the runtime never carries out.
///
/// Shows: P7
#[test]
fn a_batch_that_waits_on_a_runtime_that_nobody_drives_is_taken_over_by_the_next_call() {
    for is_begun in [false, true] {
        for max_delay in [SECOND, Duration::MAX, Duration::ZERO] {
            // A task with an endless delay misses nothing. One call wakes it, and the next finds that it is not polled.
            let looks = if is_begun && max_delay == Duration::MAX { 2 } else { 1 };
            if is_begun && max_delay.is_zero() {
                continue; // it is sent at once
            }
            paused(async {
                let case = format!("{is_begun} {max_delay:?}");
                let calls = Calls::default();
                let service = BatchLayer::new(4, max_delay).by(|number: &u32| number % 2).layer(doubles(&calls));
                let idle = Idle::new();
                let mut tasks = idle.start(&service, [1, 3]);
                if is_begun {
                    idle.drive();
                }
                advance(4 * SECOND).await;
                tasks.extend(start(&service, [5]));
                settle().await;
                assert!(seen(&calls).is_empty() && tasks.iter_mut().all(|task| task.poll().is_pending()), "{case}");
                for number in 1..=looks {
                    advance(LONG).await;
                    // Also by a call that joins another batch.
                    tasks.extend(start(&service, [2 * number]));
                    settle().await;
                }
                if max_delay == Duration::MAX {
                    tasks.extend(start(&service, [7]));
                    settle().await;
                }
                let sent = seen(&calls).into_iter().find(|numbers| numbers[0] == 1);
                assert!(sent.is_some_and(|numbers| numbers.starts_with(&[1, 3, 5])), "{case}");
                assert_eq!(answers(&mut tasks[..3]), [2, 6, 10], "{case}");
                // The runtime is driven again, and its task finds nothing to do.
                idle.drive_for(LONG);
                drop(idle);
                settle().await;
                assert_eq!(seen(&calls).iter().flatten().filter(|number| **number == 1).count(), 1, "{case}");
            });
        }
    }
}

/// The batch is full, so that no call can join it, and its runtime is driven again while the batch is in flight
/// elsewhere.
///
/// Shows: P7
#[test]
fn a_task_that_was_taken_over_does_not_touch_the_one_in_its_place() {
    for is_driven in [false, true] {
        paused(async {
            let (go, under_way) = (Arc::default(), Arc::<AtomicUsize>::default());
            let service = BatchLayer::new(2, Duration::MAX).layer(held(&go, &under_way));
            let idle = Idle::new();
            let mut tasks = idle.start(&service, [1, 2]);
            advance(LONG).await;
            let mut late = start(&service, [3]);
            settle().await;
            assert_eq!(under_way.load(SeqCst), 1, "the full batch is sent");
            if is_driven {
                idle.drive();
            }
            drop(idle);
            settle().await;
            assert_eq!(under_way.load(SeqCst), 1);
            go.store(true, SeqCst);
            sleep(SECOND).await;
            assert_eq!(answers(&mut tasks[..2]), [1, 2]);
            assert!(late[0].poll().is_pending());
        });
    }
}

/// As on the first runtime, the last waiter drops the call.
///
/// Shows: P7
#[tokio::test(start_paused = true)]
async fn a_batch_that_was_taken_over_ends_with_the_last_of_its_callers() {
    let (go, under_way) = (Arc::default(), Arc::<AtomicUsize>::default());
    let service = BatchLayer::new(2, Duration::MAX).layer(held(&go, &under_way));
    let idle = Idle::new();
    let tasks = idle.start(&service, [1, 2]);
    advance(LONG).await;
    let late = start(&service, [3]);
    settle().await;
    assert_eq!(under_way.load(SeqCst), 1);
    drop(tasks);
    assert_eq!(under_way.load(SeqCst), 0, "before anything else has run");
    drop(late);
}

/// The response comes from elsewhere, and wakes a task that does not run. No request is sent twice.
///
/// Shows: P7
#[test]
fn a_call_under_way_on_a_runtime_that_nobody_drives_goes_on_where_the_next_call_is() {
    for is_woken in [false, true] {
        paused(async {
            let calls = Calls::default();
            let go = Arc::new(Notify::new());
            let (seen_by, let_go) = (Arc::clone(&calls), Arc::clone(&go));
            let service = BatchLayer::new(2, Duration::MAX).layer(service_fn(move |numbers: Vec<u32>| {
                seen_by.lock().unwrap().push(numbers.clone());
                let go = Arc::clone(&let_go);
                async move {
                    go.notified().await;
                    Ok::<_, Error<&'static str>>(numbers.into_iter().map(Ok::<_, Error<_>>).collect::<Vec<_>>())
                }
            }));
            let idle = Idle::new();
            let mut tasks = idle.start(&service, [1, 2]);
            idle.drive();
            assert_eq!(seen(&calls), [[1, 2]]);
            if is_woken {
                go.notify_waiters();
                advance(LONG).await;
            } else {
                // The first call that arrives wakes it, and the next finds that it is still not polled.
                advance(LONG).await;
                tasks.extend(start(&service, [3]));
                advance(LONG).await;
            }
            tasks.extend(start(&service, [3]));
            settle().await;
            if !is_woken {
                go.notify_waiters();
                settle().await;
            }
            assert_eq!(answers(&mut tasks[..2]), [1, 2]);
            assert_eq!(seen(&calls).iter().filter(|numbers| **numbers == [1, 2]).count(), 1);
        });
    }
}

/// The call waits for a timer of the idle runtime. If that runtime is driven again in time, the call continues.
///
/// Shows: P7
#[test]
fn a_call_that_cannot_go_on_without_its_runtime_fails_for_its_callers() {
    for comes_back in [false, true] {
        paused(async {
            let (go, under_way) = (Arc::new(AtomicBool::new(false)), Arc::<AtomicUsize>::default());
            let service = BatchLayer::new(2, Duration::MAX).layer(held(&go, &under_way));
            let idle = Idle::new();
            let mut tasks = idle.start(&service, [1, 2]);
            idle.drive();
            assert_eq!(under_way.load(SeqCst), 1);
            let mut late = Vec::new();
            for _ in 0..2 {
                advance(LONG).await;
                assert!(tasks.iter_mut().all(|task| task.poll().is_pending()));
                late.extend(start(&service, [3 + late.len() as u32]));
                settle().await;
            }
            if comes_back {
                idle.drive();
            }
            advance(LONG).await;
            settle().await;
            // The later calls are in another batch.
            let others = 1;
            if comes_back {
                assert_eq!(under_way.load(SeqCst), 1 + others);
                assert!(tasks.iter_mut().all(|task| task.poll().is_pending()));
                go.store(true, SeqCst);
                idle.drive_for(SECOND);
                settle().await;
                assert_eq!(answers(&mut tasks[..2]), [1, 2]);
            } else {
                assert_eq!(under_way.load(SeqCst), others, "the call released its resources");
                for task in &mut tasks {
                    let told = "the runtime that the batch was sent on is no longer driven";
                    assert_eq!(shared(&finished(task)), (told.to_owned(), Class::PERMANENT));
                }
                go.store(true, SeqCst);
            }
            sleep(SECOND).await;
            assert_eq!(answers(&mut late[..2]), [3, 4]);
        });
    }
}

/// Its runtime is driven, so calls that arrive meanwhile change nothing, however long it takes.
///
/// Shows: P7
#[tokio::test(start_paused = true)]
async fn a_call_that_is_only_slow_is_not_taken_over() {
    let polls = Arc::<AtomicUsize>::default();
    let counted = Arc::clone(&polls);
    let service = BatchLayer::new(1, Duration::MAX).layer(service_fn(move |_: Vec<u32>| {
        let polls = Arc::clone(&counted);
        async move {
            let silent = poll_fn(|_| {
                polls.fetch_add(1, SeqCst);
                Poll::<Result<Vec<Result<u32, Error<&'static str>>>, Error<&'static str>>>::Pending
            });
            silent.await
        }
    }));
    let mut tasks = start(&service, [1]);
    settle().await;
    assert_eq!(polls.load(SeqCst), 1);
    for _ in 0..10 {
        advance(LONG).await;
        tasks.extend(start(&service, [2]));
        settle().await;
    }
    assert!(tasks.iter_mut().all(|task| task.poll().is_pending()));
    // Each call is checked whenever one arrives after some time: ten times the first, nine the next, and so on.
    assert_eq!(polls.load(SeqCst), 11 + (1..=10).sum::<usize>());
}
