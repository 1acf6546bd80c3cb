//! Telemetry: layers report their events to observers, to `tracing` and to `metrics`.

mod calls;
mod event;
mod info;
#[cfg(feature = "metrics")]
mod metrics;
pub(crate) mod trace;

pub(crate) use self::{
    calls::Calls,
    info::{layer_info, layer_setters},
};
pub use self::{
    event::{LayerEvent, Outcome},
    info::{LayerInfo, Observer},
};
