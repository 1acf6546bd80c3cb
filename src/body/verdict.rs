//! What the end of a body says about a call whose response was a success.

use std::{
    any::type_name,
    error::Error as StdError,
    fmt,
    pin::Pin,
    task::{Context, Poll, ready},
};

use http::HeaderMap;
use http_body::{Body, Frame};

use super::{End, PollFrame};
use crate::outcome::{Class, Classify, Rejection};

type BoxError = Box<dyn StdError + Send + Sync>;

/// What the end of a body says about its call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Said {
    /// This about the service.
    Class(Class),
    /// Its reader gave it up while it waited.
    Cancelled,
    /// It panicked, or a guard of it did: nothing about the service, and never that it works.
    Panicked,
}

/// The class of a call whose body ends without trailers; if the call lasts `with_body`. `class` is that of its head.
pub(crate) fn without_trailers<R, E, C>(class: Class, outcome: &Result<R, E>, classify: &C, with_body: bool) -> Class
where
    C: Classify<R, E>,
{
    match outcome {
        Ok(response) if with_body && class == Class::Success => classify.classify_without_trailers(response),
        _ => class,
    }
}

/// The verdict on a call whose response is a success so far: its trailers, or the way in which its body ends, may say otherwise.
pub(crate) struct Verdict<C> {
    classify: C,
    // Function pointers, because the response and error that the classifier knows are not in the body's type.
    classify_trailers: fn(&C, &HeaderMap) -> Class,
    classify_rejection: fn(&C, &Rejection) -> Class,
    // What a body says that ends without trailers.
    without_trailers: Class,
    // What the trailers said, or the error.
    said: Option<Class>,
}

impl<C> Verdict<C> {
    /// `without_trailers` is what [`Classify::classify_without_trailers`] says of the response.
    pub(crate) fn new<R, E>(classify: C, without_trailers: Class) -> Self
    where
        C: Classify<R, E>,
    {
        let (classify_trailers, classify_rejection) = (C::classify_trailers, C::classify_rejection);
        Self { classify, classify_trailers, classify_rejection, without_trailers, said: None }
    }

    /// The next frame of the body, which this has looked at.
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
            // A layer further in may have ended it.
            Some(Err(error)) => {
                let rejection = Rejection::find(&**error);
                let judged = rejection.map(|rejection| (self.classify_rejection)(&self.classify, rejection));
                self.said = Some(judged.unwrap_or(Class::TRANSIENT));
            }
            None => {}
        }
    }

    /// What the call's end says, now that its body has ended.
    ///
    /// A body that was dropped while nobody waited for it had given all that it was asked for: whether its reader had enough, is slow,
    /// or has gone, the service has done its part.
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

impl<C> fmt::Debug for Verdict<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verdict").field("classify", &type_name::<C>()).field("said", &self.said).finish()
    }
}
