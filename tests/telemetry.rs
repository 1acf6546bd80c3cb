//! Events reach `tracing`, each under its layer's own target.
//!
//! This is a separate binary that runs one test at a time: while a process has a single subscriber, `tracing` asks for
//! interest on the thread that reaches a callsite first, and caches a negative result for all threads.
#![allow(clippy::unwrap_used, reason = "a test that fails should say where")]

use std::{
    io::Write,
    sync::{Arc, Mutex},
    time::Duration,
};

use http::{Request, Response};
use tower::{Layer, ServiceBuilder, ServiceExt, service_fn};
use tracing_subscriber::filter::LevelFilter;
use ziggurat::{
    Error, EventBus, LayerEvent, LayerInfo, Scope,
    chaos::{ChaosLayer, Fault, Schedule},
    circuit_breaker::CircuitBreakerLayer,
    context::ContextLayer,
    fallback::{Failed, FallbackLayer},
    request_id::RequestIdLayer,
    retry::RetryLayer,
    scope::Disposable,
    stack::{ClientSettings, ClientStack},
    timeout::TimeoutLayer,
};

#[derive(Clone, Default)]
struct Written(Arc<Mutex<Vec<u8>>>);

impl Write for Written {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Returns the lines that are logged at this level while `during` runs.
async fn logged(level: LevelFilter, during: impl Future<Output = ()>) -> Vec<String> {
    static TURN: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());
    let _turn = TURN.lock().await;
    let written = Written::default();
    let writer = written.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_writer(move || writer.clone())
        .with_max_level(level)
        .with_ansi(false)
        .without_time()
        .finish();
    let guard = tracing::subscriber::set_default(subscriber);
    during.await;
    drop(guard);
    let bytes = written.0.lock().unwrap().clone();
    String::from_utf8(bytes).unwrap().lines().map(|line| line.trim().to_owned()).collect()
}

/// Shows: R6, B7
#[tokio::test(start_paused = true)]
async fn every_layer_logs_under_its_own_target_with_its_name() {
    let service = ServiceBuilder::new()
        .layer(RetryLayer::new().max_attempts(2).backoff(Duration::from_secs(1)).named("orders"))
        .layer(CircuitBreakerLayer::consecutive(1).named("orders"))
        .layer(TimeoutLayer::new(Duration::from_secs(3)).named("attempt"))
        .service(service_fn(|()| std::future::pending::<Result<(), Error<String>>>()));
    let log = logged(LevelFilter::INFO, async { assert!(service.oneshot(()).await.is_err()) }).await;
    assert_eq!(
        log,
        [
            r#"INFO ziggurat::timeout: rejected layer="timeout" name="attempt" reason="timed_out" rejection=timeout `attempt`: no response within 3s"#,
            r#"WARN ziggurat::circuit_breaker: transition layer="circuit_breaker" name="orders" from="closed" to="open""#,
            r#"INFO ziggurat::retry: retrying layer="retry" name="orders" attempt=1 delay=1s cause=timed_out"#,
            r#"WARN ziggurat::circuit_breaker: transition layer="circuit_breaker" name="orders" from="open" to="half_open""#,
            r#"INFO ziggurat::timeout: rejected layer="timeout" name="attempt" reason="timed_out" rejection=timeout `attempt`: no response within 3s"#,
            r#"WARN ziggurat::circuit_breaker: transition layer="circuit_breaker" name="orders" from="half_open" to="open""#,
            r#"WARN ziggurat::retry: gave_up layer="retry" name="orders" attempt=2 reason="attempts" cause=timed_out"#,
        ]
    );
}

/// Shows: G2, G3
#[tokio::test(start_paused = true)]
async fn a_fallback_and_a_chaos_log_what_they_did_and_why() {
    let chaos = ChaosLayer::new(Fault::Hang).schedule(Schedule::first(2)).named("drill");
    chaos.handle().on();
    let fallback = |fails: bool| {
        FallbackLayer::future(move |_: Failed<'_, _, _>| {
            std::future::ready(if fails { Err(Error::Service("no backup")) } else { Ok(()) })
        })
        .named("orders")
    };
    let chaotic = chaos.layer(service_fn(|()| std::future::ready(Ok::<(), _>(()))));
    let timed = TimeoutLayer::new(Duration::from_secs(3)).layer(chaotic);
    let log = logged(LevelFilter::INFO, async {
        assert!(fallback(false).layer(timed.clone()).oneshot(()).await.is_ok());
        assert!(fallback(true).layer(timed).oneshot(()).await.is_err());
    })
    .await;
    let lines: Vec<_> = log.iter().filter(|line| !line.contains("ziggurat::timeout")).collect();
    assert_eq!(
        lines,
        [
            r#"INFO ziggurat::chaos: injected layer="chaos" name="drill" reason="hang""#,
            r#"INFO ziggurat::fallback: fell_back layer="fallback" name="orders" reason="timed_out""#,
            r#"INFO ziggurat::chaos: injected layer="chaos" name="drill" reason="hang""#,
            r#"WARN ziggurat::fallback: fallback_failed layer="fallback" name="orders" reason="timed_out" error=no backup"#,
        ]
    );
}

/// Shows: E2
#[tokio::test]
async fn a_handler_that_fails_is_logged() {
    let log = logged(LevelFilter::INFO, async {
        let bus = EventBus::new().named("orders");
        let guard = bus.on(|id: u8| async move { if id == 7 { Err("no stock") } else { Ok(()) } });
        bus.publish(7_u8);
        bus.publish(8_u8);
        bus.close();
        guard.finished().await;
    })
    .await;
    assert_eq!(log, [r#"WARN ziggurat::events: handler_failed layer="events" name="orders" of="u8" error="no stock""#]);
}

/// Shows: F7
#[tokio::test(start_paused = true)]
async fn settings_that_contradict_each_other_are_logged_once() {
    let app = Scope::root("app").with(ClientSettings::default());
    let stack = ClientStack::new("billing").settings_from(&app);
    let service = stack.layer(service_fn(|()| async { Ok::<_, Error<&str>>(()) }));
    app.update(|settings: &ClientSettings| settings.backoff(Duration::from_secs(2))).unwrap();
    let log = logged(LevelFilter::WARN, async {
        for _ in 0..3 {
            service.clone().oneshot(()).await.unwrap();
        }
    })
    .await;
    let error = "`backoff` must be at most `max_backoff`, which is 1s, not 2s";
    assert_eq!(
        log,
        [format!(r#"WARN ziggurat::stack: settings_refused layer="stack" name="billing" error="{error}""#)]
    );
}

/// A custom layer logs under the crate's name.
#[tokio::test]
async fn a_site_of_ones_own_logs_too() {
    let info = LayerInfo::new("mine").named("here");
    let log = logged(LevelFilter::TRACE, async { info.emit(LayerEvent::Hit) }).await;
    assert_eq!(log, [r#"TRACE ziggurat: hit layer="mine" name="here""#]);
}

/// Shows: T3
#[tokio::test(start_paused = true)]
async fn what_is_logged_inside_stands_in_the_span_of_the_scope() {
    let service =
        ServiceBuilder::new().layer(TimeoutLayer::new(Duration::from_secs(5))).service(service_fn(|()| async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            tracing::info!(target: "service", "inside");
            Ok::<_, Error<()>>(())
        }));
    let mut ids = (0, 0);
    let log = logged(LevelFilter::INFO, async {
        let app = Scope::root("app");
        let request = app.child("request");
        ids = (app.id(), request.id());
        request.within(service.oneshot(())).await.unwrap();
        tracing::info!(target: "service", "outside");
    })
    .await;
    let (app, request) = ids;
    let inside = format!(r#"INFO scope{{name="app" id={app}}}:scope{{name="request" id={request}}}: service: inside"#);
    assert_eq!(log, [inside.as_str(), "INFO service: outside"]);
}

/// Shows: X6
#[tokio::test]
async fn the_span_of_a_request_says_its_id_and_its_trace() {
    let request = |id: &str, traceparent: &str| {
        let request = Request::get("/").header("x-request-id", id).header("traceparent", traceparent);
        request.body(String::new()).unwrap()
    };
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    let log = logged(LevelFilter::INFO, async {
        // The inner of the two layers has nothing to add.
        let service = ServiceBuilder::new()
            .layer(ContextLayer::new(Scope::root("app")))
            .layer(RequestIdLayer::new())
            .layer(RequestIdLayer::new())
            .service(service_fn(|_: Request<String>| async {
                tracing::info!(target: "service", "inside");
                Ok::<_, Error<()>>(Response::new(String::new()))
            }));
        let valid = format!("00-{trace}-00f067aa0ba902b7-01");
        service.clone().oneshot(request("order-17", &valid)).await.unwrap();
        service.oneshot(request("order-18", "junk")).await.unwrap();
    })
    .await;
    // The number of the scope comes first, which no test can know.
    let fields: Vec<_> = log.iter().map(|line| line.split_once(" request_id=").unwrap().1).collect();
    let with_trace = format!(r#""order-17" trace_id="{trace}"}}: service: inside"#);
    assert_eq!(fields, [with_trace.as_str(), r#""order-18"}: service: inside"#]);
}

/// The response reveals nothing, and the log everything.
#[tokio::test]
async fn an_extractor_without_its_layer_is_told_to_the_logs() {
    let app = axum::Router::new().route("/", axum::routing::get(|scope: Scope| async move { scope.name().to_owned() }));
    let lines = logged(LevelFilter::ERROR, async {
        let response = app.oneshot(Request::get("/").body(axum::body::Body::empty()).unwrap()).await.unwrap();
        assert_eq!(response.status(), 500);
    })
    .await;
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert!(lines[0].starts_with("ERROR ziggurat::extract: missing_layer"), "{lines:?}");
    assert!(lines[0].contains("put ziggurat's `ContextLayer` around the router"), "{lines:?}");
}

/// Shows: X5, X6
#[tokio::test(start_paused = true)]
async fn a_scope_tells_what_nobody_may_hear_and_its_tasks_log_in_its_span() {
    let mut id = 0;
    let log = logged(LevelFilter::INFO, async {
        let fails =
            Disposable::new(async |_: Scope| Ok::<_, std::fmt::Error>(7_u8), async |_: Arc<u8>| Err::<(), _>("stuck"));
        let app = Scope::root("app").disposable(fails).open().await.unwrap();
        id = app.id();
        drop(app.spawn(async { tracing::info!(target: "service", "inside") }));
        drop(app.spawn(std::future::pending::<()>()));
        tokio::task::yield_now().await;
        drop(app);
        tokio::time::sleep(Duration::from_secs(60)).await;
    })
    .await;
    let in_span = |rest: &str| format!(r#"scope{{name="app" id={id}}}: {rest}"#);
    assert_eq!(
        log,
        [
            format!("INFO {}", in_span("service: inside")),
            format!("WARN {}", in_span(r#"ziggurat::scope: dropped without being closed scope="app""#)),
            format!("WARN {}", in_span(r#"ziggurat::scope: tasks aborted scope="app" tasks=1"#)),
            format!(
                "WARN {}",
                in_span(
                    r#"ziggurat::scope: not closed cleanly scope="app" error=the scope `app` could not tear down `u8`: stuck"#
                )
            ),
        ]
    );
}

/// Bad input: an error that panics when the log displays it.
#[tokio::test(start_paused = true)]
async fn an_error_that_cannot_be_displayed_does_not_keep_a_scope_from_being_closed() {
    struct Unspeakable;
    impl std::fmt::Display for Unspeakable {
        fn fmt(&self, _: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            panic!("unspeakable")
        }
    }
    impl std::fmt::Debug for Unspeakable {
        fn fmt(&self, _: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            panic!("unspeakable")
        }
    }
    impl std::error::Error for Unspeakable {}
    let log = logged(LevelFilter::INFO, async {
        let fails = Disposable::new(
            async |_: Scope| Ok::<_, std::fmt::Error>(7_u8),
            async |_: Arc<u8>| Err::<(), _>(Unspeakable),
        );
        let app = Scope::root("app").disposable(fails).open().await.unwrap();
        let closed = tokio::time::timeout(Duration::from_secs(60), app.close()).await;
        assert_eq!(closed.unwrap().map_err(|error| error.faults().len()), Err(1));
    });
    assert!(log.await.is_empty());
}
