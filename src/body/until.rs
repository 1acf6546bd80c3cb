//! When a call ends for a layer: with its response, or with the end of the response's body.

use http::Response;
use http_body::Body;

use super::{Guard, GuardBody};

/// When a call ends for a layer: [`ResponseEnd`], or [`BodyEnd`] after `.until_body_end()`.
///
/// It is a type instead of a flag, because it changes the type of the response.
#[diagnostic::on_unimplemented(
    message = "`.until_body_end()` needs a service whose response is an `http::Response` with a body, not `{R}`",
    note = "a `reqwest::Response` needs ziggurat's feature `reqwest`",
    note = "for any other response leave it out: the call then ends for this layer when the response arrives"
)]
pub trait Until<R, G>: Sealed {
    /// The layer's response.
    type Response;

    /// Whether the call lasts until the end of the body.
    #[doc(hidden)]
    const WITH_BODY: bool;

    /// Adds the value of `guard` to the response's body. If the call has already ended, drops `guard` without calling
    /// it.
    #[doc(hidden)]
    fn answer(response: R, guard: impl FnOnce() -> Option<G>) -> Self::Response;
}

/// Sealed, so that methods can be added.
pub trait Sealed: Copy {}

impl Sealed for ResponseEnd {}
impl Sealed for BodyEnd {}

/// The call ends when the response arrives. The default.
#[derive(Debug, Clone, Copy)]
pub struct ResponseEnd;

impl<R, G> Until<R, G> for ResponseEnd {
    type Response = R;

    const WITH_BODY: bool = false;

    #[inline]
    fn answer(response: R, guard: impl FnOnce() -> Option<G>) -> R {
        drop(guard);
        response
    }
}

/// The call ends when the response's body has ended, failed or been dropped. For an [`http::Response`], and with the
/// feature `reqwest` for a `reqwest::Response`.
#[derive(Debug, Clone, Copy)]
pub struct BodyEnd;

impl<B: Body, G: Guard<B>> Until<Response<B>, G> for BodyEnd {
    type Response = Response<GuardBody<B, G>>;

    const WITH_BODY: bool = true;

    #[inline]
    fn answer(response: Response<B>, guard: impl FnOnce() -> Option<G>) -> Self::Response {
        // A body without frames may never be polled.
        response
            .map(|body| if body.is_end_stream() { GuardBody::new(body, None) } else { GuardBody::new(body, guard()) })
    }
}

/// The response stays a `reqwest::Response`, and keeps its URL. A guarded body is boxed once more. Its error wraps the
/// guard's.
#[cfg(feature = "reqwest")]
#[cfg_attr(docsrs, doc(cfg(feature = "reqwest")))]
impl<G> Until<reqwest::Response, G> for BodyEnd
where
    G: Guard<reqwest::Body> + Send + Sync + 'static,
    G::Error: From<reqwest::Error> + Into<Box<dyn std::error::Error + Send + Sync>>,
{
    type Response = reqwest::Response;

    const WITH_BODY: bool = true;

    #[inline]
    fn answer(response: reqwest::Response, guard: impl FnOnce() -> Option<G>) -> reqwest::Response {
        let url = reqwest::ResponseBuilderExt::url(http::response::Builder::new(), response.url().clone());
        let mut response = Response::<reqwest::Body>::from(response);
        if let Ok(url) = url.body(()) {
            response.extensions_mut().extend(url.into_parts().0.extensions);
        }
        let guard = if response.body().is_end_stream() { None } else { guard() };
        let response = response.map(|body| match guard {
            Some(guard) => reqwest::Body::wrap(GuardBody::new(body, guard)),
            None => body,
        });
        response.into()
    }
}
