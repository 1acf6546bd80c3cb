//! The position of an attempt in the order in which attempts request the body.

use std::sync::atomic::{AtomicU64, Ordering};

/// The position of an attempt. Its turn starts when it first requests the body, no matter when it was created: a layer
/// that copies a request before another layer does may be the last to need its copy.
///
/// It is read and changed under the lock of the shared state. It is atomic only because `claim_body` takes `&self`.
#[derive(Debug)]
pub(super) struct Place(AtomicU64);

const WAITING: u64 = 0;
const SPARE: u64 = u64::MAX;

impl Place {
    /// The turn of the first attempt.
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

    /// Returns its turn, or `None` if that has not started.
    pub(super) fn turn(&self) -> Option<u64> {
        Some(self.0.load(Ordering::Relaxed)).filter(|turn| ![WAITING, SPARE].contains(turn))
    }

    pub(super) fn take_turn(&self, turn: u64) {
        self.0.store(turn, Ordering::Relaxed);
    }
}
