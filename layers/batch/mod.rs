//! Gathers single calls into one, for a service that answers many at once.
//!
//! Callers ask for one thing each; the inner service is asked for many: it takes a `Vec` of requests and answers a `Vec` with a
//! result for each, in their order. A batch is sent when it is full, or when the first of its requests has waited long enough.
//!
//! - **One failing item fails alone**: its error goes to who asked for it.
//! - **An error of the whole call** goes whole to the first of those who are still there. The others get the
//!   [`Rejection`](crate::Rejection) if it was one, and otherwise [`Reason::Shared`](crate::Reason::Shared) with the error's message and class.
//! - **A panic** of the inner service, and a number of answers that is not that of the requests, is a
//!   [`Reason::Shared`](crate::Reason::Shared) for all of them, which says so: nobody is given what may be another's answer.
//!
//! **Who goes together.** Requests of the same scope ([`ByScope`]), and the call is made in that scope: a batch never mixes two requests
//! of a server, or two tenants, unless [`by`](BatchLayer::by) says which may go together. The call is then made in the nearest scope that
//! all of them lie in, and in none if there is none. All clones of a service gather together; two services that a layer value makes do not,
//! because each has an inner service of its own.
//!
//! **Its clock** starts when the first request of a batch joins it, at the first poll of its response; who comes later waits shorter.
//! While the inner service is not ready, others can still join. The call has the *latest* of its callers' deadlines
//! ([`Deadline`](crate::Deadline)), or none if one of them has none: each of them leaves at its own, and a timeout inside obeys the last.
//!
//! **Where it belongs.** Outside of retry, breaker, limit and attempt timeout, which then see one call for each batch; inside of the cache, whose
//! single flight sees to it that nothing is asked twice in a batch, and of the total timeout, so that each caller has its own. A retry
//! outside asks again for the one item that failed.
//!
//! **Cancellation.** Who is dropped before the batch is sent is not in it, and makes room for another. Who is dropped afterwards loses its
//! answer and nothing else. With the last of them the call is dropped, there and then. A circuit breaker outside does not hold it against
//! the service if the batch was not sent yet.
//!
//! **A runtime that nobody drives.** The task of a batch may be left on a runtime that nobody drives any more, as one of
//! which `block_on` has returned, while callers on other runtimes wait. The next call of the service, whatever its key,
//! takes the batch over once its task has not been polled for five seconds although it was woken, or although the
//! batch was due. A call that arrives also wakes the tasks that sleep, at most every five seconds. So two calls, five
//! seconds apart, find any task that is abandoned, whatever it waits for.
//!
//! - **A batch that was not sent** goes on in a task on the runtime of the call that arrives, which sends it by its own
//!   clone of the inner service. Others can still join it until then.
//! - **A call that was sent** is not made again, for its requests may have been processed. It goes on in a task on the
//!   runtime of the call that arrives. If it has no answer after five seconds more, and the runtime that it comes from
//!   is still not driven, then that runtime may be what it waits for: it is dropped, and its callers get a
//!   [`Reason::Shared`](crate::Reason::Shared), which says so and is not transient.
//!
//! Where its runtime was only late, a batch loses nothing. The task that was abandoned touches nothing when it runs
//! again. While no call arrives, nothing is taken over: callers that have to be safe from this need a timeout.
//!
//! **Cost.** A batch runs on a task of its own, which ends with it: while nobody asks there is none. So it needs a tokio runtime, and
//! an inner service, requests and responses that are `Send + 'static`, `S: Clone`, and an error that is
//! [`Display`](std::fmt::Display). Any caller may stop polling, and the others still get their answers. The task is
//! spawned by the first: if that one's runtime ends, the others, on another one, are answered with a
//! [`Reason::Shared`](crate::Reason::Shared) too. So is a call that is first polled outside of a runtime, unless it
//! finds a batch to join. Each call allocates once, for the way back of its answer, and each batch for its task and its
//! list; to leave a batch costs O(log n) of those in it. It is always ready, and makes a clone of the inner service
//! ready when a batch is due.
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
//! /// What an endpoint for many knows: in any order, and without those that there are not.
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
//! let (alice, nobody) = tokio::join!(users.clone().oneshot(7), users.clone().oneshot(700)); // one call
//! assert_eq!(alice.unwrap(), "user 7");
//! assert!(matches!(nobody, Err(Error::Service(UserError::NotFound(700)))));
//! # }
//! ```

use std::{
    any::type_name,
    fmt,
    hash::{Hash, RandomState},
    marker::PhantomData,
    sync::{Arc, Mutex},
    task::{Context, Poll},
    time::Duration,
};

use tower_layer::Layer;
use tower_service::Service;

use crate::{
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

/// Gathers single calls into one: see the [module](self).
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
    /// Batches of at most `max_size` requests, sent at the latest when the first of them has waited for `max_delay`.
    ///
    /// With [`Duration::ZERO`] a batch is what has come by the time that its task runs for the first time: calls that are made at once,
    /// in a `join!` say, and nobody waits for more. With [`Duration::MAX`] a batch is sent only when it is full.
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
    /// Tells which requests may go together: those of an equal key. In place of [`ByScope`].
    ///
    /// `|_: &Req| ()` gathers all of them. If the answer depends on whose request it is, the key has to say so, as that of a cache: it
    /// can read [`Scope::current`]. The closure has to name its argument's type.
    pub fn by<K, F>(self, key: F) -> BatchLayer<Req, F, C>
    where
        F: Fn(&Req) -> K,
        K: Hash + Eq,
    {
        let Self { max_size, max_delay, by: _, classify, info, requests } = self;
        BatchLayer { max_size, max_delay, by: key, classify, info, requests }
    }

    /// Tells what an error of the whole call says about the service: those who only shared the call are told the same
    /// ([`Rejection::class`](crate::Rejection::class)). [`FailOnError`] if it is not set.
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

impl<Req, G, C> fmt::Debug for BatchLayer<Req, G, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BatchLayer")
            .field("max_size", &self.max_size)
            .field("max_delay", &self.max_delay)
            .field("by", &type_name::<G>())
            .field("classify", &type_name::<C>())
            .field("info", &self.info)
            .finish()
    }
}

/// Which requests may go together: those of an equal key. [`ByScope`], or a function of the request.
#[diagnostic::on_unimplemented(
    message = "`{Self}` does not tell which requests of type `{Req}` may go together",
    note = "give a closure that names its argument's type: `|req: &{Req}| ..`, returning a key that is `Hash + Eq`"
)]
pub trait Together<Req> {
    /// What requests that go together have in common.
    type Key: Hash + Eq;

    /// The key of this request.
    fn key(&self, request: &Req) -> Self::Key;
}

/// Requests of the same scope go together; so do those without any. The default.
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

/// The service of [`BatchLayer`].
pub struct Batch<S, Req, R, G = ByScope, C = FailOnError>
/* not a Service? see ziggurat::Reject, "It does not compile" */
where
    S: Service<Vec<Req>>,
    G: Together<Req>,
{
    inner: S,
    by: G,
    shared: SharedBy<Req, R, S::Error, G, C>,
}

/// What is shared by all whose requests go together so.
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

    /// Joins nothing yet: its response does, when it is first polled. Outside of a tokio runtime that is rejected,
    /// unless there is a batch that it can join.
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

impl<S, Req, R, G, C> fmt::Debug for Batch<S, Req, R, G, C>
where
    S: Service<Vec<Req>> + fmt::Debug,
    G: Together<Req>,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Batch")
            .field("inner", &self.inner)
            .field("by", &type_name::<G>())
            .field("waiting", &self.shared.gather().len())
            .field("info", &self.shared.info)
            .finish()
    }
}
