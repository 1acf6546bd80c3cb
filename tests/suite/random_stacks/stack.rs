//! A stack of random layers, and the gauges that show what its layers hold.

use std::{error::Error as StdError, fmt, future::Future, pin::Pin, sync::Arc, task, task::Poll, time::Duration};

use futures_util::FutureExt;
use http::{Request, Response};
use http_body::Body;
use http_body_util::BodyExt;
use tokio::{sync::Semaphore, time::sleep};
use tower::{
    Layer, Service,
    buffer::Buffer,
    limit::GlobalConcurrencyLimitLayer,
    util::{BoxCloneSyncService, MapErr},
};
use ziggurat::{
    Scope,
    batch::BatchLayer,
    cache::CacheLayer,
    chaos::{ChaosHandle, ChaosLayer, Fault, Schedule},
    circuit_breaker::CircuitBreakerLayer,
    concurrency_limit::ConcurrencyLimitLayer,
    context::ContextLayer,
    drain::DrainLayer,
    fallback::FallbackLayer,
    hedge::HedgeLayer,
    observe::ObserveLayer,
    propagate::PropagateLayer,
    rate_limit::RateLimitLayer,
    rejection_response::RejectionResponseLayer,
    replay::ReplayLayer,
    request_id::RequestIdLayer,
    resource::ResourceLayer,
    retry::RetryLayer,
    stack::{ClientSettings, ClientStack, ServerSettings, ServerStack},
    timeout::TimeoutLayer,
    upload::UploadLayer,
};

use super::{
    bottom::{Bottom, Failed, Outcome, Script, failed},
    kinds::{Kind, Stale},
    switch::Switch,
};

/// A stack, whatever its type.
pub(super) type Boxed = BoxCloneSyncService<Request<String>, Response<String>, Failed>;

/// A stack, and the handles of its layers.
pub(super) struct Stack {
    pub(super) service: Boxed,
    pub(super) switches: Vec<Switch>,
    pub(super) chaos: Vec<ChaosHandle>,
    /// The number of services that its layers let be ready at the same time.
    pub(super) width: usize,
    /// Whether one of its layers is a timeout, which rejects a call that comes too late.
    pub(super) has_timeout: bool,
    gauges: Vec<(String, Box<dyn Fn() -> bool + Send>)>,
}

impl Stack {
    /// Builds the stack over a service that follows `script`, with tower's buffer of size `buffer` between.
    ///
    /// The buffer is always the innermost layer: its worker never gives up a readiness that it asked for.
    pub(super) fn new(kinds: &[Kind], buffer: Option<usize>, script: &Arc<Script>) -> Self {
        let bottom = Bottom::new(script);
        let service = match buffer {
            Some(size) => BoxCloneSyncService::new(MapErr::new(Buffer::new(bottom, size), failed)),
            None => BoxCloneSyncService::new(bottom),
        };
        let script = Arc::clone(script);
        let mut stack =
            Self { service, switches: vec![], chaos: vec![], width: usize::MAX, has_timeout: false, gauges: vec![] };
        // The worker of a buffer may keep its service ready.
        if buffer.is_none() {
            stack.gauge("the service at the bottom", move || script.in_use() == (0, 0));
        }
        stack.width = stack.width.min(buffer.unwrap_or(usize::MAX));
        for kind in kinds.iter().rev() {
            stack.add(kind);
        }
        stack
    }

    /// Returns the names of the layers that hold something.
    pub(super) fn in_use(&self) -> Vec<&str> {
        self.gauges.iter().filter(|(_, is_free)| !is_free()).map(|(name, _)| name.as_str()).collect()
    }

    fn gauge(&mut self, name: impl fmt::Display, is_free: impl Fn() -> bool + Send + 'static) {
        self.gauges.push((name.to_string(), Box::new(is_free)));
    }

    /// Puts tower's limit around a service.
    fn limited(&mut self, limit: usize, inner: Boxed) -> Boxed {
        let permits = Arc::new(Semaphore::new(limit));
        self.width = self.width.min(limit);
        self.gauge("tower's limit", {
            let permits = Arc::clone(&permits);
            move || permits.available_permits() == limit
        });
        BoxCloneSyncService::new(GlobalConcurrencyLimitLayer::with_semaphore(permits).layer(inner))
    }

    fn limit<U>(&mut self, layer: ConcurrencyLimitLayer<U>) -> ConcurrencyLimitLayer<U> {
        let gate = layer.handle();
        self.gauge("the concurrency limit", move || (gate.in_flight(), gate.waiting()) == (0, 0));
        layer
    }

    fn on<W>(&mut self, layer: ChaosLayer<Fault, W>) -> ChaosLayer<Fault, W> {
        let chaos = layer.handle();
        chaos.on();
        self.chaos.push(chaos);
        layer
    }

    fn add(&mut self, kind: &Kind) {
        let inner = self.service.clone();
        self.service = match *kind {
            Kind::RejectionResponse => boxed(RejectionResponseLayer::problem_json().layer(inner)),
            Kind::Batch { size, delay } => {
                let batch = BatchLayer::new(size, millis(delay)).by(|_: &Request<String>| ());
                boxed(batch.layer(ForEach(inner)))
            }
            Kind::Breaker { failures, open_for, body } => {
                let layer = CircuitBreakerLayer::consecutive(failures).open_for(millis(open_for));
                self.switches.push(Switch::new(layer.handle()));
                if body { boxed(layer.until_body_end().layer(inner)) } else { boxed(layer.layer(inner)) }
            }
            Kind::BreakerByRate { open_for } => {
                let layer = CircuitBreakerLayer::http().over_calls(2).min_calls(2).open_for(millis(open_for));
                self.switches.push(Switch::new(layer.handle()));
                boxed(layer.layer(inner))
            }
            Kind::Cache { ttl, stale } => {
                let key = |request: &Request<String>| Some(request.uri().clone());
                let layer = CacheLayer::new(10, millis(ttl), key);
                match stale {
                    Stale::Never => boxed(layer.layer(inner)),
                    Stale::IfError => boxed(layer.stale_if_error(millis(500)).layer(inner)),
                    Stale::WhileRevalidate => boxed(layer.stale_while_revalidate(millis(500)).layer(inner)),
                }
            }
            Kind::ChaosDelay { every, delay } => {
                let layer = ChaosLayer::new(Fault::Delay(millis(delay))).schedule(Schedule::every(every));
                boxed(self.on(layer).layer(inner))
            }
            Kind::ChaosError { every } => {
                let layer = ChaosLayer::new(Fault::Error).schedule(Schedule::every(every));
                boxed(self.on(layer).layer(inner))
            }
            Kind::Client => {
                let settings = ClientSettings::default().max_in_flight(1).max_waiting(1).min_calls(1);
                let stack = ClientStack::http("random").settings(settings);
                let gate = stack.gate();
                self.gauge("the client's stack", move || (gate.in_flight(), gate.waiting()) == (0, 0));
                self.switches.push(Switch::new(stack.circuit()));
                boxed(stack.layer(inner))
            }
            Kind::Context => boxed(ContextLayer::new(Scope::root("random")).layer(inner)),
            Kind::Drain { grace, at } => {
                let layer = DrainLayer::new().grace(millis(grace));
                let (gauge, handle) = (layer.handle(), layer.handle());
                self.gauge("the drain", move || gauge.in_flight() == 0);
                if let Some(at) = at {
                    tokio::spawn(async move {
                        sleep(millis(at)).await;
                        handle.drain().await;
                    });
                }
                boxed(layer.layer(inner))
            }
            Kind::FallbackService { limit } => {
                let backup = self.limited(limit, inner.clone());
                boxed(FallbackLayer::service(backup).layer(inner))
            }
            Kind::FallbackValue => boxed(FallbackLayer::value(Response::new("instead".into())).http().layer(inner)),
            Kind::Hedge { delay } => boxed(HedgeLayer::after(millis(delay)).budget(None).layer(inner)),
            Kind::RequestId => boxed(RequestIdLayer::new().layer(inner)),
            Kind::Limit { limit, max_waiting, max_wait, body } => {
                let mut layer = ConcurrencyLimitLayer::new(limit);
                if let Some(max_waiting) = max_waiting {
                    layer = layer.max_waiting(max_waiting);
                }
                if let Some(max_wait) = max_wait {
                    layer = layer.max_wait(millis(max_wait));
                }
                let layer = self.limit(layer);
                if body { boxed(layer.until_body_end().layer(inner)) } else { boxed(layer.layer(inner)) }
            }
            Kind::Observe { body: false } => boxed(ObserveLayer::http().layer(inner)),
            Kind::Observe { body: true } => boxed(ObserveLayer::http().until_body_end().layer(inner)),
            Kind::Propagate => boxed(PropagateLayer::new().layer(inner)),
            Kind::RateLimit { quantity, max_wait } => {
                let mut layer = RateLimitLayer::new(quantity, millis(100));
                if let Some(max_wait) = max_wait {
                    layer = layer.max_wait(millis(max_wait));
                }
                let bucket = layer.handle();
                self.gauge("the queue of a rate limit", move || bucket.waiting() == 0);
                boxed(layer.layer(inner))
            }
            Kind::ReplayAndRetry => {
                let retry = RetryLayer::http().max_attempts(2).budget(None);
                boxed(ReplayLayer::new().layer(retry.layer(Sent(inner))))
            }
            Kind::Resource { size, max_wait, body } => {
                let pool = Arc::new(Semaphore::new(size));
                let gauge = Arc::clone(&pool);
                self.gauge("the pool of a resource", move || gauge.available_permits() == size);
                let mut layer = ResourceLayer::new(move || Arc::clone(&pool).acquire_owned());
                if let Some(max_wait) = max_wait {
                    layer = layer.max_wait(millis(max_wait));
                }
                if body { boxed(layer.until_body_end().layer(inner)) } else { boxed(layer.layer(inner)) }
            }
            Kind::Retry { pause } => {
                boxed(RetryLayer::new().max_attempts(2).backoff(millis(pause)).budget(None).layer(inner))
            }
            Kind::Server => {
                // One of its layers is a `TimeoutLayer`.
                self.has_timeout = true;
                let settings = ServerSettings::default().max_in_flight(1);
                let stack = ServerStack::new(&Scope::root("random").with(settings));
                let gate = stack.gate();
                self.gauge("the server's stack", move || (gate.in_flight(), gate.waiting()) == (0, 0));
                boxed(stack.layer(inner))
            }
            Kind::Timeout { limit, body } => {
                self.has_timeout = true;
                let layer = TimeoutLayer::new(millis(limit));
                if body { boxed(layer.until_body_end().layer(inner)) } else { boxed(layer.layer(inner)) }
            }
            Kind::Towers { limit } => self.limited(limit, inner),
            Kind::Upload => boxed(UploadLayer::new(millis(1_000)).layer(Sent(inner))),
        };
    }
}

fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

fn boxed<S, B>(service: S) -> Boxed
where
    S: Service<Request<String>, Response = Response<B>, Error = Failed, Future: Send + 'static>
        + Clone
        + Send
        + Sync
        + 'static,
    B: Body<Error: fmt::Display> + Send,
    B::Data: Send,
{
    BoxCloneSyncService::new(Collected(service))
}

/// Reads the body of a response inside the call, so that the call ends when everything that the body holds is released.
#[derive(Clone)]
struct Collected<S>(S);

impl<S, B> Service<Request<String>> for Collected<S>
where
    S: Service<Request<String>, Response = Response<B>, Error = Failed, Future: Send + 'static>,
    B: Body<Error: fmt::Display> + Send,
    B::Data: Send,
{
    type Response = Response<String>;
    type Error = Failed;
    type Future = Pin<Box<dyn Future<Output = Outcome> + Send>>;

    fn poll_ready(&mut self, cx: &mut task::Context<'_>) -> Poll<Result<(), Failed>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: Request<String>) -> Self::Future {
        let response = self.0.call(request);
        Box::pin(async move {
            let (head, body) = response.await?.into_parts();
            let body = body.collect().await.map_err(failed)?;
            Ok(Response::from_parts(head, String::from_utf8_lossy(&body.to_bytes()).into_owned()))
        })
    }
}

/// Converts the body of a request for a service that takes a `String`.
#[derive(Clone)]
struct Sent(Boxed);

impl<B> Service<Request<B>> for Sent
where
    B: Body<Error: Into<Box<dyn StdError + Send + Sync>>>,
{
    type Response = Response<String>;
    type Error = Failed;
    type Future = <Boxed as Service<Request<String>>>::Future;

    fn poll_ready(&mut self, cx: &mut task::Context<'_>) -> Poll<Result<(), Failed>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let (head, body) = request.into_parts();
        // Each of these bodies is ready at once.
        let body = body.collect().now_or_never().and_then(Result::ok).map(|body| body.to_bytes());
        let body = String::from_utf8_lossy(&body.unwrap_or_default()).into_owned();
        self.0.call(Request::from_parts(head, body))
    }
}

/// Answers all requests of a batch with the answer to the first.
#[derive(Clone)]
struct ForEach(Boxed);

impl Service<Vec<Request<String>>> for ForEach {
    type Response = Vec<Outcome>;
    type Error = Failed;
    type Future = Pin<Box<dyn Future<Output = Result<Vec<Outcome>, Failed>> + Send>>;

    fn poll_ready(&mut self, cx: &mut task::Context<'_>) -> Poll<Result<(), Failed>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, requests: Vec<Request<String>>) -> Self::Future {
        let many = requests.len();
        let answer = self.0.call(requests.into_iter().next().unwrap_or_default());
        Box::pin(async move {
            let answer = answer.await?;
            Ok((0..many).map(|_| Ok(answer.clone())).collect())
        })
    }
}
