//! The invariants of a client, checked after every step of a run: whenever every task waits, before the clock jumps.

use std::{
    collections::{HashSet, VecDeque},
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use tokio::{runtime::Builder, time::Instant};
use tower::{Layer, Service, ServiceExt, service_fn, util::BoxCloneService};
use ziggurat::{Error, concurrency_limit::ConcurrencyLimitHandle, stack::ClientStack};

use crate::{
    load::{Client, boxed},
    report::PATIENCE,
    upstream::{Failed, Request},
};

/// A budget grants this share of the requests in ten seconds, and at least this number of extra calls.
const WINDOW: Duration = Duration::from_secs(10);
const SHARE: f64 = 0.2;
const LEAST: usize = 100;

/// Runs a scenario on a clock that jumps to the next timer as soon as every task waits.
///
/// # Panics
///
/// If a client that the scenario watches breaks an invariant after a step, or holds anything at the end.
pub(crate) fn simulate<T>(seed: u64, scenario: impl AsyncFnOnce(&Watch) -> T) -> T {
    // For the jitter of the layers.
    fastrand::seed(seed);
    let watch = Watch::default();
    let steps = watch.clone();
    let runtime = Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        // The thread parks when there is no task left to poll.
        .on_thread_park(move || steps.each(State::settled))
        .build()
        .unwrap();
    let outcome = runtime.block_on(scenario(&watch));
    watch.each(State::ended);
    outcome
}

/// The clients that are watched in a run.
#[derive(Clone, Default)]
pub(crate) struct Watch(Arc<Mutex<Vec<Watched>>>);

impl Watch {
    fn each(&self, check: fn(&mut State)) {
        for client in &*self.0.lock().unwrap() {
            check(&mut client.state());
        }
    }

    /// Watches a client whose limit of calls in flight is never set above `highest`, and whose extra calls are granted
    /// by `budgets` with their default share.
    pub(crate) fn client(&self, limit: ConcurrencyLimitHandle, highest: usize, budgets: usize) -> Watched {
        let most = limit.limit();
        let state = State {
            limit,
            highest,
            budgets,
            at_once: 1,
            most,
            before: 0,
            admitted: 0,
            touched: false,
            under_way: 0,
            inside: 0,
            reached: HashSet::new(),
            requests: VecDeque::new(),
            extra: VecDeque::new(),
        };
        let watched = Watched(Arc::new(Mutex::new(state)));
        self.0.lock().unwrap().push(watched.clone());
        watched
    }

    /// Watches the recommended client with its default limit and budget.
    pub(crate) fn stack(&self, stack: &ClientStack) -> Watched {
        self.client(stack.gate(), 1_000, 1)
    }
}

/// A client that is watched.
#[derive(Clone)]
pub(crate) struct Watched(Arc<Mutex<State>>);

struct State {
    limit: ConcurrencyLimitHandle,
    highest: usize,
    budgets: usize,
    /// The number of calls that one request may have under way.
    at_once: usize,
    /// The highest limit that was seen since the last step: then, now, and whenever a call reached the service. A limit
    /// that adapts takes ten calls for a change at least, so it does not rise and fall between two of these.
    most: usize,
    /// The calls in flight after the last step, and the calls that were admitted since.
    before: usize,
    admitted: usize,
    /// Whether a request or a call of this client has begun or ended since the last step. Other steps change nothing.
    touched: bool,
    /// The requests that have no outcome, and the calls inside the service that hold a permit.
    under_way: usize,
    inside: usize,
    /// The requests of which at least one call reached the service.
    reached: HashSet<Request>,
    /// When each request was made, and each call of the service beyond the first of a request.
    requests: VecDeque<Instant>,
    extra: VecDeque<Instant>,
}

impl Watched {
    fn state(&self) -> MutexGuard<'_, State> {
        // A check that fails must not fail again while its panic drops the calls.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A request of this client may have two calls under way.
    pub(crate) fn hedged(self) -> Self {
        self.state().at_once = 2;
        self
    }

    /// Puts the layers of the client around the service.
    pub(crate) fn around<L, S>(&self, layers: &L, service: S) -> Client
    where
        L: Layer<Inside<S, fn(&Request) -> bool>>,
        L::Service: Service<Request, Response = (), Error = Error<Failed>, Future: Send> + Clone + Send + 'static,
    {
        self.outside(boxed(layers.layer(self.inside(|_| true, service))))
    }

    /// Counts the requests of the whole client.
    pub(crate) fn outside(&self, client: Client) -> Client {
        let watched = self.clone();
        BoxCloneService::new(service_fn(move |request| {
            let mut state = watched.state();
            state.under_way += 1;
            state.touched = true;
            state.requests.push_back(Instant::now());
            let ends = Ends { watched: watched.clone(), counter: |state| &mut state.under_way };
            let outcome = client.clone().oneshot(request);
            async move {
                let _ends = ends;
                outcome.await
            }
        }))
    }

    /// Counts the calls of the service, for layers of which some calls hold no permit. The others have [`around`].
    ///
    /// [`around`]: Self::around
    pub(crate) fn inside<H: Fn(&Request) -> bool, S>(&self, holds_permit: H, service: S) -> Inside<S, H> {
        Inside { service, watched: self.clone(), holds_permit }
    }
}

impl State {
    /// Checks what holds at any time.
    fn look(&mut self) {
        let (limit, in_flight, waiting) = (self.limit.limit(), self.limit.in_flight(), self.limit.waiting());
        let Self { highest, inside, before, .. } = *self;
        assert!(limit <= highest, "a limit of {limit}, and {highest} at most");
        assert!(inside <= in_flight, "{inside} calls hold {in_flight} permits");
        // A limit that was lowered revokes no permits, but no call is admitted until it holds. One that is fixed always
        // holds.
        self.most = self.most.max(limit);
        let allowed = if self.admitted > 0 { self.most } else { self.most.max(before) };
        assert!(in_flight <= allowed, "{in_flight} calls in flight after {before}, with a limit of {}", self.most);
        let places = self.limit.max_waiting();
        assert!(waiting <= places, "{waiting} calls wait in {places} places");
        self.check_budget();
    }

    /// Checks what holds when every task waits.
    fn settled(&mut self) {
        if !std::mem::take(&mut self.touched) {
            return;
        }
        self.look();
        let (in_flight, waiting) = (self.limit.in_flight(), self.limit.waiting());
        assert_eq!(in_flight, self.inside, "permits in use, and calls inside the service");
        let most = self.at_once * self.under_way;
        assert!(in_flight + waiting <= most, "{in_flight} + {waiting} for {} requests", self.under_way);
        (self.most, self.before, self.admitted) = (self.limit.limit(), in_flight, 0);
    }

    fn ended(&mut self) {
        let left = (self.limit.in_flight(), self.limit.waiting(), self.inside, self.under_way);
        assert_eq!(left, (0, 0, 0, 0), "in flight, waiting, inside the service and under way at the end");
    }

    /// Between the grant of an extra call and the call, its caller waits: no longer than it waits for the answer. So
    /// the extra calls of nine seconds were granted within ten, and paid for by requests of eleven.
    fn check_budget(&mut self) {
        let now = Instant::now();
        let expire = |times: &mut VecDeque<Instant>, after| {
            while times.front().is_some_and(|at| now - *at >= after) {
                times.pop_front();
            }
        };
        expire(&mut self.requests, WINDOW + PATIENCE);
        expire(&mut self.extra, WINDOW - PATIENCE);
        let (requests, extra) = (self.requests.len(), self.extra.len());
        let granted = self.budgets * LEAST.max((requests as f64 * SHARE) as usize);
        assert!(extra <= granted, "{extra} extra calls for {requests} requests: more than {granted}");
    }
}

/// Counts the calls of a service.
#[derive(Clone)]
pub(crate) struct Inside<S, H> {
    service: S,
    watched: Watched,
    holds_permit: H,
}

impl<S, H> Service<Request> for Inside<S, H>
where
    S: Service<Request, Future: Send + 'static>,
    H: Fn(&Request) -> bool,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.service.poll_ready(cx)
    }

    fn call(&mut self, request: Request) -> Self::Future {
        let mut state = self.watched.state();
        if !state.reached.insert(request) {
            state.extra.push_back(Instant::now());
        }
        let ends = (self.holds_permit)(&request).then(|| {
            state.inside += 1;
            state.admitted += 1;
            state.touched = true;
            Ends { watched: self.watched.clone(), counter: |state| &mut state.inside }
        });
        state.look();
        drop(state);
        let outcome = self.service.call(request);
        Box::pin(async move {
            let _ends = ends;
            outcome.await
        })
    }
}

/// A call or a request that ends when this is dropped, whether it has an outcome or was cancelled.
struct Ends {
    watched: Watched,
    counter: fn(&mut State) -> &mut usize,
}

impl Drop for Ends {
    fn drop(&mut self) {
        let mut state = self.watched.state();
        *(self.counter)(&mut state) -= 1;
        state.touched = true;
    }
}
