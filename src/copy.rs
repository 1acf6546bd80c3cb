//! How a request is copied, so that it can be sent once more: again, or to somebody else.

use std::{any::type_name, fmt};

use http::{HeaderMap, Method, Request};

use crate::body::CopyBody;

/// How a request is copied before it is sent, so that it can be sent once more if that fails: by a retry, or to a backup.
///
/// Where there is no copy the request is sent once, never refused. A closure is a strategy too, so for a request type with a
/// method like `fn try_clone(&self) -> Option<Self>` that method is one. One that copies a
/// [`ReplayBody`](crate::body::ReplayBody) itself cannot [`claim`](CopyRequest::claim) it: say which requests with [`CopyIf`].
#[diagnostic::on_unimplemented(
    message = "a request of type `{Req}` cannot be copied by `{Self}`, so that it could be sent once more",
    label = "no way to copy this request",
    note = "`Cloned` needs a request that is `Clone`, `Idempotent` an `http::Request` whose body is `Clone`, such as `http_body_util::Full<Bytes>`",
    note = "for an `http::Request` with any other body put ziggurat's `ReplayLayer::new()` right outside of this layer",
    note = "for any other request say how: `.copy(|req: &{Req}| -> Option<{Req}> {{ .. }})`, where `None` means that it is sent once"
)]
pub trait CopyRequest<Req> {
    /// A copy; `None` if this request may not be repeated.
    fn copy(&self, request: &Req) -> Option<Req>;

    /// A copy of a request that may not be repeated, to be sent only if it turns out that nobody processed it
    /// ([`is_unprocessed`](crate::is_unprocessed)). `None`, unless said otherwise: then it is sent once. Asked where
    /// [`copy`](Self::copy) gave none.
    fn copy_unprocessed(&self, request: &Req) -> Option<Req> {
        let _ = request;
        None
    }

    /// The attempt before has failed, and everything else speaks for another one: whether `copy` can still be sent. Asked
    /// last, before the outcome of that attempt is given up.
    ///
    /// Always, unless the copy shares something with the request that was sent, as a
    /// [`ReplayBody`](crate::body::ReplayBody) does; what they share belongs to the copy if the answer is yes.
    fn claim(&self, copy: &Req) -> bool {
        let _ = copy;
        true
    }
}

/// Clones every request: for services where every call may be repeated. The default of
/// [`RetryLayer::new`](crate::retry::RetryLayer::new).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Cloned;

impl<Req: Clone> CopyRequest<Req> for Cloned {
    fn copy(&self, request: &Req) -> Option<Req> {
        Some(request.clone())
    }
}

/// Copies HTTP requests that may be repeated: those with an idempotent method (RFC 9110, section 9.2.2), and those with an
/// `Idempotency-Key`. The default of [`RetryLayer::http`](crate::retry::RetryLayer::http).
///
/// Any other `POST` is copied too, and the copy is sent only if [nobody processed](crate::is_unprocessed) the request:
/// the connection was refused, for example. Around a client that follows redirects, where one `POST` can be several
/// requests, say `.copy(|req: &Request<_>| Idempotent.copy(req))`, which gives no such copy.
///
/// The copy of an [`http::Request`] has the same method, URI, version, headers and extensions, and a copy of the body ([`CopyBody`]).
/// With the feature `reqwest` it copies a `reqwest::Request` too; one whose body is a stream is sent once.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Idempotent;

impl<B: CopyBody> CopyRequest<Request<B>> for Idempotent {
    fn copy(&self, request: &Request<B>) -> Option<Request<B>> {
        if may_be_repeated(request.method(), request.headers()) { copy_http(request, B::copy_body) } else { None }
    }

    fn copy_unprocessed(&self, request: &Request<B>) -> Option<Request<B>> {
        copy_http(request, B::copy_unread)
    }

    fn claim(&self, copy: &Request<B>) -> bool {
        copy.body().claim_body()
    }
}

/// Copies the HTTP requests for which this function says that they may be repeated, as [`Idempotent`] does: for a
/// service where that is known by the path, as in gRPC, where everything is a `POST`. All others are sent again only if
/// nobody processed them.
///
/// ```
/// # use http::Request;
/// # use ziggurat::{CopyIf, retry::RetryLayer};
/// let layer = RetryLayer::http().copy(CopyIf(|req: &Request<String>| req.uri().path() == "/search"));
/// ```
#[derive(Clone, Copy, Default)]
pub struct CopyIf<F>(pub F);

impl<B, F> CopyRequest<Request<B>> for CopyIf<F>
where
    B: CopyBody,
    F: Fn(&Request<B>) -> bool,
{
    fn copy(&self, request: &Request<B>) -> Option<Request<B>> {
        if (self.0)(request) { copy_http(request, B::copy_body) } else { None }
    }

    fn copy_unprocessed(&self, request: &Request<B>) -> Option<Request<B>> {
        copy_http(request, B::copy_unread)
    }

    fn claim(&self, copy: &Request<B>) -> bool {
        copy.body().claim_body()
    }
}

impl<F> fmt::Debug for CopyIf<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("CopyIf").field(&type_name::<F>()).finish()
    }
}

fn copy_http<B>(request: &Request<B>, copy_body: impl FnOnce(&B) -> Option<B>) -> Option<Request<B>> {
    let mut copy = Request::new(copy_body(request.body())?);
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.version_mut() = request.version();
    *copy.headers_mut() = request.headers().clone();
    *copy.extensions_mut() = request.extensions().clone();
    Some(copy)
}

#[cfg(feature = "reqwest")]
#[cfg_attr(docsrs, doc(cfg(feature = "reqwest")))]
impl CopyRequest<reqwest::Request> for Idempotent {
    fn copy(&self, request: &reqwest::Request) -> Option<reqwest::Request> {
        if may_be_repeated(request.method(), request.headers()) { request.try_clone() } else { None }
    }

    fn copy_unprocessed(&self, request: &reqwest::Request) -> Option<reqwest::Request> {
        request.try_clone()
    }
}

fn may_be_repeated(method: &Method, headers: &HeaderMap) -> bool {
    method.is_idempotent() || headers.contains_key("idempotency-key")
}

#[diagnostic::do_not_recommend]
impl<Req, F> CopyRequest<Req> for F
where
    F: Fn(&Req) -> Option<Req>,
{
    fn copy(&self, request: &Req) -> Option<Req> {
        self(request)
    }
}

#[cfg(test)]
mod tests {
    use http::Version;

    use super::*;

    fn copied(strategy: impl CopyRequest<Request<()>>, method: &str, key: bool) -> bool {
        let mut request = Request::builder().method(method);
        if key {
            request = request.header("Idempotency-Key", "1");
        }
        strategy.copy(&request.body(()).unwrap()).is_some()
    }

    /// Shows: R5, R9
    #[test]
    fn only_what_may_be_repeated_is_copied() {
        for method in ["GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"] {
            assert!(copied(Idempotent, method, false), "{method}");
        }
        for method in ["POST", "PATCH", "CONNECT", "OTHER"] {
            assert!(!copied(Idempotent, method, false), "{method}");
            let request = Request::builder().method(method).body(()).unwrap();
            assert!(Idempotent.copy_unprocessed(&request).is_some(), "{method}");
            assert!(copied(Idempotent, method, true), "{method}");
            assert!(copied(CopyIf(|req: &Request<()>| req.method() == method), method, false), "{method}");
            assert!(!copied(CopyIf(|req: &Request<()>| req.method() != method), method, true), "{method}");
        }
    }

    /// Shows: R9
    #[test]
    fn a_copy_is_the_same_request() {
        let request = Request::put("/a?b").version(Version::HTTP_2).header("x", "y").header("x", "z");
        let request = request.extension(7_u8).body("body").unwrap();
        let copy = Idempotent.copy(&request).unwrap();
        assert_eq!((copy.method(), copy.version()), (request.method(), Version::HTTP_2));
        assert_eq!(copy.uri(), request.uri());
        assert_eq!(copy.headers(), request.headers());
        assert_eq!(copy.extensions().get::<u8>(), Some(&7));
        assert_eq!(copy.body(), &"body");
    }
}
