//! Gathers single calls into one, for a service that handles many requests at once.
//!
//! Each caller sends one request. The inner service takes a `Vec` of requests and returns a `Vec` with one result for
//! each request, in the same order. A batch is sent when it is full, or when its first request has waited for the
//! maximum delay.
//!
//! # Errors
//!
//! - An item that fails fails alone: only its own caller gets the error.
//! - If the whole call fails, the first caller that still waits gets the error itself. The others get a copy of the
//!   [`Rejection`](crate::Rejection) if the error was one, and otherwise [`Reason::Shared`](crate::Reason::Shared) with
//!   the message and the class of the error.
//! - If the inner service panics, or returns a number of results that differs from the number of requests, all callers
//!   get a [`Reason::Shared`](crate::Reason::Shared) that says so. No caller gets a result that may belong to another
//!   request.
//!
//! # Grouping
//!
//! By default, requests of the same scope share a batch ([`ByScope`]), and the call is made in that scope. A batch
//! never mixes two requests of a server, or two tenants, unless [`by`](BatchLayer::by) allows it. The call is then made
//! in the nearest scope that contains all of the requests' scopes, or in none if there is no such scope.
//!
//! All clones of a service gather together. Two services that a layer value makes do not, because each has its own
//! inner service.
//!
//! # Delay and deadline
//!
//! The delay starts when the first request joins the batch, at the first poll of its response future. Later requests
//! wait for less time. While the inner service is not ready, more requests can join.
//!
//! The call has the *latest* [`Deadline`](crate::Deadline) of its callers, or none if a caller has none. Each caller
//! still leaves at its own deadline. A timeout inside obeys the latest deadline.
//!
//! # Order
//!
//! - Outside the retry, the circuit breaker, the concurrency limit and the attempt's timeout, which then see one call
//!   for each batch.
//! - Inside the cache, which then coalesces equal requests before they reach a batch.
//! - Inside the total timeout, so that each caller has its own.
//!
//! A retry outside repeats only the item that failed.
//!
//! # Cancellation
//!
//! A caller that is dropped before the batch is sent leaves the batch and makes room for another. A caller that is
//! dropped afterwards loses only its own result. When the last caller is dropped, the call is dropped at once. If the
//! batch was not sent yet, a circuit breaker outside does not count this against the service.
//!
//! # Runtimes that are no longer driven
//!
//! The task of a batch may be on a runtime that is no longer driven, for example because its `block_on` has returned,
//! while callers on other runtimes wait. The next call of the service, with any key, takes the batch over if its task
//! was woken, or the batch was due, and the task has not been polled for five seconds since. A call that arrives also
//! wakes sleeping tasks, at most every five seconds. Of two calls more than five seconds apart, the second therefore
//! finds every task that was abandoned five seconds before the first, whatever the task waits for.
//!
//! - A batch that was not sent continues in a task on the runtime of the new call, and is sent with that call's clone
//!   of the inner service. More requests can join it until then.
//! - A call that was sent is not repeated, because its requests may have been processed. It continues in a task on the
//!   runtime of the new call. The call may depend on its original runtime: if it has no result after five more seconds,
//!   and that runtime is still not driven, the call is dropped. Its callers get a
//!   [`Reason::Shared`](crate::Reason::Shared) that says so and is not transient.
//!
//! If the runtime was only late, the batch loses nothing: the abandoned task touches nothing when it runs again.
//! Without new calls, nothing is taken over. Callers that must not hang in this case need a timeout.
//!
//! # Requirements
//!
//! A batch runs on its own task, which ends with the batch; there is no task while there are no calls. The task needs a
//! tokio runtime. The inner service, the requests and the responses must be `Send + 'static`, the service `Clone`, and
//! its error [`Display`](std::fmt::Display). Any caller may stop polling, and the others still get their results.
//!
//! The first caller of a batch spawns its task. If the runtime of this caller shuts down, callers on other runtimes get
//! a [`Reason::Shared`](crate::Reason::Shared). So does a call that is first polled outside a runtime, unless it finds
//! a batch to join.
//!
//! # Cost
//!
//! Each call allocates once, for the channel of its result, and each batch allocates its task and its list of requests.
//! Leaving a batch of n requests costs O(log n). The service is always ready, and makes a clone of the inner service
//! ready when a batch is due.
//!
//! # Examples
//!
//! ```
//! use std::{collections::HashMap, time::Duration};
//! use tower::{ServiceBuilder, ServiceExt, service_fn};
//! use ziggurat::{Error, batch::BatchLayer};
//!
//! #[derive(Debug)]
//! enum UserError {
//!     NotFound(u64),
//! }
//! # impl std::fmt::Display for UserError {
//! #     fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result { write!(f, "{self:?}") }
//! # }
//!
//! /// Looks up many users. The result is unordered and has no entry for unknown users.
//! async fn get_many(ids: &[u64]) -> Result<HashMap<u64, String>, UserError> {
//!     Ok(ids.iter().filter(|id| **id < 100).map(|id| (*id, format!("user {id}"))).collect())
//! }
//!
//! # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() {
//! let users = ServiceBuilder::new()
//!     .layer(BatchLayer::new(50, Duration::from_millis(5)))
//!     .map_err(Error::Service)
//!     .service(service_fn(|ids: Vec<u64>| async move {
//!         let mut found = get_many(&ids).await?;
//!         // One result for each, in the order of the requests.
//!         Ok(ids.into_iter().map(|id| found.remove(&id).ok_or(UserError::NotFound(id))).collect::<Vec<_>>())
//!     }));
//!
//! let (alice, unknown) = tokio::join!(users.clone().oneshot(7), users.clone().oneshot(700)); // one call
//! assert_eq!(alice.unwrap(), "user 7");
//! assert!(matches!(unknown, Err(Error::Service(UserError::NotFound(700)))));
//! # }
//! ```

use std::{
    fmt,
    hash::{Hash, RandomState},
    marker::PhantomData,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use tower_layer::Layer;
use tower_service::Service;

use crate::{
    accessors::inner_accessors,
    debug::impl_debug,
    mutex::Mutex,
    outcome::{Classify, FailOnError, Reject},
    scope::Scope,
    telemetry::{LayerInfo, layer_info, layer_setters},
};

mod around;
mod future;
mod gather;
mod ride;
mod send;
mod take_over;
mod watch;

pub use self::future::ResponseFuture;
use self::{future::Arriving, gather::Gather, send::Shared, watch::Watch};

/// Gathers single calls into one. See the [module documentation](self).
#[doc(alias = "dataloader")]
#[doc(alias = "coalesce")]
#[must_use]
pub struct BatchLayer<Req, G = ByScope, C = FailOnError> {
    max_size: usize,
    max_delay: Duration,
    by: G,
    classify: C,
    info: LayerInfo,
    requests: PhantomData<fn(Req)>,
}

impl<Req> BatchLayer<Req> {
    /// Sends batches of at most `max_size` requests, at most `max_delay` after the first of them has joined.
    ///
    /// With [`Duration::ZERO`], a batch consists of the requests that arrive before its task first runs, for example
    /// calls made together in a `join!`. With [`Duration::MAX`], a batch is sent only when it is full.
    ///
    /// # Panics
    ///
    /// If `max_size` is zero.
    #[track_caller]
    pub fn new(max_size: usize, max_delay: Duration) -> Self {
        assert!(max_size > 0, "max_size must be at least 1, not 0");
        Self {
            max_size,
            max_delay,
            by: ByScope,
            classify: FailOnError,
            info: layer_info!("batch"),
            requests: PhantomData,
        }
    }
}

impl<Req, G, C> BatchLayer<Req, G, C> {
    /// Batches requests with equal keys together, in place of [`ByScope`].
    ///
    /// With `|_: &Req| ()` all requests share a batch. If the response depends on whose request it is, the key must
    /// contain that, like the key of a cache. It can read [`Scope::current`]. The closure must name the type of its
    /// argument.
    pub fn by<K, F>(self, key: F) -> BatchLayer<Req, F, C>
    where
        F: Fn(&Req) -> K,
        K: Hash + Eq,
    {
        let Self { max_size, max_delay, by: _, classify, info, requests } = self;
        BatchLayer { max_size, max_delay, by: key, classify, info, requests }
    }

    /// Sets the classifier for an error of the whole call. The default is [`FailOnError`].
    ///
    /// Callers that get a copy of the error see the same class ([`Rejection::class`](crate::Rejection::class)).
    pub fn classify<C2>(self, classify: C2) -> BatchLayer<Req, G, C2> {
        let Self { max_size, max_delay, by, classify: _, info, requests } = self;
        BatchLayer { max_size, max_delay, by, classify, info, requests }
    }

    layer_setters!();
}

impl<Req, G: Clone, C: Clone> Clone for BatchLayer<Req, G, C> {
    fn clone(&self) -> Self {
        Self {
            max_size: self.max_size,
            max_delay: self.max_delay,
            by: self.by.clone(),
            classify: self.classify.clone(),
            info: self.info.clone(),
            requests: PhantomData,
        }
    }
}

impl<S, Req, R, I, G, C> Layer<S> for BatchLayer<Req, G, C>
where
    S: Service<Vec<Req>, Response = Vec<Result<R, I>>>,
    G: Together<Req> + Clone,
    C: Clone,
{
    type Service = Batch<S, Req, R, G, C>;

    fn layer(&self, inner: S) -> Self::Service {
        let Self { max_size, max_delay, by, classify, info, requests: _ } = self.clone();
        let gather = Mutex::new(Gather::new(max_size, max_delay));
        Batch {
            inner,
            by,
            shared: Arc::new(Shared { gather, watch: Watch::new(), hasher: RandomState::new(), classify, info }),
        }
    }
}

impl_debug!(BatchLayer<Req, G, C> { max_size, max_delay, by: G, classify: C, info });

/// Decides which requests may share a batch: [`ByScope`], or a function of the request that returns a key.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot decide which requests of type `{Req}` share a batch",
    note = "give a closure that names its argument's type: `|req: &{Req}| ..`, returning a key that is `Hash + Eq`"
)]
#[doc(hidden)] // `ByScope`, or what `by` takes: `Fn(&Req) -> K`
pub trait Together<Req> {
    /// Requests with equal keys may share a batch.
    type Key: Hash + Eq;

    /// Returns the key of this request.
    fn key(&self, request: &Req) -> Self::Key;
}

/// Batches requests of the same scope together, and requests without a scope. This is the default.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ByScope;

impl<Req> Together<Req> for ByScope {
    type Key = Option<u64>;

    fn key(&self, _: &Req) -> Option<u64> {
        Scope::current().map(|scope| scope.id())
    }
}

#[diagnostic::do_not_recommend]
impl<Req, K, F> Together<Req> for F
where
    F: Fn(&Req) -> K,
    K: Hash + Eq,
{
    type Key = K;

    fn key(&self, request: &Req) -> K {
        self(request)
    }
}

// Never applies: see `Classify`.
#[doc(hidden)]
#[diagnostic::do_not_recommend]
impl<Req, F> Together<Req> for F
where
    [Req]: Sized,
{
    type Key = ();

    fn key(&self, _: &Req) {}
}

/// The service of [`BatchLayer`].
pub /* not a Service? see ziggurat::docs::it_does_not_compile */ struct Batch<S, Req, R, G = ByScope, C = FailOnError>
where
    S: Service<Vec<Req>>,
    G: Together<Req>,
{
    inner: S,
    by: G,
    shared: SharedBy<Req, R, S::Error, G, C>,
}

impl<S, Req, R, G, C> Batch<S, Req, R, G, C>
where
    S: Service<Vec<Req>>,
    G: Together<Req>,
{
    inner_accessors!();
}

/// The state that all clones of a service share.
type SharedBy<Req, R, E, G, C> = Arc<Shared<Req, R, E, <G as Together<Req>>::Key, C>>;

impl<S, Req, R, I, G, C> Service<Req> for Batch<S, Req, R, G, C>
where
    S: Service<Vec<Req>, Response = Vec<Result<R, I>>> + Clone + Send + 'static,
    S::Error: Reject<R> + fmt::Display + Send + 'static,
    S::Future: Send + 'static,
    Req: Send + 'static,
    R: Send + 'static,
    I: Into<S::Error> + Send + 'static,
    G: Together<Req, Key: Send + Sync + 'static>,
    C: Classify<R, S::Error> + Send + Sync + 'static,
{
    type Response = R;
    type Error = S::Error;
    type Future = ResponseFuture<S, Req, R, G::Key, C>;

    /// Always ready: the task of a batch makes a clone of the inner service ready.
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        Poll::Ready(Ok(()))
    }

    /// Joins no batch yet: the response future does when it is first polled.
    ///
    /// Outside a tokio runtime, the call is rejected unless it finds a batch to join.
    fn call(&mut self, request: Req) -> Self::Future {
        let (key, scope) = (self.by.key(&request), Scope::current());
        let (service, shared) = (self.inner.clone(), Arc::clone(&self.shared));
        ResponseFuture::new(Arriving { service, request, key, scope, shared })
    }
}

impl<S, Req, R, G, C> Clone for Batch<S, Req, R, G, C>
where
    S: Service<Vec<Req>> + Clone,
    G: Together<Req> + Clone,
{
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone(), by: self.by.clone(), shared: Arc::clone(&self.shared) }
    }
}

impl_debug!(Batch<S, Req, R, G, C> where [S: Service<Vec<Req>> + fmt::Debug, G: Together<Req>] {
    inner,
    by: G,
    waiting = |this| this.shared.gather.lock().len(),
    info = |this| &this.shared.info,
});
