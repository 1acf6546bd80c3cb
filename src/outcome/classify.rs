//! Classifiers: map an outcome to its class.

use std::fmt;

use http::HeaderMap;

use super::{Class, Reject, Rejection, reject::among_causes};
use crate::{ambient::caller, debug::impl_debug};

impl Class {
    /// Returns the class of an outcome, as `classifier` judges it.
    ///
    /// A rejection goes to [`Classify::classify_rejection`], even if it is only a cause of the service's own error. The
    /// service's own response or error goes to [`Classify::classify`]. Every layer classifies outcomes with this
    /// function, and so should your own.
    ///
    /// An error is [`Class::Ignored`] if the caller failed to send the request body, which an outer
    /// [`UploadLayer`](crate::upload::UploadLayer) detects.
    #[inline]
    pub fn of<R, E, C>(outcome: &Result<R, E>, classifier: &C) -> Self
    where
        E: Reject<R>,
        C: Classify<R, E>,
    {
        match E::rejection(outcome) {
            Some(rejection) => classifier.classify_rejection(rejection),
            None if outcome.is_err() => Self::of_error(outcome, classifier),
            None => classifier.classify(outcome.as_ref()),
        }
    }

    #[cold]
    fn of_error<R, E, C>(outcome: &Result<R, E>, classifier: &C) -> Self
    where
        E: Reject<R>,
        C: Classify<R, E>,
    {
        // An error that follows from a broken request body is not the service's fault.
        if caller::failed() {
            return Self::Ignored;
        }
        match among_causes(outcome) {
            Some(rejection) => classifier.classify_rejection(rejection),
            None => classifier.classify(outcome.as_ref()),
        }
    }
}

/// Decides how an outcome reflects on the service.
///
/// A closure from `Result<&R, &E>` to [`Class`] is a classifier too:
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
/// A closure over outcomes never sees a rejection, neither as an error (`Err(Error::Rejected(..))`) nor as a response.
/// An arm for it compiles, but no layer ever calls it. A rejection has its own class ([`Rejection::class`]). To change
/// it, wrap the classifier in [`with_rejections`]. This layer retries errors, but not timeouts:
///
/// ```
/// use ziggurat::{Class, HttpStatus, Reason, retry::RetryLayer, with_rejections};
///
/// let layer = RetryLayer::http().classify(with_rejections(HttpStatus, |rejection| match rejection.reason() {
///     Reason::TimedOut { .. } => Class::PERMANENT,
///     _ => rejection.class(),
/// }));
/// ```
///
/// # Rejections among the causes of an error
///
/// The service's own error also counts as a rejection if there is one among its causes. That happens if the service
/// calls another service through its own stack, or if its connector has layers. The error must be one that
/// [`Reject::cause`] can inspect: in [`Error`](crate::Error), a boxed error, or an error of a crate that this crate has
/// a feature for. An error of any other type goes to the classifier as it is.
///
/// The inner stack knows better than the outer layers why the call failed:
///
/// - A circuit breaker does not count a full limit or a caller's deadline. The deadline reaches the inner stack too,
///   and one impatient caller would otherwise open the circuit for all callers.
/// - A retry does not repeat a call that met an open circuit or a full limit in the inner stack. It would only add to
///   the load there.
/// - A fallback, or a cache that has a stale value, replaces the error, as it replaces every rejection.
/// - An [`ObserveLayer`](crate::observe::ObserveLayer) reports the outcome as [`Rejected`](crate::Outcome::Rejected),
///   with the reason.
///
/// [`with_rejections`] changes each of these. The error itself stays as it is. The rejection proves nothing about the
/// work that the service did before: in particular, it does not prove that a `POST` was not processed.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot classify outcomes with a response of type `{R}` and an error of type `{E}`",
    label = "not a classifier for this service",
    note = "write a closure that names its argument's type: `|outcome: Result<&{R}, &{E}>| ..`, returning `Class`",
    note = "the error is that of the stack: after `.map_err(ziggurat::Error::Service)`, the service's own error is in `Error::Service(error)`",
    note = "`HttpStatus`, and so `http()` of a layer, classifies an `http::Response`; a `reqwest::Response` needs ziggurat's feature `reqwest`"
)]
pub trait Classify<R, E> {
    /// Returns the class of this outcome, which is not a rejection.
    fn classify(&self, outcome: Result<&R, &E>) -> Class;

    /// Returns the class of a rejection by an inner layer. The default is [`Rejection::class`].
    ///
    /// The rejection is the outcome itself, a cause of the service's own error, or in the error of a response body.
    fn classify_rejection(&self, rejection: &Rejection) -> Class {
        rejection.class()
    }

    /// Returns the class of a successful response once its body's trailers have arrived, which may report a failure, as
    /// in gRPC. The default is a success.
    ///
    /// Only layers that wait for the end of the body call this.
    fn classify_trailers(&self, _trailers: &HeaderMap) -> Class {
        Class::Success
    }

    /// Returns the class that a successful response has if its body ends completely, but without trailers. The default
    /// is a success. In gRPC it is a failure, unless the head has a status.
    ///
    /// Only layers that wait for the end of the body call this, when the response arrives.
    fn classify_without_trailers(&self, _response: &R) -> Class {
        Class::Success
    }

    /// Describes in a few words why this response was classified as a failure, for example by its status. Events and
    /// rejections contain the text. The default is "response".
    ///
    /// # Errors
    ///
    /// If writing to `f` fails.
    fn describe(&self, response: &R, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let _ = response;
        f.write_str("response")
    }
}

/// Classifies rejections with a closure, and everything else with `classify`: [`HttpStatus`](crate::HttpStatus), a
/// closure, or any other classifier.
///
/// The result works wherever a layer takes a classifier. The class that the closure returns has these effects:
///
/// - A retry repeats the call only after a transient failure.
/// - A circuit breaker counts a failure, and does not count [`Class::Ignored`].
/// - A fallback, or a cache that has a stale value, replaces every rejection except a [`Class::Success`]. The caller
///   receives such a rejection, and no cache stores it.
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

/// A classifier that classifies rejections with a closure: see [`with_rejections`].
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

impl_debug!(WithRejections<C, F> { classify: C, rejections: F });

#[diagnostic::do_not_recommend]
impl<R, E, F> Classify<R, E> for F
where
    F: Fn(Result<&R, &E>) -> Class,
{
    fn classify(&self, outcome: Result<&R, &E>) -> Class {
        self(outcome)
    }
}

// Never applies, because no slice is `Sized`. If the impl above were the only one for a closure, rustc would report how
// the closure's signature differs, or that it is "not general enough", in place of the message of the trait.
#[doc(hidden)]
#[diagnostic::do_not_recommend]
impl<R, E, F> Classify<R, E> for F
where
    [R]: Sized,
{
    fn classify(&self, _: Result<&R, &E>) -> Class {
        Class::Ignored
    }
}

/// Classifies every error as a transient failure and every response as a success. The default.
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
