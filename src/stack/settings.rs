//! The numbers of the recommended stacks: all that can be changed while a program runs.

use std::{fmt::Debug, time::Duration};

use crate::{Backoff, Jitter, retry::Budget};

/// The numbers of a [`ClientStack`](super::ClientStack).
///
/// | setting | default | source of the default |
/// |---|---|---|
/// | [`timeout`](Self::timeout) | 30 s | Polly, Microsoft.Extensions.Http.Resilience |
/// | [`attempt_timeout`](Self::attempt_timeout) | 10 s | Polly, Microsoft.Extensions.Http.Resilience |
/// | [`max_attempts`](Self::max_attempts) | 3 | resilience4j, failsafe-go |
/// | [`backoff`](Self::backoff), [`max_backoff`](Self::max_backoff) | 100 ms, 1 s | gRPC A6 |
/// | [`retry_ratio`](Self::retry_ratio), [`min_retries_per_second`](Self::min_retries_per_second) | 0.2, 10 | Finagle, tower |
/// | [`failure_rate`](Self::failure_rate), [`min_calls`](Self::min_calls) | 0.5, 20 | resilience4j, Polly, Finagle |
/// | [`consecutive_failures`](Self::consecutive_failures) | 0: off | |
/// | [`open_for`](Self::open_for), [`max_open_for`](Self::max_open_for) | 5 s, 300 s | Polly, Finagle |
/// | [`max_in_flight`](Self::max_in_flight) | 25 | resilience4j |
/// | [`max_waiting`](Self::max_waiting) | 50 | our choice: a full queue is two turns long |
#[derive(Debug, Clone, Copy, PartialEq)]
#[must_use]
pub struct ClientSettings {
    pub(super) timeout: Duration,
    pub(super) attempt_timeout: Duration,
    pub(super) max_attempts: u32,
    pub(super) backoff: Duration,
    pub(super) max_backoff: Duration,
    pub(super) retry_ratio: f64,
    pub(super) min_retries_per_second: u32,
    pub(super) failure_rate: f64,
    pub(super) min_calls: u32,
    pub(super) consecutive_failures: u32,
    pub(super) open_for: Duration,
    pub(super) max_open_for: Duration,
    pub(super) max_in_flight: usize,
    pub(super) max_waiting: usize,
}

/// The numbers of a [`ServerStack`](super::ServerStack).
///
/// | setting | default | source of the default |
/// |---|---|---|
/// | [`timeout`](Self::timeout) | 30 s | Polly, Microsoft.Extensions.Http.Resilience |
/// | [`max_in_flight`](Self::max_in_flight) | 1000 | Polly |
/// | [`max_waiting`](Self::max_waiting) | 0 | Polly |
#[derive(Debug, Clone, Copy, PartialEq)]
#[must_use]
pub struct ServerSettings {
    pub(super) timeout: Duration,
    pub(super) max_in_flight: usize,
    pub(super) max_waiting: usize,
}

impl Default for ClientSettings {
    fn default() -> Self {
        Self {
            timeout: Duration::from_secs(30),
            attempt_timeout: Duration::from_secs(10),
            max_attempts: 3,
            backoff: Duration::from_millis(100),
            max_backoff: Duration::from_secs(1),
            retry_ratio: 0.2,
            min_retries_per_second: 10,
            failure_rate: 0.5,
            min_calls: 20,
            consecutive_failures: 0,
            open_for: Duration::from_secs(5),
            max_open_for: Duration::from_secs(300),
            max_in_flight: 25,
            max_waiting: 50,
        }
    }
}

impl Default for ServerSettings {
    fn default() -> Self {
        Self { timeout: Duration::from_secs(30), max_in_flight: 1000, max_waiting: 0 }
    }
}

/// Setters, each with the rule that its value obeys: here it is for who writes a program, where a broken rule panics, and for who
/// writes a file, where it is an error.
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
                    self.$field = $field;
                    self
                }
            )*
        }

        #[cfg(feature = "serde")]
        impl super::file::Fields for $settings {
            const NAMES: &[&str] = &[$(stringify!($field)),*];

            fn set(&mut self, field: &str, value: super::file::Value) -> Result<(), String> {
                match field {
                    $(
                        stringify!($field) => {
                            let value: $type = value.read()?;
                            $rule(&value)?;
                            self.$field = value;
                        }
                    )*
                    _ => return Err(format!("is not one of the settings, which are {}", Self::NAMES.join(", "))),
                }
                Ok(())
            }
        }
    };
}

settings! { ClientSettings {
    /// How long a call may take in all: waiting for its turn, all attempts, and the pauses between them.
    ///
    /// # Panics
    ///
    /// If it is zero.
    timeout: Duration => longer_than_zero;

    /// How long one attempt may take; less if the call has less left.
    ///
    /// # Panics
    ///
    /// If it is zero.
    attempt_timeout: Duration => longer_than_zero;

    /// How often a request is sent at most, the first time included. With 1 nothing is retried.
    ///
    /// # Panics
    ///
    /// If it is 0.
    max_attempts: u32 => at_least_one;

    /// How long to wait before the first retry. Each further wait is twice as long, and each is anything from zero to that.
    backoff: Duration => anything;

    /// No wait before a retry is longer than this, unless the service asks for it.
    max_backoff: Duration => anything;

    /// Which share of the requests of ten seconds may be retried.
    ///
    /// # Panics
    ///
    /// If it is not a number from 0 to 1.
    retry_ratio: f64 => from_zero_to_one;

    /// So many retries are granted for each second, whatever the share.
    min_retries_per_second: u32 => anything;

    /// Which part of the calls of the last 30 seconds has to fail to open the circuit.
    ///
    /// # Panics
    ///
    /// If it is not above 0 and at most 1.
    failure_rate: f64 => above_zero_and_at_most_one;

    /// How many calls there have to be before a rate opens the circuit.
    ///
    /// # Panics
    ///
    /// If it is 0.
    min_calls: u32 => at_least_one;

    /// The number of failures in a row that opens the circuit too, sooner than a rate can. With 0, the default, no number of them does.
    consecutive_failures: u32 => anything;

    /// How long the circuit stays open the first time. Each further time in a row it is twice as long, with jitter.
    open_for: Duration => anything;

    /// The circuit never stays open for longer than this.
    max_open_for: Duration => anything;

    /// How many attempts may be in flight at once.
    ///
    /// # Panics
    ///
    /// If it is 0.
    max_in_flight: usize => at_least_one;

    /// How many attempts may wait for that; the next one is rejected at once.
    max_waiting: usize => anything;
} }

settings! { ServerSettings {
    /// How long a request may take until its response is there; less if its caller says so in `grpc-timeout`.
    ///
    /// # Panics
    ///
    /// If it is zero.
    timeout: Duration => longer_than_zero;

    /// How many requests may be in flight at once, to the end of their response's body.
    ///
    /// # Panics
    ///
    /// If it is 0.
    max_in_flight: usize => at_least_one;

    /// How many requests may wait for that; the next one is answered at once, with 503 and when to come back.
    max_waiting: usize => anything;
} }

impl ClientSettings {
    pub(super) fn budget(&self) -> Budget {
        Budget::new(self.retry_ratio).min_per_second(self.min_retries_per_second)
    }

    pub(super) fn waits(&self) -> Backoff {
        Backoff::exponential(self.backoff).max(self.max_backoff).jitter(Jitter::Full)
    }

    pub(super) fn open_times(&self) -> Backoff {
        Backoff::exponential(self.open_for).max(self.max_open_for).jitter(Jitter::Equal)
    }
}

fn anything<T>(_: &T) -> Result<(), String> {
    Ok(())
}

fn longer_than_zero(time: &Duration) -> Result<(), String> {
    must(!time.is_zero(), "be longer than zero", time)
}

fn at_least_one<T: PartialOrd + From<u8> + Debug>(number: &T) -> Result<(), String> {
    must(*number >= T::from(1), "be at least 1", number)
}

fn from_zero_to_one(part: &f64) -> Result<(), String> {
    must((0.0..=1.0).contains(part), "be a number from 0 to 1", part)
}

fn above_zero_and_at_most_one(part: &f64) -> Result<(), String> {
    must(*part > 0.0 && *part <= 1.0, "be above 0 and at most 1", part)
}

fn must(holds: bool, rule: &str, value: impl Debug) -> Result<(), String> {
    if holds { Ok(()) } else { Err(format!("must {rule}, not {value:?}")) }
}
