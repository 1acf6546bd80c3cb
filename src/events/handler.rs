//! Handlers: functions that are called for each event, on a task of their own.

use std::{any::type_name, fmt, future::Future, sync::Arc};

use super::{
    queue::Lagged,
    subscription::{Leave, Subscription},
};
use crate::{
    caught::{caught, undisturbed},
    debug::impl_debug,
    signal::Signal,
    telemetry::{LayerEvent, LayerInfo},
};

/// The return type of a handler: `()`, or a [`Result`] whose error implements `Display`.
#[diagnostic::on_unimplemented(
    message = "a handler of events cannot return `{Self}`",
    note = "a handler returns `()`, or a `Result` whose error implements `Display` and is reported"
)]
pub trait Handled {
    /// Returns the error's message, if the handler failed.
    fn failure(self) -> Option<String>;
}

impl Handled for () {
    fn failure(self) -> Option<String> {
        None
    }
}

impl<T, E: fmt::Display> Handled for Result<T, E> {
    fn failure(self) -> Option<String> {
        self.err().map(|error| error.to_string())
    }
}

/// Calls `handler` for one event at a time, until the stream ends.
pub(super) async fn handle<E, F, Fut>(_ended: Ended, mut events: Subscription<E>, mut handler: F, info: LayerInfo)
where
    E: Clone + Send + Sync + 'static,
    F: FnMut(E) -> Fut,
    Fut: Future<Output: Handled>,
{
    let of = type_name::<E>();
    loop {
        let step = caught(async {
            match events.next().await {
                Some(Ok(event)) => Step::Handled(handler(event).await.failure()),
                Some(Err(lagged)) => Step::Lagged(lagged),
                None => Step::End,
            }
        });
        match step.await {
            Ok(Step::Handled(None)) => {}
            Ok(Step::Handled(Some(error))) | Err(error) => {
                events.failed(&error);
                tell(&info, LayerEvent::HandlerFailed { of, error: &error });
            }
            Ok(Step::Lagged(lagged)) => {
                let missed = match lagged {
                    Lagged::Missed(missed) => Some(missed),
                    Lagged::Dropped => None,
                };
                tell(&info, LayerEvent::HandlerLagged { of, missed });
            }
            Ok(Step::End) => return,
        }
        // A handler that never waits, with a publisher that never pauses, must not starve other tasks.
        tokio::task::consume_budget().await;
    }
}

/// Emits an event. An observer that panics does not end the handler.
fn tell(info: &LayerInfo, event: LayerEvent<'_>) {
    undisturbed(|| info.emit(event));
}

enum Step {
    Handled(Option<String>),
    Lagged(Lagged),
    End,
}

/// Keeps a handler attached: the result of [`on`](super::EventBus::on). Dropping the guard removes the handler.
///
/// A removed handler finishes the event that it is handling and receives no more, not even events that already wait
/// for it. Other subscribers are not affected.
#[must_use = "dropping it removes the handler; `detach` leaves the handler to the bus"]
pub struct HandlerGuard {
    seat: Option<Arc<dyn Leave>>,
    ended: Arc<Signal>,
}

/// Signals, when it is dropped with the handler's task, that the handler has ended, for whatever reason.
#[derive(Default)]
pub(super) struct Ended(Arc<Signal>);

impl Ended {
    pub(super) fn signal(&self) -> Arc<Signal> {
        Arc::clone(&self.0)
    }
}

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.give();
    }
}

impl HandlerGuard {
    pub(super) fn new(seat: Arc<dyn Leave>, ended: Arc<Signal>) -> Self {
        Self { seat: Some(seat), ended }
    }

    /// Leaves the handler to the bus.
    ///
    /// It stays attached until the bus is closed or its last clone is dropped. A handler that itself holds a clone
    /// stays until the bus is closed.
    pub fn detach(mut self) {
        self.seat = None;
    }

    /// Waits until the bus is closed and the handler has handled its backlog.
    ///
    /// Dropping the future earlier removes the handler, as dropping the guard does.
    pub async fn finished(self) {
        // The handler's panics are caught. Only the end of its runtime, or of its scope's grace period, ends it
        // earlier.
        self.ended.wait().await;
    }
}

impl Drop for HandlerGuard {
    fn drop(&mut self) {
        if let Some(seat) = self.seat.take() {
            seat.leave();
        }
    }
}

impl_debug!(HandlerGuard { is_finished = |this| this.ended.is_given() });
