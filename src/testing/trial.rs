//! A trial: one layer value over one script, driven and watched step by step.

use std::{
    cell::Cell,
    fmt,
    future::{Future, poll_fn},
    panic::{AssertUnwindSafe, catch_unwind},
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
    time::Duration,
};

use super::{
    act::Act,
    law::Law,
    script::{Script, ScriptedPanic},
};
use crate::{
    ambient::{self, Attempt, Limit},
    caught::message,
    clock,
    mutex::Mutex,
    outcome::Rejection,
    scope::Scope,
};

/// The clock is paused, so it costs nothing to wait until every timer has fired, every circuit has closed, and every
/// entry has expired.
const LONG: Duration = Duration::from_secs(60 * 60);

/// A future that is polled more often than this without completing does not wait, it spins.
const MANY: usize = 1000;

/// A layer value, whatever its type.
pub(super) trait Value {
    /// Creates a service of the layer value over the script.
    fn service(&self, script: &Script) -> Box<dyn Subject>;
    fn another(&self) -> Box<dyn Value>;
    fn gauges(&self) -> String;
}

/// A service, whatever its type.
pub(super) trait Subject {
    fn another(&self) -> Box<dyn Subject>;
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Outcome>>;
    fn call(&mut self, number: u64) -> Pin<Box<dyn Future<Output = Outcome>>>;
}

/// How a call ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Outcome {
    /// With the inner service's response of this number.
    Answered(u64),
    /// With the inner service's error of this number.
    Failed(u64),
    /// With a rejection.
    Rejected(Refusal),
    /// With any other response or error.
    Other(String),
    /// With the panic of the inner service.
    Panicked,
}

/// The rejection that the trials have seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refusal {
    layer: &'static str,
    kind: &'static str,
    pub(super) reason: String,
}

impl Refusal {
    pub(super) fn of(rejection: &Rejection) -> Self {
        let reason = rejection.reason();
        Self { layer: rejection.layer(), kind: reason.as_str(), reason: format!("{reason:?}") }
    }

    /// Returns whether the same layer rejected for the same reason, whatever the numbers and messages in it.
    pub(super) fn is_like(&self, other: &Self) -> bool {
        (self.layer, self.kind) == (other.layer, other.kind)
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}: {}`", self.layer, self.kind)
    }
}

/// The state of a future after polling it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Progress {
    Ended(Outcome),
    /// It is pending after the requested number of polls.
    Pending,
    /// It is pending, and nothing wakes it.
    Stuck,
}

/// Later attempts of a request do not count for a circuit.
const FIRST: Attempt = Attempt(1);

/// A broken law, with the details.
#[derive(Debug)]
pub(super) struct Fault {
    pub(super) law: Law,
    pub(super) how: String,
}

pub(super) type Checked<T = ()> = Result<T, Fault>;

pub(super) struct Trial<'a> {
    make: &'a dyn Fn() -> Box<dyn Value>,
    pub(super) value: Box<dyn Value>,
    pub(super) script: Script,
    /// The number of services that are kept ready on purpose. One inner service of each may be ready too.
    pub(super) idle: Cell<usize>,
    except: &'a [Law],
    gauges: String,
    scope: Scope,
    limit: Limit,
}

impl<'a> Trial<'a> {
    pub(super) fn new(make: &'a dyn Fn() -> Box<dyn Value>, except: &'a [Law], deadline: bool) -> Self {
        let script = Script::new();
        let scope = Scope::root("around the layer");
        let value = scope.enter(make);
        script.expect_within(&scope);
        let limit = if deadline { Limit::at(clock::now() + LONG * 24 * 365) } else { Limit::NONE };
        let gauges = value.gauges();
        Self { make, value, script, idle: Cell::new(0), except, gauges, scope, limit }
    }

    /// Creates a service of the layer value.
    pub(super) fn service(&self) -> Checked<Box<dyn Subject>> {
        self.must(Law::Contract, || self.value.service(&self.script))
    }

    /// Creates a service of another layer value.
    pub(super) fn foreign_service(&self) -> Checked<Box<dyn Subject>> {
        let other = self.scope.enter(self.make);
        self.must(Law::Contract, || other.service(&self.script))
    }

    pub(super) fn demand(&self, law: Law, holds: bool, how: impl FnOnce() -> String) -> Checked {
        if holds || self.except.contains(&law) { Ok(()) } else { Err(Fault { law, how: how() }) }
    }

    /// Runs one step of the layer within ambient state that it has to restore. `None`: the script's panic came out.
    fn step<T>(&self, law: Law, step: impl FnOnce() -> T) -> Checked<Option<T>> {
        let (mut scope, mut limit, mut attempt) = (Some(self.scope.clone()), self.limit, FIRST);
        let entered = (ambient::enter(&mut scope), ambient::enter(&mut limit), ambient::enter(&mut attempt));
        let outcome = catch_unwind(AssertUnwindSafe(step));
        let left = (Scope::current().map(|scope| scope.id()), ambient::get::<Limit>(), ambient::get::<Attempt>().0);
        drop(entered);
        let restored = left == (Some(self.scope.id()), self.limit, FIRST.0);
        self.demand(Law::Ambient, restored, || {
            "after a step of the layer the scope, the deadline or the attempt number is not what it was before".into()
        })?;
        self.demand(Law::Ambient, !self.script.strayed(), || {
            "the inner service was called or polled outside of the scope that surrounds the layer".into()
        })?;
        match outcome {
            Ok(done) => Ok(Some(done)),
            Err(panic) if panic.is::<ScriptedPanic>() => Ok(None),
            Err(panic) => Err(match self.script.violation() {
                Some(violation) => Fault { law: Law::Contract, how: violation.into() },
                None => {
                    let said = message(&*panic).unwrap_or_else(|| "(without a message)".into());
                    Fault { law, how: format!("the layer panicked: {said}") }
                }
            }),
        }
    }

    /// Runs a step in which the inner service is neither polled nor called.
    pub(super) fn must<T>(&self, law: Law, step: impl FnOnce() -> T) -> Checked<T> {
        self.step(law, step)?.ok_or_else(|| Fault { law, how: "it panicked".into() })
    }

    /// Polls whenever the future is woken, but at most `times` times.
    async fn drive(&self, woken: &Arc<Woken>, times: usize, mut poll: Polled<'_>) -> Checked<Progress> {
        let mut patience = pin!(clock::sleep_until(clock::now() + LONG));
        let mut polls = 0;
        poll_fn(|cx| {
            woken.tell(cx.waker());
            if polls == times {
                return Poll::Ready(Ok(Progress::Pending));
            }
            if woken.take() {
                polls += 1;
                let waker = Waker::from(Arc::clone(woken));
                match self.step(Law::Panics, || poll(&mut Context::from_waker(&waker)))? {
                    None => return Poll::Ready(Ok(Progress::Ended(Outcome::Panicked))),
                    Some(Poll::Ready(outcome)) => return Poll::Ready(Ok(Progress::Ended(outcome))),
                    Some(Poll::Pending) => {}
                }
                self.demand(Law::Wakes, polls < MANY, || format!("it was polled {MANY} times and is still pending"))?;
                // Returns to the runtime after each poll, so that timers and spawned tasks run too.
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            patience.as_mut().poll(cx).map(|()| Ok(Progress::Stuck))
        })
        .await
    }

    /// Makes a service ready. Returns how it ended if it failed, panicked or got stuck instead.
    pub(super) async fn ready(&self, service: &mut dyn Subject) -> Checked<Option<Progress>> {
        let woken = Arc::<Woken>::default();
        let ready = Cell::new(false);
        let progress = self
            .drive(
                &woken,
                usize::MAX,
                Box::new(|cx| {
                    service.poll_ready(cx).map(|polled| match polled {
                        Ok(()) => {
                            ready.set(true);
                            Outcome::Other("ready".into())
                        }
                        Err(outcome) => outcome,
                    })
                }),
            )
            .await?;
        self.demand(Law::Waiting, progress != Progress::Stuck || self.script.hangs_at_readiness(), || {
            "`poll_ready` is pending, although the inner service is not".into()
        })?;
        Ok((!ready.get()).then_some(progress))
    }

    /// Makes a service ready and calls it. Its response is not polled yet.
    pub(super) async fn begin(&self, service: &mut dyn Subject, number: u64) -> Checked<Call<'_, 'a>> {
        match self.ready(service).await? {
            Some(progress) => Ok(self.in_vain(progress)),
            None => self.begin_ready(service, number),
        }
    }

    /// A call that was not made, because the service did not become ready.
    pub(super) fn in_vain(&self, progress: Progress) -> Call<'_, 'a> {
        Call { trial: self, future: None, woken: Arc::default(), progress }
    }

    /// Calls a service that is ready.
    pub(super) fn begin_ready(&self, service: &mut dyn Subject, number: u64) -> Checked<Call<'_, 'a>> {
        let future = self.step(Law::Panics, || service.call(number))?;
        let progress = if future.is_some() { Progress::Pending } else { Progress::Ended(Outcome::Panicked) };
        Ok(Call { trial: self, future, woken: Arc::default(), progress })
    }

    /// Makes a service ready, calls it and polls the response to its end.
    pub(super) async fn call(&self, service: &mut dyn Subject, number: u64) -> Checked<Progress> {
        let mut call = self.begin(service, number).await?;
        call.poll(usize::MAX).await
    }

    /// Demands that nothing is held while no call is in progress.
    pub(super) fn at_rest(&self, law: Law) -> Checked {
        let (in_flight, ready) = (self.script.in_flight(), self.script.ready());
        self.demand(law, in_flight == 0, || {
            format!("calls of the inner service that are still in flight: {in_flight}")
        })?;
        self.demand(law, ready <= self.idle.get(), || {
            format!("inner services that were made ready, and are neither called nor dropped: {ready}")
        })?;
        let now = self.value.gauges();
        self.demand(law, now == self.gauges, || format!("the gauges were {}, and are {now}", self.gauges))
    }

    /// Demands that the layer works much later, when its timers have fired: `services`, clones of them, and a new
    /// service.
    pub(super) async fn works(&self, law: Law, services: Vec<Box<dyn Subject>>) -> Checked {
        self.script.always(Act::answer());
        self.later().await;
        let mut all = vec![self.service()?];
        for service in services {
            all.push(self.must(law, || service.another())?);
            all.push(service);
        }
        for mut service in all {
            for number in [1, 2] {
                let progress = self.call(service.as_mut(), number).await?;
                self.demand(law, matches!(progress, Progress::Ended(Outcome::Answered(_))), || {
                    format!("an hour later, over a service that succeeds, another call did not succeed: {progress:?}")
                })?;
            }
            self.must(law, || drop(service))?;
        }
        self.at_rest(law)
    }

    pub(super) async fn later(&self) {
        clock::sleep_until(clock::now() + LONG).await;
    }
}

type Polled<'a> = Box<dyn FnMut(&mut Context<'_>) -> Poll<Outcome> + 'a>;

/// A call in progress.
pub(super) struct Call<'t, 'a> {
    trial: &'t Trial<'a>,
    future: Option<Pin<Box<dyn Future<Output = Outcome>>>>,
    woken: Arc<Woken>,
    progress: Progress,
}

impl Call<'_, '_> {
    /// Polls the call whenever it is woken, but at most `times` times.
    pub(super) async fn poll(&mut self, times: usize) -> Checked<Progress> {
        let (Some(future), false) = (&mut self.future, matches!(self.progress, Progress::Ended(_))) else {
            return Ok(self.progress.clone());
        };
        self.progress = self.trial.drive(&self.woken, times, Box::new(|cx| future.as_mut().poll(cx))).await?;
        if times > 0 && !matches!(self.progress, Progress::Ended(_)) {
            let (ready, idle) = (self.trial.script.ready(), self.trial.idle.get());
            self.trial.demand(Law::Waiting, ready <= idle, || {
                "the response is pending, while an inner service that was made ready for it has not been called".into()
            })?;
        }
        Ok(self.progress.clone())
    }

    pub(super) fn has_ended(&self) -> bool {
        matches!(self.progress, Progress::Ended(_))
    }

    /// Whether the service was called without a panic.
    pub(super) fn was_made(&self) -> bool {
        self.future.is_some()
    }

    pub(super) fn drop(mut self, law: Law) -> Checked {
        let future = self.future.take();
        self.trial.must(law, || drop(future))
    }
}

/// Whether a future was woken since its last poll. The task that waits for it is woken too.
struct Woken {
    yes: AtomicBool,
    waiting: Mutex<Option<Waker>>,
}

impl Default for Woken {
    fn default() -> Self {
        // The first poll needs no wake-up.
        Self { yes: AtomicBool::new(true), waiting: Mutex::default() }
    }
}

impl Woken {
    fn take(&self) -> bool {
        self.yes.swap(false, Ordering::SeqCst)
    }

    fn tell(&self, waker: &Waker) {
        *self.waiting.lock() = Some(waker.clone());
    }
}

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.yes.store(true, Ordering::SeqCst);
        let waiting = self.waiting.lock().take();
        if let Some(waker) = waiting {
            waker.wake();
        }
    }
}
