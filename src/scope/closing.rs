//! Closing a scope: once, whoever asks for it and however often.

use std::{
    future::{Future, poll_fn},
    pin::pin,
    sync::Arc,
    time::Duration,
};

use super::{
    Scope, catch,
    error::{Fault, FaultKind, ScopeError},
    life::{Life, Owned},
    task::{Member, Role},
};
use crate::{
    ambient,
    clock::{self, Instant},
};

/// How long tasks have from when they are told, if nothing was said.
///
/// `docker stop` kills a program after 10 seconds, Kubernetes after 30: this leaves time to tear down what the tasks used.
const GRACE: Duration = Duration::from_secs(5);

/// In the scope's state, so that the nearest scope that says something is found as every setting is.
struct Grace(Duration);

impl Scope {
    /// How long the tasks of this scope, and of those within it, may go on after they were told that it is being closed; then they are
    /// aborted. 5 seconds if no scope around says otherwise. With [`Duration::MAX`] they are never aborted.
    #[must_use]
    pub fn grace(self, grace: Duration) -> Self {
        self.with(Grace(grace))
    }

    /// Closes the scope: everything in it is [told](Scope::cancelled), its tasks are awaited, and aborted when the
    /// [grace period](Scope::grace) is over; then the scopes within it are closed, and then what was set up is torn down, in reverse.
    ///
    /// All of this happens once. Whoever closes a scope that is closed, or being closed, hears the same result. It happens on
    /// a task, and goes on if this future is dropped; it begins with the first poll.
    ///
    /// A task of the scope, or of one within it, may await this: it is then neither waited for nor aborted, and goes on
    /// afterwards. In a scope that is closed nothing can be spawned or set up; its values stay.
    ///
    /// # Errors
    ///
    /// Everything that could not be torn down, here and in the scopes within. A tear-down that awaits the closing of its own scope, or
    /// of one around it, gets an error at once; one that has a task elsewhere await it is not seen to do so, and waits for ever. How
    /// tasks end is told by their handles.
    pub async fn close(&self) -> Result<(), ScopeError> {
        let Some(owned) = self.end_since(None) else { return Ok(()) };
        if !Member::step_aside(self) {
            return Err(ScopeError::one(self.path(), FaultKind::AwaitsItself));
        }
        owned.closed().await
    }

    /// Resolves when this scope, or one around it, is being closed: for a loop that should end then.
    ///
    /// It does not keep the scope, and resolves too when the last handle of the scope is dropped.
    ///
    /// ```
    /// # use ziggurat::Scope;
    /// # async fn work() {}
    /// # #[tokio::main(flavor = "current_thread")] async fn main() {
    /// let app = Scope::root("app");
    /// let cancelled = app.cancelled();
    /// let worker = app.spawn(async move {
    ///     tokio::select! {
    ///         () = cancelled => "told",
    ///         () = std::future::pending() => "never",
    ///     }
    /// });
    /// app.close().await.unwrap();
    /// assert_eq!(worker.await.unwrap(), "told");
    /// # }
    /// ```
    pub fn cancelled(&self) -> impl Future<Output = ()> + Send + Sync + use<> {
        let told = self.owned().map(|owned| owned.told.clone());
        async move {
            if let Some(told) = told {
                told.cancelled().await;
            }
        }
    }

    /// Whether this scope, or one around it, is closed or being closed.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        // Where a scope owns something, those around it know.
        match self.outwards().find_map(|scope| scope.inner.life.get()) {
            None => false,
            Some(Life::Closed) => true,
            Some(Life::Owns(owned)) => owned.told.is_cancelled(),
        }
    }

    /// Tells everything in the scope, at once, and has it closed on a task, if there is anything to close.
    pub(crate) fn end(&self) {
        self.end_since(None);
    }

    /// The same, if it was told then. Answers what the scope owns, if it does.
    fn end_since(&self, since: Option<Instant>) -> Option<&Arc<Owned>> {
        let Life::Owns(owned) = self.inner.life.get_or_init(|| Life::Closed) else { return None };
        if owned.begin() {
            let mut closing = Closing::new(self, owned);
            if owned.is_idle() {
                closing.complete = true;
            } else if let Some(runtime) = owned.runtime() {
                runtime.spawn(closing.run(since.unwrap_or_else(clock::now)));
            }
        }
        Some(owned)
    }

    fn grace_period(&self) -> Duration {
        self.get::<Grace>().map_or(GRACE, |grace| grace.0)
    }
}

/// Closes the scope, on a task, if it is dropped before it is defused.
pub(super) struct CloseOnDrop(Option<Scope>);

impl CloseOnDrop {
    pub(super) fn new(scope: &Scope) -> Self {
        Self(Some(scope.clone()))
    }

    pub(super) fn defuse(mut self) {
        self.0 = None;
    }
}

impl Drop for CloseOnDrop {
    fn drop(&mut self) {
        if let Some(scope) = &self.0 {
            scope.end();
        }
    }
}

/// The one closing of a scope. It ends when it is dropped, done or not: nobody waits for one that will never end.
struct Closing {
    scope: Scope,
    owned: Arc<Owned>,
    faults: Vec<Fault>,
    complete: bool,
}

impl Closing {
    fn new(scope: &Scope, owned: &Arc<Owned>) -> Self {
        owned.tasks.close();
        Self { scope: scope.clone(), owned: Arc::clone(owned), faults: Vec::new(), complete: false }
    }

    async fn run(mut self, since: Instant) {
        self.end_tasks(since).await;
        self.close_children(since).await;
        self.tear_down().await;
        self.complete = true;
    }

    async fn end_tasks(&self, since: Instant) {
        let Self { scope, owned, .. } = self;
        let until = since.checked_add(scope.grace_period());
        // Without tasks no timer is needed, and the runtime may have none.
        if let Some(until) = until
            && !owned.tasks.is_empty()
            && clock::timeout_at(until, owned.tasks.wait()).await.is_none()
        {
            scope.inner.span.tasks_aborted(&scope.path(), owned.tasks.len());
            owned.abort.cancel();
        }
        owned.tasks.wait().await;
    }

    /// At the same time: they were told at the same time too, so none gets more than its own grace period.
    async fn close_children(&mut self, since: Instant) {
        let children = self.owned.children();
        for child in &children {
            // One without a scope was just dropped, and is being closed.
            if let Some(scope) = child.scope() {
                scope.end_since(Some(since));
            }
        }
        for child in children {
            if let Err(error) = child.closed().await {
                self.faults.extend_from_slice(error.faults());
            }
        }
    }

    async fn tear_down(&mut self) {
        let Self { scope, owned, faults, .. } = self;
        while let Some(tear_down) = owned.next_tear_down() {
            let mut member = Some(Member { scope: Some(scope.clone()), role: Role::TearDown });
            let mut torn_down = pin!(scope.within(tear_down.run()));
            let torn_down = poll_fn(|cx| {
                let _member = ambient::enter(&mut member);
                torn_down.as_mut().poll(cx)
            });
            if let Err(kind) = torn_down.await {
                faults.push(Fault::new(&scope.path(), kind));
            }
        }
    }
}

impl Drop for Closing {
    fn drop(&mut self) {
        let Self { scope, owned, faults, complete } = self;
        if !*complete {
            // There is no runtime, or it is gone.
            faults.push(Fault::new(&scope.path(), FaultKind::NoRuntime));
            owned.abort.cancel();
            for child in owned.children() {
                if let Some(scope) = child.scope() {
                    scope.end();
                }
            }
            while let Some(tear_down) = owned.next_tear_down() {
                catch::discard(tear_down);
            }
        }
        if let Some(Life::Owns(parent)) = scope.parent().and_then(|parent| parent.inner.life.get()) {
            parent.forget_child(scope.id());
        }
        let error = ScopeError::of(scope.path(), std::mem::take(faults));
        if let Some(error) = &error {
            // It displays errors of users: one that panics must not leave those waiting who wait for the end.
            catch::run(|| scope.inner.span.not_closed_cleanly(error));
        }
        owned.finish(error);
    }
}
