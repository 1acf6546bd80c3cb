//! What a proxy owes HTTP: RFC 9110 is about what messages mean, RFC 9112 about HTTP/1.1, RFC 9113 about HTTP/2.

use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Version, header,
    uri::{Authority, Scheme},
};

use super::forwarded;

/// By this name the proxy knows itself in `Via`. Of two proxies in a row each needs a name of its own.
const NAME: &str = "ziggurat";

/// Makes what was received what is sent on; or, if it is not to be sent on, tells the status of the answer.
pub(crate) fn send_on<B>(request: &mut Request<B>) -> Result<(), StatusCode> {
    // It makes no tunnels (9110, 9.3.6), and knows one coding (9112, 6.1).
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
    forwarded::tell(request, host);
    Ok(())
}

/// Makes the upstream's response the caller's; or tells with what status to answer in its place.
pub(crate) fn send_back<B>(response: &mut Response<B>) -> Result<(), StatusCode> {
    // Nobody has asked for another protocol: `Upgrade` is not sent on. HTTP/1.0 knows no coding (9112, 6.1).
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
    // Each hop speaks its own version (9112, 2.3): in HTTP/1.0 the end of the connection is the body's, and a body that broke off looks
    // complete.
    *response.version_mut() = Version::HTTP_11;
    Ok(())
}

/// Whether the body came as it is, or in chunks, which hyper undoes.
fn is_plain(headers: &HeaderMap) -> bool {
    let mut codings = headers.get_all(header::TRANSFER_ENCODING).iter();
    codings.next().is_none_or(|coding| coding.as_bytes().eq_ignore_ascii_case(b"chunked")) && codings.next().is_none()
}

/// What the caller calls this server. HTTP/1.1 says so exactly once (9112, 3.2); the target's own authority has precedence (3.2.2),
/// and in HTTP/2 they are the same (9113, 8.3.1). A proxy that came from HTTP/1.1 may have left out the authority there (7540, 8.1.2.3).
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

/// Whether they are the same server's, as the scheme means them (3986, 6.2.3).
fn are_same(one: &Authority, other: &Authority, scheme: Option<&Scheme>) -> bool {
    let default = if scheme == Some(&Scheme::HTTPS) { 443 } else { 80 };
    let port = |authority: &Authority| authority.port_u16().unwrap_or(default);
    one.host().eq_ignore_ascii_case(other.host()) && port(one) == port(other)
}

/// The authority of the target, whose form is one that the method takes: a path, `*` of `OPTIONS`, or all of a URI (9112, 3.2).
fn target<B>(request: &Request<B>) -> Result<Option<&Authority>, StatusCode> {
    let uri = request.uri();
    let is_fit = match (uri.scheme_str(), uri.authority()) {
        (None, None) => uri.path().starts_with('/') || uri.path() == "*" && request.method() == Method::OPTIONS,
        (Some("http" | "https"), Some(authority)) => is_host(authority),
        _ => false,
    };
    if is_fit { Ok(uri.authority()) } else { Err(StatusCode::BAD_REQUEST) }
}

/// A host, and maybe a port; but nobody's name and password (9110, 4.2.4).
pub(crate) fn is_host(authority: &Authority) -> bool {
    let rest = authority.as_str().strip_prefix(authority.host());
    rest.is_some_and(|port| port.is_empty() || port.strip_prefix(':').is_some_and(is_port))
}

/// It may be left out after the colon (3986, 3.2.3).
fn is_port(port: &str) -> bool {
    port.bytes().all(|digit| digit.is_ascii_digit()) && (port.is_empty() || port.parse::<u16>().is_ok())
}

/// `TRACE` and `OPTIONS` may say how often they are sent on (9110, 7.6.2).
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

/// Which version the message was received in, and by whom (9110, 7.6.3). Who finds itself there already goes round in circles.
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

/// What is meant for this connection alone (9110, 7.6.1). A length beside a coding is not the body's (9112, 6.3).
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

/// A length that is told more than once, even if it is the same, is not sent back so (9112, 6.3).
fn tell_length_once(headers: &mut HeaderMap) -> Result<(), StatusCode> {
    let Some(length) = headers.get(header::CONTENT_LENGTH).cloned() else { return Ok(()) };
    if !length.as_bytes().iter().all(u8::is_ascii_digit) {
        return Err(StatusCode::BAD_GATEWAY);
    }
    headers.insert(header::CONTENT_LENGTH, length);
    Ok(())
}

/// HTTP/2 may divide them among lines; the upstream, in HTTP/1.1, gets one (9113, 8.2.3).
fn join_cookies(headers: &mut HeaderMap) {
    let cookies: Vec<_> = headers.get_all(header::COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if cookies.len() > 1
        && let Ok(joined) = HeaderValue::from_bytes(&cookies.join(&b"; "[..]))
    {
        headers.insert(header::COOKIE, joined);
    }
}
