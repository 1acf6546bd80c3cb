//! How a request is copied, so that it can be sent once more.

use http::{HeaderMap, Method, Request};

/// How a request is copied before an attempt, so that it can be sent once more if the attempt fails.
///
/// Where there is no copy the request is sent once, never refused. A closure is a strategy too, so for a request type with a
/// method like `fn try_clone(&self) -> Option<Self>` that method is one.
#[diagnostic::on_unimplemented(
    message = "a retry cannot copy a request of type `{Req}` by `{Self}`",
    label = "no way to copy this request",
    note = "`Cloned` needs a request that is `Clone`, `Idempotent` an `http::Request` whose body is `Clone`, such as `http_body_util::Full<Bytes>`",
    note = "for any other request say how: `.copy(|req: &{Req}| -> Option<{Req}> {{ .. }})`, where `None` means that it is sent once"
)]
pub trait CopyRequest<Req> {
    /// A copy; `None` if this request is to be sent once.
    fn copy(&self, request: &Req) -> Option<Req>;
}

/// Clones every request: for services where every call may be repeated. The default of [`RetryLayer::new`](super::RetryLayer::new).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Cloned;

impl<Req: Clone> CopyRequest<Req> for Cloned {
    fn copy(&self, request: &Req) -> Option<Req> {
        Some(request.clone())
    }
}

/// Clones HTTP requests that may be repeated: those with an idempotent method (RFC 9110, section 9.2.2), and those with an
/// `Idempotency-Key`. The default of [`RetryLayer::http`](super::RetryLayer::http): another `POST` is sent once.
///
/// An [`http::Request`] needs a body that is `Clone`. With the feature `reqwest` it copies a `reqwest::Request` too; one whose body is
/// a stream is sent once.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Idempotent;

impl<B: Clone> CopyRequest<Request<B>> for Idempotent {
    fn copy(&self, request: &Request<B>) -> Option<Request<B>> {
        may_be_repeated(request.method(), request.headers()).then(|| request.clone())
    }
}

#[cfg(feature = "reqwest")]
#[cfg_attr(docsrs, doc(cfg(feature = "reqwest")))]
impl CopyRequest<reqwest::Request> for Idempotent {
    fn copy(&self, request: &reqwest::Request) -> Option<reqwest::Request> {
        if may_be_repeated(request.method(), request.headers()) { request.try_clone() } else { None }
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
    use super::*;

    fn copied(method: &str, key: bool) -> bool {
        let mut request = Request::builder().method(method);
        if key {
            request = request.header("Idempotency-Key", "1");
        }
        Idempotent.copy(&request.body(()).unwrap()).is_some()
    }

    /// Shows: R5, R9
    #[test]
    fn only_what_may_be_repeated_is_copied() {
        for method in ["GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"] {
            assert!(copied(method, false), "{method}");
        }
        for method in ["POST", "PATCH", "CONNECT", "OTHER"] {
            assert!(!copied(method, false), "{method}");
            assert!(copied(method, true), "{method}");
        }
    }

    /// Shows: R9
    #[test]
    fn a_copy_is_the_same_request() {
        let request = Request::put("/a?b").header("x", "y").extension(7_u8).body("body").unwrap();
        let copy = Idempotent.copy(&request).unwrap();
        assert_eq!(copy.uri(), request.uri());
        assert_eq!(copy.headers(), request.headers());
        assert_eq!(copy.extensions().get::<u8>(), Some(&7));
        assert_eq!(copy.body(), &"body");
    }
}
