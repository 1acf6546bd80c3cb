//! The decision of the limit: admit a call, queue it, or reject it.
//!
//! One atomic word holds the number of free permits, of waiters, and of permits released so far. Entering a gate with
//! room, leaving a gate without waiters, and being rejected are therefore each one atomic operation on it. The queue
//! behind the mutex is touched only by waiters and by callers that release a permit to a waiter.
//!
//! Waiters are admitted by rank. Permits may be kept free for higher ranks: the lower a rank, the more are kept from
//! it, so the waiter that is admitted next always is the first. When the last permit that a rank may use is taken,
//! calls of that rank wait, and others enter.
//!
//! A caller that leaves while others wait *hands its permit over* to the first waiter instead of freeing it, so a
//! newcomer can never overtake the queue. The word counts free permits rather than permits in use, for two reasons: a
//! limit that was lowered below the number in flight is then simply a negative number, and the fast path needs no
//! second atomic for the limit, which could change between the read and the swap. The word also counts released
//! permits, because releasing rewrites it anyway. From this count, and a clock read of each call that finds no permit
//! free, the gate estimates how fast the queue drains ([`Pace`]): when a retry is worthwhile, and whether a wait is.

#[cfg(all(test, ziggurat_loom))]
use loom::sync::{
    Mutex, MutexGuard,
    atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering},
};
#[cfg(not(all(test, ziggurat_loom)))]
use std::sync::{
    Mutex, MutexGuard,
    atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering},
};
use std::{
    fmt, mem, ptr,
    sync::{OnceLock, PoisonError},
    task::{Poll, Waker},
    time::Duration,
};

use self::room::Bodies;
use super::{
    pace::{LEFT_BITS, Pace, UNKNOWN},
    priority::{Counts, Priority, Rank, Reserves},
    queue::{Place, Queue, Ticket, Wakers},
    seats::Seats,
};
use crate::stripe::Loan;

mod estimate;
mod permits;
mod room;

pub(super) use self::permits::Permits;

/// The maximum number of permits and of waiters, bounded by their bits in the word.
pub(super) const MOST: usize = (1 << (AVAILABLE_BITS - 1)) - 1;
const MOST_WAITING: u32 = (1 << WAITING_BITS) - 1;

/// Calls beyond this number that find no permit free are not counted: not writing keeps the cache line shared.
const MOST_COUNTED: u32 = 1 << 16;

const AVAILABLE_BITS: u32 = 24;
const WAITING_BITS: u32 = u64::BITS - AVAILABLE_BITS - LEFT_BITS;

/// A handle to the live state of a concurrency limit: reads its counts and changes its limits.
///
/// Clones refer to the same state.
#[derive(Clone)]
pub struct ConcurrencyLimitHandle {
    shared: Loan<Shared>,
}

struct Shared {
    /// A packed [`State`]. Waiters are added and removed under the lock of `queue` only.
    state: AtomicU64,
    /// Written under the lock of `queue`, together with `state`.
    limit: AtomicUsize,
    max_waiting: AtomicUsize,
    queue: Mutex<Queue>,
    /// The waiters of each rank. Changed under the lock of `queue` only.
    counts: Counts,
    reserves: Reserves,
    /// Touched by calls that find no permit free. A rejected one waits for no other.
    pace: Mutex<Pace>,
    /// The latest estimate, in nanoseconds per permit, for callers that find the lock of `pace` taken.
    latest_pace: AtomicU64,
    /// The number of calls that have found no permit free, up to [`MOST_COUNTED`]. Only adaptive limits reset it.
    found_full: AtomicU32,
    /// The seats of bodies that hold a permit, if permits are reclaimed.
    seats: Seats,
    /// For adaptive limits.
    bodies: OnceLock<Bodies>,
}

/// The counts in the word. While there are waiters, no permit is available to the first of them: every transition
/// preserves this.
#[derive(Clone, Copy, Debug)]
struct State {
    /// The number of free permits: the limit minus the calls in flight. Negative while a lowered limit is exceeded.
    available: i32,
    waiting: u32,
    /// The number of permits released since the gate was made. It wraps around.
    left: u32,
}

/// The result of [`enter`](ConcurrencyLimitHandle::enter).
#[derive(Debug)]
pub(crate) enum Entry {
    /// A permit was free.
    Admitted(Permit),
    /// No permit was free, and the caller has a place in the queue.
    Queued(Waiter),
    /// Neither a permit nor a place in the queue was free.
    Full,
}

/// A waiter lost its place to a call of a higher rank.
#[derive(Debug)]
pub(crate) struct Shed;

/// The right to be in flight. Dropping it hands it to the first waiter, or releases it.
pub(crate) struct Permit {
    // None: the gate was taken out with `into_gate`.
    gate: Option<ConcurrencyLimitHandle>,
}

/// A place in the queue. Dropping it leaves the queue, or passes on a permit that was assigned but not taken.
pub(crate) struct Waiter {
    gate: ConcurrencyLimitHandle,
    /// `None` once the permit was taken.
    ticket: Option<Ticket>,
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
            counts: Counts::default(),
            reserves: Reserves::default(),
            pace: Mutex::new(Pace::default()),
            latest_pace: AtomicU64::new(nanos(UNKNOWN / limit as u32)),
            found_full: AtomicU32::new(0),
            seats: Seats::new(),
            bodies: OnceLock::new(),
        };
        Self { shared: Loan::new(shared) }
    }

    /// Returns the maximum number of calls in flight.
    #[must_use]
    pub fn limit(&self) -> usize {
        self.shared.limit.load(Ordering::Acquire)
    }

    /// Changes the maximum number of calls in flight, with immediate effect and for all clones.
    ///
    /// A higher limit admits waiters in order. A lower limit revokes no permits: no call is admitted until the number
    /// in flight has fallen below the new limit. A limit above 8,388,607 is clamped to that value.
    ///
    /// # Panics
    ///
    /// Panics if `limit` is zero, because no call could ever pass.
    #[track_caller]
    pub fn set_limit(&self, limit: usize) {
        let limit = checked(limit);
        let queue = self.lock();
        let before = self.shared.limit.swap(limit, Ordering::AcqRel);
        self.settle(queue, limit as i32 - before as i32, 0);
    }

    /// Returns the maximum number of calls that wait for a permit.
    #[must_use]
    pub fn max_waiting(&self) -> usize {
        self.shared.max_waiting.load(Ordering::Relaxed)
    }

    /// Changes the maximum number of calls that wait for a permit, for all clones. Calls that already wait are not
    /// rejected.
    pub fn set_max_waiting(&self, max_waiting: usize) {
        self.shared.max_waiting.store(max_waiting, Ordering::Relaxed);
    }

    /// Returns the number of calls that hold a permit, including those that were admitted from the queue but not
    /// polled since.
    ///
    /// It exceeds [`limit`](Self::limit) only after the limit was lowered. It takes the lock of the queue.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        let _unchanged = self.lock();
        let available = self.state().available;
        usize::try_from(self.limit() as i32 - available).unwrap_or(0)
    }

    /// Returns the number of calls that wait for a permit.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.state().waiting as usize
    }

    /// Returns the share of the limit that is [reserved](Self::set_reserve) for calls of this priority and above.
    #[must_use]
    pub fn reserve(&self, priority: Priority) -> f64 {
        self.shared.reserves.share(priority)
    }

    /// Changes the share of the limit that is reserved for calls of this priority and above, for all clones.
    ///
    /// See [`ConcurrencyLimitLayer::reserve`](super::ConcurrencyLimitLayer::reserve). A smaller share admits waiters in
    /// order. A larger one revokes no permits.
    ///
    /// # Panics
    ///
    /// Panics if `priority` is neither `Normal` nor `High`, if `share` is not between 0 and 1, or if both shares add up
    /// to more than 1.
    #[track_caller]
    pub fn set_reserve(&self, priority: Priority, share: f64) {
        self.shared.reserves.set(priority, share);
        self.settle(self.lock(), 0, 0);
    }

    /// Returns the number of permits that calls of this rank may use: at least one. Reads the limit once, because it
    /// may change meanwhile.
    pub(super) fn usable(&self, rank: Rank) -> usize {
        let limit = self.limit();
        limit - self.shared.reserves.kept(rank, || limit) as usize
    }

    /// Returns the number of permits that are kept free from a call of this rank.
    pub(super) fn kept(&self, rank: Rank) -> i32 {
        self.shared.kept(rank)
    }

    /// Returns a permit if one is free. It never overtakes a waiter. For calls that no permit is kept free from.
    #[cfg(test)]
    pub(crate) fn try_enter(&self) -> Option<Permit> {
        self.shared.try_enter(0).then(|| Permit::new(self))
    }

    /// Returns a permit if one is free for a call of this rank. It never overtakes a waiter of this rank or above.
    pub(super) fn try_enter_as(&self, rank: Rank) -> Option<Permit> {
        self.shared.try_enter(self.kept(rank)).then(|| Permit::new(self))
    }

    /// Whether there is currently neither a free permit for a call of this rank nor, with `max_waiting` places, room in
    /// the queue.
    pub(crate) fn is_full(&self, max_waiting: usize, rank: Rank) -> bool {
        let state = self.state();
        state.waiting as usize >= max_waiting
            && state.available <= self.kept(rank)
            && (max_waiting == 0 || !self.shared.counts.any_below(rank))
    }

    /// Returns a permit, or a place in the queue if fewer than `max_waiting` calls wait. If as many wait, the last of
    /// them is shed for a call of a higher rank. `waker` is woken once.
    pub(crate) fn enter(&self, max_waiting: usize, rank: Rank, waker: &Waker) -> Entry {
        // A waker is foreign code: it is cloned, dropped, and woken outside the lock.
        let waker = waker.clone();
        let mut queue = self.lock();
        let kept = self.kept(rank);
        let before = self.update(|state| match state {
            State { available, .. } if available > kept => Some(State { available: available - 1, ..state }),
            State { waiting, .. } if waiting as usize >= max_waiting => None,
            State { waiting: MOST_WAITING, .. } => None,
            State { waiting, .. } => Some(State { waiting: waiting + 1, ..state }),
        });
        let shed = match before {
            Ok(State { available, .. }) if available > kept => return Entry::Admitted(Permit::new(self)),
            Ok(_) => None,
            Err(_) if max_waiting == 0 => return Entry::Full,
            // It takes the place of another, so the number of waiters is unchanged.
            Err(_) => match queue.shed_below(&self.shared.counts, rank) {
                None => return Entry::Full,
                shed => shed,
            },
        };
        let ticket = Some(queue.push(&self.shared.counts, rank, waker));
        let waiter = Waiter { gate: self.clone(), ticket };
        drop(queue);
        // If this panics, the waiter is dropped, and leaves the queue.
        shed.into_iter().for_each(Waker::wake);
        Entry::Queued(waiter)
    }

    /// Counts a call that has found no permit free.
    pub(super) fn note_full(&self) {
        // It usually is noted already, and not writing keeps the cache line shared.
        if self.shared.found_full.load(Ordering::Relaxed) < MOST_COUNTED {
            self.shared.found_full.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The number of calls that have found no permit free since this was last asked. At least one if none is free.
    pub(super) fn take_found_full(&self) -> u32 {
        let found = self.shared.found_full.swap(0, Ordering::Relaxed);
        if self.state().available <= 0 { found.max(1) } else { found }
    }

    /// Whether at least half of the permits are in use.
    pub(super) fn is_half_full(&self) -> bool {
        self.state().available as isize * 2 <= self.limit() as isize
    }

    pub(super) fn seats(&self) -> &Seats {
        &self.shared.seats
    }

    /// Returns an id that is unique among live gates.
    pub(super) fn id(&self) -> usize {
        ptr::from_ref(&*self.shared).addr()
    }

    /// Releases permits whose calls have not ended: their bodies go on without them, or they were never started. They
    /// are not counted as released, because they say nothing about how long a call takes.
    pub(super) fn reclaimed(&self, permits: usize) {
        if permits > 0 {
            self.released(self.lock(), permits as i32, 0);
        }
    }

    /// Releases one permit.
    pub(super) fn leave(&self) {
        let freed = self.update(|state| {
            let State { available, waiting, left } = state;
            (waiting == 0).then_some(State { available: available + 1, waiting, left: left.wrapping_add(1) })
        });
        if freed.is_err() {
            self.released(self.lock(), 1, 1);
        }
    }

    /// Settles released permits. If the limit was lowered, they are for no waiter, and bodies may hold all others.
    fn released(&self, queue: MutexGuard<'_, Queue>, permits: i32, left: u32) {
        self.settle(queue, permits, left);
        self.make_room_for_waiters();
    }

    /// Adds `freed` permits (or removes some, if negative), of which `left` were released, and hands the available
    /// permits to waiters, in one step.
    fn settle(&self, mut queue: MutexGuard<'_, Queue>, freed: i32, left: u32) {
        let mut granted = 0;
        let _ = self.update(|state| {
            let available = state.available + freed;
            granted = self.shared.counts.admitted_by(available, |rank| self.kept(rank));
            Some(State {
                available: available - granted as i32,
                waiting: state.waiting - granted,
                left: state.left.wrapping_add(left),
            })
        });
        let admitted: Wakers = (0..granted).filter_map(|_| queue.pop(&self.shared.counts)).collect();
        drop(queue);
        admitted.wake();
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.shared.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn state(&self) -> State {
        State::unpack(self.shared.state.load(Ordering::Acquire))
    }

    fn update(&self, change: impl FnMut(State) -> Option<State>) -> Result<State, State> {
        self.shared.update(change)
    }
}

impl Shared {
    fn kept(&self, rank: Rank) -> i32 {
        self.reserves.kept(rank, || self.limit.load(Ordering::Acquire))
    }

    /// Takes a permit if more than `kept` are free.
    #[inline]
    fn try_enter(&self, kept: i32) -> bool {
        self.update(|state| (state.available > kept).then(|| State { available: state.available - 1, ..state })).is_ok()
    }

    /// Replaces the state by `change(state)` and returns the previous state. If `change` declines, returns the
    /// unchanged state as an error.
    fn update(&self, mut change: impl FnMut(State) -> Option<State>) -> Result<State, State> {
        let change = |word| change(State::unpack(word)).map(State::pack);
        let before = self.state.fetch_update(Ordering::AcqRel, Ordering::Acquire, change);
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

// === impl State ===

impl State {
    /// Packs `left | waiting | available`, from the highest bit to the lowest.
    fn pack(self) -> u64 {
        let available = u64::from(self.available as u32) & ((1 << AVAILABLE_BITS) - 1);
        available | u64::from(self.waiting) << AVAILABLE_BITS | u64::from(self.left) << (AVAILABLE_BITS + WAITING_BITS)
    }

    fn unpack(word: u64) -> Self {
        // Shift left and right again to extend the sign.
        let unused = u32::BITS - AVAILABLE_BITS;
        Self {
            available: ((word as u32) << unused) as i32 >> unused,
            waiting: (word >> AVAILABLE_BITS) as u32 & MOST_WAITING,
            left: (word >> (AVAILABLE_BITS + WAITING_BITS)) as u32,
        }
    }
}

pub(super) fn nanos(duration: Duration) -> u64 {
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

    /// Releases a permit that no call was started with.
    pub(super) fn release_unused(self) {
        if let Some(gate) = self.into_gate() {
            gate.reclaimed(1);
        }
    }

    /// Returns the gate without releasing the permit: the caller must release it.
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
    /// Ready with the permit once this waiter is admitted, or once it is shed. Until then, `waker` replaces the
    /// previous waker.
    pub(crate) fn poll(&mut self, waker: &Waker) -> Poll<Result<Permit, Shed>> {
        let Some(ticket) = self.ticket else { return Poll::Pending };
        let waker = waker.clone();
        let mut queue = self.gate.lock();
        match queue.place(ticket) {
            Place::Waiting(place) => {
                let replaced = mem::replace(place, waker);
                drop(queue);
                drop(replaced);
                Poll::Pending
            }
            Place::Shed => Poll::Ready(Err(Shed)),
            Place::Admitted => {
                drop(queue);
                self.ticket = None;
                Poll::Ready(Ok(Permit::new(&self.gate)))
            }
        }
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        let Some(ticket) = self.ticket else { return };
        let mut queue = self.gate.lock();
        match queue.remove(&self.gate.shared.counts, ticket) {
            Place::Waiting(waker) => {
                let _ = self.gate.update(|state| Some(State { waiting: state.waiting - 1, ..state }));
                drop(queue);
                drop(waker);
            }
            Place::Shed => {}
            // Dropped after its admission, before it was polled: the permit goes to the next waiter.
            Place::Admitted => self.gate.released(queue, 1, 0),
        }
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
