//! Classifies HTTP responses by status.

use std::fmt::{self, Display};

use http::{HeaderMap, Response, StatusCode};

use super::{Class, Classify, Degraded, retry_after, retry_after::retry_after_millis};

/// Classifies an HTTP response by its status. An error is a transient failure.
///
/// | status | class |
/// |---|---|
/// | 429, 408 | [declined](Class::Declined): it concerns this sender, and is retried |
/// | 502, 503, 504 | a transient failure (the set of Finagle and of Microsoft's HTTP resilience) |
/// | 520 to 524, 529 | a transient failure: Cloudflare's codes for an unreachable origin, and for overload |
/// | any other 5xx | a transient failure if it has `Retry-After`, otherwise not retried: a 500 may have done its work |
/// | all others | a success: a 404 is a valid response |
///
/// `Retry-After` is read as seconds, with a fraction rounded up, or as a date. A date is measured from the response's
/// own `Date`, or from the local clock if the response has an `Age`, because a stored response has an old `Date`. A
/// value that does not parse counts as absent. [`with_retry_after_ms`](Self::with_retry_after_ms) reads milliseconds
/// too.
///
/// A success that is [`Degraded`](crate::Degraded) did not come from the service, and is ignored. So a cache outside a
/// fallback does not store it, and a circuit breaker there does not count it.
///
/// The classifier works with [`http::Response`], and with `reqwest::Response` (feature `reqwest`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct HttpStatus;

/// Classifies as [`HttpStatus`] does, and reads `retry-after-ms` too: see [`HttpStatus::with_retry_after_ms`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive] // settings may be added later
pub struct HttpStatusMillis;

impl HttpStatus {
    /// Also reads `retry-after-ms` and `x-ms-retry-after-ms`, in milliseconds.
    ///
    /// Azure and OpenAI send these headers. No standard defines them, so they are opt-in. One that is present and
    /// parses takes precedence over `Retry-After`.
    ///
    /// ```
    /// use ziggurat::{HttpStatus, retry::RetryLayer};
    ///
    /// let layer = RetryLayer::http().classify(HttpStatus.with_retry_after_ms());
    /// ```
    #[must_use]
    pub fn with_retry_after_ms(self) -> HttpStatusMillis {
        HttpStatusMillis
    }
}

/// Implements [`Classify`] for a type of response with a status, headers and extensions.
macro_rules! classify_by_status {
    ($(#[$attr:meta])? $classifier:ty, $retry_after:ident, $response:ty $(, $body:ident)?) => {
        $(#[$attr])?
        impl<E $(, $body)?> Classify<$response, E> for $classifier {
            fn classify(&self, outcome: Result<&$response, &E>) -> Class {
                outcome.map_or(Class::TRANSIENT, |response| {
                    let class = judge(response.status(), response.headers(), $retry_after);
                    Degraded::unless(class, response.extensions())
                })
            }

            fn describe(&self, response: &$response, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                response.status().fmt(f)
            }
        }
    };
}

classify_by_status! { HttpStatus, retry_after, Response<B>, B }
classify_by_status! { HttpStatusMillis, retry_after_millis, Response<B>, B }
#[cfg(feature = "reqwest")]
classify_by_status! {
    #[cfg_attr(docsrs, doc(cfg(feature = "reqwest")))] HttpStatus, retry_after, reqwest::Response
}
#[cfg(feature = "reqwest")]
classify_by_status! {
    #[cfg_attr(docsrs, doc(cfg(feature = "reqwest")))] HttpStatusMillis, retry_after_millis, reqwest::Response
}

type RetryAfter = fn(&HeaderMap) -> Option<std::time::Duration>;

fn judge(status: StatusCode, headers: &HeaderMap, retry_after: RetryAfter) -> Class {
    match status.as_u16() {
        408 | 429 => Class::Declined { retry_after: retry_after(headers) },
        500..=599 => {
            let retry_after = retry_after(headers);
            let transient = retry_after.is_some() || matches!(status.as_u16(), 502..=504 | 520..=524 | 529);
            Class::Failure { transient, retry_after }
        }
        _ => Class::Success,
    }
}

#[cfg(test)]
mod tests {
    use std::{convert::Infallible, time::Duration};

    use http::header::RETRY_AFTER;

    use super::*;

    fn judged(status: u16, header: Option<(&str, &str)>) -> Class {
        let mut response = Response::builder().status(status);
        if let Some((name, value)) = header {
            response = response.header(name, value);
        }
        HttpStatus.classify(Ok::<_, &Infallible>(&response.body(()).unwrap()))
    }

    /// Shows: R5
    #[test]
    fn a_status_has_a_class() {
        for status in [200, 204, 301, 400, 404, 409, 600, 999] {
            assert_eq!(judged(status, None), Class::Success, "{status}");
        }
        for status in [408, 429] {
            assert_eq!(judged(status, None), Class::DECLINED, "{status}");
        }
        for status in [502, 503, 504, 520, 521, 522, 523, 524, 529] {
            assert_eq!(judged(status, None), Class::TRANSIENT, "{status}");
        }
        for status in [500, 501, 505, 519, 525, 526, 530, 599] {
            assert_eq!(judged(status, None), Class::PERMANENT, "{status}");
        }
    }

    /// A server that says when to come back expects to work by then.
    ///
    /// Shows: R5, F3
    #[test]
    fn any_server_error_that_carries_retry_after_is_transient() {
        let retry_after = Some(Duration::from_secs(2));
        for status in [500, 501, 503, 525, 599] {
            let asked = judged(status, Some((RETRY_AFTER.as_str(), "1.5")));
            assert_eq!(asked, Class::Failure { transient: true, retry_after }, "{status}");
        }
        assert_eq!(judged(429, Some((RETRY_AFTER.as_str(), "1.5"))), Class::Declined { retry_after });
        assert_eq!(judged(404, Some((RETRY_AFTER.as_str(), "1.5"))), Class::Success);
        // A value that does not parse counts as absent.
        assert_eq!(judged(500, Some((RETRY_AFTER.as_str(), "soon"))), Class::PERMANENT);
        assert_eq!(judged(503, Some((RETRY_AFTER.as_str(), "soon"))), Class::TRANSIENT);
    }

    #[test]
    fn milliseconds_are_read_by_choice() {
        let response = Response::builder().status(503).header("retry-after-ms", "1500").body(()).unwrap();
        assert_eq!(HttpStatus.classify(Ok::<_, &Infallible>(&response)), Class::TRANSIENT);
        let exact = HttpStatus.with_retry_after_ms().classify(Ok::<_, &Infallible>(&response));
        assert_eq!(exact.retry_after(), Some(Duration::from_millis(1500)));
        assert_eq!(HttpStatusMillis::default().classify(Err::<&Response<()>, _>(&())), Class::TRANSIENT);
    }

    /// Shows: G2
    #[test]
    fn a_degraded_success_says_nothing_and_a_degraded_failure_is_one() {
        let degraded = crate::Degraded::new(&Err::<Response<()>, _>(crate::Error::Service("down")));
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
        assert_eq!(HttpStatus.classify(Err::<&Response<()>, _>(&())), Class::TRANSIENT);
    }
}
