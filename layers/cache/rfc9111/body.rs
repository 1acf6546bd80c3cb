//! The bodies outside the cache.

use std::{
    fmt,
    ops::Range,
    pin::{Pin, pin},
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use tokio::task::consume_budget;

use super::{
    fill::{Content, Reader, Rest},
    interest::Interest,
};
use crate::body::{BoxError, poll_frame};

pin_project! {
    /// The body of a response from an HTTP cache.
    ///
    /// It is the body of the inner service as it is, a body in memory, or one that arrives and is kept in memory
    /// meanwhile. The [`Default`] body is empty.
    pub struct CacheBody<B> {
        #[pin]
        state: State<B>,
    }
}

pin_project! {
    #[project = StateProjection]
    enum State<B> {
        Inner { #[pin] body: B },
        Stored { rest: Rest },
        Filling { reader: Reader, interest: Interest },
        Empty,
    }
}

impl<B> CacheBody<B> {
    /// The body of the inner service as it is.
    pub(super) fn inner(body: B) -> Self {
        Self { state: State::Inner { body } }
    }

    pub(super) fn empty() -> Self {
        Self { state: State::Empty }
    }

    pub(super) fn stored(content: Content) -> Self {
        Self { state: State::Stored { rest: Rest::new(content, 0) } }
    }

    /// Those bytes of a range that the content has, without its trailers. They are not copied.
    pub(super) fn part(content: Content, range: Range<u64>) -> Self {
        Self { state: State::Stored { rest: Rest::part(content, range) } }
    }

    /// A body that arrives. A caller who reads it is interested in it.
    pub(super) fn filling(reader: Reader, interest: Interest) -> Self {
        Self { state: State::Filling { reader, interest } }
    }
}

impl<B: Body<Error: Into<BoxError>>> Body for CacheBody<B> {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let spends = |cx: &mut Context<'_>| pin!(consume_budget()).poll(cx);
        match self.project().state.project() {
            StateProjection::Inner { body } => poll_frame(body, cx),
            StateProjection::Stored { rest } => {
                // A caller of a body that is always ready would keep the thread. One with a single frame never waits.
                if rest.is_long() {
                    ready!(spends(cx));
                }
                Poll::Ready(rest.next().map(Ok))
            }
            StateProjection::Filling { reader, .. } => {
                ready!(spends(cx));
                reader.poll_frame(cx)
            }
            StateProjection::Empty => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.state {
            State::Inner { body } => body.is_end_stream(),
            State::Stored { rest } => rest.is_end(),
            State::Filling { reader, .. } => reader.is_end_stream(),
            State::Empty => true,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.state {
            State::Inner { body } => body.size_hint(),
            State::Stored { rest } => rest.size_hint(),
            State::Filling { reader, .. } => reader.size_hint(),
            State::Empty => SizeHint::with_exact(0),
        }
    }
}

impl<B> Default for CacheBody<B> {
    fn default() -> Self {
        Self::empty()
    }
}

impl<B> From<String> for CacheBody<B> {
    fn from(text: String) -> Self {
        Self::stored(Content::from_bytes(text.into(), None))
    }
}

impl<B> fmt::Debug for CacheBody<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match &self.state {
            State::Inner { .. } => "inner",
            State::Stored { .. } => "stored",
            State::Filling { .. } => "filling",
            State::Empty => "empty",
        };
        f.debug_struct("CacheBody").field("state", &state).finish()
    }
}

#[cfg(test)]
mod tests;
