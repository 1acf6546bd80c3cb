//! The chaos layer, on a paused clock.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use tokio::time::Instant;
use tower::{Service, ServiceBuilder, ServiceExt, service_fn};
use ziggurat::{
    Class, Deadline, Error, LayerEvent, LayerInfo, Reason, Scope,
    chaos::{ChaosHandle, ChaosLayer, Fault, Schedule},
    circuit_breaker::{CircuitBreakerLayer, State},
    context::ContextLayer,
    retry::RetryLayer,
    testing::{Act, Script, Strict, TestTask},
    timeout::TimeoutLayer,
};

const SECOND: Duration = Duration::from_secs(1);

type Outcome = Result<u64, Error<String>>;

fn echo() -> impl Service<u64, Response = u64, Error = Error<String>, Future: Send> + Clone + Send {
    Strict::new(service_fn(|number| std::future::ready(Outcome::Ok(number))))
}

fn is_injected(outcome: &Outcome) -> bool {
    ziggurat::rejection(outcome).is_some_and(|rejection| rejection.reason() == &Reason::Injected)
}

/// Returns the numbers, from 1, of the calls that got a fault.
async fn struck<S>(service: &S, calls: u64) -> Vec<u64>
where
    S: Service<u64, Response = u64, Error = Error<String>> + Clone,
{
    let mut struck = Vec::new();
    for number in 1..=calls {
        let outcome = service.clone().oneshot(number).await;
        match is_injected(&outcome) {
            true => struck.push(number),
            false => assert_eq!(outcome.unwrap(), number),
        }
    }
    struck
}

/// Shows: G3
#[tokio::test]
async fn it_is_off_until_it_is_switched_on() {
    let layer = ChaosLayer::new(Fault::Error).rate(1.0);
    let chaos = layer.handle();
    let service = ServiceBuilder::new().layer(layer).service(echo());
    assert!(!chaos.is_on());
    assert!(struck(&service, 10).await.is_empty());
    chaos.on();
    assert!(chaos.is_on());
    assert_eq!(struck(&service, 3).await, [1, 2, 3]);
    chaos.off();
    assert!(struck(&service, 10).await.is_empty());
    assert_eq!(chaos.injected(), 3);
}

#[tokio::test]
async fn while_it_is_off_nobody_is_asked_for_faults_or_rates() {
    let layer = ChaosLayer::new(|_: &u64| -> Fault { panic!("asked") }).rate_by(|_: &u64| -> f64 { panic!("asked") });
    let service = ServiceBuilder::new().layer(layer).service(echo());
    assert_eq!(service.oneshot(1).await.unwrap(), 1);
}

/// Shows: G3
#[tokio::test]
async fn an_error_is_a_rejection_that_is_a_transient_failure_and_the_service_is_not_called() {
    let script = Script::new();
    let layer = ChaosLayer::new(Fault::Error).rate(1.0).named("drill");
    layer.handle().on();
    let service = ServiceBuilder::new().layer(layer).service(script.service(|number| number));
    let outcome = service.oneshot(()).await;
    let rejection = ziggurat::rejection(&outcome).unwrap();
    assert_eq!(rejection.to_string(), "chaos `drill`: an injected fault");
    assert_eq!(rejection.class(), Class::TRANSIENT);
    assert_eq!((script.calls(), script.ready()), (0, 0));
}

/// A service whose call was replaced by a fault does not keep its readiness.
///
/// Shows: G3
#[tokio::test(start_paused = true)]
async fn a_call_that_is_struck_gives_the_readiness_back_at_once() {
    for fault in [Fault::Error, Fault::Delay(SECOND), Fault::Hang] {
        let script = Script::new();
        let layer = ChaosLayer::new(fault).rate(1.0);
        layer.handle().on();
        let mut service = ServiceBuilder::new().layer(layer).service(script.service(|number| number));
        ServiceExt::<()>::ready(&mut service).await.unwrap();
        assert_eq!(script.ready(), 1);
        let call = service.call(());
        assert_eq!(script.ready(), 0, "{fault:?}");
        drop(call);
    }
}

/// Shows: G3
#[tokio::test(start_paused = true)]
async fn a_delay_begins_with_the_first_poll_and_then_the_service_is_made_ready_and_called() {
    let script = Script::new();
    script.always(Act::answer().pending_at_readiness(2));
    let layer = ChaosLayer::new(Fault::Delay(SECOND)).rate(1.0);
    layer.handle().on();
    let mut service = ServiceBuilder::new().layer(layer).service(script.service(|number| number));
    let call = ServiceExt::<()>::ready(&mut service).await.unwrap().call(());
    tokio::time::sleep(10 * SECOND).await;
    let start = Instant::now();
    let mut call = Box::pin(call);
    tokio::select! {
        biased;
        _ = &mut call => panic!("the call completed"),
        () = tokio::time::sleep(SECOND - Duration::from_millis(1)) => assert_eq!((script.calls(), script.ready()), (0, 0)),
    }
    assert_eq!(call.await.unwrap(), 1);
    assert_eq!(start.elapsed(), SECOND);
}

#[tokio::test(start_paused = true)]
async fn an_error_of_readiness_after_a_delay_comes_out() {
    let script = Script::new().then(Act::answer());
    let layer = ChaosLayer::new(Fault::Delay(SECOND)).rate(1.0);
    layer.handle().on();
    let mut service = ServiceBuilder::new().layer(layer).service(script.service(|number| number));
    let call = ServiceExt::<()>::ready(&mut service).await.unwrap().call(());
    script.always(Act::error().at_readiness());
    assert_eq!(call.await.unwrap_err().to_string(), "failure 1");
}

/// Shows: G3, T4, B6
#[tokio::test(start_paused = true)]
async fn a_surrounding_limit_ends_delays_and_hangs_and_a_breaker_sees_a_service_that_hangs() {
    for fault in [Fault::Delay(60 * SECOND), Fault::Delay(Duration::MAX), Fault::Hang] {
        let layer = ChaosLayer::new(fault).rate(1.0);
        layer.handle().on();
        let breaker = CircuitBreakerLayer::consecutive(1);
        let circuit = breaker.handle();
        let service =
            ServiceBuilder::new().layer(TimeoutLayer::new(2 * SECOND)).layer(breaker).layer(layer).service(echo());
        let start = Instant::now();
        let outcome = service.oneshot(1).await;
        assert!(ziggurat::rejection(&outcome).unwrap().is_timed_out());
        assert_eq!(start.elapsed(), 2 * SECOND);
        assert_eq!(circuit.state(), State::Open);
    }
}

/// Shows: G3
#[tokio::test(start_paused = true)]
async fn a_deadline_that_is_only_told_ends_nothing() {
    let layer = ChaosLayer::new(Fault::Delay(5 * SECOND)).rate(1.0);
    layer.handle().on();
    let service = ServiceBuilder::new().layer(layer).service(echo());
    assert_eq!(Deadline::after(SECOND).within(service.oneshot(1)).await.unwrap(), 1);
}

/// Shows: G3, R6
#[tokio::test(start_paused = true)]
async fn a_retry_outside_gets_over_what_is_down_at_first() {
    let layer = ChaosLayer::new(Fault::Error).schedule(Schedule::first(2));
    let chaos = layer.handle();
    chaos.on();
    let service = ServiceBuilder::new().layer(RetryLayer::new()).layer(layer).service(echo());
    assert_eq!(service.oneshot(7).await.unwrap(), 7);
    assert_eq!(chaos.injected(), 2);
}

/// Shows: G3
#[tokio::test]
async fn a_schedule_is_followed_and_begins_anew_with_each_switching_on() {
    for (schedule, expected) in [
        (Schedule::every(3), vec![3, 6, 9]),
        (Schedule::first(2), vec![1, 2]),
        (Schedule::repeat([false, true, true]), vec![2, 3, 5, 6, 8, 9]),
    ] {
        let layer = ChaosLayer::new(Fault::Error).schedule(schedule);
        let chaos = layer.handle();
        let service = ServiceBuilder::new().layer(layer).service(echo());
        for _ in 0..2 {
            // Calls while it is off do not count, and switching on twice changes nothing.
            struck(&service, 1).await;
            chaos.on();
            let first = struck(&service, 5).await;
            chaos.on();
            let then = struck(&service, 5).await;
            let all: Vec<u64> = first.into_iter().chain(then.into_iter().map(|number| number + 5)).collect();
            assert_eq!(all, expected);
            chaos.off();
        }
    }
}

/// Shows: G3
#[tokio::test]
async fn a_seed_strikes_the_same_calls_every_time() {
    let run = async |seed: Option<u64>| {
        let layer = ChaosLayer::new(Fault::Error).rate(0.1);
        let layer = if let Some(seed) = seed { layer.seed(seed) } else { layer };
        layer.handle().on();
        struck(&ServiceBuilder::new().layer(layer).service(echo()), 200).await
    };
    assert_eq!(run(Some(42)).await, run(Some(42)).await);
    assert_ne!(run(Some(42)).await, run(Some(43)).await);
    // Two layers without a seed each have their own: they match by chance once in 2^93.
    assert_ne!(run(None).await, run(None).await);
}

/// Shows: G3
#[tokio::test]
async fn one_in_a_thousand_is_struck_if_nothing_else_is_said() {
    let layer = ChaosLayer::new(Fault::Error).seed(42);
    let told = ChaosLayer::new(Fault::Error).seed(42).rate(0.001);
    let all = [layer.handle(), told.handle()];
    all.iter().for_each(ChaosHandle::on);
    let (layer, told) =
        (ServiceBuilder::new().layer(layer).service(echo()), ServiceBuilder::new().layer(told).service(echo()));
    let expected = struck(&told, 5_000).await;
    assert!(!expected.is_empty());
    assert_eq!(struck(&layer, 5_000).await, expected);
}

/// Shows: G3
#[tokio::test]
async fn the_rate_can_be_set_while_it_runs() {
    let layer = ChaosLayer::new(Fault::Error).schedule(Schedule::first(1));
    let chaos = layer.handle();
    let service = ServiceBuilder::new().layer(layer).service(echo());
    chaos.on();
    assert_eq!(struck(&service, 3).await, [1]);
    chaos.set_rate(1.0);
    assert_eq!(struck(&service, 3).await, [1, 2, 3]);
    chaos.set_rate(0.0);
    assert!(struck(&service, 3).await.is_empty());
}

/// Shows: G3
#[tokio::test]
async fn a_function_of_the_request_says_who_is_left_alone() {
    let layer =
        ChaosLayer::new(|number: &u64| number.is_multiple_of(2).then_some(Fault::Error)).schedule(Schedule::every(2));
    layer.handle().on();
    let service = ServiceBuilder::new().layer(layer).service(echo());
    // Every second of the even ones: calls that the function exempts do not count.
    assert_eq!(struck(&service, 12).await, [4, 8, 12]);
}

/// Shows: G3
#[tokio::test]
async fn the_rate_can_come_from_scoped_state_while_it_runs() {
    struct Drill {
        rate: f64,
    }
    let app = Scope::root("app").with(Drill { rate: 0.0 });
    let layer = ChaosLayer::new(Fault::Error)
        .rate_by(|_: &u64| Scope::current().and_then(|scope| scope.get::<Drill>()).map(|drill| drill.rate));
    layer.handle().on();
    let inner = ServiceBuilder::new().layer(layer).service(echo());
    let service = ServiceBuilder::new().layer(ContextLayer::ambient(app.clone())).service(inner.clone());
    assert!(struck(&service, 5).await.is_empty());
    app.update(|_: &Drill| Drill { rate: 1.0 }).unwrap();
    assert_eq!(struck(&service, 5).await, [1, 2, 3, 4, 5]);
    for no_rate in [f64::NAN, -1.0] {
        app.update(|_: &Drill| Drill { rate: no_rate }).unwrap();
        assert!(struck(&service, 5).await.is_empty());
    }
    // Outside the scope there is no rate, and no call gets a fault.
    assert!(struck(&inner, 5).await.is_empty());
}

/// With any number of threads, every tenth call gets a fault, no more and no fewer.
///
/// Shows: G3
#[test]
fn a_schedule_is_exact_over_all_clones_and_threads() {
    let layer = ChaosLayer::new(Fault::Error).schedule(Schedule::every(10));
    let chaos = layer.handle();
    chaos.on();
    let service = ServiceBuilder::new().layer(layer).service(echo());
    let counted: usize = thread::scope(|scope| {
        let threads: Vec<_> = (0..8)
            .map(|_| {
                let service = service.clone();
                scope.spawn(move || {
                    let mut counted = 0;
                    for number in 0..1_000 {
                        let mut call = TestTask::new(service.clone().oneshot(number));
                        let std::task::Poll::Ready(outcome) = call.poll() else { panic!("pending") };
                        counted += usize::from(is_injected(&outcome));
                    }
                    counted
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    assert_eq!((counted, chaos.injected()), (800, 800));
}

/// Shows: G3
#[tokio::test(start_paused = true)]
async fn every_fault_is_told() {
    for (fault, expected) in
        [(Fault::Error, "chaos: an injected fault"), (Fault::Delay(SECOND), "delay"), (Fault::Hang, "hang")]
    {
        let told = Arc::new(Mutex::new(Vec::new()));
        let layer = ChaosLayer::new(fault).schedule(Schedule::first(1)).observer({
            let told = Arc::clone(&told);
            move |_: &LayerInfo, event: &LayerEvent<'_>| {
                told.lock().unwrap().push(match event {
                    LayerEvent::Rejected(rejection) => rejection.to_string(),
                    LayerEvent::Injected { reason } => (*reason).to_owned(),
                    other => panic!("{other:?}"),
                });
            }
        });
        layer.handle().on();
        let service = ServiceBuilder::new().layer(layer).service(echo());
        drop(TestTask::new(service.clone().oneshot(1)).poll());
        service.oneshot(2).await.unwrap();
        assert_eq!(*told.lock().unwrap(), [expected]);
    }
}

#[test]
fn bad_input_panics_with_the_name_of_what_is_bad() {
    type Attempt = (fn(), &'static str);
    let cases: [Attempt; 7] = [
        (|| drop(ChaosLayer::new(Fault::Error).rate(f64::NAN)), "rate must be between 0 and 1, not NaN"),
        (|| drop(ChaosLayer::new(Fault::Error).rate(-0.1)), "rate must be between 0 and 1, not -0.1"),
        (|| drop(ChaosLayer::new(Fault::Error).rate(1.5)), "rate must be between 0 and 1, not 1.5"),
        (|| drop(ChaosLayer::new(Fault::Error).rate(f64::INFINITY)), "rate must be between 0 and 1, not inf"),
        (|| ChaosLayer::new(Fault::Error).handle().set_rate(2.0), "rate must be between 0 and 1, not 2"),
        (|| drop(Schedule::every(0)), "nth must be at least 1, not 0"),
        (|| drop(Schedule::repeat([])), "list must not be empty"),
    ];
    for (attempt, expected) in cases {
        let panic = catch_unwind(attempt).unwrap_err();
        let message = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref().copied());
        assert_eq!(message, Some(expected));
    }
    // Valid arguments.
    let _ = (ChaosLayer::new(Fault::Error).rate(0.0), ChaosLayer::new(Fault::Error).rate(1.0), Schedule::first(0));
}

#[tokio::test]
async fn a_function_that_panics_wedges_nothing() {
    let layer =
        ChaosLayer::new(|number: &u64| if *number == 1 { panic!("in the gate") } else { Fault::Error }).rate(1.0);
    layer.handle().on();
    let service = ServiceBuilder::new().layer(layer).service(echo());
    let mut call = TestTask::new(service.clone().oneshot(1));
    assert!(catch_unwind(AssertUnwindSafe(|| call.poll().is_ready())).is_err());
    assert!(is_injected(&service.oneshot(2).await));
}

#[test]
fn it_says_how_it_stands() {
    let layer = ChaosLayer::new(Fault::Error).schedule(Schedule::every(3));
    layer.handle().on();
    assert_eq!(format!("{:?}", layer.handle()), "ChaosHandle { on: true, rate: None, injected: 0 }");
    assert!(format!("{layer:?}").contains("chaos: ChaosHandle { on: true"));
}
