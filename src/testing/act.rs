//! The acts of a scripted service.

use std::fmt;

/// The behaviour of a [`Scripted`](super::Scripted) service in one call, from its readiness to the end of its response.
/// The default is [`answer`](Self::answer).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[must_use]
pub struct Act {
    pub(super) pending_at_readiness: usize,
    pub(super) pending: usize,
    pub(super) held: bool,
    pub(super) ends: How,
    pub(super) at: At,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum How {
    #[default]
    Answer,
    Error,
    Panic,
    Hang,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum At {
    Readiness,
    Call,
    #[default]
    Response,
}

impl Act {
    const fn new(ends: How) -> Self {
        Self { pending_at_readiness: 0, pending: 0, held: false, ends, at: At::Response }
    }

    /// The call succeeds, at once unless configured otherwise.
    pub const fn answer() -> Self {
        Self::new(How::Answer)
    }

    /// The call fails with a [`ScriptedError`].
    pub const fn error() -> Self {
        Self::new(How::Error)
    }

    /// The call panics, without printing a message.
    pub const fn panic() -> Self {
        Self::new(How::Panic)
    }

    /// The call never ends, and never wakes its task.
    pub const fn hang() -> Self {
        Self::new(How::Hang)
    }

    /// Makes readiness pending `times` times before the act ends. Each time the task is woken at once, so that it polls
    /// again.
    pub const fn pending_at_readiness(mut self, times: usize) -> Self {
        self.pending_at_readiness = times;
        self
    }

    /// Makes the response pending `times` times before the act ends. Each time the task is woken at once, so that it
    /// polls again.
    pub const fn pending(mut self, times: usize) -> Self {
        self.pending = times;
        self
    }

    /// Makes the response wait for the next [`Script::release`](super::Script::release).
    pub const fn held(mut self) -> Self {
        self.held = true;
        self
    }

    /// Makes readiness fail, panic or hang, so that no call is made.
    pub const fn at_readiness(mut self) -> Self {
        self.at = At::Readiness;
        self
    }

    /// Makes `call` itself panic. Any other end stays in the response.
    pub const fn in_call(mut self) -> Self {
        self.at = At::Call;
        self
    }

    pub(super) const fn answers(self) -> bool {
        matches!(self.ends, How::Answer)
    }

    pub(super) const fn hangs(self) -> bool {
        matches!(self.ends, How::Hang)
    }
}

/// The error of a [`Scripted`](super::Scripted) service, with the number of the outcome, as in a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ScriptedError(pub u64);

impl fmt::Display for ScriptedError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "failure {}", self.0)
    }
}

impl std::error::Error for ScriptedError {}
