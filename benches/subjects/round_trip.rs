//! One HTTP/1 request on a connection that is kept alive: a client and a server on one thread.

use std::{
    convert::Infallible,
    error::Error as StdError,
    fmt::Debug,
    future::{Future, Ready, pending, poll_fn, ready},
    hint::black_box,
    marker::PhantomData,
    mem::forget,
    pin::pin,
    task::{Context, Waker},
};

#[cfg(feature = "peers")]
use super::proxy;
#[cfg(feature = "peers")]
use crate::Failed;
use crate::subject::Subject;
use bytes::Bytes;
use http::{Request, Response, StatusCode, Uri};
use http_body::Body;
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1::Builder as Server};
use hyper_util::{
    client::legacy::Client,
    rt::{TokioExecutor, TokioIo},
    service::TowerToHyperService,
};
use tokio::{io::DuplexStream, net::TcpStream, runtime::Builder};
use tower::{Layer, Service, ServiceBuilder};
#[cfg(feature = "peers")]
use tower_resilience::{
    bulkhead::BulkheadLayer, circuitbreaker::CircuitBreakerLayer as PeerBreakerLayer,
    retry::RetryLayer as PeerRetryLayer, timelimiter::TimeLimiterLayer,
};
use ziggurat::{
    Error, Scope,
    circuit_breaker::CircuitBreakerLayer,
    concurrency_limit::ConcurrencyLimitLayer,
    context::ContextLayer,
    observe::ObserveLayer,
    propagate::PropagateLayer,
    request_id::RequestIdLayer,
    retry::RetryLayer,
    stack::{ClientStack, ServerStack},
    timeout::TimeoutLayer,
};

use super::{
    LIMIT, PERMITS,
    link::{Link, Pipes},
};

type Sent = Request<Full<Bytes>>;

/// A subject, and the size of the client's response future.
pub struct RoundTrip {
    pub subject: Subject,
    pub size: usize,
}

/// The connection is a pipe in memory, so that the figures are those of the crates, and not those of the kernel.
pub fn in_memory() -> Vec<RoundTrip> {
    Connections::<DuplexStream>::subjects()
}

/// The connection is one of TCP, on loopback.
pub fn on_loopback() -> Vec<RoundTrip> {
    Connections::<TcpStream>::subjects()
}

struct Connections<T>(PhantomData<T>);

impl<T: Link> Connections<T> {
    fn subjects() -> Vec<RoundTrip> {
        let retry = || RetryLayer::http().backoff(LIMIT).budget(None);
        let breaker = || CircuitBreakerLayer::http().over_calls(100);
        #[cfg(feature = "peers")]
        let peer_retry =
            PeerRetryLayer::<Sent, Response<Incoming>, Failed>::builder().max_attempts(3).fixed_backoff(LIMIT).build();
        #[cfg(feature = "peers")]
        let peer_breaker = PeerBreakerLayer::builder()
            .failure_rate_threshold(0.5)
            .sliding_window_size(100)
            .build()
            .expect("a breaker");
        #[cfg(feature = "peers")]
        let peer_limit = BulkheadLayer::builder().max_concurrent_calls(PERMITS).build().expect("a limit");
        let app = Scope::root("app");
        vec![
            Self::client("bare", "", ServiceBuilder::new()),
            Self::client(
                "timeout, retry, limit",
                "ziggurat",
                ServiceBuilder::new()
                    .layer(TimeoutLayer::new(LIMIT))
                    .layer(retry())
                    .layer(ConcurrencyLimitLayer::new(PERMITS))
                    .map_err(Error::Service),
            ),
            Self::client(
                "timeout, retry, limit",
                "tower",
                ServiceBuilder::new().timeout(LIMIT).retry(ThreeTimes(3)).concurrency_limit(PERMITS),
            ),
            Self::client(
                "stack of the four",
                "ziggurat",
                ServiceBuilder::new()
                    .layer(TimeoutLayer::new(LIMIT))
                    .layer(retry())
                    .layer(breaker())
                    .layer(ConcurrencyLimitLayer::new(PERMITS))
                    .map_err(Error::Service),
            ),
            #[cfg(feature = "peers")]
            Self::client(
                "stack of the four",
                "tower-resilience",
                ServiceBuilder::new()
                    .layer(TimeLimiterLayer::builder().timeout_duration(LIMIT).build())
                    .layer(peer_retry)
                    .map_err(|_| Failed)
                    .layer(peer_breaker)
                    .layer(peer_limit)
                    .map_err(|_| Failed),
            ),
            Self::client(
                "timeout",
                "ziggurat",
                ServiceBuilder::new().layer(TimeoutLayer::new(LIMIT)).map_err(Error::Service),
            ),
            Self::client("retry", "ziggurat", ServiceBuilder::new().layer(retry()).map_err(Error::Service)),
            Self::client("breaker", "ziggurat", ServiceBuilder::new().layer(breaker()).map_err(Error::Service)),
            Self::client(
                "limit",
                "ziggurat",
                ServiceBuilder::new().layer(ConcurrencyLimitLayer::new(PERMITS)).map_err(Error::Service),
            ),
            Self::client(
                "recommended client",
                "ziggurat",
                ServiceBuilder::new().layer(ClientStack::http("bench")).map_err(Error::Service),
            ),
            Self::client(
                "recommended client, to the body's end",
                "ziggurat",
                ServiceBuilder::new().layer(ClientStack::http("bench").until_body_end()).map_err(Error::Service),
            ),
            Self::client(
                "full client stack",
                "ziggurat",
                ServiceBuilder::new()
                    .layer(ContextLayer::new(app.clone()))
                    .layer(RequestIdLayer::new())
                    .layer(ObserveLayer::http().until_body_end())
                    .layer(ClientStack::http("bench").until_body_end())
                    .layer(PropagateLayer::new())
                    .map_err(Error::Service),
            ),
            Self::pair("recommended server", "ziggurat", ServiceBuilder::new(), || {
                ServiceBuilder::new().layer(ServerStack::new(&app)).service_fn(answer)
            }),
            Self::pair("a full server", "ziggurat", ServiceBuilder::new(), || {
                let stack = ServerStack::new(&app);
                stack.gate().set_limit(1);
                // The only permit is taken for good, by a request of the same stack.
                let endless = |_: Request<()>| pending::<Result<Response<Full<Bytes>>, Infallible>>();
                let mut first = Box::pin(stack.layer(tower::service_fn(endless)).call(Request::new(())));
                assert!(first.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
                forget(first);
                stack.layer(tower::service_fn(answer))
            }),
            Self::pair("a full server", "a handler that answers 503", ServiceBuilder::new(), || {
                tower::service_fn(unavailable)
            }),
            #[cfg(feature = "peers")]
            Self::pair("reverse proxy", "ziggurat", ServiceBuilder::new(), proxy::ours::<T>),
            #[cfg(feature = "peers")]
            Self::pair("reverse proxy", "hyper alone", ServiceBuilder::new(), proxy::bare::<T>),
        ]
    }

    /// A client in its layers, of a server without any.
    fn client<L, B>(what: &'static str, whose: &'static str, layers: L) -> RoundTrip
    where
        L: Layer<Bare<T>>,
        L::Service: Service<Sent, Response = Response<B>, Error: Debug> + 'static,
        B: Body<Data = Bytes, Error: Debug>,
    {
        Self::pair(what, whose, layers, || tower::service_fn(answer))
    }

    /// A client in its layers, and a server, which is built on the runtime of both.
    fn pair<L, B, S>(what: &'static str, whose: &'static str, layers: L, server: impl FnOnce() -> S) -> RoundTrip
    where
        L: Layer<Bare<T>>,
        L::Service: Service<Sent, Response = Response<B>, Error: Debug> + 'static,
        B: Body<Data = Bytes, Error: Debug>,
        S: Answer,
    {
        let mut runtime = Builder::new_current_thread();
        if T::OF_THE_KERNEL {
            runtime.enable_io();
        }
        let runtime = runtime.enable_time().build().expect("a runtime");
        let entered = runtime.enter();
        let (near, far) = T::pair().expect("a connection");
        runtime.spawn(Server::new().serve_connection(TokioIo::new(far), TowerToHyperService::new(server())));
        let client = Client::builder(TokioExecutor::new()).build(Pipes::new(near));
        let mut service = layers.layer(client);
        drop(entered);
        let run = move |calls| runtime.block_on(round_trips(&mut service, calls));
        let size = size_of::<<L::Service as Service<Sent>>::Future>();
        RoundTrip { subject: Subject { what, whose, run: Box::new(run) }, size }
    }
}

/// A server's service.
pub(super) trait Answer:
    Service<Request<Incoming>, Response = Response<Self::Body>, Error = Infallible, Future: Send> + Clone + Send + 'static
{
    type Body: Body<Data: Send, Error: Into<Box<dyn StdError + Send + Sync>>> + Send + 'static;
}

impl<S, B> Answer for S
where
    S: Service<Request<Incoming>, Response = Response<B>, Error = Infallible, Future: Send> + Clone + Send + 'static,
    B: Body<Data: Send, Error: Into<Box<dyn StdError + Send + Sync>>> + Send + 'static,
{
    type Body = B;
}

type Bare<T> = Client<Pipes<T>, Full<Bytes>>;

async fn round_trips<S, B>(service: &mut S, calls: u32)
where
    S: Service<Sent, Response = Response<B>, Error: Debug>,
    B: Body<Data = Bytes, Error: Debug>,
{
    for _ in 0..calls {
        let mut request = Request::new(Full::default());
        *request.uri_mut() = Uri::from_static("http://bench.test/prices");
        poll_fn(|cx| service.poll_ready(cx)).await.expect("a service that is ready");
        let response = service.call(black_box(request)).await.expect("a response");
        let mut body = pin!(response.into_body());
        while let Some(frame) = poll_fn(|cx| body.as_mut().poll_frame(cx)).await {
            black_box(frame.expect("a frame"));
        }
    }
}

pub(super) async fn answer(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    black_box(request);
    Ok(Response::new(Full::new(Bytes::from_static(b"ok"))))
}

async fn unavailable(_: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let mut response = Response::new(Full::default());
    *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    Ok(response)
}

/// tower leaves the policy to its users, so this is what most of them write. Ours asks more of a request.
#[derive(Debug, Clone)]
struct ThreeTimes(u32);

impl<B, E> tower::retry::Policy<Sent, Response<B>, E> for ThreeTimes {
    type Future = Ready<()>;

    fn retry(&mut self, _: &mut Sent, outcome: &mut Result<Response<B>, E>) -> Option<Self::Future> {
        self.0 -= 1;
        (outcome.is_err() && self.0 > 0).then(|| ready(()))
    }

    fn clone_request(&mut self, request: &Sent) -> Option<Sent> {
        Some(request.clone())
    }
}
