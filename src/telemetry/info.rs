//! Which layer an event comes from, and who observes it.

use std::{borrow::Cow, fmt, sync::Arc, time::Duration};

#[cfg(feature = "metrics")]
use super::metrics;
use super::{
    LayerEvent,
    trace::{Trace, trace_to},
};
use crate::{
    name::Name,
    outcome::{Class, Reason, Reject, Rejection},
};

/// Hears the events of the layers that it is attached to with `.observer(..)`. A closure is one too.
///
/// It is called where the event happens, inside a request's call or poll, or while that is dropped: it must not block, and must not
/// panic. What is dropped because of a panic tells its end too, and a second panic in there ends the program.
///
/// ```
/// use std::sync::{Arc, atomic::{AtomicUsize, Ordering}};
/// use ziggurat::{LayerEvent, LayerInfo, timeout::TimeoutLayer};
///
/// let timeouts = Arc::new(AtomicUsize::new(0));
/// let counter = timeouts.clone();
/// let layer = TimeoutLayer::new(std::time::Duration::from_secs(1)).observer(move |_: &LayerInfo, event: &LayerEvent<'_>| {
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

/// A layer as observers, logs and metrics know it: which layer it is, its name, and its observers.
///
/// Each layer value has one. A layer of your own makes it with [`LayerInfo::new`], emits its events with [`LayerInfo::emit`], and rejects
/// calls with [`LayerInfo::reject`].
#[derive(Clone)]
pub struct LayerInfo {
    layer: &'static str,
    name: Option<Name>,
    observer: Option<Arc<dyn Observer>>,
    trace: Trace,
    #[cfg(feature = "metrics")]
    counters: metrics::Counters,
}

impl LayerInfo {
    /// Describes a layer, which is called by its module's name. Its events go to the target `ziggurat` of `tracing`.
    #[must_use]
    pub const fn new(layer: &'static str) -> Self {
        trace_to!("ziggurat");
        Self::with_trace(layer, trace)
    }

    pub(crate) const fn with_trace(layer: &'static str, trace: Trace) -> Self {
        Self {
            layer,
            name: None,
            observer: None,
            trace,
            #[cfg(feature = "metrics")]
            counters: metrics::Counters::new(),
        }
    }

    /// Gives the layer a name, which tells it from other values of the same layer.
    #[must_use]
    pub fn named(mut self, name: impl Into<Cow<'static, str>>) -> Self {
        self.name = Some(Name::new(name));
        // The clones that were used before go on counting under the old name.
        #[cfg(feature = "metrics")]
        {
            self.counters = metrics::Counters::new();
        }
        self
    }

    /// Adds an observer. It is called after those that were added before.
    #[must_use]
    pub fn observer(mut self, observer: impl Observer) -> Self {
        let observer = Arc::new(observer);
        self.observer = Some(match self.observer {
            Some(first) => Arc::new(Both { first, second: observer }),
            None => observer,
        });
        self
    }

    /// The layer, by the name of its module, such as `"timeout"`.
    #[must_use]
    pub fn layer(&self) -> &'static str {
        self.layer
    }

    /// The name that the layer was given.
    #[must_use]
    pub fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    /// Rejects a call: builds the rejection, emits the event, and returns it for [`Reject::reject`](crate::Reject::reject).
    #[must_use]
    #[cold]
    pub fn reject(&self, reason: Reason) -> Rejection {
        self.emit_rejected(Rejection::new(self.layer, self.name.clone(), reason))
    }

    /// Rejects a call as [`reject`](Self::reject) does, and tells the caller when to come back.
    #[must_use]
    #[cold]
    pub fn reject_with_retry_after(&self, reason: Reason, retry_after: Duration) -> Rejection {
        self.emit_rejected(Rejection::new(self.layer, self.name.clone(), reason).with_retry_after(retry_after))
    }

    fn emit_rejected(&self, rejection: Rejection) -> Rejection {
        self.emit(LayerEvent::Rejected(&rejection));
        rejection
    }

    /// The rejection that other callers get who shared a call that failed: its own rejection, or what its error says. `class` is what the
    /// outcome says about the service.
    pub(crate) fn shared<R, E>(&self, outcome: &Result<R, E>, class: Class) -> Rejection
    where
        E: Reject<R> + fmt::Display,
    {
        if let Some(rejection) = E::rejection(outcome) {
            return rejection.clone();
        }
        let message = outcome.as_ref().err().map(E::to_string).unwrap_or_default().into();
        let shared = Rejection::new(self.layer, self.name.clone(), Reason::Shared { message, class });
        match class.retry_after() {
            Some(wait) => shared.with_retry_after(wait),
            None => shared,
        }
    }

    #[cfg(feature = "metrics")]
    pub(super) fn raw_name(&self) -> Option<&Name> {
        self.name.as_ref()
    }

    /// Whether an observer listens.
    pub(super) fn is_observed(&self) -> bool {
        self.observer.is_some()
    }

    /// Emits an event to the observers, to `tracing` and to the metrics. Without any of them it costs two branches.
    pub fn emit(&self, event: LayerEvent<'_>) {
        if let Some(observer) = &self.observer {
            observer.on_event(self, &event);
        }
        (self.trace)(self.layer, self.name.as_deref(), &event);
        #[cfg(feature = "metrics")]
        self.counters.count(self.layer, self.name.as_ref(), &event);
    }
}

/// Two observers of one layer.
struct Both<O> {
    first: Arc<dyn Observer>,
    second: Arc<O>,
}

impl<O: Observer> Observer for Both<O> {
    fn on_event(&self, info: &LayerInfo, event: &LayerEvent<'_>) {
        self.first.on_event(info, event);
        self.second.on_event(info, event);
    }
}

impl fmt::Debug for LayerInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LayerInfo")
            .field("layer", &self.layer)
            .field("name", &self.name)
            .field("observed", &self.observer.is_some())
            .finish()
    }
}

/// The [`LayerInfo`] of one of this crate's layers, with the target `ziggurat::<layer>`.
macro_rules! layer_info {
    ($layer:literal) => {{
        $crate::telemetry::trace::trace_to!(concat!("ziggurat::", $layer));
        $crate::telemetry::LayerInfo::with_trace($layer, trace)
    }};
}

/// The two setters that every layer has, for a layer with a field `info`, or with one at the path that is given.
macro_rules! layer_setters {
    () => {
        $crate::telemetry::layer_setters!(info);
    };
    ($($info:ident).+) => {
        /// Gives this layer a name, which its rejections and events carry.
        pub fn named(mut self, name: impl Into<std::borrow::Cow<'static, str>>) -> Self {
            self.$($info).+ = self.$($info).+.named(name);
            self
        }

        /// Adds an observer of this layer's events. It is called after those that were added before.
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

        // A wait of zero would send all of them back at once.
        let asked = Class::Failure { transient: true, retry_after: Some(Duration::ZERO) };
        assert_eq!(info.shared(&failed, asked).retry_after(), None);
    }
}
