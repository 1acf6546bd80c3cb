//! A call's loan: the handle, its use, and the lease that ends with the call.

use std::{
    any::{Any, type_name},
    error::Error,
    fmt, mem,
    ops::{Deref, DerefMut},
    pin::Pin,
    sync::Arc,
    task::Context,
};

use http_body::Body;

use crate::{
    ambient::{self, Entered, slot},
    body::{Guard, PollFrame},
    debug::impl_debug,
    mutex::Mutex,
};

/// Returns the resource of type `T` that was lent to the current call, by the nearest
/// [`ResourceLayer`](super::ResourceLayer) that lends such a resource.
///
/// It works in the service inside, in every layer between, and while the call is dropped. With
/// [`until_body_end`](super::ResourceLayer::until_body_end), it also works in the response's body. Pass the handle to
/// spawned tasks explicitly.
///
/// # Errors
///
/// Returns an error if no layer around the caller lends a `T`.
pub fn current<T: Send + 'static>() -> Result<Lent<T>, Unavailable> {
    let Surroundings(mut next) = ambient::get();
    while let Some(link) = next {
        next = link.outer();
        if let Ok(loan) = link.into_any().downcast() {
            return Ok(Lent { loan });
        }
    }
    Err(Unavailable { resource: type_name::<T>(), why: Why::Missing })
}

/// A handle to the resource that was lent to a call. Clones refer to the same resource.
///
/// It may be kept and passed on, for example to a spawned task. Once the call is over, [`get`](Self::get) returns an
/// error.
pub struct Lent<T> {
    loan: Arc<Loan<T>>,
}

impl<T> Lent<T> {
    /// Returns the resource for exclusive use until the [`Held`] is dropped. It never waits, so it cannot deadlock.
    ///
    /// # Errors
    ///
    /// Returns an error if the resource is in use, was taken out, or if the call is over.
    pub fn get(&self) -> Result<Held<T>, Unavailable> {
        match self.loan.update(State::hold) {
            Ok(resource) => Ok(Held { resource: Some(resource), loan: Arc::clone(&self.loan) }),
            Err(why) => Err(Unavailable { resource: type_name::<T>(), why }),
        }
    }
}

impl<T> Clone for Lent<T> {
    fn clone(&self) -> Self {
        Self { loan: Arc::clone(&self.loan) }
    }
}

impl_debug!(Lent<T>(T));

/// A resource in use. It derefs to `&mut T` for as long as it lives, across awaits and on other threads.
///
/// On drop, the resource returns to the call. If the call has ended in the meantime, the resource is dropped, which
/// returns it to the pool. It is not lent again before, so pass this to work that cannot be stopped
/// (`spawn_blocking`).
pub struct Held<T> {
    // None: the resource was taken out, and this is being dropped.
    resource: Option<T>,
    loan: Arc<Loan<T>>,
}

impl<T> Held<T> {
    /// Takes the resource out of the call permanently and returns it. The layer does not replace it.
    #[must_use]
    pub fn into_inner(mut self) -> T {
        let Some(resource) = self.resource.take() else { taken() };
        self.loan.update(State::take);
        resource
    }
}

#[cfg(feature = "deadpool")]
#[cfg_attr(docsrs, doc(cfg(feature = "deadpool")))]
impl<M: deadpool::managed::Manager> Held<deadpool::managed::Object<M>> {
    /// Removes a broken resource from its pool and drops it. The pool creates another one in its place.
    pub fn discard(self) {
        drop(deadpool::managed::Object::take(self.into_inner()));
    }
}

impl<T> Deref for Held<T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.resource.as_ref().unwrap_or_else(|| taken())
    }
}

impl<T> DerefMut for Held<T> {
    fn deref_mut(&mut self) -> &mut T {
        self.resource.as_mut().unwrap_or_else(|| taken())
    }
}

fn taken() -> ! {
    unreachable!("`into_inner` consumes this value")
}

impl<T> Drop for Held<T> {
    fn drop(&mut self) {
        if let Some(resource) = self.resource.take() {
            // The call is over: the resource is dropped here, not under the lock.
            drop(self.loan.update(|state| state.put_back(resource)));
        }
    }
}

// Without `T: Debug`, so that a `Result` with a `Held` can be unwrapped.
impl_debug!(Held<T>(T));

/// The error of a resource that is not available, with the cause.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unavailable {
    resource: &'static str,
    why: Why,
}

/// Why a resource is not available.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Why {
    /// No layer around the caller lends a resource of this type.
    Missing,
    /// The resource is already in use in the same call.
    InUse,
    /// The resource was taken out of the call.
    Taken,
    /// The call that the resource was lent to is over.
    Over,
}

impl Unavailable {
    /// Returns the cause.
    #[must_use]
    pub fn why(&self) -> Why {
        self.why
    }
}

impl fmt::Display for Unavailable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the resource `{}` is not available: ", self.resource)?;
        f.write_str(match self.why {
            Why::Missing => "no `ResourceLayer` around this call lends it",
            Why::InUse => "it is already in use in this call, so drop the other `Held` first",
            Why::Taken => "it was taken out of this call",
            Why::Over => "the call that it was lent to is over",
        })
    }
}

impl Error for Unavailable {}

/// The whereabouts of a call's resource.
enum State<T> {
    Free(T),
    InUse,
    Taken,
    Over,
}

impl<T> State<T> {
    fn hold(&mut self) -> Result<T, Why> {
        match mem::replace(self, Self::InUse) {
            Self::Free(resource) => Ok(resource),
            Self::InUse => Err(Why::InUse),
            Self::Taken => {
                *self = Self::Taken;
                Err(Why::Taken)
            }
            Self::Over => {
                *self = Self::Over;
                Err(Why::Over)
            }
        }
    }

    /// Returns the resource to the call. If the call is over, hands the resource back to the caller.
    fn put_back(&mut self, resource: T) -> Option<T> {
        match self {
            Self::InUse => {
                *self = Self::Free(resource);
                None
            }
            _ => Some(resource),
        }
    }

    fn take(&mut self) {
        if matches!(self, Self::InUse) {
            *self = Self::Taken;
        }
    }

    /// Ends the call, and returns the previous state with its free resource, if any.
    fn end(&mut self) -> Self {
        mem::replace(self, Self::Over)
    }
}

/// A resource that is lent to a call.
struct Loan<T> {
    state: Mutex<State<T>>,
    outer: Surroundings,
}

impl<T> Loan<T> {
    /// `change` must not run user code.
    fn update<R>(&self, change: impl FnOnce(&mut State<T>) -> R) -> R {
        change(&mut self.state.lock())
    }
}

/// A [`Loan`] of any type, as a link in the chain of surrounding loans.
trait Link: Send + Sync {
    fn end(&self);
    fn outer(&self) -> Option<Arc<dyn Link>>;
    fn into_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync>;
}

impl<T: Send + 'static> Link for Loan<T> {
    fn end(&self) {
        // Dropped after the lock is released.
        drop(self.update(State::end));
    }

    fn outer(&self) -> Option<Arc<dyn Link>> {
        self.outer.0.clone()
    }

    fn into_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync> {
        self
    }
}

/// The loans of the surrounding calls, innermost first.
#[derive(Clone, Default)]
pub(super) struct Surroundings(Option<Arc<dyn Link>>);

slot!(Surroundings, Surroundings(None));

/// A call's lease of its resource. Dropping it ends the loan, even if handles still exist.
#[doc(hidden)] // machinery that is public only because it is part of a public type
pub struct Lease(Surroundings);

impl Lease {
    pub(super) fn new<T: Send + 'static>(resource: T) -> Self {
        let loan = Loan { state: Mutex::new(State::Free(resource)), outer: ambient::get() };
        Self(Surroundings(Some(Arc::new(loan))))
    }

    /// While the guard lives, [`current`] finds the resource.
    pub(super) fn enter(&mut self) -> Entered<'_, Surroundings> {
        ambient::enter(&mut self.0)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(link) = self.0.0.take() {
            link.end();
        }
    }
}

/// Passes the body through with the resource current. The resource is returned after the body is dropped.
impl<B: Body> Guard<B> for Lease {
    type Error = B::Error;

    fn poll_frame(&mut self, body: Pin<&mut B>, cx: &mut Context<'_>) -> PollFrame<B::Data, B::Error> {
        let _entered = self.enter();
        body.poll_frame(cx)
    }

    fn drop_body(&mut self, drop: impl FnOnce()) {
        let _entered = self.enter();
        drop();
    }
}

impl_debug!(Lease { .. });

#[cfg(test)]
mod tests;
