//! A circuit breaker for each host, over one HTTP client: a host that fails does not shut out the others.

use std::{error::Error, net::SocketAddr};

use axum::{Router, body::Body, extract::Request, http::StatusCode, routing::get};
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use tokio::net::TcpListener;
use tower::{ServiceBuilder, ServiceExt};
use ziggurat::{
    circuit_breaker::{CircuitBreakerLayer, State},
    per_key::{PerKeyLayer, Unkeyed},
};

const FAILURES: u32 = 3;

/// Starts a server that always answers with this status.
async fn serve(status: StatusCode) -> std::io::Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let router = Router::new().route("/", get(move || async move { status }));
    tokio::spawn(async move { axum::serve(listener, router).await });
    Ok(address)
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let breakers = PerKeyLayer::host(Unkeyed::Reject, |host| {
        println!("a new circuit for {host:?}");
        CircuitBreakerLayer::http().consecutive_failures(FAILURES)
    });
    let hosts = breakers.handle();
    let client = ServiceBuilder::new()
        .layer(breakers)
        .map_err(ziggurat::Error::Service)
        .service(Client::builder(TokioExecutor::new()).build_http());

    let (down, up) = (serve(StatusCode::SERVICE_UNAVAILABLE).await?, serve(StatusCode::OK).await?);
    let call = async |address| {
        let request = Request::get(format!("http://{address}/")).body(Body::empty())?;
        Ok::<_, Box<dyn Error>>(client.clone().oneshot(request).await.map(|response| response.status()))
    };

    for _ in 0..FAILURES {
        assert_eq!(call(down).await??, StatusCode::SERVICE_UNAVAILABLE);
    }
    let Err(rejected) = call(down).await? else { return Err("the circuit is closed".into()) };
    assert!(rejected.is_circuit_open());
    println!("{down}: {rejected}");
    assert_eq!(call(up).await??, StatusCode::OK);

    let state = |address: SocketAddr| hosts.instance(&*address.to_string()).map(|host| host.layer.handle().state());
    assert_eq!((state(down), state(up)), (Some(State::Open), Some(State::Closed)));
    println!("{down}: {:?}, {up}: {:?}", state(down), state(up));
    Ok(())
}
