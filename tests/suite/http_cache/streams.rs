//! Bodies that arrive while others read them.

use futures_util::FutureExt;
use http_body::Body as _;

use super::*;

/// A site whose origin sends this body to the first request.
fn site(layer: HttpCacheLayer, headers: &'static [&'static str], body: Streamed) -> Site {
    let body = Arc::new(Mutex::new(Some(body)));
    Site::new(layer, move |n, _| {
        let body = body.lock().unwrap().take();
        async move {
            match body {
                Some(body) => streams(200, headers, body),
                None => response(200, headers, n.to_string()),
            }
        }
    })
}

const FRESH: &[&str] = &["cache-control: max-age=60"];

async fn frame(response: &mut Response<CacheBody<Streamed>>) -> Option<Result<Bytes, String>> {
    let frame = response.body_mut().frame().await?;
    Some(frame.map(|frame| frame.into_data().unwrap()).map_err(|error| error.to_string()))
}

fn ask() -> Request<Empty<Bytes>> {
    request(Method::GET, "/", &[])
}

/// Shows: W3
#[tokio::test(start_paused = true)]
async fn everybody_gets_bytes_as_they_come_and_nobody_waits_for_others() {
    const CHUNK: usize = 16 * 1024;
    const CHUNKS: usize = 640;
    let byte = |n: usize| b'0' + (n % 10) as u8;
    // Returns the number of chunks, which follow the first `read` ones.
    let chunks = |read: usize, bytes: &Bytes| {
        for (n, chunk) in (read..).zip(bytes.chunks(CHUNK)) {
            assert_eq!((chunk.len(), chunk[0], chunk[CHUNK - 1]), (CHUNK, byte(n), byte(n)));
        }
        bytes.len() / CHUNK
    };
    let (sender, body) = streamed();
    let site = site(CacheLayer::http().max_body(16 << 20), FRESH, body);
    let mut callers = Vec::new();
    for _ in 0..1000 {
        callers.push(site.send(ask()).await.unwrap());
    }
    assert_eq!(site.calls(), 1);
    // Of the last three, two read nothing yet, and one leaves.
    let mut idle = callers.split_off(997);
    drop(idle.pop());
    let mut read = vec![0; callers.len()];
    for n in 0..CHUNKS {
        sender.send(data(vec![byte(n); CHUNK])).unwrap();
        if n % 64 == 0 {
            for (caller, read) in callers.iter_mut().zip(&mut read) {
                while *read <= n {
                    *read += chunks(*read, &frame(caller).await.unwrap().unwrap());
                }
            }
        }
        settle().await;
    }
    drop(sender);
    read.extend(idle.iter().map(|_| 0));
    for (caller, mut read) in callers.iter_mut().chain(&mut idle).zip(read) {
        while let Some(bytes) = frame(caller).await {
            read += chunks(read, &bytes.unwrap());
        }
        assert_eq!(read, CHUNKS);
    }
    assert_eq!(site.get("/", &[]).await.body.len(), CHUNK * CHUNKS);
    assert_eq!((site.calls(), site.handle.stats().shared), (1, 999));
}

/// Shows: C8, W2
#[tokio::test(start_paused = true)]
async fn a_truncated_body_is_not_stored() {
    for (headers, last) in [
        (&["cache-control: max-age=60", "content-length: 10"][..], None),
        (FRESH, Some(Err::<Frame<Bytes>, BoxError>("reset".into()))),
    ] {
        let (sender, body) = streamed();
        let site = site(CacheLayer::http(), headers, body);
        let mut first = site.send(ask()).await.unwrap();
        let mut second = site.send(ask()).await.unwrap();
        sender.send(data("12345")).unwrap();
        for caller in [&mut first, &mut second] {
            assert_eq!(frame(caller).await.unwrap().unwrap(), "12345");
        }
        if let Some(last) = last {
            sender.send(last).unwrap();
        }
        drop(sender);
        for caller in [&mut first, &mut second] {
            assert!(frame(caller).await.unwrap().is_err());
        }
        assert_eq!(site.handle.len(), 0);
        site.send(ask()).await.unwrap();
        assert_eq!(site.calls(), 2);
    }
}

/// Shows: W2
#[tokio::test(start_paused = true)]
async fn a_head_that_says_too_much_shares_nothing() {
    let (sender, body) = streamed();
    let layer = CacheLayer::http().max_body(10);
    let site = site(layer, &["cache-control: max-age=60", "content-length: 11"], body);
    let mut first = site.send(ask()).await.unwrap();
    assert_eq!(first.headers()["cache-status"], "ziggurat; fwd=uri-miss");
    sender.send(data("12345678901")).unwrap();
    assert_eq!(frame(&mut first).await.unwrap().unwrap(), "12345678901");
    site.send(ask()).await.unwrap();
    assert_eq!((site.calls(), site.handle.len()), (2, 0));
}

/// Shows: W2
#[tokio::test(start_paused = true)]
async fn a_body_that_turns_out_too_large_streams_on() {
    let (sender, body) = streamed();
    let site = site(CacheLayer::http().max_body(10), FRESH, body);
    let mut first = site.send(ask()).await.unwrap();
    let mut lags = site.send(ask()).await.unwrap();
    for _ in 0..100 {
        sender.send(data("12345")).unwrap();
        assert_eq!(frame(&mut first).await.unwrap().unwrap(), "12345");
    }
    assert!(frame(&mut lags).await.unwrap().is_err());
    // No caller joins a body whose beginning is gone.
    assert_eq!(site.get("/", &[]).await.body, "2");
    drop(sender);
    assert!(frame(&mut first).await.is_none());
    settle().await;
    assert_eq!(site.get("/", &[]).await.body, "2");
    assert_eq!(site.handle.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_body_that_nobody_reads_is_received_within_the_limit() {
    let (sender, body) = streamed();
    let site = site(CacheLayer::http().linger(5 * SECOND), FRESH, body);
    drop(site.send(ask()).await.unwrap());
    sender.send(data("123")).unwrap();
    tokio::time::sleep(4 * SECOND).await;
    sender.send(data("456")).unwrap();
    drop(sender);
    settle().await;
    assert_eq!(site.get("/", &[]).await.body, "123456");

    let (sender, body) = streamed();
    let site = self::site(CacheLayer::http().linger(5 * SECOND), FRESH, body);
    drop(site.send(ask()).await.unwrap());
    tokio::time::sleep(6 * SECOND).await;
    assert!(sender.is_closed());
    assert_eq!(site.get("/", &[]).await.body, "2");
}

#[tokio::test(start_paused = true)]
async fn trailers_reach_everybody() {
    let (sender, body) = streamed();
    let site = site(CacheLayer::http(), FRESH, body);
    sender.send(data("body")).unwrap();
    sender.send(Ok(Frame::trailers(HeaderMap::from_iter([("sum".parse().unwrap(), "7".parse().unwrap())])))).unwrap();
    drop(sender);
    for _ in 0..2 {
        let collected = site.send(ask()).await.unwrap().into_body().collect().await.unwrap();
        assert_eq!(collected.trailers().unwrap()["sum"], "7");
        assert_eq!(collected.to_bytes(), "body");
        settle().await;
    }
    assert_eq!(site.calls(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_response_without_content_is_stored_at_once() {
    let (sender, body) = streamed();
    drop(sender);
    let site = site(CacheLayer::http(), FRESH, body);
    let hit = {
        site.send(ask()).await.unwrap();
        settle().await;
        site.send(ask()).now_or_never().unwrap().unwrap()
    };
    assert!(hit.body().is_end_stream());
    assert_eq!((hit.body().size_hint().exact(), site.calls()), (Some(0), 1));
}
