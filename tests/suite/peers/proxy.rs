//! The reverse proxy of the examples, between a client and an upstream of this test's.

use ::hyper::header::{CONTENT_LENGTH, VIA};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::oneshot,
    task::JoinHandle,
};

use self::reverse_proxy::Limits;
use super::{raw::RawServer, *};

#[path = "../../../examples/reverse_proxy/main.rs"]
#[allow(dead_code, reason = "main is for those who run it")]
mod reverse_proxy;

struct Proxy {
    address: SocketAddr,
    stop: oneshot::Sender<()>,
    ended: JoinHandle<()>,
}

async fn proxy(upstream: SocketAddr) -> Proxy {
    proxy_within(upstream, Limits { total: FAR, attempt: FAR, request_head: FAR, upload: FAR, idle: FAR }).await
}

async fn proxy_within(upstream: SocketAddr, limits: Limits) -> Proxy {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, stopped) = oneshot::channel();
    let to = format!("http://{upstream}").parse().unwrap();
    let ended = tokio::spawn(reverse_proxy::serve(listener, to, limits, async { drop(stopped.await) }));
    Proxy { address, stop, ended }
}

/// All that comes back for these bytes, until the proxy closes the connection.
#[track_caller]
fn exchange(to: &Proxy, bytes: impl AsRef<[u8]>) -> impl Future<Output = String> {
    let address = to.address;
    soon(async move {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(bytes.as_ref()).await.unwrap();
        let mut answer = Vec::new();
        // What is closed before all is read is reset; the answer came before that.
        let _ = stream.read_to_end(&mut answer).await;
        String::from_utf8(answer).unwrap()
    })
}

/// The answer's status.
#[track_caller]
fn status_of(to: &Proxy, bytes: impl AsRef<[u8]>) -> impl Future<Output = u16> {
    let answer = exchange(to, bytes);
    async { answer.await.split(' ').nth(1).unwrap().parse().unwrap() }
}

/// Answers with what it sees: a line for the request, and one for each header.
async fn mirror() -> Server {
    serve(tower::service_fn(|request: Request<Incoming>| async move {
        let mut seen = format!("{} {} {:?}\n", request.method(), request.uri(), request.version());
        for (name, value) in request.headers() {
            seen += &format!("{name}: {}\n", String::from_utf8_lossy(value.as_bytes()));
        }
        Ok::<_, Infallible>(answer(seen))
    }))
    .await
}

async fn ask<B>(request: Request<B>) -> Response<Incoming>
where
    B: Body<Data: Send, Error: Into<BoxError>> + Send + Unpin + 'static,
{
    soon(pooled(Version::Http1).request(request)).await.unwrap()
}

/// Shows: R5, X8
#[tokio::test]
async fn bodies_are_streamed_both_ways_while_they_come() {
    let echo = serve(tower::service_fn(|request: Request<Incoming>| async {
        Ok::<_, Infallible>(Response::new(any(request.into_body())))
    }))
    .await;
    let proxy = proxy(echo.address).await;
    let (sender, body) = streamed();
    sender.send(Ok("first".into())).unwrap();
    let response = ask(Request::post(format!("http://{}/", proxy.address)).body(body).unwrap()).await;
    assert_eq!(response.headers()["x-request-id"].len(), 32);
    let mut body = response.into_body();
    assert_eq!(next(&mut body).await.unwrap().unwrap(), "first");
    sender.send(Ok("second".into())).unwrap();
    assert_eq!(next(&mut body).await.unwrap().unwrap(), "second");
    drop(sender);
    assert!(next(&mut body).await.is_none());
}

#[tokio::test]
async fn what_is_meant_for_one_connection_is_not_passed_on() {
    let upstream = serve(tower::service_fn(|request: Request<Incoming>| async move {
        let seen: Vec<_> = request.headers().keys().map(|name| name.as_str().to_owned()).collect();
        let mut response = answer(format!("{:?} {} {}", request.version(), request.uri(), seen.join(",")));
        response.headers_mut().insert("connection", "x-hop, close".parse().unwrap());
        response.headers_mut().insert("x-hop", "1".parse().unwrap());
        response.headers_mut().insert("x-end", "1".parse().unwrap());
        Ok::<_, Infallible>(response)
    }))
    .await;
    let proxy = proxy(upstream.address).await;
    let request = Request::get(format!("http://{}/path?query", proxy.address))
        .header("connection", "X-One , x-two,, bad name")
        .header("connection", "x-three")
        .header("x-one", "1")
        .header("x-two", "1")
        .header("x-three", "1")
        .header("te", "trailers")
        .header("upgrade", "websocket")
        .header("keep-alive", "timeout=5")
        .header("proxy-connection", "keep-alive")
        .header("x-kept", "1")
        .body(Full::<Bytes>::default())
        .unwrap();
    let response = ask(request).await;
    assert!(!response.headers().contains_key("x-hop"));
    assert!(response.headers().contains_key("x-end"));
    let seen = String::from_utf8(soon(response.collect()).await.unwrap().to_bytes().to_vec()).unwrap();
    let (line, headers) = seen.rsplit_once(' ').unwrap();
    assert_eq!(line, "HTTP/1.1 /path?query");
    let mut headers: Vec<_> = headers.split(',').filter(|name| *name != CONTENT_LENGTH).collect();
    headers.sort_unstable();
    assert_eq!(headers, ["host", VIA.as_str(), "x-forwarded-host", "x-kept", "x-request-id"]);
}

#[tokio::test]
async fn an_upstream_that_is_dead_is_a_502_and_then_left_alone() {
    let proxy = proxy(nobody().await).await;
    // The breaker opens at 20 failures. A POST is three: nobody can have processed it.
    let mut statuses = Vec::new();
    for _ in 0..7 {
        let request = Request::post(format!("http://{}/", proxy.address)).body(Full::<Bytes>::default()).unwrap();
        let response = ask(request).await;
        statuses.push((response.status().as_u16(), response.headers().contains_key("retry-after")));
    }
    assert_eq!(statuses.pop(), Some((503, true)));
    assert!(statuses.iter().all(|status| *status == (502, false)), "{statuses:?}");
}

/// Whoever hangs up in the middle of an upload does not open the circuit for the others.
#[tokio::test]
async fn a_caller_who_hangs_up_says_nothing_about_the_upstream() {
    let (came, cut) = (Bell::default(), Bell::default());
    let (first, broken) = (came.clone(), cut.clone());
    let upstream = serve(tower::service_fn(move |request: Request<Incoming>| {
        let (came, cut) = (came.clone(), cut.clone());
        async move {
            let mut body = request.into_body();
            if body.frame().await.is_some() {
                came.ring();
                let _cut = OnDrop(cut);
                let _ = body.collect().await;
            }
            Ok::<_, Infallible>(answer("hello"))
        }
    }))
    .await;
    let proxy = proxy(upstream.address).await;
    for _ in 0..30 {
        let (sender, body) = streamed();
        sender.send(Ok("first".into())).unwrap();
        let client = pooled(Version::Http1);
        let request = Request::put(format!("http://{}/", proxy.address)).body(body).unwrap();
        let call = tokio::spawn(async move { client.request(request).await.map(drop) });
        first.heard().await;
        // The body breaks off, and with it the connection.
        sender.send(Err(io::Error::other("gone"))).unwrap();
        assert!(soon(call).await.unwrap().is_err());
        broken.heard().await;
    }
    let response =
        ask(Request::get(format!("http://{}/", proxy.address)).body(Full::<Bytes>::default()).unwrap()).await;
    assert_eq!(response.status(), StatusCode::OK);
}

#[tokio::test]
async fn what_is_under_way_when_it_stops_is_finished_and_nothing_else_begun() {
    let door = Door::default();
    let inside = door.clone();
    let upstream = serve(tower::service_fn(move |_: Request<Incoming>| {
        let door = inside.clone();
        async move {
            door.pass().await;
            Ok::<_, Infallible>(answer("finished"))
        }
    }))
    .await;
    let proxy = proxy(upstream.address).await;
    let request = Request::get(format!("http://{}/", proxy.address)).body(Full::<Bytes>::default()).unwrap();
    let call = tokio::spawn(ask(request));
    door.entered.heard().await;
    proxy.stop.send(()).unwrap();
    // It no longer listens once the port can be had again.
    let free = soon(async {
        while TcpListener::bind(proxy.address).await.is_err() {
            tokio::task::yield_now().await;
        }
    });
    free.await;
    assert!(!proxy.ended.is_finished());
    door.leave.ring();
    let response = soon(call).await.unwrap();
    assert_eq!(soon(response.collect()).await.unwrap().to_bytes(), "finished");
    soon(proxy.ended).await.unwrap();
}

/// An upstream that answers nothing holds neither a permit nor the caller for ever, whatever was sent to it.
#[tokio::test]
async fn a_small_request_with_a_body_is_given_up_as_one_without_is() {
    let door = Door::default();
    let inside = door.clone();
    let upstream = serve(tower::service_fn(move |request: Request<Incoming>| {
        let door = inside.clone();
        async move {
            if request.uri().path() == "/upload" {
                door.pass().await;
                return Ok::<_, Infallible>(answer("uploaded"));
            }
            std::future::pending().await
        }
    }))
    .await;
    let (soon_over, limits) = (Duration::from_millis(50), Limits { idle: FAR, ..Limits::default() });
    let proxy =
        proxy_within(upstream.address, Limits { total: soon_over, attempt: soon_over, upload: FAR, ..limits }).await;
    let post = |path| Request::post(format!("http://{}{path}", proxy.address));
    // Nobody knows how much it will be, or it is much: that takes its time.
    let (_frames, body) = streamed();
    let uploads = [
        tokio::spawn(ask(post("/upload").body(any(body)).unwrap())),
        tokio::spawn(ask(post("/upload").body(any(Full::new(vec![0; 64 * 1024 + 1].into()))).unwrap())),
    ];
    door.entered.heard().await;
    door.entered.heard().await;
    for size in [0, 1, 64 * 1024] {
        let response = ask(post("/hangs").body(Full::<Bytes>::new(vec![0; size].into())).unwrap()).await;
        assert_eq!(response.status(), StatusCode::GATEWAY_TIMEOUT, "{size}");
    }
    door.leave.ring();
    door.leave.ring();
    for upload in uploads {
        assert_eq!(soon(upload).await.unwrap().status(), StatusCode::OK);
    }

    let proxy = proxy_within(upstream.address, Limits { upload: soon_over, total: FAR, attempt: FAR, ..limits }).await;
    let (_frames, body) = streamed();
    let request = Request::post(format!("http://{}/hangs", proxy.address)).body(body).unwrap();
    assert_eq!(ask(request).await.status(), StatusCode::GATEWAY_TIMEOUT);
}

#[tokio::test]
async fn what_a_proxy_cannot_do_is_not_forwarded() {
    // Whoever forwards it gets a 502.
    let proxy = proxy(nobody().await).await;
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
        ("its own", format!("{get}via: 1.0 fred, 1.1 Ziggurat (here)\r\n\r\n"), 508),
        ("its own in a second line", format!("{get}via: 1.0 fred\r\nvia: HTTP/1.1\tziggurat\r\n\r\n"), 508),
        ("the end of TRACE", get.replace("GET", "TRACE") + "max-forwards: 0\r\n\r\n", 501),
        ("the end of OPTIONS", get.replace("GET", "OPTIONS") + "max-forwards: 0\r\n\r\n", 200),
        // These are forwarded, to nobody.
        ("a host", format!("{get}\r\n"), 502),
        ("no name of a host", "GET / HTTP/1.1\r\nhost:\r\nconnection: close\r\n\r\n".into(), 502),
        ("no host in HTTP/1.0", "GET / HTTP/1.0\r\n\r\n".into(), 502),
        ("others", format!("{get}via: 1.1 ziggurats, 1.1 fred (ziggurat)\r\n\r\n"), 502),
        ("forwards that do not count", format!("{get}max-forwards: 0\r\n\r\n"), 502),
        ("one more forward", get.replace("GET", "OPTIONS") + "max-forwards: 1\r\n\r\n", 502),
    ];
    for (name, request, status) in cases {
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
        let (mut seen, mut expected) = (seen, expected.iter().map(|line| (*line).to_owned()).collect::<Vec<_>>());
        seen[1..].sort();
        expected[1..].sort();
        assert_eq!(seen, expected);
    };

    same(
        lines("GET /path HTTP/1.0\nhost: shop.example\nx-forwarded-host: claimed\ncookie: a=1\ncookie: b=2; c=3\nvia: 1.0 fred\n").await,
        &["GET /path HTTP/1.1", &host, "cookie: a=1; b=2; c=3", "via: 1.0 fred", "via: 1.0 ziggurat", "x-forwarded-host: shop.example"],
    );
    // The target's own authority counts, and not the header.
    same(
        lines("OPTIONS http://shop.example:81/ HTTP/1.1\nhost: other\nmax-forwards: 7\nconnection: close\n").await,
        &["OPTIONS / HTTP/1.1", &host, "max-forwards: 6", "via: 1.1 ziggurat", "x-forwarded-host: shop.example:81"],
    );
    same(lines("GET / HTTP/1.0\nx-forwarded-host: claimed\n").await, &["GET / HTTP/1.1", &host, "via: 1.0 ziggurat"]);
    // A length beside a coding is not the body's.
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

/// Half a head is neither waited for, nor does it hold up who wants to stop.
#[tokio::test]
async fn a_head_that_does_not_end_is_not_waited_for() {
    let limits = Limits { request_head: Duration::from_millis(20), ..Limits::default() };
    let proxy = proxy_within(nobody().await, limits).await;
    exchange(&proxy, "GET / HTTP/1.1\r\nhost:").await;
    proxy.stop.send(()).unwrap();
    soon(proxy.ended).await.unwrap();
}

#[test]
fn an_upstream_is_a_scheme_and_an_authority_and_nothing_else() {
    for good in ["http://a", "http://a:80", "http://a/", "http://[::1]:80"] {
        assert!(reverse_proxy::upstream_of(good).is_ok(), "{good}");
    }
    let bad = [
        "",
        "a",
        "a:80",
        "/",
        "https://a",
        "ftp://a",
        "http://a/path",
        "http://a?query",
        "http://a/?q",
        "http://u:secret@a",
    ];
    for bad in bad.into_iter().chain(["http://secret@a", "http://sec ret@a", "http://a:secret", "http://a:80@a"]) {
        let error = reverse_proxy::upstream_of(bad).unwrap_err();
        assert!(!error.contains("sec"), "{bad}: {error}");
    }
}
