//! Directives for a class of caches, such as `CDN-Cache-Control` (RFC 9213).
//!
//! Such a field is a dictionary of structured fields (RFC 9651). Unlike `Cache-Control` it is either well-formed, and
//! then counts alone, or not, and then counts as absent.

use std::borrow::Cow;

use http::{HeaderMap, HeaderName};

use super::directives::{Argument, Directive, ResponseDirectives};

/// Reads the directives of this field, or returns `None` if it is absent, empty or malformed.
pub(crate) fn read(headers: &HeaderMap, name: &HeaderName) -> Option<ResponseDirectives> {
    let mut directives = Vec::new();
    for (n, line) in headers.get_all(name).iter().enumerate() {
        let mut reader = Reader(line.as_bytes());
        reader.dictionary(&mut directives, n > 0)?;
    }
    (!directives.is_empty()).then(|| directives.into_iter().collect())
}

/// The bytes that are left. Each method removes the bytes that it reads, or returns `None` if it is not there.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn dictionary(&mut self, directives: &mut Vec<Directive<'a>>, may_be_empty: bool) -> Option<()> {
        self.skip(b" \t");
        if self.0.is_empty() {
            return may_be_empty.then_some(());
        }
        loop {
            if let Some(directive) = self.member()? {
                directives.push(directive);
            }
            self.skip(b" \t");
            if self.0.is_empty() {
                return Some(());
            }
            self.byte(b',')?;
            self.skip(b" \t");
        }
    }

    /// A member, or nothing if it is false.
    fn member(&mut self) -> Option<Option<Directive<'a>>> {
        let name = Cow::Borrowed(self.key()?);
        let has_value = self.byte(b'=').is_some();
        let is_number = has_value && self.0.first().is_some_and(u8::is_ascii_digit);
        let argument = if has_value { self.value()? } else { Some(Argument::None) };
        self.parameters()?;
        let Some(argument) = argument else { return Some(None) };
        match &*name {
            b"max-age" | b"s-maxage" | b"stale-while-revalidate" | b"stale-if-error" if !is_number => None,
            _ => Some(Some(Directive { name, argument })),
        }
    }

    fn key(&mut self) -> Option<&'a [u8]> {
        self.0.first().filter(|first| first.is_ascii_lowercase() || **first == b'*')?;
        Some(self.take(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"_-.*".contains(&byte)))
    }

    /// A value of any type. `None` inside is the boolean false.
    fn value(&mut self) -> Option<Option<Argument<'a>>> {
        let text = match self.0.first()? {
            b'0'..=b'9' | b'-' => self.number()?,
            b'"' => return Some(Some(Argument::Text(Cow::Owned(self.string()?)))),
            b'?' => {
                let is_true = self.0.get(1) == Some(&b'1');
                (is_true || self.0.get(1) == Some(&b'0')).then(|| self.0 = &self.0[2..])?;
                return Some(is_true.then_some(Argument::None));
            }
            b':' => {
                self.byte(b':')?;
                let encoded = self.take(|byte| byte.is_ascii_alphanumeric() || b"+/=".contains(&byte));
                self.byte(b':')?;
                encoded
            }
            b'(' => {
                self.list()?;
                return Some(Some(Argument::Malformed));
            }
            b'A'..=b'Z' | b'a'..=b'z' | b'*' => {
                self.take(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~:/".contains(&byte))
            }
            _ => return None,
        };
        Some(Some(Argument::Text(Cow::Borrowed(text))))
    }

    /// An integer or a decimal. A negative one is no number of seconds.
    fn number(&mut self) -> Option<&'a [u8]> {
        let all = self.0;
        let _ = self.byte(b'-');
        let whole = self.take(|byte| byte.is_ascii_digit()).len();
        let part = if self.byte(b'.').is_some() { Some(self.take(|byte| byte.is_ascii_digit()).len()) } else { None };
        let is_valid = match part {
            None => (1..=15).contains(&whole),
            Some(part) => (1..=12).contains(&whole) && (1..=3).contains(&part),
        };
        is_valid.then(|| &all[..all.len() - self.0.len()])
    }

    fn string(&mut self) -> Option<Vec<u8>> {
        self.byte(b'"')?;
        let mut text = Vec::new();
        loop {
            let (byte, rest) = self.0.split_first()?;
            self.0 = rest;
            match byte {
                b'"' => return Some(text),
                b'\\' => {
                    let (escaped, rest) = self.0.split_first()?;
                    b"\"\\".contains(escaped).then(|| text.push(*escaped))?;
                    self.0 = rest;
                }
                b' '..=b'~' => text.push(*byte),
                _ => return None,
            }
        }
    }

    fn list(&mut self) -> Option<()> {
        self.byte(b'(')?;
        loop {
            self.skip(b" ");
            if self.byte(b')').is_some() {
                return Some(());
            }
            // Lists do not nest.
            (self.0.first() != Some(&b'(')).then_some(())?;
            self.value()?;
            self.parameters()?;
            matches!(self.0.first(), Some(b' ' | b')')).then_some(())?;
        }
    }

    fn parameters(&mut self) -> Option<()> {
        while self.byte(b';').is_some() {
            self.skip(b" ");
            self.key()?;
            if self.byte(b'=').is_some() {
                (self.0.first() != Some(&b'(')).then_some(())?;
                self.value()?;
            }
        }
        Some(())
    }

    fn byte(&mut self, byte: u8) -> Option<()> {
        self.0 = self.0.strip_prefix(&[byte])?;
        Some(())
    }

    fn take(&mut self, is_part: impl Fn(u8) -> bool) -> &'a [u8] {
        let length = self.0.iter().position(|byte| !is_part(*byte)).unwrap_or(self.0.len());
        let (taken, rest) = self.0.split_at(length);
        self.0 = rest;
        taken
    }

    fn skip(&mut self, skipped: &[u8]) {
        self.take(|byte| skipped.contains(&byte));
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use http::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    const NAME: HeaderName = HeaderName::from_static("cdn-cache-control");

    fn lines(lines: &[&str]) -> Option<ResponseDirectives> {
        let headers = lines.iter().map(|line| (NAME, HeaderValue::from_str(line).unwrap())).collect();
        read(&headers, &NAME)
    }

    #[test]
    fn a_well_formed_dictionary_counts() {
        let hour = Some(Duration::from_secs(3600));
        for line in [
            "max-age=3600",
            "foobar, max-age=3600",
            "a=(1 \"x\";y tok), max-age=3600;p=1;q",
            "a=:YWI=:,b=-1.5,c=?0 ,\tmax-age=3600",
            "no-store=?0, max-age=3600",
        ] {
            let read = lines(&[line]).unwrap_or_else(|| panic!("{line} is well-formed"));
            assert_eq!((read.max_age, read.no_store), (hour, false), "{line}");
        }
        assert_eq!(lines(&["max-age=3600", "no-store"]).map(|read| (read.max_age, read.no_store)), Some((hour, true)));
        assert!(lines(&["no-store=?1"]).unwrap().no_store);
        assert!(lines(&[r#"private="a""#]).unwrap().private.is_some());
    }

    #[test]
    fn a_malformed_field_is_absent() {
        for line in [
            "",
            "max-age=10000, &&&&&",
            r#"max-age="10000""#,
            "max-age",
            "max-age=-1",
            "MaX-aGe=3600",
            "max-age=1,",
            "a=(1",
            "a=((1))",
            "a=\"x",
            "a=\"\\x\"",
            "a=?2",
            "max-age=1234567890123456",
            "max-age=1 2",
            "a=1.",
            "a=:x",
        ] {
            assert_eq!(lines(&[line]), None, "{line}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read(line in "[a-z=\"\\\\(),;: ?0-9.-]{0,40}") {
            let _ = lines(&[&line]);
        }
    }
}
