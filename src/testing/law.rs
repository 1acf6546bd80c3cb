//! The laws that a layer keeps, and how a broken one reads.

use std::fmt;

/// What a well-behaved layer keeps to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Law {
    /// It calls an inner service only after polling that very service ready, and polls no future that has ended.
    Contract,
    /// A service that was polled ready and then left alone keeps nothing from others.
    Idle,
    /// However often a service is polled ready: once it is dropped, everything is back.
    Readiness,
    /// Waiting is done by the response, which does not hold on to an inner service that was made ready.
    Waiting,
    /// Wherever its response is dropped, and as soon as it has ended, everything that was acquired is back.
    Release,
    /// Who waits is woken when it is time, and only then.
    Wakes,
    /// All services of one layer value, and clones of it, share its state; another layer value shares nothing with them.
    State,
    /// Responses and errors of the inner service come out as they are.
    Unchanged,
    /// A panic of the inner service leaves the layer usable.
    Panics,
    /// Scope, deadline and attempt number reach the inner service, and are restored after each step.
    Ambient,
}

impl Law {
    /// All laws.
    pub const ALL: [Self; 10] = [
        Self::Contract,
        Self::Idle,
        Self::Readiness,
        Self::Waiting,
        Self::Release,
        Self::Wakes,
        Self::State,
        Self::Unchanged,
        Self::Panics,
        Self::Ambient,
    ];
}

impl fmt::Display for Law {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Contract => "an inner service is called only after it was polled ready itself, and no future is polled after its end",
            Self::Idle => "a service that was polled ready and then left alone keeps nothing from others",
            Self::Readiness => "however often a service is polled ready, everything is back once it is dropped",
            Self::Waiting => "a layer waits in its response, and does not hold on to an inner service that was made ready meanwhile",
            Self::Release => "what a call acquires is back when its response has ended or was dropped, wherever that is",
            Self::Wakes => "who waits is woken when it is time, and only then",
            Self::State => "services of one layer value share its state, and another layer value shares nothing with them",
            Self::Unchanged => "responses and errors of the inner service come out as they are",
            Self::Panics => "a panic of the inner service leaves the layer usable",
            Self::Ambient => "scope, deadline and attempt number reach the inner service, and are restored after each step",
        })
    }
}

/// A [`Law`] that a layer has broken, and how.
#[derive(Debug, Clone)]
pub struct Broken {
    pub(super) law: Law,
    pub(super) how: String,
}

impl Broken {
    /// The law.
    #[must_use]
    pub fn law(&self) -> Law {
        self.law
    }
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "broken: {}\n  {}", self.law, self.how)
    }
}
