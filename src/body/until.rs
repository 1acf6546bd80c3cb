//! When a call is over for a layer: with its response, or with the end of the response's body.

use http::Response;
use http_body::Body;

use super::{Guard, GuardBody};

/// When a call is over for a layer: [`ResponseEnd`], or after `.until_body_end()` [`BodyEnd`].
///
/// It changes the type of the response, so it is a type and not a flag.
#[diagnostic::on_unimplemented(
    message = "`.until_body_end()` is for services that answer an `http::Response` with a body, and this one answers `{R}`",
    note = "leave it out: for this layer the call is then over when the answer is there"
)]
pub trait Until<R, G>: Sealed {
    /// What the service answers then.
    type Response;

    /// Whether the call lasts to the end of the body.
    #[doc(hidden)]
    const WITH_BODY: bool;

    /// The response, its body with what `guard` makes of it. If the call is over already, `guard` is dropped and not called.
    #[doc(hidden)]
    fn answer(response: R, guard: impl FnOnce() -> Option<G>) -> Self::Response;
}

/// Only the two below: a method may be added.
pub trait Sealed {}

impl Sealed for ResponseEnd {}
impl Sealed for BodyEnd {}

/// When the response is there. The default.
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

/// When the response's body has ended, failed or was dropped. For an [`http::Response`], and with the feature `reqwest` for a
/// `reqwest::Response`.
#[derive(Debug, Clone, Copy)]
pub struct BodyEnd;

impl<B: Body, G: Guard<B>> Until<Response<B>, G> for BodyEnd {
    type Response = Response<GuardBody<B, G>>;

    const WITH_BODY: bool = true;

    fn answer(response: Response<B>, guard: impl FnOnce() -> Option<G>) -> Self::Response {
        // A body without frames may never be polled.
        response
            .map(|body| if body.is_end_stream() { GuardBody::new(body, None) } else { GuardBody::new(body, guard()) })
    }
}

/// reqwest's own response stays one, and keeps its URL; a body that is guarded is boxed once more. Its error holds that of the guard.
#[cfg(feature = "reqwest")]
#[cfg_attr(docsrs, doc(cfg(feature = "reqwest")))]
impl<G> Until<reqwest::Response, G> for BodyEnd
where
    G: Guard<reqwest::Body> + Send + Sync + 'static,
    G::Error: From<reqwest::Error> + Into<Box<dyn std::error::Error + Send + Sync>>,
{
    type Response = reqwest::Response;

    const WITH_BODY: bool = true;

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
