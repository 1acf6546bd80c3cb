//! Which requests a response is for (RFC 9111, section 4.1).

use std::sync::Arc;

use http::{
    HeaderMap, HeaderName,
    header::{ACCEPT_ENCODING, ACCEPT_LANGUAGE, CONTENT_ENCODING, VARY},
};

use super::list::{Backslash, elements};

/// The fields of a request that a response depends on, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Vary(Arc<[HeaderName]>);

impl Vary {
    /// Reads the `Vary` of a response. Returns `None` if no other request may have it.
    ///
    /// A response with a content coding is only for requests with the same `Accept-Encoding`, whether it says so or
    /// not: a caller that accepts no coding could not read it.
    pub(crate) fn read(headers: &HeaderMap) -> Option<Self> {
        let mut names = Vec::new();
        for name in elements(headers, &VARY, Backslash::IsLiteral) {
            names.push(HeaderName::from_bytes(name).ok().filter(|name| name.as_str() != "*")?);
        }
        if headers.contains_key(CONTENT_ENCODING) {
            names.push(ACCEPT_ENCODING);
        }
        names.sort_unstable_by(|a, b| a.as_str().cmp(b.as_str()));
        names.dedup();
        Some(Self(names.into()))
    }

    /// Returns whether the response is for all requests.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the values of a request that select a response. Requests with equal values get the same.
    ///
    /// Spaces around commas and the number of lines do not matter, nor does the case of what has none.
    pub(crate) fn select(&self, headers: &HeaderMap) -> Vec<u8> {
        let mut selected = Vec::with_capacity(64);
        for name in &*self.0 {
            if headers.contains_key(name) {
                // No value contains these bytes.
                selected.push(b'\n');
                let start = selected.len();
                for element in elements(headers, name, Backslash::Escapes) {
                    selected.extend_from_slice(element);
                    selected.push(b',');
                }
                if *name == ACCEPT_LANGUAGE || *name == ACCEPT_ENCODING {
                    selected[start..].make_ascii_lowercase();
                }
            } else {
                selected.push(b'\r');
            }
        }
        selected
    }

    /// Returns the size in memory, about.
    pub(crate) fn weight(&self) -> usize {
        self.0.iter().map(|name| size_of::<HeaderName>() + name.as_str().len()).sum()
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn headers(lines: &[(&str, &str)]) -> HeaderMap {
        let line = |(name, value): &(&str, &str)| {
            (HeaderName::from_bytes(name.as_bytes()).unwrap(), HeaderValue::from_str(value).unwrap())
        };
        lines.iter().map(line).collect()
    }

    fn vary(values: &[&str]) -> Option<Vary> {
        Vary::read(&headers(&values.iter().map(|value| ("vary", *value)).collect::<Vec<_>>()))
    }

    #[test]
    fn a_star_anywhere_is_for_nobody_else() {
        for values in [&["*"][..], &["*, *"], &["*", "*"], &[", *"], &["", "*"], &["*, Foo"], &["Foo, *"], &["(x)"]] {
            assert_eq!(vary(values), None, "{values:?}");
        }
        assert!(vary(&[]).unwrap().is_empty());
        assert!(vary(&["", ","]).unwrap().is_empty());
    }

    #[test]
    fn order_case_and_lines_of_the_names_do_not_matter() {
        assert_eq!(vary(&["Foo, bar"]), vary(&["BAR", "foo", "foo"]));
        assert_ne!(vary(&["Foo"]), vary(&["Foo, bar"]));
    }

    #[test]
    fn a_coding_is_for_those_who_accept_it() {
        let vary = Vary::read(&headers(&[("content-encoding", "gzip")])).unwrap();
        let select = |value| vary.select(&headers(&[("accept-encoding", value)]));
        assert_eq!(select("gzip, br"), select("GZIP ,br"));
        assert_ne!(select("gzip"), vary.select(&HeaderMap::new()));
    }

    #[test]
    fn values_are_compared_as_lists() {
        let vary = vary(&["a, b"]).unwrap();
        let select = |lines: &[(&str, &str)]| vary.select(&headers(lines));
        assert_eq!(select(&[("a", "1,2")]), select(&[("a", " 1 ,  2 "), ("c", "x")]));
        assert_eq!(select(&[("a", "1"), ("a", "2")]), select(&[("a", "1, 2")]));
        for (one, other) in [
            (&[("a", "1")][..], &[("a", "2")][..]),
            (&[("a", "x")], &[("a", "X")]),
            (&[("a", "1")], &[("b", "1")]),
            (&[("a", "")], &[]),
            (&[("a", "1, 2")], &[("a", "2, 1")]),
            (&[("a", "\"1,2\"")], &[("a", "\"1, 2\"")]),
        ] {
            assert_ne!(select(one), select(other), "{one:?} {other:?}");
        }
    }
}
