//! The settings of a retry layer that can be changed at run time.

use std::sync::{
    Arc, OnceLock,
    atomic::{AtomicBool, AtomicU32, Ordering},
};

use crate::{backoff::Backoff, budget::Budget, debug::impl_debug, mutex::Mutex};

/// A handle to the live settings of a [`RetryLayer`](super::RetryLayer): the maximum number of attempts, the backoff,
/// and the budget.
///
/// It is cheap to clone, and is taken from the layer with [`handle`](super::RetryLayer::handle). A change takes
/// effect with the next outcome, also for calls that are already running.
#[derive(Clone)]
pub struct RetryHandle {
    shared: Arc<Shared>,
}

struct Shared {
    max_attempts: AtomicU32,
    /// Overrides the layer's own backoff.
    backoff: Mutex<Option<Backoff>>,
    /// Empty: the number of retries is not limited.
    budget: OnceLock<Budget>,
    /// Whether a user holds this handle. If so, setters of the layer apply to this state instead of starting a new one.
    is_held: AtomicBool,
}

impl RetryHandle {
    pub(super) fn new(max_attempts: u32) -> Self {
        Self::with(max_attempts, None, Some(Budget::default()))
    }

    fn with(max_attempts: u32, backoff: Option<Backoff>, budget: Option<Budget>) -> Self {
        let shared = Shared {
            max_attempts: AtomicU32::new(max_attempts),
            backoff: Mutex::new(backoff),
            budget: budget.map(OnceLock::from).unwrap_or_default(),
            is_held: AtomicBool::new(false),
        };
        Self { shared: Arc::new(shared) }
    }

    /// Returns a handle for a user, and marks the state as shared with it.
    pub(super) fn held(&self) -> Self {
        self.shared.is_held.store(true, Ordering::Relaxed);
        self.clone()
    }

    fn is_held(&self) -> bool {
        self.shared.is_held.load(Ordering::Relaxed)
    }

    // Changing a layer that has no handle starts a new state, so that the layer's clones keep theirs.

    #[track_caller]
    pub(super) fn but_max_attempts(self, max_attempts: u32) -> Self {
        if !self.is_held() {
            return Self::with(checked(max_attempts), self.backoff(), self.budget());
        }
        self.set_max_attempts(max_attempts);
        self
    }

    pub(super) fn but_no_backoff(self) -> Self {
        if !self.is_held() {
            return Self::with(self.max_attempts(), None, self.budget());
        }
        *self.shared.backoff.lock() = None;
        self
    }

    #[track_caller]
    pub(super) fn but_budget(self, budget: Option<Budget>) -> Self {
        if !self.is_held() {
            return Self::with(self.max_attempts(), self.backoff(), budget);
        }
        match (budget, self.held_budget()) {
            (Some(budget), Some(held)) => {
                let joins = !budget.is_shared() || budget.is(held);
                assert!(joins, "a shared budget must be set before the handle is taken: the handle has one already");
                held.follow(&budget);
            }
            (Some(budget), None) => self.set_budget(budget),
            (None, Some(held)) => held.follow(&Budget::unlimited()),
            (None, None) => {}
        }
        self
    }

    /// Returns the maximum number of attempts, the first one included.
    #[must_use]
    #[inline]
    pub fn max_attempts(&self) -> u32 {
        self.shared.max_attempts.load(Ordering::Relaxed)
    }

    /// Changes the maximum number of attempts, the first one included. With 1 nothing is retried, which helps during
    /// an incident.
    ///
    /// # Panics
    ///
    /// Panics if `attempts` is zero.
    #[track_caller]
    pub fn set_max_attempts(&self, attempts: u32) {
        self.shared.max_attempts.store(checked(attempts), Ordering::Relaxed);
    }

    /// Changes the wait before the next attempt. It overrides the layer's own backoff, including a function.
    pub fn set_backoff(&self, backoff: impl Into<Backoff>) {
        *self.shared.backoff.lock() = Some(backoff.into());
    }

    /// Changes the limit on the retries of all calls together: the layer's budget grants the share of `budget` from
    /// now on, to every layer that shares it. Retries that were granted within the last ten seconds still count.
    ///
    /// The layer's budget stays the one it is, and does not become a clone of `budget`, unless the layer has none.
    pub fn set_budget(&self, budget: Budget) {
        self.shared.budget.get_or_init(|| budget.clone()).follow(&budget);
    }

    /// Returns the budget, to share it with another layer, or `None` if the number of retries is not limited.
    pub fn budget(&self) -> Option<Budget> {
        self.held_budget().cloned()
    }

    pub(super) fn backoff(&self) -> Option<Backoff> {
        *self.shared.backoff.lock()
    }

    #[inline]
    pub(super) fn held_budget(&self) -> Option<&Budget> {
        self.shared.budget.get()
    }
}

#[track_caller]
fn checked(attempts: u32) -> u32 {
    assert!(attempts > 0, "attempts must be at least 1: the first attempt counts");
    attempts
}

impl_debug!(RetryHandle {
    max_attempts = |this| this.max_attempts(),
    backoff = |this| this.backoff(),
    budget = |this| this.held_budget(),
});
