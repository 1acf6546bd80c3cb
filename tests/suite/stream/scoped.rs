//! A stream that is bound to a scope.

use std::{
    convert::Infallible,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::time::sleep;
use tokio_stream::{StreamExt as _, iter};
use ziggurat::{
    Scope,
    concurrent::process_concurrently,
    scope::Disposable,
    stream::{Stream, StreamExt as _, generate},
    testing::TestTask,
};

fn current() -> Option<String> {
    Scope::current().map(|scope| scope.name().to_owned())
}

/// Logs the scope that its clean-up ran in.
struct CleanUp(Arc<Mutex<Vec<Option<String>>>>);

impl Drop for CleanUp {
    fn drop(&mut self) {
        self.0.lock().unwrap().push(current());
    }
}

/// Logs the scope that it runs in, before and after each pause.
fn generator(log: &Arc<Mutex<Vec<Option<String>>>>) -> impl Stream<Item = Option<String>> + use<> {
    let clean_up = CleanUp(Arc::clone(log));
    generate(|names| async move {
        let _clean_up = clean_up;
        for _ in 0..3 {
            sleep(Duration::from_secs(1)).await;
            if names.send(current()).await.is_err() {
                break;
            }
        }
    })
}

/// A generator that enters a scope must not leave its reader in that scope.
///
/// Shows: S1
#[tokio::test(start_paused = true)]
async fn a_scope_that_leaks_out_of_a_stream_is_the_streams_alone() {
    let log = Arc::default();
    let inside = Some("stream".to_owned());
    let scope = Scope::root("stream");
    let mut stream = Box::pin(generator(&log).within_scope(&scope));
    while let Some(name) = stream.next().await {
        assert_eq!((name, current()), (inside.clone(), None));
    }
    // It was cleaned up when it ended, and not when its reader dropped it.
    assert_eq!(log.lock().unwrap().as_slice(), std::slice::from_ref(&inside));
    assert_eq!(stream.next().await, None);

    // Two at once, read in turn within a third scope: each sees its own.
    let read = async {
        let one = Scope::root("one");
        let two = Scope::root("two");
        let mut streams = (Box::pin(generator(&log).within_scope(&one)), Box::pin(generator(&log).within_scope(&two)));
        for _ in 0..3 {
            let names = tokio::join!(streams.0.next(), streams.1.next());
            assert_eq!(names, (Some(Some("one".to_owned())), Some(Some("two".to_owned()))));
            assert_eq!(current(), Some("reader".to_owned()));
        }
    };
    Scope::root("reader").within(read).await;
    assert_eq!(current(), None);
}

/// Shows: S1
#[tokio::test(start_paused = true)]
async fn a_stream_that_is_dropped_early_cleans_up_inside_its_scope() {
    for items in 0..3 {
        let log = Arc::default();
        let mut stream = Box::pin(generator(&log).within_scope(&Scope::root("stream")));
        for _ in 0..items {
            assert!(stream.next().await.is_some());
        }
        assert!(log.lock().unwrap().is_empty());
        drop(stream);
        assert_eq!(*log.lock().unwrap(), [Some("stream".to_owned())]);
        assert_eq!(current(), None);
    }
}

/// A value that was set up for a stream alone is torn down with it, whether it ends or is dropped before, and while its
/// reader lives on.
///
/// Shows: S1
#[tokio::test(start_paused = true)]
async fn a_scope_that_only_its_stream_holds_is_closed_with_the_stream() {
    for items in 0..=4 {
        let (log, scope) = (Arc::default(), Scope::root("stream"));
        let held = CleanUp(Arc::clone(&log));
        let opening = scope
            .disposable(Disposable::new(async |_: Scope| Ok::<_, Infallible>(()), async move |_: Arc<()>| drop(held)));
        let scope = opening.open().await.unwrap();
        let mut stream = iter(0..3).within_scope(&scope);
        drop(scope);
        for _ in 0..items {
            stream.next().await;
        }
        assert!(log.lock().unwrap().is_empty());
        let stream = (items == 4).then_some(stream);
        // The scope is closed on a task.
        sleep(Duration::from_secs(60)).await;
        assert_eq!(*log.lock().unwrap(), [Some("stream".to_owned())]);
        drop(stream);
    }
}

/// Shows: S1
#[test]
fn the_scope_is_gone_after_a_panic_in_the_stream() {
    let stream = iter(0..1).map(|_| -> u32 { panic!("in the stream") }).within_scope(&Scope::root("stream"));
    let mut read = TestTask::new(stream.collect::<Vec<_>>());
    assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| read.poll())).is_err());
    assert_eq!(current(), None);
}

/// The source of a run is polled in its own scope, and the items run in the caller's scope.
///
/// Shows: S1, P1
#[tokio::test(start_paused = true)]
async fn the_source_of_a_run_has_its_scope_and_the_items_have_the_callers() {
    let seen = AtomicUsize::new(0);
    let source = iter(0..3).map(|_| current()).within_scope(&Scope::root("source"));
    let run = process_concurrently(source, |source: Option<String>| {
        let seen = &seen;
        async move {
            assert_eq!((source.as_deref(), current().as_deref()), (Some("source"), Some("caller")));
            seen.fetch_add(1, Ordering::Relaxed);
            Ok::<_, ()>(())
        }
    });
    Scope::root("caller").within(async { run.await.unwrap() }).await;
    assert_eq!(seen.into_inner(), 3);
}
