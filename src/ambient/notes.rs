//! Notes that one layer leaves for another one around the same call.

use super::slot;

/// Whether the call that was just dropped had not reached the service, or the one that was just polled still has not: it waits for its
/// turn on this side.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Unsent(pub(crate) bool);

slot!(Unsent, Unsent(false));

/// Whether other calls wait for what this one finds out, so that it waits behind none of them: a circuit breaker's probe.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Urgent(pub(crate) bool);

slot!(Urgent, Urgent(false));

/// Whether the call that was just dropped had all the time that a limit beneath gives to it: the service was given its chance.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct HadItsTime(pub(crate) bool);

slot!(HadItsTime, HadItsTime(false));
