//! The limits of a response's body: on its whole duration, and on each wait for a frame.

use std::{
    error::Error as StdError,
    fmt,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use http_body::Body;

use super::{idle::Idle, reject};
use crate::{
    ambient::{
        self, Limit,
        limited::{Clock, Expired, enter},
    },
    body::{Guard, PollFrame},
    clock::{self, Sleep},
    outcome::{Reject, Rejection},
    telemetry::LayerInfo,
};

/// A layer's settings for bodies.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct BodyLimits {
    /// Whether the call's limit covers the body.
    pub(super) covered: bool,
    /// How long the body may make its reader wait for a frame.
    pub(super) idle: Option<Duration>,
}

/// The guard of a response's body: holds the clocks of its timeout.
#[doc(hidden)] // machinery that is public only because it is part of a public type
pub struct InTime {
    /// The call's limit; none if it does not cover the body.
    clock: Clock,
    /// Whether a frame has already arrived after that limit.
    late: bool,
    idle: Idle,
    // Boxed, so that a body that is never pending does not pay for its size.
    timer: Option<Pin<Box<Sleep>>>,
    info: LayerInfo,
}

impl InTime {
    #[inline]
    pub(super) fn new(body: BodyLimits, clock: Clock, info: LayerInfo) -> Self {
        let mut clock = if body.covered { clock } else { Clock::new(Limit::NONE, Limit::NONE) };
        if clock.own.is_unstarted() {
            clock.own = clock.own.started(Limit::at(clock::now()));
        }
        let idle = Idle::new(body.idle.map_or(Limit::NONE, Limit::after));
        Self { clock, late: false, idle, timer: None, info }
    }

    /// Called while the body is pending. Ready with a rejection once a limit has passed. `outer` surrounds the call's
    /// limit.
    fn poll_limits(&mut self, outer: Limit, cx: &mut Context<'_>) -> Poll<Rejection> {
        // If both end at the same time, the outer limit applies, because it belongs to the request.
        let own = if self.clock.own < outer { self.clock.own } else { Limit::NONE };
        let is_own = own <= self.idle.end;
        let (limit, sooner) = if is_own { (self.clock.limit, own) } else { (self.idle.limit, self.idle.end) };
        let Some(end) = sooner.instant() else { return Poll::Pending };
        // A limit of zero has passed without a timer.
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
        let idle = || Expired::Limit(self.idle.limit.duration().unwrap_or(Duration::MAX));
        let expired = if is_own { self.clock.expired() } else { idle() };
        // Cleanup code sees an expired deadline, whichever limit expired.
        self.clock.own = sooner;
        Poll::Ready(reject(&self.info, expired))
    }

    /// Called for a data frame that is not the last. Returns whether it may pass: the first late frame may.
    fn admits(&mut self) -> bool {
        let was_late = self.late;
        self.late = self.clock.own.instant().is_some_and(|end| end <= clock::now());
        !was_late
    }
}

impl<B> Guard<B> for InTime
where
    B: Body,
    B::Error: Into<Box<dyn StdError + Send + Sync>>,
{
    type Error = Box<dyn StdError + Send + Sync>;

    #[inline]
    fn poll_frame(&mut self, mut body: Pin<&mut B>, cx: &mut Context<'_>) -> PollFrame<B::Data, Self::Error> {
        self.clock.adopt_told(ambient::get());
        let (mut own, mut inside) = (self.clock.own, Limit::NONE);
        let entered = enter(&mut own, &mut inside);
        let polled = self.idle.poll_frame(body.as_mut(), cx);
        let outer = *entered.outer;
        drop(entered);
        let rejection = match polled {
            Poll::Pending => ready!(self.poll_limits(outer, cx)),
            Poll::Ready(Some(Ok(frame))) if frame.is_data() && !body.is_end_stream() && !self.admits() => {
                reject(&self.info, self.clock.expired())
            }
            Poll::Ready(frame) => return Poll::Ready(frame.map(|frame| frame.map_err(Into::into))),
        };
        Poll::Ready(Reject::<()>::reject(rejection).err().map(Err))
    }

    #[inline]
    fn drop_body(&mut self, drop: impl FnOnce()) {
        // Cleanup code can see whether its deadline has passed.
        let mut inside = Limit::NONE;
        let entered = enter(&mut self.clock.own, &mut inside);
        drop();
        std::mem::drop(entered);
        self.clock.note_whether_it_had_its_time();
    }
}

impl fmt::Debug for InTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InTime")
            .field("limit", &self.clock.limit.duration())
            .field("idle", &self.idle.limit.duration())
            .finish_non_exhaustive()
    }
}
