//! Measures calls: how they end, how long they take, and how many are in flight.
//!
//! Each call tells [`LayerEvent::Started`](crate::LayerEvent::Started), and [`LayerEvent::Ended`](crate::LayerEvent::Ended) with its
//! [`Outcome`]: a success or a failure of the service, as the classifier judges; ignored, if what it answered says nothing
//! about it; rejected, if a layer inside answered, or one of a stack further in, whose rejection is a cause of the service's error; or
//! cancelled, if its caller gave it up (or it panicked). The observer hears it, `tracing` logs it (DEBUG, target
//! `ziggurat::observe`), and with the feature `metrics` it is counted: the names are in the table at [`LayerEvent`](crate::LayerEvent). What happens *in* a layer, each tells by itself, with the same names.
//!
//! **Its clock** starts in `call` and is read once more when the call ends: with the response, or with
//! [`until_body_end`](ObserveLayer::until_body_end) when its body has ended. The wait for readiness is not measured; an error of it is a call
//! that ended at once.
//!
//! **Where it belongs.** Outermost but for the context, it sees what callers see: one call with all its attempts, the answers from
//! memory, and rejections. Next to the service it sees each attempt, and the service alone. Two of them, with different names,
//! see both.
//!
//! **Cancellation.** Dropping the response future, or the body, drops the call and counts it as cancelled.
//!
//! It needs no `S: Clone`, and never rejects. Where nobody listens (no observer, no subscriber for its target, and not the feature
//! `metrics`), a call costs a few branches and no clock read.
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
    any::type_name,
    error::Error as StdError,
    fmt,
    future::Future,
    marker::PhantomData,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use http_body::Body;
use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

use crate::{
    body::{BodyEnd, End, Guard, PollFrame, ResponseEnd, Said, Until, Verdict, without_trailers},
    clock::{self, Instant},
    outcome::{Class, Classify, FailOnError, HttpStatus, Reject, judged_as},
    telemetry::{Calls, LayerInfo, Outcome, layer_info, layer_setters},
};

/// Measures calls: see the [module](self).
#[must_use]
pub struct ObserveLayer<C = FailOnError, U = ResponseEnd> {
    classify: C,
    info: LayerInfo,
    until: PhantomData<fn() -> U>,
}

impl ObserveLayer {
    /// Every error of the service is a failure, every response a success. Give it a name: metrics are told apart by it.
    pub fn new() -> Self {
        Self { classify: FailOnError, info: layer_info!("observe"), until: PhantomData }
    }
}

impl Default for ObserveLayer {
    fn default() -> Self {
        Self::new()
    }
}

impl ObserveLayer<HttpStatus> {
    /// For HTTP: responses are judged by [`HttpStatus`].
    pub fn http() -> Self {
        ObserveLayer::new().classify(HttpStatus)
    }
}

impl<C, U> ObserveLayer<C, U> {
    /// Judges by another classifier than [`FailOnError`]: [`HttpStatus`], a closure, or your own.
    pub fn classify<D>(self, classify: D) -> ObserveLayer<D, U> {
        ObserveLayer { classify, info: self.info, until: PhantomData }
    }

    /// For HTTP: a call whose response is a success lasts until the response's body has ended, failed (a failure) or was dropped:
    /// cancelled, if its reader was waiting for it or if it panicked, and a success if it had given all that it was asked for.
    ///
    /// The body's error becomes a boxed one.
    pub fn until_body_end(self) -> ObserveLayer<C, BodyEnd> {
        ObserveLayer { classify: self.classify, info: self.info, until: PhantomData }
    }

    layer_setters!();
}

// By hand, and so for the service: when a call ends need not be Clone for this.
impl<C: Clone, U> Clone for ObserveLayer<C, U> {
    fn clone(&self) -> Self {
        Self { classify: self.classify.clone(), info: self.info.clone(), until: PhantomData }
    }
}

impl<S, C: Clone, U> Layer<S> for ObserveLayer<C, U> {
    type Service = Observe<S, C, U>;

    fn layer(&self, inner: S) -> Self::Service {
        let (calls, classify) = (Arc::new(Calls::new(self.info.clone())), self.classify.clone());
        Observe { inner, calls, classify, until: PhantomData }
    }
}

impl<C, U> fmt::Debug for ObserveLayer<C, U> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ObserveLayer")
            .field("classify", &type_name::<C>())
            .field("info", &self.info)
            .field("until", &type_name::<U>())
            .finish()
    }
}

/// The service of [`ObserveLayer`].
pub struct Observe<S, C = FailOnError, U = ResponseEnd> /* not a Service? see ziggurat::Reject, "It does not compile" */
{
    inner: S,
    calls: Arc<Calls>,
    classify: C,
    until: PhantomData<fn() -> U>,
}

impl<S: Clone, C: Clone, U> Clone for Observe<S, C, U> {
    fn clone(&self) -> Self {
        let (inner, classify) = (self.inner.clone(), self.classify.clone());
        Self { inner, calls: Arc::clone(&self.calls), classify, until: PhantomData }
    }
}

impl<S: fmt::Debug, C, U> fmt::Debug for Observe<S, C, U> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Observe")
            .field("inner", &self.inner)
            .field("classify", &type_name::<C>())
            .field("info", self.calls.info())
            .finish()
    }
}

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

    fn call(&mut self, request: Req) -> Self::Future {
        let call = self.calls.are_heard().then(|| Call::start(&self.calls));
        let response = Some(self.inner.call(request));
        ResponseFuture { response, call, classify: self.classify.clone(), until: PhantomData }
    }
}

/// How a call ended; and of a rejection, why.
fn judge<R, E: Reject<R>>(outcome: &Result<R, E>, classify: &impl Classify<R, E>) -> (Outcome, Option<&'static str>) {
    match judged_as(outcome) {
        Some(rejection) => (Outcome::Rejected, Some(rejection.reason().as_str())),
        None => (Class::of(outcome, classify).into(), None),
    }
}

/// A call that somebody hears of. Dropped before it ended, it was cancelled.
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
        // None: it was answered.
        #[pin]
        response: Option<F>,
        // None: nobody hears of it, or it has ended, or goes on with the body. After the response, and so dropped after it.
        call: Option<Call>,
        classify: C,
        until: PhantomData<fn() -> U>,
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
        // It ends here, and so does an empty body.
        if let Some(mut call) = call {
            call.end(at_end.into(), None);
        }
        Poll::Ready(outcome)
    }
}

impl<F, C, U> fmt::Debug for ResponseFuture<F, C, U> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("observe::ResponseFuture").field("heard", &self.call.is_some()).finish_non_exhaustive()
    }
}

/// What is kept with the body of a response that is a success: the call, which ends with it.
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

impl<C> fmt::Debug for Observed<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Observed").field("verdict", &self.verdict).finish_non_exhaustive()
    }
}
