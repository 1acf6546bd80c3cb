//! The circuit breaker, on a paused clock. Unit tests in `layers/circuit_breaker` cover its decisions.

use std::{
    convert::Infallible,
    future::{Future, pending, poll_fn, ready},
    iter,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::pin,
    sync::{
        Arc, Barrier, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, Waker},
    thread,
    time::Duration,
};

use http::{Request, Response, header::RETRY_AFTER};
use tokio::time::{advance, sleep};
use tower::{Layer, Service, ServiceBuilder, ServiceExt, service_fn};
use ziggurat::{
    Backoff, Class, Error, HttpStatus, Jitter, LayerEvent, LayerInfo, Reason, Rejection,
    circuit_breaker::{Cancelled, CircuitBreakerHandle, CircuitBreakerLayer, State, Transition},
    concurrency_limit::ConcurrencyLimitLayer,
    retry::RetryLayer,
    testing::{Strict, TestTask},
    timeout::TimeoutLayer,
};

const SECOND: Duration = Duration::from_secs(1);

type Outcome = Result<&'static str, Error<&'static str>>;

const GOOD: Outcome = Ok("answer");
const BAD: Outcome = Err(Error::Service("unavailable"));

type Readiness = Poll<Result<(), Error<&'static str>>>;

/// Obeys each request, and counts the calls that reach it.
#[derive(Clone, Default)]
struct Backend {
    polls: Arc<AtomicUsize>,
    calls: Arc<AtomicUsize>,
    /// The results of `poll_ready`, first to last; after that it is ready.
    readiness: Arc<Mutex<Vec<Readiness>>>,
}

/// The outcome that a request asks for.
#[derive(Clone)]
enum Do {
    Answer(Outcome),
    Hang,
    PanicInCall,
    PanicInPoll,
}

impl From<Outcome> for Do {
    fn from(outcome: Outcome) -> Self {
        Self::Answer(outcome)
    }
}

impl Backend {
    fn seen(&self) -> (usize, usize) {
        (self.polls.load(Ordering::SeqCst), self.calls.load(Ordering::SeqCst))
    }
}

impl Service<Do> for Backend {
    type Response = &'static str;
    type Error = Error<&'static str>;
    type Future = std::pin::Pin<Box<dyn Future<Output = Outcome> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.polls.fetch_add(1, Ordering::SeqCst);
        self.readiness.lock().unwrap().pop().unwrap_or(Poll::Ready(Ok(())))
    }

    fn call(&mut self, request: Do) -> Self::Future {
        self.calls.fetch_add(1, Ordering::SeqCst);
        match request {
            Do::Answer(outcome) => Box::pin(ready(outcome)),
            Do::Hang => Box::pin(pending()),
            Do::PanicInCall => panic!("in call"),
            Do::PanicInPoll => Box::pin(async { panic!("in poll") }),
        }
    }
}

/// Opens at the first failure, for exactly five seconds.
fn fragile() -> CircuitBreakerLayer {
    CircuitBreakerLayer::consecutive(1).open_for(5 * SECOND)
}

/// A breaker over a strict backend, which is cloned with it and checks the contract of a service.
struct Setup<S> {
    backend: Backend,
    circuit: CircuitBreakerHandle,
    service: S,
}

fn setup(
    layer: &CircuitBreakerLayer,
) -> Setup<impl Service<Do, Response = &'static str, Error = Error<&'static str>, Future: Send> + Clone + Send + use<>>
{
    let backend = Backend::default();
    Setup { service: layer.layer(Strict::new(backend.clone())), circuit: layer.handle(), backend }
}

async fn call<S, Req>(service: &mut S, request: impl Into<Req>) -> Result<S::Response, S::Error>
where
    S: Service<Req>,
{
    service.ready().await?.call(request.into()).await
}

fn refused(outcome: &Outcome) -> Option<&Rejection> {
    ziggurat::rejection(outcome).filter(|rejection| rejection.is_circuit_open())
}

/// Polls once, without a task.
fn poll_ready<S: Service<Do>>(service: &mut S) -> Poll<Result<(), S::Error>> {
    service.poll_ready(&mut Context::from_waker(Waker::noop()))
}

/// Shows: B1, B2, B3, B4
#[tokio::test(start_paused = true)]
async fn five_failures_in_a_row_open_a_minute_passes_and_a_success_closes() {
    let Setup { backend, circuit, mut service } =
        setup(&CircuitBreakerLayer::consecutive(5).open_for(60 * SECOND).named("payments"));
    for _ in 0..5 {
        assert_eq!(circuit.state(), State::Closed);
        assert!(matches!(call(&mut service, BAD).await, Err(Error::Service("unavailable"))));
    }
    assert_eq!((circuit.state(), backend.seen()), (State::Open, (5, 5)));

    advance(45 * SECOND + SECOND / 4).await;
    let outcome = call(&mut service, GOOD).await;
    let rejection = ziggurat::rejection(&outcome).unwrap();
    assert_eq!((rejection.layer(), rejection.name()), ("circuit_breaker", Some("payments")));
    assert_eq!(rejection.reason(), &Reason::CircuitOpen);
    assert_eq!(rejection.retry_after(), Some(14 * SECOND + 3 * SECOND / 4));
    assert_eq!(backend.seen(), (5, 5), "neither asked whether it is ready nor called");

    advance(15 * SECOND).await;
    assert_eq!(call(&mut service, GOOD).await.unwrap(), "answer");
    assert_eq!((circuit.state(), backend.seen()), (State::Closed, (6, 6)));
}

/// Shows: B1
#[tokio::test(start_paused = true)]
async fn half_of_twenty_calls_in_thirty_seconds_opens() {
    let Setup { circuit, mut service, .. } = setup(&CircuitBreakerLayer::failure_rate(0.5).min_calls(20));
    for _ in 0..100 {
        call(&mut service, GOOD).await.unwrap();
    }
    sleep(30 * SECOND).await; // those have left the window
    for _ in 0..10 {
        call(&mut service, GOOD).await.unwrap();
        sleep(SECOND).await;
    }
    for _ in 0..9 {
        call(&mut service, BAD).await.unwrap_err();
    }
    assert_eq!(circuit.state(), State::Closed);
    call(&mut service, BAD).await.unwrap_err();
    assert_eq!(circuit.state(), State::Open);
}

/// Shows: B1
#[tokio::test(start_paused = true)]
async fn a_rate_over_calls_failures_in_a_row_and_slow_calls_can_be_combined() {
    let layer = CircuitBreakerLayer::failure_rate(0.6).over_calls(10).consecutive_failures(4).slow_calls(SECOND, 0.5);

    let rate = setup(&layer.clone().min_calls(10));
    let (circuit, mut service) = (rate.circuit, rate.service);
    for outcome in [GOOD, BAD, BAD, GOOD, BAD, BAD, GOOD, BAD, GOOD] {
        let _ = call(&mut service, outcome).await;
        assert_eq!(circuit.state(), State::Closed);
    }
    let _ = call(&mut service, BAD).await;
    assert_eq!(circuit.state(), State::Open, "6 of 10");

    let row = setup(&layer.clone().over_calls(1000));
    let (circuit, mut service) = (row.circuit, row.service);
    for _ in 0..4 {
        assert_eq!(circuit.state(), State::Closed);
        let _ = call(&mut service, BAD).await;
    }
    assert_eq!(circuit.state(), State::Open, "4 in a row");

    let layer = layer.min_calls(2);
    let circuit = layer.handle();
    let mut sleeper = layer.layer(service_fn(|time: Duration| async move {
        sleep(time).await;
        GOOD
    }));
    for time in [SECOND, SECOND, 2 * SECOND] {
        assert_eq!(circuit.state(), State::Closed);
        call(&mut sleeper, time).await.unwrap();
    }
    assert_eq!(circuit.state(), State::Closed, "1 of 3 is slow");
    call(&mut sleeper, 2 * SECOND).await.unwrap();
    assert_eq!(circuit.state(), State::Open, "2 of 4 are slow");
}

/// Shows: B2
#[tokio::test(start_paused = true)]
async fn by_default_it_opens_for_a_twentieth_of_the_outage_between_half_a_second_and_five_with_jitter_that_only_adds() {
    let Setup { circuit, mut service, .. } = setup(&CircuitBreakerLayer::consecutive(1));
    let (mut waits, mut outage) = (Vec::new(), 0.0);
    for _ in 0..80 {
        call(&mut service, BAD).await.unwrap_err();
        let outcome = call(&mut service, GOOD).await;
        let wait = refused(&outcome).unwrap().retry_after().unwrap();
        // As if ten seconds had passed before it.
        let part = wait.as_secs_f64() / (outage + 10.0);
        assert!((0.5..=5.0).contains(&wait.as_secs_f64()), "{wait:?} after {outage} s");
        assert!((0.033..=0.08).contains(&part) || wait >= SECOND * 10 / 3, "{wait:?} after {outage} s");
        waits.push(part);
        advance(wait).await;
        outage += wait.as_secs_f64();
    }
    assert!(outage > 120.0, "it reaches the longest: {outage}");
    assert!(waits.iter().any(|part| (part - waits[0]).abs() > 1e-6), "{waits:?}");
    call(&mut service, GOOD).await.unwrap();
    assert_eq!(circuit.state(), State::Closed);
    call(&mut service, BAD).await.unwrap_err();
    let outcome = call(&mut service, GOOD).await;
    assert!(refused(&outcome).unwrap().retry_after().unwrap() <= SECOND * 3 / 4, "the open time starts again");
}

/// Shows: B3
#[tokio::test(start_paused = true)]
async fn an_open_circuit_is_ready_while_its_service_is_not() {
    let Setup { backend, circuit, mut service } = setup(&fragile());
    call(&mut service, BAD).await.unwrap_err();
    *backend.readiness.lock().unwrap() = vec![Poll::Pending; 2];
    assert!(poll_ready(&mut service).is_ready());
    let outcome = service.call(GOOD.into()).await;
    assert_eq!(refused(&outcome).unwrap().retry_after(), Some(5 * SECOND));

    // After its open time it waits for the service again, as a closed circuit does, and can recover.
    advance(5 * SECOND).await;
    assert!(poll_ready(&mut service).is_pending());
    assert!(poll_ready(&mut service).is_pending());
    assert!(poll_ready(&mut service).is_ready());
    assert_eq!(circuit.state(), State::Open, "readiness decides nothing, and holds nothing");
    assert!(service.call(GOOD.into()).await.is_ok());
    assert_eq!(circuit.state(), State::Closed);
}

/// The strict backend would panic.
///
/// Shows: B3
#[tokio::test(start_paused = true)]
async fn a_call_that_was_promised_a_rejection_gets_one_though_the_circuit_half_opened() {
    let Setup { backend, circuit, mut service } = setup(&fragile());
    call(&mut service, BAD).await.unwrap_err();
    assert!(poll_ready(&mut service).is_ready());
    advance(6 * SECOND).await;
    let outcome = service.call(GOOD.into()).await;
    let rejection = refused(&outcome).unwrap();
    assert_eq!((rejection.retry_after(), rejection.to_string().contains("0ns")), (None, false), "{rejection}");
    assert!(poll_ready(&mut service).is_ready());
    circuit.close();
    assert!(service.call(GOOD.into()).await.is_ok(), "that one was made ready");
    assert_eq!(backend.seen(), (2, 2));

    // A clone does not inherit the promise.
    assert!(poll_ready(&mut service).is_ready());
    let outcome = service.clone().call(GOOD.into()).await;
    assert!(refused(&outcome).is_some());
}

/// A load balancer whose only endpoint went away is no longer ready.
///
/// Shows: B3
#[tokio::test(start_paused = true)]
async fn a_service_that_is_no_longer_ready_is_not_called() {
    let Setup { backend, circuit, mut service } = setup(&fragile());
    assert!(poll_ready(&mut service).is_ready());
    backend.readiness.lock().unwrap().push(Poll::Pending);
    assert!(poll_ready(&mut service).is_pending());
    circuit.force_open();
    assert!(poll_ready(&mut service).is_ready());
    circuit.close();
    let outcome = service.call(GOOD.into()).await;
    assert!(refused(&outcome).is_some());
}

/// Shows: B4, B5
#[tokio::test(start_paused = true)]
async fn a_service_that_is_ready_and_idle_holds_no_probes_place() {
    let Setup { circuit, mut service, .. } = setup(&fragile());
    call(&mut service, BAD).await.unwrap_err();
    advance(5 * SECOND).await;
    let mut idle = service.clone();
    assert!(poll_ready(&mut idle).is_ready());
    call(&mut service, GOOD).await.unwrap();
    assert_eq!(circuit.state(), State::Closed);
    assert!(idle.call(GOOD.into()).await.is_ok());
}

/// Shows: B4
#[tokio::test(start_paused = true)]
async fn half_open_lets_as_many_probes_through_as_it_is_told() {
    let Setup { backend, circuit, mut service } = setup(&fragile().probes(2).successes_to_close(2));
    call(&mut service, BAD).await.unwrap_err();
    advance(5 * SECOND).await;
    let mut first = TestTask::new(service.ready().await.unwrap().call(Do::Hang));
    assert!(first.poll().is_pending());
    call(&mut service, GOOD).await.unwrap();
    assert_eq!(circuit.state(), State::HalfOpen, "one success of two");
    advance(SECOND).await;
    let second = service.ready().await.unwrap().call(Do::Hang);
    let before = backend.seen();
    let outcome = call(&mut service, GOOD).await;
    assert_eq!(refused(&outcome).unwrap().retry_after(), Some(4 * SECOND), "then the first gives up its place");
    assert_eq!(backend.seen(), before);
    drop(second);
    call(&mut service, GOOD).await.unwrap();
    assert_eq!(circuit.state(), State::Closed);
}

/// Shows: B4, B5
#[tokio::test(start_paused = true)]
async fn an_error_of_poll_ready_counts() {
    let Setup { backend, circuit, mut service } = setup(&fragile());
    let dead = || Poll::Ready(Err(Error::Service("dead")));
    backend.readiness.lock().unwrap().push(dead());
    assert!(matches!(poll_ready(&mut service), Poll::Ready(Err(Error::Service("dead")))));
    assert_eq!(circuit.state(), State::Open);

    // In a half-open circuit it is a failed probe.
    advance(5 * SECOND).await;
    backend.readiness.lock().unwrap().push(dead());
    assert!(matches!(poll_ready(&mut service), Poll::Ready(Err(_))));
    assert_eq!(circuit.state(), State::Open);
    advance(5 * SECOND).await;
    call(&mut service, GOOD).await.unwrap();
    assert_eq!(circuit.state(), State::Closed);

    // A local limit says nothing about the service.
    let full = LayerInfo::new("limit").reject(Reason::Overloaded { limit: 1 });
    backend.readiness.lock().unwrap().push(Poll::Ready(Err(Error::Rejected(full))));
    assert!(matches!(poll_ready(&mut service), Poll::Ready(Err(_))));
    assert_eq!(circuit.state(), State::Closed);
}

/// Shows: B5
#[tokio::test(start_paused = true)]
async fn a_probe_that_is_dropped_or_panics_frees_its_place() {
    let Setup { circuit, mut service, .. } = setup(&fragile());
    call(&mut service, BAD).await.unwrap_err();
    advance(5 * SECOND).await;

    drop(service.ready().await.unwrap().call(Do::Hang));
    let mut polled = TestTask::new(service.ready().await.unwrap().call(Do::Hang));
    assert!(polled.poll().is_pending());
    drop(polled);

    service.ready().await.unwrap();
    assert!(catch_unwind(AssertUnwindSafe(|| service.call(Do::PanicInCall))).is_err());
    let mut panics = TestTask::new(service.ready().await.unwrap().call(Do::PanicInPoll));
    assert!(catch_unwind(AssertUnwindSafe(|| panics.poll())).is_err());
    drop(panics);

    assert_eq!(circuit.state(), State::HalfOpen);
    call(&mut service, GOOD).await.unwrap();
    assert_eq!(circuit.state(), State::Closed);
}

/// Shows: B5
#[tokio::test(start_paused = true)]
async fn a_classifier_that_panics_frees_the_place_too() {
    let judge = |outcome: Result<&&'static str, &Error<&'static str>>| match outcome {
        Ok(&"answer") => Class::Success,
        Ok(_) => panic!("in the classifier"),
        Err(_) => Class::TRANSIENT,
    };
    let layer = fragile().classify(judge);
    let (circuit, mut service) = (layer.handle(), layer.layer(Backend::default()));
    call(&mut service, BAD).await.unwrap_err();
    advance(5 * SECOND).await;
    let mut odd = TestTask::new(service.ready().await.unwrap().call(Do::Answer(Ok("odd"))));
    assert!(catch_unwind(AssertUnwindSafe(|| odd.poll())).is_err());
    drop(odd);
    assert_eq!(circuit.state(), State::HalfOpen);
    call(&mut service, GOOD).await.unwrap();
    assert_eq!(circuit.state(), State::Closed);
}

/// Shows: B5
#[tokio::test(start_paused = true)]
async fn a_probe_that_never_ends_gives_up_its_place_and_changes_nothing_later() {
    let (send, receive) = tokio::sync::oneshot::channel::<Outcome>();
    let receive = Arc::new(Mutex::new(Some(receive)));
    let layer = fragile();
    let circuit = layer.handle();
    let mut service = layer.layer(service_fn(move |request: Do| {
        let receive = matches!(request, Do::Hang).then(|| receive.lock().unwrap().take().unwrap());
        async move {
            match (request, receive) {
                (Do::Answer(outcome), _) => outcome,
                (_, Some(receive)) => receive.await.unwrap(),
                _ => unreachable!(),
            }
        }
    }));
    call(&mut service, BAD).await.unwrap_err();
    advance(5 * SECOND).await;
    let mut hung = TestTask::new(service.ready().await.unwrap().call(Do::Hang));
    assert!(hung.poll().is_pending());
    advance(4 * SECOND).await;
    let outcome = call(&mut service, GOOD).await;
    assert_eq!(refused(&outcome).unwrap().retry_after(), Some(SECOND));
    advance(SECOND).await;
    call(&mut service, GOOD).await.unwrap();
    assert_eq!(circuit.state(), State::Closed);

    send.send(BAD).unwrap();
    assert!(hung.poll().is_ready());
    assert_eq!(circuit.state(), State::Closed);
}

/// In an existing breaker, each of these cases decided the state of a circuit.
///
/// Shows: B5
#[tokio::test(start_paused = true)]
async fn a_late_result_of_an_old_call_decides_nothing() {
    let layer = fragile();
    let circuit = layer.handle();
    // Responds on demand.
    let mut service =
        layer.layer(service_fn(|answer: tokio::sync::oneshot::Receiver<Outcome>| async { answer.await.unwrap() }));
    let mut start = async || {
        let (answer, answered) = tokio::sync::oneshot::channel();
        let mut task = TestTask::new(service.ready().await.unwrap().call(answered));
        assert!(task.poll().is_pending());
        (answer, task)
    };
    let (first, mut first_task) = start().await;
    let (second, mut second_task) = start().await;
    let (third, mut third_task) = start().await;
    let (fourth, mut fourth_task) = start().await;
    first.send(BAD).unwrap();
    assert!(first_task.poll().is_ready());
    assert_eq!(circuit.state(), State::Open);

    advance(5 * SECOND).await;
    let (probe, mut probe_task) = start().await;
    second.send(GOOD).unwrap();
    assert!(second_task.poll().is_ready());
    assert_eq!(circuit.state(), State::HalfOpen, "an old success does not close it");
    third.send(BAD).unwrap();
    assert!(third_task.poll().is_ready());
    assert_eq!(circuit.state(), State::HalfOpen, "an old failure does not open it");
    probe.send(GOOD).unwrap();
    assert!(probe_task.poll().is_ready());
    assert_eq!(circuit.state(), State::Closed);
    fourth.send(BAD).unwrap();
    assert!(fourth_task.poll().is_ready());
    assert_eq!(circuit.state(), State::Closed, "nor is it counted afterwards");
}

/// Shows: B6
#[tokio::test(start_paused = true)]
async fn a_backend_that_hangs_behind_an_outer_timeout_opens_the_circuit() {
    let backend = Backend::default();
    let layer = CircuitBreakerLayer::consecutive(3).open_for(5 * SECOND);
    let circuit = layer.handle();
    let mut service =
        ServiceBuilder::new().layer(TimeoutLayer::new(SECOND)).layer(layer).service(Strict::new(backend.clone()));
    for _ in 0..3 {
        assert_eq!(circuit.state(), State::Closed);
        let outcome = call(&mut service, Do::Hang).await;
        assert!(ziggurat::rejection(&outcome).unwrap().is_timed_out());
    }
    assert_eq!(circuit.state(), State::Open);

    // Hanging probes open it again, after as many in a row.
    advance(5 * SECOND).await;
    for _ in 0..3 {
        let outcome = call(&mut service, Do::Hang).await;
        assert!(ziggurat::rejection(&outcome).unwrap().is_timed_out());
    }
    assert_eq!(circuit.state(), State::Open);
    let outcome = call(&mut service, GOOD).await;
    assert_eq!(refused(&outcome).unwrap().retry_after(), Some(5 * SECOND));
    assert_eq!(backend.seen().1, 6);
}

/// Shows: B6
#[tokio::test(start_paused = true)]
async fn a_client_that_hangs_up_says_nothing_about_the_service() {
    let layer = fragile();
    let circuit = layer.handle();
    let mut service =
        ServiceBuilder::new().layer(TimeoutLayer::new(10 * SECOND)).layer(layer).service(Backend::default());
    let mut hang_up = async || {
        let mut response = TestTask::new(service.ready().await.unwrap().call(Do::Hang));
        assert!(response.poll().is_pending());
        advance(SECOND).await;
        assert!(response.poll().is_pending());
    };
    hang_up().await;
    assert_eq!(circuit.state(), State::Closed);

    // Not as a probe either.
    circuit.force_open();
    circuit.close();
    call(&mut service, BAD).await.unwrap_err();
    advance(5 * SECOND).await;
    let mut response = TestTask::new(service.ready().await.unwrap().call(Do::Hang));
    assert!(response.poll().is_pending());
    drop(response);
    assert_eq!(circuit.state(), State::HalfOpen);
    call(&mut service, GOOD).await.unwrap();
    assert_eq!(circuit.state(), State::Closed);
}

/// Shows: B6
#[tokio::test(start_paused = true)]
async fn cancelled_calls_can_count_always_or_never() {
    for (cancelled, by_client, by_deadline) in [
        (Cancelled::ByDeadline, State::Closed, State::Open),
        (Cancelled::Failure, State::Open, State::Open),
        (Cancelled::Ignored, State::Closed, State::Closed),
    ] {
        let Setup { circuit, mut service, .. } = setup(&fragile().cancelled(cancelled));
        let mut response = TestTask::new(service.ready().await.unwrap().call(Do::Hang));
        assert!(response.poll().is_pending());
        drop(response);
        assert_eq!(circuit.state(), by_client, "{cancelled:?}");

        circuit.close();
        let mut limited = TimeoutLayer::new(SECOND).layer(service);
        call(&mut limited, Do::Hang).await.unwrap_err();
        assert_eq!(circuit.state(), by_deadline, "{cancelled:?}");
    }
}

/// Shows: B6
#[tokio::test(start_paused = true)]
async fn an_attempt_that_timed_out_inside_is_a_failure_and_a_local_overload_is_not() {
    let layer = fragile();
    let circuit = layer.handle();
    let mut service = ServiceBuilder::new().layer(layer).layer(TimeoutLayer::new(SECOND)).service(Backend::default());
    let full = LayerInfo::new("limit").reject(Reason::Overloaded { limit: 1 });
    call(&mut service, Do::Answer(Err(Error::Rejected(full)))).await.unwrap_err();
    assert_eq!(circuit.state(), State::Closed);
    call(&mut service, Do::Hang).await.unwrap_err();
    assert_eq!(circuit.state(), State::Open);
}

/// The clean-up of a call belongs to the call.
#[tokio::test(start_paused = true)]
async fn the_outcome_counts_when_the_call_is_cleaned_up_and_before_its_caller_has_it() {
    struct CleanUp(CircuitBreakerHandle, Arc<Mutex<Vec<State>>>);
    impl Drop for CleanUp {
        fn drop(&mut self) {
            self.1.lock().unwrap().push(self.0.state());
        }
    }
    /// Returns a response that still holds a value.
    struct Holding(#[allow(dead_code, reason = "held")] CleanUp);
    impl Future for Holding {
        type Output = Outcome;
        fn poll(self: std::pin::Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Outcome> {
            Poll::Ready(BAD)
        }
    }
    let layer = fragile();
    let circuit = layer.handle();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let service = layer.layer(service_fn(|()| Holding(CleanUp(circuit.clone(), Arc::clone(&seen)))));
    service.oneshot(()).await.unwrap_err();
    seen.lock().unwrap().push(circuit.state());
    assert_eq!(*seen.lock().unwrap(), [State::Closed, State::Open]);
}

/// Shows: B7
#[tokio::test(start_paused = true)]
async fn all_services_of_a_layer_share_one_circuit_and_two_layers_share_nothing() {
    let layer = fragile();
    let mut one = layer.layer(Backend::default());
    let mut clone = one.clone();
    let mut other = layer.clone().layer(Backend::default());
    let mut foreign = fragile().layer(Backend::default());
    call(&mut one, BAD).await.unwrap_err();
    for service in [&mut one, &mut clone, &mut other] {
        assert!(refused(&call(service, GOOD).await).is_some());
    }
    assert!(call(&mut foreign, GOOD).await.is_ok());
    // A setter begins a new circuit.
    let mut named = layer.named("new").layer(Backend::default());
    assert!(call(&mut named, GOOD).await.is_ok());
}

/// Shows: B7
#[tokio::test(start_paused = true)]
async fn a_handle_opens_and_closes_by_hand() {
    let Setup { backend, circuit, mut service } = setup(&fragile());
    circuit.force_open();
    advance(1_000_000 * SECOND).await;
    let outcome = call(&mut service, GOOD).await;
    assert_eq!(
        refused(&outcome).unwrap().retry_after(),
        Some(5 * SECOND),
        "the end is unknown, so it is the first open time"
    );
    assert_eq!(backend.seen(), (0, 0));
    circuit.close();
    assert!(call(&mut service, GOOD).await.is_ok());
}

/// Shows: B7
#[tokio::test(start_paused = true)]
async fn transitions_can_be_subscribed_to() {
    let Setup { circuit, mut service, backend } = setup(&fragile());
    call(&mut service, BAD).await.unwrap_err();
    let mut transitions = circuit.subscribe();
    advance(5 * SECOND).await;
    let watcher = tokio::spawn(async move {
        let mut seen = Vec::new();
        while let Some(transition) = transitions.next().await {
            seen.push((transition.from, transition.to));
        }
        seen
    });
    call(&mut service, GOOD).await.unwrap();
    circuit.force_open();
    circuit.force_open();
    circuit.close();
    circuit.close();
    drop((circuit, service, backend));
    use State::{Closed, HalfOpen, Open};
    let seen = watcher.await.unwrap();
    assert_eq!(seen, [(Open, HalfOpen), (HalfOpen, Closed), (Closed, Open), (Open, Closed)], "only later transitions");
}

/// Shows: B7
#[tokio::test(start_paused = true)]
async fn a_subscriber_that_is_too_slow_loses_the_oldest() {
    let circuit = fragile().handle();
    let mut transitions = circuit.subscribe();
    for _ in 0..100 {
        circuit.force_open();
        circuit.close();
    }
    circuit.force_open();
    drop(circuit);
    let mut last = None;
    let mut heard = 0;
    while let Some(transition) = transitions.next().await {
        last = Some(transition.to);
        heard += 1;
    }
    assert_eq!((heard, last), (64, Some(State::Open)));
}

/// Shows: B7
#[tokio::test(start_paused = true)]
async fn an_observer_hears_of_failures_rejections_and_transitions_in_order() {
    let heard = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&heard);
    let layer = fragile().named("payments").observer(move |info: &LayerInfo, event: &LayerEvent<'_>| {
        assert_eq!((info.layer(), info.name()), ("circuit_breaker", Some("payments")));
        log.lock().unwrap().push(match event {
            LayerEvent::Failed => "failed".to_owned(),
            LayerEvent::Rejected(rejection) => rejection.to_string(),
            LayerEvent::Transition { from, to } => format!("{from} -> {to}"),
            _ => unreachable!(),
        });
    });
    let mut service = layer.layer(Backend::default());
    call(&mut service, BAD).await.unwrap_err();
    call(&mut service, GOOD).await.unwrap_err();
    advance(5 * SECOND).await;
    let mut probe = TestTask::new(service.ready().await.unwrap().call(Do::Hang));
    assert!(probe.poll().is_pending());
    assert_eq!(heard.lock().unwrap().last().unwrap(), "open -> half_open", "at once");
    drop(probe);
    call(&mut service, GOOD).await.unwrap();
    let expected = [
        "failed",
        "closed -> open",
        "circuit_breaker `payments`: the circuit is open; try again in 5s",
        "open -> half_open",
        "half_open -> closed",
    ];
    assert_eq!(*heard.lock().unwrap(), expected);
}

/// Events are emitted without holding a lock.
///
/// Shows: B7
#[tokio::test(start_paused = true)]
async fn an_observer_may_turn_the_circuit_itself_or_panic() {
    let handle: Arc<Mutex<Option<CircuitBreakerHandle>>> = Arc::default();
    let (own, panics) = (Arc::clone(&handle), AtomicUsize::new(0));
    let layer = fragile().observer(move |_: &LayerInfo, event: &LayerEvent<'_>| {
        if let LayerEvent::Transition { to: "open", .. } = event {
            let circuit = own.lock().unwrap().clone().unwrap();
            circuit.close();
            assert!(panics.fetch_add(1, Ordering::SeqCst) != 1, "the second time");
        }
    });
    let circuit = layer.handle();
    *handle.lock().unwrap() = Some(circuit.clone());
    let mut transitions = circuit.subscribe();
    let mut service = layer.layer(Backend::default());
    call(&mut service, BAD).await.unwrap_err();
    assert_eq!(circuit.state(), State::Closed);
    for to in [State::Open, State::Closed] {
        assert_eq!(transitions.next().await.unwrap().to, to);
    }
    let mut response = TestTask::new(service.ready().await.unwrap().call(BAD.into()));
    assert!(catch_unwind(AssertUnwindSafe(|| response.poll())).is_err());
    drop(response);
    // Nothing is wedged: the next event is emitted again.
    call(&mut service, BAD).await.unwrap_err();
    assert_eq!(circuit.state(), State::Closed);
    assert!(call(&mut service, GOOD).await.is_ok());
}

/// Shows: B7
#[test]
fn transitions_of_many_threads_are_told_in_order() {
    let seen = Arc::new(Mutex::new(vec!["closed"]));
    let log = Arc::clone(&seen);
    let circuit = fragile()
        .observer(move |_: &LayerInfo, event: &LayerEvent<'_>| {
            let LayerEvent::Transition { from, to } = *event else { return };
            let mut log = log.lock().unwrap();
            assert_eq!(log.last(), Some(&from));
            log.push(to);
        })
        .handle();
    let barrier = Barrier::new(4);
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                barrier.wait();
                for _ in 0..500 {
                    circuit.force_open();
                    circuit.close();
                }
            });
        }
    });
    assert_eq!(seen.lock().unwrap().last(), Some(&circuit.state().as_str()), "none was left untold");
}

/// Shows: B1, B3
#[tokio::test(start_paused = true)]
async fn an_infallible_http_service_is_judged_by_its_status_and_answered_with_one() {
    let layer = CircuitBreakerLayer::http().over_calls(4).open_for(SECOND * 3 / 2);
    let circuit = layer.handle();
    let mut service = layer.layer(service_fn(|request: Request<u16>| {
        let response = Response::builder().status(*request.body()).body(String::new()).unwrap();
        ready(Ok::<_, Infallible>(response))
    }));
    for status in [404, 200, 500, 503] {
        assert_eq!(circuit.state(), State::Closed);
        assert_eq!(call(&mut service, Request::new(status)).await.unwrap().status(), status);
    }
    assert_eq!(circuit.state(), State::Open);
    let outcome = call(&mut service, Request::new(200)).await;
    assert!(ziggurat::rejection(&outcome).unwrap().is_circuit_open());
    let response = outcome.unwrap();
    assert_eq!(response.status(), 503);
    assert_eq!(response.headers()[RETRY_AFTER], "2");
}

/// Returns an HTTP service that responds with the requested status and `Retry-After`.
fn echoing(
    circuit_breaker: CircuitBreakerLayer<HttpStatus>,
) -> impl Service<Request<(u16, u32)>, Response = Response<String>, Error = Infallible> + Clone {
    circuit_breaker.layer(service_fn(|request: Request<(u16, u32)>| {
        let (status, retry_after) = *request.body();
        let response = Response::builder().status(status).header(RETRY_AFTER, retry_after);
        ready(Ok::<_, Infallible>(response.body(String::new()).unwrap()))
    }))
}

/// One tenant that calls too often must not shut out all others, nor keep them out for longer.
///
/// Shows: F2
#[tokio::test(start_paused = true)]
async fn what_the_service_declines_is_not_held_against_it() {
    let layer = CircuitBreakerLayer::consecutive(3).classify(HttpStatus).open_for(SECOND);
    let circuit = layer.handle();
    let mut service = echoing(layer);
    for status in [429, 408, 503, 503, 429, 429] {
        assert_eq!(call(&mut service, Request::new((status, 60))).await.unwrap().status(), status);
        assert_eq!(circuit.state(), State::Closed);
    }
    // It does not break a streak of failures, does not count as one, and does not extend the open time.
    call(&mut service, Request::new((503, 0))).await.unwrap();
    assert_eq!(circuit.state(), State::Open);
    advance(SECOND).await;
    assert_eq!(call(&mut service, Request::new((429, 60))).await.unwrap().status(), 429);
    assert_eq!(circuit.state(), State::HalfOpen, "a probe that was declined says nothing");
    call(&mut service, Request::new((200, 0))).await.unwrap();
    assert_eq!(circuit.state(), State::Closed);
}

/// Shows: F3
#[tokio::test(start_paused = true)]
async fn a_circuit_stays_open_as_long_as_the_503_that_opened_it_asks_for() {
    let open_for = Backoff::exponential(SECOND).max(60 * SECOND).jitter(Jitter::Equal);
    for (asked, open) in [(20, 20), (60, 60), (100, 100), (3600, 300)] {
        let mut service = echoing(CircuitBreakerLayer::consecutive(1).classify(HttpStatus).open_for(open_for));
        call(&mut service, Request::new((503, asked))).await.unwrap();
        let rejected = call(&mut service, Request::new((200, 0))).await;
        assert_eq!(ziggurat::rejection(&rejected).unwrap().retry_after(), Some(open * SECOND));
        advance(open * SECOND - Duration::from_millis(1)).await;
        assert_eq!(call(&mut service, Request::new((200, 0))).await.unwrap().status(), 503);
        advance(Duration::from_millis(1)).await;
        assert_eq!(call(&mut service, Request::new((200, 0))).await.unwrap().status(), 200);
    }
}

/// Shows: B2
#[tokio::test(start_paused = true)]
async fn open_times_at_the_edge_do_no_harm() {
    for (open_for, retry_after) in [
        (Backoff::from(Duration::ZERO), SECOND / 1000),
        (Backoff::from(Duration::MAX), Duration::MAX),
        (Backoff::exponential(Duration::MAX).jitter(Jitter::None), Duration::MAX),
    ] {
        let Setup { circuit, mut service, .. } = setup(&fragile().open_for(open_for));
        call(&mut service, BAD).await.unwrap_err();
        let outcome = call(&mut service, GOOD).await;
        assert_eq!(refused(&outcome).unwrap().retry_after(), Some(retry_after));
        circuit.close();
        call(&mut service, GOOD).await.unwrap();
    }
}

/// The layer can be created outside a runtime.
#[test]
fn it_is_made_outside_of_a_runtime() {
    #[derive(Clone)]
    struct Plain;
    impl Service<()> for Plain {
        type Response = ();
        type Error = Error<()>;
        type Future = std::future::Ready<Result<(), Error<()>>>;
        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Error<()>>> {
            Poll::Ready(Ok(()))
        }
        fn call(&mut self, (): ()) -> Self::Future {
            ready(Ok(()))
        }
    }
    fn lasting<T: Send + Sync + 'static>(value: T) -> T {
        value
    }
    let mut service = lasting(CircuitBreakerLayer::failure_rate(0.5).layer(Plain));
    let mut context = Context::from_waker(Waker::noop());
    assert!(pin!(poll_fn(|cx| service.poll_ready(cx))).poll(&mut context).is_ready());
    assert!(pin!(lasting(service.call(()))).poll(&mut context).is_ready());
}

#[test]
fn bad_input_is_refused_with_its_name() {
    let layer = || CircuitBreakerLayer::failure_rate(0.5);
    let with = |make: &dyn Fn() -> CircuitBreakerLayer| {
        let panic = catch_unwind(AssertUnwindSafe(make)).unwrap_err();
        panic
            .downcast::<String>()
            .map(|said| *said)
            .or_else(|panic| panic.downcast::<&str>().map(|said| said.to_string()))
            .unwrap()
    };
    for (make, said) in [
        (&(|| CircuitBreakerLayer::failure_rate(0.0)) as &dyn Fn() -> _, "rate must be above 0 and at most 1, not 0"),
        (&|| CircuitBreakerLayer::failure_rate(-0.5), "rate must be above 0 and at most 1, not -0.5"),
        (&|| CircuitBreakerLayer::failure_rate(1.5), "rate must be above 0 and at most 1, not 1.5"),
        (&|| CircuitBreakerLayer::failure_rate(f64::NAN), "rate must be above 0 and at most 1, not NaN"),
        (&|| CircuitBreakerLayer::failure_rate(f64::INFINITY), "rate must be above 0 and at most 1, not inf"),
        (&|| CircuitBreakerLayer::consecutive(0), "failures must be at least 1, not 0"),
        (&|| layer().consecutive_failures(0), "failures must be at least 1, not 0"),
        (&|| layer().over(Duration::ZERO), "window must be longer than zero"),
        (&|| layer().over_calls(0), "calls must be at least 1, not 0"),
        (&|| layer().min_calls(0), "calls must be at least 1, not 0"),
        (&|| layer().slow_calls(SECOND, 0.0), "rate must be above 0 and at most 1, not 0"),
        (&|| layer().slow_calls(SECOND, f64::NAN), "rate must be above 0 and at most 1, not NaN"),
        (&|| layer().probes(0), "probes must be at least 1, not 0"),
        (&|| layer().successes_to_close(0), "successes must be at least 1, not 0"),
    ] {
        assert_eq!(with(make), said);
    }
}

/// Every accepted setting works.
#[tokio::test(start_paused = true)]
async fn extreme_settings_work() {
    let most = || CircuitBreakerLayer::failure_rate(1.0);
    for layer in [
        most().over(Duration::from_nanos(1)),
        most().over(Duration::MAX),
        most().over_calls(u32::MAX).consecutive_failures(u32::MAX),
        most().over_calls(1),
        most().min_calls(u32::MAX),
        most().slow_calls(Duration::ZERO, f64::MIN_POSITIVE).probes(usize::MAX).successes_to_close(u32::MAX),
        most().slow_calls(Duration::MAX, 1.0),
    ] {
        let Setup { circuit, mut service, .. } = setup(&layer);
        for outcome in [GOOD, BAD, GOOD] {
            let _ = call(&mut service, outcome).await;
            advance(SECOND).await;
        }
        circuit.close();
        assert!(call(&mut service, GOOD).await.is_ok());
        assert_eq!(circuit.state(), State::Closed);
    }
}

/// A call that waits for a permit inside the breaker has not reached the service, so a total that ends the wait says
/// nothing about it.
///
/// Shows: B6
#[tokio::test(start_paused = true)]
async fn a_call_that_runs_out_of_time_in_the_queue_of_a_limit_does_not_count() {
    use ziggurat::{concurrency_limit::ConcurrencyLimitLayer, retry::RetryLayer};
    let breaker = CircuitBreakerLayer::consecutive(1);
    let circuit = breaker.handle();
    let limit = ConcurrencyLimitLayer::new(1);
    let gate = limit.handle();
    let stack = ServiceBuilder::new()
        .layer(TimeoutLayer::new(Duration::from_secs(1)))
        .layer(RetryLayer::new())
        .layer(breaker)
        .layer(limit.clone())
        .service(service_fn(|()| std::future::pending::<Result<(), Error<String>>>()));
    let mut elsewhere = ServiceBuilder::new()
        .layer(limit)
        .service(service_fn(|()| std::future::pending::<Result<(), Error<String>>>()));
    let held = elsewhere.ready().await.unwrap().call(());
    assert!(ziggurat::rejection(&stack.clone().oneshot(()).await).unwrap().is_timed_out());
    assert_eq!((circuit.state(), gate.waiting()), (State::Closed, 0));
    // With a permit the same call counts against the service.
    drop(held);
    assert!(ziggurat::rejection(&stack.oneshot(()).await).unwrap().is_timed_out());
    assert_eq!(circuit.state(), State::Open);
}

/// Shows: B6
#[tokio::test(start_paused = true)]
async fn a_hung_call_that_is_dropped_from_outside_after_its_deadline_is_a_failure() {
    for (late, state) in [(Duration::from_millis(900), State::Closed), (Duration::from_millis(1100), State::Open)] {
        let breaker = CircuitBreakerLayer::consecutive(1);
        let circuit = breaker.handle();
        let service = ServiceBuilder::new()
            .layer(TimeoutLayer::new(Duration::from_secs(1)))
            .layer(breaker)
            .service(service_fn(|()| std::future::pending::<Result<(), Error<String>>>()));
        let mut call = TestTask::new(service.oneshot(()));
        assert!(call.poll().is_pending());
        tokio::time::advance(late).await;
        drop(call);
        assert_eq!(circuit.state(), state);
    }
}

/// Shows: B5
#[tokio::test(start_paused = true)]
async fn a_probe_whose_observer_panics_gives_its_place_back() {
    let panics = std::sync::atomic::AtomicBool::new(true);
    let layer = CircuitBreakerLayer::consecutive(1).open_for(10 * SECOND).observer(
        move |_: &LayerInfo, event: &LayerEvent<'_>| {
            let half_open = matches!(event, LayerEvent::Transition { to: "half_open", .. });
            assert!(!half_open || !panics.swap(false, Ordering::SeqCst));
        },
    );
    let mut service = ServiceBuilder::new()
        .layer(layer)
        .map_err(Error::Service)
        .service(service_fn(|works: bool| async move { if works { Ok(()) } else { Err("broken") } }));
    service.ready().await.unwrap().call(false).await.unwrap_err();
    advance(10 * SECOND).await;
    let probe = service.clone();
    assert!(tokio::spawn(probe.oneshot(true)).await.unwrap_err().is_panic());
    service.ready().await.unwrap().call(true).await.unwrap();
}

/// An observer that panics on the news of a failure affects neither the count nor the probe's place.
///
/// Shows: B5
#[tokio::test(start_paused = true)]
async fn a_failure_counts_also_if_who_is_told_of_it_panics() {
    let layer =
        CircuitBreakerLayer::consecutive(1).open_for(10 * SECOND).observer(|_: &LayerInfo, event: &LayerEvent<'_>| {
            assert!(!matches!(event, LayerEvent::Failed), "a failure was reported")
        });
    let circuit = layer.handle();
    let mut service = layer.layer(Backend::default());
    for _ in 0..2 {
        let mut call = TestTask::new(service.ready().await.unwrap().call(BAD.into()));
        assert!(catch_unwind(AssertUnwindSafe(|| call.poll())).is_err());
        assert_eq!(circuit.state(), State::Open, "the second time it was a probe");
        advance(10 * SECOND).await;
    }
    call(&mut service, GOOD).await.unwrap();
    assert_eq!(circuit.state(), State::Closed);
}

/// A call with its permit counts as sent: a service that never becomes ready after that hangs.
///
/// Shows: B6
#[tokio::test(start_paused = true)]
async fn a_service_that_hangs_in_its_readiness_after_the_queue_is_a_failure() {
    #[derive(Clone)]
    struct ReadyTwice(Arc<AtomicUsize>);
    impl Service<()> for ReadyTwice {
        type Response = ();
        type Error = Error<Infallible>;
        type Future = std::pin::Pin<Box<dyn Future<Output = Result<(), Error<Infallible>>> + Send>>;
        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
            if self.0.fetch_add(1, Ordering::SeqCst) < 2 { Poll::Ready(Ok(())) } else { Poll::Pending }
        }
        fn call(&mut self, (): ()) -> Self::Future {
            Box::pin(async {
                tokio::time::sleep(SECOND).await;
                Ok(())
            })
        }
    }
    let breaker = CircuitBreakerLayer::consecutive(1);
    let circuit = breaker.handle();
    let service = ServiceBuilder::new()
        .layer(TimeoutLayer::new(10 * SECOND))
        .layer(breaker)
        .layer(ConcurrencyLimitLayer::new(1))
        .service(ReadyTwice(Arc::default()));
    let (mut first, mut second) = (service.clone(), service);
    let calls = (first.ready().await.unwrap().call(()), second.ready().await.unwrap().call(()));
    let (first, second) = tokio::join!(calls.0, calls.1);
    first.unwrap();
    assert!(ziggurat::rejection(&second).unwrap().is_timed_out());
    assert_eq!(circuit.state(), State::Open);
}

/// Shows: B6
#[tokio::test(start_paused = true)]
async fn a_breaker_around_a_breaker_knows_a_queued_call_too() {
    let (outer, inner) = (CircuitBreakerLayer::consecutive(1), CircuitBreakerLayer::consecutive(1));
    let circuits = [outer.handle(), inner.handle()];
    let service = ServiceBuilder::new()
        .layer(TimeoutLayer::new(|limit: &Option<Duration>| *limit))
        .layer(outer)
        .layer(inner)
        .layer(ConcurrencyLimitLayer::new(1))
        .map_err(Error::Service)
        .service(service_fn(|_| std::future::pending::<Result<(), Infallible>>()));
    let mut first = Box::pin(service.clone().oneshot(None));
    assert!(futures_util::poll!(&mut first).is_pending());
    service.oneshot(Some(SECOND)).await.unwrap_err();
    assert_eq!(circuits.map(|circuit| circuit.state()), [State::Closed, State::Closed]);
}

/// Bad input: an observer panics, and so does the waker of a subscriber. The others receive the transition anyway.
///
/// Shows: B7
#[tokio::test(start_paused = true)]
async fn a_subscriber_hears_of_a_transition_also_if_an_observer_or_another_subscribers_waker_panics() {
    struct Bang;
    impl std::task::Wake for Bang {
        fn wake(self: Arc<Self>) {
            panic!("woken");
        }
    }
    let layer = CircuitBreakerLayer::consecutive(1)
        .observer(|_: &LayerInfo, event: &LayerEvent<'_>| panic!("observed {event:?}"));
    let circuit = layer.handle();
    let (mut panics, mut hears) = (circuit.subscribe(), circuit.subscribe());
    let bang = std::task::Waker::from(Arc::new(Bang));
    let mut panics = std::pin::pin!(panics.next());
    assert!(panics.as_mut().poll(&mut std::task::Context::from_waker(&bang)).is_pending());
    let mut heard = TestTask::new(hears.next());
    assert!(heard.poll().is_pending());
    assert!(catch_unwind(AssertUnwindSafe(|| circuit.force_open())).is_err());
    assert_eq!(heard.times_woken(), 1);
    assert!(matches!(heard.poll(), Poll::Ready(Some(Transition { to: State::Open, .. }))));
    assert!(matches!(panics.as_mut().poll(&mut std::task::Context::from_waker(&bang)), Poll::Ready(Some(_))));
}

/// Shows: B7
#[tokio::test(start_paused = true)]
async fn a_handle_shows_the_numbers_behind_the_state() {
    let layer = CircuitBreakerLayer::failure_rate(0.5).min_calls(4).open_for(10 * SECOND);
    let circuit = layer.handle();
    let service = ServiceBuilder::new()
        .layer(layer)
        .map_err(Error::Service)
        .service(service_fn(async |works: bool| works.then_some(()).ok_or("down")));
    let call = async |works| drop(service.clone().oneshot(works).await);
    let status = circuit.status();
    assert_eq!((status.state, status.calls, status.failure_rate()), (State::Closed, 0, None));

    call(true).await;
    call(false).await;
    call(true).await;
    let status = circuit.status();
    assert_eq!((status.calls, status.failures, status.remaining), (3, 1, None));
    call(false).await;
    advance(4 * SECOND).await;
    let status = circuit.status();
    assert_eq!((status.state, status.is_forced), (State::Open, false));
    let remaining = status.remaining.unwrap();
    assert!((6 * SECOND..=11 * SECOND).contains(&remaining), "{remaining:?}");
}

/// Shows: B7
#[tokio::test(start_paused = true)]
async fn a_circuit_is_opened_for_a_time_and_half_opened_by_hand() {
    let layer = CircuitBreakerLayer::failure_rate(0.5);
    let circuit = layer.handle();
    let service = ServiceBuilder::new()
        .layer(layer)
        .map_err(Error::Service)
        .service(service_fn(async |works: bool| works.then_some(()).ok_or("down")));
    let call = async |works| service.clone().oneshot(works).await;

    circuit.force_open_for(10 * SECOND);
    let status = circuit.status();
    assert_eq!((status.state, status.is_forced, status.remaining), (State::Open, true, Some(10 * SECOND)));
    assert!(call(true).await.unwrap_err().is_circuit_open());
    advance(10 * SECOND).await;
    call(true).await.unwrap();
    assert_eq!(circuit.state(), State::Closed);

    circuit.half_open();
    assert_eq!((circuit.state(), circuit.status().remaining), (State::HalfOpen, None));
    call(false).await.unwrap_err();
    let status = circuit.status();
    assert_eq!((status.state, status.is_forced), (State::Open, false));
    circuit.half_open();
    call(true).await.unwrap();
    assert_eq!(circuit.state(), State::Closed);

    circuit.force_open();
    let status = circuit.status();
    assert_eq!((status.is_forced, status.remaining), (true, None));
}

/// Shows: B7
#[tokio::test(start_paused = true)]
async fn a_circuit_that_only_watches_turns_as_one_that_rejects_and_admits_every_call() {
    let run = async |layer: CircuitBreakerLayer| {
        let circuit = layer.handle();
        let (backend, mut states, mut passed) = (Backend::default(), Vec::new(), Vec::new());
        let service = layer.layer(backend.clone());
        for (seconds_later, outcome) in [
            (0, BAD),
            (0, BAD),
            // A second before the open time is over, only a watched circuit calls the service, which fails often enough
            // to open a circuit once more: that must not count.
            (8, BAD),
            (1, BAD),
            (2, GOOD),
            (0, BAD),
            (0, BAD),
            (10, BAD),
            (9, BAD),
            (0, BAD),
            (2, GOOD),
            (30, BAD),
            (1, GOOD),
        ] {
            sleep(Duration::from_secs(seconds_later)).await;
            let rejected = service.clone().oneshot(outcome.into()).await.is_err_and(|error| error.is_circuit_open());
            passed.push(!rejected);
            states.push(circuit.state());
        }
        (states, passed)
    };
    let layer = || CircuitBreakerLayer::consecutive(2).open_for(10 * SECOND);
    let (rejecting, passed) = run(layer()).await;
    assert!(passed.contains(&false) && rejecting.contains(&State::Open), "{passed:?}, {rejecting:?}");
    let (watched, passed) = run(layer().watch_only()).await;
    assert_eq!(watched, rejecting);
    assert!(passed.iter().all(|passed| *passed), "{passed:?}");
}

/// Shows: B7
#[tokio::test(start_paused = true)]
async fn a_watched_circuit_admits_probes_beyond_their_number_and_calls_that_waited_until_the_watch_ends() {
    let layer = CircuitBreakerLayer::consecutive(1).open_for(10 * SECOND).watch_only();
    let circuit = layer.handle();
    assert!(circuit.status().is_watch_only);
    let service = ServiceBuilder::new().layer(layer).layer(ConcurrencyLimitLayer::new(1)).service(Backend::default());
    let call = |request: Do| service.clone().oneshot(request);

    // One call holds the permit, and one waits while the circuit opens.
    let mut holder = TestTask::new(call(Do::Hang));
    let mut waiter = TestTask::new(call(GOOD.into()));
    assert!(holder.poll().is_pending() && waiter.poll().is_pending());
    circuit.force_open();
    drop(holder);
    assert!(matches!(waiter.poll(), Poll::Ready(Ok(_))));

    // A probe hangs, and another call passes beside it without a say.
    let free = CircuitBreakerLayer::consecutive(1).open_for(10 * SECOND).watch_only();
    let circuit = free.handle();
    let service = free.layer(Backend::default());
    circuit.half_open();
    let mut probe = TestTask::new(service.clone().oneshot(Do::Hang));
    assert!(probe.poll().is_pending());
    service.clone().oneshot(GOOD.into()).await.unwrap();
    assert!(!service.clone().oneshot(BAD.into()).await.unwrap_err().is_circuit_open());
    assert_eq!(circuit.state(), State::HalfOpen);
    circuit.set_watch_only(false);
    assert!(service.clone().oneshot(GOOD.into()).await.unwrap_err().is_circuit_open());
    assert!(!circuit.status().is_watch_only);
}

/// A circuit that opens and closes while a call waits in a queue counts the call again, also if it only watches.
///
/// Shows: B7, F2
#[tokio::test(start_paused = true)]
async fn a_call_that_waits_until_a_watched_circuit_has_closed_again_counts() {
    for watch_only in [false, true] {
        let layer = CircuitBreakerLayer::consecutive(1);
        let circuit = layer.handle();
        circuit.set_watch_only(watch_only);
        let limit = ConcurrencyLimitLayer::new(1);
        let service = ServiceBuilder::new().layer(layer).layer(limit).service(Backend::default());
        let mut holder = TestTask::new(service.clone().oneshot(Do::Hang));
        let mut waiter = TestTask::new(service.clone().oneshot(BAD.into()));
        assert!(holder.poll().is_pending() && waiter.poll().is_pending());
        circuit.force_open();
        circuit.close();
        drop(holder);
        assert!(matches!(waiter.poll(), Poll::Ready(Err(_))));
        assert_eq!(circuit.state(), State::Open, "watch_only: {watch_only}");
    }
}

/// An observer that counts failures agrees with the circuit, which does not count late failures.
///
/// Shows: B5, B7
#[tokio::test(start_paused = true)]
async fn a_failure_that_is_late_emits_no_event() {
    let failures = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&failures);
    let layer = CircuitBreakerLayer::consecutive(2).watch_only().observer(move |_: &LayerInfo, event: &LayerEvent| {
        if let LayerEvent::Failed = event {
            seen.fetch_add(1, Ordering::SeqCst);
        }
    });
    let circuit = layer.handle();
    let service = layer.layer(Backend::default());
    for counted in [1, 2, 2, 2] {
        service.clone().oneshot(BAD.into()).await.unwrap_err();
        assert_eq!(failures.load(Ordering::SeqCst), counted);
    }
    // The failure that opens the circuit again is counted.
    circuit.half_open();
    service.clone().oneshot(BAD.into()).await.unwrap_err();
    assert_eq!((failures.load(Ordering::SeqCst), circuit.state()), (3, State::Open));
}

/// Four requests for a page that is broken, with three attempts each.
///
/// Shows: A5
#[tokio::test(start_paused = true)]
async fn one_broken_page_does_not_shut_out_the_others() {
    for layer in [CircuitBreakerLayer::failure_rate(0.5), CircuitBreakerLayer::consecutive(5)] {
        let circuit = layer.handle();
        let attempts = Arc::new(AtomicUsize::new(0));
        let service = ServiceBuilder::new()
            .layer(RetryLayer::new().max_attempts(3))
            .layer(layer)
            .map_err(Error::Service)
            .service(service_fn(|page: &'static str| {
                attempts.fetch_add(1, Ordering::Relaxed);
                ready(if page == "broken" { Err("unavailable") } else { Ok("answer") })
            }));
        for page in iter::repeat_n("good", 10).chain(iter::repeat_n("broken", 4)) {
            let _ = service.clone().oneshot(page).await;
        }
        assert_eq!((attempts.load(Ordering::Relaxed), circuit.state()), (10 + 4 * 3, State::Closed));
        // They count as requests.
        for _ in 0..50 {
            let _ = service.clone().oneshot("broken").await;
        }
        assert_eq!(circuit.state(), State::Open);
    }
}

/// One caller that retries for ever is enough to notice that the service is dead.
///
/// Shows: B1
#[tokio::test(start_paused = true)]
async fn later_attempts_open_the_circuit_of_a_service_that_answers_nobody() {
    for layer in [CircuitBreakerLayer::failure_rate(0.5), CircuitBreakerLayer::consecutive(5)] {
        let circuit = layer.handle();
        let attempts = Arc::new(AtomicUsize::new(0));
        let service = ServiceBuilder::new()
            .layer(RetryLayer::new().max_attempts(100).backoff(SECOND / 10).budget(None))
            .layer(layer)
            .service(service_fn(|()| {
                attempts.fetch_add(1, Ordering::Relaxed);
                ready(Err::<(), _>(Error::Service("unavailable")))
            }));
        assert!(ziggurat::rejection(&service.oneshot(()).await).unwrap().is_circuit_open());
        assert_eq!(circuit.state(), State::Open);
        assert!(attempts.load(Ordering::Relaxed) <= 62);
    }
}

/// Shows: B7
#[tokio::test(start_paused = true)]
async fn later_attempts_that_open_the_circuit_are_obeyed_like_first_ones() {
    let layer = CircuitBreakerLayer::http();
    let circuit = layer.handle();
    let service = RetryLayer::http().max_attempts(61).budget(None).layer(echoing(layer));
    assert_eq!(service.oneshot(Request::new((503, 60))).await.unwrap().status(), 503);
    assert_eq!(circuit.status().remaining, Some(60 * SECOND));
}

/// Half of the calls fail, and every request succeeds: for example one of two replicas is down.
///
/// Shows: B1
#[tokio::test(start_paused = true)]
async fn an_attempt_that_succeeds_after_a_failure_counts() {
    for layer in [CircuitBreakerLayer::failure_rate(0.6), CircuitBreakerLayer::consecutive(5)] {
        let circuit = layer.handle();
        let service =
            ServiceBuilder::new().layer(RetryLayer::new().budget(None)).layer(layer).service(service_fn(|()| {
                ready(if ziggurat::attempt() == 1 { Err(Error::Service("unavailable")) } else { Ok(()) })
            }));
        for _ in 0..200 {
            service.clone().oneshot(()).await.unwrap();
        }
        assert_eq!(circuit.state(), State::Closed);
    }
}
