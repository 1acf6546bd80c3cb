//! A reverse proxy: hyper in front, a hyper-util client behind, and the whole stack between. Bodies are streamed both ways.
//!
//! `cargo run --release --example reverse_proxy -- 127.0.0.1:8080 http://127.0.0.1:3000`
//!
//! Without arguments it proxies to a small upstream of its own, asks it for something, and ends.
//!
//! It has no TLS and no upgrades (so no WebSocket), and does not say where a request came from (`X-Forwarded-For`; what a caller
//! writes there is passed on). Callers who do not read what they asked for, or never ask, keep their permit and their connection:
//! a body cannot see that. Against them it takes a limit on connections, and on how long one may lie still, where they are accepted.

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
use http::{Request, Response, StatusCode, Uri, Version, uri::Authority};
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

mod rfc9110;

type BoxError = Box<dyn StdError + Send + Sync>;
type ProxyBody = UnsyncBoxBody<Bytes, BoxError>;

/// What is under way when the proxy is told to stop has this long to end.
const GRACE: Duration = Duration::from_secs(30);

/// A body of up to this size is sent in no time, and says no more than other requests about how long an answer takes.
const SMALL: u64 = 64 * 1024;

/// How long the proxy waits, and for what.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// For the head of the caller's request.
    pub(crate) request_head: Duration,
    /// For the head of the response, with all attempts.
    pub(crate) total: Duration,
    /// For the head of the response, in one attempt.
    pub(crate) attempt: Duration,
    /// For both, if the request's body is large, or nobody knows how large.
    pub(crate) upload: Duration,
    /// In the middle of a response, for more of it.
    pub(crate) idle: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            request_head: Duration::from_secs(10),
            total: Duration::from_secs(30),
            attempt: Duration::from_secs(10),
            upload: Duration::from_secs(3600),
            idle: Duration::from_secs(10),
        }
    }
}

impl Limits {
    /// An upload may take as long as it needs, but nothing holds a permit for ever.
    fn unless_upload<B: Body>(&self, limit: Duration, request: &Request<B>) -> Duration {
        let is_small = request.body().size_hint().upper().is_some_and(|size| size <= SMALL);
        if is_small { limit } else { self.upload }
    }
}

/// The server's stack, around the client's: what becomes of a request, from the outside in.
fn proxy(
    upstream: Uri,
    limits: Limits,
) -> impl Service<Request<Incoming>, Response = Response<ScopeBody<ProxyBody>>, Error = Infallible, Future: Send> + Clone
{
    let attempt = TimeoutLayer::new(move |req: &Request<_>| limits.unless_upload(limits.attempt, req));
    let client = ServiceBuilder::new()
        .layer(TimeoutLayer::new(move |req: &Request<Incoming>| limits.unless_upload(limits.total, req)).named("total"))
        .layer(ReplayLayer::new())
        .layer(RetryLayer::http())
        .layer(CircuitBreakerLayer::http().classify(judge).until_body_end())
        .layer(ConcurrencyLimitLayer::new(256).max_waiting(256).until_body_end())
        .layer(attempt.idle(limits.idle).named("attempt"))
        .layer(PropagateLayer::new())
        .map_err(Error::Service)
        .service(Client::builder(TokioExecutor::new()).pool_timer(TokioTimer::new()).build_http());
    ServiceBuilder::new().layer(ContextLayer::new(Scope::root("proxy"))).layer(IdentityLayer::new()).service_fn(
        move |mut request: Request<Incoming>| {
            info!(method = %request.method(), uri = %request.uri(), "request");
            let (client, upstream) = (client.clone(), upstream.clone());
            async move {
                let response = match rfc9110::send_on(&mut request) {
                    Ok(()) => answer(client.oneshot(to(upstream, request)).await),
                    Err(status) => empty(status),
                };
                info!(status = response.status().as_u16(), "response");
                Ok(response)
            }
        },
    )
}

/// What an outcome says about the upstream: nothing, if the failure is the caller's.
fn judge<B>(outcome: Result<&Response<B>, &Error<legacy::Error>>) -> Class {
    match outcome {
        Err(Error::Service(error)) if is_the_callers(error) => Class::Ignored,
        _ => HttpStatus.classify(outcome),
    }
}

/// Whether the request's body broke off, because the caller hung up or wrote what is no HTTP.
fn is_the_callers(error: &legacy::Error) -> bool {
    error.source().and_then(|source| source.downcast_ref()).is_some_and(hyper::Error::is_user)
}

/// The same request, to the upstream.
fn to(upstream: Uri, mut request: Request<Incoming>) -> Request<Incoming> {
    let mut uri = upstream.clone().into_parts();
    uri.path_and_query = request.uri().path_and_query().cloned().or(uri.path_and_query);
    *request.uri_mut() = Uri::from_parts(uri).unwrap_or(upstream);
    *request.version_mut() = Version::HTTP_11;
    request
}

/// The response as the caller gets it: a rejection is a 503 or 504, and an upstream that cannot be reached a 502.
fn answer<B>(outcome: Result<Response<B>, Error<legacy::Error>>) -> Response<ProxyBody>
where
    B: Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
{
    match outcome {
        Ok(mut response) => match rfc9110::send_back(&mut response) {
            Ok(()) => response.map(|body| ProxyBody::new(body.map_err(Into::into))),
            Err(status) => empty(status),
        },
        Err(Error::Rejected(rejection)) => {
            let Ok(response) = Infallible::reject(rejection);
            response
        }
        Err(Error::Service(error)) if is_the_callers(&error) => empty(StatusCode::BAD_REQUEST),
        Err(Error::Service(error)) => {
            warn!(error = &error as &dyn StdError, "upstream");
            empty(StatusCode::BAD_GATEWAY)
        }
    }
}

fn empty(status: StatusCode) -> Response<ProxyBody> {
    let mut response = Response::default();
    *response.status_mut() = status;
    response
}

/// Serves until `stop`, and then what is under way.
pub(crate) async fn serve(listener: TcpListener, upstream: Uri, limits: Limits, stop: impl Future<Output = ()>) {
    let service = TowerToHyperService::new(proxy(upstream, limits));
    let (mut server, connections) = (auto::Builder::new(TokioExecutor::new()), GracefulShutdown::new());
    server.http1().timer(TokioTimer::new()).header_read_timeout(limits.request_head);
    server.http2().timer(TokioTimer::new()).keep_alive_interval(limits.request_head);
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
    let upstream = upstream_of(upstream)?;
    let listener = TcpListener::bind(listen).await.map_err(|error| format!("{listen}: {error}"))?;
    info!(listen = %listener.local_addr()?, %upstream, "proxy");
    serve(listener, upstream, Limits::default(), signalled()).await;
    Ok(())
}

/// Only scheme and authority are used, so there is nothing else in it. What was written is not repeated: it may be a password.
pub(crate) fn upstream_of(argument: &str) -> Result<Uri, &'static str> {
    let is_host = |authority: &Authority| {
        let (host, port) = (authority.host(), authority.port_u16());
        authority == host || port.is_some_and(|port| authority == format!("{host}:{port}").as_str())
    };
    let is_upstream = |uri: &Uri| {
        let is_bare = uri.path_and_query().is_none_or(|path| path == "/");
        uri.scheme_str() == Some("http") && uri.authority().is_some_and(is_host) && is_bare
    };
    argument.parse().ok().filter(is_upstream).ok_or("an upstream is written as http://HOST:PORT, and with nothing else")
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
    let proxy = tokio::spawn(serve(listener, to, Limits::default(), async { drop(stopped.await) }));

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
