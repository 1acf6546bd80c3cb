//! An event on its way, and the way back to a publisher that waits until it is handled.

use std::sync::Arc;

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use crate::caught::undisturbed;

/// An event, as it waits for a subscriber.
pub(super) struct Item<E> {
    pub(super) event: Arc<E>,
    /// Held until the subscriber is done with it.
    pub(super) receipt: Option<Receipt>,
}

impl<E> Item<E> {
    pub(super) fn new(event: E) -> Self {
        Self { event: Arc::new(event), receipt: None }
    }

    /// With the end at which the publisher hears of the failures.
    pub(super) fn joined(event: E) -> (Self, Failures) {
        let (tell, told) = unbounded_channel();
        (Self { event: Arc::new(event), receipt: Some(Receipt(Some(tell))) }, Failures(told))
    }
}

// Not derived: the event itself need not be `Clone`.
impl<E> Clone for Item<E> {
    fn clone(&self) -> Self {
        Self { event: Arc::clone(&self.event), receipt: self.receipt.clone() }
    }
}

/// Dropped when a subscriber has handled the event, or never will. The last one that is dropped wakes the publisher.
#[derive(Clone)]
pub(super) struct Receipt(Option<UnboundedSender<String>>);

impl Receipt {
    pub(super) fn failed(&self, error: &str) {
        if let Some(tell) = &self.0 {
            // It wakes the publisher, who may also be gone.
            undisturbed(|| drop(tell.send(error.to_owned())));
        }
    }
}

impl Drop for Receipt {
    fn drop(&mut self) {
        let last = self.0.take();
        undisturbed(|| drop(last));
    }
}

pub(super) struct Failures(UnboundedReceiver<String>);

impl Failures {
    /// All of them, once every receipt is dropped.
    pub(super) async fn all(mut self) -> Vec<String> {
        let mut failures = Vec::new();
        while let Some(failure) = self.0.recv().await {
            failures.push(failure);
        }
        failures
    }
}

/// How an event was handled: what [`publish_and_join`](super::EventBus::publish_and_join) returns.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use = "a handler may have failed"]
pub struct Joined {
    pub(super) heard: usize,
    pub(super) failures: Vec<String>,
}

impl Joined {
    /// The number of subscribers that took the event. One that missed it later, because it was too slow, is among them.
    #[must_use]
    pub fn heard(&self) -> usize {
        self.heard
    }

    /// The errors and panics of handlers, in the order in which they happened. Each was
    /// [reported](crate::LayerEvent::HandlerFailed) as well.
    #[must_use]
    pub fn failures(&self) -> &[String] {
        &self.failures
    }
}
