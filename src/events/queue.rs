//! What waits for one subscriber: bounded, first in first out. It knows nothing of tasks.

use std::{collections::VecDeque, error::Error, fmt, mem};

/// So many events find room before a queue grows for the first time.
const AT_FIRST: usize = 4;

/// What becomes of a subscriber that has fallen behind by its whole capacity when another event is published.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Lag {
    /// It misses the oldest event that waits for it, and is told how many it has missed ([`Lagged::Missed`]). The default.
    #[default]
    Tell,
    /// Who publishes with [`publish_and_wait`](super::EventBus::publish_and_wait) waits until it has room. For
    /// [`publish`](super::EventBus::publish), which never waits, it is as with [`Tell`](Lag::Tell).
    Block,
    /// It is dropped: it gets what waits for it, is told ([`Lagged::Dropped`]), and its stream ends.
    Drop,
}

/// A subscriber was too slow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Lagged {
    /// It missed so many events, at this place in its stream.
    Missed(u64),
    /// It was dropped ([`Lag::Drop`]), and misses all that was published since. Its stream ends.
    Dropped,
}

impl fmt::Display for Lagged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missed(missed) => write!(f, "the subscriber was too slow: it missed {missed} events"),
            Self::Dropped => write!(f, "the subscriber was too slow: it was dropped"),
        }
    }
}

impl Error for Lagged {}

#[derive(Debug)]
pub(super) struct Queue<T> {
    waiting: VecDeque<T>,
    capacity: usize,
    lag: Lag,
    /// So many are missing in front of what waits.
    missed: u64,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Open,
    /// It fell behind, and is to be told so after what waits.
    Dropped,
    Closed,
}

/// What became of an event.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Pushed<T> {
    /// It waits, in place of the oldest one, if there was no room for both.
    Waits { instead_of: Option<T> },
    /// The subscriber takes no more. The event is for the caller to drop.
    Refused(T),
}

/// What a subscriber finds.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Next<T> {
    LayerEvent(T),
    Lagged(Lagged),
    End,
    Nothing,
}

impl<T> Queue<T> {
    pub(super) fn new(capacity: usize, lag: Lag) -> Self {
        let waiting = VecDeque::with_capacity(capacity.min(AT_FIRST));
        Self { waiting, capacity, lag, missed: 0, state: State::Open }
    }

    /// Whether who publishes and waits has to wait for this one.
    pub(super) fn blocks(&self) -> bool {
        self.lag == Lag::Block && self.is_open() && self.is_full()
    }

    fn is_open(&self) -> bool {
        self.state == State::Open
    }

    fn is_full(&self) -> bool {
        self.waiting.len() >= self.capacity
    }

    pub(super) fn push(&mut self, event: T) -> Pushed<T> {
        if !self.is_open() {
            return Pushed::Refused(event);
        }
        let mut instead_of = None;
        if self.is_full() {
            if self.lag == Lag::Drop {
                self.state = State::Dropped;
                return Pushed::Refused(event);
            }
            instead_of = self.waiting.pop_front();
            self.missed = self.missed.saturating_add(1);
        }
        self.waiting.push_back(event);
        Pushed::Waits { instead_of }
    }

    pub(super) fn pop(&mut self) -> Next<T> {
        match mem::take(&mut self.missed) {
            0 => {}
            missed => return Next::Lagged(Lagged::Missed(missed)),
        }
        if let Some(event) = self.waiting.pop_front() {
            return Next::LayerEvent(event);
        }
        match self.state {
            State::Open => Next::Nothing,
            State::Dropped => {
                self.state = State::Closed;
                Next::Lagged(Lagged::Dropped)
            }
            State::Closed => Next::End,
        }
    }

    /// Nothing more comes after what waits. One that fell behind is still told.
    pub(super) fn close(&mut self) {
        if self.is_open() {
            self.state = State::Closed;
        }
    }

    /// Nothing more comes at all. What waited is for the caller to drop.
    pub(super) fn abandon(&mut self) -> VecDeque<T> {
        (self.missed, self.state) = (0, State::Closed);
        mem::take(&mut self.waiting)
    }
}

#[cfg(test)]
mod tests;
