//! Measures calls: their outcome, their duration, and the number of calls in flight.
//!
//! Each call emits [`LayerEvent::Started`](crate::LayerEvent::Started), and
//! [`LayerEvent::Ended`](crate::LayerEvent::Ended) with its [`Outcome`]:
//!
//! - a success or a failure of the service, as the classifier judges;
//! - ignored, if the outcome says nothing about the service;
//! - rejected, if a layer inside rejected the call, or a layer of a stack further in, whose rejection is a cause of
//!   the service's error;
//! - cancelled, if the caller dropped the call, or the call panicked.
//!
//! # Telemetry
//!
//! Observers receive these events, and `tracing` logs them (DEBUG, target `ziggurat::observe`). With the feature
//! `metrics`, calls are also counted: the names are in the table at [`LayerEvent`](crate::LayerEvent). Events
//! *within* a layer are emitted by that layer, under the same names.
//!
//! The clock starts in `call` and is read once more when the call ends: with the response, or with the response's
//! body if [`until_body_end`](ObserveLayer::until_body_end) is set. The wait for readiness is not measured. A
//! readiness error is reported as a call that ended at once.
//!
//! # Order
//!
//! Just inside the context, the layer sees what callers see: one call with all its attempts, responses from the
//! cache, and rejections. Next to the service, it sees each attempt, and the service alone. Two layers with different
//! names see both.
//!
//! # Cancellation safety
//!
//! Dropping the response future, or the body, drops the call and counts it as cancelled.
//!
//! # Cost
//!
//! The layer does not require `S: Clone` and never rejects. Without a listener (no observer, no subscriber for its
//! target, and not the feature `metrics`), a call costs a few branches and no clock read.
//!
//! # Examples
//!
//! ```
//! use std::sync::{Arc, atomic::{AtomicUsize, Ordering}};
//! use tower::{ServiceBuilder, ServiceExt, service_fn};
//! use ziggurat::{Error, LayerEvent, Outcome, LayerInfo, observe::ObserveLayer};
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() {
//! let failures = Arc::new(AtomicUsize::new(0));
//! let counter = Arc::clone(&failures);
//! let service = ServiceBuilder::new()
//!     .layer(ObserveLayer::new().named("orders").observer(move |_: &LayerInfo, event: &LayerEvent<'_>| {
//!         if let LayerEvent::Ended { outcome: Outcome::Failure, .. } = event {
//!             counter.fetch_add(1, Ordering::Relaxed);
//!         }
//!     }))
//!     .map_err(Error::Service)
//!     .service(service_fn(|works: bool| async move { if works { Ok("done") } else { Err("broken") } }));
//!
//! assert!(service.clone().oneshot(true).await.is_ok());
//! assert!(service.oneshot(false).await.is_err());
//! assert_eq!(failures.load(Ordering::Relaxed), 1);
//! # }
//! ```

use std::{
    error::Error as StdError,
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use http_body::Body;
use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

use crate::{
    accessors::inner_accessors,
    body::{BodyEnd, End, Guard, PollFrame, ResponseEnd, Said, Until, Verdict, without_trailers},
    clock::{self, Instant},
    debug::impl_debug,
    outcome::{Class, Classify, FailOnError, HttpStatus, Reject, judged_as},
    telemetry::{Calls, LayerInfo, Outcome, layer_info, layer_setters},
};

/// Measures calls: see the [module](self).
#[derive(Clone)]
#[must_use]
pub struct ObserveLayer<C = FailOnError, U = ResponseEnd> {
    classify: C,
    info: LayerInfo,
    until: U,
}

impl ObserveLayer {
    /// Creates a layer that counts every error of the service as a failure and every response as a success. Name it
    /// with `named`, because metrics are distinguished by name.
    pub fn new() -> Self {
        Self { classify: FailOnError, info: layer_info!("observe"), until: ResponseEnd }
    }
}

impl Default for ObserveLayer {
    fn default() -> Self {
        Self::new()
    }
}

impl ObserveLayer<HttpStatus> {
    /// Creates a layer that judges responses by [`HttpStatus`]. For HTTP.
    pub fn http() -> Self {
        ObserveLayer::new().classify(HttpStatus)
    }
}

impl<C, U> ObserveLayer<C, U> {
    /// Sets the classifier: [`HttpStatus`], a closure, or your own type. The default is [`FailOnError`].
    pub fn classify<D>(self, classify: D) -> ObserveLayer<D, U> {
        ObserveLayer { classify, info: self.info, until: self.until }
    }

    /// Extends a successful call to the end of the response's body. For HTTP.
    ///
    /// If the body fails, the call is a failure. If the body is dropped while its reader waits for it, or panics, the
    /// call is cancelled. If the body is dropped after it has yielded everything it was polled for, the call is a
    /// success. The body's error becomes a boxed error.
    pub fn until_body_end(self) -> ObserveLayer<C, BodyEnd> {
        ObserveLayer { classify: self.classify, info: self.info, until: BodyEnd }
    }

    layer_setters!();
}

impl<S, C: Clone, U: Copy> Layer<S> for ObserveLayer<C, U> {
    type Service = Observe<S, C, U>;

    fn layer(&self, inner: S) -> Self::Service {
        let (calls, classify) = (Arc::new(Calls::new(self.info.clone())), self.classify.clone());
        Observe { inner, calls, classify, until: self.until }
    }
}

impl_debug!(ObserveLayer<C, U> { classify: C, info, until: U });

/// The service of [`ObserveLayer`].
#[derive(Clone)]
pub /* not a Service? see ziggurat::docs::it_does_not_compile */ struct Observe<S, C = FailOnError, U = ResponseEnd> {
    inner: S,
    calls: Arc<Calls>,
    classify: C,
    until: U,
}

impl<S, C, U> Observe<S, C, U> {
    inner_accessors!();
}

impl_debug!(Observe<S: fmt::Debug, C, U> { inner, classify: C, info = |this| this.calls.info() });

impl<S, C, U, Req> Service<Req> for Observe<S, C, U>
where
    S: Service<Req>,
    S::Error: Reject<S::Response>,
    C: Classify<S::Response, S::Error> + Clone,
    U: Until<S::Response, Observed<C>>,
{
    type Response = U::Response;
    type Error = S::Error;
    type Future = ResponseFuture<S::Future, C, U>;

    #[inline]
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        let Err(error) = ready!(self.inner.poll_ready(cx)) else { return Poll::Ready(Ok(())) };
        // The call ends here, before it was made.
        let outcome: Result<S::Response, _> = Err(error);
        if self.calls.are_heard() {
            let (outcome, reason) = judge(&outcome, &self.classify);
            Call::start(&self.calls).end(outcome, reason);
        }
        Poll::Ready(outcome.map(drop))
    }

    #[inline]
    fn call(&mut self, request: Req) -> Self::Future {
        let call = self.calls.are_heard().then(|| Call::start(&self.calls));
        let response = Some(self.inner.call(request));
        ResponseFuture { response, call, classify: self.classify.clone(), until: self.until }
    }
}

/// Returns how a call ended, and the reason of a rejection.
fn judge<R, E: Reject<R>>(outcome: &Result<R, E>, classify: &impl Classify<R, E>) -> (Outcome, Option<&'static str>) {
    match judged_as(outcome) {
        Some(rejection) => (Outcome::Rejected, Some(rejection.reason().as_str())),
        None => (Class::of(outcome, classify).into(), None),
    }
}

/// A call that has a listener. If it is dropped before it ended, it was cancelled.
struct Call {
    calls: Arc<Calls>,
    start: Instant,
    ended: bool,
}

impl Call {
    fn start(calls: &Arc<Calls>) -> Self {
        calls.started();
        Self { calls: Arc::clone(calls), start: clock::now(), ended: false }
    }

    fn end(&mut self, outcome: Outcome, reason: Option<&'static str>) {
        self.ended = true;
        self.calls.ended(outcome, reason, clock::now().saturating_duration_since(self.start));
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        if !self.ended {
            self.end(Outcome::Cancelled, None);
        }
    }
}

pin_project! {
    /// The response future of [`Observe`].
    #[must_use = "futures do nothing unless polled"]
    pub struct ResponseFuture<F, C, U = ResponseEnd> {
        // None: the outcome was returned.
        #[pin]
        response: Option<F>,
        // None: there is no listener, the call has ended, or it continues with the body. After the response, and
        // therefore dropped after it.
        call: Option<Call>,
        classify: C,
        until: U,
    }
}

impl<F, C, U, R, E> Future for ResponseFuture<F, C, U>
where
    F: Future<Output = Result<R, E>>,
    E: Reject<R>,
    C: Classify<R, E> + Clone,
    U: Until<R, Observed<C>>,
{
    type Output = Result<U::Response, E>;

    #[inline]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        let Some(response) = this.response.as_mut().as_pin_mut() else {
            panic!("observe::ResponseFuture polled after it was ready")
        };
        let outcome = ready!(response.poll(cx));
        this.response.set(None);
        let Some(mut call) = this.call.take() else {
            return Poll::Ready(outcome.map(|response| U::answer(response, || None)));
        };
        let (ended, reason) = judge(&outcome, this.classify);
        if ended != Outcome::Success {
            call.end(ended, reason);
            return Poll::Ready(outcome.map(|response| U::answer(response, || None)));
        }
        let at_end = without_trailers(Class::Success, &outcome, this.classify, U::WITH_BODY);
        let mut call = Some(call);
        let outcome = outcome.map(|response| {
            U::answer(response, || {
                Some(Observed { call: call.take()?, verdict: Verdict::new(this.classify.clone(), at_end) })
            })
        });
        // The call ends here, unless a body that is not empty keeps it.
        if let Some(mut call) = call {
            call.end(at_end.into(), None);
        }
        Poll::Ready(outcome)
    }
}

impl_debug!(ResponseFuture<F, C, U> in observe { heard = |this| this.call.is_some(), .. });

/// The guard of a successful response's body: holds the call, which ends with the body.
#[doc(hidden)] // machinery that is public only because it is part of a public type
pub struct Observed<C> {
    call: Call,
    verdict: Verdict<C>,
}

impl<B, C> Guard<B> for Observed<C>
where
    B: Body,
    B::Error: Into<Box<dyn StdError + Send + Sync>>,
{
    type Error = Box<dyn StdError + Send + Sync>;

    #[inline]
    fn poll_frame(&mut self, body: Pin<&mut B>, cx: &mut Context<'_>) -> PollFrame<B::Data, Self::Error> {
        self.verdict.poll_frame(body, cx)
    }

    fn ended(mut self, end: End) {
        self.call.end(
            match self.verdict.at(end) {
                Said::Class(class) => class.into(),
                Said::Cancelled | Said::Panicked => Outcome::Cancelled,
            },
            None,
        );
    }
}

impl_debug!(Observed<C> { verdict, .. });
