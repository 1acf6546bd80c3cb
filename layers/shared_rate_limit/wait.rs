//! A call's wait for the store.

use std::{
    sync::Arc,
    task::{Context, Poll, ready},
};

use super::{
    entry::{Entry, Joined, Local, Tokens, Verdict},
    limit::Settings,
    request::send,
};
use crate::{
    ambient::{self, Unsent},
    bucket::Denied,
    clock::{self, Instant},
    outcome::Rejection,
    store::{Advice, Awaited, TokenStore},
    telemetry::LayerEvent,
};

/// A call's wait for the store. It asks and starts its clock at the first poll.
pub(super) struct Wait<St: TokenStore> {
    settings: Arc<Settings<St>>,
    entry: Arc<Entry>,
    cost: u32,
    // None: it has not asked.
    verdict: Option<Awaited<Verdict>>,
    admitted: bool,
}

/// The tokens of a call, or `None` if it needs none.
type Admission = Result<Option<Tokens>, Rejection>;

impl<St: TokenStore> Drop for Wait<St> {
    fn drop(&mut self) {
        // In case the whole call is dropped along with this wait: the service has not seen it.
        if !self.admitted {
            ambient::set(Unsent(true));
        }
    }
}

impl<St: TokenStore> Wait<St> {
    pub(super) fn new(settings: Arc<Settings<St>>, entry: Arc<Entry>, cost: u32) -> Self {
        Self { settings, entry, cost, verdict: None, admitted: false }
    }

    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Admission> {
        let polled = self.poll_verdict(cx);
        match polled {
            // A circuit breaker outside checks again when the call is admitted.
            Poll::Pending => ambient::set(Unsent(true)),
            Poll::Ready(_) => self.verdict = None,
        }
        self.admitted = matches!(polled, Poll::Ready(Ok(_)));
        polled
    }

    fn poll_verdict(&mut self, cx: &mut Context<'_>) -> Poll<Admission> {
        let verdict = match &mut self.verdict {
            Some(verdict) => verdict,
            None => match self.ask(clock::now()) {
                Ok(verdict) => self.verdict.insert(verdict),
                Err(decided) => return Poll::Ready(decided),
            },
        };
        Poll::Ready(match ready!(verdict.poll(cx)) {
            Some(Verdict::Granted(tokens)) => Ok(Some(tokens)),
            Some(Verdict::Denied(wait)) => Err(self.denied(wait)),
            Some(Verdict::Away(error)) => self.without_store(clock::now(), error),
            None => {
                let timeout = self.settings.rules.timeout;
                self.without_store(clock::now(), format!("no answer within {timeout:?}").into())
            }
        })
    }

    /// Asks the store, together with the other calls of the key, unless there is a decision without it.
    fn ask(&self, now: Instant) -> Result<Awaited<Verdict>, Admission> {
        let Self { settings, entry, cost, .. } = self;
        let error = match settings.limit.shared.link.advice(now) {
            Advice::Ask => match entry.join(now, *cost, &settings.rules) {
                Joined::Admitted => return Err(Ok(None)),
                Joined::Denied(wait) => return Err(Err(self.denied(wait))),
                Joined::Waits(verdict, ask) => {
                    if let Some(ask) = ask {
                        send(settings, entry, ask, false);
                    }
                    settings.info.emit(LayerEvent::Queued);
                    return Ok(Awaited::new(verdict, now + settings.rules.timeout));
                }
            },
            Advice::Away { error, .. } => error,
            Advice::Probe { error } => {
                if let Some(ask) = entry.probe(now, *cost, &settings.rules) {
                    send(settings, entry, ask, true);
                }
                error
            }
        };
        Err(match entry.decide(now, *cost, &settings.rules) {
            Local::Admitted => Ok(None),
            Local::Denied(wait) => Err(self.denied(wait)),
            Local::Unknown => self.without_store(now, error),
        })
    }

    fn denied(&self, wait: std::time::Duration) -> Rejection {
        self.settings.denied(Denied::Wait(wait), self.cost)
    }

    fn without_store(&self, now: Instant, error: Arc<str>) -> Admission {
        self.settings.without_store(now, &self.entry, self.cost, error).map(|()| None)
    }
}
