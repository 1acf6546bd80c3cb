//! Rejections: a layer answers instead of the service, and the stack keeps the service's own error type.

use std::{error::Error as StdError, fmt, sync::Arc, time::Duration};

use http::{HeaderValue, StatusCode};

use super::{Class, unprocessed::chain};
use crate::name::Name;

/// A layer's answer in place of the service's: which layer, why, and when to come back.
///
/// It travels inside the stack's own error (or response): [`rejection`](crate::rejection()) and [`Rejection::find`] get it out again. A layer of your
/// own puts it there with [`Reject::reject`](crate::Reject::reject); boxed by itself, it would be an error like any other.
///
/// It is one pointer, so that a result that may carry it is small; a clone is another one to the same.
#[derive(Clone)]
pub struct Rejection {
    inner: Arc<Inner>,
}

#[derive(Clone)]
struct Inner {
    layer: &'static str,
    name: Option<Name>,
    reason: Reason,
    retry_after: Option<Duration>,
    suppressed: Option<Arc<str>>,
    previous: Option<Arc<str>>,
}

/// Why a layer answered instead of the service.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Reason {
    /// The service did not answer within the limit.
    TimedOut {
        /// The limit that was exceeded.
        limit: Duration,
    },
    /// The deadline that surrounds the call passed: an outer limit or the caller's own, and not a limit of this layer.
    DeadlineExceeded {
        /// How long the service had until then; `None` if the deadline had passed before the call was sent.
        after: Option<Duration>,
    },
    /// A circuit breaker lets no call through at the moment.
    CircuitOpen,
    /// As many calls as allowed are in flight, and no more may wait, or this one has waited too long.
    Overloaded {
        /// The number of calls that are allowed in flight.
        limit: usize,
    },
    /// More calls came than the rate allows.
    RateLimited,
    /// Another caller's call, which this one shared, has failed: the error went to that caller, this is what it said.
    Shared {
        /// The error's message.
        message: Arc<str>,
        /// What the original error said about the service.
        class: Class,
    },
    /// The call would wait for itself: it was made inside of the very call whose outcome, or whose permit, it needs.
    Recursive,
    /// A fault that was put in on purpose.
    Injected,
    /// The call needs a resource, a connection say, and none came free in time.
    Exhausted {
        /// How long it was allowed to wait for one.
        max_wait: Duration,
    },
    /// The call needs a resource, and getting one failed.
    Unavailable {
        /// The error's message.
        message: Arc<str>,
    },
    /// The caller made the service wait too long for the next part of the request's body.
    UploadStalled {
        /// How long it was allowed to.
        idle: Duration,
    },
    /// The request's body failed: the caller broke off, or sent what is no body.
    UploadFailed {
        /// The error's message.
        message: Arc<str>,
    },
}

impl Reason {
    /// One word for it, as it stands in events, labels and metrics: `"timed_out"`, `"deadline_exceeded"`, `"circuit_open"`, `"overloaded"`,
    /// `"rate_limited"`, `"shared"`, `"recursive"`, `"injected"`, `"exhausted"`, `"unavailable"`, `"upload_stalled"` or `"upload_failed"`.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::TimedOut { .. } => "timed_out",
            Self::DeadlineExceeded { .. } => "deadline_exceeded",
            Self::CircuitOpen => "circuit_open",
            Self::Overloaded { .. } => "overloaded",
            Self::RateLimited => "rate_limited",
            Self::Shared { .. } => "shared",
            Self::Recursive => "recursive",
            Self::Injected => "injected",
            Self::Exhausted { .. } => "exhausted",
            Self::Unavailable { .. } => "unavailable",
            Self::UploadStalled { .. } => "upload_stalled",
            Self::UploadFailed { .. } => "upload_failed",
        }
    }
}

impl Rejection {
    /// A rejection by this layer. Layers make it with [`LayerInfo::reject`](crate::LayerInfo::reject).
    pub(crate) fn new(layer: &'static str, name: Option<Name>, reason: Reason) -> Self {
        let inner = Inner { layer, name, reason, retry_after: None, suppressed: None, previous: None };
        Self { inner: Arc::new(inner) }
    }

    /// The same, telling when it is worth coming back.
    ///
    /// A wait of zero is no advice, and is left out: it would send every rejected caller back at once.
    #[must_use]
    pub fn with_retry_after(mut self, retry_after: Duration) -> Self {
        Arc::make_mut(&mut self.inner).retry_after = Some(retry_after).filter(|wait| !wait.is_zero());
        self
    }

    /// The same, telling of another error that came afterwards, when something tried to make up for this one, and that is not what the
    /// caller gets.
    #[must_use]
    pub fn with_suppressed(mut self, error: impl fmt::Display) -> Self {
        Arc::make_mut(&mut self.inner).suppressed = Some(error.to_string().into());
        self
    }

    /// The same, telling how an earlier attempt of the same call failed: a breaker that opens between two attempts must
    /// not hide why.
    #[must_use]
    pub fn with_previous(mut self, error: impl fmt::Display) -> Self {
        Arc::make_mut(&mut self.inner).previous = Some(error.to_string().into());
        self
    }

    /// The layer that rejected: its module's name, such as `"timeout"`.
    #[must_use]
    pub fn layer(&self) -> &'static str {
        self.inner.layer
    }

    /// The name that was given to that layer with `.named(..)`.
    #[must_use]
    pub fn name(&self) -> Option<&str> {
        self.inner.name.as_deref()
    }

    /// Why it rejected.
    #[must_use]
    pub fn reason(&self) -> &Reason {
        &self.inner.reason
    }

    /// How long to wait before coming back, where the layer knows it: never zero.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        self.inner.retry_after
    }

    /// What another error said that came afterwards: that of a fallback, which was to answer in the place of this rejection.
    #[must_use]
    pub fn suppressed(&self) -> Option<&str> {
        self.inner.suppressed.as_deref()
    }

    /// How an earlier attempt of the same call failed, where a retry stands outside of the layer that rejected: what
    /// its error, or the status of its response, said.
    #[must_use]
    pub fn previous(&self) -> Option<&str> {
        self.inner.previous.as_deref()
    }

    /// Whether a limit of time ended the call: the layer's own ([`Reason::TimedOut`]), or the surrounding deadline
    /// ([`Reason::DeadlineExceeded`]).
    #[must_use]
    pub fn is_timed_out(&self) -> bool {
        matches!(self.inner.reason, Reason::TimedOut { .. } | Reason::DeadlineExceeded { .. })
    }

    /// Whether a circuit breaker was open.
    #[must_use]
    pub fn is_circuit_open(&self) -> bool {
        self.inner.reason == Reason::CircuitOpen
    }

    /// Whether a concurrency limit had no place.
    #[must_use]
    pub fn is_overloaded(&self) -> bool {
        matches!(self.inner.reason, Reason::Overloaded { .. })
    }

    /// Whether the call went no further than the layer that rejected it, so that no service has processed the request.
    #[must_use]
    pub fn is_unprocessed(&self) -> bool {
        let is_before_the_call = matches!(
            self.inner.reason,
            Reason::CircuitOpen
                | Reason::Overloaded { .. }
                | Reason::RateLimited
                | Reason::Exhausted { .. }
                | Reason::Unavailable { .. }
        );
        // A retry further in had sent it before, or a fallback to its backup after.
        is_before_the_call && self.inner.previous.is_none() && self.inner.suppressed.is_none()
    }

    /// What this rejection says about the service beneath the layer that rejected.
    ///
    /// Too slow is a transient failure, and so is a resource that could not be had. An open circuit is a failure that no retry
    /// helps. A local limit says nothing about the service, nor does a pool that is empty, nor a caller that does not send what it began, nor a
    /// deadline that the caller brought: it may have left the service no time. A shared failure is what the original was.
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
            | Reason::Exhausted { .. } => Class::Ignored,
            Reason::UploadStalled { .. } | Reason::UploadFailed { .. } => Class::Ignored,
            Reason::Shared { class, .. } => class,
        }
    }

    /// The status that an HTTP server answers with: 504 for a timeout, 429 for a rate, 408 for a request's body that stalls and 400 for one
    /// that fails, 502 for the failure of a call that was shared (its rejection, if it was one, keeps its own status), 500 for a call that
    /// would wait for itself, 503 otherwise.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        match self.inner.reason {
            Reason::TimedOut { .. } | Reason::DeadlineExceeded { .. } => StatusCode::GATEWAY_TIMEOUT,
            Reason::RateLimited => StatusCode::TOO_MANY_REQUESTS,
            Reason::UploadStalled { .. } => StatusCode::REQUEST_TIMEOUT,
            Reason::UploadFailed { .. } => StatusCode::BAD_REQUEST,
            Reason::Shared { .. } => StatusCode::BAD_GATEWAY,
            Reason::Recursive => StatusCode::INTERNAL_SERVER_ERROR,
            _ => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    /// Which layer rejected and why, in a few words that may be told to strangers: no name that you gave, no limit of yours, no
    /// message of an error.
    ///
    /// The [`Display`](fmt::Display) form has all of these, for your own logs.
    #[must_use]
    pub fn public_message(&self) -> String {
        let why = match self.inner.reason {
            Reason::TimedOut { .. } => "no answer in time",
            Reason::DeadlineExceeded { .. } => "the caller's deadline has passed",
            Reason::CircuitOpen => "the circuit is open",
            Reason::Overloaded { .. } => "too many calls are in flight",
            Reason::RateLimited => "more calls than the rate allows",
            Reason::Shared { .. } => "the call that this one shared failed",
            Reason::Recursive => "the call would wait for itself",
            Reason::Injected => "a fault put in on purpose",
            Reason::Exhausted { .. } => "what the call needs is all in use",
            Reason::Unavailable { .. } => "what the call needs is not to be had",
            Reason::UploadStalled { .. } => "the request's body did not come in time",
            Reason::UploadFailed { .. } => "the request's body broke off",
        };
        format!("{}: {why}", self.inner.layer)
    }

    /// The value of `Retry-After`: whole seconds, rounded up, so that who comes back after them comes late enough; at least 1.
    ///
    /// Every 429 and 503 has one: where the layer does not know, it is the shortest that can be said.
    pub(crate) fn retry_after_header(&self) -> Option<HeaderValue> {
        let wait = match self.status() {
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => self.retry_after().unwrap_or_default(),
            _ => self.retry_after()?,
        };
        let seconds = wait.as_secs().saturating_add(u64::from(wait.subsec_nanos() > 0));
        Some(HeaderValue::from(seconds.max(1)))
    }

    /// The rejection that `error` is, or that lies somewhere in its chain of sources, also in what an `io::Error` was made of.
    ///
    /// An error type of yours keeps it findable by returning it from `source()`; with thiserror that is a field marked
    /// `#[source]` or `#[from]` and `#[error("{0}")]`, while `#[error(transparent)]` hides it.
    #[must_use]
    pub fn find<'a>(error: &'a (dyn StdError + 'static)) -> Option<&'a Self> {
        chain(error).find_map(<dyn StdError>::downcast_ref)
    }
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.inner.layer)?;
        if let Some(name) = self.name() {
            write!(f, " `{name}`")?;
        }
        match &self.inner.reason {
            Reason::TimedOut { limit } => write!(f, ": no answer within {limit:?}")?,
            Reason::DeadlineExceeded { after: None } => {
                write!(f, ": the caller's deadline had passed before the call was sent")?;
            }
            Reason::DeadlineExceeded { after: Some(after) } => {
                write!(f, ": the caller's deadline passed {after:?} after the call was sent")?;
            }
            Reason::CircuitOpen => write!(f, ": the circuit is open")?,
            Reason::Overloaded { limit } => write!(f, ": {limit} calls are in flight, which is the limit")?,
            Reason::RateLimited => write!(f, ": more calls than the rate allows")?,
            Reason::Shared { message, .. } => write!(f, ": the call that this one shared failed: {message}")?,
            Reason::Recursive => {
                write!(f, ": the call would wait for itself: it was made inside of the call that it asks for")?
            }
            Reason::Injected => write!(f, ": a fault put in on purpose")?,
            Reason::Exhausted { max_wait } => write!(f, ": none came free within {max_wait:?}")?,
            Reason::Unavailable { message } => write!(f, ": none to be had: {message}")?,
            Reason::UploadStalled { idle } => {
                write!(f, ": the caller sent no more of the request's body for {idle:?}")?;
            }
            Reason::UploadFailed { message } => write!(f, ": the request's body failed: {message}")?,
        }
        if let Some(wait) = self.inner.retry_after {
            write!(f, "; try again in {wait:?}")?;
        }
        if let Some(error) = &self.inner.previous {
            write!(f, "; before: {error}")?;
        }
        match &self.inner.suppressed {
            Some(error) => write!(f, "; afterwards: {error}"),
            None => Ok(()),
        }
    }
}

impl fmt::Debug for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Inner { layer, name, reason, retry_after, suppressed, previous } = &*self.inner;
        f.debug_struct("Rejection")
            .field("layer", layer)
            .field("name", name)
            .field("reason", reason)
            .field("retry_after", retry_after)
            .field("suppressed", suppressed)
            .field("previous", previous)
            .finish()
    }
}

impl StdError for Rejection {}

#[cfg(test)]
mod tests {
    use super::*;

    fn timed_out() -> Rejection {
        let limit = Duration::from_millis(250);
        Rejection::new("timeout", None, Reason::TimedOut { limit })
    }

    #[test]
    fn it_says_who_why_and_when_to_come_back() {
        let rejection = Rejection::new("circuit_breaker", Some(Name::new("payments")), Reason::CircuitOpen)
            .with_retry_after(Duration::from_millis(1500));
        assert_eq!(rejection.to_string(), "circuit_breaker `payments`: the circuit is open; try again in 1.5s");
        assert_eq!(timed_out().to_string(), "timeout: no answer within 250ms");
    }

    #[test]
    fn it_never_advises_to_come_back_in_no_time() {
        let rejection = timed_out().with_retry_after(Duration::ZERO);
        assert_eq!((rejection.retry_after(), rejection.grpc_pushback()), (None, None));
        assert_eq!(rejection.to_string(), timed_out().to_string());
    }
}
