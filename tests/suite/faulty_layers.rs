//! Faulty layers break the laws: a concurrency limit that obeys all of them, and variants with one fault each.

use std::{
    future::{Future, poll_fn},
    mem,
    pin::{Pin, pin},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
};

use futures_util::future::{Either, Ready, ready};
use http::{Request, StatusCode};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tower::{Layer, Service, layer::layer_fn};
use ziggurat::{
    Class, Error, LayerInfo, Reason, Reject, Scope,
    testing::{Law, ScriptedError, laws, laws_with_gauges},
};

#[derive(Debug, Clone, Copy, PartialEq)]
enum Fault {
    None,
    CallsAClone,
    PollsAfterTheEnd,
    HasAPermitWhileReady,
    CountsEachPollForReadiness,
    HoardsReadiness,
    KeepsReadinessWhenItRefuses,
    CountsDownOnlyAtTheEnd,
    KeepsThePermitUntilTheDrop,
    ForgetsToWake,
    Spins,
    HasStatePerService,
    HasStatePerClone,
    HasStateForAll,
    HidesErrors,
    HidesErrorsOfReadiness,
    CallsUnderALock,
    RunsInAScopeOfItsOwn,
}

#[derive(Clone)]
struct LimitLayer {
    fault: Fault,
    state: Arc<State>,
}

struct State {
    permits: Arc<Semaphore>,
    count: AtomicUsize,
    lock: Mutex<()>,
}

impl State {
    fn new() -> Arc<Self> {
        Arc::new(Self { permits: Arc::new(Semaphore::new(1)), count: AtomicUsize::new(0), lock: Mutex::default() })
    }
}

impl LimitLayer {
    fn new(fault: Fault) -> Self {
        static FOR_ALL: Mutex<Option<Arc<State>>> = Mutex::new(None);
        let state = match fault {
            Fault::HasStateForAll => Arc::clone(FOR_ALL.lock().unwrap().get_or_insert_with(State::new)),
            _ => State::new(),
        };
        Self { fault, state }
    }
}

impl<S> Layer<S> for LimitLayer {
    type Service = Limit<S>;

    fn layer(&self, inner: S) -> Limit<S> {
        let mut layer = self.clone();
        if self.fault == Fault::HasStatePerService {
            layer.state = State::new();
        }
        Limit { inner, layer, early: None, is_ready: false }
    }
}

struct Limit<S> {
    inner: S,
    layer: LimitLayer,
    early: Option<OwnedSemaphorePermit>,
    is_ready: bool,
}

impl<S: Clone> Clone for Limit<S> {
    fn clone(&self) -> Self {
        let mut layer = self.layer.clone();
        if layer.fault == Fault::HasStatePerClone {
            layer.state = State::new();
        }
        Self { inner: self.inner.clone(), layer, early: None, is_ready: false }
    }
}

impl<S, Req> Service<Req> for Limit<S>
where
    S: Service<Req, Response: Send, Error = Error<ScriptedError>, Future: Send> + Clone + Send + 'static,
    Req: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        let Poll::Ready(polled) = self.inner.poll_ready(cx) else {
            return Poll::Pending;
        };
        let LimitLayer { fault, state } = &self.layer;
        match fault {
            Fault::HasAPermitWhileReady if self.early.is_none() && polled.is_ok() => {
                self.early = Arc::clone(&state.permits).try_acquire_owned().ok();
            }
            Fault::CountsEachPollForReadiness if self.is_ready => {
                state.count.fetch_add(1, Ordering::SeqCst);
            }
            Fault::HidesErrorsOfReadiness if polled.is_err() => return Poll::Ready(refused()),
            _ => {}
        }
        self.is_ready = polled.is_ok();
        Poll::Ready(polled)
    }

    fn call(&mut self, request: Req) -> Self::Future {
        self.is_ready = false;
        let LimitLayer { fault, state } = self.layer.clone();
        let permit = self.early.take().or_else(|| Arc::clone(&state.permits).try_acquire_owned().ok()).map(Arc::new);
        if fault == Fault::KeepsReadinessWhenItRefuses && permit.is_none() {
            return Box::pin(async { refused() });
        }
        let clone = self.inner.clone();
        let mut inner = mem::replace(&mut self.inner, clone);
        if fault == Fault::CallsAClone {
            inner = inner.clone();
        }
        let Some(permit) = permit else {
            let hoarded = (fault == Fault::HoardsReadiness).then_some(inner);
            let mut inner = self.inner.clone();
            return Box::pin(async move {
                let permit = Arc::new(acquire(fault, Arc::clone(&state.permits)).await);
                if let Some(ready) = hoarded {
                    inner = ready;
                } else {
                    poll_fn(|cx| inner.poll_ready(cx)).await?;
                }
                let response = inner.call(request);
                finish(fault, state, permit, response).await
            });
        };
        let locked = (fault == Fault::CallsUnderALock).then(|| state.lock.lock().unwrap());
        let response = inner.call(request);
        drop(locked);
        let kept = (fault == Fault::KeepsThePermitUntilTheDrop).then(|| Arc::clone(&permit));
        Box::pin(Keeping { future: Box::pin(finish(fault, state, permit, response)), _kept: kept })
    }
}

async fn acquire(fault: Fault, permits: Arc<Semaphore>) -> OwnedSemaphorePermit {
    if !matches!(fault, Fault::ForgetsToWake | Fault::Spins) {
        return permits.acquire_owned().await.unwrap();
    }
    poll_fn(|cx| match Arc::clone(&permits).try_acquire_owned() {
        Ok(permit) => Poll::Ready(permit),
        Err(_) => {
            if fault == Fault::Spins {
                cx.waker().wake_by_ref();
            }
            Poll::Pending
        }
    })
    .await
}

async fn finish<R, F>(fault: Fault, state: Arc<State>, permit: Arc<OwnedSemaphorePermit>, response: F) -> F::Output
where
    F: Future<Output = Result<R, Error<ScriptedError>>>,
{
    let _permit = permit;
    let mut response = pin!(response);
    state.count.fetch_add(1, Ordering::SeqCst);
    let mut count = Count { state, forgets: fault == Fault::CountsDownOnlyAtTheEnd };
    let outcome = match fault {
        Fault::RunsInAScopeOfItsOwn => Scope::root("its own").within(response.as_mut()).await,
        _ => response.as_mut().await,
    };
    count.forgets = false;
    match fault {
        Fault::PollsAfterTheEnd => response.await,
        Fault::HidesErrors if outcome.is_err() => refused(),
        _ => outcome,
    }
}

fn refused<R>() -> Result<R, Error<ScriptedError>> {
    Error::reject(LayerInfo::new("limit").reject(Reason::Overloaded { limit: 1 }))
}

/// Decrements the count on drop.
struct Count {
    state: Arc<State>,
    forgets: bool,
}

impl Drop for Count {
    fn drop(&mut self) {
        if !self.forgets {
            self.state.count.fetch_sub(1, Ordering::SeqCst);
        }
    }
}

/// Keeps a value until it is dropped, even after it has ended.
struct Keeping<F> {
    future: Pin<Box<F>>,
    _kept: Option<Arc<OwnedSemaphorePermit>>,
}

impl<F: Future> Future for Keeping<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        self.future.as_mut().poll(cx)
    }
}

/// The laws that a limit with this fault breaks, with the messages.
fn broken(fault: Fault) -> Vec<(Law, String)> {
    let laws = laws_with_gauges(|| {
        let layer = LimitLayer::new(fault);
        let state = Arc::clone(&layer.state);
        (layer, move || (state.permits.available_permits(), state.count.load(Ordering::SeqCst)))
    });
    laws.stateful().broken().iter().map(|broken| (broken.law(), broken.to_string())).collect()
}

#[test]
fn a_limit_without_a_fault_keeps_to_all_laws() {
    assert_eq!(broken(Fault::None), []);
}

#[test]
fn each_fault_breaks_its_law() {
    let table: [(Fault, &[Law], &str); 17] = [
        (Fault::CallsAClone, &[Law::Contract], "called without being ready"),
        (Fault::PollsAfterTheEnd, &[Law::Contract], "polled after it had ended"),
        (Fault::HasAPermitWhileReady, &[Law::Idle, Law::Wakes], "the gauges were (1, 0), and are (0, 0)"),
        (Fault::CountsEachPollForReadiness, &[Law::Readiness], "the gauges were (1, 0), and are (1, 4)"),
        (Fault::HoardsReadiness, &[Law::Waiting], "the response is pending, while an inner service"),
        (Fault::KeepsReadinessWhenItRefuses, &[Law::Release, Law::Panics], "neither called nor dropped: 1"),
        (Fault::CountsDownOnlyAtTheEnd, &[Law::Release, Law::Panics], "the gauges were (1, 0), and are (1, 1)"),
        (Fault::KeepsThePermitUntilTheDrop, &[Law::Release], "the gauges were (1, 0), and are (0, 0)"),
        (Fault::ForgetsToWake, &[Law::Wakes], "nothing wakes it"),
        (Fault::Spins, &[Law::Wakes], "it was polled 1000 times"),
        (Fault::HasStatePerService, &[Law::State], "a call on AnotherService"),
        (Fault::HasStatePerClone, &[Law::State], "a call on ACloneFromBefore"),
        (Fault::HasStateForAll, &[Law::State], "on another layer value"),
        (Fault::HidesErrors, &[Law::Unchanged], "but the layer returned Ended(Rejected("),
        (Fault::HidesErrorsOfReadiness, &[Law::Unchanged], "at: Readiness"),
        (Fault::CallsUnderALock, &[Law::Panics], "PoisonError"),
        (Fault::RunsInAScopeOfItsOwn, &[Law::Ambient], "outside of the scope that surrounds the layer"),
    ];
    for (fault, laws, how) in table {
        let broken = broken(fault);
        assert_eq!(broken.iter().map(|(law, _)| *law).collect::<Vec<_>>(), laws, "{fault:?}: {broken:#?}");
        assert!(broken[0].1.contains(&laws[0].to_string()), "{fault:?}: {broken:#?}");
        assert!(broken[0].1.contains(how), "{fault:?}: {broken:#?}");
    }
}

/// A layer that never affects the next call cannot prove that it shares its state.
#[test]
fn a_state_that_no_trial_reaches_does_not_pass() {
    let broken = laws(tower::layer::util::Identity::new).stateful().broken();
    assert_eq!(broken.iter().map(|broken| broken.law()).collect::<Vec<_>>(), [Law::State]);
    laws(tower::layer::util::Identity::new).check();
}

#[test]
fn a_law_can_be_left_out() {
    laws(|| LimitLayer::new(Fault::HidesErrors)).except(Law::Unchanged).check();
    laws(|| LimitLayer::new(Fault::RunsInAScopeOfItsOwn)).except(Law::Ambient).check();
}

/// A permit that is taken at readiness is the best known fault in practice.
#[test]
fn the_concurrency_limit_of_tower_breaks_the_law_of_idle_services() {
    let broken = laws(|| tower::limit::ConcurrencyLimitLayer::new(1)).broken();
    assert_eq!(broken.iter().map(|broken| broken.law()).collect::<Vec<_>>(), [Law::Idle, Law::Waiting]);
}

/// Rejects requests by their content.
#[derive(Clone, Debug)]
struct MaxUri<S> {
    inner: S,
    max: usize,
    keeps_readiness: bool,
}

impl<S, B> Service<Request<B>> for MaxUri<S>
where
    S: Service<Request<B>> + Clone,
    S::Error: Reject<S::Response>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Either<S::Future, Ready<Result<S::Response, S::Error>>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        if request.uri().path().len() <= self.max {
            return Either::Left(self.inner.call(request));
        }
        if !self.keeps_readiness {
            let clone = self.inner.clone();
            drop(mem::replace(&mut self.inner, clone));
        }
        Either::Right(ready(S::Error::reject(LayerInfo::new("max_uri").reject(Reason::Custom {
            name: "uri_too_long",
            status: StatusCode::URI_TOO_LONG,
            class: Class::Ignored,
            unprocessed: true,
            public_message: "the URI is too long".into(),
        }))))
    }
}

fn max_uri<S>(max: usize) -> impl Layer<S, Service = MaxUri<S>> + Clone {
    layer_fn(move |inner| MaxUri { inner, max, keeps_readiness: false })
}

/// Otherwise the report would consist of laws that no call has tried.
#[test]
fn a_layer_that_rejects_the_requests_of_the_laws_gets_a_hint() {
    laws(|| max_uri(2)).check();
    let broken = laws(|| max_uri(1)).broken();
    let [broken] = &*broken else { panic!("{broken:#?}") };
    let hint = broken.to_string();
    assert!(hint.contains("the layer rejects the request of the laws itself, with"), "{hint}");
    assert!(hint.contains("uri_too_long"), "{hint}");
}

#[test]
fn the_rejections_of_a_layer_are_sent_nowhere_and_keep_nothing() {
    let long = |number| Request::get(format!("/long/{number}")).body(String::new()).unwrap();
    laws(|| max_uri(2)).rejects(long).check();
    for (max, keeps_readiness, law, how) in [
        (2, true, Law::Release, "neither called nor dropped: 1"),
        (10, false, Law::Rejects, "request 1 is one that the layer should reject, but it was sent"),
    ] {
        let broken = laws(|| layer_fn(move |inner| MaxUri { inner, max, keeps_readiness })).rejects(long).broken();
        assert_eq!(broken.iter().map(|broken| broken.law()).collect::<Vec<_>>(), [law]);
        assert!(broken[0].to_string().contains(how), "{}", broken[0]);
    }
}

/// A rejected call keeps its permit, so that only the first calls are rejected for their own reason.
#[test]
fn a_layer_that_loses_its_own_permits_by_rejecting_is_found() {
    let long = |number| Request::get(format!("/long/{number}")).body(String::new()).unwrap();
    for (leaks, permits) in [(Leaks::WhenItRejects, 1), (Leaks::WhenItRejects, 3), (Leaks::WhenDropped, 1)] {
        let make = move || {
            let permits = Arc::new(Semaphore::new(permits));
            layer_fn(move |inner: _| Leaking { inner: max_uri(2).layer(inner), permits: Arc::clone(&permits), leaks })
        };
        let broken = laws(make).rejects(long).broken();
        assert_eq!(broken.iter().map(|broken| broken.law()).collect::<Vec<_>>(), [Law::Release], "{leaks:?}");
        let how = "was rejected with `limit: overloaded`, but one before it with `max_uri: uri_too_long`";
        assert!(broken[0].to_string().contains(how), "{}", broken[0]);
    }
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Leaks {
    WhenItRejects,
    WhenDropped,
}

/// A limit around a layer that rejects, which loses a permit with some calls.
#[derive(Clone)]
struct Leaking<S> {
    inner: MaxUri<S>,
    permits: Arc<Semaphore>,
    leaks: Leaks,
}

impl<S, B> Service<Request<B>> for Leaking<S>
where
    S: Service<Request<B>, Error = Error<ScriptedError>> + Clone,
    MaxUri<S>: Service<Request<B>, Response = S::Response, Error = S::Error, Future: Send + 'static>,
    S::Response: Send,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let Ok(permit) = Arc::clone(&self.permits).try_acquire_owned() else {
            let clone = self.inner.clone();
            drop(mem::replace(&mut self.inner, clone));
            return Box::pin(async { refused() });
        };
        let leaks = self.leaks;
        let permit = Permit { permit: Some(permit), is_lost: leaks == Leaks::WhenDropped };
        let response = self.inner.call(request);
        Box::pin(async move {
            let mut permit = permit;
            let outcome = response.await;
            permit.is_lost = leaks == Leaks::WhenItRejects && outcome.is_err();
            outcome
        })
    }
}

struct Permit {
    permit: Option<OwnedSemaphorePermit>,
    is_lost: bool,
}

impl Drop for Permit {
    fn drop(&mut self) {
        if let (true, Some(permit)) = (self.is_lost, self.permit.take()) {
            permit.forget();
        }
    }
}

/// The requests of `over` would replace the ones to reject.
#[test]
#[should_panic(expected = "`rejects` comes last")]
fn the_requests_to_reject_are_not_replaced() {
    let long = |_| Request::get("/long").body(String::new()).unwrap();
    let _ = laws(tower::layer::util::Identity::new).rejects(long).over(
        |_| Request::new(()),
        |_| http::Response::new(()),
        |_: &http::Response<()>| 1,
    );
}

#[test]
#[should_panic(expected = "broken: responses and errors of the inner service are passed on unchanged")]
fn check_panics_with_the_law() {
    laws(|| LimitLayer::new(Fault::HidesErrors)).check();
}
