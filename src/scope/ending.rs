//! How the work in a scope ended.

/// How the work in a scope ended: what a tear-down is told that decides between a commit and a roll back, see
/// [`Disposable::with_ending`](super::Disposable::with_ending). More kinds may be added.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Ending {
    /// The body of [`Scope::run`](crate::Scope::run) returned a value, [`Scope::close`](crate::Scope::close) was
    /// called, or the [`ContextLayer`](crate::context::ContextLayer) had a response.
    Completed,
    /// The body returned an error, the service did, or the scope could not be opened.
    Failed,
    /// The body panicked, or was dropped while its thread panicked.
    Panicked,
    /// The work did not come to its end: the body was dropped, the last handle of the scope was, or a scope around it
    /// was closed.
    Cancelled,
}

/// What the body of [`Scope::run`](crate::Scope::run) returns: `()`, or a `Result<T, E>`, which says whether the work
/// failed.
#[diagnostic::on_unimplemented(
    message = "the body of a scope returns `()` or a `Result`, and this one returns `{Self}`",
    note = "a tear-down is told whether the work failed: if it cannot, return `Ok::<_, std::convert::Infallible>(value)`"
)]
pub trait Work {
    /// How the work ended that returned this.
    fn ending(&self) -> Ending;
}

impl Work for () {
    fn ending(&self) -> Ending {
        Ending::Completed
    }
}

impl<T, E> Work for Result<T, E> {
    fn ending(&self) -> Ending {
        if self.is_ok() { Ending::Completed } else { Ending::Failed }
    }
}

/// The type `!`, which stable Rust names in this way alone.
type Never = <fn() -> ! as Returns>::Output;

#[doc(hidden)]
pub trait Returns {
    type Output;
}

impl<T> Returns for fn() -> T {
    type Output = T;
}

impl Work for Never {
    fn ending(&self) -> Ending {
        *self
    }
}
