//! Sends a request once more after a failure that may be gone by then.
//!
//! **What it counts**: attempts, the first one included. The last outcome comes back untouched, whether it is a response or an
//! error. An outcome is retried if its [`Class`] is a transient failure, or says that the service has
//! declined the request (429), and
//!
//! - attempts are left: three in all by default;
//! - there is a copy of the request ([`CopyRequest`]); without one it is sent once, never refused. Where a request may not be
//!   repeated, its copy is sent only if [nobody processed](crate::is_unprocessed) it: a `POST` whose connection was refused. A request
//!   that was not sent, because the service did not become ready, needs no copy. A streamed body can be copied inside of a
//!   [`ReplayLayer`](crate::replay::ReplayLayer);
//! - its error is not one of a certificate that does not verify (seen with the feature `rustls`);
//! - the next attempt can start before the [`Deadline`]; and if the service said how long to leave it alone (`Retry-After`), that is
//!   obeyed, up to 300 s (the figure of linkerd2);
//! - the [`Budget`], which all clones share, has one left.
//!
//! Between two attempts it waits: by default [`Backoff::exponential`] from 100 ms to 1 s with full jitter, so that callers that
//! failed together do not come back together. **Its clock** runs only then; a call that succeeds reads none. The response of the
//! attempt that failed is dropped ([`Dropped`]), or drained meanwhile ([`Drained`], in [`RetryLayer::http`]).
//!
//! **Where it belongs**: inside of the total timeout and outside of everything that should see each attempt: circuit breaker,
//! concurrency limit, the attempt's timeout. Outside of the total timeout it would retry what has no time left; inside of a
//! concurrency limit it would hold a permit while it sleeps. What stands inside can read [`attempt()`](crate::attempt).
//!
//! **Cancellation.** Dropping the response future drops the attempt, or the pause and what is drained, and starts no other; a retry
//! that was granted and not started goes back into the budget.
//!
//! It needs `S: Clone`, and is always ready: each attempt waits for the readiness of a clone of its own.
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

use crate::{
    Backoff, Class, Classify, Deadline, Event, FailOnError, HttpStatus, Jitter, Reject, Site,
    ambient::{self, Attempt},
    clock::{self, Sleep},
    is_unprocessed,
    telemetry::{site, site_setters},
    unprocessed::is_bad_certificate,
};
#[doc(no_inline)]
pub use crate::{Cloned, CopyIf, CopyRequest, Idempotent};

mod budget;
mod discard;
mod handle;
mod wait;

pub use budget::Budget;
use budget::Withdrawal;
pub use discard::{Discard, Drained, Dropped};
pub use handle::Retries;
pub use wait::Wait;

/// A service that asks for more than this is not asked again by the same call.
const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(300);

/// A response is drained for so long even if the pause is shorter, and no longer than that even if the pause is.
const LINGER: Duration = Duration::from_millis(100);
const LONGEST_LINGER: Duration = Duration::from_secs(1);

/// The most attempts without a pause that are made in one poll; then the executor gets its turn.
const UNBROKEN: u32 = 64;

/// Sends a request once more after a failure that may be gone by then: see the [module](self).
#[derive(Clone)]
#[must_use]
pub struct RetryLayer<C = FailOnError, P = Cloned, B = Backoff, D = Dropped> {
    retries: Retries,
    classify: C,
    copy: P,
    backoff: B,
    discard: D,
    site: Site,
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
            retries: Retries::new(3),
            classify,
            copy,
            backoff: Backoff::exponential(Duration::from_millis(100)).max(Duration::from_secs(1)).jitter(Jitter::Full),
            discard,
            site: site!("retry"),
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
    /// If the service says how long to leave it alone, the longer of both counts. A wait of zero makes no timer, and needs no clock in the
    /// runtime.
    pub fn backoff<B2>(self, backoff: B2) -> RetryLayer<C, P, B2, D> {
        let Self { retries, classify, copy, backoff: _, discard, site } = self;
        RetryLayer { retries: retries.but_no_backoff(), classify, copy, backoff, discard, site }
    }

    /// Which outcomes are retried: those that this says are transient failures.
    pub fn classify<C2>(self, classify: C2) -> RetryLayer<C2, P, B, D> {
        let Self { retries, classify: _, copy, backoff, discard, site } = self;
        RetryLayer { retries, classify, copy, backoff, discard, site }
    }

    /// How a request is copied, and which are sent once: [`Cloned`], [`Idempotent`], [`CopyIf`], or a closure `|req: &Req| -> Option<Req>`.
    pub fn copy<P2>(self, copy: P2) -> RetryLayer<C, P2, B, D> {
        let Self { retries, classify, copy: _, backoff, discard, site } = self;
        RetryLayer { retries, classify, copy, backoff, discard, site }
    }

    /// What becomes of the response of an attempt that failed, when there is another one: [`Dropped`] or [`Drained`].
    pub fn discard<D2>(self, discard: D2) -> RetryLayer<C, P, B, D2> {
        let Self { retries, classify, copy, backoff, discard: _, site } = self;
        RetryLayer { retries, classify, copy, backoff, discard, site }
    }

    /// How many retries all calls together may make; `None` for any number. [`Budget::default`] if it is not set.
    pub fn budget(mut self, budget: impl Into<Option<Budget>>) -> Self {
        self.retries = self.retries.but_budget(budget.into());
        self
    }

    site_setters!();

    /// A handle to change the numbers while the services of this layer work.
    ///
    /// Take it last: a setting that is changed later begins a new one.
    #[must_use]
    pub fn handle(&self) -> Retries {
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
            .field("site", &self.site)
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
    S::Error: Reject<S::Response>,
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
            budget.deposit();
        }
        ResponseFuture {
            service: self.inner.clone(),
            layer: Arc::clone(&self.layer),
            attempt: Attempt(1),
            last_wait: Duration::ZERO,
            granted: None,
            request: Some(request),
            may_repeat: true,
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
        last_wait: Duration,
        // The next attempt's place in the budget, until it is sent.
        granted: Option<Withdrawal>,
        // What the next call takes; while one is under way, the copy for the one after it.
        request: Option<Req>,
        // Whether that copy can be sent although the request was processed.
        may_repeat: bool,
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
    S::Error: Reject<S::Response>,
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
                    if let Some(left) = rest
                        && D::poll_gone(left, cx).is_ready()
                    {
                        *rest = None;
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
            if !class.is_transient() {
                return Poll::Ready(outcome);
            }
            let retry_after = class.retry_after();
            let failed = Failed {
                attempt: this.attempt.0,
                last_wait: *this.last_wait,
                retry_after,
                may_repeat: *this.may_repeat || !sent,
            };
            let Some(granted) = this.layer.try_again(failed, this.request.as_ref(), &outcome) else {
                return Poll::Ready(outcome);
            };
            *this.last_wait = granted.wait;
            *this.granted = granted.withdrawal;
            let rest = outcome.ok().and_then(|response| this.layer.discard.discard(response, granted.linger));
            let pause = (!granted.wait.is_zero()).then(|| clock::sleep(granted.wait));
            this.state.set(State::Pausing { pause, rest });
        }
    }
}

/// An attempt whose outcome is a transient failure.
struct Failed {
    attempt: u32,
    last_wait: Duration,
    retry_after: Option<Duration>,
    /// Whether the request can be sent although it was processed.
    may_repeat: bool,
}

/// Another attempt.
struct Granted {
    wait: Duration,
    /// How long the response of the last one may be kept.
    linger: Duration,
    withdrawal: Option<Withdrawal>,
}

impl<C, P, B, D> RetryLayer<C, P, B, D> {
    /// Whether there is another attempt, with this copy of the request, and after which wait.
    #[cold]
    fn try_again<Req, R, E>(&self, failed: Failed, copy: Option<&Req>, outcome: &Result<R, E>) -> Option<Granted>
    where
        E: Reject<R>,
        P: CopyRequest<Req>,
        B: Wait<R, E>,
    {
        let attempt = failed.attempt;
        match self.grant(failed, copy, outcome) {
            Ok(granted) => {
                self.site.tell(Event::Retrying { attempt, delay: granted.wait });
                Some(granted)
            }
            Err(reason) => {
                self.site.tell(Event::GaveUp { attempt, reason });
                None
            }
        }
    }

    /// Another attempt; or why there is none.
    fn grant<Req, R, E>(
        &self,
        failed: Failed,
        copy: Option<&Req>,
        outcome: &Result<R, E>,
    ) -> Result<Granted, &'static str>
    where
        E: Reject<R>,
        P: CopyRequest<Req>,
        B: Wait<R, E>,
    {
        if failed.attempt >= self.retries.max_attempts() {
            return Err("attempts");
        }
        if E::cause(outcome).is_some_and(is_bad_certificate) {
            return Err("certificate");
        }
        let copy = copy.filter(|_| failed.may_repeat || was_unprocessed(outcome)).ok_or("copy")?;
        let left = Deadline::current().map(|deadline| deadline.remaining());
        let retry_after = failed.retry_after.unwrap_or_default();
        if retry_after > left.unwrap_or(LONGEST_RETRY_AFTER).min(LONGEST_RETRY_AFTER) {
            return Err("retry_after");
        }
        let wait = match self.retries.backoff() {
            Some(backoff) => backoff.wait(failed.attempt, failed.last_wait, outcome.as_ref()),
            None => self.backoff.wait(failed.attempt, failed.last_wait, outcome.as_ref()),
        };
        let wait = wait.max(retry_after);
        if left.is_some_and(|left| wait >= left) {
            return Err("deadline");
        }
        let withdrawal = match self.retries.budget() {
            Some(budget) => Some(budget.withdraw(clock::now()).ok_or("budget")?),
            None => None,
        };
        // Last: if the answer is yes, the attempt before cannot go on.
        if !self.copy.claim(copy) {
            return Err("copy");
        }
        let linger = left.map_or(LINGER, |left| LINGER.min(left / 10)).max(wait.min(LONGEST_LINGER));
        Ok(Granted { wait, linger, withdrawal })
    }
}

/// Whether it is certain that no service has processed the request that had this outcome.
fn was_unprocessed<R, E: Reject<R>>(outcome: &Result<R, E>) -> bool {
    match E::rejection(outcome) {
        Some(rejection) => rejection.is_unprocessed(),
        None => E::cause(outcome).is_some_and(is_unprocessed),
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
