//! What a scope owns, and whether it is being closed.
//!
//! Most scopes are those of requests, and own nothing. So all of this is made when it is first asked for, by a task, a disposable or
//! somebody who waits for the end; until then a scope is its name and its state.

use std::{
    collections::BTreeMap,
    mem,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
};

use tokio::runtime::Handle;
use tokio_util::task::{TaskTracker, task_tracker::TaskTrackerToken};

use super::{Ending, Inner, Scope, catch, error::ScopeError, tear_down::TearDown};
use crate::{events::EventBus, signal::Signal};

/// Set once: what a scope owns, or that it was closed while it owned nothing.
pub(super) enum Life {
    Owns(Arc<Owned>),
    Closed,
}

impl Life {
    /// Whether there may be something to close.
    pub(super) fn is_open(&self) -> bool {
        self.owned().is_some_and(|owned| !owned.done.is_given())
    }

    pub(super) fn owned(&self) -> Option<&Arc<Owned>> {
        match self {
            Self::Owns(owned) => Some(owned),
            Self::Closed => None,
        }
    }
}

pub(super) struct Owned {
    /// The scope is being closed, or one around it is.
    pub(super) told: Arc<Signal>,
    /// Its tasks have had their time.
    pub(super) abort: Arc<Signal>,
    /// It is closed.
    pub(super) done: Arc<Signal>,
    pub(super) tasks: TaskTracker,
    pub(super) events: OnceLock<EventBus>,
    begun: AtomicBool,
    error: OnceLock<ScopeError>,
    ending: OnceLock<Ending>,
    /// The one in which the scope first owned something, or a scope around it did.
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
    /// The types of those that were running when their runtime was shut down.
    lost: Vec<&'static str>,
    children: BTreeMap<u64, Arc<Owned>>,
}

impl Owned {
    pub(super) fn new(scope: &Scope) -> Arc<Self> {
        Arc::new(Self {
            told: Arc::default(),
            abort: Arc::default(),
            done: Arc::default(),
            tasks: TaskTracker::new(),
            events: OnceLock::new(),
            begun: AtomicBool::new(false),
            error: OnceLock::new(),
            ending: OnceLock::new(),
            runtime: Handle::try_current().map_or_else(|_| OnceLock::new(), OnceLock::from),
            first: Arc::downgrade(&scope.inner),
            last: OnceLock::new(),
            parts: Mutex::default(),
        })
    }

    /// A scope within this one that owns something too.
    pub(super) fn child(&self, scope: &Scope) -> Arc<Self> {
        let child = Self::new(scope);
        if let Some(runtime) = self.runtime.get() {
            child.runtime.get_or_init(|| runtime.clone());
        }
        self.parts().children.insert(scope.id(), Arc::clone(&child));
        // Whoever tells this scope looks at its children afterwards: one of the two sees the other. Nobody waits for
        // the child yet.
        if self.told.is_given() {
            child.told.set();
        }
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

    pub(super) fn lose(&self, type_name: &'static str) {
        self.parts().lost.push(type_name);
    }

    /// The types of what could not be torn down to the end.
    pub(super) fn lost(&self) -> Vec<&'static str> {
        mem::take(&mut self.parts().lost)
    }

    /// Counts a task in, unless the scope is being closed. Whoever closes it after this waits for the token.
    pub(super) fn admit(&self) -> Option<TaskTrackerToken> {
        // In this order: who closes first tells, and then looks whether there are tasks.
        let token = self.tasks.token();
        (!self.told.is_given()).then_some(token)
    }

    /// Nobody has to be waited for, and nothing torn down.
    pub(super) fn is_idle(&self) -> bool {
        let parts = self.parts();
        self.tasks.is_empty() && parts.tear_downs.is_empty() && parts.children.is_empty()
    }

    /// There is something of its own that closing it would await or tear down.
    pub(super) fn has_more_to_do(&self) -> bool {
        let parts = self.parts();
        !(self.tasks.is_empty() && parts.tear_downs.is_empty() && parts.lost.is_empty())
    }

    /// Whether the caller is the one who has to close it.
    pub(super) fn begin(self: &Arc<Self>) -> bool {
        let first = !self.begun.swap(true, Ordering::SeqCst);
        self.tell();
        first
    }

    /// Tells everything in the scope, none twice: first all of them, and then those who wait are woken, and their
    /// events end.
    ///
    /// Without recursion: scopes may nest deeper than the stack is.
    fn tell(self: &Arc<Self>) {
        if !self.told.set() {
            return;
        }
        let mut told = vec![Arc::clone(self)];
        let mut looked_at = 0;
        while let Some(owned) = told.get(looked_at) {
            let children: Vec<_> = owned.parts().children.values().filter(|child| child.told.set()).cloned().collect();
            told.extend(children);
            looked_at += 1;
        }
        for owned in told {
            owned.told.wake();
            if let Some(events) = owned.events.get() {
                // It wakes who listens: their code.
                catch::run(|| events.close());
            }
        }
    }

    /// How the work in the scope ended: what is said first holds.
    pub(super) fn ended(&self, ending: Ending) {
        let _only_once = self.ending.set(ending);
    }

    /// If nobody said how the work ended, somebody else ended it.
    pub(super) fn ending(&self) -> Ending {
        *self.ending.get_or_init(|| Ending::Cancelled)
    }

    /// It is closed, and everybody may hear how.
    pub(super) fn finish(&self, error: Option<ScopeError>) {
        if let Some(error) = error {
            let _only_once = self.error.set(error);
        }
        self.done.give();
    }

    /// Resolves when it is closed.
    pub(super) async fn closed(&self) -> Result<(), ScopeError> {
        self.done.wait().await;
        self.error.get().cloned().map_or(Ok(()), Err)
    }

    /// The runtime that is here, or else the one in which the scope first owned something.
    pub(super) fn runtime(&self) -> Option<Handle> {
        match Handle::try_current() {
            Ok(here) => {
                self.runtime.get_or_init(|| here.clone());
                Some(here)
            }
            Err(_) => self.home(),
        }
    }

    /// The runtime in which the scope first owned something.
    pub(super) fn home(&self) -> Option<Handle> {
        self.runtime.get().cloned()
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
