//! Propagates the request id, the trace, and the remaining time to the next hop.
//!
//! For clients. The layer writes the request id, under the name of the header that it arrived in, `traceparent`, and
//! `tracestate`. The source is the [`RequestIds`] in the request's extensions (a proxy forwards them), or else in the
//! current [`Scope`], which is the scope of the request that the caller is serving. A header that is already set
//! stays unchanged, for example one of a tracing client whose span is the parent of the call. Its `tracestate`, or
//! the absence of one, stays as well.
//!
//! With [`deadline`](PropagateLayer::deadline), each attempt also carries the remaining time of
//! [`Deadline::current`]. If the request already has such a header, the shorter time wins. Without a deadline, the
//! header stays unchanged. If the deadline has passed, the header gets the smallest value that it can express, as
//! gRPC's implementations do, and the timeout outside ends the call.
//!
//! # Order
//!
//! Place the layer innermost, next to the service and inside the attempt timeout. Outside a retry, every attempt
//! would send the remaining time of the first one.
//!
//! # Cancellation safety
//!
//! The layer has no future of its own.
//!
//! # Requirements
//!
//! The layer accepts an [`http::Request`], and with the feature `reqwest` a `reqwest::Request`. All other layers
//! accept a `reqwest::Request` too, with the exception of [`ContextLayer::new`](crate::context::ContextLayer::new)
//! (use [`ambient`](crate::context::ContextLayer::ambient) instead),
//! [`RequestIdLayer`](crate::request_id::RequestIdLayer),
//! [`RejectionResponseLayer`](crate::rejection_response::RejectionResponseLayer), and
//! [`ReplayLayer`](crate::replay::ReplayLayer), which need the parts of an [`http::Request`] or [`http::Response`].
//!
//! # Cost
//!
//! The layer does not require `S: Clone`, never rejects, and allocates only for the headers. For the deadline it
//! reads the clock once, in `call`. This starts an outer timeout that has not started yet: its clock then starts with
//! the call, not at the first poll.
//!
//! # Examples
//!
//! ```
//! use std::time::Duration;
//! use http::{HeaderMap, Request, Response};
//! use tower::{ServiceBuilder, ServiceExt, service_fn};
//! use ziggurat::{
//!     Error, Scope, propagate::PropagateLayer, timeout::TimeoutLayer,
//!     headers::{RequestIds, TimeoutHeader},
//! };
//!
//! # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() {
//! let client = ServiceBuilder::new()
//!     .layer(TimeoutLayer::new(Duration::from_secs(2)))
//!     .layer(PropagateLayer::new().deadline(TimeoutHeader::grpc()))
//!     .map_err(Error::Service)
//!     .service(service_fn(|req: Request<String>| async move {
//!         assert_eq!(req.headers()["grpc-timeout"], "2000000u");
//!         assert_eq!(req.headers()["x-request-id"], "order-17");
//!         Ok::<_, std::io::Error>(Response::new(String::new()))
//!     }));
//!
//! // In a handler inside a `RequestIdLayer`, such a scope is current.
//! # let headers = HeaderMap::from_iter([("x-request-id".parse().unwrap(), "order-17".parse().unwrap())]);
//! # let ids = RequestIds::read(&headers, "x-request-id".parse().unwrap());
//! let scope = Scope::root("request").with(ids);
//! scope.within(client.oneshot(Request::get("/").body(String::new()).unwrap())).await.unwrap();
//! # }
//! ```

use std::task::{Context, Poll};

use http::{HeaderMap, Request};
use tower_layer::Layer;
use tower_service::Service;

use crate::{
    accessors::inner_accessors,
    ambient::Deadline,
    headers::{RequestIds, TimeoutHeader},
    scope::Scope,
};

/// Propagates the request id, the trace, and the remaining time: see the [module](self).
#[derive(Debug, Clone, Default)]
#[must_use]
pub struct PropagateLayer {
    deadline: Option<TimeoutHeader>,
}

impl PropagateLayer {
    /// Creates a layer that propagates the request id and the trace.
    pub fn new() -> Self {
        Self::default()
    }

    /// Also writes the remaining time, into `header`.
    pub fn deadline(mut self, header: TimeoutHeader) -> Self {
        self.deadline = Some(header);
        self
    }

    fn write_deadline(&self, headers: &mut HeaderMap) {
        if let Some(header) = &self.deadline
            && let Some(deadline) = Deadline::current()
        {
            let left = deadline.remaining();
            let left = header.read(headers).map_or(left, |forwarded| forwarded.min(left));
            header.write(left, headers);
        }
    }
}

impl<S> Layer<S> for PropagateLayer {
    type Service = Propagate<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Propagate { inner, layer: self.clone() }
    }
}

/// The service of [`PropagateLayer`].
#[derive(Debug, Clone)]
pub /* not a Service? see ziggurat::docs::it_does_not_compile */ struct Propagate<S> {
    inner: S,
    layer: PropagateLayer,
}

impl<S> Propagate<S> {
    inner_accessors!();
}

impl<S, B> Service<Request<B>> for Propagate<S>
where
    S: Service<Request<B>>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    #[inline]
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    #[inline]
    fn call(&mut self, request: Request<B>) -> Self::Future {
        let (mut head, body) = request.into_parts();
        match head.extensions.get::<RequestIds>() {
            Some(ids) => ids.write(&mut head.headers),
            None => write_current(&mut head.headers),
        }
        self.layer.write_deadline(&mut head.headers);
        self.inner.call(Request::from_parts(head, body))
    }
}

/// A `reqwest::Request` has no accessible extensions, so the ids are always those of the current scope.
#[cfg(feature = "reqwest")]
#[cfg_attr(docsrs, doc(cfg(feature = "reqwest")))]
impl<S> Service<reqwest::Request> for Propagate<S>
where
    S: Service<reqwest::Request>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    #[inline]
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    #[inline]
    fn call(&mut self, mut request: reqwest::Request) -> Self::Future {
        write_current(request.headers_mut());
        self.layer.write_deadline(request.headers_mut());
        self.inner.call(request)
    }
}

/// Writes the ids of the request that the caller is serving.
fn write_current(headers: &mut HeaderMap) {
    if let Some(ids) = Scope::current().and_then(|scope| scope.get::<RequestIds>()) {
        ids.write(headers);
    }
}
