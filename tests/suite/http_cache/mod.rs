//! The HTTP cache by RFC 9111: in front of an origin that the test answers for, on a paused clock.

use std::{
    fmt,
    future::Future,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode, request};
use http_body::Frame;
use http_body_util::{BodyExt, Empty, StreamBody};
use tokio::sync::mpsc;
use tower::{Layer, Service, ServiceExt, service_fn, util::BoxCloneSyncService};
use ziggurat::{
    Error,
    cache::{CacheBody, CacheLayer, HttpCacheHandle, HttpCacheLayer},
};

mod attacks;
mod changes;
mod conformance;
mod flights;
mod handle;
mod memory;
mod panics;
mod requests;
mod resources;
mod rules;
mod scopes;
mod second_level;
mod stacks;
mod stale;
mod status;
mod streams;
mod substitutes;
mod validation;

pub(super) const SECOND: Duration = Duration::from_secs(1);

type BoxError = Box<dyn std::error::Error + Send + Sync>;
type Failed = Error<&'static str>;
/// A body that the test sends frame by frame.
type Streamed = StreamBody<Frames>;
type Answer = Result<Response<Streamed>, Failed>;
type Client = BoxCloneSyncService<Request<Empty<Bytes>>, Response<CacheBody<Streamed>>, Failed>;

/// The frames of a body, which ends when the sender is dropped.
#[derive(Debug)]
struct Frames(mpsc::UnboundedReceiver<Result<Frame<Bytes>, BoxError>>);

impl futures_util::Stream for Frames {
    type Item = Result<Frame<Bytes>, BoxError>;

    fn poll_next(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Self::Item>> {
        self.0.poll_recv(cx)
    }
}

type Sender = mpsc::UnboundedSender<Result<Frame<Bytes>, BoxError>>;

fn streamed() -> (Sender, Streamed) {
    let (sender, receiver) = mpsc::unbounded_channel();
    (sender, StreamBody::new(Frames(receiver)))
}

fn data(bytes: impl Into<Bytes>) -> Result<Frame<Bytes>, BoxError> {
    Ok(Frame::data(bytes.into()))
}

fn whole(text: impl Into<Bytes>) -> Streamed {
    let (sender, body) = streamed();
    sender.send(data(text)).unwrap();
    body
}

/// A response with a body, and headers as `name: value`.
fn response(status: u16, headers: &[&str], body: impl Into<Bytes>) -> Answer {
    streams(status, headers, whole(body))
}

fn streams(status: u16, headers: &[&str], body: Streamed) -> Answer {
    let mut response = Response::builder().status(status);
    for line in headers {
        let (name, value) = line.split_once(": ").unwrap();
        response = response.header(name, value);
    }
    Ok(response.body(body).unwrap())
}

/// A cache in front of an origin.
#[derive(Clone)]
struct Site {
    client: Client,
    handle: HttpCacheHandle,
    asked: Arc<Mutex<Vec<request::Parts>>>,
}

impl Site {
    /// The origin responds to the n-th request, counted from 1, with the result of `answer`.
    fn new<Fut>(
        layer: HttpCacheLayer,
        answer: impl Fn(usize, request::Parts) -> Fut + Clone + Send + Sync + 'static,
    ) -> Self
    where
        Fut: Future<Output = Answer> + Send + 'static,
    {
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (handle, log) = (layer.handle(), Arc::clone(&asked));
        let origin = service_fn(move |request: Request<Empty<Bytes>>| {
            let parts = request.into_parts().0;
            let n = {
                let mut log = log.lock().unwrap();
                log.push(parts.clone());
                log.len()
            };
            answer(n, parts)
        });
        Self { client: BoxCloneSyncService::new(layer.layer(origin)), handle, asked }
    }

    /// The origin returns the same response each time, with its number as the body.
    fn numbered(headers: &'static [&'static str]) -> Self {
        Self::new(CacheLayer::http(), move |n, _| async move { response(200, headers, n.to_string()) })
    }

    fn asked(&self) -> MutexGuard<'_, Vec<request::Parts>> {
        self.asked.lock().unwrap()
    }

    fn calls(&self) -> usize {
        self.asked().len()
    }

    async fn send(&self, request: Request<Empty<Bytes>>) -> Result<Response<CacheBody<Streamed>>, Failed> {
        self.client.clone().oneshot(request).await
    }

    /// Sends a GET with these headers, and reads the response.
    async fn get(&self, path: &str, headers: &[&str]) -> Read {
        self.ask(Method::GET, path, headers).await
    }

    async fn ask(&self, method: Method, path: &str, headers: &[&str]) -> Read {
        Read::of(self.send(request(method, path, headers)).await.unwrap()).await
    }
}

fn request(method: Method, path: &str, headers: &[&str]) -> Request<Empty<Bytes>> {
    let mut request = Request::builder().method(method).uri(path).header("host", "shop.test");
    for line in headers {
        let (name, value) = line.split_once(": ").unwrap();
        request = request.header(name, value);
    }
    request.body(Empty::new()).unwrap()
}

/// A response that was read.
#[derive(PartialEq)]
struct Read {
    status: StatusCode,
    headers: HeaderMap,
    body: String,
}

impl Read {
    async fn of(response: Response<CacheBody<Streamed>>) -> Self {
        let (parts, body) = response.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        Self { status: parts.status, headers: parts.headers, body: String::from_utf8(body.into()).unwrap() }
    }

    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    fn status_and_body(&self) -> (u16, &str) {
        (self.status.as_u16(), &self.body)
    }
}

impl fmt::Debug for Read {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:?} {:?}", self.status, self.headers, self.body)
    }
}

/// Lets tasks run that can.
async fn settle() {
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
}
