//! The one-line forms for a plain future: `timeout` and `run`.

use std::{
    cell::Cell,
    future::{pending, ready},
    io,
    time::Duration,
};

use tokio::time::{Instant, sleep};
use tower::ServiceBuilder;
use ziggurat::{
    Deadline, Error,
    circuit_breaker::CircuitBreakerLayer,
    retry::RetryLayer,
    run,
    timeout::{TimeoutLayer, timeout},
};

const SECOND: Duration = Duration::from_secs(1);

#[tokio::test(start_paused = true)]
async fn a_future_is_ended_at_its_limit_and_sees_it_as_its_deadline() {
    let start = Instant::now();
    let rejection = timeout(SECOND, pending::<()>()).await.unwrap_err();
    assert_eq!((rejection.is_timed_out(), rejection.layer(), start.elapsed()), (true, "timeout", SECOND));
    assert_eq!(timeout(SECOND, ready(7)).await.unwrap(), 7);
    timeout(Duration::MAX, sleep(SECOND)).await.unwrap();
    let inside = timeout(SECOND, async { Deadline::current().unwrap().remaining() }).await;
    assert_eq!(inside.unwrap(), SECOND);

    let nested = timeout(SECOND, timeout(5 * SECOND, pending::<()>())).await;
    assert!(nested.unwrap_err().is_timed_out(), "the earlier limit ends both");
}

#[tokio::test(start_paused = true)]
async fn an_operation_runs_through_a_layer_or_through_several() {
    let attempts = Cell::new(0);
    let flaky = || async {
        attempts.set(attempts.get() + 1);
        if attempts.get() % 3 == 0 { Ok(attempts.get()) } else { Err(io::Error::other("down")) }
    };
    let retry = RetryLayer::new().max_attempts(3).backoff(Duration::ZERO);
    assert_eq!(run(&retry, flaky).await.unwrap(), 3);

    let stack = ServiceBuilder::new().layer(TimeoutLayer::new(SECOND)).layer(retry);
    assert_eq!(run(&stack, flaky).await.unwrap(), 6);
    let late = run(&stack, pending::<Result<(), io::Error>>).await.unwrap_err();
    assert!(late.is_timed_out());
}

#[tokio::test(start_paused = true)]
async fn what_calls_share_belongs_to_the_layer_value() {
    let breaker = CircuitBreakerLayer::consecutive(1);
    let failed: Error<&str> = run(&breaker, || ready(Err::<(), _>("down"))).await.unwrap_err();
    assert!(!failed.is_rejected());
    let rejected: Error<&str> = run(&breaker, || ready(Ok::<(), _>(()))).await.unwrap_err();
    assert!(rejected.is_circuit_open());
}
