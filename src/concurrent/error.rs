//! What becomes of an item that failed.

use std::{any::Any, error::Error, fmt, time::Duration};

use crate::caught;

/// An item that failed: which one, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ItemError<E> {
    /// Its place in the source, from 0.
    pub index: usize,
    /// Why it failed.
    pub cause: Cause<E>,
}

/// Why an item failed.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Cause<E> {
    /// Its handler failed: the original error.
    Failed(E),
    /// It was given up at its limit.
    TimedOut {
        /// The limit that was exceeded.
        limit: Duration,
    },
    /// The deadline that surrounds the whole work passed before the item's own limit.
    DeadlineExceeded {
        /// How long the item had until then.
        after: Duration,
    },
    /// Its handler panicked.
    Panicked {
        /// The message of the panic.
        message: String,
    },
}

impl<E> Cause<E> {
    pub(super) fn panicked(panic: Box<dyn Any + Send>) -> Self {
        Self::Panicked { message: caught::text(panic).unwrap_or_else(|| "it said nothing".to_owned()) }
    }
}

impl<E> ItemError<E> {
    /// The original error, if it is the handler's.
    #[must_use]
    pub fn error(&self) -> Option<&E> {
        match &self.cause {
            Cause::Failed(error) => Some(error),
            _ => None,
        }
    }
}

/// The original error is the source, so its message is not repeated here.
impl<E> fmt::Display for ItemError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let index = self.index;
        match &self.cause {
            Cause::Failed(_) => write!(f, "item {index} failed"),
            Cause::TimedOut { limit } => write!(f, "item {index} was not done within {limit:?}"),
            Cause::DeadlineExceeded { after } => write!(f, "the deadline passed {after:?} after item {index} began"),
            Cause::Panicked { message } => write!(f, "item {index} panicked: {message}"),
        }
    }
}

impl<E: Error + 'static> Error for ItemError<E> {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.error().map(|error| error as _)
    }
}

/// Successes and failures apart, each in the order that they had.
///
/// ```
/// use ziggurat::concurrent::{Cause, ItemError, split};
///
/// let failed = ItemError { index: 1, cause: Cause::Failed("bad") };
/// assert_eq!(split([Ok(10), Err(failed.clone()), Ok(30)]), (vec![10, 30], vec![failed]));
/// ```
pub fn split<T, E>(results: impl IntoIterator<Item = Result<T, ItemError<E>>>) -> (Vec<T>, Vec<ItemError<E>>) {
    let (mut done, mut failed) = (Vec::new(), Vec::new());
    for result in results {
        match result {
            Ok(value) => done.push(value),
            Err(error) => failed.push(error),
        }
    }
    (done, failed)
}
