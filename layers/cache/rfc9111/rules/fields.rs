//! Which header fields are stored, updated and sent (RFC 9111, section 3).

use http::{
    HeaderMap, HeaderName,
    header::{
        CACHE_CONTROL, CONNECTION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_LOCATION, CONTENT_RANGE, DATE, ETAG,
        EXPIRES, LAST_MODIFIED, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, SET_COOKIE, TE, TRANSFER_ENCODING, UPGRADE,
        VARY,
    },
};

use super::list::{Backslash, elements};

/// Fields about a connection, or a proxy.
const NOT_STORED: [HeaderName; 9] = [
    CONNECTION,
    PROXY_AUTHENTICATE,
    PROXY_AUTHORIZATION,
    TE,
    TRANSFER_ENCODING,
    UPGRADE,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-authentication-info"),
    HeaderName::from_static("proxy-connection"),
];

/// Fields that say how a response may be used. No cache can do without them, so a sender that names them in
/// `Connection` is wrong (RFC 9110, section 7.6.1).
const NEEDED: [HeaderName; 7] = [CACHE_CONTROL, CONTENT_ENCODING, DATE, ETAG, EXPIRES, LAST_MODIFIED, VARY];

/// Returns whether a response cannot be stored without this field.
pub(super) fn is_needed(name: &HeaderName) -> bool {
    NEEDED.contains(name)
}

/// Removes the fields that are not stored (RFC 9111, section 3.1).
pub(crate) fn remove_not_stored(headers: &mut HeaderMap) {
    if headers.contains_key(CONNECTION) {
        let named = elements(headers, &CONNECTION, Backslash::IsLiteral).map(HeaderName::from_bytes);
        for name in named.flatten().filter(|name| !is_needed(name)).collect::<Vec<_>>() {
            headers.remove(name);
        }
    }
    for name in &NOT_STORED {
        headers.remove(name);
    }
}

/// Updates the fields of a stored response by those of a 304 (RFC 9111, section 3.2).
pub(crate) fn update(stored: &mut HeaderMap, not_modified: &HeaderMap) {
    let mut news = not_modified.clone();
    remove_not_stored(&mut news);
    // The content stays as it is, and so do its length and the fields that say how to read it. A cookie is for the
    // caller whose request was validated, not for all those that get the response later.
    for name in [CONTENT_LENGTH, CONTENT_ENCODING, CONTENT_RANGE, SET_COOKIE, HeaderName::from_static("content-md5")] {
        news.remove(name);
    }
    for name in news.keys() {
        stored.remove(name);
    }
    for (name, value) in &news {
        stored.append(name, value.clone());
    }
}

/// Returns the fields of a 304 about a response (RFC 9110, section 15.4.5).
pub(crate) fn of_not_modified(stored: &HeaderMap) -> HeaderMap {
    let mut fields = HeaderMap::new();
    for name in [CACHE_CONTROL, CONTENT_LOCATION, DATE, ETAG, EXPIRES, LAST_MODIFIED, VARY] {
        for value in stored.get_all(&name) {
            fields.append(&name, value.clone());
        }
    }
    fields
}

#[cfg(test)]
mod tests {
    use super::{super::headers, *};

    #[test]
    fn fields_of_a_connection_are_not_stored() {
        let mut stored =
            headers(&[("connection", "A, close"), ("connection", "b"), ("a", "1"), ("b", "2"), ("c", "3")]);
        stored.extend(headers(&[("keep-alive", "x"), ("te", "x"), ("upgrade", "x"), ("proxy-connection", "x")]));
        remove_not_stored(&mut stored);
        assert_eq!(stored, headers(&[("c", "3")]));
    }

    #[test]
    fn a_304_replaces_whole_fields_but_not_those_of_the_content() {
        let mut stored =
            headers(&[("a", "1"), ("a", "2"), ("b", "1"), ("content-length", "7"), ("content-encoding", "br")]);
        let news = [("a", "3"), ("content-length", "0"), ("content-encoding", "gzip"), ("connection", "x"), ("x", "1")];
        let mut news = headers(&news);
        news.extend(headers(&[("set-cookie", "sid=1")]));
        update(&mut stored, &news);
        let expected = [("a", "3"), ("b", "1"), ("content-length", "7"), ("content-encoding", "br")];
        assert_eq!(stored, headers(&expected));
    }
}
