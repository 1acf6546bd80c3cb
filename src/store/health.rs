//! The decision whether to ask the store.
//!
//! After a failure, the store counts as away. Calls no longer wait for it, and one request at a time, after a pause
//! that doubles, finds out whether it answers again.

use std::{sync::Arc, time::Duration};

use crate::{
    backoff::{Backoff, Jitter},
    clock::Instant,
};

/// The pauses between two requests to a store that is away. The first is about the time in which a connection is made
/// again. At the longest, the requests of a thousand processes are no load for the store, and an outage is over for all
/// of them two seconds after its end.
const PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));

#[derive(Debug, Default)]
pub(super) struct Health {
    away: Option<Away>,
    /// When the store came back last.
    back: Option<Instant>,
}

#[derive(Debug)]
struct Away {
    /// The number of pauses so far.
    pauses: u32,
    until: Instant,
    /// The end of the probe that is under way. If it takes longer, the task that drives it is lost.
    probed_until: Option<Instant>,
    error: Arc<str>,
}

/// Whether a call may ask the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Advice {
    Ask,
    /// The store is away, and may be asked again after this time.
    Away {
        wait: Duration,
        error: Arc<str>,
    },
    /// As [`Away`](Self::Away), but the pause is over: this call may send a request that it does not wait for.
    Probe {
        error: Arc<str>,
    },
}

impl Health {
    pub(super) fn is_away(&self) -> bool {
        self.away.is_some()
    }

    pub(super) fn advice(&self, now: Instant) -> Advice {
        match &self.away {
            None => Advice::Ask,
            Some(away) if now < away.until || away.probed_until.is_some_and(|lost| now < lost) => {
                Advice::Away { wait: away.until.saturating_duration_since(now), error: Arc::clone(&away.error) }
            }
            Some(away) => Advice::Probe { error: Arc::clone(&away.error) },
        }
    }

    /// A request that was advised is on its way, and ends by `lost`.
    pub(super) fn probed(&mut self, lost: Instant) {
        if let Some(away) = &mut self.away {
            away.probed_until = Some(lost);
        }
    }

    /// The request that was advised is dropped: another call may send one.
    pub(super) fn not_probed(&mut self) {
        if let Some(away) = &mut self.away {
            away.probed_until = None;
        }
    }

    /// The store has answered. Returns whether it was away.
    pub(super) fn answered(&mut self, now: Instant) -> bool {
        let was_away = self.away.take().is_some();
        if was_away {
            self.back = Some(now);
        }
        was_away
    }

    /// A request that was sent at this time has failed. Returns whether the store is away since now.
    pub(super) fn failed(&mut self, sent: Instant, now: Instant, is_probe: bool, error: Arc<str>) -> bool {
        let pauses = match &self.away {
            // Sent before the failure that is known: no news.
            Some(_) if !is_probe => return false,
            Some(away) => away.pauses.saturating_add(1),
            // Lost in an absence that is over.
            None if self.back.is_some_and(|back| sent < back) => return false,
            None => 1,
        };
        let (first, longest) = PAUSES;
        let backoff = Backoff::exponential(first).max(longest).jitter(Jitter::Equal);
        let until = now + backoff.nth(pauses, Duration::ZERO);
        self.away.replace(Away { pauses, until, probed_until: None, error }).is_none()
    }
}

#[cfg(all(test, not(ziggurat_loom)))]
mod tests;
