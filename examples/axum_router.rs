//! Wraps an axum router. It needs no `HandleErrorLayer`, because a rejection becomes a response with its own status.
//!
//! All routes and connections share one limit. Every request has an id, which is on every response. A handler takes the
//! request's scope as an argument (feature `axum`).
//!
//! With `-- --listen 127.0.0.1:8080` it serves any client until it is stopped.

#[path = "shared/listen.rs"]
mod listen;

use std::{error::Error, net::SocketAddr, sync::Arc, time::Duration};

use axum::{
    Router,
    extract::{Request, State},
    http::{Response, StatusCode},
    routing::get,
};
use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use tokio::{net::TcpListener, sync::Notify};
use tower::ServiceBuilder;
use ziggurat::{
    Scope, concurrency_limit::ConcurrencyLimitLayer, context::ContextLayer, rejection_response::RejectionResponseLayer,
    request_id::RequestIdLayer, scope::MissingState, timeout::TimeoutLayer,
};

/// State of the whole program.
struct Greeting(&'static str);

/// The tenant of a request.
struct Tenant(String);

impl Tenant {
    fn of<B>(request: &Request<B>) -> Self {
        let name = request.headers().get("x-tenant").and_then(|name| name.to_str().ok());
        Self(name.unwrap_or("nobody").to_owned())
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let listen = listen::address()?;
    // One call at a time, so that the example can fill the server.
    let at_once = if listen.is_some() { 256 } else { 1 };
    let door = Arc::new(Door::default());
    let app = Scope::root("app").with(Greeting("Hello"));
    let layers = ServiceBuilder::new()
        .layer(ContextLayer::new(app).state(|req: &Request<_>| Tenant::of(req)))
        .layer(RequestIdLayer::new())
        .layer(RejectionResponseLayer::problem_json())
        // No waiting: a full server rejects at once.
        .layer(ConcurrencyLimitLayer::new(at_once).max_waiting(0).until_body_end())
        // A function of the request, or a plain `Duration`. `None` means no limit for this request.
        .layer(TimeoutLayer::new(|req: &Request<_>| {
            (req.uri().path() != "/upload").then_some(Duration::from_millis(500))
        }));
    let router = Router::new()
        .route("/hello", get(hello))
        .route("/hangs", get(std::future::pending::<StatusCode>))
        .route("/upload", get(upload))
        .with_state(Arc::clone(&door))
        .layer(layers);

    let listener = TcpListener::bind(listen.unwrap_or(([127, 0, 0, 1], 0).into())).await?;
    let address = listener.local_addr()?;
    if listen.is_some() {
        println!("listening at http://{address}: /hello, /hangs, /upload");
        return Ok(axum::serve(listener, router).await?);
    }
    tokio::spawn(async { axum::serve(listener, router).await });

    assert_eq!(ask(address, "/hello").await?.body(), "Hello acme");
    let rejected = ask(address, "/hangs").await?;
    assert_eq!(rejected.status(), StatusCode::GATEWAY_TIMEOUT);
    assert_eq!(rejected.headers()["content-type"], "application/problem+json");
    assert!(rejected.headers().contains_key("x-request-id"));

    // While the upload is in flight, every other call is rejected, on any route or connection.
    let upload = tokio::spawn(async move { ask(address, "/upload").await.map_err(|error| error.to_string()) });
    door.entered.notified().await;
    let rejected = ask(address, "/hello").await?;
    assert_eq!(rejected.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(rejected.headers().contains_key("retry-after"));
    door.leave.notify_one();
    assert_eq!(upload.await??.body(), "uploaded");
    assert_eq!(ask(address, "/hello").await?.status(), StatusCode::OK);

    println!("returned 200, 504 and 503, without a HandleErrorLayer");
    Ok(())
}

async fn hello(scope: Scope) -> Result<String, StatusCode> {
    // Internals belong in the logs, not into a response.
    let missing = |error: MissingState| {
        eprintln!("{error}");
        StatusCode::INTERNAL_SERVER_ERROR
    };
    let greeting = scope.require::<Greeting>().map_err(missing)?;
    let tenant = scope.require::<Tenant>().map_err(missing)?;
    Ok(format!("{} {}", greeting.0, tenant.0))
}

/// Signals when a call has entered, and when it may leave.
#[derive(Default)]
struct Door {
    entered: Notify,
    leave: Notify,
}

async fn upload(State(door): State<Arc<Door>>) -> &'static str {
    door.entered.notify_one();
    door.leave.notified().await;
    "uploaded"
}

/// Sends each call on its own connection.
async fn ask(address: SocketAddr, path: &str) -> Result<Response<Bytes>, Box<dyn Error>> {
    let client = Client::builder(TokioExecutor::new()).build_http();
    let request =
        Request::get(format!("http://{address}{path}")).header("x-tenant", "acme").body(Empty::<Bytes>::new())?;
    let (head, body) = client.request(request).await?.into_parts();
    Ok(Response::from_parts(head, body.collect().await?.to_bytes()))
}
