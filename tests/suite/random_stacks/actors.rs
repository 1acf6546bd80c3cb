//! Random callers. Each has a clone of the stack, and does everything with it that the contract of a service allows.

use std::{
    future::{Future, poll_fn},
    mem,
    panic::AssertUnwindSafe,
    pin::Pin,
    sync::Arc,
    task::Poll,
    time::Duration,
};

use futures_util::FutureExt;
use http::Request;
use proptest::prelude::*;
use tokio::time::{sleep, timeout};
use tower::Service;
use ziggurat::Deadline;

use super::{stack::Boxed, switch::Switch, watch::Watch};

/// A step of a caller. Times are in milliseconds.
#[derive(Debug, Clone)]
pub(super) enum Step {
    Sleep(u64),
    /// Polls its service for readiness once, and sleeps.
    Ask(u64),
    /// Waits until its service is ready, and calls it.
    Call {
        key: u8,
        /// Whether it polls a service for readiness again that is ready.
        asks_again: bool,
        deadline: Option<u64>,
        then: Then,
    },
    /// Takes a fresh service. The previous one is idle from now on, or dropped if it owes a call.
    Renew,
    /// Takes a clone of its service, and drops the service.
    CloneIt,
    Open(usize),
    Close(usize),
}

/// The end of a call.
#[derive(Debug, Clone)]
pub(super) enum Then {
    Awaited,
    /// The call is dropped after this time.
    DroppedAfter(u64),
    /// The call is polled `polls` times, with a pause after each, and then dropped.
    Left {
        polls: usize,
        pause: u64,
    },
    /// The call is polled `polls` times, with a pause after each, and then awaited.
    Delayed {
        polls: usize,
        pause: u64,
    },
}

/// A caller.
#[derive(Debug, Clone)]
pub(super) struct Actor {
    steps: Vec<Step>,
    /// Whether its service is idle at the end, and not dropped.
    stays: bool,
}

pub(super) fn actors() -> impl Strategy<Value = Vec<Actor>> {
    let time = || prop_oneof![Just(0_u64), Just(1), Just(25), Just(400), Just(6_000)];
    let then = prop_oneof![
        4 => Just(Then::Awaited),
        2 => time().prop_map(Then::DroppedAfter),
        1 => (0_usize..4, time()).prop_map(|(polls, pause)| Then::Left { polls, pause }),
        1 => (0_usize..4, time()).prop_map(|(polls, pause)| Then::Delayed { polls, pause }),
    ];
    let deadline = proptest::option::weighted(0.2, time());
    let call = (0_u8..3, any::<bool>(), deadline, then).prop_map(|(key, asks_again, deadline, then)| Step::Call {
        key,
        asks_again,
        deadline,
        then,
    });
    let step = prop_oneof![
        3 => time().prop_map(Step::Sleep),
        4 => time().prop_map(Step::Ask),
        7 => call,
        1 => Just(Step::Renew),
        1 => Just(Step::CloneIt),
        2 => any::<usize>().prop_map(Step::Open),
        1 => any::<usize>().prop_map(Step::Close),
    ];
    let actor =
        (proptest::collection::vec(step, 1..8), any::<bool>()).prop_map(|(steps, stays)| Actor { steps, stays });
    proptest::collection::vec(actor, 1..5)
}

/// A caller that runs.
pub(super) struct Acting {
    /// A service that is never polled.
    pub(super) fresh: Boxed,
    pub(super) switches: Vec<Switch>,
    pub(super) has_timeout: bool,
    pub(super) watch: Arc<Watch>,
    service: Boxed,
    /// Whether the service was polled for readiness, and owes a call.
    asked: bool,
    /// Whether the service is ready.
    ready: bool,
    idle: Vec<Boxed>,
}

impl Acting {
    pub(super) fn new(fresh: Boxed, switches: Vec<Switch>, has_timeout: bool, watch: Arc<Watch>) -> Self {
        let service = fresh.clone();
        Self { fresh, switches, has_timeout, watch, service, asked: false, ready: false, idle: Vec::new() }
    }

    /// Runs all steps, and returns the services that are idle then. None of them owes a call.
    pub(super) async fn run(mut self, actor: Actor) -> Vec<Boxed> {
        for step in &actor.steps {
            self.step(step).await;
        }
        if self.asked && actor.stays {
            self.step(&Step::Call { key: 0, asks_again: false, deadline: None, then: Then::Awaited }).await;
        }
        if actor.stays {
            self.idle.push(self.service);
        }
        self.idle
    }

    async fn step(&mut self, step: &Step) {
        match *step {
            Step::Sleep(time) => sleep(Duration::from_millis(time)).await,
            Step::Ask(pause) => {
                self.asked = true;
                let readiness = poll_fn(|cx| Poll::Ready(self.service.poll_ready(cx))).await;
                self.ready = matches!(readiness, Poll::Ready(Ok(())));
                if matches!(readiness, Poll::Ready(Err(_))) {
                    self.discard();
                }
                sleep(Duration::from_millis(pause)).await;
            }
            Step::Call { key, asks_again, deadline, ref then } => {
                self.ready &= !asks_again;
                match deadline {
                    Some(deadline) => {
                        let deadline = Deadline::after(Duration::from_millis(deadline));
                        deadline.within(self.call(key, Some(deadline), then)).await;
                    }
                    None => self.call(key, None, then).await,
                }
            }
            Step::Renew => {
                let fresh = self.fresh.clone();
                let asked = self.asked;
                let before = self.renew(fresh);
                if !asked {
                    self.idle.push(before);
                }
            }
            Step::CloneIt => {
                let clone = self.service.clone();
                self.renew(clone);
            }
            Step::Open(circuit) => self.turn(circuit, Switch::open),
            Step::Close(circuit) => self.turn(circuit, Switch::close),
        }
    }

    fn turn(&self, circuit: usize, turn: impl FnOnce(&Switch)) {
        if !self.switches.is_empty() {
            turn(&self.switches[circuit % self.switches.len()]);
        }
    }

    fn discard(&mut self) {
        let fresh = self.fresh.clone();
        self.renew(fresh);
    }

    /// Replaces the service with one that was not polled yet, and returns the previous one.
    fn renew(&mut self, service: Boxed) -> Boxed {
        (self.asked, self.ready) = (false, false);
        mem::replace(&mut self.service, service)
    }

    async fn call(&mut self, key: u8, deadline: Option<Deadline>, then: &Then) {
        self.asked = true;
        if !self.ready {
            let readiness = self.watch.over("to be ready", poll_fn(|cx| self.service.poll_ready(cx))).await;
            if readiness.is_err() {
                self.discard();
                return;
            }
        }
        let request = Request::builder().uri(format!("/{key}")).body("a body".to_owned()).unwrap();
        let is_late = deadline.is_some_and(|deadline| deadline.has_passed());
        let response = self.service.call(request);
        (self.asked, self.ready) = (false, false);
        // The documented exception: a timeout that rejects a late call keeps the readiness of its service for the next
        // call. Only a dropped or called service releases a reservation. A timeout has no `S: Clone` to replace its
        // service with, and a call would send the request although it is too late.
        if is_late && self.has_timeout {
            self.discard();
        }
        // Layers have to survive a panic of the script. It ends here.
        let mut response = Box::pin(AssertUnwindSafe(response).catch_unwind());
        match *then {
            Then::Awaited => drop(self.watch.over("for an answer", response).await),
            Then::DroppedAfter(time) => {
                let call = self.watch.over("for an answer", response);
                drop(timeout(Duration::from_millis(time), call).await);
            }
            Then::Left { polls, pause } => drop(polled(&mut response, polls, pause).await),
            Then::Delayed { polls, pause } => {
                if polled(&mut response, polls, pause).await.is_pending() {
                    drop(self.watch.over("for an answer", response).await);
                }
            }
        }
    }
}

/// Polls a future `polls` times, woken or not, with a pause after each.
async fn polled<F: Future + Unpin>(future: &mut F, polls: usize, pause: u64) -> Poll<()> {
    for _ in 0..polls {
        if poll_fn(|cx| Poll::Ready(Pin::new(&mut *future).poll(cx))).await.is_ready() {
            return Poll::Ready(());
        }
        sleep(Duration::from_millis(pause)).await;
    }
    Poll::Pending
}
