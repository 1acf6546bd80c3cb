//! A call's wait for its tokens.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use super::{
    Settings,
    handle::{Entry, Tokens, Waiter},
};
use crate::{
    ambient::{self, Deadline, Unsent},
    bucket::Denied,
    clock::{self, Instant, Sleep},
    outcome::Rejection,
    telemetry::LayerEvent,
};

/// A call's wait for its tokens. It enters the queue and starts its clock at the first poll.
pub(super) struct Turn {
    settings: Arc<Settings>,
    cost: u32,
    // None: it has not entered the queue.
    place: Option<Place>,
    admitted: bool,
}

struct Place {
    waiter: Waiter,
    /// When the wait ends, whether or not it is its turn by then. None: never.
    end: Option<Instant>,
    /// When it is too late for the call.
    deadline: Option<Instant>,
    // Boxed, so that a call that does not wait does not pay for its size.
    timer: Pin<Box<Sleep>>,
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
    pub(super) fn new(settings: Arc<Settings>, cost: u32) -> Self {
        Self { settings, cost, place: None, admitted: false }
    }

    /// Ready with the tokens of the call.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<Tokens, Rejection>> {
        let polled = self.poll_place(cx);
        match polled {
            // A circuit breaker outside checks again when the call is admitted.
            Poll::Pending => ambient::set(Unsent(true)),
            Poll::Ready(_) => self.place = None,
        }
        self.admitted = matches!(polled, Poll::Ready(Ok(_)));
        polled.map_err(|denied| self.settings.reject(denied, self.cost))
    }

    fn poll_place(&mut self, cx: &mut Context<'_>) -> Poll<Result<Tokens, Denied>> {
        if self.place.is_none() {
            match self.enter(cx) {
                Poll::Pending => self.settings.info.emit(LayerEvent::Queued),
                taken => return taken,
            }
        }
        let Some(place) = &mut self.place else { return Poll::Pending };
        loop {
            let now = clock::now();
            let has_passed = |end: Option<Instant>| end.is_some_and(|end| end <= now);
            if !has_passed(place.deadline)
                && let Poll::Ready(granted) = place.waiter.poll(now, cx.waker())
            {
                return Poll::Ready(granted);
            }
            if has_passed(place.deadline) || has_passed(place.end) {
                self.place = None;
                return Poll::Ready(Err(self.settings.handle.denied(now, self.cost)));
            }
            let turn = place.waiter.turn();
            let next = place.deadline.into_iter().chain(place.end).fold(turn, Instant::min);
            if place.timer.deadline() != next {
                place.timer.as_mut().reset(next);
            }
            ready!(place.timer.as_mut().poll(cx));
        }
    }

    /// Takes the tokens, or joins the queue if the wait is short enough.
    fn enter(&mut self, cx: &Context<'_>) -> Poll<Result<Tokens, Denied>> {
        let now = clock::now();
        let deadline = Deadline::current().map(Deadline::instant);
        let max_wait = self.settings.max_wait;
        let waits = |wait| wait <= max_wait && deadline.is_none_or(|deadline| now + wait < deadline);
        match self.settings.handle.enter(now, self.cost, waits, cx.waker()) {
            Entry::Admitted(tokens) => Poll::Ready(Ok(tokens)),
            Entry::Denied(denied) => Poll::Ready(Err(denied)),
            Entry::Queued(waiter) => {
                let timer = Box::pin(clock::sleep_until(waiter.turn()));
                self.place = Some(Place { waiter, end: now.checked_add(max_wait), deadline, timer });
                Poll::Pending
            }
        }
    }
}
