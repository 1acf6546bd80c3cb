//! The identity of a layer in telemetry, and its observers.

use std::{borrow::Cow, fmt, sync::Arc, time::Duration};

#[cfg(feature = "metrics")]
use super::metrics;
use super::{LayerEvent, trace::trace_to};
use crate::{
    name::Name,
    outcome::{Class, Reason, Reject, Rejection},
};

/// Receives the events of the layers that it is attached to with `.observer(..)`. A closure is an observer too.
///
/// An observer runs where the event happens: inside a request's call or poll, or while a future or body is dropped. It
/// must not block, and it must not panic. Futures that are dropped during a panic emit events too, and a second panic
/// there aborts the program.
///
/// ```
/// use std::{sync::{Arc, atomic::{AtomicUsize, Ordering}}, time::Duration};
/// use ziggurat::{LayerEvent, LayerInfo, timeout::TimeoutLayer};
///
/// let timeouts = Arc::new(AtomicUsize::new(0));
/// let counter = timeouts.clone();
/// let layer = TimeoutLayer::new(Duration::from_secs(1)).observer(move |_: &LayerInfo, event: &LayerEvent<'_>| {
///     if let LayerEvent::Rejected(_) = event {
///         counter.fetch_add(1, Ordering::Relaxed);
///     }
/// });
/// ```
pub trait Observer: Send + Sync + 'static {
    /// Called for each event of a layer.
    fn on_event(&self, info: &LayerInfo, event: &LayerEvent<'_>);
}

impl<F> Observer for F
where
    F: Fn(&LayerInfo, &LayerEvent<'_>) + Send + Sync + 'static,
{
    fn on_event(&self, info: &LayerInfo, event: &LayerEvent<'_>) {
        self(info, event);
    }
}

/// Describes a layer for observers, logs and metrics: the layer's kind, its name, and its observers.
///
/// Each layer value has its own. Your own layer creates one with [`LayerInfo::new`], emits its events with
/// [`LayerInfo::emit`], and rejects calls with [`LayerInfo::reject`].
#[derive(Clone)]
pub struct LayerInfo {
    layer: &'static str,
    given: Given,
    trace: Trace,
    #[cfg(feature = "metrics")]
    counters: metrics::Counters,
}

/// Emits an event of a layer to `tracing`.
type Trace = fn(&LayerInfo, &LayerEvent<'_>);

/// The user's settings of a layer: its name and observers. A call may clone it, so the common case is a copy of two
/// words.
#[derive(Clone)]
enum Given {
    Name(&'static str),
    Shared(Arc<Shared>),
}

#[derive(Clone)]
struct Shared {
    name: Name,
    observers: Vec<Arc<dyn Observer>>,
}

impl Given {
    fn with(self, change: impl FnOnce(&mut Shared)) -> Self {
        let mut shared = match self {
            Self::Name(name) => Arc::new(Shared { name: Name::Static(name), observers: Vec::new() }),
            Self::Shared(shared) => shared,
        };
        change(Arc::make_mut(&mut shared));
        Self::Shared(shared)
    }

    fn named(self, name: Cow<'static, str>) -> Self {
        match (self, name) {
            (Self::Name(_), Cow::Borrowed(name)) => Self::Name(name),
            (given, name) => given.with(|shared| shared.name = Name::new(name)),
        }
    }

    fn name(&self) -> Name {
        match self {
            Self::Name(name) => Name::Static(name),
            Self::Shared(shared) => shared.name.clone(),
        }
    }

    fn observers(&self) -> &[Arc<dyn Observer>] {
        match self {
            Self::Name(_) => &[],
            Self::Shared(shared) => &shared.observers,
        }
    }
}

impl LayerInfo {
    /// Creates the description of a layer with the name of its module. Its events in `tracing` have the target
    /// `ziggurat`.
    #[must_use]
    pub const fn new(layer: &'static str) -> Self {
        Self::with_trace(layer, trace_to!("ziggurat"))
    }

    pub(crate) const fn with_trace(layer: &'static str, trace: Trace) -> Self {
        Self {
            layer,
            given: Given::Name(""),
            trace,
            #[cfg(feature = "metrics")]
            counters: metrics::Counters::new(),
        }
    }

    /// Names the layer, to distinguish it from other instances of the same layer.
    #[must_use]
    pub fn named(mut self, name: impl Into<Cow<'static, str>>) -> Self {
        self.given = self.given.named(name.into());
        // Clones that are already in use keep counting under the old name.
        #[cfg(feature = "metrics")]
        {
            self.counters = metrics::Counters::new();
        }
        self
    }

    /// Adds an observer. Observers run in the order in which they were added.
    #[must_use]
    pub fn observer(mut self, observer: impl Observer) -> Self {
        self.given = self.given.with(|shared| shared.observers.push(Arc::new(observer)));
        self
    }

    /// Returns the layer by the name of its module, such as `"timeout"`.
    #[must_use]
    pub fn layer(&self) -> &'static str {
        self.layer
    }

    /// Returns the name that was set with [`named`](Self::named).
    #[must_use]
    pub fn name(&self) -> Option<&str> {
        let name = match &self.given {
            Given::Name(name) => name,
            Given::Shared(shared) => &*shared.name,
        };
        Some(name).filter(|name| !name.is_empty())
    }

    /// Rejects a call: creates the rejection, emits the event, and returns the rejection for
    /// [`Reject::reject`](crate::Reject::reject).
    ///
    /// # Panics
    ///
    /// If the status of a [`Reason::Custom`] is below 300: the rejection would pass for a success.
    #[must_use]
    #[cold]
    #[track_caller]
    pub fn reject(&self, reason: Reason) -> Rejection {
        self.emit_rejected(Rejection::new(self.layer, self.given.name(), reason))
    }

    /// Rejects a call as [`reject`](Self::reject) does, with a time to come back.
    ///
    /// # Panics
    ///
    /// If the status of a [`Reason::Custom`] is below 300, as [`reject`](Self::reject) does.
    #[must_use]
    #[cold]
    #[track_caller]
    pub fn reject_with_retry_after(&self, reason: Reason, retry_after: Duration) -> Rejection {
        self.emit_rejected(Rejection::new(self.layer, self.given.name(), reason).with_retry_after(retry_after))
    }

    fn emit_rejected(&self, rejection: Rejection) -> Rejection {
        self.emit(LayerEvent::Rejected(&rejection));
        rejection
    }

    /// Returns the rejection for callers that shared a failed call: the call's own rejection, or one with its error's
    /// message. `class` is the class of the outcome.
    pub(crate) fn shared<R, E>(&self, outcome: &Result<R, E>, class: Class) -> Rejection
    where
        E: Reject<R> + fmt::Display,
    {
        if let Some(rejection) = E::rejection(outcome) {
            return rejection.clone();
        }
        self.shared_as(outcome.as_ref().err().map(E::to_string).unwrap_or_default(), class)
    }

    /// Returns the rejection for callers that shared a call which failed with this message.
    pub(crate) fn shared_as(&self, message: String, class: Class) -> Rejection {
        Rejection::new(self.layer, self.given.name(), Reason::Shared { message: message.into(), class })
    }

    #[cfg(feature = "metrics")]
    pub(super) fn raw_name(&self) -> Name {
        self.given.name()
    }

    /// Returns whether there is an observer.
    pub(super) fn is_observed(&self) -> bool {
        !self.given.observers().is_empty()
    }

    /// Reports the state that a circuit starts in to the metrics. Later states are transitions, and so events.
    #[cfg_attr(not(feature = "metrics"), allow(unused_variables))]
    pub(crate) fn starts_as(&self, state: &'static str) {
        #[cfg(feature = "metrics")]
        metrics::set_state(self.layer, &self.given.name(), state);
    }

    /// Emits an event to the observers, to `tracing` and to the metrics. Costs two branches if none of them is active.
    pub fn emit(&self, event: LayerEvent<'_>) {
        if let Given::Shared(shared) = &self.given {
            shared.observers.iter().for_each(|observer| observer.on_event(self, &event));
        }
        (self.trace)(self, &event);
        #[cfg(feature = "metrics")]
        self.counters.count(self.layer, &self.given.name(), &event);
    }
}

impl fmt::Debug for LayerInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LayerInfo")
            .field("layer", &self.layer)
            .field("name", &self.name())
            .field("observed", &!self.given.observers().is_empty())
            .finish()
    }
}

/// Creates the [`LayerInfo`] of a layer in this crate, with the target `ziggurat::<layer>`.
macro_rules! layer_info {
    ($layer:literal) => {
        $crate::telemetry::LayerInfo::with_trace(
            $layer,
            $crate::telemetry::trace::trace_to!(concat!("ziggurat::", $layer)),
        )
    };
}

/// Defines the two setters that every layer has. The [`LayerInfo`] is in the field `info`, or at the given path.
macro_rules! layer_setters {
    () => {
        $crate::telemetry::layer_setters!(info);
    };
    ($($info:ident).+) => {
        /// Names this layer. Its rejections and events carry the name.
        pub fn named(mut self, name: impl Into<std::borrow::Cow<'static, str>>) -> Self {
            self.$($info).+ = self.$($info).+.named(name);
            self
        }

        /// Adds an observer of this layer's events. Observers run in the order in which they were added.
        pub fn observer(mut self, observer: impl $crate::telemetry::Observer) -> Self {
            self.$($info).+ = self.$($info).+.observer(observer);
            self
        }
    };
}

pub(crate) use {layer_info, layer_setters};

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outcome::Error;

    #[test]
    fn who_shared_a_failure_learns_its_rejection_or_what_it_said() {
        let (info, wait) = (LayerInfo::new("cache"), Some(Duration::from_secs(1)));
        let rejected: Result<(), Error<fmt::Error>> =
            Reject::reject(info.reject(Reason::TimedOut { limit: Duration::from_millis(250) }));
        assert!(info.shared(&rejected, Class::TRANSIENT).is_timed_out());

        let failed: Result<(), _> = Err(Error::Service("no such table"));
        let class = Class::Failure { transient: false, retry_after: wait };
        let shared = info.shared(&failed, class);
        assert_eq!(shared.to_string(), "cache: the shared call failed: no such table; try again in 1s");
        assert_eq!((shared.class(), shared.retry_after()), (class, wait));

        // A wait of zero would send all callers back at once.
        let asked = Class::Failure { transient: true, retry_after: Some(Duration::ZERO) };
        assert_eq!(info.shared(&failed, asked).retry_after(), None);
    }
}
