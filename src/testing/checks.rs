//! The trials of each law.
//!
//! Most laws are watched in every trial. The first fault of a trial names the law that it breaks, whichever law the
//! trial is for.

use tokio::{runtime, task};

use super::{
    act::Act,
    law::Law,
    trial::{Call, Checked, Fault, Outcome, Progress, Subject, Trial, Value},
};

/// More polls than any sensible future needs over a service that is pending twice.
const POLLS: usize = 64;

/// Returns the faults of a layer, at most one for each law. With `rejects`, the layer has to reject every request.
pub(super) fn faults(make: &dyn Fn() -> Box<dyn Value>, stateful: bool, rejects: bool, except: &[Law]) -> Vec<Fault> {
    let runtime = runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    let runtime = runtime.unwrap_or_else(|error| panic!("checking the laws needs a runtime: {error}"));
    // Unconstrained, because polls are counted: a task that has used up its budget would be pending more often.
    runtime.block_on(task::unconstrained(async {
        let mut faults: Vec<Fault> = Vec::new();
        for deadline in [false, true] {
            let checks = Checks { make, stateful, except, deadline };
            let checked = match rejects {
                true => vec![checks.rejections().await],
                false => vec![
                    checks.plain_calls().await,
                    checks.idle().await,
                    checks.readiness().await,
                    checks.dropped_anywhere().await,
                    checks.shared_state().await,
                    checks.outcomes().await,
                    checks.panics().await,
                ],
            };
            for fault in checked.into_iter().filter_map(Result::err) {
                if !except.contains(&fault.law) && faults.iter().all(|known| known.law != fault.law) {
                    faults.push(fault);
                }
            }
            if let (false, Some(first)) = (rejects, faults.first())
                && let Some(reason) = checks.rejects_all().await
            {
                // No trial has shown more than this.
                let how = format!(
                    "the layer rejects the request of the laws itself, with {reason}: configure it to admit the request \
                     that `testing::laws` describes, or check it over others (`over`), and its rejections with `rejects`"
                );
                return vec![Fault { law: first.law, how }];
            }
        }
        faults
    }))
}

pub(super) struct Checks<'a> {
    make: &'a dyn Fn() -> Box<dyn Value>,
    pub(super) stateful: bool,
    except: &'a [Law],
    /// Whether there is a distant deadline around the layer.
    deadline: bool,
}

/// What happened before the call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Past {
    Nothing,
    AnAnswer,
    AnError,
    AnAnswerLongAgo,
    AnErrorLongAgo,
}

impl Past {
    const ALL: [Self; 5] = [Self::Nothing, Self::AnAnswer, Self::AnError, Self::AnAnswerLongAgo, Self::AnErrorLongAgo];
}

/// A second call beside the first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Company {
    None,
    /// An equal call is in flight, and ends after the first poll.
    Before,
    /// As `Before`, but made when the service of this call was ready already.
    BetweenReadinessAndCall,
    /// An equal call is in flight, and ends only after this one is dropped.
    BeforeAndAfter,
    /// An equal call is made after the first poll, and is still there when this one is dropped.
    After,
}

impl Company {
    const ALL: [Self; 5] = [Self::None, Self::Before, Self::BetweenReadinessAndCall, Self::BeforeAndAfter, Self::After];
}

/// One call, and its circumstances.
#[derive(Debug, Clone, Copy)]
struct Case {
    past: Past,
    company: Company,
    /// The act of the first call, if it differs from `always`.
    once: Option<Act>,
    always: Act,
    /// The number of polls of the response before it is dropped.
    polls: usize,
}

impl Checks<'_> {
    pub(super) fn trial(&self) -> Trial<'_> {
        Trial::new(self.make, self.except, self.deadline)
    }

    async fn plain_calls(&self) -> Checked {
        let trial = self.trial();
        let mut service = trial.service()?;
        for act in [Act::answer(), Act::answer().pending_at_readiness(2), Act::answer().pending(2), Act::error()] {
            trial.script.always(act);
            for number in 1..=3 {
                trial.call(service.as_mut(), number).await?;
            }
        }
        trial.works(Law::Release, vec![service]).await
    }

    async fn idle(&self) -> Checked {
        for act in [Act::answer(), Act::answer().pending_at_readiness(1).pending(1)] {
            let trial = self.trial();
            trial.script.always(act);
            let mut idle = trial.service()?;
            let mut others = [trial.must(Law::Idle, || idle.another())?, trial.service()?];
            self.make_ready(&trial, idle.as_mut()).await?;
            trial.idle.set(1);
            trial.at_rest(Law::Idle)?;
            for other in &mut others {
                for _ in 0..50 {
                    let called = trial.call(other.as_mut(), 1).await;
                    // Waiting in the wrong place breaks a law of its own, but having to wait at all is due to the idle
                    // service.
                    let progress = called.map_err(|Fault { law, how }| match law {
                        Law::Waiting => Fault { law: Law::Idle, how },
                        law => Fault { law, how },
                    })?;
                    trial.demand(Law::Idle, matches!(progress, Progress::Ended(Outcome::Answered(_))), || {
                        format!(
                            "while one service is ready and idle, a call on another one did not succeed: {progress:?}"
                        )
                    })?;
                }
            }
            let mut call = trial.begin_ready(idle.as_mut(), 1)?;
            trial.idle.set(0);
            let progress = call.poll(usize::MAX).await?;
            trial.demand(Law::Idle, matches!(progress, Progress::Ended(Outcome::Answered(_))), || {
                format!("a service that had been ready for a while was called, but did not succeed: {progress:?}")
            })?;
            call.drop(Law::Idle)?;
            trial.works(Law::Idle, vec![idle]).await?;
        }
        Ok(())
    }

    async fn readiness(&self) -> Checked {
        for (act, polled) in [(Act::answer(), 1), (Act::answer(), 5), (Act::answer().pending_at_readiness(2), 3)] {
            let trial = self.trial();
            trial.script.always(act);
            let mut service = trial.service()?;
            let other = trial.must(Law::Readiness, || service.another())?;
            for _ in 0..polled {
                self.make_ready(&trial, service.as_mut()).await?;
            }
            trial.must(Law::Readiness, || drop(service))?;
            trial.at_rest(Law::Readiness)?;
            trial.works(Law::Readiness, vec![other]).await?;
        }
        // Dropped while it waits to become ready.
        let trial = self.trial();
        trial.script.always(Act::hang().at_readiness());
        let mut service = trial.service()?;
        let other = trial.must(Law::Readiness, || service.another())?;
        trial.ready(service.as_mut()).await?;
        trial.must(Law::Readiness, || drop(service))?;
        trial.at_rest(Law::Readiness)?;
        trial.works(Law::Readiness, vec![other]).await
    }

    async fn make_ready(&self, trial: &Trial<'_>, service: &mut dyn Subject) -> Checked {
        let in_vain = trial.ready(service).await?;
        trial.demand(Law::Wakes, in_vain.is_none(), || {
            format!("a service did not become ready, although the inner one does: {in_vain:?}")
        })
    }

    /// Drops a call after every possible number of polls, with every past and every company.
    async fn dropped_anywhere(&self) -> Checked {
        let plain = Act::answer().pending_at_readiness(1).pending(2);
        let error = Act::error().pending_at_readiness(1).pending(2);
        for (once, always) in [
            (None, plain),
            (None, error),
            (Some(error), plain),
            (None, error.at_readiness()),
            (Some(Act::hang().pending_at_readiness(1).pending(2)), plain),
            (Some(Act::hang().at_readiness()), plain),
        ] {
            for past in Past::ALL {
                for company in Company::ALL {
                    for polls in 0..POLLS {
                        let case = Case { past, company, once, always, polls };
                        if self.case(Law::Release, case).await? {
                            break;
                        }
                    }
                }
            }
        }
        Ok(())
    }

    async fn panics(&self) -> Checked {
        let panic = Act::panic().pending_at_readiness(1).pending(1);
        for once in [panic.at_readiness(), panic.in_call(), panic] {
            for past in Past::ALL {
                for company in [Company::None, Company::After] {
                    let case = Case { past, company, once: Some(once), always: Act::answer().pending(1), polls: POLLS };
                    self.case(Law::Panics, case).await?;
                }
            }
        }
        Ok(())
    }

    /// Returns whether the call has come as far as it can.
    async fn case(&self, law: Law, case: Case) -> Checked<bool> {
        self.run(law, case).await.map_err(|Fault { law, how }| Fault { law, how: format!("{how}\n  in {case:?}") })
    }

    async fn run(&self, law: Law, case: Case) -> Checked<bool> {
        let Case { past, company, once, always, polls } = case;
        let trial = self.trial();
        let mut service = trial.service()?;
        let mut other = trial.must(law, || service.another())?;
        self.live_through(&trial, past).await?;

        trial.script.always(always);
        let (mut ready, mut once_is_left) = (None, once);
        if company == Company::BetweenReadinessAndCall {
            once.into_iter().for_each(|act| trial.script.push(act));
            ready = Some(trial.ready(service.as_mut()).await?);
            trial.idle.set(1);
            once_is_left = once.filter(|_| trial.script.has_acts());
        }
        let mut before = None;
        if matches!(company, Company::Before | Company::BetweenReadinessAndCall | Company::BeforeAndAfter) {
            trial.script.always(always);
            trial.script.push(Act::answer().held());
            before = Some(self.in_flight(&trial, other.as_mut()).await?);
            // The call may have completed without the inner service.
            trial.script.always(always);
        }
        once_is_left.into_iter().for_each(|act| trial.script.push(act));

        let mut call = match ready {
            None => trial.begin(service.as_mut(), 1).await?,
            Some(None) => trial.begin_ready(service.as_mut(), 1)?,
            Some(Some(progress)) => trial.in_vain(progress),
        };
        trial.idle.set(0);
        let mut progress = call.poll(polls.min(1)).await?;
        let mut after = None;
        if polls > 0 {
            if let (Company::Before | Company::BetweenReadinessAndCall, Some(before)) = (company, &mut before) {
                trial.script.release();
                self.must_end(&trial, before).await?;
            }
            if company == Company::After {
                let mut next = trial.begin(other.as_mut(), 1).await?;
                next.poll(1).await?;
                after = Some(next);
            }
            progress = call.poll(polls - 1).await?;
        }
        let may_hang = company == Company::BeforeAndAfter || once.is_some_and(|act| act.hangs());
        trial.demand(Law::Wakes, may_hang || progress != Progress::Stuck, || {
            "a call is pending although the inner service has ended, and nothing wakes it".into()
        })?;
        if [&before, &after].iter().all(|call| call.as_ref().is_none_or(Call::has_ended))
            && matches!(&progress, Progress::Ended(outcome) if *outcome != Outcome::Panicked)
        {
            trial.at_rest(law)?;
        }
        // A service whose readiness failed or hangs, or whose call panicked, may be unusable. Its clones are not.
        let service = if call.was_made() { service } else { trial.must(law, || service.another())? };
        call.drop(law)?;

        // The act for this call is not meant for other calls.
        trial.script.always(always);
        trial.script.release();
        for mut companion in [before, after].into_iter().flatten() {
            self.must_end(&trial, &mut companion).await?;
            companion.drop(law)?;
        }
        trial.at_rest(law)?;
        if progress == Progress::Pending && company == Company::None && once.is_none() && always.answers() {
            self.as_if_never_made(&trial, other.as_mut(), past).await?;
        }
        trial.works(law, vec![service, other]).await?;
        Ok(progress != Progress::Pending)
    }

    /// A call that was dropped before the inner service returned an outcome must not affect the next one.
    async fn as_if_never_made(&self, trial: &Trial<'_>, service: &mut dyn Subject, past: Past) -> Checked {
        let found = self.finds(trial, service, Act::answer()).await?;
        let without = self.trial();
        self.live_through(&without, past).await?;
        let expected = self.finds(&without, without.service()?.as_mut(), Act::answer()).await?;
        trial.demand(Law::Release, found == expected, || {
            format!("right after a dropped call, another one finds {found:?}\n  without the dropped call: {expected:?}")
        })
    }

    async fn live_through(&self, trial: &Trial<'_>, past: Past) -> Checked {
        let act = match past {
            Past::Nothing => return Ok(()),
            Past::AnAnswer | Past::AnAnswerLongAgo => Act::answer(),
            Past::AnError | Past::AnErrorLongAgo => Act::error(),
        };
        trial.script.always(act);
        let mut service = trial.service()?;
        trial.call(service.as_mut(), 1).await?;
        if matches!(past, Past::AnAnswerLongAgo | Past::AnErrorLongAgo) {
            trial.later().await;
        }
        Ok(())
    }

    /// Starts a call and polls it until it has reached the inner service, or has ended without doing so.
    pub(super) async fn in_flight<'t, 'a>(
        &self,
        trial: &'t Trial<'a>,
        service: &mut dyn Subject,
    ) -> Checked<Call<'t, 'a>> {
        let mut call = trial.begin(service, 1).await?;
        // At least once, and no more often than necessary: a call that waits would otherwise wait until its time is
        // over.
        for _ in 0..POLLS {
            if call.poll(1).await? != Progress::Pending || trial.script.in_flight() > 0 {
                break;
            }
        }
        Ok(call)
    }

    async fn must_end(&self, trial: &Trial<'_>, call: &mut Call<'_, '_>) -> Checked {
        let progress = call.poll(usize::MAX).await?;
        trial.demand(Law::Wakes, progress != Progress::Stuck, || {
            "a call beside another one is pending although it could proceed, and nothing wakes it".into()
        })
    }

    /// Demands that the layer passes on the last outcome of the inner service.
    async fn outcomes(&self) -> Checked {
        let (answer, error) = (Act::answer(), Act::error());
        for act in [answer, answer.pending(2), error, error.pending(2), error.at_readiness()] {
            let trial = self.trial();
            trial.script.always(act);
            let mut service = trial.service()?;
            let progress = trial.call(service.as_mut(), 1).await?;
            let last = trial.script.last_outcome();
            let expected = if act.answers() { Outcome::Answered(last) } else { Outcome::Failed(last) };
            trial.demand(Law::Unchanged, progress == Progress::Ended(expected.clone()), || {
                format!("the inner service returned {expected:?}, but the layer returned {progress:?}\n  over {act:?}")
            })?;
        }
        Ok(())
    }
}
