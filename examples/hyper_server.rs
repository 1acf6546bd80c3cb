//! Wraps a service that hyper serves: every connection gets a clone, and all clones share the limit.
//!
//! The service stays `Infallible`, so a rejection becomes a response. An error would make hyper drop the connection.
//!
//! With `-- --listen 127.0.0.1:8080` it serves any client until it is stopped.

#[path = "shared/listen.rs"]
mod listen;

use std::{convert::Infallible, error::Error, net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Full};
use hyper::{Request, Response, StatusCode, body::Incoming, server::conn::http1};
use hyper_util::{
    client::legacy::Client,
    rt::{TokioExecutor, TokioIo},
    service::TowerToHyperService,
};
use tokio::{net::TcpListener, sync::Notify};
use tower::{ServiceBuilder, service_fn};
use ziggurat::{concurrency_limit::ConcurrencyLimitLayer, timeout::TimeoutLayer};

/// Signals when a call has entered, and when it may leave.
#[derive(Default)]
struct Door {
    entered: Notify,
    leave: Notify,
}

async fn answer(door: Arc<Door>, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    match request.uri().path() {
        "/hangs" => std::future::pending().await,
        "/waits" => {
            door.entered.notify_one();
            door.leave.notified().await;
            Ok(Response::new("waited".into()))
        }
        _ => Ok(Response::new("hello".into())),
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let listen = listen::address()?;
    // One call at a time, so that the example can fill the server.
    let at_once = if listen.is_some() { 256 } else { 1 };
    let door = Arc::<Door>::default();
    let service = ServiceBuilder::new()
        .layer(ConcurrencyLimitLayer::new(at_once).max_waiting(0))
        .layer(TimeoutLayer::new(|req: &Request<Incoming>| {
            (req.uri().path() != "/waits").then_some(Duration::from_millis(500))
        }))
        .service(service_fn({
            let door = Arc::clone(&door);
            move |request| answer(Arc::clone(&door), request)
        }));

    let listener = TcpListener::bind(listen.unwrap_or(([127, 0, 0, 1], 0).into())).await?;
    let address = listener.local_addr()?;
    let server = tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            // A clone, not another `ServiceBuilder`: two layer values share nothing.
            let service = TowerToHyperService::new(service.clone());
            tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
        }
    });
    if listen.is_some() {
        println!("listening at http://{address}: /hello, /hangs, /waits");
        return Ok(server.await?);
    }

    assert_eq!(ask(address, "/hello").await?, (StatusCode::OK, "hello".into()));
    assert_eq!(ask(address, "/hangs").await?, (StatusCode::GATEWAY_TIMEOUT, Bytes::new()));

    // One connection is inside. Another one finds the limit reached, because both share it.
    let waiting = tokio::spawn(async move { ask(address, "/waits").await.map_err(|error| error.to_string()) });
    door.entered.notified().await;
    assert_eq!(ask(address, "/hello").await?, (StatusCode::SERVICE_UNAVAILABLE, Bytes::new()));
    door.leave.notify_one();
    assert_eq!(waiting.await??, (StatusCode::OK, "waited".into()));
    assert_eq!(ask(address, "/hello").await?.0, StatusCode::OK);

    println!("two connections share one limit, and a rejection is a response");
    Ok(())
}

/// Sends each call on its own connection.
async fn ask(address: SocketAddr, path: &str) -> Result<(StatusCode, Bytes), Box<dyn Error>> {
    let client = Client::builder(TokioExecutor::new()).build_http();
    let request = Request::get(format!("http://{address}{path}")).body(Empty::<Bytes>::new())?;
    let (head, body) = client.request(request).await?.into_parts();
    Ok((head.status, body.collect().await?.to_bytes()))
}
