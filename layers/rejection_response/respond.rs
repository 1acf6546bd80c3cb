//! What makes a response of a rejection.

use http::{Request, Response, request::Parts};

use crate::outcome::Rejection;

/// Makes a response of a rejection and of what it remembered of the request, which is gone by then.
///
/// A closure `|rejection: &Rejection, request: &http::request::Parts| -> Response<_>` is one; it remembers the whole head. One of
/// your own can remember less:
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
    message = "`{Self}` does not make a response with a body of type `{B}` of a rejection",
    note = "write `|rejection: &Rejection, request: &http::request::Parts| -> Response<{B}> {{ .. }}`, with the types of both arguments",
    note = "`RejectionResponseLayer::problem_json()` needs a body that is `From<String>`, and `RejectionResponseLayer::grpc()` one that is `Default`"
)]
pub trait Respond<B> {
    /// What it remembers.
    type Memory;

    /// Looks at a request that is about to be sent. On the happy path this is the whole cost.
    fn remember<T>(&self, request: &Request<T>) -> Self::Memory;

    /// The response. The rejection is put into its extensions afterwards.
    fn respond(&self, memory: Self::Memory, rejection: &Rejection) -> Response<B>;
}

#[diagnostic::do_not_recommend]
impl<B, F> Respond<B> for F
where
    F: Fn(&Rejection, &Parts) -> Response<B>,
{
    type Memory = Parts;

    fn remember<T>(&self, request: &Request<T>) -> Parts {
        let mut head = Request::new(());
        *head.method_mut() = request.method().clone();
        *head.uri_mut() = request.uri().clone();
        *head.version_mut() = request.version();
        *head.headers_mut() = request.headers().clone();
        *head.extensions_mut() = request.extensions().clone();
        head.into_parts().0
    }

    fn respond(&self, request: Parts, rejection: &Rejection) -> Response<B> {
        self(rejection, &request)
    }
}
