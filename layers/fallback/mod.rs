//! Substitutes a response when the service fails.
//!
//! The fallback is a [value](FallbackLayer::value), a [function](FallbackLayer::new) of the outcome, a function that
//! returns a [future](FallbackLayer::future), or another [service](FallbackLayer::service). The request itself is
//! gone by then, so a function can have parts of it [remembered](FallbackLayer::remember).
//!
//! # Which calls fall back
//!
//! - Outcomes that [`classify`](FallbackLayer::classify) judges to be failures. By default, these are all errors.
//! - Every rejection of a layer inside. This includes an overload, which says nothing about the service but leaves
//!   the caller without a response.
//!
//! Outcomes that the classifier ignores pass through, also to callers that only shared the call
//! ([`Reason::Shared`](crate::Reason::Shared)). With [`with_rejections`](crate::with_rejections), a rejection that is
//! classified as a success passes through too. [`RejectionsOnly`] leaves all outcomes of the service alone.
//!
//! Over HTTP, use [`.http()`](FallbackLayer::http): a 503 is then a failure, and the fallback's response carries
//! [`Degraded`](crate::Degraded) in its extensions.
//!
//! # If the fallback fails too
//!
//! A response that was judged a failure is dropped before the fallback's future runs. This releases everything that
//! depends on its body, such as a connection or a permit. An error or a rejection is kept.
//!
//! If the fallback ends with an error or a rejection, [`on_failure`](FallbackLayer::on_failure) receives both. By
//! default, the caller receives the outcome of the service, with the fallback's message attached where there is a
//! place for it: in a rejection ([`Rejection::suppressed`](crate::Rejection::suppressed)), or in an error type that
//! implements [`Reject::suppress`](crate::Reject::suppress). The event contains the fallback's error in any case. A
//! response from the fallback is final, whatever its status.
//!
//! # Extra load
//!
//! A backup that is not idle takes more load at the worst moment: if a zone fails, its neighbour gets all of its calls,
//! and the retries of its own callers. Give the layer the budget of the retry ([`budget`](FallbackLayer::budget)): each
//! call of the backup is then taken from it, as each retry is, and both together add at most a share of the requests.
//! If the budget grants no call, the caller receives the outcome of the service unchanged, and the layer emits
//! [`LayerEvent::FallbackRefused`]. A value or a function makes no call, so there is nothing to limit.
//!
//! ```
//! use tower::{ServiceBuilder, ServiceExt, service_fn};
//! use ziggurat::{Error, fallback::FallbackLayer, stack::ClientStack};
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() {
//! # let client = service_fn(async |name: &'static str| Ok::<_, std::io::Error>(name));
//! # let other_zone = client.map_err(Error::Service);
//! let stack = ClientStack::new("users");
//! let service = ServiceBuilder::new()
//!     .layer(FallbackLayer::service(other_zone).budget(stack.budget()))
//!     .layer(stack)
//!     .map_err(Error::Service)
//!     .service(client);
//! # assert_eq!(service.oneshot("Ada").await.unwrap(), "Ada");
//! # }
//! ```
//!
//! # Order
//!
//! Place the layer outside everything that can fail or reject: cache, total timeout, retry, circuit breaker, and
//! concurrency limit. Then it covers an open circuit and an expired total, and a fresh response from the cache takes
//! precedence.
//!
//! Inside a cache or a circuit breaker, its responses would count as the service's own: they would be stored for a
//! whole ttl, and keep the circuit closed. [`HttpStatus`] ignores responses that are [`Degraded`](crate::Degraded);
//! for other response types, use a classifier that detects them. Inside a retry, the fallback would replace the
//! outcome of each attempt, and nothing would ever be retried.
//!
//! A timeout inside does not cover the fallback. A backup that can be slow needs a timeout of its own.
//!
//! # Cancellation safety
//!
//! Dropping the response future drops the call or the fallback, whichever is running. A call of the backup that was
//! granted but not made, because the backup was not ready, is returned to the budget.
//!
//! # Requirements
//!
//! The service must be `Clone`, and errors must be [`Display`](std::fmt::Display). A [value](FallbackLayer::value)
//! must be `Clone`; nothing else is required of responses. The fallback service is always ready: the inner service
//! and the backup become ready inside the response future, and a readiness error is an outcome like any other.
//!
//! # Cost
//!
//! A call that succeeds pays for the remembered parts of its request, and is counted in the [`Budget`] if there is one.
//! It does not allocate.
//!
//! # Examples
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
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

use crate::{
    accessors::inner_accessors,
    budget::{Budget, Counted},
    caught::undisturbed,
    copy::Cloned,
    debug::impl_debug,
    outcome::{Class, Classify, FailOnError, HttpStatus, Reason, Reject, Rejection, judged_as, reason_of},
    telemetry::{LayerEvent, LayerInfo, layer_info, layer_setters},
};

mod alternative;
mod policy;

use self::policy::said;

pub use self::{
    alternative::{Alternative, AtOnce, Backup, Failed, Function, Granted, Later, Nothing, Remember, Value},
    policy::{InExtensions, KeepPrimary, Mark, OnFailure, RejectionsOnly, Unmarked},
};
pub use crate::call::Call;

/// Substitutes a response when the service fails: see the [module](self).
#[doc(alias = "degradation")]
#[derive(Clone)]
#[must_use]
pub struct FallbackLayer<Substitute, Classifier = FailOnError, Failing = KeepPrimary, Marker = Unmarked> {
    alternative: Substitute,
    classify: Classifier,
    on_failure: Failing,
    budget: Option<Budget>,
    info: LayerInfo,
    mark: Marker,
}

impl<R> FallbackLayer<Value<R>> {
    /// Falls back to a clone of `response`.
    pub fn value(response: R) -> Self {
        Self::with(Value(Arc::new(response)))
    }
}

impl<F> FallbackLayer<Function<F>> {
    /// Falls back to the result of `function`, a closure `|failed: Failed<'_, _, _>| ..` that returns a response or
    /// an `Option` of one.
    ///
    /// If the function returns `None`, the caller receives the outcome of the service unchanged.
    pub fn new(function: F) -> Self {
        Self::with(Function::new(function, AtOnce))
    }
}

impl<F> FallbackLayer<Function<F, Nothing, Later>> {
    /// Falls back to the output of the future that `function` returns, a `Result` of the service's response and error
    /// types: `|failed: Failed<'_, _, _>| async move { .. }`.
    ///
    /// The future cannot borrow from `failed`: the function extracts what the future needs.
    pub fn future(function: F) -> Self {
        Self::with(Function::new(function, Later))
    }
}

impl<B> FallbackLayer<Backup<B>> {
    /// Falls back to another service, `backup`, which receives a copy of the request. It must have the same response
    /// and error types.
    ///
    /// The request is copied before it is sent, so it must be `Clone`, unless [`copy`](FallbackLayer::copy) is set. A
    /// service that failed may have done its work, so do not copy requests that must not be processed twice.
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
            budget: None,
            info: layer_info!("fallback"),
            mark: Unmarked,
        }
    }
}

impl<F, K, Classifier, Failing, Marker> FallbackLayer<Function<F, Nothing, K>, Classifier, Failing, Marker> {
    /// Sets which parts of each request to remember for the function, which finds them in [`Failed::remembered`]: a
    /// closure `|req: &Request<_>| ..`.
    pub fn remember<M>(self, remember: M) -> FallbackLayer<Function<F, M, K>, Classifier, Failing, Marker> {
        let Self { alternative: Function { function, remember: _, kind }, classify, on_failure, budget, info, mark } =
            self;
        FallbackLayer { alternative: Function { function, remember, kind }, classify, on_failure, budget, info, mark }
    }
}

impl<B, P, Classifier, Failing, Marker> FallbackLayer<Backup<B, P>, Classifier, Failing, Marker> {
    /// Sets how the request is copied for the backup, and which requests have no fallback: [`Cloned`],
    /// [`Idempotent`](crate::Idempotent), [`CopyIf`](crate::CopyIf), or a closure `|req: &Req| -> Option<Req>`.
    ///
    /// With `Idempotent` and `CopyIf`, the backup receives every request that was [never
    /// processed](crate::is_unprocessed), for example a `POST` that an open circuit rejected.
    pub fn copy<P2>(self, copy: P2) -> FallbackLayer<Backup<B, P2>, Classifier, Failing, Marker> {
        let Self { alternative: Backup { service, copy: _ }, classify, on_failure, budget, info, mark } = self;
        FallbackLayer { alternative: Backup { service, copy }, classify, on_failure, budget, info, mark }
    }

    /// Limits the number of calls of the backup, together with the extra calls of all layers that share `budget`: a
    /// [`Budget`], or `&Budget` to share it. The default is `None`: every call that fails goes to the backup.
    ///
    /// For a backup that cannot bear the whole load, for example the same cluster in another zone. See [Extra
    /// load](self#extra-load).
    pub fn budget(mut self, budget: impl Into<Option<Budget>>) -> Self {
        self.budget = budget.into();
        self
    }
}

impl<Substitute, Classifier, Failing, Marker> FallbackLayer<Substitute, Classifier, Failing, Marker> {
    /// Sets the classifier. Outcomes that it classifies as failures fall back, and so does every rejection of a
    /// layer.
    pub fn classify<C2>(self, classify: C2) -> FallbackLayer<Substitute, C2, Failing, Marker> {
        let Self { alternative, classify: _, on_failure, budget, info, mark } = self;
        FallbackLayer { alternative, classify, on_failure, budget, info, mark }
    }

    /// Classifies with [`HttpStatus`], and marks the fallback's responses with [`Degraded`](crate::Degraded). For
    /// HTTP.
    ///
    /// The mark is in the response's extensions and contains the reason.
    pub fn http(self) -> FallbackLayer<Substitute, HttpStatus, Failing, InExtensions> {
        let Self { alternative, classify: _, on_failure, budget, info, mark: _ } = self;
        FallbackLayer { alternative, classify: HttpStatus, on_failure, budget, info, mark: InExtensions }
    }

    /// Sets which outcome the caller receives if the fallback fails too: [`KeepPrimary`], or a closure
    /// `|primary: Option<Result<_, _>>, fallback: Result<_, _>| -> Result<_, _>` (see [`OnFailure`]).
    pub fn on_failure<N2>(self, on_failure: N2) -> FallbackLayer<Substitute, Classifier, N2, Marker> {
        let Self { alternative, classify, on_failure: _, budget, info, mark } = self;
        FallbackLayer { alternative, classify, on_failure, budget, info, mark }
    }

    layer_setters!();
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

impl_debug!(FallbackLayer<Substitute: fmt::Debug, Classifier, Failing, Marker> {
    alternative,
    classify: Classifier,
    on_failure: Failing,
    budget,
    info,
});

/// The service of [`FallbackLayer`].
#[derive(Debug, Clone)]
pub /* not a Service? see ziggurat::docs::it_does_not_compile */ struct Fallback<
    S,
    Substitute,
    Classifier = FailOnError,
    Failing = KeepPrimary,
    Marker = Unmarked,
> {
    inner: S,
    // Shared with the response futures: a reference count is cheaper than a copy of the layer.
    layer: Arc<FallbackLayer<Substitute, Classifier, Failing, Marker>>,
}

impl<S, Substitute, Classifier, Failing, Marker> Fallback<S, Substitute, Classifier, Failing, Marker> {
    inner_accessors!();
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
        let counted = self.layer.budget.as_ref().map(Budget::count).unwrap_or_default();
        let memory = self.layer.alternative.remember(&request);
        let call = Call::new(self.inner.clone(), request);
        ResponseFuture { layer: Arc::clone(&self.layer), counted, memory: Some(memory), state: State::Calling { call } }
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
        counted: Counted,
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
        // The service becomes ready and is called.
        Calling {
            #[pin]
            call: Call<S, Req>,
        },
        // The service failed, and the fallback is running.
        FallingBack {
            #[pin]
            answer: F,
            primary: Option<P>,
        },
        // The outcome was returned.
        Done,
    }
}

/// The service's outcome, which the fallback replaces.
struct Primary<R, E, W> {
    // None: it was a response, which has been dropped.
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
        let _counted = this.counted.enter();
        loop {
            match this.state.as_mut().project() {
                StateProj::Calling { call } => {
                    let outcome = ready!(call.poll(cx));
                    // Drop the call before its outcome is reported.
                    this.state.set(State::Done);
                    let memory = this.memory.take();
                    let class = Class::of(&outcome, &this.layer.classify);
                    // A rejection that the classifier calls a success passes through.
                    let is_rejected = class != Class::Success && judged_as(&outcome).is_some_and(is_ours);
                    let is_lost = class.is_failure() || is_rejected;
                    let (true, Some(remembered)) = (is_lost, memory) else { return Poll::Ready(outcome) };
                    let failed = Failed { outcome: &outcome, class, remembered };
                    let answer = match this.layer.alternative.answer(failed, this.layer.budget.as_ref()) {
                        Ok(answer) => answer,
                        Err(reason) => {
                            if let Some(reason) = reason {
                                this.layer.info.emit(LayerEvent::FallbackRefused { reason });
                            }
                            return Poll::Ready(outcome);
                        }
                    };
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

/// Whether a layer rejected this very call. A [`Reason::Shared`] rejection stands for the service's own outcome.
fn is_ours(rejection: &Rejection) -> bool {
    !matches!(rejection.reason(), Reason::Shared { .. })
}

impl<Substitute, Classifier, Failing, Marker> FallbackLayer<Substitute, Classifier, Failing, Marker> {
    /// Records the outcome while the fallback runs. A response is dropped, because its body may hold a permit or a
    /// connection.
    #[cold]
    fn keep<R, E>(&self, outcome: Result<R, E>) -> Primary<R, E, Marker::Why>
    where
        E: Reject<R>,
        Marker: Mark<R, E>,
    {
        let (why, reason) = (Marker::why(&outcome), reason_of(&outcome));
        let is_kept = outcome.is_err() || E::rejection(&outcome).is_some();
        let mut outcome = Some(outcome);
        if !is_kept {
            undisturbed(|| outcome = None);
        }
        Primary { outcome, reason, why }
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

impl_debug!(ResponseFuture<S, Req, Substitute, Classifier, Failing, Marker> in fallback where [
    S: Service<Req>,
    Substitute: Alternative<Req, S::Response, S::Error>,
    Marker: Mark<S::Response, S::Error>,
] {
    state = |this| match &this.state {
        State::Calling { .. } => "calling",
        State::FallingBack { .. } => "falling back",
        State::Done => "done",
    },
});
