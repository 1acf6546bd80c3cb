//! Retries failed requests, within a budget that all clones share.
//!
//! An outcome is retried if its [`Class`] is a transient failure, or says that the service declined the request
//! (429). All of the following must hold as well:
//!
//! - Attempts are left. The default maximum is three, the first attempt included.
//! - There is a copy of the request ([`CopyRequest`]). A request without a copy is sent once; it is never rejected
//!   for that. If a request must not be repeated, its copy is sent only if the request was [never
//!   processed](crate::is_unprocessed), for example a `POST` whose connection was refused. A request that was not
//!   sent, because the service did not become ready, needs no copy. Inside a
//!   [`ReplayLayer`](crate::replay::ReplayLayer), a streamed body can be copied.
//! - The error does not come from a certificate that fails to verify (detected with the feature `rustls`).
//! - The next attempt can start before the [`Deadline`](crate::Deadline). A `Retry-After` from the service is
//!   honoured if it is at most 300 s (linkerd2's figure); a longer one ends the retries.
//! - The [`Budget`], which all clones share, grants a retry. Give one budget to several layers to share it between
//!   them.
//!
//! # Result
//!
//! The caller receives the outcome of the last attempt unchanged, whether it is a response or an error. There are two
//! exceptions:
//!
//! - A rejection, for example because the previous attempt opened the circuit, carries the failure of that attempt
//!   ([`Rejection::previous`](crate::Rejection::previous)).
//! - If the service did not become ready for the last attempt, the caller receives the error of the last request that
//!   was sent.
//!
//! The layer emits [`LayerEvent::Retrying`], [`GaveUp`](LayerEvent::GaveUp), [`NotRetried`](LayerEvent::NotRetried)
//! and [`Recovered`](LayerEvent::Recovered). Each event has the number of the attempt, and each failure its cause.
//!
//! # Backoff
//!
//! The default is [`Backoff::exponential`] from 100 ms to 1 s with full jitter, which spreads out the retries of
//! callers that failed together. The response of the failed attempt is dropped ([`Dropped`]), or drained during the
//! pause ([`Drained`], the default of [`RetryLayer::http`]). A body that panics while it is drained ends the
//! draining, not the call.
//!
//! # Order
//!
//! Place the layer inside the total timeout, and outside every layer that should see each attempt: circuit breaker,
//! concurrency limit, and attempt timeout. Outside the total timeout, it would retry calls that have no time left.
//! Inside a concurrency limit, it would hold a permit while it sleeps. Everything inside can read the number of the
//! [`attempt()`](crate::attempt).
//!
//! # Cancellation safety
//!
//! Dropping the response future drops the current attempt, or the pause and the response that is being drained. No
//! further attempt starts. A retry that was granted but not started is returned to the budget.
//!
//! # Requirements
//!
//! The service must be `Clone`, and its error must be [`Display`](std::fmt::Display), because the events contain its
//! message. The retry service is always ready: each attempt waits for the inner service's readiness anew. The first
//! attempt uses the inner service itself, and each later one a clone.
//!
//! # Cost
//!
//! Timers run during pauses only. Calls that succeed read the clock for the budget, about eight times a second in
//! total. A call that is not retried, and whose service is ready at once, clones no service, apart from the first.
//!
//! # Examples
//!
//! ```
//! use std::{io, sync::atomic::{AtomicU32, Ordering}, time::Duration};
//! use tower::{ServiceBuilder, ServiceExt, service_fn};
//! use ziggurat::{Error, retry::RetryLayer};
//!
//! # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() {
//! static CALLS: AtomicU32 = AtomicU32::new(0);
//!
//! let service = ServiceBuilder::new()
//!     .layer(RetryLayer::new().max_attempts(3).backoff(Duration::from_secs(1)))
//!     .map_err(Error::Service)
//!     .service(service_fn(|name: &'static str| async move {
//!         match CALLS.fetch_add(1, Ordering::Relaxed) {
//!             0 | 1 => Err(io::Error::other("not now")),
//!             _ => Ok(format!("hello {name}, at attempt {}", ziggurat::attempt())),
//!         }
//!     }));
//!
//! assert_eq!(service.oneshot("world").await.unwrap(), "hello world, at attempt 3");
//! # }
//! ```

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

#[doc(no_inline)]
pub use crate::copy::{Cloned, CopyIf, CopyRequest, Idempotent};
use crate::{
    ambient::{self, Attempt},
    backoff::{Backoff, Jitter},
    budget::{Budget, Counted},
    call::Asked,
    caught::{contained, undisturbed},
    clock::{self, Sleep},
    debug::impl_debug,
    outcome::{Class, Classify, FailOnError, HttpStatus, Reject, judged_as},
    stripe::{Lender, Loan},
    telemetry::{LayerEvent, LayerInfo, layer_info, layer_setters},
};

mod again;
mod discard;
mod handle;
mod shared;
mod wait;

use again::{Earlier, Over};
pub use discard::{Discard, Drained, Dropped};
pub use handle::RetryHandle;
use shared::Shared;
pub use wait::Wait;

/// The maximum number of attempts without a pause in one poll. After that, the future yields to the executor.
const UNBROKEN: u32 = 64;

/// Retries failed requests: see the [module](self).
#[derive(Clone)]
#[must_use]
pub struct RetryLayer<C = FailOnError, P = Cloned, B = Backoff, D = Dropped> {
    retries: RetryHandle,
    classify: C,
    copy: P,
    backoff: B,
    discard: D,
    info: LayerInfo,
}

impl RetryLayer {
    /// Creates a layer that makes at most three attempts, for requests that are `Clone`. It retries every error of
    /// the service, and no response.
    pub fn new() -> Self {
        Self::with(FailOnError, Cloned, Dropped)
    }
}

impl Default for RetryLayer {
    fn default() -> Self {
        Self::new()
    }
}

impl RetryLayer<HttpStatus, Idempotent, Backoff, Drained> {
    /// Creates a layer that makes at most three attempts, for HTTP requests that may be repeated: see [`Idempotent`],
    /// [`HttpStatus`] and [`Drained`].
    pub fn http() -> Self {
        Self::with(HttpStatus, Idempotent, Drained)
    }
}

impl<C, P, D> RetryLayer<C, P, Backoff, D> {
    fn with(classify: C, copy: P, discard: D) -> Self {
        Self {
            retries: RetryHandle::new(3),
            classify,
            copy,
            backoff: Backoff::exponential(Duration::from_millis(100)).max(Duration::from_secs(1)).jitter(Jitter::Full),
            discard,
            info: layer_info!("retry"),
        }
    }
}

impl<C, P, B, D> RetryLayer<C, P, B, D> {
    /// Sets the maximum number of attempts, the first one included. The default is 3. With 1, requests are neither
    /// retried nor copied.
    ///
    /// # Panics
    ///
    /// Panics if `attempts` is zero.
    #[track_caller]
    pub fn max_attempts(mut self, attempts: u32) -> Self {
        self.retries = self.retries.but_max_attempts(attempts);
        self
    }

    /// Sets the wait before the next attempt: a [`Backoff`], a [`Duration`], or a function of the failed attempt's
    /// number and outcome, `|attempt: u32, outcome: Result<&_, &_>| -> Duration`.
    ///
    /// If the service asks for a wait (`Retry-After`), the longer of the two applies. If a later attempt fails
    /// without asking for one (for example, its connection is reset), the retry waits at least as long as an earlier
    /// attempt was asked to, if the deadline allows. A jitter that depends on the previous wait uses the previous
    /// wait of this backoff. A wait of zero creates no timer and needs no clock in the runtime.
    ///
    /// A function that panics ends the retries: the caller receives the outcome of that attempt, and
    /// [`LayerEvent::GaveUp`] has the reason `"backoff"`.
    pub fn backoff<B2>(self, backoff: B2) -> RetryLayer<C, P, B2, D> {
        let Self { retries, classify, copy, backoff: _, discard, info } = self;
        RetryLayer { retries: retries.but_no_backoff(), classify, copy, backoff, discard, info }
    }

    /// Sets the classifier. Outcomes that it classifies as transient failures, or as declined, are retried.
    pub fn classify<C2>(self, classify: C2) -> RetryLayer<C2, P, B, D> {
        let Self { retries, classify: _, copy, backoff, discard, info } = self;
        RetryLayer { retries, classify, copy, backoff, discard, info }
    }

    /// Sets how a request is copied, and which requests are sent only once: [`Cloned`], [`Idempotent`], [`CopyIf`],
    /// or a closure `|req: &Req| -> Option<Req>`.
    pub fn copy<P2>(self, copy: P2) -> RetryLayer<C, P2, B, D> {
        let Self { retries, classify, copy: _, backoff, discard, info } = self;
        RetryLayer { retries, classify, copy, backoff, discard, info }
    }

    /// Sets how the response of a failed attempt is discarded before the next attempt: [`Dropped`] or [`Drained`].
    pub fn discard<D2>(self, discard: D2) -> RetryLayer<C, P, B, D2> {
        let Self { retries, classify, copy, backoff, discard: _, info } = self;
        RetryLayer { retries, classify, copy, backoff, discard, info }
    }

    /// Limits the number of retries of all calls together: a [`Budget`], or `&Budget` to share it with other layers.
    /// `None` removes the limit. The default is [`Budget::default`].
    ///
    /// # Panics
    ///
    /// Panics if a [`handle`](Self::handle) was taken before and `budget` is shared, because the handle's budget cannot
    /// be exchanged under running calls. Share [`RetryHandle::budget`] instead.
    #[track_caller]
    pub fn budget(mut self, budget: impl Into<Option<Budget>>) -> Self {
        self.retries = self.retries.but_budget(budget.into());
        self
    }

    layer_setters!();

    /// Returns a handle that changes the settings while the services of this layer run.
    ///
    /// Setters of the layer that are called later also change the handle's settings.
    #[must_use]
    pub fn handle(&self) -> RetryHandle {
        self.retries.held()
    }
}

impl<S, C, P, B, D> Layer<S> for RetryLayer<C, P, B, D>
where
    Self: Clone,
{
    type Service = Retry<S, C, P, B, D>;

    fn layer(&self, inner: S) -> Self::Service {
        Retry { inner, shared: Shared::new(Arc::new(self.clone())) }
    }
}

impl_debug!(RetryLayer<C, P, B, D> { retries, classify: C, copy: P, backoff: B, discard: D, info });

/// The service of [`RetryLayer`].
#[derive(Debug, Clone)]
pub /* not a Service? see ziggurat::docs::it_does_not_compile */ struct Retry<
    S,
    C = FailOnError,
    P = Cloned,
    B = Backoff,
    D = Dropped,
> {
    inner: S,
    shared: Lender<Shared<S, RetryLayer<C, P, B, D>>>,
}

impl<S, C, P, B, D> Retry<S, C, P, B, D> {
    /// Returns a reference to the inner service.
    #[must_use]
    pub fn get_ref(&self) -> &S {
        &self.inner
    }

    /// Returns a mutable reference to the inner service. Calls in flight do not see its changes.
    #[must_use]
    pub fn get_mut(&mut self) -> &mut S {
        self.shared = Shared::new(Arc::clone(&self.shared.layer));
        &mut self.inner
    }

    /// Returns the inner service. Calls in flight continue.
    #[must_use]
    pub fn into_inner(self) -> S {
        self.inner
    }
}

impl<S, C, P, B, D, Req> Service<Req> for Retry<S, C, P, B, D>
where
    S: Service<Req> + Clone,
    S::Error: Reject<S::Response> + fmt::Display,
    C: Classify<S::Response, S::Error>,
    P: CopyRequest<Req>,
    B: Wait<S::Response, S::Error>,
    D: Discard<S::Response>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = ResponseFuture<S, Req, C, P, B, D>;

    #[inline]
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        Poll::Ready(Ok(()))
    }

    #[inline]
    fn call(&mut self, request: Req) -> Self::Future {
        let shared = self.shared.lend();
        shared.keep(&self.inner);
        let mut counted = shared.layer.retries.held_budget().map(Budget::count).unwrap_or_default();
        let first = Attempt(1);
        let (request, may_repeat, state) = {
            let _counted = counted.enter();
            let mut attempt = first;
            let _entered = (first != ambient::get()).then(|| ambient::enter(&mut attempt));
            let mut inner = Asked::new(&mut self.inner);
            match inner.poll_ready() {
                Poll::Ready(Ok(())) => {
                    let (copy, may_repeat) = shared.layer.copy_of(first, &request);
                    (copy, may_repeat, State::Calling { response: inner.call(request) })
                }
                Poll::Ready(Err(error)) => (Some(request), true, State::Unsent { error: Some(Box::new(error)) }),
                Poll::Pending => (Some(request), true, State::Readying { service: Some(Box::new(inner.take())) }),
            }
        };
        ResponseFuture { shared, counted, attempt: first, request, may_repeat, earlier: None, state }
    }
}

pin_project! {
    /// The response future of [`Retry`].
    #[must_use = "futures do nothing unless polled"]
    pub struct ResponseFuture<S, Req, C, P, B, D>
    where
        S: Service<Req>,
        D: Discard<S::Response>,
    {
        shared: Loan<Shared<S, RetryLayer<C, P, B, D>>>,
        counted: Counted,
        attempt: Attempt,
        // The next request to send. While a call is running, the copy for a retry.
        request: Option<Req>,
        // Whether that copy may be sent even if the request was processed.
        may_repeat: bool,
        // Boxed, because few calls need the space. None: no attempt has failed.
        earlier: Option<Box<Earlier<S::Error>>>,
        #[pin]
        state: State<S, S::Future, S::Error, D::Rest>,
    }
}

pin_project! {
    #[project = StateProj]
    enum State<S, F, E, R> {
        // Waiting for the service of this attempt to become ready. Boxed, because few calls need the space.
        // None: a clone is still to be made.
        Readying { service: Option<Box<S>> },
        // The service failed before it was ready for the first attempt.
        Unsent { error: Option<Box<E>> },
        Calling {
            #[pin]
            response: F,
        },
        Pausing {
            // None: only the rest is left to wait for.
            #[pin]
            pause: Option<Sleep>,
            // The rest of the failed attempt's response.
            rest: Option<R>,
        },
        // The outcome was returned.
        Done,
    }
}

impl<S, Req, C, P, B, D> Future for ResponseFuture<S, Req, C, P, B, D>
where
    S: Service<Req> + Clone,
    S::Error: Reject<S::Response> + fmt::Display,
    C: Classify<S::Response, S::Error>,
    P: CopyRequest<Req>,
    B: Wait<S::Response, S::Error>,
    D: Discard<S::Response>,
{
    type Output = Result<S::Response, S::Error>;

    #[inline]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        let layer = &*this.shared.layer;
        let mut unbroken = 0;
        let _counted = this.counted.enter();
        loop {
            // Usually the ambient attempt is right already, and the swap is skipped.
            let mut attempt = *this.attempt;
            let _entered = (attempt != ambient::get()).then(|| ambient::enter(&mut attempt));
            let (outcome, sent) = match this.state.as_mut().project() {
                StateProj::Readying { service: service @ None } => {
                    *service = this.shared.another().map(Box::new);
                    if service.is_none() {
                        // Another thread is making its clone.
                        cx.waker().wake_by_ref();
                        return Poll::Pending;
                    }
                    continue;
                }
                StateProj::Readying { service: Some(service) } => match ready!(service.poll_ready(cx)) {
                    Ok(()) => {
                        let Some(request) = this.request.take() else {
                            // Unreachable: a next attempt always has a request.
                            return Poll::Pending;
                        };
                        if let Some(granted) = this.earlier.as_mut().and_then(|earlier| earlier.granted.take()) {
                            granted.spend();
                        }
                        (*this.request, *this.may_repeat) = layer.copy_of(*this.attempt, &request);
                        let response = service.call(request);
                        this.state.set(State::Calling { response });
                        continue;
                    }
                    // The request was not sent, so the next attempt uses it.
                    Err(error) => (Err(error), false),
                },
                StateProj::Unsent { error } => match error.take() {
                    Some(error) => (Err(*error), false),
                    None => return Poll::Pending, // Unreachable: the state changes below.
                },
                StateProj::Calling { response } => (ready!(response.poll(cx)), true),
                StateProj::Pausing { pause, rest } => {
                    // A body that panics counts as ended: the call goes on without it.
                    if let Some(left) = rest
                        && contained(|| D::poll_gone(left, cx).is_ready()).unwrap_or(true)
                    {
                        let gone = rest.take();
                        undisturbed(|| drop(gone));
                    }
                    let waits = pause.is_some();
                    if let Some(pause) = pause.as_pin_mut() {
                        ready!(pause.poll(cx));
                    }
                    if rest.is_some() {
                        return Poll::Pending;
                    }
                    if !waits {
                        unbroken += 1;
                        if unbroken > UNBROKEN {
                            cx.waker().wake_by_ref();
                            return Poll::Pending;
                        }
                    }
                    this.attempt.0 = this.attempt.0.saturating_add(1);
                    this.state.set(State::Readying { service: None });
                    continue;
                }
                StateProj::Done => panic!("retry::ResponseFuture polled after it was ready"),
            };
            // Drop the call before its outcome is reported, so that the pause holds nothing of it.
            this.state.set(State::Done);
            let class = Class::of(&outcome, &layer.classify);
            let attempt = this.attempt.0;
            if class == Class::Success {
                if attempt > 1 && judged_as(&outcome).is_none() {
                    layer.info.emit(LayerEvent::Recovered { attempt });
                }
                return Poll::Ready(outcome);
            }
            let (last_wait, asked_before) =
                this.earlier.as_ref().map(|earlier| (earlier.last_wait, earlier.asked)).unwrap_or_default();
            let over = Over { attempt, class, last_wait, asked_before, may_repeat: *this.may_repeat || !sent };
            let Some(granted) = layer.try_again(&over, this.request.as_ref(), &outcome) else {
                return Poll::Ready(match this.earlier {
                    Some(earlier) => earlier.previous.last(outcome, sent),
                    None => outcome,
                });
            };
            let earlier = this.earlier.get_or_insert_default();
            earlier.last_wait = granted.own_wait;
            earlier.asked = earlier.asked.max(class.retry_after().unwrap_or_default());
            earlier.granted = granted.withdrawal;
            let rest = earlier
                .previous
                .record(outcome, &layer.classify, sent)
                .and_then(|response| contained(|| layer.discard.discard(response, granted.linger)).flatten());
            let pause = (!granted.wait.is_zero()).then(|| clock::sleep(granted.wait));
            this.state.set(State::Pausing { pause, rest });
        }
    }
}

impl_debug!(ResponseFuture<S: Service<Req>, Req, C, P, B, D: Discard<S::Response>> in retry {
    attempt = |this| this.attempt.0,
    state = |this| match &this.state {
        State::Readying { .. } | State::Unsent { .. } => "readying",
        State::Calling { .. } => "calling",
        State::Pausing { .. } => "pausing",
        State::Done => "done",
    },
});
