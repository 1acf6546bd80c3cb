//! Scopes: the state that belongs to a request, a batch, the whole program.
//!
//! A [`Scope`] holds values by their type, and a child scope sees what its parents hold. The
//! [`ContextLayer`](crate::context::ContextLayer) opens one for every request; [`Scope::within`] runs any future in one.
//!
//! ```
//! use ziggurat::Scope;
//!
//! #[derive(Debug, PartialEq)]
//! struct Tenant(&'static str);
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() {
//! let app = Scope::root("app").with(Tenant("nobody"));
//! let request = app.child("request").with(Tenant("acme"));
//!
//! request
//!     .within(async {
//!         let tenant = Scope::current().unwrap().get::<Tenant>().unwrap();
//!         assert_eq!(*tenant, Tenant("acme"));
//!     })
//!     .await;
//! assert_eq!(*app.get::<Tenant>().unwrap(), Tenant("nobody"));
//! # }
//! ```
//!
//! A scope can also own things: tasks ([`Scope::spawn`]), what was set up for it ([`Scope::disposable`]) and an event bus
//! ([`Scope::events`]). They end with it, at the latest when it is closed ([`Scope::close`]), and those within it before:
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
//! **When nobody closes it.** When the last handle of a scope is dropped, it is closed on a task of the runtime in
//! which it first owned something, wherever the handle is dropped. That is told in `tracing`, as a warning, if there
//! was something to close: nobody has heard how it ended. If that runtime is gone, the task runs in the one that is
//! there; without any tokio runtime tasks are aborted then, values are only dropped, and another warning names those
//! that were not torn down.
//!
//! # Where ambient state reaches
//!
//! The current scope ([`Scope::current`]), the deadline ([`Deadline::current`](crate::Deadline::current)), the number
//! of the attempt ([`attempt`](crate::attempt())) and a lent resource ([`resource::current`](crate::resource::current))
//! surround a *poll*:
//!
//! | code | sees them |
//! |---|---|
//! | a handler, a layer or a service inside of the layer that brings them, `join!` and `select!` in there, `Drop` | yes |
//! | a response body, where the layer lasts until its end | the scope: yes |
//! | a task of a scope ([`Scope::spawn`], [`Group::spawn`]) | its scope; see there for the deadline |
//! | a task of `tokio::spawn`, `spawn_local` or `spawn_blocking`, a thread | no: it takes what it needs along ([`Scope::within`]) |
//! | a task of a `LocalSet` that is driven inside a call | not the scope; the call's deadline and number, because it is polled within the call |
//! | a task of another executor that is driven inside a call | all of the call's: give it a scope of its own |
//!
//! **What it costs.** A scope that owns nothing is one allocation, and closing it one atomic operation.

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

pub use ending::{Ending, Work};
pub use error::{Panic, ScopeError, ScopeFailure, ScopeFailureKind};
pub use group::{Group, GroupError, GroupTask};
use life::{Life, Owned};
pub use opening::{Disposable, Opening, TornDown};
pub use run::{Ran, RunError};
use span::{EnteredSpan, Span};
use state::State;
pub use task::{Task, TaskError};

/// A set of values, each of its own type, that belongs to a piece of work. A clone is the same scope, and cheap.
///
/// What is logged through `tracing` while the scope is current stands in a span of its own, named `scope`, with its name and id.
///
/// A value is looked up by its exact type, from this scope outwards. Values are shared as [`Arc`]s: a reader keeps the one it
/// got, whole, while others replace it.
#[derive(Clone)]
pub struct Scope {
    inner: Arc<Inner>,
}

slot!(Option<Scope>, None);

struct Inner {
    name: Cow<'static, str>,
    /// The length of what [`Scope::path`] gives.
    path_len: usize,
    id: u64,
    parent: Option<Scope>,
    state: State,
    span: Span,
    /// Whether it has an event bus of its own.
    isolated: AtomicBool,
    /// Whether it ends with the request that a layer opened it for.
    ends_with_request: AtomicBool,
    life: OnceLock<Life>,
}

impl Scope {
    /// A scope without a parent.
    pub fn root(name: impl Into<Cow<'static, str>>) -> Self {
        Self::new(name.into(), None)
    }

    /// A scope that sees what this one holds.
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

    /// Puts a value into this scope, in place of one of the same type, and hides one that a parent holds.
    #[must_use]
    pub fn with<T: Send + Sync + 'static>(self, value: T) -> Self {
        self.inner.state.put(Arc::new(value));
        self
    }

    /// The name that the scope was given.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// A number that no other scope of this process has.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.inner.id
    }

    /// The scope that this one is a child of.
    #[must_use]
    pub fn parent(&self) -> Option<&Self> {
        self.inner.parent.as_ref()
    }

    /// This scope and its parents, from the inside out.
    fn outwards(&self) -> impl Iterator<Item = &Self> {
        std::iter::successors(Some(self), |scope| scope.parent())
    }

    /// The value of this type in the nearest scope that holds one.
    #[must_use]
    pub fn get<T: Send + Sync + 'static>(&self) -> Option<Arc<T>> {
        self.outwards().find_map(|scope| scope.inner.state.get())
    }

    /// The value of this type in the nearest scope that holds one.
    ///
    /// # Errors
    ///
    /// If there is none: the error names the type and this scope.
    pub fn require<T: Send + Sync + 'static>(&self) -> Result<Arc<T>, MissingState> {
        self.get().ok_or_else(|| MissingState { type_name: type_name::<T>(), scope: self.path() })
    }

    /// The value of this type in the nearest scope that holds one; if there is none, this scope gets the type's default.
    ///
    /// The default is made without holding a lock. Of two callers that make it at once, both get the one that was first.
    #[must_use]
    pub fn state<T: Default + Send + Sync + 'static>(&self) -> Arc<T> {
        self.get().unwrap_or_else(|| self.inner.state.put_if_absent(Arc::new(T::default())))
    }

    /// Replaces the value of this type, in the nearest scope that holds one, by what `change` makes of it; returns the new one.
    ///
    /// It is atomic: readers see the old value or the new one, whole, and no change is lost. `change` runs without a lock, and
    /// once more if somebody else changed the value meanwhile; so one that itself updates the same value never ends.
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

    /// The scope that the caller runs in: that of the request, in the handler, in every layer and service inside the
    /// [`ContextLayer`](crate::context::ContextLayer), in response bodies, and in the `Drop` of all these.
    ///
    /// Tasks of the scope ([`spawn`](Scope::spawn)) run in it too. One that is spawned otherwise has none, unless it was given one
    /// with [`within`](Scope::within): also not one of a `LocalSet` that is driven inside the call.
    #[must_use]
    pub fn current() -> Option<Self> {
        ambient::get::<Option<Self>>().filter(|_| ambient::are_of_this_task())
    }

    /// Runs `future` in this scope: it is the current one whenever the future is polled, and when it is dropped.
    pub fn within<F>(&self, future: F) -> WithScope<F> {
        WithScope { future: Some(future), scope: Some(self.clone()) }
    }

    /// Whether this is `other` or lies within it.
    #[must_use]
    pub fn is_within(&self, other: &Self) -> bool {
        self.outwards().any(|scope| scope.id() == other.id())
    }

    /// Runs `f` in this scope.
    pub fn enter<R>(&self, f: impl FnOnce() -> R) -> R {
        let mut scope = Some(self.clone());
        let _entered = enter(&mut scope);
        f()
    }

    /// Says whose request this is the scope of: in its state, and on its span.
    pub(crate) fn identify(&self, ids: RequestIds) {
        self.inner.span.identify(&ids);
        self.inner.state.put(Arc::new(ids));
    }

    /// What it owns. `None` if it was closed before it owned anything.
    fn owned(&self) -> Option<&Arc<Owned>> {
        if let Some(life) = self.inner.life.get() {
            return life.owned();
        }
        // From the outside in, and not each in the making of the one within: scopes may nest deeper than the stack is.
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

    /// The names from the outermost scope to this one, as `app/request`.
    fn path(&self) -> String {
        let mut names: Vec<_> = self.outwards().map(Self::name).collect();
        names.reverse();
        names.join("/")
    }
}

impl Inner {
    /// The last handle is gone. A scope that was not closed lives on, with all that it has, until it is. Answers the
    /// parent, which this handle kept.
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
        // One that had nothing to close is closed, and goes now.
        Arc::into_inner(scope.inner)?.parent.take()
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let mut parent = self.let_go();
        // One after the other, and not each in the drop of the one before: there may be more of them than the stack has
        // room for.
        while let Some(mut inner) = parent.and_then(|parent| Arc::into_inner(parent.inner)) {
            parent = inner.let_go();
        }
    }
}

impl fmt::Debug for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scope")
            .field("path", &self.path())
            .field("id", &self.inner.id)
            .field("state", &self.inner.state)
            .finish()
    }
}

/// As long as the guard lives, the scope that `scope` holds is the current one, and its span too.
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

/// The scope that was asked, and its parents, hold no value of the type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MissingState {
    type_name: &'static str,
    scope: String,
}

impl fmt::Display for MissingState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { type_name, scope } = self;
        write!(
            f,
            "the scope `{scope}` holds no `{type_name}`: give it one with `.with(..)`, or ask with `get` or `state`"
        )
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
            // One that has ended is dropped already, in its scope.
            if this.future.is_some() {
                let _entered = enter(this.scope);
                this.future.set(None);
            }
        }
    }
}

impl<F> WithScope<F> {
    /// Makes the future in the scope that it will run in.
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

impl<F> fmt::Debug for WithScope<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WithScope").field("scope", &self.scope).field("future", &type_name::<F>()).finish()
    }
}
