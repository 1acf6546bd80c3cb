//! Handlers that call themselves through their own limit.

use std::{
    sync::{Arc, OnceLock},
    task::Poll,
    time::Duration,
};

use futures_util::future::BoxFuture;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};
use tower::{Layer, Service, ServiceExt, service_fn, util::BoxCloneSyncService};
use ziggurat::{
    Class, Error, Reason,
    concurrency_limit::ConcurrencyLimitLayer,
    resource::{ResourceLayer, current},
    testing::TestTask,
    timeout::TimeoutLayer,
};

type Failed = Error<&'static str>;
type Handler = BoxCloneSyncService<u32, u32, Failed>;

/// Calls itself with a count lower by one until it is zero, and returns the number of nested calls.
fn calls_itself<L>(layer: &L) -> Handler
where
    L: Layer<BoxCloneSyncService<u32, u32, Failed>>,
    L::Service: Service<u32, Response = u32, Error = Failed, Future: Send + 'static> + Clone + Send + Sync + 'static,
{
    let itself = Arc::new(OnceLock::<Handler>::new());
    let outermost = Arc::clone(&itself);
    let handler = service_fn(move |more: u32| -> BoxFuture<'static, Result<u32, Failed>> {
        let outermost = outermost.get().unwrap().clone();
        Box::pin(async move {
            tokio::task::yield_now().await;
            if more == 0 { Ok(0) } else { Ok(outermost.oneshot(more - 1).await? + 1) }
        })
    });
    itself.get_or_init(|| BoxCloneSyncService::new(layer.layer(BoxCloneSyncService::new(handler)))).clone()
}

/// Returns the handler's response, within an hour.
async fn call(handler: &Handler, more: u32) -> Result<u32, Failed> {
    let answer = timeout(Duration::from_secs(3600), handler.clone().oneshot(more));
    answer.await.expect("the call waits for itself")
}

fn awaits_itself(outcome: &Result<u32, Failed>) -> bool {
    ziggurat::rejection(outcome).is_some_and(|rejection| rejection.reason() == &Reason::Recursive)
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_calls_itself_through_a_full_limit_of_its_own_is_rejected() {
    let limit = ConcurrencyLimitLayer::new(1).named("orders");
    let gate = limit.handle();
    let outcome = call(&calls_itself(&limit), 1).await;
    assert!(awaits_itself(&outcome));
    let rejection = ziggurat::rejection(&outcome).unwrap();
    assert_eq!(
        rejection.to_string(),
        "concurrency_limit `orders`: the call would wait for itself: it was made inside the call that it depends on"
    );
    assert_eq!((rejection.status().as_u16(), rejection.class()), (500, Class::PERMANENT));
    assert_eq!((gate.in_flight(), gate.waiting()), (0, 0));

    // Calls may nest as deep as there are permits, and no deeper.
    for permits in [3, 8, 9, 20] {
        let handler = calls_itself(&ConcurrencyLimitLayer::new(permits as usize));
        for _ in 0..2 {
            assert_eq!(call(&handler, permits - 1).await.unwrap(), permits - 1);
            assert!(awaits_itself(&call(&handler, permits).await));
        }
        // Nothing is left behind: a call that waits for unrelated calls waits.
        let mut calls: Vec<_> = (0..=permits).map(|_| TestTask::new(handler.clone().oneshot(0))).collect();
        assert!(calls.iter_mut().all(|call| call.poll().is_pending()));
    }
}

#[tokio::test(start_paused = true)]
async fn a_call_of_itself_is_seen_through_other_layers_and_limits() {
    let others = (ConcurrencyLimitLayer::new(1), TimeoutLayer::new(Duration::MAX), ConcurrencyLimitLayer::new(5));
    assert!(awaits_itself(&call(&calls_itself(&others), 1).await));
    let others = (ConcurrencyLimitLayer::new(5), TimeoutLayer::new(Duration::MAX), ConcurrencyLimitLayer::new(1));
    assert!(awaits_itself(&call(&calls_itself(&others), 1).await));
}

/// The layer does not know that the pool has only one resource.
#[tokio::test(start_paused = true)]
async fn a_call_of_itself_that_needs_another_resource_waits_as_long_as_it_may() {
    let seats = Arc::new(Semaphore::new(1));
    let pool = Arc::clone(&seats);
    let layer = ResourceLayer::new(move || Arc::clone(&pool).acquire_owned()).max_wait(Duration::from_secs(1));
    let outcome = call(&calls_itself(&layer), 1).await;
    let max_wait = Duration::from_secs(1);
    assert_eq!(ziggurat::rejection(&outcome).unwrap().reason(), &Reason::Exhausted { max_wait });
    assert_eq!(seats.available_permits(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_call_of_itself_can_use_the_resource_of_the_call_around_it() {
    let seats = Arc::new(Semaphore::new(1));
    let pool = Arc::clone(&seats);
    let layer = ResourceLayer::by_request(move |_: &u32| {
        current::<OwnedSemaphorePermit>().is_err().then(|| Arc::clone(&pool).acquire_owned())
    });
    let handler = calls_itself(&layer);
    assert_eq!(call(&handler, 3).await.unwrap(), 3);
    assert_eq!(seats.available_permits(), 1);
    // Concurrent calls do not share it.
    let (mut one, mut two) = (TestTask::new(handler.clone().oneshot(0)), TestTask::new(handler.oneshot(0)));
    assert!(one.poll().is_pending() && two.poll().is_pending());
    assert!(one.poll().is_ready());
    assert!(two.poll().is_pending());
    assert!(two.poll().is_ready());
}

/// It holds one of two permits, and the other becomes free.
#[tokio::test(start_paused = true)]
async fn a_call_that_can_get_a_permit_waits_for_it() {
    let limit = ConcurrencyLimitLayer::new(2);
    let gate = limit.handle();
    let handler = calls_itself(&limit);
    let mut other = TestTask::new(handler.clone().oneshot(0));
    assert!(other.poll().is_pending());
    let mut nested = TestTask::new(handler.clone().oneshot(1));
    assert!(nested.poll().is_pending() && nested.poll().is_pending());
    assert_eq!((gate.in_flight(), gate.waiting()), (2, 1));
    assert_eq!(other.poll().map(Result::unwrap), Poll::Ready(0));
    assert!(nested.poll().is_pending());
    assert_eq!(nested.poll().map(Result::unwrap), Poll::Ready(1));
    // The code that runs here now holds neither.
    let mut one = TestTask::new(handler.clone().oneshot(0));
    let mut two = TestTask::new(handler.clone().oneshot(0));
    let mut three = TestTask::new(handler.oneshot(0));
    assert!(one.poll().is_pending() && two.poll().is_pending() && three.poll().is_pending());
    assert_eq!(gate.waiting(), 1);
}
