//! Settings in a scope that are replaced while the stack works.

use std::{
    future::pending,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};

use tokio::{sync::Notify, time::Instant};
use tower::{Layer, Service, ServiceExt, service_fn};
use ziggurat::{
    Error, Scope,
    circuit_breaker::State,
    stack::{ClientSettings, ClientStack},
};

const SECOND: Duration = Duration::from_secs(1);

type Failed = Error<&'static str>;

fn failing(
    calls: &Arc<AtomicU32>,
) -> impl Service<(), Response = (), Error = Failed, Future: Send> + Clone + Send + use<> {
    let calls = Arc::clone(calls);
    service_fn(move |()| {
        calls.fetch_add(1, Ordering::SeqCst);
        async { Err(Error::Service("failed")) }
    })
}

fn change(scope: &Scope, change: impl Fn(ClientSettings) -> ClientSettings) {
    scope.update(|settings: &ClientSettings| change(*settings)).unwrap();
}

/// Shows: G4
#[tokio::test(start_paused = true)]
async fn limits_of_time_change_from_the_next_call_on() {
    let app = Scope::root("app").with(ClientSettings::default().attempt_timeout(2 * SECOND).max_attempts(1));
    let hangs = service_fn(|()| pending::<Result<(), Failed>>());
    let stack = ClientStack::new("test").settings_from(&app).layer(hangs);
    let took = async || {
        let start = Instant::now();
        assert!(stack.clone().oneshot(()).await.is_err());
        start.elapsed()
    };
    assert_eq!(took().await, 2 * SECOND);
    change(&app, |settings| settings.attempt_timeout(5 * SECOND));
    assert_eq!(took().await, 5 * SECOND);
    change(&app, |settings| settings.timeout(3 * SECOND).attempt_timeout(3 * SECOND));
    assert_eq!(took().await, 3 * SECOND);

    // A call in flight keeps the limit that it began with.
    let start = Instant::now();
    let under_way = tokio::spawn(stack.clone().oneshot(()));
    tokio::task::yield_now().await;
    change(&app, |settings| settings.timeout(SECOND).attempt_timeout(SECOND));
    assert_eq!(took().await, SECOND);
    assert!(under_way.await.unwrap().is_err());
    assert_eq!(start.elapsed(), 3 * SECOND);
}

/// Shows: F7, G4
#[tokio::test(start_paused = true)]
async fn settings_that_contradict_each_other_disturb_no_call_and_those_before_them_stay() {
    let app = Scope::root("app").with(ClientSettings::default().timeout(9 * SECOND).max_attempts(1).max_in_flight(7));
    let hangs = service_fn(|()| pending::<Result<(), Failed>>());
    let layer = ClientStack::new("test").settings_from(&app);
    let (gate, stack) = (layer.gate(), layer.layer(hangs));
    let took = async || {
        let start = Instant::now();
        assert!(ziggurat::rejection(&stack.clone().oneshot(()).await).unwrap().is_timed_out());
        (start.elapsed(), gate.limit())
    };
    assert_eq!(took().await, (9 * SECOND, 7));
    gate.set_limit(6);
    change(&app, |settings| settings.timeout(5 * SECOND).attempt_timeout(8 * SECOND).max_in_flight(9));
    assert_eq!(took().await, (9 * SECOND, 6), "nothing of it is taken over");
    // Only differences from the settings that were last applied take effect.
    change(&app, |settings| settings.attempt_timeout(4 * SECOND).max_in_flight(7));
    assert_eq!(took().await, (4 * SECOND, 6));
}

/// Shows: G4
#[tokio::test(start_paused = true)]
async fn other_settings_lose_neither_the_window_nor_an_open_circuit() {
    let app = Scope::root("app").with(ClientSettings::default().max_attempts(1).failure_rate(1.0).min_calls(20));
    let layer = ClientStack::new("test").settings_from(&app);
    let circuit = layer.circuit();
    let fails = Arc::new(AtomicBool::new(false));
    let stack = layer.layer(service_fn({
        let fails = Arc::clone(&fails);
        move |()| {
            let outcome = if fails.load(Ordering::SeqCst) { Err(Error::Service("failed")) } else { Ok(()) };
            async { outcome }
        }
    }));
    let call = async |failing: bool| {
        fails.store(failing, Ordering::SeqCst);
        stack.clone().oneshot(()).await
    };
    for _ in 0..10 {
        call(false).await.unwrap();
        call(true).await.unwrap_err();
    }
    assert_eq!(circuit.state(), State::Closed);

    // Calls that were counted under the old settings decide by the new ones.
    change(&app, |settings| settings.failure_rate(0.5).open_for(7 * SECOND).max_open_for(7 * SECOND));
    call(false).await.unwrap();
    assert_eq!(circuit.state(), State::Closed);
    call(true).await.unwrap_err();
    assert_eq!(circuit.state(), State::Open, "11 of 22");

    change(&app, |settings| settings.failure_rate(1.0).timeout(9 * SECOND));
    let rejected = call(false).await;
    assert!(ziggurat::rejection(&rejected).unwrap().is_circuit_open());
    assert_eq!(circuit.state(), State::Open);
    tokio::time::advance(7 * SECOND).await;
    call(false).await.unwrap();
    assert_eq!(circuit.state(), State::Closed);
}

/// Shows: B1, G4
#[tokio::test(start_paused = true)]
async fn a_number_of_failures_in_a_row_opens_the_circuit_and_can_be_changed_and_turned_off() {
    let calls = Arc::new(AtomicU32::new(0));
    let settings = ClientSettings::default().max_attempts(1).min_calls(u32::MAX);
    let app = Scope::root("app").with(settings);
    let layer = ClientStack::new("test").settings_from(&app);
    let (circuit, stack) = (layer.circuit(), layer.layer(failing(&calls)));
    let fail = async |times: u32| {
        for _ in 0..times {
            stack.clone().oneshot(()).await.unwrap_err();
        }
    };
    fail(100).await;
    assert_eq!(circuit.state(), State::Closed, "off by default");

    change(&app, |settings| settings.consecutive_failures(3));
    fail(2).await;
    assert_eq!(circuit.state(), State::Closed);
    fail(1).await;
    assert_eq!(circuit.state(), State::Open);

    circuit.close();
    change(&app, |settings| settings.consecutive_failures(0));
    fail(100).await;
    assert_eq!(circuit.state(), State::Closed, "and off again");
}

/// Shows: G4
#[tokio::test(start_paused = true)]
async fn other_settings_lose_nothing_of_the_budget() {
    let calls = Arc::new(AtomicU32::new(0));
    let settings =
        ClientSettings::default().backoff(Duration::ZERO).max_attempts(2).failure_rate(1.0).min_calls(u32::MAX);
    let app = Scope::root("app").with(settings.retry_ratio(0.0).min_retries_per_second(1));
    let stack = ClientStack::new("test").settings_from(&app).layer(failing(&calls));
    let retries = async |requests: u32| {
        let before = calls.load(Ordering::SeqCst);
        for _ in 0..requests {
            stack.clone().oneshot(()).await.unwrap_err();
        }
        calls.load(Ordering::SeqCst) - before - requests
    };
    assert_eq!(retries(20).await, 10);
    change(&app, |settings| settings.timeout(SECOND));
    assert_eq!(retries(20).await, 0, "it is spent");
    change(&app, |settings| settings.min_retries_per_second(2));
    assert_eq!(retries(20).await, 10, "twenty in all");
    change(&app, |settings| settings.max_attempts(1));
    assert_eq!(retries(1).await, 0);
}

/// Shows: G4
#[tokio::test(start_paused = true)]
async fn other_limits_keep_what_is_in_flight_and_who_waits() {
    let leave = Arc::new(Notify::new());
    let app = Scope::root("app").with(ClientSettings::default().max_in_flight(1).max_waiting(2));
    let layer = ClientStack::new("test").settings_from(&app);
    let gate = layer.gate();
    let stack = layer.layer(service_fn({
        let leave = Arc::clone(&leave);
        move |()| {
            let leave = Arc::clone(&leave);
            async move {
                leave.notified().await;
                Ok::<_, Failed>(())
            }
        }
    }));
    let mut calls = tokio::task::JoinSet::new();
    for _ in 0..3 {
        calls.spawn(stack.clone().oneshot(()));
    }
    tokio::task::yield_now().await;
    assert_eq!((gate.in_flight(), gate.waiting()), (1, 2));

    // The next call reads the settings, and finds room for itself and the waiters.
    change(&app, |settings| settings.max_in_flight(4));
    calls.spawn(stack.clone().oneshot(()));
    tokio::task::yield_now().await;
    tokio::task::yield_now().await;
    assert_eq!((gate.in_flight(), gate.waiting()), (4, 0));

    change(&app, |settings| settings.max_in_flight(1).max_waiting(0));
    assert!(stack.oneshot(()).await.is_err());
    assert_eq!(gate.in_flight(), 4);
    for _ in 0..4 {
        leave.notify_one();
        calls.join_next().await.unwrap().unwrap().unwrap();
    }
    assert_eq!(gate.in_flight(), 0);
}

/// Shows: G4
#[tokio::test]
async fn settings_are_those_of_the_nearest_scope_and_its_parents_are_heard() {
    let in_flight = |number: usize| ClientSettings::default().max_in_flight(number);
    let app = Scope::root("app").with(in_flight(10));
    let (billing, search) = (app.child("billing"), app.child("search").with(in_flight(18)));
    let layers = [&billing, &search].map(|scope| ClientStack::new("test").settings_from(scope));
    let limits = async || {
        let mut limits = Vec::new();
        for layer in &layers {
            layer.layer(service_fn(|()| async { Ok::<_, Failed>(()) })).oneshot(()).await.unwrap();
            limits.push(layer.gate().limit());
        }
        limits
    };
    assert_eq!(layers.each_ref().map(|layer| layer.gate().limit()), [10, 18], "at once");
    change(&app, |settings| settings.max_in_flight(11));
    assert_eq!(limits().await, [11, 18]);
    change(&search, |settings| settings.max_in_flight(19));
    assert_eq!(limits().await, [11, 19]);
    let billing = billing.with(in_flight(12));
    assert_eq!(limits().await, [12, 19], "a nearer one hides the parent's");

    // A setting that was changed by hand stays, even if others in the scope or the settings change.
    layers[0].gate().set_limit(5);
    let billing = billing.with("something else");
    assert_eq!(limits().await, [5, 19]);
    change(&billing, |settings| settings.timeout(SECOND));
    assert_eq!(limits().await, [5, 19]);
    change(&billing, |settings| settings.max_in_flight(13));
    assert_eq!(limits().await, [13, 19]);
    layers[0].gate().set_limit(5);
    change(&billing, |settings| settings.min_in_flight(8).max_in_flight(40));
    assert_eq!(limits().await, [20, 19], "it starts anew at 20");
    change(&billing, |settings| settings.min_in_flight(30));
    assert_eq!(limits().await, [30, 19]);
}

/// A client in the state of the scope that its settings come from must not keep that scope alive forever.
#[tokio::test]
async fn a_stack_keeps_no_scope_alive_and_its_last_settings_when_that_is_gone() {
    let app = Scope::root("app").with(ClientSettings::default().max_in_flight(3));
    let held = Arc::new(());
    let alive = Arc::downgrade(&held);
    let layer = ClientStack::new("test").settings_from(&app);
    let app = app.with(layer.clone()).with(held);
    drop(app);
    assert!(alive.upgrade().is_none());
    layer.layer(service_fn(|()| async { Ok::<_, Failed>(()) })).oneshot(()).await.unwrap();
    assert_eq!(layer.gate().limit(), 3);
}

/// However many threads apply settings at once, the last ones written remain, whole.
#[test]
fn many_threads_end_with_the_last_settings() {
    let app = Scope::root("app").with(ClientSettings::default());
    let layer = ClientStack::new("test").settings_from(&app);
    let gate = layer.gate();
    let stack = layer.layer(service_fn(|()| async { Ok::<_, Failed>(()) }));
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    for round in 1..=200 {
        std::thread::scope(|threads| {
            for _ in 0..2 {
                threads.spawn(|| {
                    runtime().block_on(async {
                        for _ in 0..20 {
                            stack.clone().oneshot(()).await.unwrap();
                        }
                    });
                });
            }
            // The limit in flight follows the capacity too.
            change(&app, |settings| settings.max_in_flight(round).max_waiting(round));
        });
        runtime().block_on(stack.clone().oneshot(())).unwrap();
        assert_eq!(gate.max_waiting(), round);
        assert!(gate.limit() <= round);
    }
}

/// Shows: G4
#[tokio::test(start_paused = true)]
async fn a_probe_that_is_under_way_decides_whatever_the_settings_are_by_then() {
    let app = Scope::root("app").with(ClientSettings::default().max_attempts(1).min_calls(1).max_open_for(5 * SECOND));
    let layer = ClientStack::new("test").settings_from(&app);
    let circuit = layer.circuit();
    let (answer, answered) = (Arc::new(Notify::new()), Arc::new(AtomicBool::new(false)));
    let stack = layer.layer(service_fn({
        let (answer, works) = (Arc::clone(&answer), Arc::clone(&answered));
        move |()| {
            let (answer, works) = (Arc::clone(&answer), works.load(Ordering::SeqCst));
            async move {
                if !works {
                    return Err(Error::Service("failed"));
                }
                answer.notified().await;
                Ok(())
            }
        }
    }));
    stack.clone().oneshot(()).await.unwrap_err();
    assert_eq!(circuit.state(), State::Open);
    tokio::time::advance(5 * SECOND).await;
    answered.store(true, Ordering::SeqCst);
    let probe = tokio::spawn(stack.clone().oneshot(()));
    tokio::task::yield_now().await;
    assert_eq!(circuit.state(), State::HalfOpen);

    change(&app, |settings| settings.failure_rate(0.9).open_for(60 * SECOND).max_open_for(60 * SECOND));
    assert!(ziggurat::rejection(&stack.oneshot(()).await).unwrap().is_circuit_open(), "its place is taken");
    assert_eq!(circuit.state(), State::HalfOpen);
    answer.notify_one();
    probe.await.unwrap().unwrap();
    assert_eq!(circuit.state(), State::Closed);
}
