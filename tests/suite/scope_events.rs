//! The event bus of a scope.

use std::{
    future::pending,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::oneshot,
    time::{Instant, sleep},
};
use ziggurat::{
    Deadline, Scope,
    events::{Lag, Subscription},
    scope::TaskError,
};

const SECOND: Duration = Duration::from_secs(1);

#[derive(Clone, Debug, PartialEq)]
struct Order(u64);

/// All events until the stream ends.
async fn all(mut orders: Subscription<Order>) -> Vec<u64> {
    let mut heard = Vec::new();
    while let Some(order) = orders.next().await {
        heard.push(order.unwrap().0);
    }
    heard
}

/// Shows: E4
#[tokio::test]
async fn all_scopes_of_a_root_share_its_bus_and_an_isolated_one_has_its_own() {
    let app = Scope::root("app");
    let (request, other) = (app.child("request"), Scope::root("other"));
    let plugin = app.child("plugin").isolated();
    let inner = plugin.child("inner");
    let (outside, inside) = (request.events().subscribe::<Order>(), inner.events().subscribe::<Order>());
    let publish = |scope: &Scope| scope.events().publish(Order(scope.id()));
    assert_eq!([&app, &request, &other, &plugin, &inner].map(publish), [1, 1, 0, 1, 1]);
    app.close().await.unwrap();
    assert_eq!(all(outside).await, [app.id(), request.id()]);
    assert_eq!(all(inside).await, [plugin.id(), inner.id()]);
}

/// Shows: E4
#[tokio::test]
async fn closing_the_scope_ends_streams_after_their_backlog() {
    let app = Scope::root("app");
    let bus = app.events();
    let orders = bus.subscribe::<Order>();
    assert_eq!((bus.publish(Order(1)), bus.publish(Order(2))), (1, 1));
    app.close().await.unwrap();
    assert_eq!((bus.publish(Order(3)), app.events().publish(Order(4))), (0, 0));
    assert_eq!(all(orders).await, [1, 2]);
    assert_eq!(all(app.child("late").events().subscribe()).await, []);

    let closed = Scope::root("closed before it was asked for a bus");
    closed.close().await.unwrap();
    assert!(closed.events().is_closed());
    assert!(closed.child("late").isolated().events().is_closed());
}

/// Shows: E4
#[tokio::test]
async fn what_is_isolated_stays_so_when_it_is_closed() {
    let app = Scope::root("app");
    let mut orders = app.events().subscribe::<Order>();
    let plugin = app.child("plugin");
    plugin.close().await.unwrap();
    assert_eq!(plugin.events().publish(Order(1)), 1, "the bus is that of the scope around, which is open");
    let late = plugin.child("late");
    for isolated in [plugin.isolated(), late.isolated()] {
        assert!(isolated.events().is_closed());
        assert_eq!(isolated.child("inner").events().publish(Order(2)), 0);
    }
    assert_eq!(orders.next().await, Some(Ok(Order(1))));
    app.close().await.unwrap();
    assert_eq!(all(orders).await, []);
}

/// A handler that waits to publish an event of its own type deadlocks, but only until its scope is closed.
#[tokio::test(start_paused = true)]
async fn closing_frees_a_handler_that_waits_for_itself() {
    let app = Scope::root("app");
    let bus = app.events();
    let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
    let own = bus.clone();
    bus.on_with(1, Lag::Block, move |Order(number)| {
        let (own, tell) = (own.clone(), tell.clone());
        async move {
            own.publish(Order(number + 1));
            tell.send(own.publish_and_wait(Order(number + 2)).await).unwrap();
        }
    })
    .detach();
    bus.publish(Order(1));
    tokio::task::yield_now().await;
    assert!(told.try_recv().is_err());
    let start = Instant::now();
    app.close().await.unwrap();
    assert_eq!((start.elapsed(), told.recv().await), (Duration::ZERO, Some(0)));
}

/// Shows: E4
#[tokio::test(start_paused = true)]
async fn closing_waits_until_the_handlers_have_handled_what_waits_for_them_in_the_scope() {
    let app = Scope::root("app");
    let handled = Arc::new(Mutex::new(Vec::new()));
    let (id, list) = (app.id(), Arc::clone(&handled));
    let attach = async {
        app.events().on(move |Order(number)| {
            let list = Arc::clone(&list);
            async move {
                assert_eq!(Scope::current().unwrap().id(), id);
                assert!(Deadline::current().is_none(), "a handler does not inherit the deadline of the caller of `on`");
                sleep(SECOND).await;
                list.lock().unwrap().push(number);
            }
        })
    };
    let guard = Deadline::after(SECOND).within(attach).await;
    for number in 0..3 {
        app.child("request").events().publish(Order(number));
    }
    let start = Instant::now();
    app.close().await.unwrap();
    assert_eq!(start.elapsed(), 3 * SECOND);
    assert_eq!(*handled.lock().unwrap(), [0, 1, 2]);
    guard.finished().await;
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_never_ends_has_the_grace_period_and_no_more() {
    let app = Scope::root("app").grace(2 * SECOND);
    let guard = app.events().on(|_: Order| pending::<()>());
    app.events().publish(Order(1));
    let start = Instant::now();
    app.close().await.unwrap();
    assert_eq!(start.elapsed(), 2 * SECOND);
    guard.finished().await;
}

/// Dropping the last handle closes the bus too.
#[tokio::test]
async fn the_bus_of_a_scope_that_is_dropped_is_closed() {
    let app = Scope::root("app");
    let bus = app.events();
    let orders = bus.subscribe::<Order>();
    bus.on(|_: Order| async {}).detach();
    drop(app);
    assert!(bus.is_closed());
    assert_eq!(all(orders).await, []);
}

#[tokio::test(start_paused = true)]
async fn a_bus_within_is_closed_as_soon_as_a_scope_around_is_and_not_the_other_way_round() {
    let app = Scope::root("app");
    let (first, second) = (app.child("first").isolated(), app.child("second").isolated());
    let (outer, inner) = (app.events(), second.child("inner").isolated().events());
    first.close().await.unwrap();
    assert!(first.events().is_closed() && !outer.is_closed() && !second.events().is_closed());

    // A task that reads the bus of a child scope ends without the grace period.
    let listening = app.spawn(all(inner.subscribe()));
    let start = Instant::now();
    app.close().await.unwrap();
    assert_eq!((start.elapsed(), listening.await.unwrap()), (Duration::ZERO, vec![]));
    assert!(outer.is_closed() && second.events().is_closed() && inner.is_closed());
}

/// Shows: E4
#[tokio::test]
async fn a_subscriber_that_is_aborted_touches_no_other_and_not_the_scope() {
    let app = Scope::root("app");
    let counted = Arc::new(AtomicU32::new(0));
    let count = |orders: Subscription<Order>| {
        let counted = Arc::clone(&counted);
        async move { counted.fetch_add(all(orders).await.len() as u32, Ordering::SeqCst) }
    };
    let tasks = [(); 3].map(|()| app.spawn(count(app.events().subscribe())));
    app.events().publish(Order(1));
    tasks[1].abort();
    let [one, aborted, three] = tasks;
    assert!(matches!(aborted.await, Err(TaskError::Aborted)));
    assert_eq!(app.events().publish(Order(2)), 2);
    app.close().await.unwrap();
    one.await.unwrap();
    three.await.unwrap();
    assert_eq!(counted.load(Ordering::SeqCst), 4);
}

/// A handler may close the scope that it is a task of.
#[tokio::test]
async fn a_handler_can_close_its_scope() {
    let app = Scope::root("app");
    let (tell, told) = oneshot::channel();
    let mut tell = Some(tell);
    app.events()
        .on(move |_: Order| {
            let tell = tell.take();
            async move {
                let closed = Scope::current().unwrap().close().await;
                tell.unwrap().send(closed).unwrap();
            }
        })
        .detach();
    app.events().publish(Order(1));
    told.await.unwrap().unwrap();
    assert!(app.is_cancelled());
}

/// Whichever comes first, a closed scope has no open bus.
#[test]
fn a_bus_that_is_asked_for_while_the_scope_is_closed_is_closed() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap();
    for _ in 0..500 {
        let app = Scope::root("app");
        let asked = app.clone();
        let bus = runtime.block_on(async {
            let asking = tokio::spawn(async move { asked.events() });
            app.close().await.unwrap();
            asking.await.unwrap()
        });
        assert!(bus.is_closed());
        assert!(app.events().is_closed());
    }
}
