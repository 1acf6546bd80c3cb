//! Ranges of a stored response (RFC 9110, section 14).

use std::ops::Range;

use http::{HeaderMap, header::RANGE};

use super::list::{Backslash, elements};

/// The part of a response that a request asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Part {
    /// All of it: there is no range, or one that a server may ignore.
    Whole,
    Bytes(Range<u64>),
    /// None of the bytes is there.
    Unsatisfiable,
}

/// Reads the range of a request for a content of this length.
///
/// Several ranges, other units and malformed ranges are ignored, as a server may (RFC 9110, section 14.2).
pub(crate) fn part(request: &HeaderMap, length: u64) -> Part {
    let mut ranges = elements(request, &RANGE, Backslash::IsLiteral);
    let (Some(range), None) = (ranges.next(), ranges.next()) else { return Part::Whole };
    let Some(range) = range.split_at_checked(6).filter(|(unit, _)| unit.eq_ignore_ascii_case(b"bytes=")) else {
        return Part::Whole;
    };
    let Some(range) = Spec::read(range.1.trim_ascii()) else { return Part::Whole };
    let bytes = match range {
        Spec::From(first, last) => first..last.map_or(length, |last| last.saturating_add(1).min(length)),
        Spec::Last(count) => length.saturating_sub(count)..length,
    };
    if bytes.is_empty() { Part::Unsatisfiable } else { Part::Bytes(bytes) }
}

enum Spec {
    From(u64, Option<u64>),
    Last(u64),
}

impl Spec {
    fn read(text: &[u8]) -> Option<Self> {
        let dash = text.iter().position(|byte| *byte == b'-')?;
        match (number(&text[..dash])?, number(&text[dash + 1..])?) {
            (Some(first), last) if last.is_none_or(|last| first <= last) => Some(Self::From(first, last)),
            (None, Some(count)) => Some(Self::Last(count)),
            _ => None,
        }
    }
}

/// Reads a number, which may be absent. One that is too large stands for all such.
fn number(digits: &[u8]) -> Option<Option<u64>> {
    if !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let add = |sum: u64, digit: &u8| sum.saturating_mul(10).saturating_add(u64::from(digit - b'0'));
    Some((!digits.is_empty()).then(|| digits.iter().fold(0, add)))
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    fn of(range: &str, length: u64) -> Part {
        let mut headers = HeaderMap::new();
        headers.insert(RANGE, HeaderValue::from_str(range).unwrap());
        part(&headers, length)
    }

    #[test]
    fn one_range_is_a_part() {
        assert_eq!(of("bytes=0-1", 11), Part::Bytes(0..2));
        assert_eq!(of("bytes=1-", 11), Part::Bytes(1..11));
        assert_eq!(of("bytes=-1", 11), Part::Bytes(10..11));
        assert_eq!(of("bytes=-99", 11), Part::Bytes(0..11));
        assert_eq!(of("BYTES= 5-99999999999999999999999 ", 11), Part::Bytes(5..11));
        for range in ["bytes=11-", "bytes=11-20", "bytes=-0"] {
            assert_eq!(of(range, 11), Part::Unsatisfiable, "{range}");
        }
        assert_eq!(of("bytes=0-", 0), Part::Unsatisfiable);
        for range in ["bytes=0-1, 3-4", "items=0-1", "bytes=2-1", "bytes=-", "bytes=a-b", "bytes=+1-2", "bytes", ""] {
            assert_eq!(of(range, 11), Part::Whole, "{range}");
        }
    }

    proptest! {
        #[test]
        fn a_part_is_inside_and_not_empty(range in "(bytes=)?[0-9, -]{0,12}", length in 0_u64..30) {
            if let Part::Bytes(bytes) = of(&range, length) {
                prop_assert!(bytes.start < bytes.end && bytes.end <= length);
            }
        }
    }
}
