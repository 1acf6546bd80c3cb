//! The handle to a live circuit: what its state is, how to turn it by hand, and how to hear of its turns.

#[cfg(all(test, ziggurat_loom))]
use loom::sync::atomic::{AtomicBool, Ordering};
#[cfg(not(all(test, ziggurat_loom)))]
use std::sync::atomic::{AtomicBool, Ordering};
use std::{fmt, sync::Arc, time::Duration};

use super::{
    Cancelled, at_least_one,
    machine::{Machine, Outcome, Policy, Refused, Ticket},
    part_of_one,
    state::{State, Transition},
};
use crate::{
    ambient::{HadItsTime, Unsent, deadline},
    backoff::Backoff,
    clock,
    events::{EventBus, Lag, Subscription},
    outcome::{Class, Reason, Reject, Rejection, judged_as},
    telemetry::{LayerEvent, LayerInfo},
};

/// So many transitions are kept for a subscriber that is slow to take them.
const BACKLOG: usize = 64;

/// The live state of a breaker, which all services of one [`CircuitBreakerLayer`](super::CircuitBreakerLayer) share.
///
/// It is cheap to clone, and taken from the layer with [`handle`](super::CircuitBreakerLayer::handle).
#[derive(Clone)]
pub struct CircuitBreakerHandle {
    shared: Arc<Shared>,
}

struct Shared {
    machine: Machine,
    cancelled: Cancelled,
    info: LayerInfo,
    transitions: EventBus,
    /// Whether somebody is telling the machine's news.
    telling: AtomicBool,
}

impl CircuitBreakerHandle {
    pub(super) fn new(policy: Policy, cancelled: Cancelled, info: LayerInfo) -> Self {
        let shared = Shared {
            machine: Machine::new(policy, clock::now()),
            cancelled,
            info,
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

    /// Opens the circuit, and keeps it open until [`close`](CircuitBreakerHandle::close): for maintenance, say. Who is rejected meanwhile is told
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

    /// Changes the number of failures in a row that opens the circuit. With 0 no number of them does, and only rates
    /// open it.
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

    pub(super) fn info(&self) -> &LayerInfo {
        &self.shared.info
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
            self.info.emit(LayerEvent::Failed);
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
                self.info.emit(LayerEvent::Transition { from: from.as_str(), to: to.as_str() });
            }
        }
    }
}

impl fmt::Debug for CircuitBreakerHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CircuitBreakerHandle")
            .field("state", &self.state())
            .field("info", self.info())
            .finish_non_exhaustive()
    }
}

/// A call that was admitted. Dropped without an outcome, it was cancelled (or it panicked).
#[derive(Debug)]
pub(super) struct Call {
    circuit: CircuitBreakerHandle,
    ticket: Ticket,
    /// Its outcome is recorded.
    is_over: bool,
}

impl Call {
    /// Its response is there, which is what its time is measured to; it goes on with the body.
    pub(super) fn answered(&mut self) {
        self.circuit.shared.machine.answered(&mut self.ticket, clock::now);
    }

    /// Records how the call ended; `unsent` if it still waited on this side when it did.
    #[inline]
    pub(super) fn ended<R, E: Reject<R>>(&mut self, class: Class, outcome: &Result<R, E>, unsent: Unsent) {
        self.over(match class {
            Class::Success => Outcome::Success,
            _ => unsuccessful(class, judged_as(outcome), unsent),
        });
    }

    /// Records how the body ended of a response that was a success.
    pub(super) fn body_ended(&mut self, class: Class) {
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

    /// Whether it decides about a half-open circuit.
    pub(super) fn is_probe(&self) -> bool {
        self.ticket.is_probe()
    }

    /// The call waited on this side until now: its time begins.
    pub(super) fn sent(&mut self) {
        self.ticket.sent(clock::now);
    }

    /// Asks once more for a call that still waits on this side, if the circuit has turned since it was admitted.
    ///
    /// It never becomes a probe: that would wait behind others, who are all rejected meanwhile.
    pub(super) fn admit_again(&mut self) -> Result<(), Refused> {
        if self.circuit.shared.machine.is_current(&self.ticket) {
            return Ok(());
        }
        if self.circuit.state() != State::Closed {
            self.is_over = true;
            return Err(self.circuit.check().err().unwrap_or(Refused { retry_after: Duration::ZERO }));
        }
        // What becomes of a call that was admitted before the turn changes nothing.
        self.is_over = true;
        *self = self.circuit.admit()?;
        Ok(())
    }

    pub(super) fn circuit(&self) -> &CircuitBreakerHandle {
        &self.circuit
    }

    /// Records that the call panicked: a fault on this side.
    #[cold]
    pub(super) fn panicked(&mut self) {
        self.over(match self.circuit.shared.cancelled {
            Cancelled::Failure => Outcome::NoAnswer,
            _ => Outcome::Ignored,
        });
    }

    /// Records that the call was dropped; with what it said itself meanwhile.
    #[cold]
    pub(super) fn cancelled(&mut self, Unsent(unsent): Unsent, HadItsTime(had_its_time): HadItsTime) {
        self.over(match self.circuit.shared.cancelled {
            Cancelled::Failure => Outcome::NoAnswer,
            Cancelled::Ignored => Outcome::Ignored,
            _ if unsent => Outcome::Ignored,
            Cancelled::ByDeadline if had_its_time => Outcome::NoAnswer,
            Cancelled::After(time) if self.ticket.had(time, clock::now) => Outcome::NoAnswer,
            _ if deadline::has_passed() => Outcome::Abandoned,
            _ => Outcome::Ignored,
        });
    }
}

/// What a circuit makes of an outcome that is no success.
#[cold]
fn unsuccessful(class: Class, rejection: Option<&Rejection>, Unsent(unsent): Unsent) -> Outcome {
    match (class, rejection.map(Rejection::reason)) {
        // A limit of time between here and a queue passed there.
        (_, Some(Reason::TimedOut { .. })) if unsent => Outcome::Ignored,
        (Class::Failure { retry_after: Some(wait), .. }, _) => Outcome::LeaveAlone(wait),
        // The service's own answer, to whichever caller.
        (Class::Failure { .. }, None | Some(Reason::Shared { .. })) => Outcome::Failure,
        (Class::Failure { .. }, Some(_)) => Outcome::NoAnswer,
        (_, None) => Outcome::Answered,
        (_, Some(Reason::DeadlineExceeded { after: Some(_) })) => Outcome::Abandoned,
        (_, Some(_)) => Outcome::Ignored,
    }
}

impl Drop for Call {
    #[inline]
    fn drop(&mut self) {
        // Whatever ends a call in order records it: this one panicked before it had a future, or its body did.
        if !self.is_over {
            self.panicked();
        }
    }
}

/// The transitions of a circuit, from when they were [subscribed](CircuitBreakerHandle::subscribe) to.
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
