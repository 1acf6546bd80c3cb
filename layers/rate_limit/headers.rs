//! The headers that show callers how much of the rate is left.

use std::time::Duration;

use http::{HeaderName, HeaderValue, Response};

use super::handle::RateLimitHandle;
use crate::{
    clock,
    outcome::{Rejection, whole_seconds},
    telemetry::LayerInfo,
};

const POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
const LIMIT: HeaderName = HeaderName::from_static("ratelimit");

/// Whether responses carry the headers of the limit: [`NoHeaders`], or [`RateLimitHeaders`] after
/// [`.headers()`](super::RateLimitLayer::headers).
///
/// It is a type instead of a flag, because only HTTP responses have headers.
#[diagnostic::on_unimplemented(
    message = "`.headers()` needs a service whose response is an `http::Response`, not `{R}`",
    note = "for any other response leave it out"
)]
pub trait Announce<R>: Kind {
    /// Adds the headers to a response of the service.
    #[doc(hidden)]
    fn announce(&self, response: &mut R);
}

/// Sealed, so that methods can be added.
pub trait Kind: Clone {
    fn new(handle: &RateLimitHandle, info: &LayerInfo) -> Self;

    /// Adds the headers to a rejection of the limit.
    fn announce_rejection(&self, rejection: Rejection) -> Rejection;
}

/// Responses are passed on as they are. The default.
#[derive(Debug, Clone, Copy)]
pub struct NoHeaders;

impl Kind for NoHeaders {
    fn new(_: &RateLimitHandle, _: &LayerInfo) -> Self {
        Self
    }

    fn announce_rejection(&self, rejection: Rejection) -> Rejection {
        rejection
    }
}

impl<R> Announce<R> for NoHeaders {
    #[inline]
    fn announce(&self, _: &mut R) {}
}

/// Each response has the headers `RateLimit-Policy` and `RateLimit`.
#[derive(Debug, Clone)]
pub struct RateLimitHeaders {
    handle: RateLimitHandle,
    info: LayerInfo,
}

impl Kind for RateLimitHeaders {
    fn new(handle: &RateLimitHandle, info: &LayerInfo) -> Self {
        Self { handle: handle.clone(), info: info.clone() }
    }

    fn announce_rejection(&self, rejection: Rejection) -> Rejection {
        let wait = rejection.retry_after();
        let [policy, limit] = self.values(wait.map(whole_seconds));
        rejection.with_header(POLICY, policy).with_header(LIMIT, limit)
    }
}

impl<B> Announce<Response<B>> for RateLimitHeaders {
    fn announce(&self, response: &mut Response<B>) {
        let [policy, limit] = self.values(None);
        // Those of another limit stay: both fields are lists.
        response.headers_mut().append(POLICY, policy);
        response.headers_mut().append(LIMIT, limit);
    }
}

impl RateLimitHeaders {
    /// Returns the values of the two headers. `reset` is the time until a call that was rejected may come back.
    fn values(&self, reset: Option<u64>) -> [HeaderValue; 2] {
        let (rate, available, full) = self.handle.status(clock::now());
        let name = quoted(self.info.name().unwrap_or("default"));
        // Rounding up must not make a second of the last nanosecond.
        let reset = reset.unwrap_or_else(|| whole_seconds(Duration::from_micros(full.as_micros() as u64)));
        let policy = format!("{name};q={};w={}", rate.burst(), whole_seconds(rate.window()));
        let limit = format!("{name};r={available};t={reset}");
        [policy, limit].map(|value| HeaderValue::try_from(value).unwrap_or(HeaderValue::from_static("")))
    }
}

/// A string of a structured field (RFC 9651). It has no place for other characters than those of ASCII.
fn quoted(name: &str) -> String {
    let mut quoted = String::from('"');
    for char in name.chars() {
        match char {
            '"' | '\\' => quoted.extend(['\\', char]),
            ' '..='~' => quoted.push(char),
            _ => quoted.push('_'),
        }
    }
    quoted.push('"');
    quoted
}

#[cfg(all(test, not(ziggurat_loom)))]
mod tests {
    use super::*;
    use crate::{bucket::Rate, telemetry::layer_info};

    #[test]
    fn a_name_of_any_characters_is_a_string_of_a_structured_field() {
        let second = Duration::from_secs(1);
        for (name, shown) in [("", "default"), ("a b", "a b"), (r#"a"\b"#, r#"a\"\\b"#), ("größe\n", "gr__e_")] {
            let handle = RateLimitHandle::new(Rate::new(3, second));
            let headers = RateLimitHeaders::new(&handle, &layer_info!("rate_limit").named(name.to_owned()));
            let [policy, limit] = headers.values(None);
            assert_eq!(policy.to_str().unwrap(), format!(r#""{shown}";q=3;w=1"#));
            assert_eq!(limit.to_str().unwrap(), format!(r#""{shown}";r=3;t=0"#));
            assert_eq!(headers.handle.take(3), Ok(()));
            let [_, limit] = headers.values(None);
            assert_eq!(limit.to_str().unwrap(), format!(r#""{shown}";r=0;t=1"#));
        }
    }
}
