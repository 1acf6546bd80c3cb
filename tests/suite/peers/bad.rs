//! Peers that break the rules of HTTP: their clients and servers get a clear error or response, everything is released,
//! and the next call works.

use std::convert::Infallible;

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::{Request, Response, body::Incoming, header::HeaderValue};
use tokio::sync::mpsc;
use tower::{ServiceBuilder, service_fn};
use ziggurat::{Error, circuit_breaker::State};

use super::{
    BOTH, BoxError, Client, Outcome, Server, Version, Watch, answer, call, get, hello, pooled,
    raw::{self, DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, RST_STREAM, RawServer, SETTINGS, frame},
    serve,
    server::guarded,
    settle, soon, stack,
};

/// How a call ends after a bad response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ending {
    /// There is no response.
    NoAnswer,
    /// There is a response, but its body fails.
    BodyError,
    /// The response is accepted anyway.
    Body(&'static str),
}

use Ending::{Body, BodyError, NoAnswer};

const HTTP_1: &[(&str, &[u8], Ending)] = &[
    ("closed before the head", b"", NoAnswer),
    ("closed in the head", b"HTTP/1.1 200 OK\r\nContent-Le", NoAnswer),
    ("a garbage status line", b"ICY 200 OK\r\n\r\n", NoAnswer),
    ("no HTTP at all", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", NoAnswer),
    ("a status beyond 999", b"HTTP/1.1 20000 OK\r\n\r\n", NoAnswer),
    ("two lengths that differ", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello", NoAnswer),
    ("a length below zero", b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\nhello", NoAnswer),
    ("a header name that is not ASCII", b"HTTP/1.1 200 OK\r\nX-\xc3\xa9: 1\r\n\r\n", NoAnswer),
    ("chunks cut in the middle", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhel", BodyError),
    ("chunks cut between two", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n", BodyError),
    ("a chunk of no length", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nsome\r\nhello\r\n", BodyError),
    ("a body that is too short", b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello", BodyError),
    ("a body that is too long", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello there", Body("hello")),
    ("a second answer", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 500 No\r\n\r\n", Body("ok")),
    ("a value that is not ASCII", b"HTTP/1.1 200 caf\xc3\xa9\r\nX-Name: \xff\xfe\r\n\r\n", Body("")),
];

/// The bytes that an HTTP/2 server sends after its settings.
fn http_2() -> Vec<(&'static str, Vec<u8>, Ending)> {
    let start = || [frame(SETTINGS, 0, 0, &[]), frame(HEADERS, END_HEADERS, 1, OK)].concat();
    // `:status: 200`, and `content-length: 10`.
    const OK: &[u8] = &[0x88];
    const OK_10: &[u8] = &[0x88, 0x0f, 0x0d, 2, b'1', b'0'];
    let settings = frame(SETTINGS, 0, 0, &[]);
    vec![
        ("closed before anything", vec![], NoAnswer),
        ("an answer of HTTP/1", b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec(), NoAnswer),
        ("closed before the head", settings.clone(), NoAnswer),
        ("gone with an error", [settings.clone(), frame(GOAWAY, 0, 0, &[0, 0, 0, 0, 0, 0, 0, 11])].concat(), NoAnswer),
        ("gone without one", [settings.clone(), frame(GOAWAY, 0, 0, &[0; 8])].concat(), NoAnswer),
        ("reset at once", [settings.clone(), frame(RST_STREAM, 0, 1, &[0, 0, 0, 2])].concat(), NoAnswer),
        ("settings of a stream", frame(SETTINGS, 0, 1, &[]), NoAnswer),
        ("a head that is none", [settings.clone(), frame(HEADERS, END_HEADERS, 1, &[0xff; 20])].concat(), NoAnswer),
        ("closed in the body", [start(), frame(DATA, 0, 1, b"hello")].concat(), BodyError),
        (
            "reset in the body",
            [start(), frame(DATA, 0, 1, b"hello"), frame(RST_STREAM, 0, 1, &[0, 0, 0, 8])].concat(),
            BodyError,
        ),
        ("a frame cut in the middle", [start(), frame(DATA, 0, 1, b"hello")[..11].to_vec()].concat(), BodyError),
        (
            "a body that is too short",
            [settings, frame(HEADERS, END_HEADERS, 1, OK_10), frame(DATA, END_STREAM, 1, b"hello")].concat(),
            BodyError,
        ),
    ]
}

async fn ending(outcome: &mut Outcome) -> Result<Bytes, Ending> {
    match outcome {
        Ok(response) => Ok(soon(response.body_mut().collect()).await.map_err(|_: BoxError| BodyError)?.to_bytes()),
        Err(Error::Service(_)) => Err(NoAnswer),
        Err(Error::Rejected(rejection)) => panic!("{rejection}"),
    }
}

async fn well() -> Server {
    serve(service_fn(|_: Request<Incoming>| async { Ok::<_, Infallible>(answer("hello")) })).await
}

/// Calls a server that sends these bytes once, and then calls it again.
async fn check(name: &str, bytes: &[u8], expected: Ending, well: &Server, client: impl Fn(u32) -> (Client, Watch)) {
    for attempts in [1, 2] {
        let server = RawServer::start(vec![bytes.to_vec()], well.address).await;
        let (client, watch) = client(attempts);
        let mut outcome = call(&client, get(server.address, "/")).await;
        let ended = ending(&mut outcome).await;
        match expected {
            // Without a response, and if the request may be repeated, another attempt succeeds.
            NoAnswer if attempts == 2 => assert_eq!(ended.unwrap(), "hello", "{name}"),
            Body(text) => assert_eq!(ended.unwrap(), text, "{name}"),
            _ => assert_eq!(ended, Err(expected), "{name}"),
        }
        // Although the response still exists.
        watch.all_back().await;
        drop(outcome);
        settle().await;
        hello(&client, server.address).await;
        assert_eq!(server.accepted(), 2, "{name}");
        watch.all_back().await;
    }
}

/// Shows: L2, R5
#[tokio::test]
async fn what_a_bad_server_answers_is_a_clear_error_and_the_next_call_works() {
    let well = well().await;
    for (name, bytes, expected) in HTTP_1 {
        check(name, bytes, *expected, &well, |attempts| stack(attempts, pooled(Version::Http1))).await;
    }
}

/// Shows: L2, R5
#[tokio::test]
async fn what_a_bad_http_2_server_answers_is_a_clear_error_and_the_next_call_works() {
    let well = well().await;
    for (name, bytes, expected) in http_2() {
        check(name, &bytes, expected, &well, |attempts| stack(attempts, pooled(Version::Http2))).await;
    }
}

/// Checks reqwest, as a service of the `http` crate's types.
///
/// Shows: L2, R5
#[tokio::test]
async fn what_a_bad_server_answers_to_reqwest_is_a_clear_error_and_the_next_call_works() {
    let well = well().await;
    for (name, bytes, expected) in HTTP_1 {
        check(name, bytes, *expected, &well, |attempts| {
            let client = ServiceBuilder::new()
                .map_request(|req: Request<_>| reqwest::Request::try_from(req.map(reqwest::Body::wrap)).unwrap())
                .map_response(Response::<reqwest::Body>::from)
                .service(reqwest::Client::new());
            stack(attempts, client)
        })
        .await;
    }
}

/// Shows: R5
#[tokio::test]
async fn an_absurd_retry_after_is_obeyed_up_to_300_seconds_and_junk_counts_as_absent() {
    let well = well().await;
    let cases: [(&[u8], bool); 14] = [
        (b"0", true),
        (b"Thu, 01 Jan 1970 00:00:00 GMT", true),
        (b"", true),
        (b"-1", true),
        (b"+1000", true),
        (b"1e9", true),
        (b"soon", true),
        (b"\xff\xfe", true),
        (b"Thu, 99 Foo 9999 99:99:99 GMT", true),
        (b"301", false),
        (b"999999999999999", false),
        (b"18446744073709551615", false),
        (b"99999999999999999999999", false),
        (b"Fri, 31 Dec 9999 23:59:59 GMT", false),
    ];
    for status in ["429 Too Many Requests", "503 Service Unavailable"] {
        for (value, retried) in cases {
            let head = format!("HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: 4\r\nRetry-After: ");
            let bad = [head.as_bytes(), value, b"\r\n\r\nbusy"].concat();
            let server = RawServer::start(vec![bad], well.address).await;
            let (client, watch) = stack(3, pooled(Version::Http1));
            let response = call(&client, get(server.address, "/")).await.unwrap();
            let value = HeaderValue::from_bytes(value).unwrap();
            assert_eq!(response.status() == 200, retried, "{value:?}");
            let body = soon(response.collect()).await.unwrap().to_bytes();
            assert_eq!(body, if retried { "hello" } else { "busy" }, "{value:?}");
            assert_eq!(server.accepted(), if retried { 2 } else { 1 }, "{value:?}");
            watch.all_back().await;
        }
    }
}

/// The bytes that a client sends, the status of the response (any, without one), and the body that the handler
/// receives, or its error, if the request gets that far.
type BadRequest = (&'static str, &'static [u8], Option<&'static str>, Option<Result<&'static str, ()>>);

const REQUESTS: &[BadRequest] = &[
    (
        "a value that is not ASCII",
        b"GET / HTTP/1.1\r\nhost: h\r\nx-name: caf\xc3\xa9 \xff\r\n\r\n",
        Some("200"),
        Some(Ok("")),
    ),
    ("a name that is not ASCII", b"GET / HTTP/1.1\r\nhost: h\r\nx-\xc3\xa9: 1\r\n\r\n", Some("400"), None),
    ("a garbage request line", b"HELO example.org\r\n\r\n", Some("400"), None),
    ("closed in the head", b"GET / HTTP/1.1\r\nho", None, None),
    (
        "two lengths that differ",
        b"POST / HTTP/1.1\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello",
        Some("400"),
        None,
    ),
    ("chunks cut in the middle", b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhel", None, Some(Err(()))),
    (
        "a chunk of no length",
        b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nsome\r\nhello\r\n",
        None,
        Some(Err(())),
    ),
    ("a body that is too short", b"POST / HTTP/1.1\r\ncontent-length: 10\r\n\r\nhello", None, Some(Err(()))),
    (
        "a body that is too long",
        b"POST / HTTP/1.1\r\ncontent-length: 5\r\n\r\nhello there",
        Some("200"),
        Some(Ok("hello")),
    ),
    ("half a preface of HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM", None, None),
    ("HTTP/2 with a broken frame", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff\xff\xff\xff\xff\xff\xff", None, None),
];

/// Shows: L2
#[tokio::test]
async fn what_a_bad_client_sends_is_answered_or_dropped_and_the_next_call_works() {
    let (found, mut uploads) = mpsc::unbounded_channel::<Result<Bytes, ()>>();
    let (stack, watch, circuit) = guarded(service_fn(move |request: Request<Incoming>| {
        let found = found.clone();
        async move {
            let upload = request.into_body().collect().await.map(|body| body.to_bytes()).map_err(drop);
            found.send(upload).unwrap();
            Ok(answer("hello"))
        }
    }));
    let server = serve(stack).await;
    for (name, bytes, status, upload) in REQUESTS {
        let answer = raw::send(server.address, bytes).await;
        let answer = String::from_utf8_lossy(&answer);
        if let Some(status) = status {
            assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{name}: {answer}");
        }
        watch.all_back().await;
        let found = uploads.try_recv().ok();
        assert_eq!(found, upload.map(|upload| upload.map(Bytes::from)), "{name}: {answer}");

        for version in BOTH {
            let response = soon(pooled(version).request(get(server.address, "/"))).await.unwrap();
            assert_eq!(soon(response.collect()).await.unwrap().to_bytes(), "hello");
            uploads.try_recv().unwrap().unwrap();
        }
        watch.all_back().await;
    }
    assert_eq!(circuit.state(), State::Closed);
}
