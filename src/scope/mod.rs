//! Scopes: typed state, tasks and resources that belong to a request, a batch or the whole program.
//!
//! A [`Scope`] holds values by type, and a child scope sees the values of its parents. The
//! [`ContextLayer`](crate::context::ContextLayer) opens a scope for every request. [`Scope::within`] runs any future in
//! a scope.
//!
//! ```
//! use ziggurat::Scope;
//!
//! #[derive(Debug, PartialEq)]
//! struct Tenant(&'static str);
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() {
//! let app = Scope::root("app").with(Tenant("none"));
//! let request = app.child("request").with(Tenant("acme"));
//!
//! request
//!     .within(async {
//!         let tenant = Scope::current().unwrap().get::<Tenant>().unwrap();
//!         assert_eq!(*tenant, Tenant("acme"));
//!     })
//!     .await;
//! assert_eq!(*app.get::<Tenant>().unwrap(), Tenant("none"));
//! # }
//! ```
//!
//! A scope can also own tasks ([`Scope::spawn`]), values with a set-up and a tear-down ([`Scope::disposable`]), and an
//! event bus ([`Scope::events`]). Closing the scope ([`Scope::close`]) ends them all, after those of its child scopes:
//!
//! ```
//! use std::{io, sync::Arc, time::Duration};
//! use ziggurat::{Scope, scope::Disposable};
//!
//! struct Pool;
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let app = Scope::root("app")
//!     .grace(Duration::from_secs(2))
//!     .disposable(Disposable::new(
//!         async |_: Scope| Ok::<_, io::Error>(Pool),          // set up when it is opened
//!         async |_: Arc<Pool>| println!("the pool is closed"), // torn down when it is closed
//!     ))
//!     .open()
//!     .await?;
//!
//! let worker = app.spawn(async { Scope::current().unwrap().get::<Pool>().is_some() });
//! assert!(worker.await?);
//! app.close().await?;
//! # Ok(())
//! # }
//! ```
//!
//! # Scopes that are not closed
//!
//! When the last handle of a scope is dropped, the scope is closed on a task of the runtime in which it first owned
//! something. If there was something to close, `tracing` reports it as a warning, because the result of the closing is
//! lost. If that runtime has been shut down, the task runs on the current one. Without any tokio runtime, tasks are
//! aborted and values are dropped without their tear-down. Another warning names those values.
//!
//! # Where ambient state reaches
//!
//! Ambient state is set around each *poll*. It consists of the current scope ([`Scope::current`]), the deadline
//! ([`Deadline::current`](crate::Deadline::current)), the number of the attempt ([`attempt`](crate::attempt())) and a
//! lent resource ([`resource::current`](crate::resource::current)):
//!
//! | code | sees it |
//! |---|---|
//! | a handler, layer or service inside the layer that sets it, `join!` and `select!` in there, `Drop` | yes |
//! | a response body, if the layer lasts until its end | the scope |
//! | a task of a scope ([`Scope::spawn`], [`Group::spawn`]) | its scope; for the deadline, see `spawn` |
//! | a task of `tokio::spawn`, `spawn_local` or `spawn_blocking`, a thread | no: pass it on with [`Scope::within`] |
//! | a task of a `LocalSet` that is driven inside a call | the call's deadline and attempt, but not its scope |
//! | a task of another executor that is driven inside a call | all of the call's state; give it a scope of its own |
//!
//! # Cost
//!
//! A scope that owns nothing is one allocation, and closing it is one atomic operation.

use std::{
    any::type_name,
    borrow::Cow,
    error::Error,
    fmt,
    future::Future,
    mem,
    pin::Pin,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
};

use pin_project_lite::pin_project;

use crate::{
    ambient::{self, slot},
    debug::impl_debug,
    headers::RequestIds,
};

mod background;
mod catch;
mod closing;
mod ending;
mod error;
mod events;
mod group;
mod life;
mod opening;
mod run;
mod span;
mod state;
mod task;
mod tear_down;
mod watch;

pub(crate) use background::behind;
pub use ending::{Ending, Work};
pub use error::{Panic, ScopeError, ScopeFailure, ScopeFailureKind};
pub use group::{Group, GroupError, GroupTask};
use life::{Life, Owned};
pub use opening::{Disposable, Opening, TornDown};
pub use run::{Ran, RunError};
use span::{EnteredSpan, Span};
use state::State;
pub use task::{Task, TaskError};

/// A set of values, one for each type, that belongs to a piece of work. A clone is the same scope, and cheap.
///
/// While the scope is current, `tracing` events are recorded in its span, which is named `scope` and has the scope's
/// name and id.
///
/// A value is looked up by its exact type, from this scope outwards. Values are shared as [`Arc`]s: a reader keeps the
/// value that it got, even if it is replaced meanwhile.
#[derive(Clone)]
pub struct Scope {
    inner: Arc<Inner>,
}

slot!(Option<Scope>, None);

struct Inner {
    name: Cow<'static, str>,
    /// The length of the string that [`Scope::path`] returns.
    path_len: usize,
    id: u64,
    parent: Option<Scope>,
    state: State,
    span: Span,
    /// Whether the scope has an event bus of its own.
    isolated: AtomicBool,
    /// Whether the scope ends with the request that a layer opened it for.
    ends_with_request: AtomicBool,
    life: OnceLock<Life>,
}

impl Scope {
    /// Creates a scope without a parent.
    pub fn root(name: impl Into<Cow<'static, str>>) -> Self {
        Self::new(name.into(), None)
    }

    /// Creates a child scope, which sees the values of this one.
    pub fn child(&self, name: impl Into<Cow<'static, str>>) -> Self {
        Self::new(name.into(), Some(self.clone()))
    }

    fn new(name: Cow<'static, str>, parent: Option<Self>) -> Self {
        static NEXT_ID: AtomicU64 = AtomicU64::new(1);
        let id = NEXT_ID.fetch_add(1, Ordering::Relaxed);
        let span = Span::new(&name, id, parent.as_ref().map(|parent| &parent.inner.span));
        let path_len = parent.as_ref().map_or(0, |parent| parent.inner.path_len + "/".len()) + name.len();
        let (state, life) = (State::default(), OnceLock::new());
        let [isolated, ends_with_request] = [false; 2].map(AtomicBool::new);
        let inner = Inner { name, path_len, id, parent, state, span, isolated, ends_with_request, life };
        Self { inner: Arc::new(inner) }
    }

    /// Stores a value in this scope. It replaces a value of the same type, and hides one of a parent.
    #[must_use]
    pub fn with<T: Send + Sync + 'static>(self, value: T) -> Self {
        self.inner.state.put(Arc::new(value));
        self
    }

    /// The name of the scope.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// A number that is unique in this process.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.inner.id
    }

    /// The parent of this scope.
    #[must_use]
    pub fn parent(&self) -> Option<&Self> {
        self.inner.parent.as_ref()
    }

    /// This scope and its parents, innermost first.
    fn outwards(&self) -> impl Iterator<Item = &Self> {
        std::iter::successors(Some(self), |scope| scope.parent())
    }

    /// Returns the value of type `T` from the nearest scope that holds one.
    #[must_use]
    pub fn get<T: Send + Sync + 'static>(&self) -> Option<Arc<T>> {
        self.outwards().find_map(|scope| scope.inner.state.get())
    }

    /// Returns the value of type `T` from the nearest scope that holds one, or an error.
    ///
    /// # Errors
    ///
    /// If no scope holds one. The error names the type and this scope.
    pub fn require<T: Send + Sync + 'static>(&self) -> Result<Arc<T>, MissingState> {
        self.get().ok_or_else(|| MissingState { type_name: type_name::<T>(), scope: self.path() })
    }

    /// Returns the value of type `T` from the nearest scope that holds one. If there is none, stores the type's default
    /// in this scope.
    ///
    /// The default is created without holding a lock. If two callers create it at once, both get the value that was
    /// stored first.
    #[must_use]
    pub fn state<T: Default + Send + Sync + 'static>(&self) -> Arc<T> {
        self.get().unwrap_or_else(|| self.inner.state.put_if_absent(Arc::new(T::default())))
    }

    /// Replaces the value of type `T`, in the nearest scope that holds one, by the result of `change`, and returns the
    /// new value.
    ///
    /// The update is atomic: readers see the old value or the new one, and no update is lost. `change` runs without a
    /// lock, and runs again if another caller has replaced the value meanwhile. A `change` that updates the same value
    /// itself therefore never ends.
    ///
    /// # Errors
    ///
    /// If no scope holds a value of this type.
    pub fn update<T: Send + Sync + 'static>(&self, change: impl Fn(&T) -> T) -> Result<Arc<T>, MissingState> {
        loop {
            let holder = self.outwards().find_map(|scope| {
                let old = scope.inner.state.get::<T>()?;
                Some((scope, old))
            });
            let Some((scope, old)) = holder else {
                return self.require();
            };
            let new = Arc::new(change(&old));
            if scope.inner.state.replace(&old, Arc::clone(&new)) {
                return Ok(new);
            }
        }
    }

    /// Returns the scope that the caller runs in.
    ///
    /// In the handler of a request, in every layer and service inside the
    /// [`ContextLayer`](crate::context::ContextLayer), in response bodies, and in the `Drop` of all these, it is the
    /// scope of the request. Tasks of the scope ([`spawn`](Scope::spawn)) run in it too. Any other task has no scope,
    /// unless it is given one with [`within`](Scope::within). That includes a task of a `LocalSet` that is driven
    /// inside the call.
    #[must_use]
    pub fn current() -> Option<Self> {
        ambient::get::<Option<Self>>().filter(|_| ambient::are_of_this_task())
    }

    /// Runs `future` in this scope, which is current whenever the future is polled, and when it is dropped.
    pub fn within<F>(&self, future: F) -> WithScope<F> {
        WithScope { future: Some(future), scope: Some(self.clone()) }
    }

    /// Whether this scope is `other` or inside it.
    #[must_use]
    pub fn is_within(&self, other: &Self) -> bool {
        self.outwards().any(|scope| scope.id() == other.id())
    }

    /// Calls `f` in this scope.
    #[inline]
    pub fn enter<R>(&self, f: impl FnOnce() -> R) -> R {
        let mut scope = Some(self.clone());
        let _entered = enter(&mut scope);
        f()
    }

    /// Stores the ids of the request that this scope belongs to, and records them on its span.
    pub(crate) fn identify(&self, ids: RequestIds) {
        self.inner.span.identify(&ids);
        self.inner.state.put(Arc::new(ids));
    }

    /// Returns the owned part of the scope, or `None` if it was closed before it owned anything.
    fn owned(&self) -> Option<&Arc<Owned>> {
        if let Some(life) = self.inner.life.get() {
            return life.owned();
        }
        // From the outside in, without recursion: scopes may nest deeper than the stack.
        let new: Vec<_> = self.outwards().take_while(|scope| scope.inner.life.get().is_none()).collect();
        for scope in new.into_iter().rev() {
            scope.inner.life.get_or_init(|| match scope.parent().map(|parent| parent.inner.life.get()) {
                None => Life::Owns(Owned::new(scope)),
                Some(Some(Life::Owns(parent))) => Life::Owns(parent.child(scope)),
                Some(_) => Life::Closed,
            });
        }
        self.inner.life.get().and_then(Life::owned)
    }

    /// The names from the outermost scope to this one, such as `app/request`.
    fn path(&self) -> String {
        let mut names: Vec<_> = self.outwards().map(Self::name).collect();
        names.reverse();
        names.join("/")
    }
}

impl Inner {
    /// Called when the last handle is dropped. A scope that is not closed yet lives on, with all its parts, until it
    /// is. Returns the parent, which this handle kept alive.
    fn let_go(&mut self) -> Option<Scope> {
        let Some(Life::Owns(owned)) = self.life.take().filter(Life::is_open) else { return self.parent.take() };
        let inner = Self {
            name: mem::take(&mut self.name),
            path_len: self.path_len,
            id: self.id,
            parent: self.parent.take(),
            state: mem::take(&mut self.state),
            span: self.span.clone(),
            isolated: mem::take(&mut self.isolated),
            ends_with_request: mem::take(&mut self.ends_with_request),
            life: OnceLock::from(Life::Owns(Arc::clone(&owned))),
        };
        let scope = Scope { inner: Arc::new(inner) };
        owned.lives_on_as(&scope);
        if !owned.is_idle() {
            scope.inner.span.dropped_open(&scope.path());
        }
        scope.end(Ending::of_what_is_dropped());
        // If there was nothing to close, the scope is closed already and is dropped now.
        Arc::into_inner(scope.inner)?.parent.take()
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let mut parent = self.let_go();
        // Without recursion: there may be more parents than the stack has room for.
        while let Some(mut inner) = parent.and_then(|parent| Arc::into_inner(parent.inner)) {
            parent = inner.let_go();
        }
    }
}

impl_debug!(Scope { path = |this| this.path(), id = |this| this.inner.id, state = |this| &this.inner.state });

/// Makes the scope in `scope`, and its span, current for as long as the guard lives.
#[inline]
pub(crate) fn enter(scope: &mut Option<Scope>) -> Entered<'_> {
    let span = scope.as_ref().map(|scope| scope.inner.span.enter());
    Entered { _span: span, _task: ambient::enter_task(), _ambient: ambient::enter(scope) }
}

/// The guard of [`enter`].
pub(crate) struct Entered<'a> {
    _span: Option<EnteredSpan>,
    _task: ambient::EnteredTask,
    _ambient: ambient::Entered<'a, Option<Scope>>,
}

/// The error if neither a scope nor its parents hold a value of the requested type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MissingState {
    type_name: &'static str,
    scope: String,
}

impl fmt::Display for MissingState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { type_name, scope } = self;
        write!(f, "the scope `{scope}` holds no `{type_name}`: add one with `.with(..)`, or use `get` or `state`")
    }
}

impl Error for MissingState {}

pin_project! {
    /// The future of [`Scope::within`].
    #[must_use = "futures do nothing unless polled"]
    pub struct WithScope<F> {
        #[pin]
        future: Option<F>,
        scope: Option<Scope>,
    }

    impl<F> PinnedDrop for WithScope<F> {
        fn drop(this: Pin<&mut Self>) {
            let mut this = this.project();
            // A future that has completed was dropped then, in its scope.
            if this.future.is_some() {
                let _entered = enter(this.scope);
                this.future.set(None);
            }
        }
    }
}

impl<F> WithScope<F> {
    /// Creates the future within the scope that it will run in.
    #[inline]
    pub(crate) fn start(scope: Scope, make: impl FnOnce() -> F) -> Self {
        let mut scope = Some(scope);
        let future = {
            let _entered = enter(&mut scope);
            make()
        };
        Self { future: Some(future), scope }
    }
}

impl<F: Future> Future for WithScope<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let mut this = self.project();
        let _entered = enter(this.scope);
        let Some(future) = this.future.as_mut().as_pin_mut() else { return Poll::Pending };
        let output = ready!(future.poll(cx));
        this.future.set(None);
        Poll::Ready(output)
    }
}

impl_debug!(WithScope<F> { scope, future: F });
