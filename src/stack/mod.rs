//! The recommended stacks: for a client and for a server, in the order and with the defaults that the README recommends.
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
//! Each part can be replaced by any layer of its kind, or left out: `.with_retry(RetryLayer::http().max_attempts(5))`,
//! `.without_circuit_breaker()`. The numbers alone are [`ClientSettings`] and [`ServerSettings`]: every one of them can be changed
//! while the program runs, because a scope holds them, and with the feature `serde` they can be read from a file.
//!
//! ```
//! use std::time::Duration;
//! use ziggurat::{Scope, stack::{ClientSettings, ClientStack}};
//!
//! # #[cfg(feature = "serde")] fn main() {
//! let file = r#"
//!     timeout = "5s"
//!     max_in_flight = 50
//! "#;
//! let app = Scope::root("app").with(toml::from_str::<ClientSettings>(file).unwrap());
//! let stack = ClientStack::http("billing").settings_from(&app);
//! assert_eq!(stack.gate().limit(), 50);
//!
//! // From the next call on. What is in flight, the window of the circuit and what was spent of the budget stay.
//! app.update(|settings: &ClientSettings| settings.clone().timeout(Duration::from_secs(2))).unwrap();
//!
//! let error = toml::from_str::<ClientSettings>("failure_rate = 50").unwrap_err();
//! assert!(error.to_string().contains("`failure_rate` must be above 0 and at most 1, not 50"));
//! # }
//! # #[cfg(not(feature = "serde"))] fn main() {}
//! ```
//!
//! **What they count, and when their clocks start**: as their layers do; the stacks add nothing but a look at whether the settings
//! have changed: an atomic read for the scope and each of its parents, and one look into them after anything in these was changed. It is not
//! made without [`settings_from`](ClientStack::settings_from).
//!
//! **Readiness.** A stack is always ready. The service's readiness is part of each attempt: bounded by its limit of time, counted in flight, and
//! judged. So the service has to be `Clone`.
//!
//! **Where they belong.** The client's stack directly around the service, and around it what else there is: a context, observing, a
//! fallback, a cache. The server's stack outermost, around everything.
//!
//! **Cancellation** is that of the layers: what they hold is given back.

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

pub use client::ClientStack;
pub use live::{LiveDuration, Tuned};
pub use ready::ReadyInCall;
pub use rules::ConfigError;
pub use server::ServerStack;
pub use settings::{ClientSettings, ServerSettings};
