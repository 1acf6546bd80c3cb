//! Limits the rate of calls of many processes together, through Redis or Valkey.
//!
//! All processes whose layers have the same store and key share one bucket of tokens there: it holds a burst of them,
//! and gains `quantity` tokens in each `period`. Each call takes one. A call that finds none is rejected with
//! [`Reason::RateLimited`]: 429 over HTTP, with the time to come back. It takes nothing from the bucket.
//!
//! For a limit of a single process, use the [`rate_limit`](crate::rate_limit) instead: it decides within nanoseconds,
//! depends on nothing, and lets calls wait for their turn.
//!
//! # Stores
//!
//! A [`RedisStore`](crate::store) (feature `redis`) decides with one script inside the server, by the server's clock. A
//! [`MemoryStore`] is for tests. For another place, such as a database, implement [`TokenStore`]: it is a function that
//! takes tokens from a bucket, and one that gives them back.
//!
//! # While the store is away
//!
//! A store can fail, hang or restart, and then no process knows how many calls the others make. The fate of calls
//! meanwhile is a required choice, [`WhenAway`]: they are admitted, rejected with [`Reason::StoreUnavailable`] (503),
//! or limited to a share of the quota by each process.
//!
//! The store counts as away once a request to it has failed, or was not answered within the
//! [`timeout`](SharedRateLimitLayer::timeout). From then on, no call waits for it. A request that no call waits for
//! probes the store after a pause of up to 100 ms, and after longer ones of up to 2 s while it stays away. With the
//! first answer the limit works as before. An observer receives [`LayerEvent::StoreFailed`] for each failure, and a
//! transition between `answering` and `away`.
//!
//! # Bounds
//!
//! In any span of time `t`, the calls that all processes together make for one key take no more tokens than this:
//!
//! | the store | bound |
//! |---|---|
//! | keeps its data, and answers in time | `burst + quantity * t / period`, and the outstanding leases |
//! | is away or slow, [`WhenAway::Admit`] | none |
//! | is away or slow, [`WhenAway::Reject`] | the outstanding leases |
//! | is away or slow, [`WhenAway::Share`] | the outstanding leases, and for each process the quota of its share |
//! | forgets its data, as a server that is killed | one further burst for each time |
//!
//! The outstanding leases are at most those of all processes at the start of the span: for each, the number of
//! [`lease`](SharedRateLimitLayer::lease), or the cost of a single call if that is higher. Redis counts `t` in whole
//! microseconds. The bounds of several rows add up over a span in which the store was in several states.
//!
//! A request that is answered too late may have taken tokens. No call uses them, and they are missing until the bucket
//! has gained them again.
//!
//! # Leases
//!
//! A process that makes many calls takes several tokens at once and spends them without the store. The number starts at
//! one, the token of the call that asks. It doubles each time that its tokens are used up within half of the time for
//! which they may be kept (100 ms by default), up to a twentieth of the burst. So a process that makes few calls holds
//! nothing, and one that makes many asks the store about twenty times a second, whatever its rate.
//!
//! Tokens that are not spent in that time are forgotten. When the last service of a layer value and the value itself
//! are dropped inside a tokio runtime that goes on, its tokens return to the store, except for as many as the bucket
//! has gained since they were taken.
//!
//! While the bucket is empty, one request of each process and key finds out how long it will be, and all calls are
//! rejected without the store until then.
//!
//! # Keys
//!
//! The key may be a function of the request, for a limit for each tenant or address. A request without a key (`None`)
//! is not limited. This process remembers 10,000 keys by default
//! ([`max_keys`](SharedRateLimitLayer::max_keys)), and forgets idle ones to make room for new ones.
//!
//! ```
//! use std::time::Duration;
//! use http::Request;
//! use ziggurat::{shared_rate_limit::{SharedRateLimitLayer, WhenAway}, store::{MemoryStore, Quota}};
//!
//! let tenant = |request: &Request<String>| {
//!     let tenant = request.headers().get("x-tenant")?.to_str().ok()?;
//!     Some(format!("tenant:{tenant}"))
//! };
//! let quota = Quota::new(1000, Duration::from_secs(60)).burst(100);
//! // Ten processes at most.
//! let share = WhenAway::Share(Quota::new(100, Duration::from_secs(60)).burst(10));
//! let limit = SharedRateLimitLayer::new(MemoryStore::new(), tenant, quota, share);
//! # let _ = limit.layer(tower::service_fn(|_: Request<String>| async { Ok::<_, ziggurat::Error<()>>(()) }));
//! # use tower::Layer;
//! ```
//!
//! A string that a caller chooses becomes a part of a key in the store: bound its length, for example by a hash.
//!
//! # Waiting
//!
//! A call that finds no lease waits for the store in its response future, from the first poll, and no longer than the
//! [`timeout`](SharedRateLimitLayer::timeout) (100 ms by default). One request of a key is under way at a time, and all
//! calls of that key wait for its answer, in order of arrival. A call never waits for tokens that are not there yet.
//!
//! # Order
//!
//! As the [`rate_limit`](crate::rate_limit#order): on a server outside all expensive work, on a client inside the retry
//! and outside the attempt timeout. Neither kind of its rejections counts against the service, and a retry outside does
//! not repeat them.
//!
//! # Cancellation safety
//!
//! A request to the store belongs to the limit and not to the call that needed it, so a call that is dropped leaves no
//! other call without an answer. Tokens that were granted to a call that is dropped before it was made return to the
//! lease of this process, as far as it has room for them. If a call is dropped while it waits here, a circuit breaker
//! outside does not count it against the service.
//!
//! # Requirements
//!
//! The service must be `Clone`. A call that waits or is rejected drops the ready service that it was called on. Once
//! admitted, it makes its own clone ready. Requests to the store run as tasks of the current tokio runtime, so a call
//! that waits panics outside of one, or if it has no clock.
//!
//! # Performance
//!
//! A call that spends a token of a lease reads the clock once, looks its key up under a lock, and takes the lock of the
//! key. It allocates nothing if its key does not.
//!
//! # Examples
//!
//! ```
//! use std::time::Duration;
//! use tower::{Layer, ServiceExt, service_fn};
//! use ziggurat::{
//!     Error,
//!     shared_rate_limit::{SharedRateLimitLayer, WhenAway},
//!     store::{MemoryStore, Quota},
//! };
//!
//! # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() {
//! // In a program: `RedisStore::new(connection)`.
//! let store = MemoryStore::new();
//! let quota = Quota::new(2, Duration::from_secs(1));
//! let limit = SharedRateLimitLayer::new(store, "api", quota, WhenAway::Reject);
//! let service = limit.layer(service_fn(|word: &'static str| async move { Ok::<_, Error<()>>(word) }));
//!
//! assert_eq!(service.clone().oneshot("first").await.unwrap(), "first");
//! assert_eq!(service.clone().oneshot("second").await.unwrap(), "second");
//! let third = service.oneshot("third").await;
//! let rejection = ziggurat::rejection(&third).unwrap();
//! assert!(rejection.is_rate_limited());
//! assert_eq!(rejection.retry_after(), Some(Duration::from_millis(500)));
//! # }
//! ```

mod entry;
mod future;
mod handle;
mod lease;
mod limit;
mod request;
mod shared;
mod wait;

use std::{
    fmt,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use tower_layer::Layer;
use tower_service::Service;

use self::{
    entry::{Local, Rules},
    lease::Terms,
    limit::{Limit, Settings},
    shared::Shared,
    wait::Wait,
};
pub use self::{future::ResponseFuture, handle::SharedRateLimitHandle, limit::WhenAway};
use crate::{
    accessors::inner_accessors,
    bucket::Denied,
    clock,
    debug::impl_debug,
    keep::keep_while,
    outcome::Reject,
    setting::Setting,
    store::{Key, Quota, TokenStore},
    telemetry::{layer_info, layer_setters},
};
#[cfg(doc)]
use crate::{outcome::Reason, store::MemoryStore, telemetry::LayerEvent};

/// How long a call waits for the store.
///
/// Five times the default of Envoy's filter for a global rate limit (20 ms), because a call that is decided without the
/// store is the worse outcome, and a server in the same data centre answers within a millisecond.
const TIMEOUT: Duration = Duration::from_millis(100);

/// How long tokens of a lease are kept.
const KEEP: Duration = Duration::from_millis(100);

/// The number of keys that are known at once. Some 300 bytes each.
const MAX_KEYS: usize = 10_000;

/// The longest timeout, and the longest time for which tokens are kept.
const HOUR: Duration = Duration::from_secs(60 * 60);

/// Limits the rate of calls of many processes together: see the [module](self).
///
/// Two layer values share nothing but their buckets in the store, if their keys are the same. Clones of one value share
/// everything.
#[doc(alias = "distributed")]
#[doc(alias = "global")]
#[must_use]
pub struct SharedRateLimitLayer<St: TokenStore, K, C = u32> {
    settings: Settings<St>,
    key: K,
    cost: C,
}

impl<St: TokenStore, K> SharedRateLimitLayer<St, K> {
    /// Admits the calls of all processes at the rate of `quota`, with a bucket for each key in this store.
    ///
    /// The key is a string, or a function of the request (see [keys](self#keys)). `when_away` decides about the calls
    /// while the store is away or slow.
    ///
    /// # Panics
    ///
    /// Panics if a [`WhenAway::Share`] admits more than the whole quota.
    #[track_caller]
    pub fn new(store: St, key: K, quota: Quota, when_away: WhenAway) -> Self {
        if let WhenAway::Share(share) = when_away {
            let is_part = share.capacity() <= quota.capacity() && !quota.is_slower_than(&share);
            assert!(is_part, "the share {share:?} must not admit more than the whole quota {quota:?}");
        }
        let limit = Limit { store: Arc::new(store), shared: Arc::new(Shared::new()), quota };
        let terms = Terms { most: (quota.capacity() / 20).max(1), keep: KEEP };
        let rules = Rules { quota, terms, timeout: TIMEOUT };
        let info = layer_info!("shared_rate_limit");
        let settings = Settings { limit: Arc::new(limit), rules, when_away, max_keys: MAX_KEYS, info };
        Self { settings, key, cost: 1 }
    }
}

impl<St: TokenStore, K, C> SharedRateLimitLayer<St, K, C> {
    /// Sets the number of tokens that a call takes: a `u32`, or a function of the request that returns one (or an
    /// `Option` of one, where `None` means that the call takes none). The default is 1.
    ///
    /// A plain number needs its type, as in `.cost(10_u32)`. A call that costs nothing is not limited. One that costs
    /// more than the burst is rejected with [`Reason::CostTooHigh`].
    pub fn cost<D>(self, cost: D) -> SharedRateLimitLayer<St, K, D> {
        let Self { settings, key, cost: _ } = self;
        SharedRateLimitLayer { settings, key, cost }
    }

    /// Sets how long a call waits for the store. The default is 100 ms.
    ///
    /// With zero, a call waits for no store but one that answers at once, such as a [`MemoryStore`]. More than an hour
    /// is an hour.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.settings.rules.timeout = timeout.min(HOUR);
        self
    }

    /// Sets how many tokens this process may take ahead of its calls for each key, and for how long it may keep them.
    /// The default is a twentieth of the burst, at least 1, for 100 ms. See [leases](self#leases).
    ///
    /// With `most` 1, nothing is taken ahead, and each call that is admitted is a request to the store. `keep` is at
    /// least a millisecond, and at most an hour.
    ///
    /// # Panics
    ///
    /// Panics if `most` is zero.
    #[track_caller]
    pub fn lease(mut self, most: u32, keep: Duration) -> Self {
        assert!(most > 0, "`most` must be at least 1: a call needs a token");
        self.settings.rules.terms = Terms { most, keep: keep.clamp(Duration::from_millis(1), HOUR) };
        self
    }

    /// Sets for how many keys this process keeps leases, denials and shares at once. The default is 10,000.
    ///
    /// Beyond that number, idle keys are forgotten. If there are none, calls for new keys ask the store one by one, and
    /// while it is away they all have one [share](WhenAway::Share) together.
    pub fn max_keys(mut self, max_keys: usize) -> Self {
        self.settings.max_keys = max_keys;
        self
    }

    layer_setters!(settings.info);

    /// Returns a handle that reads the live state.
    #[must_use]
    pub fn handle(&self) -> SharedRateLimitHandle {
        SharedRateLimitHandle { shared: Arc::clone(&self.settings.limit.shared) }
    }
}

// Manual: the store need not be `Clone`.
impl<St: TokenStore, K: Clone, C: Clone> Clone for SharedRateLimitLayer<St, K, C> {
    fn clone(&self) -> Self {
        Self { settings: self.settings.clone(), key: self.key.clone(), cost: self.cost.clone() }
    }
}

impl_debug!(SharedRateLimitLayer<St: TokenStore, K, C> { settings, key: K, cost: C });

impl<S, St: TokenStore, K: Clone, C: Clone> Layer<S> for SharedRateLimitLayer<St, K, C> {
    type Service = SharedRateLimit<S, St, K, C>;

    fn layer(&self, inner: S) -> Self::Service {
        let Self { settings, key, cost } = self;
        let shared = Arc::clone(&settings.limit.shared);
        keep_while(move || !shared.is_idle());
        SharedRateLimit { inner, settings: Arc::new(settings.clone()), key: key.clone(), cost: cost.clone() }
    }
}

/// The service of [`SharedRateLimitLayer`].
pub /* not a Service? see ziggurat::docs::it_does_not_compile */ struct SharedRateLimit<S, St: TokenStore, K, C = u32> {
    inner: S,
    // Shared by all clones: a reference count is cheaper than a copy of the settings.
    settings: Arc<Settings<St>>,
    key: K,
    cost: C,
}

impl<S, St: TokenStore, K, C> SharedRateLimit<S, St, K, C> {
    inner_accessors!();
}

// Manual: the store need not be `Clone`.
impl<S: Clone, St: TokenStore, K: Clone, C: Clone> Clone for SharedRateLimit<S, St, K, C> {
    fn clone(&self) -> Self {
        let Self { inner, settings, key, cost } = self;
        Self { inner: inner.clone(), settings: Arc::clone(settings), key: key.clone(), cost: cost.clone() }
    }
}

impl_debug!(SharedRateLimit<S: fmt::Debug, St: TokenStore, K, C> { inner, settings, key: K, cost: C });

impl<S: Clone, St: TokenStore, K, C> SharedRateLimit<S, St, K, C> {
    /// Returns the settings and a clone of the service.
    ///
    /// Drops the service that was made ready, together with its reservations for a call that it will not receive.
    #[cold]
    fn set_aside(&mut self) -> (Arc<Settings<St>>, S) {
        let service = self.inner.clone();
        self.inner = service.clone();
        (Arc::clone(&self.settings), service)
    }
}

impl<S, St, K, C, Req> Service<Req> for SharedRateLimit<S, St, K, C>
where
    S: Service<Req> + Clone,
    S::Error: Reject<S::Response>,
    St: TokenStore,
    K: Key<Req>,
    C: Setting<Req, u32>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = ResponseFuture<S, Req, St>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Req) -> Self::Future {
        let cost = self.cost.get(&request).unwrap_or(0);
        if cost == 0 {
            return ResponseFuture::running(self.inner.call(request));
        }
        let Some(key) = self.key.get(&request) else {
            return ResponseFuture::running(self.inner.call(request));
        };
        let Settings { limit, rules, max_keys, .. } = &*self.settings;
        let burst = rules.quota.capacity();
        if cost > burst {
            let (settings, _) = self.set_aside();
            return ResponseFuture::denied(settings, Denied::Never { burst }, cost);
        }
        let entry = limit.shared.entry(&key, *max_keys);
        let decision = entry.decide(clock::now(), cost, rules);
        drop(key);
        match decision {
            Local::Admitted => ResponseFuture::running(self.inner.call(request)),
            Local::Denied(wait) => {
                let (settings, _) = self.set_aside();
                ResponseFuture::denied(settings, Denied::Wait(wait), cost)
            }
            Local::Unknown => {
                let (settings, service) = self.set_aside();
                ResponseFuture::waiting(Wait::new(settings, entry, cost), service, request)
            }
        }
    }
}
