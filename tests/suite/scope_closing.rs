//! Closing a scope: twice, concurrently, from within, while it is set up, and on drop.

use std::{
    future::{Future, pending},
    io,
    pin::pin,
    sync::{Arc, Barrier},
    task::{Context, Wake, Waker},
    thread,
    time::Duration,
};

use tokio::time::{Instant, sleep};
use ziggurat::{
    Scope,
    scope::{Disposable, ScopeFailureKind},
};

use crate::scope_disposables::{Log, Value, quick, slow, stuck};

const SECOND: Duration = Duration::from_secs(1);

/// Logs when it is cancelled, takes a second, and logs its end.
fn polite(scope: &Scope, name: &'static str, log: &Log) {
    let (log, told) = (log.clone(), scope.cancelled());
    drop(scope.spawn(async move {
        told.await;
        log.note(format_args!("told {name}"));
        sleep(SECOND).await;
        log.note(format_args!("end {name}"));
    }));
}

/// Shows: X4, X5
#[tokio::test(start_paused = true)]
async fn tasks_end_before_the_scopes_within_and_these_before_what_was_set_up() {
    let log = Log::default();
    let app = Scope::root("app").disposable(quick("a", &log)).disposable(quick("b", &log)).open().await.unwrap();
    let child = app.child("child").disposable(quick("c", &log)).open().await.unwrap();
    let inner = child.child("inner").disposable(quick("d", &log)).open().await.unwrap();
    polite(&app, "app", &log);
    polite(&inner, "inner", &log);
    sleep(SECOND).await;
    log.take();
    app.close().await.unwrap();
    let happened = log.take();
    let (told, ended) = happened.split_at(2);
    // The scheduler decides which task is cancelled first, and which ends first.
    assert!(told.contains(&"told app".into()) && told.contains(&"told inner".into()), "{happened:?}");
    assert!(ended[..2].contains(&"end app".into()) && ended[..2].contains(&"end inner".into()), "{happened:?}");
    assert_eq!(ended[2..], ["down d in inner", "down c in child", "down b in app", "down a in app"]);
    assert!(child.is_cancelled() && inner.is_cancelled());
    // The scopes inside get their own results.
    inner.close().await.unwrap();
}

/// Shows: X4
#[tokio::test]
async fn who_closes_a_scope_hears_what_failed_in_those_within() {
    let log = Log::default();
    let app = Scope::root("app").disposable(stuck("outer", &log)).open().await.unwrap();
    let child = app.child("child").disposable(stuck("inner", &log)).open().await.unwrap();
    let error = app.close().await.unwrap_err();
    let scopes: Vec<_> = error.faults().iter().map(|fault| fault.scope().to_owned()).collect();
    assert_eq!(scopes, ["app/child", "app"]);
    assert_eq!(child.close().await.unwrap_err().faults().len(), 1);
}

/// Shows: X4
#[tokio::test(start_paused = true)]
async fn a_closing_that_is_dropped_loses_no_tear_down() {
    let log = Log::default();
    for time in [0, 500, 1500] {
        let app =
            Scope::root("app").disposable(quick("a", &log)).disposable(slow_down("b", &log)).open().await.unwrap();
        polite(&app, "task", &log);
        sleep(SECOND).await;
        log.take();
        let closing = tokio::time::timeout(Duration::from_millis(time), app.close());
        assert!(closing.await.is_err());
        drop(app);
        sleep(10 * SECOND).await;
        assert_eq!(log.take(), ["told task", "end task", "down b", "down a in app"]);
    }
}

/// Takes a second to tear down.
fn slow_down(name: &'static str, log: &Log) -> Disposable {
    let log = log.clone();
    Disposable::new(
        async move |_: Scope| Ok::<_, io::Error>(Value(name)),
        async move |_: Arc<Value>| {
            sleep(SECOND).await;
            log.note(format_args!("down {name}"));
        },
    )
}

/// Bad input: closed twice.
///
/// Shows: X4
#[test]
fn of_many_that_close_a_scope_at_once_all_hear_the_same_and_it_is_torn_down_once() {
    const THREADS: usize = 4;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_time().build().unwrap();
    for _ in 0..50 {
        let log = Log::default();
        let opening = Scope::root("app").disposable(quick("a", &log)).disposable(stuck("b", &log)).open();
        let app = runtime.block_on(opening).unwrap();
        let entered = runtime.enter();
        drop(app.spawn(tokio::task::yield_now()));
        drop(entered);
        log.take();
        let barrier = Barrier::new(THREADS);
        thread::scope(|threads| {
            for _ in 0..THREADS {
                threads.spawn(|| {
                    barrier.wait();
                    let closed = runtime.block_on(app.close());
                    assert_eq!(closed.unwrap_err().faults().len(), 1);
                });
            }
        });
        assert_eq!(log.take(), ["down b", "down a in app"]);
    }
}

/// A task is either admitted and waited for, or refused.
///
/// Shows: X5
#[test]
fn no_task_slips_through_while_its_scope_is_closed() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_time().build().unwrap();
    for round in 0..300 {
        let log = Log::default();
        let app = runtime.block_on(Scope::root("app").disposable(quick("a", &log)).open()).unwrap();
        let child = app.child("child");
        log.take();
        let barrier = Barrier::new(2);
        thread::scope(|threads| {
            threads.spawn(|| {
                barrier.wait();
                let scope = if round % 2 == 0 { &app } else { &child };
                let log = log.clone();
                let _entered = runtime.enter();
                drop(scope.spawn(async move {
                    tokio::task::yield_now().await;
                    log.note("task");
                }));
            });
            barrier.wait();
            runtime.block_on(app.close()).unwrap();
        });
        let happened = log.take();
        assert_eq!(happened.last().unwrap(), "down a in app", "{happened:?}");
    }
}

/// Bad input: closed from inside one of its own tasks.
///
/// Shows: X5
#[tokio::test(start_paused = true)]
async fn a_task_can_close_its_own_scope_and_those_around_and_hears_the_result() {
    for outer in [false, true] {
        let log = Log::default();
        let app = Scope::root("app").disposable(stuck("a", &log)).open().await.unwrap();
        let child = app.child("child");
        // This task has to be aborted, the closing one does not.
        let deaf = app.spawn(pending::<()>());
        polite(&app, "other", &log);
        let task = if outer { &child } else { &app }.spawn({
            let (app, log) = (app.clone(), log.clone());
            async move {
                sleep(SECOND).await;
                let closed = app.close().await;
                log.note("closed");
                // It runs on.
                sleep(20 * SECOND).await;
                assert_eq!(Scope::current().unwrap().get::<Value>().unwrap().0, "a");
                closed
            }
        });
        let start = Instant::now();
        sleep(SECOND / 2).await;
        app.cancelled().await;
        // Another caller gets the same result.
        assert_eq!(app.close().await.unwrap_err().faults().len(), 1);
        assert_eq!(start.elapsed(), 6 * SECOND);
        assert!(deaf.await.is_err());
        assert_eq!(task.await.unwrap().unwrap_err().faults().len(), 1);
        assert_eq!(log.take(), ["told other", "end other", "down a", "closed"]);
    }
}

/// The task is all that is left of its scope.
#[tokio::test(start_paused = true)]
async fn a_task_that_has_closed_its_scope_goes_on_in_it() {
    let app = Scope::root("app").with(Value("app"));
    let task = app.spawn(async {
        sleep(SECOND).await;
        Scope::current().unwrap().close().await.unwrap();
        sleep(SECOND).await;
        Scope::current().unwrap().get::<Value>().unwrap().0
    });
    sleep(SECOND).await;
    app.cancelled().await;
    drop(app);
    assert_eq!(task.await.unwrap(), "app");
}

/// Bad input: closed from inside a tear-down, which the closing awaits.
#[tokio::test(start_paused = true)]
async fn a_tear_down_that_awaits_its_own_closing_gets_an_error_at_once() {
    let log = Log::default();
    let app = Scope::root("app").disposable(quick("a", &log)).open().await.unwrap();
    let tear_down = log.clone();
    let child = app.child("child").disposable(Disposable::new(
        async |_: Scope| Ok::<_, io::Error>(Value("child")),
        async move |_: Arc<Value>| {
            let scope = Scope::current().unwrap();
            tear_down.note(scope.close().await.unwrap_err());
            let error = scope.parent().unwrap().close().await.unwrap_err();
            assert!(matches!(error.faults()[0].kind(), ScopeFailureKind::AwaitsItself));
        },
    ));
    let child = child.open().await.unwrap();
    log.take();
    child.close().await.unwrap();
    assert_eq!(log.take()[0], "a tear-down in the scope `app/child` awaits the closing that awaits it");
    // The tear-down has cancelled the parent too.
    assert!(app.is_cancelled());
    app.close().await.unwrap();
    assert_eq!(log.take(), ["down a in app"]);
}

/// Bad input: closed while it is being set up, from outside and from inside.
///
/// Shows: X4
#[tokio::test(start_paused = true)]
async fn a_scope_that_is_closed_while_it_is_set_up_is_undone_and_not_opened() {
    let log = Log::default();
    let app = Scope::root("app");
    let opening = app.clone().disposable(slow("a", SECOND, &log)).disposable(slow("b", SECOND, &log)).open();
    let closing = async {
        sleep(SECOND + SECOND / 2).await;
        app.close().await
    };
    let (opened, closed) = tokio::join!(opening, closing);
    assert_eq!(opened.unwrap_err().to_string(), "the scope `app` is closed");
    closed.unwrap();
    assert_eq!(log.take(), ["up a in app", "dropped b", "down a in app"]);

    let opening = Scope::root("app").disposable(quick("a", &log)).disposable(Disposable::new(
        async |scope: Scope| {
            scope.close().await?;
            Ok::<_, Box<dyn std::error::Error + Send + Sync>>(Value("never"))
        },
        async |_: Arc<Value>| {},
    ));
    let error = opening.open().await.unwrap_err();
    assert!(matches!(error.faults()[0].kind(), ScopeFailureKind::Closed), "{error}");
    assert_eq!(log.take(), ["up a in app", "down a in app"]);
}

/// The caller that opens a scope need not poll for the scope to close.
#[tokio::test(start_paused = true)]
async fn an_opening_that_nobody_polls_does_not_hold_up_a_closing() {
    let log = Log::default();
    let app = Scope::root("app");
    let opening = app.clone().disposable(quick("a", &log)).disposable(slow("b", 60 * SECOND, &log));
    let mut opening = ziggurat::testing::TestTask::new(opening.open());
    assert!(opening.poll().is_pending());
    sleep(SECOND).await;
    app.close().await.unwrap();
    assert_eq!(log.take(), ["up a in app", "dropped b", "down a in app"]);
    drop(opening);
}

/// Shows: X4, X5
#[tokio::test(start_paused = true)]
async fn a_scope_whose_last_handle_is_dropped_is_closed_on_a_task() {
    let log = Log::default();
    let app = Scope::root("app").with(7_u32).disposable(quick("a", &log)).open().await.unwrap();
    let (told, id) = (app.cancelled(), app.id());
    let task = app.spawn({
        let log = log.clone();
        async move {
            told.await;
            sleep(SECOND).await;
            // It is the same scope as before, with all its parts.
            let scope = Scope::current().unwrap();
            assert_eq!((scope.id(), *scope.get::<u32>().unwrap()), (id, 7));
            assert_eq!(scope.get::<Value>().unwrap().0, "a");
            log.note("end task");
        }
    });
    let child = app.child("child").disposable(quick("c", &log)).open().await.unwrap();
    sleep(SECOND).await;
    log.take();
    // A child is a handle of its parent.
    drop(app);
    sleep(SECOND).await;
    assert!(log.take().is_empty());
    drop(child);
    task.await.unwrap();
    sleep(SECOND).await;
    assert_eq!(log.take(), ["down c in child", "end task", "down a in app"]);
}

/// Shows: X5
#[tokio::test(start_paused = true)]
async fn a_task_does_not_keep_its_scope_and_is_aborted_when_it_does_not_hear() {
    let log = Log::default();
    let app = Scope::root("app").disposable(quick("a", &log)).open().await.unwrap();
    let task = app.spawn(pending::<()>());
    sleep(SECOND).await;
    log.take();
    drop(app);
    let start = Instant::now();
    assert!(task.await.is_err());
    assert_eq!(start.elapsed(), 5 * SECOND);
    tokio::task::yield_now().await;
    sleep(Duration::from_millis(1)).await;
    assert_eq!(log.take(), ["down a in app"]);
}

/// A parent is closed just when a child's last handle is dropped and while its task is polled.
#[test]
fn a_parent_waits_for_a_child_that_was_just_dropped() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_time().build().unwrap();
    for _ in 0..300 {
        let log = Log::default();
        let app = runtime.block_on(Scope::root("app").disposable(quick("a", &log)).open()).unwrap();
        let child = runtime.block_on(app.child("child").disposable(quick("c", &log)).open()).unwrap();
        let entered = runtime.enter();
        drop(child.spawn(async {
            while !Scope::current().unwrap().is_cancelled() {
                tokio::task::yield_now().await;
            }
        }));
        drop(entered);
        log.take();
        let barrier = Barrier::new(2);
        thread::scope(|threads| {
            threads.spawn(|| {
                barrier.wait();
                let _entered = runtime.enter();
                drop(child);
            });
            barrier.wait();
            runtime.block_on(app.close()).unwrap();
        });
        assert_eq!(log.take(), ["down c in child", "down a in app"]);
    }
}

/// Without a runtime no caller waits for ever, and the values that were set up are dropped.
#[test]
fn when_the_runtime_is_gone_a_closing_says_so() {
    let log = Log::default();
    let value = Arc::new(());
    let held = Arc::clone(&value);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let holds =
        Disposable::new(async |_: Scope| Ok::<_, io::Error>(Value("holds")), async move |_: Arc<Value>| drop(held));
    let app = runtime.block_on(Scope::root("app").disposable(holds).open()).unwrap();
    let child = runtime.block_on(app.child("child").disposable(quick("c", &log)).open()).unwrap();
    drop(runtime);
    let mut closing = ziggurat::testing::TestTask::new(app.close());
    let std::task::Poll::Ready(closed) = closing.poll() else { panic!("it hangs") };
    let error = closed.unwrap_err();
    let lost = |scope| {
        format!(
            "the scope `{scope}` has no tokio runtime to open or close in; the scope `{scope}` has no tokio runtime to tear down \
             `suite::scope_disposables::Value` in: it was only dropped"
        )
    };
    assert_eq!(error.to_string(), format!("{}; {}", lost("app/child"), lost("app")));
    assert_eq!(error.scope(), "app");
    assert_eq!(Arc::strong_count(&value), 1);
    assert!(child.is_cancelled());
    drop(child);
}

/// A closing that is cut off by the end of its runtime is reported to callers elsewhere.
#[test]
fn a_closing_that_is_cut_off_by_the_end_of_its_runtime_says_so() {
    let log = Log::default();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    let app = runtime.block_on(Scope::root("app").disposable(slow_down("a", &log)).open()).unwrap();
    let mut closing = ziggurat::testing::TestTask::new(app.close());
    runtime.block_on(async {
        assert!(closing.poll().is_pending());
        sleep(SECOND / 2).await;
    });
    drop(runtime);
    let std::task::Poll::Ready(Err(error)) = closing.poll() else { panic!("it hangs") };
    assert!(matches!(error.faults()[0].kind(), ScopeFailureKind::NoRuntime), "{error}");
    assert!(matches!(error.faults()[1].kind(), ScopeFailureKind::NotTornDown { .. }), "{error}");
}

/// Each of two tear-downs awaits the closing of the other's scope: the grace period of its own scope ends the wait.
///
/// Shows: X4
#[tokio::test(start_paused = true)]
async fn tear_downs_of_two_scopes_that_await_each_other_end_with_their_grace_period() {
    let log = Log::default();
    let app = Scope::root("app").grace(3 * SECOND);
    let scopes = [app.child("a"), app.child("b")];
    for (own, other) in [(0, 1), (1, 0)] {
        let (other, noted) = (scopes[other].clone(), log.clone());
        let awaits = Disposable::new(
            async |_: Scope| Ok::<_, io::Error>(()),
            async move |_: Arc<()>| {
                let closed = other.close().await;
                noted.note(closed.as_ref().unwrap_err());
                closed
            },
        );
        drop(scopes[own].clone().disposable(awaits).open().await.unwrap());
    }
    let begin = Instant::now();
    let error = app.close().await.unwrap_err();
    assert_eq!(begin.elapsed(), 3 * SECOND);
    assert_eq!(error.faults().len(), 2, "{error}");
    // One of them gives up first, and the other may get that error from the closing that it awaits.
    let heard = log.take();
    assert!(heard[0].ends_with("was not closed in the grace period of a tear-down that awaits it"), "{heard:?}");
    assert_eq!(heard.len(), 2);

    // A tear-down that awaits a scope which closes in time gets its result.
    let (app, slow) = (Scope::root("app"), Scope::root("slow"));
    let slow = slow.disposable(slow_down("slow", &log)).open().await.unwrap();
    let other = slow.clone();
    let awaits = Disposable::new(async |_: Scope| Ok::<_, io::Error>(()), async move |_: Arc<()>| other.close().await);
    app.disposable(awaits).open().await.unwrap().close().await.unwrap();
}

/// A scope with nothing to close needs no runtime.
#[test]
fn a_scope_that_owns_nothing_is_closed_without_a_runtime() {
    let app = Scope::root("app");
    let cancelled = app.child("child").cancelled();
    assert!(ziggurat::testing::TestTask::new(app.close()).poll().is_ready());
    assert!(ziggurat::testing::TestTask::new(cancelled).poll().is_ready());
}

/// Bad input: wakers are user code.
///
/// Shows: X5
#[tokio::test(start_paused = true)]
async fn a_waker_that_panics_keeps_neither_the_scope_from_closing_nor_others_from_hearing_of_it() {
    struct Bang;
    impl Wake for Bang {
        fn wake(self: Arc<Self>) {
            panic!("woken");
        }
    }
    let bang = Waker::from(Arc::new(Bang));
    let log = Log::default();
    let app = Scope::root("app").disposable(quick("a", &log)).open().await.unwrap();
    let mut told = pin!(app.cancelled());
    assert!(told.as_mut().poll(&mut Context::from_waker(&bang)).is_pending());
    log.take();
    // Behind it: other waiters, of this scope and of a child, for its start and for its end.
    let child = app.child("child");
    let mut told = [app.cancelled(), child.cancelled(), app.cancelled()].map(ziggurat::testing::TestTask::new);
    assert!(told.iter_mut().all(|told| told.poll().is_pending()));
    let mut closing = pin!(app.close());
    assert!(closing.as_mut().poll(&mut Context::from_waker(&bang)).is_pending());
    assert!(told.iter_mut().all(|told| told.times_woken() == 1 && told.poll().is_ready()));
    let mut others = [app.close(), app.close()].map(ziggurat::testing::TestTask::new);
    assert!(others.iter_mut().all(|closing| closing.poll().is_pending()));
    while !others.iter().any(|closing| closing.times_woken() > 0) {
        tokio::task::yield_now().await;
    }
    assert!(others.iter_mut().all(|closing| closing.times_woken() == 1 && closing.poll().is_ready()));
    assert_eq!(log.take(), ["down a in app"]);
}
