//! Work that goes on when the request that started it has ended.

use std::{borrow::Cow, future::Future, sync::atomic::Ordering};

use super::Scope;

impl Scope {
    /// Says that this scope ends with a request: what a layer starts behind it belongs to the scope around it.
    #[must_use]
    pub(crate) fn ends_with_request(self) -> Self {
        self.inner.ends_with_request.store(true, Ordering::Relaxed);
        self
    }

    /// Runs `future` on a task of the nearest scope that outlives all requests around this one: its closing waits for
    /// the task, as for any other. The task is told no deadline.
    ///
    /// The future runs in a scope of its own, of this name, below that one. It holds the values that were put into the
    /// scopes between the two, but not what was set up there: that is torn down with them.
    pub(crate) fn spawn_behind<F>(&self, name: impl Into<Cow<'static, str>>, future: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let ends = |scope: &&Self| scope.inner.ends_with_request.load(Ordering::Relaxed);
        let outlives = self.outwards().filter(ends).last().and_then(Self::parent).unwrap_or(self);
        let behind = outlives.child(name);
        for scope in self.outwards().take_while(|scope| scope.id() != outlives.id()) {
            scope.inner.state.lend_to(&behind.inner.state);
        }
        drop(outlives.start(behind.within(future), None));
    }
}
