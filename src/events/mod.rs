//! Typed events, published and received through an [`EventBus`].
//!
//! A bus carries events of any type, and each subscriber receives the events of one type. Publishers and subscribers
//! need not know each other. A bus is a value: events published on one bus do not reach the subscribers of another, and
//! a clone is the same bus. Every [`Scope`](crate::Scope::events) has a bus, which closes with the scope.
//!
//! # Order
//!
//! All subscribers of a type receive its events in the same order. A subscriber receives the events that are published
//! after `subscribe` has returned.
//!
//! # Slow subscribers
//!
//! Publishing never waits for a slow subscriber, unless the publisher and the subscriber both ask for it. Each
//! subscriber has a bounded queue, by default of [`DEFAULT_CAPACITY`] events. [`Lag`] decides what happens when the
//! queue is full. By default the subscriber misses the oldest event, and its stream reports how many it has missed.
//!
//! # Isolation
//!
//! A handler that fails or panics is reported and then called for the next event. Dropping a subscriber affects no
//! other. An event without subscribers is dropped, and a type without subscribers takes no memory.
//!
//! # Cancellation safety
//!
//! Dropping a [`Subscription`] or a [`HandlerGuard`] unsubscribes. [`publish`](EventBus::publish) never waits, so there
//! is nothing to cancel. If [`publish_and_wait`](EventBus::publish_and_wait) is dropped while it waits, no subscriber
//! receives the event. If [`publish_and_join`](EventBus::publish_and_join) is dropped after it has published, the
//! handlers run on.
//!
//! # Cost
//!
//! Publishing allocates once, whatever the number of subscribers, and not at all where there are none. Apart from that,
//! only queues allocate: a queue doubles when more events wait in it than ever before, and evictions from a full queue
//! allocate too. Publishing takes the lock of the event's type and one lock for each subscriber. Subscribers make the
//! copies, so wrap a large event in an [`Arc`].
//!
//! # Examples
//!
//! ```
//! use ziggurat::EventBus;
//!
//! #[derive(Debug, Clone, PartialEq)]
//! struct OrderPlaced {
//!     id: u64,
//! }
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() {
//! let bus = EventBus::new();
//!
//! let mut orders = bus.subscribe::<OrderPlaced>();
//! let guard = bus.on(|order: OrderPlaced| async move {
//!     println!("an e-mail about order {}", order.id);
//!     if order.id == 0 { Err("there is no such order") } else { Ok(()) } // reported, and the next one is handled
//! });
//!
//! assert_eq!(bus.publish(OrderPlaced { id: 7 }), 2);
//! bus.close();
//!
//! assert_eq!(orders.next().await, Some(Ok(OrderPlaced { id: 7 })));
//! assert_eq!(orders.next().await, None);
//! guard.finished().await;
//! # }
//! ```

use std::{
    any::{Any, TypeId},
    borrow::Cow,
    collections::HashMap,
    fmt,
    future::Future,
    mem,
    pin::Pin,
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
};

use tokio::runtime::Handle;

mod event_type;
mod handler;
mod joined;
mod queue;
mod subscription;
mod topic;

pub use self::{
    event_type::EventType,
    handler::{Handled, HandlerGuard},
    joined::Joined,
    queue::{Lag, Lagged},
    subscription::Subscription,
};
use self::{
    event_type::refuse_references,
    handler::{Ended, handle},
    joined::Item,
    subscription::Seat,
    topic::{AnyTopic, Topic},
};
use crate::telemetry::{LayerInfo, Observer, layer_info};

/// The number of events that may wait for a subscriber by default.
///
/// The value is that of Java's `Flow.defaultBufferSize()`.
pub const DEFAULT_CAPACITY: usize = 256;

/// Carries events from publishers to subscribers: see the [module](self).
///
/// A clone is the same bus, and cheap. Dropping the last clone closes the bus.
#[derive(Clone)]
pub struct EventBus {
    inner: Arc<Inner>,
    info: LayerInfo,
    /// Runs the handlers. With `None`, a handler runs on the runtime that it is attached in.
    spawn: Option<Arc<dyn Spawn>>,
}

/// Runs the handlers of a bus.
pub(crate) trait Spawn: Send + Sync {
    /// Runs a handler, or drops it if nothing can run it any more.
    fn spawn(&self, handling: Pin<Box<dyn Future<Output = ()> + Send>>);
}

/// The topics of a bus, by event type.
struct Inner {
    topics: RwLock<Topics>,
}

#[derive(Default)]
struct Topics {
    is_closed: bool,
    by_type: HashMap<TypeId, Arc<dyn AnyTopic>>,
}

impl EventBus {
    /// Creates a bus without subscribers.
    #[must_use]
    pub fn new() -> Self {
        Self { inner: Arc::new(Inner { topics: RwLock::default() }), info: layer_info!("events"), spawn: None }
    }

    /// Creates a bus that runs its handlers with `spawn`.
    pub(crate) fn of(spawn: Arc<dyn Spawn>) -> Self {
        Self { spawn: Some(spawn), ..Self::new() }
    }

    /// Names this clone of the bus, in reports about the handlers that are attached through it.
    #[must_use]
    pub fn named(mut self, name: impl Into<Cow<'static, str>>) -> Self {
        self.info = self.info.named(name);
        self
    }

    /// Adds an observer of the handlers that are attached through this clone of the bus.
    ///
    /// It receives [`LayerEvent::HandlerFailed`](crate::LayerEvent::HandlerFailed) and
    /// [`LayerEvent::HandlerLagged`](crate::LayerEvent::HandlerLagged).
    #[must_use]
    pub fn observer(mut self, observer: impl Observer) -> Self {
        self.info = self.info.observer(observer);
        self
    }

    /// Subscribes to all events of type `E` that are published from now on.
    ///
    /// At most [`DEFAULT_CAPACITY`] events wait. Beyond that the subscriber misses the oldest, and the stream reports
    /// how many it has missed. On a closed bus the stream ends at once.
    ///
    /// # Panics
    ///
    /// If `E` is a reference to a sized type: see [`EventType`].
    #[track_caller]
    pub fn subscribe<E: Clone + Send + Sync + 'static>(&self) -> Subscription<E> {
        self.subscribe_with(DEFAULT_CAPACITY, Lag::default())
    }

    /// Subscribes with a queue of `capacity` events, and with `lag` to decide what happens when it is full.
    ///
    /// The queue grows as events arrive. An event is in memory once, however many subscribers it waits for.
    ///
    /// # Panics
    ///
    /// If `capacity` is zero, or `E` is a reference to a sized type: see [`EventType`].
    #[track_caller]
    pub fn subscribe_with<E: Clone + Send + Sync + 'static>(&self, capacity: usize, lag: Lag) -> Subscription<E> {
        refuse_references::<E>();
        assert!(capacity > 0, "capacity must be at least 1, not 0");
        self.seat(capacity, lag, false)
    }

    /// Subscribes a relay, which does not receive the events that relays publish.
    #[cfg(feature = "redis")]
    pub(crate) fn subscribe_relay<E: Clone + Send + Sync + 'static>(&self, capacity: usize) -> Subscription<E> {
        self.seat(capacity, Lag::default(), true)
    }

    /// Publishes an event of another process.
    #[cfg(feature = "redis")]
    pub(crate) fn publish_relayed<E: Send + Sync + 'static>(&self, event: E) {
        let event = Item { is_relayed: true, ..Item::new(event) };
        if let Some(topic) = self.inner.topic() {
            topic.publish(event);
        }
    }

    fn seat<E: Send + Sync + 'static>(&self, capacity: usize, lag: Lag, is_relay: bool) -> Subscription<E> {
        let mut topics = self.inner.write();
        let is_closed = topics.is_closed;
        let topic = match topics.get::<E>() {
            Some(topic) => topic,
            None => {
                let topic = Arc::<Topic<E>>::default();
                if !is_closed {
                    topics.by_type.insert(TypeId::of::<E>(), topic.clone());
                }
                topic
            }
        };
        let seat = Seat::new(capacity, lag, topic.room(), Arc::downgrade(&self.inner), is_relay);
        if is_closed {
            seat.line.lock().queue.close();
        } else {
            topic.enter(Arc::clone(&seat));
        }
        drop(topics);
        Subscription::new(seat)
    }

    /// Calls `handler` for each event of type `E` that is published from now on, until the guard is dropped.
    ///
    /// The handler runs on a task of its own and handles one event at a time.
    ///
    /// If it returns an error or panics, the bus emits [`LayerEvent::HandlerFailed`](crate::LayerEvent::HandlerFailed)
    /// to `tracing` and to [`observer`](Self::observer)s, and calls the handler for the next event. The publisher and
    /// other subscribers are not affected. A handler that is too slow misses events, as with
    /// [`subscribe`](Self::subscribe), and that is reported too.
    ///
    /// A handler may publish, subscribe and attach handlers. On a [scope's bus](crate::Scope::events) its task belongs
    /// to that scope. On any other bus the task has no scope and no deadline, so the closure has to bring what it needs
    /// ([`Scope::within`](crate::Scope::within)).
    ///
    /// The event comes by value, because a future that borrows it could not be spawned. A handler that takes a
    /// reference does not [compile](EventType).
    ///
    /// # Panics
    ///
    /// If called outside of a tokio runtime.
    #[track_caller]
    pub fn on<E, F, Fut, Form>(&self, handler: F) -> HandlerGuard
    where
        E: EventType<Form> + Clone, // pass the event by value, not a reference: `|event: MyEvent|`
        F: FnMut(E) -> Fut + Send + 'static,
        Fut: Future<Output: Handled> + Send + 'static,
    {
        self.on_with(DEFAULT_CAPACITY, Lag::default(), handler)
    }

    /// Attaches a handler with a queue of `capacity` events, and with `lag` to decide what happens when it is full.
    ///
    /// With [`Lag::Block`], a handler that itself waits to publish an event of its own type can deadlock.
    ///
    /// # Panics
    ///
    /// If `capacity` is zero, or if called outside of a tokio runtime.
    #[track_caller]
    pub fn on_with<E, F, Fut, Form>(&self, capacity: usize, lag: Lag, handler: F) -> HandlerGuard
    where
        E: EventType<Form> + Clone, // pass the event by value, not a reference: `|event: MyEvent|`
        F: FnMut(E) -> Fut + Send + 'static,
        Fut: Future<Output: Handled> + Send + 'static,
    {
        let events = self.subscribe_with(capacity, lag);
        let seat = Arc::clone(&events.seat);
        let ended = Ended::default();
        let guard = HandlerGuard::new(seat, ended.signal());
        let handling = handle(ended, events, handler, self.info.clone());
        let runtime = Handle::current();
        match &self.spawn {
            Some(spawn) => spawn.spawn(Box::pin(handling)),
            None => drop(runtime.spawn(handling)),
        }
        guard
    }

    /// Publishes an event to all subscribers of its type, without waiting, and returns how many have taken it.
    ///
    /// [`Lag`] decides what happens to a subscriber that lags. A subscriber that is dropped for lagging does not count.
    /// On a closed bus, the event reaches no subscriber and `publish` returns 0.
    ///
    /// A reference to an event does not [compile](EventType).
    ///
    /// # Panics
    ///
    /// If `E` is a reference to a sized type that the compiler could not see, behind a type parameter of the caller.
    #[track_caller]
    pub fn publish<E, Form>(&self, event: E) -> usize
    where
        E: EventType<Form>, // pass the event by value, not a reference
    {
        refuse_references::<E>();
        self.inner.topic().map_or(0, |topic| topic.publish(Item::new(event)))
    }

    /// Publishes an event as soon as all subscribers with [`Lag::Block`] have room.
    ///
    /// It does not wait for other subscribers. Waiting publishers publish in turn. If the future is dropped while it
    /// waits, no subscriber receives the event. If the bus closes meanwhile, the wait ends and the future returns 0.
    /// [`publish_and_join`](Self::publish_and_join) also waits until the event is handled.
    ///
    /// # Panics
    ///
    /// As [`publish`](Self::publish) does.
    pub async fn publish_and_wait<E, Form>(&self, event: E) -> usize
    where
        E: EventType<Form>, // pass the event by value, not a reference
    {
        refuse_references::<E>();
        self.give(Item::new(event)).await
    }

    /// Publishes an event as soon as all subscribers with [`Lag::Block`] have room, and waits until all subscribers
    /// have handled it.
    ///
    /// A handler has handled the event when its future has ended. Its errors and panics are reported as usual, and
    /// returned here as well. A [`Subscription`] has handled the event when it asks for the next one. Subscribers that
    /// are dropped or removed, or that miss the event, are not waited for.
    ///
    /// If the future is dropped before the event is published, no subscriber receives it. If it is dropped afterwards,
    /// the handlers run on.
    ///
    /// A handler that joins an event of its own type deadlocks, because it handles one event at a time.
    ///
    /// ```
    /// # use ziggurat::EventBus;
    /// # #[tokio::main(flavor = "current_thread")] async fn main() {
    /// #[derive(Clone)]
    /// struct OrderPlaced(u32);
    ///
    /// let bus = EventBus::new();
    /// bus.on(|OrderPlaced(id)| async move { if id == 0 { Err("there is no such order") } else { Ok(()) } }).detach();
    ///
    /// assert!(bus.publish_and_join(OrderPlaced(7)).await.failures().is_empty());
    /// assert_eq!(bus.publish_and_join(OrderPlaced(0)).await.failures(), ["there is no such order"]);
    /// # }
    /// ```
    ///
    /// # Panics
    ///
    /// As [`publish`](Self::publish) does.
    pub async fn publish_and_join<E, Form>(&self, event: E) -> Joined
    where
        E: EventType<Form>, // pass the event by value, not a reference
    {
        refuse_references::<E>();
        let (item, failures) = Item::joined(event);
        let heard = self.give(item).await;
        Joined { heard, failures: failures.all().await }
    }

    async fn give<E: Send + Sync + 'static>(&self, mut event: Item<E>) -> usize {
        // The last subscriber may leave and subscribe again: the bus then has another topic for the type.
        while let Some(topic) = self.inner.topic() {
            match topic.publish_and_wait(event).await {
                Ok(heard) => return heard,
                Err(back) => event = back,
            }
        }
        0
    }

    /// Closes the bus, for all clones: streams and handlers end after their backlog. A second call does nothing.
    pub fn close(&self) {
        self.inner.close();
    }

    /// Whether the bus is closed.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.inner.read().is_closed
    }
}

impl Default for EventBus {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for EventBus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let topics = self.inner.read();
        f.debug_struct("EventBus")
            .field("types", &topics.by_type.len())
            .field("is_closed", &topics.is_closed)
            .field("info", &self.info)
            .finish()
    }
}

impl Inner {
    fn read(&self) -> RwLockReadGuard<'_, Topics> {
        self.topics.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Topics> {
        self.topics.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn topic<E: Send + Sync + 'static>(&self) -> Option<Arc<Topic<E>>> {
        self.read().get()
    }

    /// Removes a subscriber, and its topic if that has no other.
    fn leave<E: Send + Sync + 'static>(&self, seat: &Arc<Seat<E>>) {
        let mut topics = self.write();
        if topics.get::<E>().is_some_and(|topic| topic.leave(seat)) {
            topics.by_type.remove(&TypeId::of::<E>());
        }
    }

    fn close(&self) {
        let topics = {
            let mut topics = self.write();
            topics.is_closed = true;
            mem::take(&mut topics.by_type)
        };
        topics.values().for_each(|topic| topic.close());
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.close();
    }
}

impl Topics {
    fn get<E: Send + Sync + 'static>(&self) -> Option<Arc<Topic<E>>> {
        let topic: Arc<dyn Any + Send + Sync> = Arc::clone(self.by_type.get(&TypeId::of::<E>())?) as _;
        topic.downcast().ok()
    }
}
