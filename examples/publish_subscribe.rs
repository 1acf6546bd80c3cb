//! Publish and subscribe: an order is placed, and who cares hears of it. Neither knows of the other.
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

/// An event: anything that can be cloned. What is large goes into an `Arc`.
#[derive(Debug, Clone)]
struct OrderPlaced {
    id: u32,
    email: Arc<str>,
}

async fn place_order(bus: &EventBus, id: u32, email: &str) -> usize {
    // .. write it to the database, and then tell whoever wants to know. This never waits for any of them.
    bus.publish(OrderPlaced { id, email: email.into() })
}

// On a paused clock: the seconds below pass at once.
#[tokio::main(flavor = "current_thread", start_paused = true)]
async fn main() -> Result<(), ScopeError> {
    let failures = Arc::new(AtomicU32::new(0));
    let count = Arc::clone(&failures);
    // Every scope has a bus, which it shares with the scopes within.
    let shop = Scope::root("shop");
    let bus = shop.events().named("shop").observer(move |_: &LayerInfo, event: &LayerEvent<'_>| {
        if let LayerEvent::HandlerFailed { of, error } = event {
            println!("a handler of {of} failed: {error}");
            count.fetch_add(1, Ordering::Relaxed);
        }
    });

    // A handler for each event, on a task of its own, for as long as its guard lives. An error is reported, and that is all.
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

    // A `Stream`, which can be read without a `StreamExt` too. This one looks every second, and wants no more than the last two.
    let mut dashboard = bus.subscribe_with::<OrderPlaced>(2, Lag::Tell);
    // And one that goes away again.
    drop(bus.subscribe::<OrderPlaced>());

    assert_eq!(place_order(&bus, 1, "alice@example.com").await, 3);
    assert_eq!(place_order(&bus, 2, "bob").await, 3);
    assert_eq!(place_order(&bus, 3, "carol@example.com").await, 3);
    sleep(Duration::from_secs(1)).await;

    assert!(matches!(dashboard.next().await, Some(Err(Lagged::Missed(1)))));
    assert!(matches!(dashboard.next().await, Some(Ok(OrderPlaced { id: 2, .. }))));

    // The end of the scope: what waits is still delivered, and by then handled.
    place_order(&bus, 4, "dave@example.com").await;
    shop.close().await?;
    assert_eq!(place_order(&bus, 5, "nobody is there any more").await, 0);
    assert!(matches!(dashboard.next().await, Some(Ok(OrderPlaced { id: 3, .. }))));
    assert!(matches!(dashboard.next().await, Some(Ok(OrderPlaced { id: 4, .. }))));
    assert!(dashboard.next().await.is_none());
    drop((welcome, analytics));
    assert_eq!((sum.load(Ordering::Relaxed), failures.load(Ordering::Relaxed)), (1 + 2 + 3 + 4, 1));
    println!("four orders, three kinds of listeners, one failure that nobody else noticed");
    Ok(())
}
