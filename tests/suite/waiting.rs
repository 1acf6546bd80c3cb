//! The queue of a concurrency limit: which calls wait, for how long, and the wait that a rejected caller is given.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    task::{JoinSet, yield_now},
    time::{Instant, sleep},
};
use tower::{Layer, Service, ServiceBuilder, ServiceExt, service_fn};
use ziggurat::{Deadline, Error, Rejection, concurrency_limit::ConcurrencyLimitLayer, timeout::TimeoutLayer};

const MILLI: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

type Outcome = Result<(), Error<&'static str>>;

/// Takes as long as it is asked to, and counts the calls that start.
fn worker(
    started: &Arc<AtomicUsize>,
) -> impl Service<Duration, Response = (), Error = Error<&'static str>, Future: Send> + Clone + Send + use<> {
    let started = Arc::clone(started);
    service_fn(move |time| {
        started.fetch_add(1, Ordering::SeqCst);
        async move {
            sleep(time).await;
            Ok(())
        }
    })
}

fn rejection(outcome: Outcome) -> Rejection {
    ziggurat::rejection(&outcome).cloned().unwrap_or_else(|| panic!("{outcome:?} is no rejection"))
}

/// Lets every task run that can.
async fn settle() {
    for _ in 0..100 {
        yield_now().await;
    }
}

/// Ten calls of 100 ms at a time, for long enough that the limit knows their pace, and `waiting` calls that wait now.
async fn busy<S>(service: &S, waiting: usize) -> JoinSet<Outcome>
where
    S: Service<Duration, Response = (), Error = Error<&'static str>, Future: Send> + Clone + Send + 'static,
{
    let mut calls = JoinSet::new();
    for _ in 0..60 {
        calls.spawn(service.clone().oneshot(100 * MILLI));
    }
    settle().await;
    sleep(500 * MILLI).await;
    for _ in 0..waiting {
        calls.spawn(service.clone().oneshot(100 * MILLI));
    }
    settle().await;
    calls
}

/// Shows: A2
#[tokio::test(start_paused = true)]
async fn a_call_that_cannot_end_in_time_is_rejected_at_once_and_told_when_it_could() {
    let layer = ConcurrencyLimitLayer::new(10);
    let (gate, started) = (layer.handle(), Arc::default());
    let service = layer.layer(worker(&started));
    let calls = busy(&service, 30).await;
    assert_eq!((gate.in_flight(), gate.waiting()), (10, 30));

    // 31 permits are released in 310 ms on average, and a call takes 100 ms.
    for (total, joins) in [(300, false), (400, false), (800, true)] {
        let before = Instant::now();
        let call = Deadline::after(total * MILLI).within(service.clone().oneshot(Duration::ZERO));
        if joins {
            assert!(call.await.is_ok(), "within {total} ms");
            continue;
        }
        let told = rejection(call.await);
        assert_eq!(before.elapsed(), Duration::ZERO, "within {total} ms");
        assert!(told.is_overloaded());
        let wait = told.retry_after().expect("a time to come back");
        assert!((250 * MILLI..=400 * MILLI).contains(&wait), "{wait:?}");
    }
    drop(calls);
}

/// A caller that comes back after the given wait finds a permit.
///
/// Shows: A2
#[tokio::test(start_paused = true)]
async fn a_caller_that_comes_back_as_told_has_its_turn() {
    let layer = ConcurrencyLimitLayer::new(10);
    let service = layer.layer(worker(&Arc::default()));
    let _calls = busy(&service, 30).await;
    let soon = |service| Deadline::after(250 * MILLI).within(ServiceExt::oneshot(service, 100 * MILLI));
    let told = rejection(soon(service.clone()).await).retry_after().unwrap();
    sleep(told).await;
    assert!(soon(service).await.is_ok(), "after {told:?}");
}

/// Shows: A2
#[tokio::test(start_paused = true)]
async fn a_call_whose_turn_comes_too_late_is_not_started_and_the_next_one_is() {
    let layer = ConcurrencyLimitLayer::new(1);
    let (gate, started) = (layer.handle(), Arc::default());
    let service = layer.layer(worker(&started));
    let (first, second) =
        (service.clone().oneshot(900 * MILLI), Deadline::after(SECOND).within(service.clone().oneshot(MILLI)));
    let mut calls = JoinSet::new();
    calls.spawn(first);
    settle().await;
    // The first in the queue always waits.
    let late = tokio::spawn(second);
    settle().await;
    let patient = tokio::spawn(service.clone().oneshot(MILLI));
    settle().await;
    assert_eq!(gate.waiting(), 2);
    let before = Instant::now();
    assert!(rejection(late.await.unwrap()).is_overloaded());
    assert_eq!(before.elapsed(), 900 * MILLI, "at its turn");
    assert!(patient.await.unwrap().is_ok());
    assert_eq!(started.load(Ordering::SeqCst), 2);
    assert_eq!((gate.in_flight(), gate.waiting()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn without_a_deadline_a_call_waits_for_30_seconds() {
    let service = ConcurrencyLimitLayer::new(1).layer(worker(&Arc::default()));
    let mut running = tokio::spawn(service.clone().oneshot(100 * SECOND));
    settle().await;
    let before = Instant::now();
    assert!(rejection(service.clone().oneshot(MILLI).await).is_overloaded());
    assert_eq!(before.elapsed(), 30 * SECOND);
    // A deadline takes the place of the 30 seconds, in both directions.
    for (total, ends_after) in [(3, 3), (50, 50)] {
        let before = Instant::now();
        let timeout = TimeoutLayer::new(total * SECOND).layer(service.clone());
        assert!(rejection(timeout.oneshot(MILLI).await).is_timed_out());
        assert_eq!(before.elapsed(), ends_after * SECOND);
    }
    assert!((&mut running).await.unwrap().is_ok());
}

/// A burst in calm is served in order, however long it is.
#[tokio::test(start_paused = true)]
async fn a_burst_that_ends_in_time_is_served_whole_and_in_order() {
    let service = ConcurrencyLimitLayer::new(10).layer(worker(&Arc::default()));
    for _ in 0..3 {
        let (mut calls, order) = (JoinSet::new(), Arc::new(Mutex::new(Vec::new())));
        for number in 0..80 {
            let (service, order) = (service.clone(), Arc::clone(&order));
            calls.spawn(async move {
                let outcome = TimeoutLayer::new(SECOND).layer(service).oneshot(100 * MILLI).await;
                order.lock().unwrap().push(number);
                outcome
            });
        }
        while let Some(outcome) = calls.join_next().await {
            assert!(outcome.unwrap().is_ok());
        }
        assert!(order.lock().unwrap().is_sorted());
        sleep(2 * SECOND).await;
    }
}

/// A queue that does not end is kept as short as keeps the service busy.
///
/// Shows: A1
#[tokio::test(start_paused = true)]
async fn a_queue_that_does_not_end_becomes_short() {
    let layer = ConcurrencyLimitLayer::new(2);
    let (gate, started) = (layer.handle(), Arc::default());
    let service = ServiceBuilder::new().layer(TimeoutLayer::new(60 * SECOND)).layer(layer).service(worker(&started));
    let (mut calls, mut longest) = (JoinSet::new(), [0; 2]);
    // 40 calls per second, twice as many as can be served.
    for number in 0..400 {
        calls.spawn(service.clone().oneshot(100 * MILLI));
        sleep(25 * MILLI).await;
        let late = usize::from(number >= 200);
        longest[late] = longest[late].max(gate.waiting());
    }
    let [before, after] = longest;
    assert!(before > 18, "a burst may be longer: {before}");
    assert!((17..=18).contains(&after), "{after}");
    assert!(started.load(Ordering::SeqCst) >= 198, "20 per second");
}

/// With a `max_wait` of its own, a layer hands out work at its own pace.
#[tokio::test(start_paused = true)]
async fn with_a_time_of_its_own_the_queue_is_as_long_as_that_allows() {
    let layer = ConcurrencyLimitLayer::new(2).max_wait(Duration::MAX);
    let service = layer.layer(worker(&Arc::default()));
    let mut calls = JoinSet::new();
    for _ in 0..2_000 {
        calls.spawn(service.clone().oneshot(SECOND));
    }
    while let Some(outcome) = calls.join_next().await {
        assert!(outcome.unwrap().is_ok());
    }

    let layer = ConcurrencyLimitLayer::new(10).max_wait(250 * MILLI);
    let gate = layer.handle();
    let service = layer.layer(worker(&Arc::default()));
    // Until their pace is known, more may join.
    for _ in 0..3 {
        drop(busy(&service, 0).await);
    }
    let mut calls = busy(&service, 100).await;
    // 100 calls end in a second.
    assert!((22..=27).contains(&gate.waiting()), "{}", gate.waiting());
    let mut served = 0;
    while let Some(outcome) = calls.join_next().await {
        served += usize::from(outcome.unwrap().is_ok());
    }
    // 30 of the first calls, ten that found a permit free, and those in the queue that had their turn.
    assert!((60..=67).contains(&served), "{served}");
}
