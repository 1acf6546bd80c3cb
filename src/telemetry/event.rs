//! The events of layers, and how calls end.

use std::{fmt, time::Duration};

use crate::outcome::{Class, Rejection};

/// What happened in a layer. More kinds may be added.
///
/// One set of names serves observers, `tracing` and, with the feature `metrics`, the metrics:
///
/// | event | its name | level in `tracing` | fields there |
/// |---|---|---|---|
/// | [`Rejected`](LayerEvent::Rejected) | `rejected` | INFO | `reason`, `rejection` |
/// | [`Retrying`](LayerEvent::Retrying) | `retrying` | INFO | `attempt`, `delay`, `cause` |
/// | [`Recovered`](LayerEvent::Recovered) | `recovered` | INFO | `attempt` |
/// | [`GaveUp`](LayerEvent::GaveUp) | `gave_up` | WARN | `attempt`, `reason`, `cause` |
/// | [`NotRetried`](LayerEvent::NotRetried) | `not_retried` | DEBUG | `attempt`, `reason`, `cause` |
/// | [`Transition`](LayerEvent::Transition) | `transition` | WARN | `from`, `to` |
/// | [`FellBack`](LayerEvent::FellBack) | `fell_back` | INFO | `reason` |
/// | [`FallbackFailed`](LayerEvent::FallbackFailed) | `fallback_failed` | WARN | `reason`, `error` |
/// | [`RefreshFailed`](LayerEvent::RefreshFailed) | `refresh_failed` | INFO | `reason`, `error` |
/// | [`Injected`](LayerEvent::Injected) | `injected` | INFO | `reason` |
/// | [`SettingsRefused`](LayerEvent::SettingsRefused) | `settings_refused` | WARN | `error` |
/// | [`HandlerFailed`](LayerEvent::HandlerFailed) | `handler_failed` | WARN | `of`, `error` |
/// | [`HandlerLagged`](LayerEvent::HandlerLagged) | `handler_lagged` | WARN | `of`, `missed` |
/// | [`Reclaimed`](LayerEvent::Reclaimed) | `reclaimed` | WARN | `permits` |
/// | [`Failed`](LayerEvent::Failed) | `failed` | DEBUG | |
/// | [`NotRepeatable`](LayerEvent::NotRepeatable) | `not_repeatable` | DEBUG | `reason` |
/// | [`Ended`](LayerEvent::Ended) | `ended` | DEBUG | `outcome`, `reason`, `elapsed` |
/// | all others | `started`, `queued`, `hit`, `miss`, `stale`, `shared`, `stored` | TRACE | |
///
/// In `tracing` the message is the event's name, the target the layer's path, such as `ziggurat::timeout`, and every event has the
/// fields `layer`, the layer's kind, and `name`, the one that was given with `.named(..)`.
///
/// | metric | what | labels |
/// |---|---|---|
/// | `ziggurat_events_total` | a counter of the events of all layers, but for `started` and `ended` | `layer`, `name`, `event`, `reason` (of a transition: the new state) |
/// | `ziggurat_calls_total` | a counter of the calls that an [`ObserveLayer`](crate::observe::ObserveLayer) saw end | `name`, `outcome`, `reason` |
/// | `ziggurat_call_duration_seconds` | a histogram of how long they took | `name`, `outcome` |
/// | `ziggurat_calls_in_flight` | a gauge of those that have not ended | `name` |
///
/// A label that does not apply is empty. The recorder of metrics has to be installed before the first service is made.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub enum LayerEvent<'a> {
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
        /// The number of events that it missed; `None`: it was dropped ([`Lag::Drop`](crate::events::Lag::Drop)).
        missed: Option<u64>,
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

impl LayerEvent<'_> {
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
