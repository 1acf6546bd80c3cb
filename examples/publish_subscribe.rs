//! Publishes an order to its subscribers. Neither side knows the other.
//!
//! One handler fails, one is slow, and one subscriber goes away: the publisher and the others never notice.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use tokio::time::sleep;
use ziggurat::{
    EventBus, LayerEvent, LayerInfo, Scope,
    events::{Lag, Lagged},
    scope::ScopeError,
};

/// An event: any type that is `Clone`. Put large data into an `Arc`.
#[derive(Debug, Clone)]
struct OrderPlaced {
    id: u32,
    email: Arc<str>,
}

async fn place_order(bus: &EventBus, id: u32, email: &str) -> usize {
    // .. write it to the database, and then publish the event. This never waits for a subscriber.
    bus.publish(OrderPlaced { id, email: email.into() })
}

// On a paused clock: the seconds below take no time.
#[tokio::main(flavor = "current_thread", start_paused = true)]
async fn main() -> Result<(), ScopeError> {
    let failures = Arc::new(AtomicU32::new(0));
    let count = Arc::clone(&failures);
    // Every scope has a bus, which it shares with its nested scopes.
    let shop = Scope::root("shop");
    let bus = shop.events().named("shop").observer(move |_: &LayerInfo, event: &LayerEvent<'_>| {
        if let LayerEvent::HandlerFailed { of, error } = event {
            println!("a handler of {of} failed: {error}");
            count.fetch_add(1, Ordering::Relaxed);
        }
    });

    // A handler for each event, on its own task, for as long as its guard lives. An error is only reported.
    let welcome = bus.on(|order: OrderPlaced| async move {
        sleep(Duration::from_millis(100)).await;
        if order.email.contains('@') { Ok(()) } else { Err(format!("cannot write to `{}`", order.email)) }
    });
    let sum = Arc::new(AtomicU32::new(0));
    let analytics = bus.on({
        let sum = Arc::clone(&sum);
        move |order: OrderPlaced| {
            sum.fetch_add(order.id, Ordering::Relaxed);
            async {}
        }
    });

    // A `Stream`, which can be read without a `StreamExt` too. This one reads every second, and keeps only the last
    // two.
    let mut dashboard = bus.subscribe_with::<OrderPlaced>(2, Lag::Tell);
    // This subscriber goes away again.
    drop(bus.subscribe::<OrderPlaced>());

    assert_eq!(place_order(&bus, 1, "alice@example.com").await, 3);
    assert_eq!(place_order(&bus, 2, "bob").await, 3);
    assert_eq!(place_order(&bus, 3, "carol@example.com").await, 3);
    sleep(Duration::from_secs(1)).await;

    assert!(matches!(dashboard.next().await, Some(Err(Lagged::Missed(1)))));
    assert!(matches!(dashboard.next().await, Some(Ok(OrderPlaced { id: 2, .. }))));

    // The scope ends: queued events are still delivered, and by then handled.
    place_order(&bus, 4, "dave@example.com").await;
    shop.close().await?;
    assert_eq!(place_order(&bus, 5, "nobody is there any more").await, 0);
    assert!(matches!(dashboard.next().await, Some(Ok(OrderPlaced { id: 3, .. }))));
    assert!(matches!(dashboard.next().await, Some(Ok(OrderPlaced { id: 4, .. }))));
    assert!(dashboard.next().await.is_none());
    drop((welcome, analytics));
    assert_eq!((sum.load(Ordering::Relaxed), failures.load(Ordering::Relaxed)), (1 + 2 + 3 + 4, 1));
    println!("four orders, three kinds of subscribers, one failure that the others never noticed");
    Ok(())
}
