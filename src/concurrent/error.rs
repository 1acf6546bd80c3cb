//! The error of an item that failed.

use std::{any::Any, error::Error, fmt, time::Duration};

use crate::{caught, outcome::known};

/// The error of an item: its index, and the cause.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ItemError<E> {
    /// The index of the item in the source, from 0.
    pub index: usize,
    /// Why the item failed.
    pub cause: Cause<E>,
}

/// Why an item failed.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Cause<E> {
    /// The handler returned this error.
    Failed(E),
    /// The item did not complete within its limit.
    TimedOut {
        /// The limit that passed.
        limit: Duration,
    },
    /// The surrounding deadline passed before the item's own limit.
    DeadlineExceeded {
        /// The time that the item had until then.
        after: Duration,
    },
    /// The handler or its future panicked.
    Panicked {
        /// The message of the panic.
        message: String,
    },
}

impl<E> Cause<E> {
    pub(super) fn panicked(panic: Box<dyn Any + Send>) -> Self {
        Self::Panicked { message: caught::text(panic).unwrap_or_else(|| "no message".to_owned()) }
    }
}

impl<E> ItemError<E> {
    /// The original error, if the handler returned one.
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
            Cause::TimedOut { limit } => write!(f, "item {index} timed out after {limit:?}"),
            Cause::DeadlineExceeded { after } => write!(f, "the deadline passed {after:?} after item {index} began"),
            Cause::Panicked { message } => write!(f, "item {index} panicked: {message}"),
        }
    }
}

/// For any error that can be shown, also for one that is not an [`Error`] itself, such as a
/// `Box<dyn Error + Send + Sync>`. So `?` works in a function that returns a boxed error.
///
/// The source is the original error if its type is known: a boxed error, an `io::Error`, an error of a crate that this
/// crate has a feature for, or a [`ziggurat::Error`](crate::Error) of any of these. For another type it is the
/// [`Cause`], which shows the original error's message, but not the causes of that error.
impl<E: fmt::Debug + fmt::Display + 'static> Error for ItemError<E> {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        let error = self.error()?;
        Some(known(error).unwrap_or(&self.cause))
    }
}

impl<E: fmt::Display> fmt::Display for Cause<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Failed(error) => error.fmt(f),
            Self::TimedOut { limit } => write!(f, "timed out after {limit:?}"),
            Self::DeadlineExceeded { after } => write!(f, "the deadline passed after {after:?}"),
            Self::Panicked { message } => write!(f, "panicked: {message}"),
        }
    }
}

impl<E: fmt::Debug + fmt::Display + 'static> Error for Cause<E> {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Failed(error) => known(error).and_then(Error::source),
            _ => None,
        }
    }
}

/// The output of a handler's future: a `Result`.
#[diagnostic::on_unimplemented(
    message = "a handler of `process_concurrently` returns a future of a `Result`, not of `{Self}`",
    note = "return `Ok(value)`, and `Ok::<_, std::convert::Infallible>(value)` if the handler cannot fail"
)]
#[doc(hidden)] // `Result`, with a message of its own in compile errors
pub trait ItemResult {
    /// The value of an item.
    type Value;
    /// The error of an item.
    type Error;
}

impl<T, E> ItemResult for Result<T, E> {
    type Value = T;
    type Error = E;
}

/// Separates successes and failures, each in their original order.
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
