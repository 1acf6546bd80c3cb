use proptest::prelude::*;

use super::*;

const OWN: HeaderName = HeaderName::from_static("x-request-timeout-ms");

fn both() -> [TimeoutHeader; 2] {
    [TimeoutHeader::grpc(), TimeoutHeader::millis(OWN)]
}

fn read(header: &TimeoutHeader, value: &[u8]) -> Option<Duration> {
    let value = HeaderValue::from_bytes(value).unwrap();
    header.read(&HeaderMap::from_iter([(header.name().clone(), value)]))
}

fn written(header: &TimeoutHeader, time: Duration) -> String {
    let mut headers = HeaderMap::new();
    header.write(time, &mut headers);
    headers[header.name()].to_str().unwrap().to_owned()
}

#[test]
fn every_unit_is_read() {
    let [grpc, own] = both();
    for (value, time) in [
        ("1n", Duration::from_nanos(1)),
        ("20u", Duration::from_micros(20)),
        ("300m", Duration::from_millis(300)),
        ("7S", Duration::from_secs(7)),
        ("2M", Duration::from_secs(120)),
        ("1H", Duration::from_secs(3600)),
        ("00000005S", Duration::from_secs(5)),
        ("99999999H", Duration::from_secs(99_999_999 * 3600)),
        ("0n", Duration::ZERO),
    ] {
        assert_eq!(read(&grpc, value.as_bytes()), Some(time), "{value}");
    }
    for (value, millis) in [("0", 0), ("1500", 1500), ("18446744073709551615", u64::MAX)] {
        assert_eq!(read(&own, value.as_bytes()), Some(Duration::from_millis(millis)), "{value}");
    }
}

#[test]
fn what_is_malformed_is_ignored() {
    let [grpc, own] = both();
    #[rustfmt::skip]
    let never: [&[u8]; 14] = [
        b"", b" ", b"S", b"nan", b"-1S", b"+1S", b"1.5S", b"1 S", b"1_0S", b"0x1S", b"\xd9\xa3S", b"1\xff", b"1e3", b"1S,2S",
    ];
    for value in never {
        assert_eq!(read(&grpc, value), None, "{value:?}");
        assert_eq!(read(&own, value), None, "{value:?}");
    }
    for value in ["123456789H", "000000001S", "1", "1s", "1h", "5SS", "5mS", "1h5m", "5S "] {
        assert_eq!(read(&grpc, value.as_bytes()), None, "{value}");
    }
    for value in ["-1", "+1", "1.0", "1ms", "18446744073709551616", "99999999999999999999999999"] {
        assert_eq!(read(&own, value.as_bytes()), None, "{value}");
    }
    assert_eq!(grpc.read(&HeaderMap::new()), None);
}

#[test]
fn of_several_the_smallest_valid_one_counts() {
    let [grpc, _] = both();
    let mut headers = HeaderMap::new();
    for value in ["5S", "123456789H", "1S", "-1n", "2S"] {
        headers.append(grpc.name(), HeaderValue::from_static(value));
    }
    assert_eq!(grpc.read(&headers), Some(Duration::from_secs(1)));
    grpc.write(Duration::from_secs(3), &mut headers);
    assert_eq!(headers.get_all(grpc.name()).iter().collect::<Vec<_>>(), ["3000000u"]);
}

#[test]
fn it_is_written_in_the_finest_unit_that_has_room() {
    let [grpc, own] = both();
    for (time, in_grpc, in_millis) in [
        (Duration::ZERO, "1n", "1"),
        (Duration::from_nanos(999_999), "999999n", "1"),
        (Duration::from_nanos(99_999_999), "99999999n", "99"),
        (Duration::from_nanos(100_000_999), "100000u", "100"),
        (Duration::from_micros(99_999_999), "99999999u", "99999"),
        (Duration::from_secs(100), "100000m", "100000"),
        (Duration::from_secs(100_000), "100000S", "100000000"),
        (Duration::from_secs(100_000_019), "1666666M", "100000019000"),
        (Duration::from_secs(60 * 100_000_000), "1666666H", "6000000000000"),
        (Duration::MAX, "99999999H", "18446744073709551615"),
    ] {
        assert_eq!(written(&grpc, time), in_grpc, "{time:?}");
        assert_eq!(written(&own, time), in_millis, "{time:?}");
    }
}

#[test]
fn a_limit_is_the_smaller_of_both() {
    let second = Duration::from_secs(1);
    let request = |value: Option<&str>| {
        let request = Request::get("/");
        value.into_iter().fold(request, |request, value| request.header("grpc-timeout", value)).body(()).unwrap()
    };
    let at_most = TimeoutHeader::grpc().at_most(5 * second);
    for (value, limit) in [(None, 5), (Some("9S"), 5), (Some("2S"), 2), (Some("123456789H"), 5), (Some("junk"), 5)] {
        assert_eq!(at_most.get(&request(value)), Some(limit * second), "{value:?}");
    }
    assert_eq!(at_most.get(&request(Some("0n"))), Some(Duration::ZERO));

    let no_limit = TimeoutHeader::grpc().at_most(|_: &Request<()>| None);
    assert_eq!(no_limit.get(&request(Some("2S"))), Some(2 * second));
    assert_eq!(no_limit.get(&request(None)), None);
}

/// Any duration, with each order of magnitude equally likely.
fn any_time() -> impl Strategy<Value = Duration> {
    let seconds = (any::<u64>(), 0_u32..64).prop_map(|(seconds, shift)| seconds >> shift);
    let nanos = (0_u32..1_000_000_000, 0_u32..30).prop_map(|(nanos, shift)| nanos >> shift);
    (seconds, nanos).prop_map(|(seconds, nanos)| Duration::new(seconds, nanos))
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(value in proptest::collection::vec(any::<u8>(), 0..24)) {
        for form in [Form::Grpc, Form::Millis] {
            let _ = form.parse(&value);
        }
    }

    /// Digits and a unit parse as written. Any extra character makes the value invalid.
    #[test]
    fn what_is_read_is_what_it_says(number in 0_u32..=99_999_999, unit in 0_usize..6, junk in "[^0-9]{1,2}", at in 0_usize..9) {
        let (letter, one) = UNITS[unit];
        let mut value = format!("{number}{}", char::from(letter));
        prop_assert_eq!(Form::Grpc.parse(value.as_bytes()), Some(one * number));
        prop_assert_eq!(Form::Millis.parse(number.to_string().as_bytes()), Some(Duration::from_millis(number.into())));
        value.insert_str(at.min(value.len()), &junk);
        prop_assert_eq!(Form::Grpc.parse(value.as_bytes()), None);
        prop_assert_eq!(Form::Millis.parse(value.as_bytes()), None);
    }

    #[test]
    fn the_next_hop_never_gets_more_time_than_is_left(time in any_time()) {
        for (header, finest) in both().into_iter().zip([UNITS[0].1, UNITS[2].1]) {
            let read = read(&header, written(&header, time).as_bytes()).unwrap();
            prop_assert!(read <= time.max(finest), "{time:?} became {read:?}");
        }
        let read = read(&TimeoutHeader::grpc(), written(&TimeoutHeader::grpc(), time).as_bytes()).unwrap();
        let lost = time.saturating_sub(read);
        prop_assert!(read == Duration::from_secs(99_999_999 * 3600) || lost <= time / 100_000, "{time:?} lost {lost:?}");
    }

    /// A proxy can write every value that it read, in any unit.
    #[test]
    fn what_came_in_a_header_is_passed_on_exactly(number in 1_u32..=99_999_999, unit in 0_usize..6) {
        let time = UNITS[unit].1 * number;
        prop_assert_eq!(Form::Grpc.parse(written(&TimeoutHeader::grpc(), time).as_bytes()), Some(time));
    }
}
