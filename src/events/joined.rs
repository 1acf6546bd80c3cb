//! An event in a queue, and the receipt that reports back to a publisher that waits until it is handled.

use std::sync::Arc;

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use crate::caught::undisturbed;

/// An event in a subscriber's queue.
pub(super) struct Item<E> {
    pub(super) event: Arc<E>,
    /// Held until the subscriber has handled the event.
    pub(super) receipt: Option<Receipt>,
    /// Whether it comes from another process. Relays do not send it again.
    pub(super) is_relayed: bool,
}

impl<E> Item<E> {
    pub(super) fn new(event: E) -> Self {
        Self { event: Arc::new(event), receipt: None, is_relayed: false }
    }

    /// Creates an item with a receipt, and the publisher's end, which receives the failures.
    pub(super) fn joined(event: E) -> (Self, Failures) {
        let (tell, told) = unbounded_channel();
        (Self { event: Arc::new(event), receipt: Some(Receipt(Some(tell))), is_relayed: false }, Failures(told))
    }
}

// Not derived: the event itself need not be `Clone`.
impl<E> Clone for Item<E> {
    fn clone(&self) -> Self {
        Self { event: Arc::clone(&self.event), receipt: self.receipt.clone(), is_relayed: self.is_relayed }
    }
}

/// Dropped when a subscriber has handled the event, or never will. Dropping the last clone wakes the publisher.
#[derive(Clone)]
pub(super) struct Receipt(Option<UnboundedSender<String>>);

impl Receipt {
    pub(super) fn failed(&self, error: &str) {
        if let Some(tell) = &self.0 {
            // Sending wakes the publisher. Its waker is user code, and the publisher may be gone.
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
    /// Returns all failures, once every receipt is dropped.
    pub(super) async fn all(mut self) -> Vec<String> {
        let mut failures = Vec::new();
        while let Some(failure) = self.0.recv().await {
            failures.push(failure);
        }
        failures
    }
}

/// How an event was handled: the result of [`publish_and_join`](super::EventBus::publish_and_join).
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use = "a handler may have failed"]
pub struct Joined {
    pub(super) heard: usize,
    pub(super) failures: Vec<String>,
}

impl Joined {
    /// The number of subscribers that took the event, including those that missed it later because they were too slow.
    #[must_use]
    pub fn heard(&self) -> usize {
        self.heard
    }

    /// The errors and panics of handlers, in the order in which they happened.
    ///
    /// Each was also [reported](crate::LayerEvent::HandlerFailed).
    #[must_use]
    pub fn failures(&self) -> &[String] {
        &self.failures
    }
}
