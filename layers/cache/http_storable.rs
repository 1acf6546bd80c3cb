//! HTTP: which responses may be stored and served to several callers.

use std::time::SystemTime;

use http::{
    HeaderMap, HeaderValue, Response,
    header::{CACHE_CONTROL, CONTENT_RANGE, DATE, EXPIRES, PRAGMA, SET_COOKIE, VARY},
};

use super::Stale;
use crate::outcome::{Class, Classify, HttpStatus};

/// Classifies HTTP responses by whether a cache may store them and serve them to several callers. Use it with
/// [`CacheLayer::classify`](super::CacheLayer::classify), together with [`http_key`](super::http_key).
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
