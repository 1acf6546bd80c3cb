//! The requests whose handlers run in this process, and the callers that wait for one.

use std::sync::{
    Arc, OnceLock,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use hashbrown::{HashMap, hash_map::EntryRef};

use super::{key::Fingerprint, record::Answer};
use crate::{mutex::Mutex, signal::Signal};

/// The end of a run.
#[derive(Debug, Clone)]
pub(super) enum Outcome {
    /// The response, and whether it was stored by an earlier run.
    Answer(Arc<Answer>),
    /// The handler has run, and its response is larger than the layer or the store can keep.
    TooLarge,
    /// The key belongs to another request of the caller.
    Reused,
    /// Another process has been running the handler for the longest time that a caller waits.
    Busy,
    /// The store failed.
    Away(Arc<str>),
    /// There is no response that others may have: the next caller runs the handler.
    Open,
}

/// The run of a handler.
#[derive(Debug)]
pub(super) struct Flight {
    print: Fingerprint,
    outcome: OnceLock<Outcome>,
    ended: Arc<Signal>,
    /// Each caller that waits holds a clone.
    interest: Interest,
    /// The number of clones so far.
    interests: AtomicU64,
}

/// A caller's interest in a run.
#[derive(Debug, Clone, Default)]
pub(super) struct Interest(Arc<()>);

impl Flight {
    /// Waits for the end of the run.
    pub(super) async fn outcome(&self) -> Outcome {
        self.ended.wait().await;
        self.outcome.get().cloned().unwrap_or(Outcome::Open)
    }

    pub(super) fn interest(&self) -> Interest {
        self.interests.fetch_add(1, Relaxed);
        self.interest.clone()
    }

    /// Returns a number that changes with each caller that comes.
    pub(super) fn interests(&self) -> u64 {
        self.interests.load(Relaxed)
    }

    /// Returns whether no caller waits.
    pub(super) fn is_alone(&self) -> bool {
        Arc::strong_count(&self.interest.0) == 1
    }
}

/// The runs of a layer.
#[derive(Debug, Default)]
pub(super) struct Flights {
    by_key: Mutex<HashMap<Arc<str>, Arc<Flight>, ahash::RandomState>>,
}

/// The place of a request among those that run.
pub(super) enum Place {
    /// This request runs already.
    Join(Arc<Flight>),
    /// Another request with its key runs.
    Reused,
    /// There are as many runs as there may be.
    Full,
    /// The request is the first one with its key.
    Lead(Lead),
}

impl Flights {
    pub(super) fn place(self: &Arc<Self>, key: &str, print: Fingerprint, max: usize) -> Place {
        let mut by_key = self.by_key.lock();
        let is_full = by_key.len() >= max;
        match by_key.entry_ref(key) {
            EntryRef::Occupied(flight) if flight.get().print != print => Place::Reused,
            EntryRef::Occupied(flight) => Place::Join(Arc::clone(flight.get())),
            EntryRef::Vacant(_) if is_full => Place::Full,
            EntryRef::Vacant(vacant) => {
                let (outcome, ended, interest, interests) = Default::default();
                let flight = Arc::new(Flight { print, outcome, ended, interest, interests });
                let key: Arc<str> = key.into();
                vacant.insert_with_key(Arc::clone(&key), Arc::clone(&flight));
                drop(by_key);
                Place::Lead(Lead { flights: Arc::clone(self), key, flight })
            }
        }
    }

    pub(super) fn len(&self) -> usize {
        self.by_key.lock().len()
    }
}

/// The duty of running a handler. Dropped without an end, the run is [`Open`](Outcome::Open).
#[derive(Debug)]
pub(super) struct Lead {
    flights: Arc<Flights>,
    pub(super) key: Arc<str>,
    pub(super) flight: Arc<Flight>,
}

impl Lead {
    /// Ends the run for the callers that wait. A response can be joined until this is dropped.
    pub(super) fn end(&self, outcome: Outcome) {
        if !matches!(outcome, Outcome::Answer(_) | Outcome::TooLarge) {
            // First: a caller that learns that it may run the handler must not find this run again.
            self.leave();
        }
        let _ = self.flight.outcome.set(outcome);
        self.flight.ended.give();
    }

    fn leave(&self) {
        let mut by_key = self.flights.by_key.lock();
        // Once this has left, another run may have the key.
        let is_own = by_key.get(&*self.key).is_some_and(|flight| Arc::ptr_eq(flight, &self.flight));
        let gone = if is_own { by_key.remove(&*self.key) } else { None };
        drop(by_key);
        drop(gone);
    }
}

impl Drop for Lead {
    fn drop(&mut self) {
        self.leave();
        self.end(Outcome::Open);
    }
}
