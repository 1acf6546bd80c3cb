//! Emits the events of layers to `tracing`.

/// Emits one event to `tracing`. Its message is the event's name, which must be a literal there.
macro_rules! tell {
    ($level:ident, $target:expr, $info:ident, $message:literal $(, $($fields:tt)+)?) => {
        tracing::$level!(target: $target, layer = $info.layer(), name = $info.name(), $($($fields)+,)? $message)
    };
}

/// The function that emits events with this target, because `tracing` requires a constant target at each call site.
/// Its argument types come from where it is passed.
macro_rules! trace_to {
    ($target:expr) => {
        |info, event| {
            use $crate::telemetry::LayerEvent;
            use $crate::telemetry::trace::tell;
            match event {
                LayerEvent::Rejected(rejection) => tell!(info, $target, info, "rejected", reason = rejection.reason().as_str(), %rejection),
                LayerEvent::Retrying { attempt, delay, cause } => tell!(info, $target, info, "retrying", attempt, ?delay, %cause),
                LayerEvent::Recovered { attempt } => tell!(info, $target, info, "recovered", attempt),
                LayerEvent::GaveUp { attempt, reason, cause } => tell!(warn, $target, info, "gave_up", attempt, reason, %cause),
                LayerEvent::NotRetried { attempt, reason, cause } => tell!(debug, $target, info, "not_retried", attempt, reason, %cause),
                LayerEvent::Transition { from, to } => tell!(warn, $target, info, "transition", from, to),
                LayerEvent::FellBack { reason } => tell!(info, $target, info, "fell_back", reason),
                LayerEvent::FallbackRefused { reason } => tell!(warn, $target, info, "fallback_refused", reason),
                LayerEvent::FallbackFailed { reason, error } => tell!(warn, $target, info, "fallback_failed", reason, %error),
                LayerEvent::Hedged { reason } => tell!(debug, $target, info, "hedged", reason),
                LayerEvent::HedgeWon => tell!(debug, $target, info, "hedge_won"),
                LayerEvent::HedgeRefused { reason } => tell!(debug, $target, info, "hedge_refused", reason),
                LayerEvent::RefreshFailed { reason, error } => tell!(info, $target, info, "refresh_failed", reason, %error),
                LayerEvent::Injected { reason } => tell!(info, $target, info, "injected", reason),
                LayerEvent::Failed => tell!(debug, $target, info, "failed"),
                LayerEvent::NotRepeatable { reason } => tell!(debug, $target, info, "not_repeatable", reason),
                LayerEvent::Queued => tell!(trace, $target, info, "queued"),
                LayerEvent::Reclaimed { permits } => tell!(warn, $target, info, "reclaimed", permits),
                LayerEvent::Hit => tell!(trace, $target, info, "hit"),
                LayerEvent::Miss => tell!(trace, $target, info, "miss"),
                LayerEvent::Bypassed => tell!(trace, $target, info, "bypassed"),
                LayerEvent::Stale { reason } => tell!(trace, $target, info, "stale", reason),
                LayerEvent::Shared => tell!(trace, $target, info, "shared"),
                LayerEvent::Stored => tell!(trace, $target, info, "stored"),
                LayerEvent::SettingsRefused { error } => tell!(warn, $target, info, "settings_refused", error),
                LayerEvent::StoreFailed { error } => tell!(warn, $target, info, "store_failed", error),
                LayerEvent::NotDecoded { error } => tell!(warn, $target, info, "not_decoded", error),
                LayerEvent::HandlerFailed { of, error } => tell!(warn, $target, info, "handler_failed", of, error),
                LayerEvent::HandlerLagged { of, missed } => tell!(warn, $target, info, "handler_lagged", of, missed),
                LayerEvent::Started => tell!(trace, $target, info, "started"),
                LayerEvent::Ended { outcome, reason, elapsed } => {
                    tell!(debug, $target, info, "ended", outcome = outcome.as_str(), reason, ?elapsed)
                }
            }
        }
    };
}

pub(crate) use {tell, trace_to};
