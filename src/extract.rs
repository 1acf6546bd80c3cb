//! Extractors for axum: the request's [`Scope`] and its [`RequestIds`] as arguments of a handler.
//!
//! ```
//! use axum::{Router, routing::get};
//! use ziggurat::{Scope, context::ContextLayer, request_id::RequestIdLayer, headers::RequestIds};
//!
//! async fn handler(scope: Scope, ids: RequestIds) -> String {
//!     format!("{} {}", scope.name(), ids.request_id())
//! }
//!
//! let app: Router = Router::new()
//!     .route("/", get(handler))
//!     .layer(RequestIdLayer::new())
//!     .layer(ContextLayer::new(Scope::root("app"))); // a router's last layer is the outermost
//! ```

use std::{convert::Infallible, error::Error, fmt};

use axum_core::{
    extract::FromRequestParts,
    response::{IntoResponse, Response},
};
use http::{HeaderValue, StatusCode, header::CONTENT_TYPE, request::Parts};

use crate::{
    headers::RequestIds,
    outcome::{Reject, Rejection},
    scope::Scope,
};

/// The rejection of an extractor whose layer is not around the handler.
///
/// As a response it is a 500 without a body: the mistake is the server's, and its details must not reach clients. Its
/// [`Display`](fmt::Display) form names the missing value and the layer to add. It is also logged to `tracing` (ERROR,
/// target `ziggurat::extract`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MissingLayer {
    what: &'static str,
    layer: &'static str,
}

impl fmt::Display for MissingLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { what, layer } = self;
        write!(
            f,
            "the request has no {what}: put ziggurat's `{layer}` around the router, with `.layer({layer}::new(..))`"
        )
    }
}

impl Error for MissingLayer {}

impl IntoResponse for MissingLayer {
    fn into_response(self) -> Response {
        let error: &(dyn Error + 'static) = &self;
        tracing::error!(target: "ziggurat::extract", error, "missing_layer");
        StatusCode::INTERNAL_SERVER_ERROR.into_response()
    }
}

/// Converts the rejection to a response with its [status](crate::Rejection::status), its
/// [public message](crate::Rejection::public_message) as text, and `Retry-After` for a 429, a 503 and any known wait.
/// The response's extensions contain the rejection, so that outer layers recognize it.
impl IntoResponse for Rejection {
    fn into_response(self) -> Response {
        let message = self.public_message();
        let Ok(rejected): Result<Response, Infallible> = Reject::reject(self);
        let (mut head, _) = rejected.into_parts();
        head.headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        Response::from_parts(head, message.into())
    }
}

/// Extracts the scope that a [`ContextLayer`](crate::context::ContextLayer) opened for the request.
impl<S: Sync> FromRequestParts<S> for Scope {
    type Rejection = MissingLayer;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, MissingLayer> {
        from_extensions(parts, "scope", "ContextLayer")
    }
}

/// Extracts the ids that a [`RequestIdLayer`](crate::request_id::RequestIdLayer) assigned to the request.
impl<S: Sync> FromRequestParts<S> for RequestIds {
    type Rejection = MissingLayer;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, MissingLayer> {
        from_extensions(parts, "ids", "RequestIdLayer")
    }
}

fn from_extensions<T>(parts: &Parts, what: &'static str, layer: &'static str) -> Result<T, MissingLayer>
where
    T: Clone + Send + Sync + 'static,
{
    parts.extensions.get::<T>().cloned().ok_or(MissingLayer { what, layer })
}
