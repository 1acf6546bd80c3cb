//! The limits of a response's body: how long all of it may take, and how long it may make its reader wait for a frame.

use std::{
    error::Error as StdError,
    fmt,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use http_body::Body;

use super::{expired, idle::Idle};
use crate::{
    Reject, Rejection, Site, ambient,
    body::{Guard, PollFrame},
    clock::{self, Sleep},
    deadline::Limit,
    limited::{adopt_told, enter},
};

/// What a layer has to say about bodies.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct BodyLimits {
    /// Whether the call's limit covers the body.
    pub(super) covered: bool,
    /// How long the body may make its reader wait for a frame.
    pub(super) idle: Option<Duration>,
}

/// What a timeout keeps with a response's body: its clocks.
pub struct InTime {
    /// The call's limit as it was set, and when it ends; nothing if it does not cover the body.
    limit: Limit,
    own: Limit,
    /// Whether a frame came after that already.
    late: bool,
    idle: Idle,
    // Boxed, so that a body that is never pending is not larger for it.
    timer: Option<Pin<Box<Sleep>>>,
    site: Site,
}

impl InTime {
    pub(super) fn new(body: BodyLimits, limit: Limit, own: Limit, site: Site) -> Self {
        let (limit, own) = if body.covered { (limit, own) } else { (Limit::NONE, Limit::NONE) };
        let own = if own.is_unstarted() { own.started(Limit::at(clock::now())) } else { own };
        let idle = Idle::new(body.idle.map_or(Limit::NONE, Limit::after));
        Self { limit, own, late: false, idle, timer: None, site }
    }

    /// The body is pending: answers whether it may stay so. `outer` is what surrounds the call's limit.
    fn poll_limits(&mut self, outer: Limit, cx: &mut Context<'_>) -> Poll<Rejection> {
        // Of two that end together the outer one does: its end is the request's.
        let own = if self.own < outer { self.own } else { Limit::NONE };
        let (limit, sooner) = if own <= self.idle.end { (self.limit, own) } else { (self.idle.limit, self.idle.end) };
        let Some(end) = sooner.instant() else { return Poll::Pending };
        // A limit of zero needs no timer to have passed.
        if limit != Limit::ZERO {
            let timer = match &mut self.timer {
                Some(timer) => {
                    if timer.deadline() != end {
                        timer.as_mut().reset(end);
                    }
                    timer
                }
                None => self.timer.insert(Box::pin(clock::sleep_until(end))),
            };
            ready!(timer.as_mut().poll(cx));
        }
        // What cleans up sees that its time is over, whichever of the two it was.
        self.own = sooner;
        Poll::Ready(expired(&self.site, limit))
    }

    /// A frame of data came that is not the last one. Answers whether it may pass: the first that comes late may.
    fn admits(&mut self) -> bool {
        let was_late = self.late;
        self.late = self.own.instant().is_some_and(|end| end <= clock::now());
        !was_late
    }
}

impl<B> Guard<B> for InTime
where
    B: Body,
    B::Error: Into<Box<dyn StdError + Send + Sync>>,
{
    type Error = Box<dyn StdError + Send + Sync>;

    fn poll_frame(&mut self, mut body: Pin<&mut B>, cx: &mut Context<'_>) -> PollFrame<B::Data, Self::Error> {
        adopt_told(&mut self.limit, &mut self.own, ambient::get());
        let (mut own, mut inside) = (self.own, Limit::NONE);
        let entered = enter(&mut own, &mut inside);
        let polled = self.idle.poll_frame(body.as_mut(), cx);
        let outer = *entered.outer;
        drop(entered);
        let rejection = match polled {
            Poll::Pending => ready!(self.poll_limits(outer, cx)),
            Poll::Ready(Some(Ok(frame))) if frame.is_data() && !body.is_end_stream() && !self.admits() => {
                expired(&self.site, self.limit)
            }
            Poll::Ready(frame) => return Poll::Ready(frame.map(|frame| frame.map_err(Into::into))),
        };
        Poll::Ready(Reject::<()>::reject(rejection).err().map(Err))
    }

    fn drop_body(&mut self, drop: impl FnOnce()) {
        // Whatever cleans up can see whether its deadline has passed.
        let mut inside = Limit::NONE;
        let _entered = enter(&mut self.own, &mut inside);
        drop();
    }
}

impl fmt::Debug for InTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InTime")
            .field("limit", &self.limit.duration())
            .field("idle", &self.idle.limit.duration())
            .finish_non_exhaustive()
    }
}
