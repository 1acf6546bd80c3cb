//! Upstreams that speak an older HTTP, or break off.

use super::*;

/// How an upstream ends a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ending {
    Closed,
    Reset,
    /// It does not, so the proxy has to.
    Hangs,
}

/// An upstream that responds to every request with these bytes, and ends its connections in this way after the bell.
async fn breaks_off(answer: &'static str, ending: Ending, go: Bell) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(stream.read_u8().await.unwrap());
            }
            stream.write_all(answer.as_bytes()).await.unwrap();
            match ending {
                Ending::Hangs => drop(stream.read_u8().await),
                Ending::Closed => go.heard().await,
                Ending::Reset => {
                    go.heard().await;
                    stream.set_zero_linger().unwrap();
                }
            }
        }
    });
    address
}

/// Each way to state the length of a body, broken off after its first five bytes.
const BROKEN: [(&str, Ending); 8] = [
    ("HTTP/1.0 200 OK\r\n\r\nfirst", Ending::Reset),
    ("HTTP/1.1 200 OK\r\nconnection: close\r\n\r\nfirst", Ending::Reset),
    ("HTTP/1.0 200 OK\r\ncontent-length: 10\r\n\r\nfirst", Ending::Reset),
    ("HTTP/1.0 200 OK\r\ncontent-length: 10\r\n\r\nfirst", Ending::Closed),
    ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nfirst\r\n", Ending::Reset),
    ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nfirst\r\n", Ending::Closed),
    ("HTTP/1.0 200 OK\r\n\r\nfirst", Ending::Hangs),
    ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nfirst\r\n", Ending::Hangs),
];

#[tokio::test]
async fn an_answer_that_breaks_off_never_looks_complete() {
    for (answer, ending) in BROKEN {
        let go = Bell::default();
        let upstream = breaks_off(answer, ending, go.clone()).await;
        let idle = if ending == Ending::Hangs { Duration::from_millis(200) } else { FAR };
        let proxy = proxy_within(upstream, Limits { idle, ..patient() }).await;

        for version in BOTH {
            let response = soon(pooled(version).request(get(proxy.address, "/"))).await.unwrap();
            let mut body = response.into_body();
            assert_eq!(next(&mut body).await.unwrap().unwrap(), "first");
            go.ring();
            assert!(next(&mut body).await.unwrap().is_err(), "{version:?} {answer:?} {ending:?}");
        }

        // In HTTP/1.0 the end of the connection is the end of the body. Only a reset distinguishes a truncated one.
        let mut caller = soon(TcpStream::connect(proxy.address)).await.unwrap();
        caller.write_all(b"GET / HTTP/1.0\r\n\r\n").await.unwrap();
        let mut seen = Vec::new();
        while !seen.ends_with(b"first") {
            seen.push(soon(caller.read_u8()).await.unwrap());
        }
        go.ring();
        let end = soon(caller.read_to_end(&mut seen)).await;
        let has_length = String::from_utf8(seen).unwrap().contains("content-length: 10");
        assert!(end.is_err() || has_length, "HTTP/1.0 {answer:?} {ending:?}");
    }
}

#[tokio::test]
async fn what_an_old_upstream_answers_is_framed_in_the_proxys_own_version() {
    let one = "GET / HTTP/1.1\r\nhost: a\r\n\r\n";
    let last = "GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
    let cases = [
        ("HTTP/1.0 200 OK\r\ncontent-length: 5\r\n\r\nhello", "content-length: 5", "\r\n\r\nhello"),
        ("HTTP/1.0 200 OK\r\n\r\nhello", "transfer-encoding: chunked", "\r\n\r\n5\r\nhello\r\n0\r\n\r\n"),
    ];
    for (answer, framing, body) in cases {
        let go = Bell::default();
        let proxy = proxy(breaks_off(answer, Ending::Closed, go.clone()).await).await;
        go.ring();
        go.ring();
        // The caller's connection stays open, whatever the upstream does with its own.
        let answers = exchange(&proxy, format!("{one}{last}")).await;
        assert_eq!(answers.matches("HTTP/1.1 200 OK\r\n").count(), 2, "{answers}");
        assert_eq!(answers.matches(framing).count(), 2, "{answers}");
        assert_eq!(answers.matches(body).count(), 2, "{answers}");
    }
}

#[tokio::test]
async fn an_old_caller_keeps_its_connection_if_it_asks_for_it() {
    let proxy = proxy(mirror().await.address).await;
    let one = "GET / HTTP/1.0\r\nconnection: keep-alive\r\n\r\n";
    let answers = exchange(&proxy, format!("{one}GET / HTTP/1.0\r\n\r\n")).await;
    assert_eq!(answers.matches("HTTP/1.0 200 OK\r\n").count(), 2, "{answers}");
    assert!(!answers.contains("transfer-encoding"), "{answers}");
}
