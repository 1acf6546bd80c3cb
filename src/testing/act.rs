//! What a scripted service does with a call.

use std::fmt;

/// What a [`Scripted`](super::Scripted) service does with one call: from its readiness to the end of its response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub struct Act {
    pub(super) pending_at_readiness: usize,
    pub(super) pending: usize,
    pub(super) held: bool,
    pub(super) ends: How,
    pub(super) at: At,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum How {
    Answer,
    Error,
    Panic,
    Hang,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum At {
    Readiness,
    Call,
    Response,
}

impl Act {
    const fn new(ends: How) -> Self {
        Self { pending_at_readiness: 0, pending: 0, held: false, ends, at: At::Response }
    }

    /// It answers, at once unless told otherwise.
    pub const fn answer() -> Self {
        Self::new(How::Answer)
    }

    /// It fails with a [`ScriptedError`].
    pub const fn error() -> Self {
        Self::new(How::Error)
    }

    /// It panics, without a message on the terminal.
    pub const fn panic() -> Self {
        Self::new(How::Panic)
    }

    /// It never ends, and nothing wakes who waits for it.
    pub const fn hang() -> Self {
        Self::new(How::Hang)
    }

    /// First it is pending so many times at its readiness. Each time it wakes the task at once, so that it is polled again.
    pub const fn pending_at_readiness(mut self, times: usize) -> Self {
        self.pending_at_readiness = times;
        self
    }

    /// First its response is pending so many times. Each time it wakes the task at once, so that it is polled again.
    pub const fn pending(mut self, times: usize) -> Self {
        self.pending = times;
        self
    }

    /// First its response waits for the next [`Script::release`](super::Script::release).
    pub const fn held(mut self) -> Self {
        self.held = true;
        self
    }

    /// It is its readiness that fails, panics or hangs: no call is made.
    pub const fn at_readiness(mut self) -> Self {
        self.at = At::Readiness;
        self
    }

    /// It is `call` itself that panics. What else an act ends with stays in the response.
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

/// The error of a [`Scripted`](super::Scripted) service: the number of the outcome, as an answer has one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ScriptedError(pub u64);

impl fmt::Display for ScriptedError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "failure {}", self.0)
    }
}

impl std::error::Error for ScriptedError {}
