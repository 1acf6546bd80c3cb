//! Errors that carry a rejection: a layer responds in place of the service, and the stack keeps the service's own error
//! type.

use std::{any::Any, convert::Infallible, error::Error as StdError, fmt, io};

use http::Response;

use super::{rejection::Rejection, unprocessed::is_unprocessed};

/// How a call ended: with the outcome of the service, or with a rejection of the layer.
pub(crate) type Ended<R, E> = Result<Result<R, E>, Rejection>;

/// An error type that can carry a rejection, in a service whose response is `R`.
///
/// Every layer requires this of its service's error, and keeps that error type: a stack has the error type of its
/// innermost service. The trait is implemented for
///
/// - [`Error<E>`]: put `.map_err(ziggurat::Error::Service)` innermost, next to the service, and any error type works;
/// - `Box<dyn Error + Send + Sync>`: put `.map_err(ziggurat::boxed)` there instead. A service whose error is already
///   boxed needs neither. A boxed error is a rejection if its direct source is one, as with a boxed [`Error`]. With a
///   rejection further down its chain of sources, it is the service's own error;
/// - `Infallible`, for services whose response is an [`http::Response`]: an axum `Router` accepts every layer as it is.
///   A rejection becomes a response with the status of [`Rejection::status`], and with `Retry-After` if that is 503 or
///   429;
/// - `tonic::Status` (feature `tonic`): put `.map_err(ziggurat::grpc::status)` next to a channel;
/// - your own error type, if you implement it:
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
/// [The page on compile errors](crate::docs::it_does_not_compile) lists the compiler's messages for a stack that is not
/// a `Service`, with their causes and fixes.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot carry a layer's rejection, as the error of a service that returns `{R}`",
    label = "this error cannot carry a rejection",
    note = "put `.map_err(ziggurat::Error::Service)` innermost, next to the service",
    note = "or `.map_err(ziggurat::boxed)` for a boxed error; or implement `ziggurat::Reject` for your own error type",
    note = "an `Infallible` service carries rejections if its response is an `http::Response`"
)]
pub trait Reject<R>: Sized {
    /// Creates the outcome of a rejected call.
    ///
    /// # Errors
    ///
    /// Always, if the rejection is an error. Never, if it is a response, as for `Infallible`.
    fn reject(rejection: Rejection) -> Result<R, Self>;

    /// Returns the rejection in an outcome, if there is one.
    fn rejection(outcome: &Result<R, Self>) -> Option<&Rejection>;

    /// Attaches a later error to a failed outcome. The caller does not receive the later error, for example that of a
    /// fallback.
    ///
    /// A rejection keeps its message ([`Rejection::suppressed`]). Any other error stays as it is, unless your error
    /// type overrides this method to store the message.
    fn suppress(outcome: Result<R, Self>, error: &dyn fmt::Display) -> Result<R, Self> {
        match Self::rejection(&outcome) {
            Some(rejection) if outcome.is_err() => Self::reject(rejection.clone().with_suppressed(error)),
            _ => outcome,
        }
    }

    /// Returns the error in an outcome, or the first of its causes that can be inspected. `None` if there is none.
    ///
    /// A layer that needs the underlying cause uses it, as a retry does with [`is_unprocessed`](crate::is_unprocessed).
    ///
    /// Your own error type returns itself if it is a `std::error::Error`, or the error that it wraps. [`Error`]
    /// supports boxed errors, `io::Error`, and the error types of the crates that this crate has features for.
    fn cause(outcome: &Result<R, Self>) -> Option<&(dyn StdError + 'static)> {
        let _ = outcome;
        None
    }
}

/// Returns the rejection in an outcome of a stack, if a layer responded in place of the service.
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
// The parameter's name is in the compiler's message for a service whose error type cannot be inferred.
#[derive(Debug, Clone)]
pub enum Error<ServiceError> {
    /// A layer responded in place of the service.
    Rejected(Rejection),
    /// The service's own error.
    Service(ServiceError),
}

impl<E: 'static> Error<E> {
    /// Returns the rejection by a layer of this stack or, failing that, of a stack that the service itself calls.
    ///
    /// The latter is among the causes of the service's own error. It is found there if that error is a boxed error, an
    /// `io::Error`, an error of a crate that this crate has a feature for, or an [`Error`] of any of these.
    #[must_use]
    pub fn rejection(&self) -> Option<&Rejection> {
        match self {
            Self::Rejected(rejection) => Some(rejection),
            Self::Service(error) => known(error).and_then(Rejection::find),
        }
    }

    /// Returns the service's own error, if no layer of this stack rejected the call. It may have the
    /// [`rejection`](Self::rejection) of another stack among its causes.
    #[must_use]
    pub fn service(&self) -> Option<&E> {
        match self {
            Self::Rejected(_) => None,
            Self::Service(error) => Some(error),
        }
    }

    /// Returns the service's own error, or the rejection.
    ///
    /// # Errors
    ///
    /// The rejection, if a layer of this stack rejected the call.
    pub fn into_service(self) -> Result<E, Rejection> {
        match self {
            Self::Rejected(rejection) => Err(rejection),
            Self::Service(error) => Ok(error),
        }
    }

    /// Returns whether there is a [`rejection`](Self::rejection), by a layer of this stack or of another one inside.
    #[must_use]
    pub fn is_rejected(&self) -> bool {
        self.rejection().is_some()
    }

    /// Returns whether a time limit ended the call: see [`Rejection::is_timed_out`].
    #[must_use]
    pub fn is_timed_out(&self) -> bool {
        self.rejection().is_some_and(Rejection::is_timed_out)
    }

    /// Returns whether a circuit breaker was open: see [`Rejection::is_circuit_open`].
    #[must_use]
    pub fn is_circuit_open(&self) -> bool {
        self.rejection().is_some_and(Rejection::is_circuit_open)
    }

    /// Returns whether a concurrency limit was full: see [`Rejection::is_overloaded`].
    #[must_use]
    pub fn is_overloaded(&self) -> bool {
        self.rejection().is_some_and(Rejection::is_overloaded)
    }

    /// Returns whether the call exceeded a rate limit: see [`Rejection::is_rate_limited`].
    #[must_use]
    pub fn is_rate_limited(&self) -> bool {
        self.rejection().is_some_and(Rejection::is_rate_limited)
    }
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
            Self::Service(error) => Some(error),
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
/// `Into::into` there would need explicit types.
pub fn boxed<E>(error: E) -> Box<dyn StdError + Send + Sync>
where
    E: Into<Box<dyn StdError + Send + Sync>>,
{
    error.into()
}

/// In a box of any lifetime, a rejection can only be found through `source()`, which is `'static`.
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

// For every lifetime: with `'static` alone, a stack inside `tokio::spawn(async move { .. })` is "not general enough".
impl<'a, R> Reject<R> for Box<dyn StdError + Send + Sync + 'a> {
    fn reject(rejection: Rejection) -> Result<R, Self> {
        Err(Box::new(Boxed(rejection)))
    }

    // Only the direct source: a rejection further in belongs to an error of the service's own.
    fn rejection(outcome: &Result<R, Self>) -> Option<&Rejection> {
        outcome.as_ref().err().and_then(|error| error.source()).and_then(<dyn StdError>::downcast_ref)
    }

    fn cause(outcome: &Result<R, Self>) -> Option<&(dyn StdError + 'static)> {
        outcome.as_ref().err().and_then(|error| error.source())
    }
}

/// The body of a response that an [`Infallible`] service returns for a rejection: any body that is [`Default`].
#[diagnostic::on_unimplemented(
    message = "an `Infallible` HTTP service needs a response body that is `Default`, for its rejections, and `{Self}` is not",
    label = "this service's response body is not `Default`",
    note = "put a layer that changes the body to this type, such as tower-http's `TraceLayer`, outside ziggurat's layers",
    note = "or convert the body between the layers: `.map_response(|response: http::Response<_>| response.map(axum::body::Body::new))`"
)]
#[doc(hidden)] // `Default`, with a message of its own in compile errors
pub trait EmptyBody: Default {}

#[diagnostic::do_not_recommend]
impl<B: Default> EmptyBody for B {}

impl<B: EmptyBody> Reject<Response<B>> for Infallible {
    fn reject(rejection: Rejection) -> Result<Response<B>, Self> {
        let mut response = Response::new(B::default());
        *response.status_mut() = rejection.status();
        rejection.add_headers(&mut response);
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

/// Returns a service's own error as a `std::error::Error`, if it has one of the types listed here.
pub(crate) fn known<E: 'static>(error: &E) -> Option<&(dyn StdError + 'static)> {
    let any: &dyn Any = error;
    macro_rules! known {
        ($($(#[$cfg:meta])? $known:ty => $error:ident $as_error:expr;)*) => {
            $(
                $(#[$cfg])?
                if let Some($error) = any.downcast_ref::<$known>() {
                    return Some($as_error);
                }
                // In a stack within a stack, a second `Error::Service` must not hide the inner rejection.
                $(#[$cfg])?
                if let Some(nested) = any.downcast_ref::<Error<$known>>() {
                    return Some(match nested {
                        Error::Rejected(rejection) => rejection,
                        Error::Service($error) => $as_error,
                    });
                }
            )*
        };
    }
    known! {
        Box<dyn StdError + Send + Sync> => error &**error;
        Box<dyn StdError + Send> => error &**error;
        Box<dyn StdError> => error &**error;
        io::Error => error error;
        Rejection => error error;
        #[cfg(feature = "hyper")]
        hyper_util::client::legacy::Error => error error;
        #[cfg(feature = "hyper")]
        hyper::Error => error error;
        #[cfg(any(feature = "http2", feature = "tonic"))]
        h2::Error => error error;
        #[cfg(feature = "reqwest")]
        reqwest::Error => error error;
        #[cfg(feature = "tonic")]
        tonic::Status => error error;
    }
    None
}

/// Returns whether it is certain that no service has processed the request with this outcome.
pub(crate) fn was_unprocessed<R, E: Reject<R>>(outcome: &Result<R, E>) -> bool {
    match E::rejection(outcome) {
        Some(rejection) => rejection.is_unprocessed(),
        None => E::cause(outcome).is_some_and(is_unprocessed),
    }
}

/// Returns why a call was not served, for events: the reason of a rejection, `"error"` or `"response"`.
pub(crate) fn reason_of<R, E: Reject<R>>(outcome: &Result<R, E>) -> &'static str {
    match (E::rejection(outcome), outcome) {
        (Some(rejection), _) => rejection.reason().as_str(),
        (None, Err(_)) => "error",
        (None, Ok(_)) => "response",
    }
}

/// Returns the rejection that classifies an outcome: the outcome itself, or a cause of the service's own error. See
/// [`Classify`](super::Classify).
pub(crate) fn judged_as<R, E: Reject<R>>(outcome: &Result<R, E>) -> Option<&Rejection> {
    match E::rejection(outcome) {
        None if outcome.is_err() => among_causes(outcome),
        found => found,
    }
}

/// Returns the rejection among the causes of the service's own error.
#[cold]
pub(super) fn among_causes<R, E: Reject<R>>(outcome: &Result<R, E>) -> Option<&Rejection> {
    E::cause(outcome).and_then(Rejection::find)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{
        name::Name,
        outcome::{Class, Reason},
    };

    type BoxError = Box<dyn StdError + Send + Sync>;

    fn timed_out() -> Rejection {
        Rejection::new("timeout", Name::Static(""), Reason::TimedOut { limit: Duration::from_millis(250) })
    }

    #[test]
    fn it_is_found_in_every_error_that_carries_it() {
        let typed: Result<(), Error<fmt::Error>> = Reject::reject(timed_out());
        assert!(rejection(&typed).unwrap().is_timed_out());
        assert!(Rejection::find(&typed.unwrap_err()).unwrap().is_timed_out());

        let boxed: Result<(), Box<dyn StdError + Send + Sync>> = Reject::reject(timed_out());
        assert!(rejection(&boxed).unwrap().is_timed_out());
        assert!(Rejection::find(boxed.unwrap_err().as_ref()).unwrap().is_timed_out());

        // A typed error inside a boxed one, as when user code boxes the error of a whole stack.
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
            // The header cannot express less than a second, nor an unknown wait.
            (Reason::CircuitOpen, Some(Duration::ZERO), 503, Some("1")),
            (Reason::Overloaded { limit: 1 }, None, 503, Some("1")),
            (Reason::Injected, None, 503, Some("1")),
            (Reason::Exhausted { max_wait: second }, None, 503, Some("1")),
            (Reason::Unavailable { message: "secret".into() }, None, 503, Some("1")),
            (Reason::StoreUnavailable { message: "secret".into() }, None, 503, Some("1")),
            (Reason::Recursive, None, 500, None),
            (Reason::Shared { message: "secret".into(), class: Class::TRANSIENT }, None, 502, None),
            (Reason::Shared { message: "secret".into(), class: Class::TRANSIENT }, Some(second), 502, Some("1")),
            (Reason::RateLimited, Some(second), 429, Some("1")),
            (Reason::CostTooHigh { cost: 3, burst: 2 }, None, 413, None),
            (Reason::NoKey, None, 400, None),
            (Reason::KeyReused, None, 422, None),
            (Reason::Duplicate, None, 409, None),
            (Reason::BodyTooLarge { max: 1 }, None, 413, None),
            (Reason::TooManyKeys { max: 1 }, None, 503, Some("1")),
            (Reason::UploadStalled { idle: second }, None, 408, None),
            (Reason::UploadFailed { message: "secret".into() }, None, 400, None),
            (Reason::Draining { grace: None }, None, 503, Some("1")),
            (Reason::RateLimited, Some(Duration::MAX), 429, Some("18446744073709551615")),
        ] {
            let rejected = Rejection::new("any", Name::Static(""), reason.clone());
            let rejected = wait.into_iter().fold(rejected, Rejection::with_retry_after);
            let outcome: Result<Response<String>, Infallible> = Reject::reject(rejected);
            assert_eq!(rejection(&outcome).unwrap().reason(), &reason);
            let Ok(response) = outcome;
            assert_eq!(response.status(), status);
            let sent = response.headers().get("retry-after").map(|value| value.to_str().unwrap());
            assert_eq!(sent, header);
        }
    }

    #[test]
    fn an_error_shows_its_rejection_and_the_services_own_error() {
        let rejected: Error<io::Error> = Error::Rejected(timed_out());
        assert!(rejected.is_rejected() && rejected.is_timed_out() && !rejected.is_circuit_open());
        assert!(rejected.service().is_none());
        assert!(rejected.into_service().unwrap_err().is_timed_out());

        let failed: Error<io::Error> = Error::Service(io::ErrorKind::BrokenPipe.into());
        assert!(!failed.is_rejected() && !failed.is_timed_out() && !failed.is_overloaded());
        let source = failed.source().and_then(|error| error.downcast_ref::<io::Error>());
        assert_eq!(source.unwrap().kind(), io::ErrorKind::BrokenPipe);
        assert_eq!(failed.into_service().unwrap().kind(), io::ErrorKind::BrokenPipe);
    }

    #[test]
    fn a_second_error_around_a_stack_hides_no_rejection() {
        let nested: Error<Error<io::Error>> = Error::Service(Error::Rejected(timed_out()));
        assert!(nested.is_timed_out());
        assert!(Rejection::find(&nested).unwrap().is_timed_out());
        let nested: Error<Error<BoxError>> = Error::Service(Error::Rejected(timed_out()));
        assert!(nested.is_timed_out());
        let nested: Error<BoxError> = Error::Service(Box::new(Error::<io::Error>::Rejected(timed_out())));
        assert!(nested.is_timed_out());
        assert!(!Error::Service(Error::Service(io::Error::other("broken"))).is_rejected());
    }
}
