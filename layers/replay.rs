//! Makes streamed request bodies repeatable.
//!
//! A retry needs a copy of the request, but a streamed body can be read only once. This layer wraps the body in a
//! [`ReplayBody`]: while the first attempt streams the body, the layer buffers it. The next attempt sends the
//! buffered part and then continues with the rest. A body that is `Clone`, such as `Full<Bytes>`, does not need this
//! layer.
//!
//! # Limits
//!
//! A request may buffer 64 KiB ([`max_bytes`](ReplayLayer::max_bytes)), and all requests of one layer value together
//! 64 MiB ([`max_total_bytes`](ReplayLayer::max_total_bytes)). Beyond either limit, the buffer is freed, the request
//! is sent only once, and [`LayerEvent::NotRepeatable`](crate::LayerEvent::NotRepeatable) reports why.
//!
//! An upload of any size can be retried if no part of it was read, for example because the connection failed. Nothing
//! is buffered unless a copy of the request could need it. This rules out the last attempt, and a `POST`, which is
//! sent again only if it was not processed and no part of it was read.
//!
//! # Order
//!
//! Place the layer directly outside the retry. Inside the retry, it would see only requests that were already copied.
//! Further out it does no harm, but it wraps bodies in vain if a cache responds.
//!
//! # Cancellation safety
//!
//! The layer has no future of its own. The buffer is freed with the last copy of its request.
//!
//! # Cost
//!
//! The layer does not require `S: Clone`, never rejects, reads no clock, and forwards readiness, responses, and
//! errors. An empty body costs nothing.
//!
//! # Examples
//!
//! ```
//! use std::convert::Infallible;
//! use bytes::Bytes;
//! use http::{Request, Response, StatusCode};
//! use http_body_util::{BodyExt, StreamBody};
//! use tower::{ServiceBuilder, ServiceExt, service_fn};
//! use ziggurat::{body::ReplayBody, replay::ReplayLayer, retry::RetryLayer};
//!
//! # type Streamed = http_body_util::combinators::UnsyncBoxBody<Bytes, Infallible>;
//! # fn streamed() -> Streamed { "streamed".to_owned().boxed_unsync() }
//! # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() {
//! let service = ServiceBuilder::new()
//!     .layer(ReplayLayer::new())
//!     .layer(RetryLayer::http())
//!     .service(service_fn(|req: Request<ReplayBody<Streamed>>| async {
//!         let status = if ziggurat::attempt() == 1 { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK };
//!         let text = req.into_body().collect().await.unwrap().to_bytes();
//!         let text = String::from_utf8_lossy(&text).into_owned();
//!         Ok::<_, Infallible>(Response::builder().status(status).body(text).unwrap())
//!     }));
//!
//! let response = service.oneshot(Request::put("/").body(streamed()).unwrap()).await.unwrap();
//! assert_eq!((response.status(), response.body().as_str()), (StatusCode::OK, "streamed"));
//! # }
//! ```

use std::{
    sync::Arc,
    task::{Context, Poll},
};

use http::Request;
use http_body::Body;
use tower_layer::Layer;
use tower_service::Service;

use crate::{
    accessors::inner_accessors,
    body::{Allowance, ReplayBody},
    telemetry::layer_setters,
};

/// Makes streamed request bodies repeatable: see the [module](self).
#[derive(Debug, Clone, Default)]
#[must_use]
pub struct ReplayLayer {
    allowance: Allowance,
    /// Whether `max_bytes` was set. Its default follows a lower `max_total_bytes`.
    is_set: bool,
}

impl ReplayLayer {
    /// Creates a layer that buffers up to 64 KiB per request (linkerd2's figure), and 64 MiB in total.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the maximum number of bytes buffered per request. The default is 64 KiB. With 0, a request is sent again
    /// only if no part of its body was read.
    ///
    /// Data counts with its length and is copied, so that a larger buffer from which it was cut is not kept alive.
    /// Trailers count with the length of their names and values. The number of frames is limited too: to 64, plus one
    /// for each 64 bytes of this limit.
    ///
    /// # Panics
    ///
    /// Panics when the layer is applied to a service, if `bytes` is more than
    /// [`max_total_bytes`](Self::max_total_bytes).
    pub fn max_bytes(mut self, bytes: usize) -> Self {
        self.allowance.max_bytes = bytes;
        self.is_set = true;
        self
    }

    /// Sets the maximum number of bytes buffered for all requests together. The default is 64 MiB.
    pub fn max_total_bytes(mut self, bytes: usize) -> Self {
        self.allowance.max_total_bytes = bytes;
        self
    }

    /// Returns the number of bytes that are currently buffered for all requests.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.allowance.kept()
    }

    layer_setters!(allowance.info);
}

impl<S> Layer<S> for ReplayLayer {
    type Service = Replay<S>;

    fn layer(&self, inner: S) -> Self::Service {
        let (one, all) = (self.allowance.max_bytes, self.allowance.max_total_bytes);
        assert!(!self.is_set || one <= all, "max_bytes must be at most max_total_bytes, which is {all}, not {one}");
        Replay { inner, allowance: Arc::new(self.allowance.clone()) }
    }
}

/// The service of [`ReplayLayer`].
#[derive(Debug, Clone)]
pub /* not a Service? see ziggurat::docs::it_does_not_compile */ struct Replay<S> {
    inner: S,
    // Shared with the bodies.
    allowance: Arc<Allowance>,
}

impl<S> Replay<S> {
    inner_accessors!();
}

impl<S, B> Service<Request<B>> for Replay<S>
where
    S: Service<Request<ReplayBody<B>>>,
    B: Body,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        self.inner.call(request.map(|body| ReplayBody::within(body, &self.allowance)))
    }
}
