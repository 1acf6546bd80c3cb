//! The handle to a live circuit: what its state is, how to turn it by hand, and how to hear of its turns.

#[cfg(all(test, ziggurat_loom))]
use loom::sync::atomic::{AtomicBool, Ordering};
#[cfg(not(all(test, ziggurat_loom)))]
use std::sync::atomic::{AtomicBool, Ordering};
use std::{fmt, sync::Arc};

use super::{
    Cancelled, at_least_one,
    machine::{Machine, Outcome, Policy, Refused, Ticket},
    part_of_one,
    state::{State, Transition},
};
use crate::{
    Backoff, Class, Event, EventBus, Site, clock, deadline,
    events::{Lag, Subscription},
};

/// So many transitions are kept for a subscriber that is slow to take them.
const BACKLOG: usize = 64;

/// The live state of a breaker, which all services of one [`CircuitBreakerLayer`](super::CircuitBreakerLayer) share.
///
/// It is cheap to clone, and taken from the layer with [`handle`](super::CircuitBreakerLayer::handle).
#[derive(Clone)]
pub struct Circuit {
    shared: Arc<Shared>,
}

struct Shared {
    machine: Machine,
    cancelled: Cancelled,
    site: Site,
    transitions: EventBus,
    /// Whether somebody is telling the machine's news.
    telling: AtomicBool,
}

impl Circuit {
    pub(super) fn new(policy: Policy, cancelled: Cancelled, site: Site) -> Self {
        let shared = Shared {
            machine: Machine::new(policy, clock::now()),
            cancelled,
            site,
            transitions: EventBus::new(),
            telling: AtomicBool::new(false),
        };
        Self { shared: Arc::new(shared) }
    }

    /// The state that the circuit is in. One atomic read.
    ///
    /// An open circuit whose time is over is [`State::Open`] until the next call comes, which half-opens it.
    #[must_use]
    pub fn state(&self) -> State {
        self.shared.machine.state()
    }

    /// Opens the circuit, and keeps it open until [`close`](Circuit::close): for maintenance, say. Who is rejected meanwhile is told
    /// to come back after the first time that the circuit would be open for.
    ///
    /// Calls that are under way go on, and what becomes of them changes nothing.
    pub fn force_open(&self) {
        self.shared.machine.force_open();
        self.shared.tell_news();
    }

    /// Closes the circuit and forgets all that it counted, also if it was closed before.
    ///
    /// Calls that are under way go on, and what becomes of them changes nothing.
    pub fn close(&self) {
        self.shared.machine.close();
        self.shared.tell_news();
    }

    /// The transitions from now on.
    #[must_use]
    pub fn subscribe(&self) -> Transitions {
        Transitions { transitions: self.shared.transitions.subscribe_with(BACKLOG, Lag::Tell) }
    }

    /// Changes the number of failures in a row that opens the circuit. With 0 no number of them does, and only rates open it.
    ///
    /// The new number is compared when the next call fails. A row that is counted already goes on.
    pub fn set_consecutive_failures(&self, failures: u32) {
        self.shared.machine.set_consecutive_failures(failures);
    }

    /// Changes the part of the calls that have to fail to open the circuit, and keeps the window that it is taken of.
    ///
    /// It is looked at when the next call fails. If it opened for failures in a row alone, a window begins now.
    ///
    /// # Panics
    ///
    /// If `rate` is not above 0 and at most 1.
    #[track_caller]
    pub fn set_failure_rate(&self, rate: f64) {
        self.shared.machine.set_failure_rate(part_of_one("rate", rate), clock::now());
    }

    /// Changes how many calls the window has to hold before a rate opens the circuit.
    ///
    /// # Panics
    ///
    /// If `calls` is 0.
    #[track_caller]
    pub fn set_min_calls(&self, calls: u32) {
        self.shared.machine.set_min_calls(at_least_one("calls", calls));
    }

    /// Changes how long the circuit will stay open, from the next time that it opens on. A [`Backoff`] goes on from where it is: it
    /// begins anew when the circuit has been closed.
    pub fn set_open_for(&self, open_for: impl Into<Backoff>) {
        self.shared.machine.set_open_for(open_for.into());
    }

    pub(super) fn site(&self) -> &Site {
        &self.shared.site
    }

    /// Whether a call would be admitted now.
    #[inline]
    pub(super) fn check(&self) -> Result<(), Refused> {
        self.shared.machine.check(clock::now)
    }

    /// Admits a call. The clock is not read while the circuit is closed, unless slow calls are looked for.
    #[inline]
    pub(super) fn admit(&self) -> Result<Call, Refused> {
        match self.shared.machine.admit_untimed() {
            Some(ticket) => Ok(Call { circuit: self.clone(), ticket, is_over: false }),
            None => self.admit_timed(),
        }
    }

    #[inline(never)]
    fn admit_timed(&self) -> Result<Call, Refused> {
        let ticket = self.shared.machine.admit(clock::now)?;
        let is_probe = ticket.is_probe();
        // Before anybody is told: if who hears of it panics, the call is dropped, and its place is free again.
        let call = Call { circuit: self.clone(), ticket, is_over: false };
        // It may have half-opened the circuit.
        if is_probe {
            self.shared.tell_news();
        }
        Ok(call)
    }
}

impl Shared {
    // Half of what a breaker costs is the way to here and back, if it is not inlined.
    #[inline(always)]
    fn record(&self, ticket: &Ticket, outcome: Outcome) {
        // Before anybody is told: who hears of it may panic, and it counts all the same.
        let turned = self.machine.record(ticket, outcome, clock::now);
        if outcome.is_failure() {
            self.site.tell(Event::Failed);
        }
        if turned {
            self.tell_news();
        }
    }

    /// Tells all who listen of the transitions that nobody has told yet.
    ///
    /// One thread at a time, so that everybody hears them in order; and under no lock, so that who hears of one may turn the
    /// circuit again.
    #[cold]
    fn tell_news(&self) {
        struct Telling<'a>(&'a AtomicBool);
        impl Drop for Telling<'_> {
            fn drop(&mut self) {
                // Not a plain store: loom cannot tell its order among the swaps.
                self.0.swap(false, Ordering::AcqRel);
            }
        }
        // Who finds somebody telling leaves the news to them: they look again after they said that they are done.
        while self.machine.has_news() && !self.telling.swap(true, Ordering::AcqRel) {
            let _telling = Telling(&self.telling);
            while let Some(transition) = self.machine.news() {
                let Transition { from, to } = transition;
                // Subscribers first: an observer may panic.
                self.transitions.publish(transition);
                self.site.tell(Event::Transition { from: from.as_str(), to: to.as_str() });
            }
        }
    }
}

impl fmt::Debug for Circuit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Circuit").field("state", &self.state()).field("site", self.site()).finish_non_exhaustive()
    }
}

/// A call that was admitted. Dropped without an outcome, it was cancelled (or it panicked).
#[derive(Debug)]
pub(super) struct Call {
    circuit: Circuit,
    ticket: Ticket,
    /// Its outcome is recorded.
    is_over: bool,
}

impl Call {
    /// Its response is there, which is what its time is measured to; it goes on with the body.
    pub(super) fn answered(&mut self) {
        self.circuit.shared.machine.answered(&mut self.ticket, clock::now);
    }

    /// Records how the call ended.
    #[inline]
    pub(super) fn ended(&mut self, class: Class) {
        self.over(match class {
            Class::Success => Outcome::Success,
            Class::Failure { retry_after: Some(wait), .. } => Outcome::LeaveAlone(wait),
            Class::Failure { retry_after: None, .. } => Outcome::Failure,
            Class::Declined { .. } | Class::Ignored => Outcome::Ignored,
        });
    }

    #[inline]
    fn over(&mut self, outcome: Outcome) {
        if !self.is_over {
            self.is_over = true;
            self.circuit.shared.record(&self.ticket, outcome);
        }
    }
}

impl Call {
    /// Records that the call was dropped; `unsent` if it still waited for its turn on this side.
    #[cold]
    pub(super) fn cancelled(&mut self, unsent: bool) {
        let failed = match self.circuit.shared.cancelled {
            Cancelled::ByDeadline => !unsent && deadline::has_passed(),
            Cancelled::Failure => true,
            Cancelled::Ignored => false,
        };
        self.over(if failed { Outcome::Failure } else { Outcome::Ignored });
    }
}

impl Drop for Call {
    #[inline]
    fn drop(&mut self) {
        if !self.is_over {
            self.cancelled(false);
        }
    }
}

/// The transitions of a circuit, from when they were [subscribed](Circuit::subscribe) to.
pub struct Transitions {
    transitions: Subscription<Transition>,
}

impl Transitions {
    /// The next transition; `None` when the circuit is gone, with all handles, layers and services that share it.
    ///
    /// Who is more than 64 transitions late loses the oldest. Dropping this future loses nothing.
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
