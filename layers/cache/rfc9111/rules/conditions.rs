//! Conditional requests (RFC 9110, section 13): those of callers, and those that validate a stored response.

use std::time::SystemTime;

use http::{
    HeaderMap, HeaderValue,
    header::{DATE, ETAG, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE, LAST_MODIFIED},
};

use super::{
    date::{date, read},
    list::{Backslash, elements},
};

/// Returns whether a stored response can be validated.
pub(crate) fn has_validator(headers: &HeaderMap) -> bool {
    headers.contains_key(ETAG) || headers.contains_key(LAST_MODIFIED)
}

/// Makes a request ask whether a stored response is still current, in place of its own condition.
pub(crate) fn validate(request: &mut HeaderMap, stored: &HeaderMap) {
    for (condition, validator) in [(IF_NONE_MATCH, ETAG), (IF_MODIFIED_SINCE, LAST_MODIFIED)] {
        match stored.get(validator) {
            Some(value) => drop(request.insert(condition, value.clone())),
            None => drop(request.remove(condition)),
        }
    }
}

/// Returns whether a 304 is about the stored response, and not about another version of it (RFC 9111, section 4.3.4).
pub(crate) fn is_same(stored: &HeaderMap, not_modified: &HeaderMap) -> bool {
    // Without a validator it belongs to the request, which had those of the stored response.
    compare(stored, not_modified).unwrap_or(!not_modified.contains_key(ETAG))
}

/// Compares the validators of two responses. Returns `None` if they have none in common.
pub(crate) fn compare(one: &HeaderMap, other: &HeaderMap) -> Option<bool> {
    let both = |name| Some((one.get(&name)?, other.get(&name)?));
    let etags = both(ETAG).map(|(one, other)| opaque(one.as_bytes()) == opaque(other.as_bytes()));
    etags.or_else(|| both(LAST_MODIFIED).map(|(one, other)| one == other))
}

/// Returns whether the caller already has the stored response (RFC 9110, sections 13.1.2 and 13.1.3).
pub(crate) fn is_current(request: &HeaderMap, stored: &HeaderMap) -> bool {
    if request.contains_key(IF_NONE_MATCH) {
        let stored = stored.get(ETAG).map(|etag| opaque(etag.as_bytes()));
        return elements(request, &IF_NONE_MATCH, Backslash::IsLiteral)
            .any(|etag| etag == b"*" || stored == Some(opaque(etag)));
    }
    let modified = || date(stored, &LAST_MODIFIED).or_else(|| date(stored, &DATE));
    date(request, &IF_MODIFIED_SINCE).is_some_and(|since| modified().is_some_and(|modified| modified <= since))
}

/// Returns whether the ranges of the request are about the stored response (RFC 9110, section 13.1.5).
pub(crate) fn allows_range(request: &HeaderMap, stored: &HeaderMap) -> bool {
    let Some(condition) = request.get(IF_RANGE) else { return true };
    if condition.as_bytes().ends_with(b"\"") {
        return is_strong(condition) && stored.get(ETAG) == Some(condition);
    }
    let modified = stored.get(LAST_MODIFIED).and_then(read);
    // A response may change twice in a second.
    let is_strong = |modified: &SystemTime| {
        date(stored, &DATE).and_then(|date| date.duration_since(*modified).ok()).is_some_and(|age| age.as_secs() >= 1)
    };
    modified.filter(is_strong).is_some_and(|modified| read(condition) == Some(modified))
}

fn is_strong(etag: &HeaderValue) -> bool {
    etag.as_bytes().starts_with(b"\"")
}

/// The part of an entity tag that a weak comparison looks at.
fn opaque(etag: &[u8]) -> &[u8] {
    etag.strip_prefix(b"W/").unwrap_or(etag)
}

#[cfg(test)]
mod tests;
