//! Which requests a response is for (RFC 9111, section 4.1).

use std::{fmt, sync::Arc};

use http::{
    HeaderMap, HeaderName, HeaderValue,
    header::{
        ACCEPT, ACCEPT_CHARSET, ACCEPT_ENCODING, ACCEPT_LANGUAGE, AUTHORIZATION, CONTENT_ENCODING, COOKIE,
        PROXY_AUTHORIZATION, VARY,
    },
};

use super::list::{Backslash, elements};

/// Fields that are lists by their definition. A value of any other field is its exact text.
const LISTS: [HeaderName; 4] = [ACCEPT, ACCEPT_CHARSET, ACCEPT_ENCODING, ACCEPT_LANGUAGE];

/// How many different `Vary` fields of one resource are known at a time. Most resources have one.
pub(crate) const MOST: usize = 4;

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

    /// Returns the most recent `Vary` fields of a resource with this one as the first.
    pub(crate) fn before(&self, others: &[Self]) -> Vec<Self> {
        let others = others.iter().filter(|other| *other != self).take(MOST - 1);
        [self].into_iter().chain(others).cloned().collect()
    }

    /// Reads the output of [`Display`](fmt::Display).
    pub(crate) fn parse(names: &[u8]) -> Option<Self> {
        let value = HeaderValue::from_bytes(names).ok()?;
        Self::read(&HeaderMap::from_iter([(VARY, value)]))
    }

    /// Returns whether a value of the request that selects the response is secret: one of a login, or a sensitive one.
    pub(crate) fn selects_by_secret(&self, headers: &HeaderMap) -> bool {
        let is_secret = |name| headers.get_all(name).iter().any(HeaderValue::is_sensitive);
        self.0.iter().any(|name| [AUTHORIZATION, COOKIE, PROXY_AUTHORIZATION].contains(name) || is_secret(name))
    }

    /// Returns whether the response is for all requests.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the values of a request that select a response. Requests with equal values get the same.
    ///
    /// Spaces around commas and the number of lines do not matter. In fields that negotiate, neither do empty elements
    /// and the case of tokens.
    pub(crate) fn select(&self, headers: &HeaderMap) -> Vec<u8> {
        let mut selected = Vec::with_capacity(64);
        for name in &*self.0 {
            // No value contains these bytes.
            if !headers.contains_key(name) {
                selected.push(b'\r');
                continue;
            }
            selected.push(b'\n');
            let start = selected.len();
            if !LISTS.contains(name) {
                push_lines(&mut selected, headers, name);
                continue;
            }
            for element in elements(headers, name, Backslash::Escapes) {
                selected.extend_from_slice(element);
                selected.push(b',');
            }
            // A parameter of a media type may depend on its case.
            if *name != ACCEPT {
                selected[start..].make_ascii_lowercase();
            }
        }
        selected
    }

    /// Returns the size in memory, about.
    pub(crate) fn weight(&self) -> usize {
        self.0.iter().map(|name| size_of::<HeaderName>() + name.as_str().len()).sum()
    }
}

impl fmt::Display for Vary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|name| write!(f, "{name},"))
    }
}

/// Adds the lines of a field, joined by commas, without the spaces around commas outside of quotes. It drops nothing
/// else: for a server that does not read the field as a list, `,a,` is another value than `a`.
fn push_lines(selected: &mut Vec<u8>, headers: &HeaderMap, name: &HeaderName) {
    let start = selected.len();
    for (n, line) in headers.get_all(name).iter().enumerate() {
        if n > 0 {
            selected.push(b',');
        }
        let (mut rest, mut is_quoted) = (line.as_bytes().trim_ascii(), false);
        while let Some((byte, after)) = rest.split_first() {
            rest = after;
            match byte {
                b'"' => is_quoted = !is_quoted,
                b'\\' if is_quoted => {
                    selected.push(*byte);
                    let Some((escaped, after)) = rest.split_first() else { break };
                    selected.push(*escaped);
                    rest = after;
                    continue;
                }
                b',' if !is_quoted => {
                    let spaces = selected[start..].iter().rev().take_while(|byte| byte.is_ascii_whitespace()).count();
                    selected.truncate(selected.len() - spaces);
                    rest = rest.trim_ascii_start();
                }
                _ => {}
            }
            selected.push(*byte);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::headers, *};

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
    fn fields_that_negotiate_are_compared_as_lists() {
        let select = |name: &str, value: &str| vary(&[name]).unwrap().select(&headers(&[(name, value)]));
        for name in ["accept", "accept-charset", "accept-encoding", "accept-language"] {
            assert_eq!(select(name, "x , ,y,"), select(name, "x,y"), "{name}");
            assert_ne!(select(name, "x, y"), select(name, "y, x"), "{name}");
            assert_eq!(select(name, "x") == select(name, "X"), name != "accept", "{name}");
        }
    }

    #[test]
    fn other_values_are_compared_as_texts() {
        let vary = vary(&["a, b"]).unwrap();
        let select = |lines: &[(&str, &str)]| vary.select(&headers(lines));
        assert_eq!(select(&[("a", "1,2")]), select(&[("a", " 1 ,  2 "), ("c", "x")]));
        assert_eq!(select(&[("a", "1"), ("a", "2")]), select(&[("a", "1, 2")]));
        assert_eq!(select(&[("a", "\" \" ,2 "), ("a", "")]), select(&[("a", "\" \", 2,")]));
        for (one, other) in [
            (&[("a", "1")][..], &[("a", "2")][..]),
            (&[("a", "x")], &[("a", "X")]),
            (&[("a", "1")], &[("b", "1")]),
            (&[("a", "")], &[]),
            (&[("a", "1, 2")], &[("a", "2, 1")]),
            (&[("a", "1 2")], &[("a", "1  2")]),
            (&[("a", ",1,")], &[("a", "1")]),
            (&[("a", "1,,2")], &[("a", "1,2")]),
            (&[("a", "1"), ("a", "")], &[("a", "1")]),
            (&[("a", "\"1,2\"")], &[("a", "\"1, 2\"")]),
            (&[("a", "\"1\\\" ,2\"")], &[("a", "\"1\\\",2\"")]),
            (&[("a", "\"1 ,2")], &[("a", "\"1,2")]),
        ] {
            assert_ne!(select(one), select(other), "{one:?} {other:?}");
        }
    }
}
