//! With the feature `metrics`, events and calls are counted through the facade. This is a separate binary, because a
//! process has one recorder.
#![allow(clippy::unwrap_used, reason = "a test that fails should say where")]

use std::{
    future::{pending, ready},
    sync::OnceLock,
    time::Duration,
};

use http::{Request, Response};
use http_body_util::BodyExt;
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use tower::{BoxError, Layer, Service, ServiceBuilder, ServiceExt, service_fn};
use ziggurat::{
    Error, EventBus, LayerEvent, LayerInfo,
    batch::BatchLayer,
    body::{CopyBody, ReplayBody},
    cache::CacheLayer,
    chaos::{ChaosLayer, Fault},
    circuit_breaker::CircuitBreakerLayer,
    concurrency_limit::ConcurrencyLimitLayer,
    fallback::FallbackLayer,
    observe::ObserveLayer,
    replay::ReplayLayer,
    resource::ResourceLayer,
    retry::RetryLayer,
    timeout::TimeoutLayer,
};

const SECOND: Duration = Duration::from_secs(1);

fn prometheus() -> &'static PrometheusHandle {
    static RECORDER: OnceLock<PrometheusHandle> = OnceLock::new();
    RECORDER.get_or_init(|| PrometheusBuilder::new().install_recorder().unwrap())
}

/// Shows: G1
#[tokio::test(start_paused = true)]
async fn what_happens_is_counted_under_one_set_of_names() {
    let prometheus = prometheus();
    let service = ServiceBuilder::new()
        .layer(ObserveLayer::new().named("orders"))
        .layer(CacheLayer::new(10, 60 * SECOND, |seconds: &u64| Some(*seconds)).named("orders"))
        .layer(RetryLayer::new().max_attempts(2).backoff(SECOND).named("orders"))
        .layer(CircuitBreakerLayer::consecutive(1).named("orders"))
        .layer(TimeoutLayer::new(5 * SECOND).named("attempt"))
        .map_err(Error::Service)
        .service(service_fn(|seconds: u64| async move {
            tokio::time::sleep(Duration::from_secs(seconds)).await;
            Ok::<_, &'static str>(())
        }));

    service.clone().oneshot(2).await.unwrap();
    service.clone().oneshot(2).await.unwrap();
    // It begins, and is dropped.
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
        r#"ziggurat_events_total{layer="cache",name="orders",event="hit",reason=""} 1"#,
        r#"ziggurat_events_total{layer="cache",name="orders",event="stored",reason=""} 1"#,
        r#"ziggurat_events_total{layer="timeout",name="attempt",event="rejected",reason="timed_out"} 2"#,
        r#"ziggurat_events_total{layer="retry",name="orders",event="retrying",reason=""} 1"#,
        r#"ziggurat_events_total{layer="retry",name="orders",event="gave_up",reason="attempts"} 1"#,
        r#"ziggurat_events_total{layer="circuit_breaker",name="orders",event="failed",reason=""} 2"#,
        r#"ziggurat_events_total{layer="circuit_breaker",name="orders",event="transition",reason="open"} 2"#,
    ] {
        assert!(has(&metrics, line), "{line} is not among\n{metrics}");
    }
    // Nor does a series promise what never happens.
    for never in [
        r#"ziggurat_events_total{layer="cache",name="orders",event="queued""#,
        r#"ziggurat_events_total{layer="cache",name="orders",event="shared""#,
        r#"ziggurat_calls_total{name="orders",outcome="rejected",reason=""}"#,
    ] {
        assert!(!metrics.contains(never), "{never} is among\n{metrics}");
    }
}

fn has(metrics: &str, line: &str) -> bool {
    metrics.lines().any(|one| one == line)
}

/// A layer of one's own may emit the events of a cache, for reasons that no layer of this crate has.
///
/// Shows: G1
#[test]
fn each_stale_response_is_counted_under_its_own_reason() {
    let prometheus = prometheus();
    let info = LayerInfo::new("store").named("stale");
    for reason in ["offline", "revalidate", "error", "offline", "budget", "revalidate", "revalidate"] {
        info.emit(LayerEvent::Stale { reason });
    }
    let metrics = prometheus.render();
    for (reason, times) in [("offline", 2), ("revalidate", 3), ("error", 1), ("budget", 1)] {
        let line =
            format!(r#"ziggurat_events_total{{layer="store",name="stale",event="stale",reason="{reason}"}} {times}"#);
        assert!(has(&metrics, &line), "{line} is not among\n{metrics}");
    }
}

/// Makes each layer emit an event, and checks the counters.
///
/// Shows: G1
#[tokio::test(start_paused = true)]
async fn the_events_of_every_layer_carry_the_name_that_it_was_given() {
    let prometheus = prometheus();
    let fails = || service_fn(|()| ready(Err::<(), _>(Error::Service("broken"))));
    let hangs = || service_fn(|()| pending::<Result<(), Error<&str>>>());
    let works = || service_fn(|()| ready(Ok::<_, Error<&str>>(())));
    let chaos = |fault| {
        let layer = ChaosLayer::new(fault).rate(1.0).named("every");
        layer.handle().on();
        layer
    };
    let attempts = RetryLayer::new().max_attempts(2).backoff(SECOND).named("every");
    let layers = tokio::join!(
        TimeoutLayer::new(SECOND).named("every").layer(hangs()).oneshot(()),
        attempts.layer(fails()).oneshot(()),
        CircuitBreakerLayer::consecutive(1).named("every").layer(fails()).oneshot(()),
        FallbackLayer::value(()).named("every").layer(fails()).oneshot(()),
        chaos(Fault::Error).layer(works()).oneshot(()),
        chaos(Fault::Delay(SECOND)).layer(works()).oneshot(()),
        CacheLayer::new(1, SECOND, |(): &()| Some(())).named("every").layer(works()).oneshot(()),
        ResourceLayer::new(|| ready(Err::<(), _>("none"))).named("every").layer(works()).oneshot(()),
        BatchLayer::new(1, SECOND).named("every").layer(service_fn(empty)).oneshot(()),
        ObserveLayer::new().named("every").layer(works()).oneshot(()),
    );
    assert!(layers.0.is_err() && layers.3.is_ok() && layers.5.is_ok());
    // Two calls, one of which has to wait.
    let limited = ConcurrencyLimitLayer::new(1).max_wait(SECOND).named("every").layer(hangs());
    let mut first = Box::pin(limited.clone().oneshot(()));
    assert!(futures_util::poll!(&mut first).is_pending());
    limited.oneshot(()).await.unwrap_err();
    // An upload larger than the replay buffer.
    let upload = ServiceBuilder::new().layer(ReplayLayer::new().max_bytes(1).named("every")).service_fn(read);
    upload.oneshot(Request::new("an upload".to_owned())).await.unwrap();
    let bus = EventBus::new().named("every");
    let handler = bus.on(async |_: u8| Err::<(), _>("broken"));
    bus.publish(7_u8);
    bus.close();
    handler.finished().await;
    LayerInfo::new("mine").named("every").emit(LayerEvent::Hit);

    let metrics = prometheus.render();
    for (policy, event, reason) in [
        ("timeout", "rejected", "timed_out"),
        ("retry", "retrying", ""),
        ("retry", "gave_up", "attempts"),
        ("circuit_breaker", "failed", ""),
        ("circuit_breaker", "transition", "open"),
        ("fallback", "fell_back", "error"),
        ("chaos", "rejected", "injected"),
        ("chaos", "injected", "delay"),
        ("cache", "miss", ""),
        ("cache", "stored", ""),
        ("resource", "rejected", "unavailable"),
        ("batch", "rejected", "shared"),
        ("concurrency_limit", "queued", ""),
        ("concurrency_limit", "rejected", "overloaded"),
        ("replay", "not_repeatable", "size"),
        ("events", "handler_failed", ""),
        ("mine", "hit", ""),
    ] {
        let labels = format!(r#"layer="{policy}",name="every",event="{event}",reason="{reason}""#);
        assert!(has(&metrics, &format!("ziggurat_events_total{{{labels}}} 1")), "{labels} is not among\n{metrics}");
    }
    assert!(has(&metrics, r#"ziggurat_calls_total{name="every",outcome="success",reason=""} 1"#));
    assert!(!metrics.contains(r#"name="""#), "{metrics}");
}

async fn empty(_: Vec<()>) -> Result<Vec<Result<(), Error<&'static str>>>, Error<&'static str>> {
    Ok(Vec::new())
}

/// Makes the body replayable, and reads it.
async fn read(request: Request<ReplayBody<String>>) -> Result<Response<()>, Error<BoxError>> {
    let body = request.into_body();
    let copy = body.copy_body();
    body.collect().await.map_err(Error::Service)?;
    drop(copy);
    Ok(Response::new(()))
}

/// Shows: G1
#[tokio::test]
async fn a_call_whose_observer_panics_is_not_in_flight_for_ever() {
    let prometheus = prometheus();
    let observed = |event: &'static str| {
        let panics = move |_: &LayerInfo, told: &LayerEvent<'_>| assert!(told.name() != event, "{event}");
        ObserveLayer::new().named(event).observer(panics).layer(service_fn(|()| ready(Ok::<_, Error<&str>>(()))))
    };
    for event in ["started", "ended"] {
        let call = tokio::spawn(observed(event).oneshot(()));
        assert!(call.await.unwrap_err().is_panic());
        let line = format!(r#"ziggurat_calls_in_flight{{name="{event}"}} 0"#);
        assert!(has(&prometheus.render(), &line), "{line}");
    }
}

/// Shows: G1, B7
#[tokio::test(start_paused = true)]
async fn the_state_of_a_circuit_is_a_gauge() {
    let prometheus = prometheus();
    let state = |number: u8| format!(r#"ziggurat_circuit_state{{layer="circuit_breaker",name="gauged"}} {number}"#);
    let shows = |number| has(&prometheus.render(), &state(number));
    let breaker = CircuitBreakerLayer::consecutive(1).open_for(SECOND).named("gauged");
    let service =
        breaker.layer(service_fn(|works: bool| ready(if works { Ok(()) } else { Err(Error::Service("broken")) })));
    assert!(shows(0), "before the first transition");

    service.clone().oneshot(false).await.unwrap_err();
    assert!(shows(2));
    tokio::time::advance(SECOND).await;
    let mut service = service;
    let probe = service.ready().await.unwrap().call(true);
    assert!(shows(1));
    probe.await.unwrap();
    assert!(shows(0));

    breaker.handle().force_open();
    assert!(shows(2));
    breaker.handle().close();
    assert!(shows(0));
    // The state of another kind of layer is an event, and no number.
    LayerInfo::new("mine").named("gauged").emit(LayerEvent::Transition { from: "closed", to: "draining" });
    assert!(!prometheus.render().contains(r#"ziggurat_circuit_state{layer="mine""#));
}

/// Shows: G1
#[tokio::test]
async fn every_metric_has_a_description() {
    let prometheus = prometheus();
    let layers = (ObserveLayer::new().named("described"), CircuitBreakerLayer::consecutive(1).named("described"));
    layers.layer(service_fn(|()| ready(Err::<(), _>(Error::Service("broken"))))).oneshot(()).await.unwrap_err();

    let metrics = prometheus.render();
    let names = |line: &str| {
        metrics
            .lines()
            .filter_map(|one| one.strip_prefix(line)?.split(' ').next())
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    let described = names("# HELP ");
    for name in names("# TYPE ") {
        assert!(described.contains(&name), "{name} is not among {described:?}");
    }
    assert_eq!(described.len(), 5);
}

/// Shows: G1
#[test]
fn a_name_that_is_made_at_run_time_is_a_label() {
    let prometheus = prometheus();
    let name = format!("host-{}", 7);
    LayerInfo::new("mine").named(name).emit(LayerEvent::Stored);
    let labels = r#"layer="mine",name="host-7",event="stored",reason="""#;
    assert!(has(&prometheus.render(), &format!("ziggurat_events_total{{{labels}}} 1")));
}

/// Shows: G1
#[test]
fn a_layer_that_was_used_and_is_renamed_counts_under_its_new_name() {
    let prometheus = prometheus();
    let before = LayerInfo::new("mine").named("before");
    before.emit(LayerEvent::Stored);
    let after = before.clone().named("after");
    after.emit(LayerEvent::Stored);
    after.emit(LayerEvent::Stored);
    before.emit(LayerEvent::Stored);
    for name in ["before", "after"] {
        let labels = format!(r#"layer="mine",name="{name}",event="stored",reason="""#);
        assert!(has(&prometheus.render(), &format!("ziggurat_events_total{{{labels}}} 2")), "{name}");
    }
}

/// Shows: G1
#[test]
fn the_page_on_metrics_has_every_event_and_every_reason() {
    let page = include_str!("../docs/metrics.md");
    for source in [include_str!("../src/telemetry/event.rs"), include_str!("../src/outcome/reason.rs")] {
        let names = source
            .lines()
            .filter_map(|line| line.trim().strip_prefix("Self::")?.split_once(" => \"")?.1.split('"').next());
        let names: Vec<_> =
            names.filter(|name| name.chars().all(|char| char.is_ascii_lowercase() || char == '_')).collect();
        assert!(names.len() > 10, "{names:?}");
        for name in names {
            assert!(page.contains(&format!("`{name}`")), "{name} is not on the page");
        }
    }
}
