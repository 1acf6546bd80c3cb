//! seatbelt's layers, with the policies of the other subjects.

use std::{
    future::{Ready, ready},
    time::Duration,
};

use layered::Execute;
use seatbelt::{
    RecoveryInfo, ResilienceContext,
    breaker::{Breaker, BreakerLayer},
    retry::{Backoff, Retry, RetryLayer},
    timeout::{Timeout, TimeoutLayer},
};
use tick::Clock;

use crate::{Failed, Word};

type Outcome = Result<Word, Failed>;

/// Builds the layers. They share a clock that the tokio runtime drives, and report no telemetry.
pub(super) struct Belt(ResilienceContext<Word, Outcome>);

impl Belt {
    /// Needs a tokio runtime.
    pub(super) fn new() -> Self {
        Self(ResilienceContext::new(Clock::new_tokio()))
    }

    pub(super) fn timeout(&self, limit: Duration) -> TimeoutLayer<Word, Outcome> {
        Timeout::layer("timeout", &self.0).timeout(limit).timeout_error(|_| Failed)
    }

    /// Three attempts in all.
    pub(super) fn retry(&self, wait: Duration) -> RetryLayer<Word, Outcome> {
        Retry::layer("retry", &self.0)
            .max_retry_attempts(2)
            .backoff(Backoff::Constant)
            .base_delay(wait)
            .clone_input()
            .recovery_with(|outcome, _| recovery(outcome))
    }

    /// Opens at half of at least 20 calls in 30 s, as ours does. It has no window of a number of calls.
    pub(super) fn breaker(&self) -> BreakerLayer<Word, Outcome> {
        Breaker::layer("breaker", &self.0)
            .failure_threshold(0.5)
            .min_throughput(20)
            .sampling_duration(Duration::from_secs(30))
            .recovery_with(|outcome, _| recovery(outcome))
            .rejected_input_error(|_, _| Failed)
    }
}

fn recovery(outcome: &Outcome) -> RecoveryInfo {
    match outcome {
        Ok(_) => RecoveryInfo::never(),
        Err(_) => RecoveryInfo::retry(),
    }
}

/// The bare service of a stack of `layered`: a call of it costs as much as one of `Echo`.
pub(super) fn echo() -> Execute<impl Fn(Word) -> Ready<Outcome>> {
    Execute::new(|word| ready(Ok(word)))
}
