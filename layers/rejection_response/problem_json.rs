//! Rejections as problems (RFC 9457).

use std::fmt::Write;

use http::{
    HeaderValue, Method, Request, Response,
    header::{CONTENT_LENGTH, CONTENT_TYPE},
};

use super::Respond;
use crate::outcome::Rejection;

/// Responds with `application/problem+json`, for `B: From<String>`.
///
/// The status is [`Rejection::status`]. The problem has the members
///
/// - `type`: `about:blank`, which means that the status says it all;
/// - `title`: the reason phrase of the status, which RFC 9457 requires for this type;
/// - `status`;
/// - `detail`: [`Rejection::public_message`]. It contains neither the names of layers nor messages of errors.
///
/// There is no `instance`, because remembering the URI of every request is not free. The response to a `HEAD` has no
/// body, but the same headers as the response to a `GET` has on the wire, including `Content-Length`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ProblemJson;

impl<B: From<String>> Respond<B> for ProblemJson {
    /// Whether the request was a `HEAD`.
    type Memory = bool;

    fn remember<T>(&self, request: &Request<T>) -> bool {
        request.method() == Method::HEAD
    }

    fn respond(&self, head: bool, rejection: &Rejection) -> Response<B> {
        let status = rejection.status();
        let title = quoted(status.canonical_reason().unwrap_or_default());
        let detail = quoted(&rejection.public_message());
        let code = status.as_u16();
        let body = format!(r#"{{"type":"about:blank","title":{title},"status":{code},"detail":{detail}}}"#);
        let length = body.len();
        let mut response = Response::new(if head { String::new() } else { body }.into());
        *response.status_mut() = status;
        let headers = response.headers_mut();
        if head {
            // Otherwise a server would send 0 (RFC 9110, section 8.6).
            headers.insert(CONTENT_LENGTH, length.into());
        }
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        response
    }
}

/// Encodes a JSON string (RFC 8259, section 7): escapes quotation marks, backslashes, and control characters.
fn quoted(text: &str) -> String {
    let mut json = String::with_capacity(text.len() + 2);
    json.push('"');
    for char in text.chars() {
        match char {
            '"' | '\\' => json.extend(['\\', char]),
            // Writing to a string does not fail.
            '\0'..='\x1f' => drop(write!(json, "\\u{:04x}", u32::from(char))),
            _ => json.push(char),
        }
    }
    json.push('"');
    json
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::quoted;

    /// Parses a JSON string strictly by the grammar; `None` if it is not valid.
    fn unquoted(json: &str) -> Option<String> {
        let inside = json.strip_prefix('"')?.strip_suffix('"')?;
        let (mut units, mut chars) = (Vec::new(), inside.chars());
        while let Some(char) = chars.next() {
            let meant = match char {
                '\\' => match chars.next()? {
                    'u' => {
                        let hex: String = chars.by_ref().take(4).collect();
                        units.push(u16::from_str_radix(&hex, 16).ok().filter(|_| hex.len() == 4)?);
                        continue;
                    }
                    'n' => '\n',
                    't' => '\t',
                    'r' => '\r',
                    'b' => '\x08',
                    'f' => '\x0c',
                    plain @ ('"' | '\\' | '/') => plain,
                    _ => return None,
                },
                '"' | '\0'..='\x1f' => return None,
                plain => plain,
            };
            units.extend_from_slice(meant.encode_utf16(&mut [0; 2]));
        }
        String::from_utf16(&units).ok()
    }

    #[test]
    fn what_needs_no_escape_has_none() {
        assert_eq!(quoted("größer als\u{7f}/ …"), "\"größer als\u{7f}/ …\"");
        assert_eq!(quoted("a\"b\\c\nd\0"), r#""a\"b\\c\u000ad\u0000""#);
    }

    proptest! {
        #[test]
        fn any_text_is_read_back_as_it_was(text in any::<String>()) {
            prop_assert_eq!(unquoted(&quoted(&text)), Some(text));
        }

        #[test]
        fn so_is_text_full_of_what_needs_an_escape(text in "[\"\\\\\0-\x1f/u0a]{0,40}") {
            prop_assert_eq!(unquoted(&quoted(&text)), Some(text));
        }
    }
}
