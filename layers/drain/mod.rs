//! Shuts a server down gracefully: rejects new requests, and lets those in flight finish.
//!
//! The layer counts the calls in flight. When the program has to stop, its handle starts the drain:
//!
//! ```no_run
//! use std::time::Duration;
//! use axum::{Router, routing::get};
//! use ziggurat::drain::DrainLayer;
//!
//! # async fn terminated() {}
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> std::io::Result<()> {
//! let drain = DrainLayer::new().grace(Duration::from_secs(20));
//! let handle = drain.handle();
//! let app: Router = Router::new()
//!     .route("/", get(|| async { "hello" }))
//!     .layer(drain)
//!     .route("/health", get(|| async { "alive" })); // added after the layer, and so outside it
//!
//! let listener = tokio::net::TcpListener::bind("127.0.0.1:3000").await?;
//! let stopped = async move {
//!     terminated().await; // SIGTERM, for example
//!     handle.drain().await;
//! };
//! axum::serve(listener, app).with_graceful_shutdown(stopped).await
//! # }
//! ```
//!
//! # The drain
//!
//! It begins in [`DrainHandle::drain`], which reads the clock once, and cannot be taken back. From then on
//!
//! - new calls are rejected with [`Reason::Draining`](crate::Reason::Draining) (HTTP 503, gRPC `UNAVAILABLE`). Over
//!   HTTP/1, the response has `Connection: close`, so that the client's next request goes elsewhere. Over HTTP/2, where
//!   that header is forbidden, the server closes the connection when the drain is over;
//! - calls in flight go on. Over HTTP/1, a response whose head has not been returned yet also gets `Connection: close`;
//! - endless streams are [notified](self#endless-streams).
//!
//! The future of the drain completes when the last call in flight has ended. At the end of the grace period at the
//! latest, it completes anyway, a call that has no response yet is dropped and rejected for the same reason, and a
//! response's body ends with an error that contains the rejection ([`Rejection::find`](crate::Rejection::find)).
//!
//! In the example, the server goes on accepting connections during the drain, and answers each with a 503. That is
//! better than a refused connection while a load balancer does not know yet. Afterwards it closes all connections. A
//! body that is not polled does not end: if a client does not read its response, only the end of the program closes
//! its connection.
//!
//! # What counts
//!
//! A call is in flight from `call` until its response's body has ended, failed or been dropped, or until the call has
//! failed, panicked or been dropped. An empty body has ended from the start, and so has that of a 101: upgraded
//! connections, such as WebSockets, are not counted. Neither is a wait for the readiness of the service, which ends
//! when the drain begins. A call that is admitted just before that is counted, and the drain waits for it.
//!
//! # Endless streams
//!
//! A stream that would not end by itself (server-sent events, a subscription) waits for [`draining`], which completes
//! at the beginning of the drain:
//!
//! ```
//! use std::convert::Infallible;
//! use axum::response::sse::{Event, Sse};
//! use futures_util::{Stream, StreamExt};
//! use ziggurat::drain::draining;
//!
//! async fn events() -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
//!     let ticks = futures_util::stream::repeat_with(|| Ok(Event::default().data("tick")));
//!     Sse::new(ticks.take_until(draining()))
//! }
//! ```
//!
//! With the stream, the response's body ends, and with the body the request's [`Scope`](crate::Scope), if a
//! [`ContextLayer`](crate::context::ContextLayer) opened one: that cancels the tasks that feed the stream. The scopes
//! of all other requests stay open, because their calls have to finish, and may still start tasks.
//!
//! # Order
//!
//! Place the layer outermost on a server, so that it counts all that belongs to a call. Layers that see every response
//! (the context, request ids, and a [`RejectionResponseLayer`](crate::rejection_response) that makes a problem or a
//! gRPC status of a rejection) may stay outside. Health checks belong outside too: a server that drains is alive, and a
//! readiness check reads [`is_draining`](DrainHandle::is_draining) from the handle.
//!
//! # Cancellation safety
//!
//! A call that is dropped is counted out, and so is one that panics, and a body that is dropped.
//!
//! # Requirements
//!
//! The service takes an [`http::Request`], responds with an [`http::Response`], and is `Clone`: a call that is rejected
//! drops the service that was made ready, with all that it has reserved. While it drains, the layer is always ready,
//! and does not ask the service. A call that is pending during a drain has a timer, and panics on a runtime without a
//! clock; a grace period of zero or of [`Duration::MAX`] needs none.
//!
//! # Cost
//!
//! Before the drain, a call costs one atomic addition and one subtraction, and clones a reference count. It takes no
//! lock and reads no clock. Calls that are pending set a waker, without a lock, in a place that is used again: more
//! memory is allocated only when more calls are pending than ever before.
//!
//! # Examples
//!
//! ```
//! use std::{convert::Infallible, time::Duration};
//! use http::{Request, Response, StatusCode};
//! use tower::{Layer, ServiceExt, service_fn};
//! use ziggurat::drain::DrainLayer;
//!
//! # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() {
//! let drain = DrainLayer::new();
//! let handle = drain.handle();
//! let service = drain.layer(service_fn(|_: Request<()>| async {
//!     tokio::time::sleep(Duration::from_secs(5)).await;
//!     Ok::<_, Infallible>(Response::new(String::new()))
//! }));
//!
//! let running = tokio::spawn(service.clone().oneshot(Request::new(())));
//! tokio::task::yield_now().await;
//! assert_eq!(handle.in_flight(), 1);
//!
//! let drained = handle.drain();
//! let rejected = service.oneshot(Request::new(())).await.unwrap();
//! assert_eq!(rejected.status(), StatusCode::SERVICE_UNAVAILABLE);
//! assert_eq!(rejected.headers()["connection"], "close");
//!
//! drained.await;
//! assert_eq!(running.await.unwrap().unwrap().status(), StatusCode::OK);
//! # }
//! ```

use std::{
    error::Error as StdError,
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use http::{Request, Response, Version};
use http_body::Body;
use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

mod count;
mod handle;
mod in_flight;
#[cfg(all(test, ziggurat_loom))]
mod model;
mod wakers;

use self::in_flight::Readiness;
pub use self::{
    handle::{DrainHandle, Drained, Draining},
    in_flight::{InFlight, draining},
};
use crate::{
    accessors::inner_accessors,
    body::GuardBody,
    debug::impl_debug,
    keep::keep_while,
    outcome::{Reject, close_connection},
    telemetry::{LayerInfo, layer_info, layer_setters},
};

/// Shuts a server down gracefully: see the [module](self).
///
/// Two layer values share nothing; clones of one value share everything.
#[doc(alias = "shutdown")]
#[doc(alias = "graceful")]
#[derive(Debug, Clone)]
#[must_use]
pub struct DrainLayer {
    handle: DrainHandle,
    info: LayerInfo,
}

impl DrainLayer {
    /// Creates a layer with a grace period of 20 seconds.
    pub fn new() -> Self {
        Self { handle: DrainHandle::new(), info: layer_info!("drain") }
    }

    /// Sets how long calls in flight may go on after the drain has begun.
    ///
    /// The default is 20 seconds, because Kubernetes kills a program 30 seconds after it asked it to stop. `docker
    /// stop` leaves 10 seconds. Any duration is valid: zero ends all calls at once, and with [`Duration::MAX`] the
    /// drain waits for all of them. Clones of this layer share this setting.
    pub fn grace(self, grace: Duration) -> Self {
        self.handle.set_grace(grace);
        self
    }

    layer_setters!();

    /// Returns the handle that starts the drain.
    #[must_use]
    pub fn handle(&self) -> DrainHandle {
        self.handle.clone()
    }
}

impl Default for DrainLayer {
    fn default() -> Self {
        Self::new()
    }
}

impl<S> Layer<S> for DrainLayer {
    type Service = Drain<S>;

    fn layer(&self, inner: S) -> Self::Service {
        let handle = self.handle();
        keep_while(move || handle.is_draining() || handle.in_flight() > 0);
        Drain { inner, readiness: Readiness::new(Arc::new(self.clone())) }
    }
}

/// The service of [`DrainLayer`].
#[derive(Clone)]
pub /* not a Service? see ziggurat::docs::it_does_not_compile */ struct Drain<S> {
    inner: S,
    // The layer is shared by all clones and calls: a reference count is cheaper than a copy.
    readiness: Readiness,
}

impl<S> Drain<S> {
    inner_accessors!();
}

impl_debug!(Drain<S: fmt::Debug> { inner, layer = |this| &this.readiness.layer });

/// The body of a response that passed a [`DrainLayer`]. Its error is boxed: either the body's own error, or an error
/// that contains the rejection.
pub type DrainBody<B> = GuardBody<B, InFlight>;

impl<S, T, B> Service<Request<T>> for Drain<S>
where
    S: Service<Request<T>, Response = Response<B>> + Clone,
    S::Error: Reject<Response<DrainBody<B>>>,
    B: Body,
    B::Error: Into<Box<dyn StdError + Send + Sync>>,
{
    type Response = Response<DrainBody<B>>;
    type Error = S::Error;
    type Future = ResponseFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        if !self.readiness.layer.handle.is_draining() {
            match self.inner.poll_ready(cx) {
                Poll::Pending if self.readiness.goes_on(cx) => return Poll::Pending,
                Poll::Pending => {}
                ready => {
                    self.readiness.is_over();
                    return ready;
                }
            }
        }
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<T>) -> Self::Future {
        let is_http1 = request.version() <= Version::HTTP_11;
        let layer = &self.readiness.layer;
        let Some(mut in_flight) = InFlight::enter(layer) else {
            // Drops the service that was made ready, together with its reservations for a call that it will not receive.
            self.inner = self.inner.clone();
            let state = State::Refused { layer: Arc::clone(layer) };
            return ResponseFuture { state, in_flight: None, is_http1 };
        };
        let response = in_flight.run(|| self.inner.call(request));
        ResponseFuture { state: State::Running { response }, in_flight: Some(in_flight), is_http1 }
    }
}

pin_project! {
    /// The response future of [`Drain`].
    #[must_use = "futures do nothing unless polled"]
    pub struct ResponseFuture<F> {
        #[pin]
        state: State<F>,
        // After the state, and therefore dropped after it: the call is counted out once it is gone.
        in_flight: Option<InFlight>,
        is_http1: bool,
    }
}

pin_project! {
    #[project = StateProjection]
    enum State<F> {
        Running {
            #[pin]
            response: F,
        },
        // The call came during the drain.
        Refused { layer: Arc<DrainLayer> },
        // The outcome was returned.
        Done,
    }
}

impl<F, B, E> Future for ResponseFuture<F>
where
    F: Future<Output = Result<Response<B>, E>>,
    E: Reject<Response<DrainBody<B>>>,
    B: Body,
    B::Error: Into<Box<dyn StdError + Send + Sync>>,
{
    type Output = Result<Response<DrainBody<B>>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        let rejection = match (this.state.as_mut().project(), this.in_flight.as_mut()) {
            (StateProjection::Running { response }, Some(in_flight)) => match in_flight.run(|| response.poll(cx)) {
                Poll::Ready(outcome) => {
                    this.state.set(State::Done);
                    let (in_flight, is_http1) = (this.in_flight.take(), *this.is_http1);
                    return Poll::Ready(outcome.map(|response| answer(response, in_flight, is_http1)));
                }
                Poll::Pending => ready!(in_flight.poll_end(cx)),
            },
            (StateProjection::Refused { layer }, _) => layer.reject(None),
            _ => panic!("drain::ResponseFuture polled after it was ready"),
        };
        this.state.set(State::Done);
        *this.in_flight = None;
        Poll::Ready(E::reject(if *this.is_http1 { rejection.that_closes() } else { rejection }))
    }
}

/// Passes the response on. Its body is in flight until its end.
fn answer<B>(mut response: Response<B>, in_flight: Option<InFlight>, is_http1: bool) -> Response<DrainBody<B>>
where
    B: Body,
    B::Error: Into<Box<dyn StdError + Send + Sync>>,
{
    if is_http1 && in_flight.as_ref().is_some_and(InFlight::is_draining) {
        close_connection(&mut response);
    }
    response.map(|body| GuardBody::new(body, in_flight))
}

impl_debug!(ResponseFuture<F> in drain { in_flight, .. });
