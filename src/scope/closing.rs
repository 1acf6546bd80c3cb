//! Closing a scope: once, whoever asks for it and however often.

use std::{
    future::{Future, poll_fn},
    mem,
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
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
    /// All of this happens once. Whoever closes a scope that is closed, or being closed, hears the same result. It
    /// happens on a task of the caller's runtime, and goes on if this future is dropped; it begins with the first poll.
    /// If that runtime is shut down meanwhile, the closing goes on in the one in which the scope first owned something.
    ///
    /// A task of the scope, or of one within it, may await this: it is then neither waited for nor aborted, and goes on
    /// afterwards. In a scope that is closed nothing can be spawned or set up; its values stay.
    ///
    /// # Errors
    ///
    /// Everything that could not be torn down, here and in the scopes within. How tasks end is told by their handles.
    ///
    /// A tear-down that awaits the closing of its own scope, or of one around it, gets an error at once. One that
    /// awaits the closing of another scope gets an error when the grace period of its own scope is over: the tear-downs
    /// of two scopes may await each other. A tear-down that has a task elsewhere await it is not seen to do so, and
    /// waits for ever.
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
                told.wait().await;
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
            Some(Life::Owns(owned)) => owned.told.is_given(),
        }
    }

    /// Tells everything in the scope, at once, and has it closed on a task, if there is anything to close.
    ///
    /// Nobody waits for it. So the task is one of the runtime in which the scope first owned something: this one may
    /// end before.
    pub(crate) fn end(&self, ending: Ending) {
        self.end_since(Begun { ending, since: None, is_attended: false });
    }

    /// The same, as `begun` says. Answers what the scope owns, if it does.
    fn end_since(&self, begun: Begun) -> Option<&Arc<Owned>> {
        let Life::Owns(owned) = self.inner.life.get_or_init(|| Life::Closed) else { return None };
        if let Some(work) = self.begin(owned, begun) {
            Closing::go_on(work);
        }
        Some(owned)
    }

    /// The one closing of the scope, if this is its beginning and there is anything to close.
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

    /// How long its tasks may go on, if nobody around it says so: `around`, or else what a scope around it says.
    fn grace_within(&self, around: Option<Duration>) -> Duration {
        let own = self.inner.state.get::<Grace>().map(|grace| grace.0);
        own.or(around).unwrap_or_else(|| self.grace_period())
    }

    fn grace_period(&self) -> Duration {
        self.get::<Grace>().map_or(GRACE, |grace| grace.0)
    }
}

/// `future`, until then; for ever if there is no such time.
async fn within<F: Future>(until: Option<Instant>, future: F) -> Option<F::Output> {
    match until {
        Some(until) => clock::within(until, future).await,
        None => Some(future.await),
    }
}

/// How a closing begins.
struct Begun {
    ending: Ending,
    /// When everything was told, and the grace period of the scope around, if that is being closed.
    since: Option<(Instant, Duration)>,
    /// Whether somebody in this runtime waits for it.
    is_attended: bool,
}

impl Begun {
    fn attended(ending: Ending) -> Self {
        Self { ending, since: None, is_attended: true }
    }
}

/// Closes the scope, on a task, if it is dropped before it is defused.
pub(super) struct CloseOnDrop(Option<Scope>);

impl CloseOnDrop {
    pub(super) fn new(scope: &Scope) -> Self {
        Self(Some(scope.clone()))
    }

    pub(super) fn defuse(&mut self) {
        self.0 = None;
    }

    /// Its tasks get no time.
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

/// The task that closes a scope. If its runtime is shut down before it is done, the work goes on in another.
struct Closing {
    // None: done, or handed on.
    work: Option<Remaining>,
    start: Arc<Mutex<Start>>,
}

/// Whether a runtime took the task. One that is shut down drops it within `spawn`, and the work comes back here.
#[derive(Default)]
enum Start {
    #[default]
    Tried,
    Refused(Remaining),
    Done,
}

/// What is left to do to close a scope.
struct Remaining {
    scope: Scope,
    owned: Arc<Owned>,
    faults: Vec<ScopeFailure>,
    /// When everything was told, and the grace period of the scope around.
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
        // Without tasks no timer is needed, and nobody has to be asked for the grace period.
        if !owned.tasks.is_empty() {
            let until = self.since.checked_add(scope.grace_within(self.around));
            if within(until, owned.tasks.wait()).await.is_none() {
                scope.inner.span.tasks_aborted(&scope.path(), owned.tasks.len());
                owned.abort.give();
            }
        }
        owned.tasks.wait().await;
    }

    /// At the same time: they were told at the same time too, so none gets more than its own grace period.
    async fn close_children(&mut self) {
        let children = self.owned.children();
        if children.is_empty() {
            return;
        }
        let since = Some((self.since, self.scope.grace_within(self.around)));
        for child in &children {
            // One without a scope was just dropped, and is being closed.
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
            // If the runtime is shut down meanwhile, this one is gone with it.
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

    /// No runtime is left to close the scope in: tasks and tear-downs are dropped, and whoever closes it hears that.
    ///
    /// Nor is there one for the scopes within, unless they know of another. Without recursion: scopes may nest deeper
    /// than the stack is.
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

    /// The scope is closed, and everybody may hear how.
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
            // It displays errors of users: one that panics must not leave those waiting who wait for the end.
            catch::run(|| scope.inner.span.not_closed_cleanly(error));
        }
        owned.finish(error.clone());
        error
    }
}

/// Notes the tear-down that was running when it is dropped.
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
    /// On the next runtime, or nowhere.
    fn go_on(work: Remaining) {
        if let Some(work) = Self::start(work) {
            work.lose();
        }
    }

    /// On the first of its runtimes that is not shut down; the work if there is none.
    fn start(mut work: Remaining) -> Option<Remaining> {
        while let Some(runtime) = work.runtimes.pop() {
            let start = Arc::<Mutex<Start>>::default();
            let closing = Self { work: Some(work), start: Arc::clone(&start) };
            drop(runtime.spawn(closing.run()));
            let start = mem::replace(&mut *locked(&start), Start::Done);
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
        let mut start = locked(&self.start);
        if matches!(*start, Start::Tried) {
            *start = Start::Refused(work);
        } else {
            drop(start);
            Self::go_on(work);
        }
    }
}

fn locked(start: &Mutex<Start>) -> MutexGuard<'_, Start> {
    start.lock().unwrap_or_else(PoisonError::into_inner)
}
