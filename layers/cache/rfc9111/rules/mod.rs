//! The rules of RFC 9111 and its relatives, as functions of headers and times, without state.

mod conditions;
mod date;
mod directives;
mod fields;
mod list;
mod range;
mod targeted;
mod terms;
mod vary;

pub(super) use self::{
    conditions::{allows_range, compare, has_validator, is_current, is_same, validate},
    fields::{of_not_modified, remove_not_stored, update},
    range::{Part, part},
    terms::{Asked, Reuse, Rules, Terms, Times},
    vary::{MOST as MOST_VARY, Vary},
};

/// The headers of these lines, for tests.
#[cfg(test)]
pub(super) fn headers(lines: &[(&str, &str)]) -> http::HeaderMap {
    let line = |(name, value): &(&str, &str)| {
        (name.parse().unwrap(), http::HeaderValue::from_bytes(value.as_bytes()).unwrap())
    };
    lines.iter().map(line).collect()
}
