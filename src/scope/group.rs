//! Groups of tasks that fail together.

use std::{
    error::Error,
    fmt,
    future::{Future, poll_fn},
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, ready},
};

use tokio_util::task::{TaskTracker, task_tracker::TaskTrackerToken};

use super::{
    Ending, Opening, Ran, Scope, ScopeError, WithScope,
    closing::CloseOnDrop,
    error::Panic,
    task::{Task, TaskError},
};
use crate::{caught::unwound, debug::impl_debug, mutex::Mutex, signal::Signal};

impl Scope {
    /// Runs `body` and the tasks that it spawns as a group, in this scope: see [`Opening::run_group`].
    ///
    /// # Errors
    ///
    /// If the scope is closed already. `body` is not called then.
    pub async fn run_group<T, E, F>(
        self,
        body: impl FnOnce(Group<E>) -> F,
    ) -> Result<Ran<Result<T, GroupError<E>>>, ScopeError>
    where
        F: Future<Output = Result<T, E>>,
    {
        Opening::nothing(self).run_group(body).await
    }
}

impl Opening {
    /// Opens the scope, runs `body` and the tasks that it spawns in the [group](Group), and closes the scope.
    ///
    /// The group fails together: at the first error or panic, of a task or of `body`, `body` is dropped and all other
    /// tasks of the scope are aborted, without a grace period. The failure is returned when all of them have been
    /// dropped. If `body` returns a value, the group waits for its remaining tasks.
    ///
    /// If this future is dropped, or `body` panics, the tasks are aborted, and the scope is closed on a task.
    ///
    /// ```
    /// use std::io;
    /// use ziggurat::{Scope, scope::Group};
    ///
    /// # async fn user() -> io::Result<&'static str> { Ok("ada") }
    /// # async fn orders() -> io::Result<u32> { Ok(3) }
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let page = Scope::root("page")
    ///     .run_group(async |group: Group<io::Error>| {
    ///         let (user, orders) = (group.spawn(user()), group.spawn(orders())); // at the same time
    ///         Ok((user.await, orders.await)) // the values: a failure ends the body
    ///     })
    ///     .await?;
    /// assert_eq!(page.into_result()?, ("ada", 3));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// If the scope could not be opened. `body` was not called then, and the values that were set up are torn down.
    pub async fn run_group<T, E, F>(
        self,
        body: impl FnOnce(Group<E>) -> F,
    ) -> Result<Ran<Result<T, GroupError<E>>>, ScopeError>
    where
        F: Future<Output = Result<T, E>>,
    {
        let scope = self.open().await?;
        let mut unless_done = AbortOnDrop(CloseOnDrop::new(&scope));
        let group = Group { scope: scope.clone(), members: Arc::default() };
        let members = Arc::clone(&group.members);
        let mut failed = pin!(members.failed.wait());
        let output = {
            let mut body = pin!(WithScope::start(scope.clone(), || body(group)));
            poll_fn(|cx| match failed.as_mut().poll(cx) {
                Poll::Ready(()) => Poll::Ready(None),
                Poll::Pending => body.as_mut().poll(cx).map(Some),
            })
            .await
        };
        let value = match output {
            Some(Ok(value)) => {
                members.tasks.close();
                let mut left = pin!(members.tasks.wait());
                poll_fn(|cx| match left.as_mut().poll(cx) {
                    Poll::Pending => failed.as_mut().poll(cx),
                    ended => ended,
                })
                .await;
                Some(value)
            }
            Some(Err(error)) => {
                members.fail(GroupError::Failed(error));
                None
            }
            None => None,
        };
        let failure = members.failure.lock().take();
        let ending = match &failure {
            None => Ending::Completed,
            Some(GroupError::Task(TaskError::Panicked(_))) => Ending::Panicked,
            Some(_) => Ending::Failed,
        };
        if let Some(owned) = scope.owned() {
            owned.ended(ending);
            if failure.is_some() {
                owned.abort.give();
            }
        }
        unless_done.0.defuse();
        let closed = scope.close().await;
        let output = match (value, failure) {
            (Some(value), None) => Ok(value),
            (_, Some(failure)) => Err(failure),
            // Without a value there is a failure.
            (None, None) => Err(GroupError::Task(TaskError::Aborted)),
        };
        Ok(Ran { output, closed })
    }
}

/// Aborts the tasks of the scope and closes it.
struct AbortOnDrop(CloseOnDrop);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Tasks that fail together, in a scope of their own: see [`Scope::run_group`]. A clone is the same group.
pub struct Group<E> {
    scope: Scope,
    members: Arc<Members<E>>,
}

struct Members<E> {
    tasks: TaskTracker,
    /// The first failure.
    failure: Mutex<Option<GroupError<E>>>,
    failed: Arc<Signal>,
}

impl<E> Group<E> {
    /// Runs `future` on a task of the group, in its scope: see [`Scope::spawn`].
    ///
    /// If `future` fails or panics, so does the group. If the group has failed or ended already, `future` is dropped.
    pub fn spawn<T, F>(&self, future: F) -> GroupTask<T>
    where
        F: Future<Output = Result<T, E>> + Send + 'static,
        T: Send + 'static,
        E: Send + 'static,
    {
        let Self { scope, members } = self;
        if let Some(error) = scope.refuses_tasks() {
            members.fail(GroupError::Task(error));
            return GroupTask { task: None };
        }
        let mut member = InGroup { _token: members.tasks.token(), members: Arc::clone(members), is_over: false };
        let task = scope.spawn(async move {
            let outcome = unwound(future).await;
            member.is_over = true;
            let failure = match outcome {
                Ok(Ok(value)) => return Some(value),
                Ok(Err(error)) => GroupError::Failed(error),
                Err(panic) => GroupError::Task(TaskError::Panicked(Panic::new(panic))),
            };
            member.members.fail(failure);
            None
        });
        GroupTask { task: Some(task) }
    }

    /// The scope that the group runs in. Its other tasks are aborted with the group, but do not fail it.
    #[must_use]
    pub fn scope(&self) -> &Scope {
        &self.scope
    }
}

impl<E> Members<E> {
    /// Records the first failure, which ends the group.
    fn fail(&self, failure: GroupError<E>) {
        let mut first = self.failure.lock();
        if self.failed.is_given() {
            drop(first);
            return;
        }
        *first = Some(failure);
        self.failed.set();
        drop(first);
        self.failed.wake();
    }
}

impl<E> Default for Members<E> {
    fn default() -> Self {
        Self { tasks: TaskTracker::new(), failure: Mutex::default(), failed: Arc::default() }
    }
}

/// A task of the group. If it is dropped before its end, it was aborted from outside.
struct InGroup<E> {
    members: Arc<Members<E>>,
    is_over: bool,
    // The last field, so that the failure is recorded before the group stops waiting for the task.
    _token: TaskTrackerToken,
}

impl<E> Drop for InGroup<E> {
    fn drop(&mut self) {
        if !self.is_over {
            self.members.fail(GroupError::Task(TaskError::Aborted));
        }
    }
}

impl<E> Clone for Group<E> {
    fn clone(&self) -> Self {
        Self { scope: self.scope.clone(), members: Arc::clone(&self.members) }
    }
}

impl_debug!(Group<E> {
    scope,
    tasks = |this| this.members.tasks.len(),
    has_failed = |this| this.members.failed.is_given(),
});

/// The handle of a task that [`Group::spawn`] started: a future of its value.
///
/// Dropping the handle leaves the task running. If the task fails, the handle stays pending: the group fails, and drops
/// the body that awaits it.
#[must_use = "the group waits for the task, and its value is lost"]
pub struct GroupTask<T> {
    // `None` if the task was not started. The group fails then.
    task: Option<Task<Option<T>>>,
}

impl<T> Future for GroupTask<T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        let Some(task) = &mut self.task else { return Poll::Pending };
        match ready!(Pin::new(task).poll(cx)) {
            Ok(Some(value)) => Poll::Ready(value),
            Ok(None) | Err(_) => Poll::Pending,
        }
    }
}

impl_debug!(GroupTask<T> { value: T, .. });

/// The first failure of a [`Group`].
#[derive(Debug)]
pub enum GroupError<E> {
    /// A task or the body returned this error.
    Failed(E),
    /// A task panicked, was aborted from outside, or was not started.
    Task(TaskError),
}

impl<E: fmt::Display> fmt::Display for GroupError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Failed(error) => error.fmt(f),
            Self::Task(error) => error.fmt(f),
        }
    }
}

impl<E: Error> Error for GroupError<E> {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Failed(error) => error.source(),
            Self::Task(error) => error.source(),
        }
    }
}
