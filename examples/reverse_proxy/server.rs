//! Accepts and ends callers' connections.

use std::{convert::Infallible, future::Future, net::SocketAddr, pin::pin, sync::Arc, time::Duration};

use http::{Request, Uri};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Notify, Semaphore, watch},
    time::{sleep, timeout},
};
use tower::{Service, ServiceExt};
use tracing::{debug, info, warn};
use ziggurat::{body::GuardBody, drain::DrainLayer};

use super::{
    cache::Caching,
    calls::Calls,
    forwarded::Caller,
    limits::Limits,
    socket::Socket,
    stack::{self, ProxyResponse},
};

/// How long connections may take, after the grace period, to tell callers that their responses end early.
const LINGER: Duration = Duration::from_secs(1);

/// Serves until `stop`, and then lets calls in flight end.
pub(crate) async fn serve(
    listener: TcpListener,
    upstream: Uri,
    limits: Limits,
    caching: Caching,
    stop: impl Future<Output = ()>,
) {
    let drain = DrainLayer::new().grace(limits.grace);
    let calls = drain.handle();
    let service = stack::proxy(upstream, limits, caching, drain);
    let places = Arc::new(Semaphore::new(limits.connections));
    let room = Arc::new(Notify::new());
    let stopping = watch::Sender::new(false);
    let mut stop = pin!(stop);
    loop {
        let accepted = tokio::select! {
            () = &mut stop => break,
            accepted = listener.accept() => accepted,
        };
        let Ok((stream, caller)) = accepted else {
            warn!(error = ?accepted.err(), "cannot accept");
            sleep(Duration::from_millis(100)).await; // for example out of file descriptors
            continue;
        };
        if places.available_permits() == 0 {
            room.notify_one();
        }
        let place = tokio::select! {
            () = &mut stop => break,
            place = Arc::clone(&places).acquire_owned() => place,
        };
        let served = serve_one(stream, caller, service.clone(), limits, Arc::clone(&room), stopping.subscribe());
        tokio::spawn(async move {
            let _place = place;
            served.await;
        });
    }
    drop(listener);
    info!("stopping");
    stopping.send_replace(true);
    let ended = async {
        calls.drain().await;
        stopping.closed().await;
    };
    match timeout(limits.grace.saturating_add(LINGER), ended).await {
        Ok(()) => info!("all connections have ended"),
        Err(_) => warn!("some connections are cut off"),
    }
}

async fn serve_one<S>(
    stream: TcpStream,
    caller: SocketAddr,
    service: S,
    limits: Limits,
    room: Arc<Notify>,
    mut stopping: watch::Receiver<bool>,
) where
    S: Service<Request<Incoming>, Response = ProxyResponse, Error = Infallible, Future: Send> + Clone + Send + 'static,
{
    let calls = Calls::new();
    let socket = Socket::new(stream, calls.clone(), limits.stalled);
    let counted = calls.clone();
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(Caller(caller.ip().to_canonical()));
        let call = counted.begin(request.version());
        let response = service.clone().oneshot(request);
        async move { response.await.map(|response| response.map(|body| GuardBody::new(body, call))) }
    });
    let mut server = auto::Builder::new(TokioExecutor::new());
    server.http1().header_read_timeout(None).max_buf_size(limits.head as usize);
    server.http2().timer(TokioTimer::new()).keep_alive_interval(limits.request_head).max_header_list_size(limits.head);
    let mut connection = pin!(server.serve_connection(TokioIo::new(socket), service));
    let mut leaving = false;
    loop {
        tokio::select! {
            biased;
            ended = connection.as_mut() => {
                if let Err(error) = ended {
                    debug!(%error, "connection");
                }
                return;
            }
            is_to_be_told = calls.idle(&limits, &room) => if !is_to_be_told {
                debug!("a connection without a request is cut off");
                return;
            },
            _ = stopping.wait_for(|stopping| *stopping), if !leaving => {}
        }
        leaving = true;
        calls.leave();
        connection.as_mut().graceful_shutdown();
    }
}
