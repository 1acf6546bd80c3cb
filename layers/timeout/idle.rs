//! Measures how long a body makes its reader wait for a frame. The time before the reader polls does not count.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Wake, Waker},
};

use futures_util::task::AtomicWaker;
use http_body::Body;

use crate::{ambient::Limit, body::PollFrame, clock};

/// The limit of each wait for a frame, and the current wait.
pub(super) struct Idle {
    pub(super) limit: Limit,
    /// The end of the current wait; `Limit::NONE` between waits.
    pub(super) end: Limit,
    // None: the body was never pending.
    reader: Option<Reader>,
}

impl Idle {
    pub(super) fn new(limit: Limit) -> Self {
        Self { limit, end: Limit::NONE, reader: None }
    }

    #[inline]
    pub(super) fn poll_frame<B: Body>(
        &mut self,
        mut body: Pin<&mut B>,
        cx: &mut Context<'_>,
    ) -> PollFrame<B::Data, B::Error> {
        let waits = self.end != Limit::NONE;
        if !waits {
            let polled = body.as_mut().poll_frame(cx);
            if polled.is_ready() || self.limit == Limit::NONE {
                return polled;
            }
            self.end = self.limit.started(Limit::at(clock::now()));
        }
        let reader = self.reader.get_or_insert_with(Reader::new);
        match reader.take_woken() {
            // The reader was no longer waiting when it polled again.
            Some(woken) if waits && woken < self.end => {
                self.end = self.end.since(woken).started(Limit::at(clock::now()));
            }
            _ => {}
        }
        // At the start of a wait, this polls again, with a waker that records when the reader stops waiting.
        let polled = reader.ask(cx, |cx| body.poll_frame(cx));
        if polled.is_ready() {
            self.end = Limit::NONE;
        }
        polled
    }
}

/// Sits between a body and its reader's waker, and records when the body wakes the reader. From then on, the body
/// does not keep the reader waiting until the reader polls again.
struct Reader {
    shared: Arc<Shared>,
    // Created from `shared` once, not for each poll.
    waker: Waker,
}

struct Shared {
    reader: AtomicWaker,
    /// When the body first woke its reader after the reader's last poll.
    woken: Mutex<Option<Limit>>,
}

impl Reader {
    fn new() -> Self {
        let shared = Arc::new(Shared { reader: AtomicWaker::new(), woken: Mutex::new(None) });
        Self { waker: Waker::from(Arc::clone(&shared)), shared }
    }

    /// Returns the time at which the body woke its reader, if it did since the last call.
    fn take_woken(&self) -> Option<Limit> {
        self.shared.woken().take()
    }

    fn ask<T>(&self, cx: &mut Context<'_>, poll: impl FnOnce(&mut Context<'_>) -> Poll<T>) -> Poll<T> {
        self.shared.reader.register(cx.waker());
        poll(&mut Context::from_waker(&self.waker))
    }
}

impl Shared {
    fn woken(&self) -> MutexGuard<'_, Option<Limit>> {
        self.woken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Wake for Shared {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.woken().get_or_insert_with(|| Limit::at(clock::now()));
        self.reader.wake();
    }
}
