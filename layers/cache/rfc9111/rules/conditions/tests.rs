use http::header::RANGE;

use super::{super::headers, *};

const MONDAY: &str = "Mon, 05 Jan 2026 10:00:00 GMT";
const TUESDAY: &str = "Tue, 06 Jan 2026 10:00:00 GMT";
const WEDNESDAY: &str = "Wed, 07 Jan 2026 10:00:00 GMT";

#[test]
fn an_entity_tag_in_the_list_is_current() {
    let stored = headers(&[("etag", r#"W/"a,b""#), ("last-modified", TUESDAY)]);
    for list in [r#""a,b""#, r#"W/"a,b""#, r#""x", W/"a,b" , "y""#, "*"] {
        assert!(is_current(&headers(&[("if-none-match", list)]), &stored), "{list}");
    }
    for list in [r#""a""#, r#""b""#, r#"w/"a,b""#, "", "a,b"] {
        assert!(!is_current(&headers(&[("if-none-match", list)]), &stored), "{list}");
    }
    // The date does not count beside a tag.
    assert!(!is_current(&headers(&[("if-none-match", r#""x""#), ("if-modified-since", WEDNESDAY)]), &stored));
    assert!(is_current(&headers(&[("if-none-match", r#""a,b""#), ("if-modified-since", MONDAY)]), &stored));
    assert!(!is_current(&headers(&[("if-none-match", r#""a""#)]), &HeaderMap::new()));
}

#[test]
fn what_was_not_modified_since_is_current() {
    let since = |date: &str| headers(&[("if-modified-since", date)]);
    for stored in [headers(&[("last-modified", TUESDAY), ("date", WEDNESDAY)]), headers(&[("date", TUESDAY)])] {
        assert!(is_current(&since(TUESDAY), &stored));
        assert!(is_current(&since("Wednesday, 07-Jan-26 10:00:00 GMT"), &stored));
        assert!(!is_current(&since(MONDAY), &stored));
        assert!(!is_current(&since("yesterday"), &stored));
        assert!(!is_current(&HeaderMap::new(), &stored));
    }
    assert!(!is_current(&since(TUESDAY), &HeaderMap::new()));
}

#[test]
fn a_validation_asks_with_the_stored_validators_alone() {
    let mut request = headers(&[("if-none-match", r#""own""#), ("if-modified-since", MONDAY), ("accept", "x")]);
    validate(&mut request, &headers(&[("etag", r#""a""#)]));
    assert_eq!(request, headers(&[("if-none-match", r#""a""#), ("accept", "x")]));
    validate(&mut request, &headers(&[("last-modified", TUESDAY)]));
    assert_eq!(request, headers(&[("if-modified-since", TUESDAY), ("accept", "x")]));
}

#[test]
fn a_304_is_about_the_stored_version_or_another_one() {
    let stored = headers(&[("etag", r#""a""#), ("last-modified", TUESDAY)]);
    for same in [
        &[][..],
        &[("etag", r#"W/"a""#)],
        &[("last-modified", TUESDAY)],
        &[("etag", r#""a""#), ("last-modified", MONDAY)],
    ] {
        assert!(is_same(&stored, &headers(same)), "{same:?}");
    }
    assert!(is_same(&headers(&[("last-modified", TUESDAY)]), &headers(&[("etag", "x"), ("last-modified", TUESDAY)])));
    for other in [&[("etag", r#""b""#)][..], &[("last-modified", WEDNESDAY)]] {
        assert!(!is_same(&stored, &headers(other)), "{other:?}");
    }
    assert!(!is_same(&headers(&[("last-modified", TUESDAY)]), &headers(&[("etag", r#""a""#)])));
}

#[test]
fn a_range_is_of_the_version_that_the_caller_has() {
    let stored = headers(&[("etag", r#""a""#), ("last-modified", TUESDAY), ("date", WEDNESDAY)]);
    let allows = |condition: &str| allows_range(&headers(&[("range", "bytes=0-1"), ("if-range", condition)]), &stored);
    assert!(allows_range(&headers(&[(RANGE.as_str(), "bytes=0-1")]), &stored));
    assert!(allows(r#""a""#));
    assert!(allows(TUESDAY));
    for other in [r#"W/"a""#, r#""b""#, MONDAY, WEDNESDAY, "x"] {
        assert!(!allows(other), "{other}");
    }
    // It may have changed twice in that second.
    let young = headers(&[("last-modified", TUESDAY), ("date", TUESDAY)]);
    assert!(!allows_range(&headers(&[("if-range", TUESDAY)]), &young));
}
