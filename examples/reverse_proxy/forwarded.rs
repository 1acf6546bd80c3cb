//! What the upstream is told about the caller. What the caller says about that itself is not passed on: it may be made up. Behind
//! another proxy this is the place to believe that one.

use std::net::IpAddr;

use http::{HeaderName, HeaderValue, Request};

/// Where a connection comes from.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Caller(pub(crate) IpAddr);

/// `host` is what the caller calls this server.
pub(crate) fn tell<B>(request: &mut Request<B>, host: Option<HeaderValue>) {
    let caller = request.extensions().get().and_then(|Caller(address)| HeaderValue::try_from(address.to_string()).ok());
    let headers = request.headers_mut();
    let is_claimed = |name: &&HeaderName| {
        name.as_str().starts_with("x-forwarded-") || ["forwarded", "x-real-ip"].contains(&name.as_str())
    };
    let claimed: Vec<_> = headers.keys().filter(is_claimed).cloned().collect();
    for name in claimed {
        headers.remove(name);
    }
    let scheme = Some(HeaderValue::from_static("http"));
    let told = [("x-forwarded-for", caller), ("x-forwarded-host", host), ("x-forwarded-proto", scheme)];
    headers.extend(told.into_iter().filter_map(|(name, value)| Some((HeaderName::from_static(name), value?))));
}
