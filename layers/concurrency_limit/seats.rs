//! The seats of bodies that hold a permit.
//!
//! A seat is one atomic word. It is zero while the seat is free. Otherwise it holds the time at which its body last
//! yielded a frame, and a number that distinguishes it from other bodies. Only the body and the call that reclaims
//! change the word, each by a compare-exchange, so exactly one of them releases the permit.

#[cfg(all(test, ziggurat_loom))]
use loom::sync::atomic::{AtomicU64, Ordering};
#[cfg(not(all(test, ziggurat_loom)))]
use std::sync::atomic::{AtomicU64, Ordering};
use std::{iter, sync::OnceLock, time::Duration};

use crate::clock::{self, Instant};

const NUMBER_BITS: u32 = 20;

/// No body is reclaimed.
const NEVER: u64 = u64::MAX;

/// The number of seats of a table that are probed for a free one.
const PROBES: u64 = 8;

/// The seats of all bodies that hold a permit of one gate.
pub(super) struct Seats {
    /// How long a body may make no progress, in milliseconds.
    reclaim_after: AtomicU64,
    /// The earliest time at which a seat can be reclaimed.
    look_at: AtomicU64,
    next_number: AtomicU64,
    // None: there has been no body yet.
    table: OnceLock<Table>,
}

/// A table of seats, and a larger one for when it is full.
struct Table {
    seats: Box<[AtomicU64]>,
    more: OnceLock<Box<Table>>,
}

/// A body's seat, and the word that the body stored there.
pub(super) struct Seat {
    table: usize,
    index: usize,
    word: u64,
}

impl Seats {
    pub(super) fn new() -> Self {
        let [look_at, next_number] = [AtomicU64::new(0), AtomicU64::new(0)];
        Self { reclaim_after: AtomicU64::new(NEVER), look_at, next_number, table: OnceLock::new() }
    }

    /// Returns how long a body may make no progress; `None` if seats are never reclaimed.
    pub(super) fn reclaim_after(&self) -> Option<Duration> {
        match self.reclaim_after.load(Ordering::Relaxed) {
            NEVER => None,
            millis => Some(Duration::from_millis(millis)),
        }
    }

    pub(super) fn set_reclaim_after(&self, after: Duration) {
        self.reclaim_after.store(millis(after), Ordering::Relaxed);
        self.look_at.store(0, Ordering::Relaxed);
    }

    fn tables(&self) -> impl Iterator<Item = &Table> {
        iter::successors(self.table.get(), |table| table.more.get().map(|more| &**more))
    }

    fn word(&self, seat: &Seat) -> Option<&AtomicU64> {
        self.tables().nth(seat.table)?.seats.get(seat.index)
    }

    /// Takes a seat for a body that begins now. `limit` is the approximate number of bodies.
    pub(super) fn take(&self, now: u64, limit: usize) -> Seat {
        let number = self.next_number.fetch_add(1, Ordering::Relaxed);
        let word = word(now, number);
        let least = limit.saturating_mul(2).clamp(16, 1 << 16).next_power_of_two();
        let (mut table, mut nth) = (self.table.get_or_init(|| Table::new(least)), 0);
        loop {
            if let Some(index) = table.take(number, word) {
                return Seat { table: nth, index, word };
            }
            table = table.more.get_or_init(|| Box::new(Table::new(table.seats.len() * 2)));
            nth += 1;
        }
    }

    /// Records progress. Returns whether the seat still belongs to this body.
    pub(super) fn progress(&self, seat: &mut Seat, now: u64) -> bool {
        let new = word(now, seat.word);
        let changed = self.exchange(seat, new);
        seat.word = new;
        changed
    }

    /// Whether the seat belongs to this body.
    pub(super) fn is_held(&self, seat: &Seat) -> bool {
        self.word(seat).is_some_and(|word| word.load(Ordering::Relaxed) == seat.word)
    }

    /// Frees the seat. Returns whether it still belonged to this body.
    pub(super) fn leave(&self, seat: &Seat) -> bool {
        self.exchange(seat, 0)
    }

    fn exchange(&self, seat: &Seat, new: u64) -> bool {
        let word = self.word(seat);
        word.is_some_and(|word| word.compare_exchange(seat.word, new, Ordering::AcqRel, Ordering::Relaxed).is_ok())
    }

    /// Frees the seats of all bodies that have stalled for `reclaim_after`, and returns their number.
    pub(super) fn reclaim_at(&self, now: impl FnOnce() -> Instant) -> usize {
        match self.reclaim_after.load(Ordering::Relaxed) {
            NEVER => 0,
            after => self.reclaim(time(now()), after),
        }
    }

    /// Frees the seats of all bodies that have stalled for `after`, and returns their number.
    fn reclaim(&self, now: u64, after: u64) -> usize {
        let look_at = self.look_at.load(Ordering::Relaxed);
        if now < look_at {
            return 0;
        }
        let (mut reclaimed, mut oldest) = (0, now);
        for seat in self.tables().flat_map(|table| &table.seats) {
            let word = seat.load(Ordering::Acquire);
            let progress = word >> NUMBER_BITS;
            if word == 0 {
                continue;
            }
            if now.saturating_sub(progress) < after {
                oldest = oldest.min(progress);
            } else if seat.compare_exchange(word, 0, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
                reclaimed += 1;
            }
        }
        // Do not overwrite a value that was set in the meantime.
        let next = oldest.saturating_add(after);
        let _ = self.look_at.compare_exchange(look_at, next, Ordering::Relaxed, Ordering::Relaxed);
        reclaimed
    }
}

impl Table {
    fn new(seats: usize) -> Self {
        Self { seats: (0..seats).map(|_| AtomicU64::new(0)).collect(), more: OnceLock::new() }
    }

    fn take(&self, number: u64, word: u64) -> Option<usize> {
        let last = self.seats.len() as u64 - 1;
        (number..).take(PROBES as usize).map(|probe| (probe & last) as usize).find(|&index| {
            let free = |seat: &&AtomicU64| seat.load(Ordering::Relaxed) == 0;
            let seat = self.seats.get(index).filter(free);
            seat.is_some_and(|seat| seat.compare_exchange(0, word, Ordering::AcqRel, Ordering::Relaxed).is_ok())
        })
    }
}

/// Packs `time | number`. The result is never zero.
fn word(time: u64, number: u64) -> u64 {
    time << NUMBER_BITS | number & ((1 << NUMBER_BITS) - 1)
}

/// In milliseconds, starting at 1.
pub(super) fn time(at: Instant) -> u64 {
    millis(at.saturating_duration_since(clock::first_asked())).saturating_add(1)
}

fn millis(duration: Duration) -> u64 {
    duration.as_millis().try_into().unwrap_or(NEVER)
}

#[cfg(all(test, ziggurat_loom))]
mod model {
    use loom::{sync::Arc, thread};

    use super::*;

    fn explore(scenario: impl Fn() + Send + Sync + 'static) {
        let mut model = loom::model::Builder::new();
        model.preemption_bound = Some(3);
        model.check(scenario);
    }

    #[test]
    fn a_permit_is_given_back_once_whether_its_body_ends_goes_on_or_is_reclaimed() {
        explore(|| {
            let seats = Arc::new(Seats::new());
            let mut seat = seats.take(1, 1);
            let body = thread::spawn({
                let seats = seats.clone();
                move || {
                    let goes_on = seats.progress(&mut seat, 2);
                    (goes_on, goes_on && seats.leave(&seat))
                }
            });
            let reclaimed = seats.reclaim(2, 1);
            let (_, left) = body.join().unwrap();
            assert_eq!(reclaimed + usize::from(left), 1);
            assert_eq!(seats.reclaim(100, 1), 0);
        });
    }

    #[test]
    fn two_that_reclaim_take_a_permit_once_and_its_seat_is_free_for_another() {
        explore(|| {
            let seats = Arc::new(Seats::new());
            let old = seats.take(1, 1);
            let other = thread::spawn({
                let seats = seats.clone();
                move || {
                    let reclaimed = seats.reclaim(9, 5);
                    (reclaimed, seats.take(9, 1))
                }
            });
            let mine = seats.reclaim(9, 5);
            let (theirs, new) = other.join().unwrap();
            assert_eq!(mine + theirs, 1);
            assert!(!seats.leave(&old) && seats.leave(&new));
        });
    }
}
