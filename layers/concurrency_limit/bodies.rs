//! The permits of response bodies, and how the permit of a stalled body is reclaimed.

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
    /// Returns how long a body may yield no frame before its permit can be reclaimed; [`Duration::MAX`] if permits
    /// are never reclaimed.
    #[must_use]
    pub fn reclaim_after(&self) -> Duration {
        self.seats().reclaim_after().unwrap_or(Duration::MAX)
    }

    /// Changes how long a body may yield no frame before its permit can be reclaimed, for all clones.
    ///
    /// See [`ConcurrencyLimitLayer::reclaim_after`](super::ConcurrencyLimitLayer::reclaim_after). A body that began
    /// while no such time was set keeps its permit.
    pub fn set_reclaim_after(&self, after: Duration) {
        self.seats().set_reclaim_after(after);
    }

    /// Reclaims the permits of stalled bodies, and returns their number.
    #[cold]
    pub(super) fn reclaim(&self) -> usize {
        let reclaimed = self.seats().reclaim_at(clock::now);
        self.bodies_end(reclaimed);
        self.reclaimed(reclaimed);
        reclaimed
    }
}

/// The permit of a response's body, kept by
/// [`ConcurrencyLimitLayer::until_body_end`](super::ConcurrencyLimitLayer::until_body_end). Dropping it releases the
/// permit, unless it was reclaimed.
#[doc(hidden)] // machinery that is public only because it is part of a public type
pub struct BodyPermit {
    // None: it was reclaimed.
    gate: Option<ConcurrencyLimitHandle>,
    // None: it cannot be reclaimed.
    seat: Option<Seat>,
}

impl BodyPermit {
    #[inline]
    pub(super) fn new(permit: Permit) -> Self {
        let gate = permit.into_gate();
        // Before it has a seat, because that may be reclaimed at once.
        if let Some(gate) = &gate {
            gate.body_begins();
        }
        let seat = gate.as_ref().and_then(|gate| {
            let reclaims = gate.seats().reclaim_after().is_some();
            reclaims.then(|| gate.seats().take(time(clock::now()), gate.limit()))
        });
        let permit = Self { gate, seat };
        // Wakes waiters. If a waker panics, the permit is released.
        if let Some(gate) = &permit.gate {
            gate.make_room_for_waiters();
        }
        permit
    }

    fn progress(&mut self) {
        if let (Some(gate), Some(seat)) = (&self.gate, &mut self.seat)
            && !gate.seats().progress(seat, time(clock::now()))
        {
            self.gate = None;
        }
    }
}

/// Passes the body through. The permit is released after the body is dropped.
impl<B: Body> Guard<B> for BodyPermit {
    type Error = B::Error;

    #[inline]
    fn poll_frame(&mut self, mut body: Pin<&mut B>, cx: &mut Context<'_>) -> PollFrame<B::Data, B::Error> {
        // A reclaimed permit is no longer held here, although the body learns of that only with its next frame.
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
            gate.bodies_end(1);
            gate.leave();
        }
    }
}

impl fmt::Debug for BodyPermit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BodyPermit").field("reclaimed", &self.gate.is_none()).finish_non_exhaustive()
    }
}
