//! The decision of the limit: who enters, who waits, and whose turn is next.
//!
//! One atomic word holds how many permits are free, how many callers wait for one and how many have left, so that entering a
//! gate with room, leaving a gate where nobody waits and being turned away are each one atomic operation on it. The queue
//! behind a mutex is touched only by those who wait and by those who owe them a permit.
//!
//! Whoever leaves while others wait *hands the permit over* to the first of them instead of freeing it, so a newcomer
//! can never overtake the queue. The word counts free permits and not those in use because a limit that is lowered
//! beneath what is in flight then is an ordinary negative number, and because the fast path needs no second atomic:
//! a limit that it had read could have changed before the swap. It counts those who leave because they rewrite it anyway: from
//! that number, and two looks at the clock when somebody is turned away, comes when it is worth coming back ([`Pace`]).

#[cfg(all(test, ziggurat_loom))]
use loom::sync::{
    Arc, Mutex, MutexGuard,
    atomic::{AtomicU64, AtomicUsize, Ordering},
};
#[cfg(not(all(test, ziggurat_loom)))]
use std::sync::{
    Arc, Mutex, MutexGuard,
    atomic::{AtomicU64, AtomicUsize, Ordering},
};
use std::{
    collections::BTreeMap,
    fmt, mem,
    sync::{PoisonError, TryLockError},
    task::{Poll, Waker},
    time::Duration,
};

use super::{
    pace::{LEFT_BITS, LONGEST, Pace, SHORTEST, UNKNOWN},
    seats::Seats,
};
use crate::clock::Instant;

/// The most permits that a gate can have, and the most callers that can wait: what fits into their parts of the word.
const MOST: usize = (1 << (AVAILABLE_BITS - 1)) - 1;
const MOST_WAITING: u32 = (1 << WAITING_BITS) - 1;

const AVAILABLE_BITS: u32 = 24;
const WAITING_BITS: u32 = u64::BITS - AVAILABLE_BITS - LEFT_BITS;

/// The live state of a concurrency limit: what it counts, and the number that may be changed while it works.
///
/// A clone is another handle to the same gate.
#[derive(Clone)]
pub struct ConcurrencyLimitHandle {
    shared: Arc<Shared>,
}

struct Shared {
    /// A packed [`State`]. Who waits is added and removed under the lock of `queue` alone.
    state: AtomicU64,
    /// Written under the lock of `queue`, together with `state`.
    limit: AtomicUsize,
    max_waiting: AtomicUsize,
    queue: Mutex<Queue>,
    /// Touched only by those who are turned away, none of whom waits for another one.
    pace: Mutex<Pace>,
    /// Its latest answer, in nanoseconds for each permit, for those who find somebody else asking.
    latest_pace: AtomicU64,
    /// Of the bodies that hold a permit, if permits are reclaimed.
    seats: Seats,
}

struct Queue {
    /// The ticket of the next who queues at the end, and of the last who queued in front of all.
    back: u64,
    front: u64,
    /// Who waits, in the order of arrival. Somebody whose ticket is no longer here was admitted.
    waiting: BTreeMap<u64, Waker>,
}

impl Default for Queue {
    fn default() -> Self {
        Self { back: u64::MAX / 2, front: u64::MAX / 2, waiting: BTreeMap::new() }
    }
}

/// Those whose turn it is. If one of their wakers panics, the others are woken all the same.
struct Admitted(Vec<Waker>);

/// The numbers of the word. While somebody waits nothing is available: every transition keeps it so.
#[derive(Clone, Copy, Debug)]
struct State {
    /// Permits that are free: the limit less those in flight, so negative while a lowered limit is still exceeded.
    available: i32,
    waiting: u32,
    /// How many permits were given back since the gate was made. It wraps around.
    left: u32,
}

/// What came of asking for a permit with the readiness to wait for it.
#[derive(Debug)]
pub(crate) enum Entry {
    /// There was room.
    Admitted(Permit),
    /// There was none, and this is the place in the queue.
    Queued(Waiter),
    /// There was none, and the queue has no room either.
    Full,
}

/// The right to be in flight. Dropping it gives it to the first who waits, or back to the gate.
pub(crate) struct Permit {
    // None: it goes on as something else.
    gate: Option<ConcurrencyLimitHandle>,
}

/// A place in the queue. Dropping it leaves the queue, or passes on the permit that arrived and was not taken.
pub(crate) struct Waiter {
    gate: ConcurrencyLimitHandle,
    /// `None` once the permit was taken.
    ticket: Option<u64>,
}

// === impl Gate ===

impl ConcurrencyLimitHandle {
    #[track_caller]
    pub(crate) fn new(limit: usize) -> Self {
        let limit = checked(limit);
        let state = State { available: limit as i32, waiting: 0, left: 0 };
        let shared = Shared {
            state: AtomicU64::new(state.pack()),
            limit: AtomicUsize::new(limit),
            max_waiting: AtomicUsize::new(usize::MAX),
            queue: Mutex::new(Queue::default()),
            pace: Mutex::new(Pace::default()),
            latest_pace: AtomicU64::new(nanos(UNKNOWN / limit as u32)),
            seats: Seats::new(),
        };
        Self { shared: Arc::new(shared) }
    }

    /// How many may be in flight at once.
    #[must_use]
    pub fn limit(&self) -> usize {
        self.shared.limit.load(Ordering::Acquire)
    }

    /// Changes how many may be in flight at once, at once and for all who share this gate.
    ///
    /// A higher limit admits those who wait, in their order. A lower one takes nothing from those who are in flight:
    /// nobody enters until so many have left that the new limit holds. A limit above 8,388,607 is taken as that.
    ///
    /// # Panics
    ///
    /// If `limit` is zero: nothing could ever pass.
    #[track_caller]
    pub fn set_limit(&self, limit: usize) {
        let limit = checked(limit);
        let queue = self.lock();
        let before = self.shared.limit.swap(limit, Ordering::AcqRel);
        self.settle(queue, limit as i32 - before as i32, 0);
    }

    /// How many may wait for a permit.
    #[must_use]
    pub fn max_waiting(&self) -> usize {
        self.shared.max_waiting.load(Ordering::Relaxed)
    }

    /// Changes how many may wait for a permit, for all who share this gate. Nobody who waits already is sent away.
    pub fn set_max_waiting(&self, max_waiting: usize) {
        self.shared.max_waiting.store(max_waiting, Ordering::Relaxed);
    }

    /// How many hold a permit, among them those who were just admitted from the queue and have not noticed yet.
    ///
    /// It is above [`limit`](Self::limit) only after the limit was lowered. It takes the lock of the queue.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        let _unchanged = self.lock();
        let available = self.state().available;
        usize::try_from(self.limit() as i32 - available).unwrap_or(0)
    }

    /// How many wait for a permit.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.state().waiting as usize
    }

    /// A permit, if one is free at this moment. It never overtakes somebody who waits.
    pub(crate) fn try_enter(&self) -> Option<Permit> {
        self.update(|state| (state.available > 0).then(|| State { available: state.available - 1, ..state })).ok()?;
        Some(Permit::new(self))
    }

    /// Whether at this moment there is neither a permit nor, with `max_waiting` places, room in the queue.
    pub(crate) fn is_full(&self, max_waiting: usize) -> bool {
        let state = self.state();
        state.available <= 0 && state.waiting as usize >= max_waiting
    }

    /// A permit or, if fewer than `max_waiting` wait already, a place in the queue: the last one, or the first one if it is `urgent`. `waker` is
    /// woken once.
    pub(crate) fn enter(&self, max_waiting: usize, urgent: bool, waker: &Waker) -> Entry {
        // A waker is the caller's code: it is cloned, dropped and woken outside the lock.
        let waker = waker.clone();
        let mut queue = self.lock();
        let before = self.update(|state| match state {
            State { available: 1.., .. } => Some(State { available: state.available - 1, ..state }),
            State { waiting, .. } if waiting as usize >= max_waiting => None,
            State { waiting: MOST_WAITING, .. } => None,
            State { waiting, .. } => Some(State { waiting: waiting + 1, ..state }),
        });
        match before {
            Err(_) => Entry::Full,
            Ok(State { available: 1.., .. }) => Entry::Admitted(Permit::new(self)),
            Ok(_) => {
                let ticket = if urgent {
                    queue.front -= 1;
                    queue.front
                } else {
                    queue.back += 1;
                    queue.back
                };
                queue.waiting.insert(ticket, waker);
                Entry::Queued(Waiter { gate: self.clone(), ticket: Some(ticket) })
            }
        }
    }

    /// How long it will be, as far as one can tell from those who left lately, until a permit comes free for somebody who queues
    /// now: for who was just turned away.
    #[cold]
    pub(crate) fn retry_after(&self, now: Instant) -> Duration {
        // Read under the lock: who had it before has seen no more leave.
        let look = |pace: &mut Pace| pace.look(now, self.state().left, self.limit() as u32);
        let pace = match self.shared.pace.try_lock() {
            Ok(mut pace) => look(&mut pace),
            Err(TryLockError::Poisoned(pace)) => look(&mut pace.into_inner()),
            Err(TryLockError::WouldBlock) => Duration::from_nanos(self.shared.latest_pace.load(Ordering::Relaxed)),
        };
        self.shared.latest_pace.store(nanos(pace), Ordering::Relaxed);
        // All who wait come before; and while a lowered limit is exceeded, so many leave without admitting anybody.
        let State { available, waiting, .. } = self.state();
        let ahead = waiting.saturating_add(available.min(0).unsigned_abs()).saturating_add(1);
        pace.saturating_mul(ahead).clamp(SHORTEST, LONGEST)
    }

    pub(super) fn seats(&self) -> &Seats {
        &self.shared.seats
    }

    /// A number that no other gate has while this one lives.
    pub(super) fn id(&self) -> usize {
        Arc::as_ptr(&self.shared).addr()
    }

    /// Gives back permits that were reclaimed. They say nothing about how long a call takes.
    pub(super) fn reclaimed(&self, permits: usize) {
        if permits > 0 {
            self.settle(self.lock(), permits as i32, 0);
        }
    }

    /// Gives back one permit.
    pub(super) fn leave(&self) {
        let freed = self.update(|state| {
            let State { available, waiting, left } = state;
            (waiting == 0).then_some(State { available: available + 1, waiting, left: left.wrapping_add(1) })
        });
        if freed.is_err() {
            self.settle(self.lock(), 1, 1);
        }
    }

    /// Adds `freed` permits (or takes some away), of which `left` were given back, and hands what is then available to those who
    /// wait, in one step.
    fn settle(&self, mut queue: MutexGuard<'_, Queue>, freed: i32, left: u32) {
        let mut granted = 0;
        let _ = self.update(|state| {
            let available = state.available + freed;
            granted = state.waiting.min(u32::try_from(available).unwrap_or(0));
            Some(State {
                available: available - granted as i32,
                waiting: state.waiting - granted,
                left: state.left.wrapping_add(left),
            })
        });
        let admitted = (0..granted).filter_map(|_| queue.waiting.pop_first()).map(|(_, waker)| waker).collect();
        drop(queue);
        Admitted(admitted).wake();
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.shared.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn state(&self) -> State {
        State::unpack(self.shared.state.load(Ordering::Acquire))
    }

    /// Replaces the state by what `change` makes of it, and returns the one before; the unchanged one if it declines.
    fn update(&self, mut change: impl FnMut(State) -> Option<State>) -> Result<State, State> {
        let change = |word| change(State::unpack(word)).map(State::pack);
        let before = self.shared.state.fetch_update(Ordering::AcqRel, Ordering::Acquire, change);
        before.map(State::unpack).map_err(State::unpack)
    }
}

impl fmt::Debug for ConcurrencyLimitHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConcurrencyLimitHandle")
            .field("limit", &self.limit())
            .field("in_flight", &self.in_flight())
            .field("waiting", &self.waiting())
            .finish()
    }
}

#[track_caller]
fn checked(limit: usize) -> usize {
    assert!(limit > 0, "`limit` must be at least 1: with no permits nothing could ever pass");
    limit.min(MOST)
}

// === impl Admitted ===

impl Admitted {
    fn wake(mut self) {
        // In their order: what is left is woken by `drop`.
        self.0.reverse();
        while let Some(waker) = self.0.pop() {
            waker.wake();
        }
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        self.0.drain(..).rev().for_each(Waker::wake);
    }
}

// === impl State ===

impl State {
    /// `left | waiting | available`, from the highest bit to the lowest.
    fn pack(self) -> u64 {
        let available = u64::from(self.available as u32) & ((1 << AVAILABLE_BITS) - 1);
        available | u64::from(self.waiting) << AVAILABLE_BITS | u64::from(self.left) << (AVAILABLE_BITS + WAITING_BITS)
    }

    fn unpack(word: u64) -> Self {
        // Up and down again, for the sign.
        let unused = u32::BITS - AVAILABLE_BITS;
        Self {
            available: ((word as u32) << unused) as i32 >> unused,
            waiting: (word >> AVAILABLE_BITS) as u32 & MOST_WAITING,
            left: (word >> (AVAILABLE_BITS + WAITING_BITS)) as u32,
        }
    }
}

fn nanos(duration: Duration) -> u64 {
    duration.as_nanos().try_into().unwrap_or(u64::MAX)
}

// === impl Permit ===

impl Permit {
    fn new(gate: &ConcurrencyLimitHandle) -> Self {
        Self { gate: Some(gate.clone()) }
    }

    pub(super) fn gate(&self) -> Option<&ConcurrencyLimitHandle> {
        self.gate.as_ref()
    }

    /// The gate, to which the permit is to be given back.
    pub(super) fn into_gate(mut self) -> Option<ConcurrencyLimitHandle> {
        self.gate.take()
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if let Some(gate) = &self.gate {
            gate.leave();
        }
    }
}

impl fmt::Debug for Permit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Permit").finish_non_exhaustive()
    }
}

// === impl Waiter ===

impl Waiter {
    /// The permit, once it is this one's turn; until then `waker` replaces the one that is to be told.
    pub(crate) fn poll(&mut self, waker: &Waker) -> Poll<Permit> {
        let waker = waker.clone();
        let mut queue = self.gate.lock();
        let place = self.ticket.and_then(|ticket| queue.waiting.get_mut(&ticket));
        if let Some(place) = place {
            let replaced = mem::replace(place, waker);
            drop(queue);
            drop(replaced);
            return Poll::Pending;
        }
        drop(queue);
        match self.ticket.take() {
            Some(_) => Poll::Ready(Permit::new(&self.gate)),
            None => Poll::Pending,
        }
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        let Some(ticket) = self.ticket else { return };
        let mut queue = self.gate.lock();
        let waker = queue.waiting.remove(&ticket);
        if waker.is_none() {
            // Admitted and gone before it noticed: the permit is somebody else's now.
            return self.gate.settle(queue, 1, 1);
        }
        let _ = self.gate.update(|state| Some(State { waiting: state.waiting - 1, ..state }));
        drop(queue);
    }
}

impl fmt::Debug for Waiter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Waiter").field("ticket", &self.ticket).finish_non_exhaustive()
    }
}

#[cfg(all(test, ziggurat_loom))]
mod model;
#[cfg(all(test, not(ziggurat_loom)))]
mod tests;
