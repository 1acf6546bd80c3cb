//! Header fields that are lists (RFC 9110, section 5.6.1).

use std::{borrow::Cow, iter};

use http::{HeaderMap, HeaderName};

/// How a backslash counts inside quotes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Backslash {
    /// It escapes the next character, as in a quoted string.
    Escapes,
    /// It is a character like any other, as in an entity tag.
    IsLiteral,
}

/// Returns the elements of all lines of this field. Empty ones are skipped.
pub(crate) fn elements<'a>(
    headers: &'a HeaderMap,
    name: &HeaderName,
    backslash: Backslash,
) -> impl Iterator<Item = &'a [u8]> {
    headers.get_all(name).iter().flat_map(move |line| split(line.as_bytes(), backslash))
}

/// Splits a line at the commas outside of quotes.
///
/// A quote that is not closed is a character like any other: a directive after it must not be missed.
pub(crate) fn split(line: &[u8], backslash: Backslash) -> impl Iterator<Item = &[u8]> {
    let (mut rest, mut may_quote) = (line, true);
    iter::from_fn(move || {
        while !rest.is_empty() {
            let end = end_of_element(rest, backslash, &mut may_quote);
            let element = rest[..end].trim_ascii();
            rest = rest.get(end + 1..).unwrap_or_default();
            if !element.is_empty() {
                return Some(element);
            }
        }
        None
    })
}

fn end_of_element(line: &[u8], backslash: Backslash, may_quote: &mut bool) -> usize {
    let mut at = 0;
    while let Some(byte) = line.get(at) {
        match byte {
            b',' => return at,
            b'"' if *may_quote => match end_of_quotes(&line[at..], backslash) {
                Some(length) => at += length,
                None => *may_quote = false,
            },
            _ => at += 1,
        }
    }
    line.len()
}

/// Returns the length of the quoted text at the start of `text`, with both quotes, or `None` if it is not closed.
fn end_of_quotes(text: &[u8], backslash: Backslash) -> Option<usize> {
    let mut at = 1;
    loop {
        match text.get(at)? {
            b'"' => return Some(at + 1),
            b'\\' if backslash == Backslash::Escapes => at += 2,
            _ => at += 1,
        }
    }
}

/// Returns the content of a token or of a quoted string, or `None` if quotes are in the wrong place.
pub(crate) fn unquoted(text: &[u8]) -> Option<Cow<'_, [u8]>> {
    if !text.starts_with(b"\"") {
        return (!text.contains(&b'"')).then_some(Cow::Borrowed(text));
    }
    if end_of_quotes(text, Backslash::Escapes)? != text.len() {
        return None;
    }
    let quoted = &text[1..text.len() - 1];
    if !quoted.contains(&b'\\') {
        return Some(Cow::Borrowed(quoted));
    }
    let mut bytes = quoted.iter();
    let unescaped =
        iter::from_fn(|| bytes.next().and_then(|byte| if *byte == b'\\' { bytes.next() } else { Some(byte) }));
    Some(Cow::Owned(unescaped.copied().collect()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parts(line: &str, backslash: Backslash) -> Vec<String> {
        split(line.as_bytes(), backslash).map(|part| String::from_utf8_lossy(part).into_owned()).collect()
    }

    #[test]
    fn commas_in_quotes_do_not_split_and_open_quotes_do_not_hide() {
        let escapes = |line| parts(line, Backslash::Escapes);
        assert_eq!(escapes(r#" a , ,b="x, y" ,c="\", z","#), ["a", r#"b="x, y""#, r#"c="\", z""#]);
        assert_eq!(escapes(r#"a="open, no-store"#), [r#"a="open"#, "no-store"]);
        assert_eq!(escapes(r#"a="\", no-store"#), [r#"a="\""#, "no-store"]);
        assert_eq!(escapes(""), [""; 0]);
        assert_eq!(parts(r#""a\", W/"b,c""#, Backslash::IsLiteral), [r#""a\""#, r#"W/"b,c""#]);
    }

    #[test]
    fn quotes_enclose_all_or_nothing() {
        assert_eq!(unquoted(b"3600").as_deref(), Some(&b"3600"[..]));
        assert_eq!(unquoted(br#""36\00""#).as_deref(), Some(&b"3600"[..]));
        assert_eq!(unquoted(br#""""#).as_deref(), Some(&b""[..]));
        for wrong in [r#""3600"#, r#"3600""#, r#""36"00"#, r#"36"00""#, "\""] {
            assert_eq!(unquoted(wrong.as_bytes()), None, "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_split_into_its_parts(line in "[a\"\\\\, =]{0,40}") {
            for backslash in [Backslash::Escapes, Backslash::IsLiteral] {
                for part in split(line.as_bytes(), backslash) {
                    prop_assert!(!part.is_empty());
                    let _ = unquoted(part);
                }
            }
        }

        #[test]
        fn without_quotes_it_is_a_plain_split(line in "[ab, =]{0,40}") {
            let plain: Vec<_> = line.split(',').map(str::trim).filter(|part| !part.is_empty()).collect();
            prop_assert_eq!(parts(&line, Backslash::Escapes), plain);
        }
    }
}
