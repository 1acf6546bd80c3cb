//! Rejects callers that stall while they send a request body, and excludes their time from the limits inside.
//!
//! If a request's body arrives while the service processes the request (a reverse proxy, an upload), two faults of
//! the caller look like faults of the service: the caller stops sending, or sends slowly. This layer
//!
//! - ends a body that makes the service wait longer than `idle` for a frame: it drops the call and rejects it with
//!   [`Reason::UploadStalled`] (HTTP 408);
//! - drops and rejects the call if its body fails, because the caller disconnected, with [`Reason::UploadFailed`]
//!   (HTTP 400);
//! - excludes the time in which the service waits for the caller's bytes from every limit *inside* this layer. An
//!   upload may take an hour under an attempt timeout of 10 s, as long as it makes progress. The limit still ends a
//!   call if the service itself takes 10 s.
//!
//! Both rejections are [`Class::Ignored`](crate::Class::Ignored): no retry, circuit breaker, or budget counts them.
//! The same is true of a call that is dropped while it waits for the caller's bytes (by an outer total, or because
//! the caller disconnects), and of an error that the service returns after the body has failed.
//!
//! # Order
//!
//! Place the layer outside the retry, the circuit breaker, and the limits from which the caller's time is excluded,
//! and therefore around a whole [`ClientStack`](crate::stack::ClientStack). Place it inside a total that covers the
//! caller's time too. In a reverse proxy, it is the outermost layer of the stack around the client, inside the layers
//! that respond to the proxy's own callers:
//! `ServerStack > RejectionResponseLayer > UploadLayer > ReplayLayer > ClientStack > client`.
//!
//! A server's limit outside the layer, such as that of `ServerStack`, covers the upload: omit it, or set it to the
//! longest upload.
//!
//! # Waiting time
//!
//! The service waits for the caller from the moment it polls the body for a frame and finds none. A service that does
//! not poll, because it is slow to process the data it has, uses its own time. A service that polls once and never
//! again has waited for `idle` at most. The response's body does not count, and neither does the time before the
//! first poll of the response.
//!
//! `idle` also ends a body that is read after the response was returned. In that case no call is left to reject, and
//! the reader receives an error that contains the rejection ([`Rejection::find`](crate::Rejection::find)).
//!
//! # Cancellation safety
//!
//! Dropping the response future drops the call.
//!
//! # Cost
//!
//! The layer does not require `S: Clone`. A request without a body costs nothing. A request with a body costs one
//! allocation. Each frame that the service waits for costs two clock reads, a timer, and a lock that only the call's
//! own tasks take.
//!
//! # Examples
//!
//! ```
//! use std::{convert::Infallible, time::Duration};
//! use bytes::Bytes;
//! use http::{Request, Response, StatusCode};
//! use http_body::Frame;
//! use http_body_util::{BodyExt, StreamBody};
//! use tower::{ServiceBuilder, ServiceExt};
//! use ziggurat::{Error, timeout::TimeoutLayer, upload::{UploadBody, UploadLayer}};
//!
//! type Streamed = http_body_util::combinators::UnsyncBoxBody<Bytes, Infallible>;
//!
//! # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() {
//! let service = ServiceBuilder::new()
//!     .layer(UploadLayer::new(Duration::from_secs(10)))
//!     .layer(TimeoutLayer::new(Duration::from_secs(5)))
//!     .map_err(Error::Service)
//!     .service_fn(|req: Request<UploadBody<Streamed>>| async {
//!         let body = req.into_body().collect().await?;
//!         Ok::<_, Box<dyn std::error::Error + Send + Sync>>(Response::new(body.to_bytes().len()))
//!     });
//! let request = |pause: u64| {
//!     let frames = futures_util::stream::unfold(0, move |sent| async move {
//!         tokio::time::sleep(Duration::from_secs(pause)).await;
//!         (sent < 9).then(|| (Ok::<_, Infallible>(Frame::data(Bytes::from_static(b"more"))), sent + 1))
//!     });
//!     Request::put("/").body(StreamBody::new(frames).boxed_unsync()).unwrap()
//! };
//!
//! // 90 seconds, in which the service waited for its caller.
//! assert_eq!(*service.clone().oneshot(request(9)).await.unwrap().body(), 36);
//!
//! let outcome = service.oneshot(request(11)).await;
//! assert_eq!(ziggurat::rejection(&outcome).unwrap().status(), StatusCode::REQUEST_TIMEOUT);
//! # }
//! ```

use std::{
    error::Error as StdError,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use http::Request;
use http_body::Body;
use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

use crate::{
    accessors::inner_accessors,
    ambient::{self, caller::Caller},
    body::{Guard, GuardBody, PollFrame},
    clock::{self, Sleep},
    debug::impl_debug,
    outcome::{Reason, Reject, Rejection},
    setting::Setting,
    telemetry::{LayerInfo, layer_info, layer_setters},
};

/// Rejects callers that stall while they send a request body: see the [module](self).
#[derive(Clone)]
#[must_use]
pub struct UploadLayer<L = Duration> {
    idle: L,
    info: LayerInfo,
}

impl<L> UploadLayer<L> {
    /// Creates a layer that limits each wait of the service for a frame of the request's body to `idle`: a
    /// [`Duration`], or a function of the request that returns one (or an `Option` of one, where `None` exempts the
    /// request).
    ///
    /// Any duration is valid. With zero, each frame must be ready at once; [`Duration::MAX`] never ends a wait.
    pub fn new(idle: L) -> Self {
        Self { idle, info: layer_info!("upload") }
    }

    layer_setters!();
}

impl<S, L: Clone> Layer<S> for UploadLayer<L> {
    type Service = Upload<S, L>;

    fn layer(&self, inner: S) -> Self::Service {
        Upload { inner, layer: self.clone() }
    }
}

impl_debug!(UploadLayer<L> { idle: L, info });

/// The service of [`UploadLayer`].
#[derive(Debug, Clone)]
pub /* not a Service? see ziggurat::docs::it_does_not_compile */ struct Upload<S, L = Duration> {
    inner: S,
    layer: UploadLayer<L>,
}

impl<S, L> Upload<S, L> {
    inner_accessors!();
}

/// The body of a request inside an [`UploadLayer`]. Its error is boxed: either the body's own error, or an error that
/// contains the rejection.
pub type UploadBody<B> = GuardBody<B, Uploading>;

impl<S, L, B> Service<Request<B>> for Upload<S, L>
where
    S: Service<Request<UploadBody<B>>>,
    S::Error: Reject<S::Response>,
    L: Setting<Request<B>, Duration>,
    B: Body,
    B::Error: Into<Box<dyn StdError + Send + Sync>>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = ResponseFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let idle = if request.body().is_end_stream() { None } else { self.layer.idle.get(&request) };
        let mut caller = idle.map(|_| Caller::default());
        let uploading = idle.zip(caller.clone()).map(|(idle, caller)| Uploading {
            idle,
            caller,
            waits: false,
            timer: None,
            info: self.layer.info.clone(),
        });
        let request = request.map(|body| GuardBody::new(body, uploading));
        let response = match &caller {
            Some(_) => {
                let _entered = ambient::enter(&mut caller);
                self.inner.call(request)
            }
            None => self.inner.call(request),
        };
        ResponseFuture { response: Some(response), caller }
    }
}

pin_project! {
    /// The response future of [`Upload`].
    #[must_use = "futures do nothing unless polled"]
    pub struct ResponseFuture<F> {
        // None: the outcome was returned.
        #[pin]
        response: Option<F>,
        // None: the request has no body, or is exempt.
        caller: Option<Caller>,
    }

    impl<F> PinnedDrop for ResponseFuture<F> {
        fn drop(this: Pin<&mut Self>) {
            let mut this = this.project();
            // Layers inside that judge the call on drop can see that it waits for its caller.
            let _entered = this.caller.is_some().then(|| ambient::enter(this.caller));
            this.response.set(None);
        }
    }
}

impl<F, R, E> Future for ResponseFuture<F>
where
    F: Future<Output = Result<R, E>>,
    E: Reject<R>,
{
    type Output = Result<R, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        let Some(mut response) = this.response.as_mut().as_pin_mut() else {
            panic!("upload::ResponseFuture polled after it was ready")
        };
        let Some(caller) = this.caller.clone() else {
            let outcome = ready!(response.poll(cx));
            this.response.set(None);
            return Poll::Ready(outcome);
        };
        // Checked before the call is polled, so that no layer inside judges the error that the service returns for
        // the failed body.
        let mut failed = caller.poll_failure(cx.waker());
        let _entered = ambient::enter(this.caller);
        if failed.is_none() {
            let polled = response.as_mut().poll(cx);
            // The body may have failed during the poll. A response of the service takes precedence.
            failed = caller.poll_failure(cx.waker());
            match polled {
                Poll::Ready(outcome) if outcome.is_ok() || failed.is_none() => {
                    this.response.set(None);
                    return Poll::Ready(outcome);
                }
                Poll::Pending if failed.is_none() => return Poll::Pending,
                _ => {}
            }
        }
        this.response.set(None);
        match failed.as_deref().and_then(|failure| Rejection::find(failure)) {
            Some(rejection) => Poll::Ready(E::reject(rejection.clone())),
            None => Poll::Pending,
        }
    }
}

impl_debug!(ResponseFuture<F> in upload { caller, .. });

/// The guard of an [`UploadBody`].
#[doc(hidden)] // machinery that is public only because it is part of a public type
pub struct Uploading {
    idle: Duration,
    caller: Caller,
    /// Whether the service waits for a frame.
    waits: bool,
    // Boxed, so that a body that is never pending does not pay for its size.
    timer: Option<Pin<Box<Sleep>>>,
    info: LayerInfo,
}

impl Uploading {
    /// Called while the body has no frame. Ready once the service has waited too long for it.
    fn poll_idle(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        // A limit of zero has passed without a timer.
        if self.idle.is_zero() {
            return Poll::Ready(());
        }
        if !self.waits {
            self.waits = true;
            let now = clock::now();
            let end = now.checked_add(self.idle);
            self.caller.is_awaited(now, end);
            match end {
                Some(end) => match &mut self.timer {
                    Some(timer) => timer.as_mut().reset(end),
                    None => self.timer = Some(Box::pin(clock::sleep_until(end))),
                },
                None => self.timer = None,
            }
        }
        self.timer.as_mut().map_or(Poll::Pending, |timer| timer.as_mut().poll(cx))
    }

    fn stop_waiting(&mut self) {
        if self.waits {
            self.waits = false;
            self.caller.is_heard(clock::now());
        }
    }

    #[cold]
    fn fail(&mut self, reason: Reason) -> Rejection {
        let rejection = self.info.reject(reason);
        self.caller.has_failed(Arc::new(rejection.clone()));
        rejection
    }
}

impl<B> Guard<B> for Uploading
where
    B: Body,
    B::Error: Into<Box<dyn StdError + Send + Sync>>,
{
    type Error = Box<dyn StdError + Send + Sync>;

    fn poll_frame(&mut self, body: Pin<&mut B>, cx: &mut Context<'_>) -> PollFrame<B::Data, Self::Error> {
        match body.poll_frame(cx) {
            Poll::Pending => {
                ready!(self.poll_idle(cx));
                let rejection = self.fail(Reason::UploadStalled { idle: self.idle });
                Poll::Ready(Reject::<()>::reject(rejection).err().map(Err))
            }
            Poll::Ready(Some(Err(error))) => {
                let error = error.into();
                // A layer further out may have ended the body.
                match Rejection::find(&*error) {
                    Some(rejection) => self.caller.has_failed(Arc::new(rejection.clone())),
                    None => drop(self.fail(Reason::UploadFailed { message: error.to_string().into() })),
                }
                Poll::Ready(Some(Err(error)))
            }
            Poll::Ready(frame) => {
                self.stop_waiting();
                Poll::Ready(frame.map(|frame| frame.map_err(Into::into)))
            }
        }
    }
}

impl Drop for Uploading {
    fn drop(&mut self) {
        // A body that is gone keeps no reader waiting.
        self.stop_waiting();
    }
}

impl_debug!(Uploading { idle, caller, .. });
