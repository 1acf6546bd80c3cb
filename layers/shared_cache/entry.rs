//! The value of a key in the store: a response, or the mark that it was removed.
//!
//! A call that misses remembers the value that it has found, and stores its response only in place of that: if the
//! response was removed meanwhile, the mark of the removal is there instead, and the response of the call may be older
//! than the removal. Each mark is another one, so that two removals differ.

use bytes::{BufMut, Bytes, BytesMut};

/// The first byte of a value.
const REMOVED: u8 = 0;
const RESPONSE: u8 = 1;

/// A value, without its first byte.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Value {
    Removed,
    Response(Bytes),
    /// The value of another program, or of another version of this one.
    Unknown,
}

impl Value {
    pub(super) fn read(bytes: &Bytes) -> Self {
        match bytes.first() {
            Some(&REMOVED) => Self::Removed,
            Some(&RESPONSE) => Self::Response(bytes.slice(1..)),
            _ => Self::Unknown,
        }
    }
}

/// Returns the value of a response.
pub(super) fn response(encoded: &[u8]) -> Bytes {
    let mut value = BytesMut::with_capacity(1 + encoded.len());
    value.put_u8(RESPONSE);
    value.put(encoded);
    value.freeze()
}

/// Returns the mark of a removal.
pub(super) fn removed() -> Bytes {
    let mut value = BytesMut::with_capacity(17);
    value.put_u8(REMOVED);
    value.put_u128(fastrand::u128(..));
    value.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Shows: M2
    #[test]
    fn a_value_is_read_as_it_was_written() {
        assert_eq!(Value::read(&response(b"")), Value::Response(Bytes::new()));
        assert_eq!(Value::read(&response(b"\0")), Value::Response("\0".into()));
        assert_eq!(Value::read(&removed()), Value::Removed);
        assert_ne!(removed(), removed());
        assert_eq!((Value::read(&"".into()), Value::read(&"{}".into())), (Value::Unknown, Value::Unknown));
    }
}
