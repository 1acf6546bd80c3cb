//! The runtime in which a scope is closed, also if there is none, or one without time.

use std::{
    future::{pending, poll_fn},
    io,
    pin::pin,
    sync::{Arc, mpsc},
    task::Poll,
};

use tokio::runtime::{Builder, Handle, Id, Runtime};
use ziggurat::{
    Scope,
    scope::{Disposable, Ending, ScopeFailureKind, TaskError},
};

struct Connection;

/// Reports the runtime that it is torn down in, after it was pending there.
fn connection(told: mpsc::Sender<(Id, Ending)>) -> Disposable {
    Disposable::with_ending(
        async |_: Scope| Ok::<_, io::Error>(Connection),
        async move |_: Arc<Connection>, ending: Ending| {
            tokio::task::yield_now().await;
            told.send((Handle::current().id(), ending)).unwrap();
        },
    )
}

/// Runs by itself.
fn busy() -> Runtime {
    Builder::new_multi_thread().worker_threads(1).build().unwrap()
}

/// Runs only in `block_on`.
fn idle() -> Runtime {
    Builder::new_current_thread().build().unwrap()
}

/// Shows: X4
#[test]
fn the_last_handle_that_is_dropped_in_another_runtime_closes_the_scope_where_it_was_set_up() {
    let (home, short_lived) = (busy(), idle());
    let (told, tells) = mpsc::channel();
    let app = home.block_on(Scope::root("app").disposable(connection(told)).open()).unwrap();
    short_lived.block_on(async { drop(app) });
    drop(short_lived);
    assert_eq!(tells.recv(), Ok((home.handle().id(), Ending::Cancelled)));
}

/// Shows: X4
#[test]
fn the_last_handle_that_is_dropped_after_the_end_of_its_runtime_closes_the_scope_in_the_one_that_is_there() {
    let (home, other) = (idle(), busy());
    let (told, tells) = mpsc::channel();
    let app = home.block_on(Scope::root("app").disposable(connection(told)).open()).unwrap();
    drop(home);
    other.block_on(async { drop(app) });
    assert_eq!(tells.recv(), Ok((other.handle().id(), Ending::Cancelled)));
}

/// The runtime in which the scope was set up exists, but is not driven: the caller of `close` does not wait for it.
///
/// Shows: X4
#[test]
fn who_closes_a_scope_waits_for_no_runtime_but_its_own() {
    let (home, other) = (idle(), idle());
    let (told, tells) = mpsc::channel();
    let app = home.block_on(Scope::root("app").disposable(connection(told)).open()).unwrap();
    other.block_on(app.close()).unwrap();
    assert_eq!(tells.recv(), Ok((other.handle().id(), Ending::Completed)));
}

/// Shows: X4
#[test]
fn a_closing_that_is_cut_off_in_another_runtime_goes_on_where_the_scope_was_set_up() {
    let (home, short_lived) = (busy(), idle());
    let (told, tells) = mpsc::channel();
    let app = home.block_on(Scope::root("app").disposable(connection(told)).open()).unwrap();
    short_lived.block_on(async {
        let mut closing = pin!(app.close());
        poll_fn(|cx| {
            assert!(closing.as_mut().poll(cx).is_pending());
            Poll::Ready(())
        })
        .await;
    });
    drop(short_lived);
    assert_eq!(tells.recv(), Ok((home.handle().id(), Ending::Completed)));
    home.block_on(app.close()).unwrap();
}

/// No runtime is left: the values are dropped, and the result of `close` names them.
///
/// Shows: X4
#[test]
fn a_tear_down_that_no_runtime_is_left_for_is_named() {
    let home = idle();
    let (told, tells) = mpsc::channel();
    let app = home.block_on(Scope::root("app").disposable(connection(told)).open()).unwrap();
    drop(home);
    let error = idle_without_it(app);
    let kinds: Vec<_> = error.faults().iter().map(ziggurat::scope::ScopeFailure::kind).collect();
    assert!(
        matches!(kinds[..], [ScopeFailureKind::NoRuntime, ScopeFailureKind::NotTornDown { type_name }] if type_name.ends_with("Connection")),
        "{error}"
    );
    assert!(tells.recv().is_err());
}

fn idle_without_it(app: Scope) -> ziggurat::scope::ScopeError {
    let Poll::Ready(closed) = ziggurat::testing::TestTask::new(app.close()).poll() else { panic!("it hangs") };
    closed.unwrap_err()
}

/// Shows: X5
#[test]
fn a_runtime_without_time_ends_the_grace_period_too() {
    for runtime in [idle(), busy()] {
        let (told, tells) = mpsc::channel();
        let app = Scope::root("app").grace(std::time::Duration::ZERO).disposable(connection(told));
        let (deaf, closed) = runtime.block_on(async {
            let app = app.open().await.unwrap();
            let deaf = app.spawn(pending::<()>());
            let closed = app.close().await;
            (deaf.await, closed)
        });
        closed.unwrap();
        assert!(matches!(deaf, Err(TaskError::Aborted)), "{deaf:?}");
        assert!(tells.recv().is_ok());
    }
}

/// Shows: X5
#[test]
fn a_runtime_without_time_lets_tasks_end_in_the_grace_period() {
    let runtime = idle();
    let ended = runtime.block_on(async {
        let app = Scope::root("app");
        let told = app.cancelled();
        let polite = app.spawn(async {
            told.await;
            tokio::task::yield_now().await;
            7
        });
        app.close().await.unwrap();
        polite.await
    });
    assert_eq!(ended.unwrap(), 7);
}
