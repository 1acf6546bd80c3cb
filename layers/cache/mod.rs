//! Answers from memory what was answered before.
//!
//! A response is stored under a key that a function makes of the request, for as long as its ttl says, and requests
//! with the same key get a copy of it. Of all requests that miss the same key at once, one calls and the others wait
//! for its outcome (*single flight*). What is stored is bounded by number or by weight. A working set that fits stays
//! in memory: from its third round on it misses nothing, whatever filled the cache before, and neither a scan of other
//! keys nor a trickle of new ones pushes it out (an eviction close to S3-FIFO). What has expired makes room.
//!
//! **What is stored** is what [`classify`](CacheLayer::classify) calls a success, and never an error. The default takes
//! every response. A response that it [ignores](crate::Class::Ignored) is for the one who made the call: those who
//! waited for it make calls of their own.
//!
//! **For HTTP say `CacheLayer::new(10_000, ttl, http_key).classify(HttpStorable)`**: [`http_key`] tells virtual hosts
//! apart and gives no key to a request whose answer is not for everybody, and [`HttpStorable`] stores no response that
//! is a failure, a part or for one caller alone. A status is not a type, so without it a 500 is a response like any
//! other, and would be answered for a whole ttl.
//!
//! **Its clock.** The ttl runs from when the response arrived, and at exactly the ttl it has expired. A hit reads the
//! clock once, and not at all if the response never expires.
//!
//! **A hit** needs nothing of the inner service: no readiness, no permit, not even its health. It costs the key, a copy
//! of the response, and a lock for reading on a part of the map.
//!
//! **A failure** goes whole to the caller that made the call. Those who waited for it get a copy if it was a response,
//! the [`Rejection`](crate::Rejection) if it was one, and otherwise a copy of the error if it [can be
//! cloned](CacheLayer::clone_errors), or [`Reason::Shared`](crate::Reason::Shared) with the error's message and class.
//! It is not stored, unless it has a [ttl of its own](CacheLayer::failure_ttl): the next request calls again, unless
//! [`stale_if_error`](CacheLayer::stale_if_error) finds something that will do.
//!
//! **Where it belongs.** Outside of timeout, retry, breaker and limit, so that a hit needs none of them; inside of the
//! [`ContextLayer`](crate::context::ContextLayer), so that keys and ttl can come from the scope. Inside of a retry,
//! each attempt looks into the cache. Outside of every timeout is right: the timeout of the caller that calls ends the
//! wait of those who wait for it.
//!
//! **Deadlines.** With a timeout outside, each request has a deadline of its own. A caller whose deadline ends its
//! call, at the cache or by a limit inside that goes by it, leaves the key to the waiter with most time, which makes a
//! call of its own: nobody with time left gets another one's timeout. But a retry inside that gives up early because of
//! a short deadline fails all who wait.
//!
//! **Cancellation.** A call belongs to the request that makes it. If that is dropped or panics, the waiter with most
//! time (the first of those with as much) makes a call of its own, and the others wait for that one. Nobody waits for a
//! response future that was never polled. One that was woken and is not polled for five seconds, as on a runtime that
//! nobody drives any more, loses its key to the next request for it, which calls for those who wait too; that also goes
//! for a fetch behind a stale answer. Its own answer, if it comes to one, is stored nowhere. A request that waits wakes
//! a call that has slept for five seconds: so a second one, five seconds later, finds that it is not polled.
//!
//! **A call that asks for its own key**, from inside the call that the cache makes for it, would wait for itself. It
//! gets [`Reason::Recursive`](crate::Reason::Recursive) at once. The surroundings tell, as they tell the deadline: on a
//! task that was spawned inside, also by [`Scope::spawn`](crate::Scope::spawn), they do not, nor do two calls know of
//! each other that ask for each other's keys. Such a wait ends by its timeout.
//!
//! It needs `S: Clone`, a response that is [`Storable`] (for [`http::Response`](::http::Response): a body such as
//! `Full<Bytes>`, not one that is streamed) and an error that is [`Display`](std::fmt::Display). It is always ready,
//! and makes a clone of the inner service ready when it has to call. To be `Send`, it needs a key and a response that
//! are `Send + Sync`.
//!
//! ```
//! use std::{sync::atomic::{AtomicU64, Ordering::Relaxed}, time::Duration};
//! use tower::{ServiceBuilder, ServiceExt, service_fn};
//! use ziggurat::{Error, cache::CacheLayer};
//!
//! static CALLS: AtomicU64 = AtomicU64::new(0);
//!
//! # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() {
//! let layer = CacheLayer::new(1_000, Duration::from_secs(300), |id: &u32| Some(*id));
//! let cache = layer.handle();
//! let service = ServiceBuilder::new().layer(layer).map_err(Error::Service).service(service_fn(|id: u32| async move {
//!     CALLS.fetch_add(1, Relaxed);
//!     Ok::<_, std::io::Error>(format!("user {id}"))
//! }));
//!
//! assert_eq!(service.clone().oneshot(7).await.unwrap(), "user 7");
//! assert_eq!(service.clone().oneshot(7).await.unwrap(), "user 7");
//! assert_eq!(CALLS.load(Relaxed), 1);
//!
//! cache.invalidate(&7);
//! service.oneshot(7).await.unwrap();
//! assert_eq!(CALLS.load(Relaxed), 2);
//! assert_eq!(cache.stats().hits, 1);
//! # }
//! ```
//!
//! Over HTTP, where a setting in the scope, which can change while the program runs, decides on the ttl:
//!
//! ```
//! use std::time::Duration;
//! use http::{Request, Response};
//! use tower::{ServiceBuilder, ServiceExt, service_fn};
//! use ziggurat::{Scope, cache::{CacheLayer, HttpKey, HttpStorable, http_key}};
//!
//! struct CacheConfig {
//!     ttl: Duration,
//! }
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() {
//! let app = Scope::root("app").with(CacheConfig { ttl: Duration::from_secs(600) });
//!
//! let layer = CacheLayer::new(
//!     10_000,
//!     |_: &HttpKey, _: &Response<_>| Some(Scope::current()?.get::<CacheConfig>()?.ttl),
//!     http_key,
//! );
//! let service = ServiceBuilder::new()
//!     .layer(layer.classify(HttpStorable))
//!     .map_err(ziggurat::Error::Service)
//!     .service(service_fn(|_: Request<()>| async { Ok::<_, std::io::Error>(Response::new("hello")) }));
//!
//! let answer = app.within(service.oneshot(Request::get("/hello").body(()).unwrap())).await;
//! assert_eq!(answer.unwrap().into_body(), "hello");
//! # }
//! ```

use std::{
    any::type_name,
    fmt,
    hash::Hash,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use tower_layer::Layer;
use tower_service::Service;

use crate::{
    clock,
    outcome::{Classify, FailOnError, Reject},
    telemetry::{LayerEvent, layer_info, layer_setters},
};

mod flight;
mod future;
mod handle;
mod http;
mod leads;
mod policy;
mod revalidate;
mod share;
mod stale;
mod store;

pub use self::{
    future::ResponseFuture,
    handle::{CacheHandle, Stats},
    http::{HttpKey, HttpStorable, http_key},
    policy::{Storable, Ttl, scoped_key},
    revalidate::{InBackground, OnDemand, Revalidate},
    share::{CloneErrors, DescribeErrors, Outcomes, ShareErrors},
    stale::Stale,
};
use self::{
    future::{Call, Duty},
    handle::count,
    policy::Policy,
    share::Landed,
    store::Hashed,
};

/// Answers from memory what was answered before: see the [module](self).
#[doc(alias = "memoize")]
#[doc(alias = "coalesce")]
#[doc(alias = "single flight")]
#[must_use]
pub struct CacheLayer<K, R, F, T = Duration, C = FailOnError, V = OnDemand, H = DescribeErrors> {
    key: F,
    revalidate: V,
    policy: Policy<K, R, T, Outcomes<C, H>>,
}

impl<K: Hash + Eq, R, F, T> CacheLayer<K, R, F, T> {
    /// A cache of at most `capacity` responses.
    ///
    /// `ttl` tells for how long a response is fresh, from when it arrived: a [`Duration`], or a function of key and
    /// response ([`Ttl`]). With [`Duration::ZERO`] nothing is stored, but requests that come at once still share a
    /// call; with [`Duration::MAX`] a response never expires.
    ///
    /// `key` tells which requests are alike. It has to name all that the answer depends on, also *whose* it is (see
    /// [`scoped_key`]): a key that leaves something out gives one caller what is another's. A request with the key
    /// `None` goes past the cache. The closure has to name its argument's type, `|req: &Request<_>| ..`.
    ///
    /// Every response that is not an error is stored: for HTTP, [`HttpStorable`] says which are none to keep, and
    /// [`http_key`] is the key.
    ///
    /// # Panics
    ///
    /// If `capacity` is zero.
    #[track_caller]
    pub fn new<Req>(capacity: usize, ttl: T, key: F) -> Self
    where
        F: Fn(&Req) -> Option<K>,
    {
        assert!(capacity > 0, "capacity must be at least 1, not 0");
        let policy = Policy {
            cache: CacheHandle::new(capacity),
            ttl,
            failure_ttl: Duration::ZERO,
            outcomes: Outcomes { classify: FailOnError, share: DescribeErrors },
            weigh: None,
            mark_stale: None,
            stale_if_error: Duration::ZERO,
            stale_while_revalidate: Duration::ZERO,
            info: layer_info!("cache"),
        };
        Self { key, revalidate: OnDemand, policy }
    }
}

impl<K, R, F, T, C, V, H> CacheLayer<K, R, F, T, C, V, H> {
    /// Weighs the responses: then `capacity` is what all of them together may weigh, in units of your own, such as
    /// bytes.
    ///
    /// It runs once for each response that is stored. A weight of zero counts as one. A response that weighs more than
    /// the capacity is not stored.
    pub fn weigh(mut self, weigh: impl Fn(&K, &R) -> u64 + Send + Sync + 'static) -> Self {
        self.policy.weigh = Some(Arc::new(weigh));
        self
    }

    /// Tells which outcomes are successes: only these are stored. [`FailOnError`] if it is not set.
    ///
    /// For HTTP say [`HttpStorable`]; a closure can be stricter. Others who wait for the same call get a failure as
    /// well, but the next request calls again. A response that is ignored goes to the one who made the call alone.
    pub fn classify<C2>(self, classify: C2) -> CacheLayer<K, R, F, T, C2, V, H> {
        let policy = self.policy.outcomes(|Outcomes { share, .. }| Outcomes { classify, share });
        CacheLayer { key: self.key, revalidate: self.revalidate, policy }
    }

    /// Gives all who share a call that fails a copy of its error, which has to be `Clone + Send + Sync + 'static`.
    ///
    /// Without it the caller that made the call gets the error, and the others
    /// [`Reason::Shared`](crate::Reason::Shared), with its message and class. A rejection goes to all in either case.
    pub fn clone_errors(self) -> CacheLayer<K, R, F, T, C, V, CloneErrors> {
        let policy = self.policy.outcomes(|Outcomes { classify, .. }| Outcomes { classify, share: CloneErrors });
        CacheLayer { key: self.key, revalidate: self.revalidate, policy }
    }

    /// Answers with a failure of the service for `ttl` after it, without a call (*negative caching*). Off, or
    /// [`Duration::ZERO`], if it is not set.
    ///
    /// It holds for what [`classify`](Self::classify) calls a failure: a response is answered as it is, an error as
    /// those get it who share its call. It does not hold for a rejection by a layer inside, which says something about
    /// this moment, nor where a stale answer is still of use. Such an entry weighs one.
    pub fn failure_ttl(mut self, ttl: Duration) -> Self {
        self.policy.failure_ttl = ttl;
        self
    }

    /// Marks every answer that had expired when it was given, so that it can be told from a fresh one. `mark` runs on
    /// the copy for one request.
    ///
    /// For HTTP say `.mark_stale(Stale::mark)`, which puts [`Stale`] into the extensions of the response. For other
    /// types, `mark` changes the response in a way of your own. [`LayerEvent::Stale`] tells of such an answer in any case.
    pub fn mark_stale(mut self, mark: impl Fn(&mut R, Stale) + Send + Sync + 'static) -> Self {
        self.policy.mark_stale = Some(Arc::new(mark));
        self
    }

    /// Answers with a response that expired less than `window` ago if the call for a fresh one fails, or is rejected by
    /// a layer inside (RFC 5861, section 4). The failure is then told to nobody.
    ///
    /// What is stale is kept in memory for that long. With [`Duration::MAX`] it stands in for ever.
    pub fn stale_if_error(mut self, window: Duration) -> Self {
        self.policy.stale_if_error = window;
        self
    }

    /// Answers at once with a response that expired less than `window` ago, and fetches a fresh one behind it (RFC
    /// 5861, section 3).
    ///
    /// The fetch runs on a task of its own, which is why only a cache with this setting asks that the inner service,
    /// the request and all else be `Send + 'static`. There is one for each key at a time. It keeps the scope of the
    /// request that started it, but neither its deadline nor its cancellation: a timeout has to stand *inside* of the
    /// cache, or a fetch that hangs keeps its key from being fetched again. If it fails, the next request starts
    /// another one.
    ///
    /// What is stale is kept in memory for that long.
    pub fn stale_while_revalidate(mut self, window: Duration) -> CacheLayer<K, R, F, T, C, InBackground, H> {
        self.policy.stale_while_revalidate = window;
        CacheLayer { key: self.key, revalidate: InBackground, policy: self.policy }
    }

    /// The live state, to invalidate and to look at it.
    #[must_use]
    pub fn handle(&self) -> CacheHandle<K, R> {
        self.policy.cache.clone()
    }

    layer_setters!(policy.info);
}

impl<S, K, R, F, T, C, V, H> Layer<S> for CacheLayer<K, R, F, T, C, V, H>
where
    F: Clone,
    T: Clone,
    C: Clone,
    V: Clone,
    H: Clone,
{
    type Service = Cache<S, K, R, F, T, C, V, H>;

    fn layer(&self, inner: S) -> Self::Service {
        let Self { key, revalidate, policy } = self.clone();
        Cache { inner, key, revalidate, policy: Arc::new(policy) }
    }
}

impl<K, R, F: Clone, T: Clone, C: Clone, V: Clone, H: Clone> Clone for CacheLayer<K, R, F, T, C, V, H> {
    fn clone(&self) -> Self {
        Self { key: self.key.clone(), revalidate: self.revalidate.clone(), policy: self.policy.clone() }
    }
}

impl<K, R, F, T, C, V: fmt::Debug, H> fmt::Debug for CacheLayer<K, R, F, T, C, V, H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CacheLayer")
            .field("key", &type_name::<F>())
            .field("revalidate", &self.revalidate)
            .field("policy", &self.policy)
            .finish()
    }
}

/// The service of [`CacheLayer`].
pub struct Cache<S, K, R, F, T, C, V, H> /* not a Service? see ziggurat::Reject, "It does not compile" */ {
    inner: S,
    key: F,
    revalidate: V,
    policy: Arc<Policy<K, R, T, Outcomes<C, H>>>,
}

impl<S, Req, K, R, F, T, C, V, H> Service<Req> for Cache<S, K, R, F, T, C, V, H>
where
    S: Service<Req, Response = R> + Clone,
    S::Error: Reject<R> + fmt::Display,
    R: Storable,
    K: Hash + Eq,
    F: Fn(&Req) -> Option<K>,
    T: Ttl<K, R>,
    C: Classify<R, S::Error>,
    H: ShareErrors<S::Error>,
    V: Revalidate<ResponseFuture<S, Req, K, T, Outcomes<C, H>>>,
{
    type Response = R;
    type Error = S::Error;
    type Future = ResponseFuture<S, Req, K, T, Outcomes<C, H>>;

    /// Always ready: the answer may be in memory. If it is not, the response future makes a clone of the inner service
    /// ready.
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Req) -> Self::Future {
        let key = (self.key)(&request);
        let call = |request| Call { service: self.inner.clone(), request };
        let Some(key) = key else {
            return ResponseFuture::calling(call(request), None);
        };
        let state = &self.policy.cache.state;
        let key = Hashed { hash: state.store.hash(&key), key };
        if let Some(entry) = state.store.get(&key) {
            match (entry.stale_for(clock::now), &entry.response) {
                (None, found) => {
                    self.policy.info.emit(LayerEvent::Hit);
                    return match found {
                        Landed::Answered(response) => ResponseFuture::answered(response.clone()),
                        failed => ResponseFuture::failed(failed.clone(), Arc::clone(&self.policy)),
                    };
                }
                (Some(stale_for), Landed::Answered(response))
                    if stale_for < self.policy.stale_while_revalidate && self.revalidate.is_possible() =>
                {
                    count(&state.counts.outdated);
                    self.policy.note_stale();
                    if !entry.is_paused(clock::now()) {
                        self.refresh(call(request), key);
                    }
                    return ResponseFuture::answered(self.policy.stale(response, stale_for));
                }
                _ => count(&state.counts.outdated),
            }
        }
        ResponseFuture::missed(call(request), key, Arc::clone(&self.policy))
    }
}

impl<S, K, R, F, T, C, V, H> Cache<S, K, R, F, T, C, V, H> {
    /// Makes a call behind a stale answer, unless there is one.
    fn refresh<Req>(&self, call: Call<S, Req>, key: Hashed<K>)
    where
        S: Service<Req, Response = R>,
        K: Eq,
        V: Revalidate<ResponseFuture<S, Req, K, T, Outcomes<C, H>>>,
    {
        let (state, key) = (&self.policy.cache.state, Arc::new(key));
        let mut found = None;
        let is_back = || {
            found = state.store.peek(&key);
            found.as_ref().is_some_and(|entry| entry.stale_for(clock::now).is_none())
        };
        let lead = state.flights.lead(&key, is_back);
        drop(found);
        if let Some(lead) = lead {
            count(&state.counts.refreshes);
            self.revalidate.run(ResponseFuture::calling(call, Some(Duty::behind(Arc::clone(&self.policy), lead))));
        }
    }
}

impl<S: Clone, K, R, F: Clone, T, C, V: Clone, H> Clone for Cache<S, K, R, F, T, C, V, H> {
    fn clone(&self) -> Self {
        Self {
            inner: self.inner.clone(),
            key: self.key.clone(),
            revalidate: self.revalidate.clone(),
            policy: Arc::clone(&self.policy),
        }
    }
}

impl<S: fmt::Debug, K, R, F, T, C, V: fmt::Debug, H> fmt::Debug for Cache<S, K, R, F, T, C, V, H> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cache")
            .field("inner", &self.inner)
            .field("key", &type_name::<F>())
            .field("revalidate", &self.revalidate)
            .field("policy", &self.policy)
            .finish()
    }
}
