//! Shares responses between processes, through Redis or Valkey: the second level of a cache.
//!
//! A call looks its key up in the store. If there is a response, that is the response of the call. If not, the call is
//! made, and a response that may be stored is put into the store, for all processes.
//!
//! In front of it belongs a [`cache`](crate::cache) in memory, the first level. It answers without a request to the
//! store, and lets concurrent calls for one key share one lookup and one call. This layer does neither: two processes
//! that miss a key at the same time both make a call.
//!
//! # Stores
//!
//! A store is a [`RedisStore`](crate::store) (feature `redis`), a [`MemoryStore`] for tests, or another [`ValueStore`].
//! Layers with different responses need a prefix of their own in the store, or keys that begin differently.
//!
//! A [`Codec`] encodes responses as bytes, and decodes them. For HTTP there is [`HttpCodec`]. Bytes that it cannot
//! decode count as a miss. An observer receives [`LayerEvent::NotDecoded`], and the response of the call takes their
//! place.
//!
//! # Stored responses
//!
//! As in the [`cache`](crate::cache#what-is-stored): the responses that [`classify`](SharedCacheLayer::classify) calls
//! a success, and never an error, up to [`max_bytes`](SharedCacheLayer::max_bytes). Over HTTP use `http_key` and
//! `HttpStorable`, or a response for one caller is given to another. [`HttpCodec`] has an example.
//!
//! # While the store is away
//!
//! A store that fails, hangs or restarts fails no call, and delays none by more than the
//! [`timeout`](SharedCacheLayer::timeout) (100 ms by default). Each call is then made, as without this layer. After the
//! first failure the store counts as [away](crate::store#while-a-store-is-away), and no call waits for it. No call ever
//! waits until its response is stored. A store that stores nothing, for example because it is full, is still read:
//! only further responses are not sent to it, apart from one after each pause.
//!
//! So the service has to bear all calls that miss the first level. If it does not, limit them inside, for example with
//! a [`ConcurrencyLimitLayer`](crate::concurrency_limit::ConcurrencyLimitLayer).
//!
//! # Expiry
//!
//! The ttl starts when the response is stored. A first level starts its own ttl when it receives a response, also one
//! from the store. So the ages add up: with 10 s in memory and 60 s in the store, a caller may get a response that is
//! 70 s old.
//!
//! [`remove`](SharedCacheHandle::remove) removes a response from the store, and so for all processes, but each first
//! level serves it until its own ttl ends. A short ttl of the first level bounds that.
//!
//! # Order
//!
//! As the [`cache`](crate::cache#order), directly inside it: outside the retry, the circuit breaker and the limits. A
//! timeout outside covers the lookup.
//!
//! # Cancellation safety
//!
//! A call that is dropped stores nothing. Requests to the store run on, as tasks of their own, so a lookup whose call
//! is dropped still says whether the store answers. If a call is dropped during its lookup, a circuit breaker outside
//! does not count it against the service.
//!
//! # Requirements
//!
//! The service must be [`Clone`]. This layer is always ready, and makes a clone of the inner service ready when it
//! makes a call. Requests to the store run as tasks of the current tokio runtime, so a call panics outside of one, or
//! if it has no clock, unless the store answers at once.
//!
//! # Examples
//!
//! ```
//! use std::time::Duration;
//! use bytes::Bytes;
//! use tower::{ServiceBuilder, ServiceExt, service_fn};
//! use ziggurat::{Error, cache::CacheLayer, shared_cache::SharedCacheLayer, store::MemoryStore};
//!
//! # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() {
//! // In a program: `RedisStore::new(connection)`.
//! let store = MemoryStore::new();
//! let codec =
//!     (|name: &String| Some(Bytes::from(name.clone())), |bytes: Bytes| String::from_utf8(bytes.into()));
//! let shared = SharedCacheLayer::new(store, Duration::from_secs(60), |id: &u32| format!("user:{id}"), codec);
//!
//! // Two processes have the store in common, and nothing else.
//! let process = |number| {
//!     let users = service_fn(move |id: u32| async move { Ok::<_, std::io::Error>(format!("user {id} by {number}")) });
//!     let memory = CacheLayer::new(1_000, Duration::from_secs(5), |id: &u32| Some(*id));
//!     ServiceBuilder::new().layer(memory).layer(shared.clone()).map_err(Error::Service).service(users)
//! };
//! assert_eq!(process(1).oneshot(7).await.unwrap(), "user 7 by 1");
//! assert_eq!(process(2).oneshot(7).await.unwrap(), "user 7 by 1");
//!
//! shared.handle().remove("user:7").await.unwrap();
//! assert_eq!(process(2).oneshot(7).await.unwrap(), "user 7 by 2");
//! # }
//! ```

mod entry;
mod future;
mod handle;
mod http;
mod lookup;

use std::{
    fmt,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use tower_layer::Layer;
use tower_service::Service;

pub use self::{future::ResponseFuture, handle::SharedCacheHandle, http::HttpCodec};
use self::{
    handle::Shared,
    lookup::{Place, Settings},
};
#[cfg(doc)]
use crate::store::MemoryStore;
use crate::{
    accessors::inner_accessors,
    debug::impl_debug,
    outcome::{Classify, FailOnError, Reject},
    setting::Setting,
    store::{Codec, Key, ValueStore},
    telemetry::{LayerEvent, layer_info, layer_setters},
};

/// How long a call waits for the store: as long as that of a shared rate limit.
const TIMEOUT: Duration = Duration::from_millis(100);

/// The size of the largest response that is stored. Memcached's limit for an item.
const MAX_BYTES: usize = 1024 * 1024;

/// The longest timeout.
const HOUR: Duration = Duration::from_secs(60 * 60);

/// Shares responses between processes: see the [module](self).
///
/// Two layer values share nothing but the responses in their store, if their keys are the same. Clones of one value
/// share everything.
#[doc(alias = "distributed")]
#[must_use]
pub struct SharedCacheLayer<St, K, D, T = Duration, C = FailOnError> {
    settings: Settings<St, D, C>,
    key: K,
    ttl: T,
}

impl<St: ValueStore, F, D, T> SharedCacheLayer<St, F, D, T> {
    /// Creates a cache whose responses are in this store.
    ///
    /// `ttl` is how long a response is in the store: a [`Duration`], or a function of the request. With
    /// [`Duration::ZERO`] nothing is stored. Neither is a response whose call, with the [`timeout`](Self::timeout) of the
    /// store, takes longer than the ttl or a minute: its key may have been [removed](SharedCacheHandle::remove) meanwhile.
    ///
    /// `key` is a function of the request that returns a `String`, or an `Option` of one. It must contain everything
    /// that the response depends on, including *whose* response it is: an incomplete key gives one caller the response
    /// of another. A request with the key `None` bypasses the cache.
    ///
    /// `codec` encodes responses as bytes: a pair of closures, [`HttpCodec`], or another [`Codec`].
    ///
    /// Every response that is not an error is stored. Over HTTP, [`classify`](Self::classify) selects those that may
    /// be.
    pub fn new<YourRequest, O>(store: St, ttl: T, key: F, codec: D) -> Self
    where
        F: Fn(&YourRequest) -> O,
        O: Into<Option<String>>,
    {
        let shared = Arc::new(Shared::new(store));
        let (classify, timeout, max_bytes, info) = (FailOnError, TIMEOUT, MAX_BYTES, layer_info!("shared_cache"));
        Self { settings: Settings { shared, codec, classify, timeout, max_bytes, info }, key, ttl }
    }
}

impl<St: ValueStore, K, D, T, C> SharedCacheLayer<St, K, D, T, C> {
    /// Sets the classifier that decides which responses are successes and can be stored. The default is
    /// [`FailOnError`].
    ///
    /// For HTTP, use `HttpStorable` of the [`cache`](crate::cache), or a stricter closure.
    pub fn classify<C2>(self, classify: C2) -> SharedCacheLayer<St, K, D, T, C2> {
        let Self { settings: Settings { shared, codec, classify: _, timeout, max_bytes, info }, key, ttl } = self;
        SharedCacheLayer { settings: Settings { shared, codec, classify, timeout, max_bytes, info }, key, ttl }
    }

    /// Sets how long a call waits for the store, and how long the store may take to put a response. The default is 100
    /// ms.
    ///
    /// With zero, only a store that answers at once is used, such as a [`MemoryStore`]. More than an hour is an hour.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.settings.timeout = timeout.min(HOUR);
        self
    }

    /// Sets the size of the largest response that is stored, in encoded bytes. The default is 1 MiB.
    ///
    /// A large one takes a while to send, and other requests over the same connection wait for it.
    pub fn max_bytes(mut self, max_bytes: usize) -> Self {
        self.settings.max_bytes = max_bytes;
        self
    }

    layer_setters!(settings.info);

    /// Returns a handle, which removes responses and reads the live state.
    #[must_use]
    pub fn handle(&self) -> SharedCacheHandle<St> {
        SharedCacheHandle { shared: Arc::clone(&self.settings.shared) }
    }
}

// Manual: the store need not be `Clone`.
impl<St, K: Clone, D: Clone, T: Clone, C: Clone> Clone for SharedCacheLayer<St, K, D, T, C> {
    fn clone(&self) -> Self {
        Self { settings: self.settings.clone(), key: self.key.clone(), ttl: self.ttl.clone() }
    }
}

impl_debug!(SharedCacheLayer<St, K, D, T, C> { settings, key: K, ttl: T });

impl<S, St, K: Clone, D: Clone, T: Clone, C: Clone> Layer<S> for SharedCacheLayer<St, K, D, T, C> {
    type Service = SharedCache<S, St, K, D, T, C>;

    fn layer(&self, inner: S) -> Self::Service {
        let Self { settings, key, ttl } = self.clone();
        SharedCache { inner, settings: Arc::new(settings), key, ttl }
    }
}

/// The service of [`SharedCacheLayer`].
pub /* not a Service? see ziggurat::docs::it_does_not_compile */ struct SharedCache<S, St, K, D, T, C> {
    inner: S,
    settings: Arc<Settings<St, D, C>>,
    key: K,
    ttl: T,
}

impl<S, St, K, D, T, C> SharedCache<S, St, K, D, T, C> {
    inner_accessors!();
}

// Manual: neither the store nor the codec need be `Clone`.
impl<S: Clone, St, K: Clone, D, T: Clone, C> Clone for SharedCache<S, St, K, D, T, C> {
    fn clone(&self) -> Self {
        let Self { inner, settings, key, ttl } = self;
        Self { inner: inner.clone(), settings: Arc::clone(settings), key: key.clone(), ttl: ttl.clone() }
    }
}

impl_debug!(SharedCache<S: fmt::Debug, St, K, D, T, C> { inner, settings, key: K, ttl: T });

impl<S, St, K, D, T, C, Req> Service<Req> for SharedCache<S, St, K, D, T, C>
where
    S: Service<Req> + Clone,
    S::Error: Reject<S::Response>,
    St: ValueStore,
    K: Key<Req>,
    D: Codec<S::Response> + Send + Sync + 'static,
    T: Setting<Req, Duration>,
    C: Classify<S::Response, S::Error> + Send + Sync + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = ResponseFuture<S, Req, St, D, C>;

    /// Always ready, because the response may be in the store. If not, the response future makes a clone of the inner
    /// service ready.
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Req) -> Self::Future {
        let key: Option<Arc<str>> = self.key.get(&request).map(|key| Arc::from(&*key));
        let (Some(key), Some(ttl)) = (key, self.ttl.get(&request)) else {
            self.settings.info.emit(LayerEvent::Bypassed);
            return ResponseFuture::calling(self.inner.clone(), request);
        };
        let place = Place { settings: Arc::clone(&self.settings), key, ttl, since: None };
        ResponseFuture::looking(place, self.inner.clone(), request)
    }
}
