//! Single flight: of all who miss the same key at once, one calls (the *leader*) and the others wait for what it
//! brings.
//!
//! Leadership is a value, [`Lead`]. Who holds it either lands, which tells the waiters the outcome, or drops it, by
//! panic or cancellation, which hands it to the waiter that has most time. It travels through the waiter's channel as
//! that same value, so a waiter that was chosen and is dropped before it noticed hands it on as well. A leader that was
//! woken and is not polled is replaced by the next arrival: see [`Pulse`]. One that sleeps is woken by an arrival every
//! few seconds, for what it waits for may be a timer of a runtime that nobody drives.
//!
//! Nothing of the user's but `Eq` of a key that arrives runs under the lock, nor is anybody woken or anything of the
//! user's dropped under it. A flight ends by its number: that never asks the key.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, HashMap},
    mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::Wake,
};

use hashbrown::HashTable;
use tokio::sync::oneshot::{self, Receiver, Sender};

use super::{leads::Leads, store::Hashed};
use crate::{
    ambient::Deadline,
    caught::undisturbed,
    clock::{self, Instant},
    pulse::{ABANDONED, Pulse},
};

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

/// Those who wait: who has most time comes first, and of those who have as much who came first.
type Waiting<K, M> = BTreeMap<(Reverse<Patience>, u64), Sender<Message<K, M>>>;

/// The waiter that is to lead, and the pulse that it then has.
type Heir<K, M> = (Sender<Message<K, M>>, Arc<Pulse>);

struct Flight<K, M> {
    waiters: Waiting<K, M>,
    prune_at: usize,
    pulse: Arc<Pulse>,
    /// From when on an arrival wakes the leader, if that sleeps.
    wake_from: Option<Instant>,
}

/// How long a waiter can wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Patience {
    Until(Deadline),
    Forever,
}

impl Patience {
    /// That of the caller.
    pub(super) fn current() -> Self {
        Deadline::current().map_or(Self::Forever, Self::Until)
    }

    fn has_ended(self) -> bool {
        matches!(self, Self::Until(deadline) if deadline.has_passed())
    }
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
    /// It comes from inside the very call that it would wait for.
    Itself,
}

impl<K, M> Flights<K, M> {
    pub(super) fn new() -> Arc<Self> {
        let table = Table { current: HashTable::new(), flying: HashMap::new(), numbers: 0 };
        Arc::new(Self { table: Mutex::new(table) })
    }

    /// Waits with the flight for `key`; or, if there is none, takes what `find` finds, for a flight may have landed
    /// since the caller looked; or starts one.
    pub(super) fn join<T>(
        self: &Arc<Self>,
        key: &Arc<Hashed<K>>,
        patience: impl FnOnce() -> Patience,
        find: impl FnOnce() -> Option<T>,
    ) -> Arrival<K, M, T>
    where
        K: Eq,
    {
        let mut table = self.lock();
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

    /// Starts a flight for `key`, unless there is one or `needless` says that it is not needed any more.
    pub(super) fn lead(self: &Arc<Self>, key: &Arc<Hashed<K>>, needless: impl FnOnce() -> bool) -> Option<Lead<K, M>>
    where
        K: Eq,
    {
        let mut table = self.lock();
        let Some(number) = table.number(key) else {
            return (!needless()).then(|| self.start(&mut table, key));
        };
        let lead = self.take_over(&mut table, key, number);
        let sleeper = if lead.is_none() { table.sleeper(number) } else { None };
        drop(table);
        wake(sleeper);
        lead
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

    /// Detaches the flights for all keys.
    pub(super) fn detach_all<T>(&self, remove: impl FnOnce() -> T) -> T {
        let mut table = self.lock();
        let detached = mem::take(&mut table.current);
        let removed = remove();
        drop(table);
        drop(detached);
        removed
    }

    /// The keys of the flights under way, each with the number that [`detach_this`](Self::detach_this) takes.
    pub(super) fn current(&self) -> Vec<(Arc<Hashed<K>>, u64)> {
        self.lock().current.iter().cloned().collect()
    }

    /// Detaches this very flight.
    pub(super) fn detach_this(&self, hash: u64, number: u64) {
        let detached = self.lock().remove(hash, number);
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

    /// Takes those who wait for this flight into one of the caller's, if its leader was abandoned. If that comes back
    /// after all, it finds that the flight is not its own any more.
    fn take_over(self: &Arc<Self>, table: &mut Table<K, M>, key: &Arc<Hashed<K>>, number: u64) -> Option<Lead<K, M>> {
        if !table.flying.get(&number)?.pulse.is_abandoned() {
            return None;
        }
        let abandoned = table.flying.remove(&number)?;
        // Not the last reference to its key: the abandoned leader has one.
        drop(table.remove(key.hash, number));
        let lead = self.start(table, key);
        if let Some(flight) = table.flying.get_mut(&lead.number) {
            (flight.waiters, flight.prune_at) = (abandoned.waiters, abandoned.prune_at);
        }
        Some(lead)
    }

    /// What tells these flights from those of other caches.
    pub(super) fn address(&self) -> usize {
        std::ptr::from_ref(self).addr()
    }

    fn lock(&self) -> MutexGuard<'_, Table<K, M>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Nobody is woken under a lock.
fn wake(sleeper: Option<Arc<Pulse>>) {
    if let Some(pulse) = sleeper {
        undisturbed(|| pulse.wake());
    }
}

impl<K, M> Table<K, M> {
    /// The number of the flight for `key` that arrivals join.
    fn number(&self, key: &Hashed<K>) -> Option<u64>
    where
        K: Eq,
    {
        let (_, number) = self.current.find(key.hash, |(other, _)| other.is(key.hash, &key.key))?;
        Some(*number)
    }

    /// The pulse of the leader of this flight, if that is to be woken.
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

    /// Takes the flight's name away, and gives it.
    fn remove(&mut self, hash: u64, number: u64) -> Option<Arc<Hashed<K>>> {
        let current = self.current.find_entry(hash, |(_, other)| *other == number).ok()?;
        Some(current.remove().0.0)
    }

    /// Ends the flight of `lead`, and gives those who wait. Of its key `lead` has a reference too.
    fn end(&mut self, lead: &Lead<K, M>) -> Waiting<K, M> {
        drop(self.remove(lead.key.hash, lead.number));
        self.flying.remove(&lead.number).map(|flight| flight.waiters).unwrap_or_default()
    }

    /// The next who may lead the flight of `lead`: the one with most time. None, if `has_time` is asked for and has
    /// none, or if nobody waits: then the flight is over.
    fn successor(&mut self, lead: &Lead<K, M>, has_time: bool) -> Option<Heir<K, M>> {
        let flight = self.flying.get_mut(&lead.number)?;
        // The waiter that was chosen before may have left. Until another one is, the lead is where it was.
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
        // It is woken by being told, and has to come.
        flight.pulse = Pulse::woken();
        Some((next.remove(), Arc::clone(&flight.pulse)))
    }
}

impl<K, M> Flight<K, M> {
    /// Takes out those who gave up, at a cost that is constant for each arrival.
    fn prune(&mut self) {
        if self.waiters.len() >= self.prune_at {
            self.waiters.retain(|_, waiter| !waiter.is_closed());
            self.prune_at = FIRST_PRUNING.max(2 * self.waiters.len());
        }
    }
}

/// The duty to bring an outcome for a key. Dropped without one, it goes to the waiter with most time.
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

    /// What the call that is made for it is known by, among the calls that surround it.
    pub(super) fn name(&self) -> (usize, u64) {
        (self.flights.address(), self.number)
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

    /// Gives the lead to the waiter with most time, if that one has time left. Otherwise it comes back.
    pub(super) fn pass_on(mut self) -> Option<Self> {
        self.landed = self.give(true);
        (!self.landed).then_some(self)
    }

    /// Gives the lead to the waiter with most time. Nobody is told under the lock.
    fn give(&self, has_time: bool) -> bool {
        loop {
            let next = self.flights.lock().successor(self, has_time);
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
                // Who gave up meanwhile sends it back; then it is still this one that looks for the next.
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

/// Those who waited for a flight that landed.
#[must_use = "they wait to be told"]
pub(super) struct Waiters<K, M>(Waiting<K, M>);

impl<K, M> Waiters<K, M> {
    /// Tells everybody who is still there, also behind a waker that panics. If `message` or its copy panics, the rest
    /// learn that nobody will tell them.
    pub(super) fn tell(self, message: impl FnOnce() -> M)
    where
        M: Clone,
    {
        let mut waiters = self.0.into_values().filter(|waiter| !waiter.is_closed());
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
        for waiter in self.0.into_values() {
            undisturbed(|| drop(waiter.send(Message::Alone)));
        }
    }
}

#[cfg(test)]
mod tests;
