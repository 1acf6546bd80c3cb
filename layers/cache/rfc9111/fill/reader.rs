//! The place of a caller that reads a body while it arrives.

use std::{
    sync::Arc,
    task::{Context, Poll, Waker, ready},
};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Frame, SizeHint};

use super::{
    End, Fill,
    content::{Content, Rest},
    failure::Failure,
    tape::Found,
};
use crate::{
    body::{BoxError, left},
    caught::undisturbed,
};

/// Reads a body from its first byte, while it arrives or later. Returns its place when dropped.
pub(in super::super) struct Reader {
    state: State,
}

enum State {
    Filling(Place),
    // The body has arrived, and needs no lock any more.
    Whole(Rest),
    Ended,
}

struct Place {
    fill: Arc<Fill>,
    at: u64,
    waker: Option<usize>,
}

enum Next {
    Data(Bytes),
    Whole(Content),
    End(Option<Arc<HeaderMap>>),
    Failed(Failure),
}

impl Reader {
    pub(super) fn filling(fill: Arc<Fill>) -> Self {
        Self { state: State::Filling(Place { fill, at: 0, waker: None }) }
    }

    pub(super) fn whole(content: Content) -> Self {
        Self { state: State::Whole(Rest::new(content, 0)) }
    }

    pub(in super::super) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        loop {
            let (at, next) = match &mut self.state {
                State::Filling(place) => (place.at, ready!(place.poll_next(cx))),
                State::Whole(rest) => return Poll::Ready(rest.next().map(Ok)),
                State::Ended => return Poll::Ready(None),
            };
            let frame = match next {
                Next::Data(data) => return Poll::Ready(Some(Ok(Frame::data(data)))),
                Next::Whole(content) => {
                    self.state = State::Whole(Rest::new(content, at));
                    continue;
                }
                Next::End(trailers) => trailers.map(|trailers| Ok(Frame::trailers(HeaderMap::clone(&trailers)))),
                Next::Failed(failure) => Some(Err(failure.into())),
            };
            self.state = State::Ended;
            return Poll::Ready(frame);
        }
    }

    pub(in super::super) fn is_end_stream(&self) -> bool {
        match &self.state {
            State::Filling(place) => place.is_end(),
            State::Whole(rest) => rest.is_end(),
            State::Ended => true,
        }
    }

    pub(in super::super) fn size_hint(&self) -> SizeHint {
        match &self.state {
            State::Filling(place) => place.size_hint(),
            State::Whole(rest) => rest.size_hint(),
            State::Ended => SizeHint::with_exact(0),
        }
    }
}

impl Place {
    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Next> {
        // Cloned and dropped without the lock: both may run an executor's code.
        let mut waker = None::<Waker>;
        loop {
            let mut state = self.fill.state.lock();
            let next = match &state.end {
                End::Whole(content) => Some(Next::Whole(content.clone())),
                _ => match state.tape.take(&mut self.at) {
                    Found::Bytes(data) => Some(Next::Data(data)),
                    Found::Gone => Some(Next::Failed(Failure::Lagging)),
                    Found::Level => match &state.end {
                        End::Streamed(trailers) => Some(Next::End(trailers.clone())),
                        End::Failed(failure) => Some(Next::Failed(failure.clone())),
                        End::Open | End::Whole(_) => None,
                    },
                },
            };
            if let Some(next) = next {
                self.fill.unlock(state);
                return Poll::Ready(next);
            }
            if state.wakers.is_known(self.waker, cx.waker()) {
                return Poll::Pending;
            }
            if let Some(waker) = waker.take() {
                let before = state.wakers.set(&mut self.waker, waker);
                drop(state);
                undisturbed(|| drop(before));
                return Poll::Pending;
            }
            drop(state);
            waker = Some(cx.waker().clone());
        }
    }

    fn is_end(&self) -> bool {
        let state = self.fill.state.lock();
        self.at == state.tape.arrived()
            && match &state.end {
                End::Whole(content) => content.trailers().is_none(),
                End::Streamed(trailers) => trailers.is_none(),
                End::Open | End::Failed(_) => false,
            }
    }

    fn size_hint(&self) -> SizeHint {
        let state = self.fill.state.lock();
        let mut hint = left(self.fill.size, self.at);
        match &state.end {
            End::Whole(content) => hint = Rest::new(content.clone(), self.at).size_hint(),
            End::Streamed(None) => hint = SizeHint::with_exact(state.tape.arrived() - self.at),
            // At least the bytes that have arrived.
            _ if hint.upper().is_none() => hint.set_lower(hint.lower().max(state.tape.arrived() - self.at)),
            _ => {}
        }
        hint
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut state = self.fill.state.lock();
        state.tape.leave(self.at);
        let waker = self.waker.and_then(|waker| state.wakers.give_back(waker));
        self.fill.unlock(state);
        undisturbed(|| drop(waker));
    }
}
