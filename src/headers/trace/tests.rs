use proptest::prelude::*;

use super::*;

const VALID: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

fn headers(traceparents: &[&[u8]], states: &[&[u8]]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, values) in [(TRACEPARENT, traceparents), (TRACESTATE, states)] {
        for value in values {
            headers.append(&name, HeaderValue::from_bytes(value).unwrap());
        }
    }
    headers
}

fn read(value: &[u8]) -> Option<Traceparent> {
    Traceparent::read(&headers(&[value], &[]))
}

/// Shows: X6
#[test]
fn a_valid_one_is_taken_over_as_it_came() {
    let trace = read(VALID.as_bytes()).unwrap();
    assert_eq!(trace.trace_id(), "4bf92f3577b34da6a3ce929d0e0e4736");
    assert_eq!(trace.parent_id(), "00f067aa0ba902b7");
    assert_eq!((trace.header().to_str().unwrap(), trace.state()), (VALID, None));
    for (flags, sampled) in [("00", false), ("01", true), ("02", false), ("03", true), ("ff", true)] {
        let value = VALID.replace("-01", &format!("-{flags}"));
        assert_eq!(read(value.as_bytes()).unwrap().is_sampled(), sampled, "{flags}");
    }
}

#[test]
fn of_a_higher_version_only_what_is_known_is_looked_at() {
    for version in ["01", "cc", "fe"] {
        for rest in ["", "-", "-what-the-future-will-be-like", "-00-11"] {
            let value = format!("{version}{}{rest}", &VALID[2..]);
            let trace = read(value.as_bytes()).unwrap();
            assert_eq!(trace.trace_id(), "4bf92f3577b34da6a3ce929d0e0e4736", "{value}");
            assert!(trace.is_sampled());
            assert_eq!(trace.header(), value.as_str());
        }
        for rest in [".", "0", "-\u{7f}\u{e9}", "- "] {
            let value = format!("{version}{}{rest}", &VALID[2..]);
            let Ok(value) = HeaderValue::from_bytes(value.as_bytes()) else { continue };
            assert_eq!(read(value.as_bytes()), None, "{value:?}");
        }
    }
}

#[test]
fn what_is_malformed_is_none() {
    let zeros = |range: Range<usize>| VALID.replace(&VALID[range.clone()], &"0".repeat(range.len()));
    for value in [
        String::new(),
        VALID[..54].to_owned(),
        format!("{VALID}0"),
        format!("{VALID}-"),
        format!("{VALID},{VALID}"),
        VALID.to_uppercase(),
        VALID.replacen("00-", "ff-", 1),
        VALID.replacen("00-", "0g-", 1),
        VALID.replacen("00-", "000-", 1),
        VALID.replacen("00-", "CC-", 1),
        VALID.replace("-01", "-0g"),
        VALID.replace('-', "_"),
        VALID.replacen("-00f0", "000f0", 1),
        VALID.replace("4bf9", "4bfg"),
        VALID.replace("4bf9", "\u{e9}\u{e9}"),
        zeros(TRACE_ID),
        zeros(PARENT_ID),
    ] {
        assert_eq!(read(value.as_bytes()), None, "{value}");
    }
    assert_eq!(read(&[0xff; 55]), None);
}

/// The W3C Trace Context test suite requires this, because nothing shows which of the two is right.
#[test]
fn two_are_none() {
    let other = VALID.replace("4bf9", "aaaa");
    assert_eq!(Traceparent::read(&headers(&[VALID.as_bytes(), other.as_bytes()], &[])), None);
    assert_eq!(Traceparent::read(&headers(&[VALID.as_bytes(); 2], &[b"a=1"])), None);
}

#[test]
fn the_tracestate_is_kept_beside_it() {
    let state = |states: &[&[u8]]| {
        let trace = Traceparent::read(&headers(&[VALID.as_bytes()], states)).unwrap();
        trace.state().map(|state| state.to_str().unwrap().to_owned())
    };
    assert_eq!(state(&[]), None);
    assert_eq!(state(&[b"congo=t61,rojo=1"]).as_deref(), Some("congo=t61,rojo=1"));
    assert_eq!(state(&[b"congo=t61", b"rojo=1, x=2"]).as_deref(), Some("congo=t61,rojo=1, x=2"));
    // A list that is not text is dropped as a whole. The trace is kept.
    assert_eq!(state(&[b"congo=t61", b"rojo=\xff"]), None);
    // It is meaningless without a valid traceparent.
    assert_eq!(Traceparent::read(&headers(&[b"junk"], &[b"congo=t61"])), None);
}

#[test]
fn a_tracestate_without_measure_is_dropped_whole() {
    let kept = |states: &[&[u8]]| Traceparent::read(&headers(&[VALID.as_bytes()], states)).unwrap().state().is_some();
    let long = |length: usize| [&b"a="[..], &vec![b'x'; length - 2]].concat();
    assert!(kept(&[&long(512)]) && kept(&[&long(1024)]));
    assert!(!kept(&[&long(1025)]));
    // The comma between them counts too.
    assert!(kept(&[&long(512), &long(511)]));
    assert!(!kept(&[&long(512), &long(512)]));
    let members = |count: usize| vec!["a=1"; count].join(",").into_bytes();
    assert!(kept(&[&members(32)]) && kept(&[&members(16), b",, ,", &members(16)]));
    assert!(!kept(&[&members(33)]) && !kept(&[&members(16), &members(17)]));
}

#[test]
fn it_is_written_where_no_other_is() {
    let trace = Traceparent::read(&headers(&[VALID.as_bytes()], &[b"congo=t61"])).unwrap();
    let without_state = read(VALID.as_bytes()).unwrap();
    let written = |trace: &Traceparent, mut headers: HeaderMap| {
        trace.write(&mut headers);
        headers
    };
    assert_eq!(written(&trace, HeaderMap::new()), headers(&[VALID.as_bytes()], &[b"congo=t61"]));
    assert_eq!(written(&trace, headers(&[], &[b"stray=1"])), headers(&[VALID.as_bytes()], &[b"congo=t61"]));
    assert_eq!(written(&without_state, headers(&[], &[b"stray=1"])), headers(&[VALID.as_bytes()], &[]));
    let set_on_purpose = headers(&[b"00-set-on-purpose"], &[b"own=1"]);
    assert_eq!(written(&trace, set_on_purpose.clone()), set_on_purpose);
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(value in proptest::collection::vec(any::<u8>(), 0..70)) {
        let _ = is_valid(&value);
    }

    /// Changes one byte of a valid header. Headers that are still accepted match an independent pattern.
    #[test]
    fn what_is_taken_over_has_the_form(at in 0..55_usize, byte in any::<u8>(), version in "(00|01|fe|ff)", rest in "(|-x|x)") {
        let mut value = format!("{version}{}{rest}", &VALID[2..]).into_bytes();
        value[at] = byte;
        let form = std::str::from_utf8(&value).is_ok_and(|text| {
            let parts: Vec<_> = text.splitn(5, '-').collect();
            let hex = |part: &str, length| {
                part.len() == length && part.chars().all(|char| char.is_ascii_digit() || ('a'..='f').contains(&char))
            };
            let known = parts.len() >= 4
                && hex(parts[0], 2) && hex(parts[1], 32) && hex(parts[2], 16) && hex(parts[3], 2)
                && u128::from_str_radix(parts[1], 16).unwrap() != 0
                && u64::from_str_radix(parts[2], 16).unwrap() != 0;
            known && parts[0] != "ff" && (parts[0] != "00" || parts.len() == 4)
        });
        prop_assert_eq!(is_valid(&value), form, "{}", String::from_utf8_lossy(&value));
    }

    #[test]
    fn what_was_read_is_written_and_read_again(
        version in 0..=0xfe_u8, trace in 1..u128::MAX, parent in 1..u64::MAX, flags in any::<u8>()
    ) {
        let value = format!("{version:02x}-{trace:032x}-{parent:016x}-{flags:02x}");
        let read = read(value.as_bytes()).unwrap();
        prop_assert_eq!(read.trace_id(), format!("{trace:032x}"));
        prop_assert_eq!(read.parent_id(), format!("{parent:016x}"));
        prop_assert_eq!(read.is_sampled(), flags % 2 == 1);
        let mut headers = HeaderMap::new();
        read.write(&mut headers);
        prop_assert_eq!(headers.get(TRACEPARENT).unwrap(), value.as_str());
        prop_assert_eq!(Traceparent::read(&headers), Some(read));
    }
}
