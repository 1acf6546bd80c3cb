//! A tear-down learns how the work in its scope ended.

use std::{future::pending, io, panic::AssertUnwindSafe, sync::Arc, time::Duration};

use futures_util::FutureExt;
use http::{Request, Response};
use tower::{Layer, ServiceExt, service_fn};
use ziggurat::{
    Scope,
    context::ContextLayer,
    scope::{Disposable, Ending},
    testing::TestTask,
};

use crate::scope_disposables::Log;

struct Transaction;

/// Logs how the work ended.
fn transaction(log: &Log) -> Disposable {
    let log = log.clone();
    Disposable::with_ending(
        async |_: Scope| Ok::<_, io::Error>(Transaction),
        async move |_: Arc<Transaction>, ending: Ending| log.note(format_args!("{ending:?}")),
    )
}

/// Shows: X4
#[tokio::test]
async fn a_tear_down_learns_whether_the_body_succeeded_failed_or_panicked() {
    let log = Log::default();
    let order = || Scope::root("order").disposable(transaction(&log));
    let _ran = order().run(async |_: Scope| {}).await.unwrap();
    let _ran = order().run(async |_: Scope| Ok::<_, io::Error>(7)).await.unwrap();
    assert_eq!(log.take(), ["Completed", "Completed"]);
    let _ran = order().run(async |_: Scope| Err::<(), _>("out of stock")).await.unwrap();
    assert_eq!(log.take(), ["Failed"]);
    let scope = Scope::root("order");
    let panics = scope.clone().disposable(transaction(&log)).run(async |_: Scope| -> () { panic!("out of order") });
    assert!(AssertUnwindSafe(panics).catch_unwind().await.is_err());
    scope.close().await.unwrap();
    assert_eq!(log.take(), ["Panicked"]);
}

/// Shows: X4
#[tokio::test(start_paused = true)]
async fn a_tear_down_learns_that_the_work_was_cut_off() {
    let log = Log::default();
    // The body is dropped.
    let scope = Scope::root("order");
    let run = scope.clone().disposable(transaction(&log)).run(async |_: Scope| pending::<()>().await);
    assert!(tokio::time::timeout(Duration::from_secs(1), run).await.is_err());
    scope.close().await.unwrap();
    // A scope around it is closed, whatever the body returns.
    let app = Scope::root("app");
    let mut run =
        TestTask::new(app.child("order").disposable(transaction(&log)).run(async |_: Scope| pending::<()>().await));
    assert!(run.poll().is_pending());
    tokio::task::yield_now().await;
    assert!(run.poll().is_pending());
    app.close().await.unwrap();
    // The last handle is dropped.
    let scope = Scope::root("order").disposable(transaction(&log)).open().await.unwrap();
    let (told, tells) = tokio::sync::oneshot::channel::<()>();
    let last =
        scope.disposable(Disposable::new(async |_: Scope| Ok::<_, io::Error>(()), async |_: Arc<()>| drop(told)));
    drop(last.open().await.unwrap());
    assert!(tells.await.is_err());
    tokio::task::yield_now().await;
    assert_eq!(log.take(), ["Cancelled", "Cancelled", "Cancelled"]);
}

/// Shows: X4
#[tokio::test]
async fn a_tear_down_learns_that_the_scope_did_not_open_and_that_it_was_closed() {
    let log = Log::default();
    let failing = Disposable::new(async |_: Scope| Err::<(), _>("no disk"), async |_: Arc<()>| {});
    assert!(Scope::root("order").disposable(transaction(&log)).disposable(failing).open().await.is_err());
    assert_eq!(log.take(), ["Failed"]);
    let scope = Scope::root("order").disposable(transaction(&log)).open().await.unwrap();
    scope.close().await.unwrap();
    assert_eq!(log.take(), ["Completed"]);
}

/// The scope of a request: the values that its handler sets up learn whether there was a response.
///
/// Shows: X4, X8
#[tokio::test]
async fn a_tear_down_in_the_scope_of_a_request_learns_how_the_call_ended() {
    let log = Log::default();
    let app = Scope::root("app");
    let call = |outcome: Option<Result<(), &'static str>>| {
        let (app, log) = (app.clone(), log.clone());
        async move {
            let handler = service_fn(move |_: Request<()>| {
                let log = log.clone();
                async move {
                    Scope::current().unwrap().disposable(transaction(&log)).open().await.unwrap();
                    let outcome = match outcome {
                        Some(outcome) => outcome,
                        None => pending().await,
                    };
                    outcome.map(|()| Response::new(String::new()))
                }
            });
            ContextLayer::new(app).layer(handler).oneshot(Request::new(())).await.map(drop)
        }
    };
    assert!(call(Some(Ok(()))).await.is_ok());
    assert!(call(Some(Err("broken"))).await.is_err());
    let mut dropped = TestTask::new(call(None));
    for _ in 0..10 {
        assert!(dropped.poll().is_pending());
        tokio::task::yield_now().await;
    }
    drop(dropped);
    app.close().await.unwrap();
    assert_eq!(log.take(), ["Completed", "Failed", "Cancelled"]);
}
