//! The events of layers in `tracing`.

use super::Event;

/// Emits an event of this layer, of this name.
pub(crate) type Trace = fn(layer: &'static str, name: Option<&str>, event: &Event<'_>);

/// One event in `tracing`. Its message is the event's name, which has to be a literal there.
macro_rules! tell {
    ($level:ident, $target:expr, ($layer:ident, $name:ident), $message:literal $(, $($fields:tt)+)?) => {
        tracing::$level!(target: $target, policy = $layer, name = $name, $($($fields)+,)? $message)
    };
}

/// Defines `fn trace(layer, name, event)` with this target: a target of `tracing` has to be a constant at each place.
macro_rules! trace_to {
    ($target:expr) => {
        fn trace(layer: &'static str, name: Option<&str>, event: &$crate::telemetry::Event<'_>) {
            use $crate::telemetry::Event;
            use $crate::telemetry::trace::tell;
            match event {
                Event::Rejected(rejection) => tell!(info, $target, (layer, name), "rejected", reason = rejection.reason().as_str(), %rejection),
                Event::Retrying { attempt, delay, cause } => tell!(info, $target, (layer, name), "retrying", attempt, ?delay, %cause),
                Event::Recovered { attempt } => tell!(info, $target, (layer, name), "recovered", attempt),
                Event::GaveUp { attempt, reason, cause } => tell!(warn, $target, (layer, name), "gave_up", attempt, reason, %cause),
                Event::NotRetried { attempt, reason, cause } => tell!(debug, $target, (layer, name), "not_retried", attempt, reason, %cause),
                Event::Transition { from, to } => tell!(warn, $target, (layer, name), "transition", from, to),
                Event::FellBack { reason } => tell!(info, $target, (layer, name), "fell_back", reason),
                Event::FallbackFailed { reason, error } => tell!(warn, $target, (layer, name), "fallback_failed", reason, %error),
                Event::RefreshFailed { reason, error } => tell!(info, $target, (layer, name), "refresh_failed", reason, %error),
                Event::Injected { reason } => tell!(info, $target, (layer, name), "injected", reason),
                Event::Failed => tell!(debug, $target, (layer, name), "failed"),
                Event::NotRepeatable { reason } => tell!(debug, $target, (layer, name), "not_repeatable", reason),
                Event::Queued => tell!(trace, $target, (layer, name), "queued"),
                Event::Reclaimed { permits } => tell!(warn, $target, (layer, name), "reclaimed", permits),
                Event::Hit => tell!(trace, $target, (layer, name), "hit"),
                Event::Miss => tell!(trace, $target, (layer, name), "miss"),
                Event::Stale => tell!(trace, $target, (layer, name), "stale"),
                Event::Shared => tell!(trace, $target, (layer, name), "shared"),
                Event::Stored => tell!(trace, $target, (layer, name), "stored"),
                Event::SettingsRefused { error } => tell!(warn, $target, (layer, name), "settings_refused", error),
                Event::HandlerFailed { of, error } => tell!(warn, $target, (layer, name), "handler_failed", of, error),
                Event::HandlerLagged { of, missed } => tell!(warn, $target, (layer, name), "handler_lagged", of, missed),
                Event::Started => tell!(trace, $target, (layer, name), "started"),
                Event::Ended { outcome, reason, elapsed } => {
                    tell!(debug, $target, (layer, name), "ended", outcome = outcome.as_str(), reason, ?elapsed)
                }
            }
        }
    };
}

pub(crate) use {tell, trace_to};
