//! How far it has come: counts, batches, and the time that it took.

use std::{fmt, time::Duration};

use super::error::{Cause, ItemError};
use crate::clock::{self, Instant};

/// How far it has come, as told to [`on_progress`](super::Process::on_progress).
#[derive(Debug, Clone)]
pub struct Progress {
    counts: Summary,
    total: Option<usize>,
    batches: Option<Batches>,
    start: Instant,
}

/// Into what batches the items fall, and whether the next one waits for the end of the one before.
#[derive(Debug, Clone, Copy)]
pub(super) struct Batches {
    pub(super) size: usize,
    pub(super) barrier: bool,
}

impl Progress {
    /// It starts now. `total` is how many items there are, if that is known.
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

    /// The source has ended, after this many items. Answers whether a batch turns out to be complete that was not known to be the last one.
    pub(super) fn source_ended(&mut self, items: usize) -> bool {
        let knew = self.total.replace(items) == Some(items);
        !knew && self.finished() == items && self.batches.is_some_and(|batches| !items.is_multiple_of(batches.size))
    }

    /// How many items have ended, one way or the other.
    #[must_use]
    pub fn finished(&self) -> usize {
        self.counts.items()
    }

    /// How many items there are in all, if the source knows it.
    #[must_use]
    pub fn total(&self) -> Option<usize> {
        self.total
    }

    /// The batch that is complete with this item. None between two batches, and if there are no batches.
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

    /// The counts so far, and the time. Reads the clock.
    #[must_use]
    pub fn summary(&self) -> Summary {
        Summary { elapsed: clock::now().saturating_duration_since(self.start), ..self.counts }
    }
}

/// A batch of so many, as `batch 3 of 20`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct BatchProgress {
    /// Its number, from 1.
    pub number: usize,
    /// How many there are, if the source knows it.
    pub of: Option<usize>,
}

impl fmt::Display for BatchProgress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "batch {}", self.number)?;
        self.of.map_or(Ok(()), |of| write!(f, " of {of}"))
    }
}

/// How many items ended in which way, and how long it took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Summary {
    /// How many succeeded.
    pub ok: usize,
    /// How many failed with an error of their handler.
    pub failed: usize,
    /// How many were given up at their limit.
    pub timed_out: usize,
    /// How many panicked.
    pub panicked: usize,
    /// The time since the first poll.
    pub elapsed: Duration,
}

impl Summary {
    /// How many items have ended.
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
