//! Request ids: taken from the request if valid, otherwise generated.

use std::fmt;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};

use super::insert_absent;

/// The longest valid id: three times a UUID, and still short enough for a line in a log.
const LONGEST: usize = 128;

const DIGITS: &[u8; 16] = b"0123456789abcdef";

/// The id of a request, and the name of its header.
///
/// An incoming id is valid if it has 1 to 128 visible ASCII characters. Without spaces and control characters it stays
/// a single word on a single line in any log. An invalid id is never passed on or echoed.
///
/// An id is neither secret nor proof of anything: callers choose their own, and generated ids can be guessed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestIdHeader {
    name: HeaderName,
    value: HeaderValue,
}

impl RequestIdHeader {
    /// Returns the id in the header `name`, if it is valid. If there are several such headers, the first one counts.
    #[must_use]
    pub fn read(headers: &HeaderMap, name: &HeaderName) -> Option<Self> {
        let value = headers.get(name)?;
        let bytes = value.as_bytes();
        let sane = (1..=LONGEST).contains(&bytes.len()) && bytes.iter().all(u8::is_ascii_graphic);
        sane.then(|| Self { name: name.clone(), value: value.clone() })
    }

    /// Generates an id: 32 hexadecimal digits, 128 bits from a fast generator that is not cryptographic. Allocates
    /// once.
    #[must_use]
    pub fn random(name: HeaderName) -> Self {
        let mut digits = [0; 32];
        for (pair, byte) in digits.chunks_exact_mut(2).zip(fastrand::u128(..).to_be_bytes()) {
            pair.copy_from_slice(&[DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]]);
        }
        // Digits are always a valid header value. The fallback is never used, and would be a valid id too.
        let value = HeaderValue::from_maybe_shared(Bytes::from_owner(digits));
        Self { name, value: value.unwrap_or_else(|_| HeaderValue::from(fastrand::u64(..))) }
    }

    /// Returns the id.
    #[must_use]
    pub fn as_str(&self) -> &str {
        self.value.to_str().unwrap_or_default()
    }

    /// Returns the name of the id's header.
    #[must_use]
    pub fn name(&self) -> &HeaderName {
        &self.name
    }

    /// Returns the id as a header value.
    #[must_use]
    pub fn value(&self) -> &HeaderValue {
        &self.value
    }

    /// Writes the id into headers, unless there already is a header of that name.
    pub fn write(&self, headers: &mut HeaderMap) {
        insert_absent(headers, &self.name, &self.value);
    }
}

impl fmt::Display for RequestIdHeader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    const NAME: HeaderName = HeaderName::from_static("x-request-id");

    fn read(value: &[u8]) -> Option<String> {
        let mut headers = HeaderMap::new();
        headers.insert(NAME, HeaderValue::from_bytes(value).unwrap());
        RequestIdHeader::read(&headers, &NAME).map(|id| id.to_string())
    }

    #[test]
    fn what_is_one_visible_word_is_kept() {
        for id in ["1", "order-17", "a/b:c;d=\"e\"", "5f8c1b1e-7f4a-4c56-9c8e-0d2b6f6c1a11", &"x".repeat(LONGEST)] {
            assert_eq!(read(id.as_bytes()).as_deref(), Some(id));
        }
    }

    #[test]
    fn anything_else_is_no_id() {
        let too_long = "x".repeat(LONGEST + 1);
        for id in [b"".as_slice(), b" ", b"two words", b"a\tb", b"caf\xc3\xa9", b"\xff", too_long.as_bytes()] {
            assert_eq!(read(id), None, "{id:?}");
        }
        assert_eq!(RequestIdHeader::read(&HeaderMap::new(), &NAME), None);
    }

    #[test]
    fn the_first_of_several_counts() {
        let mut headers = HeaderMap::new();
        headers.append(NAME, HeaderValue::from_static("first"));
        headers.append(NAME, HeaderValue::from_static("second"));
        assert_eq!(RequestIdHeader::read(&headers, &NAME).unwrap().as_str(), "first");
    }

    #[test]
    fn new_ids_differ_and_can_be_taken_over() {
        let ids: HashSet<_> = (0..1000).map(|_| RequestIdHeader::random(NAME).to_string()).collect();
        assert_eq!(ids.len(), 1000);
        for id in ids {
            assert!(id.len() == 32 && id.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')), "{id}");
            assert_eq!(read(id.as_bytes()), Some(id));
        }
    }

    proptest! {
        #[test]
        fn whatever_is_taken_over_is_one_visible_word(value in proptest::collection::vec(any::<u8>(), 0..200)) {
            let Ok(header) = HeaderValue::from_bytes(&value) else { return Ok(()) };
            let headers = HeaderMap::from_iter([(NAME, header)]);
            match RequestIdHeader::read(&headers, &NAME) {
                Some(id) => {
                    prop_assert_eq!(id.as_str().as_bytes(), value.as_slice());
                    prop_assert!(id.as_str().chars().all(|char| ('!'..='~').contains(&char)));
                    let mut written = HeaderMap::new();
                    id.write(&mut written);
                    prop_assert_eq!(written, headers);
                }
                None => prop_assert!(value.is_empty() || value.len() > 128 || value.iter().any(|byte| !(33..127).contains(byte))),
            }
        }
    }
}
