//! A body that keeps something until it has ended.

use std::{
    any::type_name,
    fmt,
    pin::Pin,
    task::{Context, Poll, ready},
};

use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;

pin_project! {
    /// A body that keeps a guard until it has ended, failed or was dropped; then the body is dropped, and the guard after it.
    ///
    /// An empty body has ended from the start, and one that says so ([`Body::is_end_stream`]) with its last frame. Frames, trailers,
    /// size and errors pass unchanged. It costs nothing but its size.
    ///
    /// The one that [`Default`] makes guards nothing: it is what a rejection answers with.
    pub struct GuardBody<B, G> {
        // None: ended. Before the guard, and so dropped before it.
        #[pin]
        body: Option<B>,
        guard: Option<G>,
    }
}

impl<B: Body, G> GuardBody<B, G> {
    /// Keeps `guard` until `body` has ended.
    pub fn new(body: B, guard: impl Into<Option<G>>) -> Self {
        // A body without frames may never be polled.
        let guard = if body.is_end_stream() { None } else { guard.into() };
        Self { body: Some(body), guard }
    }
}

impl<B: Default, G> Default for GuardBody<B, G> {
    fn default() -> Self {
        Self { body: Some(B::default()), guard: None }
    }
}

impl<B: Body, G> Body for GuardBody<B, G> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        let mut this = self.project();
        let Some(mut body) = this.body.as_mut().as_pin_mut() else { return Poll::Ready(None) };
        let frame = ready!(body.as_mut().poll_frame(cx));
        if !matches!(frame, Some(Ok(_))) || body.is_end_stream() {
            this.body.set(None);
            *this.guard = None;
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

impl<B, G> fmt::Debug for GuardBody<B, G> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GuardBody")
            .field("body", &type_name::<B>())
            .field("ended", &self.body.is_none())
            .field("guarding", &self.guard.is_some())
            .finish()
    }
}
