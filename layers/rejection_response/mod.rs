//! Turns rejections into responses of your choice.
//!
//! Without this layer, a rejection of an HTTP server is an empty response with the status of its reason, such as 503 or
//! 504 ([`Rejection::status`](crate::Rejection::status)), and a rejection of a client is an error. With this layer,
//! both become the response that a function makes from the rejection and the request's head.
//! [`problem_json`](RejectionResponseLayer::problem_json) and [`grpc`](RejectionResponseLayer::grpc) are predefined.
//!
//! A response with an error status (4xx or 5xx) gets `Retry-After` if the rejection carries a wait
//! ([`Rejection::retry_after`](crate::Rejection::retry_after)), and every 429 and 503 gets one, as without this layer.
//! A `Retry-After` of the function's own stays.
//!
//! Everything else passes unchanged: responses of the service, whatever their status, and errors of the service,
//! including those of `poll_ready`. A rejection that ends a body in the middle can no longer become another response.
//! In gRPC, it can become [trailers](RejectionResponseLayer::until_body_end).
//!
//! # Order
//!
//! Place the layer outside every layer that rejects; it does not see rejections of layers outside it. Place it inside
//! the layers that should see every response: the context, and a layer that echoes request ids.
//!
//! The rejection stays in the response's extensions. If the service is `Infallible`, layers outside still treat the
//! response as a rejection. If the service's error can carry rejections, layers outside treat it as an ordinary
//! response, and a circuit breaker outside judges it by its status. If there are two of these layers, the response of
//! the inner one stays, because a layer next to a route knows more about it than a layer around the router.
//!
//! # Cancellation safety
//!
//! Dropping the response future drops the call.
//!
//! # Cost
//!
//! The layer does not require `S: Clone`, reads no clock, and counts nothing. On the happy path, the predefined
//! responses cost one lookup in the response's extensions. A function also costs a copy of the request's head, which
//! allocates if it has headers or extensions. Implement [`Respond`] to copy less.
//!
//! # Examples
//!
//! ```
//! use std::{convert::Infallible, time::Duration};
//! use http::{Request, Response, request::Parts};
//! use tower::{ServiceBuilder, ServiceExt, service_fn};
//! use ziggurat::{Rejection, rejection_response::RejectionResponseLayer, timeout::TimeoutLayer};
//!
//! # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() {
//! let hangs = service_fn(|_: Request<()>| std::future::pending::<Result<Response<String>, Infallible>>());
//!
//! let service = ServiceBuilder::new()
//!     .layer(RejectionResponseLayer::problem_json())
//!     .layer(TimeoutLayer::new(Duration::from_secs(2)))
//!     .service(hangs);
//! let answer = service.oneshot(Request::new(())).await.unwrap();
//! assert_eq!(answer.headers()["content-type"], "application/problem+json");
//! assert_eq!(
//!     answer.body(),
//!     r#"{"type":"about:blank","title":"Gateway Timeout","status":504,"detail":"timeout: no response in time"}"#,
//! );
//!
//! let service = ServiceBuilder::new()
//!     .layer(RejectionResponseLayer::new(|rejection: &Rejection, request: &Parts| {
//!         let mut answer = Response::new(format!("{} is busy", request.uri.path()));
//!         *answer.status_mut() = rejection.status();
//!         answer
//!     }))
//!     .layer(TimeoutLayer::new(Duration::from_secs(2)))
//!     .service(hangs);
//! let answer = service.oneshot(Request::get("/search").body(()).unwrap()).await.unwrap();
//! assert_eq!((answer.status().as_u16(), answer.body().as_str()), (504, "/search is busy"));
//! # }
//! ```

use std::{
    fmt,
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
};

use http::{Request, Response};
use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

use crate::{
    accessors::inner_accessors,
    body::{BodyEnd, ResponseEnd, Until},
    debug::impl_debug,
    outcome::{Reject, Rejection},
};

mod grpc;
mod problem_json;
mod respond;

pub use self::{
    grpc::{Grpc, GrpcTrailers},
    problem_json::ProblemJson,
    respond::Respond,
};

/// Turns rejections into responses of your choice: see the [module](self).
#[derive(Clone)]
#[must_use]
pub struct RejectionResponseLayer<A, U = ResponseEnd> {
    respond: A,
    until: U,
}

impl<A> RejectionResponseLayer<A> {
    /// Creates a layer that responds with the result of `respond`:
    /// `|rejection: &Rejection, request: &http::request::Parts| -> Response<_>`, or any other [`Respond`].
    ///
    /// `respond` is called when a rejection occurs, in the poll of the response future, with the ambient state of the
    /// call, such as [`Scope::current`](crate::Scope::current).
    pub fn new(respond: A) -> Self {
        Self { respond, until: ResponseEnd }
    }
}

impl RejectionResponseLayer<ProblemJson> {
    /// Creates a layer that responds with a problem as defined by RFC 9457: see [`ProblemJson`].
    pub fn problem_json() -> Self {
        Self::new(ProblemJson)
    }
}

impl RejectionResponseLayer<Grpc> {
    /// Creates a layer that responds with a gRPC status: see [`Grpc`].
    pub fn grpc() -> Self {
        Self::new(Grpc)
    }

    /// Turns a rejection that ends a streaming body into a gRPC status in the trailers.
    ///
    /// Such a rejection comes, for example, from a timeout that lasts [until the body
    /// ends](crate::timeout::TimeoutLayer::until_body_end). Without this setting, the stream is reset, and the client
    /// learns only that something went wrong. The body becomes a [`GuardBody`](crate::body::GuardBody). The only cost
    /// is a check of its errors.
    pub fn until_body_end(self) -> RejectionResponseLayer<Grpc, BodyEnd> {
        RejectionResponseLayer { respond: self.respond, until: BodyEnd }
    }
}

impl<S, A: Clone, U: Copy> Layer<S> for RejectionResponseLayer<A, U> {
    type Service = RejectionResponse<S, A, U>;

    fn layer(&self, inner: S) -> Self::Service {
        RejectionResponse { inner, respond: self.respond.clone(), until: self.until }
    }
}

impl_debug!(RejectionResponseLayer<A, U> { respond: A, until: U });

/// The service of [`RejectionResponseLayer`].
#[derive(Clone)]
pub /* not a Service? see ziggurat::docs::it_does_not_compile */ struct RejectionResponse<S, A, U = ResponseEnd> {
    inner: S,
    respond: A,
    until: U,
}

impl<S, A, U> RejectionResponse<S, A, U> {
    inner_accessors!();
}

impl_debug!(RejectionResponse<S: fmt::Debug, A, U> { inner, respond: A });

impl<S, A, U, T, B> Service<Request<T>> for RejectionResponse<S, A, U>
where
    S: Service<Request<T>, Response = Response<B>>,
    S::Error: Reject<Response<B>>,
    A: Respond<B> + Clone,
    U: Until<Response<B>, GrpcTrailers>,
{
    type Response = U::Response;
    type Error = S::Error;
    type Future = ResponseFuture<S::Future, A, A::Memory, U>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<T>) -> Self::Future {
        let memory = self.respond.remember(&request);
        let (response, respond) = (Some(self.inner.call(request)), self.respond.clone());
        ResponseFuture { response, respond, memory: Some(memory), until: self.until }
    }
}

pin_project! {
    /// The response future of [`RejectionResponse`].
    #[must_use = "futures do nothing unless polled"]
    pub struct ResponseFuture<F, A, M, U = ResponseEnd> {
        // None: the outcome was returned.
        #[pin]
        response: Option<F>,
        respond: A,
        memory: Option<M>,
        until: U,
    }
}

impl<F, A, U, B, E> Future for ResponseFuture<F, A, A::Memory, U>
where
    F: Future<Output = Result<Response<B>, E>>,
    E: Reject<Response<B>>,
    A: Respond<B>,
    U: Until<Response<B>, GrpcTrailers>,
{
    type Output = Result<U::Response, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        let (Some(response), Some(_)) = (this.response.as_mut().as_pin_mut(), &this.memory) else {
            panic!("rejection_response::ResponseFuture polled after it was ready")
        };
        let outcome = ready!(response.poll(cx));
        this.response.set(None);
        let memory = this.memory.take();
        let answered = match (E::rejection(&outcome), memory) {
            (Some(rejection), Some(memory)) => Ok(answer(rejection.clone(), outcome, this.respond, memory)),
            _ => outcome,
        };
        Poll::Ready(answered.map(|response| U::answer(response, || Some(GrpcTrailers::default()))))
    }
}

/// Marks a response that was made by this layer.
#[derive(Clone)]
struct Answered;

#[cold]
fn answer<A: Respond<B>, B, E>(
    rejection: Rejection,
    outcome: Result<Response<B>, E>,
    respond: &A,
    memory: A::Memory,
) -> Response<B> {
    let mut extensions = match outcome {
        Ok(answered) if answered.extensions().get::<Answered>().is_some() => return answered,
        Ok(response) => response.into_parts().0.extensions,
        Err(_) => http::Extensions::new(),
    };
    let mut response = respond.respond(memory, &rejection);
    rejection.add_headers(&mut response);
    extensions.extend(std::mem::take(response.extensions_mut()));
    extensions.insert(rejection);
    extensions.insert(Answered);
    *response.extensions_mut() = extensions;
    response
}

impl_debug!(ResponseFuture<F, A, M, U> in rejection_response { respond: A, answered = |this| this.response.is_none() });
