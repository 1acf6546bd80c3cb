//! The progress of a run: counts, batches and elapsed time.

use std::{fmt, time::Duration};

use super::error::{Cause, ItemError};
use crate::clock::{self, Instant};

/// The progress of a run, as passed to [`on_progress`](super::Process::on_progress).
#[derive(Debug, Clone)]
pub struct Progress {
    counts: Summary,
    total: Option<usize>,
    batches: Option<Batches>,
    start: Instant,
}

/// The size of batches, and whether each waits for the end of the one before.
#[derive(Debug, Clone, Copy)]
pub(super) struct Batches {
    pub(super) size: usize,
    pub(super) barrier: bool,
}

impl Progress {
    /// Starts the clock. `total` is the number of items, if it is known.
    pub(super) fn start(total: Option<usize>, batches: Option<Batches>) -> Self {
        Self { counts: Summary::default(), total, batches, start: clock::now() }
    }

    pub(super) fn count<T, E>(&mut self, outcome: &Result<T, ItemError<E>>) {
        let count = match outcome {
            Ok(_) => &mut self.counts.ok,
            Err(ItemError { cause: Cause::Failed(_), .. }) => &mut self.counts.failed,
            Err(ItemError { cause: Cause::TimedOut { .. } | Cause::DeadlineExceeded { .. }, .. }) => {
                &mut self.counts.timed_out
            }
            Err(ItemError { cause: Cause::Panicked { .. }, .. }) => &mut self.counts.panicked,
        };
        *count += 1;
    }

    /// Records that the source has ended after `items` items. Returns whether that completes a batch that was not known
    /// to be the last.
    pub(super) fn source_ended(&mut self, items: usize) -> bool {
        let knew = self.total.replace(items) == Some(items);
        !knew && self.finished() == items && self.batches.is_some_and(|batches| !items.is_multiple_of(batches.size))
    }

    /// The number of items that have ended, successfully or not.
    #[must_use]
    pub fn finished(&self) -> usize {
        self.counts.items()
    }

    /// The total number of items, if the source knows it.
    #[must_use]
    pub fn total(&self) -> Option<usize> {
        self.total
    }

    /// The batch that this item completes. `None` between two batches, and without batches.
    #[must_use]
    pub fn batch(&self) -> Option<BatchProgress> {
        let Batches { size, .. } = self.batches?;
        let finished = self.finished();
        let complete = finished > 0 && (finished.is_multiple_of(size) || self.total == Some(finished));
        complete.then(|| BatchProgress {
            number: finished.div_ceil(size),
            of: self.total.map(|total| total.div_ceil(size)),
        })
    }

    /// The counts so far, and the elapsed time. Reads the clock.
    #[must_use]
    pub fn summary(&self) -> Summary {
        Summary { elapsed: clock::now().saturating_duration_since(self.start), ..self.counts }
    }
}

/// A complete batch, which displays as `batch 3 of 20`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct BatchProgress {
    /// The number of the batch, from 1.
    pub number: usize,
    /// The number of batches, if the source knows its length.
    pub of: Option<usize>,
}

impl fmt::Display for BatchProgress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "batch {}", self.number)?;
        self.of.map_or(Ok(()), |of| write!(f, " of {of}"))
    }
}

/// The number of items that ended in each way, and the elapsed time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Summary {
    /// The number of items that succeeded.
    pub ok: usize,
    /// The number of items whose handler returned an error.
    pub failed: usize,
    /// The number of items that timed out.
    pub timed_out: usize,
    /// The number of items that panicked.
    pub panicked: usize,
    /// The time since the first poll.
    pub elapsed: Duration,
}

impl Summary {
    /// The number of items that have ended.
    #[must_use]
    pub fn items(&self) -> usize {
        self.ok + self.failed + self.timed_out + self.panicked
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { ok, failed, timed_out, panicked, elapsed } = self;
        write!(f, "{ok} ok, {failed} failed, {timed_out} timed out, {panicked} panicked in {elapsed:?}")
    }
}
