//! What the end of a body says about a call whose response was a success.

use std::{any::type_name, fmt};

use http::HeaderMap;
use http_body::Frame;

use super::End;
use crate::{Class, Classify};

/// The verdict on a call whose response is a success so far: its trailers, or the way in which its body ends, may say otherwise.
pub(crate) struct Verdict<C> {
    classify: C,
    // A function pointer, because the response and error that the classifier knows are not in the body's type.
    classify_trailers: fn(&C, &HeaderMap) -> Class,
    // What the trailers said.
    said: Option<Class>,
}

impl<C> Verdict<C> {
    pub(crate) fn new<R, E>(classify: C) -> Self
    where
        C: Classify<R, E>,
    {
        Self { classify, classify_trailers: C::classify_trailers, said: None }
    }

    /// Looks at what the body gave.
    pub(crate) fn look<D, E>(&mut self, frame: Option<&Result<Frame<D>, E>>) {
        if let Some(trailers) = frame.and_then(|frame| frame.as_ref().ok()).and_then(Frame::trailers_ref) {
            self.said = Some((self.classify_trailers)(&self.classify, trailers));
        }
    }

    /// The class of the call, now that its body has ended; `None` if it was cancelled.
    pub(crate) fn at(&self, end: End) -> Option<Class> {
        match (end, self.said) {
            (End::Failed, _) => Some(Class::TRANSIENT),
            (_, Some(said)) => Some(said),
            (End::Complete, None) => Some(Class::Success),
            (End::Dropped, None) => None,
        }
    }
}

impl<C> fmt::Debug for Verdict<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verdict").field("classify", &type_name::<C>()).field("said", &self.said).finish()
    }
}
