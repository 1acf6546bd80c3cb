//! Turns a rejection into a response.

use std::convert::Infallible;

use http::{Request, Response, request::Parts};

use crate::{copy::copy_head, outcome::Rejection};

/// Makes a response from a rejection and from the remembered parts of the request, which is gone by then.
///
/// Implemented for closures `|rejection: &Rejection, request: &http::request::Parts| -> Response<_>`, which remember
/// the whole head. Your own type can remember less:
///
/// ```
/// use http::{Request, Response, Uri};
/// use ziggurat::{Rejection, rejection_response::{RejectionResponseLayer, Respond}};
///
/// #[derive(Clone)]
/// struct Sorry;
///
/// impl<B: From<String>> Respond<B> for Sorry {
///     type Memory = Uri;
///     fn remember<T>(&self, request: &Request<T>) -> Uri {
///         request.uri().clone()
///     }
///     fn respond(&self, uri: Uri, rejection: &Rejection) -> Response<B> {
///         let mut response = Response::new(format!("{uri}: {}", rejection.public_message()).into());
///         *response.status_mut() = rejection.status();
///         response
///     }
/// }
///
/// let layer = RejectionResponseLayer::new(Sorry);
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot turn a rejection into a response with a body of type `{B}`",
    note = "write `|rejection: &Rejection, request: &http::request::Parts| -> Response<{B}> {{ .. }}`, with the types of both arguments",
    note = "`RejectionResponseLayer::problem_json()` requires a body that is `From<String>`, and `RejectionResponseLayer::grpc()` a body that is `Default`"
)]
pub trait Respond<B> {
    /// The remembered parts of the request.
    type Memory;

    /// Inspects a request before it is sent. On the happy path, this is the only cost.
    fn remember<T>(&self, request: &Request<T>) -> Self::Memory;

    /// Returns the response. The layer then stores the rejection in its extensions, and adds `Retry-After` to an error
    /// response without one.
    fn respond(&self, memory: Self::Memory, rejection: &Rejection) -> Response<B>;
}

#[diagnostic::do_not_recommend]
impl<B, F> Respond<B> for F
where
    F: Fn(&Rejection, &Parts) -> Response<B>,
{
    type Memory = Parts;

    fn remember<T>(&self, request: &Request<T>) -> Parts {
        copy_head(request, ()).into_parts().0
    }

    fn respond(&self, request: Parts, rejection: &Rejection) -> Response<B> {
        self(rejection, &request)
    }
}

// Never applies: see `Classify`.
#[doc(hidden)]
#[diagnostic::do_not_recommend]
impl<B, F> Respond<B> for F
where
    [B]: Sized,
{
    type Memory = Infallible;

    fn remember<T>(&self, _: &Request<T>) -> Infallible {
        unreachable!("no slice is `Sized`")
    }

    fn respond(&self, memory: Infallible, _: &Rejection) -> Response<B> {
        match memory {}
    }
}
