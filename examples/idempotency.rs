//! A `POST` that is sent twice and processed once: the client gives each request a key, and the server, an axum router,
//! runs a handler once for each key.
//!
//! With `-- --listen 127.0.0.1:8080` it serves any client until it is stopped:
//! `curl -i 127.0.0.1:8080/orders -H 'x-account: eve' -H 'idempotency-key: 1' -d 'a book'`.

#[path = "shared/listen.rs"]
mod listen;

use std::{
    error::Error as StdError,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use axum::{Router, extract::State, http::StatusCode, routing::post};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::Request;
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use tokio::{net::TcpListener, time::sleep};
use tower::{Service, ServiceBuilder, ServiceExt};
use ziggurat::{
    Error, idempotency::IdempotencyLayer, idempotency_key::IdempotencyKeyLayer,
    rejection_response::RejectionResponseLayer, retry::RetryLayer, store::MemoryStore, timeout::TimeoutLayer,
};

/// How long an order takes, and how long the client waits for its first attempt.
const WORK: Duration = Duration::from_millis(500);
const IMPATIENT: Duration = Duration::from_millis(200);
const PATIENT: Duration = Duration::from_secs(10);

/// A number of orders for each program that counts them.
type Orders = Arc<AtomicU32>;

async fn order(State(orders): State<Orders>, what: String) -> (StatusCode, String) {
    sleep(WORK).await;
    let number = orders.fetch_add(1, Ordering::Relaxed) + 1;
    (StatusCode::CREATED, format!("order {number}: {what}"))
}

fn shop(orders: &Orders) -> Router {
    // A gateway sets the header after it has authenticated the caller. A request without it is passed on.
    let account = |request: &Request<_>| Some(request.headers().get("x-account")?.to_str().ok()?.to_owned());
    // Several processes share a `RedisStore` instead.
    let idempotency = IdempotencyLayer::new(MemoryStore::new(), account).required();
    Router::new()
        .route("/orders", post(order))
        .layer(ServiceBuilder::new().layer(RejectionResponseLayer::problem_json()).layer(idempotency))
        .with_state(Arc::clone(orders))
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn StdError>> {
    let listen = listen::address()?;
    let orders = Orders::default();
    let listener = TcpListener::bind(listen.unwrap_or(([127, 0, 0, 1], 0).into())).await?;
    let server = listener.local_addr()?;
    let serve = axum::serve(listener, shop(&orders));
    if listen.is_some() {
        println!("listening on http://{server}");
        return Ok(serve.await?);
    }
    tokio::spawn(async move { serve.await });

    let http = Client::builder(TokioExecutor::new()).build_http::<Full<Bytes>>();
    // The key outside the retry: all attempts have the same one, so a `POST` may be sent again.
    let client = ServiceBuilder::new()
        .layer(IdempotencyKeyLayer::new())
        .layer(RetryLayer::http())
        .layer(TimeoutLayer::new(|_: &Request<_>| if ziggurat::attempt() == 1 { IMPATIENT } else { PATIENT }))
        .map_err(Error::Service)
        .service(http);
    let request = |account: &str, what: &'static str| {
        Request::post(format!("http://{server}/orders")).header("x-account", account).body(Full::from(what))
    };

    // The first attempt is given up in the middle of the work. The second one gets the response of the first.
    let (status, replayed, text) = send(client.clone(), request("eve", "a book")?).await?;
    println!("{status}, {text}");
    assert_eq!((status, replayed, text.as_str()), (StatusCode::CREATED, true, "order 1: a book"));

    // A request with a key of its own, that of the program's own order, for example after a restart.
    let with_key = async |account, what| -> Result<_, Box<dyn StdError>> {
        let mut request = request(account, what)?;
        request.headers_mut().insert("idempotency-key", "order-17".try_into()?);
        send(client.clone(), request).await
    };
    let first = with_key("eve", "a pen").await?;
    let again = with_key("eve", "a pen").await?;
    println!("{}, and after that {}", first.2, again.2);
    assert_eq!((again.1, first.2.as_str(), again.2.as_str()), (true, "order 2: a pen", "order 2: a pen"));

    // The key belongs to one request of one account.
    let (status, _, problem) = with_key("eve", "two pens").await?;
    println!("{status}: {problem}");
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY);
    assert_eq!(with_key("adam", "a pen").await?.2, "order 3: a pen");
    assert_eq!(orders.load(Ordering::Relaxed), 3);
    Ok(())
}

/// Returns the status, whether the response was replayed, and its text.
async fn send<S, B>(client: S, request: Request<Full<Bytes>>) -> Result<(StatusCode, bool, String), Box<dyn StdError>>
where
    S: Service<Request<Full<Bytes>>, Response = hyper::Response<B>, Error: StdError + 'static>,
    B: hyper::body::Body<Error: StdError + 'static>,
{
    let (head, body) = client.oneshot(request).await?.into_parts();
    let text = String::from_utf8(body.collect().await?.to_bytes().into())?;
    Ok((head.status, head.headers.contains_key("idempotent-replayed"), text))
}
