//! Deeply nested scopes, and many values in one stage: the stack does not grow, and the work grows linearly.

use std::{
    future::Future,
    io,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    task::Poll,
    thread,
};

use tokio::{runtime::Builder, sync::Semaphore};
use ziggurat::{Scope, scope::Disposable, testing::TestTask};

const DEPTH: usize = 10_000;

struct Held(&'static str);

/// Creates `depth` scopes, each inside the previous one. Returns the outermost and the innermost.
fn nested(depth: usize) -> (Scope, Scope) {
    let app = Scope::root("app").with(Held("app"));
    let innermost = (0..depth).fold(app.clone(), |scope, _| scope.child("in"));
    (app, innermost)
}

fn held() -> Disposable {
    Disposable::new(async |_: Scope| Ok::<_, io::Error>(()), async |_: Arc<()>| {})
}

/// Runs `f` on a stack that a recursive call for each scope would overflow.
fn on_a_small_stack(f: impl FnOnce() + Send + 'static) {
    thread::Builder::new().stack_size(512 * 1024).spawn(f).unwrap().join().unwrap();
}

/// Shows: X1, X4
#[test]
fn scopes_nest_deeper_than_the_stack_is() {
    on_a_small_stack(|| {
        let runtime = Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let (app, innermost) = nested(DEPTH);
            assert_eq!(innermost.get::<Held>().unwrap().0, "app");
            assert!(!innermost.is_cancelled() && innermost.is_within(&app));
            let innermost = innermost.disposable(held()).open().await.unwrap();
            let cancelled = innermost.cancelled();
            let task = innermost.spawn(async move {
                cancelled.await;
                "told"
            });
            app.close().await.unwrap();
            assert_eq!(task.await.unwrap(), "told");
            assert!(innermost.is_cancelled());
        });
    });
}

/// Shows: X4
#[test]
fn nested_scopes_are_dropped_one_after_the_other() {
    on_a_small_stack(|| {
        // Scopes that own nothing, that no longer own anything, and that have to be closed.
        drop(nested(DEPTH));
        let (app, innermost) = nested(DEPTH);
        drop(innermost.cancelled());
        drop((app, innermost));
        let runtime = Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let (app, innermost) = nested(DEPTH);
            let innermost = innermost.disposable(held()).open().await.unwrap();
            let closed = app.cancelled();
            drop((app, innermost));
            closed.await;
        });
    });
}

/// Shows: X4
#[test]
fn nested_scopes_end_one_after_the_other_where_no_runtime_is_left() {
    on_a_small_stack(|| {
        let runtime = Builder::new_current_thread().build().unwrap();
        let (app, innermost) = nested(DEPTH);
        let innermost = runtime.block_on(innermost.disposable(held()).open()).unwrap();
        drop(runtime);
        let Poll::Ready(closed) = TestTask::new(app.close()).poll() else { panic!("it hangs") };
        assert!(closed.is_err());
        let Poll::Ready(closed) = TestTask::new(innermost.close()).poll() else { panic!("it hangs") };
        assert_eq!(closed.unwrap_err().faults().len(), 2);
    });
}

/// Each set-up is woken on its own, and only that one is polled.
///
/// Shows: X4
#[tokio::test(flavor = "current_thread")]
async fn values_of_one_stage_are_polled_only_when_they_are_woken() {
    const VALUES: usize = 500;
    let (polls, next) = (Arc::<AtomicUsize>::default(), Arc::new(Semaphore::new(0)));
    let values = (0..VALUES).map(|_| {
        let (polls, next) = (Arc::clone(&polls), Arc::clone(&next));
        Disposable::new(
            async move |_: Scope| {
                let mut turn = Box::pin(next.acquire());
                std::future::poll_fn(|cx| {
                    polls.fetch_add(1, SeqCst);
                    turn.as_mut().poll(cx).map(drop)
                })
                .await;
                Ok::<_, io::Error>(())
            },
            async |_: Arc<()>| {},
        )
    });
    let opened = tokio::spawn(Scope::root("app").disposables(values).open());
    while polls.load(SeqCst) < VALUES {
        tokio::task::yield_now().await;
    }
    // One after the other: each released permit wakes the next.
    next.add_permits(1);
    opened.await.unwrap().unwrap().close().await.unwrap();
    // The first poll, the one after its wake-up, and one in which tokio makes it yield.
    assert!(polls.load(SeqCst) <= 3 * VALUES, "{}", polls.load(SeqCst));
}
