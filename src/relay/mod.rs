//! Carries events between processes, through Redis or Valkey.
//!
//! An event that a process publishes on a [bus](crate::events) reaches the subscribers of its own process. A
//! [`RedisRelay`] carries the events of one type to other processes too: each of them has a relay with the same channel
//! and type, and publishes the events that it receives on its own bus. Publishers and subscribers do not change.
//!
//! # Delivery
//!
//! The relay uses Redis' pub/sub, which delivers *at most once*. A process misses the events that are published while
//! it is not connected, and no event is sent twice. All events of one process arrive in their order. For events that
//! must not be lost, use a queue.
//!
//! - Events that a relay has received are not sent again, by no relay, so they never go round in circles. A process
//!   does not receive its own events from the server.
//! - An event that cannot be decoded is skipped, and [`LayerEvent::NotDecoded`] reports it.
//!
//! # While the server is away
//!
//! Publishing on the bus never waits for the server, and neither does a publisher that
//! [waits until its event is handled](crate::events::EventBus::publish_and_join). Up to
//! [`capacity`](RedisRelay::capacity) events wait to be sent, and beyond that the relay misses the oldest
//! ([`LayerEvent::HandlerLagged`]). A request to the server ends after the [`timeout`](RedisRelay::timeout). After the
//! first failure, events are dropped at once, except for one probe after each pause of up to 2 s.
//! [`RelayHandle::lost`] counts all events that were not sent. Failures are [`LayerEvent::StoreFailed`].
//!
//! The relay connects again by itself, to receive, with pauses from 100 ms to 2 s. A connection on which nothing has
//! arrived for 10 s is checked.
//!
//! # Scopes
//!
//! The relay belongs to a scope, and so do its tasks. When the scope starts to close, the relay stops receiving, and
//! sends the events that still wait.
//!
//! # Slow subscribers
//!
//! On the bus, the relay is one more subscriber to the events of its process. A received event is published at once,
//! and [`Lag`](crate::events::Lag) decides about slow subscribers, as for any event. If decoding is slower than the
//! events come, up to [`capacity`](RedisRelay::capacity) of them wait, and the relay misses the oldest, as when it
//! sends.
//!
//! # Examples
//!
//! ```no_run
//! use bytes::Bytes;
//! use ziggurat::{Scope, relay::RedisRelay};
//!
//! #[derive(Debug, Clone)]
//! struct OrderPlaced {
//!     id: u64,
//! }
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let codec = (
//!     |order: &OrderPlaced| Some(Bytes::from(order.id.to_string())),
//!     |bytes: Bytes| match std::str::from_utf8(&bytes).map(str::parse) {
//!         Ok(Ok(id)) => Ok(OrderPlaced { id }),
//!         _ => Err("not the number of an order"),
//!     },
//! );
//! let app = Scope::root("app");
//! RedisRelay::new(redis::Client::open("redis://127.0.0.1/")?, "orders", codec).start(&app);
//!
//! app.events().on(|order: OrderPlaced| async move { println!("order {}, of any process", order.id) }).detach();
//! app.events().publish(OrderPlaced { id: 7 });
//! # app.close().await?;
//! # Ok(())
//! # }
//! ```

use std::{
    any::type_name,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use ::redis::Client;

mod inbox;
mod receive;
mod send;

use crate::{
    caught::undisturbed,
    debug::impl_debug,
    events::DEFAULT_CAPACITY,
    scope::Scope,
    store::{Codec, Link},
    telemetry::{LayerEvent, LayerInfo, layer_info, layer_setters},
};

/// How long a request to the server may take.
const TIMEOUT: Duration = Duration::from_secs(1);

/// The longest timeout.
const HOUR: Duration = Duration::from_secs(60 * 60);

/// Carries the events of one type between processes: see the [module](self).
#[must_use = "a relay does nothing before `start`"]
pub struct RedisRelay<D> {
    client: Client,
    channel: String,
    codec: D,
    capacity: usize,
    timeout: Duration,
    info: LayerInfo,
}

impl<D> RedisRelay<D> {
    /// Creates a relay over this channel of the server.
    ///
    /// `codec` encodes events as bytes: a pair of closures, or another [`Codec`]. An event that it encodes as `None`
    /// stays in its process. All relays of a channel need the same codec and type.
    pub fn new(client: Client, channel: impl Into<String>, codec: D) -> Self {
        let info = layer_info!("relay");
        Self { client, channel: channel.into(), codec, capacity: DEFAULT_CAPACITY, timeout: TIMEOUT, info }
    }

    /// Sets how many events may wait to be sent, and how many to be decoded. The default is [`DEFAULT_CAPACITY`].
    ///
    /// # Panics
    ///
    /// If `capacity` is zero.
    #[track_caller]
    pub fn capacity(mut self, capacity: usize) -> Self {
        assert!(capacity > 0, "`capacity` must be at least 1: no event could ever be sent");
        self.capacity = capacity;
        self
    }

    /// Sets how long the server may take for an event. The default is a second. More than an hour is an hour.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout.min(HOUR);
        self
    }

    layer_setters!();

    /// Carries the events of [the scope's bus](Scope::events) that are published from now on, until the scope closes.
    ///
    /// The tasks of the relay belong to the scope. In a scope that is closed, or without a tokio runtime, it does
    /// nothing.
    pub fn start<E>(self, scope: &Scope) -> RelayHandle
    where
        E: Clone + Send + Sync + 'static,
        D: Codec<E> + Send + Sync + 'static,
    {
        let bus = scope.events();
        // Before the tasks begin: an event that is published after this call is sent.
        let events = bus.subscribe_relay::<E>(self.capacity);
        let counts = Arc::new(Counts::default());
        let relay = Arc::new(Relay { settings: self, id: fastrand::u128(..), counts: Arc::clone(&counts) });
        drop(scope.spawn(send::run(Arc::clone(&relay), events, scope.cancelled())));
        drop(scope.spawn(receive::run(relay, bus, scope.cancelled())));
        RelayHandle { counts }
    }
}

impl_debug!(RedisRelay<D> { channel, codec: D, capacity, timeout, info, .. });

/// A relay at work.
struct Relay<D> {
    settings: RedisRelay<D>,
    /// The first bytes of each message: a relay ignores its own.
    id: u128,
    counts: Arc<Counts>,
}

/// The number of bytes of an id.
const ID: usize = size_of::<u128>();

#[derive(Default)]
struct Counts {
    link: Link,
    is_connected: AtomicBool,
    sent: AtomicU64,
    received: AtomicU64,
    lost: AtomicU64,
}

impl<D> Relay<D> {
    /// Notes that events of a type were lost, because too many waited.
    fn missed<E>(&self, missed: u64) {
        self.counts.lost.fetch_add(missed, Relaxed);
        self.tell(LayerEvent::HandlerLagged { of: type_name::<E>(), missed: Some(missed) });
    }

    fn not_decoded(&self, error: &str) {
        self.tell(LayerEvent::NotDecoded { error });
    }

    /// Emits an event. An observer that panics does not end the task.
    fn tell(&self, event: LayerEvent<'_>) {
        undisturbed(|| self.settings.info.emit(event));
    }
}

/// A handle to the live state of a [`RedisRelay`]. Dropping it does not end the relay.
#[derive(Clone)]
pub struct RelayHandle {
    counts: Arc<Counts>,
}

impl RelayHandle {
    /// Returns whether the relay is connected, so that it receives events.
    #[must_use]
    pub fn is_connected(&self) -> bool {
        self.counts.is_connected.load(Relaxed)
    }

    /// Returns whether the last event could not be sent.
    #[must_use]
    pub fn is_away(&self) -> bool {
        self.counts.link.is_away()
    }

    /// Returns the number of events that were sent. Each may have had zero or more receivers.
    #[must_use]
    pub fn sent(&self) -> u64 {
        self.counts.sent.load(Relaxed)
    }

    /// Returns the number of events that were received, and published on the bus of this process.
    #[must_use]
    pub fn received(&self) -> u64 {
        self.counts.received.load(Relaxed)
    }

    /// Returns the number of events that this process has lost: those that were not sent, because the server was away
    /// or too many waited, and those that have arrived and were not published, because too many waited.
    ///
    /// This is an upper bound: an event whose answer did not arrive in time counts, and may have been delivered.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.counts.lost.load(Relaxed)
    }
}

impl_debug!(RelayHandle {
    is_connected = |this| this.is_connected(),
    is_away = |this| this.is_away(),
    sent = |this| this.sent(),
    received = |this| this.received(),
    lost = |this| this.lost(),
});

#[cfg(all(test, not(ziggurat_loom)))]
mod tests;
