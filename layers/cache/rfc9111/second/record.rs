//! The record of a resource in the store: what its responses depend on, and the name under which they are found.
//!
//! A copy of a response has the number of the record. An invalidation replaces the record by one with another number,
//! which is one write for all variants, and no copy with the old number is served any more, even one written later.

use std::{
    hash::{BuildHasher, RandomState},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use http::HeaderMap;

use super::super::{
    super::http::HttpKey,
    rules::{MOST_VARY, Vary},
};
use crate::store::{put_text, take_text};

/// The version of the format. A process that does not know it replaces the record.
const VERSION: u8 = 1;

#[derive(Debug, Clone, PartialEq)]
pub(super) struct Record {
    /// No other record has it, and only copies with it are served.
    pub(super) number: u128,
    /// When it expires, in milliseconds since 1970.
    until: u64,
    /// The most recent is the first. None after an invalidation.
    pub(super) vary: Vec<Vary>,
}

impl Record {
    /// Makes the record of a resource that has no responses.
    pub(super) fn empty() -> Self {
        // Not from a generator that the program can seed: an invalidation must have another number.
        let half = || u128::from(RandomState::new().hash_one(0));
        Self { number: half() << 64 | half(), until: 0, vary: Vec::new() }
    }

    /// Returns whether responses with this `Vary` are found until this time, and before those with another one.
    pub(super) fn knows(&self, vary: &Vary, until: SystemTime) -> bool {
        self.vary.first() == Some(vary) && self.until >= millis(until)
    }

    /// Returns the record after a response with this `Vary`, until this time at least.
    pub(super) fn with(&self, vary: &Vary, until: SystemTime) -> Self {
        Self { number: self.number, until: millis(until).max(self.until), vary: vary.before(&self.vary) }
    }

    /// Returns how long the record is in the store.
    pub(super) fn ttl(&self, now: SystemTime) -> Duration {
        Duration::from_millis(self.until.saturating_sub(millis(now)))
    }

    pub(super) fn encode(&self) -> Bytes {
        let mut to = BytesMut::new();
        to.put_u8(VERSION);
        to.put_u128(self.number);
        to.put_u64(self.until);
        for vary in &self.vary {
            put_text(&mut to, vary.to_string().as_bytes());
        }
        to.freeze()
    }

    /// Returns `None` if the bytes are no record, or that of another version.
    pub(super) fn decode(mut from: Bytes) -> Option<Self> {
        if from.try_get_u8().ok()? != VERSION {
            return None;
        }
        let (number, until) = (from.try_get_u128().ok()?, from.try_get_u64().ok()?);
        let mut vary = Vec::new();
        while !from.is_empty() {
            vary.push(Vary::parse(&take_text(&mut from)?)?);
        }
        (vary.len() <= MOST_VARY).then_some(Self { number, until, vary })
    }
}

/// Returns the identity of a response: the URI of its request, and the values of the fields that `vary` names.
pub(super) fn identity(key: &str, vary: &Vary, headers: &HeaderMap) -> Vec<u8> {
    let mut identity = BytesMut::new();
    put_text(&mut identity, key.as_bytes());
    put_text(&mut identity, vary.to_string().as_bytes());
    identity.put_slice(&vary.select(headers));
    identity.into()
}

/// The longest name of a resource that is not hashed, so that a store that limits the length of a key takes every one.
const LONGEST_NAME: usize = 200;

/// Returns the name in the store of the record of a resource. Another one may have the same name, if it is long: an
/// invalidation of one is then one of both.
pub(super) fn resource(key: &HttpKey) -> String {
    let name = key.resource();
    if name.len() <= LONGEST_NAME { name } else { format!("//{}", name_of(name.as_bytes())) }
}

/// Returns the name in the store of the response with this identity. Another one may have the same name.
///
/// All processes have to agree on it, and so the hash has no secret: a caller that finds another identity with the same
/// name can replace the copy, but is not served it.
pub(super) fn name_of(identity: &[u8]) -> String {
    // FNV-1a, of 128 bits.
    const OFFSET: u128 = 0x6c62272e07bb014262b821756295c58d;
    const PRIME: u128 = 0x0000000001000000000000000000013b;
    let hash = identity.iter().fold(OFFSET, |hash, byte| (hash ^ u128::from(*byte)).wrapping_mul(PRIME));
    format!("{hash:032x}")
}

pub(super) fn millis(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::{super::super::rules::headers, *};

    fn vary(names: &str) -> Vary {
        Vary::read(&headers(&[("vary", names)])).unwrap()
    }

    fn at(millis: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_millis(millis)
    }

    #[test]
    fn a_record_knows_the_most_recent_of_each_vary() {
        let empty = Record::empty();
        assert_ne!(empty.number, Record::empty().number);
        let first = empty.with(&vary("a"), at(5));
        assert_eq!((first.number, first.until, first.vary.len()), (empty.number, 5, 1));
        assert!(first.knows(&vary("A"), at(5)) && !first.knows(&vary("a"), at(6)) && !first.knows(&vary("b"), at(5)));
        let second = first.with(&vary("b, c"), at(1));
        assert_eq!((second.until, &second.vary[..]), (5, &[vary("b, c"), vary("a")][..]));
        assert!(second.knows(&vary("c, b"), at(5)) && !second.knows(&vary("a"), at(5)));
        assert_eq!(second.with(&vary("a"), at(6)).vary, [vary("a"), vary("b, c")]);
        let many = ["d", "e", "f"].iter().fold(second, |record, name| record.with(&vary(name), at(5)));
        assert_eq!(many.vary, ["f", "e", "d", "b, c"].map(vary));
        assert_eq!((many.ttl(at(3)), many.ttl(at(9))), (Duration::from_millis(2), Duration::ZERO));
    }

    #[test]
    fn no_resource_has_a_long_name() {
        let of = |path: &str| resource(&HttpKey::from(format!("http://a.test/{path}").parse::<http::Uri>().unwrap()));
        assert_eq!(of("b?c"), "//a.test/b?c");
        let (one, other) = ("b".repeat(191), "c".repeat(60_000));
        assert_eq!(of(&one), format!("//a.test/{one}"));
        assert_eq!([of(&format!("{one}b")).len(), of(&other).len()], [34, 34]);
        assert_ne!(of(&format!("{one}b")), of(&other));
    }

    #[test]
    fn requests_that_a_response_distinguishes_have_other_identities() {
        let asked = headers(&[("a", "1"), ("b", "2")]);
        let of = |key, names: &str| identity(key, &vary(names), &asked);
        let all =
            [of("//x/", ""), of("//x/", "a"), of("//x/", "b"), of("//x/", "a, b"), of("//y/", "a"), of("//x/", "c")];
        for (n, one) in all.iter().enumerate() {
            assert!(!all[n + 1..].contains(one), "{n}");
        }
        assert_eq!(of("//x/", "a"), identity("//x/", &vary("a"), &headers(&[("a", "1"), ("b", "3")])));
    }

    proptest! {
        #[test]
        fn a_record_is_read_as_it_was_written(number in any::<u128>(), until in any::<u64>(), names in vec("[a-c]{0,2}", 0..=4)) {
            let record = Record { number, until, vary: names.iter().map(|names| vary(names)).collect() };
            prop_assert_eq!(Record::decode(record.encode()), Some(record));
        }

        #[test]
        fn other_bytes_are_read_without_a_panic(cut in 0..99_usize, noise in vec(any::<u8>(), 0..99)) {
            let whole = Record { number: 7, until: 7, vary: vec![vary("a"), vary("b")] }.encode();
            let _ = Record::decode([&whole[..cut.min(whole.len())], &noise].concat().into());
            let _ = Record::decode(noise.into());
        }
    }
}
