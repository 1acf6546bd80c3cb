//! The permits of response bodies, and how one is taken back whose body makes no progress.

use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use http_body::Body;

use super::{
    gate::{ConcurrencyLimitHandle, Permit},
    seats::{Seat, time},
};
use crate::{
    body::{Guard, PollFrame},
    clock,
};

impl ConcurrencyLimitHandle {
    /// How long a body may hand out no frame before its permit can be reclaimed; [`Duration::MAX`] if it never is.
    #[must_use]
    pub fn reclaim_after(&self) -> Duration {
        self.seats().reclaim_after().unwrap_or(Duration::MAX)
    }

    /// Changes how long a body may hand out no frame before its permit can be reclaimed, for all that share this gate: see
    /// [`ConcurrencyLimitLayer::reclaim_after`](super::ConcurrencyLimitLayer::reclaim_after). A body that began while there was no such time
    /// keeps its permit.
    pub fn set_reclaim_after(&self, after: Duration) {
        self.seats().set_reclaim_after(after);
    }

    /// Takes back the permits of bodies that have made no progress for too long: answers how many.
    #[cold]
    pub(super) fn reclaim(&self) -> usize {
        let reclaimed = self.seats().reclaim_at(clock::now);
        self.reclaimed(reclaimed);
        reclaimed
    }
}

/// The permit of a response's body: what [`ConcurrencyLimitLayer::until_body_end`](super::ConcurrencyLimitLayer::until_body_end) keeps
/// with it. Dropping it gives the permit back, unless it was reclaimed.
pub struct BodyPermit {
    // None: it was reclaimed.
    gate: Option<ConcurrencyLimitHandle>,
    // None: it cannot be.
    seat: Option<Seat>,
}

impl BodyPermit {
    pub(super) fn new(permit: Permit) -> Self {
        let gate = permit.into_gate();
        let seat = gate.as_ref().and_then(|gate| {
            let reclaims = gate.seats().reclaim_after().is_some();
            reclaims.then(|| gate.seats().take(time(clock::now()), gate.limit()))
        });
        Self { gate, seat }
    }

    fn progress(&mut self) {
        if let (Some(gate), Some(seat)) = (&self.gate, &mut self.seat)
            && !gate.seats().progress(seat, time(clock::now()))
        {
            self.gate = None;
        }
    }
}

/// The body is passed on as it is; the permit is given back after it.
impl<B: Body> Guard<B> for BodyPermit {
    type Error = B::Error;

    fn poll_frame(&mut self, mut body: Pin<&mut B>, cx: &mut Context<'_>) -> PollFrame<B::Data, B::Error> {
        // One that was reclaimed is not held here any more, though the body learns of that only with its next frame.
        let is_held = |gate: &&ConcurrencyLimitHandle| self.seat.as_ref().is_none_or(|seat| gate.seats().is_held(seat));
        let held = self.gate.as_ref().filter(is_held).map(ConcurrencyLimitHandle::hold);
        let polled = body.as_mut().poll_frame(cx);
        drop(held);
        if self.seat.is_some() && matches!(polled, Poll::Ready(Some(Ok(_)))) && !body.is_end_stream() {
            self.progress();
        }
        polled
    }
}

impl Drop for BodyPermit {
    fn drop(&mut self) {
        if let Some(gate) = &self.gate
            && self.seat.as_ref().is_none_or(|seat| gate.seats().leave(seat))
        {
            gate.leave();
        }
    }
}

impl fmt::Debug for BodyPermit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BodyPermit").field("reclaimed", &self.gate.is_none()).finish_non_exhaustive()
    }
}
