//! Telemetry: what somebody may want to know, told to observers, to `tracing` and to `metrics`. Only this file names `tracing`, and
//! only the one beneath it `metrics`.

use std::{fmt, sync::Arc, time::Duration};

use tracing::field::Empty;

use crate::{classify::Class, events::Lagged, rejection::Rejection, scope::ScopeError, wire::Identity};

#[cfg(feature = "metrics")]
pub(crate) mod metrics;

/// What happened in a layer. More kinds may be added.
///
/// One set of names serves observers, `tracing` and, with the feature `metrics`, the metrics:
///
/// | event | its name | level in `tracing` | fields there |
/// |---|---|---|---|
/// | [`Rejected`](Event::Rejected) | `rejected` | INFO | `reason`, `rejection` |
/// | [`Retrying`](Event::Retrying) | `retrying` | INFO | `attempt`, `delay`, `cause` |
/// | [`Recovered`](Event::Recovered) | `recovered` | INFO | `attempt` |
/// | [`GaveUp`](Event::GaveUp) | `gave_up` | WARN | `attempt`, `reason`, `cause` |
/// | [`NotRetried`](Event::NotRetried) | `not_retried` | DEBUG | `attempt`, `reason`, `cause` |
/// | [`Transition`](Event::Transition) | `transition` | WARN | `from`, `to` |
/// | [`FellBack`](Event::FellBack) | `fell_back` | INFO | `reason` |
/// | [`FallbackFailed`](Event::FallbackFailed) | `fallback_failed` | WARN | `reason`, `error` |
/// | [`RefreshFailed`](Event::RefreshFailed) | `refresh_failed` | INFO | `reason`, `error` |
/// | [`Injected`](Event::Injected) | `injected` | INFO | `reason` |
/// | [`SettingsRefused`](Event::SettingsRefused) | `settings_refused` | WARN | `error` |
/// | [`HandlerFailed`](Event::HandlerFailed) | `handler_failed` | WARN | `of`, `error` |
/// | [`HandlerLagged`](Event::HandlerLagged) | `handler_lagged` | WARN | `of`, `lagged` |
/// | [`Reclaimed`](Event::Reclaimed) | `reclaimed` | WARN | `permits` |
/// | [`Failed`](Event::Failed) | `failed` | DEBUG | |
/// | [`NotRepeatable`](Event::NotRepeatable) | `not_repeatable` | DEBUG | `reason` |
/// | [`Ended`](Event::Ended) | `ended` | DEBUG | `outcome`, `reason`, `elapsed` |
/// | all others | `started`, `queued`, `hit`, `miss`, `stale`, `shared`, `stored` | TRACE | |
///
/// In `tracing` the message is the event's name, the target the layer's path, such as `ziggurat::timeout`, and every event has the
/// fields `policy`, the layer's kind, and `name`, the one that was given with `.named(..)`.
///
/// | metric | what | labels |
/// |---|---|---|
/// | `ziggurat_events_total` | a counter of the events of all layers, but for `started` and `ended` | `policy`, `name`, `event`, `reason` (of a transition: the new state) |
/// | `ziggurat_calls_total` | a counter of the calls that an [`ObserveLayer`](crate::observe::ObserveLayer) saw end | `name`, `outcome`, `reason` |
/// | `ziggurat_call_duration_seconds` | a histogram of how long they took | `name`, `outcome` |
/// | `ziggurat_calls_in_flight` | a gauge of those that have not ended | `name` |
///
/// A label that does not apply is empty. The recorder of metrics has to be installed before the first service is made.
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
        /// Why it failed: of a rejection [`Reason::as_str`](crate::Reason::as_str), what an error says, or the status
        /// of a response.
        cause: fmt::Arguments<'a>,
    },
    /// An attempt succeeded after others had failed.
    Recovered {
        /// The number of the attempt that succeeded, from 2.
        attempt: u32,
    },
    /// An attempt failed with a failure that may be retried, and there will be no other.
    GaveUp {
        /// The number of the attempt that failed, from 1.
        attempt: u32,
        /// Why there is no other: `"attempts"`, `"backoff"`, `"budget"`, `"certificate"`, `"copy"`, `"deadline"` or
        /// `"retry_after"`.
        reason: &'static str,
        /// Why it failed: as in [`Retrying`](Self::Retrying).
        cause: fmt::Arguments<'a>,
    },
    /// An attempt failed in a way that no other attempt helps.
    NotRetried {
        /// The number of the attempt that failed, from 1.
        attempt: u32,
        /// Why there is no other: `"permanent"`, or `"ignored"` of a rejection that says nothing about the service.
        reason: &'static str,
        /// Why it failed: as in [`Retrying`](Self::Retrying).
        cause: fmt::Arguments<'a>,
    },
    /// A state changed.
    Transition {
        /// The state before.
        from: &'static str,
        /// The state now.
        to: &'static str,
    },
    /// A call failed, and was answered by something else.
    FellBack {
        /// How it failed: `"error"`, `"response"`, or of a rejection [`Reason::as_str`](crate::Reason::as_str).
        reason: &'static str,
    },
    /// A call failed, and what should have answered in its place failed too.
    FallbackFailed {
        /// How the call failed: `"error"`, `"response"`, or of a rejection [`Reason::as_str`](crate::Reason::as_str).
        reason: &'static str,
        /// What the fallback failed with.
        error: fmt::Arguments<'a>,
    },
    /// The call behind a stale answer brought no other one that can be stored.
    RefreshFailed {
        /// How: `"error"`, `"response"`, or of a rejection [`Reason::as_str`](crate::Reason::as_str).
        reason: &'static str,
        /// What it failed with.
        error: fmt::Arguments<'a>,
    },
    /// A fault was put in on purpose, and not an error: that is a [rejection](Self::Rejected).
    Injected {
        /// Which: `"delay"` or `"hang"`.
        reason: &'static str,
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
    /// Bodies made no progress for too long, and lost their permits to calls that need them.
    Reclaimed {
        /// How many.
        permits: usize,
    },
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
    /// Settings of a recommended stack that were changed while it works contradict each other: the ones before them stay.
    SettingsRefused {
        /// Which two, and their values.
        error: &'a str,
    },
    /// A handler of an [`EventBus`](crate::EventBus) failed or panicked. It goes on with the next event, and so do all others.
    HandlerFailed {
        /// The type of event.
        of: &'static str,
        /// What it said.
        error: &'a str,
    },
    /// A handler of an [`EventBus`](crate::EventBus) was too slow.
    HandlerLagged {
        /// The type of event.
        of: &'static str,
        /// What that cost it.
        lagged: Lagged,
    },
    /// A call began.
    Started,
    /// A call ended, or was dropped.
    Ended {
        /// How.
        outcome: Outcome,
        /// Of a rejection, why: see [`Reason::as_str`](crate::Reason::as_str).
        reason: Option<&'static str>,
        /// How long it took.
        elapsed: Duration,
    },
}

impl Event<'_> {
    /// Its name in `tracing` and in metrics, such as `"gave_up"`.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Rejected(_) => "rejected",
            Self::Retrying { .. } => "retrying",
            Self::Recovered { .. } => "recovered",
            Self::GaveUp { .. } => "gave_up",
            Self::NotRetried { .. } => "not_retried",
            Self::Transition { .. } => "transition",
            Self::FellBack { .. } => "fell_back",
            Self::FallbackFailed { .. } => "fallback_failed",
            Self::RefreshFailed { .. } => "refresh_failed",
            Self::Injected { .. } => "injected",
            Self::Failed => "failed",
            Self::NotRepeatable { .. } => "not_repeatable",
            Self::Queued => "queued",
            Self::Reclaimed { .. } => "reclaimed",
            Self::Hit => "hit",
            Self::Miss => "miss",
            Self::Stale => "stale",
            Self::Shared => "shared",
            Self::Stored => "stored",
            Self::SettingsRefused { .. } => "settings_refused",
            Self::HandlerFailed { .. } => "handler_failed",
            Self::HandlerLagged { .. } => "handler_lagged",
            Self::Started => "started",
            Self::Ended { .. } => "ended",
        }
    }
}

/// How a call ended, for who counts calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// The service answered, and works.
    Success,
    /// It failed.
    Failure,
    /// What it answered says nothing about it.
    Ignored,
    /// A layer answered instead of the service.
    Rejected,
    /// The call was dropped before it ended.
    Cancelled,
}

impl Outcome {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Success, Self::Failure, Self::Ignored, Self::Rejected, Self::Cancelled];

    /// Its name in `tracing` and in metrics, such as `"success"`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::Failure => "failure",
            Self::Ignored => "ignored",
            Self::Rejected => "rejected",
            Self::Cancelled => "cancelled",
        }
    }
}

impl From<Class> for Outcome {
    fn from(class: Class) -> Self {
        match class {
            Class::Success => Self::Success,
            Class::Failure { .. } => Self::Failure,
            Class::Declined { .. } | Class::Ignored => Self::Ignored,
        }
    }
}

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
    trace: fn(&Site, &Event<'_>),
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

    pub(crate) const fn with_trace(layer: &'static str, trace: fn(&Site, &Event<'_>)) -> Self {
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

    /// Tells the observer and `tracing` that this happened. Where nobody listens it costs two branches.
    pub fn tell(&self, event: Event<'_>) {
        if let Some(observer) = &self.observer {
            observer.event(self, &event);
        }
        (self.trace)(self, &event);
        #[cfg(feature = "metrics")]
        self.counters.count(self, &event);
    }
}

/// Who hears of calls: everybody who hears of events, and the meters.
pub(crate) struct Calls {
    site: Site,
    #[cfg(feature = "metrics")]
    meters: metrics::Meters,
}

impl Calls {
    pub(crate) fn new(site: Site) -> Self {
        Self {
            #[cfg(feature = "metrics")]
            meters: metrics::Meters::new(&site),
            site,
        }
    }

    pub(crate) fn site(&self) -> &Site {
        &self.site
    }

    /// Whether anybody may hear when calls end.
    pub(crate) fn are_heard(&self) -> bool {
        cfg!(feature = "metrics")
            || self.site.observer.is_some()
            || tracing::event_enabled!(target: concat!("ziggurat::", "observe"), tracing::Level::DEBUG)
    }

    pub(crate) fn started(&self) {
        // An observer that panics ends the call here: then it is not in flight.
        self.site.tell(Event::Started);
        #[cfg(feature = "metrics")]
        self.meters.started();
    }

    pub(crate) fn ended(&self, outcome: Outcome, reason: Option<&'static str>, elapsed: Duration) {
        #[cfg(feature = "metrics")]
        self.meters.ended(outcome, reason, elapsed);
        self.site.tell(Event::Ended { outcome, reason, elapsed });
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

/// Tells whoever reads the logs what the program has to be changed for.
#[cfg(feature = "axum")]
pub(crate) fn missing_layer(error: &(dyn std::error::Error + 'static)) {
    tracing::error!(target: "ziggurat::extract", error, "missing_layer");
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

    /// The tasks that the scope closes over did not end in time.
    pub(crate) fn tasks_aborted(&self, scope: &str, tasks: usize) {
        tracing::warn!(target: "ziggurat::scope", parent: &self.0, scope, tasks, "tasks aborted");
    }

    /// The last handle of the scope was dropped, and there is something to close.
    pub(crate) fn dropped_open(&self, scope: &str) {
        tracing::warn!(target: "ziggurat::scope", parent: &self.0, scope, "dropped without being closed");
    }

    /// Who closes the scope hears it too, if somebody waits.
    pub(crate) fn not_closed_cleanly(&self, error: &ScopeError) {
        tracing::warn!(target: "ziggurat::scope", parent: &self.0, scope = error.scope(), %error, "not closed cleanly");
    }

    /// It is current for as long as the guard lives.
    pub(crate) fn enter(&self) -> EnteredSpan {
        EnteredSpan(self.0.clone().entered())
    }
}

/// The guard of [`Span::enter`].
pub(crate) struct EnteredSpan(#[expect(dead_code, reason = "it is there to be dropped")] tracing::span::EnteredSpan);

/// One event in `tracing`. Its message is the event's name, which has to be a literal there.
macro_rules! tell {
    ($level:ident, $target:expr, $site:ident, $message:literal $(, $($fields:tt)+)?) => {
        tracing::$level!(target: $target, policy = $site.layer(), name = $site.name(), $($($fields)+,)? $message)
    };
}

/// Defines `fn trace(&Site, &Event)` with this target: a target of `tracing` has to be a constant at each place.
macro_rules! trace_to {
    ($target:expr) => {
        fn trace(site: &$crate::telemetry::Site, event: &$crate::telemetry::Event<'_>) {
            use $crate::telemetry::Event;
            use $crate::telemetry::tell;
            match event {
                Event::Rejected(rejection) => tell!(info, $target, site, "rejected", reason = rejection.reason().as_str(), %rejection),
                Event::Retrying { attempt, delay, cause } => tell!(info, $target, site, "retrying", attempt, ?delay, %cause),
                Event::Recovered { attempt } => tell!(info, $target, site, "recovered", attempt),
                Event::GaveUp { attempt, reason, cause } => tell!(warn, $target, site, "gave_up", attempt, reason, %cause),
                Event::NotRetried { attempt, reason, cause } => tell!(debug, $target, site, "not_retried", attempt, reason, %cause),
                Event::Transition { from, to } => tell!(warn, $target, site, "transition", from, to),
                Event::FellBack { reason } => tell!(info, $target, site, "fell_back", reason),
                Event::FallbackFailed { reason, error } => tell!(warn, $target, site, "fallback_failed", reason, %error),
                Event::RefreshFailed { reason, error } => tell!(info, $target, site, "refresh_failed", reason, %error),
                Event::Injected { reason } => tell!(info, $target, site, "injected", reason),
                Event::Failed => tell!(debug, $target, site, "failed"),
                Event::NotRepeatable { reason } => tell!(debug, $target, site, "not_repeatable", reason),
                Event::Queued => tell!(trace, $target, site, "queued"),
                Event::Reclaimed { permits } => tell!(warn, $target, site, "reclaimed", permits),
                Event::Hit => tell!(trace, $target, site, "hit"),
                Event::Miss => tell!(trace, $target, site, "miss"),
                Event::Stale => tell!(trace, $target, site, "stale"),
                Event::Shared => tell!(trace, $target, site, "shared"),
                Event::Stored => tell!(trace, $target, site, "stored"),
                Event::SettingsRefused { error } => tell!(warn, $target, site, "settings_refused", error),
                Event::HandlerFailed { of, error } => tell!(warn, $target, site, "handler_failed", of, error),
                Event::HandlerLagged { of, lagged } => tell!(warn, $target, site, "handler_lagged", of, %lagged),
                Event::Started => tell!(trace, $target, site, "started"),
                Event::Ended { outcome, reason, elapsed } => {
                    tell!(debug, $target, site, "ended", outcome = outcome.as_str(), reason, ?elapsed)
                }
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

pub(crate) use {site, site_setters, tell, trace_to};
