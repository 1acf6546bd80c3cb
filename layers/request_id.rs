//! Assigns an id to every request, and adopts the trace that the request belongs to.
//!
//! For servers. The layer reads the [`RequestIds`] of every request. The request id is taken from `x-request-id` (or
//! from [another header](RequestIdLayer::header)) if it is a single visible word of at most 128 characters; otherwise
//! a new random id is created. A valid W3C `traceparent` is adopted with its `tracestate`. The ids are then
//!
//! - in the request's extensions. With a [`ContextLayer`](crate::context::ContextLayer) outside, they are also in the
//!   request's scope: `Scope::current()?.get::<RequestIds>()` finds them in handlers, and in the clients that
//!   handlers call, where a [`PropagateLayer`](crate::propagate::PropagateLayer) passes them on.
//! - in the scope's `tracing` span, as `request_id` and `trace_id`, and therefore next to everything that is logged
//!   in the request.
//! - in the headers (the request id only). In the request, the id replaces any previous value. In the response, an id
//!   that the service has set takes precedence.
//!
//! Malformed headers do not fail the request. A malformed id is never logged, passed on, or sent back. An invalid
//! `traceparent` stays in the request unchanged.
//!
//! # Order
//!
//! Place the layer just inside the [`ContextLayer`](crate::context::ContextLayer), and outside every layer that may
//! respond instead of the service, so that rejections carry the id too. Outside the context, the ids are missing from
//! the scope. If there are two such layers, the outer one decides. An error that is not a response passes unchanged,
//! without an id.
//!
//! # Cancellation safety
//!
//! Dropping the response future drops the call.
//!
//! # Cost
//!
//! The layer does not require `S: Clone`, never rejects, and reads no clock. Each request allocates its id (if it is
//! created), the headers, an extension, and a value in the scope. If the span is disabled, recording into it costs
//! one branch.
//!
//! # Examples
//!
//! ```
//! use http::{Request, Response};
//! use tower::{ServiceBuilder, ServiceExt, service_fn};
//! use ziggurat::{Scope, context::ContextLayer, request_id::RequestIdLayer, headers::RequestIds};
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() {
//! let service = ServiceBuilder::new()
//!     .layer(ContextLayer::new(Scope::root("app")))
//!     .layer(RequestIdLayer::new())
//!     .service(service_fn(|_: Request<String>| async {
//!         let ids = Scope::current().unwrap().require::<RequestIds>().unwrap();
//!         Ok::<_, std::convert::Infallible>(Response::new(format!("serving {}", ids.request_id())))
//!     }));
//!
//! let request = Request::get("/").header("x-request-id", "order-17").body(String::new()).unwrap();
//! let response = service.clone().oneshot(request).await.unwrap();
//! assert_eq!(response.headers()["x-request-id"], "order-17");
//!
//! let response = service.oneshot(Request::get("/").body(String::new()).unwrap()).await.unwrap();
//! assert_eq!(response.headers()["x-request-id"].len(), 32);
//! # }
//! ```

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
};

use http::{HeaderName, Request, Response};
use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

use crate::{accessors::inner_accessors, debug::impl_debug, headers::RequestIds, scope::Scope};

/// Assigns an id to every request: see the [module](self).
#[derive(Debug, Clone)]
#[must_use]
pub struct RequestIdLayer {
    header: HeaderName,
}

impl RequestIdLayer {
    /// Creates a layer with the request id in `x-request-id`.
    pub fn new() -> Self {
        Self { header: HeaderName::from_static("x-request-id") }
    }

    /// Sets the header from which the request id is read, in which it is sent back, and under whose name a client
    /// passes it on.
    pub fn header(mut self, name: HeaderName) -> Self {
        self.header = name;
        self
    }

    /// Reads the request's ids and stores them in the headers, the scope, and the extensions.
    fn identify<B>(&self, request: &mut Request<B>) -> RequestIds {
        if let Some(known) = request.extensions().get::<RequestIds>() {
            return known.clone();
        }
        let ids = RequestIds::read(request.headers(), self.header.clone());
        let id = ids.request_id();
        request.headers_mut().insert(id.name().clone(), id.value().clone());
        // The request's own scope, not just the current one, which many requests may share.
        if let Some(scope) = request.extensions().get::<Scope>() {
            scope.identify(ids.clone());
        }
        request.extensions_mut().insert(ids.clone());
        ids
    }
}

impl Default for RequestIdLayer {
    fn default() -> Self {
        Self::new()
    }
}

impl<S> Layer<S> for RequestIdLayer {
    type Service = RequestId<S>;

    fn layer(&self, inner: S) -> Self::Service {
        RequestId { inner, layer: self.clone() }
    }
}

/// The service of [`RequestIdLayer`].
#[derive(Debug, Clone)]
pub /* not a Service? see ziggurat::docs::it_does_not_compile */ struct RequestId<S> {
    inner: S,
    layer: RequestIdLayer,
}

impl<S> RequestId<S> {
    inner_accessors!();
}

impl<S, B, R> Service<Request<B>> for RequestId<S>
where
    S: Service<Request<B>, Response = Response<R>>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = ResponseFuture<S::Future>;

    #[inline]
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    #[inline]
    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        let ids = self.layer.identify(&mut request);
        ResponseFuture { response: Some(self.inner.call(request)), ids }
    }
}

pin_project! {
    /// The response future of [`RequestId`].
    #[must_use = "futures do nothing unless polled"]
    pub struct ResponseFuture<F> {
        // None: the outcome was returned.
        #[pin]
        response: Option<F>,
        ids: RequestIds,
    }
}

impl<F, R, E> Future for ResponseFuture<F>
where
    F: Future<Output = Result<Response<R>, E>>,
{
    type Output = F::Output;

    #[inline]
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let mut this = self.project();
        let Some(response) = this.response.as_mut().as_pin_mut() else { return Poll::Pending };
        let mut outcome = ready!(response.poll(cx));
        this.response.set(None);
        if let Ok(response) = &mut outcome {
            this.ids.request_id().write(response.headers_mut());
        }
        Poll::Ready(outcome)
    }
}

impl_debug!(ResponseFuture<F> in request_id { response: F, id = |this| this.ids.request_id().as_str() });
