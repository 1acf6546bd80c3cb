//! Classes: how an outcome reflects on the service, in one vocabulary for all layers.

use std::time::Duration;

/// How an outcome reflects on the service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// The service works.
    Success,
    /// The service does not work.
    Failure {
        /// Whether a retry may succeed.
        transient: bool,
        /// How long the service asks callers to stay away.
        retry_after: Option<Duration>,
    },
    /// The service works, and declined this request because of its sender: too many requests (429), or a request that
    /// arrived too slowly (408).
    ///
    /// A retry repeats the call, as after a transient failure. A declined request never counts against the service: one
    /// tenant's 429 must not open a circuit that all tenants share.
    Declined {
        /// How long the service asks this sender to wait.
        retry_after: Option<Duration>,
    },
    /// The outcome says nothing about the service, for example a caller's own mistake or a local limit.
    Ignored,
}

impl Class {
    /// A failure that may have passed by the next attempt.
    pub const TRANSIENT: Self = Self::Failure { transient: true, retry_after: None };

    /// A failure that the next attempt would meet again.
    pub const PERMANENT: Self = Self::Failure { transient: false, retry_after: None };

    /// A request that the service declined, without a time to come back.
    pub const DECLINED: Self = Self::Declined { retry_after: None };

    /// Returns whether the caller's request was not served: a failure, or a declined request.
    ///
    /// Only [`Failure`](Self::Failure) counts against the service.
    #[must_use]
    pub fn is_failure(&self) -> bool {
        matches!(self, Self::Failure { .. } | Self::Declined { .. })
    }

    /// Returns whether another attempt may succeed: after a transient failure, or a declined request.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Failure { transient: true, .. } | Self::Declined { .. })
    }

    /// Returns how long the service asks its callers, or this sender, to wait.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Failure { retry_after, .. } | Self::Declined { retry_after } => *retry_after,
            Self::Success | Self::Ignored => None,
        }
    }
}
