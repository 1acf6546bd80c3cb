//! The state of one key: its lease, the calls that wait for tokens, and the request for them.

use std::{
    collections::VecDeque,
    ops::RangeInclusive,
    sync::{Arc, OnceLock},
    time::Duration,
};

use tokio::sync::oneshot;

use super::lease::{Lease, Terms};
use crate::{
    bucket::Bucket,
    caught::undisturbed,
    clock::{self, Instant},
    mutex::Mutex,
    store::{Quota, Taken},
};

/// One key.
pub(super) struct Entry {
    pub(super) key: Arc<str>,
    state: Mutex<State>,
    /// The bucket that limits this process while the store is away.
    pub(super) share: Arc<OnceLock<Bucket>>,
}

#[derive(Default)]
struct State {
    lease: Lease,
    /// In the order of arrival. Some of them may be gone.
    waiting: VecDeque<Waiting>,
    request: Option<Request>,
    requests: u64,
}

struct Waiting {
    cost: u32,
    verdict: oneshot::Sender<Verdict>,
}

/// A request to the store that is under way.
#[derive(Debug, Clone, Copy)]
struct Request {
    number: u64,
    /// If it is under way for longer than this, the task that drives it is lost.
    lost: Instant,
}

/// The end of a wait.
pub(super) enum Verdict {
    Granted(Tokens),
    /// The store denies the call, for this time.
    Denied(Duration),
    /// The store failed.
    Away(Arc<str>),
}

/// The decision about a call that has not waited.
pub(super) enum Local {
    Admitted,
    Denied(Duration),
    /// The store has to decide.
    Unknown,
}

/// The tokens of a call that waited, and has not been made yet. Dropping them returns them to the lease.
pub(super) struct Tokens {
    entry: Arc<Entry>,
    cost: u32,
    /// When they were taken, by the store's clock.
    at: u64,
}

/// A request to make: its number, and how many tokens it is for.
pub(super) struct Ask {
    pub(super) number: u64,
    pub(super) tokens: RangeInclusive<u32>,
}

/// The result of [`join`](Entry::join).
pub(super) enum Joined {
    Admitted,
    Denied(Duration),
    /// The call waits. If there is a request to make, it has to be made now.
    Waits(oneshot::Receiver<Verdict>, Option<Ask>),
}

/// What all calls of a layer agree on.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rules {
    pub(super) quota: Quota,
    pub(super) terms: Terms,
    pub(super) timeout: Duration,
}

impl Entry {
    pub(super) fn new(key: Arc<str>, share: Arc<OnceLock<Bucket>>) -> Self {
        Self { key, state: Mutex::default(), share }
    }

    /// Spends tokens of the lease, or denies a call that the store would deny.
    pub(super) fn decide(&self, now: Instant, cost: u32, rules: &Rules) -> Local {
        self.state.lock().decide(now, cost, rules)
    }

    /// Decides about a call, or lets it wait for the answer of the store.
    pub(super) fn join(&self, now: Instant, cost: u32, rules: &Rules) -> Joined {
        let (verdict, waits) = oneshot::channel();
        let mut gone = Vec::new();
        let mut state = self.state.lock();
        match state.decide(now, cost, rules) {
            Local::Admitted => return Joined::Admitted,
            Local::Denied(wait) => return Joined::Denied(wait),
            Local::Unknown => state.waiting.push_back(Waiting { cost, verdict }),
        }
        let ask = state.request(now, rules, &mut gone);
        drop(state);
        Joined::Waits(waits, ask)
    }

    /// Returns a request that no call waits for, unless one is under way.
    pub(super) fn probe(&self, now: Instant, cost: u32, rules: &Rules) -> Option<Ask> {
        let mut state = self.state.lock();
        state.is_free(now).then(|| state.ask(now, cost, cost.into(), rules))
    }

    /// Passes the store's decision on to the calls that wait, in the order of arrival. Returns the request to make
    /// next, for those that still wait.
    pub(super) fn answered(self: &Arc<Self>, now: Instant, ask: &Ask, taken: Taken, rules: &Rules) -> Option<Ask> {
        let (mut decided, mut gone) = (Vec::new(), Vec::new());
        let mut state = self.state.lock();
        if !state.is_current(ask.number) {
            // It counted as lost, and another one was sent. Its tokens would be too many.
            return None;
        }
        match taken {
            Taken::Granted { tokens, at } => state.lease.granted(now, tokens, at, rules.terms),
            Taken::Denied { wait } => {
                // No bucket needs longer than until it is full. Twice that, because a store may count in coarser units.
                let longest = rules.quota.time(rules.quota.capacity()).saturating_mul(2);
                state.lease.denied(now, *ask.tokens.start(), wait.min(longest));
            }
        }
        while let Some(first) = state.waiting.pop_front() {
            if first.verdict.is_closed() {
                gone.push(first);
                continue;
            }
            let verdict = match state.decide_first(now, first.cost, rules) {
                Local::Admitted => {
                    let at = state.lease.at();
                    Verdict::Granted(Tokens { entry: Arc::clone(self), cost: first.cost, at })
                }
                Local::Denied(wait) => Verdict::Denied(wait),
                Local::Unknown => {
                    state.waiting.push_front(first);
                    break;
                }
            };
            decided.push((first.verdict, verdict));
        }
        state.request = None;
        let next = state.request(now, rules, &mut gone);
        drop(state);
        tell(decided);
        next
    }

    /// Ends the wait of all calls, because the store has failed.
    pub(super) fn failed(&self, ask: &Ask, error: &Arc<str>) {
        let mut state = self.state.lock();
        if state.is_current(ask.number) {
            state.request = None;
        }
        let waiting = std::mem::take(&mut state.waiting);
        drop(state);
        tell(waiting.into_iter().map(|waiting| (waiting.verdict, Verdict::Away(Arc::clone(error)))));
    }

    /// Returns the number of tokens of the lease.
    pub(super) fn tokens(&self, now: Instant) -> u32 {
        self.state.lock().lease.tokens(now)
    }

    /// Returns the number of calls that wait.
    pub(super) fn waiting(&self) -> usize {
        self.state.lock().waiting.iter().filter(|waiting| !waiting.verdict.is_closed()).count()
    }

    /// Ends the lease, and returns the rest of it, with the time at which it was taken.
    pub(super) fn end(&self, now: Instant) -> Option<(u32, u64)> {
        self.state.lock().lease.end(now)
    }

    /// Returns whether nothing is lost if this is forgotten, and a call made anew.
    pub(super) fn is_idle(&self, now: Instant) -> bool {
        let state = self.state.lock();
        let is_unused = state.is_free(now) && state.waiting.is_empty() && state.lease.is_idle(now);
        is_unused && self.share.get().is_none_or(|share| share.is_full(now))
    }
}

impl State {
    fn decide(&mut self, now: Instant, cost: u32, rules: &Rules) -> Local {
        // A call that waits was there before.
        if self.waiting.iter().any(|waiting| !waiting.verdict.is_closed()) {
            return Local::Unknown;
        }
        self.decide_first(now, cost, rules)
    }

    fn decide_first(&mut self, now: Instant, cost: u32, rules: &Rules) -> Local {
        if self.lease.spend(now, cost) {
            return Local::Admitted;
        }
        self.lease.wait(now, cost, &rules.quota).map_or(Local::Unknown, Local::Denied)
    }

    /// Returns a request for the calls that wait, unless there are none or one is under way. Calls that have given up
    /// are moved to `gone`, which is to be dropped outside the lock: it holds their wakers, which are foreign code.
    fn request(&mut self, now: Instant, rules: &Rules, gone: &mut Vec<Waiting>) -> Option<Ask> {
        if !self.is_free(now) {
            return None;
        }
        if self.waiting.iter().any(|waiting| waiting.verdict.is_closed()) {
            let (left, waiting) = self.waiting.drain(..).partition::<Vec<_>, _>(|waiting| waiting.verdict.is_closed());
            gone.extend(left);
            self.waiting = waiting.into();
        }
        let first = self.waiting.front()?.cost;
        let all = self.waiting.iter().map(|waiting| u64::from(waiting.cost)).sum();
        Some(self.ask(now, first, all, rules))
    }

    fn ask(&mut self, now: Instant, cost: u32, waiting: u64, rules: &Rules) -> Ask {
        self.requests += 1;
        let (number, lost) = (self.requests, now + rules.timeout * 2);
        self.request = Some(Request { number, lost });
        Ask { number, tokens: self.lease.ask(now, cost, waiting, rules.terms) }
    }

    fn is_free(&self, now: Instant) -> bool {
        self.request.is_none_or(|request| request.lost <= now)
    }

    fn is_current(&self, number: u64) -> bool {
        self.request.is_some_and(|request| request.number == number)
    }
}

/// Ends the wait of calls. A waker is foreign code: it runs outside the lock, and if one panics, the others run
/// nevertheless.
fn tell(decided: impl IntoIterator<Item = (oneshot::Sender<Verdict>, Verdict)>) {
    for (sender, verdict) in decided {
        // The tokens of a call that has given up return to the lease.
        undisturbed(|| drop(sender.send(verdict)));
    }
}

impl Tokens {
    /// The call is made.
    pub(super) fn spend(mut self) {
        self.cost = 0;
    }
}

impl Drop for Tokens {
    fn drop(&mut self) {
        if self.cost > 0 {
            self.entry.state.lock().lease.take_back(clock::now(), self.cost, self.at);
        }
    }
}
