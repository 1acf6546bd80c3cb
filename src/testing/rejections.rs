//! The trials of calls that the layer rejects by itself.

use super::{
    act::Act,
    checks::Checks,
    law::Law,
    trial::{Checked, Outcome, Progress},
};

impl Checks<'_> {
    /// Demands that every call is rejected in the same way, sends nothing, and keeps nothing, wherever it is dropped.
    pub(super) async fn rejections(&self) -> Checked {
        let mut first = None;
        for act in [Act::answer(), Act::answer().pending_at_readiness(2)] {
            for polls in [usize::MAX, 1, 0] {
                let trial = self.trial();
                trial.script.always(act);
                let mut service = trial.service()?;
                // The last one is not dropped early, and finds the permits that the others left.
                for (number, polls) in [(1, polls), (2, polls), (3, polls), (4, usize::MAX)] {
                    let mut call = trial.begin(service.as_mut(), number).await?;
                    let progress = call.poll(polls).await?;
                    trial.demand(Law::Rejects, trial.script.calls() == 0, || {
                        format!("request {number} is one that the layer should reject, but it was sent")
                    })?;
                    if let Progress::Ended(Outcome::Rejected(refusal)) = &progress {
                        let first = first.get_or_insert_with(|| refusal.clone());
                        trial.demand(Law::Release, refusal.is_like(first), || {
                            format!("request {number} was rejected with {refusal}, but one before it with {first}")
                        })?;
                    } else {
                        let is_pending = progress == Progress::Pending && polls < usize::MAX;
                        trial.demand(Law::Rejects, is_pending, || {
                            format!("request {number} is one that the layer should reject, but: {progress:?}")
                        })?;
                    }
                    call.drop(Law::Release)?;
                    trial.at_rest(Law::Release)?;
                }
            }
        }
        Ok(())
    }

    /// Returns the reason for which the layer rejects whatever it is sent, if it does.
    pub(super) async fn rejects_all(&self) -> Option<String> {
        let trial = self.trial();
        let mut service = trial.service().ok()?;
        let mut reasons = Vec::new();
        for number in 1..=3 {
            let Ok(Progress::Ended(Outcome::Rejected(reason))) = trial.call(service.as_mut(), number).await else {
                return None;
            };
            reasons.push(reason.reason);
            // A state that rejects for a while is over by then.
            trial.later().await;
        }
        reasons.dedup();
        reasons.pop().filter(|_| reasons.is_empty() && trial.script.calls() == 0)
    }
}
