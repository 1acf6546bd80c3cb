//! Gives each `POST` and `PATCH` an `Idempotency-Key`, so that it can be repeated.
//!
//! A server that honours the key processes a request once, however often it arrives. With this layer around it, a retry
//! or a hedge therefore repeats a `POST` as it does a `GET`:
//!
//! ```
//! use std::{convert::Infallible, future::ready, sync::{Arc, Mutex}};
//! use http::{HeaderValue, Request, Response};
//! use tower::{ServiceBuilder, ServiceExt, service_fn};
//! use ziggurat::{Error, idempotency_key::IdempotencyKeyLayer, retry::RetryLayer};
//!
//! # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() {
//! let keys = Arc::new(Mutex::new(Vec::<HeaderValue>::new()));
//! let client = ServiceBuilder::new()
//!     .layer(IdempotencyKeyLayer::new())
//!     .layer(RetryLayer::http())
//!     .map_err(Error::Service)
//!     .service(service_fn({
//!         let keys = keys.clone();
//!         move |request: Request<String>| {
//!             let mut keys = keys.lock().unwrap();
//!             keys.push(request.headers()["idempotency-key"].clone());
//!             let status = if keys.len() == 1 { 503 } else { 200 };
//!             ready(Ok::<_, Infallible>(Response::builder().status(status).body(String::new()).unwrap()))
//!         }
//!     }));
//!
//! let response = client.oneshot(Request::post("/orders").body("a book".to_owned()).unwrap()).await.unwrap();
//! assert_eq!(response.status(), 200);
//! let keys = keys.lock().unwrap();
//! assert!(keys.len() == 2 && keys[0] == keys[1]);
//! # }
//! ```
//!
//! # Which requests
//!
//! Those with the methods `POST` and `PATCH`, which have no key. A request with its own key, for example the number
//! of an order, keeps it, and one with another method is safe to repeat without a key.
//!
//! Use the layer only for upstreams that honour the key, each of which needs one of its own in front of it: another one
//! ignores it, and may process a repeated request twice.
//!
//! # The key
//!
//! 128 bits that no other process guesses or repeats, as a quoted string of 32 hexadecimal digits: the form of the
//! draft `draft-ietf-httpapi-idempotency-key-header`. For an upstream that takes a bare word, see
//! [`unquoted`](IdempotencyKeyLayer::unquoted).
//!
//! # Order
//!
//! Outside every layer that repeats a request: the [retry](crate::retry), or the whole
//! [`ClientStack`](crate::stack::ClientStack). Inside a retry, each attempt would have a key of its own, and so would
//! be processed. The retry copies with [`Idempotent`](crate::Idempotent), the default for HTTP, which looks for the
//! key.
//!
//! # Cancellation safety
//!
//! The layer adds no future of its own. A caller that gives up and calls again has another key, unless it sets the key
//! itself.
//!
//! # Cost
//!
//! A request that gets a key pays for two hashes, an allocation and a header. The layer does not require `S: Clone`,
//! never rejects, and reads no clock. It accepts an [`http::Request`], and with the feature `reqwest` a
//! `reqwest::Request`.

use std::{
    hash::{BuildHasher, RandomState},
    sync::{
        LazyLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll},
};

use http::{HeaderMap, HeaderValue, Method, Request};
use tower_layer::Layer;
use tower_service::Service;

use crate::accessors::inner_accessors;

const HEADER: &str = "idempotency-key";

/// Gives each `POST` and `PATCH` an `Idempotency-Key`: see the [module](self).
#[derive(Debug, Clone, Default)]
#[must_use]
pub struct IdempotencyKeyLayer {
    is_bare: bool,
}

impl IdempotencyKeyLayer {
    /// Creates a layer whose keys are quoted strings.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sends keys without quotes, for an upstream that requires that.
    pub fn unquoted(mut self) -> Self {
        self.is_bare = true;
        self
    }

    fn add_key(&self, method: &Method, headers: &mut HeaderMap) {
        if matches!(*method, Method::POST | Method::PATCH) && !headers.contains_key(HEADER) {
            headers.insert(HEADER, self.new_key());
        }
    }

    fn new_key(&self) -> HeaderValue {
        let bits = unique();
        let key = if self.is_bare { format!("{bits:032x}") } else { format!("\"{bits:032x}\"") };
        // These characters are always valid. The fallback is never used, and would be a key too.
        HeaderValue::try_from(key).unwrap_or_else(|_| HeaderValue::from(bits as u64))
    }
}

/// Returns 128 bits that differ from those of all other calls and processes: a keyed hash of a counter, with a key from
/// the operating system. The generator of the waits would not do, because its state has only 64 bits.
fn unique() -> u128 {
    static HASHER: LazyLock<RandomState> = LazyLock::new(RandomState::new);
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let number = NEXT.fetch_add(1, Relaxed);
    let half = |which: u8| u128::from(HASHER.hash_one((number, which)));
    half(0) << 64 | half(1)
}

impl<S> Layer<S> for IdempotencyKeyLayer {
    type Service = IdempotencyKey<S>;

    fn layer(&self, inner: S) -> Self::Service {
        IdempotencyKey { inner, layer: self.clone() }
    }
}

/// The service of [`IdempotencyKeyLayer`].
#[derive(Debug, Clone)]
pub /* not a Service? see ziggurat::docs::it_does_not_compile */ struct IdempotencyKey<S> {
    inner: S,
    layer: IdempotencyKeyLayer,
}

impl<S> IdempotencyKey<S> {
    inner_accessors!();
}

impl<S, B> Service<Request<B>> for IdempotencyKey<S>
where
    S: Service<Request<B>>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let (mut head, body) = request.into_parts();
        self.layer.add_key(&head.method, &mut head.headers);
        self.inner.call(Request::from_parts(head, body))
    }
}

#[cfg(feature = "reqwest")]
#[cfg_attr(docsrs, doc(cfg(feature = "reqwest")))]
impl<S> Service<reqwest::Request> for IdempotencyKey<S>
where
    S: Service<reqwest::Request>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: reqwest::Request) -> Self::Future {
        let method = request.method().clone();
        self.layer.add_key(&method, request.headers_mut());
        self.inner.call(request)
    }
}
