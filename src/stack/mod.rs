//! The recommended stacks for a client and for a server, with the README's order and default settings.
//!
//! # Quick start
//!
//! ```
//! use http::{Request, Response};
//! use tower::{ServiceBuilder, ServiceExt, service_fn};
//! use ziggurat::{Error, stack::ClientStack};
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() {
//! # let client = service_fn(|_: Request<String>| async { Ok::<_, std::io::Error>(Response::new("pong".to_owned())) });
//! let service = ServiceBuilder::new()
//!     .layer(ClientStack::http("billing"))
//!     .map_err(Error::Service)
//!     .service(client);
//!
//! let request = Request::get("/ping").body(String::new()).unwrap();
//! assert_eq!(service.oneshot(request).await.unwrap().body(), "pong");
//! # }
//! ```
//!
//! # Configuration
//!
//! Each part can be replaced by any layer of its kind, for example `.with_retry(RetryLayer::http().max_attempts(5))`,
//! or left out, as with `.without_circuit_breaker()`.
//!
//! The values of the parts are [`ClientSettings`] and [`ServerSettings`]. A scope holds them, so each of them can
//! change while the program runs. With the feature `serde`, they can be read from a file.
//!
//! ```
//! use std::time::Duration;
//! use ziggurat::{Scope, stack::{ClientSettings, ClientStack}};
//!
//! # #[cfg(feature = "serde")] fn main() {
//! let file = r#"
//!     timeout = "5s"
//!     max_in_flight = 10
//! "#;
//! let app = Scope::root("app").with(toml::from_str::<ClientSettings>(file).unwrap());
//! let stack = ClientStack::http("billing").settings_from(&app);
//! assert_eq!(stack.gate().limit(), 10);
//!
//! // Applies from the next call on. Calls in flight, the circuit's window and the retry budget are kept.
//! app.update(|settings: &ClientSettings| settings.clone().timeout(Duration::from_secs(2))).unwrap();
//!
//! let error = toml::from_str::<ClientSettings>("failure_rate = 50").unwrap_err();
//! assert!(error.to_string().contains("`failure_rate` must be above 0 and at most 1, not 50"));
//! # }
//! # #[cfg(not(feature = "serde"))] fn main() {}
//! ```
//!
//! # Cost
//!
//! Each layer counts and measures time as it does on its own. With [`settings_from`](ClientStack::settings_from), the
//! stacks also check for changed settings on each call: an atomic read for the scope and for each of its parents, and
//! one lookup after a change.
//!
//! # Readiness
//!
//! A stack is always ready. The service's readiness is part of each attempt: it is bounded by the attempt's limit,
//! counted in flight, and judged by the circuit breaker. The service must therefore be `Clone`.
//!
//! # Order
//!
//! Put the client's stack directly around the service. A context, an observer, a fallback or a cache goes around the
//! stack. Put the server's stack outermost, around everything.
//!
//! # Cancellation safety
//!
//! As in the layers: permits, probes and queue slots are released on drop.

mod client;
#[cfg(feature = "serde")]
mod fields;
#[cfg(feature = "serde")]
mod file;
mod live;
mod ready;
mod rules;
mod server;
mod settings;
mod tenants;

pub use client::ClientStack;
pub use live::{LiveDuration, Tuned};
pub use ready::ReadyInCall;
pub use rules::ConfigError;
pub use server::ServerStack;
pub use settings::{ClientSettings, ServerSettings};
pub use tenants::{LiveRate, TenantRate};
