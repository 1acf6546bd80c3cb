//! Classes: what an outcome says about the service, said once for all layers.

use std::time::Duration;

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
    /// It works, and has declined this request because of its sender: too many requests (429), or one that came too
    /// slowly (408).
    ///
    /// A retry sends it again, as after a transient failure. It never counts against the service: one tenant's 429 must
    /// not open a circuit that it shares with others.
    Declined {
        /// How long the service asks this sender to wait.
        retry_after: Option<Duration>,
    },
    /// Nothing: the caller's own mistake, for example, or a limit on this side.
    Ignored,
}

impl Class {
    /// A failure that may be gone the next time.
    pub const TRANSIENT: Self = Self::Failure { transient: true, retry_after: None };

    /// A failure that will be the same the next time.
    pub const PERMANENT: Self = Self::Failure { transient: false, retry_after: None };

    /// A request that the service declined, without saying when to come back.
    pub const DECLINED: Self = Self::Declined { retry_after: None };

    /// Whether the caller did not get what it asked for: a failure, or a request that was declined.
    ///
    /// Only [`Failure`](Self::Failure) counts against the service.
    #[must_use]
    pub fn is_failure(&self) -> bool {
        matches!(self, Self::Failure { .. } | Self::Declined { .. })
    }

    /// Whether another attempt may help: a transient failure, or a request that was declined.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Failure { transient: true, .. } | Self::Declined { .. })
    }

    /// How long the service asks to be left alone, or asks this sender to wait.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Failure { retry_after, .. } | Self::Declined { retry_after } => *retry_after,
            Self::Success | Self::Ignored => None,
        }
    }
}
