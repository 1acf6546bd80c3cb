//! Groups of tasks that fail together.

use std::{future::pending, io, panic::AssertUnwindSafe, sync::Arc, time::Duration};

use futures_util::FutureExt;
use tokio::{sync::oneshot, time::sleep};
use ziggurat::{
    Scope,
    scope::{Disposable, Ending, Group, GroupError, RunError, TaskError},
};

use crate::scope_disposables::{Log, OnDrop};

const SECOND: Duration = Duration::from_secs(1);

/// Logs when it is dropped, and never ends.
async fn deaf(log: Log, name: &'static str) -> Result<u32, io::Error> {
    let _dropped = OnDrop(&log, name);
    pending().await
}

/// Shows: X5
#[tokio::test(start_paused = true)]
async fn a_group_gives_what_its_body_makes_of_the_values_of_its_tasks() {
    let ran = Scope::root("page").run_group(async |group: Group<io::Error>| {
        let in_scope = group.spawn(async { Ok(Scope::current().unwrap().name().to_owned()) });
        let slow = group.spawn(async {
            sleep(SECOND).await;
            Ok(7)
        });
        assert_eq!(group.scope().name(), "page");
        Ok((slow.await, in_scope.await))
    });
    let (output, closed) = ran.await.unwrap().into_parts();
    assert_eq!(output.unwrap(), (7, "page".to_owned()));
    closed.unwrap();
}

/// The group waits for tasks whose handles were dropped, and for those that they spawn.
///
/// Shows: X5
#[tokio::test(start_paused = true)]
async fn a_group_waits_for_all_its_tasks() {
    let log = Log::default();
    let (noted, scope) = (log.clone(), Scope::root("page"));
    let ran = scope.run_group(async move |group: Group<io::Error>| {
        let (inner, told) = (group.clone(), group.scope().cancelled());
        drop(group.spawn(async move {
            sleep(SECOND).await;
            let log = noted.clone();
            drop(inner.spawn(async move {
                // They are not cancelled: the body has returned, and they run on.
                assert!(told.now_or_never().is_none());
                sleep(SECOND).await;
                log.note("the inner one");
                Ok(())
            }));
            noted.note("the outer one");
            Ok(())
        }));
        Ok(())
    });
    ran.await.unwrap().into_result().unwrap();
    assert_eq!(log.take(), ["the outer one", "the inner one"]);
}

/// The first failure, of a task whose handle was dropped, ends the body and the other tasks. They have been dropped
/// when it is returned.
///
/// Shows: X5
#[tokio::test(start_paused = true)]
async fn the_first_failure_ends_the_body_and_the_other_tasks_at_once() {
    let log = Log::default();
    let begin = tokio::time::Instant::now();
    let (noted, end) = (log.clone(), log.clone());
    let transaction = Disposable::with_ending(
        async |_: Scope| Ok::<_, io::Error>(()),
        async move |_: Arc<()>, ending: Ending| end.note(format_args!("{ending:?}")),
    );
    let ran = Scope::root("page").disposable(transaction).run_group(async move |group: Group<io::Error>| {
        let _dropped = OnDrop(&noted, "body");
        let waits = group.spawn(deaf(noted.clone(), "awaited"));
        drop(group.spawn(deaf(noted.clone(), "not awaited")));
        drop(group.scope().spawn(deaf(noted.clone(), "of the scope")));
        drop(group.spawn(async {
            sleep(SECOND).await;
            Err::<(), _>(io::Error::other("first"))
        }));
        drop(group.spawn(async {
            sleep(2 * SECOND).await;
            Err::<(), _>(io::Error::other("second"))
        }));
        Ok(waits.await)
    });
    let error = ran.await.unwrap().into_result().unwrap_err();
    assert!(matches!(&error, RunError::Body(GroupError::Failed(error)) if error.to_string() == "first"), "{error}");
    // No grace period.
    assert_eq!(begin.elapsed(), SECOND);
    let mut happened = log.take();
    assert_eq!(happened.pop().unwrap(), "Failed");
    happened.sort_unstable();
    assert_eq!(happened, ["dropped awaited", "dropped body", "dropped not awaited", "dropped of the scope"]);
}

/// Shows: X5
#[tokio::test(start_paused = true)]
async fn an_error_of_the_body_and_a_panic_of_a_task_end_the_group_too() {
    let log = Log::default();
    let noted = log.clone();
    let ran = Scope::root("page").run_group(async move |group: Group<io::Error>| {
        drop(group.spawn(deaf(noted, "task")));
        tokio::task::yield_now().await;
        Err::<(), _>(io::Error::other("body"))
    });
    let (output, closed) = ran.await.unwrap().into_parts();
    assert!(matches!(output, Err(GroupError::Failed(error)) if error.to_string() == "body"));
    closed.unwrap();
    assert_eq!(log.take(), ["dropped task"]);

    let ran = Scope::root("page").run_group(async |group: Group<io::Error>| {
        let never = group.spawn::<(), _>(async { panic!("a bug") });
        never.await;
        Ok(())
    });
    let (output, _) = ran.await.unwrap().into_parts();
    let Err(GroupError::Task(TaskError::Panicked(panic))) = output else { panic!("{output:?}") };
    assert_eq!(panic.message(), "a bug");
}

/// A group that is dropped, or whose body panics, leaves no task behind, and gives none a grace period.
///
/// Shows: X5
#[tokio::test(start_paused = true)]
async fn a_group_that_is_dropped_or_panics_aborts_its_tasks() {
    for panics in [true, false] {
        let log = Log::default();
        let (noted, scope) = (log.clone(), Scope::root("page"));
        let run = scope.clone().run_group(async move |group: Group<io::Error>| {
            drop(group.spawn(deaf(noted, "task")));
            sleep(SECOND).await;
            assert!(!panics, "a bug");
            pending::<Result<(), _>>().await
        });
        let begin = tokio::time::Instant::now();
        let ended = AssertUnwindSafe(tokio::time::timeout(2 * SECOND, run)).catch_unwind().await;
        assert_eq!(ended.is_err(), panics);
        scope.close().await.unwrap();
        assert!(begin.elapsed() <= 2 * SECOND);
        assert_eq!(log.take(), ["dropped task"]);
    }
}

/// The scope is closed from outside: the group fails, and its body does not wait for ever.
///
/// Shows: X5
#[tokio::test(start_paused = true)]
async fn a_group_whose_scope_is_closed_fails() {
    let app = Scope::root("app").grace(SECOND);
    let (begun, begins) = oneshot::channel();
    let log = Log::default();
    let (noted, page) = (log.clone(), app.child("page"));
    let run = page.run_group(async move |group: Group<io::Error>| {
        let waits = group.spawn(deaf(noted, "task"));
        begun.send(()).unwrap();
        Ok(waits.await)
    });
    let close = async {
        begins.await.unwrap();
        app.close().await.unwrap();
    };
    let (ran, ()) = tokio::join!(run, close);
    let (output, _) = ran.unwrap().into_parts();
    assert!(matches!(output, Err(GroupError::Task(TaskError::Aborted))), "{output:?}");
    assert_eq!(log.take(), ["dropped task"]);

    let error = app.child("page").run_group(async |_: Group<io::Error>| Ok(())).await.unwrap_err();
    assert!(error.to_string().contains("is closed"));
    // Closed by its own body: no more tasks are started.
    let ran = Scope::root("page").run_group(async |group: Group<io::Error>| {
        group.scope().close().await.unwrap();
        Ok(group.spawn(async { Ok(7) }).await)
    });
    let (output, _) = ran.await.unwrap().into_parts();
    assert!(matches!(output, Err(GroupError::Task(TaskError::Closed(_)))), "{output:?}");
}
