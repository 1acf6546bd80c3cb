//! Headers as bytes.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue};

/// Writes headers, in an order in which [`take_headers`] reads them.
pub(crate) fn put_headers(to: &mut BytesMut, headers: &HeaderMap) {
    to.put_u32(headers.len() as u32);
    for (name, value) in headers {
        put_text(to, name.as_str().as_bytes());
        put_text(to, value.as_bytes());
    }
}

/// Reads headers from the start of some bytes, or returns `None` if there are none. The values share the memory.
pub(crate) fn take_headers(from: &mut Bytes) -> Option<HeaderMap> {
    let mut headers = HeaderMap::new();
    for _ in 0..from.try_get_u32().ok()? {
        let name = HeaderName::from_bytes(&take_text(from)?).ok()?;
        let value = HeaderValue::from_maybe_shared(take_text(from)?).ok()?;
        headers.try_append(name, value).ok()?;
    }
    Some(headers)
}

/// Writes a text behind its length.
pub(crate) fn put_text(to: &mut BytesMut, text: &[u8]) {
    to.put_u32(text.len() as u32);
    to.put_slice(text);
}

/// Reads a text, or returns `None` if it is cut short.
pub(crate) fn take_text(from: &mut Bytes) -> Option<Bytes> {
    let len = from.try_get_u32().ok()? as usize;
    (len <= from.len()).then(|| from.split_to(len))
}
