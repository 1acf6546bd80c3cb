//! When a circuit opens, half-opens and closes: the decision alone, told the time, without a service.
//!
//! What every call needs is one word, `generation | state | failures in a row`: a call that succeeds while nothing failed only
//! reads it. Every turn of the state starts a new generation, and each call carries the one that admitted it, so a result
//! that comes after the turn is known to be late, and changes nothing. Turns happen under a lock, which no call takes
//! while the circuit is closed and stays closed; nobody else's code runs under it.

#[cfg(all(test, ziggurat_loom))]
use loom::sync::{
    Mutex, MutexGuard,
    atomic::{AtomicU32, AtomicU64, Ordering},
};
#[cfg(not(all(test, ziggurat_loom)))]
use std::sync::{
    Mutex, MutexGuard,
    atomic::{AtomicU32, AtomicU64, Ordering},
};
use std::{
    cell::OnceCell,
    collections::VecDeque,
    num::NonZeroU64,
    sync::{OnceLock, PoisonError},
    time::Duration,
};

use super::{
    state::{State, Transition, Word},
    window::{Extent, Window},
};
use crate::{Backoff, Waits, clock::Instant};

/// A shorter open time would admit everything at once, as a probe.
const SHORTEST: Duration = Duration::from_millis(1);

/// A service that asks for more is left alone for this long, where the open time has no maximum of its own.
const LONGEST_ASKED: Duration = Duration::from_secs(300);

/// What opens a circuit, for how long, and what closes it again.
#[derive(Clone, Debug)]
pub(super) struct Policy {
    /// So many failures in a row open it.
    pub(super) consecutive: Option<u32>,
    /// So large a part of failures opens it.
    pub(super) failure_rate: Option<f64>,
    /// Calls that take longer than this are slow, and so large a part of them opens it.
    pub(super) slow: Option<(Duration, f64)>,
    /// What the rates are taken of.
    pub(super) extent: Extent,
    /// Fewer calls have no rate.
    pub(super) min_calls: u32,
    pub(super) open_for: Backoff,
    pub(super) probes: usize,
    pub(super) successes_to_close: u32,
}

/// How a call ended, as far as a circuit cares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Success,
    Failure,
    /// A failure that asks to be left alone for this long.
    LeaveAlone(Duration),
    /// Says nothing about the service.
    Ignored,
}

impl Outcome {
    pub(super) fn is_failure(self) -> bool {
        matches!(self, Self::Failure | Self::LeaveAlone(_))
    }

    fn asked(self) -> Duration {
        match self {
            Self::LeaveAlone(wait) => wait,
            _ => Duration::ZERO,
        }
    }
}

/// The admission of one call.
#[derive(Debug)]
pub(super) struct Ticket {
    generation: u64,
    /// The place that it takes in a half-open circuit.
    probe: Option<NonZeroU64>,
    /// Known only if somebody asks how long calls take, and as long as it is not known that this one was in time.
    started: Option<Instant>,
}

impl Ticket {
    /// Whether the circuit was half-open.
    pub(super) fn is_probe(&self) -> bool {
        self.probe.is_some()
    }
}

/// No call is admitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Refused {
    /// After so long one will be; where that is up to [`Machine::close`], the first open time, for want of better.
    pub(super) retry_after: Duration,
}

#[derive(Debug)]
pub(super) struct Machine {
    policy: Policy,
    word: AtomicU64,
    /// The number of failures in a row that opens it. Zero: no number does.
    consecutive: AtomicU32,
    /// Fewer calls have no rate.
    min_calls: AtomicU32,
    // Empty: nobody has asked for a rate of failures yet.
    failures: OnceLock<Box<Rate>>,
    slow: Option<Box<Rate>>,
    episode: Mutex<Episode>,
}

/// A rate that opens a circuit.
#[derive(Debug)]
struct Rate {
    /// The bits of a number.
    least: AtomicU64,
    window: Window,
}

/// What is known of a circuit that is not simply closed. All turns of the state happen under its lock.
#[derive(Debug)]
struct Episode {
    open_for: Backoff,
    /// How long it will be open the next times, until it is closed.
    waits: Waits,
    /// How long it is open this time; as long a probe may keep its place.
    open_time: Duration,
    /// When it may half-open; `None` if it stays open.
    until: Option<Instant>,
    probes: Vec<Probe>,
    /// The number of the next probe.
    next: NonZeroU64,
    successes: u32,
    /// Turns that nobody has been told yet.
    news: VecDeque<Transition>,
}

#[derive(Debug)]
struct Probe {
    number: NonZeroU64,
    /// When it gives up its place, if ever.
    until: Option<Instant>,
}

impl Machine {
    /// A closed circuit. `now` is any moment before the first call.
    pub(super) fn new(policy: Policy, now: Instant) -> Self {
        let rate = |least| Box::new(Rate::new(least, policy.extent, now));
        Self {
            word: AtomicU64::new(Word::default().0),
            consecutive: AtomicU32::new(policy.consecutive.unwrap_or_default()),
            min_calls: AtomicU32::new(policy.extent.at_most(policy.min_calls)),
            failures: policy.failure_rate.map(rate).map(OnceLock::from).unwrap_or_default(),
            slow: policy.slow.map(|(_, least)| rate(least)),
            episode: Mutex::new(Episode {
                open_for: policy.open_for,
                waits: policy.open_for.waits(),
                open_time: Duration::ZERO,
                until: None,
                probes: Vec::new(),
                next: NonZeroU64::MIN,
                successes: 0,
                news: VecDeque::new(),
            }),
            policy,
        }
    }

    #[inline]
    pub(super) fn state(&self) -> State {
        self.word().state()
    }

    /// Whether a call would be admitted now. The clock is not read while the circuit is closed.
    #[inline]
    pub(super) fn check(&self, clock: impl FnOnce() -> Instant) -> Result<(), Refused> {
        match self.state() {
            State::Closed => Ok(()),
            State::Open | State::HalfOpen => self.check_turned(clock()),
        }
    }

    #[cold]
    fn check_turned(&self, now: Instant) -> Result<(), Refused> {
        self.check_at(now, &self.episode())
    }

    fn check_at(&self, now: Instant, episode: &Episode) -> Result<(), Refused> {
        let left = |until: Option<Instant>| until.map(|until| until.saturating_duration_since(now));
        match self.state() {
            State::Closed => Ok(()),
            State::Open => match left(episode.until) {
                Some(Duration::ZERO) => Ok(()),
                left => Err(Refused { retry_after: left.unwrap_or_else(|| episode.first_open_time()) }),
            },
            State::HalfOpen => {
                let held = || {
                    episode.probes.iter().map(|probe| left(probe.until)).filter(|left| *left != Some(Duration::ZERO))
                };
                if held().count() < self.policy.probes {
                    return Ok(());
                }
                Err(Refused { retry_after: held().flatten().min().unwrap_or_else(|| episode.first_open_time()) })
            }
        }
    }

    /// Admits a call if the circuit is closed, and nobody looks for slow calls.
    ///
    /// It is what nearly all calls come by, and apart from [`admit`](Self::admit) because what it answers is one word: a ticket that is
    /// put together and then moved costs more than everything else here.
    #[inline]
    pub(super) fn admit_untimed(&self) -> Option<Ticket> {
        let word = self.word();
        let generation = word.generation();
        (word.state() == State::Closed && self.slow.is_none()).then_some(Ticket {
            generation,
            probe: None,
            started: None,
        })
    }

    /// Admits a call. The clock is not read while the circuit is closed, unless slow calls are looked for.
    #[inline]
    pub(super) fn admit(&self, clock: impl FnOnce() -> Instant) -> Result<Ticket, Refused> {
        let word = self.word();
        if word.state() == State::Closed {
            let started = self.slow.is_some().then(clock);
            return Ok(Ticket { generation: word.generation(), probe: None, started });
        }
        self.admit_probe(clock())
    }

    #[cold]
    fn admit_probe(&self, now: Instant) -> Result<Ticket, Refused> {
        let mut episode = self.episode();
        self.check_at(now, &episode)?;
        if self.state() == State::Open {
            self.turn(&mut episode, State::HalfOpen);
        }
        let started = self.slow.is_some().then_some(now);
        // Closed by another thread in the meantime, there is no need for a probe.
        let probe = (self.state() == State::HalfOpen).then(|| episode.probe(now));
        Ok(Ticket { generation: self.word().generation(), probe, started })
    }

    /// Records how an admitted call ended, and says whether that turned the state.
    #[inline(always)] // see its caller
    pub(super) fn record(&self, ticket: &Ticket, outcome: Outcome, clock: impl Fn() -> Instant) -> bool {
        let word = self.word();
        if word.generation() != ticket.generation {
            return false;
        }
        // A success, and nobody looks at how long it took: nothing can turn.
        if outcome == Outcome::Success && ticket.probe.is_none() && self.slow.is_none() {
            if word.failures() > 0 {
                self.count_in_a_row(ticket.generation, false);
            }
            if let Some(rate) = self.failures.get() {
                rate.count(ticket.generation, clock, false, u32::MAX);
            }
            return false;
        }
        self.record_in_time(ticket, outcome, clock)
    }

    // Out of the way of what succeeds, which is small enough then to stand where it is called.
    #[cold]
    fn record_in_time(&self, ticket: &Ticket, outcome: Outcome, clock: impl Fn() -> Instant) -> bool {
        let now = OnceCell::new();
        let now = || *now.get_or_init(&clock);
        let slow = outcome != Outcome::Ignored && self.is_slow(ticket, now);
        match (ticket.probe, outcome) {
            (Some(number), outcome) => self.probe_ended(ticket.generation, number, outcome, slow, now()),
            (None, Outcome::Ignored) => false,
            (None, outcome) => {
                self.count(ticket.generation, outcome.is_failure(), slow, now)
                    && self.open(ticket.generation, outcome.asked(), now())
            }
        }
    }

    /// The answer to a call came, which goes on: from now on its time does not count.
    pub(super) fn answered(&self, ticket: &mut Ticket, clock: impl Fn() -> Instant) {
        if !self.is_slow(ticket, clock) {
            ticket.started = None;
        }
    }

    fn is_slow(&self, ticket: &Ticket, now: impl Fn() -> Instant) -> bool {
        match (self.policy.slow, ticket.started) {
            (Some((limit, _)), Some(started)) => now().saturating_duration_since(started) > limit,
            _ => false,
        }
    }

    /// Counts a call that ended while the circuit was closed, and says whether that opens it.
    fn count(&self, generation: u64, failed: bool, slow: bool, now: impl Fn() -> Instant) -> bool {
        let min_calls = self.min_calls.load(Ordering::Relaxed);
        let over =
            |rate: Option<&Box<Rate>>, bad| rate.is_some_and(|rate| rate.count(generation, &now, bad, min_calls));
        // Each of them counts the call, whatever the others find.
        self.count_in_a_row(generation, failed) | over(self.failures.get(), failed) | over(self.slow.as_ref(), slow)
    }

    fn count_in_a_row(&self, generation: u64, failed: bool) -> bool {
        let limit = self.consecutive.load(Ordering::Relaxed);
        // A success ends the row also while nobody counts it, or a row would go on that it interrupted.
        if failed && limit == 0 {
            return false;
        }
        let mut word = self.word();
        loop {
            let failures = if failed { word.failures().saturating_add(1) } else { 0 };
            if word.generation() != generation || failures == word.failures() {
                return false;
            }
            let counted = word.with_failures(failures);
            match self.word.compare_exchange_weak(word.0, counted.0, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return failed && failures >= limit,
                Err(newer) => word = Word(newer),
            }
        }
    }

    /// A probe frees its place and decides.
    fn probe_ended(&self, generation: u64, number: NonZeroU64, outcome: Outcome, slow: bool, now: Instant) -> bool {
        let mut episode = self.episode();
        if self.word().generation() != generation {
            return false;
        }
        // It may have lost its place, and still tells what the service does: or calls that take longer than the open time would
        // never close the circuit.
        episode.probes.retain(|probe| probe.number != number);
        match outcome {
            Outcome::Ignored => false,
            Outcome::Success if !slow => {
                episode.successes += 1;
                let closes = episode.successes >= self.policy.successes_to_close;
                if closes {
                    self.turn_closed(&mut episode);
                }
                closes
            }
            _ => {
                self.turn_open(&mut episode, outcome.asked(), now);
                true
            }
        }
    }

    /// Opens the circuit, unless its state turned since this generation.
    fn open(&self, generation: u64, asked: Duration, now: Instant) -> bool {
        let mut episode = self.episode();
        let in_time = self.word().generation() == generation;
        if in_time {
            self.turn_open(&mut episode, asked, now);
        }
        in_time
    }

    /// Opens the circuit until [`Machine::close`].
    pub(super) fn force_open(&self) {
        let mut episode = self.episode();
        episode.until = None;
        self.turn(&mut episode, State::Open);
    }

    /// Closes the circuit, and forgets all that was counted.
    pub(super) fn close(&self) {
        let mut episode = self.episode();
        self.turn_closed(&mut episode);
    }

    /// Whether there are turns that nobody took yet.
    pub(super) fn has_news(&self) -> bool {
        !self.episode().news.is_empty()
    }

    /// Takes the oldest of them.
    pub(super) fn news(&self) -> Option<Transition> {
        self.episode().news.pop_front()
    }

    /// Opens after this many failures in a row from now on; after no number of them if it is zero.
    pub(super) fn set_consecutive_failures(&self, failures: u32) {
        self.consecutive.store(failures, Ordering::Relaxed);
    }

    /// Opens at this rate of failures from now on. If there was none, its window begins now.
    pub(super) fn set_failure_rate(&self, least: f64, now: Instant) {
        let rate = self.failures.get_or_init(|| Box::new(Rate::new(least, self.policy.extent, now)));
        rate.least.store(least.to_bits(), Ordering::Relaxed);
    }

    pub(super) fn set_min_calls(&self, calls: u32) {
        self.min_calls.store(self.policy.extent.at_most(calls), Ordering::Relaxed);
    }

    /// From the next time that it opens on. How often it opened before it was last closed counts on.
    pub(super) fn set_open_for(&self, open_for: Backoff) {
        let mut episode = self.episode();
        episode.open_for = open_for;
        episode.waits.follow(open_for);
    }

    /// Opens the circuit for the next of its times, or for as long as the service `asked` if that is longer: up to the
    /// longest of its own, for who answers so may be wrong.
    fn turn_open(&self, episode: &mut Episode, asked: Duration, now: Instant) {
        let longest = Some(episode.open_for.longest()).filter(|longest| *longest < Duration::MAX);
        episode.open_time = next_of(&mut episode.waits).max(asked.min(longest.unwrap_or(LONGEST_ASKED)));
        episode.until = now.checked_add(episode.open_time);
        self.turn(episode, State::Open);
    }

    fn turn_closed(&self, episode: &mut Episode) {
        episode.waits = episode.open_for.waits();
        self.turn(episode, State::Closed);
    }

    fn turn(&self, episode: &mut Episode, to: State) {
        let from = self.word();
        episode.probes.clear();
        episode.successes = 0;
        // Overwrites a failure that is counted at this moment: it belongs to the generation that ends here. (Not a plain store:
        // loom cannot tell its order among the others.)
        self.word.swap(from.next(to).0, Ordering::AcqRel);
        if from.state() != to {
            episode.news.push_back(Transition { from: from.state(), to });
        }
    }

    #[inline]
    fn word(&self) -> Word {
        Word(self.word.load(Ordering::Acquire))
    }

    fn episode(&self) -> MutexGuard<'_, Episode> {
        self.episode.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn next_of(waits: &mut Waits) -> Duration {
    waits.next().unwrap_or_default().max(SHORTEST)
}

impl Rate {
    fn new(least: f64, extent: Extent, now: Instant) -> Self {
        Self { least: AtomicU64::new(least.to_bits()), window: Window::new(extent, now) }
    }

    /// Counts a call, and says whether it is one too many.
    fn count(&self, generation: u64, now: impl Fn() -> Instant, bad: bool, min_calls: u32) -> bool {
        let slot = self.window.record(generation, now, bad);
        if !bad {
            return false; // it can only lower the rate
        }
        let held = self.window.tally(slot);
        held.calls >= min_calls && held.reaches(f64::from_bits(self.least.load(Ordering::Relaxed)))
    }
}

impl Episode {
    #[cold]
    fn first_open_time(&self) -> Duration {
        next_of(&mut self.open_for.waits())
    }

    /// Takes a place for a probe, which is free or overdue.
    fn probe(&mut self, now: Instant) -> NonZeroU64 {
        self.probes.retain(|probe| probe.until.is_none_or(|until| now < until));
        let number = self.next;
        self.next = self.next.saturating_add(1);
        self.probes.push(Probe { number, until: now.checked_add(self.open_time) });
        number
    }
}

#[cfg(all(test, not(ziggurat_loom)))]
mod tests;
