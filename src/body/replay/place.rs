//! Where an attempt stands in the order in which attempts ask for the body.

use std::sync::atomic::{AtomicU64, Ordering};

/// The place of an attempt. Its turn comes when it first asks for the body, whenever it was made: who copies a request
/// before another one does may be the last to need it.
///
/// It is looked at and changed under the lock of what the attempts share; the atomic is there because claiming takes a
/// `&self`.
#[derive(Debug)]
pub(super) struct Place(AtomicU64);

const WAITING: u64 = 0;
const SPARE: u64 = u64::MAX;

impl Place {
    /// The turn of the attempt that was there from the start.
    pub(super) const FIRST: u64 = 1;

    pub(super) fn first() -> Self {
        Self(AtomicU64::new(Self::FIRST))
    }

    pub(super) fn waiting() -> Self {
        Self(AtomicU64::new(WAITING))
    }

    pub(super) fn spare() -> Self {
        Self(AtomicU64::new(SPARE))
    }

    pub(super) fn is_waiting(&self) -> bool {
        self.0.load(Ordering::Relaxed) == WAITING
    }

    /// `None` if it has not come.
    pub(super) fn turn(&self) -> Option<u64> {
        Some(self.0.load(Ordering::Relaxed)).filter(|turn| ![WAITING, SPARE].contains(turn))
    }

    pub(super) fn take_turn(&self, turn: u64) {
        self.0.store(turn, Ordering::Relaxed);
    }
}
