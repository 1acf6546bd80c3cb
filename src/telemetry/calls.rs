//! Reports the start and end of calls, for the observing layer.

use std::time::Duration;

#[cfg(feature = "metrics")]
use super::metrics;
use super::{LayerEvent, LayerInfo, Outcome};

/// Reports calls to observers, `tracing` and metrics.
pub(crate) struct Calls {
    info: LayerInfo,
    #[cfg(feature = "metrics")]
    meters: metrics::Meters,
}

impl Calls {
    pub(crate) fn new(info: LayerInfo) -> Self {
        Self {
            #[cfg(feature = "metrics")]
            meters: metrics::Meters::new(&info.raw_name()),
            info,
        }
    }

    pub(crate) fn info(&self) -> &LayerInfo {
        &self.info
    }

    /// Returns whether anything may record the end of a call.
    pub(crate) fn are_heard(&self) -> bool {
        cfg!(feature = "metrics")
            || self.info.is_observed()
            || tracing::event_enabled!(target: concat!("ziggurat::", "observe"), tracing::Level::DEBUG)
    }

    pub(crate) fn started(&self) {
        // Emitted first: if an observer panics, the call ends here and was never in flight.
        self.info.emit(LayerEvent::Started);
        #[cfg(feature = "metrics")]
        self.meters.started();
    }

    pub(crate) fn ended(&self, outcome: Outcome, reason: Option<&'static str>, elapsed: Duration) {
        #[cfg(feature = "metrics")]
        self.meters.ended(outcome, reason, elapsed);
        self.info.emit(LayerEvent::Ended { outcome, reason, elapsed });
    }
}
