//! The events of layers, and the outcomes of calls.

use std::{fmt, time::Duration};

use crate::outcome::{Class, Rejection};

/// An event in a layer.
///
/// # Names
///
/// Observers, `tracing` and metrics (feature `metrics`) use one set of names:
///
/// | event | name | level in `tracing` | fields in `tracing` |
/// |---|---|---|---|
/// | [`Rejected`](LayerEvent::Rejected) | `rejected` | INFO | `reason`, `rejection` |
/// | [`Retrying`](LayerEvent::Retrying) | `retrying` | INFO | `attempt`, `delay`, `cause` |
/// | [`Recovered`](LayerEvent::Recovered) | `recovered` | INFO | `attempt` |
/// | [`GaveUp`](LayerEvent::GaveUp) | `gave_up` | WARN | `attempt`, `reason`, `cause` |
/// | [`NotRetried`](LayerEvent::NotRetried) | `not_retried` | DEBUG | `attempt`, `reason`, `cause` |
/// | [`Transition`](LayerEvent::Transition) | `transition` | WARN | `from`, `to` |
/// | [`FellBack`](LayerEvent::FellBack) | `fell_back` | INFO | `reason` |
/// | [`FallbackRefused`](LayerEvent::FallbackRefused) | `fallback_refused` | WARN | `reason` |
/// | [`FallbackFailed`](LayerEvent::FallbackFailed) | `fallback_failed` | WARN | `reason`, `error` |
/// | [`Hedged`](LayerEvent::Hedged) | `hedged` | DEBUG | `reason` |
/// | [`HedgeWon`](LayerEvent::HedgeWon) | `hedge_won` | DEBUG | |
/// | [`HedgeRefused`](LayerEvent::HedgeRefused) | `hedge_refused` | DEBUG | `reason` |
/// | [`RefreshFailed`](LayerEvent::RefreshFailed) | `refresh_failed` | INFO | `reason`, `error` |
/// | [`Injected`](LayerEvent::Injected) | `injected` | INFO | `reason` |
/// | [`SettingsRefused`](LayerEvent::SettingsRefused) | `settings_refused` | WARN | `error` |
/// | [`StoreFailed`](LayerEvent::StoreFailed) | `store_failed` | WARN | `error` |
/// | [`NotDecoded`](LayerEvent::NotDecoded) | `not_decoded` | WARN | `error` |
/// | [`HandlerFailed`](LayerEvent::HandlerFailed) | `handler_failed` | WARN | `of`, `error` |
/// | [`HandlerLagged`](LayerEvent::HandlerLagged) | `handler_lagged` | WARN | `of`, `missed` |
/// | [`Reclaimed`](LayerEvent::Reclaimed) | `reclaimed` | WARN | `permits` |
/// | [`Failed`](LayerEvent::Failed) | `failed` | DEBUG | |
/// | [`NotRepeatable`](LayerEvent::NotRepeatable) | `not_repeatable` | DEBUG | `reason` |
/// | [`Ended`](LayerEvent::Ended) | `ended` | DEBUG | `outcome`, `reason`, `elapsed` |
/// | [`Stale`](LayerEvent::Stale) | `stale` | TRACE | `reason` |
/// | all others | `started`, `queued`, `hit`, `miss`, `bypassed`, `shared`, `stored` | TRACE | |
///
/// # Tracing
///
/// The message in `tracing` is the event's name, and the target is the layer's path, such as `ziggurat::timeout`. Every
/// event has the fields `layer`, such as `timeout`, and `name`, which `.named(..)` sets.
///
/// # Metrics
///
/// | metric | kind | value | labels |
/// |---|---|---|---|
/// | `ziggurat_events_total` | counter | all events except `started`, `ended` | `layer`, `name`, `event`, `reason` |
/// | `ziggurat_circuit_state` | gauge | state of a circuit: 0 closed, 1 half-open, 2 open | `layer`, `name` |
/// | `ziggurat_calls_total` | counter | completed calls through an [`ObserveLayer`] | `name`, `outcome`, `reason` |
/// | `ziggurat_call_duration_seconds` | histogram | the duration of these calls | `name`, `outcome` |
/// | `ziggurat_calls_in_flight` | gauge | calls that have not completed | `name` |
///
/// The `reason` of a transition is the new state. A label that does not apply is empty. Install the metrics recorder
/// before you create the first layer. The page [`docs::metrics`](crate::docs::metrics) shows how, and describes each
/// event and label.
///
/// [`ObserveLayer`]: crate::observe::ObserveLayer
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub enum LayerEvent<'a> {
    /// The layer rejected a call.
    Rejected(&'a Rejection),
    /// An attempt failed, and the call will be retried.
    Retrying {
        /// The number of the failed attempt, from 1.
        attempt: u32,
        /// The wait until the next attempt.
        delay: Duration,
        /// Why the attempt failed: [`Reason::as_str`](crate::Reason::as_str) of a rejection, the message of an error,
        /// or the status of a response.
        cause: fmt::Arguments<'a>,
    },
    /// An attempt succeeded after earlier ones failed.
    Recovered {
        /// The number of the successful attempt, from 2.
        attempt: u32,
    },
    /// An attempt failed in a way that may be retried, but the call is not retried again.
    GaveUp {
        /// The number of the failed attempt, from 1.
        attempt: u32,
        /// Why there is no further attempt: `"attempts"`, `"backoff"`, `"budget"`, `"certificate"`, `"copy"`,
        /// `"deadline"` or `"retry_after"`.
        reason: &'static str,
        /// Why the attempt failed: as in [`Retrying`](Self::Retrying).
        cause: fmt::Arguments<'a>,
    },
    /// An attempt failed in a way that a retry would not help.
    NotRetried {
        /// The number of the failed attempt, from 1.
        attempt: u32,
        /// Why there is no further attempt: `"permanent"`, or `"ignored"` for a rejection that says nothing about the
        /// service.
        reason: &'static str,
        /// Why the attempt failed: as in [`Retrying`](Self::Retrying).
        cause: fmt::Arguments<'a>,
    },
    /// The layer changed its state, as a circuit breaker does.
    Transition {
        /// The previous state.
        from: &'static str,
        /// The new state.
        to: &'static str,
    },
    /// A call failed, and a fallback provided the response.
    FellBack {
        /// How the call failed: `"error"`, `"response"`, or [`Reason::as_str`](crate::Reason::as_str) of a rejection.
        reason: &'static str,
    },
    /// A call failed, and was not sent to its fallback.
    FallbackRefused {
        /// Why not: `"budget"`.
        reason: &'static str,
    },
    /// A call failed, and so did its fallback.
    FallbackFailed {
        /// How the call failed: `"error"`, `"response"`, or [`Reason::as_str`](crate::Reason::as_str) of a rejection.
        reason: &'static str,
        /// The fallback's error.
        error: fmt::Arguments<'a>,
    },
    /// A second attempt was sent.
    Hedged {
        /// Why: `"delay"` if the first attempt took too long, or how it failed: `"error"`, `"response"`, or
        /// [`Reason::as_str`](crate::Reason::as_str) of a rejection.
        reason: &'static str,
    },
    /// The second attempt succeeded, and the first had not.
    HedgeWon,
    /// A second attempt was due, and was not sent.
    HedgeRefused {
        /// Why not: `"budget"`, `"queue"` if it would have had to wait on this side, `"error"` if the service did not
        /// become ready, or [`Reason::as_str`](crate::Reason::as_str) of a rejection.
        reason: &'static str,
    },
    /// The call that should have refreshed a stale response returned nothing that can be stored.
    RefreshFailed {
        /// How it failed: `"error"`, `"response"`, or [`Reason::as_str`](crate::Reason::as_str) of a rejection.
        reason: &'static str,
        /// The error of that call.
        error: fmt::Arguments<'a>,
    },
    /// A delay or a hang was injected. An injected error is [`Rejected`](Self::Rejected) instead.
    Injected {
        /// The kind of fault: `"delay"` or `"hang"`.
        reason: &'static str,
    },
    /// A call counted as a failure of the service.
    Failed,
    /// The copy of a request body was dropped while the body is sent. This attempt continues, but cannot be repeated.
    NotRepeatable {
        /// Why: `"size"` if this body exceeds its limit, `"total"` if all bodies together exceed theirs.
        reason: &'static str,
    },
    /// A call is waiting in the queue.
    Queued,
    /// Bodies made no progress for too long, and lost their permits to calls that need them.
    Reclaimed {
        /// The number of permits.
        permits: usize,
    },
    /// The response came from the cache.
    Hit,
    /// The response was not in the cache.
    Miss,
    /// The request has no key, and its response neither comes from the cache nor is stored.
    Bypassed,
    /// An expired response came from the cache.
    Stale {
        /// Why: `"error"` if the call for a fresh one failed, and the request is also a [`Miss`](Self::Miss), or
        /// `"revalidate"` if a fresh one is fetched in the background.
        reason: &'static str,
    },
    /// The response came from another caller's call.
    Shared,
    /// A response was stored in the cache.
    Stored,
    /// New settings of a running recommended stack contradict each other. The previous settings stay in effect.
    SettingsRefused {
        /// The two settings and their values.
        error: &'a str,
    },
    /// A [store](crate::store) failed, or did not answer in time.
    StoreFailed {
        /// The store's error.
        error: &'a str,
    },
    /// A value from a [store](crate::store) could not be decoded, and was ignored.
    NotDecoded {
        /// The decoder's error.
        error: &'a str,
    },
    /// A handler of an [`EventBus`](crate::EventBus) failed or panicked. It continues with the next event.
    HandlerFailed {
        /// The type of the event.
        of: &'static str,
        /// The handler's error.
        error: &'a str,
    },
    /// A handler of an [`EventBus`](crate::EventBus) was too slow.
    HandlerLagged {
        /// The type of the event.
        of: &'static str,
        /// The number of events that it missed. `None` if it was dropped ([`Lag::Drop`](crate::events::Lag::Drop)).
        missed: Option<u64>,
    },
    /// A call started.
    Started,
    /// A call completed, or was dropped.
    Ended {
        /// How the call ended.
        outcome: Outcome,
        /// Why it was rejected, if it was: see [`Reason::as_str`](crate::Reason::as_str).
        reason: Option<&'static str>,
        /// The duration of the call.
        elapsed: Duration,
    },
}

impl LayerEvent<'_> {
    /// Returns the event's name in `tracing` and in metrics, such as `"gave_up"`.
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
            Self::FallbackRefused { .. } => "fallback_refused",
            Self::FallbackFailed { .. } => "fallback_failed",
            Self::Hedged { .. } => "hedged",
            Self::HedgeWon => "hedge_won",
            Self::HedgeRefused { .. } => "hedge_refused",
            Self::RefreshFailed { .. } => "refresh_failed",
            Self::Injected { .. } => "injected",
            Self::Failed => "failed",
            Self::NotRepeatable { .. } => "not_repeatable",
            Self::Queued => "queued",
            Self::Reclaimed { .. } => "reclaimed",
            Self::Hit => "hit",
            Self::Miss => "miss",
            Self::Bypassed => "bypassed",
            Self::Stale { .. } => "stale",
            Self::Shared => "shared",
            Self::Stored => "stored",
            Self::SettingsRefused { .. } => "settings_refused",
            Self::StoreFailed { .. } => "store_failed",
            Self::NotDecoded { .. } => "not_decoded",
            Self::HandlerFailed { .. } => "handler_failed",
            Self::HandlerLagged { .. } => "handler_lagged",
            Self::Started => "started",
            Self::Ended { .. } => "ended",
        }
    }
}

/// How a call ended, for call statistics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// The service responded, and works.
    Success,
    /// The service failed.
    Failure,
    /// The outcome says nothing about the service.
    Ignored,
    /// A layer rejected the call.
    Rejected,
    /// The call was dropped before it completed.
    Cancelled,
}

impl Outcome {
    /// All outcomes.
    pub const ALL: [Self; 5] = [Self::Success, Self::Failure, Self::Ignored, Self::Rejected, Self::Cancelled];

    /// Returns the outcome's name in `tracing` and in metrics, such as `"success"`.
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
