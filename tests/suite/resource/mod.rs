//! Resources: a pool that is a semaphore, and calls that end on demand.

mod sqlite;

use std::{
    convert::Infallible,
    fmt,
    future::{Future, pending, poll_fn, ready},
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body::{Body, Frame};
use http_body_util::{BodyExt, Empty};
use tokio::{
    sync::{Notify, OwnedSemaphorePermit, Semaphore, oneshot},
    time::{Instant, advance, sleep},
};
use tower::{Layer, Service, ServiceBuilder, ServiceExt, service_fn};
use ziggurat::{
    Class, Error, LayerEvent, LayerInfo, Reason, Rejection, Scope,
    circuit_breaker::{CircuitBreakerLayer, State},
    context::ContextLayer,
    resource::{self, Acquire, Held, Lent, ResourceLayer, Unavailable, Why},
    retry::RetryLayer,
    testing::TestTask,
    timeout::TimeoutLayer,
};

const SECOND: Duration = Duration::from_secs(1);

/// A resource of a pool, returned by its drop.
struct Seat {
    used: u32,
    _permit: OwnedSemaphorePermit,
}

/// Seats, each new.
#[derive(Clone)]
struct Pool(Arc<Semaphore>);

impl Pool {
    fn of(seats: usize) -> Self {
        Self(Arc::new(Semaphore::new(seats)))
    }

    fn free(&self) -> usize {
        self.0.available_permits()
    }

    fn layer(&self) -> ResourceLayer<impl Acquire<(), Future: Send> + Acquire<Request<()>> + Clone + use<>> {
        let pool = self.clone();
        ResourceLayer::new(move || {
            let permit = Arc::clone(&pool.0).acquire_owned();
            async { permit.await.map(|permit| Seat { used: 0, _permit: permit }) }
        })
    }
}

type Outcome = Result<(), Error<Unavailable>>;

/// Work with a seat, in the service.
async fn seated(work: impl Future<Output = ()>) -> Outcome {
    let mut seat = resource::current::<Seat>().and_then(|seat| seat.get()).map_err(Error::Service)?;
    let borrowed: &mut Seat = &mut seat;
    work.await;
    borrowed.used += 1;
    Ok(())
}

/// Shows: O1
#[tokio::test]
async fn a_call_has_a_resource_across_awaits_and_gives_it_back_with_its_answer() {
    let pool = Pool::of(1);
    let bell = Arc::new(Notify::new());
    let service = pool.layer().layer(service_fn(|()| seated(bell.notified())));
    let mut call = TestTask::new(service.oneshot(()));
    assert_eq!(pool.free(), 1);
    assert!(call.poll().is_pending());
    assert_eq!(pool.free(), 0);
    bell.notify_one();
    assert!(matches!(call.poll(), Poll::Ready(Ok(()))));
    // The future still exists.
    assert_eq!(pool.free(), 1);
    drop(call);
    assert_eq!(pool.free(), 1);
}

/// Shows: O1
#[tokio::test]
async fn it_goes_back_when_the_call_fails_panics_or_is_dropped() {
    type Call = Pin<Box<dyn Future<Output = Result<(), Error<&'static str>>>>>;
    let fails: fn() -> Call = || Box::pin(ready(Err(Error::Service("broken"))));
    let panics: fn() -> Call = || Box::pin(async { panic!("inside") });
    let panics_in_call: fn() -> Call = || panic!("inside");
    let hangs: fn() -> Call = || Box::pin(pending());
    for (name, make, ends) in
        [("fails", fails, true), ("panics", panics, false), ("in call", panics_in_call, false), ("hangs", hangs, false)]
    {
        let pool = Pool::of(1);
        let kept = Mutex::new(None);
        let service = pool.layer().layer(service_fn(|()| {
            *kept.lock().unwrap() = Some(resource::current::<Seat>().unwrap());
            make()
        }));
        let mut call = TestTask::new(service.oneshot(()));
        let polled = catch_unwind(AssertUnwindSafe(|| call.poll()));
        assert_eq!(matches!(polled, Ok(Poll::Ready(Err(Error::Service("broken"))))), ends, "{name}");
        assert_eq!(pool.free(), usize::from(ends), "{name}");
        drop(call);
        assert_eq!(pool.free(), 1, "{name}");
        let kept = kept.into_inner().unwrap().unwrap();
        assert_eq!(kept.get().unwrap_err().why(), Why::Over, "{name}");
    }
}

/// Shows: O1
#[tokio::test]
async fn a_handle_that_is_kept_is_empty_when_the_call_is_over_and_says_so() {
    let pool = Pool::of(1);
    let service = pool.layer().layer(service_fn(async |()| resource::current::<Seat>().map_err(Error::Service)));
    let kept: Lent<Seat> = service.oneshot(()).await.unwrap();
    assert_eq!(pool.free(), 1);
    let error = kept.get().unwrap_err();
    assert_eq!(error.why(), Why::Over);
    assert!(error.to_string().ends_with("Seat` is not available: the call that it was lent to is over"), "{error}");
}

/// A use cannot be interrupted, because the resource would then have two users.
///
/// Shows: O1
#[tokio::test]
async fn what_is_in_use_when_the_call_ends_goes_back_after_that_use() {
    let pool = Pool::of(1);
    let service = pool
        .layer()
        .layer(service_fn(async |()| resource::current::<Seat>().and_then(|seat| seat.get()).map_err(Error::Service)));
    let mut held: Held<Seat> = service.clone().oneshot(()).await.unwrap();
    let mut next = TestTask::new(service.oneshot(()));
    assert!(next.poll().is_pending());
    held.used += 1;
    assert_eq!(pool.free(), 0);
    drop(held);
    assert!(next.poll().is_ready());
}

#[tokio::test]
async fn a_second_use_at_once_is_told_so_and_one_after_the_other_is_fine() {
    let pool = Pool::of(1);
    let service = pool.layer().layer(service_fn(async |()| {
        let seat = resource::current::<Seat>().unwrap();
        let mut first = seat.get().unwrap();
        first.used += 1;
        assert_eq!(seat.get().unwrap_err().why(), Why::InUse);
        assert_eq!(resource::current::<Seat>().unwrap().get().unwrap_err().why(), Why::InUse);
        drop(first);
        // The same one, as it was left.
        assert_eq!(seat.clone().get().unwrap().used, 1);
        Ok::<_, Error<Infallible>>(())
    }));
    service.oneshot(()).await.unwrap();
}

#[tokio::test]
async fn what_was_taken_out_is_the_takers_and_the_call_has_none() {
    let pool = Pool::of(1);
    let service = pool.layer().layer(service_fn(async |()| {
        let seat = resource::current::<Seat>().unwrap();
        let taken = seat.get().unwrap().into_inner();
        assert_eq!(seat.get().unwrap_err().why(), Why::Taken);
        Ok::<_, Error<Infallible>>(taken)
    }));
    let taken = service.oneshot(()).await.unwrap();
    assert_eq!(pool.free(), 0);
    drop(taken);
    assert_eq!(pool.free(), 1);
}

#[tokio::test]
async fn outside_of_a_layer_and_in_a_task_of_its_own_there_is_none() {
    let none = || resource::current::<Seat>().err().map(|error| error.why());
    assert_eq!(none(), Some(Why::Missing));
    let pool = Pool::of(1);
    let service = pool.layer().layer(service_fn(async |()| {
        let seat = resource::current::<Seat>().unwrap();
        assert!(resource::current::<u8>().is_err());
        // A task gets the handle.
        let used = tokio::spawn(async move {
            let found = resource::current::<Seat>().is_ok();
            (found, seat.get().is_ok())
        });
        assert_eq!(used.await.unwrap(), (false, true));
        Ok::<_, Error<Infallible>>(())
    }));
    service.oneshot(()).await.unwrap();
    assert_eq!(none(), Some(Why::Missing));
    let error = resource::current::<u8>().unwrap_err();
    assert_eq!(error.to_string(), "the resource `u8` is not available: no `ResourceLayer` around this call lends it");
}

/// Shows: O1
#[tokio::test]
async fn calls_that_run_together_have_each_its_own_and_layers_nest() {
    let next = AtomicUsize::new(0);
    let numbered = ResourceLayer::new(|| ready(Ok::<_, Infallible>(next.fetch_add(1, Ordering::SeqCst))));
    let service = ServiceBuilder::new()
        .layer(ResourceLayer::new(|| ready(Ok::<_, Infallible>("outer"))))
        .layer(&numbered)
        .layer(ResourceLayer::new(|| ready(Ok::<_, Infallible>('x'))))
        .service(service_fn(async |()| {
            let number = *resource::current::<usize>().unwrap().get().unwrap();
            tokio::task::yield_now().await;
            assert_eq!(*resource::current::<usize>().unwrap().get().unwrap(), number);
            assert_eq!(*resource::current::<&str>().unwrap().get().unwrap(), "outer");
            Ok::<_, Error<Infallible>>(number)
        }));
    let calls = tokio::join!(service.clone().oneshot(()), service.clone().oneshot(()));
    assert_eq!((calls.0.unwrap(), calls.1.unwrap()), (0, 1));

    // Of two resources of one type, the inner one is found.
    let service = numbered.layer(numbered.layer(service_fn(async |()| {
        Ok::<_, Error<Infallible>>(*resource::current::<usize>().unwrap().get().unwrap())
    })));
    assert_eq!(service.oneshot(()).await.unwrap(), 3);
}

/// Shows: O1
#[tokio::test]
async fn what_cleans_up_finds_it_when_a_call_is_dropped_or_answered() {
    struct RollsBack(Arc<AtomicUsize>);
    impl Drop for RollsBack {
        fn drop(&mut self) {
            resource::current::<Seat>().unwrap().get().unwrap();
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }
    struct Answers(bool, #[expect(dead_code, reason = "kept for its drop")] RollsBack);
    impl Future for Answers {
        type Output = Result<(), Error<Infallible>>;
        fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Self::Output> {
            if self.0 { Poll::Ready(Ok(())) } else { Poll::Pending }
        }
    }
    for answers in [true, false] {
        let (pool, cleaned) = (Pool::of(1), Arc::new(AtomicUsize::new(0)));
        let service = pool.layer().layer(service_fn(|()| Answers(answers, RollsBack(Arc::clone(&cleaned)))));
        let mut call = TestTask::new(service.oneshot(()));
        assert_eq!(call.poll().is_ready(), answers);
        drop(call);
        assert_eq!((cleaned.load(Ordering::SeqCst), pool.free()), (1, 1));
    }
}

/// The pool of the request's tenant, from the scope.
///
/// Shows: O1
#[tokio::test]
async fn the_pool_may_come_from_the_scope_and_a_request_may_need_none() {
    let pool = Pool::of(1);
    let seat = async || {
        let pool = Scope::current().unwrap().require::<Pool>().map_err(|error| error.to_string())?;
        let permit = Arc::clone(&pool.0).acquire_owned().await.map_err(|error| error.to_string())?;
        Ok::<_, String>(Seat { used: 0, _permit: permit })
    };
    let service = ServiceBuilder::new()
        .layer(ContextLayer::new(Scope::root("app").with(pool.clone())))
        .layer(ResourceLayer::by_request(move |req: &Request<()>| (req.uri() != "/health").then(seat)))
        .service(service_fn(async |_: Request<()>| {
            let found = resource::current::<Seat>().is_ok();
            Ok::<_, Infallible>(Response::new(found.to_string()))
        }));
    for (path, found) in [("/health", "false"), ("/", "true")] {
        let Ok(answer) = service.clone().oneshot(Request::get(path).body(()).unwrap()).await;
        assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), found);
        assert_eq!(pool.free(), 1);
    }
}

/// Shows: O2
#[tokio::test]
async fn who_finds_none_free_waits_in_order_and_who_gives_up_leaves_no_trace() {
    let pool = Pool::of(1);
    let order = Arc::new(Mutex::new(Vec::new()));
    let bell = Arc::new(Notify::new());
    let layer = {
        let pool = pool.clone();
        ResourceLayer::new(move || Arc::clone(&pool.0).acquire_owned())
    };
    let service = layer.layer(service_fn(|number: u32| {
        order.lock().unwrap().push(number);
        let bell = Arc::clone(&bell);
        async move {
            bell.notified().await;
            Ok::<_, Error<Infallible>>(())
        }
    }));
    let mut calls: Vec<_> = (0..5).map(|number| Some(TestTask::new(service.clone().oneshot(number)))).collect();
    assert!(calls.iter_mut().flatten().all(|call| call.poll().is_pending()));
    calls[2] = None;
    for number in [0, 1, 3, 4] {
        assert_eq!(order.lock().unwrap().last(), Some(&number));
        bell.notify_one();
        assert!(calls[number as usize].as_mut().unwrap().poll().is_ready());
        // A later caller does not get ahead by polling first.
        assert!(calls[number as usize + 1..].iter_mut().rev().flatten().all(|call| call.poll().is_pending()));
    }
    assert_eq!(pool.free(), 1);
}

/// Shows: O2
#[tokio::test(start_paused = true)]
async fn past_the_longest_wait_a_call_is_rejected_and_is_in_nobodys_way() {
    let pool = Pool::of(1);
    let events = Arc::new(Mutex::new(Vec::new()));
    let heard = Arc::clone(&events);
    let observer = move |_: &LayerInfo, event: &LayerEvent<'_>| heard.lock().unwrap().push(event.name());
    let service =
        pool.layer().max_wait(SECOND).named("db").observer(observer).layer(service_fn(|()| seated(sleep(SECOND))));
    let start = Instant::now();
    let (first, late) = tokio::join!(service.clone().oneshot(()), async {
        advance(SECOND / 2).await;
        // Its second of waiting begins now, and the first call returns its resource in time.
        service.clone().oneshot(()).await
    });
    assert!(first.is_ok() && late.is_ok());
    assert_eq!(start.elapsed(), 2 * SECOND);
    assert_eq!(std::mem::take(&mut *events.lock().unwrap()), ["queued"]);

    let _taken = Arc::clone(&pool.0).acquire_owned().await.unwrap();
    let start = Instant::now();
    let outcome = service.clone().oneshot(()).await;
    assert_eq!(start.elapsed(), SECOND);
    let rejection = ziggurat::rejection(&outcome).unwrap();
    assert_eq!(rejection.reason(), &Reason::Exhausted { max_wait: SECOND });
    assert_eq!((rejection.class(), rejection.status().as_u16()), (Class::Ignored, 503));
    assert_eq!(rejection.to_string(), "resource `db`: no resource became free within 1s");
    assert_eq!(*events.lock().unwrap(), ["queued", "rejected"]);
    drop(_taken);
    assert_eq!(pool.free(), 1);
}

#[tokio::test(start_paused = true)]
async fn with_no_time_to_wait_nobody_waits_and_with_all_of_it_everybody_does() {
    let pool = Pool::of(1);
    let taken = Arc::clone(&pool.0).acquire_owned().await.unwrap();
    let inner = service_fn(|()| seated(ready(())));
    let events = Arc::new(Mutex::new(Vec::new()));
    let heard = Arc::clone(&events);
    let observer = move |_: &LayerInfo, event: &LayerEvent<'_>| heard.lock().unwrap().push(event.name());
    let mut call = TestTask::new(pool.layer().max_wait(Duration::ZERO).observer(observer).layer(inner).oneshot(()));
    let Poll::Ready(outcome) = call.poll() else { panic!("it waits") };
    assert_eq!(*events.lock().unwrap(), ["rejected"]);
    assert_eq!(ziggurat::rejection(&outcome).unwrap().reason(), &Reason::Exhausted { max_wait: Duration::ZERO });

    let mut call = TestTask::new(pool.layer().max_wait(Duration::MAX).layer(inner).oneshot(()));
    assert!(call.poll().is_pending());
    advance(Duration::from_secs(1_000_000)).await;
    assert!(call.poll().is_pending());
    drop(taken);
    assert!(call.poll().is_ready());
    // A free resource is lent, however little time there is to wait.
    pool.layer().max_wait(Duration::ZERO).layer(inner).oneshot(()).await.unwrap();
}

/// Shows: O2
#[tokio::test(start_paused = true)]
async fn a_timeout_outside_bounds_the_wait_and_a_breaker_does_not_count_it() {
    let pool = Pool::of(1);
    let taken = Arc::clone(&pool.0).acquire_owned().await.unwrap();
    let breaker = CircuitBreakerLayer::consecutive(1);
    let circuit = breaker.handle();
    let service = ServiceBuilder::new()
        .layer(TimeoutLayer::new(SECOND))
        .layer(breaker)
        .layer(pool.layer())
        .service(service_fn(|()| seated(pending())));
    let start = Instant::now();
    let outcome = service.clone().oneshot(()).await;
    assert!(ziggurat::rejection(&outcome).unwrap().is_timed_out());
    assert_eq!((start.elapsed(), circuit.state()), (SECOND, State::Closed));
    drop(taken);
    assert_eq!(pool.free(), 1);
    // A call that hangs with its resource counts against the service.
    assert!(service.oneshot(()).await.is_err());
    assert_eq!((circuit.state(), pool.free()), (State::Open, 1));
}

/// A call that has its resource waits only for the service.
///
/// Shows: B6
#[tokio::test(start_paused = true)]
async fn a_service_that_hangs_in_its_readiness_behind_a_lent_resource_is_a_failure() {
    /// Ready twice, and then never again.
    #[derive(Clone)]
    struct ReadyTwice(Arc<AtomicUsize>);
    impl Service<()> for ReadyTwice {
        type Response = ();
        type Error = Error<Infallible>;
        type Future = Pin<Box<dyn Future<Output = Result<(), Error<Infallible>>> + Send>>;
        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
            if self.0.fetch_add(1, Ordering::SeqCst) < 2 { Poll::Ready(Ok(())) } else { Poll::Pending }
        }
        fn call(&mut self, (): ()) -> Self::Future {
            Box::pin(async {
                sleep(SECOND).await;
                Ok(())
            })
        }
    }
    let breaker = CircuitBreakerLayer::consecutive(1);
    let circuit = breaker.handle();
    let service = ServiceBuilder::new()
        .layer(TimeoutLayer::new(10 * SECOND))
        .layer(breaker)
        .layer(Pool::of(1).layer())
        .service(ReadyTwice(Arc::default()));
    let (mut first, mut second) = (service.clone(), service);
    let calls = (first.ready().await.unwrap().call(()), second.ready().await.unwrap().call(()));
    let (first, second) = tokio::join!(calls.0, calls.1);
    first.unwrap();
    assert!(ziggurat::rejection(&second).unwrap().is_timed_out());
    assert_eq!(circuit.state(), State::Open);
}

/// Shows: O1
#[tokio::test(start_paused = true)]
async fn each_attempt_of_a_retry_has_its_own_and_none_while_it_sleeps() {
    let pool = Pool::of(1);
    let attempts = Arc::new(Mutex::new(Vec::new()));
    let inner = service_fn(|()| {
        let used = resource::current::<Seat>().map(|seat| std::mem::replace(&mut seat.get().unwrap().used, 7));
        attempts.lock().unwrap().push(used.unwrap());
        ready(if attempts.lock().unwrap().len() < 3 { Err(Error::Service("again")) } else { Ok(()) })
    });
    let service = ServiceBuilder::new().layer(RetryLayer::new().backoff(SECOND)).layer(pool.layer()).service(inner);
    let mut call = TestTask::new(service.oneshot(()));
    for _ in 0..2 {
        assert!(call.poll().is_pending());
        assert_eq!(pool.free(), 1);
        advance(SECOND).await;
    }
    assert!(call.poll().is_ready());
    assert_eq!(*attempts.lock().unwrap(), [0, 0, 0]);
}

/// Shows: O2
#[tokio::test]
async fn an_error_of_the_function_is_a_rejection_that_tells_strangers_nothing() {
    #[derive(Clone, Copy)]
    struct Refused;
    impl fmt::Display for Refused {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("password `hunter2` refused")
        }
    }
    let said = Arc::new(Mutex::new(Vec::new()));
    let heard = Arc::clone(&said);
    let layer =
        ResourceLayer::new(|| ready(Err::<Seat, _>(Refused))).observer(move |_: &LayerInfo, event: &LayerEvent<'_>| {
            if let LayerEvent::Rejected(rejection) = event {
                heard.lock().unwrap().push(rejection.to_string());
            }
        });
    let inner = service_fn(|_: Request<()>| async { Ok::<_, Infallible>(Response::new(String::new())) });
    let Ok(answer) = layer.layer(inner).oneshot(Request::new(())).await;
    assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(!format!("{:?} {:?}", answer.headers(), answer.body()).contains("hunter2"));
    assert_eq!(*said.lock().unwrap(), ["resource: no resource available: password `hunter2` refused"]);

    let rejection = answer.extensions().get::<Rejection>().unwrap();
    assert_eq!(rejection.class(), Class::TRANSIENT);
    assert_eq!(rejection.public_message(), "resource: the resource is unavailable");
}

/// A body that yields the resource that it finds when it is polled.
#[derive(Default)]
struct Reads(Option<oneshot::Receiver<()>>);

impl Body for Reads {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let Some(until) = &mut self.0 else { return Poll::Ready(None) };
        if Pin::new(until).poll(cx).is_pending() {
            return Poll::Pending;
        }
        self.0 = None;
        let found = resource::current::<Seat>().and_then(|seat| seat.get()).is_ok();
        Poll::Ready(Some(Ok(Frame::data(found.to_string().into()))))
    }
}

impl Drop for Reads {
    fn drop(&mut self) {
        if self.0.is_some() {
            resource::current::<Seat>().unwrap().get().unwrap();
        }
    }
}

/// Shows: O1
#[tokio::test]
async fn until_the_body_ends_a_call_keeps_its_resource_and_the_body_finds_it() {
    let pool = Pool::of(1);
    let (sender, receiver) = oneshot::channel();
    let bodies = Mutex::new(vec![oneshot::channel().1, receiver]);
    let service = pool.layer().until_body_end().layer(service_fn(|_: Request<()>| {
        let body = Reads(bodies.lock().unwrap().pop());
        ready(Ok::<_, Infallible>(Response::new(body)))
    }));
    let Ok(answer) = service.clone().oneshot(Request::new(())).await;
    assert_eq!(pool.free(), 0);
    sender.send(()).unwrap();
    let mut body = answer.into_body();
    assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "true");
    assert_eq!(pool.free(), 0);
    assert!(body.frame().await.is_none());
    assert_eq!(pool.free(), 1);
    drop(body);

    let Ok(dropped) = service.oneshot(Request::new(())).await;
    assert_eq!(pool.free(), 0);
    drop(dropped);
    assert_eq!(pool.free(), 1);

    let empty = service_fn(|_: Request<()>| ready(Ok::<_, Infallible>(Response::new(Empty::<Bytes>::new()))));
    let Ok(empty) = pool.layer().until_body_end().layer(empty).oneshot(Request::new(())).await;
    assert_eq!(pool.free(), 1);
    drop(empty);
}

/// Shows: O2
#[tokio::test]
async fn a_service_that_was_made_ready_is_given_back_while_a_call_waits() {
    let pool = Pool::of(1);
    let taken = Arc::clone(&pool.0).acquire_owned().await.unwrap();
    // tower's limit reserves a permit in `poll_ready`.
    let limited =
        tower::limit::GlobalConcurrencyLimitLayer::new(1).layer(service_fn(|()| ready(Ok::<_, Error<Infallible>>(()))));
    let mut service = pool.layer().layer(limited.clone());
    let response = poll_fn(|cx| service.poll_ready(cx)).await.map(|()| service.call(())).unwrap();
    let mut waiting = TestTask::new(response);
    assert!(waiting.poll().is_pending());
    limited.oneshot(()).await.unwrap();
    drop(taken);
    assert!(waiting.poll().is_ready());
}
