//! The life of a scope: the tasks and values that it owns, and whether it is closing.
//!
//! Most scopes belong to requests and own nothing. So all of this is created on demand, for a task, a disposable or a
//! caller that waits for the end. Until then a scope is only its name and its state.

use std::{
    collections::BTreeMap,
    mem,
    sync::{
        Arc, OnceLock, Weak,
        atomic::{AtomicBool, Ordering},
    },
};

use tokio::runtime::Handle;
use tokio_util::task::{TaskTracker, task_tracker::TaskTrackerToken};

use super::{Ending, Inner, Scope, catch, error::ScopeError, tear_down::TearDown};
use crate::{events::EventBus, mutex::Mutex, signal::Signal};

/// Set once: the owned part of a scope, or that it was closed while it owned nothing.
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

#[derive(Default)]
pub(super) struct Owned {
    /// Set when the scope, or one around it, starts to close.
    pub(super) told: Arc<Signal>,
    /// Set when the grace period of the tasks is over.
    pub(super) abort: Arc<Signal>,
    /// Set when the scope is closed.
    pub(super) done: Arc<Signal>,
    pub(super) tasks: TaskTracker,
    pub(super) events: OnceLock<EventBus>,
    begun: AtomicBool,
    error: OnceLock<ScopeError>,
    ending: OnceLock<Ending>,
    /// The runtime in which the scope, or a scope around it, first owned something.
    runtime: OnceLock<Handle>,
    // Weak, because tasks hold `Owned`, and must not keep the scope alive.
    first: Weak<Inner>,
    // The scope as it lives on for its closing, if its last handle was dropped before.
    last: OnceLock<Weak<Inner>>,
    parts: Mutex<Parts>,
}

/// No user code runs, and no user value is dropped, while this is locked.
#[derive(Default)]
struct Parts {
    tear_downs: Vec<TearDown>,
    /// The types of the values whose tear-down was running when the runtime was shut down.
    lost: Vec<&'static str>,
    children: BTreeMap<u64, Arc<Owned>>,
}

impl Owned {
    pub(super) fn new(scope: &Scope) -> Arc<Self> {
        let runtime = Handle::try_current().map_or_else(|_| OnceLock::new(), OnceLock::from);
        Arc::new(Self { runtime, first: Arc::downgrade(&scope.inner), ..Self::default() })
    }

    /// Creates the part of a child scope that owns something too.
    pub(super) fn child(&self, scope: &Scope) -> Arc<Self> {
        let child = Self::new(scope);
        if let Some(runtime) = self.runtime.get() {
            child.runtime.get_or_init(|| runtime.clone());
        }
        self.parts.lock().children.insert(scope.id(), Arc::clone(&child));
        // `tell` sets this scope's signal before it looks at the children, so one of the two sees the other. No task
        // waits for the child yet, so none has to be woken.
        if self.told.is_given() {
            child.told.set();
        }
        child
    }

    pub(super) fn forget_child(&self, id: u64) {
        let child = self.parts.lock().children.remove(&id);
        drop(child);
    }

    pub(super) fn children(&self) -> Vec<Arc<Self>> {
        self.parts.lock().children.values().cloned().collect()
    }

    pub(super) fn undo_later(&self, tear_down: TearDown) {
        self.parts.lock().tear_downs.push(tear_down);
    }

    /// Removes and returns the tear-down that was added last.
    pub(super) fn next_tear_down(&self) -> Option<TearDown> {
        self.parts.lock().tear_downs.pop()
    }

    pub(super) fn lose(&self, type_name: &'static str) {
        self.parts.lock().lost.push(type_name);
    }

    /// The types of the values whose tear-down did not complete.
    pub(super) fn lost(&self) -> Vec<&'static str> {
        mem::take(&mut self.parts.lock().lost)
    }

    /// Registers a task, unless the scope is closing. A later closing waits for the token.
    pub(super) fn admit(&self) -> Option<TaskTrackerToken> {
        // In this order, because closing sets the signal before it counts the tasks.
        let token = self.tasks.token();
        (!self.told.is_given()).then_some(token)
    }

    /// Whether there is nothing to wait for and nothing to tear down.
    pub(super) fn is_idle(&self) -> bool {
        let parts = self.parts.lock();
        self.tasks.is_empty() && parts.tear_downs.is_empty() && parts.children.is_empty()
    }

    /// Whether this scope, apart from its children, has something to wait for or to tear down.
    pub(super) fn has_more_to_do(&self) -> bool {
        let parts = self.parts.lock();
        !(self.tasks.is_empty() && parts.tear_downs.is_empty() && parts.lost.is_empty())
    }

    /// Starts to close the scope. Returns whether the caller has to do the rest.
    pub(super) fn begin(self: &Arc<Self>) -> bool {
        let first = !self.begun.swap(true, Ordering::SeqCst);
        self.tell();
        first
    }

    /// Cancels everything in the scope, each part once. Sets all signals first, and then wakes waiters and closes event
    /// buses.
    ///
    /// Without recursion: scopes may nest deeper than the stack.
    fn tell(self: &Arc<Self>) {
        if !self.told.set() {
            return;
        }
        let mut told = vec![Arc::clone(self)];
        let mut looked_at = 0;
        while let Some(owned) = told.get(looked_at) {
            let children: Vec<_> =
                owned.parts.lock().children.values().filter(|child| child.told.set()).cloned().collect();
            told.extend(children);
            looked_at += 1;
        }
        for owned in told {
            owned.told.wake();
            if let Some(events) = owned.events.get() {
                // Wakes subscribers, whose wakers are user code.
                catch::run(|| events.close());
            }
        }
    }

    /// Records how the work in the scope ended. The first call wins.
    pub(super) fn ended(&self, ending: Ending) {
        let _only_once = self.ending.set(ending);
    }

    /// How the work ended. Without a record, it was cancelled from outside.
    pub(super) fn ending(&self) -> Ending {
        *self.ending.get_or_init(|| Ending::Cancelled)
    }

    /// Marks the scope as closed and wakes the callers of `close` with the result.
    pub(super) fn finish(&self, error: Option<ScopeError>) {
        if let Some(error) = error {
            let _only_once = self.error.set(error);
        }
        self.done.give();
    }

    /// Resolves when the scope is closed.
    pub(super) async fn closed(&self) -> Result<(), ScopeError> {
        self.done.wait().await;
        self.error.get().cloned().map_or(Ok(()), Err)
    }

    /// The current runtime, or else the one in which the scope first owned something.
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

    /// The scope, unless its last handle was dropped and it is closed or about to be.
    pub(super) fn scope(&self) -> Option<Scope> {
        let inner = self.first.upgrade().or_else(|| self.last.get()?.upgrade())?;
        Some(Scope { inner })
    }

    pub(super) fn lives_on_as(&self, scope: &Scope) {
        let _only_once = self.last.set(Arc::downgrade(&scope.inner));
    }
}
