//! Counts the calls in flight, and closes. Both are in one atomic word, so that a call that enters just before the
//! closing is counted, and one that comes just after it is not admitted.

#[cfg(all(test, ziggurat_loom))]
use loom::sync::atomic::{AtomicUsize, Ordering};
#[cfg(not(all(test, ziggurat_loom)))]
use std::sync::atomic::{AtomicUsize, Ordering};

const CLOSED: usize = 1 << (usize::BITS - 1);

/// The number of calls in flight, and whether it is closed to new ones.
pub(super) struct Count {
    word: AtomicUsize,
}

/// The result of [`Count::close`].
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Closing {
    /// Whether this was the first time.
    pub(super) is_first: bool,
    /// Whether there are no calls left to wait for.
    pub(super) is_empty: bool,
}

impl Count {
    pub(super) fn new() -> Self {
        Self { word: AtomicUsize::new(0) }
    }

    /// Counts a call. Returns whether it is admitted. A call that is not has to [`leave`](Self::leave) all the same.
    #[inline]
    pub(super) fn enter(&self) -> bool {
        self.word.fetch_add(1, Ordering::AcqRel) & CLOSED == 0
    }

    /// Counts a call out. Returns whether it was the last one, and no other can come.
    #[inline]
    pub(super) fn leave(&self) -> bool {
        self.word.fetch_sub(1, Ordering::AcqRel) == CLOSED | 1
    }

    pub(super) fn close(&self) -> Closing {
        let before = self.word.fetch_or(CLOSED, Ordering::AcqRel);
        Closing { is_first: before & CLOSED == 0, is_empty: before & !CLOSED == 0 }
    }

    #[inline]
    pub(super) fn is_closed(&self) -> bool {
        self.word.load(Ordering::Acquire) & CLOSED != 0
    }

    pub(super) fn in_flight(&self) -> usize {
        self.word.load(Ordering::Acquire) & !CLOSED
    }
}
