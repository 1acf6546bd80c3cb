//! A body that holds a layer's guard until it has ended.

use std::{
    any::type_name,
    mem,
    pin::Pin,
    task::{Context, Poll, ready},
};

use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;

use crate::debug::impl_debug;

/// A value that a layer keeps until a response's body has ended, such as a permit, a scope, or a timer.
///
/// Implement it for your own layers. A guard that only has to be dropped at the end is short:
///
/// ```
/// # use std::{pin::Pin, task::Context};
/// # use http_body::Body;
/// # use ziggurat::body::{Guard, PollFrame};
/// struct Ticket;
///
/// impl<B: Body> Guard<B> for Ticket {
///     type Error = B::Error;
///
///     fn poll_frame(&mut self, body: Pin<&mut B>, cx: &mut Context<'_>) -> PollFrame<B::Data, B::Error> {
///         body.poll_frame(cx)
///     }
/// }
/// ```
pub trait Guard<B: Body>: Sized {
    /// The error of the guarded body: the body's own error, or a type that can also hold a rejection.
    type Error;

    /// Polls the body for its next frame. Not called again after an error or the end.
    fn poll_frame(&mut self, body: Pin<&mut B>, cx: &mut Context<'_>) -> PollFrame<B::Data, Self::Error>;

    /// Runs `drop`, which drops the body. Override it to make ambient values current meanwhile.
    fn drop_body(&mut self, drop: impl FnOnce()) {
        drop();
    }

    /// Reports that the body has ended and how. If dropping the body panics, the guard is dropped without this call.
    fn ended(self, _end: End) {}
}

/// The result of [`Body::poll_frame`].
pub type PollFrame<D, E> = Poll<Option<Result<Frame<D>, E>>>;

/// How a body ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The body ended with its last frame.
    Complete,
    /// The body ended with an error, its own or its guard's.
    Failed,
    /// The body or its guard panicked, in a poll or in the drop at the end. Takes precedence over everything that
    /// follows.
    Panicked,
    /// The body was dropped early. A server also drops a body that it has sent completely, or that is not needed
    /// (HEAD).
    Dropped {
        /// Whether its reader was waiting for a frame: the last poll was pending.
        waiting: bool,
    },
}

pin_project! {
    /// A body that holds a [`Guard`] until it has ended, failed or been dropped. The body is dropped first, then the
    /// guard.
    ///
    /// An empty body has ended from the start, so its guard is released before the body. A body that reports its end
    /// ([`Body::is_end_stream`]) has ended with its last frame. Frames, trailers, size and errors pass through
    /// unchanged, unless the guard ends the body with an error. No allocation.
    ///
    /// The [`Default`] body has no guard. Rejections respond with it.
    pub struct GuardBody<B, G>
    where
        B: Body,
        G: Guard<B>,
    {
        // None: ended. Declared before the guard, so that it is dropped first.
        #[pin]
        body: Option<B>,
        // None: there is no guard, or no longer.
        guard: Option<G>,
        // Whether the last poll was pending.
        waiting: bool,
        // Set while the body is polled or dropped, so it stays set after a panic.
        panicked: bool,
    }

    impl<B, G> PinnedDrop for GuardBody<B, G>
    where
        B: Body,
        G: Guard<B>,
    {
        fn drop(this: Pin<&mut Self>) {
            let waiting = this.waiting;
            this.end(End::Dropped { waiting });
        }
    }
}

impl<B: Body, G: Guard<B>> GuardBody<B, G> {
    /// Holds `guard` until `body` has ended. Without a guard, only wraps `body`.
    #[inline]
    pub fn new(body: B, guard: impl Into<Option<G>>) -> Self {
        let mut guard = guard.into();
        // A body without frames may never be polled.
        if body.is_end_stream()
            && let Some(guard) = guard.take()
        {
            guard.ended(End::Complete);
        }
        Self { body: Some(body), guard, waiting: false, panicked: false }
    }

    #[inline]
    fn end(self: Pin<&mut Self>, end: End) {
        let mut this = self.project();
        let panicked = mem::replace(this.panicked, true);
        if let Some(guard) = this.guard {
            guard.drop_body(|| this.body.set(None));
        }
        this.body.set(None);
        *this.panicked = panicked;
        if let Some(guard) = this.guard.take() {
            guard.ended(if *this.panicked { End::Panicked } else { end });
        }
    }
}

impl<B: Body + Default, G: Guard<B>> Default for GuardBody<B, G> {
    fn default() -> Self {
        Self::new(B::default(), None)
    }
}

impl<B: Body + From<String>, G: Guard<B>> From<String> for GuardBody<B, G> {
    fn from(text: String) -> Self {
        Self::new(B::from(text), None)
    }
}

impl<B, G> Body for GuardBody<B, G>
where
    B: Body,
    B::Error: Into<G::Error>,
    G: Guard<B>,
{
    type Data = B::Data;
    type Error = G::Error;

    #[inline]
    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> PollFrame<B::Data, Self::Error> {
        let mut this = self.as_mut().project();
        let Some(mut body) = this.body.as_mut().as_pin_mut() else { return Poll::Ready(None) };
        let panicked = mem::replace(this.panicked, true);
        let polled = match this.guard {
            Some(guard) => guard.poll_frame(body.as_mut(), cx),
            None => body.as_mut().poll_frame(cx).map(|frame| frame.map(|frame| frame.map_err(Into::into))),
        };
        *this.panicked = panicked;
        *this.waiting = polled.is_pending();
        let frame = ready!(polled);
        match frame {
            None => self.end(End::Complete),
            Some(Err(_)) => self.end(End::Failed),
            Some(Ok(_)) if body.is_end_stream() => self.end(End::Complete),
            Some(Ok(_)) => {}
        }
        Poll::Ready(frame)
    }

    #[inline]
    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    #[inline]
    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or(SizeHint::with_exact(0), Body::size_hint)
    }
}

impl_debug!(GuardBody<B: Body, G: Guard<B>> {
    body: B,
    ended = |this| this.body.is_none(),
    guarding = |this| this.guard.is_some().then(type_name::<G>),
});
