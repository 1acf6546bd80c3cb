//! Handlers: functions that are called for each event, on a task of their own.

use std::{any::type_name, fmt, future::Future, sync::Arc};

use super::{
    queue::Lagged,
    subscription::{Leave, Subscription},
};
use crate::{
    caught::{caught, undisturbed},
    signal::Signal,
    telemetry::{LayerEvent, LayerInfo},
};

/// What a handler may answer: nothing, or a [`Result`] whose error can be displayed.
#[diagnostic::on_unimplemented(
    message = "a handler of events cannot answer `{Self}`",
    note = "it answers nothing, or a `Result` whose error is `Display`, which is then reported"
)]
pub trait Handled {
    /// What went wrong, if something did.
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

/// Calls `handler` for one event after the other, until there will be none.
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
        // A handler that never waits, and a publisher that never rests, leave room for others.
        tokio::task::consume_budget().await;
    }
}

/// An observer that panics ends no handler.
fn tell(info: &LayerInfo, event: LayerEvent<'_>) {
    undisturbed(|| info.emit(event));
}

enum Step {
    Handled(Option<String>),
    Lagged(Lagged),
    End,
}

/// A handler that was attached with [`on`](super::EventBus::on). Dropping it detaches the handler.
///
/// From then on the handler is given nothing more, also nothing that waited for it. The event that it is busy with it
/// handles to the end. No other subscriber notices.
#[must_use = "dropping it detaches the handler; `detach` leaves the handler to the bus"]
pub struct HandlerGuard {
    seat: Option<Arc<dyn Leave>>,
    ended: Arc<Signal>,
}

/// Says that a handler has ended, when it is dropped: with its task, however that ends.
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

    /// Leaves the handler to the bus: it stays until that is closed, or the last clone of it is gone. A handler that holds a clone
    /// itself stays until the bus is closed.
    pub fn detach(mut self) {
        self.seat = None;
    }

    /// Waits until the bus is closed and the handler has handled all that waited for it.
    ///
    /// Dropped before, it detaches the handler, as the guard does.
    pub async fn finished(self) {
        // Its panics are caught. Only the end of the runtime ends it before that, and the end of its scope's grace period.
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

impl fmt::Debug for HandlerGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HandlerGuard").field("is_finished", &self.ended.is_given()).finish()
    }
}
