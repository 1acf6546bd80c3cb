//! gRPC over real sockets: tonic's client and server under the layers, with the generated code of tonic-health. The
//! clock is the real one, so every limit that is not meant to pass is far away, and tests synchronize by channels.

use std::{
    error::Error as StdError,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use http_body_util::BodyExt;
use tokio::{
    io::AsyncReadExt,
    net::TcpListener,
    sync::{Notify, mpsc},
};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::{
    Code, Request, Response, Status,
    metadata::MetadataMap,
    transport::{Channel, Endpoint, Server, server::TcpIncoming},
};
use tonic_health::pb::{
    HealthCheckRequest, HealthCheckResponse,
    health_client::HealthClient,
    health_server::{Health, HealthServer},
};
use tower::{ServiceBuilder, ServiceExt, service_fn};
use ziggurat::{
    Error, GrpcStatus, LayerEvent, LayerInfo, Rejection, Scope,
    circuit_breaker::{CircuitBreakerLayer, State},
    concurrency_limit::{ConcurrencyLimitHandle, ConcurrencyLimitLayer},
    context::ContextLayer,
    rejection_response::RejectionResponseLayer,
    replay::ReplayLayer,
    retry::{CopyIf, RetryLayer},
    timeout::TimeoutLayer,
};

/// A limit that no test reaches.
const FAR: Duration = Duration::from_secs(3600);
const SOON: Duration = Duration::from_millis(10);

type Update = Result<HealthCheckResponse, Status>;

/// Shared by a service and its test. The requested service name selects the behaviour.
#[derive(Clone, Default)]
struct Door {
    calls: Arc<AtomicUsize>,
    entered: Arc<Notify>,
    leave: Arc<Notify>,
    watched: Arc<Mutex<Option<mpsc::UnboundedReceiver<Update>>>>,
}

impl Door {
    fn calls(&self) -> usize {
        self.calls.load(Ordering::SeqCst)
    }
}

fn healthy(status: i32) -> HealthCheckResponse {
    HealthCheckResponse { status }
}

/// A status with every optional part.
fn own_status() -> Status {
    let mut metadata = MetadataMap::new();
    metadata.insert("x", "y".parse().unwrap());
    Status::with_details_and_metadata(Code::FailedPrecondition, "größer als 100 %", vec![0, 255].into(), metadata)
}

#[tonic::async_trait]
impl Health for Door {
    async fn check(&self, request: Request<HealthCheckRequest>) -> Result<Response<HealthCheckResponse>, Status> {
        let call = self.calls.fetch_add(1, Ordering::SeqCst);
        match request.get_ref().service.as_str() {
            "hangs" => std::future::pending().await,
            "waits" => {
                self.entered.notify_one();
                self.leave.notified().await;
            }
            "fails" => return Err(own_status()),
            "flaky" if call < 2 => return Err(Status::unavailable("not now")),
            "down" => return Err(Status::unavailable("not now")),
            "scope" => {
                let carried = request.extensions().get::<Scope>().unwrap();
                assert_eq!(Scope::current().unwrap().id(), carried.id());
                return Ok(Response::new(healthy(*carried.get::<i32>().unwrap())));
            }
            _ => {}
        }
        Ok(Response::new(healthy(1)))
    }

    type WatchStream = UnboundedReceiverStream<Update>;

    async fn watch(&self, _: Request<HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let updates = self.watched.lock().unwrap().take().unwrap();
        Ok(Response::new(UnboundedReceiverStream::new(updates)))
    }
}

/// Serves the door under this layer. It is a macro because of the bounds on a server's layers.
macro_rules! serve {
    ($door:expr, $layer:expr) => {{
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = Server::builder().layer($layer).add_service(HealthServer::new(Door::clone(&$door)));
        tokio::spawn(server.serve_with_incoming(TcpIncoming::from(listener)));
        address
    }};
}

fn channel(to: SocketAddr) -> Channel {
    Endpoint::from_shared(format!("http://{to}")).unwrap().connect_lazy()
}

fn named(service: &str) -> HealthCheckRequest {
    HealthCheckRequest { service: service.to_owned() }
}

/// Calls on a separate connection.
async fn ask(to: SocketAddr, service: &str) -> Result<i32, Status> {
    HealthClient::new(channel(to)).check(named(service)).await.map(|answer| answer.into_inner().status)
}

fn pushback(status: &Status) -> u32 {
    status.metadata().get("grpc-retry-pushback-ms").unwrap().to_str().unwrap().parse().unwrap()
}

/// Wraps the door in every layer for servers.
macro_rules! whole_server {
    ($limit:expr, $timeout:expr) => {
        ServiceBuilder::new()
            .layer(ContextLayer::new(Scope::root("app").with(7_i32)))
            .layer(RejectionResponseLayer::grpc())
            .layer($limit.until_body_end())
            .layer(CircuitBreakerLayer::consecutive(100).classify(GrpcStatus))
            .layer(TimeoutLayer::new($timeout))
            .into_inner()
    };
}

/// Wraps a channel in every layer for clients.
macro_rules! whole_client {
    ($address:expr, $timeout:expr) => {
        HealthClient::new(
            ServiceBuilder::new()
                .layer(ContextLayer::new(Scope::root("client")))
                .layer(TimeoutLayer::new(FAR))
                .layer(RetryLayer::new().classify(GrpcStatus).copy(|_: &http::Request<tonic::body::Body>| None))
                .layer(CircuitBreakerLayer::consecutive(100).classify(GrpcStatus))
                .layer(ConcurrencyLimitLayer::new(16))
                .layer(TimeoutLayer::new($timeout))
                .map_err(ziggurat::grpc::status)
                .service(channel($address)),
        )
    };
}

#[tokio::test]
async fn an_answer_and_a_status_of_the_services_own_pass_every_layer_on_both_sides() {
    let address = serve!(Door::default(), whole_server!(ConcurrencyLimitLayer::new(16), FAR));
    let mut client = whole_client!(address, FAR);
    assert_eq!(client.check(named("known")).await.unwrap().into_inner(), healthy(1));

    // On a task too, where lifetimes are erased.
    let failed = tokio::spawn(async move { client.check(named("fails")).await }).await.unwrap();
    assert!(ziggurat::rejection(&failed).is_none());
    let (status, own) = (failed.unwrap_err(), own_status());
    assert_eq!((status.code(), status.message()), (own.code(), own.message()));
    assert_eq!((status.details(), status.metadata().get("x")), (own.details(), own.metadata().get("x")));
}

/// Shows: T1
#[tokio::test]
async fn a_server_that_is_too_slow_answers_deadline_exceeded() {
    let address = serve!(Door::default(), whole_server!(ConcurrencyLimitLayer::new(16), SOON));
    let status = ask(address, "hangs").await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::DeadlineExceeded, "timeout: no response in time"));
}

/// Shows: L1
#[tokio::test]
async fn a_server_that_is_full_answers_resource_exhausted_on_every_connection_and_says_when_to_come_back() {
    let door = Door::default();
    let limit = ConcurrencyLimitLayer::new(1).max_waiting(0);
    let gate = limit.handle();
    let address = serve!(door, whole_server!(limit, FAR));
    let waiting = tokio::spawn(ask(address, "waits"));
    door.entered.notified().await;
    let status = ask(address, "known").await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert_eq!(status.message(), "concurrency_limit: too many calls are in flight");
    assert!(pushback(&status) > 0);
    assert_eq!(gate.in_flight(), 1);
    door.leave.notify_one();
    assert_eq!(waiting.await.unwrap().unwrap(), 1);
    assert_eq!(ask(address, "known").await.unwrap(), 1);
}

/// Shows: B3
#[tokio::test]
async fn a_server_whose_circuit_is_open_answers_unavailable_and_says_when_to_come_back() {
    let breaker = CircuitBreakerLayer::consecutive(2).classify(GrpcStatus).open_for(FAR);
    let layers = ServiceBuilder::new().layer(RejectionResponseLayer::grpc()).layer(breaker).into_inner();
    let (door, failures) = (Door::default(), 2);
    let address = serve!(door, layers);
    // The service's own status decides, although the HTTP status is 200.
    for _ in 0..failures {
        assert_eq!(ask(address, "down").await.unwrap_err().message(), "not now");
    }
    let status = ask(address, "known").await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::Unavailable, "circuit_breaker: the circuit is open"));
    assert!((1..=3_600_000).contains(&pushback(&status)));
    assert_eq!(door.calls(), failures);
}

/// Shows: T1
#[tokio::test]
async fn a_client_that_gives_up_gets_deadline_exceeded_with_the_rejection_in_it() {
    let address = serve!(Door::default(), tower::layer::util::Identity::new());
    let outcome = whole_client!(address, SOON).check(named("hangs")).await;
    assert!(ziggurat::rejection(&outcome).unwrap().is_timed_out());
    let status = outcome.unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded);
    assert!(Rejection::find(&status).unwrap().is_timed_out());
    // Boxed, as programs do with errors.
    let boxed: Box<dyn StdError> = status.into();
    assert_eq!(Rejection::find(&*boxed).unwrap().layer(), "timeout");
}

/// Shows: L1, B3
#[tokio::test]
async fn a_clients_own_limit_and_circuit_have_the_codes_of_a_server() {
    let door = Door::default();
    let address = serve!(door, tower::layer::util::Identity::new());
    let breaker = CircuitBreakerLayer::consecutive(1).classify(GrpcStatus).open_for(FAR);
    let (circuit, limit) = (breaker.handle(), ConcurrencyLimitLayer::new(1).max_waiting(0));
    let client = HealthClient::new(
        ServiceBuilder::new().layer(breaker).layer(limit).map_err(ziggurat::grpc::status).service(channel(address)),
    );
    let ask = |name| {
        let mut client = client.clone();
        async move { client.check(named(name)).await }
    };
    let waiting = tokio::spawn(ask("waits"));
    door.entered.notified().await;
    let full = ask("known").await;
    assert!(ziggurat::rejection(&full).unwrap().is_overloaded());
    assert_eq!(full.unwrap_err().code(), Code::ResourceExhausted);
    assert_eq!(circuit.state(), State::Closed, "it says nothing about the service");
    door.leave.notify_one();
    assert!(waiting.await.unwrap().is_ok());

    let down = ask("down").await;
    assert!(ziggurat::rejection(&down).is_none());
    let open = ask("known").await;
    assert!(ziggurat::rejection(&open).unwrap().is_circuit_open());
    assert_eq!(open.unwrap_err().code(), Code::Unavailable);
    assert_eq!(door.calls(), 2);
}

/// In the usual order, where the error is not a status, the code is right too.
#[tokio::test]
async fn a_stack_with_another_error_gives_a_status_with_the_rejection_in_it() {
    let address = serve!(Door::default(), tower::layer::util::Identity::new());
    let stack = ServiceBuilder::new()
        .map_err(ziggurat::grpc::status::<Error<tonic::transport::Error>>)
        .layer(TimeoutLayer::new(SOON))
        .map_err(Error::Service)
        .service(channel(address));
    let outcome = HealthClient::new(stack).check(named("hangs")).await;
    assert!(ziggurat::rejection(&outcome).unwrap().is_timed_out());
    assert_eq!(outcome.unwrap_err().code(), Code::DeadlineExceeded);
}

/// Shows: R1, R4
#[tokio::test]
async fn around_the_generated_client_a_message_is_sent_again() {
    let door = Door::default();
    let address = serve!(door, tower::layer::util::Identity::new());
    let client = HealthClient::new(channel(address));
    let retrying = ServiceBuilder::new()
        .layer(RetryLayer::new().classify(GrpcStatus).max_attempts(3).backoff(Duration::ZERO))
        .service(service_fn(move |message: HealthCheckRequest| {
            let mut client = client.clone();
            async move { client.check(message).await }
        }));
    assert_eq!(retrying.clone().oneshot(named("flaky")).await.unwrap().into_inner(), healthy(1));
    assert_eq!(door.calls(), 3);
    // A status that is a response is not retried, and passes unchanged.
    assert_eq!(retrying.clone().oneshot(named("fails")).await.unwrap_err().message(), own_status().message());
    assert_eq!(door.calls(), 4);
    assert_eq!(retrying.oneshot(named("down")).await.unwrap_err().message(), "not now");
    assert_eq!(door.calls(), 7);
}

/// Shows: R4, R9
#[tokio::test]
async fn around_the_channel_what_may_be_repeated_is_sent_again() {
    let door = Door::default();
    let address = serve!(door, tower::layer::util::Identity::new());
    let stack = |method: &'static str| {
        let may_be_repeated = CopyIf(move |request: &http::Request<_>| request.uri().path().ends_with(method));
        ServiceBuilder::new()
            .layer(ReplayLayer::new())
            .layer(RetryLayer::new().classify(GrpcStatus).copy(may_be_repeated).max_attempts(3).backoff(Duration::ZERO))
            .map_request(|request: http::Request<_>| request.map(tonic::body::Body::new))
            .map_err(ziggurat::grpc::status)
            .service(channel(address))
    };
    let sent_once = HealthClient::new(stack("/Watch")).check(named("flaky")).await;
    assert_eq!((sent_once.unwrap_err().message(), door.calls()), ("not now", 1));
    // Each attempt sends the whole message, or the name would be missing.
    let retried = HealthClient::new(stack("/grpc.health.v1.Health/Check")).check(named("flaky")).await;
    assert_eq!((retried.unwrap().into_inner(), door.calls()), (healthy(1), 3));
}

/// A full server sends a pushback, and a client obeys it.
///
/// Shows: R4
#[tokio::test]
async fn a_client_obeys_the_pushback_of_a_server_that_is_full() {
    let door = Door::default();
    let limit = ConcurrencyLimitLayer::new(1).max_waiting(0);
    let address = serve!(door, whole_server!(limit, FAR));
    let waiting = tokio::spawn(ask(address, "waits"));
    door.entered.notified().await;
    let client = HealthClient::new(channel(address));
    let leave = Arc::clone(&door.leave);
    let retrying = ServiceBuilder::new()
        .layer(RetryLayer::new().classify(GrpcStatus).max_attempts(100).backoff(Duration::ZERO).observer(
            move |_: &LayerInfo, event: &LayerEvent<'_>| {
                if let LayerEvent::Retrying { delay, .. } = event {
                    assert!(*delay >= Duration::from_millis(1), "the server says when, and no backoff is shorter");
                    leave.notify_one();
                }
            },
        ))
        .service(service_fn(move |message: HealthCheckRequest| {
            let mut client = client.clone();
            async move { client.check(message).await }
        }));
    assert_eq!(retrying.oneshot(named("known")).await.unwrap().into_inner(), healthy(1));
    assert_eq!(waiting.await.unwrap().unwrap(), 1);
}

/// A stream of updates that the test sends, on a server with one permit.
async fn watching() -> (SocketAddr, ConcurrencyLimitHandle, mpsc::UnboundedSender<Update>) {
    let (sender, receiver) = mpsc::unbounded_channel();
    let door = Door::default();
    *door.watched.lock().unwrap() = Some(receiver);
    let limit = ConcurrencyLimitLayer::new(1).max_waiting(0);
    let gate = limit.handle();
    (serve!(door, whole_server!(limit, FAR)), gate, sender)
}

/// Shows: L2
#[tokio::test]
async fn a_streaming_call_holds_its_permit_until_the_stream_ends() {
    let (address, gate, sender) = watching().await;
    let mut updates = whole_client!(address, FAR).watch(named("")).await.unwrap().into_inner();
    sender.send(Ok(healthy(1))).unwrap();
    assert_eq!(updates.message().await.unwrap(), Some(healthy(1)));
    assert_eq!(gate.in_flight(), 1);
    assert_eq!(ask(address, "known").await.unwrap_err().code(), Code::ResourceExhausted);
    sender.send(Err(own_status())).unwrap();
    drop(sender);
    // The status in the trailers passes unchanged.
    assert_eq!(updates.message().await.unwrap_err().message(), own_status().message());
    assert_eq!(gate.in_flight(), 0);
    assert_eq!(ask(address, "known").await.unwrap(), 1);
}

/// Shows: L2
#[tokio::test]
async fn a_client_that_stops_watching_gives_the_permit_back() {
    let (address, gate, sender) = watching().await;
    let mut updates = whole_client!(address, FAR).watch(named("")).await.unwrap().into_inner();
    sender.send(Ok(healthy(1))).unwrap();
    assert_eq!(updates.message().await.unwrap(), Some(healthy(1)));
    assert_eq!(gate.in_flight(), 1);
    drop(updates);
    sender.closed().await;
    assert_eq!(gate.in_flight(), 0);
}

/// The head was sent with 200 when the limit passes, so the status has to be in the trailers.
///
/// Shows: T1
#[tokio::test]
async fn a_server_that_gives_up_in_the_middle_of_a_stream_answers_deadline_exceeded() {
    let (sender, receiver) = mpsc::unbounded_channel();
    let door = Door::default();
    *door.watched.lock().unwrap() = Some(receiver);
    let layers = ServiceBuilder::new()
        .layer(RejectionResponseLayer::grpc().until_body_end())
        .layer(TimeoutLayer::new(FAR).until_body_end().idle(SOON))
        .into_inner();
    let address = serve!(door, layers);
    sender.send(Ok(healthy(1))).unwrap();
    let mut updates = HealthClient::new(channel(address)).watch(named("")).await.unwrap().into_inner();
    assert_eq!(updates.message().await.unwrap(), Some(healthy(1)));
    let status = updates.message().await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::DeadlineExceeded, "timeout: no response in time"));
    sender.closed().await;
    // A status that ends the stream passes unchanged, and so does one without messages.
    assert_eq!(ask(address, "fails").await.unwrap_err().details(), own_status().details());
}

/// Shows: T1
#[tokio::test]
async fn a_client_that_gives_up_in_the_middle_of_a_stream_gets_deadline_exceeded_with_the_rejection_in_it() {
    let (address, _gate, sender) = watching().await;
    let stack = ServiceBuilder::new()
        .map_response(|response: http::Response<_>| response.map(|body| BodyExt::map_err(body, ziggurat::grpc::status)))
        .layer(TimeoutLayer::new(FAR).until_body_end().idle(SOON))
        .map_err(ziggurat::grpc::status)
        .service(channel(address));
    let mut updates = HealthClient::new(stack).watch(named("")).await.unwrap().into_inner();
    let status = updates.message().await.unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded);
    assert!(Rejection::find(&status).unwrap().is_timed_out());
    sender.closed().await;
}

/// Shows: X8
#[tokio::test]
async fn a_method_finds_the_requests_scope_in_the_extensions_of_its_request() {
    let address = serve!(Door::default(), whole_server!(ConcurrencyLimitLayer::new(16), FAR));
    assert_eq!(ask(address, "scope").await.unwrap(), 7);
}

/// Returns the status of a call that counts as a failure in the client's circuit.
async fn judged_as_failure(address: SocketAddr) -> Status {
    let breaker = CircuitBreakerLayer::consecutive(1).classify(GrpcStatus).open_for(FAR);
    let circuit = breaker.handle();
    let stack = ServiceBuilder::new().layer(breaker).map_err(ziggurat::grpc::status).service(channel(address));
    let status = HealthClient::new(stack).check(named("known")).await.unwrap_err();
    assert!(Rejection::find(&status).is_none());
    assert_eq!(circuit.state(), State::Open, "{status:?}");
    status
}

/// Shows: R4
#[tokio::test]
async fn a_transport_that_fails_is_a_failure() {
    let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    assert_eq!(judged_as_failure(nobody).await.code(), Code::Unavailable);

    // The server accepts, and closes the connection when the request arrives.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = stream.read(&mut [0; 1024]).await;
        }
    });
    judged_as_failure(address).await;
}
