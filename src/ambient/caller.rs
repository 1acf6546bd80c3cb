//! The state of a call's caller, which may still be sending the request body.

use std::{error::Error, fmt, mem, sync::Arc, task::Waker, time::Duration};

use super::{get, slot};
use crate::{
    caught::undisturbed,
    clock::{self, Instant},
    mutex::Mutex,
};

/// The caller of one call: how long the call has waited for its bytes, and whether it failed to send them.
///
/// The request body writes this state, often on another task. The call reads it, and so does every time limit inside
/// the call. Clones share one state.
#[derive(Clone, Default)]
pub(crate) struct Caller(Arc<Mutex<State>>);

slot!(Option<Caller>, None);

/// Why a caller failed to send its body.
pub(crate) type Failure = Arc<dyn Error + Send + Sync>;

#[derive(Default)]
struct State {
    /// The total of the waits that have ended.
    waited: Duration,
    /// The wait in progress.
    wait: Option<Wait>,
    failed: Option<Failure>,
    /// The task of the call.
    task: Option<Waker>,
    /// The limits that have passed apart from the wait in progress. They check again when it ends.
    limits: Vec<Waker>,
}

/// A wait for the caller's bytes.
#[derive(Clone, Copy)]
struct Wait {
    since: Instant,
    /// When the call gives the caller up. A service that no longer polls its body waits until then at most.
    until: Option<Instant>,
}

impl State {
    fn waited(&self, now: Instant) -> Duration {
        let goes_on = self
            .wait
            .map(|Wait { since, until }| until.map_or(now, |until| until.min(now)).saturating_duration_since(since));
        self.waited.saturating_add(goes_on.unwrap_or_default())
    }

    fn waits(&self, now: Instant) -> Option<Wait> {
        self.wait.filter(|wait| wait.until.is_none_or(|until| now < until))
    }
}

/// How much longer a limit lasts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Later {
    By(Duration),
    /// The wait is still in progress. The limit is woken when it ends, and checks again at this time in any case.
    NotBefore(Option<Instant>),
}

impl Caller {
    /// Records that the call waits for the caller's bytes since `since`, and gives the caller up at `until`.
    pub(crate) fn is_awaited(&self, since: Instant, until: Option<Instant>) {
        self.0.lock().wait.get_or_insert(Wait { since, until });
    }

    /// Ends the wait, if there is one.
    pub(crate) fn is_heard(&self, now: Instant) {
        let mut state = self.0.lock();
        state.waited = state.waited(now);
        state.wait = None;
        let limits = mem::take(&mut state.limits);
        drop(state);
        for limit in limits {
            // A waker that panics must not keep the others from being woken.
            undisturbed(|| limit.wake());
        }
    }

    /// Records that the caller failed to send the body, so that the call rejects it.
    pub(crate) fn has_failed(&self, failure: Failure) {
        let mut state = self.0.lock();
        state.failed.get_or_insert(failure);
        let task = state.task.take();
        drop(state);
        if let Some(task) = task {
            undisturbed(|| task.wake());
        }
    }

    /// Returns why the caller failed. If it has not failed, registers the waker of a task to wake when it does.
    pub(crate) fn poll_failure(&self, waker: &Waker) -> Option<Failure> {
        let is_kept = self.0.lock().task.as_ref().is_some_and(|task| task.will_wake(waker));
        // A waker is user code, so it is cloned and dropped outside the lock.
        let mut task = (!is_kept).then(|| waker.clone());
        let mut state = self.0.lock();
        if state.failed.is_none() && task.is_some() {
            mem::swap(&mut state.task, &mut task);
        }
        let failed = state.failed.clone();
        drop(state);
        drop(task);
        failed
    }

    /// Returns how much the wait for the caller extends a limit that has just passed, if the call had waited `before`
    /// when the limit started.
    fn put_off(&self, before: Duration, waker: &Waker) -> Later {
        let now = clock::now();
        // Cloned outside the lock, as in `poll_failure`. This path is cold.
        let waker = waker.clone();
        let mut state = self.0.lock();
        let Some(wait) = state.waits(now) else {
            return Later::By(state.waited(now).saturating_sub(before));
        };
        let until = wait.until;
        let unused = if state.limits.iter().any(|limit| limit.will_wake(&waker)) {
            Some(waker)
        } else {
            state.limits.push(waker);
            None
        };
        drop(state);
        drop(unused);
        Later::NotBefore(until)
    }
}

/// Returns how long the current call has waited for its caller's bytes so far. Zero if no layer tracks the body.
pub(crate) fn waited() -> Duration {
    match get::<Option<Caller>>() {
        Some(caller) => caller.0.lock().waited(clock::now()),
        None => Duration::ZERO,
    }
}

/// Returns how much a limit of the current call that has just passed is extended: see [`Caller::put_off`].
#[cold]
pub(crate) fn put_off(before: Duration, waker: &Waker) -> Later {
    match get::<Option<Caller>>() {
        Some(caller) => caller.put_off(before, waker),
        None => Later::By(Duration::ZERO),
    }
}

/// Returns whether the current call waits for its caller's bytes, or will never receive them. Its outcome then says
/// nothing about the service.
#[cold]
pub(crate) fn is_to_blame() -> bool {
    get::<Option<Caller>>().is_some_and(|caller| {
        let now = clock::now();
        let state = caller.0.lock();
        state.waits(now).is_some() || state.failed.is_some()
    })
}

/// Returns whether the caller of the current call failed to send the request body.
#[cold]
pub(crate) fn failed() -> bool {
    get::<Option<Caller>>().is_some_and(|caller| caller.0.lock().failed.is_some())
}

impl fmt::Debug for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.0.lock();
        f.debug_struct("Caller")
            .field("waited", &state.waited)
            .field("awaited", &state.wait.is_some())
            .field("failed", &state.failed)
            .finish_non_exhaustive()
    }
}
