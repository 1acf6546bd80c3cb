//! A body that can be sent again.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

use super::{
    BoxError, CopyBody,
    frames::{left, poll_frame},
};
use crate::{debug::impl_debug, mutex::Mutex, telemetry::LayerEvent};

mod allowance;
mod place;
mod tape;

pub(crate) use allowance::Allowance;
use place::Place;
use tape::{Polled, Recording, Tape, Turn};

/// A body that can be sent again, although it streams only once. Created by
/// [`ReplayLayer`](crate::replay::ReplayLayer).
///
/// The first attempt streams the inner body, and the frames that pass are kept. A [copy](CopyBody::copy_body) yields
/// the kept frames and then continues with the rest of the inner body. It yields the same frames and trailers in the
/// same order, whether the previous attempt completed, was dropped halfway, or never started.
///
/// An empty body costs nothing. Any other body costs two allocations, and a lock for each frame that only attempts of
/// the same request share. No code of the inner body runs under the lock.
///
/// The type is not `Clone`, because a copy is not always possible. The [`Default`] body is empty.
///
/// # One attempt at a time
///
/// A copy takes over the body when it is first polled, or when it [claims](CopyBody::claim_body) the body, in whatever
/// order the copies were made. The previous attempt is woken and fails with an error, unless it already has every
/// frame. A connection that is still sending it is closed, because its response is no longer needed.
///
/// # Bounds
///
/// A frame that exceeds [`max_bytes`](crate::replay::ReplayLayer::max_bytes), or
/// [`max_total_bytes`](crate::replay::ReplayLayer::max_total_bytes) over all requests, passes through without being
/// kept, and all kept frames of the body are freed at once. They are also freed when no copy is left that could need
/// them. From then on no copy can be made, and an earlier copy fails with an error. It is never empty or truncated.
///
/// Kept frames are copied, so they never keep the larger buffer alive that a frame was cut from.
///
/// Nothing is kept for [`copy_unread`](CopyBody::copy_unread). Such a copy can be sent until the body is first read.
///
/// # Size
///
/// The `size_hint` starts as that of the inner body, on each attempt, and decreases by the bytes that the attempt
/// yields.
///
/// # Errors
///
/// An inner body that fails or panics has failed for all attempts. Every poll after an error fails too, so that the
/// body never appears complete.
pub struct ReplayBody<B> {
    // None: it is empty.
    shared: Option<Arc<Shared<B>>>,
    place: Place,
    // The number of frames and bytes that this attempt has yielded.
    frames: usize,
    bytes: u64,
}

struct Shared<B> {
    // The size at the start.
    size: SizeHint,
    allowance: Arc<Allowance>,
    tape: Mutex<Tape<Pin<Box<B>>>>,
}

impl<B: Body> ReplayBody<B> {
    /// Wraps `body` with the default bounds of [`ReplayLayer`](crate::replay::ReplayLayer), and its own total.
    pub fn new(body: B) -> Self {
        Self::within(body, &Arc::default())
    }

    pub(crate) fn within(body: B, allowance: &Arc<Allowance>) -> Self {
        if body.is_end_stream() {
            return Self::default();
        }
        let size = body.size_hint();
        let recording = Recording::new(allowance, size.lower());
        let tape = Mutex::new(Tape::new(Box::pin(body), recording));
        Self::attempt(Arc::new(Shared { size, allowance: Arc::clone(allowance), tape }), Place::first())
    }
}

impl<B> ReplayBody<B> {
    fn attempt(shared: Arc<Shared<B>>, place: Place) -> Self {
        Self { shared: Some(shared), place, frames: 0, bytes: 0 }
    }

    fn is_end(&self) -> bool {
        self.shared.as_ref().is_none_or(|shared| shared.tape.lock().is_end(self.frames))
    }
}

impl<B> Default for ReplayBody<B> {
    fn default() -> Self {
        Self { shared: None, place: Place::first(), frames: 0, bytes: 0 }
    }
}

impl<B> Drop for ReplayBody<B> {
    fn drop(&mut self) {
        if let Some(shared) = &self.shared {
            shared.tape.lock().leave(&self.place);
        }
    }
}

impl<B: Body + From<String>> From<String> for ReplayBody<B> {
    fn from(text: String) -> Self {
        Self::new(text.into())
    }
}

impl<B> CopyBody for ReplayBody<B> {
    /// Returns a copy from the start, or `None` if the start was not kept, or the body has failed.
    fn copy_body(&self) -> Option<Self> {
        let Some(shared) = &self.shared else { return Some(Self::default()) };
        let place = shared.tape.lock().copy()?;
        Some(Self::attempt(Arc::clone(shared), place))
    }

    /// Returns a copy for which nothing is kept, or `None` if frames were read and not kept, or the body has failed.
    fn copy_unread(&self) -> Option<Self> {
        let Some(shared) = &self.shared else { return Some(Self::default()) };
        let place = shared.tape.lock().spare()?;
        Some(Self::attempt(Arc::clone(shared), place))
    }

    fn claim_body(&self) -> bool {
        let Some(shared) = &self.shared else { return true };
        let taken = shared.tape.lock().take_over(&self.place, self.frames);
        let Ok(before) = taken else { return false };
        if let Some(before) = before {
            before.wake();
        }
        true
    }

    /// Returns `false` until the previous attempt has every frame.
    fn claim_body_beside(&self) -> bool {
        let is_read = self.shared.as_ref().is_none_or(|shared| shared.tape.lock().is_read());
        is_read && self.claim_body()
    }
}

/// The inner body while an attempt polls it. Dropping it before `settle` means that it panicked.
struct Lease<'a, B> {
    shared: &'a Arc<Shared<B>>,
    inner: Option<Pin<Box<B>>>,
}

impl<B> Drop for Lease<'_, B> {
    fn drop(&mut self) {
        if self.inner.is_some() {
            let waiting = self.shared.tape.lock().fail();
            if let Some(waiting) = waiting {
                waiting.wake();
            }
        }
    }
}

impl<B> Lease<'_, B>
where
    B: Body,
    B::Error: Into<BoxError>,
{
    fn poll_frame(&mut self, place: &Place, cx: &mut Context<'_>) -> Polled {
        let Some(inner) = &mut self.inner else { return Poll::Pending };
        let polled = poll_frame(inner.as_mut(), cx);
        let goes_on = match &polled {
            Poll::Pending => true,
            Poll::Ready(frame) => matches!(frame, Some(Ok(_))) && !inner.is_end_stream(),
        };
        let inner = self.inner.take();
        let (back, _ended) = if goes_on { (inner, None) } else { (None, inner) };
        let settled = self.shared.tape.lock().settle(place, back, polled);
        if let Some(waiting) = settled.wake {
            waiting.wake();
        }
        drop(settled.given_up);
        if let Some(reason) = settled.reason {
            self.shared.allowance.info.emit(LayerEvent::NotRepeatable { reason });
        }
        settled.polled
    }
}

impl<B> Body for ReplayBody<B>
where
    B: Body,
    B::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = &mut *self;
        let Some(shared) = &this.shared else { return Poll::Ready(None) };
        // Cloned here, and the previous waker is dropped here, outside the lock: both may run an executor's code.
        let mut waker = Some(cx.waker().clone());
        let (turn, before) = shared.tape.lock().turn(&this.place, this.frames, &mut waker);
        if let Some(before) = before {
            before.wake();
        }
        let polled = match turn {
            Turn::Frame(frame) => Poll::Ready(Some(Ok(frame))),
            Turn::Stream(inner) => Lease { shared, inner: Some(inner) }.poll_frame(&this.place, cx),
            Turn::Wait => Poll::Pending,
            Turn::End => Poll::Ready(None),
            Turn::Fail(error) => Poll::Ready(Some(Err(error))),
        };
        // Counted last: if something above panics, this attempt has lost a frame, and detects that it cannot continue.
        if let Poll::Ready(Some(Ok(frame))) = &polled {
            this.frames += 1;
            this.bytes += frame.data_ref().map_or(0, |data| data.len() as u64);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.is_end()
    }

    fn size_hint(&self) -> SizeHint {
        let Some(shared) = self.shared.as_ref().filter(|_| !self.is_end()) else { return SizeHint::with_exact(0) };
        left(shared.size, self.bytes)
    }
}

impl_debug!(ReplayBody<B> { body: B, turn = |this| this.place.turn(), frames, ended = |this| this.is_end() });

#[cfg(test)]
mod tests;
