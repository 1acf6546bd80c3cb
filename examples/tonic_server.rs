//! Wraps a tonic server: a rejection is a gRPC status, which clients in any language understand.
//!
//! All methods and connections share one limit. Methods find the request's scope in its extensions.
//!
//! With `-- --listen 127.0.0.1:50051` it serves any client (`grpc.health.v1.Health`) until it is stopped.

#[path = "shared/listen.rs"]
mod listen;

use std::{error::Error, sync::Arc, time::Duration};

use tokio::{net::TcpListener, sync::Notify};
use tokio_stream::{Pending, pending};
use tonic::{
    Code, Request, Response, Status,
    transport::{Endpoint, Server, server::TcpIncoming},
};
use tonic_health::pb::{
    HealthCheckRequest, HealthCheckResponse,
    health_client::HealthClient,
    health_server::{Health, HealthServer},
};
use tower::ServiceBuilder;
use ziggurat::{
    Scope, concurrency_limit::ConcurrencyLimitLayer, context::ContextLayer, rejection_response::RejectionResponseLayer,
    scope::MissingState, timeout::TimeoutLayer,
};

/// State of the whole program.
struct Healthy(i32);

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let listen = listen::address()?;
    // One call at a time, so that the example can fill the server.
    let at_once = if listen.is_some() { 256 } else { 1 };
    let door = Arc::new(Door::default());
    let layers = ServiceBuilder::new()
        .layer(ContextLayer::new(Scope::root("app").with(Healthy(1))))
        .layer(RejectionResponseLayer::grpc())
        // A call lasts until its last message. There is no waiting: a full server rejects at once.
        .layer(ConcurrencyLimitLayer::new(at_once).max_waiting(0).until_body_end())
        .layer(TimeoutLayer::new(Duration::from_millis(500)))
        .into_inner();

    let listener = TcpListener::bind(listen.unwrap_or(([127, 0, 0, 1], 0).into())).await?;
    let address = listener.local_addr()?;
    let service = HealthServer::new(Service(Arc::clone(&door)));
    let server = Server::builder().layer(layers).add_service(service);
    let serving = server.serve_with_incoming(TcpIncoming::from(listener));
    if listen.is_some() {
        println!("listening at http://{address}: grpc.health.v1.Health");
        return Ok(serving.await?);
    }
    tokio::spawn(serving);

    let client = HealthClient::new(Endpoint::from_shared(format!("http://{address}"))?.connect_lazy());
    let ask = async |name: &str| {
        let request = HealthCheckRequest { service: name.to_owned() };
        client.clone().check(request).await.map(|answer| answer.into_inner().status)
    };
    let code = |outcome: Result<i32, Status>| outcome.map_err(|status| status.code());
    assert_eq!(ask("known").await?, 1);
    // The service's own status passes unchanged.
    assert_eq!(code(ask("unknown").await), Err(Code::NotFound));
    assert_eq!(code(ask("hangs").await), Err(Code::DeadlineExceeded));

    // While one call is in flight, another is rejected.
    let (waits, full) = tokio::join!(ask("waits"), async {
        door.entered.notified().await;
        let full = ask("known").await;
        door.leave.notify_one();
        full
    });
    assert_eq!(waits?, 1);
    let says_when = |full: &Status| full.metadata().contains_key("grpc-retry-pushback-ms");
    assert!(full.as_ref().is_err_and(says_when), "a full server says when to retry");
    assert_eq!(code(full), Err(Code::ResourceExhausted));

    println!("returned OK, NOT_FOUND, DEADLINE_EXCEEDED and RESOURCE_EXHAUSTED");
    Ok(())
}

/// Signals when a call has entered, and when it may leave.
#[derive(Default)]
struct Door {
    entered: Notify,
    leave: Notify,
}

struct Service(Arc<Door>);

#[tonic::async_trait]
impl Health for Service {
    async fn check(&self, request: Request<HealthCheckRequest>) -> Result<Response<HealthCheckResponse>, Status> {
        let scope = request.extensions().get::<Scope>().ok_or_else(|| Status::internal("no scope"))?;
        // Internals belong in the logs, not into a response.
        let missing = |error: MissingState| {
            eprintln!("{error}");
            Status::internal("a setting is missing")
        };
        let Healthy(status) = *scope.require().map_err(missing)?;
        match request.get_ref().service.as_str() {
            "hangs" => std::future::pending().await,
            "unknown" => return Err(Status::not_found("no such service")),
            "waits" => {
                self.0.entered.notify_one();
                self.0.leave.notified().await;
            }
            _ => {}
        }
        Ok(Response::new(HealthCheckResponse { status }))
    }

    type WatchStream = Pending<Result<HealthCheckResponse, Status>>;

    async fn watch(&self, _: Request<HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Status> {
        Ok(Response::new(pending()))
    }
}
