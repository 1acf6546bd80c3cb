//! Limits the number of calls in flight.
//!
//! A call holds a permit from its admission until its response future completes or is dropped. All services that one
//! layer value makes, and all their clones, share its permits: all routes of a router, and all connections of a
//! server. A call that finds no free permit waits in its response future. Waiting calls are admitted in the order in
//! which they were first polled.
//!
//! The limit counts calls, not services: a service that was polled ready but not called holds neither a permit nor a
//! place in the queue. A permit is released before the caller sees the outcome, and after the call was dropped. The
//! response's body is not counted, unless the layer holds permits
//! [`until_body_end`](ConcurrencyLimitLayer::until_body_end).
//!
//! # Waiting
//!
//! While calls wait, the limit measures how fast the queue drains. A call is rejected at once with
//! [`Reason::Overloaded`] instead of joining the queue
//!
//! - if it is not expected to reach its turn and then to end before the surrounding [`Deadline`]: the time until its
//!   turn is the number of calls in front of it times the interval between two released permits, and a call takes as
//!   long as calls lately took, which is the limit times that interval. Some calls take longer than others, so it must
//!   have twice that time left, but it may wait for half of its time if its deadline is too close for that. Calls that
//!   share a limit should therefore take about as long as each other. (With
//!   [`until_body_end`](ConcurrencyLimitLayer::until_body_end), it must only reach its turn: the rest may be a long
//!   body.)
//! - if the service is overloaded: the queue has not been empty for ten times as long as a call takes (at least 100 ms,
//!   at most 10 s), and as many calls wait as the limit allows in flight, and 16 more. These keep the service busy;
//!   more of them would make all answers later, and none more. A burst may be longer, and waits in order.
//! - if [`max_waiting`](ConcurrencyLimitLayer::max_waiting) calls wait.
//!
//! A call that reaches its turn is not started, but rejected, if less time than that is left. The first call in the
//! queue always may wait, and so may every call before the first measurement.
//!
//! A call without a deadline waits for 30 seconds at most, and is rejected at once if its turn is not expected by then.
//! [`max_wait`](ConcurrencyLimitLayer::max_wait) sets this time for all calls. The queue may then be as long as that
//! time allows, for example in a batch job that hands out work at its own pace. The clock of the wait starts when the
//! call enters the queue, at its first poll.
//!
//! # Retry-After
//!
//! A rejection carries an estimate of when a retry is worthwhile: the recent average interval between two released
//! permits, times the number of waiting calls. Before the first measurement, the limit assumes that a call takes 100
//! ms. If no permit was released lately, the estimate is at least the time since then. It is at least one millisecond
//! and at most one minute. Over HTTP, it is rounded up to whole seconds.
//!
//! # Adaptive limits
//!
//! Too low a limit wastes capacity of the service, and too high a one lets calls queue in the service. With
//! [`adaptive`](ConcurrencyLimitLayer::adaptive) the limit finds the place between the two, and follows it:
//!
//! ```
//! use ziggurat::concurrency_limit::{Adaptive, ConcurrencyLimitLayer};
//!
//! let limit = ConcurrencyLimitLayer::adaptive(Adaptive::http().between(5..=200)).named("billing");
//! let gate = limit.handle(); // gate.limit() is the current limit
//! # assert_eq!(gate.limit(), 20);
//! ```
//!
//! [`Adaptive`] says which calls count, and how the limit follows them. Each call reads the clock twice.
//!
//! # Order
//!
//! Place the limit inside retry and circuit breaker, and outside the attempt timeout. Then a retry that sleeps
//! between two attempts holds no permit, the time in the queue is not part of an attempt, and a call that an open
//! circuit rejects needs no permit. Outside the retry, a permit would be held for all attempts and the pauses between
//! them. Inside the attempt timeout, the time in the queue would count as slowness of the service, and be retried. On
//! a server, place the limit outside all expensive work, usually with `max_waiting(0)`.
//!
//! # Recursive calls
//!
//! A handler that calls itself through its own limit, while the surrounding calls hold all permits, can never get
//! one. Such a call is rejected with [`Reason::Recursive`]. The limit detects this if the outer call polls the inner
//! one. It does not detect a handler that spawns a task, which makes the call, and awaits that task: such a call
//! waits until a timeout ends it.
//!
//! # Cancellation safety
//!
//! Dropping the response future releases its permit or its place in the queue, and so does a panic of the call. A
//! permit that was assigned but not yet observed goes to the next waiter. A response future that is kept but no longer
//! polled keeps its permit or its place. If a call is dropped while it waits here, a circuit breaker outside does not
//! count it against the service.
//!
//! # Requirements
//!
//! The service must be `Clone`. A call that waits or is rejected drops the ready service that it was called on, which
//! would otherwise hold on to its reservations. Once admitted, a waiting call makes its own clone ready. A call that
//! waits without a deadline has a timer, and panics on a runtime without a clock.
//!
//! # Cost
//!
//! A call that is admitted at once clones and allocates nothing, takes no lock, and reads no clock. A call that finds
//! no permit free reads the clock once or twice.
//!
//! # Examples
//!
//! ```
//! use tower::{Service, ServiceBuilder, ServiceExt, service_fn};
//! use ziggurat::{Error, concurrency_limit::ConcurrencyLimitLayer};
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() {
//! let limit = ConcurrencyLimitLayer::new(1).max_waiting(0);
//! let gate = limit.handle();
//! let mut service = ServiceBuilder::new()
//!     .layer(limit)
//!     .map_err(Error::Service)
//!     .service(service_fn(|word: &'static str| async move { Ok::<_, std::io::Error>(word) }));
//!
//! let first = service.ready().await.unwrap().call("first");
//! assert_eq!(gate.in_flight(), 1);
//!
//! let second = service.ready().await.unwrap().call("second").await;
//! assert!(ziggurat::rejection(&second).unwrap().is_overloaded());
//!
//! assert_eq!(first.await.unwrap(), "first");
//! assert_eq!(gate.in_flight(), 0);
//! # }
//! ```

mod adaptive;
mod bodies;
mod gate;
mod held;
mod limiter;
mod pace;
mod patience;
mod seats;
mod turn;

use std::{
    any::type_name,
    fmt,
    future::Future,
    marker::PhantomData,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

pub(crate) use self::adaptive::Pilot;
pub use self::{
    adaptive::{Adaptive, Fixed, Measured, MeasuredFuture, Steered},
    bodies::BodyPermit,
    gate::ConcurrencyLimitHandle,
};
use self::{gate::Permit, patience::Patience, turn::Turn};
use crate::{
    accessors::inner_accessors,
    ambient::{self, Deadline, Urgent},
    body::{BodyEnd, ResponseEnd, Until},
    clock,
    outcome::{Reason, Reject, Rejection},
    telemetry::{LayerEvent, LayerInfo, layer_info, layer_setters},
};

/// Limits the number of calls in flight: see the [module](self).
///
/// Two layer values share nothing; clones of one value share everything.
#[doc(alias = "bulkhead")]
#[doc(alias = "semaphore")]
#[must_use]
pub struct ConcurrencyLimitLayer<U = ResponseEnd, A = Fixed> {
    settings: Settings,
    steered: A,
    until: PhantomData<fn() -> U>,
}

#[derive(Debug, Clone)]
struct Settings {
    gate: ConcurrencyLimitHandle,
    max_wait: Option<Duration>,
    info: LayerInfo,
}

impl ConcurrencyLimitLayer {
    /// Allows at most `limit` calls in flight. A limit above 8,388,607 is clamped to that value.
    ///
    /// How many calls wait, and for how long, follows from their deadlines and from how fast the queue drains: see
    /// [waiting](self#waiting). At most 1,048,575 calls wait.
    ///
    /// # Panics
    ///
    /// Panics if `limit` is zero, because no call could ever pass.
    #[track_caller]
    pub fn new(limit: usize) -> Self {
        Self { settings: Settings::new(ConcurrencyLimitHandle::new(limit)), steered: Fixed, until: PhantomData }
    }

    /// Lets the limit follow the capacity of the service: see [adaptive limits](self#adaptive-limits).
    ///
    /// The handle shows the current limit. A limit that is set there lasts until the next step.
    pub fn adaptive<C>(adaptive: Adaptive<C>) -> ConcurrencyLimitLayer<ResponseEnd, Steered<C>> {
        let (gate, steered) = adaptive.gate();
        ConcurrencyLimitLayer { settings: Settings::new(gate), steered, until: PhantomData }
    }
}

impl<A> ConcurrencyLimitLayer<ResponseEnd, A> {
    /// Holds permits until the response's body has ended, failed, or was dropped, instead of until the response is
    /// returned. For HTTP.
    ///
    /// Servers need this, because their work is the body. The body becomes a [`GuardBody`](crate::body::GuardBody).
    /// An empty body releases the permit at once, and so does the body of a 101: upgraded connections are not
    /// counted.
    pub fn until_body_end(self) -> ConcurrencyLimitLayer<BodyEnd, A> {
        ConcurrencyLimitLayer { settings: self.settings, steered: self.steered, until: PhantomData }
    }
}

impl<U, C> ConcurrencyLimitLayer<U, Steered<C>> {
    /// Replaces the classifier, as [`Adaptive::classify`] does.
    pub(crate) fn classify<D>(self, classify: D) -> ConcurrencyLimitLayer<U, Steered<D>> {
        let Self { settings, steered, until: _ } = self;
        ConcurrencyLimitLayer { settings, steered: steered.classify(classify), until: PhantomData }
    }

    /// Returns what changes the highest limit later.
    pub(crate) fn pilot(&self) -> Arc<Pilot> {
        self.steered.pilot()
    }
}

impl<A> ConcurrencyLimitLayer<BodyEnd, A> {
    /// Reclaims the permit of a body that has yielded no frame for `after`, if a call finds no permit free. The
    /// default is never.
    ///
    /// Use it on servers: a client that does not read its response would otherwise hold a permit for as long as its
    /// connection lasts. The body itself goes on without a permit and releases nothing at its end; the connection is
    /// up to the server. A body whose service is slow to produce a frame is treated alike. The permits of all stalled
    /// bodies are reclaimed when a call arrives and finds none free. Nothing is reclaimed while calls only wait. The
    /// cost is one clock read for each non-empty body, and one for each of its frames but the last.
    ///
    /// Like the limit, this setting is shared by all clones of this layer. Any duration is valid; the resolution is
    /// one millisecond.
    pub fn reclaim_after(self, after: Duration) -> Self {
        self.settings.gate.set_reclaim_after(after);
        self
    }
}

impl<U, A> ConcurrencyLimitLayer<U, A> {
    /// Limits the number of calls that wait for a permit. Further calls are rejected at once. Zero sheds every call
    /// that finds no permit free.
    ///
    /// Like the limit, this setting is shared by all clones of this layer.
    pub fn max_waiting(self, max_waiting: usize) -> Self {
        self.settings.gate.set_max_waiting(max_waiting);
        self
    }

    /// Rejects a call that has waited `max_wait` for a permit, or at once if it is expected to.
    ///
    /// The default is 30 seconds for a call without a deadline. In place of the default, a queue that is longer than
    /// the service needs is also cut short (see [waiting](self#waiting)); with a time of your own it is as long as that
    /// time allows. Any duration is valid. With zero, no call waits; [`Duration::MAX`] never ends a wait.
    pub fn max_wait(mut self, max_wait: Duration) -> Self {
        self.settings.max_wait = Some(max_wait);
        self
    }

    layer_setters!(settings.info);

    /// Returns a handle that reads the live state and changes the limits.
    #[must_use]
    pub fn handle(&self) -> ConcurrencyLimitHandle {
        self.settings.gate.clone()
    }
}

impl Settings {
    fn new(gate: ConcurrencyLimitHandle) -> Self {
        Self { gate, max_wait: None, info: layer_info!("concurrency_limit") }
    }

    /// The number of calls that may wait: none if `max_wait` is zero. An urgent call may wait wherever any call may.
    fn places(&self) -> usize {
        let places = if self.max_wait == Some(Duration::ZERO) { 0 } else { self.gate.max_waiting() };
        if places > 0 && ambient::get::<Urgent>().0 { usize::MAX } else { places }
    }

    /// How long a call of the caller may wait.
    fn patience(&self, outlasts_deadline: bool) -> Patience {
        let (now, deadline) = (clock::now(), Deadline::current().map(Deadline::instant));
        Patience { now, deadline, max_wait: self.max_wait, outlasts_deadline }
    }

    /// Takes over a permit from a body that made no progress for too long.
    #[cold]
    fn reclaim(&self) -> Option<Permit> {
        let permits = self.gate.reclaim();
        if permits == 0 {
            return None;
        }
        self.info.emit(LayerEvent::Reclaimed { permits });
        self.gate.try_enter()
    }

    #[cold]
    fn awaits_itself(&self) -> Rejection {
        self.info.reject(Reason::Recursive)
    }

    fn reject(&self) -> Rejection {
        let reason = Reason::Overloaded { limit: self.gate.limit() };
        self.info.reject_with_retry_after(reason, self.gate.retry_after(clock::now()))
    }
}

// Manual impls, here and for the service: `U` need not be `Clone` or `Debug`.
impl<U, A: Clone> Clone for ConcurrencyLimitLayer<U, A> {
    fn clone(&self) -> Self {
        Self { settings: self.settings.clone(), steered: self.steered.clone(), until: PhantomData }
    }
}

impl<U, A> fmt::Debug for ConcurrencyLimitLayer<U, A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConcurrencyLimitLayer")
            .field("settings", &self.settings)
            .field("adaptive", &type_name::<A>())
            .field("until", &type_name::<U>())
            .finish()
    }
}

impl<S, U> Layer<S> for ConcurrencyLimitLayer<U> {
    type Service = ConcurrencyLimit<S, U>;

    fn layer(&self, inner: S) -> Self::Service {
        ConcurrencyLimit { inner, settings: Arc::new(self.settings.clone()), until: PhantomData }
    }
}

impl<S, U, C: Clone> Layer<S> for ConcurrencyLimitLayer<U, Steered<C>> {
    type Service = ConcurrencyLimit<Measured<S, C>, U>;

    fn layer(&self, inner: S) -> Self::Service {
        let inner = self.steered.measure(inner);
        ConcurrencyLimit { inner, settings: Arc::new(self.settings.clone()), until: PhantomData }
    }
}

/// The service of [`ConcurrencyLimitLayer`].
pub /* not a Service? see ziggurat::docs::it_does_not_compile */ struct ConcurrencyLimit<S, U = ResponseEnd> {
    inner: S,
    // Shared by all clones: a reference count is cheaper than a copy of the settings.
    settings: Arc<Settings>,
    until: PhantomData<fn() -> U>,
}

impl<S, U> ConcurrencyLimit<S, U> {
    inner_accessors!();
}

impl<S: Clone, U> Clone for ConcurrencyLimit<S, U> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone(), settings: Arc::clone(&self.settings), until: PhantomData }
    }
}

impl<S: fmt::Debug, U> fmt::Debug for ConcurrencyLimit<S, U> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConcurrencyLimit").field("inner", &self.inner).field("settings", &self.settings).finish()
    }
}

impl<S, U, Req> Service<Req> for ConcurrencyLimit<S, U>
where
    S: Service<Req> + Clone,
    S::Error: Reject<U::Response>,
    U: Until<S::Response, BodyPermit>,
{
    type Response = U::Response;
    type Error = S::Error;
    type Future = ResponseFuture<S, Req, U>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Req) -> Self::Future {
        if let Some(permit) = self.settings.gate.try_enter().or_else(|| self.settings.reclaim()) {
            let response = self.inner.call(request);
            return ResponseFuture::new(State::Running { response }, Some(permit));
        }
        self.settings.gate.note_full();
        let settings = Arc::clone(&self.settings);
        let service = self.inner.clone();
        // Drops the service that was made ready, together with its reservations for a call that it will not receive.
        self.inner = self.inner.clone();
        if settings.gate.is_full(settings.places()) {
            return ResponseFuture::new(State::Refused { settings }, None);
        }
        let turn = Turn::new(settings, U::WITH_BODY);
        ResponseFuture::new(State::Waiting { turn, service, request: Some(request) }, None)
    }
}

pin_project! {
    /// The response future of [`ConcurrencyLimit`].
    #[must_use = "futures do nothing unless polled"]
    pub struct ResponseFuture<S, Req, U = ResponseEnd>
    where
        S: Service<Req>,
    {
        #[pin]
        state: State<S, Req>,
        // After the state, and therefore dropped after it: the permit is released once the call is gone.
        permit: Option<Permit>,
        until: PhantomData<fn() -> U>,
    }
}

impl<S: Service<Req>, Req, U> ResponseFuture<S, Req, U> {
    fn new(state: State<S, Req>, permit: Option<Permit>) -> Self {
        Self { state, permit, until: PhantomData }
    }
}

pin_project! {
    #[project = StateProjection]
    enum State<S, Req>
    where
        S: Service<Req>,
    {
        // Neither a permit nor a place in the queue was free.
        Refused { settings: Arc<Settings> },
        // Waiting for a permit, or, with a permit, for its own clone of the service to become ready.
        Waiting {
            turn: Turn,
            service: S,
            request: Option<Req>,
        },
        // The call is in flight.
        Running {
            #[pin]
            response: S::Future,
        },
        // The outcome was returned.
        Done,
    }
}

impl<S, Req, U> Future for ResponseFuture<S, Req, U>
where
    S: Service<Req>,
    S::Error: Reject<U::Response>,
    U: Until<S::Response, BodyPermit>,
{
    type Output = Result<U::Response, S::Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        let ended = ready!(this.state.as_mut().poll(this.permit, cx));
        this.state.set(State::Done);
        let permit = this.permit.take();
        Poll::Ready(match ended {
            Ended::Answered(response) => Ok(U::answer(response, move || permit.map(BodyPermit::new))),
            Ended::Failed(error) => {
                drop(permit);
                Err(error)
            }
            Ended::Rejected(rejection) => S::Error::reject(rejection),
        })
    }
}

enum Ended<R, E> {
    Answered(R),
    Failed(E),
    Rejected(Rejection),
}

impl<R, E> From<Result<R, E>> for Ended<R, E> {
    fn from(outcome: Result<R, E>) -> Self {
        outcome.map_or_else(Self::Failed, Self::Answered)
    }
}

impl<S, Req> State<S, Req>
where
    S: Service<Req>,
{
    fn poll(
        mut self: Pin<&mut Self>,
        permit: &mut Option<Permit>,
        cx: &mut Context<'_>,
    ) -> Poll<Ended<S::Response, S::Error>> {
        loop {
            let response = match self.as_mut().project() {
                StateProjection::Running { response } => {
                    let _held = permit.as_ref().and_then(Permit::gate).map(ConcurrencyLimitHandle::hold);
                    return response.poll(cx).map(Ended::from);
                }
                StateProjection::Refused { settings } => return Poll::Ready(Ended::Rejected(settings.reject())),
                StateProjection::Waiting { turn, service, request } => {
                    if permit.is_none() {
                        match ready!(turn.poll(cx)) {
                            Ok(admitted) => *permit = Some(admitted),
                            Err(rejection) => return Poll::Ready(Ended::Rejected(rejection)),
                        }
                    }
                    if let Err(error) = ready!(service.poll_ready(cx)) {
                        return Poll::Ready(Ended::Failed(error));
                    }
                    request.take().map(|request| service.call(request))
                }
                StateProjection::Done => None,
            };
            let Some(response) = response else {
                panic!("concurrency_limit::ResponseFuture polled after it was ready")
            };
            self.set(State::Running { response });
        }
    }
}

impl<S: Service<Req>, Req, U> fmt::Debug for ResponseFuture<S, Req, U> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match self.state {
            State::Refused { .. } => "refused",
            State::Waiting { .. } => "waiting",
            State::Running { .. } => "running",
            State::Done => "done",
        };
        f.debug_struct("concurrency_limit::ResponseFuture")
            .field("state", &state)
            .field("admitted", &self.permit.is_some())
            .finish()
    }
}
