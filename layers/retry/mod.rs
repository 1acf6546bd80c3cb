//! Sends a request once more after a failure that may be gone by then.
//!
//! **What it counts**: attempts, the first one included. The last outcome comes back untouched, whether it is a response or an
//! error. An outcome is retried if its [`Class`] is a transient failure, or says that the service has
//! declined the request (429), and
//!
//! - attempts are left: three in all by default;
//! - there is a copy of the request ([`CopyRequest`]); without one it is sent once, never refused. Where a request may
//!   not be repeated, its copy is sent only if [nobody processed](crate::is_unprocessed) it: a `POST` whose connection
//!   was refused. A request that was not sent, because the service did not become ready, needs no copy. A streamed body
//!   can be copied inside of a [`ReplayLayer`](crate::replay::ReplayLayer);
//! - its error is not one of a certificate that does not verify (seen with the feature `rustls`);
//! - the next attempt can start before the [`Deadline`](crate::Deadline); and if the service said how long to leave it
//!   alone (`Retry-After`), that is obeyed, up to 300 s (the figure of linkerd2);
//! - the [`Budget`], which all clones share, has one left.
//!
//! **What its caller gets** is the outcome of the last attempt. If that is a rejection (the attempt before opened the
//! circuit), it tells how the attempt before failed ([`Rejection::previous`](crate::Rejection::previous)); if the
//! service did not become ready again for the last one, the error of the last request that was sent comes back.
//! [`LayerEvent::Retrying`], [`GaveUp`](LayerEvent::GaveUp), [`NotRetried`](LayerEvent::NotRetried) and
//! [`Recovered`](LayerEvent::Recovered) tell of each attempt, and why it failed.
//!
//! Between two attempts it waits: by default [`Backoff::exponential`] from 100 ms to 1 s with full jitter, so that
//! callers that failed together do not come back together. **Its clock** runs only then; calls that succeed read one
//! for the budget, about eight times a second in all. The response of the attempt that failed is dropped ([`Dropped`]),
//! or drained meanwhile ([`Drained`], in [`RetryLayer::http`]). A body that panics while it is drained ends the
//! draining, and not the call.
//!
//! **Where it belongs**: inside of the total timeout and outside of everything that should see each attempt: circuit breaker,
//! concurrency limit, the attempt's timeout. Outside of the total timeout it would retry what has no time left; inside of a
//! concurrency limit it would hold a permit while it sleeps. What stands inside can read [`attempt()`](crate::attempt).
//!
//! **Cancellation.** Dropping the response future drops the attempt, or the pause and what is drained, and starts no other; a retry
//! that was granted and not started goes back into the budget.
//!
//! It needs `S: Clone`, and is always ready: each attempt waits for the readiness of a clone of its own. The error has
//! to be [`Display`](std::fmt::Display), for what is told of it.
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
    any::type_name,
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
    caught::{contained, undisturbed},
    clock::{self, Sleep},
    outcome::{Class, Classify, FailOnError, HttpStatus, Reject, judged_as},
    telemetry::{LayerEvent, LayerInfo, layer_info, layer_setters},
};

mod again;
mod budget;
mod discard;
mod handle;
mod wait;

use again::{Over, Previous};
pub use budget::Budget;
use budget::Withdrawal;
pub use discard::{Discard, Drained, Dropped};
pub use handle::RetryHandle;
pub use wait::Wait;

/// The most attempts without a pause that are made in one poll; then the executor gets its turn.
const UNBROKEN: u32 = 64;

/// Sends a request once more after a failure that may be gone by then: see the [module](self).
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
    /// Three attempts, for any request that is `Clone`; every error of the service is retried, no response is.
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
    /// Three attempts, for HTTP requests that may be repeated: see [`Idempotent`], [`HttpStatus`] and [`Drained`].
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
    /// How often a request is sent at most, the first time included; 3 if it is not set. With 1 nothing is retried, nor copied.
    ///
    /// # Panics
    ///
    /// If `attempts` is zero.
    #[track_caller]
    pub fn max_attempts(mut self, attempts: u32) -> Self {
        self.retries = self.retries.but_max_attempts(attempts);
        self
    }

    /// How long to wait before the next attempt: a [`Backoff`], a [`Duration`], or a function of the number of the attempt that
    /// failed and of its outcome, `|attempt: u32, outcome: Result<&_, &_>| -> Duration`.
    ///
    /// If the service says how long to leave it alone, the longer of both counts; a later attempt that says nothing of
    /// it (a connection that was reset) waits as long, if the deadline allows. A jitter that depends on the wait before
    /// goes by this backoff's own. A wait of zero makes no timer, and needs no clock in the runtime.
    ///
    /// A function that panics ends the retries: the outcome of that attempt comes back, with the reason `"backoff"` in
    /// [`LayerEvent::GaveUp`].
    pub fn backoff<B2>(self, backoff: B2) -> RetryLayer<C, P, B2, D> {
        let Self { retries, classify, copy, backoff: _, discard, info } = self;
        RetryLayer { retries: retries.but_no_backoff(), classify, copy, backoff, discard, info }
    }

    /// Which outcomes are retried: those that this says are transient failures.
    pub fn classify<C2>(self, classify: C2) -> RetryLayer<C2, P, B, D> {
        let Self { retries, classify: _, copy, backoff, discard, info } = self;
        RetryLayer { retries, classify, copy, backoff, discard, info }
    }

    /// How a request is copied, and which are sent once: [`Cloned`], [`Idempotent`], [`CopyIf`], or a closure `|req: &Req| -> Option<Req>`.
    pub fn copy<P2>(self, copy: P2) -> RetryLayer<C, P2, B, D> {
        let Self { retries, classify, copy: _, backoff, discard, info } = self;
        RetryLayer { retries, classify, copy, backoff, discard, info }
    }

    /// What becomes of the response of an attempt that failed, when there is another one: [`Dropped`] or [`Drained`].
    pub fn discard<D2>(self, discard: D2) -> RetryLayer<C, P, B, D2> {
        let Self { retries, classify, copy, backoff, discard: _, info } = self;
        RetryLayer { retries, classify, copy, backoff, discard, info }
    }

    /// How many retries all calls together may make; `None` for any number. [`Budget::default`] if it is not set.
    pub fn budget(mut self, budget: impl Into<Option<Budget>>) -> Self {
        self.retries = self.retries.but_budget(budget.into());
        self
    }

    layer_setters!();

    /// A handle to change the numbers while the services of this layer work.
    ///
    /// Take it last: a setting that is changed later begins a new one.
    #[must_use]
    pub fn handle(&self) -> RetryHandle {
        self.retries.clone()
    }
}

impl<S, C, P, B, D> Layer<S> for RetryLayer<C, P, B, D>
where
    Self: Clone,
{
    type Service = Retry<S, C, P, B, D>;

    fn layer(&self, inner: S) -> Self::Service {
        Retry { inner, layer: Arc::new(self.clone()) }
    }
}

impl<C, P, B, D> fmt::Debug for RetryLayer<C, P, B, D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RetryLayer")
            .field("retries", &self.retries)
            .field("classify", &type_name::<C>())
            .field("copy", &type_name::<P>())
            .field("backoff", &type_name::<B>())
            .field("discard", &type_name::<D>())
            .field("info", &self.info)
            .finish()
    }
}

/// The service of [`RetryLayer`].
#[derive(Debug)]
pub struct Retry<S, C = FailOnError, P = Cloned, B = Backoff, D = Dropped> /* not a Service? see ziggurat::Reject, "It does not compile" */
{
    inner: S,
    // Shared with the response futures: one counter is cheaper than a copy of it all.
    layer: Arc<RetryLayer<C, P, B, D>>,
}

impl<S: Clone, C, P, B, D> Clone for Retry<S, C, P, B, D> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone(), layer: Arc::clone(&self.layer) }
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

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Req) -> Self::Future {
        if let Some(budget) = self.layer.retries.budget() {
            budget.deposit(clock::now);
        }
        ResponseFuture {
            service: self.inner.clone(),
            layer: Arc::clone(&self.layer),
            attempt: Attempt(1),
            last_wait: Duration::ZERO,
            asked: Duration::ZERO,
            granted: None,
            request: Some(request),
            may_repeat: true,
            previous: Previous::default(),
            state: State::Readying,
        }
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
        service: S,
        layer: Arc<RetryLayer<C, P, B, D>>,
        attempt: Attempt,
        // What the backoff said the last time.
        last_wait: Duration,
        // The longest time for which an attempt was asked to wait.
        asked: Duration,
        // The next attempt's place in the budget, until it is sent.
        granted: Option<Withdrawal>,
        // What the next call takes; while one is under way, the copy for the one after it.
        request: Option<Req>,
        // Whether that copy can be sent although the request was processed.
        may_repeat: bool,
        // How an attempt failed, for a caller that would not learn it from the last one.
        previous: Previous<S::Error>,
        #[pin]
        state: State<S::Future, D::Rest>,
    }
}

pin_project! {
    #[project = StateProj]
    enum State<F, R> {
        // The service of this attempt is not ready yet.
        Readying,
        Calling {
            #[pin]
            response: F,
        },
        Pausing {
            // None: there is nothing to wait for but the rest.
            #[pin]
            pause: Option<Sleep>,
            // Of the response of the attempt before.
            rest: Option<R>,
        },
        // It was answered.
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

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        let mut unbroken = 0;
        loop {
            // The first attempt mostly is what is in place already: no need to put it there.
            let mut attempt = *this.attempt;
            let _entered = (attempt != ambient::get()).then(|| ambient::enter(&mut attempt));
            let (outcome, sent) = match this.state.as_mut().project() {
                StateProj::Readying => match ready!(this.service.poll_ready(cx)) {
                    Ok(()) => {
                        let Some(request) = this.request.take() else {
                            // Never: there is no next attempt without a request.
                            return Poll::Pending;
                        };
                        if let Some(granted) = this.granted.take() {
                            granted.spend();
                        }
                        if this.attempt.0 < this.layer.retries.max_attempts() {
                            let copy = this.layer.copy.copy(&request);
                            *this.may_repeat = copy.is_some();
                            *this.request = copy.or_else(|| this.layer.copy.copy_unprocessed(&request));
                        }
                        let response = this.service.call(request);
                        this.state.set(State::Calling { response });
                        continue;
                    }
                    // It was not sent: the request is still there for the next attempt, which asks another clone.
                    Err(error) => {
                        *this.service = this.service.clone();
                        (Err(error), false)
                    }
                },
                StateProj::Calling { response } => (ready!(response.poll(cx)), true),
                StateProj::Pausing { pause, rest } => {
                    // A body that panics has ended: the call goes on without it.
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
                    this.state.set(State::Readying);
                    continue;
                }
                StateProj::Done => panic!("retry::ResponseFuture polled after it was ready"),
            };
            // The call is gone before anybody learns of its outcome, and nothing of it is held during the pause.
            this.state.set(State::Done);
            let class = Class::of(&outcome, &this.layer.classify);
            let attempt = this.attempt.0;
            if class == Class::Success {
                if attempt > 1 && judged_as(&outcome).is_none() {
                    this.layer.info.emit(LayerEvent::Recovered { attempt });
                }
                return Poll::Ready(outcome);
            }
            let over = Over {
                attempt,
                class,
                last_wait: *this.last_wait,
                asked_before: *this.asked,
                may_repeat: *this.may_repeat || !sent,
            };
            let Some(granted) = this.layer.try_again(&over, this.request.as_ref(), &outcome) else {
                return Poll::Ready(this.previous.last(outcome, sent));
            };
            *this.last_wait = granted.own_wait;
            *this.asked = (*this.asked).max(class.retry_after().unwrap_or_default());
            *this.granted = granted.withdrawal;
            let rest = this
                .previous
                .record(outcome, &this.layer.classify, sent)
                .and_then(|response| contained(|| this.layer.discard.discard(response, granted.linger)).flatten());
            let pause = (!granted.wait.is_zero()).then(|| clock::sleep(granted.wait));
            this.state.set(State::Pausing { pause, rest });
        }
    }
}

impl<S, Req, C, P, B, D> fmt::Debug for ResponseFuture<S, Req, C, P, B, D>
where
    S: Service<Req>,
    D: Discard<S::Response>,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match &self.state {
            State::Readying => "readying",
            State::Calling { .. } => "calling",
            State::Pausing { .. } => "pausing",
            State::Done => "done",
        };
        f.debug_struct("retry::ResponseFuture").field("attempt", &self.attempt.0).field("state", &state).finish()
    }
}
