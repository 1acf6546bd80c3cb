//! The handle to a circuit, and the circuit's settings until it is in use.

use std::{
    fmt, mem,
    num::NonZeroU32,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use super::{
    at_least_one,
    circuit::{Circuit, Settings},
    machine::Machine,
    part_of_one,
    state::{CircuitStatus, State, Transition},
};
use crate::{
    backoff::Backoff,
    clock,
    events::{EventBus, Lag, Subscription},
};

/// The number of transitions that are kept for a slow subscriber.
const BACKLOG: usize = 64;

/// The place of a layer value's circuit: its settings at first, and the circuit from its first use on.
pub(super) struct Slot {
    setup: Mutex<Setup>,
    live: OnceLock<Circuit>,
    transitions: EventBus,
    /// Whether a handle leads here: then a setting may start no second circuit.
    has_handle: AtomicBool,
}

struct Setup {
    settings: Settings,
    /// The circuit has been made of the settings.
    in_use: bool,
}

impl Slot {
    pub(super) fn new(settings: Settings) -> Arc<Self> {
        Arc::new(Self {
            setup: Mutex::new(Setup { settings, in_use: false }),
            live: OnceLock::new(),
            transitions: EventBus::new(),
            has_handle: AtomicBool::new(false),
        })
    }

    /// The circuit, which is in use from now on.
    pub(super) fn live(&self) -> &Circuit {
        self.live.get_or_init(|| {
            let settings = {
                let mut setup = self.setup();
                setup.in_use = true;
                setup.settings.clone()
            };
            Circuit::new(settings, self.transitions.clone())
        })
    }

    fn setup(&self) -> MutexGuard<'_, Setup> {
        self.setup.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn handle(self: &Arc<Self>) -> CircuitBreakerHandle {
        self.has_handle.store(true, Ordering::Relaxed);
        CircuitBreakerHandle { slot: Arc::clone(self) }
    }

    /// Changes the settings: those of the handle, if there is one, and otherwise those of a new circuit, so that a
    /// changed clone of a layer is a layer of its own.
    #[track_caller]
    pub(super) fn set(self: Arc<Self>, change: impl FnOnce(&mut Settings)) -> Arc<Self> {
        let mut settings = self.setup().settings.clone();
        change(&mut settings);
        if !self.has_handle.load(Ordering::Relaxed) {
            return Self::new(settings);
        }
        let mut setup = self.setup();
        let in_use = setup.in_use;
        if !in_use {
            mem::swap(&mut setup.settings, &mut settings);
        }
        drop(setup);
        assert!(
            !in_use,
            "this circuit breaker has a handle and is in use: change its settings before that, or through the handle"
        );
        self
    }
}

impl fmt::Debug for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Slot")
            .field("settings", &self.setup().settings)
            .field("circuit", &self.live.get())
            .finish_non_exhaustive()
    }
}

/// The handle to the circuit that all services of one [`CircuitBreakerLayer`](super::CircuitBreakerLayer) share.
///
/// It reads the state, controls the circuit by hand, and changes its settings.
///
/// The layer returns it from [`handle`](super::CircuitBreakerLayer::handle). Clones are cheap.
#[derive(Clone)]
pub struct CircuitBreakerHandle {
    slot: Arc<Slot>,
}

impl CircuitBreakerHandle {
    /// Returns the state of the circuit. Costs one atomic read.
    ///
    /// A circuit whose open time is over stays [`State::Open`] until the next call half-opens it.
    #[must_use]
    pub fn state(&self) -> State {
        self.slot.live.get().map_or(State::Closed, Circuit::state)
    }

    /// Returns the state together with the numbers behind it, for example for a health endpoint. Takes a lock that
    /// calls take only while the circuit is not closed.
    #[must_use]
    pub fn status(&self) -> CircuitStatus {
        self.slot.live().machine().status(clock::now())
    }

    /// Opens the circuit for this time, and then half-opens it for the next call.
    ///
    /// Anything below a millisecond is a millisecond; a time that the clock cannot hold lasts until
    /// [`close`](CircuitBreakerHandle::close). Calls in flight continue, and their outcomes change nothing. A circuit
    /// that [only watches](super::CircuitBreakerLayer::watch_only) admits every call even then.
    pub fn force_open_for(&self, time: Duration) {
        self.slot.live().turn(|machine| machine.force_open_for(time, clock::now()));
    }

    /// Half-opens the circuit, whatever its state: the next calls are probes, which close it or open it.
    ///
    /// Calls in flight continue, and their outcomes change nothing.
    pub fn half_open(&self) {
        self.slot.live().turn(Machine::half_open);
    }

    /// Opens the circuit and keeps it open until [`close`](CircuitBreakerHandle::close), for example for maintenance.
    ///
    /// Its rejections ask callers to come back after the first open time. Calls in flight continue, and their outcomes
    /// change nothing. A circuit that [only watches](super::CircuitBreakerLayer::watch_only) admits every call even
    /// then.
    pub fn force_open(&self) {
        self.slot.live().turn(Machine::force_open);
    }

    /// Closes the circuit and resets all counts, even if it is closed already.
    ///
    /// Calls in flight continue, and their outcomes change nothing.
    pub fn close(&self) {
        self.slot.live().turn(Machine::close);
    }

    /// Changes whether the circuit only watches: see [`watch_only`](super::CircuitBreakerLayer::watch_only).
    ///
    /// Applies from the next call on. If the circuit is open then, that call is rejected.
    pub fn set_watch_only(&self, watch_only: bool) {
        self.slot.live().machine().set_watch_only(watch_only);
    }

    /// Subscribes to the transitions from now on.
    #[must_use]
    pub fn subscribe(&self) -> Transitions {
        Transitions { transitions: self.slot.transitions.subscribe_with(BACKLOG, Lag::Tell) }
    }

    /// Changes the number of failures in a row that opens the circuit. With 0, only rates open it.
    ///
    /// The new number applies from the next failure. The current row of failures continues.
    pub fn set_consecutive_failures(&self, failures: u32) {
        self.slot.live().machine().set_consecutive_failures(failures);
    }

    /// Changes the fraction of failed calls that opens the circuit, and keeps the window of counted calls.
    ///
    /// The new rate applies from the next call that ends. If the circuit had no rate before, its window starts now.
    ///
    /// # Panics
    ///
    /// If `rate` is not above 0 and at most 1.
    #[track_caller]
    pub fn set_failure_rate(&self, rate: f64) {
        self.slot.live().machine().set_failure_rate(part_of_one("rate", rate), clock::now());
    }

    /// Changes the number of calls that are enough to know a rate: see
    /// [`min_calls`](super::CircuitBreakerLayer::min_calls).
    ///
    /// # Panics
    ///
    /// If `calls` is 0.
    #[track_caller]
    pub fn set_min_calls(&self, calls: u32) {
        self.replace_min_calls(NonZeroU32::new(at_least_one("calls", calls)));
    }

    /// As [`set_min_calls`](Self::set_min_calls). With `None`, as many calls as the default.
    pub(crate) fn replace_min_calls(&self, calls: Option<NonZeroU32>) {
        self.slot.live().machine().set_min_calls(calls);
    }

    /// Changes how long the circuit stays open, from the next time it opens.
    ///
    /// A [`Backoff`] continues at its current step and starts over after the circuit has closed.
    pub fn set_open_for(&self, open_for: impl Into<Backoff>) {
        self.slot.live().machine().set_open_for(open_for.into());
    }
}

impl fmt::Debug for CircuitBreakerHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CircuitBreakerHandle")
            .field("state", &self.state())
            .field("info", &self.slot.setup().settings.info)
            .finish_non_exhaustive()
    }
}

/// The transitions of a circuit since the [subscription](CircuitBreakerHandle::subscribe).
pub struct Transitions {
    transitions: Subscription<Transition>,
}

impl Transitions {
    /// Waits for the next transition. Returns `None` when the circuit is gone, with all its handles, layers and
    /// services.
    ///
    /// A receiver that lags by more than 64 transitions misses the oldest. Dropping this future loses no transition.
    pub async fn next(&mut self) -> Option<Transition> {
        loop {
            match self.transitions.next().await {
                Some(Ok(transition)) => return Some(transition),
                Some(Err(_lagged)) => {}
                None => return None,
            }
        }
    }
}

impl fmt::Debug for Transitions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transitions").finish_non_exhaustive()
    }
}
