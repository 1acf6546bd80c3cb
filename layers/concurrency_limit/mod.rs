//! Limits the number of calls in flight.
//!
//! A call holds a permit from its admission until its response future completes or is dropped. All services that one
//! layer value makes, and all their clones, share its permits: all routes of a router, and all connections of a
//! server. A call that finds no free permit waits in its response future. Waiting calls are admitted in the order in
//! which they were first polled, or by [priority](self#priorities).
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
//! # Priorities
//!
//! With [`priority`](ConcurrencyLimitLayer::priority), calls of a lower [`Priority`] are shed before those of a higher
//! one:
//!
//! ```
//! use http::Request;
//! use ziggurat::concurrency_limit::{ConcurrencyLimitLayer, Priority};
//!
//! let limit = ConcurrencyLimitLayer::new(100)
//!     .priority(|request: &Request<String>| match request.uri().path() {
//!         "/health" => Priority::Exempt,
//!         "/pay" => Priority::High,
//!         path if path.starts_with("/export") => Priority::Low,
//!         _ => Priority::Normal,
//!     })
//!     .reserve(Priority::High, 0.2);
//! # let _ = limit.layer(tower::service_fn(|request: Request<String>| async move {
//! #     Ok::<_, std::convert::Infallible>(http::Response::new(request.into_body()))
//! # }));
//! # use tower::Layer;
//! ```
//!
//! - Permits go to the oldest waiting call of the highest priority. Within a priority, the queue is FIFO. A call that
//!   joins the queue expects to wait for the calls of its own priority and above only.
//! - Where no more calls may wait, because the service is overloaded or because of `max_waiting`, a new call takes the
//!   place of the newest one of the lowest priority, if that is below its own. The latter is rejected at once.
//! - [`reserve`](ConcurrencyLimitLayer::reserve) keeps a share of the permits for the higher priorities. Without a
//!   queue (`max_waiting(0)`), only a reserve protects them: otherwise the next call takes a free permit, whatever its
//!   priority.
//! - An [`Exempt`](Priority::Exempt) call passes the limit as if it were not there.
//! - A circuit's probe comes before all others, whatever its priority.
//!
//! The order is strict: if calls of `High` and `Normal` are more than the service can serve, calls of `Low` are not
//! served at all. A decision takes the time of a lookup in the queue, whatever the number of calls. A call that is
//! admitted at once pays for the function that returns its priority, and for a few reads if there is a reserve.
//!
//! # Retry-After
//!
//! A rejection carries an estimate of when a retry is worthwhile: the recent average interval between two released
//! permits, times the number of waiting calls of its priority and above. Before the first measurement, the limit
//! assumes that a call takes 100 ms. If no permit was released lately, the estimate is at least the time since then. It
//! is at least one millisecond and at most one minute. Over HTTP, it is rounded up to whole seconds.
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
//! [`Adaptive`] says which calls count, and how the limit follows them. A call that is measured reads the clock twice.
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
//! A call that is admitted at once clones nothing, takes no lock, reads no clock, and, apart from the first call of a
//! thread, allocates nothing. A call that finds no permit free reads the clock once or twice, and allocates if it
//! waits. All calls count in one word, twice each: a limit is exact.
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
mod future;
mod gate;
mod held;
mod limiter;
mod pace;
mod patience;
mod priority;
mod queue;
mod seats;
mod turn;

use std::{
    any::type_name,
    fmt,
    marker::PhantomData,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use tower_layer::Layer;
use tower_service::Service;

pub(crate) use self::adaptive::Pilot;
pub use self::{
    adaptive::{Adaptive, Fixed, Measured, MeasuredFuture, Steered},
    bodies::BodyPermit,
    future::ResponseFuture,
    gate::ConcurrencyLimitHandle,
    priority::{ByRequest, Equal, Prioritize, Priority},
};
use self::{
    gate::{Permit, Permits},
    patience::Patience,
    priority::Rank,
    turn::Turn,
};
use crate::{
    accessors::inner_accessors,
    ambient::{self, Deadline, Urgent},
    body::{BodyEnd, ResponseEnd, Until},
    clock,
    keep::keep_while,
    outcome::{Reason, Reject, Rejection},
    telemetry::{LayerEvent, LayerInfo, layer_info, layer_setters},
};

/// Limits the number of calls in flight: see the [module](self).
///
/// Two layer values share nothing; clones of one value share everything.
#[doc(alias = "bulkhead")]
#[doc(alias = "semaphore")]
#[must_use]
pub struct ConcurrencyLimitLayer<U = ResponseEnd, A = Fixed, P = Equal> {
    settings: Settings,
    steered: A,
    priority: P,
    until: PhantomData<fn() -> U>,
}

#[derive(Debug, Clone)]
struct Settings {
    gate: ConcurrencyLimitHandle,
    permits: Permits,
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
        Self::with(ConcurrencyLimitHandle::new(limit), Fixed)
    }

    /// Lets the limit follow the capacity of the service: see [adaptive limits](self#adaptive-limits).
    ///
    /// The handle shows the current limit. A limit that is set there lasts until the next step, or until
    /// bodies hold it whole.
    pub fn adaptive<C>(adaptive: Adaptive<C>) -> ConcurrencyLimitLayer<ResponseEnd, Steered<C>> {
        let (gate, steered) = adaptive.gate();
        ConcurrencyLimitLayer::with(gate, steered)
    }
}

impl<A> ConcurrencyLimitLayer<ResponseEnd, A> {
    fn with(gate: ConcurrencyLimitHandle, steered: A) -> Self {
        let permits = gate.permits();
        let settings = Settings { gate, permits, max_wait: None, info: layer_info!("concurrency_limit") };
        Self { settings, steered, priority: Equal, until: PhantomData }
    }
}

impl<A, P> ConcurrencyLimitLayer<ResponseEnd, A, P> {
    /// Holds permits until the response's body has ended, failed, or was dropped, instead of until the response is
    /// returned. For HTTP.
    ///
    /// Servers need this, because their work is the body. The body becomes a [`GuardBody`](crate::body::GuardBody).
    /// An empty body releases the permit at once, and so does the body of a 101: upgraded connections are not
    /// counted.
    pub fn until_body_end(self) -> ConcurrencyLimitLayer<BodyEnd, A, P> {
        let Self { settings, steered, priority, until: _ } = self;
        ConcurrencyLimitLayer { settings, steered, priority, until: PhantomData }
    }
}

impl<U, C, P> ConcurrencyLimitLayer<U, Steered<C>, P> {
    /// Replaces the classifier, as [`Adaptive::classify`] does.
    pub(crate) fn classify<D>(self, classify: D) -> ConcurrencyLimitLayer<U, Steered<D>, P> {
        let Self { settings, steered, priority, until } = self;
        ConcurrencyLimitLayer { settings, steered: steered.classify(classify), priority, until }
    }

    /// Returns the pilot, which changes the bounds of the limit later.
    pub(crate) fn pilot(&self) -> Arc<Pilot> {
        self.steered.pilot()
    }
}

impl<A, P> ConcurrencyLimitLayer<BodyEnd, A, P> {
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

impl<U, A, F> ConcurrencyLimitLayer<U, A, ByRequest<F>> {
    /// Reserves a `share` of the limit for calls of this priority and above: a call below it is admitted only while
    /// more permits than that are free. The default is none.
    ///
    /// The number of reserved permits follows a limit that changes. It is rounded up, but all but one at most: at least
    /// one permit is for all. Two shares add up: with 0.2 for `High` and 0.3 for `Normal`, calls of `Low` are admitted
    /// while less than half of the limit is in use. Reserved permits are idle while no call needs them.
    ///
    /// Like the limit, this setting is shared by all clones of this layer.
    ///
    /// # Panics
    ///
    /// Panics if `priority` is neither `Normal` nor `High`, if `share` is not between 0 and 1, or if both shares add up
    /// to more than 1.
    #[track_caller]
    pub fn reserve(self, priority: Priority, share: f64) -> Self {
        self.settings.gate.set_reserve(priority, share);
        self
    }
}

impl<U, A, P> ConcurrencyLimitLayer<U, A, P> {
    /// Gives each call a [`Priority`]: the same for all, or a function of the request that returns it (or an `Option`
    /// of it, where `None` means `Normal`). See [priorities](self#priorities).
    ///
    /// The function runs in `call`, for every call. If it panics, the panic propagates, and no permit is held. Calls of
    /// a clone of this layer that has no such function count as `High`.
    pub fn priority<F>(self, priority: F) -> ConcurrencyLimitLayer<U, A, ByRequest<F>> {
        let Self { settings, steered, priority: _, until } = self;
        ConcurrencyLimitLayer { settings, steered, priority: ByRequest(priority), until }
    }

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
    /// Returns the settings for a service and all of its clones.
    fn for_service(&self) -> Arc<Self> {
        let gate = self.gate.clone();
        keep_while(move || gate.in_flight() > 0);
        Arc::new(self.clone())
    }

    /// The number of calls that may wait: none if `max_wait` is zero. An urgent call may wait wherever any call may.
    fn places(&self, rank: Rank) -> usize {
        let places = if self.max_wait == Some(Duration::ZERO) { 0 } else { self.gate.max_waiting() };
        if places > 0 && rank == Rank::Urgent { usize::MAX } else { places }
    }

    /// How long a call of the caller may wait.
    fn patience(&self, outlasts_deadline: bool) -> Patience {
        let (now, deadline) = (clock::now(), Deadline::current().map(Deadline::instant));
        Patience { now, deadline, max_wait: self.max_wait, outlasts_deadline }
    }

    /// Takes over a permit from a body that made no progress for too long.
    #[cold]
    fn reclaim(&self, rank: Rank) -> Option<Permit> {
        let permits = self.gate.reclaim();
        if permits == 0 {
            return None;
        }
        self.info.emit(LayerEvent::Reclaimed { permits });
        self.gate.try_enter_as(rank)
    }

    #[cold]
    fn awaits_itself(&self) -> Rejection {
        self.info.reject(Reason::Recursive)
    }

    fn reject(&self, rank: Rank) -> Rejection {
        let reason = Reason::Overloaded { limit: self.gate.usable(rank) };
        self.info.reject_with_retry_after(reason, self.gate.retry_after(clock::now(), rank))
    }
}

// Manual impls, here and for the service: `U` need not be `Clone` or `Debug`.
impl<U, A: Clone, P: Clone> Clone for ConcurrencyLimitLayer<U, A, P> {
    #[inline]
    fn clone(&self) -> Self {
        let Self { settings, steered, priority, until } = self;
        Self { settings: settings.clone(), steered: steered.clone(), priority: priority.clone(), until: *until }
    }
}

impl<U, A, P> fmt::Debug for ConcurrencyLimitLayer<U, A, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConcurrencyLimitLayer")
            .field("settings", &self.settings)
            .field("adaptive", &type_name::<A>())
            .field("priority", &type_name::<P>())
            .field("until", &type_name::<U>())
            .finish()
    }
}

impl<S, U, P: Clone> Layer<S> for ConcurrencyLimitLayer<U, Fixed, P> {
    type Service = ConcurrencyLimit<S, U, P>;

    fn layer(&self, inner: S) -> Self::Service {
        let (settings, priority) = (self.settings.for_service(), self.priority.clone());
        ConcurrencyLimit { inner, settings, priority, until: PhantomData }
    }
}

impl<S, U, C: Clone, P: Clone> Layer<S> for ConcurrencyLimitLayer<U, Steered<C>, P> {
    type Service = ConcurrencyLimit<Measured<S, C>, U, P>;

    fn layer(&self, inner: S) -> Self::Service {
        let (settings, priority) = (self.settings.for_service(), self.priority.clone());
        ConcurrencyLimit { inner: self.steered.measure(inner), settings, priority, until: PhantomData }
    }
}

/// The service of [`ConcurrencyLimitLayer`].
pub /* not a Service? see ziggurat::docs::it_does_not_compile */ struct ConcurrencyLimit<S, U = ResponseEnd, P = Equal>
{
    inner: S,
    // Shared by all clones: a reference count is cheaper than a copy of the settings.
    settings: Arc<Settings>,
    priority: P,
    until: PhantomData<fn() -> U>,
}

impl<S, U, P> ConcurrencyLimit<S, U, P> {
    inner_accessors!();
}

impl<S, U, P> ConcurrencyLimit<S, U, P> {
    /// Makes a call that has found no permit free.
    #[cold]
    fn call_later<Req>(&mut self, request: Req, rank: Rank) -> ResponseFuture<S, Req, U>
    where
        S: Service<Req> + Clone,
        U: Until<S::Response, BodyPermit>,
    {
        if let Some(permit) = self.settings.reclaim(rank) {
            return ResponseFuture::running(self.inner.call(request), Some(permit));
        }
        let rank = if ambient::get::<Urgent>().0 { Rank::Urgent } else { rank };
        let (settings, service) = (Arc::clone(&self.settings), self.inner.clone());
        settings.gate.note_full();
        settings.gate.make_room(rank);
        // Drops the service that was made ready, together with its reservations for a call that it will not receive.
        self.inner = self.inner.clone();
        if settings.gate.is_full(settings.places(rank), rank) {
            return ResponseFuture::refused(settings, rank);
        }
        ResponseFuture::waiting(Turn::new(settings, rank, U::WITH_BODY), service, request)
    }
}

impl<S: Clone, U, P: Clone> Clone for ConcurrencyLimit<S, U, P> {
    #[inline]
    fn clone(&self) -> Self {
        let Self { inner, settings, priority, until } = self;
        Self { inner: inner.clone(), settings: Arc::clone(settings), priority: priority.clone(), until: *until }
    }
}

impl<S: fmt::Debug, U, P> fmt::Debug for ConcurrencyLimit<S, U, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConcurrencyLimit").field("inner", &self.inner).field("settings", &self.settings).finish()
    }
}

impl<S, U, P, Req> Service<Req> for ConcurrencyLimit<S, U, P>
where
    S: Service<Req> + Clone,
    S::Error: Reject<U::Response>,
    U: Until<S::Response, BodyPermit>,
    P: Prioritize<Req>,
{
    type Response = U::Response;
    type Error = S::Error;
    type Future = ResponseFuture<S, Req, U>;

    #[inline]
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    #[inline]
    fn call(&mut self, request: Req) -> Self::Future {
        let (permits, priority) = (&self.settings.permits, self.priority.priority(&request));
        if priority == Priority::Exempt {
            let response = self.settings.gate.exempt(|| self.inner.call(request));
            return ResponseFuture::running(response, None);
        }
        let rank = Rank::new(priority);
        match if P::EQUAL { permits.try_enter() } else { permits.try_enter_as(rank) } {
            Some(permit) => ResponseFuture::running(self.inner.call(request), Some(permit)),
            None => self.call_later(request, rank),
        }
    }
}
