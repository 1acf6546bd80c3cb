//! When a call gives its permit back.

use http::Response;
use http_body::Body;

use super::Permit;
use crate::body::GuardBody;

/// When a call gives its permit back: [`ResponseEnd`] or [`BodyEnd`].
#[diagnostic::on_unimplemented(
    message = "`.until_body_end()` is for services that answer an `http::Response` with a body, and this one answers `{R}`",
    note = "leave it out: the permit is then given back when the answer is there"
)]
pub trait Until<R> {
    /// What the service answers then.
    type Response;

    #[doc(hidden)]
    fn answer(response: R, permit: Option<Permit>) -> Self::Response;
}

/// When the response is there. The default.
#[derive(Debug, Clone, Copy)]
pub struct ResponseEnd;

impl<R> Until<R> for ResponseEnd {
    type Response = R;

    #[inline]
    fn answer(response: R, permit: Option<Permit>) -> R {
        drop(permit);
        response
    }
}

/// When the response's body has ended, failed or was dropped.
#[derive(Debug, Clone, Copy)]
pub struct BodyEnd;

impl<B: Body> Until<Response<B>> for BodyEnd {
    type Response = Response<GuardBody<B, Permit>>;

    fn answer(response: Response<B>, permit: Option<Permit>) -> Self::Response {
        response.map(|body| GuardBody::new(body, permit))
    }
}
