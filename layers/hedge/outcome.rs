//! Judges the outcomes of attempts: which ends the call, which starts a hedge, and which the caller receives.

use std::{fmt, time::Duration};

use super::HedgeLayer;
use crate::{
    ambient::deadline,
    budget::Withdrawal,
    caught::undisturbed,
    clock,
    copy::CopyRequest,
    outcome::{Cause, Class, Classify, Reject, is_bad_certificate, judged_as, reason_of, was_unprocessed},
    telemetry::LayerEvent,
};

/// A hedge that was granted and has not been sent.
#[derive(Debug)]
pub(super) struct Granted {
    pub(super) withdrawal: Option<Withdrawal>,
    pub(super) reason: &'static str,
}

/// Why no hedge starts beside the first attempt.
pub(super) enum Refused {
    /// The first attempt is still sending the request.
    ForNow,
    ForGood,
}

/// How an attempt ended that did not end the call.
pub(super) struct Failure<R, E> {
    rank: Rank,
    // None: it was a response, which has been dropped.
    outcome: Option<Result<R, E>>,
    // The description of that response.
    said: Option<String>,
}

/// The rank of an outcome. The caller receives the one with the higher rank, and of two with the same rank the first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    /// The service did not see the request.
    NotSent,
    Failed,
    /// The service asks callers to wait, and a retry outside has to know.
    AsksToWait,
}

/// Whether an outcome ends the call: a success, or an outcome of the service's own that is no failure.
pub(super) fn ends_the_call<R, E: Reject<R>>(class: Class, outcome: &Result<R, E>) -> bool {
    class == Class::Success || (class == Class::Ignored && judged_as(outcome).is_none())
}

/// Whether the service declined the request or asks callers to wait, so that no further attempt may be sent now.
pub(super) fn asks_to_wait(class: Class) -> bool {
    matches!(class, Class::Declined { .. }) || class.retry_after().is_some_and(|wait| wait > Duration::ZERO)
}

impl<W, C, P> HedgeLayer<W, C, P> {
    /// Grants a hedge beside the first attempt, with this copy of the request.
    #[cold]
    pub(super) fn grant_beside<Req>(&self, copy: &Req) -> Result<Granted, Refused>
    where
        P: CopyRequest<Req>,
    {
        if deadline::has_passed() {
            return Err(Refused::ForGood);
        }
        let withdrawal = self.withdraw().ok_or(Refused::ForGood)?;
        if !self.copy.claim_beside(copy) {
            return Err(Refused::ForNow);
        }
        Ok(Granted { withdrawal, reason: "delay" })
    }

    /// Grants a hedge after the first attempt has failed, with this copy of the request.
    #[cold]
    pub(super) fn grant_after<Req, R, E>(
        &self,
        copy: Option<&Req>,
        may_repeat: bool,
        class: Class,
        outcome: &Result<R, E>,
    ) -> Option<Granted>
    where
        E: Reject<R>,
        P: CopyRequest<Req>,
    {
        let copy = copy.filter(|_| may_repeat || was_unprocessed(outcome))?;
        let is_hopeless = !class.is_transient() || E::cause(outcome).is_some_and(is_bad_certificate);
        if is_hopeless || asks_to_wait(class) || deadline::has_passed() {
            return None;
        }
        let withdrawal = self.withdraw()?;
        // Last, because a successful claim ends the first attempt.
        self.copy.claim(copy).then(|| Granted { withdrawal, reason: reason_of(outcome) })
    }

    /// Takes a hedge from the budget. Without a budget, there is nothing to take.
    #[expect(clippy::option_option, reason = "the inner one is what is granted")]
    fn withdraw(&self) -> Option<Option<Withdrawal>> {
        let Some(budget) = &self.budget else { return Some(None) };
        let withdrawal = budget.withdraw(clock::now());
        if withdrawal.is_none() {
            self.info.emit(LayerEvent::HedgeRefused { reason: "budget" });
        }
        withdrawal.map(Some)
    }

    /// Records that a hedge was sent.
    #[cold]
    pub(super) fn sent(&self, granted: Granted) {
        let Granted { withdrawal, reason } = granted;
        if let Some(withdrawal) = withdrawal {
            withdrawal.spend();
        }
        self.info.emit(LayerEvent::Hedged { reason });
    }

    /// Records a failure while another attempt goes on. A response is dropped, because its body may hold the permit
    /// that the other attempt waits for, unless a retry outside has to see it.
    #[cold]
    pub(super) fn keep<R, E>(&self, class: Class, outcome: Result<R, E>, sent: bool) -> Box<Failure<R, E>>
    where
        E: Reject<R> + fmt::Display,
        C: Classify<R, E>,
    {
        let rank = rank(class, &outcome, sent);
        if rank != Rank::Failed || outcome.is_err() {
            return Box::new(Failure { rank, outcome: Some(outcome), said: None });
        }
        let said = Some(Cause { outcome: &outcome, classify: &self.classify }.to_string());
        undisturbed(|| drop(outcome));
        Box::new(Failure { rank, outcome: None, said })
    }

    /// Returns the caller's outcome, after both attempts have failed.
    #[cold]
    pub(super) fn settle<R, E>(
        &self,
        before: Option<Box<Failure<R, E>>>,
        class: Class,
        outcome: Result<R, E>,
        sent: bool,
    ) -> Result<R, E>
    where
        E: Reject<R> + fmt::Display,
        C: Classify<R, E>,
    {
        let Some(before) = before else { return outcome };
        let Failure { rank: rank_before, outcome: kept, said } = *before;
        match kept {
            Some(kept) => {
                let is_before = rank_before >= rank(class, &outcome, sent);
                let (returned, dropped) = if is_before { (kept, outcome) } else { (outcome, kept) };
                undisturbed(|| drop(dropped));
                returned
            }
            // A rejection must not hide how the service failed.
            None => match (E::rejection(&outcome), said) {
                (Some(rejection), Some(said)) if rejection.previous().is_none() => {
                    E::reject(rejection.clone().with_previous(said))
                }
                _ => outcome,
            },
        }
    }
}

fn rank<R, E: Reject<R>>(class: Class, outcome: &Result<R, E>, sent: bool) -> Rank {
    match E::rejection(outcome) {
        None if asks_to_wait(class) => Rank::AsksToWait,
        None if sent => Rank::Failed,
        Some(rejection) if !rejection.is_unprocessed() => Rank::Failed,
        _ => Rank::NotSent,
    }
}
