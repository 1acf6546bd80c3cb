//! Runs the handler of a request once for each `Idempotency-Key`, and replays its response to requests that repeat it.
//!
//! A client whose `POST` fails with a lost connection cannot know whether the server has processed it. If each `POST`
//! has a key, and the server has this layer, the client sends the request again and gets the response of the first
//! one. The [`IdempotencyKeyLayer`](crate::idempotency_key::IdempotencyKeyLayer) is the other side: it gives each
//! request of a client a key.
//!
//! # Which requests
//!
//! Those with the header `Idempotency-Key`, unless their method is safe, as `GET` is. The layer passes all others on as
//! they are. With [`required`](IdempotencyLayer::required), it rejects a `POST` or `PATCH` without a key.
//!
//! A key is bound to its caller, which a function returns for each request, for example the name of the
//! account. No caller ever gets the response of another one. A request without a caller (`None`) is passed on too.
//!
//! The key is also bound to a fingerprint of the request: its method, its path and query, its `Content-Type` and its
//! body. For the fingerprint, the layer reads the whole body before it runs the handler. The path is that of the
//! request as it reaches the layer: inside a nested axum router it has lost its prefix, so put the layer outside.
//!
//! | the request | outcome |
//! |---|---|
//! | is the first one with its key | the handler runs |
//! | comes while the handler runs for the same request | waits, and gets the response |
//! | comes later | gets the stored response |
//! | has the key of a request with another fingerprint | 422, [`Reason::KeyReused`] |
//! | waits for another process for more than [`max_wait`](IdempotencyLayer::max_wait) | 409, [`Reason::Duplicate`] |
//! | repeats one whose response is too large for the layer or for the store | 409, [`Reason::Duplicate`] |
//! | has a malformed key: empty, longer than 255 bytes, not ASCII, or several | 400, [`Reason::NoKey`] |
//! | has a body that is larger than [`max_request`](IdempotencyLayer::max_request) | 413, [`Reason::BodyTooLarge`] |
//! | comes while the store is away or slow | 503, [`Reason::StoreUnavailable`] |
//!
//! A response that is replayed has the header `Idempotent-Replayed: true`.
//!
//! # Stored responses
//!
//! Each complete response of the handler, whatever its status: a 500 that follows half of the work must not make the
//! client do the other half twice. The response is kept for [`keep`](IdempotencyLayer::keep), 24 hours by default, with
//! its headers, its body and its trailers, but without its extensions and without the headers of a connection, such as
//! `Connection`. It streams to the first caller while it is recorded, and reaches those that wait for it when it is
//! complete.
//!
//! Nothing is stored, and the next request with the key runs the handler, if
//!
//! - a layer inside rejected the request before it reached the handler
//!   ([`is_unprocessed`](crate::Rejection::is_unprocessed)), such as a full limit. A handler that returns the rejection
//!   of a client of its own says the same;
//! - the handler returned an error instead of a response, or panicked, or the body of its response failed;
//! - the process ended meanwhile: then after up to 30 seconds.
//!
//! # Callers that leave
//!
//! The handler runs on a task of its own, in the scope of the request. A caller that leaves, because its connection is
//! lost or its deadline has passed, does not end it: the next request with the key is to get its response. A handler
//! whose callers have all left goes on for [`linger`](IdempotencyLayer::linger), a minute by default. Then it is
//! dropped, and nothing is stored. A request that waits for another process ends with its last caller.
//!
//! A [timeout](crate::timeout) *inside* this layer bounds the handler itself. Its rejection is stored as any response,
//! because the handler has begun. This needs a response: as an error, it ends a run as any other error does. In axum
//! each rejection is a response, and elsewhere behind a
//! [`RejectionResponseLayer`](crate::rejection_response::RejectionResponseLayer) between the two.
//!
//! # Stores
//!
//! A [`MemoryStore`](crate::store::MemoryStore) serves one process, and forgets everything with it. A `RedisStore`
//! (feature `redis`) serves all processes that share a server, or implement
//! [`ValueStore`](crate::store::ValueStore) for your database. A process claims the key in the store before it runs the
//! handler, and renews its claim every 10 seconds. If a claim is lost, a second run of the handler is possible: when
//! the store forgets it, until the next renewal, and when the store cannot be reached for 20 to 30 seconds.
//!
//! No request waits for the store longer than [`timeout`](IdempotencyLayer::timeout) at a time. While the store is
//! [away](crate::store#while-a-store-is-away), requests with a key are rejected at once, except for one at a time,
//! which finds out whether it is back. A response that the store does not take is offered again for a minute. Then a
//! mark takes its place, if the store takes that: the handler does not run again, and repeated requests are rejected.
//!
//! Services that share a store also share their keys, unless each has a
//! [prefix](crate::store#sharing-a-store).
//!
//! # Order
//!
//! - Inside everything that says who the caller is, and inside the total timeout, the rate limit and the
//!   [`RejectionResponseLayer`](crate::rejection_response::RejectionResponseLayer).
//! - Outside a layer whose response should be stored, and outside the concurrency limit: a handler goes on when its
//!   caller has left, and a limit outside no longer counts it. [`max_running`](IdempotencyLayer::max_running) limits
//!   these handlers in any case.
//!
//! # Cancellation safety
//!
//! A caller that leaves while it sends its body has started nothing. After that, its handler goes on, as described
//! above, and so do the other callers that wait for it.
//!
//! # Requirements
//!
//! The service must be `Clone`, and a request with a key runs as a task, so the service, its future, the request and
//! the response must be `Send + 'static`, and the layer panics outside a tokio runtime. The service is always ready,
//! and makes a clone of the inner service ready for each call.
//!
//! # Cost
//!
//! A request without a key pays for a clone of the service. One with a key pays for a task, two requests to the store,
//! and copies of its body and of its response. Each request that sends its body or waits has up to
//! [`max_request`](IdempotencyLayer::max_request) bytes in memory, and each run up to
//! [`max_response`](IdempotencyLayer::max_response) bytes of the record, and as many that its caller has yet to read.
//!
//! # Examples
//!
//! ```
//! use std::{convert::Infallible, sync::atomic::{AtomicU32, Ordering::Relaxed}};
//! use bytes::Bytes;
//! use http::{Request, Response};
//! use http_body_util::Full;
//! use tower::{ServiceBuilder, ServiceExt, service_fn};
//! use ziggurat::{idempotency::IdempotencyLayer, store::MemoryStore};
//!
//! static ORDERS: AtomicU32 = AtomicU32::new(0);
//!
//! # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() {
//! // The header is set by the gateway that knows the account.
//! let account = |request: &Request<_>| Some(request.headers().get("x-account")?.to_str().ok()?.to_owned());
//! let service = ServiceBuilder::new()
//!     .layer(IdempotencyLayer::new(MemoryStore::new(), account))
//!     .service(service_fn(|_: Request<_>| async {
//!         let number = ORDERS.fetch_add(1, Relaxed) + 1;
//!         Ok::<_, Infallible>(Response::new(Full::<Bytes>::from(format!("order {number}"))))
//!     }));
//!
//! let order = || {
//!     let request = Request::post("/orders").header("x-account", "eve").header("idempotency-key", "k-1");
//!     request.body(Full::<Bytes>::from("a book")).unwrap()
//! };
//! let first = service.clone().oneshot(order()).await.unwrap();
//! let again = service.oneshot(order()).await.unwrap();
//! assert_eq!(again.headers()["idempotent-replayed"], "true");
//! assert!(!first.headers().contains_key("idempotent-replayed"));
//! assert_eq!(ORDERS.load(Relaxed), 1);
//! # }
//! ```

mod backlog;
mod body;
mod flight;
mod future;
mod key;
mod record;
mod run;

use std::{
    fmt,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use http::{Method, Request, Response};
use http_body::Body;
use tower_layer::Layer;
use tower_service::Service;

pub use self::{body::IdempotentBody, future::ResponseFuture};
use self::{
    flight::Flights,
    key::{NoKey, client_key, store_key},
};
use crate::{
    accessors::inner_accessors,
    body::BoxError,
    debug::impl_debug,
    keep::keep_while,
    outcome::{Reason, Reject},
    store::{Link, ValueStore},
    telemetry::{LayerInfo, layer_info, layer_setters},
};

/// How long responses are kept. Stripe keeps them for at least that long.
const KEEP: Duration = Duration::from_secs(24 * 60 * 60);

/// The size of the largest request and response: axum's default limit for a request.
const MAX_BYTES: usize = 2 * 1024 * 1024;

/// The number of handlers that run at once. A caller that leaves does not end its handler, so the limits outside no
/// longer count it.
const MAX_RUNNING: usize = 1_000;

/// How long a request waits for the same request in another process.
const MAX_WAIT: Duration = Duration::from_secs(10);

/// How long a handler goes on without a caller.
const LINGER: Duration = Duration::from_secs(60);

const YEAR: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// How long a request waits for the store. As for a shared rate limit.
const TIMEOUT: Duration = Duration::from_millis(100);

/// The longest time that a request waits for the store: a claim must be renewed in time.
const MAX_TIMEOUT: Duration = Duration::from_secs(5);

/// Runs a handler once for each key: see the [module](self).
#[must_use]
pub struct IdempotencyLayer<St, C> {
    caller: C,
    settings: Settings<St>,
}

struct Settings<St> {
    store: Arc<St>,
    link: Arc<Link>,
    flights: Arc<Flights>,
    keep: Duration,
    max_request: usize,
    max_response: usize,
    max_running: usize,
    max_wait: Duration,
    linger: Duration,
    timeout: Duration,
    is_required: bool,
    info: LayerInfo,
}

impl_debug!(Settings<St> { store: St, keep, max_request, max_response, max_running, max_wait, linger, timeout, is_required, info });

// Manual: the store need not be `Clone`.
impl<St> Clone for Settings<St> {
    fn clone(&self) -> Self {
        let Self { store, link, flights, info, .. } = self;
        let (store, link, flights) = (Arc::clone(store), Arc::clone(link), Arc::clone(flights));
        Self { store, link, flights, info: info.clone(), ..*self }
    }
}

impl<St: ValueStore, C> IdempotencyLayer<St, C> {
    /// Creates a layer that keeps responses in `store`.
    ///
    /// `caller` returns whom the key of a request belongs to, such as the name of an account that has been
    /// authenticated, or `None` if the layer does not apply to the request, whatever its key is. It must not be a value
    /// that another caller can choose. The closure must name the type of its argument: `|request: &Request<_>| ..`.
    pub fn new<B>(store: St, caller: C) -> Self
    where
        C: Fn(&Request<B>) -> Option<String>,
    {
        let settings = Settings {
            store: Arc::new(store),
            link: Arc::default(),
            flights: Arc::default(),
            keep: KEEP,
            max_request: MAX_BYTES,
            max_response: MAX_BYTES,
            max_running: MAX_RUNNING,
            max_wait: MAX_WAIT,
            linger: LINGER,
            timeout: TIMEOUT,
            is_required: false,
            info: layer_info!("idempotency"),
        };
        Self { caller, settings }
    }
}

impl<St, C> IdempotencyLayer<St, C> {
    /// Rejects a `POST` or `PATCH` without a key, with [`Reason::NoKey`] (400).
    pub fn required(mut self) -> Self {
        self.settings.is_required = true;
        self
    }

    /// Sets how long responses are stored. The default is 24 hours, as long as Stripe keeps them.
    ///
    /// A store may drop a response earlier, for example a full [`MemoryStore`](crate::store::MemoryStore).
    pub fn keep(mut self, keep: Duration) -> Self {
        self.settings.keep = keep;
        self
    }

    /// Sets the size of the largest request body with a key, in bytes. The default is 2 MiB, as that of axum.
    pub fn max_request(mut self, bytes: usize) -> Self {
        self.settings.max_request = bytes;
        self
    }

    /// Sets the size of the largest response body that is stored, in bytes. The default is 2 MiB.
    ///
    /// A larger one still reaches its caller, and a request that repeats it is rejected.
    pub fn max_response(mut self, bytes: usize) -> Self {
        self.settings.max_response = bytes;
        self
    }

    /// Sets how many handlers run at once for requests with a key. The default is 1,000.
    ///
    /// Beyond that number, a request is rejected with [`Reason::Overloaded`]. A key counts from its first request on,
    /// also while that asks the store or waits for another process, and until the response is stored.
    ///
    /// # Panics
    ///
    /// If `handlers` is zero.
    #[track_caller]
    pub fn max_running(mut self, handlers: usize) -> Self {
        assert!(handlers > 0, "`max_running` must be at least 1, not 0");
        self.settings.max_running = handlers;
        self
    }

    /// Sets how long a request waits while *another process* runs the handler for the same request. The default is
    /// 10 seconds.
    ///
    /// It looks into the store after 50 ms, and then less and less often, up to once a second. Requests of this process
    /// that repeat it wait with it, and no longer.
    pub fn max_wait(mut self, max_wait: Duration) -> Self {
        self.settings.max_wait = max_wait.min(YEAR);
        self
    }

    /// Sets how long a handler goes on after its last caller has left. The default is one minute.
    ///
    /// The layer looks every 10 seconds whether there is a caller, so a handler may go on for up to 10 seconds more.
    pub fn linger(mut self, linger: Duration) -> Self {
        self.settings.linger = linger;
        self
    }

    /// Sets how long a request waits for each answer of the store. The default is 100 ms, and the longest 5 seconds,
    /// so that a claim can be renewed in time.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.settings.timeout = timeout.min(MAX_TIMEOUT);
        self
    }

    layer_setters!(settings.info);

    /// Returns the number of keys that count towards [`max_running`](Self::max_running).
    #[must_use]
    pub fn running(&self) -> usize {
        self.settings.flights.len()
    }
}

impl<St, C: Clone> Clone for IdempotencyLayer<St, C> {
    fn clone(&self) -> Self {
        Self { caller: self.caller.clone(), settings: self.settings.clone() }
    }
}

impl_debug!(IdempotencyLayer<St, C> { caller: C, settings });

impl<S, St, C: Clone> Layer<S> for IdempotencyLayer<St, C> {
    type Service = Idempotency<S, St, C>;

    fn layer(&self, inner: S) -> Self::Service {
        let flights = Arc::clone(&self.settings.flights);
        keep_while(move || flights.len() > 0);
        Idempotency { inner, caller: self.caller.clone(), settings: Arc::new(self.settings.clone()) }
    }
}

/// The service of [`IdempotencyLayer`].
pub /* not a Service? see ziggurat::docs::it_does_not_compile */ struct Idempotency<S, St, C> {
    inner: S,
    caller: C,
    settings: Arc<Settings<St>>,
}

impl<S, St, C> Idempotency<S, St, C> {
    inner_accessors!();
}

impl<S: Clone, St, C: Clone> Clone for Idempotency<S, St, C> {
    fn clone(&self) -> Self {
        let Self { inner, caller, settings } = self;
        Self { inner: inner.clone(), caller: caller.clone(), settings: Arc::clone(settings) }
    }
}

impl_debug!(Idempotency<S: fmt::Debug, St, C> { inner, caller: C, settings });

impl<S, St, C, B, B2> Service<Request<B>> for Idempotency<S, St, C>
where
    S: Service<Request<IdempotentBody<B>>, Response = Response<B2>, Error: Reject<Response<B2>> + Send, Future: Send>
        + Clone
        + Send
        + 'static,
    St: ValueStore,
    C: Fn(&Request<B>) -> Option<String>,
    B: Body<Error: Into<BoxError>> + Send + 'static,
    B2: Body<Error: Into<BoxError>> + Send + 'static,
{
    type Response = Response<IdempotentBody<B2>>;
    type Error = S::Error;
    type Future = ResponseFuture<S, B, B2>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let settings = &self.settings;
        let is_post = || matches!(*request.method(), Method::POST | Method::PATCH);
        let found = if request.method().is_safe() { Err(NoKey::Absent) } else { client_key(request.headers()) };
        let is_passing = matches!(found, Err(NoKey::Absent)) && !(settings.is_required && is_post());
        let caller = if is_passing { None } else { (self.caller)(&request) };
        let Some(caller) = caller else { return ResponseFuture::passing(self.inner.clone(), request) };
        let Ok(key) = found else { return ResponseFuture::rejected(settings.info.reject(Reason::NoKey)) };
        let key = store_key(&caller, key);
        ResponseFuture::keyed(Box::pin(Arc::clone(settings).call(key, self.inner.clone(), request)))
    }
}
