//! The bounds on kept request bodies.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use crate::telemetry::{LayerInfo, layer_info};

/// The bounds for one request and for all requests together. Clones share the total.
#[derive(Debug, Clone)]
pub(crate) struct Allowance {
    pub(crate) max_bytes: usize,
    pub(crate) max_total_bytes: usize,
    pub(crate) info: LayerInfo,
    total: Arc<AtomicUsize>,
}

impl Allowance {
    /// Returns the number of bytes that are currently kept.
    pub(crate) fn kept(&self) -> usize {
        self.total.load(Ordering::Relaxed)
    }

    pub(super) fn take(&self, bytes: usize) -> bool {
        // Relaxed: no other memory depends on this number.
        self.total
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |total| {
                total.checked_add(bytes).filter(|total| *total <= self.max_total_bytes)
            })
            .is_ok()
    }

    pub(super) fn take_anyway(&self, bytes: usize) {
        self.total.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn give_back(&self, bytes: usize) {
        self.total.fetch_sub(bytes, Ordering::Relaxed);
    }
}

impl Default for Allowance {
    /// 64 KiB for one request, as in linkerd2, and 64 MiB for all requests.
    fn default() -> Self {
        Self {
            max_bytes: 64 * 1024,
            max_total_bytes: 64 * 1024 * 1024,
            info: layer_info!("replay"),
            total: Arc::default(),
        }
    }
}
