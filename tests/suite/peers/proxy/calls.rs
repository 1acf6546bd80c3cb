//! Calls through the proxy: bodies, failures of either side, and the end.

use super::*;

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
    let forwarded = ["x-forwarded-for", "x-forwarded-host", "x-forwarded-proto"];
    assert_eq!(headers, [&["host", VIA.as_str()], &forwarded[..], &["x-kept", "x-request-id"]].concat());
}

#[tokio::test]
async fn an_upstream_that_is_dead_is_a_502_and_then_left_alone() {
    let proxy = proxy(nobody().await).await;
    // The breaker opens at 20 failures. The attempts of a request count once; the second of the last finds it open.
    let mut statuses = Vec::new();
    for _ in 0..20 {
        let request = Request::post(format!("http://{}/", proxy.address)).body(Full::<Bytes>::default()).unwrap();
        let response = ask(request).await;
        statuses.push((response.status().as_u16(), response.headers().contains_key("retry-after")));
    }
    assert_eq!(statuses.pop(), Some((503, true)));
    assert!(statuses.iter().all(|status| *status == (502, false)), "{statuses:?}");
}

/// A caller that hangs up in the middle of an upload does not open the circuit for others.
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

/// A caller that stops in the middle of an upload gets a 408, and others get the upstream's response.
///
/// Shows: F2
#[tokio::test]
async fn callers_who_stall_an_upload_open_no_circuit_for_others() {
    let upstream = serve(tower::service_fn(|request: Request<Incoming>| async move {
        let _ = request.into_body().collect().await;
        Ok::<_, Infallible>(answer("hello"))
    }))
    .await;
    let limits = Limits { stalled: Duration::from_millis(100), ..patient() };
    let proxy = proxy_within(upstream.address, limits).await;
    // More than the minimum calls of a rate.
    let stalled = (0..30).map(|_| status_of(&proxy, "PUT / HTTP/1.1\r\nhost: here\r\ncontent-length: 10\r\n\r\nfirst"));
    assert_eq!(futures_util::future::join_all(stalled).await, [408; 30]);
    let response =
        ask(Request::get(format!("http://{}/", proxy.address)).body(Full::<Bytes>::default()).unwrap()).await;
    assert_eq!(response.status(), StatusCode::OK);
}

/// An HTTP/2 caller that does not read loses its permit in time, and its response continues when it reads.
#[tokio::test]
async fn a_caller_who_does_not_read_holds_up_no_other() {
    let upstream = serve(tower::service_fn(|request: Request<Incoming>| async move {
        let body = match request.uri().path() {
            "/large" => Bytes::from(vec![0; LARGE]),
            _ => Bytes::from_static(b"hello"),
        };
        Ok::<_, Infallible>(Response::new(any(Full::new(body))))
    }))
    .await;
    let limits = Limits { stalled: Duration::from_millis(100), in_flight: 1, waiting: 0, ..patient() };
    let proxy = proxy_within(upstream.address, limits).await;
    let get = |path| {
        let request = Request::get(format!("http://{}{path}", proxy.address)).body(Full::<Bytes>::default()).unwrap();
        soon(pooled(Version::Http2).request(request))
    };
    let unread = get("/large").await.unwrap();
    assert_eq!(get("/").await.unwrap().status(), StatusCode::SERVICE_UNAVAILABLE);
    let served = soon(async {
        while get("/").await.unwrap().status() != StatusCode::OK {
            tokio::task::yield_now().await;
        }
    });
    served.await;
    assert_eq!(soon(unread.collect()).await.unwrap().to_bytes().len(), LARGE);
}

/// More than the HTTP/2 flow-control windows of a connection.
const LARGE: usize = 64 << 20;

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
    // It has stopped listening once the port is available again.
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

/// An upstream that never responds holds neither a permit nor the caller forever, whatever was sent to it.
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
    // The size is unknown or large, so the upload takes its time.
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
