//! The rate of each tenant of a server, which the settings hold.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use crate::{
    mutex::Mutex,
    rate_limit::{RateLimitHandle, RateLimitLayer},
    setting::Setting,
};

/// The layer of a tenant.
pub type TenantRate = RateLimitLayer<LiveRate>;

/// A rate of the settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Rate {
    /// None: no rate is limited.
    pub(super) quantity: Option<u32>,
    pub(super) period: Duration,
    pub(super) burst: Option<u32>,
}

/// The current rate of all tenants.
#[derive(Debug, Default)]
pub(super) struct TenantRates {
    rate: Mutex<Option<Rate>>,
    /// Counts the changes: 0 before the first.
    changes: AtomicU64,
}

impl TenantRates {
    pub(super) fn set(&self, new: Rate) {
        let mut rate = self.rate.lock();
        *rate = Some(new);
        self.changes.fetch_add(1, Ordering::Release);
    }

    /// Returns the layer of a new tenant.
    pub(super) fn layer(self: &Arc<Self>) -> TenantRate {
        let layer = RateLimitLayer::new(1, Duration::from_secs(1)).named("tenant");
        let rate = LiveRate { rates: Arc::clone(self), handle: layer.handle(), applied: Arc::default() };
        layer.cost(rate)
    }
}

/// The cost of a request: one token, or none while the settings have no rate.
///
/// Each tenant applies a change of the settings before its next request is charged, so none misses one, whenever it was
/// made.
#[derive(Clone)]
pub struct LiveRate {
    rates: Arc<TenantRates>,
    handle: RateLimitHandle,
    applied: Arc<Applied>,
}

/// The state of a tenant's bucket.
#[derive(Default)]
struct Applied {
    /// The number of changes that the bucket has seen.
    changes: AtomicU64,
    is_limited: AtomicBool,
}

impl LiveRate {
    #[cold]
    fn apply(&self) {
        // Under the lock, so that of two changes the later one is applied last. No call waits for tokens of these
        // buckets, so no waker runs.
        let rate = self.rates.rate.lock();
        let Some(Rate { quantity, period, burst }) = *rate else { return };
        if let Some(quantity) = quantity {
            self.handle.set_rate(quantity, period);
            self.handle.set_burst(burst.unwrap_or(quantity));
        }
        self.applied.is_limited.store(quantity.is_some(), Ordering::Relaxed);
        self.applied.changes.store(self.rates.changes.load(Ordering::Relaxed), Ordering::Release);
    }
}

impl<Req> Setting<Req, u32> for LiveRate {
    fn get(&self, _: &Req) -> Option<u32> {
        if self.applied.changes.load(Ordering::Acquire) != self.rates.changes.load(Ordering::Acquire) {
            self.apply();
        }
        self.applied.is_limited.load(Ordering::Relaxed).then_some(1)
    }
}

impl fmt::Debug for LiveRate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LiveRate").field("handle", &self.handle).finish_non_exhaustive()
    }
}

#[cfg(all(test, not(ziggurat_loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_tenant_whose_layer_was_made_before_a_change_has_the_new_rate_at_its_next_request() {
        let rates = Arc::new(TenantRates::default());
        let rate = |quantity, burst| Rate { quantity, period: Duration::from_secs(60), burst };
        let made_before = rates.layer();
        let handle = made_before.handle();
        let cost = LiveRate { rates: Arc::clone(&rates), handle: handle.clone(), applied: Arc::default() };
        assert_eq!(Setting::<(), u32>::get(&cost, &()), None);
        for (quantity, burst, expected) in
            [(Some(5), None, (5, 5)), (Some(2), Some(9), (2, 9)), (Some(3), None, (3, 3))]
        {
            rates.set(rate(quantity, burst));
            assert_eq!(Setting::<(), u32>::get(&cost, &()), Some(1));
            assert_eq!((handle.quantity(), handle.burst()), expected);
        }
        rates.set(rate(None, None));
        assert_eq!(Setting::<(), u32>::get(&cost, &()), None);
    }
}
