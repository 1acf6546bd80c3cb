//! The numbers of a retry layer, which can be changed while it works.

use std::{
    fmt,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
};

use super::Budget;
use crate::backoff::Backoff;

/// How often and when the services of one [`RetryLayer`](super::RetryLayer) try again, to look at and to change while they work.
///
/// It is cheap to clone, and taken from the layer with [`handle`](super::RetryLayer::handle). What is changed holds from the next
/// outcome on, for calls that are under way too.
#[derive(Clone)]
pub struct RetryHandle {
    shared: Arc<Shared>,
}

struct Shared {
    max_attempts: AtomicU32,
    /// In place of the layer's own.
    backoff: Mutex<Option<Backoff>>,
    /// Empty: any number of retries.
    budget: OnceLock<Arc<Budget>>,
}

impl RetryHandle {
    pub(super) fn new(max_attempts: u32) -> Self {
        Self::with(max_attempts, None, Some(Arc::default()))
    }

    fn with(max_attempts: u32, backoff: Option<Backoff>, budget: Option<Arc<Budget>>) -> Self {
        let shared = Shared {
            max_attempts: AtomicU32::new(max_attempts),
            backoff: Mutex::new(backoff),
            budget: budget.map(OnceLock::from).unwrap_or_default(),
        };
        Self { shared: Arc::new(shared) }
    }

    /// Others, with this number and the same budget: a layer that is set up leaves its clones alone.
    #[track_caller]
    pub(super) fn but_max_attempts(&self, max_attempts: u32) -> Self {
        Self::with(checked(max_attempts), self.backoff(), self.budget().cloned())
    }

    pub(super) fn but_no_backoff(&self) -> Self {
        Self::with(self.max_attempts(), None, self.budget().cloned())
    }

    pub(super) fn but_budget(&self, budget: Option<Budget>) -> Self {
        Self::with(self.max_attempts(), self.backoff(), budget.map(Arc::new))
    }

    /// How often a request is sent at most, the first time included.
    #[must_use]
    #[inline]
    pub fn max_attempts(&self) -> u32 {
        self.shared.max_attempts.load(Ordering::Relaxed)
    }

    /// Changes how often a request is sent at most, the first time included. With 1 nothing is retried: in an incident, say.
    ///
    /// # Panics
    ///
    /// If `attempts` is zero.
    #[track_caller]
    pub fn set_max_attempts(&self, attempts: u32) {
        self.shared.max_attempts.store(checked(attempts), Ordering::Relaxed);
    }

    /// Changes how long to wait before the next attempt, whatever the layer was given for that.
    pub fn set_backoff(&self, backoff: impl Into<Backoff>) {
        *self.shared.backoff.lock().unwrap_or_else(PoisonError::into_inner) = Some(backoff.into());
    }

    /// Changes how many retries all calls together may make. What was granted within the last ten seconds counts on.
    pub fn set_budget(&self, budget: Budget) {
        let budget = Arc::new(budget);
        let held = self.shared.budget.get_or_init(|| Arc::clone(&budget));
        if !Arc::ptr_eq(held, &budget) {
            held.follow(&budget);
        }
    }

    pub(super) fn backoff(&self) -> Option<Backoff> {
        *self.shared.backoff.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn budget(&self) -> Option<&Arc<Budget>> {
        self.shared.budget.get()
    }
}

#[track_caller]
fn checked(attempts: u32) -> u32 {
    assert!(attempts > 0, "attempts must be at least 1: the first attempt counts");
    attempts
}

impl fmt::Debug for RetryHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RetryHandle")
            .field("max_attempts", &self.max_attempts())
            .field("backoff", &self.backoff())
            .field("budget", &self.budget())
            .finish()
    }
}
