//! The receiving half: messages become events of the bus.

use std::{
    convert::Infallible,
    future::{Future, poll_fn},
    pin::pin,
    sync::{Arc, atomic::Ordering::Relaxed},
    task::Poll,
    time::Duration,
};

use ::redis::RedisResult;
use bytes::{Buf, Bytes};
use tokio::task::consume_budget;

use super::{Counts, ID, Relay, inbox::Inbox};
use crate::{
    backoff::{Backoff, Jitter},
    caught::{contained, undisturbed},
    clock,
    events::EventBus,
    store::Codec,
    telemetry::LayerEvent,
};

/// The pauses before another connection, as those of a store that is away.
const PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));

/// A connection on which nothing arrives for this time is checked.
const QUIET: Duration = Duration::from_secs(10);

/// How long a connection, a subscription or a check may take.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Receives events until the scope is cancelled.
pub(super) async fn run<E, D>(relay: Arc<Relay<D>>, bus: EventBus, cancelled: impl Future<Output = ()>)
where
    E: Send + Sync + 'static,
    D: Codec<E>,
{
    let _ended = Ended(&relay.counts);
    let (mut receives, mut cancelled) = (pin!(relay.receive(&bus)), pin!(cancelled));
    poll_fn(|cx| match cancelled.as_mut().poll(cx) {
        Poll::Ready(()) => Poll::Ready(()),
        Poll::Pending => receives.as_mut().poll(cx),
    })
    .await;
}

/// Ends the connection's entry in the handle, however the task ends.
struct Ended<'a>(&'a Counts);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.0.is_connected.store(false, Relaxed);
    }
}

impl<D> Relay<D> {
    async fn receive<E>(&self, bus: &EventBus)
    where
        E: Send + Sync + 'static,
        D: Codec<E>,
    {
        let (first, longest) = PAUSES;
        let backoff = Backoff::exponential(first).max(longest).jitter(Jitter::Equal);
        let mut failures = 0;
        loop {
            let Err(error) = self.listen(bus).await;
            // A connection that worked for a while begins anew.
            let was_connected = self.counts.is_connected.swap(false, Relaxed);
            failures = if was_connected { 1 } else { failures + 1 };
            self.tell(LayerEvent::StoreFailed { error: &error });
            clock::sleep(backoff.nth(failures, Duration::ZERO)).await;
        }
    }

    /// Receives events from one connection until it fails.
    async fn listen<E>(&self, bus: &EventBus) -> Result<Infallible, String>
    where
        E: Send + Sync + 'static,
        D: Codec<E>,
    {
        let (mut sink, messages) = within(self.settings.client.get_async_pubsub()).await?.split();
        let mut inbox = Inbox::new(messages, self.settings.capacity);
        within(sink.subscribe(&self.settings.channel)).await?;
        self.counts.is_connected.store(true, Relaxed);
        loop {
            match clock::timeout_at(clock::now() + QUIET, poll_fn(|cx| inbox.poll_next(cx))).await {
                Some(Some((missed, message))) => {
                    if missed > 0 {
                        self.missed::<E>(missed);
                    }
                    self.received(Bytes::copy_from_slice(message.get_payload_bytes()), bus);
                    // Messages that never pause must not starve other tasks.
                    consume_budget().await;
                }
                Some(None) => return Err("the connection was closed".to_owned()),
                None => within(sink.ping::<()>()).await?,
            }
        }
    }

    pub(super) fn received<E>(&self, mut message: Bytes, bus: &EventBus)
    where
        E: Send + Sync + 'static,
        D: Codec<E>,
    {
        if message.len() < ID {
            return self.not_decoded("this is not a message of a relay");
        }
        if message.get_u128() == self.id {
            return;
        }
        match contained(|| self.settings.codec.decode(message).map_err(|error| error.to_string())) {
            Some(Ok(event)) => {
                self.counts.received.fetch_add(1, Relaxed);
                // It may drop events, which is user code.
                undisturbed(|| bus.publish_relayed(event));
            }
            Some(Err(error)) => self.not_decoded(&error),
            None => self.not_decoded("the decoder panicked"),
        }
    }
}

async fn within<T>(request: impl Future<Output = RedisResult<T>>) -> Result<T, String> {
    match clock::timeout_at(clock::now() + TIMEOUT, request).await {
        Some(Ok(answer)) => Ok(answer),
        Some(Err(error)) => Err(error.to_string()),
        None => Err(format!("no answer within {TIMEOUT:?}")),
    }
}
