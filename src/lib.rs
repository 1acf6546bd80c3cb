#![doc = include_str!("../README.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that fails should say where"))]

// The layers stand beside `src/`, at the top of the repository: they are what this crate is about.
#[path = "../layers/mod.rs"]
mod layers;
pub use layers::*;

mod ambient;
mod backoff;
pub mod body;
mod call;
mod caller;
mod caught;
mod classify;
mod clock;
pub mod concurrent;
mod copy;
mod deadline;
mod degraded;
pub mod events;
#[cfg(feature = "axum")]
#[cfg_attr(docsrs, doc(cfg(feature = "axum")))]
pub mod extract;
pub mod grpc;
mod limited;
mod rejection;
pub mod scope;
mod setting;
mod signal;
pub mod stack;
pub mod stream;
mod telemetry;
#[cfg(feature = "test-util")]
#[cfg_attr(docsrs, doc(cfg(feature = "test-util")))]
pub mod testing;
mod unprocessed;
pub mod wire;

/// Its code is compiled and run with the documentation's.
#[cfg(doctest)]
#[doc = include_str!("../docs/guide.md")]
mod guide {}

pub use ambient::attempt;
pub use backoff::{Backoff, Jitter, Waits};
pub use classify::{Class, Classify, FailOnError, HttpStatus, HttpStatusMillis, WithRejections, with_rejections};
pub use copy::{Cloned, CopyIf, CopyRequest, Idempotent};
pub use deadline::{Deadline, WithDeadline};
pub use degraded::Degraded;
pub use events::EventBus;
pub use grpc::GrpcStatus;
pub use rejection::{Error, Reason, Reject, Rejection, boxed, rejection};
pub use scope::Scope;
pub use setting::Setting;
pub use telemetry::{Event, Observer, Outcome, Site};
pub use unprocessed::is_unprocessed;
