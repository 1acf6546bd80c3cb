//! Reads when a response asks the client to retry.

use std::time::{Duration, SystemTime};

use http::{
    HeaderMap, HeaderName,
    header::{AGE, DATE, RETRY_AFTER},
};

/// The headers in milliseconds that Azure and OpenAI send. The first one that parses counts.
const MILLIS: [HeaderName; 2] =
    [HeaderName::from_static("retry-after-ms"), HeaderName::from_static("x-ms-retry-after-ms")];

/// Returns whole seconds, rounded up: a caller that waits for that time does not come back early.
pub(crate) fn whole_seconds(time: Duration) -> u64 {
    time.as_secs().saturating_add(u64::from(time.subsec_nanos() > 0))
}

/// Returns the wait that `Retry-After` (RFC 9110, section 10.2.3) asks for, from now. It is never rounded down.
///
/// Seconds may have a fraction, which the RFC does not allow but servers send. It is rounded up. A date is on the
/// server's clock, so the wait is measured from the response's own `Date`. In a response that came out of a cache
/// (`Age`), it is measured from the local clock.
pub(crate) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let value = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Some(seconds) = rounded_up(value) {
        return Some(Duration::from_secs(seconds));
    }
    let until = httpdate::parse_http_date(value).ok()?;
    let now = sent_at(headers).unwrap_or_else(SystemTime::now);
    Some(until.duration_since(now).unwrap_or_default())
}

/// Returns the wait of `retry-after-ms`, which is more exact, or else that of `Retry-After`.
pub(super) fn retry_after_millis(headers: &HeaderMap) -> Option<Duration> {
    let millis = |name| rounded_up(headers.get(name)?.to_str().ok()?.trim());
    MILLIS.iter().find_map(millis).map(Duration::from_millis).or_else(|| retry_after(headers))
}

/// Returns the server's clock at the time of the response. `None` if the response was stored in between.
fn sent_at(headers: &HeaderMap) -> Option<SystemTime> {
    if headers.contains_key(AGE) {
        return None;
    }
    httpdate::parse_http_date(headers.get(DATE)?.to_str().ok()?.trim()).ok()
}

/// Parses a non-negative number: digits, with an optional fraction. Rust's own parser would also accept a sign and an
/// exponent. A number that exceeds `u64` saturates.
fn rounded_up(number: &str) -> Option<u64> {
    let is_digits = |digits: &str| !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    if !is_digits(whole) || !is_digits(fraction) {
        return None;
    }
    let more = fraction.bytes().any(|digit| digit != b'0');
    Some(whole.parse().unwrap_or(u64::MAX).saturating_add(u64::from(more)))
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn headers(fields: &[(HeaderName, &[u8])]) -> HeaderMap {
        fields.iter().map(|(name, value)| (name.clone(), HeaderValue::from_bytes(value).unwrap())).collect()
    }

    fn read(value: &[u8]) -> Option<Duration> {
        retry_after(&headers(&[(RETRY_AFTER, value)]))
    }

    /// Shows: R5, F3
    #[test]
    fn seconds_are_read_and_a_fraction_is_rounded_up() {
        assert_eq!(read(b"0"), Some(Duration::ZERO));
        assert_eq!(read(b" 120 "), Some(120 * SECOND));
        assert_eq!(read(b"999999999999999"), Some(Duration::from_secs(999_999_999_999_999)));
        for (fraction, seconds) in
            [(&b"1.5"[..], 2), (b"0.001", 1), (b"2.0", 2), (b"7.000", 7), (b"0.0", 0), (b"9.00000000000000000001", 10)]
        {
            assert_eq!(read(fraction), Some(Duration::from_secs(seconds)), "{fraction:?}");
        }
        for most in [&b"99999999999999999999999"[..], b"18446744073709551615.1"] {
            assert_eq!(read(most), Some(Duration::from_secs(u64::MAX)));
        }
        let junk =
            [&b"-1"[..], b"+1", b"1 2", b"soon", b"", b"\xff\xfe", b".5", b"1.", b".", b"1.5.0", b"-1.5", b"1e9"];
        for junk in junk {
            assert_eq!(read(junk), None, "{junk:?}");
        }
    }

    /// The server's clock may be an hour off. The date of a stored response is not the current time.
    ///
    /// Shows: F3
    #[test]
    fn a_date_is_measured_from_the_date_of_its_response_unless_that_was_stored() {
        const AT: &[u8] = b"Sun, 06 Nov 1994 08:49:37 GMT";
        const SOON_AFTER: &[u8] = b"Sun, 06 Nov 1994 08:49:47 GMT";
        let asked = |date, until| retry_after(&headers(&[(DATE, date), (RETRY_AFTER, until)]));
        assert_eq!(asked(AT, SOON_AFTER), Some(10 * SECOND));
        assert_eq!(asked(SOON_AFTER, AT), Some(Duration::ZERO));
        assert_eq!(asked(b"yesterday", SOON_AFTER), Some(Duration::ZERO), "from the local clock");
        let stored = headers(&[(DATE, AT), (AGE, b"1"), (RETRY_AFTER, SOON_AFTER)]);
        assert_eq!(retry_after(&stored), Some(Duration::ZERO), "from the local clock");
        // A number of seconds is not measured from the response's date.
        assert_eq!(asked(AT, b"5"), Some(5 * SECOND));

        assert_eq!(read(AT), Some(Duration::ZERO));
        assert!(read(b"Fri, 31 Dec 9999 23:59:59 GMT").unwrap() > Duration::from_secs(1 << 32));
    }

    #[test]
    fn milliseconds_are_read_before_seconds_and_junk_is_not() {
        let [millis, azure] = MILLIS;
        let asked = |fields: &[_]| retry_after_millis(&headers(fields)).map(|wait| wait.as_millis());
        assert_eq!(asked(&[(millis.clone(), b"1500"), (RETRY_AFTER, b"2")]), Some(1500));
        assert_eq!(asked(&[(azure.clone(), b"20.2")]), Some(21));
        assert_eq!(asked(&[(millis.clone(), b"soon"), (azure, b"7")]), Some(7));
        assert_eq!(asked(&[(millis.clone(), b"-5"), (RETRY_AFTER, b"2")]), Some(2000));
        assert_eq!(asked(&[]), None);
        assert_eq!(retry_after(&headers(&[(millis, b"1500")])), None, "opt-in");
    }

    proptest! {
        #[test]
        fn every_number_of_seconds_is_read(
            seconds: u64, zeros in 0_usize..30, beyond in "[1-9][0-9]{20,40}", fraction in "[0-9]{0,20}[1-9]0{0,3}",
        ) {
            let text = format!("{}{seconds}", "0".repeat(zeros));
            prop_assert_eq!(read(text.as_bytes()), Some(Duration::from_secs(seconds)));
            let more = format!("{text}.{fraction}");
            prop_assert_eq!(read(more.as_bytes()), Some(Duration::from_secs(seconds.saturating_add(1))));
            prop_assert_eq!(read(beyond.as_bytes()), Some(Duration::from_secs(u64::MAX)));
        }

        #[test]
        fn every_date_is_read(seconds in 0_u64..253_402_300_800, sent in 0_u64..253_402_300_800) {
            let date = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
            let until = || date(seconds).duration_since(SystemTime::now()).unwrap_or_default();
            let most = until();
            let text = httpdate::fmt_http_date(date(seconds));
            let wait = read(text.as_bytes()).unwrap();
            prop_assert!((until()..=most).contains(&wait), "{wait:?}");

            let sent_at = httpdate::fmt_http_date(date(sent));
            let wait = retry_after(&headers(&[(DATE, sent_at.as_bytes()), (RETRY_AFTER, text.as_bytes())]));
            prop_assert_eq!(wait, Some(Duration::from_secs(seconds.saturating_sub(sent))));
        }

        #[test]
        fn what_is_no_number_and_no_date_is_absent(value in prop::collection::vec(b' '..=255, 0..40)) {
            let is_digits = |digits: &[u8]| !digits.is_empty() && digits.iter().all(u8::is_ascii_digit);
            let parts: Vec<_> = value.trim_ascii().split(|byte| *byte == b'.').collect();
            let is_number = parts.len() <= 2 && parts.iter().all(|part| is_digits(part));
            if let Ok(header) = HeaderValue::from_bytes(&value) {
                prop_assert_eq!(read(header.as_bytes()).is_some(), is_number, "{:?}", value);
            }
        }
    }
}
