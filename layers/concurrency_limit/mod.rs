//! Lets only so many calls be in flight at once; the others wait their turn.
//!
//! A call holds a permit from the moment it is admitted until its response future is done or dropped. All services that one
//! layer value makes, and all their clones, share its permits: all routes of a router and all connections of a server.
//! Whoever finds none free waits in the response future, and is admitted in the order of the first polls.
//!
//! **It counts** calls, not services: one that was polled ready and is not called holds neither a permit nor a place in the
//! queue. The permit is back before the caller sees the answer, and after the call was dropped. The response's body is not counted,
//! unless the layer is told to hold permits [`until_body_end`](ConcurrencyLimitLayer::until_body_end).
//!
//! **How long one waits** is up to the surrounding [`TimeoutLayer`](crate::timeout::TimeoutLayer), which drops what waits too
//! long; and up to [`max_waiting`](ConcurrencyLimitLayer::max_waiting) and [`max_wait`](ConcurrencyLimitLayer::max_wait), past which
//! the call is answered with [`Reason::Overloaded`]. The clock of the latter starts when the call takes its place in the queue: at its
//! first poll.
//!
//! **When to come back.** A rejection says it from what the limit saw: the time in which one permit after the other came free lately,
//! times the number of those who wait already. It learns that from rejection to rejection; as long as it knows nothing, it takes a
//! call to last 100 ms. If no permit came free since the last rejection, it says at least so long. It never says less than a
//! millisecond, nor more than a minute; over HTTP it is whole seconds, rounded up.
//!
//! **Where it belongs.** Inside of retry and circuit breaker, and outside of the attempt's timeout: then a retry that sleeps
//! between two attempts holds no permit, an attempt's time is not spent in the queue, and a call that an open circuit refuses
//! needs no permit. Outside of the retry, a permit would be held for all attempts and the pauses between them; inside of
//! the attempt's timeout, a wait in the queue would count as the service being slow, and be retried. On a server it stands
//! outside of all that costs something, usually with `max_waiting(0)`.
//!
//! **A call that waits for itself.** A handler that calls itself through its own limit, while the calls around it hold all of its permits,
//! can never get one: it is rejected with [`Reason::Recursive`]. That is seen where the inner call is polled by the outer one. A handler
//! that spawns a task which calls, and waits for it, is not seen, and waits until a limit of time ends it.
//!
//! **Cancellation.** Dropping the response future gives back the permit, or the place in the queue, or passes on the permit that
//! arrived and was not noticed yet. So does a panic. A response future that nobody polls any more, but that is kept, keeps what
//! it has. A circuit breaker outside does not hold it against the service if a call was still waiting here when it was dropped.
//!
//! It needs `S: Clone`: a call that has to wait, or is rejected, gives back the readiness of the service that it was called on,
//! or it would keep for itself what that service has reserved, and makes a clone ready once it is admitted. A call that is
//! admitted at once clones and allocates nothing, takes no lock and reads no clock.
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

mod bodies;
mod gate;
mod held;
mod pace;
mod seats;

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

use self::gate::{Entry, Permit, Waiter};
pub use self::{bodies::BodyPermit, gate::ConcurrencyLimitHandle};
use crate::{
    ambient::{self, Unsent, Urgent},
    body::{BodyEnd, ResponseEnd, Until},
    clock::{self, Sleep},
    outcome::{Reason, Reject, Rejection},
    telemetry::{LayerEvent, LayerInfo, layer_info, layer_setters},
};

/// Lets only so many calls be in flight at once: see the [module](self).
///
/// Two layer values share nothing; clones of one value share everything.
#[doc(alias = "bulkhead")]
#[doc(alias = "semaphore")]
#[must_use]
pub struct ConcurrencyLimitLayer<U = ResponseEnd> {
    settings: Settings,
    until: PhantomData<fn() -> U>,
}

#[derive(Debug, Clone)]
struct Settings {
    gate: ConcurrencyLimitHandle,
    max_wait: Option<Duration>,
    info: LayerInfo,
}

impl ConcurrencyLimitLayer {
    /// At most `limit` calls in flight; as many wait as come, for as long as the surrounding deadline lets them.
    ///
    /// A limit above 8,388,607 is taken as that. When 1,048,575 wait, the next one is rejected.
    ///
    /// # Panics
    ///
    /// If `limit` is zero: nothing could ever pass.
    #[track_caller]
    pub fn new(limit: usize) -> Self {
        let gate = ConcurrencyLimitHandle::new(limit);
        let settings = Settings { gate, max_wait: None, info: layer_info!("concurrency_limit") };
        Self { settings, until: PhantomData }
    }

    /// For HTTP: a call holds its permit until the response's body has ended, failed or was dropped, and not only until the response
    /// is there. That is what a server wants, whose work is the body.
    ///
    /// The body becomes a [`GuardBody`](crate::body::GuardBody). An empty one gives the permit back at once, also that of a 101: a
    /// connection that was upgraded is not counted.
    pub fn until_body_end(self) -> ConcurrencyLimitLayer<BodyEnd> {
        ConcurrencyLimitLayer { settings: self.settings, until: PhantomData }
    }
}

impl ConcurrencyLimitLayer<BodyEnd> {
    /// A body that has handed out no frame for this long loses its permit to a call that finds none free. Never, if it is not set.
    ///
    /// That is for servers: a client that does not read its response would hold a permit for as long as its connection lasts. The body
    /// itself goes on, uncounted, and gives back nothing at its end; the connection is the server's business. A body whose service is slow to
    /// give a frame is treated alike. The permits of all such bodies are reclaimed when a call arrives and finds none, so nothing is
    /// reclaimed while calls only wait. It costs a clock read for each body that is not empty, and for each of its frames but the last.
    ///
    /// Like the limit it belongs to the gate that all clones of this layer share. Any duration is valid; it counts in milliseconds.
    pub fn reclaim_after(self, after: Duration) -> Self {
        self.settings.gate.set_reclaim_after(after);
        self
    }
}

impl<U> ConcurrencyLimitLayer<U> {
    /// At most this many calls wait for a permit; the next one is rejected at once. Zero sheds every call that finds no permit.
    ///
    /// Like the limit it belongs to the gate that all clones of this layer share.
    pub fn max_waiting(self, max_waiting: usize) -> Self {
        self.settings.gate.set_max_waiting(max_waiting);
        self
    }

    /// A call that has waited this long for a permit is rejected.
    ///
    /// Every duration is good: with zero nobody waits, and [`Duration::MAX`] never ends.
    pub fn max_wait(mut self, max_wait: Duration) -> Self {
        self.settings.max_wait = Some(max_wait);
        self
    }

    layer_setters!(settings.info);

    /// A handle to the live state, to look at, and to change the limits.
    #[must_use]
    pub fn handle(&self) -> ConcurrencyLimitHandle {
        self.settings.gate.clone()
    }
}

impl Settings {
    /// How many may wait; where no time is given to wait, none. An urgent call finds a place wherever one may wait at all.
    fn places(&self) -> usize {
        let places = if self.max_wait == Some(Duration::ZERO) { 0 } else { self.gate.max_waiting() };
        if places > 0 && ambient::get::<Urgent>().0 { usize::MAX } else { places }
    }

    /// A permit of a body that made no progress for too long.
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

// By hand, and so for the service: when a permit is given back need not be Clone or Debug for this.
impl<U> Clone for ConcurrencyLimitLayer<U> {
    fn clone(&self) -> Self {
        Self { settings: self.settings.clone(), until: PhantomData }
    }
}

impl<U> fmt::Debug for ConcurrencyLimitLayer<U> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConcurrencyLimitLayer")
            .field("settings", &self.settings)
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

/// The service of [`ConcurrencyLimitLayer`].
pub struct ConcurrencyLimit<S, U = ResponseEnd> /* not a Service? see ziggurat::Reject, "It does not compile" */ {
    inner: S,
    // Shared by all clones: one counter is cheaper than a copy of it all.
    settings: Arc<Settings>,
    until: PhantomData<fn() -> U>,
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
        let settings = Arc::clone(&self.settings);
        let service = self.inner.clone();
        // The one that was made ready is dropped, and with it what it reserved for a call that it will not get.
        self.inner = self.inner.clone();
        if settings.gate.is_full(settings.places()) {
            return ResponseFuture::new(State::Refused { settings }, None);
        }
        let turn = Turn { settings, place: None, timer: None, admitted: false };
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
        // After the state, and so dropped after it: the permit is back when the call is gone, not before.
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
        // There was no permit, and no place to wait for one.
        Refused { settings: Arc<Settings> },
        // It waits for its turn, or has its permit and waits for its own clone of the service to be ready.
        Waiting {
            turn: Turn,
            service: S,
            request: Option<Req>,
        },
        // It is in flight.
        Running {
            #[pin]
            response: S::Future,
        },
        // It was answered.
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
            let Some(response) = response else { panic!("polled after it was answered") };
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

/// A call's wait for its permit. It takes its place in the queue at the first poll, and its clock starts then.
struct Turn {
    settings: Arc<Settings>,
    place: Option<Waiter>,
    // Boxed, so that a call that does not wait is not larger for it.
    timer: Option<Pin<Box<Sleep>>>,
    admitted: bool,
}

impl Drop for Turn {
    fn drop(&mut self) {
        // If the whole call is dropped with it: so far it was nobody's but ours.
        if !self.admitted {
            ambient::set(Unsent(true));
        }
    }
}

impl Turn {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<Permit, Rejection>> {
        let admitted = match &mut self.place {
            Some(place) => place.poll(cx.waker()),
            None => match self.settings.gate.enter(self.settings.places(), ambient::get::<Urgent>().0, cx.waker()) {
                Entry::Admitted(permit) => Poll::Ready(permit),
                Entry::Full => return Poll::Ready(Err(self.settings.reject())),
                Entry::Queued(place) if self.settings.gate.is_all_held_here() => {
                    drop(place);
                    return Poll::Ready(Err(self.settings.awaits_itself()));
                }
                Entry::Queued(place) => {
                    self.place = Some(place);
                    self.settings.info.emit(LayerEvent::Queued);
                    let end = self.settings.max_wait.and_then(|max_wait| clock::now().checked_add(max_wait));
                    self.timer = end.map(|end| Box::pin(clock::sleep_until(end)));
                    Poll::Pending
                }
            },
        };
        if let Poll::Ready(permit) = admitted {
            self.timer = None;
            self.admitted = true;
            return Poll::Ready(Ok(permit));
        }
        // A circuit breaker outside looks again when the call has its turn.
        ambient::set(Unsent(true));
        let Some(timer) = &mut self.timer else { return Poll::Pending };
        ready!(timer.as_mut().poll(cx));
        self.place = None;
        Poll::Ready(Err(self.settings.reject()))
    }
}
