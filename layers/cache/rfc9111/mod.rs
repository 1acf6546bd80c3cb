//! A shared HTTP cache by RFC 9111.

use std::{
    fmt,
    ops::Deref,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use http::{
    HeaderName, Method, Request, Response, StatusCode,
    header::{CONTENT_LENGTH, IF_MATCH, IF_UNMODIFIED_SINCE, TRANSFER_ENCODING, UPGRADE},
};
use http_body::Body;
use tokio::runtime::Handle;
use tower_layer::Layer;
use tower_service::Service;

use self::{
    after::{After, Effect},
    handle::State,
    missing::Missing,
    rules::{Asked, Reuse, Rules},
    second::Second,
    status::{Status, Why},
};
pub use self::{body::CacheBody, future::HttpResponseFuture, handle::HttpCacheHandle};
use super::{CacheLayer, handle::count, http::HttpKey};
use crate::{
    accessors::inner_accessors,
    body::BoxError,
    clock,
    debug::impl_debug,
    outcome::Reject,
    store::ValueStore,
    telemetry::{LayerEvent, LayerInfo, layer_info, layer_setters},
};

mod after;
mod body;
mod fetch;
mod fill;
mod flights;
mod future;
mod handle;
mod interest;
mod missing;
mod page;
mod pages;
mod passes;
mod rules;
mod second;
mod status;

/// The total size of the stored responses.
const CAPACITY: usize = 64 * 1024 * 1024;

/// The size of the largest body that is stored.
const MAX_BODY: usize = 8 * 1024 * 1024;

/// How long a request goes on after its last caller has left.
const PATIENCE: Duration = Duration::from_secs(60);

impl CacheLayer<HttpKey, (), ()> {
    /// Creates a shared HTTP cache by RFC 9111: see [`HttpCacheLayer`].
    pub fn http() -> HttpCacheLayer {
        let settings = Settings {
            state: Arc::new(State::new(CAPACITY)),
            rules: Rules::default(),
            max_body: MAX_BODY,
            patience: PATIENCE,
            info: layer_info!("cache"),
        };
        HttpCacheLayer { settings }
    }
}

/// A shared HTTP cache by RFC 9111, for clients, gateways and servers. [`CacheLayer::http`] creates it.
///
/// It takes from the headers of requests and responses what may be stored, for whom, and for how long. It needs no key,
/// no ttl and no classifier.
///
/// # What is stored
///
/// Responses to `GET` that say how long they are fresh (`s-maxage`, `max-age`, `Expires`), or that have a status such
/// as 200 or 404 and can be validated (`ETag`, `Last-Modified`). A response that says nothing is stored for the
/// [`default_ttl`](Self::default_ttl), which is zero unless you set it. The following responses are not stored:
///
/// - with `no-store` or `private`, with `Vary: *`, partial ones (206), and [degraded](crate::Degraded) ones
/// - to requests with `Authorization`, unless `public`, `s-maxage` or `must-revalidate` permits it. Neither do such
///   requests get a response that does not permit it
/// - with `Set-Cookie`, unless `public` or `s-maxage` permits it
/// - to requests with `Cookie`, if their lifetime is a guess
/// - larger than [`max_body`](Self::max_body), truncated, or with a body that fails
///
/// A cookie of the request is ignored otherwise, as RFC 9111 has it: a server whose responses depend on it says `Vary:
/// Cookie` or `private`.
///
/// # What is served
///
/// A fresh response, also for `HEAD`, for a single range (206), and for a conditional request (304). A stale one is
/// validated: a 304 of the service makes it fresh again. It is served as it is if the response or the settings say so:
///
/// - `stale-while-revalidate`: at once, while a task fetches a fresh one
/// - `stale-if-error`: if the service fails. A rejection inside is a failure too, such as that of an open circuit
/// - `max-stale` of the request
///
/// Requests may demand more: `no-cache`, `no-store`, `max-age`, `min-fresh`, `only-if-cached` (504 if nothing is
/// stored).
///
/// A successful request with an unsafe method, such as `POST`, removes the responses of its URI, and of those that its
/// response names in `Location` and `Content-Location` on the same host. A request without an outcome, because it was
/// dropped or failed with an error, removes those of its URI.
///
/// Each response says in `Cache-Status` (RFC 9211) the action of the cache, and a stored one in `Age` how old it is.
/// The [name](Self::named) of the layer is the name of the cache.
///
/// # What passes
///
/// The following requests go to the service as they are, and their responses are not stored:
///
/// - with a method other than `GET`, and `HEAD` if no stored response answers it
/// - with content, `Upgrade`, `If-Match`, `If-Unmodified-Since`, or `no-store`
/// - with several `Host` fields, with one that is unreadable or differs from the URI's, or with a user name in it
///
/// # Concurrent requests
///
/// Requests that miss the same response share one request to the service. It runs on a task of its own, with the scope
/// of its caller, but neither its deadline nor its cancellation. Bytes reach all callers as they arrive. A slow caller
/// holds up no other. The request goes on if its caller leaves, and for the time of [`linger`](Self::linger) if all
/// have left: put limits of time inside. The caller's scope waits for the response, but not for its body.
///
/// The following requests share none, and each of them makes its own. Their responses may be stored:
///
/// - with `Authorization`, also if they only validate a stored response
/// - with `no-cache`, `max-age` or `min-fresh`
/// - with `Range`, if no response is stored
/// - if the stored response needs a validation for each request (`no-cache`, `max-age=0`), or is for other callers
/// - for half a minute, if a response for the same URI turned out to be for one caller alone. Those that have waited
///   for it do not wait again
///
/// Requests with a cookie share only with one another, and requests with different values of the fields that `Vary` has
/// named do not share. A response that is arriving is shared while it may be reused, and a request that has had no
/// response for ten seconds is no longer joined.
///
/// After an error, or a 429 or 5xx that is not stored, the requests that have waited share one more: the first may have
/// failed by its own fault. If that fails too, they get the rejection inside, or
/// [`Reason::Shared`](crate::Reason::Shared) with its message and its `Retry-After`.
///
/// A call that asks for its own resource, from inside the request that the cache makes for it, gets
/// [`Reason::Recursive`](crate::Reason::Recursive). Spawned tasks are not detected.
///
/// # Order
///
/// Outside the timeout of an attempt, the retry, the circuit breaker and the concurrency limit, so that a hit needs
/// none of them, and inside the [`ContextLayer`](crate::context::ContextLayer). A layer that compresses can be on
/// either side: a response with a `Content-Encoding` is only for requests with the same `Accept-Encoding`.
///
/// # Cancellation safety
///
/// A call can be dropped at any time. An invalidation beats every response that is on its way at that time.
///
/// # Cost
///
/// A hit costs a lookup, one more if the response has a `Vary`, a copy of the headers, and two new header values, and
/// no copy of the body. A miss costs a task and a copy of the head and the body: a stored response keeps no buffer of a
/// connection alive.
///
/// The layer needs `S: Clone` and a tokio runtime. Everything is `Send + 'static`. The service is always ready, and
/// makes a clone of the inner service ready when it makes a request.
///
/// # Examples
///
/// ```
/// use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
/// use bytes::Bytes;
/// use http::{Request, Response};
/// use http_body_util::{BodyExt, Full};
/// use tower::{ServiceBuilder, ServiceExt, service_fn};
/// use ziggurat::{Error, cache::CacheLayer};
///
/// static CALLS: AtomicU64 = AtomicU64::new(0);
///
/// # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() {
/// let layer = CacheLayer::http();
/// let cache = layer.handle();
/// let service = ServiceBuilder::new().layer(layer).map_err(Error::Service).service(service_fn(
///     async |_: Request<Full<Bytes>>| {
///         CALLS.fetch_add(1, Relaxed);
///         let response = Response::builder().header("cache-control", "max-age=60");
///         Ok::<_, std::io::Error>(response.body(Full::new(Bytes::from("hello"))).unwrap())
///     },
/// ));
///
/// let hello = || Request::get("http://shop.test/hello").body(Full::default()).unwrap();
/// for status in ["ziggurat; fwd=uri-miss; stored", "ziggurat; hit; ttl=60"] {
///     let response = service.clone().oneshot(hello()).await.unwrap();
///     assert_eq!(response.headers()["cache-status"], status);
///     assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "hello");
/// }
/// assert_eq!(CALLS.load(Relaxed), 1);
///
/// cache.invalidate(&"http://shop.test/hello".parse().unwrap());
/// service.oneshot(hello()).await.unwrap();
/// assert_eq!(CALLS.load(Relaxed), 2);
/// # }
/// ```
#[derive(Clone)]
#[must_use]
pub struct HttpCacheLayer {
    settings: Settings,
}

#[derive(Clone)]
struct Settings {
    state: Arc<State>,
    rules: Rules,
    max_body: usize,
    patience: Duration,
    info: LayerInfo,
}

impl Deref for Settings {
    type Target = State;

    fn deref(&self) -> &State {
        &self.state
    }
}

impl HttpCacheLayer {
    /// Sets the total size of the stored responses, in bytes. The default is 64 MiB.
    ///
    /// The size includes the headers and the overhead of each response. All bodies together take at most twice this in
    /// memory: those that are stored, that are arriving, and that are evicted while callers still read them. Beyond
    /// that, bodies stream through uncached, and each of them takes at most 64 KiB: a caller that is further behind
    /// another one gets an error. A single frame of the service may be larger.
    ///
    /// If responses are stored already, and take more than this, the excess is evicted.
    ///
    /// # Panics
    ///
    /// If `bytes` is zero.
    #[track_caller]
    pub fn capacity(self, bytes: usize) -> Self {
        assert!(bytes > 0, "capacity must be at least 1, not 0");
        self.settings.set_capacity(bytes);
        self
    }

    /// Sets the size of the largest body that is stored, in bytes. The default is 8 MiB. The
    /// [`capacity`](Self::capacity) bounds it.
    ///
    /// A larger body streams through uncached. If its head does not say how large it is, callers may be reading it
    /// already when that turns out. Then the one that is ahead sets the pace, and the body of a caller that is more than
    /// this number of bytes behind ends with an error.
    pub fn max_body(mut self, bytes: usize) -> Self {
        self.settings.max_body = bytes;
        self
    }

    /// Sets how long a response is fresh that does not say so itself, and whose status allows a guess. The default is
    /// [`Duration::ZERO`].
    ///
    /// A response with `Last-Modified` is fresh for a tenth of its age instead, and for a day at most.
    pub fn default_ttl(mut self, ttl: Duration) -> Self {
        self.settings.rules.default_ttl = ttl;
        self
    }

    /// Serves a stale response in place of a failure, until `window` after it has expired. The default is
    /// [`Duration::ZERO`].
    ///
    /// A failure is an error, a rejection by a layer inside, such as an open circuit breaker, a response with the
    /// status 500, 502, 503 or 504 (RFC 5861, section 4), or a 304 about another version than the stored one. Without a
    /// stale response, the caller gets a 502 for such a 304, and the next request asks for the whole response.
    ///
    /// A `stale-if-error` of the response comes first. A response that must be revalidated is never served.
    pub fn stale_if_error(mut self, window: Duration) -> Self {
        self.settings.rules.stale_if_error = window;
        self
    }

    /// Serves a response that expired less than `window` ago at once, and fetches a fresh one on a separate task (RFC
    /// 5861, section 3). The default is [`Duration::ZERO`].
    ///
    /// A `stale-while-revalidate` of the response comes first. A response that must be revalidated is never served.
    pub fn stale_while_revalidate(mut self, window: Duration) -> Self {
        self.settings.rules.stale_while_revalidate = window;
        self
    }

    /// Obeys this field of a response in place of its `Cache-Control` and `Expires`, such as `cdn-cache-control` (RFC
    /// 9213).
    pub fn targeted(mut self, field: HeaderName) -> Self {
        self.settings.rules.targeted = Some(field);
        self
    }

    /// Sets how long a request to the service goes on, and its response is stored, after its last caller has left. The
    /// default is one minute.
    pub fn linger(mut self, linger: Duration) -> Self {
        self.settings.patience = linger;
        self
    }

    /// Keeps the responses in this store too, so that processes share them, and a process that starts finds them there:
    /// a `RedisStore` (feature `redis`), a [`MemoryStore`](crate::store::MemoryStore), or a [`ValueStore`] of your own.
    ///
    /// A request that finds nothing fresh in memory looks there before it goes to the service, and a stale response of
    /// either level is validated. The store has responses with a body of 1 MiB at most, for a week at most.
    ///
    /// An unsafe method removes the responses from the store before its caller gets the response, if the store answers
    /// within 100 ms. If not, the removal is repeated, at the latest when the store is back, and until then this
    /// process uses no response of the resource from there. If 10,000 removals wait, they are given up: this process
    /// then uses nothing that was stored before, but others do. The memory of other processes keeps its responses until
    /// they are no longer fresh.
    ///
    /// A store that fails or takes longer than 100 ms for a lookup counts as
    /// [away](crate::store#while-a-store-is-away): requests then go on as if it were empty. A lookup costs two requests
    /// to the store, one after the other, up to five if responses of the resource had different `Vary` fields, and one
    /// more for the first of a resource. A caller never waits until a response is stored. `HEAD` and `only-if-cached`
    /// use the memory alone. The observer of the first service that the layer makes receives the events of the store.
    ///
    /// Share a store only between caches with the same settings in front of the same service, and give it a prefix of
    /// its own. URIs are part of the keys. A response with `Vary: Cookie` or `Vary: Authorization`, or with a `Vary`
    /// that names a field whose value is [sensitive](http::HeaderValue::set_sensitive), stays in memory, because the
    /// store would have the secret. Values of other fields that `Vary` names are written along with the response. The
    /// clocks of the processes should agree to a second: how old a response is follows from them.
    ///
    /// # Panics
    ///
    /// If the cache already has a second level.
    ///
    /// ```
    /// use ziggurat::{cache::CacheLayer, store::MemoryStore};
    ///
    /// let store = MemoryStore::new();
    /// let (one, other) = (CacheLayer::http().second_level(store.clone()), CacheLayer::http().second_level(store));
    /// # let _ = (one, other);
    /// ```
    #[track_caller]
    pub fn second_level(self, store: impl ValueStore) -> Self {
        let is_first = self.settings.second.set(Arc::new(Second::new(store, &self.settings.state.room))).is_ok();
        assert!(is_first, "this cache has a second level already");
        self
    }

    /// Returns the handle to the live state, to invalidate responses and to read statistics.
    #[must_use]
    pub fn handle(&self) -> HttpCacheHandle {
        HttpCacheHandle { state: Arc::clone(&self.settings.state) }
    }

    layer_setters!(settings.info);
}

impl_debug!(Settings { capacity = |this| this.state.capacity(), rules, max_body, patience, info });
impl_debug!(HttpCacheLayer { settings });

impl<S> Layer<S> for HttpCacheLayer {
    type Service = HttpCache<S>;

    fn layer(&self, inner: S) -> Self::Service {
        let mut settings = self.settings.clone();
        settings.max_body = settings.max_body.min(settings.capacity());
        if let Some(second) = settings.second.get() {
            second.belongs_to(&settings.info);
        }
        HttpCache { inner, settings: Arc::new(settings) }
    }
}

/// The service of [`HttpCacheLayer`].
#[derive(Clone)]
pub /* not a Service? see ziggurat::docs::it_does_not_compile */ struct HttpCache<S> {
    inner: S,
    settings: Arc<Settings>,
}

impl<S> HttpCache<S> {
    inner_accessors!();
}

impl_debug!(HttpCache<S: fmt::Debug> { inner, settings });

impl<S, A, B> Service<Request<A>> for HttpCache<S>
where
    S: Service<Request<A>, Response = Response<B>, Error: Reject<Response<B>> + fmt::Display + Send, Future: Send>
        + Clone
        + Send
        + 'static,
    A: Body + Send + 'static,
    B: Body<Error: Into<BoxError>> + Send + 'static,
{
    type Response = Response<CacheBody<B>>;
    type Error = S::Error;
    type Future = HttpResponseFuture<S, A, B>;

    /// Always ready, because the response may be in memory. If not, the response future makes a clone of the inner
    /// service ready.
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<A>) -> Self::Future {
        let settings = &self.settings;
        let pass = |request, why, effect| {
            count(&settings.counts.bypassed);
            settings.info.emit(LayerEvent::Bypassed);
            let after = After { settings: Arc::clone(settings), why, effect };
            HttpResponseFuture::passing(self.inner.clone(), request, after)
        };
        let Some(key) = HttpKey::of(&request) else { return pass(request, Why::Bypass, Effect::None) };
        let (headers, is_head) = (request.headers(), request.method() == Method::HEAD);
        if !request.method().is_safe() {
            return pass(request, Why::Method, Effect::Invalidate(key));
        }
        if !is_head && request.method() != Method::GET {
            return pass(request, Why::Method, Effect::None);
        }
        let asked = Asked::read(headers);
        let nothing_stored = || {
            let mut response = Response::new(CacheBody::empty());
            *response.status_mut() = StatusCode::GATEWAY_TIMEOUT;
            settings.note(response.headers_mut(), None, Status::Missing);
            HttpResponseFuture::answered(response)
        };
        if has_content(&request)
            || [UPGRADE, IF_MATCH, IF_UNMODIFIED_SINCE].iter().any(|name| headers.contains_key(name))
        {
            return match asked.directives.only_if_cached {
                true => nothing_stored(),
                false => pass(request, Why::Bypass, Effect::None),
            };
        }
        // A stored response may be served all the same, and nothing is stored if no request is made.
        if asked.directives.no_store && !asked.directives.only_if_cached {
            return pass(request, Why::Request, Effect::None);
        }
        let found = settings.pages.find(&key, headers);
        let missing = |request, found| {
            let (settings, service) = (Arc::clone(settings), self.inner.clone());
            Missing { settings, service, request, key: key.clone(), asked: asked.clone(), found }
        };
        if let Some(page) = found.page.as_ref().filter(|page| page.head.terms.are_for(&asked)) {
            let reuse = page.head.terms.reuse(&asked, clock::now());
            if reuse == Reuse::Fresh || reuse == Reuse::Stale {
                return HttpResponseFuture::answered(settings.hit(page, &asked, headers, is_head));
            }
            if reuse == Reuse::Refresh && (Handle::try_current().is_ok() || asked.directives.only_if_cached) {
                let response = settings.hit(page, &asked, headers, is_head);
                if !is_head && !asked.directives.only_if_cached && !page.is_paused(clock::now()) {
                    missing(request, found).refresh();
                }
                return HttpResponseFuture::answered(response);
            }
        }
        if asked.directives.only_if_cached {
            return nothing_stored();
        }
        if is_head {
            let page = found.page.filter(|page| page.head.terms.are_for(&asked));
            let effect = page.map(|page| Effect::Compare {
                lead: settings.flights.alone(&key, headers),
                sent: clock::now(),
                asked,
                page,
            });
            return pass(request, Why::Method, effect.unwrap_or(Effect::None));
        }
        HttpResponseFuture::missed(Box::pin(missing(request, found).run()))
    }
}

/// Returns whether a request has content, which a cache does not know the meaning of.
fn has_content<A: Body>(request: &Request<A>) -> bool {
    let headers = request.headers();
    headers.contains_key(TRANSFER_ENCODING)
        || headers.get(CONTENT_LENGTH).is_some_and(|length| length != "0")
        || !request.body().is_end_stream()
}
