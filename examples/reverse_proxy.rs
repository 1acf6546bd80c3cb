//! A reverse proxy: hyper in front, a hyper-util client behind, and the whole stack between. Bodies are streamed both ways.
//!
//! `cargo run --release --example reverse_proxy -- 127.0.0.1:8080 http://127.0.0.1:3000`
//!
//! Without arguments it proxies to a small upstream of its own, asks it for something, and ends.

use std::{
    convert::Infallible,
    env,
    error::Error as StdError,
    future::Future,
    io,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, Uri, Version, header};
use http_body_util::{BodyExt, combinators::UnsyncBoxBody};
use hyper::body::{Body, Incoming};
use hyper_util::{
    client::legacy::{self, Client},
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::{conn::auto, graceful::GracefulShutdown},
    service::TowerToHyperService,
};
use tokio::{net::TcpListener, time::sleep};
use tower::{Service, ServiceBuilder, ServiceExt};
use tracing::{debug, info, warn};
use ziggurat::{
    Class, Classify, Error, HttpStatus, Reject, Scope,
    circuit_breaker::CircuitBreakerLayer,
    concurrency_limit::ConcurrencyLimitLayer,
    context::{ContextLayer, ScopeBody},
    identity::IdentityLayer,
    propagate::PropagateLayer,
    replay::ReplayLayer,
    retry::RetryLayer,
    timeout::TimeoutLayer,
};

type BoxError = Box<dyn StdError + Send + Sync>;
type ProxyBody = UnsyncBoxBody<Bytes, BoxError>;

/// What is under way when the proxy is told to stop has this long to end.
const GRACE: Duration = Duration::from_secs(30);

/// The upstream may pause for this long in the middle of a response.
const IDLE: Duration = Duration::from_secs(10);

/// The server's stack, around the client's: what becomes of a request, from the outside in.
fn proxy(
    upstream: Uri,
) -> impl Service<Request<Incoming>, Response = Response<ScopeBody<ProxyBody>>, Error = Infallible, Future: Send> + Clone
{
    let client = ServiceBuilder::new()
        .layer(TimeoutLayer::new(|req: &Request<Incoming>| patience(req.body(), 30)).named("total"))
        .layer(ReplayLayer::new())
        .layer(RetryLayer::http())
        .layer(CircuitBreakerLayer::http().classify(judge).until_body_end())
        .layer(ConcurrencyLimitLayer::new(256).max_waiting(256).until_body_end())
        .layer(TimeoutLayer::new(|req: &Request<_>| patience(req.body(), 10)).idle(IDLE).named("attempt"))
        .layer(PropagateLayer::new())
        .map_err(Error::Service)
        .service(Client::builder(TokioExecutor::new()).pool_timer(TokioTimer::new()).build_http());
    ServiceBuilder::new().layer(ContextLayer::new(Scope::root("proxy"))).layer(IdentityLayer::new()).service_fn(
        move |request: Request<Incoming>| {
            info!(method = %request.method(), uri = %request.uri(), "request");
            let answered = client.clone().oneshot(forward(request, &upstream));
            async { Ok(answer(answered.await)) }
        },
    )
}

/// What an outcome says about the upstream: nothing, if it was the caller who hung up in the middle of the request's body.
fn judge<B>(outcome: Result<&Response<B>, &Error<legacy::Error>>) -> Class {
    match outcome {
        Err(Error::Service(error))
            if error.source().and_then(|source| source.downcast_ref()).is_some_and(hyper::Error::is_user) =>
        {
            Class::Ignored
        }
        _ => HttpStatus.classify(outcome),
    }
}

/// How long to wait for the response's head: an upload may take as long as it likes, everything else so many seconds.
fn patience(body: &impl Body, seconds: u64) -> Option<Duration> {
    body.is_end_stream().then(|| Duration::from_secs(seconds))
}

/// The request as the upstream gets it.
fn forward(mut request: Request<Incoming>, upstream: &Uri) -> Request<Incoming> {
    let mut uri = upstream.clone().into_parts();
    uri.path_and_query = request.uri().path_and_query().cloned().or(uri.path_and_query);
    *request.uri_mut() = Uri::from_parts(uri).unwrap_or_else(|_| upstream.clone());
    *request.version_mut() = Version::HTTP_11;
    let headers = request.headers_mut();
    remove_hop_by_hop(headers);
    headers.remove(header::HOST); // the client sets the upstream's
    headers.append(header::VIA, HeaderValue::from_static("1.1 ziggurat"));
    request
}

/// What is meant for this connection alone: RFC 9110, section 7.6.1.
fn remove_hop_by_hop(headers: &mut HeaderMap) {
    let named: Vec<_> = headers.get_all(header::CONNECTION).iter().filter_map(|value| value.to_str().ok()).collect();
    let named: Vec<HeaderName> = named.join(",").split(',').filter_map(|name| name.trim().parse().ok()).collect();
    let known = ["connection", "keep-alive", "proxy-connection", "te", "transfer-encoding", "upgrade"];
    for name in named.into_iter().chain(known.map(HeaderName::from_static)) {
        headers.remove(name);
    }
}

/// The response as the caller gets it: a rejection is a 503 or 504, and an upstream that cannot be reached a 502.
fn answer<B>(outcome: Result<Response<B>, Error<legacy::Error>>) -> Response<ProxyBody>
where
    B: Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
{
    let mut response = match outcome {
        Ok(response) => response.map(|body| ProxyBody::new(body.map_err(Into::into))),
        Err(Error::Rejected(rejection)) => {
            let Ok(response) = Infallible::reject(rejection);
            response
        }
        Err(Error::Service(error)) => {
            warn!(error = &error as &dyn StdError, "upstream");
            let mut response = Response::<ProxyBody>::default();
            *response.status_mut() = StatusCode::BAD_GATEWAY;
            response
        }
    };
    remove_hop_by_hop(response.headers_mut());
    info!(status = response.status().as_u16(), "response");
    response
}

/// Serves until `stop`, and then what is under way.
pub(crate) async fn serve(listener: TcpListener, upstream: Uri, stop: impl Future<Output = ()>) {
    let service = TowerToHyperService::new(proxy(upstream));
    let (server, connections) = (auto::Builder::new(TokioExecutor::new()), GracefulShutdown::new());
    let mut stop = pin!(stop);
    loop {
        let accepted = tokio::select! {
            () = &mut stop => break,
            accepted = listener.accept() => accepted,
        };
        let Ok((stream, _)) = accepted else {
            warn!(error = ?accepted.err(), "cannot accept");
            sleep(Duration::from_millis(100)).await; // out of file descriptors, say
            continue;
        };
        let connection = connections.watch(server.serve_connection(TokioIo::new(stream), service.clone()).into_owned());
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                debug!(%error, "connection");
            }
        });
    }
    drop(listener);
    info!("stopping");
    tokio::select! {
        () = connections.shutdown() => info!("all connections have ended"),
        () = sleep(GRACE) => warn!("some connections are cut off"),
    }
}

/// Ctrl-C, or what an init system sends.
async fn signalled() {
    #[cfg(unix)]
    if let Ok(mut terminate) = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()) {
        tokio::select! {
            _ = tokio::signal::ctrl_c() => return,
            _ = terminate.recv() => return,
        }
    }
    let _ = tokio::signal::ctrl_c().await;
}

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    tracing_subscriber::fmt().with_writer(io::stderr).init();
    let arguments: Vec<_> = env::args().skip(1).collect();
    let [listen, upstream] = arguments.as_slice() else {
        return if arguments.is_empty() { demo().await } else { Err("usage: reverse_proxy LISTEN UPSTREAM".into()) };
    };
    let upstream: Uri = upstream.parse().map_err(|error| format!("{upstream}: {error}"))?;
    if upstream.scheme_str() != Some("http") || upstream.authority().is_none() {
        return Err(format!("{upstream}: an upstream is written as http://HOST:PORT").into());
    }
    let listener = TcpListener::bind(listen).await.map_err(|error| format!("{listen}: {error}"))?;
    info!(listen = %listener.local_addr()?, %upstream, "proxy");
    serve(listener, upstream, signalled()).await;
    Ok(())
}

/// Through the proxy, a first failure is not seen.
async fn demo() -> Result<(), BoxError> {
    let calls = Arc::new(AtomicU32::new(0));
    let flaky = move || async move {
        let first = calls.fetch_add(1, Ordering::SeqCst) == 0;
        if first { Err(StatusCode::SERVICE_UNAVAILABLE) } else { Ok("hello from the upstream") }
    };
    let (upstream, listener) = (TcpListener::bind("127.0.0.1:0").await?, TcpListener::bind("127.0.0.1:0").await?);
    let (to, at) = (format!("http://{}", upstream.local_addr()?).parse()?, listener.local_addr()?);
    tokio::spawn(async { axum::serve(upstream, axum::Router::new().route("/", axum::routing::put(flaky))).await });
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let proxy = tokio::spawn(serve(listener, to, async { drop(stopped.await) }));

    let client = Client::builder(TokioExecutor::new()).build_http();
    let response =
        client.request(Request::put(format!("http://{at}/")).body("a request with a body".to_owned())?).await?;
    assert_eq!(response.status(), StatusCode::OK);
    assert!(response.headers().contains_key("x-request-id"));
    assert_eq!(response.into_body().collect().await?.to_bytes(), "hello from the upstream");
    drop(stop);
    proxy.await?;
    println!("the second attempt was answered, and the proxy has ended");
    Ok(())
}
