//! Notes that one layer leaves for another around the same call.

use super::slot;

/// Whether the call is still waiting in a local queue and has not reached the service. Set by a call that was just
/// dropped or polled.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Unsent(pub(crate) bool);

slot!(Unsent, Unsent(false));

/// Whether other calls wait for the outcome of this one, so that it must not queue behind them: a circuit breaker's
/// probe.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Urgent(pub(crate) bool);

slot!(Urgent, Urgent(false));

/// Whether the call is an extra one that must not wait in a local queue, where it would delay other calls: a hedge.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Spare(pub(crate) bool);

slot!(Spare, Spare(false));

/// Whether the call that was just dropped had the full time of an inner limit, so that the service had its chance.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct HadItsTime(pub(crate) bool);

slot!(HadItsTime, HadItsTime(false));
