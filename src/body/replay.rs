//! A body that can be sent again.

use std::{
    any::type_name,
    fmt,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
};

use bytes::{Buf, Bytes};
use http_body::{Body, Frame, SizeHint};

use super::CopyBody;
use crate::telemetry::LayerEvent;

mod allowance;
mod place;
mod tape;

pub(crate) use allowance::Allowance;
use place::Place;
use tape::{BoxError, Polled, Recording, Tape, Turn};

/// A body that can be sent again, although what it streams comes only once. [`ReplayLayer`](crate::replay::ReplayLayer) makes it.
///
/// The first attempt streams the inner body, and what passes is kept. A [copy](CopyBody::copy_body) gives what was kept and then goes
/// on with the rest of the inner body: the same frames and trailers in the same order, whether the attempt before came to the
/// end, was dropped in the middle, or never began.
///
/// - **One attempt at a time.** When a copy is first polled, or [claims](CopyBody::claim_body) it, the body is its own,
///   in whatever order the copies were made. The attempt that had it until then is woken and gets an error, unless it
///   has had everything: a connection that still sends it is closed, and nobody waits for it.
/// - **Bounds.** What would be more than may be kept ([`max_bytes`](crate::replay::ReplayLayer::max_bytes), over all
///   requests [`max_total_bytes`](crate::replay::ReplayLayer::max_total_bytes)) goes through unkept, and all that was
///   kept is freed at once; so is what nobody can ask for any more, because no copy waits for its turn. From then on
///   there is no copy, and one that was made before is no more than an error. It is never empty or cut. What is kept is
///   copied: it never keeps the larger buffer that a frame was cut from.
/// - **Unread.** For [`copy_unread`](CopyBody::copy_unread) nothing is kept: that copy can be sent as long as nothing
///   was read.
/// - **Size.** Its `size_hint` is that of the inner body at the start, on each attempt, less what the attempt gave.
/// - An inner body that fails or panics has failed for all attempts. After an error there are only errors: it never looks as if it
///   were whole.
///
/// It is not `Clone`, because there is not always a copy. An empty body costs nothing. Any other costs two allocations, and each
/// frame a lock that only attempts of the same request share; none of the inner body's code runs under it.
///
/// The one that [`Default`] makes is empty.
pub struct ReplayBody<B> {
    // None: it is empty.
    shared: Option<Arc<Shared<B>>>,
    place: Place,
    // How many frames and bytes this attempt gave.
    frames: usize,
    bytes: u64,
}

struct Shared<B> {
    // At the start.
    size: SizeHint,
    allowance: Arc<Allowance>,
    tape: Mutex<Tape<Pin<Box<B>>>>,
}

impl<B: Body> ReplayBody<B> {
    /// With the bounds that [`ReplayLayer`](crate::replay::ReplayLayer) has if they are not set, and a total of its own.
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
        self.shared.as_ref().is_none_or(|shared| shared.tape().is_end(self.frames))
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
            shared.tape().leave(&self.place);
        }
    }
}

impl<B: Body + From<String>> From<String> for ReplayBody<B> {
    fn from(text: String) -> Self {
        Self::new(text.into())
    }
}

impl<B> CopyBody for ReplayBody<B> {
    /// A copy that begins at the start; `None` if that was not kept, or the body has failed.
    fn copy_body(&self) -> Option<Self> {
        let Some(shared) = &self.shared else { return Some(Self::default()) };
        let place = shared.tape().copy()?;
        Some(Self::attempt(Arc::clone(shared), place))
    }

    /// A copy for which nothing is kept; `None` if something was read and not kept, or the body has failed.
    fn copy_unread(&self) -> Option<Self> {
        let Some(shared) = &self.shared else { return Some(Self::default()) };
        let place = shared.tape().spare()?;
        Some(Self::attempt(Arc::clone(shared), place))
    }

    fn claim_body(&self) -> bool {
        let Some(shared) = &self.shared else { return true };
        let taken = shared.tape().take_over(&self.place, self.frames);
        let Ok(before) = taken else { return false };
        if let Some(before) = before {
            before.wake();
        }
        true
    }
}

impl<B> Shared<B> {
    fn tape(&self) -> MutexGuard<'_, Tape<Pin<Box<B>>>> {
        self.tape.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The inner body, in the hands of the attempt that polls it. Unless it is settled, it has panicked.
struct Lease<'a, B> {
    shared: &'a Arc<Shared<B>>,
    inner: Option<Pin<Box<B>>>,
}

impl<B> Drop for Lease<'_, B> {
    fn drop(&mut self) {
        if self.inner.is_some() {
            let waiting = self.shared.tape().fail();
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
        let polled = inner.as_mut().poll_frame(cx).map(|next| {
            next.map(|frame| match frame {
                Ok(frame) => Ok(frame.map_data(|mut data| data.copy_to_bytes(data.remaining()))),
                Err(error) => Err(error.into()),
            })
        });
        let goes_on = match &polled {
            Poll::Pending => true,
            Poll::Ready(frame) => matches!(frame, Some(Ok(_))) && !inner.is_end_stream(),
        };
        let inner = self.inner.take();
        let (back, _ended) = if goes_on { (inner, None) } else { (None, inner) };
        let settled = self.shared.tape().settle(place, back, polled);
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
        // Cloned here, and what it replaces dropped here: both may run an executor's code.
        let mut waker = Some(cx.waker().clone());
        let (turn, before) = shared.tape().turn(&this.place, this.frames, &mut waker);
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
        // Counted last: if anything before panics, this attempt has lost a frame, and finds that it cannot go on.
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
        let mut left = SizeHint::new();
        left.set_lower(shared.size.lower().saturating_sub(self.bytes));
        if let Some(upper) = shared.size.upper() {
            left.set_upper(upper.saturating_sub(self.bytes));
        }
        left
    }
}

impl<B> fmt::Debug for ReplayBody<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReplayBody")
            .field("body", &type_name::<B>())
            .field("turn", &self.place.turn())
            .field("frames", &self.frames)
            .field("ended", &self.is_end())
            .finish()
    }
}

#[cfg(test)]
mod tests;
