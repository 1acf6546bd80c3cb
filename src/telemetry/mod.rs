//! Telemetry: layers report their events to observers, to `tracing` and to `metrics`.

mod calls;
mod event;
#[cfg(feature = "metrics")]
mod metrics;
mod site;
pub(crate) mod trace;

pub(crate) use self::{
    calls::Calls,
    site::{site, site_setters},
};
pub use self::{
    event::{Event, Outcome},
    site::{Observer, Site},
};
