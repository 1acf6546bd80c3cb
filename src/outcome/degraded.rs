//! Degraded answers: something else has answered in the place of a service that failed, and says so.

use std::{fmt, sync::Arc};

use http::{Extensions, Response, StatusCode};

use super::{Class, Reject, Rejection};

/// Lies in the extensions of a response that does not come from the service, because that failed; and says why.
///
/// The [`FallbackLayer`](crate::fallback::FallbackLayer) puts it there [over HTTP](crate::fallback::FallbackLayer::http), and a layer of
/// your own can. What stands outside can show it, in a header say, and [`HttpStatus`](crate::HttpStatus) judges by it.
///
/// Its `Display` form has the message of the error: for your own logs, not for strangers.
#[derive(Debug, Clone)]
pub struct Degraded {
    cause: Cause,
}

#[derive(Debug, Clone)]
enum Cause {
    Rejected(Rejection),
    Failed(Arc<str>),
    Answered(StatusCode),
}

impl Degraded {
    /// Says that this is the outcome in whose place something else was answered.
    pub fn new<B, E>(outcome: &Result<Response<B>, E>) -> Self
    where
        E: Reject<Response<B>> + fmt::Display,
    {
        Self::of(outcome, Response::status)
    }

    pub(crate) fn of<R, E>(outcome: &Result<R, E>, status: impl FnOnce(&R) -> StatusCode) -> Self
    where
        E: Reject<R> + fmt::Display,
    {
        let cause = match (E::rejection(outcome), outcome) {
            (Some(rejection), _) => Cause::Rejected(rejection.clone()),
            (None, Err(error)) => Cause::Failed(error.to_string().into()),
            (None, Ok(response)) => Cause::Answered(status(response)),
        };
        Self { cause }
    }

    /// `class`, but for a success that does not come from the service.
    pub(crate) fn unless(class: Class, extensions: &Extensions) -> Class {
        if class == Class::Success && extensions.get::<Self>().is_some() { Class::Ignored } else { class }
    }

    /// The rejection that the service's answer was replaced for, if it was one.
    #[must_use]
    pub fn rejection(&self) -> Option<&Rejection> {
        match &self.cause {
            Cause::Rejected(rejection) => Some(rejection),
            _ => None,
        }
    }

    /// The status of the response that was replaced, if the service answered with one.
    #[must_use]
    pub fn status(&self) -> Option<StatusCode> {
        match self.cause {
            Cause::Answered(status) => Some(status),
            _ => None,
        }
    }
}

impl fmt::Display for Degraded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.cause {
            Cause::Rejected(rejection) => rejection.fmt(f),
            Cause::Failed(message) => f.write_str(message),
            Cause::Answered(status) => write!(f, "the service responded with {status}"),
        }
    }
}
