//! The limits of a caller's connection.

use super::*;
use ::hyper::client::conn::http2;

const SOON_OVER: Duration = Duration::from_millis(20);
const PREFACE: &str = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\u{4}\0\0\0\0\0";
const ONE: &str = "GET / HTTP/1.1\r\nhost: a\r\n\r\n";

/// An incomplete head is closed after its limit, and does not delay shutdown.
#[tokio::test]
async fn a_connection_without_a_whole_head_is_closed() {
    let upstream = mirror().await;
    let limits = Limits { request_head: SOON_OVER, ..patient() };
    let proxy = proxy_within(upstream.address, limits).await;
    for silent in ["", "G", "PRI * HT", "GET / HTTP/1.1\r\nhost:", PREFACE] {
        let answer = bytes_of(&proxy, silent).await;
        assert!(!answer.starts_with(b"HTTP"), "{silent:?}");
    }
    // An incomplete second one, too.
    let mut stream = TcpStream::connect(proxy.address).await.unwrap();
    stream.write_all(ONE.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"x-forwarded-proto: http\n") {
        answer.push(soon(stream.read_u8()).await.unwrap());
    }
    stream.write_all(b"GET / HT").await.unwrap();
    soon(stream.read_to_end(&mut answer)).await.unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 200"));
    proxy.stop.send(()).unwrap();
    soon(proxy.ended).await.unwrap();
}

#[tokio::test]
async fn a_connection_that_is_not_used_again_is_closed() {
    let upstream = mirror().await;
    let proxy = proxy_within(upstream.address, Limits { keep_alive: SOON_OVER, ..patient() }).await;
    assert!(exchange(&proxy, ONE).await.starts_with("HTTP/1.1 200"));

    let stream = TokioIo::new(TcpStream::connect(proxy.address).await.unwrap());
    let (mut sender, connection) = http2::handshake(TokioExecutor::new(), stream).await.unwrap();
    let connection = tokio::spawn(connection);
    let response = soon(sender.send_request(get(proxy.address, "/"))).await.unwrap();
    drop(soon(response.collect()).await.unwrap());
    soon(connection).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_connection_with_a_call_in_flight_is_not_idle() {
    let door = Door::default();
    let upstream = behind(&door).await;
    let proxy = proxy_within(upstream.address, Limits { request_head: SOON_OVER, keep_alive: SOON_OVER, ..patient() });
    let proxy = proxy.await;
    let mut calls = Vec::new();
    for version in BOTH {
        calls.push(tokio::spawn(pooled(version).request(get(proxy.address, "/door"))));
        door.entered.heard().await;
    }
    // Other connections are closed meanwhile.
    assert_eq!(bytes_of(&proxy, "").await, b"");
    for call in calls {
        door.leave.ring();
        assert_eq!(soon(call).await.unwrap().unwrap().status(), StatusCode::OK);
    }
}

#[tokio::test]
async fn more_connections_than_allowed_wait_until_one_ends() {
    let door = Door::default();
    let upstream = behind(&door).await;
    let proxy = proxy_within(upstream.address, Limits { connections: 1, ..patient() }).await;
    let first = tokio::spawn(exchange(&proxy, "GET /door HTTP/1.0\r\n\r\n"));
    door.entered.heard().await;
    let second = tokio::spawn(exchange(&proxy, "GET /door HTTP/1.0\r\n\r\n"));
    settle().await;
    assert!(!door.entered.rang());
    door.leave.ring();
    assert!(first.await.unwrap().starts_with("HTTP/1.0 200"));
    door.entered.heard().await;
    door.leave.ring();
    assert!(second.await.unwrap().starts_with("HTTP/1.0 200"));
}

#[tokio::test]
async fn a_connection_without_a_call_makes_room_for_another() {
    let upstream = mirror().await;
    let proxy = proxy_within(upstream.address, Limits { connections: 2, ..patient() }).await;
    let mut idle = Vec::new();
    for begun in ["", "GET / HT"] {
        let mut stream = TcpStream::connect(proxy.address).await.unwrap();
        stream.write_all(begun.as_bytes()).await.unwrap();
        idle.push(stream);
    }
    let mut clients = Vec::new();
    for mut stream in idle {
        let client = pooled(Version::Http1);
        let response = soon(client.request(get(proxy.address, "/"))).await.unwrap();
        drop(soon(response.collect()).await.unwrap());
        // It has been idle longest. The client's connection, which waits for the next request, came later.
        soon(stream.read_to_end(&mut Vec::new())).await.unwrap();
        clients.push(client);
    }
}

#[tokio::test]
async fn a_caller_who_takes_nothing_any_more_is_cut_off() {
    let (frames, body) = streamed();
    let body = only(body);
    let upstream = serve(tower::service_fn(move |_| {
        let body = body();
        async { Ok::<_, Infallible>(Response::new(any(body))) }
    }))
    .await;
    // More than all buffers on the way hold.
    for _ in 0..4096 {
        frames.send(Ok(Bytes::from_static(&[0; 64 * 1024]))).unwrap();
    }
    let proxy = proxy_within(upstream.address, Limits { stalled: SOON_OVER, ..patient() }).await;
    let mut stream = TcpStream::connect(proxy.address).await.unwrap();
    stream.write_all(ONE.as_bytes()).await.unwrap();
    soon(frames.closed()).await;
}

#[tokio::test]
async fn a_head_that_is_too_large_is_not_accepted() {
    let upstream = mirror().await;
    let proxy = proxy(upstream.address).await;
    let head = |size: usize| format!("GET / HTTP/1.0\r\nx-large: {}\r\n\r\n", "x".repeat(size));
    assert_eq!(status_of(&proxy, head(15 * 1024)).await, 200);
    assert_eq!(status_of(&proxy, head(17 * 1024)).await, 431);
    let many = format!("GET / HTTP/1.0\r\n{}\r\n", "x: 1\r\n".repeat(101));
    assert_eq!(status_of(&proxy, many).await, 431);

    let mut large = get(proxy.address, "/");
    large.headers_mut().insert("x-large", "x".repeat(17 * 1024).parse().unwrap());
    let response = soon(pooled(Version::Http2).request(large)).await;
    assert_eq!(response.unwrap().status(), StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE);
}

#[tokio::test]
async fn a_head_of_the_upstreams_that_is_too_large_is_a_502() {
    let well = mirror().await;
    for (size, status) in [(15 * 1024, 200), (17 * 1024, 502)] {
        let answer = format!("HTTP/1.1 200 OK\r\nx-large: {}\r\ncontent-length: 0\r\n\r\n", "x".repeat(size));
        let upstream = RawServer::start(vec![answer.into()], well.address).await;
        let proxy = proxy(upstream.address).await;
        assert_eq!(status_of(&proxy, "POST / HTTP/1.0\r\n\r\n").await, status);
    }
}

/// An upstream that holds the callers of `/door` at the door.
async fn behind(door: &Door) -> Server {
    let door = door.clone();
    serve(tower::service_fn(move |request: Request<Incoming>| {
        let door = door.clone();
        async move {
            if request.uri().path() == "/door" {
                door.pass().await;
            }
            Ok::<_, Infallible>(answer("hello"))
        }
    }))
    .await
}
