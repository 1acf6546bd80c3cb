//! Shuts an axum server down gracefully: new requests are rejected, a request in flight gets its response, and an open
//! stream of server-sent events ends.

use std::{convert::Infallible, error::Error, net::SocketAddr, sync::Arc, time::Duration};

use axum::{
    Router,
    http::{Request, Response, StatusCode, header::CONNECTION},
    response::sse::{Event, Sse},
    routing::get,
};
use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use tokio::{
    net::TcpListener,
    sync::{Notify, oneshot},
};
use ziggurat::drain::{DrainLayer, draining};

/// Sends one event, and would then stay open for as long as the client does.
async fn news() -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
    let events = stream::iter([Ok(Event::default().data("hello"))]).chain(stream::pending());
    Sse::new(events.take_until(draining()))
}

/// Signals when a request has arrived, and when it may be answered.
#[derive(Default)]
struct Door {
    entered: Notify,
    leave: Notify,
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let drain = DrainLayer::new().grace(Duration::from_secs(20));
    let (handle, ready) = (drain.handle(), drain.handle());
    let door = Arc::new(Door::default());
    let at_door = Arc::clone(&door);
    let slow = async move || {
        at_door.entered.notify_one();
        at_door.leave.notified().await;
        "finished"
    };
    let readiness = async move || if ready.is_draining() { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK };
    let router =
        Router::new().route("/news", get(news)).route("/slow", get(slow)).layer(drain).route("/ready", get(readiness)); // added after the layer, and so outside it

    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    // In place of SIGTERM.
    let (terminate, terminated) = oneshot::channel::<()>();
    let at_the_end = handle.clone();
    let stopped = async move {
        drop(terminated.await);
        at_the_end.drain().await;
    };
    let server = tokio::spawn(axum::serve(listener, router).with_graceful_shutdown(stopped).into_future());

    let mut news = ask(address, "/news").await?.into_body();
    assert_eq!(news.frame().await.ok_or("no event")??.into_data().ok(), Some(Bytes::from("data: hello\n\n")));
    let slow = tokio::spawn(async move { ask(address, "/slow").await.map_err(|error| error.to_string()) });
    door.entered.notified().await;
    assert_eq!(ask(address, "/ready").await?.status(), StatusCode::OK);
    assert_eq!(handle.in_flight(), 2);

    drop(terminate);
    // The stream ends at the beginning of the drain, properly and not with an error.
    assert_eq!(news.collect().await?.to_bytes(), "");
    // The server still answers, so that its load balancer meets no refused connections.
    let rejected = ask(address, "/slow").await?;
    assert_eq!(rejected.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(rejected.headers()[CONNECTION], "close");
    assert_eq!(ask(address, "/ready").await?.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(!server.is_finished() && handle.in_flight() == 1);

    door.leave.notify_one();
    let finished = slow.await??;
    assert_eq!(finished.headers()[CONNECTION], "close");
    assert_eq!(finished.into_body().collect().await?.to_bytes(), "finished");
    // The last call has ended, so the server stops.
    server.await??;
    println!("one call was rejected, one finished, one stream ended, and the server has stopped");
    Ok(())
}

/// Sends each call on its own connection.
async fn ask(address: SocketAddr, path: &str) -> Result<Response<Incoming>, Box<dyn Error>> {
    let client = Client::builder(TokioExecutor::new()).build_http();
    Ok(client.request(Request::get(format!("http://{address}{path}")).body(Empty::<Bytes>::new())?).await?)
}
