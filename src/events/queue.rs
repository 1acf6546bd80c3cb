//! The bounded FIFO queue of one subscriber's events. It knows nothing of tasks.

use std::{collections::VecDeque, error::Error, fmt, mem};

/// The capacity that a queue starts with, before it grows.
const AT_FIRST: usize = 4;

/// How to handle a subscriber whose queue is full when another event is published.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Lag {
    /// The subscriber misses the oldest event in its queue, and its stream reports how many it has missed
    /// ([`Lagged::Missed`]). The default.
    #[default]
    Tell,
    /// [`publish_and_wait`](super::EventBus::publish_and_wait) waits until the subscriber has room.
    /// [`publish`](super::EventBus::publish), which never waits, treats it as [`Tell`](Lag::Tell).
    Block,
    /// The subscriber is dropped: its stream ends after its backlog and an error ([`Lagged::Dropped`]).
    Drop,
}

/// The error of a subscriber that was too slow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Lagged {
    /// The subscriber missed this number of events, at this place in its stream.
    Missed(u64),
    /// The subscriber was dropped ([`Lag::Drop`]) and misses all later events. Its stream ends.
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
    /// The number of events that were missed just before those in `waiting`.
    missed: u64,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Open,
    /// The subscriber fell behind, which is still to be reported after its backlog.
    Dropped,
    Closed,
}

/// The outcome of a push.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Pushed<T> {
    /// The event waits, instead of the oldest one if there was no room for both.
    Waits { instead_of: Option<T> },
    /// The subscriber takes no more events. The caller has to drop this one.
    Refused(T),
}

/// The outcome of a pop.
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

    /// Whether a publisher that waits for room has to wait for this subscriber.
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

    /// Ends the stream after its backlog. A subscriber that fell behind still receives [`Lagged::Dropped`].
    pub(super) fn close(&mut self) {
        if self.is_open() {
            self.state = State::Closed;
        }
    }

    /// Ends the stream at once. The caller has to drop the backlog.
    pub(super) fn abandon(&mut self) -> VecDeque<T> {
        (self.missed, self.state) = (0, State::Closed);
        mem::take(&mut self.waiting)
    }
}

#[cfg(test)]
mod tests;
