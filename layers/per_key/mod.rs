//! One instance of any layer or stack for each key: a circuit breaker for each host, a rate for each tenant.
//!
//! A function of the request returns its key, and another one makes the layer of a key:
//!
//! ```
//! use std::time::Duration;
//! use http::{Request, Response};
//! use tower::{ServiceBuilder, ServiceExt, service_fn};
//! use ziggurat::{
//!     Error,
//!     per_key::{PerKeyLayer, Unkeyed},
//!     rate_limit::RateLimitLayer,
//! };
//!
//! # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() {
//! fn api_key(request: &Request<()>) -> Result<&str, Unkeyed> {
//!     let header = request.headers().get("x-api-key").ok_or(Unkeyed::Reject)?;
//!     header.to_str().map_err(|_| Unkeyed::Reject)
//! }
//!
//! let service = ServiceBuilder::new()
//!     .layer(PerKeyLayer::borrowed(api_key, |_| RateLimitLayer::new(2, Duration::from_secs(1))))
//!     .map_err(Error::Service)
//!     .service(service_fn(|_: Request<()>| async { Ok::<_, std::io::Error>(Response::new("hello")) }));
//!
//! let by = |key| Request::builder().header("x-api-key", key).body(()).unwrap();
//! assert!(service.clone().oneshot(by("adam")).await.is_ok());
//! assert!(service.clone().oneshot(by("adam")).await.is_ok());
//! assert!(service.clone().oneshot(by("adam")).await.unwrap_err().is_rate_limited());
//! assert!(service.clone().oneshot(by("eve")).await.is_ok());
//! # }
//! ```
//!
//! For HTTP clients, [`PerKeyLayer::host`] takes the host and port of the request as the key.
//!
//! # Requests without a key
//!
//! The function of the key returns a `Result`, so that each request without a key has a choice of its own:
//! [`Unkeyed::Share`], [`Unkeyed::Pass`] or [`Unkeyed::Reject`] ([`Reason::NoKey`](crate::Reason::NoKey), HTTP 400).
//!
//! # How many keys
//!
//! At most [`max_keys`](PerKeyLayer::max_keys) keys have an instance at a time; the default is 10,000. A new key beyond
//! that takes the place of one that is not needed. An instance is needed
//!
//! - while a call of it is under way, up to its response, and
//! - while a layer in it has state that a new one would not have: a circuit that is not closed, permits that are held
//!   (also until the end of a body), a bucket of tokens that is not full or waits for a true cost, a drain that has
//!   begun. Your own layer says so with [`keep_while`]. Other state, such as the responses of a cache or the failures
//!   that a closed circuit has seen, does not keep an instance, nor does a setting that was changed by a handle: `make`
//!   chooses the settings that have to last.
//!
//! An open circuit half-opens only for a call. If none comes, it is kept for a minute after it could have half-opened,
//! and for ten times its open time at least. Otherwise hosts that are gone for good would keep out all others.
//!
//! A layer value that all instances share, such as one concurrency limit for all keys, keeps all of them while it is in
//! use. It belongs outside.
//!
//! Of the others, those that were not used lately go first. A new key looks at 32 instances at most, so it may find no
//! room although there is some. Then its requests share one instance, made by `make(None)`, unless
//! [`overflow`](PerKeyLayer::overflow) says otherwise. The next request looks again.
//!
//! So a flood of keys costs no more memory than `max_keys` instances with their keys, and pushes out no instance that
//! matters. If callers choose the keys, reject long ones. There is no background task: an unused instance
//! stays until its place is needed.
//!
//! # Shared state
//!
//! All services that one layer value makes share its instances: all routes of a router together have one rate for a
//! tenant. Each of them keeps a service of its own for each key, which it makes when it first meets the key. A layer
//! from elsewhere that keeps its state in the service, as tower's `ConcurrencyLimitLayer` does, therefore has one state
//! for each key *and route*. The last clone of a service releases its services in all instances, which walks over all
//! keys. So make one service and clone it, rather than one for each connection.
//!
//! The layer of a key may be a `PerKeyLayer` too. To see whether such an instance is needed, a look walks over its
//! keys.
//!
//! # Order
//!
//! Outside the layers that `make` returns, in place of them. Outside it belong the layers that are the same for all
//! keys, such as a total timeout, a cache, or a concurrency limit for the whole program.
//!
//! # Cancellation safety
//!
//! Dropping the response future drops the call, and the instance is needed no longer on its account.
//!
//! # Panics
//!
//! If a function panics, the panic propagates, and nothing changes: a key whose instance could not be made is new to
//! its next request.
//!
//! # Requirements
//!
//! The inner service must be `Clone`, and so must the services that the layer of a key makes, which must also be
//! `Send + 'static`. The service is always ready, and makes a clone of the key's service ready in the response future.
//! Keys are compared, and services cloned, under the lock of a part of the keys, so neither may call the service or a
//! handle of the layer.
//!
//! # Cost
//!
//! A call of a known key costs the hash of the key, a lock that it shares with a part of the other keys, and a clone of
//! the key's service. It allocates nothing, unless the function of the key does; [`borrowed`](PerKeyLayer::borrowed)
//! needs no copy of a key. It does not read the clock.
//!
//! # Examples
//!
//! A circuit breaker for each host, and the states of all:
//!
//! ```
//! use std::convert::Infallible;
//! use http::{Request, Response};
//! use tower::{ServiceBuilder, ServiceExt, service_fn};
//! use ziggurat::{
//!     Error,
//!     circuit_breaker::{CircuitBreakerLayer, State},
//!     per_key::{PerKeyLayer, Unkeyed},
//! };
//!
//! # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() {
//! let layer = PerKeyLayer::host(Unkeyed::Share, |_| CircuitBreakerLayer::http().consecutive_failures(1));
//! let hosts = layer.handle();
//! let client = ServiceBuilder::new().layer(layer).map_err(Error::Service).service(service_fn(
//!     |request: Request<()>| async move {
//!         let is_down = request.uri().host() == Some("down.example");
//!         Ok::<_, Infallible>(Response::builder().status(if is_down { 503 } else { 200 }).body(()).unwrap())
//!     },
//! ));
//!
//! for uri in ["http://down.example/", "http://up.example/"] {
//!     client.clone().oneshot(Request::builder().uri(uri).body(()).unwrap()).await.unwrap();
//! }
//! let state = |host| hosts.instance(host).unwrap().layer.handle().state();
//! assert_eq!(state("down.example"), State::Open);
//! assert_eq!(state("up.example"), State::Closed);
//! # }
//! ```

mod family;
mod future;
mod handle;
mod instance;
mod key;
mod registry;

use std::{
    borrow::Borrow,
    hash::Hash,
    marker::PhantomData,
    sync::Arc,
    task::{Context, Poll},
};

use tower_layer::Layer;
use tower_service::Service;

use self::{family::Family, registry::Registry};
pub use self::{
    future::ResponseFuture,
    handle::PerKeyHandle,
    instance::PerKeyInstance,
    key::{BorrowedKey, FindKey, HostKey, OwnedKey, Unkeyed},
};
pub use crate::keep::keep_while;
use crate::{
    accessors::inner_accessors,
    call::Call,
    debug::impl_debug,
    keep,
    outcome::{Reason, Reject, Rejection},
    telemetry::{LayerInfo, layer_info, layer_setters},
};

/// The default maximum number of keys. With a circuit breaker for each, they take 14 MB.
const MAX_KEYS: usize = 10_000;

/// Makes one instance of a layer for each key: see the [module](self).
///
/// Two layer values share nothing; clones of one value share everything.
#[doc(alias = "keyed")]
#[doc(alias = "tenant")]
#[must_use]
pub struct PerKeyLayer<F, M, K, L> {
    key: F,
    make: M,
    registry: Arc<Registry<K, L>>,
    settings: Settings,
}

#[derive(Debug, Clone)]
struct Settings {
    overflow: Unkeyed,
    info: LayerInfo,
}

impl<F, M, K, L> PerKeyLayer<OwnedKey<F>, M, K, L> {
    /// Creates a layer with a function that returns the key of a request, and one that makes the layer of a key.
    ///
    /// `make(None)` makes the layer of requests that have no key, or whose key is beyond the maximum.
    ///
    /// Both functions run in `call`: `key` for every call, and `make` for every new key. A key that is a reference into
    /// the request needs [`borrowed`](PerKeyLayer::borrowed).
    pub fn new<Req>(key: F, make: M) -> Self
    where
        F: Fn(&Req) -> Result<K, Unkeyed>,
        K: Hash + Eq + Clone + Send + 'static,
        M: Fn(Option<&K>) -> L,
        L: Send + Sync + 'static,
    {
        Self::with(OwnedKey(key), make)
    }
}

impl<F, M, Q: ToOwned + ?Sized, L> PerKeyLayer<BorrowedKey<F, Q>, M, Q::Owned, L> {
    /// Creates a layer with a function that returns a reference to the key in a request, such as a `&str`, which is
    /// copied only when the key is new.
    ///
    /// A closure names the type of its argument, and is written in place: one in a variable does not return a reference
    /// of any lifetime. The rest is as in [`new`](PerKeyLayer::new).
    pub fn borrowed<Req>(key: F, make: M) -> Self
    where
        F: Fn(&Req) -> Result<&Q, Unkeyed>,
        Q: Hash + Eq,
        Q::Owned: Hash + Eq + Send + 'static,
        M: Fn(Option<&Q>) -> L,
        L: Send + Sync + 'static,
    {
        Self::with(BorrowedKey(key, PhantomData), make)
    }
}

impl<M, L> PerKeyLayer<HostKey, M, String, L> {
    /// Creates a layer whose key is the host of an HTTP request with its port, unless that is the default port of its
    /// scheme, in lower case. `http` and `https` on their default ports have the same key. The host is not changed
    /// otherwise: a trailing dot, or another form of an IPv6 address, makes another key. A `reqwest::Request` has such
    /// a key too, with the feature `reqwest`.
    ///
    /// The URI takes precedence over the `Host` header. `without` decides about a request that has neither.
    pub fn host(without: Unkeyed, make: M) -> Self
    where
        M: Fn(Option<&str>) -> L,
        L: Send + Sync + 'static,
    {
        Self::with(HostKey(without), make)
    }
}

impl<F, M, K, L> PerKeyLayer<F, M, K, L> {
    fn with(key: F, make: M) -> Self {
        let settings = Settings { overflow: Unkeyed::Share, info: layer_info!("per_key") };
        Self { key, make, registry: Arc::new(Registry::new(MAX_KEYS)), settings }
    }

    /// Sets the maximum number of keys that have an instance. The default is 10,000. Clones of this layer share this
    /// setting.
    ///
    /// # Panics
    ///
    /// Panics if `max_keys` is zero.
    #[track_caller]
    pub fn max_keys(self, max_keys: usize) -> Self {
        self.handle().set_max_keys(max_keys);
        self
    }

    /// Decides about requests whose key is beyond the maximum. The default is [`Unkeyed::Share`]. A rejection has
    /// [`Reason::TooManyKeys`](crate::Reason::TooManyKeys) (HTTP 503).
    pub fn overflow(mut self, overflow: Unkeyed) -> Self {
        self.settings.overflow = overflow;
        self
    }

    layer_setters!(settings.info);

    /// Returns a handle that lists the instances, and changes the maximum.
    #[must_use]
    pub fn handle(&self) -> PerKeyHandle<K, L> {
        PerKeyHandle { registry: Arc::clone(&self.registry) }
    }
}

// Manual: `K` and `L` need not be `Clone`.
impl<F: Clone, M: Clone, K, L> Clone for PerKeyLayer<F, M, K, L> {
    fn clone(&self) -> Self {
        let Self { key, make, registry, settings } = self;
        Self { key: key.clone(), make: make.clone(), registry: Arc::clone(registry), settings: settings.clone() }
    }
}

impl_debug!(PerKeyLayer<F, M, K, L> {
    key: F,
    make: M,
    handle = |this| this.handle(),
    settings,
});

impl<S, F: Clone, M: Clone, K, L> Layer<S> for PerKeyLayer<F, M, K, L>
where
    K: Send + 'static,
    L: Send + Sync + 'static,
{
    type Service = PerKey<S, F, M, K, L>;

    fn layer(&self, inner: S) -> Self::Service {
        let registry = Arc::clone(&self.registry);
        keep::keep_while(move || registry.still_matters());
        PerKey { inner, family: Arc::new(Family::new(&self.registry)), layer: Arc::new(self.clone()) }
    }
}

/// The service of [`PerKeyLayer`].
pub /* not a Service? see ziggurat::docs::it_does_not_compile */ struct PerKey<S, F, M, K, L> {
    inner: S,
    family: Arc<Family<K, L>>,
    // Shared by all clones: a reference count is cheaper than a copy of the layer.
    layer: Arc<PerKeyLayer<F, M, K, L>>,
}

impl<S, F, M, K, L> PerKey<S, F, M, K, L> {
    inner_accessors!();
}

// Manual: `K` and `L` need not be `Clone`.
impl<S: Clone, F, M, K, L> Clone for PerKey<S, F, M, K, L> {
    fn clone(&self) -> Self {
        let Self { inner, family, layer } = self;
        Self { inner: inner.clone(), family: Arc::clone(family), layer: Arc::clone(layer) }
    }
}

impl_debug!(PerKey<S: std::fmt::Debug, F, M, K, L> { inner, layer });

/// Why a call has no service.
enum Refused {
    NoKey,
    TooManyKeys,
}

impl<F, M, K, L> PerKeyLayer<F, M, K, L> {
    #[cold]
    fn reject(&self, refused: &Refused) -> Rejection {
        self.settings.info.reject(match refused {
            Refused::NoKey => Reason::NoKey,
            Refused::TooManyKeys => Reason::TooManyKeys { max: self.registry.max_keys() },
        })
    }
}

impl<S, F, M, K, L, Req> Service<Req> for PerKey<S, F, M, K, L>
where
    S: Clone,
    F: FindKey<Req, K>,
    M: Fn(Option<&F::Borrowed>) -> L,
    K: Borrow<F::Borrowed> + Eq,
    L: Layer<S>,
    L::Service: Service<Req, Error: Reject<<L::Service as Service<Req>>::Response>> + Clone + Send + 'static,
{
    type Response = <L::Service as Service<Req>>::Response;
    type Error = <L::Service as Service<Req>>::Error;
    type Future = ResponseFuture<L::Service, Req, F, M, K, L>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Req) -> Self::Future {
        let Self { inner, family, layer } = self;
        let (unkeyed, refused) = match layer.key.find(&request) {
            Ok(key) => match family.admit(&*key, inner, &layer.make) {
                Some((service, in_flight)) => {
                    drop(key);
                    return ResponseFuture::running(Call::new(service, request), Some(in_flight));
                }
                None => (layer.settings.overflow, Refused::TooManyKeys),
            },
            Err(unkeyed) => (unkeyed, Refused::NoKey),
        };
        match unkeyed {
            Unkeyed::Share => {
                let (service, in_flight) = family.share(inner, || (layer.make)(None));
                ResponseFuture::running(Call::new(service, request), Some(in_flight))
            }
            Unkeyed::Pass => {
                let service = (layer.make)(None).layer(inner.clone());
                ResponseFuture::running(Call::new(service, request), None)
            }
            Unkeyed::Reject => ResponseFuture::refused(Arc::clone(layer), refused),
        }
    }
}
