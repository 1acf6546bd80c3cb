//! The laws that a layer keeps, and the reports of broken ones.

use std::fmt;

/// The laws that a well-behaved layer keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Law {
    /// A layer calls an inner service only after polling that very service ready, and polls no future that has ended.
    Contract,
    /// A service that was polled ready and then left idle takes nothing from other services.
    Idle,
    /// However often a service is polled ready, dropping it releases everything that it acquired.
    Readiness,
    /// The response does the waiting, and meanwhile keeps no inner service that was made ready.
    Waiting,
    /// Everything that a call acquires is released once its response has ended or was dropped, at any point.
    Release,
    /// A waiter is woken when it can make progress, and only then.
    Wakes,
    /// All services of one layer value and its clones share its state, and share nothing with another layer value.
    State,
    /// Responses and errors of the inner service are passed on unchanged.
    Unchanged,
    /// A panic of the inner service leaves the layer usable.
    Panics,
    /// Scope, deadline and attempt number reach the inner service, and are restored after each step.
    Ambient,
    /// A request that the layer rejects is not sent to the inner service. Checked by [`Laws::rejects`] alone.
    ///
    /// [`Laws::rejects`]: super::Laws::rejects
    Rejects,
}

impl Law {
    /// All laws.
    pub const ALL: [Self; 11] = [
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
        Self::Rejects,
    ];
}

impl fmt::Display for Law {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Contract => {
                "an inner service is called only after it was polled ready itself, and no future is polled after its end"
            }
            Self::Idle => "a service that was polled ready and then left idle takes nothing from other services",
            Self::Readiness => "however often a service is polled ready, dropping it releases everything it acquired",
            Self::Waiting => "the response does the waiting, and meanwhile keeps no inner service that was made ready",
            Self::Release => {
                "everything that a call acquires is released once its response has ended or was dropped, at any point"
            }
            Self::Wakes => "a waiter is woken when it can make progress, and only then",
            Self::State => "services of one layer value share its state, and share nothing with another layer value",
            Self::Unchanged => "responses and errors of the inner service are passed on unchanged",
            Self::Panics => "a panic of the inner service leaves the layer usable",
            Self::Ambient => "scope, deadline and attempt number reach the inner service, and are restored after each step",
            Self::Rejects => "a request that the layer rejects is not sent to the inner service",
        })
    }
}

/// A [`Law`] that a layer has broken, with the details.
#[derive(Debug, Clone)]
pub struct Broken {
    pub(super) law: Law,
    pub(super) how: String,
}

impl Broken {
    /// The law that was broken.
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
