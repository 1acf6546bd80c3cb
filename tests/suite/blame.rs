//! Outcomes that open a circuit and outcomes that do not, and the calls that a stack still sends to a service that
//! hangs.

use std::{
    future::Future,
    panic::AssertUnwindSafe,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use futures_util::{FutureExt, future::join_all};
use tokio::time::{Instant, advance, sleep};
use tower::{Layer, Service, ServiceBuilder, ServiceExt, limit::ConcurrencyLimitLayer as TowersLimit, service_fn};
use ziggurat::{
    Deadline, Error, Rejection,
    circuit_breaker::{Cancelled, CircuitBreakerLayer, State},
    concurrency_limit::ConcurrencyLimitLayer,
    stack::{ClientSettings, ClientStack},
    timeout::TimeoutLayer,
};

const SECOND: Duration = Duration::from_secs(1);
const MILLIS: Duration = Duration::from_millis(1);

type Failed = Error<&'static str>;

/// Responds after the requested time, and counts its calls.
fn sleeper(
    calls: &Arc<AtomicUsize>,
) -> impl Service<Duration, Response = (), Error = Failed, Future: Send> + Clone + Send + use<> {
    let calls = Arc::clone(calls);
    service_fn(move |time| {
        calls.fetch_add(1, Ordering::SeqCst);
        async move {
            sleep(time).await;
            Ok(())
        }
    })
}

/// Polls a call once, and expects it to be pending.
fn begun<F: Future>(call: F) -> Pin<Box<F>> {
    let mut call = Box::pin(call);
    assert!(call.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    call
}

fn reason<R>(outcome: &Result<R, Failed>) -> Option<&'static str> {
    ziggurat::rejection(outcome).map(|rejection| rejection.reason().as_str())
}

/// Shows: F2
#[tokio::test(start_paused = true)]
async fn callers_with_short_deadlines_open_no_circuit_while_others_get_answers() {
    let calls = Arc::default();
    let layer = ClientStack::new("test").without_retry();
    let circuit = layer.circuit();
    let stack = layer.layer(sleeper(&calls));
    for _ in 0..20 {
        // Both kinds: a deadline that is carried over, and a limit further out.
        let told = (0..4).map(|_| Deadline::after(50 * MILLIS).within(stack.clone().oneshot(100 * MILLIS)));
        let outer = (0..4).map(|_| TimeoutLayer::new(50 * MILLIS).layer(stack.clone()).oneshot(100 * MILLIS));
        let (patient, told, outer) = tokio::join!(stack.clone().oneshot(100 * MILLIS), join_all(told), join_all(outer));
        patient.unwrap();
        assert!(told.iter().all(|outcome| reason(outcome) == Some("deadline_exceeded")));
        assert!(outer.iter().all(|outcome| reason(outcome) == Some("timed_out")));
    }
    assert_eq!(circuit.state(), State::Closed);
    assert_eq!(calls.load(Ordering::SeqCst), 180);
}

/// A deadline counts against a service that returns nothing at all.
///
/// Shows: F2, B6
#[tokio::test(start_paused = true)]
async fn a_service_that_hangs_behind_short_deadlines_opens_the_circuit() {
    let calls = Arc::default();
    let layer = ClientStack::new("test").without_retry();
    let circuit = layer.circuit();
    let stack = layer.layer(sleeper(&calls));
    for call in 0..20 {
        assert_eq!(circuit.state(), State::Closed, "after {call} calls");
        let outcome = Deadline::after(50 * MILLIS).within(stack.clone().oneshot(Duration::MAX)).await;
        assert_eq!(reason(&outcome), Some("deadline_exceeded"));
    }
    assert_eq!(circuit.state(), State::Open);
}

/// Shows: F2
#[tokio::test(start_paused = true)]
async fn a_call_that_spent_its_time_in_the_queue_on_this_side_is_no_failure() {
    // After 29.5 s in the queue, the call is not sent any more: calls take longer than half a second. After 15 s it is,
    // and the service has its ten.
    for (queued, ends_after, said, sent, state) in [
        (29_500 * MILLIS, 29_500 * MILLIS, "overloaded", 1, State::Closed),
        (15 * SECOND, 25 * SECOND, "timed_out", 2, State::Open),
    ] {
        let calls = Arc::default();
        // The first call is a success, so one failure is half of them.
        let settings = ClientSettings::default().max_in_flight(1).min_calls(2);
        let layer = ClientStack::new("test").without_retry().settings(settings);
        let (gate, circuit) = (layer.gate(), layer.circuit());
        let layer = layer
            .with_attempt_timeout(TimeoutLayer::new(|time: &Duration| (*time == Duration::MAX).then_some(10 * SECOND)));
        let stack = layer.layer(sleeper(&calls));
        let first = begun(stack.clone().oneshot(queued));
        let start = Instant::now();
        let (first, second) = tokio::join!(first, stack.oneshot(Duration::MAX));
        first.unwrap();
        assert_eq!((gate.waiting(), reason(&second)), (0, Some(said)));
        assert_eq!(start.elapsed(), ends_after);
        assert_eq!((circuit.state(), calls.load(Ordering::SeqCst)), (state, sent));
    }
}

/// A timeout outside the queue says nothing about the service if it passes in the queue.
///
/// Shows: F2
#[tokio::test(start_paused = true)]
async fn a_call_that_times_out_in_the_queue_on_this_side_is_no_failure() {
    let calls = Arc::default();
    let layer = CircuitBreakerLayer::consecutive(1);
    let circuit = layer.handle();
    let service = ServiceBuilder::new()
        .layer(layer)
        .layer(TimeoutLayer::new(SECOND))
        .layer(ConcurrencyLimitLayer::new(1))
        .service(sleeper(&calls));
    let mut first = begun(service.clone().oneshot(Duration::MAX));
    advance(SECOND / 2).await;
    let second = begun(service.oneshot(Duration::MAX));
    // The first call, in front of it, is not polled meanwhile, and keeps its permit.
    assert_eq!(reason(&second.await), Some("timed_out"));
    assert_eq!(circuit.state(), State::Closed);
    assert_eq!(reason(&first.as_mut().await), Some("timed_out"));
    assert_eq!((circuit.state(), calls.load(Ordering::SeqCst)), (State::Open, 1));
}

/// Shows: F2
#[tokio::test(start_paused = true)]
async fn calls_whose_deadline_has_passed_are_not_sent_and_count_for_nothing() {
    let calls = Arc::default();
    let settings = ClientSettings::default().consecutive_failures(1);
    let layer = ClientStack::new("test").settings(settings);
    let circuit = layer.circuit();
    let stacks = [
        layer.clone().without_retry().layer(sleeper(&calls)).boxed_clone(),
        layer.layer(sleeper(&calls)).boxed_clone(),
    ];
    let deadline = Deadline::after(SECOND);
    advance(SECOND).await;
    for stack in stacks {
        for _ in 0..20 {
            let outcome = deadline.within(stack.clone().oneshot(SECOND)).await;
            assert_eq!(reason(&outcome), Some("deadline_exceeded"));
        }
    }
    assert_eq!((circuit.state(), calls.load(Ordering::SeqCst)), (State::Closed, 0));
}

/// A limit that the user specifies takes the place of the attempt's.
///
/// Shows: F2, B6
#[tokio::test(start_paused = true)]
async fn the_time_that_the_service_must_have_had_can_be_named() {
    for (time, state) in [(999 * MILLIS, State::Closed), (SECOND, State::Open)] {
        let calls = Arc::default();
        let layer = CircuitBreakerLayer::failure_rate(0.5).min_calls(2).cancelled(Cancelled::After(SECOND));
        let circuit = layer.handle();
        let service = ServiceBuilder::new().layer(layer).layer(ConcurrencyLimitLayer::new(1)).service(sleeper(&calls));
        // Half a second is spent in the queue, behind the first call.
        let first = service.clone().oneshot(SECOND / 2);
        let second = TimeoutLayer::new(SECOND / 2 + time).layer(service).oneshot(Duration::MAX);
        let (first, second) = tokio::join!(first, second);
        assert_eq!((reason(&first), reason(&second)), (None, Some("timed_out")));
        assert_eq!(circuit.state(), state, "after {time:?}");
    }
}

/// Time in the local queue does not make a call slow.
#[tokio::test(start_paused = true)]
async fn a_call_that_waited_in_the_queue_is_not_slow_for_that() {
    let calls = Arc::default();
    let layer = CircuitBreakerLayer::consecutive(1).min_calls(1).slow_calls(SECOND, 0.1);
    let circuit = layer.handle();
    let service = ServiceBuilder::new().layer(layer).layer(ConcurrencyLimitLayer::new(1)).service(sleeper(&calls));
    let outcomes = join_all((0..5).map(|_| service.clone().oneshot(SECOND))).await;
    assert!(outcomes.iter().all(Result::is_ok));
    assert_eq!(circuit.state(), State::Closed);
    service.oneshot(SECOND + MILLIS).await.unwrap();
    assert_eq!(circuit.state(), State::Open);
}

/// Is never ready.
#[derive(Clone)]
struct NeverReady;

impl Service<()> for NeverReady {
    type Response = ();
    type Error = Failed;
    type Future = std::future::Ready<Result<(), Failed>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Failed>> {
        Poll::Pending
    }

    fn call(&mut self, (): ()) -> Self::Future {
        unreachable!("it was not ready")
    }
}

/// Shows: F2, G4
#[tokio::test(start_paused = true)]
async fn a_service_that_hangs_before_it_is_ready_is_bounded_timed_and_judged() {
    let settings = ClientSettings::default().max_waiting(50);
    let layer = ClientStack::new("test").settings(settings).without_retry();
    let (circuit, gate) = (layer.circuit(), layer.gate());
    let stack = layer.layer(NeverReady);
    let start = Instant::now();
    let calls: Vec<_> = (0..70).map(|_| begun(stack.clone().oneshot(()))).collect();
    for _ in 0..930 {
        assert_eq!(reason(&stack.clone().oneshot(()).await), Some("overloaded"));
    }
    assert_eq!((gate.in_flight(), gate.waiting()), (20, 50));
    let outcomes = join_all(calls).await;
    assert_eq!(start.elapsed(), 10 * SECOND);
    assert_eq!(circuit.state(), State::Open);
    let count = |wanted| outcomes.iter().filter(|outcome| reason(outcome) == Some(wanted)).count();
    assert_eq!((count("timed_out"), count("circuit_open")), (20, 50));
}

/// Calls that wait in the queue of a limit when the circuit opens are not sent.
///
/// Shows: F2, B3
#[tokio::test(start_paused = true)]
async fn a_call_that_leaves_the_queue_while_the_circuit_is_open_is_rejected() {
    let calls = Arc::default();
    let layer = ClientStack::new("test").without_retry();
    let (circuit, gate) = (layer.circuit(), layer.gate());
    let stack = layer.layer(sleeper(&calls));
    let outcomes = join_all((0..75).map(|_| stack.clone().oneshot(Duration::MAX))).await;
    assert_eq!(circuit.state(), State::Open);
    assert_eq!(calls.load(Ordering::SeqCst), 20);
    let refused: Vec<_> = outcomes.iter().filter_map(ziggurat::rejection).filter(|it| it.is_circuit_open()).collect();
    assert_eq!(refused.len(), 55);
    assert!(refused.iter().all(|rejection| rejection.retry_after().is_some()));
    assert_eq!((gate.in_flight(), gate.waiting()), (0, 0));
}

/// If the circuit has closed again meanwhile, a queued call continues, and its outcome counts.
#[tokio::test(start_paused = true)]
async fn a_call_that_leaves_the_queue_after_the_circuit_has_closed_again_goes_on() {
    let calls = Arc::default();
    let layer = CircuitBreakerLayer::consecutive(2);
    let circuit = layer.handle();
    let service = ServiceBuilder::new().layer(layer).layer(ConcurrencyLimitLayer::new(1)).service(sleeper(&calls));
    let (first, second) = (begun(service.clone().oneshot(SECOND)), begun(service.clone().oneshot(SECOND)));
    circuit.force_open();
    circuit.close();
    first.await.unwrap();
    second.await.unwrap();
    assert_eq!(calls.load(Ordering::SeqCst), 2);
}

/// A call that is polled while it queues does not become a probe there, because it would wait behind others.
///
/// Shows: F2, B4
#[tokio::test(start_paused = true)]
async fn a_call_in_the_queue_becomes_no_probe() {
    let calls = Arc::default();
    let layer = CircuitBreakerLayer::consecutive(1).open_for(5 * SECOND);
    let circuit = layer.handle();
    let service =
        ServiceBuilder::new().layer(layer.clone()).layer(ConcurrencyLimitLayer::new(1)).service(sleeper(&calls));
    let _straggler = begun(service.clone().oneshot(Duration::MAX));
    let mut queued = begun(service.clone().oneshot(SECOND));
    open(&circuit, &layer).await;
    advance(5 * SECOND).await;
    let Poll::Ready(outcome) = queued.as_mut().poll(&mut Context::from_waker(Waker::noop())) else {
        panic!("it still waits")
    };
    assert_eq!(reason(&outcome), Some("circuit_open"));
    assert_eq!(circuit.state(), State::Open, "the next call is the probe");
}

/// A probe is admitted before all waiting calls, even if the queue is full.
///
/// Shows: F2, B4
#[tokio::test(start_paused = true)]
async fn a_probe_waits_behind_nobody() {
    let calls = Arc::default();
    let layer = CircuitBreakerLayer::consecutive(1).open_for(5 * SECOND);
    let circuit = layer.handle();
    let limit = ConcurrencyLimitLayer::new(1).max_waiting(3);
    let gate = limit.handle();
    let limited = limit.layer(sleeper(&calls));
    let service = layer.layer(limited.clone());

    // It holds the only permit, and calls of another stack over the same limit wait behind it.
    let straggler = begun(service.clone().oneshot(6 * SECOND));
    let _others: Vec<_> = (0..3).map(|_| begun(limited.clone().oneshot(Duration::MAX))).collect();
    circuit.force_open();
    circuit.close();
    open(&circuit, &layer).await;
    advance(5 * SECOND).await;

    let probe = begun(service.clone().oneshot(SECOND));
    assert_eq!((circuit.state(), gate.waiting()), (State::HalfOpen, 4));
    straggler.await.unwrap();
    let start = Instant::now();
    probe.await.unwrap();
    assert_eq!((start.elapsed(), circuit.state()), (SECOND, State::Closed));
}

/// Opens the circuit with a failure, as a call to another service of the layer.
async fn open(circuit: &ziggurat::circuit_breaker::CircuitBreakerHandle, layer: &CircuitBreakerLayer) {
    let failing = layer.layer(service_fn(|()| async { Err::<(), Failed>(Error::Service("down")) }));
    failing.oneshot(()).await.unwrap_err();
    assert_eq!(circuit.state(), State::Open);
}

/// A breaker that rejects a call releases whatever an inner layer has reserved or queued for it.
///
/// Shows: F2, B3
#[tokio::test(start_paused = true)]
async fn a_breaker_that_rejects_keeps_nothing_that_its_service_reserved() {
    let layer = CircuitBreakerLayer::consecutive(1).open_for(5 * SECOND);
    let circuit = layer.handle();
    let inner = service_fn(|works: bool| async move { if works { Ok(()) } else { Err(Error::Service("down")) } });
    let service = ServiceBuilder::new().layer(layer).layer(TowersLimit::new(1)).service(inner);
    let (mut a, mut b) = (service.clone(), service.clone());
    let mut cx = Context::from_waker(Waker::noop());
    a.ready().await.unwrap();
    // It waits for the only permit, and has a place in the queue.
    assert!(b.poll_ready(&mut cx).is_pending());
    a.call(false).await.unwrap_err();
    assert_eq!(circuit.state(), State::Open);
    // It is ready to be rejected.
    assert!(b.poll_ready(&mut cx).is_ready());
    assert!(ziggurat::rejection(&b.call(true).await).is_some_and(Rejection::is_circuit_open));
    circuit.close();
    // While `b` is idle.
    assert!(a.poll_ready(&mut cx).is_ready());
    a.call(true).await.unwrap();

    // The same holds if the circuit opens again after a service was made ready.
    let mut b = service.clone();
    assert!(b.poll_ready(&mut cx).is_ready());
    circuit.force_open();
    assert!(ziggurat::rejection(&b.call(true).await).is_some_and(Rejection::is_circuit_open));
    circuit.close();
    assert!(a.poll_ready(&mut cx).is_ready());
}

/// A panic is a bug in this program, and no verdict on the service, not even for a probe.
///
/// Shows: F2
#[tokio::test(start_paused = true)]
async fn a_panic_of_a_call_is_neutral() {
    let layer = CircuitBreakerLayer::consecutive(1).open_for(5 * SECOND);
    let circuit = layer.handle();
    let service = layer.layer(service_fn(|panics: bool| async move {
        assert!(!panics, "on purpose");
        Ok::<_, Failed>(())
    }));
    let panic = async || {
        let call = Deadline::after(Duration::ZERO).within(service.clone().oneshot(true));
        AssertUnwindSafe(call).catch_unwind().await.unwrap_err();
    };
    for _ in 0..50 {
        panic().await;
    }
    assert_eq!(circuit.state(), State::Closed);
    open(&circuit, &layer).await;
    advance(5 * SECOND).await;
    panic().await;
    assert_eq!(circuit.state(), State::HalfOpen, "its place is free again");
    service.oneshot(false).await.unwrap();
    assert_eq!(circuit.state(), State::Closed);
}
