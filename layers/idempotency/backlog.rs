//! The frames of a response, on their way from the task that records it to its caller.

use std::{
    collections::VecDeque,
    mem,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use bytes::{Bytes, BytesMut};
use http_body::Frame;

use crate::{body::BoxError, caught::undisturbed, mutex::Mutex};

/// The number of frames from which on the next ones are joined. A slow reader of many small frames does not take up
/// more room than their bytes.
const FRAMES: usize = 16;

/// A message of the task.
pub(super) enum Part<B> {
    Frame(Frame<Bytes>),
    Failed(BoxError),
    /// The response is larger than the layer stores: the caller reads the rest of it by itself.
    Rest(Pin<Box<B>>),
    End,
}

enum Queued<B> {
    Part(Part<B>),
    Joined(BytesMut),
}

struct Backlog<B> {
    queue: VecDeque<Queued<B>>,
    reader: Option<Waker>,
    is_closed: bool,
}

type Shared<B> = Arc<Mutex<Backlog<B>>>;

/// The end of the task.
pub(super) struct Sender<B>(Shared<B>);

/// The end of the caller.
pub(super) struct Receiver<B>(Shared<B>);

pub(super) fn backlog<B>() -> (Sender<B>, Receiver<B>) {
    let shared = Arc::new(Mutex::new(Backlog { queue: VecDeque::new(), reader: None, is_closed: false }));
    (Sender(Arc::clone(&shared)), Receiver(shared))
}

impl<B> Sender<B> {
    /// Sends a part. It is dropped if the receiver is.
    pub(super) fn send(&self, part: Part<B>) {
        let mut backlog = self.0.lock();
        if backlog.is_closed {
            // Locked no longer: the part may have a body.
            drop(backlog);
            return;
        }
        backlog.push(part);
        let reader = backlog.reader.take();
        drop(backlog);
        undisturbed(|| reader.into_iter().for_each(Waker::wake));
    }
}

impl<B> Backlog<B> {
    fn push(&mut self, part: Part<B>) {
        let part = match part {
            Part::Frame(frame) if self.queue.len() >= FRAMES => match frame.into_data() {
                Ok(data) => return self.join(&data),
                Err(frame) => Part::Frame(frame),
            },
            part => part,
        };
        self.queue.push_back(Queued::Part(part));
    }

    fn join(&mut self, data: &[u8]) {
        match self.queue.back_mut() {
            Some(Queued::Joined(joined)) => joined.extend_from_slice(data),
            _ => self.queue.push_back(Queued::Joined(data.into())),
        }
    }
}

impl<B> Drop for Sender<B> {
    fn drop(&mut self) {
        let mut backlog = self.0.lock();
        backlog.is_closed = true;
        let reader = backlog.reader.take();
        drop(backlog);
        undisturbed(|| reader.into_iter().for_each(Waker::wake));
    }
}

impl<B> Receiver<B> {
    /// Polls the next part. `None` if the sender was dropped without an end.
    pub(super) fn poll_recv(&self, cx: &mut Context<'_>) -> Poll<Option<Part<B>>> {
        let mut backlog = self.0.lock();
        let part = match backlog.queue.pop_front() {
            Some(Queued::Part(part)) => Some(part),
            Some(Queued::Joined(data)) => Some(Part::Frame(Frame::data(data.freeze()))),
            None if backlog.is_closed => None,
            None => {
                let waker = cx.waker();
                let is_known = backlog.reader.as_ref().is_some_and(|known| known.will_wake(waker));
                let replaced = if is_known { None } else { backlog.reader.replace(waker.clone()) };
                drop(backlog);
                drop(replaced);
                return Poll::Pending;
            }
        };
        Poll::Ready(part)
    }
}

impl<B> Drop for Receiver<B> {
    fn drop(&mut self) {
        let mut backlog = self.0.lock();
        backlog.is_closed = true;
        let (queue, reader) = (mem::take(&mut backlog.queue), backlog.reader.take());
        drop(backlog);
        drop((queue, reader));
    }
}
