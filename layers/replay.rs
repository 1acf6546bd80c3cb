//! Makes the bodies of HTTP requests such that they can be sent again.
//!
//! A retry needs a copy of the request, and a body that is streamed comes only once. Inside of this layer a request has a
//! [`ReplayBody`]: while the first attempt streams it, what passes is kept, and the next attempt gives that and goes on with the
//! rest. A body that is `Clone`, such as `Full<Bytes>`, does not need this layer.
//!
//! **What it counts**: bytes of bodies that are kept. A request may keep 64 KiB
//! ([`max_bytes`](ReplayLayer::max_bytes)), all requests of a layer value together 64 MiB
//! ([`max_total_bytes`](ReplayLayer::max_total_bytes)). Past either, what was kept is freed, the request is sent once,
//! and [`LayerEvent::NotRepeatable`](crate::LayerEvent::NotRepeatable) says why. An upload of any size can still be retried as
//! long as nothing of it was read: if no connection could be made, for example. Nothing is kept while no copy of the
//! request waits that would need it: in the last attempt, and for a `POST`, which is sent again only if it was not
//! processed and nothing of it was read. It keeps no clock.
//!
//! **Where it belongs**: right outside of the retry. Inside of the retry it would see only requests that were copied already.
//! Further out there is no harm, but bodies are wrapped in vain where a cache answers.
//!
//! **Cancellation.** It has no future of its own. What was kept is freed with the last copy of its request.
//!
//! It needs no `S: Clone`, never rejects, and forwards readiness, response and error. An empty body costs nothing.
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
//!         Ok::<_, Infallible>(Response::builder().status(status).body(String::from_utf8_lossy(&text).into_owned()).unwrap())
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
    body::{Allowance, ReplayBody},
    telemetry::layer_setters,
};

/// Makes the bodies of HTTP requests such that they can be sent again: see the [module](self).
#[derive(Debug, Clone, Default)]
#[must_use]
pub struct ReplayLayer {
    allowance: Allowance,
    /// Whether the number for one request was set: its default follows a lower number for all.
    is_set: bool,
}

impl ReplayLayer {
    /// Keeps 64 KiB of a request (the figure of linkerd2), and 64 MiB of all together.
    pub fn new() -> Self {
        Self::default()
    }

    /// How much of one request is kept at most, in bytes; 64 KiB if it is not set. With 0 only those are sent again of which
    /// nothing was read.
    ///
    /// Data counts with its length, and is copied: the buffer that it was cut from, which may be larger, is not kept.
    /// Trailers count with the length of their names and values. Very many small frames are too much as well: more than
    /// 64, and under 64 bytes on average if all of what is allowed were used.
    ///
    /// # Panics
    ///
    /// When the layer is used, if this is more than [`max_total_bytes`](Self::max_total_bytes).
    pub fn max_bytes(mut self, bytes: usize) -> Self {
        self.allowance.max_bytes = bytes;
        self.is_set = true;
        self
    }

    /// How much of all requests is kept at most at one time, in bytes; 64 MiB if it is not set.
    pub fn max_total_bytes(mut self, bytes: usize) -> Self {
        self.allowance.max_total_bytes = bytes;
        self
    }

    /// How many bytes of all requests are kept just now.
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
pub struct Replay<S> {
    inner: S,
    // Shared with the bodies.
    allowance: Arc<Allowance>,
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
