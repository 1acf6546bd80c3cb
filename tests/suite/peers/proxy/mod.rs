//! The reverse proxy of the examples, between a client and an upstream of the test.

use ::hyper::header::{CONTENT_LENGTH, VIA};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::oneshot,
    task::JoinHandle,
};

use self::reverse_proxy::{cache::Caching, limits::Limits};
use super::{raw::RawServer, *};

mod arguments;
mod cache;
mod calls;
mod connections;
mod messages;
mod upstream;

#[path = "../../../../examples/reverse_proxy/main.rs"]
#[allow(dead_code, reason = "main runs only in the example")]
mod reverse_proxy;

struct Proxy {
    address: SocketAddr,
    stop: oneshot::Sender<()>,
    ended: JoinHandle<()>,
}

async fn proxy(upstream: SocketAddr) -> Proxy {
    proxy_within(upstream, patient()).await
}

/// Limits that never pass.
fn patient() -> Limits {
    Limits {
        request_head: FAR,
        keep_alive: FAR,
        total: FAR,
        attempt: FAR,
        upload: FAR,
        idle: FAR,
        stalled: FAR,
        ..Limits::default()
    }
}

async fn proxy_within(upstream: SocketAddr, limits: Limits) -> Proxy {
    proxy_with(upstream, limits, Caching::default()).await
}

async fn proxy_with(upstream: SocketAddr, limits: Limits, caching: Caching) -> Proxy {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, stopped) = oneshot::channel();
    let to = format!("http://{upstream}").parse().unwrap();
    let ended =
        tokio::spawn(reverse_proxy::server::serve(listener, to, limits, caching, async { drop(stopped.await) }));
    Proxy { address, stop, ended }
}

/// Returns the bytes that come back, until the proxy closes the connection.
#[track_caller]
fn bytes_of<B: AsRef<[u8]>>(to: &Proxy, bytes: B) -> impl Future<Output = Vec<u8>> + use<B> {
    let address = to.address;
    soon(async move {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(bytes.as_ref()).await.unwrap();
        let mut answer = Vec::new();
        // Closing a socket with unread data resets it. The response came before that.
        let _ = stream.read_to_end(&mut answer).await;
        answer
    })
}

/// Returns the response as text.
#[track_caller]
fn exchange<B: AsRef<[u8]>>(to: &Proxy, bytes: B) -> impl Future<Output = String> + use<B> {
    let bytes = bytes_of(to, bytes);
    async { String::from_utf8(bytes.await).unwrap() }
}

/// Returns the status of the response.
#[track_caller]
fn status_of<B: AsRef<[u8]>>(to: &Proxy, bytes: B) -> impl Future<Output = u16> + use<B> {
    let answer = exchange(to, bytes);
    async { answer.await.split(' ').nth(1).unwrap().parse().unwrap() }
}

/// Responds with a line for the request, and one for each header.
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
