//! A circuit breaker: what fails is left alone, and probed from time to time. Its handle shows the state, and turns it by hand.

use std::{
    collections::BTreeMap,
    error::Error as StdError,
    io,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};

use tokio::time::advance;
use tower::{ServiceBuilder, ServiceExt};
use ziggurat::{
    Backoff, Error, Jitter, LayerEvent, LayerInfo,
    circuit_breaker::{CircuitBreakerLayer, State},
};

const SECOND: Duration = Duration::from_secs(1);

static HEALTHY: AtomicBool = AtomicBool::new(false);
static CALLS: AtomicU32 = AtomicU32::new(0);

async fn backend(name: &'static str) -> Result<String, io::Error> {
    CALLS.fetch_add(1, Ordering::Relaxed);
    match HEALTHY.load(Ordering::Relaxed) {
        true => Ok(format!("hello {name}")),
        false => Err(io::Error::other("out of order")),
    }
}

// On a paused clock: the seconds below pass at once.
#[tokio::main(flavor = "current_thread", start_paused = true)]
async fn main() -> Result<(), Box<dyn StdError>> {
    // Each time that a probe fails it stays open for longer. Without jitter here, so that the times can be told.
    let open_for = Backoff::exponential(5 * SECOND).max(300 * SECOND).jitter(Jitter::None);
    let events = Arc::new(Mutex::new(BTreeMap::new()));
    let breaker = CircuitBreakerLayer::consecutive(5).open_for(open_for).named("backend").observer({
        let events = Arc::clone(&events);
        move |_: &LayerInfo, event: &LayerEvent<'_>| {
            *events.lock().unwrap_or_else(PoisonError::into_inner).entry(event.name()).or_default() += 1;
        }
    });
    // Every service that this layer makes shares the circuit; the handle stays when the layer has gone into the stack.
    let circuit = breaker.handle();
    let mut transitions = circuit.subscribe();
    let service = ServiceBuilder::new().layer(breaker).map_err(Error::Service).service_fn(backend);
    let ask = async || service.clone().oneshot("world").await;
    // When a caller who is rejected may come back.
    let come_back = async || {
        let outcome = ask().await;
        let rejection = ziggurat::rejection(&outcome).filter(|rejection| rejection.is_circuit_open());
        rejection.and_then(|rejection| rejection.retry_after())
    };

    // Five failures in a row open it, and the backend is left alone.
    for _ in 0..5 {
        assert!(matches!(ask().await, Err(Error::Service(_))));
    }
    assert_eq!(circuit.state(), State::Open);
    assert_eq!(come_back().await, Some(5 * SECOND));
    assert_eq!(CALLS.load(Ordering::Relaxed), 5);

    // When the time is over the next call is a probe. The backend is still out of order, and gets twice as long.
    advance(5 * SECOND).await;
    assert!(matches!(ask().await, Err(Error::Service(_))));
    assert_eq!(come_back().await, Some(10 * SECOND));

    // It has recovered, which the next probe finds out; one success closes the circuit.
    HEALTHY.store(true, Ordering::Relaxed);
    advance(10 * SECOND).await;
    assert_eq!(ask().await?, "hello world");
    assert_eq!(circuit.state(), State::Closed);

    // For maintenance it can be opened by hand, and stays so until it is closed by hand.
    circuit.force_open();
    advance(3_600 * SECOND).await;
    assert!(come_back().await.is_some());
    circuit.close();
    assert_eq!(ask().await?, "hello world");
    assert_eq!(CALLS.load(Ordering::Relaxed), 8);

    // Who subscribed has heard of each transition, and the observer of all that happened: for a dashboard, or a log.
    use State::{Closed, HalfOpen, Open};
    for expected in [Open, HalfOpen, Open, HalfOpen, Closed, Open, Closed] {
        let transition = transitions.next().await.ok_or("the circuit is still there")?;
        println!("{} -> {}", transition.from, transition.to);
        assert_eq!(transition.to, expected);
    }
    let events = events.lock().unwrap_or_else(PoisonError::into_inner);
    assert_eq!(*events, BTreeMap::from([("failed", 6), ("rejected", 3), ("transition", 7)]));
    println!("{events:?}");
    Ok(())
}
