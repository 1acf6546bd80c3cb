//! HTTP: which requests have a key.

use std::{
    fmt,
    hash::{Hash, Hasher},
};

use http::{
    HeaderName, HeaderValue, Method, Request, Uri,
    header::{
        AUTHORIZATION, CACHE_CONTROL, CONTENT_LENGTH, COOKIE, HOST, IF_MATCH, IF_MODIFIED_SINCE, IF_NONE_MATCH,
        IF_RANGE, IF_UNMODIFIED_SINCE, PRAGMA, PROXY_AUTHORIZATION, RANGE, TRANSFER_ENCODING, UPGRADE,
    },
};

#[cfg(feature = "http-cache")]
use http::uri::{self, PathAndQuery, Scheme};

/// Makes the key of a GET request whose response is the same for all callers. Use it with
/// [`CacheLayer::new`](super::CacheLayer::new), together with [`HttpStorable`](super::HttpStorable).
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
/// A key is cheap: it refers to the parts of the request and does not allocate. A stored key therefore keeps the buffer
/// of a connection alive, unless it is [`compact`](HttpKey::compact). If responses depend on more than the
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
    HttpKey::of(request)
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
    /// Returns the key of the request's target, or `None` if it is unclear which host it names.
    pub(super) fn of<B>(request: &Request<B>) -> Option<Self> {
        let mut hosts = request.headers().get_all(HOST).iter();
        let (host, uri) = (hosts.next().cloned(), request.uri().clone());
        let named = host.as_ref().map_or(Some(""), |host| host.to_str().ok())?;
        let is_one =
            uri.authority().is_none_or(|authority| host.is_none() || authority.as_str().eq_ignore_ascii_case(named));
        let key = Self { uri, host };
        let is_plain = !key.authority().contains(['@', '/', '\\', '?', '#']);
        (is_one && hosts.next().is_none() && is_plain).then_some(key)
    }

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

    /// Returns a copy in memory of its own: the parts of a request are often slices of a larger buffer, which the key
    /// keeps alive otherwise. The copy costs two allocations.
    ///
    /// `CacheLayer::http` (feature `http-cache`) stores such copies. The keys of
    /// [`CacheLayer::new`](super::CacheLayer::new) are yours, and stored as they are:
    ///
    /// ```
    /// use std::time::Duration;
    /// use http::{Request, Response};
    /// use ziggurat::cache::{CacheLayer, HttpStorable, http_key};
    ///
    /// // For many entries behind a server whose connections have large buffers.
    /// let key = |req: &Request<()>| Some(http_key(req)?.compact());
    /// let layer = CacheLayer::<_, Response<String>, _>::new(100_000, Duration::from_secs(60), key);
    /// # drop(layer.classify(HttpStorable));
    /// ```
    #[must_use]
    pub fn compact(&self) -> Self {
        let uri = self.uri.to_string().parse().unwrap_or_else(|_| self.uri.clone());
        let copy = |host: &HeaderValue| HeaderValue::from_bytes(host.as_bytes()).unwrap_or_else(|_| host.clone());
        Self { uri, host: self.host.as_ref().map(copy) }
    }

    fn scheme(&self) -> Option<&str> {
        self.uri.scheme_str()
    }
}

/// Resolves the segments `.` and `..` of a path (RFC 3986, section 5.2.4).
#[cfg(feature = "http-cache")]
fn without_dots(path: &str) -> String {
    let (path, query) = path.split_at(path.find('?').unwrap_or(path.len()));
    let (mut kept, mut segments) = (Vec::new(), path.split('/').skip(1).peekable());
    while let Some(segment) = segments.next() {
        match segment {
            "." | ".." => {
                if segment == ".." {
                    kept.pop();
                }
                if segments.peek().is_none() {
                    kept.push("");
                }
            }
            segment => kept.push(segment),
        }
    }
    format!("/{}{query}", kept.join("/"))
}

/// Returns the ports that need not be named. A request that names no scheme may have come by either.
#[cfg(feature = "http-cache")]
fn default_ports(scheme: Option<&str>) -> &'static [&'static str] {
    match scheme {
        None => &[":80", ":443"],
        Some(scheme) if scheme.eq_ignore_ascii_case("http") => &[":80"],
        Some(scheme) if scheme.eq_ignore_ascii_case("https") => &[":443"],
        Some(_) => &[],
    }
}

#[cfg(feature = "http-cache")]
fn without_default_port<'a>(authority: &'a str, scheme: Option<&str>) -> &'a str {
    default_ports(scheme).iter().find_map(|port| authority.strip_suffix(port)).unwrap_or(authority)
}

#[cfg(feature = "http-cache")]
fn has_port(authority: &str) -> bool {
    authority.rsplit_once(':').is_some_and(|(_, port)| port.bytes().all(|byte| byte.is_ascii_digit()))
}

#[cfg(feature = "http-cache")]
impl From<Uri> for HttpKey {
    fn from(uri: Uri) -> Self {
        Self { uri, host: None }
    }
}

#[cfg(feature = "http-cache")]
impl HttpKey {
    /// Returns the key of a resource that a response names by a reference (RFC 3986, section 5.2), if it is on the same
    /// host.
    pub(super) fn join(&self, reference: &HeaderValue) -> Option<Self> {
        let reference = reference.to_str().ok()?.split('#').next()?;
        let after_scheme = reference.split_once("://").filter(|(scheme, _)| !scheme.contains(['/', '?']));
        let of_host = after_scheme.map(|(_, rest)| rest).or_else(|| reference.strip_prefix("//"));
        let path = match of_host {
            Some(rest) => {
                let (authority, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
                let scheme = after_scheme.map(|(scheme, _)| scheme).or(self.scheme());
                without_default_port(authority, scheme)
                    .eq_ignore_ascii_case(without_default_port(self.authority(), self.scheme()))
                    .then(|| format!("/{}", path.trim_start_matches('/')))?
            }
            None if reference.starts_with('/') => reference.to_owned(),
            None if reference.is_empty() => self.uri.path_and_query()?.to_string(),
            None if reference.starts_with('?') => format!("{}{reference}", self.path()),
            None => {
                let directory = self.path().rsplit_once('/').map_or("", |(directory, _)| directory);
                format!("{directory}/{reference}")
            }
        };
        Self::named(self.uri.scheme().cloned(), self.authority(), without_dots(&path).parse().ok()?)
    }

    /// Returns the keys of the same resource, however a request names its scheme and the default port: on an HTTP/1
    /// server it names no scheme.
    pub(super) fn in_any_scheme(&self) -> Vec<Self> {
        let Some(path) = self.uri.path_and_query() else { return Vec::new() };
        let own = self.uri.scheme().filter(|scheme| ![Scheme::HTTP, Scheme::HTTPS].contains(scheme)).cloned();
        let schemes = [None, Some(Scheme::HTTP), Some(Scheme::HTTPS)].into_iter().chain(own.map(Some));
        let host = without_default_port(self.authority(), self.scheme());
        let mut keys = Vec::new();
        for scheme in schemes {
            keys.extend(Self::named(scheme.clone(), host, path.clone()));
            if host.is_empty() || has_port(host) {
                continue;
            }
            for port in default_ports(scheme.as_ref().map(Scheme::as_str)) {
                keys.extend(Self::named(scheme.clone(), &format!("{host}{port}"), path.clone()));
            }
        }
        keys
    }

    /// Returns the name of the resource, which is the same for all keys of [`in_any_scheme`](Self::in_any_scheme).
    pub(super) fn resource(&self) -> String {
        let host = self.authority().to_ascii_lowercase();
        let host = without_default_port(&host, None);
        let (mark, query) = self.query().map_or(("", ""), |query| ("?", query));
        format!("//{host}{}{mark}{query}", self.path())
    }

    fn named(scheme: Option<Scheme>, authority: &str, path: PathAndQuery) -> Option<Self> {
        let mut parts = uri::Parts::default();
        parts.path_and_query = Some(path);
        let Some(scheme) = scheme else {
            let host = HeaderValue::from_str(authority).ok().filter(|host| !host.is_empty());
            return Some(Self { uri: Uri::from_parts(parts).ok()?, host });
        };
        (parts.scheme, parts.authority) = (Some(scheme), Some(authority.parse().ok()?));
        Some(Self { uri: Uri::from_parts(parts).ok()?, host: None })
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

#[cfg(all(test, feature = "http-cache", not(ziggurat_loom)))]
mod tests {
    use super::*;

    fn key(uri: &str) -> HttpKey {
        HttpKey::from(uri.parse::<Uri>().unwrap())
    }

    #[test]
    fn a_reference_names_a_resource_of_the_same_host() {
        let base = key("http://shop.test/a/b?c");
        for (reference, expected) in [
            ("x", "/a/x"),
            ("./x?y", "/a/x?y"),
            ("../x", "/x"),
            ("../../..", "/"),
            ("/x/./y/../z/", "/x/z/"),
            ("/x/.", "/x/"),
            ("?d", "/a/b?d"),
            ("", "/a/b?c"),
            ("#f", "/a/b?c"),
            ("//SHOP.test/x", "/x"),
            ("http://shop.test", "/"),
            ("https://shop.test?x", "/?x"),
            ("http://shop.test:80/x", "/x"),
            ("https://shop.test:443/x", "/x"),
            ("x://shop.test/x#f", "/x"),
            ("/x?u=http://other.test/", "/x?u=http://other.test/"),
        ] {
            let joined = base.join(&HeaderValue::from_static(reference));
            assert_eq!(joined, Some(key(&format!("http://shop.test{expected}"))), "{reference}");
        }
        for other in [
            "http://other.test/x",
            "//other.test",
            "http://shop.test:81/x",
            "http://shop.test:443/x",
            "http://shop.test@other.test/",
        ] {
            assert_eq!(base.join(&HeaderValue::from_static(other)), None, "{other}");
        }
    }

    #[test]
    fn a_resource_is_the_same_in_any_scheme() {
        let names = |key: HttpKey| key.in_any_scheme().iter().map(HttpKey::to_string).collect::<Vec<_>>();
        let all = [
            "//shop.test/a?b",
            "//shop.test:80/a?b",
            "//shop.test:443/a?b",
            "http://shop.test/a?b",
            "http://shop.test:80/a?b",
            "https://shop.test/a?b",
            "https://shop.test:443/a?b",
        ];
        for name in &all[3..] {
            assert_eq!(names(key(name)), all, "{name}");
        }
        let request = Request::get("/a?b").header(HOST, "shop.test").body(()).unwrap();
        let of_server = HttpKey::of(&request).unwrap();
        assert_eq!(names(of_server.clone()), all);
        assert!(of_server.in_any_scheme().contains(&of_server));
        assert_eq!(names(key("/a?b")), ["///a?b"]);
        for port in ["http://shop.test:443/", "http://shop.test:8080/", "http://[::1]:8080/"] {
            let same = ["", "http:", "https:"].map(|scheme| port.replacen("http:", scheme, 1));
            assert_eq!(names(key(port)), same);
        }
        assert_eq!(names(key("http://[::1]:80/"))[..2], ["//[::1]/", "//[::1]:80/"]);
        assert_eq!(names(key("unix://a.test/"))[7..], ["unix://a.test/"]);
        assert_eq!(of_server.compact(), of_server);
    }
}
