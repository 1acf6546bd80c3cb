//! The states of a circuit, and the word that packs the state that every call reads.

use std::{fmt, time::Duration};

/// The state of a circuit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum State {
    /// Every call passes and is counted.
    Closed,
    /// No call passes. When its time is over, the circuit stays open until the next call half-opens it.
    Open,
    /// A few calls pass as probes. Their outcomes decide whether the circuit closes.
    HalfOpen,
}

impl State {
    /// Returns the name in events: `closed`, `open` or `half_open`.
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

/// A change of a circuit from one state to another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Transition {
    /// The state before the transition.
    pub from: State,
    /// The state after the transition.
    pub to: State,
}

/// A circuit at one moment: see [`CircuitBreakerHandle::status`](super::CircuitBreakerHandle::status).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct CircuitStatus {
    /// The state.
    pub state: State,
    /// The number of calls in the window; 0 if no failure rate opens the circuit.
    pub calls: u32,
    /// The number of failures among these calls.
    pub failures: u32,
    /// How long an open circuit stays open; `None` in another state, and if the circuit stays open until it is closed
    /// by hand.
    pub remaining: Option<Duration>,
    /// Whether the circuit is open because it was opened by hand.
    pub is_forced: bool,
    /// Whether the circuit admits every call, whatever its state.
    pub is_watch_only: bool,
}

impl CircuitStatus {
    /// Returns the fraction of calls in the window that failed, from 0 to 1. Returns `None` for an empty window.
    #[must_use]
    pub fn failure_rate(&self) -> Option<f64> {
        (self.calls > 0).then(|| f64::from(self.failures) / f64::from(self.calls))
    }
}

/// `generation: 30 | state: 2 | failures in a row: 32`.
///
/// The generation wraps around: a call that lasts for 2^30 transitions would pass for a current one.
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

    /// Returns the generation before this one, to which no current call belongs.
    pub(super) fn previous_generation(self) -> u64 {
        self.generation().wrapping_sub(1) & (u64::MAX >> 34)
    }

    /// Starts a new generation, with no failures.
    pub(super) fn next(self, to: State) -> Self {
        let state = match to {
            State::Closed => 0,
            State::Open => 1,
            State::HalfOpen => 2,
        };
        Self((self.generation().wrapping_add(1) << 34) | (state << 32))
    }
}
