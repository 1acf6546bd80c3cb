//! The subscribers to one type of event, and how they receive an event.
//!
//! All of them receive an event under one lock, so that all see the events in the same order. They receive it as an
//! [`Arc`], so that no user code runs under a lock: subscribers are woken, and values dropped, after the lock is
//! released. A waker is user code too, and its panic affects no other subscriber.

use std::{
    any::Any,
    iter::repeat_n,
    sync::{Arc, atomic::Ordering::Relaxed},
};

use tokio::sync::Notify;

use super::{
    joined::Item,
    queue::Pushed,
    subscription::{Line, Seat},
};
use crate::{caught::undisturbed, mutex::Mutex};

type Seats<E> = Arc<Vec<Arc<Seat<E>>>>;

pub(super) struct Topic<E> {
    seated: Mutex<Seated<E>>,
    /// Makes waiting publishers publish in turn. The holder waits on `room`.
    turn: tokio::sync::Mutex<()>,
    room: Arc<Notify>,
}

struct Seated<E> {
    /// Changed in place, and copied only while a publisher is still waking subscribers.
    seats: Seats<E>,
    /// The last subscriber has left: the next one enters another topic.
    is_left: bool,
}

/// Why no subscriber took the event.
enum Refused<E> {
    /// A subscriber with [`Lag::Block`](super::Lag::Block) has no room.
    NoRoom(Item<E>),
    /// All subscribers have left. The bus may have another topic for the type by now.
    Left(Item<E>),
}

impl<E> Default for Topic<E> {
    fn default() -> Self {
        let seated = Mutex::new(Seated { seats: Arc::default(), is_left: false });
        Self { seated, turn: tokio::sync::Mutex::default(), room: Arc::default() }
    }
}

impl<E> Topic<E> {
    pub(super) fn room(&self) -> Arc<Notify> {
        Arc::clone(&self.room)
    }

    pub(super) fn enter(&self, seat: Arc<Seat<E>>) {
        let Seated { seats, .. } = &mut *self.seated.lock();
        seat.place.store(seats.len(), Relaxed);
        Arc::make_mut(seats).push(seat);
    }

    /// Removes a subscriber. Returns whether none is left, in which case the bus removes the topic.
    pub(super) fn leave(&self, seat: &Arc<Seat<E>>) -> bool {
        let Seated { seats, is_left } = &mut *self.seated.lock();
        let place = seat.place.load(Relaxed);
        if seats.get(place).is_some_and(|other| Arc::ptr_eq(other, seat)) {
            let seats = Arc::make_mut(seats);
            seats.swap_remove(place);
            if let Some(moved) = seats.get(place) {
                moved.place.store(place, Relaxed);
            }
        }
        *is_left = seats.is_empty();
        *is_left
    }

    /// Gives the event to all subscribers, and returns how many took it.
    pub(super) fn publish(&self, event: Item<E>) -> usize {
        self.give(event, false).unwrap_or_default()
    }

    /// Gives the event to all subscribers as soon as none that blocks is full. If dropped before, no subscriber
    /// receives it.
    ///
    /// # Errors
    ///
    /// The event, if all subscribers have left.
    pub(super) async fn publish_and_wait(&self, mut event: Item<E>) -> Result<usize, Item<E>> {
        let _turn = Turn(Some(self.turn.lock().await));
        loop {
            match self.give(event, true) {
                Ok(heard) => return Ok(heard),
                Err(Refused::NoRoom(back)) => event = back,
                Err(Refused::Left(back)) => return Err(back),
            }
            self.room.notified().await;
        }
    }

    fn give(&self, event: Item<E>, wait: bool) -> Result<usize, Refused<E>> {
        let (mut heard, mut is_awaited) = (0, false);
        // Allocates only if a subscriber lags. All refused items are the same event, so keeping one is enough to drop
        // the others early.
        let mut missed = Vec::new();
        let (mut refused, mut receipt) = (None, None);
        let seated = self.seated.lock();
        if wait && seated.is_left {
            return Err(Refused::Left(event));
        }
        let seats = &seated.seats;
        if seats.is_empty() {
            drop(seated);
            return Ok(0);
        }
        if wait && seats.iter().any(|seat| seat.line.lock().queue.blocks()) {
            return Err(Refused::NoRoom(event));
        }
        let copies = repeat_n(event, seats.len());
        for (seat, mut event) in seats.iter().zip(copies) {
            if seat.is_relay {
                if event.is_relayed {
                    refused = Some(event);
                    continue;
                }
                // A publisher that waits for handlers does not wait for another process.
                receipt = event.receipt.take().or(receipt);
            }
            let Line { queue, waiting } = &mut *seat.line.lock();
            match queue.push(event) {
                Pushed::Waits { instead_of } => {
                    heard += 1;
                    is_awaited |= waiting.is_some();
                    missed.extend(instead_of);
                }
                // A refused subscriber stays in the topic for as long as its subscription lives.
                Pushed::Refused(event) => refused = Some(event),
            }
        }
        let told = is_awaited.then(|| Arc::clone(seats));
        drop(seated);
        told.iter().flat_map(|seats| seats.iter()).for_each(|seat| seat.wake());
        drop((missed, refused, receipt));
        Ok(heard)
    }
}

/// Wakes the next publisher when dropped. A waker that panics affects no other subscriber.
struct Turn<'a>(Option<tokio::sync::MutexGuard<'a, ()>>);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let turn = self.0.take();
        undisturbed(|| drop(turn));
    }
}

/// A topic, whatever its event type.
pub(super) trait AnyTopic: Any + Send + Sync {
    /// Ends the streams of all subscribers, after their backlog.
    fn close(&self);
}

impl<E: Send + Sync + 'static> AnyTopic for Topic<E> {
    fn close(&self) {
        let seats = std::mem::take(&mut self.seated.lock().seats);
        for seat in seats.iter() {
            seat.line.lock().queue.close();
            seat.wake();
        }
        undisturbed(|| self.room.notify_one());
    }
}
