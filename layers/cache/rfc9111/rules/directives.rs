//! The directives of `Cache-Control` (RFC 9111, section 5.2).

use std::{borrow::Cow, time::Duration};

use http::{
    HeaderMap, HeaderName,
    header::{CACHE_CONTROL, PRAGMA},
};

use super::{
    fields::is_needed,
    list::{Backslash, elements, split, unquoted},
};

/// Stands for every larger number of seconds (RFC 9111, section 1.2.2).
const MOST_SECONDS: u64 = 1 << 31;

/// A directive, with its argument if it has one.
pub(crate) struct Directive<'a> {
    pub(crate) name: Cow<'a, [u8]>,
    pub(crate) argument: Argument<'a>,
}

pub(crate) enum Argument<'a> {
    None,
    Text(Cow<'a, [u8]>),
    Malformed,
}

impl<'a> Directive<'a> {
    fn read(element: &'a [u8]) -> Self {
        let Some(equals) = element.iter().position(|byte| *byte == b'=') else {
            return Self { name: Cow::Borrowed(element), argument: Argument::None };
        };
        let (name, argument) = (&element[..equals], &element[equals + 1..]);
        // Spaces around the equals sign are not allowed. A directive that restricts counts nevertheless.
        let is_spaced = name.trim_ascii_end() != name || argument.trim_ascii_start() != argument;
        let argument = if is_spaced { None } else { unquoted(argument) };
        Self { name: Cow::Borrowed(name.trim_ascii()), argument: argument.map_or(Argument::Malformed, Argument::Text) }
    }

    fn is(&self, name: &str) -> bool {
        self.name.eq_ignore_ascii_case(name.as_bytes())
    }

    /// Returns the seconds of the argument, or `None` if it is not a number.
    fn seconds(&self) -> Option<Duration> {
        let Argument::Text(digits) = &self.argument else { return None };
        seconds(digits)
    }

    /// Returns the fields of the argument, or all if it names one that cannot be left out.
    fn fields(&self) -> Fields {
        match &self.argument {
            Argument::Text(names) if !names.is_empty() => {
                let names = split(names, Backslash::IsLiteral).map(HeaderName::from_bytes);
                let names = names.map(|name| name.ok().filter(|name| !is_needed(name))).collect::<Option<_>>();
                names.map_or(Fields::All, Fields::Named)
            }
            _ => Fields::All,
        }
    }
}

/// Reads a number of seconds. Larger numbers than fit are cut (RFC 9111, section 1.2.2).
pub(crate) fn seconds(digits: &[u8]) -> Option<Duration> {
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let add = |sum: u64, digit: &u8| (sum * 10 + u64::from(digit - b'0')).min(MOST_SECONDS);
    Some(Duration::from_secs(digits.iter().fold(0, add)))
}

/// The header fields that a directive is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Fields {
    All,
    Named(Vec<HeaderName>),
}

impl Fields {
    fn and(before: Option<Self>, other: Self) -> Option<Self> {
        match (before, other) {
            (Some(Self::Named(mut names)), Self::Named(more)) => {
                names.extend(more);
                Some(Self::Named(names))
            }
            (None, other) => Some(other),
            _ => Some(Self::All),
        }
    }
}

/// The directives of a response.
///
/// Of a directive that is there twice, the stricter one counts. A number that is none counts as 0: the response is
/// stale (RFC 9111, section 4.2.1).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct ResponseDirectives {
    pub(crate) no_store: bool,
    pub(crate) no_cache: Option<Fields>,
    pub(crate) private: Option<Fields>,
    pub(crate) public: bool,
    pub(crate) must_revalidate: bool,
    pub(crate) proxy_revalidate: bool,
    pub(crate) must_understand: bool,
    pub(crate) max_age: Option<Duration>,
    pub(crate) s_maxage: Option<Duration>,
    pub(crate) stale_while_revalidate: Option<Duration>,
    pub(crate) stale_if_error: Option<Duration>,
}

impl ResponseDirectives {
    pub(crate) fn read(headers: &HeaderMap) -> Self {
        let mut read = Self::from_iter(elements(headers, &CACHE_CONTROL, Backslash::Escapes).map(Directive::read));
        // Not specified for responses, but senders mean it (RFC 9111, section 5.4).
        if !headers.contains_key(CACHE_CONTROL) && has_pragma_no_cache(headers) {
            read.no_cache = Some(Fields::All);
        }
        read
    }
}

impl<'a> FromIterator<Directive<'a>> for ResponseDirectives {
    fn from_iter<T: IntoIterator<Item = Directive<'a>>>(directives: T) -> Self {
        let mut read = Self::default();
        for directive in directives {
            let strictest = |before: Option<Duration>| {
                let seconds = directive.seconds().unwrap_or_default();
                Some(before.map_or(seconds, |before| before.min(seconds)))
            };
            match () {
                () if directive.is("no-store") => read.no_store = true,
                () if directive.is("no-cache") => read.no_cache = Fields::and(read.no_cache.take(), directive.fields()),
                () if directive.is("private") => read.private = Fields::and(read.private.take(), directive.fields()),
                () if directive.is("public") => read.public = true,
                () if directive.is("must-revalidate") => read.must_revalidate = true,
                () if directive.is("proxy-revalidate") => read.proxy_revalidate = true,
                () if directive.is("must-understand") => read.must_understand = true,
                () if directive.is("max-age") => read.max_age = strictest(read.max_age),
                () if directive.is("s-maxage") => read.s_maxage = strictest(read.s_maxage),
                () if directive.is("stale-while-revalidate") => {
                    read.stale_while_revalidate = strictest(read.stale_while_revalidate);
                }
                () if directive.is("stale-if-error") => read.stale_if_error = strictest(read.stale_if_error),
                // `no-transform` holds by itself, `immutable` is about private caches, others are unknown.
                () => {}
            }
        }
        read
    }
}

/// The directives of a request.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct RequestDirectives {
    pub(crate) no_store: bool,
    pub(crate) no_cache: bool,
    pub(crate) only_if_cached: bool,
    pub(crate) max_age: Option<Duration>,
    pub(crate) min_fresh: Option<Duration>,
    /// How stale a response may be. [`Duration::MAX`] if the request does not say.
    pub(crate) max_stale: Option<Duration>,
    pub(crate) stale_if_error: Option<Duration>,
}

impl RequestDirectives {
    pub(crate) fn read(headers: &HeaderMap) -> Self {
        let mut read = Self::default();
        if !headers.contains_key(CACHE_CONTROL) {
            read.no_cache = has_pragma_no_cache(headers);
            return read;
        }
        for directive in elements(headers, &CACHE_CONTROL, Backslash::Escapes).map(Directive::read) {
            match () {
                () if directive.is("no-store") => read.no_store = true,
                () if directive.is("no-cache") => read.no_cache = true,
                () if directive.is("only-if-cached") => read.only_if_cached = true,
                () if directive.is("max-age") => {
                    let seconds = directive.seconds().unwrap_or_default();
                    read.max_age = Some(read.max_age.map_or(seconds, |before| before.min(seconds)));
                }
                () if directive.is("min-fresh") => read.min_fresh = read.min_fresh.max(directive.seconds()),
                () if directive.is("max-stale") => {
                    let any = matches!(directive.argument, Argument::None).then_some(Duration::MAX);
                    read.max_stale = any.or_else(|| directive.seconds());
                }
                () if directive.is("stale-if-error") => read.stale_if_error = directive.seconds(),
                () => {}
            }
        }
        read
    }
}

fn has_pragma_no_cache(headers: &HeaderMap) -> bool {
    let mut directives = elements(headers, &PRAGMA, Backslash::Escapes).map(Directive::read);
    directives.any(|directive| directive.is("no-cache"))
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    fn headers(lines: &[&str]) -> HeaderMap {
        lines.iter().map(|line| (CACHE_CONTROL, HeaderValue::from_str(line).unwrap())).collect()
    }

    fn response(lines: &[&str]) -> ResponseDirectives {
        ResponseDirectives::read(&headers(lines))
    }

    fn max_age(line: &str) -> Option<u64> {
        response(&[line]).max_age.map(|age| age.as_secs())
    }

    #[test]
    fn a_max_age_is_read_as_a_strict_reader_would() {
        for (line, expected) in [
            ("max-age=3600", Some(3600)),
            ("MaX-aGe=003600", Some(3600)),
            ("foobar, max-age=3600", Some(3600)),
            (r#"max-age="3600""#, Some(3600)),
            (r#"ext="max-age=3600", max-age=1"#, Some(1)),
            (r#"max-age=1, ext="max-age=3600""#, Some(1)),
            ("max-age=1800, max-age=1", Some(1)),
            ("max-age=1, max-age=1800", Some(1)),
            ("max-age=99999999999999999999", Some(MOST_SECONDS)),
            ("max-age", Some(0)),
            ("max-age=", Some(0)),
            ("max-age=-3600", Some(0)),
            ("max-age='3600'", Some(0)),
            ("max-age=3600.5", Some(0)),
            ("max-age=a100", Some(0)),
            ("max-age=100a", Some(0)),
            ("max-age =3600", Some(0)),
            ("max-age= 3600", Some(0)),
            ("x-max-age=3600", None),
            ("", None),
        ] {
            assert_eq!(max_age(line), expected, "{line}");
        }
        assert_eq!(response(&["max-age=1800", "max-age=1"]).max_age, Some(Duration::from_secs(1)));
    }

    #[test]
    fn a_directive_that_restricts_counts_however_it_is_written() {
        assert!(response(&["max-age=60", "No-Store"]).no_store);
        assert!(response(&["no-store =1"]).no_store);
        assert!(response(&[r#"ext="open, no-store"#]).no_store);
        assert_eq!(response(&["no-cache"]).no_cache, Some(Fields::All));
        assert_eq!(response(&["private=,"]).private, Some(Fields::All));
        assert_eq!(response(&[r#"private="""#]).private, Some(Fields::All));
        assert_eq!(response(&[r#"private="not a name""#]).private, Some(Fields::All));
        assert_eq!(response(&[r#"no-cache="a, Vary""#]).no_cache, Some(Fields::All));
        let named = Fields::Named(vec![HeaderName::from_static("a"), HeaderName::from_static("set-cookie")]);
        assert_eq!(response(&[r#"no-cache="A, Set-Cookie""#]).no_cache, Some(named.clone()));
        assert_eq!(response(&[r#"no-cache="a""#, "no-cache=set-cookie"]).no_cache, Some(named));
        assert_eq!(response(&[r#"no-cache="a", no-cache"#]).no_cache, Some(Fields::All));
    }

    #[test]
    fn pragma_counts_only_without_cache_control() {
        let pragma = |more: &[&str]| {
            let mut headers = headers(more);
            headers.insert(PRAGMA, HeaderValue::from_static("x, No-Cache"));
            (RequestDirectives::read(&headers).no_cache, ResponseDirectives::read(&headers).no_cache.is_some())
        };
        assert_eq!(pragma(&[]), (true, true));
        assert_eq!(pragma(&["max-age=60"]), (false, false));
    }

    #[test]
    fn a_request_says_how_fresh_and_how_stale() {
        let read = |line| RequestDirectives::read(&headers(&[line]));
        let some = |seconds| Some(Duration::from_secs(seconds));
        let all = read("max-age=5, min-fresh=6, max-stale=7, stale-if-error=8, no-store, no-cache, only-if-cached");
        let expected = RequestDirectives {
            no_store: true,
            no_cache: true,
            only_if_cached: true,
            max_age: some(5),
            min_fresh: some(6),
            max_stale: some(7),
            stale_if_error: some(8),
        };
        assert_eq!(all, expected);
        assert_eq!(read("max-stale").max_stale, Some(Duration::MAX));
        assert_eq!(read("max-stale=x").max_stale, None);
        assert_eq!(read("max-age=x").max_age, some(0));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read(line in proptest::collection::vec(prop_oneof![9 => 0x20_u8..0x7f, 1 => 0x80_u8..=0xff], 0..60)) {
            let mut headers = HeaderMap::new();
            headers.insert(CACHE_CONTROL, HeaderValue::from_bytes(&line).unwrap());
            let _ = (ResponseDirectives::read(&headers), RequestDirectives::read(&headers));
        }

        /// The meaning of a line does not depend on the order of its directives, or on their lines.
        #[test]
        fn the_order_and_the_lines_do_not_matter(
            mut directives in proptest::collection::vec(
                prop_oneof!["max-age=[0-9]{1,3}", "s-maxage=\"[0-9]{1,3}\"", "no-store|public|private|no-cache", "x=\"[a,=]{0,5}\""],
                0..6,
            ),
        ) {
            let line = response(&[&directives.join(", ")]);
            directives.reverse();
            let lines: Vec<_> = directives.iter().map(String::as_str).collect();
            prop_assert_eq!(line, response(&lines));
        }
    }
}
