//! A reverse proxy: hyper in front, a hyper-util client behind, and the whole stack between them. Bodies are streamed
//! in both directions.
//!
//! `cargo run --release --example reverse_proxy -- 127.0.0.1:8080 http://127.0.0.1:3000`
//!
//! `--help` lists its limits. With `--cache` it has a shared cache by RFC 9111. Without arguments it starts a small
//! upstream, sends it a request through the proxy, and exits.
//!
//! It has no TLS and no upgrades (so no WebSocket).

use std::{
    env,
    error::Error as StdError,
    io,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use http::{Request, StatusCode};
use http_body_util::BodyExt;
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use tokio::net::TcpListener;
use tracing::{Level, info};
use tracing_subscriber::{filter::Targets, fmt, layer::SubscriberExt, util::SubscriberInitExt};

use self::{
    arguments::{Arguments, Command, HELP},
    cache::Caching,
    limits::Limits,
};

pub(crate) mod arguments;
pub(crate) mod cache;
mod calls;
mod forwarded;
pub(crate) mod limits;
mod rfc9110;
pub(crate) mod server;
mod socket;
mod stack;

type BoxError = Box<dyn StdError + Send + Sync>;

/// Waits for Ctrl-C, or for SIGTERM from an init system.
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
    let command = Command::parse(env::args_os().skip(1)).map_err(|error| format!("{error} (see --help)"))?;
    let Arguments { listen, upstream, limits, caching, log } = match command {
        Command::Help => {
            print!("{HELP}");
            return Ok(());
        }
        Command::Demo => {
            log_to_stderr(None)?;
            return demo().await;
        }
        Command::Proxy(arguments) => *arguments,
    };
    log_to_stderr(log)?;
    let listener = TcpListener::bind(&listen).await.map_err(|error| format!("{listen}: {error}"))?;
    info!(listen = %listener.local_addr()?, %upstream, "proxy");
    server::serve(listener, upstream, limits, caching, signalled()).await;
    Ok(())
}

/// Filters by the command line, or else by the environment.
fn log_to_stderr(filter: Option<Targets>) -> Result<(), BoxError> {
    let filter = match (filter, env::var("RUST_LOG")) {
        (Some(filter), _) => filter,
        (None, Ok(filter)) if !filter.is_empty() => arguments::filter("RUST_LOG", &filter)?,
        _ => Targets::new().with_default(Level::INFO),
    };
    tracing_subscriber::registry().with(fmt::layer().with_writer(io::stderr)).with(filter).init();
    Ok(())
}

/// Shows that callers of the proxy do not see a first failure.
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
    let (limits, caching) = (Limits::default(), Caching::default());
    let proxy = tokio::spawn(server::serve(listener, to, limits, caching, async { drop(stopped.await) }));

    let client = Client::builder(TokioExecutor::new()).build_http();
    let response =
        client.request(Request::put(format!("http://{at}/")).body("a request with a body".to_owned())?).await?;
    assert_eq!(response.status(), StatusCode::OK);
    assert!(response.headers().contains_key("x-request-id"));
    assert_eq!(response.into_body().collect().await?.to_bytes(), "hello from the upstream");
    drop(stop);
    proxy.await?;
    println!("the second attempt succeeded, and the proxy has stopped");
    Ok(())
}
