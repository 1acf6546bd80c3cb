//! Settings that change while a stack is in use.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use tower_service::Service;

use crate::accessors::inner_accessors;
use crate::{debug::impl_debug, scope::Scope, setting::Setting};

/// A duration that can change between two calls: the limit of a stack's timeout.
#[derive(Debug, Clone)]
pub struct LiveDuration {
    nanos: Arc<AtomicU64>,
}

impl LiveDuration {
    pub(super) fn new(duration: Duration) -> Self {
        Self { nanos: Arc::new(AtomicU64::new(nanos(duration))) }
    }

    pub(super) fn set(&self, duration: Duration) {
        self.nanos.store(nanos(duration), Ordering::Relaxed);
    }

    /// Returns the current duration.
    #[must_use]
    pub fn get(&self) -> Duration {
        match self.nanos.load(Ordering::Relaxed) {
            u64::MAX => Duration::MAX,
            nanos => Duration::from_nanos(nanos),
        }
    }
}

/// More than 584 years count as unlimited.
fn nanos(duration: Duration) -> u64 {
    duration.as_nanos().try_into().unwrap_or(u64::MAX)
}

impl<Req> Setting<Req, Duration> for LiveDuration {
    fn get(&self, _: &Req) -> Option<Duration> {
        Some(self.get())
    }
}

/// Checks for changed settings, and applies them.
pub(super) type Look = Arc<dyn Fn() + Send + Sync>;

/// Applies the settings of the scope, now and whenever they have changed.
///
/// `apply` receives the previous settings and the new ones, so that a value that was set directly is kept until its own
/// field changes.
pub(super) fn watching<T: Send + Sync + 'static>(
    scope: &Scope,
    apply: impl Fn(Option<&T>, &T) + Send + Sync + 'static,
) -> Look {
    let watch = scope.watch();
    let look = move || watch.look(&apply);
    look();
    Arc::new(look)
}

/// The settings of a scope, and the parts of a stack that follow them.
#[derive(Clone)]
pub(super) struct Live {
    scope: Scope,
    look: Look,
}

impl Live {
    pub(super) fn new<T: Send + Sync + 'static>(
        scope: &Scope,
        apply: impl Fn(Option<&T>, &T) + Send + Sync + 'static,
    ) -> Self {
        Self { scope: scope.clone(), look: watching(scope, apply) }
    }

    /// Adds a part that follows the settings too.
    pub(super) fn and<T: Send + Sync + 'static>(self, apply: impl Fn(Option<&T>, &T) + Send + Sync + 'static) -> Self {
        let (before, also) = (self.look, watching(&self.scope, apply));
        let look = Arc::new(move || {
            before();
            also();
        });
        Self { scope: self.scope, look }
    }

    pub(super) fn look(&self) -> Look {
        Arc::clone(&self.look)
    }
}

/// Sets the field's value if it has changed.
pub(super) fn update<T, V: PartialEq>(before: Option<&T>, now: &T, field: impl Fn(&T) -> V, set: impl FnOnce(V)) {
    let value = field(now);
    if before.map(field).as_ref() != Some(&value) {
        set(value);
    }
}

/// The service of a recommended stack. Checks before each call whether the settings have changed.
#[derive(Clone)]
pub /* not a Service? see ziggurat::docs::it_does_not_compile */ struct Tuned<S> {
    inner: S,
    look: Option<Look>,
}

impl<S> Tuned<S> {
    inner_accessors!();
}

impl<S> Tuned<S> {
    pub(super) fn new(inner: S, look: Option<Look>) -> Self {
        Self { inner, look }
    }
}

impl<S: Service<Req>, Req> Service<Req> for Tuned<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    #[inline]
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    #[inline]
    fn call(&mut self, request: Req) -> S::Future {
        if let Some(look) = &self.look {
            look();
        }
        self.inner.call(request)
    }
}

impl_debug!(Tuned<S: fmt::Debug> { inner, live = |this| this.look.is_some() });
