//! The rate of each tenant of a server, which the settings hold.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use crate::{mutex::Mutex, rate_limit::RateLimitLayer, setting::Setting};

/// The layer of a tenant.
pub type TenantRate = RateLimitLayer<OneWhileLimited>;

/// The cost of a request: one token, or none while the settings have no rate.
#[derive(Debug, Clone, Default)]
pub struct OneWhileLimited {
    is_limited: Arc<AtomicBool>,
}

impl<Req> Setting<Req, u32> for OneWhileLimited {
    fn get(&self, _: &Req) -> Option<u32> {
        self.is_limited.load(Ordering::Relaxed).then_some(1)
    }
}

/// A rate of the settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Rate {
    /// None: no rate is limited.
    pub(super) quantity: Option<u32>,
    pub(super) period: Duration,
    pub(super) burst: Option<u32>,
}

impl Rate {
    pub(super) fn apply(self, layer: &TenantRate) {
        if let Some(quantity) = self.quantity {
            let handle = layer.handle();
            handle.set_rate(quantity, self.period);
            handle.set_burst(self.burst.unwrap_or(quantity));
        }
    }
}

/// The current rate, and the cost that all tenants share.
#[derive(Debug, Default)]
pub(super) struct TenantRates {
    rate: Mutex<Option<Rate>>,
    cost: OneWhileLimited,
}

impl TenantRates {
    pub(super) fn set(&self, rate: Rate) {
        *self.rate.lock() = Some(rate);
        self.cost.is_limited.store(rate.quantity.is_some(), Ordering::Relaxed);
    }

    /// Returns the layer of a new tenant.
    pub(super) fn layer(&self) -> TenantRate {
        let layer = RateLimitLayer::new(1, Duration::from_secs(1)).cost(self.cost.clone()).named("tenant");
        let rate = *self.rate.lock();
        if let Some(rate) = rate {
            rate.apply(&layer);
        }
        layer
    }
}
