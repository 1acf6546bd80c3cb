//! Settings that change while a stack works.

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

use crate::{scope::Scope, setting::Setting};

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

    /// How long it is now.
    #[must_use]
    pub fn get(&self) -> Duration {
        match self.nanos.load(Ordering::Relaxed) {
            u64::MAX => Duration::MAX,
            nanos => Duration::from_nanos(nanos),
        }
    }
}

/// Above 584 years it is for ever.
fn nanos(duration: Duration) -> u64 {
    duration.as_nanos().try_into().unwrap_or(u64::MAX)
}

impl<Req> Setting<Req, Duration> for LiveDuration {
    fn get(&self, _: &Req) -> Option<Duration> {
        Some(self.get())
    }
}

/// Looks whether there are other settings, and takes them over.
pub(super) type Look = Arc<dyn Fn() + Send + Sync>;

/// Applies the settings that the scope holds, now and at each look after they have changed: they and the ones before them, so that what
/// was set by hand meanwhile stays unless its own field has changed.
pub(super) fn watching<T: Send + Sync + 'static>(
    scope: &Scope,
    apply: impl Fn(Option<&T>, &T) + Send + Sync + 'static,
) -> Look {
    let watch = scope.watch();
    let look = move || watch.look(&apply);
    look();
    Arc::new(look)
}

/// Whether the field is another one than before.
pub(super) fn differs<T, V: PartialEq>(before: Option<&T>, now: &T, field: impl Fn(&T) -> V) -> bool {
    before.map(&field) != Some(field(now))
}

/// The service of a stack: before each call it looks whether the settings have changed.
#[derive(Clone)]
pub struct Tuned<S> /* not a Service? see ziggurat::Reject, "It does not compile" */ {
    inner: S,
    look: Option<Look>,
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

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Req) -> S::Future {
        if let Some(look) = &self.look {
            look();
        }
        self.inner.call(request)
    }
}

impl<S: fmt::Debug> fmt::Debug for Tuned<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tuned").field("inner", &self.inner).field("live", &self.look.is_some()).finish()
    }
}
