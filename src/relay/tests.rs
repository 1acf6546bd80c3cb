use std::{fmt, future::pending};

use bytes::Bytes;
use futures_util::FutureExt;

use super::{receive, *};
use crate::clock;

/// An event of a user, who has made mistakes.
#[derive(Debug)]
enum Event {
    Fine,
    /// Its `Clone` panics.
    Unique,
    /// Its `Drop` panics.
    Sticky,
}

impl Clone for Event {
    fn clone(&self) -> Self {
        match self {
            Self::Fine => Self::Fine,
            Self::Unique => panic!("in clone"),
            Self::Sticky => Self::Sticky,
        }
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        assert!(!matches!(self, Self::Sticky), "in drop");
    }
}

/// An error whose `Display` panics.
struct Unspeakable;

impl fmt::Display for Unspeakable {
    fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
        panic!("in display");
    }
}

/// A relay to a server that is not there, with an observer that panics.
fn relay() -> RedisRelay<impl Codec<Event> + Send + Sync + 'static> {
    let codec = (
        |_: &Event| Some(Bytes::from_static(b"event")),
        |bytes: Bytes| if bytes.is_empty() { Err(Unspeakable) } else { Ok(Event::Sticky) },
    );
    let client = Client::open("redis://127.0.0.1:1/").unwrap();
    RedisRelay::new(client, "events", codec).observer(|_: &LayerInfo, _: &LayerEvent<'_>| panic!("in the observer"))
}

async fn until(is_so: impl Fn() -> bool) {
    let waits = async {
        while !is_so() {
            clock::sleep(Duration::from_millis(1)).await;
        }
    };
    assert!(clock::timeout_at(clock::now() + Duration::from_secs(30), waits).await.is_some());
}

/// Shows: M3
#[tokio::test]
async fn a_publisher_that_waits_for_handlers_does_not_wait_for_a_relay() {
    let scope = Scope::root("process");
    let bus = scope.events();
    // Held by a relay that waits for the server, and does not ask for another event.
    let mut events = bus.subscribe_relay::<u8>(4);
    for number in 0..3 {
        assert_eq!(bus.publish_and_join(number).now_or_never().unwrap().heard(), 1);
        assert_eq!(events.next().await.unwrap().unwrap(), number);
    }
    // It still waits for the others.
    let mut other = bus.subscribe::<u8>();
    let mut joins = Box::pin(bus.publish_and_join(3_u8));
    assert!((&mut joins).now_or_never().is_none());
    assert_eq!(other.next().await.unwrap().unwrap(), 3);
    assert!((&mut joins).now_or_never().is_none());
    drop(other);
    assert_eq!(joins.now_or_never().unwrap().heard(), 2);
}

/// Shows: M3
#[tokio::test]
async fn user_code_that_panics_does_not_end_the_sending_task() {
    let scope = Scope::root("process");
    let relay = relay().start(&scope);
    scope.events().publish(Event::Sticky);
    until(|| relay.lost() == 1).await;
    // The relay gets a clone.
    let _other = scope.events().subscribe::<Event>();
    scope.events().publish(Event::Unique);
    until(|| relay.lost() == 2).await;
    scope.events().publish(Event::Fine);
    until(|| relay.lost() == 3).await;
}

/// Shows: M3
#[test]
fn user_code_that_panics_does_not_end_the_receiving_task() {
    let scope = Scope::root("process");
    let bus = scope.events();
    let counts = Arc::<Counts>::default();
    let relay = Relay { settings: relay(), id: 0, counts: Arc::clone(&counts) };
    relay.received::<Event>(Bytes::from_static(&[1]), &bus);
    relay.received::<Event>(Bytes::from_static(&[1; ID]), &bus);
    relay.received::<Event>(Bytes::from_static(&[1; ID + 1]), &bus);
    relay.missed::<Event>(1);
    assert_eq!((counts.received.load(Relaxed), counts.lost.load(Relaxed)), (1, 1));
}

/// Shows: M3
#[tokio::test]
async fn a_relay_whose_task_ends_in_any_way_is_not_connected() {
    let scope = Scope::root("process");
    let bus = scope.events();
    let counts = Arc::<Counts>::default();
    let relay = Arc::new(Relay { settings: relay(), id: 0, counts: Arc::clone(&counts) });
    let mut task = Box::pin(receive::run::<Event, _>(relay, bus, pending()));
    assert!((&mut task).now_or_never().is_none());
    counts.is_connected.store(true, Relaxed);
    drop(task);
    assert!(!counts.is_connected.load(Relaxed));
}

/// Shows: M3
#[tokio::test]
async fn any_timeout_will_do() {
    let scope = Scope::root("process");
    for timeout in [Duration::ZERO, Duration::MAX] {
        let relay = relay().timeout(timeout).start(&scope);
        scope.events().publish(Event::Fine);
        until(|| relay.lost() == 1).await;
        assert!(relay.is_away());
    }
}
