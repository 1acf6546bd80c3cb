//! Answers something else when the service has failed.
//!
//! What answers is a [value](FallbackLayer::value), a [function](FallbackLayer::new) of the outcome (or one that returns a
//! [future](FallbackLayer::future)), or another [service](FallbackLayer::service). A function can have what it needs of the request
//! [remembered](FallbackLayer::remember), for the request itself is gone by then.
//!
//! **Which calls** are answered so: those that [`classify`](FallbackLayer::classify) calls failures, by default every error; and every
//! rejection of a layer inside, an overload too, which says nothing about the service: the caller has no answer all the same. An outcome
//! that the classifier ignores goes through, also to those who only shared the call ([`Reason::Shared`](crate::Reason::Shared)). With
//! [`with_rejections`](crate::with_rejections) a rejection that is called a success goes through too.
//! [`RejectionsOnly`] leaves the service's own outcomes alone. **Over HTTP say [`.http()`](FallbackLayer::http)**: then a 503 is a
//! failure, and the answer carries [`Degraded`](crate::Degraded) in its extensions.
//!
//! **Both errors are kept.** A response that was judged a failure is dropped when the fallback has seen it, before that runs, and with it what hangs on its
//! body (a connection, a permit); an error or a rejection is kept. If the fallback fails too, with an error or a rejection, both go to
//! [`on_failure`](FallbackLayer::on_failure). By default the service's own comes back, and the
//! fallback's message in it where it has a place for that: a rejection has one ([`Rejection::suppressed`](crate::Rejection::suppressed)), and an
//! error type of yours can have one ([`Reject::suppress`](crate::Reject::suppress)). The event has the fallback's in any case. What the
//! fallback answers *without* an error is the answer, whatever its status.
//!
//! **Where it belongs.** Outside of everything that can fail or reject: cache, total timeout, retry, breaker, limit. So an open circuit
//! or a total that has passed leads to it, and a fresh answer from the cache comes first. Inside of a cache or a circuit breaker its answers
//! would count as the service's own, be stored for a whole ttl, and keep the circuit closed; [`HttpStatus`] ignores
//! what is [`Degraded`](crate::Degraded), and for other responses a classifier of yours has to tell. Inside of a retry it answers each attempt, and
//! nothing is ever retried.
//!
//! **Its own time.** A timeout inside is over when the fallback is asked. A backup that can be slow needs one of its own.
//!
//! **Cancellation.** Dropping the response future drops the call, or the fallback, whichever runs.
//!
//! It needs `S: Clone`, and is always ready: the service and the backup become ready inside of the response future, and an error
//! of their readiness is an outcome like any other. Nothing is asked of responses (but of a [value](FallbackLayer::value), to be
//! `Clone`); errors have to be [`Display`](std::fmt::Display). A call that succeeds costs what is remembered of its request, and no allocation.
//!
//! ```
//! use tower::{ServiceBuilder, ServiceExt, service_fn};
//! use ziggurat::{Error, fallback::{Failed, FallbackLayer}};
//!
//! # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() {
//! let service = ServiceBuilder::new()
//!     .layer(
//!         FallbackLayer::new(|failed: Failed<'_, _, _, String>| format!("the usual, {}", failed.remembered))
//!             .remember(|name: &&str| name.to_string()),
//!     )
//!     .map_err(Error::Service)
//!     .service(service_fn(|name: &'static str| async move {
//!         if name == "Eve" { Err(std::io::Error::other("down")) } else { Ok(format!("today's special, {name}")) }
//!     }));
//!
//! assert_eq!(service.clone().oneshot("Adam").await.unwrap(), "today's special, Adam");
//! assert_eq!(service.oneshot("Eve").await.unwrap(), "the usual, Eve");
//! # }
//! ```

use std::{
    any::type_name,
    fmt,
    future::Future,
    marker::PhantomData,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

use crate::{
    copy::Cloned,
    outcome::{Class, Classify, FailOnError, HttpStatus, Reason, Reject, Rejection, judged_as},
    telemetry::{LayerEvent, LayerInfo, layer_info, layer_setters},
};

mod alternative;
mod policy;

use self::policy::said;

pub use self::{
    alternative::{Alternative, AtOnce, Backup, Failed, Function, Later, Nothing, Remember, Value},
    policy::{InExtensions, KeepPrimary, Mark, OnFailure, RejectionsOnly, Unmarked},
};
pub use crate::call::Call;

/// Answers something else when the service has failed: see the [module](self).
#[doc(alias = "degradation")]
#[must_use]
pub struct FallbackLayer<Substitute, Classifier = FailOnError, Failing = KeepPrimary, Marker = Unmarked> {
    alternative: Substitute,
    classify: Classifier,
    on_failure: Failing,
    info: LayerInfo,
    mark: PhantomData<fn() -> Marker>,
}

impl<R> FallbackLayer<Value<R>> {
    /// Answers with a clone of this response.
    pub fn value(response: R) -> Self {
        Self::with(Value(Arc::new(response)))
    }
}

impl<F> FallbackLayer<Function<F>> {
    /// Answers with what this function makes of the outcome: `|failed: Failed<'_, _, _>| ..`, returning a response or an `Option` of one,
    /// where `None` means that there is no fallback for this: then the outcome comes back as it is.
    pub fn new(function: F) -> Self {
        Self::with(Function::new(function))
    }
}

impl<F> FallbackLayer<Function<F, Nothing, Later>> {
    /// Answers with what comes of the future that this function returns: `|failed: Failed<'_, _, _>| async move { .. }`, a `Result` with
    /// the response and the error of the service.
    ///
    /// The future cannot borrow from `failed`: what it needs of that, the function takes before.
    pub fn future(function: F) -> Self {
        Self::with(Function::new(function))
    }
}

impl<B> FallbackLayer<Backup<B>> {
    /// Answers with what this other service makes of a copy of the request. It has the same response and error types.
    ///
    /// The request is copied before it is sent, so it has to be `Clone`; or see [`copy`](FallbackLayer::copy). A service that failed
    /// may have done its work: what must not be done twice must not be copied.
    pub fn service(backup: B) -> Self {
        Self::with(Backup { service: backup, copy: Cloned })
    }
}

impl<Substitute> FallbackLayer<Substitute> {
    fn with(alternative: Substitute) -> Self {
        Self {
            alternative,
            classify: FailOnError,
            on_failure: KeepPrimary,
            info: layer_info!("fallback"),
            mark: PhantomData,
        }
    }
}

impl<F, K, Classifier, Failing, Marker> FallbackLayer<Function<F, Nothing, K>, Classifier, Failing, Marker> {
    /// What is kept of each request for the function, which finds it in [`Failed::remembered`]: `|req: &Request<_>| ..`.
    pub fn remember<M>(self, remember: M) -> FallbackLayer<Function<F, M, K>, Classifier, Failing, Marker> {
        let Self { alternative: Function { function, remember: _, kind }, classify, on_failure, info, mark } = self;
        FallbackLayer { alternative: Function { function, remember, kind }, classify, on_failure, info, mark }
    }
}

impl<B, P, Classifier, Failing, Marker> FallbackLayer<Backup<B, P>, Classifier, Failing, Marker> {
    /// How the request is copied for the backup, and which requests have no fallback: [`Cloned`],
    /// [`Idempotent`](crate::Idempotent), [`CopyIf`](crate::CopyIf), or a closure `|req: &Req| -> Option<Req>`.
    ///
    /// `Idempotent` and `CopyIf` send the backup every request that [nobody processed](crate::is_unprocessed), a `POST`
    /// whose circuit is open, for example.
    pub fn copy<P2>(self, copy: P2) -> FallbackLayer<Backup<B, P2>, Classifier, Failing, Marker> {
        let Self { alternative: Backup { service, copy: _ }, classify, on_failure, info, mark } = self;
        FallbackLayer { alternative: Backup { service, copy }, classify, on_failure, info, mark }
    }
}

impl<Substitute, Classifier, Failing, Marker> FallbackLayer<Substitute, Classifier, Failing, Marker> {
    /// Which outcomes of the service are answered for: those that this says are failures, besides every rejection of a layer.
    pub fn classify<C2>(self, classify: C2) -> FallbackLayer<Substitute, C2, Failing, Marker> {
        let Self { alternative, classify: _, on_failure, info, mark } = self;
        FallbackLayer { alternative, classify, on_failure, info, mark }
    }

    /// For HTTP: a failure is what [`HttpStatus`] says is one, and what is answered in its place carries [`Degraded`](crate::Degraded) in its
    /// extensions, which says why.
    pub fn http(self) -> FallbackLayer<Substitute, HttpStatus, Failing, InExtensions> {
        let Self { alternative, classify: _, on_failure, info, mark: _ } = self;
        FallbackLayer { alternative, classify: HttpStatus, on_failure, info, mark: PhantomData }
    }

    /// What the caller gets if the fallback failed too: [`KeepPrimary`], or a closure
    /// `|primary: Option<Result<_, _>>, fallback: Result<_, _>| -> Result<_, _>` (see [`OnFailure`]).
    pub fn on_failure<N2>(self, on_failure: N2) -> FallbackLayer<Substitute, Classifier, N2, Marker> {
        let Self { alternative, classify, on_failure: _, info, mark } = self;
        FallbackLayer { alternative, classify, on_failure, info, mark }
    }

    layer_setters!();
}

impl<Substitute: Clone, Classifier: Clone, Failing: Clone, Marker> Clone
    for FallbackLayer<Substitute, Classifier, Failing, Marker>
{
    fn clone(&self) -> Self {
        Self {
            alternative: self.alternative.clone(),
            classify: self.classify.clone(),
            on_failure: self.on_failure.clone(),
            info: self.info.clone(),
            mark: PhantomData,
        }
    }
}

impl<S, Substitute, Classifier, Failing, Marker> Layer<S> for FallbackLayer<Substitute, Classifier, Failing, Marker>
where
    Self: Clone,
{
    type Service = Fallback<S, Substitute, Classifier, Failing, Marker>;

    fn layer(&self, inner: S) -> Self::Service {
        Fallback { inner, layer: Arc::new(self.clone()) }
    }
}

impl<Substitute: fmt::Debug, Classifier, Failing, Marker> fmt::Debug
    for FallbackLayer<Substitute, Classifier, Failing, Marker>
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FallbackLayer")
            .field("alternative", &self.alternative)
            .field("classify", &type_name::<Classifier>())
            .field("on_failure", &type_name::<Failing>())
            .field("info", &self.info)
            .finish()
    }
}

/// The service of [`FallbackLayer`].
#[derive(Debug)]
pub struct Fallback<S, Substitute, Classifier = FailOnError, Failing = KeepPrimary, Marker = Unmarked> /* not a Service? see ziggurat::Reject, "It does not compile" */
{
    inner: S,
    // Shared with the response futures: one counter is cheaper than a copy of it all.
    layer: Arc<FallbackLayer<Substitute, Classifier, Failing, Marker>>,
}

impl<S: Clone, Substitute, Classifier, Failing, Marker> Clone for Fallback<S, Substitute, Classifier, Failing, Marker> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone(), layer: Arc::clone(&self.layer) }
    }
}

impl<S, Substitute, Classifier, Failing, Marker, Req> Service<Req>
    for Fallback<S, Substitute, Classifier, Failing, Marker>
where
    S: Service<Req> + Clone,
    S::Error: Reject<S::Response> + fmt::Display,
    Substitute: Alternative<Req, S::Response, S::Error>,
    Classifier: Classify<S::Response, S::Error>,
    Failing: OnFailure<S::Response, S::Error>,
    Marker: Mark<S::Response, S::Error>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = ResponseFuture<S, Req, Substitute, Classifier, Failing, Marker>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Req) -> Self::Future {
        let memory = self.layer.alternative.remember(&request);
        let call = Call::new(self.inner.clone(), request);
        ResponseFuture { layer: Arc::clone(&self.layer), memory: Some(memory), state: State::Calling { call } }
    }
}

pin_project! {
    /// The response future of [`Fallback`].
    #[must_use = "futures do nothing unless polled"]
    pub struct ResponseFuture<S, Req, Substitute, Classifier, Failing, Marker>
    where
        S: Service<Req>,
        Substitute: Alternative<Req, S::Response, S::Error>,
        Marker: Mark<S::Response, S::Error>,
    {
        layer: Arc<FallbackLayer<Substitute, Classifier, Failing, Marker>>,
        // None: the call has ended.
        memory: Option<Substitute::Memory>,
        #[pin]
        state: State<S, Req, Substitute::Future, Primary<S::Response, S::Error, Marker::Why>>,
    }
}

pin_project! {
    #[project = StateProj]
    enum State<S, Req, F, P>
    where
        S: Service<Req>,
    {
        // The service is made ready and called.
        Calling {
            #[pin]
            call: Call<S, Req>,
        },
        // It has failed.
        FallingBack {
            #[pin]
            answer: F,
            primary: Option<P>,
        },
        // It was answered.
        Done,
    }
}

/// The outcome in whose place something else is to be answered.
struct Primary<R, E, W> {
    // None: it was a response, and is gone.
    outcome: Option<Result<R, E>>,
    reason: &'static str,
    why: W,
}

impl<S, Req, Substitute, Classifier, Failing, Marker> Future
    for ResponseFuture<S, Req, Substitute, Classifier, Failing, Marker>
where
    S: Service<Req>,
    S::Error: Reject<S::Response> + fmt::Display,
    Substitute: Alternative<Req, S::Response, S::Error>,
    Classifier: Classify<S::Response, S::Error>,
    Failing: OnFailure<S::Response, S::Error>,
    Marker: Mark<S::Response, S::Error>,
{
    type Output = Result<S::Response, S::Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        loop {
            match this.state.as_mut().project() {
                StateProj::Calling { call } => {
                    let outcome = ready!(call.poll(cx));
                    // The call is gone before anybody learns of its outcome.
                    this.state.set(State::Done);
                    let memory = this.memory.take();
                    let class = Class::of(&outcome, &this.layer.classify);
                    // A rejection that the classifier calls a success is to be the answer.
                    let is_rejected = class != Class::Success && judged_as(&outcome).is_some_and(is_ours);
                    let is_lost = class.is_failure() || is_rejected;
                    let (true, Some(remembered)) = (is_lost, memory) else { return Poll::Ready(outcome) };
                    let failed = Failed { outcome: &outcome, class, remembered };
                    let Some(answer) = this.layer.alternative.answer(failed) else { return Poll::Ready(outcome) };
                    let primary = Some(this.layer.keep(outcome));
                    this.state.set(State::FallingBack { answer, primary });
                }
                StateProj::FallingBack { answer, primary } => {
                    let outcome = ready!(answer.poll(cx));
                    let primary = primary.take();
                    this.state.set(State::Done);
                    return Poll::Ready(match primary {
                        Some(primary) => this.layer.settle(primary, outcome),
                        None => outcome,
                    });
                }
                StateProj::Done => panic!("fallback::ResponseFuture polled after it was ready"),
            }
        }
    }
}

/// Whether a layer answered, and not the service: what others are told of a call that they shared is the service's answer.
fn is_ours(rejection: &Rejection) -> bool {
    !matches!(rejection.reason(), Reason::Shared { .. })
}

impl<Substitute, Classifier, Failing, Marker> FallbackLayer<Substitute, Classifier, Failing, Marker> {
    /// What is kept of an outcome while the fallback runs. A response is not: what hangs on its body would be held all the while.
    #[cold]
    fn keep<R, E>(&self, outcome: Result<R, E>) -> Primary<R, E, Marker::Why>
    where
        E: Reject<R>,
        Marker: Mark<R, E>,
    {
        let why = Marker::why(&outcome);
        let (reason, is_kept) = match (E::rejection(&outcome), &outcome) {
            (Some(rejection), _) => (rejection.reason().as_str(), true),
            (None, Err(_)) => ("error", true),
            (None, Ok(_)) => ("response", false),
        };
        Primary { outcome: is_kept.then_some(outcome), reason, why }
    }

    #[cold]
    fn settle<R, E>(&self, primary: Primary<R, E, Marker::Why>, outcome: Result<R, E>) -> Result<R, E>
    where
        E: Reject<R> + fmt::Display,
        Failing: OnFailure<R, E>,
        Marker: Mark<R, E>,
    {
        let Primary { outcome: kept, reason, why } = primary;
        if let Some(error) = said(&outcome) {
            self.info.emit(LayerEvent::FallbackFailed { reason, error: format_args!("{error}") });
            return self.on_failure.outcome(kept, outcome);
        }
        self.info.emit(LayerEvent::FellBack { reason });
        outcome.map(|mut response| {
            Marker::mark(&mut response, why);
            response
        })
    }
}

impl<S, Req, Substitute, Classifier, Failing, Marker> fmt::Debug
    for ResponseFuture<S, Req, Substitute, Classifier, Failing, Marker>
where
    S: Service<Req>,
    Substitute: Alternative<Req, S::Response, S::Error>,
    Marker: Mark<S::Response, S::Error>,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match &self.state {
            State::Calling { .. } => "calling",
            State::FallingBack { .. } => "falling back",
            State::Done => "done",
        };
        f.debug_struct("fallback::ResponseFuture").field("state", &state).finish()
    }
}
