//! The timeout layer, on a paused clock.

use std::{
    convert::Infallible,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::time::{Instant, sleep};
use tower::{Service, ServiceBuilder, ServiceExt, service_fn};
use ziggurat::{Deadline, Error, LayerEvent, LayerInfo, Reason, Scope, testing::TestTask, timeout::TimeoutLayer};

const SECOND: Duration = Duration::from_secs(1);

/// Responds after the requested time.
fn sleeper() -> impl Service<Duration, Response = &'static str, Error = Error<String>, Future: Send> + Clone + Send {
    service_fn(|time| async move {
        sleep(time).await;
        Ok("completed")
    })
}

/// Shows: T1
#[tokio::test(start_paused = true)]
async fn a_slow_call_ends_exactly_at_the_limit_after_its_clean_up() {
    struct CleanUp(Arc<Mutex<Vec<&'static str>>>);
    impl Drop for CleanUp {
        fn drop(&mut self) {
            self.0.lock().unwrap().push("cleaned up");
        }
    }
    let log = Arc::new(Mutex::new(Vec::new()));
    let service = ServiceBuilder::new().layer(TimeoutLayer::new(2 * SECOND)).service(service_fn(|log| async {
        let _clean_up = CleanUp(log);
        sleep(5 * SECOND).await;
        Ok::<_, Error<Infallible>>(())
    }));
    let start = Instant::now();
    let outcome = service.oneshot(Arc::clone(&log)).await;
    log.lock().unwrap().push("answered");
    assert_eq!(start.elapsed(), 2 * SECOND);
    assert_eq!(*log.lock().unwrap(), ["cleaned up", "answered"]);
    let rejection = ziggurat::rejection(&outcome).unwrap();
    assert_eq!(rejection.reason(), &Reason::TimedOut { limit: 2 * SECOND });
    assert_eq!(rejection.layer(), "timeout");
}

/// The clock starts at the first poll, not at `call`.
///
/// Shows: T1
#[tokio::test(start_paused = true)]
async fn time_before_the_first_poll_does_not_count() {
    let mut service = ServiceBuilder::new().layer(TimeoutLayer::new(2 * SECOND)).service(sleeper());
    let response = service.ready().await.unwrap().call(Duration::MAX);
    sleep(10 * SECOND).await;
    let start = Instant::now();
    assert!(ziggurat::rejection(&response.await).is_some());
    assert_eq!(start.elapsed(), 2 * SECOND);
}

/// So it is inside a running deadline.
///
/// Shows: T1
#[tokio::test(start_paused = true)]
async fn time_before_the_first_poll_does_not_count_beside_another_deadline() {
    let mut service = ServiceBuilder::new().layer(TimeoutLayer::new(2 * SECOND)).service(sleeper());
    let calls = async {
        let response = service.ready().await.unwrap().call(Duration::MAX);
        sleep(10 * SECOND).await;
        let start = Instant::now();
        assert!(ziggurat::rejection(&response.await).is_some());
        assert_eq!(start.elapsed(), 2 * SECOND);
    };
    Deadline::after(60 * SECOND).within(calls).await;
}

/// Shows: T2
#[tokio::test(start_paused = true)]
async fn answers_and_errors_in_time_pass_through() {
    let service = ServiceBuilder::new().layer(TimeoutLayer::new(SECOND)).service(sleeper());
    assert_eq!(service.oneshot(SECOND / 2).await.unwrap(), "completed");

    let service = ServiceBuilder::new()
        .layer(TimeoutLayer::new(SECOND))
        .service(service_fn(|()| async { Err::<(), _>(Error::Service("own")) }));
    assert!(matches!(service.oneshot(()).await, Err(Error::Service("own"))));
}

/// Shows: T2
#[tokio::test(start_paused = true)]
async fn an_answer_in_the_same_poll_as_the_limit_wins() {
    // The service wakes at the very instant of the limit. Whichever timer fires first, the response is polled first.
    let service = ServiceBuilder::new().layer(TimeoutLayer::new(SECOND)).service(sleeper());
    assert_eq!(service.oneshot(SECOND).await.unwrap(), "completed");
}

/// Shows: T2
#[tokio::test(start_paused = true)]
async fn a_limit_of_zero_lets_a_ready_answer_through_and_nothing_else() {
    let layer = TimeoutLayer::new(Duration::ZERO);
    let ready = layer_over(&layer, service_fn(|()| async { Ok::<_, Error<()>>("ready") }));
    assert_eq!(ready.oneshot(()).await.unwrap(), "ready");

    let start = Instant::now();
    let outcome = layer_over(&layer, sleeper()).oneshot(SECOND).await;
    assert!(ziggurat::rejection(&outcome).unwrap().is_timed_out());
    assert_eq!(start.elapsed(), Duration::ZERO);
}

fn layer_over<L: tower::Layer<S>, S>(layer: &L, service: S) -> L::Service {
    layer.layer(service)
}

/// Bad input: any duration is valid.
#[tokio::test(start_paused = true)]
async fn the_longest_limit_never_ends() {
    let service = ServiceBuilder::new().layer(TimeoutLayer::new(Duration::MAX)).service(sleeper());
    assert_eq!(service.oneshot(SECOND * 1_000_000).await.unwrap(), "completed");
}

/// The telemetry tests show its span.
///
/// Shows: T3, X7
#[tokio::test(start_paused = true)]
async fn the_scope_is_current_inside() {
    let service = ServiceBuilder::new().layer(TimeoutLayer::new(SECOND)).service(service_fn(|()| async {
        sleep(SECOND / 2).await;
        Ok::<_, Error<()>>(Scope::current().unwrap().name().to_owned())
    }));
    let scope = Scope::root("app");
    assert_eq!(scope.within(service.oneshot(())).await.unwrap(), "app");
}

/// Shows: T4
#[tokio::test(start_paused = true)]
async fn of_nested_limits_the_earlier_one_ends_the_call() {
    for (outer, inner, ended_by) in [(1, 2, "outer"), (2, 1, "inner"), (1, 1, "outer")] {
        let service = ServiceBuilder::new()
            .layer(TimeoutLayer::new(outer * SECOND).named("outer"))
            .layer(TimeoutLayer::new(inner * SECOND).named("inner"))
            .service(sleeper());
        let start = Instant::now();
        let outcome = service.oneshot(5 * SECOND).await;
        assert_eq!(ziggurat::rejection(&outcome).unwrap().name(), Some(ended_by));
        assert_eq!(start.elapsed(), SECOND);
    }
}

/// An inner call that starts late is still bound by the outer limit, which began before it.
///
/// Shows: T4
#[tokio::test(start_paused = true)]
async fn an_inner_limit_that_would_end_after_the_outer_one_leaves_it_to_that_one() {
    let inner = ServiceBuilder::new().layer(TimeoutLayer::new(2 * SECOND).named("inner")).service(sleeper());
    let service =
        ServiceBuilder::new().layer(TimeoutLayer::new(3 * SECOND).named("outer")).service(service_fn(move |time| {
            let inner = inner.clone();
            async move {
                sleep(2 * SECOND).await;
                inner.oneshot(time).await
            }
        }));
    let start = Instant::now();
    let outcome = service.oneshot(5 * SECOND).await;
    assert_eq!(ziggurat::rejection(&outcome).unwrap().name(), Some("outer"));
    assert_eq!(start.elapsed(), 3 * SECOND);
}

/// Shows: T4
#[tokio::test(start_paused = true)]
async fn the_deadline_is_visible_inside_and_gone_outside() {
    let seen = service_fn(|()| async {
        let at_once = Deadline::current().unwrap();
        sleep(SECOND).await;
        let later = Deadline::current().unwrap();
        assert_eq!(at_once, later);
        Ok::<_, Error<()>>(later.remaining())
    });
    let service =
        ServiceBuilder::new().layer(TimeoutLayer::new(3 * SECOND)).layer(TimeoutLayer::new(5 * SECOND)).service(seen);
    assert_eq!(service.oneshot(()).await.unwrap(), 2 * SECOND);
    assert_eq!(Deadline::current(), None);
}

/// Code that asks for the deadline in `call` starts the clock there, for this limit and those inside.
#[tokio::test(start_paused = true)]
async fn asking_for_the_deadline_starts_the_clock() {
    let mut service = ServiceBuilder::new()
        .layer(TimeoutLayer::new(2 * SECOND))
        .map_request(|time: Duration| {
            assert_eq!(Deadline::current().unwrap().remaining(), 2 * SECOND);
            time
        })
        .service(sleeper());
    let response = service.ready().await.unwrap().call(5 * SECOND);
    sleep(SECOND).await;
    let start = Instant::now();
    assert!(ziggurat::rejection(&response.await).is_some());
    assert_eq!(start.elapsed(), SECOND);
}

/// Two requests on one task, polled in turn: each has its own deadline.
#[tokio::test(start_paused = true)]
async fn interleaved_calls_see_their_own_deadlines() {
    let service = |seconds: u32| {
        ServiceBuilder::new().layer(TimeoutLayer::new(seconds * SECOND)).service(service_fn(move |()| async move {
            for _ in 0..3 {
                let left = Deadline::current().unwrap().remaining();
                assert!(left <= seconds * SECOND && left > (seconds - 1) * SECOND);
                tokio::task::yield_now().await;
            }
            Ok::<_, Error<()>>(())
        }))
    };
    let (first, second) = tokio::join!(service(1).oneshot(()), service(5).oneshot(()));
    assert!(first.is_ok() && second.is_ok());
}

/// Shows: T5
#[tokio::test(start_paused = true)]
async fn the_limit_can_be_a_function_of_the_request() {
    let service = ServiceBuilder::new()
        .layer(TimeoutLayer::new(|time: &Duration| (*time > SECOND).then_some(*time - SECOND)))
        .service(sleeper());
    let start = Instant::now();
    assert!(ziggurat::rejection(&service.clone().oneshot(3 * SECOND).await).is_some());
    assert_eq!(start.elapsed(), 2 * SECOND);
    // `None` means no limit for this request.
    assert_eq!(service.oneshot(SECOND).await.unwrap(), "completed");
}

/// Shows: T5
#[tokio::test(start_paused = true)]
async fn the_limit_can_come_from_scoped_state_and_change_while_the_program_runs() {
    struct Limits(Duration);
    let app = Scope::root("app").with(Limits(SECOND));
    let service = ServiceBuilder::new()
        .layer(TimeoutLayer::new(|_: &Duration| {
            Scope::current().and_then(|scope| scope.get::<Limits>()).map(|limits| limits.0)
        }))
        .service(sleeper());
    let outcome = app.within(service.clone().oneshot(2 * SECOND)).await;
    assert!(ziggurat::rejection(&outcome).is_some());
    app.update(|_: &Limits| Limits(3 * SECOND)).unwrap();
    assert!(app.within(service.oneshot(2 * SECOND)).await.is_ok());
}

/// Shows: T6
#[tokio::test(start_paused = true)]
async fn dropping_the_response_future_drops_the_call() {
    struct Running(Arc<AtomicBool>);
    impl Drop for Running {
        fn drop(&mut self) {
            self.0.store(false, Ordering::SeqCst);
        }
    }
    let running = Arc::new(AtomicBool::new(false));
    let service = ServiceBuilder::new().layer(TimeoutLayer::new(SECOND)).service(service_fn(
        |running: Arc<AtomicBool>| async move {
            running.store(true, Ordering::SeqCst);
            let _running = Running(running);
            std::future::pending::<Result<(), Error<()>>>().await
        },
    ));
    let mut response = TestTask::new(service.oneshot(Arc::clone(&running)));
    assert!(response.poll().is_pending());
    assert!(running.load(Ordering::SeqCst));
    drop(response);
    assert!(!running.load(Ordering::SeqCst));
}

/// A panic inside leaves no deadline behind.
#[tokio::test(start_paused = true)]
async fn a_panic_inside_leaves_nothing_behind() {
    let service = ServiceBuilder::new()
        .layer(TimeoutLayer::new(SECOND))
        .service(service_fn(|()| async { if true { panic!("inside") } else { Ok::<(), Error<()>>(()) } }));
    let mut response = TestTask::new(service.oneshot(()));
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| response.poll()));
    assert!(panicked.is_err());
    drop(response);
    assert_eq!(Deadline::current(), None);
}

#[tokio::test(start_paused = true)]
async fn an_observer_hears_of_it_with_the_layers_name() {
    let heard = Arc::new(AtomicUsize::new(0));
    let observer = {
        let heard = Arc::clone(&heard);
        move |info: &LayerInfo, event: &LayerEvent<'_>| {
            assert_eq!((info.layer(), info.name()), ("timeout", Some("attempt")));
            assert!(matches!(event, LayerEvent::Rejected(rejection) if rejection.name() == Some("attempt")));
            heard.fetch_add(1, Ordering::SeqCst);
        }
    };
    let service =
        ServiceBuilder::new().layer(TimeoutLayer::new(SECOND).named("attempt").observer(observer)).service(sleeper());
    assert!(service.clone().oneshot(SECOND / 2).await.is_ok());
    assert_eq!(heard.load(Ordering::SeqCst), 0);
    assert!(service.oneshot(2 * SECOND).await.is_err());
    assert_eq!(heard.load(Ordering::SeqCst), 1);
}

/// A deadline that was carried into a task is only informative there. The timeouts in the task enforce it.
///
/// Shows: T4
#[tokio::test(start_paused = true)]
async fn a_deadline_that_was_carried_over_ends_a_call_with_a_later_limit() {
    let (own, told) = (Reason::TimedOut { limit: 2 * SECOND }, Reason::DeadlineExceeded { after: Some(2 * SECOND) });
    for (limit, carried, expected) in [(10, 2, &told), (2, 10, &own), (2, 2, &own)] {
        let service = ServiceBuilder::new()
            .layer(TimeoutLayer::new(limit * SECOND).named("outer"))
            .layer(TimeoutLayer::new(60 * SECOND).named("inner"))
            .service(sleeper());
        let start = Instant::now();
        let deadline = Deadline::after(carried * SECOND);
        let outcome = tokio::spawn(deadline.within(service.oneshot(Duration::MAX))).await.unwrap();
        assert_eq!(start.elapsed(), 2 * SECOND);
        let rejection = ziggurat::rejection(&outcome).unwrap();
        assert_eq!(rejection.name(), Some("outer"));
        assert_eq!(rejection.reason(), expected);
    }
}

/// A timeout that does not apply to a request does not enforce a deadline that was carried over either.
#[tokio::test(start_paused = true)]
async fn a_timeout_without_a_limit_ends_nothing() {
    let service = ServiceBuilder::new().layer(TimeoutLayer::new(|_: &Duration| None)).service(sleeper());
    let outcome = Deadline::after(SECOND).within(service.oneshot(5 * SECOND)).await;
    assert_eq!(outcome.unwrap(), "completed");
}

/// This holds even with a timeout without a limit in between.
#[tokio::test(start_paused = true)]
async fn asking_starts_the_clock_of_a_limit_further_out() {
    let mut service = ServiceBuilder::new()
        .layer(TimeoutLayer::new(10 * SECOND))
        .layer(TimeoutLayer::new(|_: &Duration| None))
        .map_request(|time: Duration| {
            assert_eq!(Deadline::current().unwrap().remaining(), 10 * SECOND);
            time
        })
        .service(sleeper());
    let response = service.ready().await.unwrap().call(Duration::MAX);
    sleep(5 * SECOND).await;
    let start = Instant::now();
    assert!(ziggurat::rejection(&response.await).is_some());
    assert_eq!(start.elapsed(), 5 * SECOND);
}

/// Clean-up code can see whether the call was out of time, whichever layer drops it.
#[tokio::test(start_paused = true)]
async fn the_deadline_is_in_place_while_the_call_is_dropped_from_outside() {
    struct Asks(Arc<Mutex<Vec<Option<bool>>>>);
    impl Drop for Asks {
        fn drop(&mut self) {
            self.0.lock().unwrap().push(Deadline::current().map(|deadline| deadline.has_passed()));
        }
    }
    let service = service_fn(|asks: Asks| async move {
        let _asks = asks;
        std::future::pending::<Result<(), Error<()>>>().await
    });
    let limited = ServiceBuilder::new().layer(TimeoutLayer::new(SECOND)).service(service);
    let answers = Arc::new(Mutex::new(Vec::new()));
    for late in [Duration::ZERO, 2 * SECOND] {
        let mut call = TestTask::new(limited.clone().oneshot(Asks(Arc::clone(&answers))));
        assert!(call.poll().is_pending());
        tokio::time::advance(late).await;
        drop(call);
        let mut call = TestTask::new(Deadline::after(SECOND).within(service.oneshot(Asks(Arc::clone(&answers)))));
        assert!(call.poll().is_pending());
        tokio::time::advance(late).await;
        drop(call);
    }
    assert_eq!(*answers.lock().unwrap(), [Some(false), Some(false), Some(true), Some(true)]);
}

/// Unless a layer in between waits in its response future, the service's readiness is not covered.
#[tokio::test(start_paused = true)]
async fn the_wait_for_readiness_is_not_covered_by_a_timeout_alone() {
    let limit = tower::limit::ConcurrencyLimitLayer::new(1);
    let mut service = ServiceBuilder::new().layer(TimeoutLayer::new(SECOND)).layer(limit).service(sleeper());
    let mut other = service.clone();
    let first = service.ready().await.unwrap().call(Duration::from_millis(500));
    let mut waiting = TestTask::new(other.ready());
    sleep(60 * SECOND).await;
    assert!(waiting.poll().is_pending());
    drop(first);
    assert!(waiting.poll().is_ready());
}

/// A deadline may be carried over to a call that has already begun.
///
/// Shows: T4
#[tokio::test(start_paused = true)]
async fn a_deadline_that_a_call_is_told_of_later_ends_it_too() {
    let service = ServiceBuilder::new()
        .layer(TimeoutLayer::new(30 * SECOND))
        .map_err(Error::Service)
        .service(service_fn(|()| std::future::pending::<Result<(), Infallible>>()));
    let start = Instant::now();
    let mut call = Box::pin(service.oneshot(()));
    assert!(futures_util::poll!(&mut call).is_pending());
    let outcome = Deadline::after(SECOND).within(call).await;
    assert!(ziggurat::rejection(&outcome).unwrap().is_timed_out());
    assert_eq!(start.elapsed(), SECOND);
}

/// Inside a running deadline, a limit starts at `call`, for comparison, and again at the first poll.
#[tokio::test(start_paused = true)]
async fn a_limit_beside_a_running_deadline_begins_with_its_first_poll_too() {
    let inner = ServiceBuilder::new()
        .layer(TimeoutLayer::new(3 * SECOND))
        .map_err(Error::Service)
        .service(service_fn(|()| std::future::pending::<Result<(), Infallible>>()));
    let service = ServiceBuilder::new().layer(TimeoutLayer::new(30 * SECOND)).service(service_fn(move |()| {
        let mut inner = inner.clone();
        async move {
            sleep(SECOND).await;
            let call = inner.call(());
            sleep(SECOND).await;
            call.await
        }
    }));
    let start = Instant::now();
    assert!(service.oneshot(()).await.is_err());
    assert_eq!(start.elapsed(), 5 * SECOND);
}

/// A deadline that has already passed ends a call before it is sent, and the rejection names it.
///
/// Shows: F2
#[tokio::test(start_paused = true)]
async fn a_call_whose_surrounding_deadline_has_passed_is_not_sent() {
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&calls);
    let service =
        ServiceBuilder::new().layer(TimeoutLayer::new(10 * SECOND).named("attempt")).service(service_fn(move |()| {
            counted.fetch_add(1, Ordering::SeqCst);
            std::future::ready(Ok::<_, Error<Infallible>>(()))
        }));
    let late = |outcome: Result<(), Error<Infallible>>| {
        let rejection = ziggurat::rejection(&outcome).unwrap().clone();
        assert_eq!(rejection.reason(), &Reason::DeadlineExceeded { after: None });
        assert_eq!(
            rejection.to_string(),
            "timeout `attempt`: the caller's deadline had passed before the call was sent"
        );
        assert!(rejection.is_timed_out());
    };

    // An informative deadline.
    let told = Deadline::after(SECOND);
    sleep(SECOND).await;
    late(told.within(service.clone().oneshot(())).await);

    // An outer limit whose timer is not polled meanwhile, because the handler is busy.
    let busy = ServiceBuilder::new().layer(TimeoutLayer::new(SECOND)).service(service_fn(move |()| {
        let service = service.clone();
        async move {
            sleep(SECOND / 2).await;
            tokio::time::advance(SECOND).await;
            late(service.oneshot(()).await);
            Ok::<_, Error<Infallible>>(())
        }
    }));
    busy.oneshot(()).await.unwrap();
    assert_eq!(calls.load(Ordering::SeqCst), 0);
}
