//! What binds a request to its stored response: the caller and the key, and a fingerprint.

use std::fmt;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, request::Parts};

/// The header with the client's key.
pub(super) const HEADER: &str = "idempotency-key";

/// The longest key, in bytes: Stripe's limit.
const MAX_LEN: usize = 255;

/// Why a request has no key that could be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NoKey {
    Absent,
    /// It is empty, too long, no text, or there are several.
    Malformed,
}

/// Returns the key that the client gave this request.
pub(super) fn client_key(headers: &HeaderMap) -> Result<&str, NoKey> {
    let mut values = headers.get_all(HEADER).iter();
    let value = values.next().ok_or(NoKey::Absent)?;
    let text = HeaderValue::to_str(value).map_err(|_| NoKey::Malformed)?.trim();
    let is_valid = values.next().is_none() && (1..=MAX_LEN).contains(&text.len());
    if is_valid { Ok(text) } else { Err(NoKey::Malformed) }
}

/// Returns the key in the store. The caller's length separates the two parts, so that no caller can choose a key that
/// is another caller's.
pub(super) fn store_key(caller: &str, key: &str) -> String {
    format!("idempotency:{}:{caller}:{key}", caller.len())
}

/// The fingerprint of a request: its method, its path and query, its `Content-Type`, and its body.
///
/// It finds mistakes of a client. A client that makes two of its own requests collide harms only itself, because the
/// caller is a part of the key. So the hash need not be a cryptographic one, but all processes and all versions must
/// compute the same: 128-bit FNV-1a (RFC 9923).
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Fingerprint(pub(super) u128);

impl Fingerprint {
    pub(super) fn of(request: &Parts, body: &Bytes) -> Self {
        let path = request.uri.path_and_query().map_or("", |path| path.as_str());
        let content_type = request.headers.get(http::header::CONTENT_TYPE).map_or(&b""[..], HeaderValue::as_bytes);
        let mut hash = Self(0x6c62_272e_07bb_0142_62b8_2175_6295_c58d);
        for part in [request.method.as_str().as_bytes(), path.as_bytes(), content_type, body] {
            // The length first, or the end of a part and the start of the next one could change places.
            hash.add(&(part.len() as u64).to_be_bytes());
            hash.add(part);
        }
        hash
    }

    fn add(&mut self, bytes: &[u8]) {
        const PRIME: u128 = (1 << 88) + 0x13b;
        for byte in bytes {
            self.0 = (self.0 ^ u128::from(*byte)).wrapping_mul(PRIME);
        }
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

#[cfg(all(test, not(ziggurat_loom)))]
mod tests {
    use http::{Method, Request};

    use super::*;

    fn headers(values: &[&[u8]]) -> HeaderMap {
        values.iter().map(|value| (HEADER.parse().unwrap(), HeaderValue::from_bytes(value).unwrap())).collect()
    }

    #[test]
    fn a_key_is_one_header_of_up_to_255_characters() {
        assert_eq!(client_key(&headers(&[])), Err(NoKey::Absent));
        assert_eq!(client_key(&headers(&[b"\"order 17\""])), Ok("\"order 17\""));
        assert_eq!(client_key(&headers(&[&[b'k'; 255]])), Ok(&*"k".repeat(255)));
        for malformed in [&[&b""[..]][..], &[b"  "], &[&[b'k'; 256]], &[b"a", b"a"], &[b"\xff"]] {
            assert_eq!(client_key(&headers(malformed)), Err(NoKey::Malformed));
        }
    }

    #[test]
    fn no_two_callers_have_a_key_in_common() {
        assert_ne!(store_key("a", "b:c"), store_key("a:b", "c"));
        assert_ne!(store_key("1:a", "b"), store_key("1", "a:b"));
    }

    #[test]
    fn each_part_of_a_request_is_in_its_fingerprint() {
        let print = |method: Method, uri: &str, content_type: &str, body: &'static str| {
            let request = Request::builder().method(method).uri(uri).header("content-type", content_type);
            Fingerprint::of(&request.body(()).unwrap().into_parts().0, &Bytes::from_static(body.as_bytes()))
        };
        let first = print(Method::POST, "/orders?a=1", "text/plain", "book");
        assert_eq!(first, print(Method::POST, "http://host/orders?a=1", "text/plain", "book"));
        for other in [
            print(Method::PATCH, "/orders?a=1", "text/plain", "book"),
            print(Method::POST, "/orders?a=2", "text/plain", "book"),
            print(Method::POST, "/orders?a=1", "text/html", "book"),
            print(Method::POST, "/orders?a=1", "text/plain", "books"),
            print(Method::POST, "/orders?a=1", "text/plainb", "ook"),
        ] {
            assert_ne!(first, other);
        }
    }

    /// The values of the test vectors of RFC 9923.
    #[test]
    fn the_hash_is_fnv_1a() {
        let hash = |text: &str| {
            let mut hash = Fingerprint(0x6c62_272e_07bb_0142_62b8_2175_6295_c58d);
            hash.add(text.as_bytes());
            hash.0
        };
        assert_eq!(hash("a"), 0xd228_cb69_6f1a_8caf_7891_2b70_4e4a_8964);
        assert_eq!(hash("foobar"), 0x343e_1662_793c_64bf_6f0d_3597_ba44_6f18);
    }
}
