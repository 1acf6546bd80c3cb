//! Shared by the benchmarks: a bare service, and a driver that completes one call without a runtime.

use std::{
    convert::Infallible,
    future::{Future, Ready, ready},
    pin::pin,
    task::{Context, Poll, Waker},
};

use tower::Service;

pub mod count;
#[cfg(feature = "peers")]
pub mod crowd;
pub mod figures;
#[cfg(feature = "peers")]
pub mod page;
#[cfg(feature = "peers")]
pub mod picture;
#[cfg(feature = "peers")]
pub mod situations;
pub mod subject;
pub mod subjects;
#[cfg(feature = "peers")]
pub mod table;
pub mod turns;

/// Whether to measure a few rounds alone, which shows that a benchmark runs. Its figures mean nothing.
pub fn quick() -> bool {
    std::env::args().any(|argument| ["--quick", "--test"].contains(&&*argument))
}

/// The request and the response: one word, so that a copy costs nothing.
pub type Word = u64;

/// The error of every stack here. It never occurs.
#[derive(Debug, Clone, Copy)]
pub struct Failed;

impl std::fmt::Display for Failed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("failed")
    }
}

impl std::error::Error for Failed {}

impl From<Infallible> for Failed {
    fn from(never: Infallible) -> Self {
        match never {}
    }
}

/// Responds at once with the request.
#[derive(Debug, Clone, Copy)]
pub struct Echo;

impl Service<Word> for Echo {
    type Response = Word;
    type Error = Failed;
    type Future = Ready<Result<Word, Failed>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Failed>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Word) -> Self::Future {
        ready(Ok(request))
    }
}

/// Polls the service ready, calls it and polls the response. Each has to be ready at once.
pub fn call<S: Service<Word>>(service: &mut S, request: Word) -> S::Response {
    let mut cx = Context::from_waker(Waker::noop());
    assert!(matches!(service.poll_ready(&mut cx), Poll::Ready(Ok(()))), "not ready");
    let response = pin!(service.call(request));
    match response.poll(&mut cx) {
        Poll::Ready(Ok(response)) => response,
        _ => panic!("no answer"),
    }
}
