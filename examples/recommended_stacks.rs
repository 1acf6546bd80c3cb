//! The recommended stacks, in one line each: an axum server, and a client of it. The client's settings come from a file
//! and change at run time (feature `serde`).

use std::{error::Error as StdError, net::SocketAddr};

use axum::{
    Router,
    extract::{Path, Request},
    http::{StatusCode, Uri},
    routing::get,
};
use bytes::Bytes;
use http_body_util::Full;
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use tokio::net::TcpListener;
use tower::{ServiceBuilder, ServiceExt};
use ziggurat::{
    Error, Scope,
    circuit_breaker::State,
    rejection_response::RejectionResponseLayer,
    stack::{ClientSettings, ClientStack, ServerSettings, ServerStack},
};

/// The content of the program's settings file. Settings that are left out have their defaults.
const FILE: &str = r#"
    [server]
    timeout = "10s"

    [client]
    timeout = "5s"
    attempt_timeout = "1s"
    max_attempts = 2
    backoff = "1ms"
    min_calls = 3
"#;

#[derive(serde::Deserialize)]
struct File {
    server: ServerSettings,
    client: ClientSettings,
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn StdError>> {
    let File { server, client } = toml::from_str(FILE)?;
    let app = Scope::root("app").with(server).with(client);
    let address = serve(&app).await?;

    let stack = ClientStack::http("greeter").settings_from(&app);
    let circuit = stack.circuit();
    let service = ServiceBuilder::new()
        .layer(stack)
        .map_err(Error::Service)
        .service(Client::builder(TokioExecutor::new()).build_http());
    let ask = async |path: &str| {
        let mut request = Request::new(Full::<Bytes>::default());
        *request.uri_mut() = Uri::try_from(format!("http://{address}{path}"))?;
        Ok::<_, Box<dyn StdError>>(service.clone().oneshot(request).await)
    };
    assert_eq!(ask("/status/200").await??.status(), StatusCode::OK);

    // The attempts of one request count once. With the second request two of three calls have failed, so the circuit opens
    // and rejects its second attempt.
    assert_eq!(ask("/status/503").await??.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(ask("/status/503").await?.is_err());
    assert_eq!(circuit.state(), State::Open);
    assert!(ziggurat::rejection(&ask("/status/200").await?).is_some_and(|rejection| rejection.is_circuit_open()));

    // During the incident, without a restart: no more retries, and a longer timeout. The circuit stays as it is.
    app.update(|settings: &ClientSettings| settings.max_attempts(1).failure_rate(1.0))?;
    assert!(ask("/status/200").await?.is_err());
    assert_eq!(circuit.state(), State::Open);
    circuit.close();
    assert_eq!(ask("/status/503").await??.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(ask("/status/200").await??.status(), StatusCode::OK);

    let Err(mistake) = toml::from_str::<ClientSettings>("timeout = 5000") else {
        return Err("a duration without a unit was taken".into());
    };
    println!("{mistake}");
    Ok(())
}

async fn serve(app: &Scope) -> Result<SocketAddr, Box<dyn StdError>> {
    let router = Router::new()
        .route("/status/{status}", get(status))
        .layer(ServerStack::new(app).with_rejection_response(RejectionResponseLayer::problem_json()));
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    tokio::spawn(async { axum::serve(listener, router).await });
    Ok(address)
}

async fn status(Path(status): Path<u16>) -> StatusCode {
    StatusCode::from_u16(status).unwrap_or(StatusCode::NOT_FOUND)
}
