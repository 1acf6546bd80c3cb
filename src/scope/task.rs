//! Tasks that belong to a scope.

use std::{
    error::Error,
    fmt,
    future::Future,
    mem,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use pin_project_lite::pin_project;
use tokio::task::JoinHandle;
use tokio_util::task::task_tracker::TaskTrackerToken;

use super::{Scope, enter, error::Panic, life::Owned};
use crate::{
    ambient::{self, Deadline, slot},
    debug::impl_debug,
    signal::Wait,
};

impl Scope {
    /// Runs `future` on a task that belongs to this scope, and in this scope.
    ///
    /// Closing the scope waits for the task, and aborts it when the [grace period](Scope::grace) is over.
    ///
    /// If this is the [current](Scope::current) scope, or inside it, the task inherits the caller's deadline. A task of
    /// any other scope may outlive the caller's request, and has no deadline; [`Deadline::within`] gives it one.
    ///
    /// The task runs on if its handle is dropped. The handle reports a failure of the task, which neither ends the
    /// scope nor makes its closing fail.
    ///
    /// A task does not keep its scope alive: when the last handle of the scope is dropped, the scope is closed. A
    /// `Scope` that the future holds is such a handle, so use [`Scope::current`] in the future, for as long as it needs
    /// the scope.
    ///
    /// If the scope is closed or closing, `future` is dropped and the handle returns [`TaskError::Closed`]. The task
    /// runs on the caller's tokio runtime, or else on the one in which the scope first owned something. If there is
    /// neither, the handle returns [`TaskError::NoRuntime`].
    ///
    /// ```
    /// # use ziggurat::Scope;
    /// # #[tokio::main(flavor = "current_thread")] async fn main() {
    /// let app = Scope::root("app");
    /// let task = app.spawn(async { Scope::current().unwrap().name().len() });
    /// assert_eq!(task.await.unwrap(), 3);
    /// app.close().await.unwrap();
    /// # }
    /// ```
    pub fn spawn<F>(&self, future: F) -> Task<F::Output>
    where
        F: Future<Output: Send> + Send + 'static,
    {
        let deadline = Deadline::current().filter(|_| Self::current().is_some_and(|current| self.is_within(&current)));
        self.start(future, deadline)
    }

    /// Returns the error with which a task would be refused now.
    pub(super) fn refuses_tasks(&self) -> Option<TaskError> {
        match self.owned().filter(|owned| !owned.told.is_given()) {
            None => Some(TaskError::Closed(self.path())),
            Some(owned) => owned.runtime().is_none().then(|| TaskError::NoRuntime(self.path())),
        }
    }

    /// Starts a task with `deadline` instead of the caller's.
    pub(super) fn start<F>(&self, future: F, deadline: Option<Deadline>) -> Task<F::Output>
    where
        F: Future<Output: Send> + Send + 'static,
    {
        let admitted = self.owned().and_then(|owned| Some((owned, owned.admit()?)));
        let Some((owned, token)) = admitted else { return Task::refused(TaskError::Closed(self.path())) };
        let Some(runtime) = owned.runtime() else { return Task::refused(TaskError::NoRuntime(self.path())) };
        let future = InTask {
            future: Some(future),
            abort: owned.abort.wait(),
            owned: Arc::clone(owned),
            member: Some(Member { scope: None, role: Role::Task(Some(token)) }),
        };
        let handle = match deadline {
            Some(deadline) => runtime.spawn(deadline.within(future)),
            None => runtime.spawn(future),
        };
        Task { state: State::Spawned(handle) }
    }
}

/// The handle of a task that [`Scope::spawn`] started: a future of its result.
///
/// Dropping the handle leaves the task running.
pub struct Task<T> {
    state: State<T>,
}

enum State<T> {
    Spawned(JoinHandle<Option<T>>),
    Refused(TaskError),
    Answered,
}

impl<T> Task<T> {
    fn refused(error: TaskError) -> Self {
        Self { state: State::Refused(error) }
    }

    /// Drops the task's future, in its scope, as soon as it is not being polled. The result is then
    /// [`TaskError::Aborted`].
    pub fn abort(&self) {
        if let State::Spawned(handle) = &self.state {
            handle.abort();
        }
    }

    /// Whether the task has ended, or was never started.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        !matches!(&self.state, State::Spawned(handle) if !handle.is_finished())
    }
}

// No field is pinned.
impl<T> Unpin for Task<T> {}

impl<T> Future for Task<T> {
    type Output = Result<T, TaskError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let joined = match &mut self.state {
            State::Spawned(handle) => Some(ready!(Pin::new(handle).poll(cx))),
            State::Refused(_) | State::Answered => None,
        };
        let state = mem::replace(&mut self.state, State::Answered);
        Poll::Ready(match (joined, state) {
            (Some(Ok(output)), _) => output.ok_or(TaskError::Aborted),
            (Some(Err(error)), _) => Err(match error.try_into_panic() {
                Ok(payload) => TaskError::Panicked(Panic::new(payload)),
                Err(_) => TaskError::Aborted,
            }),
            (None, State::Refused(error)) => Err(error),
            (None, _) => return Poll::Pending,
        })
    }
}

impl_debug!(Task<T> { output: T, finished = |this| this.is_finished() });

/// Why a task has no result. More kinds may be added.
#[derive(Debug)]
#[non_exhaustive]
pub enum TaskError {
    /// The task panicked.
    Panicked(Panic),
    /// The task was dropped before it ended: by [`Task::abort`], at the end of its scope's grace period, or with its
    /// runtime.
    Aborted,
    /// The task was never started, because the scope at this path, such as `app/request`, is closed or closing.
    Closed(String),
    /// The task was never started, because the scope at this path has no tokio runtime.
    NoRuntime(String),
}

impl fmt::Display for TaskError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Panicked(panic) => write!(f, "the task {panic}"),
            Self::Aborted => f.write_str("the task was aborted"),
            Self::Closed(scope) => write!(f, "the task was not started: the scope `{scope}` is closed"),
            Self::NoRuntime(scope) => {
                write!(f, "the task was not started: the scope `{scope}` has no tokio runtime to start it on")
            }
        }
    }
}

impl Error for TaskError {}

/// The role of the running code when scopes close: a task or a tear-down of `scope`. Either would deadlock if it
/// awaited the closing of its own scope, or of one around it.
#[derive(Clone)]
pub(super) struct Member {
    // `None` between two polls of a task.
    pub(super) scope: Option<Scope>,
    pub(super) role: Role,
}

slot!(Option<Member>, None);

#[derive(Clone)]
pub(super) enum Role {
    /// The closing waits for the token.
    Task(Option<TaskTrackerToken>),
    TearDown,
}

/// Whether the running code can await the closing of a scope.
pub(super) enum Aside {
    Free,
    /// It is a tear-down that the closing awaits.
    AwaitsItself,
    /// It is a tear-down of this other scope. The awaited closing may itself await the closing of that scope.
    TearDown(Scope),
}

impl Member {
    /// Prepares the running code to await the closing of `scope`. A task drops its token, so that the closing no longer
    /// waits for it. A tear-down cannot be exempted.
    pub(super) fn step_aside(scope: &Scope) -> Aside {
        let (aside, token) = ambient::change(|member: &mut Option<Self>| match member {
            Some(Self { scope: Some(own), role: Role::TearDown }) => {
                (Some(if own.is_within(scope) { Aside::AwaitsItself } else { Aside::TearDown(own.clone()) }), None)
            }
            Some(Self { scope: Some(own), role: Role::Task(token) }) if own.is_within(scope) => (None, token.take()),
            _ => (None, None),
        });
        // Dropping the token wakes the closing.
        drop(token);
        aside.unwrap_or(Aside::Free)
    }
}

pin_project! {
    /// The future of a task, in its scope. Resolves to `None` if it was aborted.
    struct InTask<F> {
        // `None` once it has ended.
        #[pin]
        future: Option<F>,
        #[pin]
        abort: Wait,
        owned: Arc<Owned>,
        // After the future, so that it is dropped later: from then on the scope may be torn down.
        member: Option<Member>,
    }

    impl<F> PinnedDrop for InTask<F> {
        fn drop(this: Pin<&mut Self>) {
            let mut this = this.project();
            let mut scope = this.owned.scope();
            let _entered = enter(&mut scope);
            this.future.set(None);
        }
    }
}

impl<F: Future> Future for InTask<F> {
    type Output = Option<F::Output>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        // A task that awaited the closing has no token any more, and lives to see the result.
        let waited_for = matches!(this.member, Some(Member { role: Role::Task(Some(_)), .. }));
        let aborted = waited_for && this.abort.poll(cx).is_ready();
        let kept = this.member.as_mut().and_then(|member| member.scope.take());
        let mut scope = kept.or_else(|| this.owned.scope());
        if scope.is_none() && !aborted {
            // Another thread is dropping the last handle, and the scope is about to live on for its closing.
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        if let Some(member) = this.member {
            member.scope.clone_from(&scope);
        }
        let output = {
            let _entered = enter(&mut scope);
            let _member = ambient::enter(this.member);
            let output = match this.future.as_mut().as_pin_mut() {
                Some(future) if !aborted => future.poll(cx).map(Some),
                _ => Poll::Ready(None),
            };
            if output.is_ready() {
                this.future.set(None);
            }
            output
        };
        if let Some(Member { scope, role: Role::Task(Some(_)) }) = this.member {
            *scope = None;
        }
        output
    }
}
