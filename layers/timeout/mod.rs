//! Limits the time of each call.
//!
//! At the limit, the call is dropped and its cleanup runs. Then the caller receives [`Reason::TimedOut`].
//!
//! The clock starts at the first poll of the response future, not in `call`. It is read only if the service turns out
//! to be pending. A response that is ready in the same poll as the limit wins, and even a limit of zero lets a ready
//! response through. The limit does not cover the wait for the service's readiness. The exception is a layer in
//! between that waits inside its response future (retry, cache): then the readiness of everything inside it is
//! covered.
//!
//! # Response bodies
//!
//! [`until_body_end`](TimeoutLayer::until_body_end) extends the limit to the response's body.
//! [`idle`](TimeoutLayer::idle) limits the time that the body makes its reader wait for each frame. Beyond either
//! limit, the body ends with an error that contains the rejection ([`Rejection::find`]). A body that is not polled
//! does not end: a server whose client does not read must close the connection.
//!
//! # Order
//!
//! Place this layer in a stack twice. Outside the retry it is the total: it covers queueing, all attempts, and the
//! pauses between them, and is not retried. Next to the service it is the attempt timeout: each attempt has its own,
//! and an attempt that times out is retried. The outer limit is the [`Deadline`](crate::Deadline) of everything
//! inside. A limit that would end later than the surrounding one leaves it to that one to end the call, so that a
//! total is never mistaken for an attempt timeout.
//!
//! # External deadlines
//!
//! A deadline that was carried over with [`Deadline::within`](crate::Deadline::within) also ends the call, if no
//! timeout further out enforces it. The reason is [`Reason::DeadlineExceeded`], which is classified as ignored,
//! because the caller may have left the service no time. If the surrounding deadline has already passed, the call is
//! rejected with the same reason and never sent. The inner service then keeps its readiness for the next call.
//!
//! # Cancellation safety
//!
//! Dropping the response future drops the call.
//!
//! # Cost
//!
//! The layer does not require `S: Clone`. A call that is ready at once costs neither a clock read nor a timer. Only a
//! pending body allocates: see [`until_body_end`](TimeoutLayer::until_body_end) and [`idle`](TimeoutLayer::idle).
//!
//! # Examples
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

mod future;
mod idle;
mod in_time;

use self::in_time::BodyLimits;
pub use self::{
    future::{Timed, timeout},
    in_time::InTime,
};
use crate::{
    accessors::inner_accessors,
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

/// Limits the time of each call: see the [module](self).
#[must_use]
pub struct TimeoutLayer<L = Duration, U = ResponseEnd> {
    limit: L,
    body: BodyLimits,
    info: LayerInfo,
    until: PhantomData<fn() -> U>,
}

impl<L> TimeoutLayer<L> {
    /// Creates a layer with a limit for each call: a [`Duration`], or a function of the request that returns one (or
    /// an `Option` of one, where `None` means no limit).
    ///
    /// Any duration is valid. Zero lets only a ready response through; [`Duration::MAX`] never ends a call.
    pub fn new(limit: L) -> Self {
        Self { limit, body: BodyLimits::default(), info: layer_info!("timeout"), until: PhantomData }
    }
}

impl<L, U> TimeoutLayer<L, U> {
    /// Extends the limit to the end of the response's body. For HTTP: an [`http::Response`], or a `reqwest::Response`
    /// with the feature `reqwest`.
    ///
    /// Beyond the limit, reading the body ends with an error. [`Rejection::find`]`(&error)` finds the rejection in it,
    /// for example in the `reqwest::Error` of `response.bytes()`.
    ///
    /// The clock starts at the latest when the response is returned. If a frame is ready when the limit has passed,
    /// it is still yielded; the next one is not. The cost is a clock read for each response with a non-empty body,
    /// and for each frame but the last. A pending body also allocates.
    pub fn until_body_end(mut self) -> TimeoutLayer<L, BodyEnd> {
        self.body.covered = true;
        self.with_body()
    }

    /// Limits each wait for a frame of the response's body to `idle`. For HTTP.
    ///
    /// The clock starts when the body is polled for a frame and has none. It pauses when the body wakes its reader and
    /// resumes when the reader polls again, so the time of a slow reader never counts. The limit works with or
    /// without [`until_body_end`](Self::until_body_end): a download may take any time as long as it makes progress.
    /// Each frame that the reader waits for costs clock reads and a second poll of the body; such a body allocates
    /// twice.
    ///
    /// Any duration is valid. With zero, each frame must be ready at once; [`Duration::MAX`] never ends a wait.
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
pub /* not a Service? see ziggurat::docs::it_does_not_compile */ struct Timeout<S, L = Duration, U = ResponseEnd> {
    inner: S,
    layer: TimeoutLayer<L, U>,
}

impl<S, L, U> Timeout<S, L, U> {
    inner_accessors!();
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

    #[inline]
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    #[inline]
    fn call(&mut self, request: Req) -> Self::Future {
        let limit = self.layer.limit.get(&request).map_or(Limit::NONE, Limit::after);
        let (mut own, mut inside) = (limit, Limit::NONE);
        let entered = enter(&mut own, &mut inside);
        let outer = *entered.outer;
        if is_too_late(outer) {
            return ResponseFuture::new(Limited::too_late(), &self.layer);
        }
        // Next to a deadline that is already running, this limit had to start in order to be compared with it. That
        // start is for `call` alone.
        let too_early = own != limit;
        let response = self.inner.call(request);
        drop(entered);
        // If code inside asked for the deadline, that started both limits.
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

    #[inline]
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
