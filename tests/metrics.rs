//! With the feature `metrics`, events and calls are counted through the facade. A binary of its own, because a process has one
//! recorder.
#![allow(clippy::unwrap_used, reason = "a test that fails should say where")]

use std::time::Duration;

use metrics_exporter_prometheus::PrometheusBuilder;
use tower::{ServiceBuilder, ServiceExt, service_fn};
use ziggurat::{
    Error, cache::CacheLayer, circuit_breaker::CircuitBreakerLayer, observe::ObserveLayer, retry::RetryLayer,
    timeout::TimeoutLayer,
};

const SECOND: Duration = Duration::from_secs(1);

/// Shows: G1
#[tokio::test(start_paused = true)]
async fn what_happens_is_counted_under_one_set_of_names() {
    let prometheus = PrometheusBuilder::new().install_recorder().unwrap();
    let service = ServiceBuilder::new()
        .layer(ObserveLayer::new().named("orders"))
        .layer(CacheLayer::new(10, 60 * SECOND, |seconds: &u64| Some(*seconds)).named("orders"))
        .layer(RetryLayer::new().max_attempts(2).backoff(SECOND).named("orders"))
        .layer(CircuitBreakerLayer::consecutive(2).named("orders"))
        .layer(TimeoutLayer::new(5 * SECOND).named("attempt"))
        .map_err(Error::Service)
        .service(service_fn(|seconds: u64| async move {
            tokio::time::sleep(Duration::from_secs(seconds)).await;
            Ok::<_, &'static str>(())
        }));

    service.clone().oneshot(2).await.unwrap();
    service.clone().oneshot(2).await.unwrap();
    // It begins, and is given up.
    let mut under_way = Box::pin(service.clone().oneshot(3));
    assert!(futures_util::poll!(&mut under_way).is_pending());
    assert!(has(&prometheus.render(), r#"ziggurat_calls_in_flight{name="orders"} 1"#));
    drop(under_way);
    service.oneshot(9).await.unwrap_err();

    let metrics = prometheus.render();
    for line in [
        r#"ziggurat_calls_in_flight{name="orders"} 0"#,
        r#"ziggurat_calls_total{name="orders",outcome="success",reason=""} 2"#,
        r#"ziggurat_calls_total{name="orders",outcome="rejected",reason="timed_out"} 1"#,
        r#"ziggurat_calls_total{name="orders",outcome="cancelled",reason=""} 1"#,
        r#"ziggurat_call_duration_seconds_count{name="orders",outcome="success"} 2"#,
        r#"ziggurat_call_duration_seconds_sum{name="orders",outcome="success"} 2"#,
        r#"ziggurat_call_duration_seconds_sum{name="orders",outcome="rejected"} 11"#,
        r#"ziggurat_events_total{policy="cache",name="orders",event="hit",reason=""} 1"#,
        r#"ziggurat_events_total{policy="cache",name="orders",event="stored",reason=""} 1"#,
        r#"ziggurat_events_total{policy="timeout",name="attempt",event="rejected",reason="timed_out"} 2"#,
        r#"ziggurat_events_total{policy="retry",name="orders",event="retrying",reason=""} 1"#,
        r#"ziggurat_events_total{policy="retry",name="orders",event="gave_up",reason="attempts"} 1"#,
        r#"ziggurat_events_total{policy="circuit_breaker",name="orders",event="failed",reason=""} 2"#,
        r#"ziggurat_events_total{policy="circuit_breaker",name="orders",event="transition",reason="open"} 1"#,
    ] {
        assert!(has(&metrics, line), "{line} is not among\n{metrics}");
    }
}

fn has(metrics: &str, line: &str) -> bool {
    metrics.lines().any(|one| one == line)
}
