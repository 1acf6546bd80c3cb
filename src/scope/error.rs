//! Errors of opening and closing a scope. Every failure is kept: none replaces another.

use std::{
    any::Any,
    error::Error,
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use super::Scope;

use crate::{caught::message, debug::impl_debug};

pub(super) type BoxError = Box<dyn Error + Send + Sync>;

/// A scope did not open, or did not close cleanly.
///
/// It holds every [`ScopeFailure`], at least one, in the order in which they happened. Its [`source`](Error::source) is
/// the error of the first. A clone is the same error, so that every caller that closes a scope receives it.
#[derive(Clone)]
pub struct ScopeError {
    /// The length of the path of the scope. The paths of all failures begin with it, so it is not stored again: scopes
    /// may nest deeply, and each has a long path.
    path_len: usize,
    faults: Arc<[ScopeFailure]>,
}

impl ScopeError {
    /// Returns the error of `scope`, or `None` without failures. All failures are of `scope` and of scopes inside it.
    pub(super) fn of(scope: &Scope, faults: Vec<ScopeFailure>) -> Option<Self> {
        (!faults.is_empty()).then(|| Self { path_len: scope.inner.path_len, faults: faults.into() })
    }

    pub(super) fn one(scope: &Scope, kind: ScopeFailureKind) -> Self {
        Self { path_len: scope.inner.path_len, faults: [ScopeFailure::new(&scope.path(), kind)].into() }
    }

    /// The names from the outermost scope to the one that failed, such as `app/request`.
    #[must_use]
    pub fn scope(&self) -> &str {
        self.faults.first().and_then(|fault| fault.scope.get(..self.path_len)).unwrap_or_default()
    }

    /// All failures, of this scope and of those inside it that were closed with it, in order.
    #[must_use]
    pub fn faults(&self) -> &[ScopeFailure] {
        &self.faults
    }
}

impl fmt::Display for ScopeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, fault) in self.faults.iter().enumerate() {
            write!(f, "{}{fault}", if index == 0 { "" } else { "; " })?;
        }
        Ok(())
    }
}

impl_debug!(ScopeError { scope = |this| this.scope(), faults });

impl Error for ScopeError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.faults.first().and_then(Error::source)
    }
}

/// A failure in one scope. Its [`source`](Error::source) is that of the error that the set-up or tear-down returned.
#[derive(Debug, Clone)]
pub struct ScopeFailure {
    scope: Arc<str>,
    kind: ScopeFailureKind,
}

impl ScopeFailure {
    pub(super) fn new(scope: &str, kind: ScopeFailureKind) -> Self {
        Self { scope: scope.into(), kind }
    }

    /// The path of the scope that failed, such as `app/request`.
    #[must_use]
    pub fn scope(&self) -> &str {
        &self.scope
    }

    /// The kind of failure.
    #[must_use]
    pub fn kind(&self) -> &ScopeFailureKind {
        &self.kind
    }
}

/// The kinds of failure when a scope is opened or closed. More kinds may be added.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum ScopeFailureKind {
    /// A value was not set up, because of an error or a [`Panic`].
    SetUp {
        /// The value's type.
        type_name: &'static str,
        /// The error of the set-up.
        error: Arc<dyn Error + Send + Sync>,
    },
    /// A value was not torn down, because of an error or a [`Panic`].
    TearDown {
        /// The value's type.
        type_name: &'static str,
        /// The error of the tear-down.
        error: Arc<dyn Error + Send + Sync>,
    },
    /// The scope was closed before it was open.
    Closed,
    /// There is no tokio runtime, or it was shut down meanwhile. [`NotTornDown`](Self::NotTornDown) reports each value
    /// that was not torn down.
    NoRuntime,
    /// The tear-down of a value did not complete, because no tokio runtime is left. The value was dropped.
    NotTornDown {
        /// The value's type.
        type_name: &'static str,
    },
    /// A tear-down awaited the closing that awaits this tear-down. The closing itself goes on.
    AwaitsItself,
    /// A tear-down awaited the closing of this scope for the whole grace period of its own scope. The closing itself
    /// goes on.
    NotInTime,
}

impl ScopeFailureKind {
    pub(super) fn set_up(type_name: &'static str, error: BoxError) -> Self {
        Self::SetUp { type_name, error: error.into() }
    }

    pub(super) fn tear_down(type_name: &'static str, error: BoxError) -> Self {
        Self::TearDown { type_name, error: error.into() }
    }
}

impl fmt::Display for ScopeFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scope = &self.scope;
        match &self.kind {
            ScopeFailureKind::SetUp { type_name, error } => {
                write!(f, "the scope `{scope}` could not set up `{type_name}`: {error}")
            }
            ScopeFailureKind::TearDown { type_name, error } => {
                write!(f, "the scope `{scope}` could not tear down `{type_name}`: {error}")
            }
            ScopeFailureKind::Closed => write!(f, "the scope `{scope}` is closed"),
            ScopeFailureKind::NoRuntime => write!(f, "the scope `{scope}` has no tokio runtime to open or close in"),
            ScopeFailureKind::AwaitsItself => {
                write!(f, "a tear-down in the scope `{scope}` awaits the closing that awaits it")
            }
            ScopeFailureKind::NotTornDown { type_name } => {
                write!(f, "the scope `{scope}` has no tokio runtime to tear down `{type_name}` in: it was only dropped")
            }
            ScopeFailureKind::NotInTime => {
                write!(f, "the scope `{scope}` was not closed in the grace period of a tear-down that awaits it")
            }
        }
    }
}

impl Error for ScopeFailure {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match &self.kind {
            ScopeFailureKind::SetUp { error, .. } | ScopeFailureKind::TearDown { error, .. } => Some(&**error),
            ScopeFailureKind::Closed
            | ScopeFailureKind::NoRuntime
            | ScopeFailureKind::NotTornDown { .. }
            | ScopeFailureKind::AwaitsItself
            | ScopeFailureKind::NotInTime => None,
        }
    }
}

/// A panic, as the error of the task or function that panicked.
pub struct Panic {
    message: String,
    // Never locked: the mutex makes the error `Sync`.
    payload: Mutex<Box<dyn Any + Send>>,
}

impl Panic {
    pub(super) fn new(payload: Box<dyn Any + Send>) -> Self {
        let message = message(&*payload);
        Self { message: message.unwrap_or_else(|| "no message".to_owned()), payload: Mutex::new(payload) }
    }

    /// The message of the panic, if its payload was a string.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.message
    }

    /// Resumes the panic with its payload. The panic hook is not called again.
    ///
    /// # Panics
    ///
    /// Always.
    pub fn resume(self) -> ! {
        std::panic::resume_unwind(self.payload.into_inner().unwrap_or_else(PoisonError::into_inner))
    }
}

impl fmt::Display for Panic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "panicked: {}", self.message)
    }
}

impl fmt::Debug for Panic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Panic").field(&self.message).finish()
    }
}

impl Error for Panic {}
