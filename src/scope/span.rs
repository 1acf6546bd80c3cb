//! The span of a scope in `tracing`.

use tracing::field::Empty;

use super::error::ScopeError;
use crate::headers::RequestIds;

/// The span of a scope in `tracing`: INFO, target `ziggurat::scope`, named `scope`, with the scope's `name` and `id`.
///
/// Events that are logged while the scope is current belong to it. It ends with the scope. The scope of a request whose
/// ids are known records the `request_id` too, and the `trace_id` if there is a trace.
#[derive(Clone)]
pub(super) struct Span(tracing::Span);

impl Span {
    /// Creates a span inside `parent`, or inside the current span.
    pub(super) fn new(name: &str, id: u64, parent: Option<&Self>) -> Self {
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

    /// Records the ids of the scope's request.
    pub(super) fn identify(&self, ids: &RequestIds) {
        if self.0.is_disabled() {
            return;
        }
        self.0.record("request_id", ids.request_id().as_str());
        if let Some(trace) = ids.trace() {
            self.0.record("trace_id", trace.trace_id());
        }
    }

    /// Logs that tasks did not end within the grace period.
    pub(super) fn tasks_aborted(&self, scope: &str, tasks: usize) {
        tracing::warn!(target: "ziggurat::scope", parent: &self.0, scope, tasks, "tasks aborted");
    }

    /// Logs that the last handle of the scope was dropped, with something left to close.
    pub(super) fn dropped_open(&self, scope: &str) {
        tracing::warn!(target: "ziggurat::scope", parent: &self.0, scope, "dropped without being closed");
    }

    /// Logs the error of a closing. Callers that wait for the closing receive it too.
    pub(super) fn not_closed_cleanly(&self, error: &ScopeError) {
        tracing::warn!(target: "ziggurat::scope", parent: &self.0, scope = error.scope(), %error, "not closed cleanly");
    }

    /// Makes the span current for as long as the guard lives.
    pub(super) fn enter(&self) -> EnteredSpan {
        EnteredSpan(self.0.clone().entered())
    }
}

/// The guard of [`Span::enter`].
pub(super) struct EnteredSpan(#[expect(dead_code, reason = "it is there to be dropped")] tracing::span::EnteredSpan);
