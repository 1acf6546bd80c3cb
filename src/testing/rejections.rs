//! The trials of calls that the layer rejects by itself.

use super::{
    act::Act,
    checks::Checks,
    law::Law,
    trial::{Checked, Outcome, Progress},
};

impl Checks<'_> {
    /// Demands that every call is rejected, sends nothing, and keeps nothing, wherever it is dropped.
    pub(super) async fn rejections(&self) -> Checked {
        for act in [Act::answer(), Act::answer().pending_at_readiness(2)] {
            for polls in [0, 1, usize::MAX] {
                let trial = self.trial();
                trial.script.always(act);
                let mut service = trial.service()?;
                for number in 1..=3 {
                    let mut call = trial.begin(service.as_mut(), number).await?;
                    let progress = call.poll(polls).await?;
                    let is_rejected = match &progress {
                        Progress::Ended(Outcome::Rejected(_)) => true,
                        progress => *progress == Progress::Pending && polls < usize::MAX,
                    };
                    trial.demand(Law::Rejects, trial.script.calls() == 0, || {
                        format!("request {number} is one that the layer should reject, but it was sent")
                    })?;
                    trial.demand(Law::Rejects, is_rejected, || {
                        format!("request {number} is one that the layer should reject, but: {progress:?}")
                    })?;
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
            reasons.push(reason);
            // A state that rejects for a while is over by then.
            trial.later().await;
        }
        reasons.dedup();
        reasons.pop().filter(|_| reasons.is_empty() && trial.script.calls() == 0)
    }
}
