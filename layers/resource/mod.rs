//! Lends every call a resource, such as a pooled connection, and returns it when the call is over.
//!
//! The layer acquires the resource with a function, or from a [deadpool](https://docs.rs/deadpool) pool (feature
//! `deadpool`). Inside, [`current`] finds the resource by its type and returns a handle. The handle grants exclusive
//! use of the resource, a `&mut T`, to one user at a time. While the resource is in use, a second request for it
//! returns an error instead of waiting, so a call cannot deadlock with itself.
//!
//! # Returning the resource
//!
//! The resource is returned when the response is ready, or the call has failed, panicked, or was dropped. With
//! [`until_body_end`](ResourceLayer::until_body_end), it is returned when the response's body has ended. To return a
//! resource means to drop it, as the guards of all pools expect.
//!
//! From then on, remaining handles report that the call is over. A resource that is in use at that moment (by a
//! `spawn_blocking` that cannot be stopped) is dropped when that use ends, and is not lent again before.
//!
//! # Broken resources
//!
//! deadpool's `Manager::recycle` checks each resource before it is lent again. It should also detect unfinished work,
//! such as an open transaction, because a call may be dropped at any await. `Held::discard` (feature `deadpool`)
//! removes a resource from its pool at once. With other pools, use [`Held::into_inner`].
//!
//! # Waiting
//!
//! A call waits in its response future, from the first poll, in the order of the pool's queue. The wait is bounded by
//! the surrounding [`TimeoutLayer`](crate::timeout::TimeoutLayer), and by [`max_wait`](ResourceLayer::max_wait),
//! beyond which the call is rejected with [`Reason::Exhausted`]. The wait includes the time in which the pool creates
//! a new resource. Give the pool its own limit for that: otherwise a database that hangs looks like an empty pool,
//! which no circuit breaker counts as a failure.
//!
//! # Failed acquisitions
//!
//! An error of the function becomes [`Reason::Unavailable`], a transient failure that contains the error's message.
//! The message is part of the rejection's [`Display`](std::fmt::Display) form, and therefore of events and `tracing`.
//! It is not part of [`Rejection::public_message`], which clients may see.
//!
//! # Order
//!
//! Place the layer next to the service, inside retry, circuit breaker, concurrency limit, and timeouts. Then only
//! calls that are about to run take a resource, each attempt has its own, and a retry that sleeps has none. Outside a
//! concurrency limit, calls would hold resources while they wait for a permit. Outside an attempt timeout, the wait
//! would not count towards the attempt.
//!
//! # Recursive calls
//!
//! A handler that calls itself through the same layer keeps its resource while the inner call waits for another one.
//! If the pool has none left (because it has only one, or because all callers do the same at once), none becomes free
//! until `max_wait` or a timeout outside ends the inner call. Without either, the call waits forever. This layer
//! cannot detect this, because it does not know the size of the pool. Let the inner call use the resource of the
//! outer one, which [`current`] finds:
//! `ResourceLayer::by_request(move |_: &Request| current::<Connection>().is_err().then(|| pool.get()))`.
//!
//! # Cancellation safety
//!
//! Dropping the response future returns the resource, or leaves the pool's queue. If the call is still waiting here,
//! a circuit breaker outside does not count it against the service.
//!
//! # Requirements
//!
//! The service must be `Clone`. A call that has to wait drops the ready service that it was called on, and makes a
//! clone ready once it has its resource.
//!
//! # Cost
//!
//! Each call clones the service once, allocates once (twice with deadpool), and reads no clock unless it has to wait.
//! Each use of the resource takes an uncontended lock.
//!
//! # Examples
//!
//! ```
//! use std::sync::Arc;
//! use tokio::sync::Semaphore;
//! use tower::{ServiceBuilder, ServiceExt, service_fn};
//! use ziggurat::resource::{self, ResourceLayer};
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() {
//! // Any pool works. This one is a semaphore, and its resource is a permit.
//! type Seat = tokio::sync::OwnedSemaphorePermit;
//! let seats = Arc::new(Semaphore::new(2));
//! let pool = seats.clone();
//!
//! let service = ServiceBuilder::new()
//!     .layer(ResourceLayer::new(move || pool.clone().acquire_owned()))
//!     .service(service_fn(async |()| {
//!         let mut seat = resource::current::<Seat>()?.get()?;
//!         let seat: &mut Seat = &mut seat;
//!         Ok::<_, Box<dyn std::error::Error + Send + Sync>>(seat.num_permits())
//!     }));
//!
//! assert_eq!(service.oneshot(()).await.unwrap(), 1);
//! assert_eq!(seats.available_permits(), 2);
//! # }
//! ```

use std::{
    fmt,
    future::Future,
    mem,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

mod acquire;
mod lent;

pub use self::acquire::{Acquire, Always, ByRequest, Explained};
#[cfg(feature = "deadpool")]
#[cfg_attr(docsrs, doc(cfg(feature = "deadpool")))]
pub use self::acquire::{Deadpool, PoolRef};
pub use self::lent::{Held, Lease, Lent, Unavailable, Why, current};
use crate::{
    accessors::inner_accessors,
    ambient::{self, Unsent},
    body::{BodyEnd, ResponseEnd, Until},
    clock::{self, Sleep},
    debug::impl_debug,
    outcome::{Ended, Reason, Reject, Rejection},
    telemetry::{LayerEvent, LayerInfo, layer_info, layer_setters},
};

/// Lends every call a resource: see the [module](self).
#[doc(alias = "pool")]
#[derive(Clone)]
#[must_use]
pub struct ResourceLayer<A, U = ResponseEnd> {
    acquire: A,
    settings: Settings,
    until: U,
}

#[derive(Debug, Clone)]
struct Settings {
    max_wait: Option<Duration>,
    info: LayerInfo,
}

impl<F> ResourceLayer<Always<F>> {
    /// Acquires resources with a function that returns a future of a `Result<T, E>`, where `T: Send + 'static` and
    /// `E: Display`.
    ///
    /// The function runs in `call`, and its future is polled with the response. The pool may come from the scope:
    /// [`Scope::current`](crate::Scope::current) works in the function.
    pub fn new<Fut>(acquire: F) -> Self
    where
        F: Fn() -> Fut,
        Fut: Future,
    {
        Self::from_acquire(Always(acquire))
    }
}

impl<F> ResourceLayer<ByRequest<F>> {
    /// Acquires resources with a function of the request, `|req: &Request<_>| ..`, that returns an `Option` of a
    /// future as in [`new`](Self::new).
    ///
    /// With `None`, the request needs no resource and none is lent.
    pub fn by_request(acquire: F) -> Self {
        Self::from_acquire(ByRequest(acquire))
    }
}

#[cfg(feature = "deadpool")]
#[cfg_attr(docsrs, doc(cfg(feature = "deadpool")))]
impl<M, W> ResourceLayer<Deadpool<M, W>>
where
    M: deadpool::managed::Manager,
    W: From<deadpool::managed::Object<M>>,
{
    /// Acquires resources from a deadpool pool: [`current`] finds an `Object<M>`, or the wrapper `W`.
    ///
    /// If the pool is closed, waiting and future calls are rejected with [`Reason::Unavailable`]. The pool's own wait
    /// limit applies as if it were [`max_wait`](Self::max_wait).
    ///
    /// The pool may be stored in a scope, `&app.require::<Pool<_>>()?`, as a disposable that is closed with it.
    pub fn deadpool(pool: impl PoolRef<M, W>) -> Self {
        Self::from_acquire(Deadpool(pool.pool()))
    }
}

impl<A> ResourceLayer<A> {
    fn from_acquire(acquire: A) -> Self {
        Self { acquire, settings: Settings { max_wait: None, info: layer_info!("resource") }, until: ResponseEnd }
    }

    /// Keeps the resource until the response's body has ended, failed, or was dropped, instead of until the response
    /// is returned. For HTTP.
    ///
    /// Use it for a body that is read from a database while it is sent. [`current`] works in the body too. The body
    /// becomes a [`GuardBody`](crate::body::GuardBody). An empty body returns the resource at once.
    pub fn until_body_end(self) -> ResourceLayer<A, BodyEnd> {
        ResourceLayer { acquire: self.acquire, settings: self.settings, until: BodyEnd }
    }
}

impl<A, U> ResourceLayer<A, U> {
    /// Rejects a call that has waited `max_wait` for its resource.
    ///
    /// Any duration is valid. With zero, no call waits; [`Duration::MAX`] never ends a wait. The clock starts when a
    /// call finds no resource available, at its first poll.
    pub fn max_wait(mut self, max_wait: Duration) -> Self {
        self.settings.max_wait = Some(max_wait);
        self
    }

    layer_setters!(settings.info);
}

impl Settings {
    fn reject(&self, reason: Reason) -> Rejection {
        self.info.reject(reason)
    }
}

impl_debug!(ResourceLayer<A: fmt::Debug, U> { acquire, settings, until: U });

impl<S, A: Clone, U: Copy> Layer<S> for ResourceLayer<A, U> {
    type Service = Resource<S, A, U>;

    fn layer(&self, inner: S) -> Self::Service {
        let settings = Arc::new(self.settings.clone());
        Resource { inner, acquire: self.acquire.clone(), settings, until: self.until }
    }
}

/// The service of [`ResourceLayer`].
#[derive(Clone)]
pub /* not a Service? see ziggurat::docs::it_does_not_compile */ struct Resource<S, A, U = ResponseEnd> {
    inner: S,
    acquire: A,
    settings: Arc<Settings>,
    until: U,
}

impl<S, A, U> Resource<S, A, U> {
    inner_accessors!();
}

impl_debug!(Resource<S: fmt::Debug, A: fmt::Debug, U> { inner, acquire, settings });

impl<S, A, U, Req> Service<Req> for Resource<S, A, U>
where
    S: Service<Req> + Clone,
    S::Error: Reject<U::Response>,
    A: Acquire<Req>,
    U: Until<S::Response, Lease>,
{
    type Response = U::Response;
    type Error = S::Error;
    type Future = ResponseFuture<S, Req, A, U>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Req) -> Self::Future {
        let state = match self.acquire.acquire(&request) {
            None => State::Running { response: self.inner.call(request) },
            // Only the first poll shows whether the call must wait. Until then, the response future keeps the ready
            // service.
            Some(acquire) => {
                let clone = self.inner.clone();
                let service = mem::replace(&mut self.inner, clone);
                let settings = Arc::clone(&self.settings);
                let wait = Wait { settings, begun: false, timer: None, is_over: false };
                State::Waiting { acquire: Some(acquire), wait, service, request: Some(request) }
            }
        };
        ResponseFuture { state, lease: None, until: self.until }
    }
}

pin_project! {
    /// The response future of [`Resource`].
    #[must_use = "futures do nothing unless polled"]
    pub struct ResponseFuture<S, Req, A, U = ResponseEnd>
    where
        S: Service<Req>,
        A: Acquire<Req>,
    {
        #[pin]
        state: State<S, Req, A::Future>,
        // After the state, and therefore dropped after it: the resource is returned once the call is gone.
        lease: Option<Lease>,
        until: U,
    }

    impl<S, Req, A, U> PinnedDrop for ResponseFuture<S, Req, A, U>
    where
        S: Service<Req>,
        A: Acquire<Req>,
    {
        fn drop(this: Pin<&mut Self>) {
            let mut this = this.project();
            // Cleanup code can use the resource.
            let _entered = this.lease.as_mut().map(Lease::enter);
            this.state.set(State::Done);
        }
    }
}

pin_project! {
    #[project = StateProjection]
    enum State<S, Req, F>
    where
        S: Service<Req>,
    {
        // Waiting for the resource, or, with the resource, for its own clone of the service to become ready.
        Waiting {
            // None: the resource was acquired.
            #[pin]
            acquire: Option<F>,
            wait: Wait,
            service: S,
            request: Option<Req>,
        },
        Running {
            #[pin]
            response: S::Future,
        },
        // The outcome was returned.
        Done,
    }
}

impl<S, Req, A, U> Future for ResponseFuture<S, Req, A, U>
where
    S: Service<Req> + Clone,
    S::Error: Reject<U::Response>,
    A: Acquire<Req>,
    U: Until<S::Response, Lease>,
{
    type Output = Result<U::Response, S::Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        let ended = ready!(this.state.as_mut().poll(this.lease, cx));
        {
            let _entered = this.lease.as_mut().map(Lease::enter);
            this.state.set(State::Done);
        }
        let lease = this.lease.take();
        Poll::Ready(match ended {
            Ok(Ok(response)) => Ok(U::answer(response, move || lease)),
            Ok(Err(error)) => {
                drop(lease);
                Err(error)
            }
            Err(rejection) => S::Error::reject(rejection),
        })
    }
}

impl<S, Req, F, T> State<S, Req, F>
where
    S: Service<Req> + Clone,
    F: Future<Output = Result<T, Reason>>,
    T: Send + 'static,
{
    fn poll(
        mut self: Pin<&mut Self>,
        lease: &mut Option<Lease>,
        cx: &mut Context<'_>,
    ) -> Poll<Ended<S::Response, S::Error>> {
        loop {
            let response = match self.as_mut().project() {
                StateProjection::Running { response } => {
                    let _entered = lease.as_mut().map(Lease::enter);
                    return response.poll(cx).map(Ok);
                }
                StateProjection::Waiting { mut acquire, wait, service, request } => {
                    if let Some(acquiring) = acquire.as_mut().as_pin_mut() {
                        match acquiring.poll(cx) {
                            Poll::Ready(Ok(resource)) => {
                                acquire.set(None);
                                wait.timer = None;
                                wait.is_over = true;
                                *lease = Some(Lease::new(resource));
                            }
                            Poll::Ready(Err(reason)) => {
                                return Poll::Ready(Err(wait.settings.reject(reason)));
                            }
                            Poll::Pending => {
                                if !wait.begun {
                                    // Drops the service that was made ready, together with its reservations.
                                    *service = service.clone();
                                }
                                let max_wait = ready!(wait.poll(cx));
                                // Leave the pool's queue before the rejection is reported.
                                acquire.set(None);
                                let rejection = wait.settings.reject(Reason::Exhausted { max_wait });
                                return Poll::Ready(Err(rejection));
                            }
                        }
                    }
                    if wait.begun
                        && let Err(error) = ready!(service.poll_ready(cx))
                    {
                        return Poll::Ready(Ok(Err(error)));
                    }
                    let _entered = lease.as_mut().map(Lease::enter);
                    request.take().map(|request| service.call(request))
                }
                StateProjection::Done => None,
            };
            let Some(response) = response else { panic!("resource::ResponseFuture polled after it was ready") };
            self.set(State::Running { response });
        }
    }
}

/// A call's wait for its resource.
struct Wait {
    settings: Arc<Settings>,
    // Whether no resource was available at the first poll.
    begun: bool,
    // Boxed, so that a call that does not wait does not pay for its size.
    timer: Option<Pin<Box<Sleep>>>,
    // Whether the call has its resource.
    is_over: bool,
}

impl Wait {
    /// Called while there is no resource. Ready once the call has waited for `max_wait`.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Duration> {
        // A circuit breaker outside checks again when the call has its resource, and a hedge does not start before.
        ambient::set(Unsent(true));
        let Some(max_wait) = self.settings.max_wait else {
            self.begin();
            return Poll::Pending;
        };
        if max_wait == Duration::ZERO {
            return Poll::Ready(max_wait);
        }
        if self.begin() {
            self.timer = clock::now().checked_add(max_wait).map(|end| Box::pin(clock::sleep_until(end)));
        }
        let Some(timer) = &mut self.timer else { return Poll::Pending };
        ready!(timer.as_mut().poll(cx));
        Poll::Ready(max_wait)
    }

    /// Starts the wait. Returns whether this is the start.
    fn begin(&mut self) -> bool {
        if !self.begun {
            self.begun = true;
            self.settings.info.emit(LayerEvent::Queued);
            return true;
        }
        false
    }
}

impl Drop for Wait {
    fn drop(&mut self) {
        // In case the whole call is dropped along with this wait: the service has not seen it. Once it has its
        // resource, the call waits for the service.
        if !self.is_over {
            ambient::set(Unsent(true));
        }
    }
}

impl_debug!(ResponseFuture<S: Service<Req>, Req, A: Acquire<Req>, U> in resource {
    state = |this| match this.state {
        State::Waiting { .. } => "waiting",
        State::Running { .. } => "running",
        State::Done => "done",
    },
    lent = |this| this.lease.is_some(),
});
