//! Reports the caller to the upstream. The caller's own claims are not forwarded, because they may be forged. Behind
//! another proxy, this is the place to trust that proxy's claims.

use std::net::IpAddr;

use http::{HeaderName, HeaderValue, Request};

/// The address that a connection comes from.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Caller(pub(crate) IpAddr);

/// Sets the forwarding headers. `host` is the name by which the caller addressed this server.
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
