//! Decides whether to retry, and reports how earlier attempts failed.

use std::{fmt, time::Duration};

use super::{RetryLayer, Wait};
use crate::{
    ambient::{Attempt, Deadline},
    budget::Withdrawal,
    caught::contained,
    clock,
    copy::CopyRequest,
    outcome::{Cause, Class, Classify, Reject, Rejection, is_bad_certificate, judged_as, was_unprocessed},
    telemetry::LayerEvent,
};

/// The longest `Retry-After` that is honoured. A longer one ends the retries.
const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(300);

/// The minimum time for draining a response, even if the pause is shorter. `LONGEST_LINGER` is the maximum, even if the
/// pause is longer.
const LINGER: Duration = Duration::from_millis(100);
const LONGEST_LINGER: Duration = Duration::from_secs(1);

/// An attempt that has ended.
pub(super) struct Over {
    pub(super) attempt: u32,
    pub(super) class: Class,
    /// The last wait that the layer's own backoff computed, without the wait that a service asked for.
    pub(super) last_wait: Duration,
    /// The longest wait that the service asked for in earlier attempts.
    pub(super) asked_before: Duration,
    /// Whether the request may be sent again even if it was processed.
    pub(super) may_repeat: bool,
}

/// A retry that was granted.
pub(super) struct Granted {
    pub(super) wait: Duration,
    /// The wait that the layer's own backoff computed.
    pub(super) own_wait: Duration,
    /// How long the response of the failed attempt may be kept.
    pub(super) linger: Duration,
    pub(super) withdrawal: Option<Withdrawal>,
}

impl<C, P, B, D> RetryLayer<C, P, B, D> {
    /// Returns a copy of a request that is about to be sent, if there is an attempt left for it, and whether the copy
    /// may be sent even if the request was processed.
    #[inline]
    pub(super) fn copy_of<Req>(&self, attempt: Attempt, request: &Req) -> (Option<Req>, bool)
    where
        P: CopyRequest<Req>,
    {
        if attempt.0 >= self.retries.max_attempts() {
            return (None, false);
        }
        match self.copy.copy(request) {
            None => (self.copy.copy_unprocessed(request), false),
            copy => (copy, true),
        }
    }

    /// Decides whether to retry with this copy of the request, and after which wait.
    #[cold]
    pub(super) fn try_again<Req, R, E>(
        &self,
        over: &Over,
        copy: Option<&Req>,
        outcome: &Result<R, E>,
    ) -> Option<Granted>
    where
        E: Reject<R> + fmt::Display,
        C: Classify<R, E>,
        P: CopyRequest<Req>,
        B: Wait<R, E>,
    {
        let attempt = over.attempt;
        let cause = Cause { outcome, classify: &self.classify };
        if !over.class.is_transient() {
            let reason = if over.class.is_failure() { "permanent" } else { "ignored" };
            if over.class.is_failure() || judged_as(outcome).is_some() {
                self.info.emit(LayerEvent::NotRetried { attempt, reason, cause: format_args!("{cause}") });
            }
            return None;
        }
        match self.grant(over, copy, outcome) {
            Ok(granted) => {
                self.info.emit(LayerEvent::Retrying { attempt, delay: granted.wait, cause: format_args!("{cause}") });
                Some(granted)
            }
            Err(reason) => {
                self.info.emit(LayerEvent::GaveUp { attempt, reason, cause: format_args!("{cause}") });
                None
            }
        }
    }

    /// Grants a retry, or returns the reason for refusing one.
    fn grant<Req, R, E>(&self, over: &Over, copy: Option<&Req>, outcome: &Result<R, E>) -> Result<Granted, &'static str>
    where
        E: Reject<R>,
        P: CopyRequest<Req>,
        B: Wait<R, E>,
    {
        if over.attempt >= self.retries.max_attempts() {
            return Err("attempts");
        }
        if E::cause(outcome).is_some_and(is_bad_certificate) {
            return Err("certificate");
        }
        let copy = copy.filter(|_| over.may_repeat || was_unprocessed(outcome)).ok_or("copy")?;
        let left = Deadline::current().map(|deadline| deadline.remaining());
        let asked = over.class.retry_after();
        if asked.unwrap_or_default() > left.unwrap_or(LONGEST_RETRY_AFTER).min(LONGEST_RETRY_AFTER) {
            return Err("retry_after");
        }
        let own_wait = self.own_wait(over, outcome.as_ref()).ok_or("backoff")?;
        // The wait that was requested after an earlier attempt is over. If this attempt requests none, the same wait is
        // the safer guess.
        let again = over.asked_before.max(own_wait);
        let wait = match asked {
            Some(asked) => asked.max(own_wait),
            None if left.is_none_or(|left| again < left) => again,
            None => own_wait,
        };
        if left.is_some_and(|left| wait >= left) {
            return Err("deadline");
        }
        let withdrawal = match self.retries.held_budget() {
            Some(budget) => Some(budget.withdraw(clock::now()).ok_or("budget")?),
            None => None,
        };
        // Last, because a successful claim ends the previous attempt.
        if !self.copy.claim(copy) {
            return Err("copy");
        }
        let linger = left.map_or(LINGER, |left| LINGER.min(left / 10)).max(wait.min(LONGEST_LINGER));
        Ok(Granted { wait, own_wait, linger, withdrawal })
    }

    /// The layer's own wait; `None` if the user's function panicked.
    fn own_wait<R, E>(&self, over: &Over, outcome: Result<&R, &E>) -> Option<Duration>
    where
        B: Wait<R, E>,
    {
        match self.retries.backoff() {
            Some(backoff) => Some(backoff.wait(over.attempt, over.last_wait, outcome)),
            None => contained(|| self.backoff.wait(over.attempt, over.last_wait, outcome)),
        }
    }
}

/// The earlier attempts of a request.
pub(super) struct Earlier<E> {
    /// The last wait that the backoff computed.
    pub(super) last_wait: Duration,
    /// The longest wait that the service has asked for.
    pub(super) asked: Duration,
    /// The next attempt's share of the budget, until the request is sent.
    pub(super) granted: Option<Withdrawal>,
    /// How an earlier attempt failed, for the case that the last outcome does not show it.
    pub(super) previous: Previous<E>,
}

impl<E> Default for Earlier<E> {
    fn default() -> Self {
        Self { last_wait: Duration::ZERO, asked: Duration::ZERO, granted: None, previous: Previous::default() }
    }
}

/// How an earlier attempt failed, if any did.
pub(super) struct Previous<E> {
    failure: Option<Failure<E>>,
    /// The reason of a rejection.
    reason: Option<&'static str>,
    /// Whether the request was sent, that is, the service became ready.
    sent: bool,
}

enum Failure<E> {
    Error(E),
    Response(String),
}

impl<E> Previous<E> {
    /// Records a failed attempt and returns its response. The service's own failure takes precedence over a later
    /// rejection, and the failure of a request that was sent over that of one that was not.
    pub(super) fn record<R, C>(&mut self, outcome: Result<R, E>, classify: &C, sent: bool) -> Option<R>
    where
        E: Reject<R> + fmt::Display,
        C: Classify<R, E>,
    {
        let reason = E::rejection(&outcome).map(|rejection| rejection.reason().as_str());
        let counts_more =
            self.failure.is_some() && ((self.reason.is_none() && reason.is_some()) || (self.sent && !sent));
        if counts_more {
            return outcome.ok();
        }
        (self.reason, self.sent) = (reason, sent);
        let said = outcome.is_ok().then(|| Cause { outcome: &outcome, classify }.to_string());
        self.failure = said.map(Failure::Response);
        match outcome {
            Ok(response) => Some(response),
            Err(error) => {
                self.failure = Some(Failure::Error(error));
                None
            }
        }
    }

    /// Returns the caller's result, given the outcome of the last attempt. That is the outcome itself, unless it
    /// hides how the service failed before.
    pub(super) fn last<R>(&mut self, outcome: Result<R, E>, sent: bool) -> Result<R, E>
    where
        E: Reject<R> + fmt::Display,
    {
        let Some(failure) = self.failure.take() else { return outcome };
        match (E::rejection(&outcome), failure) {
            (Some(rejection), failure) if outcome.is_err() => match rejection.previous() {
                None if self.reason != Some(rejection.reason().as_str()) => E::reject(told(rejection, &failure)),
                _ => outcome,
            },
            // The service never became ready again.
            (None, Failure::Error(error)) if self.sent && !sent => Err(error),
            _ => outcome,
        }
    }
}

fn told<E: fmt::Display>(rejection: &Rejection, failure: &Failure<E>) -> Rejection {
    let rejection = rejection.clone();
    match failure {
        Failure::Error(error) => rejection.with_previous(error),
        Failure::Response(said) => rejection.with_previous(said),
    }
}

impl<E> Default for Previous<E> {
    fn default() -> Self {
        Self { failure: None, reason: None, sent: false }
    }
}

#[cfg(all(test, feature = "rustls"))]
mod tests {
    use std::{
        io,
        sync::{Arc, Mutex},
    };

    use tower::{ServiceBuilder, ServiceExt, service_fn};

    use super::*;
    use crate::{outcome::Error, telemetry::LayerInfo};

    /// The certificate would not verify the next time either.
    #[tokio::test(start_paused = true)]
    async fn a_certificate_that_does_not_verify_is_not_tried_again() {
        let told = Arc::new(Mutex::new(Vec::new()));
        let hears = Arc::clone(&told);
        let layer = RetryLayer::new().observer(move |_: &LayerInfo, event: &LayerEvent<'_>| {
            let LayerEvent::GaveUp { attempt, reason, .. } = event else { panic!("{event:?}") };
            hears.lock().unwrap().push((*attempt, *reason));
        });
        let service = ServiceBuilder::new().layer(layer).map_err(Error::Service).service(service_fn(|()| async {
            let expired = rustls::Error::InvalidCertificate(rustls::CertificateError::Expired);
            Err::<(), _>(io::Error::new(io::ErrorKind::InvalidData, expired))
        }));
        assert!(service.oneshot(()).await.is_err());
        assert_eq!(*told.lock().unwrap(), [(1, "certificate")]);
    }
}
