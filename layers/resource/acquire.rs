//! The sources of a call's resource: a function, or a deadpool pool.

use std::{
    fmt,
    future::{Future, Ready},
    pin::Pin,
    task::{Context, Poll},
};

use pin_project_lite::pin_project;

use crate::{debug::impl_debug, outcome::Reason};

/// Acquires the resource of a request. Implemented by the types that the constructors of
/// [`ResourceLayer`](super::ResourceLayer) create.
#[diagnostic::on_unimplemented(
    message = "this does not acquire a resource for a request of type `{Req}`",
    note = "`ResourceLayer::new(|| ..)` takes a function that returns a future of a `Result<T, E>`, where `T: Send + 'static` and `E: Display`",
    note = "`ResourceLayer::by_request(|req: &{Req}| ..)` takes a function that returns an `Option` of such a future"
)]
pub trait Acquire<Req> {
    #[doc(hidden)]
    type Resource: Send + 'static;

    #[doc(hidden)]
    type Future: Future<Output = Result<Self::Resource, Reason>>;

    /// Returns `None` if the request needs no resource.
    #[doc(hidden)]
    fn acquire(&self, request: &Req) -> Option<Self::Future>;
}

/// Acquires with a function without arguments.
#[derive(Clone)]
#[doc(hidden)] // machinery that is public only because it is part of a public type
pub struct Always<F>(pub(super) F);

impl<Req, F, Fut, T, E> Acquire<Req> for Always<F>
where
    F: Fn() -> Fut,
    Fut: Future<Output = Result<T, E>>,
    T: Send + 'static,
    E: fmt::Display,
{
    type Resource = T;
    type Future = Explained<Fut>;

    fn acquire(&self, _: &Req) -> Option<Self::Future> {
        Some(Explained { future: (self.0)() })
    }
}

impl_debug!(Always<F>(F));

/// Acquires with a function of the request.
#[derive(Clone)]
#[doc(hidden)] // machinery that is public only because it is part of a public type
pub struct ByRequest<F>(pub(super) F);

impl<Req, F, Fut, T, E> Acquire<Req> for ByRequest<F>
where
    F: Fn(&Req) -> Option<Fut>,
    Fut: Future<Output = Result<T, E>>,
    T: Send + 'static,
    E: fmt::Display,
{
    type Resource = T;
    type Future = Explained<Fut>;

    fn acquire(&self, request: &Req) -> Option<Self::Future> {
        (self.0)(request).map(|future| Explained { future })
    }
}

// Never applies: see `Classify`.
#[doc(hidden)]
#[diagnostic::do_not_recommend]
impl<Req, F> Acquire<Req> for ByRequest<F>
where
    [Req]: Sized,
{
    type Resource = ();
    type Future = Ready<Result<(), Reason>>;

    fn acquire(&self, _: &Req) -> Option<Self::Future> {
        None
    }
}

impl_debug!(ByRequest<F>(F));

pin_project! {
    /// The future of a function, whose error becomes the reason of a rejection.
    #[doc(hidden)] // machinery that is public only because it is part of a public type
    pub struct Explained<F> {
        #[pin]
        future: F,
    }
}

impl<F, T, E> Future for Explained<F>
where
    F: Future<Output = Result<T, E>>,
    E: fmt::Display,
{
    type Output = Result<T, Reason>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let polled = self.project().future.poll(cx);
        polled.map_err(|error| unavailable(&error))
    }
}

impl_debug!(Explained<F> { future: F });

fn unavailable(error: &impl fmt::Display) -> Reason {
    Reason::Unavailable { message: error.to_string().into() }
}

#[cfg(feature = "deadpool")]
mod pool {
    use std::sync::Arc;

    use deadpool::managed::{Manager, Object, Pool, PoolError, TimeoutType};

    use super::{Acquire, Future, Pin, Reason, fmt, unavailable};

    /// A deadpool pool, or a reference to one: `&Pool` or `&Arc<Pool>`, such as a scope returns.
    #[diagnostic::on_unimplemented(
        message = "`{Self}` is not a deadpool pool",
        note = "give a `&deadpool::managed::Pool<..>`, or the `Arc` of a pool that a scope returns"
    )]
    #[doc(hidden)] // a `Pool`, as `ResourceLayer::deadpool` says
    pub trait PoolRef<M: Manager, W: From<Object<M>>> {
        #[doc(hidden)]
        fn pool(self) -> Pool<M, W>;
    }

    impl<M: Manager, W: From<Object<M>>> PoolRef<M, W> for &Pool<M, W> {
        fn pool(self) -> Pool<M, W> {
            self.clone()
        }
    }

    impl<M: Manager, W: From<Object<M>>> PoolRef<M, W> for &Arc<Pool<M, W>> {
        fn pool(self) -> Pool<M, W> {
            Pool::clone(self)
        }
    }

    impl<M: Manager, W: From<Object<M>>> PoolRef<M, W> for Arc<Pool<M, W>> {
        fn pool(self) -> Pool<M, W> {
            Pool::clone(&self)
        }
    }

    /// Acquires from a deadpool pool.
    pub struct Deadpool<M: Manager, W: From<Object<M>> = Object<M>>(pub(in super::super) Pool<M, W>);

    impl<Req, M, W> Acquire<Req> for Deadpool<M, W>
    where
        M: Manager<Type: Send, Error: fmt::Display> + 'static,
        W: From<Object<M>> + Send + 'static,
    {
        type Resource = W;
        // Boxed, because the pool's own future has no name.
        type Future = Pin<Box<dyn Future<Output = Result<W, Reason>> + Send>>;

        fn acquire(&self, _: &Req) -> Option<Self::Future> {
            let pool = self.0.clone();
            Some(Box::pin(async move {
                pool.get().await.map_err(|error| match error {
                    PoolError::Timeout(TimeoutType::Wait) => {
                        Reason::Exhausted { max_wait: pool.timeouts().wait.unwrap_or_default() }
                    }
                    error => unavailable(&error),
                })
            }))
        }
    }

    impl<M: Manager, W: From<Object<M>>> Clone for Deadpool<M, W> {
        fn clone(&self) -> Self {
            Self(self.0.clone())
        }
    }

    impl<M: Manager, W: From<Object<M>>> fmt::Debug for Deadpool<M, W> {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.debug_tuple("Deadpool").field(&self.0.status()).finish()
        }
    }
}

#[cfg(feature = "deadpool")]
#[cfg_attr(docsrs, doc(cfg(feature = "deadpool")))]
pub use pool::{Deadpool, PoolRef};
