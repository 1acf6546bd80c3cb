//! The proxy's duties by the HTTP specification: which messages it forwards, and in which form.

use super::*;
use ::hyper::{
    client::conn::http2,
    header::{HOST, HeaderValue},
};

#[tokio::test]
async fn what_a_proxy_cannot_do_is_not_forwarded() {
    // A forwarded request gets a 502.
    let nobody = nobody().await;
    let get = "GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n";
    let cases = [
        ("a tunnel", "CONNECT a:80 HTTP/1.1\r\nhost: a:80\r\nconnection: close\r\n\r\n".to_owned(), 501),
        ("a coding", format!("{get}transfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n"), 501),
        ("two codings", format!("{get}transfer-encoding: gzip\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n"), 501),
        ("no host", "GET / HTTP/1.1\r\nconnection: close\r\n\r\n".into(), 400),
        ("two hosts", format!("{get}host: a\r\n\r\n"), 400),
        ("no host, but a target", "GET http://a/ HTTP/1.1\r\nconnection: close\r\n\r\n".into(), 400),
        ("two hosts in HTTP/1.0", "GET / HTTP/1.0\r\nhost: a\r\nhost: a\r\n\r\n".into(), 400),
        ("not a host", "GET / HTTP/1.1\r\nhost: a/b\r\nconnection: close\r\n\r\n".into(), 400),
        ("no path", "GET echo HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n".into(), 400),
        ("a target that is a host", "GET a.example:80 HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n".into(), 400),
        ("all of them", "GET * HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n".into(), 400),
        ("another scheme", "GET ftp://a/ HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n".into(), 400),
        ("a port with a sign", "GET / HTTP/1.1\r\nhost: a:+80\r\nconnection: close\r\n\r\n".into(), 400),
        ("a password", "GET http://u:p@a/ HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n".into(), 400),
        ("a password in the host", "GET / HTTP/1.1\r\nhost: u:p@a\r\nconnection: close\r\n\r\n".into(), 400),
        ("its own", format!("{get}via: 1.0 fred, 1.1 Ziggurat (here)\r\n\r\n"), 508),
        ("its own in a second line", format!("{get}via: 1.0 fred\r\nvia: HTTP/1.1\tziggurat\r\n\r\n"), 508),
        ("the end of TRACE", get.replace("GET", "TRACE") + "max-forwards: 0\r\n\r\n", 501),
        ("the end of OPTIONS", get.replace("GET", "OPTIONS") + "max-forwards: 0\r\n\r\n", 200),
        // These are forwarded, to an address where nothing listens.
        ("a host", format!("{get}\r\n"), 502),
        ("a host and a port", "GET / HTTP/1.1\r\nhost: [::1]:80\r\nconnection: close\r\n\r\n".into(), 502),
        ("no port after the colon", "GET / HTTP/1.1\r\nhost: a:\r\nconnection: close\r\n\r\n".into(), 502),
        ("all of a URI", "GET https://a:1/ HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n".into(), 502),
        ("no name of a host", "GET / HTTP/1.1\r\nhost:\r\nconnection: close\r\n\r\n".into(), 502),
        ("no host in HTTP/1.0", "GET / HTTP/1.0\r\n\r\n".into(), 502),
        ("others", format!("{get}via: 1.1 ziggurats, 1.1 fred (ziggurat)\r\n\r\n"), 502),
        ("forwards that do not count", format!("{get}max-forwards: 0\r\n\r\n"), 502),
        ("one more forward", get.replace("GET", "OPTIONS") + "max-forwards: 1\r\n\r\n", 502),
    ];
    for (name, request, status) in cases {
        let proxy = proxy(nobody).await;
        assert_eq!(status_of(&proxy, request).await, status, "{name}");
    }
}

#[tokio::test]
async fn a_request_is_forwarded_as_the_next_hop_has_to_get_it() {
    let upstream = mirror().await;
    let proxy = proxy(upstream.address).await;
    let lines = async |head: &str| {
        let answer = exchange(&proxy, head.replace('\n', "\r\n") + "\r\n").await;
        let (_, seen) = answer.split_once("\r\n\r\n").unwrap();
        let lines = seen.lines().filter(|line| !line.starts_with("x-request-id"));
        lines.map(str::to_owned).collect::<Vec<_>>()
    };
    let host = format!("host: {}", upstream.address);
    let same = |seen: Vec<String>, expected: &[&str]| {
        let told = ["x-forwarded-for: 127.0.0.1", "x-forwarded-proto: http"];
        let (mut seen, mut expected) =
            (seen, expected.iter().chain(&told).map(|line| (*line).to_owned()).collect::<Vec<_>>());
        seen[1..].sort();
        expected[1..].sort();
        assert_eq!(seen, expected);
    };

    same(
        lines("GET /path HTTP/1.0\nhost: shop.example\nx-forwarded-host: claimed\nx-forwarded-for: 1.2.3.4\nx-forwarded-proto: https\n\
         forwarded: for=1.2.3.4\nx-real-ip: 1.2.3.4\nx-forwarded-ssl: on\nx-forwarded-for: 5.6.7.8\ncookie: a=1\ncookie: b=2; c=3\nvia: 1.0 fred\n").await,
        &["GET /path HTTP/1.1", &host, "cookie: a=1; b=2; c=3", "via: 1.0 fred", "via: 1.0 ziggurat", "x-forwarded-host: shop.example"],
    );
    // The target's own authority counts, and not the header.
    same(
        lines("OPTIONS http://shop.example:81/ HTTP/1.1\nhost: other\nmax-forwards: 7\nconnection: close\n").await,
        &["OPTIONS / HTTP/1.1", &host, "max-forwards: 6", "via: 1.1 ziggurat", "x-forwarded-host: shop.example:81"],
    );
    // The server as a whole.
    same(
        lines("OPTIONS * HTTP/1.1\nhost: a\nconnection: close\n").await,
        &["OPTIONS * HTTP/1.1", &host, "via: 1.1 ziggurat", "x-forwarded-host: a"],
    );
    same(lines("GET / HTTP/1.0\nx-forwarded-host: claimed\n").await, &["GET / HTTP/1.1", &host, "via: 1.0 ziggurat"]);
    // A length in addition to a coding is not the body's.
    let chunked = "POST / HTTP/1.1\nhost: a\ncontent-length: 3\ntransfer-encoding: Chunked\nconnection: close\n\n0\n";
    same(
        lines(chunked).await,
        &["POST / HTTP/1.1", &host, "transfer-encoding: chunked", "via: 1.1 ziggurat", "x-forwarded-host: a"],
    );

    let http2 = soon(pooled(Version::Http2).request(get(proxy.address, "/"))).await.unwrap();
    let seen = String::from_utf8(soon(http2.collect()).await.unwrap().to_bytes().to_vec()).unwrap();
    assert!(seen.contains("via: 2.0 ziggurat\n"), "{seen}");
    assert!(seen.contains(&format!("x-forwarded-host: {}\n", proxy.address)), "{seen}");
}

/// By RFC 9113, 8.3.1 they are compared by the rules of the scheme. A proxy that converts from HTTP/1.1 may have left
/// out `:authority` (RFC 7540, 8.1.2.3).
#[tokio::test]
async fn in_http2_the_host_has_to_be_that_of_the_authority() {
    let upstream = mirror().await;
    let proxy = proxy(upstream.address).await;
    let stream = TokioIo::new(TcpStream::connect(proxy.address).await.unwrap());
    let (sender, connection) = http2::handshake(TokioExecutor::new(), stream).await.unwrap();
    tokio::spawn(connection);
    for (target, hosts, told) in [
        ("http://a/", &[][..], Some("a")),
        ("http://a/", &["a"], Some("a")),
        ("http://a/", &["A"], Some("a")),
        ("http://a/", &["a:80"], Some("a")),
        ("http://a:80/", &["a"], Some("a:80")),
        ("http://a/", &["a:"], Some("a")),
        ("https://a/", &["a:443"], Some("a")),
        ("http://[::1]/", &["[::1]:80"], Some("[::1]")),
        ("/", &["a:81"], Some("a:81")),
        ("http://a/", &["b"], None),
        ("http://a/", &["a:81"], None),
        ("http://a:81/", &["a"], None),
        ("http://a/", &["a:443"], None),
        ("https://a/", &["a:80"], None),
        ("http://a/", &["a.b"], None),
        ("http://a/", &[""], None),
        ("http://a/", &["a", "a"], None),
        ("http://a/", &["a", "b"], None),
        ("/", &["a", "a"], None),
        ("/", &[""], None),
        ("/", &[], None),
    ] {
        let mut request = Request::get(target).body(String::new()).unwrap();
        for host in hosts {
            request.headers_mut().append(HOST, HeaderValue::from_static(host));
        }
        let response = soon(sender.clone().send_request(request)).await.unwrap();
        let status = response.status();
        let seen = String::from_utf8(soon(response.collect()).await.unwrap().to_bytes().to_vec()).unwrap();
        let host = seen.lines().find_map(|line| line.strip_prefix("x-forwarded-host: "));
        let status_of_answer = if told.is_some() { 200 } else { 400 };
        assert_eq!((status.as_u16(), host), (status_of_answer, told), "{target} and {hosts:?}");
    }
}

#[tokio::test]
async fn a_get_keeps_its_body() {
    let echo = serve(tower::service_fn(|request: Request<Incoming>| async {
        Ok::<_, Infallible>(Response::new(any(request.into_body())))
    }))
    .await;
    let proxy = proxy(echo.address).await;
    let head = "GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n";
    for body in ["content-length: 4\r\n\r\nbody", "transfer-encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n"] {
        let answer = exchange(&proxy, format!("{head}{body}")).await;
        assert!(answer.contains("\r\nbody"), "{answer}");
    }
}

#[tokio::test]
async fn a_name_that_is_not_ascii_does_not_save_the_others() {
    let proxy = proxy(mirror().await.address).await;
    let head = b"GET / HTTP/1.0\r\nx-hop: 1\r\nx-kept: 1\r\nconnection: caf\xe9 , x-hop\r\n\r\n";
    let answer = exchange(&proxy, head).await;
    assert!(answer.contains("x-kept: 1") && !answer.contains("x-hop"), "{answer}");
}

#[tokio::test]
async fn an_answer_that_cannot_be_sent_back_is_a_502() {
    let well = mirror().await;
    let answers = [
        "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: gzip\r\n\r\nrest",
        "HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\ncontent-length: 5, 5\r\n\r\nhello",
    ];
    for answer in answers {
        let upstream = RawServer::start(vec![answer.into()], well.address).await;
        let proxy = proxy(upstream.address).await;
        assert_eq!(status_of(&proxy, "POST / HTTP/1.0\r\n\r\n").await, 502, "{answer}");
        assert_eq!(upstream.accepted(), 1);
    }
}

#[tokio::test]
async fn a_length_beside_a_coding_is_not_sent_back() {
    let two = b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n";
    let upstream = RawServer::start(vec![two.to_vec()], nobody().await).await;
    let proxy = proxy(upstream.address).await;
    let answer = exchange(&proxy, "POST / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await;
    assert!(!answer.contains("content-length"), "{answer}");
    assert!(answer.ends_with("\r\n\r\n5\r\nhello\r\n0\r\n\r\n"), "{answer}");
}

#[tokio::test]
async fn a_length_is_told_once_and_never_of_no_content() {
    let well = nobody().await;
    let answers = [
        ("HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 5\r\n\r\nhello", vec!["5"]),
        ("HTTP/1.1 204 No Content\r\ncontent-length: 5\r\n\r\n", vec![]),
    ];
    for (answer, lengths) in answers {
        for version in BOTH {
            let upstream = RawServer::start(vec![answer.into()], well).await;
            let proxy = proxy(upstream.address).await;
            let response = soon(pooled(version).request(get(proxy.address, "/"))).await.unwrap();
            let told: Vec<_> = response.headers().get_all(CONTENT_LENGTH).iter().cloned().collect();
            assert_eq!(told, lengths, "{version:?} {answer}");
            soon(response.collect()).await.unwrap();
        }
    }
}

#[tokio::test]
async fn a_body_that_is_no_http_is_a_400_and_says_nothing_about_the_upstream() {
    let upstream = serve(tower::service_fn(|request: Request<Incoming>| async {
        let _ = request.into_body().collect().await;
        Ok::<_, Infallible>(answer("hello"))
    }))
    .await;
    let proxy = proxy(upstream.address).await;
    for _ in 0..30 {
        let chunks = "PUT / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\nnot a size\r\n";
        assert_eq!(status_of(&proxy, chunks).await, 400);
    }
    assert_eq!(status_of(&proxy, "GET / HTTP/1.0\r\n\r\n").await, 200);
}

/// Neither a password in a target nor a token in a query may be logged.
#[tokio::test]
async fn the_log_tells_the_path_and_nothing_that_may_be_a_secret() {
    let log = Log::default();
    let subscriber = tracing_subscriber::fmt().with_max_level(tracing::Level::DEBUG).with_ansi(false);
    let _default = tracing::subscriber::set_default(subscriber.with_writer(Mutex::new(log.clone())).finish());
    let proxy = proxy(mirror().await.address).await;
    assert_eq!(status_of(&proxy, "GET http://u:secret@a/path HTTP/1.0\r\n\r\n").await, 400);
    assert_eq!(status_of(&proxy, "GET /path?token=secret HTTP/1.0\r\nhost: a\r\n\r\n").await, 200);
    let log = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    assert_eq!(log.matches("path=\"/path\"").count(), 2, "{log}");
    assert!(!log.contains("secret"), "{log}");
}

#[derive(Debug, Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
