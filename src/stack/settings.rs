//! The settings of the recommended stacks, which can change while a program runs.

use std::{fmt, time::Duration};

use super::{
    rules::{
        ConfigError, Contradiction, above_zero_and_at_most_one, anything, at_least_one, from_zero_to_one,
        longer_than_zero,
    },
    tenants::Rate,
};
use crate::{
    backoff::{Backoff, Jitter},
    budget::Budget,
    circuit_breaker::{FIRST_OPEN_TIME, LONGEST_OPEN_TIME, open_times},
};

/// The settings of a [`ClientStack`](super::ClientStack).
///
/// | setting | default | source of the default |
/// |---|---|---|
/// | [`timeout`](Self::timeout) | 30 s | Polly, Microsoft.Extensions.Http.Resilience |
/// | [`attempt_timeout`] | 10 s, at most `timeout` | Polly, Microsoft.Extensions.Http.Resilience |
/// | [`max_attempts`](Self::max_attempts) | 3 | resilience4j, failsafe-go |
/// | [`backoff`](Self::backoff), [`max_backoff`](Self::max_backoff) | 100 ms, 1 s | gRPC A6 |
/// | [`retry_ratio`], [`min_retries_per_second`] | 0.2, 10 | Finagle, tower |
/// | [`failure_rate`](Self::failure_rate) | 0.5 | resilience4j |
/// | [`min_calls`](Self::min_calls) | enough to distinguish the rate from chance | `tests/simulation` |
/// | [`consecutive_failures`](Self::consecutive_failures) | 0: off | |
/// | [`open_for`](Self::open_for), [`max_open_for`](Self::max_open_for) | 0.5 s, 5 s | `tests/simulation` |
/// | [`min_in_flight`], [`max_in_flight`](Self::max_in_flight) | 1, 1000 | Netflix's concurrency-limits |
/// | [`max_waiting`](Self::max_waiting) | no limit | `tests/simulation` |
///
/// [`attempt_timeout`]: Self::attempt_timeout
/// [`retry_ratio`]: Self::retry_ratio
/// [`min_retries_per_second`]: Self::min_retries_per_second
/// [`min_in_flight`]: Self::min_in_flight
///
/// # Contradictions
///
/// Four settings are limited by another: `attempt_timeout` must be at most `timeout`, `backoff` at most `max_backoff`,
/// `open_for` at most `max_open_for`, and `min_in_flight` at most `max_in_flight`.
///
/// Setters can be called in any order. A stack panics when it receives settings that contradict each other, and the
/// message names both values. [`validate`](Self::validate) finds contradictions earlier. The default of a setting
/// follows a lower limit: with only a `timeout` of 5 s, an attempt may take 5 s.
#[derive(Clone, Copy, PartialEq)]
#[must_use]
pub struct ClientSettings {
    pub(super) timeout: Duration,
    attempt_timeout: Option<Duration>,
    pub(super) max_attempts: u32,
    backoff: Option<Duration>,
    max_backoff: Option<Duration>,
    pub(super) retry_ratio: f64,
    pub(super) min_retries_per_second: u32,
    pub(super) failure_rate: f64,
    pub(super) min_calls: Option<u32>,
    pub(super) consecutive_failures: u32,
    open_for: Option<Duration>,
    max_open_for: Option<Duration>,
    pub(super) min_in_flight: usize,
    pub(super) max_in_flight: usize,
    pub(super) max_waiting: usize,
}

/// The settings of a [`ServerStack`](super::ServerStack).
///
/// | setting | default | source of the default |
/// |---|---|---|
/// | [`timeout`](Self::timeout) | 30 s | Polly, Microsoft.Extensions.Http.Resilience |
/// | [`max_in_flight`](Self::max_in_flight) | 1000 | Polly |
/// | [`max_waiting`](Self::max_waiting) | 0 | Polly |
/// | [`reclaim_after`](Self::reclaim_after) | 30 s | our choice: half of nginx's `send_timeout` (60 s) |
/// | [`tenant_rate`](Self::tenant_rate), [`tenant_burst`](Self::tenant_burst) | no limit, the rate | |
/// | [`tenant_period`](Self::tenant_period) | 1 s | |
/// | [`max_tenants`](Self::max_tenants) | 10,000 | [`PerKeyLayer`](crate::per_key::PerKeyLayer) |
/// | [`drain_grace`](Self::drain_grace) | that of the layer, 20 s | [`DrainLayer`](crate::drain::DrainLayer) |
#[derive(Debug, Clone, Copy, PartialEq)]
#[must_use]
pub struct ServerSettings {
    pub(super) timeout: Duration,
    pub(super) max_in_flight: usize,
    pub(super) max_waiting: usize,
    pub(super) reclaim_after: Duration,
    tenant_rate: Option<u32>,
    tenant_period: Duration,
    tenant_burst: Option<u32>,
    pub(super) max_tenants: usize,
    pub(super) drain_grace: Option<Duration>,
}

impl Default for ClientSettings {
    fn default() -> Self {
        Self {
            timeout: Duration::from_secs(30),
            attempt_timeout: None,
            max_attempts: 3,
            backoff: None,
            max_backoff: None,
            retry_ratio: 0.2,
            min_retries_per_second: 10,
            failure_rate: 0.5,
            min_calls: None,
            consecutive_failures: 0,
            open_for: None,
            max_open_for: None,
            min_in_flight: 1,
            max_in_flight: 1000,
            max_waiting: usize::MAX,
        }
    }
}

impl Default for ServerSettings {
    fn default() -> Self {
        Self {
            timeout: Duration::from_secs(30),
            max_in_flight: 1000,
            max_waiting: 0,
            reclaim_after: Duration::from_secs(30),
            tenant_rate: None,
            tenant_period: Duration::from_secs(1),
            tenant_burst: None,
            max_tenants: 10_000,
            drain_grace: None,
        }
    }
}

/// Defines setters, each with the rule for its value. A value that breaks its rule panics in code, and is an error in a
/// file.
macro_rules! settings {
    ($settings:ident { $($(#[$doc:meta])* $field:ident: $type:ty => $rule:ident;)* }) => {
        impl $settings {
            $(
                $(#[$doc])*
                #[track_caller]
                pub fn $field(mut self, $field: $type) -> Self {
                    if let Err(broken) = $rule(&$field) {
                        panic!("`{}` {broken}", stringify!($field));
                    }
                    self.$field = $field.into();
                    self
                }
            )*
        }

        #[cfg(feature = "serde")]
        impl super::fields::Fields for $settings {
            const NAMES: &[&str] = &[$(stringify!($field)),*];

            fn set(&mut self, field: &str, value: super::fields::Value) -> Result<(), String> {
                match field {
                    $(
                        stringify!($field) => {
                            let value: $type = value.read()?;
                            $rule(&value)?;
                            self.$field = value.into();
                        }
                    )*
                    _ => return Err(format!("is not one of the settings, which are {}", Self::NAMES.join(", "))),
                }
                Ok(())
            }

            fn contradiction(&self) -> Option<Contradiction> {
                self.first_contradiction()
            }
        }
    };
}

settings! { ClientSettings {
    /// Sets the limit of the whole call: waiting in the queue, all attempts, the pauses between them, and, with
    /// [`until_body_end`](super::ClientStack::until_body_end), the response's body.
    ///
    /// # Panics
    ///
    /// If `timeout` is zero.
    timeout: Duration => longer_than_zero;

    /// Sets the limit of one attempt until its response arrives, at most [`timeout`](Self::timeout). An attempt ends
    /// earlier if the call has less time left.
    ///
    /// # Panics
    ///
    /// If `attempt_timeout` is zero.
    attempt_timeout: Duration => longer_than_zero;

    /// Sets the maximum number of attempts, including the first. With 1, nothing is retried.
    ///
    /// # Panics
    ///
    /// If `max_attempts` is 0.
    max_attempts: u32 => at_least_one;

    /// Sets the wait before the first retry, at most [`max_backoff`](Self::max_backoff). Each later wait is twice as
    /// long. With jitter, the actual wait is between zero and that.
    backoff: Duration => anything;

    /// Sets the longest wait before a retry, unless the service asks for a longer one.
    max_backoff: Duration => anything;

    /// Sets the fraction of requests that may be retried, over a window of ten seconds.
    ///
    /// # Panics
    ///
    /// If `retry_ratio` is not a number from 0 to 1.
    retry_ratio: f64 => from_zero_to_one;

    /// Sets the number of retries per second that are granted regardless of the ratio.
    min_retries_per_second: u32 => anything;

    /// Sets the fraction of calls in the last 30 seconds that must fail to open the circuit.
    ///
    /// # Panics
    ///
    /// If `failure_rate` is not above 0 and at most 1.
    failure_rate: f64 => above_zero_and_at_most_one;

    /// Sets the number of calls that are enough to know the failure rate. The default is as many as it takes to
    /// separate the rate from chance, at least 20: see
    /// [`CircuitBreakerLayer::min_calls`](crate::circuit_breaker::CircuitBreakerLayer::min_calls).
    ///
    /// # Panics
    ///
    /// If `min_calls` is 0.
    min_calls: u32 => at_least_one;

    /// Sets the number of consecutive failures that opens the circuit, sooner than the failure rate can. With 0, the
    /// default, consecutive failures do not open it.
    consecutive_failures: u32 => anything;

    /// Sets how long the circuit stays open the first time, at most [`max_open_for`](Self::max_open_for). The time
    /// grows with each consecutive opening, to about a twentieth of the outage so far. Jitter adds up to half of it,
    /// and never shortens it.
    open_for: Duration => anything;

    /// Sets the longest time that the circuit stays open by itself. The default is 5 s, or `open_for` if that is
    /// longer. It stays open for longer if the service asks for that, up to 300 s.
    max_open_for: Duration => anything;

    /// Sets the number of attempts that may always be in flight: the limit does not fall below it. The default is 1.
    ///
    /// The limit starts at 20 and takes a rising latency for a queue, so calls of very different lengths mislead it. If
    /// some calls of a service wait for news or stream for seconds, set the number of calls that it can surely serve at
    /// a time, or use one stack for each kind of call.
    ///
    /// # Panics
    ///
    /// If `min_in_flight` is 0.
    min_in_flight: usize => at_least_one;

    /// Sets the maximum number of attempts in flight. Up to it, the limit follows the capacity of the service, from 20
    /// at the start: see [`Adaptive::gradient`](crate::concurrency_limit::Adaptive::gradient).
    ///
    /// # Panics
    ///
    /// If `max_in_flight` is 0.
    max_in_flight: usize => at_least_one;

    /// Sets the maximum number of attempts that wait for a permit. Further attempts are rejected at once. By default,
    /// deadlines and the pace of the service decide how many wait: see
    /// [waiting](crate::concurrency_limit#waiting).
    max_waiting: usize => anything;
} }

settings! { ServerSettings {
    /// Sets the limit of a request until its response arrives, or less if the caller sends a shorter `grpc-timeout`.
    /// The body may take longer: a download lasts as long as its client needs.
    ///
    /// # Panics
    ///
    /// If `timeout` is zero.
    timeout: Duration => longer_than_zero;

    /// Sets the maximum number of requests in flight, each until the end of its response's body.
    ///
    /// # Panics
    ///
    /// If `max_in_flight` is 0.
    max_in_flight: usize => at_least_one;

    /// Sets the maximum number of requests that wait for a permit. Further requests get a 503 with `Retry-After` at
    /// once.
    max_waiting: usize => anything;

    /// Sets how long a response's body may yield no frame, for example because its client does not read, before it can
    /// lose its permit to a request that needs one: see
    /// [`ConcurrencyLimitLayer::reclaim_after`](crate::concurrency_limit::ConcurrencyLimitLayer::reclaim_after).
    ///
    /// # Panics
    ///
    /// If `reclaim_after` is zero.
    reclaim_after: Duration => longer_than_zero;

    /// Sets the number of requests of each tenant in each [`tenant_period`](Self::tenant_period), for a stack
    /// [`with_rate_per`](super::ServerStack::with_rate_per) tenant. Without it, no rate is limited.
    ///
    /// # Panics
    ///
    /// If `tenant_rate` is 0.
    tenant_rate: u32 => at_least_one;

    /// Sets the period of the [`tenant_rate`](Self::tenant_rate). The default is one second.
    ///
    /// # Panics
    ///
    /// If `tenant_period` is zero.
    tenant_period: Duration => longer_than_zero;

    /// Sets the number of requests that a tenant can make at once. The default is the
    /// [`tenant_rate`](Self::tenant_rate).
    ///
    /// # Panics
    ///
    /// If `tenant_burst` is 0.
    tenant_burst: u32 => at_least_one;

    /// Sets the number of tenants that have a rate of their own. Beyond it, all others share one: see
    /// [`PerKeyLayer::max_keys`](crate::per_key::PerKeyLayer::max_keys).
    ///
    /// # Panics
    ///
    /// If `max_tenants` is 0.
    max_tenants: usize => at_least_one;

    /// Sets how long requests in flight may go on when the server drains, for a stack
    /// [`with_drain`](super::ServerStack::with_drain). It has no effect once the drain has begun.
    drain_grace: Duration => anything;
} }

impl ClientSettings {
    /// Checks that no two settings contradict each other: see [Contradictions](Self#contradictions).
    ///
    /// # Errors
    ///
    /// If two settings contradict each other. The error names both, with their values.
    pub fn validate(&self) -> Result<(), ConfigError> {
        self.first_contradiction().map_or(Ok(()), |one| Err(one.into()))
    }

    fn first_contradiction(&self) -> Option<Contradiction> {
        let at_most = Contradiction::unless_at_most::<Duration>;
        at_most("attempt_timeout", self.attempt_limit(), "timeout", self.timeout)
            .or_else(|| at_most("backoff", self.first_wait(), "max_backoff", self.longest_wait()))
            .or_else(|| at_most("open_for", self.first_open_time(), "max_open_for", self.longest_open_time()))
            .or_else(|| {
                Contradiction::unless_at_most("min_in_flight", self.min_in_flight, "max_in_flight", self.max_in_flight)
            })
    }

    pub(super) fn attempt_limit(&self) -> Duration {
        self.attempt_timeout.unwrap_or(self.timeout.min(Duration::from_secs(10)))
    }

    fn longest_wait(&self) -> Duration {
        self.max_backoff.unwrap_or(Duration::from_secs(1))
    }

    fn first_wait(&self) -> Duration {
        self.backoff.unwrap_or(self.longest_wait().min(Duration::from_millis(100)))
    }

    fn longest_open_time(&self) -> Duration {
        self.max_open_for.unwrap_or(LONGEST_OPEN_TIME.max(self.open_for.unwrap_or_default()))
    }

    fn first_open_time(&self) -> Duration {
        self.open_for.unwrap_or(self.longest_open_time().min(FIRST_OPEN_TIME))
    }

    pub(super) fn budget(&self) -> Budget {
        Budget::new(self.retry_ratio).min_per_second(self.min_retries_per_second)
    }

    /// The settings must be valid.
    pub(super) fn waits(&self) -> Backoff {
        Backoff::exponential(self.first_wait()).max(self.longest_wait()).jitter(Jitter::Full)
    }

    /// The settings must be valid.
    pub(super) fn open_times(&self) -> Backoff {
        open_times(self.first_open_time(), self.longest_open_time())
    }
}

/// Shows the defaults of settings that were not set.
impl fmt::Debug for ClientSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientSettings")
            .field("timeout", &self.timeout)
            .field("attempt_timeout", &self.attempt_limit())
            .field("max_attempts", &self.max_attempts)
            .field("backoff", &self.first_wait())
            .field("max_backoff", &self.longest_wait())
            .field("retry_ratio", &self.retry_ratio)
            .field("min_retries_per_second", &self.min_retries_per_second)
            .field("failure_rate", &self.failure_rate)
            .field("min_calls", &self.min_calls)
            .field("consecutive_failures", &self.consecutive_failures)
            .field("open_for", &self.first_open_time())
            .field("max_open_for", &self.longest_open_time())
            .field("min_in_flight", &self.min_in_flight)
            .field("max_in_flight", &self.max_in_flight)
            .field("max_waiting", &self.max_waiting)
            .finish()
    }
}

impl ServerSettings {
    pub(super) fn rate_of_tenants(&self) -> Rate {
        Rate { quantity: self.tenant_rate, period: self.tenant_period, burst: self.tenant_burst }
    }

    #[cfg(feature = "serde")]
    fn first_contradiction(&self) -> Option<Contradiction> {
        None
    }
}
