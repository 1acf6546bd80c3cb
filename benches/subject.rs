//! One subject of the benchmarks, and how its calls are made.

use std::{
    fmt::Debug,
    hint::black_box,
    pin::pin,
    task::{Context, Poll, Waker},
};

use bytes::Bytes;
use http::Response;
use http_body::Body;
#[cfg(feature = "peers")]
use layered::Service as LayeredService;
use tower::Service;

use crate::{Failed, Word, call};

/// One service, reused for all of its calls.
pub struct Subject {
    /// The policy.
    pub what: &'static str,
    /// The crate that provides it.
    pub whose: &'static str,
    /// Makes the given number of calls.
    pub run: Box<dyn FnMut(u32)>,
}

/// Takes services of different types, which are the same policies around another service or in another situation.
pub trait Collect {
    fn add<S>(&mut self, what: &'static str, whose: &'static str, service: S)
    where
        S: Service<Word, Response = Word, Error: Debug, Future: Send> + Clone + Send + 'static;
}

impl Collect for Vec<Subject> {
    fn add<S>(&mut self, what: &'static str, whose: &'static str, service: S)
    where
        S: Service<Word, Response = Word, Error: Debug, Future: Send> + Clone + Send + 'static,
    {
        self.push(subject(what, whose, service));
    }
}

/// The service inside the policies.
pub trait Inner: Service<Word, Response = Word, Error = Failed, Future: Send> + Clone + Send + Sync + 'static {}

impl<S> Inner for S where S: Service<Word, Response = Word, Error = Failed, Future: Send> + Clone + Send + Sync + 'static
{}

/// Measures a service whose responses are words.
pub fn subject<S>(what: &'static str, whose: &'static str, mut service: S) -> Subject
where
    S: Service<Word, Response = Word> + 'static,
{
    let run = Box::new(move |times| {
        for _ in 0..times {
            black_box(call(&mut service, black_box(42)));
        }
    });
    Subject { what, whose, run }
}

/// Measures a service of seatbelt's own kind, without its tower integration, which boxes the future of every layer.
#[cfg(feature = "peers")]
pub fn layered_subject(
    what: &'static str,
    service: impl LayeredService<Word, Out = Result<Word, Failed>> + 'static,
) -> Subject {
    let run = Box::new(move |times| {
        for _ in 0..times {
            let mut cx = Context::from_waker(Waker::noop());
            match pin!(service.execute(black_box(42))).poll(&mut cx) {
                Poll::Ready(Ok(response)) => black_box(response),
                _ => panic!("no answer"),
            };
        }
    });
    Subject { what, whose: "seatbelt, layered", run }
}

/// Measures a service with a small response, whose body is read to its end.
pub fn http_subject<S, B>(what: &'static str, whose: &'static str, mut service: S) -> Subject
where
    S: Service<Word, Response = Response<B>> + 'static,
    B: Body<Data = Bytes>,
{
    let run = Box::new(move |times| {
        for _ in 0..times {
            let mut cx = Context::from_waker(Waker::noop());
            let mut body = pin!(call(&mut service, black_box(42)).into_body());
            while let Poll::Ready(Some(Ok(frame))) = body.as_mut().poll_frame(&mut cx) {
                black_box(frame);
            }
        }
    });
    Subject { what, whose, run }
}
