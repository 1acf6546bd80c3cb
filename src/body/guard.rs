//! A body that a layer keeps something with until it has ended.

use std::{
    any::type_name,
    fmt, mem,
    pin::Pin,
    task::{Context, Poll, ready},
};

use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;

/// What a layer keeps with a response's body: a permit, a scope, a clock.
///
/// For layers of your own; one that only has to be dropped at the end needs nothing but
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
    /// The error of the guarded body: that of the body, or one that holds a rejection too.
    type Error;

    /// Polls the body, for its next frame. After an error, and after the end, it is not asked again.
    fn poll_frame(&mut self, body: Pin<&mut B>, cx: &mut Context<'_>) -> PollFrame<B::Data, Self::Error>;

    /// Runs `drop`, which drops the body: for what has to be in place meanwhile.
    fn drop_body(&mut self, drop: impl FnOnce()) {
        drop();
    }

    /// The body is gone, in this way. A guard that is dropped without this had a body that panicked when it was dropped.
    fn ended(self, _end: End) {}
}

/// What [`Body::poll_frame`] answers.
pub type PollFrame<D, E> = Poll<Option<Result<Frame<D>, E>>>;

/// How a body ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// With its last frame.
    Complete,
    /// With an error: its own, or one of its guard's.
    Failed,
    /// It panicked, in a poll or when it was dropped at its end, or its guard did meanwhile; whatever came afterwards.
    Panicked,
    /// It was dropped before. A server does that too with a response that it has sent whole, or whose body nobody wants (HEAD).
    Dropped {
        /// Whether whoever reads it was waiting for it: it was asked for a frame and had none.
        waiting: bool,
    },
}

pin_project! {
    /// A body that keeps a [`Guard`] until it has ended, failed or was dropped; then the body is dropped, and the guard after it.
    ///
    /// An empty body has ended from the start, and its guard is gone before it; one that says so ([`Body::is_end_stream`]) has ended with
    /// its last frame. Frames, trailers, size and errors pass unchanged, unless the guard ends the body with an error. It allocates nothing.
    ///
    /// The one that [`Default`] makes guards nothing: it is what a rejection answers with.
    pub struct GuardBody<B, G>
    where
        B: Body,
        G: Guard<B>,
    {
        // None: ended. Before the guard, and so dropped before it.
        #[pin]
        body: Option<B>,
        // None: there is nothing (more) to guard.
        guard: Option<G>,
        // Whether it was asked for a frame and had none.
        waiting: bool,
        // The body is being polled or dropped, or panicked then.
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
    /// Keeps `guard` until `body` has ended; without one it is the body alone.
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

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or(SizeHint::with_exact(0), Body::size_hint)
    }
}

impl<B: Body, G: Guard<B>> fmt::Debug for GuardBody<B, G> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GuardBody")
            .field("body", &type_name::<B>())
            .field("ended", &self.body.is_none())
            .field("guarding", &self.guard.is_some().then(type_name::<G>))
            .finish()
    }
}
