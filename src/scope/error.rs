//! What can go wrong while a scope is opened and closed. Every fault is kept: none replaces another.

use std::{
    any::Any,
    error::Error,
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use super::Scope;

pub(super) type BoxError = Box<dyn Error + Send + Sync>;

/// A scope did not open, or did not close cleanly. It keeps every [`ScopeFailure`], in the order in which they happened; never none.
///
/// Its [`source`](Error::source) is the error of the first one. A clone is the same error, so everybody who closes a scope hears it.
#[derive(Clone)]
pub struct ScopeError {
    /// The length of its path, with which those of all faults begin: many scopes may nest, and each has a long path.
    path_len: usize,
    faults: Arc<[ScopeFailure]>,
}

impl ScopeError {
    /// `None` if nothing is wrong. All faults are those of `scope` and of scopes within it.
    pub(super) fn of(scope: &Scope, faults: Vec<ScopeFailure>) -> Option<Self> {
        (!faults.is_empty()).then(|| Self { path_len: scope.inner.path_len, faults: faults.into() })
    }

    pub(super) fn one(scope: &Scope, kind: ScopeFailureKind) -> Self {
        Self { path_len: scope.inner.path_len, faults: [ScopeFailure::new(&scope.path(), kind)].into() }
    }

    /// The names from the outermost scope to the one that this is about, as `app/request`.
    #[must_use]
    pub fn scope(&self) -> &str {
        self.faults.first().and_then(|fault| fault.scope.get(..self.path_len)).unwrap_or_default()
    }

    /// All that went wrong, in this scope and in those within it that were closed with it; the first one first.
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

impl fmt::Debug for ScopeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ScopeError").field("scope", &self.scope()).field("faults", &self.faults).finish()
    }
}

impl Error for ScopeError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.faults.first().and_then(Error::source)
    }
}

/// One thing that went wrong in one scope. As an error its [`source`](Error::source) is that of the user's function, if there is one.
#[derive(Debug, Clone)]
pub struct ScopeFailure {
    scope: Arc<str>,
    kind: ScopeFailureKind,
}

impl ScopeFailure {
    pub(super) fn new(scope: &str, kind: ScopeFailureKind) -> Self {
        Self { scope: scope.into(), kind }
    }

    /// The scope that it happened in, as `app/request`.
    #[must_use]
    pub fn scope(&self) -> &str {
        &self.scope
    }

    /// What went wrong.
    #[must_use]
    pub fn kind(&self) -> &ScopeFailureKind {
        &self.kind
    }
}

/// What went wrong while a scope was opened or closed. More kinds may be added.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum ScopeFailureKind {
    /// A value was not set up: its error, or a [`Panic`].
    SetUp {
        /// The value's type.
        type_name: &'static str,
        /// What its function answered.
        error: Arc<dyn Error + Send + Sync>,
    },
    /// A value was not torn down: its error, or a [`Panic`].
    TearDown {
        /// The value's type.
        type_name: &'static str,
        /// What its function answered.
        error: Arc<dyn Error + Send + Sync>,
    },
    /// The scope was closed before it was open.
    Closed,
    /// There is no tokio runtime, or it was shut down meanwhile. What was not torn down is told by
    /// [`NotTornDown`](Self::NotTornDown).
    NoRuntime,
    /// A value was not torn down to the end, because no tokio runtime is left: it was only dropped.
    NotTornDown {
        /// The value's type.
        type_name: &'static str,
    },
    /// A tear-down awaited the closing that awaits the tear-down. The closing itself goes on.
    AwaitsItself,
    /// A tear-down awaited the closing of this scope for the whole grace period of its own. The closing itself goes on.
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
    // Never locked: it makes the error `Sync`.
    payload: Mutex<Box<dyn Any + Send>>,
}

impl Panic {
    pub(super) fn new(payload: Box<dyn Any + Send>) -> Self {
        let message = payload.downcast_ref::<&str>().map(|message| (*message).to_owned());
        let message = message.or_else(|| payload.downcast_ref::<String>().cloned());
        Self { message: message.unwrap_or_else(|| "no message".to_owned()), payload: Mutex::new(payload) }
    }

    /// What it panicked with, if that was a text.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.message
    }

    /// Panics with what was panicked with. The panic hook, which has heard of it already, is not called again.
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
