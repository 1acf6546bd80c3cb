//! What a call knows of its caller, who may still be sending the request's body.

use std::{
    error::Error,
    fmt, mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::Waker,
    time::Duration,
};

use super::{get, slot};
use crate::{
    caught::undisturbed,
    clock::{self, Instant},
};

/// The caller of one call: how long the call has waited for its bytes, and whether it failed to send them.
///
/// The body of the request writes it, often on another task; the call reads it, and every limit of time inside of it. A clone is the
/// same one.
#[derive(Clone, Default)]
pub(crate) struct Caller(Arc<Mutex<State>>);

slot!(Option<Caller>, None);

/// Why a caller failed to send its body.
pub(crate) type Failure = Arc<dyn Error + Send + Sync>;

#[derive(Default)]
struct State {
    /// In waits that are over.
    waited: Duration,
    /// The wait that goes on.
    wait: Option<Wait>,
    failed: Option<Failure>,
    /// The task of the call.
    task: Option<Waker>,
    /// The limits that have passed but for the wait that goes on: they look again when it is over.
    limits: Vec<Waker>,
}

/// A wait for the caller's bytes.
#[derive(Clone, Copy)]
struct Wait {
    since: Instant,
    /// The caller is given up then. A service that does not look after its body any more has waited no longer than to here.
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

/// How much later a limit ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Later {
    By(Duration),
    /// The wait goes on. The limit is woken when it is over, and looks again by then in any case.
    NotBefore(Option<Instant>),
}

impl Caller {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The call waits for the caller's bytes from now on, and gives the caller up in the end.
    pub(crate) fn is_awaited(&self, since: Instant, until: Option<Instant>) {
        self.lock().wait.get_or_insert(Wait { since, until });
    }

    /// That wait is over, if there was one.
    pub(crate) fn is_heard(&self, now: Instant) {
        let mut state = self.lock();
        state.waited = state.waited(now);
        state.wait = None;
        let limits = mem::take(&mut state.limits);
        drop(state);
        for limit in limits {
            // One that panics keeps no other from being woken.
            undisturbed(|| limit.wake());
        }
    }

    /// The caller failed to send the body, which is for the call to reject.
    pub(crate) fn has_failed(&self, failure: Failure) {
        let mut state = self.lock();
        state.failed.get_or_insert(failure);
        let task = state.task.take();
        drop(state);
        if let Some(task) = task {
            undisturbed(|| task.wake());
        }
    }

    /// Why the caller failed, if it did; otherwise this task is woken if it does.
    pub(crate) fn poll_failure(&self, waker: &Waker) -> Option<Failure> {
        let is_kept = self.lock().task.as_ref().is_some_and(|task| task.will_wake(waker));
        // A waker is the user's code: it is cloned and dropped outside of the lock.
        let mut task = (!is_kept).then(|| waker.clone());
        let mut state = self.lock();
        if state.failed.is_none() && task.is_some() {
            mem::swap(&mut state.task, &mut task);
        }
        let failed = state.failed.clone();
        drop(state);
        drop(task);
        failed
    }

    /// How much the wait for the caller puts a limit off that has passed now, and at whose start the call had waited `before`.
    fn put_off(&self, before: Duration, waker: &Waker) -> Later {
        let now = clock::now();
        // Outside of the lock, as in `poll_failure`; it is cold.
        let waker = waker.clone();
        let mut state = self.lock();
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

/// How long the current call has waited for its caller's bytes so far. Zero where nothing looks after them.
pub(crate) fn waited() -> Duration {
    match get::<Option<Caller>>() {
        Some(caller) => caller.lock().waited(clock::now()),
        None => Duration::ZERO,
    }
}

/// How much a limit of the current call is put off that has passed now: see [`Caller::put_off`].
#[cold]
pub(crate) fn put_off(before: Duration, waker: &Waker) -> Later {
    match get::<Option<Caller>>() {
        Some(caller) => caller.put_off(before, waker),
        None => Later::By(Duration::ZERO),
    }
}

/// Whether the current call waits for its caller's bytes, or will never get them: then what becomes of it says nothing about the service.
#[cold]
pub(crate) fn is_to_blame() -> bool {
    get::<Option<Caller>>().is_some_and(|caller| {
        let now = clock::now();
        let state = caller.lock();
        state.waits(now).is_some() || state.failed.is_some()
    })
}

/// Whether the caller of the current call failed to send the request's body.
#[cold]
pub(crate) fn failed() -> bool {
    get::<Option<Caller>>().is_some_and(|caller| caller.lock().failed.is_some())
}

impl fmt::Debug for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.lock();
        f.debug_struct("Caller")
            .field("waited", &state.waited)
            .field("awaited", &state.wait.is_some())
            .field("failed", &state.failed)
            .finish_non_exhaustive()
    }
}
