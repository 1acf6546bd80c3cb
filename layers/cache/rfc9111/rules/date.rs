//! Dates of HTTP (RFC 9110, section 5.6.7).

use std::time::SystemTime;

use http::{HeaderMap, HeaderName, HeaderValue};

/// Returns the date of this field. `None` if it is absent, malformed or there several times with different values.
pub(crate) fn date(headers: &HeaderMap, name: &HeaderName) -> Option<SystemTime> {
    let mut lines = headers.get_all(name).iter();
    let first = lines.next()?;
    if lines.any(|line| line != first) { None } else { read(first) }
}

/// Reads a date in any of the three formats.
///
/// Names count in any case, as old servers write them, and a wrong day of the week says nothing about the date.
pub(crate) fn read(value: &HeaderValue) -> Option<SystemTime> {
    let text = value.to_str().ok()?;
    if let Ok(date) = httpdate::parse_http_date(text) {
        return Some(date);
    }
    let mut canonical = String::with_capacity(text.len());
    let mut is_inside = false;
    for letter in text.chars() {
        canonical.push(if is_inside { letter.to_ascii_lowercase() } else { letter.to_ascii_uppercase() });
        is_inside = letter.is_ascii_alphabetic();
    }
    if canonical.ends_with(" Gmt") {
        canonical.replace_range(canonical.len() - 3.., "GMT");
    }
    DAYS.iter().find(|day| canonical.starts_with(**day))?;
    DAYS.iter().find_map(|day| {
        canonical.replace_range(..day.len(), day);
        httpdate::parse_http_date(&canonical).ok()
    })
}

const DAYS: [&str; 7] = ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"];

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn seconds(text: &str) -> Option<u64> {
        let date = read(&HeaderValue::from_str(text).unwrap())?;
        date.duration_since(SystemTime::UNIX_EPOCH).ok().as_ref().map(Duration::as_secs)
    }

    #[test]
    fn dates_are_read_in_three_formats_and_in_any_case() {
        let expected = seconds("Thu, 18 Aug 2050 02:01:18 GMT");
        assert_eq!(expected, Some(2_544_400_878));
        for text in [
            "THU, 18 Aug 2050 02:01:18 GMT",
            "Thu, 18 AUG 2050 02:01:18 GMT",
            "thu, 18 aug 2050 02:01:18 gMT",
            "Thursday, 18-Aug-50 02:01:18 GMT",
            "Thu Aug 18 02:01:18 2050",
            "Mon Aug 18 02:01:18 2050",
            "mon, 18 Aug 2050 02:01:18 GMT",
        ] {
            assert_eq!(seconds(text), expected, "{text}");
        }
    }

    #[test]
    fn what_only_looks_like_a_date_is_none() {
        for text in [
            "0",
            "",
            "-1",
            "xyz, 18 Aug 2050 02:01:18 GMT",
            "Thu, 18 Aug 2050 02:01:18 UTC",
            "Thu, 18 Aug 2050 02:01:18 AEST",
            "Thu, 18 Aug 50 02:01:18 GMT",
            "Thu 18 Aug 2050 02:01:18 GMT",
            "Thu, 18  Aug  2050 02:01:18 GMT",
            "Thu, 18-Aug-2050 02:01:18 GMT",
            "Thu, 18 Aug 2050 02.01.18 GMT",
            "Thu, 18 Aug 2050 2:01:18 GMT",
        ] {
            assert_eq!(seconds(text), None, "{text}");
        }
    }
}
