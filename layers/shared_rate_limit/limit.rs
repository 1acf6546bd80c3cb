//! The state and settings that the services of a layer share, and the decision about a call without the store.

use std::{sync::Arc, time::Duration};

use tokio::runtime::Handle;

use super::{
    entry::{Entry, Rules},
    shared::Shared,
};
use crate::{
    bucket::{Bucket, Denied},
    caught::caught,
    clock::{self, Instant},
    debug::impl_debug,
    outcome::{Reason, Rejection},
    store::{Advice, Quota, TokenStore},
    telemetry::LayerInfo,
};

/// The fate of a call while the store is away or slow. There is no default, because none is right for all.
///
/// | choice | the calls | the bound while the store is away |
/// |---|---|---|
/// | [`Admit`](Self::Admit) | are not limited | none |
/// | [`Reject`](Self::Reject) | are rejected ([`Reason::StoreUnavailable`], 503) | the outstanding leases |
/// | [`Share`](Self::Share) | are limited by each process for itself | the outstanding leases, and the shares |
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WhenAway {
    /// Admits every call. Choose it if the limit is one of fairness, and the service survives its absence.
    Admit,
    /// Rejects every call, with [`Reason::StoreUnavailable`]. Choose it if a call beyond the limit costs more than a
    /// call that is lost. The calls then depend on the store, like on any other service.
    Reject,
    /// Limits the calls of each key to this quota, in each process for itself. Choose the quota divided by the greatest
    /// number of processes, and the bound of the quota holds without the store. A process that gets more calls than the
    /// others then rejects some of them, although the whole limit is not reached.
    ///
    /// A share is full when it is first needed. A call that costs more than its burst is rejected with
    /// [`Reason::StoreUnavailable`].
    Share(Quota),
}

/// The store and the state of a limit. When it is dropped, with the last service, the leases return to the store.
pub(super) struct Limit<St: TokenStore> {
    pub(super) store: Arc<St>,
    pub(super) shared: Arc<Shared>,
    pub(super) quota: Quota,
}

pub(super) struct Settings<St: TokenStore> {
    pub(super) limit: Arc<Limit<St>>,
    pub(super) rules: Rules,
    pub(super) when_away: WhenAway,
    pub(super) max_keys: usize,
    pub(super) info: LayerInfo,
}

/// How long the store may take for the return of a lease, which no call waits for.
const RETURN: Duration = Duration::from_secs(1);

impl<St: TokenStore> Drop for Limit<St> {
    fn drop(&mut self) {
        let Ok(runtime) = Handle::try_current() else { return };
        let now = clock::now();
        let rest = |entry: Arc<Entry>| Some((Arc::clone(&entry.key), entry.end(now)?));
        let rests = Vec::from_iter(self.shared.entries().into_iter().filter_map(rest));
        if rests.is_empty() {
            return;
        }
        let (store, quota) = (Arc::clone(&self.store), self.quota);
        runtime.spawn(async move {
            for (key, (tokens, at)) in rests {
                let returned = caught(async { store.give_back(&key, tokens, at, &quota).await });
                match clock::timeout_at(clock::now() + RETURN, returned).await {
                    Some(Ok(Ok(()))) => {}
                    // The store is away. The tokens are lost.
                    _ => break,
                }
            }
        });
    }
}

impl<St: TokenStore> Settings<St> {
    /// Decides about a call without the store.
    #[cold]
    pub(super) fn without_store(
        &self,
        now: Instant,
        entry: &Entry,
        cost: u32,
        error: Arc<str>,
    ) -> Result<(), Rejection> {
        match self.when_away {
            WhenAway::Admit => Ok(()),
            WhenAway::Reject => Err(self.unavailable(now, error)),
            WhenAway::Share(quota) => {
                let share = entry.share.get_or_init(|| Bucket::new(quota.rate(), now));
                share.take(now, cost).map_err(|denied| match denied {
                    Denied::Never { .. } => self.unavailable(now, error),
                    denied => self.denied(denied, cost),
                })
            }
        }
    }

    fn unavailable(&self, now: Instant, message: Arc<str>) -> Rejection {
        let reason = Reason::StoreUnavailable { message };
        match self.limit.shared.link.advice(now) {
            Advice::Away { wait, .. } => self.info.reject_with_retry_after(reason, wait),
            Advice::Ask | Advice::Probe { .. } => self.info.reject(reason),
        }
    }

    #[cold]
    pub(super) fn denied(&self, denied: Denied, cost: u32) -> Rejection {
        match denied {
            Denied::Wait(wait) => self.info.reject_with_retry_after(Reason::RateLimited, wait),
            Denied::Never { burst } => self.info.reject(Reason::CostTooHigh { cost, burst }),
        }
    }
}

impl_debug!(Settings<St: TokenStore> {
    quota = |this| &this.rules.quota,
    when_away,
    timeout = |this| &this.rules.timeout,
    lease = |this| &this.rules.terms,
    max_keys,
    info,
});

// Manual: the store need not be `Clone`.
impl<St: TokenStore> Clone for Settings<St> {
    fn clone(&self) -> Self {
        let Self { limit, rules, when_away, max_keys, info } = self;
        Self { limit: limit.clone(), rules: *rules, when_away: *when_away, max_keys: *max_keys, info: info.clone() }
    }
}
