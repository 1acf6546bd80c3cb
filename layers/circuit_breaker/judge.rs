//! The end of a call that goes on with the response's body.

use std::{
    any::type_name,
    fmt,
    pin::Pin,
    task::{Context, Poll, ready},
};

use http::HeaderMap;
use http_body::{Body, Frame};

use super::circuit::Call;
use crate::{
    Class,
    body::{End, Guard, PollFrame},
};

/// What a breaker keeps with the body of a response that is a success: the call, which ends with it.
pub struct Judge<C> {
    call: Call,
    classify: C,
    /// A function pointer, because the response and error that the classifier knows are not in the body's type.
    classify_trailers: fn(&C, &HeaderMap) -> Class,
    /// What the trailers said.
    said: Option<Class>,
}

impl<C> Judge<C> {
    pub(super) fn new(call: Call, classify: C, classify_trailers: fn(&C, &HeaderMap) -> Class) -> Self {
        Self { call, classify, classify_trailers, said: None }
    }
}

impl<B: Body, C> Guard<B> for Judge<C> {
    type Error = B::Error;

    fn poll_frame(&mut self, body: Pin<&mut B>, cx: &mut Context<'_>) -> PollFrame<B::Data, B::Error> {
        let frame = ready!(body.poll_frame(cx));
        if let Some(trailers) = frame.as_ref().and_then(|frame| frame.as_ref().ok()).and_then(Frame::trailers_ref) {
            self.said = Some((self.classify_trailers)(&self.classify, trailers));
        }
        Poll::Ready(frame)
    }

    fn ended(mut self, end: End) {
        match (end, self.said) {
            (End::Failed, _) => self.call.ended(Class::TRANSIENT),
            (_, Some(said)) => self.call.ended(said),
            (End::Complete, None) => self.call.ended(Class::Success),
            (End::Dropped, None) => self.call.cancelled(false),
        }
    }
}

impl<C> fmt::Debug for Judge<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Judge").field("call", &self.call).field("classify", &type_name::<C>()).finish_non_exhaustive()
    }
}
