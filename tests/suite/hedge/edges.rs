//! Attempts that starve, fail, or panic beside each other, and all that waits on this side.

use tokio::sync::Semaphore;
use ziggurat::{cache::CacheLayer, fallback::FallbackLayer, resource::ResourceLayer};

use super::*;

/// A connection reads the body in a task of its own, and nothing wakes the call when it has read all of it.
///
/// Shows: H1
#[tokio::test(start_paused = true)]
async fn a_body_that_another_task_sends_is_hedged_also_without_a_delay() {
    for delay in [Duration::ZERO, MILLI, DELAY] {
        let service = ServiceBuilder::new().layer(ReplayLayer::new()).layer(HedgeLayer::after(delay).http()).service(
            service_fn(|request: Request<ReplayBody<_>>| {
                let number = ziggurat::attempt();
                let sent = tokio::spawn(request.into_body().collect());
                async move {
                    if number == 1 {
                        pending::<()>().await;
                    }
                    Ok::<_, Error<io::Error>>(Response::new(sent.await.unwrap().unwrap().to_bytes()))
                }
            }),
        );
        let parts = tokio_stream::iter(["a", "b", "c"]).then(async |part| {
            sleep(100 * MILLI).await;
            Ok::<_, io::Error>(Frame::data(Bytes::from(part)))
        });
        let start = Instant::now();
        let response = service.oneshot(Request::put("/").body(StreamBody::new(parts)).unwrap()).await.unwrap();
        assert_eq!(response.into_body(), "abc");
        // The delay doubles each time that it is too early.
        assert!((300 * MILLI..=700 * MILLI).contains(&start.elapsed()), "{delay:?}: {:?}", start.elapsed());
    }
}

/// Shows: H1
#[tokio::test(start_paused = true)]
async fn a_call_that_waits_for_a_resource_is_not_hedged_and_no_hedge_waits_for_one() {
    let (observer, names) = events();
    let pool = Arc::new(Semaphore::new(1));
    let log = Log::default();
    let resource = {
        let pool = Arc::clone(&pool);
        ResourceLayer::new(move || Arc::clone(&pool).acquire_owned())
    };
    let service = ServiceBuilder::new()
        .layer(HedgeLayer::after(DELAY).observer(observer))
        .layer(resource)
        .service(log.service(Attempt(SECOND, Ok("first")), Attempt(MILLI, Ok("second"))));
    let (one, other) = (service.clone().oneshot(()), service.oneshot(()));
    let start = Instant::now();
    let (one, other) = tokio::join!(one, other);
    assert_eq!((one.unwrap(), other.unwrap(), start.elapsed()), ("first", "first", 2 * SECOND));
    assert_eq!(log.calls(), [(Duration::ZERO, 1), (SECOND, 1)]);
    assert_eq!(seen(&names), ["hedge_refused queue"; 2]);
    assert_eq!(pool.available_permits(), 1);
}

/// Uses up what tokio's cooperative budget leaves, in every poll.
async fn busy() {
    loop {
        std::future::poll_fn(|cx: &mut Context<'_>| {
            while tokio::task::coop::has_budget_remaining() {
                let Poll::Ready(()) = pin!(tokio::task::consume_budget()).poll(cx) else { break };
            }
            cx.waker().wake_by_ref();
            Poll::<()>::Pending
        })
        .await;
    }
}

/// Shows: F1, H1
#[tokio::test(start_paused = true)]
async fn a_first_attempt_that_uses_up_the_budget_of_the_task_leaves_the_second_its_share() {
    let service = HedgeLayer::after(Duration::ZERO).layer(service_fn(async |()| {
        if ziggurat::attempt() == 1 {
            busy().await;
        }
        // Any resource of tokio's.
        tokio::task::consume_budget().await;
        Ok::<_, Error<Infallible>>("second")
    }));
    let call = tokio::spawn(service.oneshot(()));
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    assert!(call.is_finished(), "the second attempt starves");
}

/// A response whose drop panics if it is a failure.
#[derive(Debug, Clone)]
struct Fragile {
    fails: bool,
}

impl Drop for Fragile {
    fn drop(&mut self) {
        assert!(!self.fails || std::thread::panicking(), "in drop");
    }
}

fn fragile(outcome: Result<&Fragile, &Error<&'static str>>) -> Class {
    match outcome {
        Ok(Fragile { fails: true }) => Class::TRANSIENT,
        _ => Class::Success,
    }
}

/// Shows: H2
#[tokio::test(start_paused = true)]
async fn a_failed_response_that_panics_in_its_drop_does_not_cost_the_other_attempt() {
    let asks = |outcome: Result<&Fragile, &Error<&'static str>>| match fragile(outcome) {
        Class::Success => Class::Success,
        _ => Class::Failure { transient: true, retry_after: Some(SECOND) },
    };
    // The response of an attempt that asks for a wait is kept.
    for (first_fails, first, second) in [(true, 10, 10), (true, 60, 100), (false, 100, 10)] {
        let service = service_fn(async |()| {
            let is_first = ziggurat::attempt() == 1;
            sleep(if is_first { first } else { second } * MILLI).await;
            Ok::<_, Error<&'static str>>(Fragile { fails: is_first == first_fails })
        });
        let layer = HedgeLayer::after(DELAY).classify(fragile);
        assert!(!layer.layer(service).oneshot(()).await.unwrap().fails, "{first_fails} {first}");
        if first > 50 {
            let layer = HedgeLayer::after(DELAY).classify(asks);
            assert!(!layer.layer(service).oneshot(()).await.unwrap().fails, "{first_fails} {first}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_failed_response_that_panics_in_its_drop_does_not_cost_what_takes_its_place() {
    let calls = AtomicU32::new(0);
    let service = service_fn(async |()| {
        let fails = calls.fetch_add(1, Ordering::SeqCst) > 0;
        Ok::<_, Error<&'static str>>(Fragile { fails })
    });
    let cache = CacheLayer::new(1, SECOND, |(): &()| Some(())).classify(fragile).stale_if_error(10 * SECOND);
    let cached = cache.layer(service);
    assert!(!cached.clone().oneshot(()).await.unwrap().fails);
    sleep(2 * SECOND).await;
    assert!(!cached.oneshot(()).await.unwrap().fails);
    let fallback = FallbackLayer::value(Fragile { fails: false }).classify(fragile);
    assert!(!fallback.layer(service).oneshot(()).await.unwrap().fails);
    assert_eq!(calls.load(Ordering::SeqCst), 3);
}

/// The request of a hedge that was refused is gone.
#[tokio::test(start_paused = true)]
async fn a_hedge_that_was_refused_in_a_queue_is_not_sent_after_a_failure() {
    let (observer, names) = events();
    let limit = ConcurrencyLimitLayer::new(1);
    let log = Log::default();
    let service = ServiceBuilder::new()
        .layer(HedgeLayer::after(DELAY).observer(observer))
        .layer(limit)
        .service(log.service(Attempt(2 * DELAY, Err("first")), Attempt(MILLI, Ok("second"))));
    assert_eq!(service.oneshot(()).await.unwrap_err().into_service().unwrap(), "first");
    assert_eq!(seen(&names), ["hedge_refused overloaded"]);
}
