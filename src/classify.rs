//! Classes: what an outcome says about the service, said once for all layers.

use std::{any::type_name, fmt, time::Duration};

use http::{Extensions, HeaderMap};

use crate::{
    caller,
    degraded::Degraded,
    rejection::{Reject, Rejection},
};

mod http_status;
mod retry_after;

pub use http_status::{HttpStatus, HttpStatusMillis};
pub(crate) use retry_after::retry_after;

/// What an outcome says about the service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// It works.
    Success,
    /// It does not.
    Failure {
        /// Whether trying again may help.
        transient: bool,
        /// How long the service asks to be left alone.
        retry_after: Option<Duration>,
    },
    /// It works, and has declined this request because of its sender: too many requests (429), or one that came too
    /// slowly (408).
    ///
    /// A retry sends it again, as after a transient failure. It never counts against the service: one tenant's 429 must
    /// not open a circuit that it shares with others.
    Declined {
        /// How long the service asks this sender to wait.
        retry_after: Option<Duration>,
    },
    /// Nothing: the caller's own mistake, for example, or a limit on this side.
    Ignored,
}

impl Class {
    /// A failure that may be gone the next time.
    pub const TRANSIENT: Self = Self::Failure { transient: true, retry_after: None };

    /// A failure that will be the same the next time.
    pub const PERMANENT: Self = Self::Failure { transient: false, retry_after: None };

    /// A request that the service declined, without saying when to come back.
    pub const DECLINED: Self = Self::Declined { retry_after: None };

    /// Whether the caller did not get what it asked for: a failure, or a request that was declined.
    ///
    /// Only [`Failure`](Self::Failure) counts against the service.
    #[must_use]
    pub fn is_failure(&self) -> bool {
        matches!(self, Self::Failure { .. } | Self::Declined { .. })
    }

    /// Whether another attempt may help: a transient failure, or a request that was declined.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Failure { transient: true, .. } | Self::Declined { .. })
    }

    /// How long the service asks to be left alone, or asks this sender to wait.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Failure { retry_after, .. } | Self::Declined { retry_after } => *retry_after,
            Self::Success | Self::Ignored => None,
        }
    }

    /// The same, but for a success that something else than the service answered with.
    pub(crate) fn unless_degraded(self, extensions: &Extensions) -> Self {
        if self == Self::Success && extensions.get::<Degraded>().is_some() { Self::Ignored } else { self }
    }

    /// The class of an outcome, as the classifier judges it: a rejection with [`Classify::classify_rejection`], the service's own
    /// answer or error with [`Classify::classify`].
    ///
    /// Every layer judges with this, and so should yours: it tells a rejection by a layer further in apart from the service's own answer
    /// before it asks the classifier. An error is [`Class::Ignored`] where the caller failed to send the request's body, which an
    /// [`UploadLayer`](crate::upload::UploadLayer) further out finds out.
    #[inline]
    pub fn of<R, E, C>(outcome: &Result<R, E>, classifier: &C) -> Self
    where
        E: Reject<R>,
        C: Classify<R, E>,
    {
        match E::rejection(outcome) {
            Some(rejection) => classifier.classify_rejection(rejection),
            // What a service makes of a body that its caller broke off is not its fault.
            None if outcome.is_err() && caller::failed() => Self::Ignored,
            None => classifier.classify(outcome.as_ref()),
        }
    }
}

/// Tells what an outcome says about the service. A closure from `Result<&R, &E>` to [`Class`] is one too:
///
/// ```
/// use ziggurat::{Class, retry::RetryLayer};
///
/// let layer = RetryLayer::new().classify(|outcome: Result<&String, &std::io::Error>| match outcome {
///     Ok(answer) if answer.is_empty() => Class::TRANSIENT,
///     Ok(_) => Class::Success,
///     Err(_) => Class::PERMANENT,
/// });
/// ```
///
/// # Rejections
///
/// A closure over outcomes never sees a rejection, neither as an error (`Err(Error::Rejected(..))`) nor as a response: an arm for it
/// compiles, and no layer ever calls it. A rejection has a class of its own ([`Rejection::class`]). Where you want another one, put
/// [`with_rejections`] around the classifier. This layer retries errors, but not timeouts:
///
/// ```
/// use ziggurat::{Class, HttpStatus, Reason, retry::RetryLayer, with_rejections};
///
/// let layer = RetryLayer::http().classify(with_rejections(HttpStatus, |rejection| match rejection.reason() {
///     Reason::TimedOut { .. } => Class::PERMANENT,
///     _ => rejection.class(),
/// }));
/// ```
pub trait Classify<R, E> {
    /// The class of this outcome, which is not a rejection.
    fn classify(&self, outcome: Result<&R, &E>) -> Class;

    /// The class of a rejection by a layer further in, in the outcome or in the error of a response's body. Its own, unless said
    /// otherwise.
    fn classify_rejection(&self, rejection: &Rejection) -> Class {
        rejection.class()
    }

    /// The class of a success that said otherwise after all, in the trailers of its body: as gRPC does. A success, unless said otherwise.
    ///
    /// Only layers that wait for the end of the body ask this.
    fn classify_trailers(&self, _trailers: &HeaderMap) -> Class {
        Class::Success
    }

    /// The class that a response which is a success so far has if its body ends, complete, without any trailers: in gRPC that is a
    /// failure, unless the head has a status. A success, unless said otherwise.
    ///
    /// Only layers that wait for the end of the body ask this, when the response is there.
    fn classify_without_trailers(&self, _response: &R) -> Class {
        Class::Success
    }

    /// Says in a few words what speaks against this response, which was judged a failure: its status, for example. It
    /// is what events and rejections tell; "response", unless said otherwise.
    ///
    /// # Errors
    ///
    /// If `f` cannot be written to.
    fn describe(&self, response: &R, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let _ = response;
        f.write_str("response")
    }
}

/// Judges rejections by a closure, and everything else by `classify`: [`HttpStatus`], a closure, or any other classifier.
///
/// It goes wherever a layer takes a classifier. Class by class, the closure decides for
///
/// - a retry: only a transient failure is tried again;
/// - a circuit breaker: a failure counts, [`Class::Ignored`] does not;
/// - a fallback, and a cache that has something stale: they stand in for every rejection, unless the closure says that it is a
///   [`Class::Success`]. Then the caller gets the rejection, and no cache stores it.
///
/// ```
/// use ziggurat::{Class, FailOnError, circuit_breaker::CircuitBreakerLayer, with_rejections};
///
/// // Timeouts do not count: the callers of this service set short deadlines.
/// let breaker = CircuitBreakerLayer::failure_rate(0.5).classify(with_rejections(FailOnError, |rejection| {
///     if rejection.is_timed_out() { Class::Ignored } else { rejection.class() }
/// }));
/// ```
pub fn with_rejections<C, F>(classify: C, rejections: F) -> WithRejections<C, F>
where
    F: Fn(&Rejection) -> Class,
{
    WithRejections { classify, rejections }
}

/// A classifier that judges rejections by a closure: see [`with_rejections`].
#[derive(Clone, Copy)]
pub struct WithRejections<C, F> {
    classify: C,
    rejections: F,
}

impl<R, E, C, F> Classify<R, E> for WithRejections<C, F>
where
    C: Classify<R, E>,
    F: Fn(&Rejection) -> Class,
{
    fn classify(&self, outcome: Result<&R, &E>) -> Class {
        self.classify.classify(outcome)
    }

    fn classify_rejection(&self, rejection: &Rejection) -> Class {
        (self.rejections)(rejection)
    }

    fn classify_trailers(&self, trailers: &HeaderMap) -> Class {
        self.classify.classify_trailers(trailers)
    }

    fn classify_without_trailers(&self, response: &R) -> Class {
        self.classify.classify_without_trailers(response)
    }

    fn describe(&self, response: &R, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.classify.describe(response, f)
    }
}

impl<C, F> fmt::Debug for WithRejections<C, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WithRejections")
            .field("classify", &type_name::<C>())
            .field("rejections", &type_name::<F>())
            .finish()
    }
}

#[diagnostic::do_not_recommend]
impl<R, E, F> Classify<R, E> for F
where
    F: Fn(Result<&R, &E>) -> Class,
{
    fn classify(&self, outcome: Result<&R, &E>) -> Class {
        self(outcome)
    }
}

/// An error is a transient failure, every response a success. The default.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FailOnError;

impl<R, E> Classify<R, E> for FailOnError {
    fn classify(&self, outcome: Result<&R, &E>) -> Class {
        match outcome {
            Ok(_) => Class::Success,
            Err(_) => Class::TRANSIENT,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_a_transient_failure() {
        assert_eq!(FailOnError.classify(Err::<&(), _>(&())), Class::TRANSIENT);
    }
}
