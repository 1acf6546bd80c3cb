//! Which calls an adaptive limit takes for measurements.

use std::{ops::RangeInclusive, time::Duration};

use tokio::{task::JoinSet, time::sleep};
use tower::{Layer, Service, ServiceExt, service_fn};
use ziggurat::{
    Error,
    concurrency_limit::{Adaptive, ConcurrencyLimitLayer},
    timeout::TimeoutLayer,
};

const MILLI: Duration = Duration::from_millis(1);

/// Fails at once if asked to, and otherwise takes ten milliseconds.
fn worker() -> impl Service<bool, Response = (), Error = Error<&'static str>, Future: Send> + Clone + Send + 'static {
    service_fn(|works: bool| async move {
        if !works {
            return Err(Error::Service("full"));
        }
        sleep(10 * MILLI).await;
        Ok(())
    })
}

/// Offers more calls than the limit admits, for as long as it takes to serve 1,000.
async fn overload<S>(service: &S, works: bool, patience: Duration)
where
    S: Service<bool, Response = (), Error = Error<&'static str>, Future: Send> + Clone + Send + 'static,
{
    let mut calls = JoinSet::new();
    for _ in 0..100 {
        let service = service.clone();
        calls.spawn(async move {
            for _ in 0..50 {
                let _given_up = tokio::time::timeout(patience, service.clone().oneshot(works)).await;
            }
        });
    }
    while calls.join_next().await.is_some() {}
}

/// Shows: A3
#[tokio::test(start_paused = true)]
async fn served_calls_raise_it_and_it_stays_within_its_bounds() {
    let layer = ConcurrencyLimitLayer::adaptive(Adaptive::aimd().between(15..=25));
    let (gate, service) = (layer.handle(), layer.layer(worker()));
    assert_eq!(gate.limit(), 20);
    overload(&service, true, Duration::MAX).await;
    assert_eq!(gate.limit(), 25);
    let fails = layer.layer(service_fn(|_: bool| async {
        sleep(MILLI).await;
        Err::<(), _>(Error::Service("full"))
    }));
    for _ in 0..3 {
        overload(&fails, true, Duration::MAX).await;
        assert!((15..=25).contains(&gate.limit()), "{}", gate.limit());
    }
}

/// Shows: A3
#[tokio::test(start_paused = true)]
async fn calls_that_their_callers_cancel_say_nothing() {
    let layer = ConcurrencyLimitLayer::adaptive(Adaptive::aimd());
    let (gate, service) = (layer.handle(), layer.layer(worker()));
    overload(&service, true, 5 * MILLI).await;
    assert_eq!(gate.limit(), 20);
    assert_eq!((gate.in_flight(), gate.waiting()), (0, 0));
}

/// A service that hangs until every caller's deadline is too slow for its load.
///
/// Shows: A3
#[tokio::test(start_paused = true)]
async fn calls_that_their_deadline_ends_are_dropped() {
    let layer = ConcurrencyLimitLayer::adaptive(Adaptive::gradient());
    let gate = layer.handle();
    let service = TimeoutLayer::new(5 * MILLI).layer(layer.layer(worker()));
    let mut calls = JoinSet::new();
    for _ in 0..30 {
        calls.spawn(service.clone().oneshot(true));
    }
    while calls.join_next().await.is_some() {}
    assert_eq!(gate.limit(), 18, "a tenth lower");
}

#[test]
fn bounds_that_no_limit_can_keep_are_refused() {
    for (bounds, said) in [
        (0..=5, "the lowest limit must be at least 1: with no permits nothing could ever pass"),
        (RangeInclusive::new(7, 5), "the lowest limit must not be above the highest, as in 7..=5"),
    ] {
        let refused = std::panic::catch_unwind(|| Adaptive::http().between(bounds)).expect_err(said);
        let text = refused.downcast_ref::<String>().cloned();
        let text = text.or_else(|| refused.downcast_ref::<&str>().map(ToString::to_string));
        assert_eq!(text.as_deref(), Some(said));
    }
    let near = ConcurrencyLimitLayer::adaptive(Adaptive::http().between(30..=60));
    assert_eq!(near.handle().limit(), 30);
    let shown = format!("{near:?}");
    assert!(shown.contains("Steered<ziggurat"), "{shown}");
}
