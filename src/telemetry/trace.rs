//! Emits the events of layers to `tracing`.

use super::LayerEvent;

/// Emits an event of the given layer and name.
pub(crate) type Trace = fn(layer: &'static str, name: Option<&str>, event: &LayerEvent<'_>);

/// Emits one event to `tracing`. Its message is the event's name, which must be a literal there.
macro_rules! tell {
    ($level:ident, $target:expr, ($layer:ident, $name:ident), $message:literal $(, $($fields:tt)+)?) => {
        tracing::$level!(target: $target, layer = $layer, name = $name, $($($fields)+,)? $message)
    };
}

/// Defines `fn trace(layer, name, event)` with this target, because `tracing` requires a constant target at each call
/// site.
macro_rules! trace_to {
    ($target:expr) => {
        fn trace(layer: &'static str, name: Option<&str>, event: &$crate::telemetry::LayerEvent<'_>) {
            use $crate::telemetry::LayerEvent;
            use $crate::telemetry::trace::tell;
            match event {
                LayerEvent::Rejected(rejection) => tell!(info, $target, (layer, name), "rejected", reason = rejection.reason().as_str(), %rejection),
                LayerEvent::Retrying { attempt, delay, cause } => tell!(info, $target, (layer, name), "retrying", attempt, ?delay, %cause),
                LayerEvent::Recovered { attempt } => tell!(info, $target, (layer, name), "recovered", attempt),
                LayerEvent::GaveUp { attempt, reason, cause } => tell!(warn, $target, (layer, name), "gave_up", attempt, reason, %cause),
                LayerEvent::NotRetried { attempt, reason, cause } => tell!(debug, $target, (layer, name), "not_retried", attempt, reason, %cause),
                LayerEvent::Transition { from, to } => tell!(warn, $target, (layer, name), "transition", from, to),
                LayerEvent::FellBack { reason } => tell!(info, $target, (layer, name), "fell_back", reason),
                LayerEvent::FallbackFailed { reason, error } => tell!(warn, $target, (layer, name), "fallback_failed", reason, %error),
                LayerEvent::RefreshFailed { reason, error } => tell!(info, $target, (layer, name), "refresh_failed", reason, %error),
                LayerEvent::Injected { reason } => tell!(info, $target, (layer, name), "injected", reason),
                LayerEvent::Failed => tell!(debug, $target, (layer, name), "failed"),
                LayerEvent::NotRepeatable { reason } => tell!(debug, $target, (layer, name), "not_repeatable", reason),
                LayerEvent::Queued => tell!(trace, $target, (layer, name), "queued"),
                LayerEvent::Reclaimed { permits } => tell!(warn, $target, (layer, name), "reclaimed", permits),
                LayerEvent::Hit => tell!(trace, $target, (layer, name), "hit"),
                LayerEvent::Miss => tell!(trace, $target, (layer, name), "miss"),
                LayerEvent::Stale => tell!(trace, $target, (layer, name), "stale"),
                LayerEvent::Shared => tell!(trace, $target, (layer, name), "shared"),
                LayerEvent::Stored => tell!(trace, $target, (layer, name), "stored"),
                LayerEvent::SettingsRefused { error } => tell!(warn, $target, (layer, name), "settings_refused", error),
                LayerEvent::HandlerFailed { of, error } => tell!(warn, $target, (layer, name), "handler_failed", of, error),
                LayerEvent::HandlerLagged { of, missed } => tell!(warn, $target, (layer, name), "handler_lagged", of, missed),
                LayerEvent::Started => tell!(trace, $target, (layer, name), "started"),
                LayerEvent::Ended { outcome, reason, elapsed } => {
                    tell!(debug, $target, (layer, name), "ended", outcome = outcome.as_str(), reason, ?elapsed)
                }
            }
        }
    };
}

pub(crate) use {tell, trace_to};
