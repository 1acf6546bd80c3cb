//! The key of a request.

use std::{
    any::type_name,
    borrow::{Borrow, Cow},
    fmt,
    hash::Hash,
    marker::PhantomData,
};

use http::{Request, header::HOST};

/// The treatment of a request that has no instance of its own: it has no key, or its key is beyond the maximum.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unkeyed {
    /// All of them share one instance, which is made by `make(None)`.
    Share,
    /// Each gets a new instance, made by `make(None)`, so that nothing limits them together. It costs what `make` and
    /// the layer cost.
    Pass,
    /// It is rejected.
    Reject,
}

/// Finds the key of a request. Implemented by the arguments of the constructors of [`PerKeyLayer`](super::PerKeyLayer).
#[diagnostic::on_unimplemented(
    message = "`{Self}` finds no key in a request of type `{Req}`",
    note = "`PerKeyLayer::new` needs a closure that names its argument's type: `|request: &{Req}| Ok(..)`, which returns `Result<{K}, Unkeyed>`",
    note = "`PerKeyLayer::host` needs an `http::Request`, or with ziggurat's feature `reqwest` a `reqwest::Request`"
)]
pub trait FindKey<Req, K: Borrow<Self::Borrowed>> {
    /// The form that a key has in a request, such as `str` for a `String`.
    type Borrowed: ToOwned<Owned = K> + Hash + Eq + ?Sized;

    /// Returns the key, or the treatment of a request without one.
    ///
    /// # Errors
    ///
    /// If the request has no key.
    fn find<'a>(&self, request: &'a Req) -> Result<Cow<'a, Self::Borrowed>, Unkeyed>;
}

/// A function that returns a key: see [`PerKeyLayer::new`](super::PerKeyLayer::new).
#[derive(Clone)]
pub struct OwnedKey<F>(pub(super) F);

/// A function that returns a reference to a key: see [`PerKeyLayer::borrowed`](super::PerKeyLayer::borrowed).
pub struct BorrowedKey<F, Q: ?Sized>(pub(super) F, pub(super) PhantomData<fn(&Q)>);

/// The host of an HTTP request: see [`PerKeyLayer::host`](super::PerKeyLayer::host).
#[derive(Debug, Clone)]
pub struct HostKey(pub(super) Unkeyed);

impl<F, Req, K> FindKey<Req, K> for OwnedKey<F>
where
    F: Fn(&Req) -> Result<K, Unkeyed>,
    K: Hash + Eq + Clone,
{
    type Borrowed = K;

    #[inline]
    fn find<'a>(&self, request: &'a Req) -> Result<Cow<'a, K>, Unkeyed> {
        (self.0)(request).map(Cow::Owned)
    }
}

impl<F, Req, K, Q> FindKey<Req, K> for BorrowedKey<F, Q>
where
    F: Fn(&Req) -> Result<&Q, Unkeyed>,
    K: Borrow<Q>,
    Q: ToOwned<Owned = K> + Hash + Eq + ?Sized,
{
    type Borrowed = Q;

    #[inline]
    fn find<'a>(&self, request: &'a Req) -> Result<Cow<'a, Q>, Unkeyed> {
        (self.0)(request).map(Cow::Borrowed)
    }
}

impl<B> FindKey<Request<B>, String> for HostKey {
    type Borrowed = str;

    fn find<'a>(&self, request: &'a Request<B>) -> Result<Cow<'a, str>, Unkeyed> {
        host(request).ok_or(self.0)
    }
}

#[cfg(feature = "reqwest")]
#[cfg_attr(docsrs, doc(cfg(feature = "reqwest")))]
impl FindKey<reqwest::Request, String> for HostKey {
    type Borrowed = str;

    fn find<'a>(&self, request: &'a reqwest::Request) -> Result<Cow<'a, str>, Unkeyed> {
        // A `Url` is in lower case and has no default port.
        let (url, without) = (request.url(), self.0);
        let host = url.host_str().ok_or(without)?;
        Ok(url.port().map_or(host.into(), |port| format!("{host}:{port}").into()))
    }
}

/// Returns the host and port of a request in lower case, without the default port of its scheme.
fn host<B>(request: &Request<B>) -> Option<Cow<'_, str>> {
    let uri = request.uri();
    // The URI takes precedence (RFC 9112, section 3.2.2).
    let authority = match uri.authority() {
        Some(authority) => authority.as_str(),
        None => request.headers().get(HOST)?.to_str().ok()?,
    };
    let host = authority.rsplit_once('@').map_or(authority, |(_user, host)| host);
    let is_one_of = |names: [&str; 2]| {
        uri.scheme_str().is_some_and(|scheme| names.into_iter().any(|name| scheme.eq_ignore_ascii_case(name)))
    };
    let default_port = if is_one_of(["http", "ws"]) {
        ":80"
    } else if is_one_of(["https", "wss"]) {
        ":443"
    } else {
        ":"
    };
    let host = host.strip_suffix(default_port).or_else(|| host.strip_suffix(':')).unwrap_or(host);
    let is_upper = host.bytes().any(|byte| byte.is_ascii_uppercase());
    let host: Cow<'_, str> = if is_upper { host.to_ascii_lowercase().into() } else { host.into() };
    Some(host).filter(|host| !host.is_empty())
}

// Manual: `Q` need not be `Clone`.
impl<F: Clone, Q: ?Sized> Clone for BorrowedKey<F, Q> {
    fn clone(&self) -> Self {
        Self(self.0.clone(), PhantomData)
    }
}

impl<F> fmt::Debug for OwnedKey<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("OwnedKey").field(&type_name::<F>()).finish()
    }
}

impl<F, Q: ?Sized> fmt::Debug for BorrowedKey<F, Q> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("BorrowedKey").field(&type_name::<F>()).finish()
    }
}

#[cfg(all(test, not(ziggurat_loom)))]
mod tests {
    use super::*;

    fn host_of(uri: &str, header: Option<&str>) -> Option<String> {
        let mut request = Request::builder().uri(uri);
        if let Some(header) = header {
            request = request.header(HOST, header);
        }
        host(&request.body(()).unwrap()).map(Cow::into_owned)
    }

    #[test]
    fn one_host_has_one_key_however_it_is_written() {
        for (uri, header, key) in [
            ("https://example.com/a", None, Some("example.com")),
            ("https://EXAMPLE.com:443/", None, Some("example.com")),
            ("https://user:word@example.com/", None, Some("example.com")),
            ("https://example.com:80/", None, Some("example.com:80")),
            ("http://example.com:80/", None, Some("example.com")),
            ("http://[::1]:80/", None, Some("[::1]")),
            ("http://[::1]/", None, Some("[::1]")),
            ("ws://example.com:80/", None, Some("example.com")),
            ("WSS://example.com:443/", None, Some("example.com")),
            ("HTTP://example.com:80/", None, Some("example.com")),
            ("http://example.com/", Some("other.com"), Some("example.com")),
            // Which port is the default one is not known here.
            ("/a", Some("Example.com:443"), Some("example.com:443")),
            ("/a", Some("example.com:"), Some("example.com")),
            ("/a", Some(""), None),
            ("/a", Some(":"), None),
            ("/a", None, None),
        ] {
            assert_eq!(host_of(uri, header).as_deref(), key, "{uri} {header:?}");
        }
    }

    #[test]
    fn a_host_in_lower_case_is_borrowed() {
        let request = Request::builder().uri("https://example.com:443/").body(()).unwrap();
        assert!(matches!(host(&request), Some(Cow::Borrowed("example.com"))));
    }
}
