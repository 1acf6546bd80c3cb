//! Caches responses in memory.
//!
//! The layer stores a response under a key, which a function makes from the request, until its ttl expires. Requests
//! with the same key get a copy. Of the concurrent requests that miss the same key, one makes the call and the others
//! wait for its outcome (*single flight*).
//!
//! The cache is bounded by the number or the weight of its entries, and expired entries make room first. A working set
//! that fits stays in memory: from its third round on it has no misses, whatever filled the cache before, and neither a
//! scan of other keys nor a trickle of new ones evicts it. The eviction policy is close to S3-FIFO.
//!
//! # What is stored
//!
//! The cache stores the responses that [`classify`](CacheLayer::classify) calls a success, and never an error. The
//! default classifier takes every response. A response that the classifier [ignores](crate::Class::Ignored) goes only
//! to the caller that made the call. Callers that waited for it make their own calls.
//!
//! # HTTP
//!
//! For HTTP, use `CacheLayer::http()` (feature `http-cache`): a cache by RFC 9111, which reads from the headers what
//! may be stored, for whom and for how long, and streams.
//!
//! The rest of this page is about [`CacheLayer::new`], for values of any type. It can also keep HTTP responses for a
//! ttl of your own, without regard to what their headers say about it:
//!
//! - [`http_key`] separates virtual hosts, and gives no key to a request whose response is not the same for all
//!   callers.
//! - [`HttpStorable`] stores no response that is a failure, is partial, or is meant for a single caller. Without it, a
//!   500 is a response like any other, because a status is not a type, and is served for a whole ttl.
//!
//! # Expiry
//!
//! The ttl starts when the response arrives. At exactly the ttl, the response has expired.
//!
//! # Failures
//!
//! The caller that made the call gets the failure itself. Callers that waited for it get a copy if the failure is a
//! response, the [`Rejection`](crate::Rejection) if it is one, and otherwise a copy of the error if it [can be
//! cloned](CacheLayer::clone_errors), or [`Reason::Shared`](crate::Reason::Shared) with the message and the class of
//! the error.
//!
//! A failure is not stored, unless it has [its own ttl](CacheLayer::failure_ttl). The next request makes a call again.
//! With [`stale_if_error`](CacheLayer::stale_if_error), a stale response can replace the failure.
//!
//! # Order
//!
//! - Outside the timeout, the retry, the circuit breaker and the concurrency limit, so that a hit needs none of them.
//!   The cache can be outside every timeout: the timeout of the caller that makes the call also ends the wait of the
//!   others.
//! - Inside the [`ContextLayer`](crate::context::ContextLayer), so that keys and ttls can come from the scope.
//!
//! Inside a retry, each attempt looks into the cache.
//!
//! # Deadlines
//!
//! With a timeout outside, each request has its own deadline. If a caller's deadline ends its call, at the cache or
//! through a limit inside that obeys the deadline, the key passes to the waiter with the most time left, which makes
//! its own call. A waiter with time left therefore never gets the timeout of another caller. The exception is a retry
//! inside that gives up early because of a short deadline: it fails all waiters.
//!
//! # Cancellation safety
//!
//! A call belongs to the request that makes it. If that request is dropped or panics, the waiter with the most time
//! left (of equal ones the first) makes its own call, and the others wait for it. No caller waits for a response future
//! that was never polled.
//!
//! # Runtimes that are no longer driven
//!
//! A response future that was woken and is not polled for five seconds, for example because its runtime is no longer
//! driven, loses its key to the next request for the key. That request makes a call, also for the other waiters. A
//! response that the abandoned call still gets is not stored. The same holds for a background fetch for a stale
//! response.
//!
//! A request that waits also wakes a call that has slept for five seconds. A second request, five seconds later, then
//! finds out whether the call was polled.
//!
//! A call whose key was invalidated in the meantime is not taken over: no later request joins it. The requests that
//! already wait for it wait until it ends, or until a timeout.
//!
//! # Recursive calls
//!
//! A call that asks for its own key, from inside the call that the cache makes for that key, would wait for itself. It
//! gets [`Reason::Recursive`](crate::Reason::Recursive) at once. The cache detects this through the surroundings of the
//! call, which also carry the deadline. Spawned tasks do not inherit them, not even through
//! [`Scope::spawn`](crate::Scope::spawn), so calls from there are not detected. Neither are two calls that ask for each
//! other's keys. Such a wait ends only with a timeout.
//!
//! # Cost
//!
//! A hit costs the key, a copy of the response, and a read lock on a part of the map. It reads the clock once, or not
//! at all if the response never expires. It needs neither readiness, nor a permit, nor a healthy inner service.
//!
//! The layer needs `S: Clone`, a response that is [`Clone`], and an error that is [`Display`](std::fmt::Display). An
//! [`http::Response`](::http::Response) needs a body such as `Full<Bytes>`, not a streamed one. The service is always
//! ready, and makes a clone of the inner service ready when it makes a call. It is `Send` if the key and the response
//! are `Send + Sync`.
//!
//! # Examples
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
//! Over HTTP, with a ttl from a setting in the scope, which can change while the program runs:
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
    fmt,
    hash::Hash,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use tower_layer::Layer;
use tower_service::Service;

use crate::{
    accessors::inner_accessors,
    clock,
    debug::impl_debug,
    outcome::{Classify, FailOnError, Reject},
    telemetry::{LayerEvent, layer_info, layer_setters},
};

mod flight;
mod future;
mod handle;
mod http;
mod http_storable;
mod leads;
mod policy;
mod revalidate;
#[cfg(feature = "http-cache")]
mod rfc9111;
mod share;
mod stale;
mod store;

#[cfg(feature = "http-cache")]
#[cfg_attr(docsrs, doc(cfg(feature = "http-cache")))]
pub use self::rfc9111::{CacheBody, HttpCache, HttpCacheHandle, HttpCacheLayer, HttpResponseFuture};
pub use self::{
    future::ResponseFuture,
    handle::{CacheHandle, Stats},
    http::{HttpKey, http_key},
    http_storable::HttpStorable,
    policy::{Key, Storable, Ttl, scoped_key},
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

/// Caches responses in memory. See the [module documentation](self).
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
    /// Creates a cache of at most `capacity` responses.
    ///
    /// `ttl` is how long a response stays fresh after its arrival: a [`Duration`], or a function of the key and the
    /// response ([`Ttl`]). With [`Duration::ZERO`] nothing is stored, but concurrent requests still share a call. With
    /// [`Duration::MAX`] a response never expires.
    ///
    /// `key` returns the key of a request. The key must contain everything that the response depends on, including
    /// *whose* response it is (see [`scoped_key`]): an incomplete key gives one caller the response of another. A
    /// request with the key `None` bypasses the cache ([`Stats::bypassed`]). The closure must name the type of its
    /// argument, for example `|req: &Request<_>| ..`.
    ///
    /// Every response that is not an error is stored. For HTTP, [`HttpStorable`] selects the responses that may be
    /// stored.
    ///
    /// # Panics
    ///
    /// If `capacity` is zero.
    #[track_caller]
    pub fn new<YourRequest>(capacity: usize, ttl: T, key: F) -> Self
    where
        F: Fn(&YourRequest) -> Option<K>,
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
    /// Bounds the cache by weight instead of by number: `capacity` is then the total weight of all entries, in units of
    /// your own, such as bytes.
    ///
    /// `weigh` runs once for each response that is stored. A weight of zero counts as one. A response that is heavier
    /// than the capacity is not stored.
    pub fn weigh(mut self, weigh: impl Fn(&K, &R) -> u64 + Send + Sync + 'static) -> Self {
        self.policy.weigh = Some(Arc::new(weigh));
        self
    }

    /// Sets the classifier that decides which outcomes are successes and can be stored. The default is [`FailOnError`].
    ///
    /// For HTTP, use [`HttpStorable`], or a stricter closure. Callers that wait for the same call also get its failure,
    /// but the next request makes a call again. A response that is ignored goes only to the caller that made the call.
    pub fn classify<C2>(self, classify: C2) -> CacheLayer<K, R, F, T, C2, V, H> {
        let policy = self.policy.outcomes(|Outcomes { share, .. }| Outcomes { classify, share });
        CacheLayer { key: self.key, revalidate: self.revalidate, policy }
    }

    /// Gives all callers that share a failed call a copy of its error, which must be `Clone + Send + Sync + 'static`.
    ///
    /// By default, the caller that made the call gets the error, and the others get
    /// [`Reason::Shared`](crate::Reason::Shared) with its message and class. A rejection goes to all of them in either
    /// case.
    pub fn clone_errors(self) -> CacheLayer<K, R, F, T, C, V, CloneErrors> {
        let policy = self.policy.outcomes(|Outcomes { classify, .. }| Outcomes { classify, share: CloneErrors });
        CacheLayer { key: self.key, revalidate: self.revalidate, policy }
    }

    /// Serves a failure of the service from memory for `ttl`, without a call (*negative caching*).
    ///
    /// The default is [`Duration::ZERO`], which stores no failures. This applies to outcomes that
    /// [`classify`](Self::classify) calls a failure: a response is served as it is, an error as callers that share its
    /// call get it. It applies neither to a rejection by a layer inside, which only describes this moment, nor while a
    /// stale response can still be used. The entry of a failure has the weight one.
    pub fn failure_ttl(mut self, ttl: Duration) -> Self {
        self.policy.failure_ttl = ttl;
        self
    }

    /// Marks responses that have expired when they are served, so that callers can distinguish them from fresh ones.
    ///
    /// `mark` runs on the copy for each request. For HTTP, use `.mark_stale(Stale::mark)`, which puts [`Stale`] into
    /// the extensions of the response. For other types, `mark` can change the response in any way.
    /// [`LayerEvent::Stale`] is emitted in any case.
    pub fn mark_stale(mut self, mark: impl Fn(&mut R, Stale) + Send + Sync + 'static) -> Self {
        self.policy.mark_stale = Some(Arc::new(mark));
        self
    }

    /// Serves a response that expired less than `window` ago if the call for a fresh one fails, or is rejected by a
    /// layer inside (RFC 5861, section 4). No caller sees the failure.
    ///
    /// Stale responses are kept in memory for `window`. With [`Duration::MAX`], they can be used forever.
    pub fn stale_if_error(mut self, window: Duration) -> Self {
        self.policy.stale_if_error = window;
        self
    }

    /// Serves a response that expired less than `window` ago at once, and fetches a fresh one in the background (RFC
    /// 5861, section 3).
    ///
    /// The fetch runs on a separate task. This is why only a cache with this setting needs an inner service, requests
    /// and so on that are `Send + 'static`. There is at most one fetch for each key at a time. It keeps the scope of
    /// the request that started it, but neither its deadline nor its cancellation: put a timeout *inside* the cache, or
    /// a fetch that hangs keeps its key from being fetched again. If a fetch fails, the next request starts another
    /// one.
    ///
    /// Stale responses are kept in memory for `window`.
    pub fn stale_while_revalidate(mut self, window: Duration) -> CacheLayer<K, R, F, T, C, InBackground, H> {
        self.policy.stale_while_revalidate = window;
        CacheLayer { key: self.key, revalidate: InBackground, policy: self.policy }
    }

    /// Returns the handle to the live state, to invalidate entries and to read statistics.
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

impl_debug!(CacheLayer<K, R, F, T, C, V: fmt::Debug, H> { key: F, revalidate, policy });

/// The service of [`CacheLayer`].
pub /* not a Service? see ziggurat::docs::it_does_not_compile */ struct Cache<S, K, R, F, T, C, V, H> {
    inner: S,
    key: F,
    revalidate: V,
    policy: Arc<Policy<K, R, T, Outcomes<C, H>>>,
}

impl<S, K, R, F, T, C, V, H> Cache<S, K, R, F, T, C, V, H> {
    inner_accessors!();
}

impl<S, Req, K, R, F, T, C, V, H> Service<Req> for Cache<S, K, R, F, T, C, V, H>
where
    S: Service<Req, Response = R> + Clone,
    S::Error: Reject<R> + fmt::Display,
    R: Storable,
    K: Hash + Eq,
    F: Key<Req, K>,
    T: Ttl<K, R>,
    C: Classify<R, S::Error>,
    H: ShareErrors<S::Error>,
    V: Revalidate<ResponseFuture<S, Req, K, T, Outcomes<C, H>>>,
{
    type Response = R;
    type Error = S::Error;
    type Future = ResponseFuture<S, Req, K, T, Outcomes<C, H>>;

    /// Always ready, because the response may be in memory. If not, the response future makes a clone of the inner
    /// service ready.
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Req) -> Self::Future {
        let key = self.key.key(&request);
        let call = |request| Call { service: self.inner.clone(), request };
        let state = &self.policy.cache.state;
        let Some(key) = key else {
            count(&state.counts.bypassed);
            self.policy.info.emit(LayerEvent::Bypassed);
            return ResponseFuture::calling(call(request), None);
        };
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
                    self.policy.note_stale("revalidate");
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
    /// Starts a background fetch for this key, unless there is one.
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

impl_debug!(Cache<S: fmt::Debug, K, R, F, T, C, V: fmt::Debug, H> { inner, key: F, revalidate, policy });
