//! A scope undoes exactly the values that it has set up.

use std::{
    error::Error,
    fmt, io,
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::time::{Instant, sleep};
use ziggurat::{
    Scope,
    scope::{Disposable, Panic, RunError, ScopeError, ScopeFailureKind},
};

const SECOND: Duration = Duration::from_secs(1);

/// A log of events, in order.
#[derive(Clone, Default)]
pub(super) struct Log(Arc<Mutex<Vec<String>>>);

impl Log {
    pub(super) fn note(&self, what: impl fmt::Display) {
        self.0.lock().unwrap().push(what.to_string());
    }

    pub(super) fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.0.lock().unwrap())
    }
}

#[derive(Debug, PartialEq)]
pub(super) struct Value(pub(super) &'static str);

/// Takes `time` to set up. Logs set-up and tear-down, with the scope that they run in.
pub(super) fn slow(name: &'static str, time: Duration, log: &Log) -> Disposable {
    let (up, down) = (log.clone(), log.clone());
    let note = move |log: Log, what: &str| log.note(format!("{what} {name} in {}", Scope::current().unwrap().name()));
    Disposable::new(
        async move |scope: Scope| {
            assert_eq!(scope.id(), Scope::current().unwrap().id());
            let _dropped = OnDrop(&up, name);
            sleep(time).await;
            std::mem::forget(_dropped);
            note(up, "up");
            Ok::<_, io::Error>(Value(name))
        },
        async move |value: Arc<Value>| {
            assert_eq!(value.0, name);
            tokio::task::yield_now().await;
            note(down, "down");
        },
    )
}

/// Logs when it is dropped, for example with a set-up that was not completed.
pub(super) struct OnDrop<'a>(pub(super) &'a Log, pub(super) &'static str);

impl Drop for OnDrop<'_> {
    fn drop(&mut self) {
        self.0.note(format_args!("dropped {}", self.1));
    }
}

pub(super) fn quick(name: &'static str, log: &Log) -> Disposable {
    slow(name, Duration::ZERO, log)
}

fn failing(name: &'static str) -> Disposable {
    Disposable::new(
        async move |_: Scope| {
            sleep(SECOND).await;
            Err::<Value, _>(io::Error::other(name))
        },
        async |_: Arc<Value>| -> () { unreachable!("it was never set up") },
    )
}

/// Fails or panics when it is torn down.
pub(super) fn stuck(name: &'static str, log: &Log) -> Disposable {
    let log = log.clone();
    Disposable::new(
        async move |_: Scope| Ok::<_, io::Error>(Value(name)),
        async move |_: Arc<Value>| {
            log.note(format_args!("down {name}"));
            assert!(!name.starts_with("panic"), "{name}");
            Err::<(), _>(io::Error::other(name))
        },
    )
}

/// Shows: X4
#[tokio::test(start_paused = true)]
async fn what_is_set_up_in_order_is_torn_down_in_reverse_once() {
    let log = Log::default();
    let second = log.clone();
    let second = Disposable::new(
        // The values that were set up before are there.
        async move |scope: Scope| {
            second.note(format_args!("{:?}", scope.require::<Value>()?));
            Ok::<_, Box<dyn Error + Send + Sync>>(7_u32)
        },
        async |_: Arc<u32>| {},
    );
    let app = Scope::root("app").disposable(quick("a", &log)).disposable(second).disposable(quick("c", &log));
    assert!(log.take().is_empty());
    let app = app.open().await.unwrap();
    assert_eq!(log.take(), ["up a in app", "Value(\"a\")", "up c in app"]);
    assert_eq!(*app.get::<u32>().unwrap(), 7);
    // The later value of a type is visible, and both are torn down.
    assert_eq!(*app.get::<Value>().unwrap(), Value("c"));
    app.close().await.unwrap();
    assert_eq!(log.take(), ["down c in app", "down a in app"]);
    app.close().await.unwrap();
    assert!(log.take().is_empty());
}

/// Shows: X4
#[tokio::test(start_paused = true)]
async fn several_are_set_up_at_the_same_time() {
    let log = Log::default();
    let start = Instant::now();
    let app = Scope::root("app")
        .disposable(slow("first", SECOND, &log))
        .disposables([slow("slow", 3 * SECOND, &log), slow("quick", SECOND, &log)])
        .disposable(slow("last", SECOND, &log));
    let app = app.open().await.unwrap();
    assert_eq!(start.elapsed(), 5 * SECOND);
    assert_eq!(log.take(), ["up first in app", "up quick in app", "up slow in app", "up last in app"]);
    app.close().await.unwrap();
    assert_eq!(log.take(), ["down last in app", "down slow in app", "down quick in app", "down first in app"]);
}

/// Shows: X1
#[tokio::test]
async fn explicit_state_goes_before_disposables_and_these_before_the_parents() {
    let log = Log::default();
    let parent = Scope::root("app").with(Value("parent"));
    let child = parent.child("child").disposable(quick("disposable", &log)).open().await.unwrap();
    assert_eq!(child.get::<Value>().unwrap().0, "disposable");

    for early in [true, false] {
        let child = parent.child("child");
        let child = if early { child.with(Value("explicit")) } else { child };
        let child = child.disposable(quick("disposable", &log));
        let child = if early { child } else { child.with(Value("explicit")) };
        let child = child.open().await.unwrap();
        assert_eq!(child.get::<Value>().unwrap().0, "explicit");
        // This changes the visible value, and not the one that is torn down.
        child.update(|_: &Value| Value("updated")).unwrap();
        assert_eq!(child.get::<Value>().unwrap().0, "updated");
        child.close().await.unwrap();
        assert_eq!(parent.get::<Value>().unwrap().0, "parent");
    }
    let child = child.with(Value("late"));
    assert_eq!(child.get::<Value>().unwrap().0, "late");
}

/// A scope that was opened halfway must not leak the values that it had set up.
///
/// Shows: X4
#[tokio::test(start_paused = true)]
async fn a_half_made_scope_does_not_leak_exactly_what_was_set_up_is_undone() {
    let log = Log::default();
    let opening = Scope::root("app")
        .disposable(quick("a", &log))
        .disposable(quick("b", &log))
        .disposables([quick("c", &log), failing("refused"), slow("too slow", 2 * SECOND, &log)])
        .disposable(quick("never", &log));
    let error = opening.open().await.unwrap_err();
    assert_eq!(
        log.take(),
        [
            "up a in app",
            "up b in app",
            "up c in app",
            "dropped too slow",
            "down c in app",
            "down b in app",
            "down a in app"
        ]
    );
    assert_eq!(error.scope(), "app");
    assert_eq!(error.to_string(), "the scope `app` could not set up `suite::scope_disposables::Value`: refused");
    assert_eq!(error.source().unwrap().downcast_ref::<io::Error>().unwrap().to_string(), "refused");
    assert!(matches!(error.faults()[0].kind(), ScopeFailureKind::SetUp { .. }));
}

/// Shows: X4
#[tokio::test(start_paused = true)]
async fn a_set_up_that_panics_has_failed() {
    let log = Log::default();
    for late in [false, true] {
        let panics = Disposable::new(
            async move |_: Scope| {
                if late {
                    sleep(SECOND).await;
                }
                panic!("no luck");
                #[expect(unreachable_code, reason = "it says what would be set up")]
                Ok::<Value, io::Error>(Value("never"))
            },
            async |_: Arc<Value>| {},
        );
        let error = Scope::root("app").disposables([quick("a", &log), panics]).open().await.unwrap_err();
        let panic = error.source().unwrap().downcast_ref::<Panic>().unwrap();
        assert_eq!(panic.message(), "no luck");
        assert_eq!(log.take(), ["up a in app", "down a in app"]);
    }
    // So does a set-up that panics before there is a future.
    let panics = Disposable::new(
        |_: Scope| -> std::future::Ready<io::Result<Value>> { panic!("at once") },
        |_: Arc<Value>| std::future::ready(()),
    );
    let error = Scope::root("app").disposable(quick("a", &log)).disposable(panics).open().await.unwrap_err();
    assert!(error.to_string().ends_with("panicked: at once"), "{error}");
    assert_eq!(log.take(), ["up a in app", "down a in app"]);
}

/// Shows: X4
#[tokio::test(start_paused = true)]
async fn an_opening_that_is_dropped_undoes_what_was_set_up() {
    // The opening takes three seconds. If it is dropped at any time before, exactly the values set up by then are torn
    // down.
    for (seconds, expected) in [
        (0, &["dropped a"][..]),
        (1, &["up a in app", "dropped b", "down a in app"]),
        (2, &["up a in app", "up b in app", "dropped c", "down b in app", "down a in app"]),
    ] {
        let log = Log::default();
        let scope = Scope::root("app");
        let opening = scope.clone();
        let opening = opening
            .disposable(slow("a", SECOND, &log))
            .disposable(slow("b", SECOND, &log))
            .disposable(slow("c", SECOND, &log));
        let open = tokio::time::timeout(SECOND * seconds + SECOND / 2, opening.open());
        assert!(open.await.is_err());
        // The scope is closed on a task, which this waits for.
        scope.close().await.unwrap();
        assert_eq!(log.take(), expected);
    }
    // An opening that is never polled sets nothing up.
    let log = Log::default();
    drop(Scope::root("app").disposable(quick("a", &log)).open());
    assert!(log.take().is_empty());
}

/// Shows: X4
#[tokio::test(start_paused = true)]
async fn every_failure_of_a_tear_down_is_kept_and_the_others_still_run() {
    let log = Log::default();
    let app = Scope::root("app")
        .disposable(quick("a", &log))
        .disposable(stuck("one", &log))
        .disposable(stuck("panic two", &log))
        .disposable(stuck("three", &log))
        .open()
        .await
        .unwrap();
    log.take();
    let error = app.close().await.unwrap_err();
    assert_eq!(log.take(), ["down three", "down panic two", "down one", "down a in app"]);
    let messages: Vec<_> = error.faults().iter().map(|fault| fault.source().unwrap().to_string()).collect();
    assert_eq!(messages, ["three", "panicked: panic two", "one"]);
    assert_eq!(error.source().unwrap().to_string(), "three");
    assert_eq!(
        error.to_string(),
        "the scope `app` could not tear down `suite::scope_disposables::Value`: three; \
         the scope `app` could not tear down `suite::scope_disposables::Value`: panicked: panic two; \
         the scope `app` could not tear down `suite::scope_disposables::Value`: one"
    );
    // A later caller gets the same result.
    assert_eq!(app.close().await.unwrap_err().faults().len(), 3);
    assert!(log.take().is_empty());
}

/// Shows: X4
#[tokio::test(start_paused = true)]
async fn what_fails_while_a_failed_opening_is_undone_hides_nothing() {
    let log = Log::default();
    let opening = Scope::root("app").disposable(stuck("one", &log)).disposables([failing("first"), failing("second")]);
    let error = opening.open().await.unwrap_err();
    let messages: Vec<_> = error.faults().iter().map(|fault| fault.source().unwrap().to_string()).collect();
    assert_eq!(messages, ["first", "second", "one"]);
}

/// An error of a tear-down must not replace the error of the body.
///
/// Shows: X4
#[tokio::test(start_paused = true)]
async fn a_disposal_error_never_replaces_the_bodys() {
    let log = Log::default();
    let run = |disposable, outcome: Result<u32, &'static str>| async move {
        let ran = Scope::root("app").disposable(disposable).run(async |_: Scope| outcome).await;
        ran.unwrap()
    };
    let message = |closed: Result<(), ScopeError>| closed.unwrap_err().source().unwrap().to_string();

    let (output, closed) = run(stuck("stuck", &log), Err("body")).await.into_parts();
    assert_eq!((output, message(closed).as_str()), (Err("body"), "stuck"));
    let (output, closed) = run(stuck("stuck", &log), Ok(7)).await.into_parts();
    assert_eq!((output, message(closed).as_str()), (Ok(7), "stuck"));

    assert_eq!(run(quick("a", &log), Ok(7)).await.into_result().unwrap(), 7);
    assert!(matches!(run(quick("a", &log), Err("body")).await.into_result(), Err(RunError::Body("body"))));
    assert!(matches!(run(stuck("stuck", &log), Ok(7)).await.into_result(), Err(RunError::Closing(_))));
    let both = run(stuck("stuck", &log), Err("body")).await.into_result().unwrap_err();
    assert_eq!(
        both.to_string(),
        "body; afterwards: the scope `app` could not tear down `suite::scope_disposables::Value`: stuck"
    );
}

#[tokio::test]
async fn a_boxed_error_of_the_body_passes_through_a_question_mark() {
    type BoxError = Box<dyn Error + Send + Sync>;
    async fn run() -> Result<u32, BoxError> {
        let body = async |_: Scope| Ok::<u32, BoxError>("x".parse()?);
        Ok(Scope::root("app").run(body).await?.into_result()?)
    }
    let error = run().await.unwrap_err();
    assert_eq!(error.to_string(), "invalid digit found in string");
    assert!(error.source().unwrap().is::<std::num::ParseIntError>());
}

/// Shows: X4
#[tokio::test(start_paused = true)]
async fn a_body_runs_in_its_scope_which_is_closed_afterwards() {
    let log = Log::default();
    let scope = Scope::root("app");
    let ran = scope.clone().disposable(quick("a", &log)).run(async |scope: Scope| {
        assert_eq!(scope.id(), Scope::current().unwrap().id());
        log.note("body");
        scope
            .child("item")
            .run(async |item: Scope| Ok::<_, io::Error>(item.name().to_owned()))
            .await
            .unwrap()
            .into_result()
    });
    let ran = ran.await.unwrap().into_result();
    assert_eq!(ran.unwrap(), "item");
    assert_eq!(log.take(), ["up a in app", "body", "down a in app"]);
    // Now it is closed, and runs no other body.
    let error = scope.run(async |_: Scope| unreachable!("it is closed")).await.unwrap_err();
    assert!(matches!(error.faults()[0].kind(), ScopeFailureKind::Closed));
}

/// Shows: X4
#[tokio::test(start_paused = true)]
async fn a_body_that_is_dropped_or_panics_is_torn_down_after() {
    let log = Log::default();
    for panics in [true, false] {
        let scope = Scope::root("app");
        let run = scope.clone().disposable(quick("a", &log)).run(async |_: Scope| {
            log.note("body");
            sleep(SECOND).await;
            assert!(!panics, "as itself");
            std::future::pending::<()>().await;
        });
        let run = std::panic::AssertUnwindSafe(tokio::time::timeout(2 * SECOND, run));
        let ran = futures_util::FutureExt::catch_unwind(run).await;
        match ran {
            Err(payload) => assert_eq!(*payload.downcast_ref::<&str>().unwrap(), "as itself"),
            Ok(outcome) => assert!(!panics && outcome.is_err()),
        }
        scope.close().await.unwrap();
        assert_eq!(log.take(), ["up a in app", "body", "down a in app"]);
    }
}

#[tokio::test]
async fn in_a_closed_scope_nothing_is_set_up() {
    let log = Log::default();
    let app = Scope::root("app");
    app.close().await.unwrap();
    let error = app.disposable(quick("a", &log)).open().await.unwrap_err();
    assert_eq!(error.to_string(), "the scope `app` is closed");
    assert!(log.take().is_empty());

    let app = Scope::root("app");
    let child = app.child("child");
    app.close().await.unwrap();
    assert!(child.disposable(quick("a", &log)).open().await.is_err());
    assert!(log.take().is_empty());
}

/// Bad input: no runtime to set up in.
#[test]
fn outside_of_a_runtime_nothing_is_set_up() {
    let log = Log::default();
    let mut opening = ziggurat::testing::TestTask::new(Scope::root("app").disposable(quick("a", &log)).open());
    let std::task::Poll::Ready(opened) = opening.poll() else { panic!("it hangs") };
    assert_eq!(opened.unwrap_err().to_string(), "the scope `app` has no tokio runtime to open or close in");
    assert!(log.take().is_empty());
    // Without anything to set up, no runtime is needed.
    let opening = Scope::root("app").disposables([]).disposables(Vec::new());
    let std::task::Poll::Ready(opened) = ziggurat::testing::TestTask::new(opening.open()).poll() else {
        panic!("it hangs")
    };
    assert_eq!(opened.unwrap().name(), "app");
}

/// Bad input: a value whose `Drop` panics, of the type that is set up.
///
/// Shows: X4
#[tokio::test]
async fn what_is_set_up_in_place_of_a_value_that_panics_when_it_is_dropped_is_torn_down() {
    #[derive(Default)]
    struct Touchy(bool);
    impl Drop for Touchy {
        fn drop(&mut self) {
            assert!(self.0, "made by default");
        }
    }
    let log = Log::default();
    let (scope, tear_down) = (Scope::root("app"), log.clone());
    drop(scope.state::<Touchy>());
    let app = scope.disposable(Disposable::new(
        async |_: Scope| Ok::<_, io::Error>(Touchy(true)),
        async move |_: Arc<Touchy>| tear_down.note("down"),
    ));
    let app = app.open().await.unwrap();
    assert!(app.get::<Touchy>().unwrap().0);
    app.close().await.unwrap();
    assert_eq!(log.take(), ["down"]);
}
