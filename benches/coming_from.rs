//! The lines of peers that `docs/coming-from.md` quotes, so that they compile.

use std::time::Duration;

use seatbelt::{RecoveryInfo, ResilienceContext, breaker::Breaker, retry::Retry, timeout::Timeout};
use tick::Clock;
use tower::{ServiceBuilder, ServiceExt, service_fn};
use tower_resilience::{
    bulkhead::BulkheadLayer, cache::CacheLayer, circuitbreaker::CircuitBreakerLayer, retry::RetryLayer,
    timelimiter::TimeLimiterLayer,
};
use ziggurat_benches::Failed;

const LIMIT: Duration = Duration::from_secs(2);
const WAIT: Duration = Duration::from_millis(100);
const PAGE: &str = include_str!("../docs/coming-from.md");

#[test]
fn tower_resilience() -> Result<(), Box<dyn std::error::Error>> {
    // quoted
    let timeout = TimeLimiterLayer::builder().timeout_duration(LIMIT).build();
    let retry = RetryLayer::<u64, u64, Failed>::builder().max_attempts(3).exponential_backoff(WAIT).build();
    let breaker = CircuitBreakerLayer::builder().failure_rate_threshold(0.5).sliding_window_size(100).build()?;
    let bulkhead = BulkheadLayer::builder().max_concurrent_calls(25).max_wait_duration(WAIT).build()?;
    let cache = CacheLayer::builder().max_size(1_000).ttl(LIMIT).key_extractor(|id: &u64| *id).build()?;
    // end of the quotation

    let service = ServiceBuilder::new()
        .layer(cache)
        .map_err(|_| Failed)
        .layer(retry)
        .map_err(|_| Failed)
        .layer(breaker)
        .map_err(|_| Failed)
        .layer(bulkhead)
        .map_err(|_| Failed)
        .layer(timeout)
        .service(service_fn(|id: u64| async move { Ok::<_, Failed>(id) }));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
    assert_eq!(runtime.block_on(service.oneshot(7))?, 7);
    Ok(())
}

#[tokio::test]
async fn seatbelt() {
    // quoted
    let context: ResilienceContext<String, Result<String, String>> =
        ResilienceContext::new(Clock::new_tokio()).name("orders");
    let recovery = |output: &Result<String, String>| match output {
        Ok(_) => RecoveryInfo::never(),
        Err(_) => RecoveryInfo::retry(),
    };
    let service = ServiceBuilder::new()
        .layer(Retry::layer("retry", &context).clone_input().recovery_with(move |output, _| recovery(output)))
        .layer(
            Breaker::layer("breaker", &context)
                .recovery_with(move |output, _| recovery(output))
                .rejected_input_error(|_, _| "circuit open".to_string()),
        )
        .layer(
            Timeout::layer("timeout", &context)
                .timeout(Duration::from_secs(30))
                .timeout_error(|_| "timed out".to_string()),
        )
        .service_fn(|input: String| async move { Ok::<_, String>(input) });
    // end of the quotation

    assert_eq!(service.oneshot("order".to_string()).await.as_deref(), Ok("order"));
}

/// The page's row about readiness.
#[tokio::test]
#[should_panic(expected = "poll_ready must be called first")]
async fn a_retry_of_seatbelt_calls_a_service_that_was_never_polled_ready() {
    let context: ResilienceContext<(), Result<(), String>> = ResilienceContext::new(Clock::new_tokio());
    let service = ServiceBuilder::new()
        .layer(Retry::layer("retry", &context).clone_input().recovery_with(|_, _| RecoveryInfo::never()))
        .concurrency_limit(1)
        .service_fn(|()| async { Ok::<_, String>(()) });
    let _ = service.oneshot(()).await;
}

#[test]
fn the_page_quotes_these_lines() {
    let mut quoted = include_str!("coming_from.rs").split("// quoted\n").skip(1).peekable();
    assert!(quoted.peek().is_some());
    for lines in quoted.filter_map(|rest| Some(rest.split_once("    // end")?.0)) {
        for line in lines.lines().map(str::trim) {
            assert!(PAGE.contains(line), "the page lacks {line}");
        }
    }
}
