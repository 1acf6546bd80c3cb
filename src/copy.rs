//! Copies requests, so that a retry can repeat them or a fallback can send them to a backup.

use http::{HeaderMap, Method, Request};

use crate::{body::CopyBody, debug::impl_debug};

/// Copies a request before it is sent, so that it can be sent again: by a retry, or to a backup.
///
/// A request without a copy is sent once. It is never rejected for that.
///
/// A closure is a strategy too. For a request type with a method such as `fn try_clone(&self) -> Option<Self>`, pass
/// that method. A closure cannot [`claim`](CopyRequest::claim) a [`ReplayBody`](crate::body::ReplayBody) that it
/// copies: choose the requests with [`CopyIf`] instead.
#[diagnostic::on_unimplemented(
    message = "a request of type `{Req}` cannot be copied by `{Self}` to be sent again",
    label = "cannot copy this request",
    note = "`Cloned` needs a request that is `Clone`, `Idempotent` an `http::Request` whose body is `Clone`, such as `http_body_util::Full<Bytes>`",
    note = "for an `http::Request` with any other body put ziggurat's `ReplayLayer::new()` directly outside this layer, or outside the `ClientStack`",
    note = "for any other request write `.copy(|req: &{Req}| -> Option<{Req}> {{ .. }})`, where `None` means that it is sent once",
    note = "`Idempotent` copies a `reqwest::Request` with ziggurat's feature `reqwest`"
)]
pub trait CopyRequest<Req> {
    /// Returns a copy, or `None` if this request must not be repeated.
    fn copy(&self, request: &Req) -> Option<Req>;

    /// Returns a copy of a request that must not be repeated. It is sent only if the request was not processed
    /// ([`is_unprocessed`](crate::is_unprocessed)).
    ///
    /// Called if [`copy`](Self::copy) returns `None`. The default is `None`: the request is sent once.
    fn copy_unprocessed(&self, request: &Req) -> Option<Req> {
        let _ = request;
        None
    }

    /// Returns whether `copy` can still be sent. Called last, after the previous attempt has failed and everything else
    /// allows another one, before the outcome of that attempt is dropped.
    ///
    /// The default is `true`. It differs if the copy shares state with the request that was sent, as a
    /// [`ReplayBody`](crate::body::ReplayBody) does. If this returns `true`, the shared state belongs to the copy.
    fn claim(&self, copy: &Req) -> bool {
        let _ = copy;
        true
    }

    /// Returns whether `copy` can be sent beside the previous attempt, which is still running, without disturbing it.
    /// Called last, as [`claim`](Self::claim) is, before a hedge starts.
    ///
    /// The default is [`claim`](Self::claim). It differs if that attempt is still sending a body that the two share.
    fn claim_beside(&self, copy: &Req) -> bool {
        self.claim(copy)
    }
}

/// Clones every request, for services whose calls are all safe to repeat. The default of
/// [`RetryLayer::new`](crate::retry::RetryLayer::new).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Cloned;

impl<Req: Clone> CopyRequest<Req> for Cloned {
    #[inline]
    fn copy(&self, request: &Req) -> Option<Req> {
        Some(request.clone())
    }
}

/// Copies HTTP requests that are safe to repeat. The default of [`RetryLayer::http`](crate::retry::RetryLayer::http).
///
/// Those are requests with an idempotent method (RFC 9110, section 9.2.2), and requests with an `Idempotency-Key`.
///
/// Any other request, such as a `POST`, is copied too, but its copy is sent only if the request was [not
/// processed](crate::is_unprocessed), for example because the connection was refused. A client that follows redirects
/// may send several requests for one `POST`. Around such a client, use
/// `.copy(|req: &Request<_>| Idempotent.copy(req))`, which makes no such copy.
///
/// The copy of an [`http::Request`] has the same method, URI, version, headers and extensions, and a copy of the body
/// ([`CopyBody`]). With the feature `reqwest`, a `reqwest::Request` can be copied too. A `reqwest::Request` whose body
/// is a stream is sent once.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Idempotent;

impl<B: CopyBody> CopyRequest<Request<B>> for Idempotent {
    #[inline]
    fn copy(&self, request: &Request<B>) -> Option<Request<B>> {
        if may_be_repeated(request.method(), request.headers()) { copy_http(request, B::copy_body) } else { None }
    }

    fn copy_unprocessed(&self, request: &Request<B>) -> Option<Request<B>> {
        copy_http(request, B::copy_unread)
    }

    fn claim(&self, copy: &Request<B>) -> bool {
        copy.body().claim_body()
    }

    fn claim_beside(&self, copy: &Request<B>) -> bool {
        copy.body().claim_body_beside()
    }
}

/// Copies the HTTP requests that a function declares safe to repeat.
///
/// Use it if the path decides, as in gRPC, where every request is a `POST`. All other requests are repeated only if
/// they were not processed, as with [`Idempotent`].
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
    #[inline]
    fn copy(&self, request: &Request<B>) -> Option<Request<B>> {
        if (self.0)(request) { copy_http(request, B::copy_body) } else { None }
    }

    fn copy_unprocessed(&self, request: &Request<B>) -> Option<Request<B>> {
        copy_http(request, B::copy_unread)
    }

    fn claim(&self, copy: &Request<B>) -> bool {
        copy.body().claim_body()
    }

    fn claim_beside(&self, copy: &Request<B>) -> bool {
        copy.body().claim_body_beside()
    }
}

impl_debug!(CopyIf<F>(F));

#[inline]
fn copy_http<B>(request: &Request<B>, copy_body: impl FnOnce(&B) -> Option<B>) -> Option<Request<B>> {
    Some(copy_head(request, copy_body(request.body())?))
}

#[inline]
pub(crate) fn copy_head<T, B>(request: &Request<T>, body: B) -> Request<B> {
    let mut copy = Request::new(body);
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.version_mut() = request.version();
    *copy.headers_mut() = request.headers().clone();
    *copy.extensions_mut() = request.extensions().clone();
    copy
}

#[cfg(feature = "reqwest")]
#[cfg_attr(docsrs, doc(cfg(feature = "reqwest")))]
impl CopyRequest<reqwest::Request> for Idempotent {
    #[inline]
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
    #[inline]
    fn copy(&self, request: &Req) -> Option<Req> {
        self(request)
    }
}

// Never applies: see `Classify`.
#[doc(hidden)]
#[diagnostic::do_not_recommend]
impl<Req, F> CopyRequest<Req> for F
where
    [Req]: Sized,
{
    #[inline]
    fn copy(&self, _: &Req) -> Option<Req> {
        None
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
