//! The recommended stack of a client.

use std::{borrow::Cow, fmt, num::NonZeroU32, sync::Arc};

use tower_layer::{Identity, Layer};

use super::{
    ClientSettings,
    live::{LiveDuration, Look, Tuned, update, watching},
    ready::ReadyInCall,
};
use crate::{
    backoff::Backoff,
    body::{BodyEnd, ResponseEnd},
    budget::Budget,
    circuit_breaker::{CircuitBreakerHandle, CircuitBreakerLayer},
    concurrency_limit::{Adaptive, ConcurrencyLimitHandle, ConcurrencyLimitLayer, Pilot, Steered},
    copy::Idempotent,
    debug::impl_debug,
    mutex::Mutex,
    outcome::{FailOnError, HttpStatus},
    retry::{Drained, RetryHandle, RetryLayer},
    scope::Scope,
    telemetry::{LayerEvent, LayerInfo, layer_info},
    timeout::TimeoutLayer,
};

/// The recommended layers around one upstream service.
///
/// The order, outermost first: `Timeout (total) > Retry > CircuitBreaker > ConcurrencyLimit > Timeout (attempt)`.
///
/// [`ClientSettings`] has the defaults and their sources. Clones of a stack, and all services that it creates, share
/// one circuit, one concurrency limit and one retry budget. Two stacks share nothing, so create one stack for each
/// upstream service. The events and rejections of all parts carry its name, those of the attempt timeout with
/// `-attempt` after it.
///
/// ```
/// use std::time::Duration;
/// use ziggurat::{stack::{ClientSettings, ClientStack}, timeout::TimeoutLayer};
///
/// let stack = ClientStack::http("billing")
///     .settings(ClientSettings::default().timeout(Duration::from_secs(5)).max_in_flight(100));
/// let circuit = stack.circuit(); // state(), force_open(), subscribe()
///
/// // Replace a part with another layer, or leave it out.
/// let by_size = |req: &http::Request<String>| Duration::from_millis(100 + req.body().len() as u64);
/// let stack = stack.with_attempt_timeout(TimeoutLayer::new(by_size)).without_retry();
/// ```
///
/// A layer that replaces a part keeps its own values: settings do not apply to it.
#[derive(Clone)]
#[must_use]
pub struct ClientStack<
    T = TimeoutLayer<LiveDuration>,
    R = RetryLayer,
    B = CircuitBreakerLayer,
    L = ConcurrencyLimitLayer<ResponseEnd, Steered<FailOnError>>,
    A = TimeoutLayer<LiveDuration>,
> {
    timeout: T,
    retry: R,
    circuit_breaker: B,
    concurrency_limit: L,
    attempt_timeout: A,
    numbers: Numbers,
    look: Option<Look>,
}

/// The handles that apply settings to the parts.
#[derive(Clone)]
struct Numbers {
    timeout: LiveDuration,
    retries: RetryHandle,
    circuit: CircuitBreakerHandle,
    limit: Arc<Pilot>,
    gate: ConcurrencyLimitHandle,
    attempt_timeout: LiveDuration,
    info: LayerInfo,
}

impl Numbers {
    /// Applies the settings that differ from `before`.
    fn apply(&self, before: Option<&ClientSettings>, now: &ClientSettings) {
        update(before, now, |it| it.timeout, |value| self.timeout.set(value));
        update(before, now, |it| it.max_attempts, |value| self.retries.set_max_attempts(value));
        update(before, now, ClientSettings::waits, |value| self.retries.set_backoff(value));
        update(
            before,
            now,
            |it| (it.retry_ratio, it.min_retries_per_second),
            |_| self.retries.set_budget(now.budget()),
        );
        update(before, now, |it| it.failure_rate, |value| self.circuit.set_failure_rate(value));
        update(before, now, |it| it.min_calls.and_then(NonZeroU32::new), |value| self.circuit.replace_min_calls(value));
        update(before, now, |it| it.consecutive_failures, |value| self.circuit.set_consecutive_failures(value));
        update(before, now, ClientSettings::open_times, |value| self.circuit.set_open_for(value));
        update(before, now, |it| (it.min_in_flight, it.max_in_flight), |(min, max)| self.limit.set_bounds(min, max));
        update(before, now, |it| it.max_waiting, |value| self.gate.set_max_waiting(value));
        update(before, now, ClientSettings::attempt_limit, |value| self.attempt_timeout.set(value));
    }
}

#[track_caller]
fn must_hold(settings: &ClientSettings) {
    if let Err(error) = settings.validate() {
        panic!("{error}");
    }
}

impl ClientStack {
    /// Creates a stack for any request that is `Clone`. Every error of the service is retried and counts against the
    /// service.
    pub fn new(name: impl Into<Cow<'static, str>>) -> Self {
        Self::of(name.into(), RetryLayer::new(), CircuitBreakerLayer::failure_rate(0.5), Adaptive::gradient())
    }
}

/// The parts of a stack that classifies outcomes with `C` and copies requests with `P`.
type Parts<C, P, D, U = ResponseEnd> = ClientStack<
    TimeoutLayer<LiveDuration, U>,
    RetryLayer<C, P, Backoff, D>,
    CircuitBreakerLayer<C, U>,
    ConcurrencyLimitLayer<U, Steered<C>>,
    TimeoutLayer<LiveDuration>,
>;

impl Parts<HttpStatus, Idempotent, Drained> {
    /// Creates a stack for HTTP. Requests that are safe to repeat are retried after transient statuses, as in
    /// [`RetryLayer::http`].
    ///
    /// The request body must be `Clone`, as bodies in memory are. For a streamed body, put a
    /// [`ReplayLayer`](crate::replay::ReplayLayer) directly outside the stack, or leave out the retry.
    pub fn http(name: impl Into<Cow<'static, str>>) -> Self {
        Self::of(name.into(), RetryLayer::http(), CircuitBreakerLayer::http(), Adaptive::http())
    }
}

impl<C, P, D> Parts<C, P, D> {
    fn of(
        name: Cow<'static, str>,
        retry: RetryLayer<C, P, Backoff, D>,
        breaker: CircuitBreakerLayer<C>,
        adaptive: Adaptive<C>,
    ) -> Self {
        let settings = ClientSettings::default();
        let (timeout, attempt_timeout) =
            (LiveDuration::new(settings.timeout), LiveDuration::new(settings.attempt_limit()));
        let (retry, circuit_breaker) = (retry.named(name.clone()), breaker.named(name.clone()));
        let concurrency_limit = ConcurrencyLimitLayer::adaptive(adaptive).named(name.clone());
        let numbers = Numbers {
            timeout: timeout.clone(),
            retries: retry.handle(),
            circuit: circuit_breaker.handle(),
            limit: concurrency_limit.pilot(),
            gate: concurrency_limit.handle(),
            attempt_timeout: attempt_timeout.clone(),
            info: layer_info!("stack").named(name.clone()),
        };
        numbers.apply(None, &settings);
        Self {
            timeout: TimeoutLayer::new(timeout).named(name.clone()),
            retry,
            circuit_breaker,
            concurrency_limit,
            // A name of its own: both timeouts reject with the same reason.
            attempt_timeout: TimeoutLayer::new(attempt_timeout).named(format!("{name}-attempt")),
            numbers,
            look: None,
        }
    }

    /// Sets the classifier that decides which outcomes are retried and which count against the service.
    pub fn classify<C2: Clone>(self, classify: C2) -> Parts<C2, P, D> {
        let Self { timeout, retry, circuit_breaker, concurrency_limit, attempt_timeout, numbers, look } = self;
        let (retry, circuit_breaker) = (retry.classify(classify.clone()), circuit_breaker.classify(classify.clone()));
        let concurrency_limit = concurrency_limit.classify(classify);
        ClientStack { timeout, retry, circuit_breaker, concurrency_limit, attempt_timeout, numbers, look }
    }

    /// Extends the total, the concurrency limit and the circuit breaker to the end of the response's body, for HTTP.
    /// See [`TimeoutLayer::until_body_end`], [`ConcurrencyLimitLayer::until_body_end`] and
    /// [`CircuitBreakerLayer::until_body_end`].
    ///
    /// An attempt's limit still ends with the response's head, because the body is read once and no other attempt could
    /// replace it. Raise the total, or leave it out, for downloads that may take longer.
    pub fn until_body_end(self) -> Parts<C, P, D, BodyEnd> {
        let Self { timeout, retry, circuit_breaker, concurrency_limit, attempt_timeout, numbers, look } = self;
        let (circuit_breaker, concurrency_limit) =
            (circuit_breaker.until_body_end(), concurrency_limit.until_body_end());
        let timeout = timeout.until_body_end();
        ClientStack { timeout, retry, circuit_breaker, concurrency_limit, attempt_timeout, numbers, look }
    }
}

impl<T, R, B, L, A> ClientStack<T, R, B, L, A> {
    /// Replaces the settings. They apply to all clones of this stack, and to their services.
    ///
    /// # Panics
    ///
    /// If two settings [contradict](ClientSettings#contradictions) each other.
    #[track_caller]
    pub fn settings(self, settings: ClientSettings) -> Self {
        must_hold(&settings);
        self.numbers.apply(None, &settings);
        self
    }

    /// Takes the [`ClientSettings`] from `scope` or its nearest parent, now and after each change ([`Scope::update`]).
    ///
    /// A change applies from the next call on, to clones of this stack too. (While one call applies it, concurrent
    /// calls may still use the previous settings.) Counters are kept. A value that was set directly, for example
    /// through the [`gate`](Self::gate), is kept until its own field changes.
    ///
    /// If the scope has no settings, the current ones stay. The stack does not keep the scope alive, so keep it
    /// yourself: after it is dropped, changes no longer apply, not even those of its parents. To give two stacks
    /// separate settings, give each a child scope. Call this once, before the stack is cloned.
    ///
    /// Later settings that [contradict](ClientSettings#contradictions) each other do not disturb any call. The previous
    /// settings stay, and [`LayerEvent::SettingsRefused`] reports why (in `tracing` a warning, target
    /// `ziggurat::stack`).
    ///
    /// # Panics
    ///
    /// If the scope's current settings contradict each other.
    #[track_caller]
    pub fn settings_from(mut self, scope: &Scope) -> Self {
        if let Some(settings) = scope.get::<ClientSettings>() {
            must_hold(&settings);
        }
        let (numbers, applied) = (self.numbers.clone(), Mutex::new(None));
        self.look = Some(watching(scope, move |_, now: &ClientSettings| {
            let mut applied = applied.lock();
            match now.validate() {
                Ok(()) => {
                    numbers.apply(applied.as_ref(), now);
                    *applied = Some(*now);
                }
                Err(error) => numbers.info.emit(LayerEvent::SettingsRefused { error: &error.to_string() }),
            }
        }));
        self
    }

    /// Replaces the total timeout with another layer.
    pub fn with_timeout<T2>(self, timeout: T2) -> ClientStack<T2, R, B, L, A> {
        let Self { timeout: _, retry, circuit_breaker, concurrency_limit, attempt_timeout, numbers, look } = self;
        ClientStack { timeout, retry, circuit_breaker, concurrency_limit, attempt_timeout, numbers, look }
    }

    /// Removes the limit for the whole call.
    pub fn without_timeout(self) -> ClientStack<Identity, R, B, L, A> {
        self.with_timeout(Identity::new())
    }

    /// Replaces the retry with another layer.
    pub fn with_retry<R2>(self, retry: R2) -> ClientStack<T, R2, B, L, A> {
        let Self { timeout, retry: _, circuit_breaker, concurrency_limit, attempt_timeout, numbers, look } = self;
        ClientStack { timeout, retry, circuit_breaker, concurrency_limit, attempt_timeout, numbers, look }
    }

    /// Removes the retry.
    pub fn without_retry(self) -> ClientStack<T, Identity, B, L, A> {
        self.with_retry(Identity::new())
    }

    /// Replaces the circuit breaker with another layer.
    pub fn with_circuit_breaker<B2>(self, circuit_breaker: B2) -> ClientStack<T, R, B2, L, A> {
        let Self { timeout, retry, circuit_breaker: _, concurrency_limit, attempt_timeout, numbers, look } = self;
        ClientStack { timeout, retry, circuit_breaker, concurrency_limit, attempt_timeout, numbers, look }
    }

    /// Removes the circuit breaker.
    pub fn without_circuit_breaker(self) -> ClientStack<T, R, Identity, L, A> {
        self.with_circuit_breaker(Identity::new())
    }

    /// Replaces the concurrency limit with another layer.
    pub fn with_concurrency_limit<L2>(self, concurrency_limit: L2) -> ClientStack<T, R, B, L2, A> {
        let Self { timeout, retry, circuit_breaker, concurrency_limit: _, attempt_timeout, numbers, look } = self;
        ClientStack { timeout, retry, circuit_breaker, concurrency_limit, attempt_timeout, numbers, look }
    }

    /// Removes the concurrency limit.
    pub fn without_concurrency_limit(self) -> ClientStack<T, R, B, Identity, A> {
        self.with_concurrency_limit(Identity::new())
    }

    /// Replaces the attempt's timeout with another layer.
    pub fn with_attempt_timeout<A2>(self, attempt_timeout: A2) -> ClientStack<T, R, B, L, A2> {
        let Self { timeout, retry, circuit_breaker, concurrency_limit, attempt_timeout: _, numbers, look } = self;
        ClientStack { timeout, retry, circuit_breaker, concurrency_limit, attempt_timeout, numbers, look }
    }

    /// Removes the limit for each attempt.
    pub fn without_attempt_timeout(self) -> ClientStack<T, R, B, L, Identity> {
        self.with_attempt_timeout(Identity::new())
    }
}

impl<T, C, P, W, D, B, L, A> ClientStack<T, RetryLayer<C, P, W, D>, B, L, A> {
    /// Returns the budget of the retries, to share it with a layer outside the stack, or `None` if it has none.
    /// Settings of the stack apply to all layers that share it.
    pub fn budget(&self) -> Option<Budget> {
        self.retry.handle().budget()
    }
}

impl<T, R, C, U, L, A> ClientStack<T, R, CircuitBreakerLayer<C, U>, L, A> {
    /// Returns the handle of the circuit that all services of this stack share.
    #[must_use]
    pub fn circuit(&self) -> CircuitBreakerHandle {
        self.circuit_breaker.handle()
    }
}

impl<T, R, B, U, V, A> ClientStack<T, R, B, ConcurrencyLimitLayer<U, V>, A> {
    /// Returns the handle of the concurrency limit.
    #[must_use]
    pub fn gate(&self) -> ConcurrencyLimitHandle {
        self.concurrency_limit.handle()
    }
}

impl<S, T, R, B, L, A> Layer<S> for ClientStack<T, R, B, L, A>
where
    A: Layer<ReadyInCall<S>>,
    L: Layer<A::Service>,
    B: Layer<L::Service>,
    R: Layer<B::Service>,
    T: Layer<R::Service>,
{
    type Service = Tuned<T::Service>;

    fn layer(&self, service: S) -> Self::Service {
        let service = self.concurrency_limit.layer(self.attempt_timeout.layer(ReadyInCall::new(service)));
        let service = self.retry.layer(self.circuit_breaker.layer(service));
        Tuned::new(self.timeout.layer(service), self.look.clone())
    }
}

impl_debug!(ClientStack<T: fmt::Debug, R: fmt::Debug, B: fmt::Debug, L: fmt::Debug, A: fmt::Debug> {
    timeout, retry, circuit_breaker, concurrency_limit, attempt_timeout, ..
});
