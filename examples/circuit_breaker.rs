//! Stops calling a service that fails, and probes it from time to time. A handle shows the state of the circuit and
//! switches it by hand.

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

// On a paused clock: the seconds below take no time.
#[tokio::main(flavor = "current_thread", start_paused = true)]
async fn main() -> Result<(), Box<dyn StdError>> {
    // Each failed probe doubles the open time. There is no jitter here, so that the times are exact.
    let open_for = Backoff::exponential(5 * SECOND).max(300 * SECOND).jitter(Jitter::None);
    let events = Arc::new(Mutex::new(BTreeMap::new()));
    let breaker = CircuitBreakerLayer::consecutive(5).open_for(open_for).named("backend").observer({
        let events = Arc::clone(&events);
        move |_: &LayerInfo, event: &LayerEvent<'_>| {
            *events.lock().unwrap_or_else(PoisonError::into_inner).entry(event.name()).or_default() += 1;
        }
    });
    // All services of this layer share the circuit. The handle remains after the layer has moved into the stack.
    let circuit = breaker.handle();
    let mut transitions = circuit.subscribe();
    let service = ServiceBuilder::new().layer(breaker).map_err(Error::Service).service_fn(backend);
    let ask = async || service.clone().oneshot("world").await;
    // When a rejected caller may come back.
    let come_back = async || {
        let outcome = ask().await;
        let rejection = ziggurat::rejection(&outcome).filter(|rejection| rejection.is_circuit_open());
        rejection.and_then(|rejection| rejection.retry_after())
    };

    // Five failures in a row open the circuit, and the backend gets no more calls.
    for _ in 0..5 {
        assert!(matches!(ask().await, Err(Error::Service(_))));
    }
    assert_eq!(circuit.state(), State::Open);
    assert_eq!(come_back().await, Some(5 * SECOND));
    assert_eq!(CALLS.load(Ordering::Relaxed), 5);

    // After the open time the next call is a probe. The backend still fails, so the open time doubles.
    advance(5 * SECOND).await;
    assert!(matches!(ask().await, Err(Error::Service(_))));
    assert_eq!(come_back().await, Some(10 * SECOND));

    // The backend has recovered, and the next probe finds out. One success closes the circuit.
    HEALTHY.store(true, Ordering::Relaxed);
    advance(10 * SECOND).await;
    assert_eq!(ask().await?, "hello world");
    assert_eq!(circuit.state(), State::Closed);

    // For maintenance the circuit can be opened by hand. It stays open until it is closed by hand.
    circuit.force_open();
    advance(3_600 * SECOND).await;
    assert!(come_back().await.is_some());
    circuit.close();
    assert_eq!(ask().await?, "hello world");
    assert_eq!(CALLS.load(Ordering::Relaxed), 8);

    // A subscriber receives each transition, and the observer each event: for a dashboard, or a log.
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
