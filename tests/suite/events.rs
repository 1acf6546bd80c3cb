//! The event bus.

use std::{
    future::{Future, pending},
    panic::{AssertUnwindSafe, catch_unwind},
    pin::{Pin, pin},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    task::{Context, Poll, Wake, Waker},
    time::Duration,
};

use tokio::{
    sync::{Barrier, mpsc, oneshot},
    task::JoinSet,
    time::sleep,
};
use tokio_stream::{Stream, StreamExt};
use ziggurat::{
    EventBus, LayerEvent, LayerInfo,
    events::{Lag, Lagged, Subscription},
    testing::TestTask,
};

#[derive(Debug, Clone, PartialEq)]
struct OrderPlaced(u32);

#[derive(Debug, Clone, PartialEq)]
struct OrderShipped(u32);

/// Polls a subscription once.
fn now<E: Clone + Send + Sync + 'static>(events: &mut Subscription<E>) -> Poll<Option<Result<E, Lagged>>> {
    Pin::new(events).poll_next(&mut Context::from_waker(Waker::noop()))
}

fn next<E: Clone + Send + Sync + 'static>(events: &mut Subscription<E>) -> Result<E, Lagged> {
    match now(events) {
        Poll::Ready(Some(event)) => event,
        Poll::Ready(None) => panic!("the stream has ended"),
        Poll::Pending => panic!("there is no event"),
    }
}

/// The number of types with subscribers, from the `Debug` output of the bus.
fn types(bus: &EventBus) -> String {
    let shown = format!("{bus:?}");
    shown.split_once("types: ").unwrap().1.split_once(',').unwrap().0.to_owned()
}

/// A bus, and the reports about its handlers.
fn observed() -> (EventBus, Arc<Mutex<Vec<String>>>) {
    let reports = Arc::<Mutex<Vec<String>>>::default();
    let told = Arc::clone(&reports);
    let bus = EventBus::new().named("orders").observer(move |info: &LayerInfo, event: &LayerEvent<'_>| {
        let report = match event {
            LayerEvent::HandlerFailed { of, error } => format!("{} failed: {error}", of.rsplit("::").next().unwrap()),
            LayerEvent::HandlerLagged { of, missed } => {
                format!("{} lagged: {missed:?}", of.rsplit("::").next().unwrap())
            }
            other => format!("{other:?}"),
        };
        let (layer, name) = (info.layer(), info.name().unwrap());
        told.lock().unwrap().push(format!("{layer} {name}: {report}"));
    });
    (bus, reports)
}

/// Shows: E1
#[tokio::test]
async fn each_subscriber_hears_the_events_of_its_type_in_order() {
    let bus = EventBus::new();
    let mut placed = [bus.subscribe::<OrderPlaced>(), bus.subscribe()];
    let mut shipped = bus.subscribe::<OrderShipped>();
    for id in 1..=100 {
        assert_eq!(bus.publish(OrderPlaced(id)), 2);
        assert_eq!(bus.clone().publish(OrderShipped(id)), 1);
    }
    assert_eq!(bus.publish("an event that nobody subscribed to"), 0);
    for id in 1..=100 {
        for placed in &mut placed {
            assert_eq!(placed.next().await, Some(Ok(OrderPlaced(id))));
        }
        assert_eq!(StreamExt::next(&mut shipped).await, Some(Ok(OrderShipped(id))));
    }
    assert!(now(&mut shipped).is_pending());
}

/// Shows: E1
#[tokio::test]
async fn only_what_is_published_after_subscribing_is_heard() {
    let bus = EventBus::new();
    let mut early = bus.subscribe();
    bus.publish(OrderPlaced(1));
    let mut late = bus.subscribe();
    bus.publish(OrderPlaced(2));
    assert_eq!((next(&mut early), next(&mut early)), (Ok(OrderPlaced(1)), Ok(OrderPlaced(2))));
    assert_eq!(next(&mut late), Ok(OrderPlaced(2)));
    assert!(now(&mut late).is_pending());
}

/// Shows: E1
#[tokio::test]
async fn who_waits_is_woken_once_for_an_event() {
    let bus = EventBus::new();
    let mut events = bus.subscribe::<OrderPlaced>();
    let mut waiting = TestTask::new(events.next());
    assert!(waiting.poll().is_pending());
    assert!(waiting.poll().is_pending());
    bus.publish(OrderShipped(1));
    assert_eq!(waiting.times_woken(), 0);
    bus.publish(OrderPlaced(1));
    bus.publish(OrderPlaced(2));
    assert_eq!(waiting.times_woken(), 1);
    assert_eq!(waiting.poll(), Poll::Ready(Some(Ok(OrderPlaced(1)))));
}

/// The publisher makes no copies: subscribers do, and the last of them gets the event itself.
///
/// Shows: E1
#[test]
fn an_event_is_copied_by_those_who_receive_it_and_not_for_the_last() {
    #[derive(Debug)]
    struct Counted(Arc<AtomicUsize>);
    impl Clone for Counted {
        fn clone(&self) -> Self {
            self.0.fetch_add(1, SeqCst);
            Self(Arc::clone(&self.0))
        }
    }
    let (bus, copies) = (EventBus::new(), Arc::default());
    let mut all = [bus.subscribe::<Counted>(), bus.subscribe(), bus.subscribe()];
    assert_eq!(bus.publish(Counted(Arc::clone(&copies))), 3);
    assert_eq!(copies.load(SeqCst), 0);
    for events in &mut all {
        next(events).unwrap();
    }
    assert_eq!(copies.load(SeqCst), 2);
}

/// For example, a list of subscribers in a static would be shared by all buses of the program.
///
/// Shows: E4
#[test]
fn two_buses_share_nothing_and_clones_of_one_share_all() {
    let (one, two) = (EventBus::new(), EventBus::default());
    let mut events = one.clone().named("another name").subscribe();
    assert_eq!(two.publish(OrderPlaced(2)), 0);
    assert_eq!(one.publish(OrderPlaced(1)), 1);
    assert_eq!(next(&mut events), Ok(OrderPlaced(1)));
}

/// Shows: E1, E2
#[tokio::test]
async fn a_handler_is_called_for_one_event_after_the_other() {
    let bus = EventBus::new();
    let (started, mut log) = mpsc::unbounded_channel();
    let guard = bus.on(move |OrderPlaced(id)| {
        let started = started.clone();
        async move {
            started.send((id, "begins")).unwrap();
            tokio::task::yield_now().await;
            started.send((id, "ends")).unwrap();
        }
    });
    for id in 1..=3 {
        bus.publish(OrderPlaced(id));
    }
    bus.close();
    guard.finished().await;
    for id in 1..=3 {
        assert_eq!((log.recv().await, log.recv().await), (Some((id, "begins")), Some((id, "ends"))));
    }
    assert_eq!(log.recv().await, None, "the handler is dropped when it has finished");
}

/// Shows: E2
#[tokio::test]
async fn a_handler_that_fails_or_panics_is_reported_and_all_go_on() {
    let (bus, reports) = observed();
    let good = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&good);
    let guards = [
        bus.on(|OrderPlaced(id)| async move { if id < 3 { Err(format!("no stock for {id}")) } else { Ok(()) } }),
        bus.on(|OrderPlaced(id)| async move { assert!(id != 2, "boom in {id}") }),
        // Panics before there is a future.
        bus.on(|OrderPlaced(id)| {
            assert!(id != 1, "bang");
            async {}
        }),
        bus.on(move |OrderPlaced(_)| {
            counted.fetch_add(1, SeqCst);
            async {}
        }),
    ];
    for id in 1..=3 {
        assert_eq!(bus.publish(OrderPlaced(id)), 4);
    }
    bus.close();
    for guard in guards {
        guard.finished().await;
    }
    assert_eq!(good.load(SeqCst), 3);
    let mut reports = reports.lock().unwrap().clone();
    reports.sort();
    assert_eq!(
        reports,
        [
            "events orders: OrderPlaced failed: no stock for 1",
            "events orders: OrderPlaced failed: no stock for 2",
            "events orders: OrderPlaced failed: panicked: bang",
            "events orders: OrderPlaced failed: panicked: boom in 2",
        ]
    );
}

/// An error of a handler must not end the publisher, or look like a cancellation to a publisher in a group of tasks.
///
/// Shows: E2
#[tokio::test]
async fn a_handlers_error_does_not_turn_into_a_cancellation() {
    let bus = EventBus::new();
    let (guard, mut events) = (bus.on(|_: OrderPlaced| async { Err::<(), _>("failed") }), bus.subscribe());
    let publisher = tokio::spawn({
        let bus = bus.clone();
        async move {
            for id in 1..=3 {
                assert_eq!(bus.publish_and_wait(OrderPlaced(id)).await, 2);
                tokio::task::yield_now().await;
            }
        }
    });
    publisher.await.expect("neither cancelled nor panicked");
    bus.close();
    guard.finished().await;
    for id in 1..=3 {
        assert_eq!(events.next().await, Some(Ok(OrderPlaced(id))));
    }
}

/// Shows: E2
#[tokio::test]
async fn publishing_never_waits_for_a_slow_subscriber() {
    let (bus, reports) = observed();
    let (begun, begins) = oneshot::channel();
    let mut begun = Some(begun);
    let stuck = bus.on_with(1, Lag::Tell, move |_: OrderPlaced| {
        begun.take().unwrap().send(()).unwrap();
        pending::<()>()
    });
    let mut fast = bus.subscribe();
    bus.publish(OrderPlaced(0));
    begins.await.unwrap();
    for id in 1..=200 {
        assert_eq!(bus.publish(OrderPlaced(id)), 2);
    }
    for id in 0..=200 {
        assert_eq!(next(&mut fast), Ok(OrderPlaced(id)));
    }
    assert_eq!(*reports.lock().unwrap(), [] as [String; 0], "it has not asked for another one yet");
    drop(stuck);
}

/// Shows: E2, E3
#[tokio::test]
async fn a_handler_that_lags_is_reported() {
    let (bus, reports) = observed();
    let handled = Arc::<Mutex<Vec<u32>>>::default();
    let seen = Arc::clone(&handled);
    let handler = move |OrderPlaced(id)| {
        seen.lock().unwrap().push(id);
        async {}
    };
    let guards = [bus.on_with(2, Lag::Tell, handler.clone()), bus.on_with(1, Lag::Drop, handler)];
    for (id, heard) in [(1, 2), (2, 1), (3, 1)] {
        assert_eq!(bus.publish(OrderPlaced(id)), heard);
    }
    bus.close();
    for guard in guards {
        guard.finished().await;
    }
    assert_eq!(
        *reports.lock().unwrap(),
        ["events orders: OrderPlaced lagged: Some(1)", "events orders: OrderPlaced lagged: None",]
    );
    assert_eq!(*handled.lock().unwrap(), [2, 3, 1]);
}

/// Shows: E1, E4
#[tokio::test]
async fn a_guard_that_is_dropped_ends_its_handler_after_the_event_that_it_is_busy_with() {
    let bus = EventBus::new();
    let (tell, mut told) = mpsc::unbounded_channel();
    let (go_on, wait) = oneshot::channel::<()>();
    let mut wait = Some(wait);
    let guard = bus.on(move |OrderPlaced(id)| {
        let (tell, wait) = (tell.clone(), wait.take());
        async move {
            tell.send((id, "begins")).unwrap();
            if let Some(wait) = wait {
                wait.await.unwrap();
            }
            tell.send((id, "ends")).unwrap();
        }
    });
    bus.publish(OrderPlaced(1));
    bus.publish(OrderPlaced(2));
    assert_eq!(told.recv().await, Some((1, "begins")));
    drop(guard);
    assert_eq!((bus.publish(OrderPlaced(3)), types(&bus).as_str()), (0, "0"));
    go_on.send(()).unwrap();
    assert_eq!(told.recv().await, Some((1, "ends")));
    assert_eq!(told.recv().await, None, "and the handler is gone");
}

/// Shows: E1
#[tokio::test]
async fn a_handler_that_is_detached_stays_until_the_bus_is_closed() {
    let bus = EventBus::new();
    let (tell, mut told) = mpsc::unbounded_channel();
    bus.on(move |OrderPlaced(id)| {
        tell.send(id).unwrap();
        async {}
    })
    .detach();
    assert_eq!(bus.publish(OrderPlaced(1)), 1);
    assert_eq!(told.recv().await, Some(1));
    bus.close();
    assert_eq!(told.recv().await, None);
}

/// Shows: E3
#[test]
fn who_lags_is_told_how_many_it_missed_and_goes_on_with_the_oldest_that_is_left() {
    let bus = EventBus::new();
    let (mut slow, mut fast) = (bus.subscribe_with(3, Lag::Tell), bus.subscribe());
    for id in 1..=10 {
        bus.publish(OrderPlaced(id));
        assert_eq!(next(&mut fast), Ok(OrderPlaced(id)));
    }
    assert_eq!(next(&mut slow), Err(Lagged::Missed(7)));
    for id in 8..=10 {
        assert_eq!(next(&mut slow), Ok(OrderPlaced(id)));
    }
    assert!(now(&mut slow).is_pending());
}

/// Shows: E3
#[test]
fn who_lags_and_chose_so_is_dropped_after_its_backlog() {
    let bus = EventBus::new();
    let (mut slow, mut fast) = (bus.subscribe_with(2, Lag::Drop), bus.subscribe());
    let heard: Vec<_> = (1..=4).map(|id| bus.publish(OrderPlaced(id))).collect();
    assert_eq!(heard, [2, 2, 1, 1]);
    assert_eq!((next(&mut slow), next(&mut slow)), (Ok(OrderPlaced(1)), Ok(OrderPlaced(2))));
    assert_eq!(next(&mut slow), Err(Lagged::Dropped));
    assert_eq!(now(&mut slow), Poll::Ready(None));
    for id in 1..=4 {
        assert_eq!(next(&mut fast), Ok(OrderPlaced(id)));
    }
}

/// Shows: E3
#[test]
fn who_publishes_and_waits_waits_for_those_who_block_and_for_no_others() {
    let bus = EventBus::new();
    let mut blocks = bus.subscribe_with(1, Lag::Block);
    let mut lags = bus.subscribe_with(1, Lag::Tell);
    let mut first = TestTask::new(bus.publish_and_wait(OrderPlaced(1)));
    assert_eq!(first.poll(), Poll::Ready(2));
    let mut second = TestTask::new(bus.publish_and_wait(OrderPlaced(2)));
    assert!(second.poll().is_pending());
    // While the publisher waits, no subscriber has received the event.
    assert_eq!(next(&mut lags), Ok(OrderPlaced(1)));
    assert!(now(&mut lags).is_pending());
    assert_eq!(second.times_woken(), 0);
    assert_eq!(next(&mut blocks), Ok(OrderPlaced(1)));
    assert_eq!(second.times_woken(), 1);
    assert_eq!(second.poll(), Poll::Ready(2));
    assert_eq!((next(&mut blocks), next(&mut lags)), (Ok(OrderPlaced(2)), Ok(OrderPlaced(2))));

    // `publish` does not wait for blocking subscribers either.
    bus.publish(OrderPlaced(3));
    assert_eq!(bus.publish(OrderPlaced(4)), 2);
    assert_eq!((next(&mut blocks), next(&mut blocks)), (Err(Lagged::Missed(1)), Ok(OrderPlaced(4))));
}

/// Shows: E3
#[test]
fn those_who_wait_to_publish_do_so_in_turn_and_who_gives_up_leaves_no_trace() {
    let bus = EventBus::new();
    let mut events = bus.subscribe_with::<OrderPlaced>(1, Lag::Block);
    bus.publish(OrderPlaced(0));
    let mut waiting: Vec<_> = (1..=4).map(|id| TestTask::new(bus.publish_and_wait(OrderPlaced(id)))).collect();
    for task in &mut waiting {
        assert!(task.poll().is_pending());
    }
    // The first publisher, which waits for room, and one from the middle.
    drop(waiting.remove(2));
    drop(waiting.remove(0));
    let mut heard = vec![next(&mut events).unwrap().0];
    while let Some(task) = waiting.iter_mut().find(|task| task.times_woken() > 0) {
        assert_eq!(task.poll(), Poll::Ready(1));
        waiting.remove(0);
        heard.push(next(&mut events).unwrap().0);
    }
    assert_eq!(heard, [0, 2, 4]);
    assert!(now(&mut events).is_pending());
}

/// Shows: E3, E4
#[test]
fn a_wait_for_room_ends_with_the_subscriber_that_has_none_and_with_the_bus() {
    let bus = EventBus::new();
    let (blocks, mut other) = (bus.subscribe_with::<OrderPlaced>(1, Lag::Block), bus.subscribe());
    bus.publish(OrderPlaced(1));
    let mut waiting = TestTask::new(bus.publish_and_wait(OrderPlaced(2)));
    assert!(waiting.poll().is_pending());
    drop(blocks);
    assert_eq!(waiting.times_woken(), 1);
    assert_eq!(waiting.poll(), Poll::Ready(1));
    assert_eq!((next(&mut other), next(&mut other)), (Ok(OrderPlaced(1)), Ok(OrderPlaced(2))));

    let _blocks = bus.subscribe_with::<OrderPlaced>(1, Lag::Block);
    bus.publish(OrderPlaced(3));
    let mut waiting = [4, 5].map(|id| TestTask::new(bus.publish_and_wait(OrderPlaced(id))));
    assert!(waiting.iter_mut().all(|task| task.poll().is_pending()));
    bus.close();
    for task in &mut waiting {
        assert!(task.times_woken() > 0);
        assert_eq!(task.poll(), Poll::Ready(0));
    }
}

/// The full subscriber leaves and subscribes anew: the publishers that waited for it reach it, in their order.
///
/// Shows: E3
#[test]
fn who_waits_to_publish_reaches_a_subscriber_that_leaves_and_comes_back() {
    let bus = EventBus::new();
    let leaves = bus.subscribe_with::<OrderPlaced>(1, Lag::Block);
    bus.publish(OrderPlaced(0));
    let mut waiting = [1, 2].map(|id| TestTask::new(bus.publish_and_wait(OrderPlaced(id))));
    assert!(waiting.iter_mut().all(|task| task.poll().is_pending()));
    drop(leaves);
    let mut back = bus.subscribe_with::<OrderPlaced>(1, Lag::Block);
    assert_eq!(waiting[0].poll(), Poll::Ready(1));
    assert!(waiting[1].poll().is_pending());
    assert_eq!(next(&mut back), Ok(OrderPlaced(1)));
    assert_eq!(waiting[1].poll(), Poll::Ready(1));
    assert_eq!(next(&mut back), Ok(OrderPlaced(2)));
    // Without a new subscriber the wait ends, and the event is dropped.
    bus.publish(OrderPlaced(3));
    let mut alone = TestTask::new(bus.publish_and_wait(OrderPlaced(4)));
    assert!(alone.poll().is_pending());
    drop(back);
    assert_eq!(alone.poll(), Poll::Ready(0));
}

/// The compiler refuses a reference that it sees. It does not see one behind a type parameter.
///
/// Shows: E1
#[test]
fn a_reference_is_refused_behind_a_type_parameter_too() {
    fn publish<E: Clone + Send + Sync + 'static>(bus: &EventBus, event: E) -> usize {
        bus.publish(event)
    }
    static PLACED: OrderPlaced = OrderPlaced(1);
    let bus = EventBus::new();
    let refused = [
        catch_unwind(AssertUnwindSafe(|| publish(&bus, &PLACED))).unwrap_err(),
        catch_unwind(AssertUnwindSafe(|| bus.subscribe::<&OrderPlaced>())).unwrap_err(),
    ];
    for panic in refused {
        let message = panic.downcast_ref::<String>().unwrap();
        assert!(message.starts_with("pass the event by value, not a reference") && message.contains("OrderPlaced"));
    }
    // A type that contains a reference is a value, and so is a string literal.
    let _texts = bus.subscribe::<&'static str>();
    let _others = (bus.subscribe::<Option<&OrderPlaced>>(), bus.subscribe::<&'static [OrderPlaced]>());
    assert_eq!(publish(&bus, Some(&PLACED)) + publish(&bus, "text") + publish(&bus, Box::new(1)), 2);
}

/// Shows: E4
#[tokio::test]
async fn streams_end_after_their_backlog_when_the_bus_is_closed() {
    let bus = EventBus::new();
    let (mut busy, mut idle) = (bus.subscribe(), bus.subscribe::<OrderShipped>());
    let mut waiting = TestTask::new(idle.next());
    assert!(waiting.poll().is_pending());
    bus.publish(OrderPlaced(1));
    for _ in 0..2 {
        bus.close();
        assert!(bus.is_closed());
        assert_eq!(bus.publish(OrderPlaced(2)), 0);
        assert_eq!(bus.publish_and_wait(OrderPlaced(3)).await, 0);
    }
    assert_eq!(waiting.poll(), Poll::Ready(None));
    assert_eq!(busy.next().await, Some(Ok(OrderPlaced(1))));
    assert_eq!((busy.next().await, busy.next().await), (None, None));
    assert_eq!(bus.subscribe::<OrderPlaced>().next().await, None);
    bus.on(|_: OrderPlaced| async {}).finished().await;
    assert_eq!(types(&bus), "0");
}

/// Shows: E4
#[tokio::test]
async fn the_last_clone_of_a_bus_closes_it() {
    let bus = EventBus::new();
    let (clone, mut events) = (bus.clone(), bus.subscribe());
    drop(bus);
    clone.publish(OrderPlaced(1));
    drop(clone);
    assert_eq!(events.next().await, Some(Ok(OrderPlaced(1))));
    assert_eq!(events.next().await, None);
}

/// Cancelling one of several waiting subscribers must not cancel the others.
///
/// Shows: E4
#[tokio::test(start_paused = true)]
async fn a_subscriber_whose_cancellation_cancels_no_other() {
    let bus = EventBus::new();
    let mut tasks = JoinSet::new();
    let aborts: Vec<_> = (0..3)
        .map(|_| {
            let mut events = bus.subscribe();
            tasks.spawn(async move {
                let mut heard = vec![];
                while let Some(Ok(OrderPlaced(id))) = events.next().await {
                    heard.push(id);
                }
                heard
            })
        })
        .collect();
    sleep(Duration::from_secs(1)).await;
    assert_eq!(bus.publish(OrderPlaced(1)), 3);
    sleep(Duration::from_secs(1)).await;
    // The first in the middle of its wait, the second with an event that it has not seen yet.
    aborts[0].abort();
    sleep(Duration::from_secs(1)).await;
    assert_eq!(bus.publish(OrderPlaced(2)), 2);
    aborts[1].abort();
    sleep(Duration::from_secs(1)).await;
    assert_eq!(bus.publish(OrderPlaced(3)), 1);
    bus.close();
    let mut ended = vec![];
    while let Some(outcome) = tasks.join_next().await {
        ended.push(outcome.ok());
    }
    ended.sort();
    assert_eq!(ended, [None, None, Some(vec![1, 2, 3])]);
}

/// Shows: E2
#[tokio::test]
async fn a_handler_may_publish_subscribe_attach_and_close() {
    let bus = EventBus::new();
    let (tell, mut told) = mpsc::unbounded_channel();
    let guard = bus.on({
        let bus = bus.clone();
        move |OrderPlaced(id)| {
            let (bus, tell) = (bus.clone(), tell.clone());
            async move {
                let mut mine = bus.subscribe();
                bus.on(move |OrderShipped(id)| {
                    tell.send(id).unwrap();
                    async {}
                })
                .detach();
                assert!(bus.publish(OrderShipped(id)) >= 2);
                assert_eq!(mine.next().await, Some(Ok(OrderShipped(id))));
                if id < 3 {
                    // To itself, too.
                    assert_eq!(bus.publish_and_wait(OrderPlaced(3)).await, 1);
                } else {
                    bus.close();
                }
            }
        }
    });
    bus.publish(OrderPlaced(1));
    guard.finished().await;
    let mut heard = vec![];
    while let Some(id) = told.recv().await {
        heard.push(id);
    }
    heard.sort_unstable();
    assert_eq!(heard, [1, 3, 3]);
}

/// Copies, drops and wakers are user code. All of them use the bus here, and would deadlock if a lock were held.
///
/// Shows: E2
#[test]
fn no_lock_is_held_while_code_of_a_user_runs() {
    struct Meddles(EventBus);
    impl Meddles {
        fn meddle(&self) {
            drop(self.0.subscribe::<Meddles>());
            self.0.publish("meddled");
            let _ = format!("{:?}", self.0);
        }
    }
    impl Clone for Meddles {
        fn clone(&self) -> Self {
            self.meddle();
            Self(self.0.clone())
        }
    }
    impl Drop for Meddles {
        fn drop(&mut self) {
            self.meddle();
        }
    }
    struct Waking(Meddles);
    impl Wake for Waking {
        fn wake(self: Arc<Self>) {
            self.0.meddle();
        }
    }
    let bus = EventBus::new();
    let event = || Meddles(bus.clone());
    let mut told = bus.subscribe_with::<Meddles>(1, Lag::Tell);
    let mut dropped = bus.subscribe_with::<Meddles>(1, Lag::Drop);
    let waker = Waker::from(Arc::new(Waking(event())));
    for events in [&mut told, &mut dropped] {
        assert!(Pin::new(events).poll_next(&mut Context::from_waker(&waker)).is_pending());
    }
    // First wakers run, then an eviction and a refusal, then copies, then drops of unread and late events.
    assert_eq!(bus.publish(event()), 2);
    assert_eq!(bus.publish(event()), 1);
    assert_eq!(next(&mut told).err(), Some(Lagged::Missed(1)));
    assert!(next(&mut dropped).is_ok());
    assert!(Pin::new(&mut dropped).poll_next(&mut Context::from_waker(&waker)).is_ready());
    drop(dropped);
    drop(told);
    assert_eq!(bus.publish(event()), 0);
    let mut alone = bus.subscribe_with::<Meddles>(1, Lag::Drop);
    bus.publish(event());
    assert_eq!(bus.publish(event()), 0);
    assert!(next(&mut alone).is_ok());
    let late = bus.subscribe::<Meddles>();
    bus.publish(event());
    bus.close();
    drop(late);
}

/// Shows: E1, E4
#[test]
fn in_whatever_order_subscribers_leave_exactly_the_others_hear() {
    let bus = EventBus::new();
    let mut all: Vec<_> = (0..10).map(|_| bus.subscribe()).collect();
    // From the front, the back and the middle.
    for place in [0, 8, 3, 0, 5, 2, 2, 0, 1, 0] {
        drop(all.remove(place));
        assert_eq!(bus.publish(OrderPlaced(1)), all.len());
        for events in &mut all {
            assert_eq!(next(events), Ok(OrderPlaced(1)));
            assert!(now(events).is_pending());
        }
    }
    assert_eq!(types(&bus), "0");
}

/// Shows: E3
#[test]
fn nothing_is_left_of_subscribers_that_are_gone_and_of_events_that_nobody_hears() {
    let (bus, event) = (EventBus::new(), Arc::new(()));
    bus.publish(Arc::clone(&event));
    let mut all: Vec<_> = (0..100).map(|_| bus.subscribe_with::<Arc<()>>(3, Lag::Tell)).collect();
    let shipped = bus.subscribe::<OrderShipped>();
    assert_eq!(types(&bus), "2");
    for _ in 0..1_000 {
        bus.publish(Arc::clone(&event));
    }
    // Each is in memory once, however many subscribers it waits for.
    assert_eq!(Arc::strong_count(&event), 1 + 3);
    assert_eq!(next(&mut all[0]), Err(Lagged::Missed(997)));
    drop(all);
    assert_eq!((Arc::strong_count(&event), bus.publish(Arc::clone(&event))), (1, 0));
    assert_eq!(types(&bus), "1");
    drop(shipped);
    assert_eq!(types(&bus), "0");
    // A subscriber that was dropped for its lag, and a bus that closes with a single subscriber left.
    let lags = bus.subscribe_with::<Arc<()>>(1, Lag::Drop);
    for _ in 0..3 {
        bus.publish(Arc::clone(&event));
    }
    drop(lags);
    assert_eq!((Arc::strong_count(&event), types(&bus).as_str()), (1, "0"));
}

/// Shows: E1, E4
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn many_publishers_are_heard_by_all_in_one_order_while_others_come_and_go() {
    let (bus, start) = (EventBus::new(), Arc::new(Barrier::new(8)));
    let mut listeners = JoinSet::new();
    for _ in 0..4 {
        let mut events = bus.subscribe_with::<(u32, u32)>(usize::MAX, Lag::Tell);
        listeners.spawn(async move {
            let mut heard = vec![];
            while let Some(event) = events.next().await {
                heard.push(event.unwrap());
            }
            heard
        });
    }
    let mut tasks = JoinSet::new();
    for publisher in 0..4_u32 {
        let (publishes, begin) = (bus.clone(), Arc::clone(&start));
        tasks.spawn(async move {
            begin.wait().await;
            for number in 0..500_u32 {
                assert!(publishes.publish_and_wait((publisher, number)).await >= 4);
            }
        });
        let (bus, begin) = (bus.clone(), Arc::clone(&start));
        tasks.spawn(async move {
            begin.wait().await;
            for _ in 0..200 {
                let mut events = bus.subscribe_with::<(u32, u32)>(1, Lag::Block);
                assert!(events.next().await.is_some());
                drop((events, bus.on_with(1, Lag::Drop, |_: (u32, u32)| async {})));
            }
        });
    }
    // A subscriber that comes and goes needs events to receive until it has left for the last time.
    let until_gone = tokio::spawn({
        let bus = bus.clone();
        async move {
            loop {
                bus.publish((4_u32, 0_u32));
                tokio::task::yield_now().await;
            }
        }
    });
    while let Some(ended) = tasks.join_next().await {
        ended.unwrap();
    }
    until_gone.abort();
    let _ = until_gone.await;
    bus.close();
    let mut all = listeners.join_all().await;
    let one = all.pop().unwrap();
    assert!(all.iter().all(|other| *other == one), "in one order");
    for publisher in 0..4_u32 {
        let numbers: Vec<_> = one.iter().filter(|event| event.0 == publisher).map(|event| event.1).collect();
        assert_eq!(numbers, (0..500).collect::<Vec<_>>());
    }
}

#[test]
fn bad_input_is_refused_by_name() {
    let bus = EventBus::new();
    let message = "capacity must be at least 1, not 0";
    for attempt in [&(|| drop(bus.subscribe_with::<OrderPlaced>(0, Lag::Tell))) as &dyn Fn(), &|| {
        drop(bus.on_with(0, Lag::Tell, |_: OrderPlaced| async {}))
    }] {
        let panic = catch_unwind(AssertUnwindSafe(attempt)).unwrap_err();
        assert_eq!(panic.downcast_ref::<&str>(), Some(&message));
    }
    // The largest capacity is valid.
    let mut all = bus.subscribe_with(usize::MAX, Lag::Block);
    bus.publish(OrderPlaced(1));
    assert_eq!(next(&mut all), Ok(OrderPlaced(1)));
}

/// Outside of a runtime no handler can run: `on` panics with a message, and leaves no subscriber behind.
#[test]
fn a_handler_needs_a_runtime() {
    let bus = EventBus::new();
    let panic = catch_unwind(AssertUnwindSafe(|| bus.on(|_: OrderPlaced| async {})));
    assert!(panic.is_err());
    assert_eq!(bus.publish(OrderPlaced(1)), 0);
}

/// Bad input: an event that panics when it is dropped, while a publisher waits for its place.
///
/// Shows: E3
#[test]
fn a_subscriber_whose_events_panic_when_they_are_dropped_still_makes_room() {
    #[derive(Clone)]
    struct Touchy(bool);
    impl Drop for Touchy {
        fn drop(&mut self) {
            assert!(!self.0, "touched");
        }
    }
    let bus = EventBus::new();
    let blocks = bus.subscribe_with::<Touchy>(1, Lag::Block);
    bus.publish(Touchy(true));
    let mut waiting = TestTask::new(bus.publish_and_wait(Touchy(false)));
    assert!(waiting.poll().is_pending());
    assert!(catch_unwind(AssertUnwindSafe(|| drop(blocks))).is_err());
    assert_eq!(waiting.times_woken(), 1);
    assert_eq!(waiting.poll(), Poll::Ready(0));
}

/// Bad input: the observer of a handler's failure panics, and so does the payload of the handler's panic.
///
/// Shows: E2
#[tokio::test]
async fn a_handler_goes_on_whatever_panics_around_it() {
    struct Touchy;
    impl Drop for Touchy {
        fn drop(&mut self) {
            panic!("touched");
        }
    }
    let bus = EventBus::new().observer(|_: &LayerInfo, event: &LayerEvent<'_>| panic!("observed {event:?}"));
    let (tell, mut told) = mpsc::unbounded_channel();
    let guard = bus.on(move |OrderPlaced(id)| {
        tell.send(id).unwrap();
        async move { if id == 1 { Err::<(), _>("no such order") } else { std::panic::panic_any(Touchy) } }
    });
    for id in 1..=3 {
        bus.publish(OrderPlaced(id));
    }
    bus.close();
    guard.finished().await;
    let mut heard = vec![];
    while let Some(id) = told.recv().await {
        heard.push(id);
    }
    assert_eq!(heard, [1, 2, 3]);
}

/// Bad input: wakers are user code.
///
/// Shows: E2
#[test]
fn a_waker_that_panics_keeps_nobody_else_from_hearing_the_event_or_the_end() {
    struct Bang;
    impl Wake for Bang {
        fn wake(self: Arc<Self>) {
            panic!("woken");
        }
    }
    let bang = Waker::from(Arc::new(Bang));
    let bangs = |events: &mut Subscription<OrderPlaced>| {
        assert!(Pin::new(events).poll_next(&mut Context::from_waker(&bang)).is_pending());
    };
    let bus = EventBus::new();
    let mut first = bus.subscribe::<OrderPlaced>();
    let (mut other, mut of_another_type) = (bus.subscribe::<OrderPlaced>(), bus.subscribe::<OrderShipped>());
    {
        bangs(&mut first);
        let mut heard = TestTask::new(other.next());
        assert!(heard.poll().is_pending());
        let _ = catch_unwind(AssertUnwindSafe(|| bus.publish(OrderPlaced(1))));
        assert_eq!(heard.times_woken(), 1);
        assert_eq!(heard.poll(), Poll::Ready(Some(Ok(OrderPlaced(1)))));
    }
    assert_eq!(next(&mut first), Ok(OrderPlaced(1)));
    bangs(&mut first);

    // The panicking waker of a waiting publisher does not either.
    let mut slow = bus.subscribe_with::<u32>(1, Lag::Block);
    bus.publish(1_u32);
    let mut waits = pin!(bus.publish_and_wait(2_u32));
    let mut waits = || waits.as_mut().poll(&mut Context::from_waker(&bang)).is_pending();
    assert!(waits());
    assert_eq!(next(&mut slow), Ok(1));
    bus.publish(3_u32);
    assert!(waits());

    let (mut heard, mut shipped) = (TestTask::new(other.next()), TestTask::new(of_another_type.next()));
    assert!(heard.poll().is_pending() && shipped.poll().is_pending());
    let _ = catch_unwind(AssertUnwindSafe(|| bus.close()));
    assert_eq!((heard.times_woken(), shipped.times_woken()), (1, 1));
    assert_eq!((heard.poll(), shipped.poll()), (Poll::Ready(None), Poll::Ready(None)));
}
