//! The sending half: events of the bus become messages.

use std::{
    future::{Future, poll_fn},
    pin::pin,
    sync::{Arc, atomic::Ordering::Relaxed},
    task::Poll,
    time::Duration,
};

use ::redis::{AsyncConnectionConfig, RedisResult, aio::MultiplexedConnection, cmd};
use bytes::{BufMut, Bytes, BytesMut};

use super::{ID, Relay};
use crate::{
    caught::{caught, contained, undisturbed},
    clock::{self, Instant},
    events::{Lagged, Subscription},
    store::{Advice, Codec},
};

/// A connection that was idle for longer than this is tried before it gets an event: it may have been closed, and an
/// event is never sent twice.
const IDLE: Duration = Duration::from_secs(1);

/// Sends events until the bus is closed or the scope is cancelled, and then those that still wait.
pub(super) async fn run<E, D>(relay: Arc<Relay<D>>, mut events: Subscription<E>, cancelled: impl Future<Output = ()>)
where
    E: Clone + Send + Sync + 'static,
    D: Codec<E>,
{
    let (mut connection, mut cancelled, mut is_cancelled) = (Connection(None), pin!(cancelled), false);
    loop {
        let next = {
            // It clones the event, which is user code.
            let mut next = pin!(caught(events.next()));
            poll_fn(|cx| match next.as_mut().poll(cx) {
                Poll::Ready(next) => Poll::Ready(Some(next)),
                Poll::Pending if is_cancelled => Poll::Pending,
                Poll::Pending => cancelled.as_mut().poll(cx).map(|()| None),
            })
            .await
        };
        match next {
            Some(Ok(Some(Ok(event)))) => {
                if caught(relay.send(&event, &mut connection)).await.is_err() {
                    relay.counts.lost.fetch_add(1, Relaxed);
                }
                undisturbed(|| drop(event));
            }
            Some(Ok(Some(Err(Lagged::Missed(missed))))) => relay.missed::<E>(missed),
            Some(Ok(Some(Err(Lagged::Dropped)))) => {}
            Some(Ok(None)) => return,
            Some(Err(_panic)) => {
                relay.counts.lost.fetch_add(1, Relaxed);
            }
            // The stream now ends after its backlog.
            None => {
                is_cancelled = true;
                events.end();
            }
        }
    }
}

impl<D> Relay<D> {
    async fn send<E>(&self, event: &E, connection: &mut Connection)
    where
        D: Codec<E>,
    {
        let (settings, counts) = (&self.settings, &self.counts);
        // A panic of the encoder is reported by the panic hook.
        let Some(encoded) = contained(|| settings.codec.encode(event)).flatten() else { return };
        let is_probe = match counts.link.advice(clock::now()) {
            Advice::Ask => false,
            Advice::Probe { .. } => true,
            Advice::Away { .. } => {
                counts.lost.fetch_add(1, Relaxed);
                return;
            }
        };
        let message = self.message(&encoded);
        let publish = connection.publish(&settings.client, &settings.channel, &message);
        let sent = counts.link.ask(&settings.info, settings.timeout, is_probe, publish).await;
        let count = if sent.is_ok() { &counts.sent } else { &counts.lost };
        count.fetch_add(1, Relaxed);
    }

    fn message(&self, encoded: &[u8]) -> Bytes {
        let mut message = BytesMut::with_capacity(ID + encoded.len());
        message.put_u128(self.id);
        message.put(encoded);
        message.freeze()
    }
}

/// The connection, and when it was used last. After an error or a timeout there is none.
struct Connection(Option<(MultiplexedConnection, Instant)>);

impl Connection {
    async fn publish(&mut self, client: &redis::Client, channel: &str, message: &[u8]) -> RedisResult<()> {
        let mut connection = self.ready(client).await?;
        cmd("PUBLISH").arg(channel).arg(message).query_async::<()>(&mut connection).await?;
        self.0 = Some((connection, clock::now()));
        Ok(())
    }

    /// Takes the connection if it still works, or makes one.
    async fn ready(&mut self, client: &redis::Client) -> RedisResult<MultiplexedConnection> {
        if let Some((mut connection, used)) = self.0.take() {
            let is_idle = clock::now().saturating_duration_since(used) >= IDLE;
            if !is_idle || cmd("PING").query_async::<()>(&mut connection).await.is_ok() {
                return Ok(connection);
            }
        }
        // The relay's timeout bounds the whole request. The client's own limits would make a longer one useless.
        let config = AsyncConnectionConfig::new().set_connection_timeout(None).set_response_timeout(None);
        client.get_multiplexed_async_connection_with_config(&config).await
    }
}
