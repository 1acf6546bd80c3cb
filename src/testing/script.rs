//! A service that follows a script and records what happened to it.

use std::{
    collections::{BTreeSet, VecDeque},
    future::Future,
    mem,
    panic::resume_unwind,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use tower_service::Service;

use super::act::{Act, At, How, ScriptedError};
use crate::{debug::impl_debug, mutex::Mutex, outcome::Error, scope::Scope};

/// A record of a [`Scripted`] service. Services and calls are numbered from 1, and each clone is a service of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Entry {
    /// This service became ready.
    Ready(u64),
    /// This service was dropped while it was ready.
    GaveBack(u64),
    /// This call was made.
    Called(u64),
    /// This call has ended: with a response, an error or a panic.
    Ended(u64),
    /// This call was dropped before it had ended.
    Dropped(u64),
}

/// The acts of scripted services, and the log of what happened to them. A clone is the same script.
///
/// Each call takes the next [`Act`], from its readiness on. If a service is made ready and dropped without a call, its
/// act returns to the script.
///
/// ```
/// use tower::ServiceExt;
/// use ziggurat::testing::{Act, Script, TestTask};
///
/// let script = Script::new().then(Act::answer().pending(1)).then(Act::error());
/// let service = script.service(|number| format!("answer {number}"));
///
/// let mut first = TestTask::new(service.clone().oneshot("a request"));
/// assert!(first.poll().is_pending());
/// assert_eq!((first.times_woken(), script.in_flight()), (1, 1));
/// drop(first);
/// assert_eq!((script.calls(), script.in_flight()), (1, 0));
///
/// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
/// assert!(service.clone().oneshot("another").await.is_err());
/// assert_eq!(service.oneshot("a third").await.unwrap(), "answer 2");
/// # });
/// ```
#[derive(Debug, Clone, Default)]
pub struct Script {
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    acts: VecDeque<Act>,
    otherwise: Act,
    services: u64,
    ready: BTreeSet<u64>,
    calls: u64,
    in_flight: BTreeSet<u64>,
    outcomes: u64,
    releases: u64,
    held: Vec<Waker>,
    log: Vec<Entry>,
    violation: Option<&'static str>,
    within: Option<u64>,
    strayed: bool,
    hangs_at_readiness: bool,
}

impl Script {
    /// Creates a script whose calls succeed at once.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds an act for one call, after those that were added before.
    #[must_use]
    pub fn then(self, act: Act) -> Self {
        self.push(act);
        self
    }

    /// Adds an act for one call, after those that were added before.
    pub fn push(&self, act: Act) {
        self.state.lock().acts.push_back(act);
    }

    /// Discards the acts that no call has taken yet. From now on every call takes `act`.
    pub fn always(&self, act: Act) {
        let mut state = self.state.lock();
        state.acts.clear();
        state.otherwise = act;
    }

    /// Creates a service that follows this script, together with its other services. `answer` makes a response from the
    /// number of the outcome.
    pub fn service<A>(&self, answer: A) -> Scripted<A> {
        let mut state = self.state.lock();
        state.services += 1;
        Scripted { id: state.services, act: None, script: self.clone(), answer }
    }

    /// Releases the calls that are [`held`](Act::held).
    pub fn release(&self) {
        let held = {
            let mut state = self.state.lock();
            state.releases += 1;
            mem::take(&mut state.held)
        };
        held.into_iter().for_each(Waker::wake);
    }

    /// The number of calls that were made.
    #[must_use]
    pub fn calls(&self) -> u64 {
        self.state.lock().calls
    }

    /// The number of calls that were made and have neither ended nor been dropped.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.state.lock().in_flight.len()
    }

    /// The number of services that are ready, and have been neither called nor dropped since.
    #[must_use]
    pub fn ready(&self) -> usize {
        self.state.lock().ready.len()
    }

    /// The number of the last outcome, which is a response or an error. 0 before the first.
    #[must_use]
    pub fn last_outcome(&self) -> u64 {
        self.state.lock().outcomes
    }

    /// All records, from the beginning.
    #[must_use]
    pub fn log(&self) -> Vec<Entry> {
        self.state.lock().log.clone()
    }

    /// Whether there are acts that no call has taken yet.
    pub(super) fn has_acts(&self) -> bool {
        !self.state.lock().acts.is_empty()
    }

    /// The violation of the contract, if there was one.
    pub(super) fn violation(&self) -> Option<&'static str> {
        self.state.lock().violation
    }

    /// Expects calls from now on to be made and polled within `scope`, or a child of it.
    pub(super) fn expect_within(&self, scope: &Scope) {
        self.state.lock().within = Some(scope.id());
    }

    /// Whether a call was made or polled outside of the expected scope.
    pub(super) fn strayed(&self) -> bool {
        self.state.lock().strayed
    }

    /// Whether an act hangs at its readiness.
    pub(super) fn hangs_at_readiness(&self) -> bool {
        self.state.lock().hangs_at_readiness
    }

    /// Records a violation of the contract, in case the panic is caught, and panics.
    fn violated(&self, contract: &'static str) -> ! {
        self.state.lock().violation = Some(contract);
        panic!("{contract}");
    }

    fn note_scope(&self) {
        let Some(expected) = self.state.lock().within else {
            return;
        };
        let current = Scope::current();
        let mut scopes = std::iter::successors(current.as_ref(), |scope| scope.parent());
        if !scopes.any(|scope| scope.id() == expected) {
            self.state.lock().strayed = true;
        }
    }

    fn fail(&self) -> Error<ScriptedError> {
        let mut state = self.state.lock();
        state.outcomes += 1;
        Error::Service(ScriptedError(state.outcomes))
    }
}

/// The panic of an [`Act`].
pub(super) struct ScriptedPanic;

/// A service that follows its [`Script`], for any request. Its error can carry rejections.
///
/// It panics if it is called without having been polled ready (a clone is not ready), or if its response is polled
/// after it has ended.
pub struct Scripted<A> {
    id: u64,
    /// The act of the next call, taken at the first poll of its readiness.
    act: Option<Started>,
    script: Script,
    answer: A,
}

#[derive(Clone, Copy)]
struct Started {
    act: Act,
    waited: usize,
    /// Whether it was added for one call, and not for every call.
    once: bool,
}

impl<A: Clone> Clone for Scripted<A> {
    fn clone(&self) -> Self {
        self.script.service(self.answer.clone())
    }
}

impl<A> Drop for Scripted<A> {
    fn drop(&mut self) {
        let mut state = self.script.state.lock();
        if state.ready.remove(&self.id) {
            state.log.push(Entry::GaveBack(self.id));
        }
        if let Some(Started { act, once: true, .. }) = self.act {
            state.acts.push_front(act);
        }
    }
}

impl<A, R, Req> Service<Req> for Scripted<A>
where
    A: Fn(u64) -> R + Clone,
{
    type Response = R;
    type Error = Error<ScriptedError>;
    type Future = ScriptedResponse<A>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        let script = &self.script;
        let Started { act, waited, once } = self.act.get_or_insert_with(|| {
            let mut state = script.state.lock();
            match state.acts.pop_front() {
                Some(act) => Started { act, waited: 0, once: true },
                None => Started { act: state.otherwise, waited: 0, once: false },
            }
        });
        if *waited < act.pending_at_readiness {
            *waited += 1;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        if act.at == At::Readiness {
            match act.ends {
                How::Error => {
                    self.act = None;
                    return Poll::Ready(Err(script.fail()));
                }
                How::Panic => {
                    self.act = None;
                    resume_unwind(Box::new(ScriptedPanic));
                }
                How::Hang => {
                    // The next service must not hang as well.
                    *once = false;
                    script.state.lock().hangs_at_readiness = true;
                    return Poll::Pending;
                }
                How::Answer => {}
            }
        }
        let mut state = script.state.lock();
        if state.ready.insert(self.id) {
            state.log.push(Entry::Ready(self.id));
        }
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Req) -> Self::Future {
        let ready = self.script.state.lock().ready.remove(&self.id);
        let (true, Some(Started { act, .. })) = (ready, self.act.take()) else {
            self.script.violated(
                "called without being ready: `poll_ready` has to return `Ready(Ok(()))` before each call, and a clone is not ready",
            );
        };
        self.script.note_scope();
        let (call, releases) = {
            let mut state = self.script.state.lock();
            state.calls += 1;
            let call = state.calls;
            state.log.push(Entry::Called(call));
            if act.at == At::Call && act.ends == How::Panic {
                state.log.push(Entry::Ended(call));
                drop(state);
                resume_unwind(Box::new(ScriptedPanic));
            }
            state.in_flight.insert(call);
            (call, state.releases)
        };
        ScriptedResponse { call, act, waited: 0, releases, script: self.script.clone(), answer: self.answer.clone() }
    }
}

impl_debug!(Scripted<A> { id, answer: A });

/// The response future of [`Scripted`].
#[must_use = "futures do nothing unless polled"]
pub struct ScriptedResponse<A> {
    call: u64,
    act: Act,
    waited: usize,
    /// The number of releases before the call was made.
    releases: u64,
    script: Script,
    answer: A,
}

impl<A> ScriptedResponse<A> {
    /// Ends the call, unless it had ended before. Returns whether it did.
    fn end(&self, how: Entry) -> bool {
        let mut state = self.script.state.lock();
        let ends = state.in_flight.remove(&self.call);
        if ends {
            state.log.push(how);
        }
        ends
    }
}

impl<A> Unpin for ScriptedResponse<A> {}

impl<A, R> Future for ScriptedResponse<A>
where
    A: Fn(u64) -> R,
{
    type Output = Result<R, Error<ScriptedError>>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.script.note_scope();
        if !self.script.state.lock().in_flight.contains(&self.call) {
            self.script.violated("a response was polled after it had ended");
        }
        if self.act.held {
            let mut state = self.script.state.lock();
            if state.releases == self.releases {
                state.held.push(cx.waker().clone());
                return Poll::Pending;
            }
        }
        if self.waited < self.act.pending {
            self.waited += 1;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        if self.act.ends == How::Hang {
            return Poll::Pending;
        }
        self.end(Entry::Ended(self.call));
        Poll::Ready(match self.act.ends {
            How::Panic => resume_unwind(Box::new(ScriptedPanic)),
            How::Error => Err(self.script.fail()),
            How::Answer | How::Hang => {
                let number = {
                    let mut state = self.script.state.lock();
                    state.outcomes += 1;
                    state.outcomes
                };
                Ok((self.answer)(number))
            }
        })
    }
}

impl<A> Drop for ScriptedResponse<A> {
    fn drop(&mut self) {
        self.end(Entry::Dropped(self.call));
    }
}

impl_debug!(ScriptedResponse<A> { call, act });
