//! Wraps a tonic channel: a layer's rejection is a status, and the generated client takes the stack in place of a
//! channel.

use std::{
    error::Error,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use tokio::net::TcpListener;
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
use tower::{ServiceBuilder, ServiceExt, service_fn};
use ziggurat::{
    Backoff, GrpcStatus, Rejection, circuit_breaker::CircuitBreakerLayer, concurrency_limit::ConcurrencyLimitLayer,
    retry::RetryLayer, timeout::TimeoutLayer,
};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let server = Server::builder().add_service(HealthServer::new(Flaky(AtomicU32::new(0))));
    tokio::spawn(server.serve_with_incoming(TcpIncoming::from(listener)));

    let breaker = CircuitBreakerLayer::failure_rate(0.5).classify(GrpcStatus).open_for(Duration::from_secs(60));
    let circuit = breaker.handle();
    let channel = Endpoint::from_shared(format!("http://{address}"))?.connect_lazy();
    let channel = ServiceBuilder::new()
        .layer(breaker)
        .layer(ConcurrencyLimitLayer::new(25))
        .layer(TimeoutLayer::new(Duration::from_millis(500)))
        .map_err(ziggurat::grpc::status)
        .service(channel);
    let client = HealthClient::new(channel);
    let check = |name: &str| HealthCheckRequest { service: name.to_owned() };
    let ask = async |name: &str| match client.clone().check(check(name)).await {
        Ok(_) => Status::ok(""),
        Err(status) => status,
    };

    assert_eq!(ask("known").await.code(), Code::Ok);
    assert_eq!(ask("unknown").await.code(), Code::NotFound);

    // The status of a rejection names the reason, as a server's status would, and contains the rejection itself.
    let late = ask("hangs").await;
    assert_eq!(late.code(), Code::DeadlineExceeded);
    assert!(Rejection::find(&late).is_some_and(Rejection::is_timed_out));

    // A message can be sent again, but a streamed body cannot, so the retry wraps the generated client. You decide
    // whether the method may be repeated.
    let retrying = ServiceBuilder::new()
        .layer(TimeoutLayer::new(Duration::from_secs(10)))
        .layer(RetryLayer::new().classify(GrpcStatus).backoff(Backoff::fixed(Duration::from_millis(10))))
        .service(service_fn(|message: HealthCheckRequest| {
            let mut client = client.clone();
            async move { client.check(message).await }
        }));
    let answer = retrying.oneshot(check("flaky")).await?;
    assert_eq!(answer.into_inner().status, 3, "the third attempt succeeded");

    circuit.force_open();
    let open = ask("known").await;
    assert_eq!(open.code(), Code::Unavailable);
    assert!(Rejection::find(&open).is_some_and(Rejection::is_circuit_open));

    println!("got OK, NOT_FOUND, DEADLINE_EXCEEDED, OK at the third attempt, and UNAVAILABLE");
    Ok(())
}

struct Flaky(AtomicU32);

#[tonic::async_trait]
impl Health for Flaky {
    async fn check(&self, request: Request<HealthCheckRequest>) -> Result<Response<HealthCheckResponse>, Status> {
        match request.get_ref().service.as_str() {
            "hangs" => std::future::pending().await,
            "unknown" => Err(Status::not_found("no such service")),
            "flaky" => match self.0.fetch_add(1, Ordering::Relaxed) {
                0 | 1 => Err(Status::unavailable("not now")),
                _ => Ok(Response::new(HealthCheckResponse { status: 3 })),
            },
            _ => Ok(Response::new(HealthCheckResponse { status: 1 })),
        }
    }

    type WatchStream = Pending<Result<HealthCheckResponse, Status>>;

    async fn watch(&self, _: Request<HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Status> {
        Ok(Response::new(pending()))
    }
}
