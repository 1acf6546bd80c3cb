//! A test kit for layers and stacks, ours and your own (feature `test-util`).
//!
//! - [`laws`] checks the laws that every layer should keep: `testing::laws(|| MyLayer::new()).check()`. For example,
//!   permits are released wherever a call is dropped, waiters are woken, and clones share their state: see [`Law`].
//! - [`Script`] creates services that follow a script, and records what happened to them.
//! - [`Strict`] enforces the contract of a [`Service`]: it panics when it is called without being ready.
//! - [`TestTask`] polls a future by hand, step by step, and counts its wake-ups.

use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
};

use tower_service::Service;

use crate::debug::impl_debug;

mod act;
mod checks;
mod law;
mod laws;
mod rejections;
mod script;
mod sharing;
mod trial;

pub use act::{Act, ScriptedError};
pub use law::{Broken, Law};
pub use laws::{HttpNumber, Laws, Number, laws, laws_with_gauges};
pub use script::{Entry, Script, Scripted, ScriptedResponse};

/// A service that panics if it is called without having been polled ready. A clone is not ready.
#[derive(Debug, Default)]
pub struct Strict<S> {
    inner: S,
    ready: bool,
}

impl<S> Strict<S> {
    /// Wraps `inner`, and enforces the contract on its callers.
    pub fn new(inner: S) -> Self {
        Self { inner, ready: false }
    }
}

impl<S: Clone> Clone for Strict<S> {
    fn clone(&self) -> Self {
        Self::new(self.inner.clone())
    }
}

impl<S: Service<Req>, Req> Service<Req> for Strict<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        let polled = self.inner.poll_ready(cx);
        self.ready = matches!(polled, Poll::Ready(Ok(())));
        polled
    }

    fn call(&mut self, request: Req) -> S::Future {
        assert!(self.ready, "called without being ready: `poll_ready` has to return `Ready(Ok(()))` before each call");
        self.ready = false;
        self.inner.call(request)
    }
}

/// A future that is polled by hand, step by step.
pub struct TestTask<F> {
    future: Pin<Box<F>>,
    woken: Arc<Woken>,
}

#[derive(Default)]
struct Woken {
    times: AtomicUsize,
}

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.times.fetch_add(1, Ordering::SeqCst);
    }
}

impl<F: Future> TestTask<F> {
    /// Wraps a future without polling it.
    pub fn new(future: F) -> Self {
        Self { future: Box::pin(future), woken: Arc::default() }
    }

    /// Polls the future once.
    pub fn poll(&mut self) -> Poll<F::Output> {
        let waker = Waker::from(Arc::clone(&self.woken));
        self.future.as_mut().poll(&mut Context::from_waker(&waker))
    }

    /// The number of times that the future was woken so far.
    #[must_use]
    pub fn times_woken(&self) -> usize {
        self.woken.times.load(Ordering::SeqCst)
    }
}

impl_debug!(TestTask<F> { times_woken = |this| &this.woken.times });
