//! Classifiers: they tell the class of an outcome.

use std::{any::type_name, fmt};

use http::HeaderMap;

use super::{Class, Reject, Rejection, reject::among_causes};
use crate::ambient::caller;

impl Class {
    /// The class of an outcome, as the classifier judges it: a rejection with [`Classify::classify_rejection`], also one among the
    /// causes of an error, and the service's own answer or error with [`Classify::classify`].
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
        // What a service makes of a body that its caller broke off is not its fault.
        if caller::failed() {
            return Self::Ignored;
        }
        match among_causes(outcome) {
            Some(rejection) => classifier.classify_rejection(rejection),
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
///
/// # Rejections among the causes of an error
///
/// The service's own error is judged as a rejection too, where one lies among its causes: the service calls something through
/// a stack of its own, or its connector has layers. The error has to be one that can be looked into ([`Reject::cause`]): in
/// [`Error`](crate::Error) a boxed error, or one of a crate that this one has a feature for. The classifier judges an error of
/// any other type by itself.
///
/// The stack further in knows better than the layers around it why the call failed:
///
/// - A circuit breaker does not count a full limit, nor a deadline that the caller brought. The deadline reaches the stack further in,
///   and one caller without patience would open the circuit for all others.
/// - A retry does not repeat a call that met an open circuit or a full limit further in. It would only add to the load there.
/// - A fallback, and a cache that has something stale, stand in for it, as they do for every rejection.
/// - An [`ObserveLayer`](crate::observe::ObserveLayer) tells the outcome [`Rejected`](crate::Outcome::Rejected), with the reason.
///
/// [`with_rejections`] changes each of these. The error itself stays as it is, and nothing is concluded from the rejection about what
/// the service did before: it does not prove that a `POST` was not processed.
pub trait Classify<R, E> {
    /// The class of this outcome, which is not a rejection.
    fn classify(&self, outcome: Result<&R, &E>) -> Class;

    /// The class of a rejection by a layer further in: the outcome, a cause of the service's own error, or in the error of a response's
    /// body. Its own, unless said otherwise.
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

/// Judges rejections by a closure, and everything else by `classify`: [`HttpStatus`](crate::HttpStatus), a closure, or any other classifier.
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
