//! The permits of calls that find one free.

use std::fmt;

use super::{super::priority::Rank, ConcurrencyLimitHandle, Permit, Shared};
use crate::stripe::Lender;

/// Makes permits. Those of different threads have no reference count in common.
#[derive(Clone)]
pub(in super::super) struct Permits {
    lender: Lender<Shared>,
}

impl ConcurrencyLimitHandle {
    pub(in super::super) fn permits(&self) -> Permits {
        Permits { lender: self.shared.lender() }
    }
}

impl Permits {
    /// Returns a permit if one is free. It never overtakes a waiter. For calls that no permit is kept free from.
    #[inline]
    pub(in super::super) fn try_enter(&self) -> Option<Permit> {
        self.lender.try_enter(0).then(|| self.permit())
    }

    /// Returns a permit if one is free for a call of this rank. It never overtakes a waiter of this rank or above.
    #[inline]
    pub(in super::super) fn try_enter_as(&self, rank: Rank) -> Option<Permit> {
        self.lender.try_enter(self.lender.kept(rank)).then(|| self.permit())
    }

    #[inline]
    fn permit(&self) -> Permit {
        Permit { gate: Some(ConcurrencyLimitHandle { shared: self.lender.lend() }) }
    }
}

impl fmt::Debug for Permits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Permits").finish_non_exhaustive()
    }
}
