//! Single flight: of the concurrent requests that miss the same key, one makes the call (the *leader*) and the others
//! wait for its outcome.
//!
//! Leadership is a value, [`Lead`]. Its holder either lands it, which notifies the waiters, or drops it, through a
//! panic or a cancellation, which passes it to the waiter with the most time left. The value itself travels through the
//! waiter's channel. A waiter that is chosen and dropped before it receives the value therefore passes it on by the
//! same drop.
//!
//! A leader that was woken and is not polled is replaced by the next arrival: see [`Pulse`]. An arrival also wakes a
//! leader that sleeps, every few seconds, because it may wait for a timer of a runtime that is no longer driven.
//!
//! Under the lock, no user code runs except the `Eq` of an arriving key, no waker is called, and no user value is
//! dropped. A flight ends by its number, which needs no key comparison.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, HashMap},
    mem,
    sync::Arc,
    task::Wake,
};

use hashbrown::HashTable;
use tokio::sync::oneshot::{self, Receiver, Sender};

use super::{leads::Leads, store::Hashed};
use crate::{
    ambient::Deadline,
    caught::undisturbed,
    clock::{self, Instant},
    mutex::Mutex,
    pulse::{ABANDONED, Pulse},
};

/// The number of waiters at which those that gave up are first removed, and again each time the rest has doubled.
const FIRST_PRUNING: usize = 16;

/// The flights in progress. `M` is the message to the waiters.
pub(super) struct Flights<K, M> {
    table: Mutex<Table<K, M>>,
}

struct Table<K, M> {
    /// The flight that new arrivals join, by key. A detached flight is not in here.
    current: HashTable<(Arc<Hashed<K>>, u64)>,
    flying: HashMap<u64, Flight<K, M>>,
    numbers: u64,
}

/// The waiters: those with the most time left first, and in order of arrival if they have equal time.
type Waiting<K, M> = BTreeMap<(Reverse<Patience>, u64), Sender<Message<K, M>>>;

/// The waiter that leads next, and its pulse as the leader.
type Heir<K, M> = (Sender<Message<K, M>>, Arc<Pulse>);

struct Flight<K, M> {
    waiters: Waiting<K, M>,
    prune_at: usize,
    pulse: Arc<Pulse>,
    /// When arrivals may wake the leader if it sleeps.
    wake_from: Option<Instant>,
}

/// How long a waiter can wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Patience {
    Until(Deadline),
    Forever,
}

impl Patience {
    /// Returns the patience of the current caller.
    pub(super) fn current() -> Self {
        Deadline::current().map_or(Self::Forever, Self::Until)
    }

    fn has_ended(self) -> bool {
        matches!(self, Self::Until(deadline) if deadline.has_passed())
    }
}

/// The message to a waiter. A closed channel means that the leader panicked while it notified the waiters.
pub(super) enum Message<K, M> {
    Landed(M),
    /// The leader's outcome is for the leader alone: all waiters make their own calls at once.
    Alone,
    Lead(Lead<K, M>),
}

/// The result of joining.
pub(super) enum Arrival<K, M, T> {
    Found(T),
    Leader(Lead<K, M>),
    Waiter(Receiver<Message<K, M>>),
    /// The arrival comes from inside the call that it would wait for.
    Itself,
}

impl<K, M> Flights<K, M> {
    pub(super) fn new() -> Arc<Self> {
        let table = Table { current: HashTable::new(), flying: HashMap::new(), numbers: 0 };
        Arc::new(Self { table: Mutex::new(table) })
    }

    /// Joins the flight for `key`, or starts one.
    ///
    /// Without a flight, `find` looks for a result first: a flight may have landed since the caller looked.
    pub(super) fn join<T>(
        self: &Arc<Self>,
        key: &Arc<Hashed<K>>,
        patience: impl FnOnce() -> Patience,
        find: impl FnOnce() -> Option<T>,
    ) -> Arrival<K, M, T>
    where
        K: Eq,
    {
        let mut table = self.table.lock();
        let Some(number) = table.number(key) else {
            return match find() {
                Some(found) => Arrival::Found(found),
                None => Arrival::Leader(self.start(&mut table, key)),
            };
        };
        if Leads::current().include(self.address(), number) {
            return Arrival::Itself;
        }
        if let Some(lead) = self.take_over(&mut table, key, number) {
            return Arrival::Leader(lead);
        }
        let (sender, receiver) = oneshot::channel();
        table.numbers += 1;
        let place = (Reverse(patience()), table.numbers);
        if let Some(flight) = table.flying.get_mut(&number) {
            flight.prune();
            flight.waiters.insert(place, sender);
        }
        let sleeper = table.sleeper(number);
        drop(table);
        wake(sleeper);
        Arrival::Waiter(receiver)
    }

    /// Starts a flight for `key`, unless there is one or `needless` returns that none is needed any more.
    pub(super) fn lead(self: &Arc<Self>, key: &Arc<Hashed<K>>, needless: impl FnOnce() -> bool) -> Option<Lead<K, M>>
    where
        K: Eq,
    {
        let mut table = self.table.lock();
        let Some(number) = table.number(key) else {
            return (!needless()).then(|| self.start(&mut table, key));
        };
        let lead = self.take_over(&mut table, key, number);
        let sleeper = if lead.is_none() { table.sleeper(number) } else { None };
        drop(table);
        wake(sleeper);
        lead
    }

    /// Detaches the flight for `key`: its waiters get its outcome, but nothing is stored, and no arrival joins it.
    ///
    /// `remove` runs before any other flight for the key can start or land.
    pub(super) fn detach<T>(&self, hash: u64, key: &K, remove: impl FnOnce() -> T) -> T
    where
        K: Eq,
    {
        let mut table = self.table.lock();
        let detached = table.current.find_entry(hash, |(other, _)| other.is(hash, key));
        let detached = detached.ok().map(|entry| entry.remove().0);
        let removed = remove();
        drop(table);
        drop(detached);
        removed
    }

    /// Detaches the flights for all keys.
    pub(super) fn detach_all<T>(&self, remove: impl FnOnce() -> T) -> T {
        let mut table = self.table.lock();
        let detached = mem::take(&mut table.current);
        let removed = remove();
        drop(table);
        drop(detached);
        removed
    }

    /// Returns the keys of the current flights, with their numbers for [`detach_this`](Self::detach_this).
    pub(super) fn current(&self) -> Vec<(Arc<Hashed<K>>, u64)> {
        self.table.lock().current.iter().cloned().collect()
    }

    /// Detaches the flight with this number.
    pub(super) fn detach_this(&self, hash: u64, number: u64) {
        let detached = self.table.lock().remove(hash, number);
        drop(detached);
    }

    fn start(self: &Arc<Self>, table: &mut Table<K, M>, key: &Arc<Hashed<K>>) -> Lead<K, M> {
        table.numbers += 1;
        let (number, pulse) = (table.numbers, Pulse::woken());
        table.current.insert_unique(key.hash, (Arc::clone(key), number), |(key, _)| key.hash);
        let flight = Flight {
            waiters: BTreeMap::new(),
            prune_at: FIRST_PRUNING,
            pulse: Arc::clone(&pulse),
            wake_from: pulse.abandoned_from(),
        };
        table.flying.insert(number, flight);
        Lead { flights: Arc::clone(self), key: Arc::clone(key), number, pulse, landed: false }
    }

    /// Moves the waiters of this flight to a new one that the caller leads, if the leader is abandoned.
    ///
    /// If the abandoned leader comes back, it finds that the flight is no longer its own.
    fn take_over(self: &Arc<Self>, table: &mut Table<K, M>, key: &Arc<Hashed<K>>, number: u64) -> Option<Lead<K, M>> {
        if !table.flying.get(&number)?.pulse.is_abandoned() {
            return None;
        }
        let abandoned = table.flying.remove(&number)?;
        // Not the last reference to the key: the abandoned leader has one.
        drop(table.remove(key.hash, number));
        let lead = self.start(table, key);
        if let Some(flight) = table.flying.get_mut(&lead.number) {
            (flight.waiters, flight.prune_at) = (abandoned.waiters, abandoned.prune_at);
        }
        Some(lead)
    }

    /// Returns an identity that distinguishes these flights from those of other caches.
    pub(super) fn address(&self) -> usize {
        std::ptr::from_ref(self).addr()
    }
}

/// Wakes a leader. Call it without holding a lock.
fn wake(sleeper: Option<Arc<Pulse>>) {
    if let Some(pulse) = sleeper {
        undisturbed(|| pulse.wake());
    }
}

impl<K, M> Table<K, M> {
    /// Returns the number of the flight for `key` that arrivals join.
    fn number(&self, key: &Hashed<K>) -> Option<u64>
    where
        K: Eq,
    {
        let (_, number) = self.current.find(key.hash, |(other, _)| other.is(key.hash, &key.key))?;
        Some(*number)
    }

    /// Returns the pulse of this flight's leader if the leader should be woken.
    fn sleeper(&mut self, number: u64) -> Option<Arc<Pulse>> {
        let flight = self.flying.get_mut(&number)?;
        if flight.pulse.abandoned_from().is_some() {
            return None;
        }
        let now = clock::now();
        if flight.wake_from.is_some_and(|from| now < from) {
            return None;
        }
        flight.wake_from = now.checked_add(ABANDONED);
        Some(Arc::clone(&flight.pulse))
    }

    fn is_current(&self, lead: &Lead<K, M>) -> bool {
        self.current.find(lead.key.hash, |(_, number)| *number == lead.number).is_some()
    }

    /// Removes the flight's key, so that no arrival joins it, and returns the key.
    fn remove(&mut self, hash: u64, number: u64) -> Option<Arc<Hashed<K>>> {
        let current = self.current.find_entry(hash, |(_, other)| *other == number).ok()?;
        Some(current.remove().0.0)
    }

    /// Ends the flight of `lead` and returns its waiters. `lead` keeps a reference to the key.
    fn end(&mut self, lead: &Lead<K, M>) -> Waiting<K, M> {
        drop(self.remove(lead.key.hash, lead.number));
        self.flying.remove(&lead.number).map(|flight| flight.waiters).unwrap_or_default()
    }

    /// Returns the waiter with the most time left, which may lead the flight of `lead` next.
    ///
    /// Returns `None` if there is no waiter, which ends the flight, or if `has_time` is set and no waiter has time
    /// left.
    fn successor(&mut self, lead: &Lead<K, M>, has_time: bool) -> Option<Heir<K, M>> {
        let flight = self.flying.get_mut(&lead.number)?;
        // A waiter that was chosen before may have left. Until another one is chosen, the lead stays with its holder.
        flight.pulse = Arc::clone(&lead.pulse);
        let Some(next) = flight.waiters.first_entry() else {
            if !has_time {
                self.end(lead);
            }
            return None;
        };
        if has_time && next.key().0.0.has_ended() {
            return None;
        }
        // The message wakes the waiter, so it should be polled.
        flight.pulse = Pulse::woken();
        Some((next.remove(), Arc::clone(&flight.pulse)))
    }
}

impl<K, M> Flight<K, M> {
    /// Removes waiters that gave up, at a constant cost for each arrival.
    fn prune(&mut self) {
        if self.waiters.len() >= self.prune_at {
            self.waiters.retain(|_, waiter| !waiter.is_closed());
            self.prune_at = FIRST_PRUNING.max(2 * self.waiters.len());
        }
    }
}

/// The duty to bring an outcome for a key. Dropping it without one passes it to the waiter with the most time left.
pub(super) struct Lead<K, M> {
    flights: Arc<Flights<K, M>>,
    key: Arc<Hashed<K>>,
    number: u64,
    pulse: Arc<Pulse>,
    landed: bool,
}

impl<K, M> Lead<K, M> {
    pub(super) fn key(&self) -> &Arc<Hashed<K>> {
        &self.key
    }

    pub(super) fn pulse(&self) -> &Arc<Pulse> {
        &self.pulse
    }

    /// Returns the name of the call that is made for this lead, among the surrounding calls.
    pub(super) fn name(&self) -> (usize, u64) {
        (self.flights.address(), self.number)
    }

    /// Ends the flight.
    ///
    /// Unless the flight was detached, `store` runs before any other caller can look up the key, start a flight or
    /// detach.
    pub(super) fn land<T>(mut self, store: impl FnOnce(Arc<Hashed<K>>) -> T) -> (Option<T>, Waiters<K, M>) {
        let flights = Arc::clone(&self.flights);
        let mut table = flights.table.lock();
        let stored = table.is_current(&self).then(|| store(Arc::clone(&self.key)));
        let waiters = table.end(&self);
        self.landed = true;
        drop(table);
        (stored, Waiters(waiters))
    }

    /// Passes the lead to the waiter with the most time, if that waiter has time left. Otherwise returns it.
    pub(super) fn pass_on(mut self) -> Option<Self> {
        self.landed = self.give(true);
        (!self.landed).then_some(self)
    }

    /// Passes the lead to the waiter with the most time. Sends the message without holding the lock.
    fn give(&self, has_time: bool) -> bool {
        loop {
            let next = self.flights.table.lock().successor(self, has_time);
            let Some((next, pulse)) = next else { return false };
            let heir = Self {
                flights: Arc::clone(&self.flights),
                key: Arc::clone(&self.key),
                number: self.number,
                pulse,
                landed: false,
            };
            let mut back = None;
            undisturbed(|| back = next.send(Message::Lead(heir)).err());
            match back {
                // The waiter has given up, and the lead is back here: look for the next waiter.
                Some(Message::Lead(mut heir)) => heir.landed = true,
                _ => return true,
            }
        }
    }
}

impl<K, M> Drop for Lead<K, M> {
    fn drop(&mut self) {
        self.pulse.forget_waker();
        if !self.landed {
            self.give(false);
        }
    }
}

/// The waiters of a flight that has landed.
#[must_use = "the waiters must be notified"]
pub(super) struct Waiters<K, M>(Waiting<K, M>);

impl<K, M> Waiters<K, M> {
    /// Notifies all waiters that are still there, even if a waker panics.
    ///
    /// If `message` or its clone panics, the remaining waiters see a closed channel.
    pub(super) fn tell(self, message: impl FnOnce() -> M)
    where
        M: Clone,
    {
        let mut waiters = self.0.into_values().filter(|waiter| !waiter.is_closed());
        let Some(first) = waiters.next() else { return };
        let message = message();
        for waiter in waiters {
            // A waiter that leaves at this moment needs no message.
            let message = message.clone();
            undisturbed(|| drop(waiter.send(Message::Landed(message))));
        }
        undisturbed(|| drop(first.send(Message::Landed(message))));
    }

    /// Makes all waiters call for themselves.
    pub(super) fn release(self) {
        for waiter in self.0.into_values() {
            undisturbed(|| drop(waiter.send(Message::Alone)));
        }
    }
}

#[cfg(test)]
mod tests;
