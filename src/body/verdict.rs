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
use crate::{Class, Classify, Rejection};

type BoxError = Box<dyn StdError + Send + Sync>;

/// The verdict on a call whose response is a success so far: its trailers, or the way in which its body ends, may say otherwise.
pub(crate) struct Verdict<C> {
    classify: C,
    // A function pointer, because the response and error that the classifier knows are not in the body's type.
    classify_trailers: fn(&C, &HeaderMap) -> Class,
    // What the trailers said, or the error.
    said: Class,
}

impl<C> Verdict<C> {
    pub(crate) fn new<R, E>(classify: C) -> Self
    where
        C: Classify<R, E>,
    {
        Self { classify, classify_trailers: C::classify_trailers, said: Class::Success }
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
                    self.said = (self.classify_trailers)(&self.classify, trailers);
                }
            }
            // A layer further in may have ended it.
            Some(Err(error)) => self.said = Rejection::find(&**error).map_or(Class::TRANSIENT, Rejection::class),
            None => {}
        }
    }

    /// The class of the call, now that its body has ended; `None` if it was cancelled.
    ///
    /// A body that was dropped while nobody waited for it had given all that it was asked for: whether its reader had enough, is slow,
    /// or has gone, the service has done its part.
    pub(crate) fn at(&self, end: End) -> Option<Class> {
        match end {
            End::Dropped { waiting: true } if self.said == Class::Success => None,
            _ => Some(self.said),
        }
    }
}

impl<C> fmt::Debug for Verdict<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verdict").field("classify", &type_name::<C>()).field("said", &self.said).finish()
    }
}
