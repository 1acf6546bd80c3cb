//! Closing a scope: once, however many callers ask for it.

use std::{
    future::{Future, poll_fn},
    mem,
    pin::pin,
    sync::Arc,
    thread,
    time::Duration,
};

use tokio::runtime::Handle;

use super::{
    Ending, Scope, catch,
    error::{ScopeError, ScopeFailure, ScopeFailureKind},
    life::{Life, Owned},
    task::{Aside, Member, Role},
};
use crate::{
    ambient,
    clock::{self, Instant},
    mutex::Mutex,
};

/// The default grace period.
///
/// `docker stop` kills a program after 10 seconds, Kubernetes after 30. The default leaves time to tear down the values
/// that tasks used.
const GRACE: Duration = Duration::from_secs(5);

/// Stored in the state of a scope, so that the nearest scope that sets it is found like any other value.
struct Grace(Duration);

impl Scope {
    /// Sets how long tasks of this scope, and of scopes inside it, may run on while the scope is closing. Then they are
    /// aborted.
    ///
    /// The default is 5 seconds, unless a scope further out sets another. With [`Duration::MAX`] tasks are never
    /// aborted.
    #[must_use]
    pub fn grace(self, grace: Duration) -> Self {
        self.with(Grace(grace))
    }

    /// Closes the scope: ends its tasks, closes the scopes inside it, and tears down its values.
    ///
    /// Everything in the scope is [notified](Scope::cancelled) first. Tasks are awaited, and aborted when the
    /// [grace period](Scope::grace) is over. Then the scopes inside are closed, and then the values that were set up
    /// are torn down, in reverse order.
    ///
    /// All of this happens once, and every caller gets the same result. It runs on a task of the runtime of the first
    /// caller, begins with the first poll, and goes on if this future is dropped. If that runtime is shut down
    /// meanwhile, the closing goes on in the one in which the scope first owned something.
    ///
    /// A task of the scope, or of one inside it, may await this future. That task is then neither waited for nor
    /// aborted, and runs on afterwards. A closed scope keeps its values, but can neither spawn a task nor set up a
    /// value.
    ///
    /// # Errors
    ///
    /// All failures to tear down, in this scope and in those inside it. A task's failure is reported by its own handle.
    ///
    /// A tear-down that awaits the closing of its own scope, or of one around it, gets an error at once. A tear-down
    /// that awaits the closing of another scope gets an error when the grace period of its own scope is over, because
    /// the tear-downs of two scopes may await each other. If a tear-down delegates the wait to a task elsewhere, the
    /// deadlock is not detected.
    pub async fn close(&self) -> Result<(), ScopeError> {
        let Some(owned) = self.end_since(Begun::attended(Ending::Completed)) else { return Ok(()) };
        match Member::step_aside(self) {
            Aside::Free => owned.closed().await,
            Aside::AwaitsItself => Err(ScopeError::one(self, ScopeFailureKind::AwaitsItself)),
            Aside::TearDown(own) => {
                let until = clock::now().checked_add(own.grace_period());
                match within(until, owned.closed()).await {
                    Some(closed) => closed,
                    None => Err(ScopeError::one(self, ScopeFailureKind::NotInTime)),
                }
            }
        }
    }

    /// Resolves when this scope, or one around it, starts to close. Use it to end a loop.
    ///
    /// The future does not keep the scope alive. It also resolves when the last handle of the scope is dropped.
    ///
    /// ```
    /// # use ziggurat::Scope;
    /// # async fn work() {}
    /// # #[tokio::main(flavor = "current_thread")] async fn main() {
    /// let app = Scope::root("app");
    /// let cancelled = app.cancelled();
    /// let worker = app.spawn(async move {
    ///     tokio::select! {
    ///         () = cancelled => "cancelled",
    ///         () = std::future::pending() => "never",
    ///     }
    /// });
    /// app.close().await.unwrap();
    /// assert_eq!(worker.await.unwrap(), "cancelled");
    /// # }
    /// ```
    pub fn cancelled(&self) -> impl Future<Output = ()> + Send + Sync + use<> {
        let told = self.owned().map(|owned| owned.told.clone());
        async move {
            if let Some(told) = told {
                told.wait().await;
            }
        }
    }

    /// Whether this scope, or one around it, is closed or being closed.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        // The nearest scope that owns something knows whether a scope around it is closing.
        match self.outwards().find_map(|scope| scope.inner.life.get()) {
            None => false,
            Some(Life::Closed) => true,
            Some(Life::Owns(owned)) => owned.told.is_given(),
        }
    }

    /// Cancels everything in the scope at once, and closes it on a task if there is anything to close.
    ///
    /// No caller waits for that, and the current runtime may end first, so the task runs on the runtime in which the
    /// scope first owned something.
    pub(crate) fn end(&self, ending: Ending) {
        self.end_since(Begun { ending, since: None, is_attended: false });
    }

    /// Starts the closing as `begun` says. Returns the [`Owned`] part of the scope, if it has one.
    fn end_since(&self, begun: Begun) -> Option<&Arc<Owned>> {
        let Life::Owns(owned) = self.inner.life.get_or_init(|| Life::Closed) else { return None };
        if let Some(work) = self.begin(owned, begun) {
            Closing::go_on(work);
        }
        Some(owned)
    }

    /// Starts the one closing of the scope. Returns the work, if this call is the first and there is anything to close.
    fn begin(&self, owned: &Arc<Owned>, begun: Begun) -> Option<Remaining> {
        if !owned.begin() {
            return None;
        }
        owned.ended(begun.ending);
        owned.tasks.close();
        let work = Remaining::new(self, owned, begun);
        if owned.is_idle() {
            work.finish();
            return None;
        }
        Some(work)
    }

    /// The grace period of its tasks: its own setting, else `around`, else that of a scope around it.
    fn grace_within(&self, around: Option<Duration>) -> Duration {
        let own = self.inner.state.get::<Grace>().map(|grace| grace.0);
        own.or(around).unwrap_or_else(|| self.grace_period())
    }

    fn grace_period(&self) -> Duration {
        self.get::<Grace>().map_or(GRACE, |grace| grace.0)
    }
}

/// Awaits `future` until `until`, or without a limit if that is `None`.
async fn within<F: Future>(until: Option<Instant>, future: F) -> Option<F::Output> {
    match until {
        Some(until) => clock::within(until, future).await,
        None => Some(future.await),
    }
}

/// How a closing begins.
struct Begun {
    ending: Ending,
    /// When the scope was cancelled, and the grace period of the scope around it, if that is closing too.
    since: Option<(Instant, Duration)>,
    /// Whether a caller in this runtime waits for it.
    is_attended: bool,
}

impl Begun {
    fn attended(ending: Ending) -> Self {
        Self { ending, since: None, is_attended: true }
    }
}

/// Closes the scope on a task if it is dropped before it is defused.
pub(super) struct CloseOnDrop(Option<Scope>);

impl CloseOnDrop {
    pub(super) fn new(scope: &Scope) -> Self {
        Self(Some(scope.clone()))
    }

    pub(super) fn defuse(&mut self) {
        self.0 = None;
    }

    /// Aborts the tasks of the scope without a grace period.
    pub(super) fn abort(&self) {
        if let Some(owned) = self.0.as_ref().and_then(Scope::owned) {
            owned.abort.give();
        }
    }
}

impl Drop for CloseOnDrop {
    fn drop(&mut self) {
        if let Some(scope) = &self.0 {
            scope.end(Ending::of_what_is_dropped());
        }
    }
}

impl Ending {
    pub(crate) fn of_what_is_dropped() -> Self {
        if thread::panicking() { Self::Panicked } else { Self::Cancelled }
    }
}

/// The task that closes a scope. If its runtime is shut down first, the work goes on in another.
struct Closing {
    // `None` once it is done or handed on.
    work: Option<Remaining>,
    start: Arc<Mutex<Start>>,
}

/// Whether a runtime took the task. A runtime that is shut down drops it within `spawn`, and the work comes back here.
#[derive(Default)]
enum Start {
    #[default]
    Tried,
    Refused(Remaining),
    Done,
}

/// The remaining work of closing a scope.
struct Remaining {
    scope: Scope,
    owned: Arc<Owned>,
    faults: Vec<ScopeFailure>,
    /// When the scope was cancelled, and the grace period of the scope around it.
    since: Instant,
    around: Option<Duration>,
    /// The runtimes that were not tried yet, the next one last.
    runtimes: Vec<Handle>,
}

impl Remaining {
    fn new(scope: &Scope, owned: &Arc<Owned>, begun: Begun) -> Self {
        let around = scope.parent().and_then(|parent| parent.inner.life.get()?.owned()?.home());
        let (home, here) = (owned.home(), Handle::try_current().ok());
        let (first, second) = if begun.is_attended { (here, home) } else { (home, here) };
        let (since, around_for) =
            begun.since.map_or_else(|| (clock::now(), None), |(since, around)| (since, Some(around)));
        Self {
            scope: scope.clone(),
            owned: Arc::clone(owned),
            faults: Vec::new(),
            since,
            around: around_for,
            runtimes: [around, second, first].into_iter().flatten().collect(),
        }
    }

    async fn end_tasks(&self) {
        let Self { scope, owned, .. } = self;
        // Without tasks, there is no need for a timer or for looking up the grace period.
        if !owned.tasks.is_empty() {
            let until = self.since.checked_add(scope.grace_within(self.around));
            if within(until, owned.tasks.wait()).await.is_none() {
                scope.inner.span.tasks_aborted(&scope.path(), owned.tasks.len());
                owned.abort.give();
            }
        }
        owned.tasks.wait().await;
    }

    /// Closes all children concurrently. They were cancelled at the same time, so none gets more than its own grace
    /// period.
    async fn close_children(&mut self) {
        let children = self.owned.children();
        if children.is_empty() {
            return;
        }
        let since = Some((self.since, self.scope.grace_within(self.around)));
        for child in &children {
            // A child without a scope was just dropped, and is closing already.
            if let Some(scope) = child.scope() {
                scope.end_since(Begun { ending: Ending::Cancelled, since, is_attended: true });
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
        let ending = owned.ending();
        while let Some(tear_down) = owned.next_tear_down() {
            let type_name = tear_down.type_name();
            // If the runtime is shut down meanwhile, this tear-down is lost with it.
            let mut lost = Lost { owned, type_name: Some(type_name) };
            let mut member = Some(Member { scope: Some(scope.clone()), role: Role::TearDown });
            let mut torn_down = pin!(scope.within(tear_down.run(ending)));
            let torn_down = poll_fn(|cx| {
                let _member = ambient::enter(&mut member);
                torn_down.as_mut().poll(cx)
            })
            .await;
            lost.type_name = None;
            drop(lost);
            if let Err(kind) = torn_down {
                faults.push(ScopeFailure::new(&scope.path(), kind));
            }
        }
    }

    /// Called when no runtime is left to close the scope in: drops tasks and tear-downs, and records that as failures.
    ///
    /// The scopes inside share that fate, unless they have another runtime. Without recursion: scopes may nest deeper
    /// than the stack.
    fn lose(self) {
        let mut lost = vec![(None, self)];
        let mut looked_at = 0;
        while let Some((_, work)) = lost.get(looked_at) {
            let mut within = Vec::new();
            for child in work.owned.children() {
                let Some(scope) = child.scope() else { continue };
                let begun = Begun { ending: Ending::Cancelled, since: None, is_attended: false };
                let work = scope.begin(&child, begun).and_then(Closing::start);
                within.extend(work.map(|work| (Some(looked_at), work)));
            }
            lost.extend(within);
            looked_at += 1;
        }
        // From the inside out.
        while let Some((around, mut work)) = lost.pop() {
            if work.owned.has_more_to_do() || work.faults.is_empty() {
                work.fault(ScopeFailureKind::NoRuntime);
            }
            work.owned.abort.give();
            while let Some(tear_down) = work.owned.next_tear_down() {
                work.fault(ScopeFailureKind::NotTornDown { type_name: tear_down.type_name() });
                catch::discard(tear_down);
            }
            let error = work.finish();
            if let (Some((_, around)), Some(error)) = (around.and_then(|around: usize| lost.get_mut(around)), error) {
                around.faults.extend_from_slice(error.faults());
            }
        }
    }

    fn fault(&mut self, kind: ScopeFailureKind) {
        self.faults.push(ScopeFailure::new(&self.scope.path(), kind));
    }

    /// Marks the scope as closed and publishes the result.
    fn finish(mut self) -> Option<ScopeError> {
        for type_name in self.owned.lost() {
            self.fault(ScopeFailureKind::NotTornDown { type_name });
        }
        let Self { scope, owned, faults, .. } = self;
        if let Some(Life::Owns(parent)) = scope.parent().and_then(|parent| parent.inner.life.get()) {
            parent.forget_child(scope.id());
        }
        let error = ScopeError::of(&scope, faults);
        if let Some(error) = &error {
            // Displaying the error runs user code, and a panic there must not leave callers of `close` waiting.
            catch::run(|| scope.inner.span.not_closed_cleanly(error));
        }
        owned.finish(error.clone());
        error
    }
}

/// Records the running tear-down as lost if it is dropped first.
struct Lost<'a> {
    owned: &'a Owned,
    type_name: Option<&'static str>,
}

impl Drop for Lost<'_> {
    fn drop(&mut self) {
        if let Some(type_name) = self.type_name {
            self.owned.lose(type_name);
        }
    }
}

impl Closing {
    /// Continues on the next runtime. If there is none, drops the work.
    fn go_on(work: Remaining) {
        if let Some(work) = Self::start(work) {
            work.lose();
        }
    }

    /// Starts on the first runtime that is not shut down. Returns the work if there is none.
    fn start(mut work: Remaining) -> Option<Remaining> {
        while let Some(runtime) = work.runtimes.pop() {
            let start = Arc::<Mutex<Start>>::default();
            let closing = Self { work: Some(work), start: Arc::clone(&start) };
            drop(runtime.spawn(closing.run()));
            let start = mem::replace(&mut *start.lock(), Start::Done);
            match start {
                Start::Refused(back) => work = back,
                Start::Tried | Start::Done => return None,
            }
        }
        Some(work)
    }

    async fn run(mut self) {
        if let Some(work) = &mut self.work {
            work.end_tasks().await;
            work.close_children().await;
            work.tear_down().await;
        }
        if let Some(work) = self.work.take() {
            work.finish();
        }
    }
}

impl Drop for Closing {
    fn drop(&mut self) {
        let Some(work) = self.work.take() else { return };
        let mut start = self.start.lock();
        if matches!(*start, Start::Tried) {
            *start = Start::Refused(work);
        } else {
            drop(start);
            Self::go_on(work);
        }
    }
}
