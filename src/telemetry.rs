//! Telemetry: what somebody may want to know, told to `tracing` and to observers. Only this file names `tracing`.

use std::{fmt, sync::Arc, time::Duration};

use tracing::field::Empty;

use crate::{rejection::Rejection, wire::Identity};

/// What happened in a layer. More kinds may be added.
///
/// | event | level in `tracing` | fields there |
/// |---|---|---|
/// | [`Rejected`](Event::Rejected) | INFO | `rejection` |
/// | [`Retrying`](Event::Retrying) | INFO | `attempt`, `delay` |
/// | [`GaveUp`](Event::GaveUp) | WARN | `attempt`, `reason` |
/// | [`Transition`](Event::Transition) | WARN | `from`, `to` |
/// | [`Failed`](Event::Failed) | DEBUG | |
/// | [`NotRepeatable`](Event::NotRepeatable) | DEBUG | `reason` |
/// | all others | TRACE | |
///
/// The target in `tracing` is the layer's path, such as `ziggurat::timeout`; every event has the field `name`, the one that was
/// given with `.named(..)`.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub enum Event<'a> {
    /// The layer answered instead of the service.
    Rejected(&'a Rejection),
    /// An attempt failed, and another one will be made.
    Retrying {
        /// The number of the attempt that failed, from 1.
        attempt: u32,
        /// How long it is until the next one.
        delay: Duration,
    },
    /// An attempt failed with a failure that may be retried, and there will be no other.
    GaveUp {
        /// The number of the attempt that failed, from 1.
        attempt: u32,
        /// Why there is no other: `"attempts"`, `"budget"`, `"copy"`, `"deadline"` or `"retry_after"`.
        reason: &'static str,
    },
    /// A state changed.
    Transition {
        /// The state before.
        from: &'static str,
        /// The state now.
        to: &'static str,
    },
    /// A call counts as a failure of the service.
    Failed,
    /// The body of a request is not kept any longer while it is sent: this attempt goes on, and there can be no other.
    NotRepeatable {
        /// Why: `"size"`, it is larger than one may be, or `"total"`, all together are.
        reason: &'static str,
    },
    /// A call has to wait its turn.
    Queued,
    /// The answer came from memory.
    Hit,
    /// The answer was not in memory.
    Miss,
    /// The answer came from memory although it had expired.
    Stale,
    /// The answer came from another caller's call.
    Shared,
    /// An answer was put into memory.
    Stored,
}

/// Hears the events of the layers that it is attached to with `.observer(..)`. A closure is one too.
///
/// It is called where the event happens, inside a request's call or poll: it must not block.
///
/// ```
/// use std::sync::{Arc, atomic::{AtomicUsize, Ordering}};
/// use ziggurat::{Event, Site, timeout::TimeoutLayer};
///
/// let timeouts = Arc::new(AtomicUsize::new(0));
/// let counter = timeouts.clone();
/// let layer = TimeoutLayer::new(std::time::Duration::from_secs(1)).observer(move |_: &Site, event: &Event<'_>| {
///     if let Event::Rejected(_) = event {
///         counter.fetch_add(1, Ordering::Relaxed);
///     }
/// });
/// ```
pub trait Observer: Send + Sync + 'static {
    /// Something happened at `site`.
    fn event(&self, site: &Site, event: &Event<'_>);
}

impl<F> Observer for F
where
    F: Fn(&Site, &Event<'_>) + Send + Sync + 'static,
{
    fn event(&self, site: &Site, event: &Event<'_>) {
        self(site, event);
    }
}

/// Which layer something happened in: its kind, the name that it was given, and who listens.
///
/// Each layer value has one. A layer of your own makes it with [`Site::new`] and tells its events with [`Site::tell`].
#[derive(Clone)]
pub struct Site {
    layer: &'static str,
    name: Option<&'static str>,
    observer: Option<Arc<dyn Observer>>,
    trace: fn(&Site, &Event<'_>),
}

impl Site {
    /// The site of a layer of this kind: its module's name. Its events go to the target `ziggurat` of `tracing`.
    #[must_use]
    pub const fn new(layer: &'static str) -> Self {
        trace_to!("ziggurat");
        Self::with_trace(layer, trace)
    }

    pub(crate) const fn with_trace(layer: &'static str, trace: fn(&Site, &Event<'_>)) -> Self {
        Self { layer, name: None, observer: None, trace }
    }

    /// The same, with a name that tells this layer from others of its kind.
    #[must_use]
    pub fn named(mut self, name: &'static str) -> Self {
        self.name = Some(name);
        self
    }

    /// The same, with somebody who listens in place of who did before.
    #[must_use]
    pub fn observer(mut self, observer: impl Observer) -> Self {
        self.observer = Some(Arc::new(observer));
        self
    }

    /// The kind of layer: its module's name.
    #[must_use]
    pub fn layer(&self) -> &'static str {
        self.layer
    }

    /// The name that the layer was given.
    #[must_use]
    pub fn name(&self) -> Option<&'static str> {
        self.name
    }

    /// Tells the observer and `tracing` that this happened. Where nobody listens it costs two branches.
    pub fn tell(&self, event: Event<'_>) {
        if let Some(observer) = &self.observer {
            observer.event(self, &event);
        }
        (self.trace)(self, &event);
    }
}

impl fmt::Debug for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Site")
            .field("layer", &self.layer)
            .field("name", &self.name)
            .field("observed", &self.observer.is_some())
            .finish()
    }
}

/// The span of a scope in `tracing`, INFO, target `ziggurat::scope`: named `scope`, with the scope's `name` and `id`.
///
/// What is logged while the scope is current stands in it. It ends with the scope. That of a request whose identity is known has the
/// `request_id` too, and the `trace_id` if there is a trace.
#[derive(Clone)]
pub(crate) struct Span(tracing::Span);

impl Span {
    /// Within `parent`; without one, within whatever span is current.
    pub(crate) fn new(name: &str, id: u64, parent: Option<&Self>) -> Self {
        macro_rules! span {
            ($($parent:tt)*) => {
                tracing::info_span!(
                    target: "ziggurat::scope", $($parent)* "scope", name, id, request_id = Empty, trace_id = Empty
                )
            };
        }
        Self(match parent {
            Some(Self(parent)) => span!(parent: parent,),
            None => span!(),
        })
    }

    /// Whose request the scope is that of.
    pub(crate) fn identify(&self, identity: &Identity) {
        if self.0.is_disabled() {
            return;
        }
        self.0.record("request_id", identity.request_id().as_str());
        if let Some(trace) = identity.trace() {
            self.0.record("trace_id", trace.trace_id());
        }
    }

    /// It is current for as long as the guard lives.
    pub(crate) fn enter(&self) -> EnteredSpan {
        EnteredSpan(self.0.clone().entered())
    }
}

/// The guard of [`Span::enter`].
pub(crate) struct EnteredSpan(#[expect(dead_code, reason = "it is there to be dropped")] tracing::span::EnteredSpan);

/// Defines `fn trace(&Site, &Event)` with this target: a target of `tracing` has to be a constant at each place.
macro_rules! trace_to {
    ($target:expr) => {
        fn trace(site: &$crate::telemetry::Site, event: &$crate::telemetry::Event<'_>) {
            use $crate::telemetry::Event;
            let name = site.name();
            match event {
                Event::Rejected(rejection) => {
                    tracing::info!(target: $target, name, %rejection, "rejected");
                }
                Event::Retrying { attempt, delay } => {
                    tracing::info!(target: $target, name, attempt, ?delay, "retrying");
                }
                Event::GaveUp { attempt, reason } => {
                    tracing::warn!(target: $target, name, attempt, reason, "gave up");
                }
                Event::Transition { from, to } => {
                    tracing::warn!(target: $target, name, from, to, "transition");
                }
                Event::Failed => tracing::debug!(target: $target, name, "failed"),
                Event::NotRepeatable { reason } => {
                    tracing::debug!(target: $target, name, reason, "not repeatable");
                }
                Event::Queued => tracing::trace!(target: $target, name, "queued"),
                Event::Hit => tracing::trace!(target: $target, name, "hit"),
                Event::Miss => tracing::trace!(target: $target, name, "miss"),
                Event::Stale => tracing::trace!(target: $target, name, "stale"),
                Event::Shared => tracing::trace!(target: $target, name, "shared"),
                Event::Stored => tracing::trace!(target: $target, name, "stored"),
            }
        }
    };
}

/// The [`Site`] of one of this crate's layers, with the target `ziggurat::<layer>`.
macro_rules! site {
    ($layer:literal) => {{
        $crate::telemetry::trace_to!(concat!("ziggurat::", $layer));
        $crate::telemetry::Site::with_trace($layer, trace)
    }};
}

/// The two setters that every layer has, for a layer with a field `site`, or with one at the path that is given.
macro_rules! site_setters {
    () => {
        $crate::telemetry::site_setters!(site);
    };
    ($($site:ident).+) => {
        /// Gives this layer a name, which its rejections and events carry.
        pub fn named(mut self, name: &'static str) -> Self {
            self.$($site).+ = self.$($site).+.named(name);
            self
        }

        /// Attaches somebody who hears this layer's events; one that was attached before hears them no more.
        pub fn observer(mut self, observer: impl $crate::Observer) -> Self {
            self.$($site).+ = self.$($site).+.observer(observer);
            self
        }
    };
}

pub(crate) use {site, site_setters, trace_to};
