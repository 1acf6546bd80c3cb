//! Runs a piece of work in a scope of its own.

use std::{error::Error, fmt, future::Future};

use super::{Opening, Scope, ScopeError, WithScope, closing::CloseOnDrop, ending::Work};
use crate::outcome::known;

impl Scope {
    /// Runs `body` in this scope, and closes the scope: see [`Opening::run`].
    ///
    /// # Errors
    ///
    /// If the scope is closed already. `body` is not called then.
    pub async fn run<F>(self, body: impl FnOnce(Self) -> F) -> Result<Ran<F::Output>, ScopeError>
    where
        F: Future<Output: Work>,
    {
        Opening::nothing(self).run(body).await
    }
}

impl Opening {
    /// Opens the scope, runs `body` in it, and closes the scope, whether or not `body` succeeds.
    ///
    /// `body` returns `()` or a `Result`, which decides the [`Ending`](super::Ending) that
    /// [tear-downs](super::Disposable::with_ending) receive.
    ///
    /// If this future is dropped, or `body` panics, the scope is closed on a task. [`Scope::close`] then waits for
    /// that.
    ///
    /// ```
    /// use ziggurat::Scope;
    ///
    /// # #[tokio::main(flavor = "current_thread")] async fn main() {
    /// let ran = Scope::root("batch")
    ///     .run(async |scope: Scope| scope.spawn(async { 7 }).await)
    ///     .await
    ///     .unwrap();
    /// let (output, closed) = ran.into_parts();
    /// assert_eq!(output.unwrap(), 7);
    /// assert!(closed.is_ok());
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// If the scope could not be opened. `body` was not called then, and the values that were set up are torn down.
    pub async fn run<F>(self, body: impl FnOnce(Scope) -> F) -> Result<Ran<F::Output>, ScopeError>
    where
        F: Future<Output: Work>,
    {
        let scope = self.open().await?;
        let mut unless_done = CloseOnDrop::new(&scope);
        let output = WithScope::start(scope.clone(), || body(scope.clone())).await;
        unless_done.defuse();
        if let Some(owned) = scope.owned() {
            owned.ended(output.ending());
        }
        let closed = scope.close().await;
        Ok(Ran { output, closed })
    }
}

/// The output of the work in a scope, together with the result of closing the scope.
#[derive(Debug)]
#[must_use = "the work, or the closing of its scope, may have failed"]
pub struct Ran<T> {
    pub(super) output: T,
    pub(super) closed: Result<(), ScopeError>,
}

impl<T> Ran<T> {
    /// Returns the output of the work, and the result of closing the scope.
    pub fn into_parts(self) -> (T, Result<(), ScopeError>) {
        (self.output, self.closed)
    }
}

impl<T, E> Ran<Result<T, E>> {
    /// Returns the value of the work, if nothing failed.
    ///
    /// # Errors
    ///
    /// If the work or the closing failed. If only the closing failed, the value is lost;
    /// [`into_parts`](Ran::into_parts) keeps it.
    pub fn into_result(self) -> Result<T, RunError<E>> {
        match (self.output, self.closed) {
            (Ok(output), Ok(())) => Ok(output),
            (Err(error), Ok(())) => Err(RunError::Body(error)),
            (Ok(_), Err(closing)) => Err(RunError::Closing(closing)),
            (Err(body), Err(closing)) => Err(RunError::Both { body, closing }),
        }
    }
}

/// The work in a scope failed, or its closing, or both: see [`Ran::into_result`].
#[derive(Debug)]
pub enum RunError<E> {
    /// The work failed, and the scope closed cleanly.
    Body(E),
    /// The work succeeded, and the closing failed.
    Closing(ScopeError),
    /// Both failed.
    Both {
        /// The error of the work, which came first.
        body: E,
        /// The failures of the closing.
        closing: ScopeError,
    },
}

impl<E: fmt::Display> fmt::Display for RunError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Body(body) => body.fmt(f),
            Self::Closing(closing) => closing.fmt(f),
            Self::Both { body, closing } => write!(f, "{body}; afterwards: {closing}"),
        }
    }
}

/// For any error that can be shown, also for one that is not an [`Error`] itself, such as a
/// `Box<dyn Error + Send + Sync>`. So `?` works in a function that returns a boxed error.
///
/// The source is the error of the work if its type is known: a boxed error, an `io::Error`, an error of a crate that
/// this crate has a feature for, or a [`ziggurat::Error`](crate::Error) of any of these. An error of another type has
/// its message in the message of this one, and no source.
impl<E: fmt::Debug + fmt::Display + 'static> Error for RunError<E> {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Body(body) | Self::Both { body, .. } => known(body),
            Self::Closing(closing) => Some(closing),
        }
    }
}
