//! A circuit in use: admits calls, records how they end, and publishes the transitions.

#[cfg(all(test, ziggurat_loom))]
use loom::sync::atomic::{AtomicBool, Ordering};
#[cfg(not(all(test, ziggurat_loom)))]
use std::sync::atomic::{AtomicBool, Ordering};
use std::{fmt, time::Duration};

use super::{
    Cancelled,
    machine::{Machine, Outcome, Policy, Refused, Ticket},
    state::{State, Transition},
};
use crate::{
    ambient::{self, Attempt, HadItsTime, Unsent, deadline},
    clock,
    events::EventBus,
    outcome::{Class, Reason, Reject, Rejection, judged_as},
    stripe::{Lender, Loan},
    telemetry::{LayerEvent, LayerInfo},
};

/// The settings that a circuit starts with.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    pub(super) policy: Policy,
    pub(super) cancelled: Cancelled,
    pub(super) info: LayerInfo,
}

/// The circuit that all services of one layer value share. A clone is the same circuit.
#[derive(Clone)]
pub(super) struct Circuit {
    shared: Lender<Shared>,
}

struct Shared {
    machine: Machine,
    cancelled: Cancelled,
    info: LayerInfo,
    transitions: EventBus,
    /// Whether a thread is publishing the machine's transitions.
    telling: AtomicBool,
}

impl Circuit {
    pub(super) fn new(Settings { policy, cancelled, info }: Settings, transitions: EventBus) -> Self {
        info.starts_as(State::Closed.as_str());
        let machine = Machine::new(policy, clock::now());
        let shared = Shared { machine, cancelled, info, transitions, telling: AtomicBool::new(false) };
        Self { shared: Lender::new(shared) }
    }

    pub(super) fn machine(&self) -> &Machine {
        &self.shared.machine
    }

    pub(super) fn state(&self) -> State {
        self.shared.machine.state()
    }

    /// Changes the circuit, and publishes the transitions that follow.
    pub(super) fn turn(&self, change: impl FnOnce(&Machine)) {
        change(&self.shared.machine);
        self.shared.tell_news();
    }

    pub(super) fn info(&self) -> &LayerInfo {
        &self.shared.info
    }

    /// Returns an error if a call would be rejected now.
    #[inline]
    pub(super) fn check(&self) -> Result<(), Refused> {
        self.shared.machine.check(clock::now)
    }

    /// Admits a call. Reads the clock only if the circuit is not closed or calls are timed.
    #[inline]
    pub(super) fn admit(&self) -> Result<Call, Refused> {
        match self.shared.machine.admit_untimed() {
            Some(ticket) => Ok(Call::new(self.shared.lend(), ticket)),
            None => Call::admit(self.shared.lend()),
        }
    }
}

impl Shared {
    // Without inlining, getting here and back would be half of the cost of a circuit breaker.
    #[inline(always)]
    fn record(&self, ticket: &Ticket, outcome: Outcome) {
        // Before emitting: an observer may panic, and the outcome must count all the same.
        let recorded = self.machine.record(ticket, outcome, clock::now);
        if outcome.is_failure() && recorded.is_some() {
            self.tell_failure();
        }
        if recorded == Some(true) {
            self.tell_news();
        }
    }

    #[cold]
    fn tell_failure(&self) {
        self.info.emit(LayerEvent::Failed);
    }

    /// Publishes all transitions that have not been published yet.
    ///
    /// One thread publishes at a time, so that subscribers see the transitions in order. No lock is held, so that an
    /// observer may open or close the circuit.
    #[cold]
    fn tell_news(&self) {
        struct Telling<'a>(&'a AtomicBool);
        impl Drop for Telling<'_> {
            fn drop(&mut self) {
                // Not a plain store: loom cannot order it among the swaps.
                self.0.swap(false, Ordering::AcqRel);
            }
        }
        // Another thread that is publishing picks up new transitions: it checks again after it has cleared the flag.
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

impl fmt::Debug for Circuit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (*self.shared).fmt(f)
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Circuit")
            .field("state", &self.machine.state())
            .field("info", &self.info)
            .finish_non_exhaustive()
    }
}

/// An admitted call. Dropping it without an outcome records a cancelled call (or a panic).
#[derive(Debug)]
pub(super) struct Call {
    circuit: Loan<Shared>,
    ticket: Ticket,
    /// Whether its outcome is recorded.
    is_over: bool,
}

impl Call {
    #[inline]
    fn new(circuit: Loan<Shared>, ticket: Ticket) -> Self {
        Self { circuit, ticket, is_over: false }
    }

    #[inline(never)]
    fn admit(circuit: Loan<Shared>) -> Result<Self, Refused> {
        let ticket = circuit.machine.admit(clock::now)?;
        let is_probe = ticket.is_probe();
        // Before publishing: if a subscriber panics, the call is dropped and frees its probe slot.
        let call = Self::new(circuit, ticket);
        // The call may have half-opened the circuit.
        if is_probe {
            call.circuit.tell_news();
        }
        Ok(call)
    }

    /// Marks that the response has arrived. The call's time is measured up to here; the call continues with the body.
    pub(super) fn answered(&mut self) {
        self.circuit.machine.answered(&mut self.ticket, clock::now);
    }

    /// Records how the call ended. `unsent` means that it still waited in a local queue.
    #[inline]
    pub(super) fn ended<R, E: Reject<R>>(&mut self, class: Class, outcome: &Result<R, E>, unsent: Unsent) {
        self.over(match class {
            Class::Success => Outcome::Success,
            _ => self.damped(unsuccessful(class, judged_as(outcome), unsent)),
        });
    }

    /// A failed attempt of a request whose earlier attempt failed weighs less.
    #[cold]
    fn damped(&self, outcome: Outcome) -> Outcome {
        if ambient::get::<Attempt>().0 > 1 && !self.is_probe() { outcome.repeated() } else { outcome }
    }

    /// Records how the body of a successful response ended.
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
            self.circuit.record(&self.ticket, outcome);
        }
    }

    /// Whether its outcome decides about a half-open circuit.
    pub(super) fn is_probe(&self) -> bool {
        self.ticket.is_probe()
    }

    /// Marks that the call left a local queue: its time starts now.
    pub(super) fn sent(&mut self) {
        self.ticket.sent(clock::now);
    }

    /// Checks a call that still waits in a local queue again, if the circuit has changed its state since.
    ///
    /// The call never becomes a probe: it would wait behind other calls, which are all about to be rejected.
    pub(super) fn admit_again(&mut self) -> Result<(), Refused> {
        let machine = &self.circuit.machine;
        if machine.is_current(&self.ticket) {
            return Ok(());
        }
        if machine.state() == State::Closed {
            // The outcome of a call from before the transition changes nothing.
            self.is_over = true;
            *self = Self::admit(self.circuit.clone())?;
            return Ok(());
        }
        if machine.watch_only() {
            return Ok(());
        }
        self.is_over = true;
        Err(machine.check(clock::now).err().unwrap_or(Refused { retry_after: Duration::ZERO }))
    }

    pub(super) fn info(&self) -> &LayerInfo {
        &self.circuit.info
    }

    /// Records that the call panicked, which is a local fault.
    #[cold]
    pub(super) fn panicked(&mut self) {
        self.over(match self.circuit.cancelled {
            Cancelled::Failure => Outcome::NoAnswer,
            _ => Outcome::Ignored,
        });
    }

    /// Records that the call was dropped, with the notes that inner layers left while it was.
    #[cold]
    pub(super) fn cancelled(&mut self, Unsent(unsent): Unsent, HadItsTime(had_its_time): HadItsTime) {
        self.over(match self.circuit.cancelled {
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

/// Maps an outcome that is not a success to its kind in the circuit's counts.
#[cold]
fn unsuccessful(class: Class, rejection: Option<&Rejection>, Unsent(unsent): Unsent) -> Outcome {
    match (class, rejection.map(Rejection::reason)) {
        // A timeout between this layer and a local queue ended the call.
        (_, Some(Reason::TimedOut { .. })) if unsent => Outcome::Ignored,
        (Class::Failure { retry_after: Some(wait), .. }, _) => Outcome::LeaveAlone(wait),
        // The service's own outcome, even if another caller's call received it.
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
        // All other ends are recorded: the call panicked before it had a future, or its body panicked.
        if !self.is_over {
            self.panicked();
        }
    }
}
