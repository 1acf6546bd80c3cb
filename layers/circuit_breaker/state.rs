//! The states of a circuit, and the word that holds all that a call needs of them.

use std::fmt;

/// What a circuit lets through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum State {
    /// Every call passes, and is counted.
    Closed,
    /// No call passes. Once its time is over a circuit stays open until the next call comes, which half-opens it.
    Open,
    /// A few calls pass as probes, and decide.
    HalfOpen,
}

impl State {
    /// Its name in events: `closed`, `open` or `half_open`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Open => "open",
            Self::HalfOpen => "half_open",
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A circuit went from one state to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Transition {
    /// The state before.
    pub from: State,
    /// The state since.
    pub to: State,
}

/// `generation: 30 | state: 2 | failures in a row: 32`. A call would have to last for 2^30 turns to be taken for one of today.
#[derive(Clone, Copy, Default)]
pub(super) struct Word(pub(super) u64);

impl Word {
    #[inline]
    pub(super) fn generation(self) -> u64 {
        self.0 >> 34
    }

    #[inline]
    pub(super) fn state(self) -> State {
        match (self.0 >> 32) & 3 {
            0 => State::Closed,
            1 => State::Open,
            _ => State::HalfOpen,
        }
    }

    #[inline]
    pub(super) fn failures(self) -> u32 {
        (self.0 & u64::from(u32::MAX)) as u32
    }

    pub(super) fn with_failures(self, failures: u32) -> Self {
        Self(((self.0 >> 32) << 32) | u64::from(failures))
    }

    /// A new generation, in which nothing failed yet.
    pub(super) fn next(self, to: State) -> Self {
        let state = match to {
            State::Closed => 0,
            State::Open => 1,
            State::HalfOpen => 2,
        };
        Self((self.generation().wrapping_add(1) << 34) | (state << 32))
    }
}
