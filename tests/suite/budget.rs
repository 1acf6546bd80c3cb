//! One budget that several layers share.

use std::{
    future::{Pending, pending, ready},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use tower::{Layer, Service, ServiceExt, service_fn, util::BoxCloneSyncService};
use ziggurat::{
    Backoff, Budget, Cloned, CopyRequest, Error, FailOnError, LayerEvent, LayerInfo, Scope,
    fallback::FallbackLayer,
    retry::{Dropped, RetryLayer},
    stack::{ClientSettings, ClientStack},
    testing::TestTask,
};

type Failed = Error<&'static str>;

/// A service that counts its calls, and fails while it is down.
#[derive(Clone, Default)]
struct Upstream {
    calls: Arc<AtomicU32>,
    is_down: Arc<AtomicBool>,
}

impl Upstream {
    fn service(&self) -> BoxCloneSyncService<(), (), Failed> {
        let Self { calls, is_down } = self.clone();
        BoxCloneSyncService::new(service_fn(move |()| {
            calls.fetch_add(1, Ordering::SeqCst);
            ready(if is_down.load(Ordering::SeqCst) { Err(Error::Service("down")) } else { Ok(()) })
        }))
    }

    /// Sends `requests` requests through `service`, and returns the number of calls that arrived in addition.
    async fn extra<S>(&self, service: &S, requests: u32) -> u32
    where
        S: Service<(), Response = (), Error = Failed> + Clone,
    {
        let before = self.calls.load(Ordering::SeqCst);
        for _ in 0..requests {
            assert_eq!(service.clone().oneshot(()).await.is_err(), self.is_down.load(Ordering::SeqCst));
        }
        self.calls.load(Ordering::SeqCst) - before - requests
    }
}

fn retry(budget: impl Into<Option<Budget>>) -> RetryLayer<FailOnError, Cloned, Duration, Dropped> {
    RetryLayer::new().backoff(Duration::ZERO).max_attempts(9).budget(budget)
}

fn a_tenth() -> Budget {
    Budget::new(0.1).min_per_second(0)
}

/// Shows: H3
#[tokio::test(start_paused = true)]
async fn layers_that_are_given_one_budget_share_what_it_grants() {
    let (upstream, budget) = (Upstream::default(), a_tenth());
    let [one, other] = [retry(&budget), retry(budget.clone())].map(|layer| layer.layer(upstream.service()));
    assert_eq!((upstream.extra(&one, 50).await, upstream.extra(&other, 50).await), (0, 0));
    upstream.is_down.store(true, Ordering::SeqCst);
    assert_eq!(upstream.extra(&other, 1).await, 8, "all that one request may have");
    assert_eq!(upstream.extra(&one, 1).await, 2, "a tenth of 102 in all");
}

/// Also the attempts of the outer layer do not count as requests of the inner one.
///
/// Shows: H3
#[tokio::test(start_paused = true)]
async fn a_request_through_two_layers_with_one_budget_counts_once() {
    for depth in 1..=3 {
        let (upstream, budget) = (Upstream::default(), a_tenth());
        let mut service = upstream.service();
        for _ in 0..depth {
            service = BoxCloneSyncService::new(retry(&budget).layer(service));
        }
        // A layer with a budget of its own.
        let service = retry(Budget::new(0.0).min_per_second(0)).layer(service);
        assert_eq!(upstream.extra(&service, 100).await, 0);
        upstream.is_down.store(true, Ordering::SeqCst);
        assert_eq!(upstream.extra(&service, 100).await, 20, "{depth} layers");
    }
}

/// Shows: H3
#[tokio::test(start_paused = true)]
async fn a_request_counts_again_where_it_is_not_inside_another_one() {
    let (upstream, budget) = (Upstream::default(), a_tenth());
    let inner = retry(&budget).layer(upstream.service());
    let outer = retry(&budget).layer(inner.clone());
    for _ in 0..50 {
        assert_eq!((upstream.extra(&outer, 1).await, upstream.extra(&inner, 1).await), (0, 0));
    }
    upstream.is_down.store(true, Ordering::SeqCst);
    assert_eq!(upstream.extra(&inner, 100).await, 20);
}

/// Shows: H3, G4
#[tokio::test(start_paused = true)]
async fn a_stack_shares_its_budget_and_its_settings_apply_to_all_who_share_it() {
    let upstream = Upstream::default();
    upstream.is_down.store(true, Ordering::SeqCst);
    let settings =
        ClientSettings::default().backoff(Duration::ZERO).max_attempts(2).failure_rate(1.0).min_calls(u32::MAX);
    let app = Scope::root("app").with(settings.retry_ratio(0.0).min_retries_per_second(1));
    let stack = ClientStack::new("test").settings_from(&app);
    let other = retry(stack.budget()).layer(upstream.service());
    let stack = stack.layer(upstream.service());
    assert_eq!((upstream.extra(&stack, 4).await, upstream.extra(&other, 10).await), (4, 6));
    app.update(|settings: &ClientSettings| settings.min_retries_per_second(2)).unwrap();
    assert_eq!((upstream.extra(&stack, 1).await, upstream.extra(&other, 10).await), (1, 9));
}

/// Shows: H3
#[tokio::test(start_paused = true)]
async fn a_shared_budget_comes_before_the_handle() {
    let shared = Budget::new(0.0).min_per_second(1);
    let layer = RetryLayer::new().backoff(Backoff::exponential(Duration::ZERO)).budget(&shared);
    let _handle = layer.handle();
    let layer = layer.budget(&shared);
    let other = Budget::new(0.0);
    let panic = catch_unwind(AssertUnwindSafe(|| layer.clone().budget(&other))).unwrap_err();
    assert_eq!(
        panic.downcast_ref::<&str>(),
        Some(&"a shared budget must be set before the handle is taken: the handle has one already")
    );
    // A budget that no other layer has bounds this one alone.
    let layer = layer.budget(Budget::new(0.0).min_per_second(0));
    assert!(format!("{:?}", layer.handle().budget()).contains("min_per_second: 0"), "{shared:?}");
    let unlimited = RetryLayer::new().budget(None);
    let handle = unlimited.handle();
    assert!(handle.budget().is_none());
    let _unlimited = unlimited.budget(&shared);
    assert_eq!(format!("{:?}", handle.budget()), format!("{:?}", Some(&shared)));
}

/// Shows: H3, G2
#[tokio::test(start_paused = true)]
async fn a_fallback_to_a_service_and_a_retry_take_from_one_budget_whichever_is_outside() {
    for retry_is_outside in [false, true] {
        let (upstream, budget) = (Upstream::default(), a_tenth());
        // The same cluster.
        let fallback = FallbackLayer::service(upstream.service()).budget(&budget);
        let service = if retry_is_outside {
            BoxCloneSyncService::new(retry(&budget).layer(fallback.layer(upstream.service())))
        } else {
            BoxCloneSyncService::new(fallback.layer(retry(&budget).layer(upstream.service())))
        };
        assert_eq!(upstream.extra(&service, 100).await, 0);
        upstream.is_down.store(true, Ordering::SeqCst);
        assert_eq!(upstream.extra(&service, 100).await, 20, "the retry is outside: {retry_is_outside}");
    }
}

/// A retry inside the backup has the same budget.
///
/// Shows: H3, G2
#[tokio::test(start_paused = true)]
async fn a_call_of_the_backup_is_no_request_of_its_own() {
    let (upstream, budget) = (Upstream::default(), a_tenth());
    upstream.is_down.store(true, Ordering::SeqCst);
    let backup = retry(&budget).layer(upstream.service());
    let service = FallbackLayer::service(backup).budget(&budget).layer(upstream.service());
    assert_eq!(upstream.extra(&service, 100).await, 10);
}

/// Shows: H3, G2
#[tokio::test(start_paused = true)]
async fn a_fallback_whose_budget_grants_nothing_leaves_the_outcome_as_it_is() {
    let refused = Arc::new(Mutex::new(Vec::new()));
    let told = Arc::clone(&refused);
    let backup = Upstream::default();
    let layer = FallbackLayer::service(backup.service()).budget(Budget::new(0.0).min_per_second(0)).observer(
        move |_: &LayerInfo, event: &LayerEvent<'_>| {
            let LayerEvent::FallbackRefused { reason } = event else { panic!("{event:?}") };
            told.lock().unwrap().push(*reason);
        },
    );
    let primary = Upstream::default();
    let service = layer.layer(primary.service());
    assert!(service.clone().oneshot(()).await.is_ok());
    assert!(refused.lock().unwrap().is_empty());
    primary.is_down.store(true, Ordering::SeqCst);
    assert_eq!(service.clone().oneshot(()).await.unwrap_err().service(), Some(&"down"));
    assert_eq!((backup.calls.load(Ordering::SeqCst), &*refused.lock().unwrap()), (0, &vec!["budget"]));
}

/// Copies every request, and claims none.
#[derive(Clone, Copy)]
struct Unclaimed;

impl CopyRequest<()> for Unclaimed {
    fn copy(&self, (): &()) -> Option<()> {
        Some(())
    }

    fn claim(&self, (): &()) -> bool {
        false
    }
}

/// A backup that stays as it is.
#[derive(Clone, Copy, Debug)]
enum Stays {
    Unready,
    FailsInReadiness,
    Silent,
}

impl Service<()> for Stays {
    type Response = ();
    type Error = Failed;
    type Future = Pending<Result<(), Failed>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Failed>> {
        match self {
            Self::Unready => Poll::Pending,
            Self::FailsInReadiness => Poll::Ready(Err(Error::Service("not ready"))),
            Self::Silent => Poll::Ready(Ok(())),
        }
    }

    fn call(&mut self, (): ()) -> Self::Future {
        pending()
    }
}

/// Shows: H3, G2
#[tokio::test(start_paused = true)]
async fn a_call_of_the_backup_that_is_not_made_goes_back_into_the_budget() {
    let upstream = Upstream::default();
    upstream.is_down.store(true, Ordering::SeqCst);
    let ten = || Budget::new(0.0).min_per_second(1);
    for (backup, left) in [(Stays::Unready, 10), (Stays::FailsInReadiness, 10), (Stays::Silent, 7)] {
        let budget = ten();
        let service = FallbackLayer::service(backup).budget(&budget).layer(upstream.service());
        for _ in 0..3 {
            let mut call = TestTask::new(service.clone().oneshot(()));
            assert_eq!(call.poll().is_pending(), !matches!(backup, Stays::FailsInReadiness));
            drop(call);
        }
        assert_eq!(upstream.extra(&retry(&budget).layer(upstream.service()), 20).await, left, "{backup:?}");
    }

    let hangs = service_fn(|()| pending::<Result<(), Failed>>());
    let budget = ten();
    let service = FallbackLayer::service(Stays::Silent).budget(&budget).layer(hangs);
    assert!(TestTask::new(service.oneshot(())).poll().is_pending());
    let uncopied = FallbackLayer::service(Stays::Silent).budget(&budget).copy(|(): &()| None).layer(upstream.service());
    assert!(uncopied.oneshot(()).await.is_err());
    let unclaimed = FallbackLayer::service(Stays::Silent).budget(&budget).copy(Unclaimed).layer(upstream.service());
    assert!(unclaimed.oneshot(()).await.is_err());
    assert_eq!(upstream.extra(&retry(&budget).layer(upstream.service()), 20).await, 10);
}
