//! Publishing an event and waiting until it is handled.

use std::{
    future::Future,
    panic::{AssertUnwindSafe, catch_unwind},
    task::Poll,
};

use tokio::sync::{Semaphore, mpsc};
use ziggurat::{
    EventBus, Scope,
    events::{Joined, Lag, Lagged},
    testing::TestTask,
};

#[derive(Debug, Clone, PartialEq)]
struct OrderPlaced(u32);

fn outcome(joined: &Joined) -> (usize, Vec<&str>) {
    (joined.heard(), joined.failures().iter().map(String::as_str).collect())
}

/// Shows: E1
#[tokio::test]
async fn who_joins_an_event_waits_until_every_handler_of_it_has_ended() {
    static MAY_END: Semaphore = Semaphore::const_new(0);
    let bus = EventBus::new();
    let (begun, mut begins) = mpsc::unbounded_channel();
    for handler in 0..3 {
        let begun = begun.clone();
        bus.on(move |OrderPlaced(id)| {
            begun.send((handler, id)).unwrap();
            async { MAY_END.acquire().await.unwrap().forget() }
        })
        .detach();
    }
    let mut joined = TestTask::new(bus.publish_and_join(OrderPlaced(7)));
    for ended in 0..3 {
        assert!(joined.poll().is_pending(), "{ended} of 3 have ended");
        begins.recv().await.unwrap();
        MAY_END.add_permits(1);
    }
    // The next event does not count.
    bus.publish(OrderPlaced(8));
    while joined.times_woken() == 0 {
        tokio::task::yield_now().await;
    }
    let Poll::Ready(joined) = joined.poll() else { panic!("all of them have ended") };
    assert_eq!(outcome(&joined), (3, vec![]));
}

/// Shows: E1, E2
#[tokio::test]
async fn who_joins_an_event_hears_which_handlers_failed_with_it_and_with_no_other() {
    let bus = EventBus::new();
    let handle = |OrderPlaced(id)| async move {
        assert_ne!(id, 13, "13 is unlucky");
        if id == 0 { Err("there is no such order") } else { Ok(()) }
    };
    bus.on(handle).detach();
    bus.on(|_: OrderPlaced| async {}).detach();
    bus.publish(OrderPlaced(0));
    assert_eq!(outcome(&bus.publish_and_join(OrderPlaced(1)).await), (2, vec![]));
    assert_eq!(outcome(&bus.publish_and_join(OrderPlaced(0)).await), (2, vec!["there is no such order"]));
    let joined = bus.publish_and_join(OrderPlaced(13)).await;
    assert!(matches!(joined.failures(), [panic] if panic.contains("13 is unlucky")), "{joined:?}");
}

/// Shows: E1
#[test]
fn a_stream_has_handled_an_event_when_it_asks_for_the_next_or_is_dropped() {
    let bus = EventBus::new();
    let (mut first, mut second) = (bus.subscribe(), bus.subscribe());
    let mut joined = TestTask::new(bus.publish_and_join(OrderPlaced(1)));
    assert!(joined.poll().is_pending());
    assert_eq!(TestTask::new(first.next()).poll(), Poll::Ready(Some(Ok(OrderPlaced(1)))));
    assert_eq!(TestTask::new(second.next()).poll(), Poll::Ready(Some(Ok(OrderPlaced(1)))));
    drop(second);
    assert!(joined.poll().is_pending());
    assert!(TestTask::new(first.next()).poll().is_pending());
    assert!(matches!(joined.poll(), Poll::Ready(joined) if outcome(&joined) == (2, vec![])));
}

/// Shows: E1, E3
#[test]
fn who_joins_an_event_waits_for_no_subscriber_that_misses_it() {
    let bus = EventBus::new();
    assert!(
        matches!(TestTask::new(bus.publish_and_join(OrderPlaced(0))).poll(), Poll::Ready(joined) if joined.heard() == 0)
    );
    let (mut lags, falls_behind) = (bus.subscribe_with(1, Lag::Tell), bus.subscribe_with::<OrderPlaced>(1, Lag::Drop));
    let mut joined = [1, 2].map(|id| TestTask::new(bus.publish_and_join(OrderPlaced(id))));
    assert!(joined[0].poll().is_pending());
    // The first subscriber misses the first event, and the second takes only that one.
    assert!(joined[1].poll().is_pending());
    assert!(joined[0].poll().is_pending());
    drop(falls_behind);
    assert!(matches!(joined[0].poll(), Poll::Ready(joined) if joined.heard() == 2));
    assert_eq!(TestTask::new(lags.next()).poll(), Poll::Ready(Some(Err(Lagged::Missed(1)))));
    assert_eq!(TestTask::new(lags.next()).poll(), Poll::Ready(Some(Ok(OrderPlaced(2)))));
    assert!(joined[1].poll().is_pending());
    // The streams end after their backlog, and the last one with its subscriber.
    bus.close();
    assert_eq!(TestTask::new(lags.next()).poll(), Poll::Ready(None));
    assert!(matches!(joined[1].poll(), Poll::Ready(joined) if joined.heard() == 1));
}

/// Shows: E3
#[test]
fn who_joins_an_event_waits_for_room_first_and_has_told_nobody_when_dropped_before() {
    let bus = EventBus::new();
    let mut events = bus.subscribe_with(1, Lag::Block);
    bus.publish(OrderPlaced(0));
    let mut given_up = TestTask::new(bus.publish_and_join(OrderPlaced(1)));
    assert!(given_up.poll().is_pending());
    drop(given_up);
    let mut joined = TestTask::new(bus.publish_and_join(OrderPlaced(2)));
    assert!(joined.poll().is_pending());
    assert_eq!(TestTask::new(events.next()).poll(), Poll::Ready(Some(Ok(OrderPlaced(0)))));
    assert!(joined.poll().is_pending());
    assert_eq!(TestTask::new(events.next()).poll(), Poll::Ready(Some(Ok(OrderPlaced(2)))));
    // It is published: dropping the future that joins it changes nothing.
    drop(joined);
    assert!(TestTask::new(events.next()).poll().is_pending());
}

/// Shows: E4
#[tokio::test(start_paused = true)]
async fn who_joins_an_event_waits_no_longer_for_a_handler_that_is_detached_or_whose_scope_ends() {
    let app = Scope::root("app");
    let guard = app.events().on(|_: OrderPlaced| async {});
    let bus = app.events();
    let mut joined = TestTask::new(bus.publish_and_join(OrderPlaced(1)));
    assert!(joined.poll().is_pending());
    // The handler was not called yet, and is removed.
    drop(guard);
    assert!(matches!(joined.poll(), Poll::Ready(joined) if joined.heard() == 1));

    app.events().on(|_: OrderPlaced| std::future::pending::<()>()).detach();
    let closing = async {
        tokio::task::yield_now().await;
        app.close().await
    };
    // The handler is aborted at the end of its scope's grace period.
    let (joined, closed) = tokio::join!(bus.publish_and_join(OrderPlaced(2)), closing);
    closed.unwrap();
    assert_eq!(outcome(&joined), (1, vec![]));
}

/// Bad input: the waker of the joining publisher panics, which must not affect the subscriber.
///
/// Shows: E2
#[test]
fn the_waker_of_who_joins_an_event_disturbs_no_subscriber() {
    struct Panics;
    impl std::task::Wake for Panics {
        fn wake(self: std::sync::Arc<Self>) {
            panic!("woken");
        }
    }
    let bus = EventBus::new();
    let mut events = bus.subscribe();
    let waker = std::sync::Arc::new(Panics).into();
    let mut joined = std::pin::pin!(bus.publish_and_join(OrderPlaced(1)));
    assert!(joined.as_mut().poll(&mut std::task::Context::from_waker(&waker)).is_pending());
    let took = catch_unwind(AssertUnwindSafe(|| TestTask::new(events.next()).poll())).unwrap();
    assert_eq!(took, Poll::Ready(Some(Ok(OrderPlaced(1)))));
    let asked = catch_unwind(AssertUnwindSafe(|| TestTask::new(events.next()).poll())).unwrap();
    assert!(asked.is_pending());
}
