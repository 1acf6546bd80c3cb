//! Lends every call a resource, a connection of a pool say, and gives it back when the call is over.
//!
//! The layer gets it with a function of yours, or from a pool of [deadpool](https://docs.rs/deadpool)'s (feature `deadpool`). Inside,
//! [`current`] finds it by its type: a handle, which gives exclusive use of it, a `&mut T`, to one at a time. Who asks while it is in use
//! is told so and does not wait, so a call cannot deadlock with itself.
//!
//! **It goes back** when the response is there, the call has failed, panicked or was dropped; with
//! [`until_body_end`](ResourceLayer::until_body_end), when the response's body has ended. Going back means that it is dropped, as the
//! guards of every pool want it. Whoever still has a handle is then told that the call is over. What somebody is using at that
//! moment (a `spawn_blocking` that cannot be stopped) is dropped when that use ends, and not lent to others before.
//!
//! **What broke is not used again**: deadpool's `Manager::recycle` looks at each before it is lent again, and should also find out
//! what was left in the middle, an open transaction say, because a call may be dropped at any await. `Held::discard` (feature
//! `deadpool`) takes one out of its pool at once; [`Held::into_inner`] leaves it to you to do the same with another pool.
//!
//! **Waiting** happens in the response, from its first poll, in the order that the pool keeps. It is bounded by the surrounding
//! [`TimeoutLayer`](crate::timeout::TimeoutLayer), and by [`max_wait`](ResourceLayer::max_wait), past which the call is answered with
//! [`Reason::Exhausted`]. That wait includes the time in which the pool makes a new resource; give the pool a limit of its own for
//! that, or a database that hangs looks like a pool that is empty, which no circuit breaker counts as a failure.
//!
//! **An error of the function** becomes [`Reason::Unavailable`], a transient failure with the error's message in it: in the
//! [`Display`](std::fmt::Display) form, and so in events and `tracing`, and not in what strangers are told
//! ([`Rejection::public_message`]).
//!
//! **Where it belongs.** Next to the service, inside of retry, breaker, limit and timeouts: then only what is really going to work
//! takes a resource, each attempt has its own, and a retry that sleeps has none. Outside of a concurrency limit, calls would hold
//! resources while they wait for a permit. Outside of an attempt's timeout, waiting would not count as the attempt's time.
//!
//! **A call that waits for itself.** A handler that calls itself through the same layer keeps its resource while the inner call waits for
//! another one. If the pool has none left, because it has only one or because all callers do the same at once, none comes free until
//! `max_wait` or a limit of time outside ends the inner call; without either, none ever does. This layer cannot tell such a wait from
//! others: it does not know how many resources a pool has. Let the inner call use the outer one's resource, which [`current`] finds:
//! `ResourceLayer::by_request(move |_: &Request| current::<Connection>().is_err().then(|| pool.get()))`.
//!
//! **Cancellation.** Dropping the response gives the resource back, or the place in the pool's queue. A circuit breaker outside does not
//! hold it against the service if the call was still waiting here.
//!
//! It needs `S: Clone`: a call that has to wait gives back the readiness of the service that it was called on, and makes a clone
//! ready once it has its resource. Each call clones the service once, allocates once (a deadpool's call twice), and reads no clock unless
//! it has to wait; each use takes a lock that nobody else wants.
//!
//! ```
//! use std::sync::Arc;
//! use tokio::sync::Semaphore;
//! use tower::{ServiceBuilder, ServiceExt, service_fn};
//! use ziggurat::resource::{self, ResourceLayer};
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() {
//! // Any pool will do. This one is a semaphore, and its resource a permit.
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
    any::type_name,
    fmt,
    future::Future,
    marker::PhantomData,
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

#[cfg(feature = "deadpool")]
#[cfg_attr(docsrs, doc(cfg(feature = "deadpool")))]
pub use self::acquire::Deadpool;
pub use self::acquire::{Acquire, Always, ByRequest, Explained};
pub use self::lent::{Held, Lease, Lent, Unavailable, Why, current};
use crate::{
    ambient::{self, Unsent},
    body::{BodyEnd, ResponseEnd, Until},
    clock::{self, Sleep},
    outcome::{Reason, Reject, Rejection},
    telemetry::{LayerEvent, LayerInfo, layer_info, layer_setters},
};

/// Lends every call a resource: see the [module](self).
#[doc(alias = "pool")]
#[must_use]
pub struct ResourceLayer<A, U = ResponseEnd> {
    acquire: A,
    settings: Settings,
    until: PhantomData<fn() -> U>,
}

#[derive(Debug, Clone)]
struct Settings {
    max_wait: Option<Duration>,
    info: LayerInfo,
}

impl<F> ResourceLayer<Always<F>> {
    /// Gets a resource with a function that returns a future of a `Result<T, E>`, where `T: Send + 'static` and `E: Display`. It is
    /// called in `call`, and its future polled with the response.
    ///
    /// The pool may come from the scope: [`Scope::current`](crate::Scope::current) answers in the function.
    pub fn new<Fut>(acquire: F) -> Self
    where
        F: Fn() -> Fut,
        Fut: Future,
    {
        Self::from_acquire(Always(acquire))
    }
}

impl<F> ResourceLayer<ByRequest<F>> {
    /// The same with a function of the request, `|req: &Request<_>| ..`, which returns an `Option` of such a future: where it is
    /// `None`, the request needs no resource and is lent none.
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
    /// Takes a resource from a pool of deadpool's: what [`current`] finds is its `Object<M>`, or its wrapper `W`.
    ///
    /// Those who wait for the pool when it is closed are answered with [`Reason::Unavailable`], and those who come later. A limit
    /// that the pool has for the wait is kept, as if it were [`max_wait`](Self::max_wait).
    ///
    /// The pool may be one that a scope holds, `&app.require::<Pool<_>>()?`, as a disposable that is closed with it.
    pub fn deadpool(pool: &deadpool::managed::Pool<M, W>) -> Self {
        Self::from_acquire(Deadpool(pool.clone()))
    }
}

impl<A> ResourceLayer<A> {
    fn from_acquire(acquire: A) -> Self {
        Self { acquire, settings: Settings { max_wait: None, info: layer_info!("resource") }, until: PhantomData }
    }

    /// For HTTP: a call keeps its resource until the response's body has ended, failed or was dropped, and not only until the response
    /// is there: what a body needs that is read from a database while it is sent. [`current`] answers in the body too.
    ///
    /// The body becomes a [`GuardBody`](crate::body::GuardBody). An empty one gives the resource back at once.
    pub fn until_body_end(self) -> ResourceLayer<A, BodyEnd> {
        ResourceLayer { acquire: self.acquire, settings: self.settings, until: PhantomData }
    }
}

impl<A, U> ResourceLayer<A, U> {
    /// A call that has waited this long for its resource is rejected.
    ///
    /// Every duration is good: with zero nobody waits, and [`Duration::MAX`] never ends. The clock starts when a call finds that
    /// it has to wait: at its first poll.
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

// By hand, and so for the service: when a resource is given back need not be Clone or Debug for this.
impl<A: Clone, U> Clone for ResourceLayer<A, U> {
    fn clone(&self) -> Self {
        Self { acquire: self.acquire.clone(), settings: self.settings.clone(), until: PhantomData }
    }
}

impl<A: fmt::Debug, U> fmt::Debug for ResourceLayer<A, U> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResourceLayer")
            .field("acquire", &self.acquire)
            .field("settings", &self.settings)
            .field("until", &type_name::<U>())
            .finish()
    }
}

impl<S, A: Clone, U> Layer<S> for ResourceLayer<A, U> {
    type Service = Resource<S, A, U>;

    fn layer(&self, inner: S) -> Self::Service {
        let settings = Arc::new(self.settings.clone());
        Resource { inner, acquire: self.acquire.clone(), settings, until: PhantomData }
    }
}

/// The service of [`ResourceLayer`].
pub struct Resource<S, A, U = ResponseEnd> /* not a Service? see ziggurat::Reject, "It does not compile" */ {
    inner: S,
    acquire: A,
    settings: Arc<Settings>,
    until: PhantomData<fn() -> U>,
}

impl<S: Clone, A: Clone, U> Clone for Resource<S, A, U> {
    fn clone(&self) -> Self {
        let (inner, acquire) = (self.inner.clone(), self.acquire.clone());
        Self { inner, acquire, settings: Arc::clone(&self.settings), until: PhantomData }
    }
}

impl<S: fmt::Debug, A: fmt::Debug, U> fmt::Debug for Resource<S, A, U> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Resource")
            .field("inner", &self.inner)
            .field("acquire", &self.acquire)
            .field("settings", &self.settings)
            .finish()
    }
}

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
            // Whether it has to wait shows at the first poll. Until then the response keeps the service that was made ready.
            Some(acquire) => {
                let clone = self.inner.clone();
                let service = mem::replace(&mut self.inner, clone);
                let settings = Arc::clone(&self.settings);
                let wait = Wait { settings, begun: false, timer: None, is_over: false };
                State::Waiting { acquire: Some(acquire), wait, service, request: Some(request) }
            }
        };
        ResponseFuture { state, lease: None, until: PhantomData }
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
        // After the state, and so dropped after it: the resource goes back when the call is gone, not before.
        lease: Option<Lease>,
        until: PhantomData<fn() -> U>,
    }

    impl<S, Req, A, U> PinnedDrop for ResponseFuture<S, Req, A, U>
    where
        S: Service<Req>,
        A: Acquire<Req>,
    {
        fn drop(this: Pin<&mut Self>) {
            let mut this = this.project();
            // Whatever cleans up can use the resource.
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
        // It waits for its resource; or has it, and waits for its own clone of the service to be ready.
        Waiting {
            // None: it has it.
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
        // It was answered.
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
            Ended::Answered(response) => Ok(U::answer(response, move || lease)),
            Ended::Failed(error) => {
                drop(lease);
                Err(error)
            }
            Ended::Rejected(rejection) => S::Error::reject(rejection),
        })
    }
}

enum Ended<R, E> {
    Answered(R),
    Failed(E),
    Rejected(Rejection),
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
                    return response.poll(cx).map(|outcome| outcome.map_or_else(Ended::Failed, Ended::Answered));
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
                                return Poll::Ready(Ended::Rejected(wait.settings.reject(reason)));
                            }
                            Poll::Pending => {
                                if !wait.begun {
                                    // The one that was made ready is dropped, and with it what it reserved meanwhile.
                                    *service = service.clone();
                                }
                                let max_wait = ready!(wait.poll(cx));
                                // First out of the queue, then out of here.
                                acquire.set(None);
                                let rejection = wait.settings.reject(Reason::Exhausted { max_wait });
                                return Poll::Ready(Ended::Rejected(rejection));
                            }
                        }
                    }
                    if wait.begun
                        && let Err(error) = ready!(service.poll_ready(cx))
                    {
                        return Poll::Ready(Ended::Failed(error));
                    }
                    let _entered = lease.as_mut().map(Lease::enter);
                    request.take().map(|request| service.call(request))
                }
                StateProjection::Done => None,
            };
            let Some(response) = response else { panic!("polled after it was answered") };
            self.set(State::Running { response });
        }
    }
}

/// A call's wait for its resource.
struct Wait {
    settings: Arc<Settings>,
    // Whether there was none at the first poll.
    begun: bool,
    // Boxed, so that a call that does not wait is not larger for it.
    timer: Option<Pin<Box<Sleep>>>,
    // Whether it has its resource.
    is_over: bool,
}

impl Wait {
    /// There is no resource yet. Answers when there was none for too long.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Duration> {
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

    /// Whether it begins only now.
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
        // If the whole call is dropped with it: so far it waited on this side. With its resource it waits for the service.
        if !self.is_over {
            ambient::set(Unsent(true));
        }
    }
}

impl<S: Service<Req>, Req, A: Acquire<Req>, U> fmt::Debug for ResponseFuture<S, Req, A, U> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match self.state {
            State::Waiting { .. } => "waiting",
            State::Running { .. } => "running",
            State::Done => "done",
        };
        f.debug_struct("resource::ResponseFuture").field("state", &state).field("lent", &self.lease.is_some()).finish()
    }
}
