//! Classes: what an outcome says about the service, said once for all layers.

use std::{
    any::type_name,
    fmt,
    time::{Duration, SystemTime},
};

use http::{Extensions, HeaderMap, Response, StatusCode, header::RETRY_AFTER};

use crate::{
    caller,
    degraded::Degraded,
    rejection::{Reject, Rejection},
};

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
    /// Nothing: the caller's own mistake, say, or a limit on this side.
    Ignored,
}

impl Class {
    /// A failure that may be gone the next time.
    pub const TRANSIENT: Self = Self::Failure { transient: true, retry_after: None };

    /// A failure that will be the same the next time.
    pub const PERMANENT: Self = Self::Failure { transient: false, retry_after: None };

    /// Whether this is a failure, of either kind.
    #[must_use]
    pub fn is_failure(&self) -> bool {
        matches!(self, Self::Failure { .. })
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

/// Judges an HTTP response by its status; an error is a transient failure.
///
/// 408, 429 and 5xx are failures; of these 408, 429, 502, 503 and 504 are transient (the set of Finagle and of Microsoft's HTTP
/// resilience; 500 is left out, for it may have done its work). Everything else is a success: a 404 is an answer.
/// `Retry-After` is read as seconds and as a date; what cannot be read counts as absent.
///
/// A success that is [`Degraded`] says nothing about the service, for it did not come from there: it is ignored. So a cache outside of a
/// fallback does not keep it, and a circuit breaker there does not count it.
///
/// It judges an [`http::Response`], and with the feature `reqwest` a `reqwest::Response` too.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct HttpStatus;

impl<B, E> Classify<Response<B>, E> for HttpStatus {
    fn classify(&self, outcome: Result<&Response<B>, &E>) -> Class {
        outcome.map_or(Class::TRANSIENT, |response| {
            judge(response.status(), response.headers()).unless_degraded(response.extensions())
        })
    }
}

#[cfg(feature = "reqwest")]
#[cfg_attr(docsrs, doc(cfg(feature = "reqwest")))]
impl<E> Classify<reqwest::Response, E> for HttpStatus {
    fn classify(&self, outcome: Result<&reqwest::Response, &E>) -> Class {
        outcome.map_or(Class::TRANSIENT, |response| {
            judge(response.status(), response.headers()).unless_degraded(response.extensions())
        })
    }
}

fn judge(status: StatusCode, headers: &HeaderMap) -> Class {
    let transient = matches!(
        status,
        StatusCode::REQUEST_TIMEOUT
            | StatusCode::TOO_MANY_REQUESTS
            | StatusCode::BAD_GATEWAY
            | StatusCode::SERVICE_UNAVAILABLE
            | StatusCode::GATEWAY_TIMEOUT
    );
    if transient || status.is_server_error() {
        Class::Failure { transient, retry_after: retry_after(headers) }
    } else {
        Class::Success
    }
}

/// `Retry-After` as RFC 9110, section 10.2.3 has it: seconds, or a date (the wall clock's, as the header's is).
pub(crate) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let value = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    // Digits alone: Rust's parser would take a sign too. More than it can hold is as much as can be.
    if !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit()) {
        return Some(Duration::from_secs(value.parse().unwrap_or(u64::MAX)));
    }
    let date = httpdate::parse_http_date(value).ok()?;
    Some(date.duration_since(SystemTime::now()).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use http::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    fn judged(status: u16, retry_after: Option<&[u8]>) -> Class {
        let mut response = Response::builder().status(status);
        if let Some(value) = retry_after {
            response = response.header(RETRY_AFTER, value);
        }
        HttpStatus.classify(Ok::<_, &Infallible>(&response.body(()).unwrap()))
    }

    /// Shows: R5
    #[test]
    fn a_status_has_a_class() {
        for status in [200, 204, 301, 400, 404, 409] {
            assert_eq!(judged(status, None), Class::Success, "{status}");
        }
        for status in [408, 429, 502, 503, 504] {
            assert_eq!(judged(status, None), Class::TRANSIENT, "{status}");
        }
        for status in [500, 501, 505, 599] {
            assert_eq!(judged(status, None), Class::PERMANENT, "{status}");
        }
    }

    /// Shows: R5
    #[test]
    fn retry_after_is_read_and_junk_is_not() {
        let asked = |value: &[u8]| match judged(503, Some(value)) {
            Class::Failure { retry_after, .. } => retry_after,
            class => panic!("{class:?}"),
        };
        assert_eq!(asked(b"0"), Some(Duration::ZERO));
        assert_eq!(asked(b" 120 "), Some(Duration::from_secs(120)));
        assert_eq!(asked(b"999999999999999"), Some(Duration::from_secs(999_999_999_999_999)));
        assert_eq!(asked(b"Thu, 01 Jan 1970 00:00:00 GMT"), Some(Duration::ZERO));
        assert!(asked(b"Fri, 31 Dec 9999 23:59:59 GMT").unwrap() > Duration::from_secs(1 << 32));
        assert_eq!(asked(b"99999999999999999999999"), Some(Duration::from_secs(u64::MAX)));
        for junk in [&b"-1"[..], b"+1", b"1.5", b"1 2", b"soon", b"", b"\xff\xfe"] {
            assert_eq!(asked(junk), None, "{junk:?}");
        }
    }

    fn read(value: &[u8]) -> Option<Duration> {
        let headers = HeaderMap::from_iter([(RETRY_AFTER, HeaderValue::from_bytes(value).unwrap())]);
        retry_after(&headers)
    }

    proptest! {
        #[test]
        fn every_number_of_seconds_is_read(seconds: u64, zeros in 0_usize..30, beyond in "[1-9][0-9]{20,40}") {
            let text = format!("{}{seconds}", "0".repeat(zeros));
            prop_assert_eq!(read(text.as_bytes()), Some(Duration::from_secs(seconds)));
            prop_assert_eq!(read(beyond.as_bytes()), Some(Duration::from_secs(u64::MAX)));
        }

        #[test]
        fn every_date_is_read(seconds in 0_u64..253_402_300_800) {
            let date = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
            let until = || date.duration_since(SystemTime::now()).unwrap_or_default();
            let most = until();
            let wait = read(httpdate::fmt_http_date(date).as_bytes()).unwrap();
            prop_assert!((until()..=most).contains(&wait), "{wait:?}");
        }

        #[test]
        fn what_is_no_number_and_no_date_is_absent(value in prop::collection::vec(b' '..=255, 0..40)) {
            let is_number = value.trim_ascii().iter().all(u8::is_ascii_digit) && !value.trim_ascii().is_empty();
            if let Ok(header) = HeaderValue::from_bytes(&value) {
                prop_assert_eq!(read(header.as_bytes()).is_some(), is_number, "{:?}", value);
            }
        }
    }

    /// Shows: G2
    #[test]
    fn a_degraded_success_says_nothing_and_a_degraded_failure_is_one() {
        let degraded = Degraded::new(&Err::<Response<()>, _>(crate::Error::Service("down")));
        for (status, class) in
            [(200, Class::Ignored), (404, Class::Ignored), (500, Class::PERMANENT), (503, Class::TRANSIENT)]
        {
            let mut response = Response::builder().status(status).body(()).unwrap();
            response.extensions_mut().insert(degraded.clone());
            assert_eq!(HttpStatus.classify(Ok::<_, &Infallible>(&response)), class, "{status}");
        }
    }

    #[test]
    fn an_error_is_a_transient_failure() {
        assert_eq!(FailOnError.classify(Err::<&(), _>(&())), Class::TRANSIENT);
        assert_eq!(HttpStatus.classify(Err::<&Response<()>, _>(&())), Class::TRANSIENT);
    }
}
