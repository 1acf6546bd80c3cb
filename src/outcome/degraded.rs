//! Degraded responses: marked as a substitute for the response of a service that failed.

use std::{fmt, sync::Arc};

use http::{Extensions, Response, StatusCode};

use super::{Class, Reject, Rejection};

/// Marks a response that replaces the outcome of a failed service, and records why. It is stored in the response's
/// extensions.
///
/// The [`FallbackLayer`](crate::fallback::FallbackLayer) inserts it [over HTTP](crate::fallback::FallbackLayer::http),
/// and your own layer can too. Outer layers can expose it, for example in a header, and
/// [`HttpStatus`](crate::HttpStatus) takes it into account.
///
/// Its `Display` form contains the error's message. Use it in your own logs only.
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
    /// Creates the mark of a response that replaces `outcome`.
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

    /// Returns `class`, or [`Class::Ignored`] for a success that is degraded.
    pub(crate) fn unless(class: Class, extensions: &Extensions) -> Class {
        if class == Class::Success && extensions.get::<Self>().is_some() { Class::Ignored } else { class }
    }

    /// Returns the rejection that was replaced, if the outcome was one.
    #[must_use]
    pub fn rejection(&self) -> Option<&Rejection> {
        match &self.cause {
            Cause::Rejected(rejection) => Some(rejection),
            _ => None,
        }
    }

    /// Returns the status of the response that was replaced, if the service responded.
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
