//! Follows a call to the end of its response's body.

use std::{error::Error as StdError, pin::Pin, task::Context};

use http_body::Body;

use super::circuit::Call;
use crate::{
    ambient::{self, HadItsTime, Unsent},
    body::{End, Guard, PollFrame, Said, Verdict},
};

/// The guard that a circuit breaker attaches to the body of a successful response: the call ends with the body.
#[derive(Debug)]
#[doc(hidden)] // machinery that is public only because it is part of a public type
pub struct Judge<C> {
    call: Call,
    verdict: Verdict<C>,
    /// For a body that was dropped: whether a timeout inside reports that the service had its full time.
    had_its_time: HadItsTime,
}

impl<C> Judge<C> {
    #[inline]
    pub(super) fn new(mut call: Call, verdict: Verdict<C>) -> Self {
        call.answered();
        Self { call, verdict, had_its_time: HadItsTime(false) }
    }
}

impl<B, C> Guard<B> for Judge<C>
where
    B: Body,
    B::Error: Into<Box<dyn StdError + Send + Sync>>,
{
    type Error = Box<dyn StdError + Send + Sync>;

    #[inline]
    fn poll_frame(&mut self, body: Pin<&mut B>, cx: &mut Context<'_>) -> PollFrame<B::Data, Self::Error> {
        self.verdict.poll_frame(body, cx)
    }

    fn drop_body(&mut self, drop: impl FnOnce()) {
        let _entered = ambient::enter(&mut self.had_its_time);
        drop();
    }

    #[inline]
    fn ended(mut self, end: End) {
        match self.verdict.at(end) {
            Said::Class(class) => self.call.body_ended(class),
            Said::Cancelled => self.call.cancelled(Unsent(false), self.had_its_time),
            Said::Panicked => self.call.panicked(),
        }
    }
}

impl<C> Drop for Judge<C> {
    fn drop(&mut self) {
        // Does nothing after `ended`. Otherwise dropping the body panicked, which says nothing about the service.
        self.call.panicked();
    }
}
