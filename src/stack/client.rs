//! The recommended stack of a client.

use std::{
    borrow::Cow,
    fmt,
    sync::{Mutex, PoisonError},
};

use tower_layer::{Identity, Layer};

use super::{
    ClientSettings,
    live::{LiveDuration, Look, Tuned, differs, watching},
    ready::ReadyInCall,
};
use crate::{
    backoff::Backoff,
    body::{BodyEnd, ResponseEnd},
    circuit_breaker::{CircuitBreakerHandle, CircuitBreakerLayer},
    concurrency_limit::{ConcurrencyLimitHandle, ConcurrencyLimitLayer},
    copy::Idempotent,
    outcome::HttpStatus,
    retry::{Drained, RetryHandle, RetryLayer},
    scope::Scope,
    telemetry::{LayerEvent, LayerInfo, layer_info},
    timeout::TimeoutLayer,
};

/// What a client needs around one service that it calls: `Timeout (total) > Retry > CircuitBreaker > ConcurrencyLimit > Timeout (attempt)`.
///
/// The numbers and their sources are in [`ClientSettings`]. Clones of a value, and all services that it makes, share one circuit, one
/// limit and one budget; two values share nothing. So there is one value for each service that is called, and its name is what the events
/// of all parts carry.
///
/// ```
/// use std::time::Duration;
/// use ziggurat::{stack::{ClientSettings, ClientStack}, timeout::TimeoutLayer};
///
/// let stack = ClientStack::http("billing")
///     .settings(ClientSettings::default().timeout(Duration::from_secs(5)).max_in_flight(100));
/// let circuit = stack.circuit(); // state(), force_open(), subscribe()
///
/// // Any layer in the place of a part, or none.
/// let by_size = |req: &http::Request<String>| Duration::from_millis(100 + req.body().len() as u64);
/// let stack = stack.with_attempt_timeout(TimeoutLayer::new(by_size)).without_retry();
/// ```
///
/// A part that was put in has the numbers that it was made with: settings do not reach it.
#[derive(Clone)]
#[must_use]
pub struct ClientStack<
    T = TimeoutLayer<LiveDuration>,
    R = RetryLayer,
    B = CircuitBreakerLayer,
    L = ConcurrencyLimitLayer,
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

/// The handles by which settings reach the parts.
#[derive(Clone)]
struct Numbers {
    timeout: LiveDuration,
    retries: RetryHandle,
    circuit: CircuitBreakerHandle,
    gate: ConcurrencyLimitHandle,
    attempt_timeout: LiveDuration,
    info: LayerInfo,
}

impl Numbers {
    /// Takes over what is different from before.
    fn apply(&self, before: Option<&ClientSettings>, now: &ClientSettings) {
        if differs(before, now, |settings| settings.timeout) {
            self.timeout.set(now.timeout);
        }
        if differs(before, now, |settings| settings.max_attempts) {
            self.retries.set_max_attempts(now.max_attempts);
        }
        if differs(before, now, ClientSettings::waits) {
            self.retries.set_backoff(now.waits());
        }
        if differs(before, now, |settings| (settings.retry_ratio, settings.min_retries_per_second)) {
            self.retries.set_budget(now.budget());
        }
        if differs(before, now, |settings| settings.failure_rate) {
            self.circuit.set_failure_rate(now.failure_rate);
        }
        if differs(before, now, |settings| settings.min_calls) {
            self.circuit.set_min_calls(now.min_calls);
        }
        if differs(before, now, |settings| settings.consecutive_failures) {
            self.circuit.set_consecutive_failures(now.consecutive_failures);
        }
        if differs(before, now, ClientSettings::open_times) {
            self.circuit.set_open_for(now.open_times());
        }
        if differs(before, now, |settings| settings.max_in_flight) {
            self.gate.set_limit(now.max_in_flight);
        }
        if differs(before, now, |settings| settings.max_waiting) {
            self.gate.set_max_waiting(now.max_waiting);
        }
        if differs(before, now, ClientSettings::attempt_limit) {
            self.attempt_timeout.set(now.attempt_limit());
        }
    }
}

#[track_caller]
fn must_hold(settings: &ClientSettings) {
    if let Err(error) = settings.validate() {
        panic!("{error}");
    }
}

impl ClientStack {
    /// For any request that is `Clone`: every error of the service is retried, and counts against it.
    pub fn new(name: impl Into<Cow<'static, str>>) -> Self {
        Self::of(name.into(), RetryLayer::new(), CircuitBreakerLayer::failure_rate(0.5))
    }
}

/// The parts of a stack that judges outcomes by `C`, and copies requests by `P`.
type Parts<C, P, D, U = ResponseEnd> = ClientStack<
    TimeoutLayer<LiveDuration, U>,
    RetryLayer<C, P, Backoff, D>,
    CircuitBreakerLayer<C, U>,
    ConcurrencyLimitLayer<U>,
    TimeoutLayer<LiveDuration>,
>;

impl Parts<HttpStatus, Idempotent, Drained> {
    /// For HTTP: requests that may be repeated are retried after the statuses that pass, as [`RetryLayer::http`] does it.
    ///
    /// The request's body has to be `Clone`, as it is where it is in memory. Around one that is streamed goes a
    /// [`ReplayLayer`](crate::replay::ReplayLayer), just outside of the stack; or no retry within.
    pub fn http(name: impl Into<Cow<'static, str>>) -> Self {
        Self::of(name.into(), RetryLayer::http(), CircuitBreakerLayer::http())
    }
}

impl<C, P, D> Parts<C, P, D> {
    fn of(name: Cow<'static, str>, retry: RetryLayer<C, P, Backoff, D>, breaker: CircuitBreakerLayer<C>) -> Self {
        let settings = ClientSettings::default();
        let (timeout, attempt_timeout) =
            (LiveDuration::new(settings.timeout), LiveDuration::new(settings.attempt_limit()));
        let (retry, circuit_breaker) = (retry.named(name.clone()), breaker.named(name.clone()));
        let concurrency_limit = ConcurrencyLimitLayer::new(settings.max_in_flight).named(name.clone());
        let numbers = Numbers {
            timeout: timeout.clone(),
            retries: retry.handle(),
            circuit: circuit_breaker.handle(),
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
            attempt_timeout: TimeoutLayer::new(attempt_timeout).named(name),
            numbers,
            look: None,
        }
    }

    /// Judges by another classifier: what is retried if it is transient, and what counts against the service.
    pub fn classify<C2: Clone>(self, classify: C2) -> Parts<C2, P, D> {
        let Self { timeout, retry, circuit_breaker, concurrency_limit, attempt_timeout, numbers, look } = self;
        let (retry, circuit_breaker) = (retry.classify(classify.clone()), circuit_breaker.classify(classify));
        ClientStack { timeout, retry, circuit_breaker, concurrency_limit, attempt_timeout, numbers, look }
    }

    /// For HTTP: the total covers the response's body too, an attempt is in flight until the body ends, and the circuit judges it then: see
    /// [`TimeoutLayer::until_body_end`], [`ConcurrencyLimitLayer::until_body_end`] and [`CircuitBreakerLayer::until_body_end`].
    ///
    /// An attempt's limit ends with the response's head: the body is read once, and no other attempt could take its place. Raise the total, or
    /// leave it out, for downloads that may take longer.
    pub fn until_body_end(self) -> Parts<C, P, D, BodyEnd> {
        let Self { timeout, retry, circuit_breaker, concurrency_limit, attempt_timeout, numbers, look } = self;
        let (circuit_breaker, concurrency_limit) =
            (circuit_breaker.until_body_end(), concurrency_limit.until_body_end());
        let timeout = timeout.until_body_end();
        ClientStack { timeout, retry, circuit_breaker, concurrency_limit, attempt_timeout, numbers, look }
    }
}

impl<T, R, B, L, A> ClientStack<T, R, B, L, A> {
    /// Other numbers. They belong to what all clones of this value share: each of them has these from then on, and its services too.
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

    /// The [`ClientSettings`] that `scope` holds, or the nearest of its parents, now and whenever they have changed since
    /// ([`Scope::update`]): from the next call on, and for clones of this value too. (While one call takes them over, others may still go by
    /// the ones before.) Nothing that was counted is lost, and what was set by hand, at the [`gate`](Self::gate) say, stays until
    /// its own field is changed.
    ///
    /// Where there are none, the numbers stay as they are. It does not keep the scope alive: keep it, for when it is gone nothing changes
    /// any more, in its parents neither. For two stacks with settings of their own, give each a child scope. Say it once, before the value is
    /// cloned.
    ///
    /// Later settings that [contradict](ClientSettings#contradictions) each other disturb no call: the ones before them
    /// stay, and [`LayerEvent::SettingsRefused`] tells why, in `tracing` a warning with the target `ziggurat::stack`.
    ///
    /// # Panics
    ///
    /// If the settings that the scope holds now contradict each other.
    #[track_caller]
    pub fn settings_from(mut self, scope: &Scope) -> Self {
        if let Some(settings) = scope.get::<ClientSettings>() {
            must_hold(&settings);
        }
        let (numbers, applied) = (self.numbers.clone(), Mutex::new(None));
        self.look = Some(watching(scope, move |_, now: &ClientSettings| {
            let mut applied = applied.lock().unwrap_or_else(PoisonError::into_inner);
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

    /// Another layer in the place of the total's timeout.
    pub fn with_timeout<T2>(self, timeout: T2) -> ClientStack<T2, R, B, L, A> {
        let Self { timeout: _, retry, circuit_breaker, concurrency_limit, attempt_timeout, numbers, look } = self;
        ClientStack { timeout, retry, circuit_breaker, concurrency_limit, attempt_timeout, numbers, look }
    }

    /// Without a limit for the whole call.
    pub fn without_timeout(self) -> ClientStack<Identity, R, B, L, A> {
        self.with_timeout(Identity::new())
    }

    /// Another layer in the place of the retry.
    pub fn with_retry<R2>(self, retry: R2) -> ClientStack<T, R2, B, L, A> {
        let Self { timeout, retry: _, circuit_breaker, concurrency_limit, attempt_timeout, numbers, look } = self;
        ClientStack { timeout, retry, circuit_breaker, concurrency_limit, attempt_timeout, numbers, look }
    }

    /// Without a retry.
    pub fn without_retry(self) -> ClientStack<T, Identity, B, L, A> {
        self.with_retry(Identity::new())
    }

    /// Another layer in the place of the circuit breaker.
    pub fn with_circuit_breaker<B2>(self, circuit_breaker: B2) -> ClientStack<T, R, B2, L, A> {
        let Self { timeout, retry, circuit_breaker: _, concurrency_limit, attempt_timeout, numbers, look } = self;
        ClientStack { timeout, retry, circuit_breaker, concurrency_limit, attempt_timeout, numbers, look }
    }

    /// Without a circuit breaker.
    pub fn without_circuit_breaker(self) -> ClientStack<T, R, Identity, L, A> {
        self.with_circuit_breaker(Identity::new())
    }

    /// Another layer in the place of the concurrency limit.
    pub fn with_concurrency_limit<L2>(self, concurrency_limit: L2) -> ClientStack<T, R, B, L2, A> {
        let Self { timeout, retry, circuit_breaker, concurrency_limit: _, attempt_timeout, numbers, look } = self;
        ClientStack { timeout, retry, circuit_breaker, concurrency_limit, attempt_timeout, numbers, look }
    }

    /// Without a concurrency limit.
    pub fn without_concurrency_limit(self) -> ClientStack<T, R, B, Identity, A> {
        self.with_concurrency_limit(Identity::new())
    }

    /// Another layer in the place of the attempt's timeout.
    pub fn with_attempt_timeout<A2>(self, attempt_timeout: A2) -> ClientStack<T, R, B, L, A2> {
        let Self { timeout, retry, circuit_breaker, concurrency_limit, attempt_timeout: _, numbers, look } = self;
        ClientStack { timeout, retry, circuit_breaker, concurrency_limit, attempt_timeout, numbers, look }
    }

    /// Without a limit for each attempt.
    pub fn without_attempt_timeout(self) -> ClientStack<T, R, B, L, Identity> {
        self.with_attempt_timeout(Identity::new())
    }
}

impl<T, R, C, U, L, A> ClientStack<T, R, CircuitBreakerLayer<C, U>, L, A> {
    /// The circuit that all services of this stack share.
    #[must_use]
    pub fn circuit(&self) -> CircuitBreakerHandle {
        self.circuit_breaker.handle()
    }
}

impl<T, R, B, U, A> ClientStack<T, R, B, ConcurrencyLimitLayer<U>, A> {
    /// The limit's live state.
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

impl<T: fmt::Debug, R: fmt::Debug, B: fmt::Debug, L: fmt::Debug, A: fmt::Debug> fmt::Debug
    for ClientStack<T, R, B, L, A>
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientStack")
            .field("timeout", &self.timeout)
            .field("retry", &self.retry)
            .field("circuit_breaker", &self.circuit_breaker)
            .field("concurrency_limit", &self.concurrency_limit)
            .field("attempt_timeout", &self.attempt_timeout)
            .finish_non_exhaustive()
    }
}
