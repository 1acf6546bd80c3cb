//! The bodies inside and outside the layer.

use std::{
    fmt,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;

use super::{
    backlog::{Part, Receiver},
    flight::Interest,
};
use crate::body::{self, BoxError, poll_frame};

pin_project! {
    /// The body of a request inside the layer, and of a response outside of it.
    ///
    /// It is that of the client or of the handler as it is, or one whose content is known: a request body that was
    /// read for its fingerprint, or a stored response. The [`Default`] body is empty.
    pub struct IdempotentBody<B> {
        #[pin]
        state: State<B>,
    }
}

pin_project! {
    #[project = StateProjection]
    enum State<B> {
        Inner { #[pin] body: B },
        Known { data: Bytes, trailers: Option<HeaderMap> },
        // The frames come from the task that runs the handler.
        Recorded { parts: Receiver<B>, left: SizeHint, interest: Interest },
        // The response is larger than the layer stores, and no longer recorded.
        Rest { body: Pin<Box<B>> },
        Ended,
    }
}

/// The task that recorded a response is gone, because its runtime or its scope has ended, or the body has panicked.
#[derive(Debug)]
struct Lost;

impl fmt::Display for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the handler was dropped before its response ended")
    }
}

impl std::error::Error for Lost {}

impl<B> IdempotentBody<B> {
    pub(super) fn inner(body: B) -> Self {
        Self { state: State::Inner { body } }
    }

    pub(super) fn known(data: Bytes, trailers: Option<HeaderMap>) -> Self {
        Self { state: State::Known { data, trailers } }
    }

    /// The body of the caller that a handler runs for. `left` is the size of the whole.
    pub(super) fn recorded(parts: Receiver<B>, left: SizeHint, interest: Interest) -> Self {
        Self { state: State::Recorded { parts, left, interest } }
    }
}

impl<B: Body<Error: Into<BoxError>>> Body for IdempotentBody<B> {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let mut state = self.project().state;
        loop {
            let part = match state.as_mut().project() {
                StateProjection::Inner { body } => return poll_frame(body, cx),
                StateProjection::Rest { body } => return poll_frame(body.as_mut(), cx),
                StateProjection::Known { data, trailers } => {
                    let data = std::mem::take(data);
                    let frame =
                        if data.is_empty() { trailers.take().map(Frame::trailers) } else { Some(Frame::data(data)) };
                    return Poll::Ready(frame.map(Ok));
                }
                StateProjection::Ended => return Poll::Ready(None),
                StateProjection::Recorded { parts, left, .. } => {
                    let part = ready!(parts.poll_recv(cx)).unwrap_or_else(|| Part::Failed(Lost.into()));
                    if let Part::Frame(frame) = &part {
                        *left = body::left(*left, frame.data_ref().map_or(0, |data| data.len() as u64));
                    }
                    part
                }
            };
            match part {
                Part::Frame(frame) => return Poll::Ready(Some(Ok(frame))),
                Part::Rest(body) => state.set(State::Rest { body }),
                Part::End => state.set(State::Ended),
                Part::Failed(error) => {
                    state.set(State::Ended);
                    return Poll::Ready(Some(Err(error)));
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.state {
            State::Inner { body } => body.is_end_stream(),
            State::Rest { body } => body.is_end_stream(),
            State::Known { data, trailers } => data.is_empty() && trailers.is_none(),
            State::Recorded { .. } => false,
            State::Ended => true,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.state {
            State::Inner { body } => body.size_hint(),
            State::Rest { body } => body.size_hint(),
            State::Known { data, trailers: None } => SizeHint::with_exact(data.len() as u64),
            // hyper sends no trailers over HTTP/1 behind a body whose size it knows.
            State::Known { data, .. } => {
                let mut hint = SizeHint::new();
                hint.set_lower(data.len() as u64);
                hint
            }
            State::Recorded { left, .. } => *left,
            State::Ended => SizeHint::with_exact(0),
        }
    }
}

impl<B> Default for IdempotentBody<B> {
    fn default() -> Self {
        Self::known(Bytes::new(), None)
    }
}

impl<B> From<String> for IdempotentBody<B> {
    fn from(text: String) -> Self {
        Self::known(text.into(), None)
    }
}

impl<B> fmt::Debug for IdempotentBody<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match &self.state {
            State::Inner { .. } => "inner",
            State::Known { .. } => "known",
            State::Recorded { .. } => "recorded",
            State::Rest { .. } => "rest",
            State::Ended => "ended",
        };
        f.debug_struct("IdempotentBody").field("state", &state).finish()
    }
}
