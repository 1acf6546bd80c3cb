//! W3C Trace Context: the trace that a request belongs to.

use std::ops::Range;

use http::{HeaderMap, HeaderName, HeaderValue};

use super::insert_absent;

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

/// The positions in `00-<trace id>-<parent id>-<flags>`, and its length.
const VERSION: Range<usize> = 0..2;
const TRACE_ID: Range<usize> = 3..35;
const PARENT_ID: Range<usize> = 36..52;
const FLAGS: Range<usize> = 53..55;
const LENGTH: usize = 55;

/// The maximum size of a `tracestate`: twice the specification's minimum of characters, and its maximum of members.
const STATE_LENGTH: usize = 1024;
const STATE_MEMBERS: usize = 32;

/// A valid `traceparent`, as [W3C Trace Context](https://www.w3.org/TR/trace-context/) defines it, with its
/// `tracestate`.
///
/// Version 00 has exactly 55 characters, and its ids are lower-case hexadecimal digits that are not all zero. In a
/// higher version, except for the forbidden `ff`, only these 55 characters are parsed, and the rest is kept as it is.
/// If there are two `traceparent` headers, neither counts, because nothing shows which one is right.
///
/// The header is passed on as it came. No span is created here: the next hop sees this service's caller as its parent,
/// unless a tracing client sets its own `traceparent`.
///
/// ```
/// use http::{HeaderMap, HeaderValue};
/// use ziggurat::headers::Traceparent;
///
/// let value = HeaderValue::from_static("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01");
/// let headers = HeaderMap::from_iter([("traceparent".parse().unwrap(), value)]);
/// let trace = Traceparent::read(&headers).unwrap();
/// assert_eq!(trace.trace_id(), "4bf92f3577b34da6a3ce929d0e0e4736");
/// assert_eq!(trace.parent_id(), "00f067aa0ba902b7");
/// assert!(trace.is_sampled());
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Traceparent {
    header: HeaderValue,
    state: Option<HeaderValue>,
}

impl Traceparent {
    /// Reads the trace from headers that contain exactly one `traceparent`, which is valid.
    #[must_use]
    pub fn read(headers: &HeaderMap) -> Option<Self> {
        let mut all = headers.get_all(TRACEPARENT).iter();
        match (all.next(), all.next()) {
            (Some(header), None) if is_valid(header.as_bytes()) => {
                Some(Self { header: header.clone(), state: state(headers) })
            }
            _ => None,
        }
    }

    /// Returns the id of the whole trace: 32 hexadecimal digits.
    #[must_use]
    pub fn trace_id(&self) -> &str {
        self.part(TRACE_ID)
    }

    /// Returns the id of the caller's span: 16 hexadecimal digits.
    #[must_use]
    pub fn parent_id(&self) -> &str {
        self.part(PARENT_ID)
    }

    /// Returns whether the caller may have recorded its part of the trace.
    #[must_use]
    pub fn is_sampled(&self) -> bool {
        u8::from_str_radix(self.part(FLAGS), 16).is_ok_and(|flags| flags & 1 == 1)
    }

    /// Returns the header as it came.
    #[must_use]
    pub fn header(&self) -> &HeaderValue {
        &self.header
    }

    /// Returns the `tracestate` as it came, with several headers joined into one.
    ///
    /// A `tracestate` of more than 1024 characters or 32 members is dropped as a whole, so that a caller cannot make
    /// this server forward an unlimited amount. (The specification requires at least 512 characters to be passed on,
    /// and allows no more than 32 members.)
    #[must_use]
    pub fn state(&self) -> Option<&HeaderValue> {
        self.state.as_ref()
    }

    /// Writes both headers, unless there already is a `traceparent`. A `tracestate` without one is meaningless, and is
    /// replaced.
    pub fn write(&self, headers: &mut HeaderMap) {
        if insert_absent(headers, &TRACEPARENT, &self.header) {
            match &self.state {
                Some(state) => headers.insert(TRACESTATE, state.clone()),
                None => headers.remove(TRACESTATE),
            };
        }
    }

    fn part(&self, range: Range<usize>) -> &str {
        self.header.to_str().ok().and_then(|header| header.get(range)).unwrap_or_default()
    }
}

fn is_valid(header: &[u8]) -> bool {
    let at = |range: Range<usize>| header.get(range).unwrap_or_default();
    let rest = at(LENGTH..header.len());
    let version = match at(VERSION) {
        b"ff" => false,
        b"00" => rest.is_empty(),
        // Visible characters only, because the header is passed on.
        other => {
            is_hex(other) && rest.first().is_none_or(|next| *next == b'-') && rest.iter().all(u8::is_ascii_graphic)
        }
    };
    let dashes = [VERSION, TRACE_ID, PARENT_ID].iter().all(|part| header.get(part.end) == Some(&b'-'));
    header.len() >= LENGTH && version && dashes && is_id(at(TRACE_ID)) && is_id(at(PARENT_ID)) && is_hex(at(FLAGS))
}

fn is_id(digits: &[u8]) -> bool {
    is_hex(digits) && digits.iter().any(|digit| *digit != b'0')
}

fn is_hex(digits: &[u8]) -> bool {
    digits.iter().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'))
}

/// Joins several headers into one list. `None` if one of them is not text, or if the list is too long.
fn state(headers: &HeaderMap) -> Option<HeaderValue> {
    let lists: Vec<_> = headers.get_all(TRACESTATE).iter().map(|list| list.to_str().ok()).collect::<Option<_>>()?;
    let length = lists.iter().map(|list| list.len() + 1).sum::<usize>().saturating_sub(1);
    let members = lists.iter().flat_map(|list| list.split(',')).filter(|member| !member.trim().is_empty());
    if length > STATE_LENGTH || members.count() > STATE_MEMBERS {
        return None;
    }
    match lists.as_slice() {
        [] => None,
        [_] => headers.get(TRACESTATE).cloned(),
        _ => HeaderValue::try_from(lists.join(",")).ok(),
    }
}

#[cfg(test)]
mod tests;
