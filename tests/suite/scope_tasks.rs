//! Tasks that belong to a scope.

use std::{
    convert::Infallible,
    future::pending,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    task::Poll,
    time::Duration,
};

use tokio::time::{Instant, sleep};
use tower::{Layer, ServiceExt, service_fn};
use ziggurat::{
    Deadline, Error, Scope,
    scope::{Task, TaskError},
    testing,
    timeout::TimeoutLayer,
};

use crate::scope_disposables::{Log, Value};

const SECOND: Duration = Duration::from_secs(1);

/// Logs that it was dropped, and in which scope.
struct Dropped(Log);

impl Drop for Dropped {
    fn drop(&mut self) {
        self.0.note(format_args!(
            "dropped in {}",
            Scope::current().map_or("none".to_owned(), |scope| scope.name().into())
        ));
    }
}

/// Runs for ever, even when it is cancelled.
fn deaf(scope: &Scope, log: &Log) -> Task<()> {
    let dropped = Dropped(log.clone());
    scope.spawn(async move {
        let _dropped = dropped;
        pending().await
    })
}

async fn answers_later((): ()) -> Result<(), Error<Infallible>> {
    sleep(SECOND / 2).await;
    Ok(())
}

/// The task runs on after the request, so the request's deadline must not end its calls.
///
/// Shows: X5, X7
#[tokio::test(start_paused = true)]
async fn a_task_of_a_scope_that_outlives_the_request_has_no_deadline_unless_it_is_given_one() {
    let app = Scope::root("app");
    let request = app.child("request");
    let deadline = Deadline::after(SECOND);
    let ask = || async { Deadline::current() };
    let spawned = request.within(deadline.within(async {
        let inside = request.child("inside");
        (app.spawn(ask()), request.spawn(ask()), inside.spawn(ask()).await, app.spawn(deadline.within(ask())))
    }));
    let (of_app, of_request, inside, asked_for) = spawned.await;
    assert_eq!(of_app.await.unwrap(), None);
    assert_eq!(of_request.await.unwrap(), Some(deadline));
    assert_eq!(inside.unwrap(), Some(deadline));
    assert_eq!(asked_for.await.unwrap(), Some(deadline));
    // If the caller runs in no scope, every scope outlives it.
    assert_eq!(deadline.within(async { app.spawn(ask()).await }).await.unwrap(), None);

    let limit = TimeoutLayer::new(SECOND);
    let late = request.within(deadline.within(async {
        let called = app.spawn(async move {
            sleep(2 * SECOND).await;
            limit.layer(service_fn(answers_later)).oneshot(()).await
        });
        called.await
    }));
    assert!(late.await.unwrap().is_ok());
}

/// Shows: X5, X7
#[tokio::test(start_paused = true)]
async fn a_task_runs_in_its_scope_and_is_told_the_callers_deadline() {
    let app = Scope::root("app").with(Value("app"));
    let deadline = Deadline::after(2 * SECOND);
    let spawned = app.within(async { app.spawn(async { (Scope::current(), Deadline::current()) }).await });
    let spawned = deadline.within(spawned);
    let (scope, told) = spawned.await.unwrap();
    let scope = scope.unwrap();
    assert_eq!((scope.id(), scope.get::<Value>().unwrap().0), (app.id(), "app"));
    assert_eq!(told, Some(deadline));
    assert_eq!(app.spawn(async { Deadline::current() }).await.unwrap(), None);
    // Between two polls too.
    let seen = app.spawn(async {
        sleep(SECOND).await;
        Scope::current().map(|scope| scope.id())
    });
    assert_eq!(seen.await.unwrap(), Some(app.id()));
    assert!(Scope::current().is_none());
}

/// An error of a task must not look like a cancellation.
///
/// Shows: X5
#[tokio::test(start_paused = true)]
async fn a_tasks_failure_is_its_own_and_cancels_nothing() {
    let app = Scope::root("app");
    let failed = app.spawn(async { Err::<(), _>("own") });
    let what = "luck".to_owned();
    let panicked = app.spawn(async move { panic!("out of {what}") });
    let other = app.spawn(async {
        sleep(SECOND).await;
        7
    });
    assert_eq!(failed.await.unwrap(), Err("own"));
    let error: TaskError = panicked.await.unwrap_err();
    assert_eq!(error.to_string(), "the task panicked: out of luck");
    let TaskError::Panicked(panic) = error else { panic!("{error:?}") };
    let payload = catch_unwind(AssertUnwindSafe(|| panic.resume())).unwrap_err();
    assert_eq!(*payload.downcast::<String>().unwrap(), "out of luck");
    assert!(!app.is_cancelled());
    assert_eq!(other.await.unwrap(), 7);
    app.close().await.unwrap();
}

/// Shows: X5
#[tokio::test(start_paused = true)]
async fn closing_tells_the_tasks_and_waits_for_them() {
    let log = Log::default();
    let app = Scope::root("app");
    let task = {
        let (log, told) = (log.clone(), app.cancelled());
        app.spawn(async move {
            told.await;
            log.note("told");
            sleep(SECOND).await;
            log.note("done");
            7
        })
    };
    tokio::task::yield_now().await;
    assert!(log.take().is_empty() && !task.is_finished());
    let start = Instant::now();
    app.close().await.unwrap();
    assert_eq!(start.elapsed(), SECOND);
    assert_eq!(log.take(), ["told", "done"]);
    assert!(task.is_finished());
    assert_eq!(task.await.unwrap(), 7);
}

/// Shows: X5
#[tokio::test(start_paused = true)]
async fn after_the_grace_period_tasks_are_aborted_in_their_scope() {
    for (scope, grace) in [
        (Scope::root("app"), 5 * SECOND),
        (Scope::root("app").grace(2 * SECOND), 2 * SECOND),
        (Scope::root("outer").grace(3 * SECOND).child("app"), 3 * SECOND),
        (Scope::root("app").grace(Duration::ZERO), Duration::ZERO),
    ] {
        let log = Log::default();
        let task = deaf(&scope, &log);
        let start = Instant::now();
        scope.close().await.unwrap();
        assert_eq!(start.elapsed(), grace);
        assert_eq!(log.take(), ["dropped in app"]);
        let error = task.await.unwrap_err();
        assert!(matches!(error, TaskError::Aborted));
        assert_eq!(error.to_string(), "the task was aborted");
    }
    // A task that was never polled is dropped too.
    let log = Log::default();
    let app = Scope::root("app").grace(Duration::ZERO);
    drop(deaf(&app, &log));
    app.close().await.unwrap();
    assert_eq!(log.take(), ["dropped in app"]);
}

#[tokio::test(start_paused = true)]
async fn without_an_end_of_the_grace_period_tasks_are_never_aborted() {
    let app = Scope::root("app").grace(Duration::MAX);
    let task = app.spawn(sleep(1_000_000 * SECOND));
    app.close().await.unwrap();
    task.await.unwrap();
}

/// Shows: X5
#[tokio::test(start_paused = true)]
async fn the_grace_periods_of_scopes_within_each_other_run_at_the_same_time() {
    let log = Log::default();
    let app = Scope::root("app");
    let middle = app.child("middle");
    let inner = middle.child("inner").grace(7 * SECOND);
    let tasks = [deaf(&inner, &log), deaf(&app, &log), deaf(&middle, &log)];
    let start = Instant::now();
    app.close().await.unwrap();
    assert_eq!(start.elapsed(), 7 * SECOND);
    assert_eq!(log.take(), ["dropped in app", "dropped in middle", "dropped in inner"]);
    for task in tasks {
        assert!(matches!(task.await, Err(TaskError::Aborted)));
    }
}

/// Shows: X5
#[tokio::test(start_paused = true)]
async fn in_a_closed_scope_a_task_is_refused() {
    let log = Log::default();
    let app = Scope::root("app");
    let (owns, owns_nothing) = (app.child("child"), app.child("child"));
    owns.spawn(async {}).await.unwrap();
    app.close().await.unwrap();
    let without_anything = Scope::root("app");
    without_anything.close().await.unwrap();
    for (scope, path) in [(&app, "app"), (&owns, "app/child"), (&owns_nothing, "app/child"), (&without_anything, "app")]
    {
        let dropped = Dropped(log.clone());
        let task = scope.spawn(async move { drop(dropped) });
        // Nothing is left of it, and this is known at once.
        assert_eq!(log.take(), ["dropped in none"]);
        assert!(task.is_finished());
        assert_eq!(
            task.await.unwrap_err().to_string(),
            format!("the task was not started: the scope `{path}` is closed")
        );
    }
    // Also as soon as the scope starts to close.
    let app = Scope::root("app");
    let refused = app.spawn({
        let told = app.cancelled();
        async move {
            told.await;
            Scope::current().unwrap().spawn(async {}).await
        }
    });
    tokio::task::yield_now().await;
    app.close().await.unwrap();
    assert!(matches!(refused.await.unwrap(), Err(TaskError::Closed(_))));
}

/// Bad input: no runtime to run on.
#[test]
fn outside_of_a_runtime_a_task_is_refused() {
    let app = Scope::root("app");
    let mut task = testing::TestTask::new(app.spawn(async {}));
    let Poll::Ready(Err(error)) = task.poll() else { panic!("it was started") };
    assert_eq!(error.to_string(), "the task was not started: the scope `app` has no tokio runtime to start it on");
    assert!(testing::TestTask::new(app.close()).poll().is_ready());
}

/// A scope remembers where its tasks run.
#[test]
fn a_task_can_be_spawned_from_outside_of_the_runtime_that_others_run_on() {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let app = Scope::root("app");
    runtime.block_on(async { app.spawn(async {}).await.unwrap() });
    let task = app.spawn(async { Scope::current().unwrap().name().to_owned() });
    assert_eq!(runtime.block_on(task).unwrap(), "app");
}

/// Shows: X5
#[tokio::test(start_paused = true)]
async fn a_task_goes_on_without_its_handle_and_ends_when_the_handle_says_so() {
    let log = Log::default();
    let app = Scope::root("app");
    drop(app.spawn({
        let log = log.clone();
        async move {
            sleep(SECOND).await;
            log.note("done");
        }
    }));
    let aborted = deaf(&app, &log);
    sleep(2 * SECOND).await;
    assert_eq!(log.take(), ["done"]);
    aborted.abort();
    assert!(matches!(aborted.await, Err(TaskError::Aborted)));
    assert_eq!(log.take(), ["dropped in app"]);
    let start = Instant::now();
    app.close().await.unwrap();
    assert_eq!(start.elapsed(), Duration::ZERO);
}

/// Shows: X5
#[tokio::test(start_paused = true)]
async fn what_waits_for_the_end_of_a_scope_is_told_wherever_it_is_closed() {
    let app = Scope::root("app");
    let child = app.child("child");
    let owns = child.child("owns");
    let waiting = [app.cancelled(), owns.cancelled(), child.cancelled()];
    let late = app.child("late");
    assert!(!child.is_cancelled());
    app.close().await.unwrap();
    futures_util::future::join_all(waiting).await;
    late.cancelled().await;
    assert!(late.is_cancelled() && owns.is_cancelled());

    // A parent stays open.
    let app = Scope::root("app");
    let child = app.child("child");
    child.close().await.unwrap();
    assert!(child.is_cancelled() && !app.is_cancelled());
    child.cancelled().await;
    assert!(testing::TestTask::new(app.cancelled()).poll().is_pending());

    // Waiting does not keep a scope alive.
    let dropped = Scope::root("app");
    let cancelled = dropped.cancelled();
    drop(dropped);
    cancelled.await;
}

#[tokio::test(start_paused = true)]
async fn of_tasks_and_scopes_that_have_ended_nothing_is_left() {
    let value = Arc::new(());
    let app = Scope::root("app");
    for number in 0..100_u32 {
        let (held, kept) = (Arc::clone(&value), Arc::clone(&value));
        app.spawn(async move { drop(held) }).await.unwrap();
        let child = app.child("child").with(kept);
        child.spawn(async {}).await.unwrap();
        if number.is_multiple_of(2) {
            child.close().await.unwrap();
        }
    }
    assert_eq!(Arc::strong_count(&value), 1);
}
