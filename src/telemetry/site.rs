//! Which layer an event comes from, and who observes it.

use std::{fmt, sync::Arc, time::Duration};

#[cfg(feature = "metrics")]
use super::metrics;
use super::{
    Event,
    trace::{Trace, trace_to},
};
use crate::outcome::{Class, Reason, Reject, Rejection};

/// Hears the events of the layers that it is attached to with `.observer(..)`. A closure is one too.
///
/// It is called where the event happens, inside a request's call or poll, or while that is dropped: it must not block, and must not
/// panic. What is dropped because of a panic tells its end too, and a second panic in there ends the program.
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
    trace: Trace,
    #[cfg(feature = "metrics")]
    counters: metrics::Counters,
}

impl Site {
    /// The site of a layer of this kind: its module's name. Its events go to the target `ziggurat` of `tracing`.
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

    /// The same, with a name that tells this layer from others of its kind.
    #[must_use]
    pub fn named(mut self, name: &'static str) -> Self {
        self.name = Some(name);
        // The clones that were used before go on counting under the old name.
        #[cfg(feature = "metrics")]
        {
            self.counters = metrics::Counters::new();
        }
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

    /// Rejects a call: builds the rejection, emits the event, and returns it for [`Reject::reject`](crate::Reject::reject).
    #[must_use]
    #[cold]
    pub fn reject(&self, reason: Reason) -> Rejection {
        self.emit_rejected(Rejection::new(self.layer, self.name, reason))
    }

    /// Rejects a call as [`reject`](Self::reject) does, and tells the caller when to come back.
    #[must_use]
    #[cold]
    pub fn reject_with_retry_after(&self, reason: Reason, retry_after: Duration) -> Rejection {
        self.emit_rejected(Rejection::new(self.layer, self.name, reason).with_retry_after(retry_after))
    }

    fn emit_rejected(&self, rejection: Rejection) -> Rejection {
        self.tell(Event::Rejected(&rejection));
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
        let shared = Rejection::new(self.layer, self.name, Reason::Shared { message, class });
        match class.retry_after() {
            Some(wait) => shared.with_retry_after(wait),
            None => shared,
        }
    }

    /// Whether an observer listens.
    pub(super) fn is_observed(&self) -> bool {
        self.observer.is_some()
    }

    /// Tells the observer and `tracing` that this happened. Where nobody listens it costs two branches.
    pub fn tell(&self, event: Event<'_>) {
        if let Some(observer) = &self.observer {
            observer.event(self, &event);
        }
        (self.trace)(self.layer, self.name, &event);
        #[cfg(feature = "metrics")]
        self.counters.count(self.layer, self.name, &event);
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

/// The [`Site`] of one of this crate's layers, with the target `ziggurat::<layer>`.
macro_rules! site {
    ($layer:literal) => {{
        $crate::telemetry::trace::trace_to!(concat!("ziggurat::", $layer));
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
        pub fn observer(mut self, observer: impl $crate::telemetry::Observer) -> Self {
            self.$($site).+ = self.$($site).+.observer(observer);
            self
        }
    };
}

pub(crate) use {site, site_setters};

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outcome::Error;

    #[test]
    fn who_shared_a_failure_learns_its_rejection_or_what_it_said() {
        let (site, wait) = (Site::new("cache"), Some(Duration::from_secs(1)));
        let rejected: Result<(), Error<fmt::Error>> =
            Reject::reject(site.reject(Reason::TimedOut { limit: Duration::from_millis(250) }));
        assert!(site.shared(&rejected, Class::TRANSIENT).is_timed_out());

        let failed: Result<(), _> = Err(Error::Service("no such table"));
        let class = Class::Failure { transient: false, retry_after: wait };
        let shared = site.shared(&failed, class);
        assert_eq!(shared.to_string(), "cache: the call that this one shared failed: no such table; try again in 1s");
        assert_eq!((shared.class(), shared.retry_after()), (class, wait));

        // A wait of zero would send all of them back at once.
        let asked = Class::Failure { transient: true, retry_after: Some(Duration::ZERO) };
        assert_eq!(site.shared(&failed, asked).retry_after(), None);
    }
}
