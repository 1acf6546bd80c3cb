//! The batch layer: single calls that are gathered into one.

use std::{
    future::{Ready, pending, poll_fn, ready},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    task::{Context, Poll},
    time::Duration,
};

use futures_util::future::join_all;
use tokio::{
    task::{JoinSet, yield_now},
    time::{Instant, advance, sleep},
};
use tower::{Layer, Service, ServiceBuilder, ServiceExt, service_fn};
use ziggurat::{
    Class, Deadline, Error, Reason, Scope,
    batch::BatchLayer,
    circuit_breaker::{CircuitBreakerLayer, State},
    testing::TestTask,
    timeout::TimeoutLayer,
};

mod abandoned;

const SECOND: Duration = Duration::from_secs(1);
const MILLI: Duration = Duration::from_millis(1);

type Calls = Arc<Mutex<Vec<Vec<u32>>>>;

/// Doubles each number, fails for 13, and records its requests.
#[derive(Debug, Clone)]
struct Doubles(Calls);

impl Service<Vec<u32>> for Doubles {
    type Response = Vec<Result<u32, &'static str>>;
    type Error = Error<&'static str>;
    type Future = Ready<Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, numbers: Vec<u32>) -> Self::Future {
        self.0.lock().unwrap().push(numbers.clone());
        ready(Ok(numbers.into_iter().map(|n| if n == 13 { Err("unlucky") } else { Ok(2 * n) }).collect()))
    }
}

fn doubles(calls: &Calls) -> Doubles {
    Doubles(Arc::clone(calls))
}

fn seen(calls: &Calls) -> Vec<Vec<u32>> {
    calls.lock().unwrap().clone()
}

/// Starts calls that join a batch, as tasks to be polled by hand.
fn start<S>(service: &S, numbers: impl IntoIterator<Item = u32>) -> Vec<TestTask<tower::util::Oneshot<S, u32>>>
where
    S: Service<u32> + Clone,
{
    let start = |number| {
        let mut task = TestTask::new(service.clone().oneshot(number));
        assert!(task.poll().is_pending());
        task
    };
    numbers.into_iter().map(start).collect()
}

/// Lets the tasks of batches run.
async fn settle() {
    for _ in 0..10 {
        yield_now().await;
    }
}

fn finished<F: Future>(task: &mut TestTask<F>) -> F::Output {
    match task.poll() {
        Poll::Ready(output) => output,
        Poll::Pending => panic!("it is pending"),
    }
}

/// Returns the message and class of the rejection of a shared call that returned no result.
fn shared<R>(outcome: &Result<R, Error<&'static str>>) -> (String, Class) {
    match ziggurat::rejection(outcome).expect("a rejection").reason() {
        Reason::Shared { message, class } => (message.to_string(), *class),
        other => panic!("{other:?}"),
    }
}

/// Shows: P7
#[tokio::test(start_paused = true)]
async fn a_full_batch_is_sent_at_once_and_everybody_gets_their_own() {
    let calls = Calls::default();
    let service = BatchLayer::new(3, SECOND).layer(doubles(&calls));
    let begun = Instant::now();
    let mut tasks = start(&service, 1..=7);
    settle().await;
    assert_eq!(seen(&calls), [[1, 2, 3], [4, 5, 6]]);
    for (number, task) in (1..=6).zip(&mut tasks) {
        assert_eq!((finished(task).unwrap(), task.times_woken()), (2 * number, 1));
    }
    assert!(tasks[6].poll().is_pending());
    assert_eq!(begun.elapsed(), Duration::ZERO);
}

/// Shows: P7
#[tokio::test(start_paused = true)]
async fn the_delay_counts_from_the_first_of_a_batch() {
    let calls = Calls::default();
    let service = BatchLayer::new(10, SECOND).layer(doubles(&calls));
    let mut tasks = start(&service, [1]);
    advance(SECOND - MILLI).await;
    tasks.extend(start(&service, [2]));
    settle().await;
    assert_eq!(seen(&calls).len(), 0);
    advance(MILLI).await;
    settle().await;
    assert_eq!(seen(&calls), [[1, 2]]);
    // The next batch has its own second.
    tasks.extend(start(&service, [3]));
    advance(SECOND - MILLI).await;
    settle().await;
    assert_eq!(seen(&calls).len(), 1);
    advance(MILLI).await;
    settle().await;
    for (number, task) in (1..=3).zip(&mut tasks) {
        assert_eq!(finished(task).unwrap(), 2 * number);
    }
}

/// Shows: P7
#[tokio::test(start_paused = true)]
async fn without_a_delay_a_batch_is_what_came_by_now_and_without_an_end_it_waits_until_it_is_full() {
    let calls = Calls::default();
    let service = BatchLayer::new(10, Duration::ZERO).layer(doubles(&calls));
    let (one, two) = (service.clone().oneshot(1), service.clone().oneshot(2));
    let (one, two) = tokio::join!(one, two);
    assert_eq!((one.unwrap(), two.unwrap()), (2, 4));
    assert_eq!(seen(&calls), [[1, 2]]);

    let calls = Calls::default();
    let service = BatchLayer::new(2, Duration::MAX).layer(doubles(&calls));
    let mut tasks = start(&service, [1]);
    sleep(1_000_000 * SECOND).await;
    assert_eq!(seen(&calls).len(), 0);
    tasks.extend(start(&service, [2]));
    settle().await;
    assert!(tasks.iter_mut().all(|task| finished(task).is_ok()));
}

/// Shows: P7
#[tokio::test(start_paused = true)]
async fn one_failing_item_fails_alone() {
    let service = BatchLayer::new(3, SECOND).layer(doubles(&Calls::default()));
    let mut tasks = start(&service, [12, 13, 14]);
    settle().await;
    let outcomes: Vec<_> = tasks.iter_mut().map(finished).collect();
    assert!(matches!(outcomes[..], [Ok(24), Err(Error::Service("unlucky")), Ok(28)]), "{outcomes:?}");
}

/// Shows: P7
#[tokio::test(start_paused = true)]
async fn an_error_of_the_whole_call_goes_whole_to_the_first_who_is_there_and_is_told_to_the_others() {
    for at_readiness in [false, true] {
        let service = BatchLayer::new(4, SECOND)
            .classify(|_: Result<&(), &Error<&'static str>>| Class::PERMANENT)
            .layer(Failing { at_readiness });
        let mut tasks = start(&service, 1..=4);
        settle().await;
        if !at_readiness {
            // The caller that would get the error first is dropped while the call is in flight.
            drop(tasks.remove(0));
        }
        sleep(SECOND).await;
        let outcomes: Vec<_> = tasks.iter_mut().map(finished).collect();
        assert!(matches!(outcomes[0], Err(Error::Service("down"))), "{outcomes:?}");
        for outcome in &outcomes[1..] {
            assert_eq!(shared(outcome), ("down".to_owned(), Class::PERMANENT));
        }
    }
}

/// Fails as a whole after half a second.
#[derive(Clone)]
struct Failing {
    at_readiness: bool,
}

impl Service<Vec<u32>> for Failing {
    type Response = Vec<Result<(), Error<&'static str>>>;
    type Error = Error<&'static str>;
    type Future = std::pin::Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(if self.at_readiness { Err(Error::Service("down")) } else { Ok(()) })
    }

    fn call(&mut self, _: Vec<u32>) -> Self::Future {
        Box::pin(async {
            sleep(SECOND / 2).await;
            Err(Error::Service("down"))
        })
    }
}

/// Shows: P7
#[tokio::test(start_paused = true)]
async fn a_rejection_of_the_whole_call_goes_to_all() {
    let service = ServiceBuilder::new()
        .layer(BatchLayer::new(2, SECOND))
        .layer(TimeoutLayer::new(SECOND).named("attempt"))
        .service(service_fn(|_: Vec<u32>| pending::<Result<Vec<Result<(), &'static str>>, Error<&'static str>>>()));
    let mut tasks = start(&service, [1, 2]);
    sleep(2 * SECOND).await;
    for task in &mut tasks {
        let outcome = finished(task);
        let rejection = ziggurat::rejection(&outcome).unwrap();
        assert_eq!((rejection.layer(), rejection.name(), rejection.is_timed_out()), ("timeout", Some("attempt"), true));
    }
}

/// Shows: P7
#[tokio::test(start_paused = true)]
async fn answers_that_are_not_one_for_each_are_nobodys() {
    for answers in [0, 2, 4] {
        let service = ServiceBuilder::new()
            .layer(BatchLayer::new(3, SECOND).named("users"))
            .service(service_fn(move |_: Vec<u32>| ready(Ok(vec![Ok::<_, Error<&'static str>>(7); answers]))));
        let mut tasks = start(&service, 1..=3);
        settle().await;
        for task in &mut tasks {
            let outcome = finished(task);
            let message = format!("{answers} results for 3 requests: the service must return one for each, in order");
            assert_eq!(shared(&outcome), (message.clone(), Class::PERMANENT));
            assert_eq!(outcome.unwrap_err().to_string(), format!("batch `users`: the shared call failed: {message}"));
        }
    }
}

/// Shows: P7
#[tokio::test(start_paused = true)]
async fn a_panic_of_the_inner_call_is_an_error_for_all_and_wedges_nothing() {
    #[derive(Clone)]
    struct Panics(Arc<AtomicUsize>);
    impl Service<Vec<u32>> for Panics {
        type Response = Vec<Result<u32, Error<&'static str>>>;
        type Error = Error<&'static str>;
        type Future = std::pin::Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;
        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
            assert!(self.0.load(SeqCst) != 0, "in poll_ready");
            Poll::Ready(Ok(()))
        }
        fn call(&mut self, numbers: Vec<u32>) -> Self::Future {
            assert!(self.0.load(SeqCst) != 1, "in call");
            let step = self.0.load(SeqCst);
            Box::pin(async move {
                yield_now().await;
                assert!(step != 2, "in the future");
                Ok(numbers.into_iter().map(Ok).collect())
            })
        }
    }
    let step = Arc::new(AtomicUsize::new(0));
    let service = BatchLayer::new(2, SECOND).layer(Panics(Arc::clone(&step)));
    for (now, place) in ["in poll_ready", "in call", "in the future"].into_iter().enumerate() {
        step.store(now, SeqCst);
        let mut tasks = start(&service, [1, 2]);
        settle().await;
        for task in &mut tasks {
            assert_eq!(shared(&finished(task)).0, format!("panicked: {place}"));
        }
    }
    step.store(3, SeqCst);
    assert_eq!(service.oneshot(7).await.unwrap(), 7);
}

/// Shows: P7
#[tokio::test(start_paused = true)]
async fn an_item_whose_error_cannot_be_made_the_services_own_fails_alone() {
    struct Bad;
    impl From<Bad> for Error<&'static str> {
        fn from(_: Bad) -> Self {
            panic!("in from")
        }
    }
    let service = BatchLayer::new(3, SECOND).layer(service_fn(|numbers: Vec<u32>| {
        ready(Ok::<_, Error<_>>(numbers.into_iter().map(|n| if n == 2 { Err(Bad) } else { Ok(n) }).collect::<Vec<_>>()))
    }));
    let mut tasks = start(&service, 1..=3);
    settle().await;
    let [one, two, three] = &mut tasks[..] else { panic!("three") };
    assert_eq!((finished(one).unwrap(), finished(three).unwrap()), (1, 3));
    assert_eq!(shared(&finished(two)).0, "panicked: in from");
}

/// Shows: P7
#[tokio::test(start_paused = true)]
async fn who_is_dropped_before_the_batch_is_sent_is_skipped_and_makes_room() {
    let calls = Calls::default();
    let service = BatchLayer::new(3, SECOND).layer(doubles(&calls));
    let mut tasks = start(&service, [1, 2]);
    drop(tasks.remove(0));
    tasks.extend(start(&service, [3]));
    settle().await;
    assert_eq!(seen(&calls).len(), 0, "two are left of three");
    tasks.extend(start(&service, [4]));
    settle().await;
    assert_eq!(seen(&calls), [[2, 3, 4]]);
    assert!(tasks.iter_mut().all(|task| finished(task).is_ok()));

    // All callers are dropped: there is no call, and the next caller has its own delay.
    let tasks = start(&service, [5, 6]);
    advance(SECOND / 2).await;
    drop(tasks);
    assert!(format!("{service:?}").contains("waiting: 0"), "{service:?}");
    let mut next = start(&service, [7]);
    advance(SECOND / 2).await;
    settle().await;
    assert_eq!(seen(&calls).len(), 1);
    advance(SECOND / 2).await;
    settle().await;
    assert_eq!((seen(&calls).len(), finished(&mut next[0]).unwrap()), (2, 14));
}

/// Returns a service whose calls wait to be released, and which counts the calls in flight.
fn held(
    go: &Arc<AtomicBool>,
    under_way: &Arc<AtomicUsize>,
) -> impl Service<Vec<u32>, Response = Vec<Result<u32, Error<&'static str>>>, Error = Error<&'static str>, Future: Send>
+ Clone
+ Send
+ use<> {
    struct Counted(Arc<AtomicUsize>);
    impl Drop for Counted {
        fn drop(&mut self) {
            self.0.fetch_sub(1, SeqCst);
        }
    }
    let (go, under_way) = (Arc::clone(go), Arc::clone(under_way));
    service_fn(move |numbers: Vec<u32>| {
        under_way.fetch_add(1, SeqCst);
        let (go, counted) = (Arc::clone(&go), Counted(Arc::clone(&under_way)));
        async move {
            while !go.load(SeqCst) {
                sleep(MILLI).await;
            }
            drop(counted);
            Ok(numbers.into_iter().map(Ok).collect())
        }
    })
}

/// Shows: P7
#[tokio::test(start_paused = true)]
async fn who_is_dropped_afterwards_loses_its_answer_and_with_the_last_the_call_is_dropped_at_once() {
    let (go, under_way) = (Arc::default(), Arc::default());
    let service = BatchLayer::new(3, SECOND).layer(held(&go, &under_way));
    let mut tasks = start(&service, 1..=3);
    settle().await;
    assert_eq!(under_way.load(SeqCst), 1);
    // The first, which began the batch, and the last.
    drop(tasks.pop());
    drop(tasks.remove(0));
    go.store(true, SeqCst);
    sleep(SECOND).await;
    assert_eq!(finished(&mut tasks[0]).unwrap(), 2);

    go.store(false, SeqCst);
    let mut tasks = start(&service, 1..=3);
    settle().await;
    while let Some(task) = tasks.pop() {
        assert_eq!(under_way.load(SeqCst), 1);
        drop(task);
    }
    assert_eq!(under_way.load(SeqCst), 0, "before anything else has run");
}

/// Each of three callers is dropped at each of its polls, in each order.
///
/// Shows: P7
#[tokio::test(start_paused = true)]
async fn cancelled_anywhere_nothing_is_left() {
    for steps in 0..8 {
        for order in [[0, 1, 2], [2, 1, 0], [1, 0, 2]] {
            let (go, under_way) = (Arc::default(), Arc::<AtomicUsize>::default());
            let service = BatchLayer::new(4, 2 * MILLI).layer(held(&go, &under_way));
            let mut tasks: Vec<_> = start(&service, 1..=3).into_iter().map(Some).collect();
            for step in 0..steps {
                go.store(step >= 5, SeqCst);
                sleep(MILLI).await;
            }
            for who in order {
                drop(tasks[who].take());
                settle().await;
            }
            assert_eq!(under_way.load(SeqCst), 0, "{steps} {order:?}");
            go.store(true, SeqCst);
            assert_eq!(service.oneshot(7).await.unwrap(), 7);
        }
    }
}

/// The task of a batch needs no caller to poll it: a caller that is kept but not polled delays no other.
///
/// Shows: P7
#[tokio::test(start_paused = true)]
async fn a_caller_that_is_not_polled_any_more_holds_up_no_other() {
    let service = BatchLayer::new(10, SECOND).layer(doubles(&Calls::default()));
    let first = start(&service, [1]);
    assert_eq!(service.oneshot(2).await.unwrap(), 4);
    drop(first);
}

/// Two runtimes share a service, and one of them ends: before its batch is sent, and while the call is in flight.
///
/// Shows: P7
#[tokio::test(start_paused = true)]
async fn a_runtime_that_ends_leaves_nobody_waiting_on_another() {
    for is_sent in [false, true] {
        let (go, under_way) = (Arc::new(AtomicBool::new(false)), Arc::<AtomicUsize>::default());
        let max_size = if is_sent { 2 } else { 3 };
        let service = BatchLayer::new(max_size as usize, Duration::MAX).layer(held(&go, &under_way));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let entered = runtime.enter();
        let mut tasks = start(&service, [1]);
        drop(entered);
        tasks.extend(start(&service, [2]));
        let seen = Arc::clone(&under_way);
        let ends = std::thread::spawn(move || {
            if is_sent {
                runtime.block_on(settle());
            }
            seen.load(SeqCst)
        });
        assert_eq!(ends.join().unwrap(), usize::from(is_sent));
        for task in &mut tasks {
            assert_eq!(shared(&finished(task)).0, "the task of the batch ended without a result");
        }
        assert_eq!(under_way.load(SeqCst), 0);
        go.store(true, SeqCst);
        let answers = join_all((0..max_size).map(|number| service.clone().oneshot(number))).await;
        assert!(answers.into_iter().all(|answer| answer.is_ok()), "a call joined an abandoned batch");
    }
}

/// Shows: P7
#[tokio::test(start_paused = true)]
async fn a_breaker_outside_does_not_count_who_gave_up_before_the_batch_was_sent() {
    let breaker = CircuitBreakerLayer::consecutive(1);
    let circuit = breaker.handle();
    let service = ServiceBuilder::new()
        .layer(TimeoutLayer::new(SECOND))
        .layer(breaker)
        .layer(BatchLayer::new(2, Duration::MAX))
        .service(held(&Arc::default(), &Arc::default()));
    assert!(service.clone().oneshot(1).await.is_err());
    assert_eq!(circuit.state(), State::Closed);
    // A call that hangs after it was sent counts against the service.
    let (one, two) = tokio::join!(service.clone().oneshot(1), service.clone().oneshot(2));
    assert!(one.is_err() && two.is_err());
    assert_eq!(circuit.state(), State::Open);
}

/// A batch that is due waits only for the service.
///
/// Shows: B6
#[tokio::test(start_paused = true)]
async fn a_service_that_hangs_in_its_readiness_when_the_batch_is_due_is_a_failure() {
    #[derive(Clone)]
    struct NeverReady;
    impl Service<Vec<u32>> for NeverReady {
        type Response = Vec<Result<u32, &'static str>>;
        type Error = Error<&'static str>;
        type Future = Ready<Result<Self::Response, Self::Error>>;
        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
            Poll::Pending
        }
        fn call(&mut self, _: Vec<u32>) -> Self::Future {
            panic!("it was never ready")
        }
    }
    for max_delay in [Duration::MAX, SECOND / 2, Duration::ZERO] {
        let breaker = CircuitBreakerLayer::consecutive(2);
        let circuit = breaker.handle();
        let service = ServiceBuilder::new()
            .layer(TimeoutLayer::new(SECOND))
            .layer(breaker)
            .layer(BatchLayer::new(2, max_delay))
            .service(NeverReady);
        let (one, two) = tokio::join!(service.clone().oneshot(1), service.clone().oneshot(2));
        assert!(one.is_err() && two.is_err());
        assert_eq!(circuit.state(), State::Open, "{max_delay:?}");
    }
}

/// Shows: P7
#[tokio::test(start_paused = true)]
async fn who_comes_while_the_service_is_not_ready_still_joins() {
    #[derive(Clone)]
    struct Busy<S>(S, Arc<AtomicBool>);
    impl<S: Service<Vec<u32>>> Service<Vec<u32>> for Busy<S> {
        type Response = S::Response;
        type Error = S::Error;
        type Future = S::Future;
        fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
            if self.1.load(SeqCst) {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            self.0.poll_ready(cx)
        }
        fn call(&mut self, request: Vec<u32>) -> S::Future {
            self.0.call(request)
        }
    }
    let (calls, busy) = (Calls::default(), Arc::new(AtomicBool::new(true)));
    let service = BatchLayer::new(3, MILLI).layer(Busy(doubles(&calls), Arc::clone(&busy)));
    assert!(poll_fn(|cx| Poll::Ready(service.clone().poll_ready(cx))).await.is_ready(), "always ready itself");
    let mut tasks = start(&service, [1]);
    advance(SECOND).await;
    settle().await;
    tasks.extend(start(&service, [2]));
    settle().await;
    busy.store(false, SeqCst);
    settle().await;
    assert_eq!(seen(&calls), [[1, 2]]);
    assert!(tasks.iter_mut().all(|task| finished(task).is_ok()));
}

/// Shows: P7
#[tokio::test(start_paused = true)]
async fn two_scopes_are_not_mixed_and_the_call_is_made_in_theirs() {
    let places = Arc::<Mutex<Vec<(Option<String>, Vec<u32>)>>>::default();
    let inner = {
        let places = Arc::clone(&places);
        service_fn(move |numbers: Vec<u32>| {
            let place = Scope::current().map(|scope| scope.name().to_owned());
            places.lock().unwrap().push((place, numbers.clone()));
            async move {
                let before = Scope::current().map(|scope| scope.id());
                yield_now().await;
                assert_eq!(Scope::current().map(|scope| scope.id()), before);
                Ok::<_, Error<&'static str>>(numbers.into_iter().map(Ok::<_, Error<_>>).collect::<Vec<_>>())
            }
        })
    };
    let app = Scope::root("app");
    let (one, other) = (app.child("one"), app.child("other"));
    let place = |name: &str, numbers: &[u32]| (Some(name.to_owned()), numbers.to_vec());
    async fn run<S>(service: &S, one: &Scope, other: &Scope) -> Vec<u32>
    where
        S: Service<u32, Response = u32, Error = Error<&'static str>> + Clone,
    {
        let call = |number| service.clone().oneshot(number);
        let (a, b, c, d, e) = tokio::join!(
            one.within(call(1)),
            other.within(call(2)),
            one.within(call(3)),
            call(4),
            other.within(call(5)),
        );
        [a, b, c, d, e].map(Result::unwrap).to_vec()
    }

    let service = BatchLayer::new(10, SECOND).layer(inner.clone());
    assert_eq!(run(&service, &one, &other).await, [1, 2, 3, 4, 5]);
    let mut found = std::mem::take(&mut *places.lock().unwrap());
    found.sort();
    assert_eq!(found, [(None, vec![4]), place("one", &[1, 3]), place("other", &[2, 5])]);

    // Only at the user's request. The call then runs in their common scope, if there is one.
    let service = BatchLayer::new(2, SECOND).by(|_: &u32| ()).layer(inner);
    let call = |number| service.clone().oneshot(number);
    let (a, b) = tokio::join!(one.within(call(1)), other.within(call(3)));
    assert_eq!((a.unwrap(), b.unwrap()), (1, 3));
    let (a, b) = tokio::join!(one.within(call(1)), call(3));
    assert_eq!((a.unwrap(), b.unwrap()), (1, 3));
    assert_eq!(*places.lock().unwrap(), [place("app", &[1, 3]), (None, vec![1, 3])]);
}

/// Shows: P7
#[tokio::test(start_paused = true)]
async fn the_call_has_the_latest_deadline_of_its_callers_and_each_leaves_at_its_own() {
    let told = Arc::<Mutex<Vec<Option<Duration>>>>::default();
    let inner = {
        let told = Arc::clone(&told);
        ServiceBuilder::new().layer(TimeoutLayer::new(10 * SECOND)).service(service_fn(move |_: Vec<u32>| {
            told.lock().unwrap().push(Deadline::current().map(|deadline| deadline.remaining()));
            pending::<Result<Vec<Result<u32, Error<&'static str>>>, Error<&'static str>>>()
        }))
    };
    let batch = BatchLayer::new(2, SECOND).layer(inner);
    let limited = |limit: Duration| TimeoutLayer::new(limit).layer(batch.clone()).oneshot(1);
    let begun = Instant::now();
    let ended = async |limit| {
        let outcome = limited(limit).await;
        assert!(ziggurat::rejection(&outcome).unwrap().is_timed_out());
        begun.elapsed()
    };
    assert_eq!(tokio::join!(ended(2 * SECOND), ended(4 * SECOND)), (2 * SECOND, 4 * SECOND));
    assert_eq!(*told.lock().unwrap(), [Some(4 * SECOND)]);
    // One caller has no deadline, so the call has only that of the timeout inside.
    let (_, free) = tokio::join!(ended(6 * SECOND), batch.clone().oneshot(2));
    assert!(ziggurat::rejection(&free).unwrap().is_timed_out());
    assert_eq!((begun.elapsed(), told.lock().unwrap()[1]), (14 * SECOND, Some(10 * SECOND)));
}

/// Two routes share a layer value: the service of one route must not respond to a batch of the other.
///
/// Shows: P7
#[tokio::test(start_paused = true)]
async fn services_over_different_inner_ones_gather_on_their_own() {
    let layer = BatchLayer::new(2, SECOND);
    let (one, two) = (Calls::default(), Calls::default());
    let services = (layer.layer(doubles(&one)), layer.layer(doubles(&two)));
    let (a, b) = tokio::join!(services.0.oneshot(1), services.1.oneshot(2));
    assert_eq!((a.unwrap(), b.unwrap()), (2, 4));
    assert_eq!((seen(&one), seen(&two)), (vec![vec![1]], vec![vec![2]]));
}

/// Shows: P7
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn on_many_threads_everybody_gets_their_own_and_no_batch_is_too_large() {
    let calls = Calls::default();
    let service = BatchLayer::new(16, Duration::ZERO).by(|number: &u32| number % 3).layer(doubles(&calls));
    let mut tasks = JoinSet::new();
    for task in 0..64 {
        let service = service.clone();
        tasks.spawn(async move {
            for round in 0..50 {
                let number = 100 + task * 50 + round;
                if round % 5 == 0 {
                    // One caller is dropped, at whatever stage it is by then.
                    let mut given_up = TestTask::new(service.clone().oneshot(number));
                    let _ = given_up.poll();
                    yield_now().await;
                }
                assert_eq!(service.clone().oneshot(number).await.unwrap(), 2 * number);
            }
        });
    }
    tasks.join_all().await;
    let calls = seen(&calls);
    assert!(calls.iter().all(|call| (1..=16).contains(&call.len())));
    assert!(calls.iter().all(|call| call.iter().all(|number| number % 3 == call[0] % 3)));
    assert!(calls.iter().map(Vec::len).sum::<usize>() >= 64 * 50);
    assert!(format!("{service:?}").contains("waiting: 0"));
}

#[test]
fn bad_input_is_refused_by_name() {
    let panic = catch_unwind(|| BatchLayer::<u32>::new(0, SECOND)).unwrap_err();
    assert_eq!(panic.downcast_ref::<&str>(), Some(&"max_size must be at least 1, not 0"));
}

/// A key function panics, or there is no runtime: the caller gets the failure, and others never notice.
#[test]
fn a_call_that_cannot_join_leaves_no_trace() {
    let calls = Calls::default();
    let service = BatchLayer::new(2, SECOND).by(|number: &u32| assert!(*number != 7, "no key")).layer(doubles(&calls));
    assert!(catch_unwind(AssertUnwindSafe(|| drop(service.clone().oneshot(1)))).is_ok(), "it was not polled");
    let mut task = TestTask::new(service.clone().oneshot(7));
    assert!(catch_unwind(AssertUnwindSafe(|| task.poll())).is_err());
    let mut task = TestTask::new(service.clone().oneshot(1));
    let told = "no tokio runtime to send a batch on: poll the call inside a runtime".to_owned();
    assert_eq!(shared(&finished(&mut task)), (told, Class::PERMANENT));
    assert!(format!("{service:?}").contains("waiting: 0"));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    assert_eq!(runtime.block_on(service.clone().oneshot(2)).unwrap(), 4);

    // A batch that was begun on a runtime can be joined from anywhere.
    let entered = runtime.enter();
    let mut tasks = start(&service, [3]);
    drop(entered);
    tasks.extend(start(&service, [4]));
    runtime.block_on(settle());
    assert_eq!(tasks.iter_mut().map(|task| finished(task).unwrap()).collect::<Vec<_>>(), [6, 8]);
    assert_eq!(seen(&calls), [vec![2], vec![3, 4]]);
}

/// User code asks the service for its number of waiters each time it runs, which would deadlock under the lock.
#[test]
fn no_code_of_the_users_runs_under_the_lock_of_a_batch() {
    type Look = Arc<dyn Fn() + Send + Sync>;
    static LOOK: std::sync::OnceLock<Look> = std::sync::OnceLock::new();
    static LOOKED: AtomicUsize = AtomicUsize::new(0);
    fn look() {
        LOOKED.fetch_add(1, SeqCst);
        LOOK.get().unwrap()();
    }
    #[derive(PartialEq, Eq)]
    struct Key;
    impl std::hash::Hash for Key {
        fn hash<H: std::hash::Hasher>(&self, _: &mut H) {
            look();
        }
    }
    impl Drop for Key {
        fn drop(&mut self) {
            look();
        }
    }
    struct Request;
    impl Drop for Request {
        fn drop(&mut self) {
            look();
        }
    }
    let service = BatchLayer::new(2, SECOND).by(|_: &Request| Key).layer(service_fn(|requests: Vec<Request>| {
        ready(Ok::<_, Error<&str>>(vec![Ok::<(), Error<_>>(()); requests.len()]))
    }));
    let look_into = Mutex::new(service.clone());
    // Its `Debug` takes the lock.
    let is_set = LOOK.set(Arc::new(move || drop(format!("{:?}", look_into.lock().unwrap()))));
    assert!(is_set.is_ok());

    // Without a runtime; joined and left, alone in a batch and not; and sent.
    assert!(finished(&mut TestTask::new(service.clone().oneshot(Request))).is_err());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let start = || {
            let mut task = TestTask::new(service.clone().oneshot(Request));
            assert!(task.poll().is_pending());
            task
        };
        drop(start());
        let first = start();
        drop(start());
        drop(first);
        let mut both = [start(), start()];
        settle().await;
        assert!(both.iter_mut().all(|task| finished(task).is_ok()));
    });
    assert!(LOOKED.load(SeqCst) >= 6 * 3, "{LOOKED:?}");
}

/// Shows: P7
#[tokio::test(start_paused = true)]
async fn a_waker_that_panics_keeps_no_other_caller_from_its_answer() {
    struct Panics;
    impl std::task::Wake for Panics {
        fn wake(self: Arc<Self>) {
            panic!("in wake");
        }
    }
    let waker = Arc::new(Panics).into();
    // All succeed, all are rejected, or the task ends before the batch is sent.
    for (answers, is_full) in [(3, true), (2, true), (3, false)] {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        let service = BatchLayer::new(3, Duration::MAX).layer(service_fn(move |numbers: Vec<u32>| {
            ready(Ok::<_, Error<&str>>(numbers.into_iter().take(answers).map(Ok::<_, Error<_>>).collect::<Vec<_>>()))
        }));
        let entered = runtime.enter();
        let mut panicking = [1, 2].map(|number| Box::pin(service.clone().oneshot(number)));
        for call in &mut panicking {
            assert!(call.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
        }
        let mut last = is_full.then(|| start(&service, [3]).remove(0));
        drop(entered);
        std::thread::spawn(move || {
            if is_full {
                runtime.block_on(settle());
            }
        })
        .join()
        .unwrap();
        if let Some(last) = &mut last {
            assert_eq!((finished(last).is_ok(), last.times_woken()), (answers == 3, 1));
        }
        for call in &mut panicking {
            let outcome = TestTask::new(call.as_mut()).poll().map(|outcome| outcome.is_ok());
            assert_eq!(outcome, Poll::Ready(is_full && answers == 3));
        }
    }
}
