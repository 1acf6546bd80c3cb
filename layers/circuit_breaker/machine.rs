//! The state machine of a circuit, which decides when it opens, half-opens and closes. It is given the time, and knows
//! nothing of services.
//!
//! All that a call needs on the happy path is one word, `generation | state | failures in a row`. A call that succeeds
//! with no failure before it only reads the word. Every transition starts a new generation, and a call carries the
//! generation that admitted it: a result that arrives after a transition is known to be late and changes nothing.
//! Transitions happen under a lock, which a call takes only if the circuit is not closed or opens. No user code runs
//! under the lock.

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
    num::{NonZeroU32, NonZeroU64},
    sync::{OnceLock, PoisonError},
    time::Duration,
};

use super::{
    rate::Rate,
    state::{CircuitStatus, State, Transition, Word},
    window::{Extent, FEWEST},
};
use crate::{
    backoff::{Backoff, Waits},
    clock::Instant,
};

/// The bits of `unanswered` that hold the generation.
const TAG: u64 = u64::MAX << 32;

/// The weight of an unanswered call in a row of them. A failed attempt of a request whose earlier attempt failed weighs
/// 1: a request has three attempts by default.
const WEIGHT: u32 = 3;

/// The shortest open time. With a shorter one, every call would be admitted at once as a probe.
const SHORTEST: Duration = Duration::from_millis(1);

/// How long an open circuit is remembered that no call asks any more: see [`Machine::still_matters`].
const REMEMBERED: Duration = Duration::from_secs(60);
const FORGOTTEN: u32 = 10;

/// The shortest time for which a probe keeps its slot. A service that hangs would otherwise have many probes at once:
/// an attempt may take longer than the circuit is open.
const SHORTEST_SLOT: Duration = Duration::from_secs(5);

/// Caps the wait that a service asks for, unless the open time may be longer.
const LONGEST_ASKED: Duration = Duration::from_secs(300);

/// The rules by which a circuit opens, for how long, and by which it closes.
#[derive(Clone, Debug)]
pub(super) struct Policy {
    /// The number of failures in a row that opens the circuit.
    pub(super) consecutive: Option<u32>,
    /// The fraction of failed calls that opens the circuit.
    pub(super) failure_rate: Option<f64>,
    /// The duration above which a call is slow, and the fraction of slow calls that opens the circuit.
    pub(super) slow: Option<(Duration, f64)>,
    /// The window over which rates are computed.
    pub(super) extent: Extent,
    /// The number of calls that are enough to know the rate. `None`: as many as distinguish it from chance.
    pub(super) min_calls: Option<NonZeroU32>,
    pub(super) open_for: Backoff,
    pub(super) probes: usize,
    pub(super) successes_to_close: u32,
    /// Whether calls are timed for a purpose other than slow calls.
    pub(super) timed: bool,
    /// Whether every call is admitted, whatever the state.
    pub(super) watch_only: bool,
}

/// How a call ended, as a circuit counts it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Success,
    /// The service responded or failed by itself, in a way that counts against it.
    Failure,
    /// A failure that asks callers to stay away for this duration.
    LeaveAlone(Duration),
    /// The service had its full time and did not respond, which is a failure.
    NoAnswer,
    /// The caller's deadline left the service less than its full time. Neutral, except while nothing else comes back.
    Abandoned,
    /// A later attempt of one request failed, and asks callers to stay away for this duration. Neutral, except while
    /// nothing else comes back: one request that always fails must not outweigh others that succeed.
    FailedAgain(Duration),
    /// The service responded, and the response says nothing about its health.
    Answered,
    /// The outcome says nothing about the service, not even that it responds.
    Ignored,
}

impl Outcome {
    pub(super) fn is_failure(self) -> bool {
        matches!(self, Self::Failure | Self::LeaveAlone(_) | Self::NoAnswer)
    }

    /// The outcome of a later attempt of one request.
    pub(super) fn repeated(self) -> Self {
        match self {
            Self::Failure | Self::LeaveAlone(_) | Self::NoAnswer | Self::Abandoned => Self::FailedAgain(self.asked()),
            Self::Success | Self::Answered | Self::Ignored | Self::FailedAgain(_) => self,
        }
    }

    fn asked(self) -> Duration {
        match self {
            Self::LeaveAlone(wait) | Self::FailedAgain(wait) => wait,
            _ => Duration::ZERO,
        }
    }
}

/// The admission of one call.
#[derive(Debug)]
pub(super) struct Ticket {
    generation: u64,
    /// The slot that the call takes in a half-open circuit.
    probe: Option<NonZeroU64>,
    /// When the call began. Known only if calls are timed, and until the call is known not to be slow.
    started: Option<Instant>,
}

impl Ticket {
    /// Marks that the call left a local queue: its time starts now.
    pub(super) fn sent(&mut self, clock: impl FnOnce() -> Instant) {
        if self.started.is_some() {
            self.started = Some(clock());
        }
    }

    /// Returns whether the call began at least `time` ago, if its start is known.
    pub(super) fn had(&self, time: Duration, clock: impl FnOnce() -> Instant) -> bool {
        self.started.is_some_and(|started| clock().saturating_duration_since(started) >= time)
    }

    /// Returns whether the circuit was half-open.
    pub(super) fn is_probe(&self) -> bool {
        self.probe.is_some()
    }
}

/// The circuit admits no call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Refused {
    /// The time until a call can be admitted. Until [`Machine::close`], with no end known, the first open time.
    pub(super) retry_after: Duration,
}

#[derive(Debug)]
pub(super) struct Machine {
    policy: Policy,
    word: AtomicU64,
    /// The number of failures in a row that opens the circuit. Zero disables this.
    consecutive: AtomicU32,
    /// [`Extent::enough`].
    min_calls: AtomicU32,
    /// `generation: 32 | unanswered calls in a row, times WEIGHT: 32`.
    unanswered: AtomicU64,
    // Empty until a failure rate is set.
    failures: OnceLock<Box<Rate>>,
    slow: Option<Box<Rate>>,
    /// As in [`Policy`]. A handle may change it.
    watch_only: AtomicBool,
    episode: Mutex<Episode>,
}

/// The state behind a circuit that is not simply closed. Its lock guards all transitions.
#[derive(Debug)]
struct Episode {
    open_for: Backoff,
    /// The open times to come, until the circuit closes.
    waits: Waits,
    /// The current open time. A probe may keep its slot for as long, and for at least [`SHORTEST_SLOT`].
    open_time: Duration,
    /// Whether the circuit was last opened by hand.
    is_forced: bool,
    /// When the circuit may half-open. `None` if it stays open.
    until: Option<Instant>,
    probes: Vec<Probe>,
    /// The number that the next probe gets.
    next: NonZeroU64,
    successes: u32,
    /// Transitions that have not been published yet.
    news: VecDeque<Transition>,
}

#[derive(Debug)]
struct Probe {
    number: NonZeroU64,
    /// When the probe loses its slot, if ever.
    until: Option<Instant>,
}

impl Machine {
    /// Creates a closed circuit. `now` is any moment before the first call.
    pub(super) fn new(policy: Policy, now: Instant) -> Self {
        let rate = |least| Box::new(Rate::new(least, policy.extent, now));
        Self {
            word: AtomicU64::new(Word::default().0),
            consecutive: AtomicU32::new(policy.consecutive.unwrap_or_default()),
            min_calls: AtomicU32::new(policy.extent.enough(policy.min_calls)),
            unanswered: AtomicU64::new(0),
            failures: policy.failure_rate.map(rate).map(OnceLock::from).unwrap_or_default(),
            slow: policy.slow.map(|(_, least)| rate(least)),
            watch_only: AtomicBool::new(policy.watch_only),
            episode: Mutex::new(Episode {
                open_for: policy.open_for,
                waits: policy.open_for.waits(),
                open_time: Duration::ZERO,
                is_forced: false,
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

    /// Returns whether the circuit has had no transition since it admitted this call.
    pub(super) fn is_current(&self, ticket: &Ticket) -> bool {
        self.word().generation() == ticket.generation
    }

    #[inline]
    pub(super) fn state(&self) -> State {
        self.word().state()
    }

    /// Returns an error if a call would be rejected now. Reads the clock only if the circuit is not closed.
    #[inline]
    pub(super) fn check(&self, clock: impl FnOnce() -> Instant) -> Result<(), Refused> {
        match self.state() {
            State::Closed => Ok(()),
            State::Open | State::HalfOpen => self.check_turned(clock()),
        }
    }

    #[cold]
    fn check_turned(&self, now: Instant) -> Result<(), Refused> {
        if self.watch_only() { Ok(()) } else { self.check_at(now, &self.episode()) }
    }

    /// Returns whether the circuit admits every call.
    pub(super) fn watch_only(&self) -> bool {
        self.watch_only.load(Ordering::Relaxed)
    }

    pub(super) fn set_watch_only(&self, watch_only: bool) {
        self.watch_only.store(watch_only, Ordering::Relaxed);
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

    /// Admits a call if the circuit is closed and calls are not timed.
    ///
    /// Nearly all calls take this path. It is separate from [`admit`](Self::admit) because it returns a single word:
    /// building and moving a whole ticket would cost more than everything else here.
    #[inline]
    pub(super) fn admit_untimed(&self) -> Option<Ticket> {
        let word = self.word();
        let generation = word.generation();
        (word.state() == State::Closed && !self.is_timed()).then_some(Ticket { generation, probe: None, started: None })
    }

    /// Admits a call. Reads the clock only if the circuit is not closed or calls are timed.
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
        if let Err(refused) = self.check_at(now, &episode) {
            // Its outcome changes nothing, as that of a call from before the last transition.
            let late = Ticket { generation: self.word().previous_generation(), probe: None, started: None };
            return self.watch_only().then_some(late).ok_or(refused);
        }
        if self.state() == State::Open {
            self.turn(&mut episode, State::HalfOpen);
        }
        let started = self.is_timed().then_some(now);
        // If another thread has closed the circuit in the meantime, no probe is needed.
        let probe = (self.state() == State::HalfOpen).then(|| episode.probe(now));
        Ok(Ticket { generation: self.word().generation(), probe, started })
    }

    /// Records how an admitted call ended. Returns whether this caused a transition, or `None` if the call is late and
    /// changes nothing.
    #[inline(always)] // see its caller
    pub(super) fn record(&self, ticket: &Ticket, outcome: Outcome, clock: impl Fn() -> Instant) -> Option<bool> {
        let word = self.word();
        if word.generation() != ticket.generation {
            return None;
        }
        // A success that is not timed can open the circuit only through a rate.
        if outcome == Outcome::Success && ticket.probe.is_none() && self.slow.is_none() {
            self.heard();
            if word.failures() > 0 {
                self.count_in_a_row(ticket.generation, false);
            }
            let rate = self.failures.get();
            let is_over = rate.is_some_and(|rate| rate.count(ticket.generation, &clock, false, &self.min_calls));
            return Some(is_over && self.open(ticket.generation, Duration::ZERO, clock()));
        }
        Some(self.record_in_time(ticket, outcome, clock))
    }

    // Kept out of the success path, which is then small enough to be inlined.
    #[cold]
    fn record_in_time(&self, ticket: &Ticket, outcome: Outcome, clock: impl Fn() -> Instant) -> bool {
        let now = OnceCell::new();
        let now = || *now.get_or_init(&clock);
        let generation = ticket.generation;
        let counts = outcome == Outcome::Success || outcome.is_failure();
        let slow = counts && self.is_slow(ticket, now);
        let nothing_comes_back = match outcome {
            Outcome::NoAnswer | Outcome::Abandoned => self.count_unanswered(generation, WEIGHT),
            Outcome::FailedAgain(_) => self.count_unanswered(generation, 1),
            Outcome::Success | Outcome::Failure | Outcome::LeaveAlone(_) | Outcome::Answered => {
                self.heard();
                false
            }
            Outcome::Ignored => false,
        };
        match ticket.probe {
            Some(number) => self.probe_ended(generation, number, outcome, slow || nothing_comes_back, now()),
            // The call is counted even if unanswered calls open the circuit.
            None => {
                (counts && self.count(generation, outcome.is_failure(), slow, now)) | nothing_comes_back
                    && self.open(generation, outcome.asked(), now())
            }
        }
    }

    /// Counts an unanswered call. Returns whether there are now enough in a row to open the circuit.
    fn count_unanswered(&self, generation: u64, weight: u32) -> bool {
        let tag = generation << 32;
        let more = |word: u64| {
            Some(tag | u64::from(if word & TAG == tag & TAG { (word as u32).saturating_add(weight) } else { weight }))
        };
        // Always `Ok`: `more` never returns `None`.
        let before = self.unanswered.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).unwrap_or_default();
        let in_a_row = more(before).unwrap_or_default() as u32;
        let consecutive = match self.consecutive.load(Ordering::Relaxed) {
            0 => u32::MAX,
            failures => failures,
        };
        let min_calls = match (self.failures.get(), self.min_calls.load(Ordering::Relaxed)) {
            (None, _) => u32::MAX,
            (Some(_), 0) => FEWEST,
            (Some(_), calls) => calls,
        };
        in_a_row >= consecutive.min(min_calls).saturating_mul(WEIGHT)
    }

    /// Marks that the service responded.
    #[inline]
    fn heard(&self) {
        // It is usually zero already, and not writing keeps the cache line shared.
        if self.unanswered.load(Ordering::Relaxed) as u32 != 0 {
            self.unanswered.store(0, Ordering::Relaxed);
        }
    }

    /// Marks that the response has arrived and the call continues with the body, whose time does not count.
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

    /// Counts a call that ended while the circuit was closed. Returns whether this opens it.
    fn count(&self, generation: u64, failed: bool, slow: bool, now: impl Fn() -> Instant) -> bool {
        let over =
            |rate: Option<&Box<Rate>>, bad| rate.is_some_and(|rate| rate.count(generation, &now, bad, &self.min_calls));
        // Without short-circuiting: each of them must count the call.
        self.count_in_a_row(generation, failed) | over(self.failures.get(), failed) | over(self.slow.as_ref(), slow)
    }

    fn count_in_a_row(&self, generation: u64, failed: bool) -> bool {
        let limit = self.consecutive.load(Ordering::Relaxed);
        // A success ends the row even while rows do not count. Otherwise the row would continue across it.
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

    /// Frees the probe's slot and applies its outcome. Returns whether this caused a transition.
    fn probe_ended(&self, generation: u64, number: NonZeroU64, outcome: Outcome, bad: bool, now: Instant) -> bool {
        let mut episode = self.episode();
        if self.word().generation() != generation {
            return false;
        }
        // A probe that has lost its slot still decides. Otherwise calls that take longer than the open time would never
        // close the circuit.
        episode.probes.retain(|probe| probe.number != number);
        match outcome {
            Outcome::Ignored | Outcome::Answered | Outcome::Abandoned | Outcome::FailedAgain(_) if !bad => false,
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

    /// Opens the circuit, unless there was a transition since this generation.
    fn open(&self, generation: u64, asked: Duration, now: Instant) -> bool {
        let mut episode = self.episode();
        let in_time = self.word().generation() == generation;
        if in_time {
            self.turn_open(&mut episode, asked, now);
        }
        in_time
    }

    /// Returns the circuit's status at `now`.
    pub(super) fn status(&self, now: Instant) -> CircuitStatus {
        let episode = self.episode();
        let state = self.state();
        let held = self.failures.get().map(|rate| rate.held(self.word().generation(), now)).unwrap_or_default();
        let until = episode.until.filter(|_| state == State::Open);
        CircuitStatus {
            state,
            calls: held.calls,
            failures: held.bad,
            remaining: until.map(|until| until.saturating_duration_since(now)),
            is_forced: state == State::Open && episode.is_forced,
            is_watch_only: self.watch_only(),
        }
    }

    /// Returns whether a new circuit in the place of this one would act differently. An open circuit that no call
    /// asks any more does not matter for ever: it is forgotten [`FORGOTTEN`] times its open time after it could have
    /// half-opened, and not within [`REMEMBERED`].
    pub(super) fn still_matters(&self, clock: impl FnOnce() -> Instant) -> bool {
        if self.state() == State::Closed {
            return false;
        }
        let episode = self.episode();
        let end = |until: Instant| until.checked_add(REMEMBERED.max(episode.open_time.saturating_mul(FORGOTTEN)));
        episode.until.and_then(end).is_none_or(|end| clock() < end)
    }

    /// Opens the circuit for this time, however long it is.
    pub(super) fn force_open_for(&self, time: Duration, now: Instant) {
        let mut episode = self.episode();
        episode.is_forced = true;
        episode.open_time = time.max(SHORTEST);
        episode.until = now.checked_add(episode.open_time);
        self.turn(&mut episode, State::Open);
    }

    /// Half-opens the circuit, whatever its state: the next calls are probes.
    pub(super) fn half_open(&self) {
        let mut episode = self.episode();
        episode.is_forced = false;
        if episode.open_time.is_zero() {
            episode.open_time = episode.first_open_time();
        }
        self.turn(&mut episode, State::HalfOpen);
    }

    /// Opens the circuit until [`Machine::close`].
    pub(super) fn force_open(&self) {
        let mut episode = self.episode();
        episode.is_forced = true;
        episode.until = None;
        self.turn(&mut episode, State::Open);
    }

    /// Closes the circuit and resets all counts.
    pub(super) fn close(&self) {
        let mut episode = self.episode();
        self.turn_closed(&mut episode);
    }

    /// Returns whether there are transitions to publish.
    pub(super) fn has_news(&self) -> bool {
        !self.episode().news.is_empty()
    }

    /// Takes the oldest transition that has not been published.
    pub(super) fn news(&self) -> Option<Transition> {
        self.episode().news.pop_front()
    }

    /// Changes the number of failures in a row that opens the circuit. Zero disables this.
    pub(super) fn set_consecutive_failures(&self, failures: u32) {
        self.consecutive.store(failures, Ordering::Relaxed);
    }

    /// Changes the failure rate that opens the circuit. If there was none before, its window starts now.
    pub(super) fn set_failure_rate(&self, least: f64, now: Instant) {
        let rate = self.failures.get_or_init(|| Box::new(Rate::new(least, self.policy.extent, now)));
        rate.set_least(least);
    }

    pub(super) fn set_min_calls(&self, min_calls: Option<NonZeroU32>) {
        self.min_calls.store(self.policy.extent.enough(min_calls), Ordering::Relaxed);
        self.failures.get().into_iter().chain(&self.slow).for_each(|rate| rate.look_again());
    }

    /// Changes the open time, from the next opening. Earlier openings since the circuit was last closed still count.
    pub(super) fn set_open_for(&self, open_for: Backoff) {
        let mut episode = self.episode();
        episode.open_for = open_for;
        episode.waits.follow(open_for);
    }

    /// Opens the circuit for its next open time, or for the time that the service `asked` for if that is longer.
    ///
    /// That time is capped, because the service may ask for too much by mistake.
    fn turn_open(&self, episode: &mut Episode, asked: Duration, now: Instant) {
        episode.is_forced = false;
        let longest = Some(episode.open_for.longest()).filter(|longest| *longest < Duration::MAX).unwrap_or_default();
        episode.open_time = next_of(&mut episode.waits).max(asked.min(longest.max(LONGEST_ASKED)));
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
        // May overwrite a failure that another thread counts right now, which belongs to the generation that ends here.
        // (Not a plain store: loom cannot order it among the other accesses.)
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

impl Episode {
    #[cold]
    fn first_open_time(&self) -> Duration {
        next_of(&mut self.open_for.waits())
    }

    /// Takes a probe slot that is free or overdue.
    fn probe(&mut self, now: Instant) -> NonZeroU64 {
        self.probes.retain(|probe| probe.until.is_none_or(|until| now < until));
        let number = self.next;
        self.next = self.next.saturating_add(1);
        self.probes.push(Probe { number, until: now.checked_add(self.open_time.max(SHORTEST_SLOT)) });
        number
    }
}

#[cfg(all(test, not(ziggurat_loom)))]
mod tests;
