//! Events: some publish, others subscribe, and neither knows of the other.
//!
//! An [`EventBus`] carries events of any type, and a subscriber hears those of one type. It is a value: what is published on one bus is not
//! heard on another, and a clone is the same bus. Every [`Scope`](crate::Scope::events) has one, which is closed with it.
//!
//! - **Order.** All subscribers of a type see its events in one and the same order.
//! - **Only what comes after.** A subscriber hears what is published after `subscribe` has returned.
//! - **Nobody waits for a slow subscriber**, unless both sides say so. What waits is bounded for each subscriber, by default at
//!   [`DEFAULT_CAPACITY`] events, and [`Lag`] says what happens beyond; by default the oldest event is missed, and the stream says how
//!   many were.
//! - **Nobody disturbs another.** A handler that fails or panics is reported, and goes on with the next event. A subscriber that is
//!   dropped is gone at once, and no other notices.
//! - **Nothing is left behind.** An event that nobody hears is dropped, and a type that nobody subscribes to takes no memory.
//!
//! **Cancellation.** Dropping a [`Subscription`] or a [`HandlerGuard`] unsubscribes. [`publish`](EventBus::publish) has nothing to cancel;
//! [`publish_and_wait`](EventBus::publish_and_wait) that is dropped while it waits has told nobody, and
//! [`publish_and_join`](EventBus::publish_and_join) leaves the handlers of what it published to themselves.
//!
//! **Cost.** Publishing allocates once, whatever the number of subscribers, and not at all where nobody listens. Beyond that only
//! queues allocate, which double where more events wait than ever before, and evictions from those that are full. It takes a lock of
//! the event's type, and one of each subscriber. Copies are made by those who receive: make what is large an [`Arc`].
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

/// So many events may wait for a subscriber if it does not say otherwise: as in Java's `Flow.defaultBufferSize()`.
pub const DEFAULT_CAPACITY: usize = 256;

/// Carries events from those who publish to those who subscribe: see the [module](self). A clone is the same bus, and cheap.
///
/// When the last clone is gone, it is closed.
#[derive(Clone)]
pub struct EventBus {
    inner: Arc<Inner>,
    info: LayerInfo,
    /// Runs its handlers; `None`: the runtime of whoever attaches them.
    spawn: Option<Arc<dyn Spawn>>,
}

/// Runs the handlers of a bus.
pub(crate) trait Spawn: Send + Sync {
    /// Runs a handler, or drops it where nothing can run it any more.
    fn spawn(&self, handling: Pin<Box<dyn Future<Output = ()> + Send>>);
}

/// The topics of a bus, by the type of their events.
struct Inner {
    topics: RwLock<Topics>,
}

#[derive(Default)]
struct Topics {
    is_closed: bool,
    by_type: HashMap<TypeId, Arc<dyn AnyTopic>>,
}

impl EventBus {
    /// A bus that nobody has subscribed to.
    #[must_use]
    pub fn new() -> Self {
        Self { inner: Arc::new(Inner { topics: RwLock::default() }), info: layer_info!("events"), spawn: None }
    }

    /// A bus whose handlers `spawn` runs.
    pub(crate) fn of(spawn: Arc<dyn Spawn>) -> Self {
        Self { spawn: Some(spawn), ..Self::new() }
    }

    /// The same bus under a name, which the reports about handlers carry that are attached through this clone.
    #[must_use]
    pub fn named(mut self, name: impl Into<Cow<'static, str>>) -> Self {
        self.info = self.info.named(name);
        self
    }

    /// The same bus, with somebody who hears the reports about handlers that are attached through this clone:
    /// [`LayerEvent::HandlerFailed`](crate::LayerEvent::HandlerFailed) and [`LayerEvent::HandlerLagged`](crate::LayerEvent::HandlerLagged).
    #[must_use]
    pub fn observer(mut self, observer: impl Observer) -> Self {
        self.info = self.info.observer(observer);
        self
    }

    /// The events of this type that are published from now on. At most [`DEFAULT_CAPACITY`] of them wait; beyond that the oldest are
    /// missed, and the stream tells how many were.
    ///
    /// On a bus that is closed the stream ends at once.
    ///
    /// # Panics
    ///
    /// If `E` is a reference to a sized type: see [`EventType`].
    #[track_caller]
    pub fn subscribe<E: Clone + Send + Sync + 'static>(&self) -> Subscription<E> {
        self.subscribe_with(DEFAULT_CAPACITY, Lag::default())
    }

    /// The same, with at most `capacity` events that wait, and a choice of what happens beyond.
    ///
    /// What waits takes memory as it comes, and an event is in memory once, however many wait for it.
    ///
    /// # Panics
    ///
    /// If `capacity` is zero, or `E` is a reference to a sized type: see [`EventType`].
    #[track_caller]
    pub fn subscribe_with<E: Clone + Send + Sync + 'static>(&self, capacity: usize, lag: Lag) -> Subscription<E> {
        refuse_references::<E>();
        assert!(capacity > 0, "capacity must be at least 1, not 0");
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
        let seat = Seat::new(capacity, lag, topic.room(), Arc::downgrade(&self.inner));
        if is_closed {
            seat.line().queue.close();
        } else {
            topic.enter(Arc::clone(&seat));
        }
        drop(topics);
        Subscription::new(seat)
    }

    /// Calls `handler` for each event of this type that is published from now on, for one after the other, on a task of its own,
    /// for as long as the guard lives.
    ///
    /// A handler that answers an error or panics is reported ([`LayerEvent::HandlerFailed`](crate::LayerEvent::HandlerFailed), to `tracing` and
    /// [`observer`](Self::observer)s), and is called for the next event: publisher and others never notice. One that is too slow misses
    /// events, as with [`subscribe`](Self::subscribe), which is reported too.
    ///
    /// It may publish, subscribe and attach handlers itself. On a [scope's bus](crate::Scope::events) it is a task of that scope; on another
    /// one its task has no scope and no deadline: what it needs of them, the closure brings along ([`Scope::within`](crate::Scope::within)).
    ///
    /// The event comes by value, because a future that borrows it could not go to a task. A handler of a reference does
    /// not [compile](EventType).
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    #[track_caller]
    pub fn on<E, F, Fut, Form>(&self, handler: F) -> HandlerGuard
    where
        E: EventType<Form> + Clone, // pass the event by value, not a reference: `|event: MyEvent|`
        F: FnMut(E) -> Fut + Send + 'static,
        Fut: Future<Output: Handled> + Send + 'static,
    {
        self.on_with(DEFAULT_CAPACITY, Lag::default(), handler)
    }

    /// The same, with at most `capacity` events that wait, and a choice of what happens beyond.
    ///
    /// With [`Lag::Block`], a handler that itself waits to publish an event of the same type may wait for itself.
    ///
    /// # Panics
    ///
    /// If `capacity` is zero, and outside of a tokio runtime.
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

    /// Gives an event to all who have subscribed to its type; answers how many that are. It never waits.
    ///
    /// A subscriber that lags is dealt with as it chose ([`Lag`]); one that is dropped for it does not count. On a bus that is closed
    /// nobody hears it: the answer is 0.
    ///
    /// A reference to an event does not [compile](EventType).
    ///
    /// # Panics
    ///
    /// If `E` is a reference to a sized type all the same: as the argument of a type parameter of the caller.
    #[track_caller]
    pub fn publish<E, Form>(&self, event: E) -> usize
    where
        E: EventType<Form>, // pass the event by value, not a reference
    {
        refuse_references::<E>();
        self.inner.topic().map_or(0, |topic| topic.publish(event))
    }

    /// Publishes the event once all subscribers with [`Lag::Block`] have room. Others are not waited for.
    ///
    /// Publishers that wait publish in turn. Dropped while it waits, no subscriber has heard the event. A bus that is
    /// closed meanwhile ends the wait: the answer is 0. [`publish_and_join`](Self::publish_and_join) also waits until
    /// the event is handled.
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

    /// Publishes the event once all subscribers with [`Lag::Block`] have room, and waits until all subscribers have
    /// handled it.
    ///
    /// A handler has handled the event when its future has ended, whatever with: errors and panics are reported as
    /// always, and returned. A [`Subscription`] has handled it when it asks for the next event. Subscribers that are
    /// dropped, detached, or miss the event are not waited for.
    ///
    /// Dropped before the event is published, no subscriber has heard it; dropped afterwards, the handlers go on.
    ///
    /// A handler that joins an event of a type that it handles itself waits for itself, for ever: it handles one event
    /// after the other.
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
        // A subscriber that leaves and comes back may be alone in a topic of its own.
        while let Some(topic) = self.inner.topic() {
            match topic.publish_and_wait(event).await {
                Ok(heard) => return heard,
                Err(back) => event = back,
            }
        }
        0
    }

    /// Closes the bus, for all clones: streams end after what waits for them, and handlers too. Once more does nothing.
    pub fn close(&self) {
        self.inner.close();
    }

    /// Whether it is closed.
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

    /// A topic that nobody is left in goes too.
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
