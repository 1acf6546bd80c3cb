//! What a scope owns, and whether it is being closed.
//!
//! Most scopes are those of requests, and own nothing. So all of this is made when it is first asked for, by a task, a disposable or
//! somebody who waits for the end; until then a scope is its name and its state.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
};

use tokio::runtime::Handle;
use tokio_util::{
    sync::CancellationToken,
    task::{TaskTracker, task_tracker::TaskTrackerToken},
};

use super::{Inner, Scope, catch, error::ScopeError, opening::TearDown};
use crate::EventBus;

/// Set once: what a scope owns, or that it was closed while it owned nothing.
pub(super) enum Life {
    Owns(Arc<Owned>),
    Closed,
}

impl Life {
    /// Whether there may be something to close.
    pub(super) fn is_open(&self) -> bool {
        matches!(self, Self::Owns(owned) if !owned.done.is_cancelled())
    }
}

pub(super) struct Owned {
    /// The scope is being closed, or one around it is.
    pub(super) told: CancellationToken,
    /// Its tasks have had their time.
    pub(super) abort: CancellationToken,
    /// It is closed.
    pub(super) done: CancellationToken,
    pub(super) tasks: TaskTracker,
    pub(super) events: OnceLock<EventBus>,
    begun: AtomicBool,
    error: OnceLock<ScopeError>,
    runtime: OnceLock<Handle>,
    // Weak, because tasks hold this, and what runs in a scope must not keep it from ending when nobody else holds it.
    first: Weak<Inner>,
    // The scope as it lives on while it is closed, if its last handle was dropped before.
    last: OnceLock<Weak<Inner>>,
    parts: Mutex<Parts>,
}

/// Nothing of a user's is dropped or run while these are locked.
#[derive(Default)]
struct Parts {
    tear_downs: Vec<TearDown>,
    children: BTreeMap<u64, Arc<Owned>>,
}

impl Owned {
    pub(super) fn new(scope: &Scope, told: CancellationToken) -> Arc<Self> {
        Arc::new(Self {
            told,
            abort: CancellationToken::new(),
            done: CancellationToken::new(),
            tasks: TaskTracker::new(),
            events: OnceLock::new(),
            begun: AtomicBool::new(false),
            error: OnceLock::new(),
            runtime: OnceLock::new(),
            first: Arc::downgrade(&scope.inner),
            last: OnceLock::new(),
            parts: Mutex::default(),
        })
    }

    /// A scope within this one that owns something too.
    pub(super) fn child(&self, scope: &Scope) -> Arc<Self> {
        let child = Self::new(scope, self.told.child_token());
        self.parts().children.insert(scope.id(), Arc::clone(&child));
        child
    }

    pub(super) fn forget_child(&self, id: u64) {
        let child = self.parts().children.remove(&id);
        drop(child);
    }

    pub(super) fn children(&self) -> Vec<Arc<Self>> {
        self.parts().children.values().cloned().collect()
    }

    pub(super) fn undo_later(&self, tear_down: TearDown) {
        self.parts().tear_downs.push(tear_down);
    }

    /// What was set up last and is not torn down yet.
    pub(super) fn next_tear_down(&self) -> Option<TearDown> {
        self.parts().tear_downs.pop()
    }

    /// Counts a task in, unless the scope is being closed. Whoever closes it after this waits for the token.
    pub(super) fn admit(&self) -> Option<TaskTrackerToken> {
        // In this order: who closes first tells, and then looks whether there are tasks.
        let token = self.tasks.token();
        (!self.told.is_cancelled()).then_some(token)
    }

    /// Nobody has to be waited for, and nothing torn down.
    pub(super) fn is_idle(&self) -> bool {
        let parts = self.parts();
        self.tasks.is_empty() && parts.tear_downs.is_empty() && parts.children.is_empty()
    }

    /// Whether the caller is the one who has to close it.
    pub(super) fn begin(&self) -> bool {
        let first = !self.begun.swap(true, Ordering::SeqCst);
        // It wakes who waits for this: their code, which must not keep the one who is to close it from doing so.
        catch::run(|| self.told.cancel());
        if first {
            self.end_events();
        }
        first
    }

    /// Everything in the scope is told at once, and who listens to its events, here or within, hears it by their end.
    fn end_events(&self) {
        if let Some(events) = self.events.get() {
            // It wakes who listens: their code.
            catch::run(|| events.close());
        }
        self.children().iter().for_each(|child| child.end_events());
    }

    /// It is closed, and everybody may hear how.
    pub(super) fn finish(&self, error: Option<ScopeError>) {
        if let Some(error) = error {
            let _only_once = self.error.set(error);
        }
        self.done.cancel();
    }

    /// Resolves when it is closed.
    pub(super) async fn closed(&self) -> Result<(), ScopeError> {
        self.done.cancelled().await;
        self.error.get().cloned().map_or(Ok(()), Err)
    }

    /// The runtime that is here, or else the one that something of this scope runs on.
    pub(super) fn runtime(&self) -> Option<Handle> {
        match Handle::try_current() {
            Ok(here) => {
                self.runtime.get_or_init(|| here.clone());
                Some(here)
            }
            Err(_) => self.runtime.get().cloned(),
        }
    }

    /// The scope, unless its last handle was dropped and it is closed, or about to be.
    pub(super) fn scope(&self) -> Option<Scope> {
        let inner = self.first.upgrade().or_else(|| self.last.get()?.upgrade())?;
        Some(Scope { inner })
    }

    pub(super) fn lives_on_as(&self, scope: &Scope) {
        let _only_once = self.last.set(Arc::downgrade(&scope.inner));
    }

    fn parts(&self) -> MutexGuard<'_, Parts> {
        self.parts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
