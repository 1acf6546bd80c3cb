//! When a circuit opens, half-opens and closes: the decision alone, told the time, without a service.
//!
//! What every call needs is one word, `generation | state | failures in a row`: a call that succeeds while nothing failed only
//! reads it. Every turn of the state starts a new generation, and each call carries the one that admitted it, so a result
//! that comes after the turn is known to be late, and changes nothing. Turns happen under a lock, which no call takes
//! while the circuit is closed and stays closed; nobody else's code runs under it.

#[cfg(all(test, ziggurat_loom))]
use loom::sync::{
    Mutex, MutexGuard,
    atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
};
#[cfg(not(all(test, ziggurat_loom)))]
use std::sync::{
    Mutex, MutexGuard,
    atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
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
use crate::{
    backoff::{Backoff, Waits},
    clock::Instant,
};

/// Of a word that counts calls of a generation: which one.
const TAG: u64 = u64::MAX << 32;

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
    /// Whether somebody asks how long a call has taken, beside the slow ones.
    pub(super) timed: bool,
}

/// How a call ended, as far as a circuit cares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Success,
    /// The service answered, or failed by itself, in a way that counts against it.
    Failure,
    /// A failure that asks to be left alone for this long.
    LeaveAlone(Duration),
    /// A failure without an answer of the service: it had its time.
    NoAnswer,
    /// Neutral, because the caller's deadline left the service less than its time. A failure only while nothing else comes back.
    Abandoned,
    /// The service answered, and the answer says nothing about it.
    Answered,
    /// Says nothing about the service, not even that it answers.
    Ignored,
}

impl Outcome {
    pub(super) fn is_failure(self) -> bool {
        matches!(self, Self::Failure | Self::LeaveAlone(_) | Self::NoAnswer)
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
    /// The call waited on this side until now: its time begins.
    pub(super) fn sent(&mut self, clock: impl FnOnce() -> Instant) {
        if self.started.is_some() {
            self.started = Some(clock());
        }
    }

    /// Whether it was admitted this long ago, if that is known.
    pub(super) fn had(&self, time: Duration, clock: impl FnOnce() -> Instant) -> bool {
        self.started.is_some_and(|started| clock().saturating_duration_since(started) >= time)
    }

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
    /// `generation: 32 | calls in a row that nothing came back of: 32`.
    unanswered: AtomicU64,
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
    /// Whether a success may open the circuit, by completing the fewest calls that have a rate, or because the rate was changed.
    awaits_more: AtomicBool,
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
            unanswered: AtomicU64::new(0),
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
    fn is_timed(&self) -> bool {
        self.slow.is_some() || self.policy.timed
    }

    /// Whether the state has not turned since this call was admitted.
    pub(super) fn is_current(&self, ticket: &Ticket) -> bool {
        self.word().generation() == ticket.generation
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
        (word.state() == State::Closed && !self.is_timed()).then_some(Ticket { generation, probe: None, started: None })
    }

    /// Admits a call. The clock is not read while the circuit is closed, unless slow calls are looked for.
    #[inline]
    pub(super) fn admit(&self, clock: impl FnOnce() -> Instant) -> Result<Ticket, Refused> {
        let word = self.word();
        if word.state() == State::Closed {
            let started = self.is_timed().then(clock);
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
        let started = self.is_timed().then_some(now);
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
        // A success, and nobody looks at how long it took: only a rate can turn the state.
        if outcome == Outcome::Success && ticket.probe.is_none() && self.slow.is_none() {
            self.heard();
            if word.failures() > 0 {
                self.count_in_a_row(ticket.generation, false);
            }
            return self
                .failures
                .get()
                .is_some_and(|rate| rate.count(ticket.generation, &clock, false, &self.min_calls))
                && self.open(ticket.generation, Duration::ZERO, clock());
        }
        self.record_in_time(ticket, outcome, clock)
    }

    // Out of the way of what succeeds, which is small enough then to stand where it is called.
    #[cold]
    fn record_in_time(&self, ticket: &Ticket, outcome: Outcome, clock: impl Fn() -> Instant) -> bool {
        let now = OnceCell::new();
        let now = || *now.get_or_init(&clock);
        let generation = ticket.generation;
        let counts = outcome == Outcome::Success || outcome.is_failure();
        let slow = counts && self.is_slow(ticket, now);
        let nothing_comes_back = match outcome {
            Outcome::NoAnswer | Outcome::Abandoned => self.count_unanswered(generation),
            Outcome::Success | Outcome::Failure | Outcome::LeaveAlone(_) | Outcome::Answered => {
                self.heard();
                false
            }
            Outcome::Ignored => false,
        };
        match ticket.probe {
            Some(number) => self.probe_ended(generation, number, outcome, slow || nothing_comes_back, now()),
            // Counted, whatever else opens it.
            None => {
                (counts && self.count(generation, outcome.is_failure(), slow, now)) | nothing_comes_back
                    && self.open(generation, outcome.asked(), now())
            }
        }
    }

    /// Counts a call that nothing came back of, and says whether that is one too many in a row.
    fn count_unanswered(&self, generation: u64) -> bool {
        let tag = generation << 32;
        let more =
            |word: u64| Some(tag | if word & TAG == tag & TAG { (word as u32).saturating_add(1).into() } else { 1 });
        // Always there: it does not decline.
        let before = self.unanswered.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).unwrap_or_default();
        let in_a_row = more(before).unwrap_or_default() as u32;
        let consecutive = match self.consecutive.load(Ordering::Relaxed) {
            0 => u32::MAX,
            failures => failures,
        };
        let min_calls = match self.failures.get() {
            Some(_) => self.min_calls.load(Ordering::Relaxed),
            None => u32::MAX,
        };
        in_a_row >= consecutive.min(min_calls)
    }

    /// Something came back from the service.
    #[inline]
    fn heard(&self) {
        // Mostly it is zero already, and then the line stays shared.
        if self.unanswered.load(Ordering::Relaxed) as u32 != 0 {
            self.unanswered.store(0, Ordering::Relaxed);
        }
    }

    /// The answer to a call came, which goes on: from now on its time does not count.
    pub(super) fn answered(&self, ticket: &mut Ticket, clock: impl Fn() -> Instant) {
        if self.slow.is_some() && !self.is_slow(ticket, clock) {
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
        let over =
            |rate: Option<&Box<Rate>>, bad| rate.is_some_and(|rate| rate.count(generation, &now, bad, &self.min_calls));
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
    fn probe_ended(&self, generation: u64, number: NonZeroU64, outcome: Outcome, bad: bool, now: Instant) -> bool {
        let mut episode = self.episode();
        if self.word().generation() != generation {
            return false;
        }
        // It may have lost its place, and still tells what the service does: or calls that take longer than the open time would
        // never close the circuit.
        episode.probes.retain(|probe| probe.number != number);
        match outcome {
            Outcome::Ignored | Outcome::Answered | Outcome::Abandoned if !bad => false,
            Outcome::Success if !bad => {
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
        rate.awaits_more.store(true, Ordering::Relaxed);
    }

    pub(super) fn set_min_calls(&self, calls: u32) {
        self.min_calls.store(self.policy.extent.at_most(calls), Ordering::Relaxed);
        for rate in self.failures.get().into_iter().chain(&self.slow) {
            rate.awaits_more.store(true, Ordering::Relaxed);
        }
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
        let (least, window) = (AtomicU64::new(least.to_bits()), Window::new(extent, now));
        Self { least, window, awaits_more: AtomicBool::new(false) }
    }

    /// Counts a call, and says whether the circuit is to open now.
    ///
    /// A call that is not bad can only raise the rate where good ones leave the window with it, and it can complete the fewest calls that
    /// have a rate: otherwise there is nothing to sum.
    ///
    /// A call that completes them while the one that failed is still summing may not see that more calls are awaited. Then the next call
    /// is judged in its place, whatever it ends with. To see it at once, every call that succeeds would need a fence.
    #[inline]
    fn count(&self, generation: u64, now: impl Fn() -> Instant, bad: bool, min_calls: &AtomicU32) -> bool {
        let (slot, slides) = self.window.record(generation, now, bad);
        (bad || slides || self.awaits_more.load(Ordering::Relaxed)) && self.is_over(slot, min_calls)
    }

    #[cold]
    fn is_over(&self, slot: u64, min_calls: &AtomicU32) -> bool {
        let held = self.window.tally(slot);
        let enough = held.calls >= min_calls.load(Ordering::Relaxed);
        // One that saw no failure says nothing: another call may have failed since, and awaits more.
        if enough || held.bad > 0 {
            self.awaits_more.store(!enough, Ordering::Relaxed);
        }
        enough && held.reaches(f64::from_bits(self.least.load(Ordering::Relaxed)))
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
