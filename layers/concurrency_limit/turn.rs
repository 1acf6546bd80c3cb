//! A call's wait in the queue: it joins if that is worthwhile, and starts if there still is time.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use super::{
    Settings,
    gate::{Entry, Permit, Shed, Waiter},
    patience::Patience,
    priority::Rank,
};
use crate::{
    ambient::{self, Spare, Unsent},
    clock::{self, Sleep},
    outcome::Rejection,
    telemetry::LayerEvent,
};

/// A call's wait for its permit. It enters the queue and starts its clock at the first poll.
pub(super) struct Turn {
    settings: Arc<Settings>,
    rank: Rank,
    /// Whether the permit is held for longer than until the response.
    with_body: bool,
    // None: it has not entered the queue.
    patience: Option<Patience>,
    place: Option<Waiter>,
    // Boxed, so that a call that does not wait does not pay for its size.
    timer: Option<Pin<Box<Sleep>>>,
    admitted: bool,
}

impl Drop for Turn {
    fn drop(&mut self) {
        // In case the whole call is dropped along with this wait: the service has not seen it.
        if !self.admitted {
            ambient::set(Unsent(true));
        }
    }
}

impl Turn {
    pub(super) fn new(settings: Arc<Settings>, rank: Rank, with_body: bool) -> Self {
        Self { settings, rank, with_body, patience: None, place: None, timer: None, admitted: false }
    }

    /// Ready with the permit, or with the rejection of a call that is shed or not worth its wait.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<Permit, Rejection>> {
        let turn = match &mut self.place {
            Some(place) => place.poll(cx.waker()),
            None => match self.enter(cx) {
                Ok(turn) => turn,
                Err(rejection) => return Poll::Ready(Err(rejection)),
            },
        };
        if let Poll::Ready(turn) = turn {
            self.timer = None;
            let Ok(permit) = turn else { return Poll::Ready(Err(self.reject())) };
            if self.is_too_late() {
                permit.release_unused();
                return Poll::Ready(Err(self.reject()));
            }
            self.admitted = true;
            return Poll::Ready(Ok(permit));
        }
        // A circuit breaker outside checks again when the call is admitted.
        ambient::set(Unsent(true));
        let Some(timer) = &mut self.timer else { return Poll::Pending };
        ready!(timer.as_mut().poll(cx));
        self.place = None;
        Poll::Ready(Err(self.reject()))
    }

    fn reject(&self) -> Rejection {
        self.settings.reject(self.rank)
    }

    /// Joins the queue, if the wait is worthwhile.
    fn enter(&mut self, cx: &mut Context<'_>) -> Result<Poll<Result<Permit, Shed>>, Rejection> {
        let Settings { gate, info, .. } = &*self.settings;
        if gate.is_all_held_here(self.rank) {
            return Err(self.settings.awaits_itself());
        }
        let (patience, urgent) = (self.settings.patience(self.with_body), self.rank == Rank::Urgent);
        // For an urgent call too: the forecast learns when the queue was empty.
        let forecast = gate.forecast(patience.now, self.rank);
        let mut places = self.settings.places(self.rank);
        if !urgent {
            let is_spare = ambient::get::<Spare>().0;
            places = if is_spare { 0 } else { places.min(patience.places(gate.limit(), &forecast)) };
            // `enter` takes the lock of the queue.
            if !patience.joins(&forecast) || gate.is_full(places, self.rank) {
                return Err(self.reject());
            }
        }
        match gate.enter(places, self.rank, cx.waker()) {
            Entry::Admitted(permit) => Ok(Poll::Ready(Ok(permit))),
            Entry::Full => Err(self.reject()),
            Entry::Queued(place) => {
                self.place = Some(place);
                self.patience = (!urgent).then_some(patience);
                self.timer = patience.end().map(|end| Box::pin(clock::sleep_until(end)));
                info.emit(LayerEvent::Queued);
                gate.make_room_for_waiters();
                Ok(Poll::Pending)
            }
        }
    }

    /// Whether too little time is left for a call, now that it is this one's turn.
    fn is_too_late(&self) -> bool {
        self.patience.is_some_and(|patience| {
            let now = clock::now();
            // Without a deadline too: this measures how fast the queue drains.
            !patience.starts(now, self.settings.gate.call_time(now, self.rank))
        })
    }
}
