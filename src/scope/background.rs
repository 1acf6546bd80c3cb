//! Work that goes on after the request that started it has ended.

use std::{borrow::Cow, future::Future, sync::atomic::Ordering};

use http::Request;

use super::Scope;

impl Scope {
    /// Marks this scope as one that ends with a request. Background work of layers inside belongs to the scope around
    /// it.
    #[must_use]
    pub(crate) fn ends_with_request(self) -> Self {
        self.inner.ends_with_request.store(true, Ordering::Relaxed);
        self
    }

    /// Runs `future` on a task of the nearest scope that outlives all requests around this one.
    ///
    /// Closing that scope waits for the task, as for any other. The task has no deadline. The future runs in a new
    /// child of that scope, named `name`. The child holds the values that were stored in the scopes in between, but not
    /// those that were set up there, because they are torn down with these scopes.
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

/// Puts the current scope in place of the one in the extensions of a request, which ends with the request's caller. A
/// task that [goes on behind](Scope::spawn_behind) the caller needs this, because handlers look there.
pub(crate) fn behind<A>(mut request: Request<A>) -> Request<A> {
    if let Some(scope) = Scope::current()
        && let Some(of_caller) = request.extensions_mut().get_mut::<Scope>()
    {
        *of_caller = scope;
    }
    request
}
