//! Two limits on the calls of a language model: 60 requests and 1,000 tokens in each minute.
//!
//! A call is admitted by an estimate, the most tokens that it can take. Its response ends with the number that it took,
//! and the rest goes back.

use std::{convert::Infallible, error::Error as StdError, future::ready, net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::{
    HeaderMap, Request, Response, Uri, body::Frame, header::HeaderName, server::conn::http2, service::service_fn,
};
use hyper_util::{
    client::legacy::Client,
    rt::{TokioExecutor, TokioIo},
};
use tokio::{
    net::TcpListener,
    sync::{OwnedSemaphorePermit, Semaphore},
};
use tower::{ServiceBuilder, ServiceExt};
use ziggurat::{Error, rate_limit::RateLimitLayer};

const MINUTE: Duration = Duration::from_secs(60);
const TOKENS: u32 = 1_000;

/// The number of tokens that an answer takes.
const ANSWER: u32 = 40;

type Prompt = Full<Bytes>;

/// Returns the most tokens that a request can take: those of the prompt, and those that it allows for the answer.
fn estimate(request: &Request<Prompt>) -> u32 {
    let prompt = hyper::body::Body::size_hint(request.body()).exact().unwrap_or(0) as u32 / 4;
    prompt + number(request.headers(), "x-max-tokens").unwrap_or(TOKENS)
}

/// Returns the number of tokens that a call took, which the last frame of its response has in a trailer.
fn usage(frame: &Frame<Bytes>) -> Option<u32> {
    number(frame.trailers_ref()?, "x-usage")
}

fn number(headers: &HeaderMap, name: &str) -> Option<u32> {
    headers.get(name)?.to_str().ok()?.parse().ok()
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn StdError>> {
    let go_on = Arc::new(Semaphore::new(0));
    let server = start_server(Arc::clone(&go_on)).await?;

    let tokens = RateLimitLayer::new(TOKENS, MINUTE).cost(estimate).settle_body(usage).named("tokens");
    let left = tokens.handle();
    let client = ServiceBuilder::new()
        .layer(RateLimitLayer::new(60, MINUTE).named("requests"))
        .layer(tokens)
        .map_err(Error::Service)
        .service(Client::builder(TokioExecutor::new()).http2_only(true).build_http::<Prompt>());
    let uri: Uri = format!("http://{server}/").parse()?;
    let ask = |max_tokens: u32| {
        let mut request = Request::new(Prompt::from("Why is the sky blue, and the sea too?"));
        *request.uri_mut() = uri.clone();
        request.headers_mut().insert("x-max-tokens", max_tokens.into());
        client.clone().oneshot(request)
    };

    // Three calls reserve 309 tokens each. There is no room for another one.
    let [first, second, third] = [ask(300).await?, ask(300).await?, ask(300).await?];
    println!("three calls are in flight, {} tokens are left", left.available());
    assert!(left.available() < 200);
    let outcome = ask(300).await;
    let rejection = ziggurat::rejection(&outcome).ok_or("the fourth call should be rejected")?;
    println!("the fourth: {rejection}");
    assert!(rejection.is_rate_limited() && rejection.retry_after() > Some(Duration::from_secs(5)));

    // They end, and took 49 each.
    go_on.add_permits(3);
    for response in [first, second, third] {
        let text = response.into_body().collect().await?.to_bytes();
        assert_eq!(text, "Because of the light.");
    }
    println!("they have ended, {} tokens are left", left.available());
    assert!(left.available() >= TOKENS - 3 * (ANSWER + 9));

    // A call that is given up has no usage, so the estimate stands.
    let before = left.available();
    drop(ask(300).await?);
    assert!(left.available() < before - 200);

    // No wait helps a call that needs more than the bucket ever holds.
    let outcome = ask(5_000).await;
    assert!(ziggurat::rejection(&outcome).is_some_and(|rejection| rejection.status() == 413));
    Ok(())
}

/// Starts a server whose answers begin at once, and end when there is a permit for them.
async fn start_server(go_on: Arc<Semaphore>) -> Result<SocketAddr, std::io::Error> {
    let answer = move |_| {
        let go_on = Arc::clone(&go_on);
        let rest = stream::once(async move {
            go_on.acquire_owned().await.into_iter().for_each(OwnedSemaphorePermit::forget);
            Frame::data(Bytes::from("of the light."))
        });
        let usage = HeaderMap::from_iter([(HeaderName::from_static("x-usage"), (ANSWER + 9).into())]);
        let frames = stream::iter([Frame::data("Because ".into())]).chain(rest);
        let frames = frames.chain(stream::iter([Frame::trailers(usage)])).map(Ok::<_, Infallible>);
        ready(Ok::<_, Infallible>(Response::new(StreamBody::new(frames))))
    };
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            let serve = http2::Builder::new(TokioExecutor::new());
            tokio::spawn(serve.serve_connection(TokioIo::new(tcp), service_fn(answer.clone())));
        }
    });
    Ok(address)
}
