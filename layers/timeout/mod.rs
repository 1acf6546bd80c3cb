//! Gives up on a service that does not answer in time.
//!
//! At the limit the call is dropped, its clean-up runs, and only then the caller gets [`Reason::TimedOut`].
//!
//! **Its clock** starts at the first poll of the response future, not at `call`; it is read only when the service turns out to
//! be pending. A response that is ready in the same poll as the limit wins, and even a limit of zero lets a ready response
//! through. The wait for the service's readiness is not covered, unless a layer that waits inside its response future (retry,
//! cache) stands between: then everything beneath it is.
//!
//! **The response's body** is covered with [`until_body_end`](TimeoutLayer::until_body_end), and with [`idle`](TimeoutLayer::idle) the
//! time that it makes the reader wait for each frame. Past either it ends with an error, in which the rejection lies
//! ([`Rejection::find`]). A body that nobody polls is not ended by anyone: a server whose client does not read has to close the connection.
//!
//! **Where it belongs.** Twice in a stack: as a total outside of the retry, where it covers queueing, all attempts and the pauses
//! between them, and is not retried; and as an attempt's limit next to the service, where each attempt has its own, and one that
//! times out is retried. The outer limit is the [`Deadline`](crate::Deadline) of everything inside: a limit that would end later than the
//! surrounding one leaves it to that one to end the call, so that a total is never mistaken for an attempt.
//!
//! **A deadline from outside.** A timeout ends its call by a deadline that was carried over ([`Deadline::within`](crate::Deadline::within)) where
//! nothing further out does, with [`Reason::DeadlineExceeded`]: its class is ignored, for the caller may have left the service no time.
//! A call whose surrounding deadline has passed already is rejected with the same reason and never sent. The service below keeps the
//! readiness that it was asked for until its next call.
//!
//! **Cancellation.** Dropping the response future drops the call.
//!
//! It needs no `S: Clone`. A call that is ready at once costs no clock read and no timer. Nothing is
//! allocated, but for a body that is pending: see [`until_body_end`](TimeoutLayer::until_body_end) and [`idle`](TimeoutLayer::idle).
//!
//! ```
//! use std::time::Duration;
//! use tower::{ServiceBuilder, ServiceExt, service_fn};
//! use ziggurat::{Error, timeout::TimeoutLayer};
//!
//! # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() {
//! let service = ServiceBuilder::new()
//!     .layer(TimeoutLayer::new(Duration::from_secs(2)))
//!     .map_err(Error::Service)
//!     .service(service_fn(|seconds: u64| async move {
//!         tokio::time::sleep(Duration::from_secs(seconds)).await;
//!         Ok::<_, std::io::Error>("completed")
//!     }));
//!
//! assert_eq!(service.clone().oneshot(1).await.unwrap(), "completed");
//!
//! let outcome = service.oneshot(5).await;
//! assert!(ziggurat::rejection(&outcome).unwrap().is_timed_out());
//! # }
//! ```

use std::{
    any::type_name,
    fmt,
    future::Future,
    marker::PhantomData,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

mod idle;
mod in_time;

use self::in_time::BodyLimits;
pub use self::in_time::InTime;
use crate::{
    ambient::{
        self, Limit,
        deadline::is_too_late,
        limited::{Clock, Expired, Limited, enter, started},
    },
    body::{BodyEnd, ResponseEnd, Until},
    outcome::{Reason, Reject, Rejection},
    setting::Setting,
    telemetry::{LayerInfo, layer_info, layer_setters},
};

/// Gives up on a service that does not answer in time: see the [module](self).
#[must_use]
pub struct TimeoutLayer<L = Duration, U = ResponseEnd> {
    limit: L,
    body: BodyLimits,
    info: LayerInfo,
    until: PhantomData<fn() -> U>,
}

impl<L> TimeoutLayer<L> {
    /// A limit for each call: a [`Duration`], or a function of the request that returns one (or an `Option` of one, where `None`
    /// means no limit).
    ///
    /// Every duration is good: zero lets only a ready response through, and [`Duration::MAX`] never ends.
    pub fn new(limit: L) -> Self {
        Self { limit, body: BodyLimits::default(), info: layer_info!("timeout"), until: PhantomData }
    }
}

impl<L, U> TimeoutLayer<L, U> {
    /// For HTTP: the limit covers the response's body too, to its end.
    ///
    /// Its clock then starts at the latest when the response is there. A frame that is ready when the limit has passed is still
    /// handed out, the one after it is not. It costs a clock read for each response whose body is not empty, and for each frame but the
    /// last; and an allocation for a body that is pending.
    pub fn until_body_end(mut self) -> TimeoutLayer<L, BodyEnd> {
        self.body.covered = true;
        self.with_body()
    }

    /// For HTTP: the response's body may make its reader wait this long for a frame, each time.
    ///
    /// The clock starts when the body is asked for a frame and has none. It stands still from when the body wakes its reader until the
    /// reader asks again: the time of a reader that is slow to ask never counts. The limit goes with or without
    /// [`until_body_end`](Self::until_body_end): a download may take as long as it likes if it goes on. For each frame that the reader has to
    /// wait for, it costs clock reads and a second look at the body; and two allocations for such a body.
    ///
    /// Every duration is good: with zero each frame has to be ready at once, and [`Duration::MAX`] never ends.
    pub fn idle(mut self, idle: Duration) -> TimeoutLayer<L, BodyEnd> {
        self.body.idle = Some(idle);
        self.with_body()
    }

    fn with_body(self) -> TimeoutLayer<L, BodyEnd> {
        let Self { limit, body, info, until: _ } = self;
        TimeoutLayer { limit, body, info, until: PhantomData }
    }

    layer_setters!();
}

impl<L: Clone, U> Clone for TimeoutLayer<L, U> {
    fn clone(&self) -> Self {
        Self { limit: self.limit.clone(), body: self.body, info: self.info.clone(), until: PhantomData }
    }
}

impl<S, L: Clone, U> Layer<S> for TimeoutLayer<L, U> {
    type Service = Timeout<S, L, U>;

    fn layer(&self, inner: S) -> Self::Service {
        let layer = self.clone();
        Timeout { inner, layer }
    }
}

impl<L, U> fmt::Debug for TimeoutLayer<L, U> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TimeoutLayer")
            .field("limit", &type_name::<L>())
            .field("body", &self.body)
            .field("info", &self.info)
            .finish()
    }
}

/// The service of [`TimeoutLayer`].
pub struct Timeout<S, L = Duration, U = ResponseEnd> /* not a Service? see ziggurat::Reject, "It does not compile" */ {
    inner: S,
    layer: TimeoutLayer<L, U>,
}

impl<S: Clone, L: Clone, U> Clone for Timeout<S, L, U> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone(), layer: self.layer.clone() }
    }
}

impl<S: fmt::Debug, L, U> fmt::Debug for Timeout<S, L, U> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Timeout").field("inner", &self.inner).field("layer", &self.layer).finish()
    }
}

impl<S, L, U, Req> Service<Req> for Timeout<S, L, U>
where
    S: Service<Req>,
    S::Error: Reject<U::Response>,
    L: Setting<Req, Duration>,
    U: Until<S::Response, InTime>,
{
    type Response = U::Response;
    type Error = S::Error;
    type Future = ResponseFuture<S::Future, U>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Req) -> Self::Future {
        let limit = self.layer.limit.get(&request).map_or(Limit::NONE, Limit::after);
        let (mut own, mut inside) = (limit, Limit::NONE);
        let entered = enter(&mut own, &mut inside);
        let outer = *entered.outer;
        if is_too_late(outer) {
            return ResponseFuture::new(Limited::too_late(), &self.layer);
        }
        // Beside a deadline that runs already, this limit had to start to be compared with it: for `call` alone.
        let too_early = own != limit;
        let response = self.inner.call(request);
        drop(entered);
        // What was left in place: if somebody inside asked for the deadline, that was the start of both.
        if let Some(start) = started(own.min(outer), inside) {
            own = own.started(start);
            ambient::set(outer.started(start));
        }
        if too_early {
            own = limit;
        }
        ResponseFuture::new(Limited::new(response, Clock::new(limit, own)), &self.layer)
    }
}

pin_project! {
    /// The response future of [`Timeout`].
    #[must_use = "futures do nothing unless polled"]
    pub struct ResponseFuture<F, U = ResponseEnd> {
        #[pin]
        response: Limited<F>,
        body: BodyLimits,
        info: LayerInfo,
        until: PhantomData<fn() -> U>,
    }
}

impl<F, U> ResponseFuture<F, U> {
    #[inline]
    fn new<L>(response: Limited<F>, layer: &TimeoutLayer<L, U>) -> Self {
        Self { response, body: layer.body, info: layer.info.clone(), until: PhantomData }
    }
}

impl<F, U, R, E> Future for ResponseFuture<F, U>
where
    F: Future<Output = Result<R, E>>,
    E: Reject<U::Response>,
    U: Until<R, InTime>,
{
    type Output = Result<U::Response, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        Poll::Ready(match ready!(this.response.as_mut().poll(cx)) {
            Ok(outcome) => outcome.map(|response| {
                let clock = this.response.clock();
                U::answer(response, || Some(InTime::new(*this.body, clock, this.info.clone())))
            }),
            Err(expired) => E::reject(reject(this.info, expired)),
        })
    }
}

#[cold]
fn reject(info: &LayerInfo, expired: Expired) -> Rejection {
    info.reject(match expired {
        Expired::Limit(limit) => Reason::TimedOut { limit },
        Expired::Deadline { after } => Reason::DeadlineExceeded { after },
    })
}

impl<F, U> fmt::Debug for ResponseFuture<F, U> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("timeout::ResponseFuture").field("limit", &self.response.clock().limit.duration()).finish()
    }
}
