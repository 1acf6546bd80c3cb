//! Setting up the values that a scope owns.

use std::{
    any::type_name,
    fmt,
    future::{Future, poll_fn},
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures_util::stream::{FuturesUnordered, StreamExt};

use super::{
    Ending, Scope,
    catch::{self, BoxFuture},
    closing::CloseOnDrop,
    error::{BoxError, ScopeError, ScopeFailure, ScopeFailureKind},
    life::Owned,
    tear_down::TearDown,
};
use crate::ambient::Deadline;

/// A value that a scope sets up when it opens, holds in its state, and tears down when it closes: a pool, a file, a
/// lock.
///
/// ```
/// use std::{error::Error, io, sync::Arc};
/// use ziggurat::{Scope, scope::Disposable};
///
/// # struct Pool;
/// # impl Pool {
/// #     async fn connect(_: &str) -> io::Result<Self> { Ok(Self) }
/// #     async fn close(&self) -> io::Result<()> { Ok(()) }
/// # }
/// struct Config { url: String }
///
/// fn pool() -> Disposable {
///     Disposable::new(
///         async |scope: Scope| -> Result<_, Box<dyn Error + Send + Sync>> {
///             let config = scope.require::<Config>()?;
///             Ok(Pool::connect(&config.url).await?)
///         },
///         async |pool: Arc<Pool>| pool.close().await,
///     )
/// }
///
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// let config = Config { url: "db.example".to_owned() };
/// let app = Scope::root("app").with(config).disposable(pool()).open().await.unwrap();
/// assert!(app.get::<Pool>().is_some());
/// app.close().await.unwrap();
/// # }
/// ```
#[must_use = "it does nothing until a scope is opened with it"]
pub struct Disposable {
    type_name: &'static str,
    set_up: Box<dyn FnOnce(Scope) -> BoxFuture<Result<TearDown, BoxError>> + Send>,
}

impl Disposable {
    /// Creates a value with `set_up`, and undoes it with `tear_down`.
    ///
    /// Both run on tasks of the scope, with the scope as the current one. `set_up` also receives the scope, which by
    /// then holds the values that were set up before. If the opening ends early, the future of `set_up` is dropped.
    ///
    /// `tear_down` is called once if `set_up` succeeded, and not at all otherwise. It runs to its end: closing does not
    /// limit it, so add a timeout of your own if it might hang. It returns `()` or a `Result<(), E>`. A panic of either
    /// function counts as its error.
    pub fn new<T, S, D, E>(
        set_up: impl FnOnce(Scope) -> S + Send + 'static,
        tear_down: impl FnOnce(Arc<T>) -> D + Send + 'static,
    ) -> Self
    where
        T: Send + Sync + 'static,
        S: Future<Output = Result<T, E>> + Send,
        D: Future<Output: TornDown> + Send,
        E: Into<BoxError>,
    {
        Self::with_ending(set_up, |value, _| tear_down(value))
    }

    /// Creates a value with `set_up`, and undoes it with `tear_down`, which also receives how the work ended: for a
    /// transaction.
    ///
    /// Otherwise it behaves as [`new`](Self::new).
    ///
    /// ```
    /// use std::{io, sync::Arc};
    /// use ziggurat::{Scope, scope::{Disposable, Ending}};
    ///
    /// # struct Transaction;
    /// # impl Transaction {
    /// #     async fn begin() -> io::Result<Self> { Ok(Self) }
    /// #     async fn commit(&self) -> io::Result<()> { panic!("the work failed") }
    /// #     async fn roll_back(&self) -> io::Result<()> { Ok(()) }
    /// # }
    /// # #[tokio::main(flavor = "current_thread")] async fn main() {
    /// let transaction = Disposable::with_ending(
    ///     async |_: Scope| Transaction::begin().await,
    ///     async |transaction: Arc<Transaction>, ending: Ending| match ending {
    ///         Ending::Completed => transaction.commit().await,
    ///         _ => transaction.roll_back().await,
    ///     },
    /// );
    /// let ran = Scope::root("order")
    ///     .disposable(transaction)
    ///     .run(async |_: Scope| Err::<(), _>("out of stock"))
    ///     .await
    ///     .unwrap();
    /// assert!(ran.into_result().is_err()); // and it is rolled back
    /// # }
    /// ```
    pub fn with_ending<T, S, D, E>(
        set_up: impl FnOnce(Scope) -> S + Send + 'static,
        tear_down: impl FnOnce(Arc<T>, Ending) -> D + Send + 'static,
    ) -> Self
    where
        T: Send + Sync + 'static,
        S: Future<Output = Result<T, E>> + Send,
        D: Future<Output: TornDown> + Send,
        E: Into<BoxError>,
    {
        let set_up = move |scope: Scope| -> BoxFuture<Result<TearDown, BoxError>> {
            Box::pin(async move {
                let value = Arc::new(set_up(scope.clone()).await.map_err(Into::into)?);
                let undone = Arc::clone(&value);
                let run = move |ending| -> BoxFuture<Result<(), BoxError>> {
                    Box::pin(async move { tear_down(undone, ending).await.into_result() })
                };
                // A value that this one replaces may panic when it is dropped, and that must not fail the set-up.
                catch::run(|| scope.inner.state.provide(value));
                Ok(TearDown::new::<T>(run))
            })
        };
        Self { type_name: type_name::<T>(), set_up: Box::new(set_up) }
    }
}

impl fmt::Debug for Disposable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Disposable").field(&self.type_name).finish()
    }
}

/// The return type of a tear-down: `()`, or a `Result<(), E>`.
#[diagnostic::on_unimplemented(
    message = "a tear-down returns `()` or a `Result<(), E>`, and this one returns `{Self}`",
    note = "`E` has to implement `Into<Box<dyn Error + Send + Sync>>`"
)]
#[doc(hidden)] // `()` or `Result`, as `Disposable::new` says
pub trait TornDown {
    #[doc(hidden)]
    fn into_result(self) -> Result<(), BoxError>;
}

impl TornDown for () {
    fn into_result(self) -> Result<(), BoxError> {
        Ok(())
    }
}

impl<E: Into<BoxError>> TornDown for Result<(), E> {
    fn into_result(self) -> Result<(), BoxError> {
        self.map_err(Into::into)
    }
}

impl Scope {
    /// Adds a value to set up when the scope is [opened](Opening::open).
    pub fn disposable(self, disposable: Disposable) -> Opening {
        self.disposables([disposable])
    }

    /// Adds several values, which are set up concurrently when the scope is [opened](Opening::open).
    pub fn disposables(self, disposables: impl IntoIterator<Item = Disposable>) -> Opening {
        Opening { scope: self, stages: Vec::new() }.disposables(disposables)
    }
}

/// A scope that is not open yet, with the values to set up.
#[derive(Debug)]
#[must_use = "nothing is set up before `open` or `run` is awaited"]
pub struct Opening {
    scope: Scope,
    stages: Vec<Vec<Disposable>>,
}

impl Opening {
    pub(super) fn nothing(scope: Scope) -> Self {
        Self { scope, stages: Vec::new() }
    }

    /// Stores a value in the scope: see [`Scope::with`]. It takes precedence over a value of the same type that is set
    /// up.
    pub fn with<T: Send + Sync + 'static>(mut self, value: T) -> Self {
        self.scope = self.scope.with(value);
        self
    }

    /// Sets how long tasks may run on when the scope is closed: see [`Scope::grace`].
    pub fn grace(mut self, grace: Duration) -> Self {
        self.scope = self.scope.grace(grace);
        self
    }

    /// Adds a value to set up, after those that were added before.
    pub fn disposable(self, disposable: Disposable) -> Self {
        self.disposables([disposable])
    }

    /// Adds several values, which are set up concurrently, after those that were added before.
    pub fn disposables(mut self, disposables: impl IntoIterator<Item = Disposable>) -> Self {
        self.stages.push(disposables.into_iter().collect());
        self
    }

    /// Sets up all values, in order.
    ///
    /// If a set-up fails, or the scope is closed meanwhile, the set-ups that are still running are dropped. The values
    /// that were set up are torn down in reverse order, and the scope is closed. If this future is dropped, the same
    /// happens on a task.
    ///
    /// # Errors
    ///
    /// The failure of the set-up, followed by the failures of tear-downs. Also if there is a value to set up and no
    /// tokio runtime.
    pub async fn open(self) -> Result<Scope, ScopeError> {
        let Self { scope, stages } = self;
        if stages.iter().all(Vec::is_empty) && !scope.is_cancelled() {
            return Ok(scope);
        }
        let refused = |kind| Err(ScopeError::one(&scope, kind));
        let admitted = scope.owned().and_then(|owned| Some((owned, owned.admit()?)));
        let Some((owned, token)) = admitted else { return refused(ScopeFailureKind::Closed) };
        let Some(runtime) = owned.runtime() else { return refused(ScopeFailureKind::NoRuntime) };

        // On a task of the scope, so that closing the scope ends it even if this future is not polled.
        let set_up = {
            let (within, owned) = (scope.clone(), Arc::clone(owned));
            async move {
                let outcome = set_up_all(&within, &owned, stages).await;
                drop(token);
                outcome
            }
        };
        let set_up = scope.within(set_up);
        let mut unless_open = CloseOnDrop::new(&scope);
        let outcome = match Deadline::current() {
            Some(deadline) => runtime.spawn(deadline.within(set_up)),
            None => runtime.spawn(set_up),
        };
        // Panics inside are caught. Otherwise the task fails only if its runtime is shut down.
        let mut faults = outcome.await.unwrap_or_else(|_| vec![ScopeFailureKind::NoRuntime]);
        if faults.is_empty() && owned.told.is_given() {
            faults.push(ScopeFailureKind::Closed);
        }
        unless_open.defuse();
        if faults.is_empty() {
            return Ok(scope);
        }
        let path = scope.path();
        let mut faults: Vec<_> = faults.into_iter().map(|kind| ScopeFailure::new(&path, kind)).collect();
        owned.ended(Ending::Failed);
        if let Err(error) = scope.close().await {
            faults.extend_from_slice(error.faults());
        }
        ScopeError::of(&scope, faults).map_or(Ok(scope), Err)
    }
}

/// Sets up one stage after the other, and returns the failures.
async fn set_up_all(scope: &Scope, owned: &Owned, stages: Vec<Vec<Disposable>>) -> Vec<ScopeFailureKind> {
    let mut told = pin!(owned.told.wait());
    for stage in stages {
        if owned.told.is_given() {
            return vec![ScopeFailureKind::Closed];
        }
        // Each future is polled only when it is woken.
        let mut pending: FuturesUnordered<_> =
            stage.into_iter().map(|disposable| SetUp::new(disposable, scope)).collect();
        let mut faults = poll_fn(|cx| {
            let mut faults = Vec::new();
            while let Poll::Ready(Some((type_name, outcome))) = pending.poll_next_unpin(cx) {
                match outcome {
                    Ok(tear_down) => owned.undo_later(tear_down),
                    Err(error) => faults.push(ScopeFailureKind::set_up(type_name, error)),
                }
            }
            if !faults.is_empty() || pending.is_empty() {
                return Poll::Ready(faults);
            }
            told.as_mut().poll(cx).map(|()| vec![ScopeFailureKind::Closed])
        })
        .await;
        for set_up in &mut pending {
            let panicked = catch::discard(set_up.future.take());
            faults.extend(panicked.map(|panic| ScopeFailureKind::set_up(set_up.type_name, panic.into())));
        }
        if !faults.is_empty() {
            return faults;
        }
    }
    Vec::new()
}

/// A value that is being set up.
struct SetUp {
    type_name: &'static str,
    // `None` once it has ended.
    future: Option<BoxFuture<Result<TearDown, BoxError>>>,
}

impl SetUp {
    fn new(Disposable { type_name, set_up }: Disposable, scope: &Scope) -> Self {
        let scope = scope.clone();
        Self { type_name, future: Some(Box::pin(async move { set_up(scope).await })) }
    }
}

impl Future for SetUp {
    type Output = (&'static str, Result<TearDown, BoxError>);

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let type_name = self.type_name;
        catch::poll(&mut self.future, cx).map(|outcome| (type_name, outcome))
    }
}
