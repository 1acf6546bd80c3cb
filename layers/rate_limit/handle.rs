//! The state that all services of a rate limit share: its bucket, and the calls that wait for tokens.

use std::{
    fmt, mem,
    sync::{
        Arc, MutexGuard,
        atomic::{AtomicU64, AtomicUsize, Ordering, fence},
    },
    task::{Poll, Waker},
    time::Duration,
};

use super::queue::{Decision, Place, Queue};
use crate::{
    bucket::{Bucket, Denied, Rate},
    caught::undisturbed,
    clock::{self, Instant},
    mutex::Mutex,
};

/// A handle to the live state of a rate limit: reads its counts and changes its rate.
///
/// Clones refer to the same state.
#[derive(Clone)]
pub struct RateLimitHandle {
    shared: Arc<Shared>,
}

struct Shared {
    bucket: Bucket,
    /// The settings that `bucket` follows, which is changed under this lock.
    rate: Mutex<Rate>,
    /// The cost of all calls that wait. Changed under the lock of `queue` only. A new call takes tokens without that
    /// lock only if this is zero, and so does not overtake a waiter.
    queued: AtomicU64,
    queue: Mutex<Queue>,
    /// The number of calls whose true cost is not known yet.
    unsettled: AtomicUsize,
}

/// The result of [`enter`](RateLimitHandle::enter).
pub(super) enum Entry {
    Admitted(Tokens),
    Queued(Waiter),
    Denied(Denied),
}

/// A call's place in the queue. Dropping it leaves the queue, or gives back tokens that it was granted.
pub(super) struct Waiter {
    handle: RateLimitHandle,
    /// `None` once its tokens were taken.
    ticket: Option<u64>,
    cost: u32,
    /// When its turn is expected.
    turn: Instant,
}

/// The tokens of a call that waited, and has not been made yet. Dropping them gives them back.
pub(super) struct Tokens {
    handle: RateLimitHandle,
    cost: u32,
    taken_at: Instant,
}

// === impl RateLimitHandle ===

impl RateLimitHandle {
    pub(super) fn new(rate: Rate) -> Self {
        let shared = Shared {
            bucket: Bucket::new(rate, clock::now()),
            rate: Mutex::new(rate),
            queued: AtomicU64::new(0),
            queue: Mutex::default(),
            unsettled: AtomicUsize::new(0),
        };
        Self { shared: Arc::new(shared) }
    }

    /// Returns the number of tokens that the bucket gains in each [`period`](Self::period).
    #[must_use]
    pub fn quantity(&self) -> u32 {
        self.shared.rate.lock().quantity
    }

    /// Returns the time in which the bucket gains [`quantity`](Self::quantity) tokens.
    #[must_use]
    pub fn period(&self) -> Duration {
        self.shared.rate.lock().period
    }

    /// Returns the number of tokens in a full bucket.
    #[must_use]
    pub fn burst(&self) -> u32 {
        self.shared.rate.lock().burst()
    }

    /// Returns the number of tokens in the bucket. Reads the clock.
    ///
    /// Calls that wait will take the next ones.
    #[must_use]
    pub fn available(&self) -> u32 {
        self.shared.bucket.available(clock::now())
    }

    /// Returns the number of calls that wait for tokens.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.shared.queue.lock().len()
    }

    /// Changes the rate, with immediate effect and for all clones. A burst that was not set follows the quantity.
    ///
    /// As many tokens are missing from the bucket as before, or all of them if it holds fewer now. Waiters are admitted
    /// at the new rate. A call that takes tokens at the same moment does so at either rate.
    ///
    /// # Panics
    ///
    /// Panics if `quantity` or `period` is zero.
    #[track_caller]
    pub fn set_rate(&self, quantity: u32, period: Duration) {
        let new = Rate::new(quantity, period);
        self.change(|rate| Rate { burst: rate.burst, ..new });
    }

    /// Changes the number of tokens in a full bucket, with immediate effect and for all clones.
    ///
    /// A waiter that needs more than that is rejected when it is its turn.
    ///
    /// # Panics
    ///
    /// Panics if `burst` is zero.
    #[track_caller]
    pub fn set_burst(&self, burst: u32) {
        assert!(burst > 0, "`burst` must be at least 1: in an empty bucket nothing could ever pass");
        self.change(|rate| Rate { burst: Some(burst), ..rate });
    }

    fn change(&self, change: impl FnOnce(Rate) -> Rate) {
        let mut rate = self.shared.rate.lock();
        *rate = change(*rate);
        let now = clock::now();
        self.shared.bucket.set(*rate, now);
        drop(rate);
        self.advance(self.shared.queue.lock(), now);
    }

    /// Returns whether a new bucket in the place of this one would act differently.
    pub(super) fn still_matters(&self) -> bool {
        // Acquire: the cost that a call has settled is seen with the end of its count.
        self.shared.unsettled.load(Ordering::Acquire) > 0 || !self.shared.bucket.is_full(clock::now())
    }

    /// Counts a call whose true cost is not known yet.
    pub(super) fn begin_unsettled(&self) {
        self.shared.unsettled.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts it out, settled or not.
    pub(super) fn end_unsettled(&self) {
        self.shared.unsettled.fetch_sub(1, Ordering::Release);
    }

    /// Returns the rate, the number of tokens in the bucket, and the time until it is full.
    pub(super) fn status(&self, now: Instant) -> (Rate, u32, Duration) {
        let (rate, bucket) = (*self.shared.rate.lock(), &self.shared.bucket);
        (rate, bucket.available(now), bucket.time_until(now, rate.burst().into()))
    }

    /// Corrects the cost of a call, now that it is known.
    pub(super) fn settle(&self, taken: u32, cost: u64) {
        let now = clock::now();
        self.shared.bucket.settle(taken, cost, now);
        // A call that joins the queue meanwhile finds these tokens when it looks again, or is found here.
        fence(Ordering::SeqCst);
        if self.shared.queued.load(Ordering::Acquire) > 0 {
            self.advance(self.shared.queue.lock(), now);
        }
    }

    /// Takes the tokens of a call, unless other calls wait for theirs.
    #[inline]
    pub(super) fn take(&self, cost: u32) -> Result<(), Denied> {
        if cost == 0 {
            return Ok(());
        }
        let now = clock::now();
        match self.shared.queued.load(Ordering::Acquire) {
            0 => self.shared.bucket.take(now, cost),
            _ => self.take_in_turn(now, cost),
        }
    }

    #[cold]
    fn take_in_turn(&self, now: Instant, cost: u32) -> Result<(), Denied> {
        let mut queue = self.shared.queue.lock();
        let woken = self.grant(&mut queue, now, None);
        let taken = self.take_behind(&queue, now, cost);
        drop(queue);
        wake(woken);
        taken
    }

    /// Takes the tokens of a call, or a place in the queue if it `waits` for as long as its turn is away.
    pub(super) fn enter(&self, now: Instant, cost: u32, waits: impl FnOnce(Duration) -> bool, waker: &Waker) -> Entry {
        // A waker is foreign code: it is cloned, dropped and woken outside the lock.
        let waker = waker.clone();
        let mut queue = self.shared.queue.lock();
        let woken = self.grant(&mut queue, now, None);
        let entry = match self.take_behind(&queue, now, cost) {
            Ok(()) => Entry::Admitted(Tokens { handle: self.clone(), cost, taken_at: now }),
            Err(Denied::Wait(wait)) if waits(wait) => {
                let ticket = Some(queue.push(cost, waker));
                self.count(&queue);
                Entry::Queued(Waiter { handle: self.clone(), ticket, cost, turn: now + wait })
            }
            Err(denied) => Entry::Denied(denied),
        };
        drop(queue);
        wake(woken);
        entry
    }

    /// Takes the tokens of a call if no other call waits.
    fn take_behind(&self, queue: &Queue, now: Instant, cost: u32) -> Result<(), Denied> {
        if queue.len() == 0 {
            return self.shared.bucket.take(now, cost);
        }
        Err(self.shared.bucket.denied(now, cost, queue.cost()))
    }

    /// Returns why a call that stops waiting has no tokens.
    pub(super) fn denied(&self, now: Instant, cost: u32) -> Denied {
        self.shared.bucket.denied(now, cost, self.shared.queued.load(Ordering::Acquire))
    }

    /// Admits the waiters whose turn it is, and lets the next one look when its turn is.
    fn advance(&self, mut queue: MutexGuard<'_, Queue>, now: Instant) {
        let mut woken = self.grant(&mut queue, now, None);
        woken.extend(queue.take_first_waker());
        drop(queue);
        wake(woken);
    }

    /// Grants tokens to the waiters whose turn it is. Returns the wakers of all of them but `own`, and that of the next
    /// one, which then sets its timer.
    fn grant(&self, queue: &mut Queue, now: Instant, own: Option<u64>) -> Vec<Waker> {
        let (mut woken, mut is_next) = (Vec::new(), false);
        while let Some((_, cost)) = queue.first() {
            let decision = match self.shared.bucket.take(now, cost) {
                Ok(()) => Decision::Granted(now),
                Err(Denied::Never { burst }) => Decision::Refused { burst },
                Err(Denied::Wait(_)) => break,
            };
            let decided = queue.decide_first(decision);
            woken.extend(decided.filter(|(ticket, _)| own != Some(*ticket)).map(|(_, waker)| waker));
            is_next = true;
        }
        if is_next {
            self.count(queue);
            woken.extend(queue.take_first_waker());
        }
        woken
    }

    /// Publishes the cost of all calls that wait.
    fn count(&self, queue: &Queue) {
        self.shared.queued.store(queue.cost(), Ordering::Release);
        fence(Ordering::SeqCst);
    }

    /// Gives the tokens of a call back that was not made.
    fn give_back(&self, queue: MutexGuard<'_, Queue>, cost: u32, taken_at: Instant) {
        let now = clock::now();
        self.shared.bucket.give_back(cost, taken_at, now);
        self.advance(queue, now);
    }
}

impl fmt::Debug for RateLimitHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rate = *self.shared.rate.lock();
        f.debug_struct("RateLimitHandle")
            .field("quantity", &rate.quantity)
            .field("period", &rate.period)
            .field("burst", &rate.burst())
            .field("available", &self.available())
            .field("waiting", &self.waiting())
            .finish()
    }
}

/// A waker that panics does not keep the others asleep.
fn wake(wakers: Vec<Waker>) {
    for waker in wakers {
        undisturbed(|| waker.wake());
    }
}

// === impl Waiter ===

impl Waiter {
    /// Returns the time at which its turn is expected.
    pub(super) fn turn(&self) -> Instant {
        self.turn
    }

    /// Ready with its tokens once it is its turn. Until then, `waker` replaces the previous one, and
    /// [`turn`](Self::turn) is up to date if this is the first waiter, or if that time has passed.
    pub(super) fn poll(&mut self, now: Instant, waker: &Waker) -> Poll<Result<Tokens, Denied>> {
        let Some(ticket) = self.ticket else { return Poll::Pending };
        let waker = waker.clone();
        let shared = &self.handle.shared;
        let mut queue = shared.queue.lock();
        let woken = self.handle.grant(&mut queue, now, Some(ticket));
        let is_first = queue.first().is_some_and(|(first, _)| first == ticket);
        if is_first || self.turn <= now {
            self.turn = now + shared.bucket.time_until(now, queue.cost_until(ticket));
        }
        let (polled, replaced) = match queue.look(ticket) {
            Some(Place::Waiting(place)) => (Poll::Pending, Some(mem::replace(place, waker))),
            Some(Place::Decided(decision)) => {
                self.ticket = None;
                (Poll::Ready(decision), None)
            }
            None => (Poll::Pending, None),
        };
        drop(queue);
        wake(woken);
        drop(replaced);
        polled.map(|decision| match decision {
            Decision::Granted(taken_at) => Ok(Tokens { handle: self.handle.clone(), cost: self.cost, taken_at }),
            Decision::Refused { burst } => Err(Denied::Never { burst }),
        })
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        let Some(ticket) = self.ticket else { return };
        let mut queue = self.handle.shared.queue.lock();
        let was_first = queue.first().is_some_and(|(first, _)| first == ticket);
        match queue.remove(ticket) {
            Some(Place::Waiting(waker)) => {
                self.handle.count(&queue);
                if was_first {
                    self.handle.advance(queue, clock::now());
                } else {
                    drop(queue);
                }
                drop(waker);
            }
            Some(Place::Decided(Decision::Granted(taken_at))) => self.handle.give_back(queue, self.cost, taken_at),
            Some(Place::Decided(Decision::Refused { .. })) | None => {}
        }
    }
}

// === impl Tokens ===

impl Tokens {
    /// The call is made.
    pub(super) fn spend(mut self) {
        self.cost = 0;
    }
}

impl Drop for Tokens {
    fn drop(&mut self) {
        if self.cost > 0 {
            self.handle.give_back(self.handle.shared.queue.lock(), self.cost, self.taken_at);
        }
    }
}
