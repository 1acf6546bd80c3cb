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
pub trait Until<R, G> {
    /// What the service answers then.
    type Response;

    /// The response, its body with what `guard` makes of it. If the call is over already, `guard` is dropped and not called.
    #[doc(hidden)]
    fn answer(response: R, guard: impl FnOnce() -> Option<G>) -> Self::Response;
}

/// When the response is there. The default.
#[derive(Debug, Clone, Copy)]
pub struct ResponseEnd;

impl<R, G> Until<R, G> for ResponseEnd {
    type Response = R;

    #[inline]
    fn answer(response: R, guard: impl FnOnce() -> Option<G>) -> R {
        drop(guard);
        response
    }
}

/// When the response's body has ended, failed or was dropped.
#[derive(Debug, Clone, Copy)]
pub struct BodyEnd;

impl<B: Body, G: Guard<B>> Until<Response<B>, G> for BodyEnd {
    type Response = Response<GuardBody<B, G>>;

    fn answer(response: Response<B>, guard: impl FnOnce() -> Option<G>) -> Self::Response {
        // A body without frames may never be polled.
        response
            .map(|body| if body.is_end_stream() { GuardBody::new(body, None) } else { GuardBody::new(body, guard()) })
    }
}
