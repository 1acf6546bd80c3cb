//! A setter after `handle()` reaches the state of the handle, in every layer that has one.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use tower::{Layer, ServiceBuilder, ServiceExt, service_fn};
use ziggurat::{
    Backoff, Budget, Error,
    cache::CacheLayer,
    chaos::{ChaosLayer, Fault},
    circuit_breaker::{CircuitBreakerLayer, State},
    concurrency_limit::ConcurrencyLimitLayer,
    drain::DrainLayer,
    rate_limit::RateLimitLayer,
    retry::RetryLayer,
};

const SECOND: Duration = Duration::from_secs(1);

type Failed = Error<&'static str>;

async fn fail(_: ()) -> Result<(), Failed> {
    Err(Error::Service("down"))
}

#[tokio::test(start_paused = true)]
async fn a_circuit_breaker_that_is_set_up_after_its_handle_was_taken_has_one_circuit() {
    let layer = CircuitBreakerLayer::failure_rate(0.5);
    let circuit = layer.handle();
    let mut transitions = circuit.subscribe();
    assert_eq!(circuit.state(), State::Closed);

    let layer = layer.named("billing").consecutive_failures(1).open_for(SECOND);
    let service = ServiceBuilder::new().layer(layer).service(service_fn(fail));
    let _failed = service.clone().oneshot(()).await;
    assert_eq!(circuit.state(), State::Open);
    assert_eq!(transitions.next().await.unwrap().to, State::Open);
    assert!(format!("{circuit:?}").contains("billing"), "{circuit:?}");

    circuit.close();
    assert!(!service.oneshot(()).await.unwrap_err().is_circuit_open());
}

#[test]
fn a_circuit_breaker_with_a_handle_is_not_set_up_once_it_is_in_use() {
    let layer = CircuitBreakerLayer::consecutive(1);
    let circuit = layer.handle();
    let _service = layer.layer(service_fn(fail));
    let renamed = catch_unwind(AssertUnwindSafe(|| layer.clone().named("billing")));
    let message = *renamed.unwrap_err().downcast::<&str>().unwrap();
    assert!(message.contains("has a handle and is in use"), "{message}");
    assert!(!format!("{circuit:?}").contains("billing"), "{circuit:?}");
}

#[tokio::test(start_paused = true)]
async fn a_changed_clone_of_a_layer_without_a_handle_is_a_layer_of_its_own() {
    let base = CircuitBreakerLayer::consecutive(1);
    let service = base.layer(service_fn(fail));
    let other = base.clone().named("other");
    let _failed = service.oneshot(()).await;
    assert_eq!((base.handle().state(), other.handle().state()), (State::Open, State::Closed));

    let base = RetryLayer::<_, ziggurat::Cloned>::new();
    let other = base.clone().max_attempts(1);
    assert_eq!((base.handle().max_attempts(), other.handle().max_attempts()), (3, 1));
}

#[tokio::test(start_paused = true)]
async fn a_retry_that_is_set_up_after_its_handle_was_taken_has_one_set_of_numbers() {
    let layer = RetryLayer::new();
    let retries = layer.handle();
    retries.set_backoff(SECOND);
    let layer = layer.max_attempts(2).backoff(Backoff::exponential(SECOND)).budget(Budget::new(0.0).min_per_second(0));
    assert_eq!(retries.max_attempts(), 2);
    let calls = AtomicU32::new(0);
    let service = ServiceBuilder::new().layer(layer.clone()).service(service_fn(|()| {
        calls.fetch_add(1, Ordering::SeqCst);
        fail(())
    }));
    let attempts = async || {
        let _failed = service.clone().oneshot(()).await;
        calls.swap(0, Ordering::SeqCst)
    };
    assert_eq!(attempts().await, 1, "the budget grants nothing");
    let layer = layer.budget(None);
    assert_eq!(attempts().await, 2, "the budget of the handle is lifted");
    retries.set_max_attempts(5);
    assert_eq!(attempts().await, 5);
    assert_eq!(layer.handle().max_attempts(), 5);
}

#[test]
fn the_handles_of_the_other_layers_lead_to_the_state_of_the_layer_however_it_is_set_up_afterwards() {
    let layer = ConcurrencyLimitLayer::new(3);
    let limit = layer.handle();
    let layer = layer.max_waiting(7).named("billing").until_body_end().reclaim_after(SECOND);
    limit.set_limit(5);
    assert_eq!((layer.handle().limit(), layer.handle().max_waiting(), limit.max_waiting()), (5, 7, 7));

    let layer = RateLimitLayer::new(3, SECOND);
    let rate = layer.handle();
    let layer = layer.burst(7).named("billing").cost(|cost: &u32| *cost).max_wait(SECOND);
    rate.set_rate(5, SECOND);
    assert_eq!((layer.handle().quantity(), layer.handle().burst(), rate.burst()), (5, 7, 7));

    let layer = ChaosLayer::new(Fault::Error);
    let chaos = layer.handle();
    let layer = layer.rate(0.5).named("drill");
    chaos.off();
    assert!(!layer.handle().is_on());

    let layer = DrainLayer::new();
    let drain = layer.handle();
    let layer = layer.grace(SECOND).named("api");
    assert_eq!(drain.grace(), SECOND);
    drop(drain.drain());
    assert!(layer.handle().is_draining());

    let layer = CacheLayer::http();
    let cache = layer.handle();
    let layer = layer.capacity(1000).named("pages");
    assert_eq!(format!("{:?}", layer.handle()), format!("{cache:?}"));

    let layer: CacheLayer<u8, u8, _> = CacheLayer::new(10, SECOND, |key: &u8| Some(*key));
    let cache = layer.handle();
    let layer = layer.failure_ttl(SECOND).named("prices");
    assert_eq!(format!("{:?}", layer.handle()), format!("{cache:?}"));
}
