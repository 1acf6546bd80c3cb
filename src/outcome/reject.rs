//! Errors that carry a rejection: a layer answers instead of the service, and the stack keeps the service's own error type.

use std::{convert::Infallible, error::Error as StdError, fmt};

use http::{Response, header::RETRY_AFTER};

use super::{
    rejection::Rejection,
    unprocessed::{is_unprocessed, known},
};

/// An error that can carry a rejection, in a service that answers `R`.
///
/// Every layer asks this of its service's error and then keeps that error type: a stack of layers has the error that its
/// innermost service has. It is implemented for
///
/// - [`Error<E>`]: put `.map_err(ziggurat::Error::Service)` innermost, next to the service, and every error type will do;
/// - `Box<dyn Error + Send + Sync>`: put `.map_err(ziggurat::boxed)` there instead, if you want a boxed error, and nothing if the
///   service has one already;
/// - `Infallible`, for services that answer [`http::Response`]: an axum `Router` takes every layer as it is, and a rejection
///   becomes a response with status 504, 503 or 429, the latter two with `Retry-After`;
/// - `tonic::Status` (feature `tonic`): put `.map_err(ziggurat::grpc::status)` next to a channel;
/// - your own error type, if you write it:
///
/// ```
/// use ziggurat::{Reject, Rejection};
///
/// enum MyError {
///     Rejected(Rejection),
///     Database(String),
/// }
///
/// impl<R> Reject<R> for MyError {
///     fn reject(rejection: Rejection) -> Result<R, Self> {
///         Err(MyError::Rejected(rejection))
///     }
///     fn rejection(outcome: &Result<R, Self>) -> Option<&Rejection> {
///         match outcome {
///             Err(MyError::Rejected(rejection)) => Some(rejection),
///             _ => None,
///         }
///     }
/// }
/// ```
///
/// # It does not compile
///
/// - *"a layer has to answer in place of the service, and `reqwest::Error` cannot say so"*: the error of the innermost service
///   carries no rejection. Put `.map_err(ziggurat::Error::Service)` next to the service, as the last line before `.service(..)`.
/// - *"the method `oneshot` (or `ready`) exists .. but its trait bounds were not satisfied"* hides the reason. Ask for it: write
///   `tower::util::BoxCloneSyncService::new(svc)` and compile again.
/// - *"implementation of `FnOnce` is not general enough"* inside of `tokio::spawn`: the service's own error is a boxed one. It
///   carries rejections as it is; leave out the `map_err`, which the compiler does not see through there.
/// - *"doesn't implement `std::fmt::Display`"*: a retry, a fallback and a cache tell what an error said, in events and
///   rejections.
/// - The same elsewhere, or *"type annotations needed"*: a closure that a layer was given does not
///   name its argument's type. Write `|req: &http::Request<_>| ..`, never a bare `|req|`.
/// - A body that is not `Default` (such as that of tower-http's `TraceLayer`) stands in the way of the `Infallible` form: put
///   that layer outside of these, or `.map_response(|r: Response<_>| r.map(Body::new))` between.
#[diagnostic::on_unimplemented(
    message = "a layer has to answer in place of the service, and `{Self}` cannot say so in a service that answers `{R}`",
    label = "this error carries no rejection",
    note = "put `.map_err(ziggurat::Error::Service)` innermost, next to the service",
    note = "or `.map_err(ziggurat::boxed)` for a boxed error; or implement `ziggurat::Reject` for your own error type",
    note = "an HTTP service that is `Infallible` needs a response body that is `Default`: a body that is not (tower-http's `TraceLayer`) belongs outside"
)]
pub trait Reject<R>: Sized {
    /// The outcome that says: a layer rejected.
    ///
    /// # Errors
    ///
    /// Always, where the rejection is an error; where it is a response (as for `Infallible`), never.
    fn reject(rejection: Rejection) -> Result<R, Self>;

    /// The rejection that lies in an outcome, if it is one.
    fn rejection(outcome: &Result<R, Self>) -> Option<&Rejection>;

    /// The same outcome, an error or a rejection, telling of another error that came afterwards and that the caller does not get: that of a
    /// fallback, for example.
    ///
    /// A rejection tells of it ([`Rejection::suppressed`]). Any other error stays as it is, unless your error type has a place for what
    /// the other one says: then put it there.
    fn suppress(outcome: Result<R, Self>, error: &dyn fmt::Display) -> Result<R, Self> {
        match Self::rejection(&outcome) {
            Some(rejection) if outcome.is_err() => Self::reject(rejection.clone().with_suppressed(error)),
            _ => outcome,
        }
    }

    /// The error in an outcome, or the first of its causes that can be looked into: for a layer that asks what lies
    /// behind it, as a retry does with [`is_unprocessed`](crate::is_unprocessed). `None`: that is not known.
    ///
    /// An error type of yours gives itself if it is a `std::error::Error`, or what it wraps. [`Error`] knows it of
    /// boxed errors, of `io::Error`, and of those of the crates that this one has features for.
    fn cause(outcome: &Result<R, Self>) -> Option<&(dyn StdError + 'static)> {
        let _ = outcome;
        None
    }
}

/// The rejection that lies in an outcome of a stack, if a layer answered instead of the service.
///
/// ```
/// # use ziggurat::{Error, Reject, Rejection};
/// # fn inspect(outcome: Result<String, Error<std::io::Error>>) -> &'static str {
/// match ziggurat::rejection(&outcome) {
///     Some(rejection) if rejection.is_circuit_open() => "come back later",
///     Some(_) => "rejected",
///     None => "the service's own answer or error",
/// }
/// # }
/// # assert_eq!(inspect(Ok(String::new())), "the service's own answer or error");
/// ```
pub fn rejection<R, E: Reject<R>>(outcome: &Result<R, E>) -> Option<&Rejection> {
    E::rejection(outcome)
}

/// The error of a stack: a layer's rejection, or the service's own error.
///
/// `.map_err(ziggurat::Error::Service)` innermost, next to the service, makes it the stack's error. It never nests.
#[derive(Debug, Clone)]
pub enum Error<E> {
    /// A layer answered instead of the service.
    Rejected(Rejection),
    /// The service's own error.
    Service(E),
}

impl<E> From<E> for Error<E> {
    fn from(error: E) -> Self {
        Self::Service(error)
    }
}

impl<E: fmt::Display> fmt::Display for Error<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rejected(rejection) => rejection.fmt(f),
            Self::Service(error) => error.fmt(f),
        }
    }
}

impl<E: StdError + 'static> StdError for Error<E> {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        match self {
            Self::Rejected(rejection) => Some(rejection),
            Self::Service(error) => error.source(),
        }
    }
}

impl<R, E: 'static> Reject<R> for Error<E> {
    fn reject(rejection: Rejection) -> Result<R, Self> {
        Err(Self::Rejected(rejection))
    }

    fn rejection(outcome: &Result<R, Self>) -> Option<&Rejection> {
        match outcome {
            Err(Self::Rejected(rejection)) => Some(rejection),
            _ => None,
        }
    }

    fn cause(outcome: &Result<R, Self>) -> Option<&(dyn StdError + 'static)> {
        match outcome {
            Err(Self::Service(error)) => known(error),
            _ => None,
        }
    }
}

/// Boxes an error, for `.map_err(ziggurat::boxed)` innermost, next to the service.
///
/// A function of its own because `Into::into` there would have to be told its types.
pub fn boxed<E>(error: E) -> Box<dyn StdError + Send + Sync>
where
    E: Into<Box<dyn StdError + Send + Sync>>,
{
    error.into()
}

/// In a box of any lifetime a rejection can only be found through `source()`, which is `'static`.
struct Boxed(Rejection);

impl fmt::Debug for Boxed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for Boxed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl StdError for Boxed {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        Some(&self.0)
    }
}

// For every lifetime: with 'static alone, a stack inside `tokio::spawn(async move { .. })` is "not general enough".
impl<'a, R> Reject<R> for Box<dyn StdError + Send + Sync + 'a> {
    fn reject(rejection: Rejection) -> Result<R, Self> {
        Err(Box::new(Boxed(rejection)))
    }

    fn rejection(outcome: &Result<R, Self>) -> Option<&Rejection> {
        outcome.as_ref().err().and_then(|error| error.source()).and_then(Rejection::find)
    }

    fn cause(outcome: &Result<R, Self>) -> Option<&(dyn StdError + 'static)> {
        outcome.as_ref().err().and_then(|error| error.source())
    }
}

#[diagnostic::do_not_recommend]
impl<B: Default> Reject<Response<B>> for Infallible {
    fn reject(rejection: Rejection) -> Result<Response<B>, Self> {
        let mut response = Response::new(B::default());
        *response.status_mut() = rejection.status();
        if let Some(wait) = rejection.retry_after_header() {
            response.headers_mut().insert(RETRY_AFTER, wait);
        }
        response.extensions_mut().insert(rejection);
        Ok(response)
    }

    fn rejection(outcome: &Result<Response<B>, Self>) -> Option<&Rejection> {
        outcome.as_ref().ok()?.extensions().get()
    }

    fn suppress(outcome: Result<Response<B>, Self>, error: &dyn fmt::Display) -> Result<Response<B>, Self> {
        outcome.map(|mut response| {
            if let Some(rejection) = response.extensions().get::<Rejection>() {
                let rejection = rejection.clone().with_suppressed(error);
                response.extensions_mut().insert(rejection);
            }
            response
        })
    }
}

/// Whether it is certain that no service has processed the request that had this outcome.
pub(crate) fn was_unprocessed<R, E: Reject<R>>(outcome: &Result<R, E>) -> bool {
    match E::rejection(outcome) {
        Some(rejection) => rejection.is_unprocessed(),
        None => E::cause(outcome).is_some_and(is_unprocessed),
    }
}

/// The rejection that an outcome is judged as: the one that it is, or one among the causes of the service's own error. See
/// [`Classify`](super::Classify).
pub(crate) fn judged_as<R, E: Reject<R>>(outcome: &Result<R, E>) -> Option<&Rejection> {
    match E::rejection(outcome) {
        None if outcome.is_err() => among_causes(outcome),
        found => found,
    }
}

/// The rejection among the causes of the service's own error.
#[cold]
pub(super) fn among_causes<R, E: Reject<R>>(outcome: &Result<R, E>) -> Option<&Rejection> {
    E::cause(outcome).and_then(Rejection::find)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::outcome::{Class, Reason};

    fn timed_out() -> Rejection {
        Rejection::new("timeout", None, Reason::TimedOut { limit: Duration::from_millis(250) })
    }

    #[test]
    fn it_is_found_in_every_error_that_carries_it() {
        let typed: Result<(), Error<fmt::Error>> = Reject::reject(timed_out());
        assert!(rejection(&typed).unwrap().is_timed_out());
        assert!(Rejection::find(&typed.unwrap_err()).unwrap().is_timed_out());

        let boxed: Result<(), Box<dyn StdError + Send + Sync>> = Reject::reject(timed_out());
        assert!(rejection(&boxed).unwrap().is_timed_out());
        assert!(Rejection::find(boxed.unwrap_err().as_ref()).unwrap().is_timed_out());

        // Typed inside boxed: a user boxed the error of a whole stack.
        let typed: Result<(), Error<fmt::Error>> = Reject::reject(timed_out());
        let both: Result<(), Box<dyn StdError + Send + Sync>> = typed.map_err(Into::into);
        assert!(rejection(&both).unwrap().is_timed_out());
    }

    #[test]
    fn a_services_own_error_is_no_rejection() {
        let typed: Result<(), _> = Err(Error::Service(fmt::Error));
        assert!(rejection(&typed).is_none());
        let boxed: Result<(), _> = Err(boxed(fmt::Error));
        assert!(rejection(&boxed).is_none());
    }

    #[test]
    fn an_infallible_http_service_answers_with_a_status() {
        let second = Duration::from_secs(1);
        for (reason, wait, status, header) in [
            (Reason::TimedOut { limit: second }, None, 504, None),
            (Reason::DeadlineExceeded { after: None }, None, 504, None),
            (Reason::CircuitOpen, Some(second * 5 / 2), 503, Some("3")),
            // Sooner than in a second cannot be said, nor that nobody knows.
            (Reason::CircuitOpen, Some(Duration::ZERO), 503, Some("1")),
            (Reason::Overloaded { limit: 1 }, None, 503, Some("1")),
            (Reason::Injected, None, 503, Some("1")),
            (Reason::Exhausted { max_wait: second }, None, 503, Some("1")),
            (Reason::Unavailable { message: "secret".into() }, None, 503, Some("1")),
            (Reason::Recursive, None, 500, None),
            (Reason::Shared { message: "secret".into(), class: Class::TRANSIENT }, None, 502, None),
            (Reason::Shared { message: "secret".into(), class: Class::TRANSIENT }, Some(second), 502, Some("1")),
            (Reason::RateLimited, Some(second), 429, Some("1")),
            (Reason::UploadStalled { idle: second }, None, 408, None),
            (Reason::UploadFailed { message: "secret".into() }, None, 400, None),
            (Reason::RateLimited, Some(Duration::MAX), 429, Some("18446744073709551615")),
        ] {
            let rejected = Rejection::new("any", None, reason.clone());
            let rejected = wait.into_iter().fold(rejected, Rejection::with_retry_after);
            let outcome: Result<Response<String>, Infallible> = Reject::reject(rejected);
            assert_eq!(rejection(&outcome).unwrap().reason(), &reason);
            let Ok(response) = outcome;
            assert_eq!(response.status(), status);
            let sent = response.headers().get(RETRY_AFTER).map(|value| value.to_str().unwrap());
            assert_eq!(sent, header);
        }
    }
}
