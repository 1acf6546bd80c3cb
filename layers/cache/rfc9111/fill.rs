//! The body of a response that many callers read while one task receives it.
//!
//! All of it is kept, for the callers of this moment and for the cache, unless it turns out to be too large. From then
//! on it is streamed: the reader that is ahead sets the pace, and the others may lag behind it by a bounded number of
//! bytes.

use std::{
    future::{Future, poll_fn},
    pin::{Pin, pin},
    sync::{Arc, MutexGuard},
    task::{Context, Poll, Waker, ready},
};

use bytes::{Buf, BufMut, Bytes};
use futures_util::task::AtomicWaker;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use tokio::task::consume_budget;

use crate::{
    body::BoxError,
    caught::{contained, text, undisturbed, unwound},
    mutex::Mutex,
};

mod content;
mod failure;
mod reader;
mod room;
mod tape;
mod wakers;

pub(super) use self::{
    content::{Content, Rest},
    reader::Reader,
    room::Room,
};
use self::{failure::Failure, room::Share, tape::Tape, wakers::Wakers};

/// A body that many callers read while one task [receives](Fill::receive) it.
pub(super) struct Fill {
    /// The size that the head announced.
    size: SizeHint,
    state: Mutex<State>,
    /// The task, once the body is streamed. It waits for a reader that has taken all bytes so far, and ends when no
    /// reader is left.
    task: AtomicWaker,
}

/// No user code runs while this is locked.
struct State {
    tape: Tape,
    share: Share,
    end: End,
    wakers: Wakers,
    /// The task has bytes that it must not add yet.
    awaits_reader: bool,
}

enum End {
    Open,
    Whole(Content),
    Streamed(Option<Arc<HeaderMap>>),
    Failed(Failure),
}

impl Fill {
    /// `max` is the size of the largest body that is kept, and the number of bytes that a reader may lag behind another
    /// one once the body is larger. `size` is the size that the head announced. A body for
    /// which there is no `room` counts as too large.
    pub(super) fn new(max: usize, size: SizeHint, room: &Arc<Room>) -> Arc<Self> {
        let (tape, share, wakers) = (Tape::new(max), Share::of(room), Wakers::default());
        let state = State { tape, share, end: End::Open, wakers, awaits_reader: false };
        Arc::new(Self { size, state: Mutex::new(state), task: AtomicWaker::new() })
    }

    #[cfg(test)]
    pub(super) fn alone(max: usize, size: SizeHint) -> Arc<Self> {
        Self::new(max, size, &Room::new(usize::MAX))
    }

    /// Returns a reader from the first byte, or `None` if that is no longer there: the body turned out to be too large,
    /// or it failed.
    pub(super) fn reader(self: &Arc<Self>) -> Option<Reader> {
        let mut state = self.state.lock();
        match &state.end {
            End::Open => state.tape.join().then(|| Reader::filling(Arc::clone(self))),
            End::Whole(content) => Some(Reader::whole(content.clone())),
            End::Streamed(_) | End::Failed(_) => None,
        }
    }

    /// Receives the body to its end. Returns it if it arrived whole and is not too large.
    ///
    /// This goes on when all readers have left, unless the body has turned out to be too large. If the future is
    /// dropped or the body panics, the readers get an error.
    pub(super) fn receive<B>(self: Arc<Self>, body: B) -> impl Future<Output = Option<Content>> + Send
    where
        B: Body<Error: Into<BoxError>> + Send,
    {
        let feeder = Feeder(self);
        async move {
            if let Err(panic) = unwound(feeder.feed(body)).await {
                let _ = text(panic);
            }
            // Also if the body panicked when it was dropped.
            feeder.content()
        }
    }

    /// Wakes the task if it waits for this, after a reader has gone on or has left.
    fn unlock(&self, state: MutexGuard<'_, State>) {
        let tape = &state.tape;
        let wakes = tape.is_streamed() && (!tape.has_readers() || state.awaits_reader && tape.has_level());
        drop(state);
        if wakes {
            undisturbed(|| self.task.wake());
        }
    }
}

/// The duty of receiving a body. If it is dropped before the end, the readers get an error.
struct Feeder(Arc<Fill>);

/// The result of polling the body.
enum Arrival {
    Data {
        data: Bytes,
        is_last: bool,
    },
    Trailers(HeaderMap),
    Failed(BoxError),
    End,
    /// No reader is left, or the body has panicked.
    Lost,
}

impl Feeder {
    /// Receives a body until its end, or until no reader is left that needs the rest.
    async fn feed<B>(&self, body: B)
    where
        B: Body<Error: Into<BoxError>>,
    {
        let mut body = pin!(body);
        let (mut arrived, mut trailers, mut woken) = (0, None::<HeaderMap>, Vec::new());
        loop {
            // A body that is always ready would keep the thread from the readers.
            consume_budget().await;
            match poll_fn(|cx| self.poll_arrival(body.as_mut(), cx)).await {
                Arrival::Data { data, .. } if data.is_empty() => {}
                Arrival::Data { data, is_last } => {
                    arrived += data.len() as u64;
                    if let Some(size) = self.0.size.exact().filter(|size| arrived > *size) {
                        return self.end(|_| End::Failed(Failure::Long { size }));
                    }
                    if !self.has_room(data.len()).await {
                        return;
                    }
                    self.push(data, is_last, &mut woken);
                    if is_last {
                        break;
                    }
                }
                Arrival::Trailers(more) => trailers.get_or_insert_default().extend(more),
                Arrival::Failed(error) => return self.end(|_| End::Failed(Failure::Body(Arc::new(error)))),
                Arrival::End => break,
                Arrival::Lost => return,
            }
        }
        if let Some(size) = self.0.size.exact().filter(|size| arrived < *size) {
            return self.end(|_| End::Failed(Failure::Short { arrived, size }));
        }
        self.end(|State { tape, share, .. }| match tape.is_streamed() {
            true => End::Streamed(trailers.filter(|trailers| !trailers.is_empty()).map(Arc::new)),
            false => End::Whole(tape.finish(trailers, share.give())),
        });
    }

    fn poll_arrival<B>(&self, body: Pin<&mut B>, cx: &mut Context<'_>) -> Poll<Arrival>
    where
        B: Body<Error: Into<BoxError>>,
    {
        if self.is_abandoned(cx) {
            return Poll::Ready(Arrival::Lost);
        }
        // Caught here: if the body panicked again when the unwinding drops it, the process would abort.
        contained(|| arrival(body, cx)).unwrap_or(Poll::Ready(Arrival::Lost))
    }

    /// Returns whether the body is streamed and no reader is left. If one is, the task is woken when it leaves.
    fn is_abandoned(&self, cx: &Context<'_>) -> bool {
        if !self.0.state.lock().tape.is_streamed() {
            return false;
        }
        self.0.task.register(cx.waker());
        !self.0.state.lock().tape.has_readers()
    }

    /// Waits until bytes may be added, which is at once while the body is kept. Returns whether they are still needed.
    async fn has_room(&self, bytes: usize) -> bool {
        {
            let State { tape, share, .. } = &mut *self.0.state.lock();
            if tape.fits(bytes) && share.take(bytes) {
                return true;
            }
            tape.stream();
        }
        poll_fn(|cx| {
            self.0.task.register(cx.waker());
            let mut state = self.0.state.lock();
            let is_over = state.tape.has_level() || !state.tape.has_readers();
            state.awaits_reader = !is_over;
            if is_over { Poll::Ready(state.tape.has_readers()) } else { Poll::Pending }
        })
        .await
    }

    /// Adds bytes. If they are the last ones, the readers are woken with the end, once.
    fn push(&self, data: Bytes, is_last: bool, woken: &mut Vec<Waker>) {
        let mut state = self.0.state.lock();
        let State { tape, share, .. } = &mut *state;
        tape.push(data, share);
        if !is_last {
            state.wakers.drain(woken);
        }
        drop(state);
        wake(woken);
    }

    /// Ends the body for its readers, unless it has ended.
    fn end(&self, end: impl FnOnce(&mut State) -> End) {
        let mut woken = Vec::new();
        let mut state = self.0.state.lock();
        if let End::Open = state.end {
            state.end = end(&mut state);
            state.wakers.drain(&mut woken);
        }
        drop(state);
        wake(&mut woken);
    }

    fn content(&self) -> Option<Content> {
        match &self.0.state.lock().end {
            End::Whole(content) => Some(content.clone()),
            _ => None,
        }
    }
}

impl Drop for Feeder {
    fn drop(&mut self) {
        self.end(|_| End::Failed(Failure::Lost));
    }
}

/// Polls a body, and copies what arrives: a slice of a larger buffer would keep all of it.
fn arrival<B>(mut body: Pin<&mut B>, cx: &mut Context<'_>) -> Poll<Arrival>
where
    B: Body<Error: Into<BoxError>>,
{
    if body.is_end_stream() {
        return Poll::Ready(Arrival::End);
    }
    Poll::Ready(match ready!(body.as_mut().poll_frame(cx)).map(|frame| frame.map(Frame::into_data)) {
        Some(Ok(Ok(data))) => {
            let mut copy = Vec::with_capacity(data.remaining());
            copy.put(data);
            Arrival::Data { data: copy.into(), is_last: body.is_end_stream() }
        }
        Some(Ok(Err(frame))) => frame.into_trailers().map_or(Arrival::End, Arrival::Trailers),
        Some(Err(error)) => Arrival::Failed(error.into()),
        None => Arrival::End,
    })
}

fn wake(woken: &mut Vec<Waker>) {
    for waker in woken.drain(..) {
        undisturbed(|| waker.wake());
    }
}

#[cfg(test)]
mod tests;
