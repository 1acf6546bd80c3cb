//! The trials of the law of shared state.

use super::{
    act::Act,
    checks::Checks,
    law::Law,
    trial::{Checked, Outcome, Progress, Subject, Trial},
};

impl Checks<'_> {
    /// The outcome of a call must depend on the layer value, and not on which of its services is called.
    pub(super) async fn shared_state(&self) -> Checked {
        let trial = self.trial();
        let mut effect = false;
        for act in [Act::answer(), Act::error()] {
            let untouched = self.found(Made::Nothing, On::TheSame, act).await?;
            for made in [Made::AnAnswer, Made::AnError, Made::ACallInFlight] {
                let found = self.found(made, On::TheSame, act).await?;
                effect |= found != untouched;
                for on in [On::ACloneFromBefore, On::AClone, On::AnotherService, On::AServiceOfTheClonedLayer] {
                    let there = self.found(made, on, act).await?;
                    trial.demand(Law::State, there == found, || {
                        format!("after {made:?}, a call on the same service finds {found:?}\n  a call on {on:?} finds {there:?}")
                    })?;
                }
                let there = self.found(made, On::AnotherLayer, act).await?;
                trial.demand(Law::State, there == untouched, || {
                    format!("without a previous call, a call finds {untouched:?}\n  after {made:?} on another layer value: {there:?}")
                })?;
            }
        }
        trial.demand(Law::State, effect || !self.stateful, || {
            "the layer is said to have state, but no call had an effect on the next one: configure it more tightly"
                .into()
        })
    }

    async fn found(&self, made: Made, on: On, act: Act) -> Checked<Found> {
        let trial = self.trial();
        let mut service = trial.service()?;
        let clone = trial.must(Law::State, || service.another())?;
        let mut held = None;
        match made {
            Made::Nothing => {}
            Made::AnAnswer | Made::AnError => {
                trial.script.always(if made == Made::AnError { Act::error() } else { Act::answer() });
                trial.call(service.as_mut(), 1).await?;
            }
            Made::ACallInFlight => {
                trial.script.push(Act::answer().held());
                held = Some(self.in_flight(&trial, service.as_mut()).await?);
            }
        }
        let mut service = match on {
            On::TheSame => service,
            On::ACloneFromBefore => clone,
            On::AClone => trial.must(Law::State, || service.another())?,
            On::AnotherService => trial.service()?,
            On::AServiceOfTheClonedLayer => trial.must(Law::State, || trial.value.another().service(&trial.script))?,
            On::AnotherLayer => trial.foreign_service()?,
        };
        let found = self.finds(&trial, service.as_mut(), act).await?;
        held.map_or(Ok(()), |held| held.drop(Law::State))?;
        Ok(found)
    }

    /// Makes a call now, over an inner service that follows `act`, and returns how it went.
    pub(super) async fn finds(&self, trial: &Trial<'_>, service: &mut dyn Subject, act: Act) -> Checked<Found> {
        trial.script.always(act);
        let calls = trial.script.calls();
        let mut call = trial.begin(service, 1).await?;
        let how = match call.poll(usize::MAX).await? {
            Progress::Ended(Outcome::Answered(_)) => "an answer".into(),
            Progress::Ended(Outcome::Failed(_)) => "an error".into(),
            progress => format!("{progress:?}"),
        };
        let calls = trial.script.calls() - calls;
        call.drop(Law::State)?;
        Ok(Found { how, calls })
    }
}

/// What happened on a service before another call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Made {
    Nothing,
    AnAnswer,
    AnError,
    ACallInFlight,
}

/// The service that is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum On {
    TheSame,
    ACloneFromBefore,
    AClone,
    AnotherService,
    AServiceOfTheClonedLayer,
    AnotherLayer,
}

/// The outcome of a call: how it ends, and the number of calls of the inner service that it takes.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Found {
    how: String,
    calls: u64,
}
