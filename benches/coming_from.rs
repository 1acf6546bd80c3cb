//! The lines of peers that `docs/coming-from.md` quotes, so that they compile.

use std::time::Duration;

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
