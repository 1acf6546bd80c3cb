//! `Cache-Status`: how the cache has handled a request (RFC 9211).

use std::{borrow::Cow, fmt, io::Write as _, time::Duration};

use http::{HeaderMap, HeaderName, HeaderValue};

pub(super) const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");

/// How the cache has handled a request.
#[derive(Debug, Clone, Copy)]
pub(super) enum Status {
    /// It had a response, which stays fresh for this time, or is stale for this time.
    Hit(Result<Duration, Duration>),
    /// It has sent the request on.
    Forward(Forward),
    /// It neither had a response nor was allowed to send the request on.
    Missing,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Forward {
    pub(super) why: Why,
    /// The status of the response from the upstream, where the caller gets another one.
    pub(super) status: Option<u16>,
    pub(super) stored: bool,
    /// Whether the caller has shared the request of another one.
    pub(super) collapsed: bool,
}

/// Why a request was sent on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Why {
    /// The cache does not apply to such requests.
    Bypass,
    Method,
    UriMiss,
    VaryMiss,
    /// The request demands it.
    Request,
    Stale,
}

impl Why {
    fn as_str(self) -> &'static str {
        match self {
            Self::Bypass => "bypass",
            Self::Method => "method",
            Self::UriMiss => "uri-miss",
            Self::VaryMiss => "vary-miss",
            Self::Request => "request",
            Self::Stale => "stale",
        }
    }
}

impl Forward {
    pub(super) fn new(why: Why) -> Self {
        Self { why, status: None, stored: false, collapsed: false }
    }
}

/// Writes the status, after those of the caches behind this one.
pub(super) fn write(headers: &mut HeaderMap, cache: Option<&str>, before: Option<&HeaderValue>, status: Status) {
    let before = before.and_then(|before| before.to_str().ok()).filter(|before| !before.is_empty());
    let (separator, name) = (before.map_or("", |_| ", "), name(cache));
    let before = before.unwrap_or_default();
    set(headers, CACHE_STATUS, format_args!("{before}{separator}{name}{status}"));
}

/// Adds the status after all others that a response has.
pub(super) fn append(headers: &mut HeaderMap, cache: Option<&str>, status: Status) {
    if let Some(value) = value(format_args!("{}{status}", name(cache))) {
        // A response with more fields than a map can hold goes without.
        let _ = headers.try_append(CACHE_STATUS, value);
    }
}

/// Removes the statuses that other caches have written, and returns them as one line.
pub(super) fn take(headers: &mut HeaderMap) -> Option<HeaderValue> {
    let lines: Vec<_> = headers.get_all(CACHE_STATUS).iter().map(HeaderValue::as_bytes).collect();
    let joined = (lines.len() > 1).then(|| HeaderValue::from_bytes(&lines.join(&b", "[..])).ok());
    let first = headers.remove(CACHE_STATUS);
    joined.flatten().or(first)
}

/// Sets a field to a text.
pub(super) fn set(headers: &mut HeaderMap, name: HeaderName, text: fmt::Arguments<'_>) {
    if let Some(value) = value(text) {
        let _ = headers.try_insert(name, value);
    }
}

/// Makes a value of a text. A short one needs no memory but its own.
fn value(text: fmt::Arguments<'_>) -> Option<HeaderValue> {
    let mut buffer = [0; 160];
    let mut rest = &mut buffer[..];
    let value = match rest.write_fmt(text) {
        Ok(()) => {
            let left = rest.len();
            HeaderValue::from_bytes(&buffer[..buffer.len() - left])
        }
        Err(_) => HeaderValue::from_str(&text.to_string()),
    };
    value.ok()
}

/// An integer of a structured field has at most 15 digits (RFC 9651, section 3.3.1).
fn seconds(time: &Duration) -> u64 {
    time.as_secs().min(999_999_999_999_999)
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hit(Ok(fresh)) => write!(f, "; hit; ttl={}", seconds(fresh)),
            Self::Hit(Err(stale)) => write!(f, "; hit; ttl=-{}", seconds(stale)),
            Self::Missing => f.write_str("; detail=only-if-cached"),
            Self::Forward(Forward { why, status, stored, collapsed }) => {
                write!(f, "; fwd={}", why.as_str())?;
                if let Some(status) = status {
                    write!(f, "; fwd-status={status}")?;
                }
                f.write_str(if *stored { "; stored" } else { "" })?;
                f.write_str(if *collapsed { "; collapsed" } else { "" })
            }
        }
    }
}

/// Returns the name of the cache as a token or a quoted string.
fn name(cache: Option<&str>) -> Cow<'_, str> {
    let Some(name) = cache else { return Cow::Borrowed("ziggurat") };
    let is_token = name.starts_with(|first: char| first.is_ascii_alphabetic())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~:/".contains(&byte));
    if is_token {
        return Cow::Borrowed(name);
    }
    let mut quoted = String::from("\"");
    for letter in name.chars().filter(|letter| matches!(letter, ' '..='~')) {
        if let '"' | '\\' = letter {
            quoted.push('\\');
        }
        quoted.push(letter);
    }
    Cow::Owned(quoted + "\"")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(cache: Option<&str>, before: &str, status: Status) -> String {
        let mut headers = HeaderMap::new();
        write(&mut headers, cache, HeaderValue::from_str(before).ok().as_ref(), status);
        headers[CACHE_STATUS].to_str().unwrap().to_owned()
    }

    #[test]
    fn a_status_says_what_happened() {
        let seconds = Duration::from_secs;
        assert_eq!(written(None, "", Status::Hit(Ok(seconds(30)))), "ziggurat; hit; ttl=30");
        assert_eq!(
            written(Some("edge"), "origin; hit", Status::Hit(Err(seconds(3)))),
            "origin; hit, edge; hit; ttl=-3"
        );
        let forward = Forward { why: Why::Stale, status: Some(304), stored: true, collapsed: true };
        let expected = "ziggurat; fwd=stale; fwd-status=304; stored; collapsed";
        assert_eq!(written(None, "", Status::Forward(forward)), expected);
        assert_eq!(written(None, "", Status::Hit(Ok(Duration::MAX))), "ziggurat; hit; ttl=999999999999999");
        assert_eq!(written(None, "", Status::Hit(Err(Duration::MAX))), "ziggurat; hit; ttl=-999999999999999");
        assert_eq!(written(Some("a \"b\"\u{e4}"), "", Status::Missing), r#""a \"b\""; detail=only-if-cached"#);
    }
}
