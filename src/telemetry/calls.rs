//! The beginning and the end of calls, as an observing layer reports them.

use std::time::Duration;

#[cfg(feature = "metrics")]
use super::metrics;
use super::{LayerEvent, LayerInfo, Outcome};

/// Who hears of calls: everybody who hears of events, and the meters.
pub(crate) struct Calls {
    info: LayerInfo,
    #[cfg(feature = "metrics")]
    meters: metrics::Meters,
}

impl Calls {
    pub(crate) fn new(info: LayerInfo) -> Self {
        Self {
            #[cfg(feature = "metrics")]
            meters: metrics::Meters::new(info.raw_name()),
            info,
        }
    }

    pub(crate) fn info(&self) -> &LayerInfo {
        &self.info
    }

    /// Whether anybody may hear when calls end.
    pub(crate) fn are_heard(&self) -> bool {
        cfg!(feature = "metrics")
            || self.info.is_observed()
            || tracing::event_enabled!(target: concat!("ziggurat::", "observe"), tracing::Level::DEBUG)
    }

    pub(crate) fn started(&self) {
        // An observer that panics ends the call here: then it is not in flight.
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
