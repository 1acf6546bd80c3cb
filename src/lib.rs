#![cfg_attr(not(doctest), doc = include_str!("../docs/rustdoc-links.md"))]
#![doc = include_str!("../README.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that fails should say where"))]

// The layers are the subject of this crate, so they have a folder at the top of the repository.
#[path = "../layers/mod.rs"]
mod layers;
pub use layers::*;

mod accessors;
mod ambient;
mod backoff;
pub mod body;
mod bucket;
mod budget;
mod call;
mod caught;
mod clock;
pub mod concurrent;
mod copy;
mod debug;
#[cfg(doc)]
pub mod docs;
pub mod events;
#[cfg(feature = "axum")]
#[cfg_attr(docsrs, doc(cfg(feature = "axum")))]
pub mod extract;
pub mod headers;
mod keep;
mod keys;
mod mutex;
mod name;
mod outcome;
mod pulse;
#[cfg(feature = "redis")]
#[cfg_attr(docsrs, doc(cfg(feature = "redis")))]
pub mod relay;
mod run;
pub mod scope;
mod setting;
mod signal;
pub mod stack;
pub mod store;
pub mod stream;
mod stripe;
mod telemetry;
#[cfg(feature = "test-util")]
#[cfg_attr(docsrs, doc(cfg(feature = "test-util")))]
pub mod testing;

pub use ambient::{Deadline, WithDeadline, attempt};
pub use backoff::{Backoff, Jitter, Waits};
pub use budget::Budget;
pub use copy::{Cloned, CopyIf, CopyRequest, Idempotent};
pub use events::EventBus;
pub use outcome::{
    Class, Classify, Degraded, EmptyBody, Error, FailOnError, GrpcStatus, HttpStatus, HttpStatusMillis, Reason, Reject,
    Rejection, WithRejections, boxed, grpc, is_unprocessed, rejection, with_rejections,
};
pub use run::{Operation, Running, run};
pub use scope::Scope;
pub use setting::Setting;
pub use telemetry::{LayerEvent, LayerInfo, Observer, Outcome};
