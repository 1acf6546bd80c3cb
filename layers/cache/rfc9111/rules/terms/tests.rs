use proptest::prelude::*;

use super::{super::headers, *};

/// Mon, 05 Jan 2026 10:00:00 GMT
const NOW: u64 = 1_767_607_200;

fn date_at(seconds: i64) -> String {
    httpdate::fmt_http_date(SystemTime::UNIX_EPOCH + Duration::from_secs(NOW.checked_add_signed(seconds).unwrap()))
}

fn times() -> Times {
    let now = crate::clock::now();
    Times { sent: now, received: now, date: SystemTime::UNIX_EPOCH + Duration::from_secs(NOW) }
}

fn terms_of(rules: &Rules, asked: &Asked, status: u16, lines: &[(&str, &str)]) -> Option<Terms> {
    rules.terms(asked, StatusCode::from_u16(status).unwrap(), &mut headers(lines), times())
}

/// The terms of a 200 to a plain request.
fn terms(lines: &[(&str, &str)]) -> Option<Terms> {
    terms_of(&Rules::default(), &Asked::default(), 200, lines)
}

fn lifetime(lines: &[(&str, &str)]) -> Option<u64> {
    terms(lines).map(|terms| terms.lifetime.as_secs())
}

fn asked(lines: &[(&str, &str)]) -> Asked {
    Asked::read(&headers(lines))
}

#[test]
fn a_lifetime_comes_from_the_most_specific_source() {
    let (past, future, date) = (date_at(-7200), date_at(7200), date_at(0));
    for (lines, expected) in [
        (&[("cache-control", "max-age=60")][..], Some(60)),
        (&[("cache-control", "max-age=60, s-maxage=90")], Some(90)),
        (&[("cache-control", "max-age=60"), ("expires", &past)], Some(60)),
        (&[("cache-control", "s-maxage=60, max-age=0"), ("expires", &past)], Some(60)),
        (&[("cache-control", "max-age=0"), ("expires", &future)], None),
        (&[("expires", &future)], Some(7200)),
        (&[("expires", &future), ("date", &date_at(-10))], Some(7210)),
        (&[("expires", &future), ("date", "foo")], Some(7200)),
        (&[("expires", &date), ("date", &date)], None),
        (&[("expires", "0")], None),
        (&[("expires", &future), ("expires", &past)], None),
        (&[("last-modified", &date_at(-1000))], Some(100)),
        (&[("last-modified", &date_at(-100 * 24 * 3600))], Some(24 * 3600)),
        (&[("last-modified", &date_at(1000)), ("etag", "\"a\"")], Some(0)),
        (&[], None),
    ] {
        assert_eq!(lifetime(lines), expected, "{lines:?}");
    }
}

#[test]
fn what_says_nothing_is_fresh_for_the_default_if_its_status_allows_a_guess() {
    let rules = Rules { default_ttl: Duration::from_secs(5), ..Rules::default() };
    for status in 200..600 {
        let is_default = matches!(status, 200 | 203 | 204 | 300 | 301 | 308 | 404 | 405 | 410 | 414 | 501);
        assert_eq!(terms_of(&rules, &Asked::default(), status, &[]).is_some(), is_default, "{status}");
    }
    let explicit = terms_of(&rules, &Asked::default(), 200, &[("cache-control", "max-age=1")]);
    assert_eq!(explicit.map(|terms| terms.lifetime), Some(Duration::from_secs(1)));
}

#[test]
fn any_final_status_may_say_that_it_is_fresh() {
    for status in [200, 204, 299, 302, 303, 307, 400, 404, 499, 500, 502, 503, 504, 599] {
        let stored =
            |control| terms_of(&Rules::default(), &Asked::default(), status, &[("cache-control", control)]).is_some();
        assert!(stored("max-age=60"), "{status}");
        assert!(!stored("max-age=60, no-store"), "{status}");
        let is_understood = matches!(status, 200 | 204 | 302 | 303 | 307 | 404);
        assert_eq!(stored("max-age=60, no-store, must-understand"), is_understood, "{status}");
    }
    for status in [101, 206, 304] {
        assert_eq!(terms_of(&Rules::default(), &Asked::default(), status, &[("cache-control", "max-age=60")]), None);
    }
}

#[test]
fn a_response_for_one_caller_is_not_stored() {
    for lines in [
        &[("cache-control", "max-age=60, private")][..],
        &[("cache-control", "max-age=60, no-store")],
        &[("cache-control", "max-age=60"), ("set-cookie", "a=b")],
    ] {
        assert_eq!(terms(lines), None, "{lines:?}");
    }
    assert!(terms(&[("cache-control", "max-age=60, public"), ("set-cookie", "a=b")]).is_some());
    assert_eq!(
        terms_of(&Rules::default(), &asked(&[("cache-control", "no-store")]), 200, &[("cache-control", "max-age=60")]),
        None
    );
}

#[test]
fn credentials_need_the_permission_of_the_response() {
    let credentials = asked(&[("authorization", "x")]);
    for (control, is_permitted) in [
        ("max-age=60", false),
        ("max-age=60, proxy-revalidate", false),
        ("max-age=60, public", true),
        ("max-age=60, must-revalidate", true),
        ("s-maxage=60", true),
    ] {
        let lines = &[("cache-control", control)];
        assert_eq!(terms_of(&Rules::default(), &credentials, 200, lines).is_some(), is_permitted, "{control}");
        // What another caller got without credentials says nothing about this one.
        assert_eq!(terms(lines).unwrap().are_for(&credentials), is_permitted, "{control}");
    }
}

#[test]
fn a_guess_is_for_callers_without_a_cookie() {
    let (cookie, modified) = (asked(&[("cookie", "a=b")]), date_at(-1000));
    let guess = &[("last-modified", &*modified)];
    assert_eq!(terms_of(&Rules::default(), &cookie, 200, guess), None);
    assert!(!terms(guess).unwrap().are_for(&cookie));
    assert!(terms(&[("cache-control", "max-age=60")]).unwrap().are_for(&cookie));
}

#[test]
fn fields_that_are_not_for_all_are_not_stored() {
    let mut headers =
        headers(&[("cache-control", "no-cache=\"a\", private=\"b\", max-age=60"), ("a", "1"), ("b", "2"), ("c", "3")]);
    let terms = Rules::default().terms(&Asked::default(), StatusCode::OK, &mut headers, times()).unwrap();
    assert_eq!(terms.reuse(&Asked::default(), terms.received), Reuse::Fresh);
    assert_eq!(headers.keys().map(HeaderName::as_str).collect::<Vec<_>>(), ["cache-control", "c"]);
}

#[test]
fn an_age_is_what_the_response_says_or_what_its_date_says() {
    for (lines, expected) in [
        (&[("age", "30")][..], 30),
        (&[("age", "7200, 0")], 7200),
        (&[("age", "0, 7200")], 0),
        (&[("age", "7200"), ("age", "0")], 7200),
        (&[("age", "7200;a=b")], 7200),
        (&[("age", "abc")], 0),
        (&[("age", "-7200")], 0),
        (&[("age", "7200.0")], 0),
        (&[("age", "2147483649")], 1 << 31),
        (&[("age", "99999999999999999999")], 1 << 31),
        (&[("date", &date_at(-50))], 50),
        (&[("date", &date_at(50))], 0),
        (&[("date", &date_at(-50)), ("age", "30")], 50),
    ] {
        assert_eq!(age(&headers(lines), times()).as_secs(), expected, "{lines:?}");
    }
    let now = crate::clock::now();
    let slow = Times { sent: now, received: now + Duration::from_secs(5), ..times() };
    assert_eq!(age(&headers(&[("age", "30")]), slow), Duration::from_secs(35));
}

#[test]
fn a_request_may_demand_more_and_accept_less() {
    let terms = terms(&[("cache-control", "max-age=100"), ("age", "40"), ("etag", "\"a\"")]).unwrap();
    let reuse = |line: &str, seconds| {
        terms.reuse(&asked(&[("cache-control", line)]), terms.received + Duration::from_secs(seconds))
    };
    for (line, seconds, expected) in [
        ("", 0, Reuse::Fresh),
        ("", 59, Reuse::Fresh),
        ("", 60, Reuse::Validate),
        ("no-cache", 0, Reuse::Validate),
        ("max-age=39", 0, Reuse::Validate),
        ("max-age=40", 0, Reuse::Fresh),
        ("max-age=0", 0, Reuse::Validate),
        ("min-fresh=60", 0, Reuse::Fresh),
        ("min-fresh=61", 0, Reuse::Validate),
        ("max-stale=5", 65, Reuse::Stale),
        ("max-stale=5", 66, Reuse::Validate),
        ("max-stale", 1_000_000, Reuse::Stale),
        ("max-stale, max-age=50", 60, Reuse::Validate),
    ] {
        assert_eq!(reuse(line, seconds), expected, "{line} {seconds}");
    }
}

#[test]
fn a_stale_response_is_used_only_where_that_is_allowed() {
    let config = Rules {
        stale_if_error: Duration::from_secs(50),
        stale_while_revalidate: Duration::from_secs(20),
        ..Rules::default()
    };
    for (rules, control, refresh, failure) in [
        (Rules::default(), "max-age=10", false, false),
        (config.clone(), "max-age=10", true, true),
        (config.clone(), "max-age=10, stale-while-revalidate=5, stale-if-error=5", false, false),
        (Rules::default(), "max-age=10, stale-while-revalidate=20, stale-if-error=20", true, true),
        (config.clone(), "max-age=10, must-revalidate", false, false),
        (config.clone(), "max-age=10, proxy-revalidate", false, false),
        (config.clone(), "s-maxage=10", false, false),
        (config.clone(), "max-age=10, no-cache", false, false),
    ] {
        let lines = &[("cache-control", control), ("etag", "\"a\"")];
        let terms = terms_of(&rules, &Asked::default(), 200, lines).unwrap();
        // Ten seconds after its end.
        let now = terms.received + Duration::from_secs(20);
        assert_eq!(terms.reuse(&asked(&[("cache-control", "max-age=100")]), now), Reuse::Validate, "{control}");
        assert_eq!(terms.reuse(&Asked::default(), now) == Reuse::Refresh, refresh, "{control}");
        assert_eq!(terms.replace_failure(&Asked::default(), now), failure, "{control}");
        assert!(!terms.replace_failure(&Asked::default(), now + Duration::from_secs(1000)), "{control}");
    }
    // The settings of a cache do not make a response reusable that does not say so.
    let silent = terms_of(&config, &Asked::default(), 200, &[("etag", "\"a\"")]).unwrap();
    assert_eq!(silent.reuse(&Asked::default(), silent.received), Reuse::Validate);
    assert!(!silent.replace_failure(&Asked::default(), silent.received));
}

#[test]
fn a_targeted_field_counts_alone() {
    let rules = Rules { targeted: Some(HeaderName::from_static("cdn-cache-control")), ..Rules::default() };
    let future = date_at(1000);
    for (targeted, others, expected) in [
        ("max-age=60", &[("cache-control", "no-store")][..], Some(60)),
        ("max-age=60", &[("cache-control", "max-age=1"), ("expires", &*future)], Some(60)),
        ("max-age=0", &[("expires", &*future)], None),
        ("no-store", &[("cache-control", "max-age=60")], None),
        ("foo", &[("expires", &*future)], None),
        ("MAX-AGE=1", &[("cache-control", "max-age=60")], Some(60)),
    ] {
        let lines = [others, &[("cdn-cache-control", targeted)]].concat();
        let terms = terms_of(&rules, &Asked::default(), 200, &lines);
        assert_eq!(terms.map(|terms| terms.lifetime.as_secs()), expected, "{lines:?}");
    }
    assert_eq!(lifetime(&[("cdn-cache-control", "max-age=60"), ("cache-control", "max-age=1")]), Some(1));
}

#[test]
fn only_what_can_be_used_again_is_stored() {
    assert_eq!(terms(&[("cache-control", "no-cache")]), None);
    assert!(terms(&[("cache-control", "no-cache"), ("etag", "\"a\"")]).is_some());
    // It is still for the callers who have waited for it.
    let stale = terms(&[("cache-control", "max-age=60"), ("age", "60")]).unwrap();
    assert!(!stale.is_worth_storing);
    let validated = terms(&[("cache-control", "max-age=60"), ("age", "60"), ("etag", "\"a\"")]).unwrap();
    assert!(validated.is_worth_storing);
    assert!(terms(&[("cache-control", "max-age=0, stale-if-error=60")]).is_some());
    assert_eq!(terms(&[("cache-control", "max-age=0, stale-if-error=60, must-revalidate")]), None);
    assert_eq!(terms_of(&Rules::default(), &Asked::default(), 202, &[("etag", "\"a\"")]), None);
}

proptest! {
    /// Whatever the headers say: no overflow, and nothing fresh that is older than its lifetime.
    #[test]
    fn any_headers_have_terms_or_none(
        control in "(max-age|s-maxage|stale-if-error|no-cache|public|x)(=\"?[0-9]{0,20}\"?)?(, (max-age|must-revalidate|private)(=[0-9]{0,20})?)?",
        age in "[0-9]{0,20}",
        expires in prop_oneof![Just(String::new()), (-100_000_i64..100_000).prop_map(date_at)],
        later in 0_u64..10_000_000_000,
    ) {
        let lines = [("cache-control", &*control), ("age", &*age), ("expires", &*expires), ("etag", "\"a\"")];
        if let Some(terms) = terms(&lines) {
            let now = terms.received + Duration::from_secs(later);
            let is_fresh = terms.reuse(&Asked::default(), now) == Reuse::Fresh;
            prop_assert_eq!(is_fresh, terms.freshness(now).is_ok() && !terms.no_cache);
            prop_assert!(!is_fresh || terms.age(now) < terms.lifetime);
            let _ = (terms.useful(), terms.replace_failure(&Asked::default(), now));
        }
    }
}
