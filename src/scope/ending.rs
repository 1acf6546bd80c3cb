//! How the work in a scope ended.

/// How the work in a scope ended, for a tear-down that has to commit or roll back.
///
/// See [`Disposable::with_ending`](super::Disposable::with_ending). More kinds may be added.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Ending {
    /// The body of [`Scope::run`](crate::Scope::run) returned a value, [`Scope::close`](crate::Scope::close) was
    /// called, or the service inside the [`ContextLayer`](crate::context::ContextLayer) returned a response.
    Completed,
    /// The body or the service returned an error, or the scope could not be opened.
    Failed,
    /// The body panicked, or was dropped while its thread panicked.
    Panicked,
    /// The work was cut off: the body or the last handle of the scope was dropped, or a scope around it was closed.
    Cancelled,
}

/// The return type of the body of [`Scope::run`](crate::Scope::run): `()`, or a `Result<T, E>` that shows whether the
/// work failed.
#[diagnostic::on_unimplemented(
    message = "the body of a scope returns `()` or a `Result`, and this one returns `{Self}`",
    note = "a tear-down learns whether the work failed: if it cannot fail, return `Ok::<_, std::convert::Infallible>(value)`"
)]
pub trait Work {
    /// Returns how the work ended.
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

/// The type `!`, which has no other name in stable Rust.
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
