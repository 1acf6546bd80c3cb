//! Sends a second attempt if the first is slow or fails, within a budget that all clones share.
//!
//! A service that answers most calls in 10 ms may take a second for a few of them: a queue, a pause for garbage, a
//! machine that is about to fail. A second attempt rarely meets the same trouble, so a call takes as long as the
//! faster of the two ("The Tail at Scale", Dean and Barroso, 2013). At the 95th percentile this costs at most one call
//! in twenty.
//!
//! The second attempt starts
//!
//! - after a fixed [delay](HedgeLayer::after), or once the first has taken longer than most recent calls
//!   ([`at_percentile`](HedgeLayer::at_percentile));
//! - at once, if the first fails before: see [Failures](#failures).
//!
//! All of the following must hold as well:
//!
//! - There is a copy of the request ([`CopyRequest`]). A request that must not be repeated is never sent twice at the
//!   same time, and its copy is sent only if the first attempt was [never processed](crate::is_unprocessed). A body
//!   that a [`ReplayLayer`](crate::replay::ReplayLayer) streams must have been sent completely.
//! - The first attempt was sent. While it waits on this side, for example for a permit, a token or a resource of a
//!   pool, the service is not slow, and the delay has not started.
//! - The second attempt would not wait on this side either. It takes a permit that is free, or none: it never waits in
//!   front of the first attempt of another call, and never sheds one. (That holds for the layers of this crate in the
//!   [order](#order) below. In a limit that waits in `poll_ready`, such as tower's, the second attempt takes a place
//!   in the queue. In a [`SharedRateLimitLayer`](crate::shared_rate_limit::SharedRateLimitLayer), it is sent only if
//!   this process has leased a token for it.)
//! - The [`Budget`] grants it. Give one budget to all layers that add load.
//! - The [`Deadline`](crate::Deadline) has not passed.
//!
//! There are at most two attempts. Further ones help little, and would need an allocation.
//!
//! # Failures
//!
//! The first success ends the call, and so does an outcome of the service that the classifier ignores. The other
//! attempt is dropped before the response is returned. If both are ready in the same poll, the first attempt wins. The
//! winner is chosen by the head of its response: a body that breaks off later is not replaced.
//!
//! - A transient failure of the first attempt starts the second at once. This is not a retry: there is no pause.
//! - A failure with `Retry-After` starts none, and so does a declined request (429): the service has asked for fewer
//!   calls. A second attempt that is running goes on, unless it has not been sent yet.
//! - A permanent failure starts none, and neither does a rejection by a layer inside that says nothing about the
//!   service or is permanent, such as a full limit or an open circuit.
//! - A failure of one attempt does not end the other. In particular, a hedge that is rejected inside, or that would
//!   wait there, does not change the outcome of the first attempt. It is not sent later either: there is no second
//!   attempt then, even if the first fails.
//!
//! If both fail, the caller receives the error of the attempt that failed first, except that a service's own failure
//! takes precedence over a request that was not sent, and one that asks for a wait over both. A *response* that is a
//! failure is dropped when it arrives, because its body may hold the permit that the other attempt needs. The caller
//! then receives the outcome of the other attempt, and a rejection among them carries the status of that response
//! ([`Rejection::previous`](crate::Rejection::previous)).
//!
//! # Percentile
//!
//! [`at_percentile`](HedgeLayer::at_percentile) needs to have seen calls first, and hedges only failures before. All
//! services of the layer share one histogram of 192 logarithmic buckets, each at most an eighth wide. Older calls
//! count less: all weights are halved every ten seconds, but only while enough remain, so a client with few calls has
//! a percentile too. A latency above nine minutes counts as nine minutes.
//!
//! A percentile suits calls that are alike. Give each kind of call a layer of its own: otherwise the quick ones wait
//! for the percentile of the slow ones, and the slow ones are hedged in vain. The time in which a request body is
//! uploaded is part of a latency.
//!
//! | setting | default | source |
//! |---|---|---|
//! | percentile | none, 0.95 is common | "The Tail at Scale" |
//! | [`min_delay`](HedgeLayer::min_delay) | 1 ms | Finagle's backup requests, and the precision of the timer |
//! | [`min_calls`](HedgeLayer::min_calls) | 100 for 0.95 | five calls above the percentile are expected then |
//! | [`budget`](HedgeLayer::budget) | 20 % of the requests, at least 10 per second | that of the retry |
//!
//! The latency of a call is that of its first attempt, from when it was sent and pending until its response. The clock
//! is not read for a response that is ready at once. Three kinds of first attempts end without a latency:
//!
//! - The second attempt won. The first lasted at least until then, and counts as one that took longer. Otherwise the
//!   slow calls would be missing, the percentile would fall, and more and more calls would be hedged.
//! - It failed. A fast failure does not count, because it would make the service look fast. One that took longer than
//!   the percentile counts as slow.
//! - The caller left. It counts as slow if it had waited longer than the percentile.
//!
//! The second attempt does not count: its latency is known only if it is the faster one.
//!
//! # Order
//!
//! Inside the cache, the batch, the total timeout and the retry; outside the circuit breaker, the limits and the
//! attempt timeout:
//!
//! - A hit needs no hedge. Outside a cache or a batch, both attempts would join the same call. The total covers both
//!   attempts.
//! - A [`RetryLayer`](crate::retry::RetryLayer) outside waits as long as the service asks before it sends another
//!   pair, and its pauses are no latencies. Inside, each of the two attempts would retry on its own.
//! - The breaker sees each attempt, and an open circuit stops both. Inside it, one of two replicas could be down
//!   unseen.
//! - Each attempt has a permit, a token and a time limit of its own. Inside a limit, two calls would share one permit.
//!
//! Everything inside can read the number of the [`attempt()`](crate::attempt). The second attempt has the number after
//! that of the first, which is the number of the retry.
//!
//! ```
//! use std::time::Duration;
//! use tower::ServiceBuilder;
//! use ziggurat::{
//!     Budget, circuit_breaker::CircuitBreakerLayer, concurrency_limit::ConcurrencyLimitLayer, hedge::HedgeLayer,
//!     retry::RetryLayer, timeout::TimeoutLayer,
//! };
//!
//! let budget = Budget::default();
//! let stack = ServiceBuilder::new()
//!     .layer(TimeoutLayer::new(Duration::from_secs(10)))
//!     .layer(RetryLayer::http().budget(&budget))
//!     .layer(HedgeLayer::at_percentile(0.95).http().budget(&budget))
//!     .layer(CircuitBreakerLayer::http())
//!     .layer(ConcurrencyLimitLayer::new(100))
//!     .layer(TimeoutLayer::new(Duration::from_secs(2)));
//! # let _ = stack;
//! ```
//!
//! # Telemetry
//!
//! The layer emits [`LayerEvent::Hedged`](crate::LayerEvent::Hedged) when a second attempt is sent,
//! [`HedgeWon`](crate::LayerEvent::HedgeWon) when it succeeds, and [`HedgeRefused`](crate::LayerEvent::HedgeRefused)
//! when one is due and not sent. If few hedges win, the delay is too short, or slow calls are slow on every server.
//! A layer inside that rejects a second attempt also emits [`Rejected`](crate::LayerEvent::Rejected), as for any other
//! call.
//!
//! # Cancellation safety
//!
//! Dropping the response future drops both attempts. A hedge that was granted but not sent is returned to the budget.
//! The losing attempt is dropped, so the service has to notice that: over HTTP/1 its connection is closed, and over
//! HTTP/2 its stream is reset.
//!
//! # Requirements
//!
//! The service must be `Clone`, and its error must be [`Display`](std::fmt::Display). The hedge service is always
//! ready: each attempt waits until the service is ready for it.
//!
//! # Cost
//!
//! A call whose response is ready at once pays for the copy of its request. A pending one also reads the clock and
//! sets the timer, once. Neither allocates. The response future has room for two calls of the service.
//!
//! # Examples
//!
//! ```
//! use std::{convert::Infallible, time::Duration};
//! use tower::{ServiceBuilder, ServiceExt, service_fn};
//! use ziggurat::{Error, hedge::HedgeLayer};
//!
//! # #[tokio::main(flavor = "current_thread", start_paused = true)] async fn main() {
//! let service = ServiceBuilder::new()
//!     .layer(HedgeLayer::after(Duration::from_millis(50)))
//!     .map_err(Error::Service)
//!     .service(service_fn(|name: &'static str| async move {
//!         if ziggurat::attempt() == 1 {
//!             tokio::time::sleep(Duration::from_secs(10)).await; // a slow server
//!         }
//!         Ok::<_, Infallible>(format!("hello {name}"))
//!     }));
//!
//! let start = tokio::time::Instant::now();
//! assert_eq!(service.oneshot("world").await.unwrap(), "hello world");
//! assert_eq!(start.elapsed(), Duration::from_millis(50));
//! # }
//! ```

use std::{
    fmt,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use tower_layer::Layer;
use tower_service::Service;

#[doc(no_inline)]
pub use crate::copy::{Cloned, CopyIf, CopyRequest, Idempotent};
use crate::{
    accessors::inner_accessors,
    budget::Budget,
    debug::impl_debug,
    outcome::{Classify, FailOnError, HttpStatus, Reject},
    telemetry::{LayerInfo, layer_info, layer_setters},
};

mod future;
mod latencies;
mod outcome;
mod slot;
mod when;

pub use self::{
    future::ResponseFuture,
    when::{After, Delay, HedgeClock, HedgeHandle, Latency, Percentile, When},
};

/// Sends a second attempt if the first is slow: see the [module](self).
#[derive(Clone)]
#[must_use]
pub struct HedgeLayer<W, C = FailOnError, P = Cloned> {
    when: W,
    classify: C,
    copy: P,
    budget: Option<Budget>,
    info: LayerInfo,
}

impl<D> HedgeLayer<After<D>> {
    /// Creates a layer that sends a second attempt after `delay`, for requests that are `Clone`.
    ///
    /// The delay is a [`Duration`], or a function of the request (see [`Setting`](crate::Setting)). A request for which
    /// it returns `None` is not hedged. With a delay of zero, both attempts are sent at once, unless the first is ready
    /// in its first poll. With [`Duration::MAX`], only a failure starts the second one.
    pub fn after(delay: D) -> Self {
        Self::with(After(delay))
    }
}

impl HedgeLayer<Percentile> {
    /// Creates a layer that sends a second attempt once the first has taken longer than this share of recent calls, for
    /// requests that are `Clone`. With 0.95, about one call in twenty is hedged.
    ///
    /// See [Percentile](self#percentile) for the calls that count, and how long.
    ///
    /// # Panics
    ///
    /// Panics if `percentile` is not between 0 and 1.
    #[track_caller]
    pub fn at_percentile(percentile: f64) -> Self {
        Self::with(Percentile::new(percentile))
    }
}

impl<W> HedgeLayer<W> {
    fn with(when: W) -> Self {
        Self { when, classify: FailOnError, copy: Cloned, budget: Some(Budget::default()), info: layer_info!("hedge") }
    }
}

impl<C, P> HedgeLayer<Percentile, C, P> {
    /// Sets the minimum delay, for a percentile that is close to zero. The default is 1 ms (Finagle's figure).
    pub fn min_delay(mut self, min_delay: Duration) -> Self {
        self.when = self.when.but_min_delay(min_delay);
        self
    }

    /// Sets the number of calls that must have been seen before the percentile is used. The default is five calls
    /// slower than the percentile: 100 for 0.95, and 500 for 0.99.
    ///
    /// # Panics
    ///
    /// Panics if `min_calls` is zero.
    #[track_caller]
    pub fn min_calls(mut self, min_calls: u32) -> Self {
        self.when = self.when.but_min_calls(min_calls);
        self
    }

    /// Returns a handle that reads the current delay and changes the percentile while the services of this layer run.
    ///
    /// Setters of the layer that are called later also change the handle's state.
    #[must_use]
    pub fn handle(&self) -> HedgeHandle {
        self.when.held()
    }
}

impl<W, C, P> HedgeLayer<W, C, P> {
    /// Sets the classifier. An outcome that it classifies as a failure does not end the call while another attempt may
    /// succeed, and a transient failure of the first attempt starts the second.
    pub fn classify<C2>(self, classify: C2) -> HedgeLayer<W, C2, P> {
        let Self { when, classify: _, copy, budget, info } = self;
        HedgeLayer { when, classify, copy, budget, info }
    }

    /// Sets how a request is copied, and which requests are sent only once: [`Cloned`], [`Idempotent`], [`CopyIf`],
    /// or a closure `|req: &Req| -> Option<Req>`.
    pub fn copy<P2>(self, copy: P2) -> HedgeLayer<W, C, P2> {
        let Self { when, classify, copy: _, budget, info } = self;
        HedgeLayer { when, classify, copy, budget, info }
    }

    /// Classifies with [`HttpStatus`], and hedges the requests that may be repeated ([`Idempotent`]). For HTTP.
    pub fn http(self) -> HedgeLayer<W, HttpStatus, Idempotent> {
        self.classify(HttpStatus).copy(Idempotent)
    }

    /// Limits the number of hedges of all calls together: a [`Budget`], or `&Budget` to share it with other layers.
    /// `None` removes the limit. The default is [`Budget::default`].
    pub fn budget(mut self, budget: impl Into<Option<Budget>>) -> Self {
        self.budget = budget.into();
        self
    }

    layer_setters!();
}

impl<S, W, C, P> Layer<S> for HedgeLayer<W, C, P>
where
    Self: Clone,
{
    type Service = Hedge<S, W, C, P>;

    fn layer(&self, inner: S) -> Self::Service {
        Hedge { inner, layer: Arc::new(self.clone()) }
    }
}

impl_debug!(HedgeLayer<W: fmt::Debug, C, P> { when, classify: C, copy: P, budget, info });

/// The service of [`HedgeLayer`].
#[derive(Debug, Clone)]
pub /* not a Service? see ziggurat::docs::it_does_not_compile */ struct Hedge<S, W, C = FailOnError, P = Cloned> {
    inner: S,
    // Shared with the response futures: a reference count is cheaper than a copy of the layer.
    layer: Arc<HedgeLayer<W, C, P>>,
}

impl<S, W, C, P> Hedge<S, W, C, P> {
    inner_accessors!();
}

impl<S, W, C, P, Req> Service<Req> for Hedge<S, W, C, P>
where
    S: Service<Req> + Clone,
    S::Error: Reject<S::Response> + fmt::Display,
    W: When<Req>,
    C: Classify<S::Response, S::Error>,
    P: CopyRequest<Req>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = ResponseFuture<S, Req, W, C, P>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Req) -> Self::Future {
        ResponseFuture::new(self.inner.clone(), Arc::clone(&self.layer), request)
    }
}
