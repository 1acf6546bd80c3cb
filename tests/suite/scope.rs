//! Scopes: typed state, nesting, lookup.

use std::{
    sync::{
        Arc, Barrier,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use tokio::{sync::oneshot, task::LocalSet};
use ziggurat::{Scope, testing::TestTask};

#[derive(Debug, PartialEq, Default)]
struct Setting(u32);

#[derive(Debug, PartialEq)]
struct Name(&'static str);

/// Shows: X1
#[test]
fn a_value_is_found_by_its_exact_type_from_the_inside_out() {
    let app = Scope::root("app").with(Setting(1)).with(Name("app"));
    let batch = app.child("batch").with(Setting(2));
    let item = batch.child("item");
    assert_eq!(*item.get::<Setting>().unwrap(), Setting(2));
    assert_eq!(*item.get::<Name>().unwrap(), Name("app"));
    assert_eq!(*app.get::<Setting>().unwrap(), Setting(1));
    assert_eq!(item.get::<u32>(), None);
    assert_eq!((item.name(), item.parent().unwrap().name()), ("item", "batch"));
    assert!(item.is_within(&app) && !app.is_within(&item));
    assert_ne!(item.id(), batch.id());
}

#[test]
fn a_second_value_of_a_type_replaces_the_first_and_readers_keep_theirs() {
    let scope = Scope::root("app").with(Setting(1));
    let first = scope.get::<Setting>().unwrap();
    let scope = scope.with(Setting(2));
    assert_eq!(first.0, 1);
    assert_eq!(*scope.get::<Setting>().unwrap(), Setting(2));
}

/// Shows: X2
#[test]
fn missing_state_is_made_by_default_once_and_stays() {
    let app = Scope::root("app");
    let request = app.child("request");
    let made = request.state::<Setting>();
    assert_eq!(*made, Setting(0));
    assert!(Arc::ptr_eq(&made, &request.state()));
    // The default belongs to the scope that was asked, not to its parents.
    assert_eq!(app.get::<Setting>(), None);
    // A value that a parent holds is not created again.
    let outer = app.state::<Setting>();
    assert!(Arc::ptr_eq(&outer, &app.child("other").state()));
}

/// Shows: X2
#[test]
fn of_many_that_make_a_default_at_once_all_get_the_same() {
    const THREADS: usize = 8;
    for _ in 0..100 {
        let scope = Scope::root("app");
        let barrier = Barrier::new(THREADS);
        let all: Vec<_> = thread::scope(|threads| {
            let make = || {
                barrier.wait();
                scope.state::<Setting>()
            };
            let all: Vec<_> = (0..THREADS).map(|_| threads.spawn(make)).collect();
            all.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert!(all.iter().all(|value| Arc::ptr_eq(value, &all[0])));
    }
}

/// A default that reads other state of the scope would deadlock under a lock.
///
/// Shows: X2
#[test]
fn no_lock_is_held_while_a_default_is_made() {
    struct Nested(u32);
    impl Default for Nested {
        fn default() -> Self {
            Self(Scope::current().unwrap().state::<Setting>().0 + 1)
        }
    }
    let scope = Scope::root("app");
    assert_eq!(scope.enter(|| scope.state::<Nested>().0), 1);
}

/// Bad input: a scope is asked for a type that it does not hold.
///
/// Shows: X2
#[test]
fn what_is_required_and_missing_is_an_error_with_the_type_and_the_scope() {
    let scope = Scope::root("app").child("request");
    assert_eq!(
        scope.require::<Setting>().unwrap_err().to_string(),
        "the scope `app/request` holds no `suite::scope::Setting`: add one with `.with(..)`, or use `get` or `state`"
    );
    let changed = scope.update(|old: &Setting| Setting(old.0 + 1));
    assert_eq!(changed.unwrap_err(), scope.require::<Setting>().unwrap_err());
}

/// Shows: X3
#[test]
fn an_update_changes_the_nearest_scope_that_holds_the_value() {
    let app = Scope::root("app").with(Setting(1));
    let request = app.child("request");
    let new = request.update(|old: &Setting| Setting(old.0 + 10)).unwrap();
    assert_eq!(*new, Setting(11));
    assert_eq!(*app.get::<Setting>().unwrap(), Setting(11));
    let inner = request.child("inner").with(Setting(5));
    inner.update(|old: &Setting| Setting(old.0 + 1)).unwrap();
    assert_eq!(*inner.get::<Setting>().unwrap(), Setting(6));
    assert_eq!(*app.get::<Setting>().unwrap(), Setting(11));
}

/// Shows: X3
#[test]
fn no_update_is_lost_and_no_reader_sees_half_of_one() {
    struct Pair(u32, u32);
    let scope = Scope::root("app").with(Pair(0, 0));
    thread::scope(|threads| {
        for _ in 0..4 {
            threads.spawn(|| {
                for _ in 0..500 {
                    scope.update(|old: &Pair| Pair(old.0 + 1, old.1 + 1)).unwrap();
                }
            });
        }
        threads.spawn(|| {
            for _ in 0..500 {
                let pair = scope.get::<Pair>().unwrap();
                assert_eq!(pair.0, pair.1);
            }
        });
    });
    assert_eq!(scope.get::<Pair>().unwrap().0, 2000);
}

/// Shows: X3
#[test]
fn a_change_that_panics_changes_nothing() {
    let scope = Scope::root("app").with(Setting(1));
    let change = std::panic::AssertUnwindSafe(|| scope.update(|_: &Setting| -> Setting { panic!("no change") }));
    assert!(std::panic::catch_unwind(change).is_err());
    assert_eq!(*scope.get::<Setting>().unwrap(), Setting(1));
    assert_eq!(*scope.update(|old: &Setting| Setting(old.0 + 1)).unwrap(), Setting(2));
}

/// Shows: X7
#[tokio::test]
async fn the_scope_is_current_within_it_and_nowhere_else() {
    assert!(Scope::current().is_none());
    let scope = Scope::root("app");
    let inside = scope.within(async {
        assert_eq!(Scope::current().unwrap().name(), "app");
        tokio::task::yield_now().await;
        assert_eq!(Scope::current().unwrap().name(), "app");
        let inner = Scope::current().unwrap().child("inner");
        inner.within(async { assert_eq!(Scope::current().unwrap().name(), "inner") }).await;
        assert_eq!(Scope::current().unwrap().name(), "app");
        // A spawned task has no scope by itself.
        assert!(tokio::spawn(async { Scope::current().is_none() }).await.unwrap());
    });
    assert!(Scope::current().is_none());
    inside.await;
    assert!(Scope::current().is_none());
}

/// Shows: X7
#[test]
fn it_is_current_while_its_future_is_dropped() {
    struct Dropped(Arc<AtomicUsize>);
    impl Drop for Dropped {
        fn drop(&mut self) {
            assert_eq!(Scope::current().unwrap().name(), "app");
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }
    let drops = Arc::new(AtomicUsize::new(0));
    for polls in 0..2 {
        let dropped = Dropped(Arc::clone(&drops));
        let mut future = TestTask::new(Scope::root("app").within(async move {
            let _dropped = dropped;
            std::future::pending::<()>().await;
        }));
        for _ in 0..polls {
            assert!(future.poll().is_pending());
        }
    }
    assert_eq!(drops.load(Ordering::SeqCst), 2);
    assert!(Scope::current().is_none());
}

/// Shows: X7
#[test]
fn it_is_gone_after_a_panic() {
    let scope = Scope::root("app");
    let panics = std::panic::AssertUnwindSafe(|| scope.enter(|| panic!("inside")));
    assert!(std::panic::catch_unwind(panics).is_err());
    assert!(Scope::current().is_none());
}

#[test]
fn nothing_keeps_a_scope_that_is_done() {
    let value = Arc::new(());
    let scope = Scope::root("app").with(Arc::clone(&value));
    let child = scope.child("request");
    drop(scope);
    assert_eq!(Arc::strong_count(&value), 2);
    drop(child);
    assert_eq!(Arc::strong_count(&value), 1);
}

#[test]
fn a_hundred_thousand_scopes_within_each_other_are_dropped_without_a_stack_for_each() {
    let mut scope = Scope::root("app");
    for _ in 0..100_000 {
        scope = scope.child("deeper");
    }
    drop(scope);
}

/// The tasks of a `LocalSet` are polled by the task that drives it, which may be a call of another tenant.
///
/// Shows: X7
#[tokio::test]
async fn a_task_of_a_local_set_does_not_see_the_scope_of_the_call_that_drives_it() {
    let name = || Scope::current().map(|scope| scope.name().to_owned());
    let (app, other) = (Scope::root("app"), Scope::root("other"));
    let local = LocalSet::new();
    let (begin, begins) = oneshot::channel();
    let nobodys = local.spawn_local(async move {
        let first = name();
        begins.await.unwrap();
        (first, name())
    });
    let others = local.spawn_local(other.within(async move { name() }));
    let call = local.run_until(async {
        let before = name();
        begin.send(()).unwrap();
        let nobodys = nobodys.await.unwrap();
        // From within it too: a task sees only the scope that it brings along.
        let inner = tokio::task::spawn_local(async move { name() }).await.unwrap();
        (before, nobodys, others.await.unwrap(), inner, name())
    });
    let (before, nobodys, others, inner, after) = app.within(call).await;
    assert_eq!((before.as_deref(), after.as_deref()), (Some("app"), Some("app")));
    assert_eq!((nobodys, others.as_deref(), inner), ((None, None), Some("other"), None));
    assert_eq!(name(), None);
}
