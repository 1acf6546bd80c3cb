//! What a call has been lent: the handle, its use, and the lease that ends with the call.

use std::{
    any::{Any, type_name},
    error::Error,
    fmt, mem,
    ops::{Deref, DerefMut},
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::Context,
};

use http_body::Body;

use crate::{
    ambient::{self, Entered, slot},
    body::{Guard, PollFrame},
};

/// The resource of this type that the call which the caller runs in was lent, by the nearest [`ResourceLayer`](super::ResourceLayer)
/// that lends one.
///
/// It answers in the service inside, in every layer between, and while the call is dropped; with
/// [`until_body_end`](super::ResourceLayer::until_body_end) in the response's body too. A spawned task has to be given the handle.
///
/// # Errors
///
/// If no layer around the caller lends a `T`.
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

/// A handle to the resource that a call was lent. A clone is another one to the same.
///
/// It may be kept and passed on, to a spawned task say: once the call is over it is empty, and says so.
pub struct Lent<T> {
    loan: Arc<Loan<T>>,
}

impl<T> Lent<T> {
    /// The resource, for exclusive use until the [`Held`] is dropped. It never waits: there is nothing to deadlock.
    ///
    /// # Errors
    ///
    /// If it is in use already, was taken out, or if the call is over.
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

impl<T> fmt::Debug for Lent<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Lent").field(&type_name::<T>()).finish()
    }
}

/// A resource in use: it is a `&mut T` for as long as this lives, across awaits and on other threads too.
///
/// Afterwards it is the call's again; if the call has ended meanwhile, it is dropped, which gives it back to the pool. Nobody else
/// gets it before that, so work that cannot be stopped (`spawn_blocking`) takes this with it.
pub struct Held<T> {
    // None: it was taken out, and this is being dropped.
    resource: Option<T>,
    loan: Arc<Loan<T>>,
}

impl<T> Held<T> {
    /// Takes the resource out of the call for good; what becomes of it is up to you. The layer does not replace it.
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
    /// Takes a broken resource out of its pool and drops it: the pool makes another one in its place.
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
    unreachable!("who takes the resource out has this by value")
}

impl<T> Drop for Held<T> {
    fn drop(&mut self) {
        if let Some(resource) = self.resource.take() {
            // Not the call's any more: dropped here, and not under the lock.
            drop(self.loan.update(|state| state.put_back(resource)));
        }
    }
}

// No `T: Debug` asked: an error beside it can be unwrapped.
impl<T> fmt::Debug for Held<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Held").field(&type_name::<T>()).finish()
    }
}

/// There is no resource to be had, and why.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unavailable {
    resource: &'static str,
    why: Why,
}

/// Why there is no resource to be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Why {
    /// No layer around the caller lends one of this type.
    Missing,
    /// It is in use already, in the same call.
    InUse,
    /// Somebody took it out of the call.
    Taken,
    /// The call that it was lent to is over.
    Over,
}

impl Unavailable {
    /// Why.
    #[must_use]
    pub fn why(&self) -> Why {
        self.why
    }
}

impl fmt::Display for Unavailable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "there is no `{}` to use: ", self.resource)?;
        f.write_str(match self.why {
            Why::Missing => "no `ResourceLayer` around this call lends one",
            Why::InUse => "it is in use already in this call, so drop what holds it first",
            Why::Taken => "it was taken out of this call",
            Why::Over => "the call that it was lent to is over",
        })
    }
}

impl Error for Unavailable {}

/// Where a call's resource is.
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

    /// Gives the resource to the call again; if that is over, it comes back out.
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

    /// The call is over: what was free is nobody's now.
    fn end(&mut self) -> Self {
        mem::replace(self, Self::Over)
    }
}

/// One resource, lent to one call.
struct Loan<T> {
    state: Mutex<State<T>>,
    outer: Surroundings,
}

impl<T> Loan<T> {
    /// No code of a user's runs in `change`.
    fn update<R>(&self, change: impl FnOnce(&mut State<T>) -> R) -> R {
        change(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// A [`Loan`] of any type, and so one in a chain.
trait Link: Send + Sync {
    fn end(&self);
    fn outer(&self) -> Option<Arc<dyn Link>>;
    fn into_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync>;
}

impl<T: Send + 'static> Link for Loan<T> {
    fn end(&self) {
        // Dropped after the lock.
        drop(self.update(State::end));
    }

    fn outer(&self) -> Option<Arc<dyn Link>> {
        self.outer.0.clone()
    }

    fn into_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync> {
        self
    }
}

/// What the calls that surround the caller were lent, from the inside out.
#[derive(Clone, Default)]
pub(super) struct Surroundings(Option<Arc<dyn Link>>);

slot!(Surroundings, Surroundings(None));

/// A call's right to what it was lent. It ends when this is dropped, whoever still has a handle.
pub struct Lease(Surroundings);

impl Lease {
    pub(super) fn new<T: Send + 'static>(resource: T) -> Self {
        let loan = Loan { state: Mutex::new(State::Free(resource)), outer: ambient::get() };
        Self(Surroundings(Some(Arc::new(loan))))
    }

    /// As long as the guard lives, [`current`] finds the resource.
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

/// The body is passed on as it is, where the resource is found; that is given back after it.
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

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lease").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
