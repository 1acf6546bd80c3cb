use std::io;

use http::header::RETRY_AFTER;
use proptest::prelude::*;

use super::*;
use crate::telemetry::LayerInfo;

fn judged(status: u16, headers: &[(&str, &[u8])]) -> Class {
    let mut response = Response::builder().status(status);
    for (name, value) in headers {
        response = response.header(*name, *value);
    }
    GrpcStatus.classify(Ok::<_, &Infallible>(&response.body(()).unwrap()))
}

fn after(millis: u64) -> Class {
    Class::Failure { transient: true, retry_after: Some(Duration::from_millis(millis)) }
}

#[test]
fn every_code_has_a_class() {
    use Class::{Ignored, Success};
    let (transient, permanent) = (Class::TRANSIENT, Class::PERMANENT);
    for (code, class) in [
        (0, Success),
        (1, Ignored),
        (2, permanent),
        (3, Success),
        (4, permanent),
        (5, Success),
        (6, Success),
        (7, Success),
        (8, Ignored),
        (9, Success),
        (10, Success),
        (11, Success),
        (12, Success),
        (13, permanent),
        (14, transient),
        (15, permanent),
        (16, Success),
        (17, permanent),
        (-1, permanent),
    ] {
        let code = code.to_string();
        assert_eq!(judged(200, &[("grpc-status", code.as_bytes())]), class, "{code}");
        // A gRPC status takes precedence over the HTTP status.
        assert_eq!(judged(500, &[("grpc-status", code.as_bytes())]), class, "{code}");
    }
    for junk in [&b""[..], b"OK", b"14 ", b"+14", b"014", b"-0", b"00", b"99999999999", b"\xff"] {
        assert_eq!(judged(200, &[("grpc-status", junk)]), permanent, "{junk:?}");
    }
}

#[test]
fn without_a_status_that_of_http_is_mapped() {
    let typed = |kind: &'static str| judged(200, &[("content-type", kind.as_bytes())]);
    for kind in ["application/grpc", "application/grpc+proto", "Application/gRPC; x=y", "application/grpc-web+proto"] {
        assert_eq!(typed(kind), Class::Success, "{kind}: the status is in the trailers");
    }
    for kind in ["text/html", "application/json", "application/grpcx", "application/grp", ""] {
        assert_eq!(typed(kind), Class::PERMANENT, "{kind}: not gRPC");
    }
    assert_eq!(judged(200, &[]), Class::PERMANENT, "no content type");
    for status in [502, 503, 504] {
        assert_eq!(judged(status, &[]), Class::TRANSIENT, "{status}");
    }
    assert_eq!(judged(429, &[]), Class::DECLINED);
    for status in [401, 403, 404] {
        assert_eq!(judged(status, &[]), Class::Success, "{status}");
    }
    for status in [204, 302, 400, 418, 431, 500, 501] {
        assert_eq!(judged(status, &[]), Class::PERMANENT, "{status}");
    }
    assert_eq!(judged(503, &[(RETRY_AFTER.as_str(), b"7")]), after(7000));
    assert_eq!(judged(503, &[(RETRY_AFTER.as_str(), b"soon")]), Class::TRANSIENT);
}

#[test]
fn a_server_says_when_to_come_back_or_not_to() {
    // `RESOURCE_EXHAUSTED` concerns its caller, and never counts against the service.
    let declined = |millis| Class::Declined { retry_after: Some(Duration::from_millis(millis)) };
    for is_declined in [false, true] {
        let (code, given_up) = if is_declined { (&b"8"[..], Class::Ignored) } else { (&b"14"[..], Class::PERMANENT) };
        let after = |millis| if is_declined { declined(millis) } else { after(millis) };
        let judged = |pushback| judged(200, &[("grpc-status", code), (PUSHBACK, pushback)]);
        assert_eq!(judged(b"0"), after(0));
        assert_eq!(judged(b"250"), after(250));
        assert_eq!(judged(b"2147483647"), after(2_147_483_647));
        for never in
            [&b"-1"[..], b"2147483648", b"-999999999999", b"1.5", b"+5", b"-0", b"05", b" 5", b"", b"soon", b"\xc3\xb6"]
        {
            assert_eq!(judged(never), given_up, "{never:?}");
        }
    }
    // It has no effect on a status that is not retried.
    assert_eq!(judged(200, &[("grpc-status", b"4"), (PUSHBACK, b"5")]), Class::PERMANENT);
    assert_eq!(judged(200, &[("grpc-status", b"5"), (PUSHBACK, b"-1")]), Class::Success);
}

/// Shows: G2
#[test]
fn a_degraded_success_says_nothing_and_a_degraded_failure_is_one() {
    let degraded = crate::Degraded::new(&Err::<Response<()>, _>(Error::Service("down")));
    for (code, class) in [("0", Class::Ignored), ("5", Class::Ignored), ("13", Class::PERMANENT)] {
        let response = Response::builder().header(STATUS, code).extension(degraded.clone()).body(()).unwrap();
        assert_eq!(GrpcStatus.judge(&response), class, "{code}");
    }
}

#[test]
fn an_error_is_a_transient_failure() {
    type Typed = Error<io::Error>;
    let typed = Typed::Service(io::Error::other("reset"));
    assert_eq!(GrpcStatus.classify(Err::<&Response<()>, _>(&typed)), Class::TRANSIENT);
    let boxed = crate::outcome::boxed("reset");
    assert_eq!(GrpcStatus.classify(Err::<&Response<()>, _>(&boxed)), Class::TRANSIENT);
}

#[test]
fn a_rejection_has_a_code_and_says_in_milliseconds_when_to_come_back() {
    let limit = Duration::from_secs(1);
    for (reason, code) in [
        (Reason::TimedOut { limit }, 4),
        (Reason::DeadlineExceeded { after: Some(limit) }, 4),
        (Reason::Overloaded { limit: 1 }, 8),
        (Reason::RateLimited, 8),
        (Reason::CostTooHigh { cost: 3, burst: 2 }, 8),
        (Reason::NoKey, 3),
        (Reason::KeyReused, 3),
        (Reason::Duplicate, 10),
        (Reason::BodyTooLarge { max: 1 }, 8),
        (Reason::TooManyKeys { max: 1 }, 8),
        (Reason::StoreUnavailable { message: "secret".into() }, 14),
        (Reason::CircuitOpen, 14),
        (Reason::Shared { message: "secret".into(), class: Class::PERMANENT }, 2),
        (Reason::Shared { message: "secret".into(), class: Class::TRANSIENT }, 14),
        (Reason::Recursive, 13),
        (Reason::Injected, 14),
        (Reason::Exhausted { max_wait: limit }, 8),
        (Reason::Unavailable { message: "secret".into() }, 14),
        (Reason::UploadStalled { idle: limit }, 1),
        (Reason::UploadFailed { message: "secret".into() }, 1),
        (Reason::Draining { grace: None }, 14),
    ] {
        let rejection = LayerInfo::new("any").reject(reason);
        assert_eq!((rejection.grpc_code(), rejection.grpc_pushback()), (code, None));
        for (wait, millis) in [
            (Duration::ZERO, None),
            (Duration::from_nanos(1), Some(1)),
            (Duration::from_micros(1500), Some(2)),
            (Duration::from_secs(3), Some(3000)),
            (Duration::MAX, Some(i32::MAX)),
        ] {
            assert_eq!(rejection.clone().with_retry_after(wait).grpc_pushback(), millis);
        }
    }
}

proptest! {
    #[test]
    fn whatever_a_peer_sends_has_a_class(
        status in 100..1000_u16,
        code in proptest::option::of(any::<Vec<u8>>()),
        pushback in proptest::option::of(any::<Vec<u8>>()),
    ) {
        let mut response = Response::new(());
        *response.status_mut() = StatusCode::from_u16(status).unwrap();
        for (name, value) in [(STATUS, code), (PUSHBACK, pushback)] {
            if let Some(Ok(value)) = value.map(|value| HeaderValue::from_bytes(&value)) {
                response.headers_mut().insert(name, value);
            }
        }
        let judged = GrpcStatus.judge(&response);
        if !response.headers().contains_key(STATUS) {
            let mapped = [401, 403, 404].contains(&status);
            prop_assert_eq!(judged == Class::Success, mapped);
        }
    }

    /// Parses the digits independently, and accepts only the canonical form.
    #[test]
    fn a_pushback_is_a_number_of_32_bits_or_never(text in "-?[0-9]{0,12}") {
        let digits = text.strip_prefix('-').unwrap_or(&text);
        let number = digits.bytes().fold(0_u64, |number, digit| number * 10 + u64::from(digit - b'0'));
        let good = number <= 0x7fff_ffff && text == number.to_string();
        let expected = if good { Pushback::After(Duration::from_millis(number)) } else { Pushback::Never };
        prop_assert_eq!(Pushback::read(text.as_bytes()), expected);
    }
}

#[cfg(feature = "tonic")]
mod tonic {
    use ::tonic::{Code, Status};

    use super::*;
    use crate::outcome::Reject;

    fn judged(status: &Status) -> Class {
        let around_a_channel = GrpcStatus.classify(Err::<&Response<()>, _>(status));
        let around_a_client = GrpcStatus.classify(Err::<&::tonic::Response<()>, _>(status));
        assert_eq!(around_a_channel, around_a_client);
        around_a_channel
    }

    #[test]
    fn a_status_that_a_peer_sent_is_judged_by_its_code() {
        assert_eq!(judged(&Status::unavailable("")), Class::TRANSIENT);
        assert_eq!(judged(&Status::unknown("")), Class::PERMANENT);
        assert_eq!(judged(&Status::cancelled("")), Class::Ignored);
        assert_eq!(judged(&Status::not_found("")), Class::Success);
        let mut pushed_back = Status::resource_exhausted("");
        assert_eq!(judged(&pushed_back), Class::Ignored);
        pushed_back.metadata_mut().insert(PUSHBACK, 20.into());
        let asked = Some(Duration::from_millis(20));
        assert_eq!(judged(&pushed_back), Class::Declined { retry_after: asked });
        assert_eq!(GrpcStatus.classify(Ok::<_, &Status>(&::tonic::Response::new(()))), Class::Success);
    }

    #[test]
    fn a_status_that_was_made_of_an_error_of_the_transport_is_transient() {
        assert_eq!(judged(&status(io::Error::from(io::ErrorKind::ConnectionReset))), Class::TRANSIENT);
    }

    /// Shows: R4
    #[test]
    fn a_rejection_is_a_status_and_is_found_in_it() {
        let rejection = LayerInfo::new("any").named("secret").reject(Reason::CircuitOpen);
        let outcome: Result<(), Status> = Reject::reject(rejection.with_retry_after(Duration::from_millis(1500)));
        assert!(crate::outcome::rejection(&outcome).unwrap().is_circuit_open());
        let made = outcome.unwrap_err();
        assert_eq!((made.code(), made.message()), (Code::Unavailable, "any: the circuit is open"));
        assert_eq!(made.metadata().get(PUSHBACK).unwrap(), "1500");

        // The generated client boxes the error of its service in the same way. The status stays the same.
        let boxed: Box<dyn StdError + Send + Sync> = Box::new(made);
        let made = status(boxed);
        assert_eq!(made.code(), Code::Unavailable);
        assert!(Rejection::find(&made).unwrap().is_circuit_open());
        // The rejection is also found in another stack's error.
        let other: Result<(), Error<io::Error>> = Reject::reject(LayerInfo::new("any").reject(Reason::RateLimited));
        let made: Result<(), Status> = other.map_err(status);
        assert_eq!(crate::outcome::rejection(&made).unwrap().reason(), &Reason::RateLimited);
        assert_eq!(made.unwrap_err().code(), Code::ResourceExhausted);
        assert!(crate::outcome::rejection(&Err::<(), _>(Status::unavailable(""))).is_none());
    }
}

/// The status may follow the messages.
#[test]
fn trailers_are_judged_as_headers_are() {
    let judged = |status: &'static str| {
        let trailers =
            HeaderMap::from_iter([(http::HeaderName::from_static(STATUS), HeaderValue::from_static(status))]);
        Classify::<Response<()>, Infallible>::classify_trailers(&GrpcStatus, &trailers)
    };
    assert_eq!(judged("0"), Class::Success);
    assert_eq!(judged("5"), Class::Success);
    assert_eq!(judged("13"), Class::PERMANENT);
    assert_eq!(judged("14"), Class::TRANSIENT);
    let none = Classify::<Response<()>, Error<()>>::classify_trailers(&GrpcStatus, &HeaderMap::new());
    assert_eq!(none, Class::PERMANENT, "a call without a status is `UNKNOWN`");
}

#[test]
fn a_body_that_ends_without_trailers_is_unknown_unless_its_status_came_before() {
    for (headers, class) in [
        (&[("content-type", "application/grpc")][..], Class::PERMANENT),
        (&[("content-type", "application/grpc+json")], Class::PERMANENT),
        (&[("content-type", "application/grpc"), (STATUS, "0")], Class::Success),
        (&[("content-type", "application/grpc-web-text")], Class::Success),
    ] {
        let response =
            headers.iter().fold(Response::builder(), |response, (name, value)| response.header(*name, *value));
        let response = response.body(()).unwrap();
        assert_eq!(GrpcStatus.judge(&response), Class::Success, "{headers:?}");
        let judged = |judge: &dyn Fn() -> Class| assert_eq!(judge(), class, "{headers:?}");
        judged(&|| Classify::<_, Infallible>::classify_without_trailers(&GrpcStatus, &response));
        judged(&|| Classify::<_, Error<()>>::classify_without_trailers(&GrpcStatus, &response));
        judged(&|| Classify::<_, Box<dyn StdError + Send + Sync>>::classify_without_trailers(&GrpcStatus, &response));
    }
}
