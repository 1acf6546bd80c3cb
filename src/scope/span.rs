//! The span of a scope in `tracing`.

use tracing::field::Empty;

use super::error::ScopeError;
use crate::headers::RequestIds;

/// The span of a scope in `tracing`, INFO, target `ziggurat::scope`: named `scope`, with the scope's `name` and `id`.
///
/// What is logged while the scope is current stands in it. It ends with the scope. That of a request whose ids is known has the
/// `request_id` too, and the `trace_id` if there is a trace.
#[derive(Clone)]
pub(super) struct Span(tracing::Span);

impl Span {
    /// Within `parent`; without one, within whatever span is current.
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

    /// Whose request the scope is that of.
    pub(super) fn identify(&self, ids: &RequestIds) {
        if self.0.is_disabled() {
            return;
        }
        self.0.record("request_id", ids.request_id().as_str());
        if let Some(trace) = ids.trace() {
            self.0.record("trace_id", trace.trace_id());
        }
    }

    /// The tasks that the scope closes over did not end in time.
    pub(super) fn tasks_aborted(&self, scope: &str, tasks: usize) {
        tracing::warn!(target: "ziggurat::scope", parent: &self.0, scope, tasks, "tasks aborted");
    }

    /// The last handle of the scope was dropped, and there is something to close.
    pub(super) fn dropped_open(&self, scope: &str) {
        tracing::warn!(target: "ziggurat::scope", parent: &self.0, scope, "dropped without being closed");
    }

    /// Who closes the scope hears it too, if somebody waits.
    pub(super) fn not_closed_cleanly(&self, error: &ScopeError) {
        tracing::warn!(target: "ziggurat::scope", parent: &self.0, scope = error.scope(), %error, "not closed cleanly");
    }

    /// It is current for as long as the guard lives.
    pub(super) fn enter(&self) -> EnteredSpan {
        EnteredSpan(self.0.clone().entered())
    }
}

/// The guard of [`Span::enter`].
pub(super) struct EnteredSpan(#[expect(dead_code, reason = "it is there to be dropped")] tracing::span::EnteredSpan);
