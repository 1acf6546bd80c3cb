//! HTTP: which requests have a key, and which responses may be stored and served to several callers.

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

/// Makes the key of a GET request whose response is the same for all callers. Use it with
/// [`CacheLayer::new`](super::CacheLayer::new), together with [`HttpStorable`].
///
/// The key consists of the scheme, the authority, and the path with the query. The authority is that of the URI or, if
/// the URI has none, as on an HTTP/1 server, the `Host` header. Two virtual hosts therefore share nothing.
///
/// The following requests have no key. They bypass the cache ([`Stats::bypassed`](super::Stats::bypassed)), and each of
/// them makes its own call:
///
/// - requests with a method other than GET, with a body, or with `Upgrade`
/// - requests with credentials: `Authorization`, `Proxy-Authorization`, `Cookie` ([make a key of your
///   own](crate::docs::how_to#cache-a-route-per-tenant-that-logs-in) if such a response may be stored)
/// - partial and conditional requests: `Range`, `If-Range`, `If-Match`, `If-None-Match`, `If-Modified-Since`,
///   `If-Unmodified-Since`
/// - requests with cache directives of their own: `Cache-Control`, `Pragma`
/// - requests with several `Host` headers, with a `Host` that is unreadable or differs from the authority of the URI,
///   or with a user name or a separator (`/`, `?`, `#`, `\`) in the authority
///
/// A key is cheap: it refers to the parts of the request and does not allocate. If responses depend on more than the
/// key, such as a header for which the service sends no `Vary`, combine it with your own key:
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
    let is_plain = !key.authority().contains(['@', '/', '\\', '?', '#']);
    (is_one && hosts.next().is_none() && is_plain).then_some(key)
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

/// The key that [`http_key`] makes from a request.
///
/// Two keys are equal if the scheme, the authority (ignoring case), the path and the query are equal. Equal keys have
/// equal texts ([`Display`](fmt::Display)) and others have not, so a text can be the key in a store. A request that
/// names no scheme, as on an HTTP/1 server, has a text such as `//shop.test/prices`.
#[derive(Clone)]
pub struct HttpKey {
    uri: Uri,
    host: Option<HeaderValue>,
}

impl HttpKey {
    /// Returns the host and any port, as the request named them. Empty if it named none.
    #[must_use]
    pub fn authority(&self) -> &str {
        let host = || self.host.as_ref().and_then(|host| host.to_str().ok());
        self.uri.authority().map(|authority| authority.as_str()).or_else(host).unwrap_or_default()
    }

    /// Returns the path, without the query.
    #[must_use]
    pub fn path(&self) -> &str {
        self.uri.path()
    }

    /// Returns the query, if there is one.
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
        // Equal keys have equal texts.
        write!(f, "{scheme}//{}{}", self.authority().to_ascii_lowercase(), self.path())?;
        self.query().map_or(Ok(()), |query| write!(f, "?{query}"))
    }
}

impl fmt::Debug for HttpKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HttpKey({self})")
    }
}

/// Classifies HTTP responses by whether a cache may store them and serve them to several callers. Use it with
/// [`CacheLayer::classify`](super::CacheLayer::classify), together with [`http_key`].
///
/// Failures are those of [`HttpStatus`]. A response is a success under the following conditions:
///
/// - Its status is cacheable without further conditions: 200, 203, 204, 300, 301, 308, 404, 405, 410 or 414 (RFC 9110,
///   section 15.1).
/// - It has no `Set-Cookie`, `Vary` or `Content-Range`.
/// - It is not [`Degraded`](crate::Degraded).
/// - No `Cache-Control` (`no-store`, `no-cache`, `private`, a `max-age` or `s-maxage` of zero), no `Pragma` and no
///   `Expires` in the past forbids storing it.
///
/// Every other response is ignored: the cache neither stores it nor gives it to another caller.
///
/// A layer that compresses responses sends `Vary: accept-encoding`, so nothing inside it is stored. Put such a layer
/// outside the cache.
///
/// Apart from zero, a `max-age` is not read: the layer's ttl applies.
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

/// Returns whether a `Cache-Control` forbids storing or sharing its response. An unreadable value may do so.
fn forbids(value: &HeaderValue) -> bool {
    let Ok(text) = value.to_str() else { return true };
    text.split(',').any(|directive| {
        let (name, value) = directive.split_once('=').unwrap_or((directive, ""));
        let is = |other: &str| name.trim().eq_ignore_ascii_case(other);
        let is_zero = || value.trim().trim_matches('"').bytes().all(|digit| digit == b'0');
        is("no-store") || is("no-cache") || is("private") || ((is("max-age") || is("s-maxage")) && is_zero())
    })
}

/// Returns whether its `Expires` has passed, by its own `Date`. An invalid date such as `0` has (RFC 9111, section
/// 5.3).
fn has_passed(headers: &HeaderMap) -> bool {
    let date = |value: &HeaderValue| httpdate::parse_http_date(value.to_str().ok()?).ok();
    let Some(expires) = headers.get(EXPIRES) else { return false };
    let now = || headers.get(DATE).and_then(date).unwrap_or_else(SystemTime::now);
    date(expires).is_none_or(|expires| expires <= now())
}
