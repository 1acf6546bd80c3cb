//! Single flight: of all who miss the same key at once, one calls (the *leader*) and the others wait for what it
//! brings.
//!
//! Leadership is a value, [`Lead`]. Who holds it either lands, which tells the waiters the outcome, or drops it, by
//! panic or cancellation, which hands it to the first waiter that is still there. It travels through the waiter's
//! channel as that same value, so a waiter that was chosen and is dropped before it noticed hands it on as well.
//!
//! Nothing of the user's but `Eq` of a key that arrives runs under the lock, nor is anybody woken or anything dropped
//! under it. A flight ends by its number: that never asks the key.

use std::{
    collections::{HashMap, VecDeque},
    mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use hashbrown::HashTable;
use tokio::sync::oneshot::{self, Receiver, Sender};

use super::store::Hashed;
use crate::caught::undisturbed;

/// Waiters who gave up are looked for when so many wait, and again at each doubling of those who stayed.
const FIRST_PRUNING: usize = 16;

/// The flights under way, in which `M` is told to the waiters.
pub(super) struct Flights<K, M> {
    table: Mutex<Table<K, M>>,
}

struct Table<K, M> {
    /// The flight that new arrivals join, by its key. One that was detached is not here any more.
    current: HashTable<(Arc<Hashed<K>>, u64)>,
    flying: HashMap<u64, Flight<K, M>>,
    numbers: u64,
}

struct Flight<K, M> {
    waiters: VecDeque<Sender<Message<K, M>>>,
    prune_at: usize,
}

/// What a waiter receives. An error of the channel means that the leader panicked while it told the others.
pub(super) enum Message<K, M> {
    Landed(M),
    /// What the leader got is for nobody else: all who waited call for themselves, at once.
    Alone,
    Lead(Lead<K, M>),
}

/// What an arrival becomes.
pub(super) enum Arrival<K, M, T> {
    Found(T),
    Leader(Lead<K, M>),
    Waiter(Receiver<Message<K, M>>),
}

impl<K, M> Flights<K, M> {
    pub(super) fn new() -> Arc<Self> {
        let table = Table { current: HashTable::new(), flying: HashMap::new(), numbers: 0 };
        Arc::new(Self { table: Mutex::new(table) })
    }

    /// Waits with the flight for `key`; or, if there is none, takes what `find` finds, for a flight may have landed
    /// since the caller looked; or starts one.
    pub(super) fn join<T>(self: &Arc<Self>, key: &Arc<Hashed<K>>, find: impl FnOnce() -> Option<T>) -> Arrival<K, M, T>
    where
        K: Eq,
    {
        let mut table = self.lock();
        let Some(flight) = table.flight(key) else {
            return match find() {
                Some(found) => Arrival::Found(found),
                None => Arrival::Leader(self.start(&mut table, key)),
            };
        };
        let (sender, receiver) = oneshot::channel();
        let gone = flight.prune();
        flight.waiters.push_back(sender);
        drop(table);
        drop(gone);
        Arrival::Waiter(receiver)
    }

    /// Starts a flight for `key`, unless there is one or `needless` says that it is not needed any more.
    pub(super) fn lead(self: &Arc<Self>, key: &Arc<Hashed<K>>, needless: impl FnOnce() -> bool) -> Option<Lead<K, M>>
    where
        K: Eq,
    {
        let mut table = self.lock();
        (table.flight(key).is_none() && !needless()).then(|| self.start(&mut table, key))
    }

    /// Detaches the flight for `key`: its waiters get what it brings, but nothing is stored, and nobody joins it.
    /// `remove` runs before any other flight for the key can start or land.
    pub(super) fn detach<T>(&self, hash: u64, key: &K, remove: impl FnOnce() -> T) -> T
    where
        K: Eq,
    {
        let mut table = self.lock();
        let detached = table.current.find_entry(hash, |(other, _)| other.is(hash, key));
        let detached = detached.ok().map(|entry| entry.remove().0);
        let removed = remove();
        drop(table);
        drop(detached);
        removed
    }

    /// The same for all keys.
    pub(super) fn detach_all<T>(&self, remove: impl FnOnce() -> T) -> T {
        let mut table = self.lock();
        let detached = mem::take(&mut table.current);
        let removed = remove();
        drop(table);
        drop(detached);
        removed
    }

    fn start(self: &Arc<Self>, table: &mut Table<K, M>, key: &Arc<Hashed<K>>) -> Lead<K, M> {
        table.numbers += 1;
        let number = table.numbers;
        table.current.insert_unique(key.hash, (Arc::clone(key), number), |(key, _)| key.hash);
        table.flying.insert(number, Flight { waiters: VecDeque::new(), prune_at: FIRST_PRUNING });
        Lead { flights: Arc::clone(self), key: Arc::clone(key), number, landed: false }
    }

    fn lock(&self) -> MutexGuard<'_, Table<K, M>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K, M> Table<K, M> {
    fn flight(&mut self, key: &Hashed<K>) -> Option<&mut Flight<K, M>>
    where
        K: Eq,
    {
        let (_, number) = self.current.find(key.hash, |(other, _)| other.is(key.hash, &key.key))?;
        self.flying.get_mut(number)
    }

    fn is_current(&self, lead: &Lead<K, M>) -> bool {
        self.current.find(lead.key.hash, |(_, number)| *number == lead.number).is_some()
    }

    /// Ends the flight of `lead`, and gives those who wait. Of its key `lead` has a reference too.
    fn end(&mut self, lead: &Lead<K, M>) -> VecDeque<Sender<Message<K, M>>> {
        if let Ok(current) = self.current.find_entry(lead.key.hash, |(_, number)| *number == lead.number) {
            drop(current.remove());
        }
        self.flying.remove(&lead.number).map(|flight| flight.waiters).unwrap_or_default()
    }

    /// The next who may lead the flight of `lead`. Without one the flight is over.
    fn successor(&mut self, lead: &Lead<K, M>) -> Option<Sender<Message<K, M>>> {
        let next = self.flying.get_mut(&lead.number)?.waiters.pop_front();
        if next.is_none() {
            self.end(lead);
        }
        next
    }
}

impl<K, M> Flight<K, M> {
    /// Takes out those who gave up, at a cost that is constant for each arrival.
    fn prune(&mut self) -> VecDeque<Sender<Message<K, M>>> {
        if self.waiters.len() < self.prune_at {
            return VecDeque::new();
        }
        let (gone, here) = mem::take(&mut self.waiters).into_iter().partition(Sender::is_closed);
        self.waiters = here;
        self.prune_at = FIRST_PRUNING.max(2 * self.waiters.len());
        gone
    }
}

/// The duty to bring an outcome for a key. Dropped without one, it goes to the next waiter.
pub(super) struct Lead<K, M> {
    flights: Arc<Flights<K, M>>,
    key: Arc<Hashed<K>>,
    number: u64,
    landed: bool,
}

impl<K, M> Lead<K, M> {
    pub(super) fn key(&self) -> &Hashed<K> {
        &self.key
    }

    /// Ends the flight. Unless it was detached, `store` runs before anybody else can look, start a flight or detach.
    pub(super) fn land<T>(mut self, store: impl FnOnce(Arc<Hashed<K>>) -> T) -> (Option<T>, Waiters<K, M>) {
        let flights = Arc::clone(&self.flights);
        let mut table = flights.lock();
        let stored = table.is_current(&self).then(|| store(Arc::clone(&self.key)));
        let waiters = table.end(&self);
        self.landed = true;
        drop(table);
        (stored, Waiters(waiters))
    }

    /// Gives the lead to the next who waits. Nobody is told under the lock.
    fn hand_on(&self) {
        loop {
            let next = self.flights.lock().successor(self);
            let Some(next) = next else { return };
            let heir = Self {
                flights: Arc::clone(&self.flights),
                key: Arc::clone(&self.key),
                number: self.number,
                landed: false,
            };
            match next.send(Message::Lead(heir)) {
                // Who gave up meanwhile sends it back; then it is still this one that looks for the next.
                Err(Message::Lead(mut heir)) => heir.landed = true,
                _ => return,
            }
        }
    }
}

impl<K, M> Drop for Lead<K, M> {
    fn drop(&mut self) {
        if !self.landed {
            self.hand_on();
        }
    }
}

/// Those who waited for a flight that landed.
#[must_use = "they wait to be told"]
pub(super) struct Waiters<K, M>(VecDeque<Sender<Message<K, M>>>);

impl<K, M> Waiters<K, M> {
    /// Tells everybody who is still there, also behind a waker that panics. If `message` or its copy panics, the rest learn that nobody
    /// will tell them.
    pub(super) fn tell(self, message: impl FnOnce() -> M)
    where
        M: Clone,
    {
        let mut waiters = self.0.into_iter().filter(|waiter| !waiter.is_closed());
        let Some(first) = waiters.next() else { return };
        let message = message();
        for waiter in waiters {
            // Who leaves at this very moment needs no message.
            let message = message.clone();
            undisturbed(|| drop(waiter.send(Message::Landed(message))));
        }
        undisturbed(|| drop(first.send(Message::Landed(message))));
    }

    /// Tells everybody to call for themselves.
    pub(super) fn release(self) {
        for waiter in self.0 {
            let _ = waiter.send(Message::Alone);
        }
    }
}

#[cfg(test)]
mod tests;
