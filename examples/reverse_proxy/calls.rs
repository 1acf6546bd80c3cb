//! The state of one connection: how many calls are in flight, and since when it waits for the next one.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use http::Version;
use hyper::body::Body;
use tokio::{
    sync::{Notify, watch},
    time::{Instant, sleep},
};
use ziggurat::body::{Guard, PollFrame};

use super::limits::Limits;

#[derive(Debug, Clone)]
pub(crate) struct Calls(Arc<watch::Sender<State>>);

#[derive(Debug, Clone, Copy)]
struct State {
    in_flight: usize,
    waits: Waits,
    /// When the current wait began.
    since: Instant,
    /// Whether the caller was notified that the connection ends.
    leaving: bool,
    /// Whether a body broke off in a way that only closing the connection can signal.
    cut: bool,
}

/// The wait of a connection without calls in flight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Waits {
    /// For the first head: nothing else has arrived.
    First,
    /// The rest of a head.
    Rest,
    /// For the head of another request.
    Next,
    /// For another request in HTTP/2, where not every byte belongs to a head.
    NextStream,
}

impl Calls {
    pub(crate) fn new() -> Self {
        let (waits, since) = (Waits::First, Instant::now());
        Self(Arc::new(watch::Sender::new(State { in_flight: 0, waits, since, leaving: false, cut: false })))
    }

    /// Records the arrival of a head. The call lasts until the returned value is dropped, or has ended as a guard.
    pub(crate) fn begin(&self, version: Version) -> Call {
        let is_http2 = version == Version::HTTP_2;
        self.0.send_modify(|state| {
            state.in_flight += 1;
            state.waits = if is_http2 { Waits::NextStream } else { Waits::Next };
        });
        Call { calls: self.clone(), ends_with_connection: version == Version::HTTP_10 }
    }

    /// Records the arrival of bytes.
    pub(crate) fn heard(&self) {
        self.0.send_if_modified(|state| {
            let begins = state.in_flight == 0 && state.waits == Waits::Next;
            if begins {
                (state.waits, state.since) = (Waits::Rest, Instant::now());
            }
            begins
        });
    }

    /// Returns whether the caller must not mistake the end of the connection for the end of a body.
    pub(crate) fn is_cut(&self) -> bool {
        self.0.borrow().cut
    }

    /// Records that the caller is notified of the connection's end. It then has as much time as for a head.
    pub(crate) fn leave(&self) {
        self.0.send_modify(|state| (state.leaving, state.since) = (true, Instant::now()));
    }

    /// Waits until the connection has been without calls for too long, or is without calls while `room` is needed.
    /// Returns whether to end it gracefully: a caller in the middle of a head, or already notified, is cut off.
    pub(crate) async fn idle(&self, limits: &Limits, room: &Notify) -> bool {
        let mut states = self.0.subscribe();
        loop {
            let State { in_flight, waits, since, leaving, .. } = *states.borrow_and_update();
            let is_between = matches!(waits, Waits::Next | Waits::NextStream) && !leaving;
            let limit = if is_between { limits.keep_alive } else { limits.request_head };
            tokio::select! {
                biased;
                _ = states.changed() => {}
                () = sleep(limit.saturating_sub(since.elapsed())), if in_flight == 0 => return is_between,
                // Waiters are notified in order, so the connection that has been idle longest makes room.
                () = room.notified(), if in_flight == 0 => return is_between,
            }
        }
    }
}

/// A call in flight.
#[derive(Debug)]
pub(crate) struct Call {
    calls: Calls,
    ends_with_connection: bool,
}

impl Drop for Call {
    fn drop(&mut self) {
        self.calls.0.send_modify(|state| {
            state.in_flight -= 1;
            state.since = Instant::now();
        });
    }
}

impl<B: Body> Guard<B> for Call {
    type Error = B::Error;

    fn poll_frame(&mut self, body: Pin<&mut B>, cx: &mut Context<'_>) -> PollFrame<B::Data, B::Error> {
        let polled = body.poll_frame(cx);
        if self.ends_with_connection && matches!(polled, Poll::Ready(Some(Err(_)))) {
            self.calls.0.send_modify(|state| state.cut = true);
        }
        polled
    }
}
