//! Rejections: a layer responds in place of the service, and the stack keeps the service's own error type.

use std::{error::Error as StdError, fmt, sync::Arc, time::Duration};

use http::{
    HeaderName, HeaderValue, Response, StatusCode,
    header::{CONNECTION, RETRY_AFTER},
};

use super::{Class, Reason, retry_after::whole_seconds, unprocessed::chain};
use crate::{debug::impl_debug, name::Name};

/// A layer's response in place of the service's: which layer rejected the call, why, and when to come back.
///
/// A rejection travels inside the stack's own error (or response). [`rejection`](crate::rejection()) and
/// [`Rejection::find`] extract it. Your own layer creates one with [`Reject::reject`](crate::Reject::reject). A
/// rejection that is merely boxed counts as an ordinary error.
///
/// A rejection is a single pointer, so that a result that may carry one stays small. Clones share one allocation.
#[derive(Clone)]
pub struct Rejection {
    inner: Arc<Inner>,
}

#[derive(Clone)]
struct Inner {
    layer: &'static str,
    name: Name,
    reason: Reason,
    retry_after: Option<Duration>,
    /// Whether the connection of the caller, over HTTP/1, closes after the response.
    closes: bool,
    suppressed: Option<Arc<str>>,
    previous: Option<Arc<str>>,
    headers: Vec<(HeaderName, HeaderValue)>,
}

impl Rejection {
    /// Creates a rejection by this layer, with the wait of a reason that has a class. Layers use
    /// [`LayerInfo::reject`](crate::LayerInfo::reject).
    ///
    /// # Panics
    ///
    /// If the status of a custom reason is below 300.
    #[track_caller]
    pub(crate) fn new(layer: &'static str, name: Name, reason: Reason) -> Self {
        if let Reason::Custom { name, status, .. } = reason {
            assert!(status.as_u16() >= 300, "the status of the reason `{name}` must be 300 or above, not {status}");
        }
        let retry_after = reason.retry_after().filter(|wait| !wait.is_zero());
        let (closes, headers) = (false, Vec::new());
        let inner = Inner { layer, name, reason, retry_after, closes, suppressed: None, previous: None, headers };
        Self { inner: Arc::new(inner) }
    }

    /// Sets how long the caller should wait before it tries again.
    ///
    /// A wait of zero is ignored: it would send every rejected caller back at once. So is one that is shorter than that
    /// of the reason's class, which a retry in this program obeys.
    #[must_use]
    pub fn with_retry_after(mut self, retry_after: Duration) -> Self {
        let inner = Arc::make_mut(&mut self.inner);
        inner.retry_after = Some(retry_after).max(inner.reason.retry_after()).filter(|wait| !wait.is_zero());
        self
    }

    /// Records a later error that the caller does not receive, such as the error of a fallback.
    #[must_use]
    pub fn with_suppressed(mut self, error: impl fmt::Display) -> Self {
        Arc::make_mut(&mut self.inner).suppressed = Some(error.to_string().into());
        self
    }

    /// Records how an earlier attempt of the same call failed.
    ///
    /// A breaker that opens between two attempts must not hide why the first one failed.
    #[must_use]
    pub fn with_previous(mut self, error: impl fmt::Display) -> Self {
        Arc::make_mut(&mut self.inner).previous = Some(error.to_string().into());
        self
    }

    /// Adds a header to the HTTP response of this rejection.
    #[must_use]
    pub(crate) fn with_header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        Arc::make_mut(&mut self.inner).headers.push((name, value));
        self
    }

    /// Returns the layer that rejected the call: the name of its module, such as `"timeout"`.
    #[must_use]
    pub fn layer(&self) -> &'static str {
        self.inner.layer
    }

    /// Returns the name that was given to that layer with `.named(..)`.
    #[must_use]
    pub fn name(&self) -> Option<&str> {
        self.inner.name.get()
    }

    /// Returns why the layer rejected the call.
    #[must_use]
    pub fn reason(&self) -> &Reason {
        &self.inner.reason
    }

    /// Returns how long to wait before trying again, if the layer knows. Never zero.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        self.inner.retry_after
    }

    /// Returns the message of a later error that the caller did not receive, such as the error of a fallback.
    #[must_use]
    pub fn suppressed(&self) -> Option<&str> {
        self.inner.suppressed.as_deref()
    }

    /// Returns how an earlier attempt of the same call failed, if a retry is outside the layer that rejected: the
    /// message of its error, or the status of its response.
    #[must_use]
    pub fn previous(&self) -> Option<&str> {
        self.inner.previous.as_deref()
    }

    /// Returns whether a time limit ended the call: the layer's own ([`Reason::TimedOut`]), or the surrounding deadline
    /// ([`Reason::DeadlineExceeded`]).
    #[must_use]
    pub fn is_timed_out(&self) -> bool {
        matches!(self.inner.reason, Reason::TimedOut { .. } | Reason::DeadlineExceeded { .. })
    }

    /// Returns whether a circuit breaker was open.
    #[must_use]
    pub fn is_circuit_open(&self) -> bool {
        self.inner.reason == Reason::CircuitOpen
    }

    /// Returns whether a concurrency limit was full.
    #[must_use]
    pub fn is_overloaded(&self) -> bool {
        matches!(self.inner.reason, Reason::Overloaded { .. })
    }

    /// Returns whether the call exceeded a rate limit ([`Reason::RateLimited`]).
    #[must_use]
    pub fn is_rate_limited(&self) -> bool {
        self.inner.reason == Reason::RateLimited
    }

    /// Returns whether the call got no further than the layer that rejected it, so that no service has processed the
    /// request. A custom reason declares it (`unprocessed`).
    #[must_use]
    pub fn is_unprocessed(&self) -> bool {
        let is_before_the_call = matches!(
            self.inner.reason,
            Reason::CircuitOpen
                | Reason::Overloaded { .. }
                | Reason::RateLimited
                | Reason::CostTooHigh { .. }
                | Reason::StoreUnavailable { .. }
                | Reason::NoKey
                | Reason::KeyReused
                | Reason::BodyTooLarge { .. }
                | Reason::TooManyKeys { .. }
                | Reason::Exhausted { .. }
                | Reason::Unavailable { .. }
                | Reason::Draining { grace: None }
                | Reason::Custom { unprocessed: true, .. }
        );
        // Otherwise an inner retry sent the request before, or a fallback sent it to its backup afterwards.
        is_before_the_call && self.inner.previous.is_none() && self.inner.suppressed.is_none()
    }

    /// Returns how this rejection reflects on the service inside the layer that rejected.
    ///
    /// - A timeout, an injected fault and an unavailable resource are transient failures.
    /// - An open circuit is a failure that no retry helps.
    /// - A local limit, a store that is away, an empty pool, a caller that stops sending and a server
    ///   that shuts down say nothing about the service. Neither does a caller's deadline, because it may have left the
    ///   service no time.
    /// - A shared failure has the class of the original error, and a custom reason its own class. A class that may have
    ///   a wait has that of the rejection, which is never shorter.
    #[must_use]
    pub fn class(&self) -> Class {
        match self.inner.reason {
            Reason::TimedOut { .. } | Reason::Injected | Reason::Unavailable { .. } => {
                Class::Failure { transient: true, retry_after: self.inner.retry_after }
            }
            Reason::CircuitOpen => Class::Failure { transient: false, retry_after: self.inner.retry_after },
            Reason::Recursive => Class::PERMANENT,
            Reason::DeadlineExceeded { .. }
            | Reason::Overloaded { .. }
            | Reason::RateLimited
            | Reason::CostTooHigh { .. }
            | Reason::StoreUnavailable { .. }
            | Reason::NoKey
            | Reason::KeyReused
            | Reason::Duplicate
            | Reason::BodyTooLarge { .. }
            | Reason::TooManyKeys { .. }
            | Reason::Exhausted { .. }
            | Reason::UploadStalled { .. }
            | Reason::UploadFailed { .. }
            | Reason::Draining { .. } => Class::Ignored,
            // The class says whose wait it is, and the rejection how long it is.
            Reason::Shared { class, .. } | Reason::Custom { class, .. } => match class {
                Class::Failure { transient, .. } => Class::Failure { transient, retry_after: self.inner.retry_after },
                Class::Declined { .. } => Class::Declined { retry_after: self.inner.retry_after },
                Class::Success | Class::Ignored => class,
            },
        }
    }

    /// Returns the status for an HTTP response.
    ///
    /// | reason | status |
    /// |---|---|
    /// | timeout or deadline | 504 |
    /// | rate limit | 429 |
    /// | cost that exceeds the burst of a rate limit, or request body that is too large | 413 |
    /// | key of another request | 422 |
    /// | duplicate of a request | 409 |
    /// | stalled request body | 408 |
    /// | failed request body, or a request without a key | 400 |
    /// | failure of a shared call | 502 (if that call was rejected, its rejection keeps its own status) |
    /// | call that would wait for itself | 500 |
    /// | [`Reason::Custom`] | its own status |
    /// | all others | 503 |
    #[must_use]
    pub fn status(&self) -> StatusCode {
        match self.inner.reason {
            Reason::TimedOut { .. } | Reason::DeadlineExceeded { .. } => StatusCode::GATEWAY_TIMEOUT,
            Reason::RateLimited => StatusCode::TOO_MANY_REQUESTS,
            Reason::CostTooHigh { .. } | Reason::BodyTooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            Reason::KeyReused => StatusCode::UNPROCESSABLE_ENTITY,
            Reason::Duplicate => StatusCode::CONFLICT,
            Reason::UploadStalled { .. } => StatusCode::REQUEST_TIMEOUT,
            Reason::UploadFailed { .. } | Reason::NoKey => StatusCode::BAD_REQUEST,
            Reason::Shared { .. } => StatusCode::BAD_GATEWAY,
            Reason::Recursive => StatusCode::INTERNAL_SERVER_ERROR,
            Reason::Custom { status, .. } => status,
            _ => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    /// Returns which layer rejected the call and why, in a few words that are safe for untrusted clients. They
    /// contain no configured name, no limit and no error message. Those of a custom reason are the words of its layer.
    ///
    /// The [`Display`](fmt::Display) form contains all of these, for your own logs.
    #[must_use]
    pub fn public_message(&self) -> String {
        let why = match &self.inner.reason {
            Reason::TimedOut { .. } => "no response in time",
            Reason::DeadlineExceeded { .. } => "the caller's deadline has passed",
            Reason::CircuitOpen => "the circuit is open",
            Reason::Overloaded { .. } => "too many calls are in flight",
            Reason::RateLimited => "the rate limit is exceeded",
            Reason::CostTooHigh { .. } => "the call is larger than the rate limit ever admits",
            Reason::StoreUnavailable { .. } => "the store is unavailable",
            Reason::NoKey => "the request has no key",
            Reason::KeyReused => "the key belongs to another request",
            Reason::Duplicate => "the same request is being processed, or has been",
            Reason::BodyTooLarge { .. } => "the request body is too large",
            Reason::TooManyKeys { .. } => "too many keys are in use",
            Reason::Shared { .. } => "the shared call failed",
            Reason::Recursive => "the call would wait for itself",
            Reason::Injected => "an injected fault",
            Reason::Exhausted { .. } => "all resources are in use",
            Reason::Unavailable { .. } => "the resource is unavailable",
            Reason::UploadStalled { .. } => "the request body did not arrive in time",
            Reason::UploadFailed { .. } => "the request body failed",
            Reason::Draining { .. } => "the server is shutting down",
            Reason::Custom { public_message, .. } => public_message,
        };
        format!("{}: {why}", self.inner.layer)
    }

    /// Closes the connection of the caller after the response, which has to be one over HTTP/1.
    #[must_use]
    pub(crate) fn that_closes(mut self) -> Self {
        Arc::make_mut(&mut self.inner).closes = true;
        self
    }

    /// Adds the headers of the rejection to its response.
    ///
    /// `Retry-After` is for an error status, unless the response has one: whole seconds, rounded up so that a caller
    /// does not come back early, and at least 1. Every 429 and 503 gets one. If the layer does not know the wait, it is
    /// 1 second, the shortest possible value.
    pub(crate) fn add_headers<B>(&self, response: &mut Response<B>) {
        if self.inner.closes {
            add_close(response);
        }
        let wait = match response.status() {
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => {
                self.retry_after().or(Some(Duration::ZERO))
            }
            status if status.is_client_error() || status.is_server_error() => self.retry_after(),
            _ => None,
        };
        if let Some(wait) = wait {
            response.headers_mut().entry(RETRY_AFTER).or_insert(HeaderValue::from(whole_seconds(wait).max(1)));
        }
        for (name, value) in &self.inner.headers {
            response.headers_mut().append(name, value.clone());
        }
    }

    /// Finds the rejection in `error` or in its chain of sources, including the error inside an `io::Error`.
    ///
    /// Your own error type keeps a rejection findable by returning it from `source()`. With thiserror that is a field
    /// marked `#[source]` or `#[from]` together with `#[error("{0}")]`; `#[error(transparent)]` hides it.
    #[must_use]
    pub fn find<'a>(error: &'a (dyn StdError + 'static)) -> Option<&'a Self> {
        chain(error).find_map(<dyn StdError>::downcast_ref)
    }
}

/// Closes the connection of the caller after a response over HTTP/1, whether or not the response is a rejection.
pub(crate) fn close_connection<B>(response: &mut Response<B>) {
    // A layer further out may make another response of the rejection.
    if let Some(rejection) = response.extensions_mut().get_mut::<Rejection>() {
        *rejection = rejection.clone().that_closes();
    }
    add_close(response);
}

/// Adds `Connection: close`, unless the response has it. The connection of a 101 is no longer one of HTTP.
fn add_close<B>(response: &mut Response<B>) {
    let closes = |value: &HeaderValue| value.as_bytes().eq_ignore_ascii_case(b"close");
    if response.status() != StatusCode::SWITCHING_PROTOCOLS
        && !response.headers().get_all(CONNECTION).iter().any(closes)
    {
        response.headers_mut().append(CONNECTION, HeaderValue::from_static("close"));
    }
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.inner.layer)?;
        if let Some(name) = self.name() {
            write!(f, " `{name}`")?;
        }
        match &self.inner.reason {
            Reason::TimedOut { limit } => write!(f, ": no response within {limit:?}")?,
            Reason::DeadlineExceeded { after: None } => {
                write!(f, ": the caller's deadline had passed before the call was sent")?;
            }
            Reason::DeadlineExceeded { after: Some(after) } => {
                write!(f, ": the caller's deadline passed {after:?} after the call was sent")?;
            }
            Reason::CircuitOpen => write!(f, ": the circuit is open")?,
            Reason::Overloaded { limit } => write!(f, ": {limit} calls are in flight, which is the limit")?,
            Reason::RateLimited => write!(f, ": the rate limit is exceeded")?,
            Reason::CostTooHigh { cost, burst } => {
                write!(f, ": the call costs {cost}, and the rate limit never admits more than {burst}")?;
            }
            Reason::StoreUnavailable { message } => write!(f, ": the store is away: {message}")?,
            Reason::NoKey => write!(f, ": the request has no key")?,
            Reason::KeyReused => write!(f, ": the key belongs to another request of the caller")?,
            Reason::Duplicate => {
                write!(f, ": the same request is being processed, or its response was too large to be stored")?;
            }
            Reason::BodyTooLarge { max } => write!(f, ": the request body is larger than {max} bytes")?,
            Reason::TooManyKeys { max } => write!(f, ": {max} other keys are in use, which is the maximum")?,
            Reason::Shared { message, .. } => write!(f, ": the shared call failed: {message}")?,
            Reason::Recursive => {
                write!(f, ": the call would wait for itself: it was made inside the call that it depends on")?
            }
            Reason::Injected => write!(f, ": an injected fault")?,
            Reason::Exhausted { max_wait } => write!(f, ": no resource became free within {max_wait:?}")?,
            Reason::Unavailable { message } => write!(f, ": no resource available: {message}")?,
            Reason::UploadStalled { idle } => {
                write!(f, ": the caller sent no more of the request body for {idle:?}")?;
            }
            Reason::UploadFailed { message } => write!(f, ": the request body failed: {message}")?,
            Reason::Draining { grace: None } => write!(f, ": the server is shutting down")?,
            Reason::Draining { grace: Some(grace) } => {
                write!(f, ": the call did not end within {grace:?} after the server began to shut down")?;
            }
            Reason::Custom { public_message, .. } => write!(f, ": {public_message}")?,
        }
        if let Some(wait) = self.inner.retry_after {
            write!(f, "; try again in {wait:?}")?;
        }
        if let Some(error) = &self.inner.previous {
            write!(f, "; previous attempt: {error}")?;
        }
        match &self.inner.suppressed {
            Some(error) => write!(f, "; suppressed: {error}"),
            None => Ok(()),
        }
    }
}

impl_debug!(Rejection {
    layer = |this| this.inner.layer,
    name = |this| &this.inner.name,
    reason = |this| this.reason(),
    retry_after = |this| this.inner.retry_after,
    suppressed = |this| this.suppressed(),
    previous = |this| this.previous(),
});

impl StdError for Rejection {}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;

    use super::*;

    fn timed_out() -> Rejection {
        let limit = Duration::from_millis(250);
        Rejection::new("timeout", Name::Static(""), Reason::TimedOut { limit })
    }

    #[test]
    fn it_says_who_why_and_when_to_come_back() {
        let rejection = Rejection::new("circuit_breaker", Name::new("payments"), Reason::CircuitOpen)
            .with_retry_after(Duration::from_millis(1500));
        assert_eq!(rejection.to_string(), "circuit_breaker `payments`: the circuit is open; try again in 1.5s");
        assert_eq!(timed_out().to_string(), "timeout: no response within 250ms");
    }

    #[test]
    fn callers_and_retries_learn_the_same_wait() {
        let second = Duration::from_secs(1);
        let public_message = "the quota is used up".into();
        let custom = |class| {
            let (name, status) = ("quota", StatusCode::TOO_MANY_REQUESTS);
            Reason::Custom { name, status, class, unprocessed: true, public_message: Cow::clone(&public_message) }
        };
        let declined = |retry_after| Class::Declined { retry_after };
        let failure = |retry_after| Class::Failure { transient: true, retry_after };
        let shared = |class| Reason::Shared { message: "down".into(), class };
        for (class, wait, expected) in [
            (None, None, None),
            (Some(30 * second), None, Some(30 * second)),
            (None, Some(30 * second), Some(30 * second)),
            (Some(30 * second), Some(second), Some(30 * second)),
            (Some(second), Some(30 * second), Some(30 * second)),
            (Some(30 * second), Some(Duration::ZERO), Some(30 * second)),
        ] {
            for (reason, class) in [
                (custom(declined(class)), declined(expected)),
                (custom(failure(class)), failure(expected)),
                (shared(failure(class)), failure(expected)),
            ] {
                let rejection = Rejection::new("any", Name::Static(""), reason);
                let rejection = wait.into_iter().fold(rejection, Rejection::with_retry_after);
                assert_eq!((rejection.retry_after(), rejection.class()), (expected, class));
                let mut response = Response::new(());
                *response.status_mut() = StatusCode::TOO_MANY_REQUESTS;
                rejection.add_headers(&mut response);
                let seconds = expected.map_or(1, |wait| wait.as_secs());
                assert_eq!(response.headers()[RETRY_AFTER], seconds.to_string());
            }
        }
        // A class that has no wait keeps none.
        let ignored = Rejection::new("any", Name::Static(""), custom(Class::Ignored)).with_retry_after(second);
        assert_eq!((ignored.retry_after(), ignored.class()), (Some(second), Class::Ignored));
    }

    #[test]
    fn it_never_advises_to_come_back_in_no_time() {
        let rejection = timed_out().with_retry_after(Duration::ZERO);
        assert_eq!((rejection.retry_after(), rejection.grpc_pushback()), (None, None));
        assert_eq!(rejection.to_string(), timed_out().to_string());
    }
}
