//! Limits the rate of calls.
//!
//! The limit is a bucket of tokens: it holds a burst of them, and gains `quantity` tokens in each `period`, one after
//! another. Each call takes one. In any span of time `t`, no more than `burst + quantity * t / period` calls are
//! admitted. All services that one layer value makes, and all their clones, share the bucket.
//!
//! A call that finds no token is rejected with [`Reason::RateLimited`]: 429 over HTTP, and `RESOURCE_EXHAUSTED` in
//! gRPC. It takes nothing from the bucket, so callers that come too often do not slow down the others, nor themselves.
//!
//! # Waiting
//!
//! With [`max_wait`](RateLimitLayer::max_wait), a call that finds no token waits for it in its response future. Waiting
//! calls are admitted in the order in which they were first polled, and a new call does not overtake them. A call is
//! rejected at once if it would wait for longer than that, or until after the surrounding [`Deadline`]. So no more
//! calls wait than the bucket gains tokens in that time. The clock of the wait starts at the first poll.
//!
//! # Retry-After
//!
//! A rejection carries the time after which the call would have been admitted: that until the bucket has the tokens,
//! with those that waiting calls take first. It is exact if no other call comes by then. Over HTTP, it is rounded up to
//! whole seconds.
//!
//! # Headers
//!
//! With [`headers`](RateLimitLayer::headers), each HTTP response shows its caller how much of the rate is left, with
//! the fields of [the IETF's draft](https://datatracker.ietf.org/doc/draft-ietf-httpapi-ratelimit-headers/11/):
//!
//! ```text
//! RateLimit-Policy: "api";q=100;w=60
//! RateLimit: "api";r=12;t=53
//! ```
//!
//! `"api"` is the name of the layer, or `"default"`. `q` is the burst, and `w` the number of seconds in which an empty
//! bucket becomes full, so `q` and `w` together are the rate. `r` is the number of tokens in the bucket, and `t` the
//! number of seconds until it is full. On a rejection, `t` is the same as `Retry-After`. All seconds are rounded up.
//! Two limits around each other both add theirs, under different names.
//!
//! A rejection has the headers too, also if a [`RejectionResponseLayer`] outside makes its response. They show the
//! state of the whole bucket, which all callers share.
//!
//! [`RejectionResponseLayer`]: crate::rejection_response::RejectionResponseLayer
//!
//! # Cost
//!
//! With [`cost`](RateLimitLayer::cost), a call takes as many tokens as a function of the request says:
//!
//! ```
//! use std::time::Duration;
//! use http::Request;
//! use ziggurat::rate_limit::RateLimitLayer;
//!
//! let limit = RateLimitLayer::new(100, Duration::from_secs(1)).cost(|request: &Request<Vec<u64>>| {
//!     match request.uri().path() {
//!         "/health" => 0,
//!         _ => request.body().len() as u32,
//!     }
//! });
//! # let _ = limit.layer(tower::service_fn(|_: Request<Vec<u64>>| async { Ok::<_, ziggurat::Error<()>>(()) }));
//! # use tower::Layer;
//! ```
//!
//! - A call that costs nothing passes the limit as if it were not there, and overtakes waiters: a health check, for
//!   example.
//! - A call that costs more than the burst could never be admitted. It is rejected with [`Reason::CostTooHigh`] (413),
//!   which carries no time to come back.
//! - A call takes all of its tokens at once. While one waits for many tokens, those behind it wait too, so that it is
//!   not overtaken by cheaper ones for ever.
//!
//! # True costs
//!
//! The cost of some calls is known only at their end: the bytes of a download, or the tokens of a language model. Such
//! a call is admitted by its [`cost`](RateLimitLayer::cost), an estimate, which the end corrects: the true cost is a
//! function of the response ([`settle`](RateLimitLayer::settle)) or of the frames of its body
//! ([`settle_body`](RateLimitLayer::settle_body), [`settle_bytes`](RateLimitLayer::settle_bytes)). If it is lower, the
//! rest goes back into the bucket. If it is higher, the rest is missing, and later calls wait for it too. Until the
//! end, and if the true cost stays unknown, because the call failed or was dropped, the estimate stands.
//!
//! Two limits at once, for example of requests and of bytes, are two layers. A call that the inner one rejects has
//! already taken its token of the outer one, so place the limit that rejects more outside:
//!
//! ```
//! use std::{convert::Infallible, time::Duration};
//! use http::{Request, Response};
//! use http_body_util::{BodyExt, Full};
//! use tower::{ServiceBuilder, ServiceExt, service_fn};
//! use ziggurat::rate_limit::RateLimitLayer;
//!
//! # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() {
//! // A megabyte a second. A call is admitted if there is room for 64 kB.
//! let bytes = RateLimitLayer::new(1_000_000, Duration::from_secs(1)).cost(64_000_u32).settle_bytes();
//! let left = bytes.handle();
//! let service = ServiceBuilder::new()
//!     .layer(RateLimitLayer::new(100, Duration::from_secs(1)).named("requests"))
//!     .layer(bytes.named("bytes"))
//!     .service(service_fn(|_: Request<()>| async {
//!         Ok::<_, Infallible>(Response::new(Full::<bytes::Bytes>::from(vec![0; 300_000])))
//!     }));
//!
//! let response = service.oneshot(Request::new(())).await.unwrap();
//! assert_eq!(left.available(), 936_000);
//! response.into_body().collect().await.unwrap();
//! assert_eq!(left.available(), 700_000);
//! # }
//! ```
//!
//! The bound on calls holds for the estimates. In true costs, a span admits more by the tokens that came back in it
//! from calls before it, and by those that its own calls cost beyond their estimates. A call whose estimate was too low
//! is paid for later, so these do not add up over time.
//!
//! # Calls that count
//!
//! A call takes its tokens in `call`, or when its wait ends. It counts from then on, however it ends: if it fails,
//! times out or is dropped, the service may have done the work. A service that was polled ready but not called takes
//! nothing.
//!
//! A call that has waited is made at once if its future is polled and the service is ready. If not, it is made later,
//! possibly together with calls that were admitted after it: the bound is one of admissions.
//!
//! # Order
//!
//! On a server, place the limit outside all expensive work, and inside the layer that makes responses of rejections. On
//! a client, place it inside the retry, so that each attempt counts, and outside the attempt timeout, so that a wait
//! does not count as slowness of the service. A retry outside does not repeat a call that was rejected here; let the
//! calls wait instead. Next to a concurrency limit, place this limit outside: a waiting call then holds no permit.
//!
//! # Cancellation safety
//!
//! A call that is dropped while it waits leaves the queue, and the calls behind it move up. If its turn had come but
//! the call was not made, its tokens go back into the bucket, except for as many as the bucket has gained since. A
//! response future that is kept but no longer polled does not stop the calls behind it: they take its tokens for it, at
//! the latest when their own turn has come, as they last foresaw it. If a call is dropped while it waits here, a
//! circuit breaker outside does not count it against the service.
//!
//! # Requirements
//!
//! The service must be `Clone`. A call that waits or is rejected drops the ready service that it was called on, which
//! would otherwise hold on to its reservations. Once admitted, a waiting call makes its own clone ready. A call that
//! waits has a timer, and panics on a runtime without a clock.
//!
//! # Performance
//!
//! A call that is admitted at once reads the clock once and changes one atomic number. It clones and allocates nothing,
//! and takes no lock.
//!
//! # Examples
//!
//! ```
//! use std::time::Duration;
//! use tower::{Service, ServiceBuilder, ServiceExt, service_fn};
//! use ziggurat::{Error, rate_limit::RateLimitLayer};
//!
//! # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() {
//! let limit = RateLimitLayer::new(2, Duration::from_secs(1));
//! let bucket = limit.handle();
//! let mut service = ServiceBuilder::new()
//!     .layer(limit)
//!     .map_err(Error::Service)
//!     .service(service_fn(|word: &'static str| async move { Ok::<_, std::io::Error>(word) }));
//!
//! assert_eq!(service.ready().await.unwrap().call("first").await.unwrap(), "first");
//! assert_eq!(service.ready().await.unwrap().call("second").await.unwrap(), "second");
//! assert_eq!(bucket.available(), 0);
//!
//! let third = service.ready().await.unwrap().call("third").await;
//! let rejection = ziggurat::rejection(&third).unwrap();
//! assert!(rejection.is_rate_limited());
//! assert_eq!(rejection.retry_after(), Some(Duration::from_millis(500)));
//!
//! tokio::time::advance(Duration::from_millis(500)).await;
//! assert_eq!(service.ready().await.unwrap().call("third").await.unwrap(), "third");
//! # }
//! ```

mod future;
mod handle;
mod headers;
mod queue;
mod settle;
mod turn;

use std::{
    fmt,
    marker::PhantomData,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use tower_layer::Layer;
use tower_service::Service;

use self::{future::After, settle::Kind, turn::Turn};
pub use self::{
    future::ResponseFuture,
    handle::RateLimitHandle,
    headers::{Announce, NoHeaders, RateLimitHeaders},
    settle::{CountBytes, Estimated, FrameCost, Meter, Settle, SettleBody, SettleResponse},
};
#[cfg(doc)]
use crate::ambient::Deadline;
use crate::{
    accessors::inner_accessors,
    bucket::{Denied, Rate},
    debug::impl_debug,
    keep::keep_while,
    outcome::{Reason, Reject, Rejection},
    setting::Setting,
    telemetry::{LayerInfo, layer_info, layer_setters},
};

/// Limits the rate of calls: see the [module](self).
///
/// Two layer values share nothing; clones of one value share everything.
#[doc(alias = "throttle")]
#[doc(alias = "token bucket")]
#[must_use]
pub struct RateLimitLayer<C = u32, H = NoHeaders, T = Estimated> {
    settings: Settings,
    cost: C,
    headers: PhantomData<fn() -> H>,
    settle: T,
}

#[derive(Debug, Clone)]
struct Settings {
    handle: RateLimitHandle,
    max_wait: Duration,
    info: LayerInfo,
}

impl RateLimitLayer {
    /// Admits `quantity` calls in each `period`, and as many at once.
    ///
    /// The bucket starts full. It gains its tokens one after another, not all at the end of a period. The interval
    /// between two of them is rounded up to a multiple of 1/32 ns. The bucket never holds more tokens than it gains in
    /// 2.3 years.
    ///
    /// # Panics
    ///
    /// Panics if `quantity` or `period` is zero.
    #[track_caller]
    pub fn new(quantity: u32, period: Duration) -> Self {
        let handle = RateLimitHandle::new(Rate::new(quantity, period));
        let settings = Settings { handle, max_wait: Duration::ZERO, info: layer_info!("rate_limit") };
        Self { settings, cost: 1, headers: PhantomData, settle: Estimated }
    }
}

impl<C, T> RateLimitLayer<C, NoHeaders, T> {
    /// Adds the headers `RateLimit-Policy` and `RateLimit` to each response. For HTTP. See [headers](self#headers).
    ///
    /// It costs a clock read and some allocations for each response.
    pub fn headers(self) -> RateLimitLayer<C, RateLimitHeaders, T> {
        let Self { settings, cost, headers: _, settle } = self;
        RateLimitLayer { settings, cost, headers: PhantomData, settle }
    }
}

impl<C, H> RateLimitLayer<C, H> {
    /// Corrects the cost of a call when its response arrives: a function of the response returns the true cost, or
    /// `None` if it is not known and the cost stands. See [true costs](self#true-costs).
    ///
    /// If the function panics, the panic propagates, and the cost stands.
    pub fn settle<F>(self, true_cost: F) -> RateLimitLayer<C, H, SettleResponse<F>> {
        self.with(SettleResponse(true_cost))
    }

    /// Corrects the cost of a call when the body of its response ends, fails or is dropped: a function of each frame
    /// returns its share of the true cost, or `None` if it says nothing about it. For HTTP.
    ///
    /// If no frame said anything, the cost stands. See [true costs](self#true-costs). The body becomes a
    /// [`GuardBody`](crate::body::GuardBody). If the function panics, the panic propagates, and the frames before
    /// count.
    pub fn settle_body<F>(self, true_cost: F) -> RateLimitLayer<C, H, SettleBody<F>> {
        self.with(SettleBody(true_cost))
    }

    /// Corrects the cost of a call to the number of bytes in the body of its response, as far as it was read. For HTTP.
    ///
    /// The body becomes a [`GuardBody`](crate::body::GuardBody).
    pub fn settle_bytes(self) -> RateLimitLayer<C, H, SettleBody<CountBytes>> {
        self.with(SettleBody(CountBytes))
    }

    fn with<T>(self, settle: T) -> RateLimitLayer<C, H, T> {
        let Self { settings, cost, headers, settle: Estimated } = self;
        RateLimitLayer { settings, cost, headers, settle }
    }
}

impl<C, H, T> RateLimitLayer<C, H, T> {
    /// Sets the number of tokens in a full bucket, which is the number of calls that can be made at once. The default
    /// is the quantity.
    ///
    /// A burst of 1 spaces the calls evenly. Like the rate, this setting is shared by all clones of this layer.
    ///
    /// # Panics
    ///
    /// Panics if `burst` is zero.
    #[track_caller]
    pub fn burst(self, burst: u32) -> Self {
        self.settings.handle.set_burst(burst);
        self
    }

    /// Sets the number of tokens that a call takes: a `u32`, or a function of the request that returns one (or an
    /// `Option` of one, where `None` means that the call takes none). The default is 1. See [cost](self#cost).
    ///
    /// A plain number needs its type, as in `.cost(10_u32)`.
    ///
    /// The function runs in `call`, for every call. If it panics, the panic propagates, and no tokens are taken.
    pub fn cost<D>(self, cost: D) -> RateLimitLayer<D, H, T> {
        let Self { settings, cost: _, headers, settle } = self;
        RateLimitLayer { settings, cost, headers, settle }
    }

    /// Lets a call wait for its tokens, for `max_wait` at most. The default is zero: a call that finds no token is
    /// rejected. See [waiting](self#waiting).
    ///
    /// Any duration is valid. [`Duration::MAX`] never ends a wait, and bounds the queue by the callers' deadlines
    /// alone.
    pub fn max_wait(mut self, max_wait: Duration) -> Self {
        self.settings.max_wait = max_wait;
        self
    }

    layer_setters!(settings.info);

    /// Returns a handle that reads the live state and changes the rate.
    #[must_use]
    pub fn handle(&self) -> RateLimitHandle {
        self.settings.handle.clone()
    }
}

impl Settings {
    #[cold]
    fn reject(&self, denied: Denied, cost: u32) -> Rejection {
        match denied {
            Denied::Wait(wait) => self.info.reject_with_retry_after(Reason::RateLimited, wait),
            Denied::Never { burst } => self.info.reject(Reason::CostTooHigh { cost, burst }),
        }
    }
}

// Manual: `H` need not be `Clone`.
impl<C: Clone, H, T: Clone> Clone for RateLimitLayer<C, H, T> {
    fn clone(&self) -> Self {
        let Self { settings, cost, headers, settle } = self;
        Self { settings: settings.clone(), cost: cost.clone(), headers: *headers, settle: settle.clone() }
    }
}

impl_debug!(RateLimitLayer<C, H, T> { settings, cost: C, headers: H, settle: T });

impl<S, C: Clone, H: headers::Kind, T: Clone> Layer<S> for RateLimitLayer<C, H, T> {
    type Service = RateLimit<S, C, H, T>;

    fn layer(&self, inner: S) -> Self::Service {
        let Self { settings, cost, headers: _, settle } = self;
        let headers = H::new(&settings.handle, &settings.info);
        let handle = settings.handle.clone();
        keep_while(move || handle.still_matters());
        RateLimit { inner, settings: Arc::new(settings.clone()), cost: cost.clone(), headers, settle: settle.clone() }
    }
}

/// The service of [`RateLimitLayer`].
#[derive(Clone)]
pub /* not a Service? see ziggurat::docs::it_does_not_compile */ struct RateLimit<
    S,
    C = u32,
    H = NoHeaders,
    T = Estimated,
> {
    inner: S,
    // Shared by all clones: a reference count is cheaper than a copy of the settings.
    settings: Arc<Settings>,
    cost: C,
    headers: H,
    settle: T,
}

impl<S, C, H, T> RateLimit<S, C, H, T> {
    inner_accessors!();
}

impl_debug!(RateLimit<S: fmt::Debug, C, H, T> { inner, settings, cost: C, headers: H, settle: T });

impl<S: Clone, C, H: Clone, T: Kind> RateLimit<S, C, H, T> {
    fn after(&self, cost: u32) -> After<H, T> {
        let reserved = self.settle.reserve(&self.settings.handle, cost);
        After { headers: self.headers.clone(), settle: self.settle.clone(), reserved }
    }

    /// Makes or rejects a call that has found no tokens.
    #[cold]
    fn call_later<Req>(&mut self, request: Req, cost: u32, denied: Denied) -> ResponseFuture<S, Req, H, T>
    where
        S: Service<Req>,
    {
        let (settings, service, after) = (Arc::clone(&self.settings), self.inner.clone(), self.after(cost));
        // Drops the service that was made ready, together with its reservations for a call that it will not receive.
        self.inner = self.inner.clone();
        if settings.max_wait.is_zero() || matches!(denied, Denied::Never { .. }) {
            return ResponseFuture::denied(settings, denied, cost, after);
        }
        ResponseFuture::waiting(Turn::new(settings, cost), service, request, after)
    }
}

impl<S, C, H, T, Req> Service<Req> for RateLimit<S, C, H, T>
where
    S: Service<Req> + Clone,
    S::Error: Reject<T::Response>,
    C: Setting<Req, u32>,
    H: Announce<T::Response>,
    T: Settle<S::Response>,
{
    type Response = T::Response;
    type Error = S::Error;
    type Future = ResponseFuture<S, Req, H, T>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Req) -> Self::Future {
        let cost = self.cost.get(&request).unwrap_or(0);
        match self.settings.handle.take(cost) {
            Ok(()) => ResponseFuture::running(self.inner.call(request), self.after(cost)),
            Err(denied) => self.call_later(request, cost, denied),
        }
    }
}
