//! Why a layer rejected a call.

use std::{borrow::Cow, sync::Arc, time::Duration};

use http::StatusCode;

use super::Class;

/// Why a layer rejected a call.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Reason {
    /// The service did not respond within the limit.
    TimedOut {
        /// The limit that was exceeded.
        limit: Duration,
    },
    /// The surrounding deadline passed: an outer limit or the caller's own deadline, not a limit of this layer.
    DeadlineExceeded {
        /// How long the service had until then. `None` if the deadline had passed before the call was sent.
        after: Option<Duration>,
    },
    /// A circuit breaker is open and admits no calls.
    CircuitOpen,
    /// The concurrency limit is reached, and the queue is full or the call has waited too long.
    Overloaded {
        /// The maximum number of calls in flight.
        limit: usize,
    },
    /// The call exceeds the allowed rate.
    RateLimited,
    /// The call costs more than a rate limit ever admits at once, so that no wait helps.
    CostTooHigh {
        /// The cost of the call.
        cost: u32,
        /// The highest possible cost.
        burst: u32,
    },
    /// The store that many processes share is away or slow, and the layer admits no call meanwhile.
    StoreUnavailable {
        /// How the store failed.
        message: Arc<str>,
    },
    /// The request has no key, so that no instance of a layer is its own.
    NoKey,
    /// The key of the request belongs to another request of the same caller, whose content was different.
    KeyReused,
    /// A request with this key is being processed, or was processed and its response was too large to be stored.
    Duplicate,
    /// The request body is larger than the layer reads.
    BodyTooLarge {
        /// The maximum number of bytes.
        max: usize,
    },
    /// All instances of a layer are in use, each by another key.
    TooManyKeys {
        /// The maximum number of keys.
        max: usize,
    },
    /// The call shared another caller's call, which failed. That caller received the error, and this is its message.
    Shared {
        /// The error's message.
        message: Arc<str>,
        /// The class of the original error.
        class: Class,
    },
    /// The call would wait for itself: it was made inside the very call whose outcome or permit it needs.
    Recursive,
    /// A fault that was injected on purpose.
    Injected,
    /// The call needs a resource, for example a connection, and none became free in time.
    Exhausted {
        /// The longest time that the call was allowed to wait for a resource.
        max_wait: Duration,
    },
    /// The call needs a resource, and acquiring one failed.
    Unavailable {
        /// The error's message.
        message: Arc<str>,
    },
    /// The caller kept the service waiting too long for the next part of the request body.
    UploadStalled {
        /// The longest allowed pause between two parts.
        idle: Duration,
    },
    /// The request body failed: the caller disconnected, or sent an invalid body.
    UploadFailed {
        /// The error's message.
        message: Arc<str>,
    },
    /// The server is shutting down.
    Draining {
        /// How long the call was allowed to go on, if it was in flight when the drain began. `None` if it came later,
        /// and was never sent.
        grace: Option<Duration>,
    },
    /// The reason of a layer outside this crate. [How to write one](crate::docs::how_to#write-a-layer-that-rejects).
    ///
    /// A rejection whose `status` is below 300 would pass for a success, and panics when it is created.
    ///
    /// ```
    /// use http::StatusCode;
    /// use ziggurat::{Class, LayerInfo, Reason};
    ///
    /// let rejection = LayerInfo::new("body_limit").reject(Reason::Custom {
    ///     name: "too_large",
    ///     status: StatusCode::PAYLOAD_TOO_LARGE,
    ///     class: Class::Ignored,
    ///     unprocessed: true,
    ///     public_message: "the body is larger than 1 MiB".into(),
    /// });
    /// assert_eq!(rejection.status(), 413);
    /// assert_eq!(rejection.public_message(), "body_limit: the body is larger than 1 MiB");
    /// ```
    Custom {
        /// The name in events, labels and metrics, such as `"too_large"`. Keep the set of names small, because each
        /// name is a time series.
        name: &'static str,
        /// The status of the response to an HTTP caller.
        status: StatusCode,
        /// What the rejection says about the service inside the layer: [`Class::Ignored`] for a mistake of the caller,
        /// as most 4xx are, which is not retried; [`Class::DECLINED`] if the caller may try again, as after a 429;
        /// [`Class::TRANSIENT`] or [`Class::PERMANENT`] only if the service does not work. The wait of the class is
        /// that of the rejection ([`Rejection::retry_after`](crate::Rejection::retry_after)), unless the rejection is
        /// given a longer one.
        class: Class,
        /// Whether the layer rejected the call before it sent the request: see
        /// [`Rejection::is_unprocessed`](crate::Rejection::is_unprocessed). Then even a `POST` may be sent again, by a
        /// retry if `class` asks for one, or by a fallback.
        unprocessed: bool,
        /// The reason in words that any caller may read.
        public_message: Cow<'static, str>,
    },
}

impl Reason {
    /// The reason as one word, for events, labels and metrics: `"timed_out"`, `"deadline_exceeded"`, `"circuit_open"`,
    /// `"overloaded"`, `"rate_limited"`, `"cost_too_high"`, `"store_unavailable"`, `"no_key"`, `"key_reused"`,
    /// `"duplicate"`, `"body_too_large"`, `"too_many_keys"`, `"shared"`, `"recursive"`, `"injected"`, `"exhausted"`,
    /// `"unavailable"`, `"upload_stalled"`, `"upload_failed"`, `"draining"`, or the name of a custom reason.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::TimedOut { .. } => "timed_out",
            Self::DeadlineExceeded { .. } => "deadline_exceeded",
            Self::CircuitOpen => "circuit_open",
            Self::Overloaded { .. } => "overloaded",
            Self::RateLimited => "rate_limited",
            Self::CostTooHigh { .. } => "cost_too_high",
            Self::StoreUnavailable { .. } => "store_unavailable",
            Self::NoKey => "no_key",
            Self::KeyReused => "key_reused",
            Self::Duplicate => "duplicate",
            Self::BodyTooLarge { .. } => "body_too_large",
            Self::TooManyKeys { .. } => "too_many_keys",
            Self::Shared { .. } => "shared",
            Self::Recursive => "recursive",
            Self::Injected => "injected",
            Self::Exhausted { .. } => "exhausted",
            Self::Unavailable { .. } => "unavailable",
            Self::UploadStalled { .. } => "upload_stalled",
            Self::UploadFailed { .. } => "upload_failed",
            Self::Draining { .. } => "draining",
            Self::Custom { name, .. } => name,
        }
    }

    /// Returns the wait of the reason's class, if it has one.
    pub(super) fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Shared { class, .. } | Self::Custom { class, .. } => class.retry_after(),
            _ => None,
        }
    }
}
