//! Passes on, to the next hop, who a request is and how much time is left for it.
//!
//! For clients. What is passed on is the [`RequestIds`] in the request's extensions (a proxy forwards them), or else that of the
//! current [`Scope`]: of the request that is being served by whoever calls this client. It is the request id, under the name of
//! the header that it came in, `traceparent` and `tracestate`. A header that the request has already stays as it is: somebody
//! set it on purpose, a tracing client for example, whose span is the parent of the call (its `tracestate` stays too, or its
//! absence).
//!
//! With [`deadline`](PropagateLayer::deadline) the time that [`Deadline::current`] has left is written too, for each attempt
//! anew. If the request carries such a header already, the smaller time wins. Where there is no deadline the header is left as
//! it is. If the deadline has passed, the least that the header can say is written, as gRPC's implementations do; the timeout
//! outside ends the call.
//!
//! **Its clock** is read in `call`, once, and only for the deadline. Asking for it starts a timeout outside that has not
//! started yet: its clock starts with the call, and not at the first poll.
//!
//! **Where it belongs**: innermost, next to the service and inside of the attempt's timeout. Outside of a retry every attempt
//! would send the time that the first one had.
//!
//! **Cancellation.** It has no future of its own.
//!
//! It takes an [`http::Request`], and with the feature `reqwest` a `reqwest::Request`. Which layers take that one: all but
//! [`ContextLayer::new`](crate::context::ContextLayer::new) ([`ambient`](crate::context::ContextLayer::ambient) does),
//! [`RequestIdLayer`](crate::request_id::RequestIdLayer), [`RejectionResponseLayer`](crate::rejection_response::RejectionResponseLayer) and
//! [`ReplayLayer`](crate::replay::ReplayLayer), which need the parts of an [`http::Request`] or [`http::Response`].
//!
//! It needs no `S: Clone`, never rejects, and allocates only what the headers take.
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
//! // In a handler, inside of an `RequestIdLayer`, there is such a scope.
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
    ambient::Deadline,
    headers::{RequestIds, TimeoutHeader},
    scope::Scope,
};

/// Passes on who a request is and how much time is left for it: see the [module](self).
#[derive(Debug, Clone, Default)]
#[must_use]
pub struct PropagateLayer {
    deadline: Option<TimeoutHeader>,
}

impl PropagateLayer {
    /// Passes on the request id and the trace.
    pub fn new() -> Self {
        Self::default()
    }

    /// Writes the time that is left into this header too.
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
pub struct Propagate<S> {
    inner: S,
    layer: PropagateLayer,
}

impl<S, B> Service<Request<B>> for Propagate<S>
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
        match head.extensions.get::<RequestIds>() {
            Some(ids) => ids.write(&mut head.headers),
            None => write_current(&mut head.headers),
        }
        self.layer.write_deadline(&mut head.headers);
        self.inner.call(Request::from_parts(head, body))
    }
}

/// reqwest's own request has no extensions to look into: the ids is always that of the current scope.
#[cfg(feature = "reqwest")]
#[cfg_attr(docsrs, doc(cfg(feature = "reqwest")))]
impl<S> Service<reqwest::Request> for Propagate<S>
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
        write_current(request.headers_mut());
        self.layer.write_deadline(request.headers_mut());
        self.inner.call(request)
    }
}

/// Whose request is being served by whoever makes this one.
fn write_current(headers: &mut HeaderMap) {
    if let Some(ids) = Scope::current().and_then(|scope| scope.get::<RequestIds>()) {
        ids.write(headers);
    }
}
