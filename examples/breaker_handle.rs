//! A circuit breaker, watched and worked through its handle: its state, its transitions, and opening it by hand.

use std::{
    error::Error as StdError,
    io,
    sync::atomic::{AtomicBool, AtomicU32, Ordering},
    time::Duration,
};

use tokio::time::advance;
use tower::{ServiceBuilder, ServiceExt, service_fn};
use ziggurat::{
    Error,
    circuit_breaker::{CircuitBreakerLayer, State},
};

static HEALTHY: AtomicBool = AtomicBool::new(false);
static CALLS: AtomicU32 = AtomicU32::new(0);

async fn backend(name: &'static str) -> Result<String, io::Error> {
    CALLS.fetch_add(1, Ordering::Relaxed);
    match HEALTHY.load(Ordering::Relaxed) {
        true => Ok(format!("hello {name}")),
        false => Err(io::Error::other("out of order")),
    }
}

// On a paused clock: the five seconds below pass at once.
#[tokio::main(flavor = "current_thread", start_paused = true)]
async fn main() -> Result<(), Box<dyn StdError>> {
    let breaker = CircuitBreakerLayer::consecutive(5).open_for(Duration::from_secs(5)).named("backend");
    // Every service that this layer makes shares the circuit; the handle stays when the layer has gone into the stack.
    let circuit = breaker.handle();
    let mut transitions = circuit.subscribe();
    let service = ServiceBuilder::new().layer(breaker).map_err(Error::Service).service(service_fn(backend));
    let ask = async || service.clone().oneshot("world").await;

    // Five failures in a row open it.
    for _ in 0..5 {
        assert!(matches!(ask().await, Err(Error::Service(_))));
    }
    assert_eq!(circuit.state(), State::Open);

    // Now the backend is left alone, and the caller is told when to come back.
    let outcome = ask().await;
    let rejection = ziggurat::rejection(&outcome).ok_or("an open circuit rejects")?;
    assert!(rejection.is_circuit_open());
    assert_eq!(rejection.retry_after(), Some(Duration::from_secs(5)));
    assert_eq!(CALLS.load(Ordering::Relaxed), 5);

    // When the time is over the next call is a probe: the backend has recovered, and so the circuit closes.
    HEALTHY.store(true, Ordering::Relaxed);
    advance(Duration::from_secs(5)).await;
    assert_eq!(ask().await?, "hello world");
    assert_eq!(circuit.state(), State::Closed);

    // For maintenance it can be opened by hand, and stays so until it is closed by hand.
    circuit.force_open();
    advance(Duration::from_secs(3600)).await;
    assert!(ziggurat::rejection(&ask().await).is_some_and(|rejection| rejection.is_circuit_open()));
    circuit.close();
    assert_eq!(ask().await?, "hello world");
    assert_eq!(CALLS.load(Ordering::Relaxed), 7);

    // Who subscribed has heard it all: for a dashboard, or a log.
    for expected in [State::Open, State::HalfOpen, State::Closed, State::Open, State::Closed] {
        let transition = transitions.next().await.ok_or("the circuit is still there")?;
        println!("{} -> {}", transition.from, transition.to);
        assert_eq!(transition.to, expected);
    }
    Ok(())
}
