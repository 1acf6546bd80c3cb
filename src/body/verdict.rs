//! Classifies the end of a body whose response was a success.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use http::HeaderMap;
use http_body::{Body, Frame};

use super::{BoxError, End, PollFrame};
use crate::{
    debug::impl_debug,
    outcome::{Class, Classify, Rejection},
};

/// The verdict of a body's end on its call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Said {
    /// The class of the outcome.
    Class(Class),
    /// The reader gave up the body while it was waiting for a frame.
    Cancelled,
    /// The body or a guard of it panicked. This says nothing about the service, and in particular not that it works.
    Panicked,
}

/// Returns the class of a call whose body ends without trailers, if the call lasts `with_body`. `class` is that of the
/// head.
pub(crate) fn without_trailers<R, E, C>(class: Class, outcome: &Result<R, E>, classify: &C, with_body: bool) -> Class
where
    C: Classify<R, E>,
{
    match outcome {
        Ok(response) if with_body && class == Class::Success => classify.classify_without_trailers(response),
        _ => class,
    }
}

/// Classifies a call whose response is a success so far, by its trailers or by the way its body ends.
pub(crate) struct Verdict<C> {
    classify: C,
    // Function pointers, because the body's type does not contain the classifier's response and error types.
    classify_trailers: fn(&C, &HeaderMap) -> Class,
    classify_rejection: fn(&C, &Rejection) -> Class,
    // The class of a body that ends without trailers.
    without_trailers: Class,
    // The class of the trailers, or of the error.
    said: Option<Class>,
}

impl<C> Verdict<C> {
    /// `without_trailers` comes from [`Classify::classify_without_trailers`].
    #[inline]
    pub(crate) fn new<R, E>(classify: C, without_trailers: Class) -> Self
    where
        C: Classify<R, E>,
    {
        let (classify_trailers, classify_rejection) = (C::classify_trailers, C::classify_rejection);
        Self { classify, classify_trailers, classify_rejection, without_trailers, said: None }
    }

    /// Polls the body's next frame and inspects it.
    #[inline]
    pub(crate) fn poll_frame<B>(&mut self, body: Pin<&mut B>, cx: &mut Context<'_>) -> PollFrame<B::Data, BoxError>
    where
        B: Body<Error: Into<BoxError>>,
    {
        let frame = ready!(body.poll_frame(cx)).map(|frame| frame.map_err(Into::into));
        self.look(frame.as_ref());
        Poll::Ready(frame)
    }

    fn look<D>(&mut self, frame: Option<&Result<Frame<D>, BoxError>>) {
        match frame {
            Some(Ok(frame)) => {
                if let Some(trailers) = frame.trailers_ref() {
                    self.said = Some((self.classify_trailers)(&self.classify, trailers));
                }
            }
            // An inner layer may have ended the body.
            Some(Err(error)) => {
                let rejection = Rejection::find(&**error);
                let judged = rejection.map(|rejection| (self.classify_rejection)(&self.classify, rejection));
                self.said = Some(judged.unwrap_or(Class::TRANSIENT));
            }
            None => {}
        }
    }

    /// Returns the verdict, now that the body has ended.
    ///
    /// A body that was dropped while its reader was not waiting had delivered everything that it was asked for. Whether
    /// the reader had enough, is slow, or has disconnected, the service has done its part.
    #[inline]
    pub(crate) fn at(&self, end: End) -> Said {
        match (end, self.said) {
            (_, Some(said)) if said != Class::Success => Said::Class(said),
            (End::Panicked, _) => Said::Panicked,
            (End::Dropped { waiting: true }, _) => Said::Cancelled,
            (End::Complete, None) => Said::Class(self.without_trailers),
            _ => Said::Class(Class::Success),
        }
    }
}

impl_debug!(Verdict<C> { classify: C, said });
