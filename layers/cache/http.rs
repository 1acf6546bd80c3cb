//! What a cache of HTTP responses may give to several callers: which requests have a key, and which responses may be
//! stored.

use std::{
    fmt,
    hash::{Hash, Hasher},
    time::SystemTime,
};

use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Response, Uri,
    header::{
        AUTHORIZATION, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_RANGE, COOKIE, DATE, EXPIRES, HOST, IF_MATCH,
        IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE, IF_UNMODIFIED_SINCE, PRAGMA, PROXY_AUTHORIZATION, RANGE,
        SET_COOKIE, TRANSFER_ENCODING, UPGRADE, VARY,
    },
};

use super::Stale;
use crate::outcome::{Class, Classify, HttpStatus};

/// The key of a GET request whose answer is the same for everybody: for [`CacheLayer::new`](super::CacheLayer::new),
/// together with [`HttpStorable`].
///
/// It consists of scheme, authority and path with query. The authority is that of the URI or, where that has none as on
/// an HTTP/1 server, the `Host` header: so two virtual hosts share nothing.
///
/// Requests without a key go past the cache, and are answered by a call of their own:
///
/// - every method but GET, and a GET with a body or with `Upgrade`;
/// - what is somebody's: `Authorization`, `Proxy-Authorization`, `Cookie`;
/// - what asks for a part, or whether something has changed: `Range`, `If-Range`, `If-Match`, `If-None-Match`,
///   `If-Modified-Since`, `If-Unmodified-Since`;
/// - what has wishes of its own: `CacheHandle-Control`, `Pragma`;
/// - several `Host` headers, one that is not that of the URI or not readable, a user name in the authority.
///
/// A key is cheap: it holds references to the parts of the request, and allocates nothing. If answers depend on more
/// than the key, such as a header for which the service sends no `Vary`, make a key of that and this one:
///
/// ```
/// use http::Request;
/// use ziggurat::cache::http_key;
///
/// let key = |req: &Request<()>| Some((http_key(req)?, req.headers().get("x-region").cloned()));
/// # assert!(key(&Request::get("/").body(()).unwrap()).is_some());
/// ```
pub fn http_key<B>(request: &Request<B>) -> Option<HttpKey> {
    let headers = request.headers();
    if request.method() != Method::GET || WITHOUT_A_KEY.iter().any(|name| headers.contains_key(name)) {
        return None;
    }
    if headers.get(CONTENT_LENGTH).is_some_and(|length| length != "0") {
        return None;
    }
    let mut hosts = headers.get_all(HOST).iter();
    let (host, uri) = (hosts.next().cloned(), request.uri().clone());
    let named = host.as_ref().map_or(Some(""), |host| host.to_str().ok())?;
    let is_one =
        uri.authority().is_none_or(|authority| host.is_none() || authority.as_str().eq_ignore_ascii_case(named));
    let key = HttpKey { uri, host };
    (is_one && hosts.next().is_none() && !key.authority().contains('@')).then_some(key)
}

const WITHOUT_A_KEY: [HeaderName; 13] = [
    AUTHORIZATION,
    PROXY_AUTHORIZATION,
    COOKIE,
    RANGE,
    IF_RANGE,
    IF_MATCH,
    IF_NONE_MATCH,
    IF_MODIFIED_SINCE,
    IF_UNMODIFIED_SINCE,
    CACHE_CONTROL,
    PRAGMA,
    UPGRADE,
    TRANSFER_ENCODING,
];

/// What [`http_key`] makes of a request.
///
/// Two are equal if scheme, authority (whatever its case) and path with query are.
#[derive(Clone)]
pub struct HttpKey {
    uri: Uri,
    host: Option<HeaderValue>,
}

impl HttpKey {
    /// The host, and the port if there is one, as the request named it; empty if it named none.
    #[must_use]
    pub fn authority(&self) -> &str {
        let host = || self.host.as_ref().and_then(|host| host.to_str().ok());
        self.uri.authority().map(|authority| authority.as_str()).or_else(host).unwrap_or_default()
    }

    /// The path, without the query.
    #[must_use]
    pub fn path(&self) -> &str {
        self.uri.path()
    }

    /// The query, if there is one.
    #[must_use]
    pub fn query(&self) -> Option<&str> {
        self.uri.query()
    }

    fn scheme(&self) -> Option<&str> {
        self.uri.scheme_str()
    }
}

impl PartialEq for HttpKey {
    fn eq(&self, other: &Self) -> bool {
        (self.path(), self.query(), self.scheme()) == (other.path(), other.query(), other.scheme())
            && self.authority().eq_ignore_ascii_case(other.authority())
    }
}

impl Eq for HttpKey {}

impl Hash for HttpKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (self.path(), self.query(), self.scheme()).hash(state);
        for byte in self.authority().bytes() {
            state.write_u8(byte.to_ascii_lowercase());
        }
    }
}

impl fmt::Display for HttpKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = self.scheme().map_or(String::new(), |scheme| format!("{scheme}:"));
        write!(f, "{scheme}//{}{}", self.authority(), self.path())?;
        self.query().map_or(Ok(()), |query| write!(f, "?{query}"))
    }
}

impl fmt::Debug for HttpKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HttpKey({self})")
    }
}

/// Judges which HTTP responses a cache may store and give to several callers: for
/// [`CacheLayer::classify`](super::CacheLayer::classify), together with [`http_key`].
///
/// Failures are those of [`HttpStatus`]. A success has a status that is cacheable without further conditions (200, 203,
/// 204, 300, 301, 308, 404, 405, 410 or 414; RFC 9110, section 15.1), no `Set-Cookie`, `Vary` or `Content-Range`, is
/// not [`Degraded`](crate::Degraded), and neither its `CacheHandle-Control` (`no-store`, `no-cache`, `private`, a `max-age`
/// or `s-maxage` of zero) nor its `Pragma` nor an `Expires` that has passed speak against it. Everything else is
/// ignored: the cache neither stores it nor gives it to another caller.
///
/// So behind a layer that compresses, which says `Vary: accept-encoding`, nothing is stored: put that layer outside of
/// the cache.
///
/// It reads no `max-age`, but zero: the ttl is that of the layer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct HttpStorable;

impl<B, E> Classify<Response<B>, E> for HttpStorable {
    fn classify(&self, outcome: Result<&Response<B>, &E>) -> Class {
        match (HttpStatus.classify(outcome), outcome) {
            (Class::Success, Ok(response)) if !is_storable(response) => Class::Ignored,
            (class, _) => class,
        }
    }
}

fn is_storable<B>(response: &Response<B>) -> bool {
    let headers = response.headers();
    matches!(response.status().as_u16(), 200 | 203 | 204 | 300 | 301 | 308 | 404 | 405 | 410 | 414)
        && ![SET_COOKIE, VARY, CONTENT_RANGE].iter().any(|name| headers.contains_key(name))
        && response.extensions().get::<Stale>().is_none()
        && !headers.get_all(CACHE_CONTROL).iter().any(forbids)
        && !headers.get_all(PRAGMA).iter().any(forbids)
        && !has_passed(headers)
}

/// Whether a `CacheHandle-Control` says that its response is not to be given to others. One that cannot be read may say so.
fn forbids(value: &HeaderValue) -> bool {
    let Ok(text) = value.to_str() else { return true };
    text.split(',').any(|directive| {
        let (name, value) = directive.split_once('=').unwrap_or((directive, ""));
        let is = |other: &str| name.trim().eq_ignore_ascii_case(other);
        let is_zero = || value.trim().trim_matches('"').bytes().all(|digit| digit == b'0');
        is("no-store") || is("no-cache") || is("private") || ((is("max-age") || is("s-maxage")) && is_zero())
    })
}

/// Whether its `Expires` has passed, by its own `Date`. One that is no date has, as `0` has (RFC 9111, section 5.3).
fn has_passed(headers: &HeaderMap) -> bool {
    let date = |value: &HeaderValue| httpdate::parse_http_date(value.to_str().ok()?).ok();
    let Some(expires) = headers.get(EXPIRES) else { return false };
    let now = || headers.get(DATE).and_then(date).unwrap_or_else(SystemTime::now);
    date(expires).is_none_or(|expires| expires <= now())
}
