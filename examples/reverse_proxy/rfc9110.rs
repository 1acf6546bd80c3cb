//! The obligations of an HTTP proxy: RFC 9110 defines semantics, RFC 9112 HTTP/1.1, and RFC 9113 HTTP/2.

use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri, Version, header,
    uri::{Authority, Scheme},
};

use super::forwarded;

/// The proxy's pseudonym in `Via`. Two proxies in a row need different names.
const NAME: &str = "ziggurat";

/// Turns a received request into the one to forward, or returns the status of the response if it must not be forwarded.
pub(crate) fn send_on<B>(request: &mut Request<B>) -> Result<(), StatusCode> {
    // The proxy makes no tunnels (9110, 9.3.6), and supports only the chunked coding (9112, 6.1).
    if request.method() == Method::CONNECT || !is_plain(request.headers()) {
        return Err(StatusCode::NOT_IMPLEMENTED);
    }
    let host = host(request)?;
    count_forwards(request)?;
    let via = via(request)?;
    let headers = request.headers_mut();
    remove_hop_by_hop(headers);
    join_cookies(headers);
    headers.append(header::VIA, via);
    headers.remove(header::HOST); // the client sets the upstream's
    name(request, host.as_ref());
    forwarded::tell(request, host);
    Ok(())
}

/// Turns the upstream's response into the caller's, or returns the status to respond with instead.
pub(crate) fn send_back<B>(response: &mut Response<B>) -> Result<(), StatusCode> {
    // The proxy never asks for another protocol, because it does not forward `Upgrade`. HTTP/1.0 has no coding (9112,
    // 6.1).
    let is_old = response.version() == Version::HTTP_10;
    if response.status() == StatusCode::SWITCHING_PROTOCOLS
        || !is_plain(response.headers())
        || is_old && response.headers().contains_key(header::TRANSFER_ENCODING)
    {
        return Err(StatusCode::BAD_GATEWAY);
    }
    let is_no_content = response.status() == StatusCode::NO_CONTENT;
    let headers = response.headers_mut();
    remove_hop_by_hop(headers);
    tell_length_once(headers)?;
    if is_no_content {
        headers.remove(header::CONTENT_LENGTH); // 9110, 8.6
    }
    // Each hop speaks its own version (9112, 2.3). In HTTP/1.0 the end of the connection is the end of the body, so a
    // truncated body would look complete.
    *response.version_mut() = Version::HTTP_11;
    Ok(())
}

/// Returns whether the body is sent as it is, or in chunks, which hyper decodes.
fn is_plain(headers: &HeaderMap) -> bool {
    let mut codings = headers.get_all(header::TRANSFER_ENCODING).iter();
    codings.next().is_none_or(|coding| coding.as_bytes().eq_ignore_ascii_case(b"chunked")) && codings.next().is_none()
}

/// Returns the name by which the caller addressed this server. HTTP/1.1 requires exactly one `Host` (9112, 3.2), and
/// the target's own authority takes precedence (3.2.2). In HTTP/2 the two are the same (9113, 8.3.1), but a proxy that
/// converts from HTTP/1.1 may have left out the authority (7540, 8.1.2.3).
fn host<B>(request: &Request<B>) -> Result<Option<HeaderValue>, StatusCode> {
    let mut hosts = request.headers().get_all(header::HOST).iter();
    let host = hosts.next();
    let named = host.and_then(|host| Authority::try_from(host.as_bytes()).ok()).filter(is_host);
    let is_valid = host.map_or(request.version() != Version::HTTP_11, |host| host.is_empty() || named.is_some());
    if hosts.next().is_some() || !is_valid {
        return Err(StatusCode::BAD_REQUEST);
    }
    let target = target(request)?;
    if request.version() == Version::HTTP_2 {
        let is_fit = match (target, host) {
            (Some(target), Some(_)) => named.is_some_and(|named| are_same(target, &named, request.uri().scheme())),
            (target, _) => target.is_some() || named.is_some(),
        };
        if !is_fit {
            return Err(StatusCode::BAD_REQUEST);
        }
    }
    let target = target.map(|target| HeaderValue::from_str(target.as_str()));
    Ok(target.transpose().map_err(|_| StatusCode::BAD_REQUEST)?.or_else(|| host.cloned()))
}

/// Makes the target a whole URI, with the host that the caller addressed (9110, 7.1).
fn name<B>(request: &mut Request<B>, host: Option<&HeaderValue>) {
    let mut uri = request.uri().clone().into_parts();
    uri.authority = host.and_then(|host| Authority::try_from(host.as_bytes()).ok());
    uri.scheme = uri.authority.is_some().then_some(Scheme::HTTP);
    if let Ok(uri) = Uri::from_parts(uri) {
        *request.uri_mut() = uri;
    }
}

/// Compares two authorities by the rules of the scheme (3986, 6.2.3).
fn are_same(one: &Authority, other: &Authority, scheme: Option<&Scheme>) -> bool {
    let default = if scheme == Some(&Scheme::HTTPS) { 443 } else { 80 };
    let port = |authority: &Authority| authority.port_u16().unwrap_or(default);
    one.host().eq_ignore_ascii_case(other.host()) && port(one) == port(other)
}

/// Returns the authority of the target, which has to be in a form that the method allows: a path, `*` for `OPTIONS`, or
/// an absolute URI (9112, 3.2).
fn target<B>(request: &Request<B>) -> Result<Option<&Authority>, StatusCode> {
    let uri = request.uri();
    let is_fit = match (uri.scheme_str(), uri.authority()) {
        (None, None) => uri.path().starts_with('/') || uri.path() == "*" && request.method() == Method::OPTIONS,
        (Some("http" | "https"), Some(authority)) => is_host(authority),
        _ => false,
    };
    if is_fit { Ok(uri.authority()) } else { Err(StatusCode::BAD_REQUEST) }
}

/// Returns whether the authority is a host with an optional port, and without user information (9110, 4.2.4).
pub(crate) fn is_host(authority: &Authority) -> bool {
    let rest = authority.as_str().strip_prefix(authority.host());
    rest.is_some_and(|port| port.is_empty() || port.strip_prefix(':').is_some_and(is_port))
}

/// The port may be empty after the colon (3986, 3.2.3).
fn is_port(port: &str) -> bool {
    port.bytes().all(|digit| digit.is_ascii_digit()) && (port.is_empty() || port.parse::<u16>().is_ok())
}

/// Decrements `Max-Forwards`, which limits how often `TRACE` and `OPTIONS` are forwarded (9110, 7.6.2).
fn count_forwards<B>(request: &mut Request<B>) -> Result<(), StatusCode> {
    let at_the_end = match *request.method() {
        Method::OPTIONS => StatusCode::OK,
        Method::TRACE => StatusCode::NOT_IMPLEMENTED,
        _ => return Ok(()),
    };
    let left = request.headers().get(header::MAX_FORWARDS).and_then(|left| left.to_str().ok()?.parse::<u32>().ok());
    let Some(left) = left else { return Ok(()) };
    let left = left.checked_sub(1).ok_or(at_the_end)?;
    request.headers_mut().insert(header::MAX_FORWARDS, left.into());
    Ok(())
}

/// Returns the `Via` entry: the version of the received message, and this proxy (9110, 7.6.3). A message that already
/// has an entry of this proxy is in a loop.
fn via<B>(request: &Request<B>) -> Result<HeaderValue, StatusCode> {
    for line in request.headers().get_all(header::VIA) {
        for member in line.as_bytes().split(|byte| *byte == b',') {
            let mut words = member.split(|byte| matches!(byte, b' ' | b'\t')).filter(|word| !word.is_empty());
            if words.nth(1).is_some_and(|by| by.eq_ignore_ascii_case(NAME.as_bytes())) {
                return Err(StatusCode::LOOP_DETECTED);
            }
        }
    }
    let version = match request.version() {
        Version::HTTP_10 => "1.0",
        Version::HTTP_2 => "2.0",
        _ => "1.1",
    };
    HeaderValue::try_from(format!("{version} {NAME}")).map_err(|_| StatusCode::INTERNAL_SERVER_ERROR)
}

/// Removes headers that apply to this connection alone (9110, 7.6.1). A length in addition to a coding is not the
/// body's (9112, 6.3).
fn remove_hop_by_hop(headers: &mut HeaderMap) {
    if headers.contains_key(header::TRANSFER_ENCODING) {
        headers.remove(header::CONTENT_LENGTH);
    }
    let lines = headers.get_all(header::CONNECTION).iter();
    let names = lines.flat_map(|line| line.as_bytes().split(|byte| *byte == b','));
    let named: Vec<_> = names.filter_map(|name| HeaderName::from_bytes(name.trim_ascii()).ok()).collect();
    let known = ["connection", "keep-alive", "proxy-connection", "te", "transfer-encoding", "upgrade"];
    for name in named.into_iter().chain(known.map(HeaderName::from_static)) {
        headers.remove(name);
    }
}

/// Reduces repeated lengths to one, even if they are equal (9112, 6.3).
fn tell_length_once(headers: &mut HeaderMap) -> Result<(), StatusCode> {
    let Some(length) = headers.get(header::CONTENT_LENGTH).cloned() else { return Ok(()) };
    if !length.as_bytes().iter().all(u8::is_ascii_digit) {
        return Err(StatusCode::BAD_GATEWAY);
    }
    headers.insert(header::CONTENT_LENGTH, length);
    Ok(())
}

/// Joins the lines into which HTTP/2 may split cookies, because the upstream speaks HTTP/1.1 (9113, 8.2.3).
fn join_cookies(headers: &mut HeaderMap) {
    let cookies: Vec<_> = headers.get_all(header::COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if cookies.len() > 1
        && let Ok(joined) = HeaderValue::from_bytes(&cookies.join(&b"; "[..]))
    {
        headers.insert(header::COOKIE, joined);
    }
}
