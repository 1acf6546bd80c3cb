//! Takes over who a request is: its id, made if it brings none, and the trace that it belongs to.
//!
//! For servers. Of every request this layer makes an [`RequestIds`]: the id in `x-request-id` (or in [another
//! header](RequestIdLayer::header)) if it is one visible word of at most 128 characters, a new random one otherwise; and a valid
//! W3C `traceparent`, with its `tracestate`. It is then
//!
//! - in the request's extensions, and with a [`ContextLayer`](crate::context::ContextLayer) outside in the scope of the
//!   request: `Scope::current()?.get::<RequestIds>()` finds it in handlers, and in the clients that they call, where a
//!   [`PropagateLayer`](crate::propagate::PropagateLayer) passes it on;
//! - in the scope's span in `tracing`, as `request_id` and `trace_id`: they stand beside everything that is logged in the
//!   request;
//! - as to the id, in the request's header, in place of anything that was there, and in that of the response. One that the
//!   service has set there itself stays: it knows better, or passes on what somebody behind it said.
//!
//! Malformed headers are ignored and the request is served: a malformed id is never logged, passed on or sent back; a
//! `traceparent` that is not valid stays in the request as it came.
//!
//! **What it counts**: nothing, and it keeps no clock.
//!
//! **Where it belongs**: just inside of the [`ContextLayer`](crate::context::ContextLayer), outside of everything that may
//! answer instead of the service, so that a rejection carries the id too. Outside of the context, the scope does not know the
//! ids. Of two such layers the outer one decides. An error that is no response passes unchanged, without an id.
//!
//! **Cancellation.** Dropping the response future drops the call.
//!
//! It needs no `S: Clone` and never rejects. A request costs the allocations of an id that is made, of headers, of an extension
//! and of a value in the scope. Where nobody listens to the span, that costs one branch.
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
    any::type_name,
    fmt,
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
};

use http::{HeaderName, Request, Response};
use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

use crate::{
    headers::{RequestIdHeader, RequestIds},
    scope::Scope,
};

/// Takes over who a request is: see the [module](self).
#[derive(Debug, Clone)]
#[must_use]
pub struct RequestIdLayer {
    header: HeaderName,
}

impl RequestIdLayer {
    /// With the request id in `x-request-id`.
    pub fn new() -> Self {
        Self { header: HeaderName::from_static("x-request-id") }
    }

    /// The header that the request id is read from and sent back in, and under whose name a client passes it on.
    pub fn header(mut self, name: HeaderName) -> Self {
        self.header = name;
        self
    }

    /// Who the request is, written wherever it is looked for.
    fn identify<B>(&self, request: &mut Request<B>) -> RequestIds {
        if let Some(known) = request.extensions().get::<RequestIds>() {
            return known.clone();
        }
        let ids = RequestIds::read(request.headers(), self.header.clone());
        let id = ids.request_id();
        request.headers_mut().insert(id.name().clone(), id.value().clone());
        // The request's own scope, and not just the current one: that may be one which many requests share.
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
pub struct RequestId<S> {
    inner: S,
    layer: RequestIdLayer,
}

impl<S, B, R> Service<Request<B>> for RequestId<S>
where
    S: Service<Request<B>, Response = Response<R>>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = ResponseFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        let id = self.layer.identify(&mut request).into_request_id();
        ResponseFuture { response: Some(self.inner.call(request)), id }
    }
}

pin_project! {
    /// The response future of [`RequestId`].
    #[must_use = "futures do nothing unless polled"]
    pub struct ResponseFuture<F> {
        // None: it was answered.
        #[pin]
        response: Option<F>,
        id: RequestIdHeader,
    }
}

impl<F, R, E> Future for ResponseFuture<F>
where
    F: Future<Output = Result<Response<R>, E>>,
{
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let mut this = self.project();
        let Some(response) = this.response.as_mut().as_pin_mut() else { return Poll::Pending };
        let mut outcome = ready!(response.poll(cx));
        this.response.set(None);
        if let Ok(response) = &mut outcome {
            this.id.write(response.headers_mut());
        }
        Poll::Ready(outcome)
    }
}

impl<F> fmt::Debug for ResponseFuture<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("request_id::ResponseFuture")
            .field("response", &type_name::<F>())
            .field("id", &self.id.as_str())
            .finish()
    }
}
